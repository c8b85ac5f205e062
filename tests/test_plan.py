"""The plan of a page: which commands make its numbers under a profile, with nothing trained."""

import dataclasses
import json
import shutil
from pathlib import Path

import plan
import pytest
from conftest import coloured

from fslib.data import PackSplit, open_dataset, write_pack
from fslib.generalised.measure import COUNTS, parts_of
from fslib.image_set import ImageSet
from fslib.measure import join, part_of
from fslib.results import Record
from fslib.runs import Config

PAGE = """\
# %% tags=["parameters"]
dataset: str = "glyphs"
backbone: str = "conv4"
epochs: int = 3
episodes: int = 2000
profile: str = ""

# %%
from fslib.study import Study, generalised_records

study = Study(dataset, backbone, epochs, profile=profile, seeds=(0, 1))
study.records("ce", shots=(1,), head="l2n")
study.records("ce", shots=(1,), corruption="blur")
study.but(episodes=500).records("ce", head="sqrt", shots=(1,))
far = study.but(dataset="flowers102").data["test"]
study.but(seeds=(0,)).records("protonet", "pushed", images=far, alpha1=5.5, shots=(1,))
network = study.run("bml").method
one = study.but(seeds=(0,))
generalised_records(one, "dynamic_fsl", shots=[1, 5], lessons=4000, draws=100)
"""
LETTERS = """\
# %% tags=["parameters"]
dataset: str = "glyphs"

# %%
raise AssertionError("a page that measures nothing need not be read")
"""


def test_a_page_tells_the_commands_of_its_records(tmp_path: Path, capsys):
    page = tmp_path / "book" / "chapter" / "page.py"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE)
    page.with_name("letters.py").write_text(LETTERS)
    assert plan.main(["chapter", "--book", str(tmp_path / "book")]) == 0
    common = "--dataset cifar_fs --backbone resnet12_slim"
    ce = [
        f"ce {common} --epochs 19{seed} --profile cpu --corruptions blur --heads l2n --shots 1"
        for seed in ("", " --seed 1")
    ]
    fewer = [
        f"ce {common} --epochs 19{seed} --profile cpu --heads sqrt --shots 1 --episodes 500"
        for seed in ("", " --seed 1")
    ]
    pushed = (
        f"protonet {common} --options alpha1=5.5 --epochs 19 --profile cpu --variant pushed "
        "--on cifar_fs flowers102 --shots 1"
    )
    bml = f"bml {common} --epochs 19 --profile cpu --publish"
    both = (
        f"dynamic_fsl {common} --epochs 19 --profile cpu "
        "--generalised 'shots=[1,5]' lessons=4000 draws=100"
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [ce[0], fewer[0], ce[1], fewer[1], pushed, bml, both]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two data sets, small enough to be packed, another as their stand-in; no training."""
    monkeypatch.setenv("FSLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FSLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(plan, "STAND_IN", "letters")
    for function in ("measured", "measured_generalised"):
        monkeypatch.setattr(f"fslib.measure.{function}", lambda *_: None, raising=False)
        monkeypatch.setattr(f"fslib.study.{function}", lambda *_: None)
    monkeypatch.setattr("fslib.train.fit", lambda *_: None)
    for name, side in (("near", 16), ("far", 20), ("letters", 12)):
        sets = {s: coloured(s, side=side) for s in ("train", "val", "test")}
        packs = {
            s: PackSplit(part.images.numpy(), part.labels.numpy(), part.class_names)
            for s, part in sets.items()
        }
        write_pack(tmp_path / "data", name, packs, licence="", source="")
    return tmp_path / "results"


NEAR = Config("ce", dataset="near")
JOINT = Config("dynamic_fsl", dataset="near")


def ask(missing: bool = True) -> list[str]:
    """The lines of a page that looks at all that `--missing` has to find."""
    asked = plan.Plan(missing)
    data, far = asked.open_dataset("near"), join(asked.open_dataset("far"))
    asked.note(NEAR, data, shots=(5,))
    asked.note(NEAR, data, far)
    asked.note(NEAR, data, part_of(data, "val"))
    asked.train(NEAR, data)
    asked.note_generalised(JOINT, data, (1, 5), 40, 10)
    return list(asked.lines())


def write_record(root: Path, config: Config, train: str, scored: ImageSet, head="", **how) -> None:
    """A record that says no more than what question it answers."""
    same = ("method", "variant", "dataset", "backbone", "profile", "seed")
    record = Record(
        **{name: getattr(config, name) for name in same},
        evaluated_on=scored.name,
        head=head,
        episodes={"episodes": 10_000, "seed": 0, **how},
        accuracy={shot: {"mean": 50.0, "ci95": 0.2} for shot in "15"},
        facts={"data_digest": train},
        config=config.as_dict(),
        evaluated_digest=scored.digest,
    )
    content = dataclasses.asdict(record)
    del content["root"]
    path = root / "runs" / f"{record.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_what_has_a_record_is_not_missing(places):
    lines = [
        "ce --dataset near --on near far near_val --publish",
        "dynamic_fsl --dataset near --generalised 'shots=[1,5]' lessons=40 draws=10",
    ]
    assert ask() == lines
    near, parts = open_dataset("near"), parts_of(open_dataset("near"))
    train = near["train"].digest
    for images in (near["test"], join(open_dataset("far")).resized(16), part_of(near, "val")):
        write_record(places, NEAR, train, images)
    both = "+".join(parts[name].digest[:16] for name in ("base", "novel"))
    asked = dataclasses.replace(parts["novel"], digest=both)
    for head in COUNTS:
        how = {"episodes": 10, "lessons": 40}
        write_record(places, JOINT, parts["train"].digest, asked, head, **how)
    assert ask() == ["ce --dataset near --publish"]
    network = places / "networks" / NEAR.identity(train) / "run.json"
    network.parent.mkdir(parents=True)
    network.write_text("{}")
    assert ask() == []
    assert ask(missing=False) == lines


def test_without_the_data_sets_all_is_missing(places, tmp_path):
    before = ask()
    for name in ("near", "far"):
        shutil.rmtree(tmp_path / "data" / name)
    assert ask() == before


def test_one_command_has_the_shots_of_all_its_questions(places):
    asked = plan.Plan(False)
    data = asked.open_dataset("near")
    asked.note(NEAR, data, shots=(1, 5))
    asked.note(NEAR, data, head="l2n", shots=(1, 10, 20))
    assert list(asked.lines()) == ["ce --dataset near --heads l2n --shots 1 5 10 20"]


@pytest.mark.parametrize("how", [{"head": "l2n"}, {"corruption": "blur"}])
def test_what_no_command_measures_is_refused(places, how):
    asked = plan.Plan(False)
    data, far = asked.open_dataset("near"), join(asked.open_dataset("far"))
    with pytest.raises(ValueError, match="no command scores ce on far with head"):
        asked.note(NEAR, data, far, **how)
    with pytest.raises(ValueError, match="no command scores ce on near with head"):
        asked.note(NEAR, data, **{"head": "cosine", "corruption": "blur"})
