"""What the system says of the processor, and how often it is asked."""

from pathlib import Path

import pytest

from fslib import device

INTEL = "processor : 0\nmodel name\t: Fast: 5 GHz\nflags\t\t: fpu avx512_bf16\nvmx flags : a\n\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50\nFeatures\t: fp bf16\n\n"


@pytest.mark.parametrize(
    ("text", "flags", "name"),
    [
        (
            INTEL + INTEL.replace("Fast", "Other").replace("fpu", "x"),
            {"fpu", "avx512_bf16"},
            "Fast: 5 GHz",
        ),
        (ARM * 2, {"fp", "bf16"}, None),
        (None, set(), None),
    ],
    ids=["intel", "arm", "nothing"],
)
def test_the_first_processor_is_read_once(text, flags, name, monkeypatch):
    asked = []

    def read(path: Path) -> str:
        asked.append(path)
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    device._processor.cache_clear()
    assert device.cpu_flags() == flags
    machine = device.describe_machine()
    assert machine["processor"] and name in (None, machine["processor"])
    assert machine["bf16"] == bool(flags) and len(asked) == 1
    device._processor.cache_clear()
