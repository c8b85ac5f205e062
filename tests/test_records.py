"""The records of the edition, several commands at a time."""

import threading
import time
from pathlib import Path

import pytest
import records


def test_ctrl_c_leaves_the_waiting_commands_unmade(monkeypatch):
    made, begun = [], threading.Event()

    def make(line: str, log: Path) -> tuple[int, float]:
        made.append(line)
        begun.set()
        time.sleep(0.2)
        return 0, 0.2

    def interrupted(jobs: dict) -> None:
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "commands", lambda only: [f"ce --seed {i}" for i in range(9)])
    monkeypatch.setattr(records, "make", make)
    monkeypatch.setattr(records.concurrent.futures, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        records.main(["--jobs", "1"])
    assert made == ["ce --seed 0"]
