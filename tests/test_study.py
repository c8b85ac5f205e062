"""A study: the rows of a page differ in what their calls say, and in nothing else."""

import dataclasses

import pytest
import torch

from fslib import study as module
from fslib.results import load_records
from fslib.runs import Config
from fslib.study import Study, usual_rate


@pytest.fixture
def study(coloured_sets, tmp_path, monkeypatch):
    """Three coloured classes, a tiny network, two seeds."""
    monkeypatch.setenv("FSLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FSLIB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(module, "open_dataset", lambda name: coloured_sets)
    return Study(
        "coloured",
        "conv4",
        epochs=1,
        augment="none",
        seeds=(0, 1),
        episodes=40,
        backbone_options={"width": 4},
        training={"lr": 0.05},
    )


def test_a_row_changes_what_it_names_and_nothing_else(study):
    main = study.config("protonet")
    pushed = study.config("protonet", "pushed", alpha1=5.5)
    assert pushed == dataclasses.replace(main, variant="pushed", options={"alpha1": 5.5})
    assert main.lr == 0.05 and main.seed == 0 and main.backbone_options == {"width": 4}
    assert study.but(epochs=2).config("protonet") == dataclasses.replace(main, epochs=2)


def test_records_come_one_a_seed_and_the_second_time_from_disk(study):
    first = study.records("ce", shots=(1,), batch=16)
    assert [r.seed for r in first] == [0, 1]
    assert [r.config["lr"] for r in first] == [0.05, 0.05]
    again = study.records("ce", shots=(1,), batch=16)
    assert [r.accuracy for r in again] == [r.accuracy for r in first]
    assert not load_records()  # only the command line writes committed records


def test_a_look_inside_opens_the_network_that_was_scored(study):
    record = study.records("ce", shots=(1,), batch=16)[0]
    run = study.run("ce", batch=16)
    assert run.history == record.history
    weights = [p.clone() for p in run.method.parameters()]
    again = study.run("ce", batch=16).method.parameters()
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))


def test_the_usual_rate_differs_only_on_the_letters():
    assert usual_rate("protonet_traml", "glyphs_small") == usual_rate("protonet", "glyphs") == 0.01
    assert usual_rate("bml", "glyphs") == 0.02
    assert usual_rate("ce", "glyphs") == usual_rate("scl", "glyphs") == 0.2
    assert usual_rate("dmf", "glyphs") == 0.1
    assert {usual_rate(m, "cifar_fs") for m in ("bml", "protonet", "ce")} == {0.1}
    study = Study("glyphs", "conv4", 1)
    assert study.config("protonet").lr == 0.01 and study.config("ce").lr == 0.2
    assert study.but(training={"lr": 0.5}).config("protonet").lr == 0.5
    same = Config("protonet", dataset="cifar_fs", backbone="conv4", epochs=1)
    of_study = Study("cifar_fs", "conv4", 1).config("protonet")
    assert of_study.identity("d") == same.identity("d")
