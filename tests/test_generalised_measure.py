"""Old and new classes at once, as records that the rest of the house can read."""

import dataclasses
import shlex

import numpy as np
import pytest
import torch
from conftest import coloured

from fslib import measure
from fslib.comparison import compare, mean_over_seeds
from fslib.evaluate import embed_images
from fslib.generalised import evaluate_generalised, train_stage_two
from fslib.generalised import measure as generalised_measure
from fslib.generalised.measure import (
    COUNTS,
    measured_generalised,
    parts_of,
)
from fslib.results import load_records, load_scores
from fslib.runs import Config, RunCorrupt, open_run
from fslib.study import Study, generalised_records

HOW = {"shots": (1, 3), "lessons": 8, "draws": 6}
CONFIG = Config(
    "dynamic_fsl",
    dataset="coloured",
    backbone_options={"width": 4},
    options={"batch": 32},
    epochs=1,
    precision="32-true",
    profile="cpu",
)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("FSLIB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FSLIB_RESULTS", str(tmp_path / "results"))
    sets = {
        split: coloured(split, classes, side=16, seed=classes)
        for split, classes in (("train", 6), ("val", 5), ("test", 3))
    }
    monkeypatch.setattr(measure, "open_dataset", lambda name, root: sets)
    return sets


def test_no_image_is_both_learned_from_and_asked_about(data):
    parts = parts_of(data)
    for known, asked, whole in (("train", "base", "train"), ("support", "novel", "test")):
        assert len(parts[known]) + len(parts[asked]) == len(data[whole])
        seen = {image.numpy().tobytes() for image in parts[known].images}
        assert not seen & {image.numpy().tobytes() for image in parts[asked].images}
    assert set(parts["base"].counts.tolist()) == set(parts["novel"].counts.tolist()) == {4}
    assert parts["val"] is data["val"]


def test_records_hold_what_the_evaluation_counts(data, tmp_path):
    records = measured_generalised(CONFIG, data, **HOW)
    assert records.keys() == COUNTS.keys()
    parts = parts_of(data)
    method = open_run(tmp_path / "runs" / CONFIG.identity(parts["train"].digest)).method
    known = {
        name: (method.test_features(embed_images(method, parts[name])), parts[name].labels)
        for name in ("train", "support", "base", "novel")
    }
    taught, _ = train_stage_two(method, *known["train"], 3, episodes=8, progress=False)
    expected = evaluate_generalised(taught, known["base"], known["support"], known["novel"], 3, 6)
    for head, counted in COUNTS.items():
        scores = load_scores(records[head], 3)
        assert np.array_equal(scores.correct, expected[counted].correct)
        assert (scores.queries, scores.way) == (expected[counted].queries, expected[counted].way)
        assert records[head].head == head and len(scores.correct) == 6
    ways = {head: record.episodes["way"] for head, record in records.items()}
    assert ways["generalised_novel"] == ways["generalised_novel_joint_top5"] == 3
    assert ways["generalised_base_joint"] == 6 and ways["generalised_all_prior_top5"] == 9
    assert all(record.episodes["query"] == 4 for record in records.values())
    assert (load_scores(records["generalised_novel_top5"], 1).accuracy == 100).all()


def test_records_are_made_once_and_can_be_compared(data, monkeypatch):
    study = Study("coloured", "conv4", 1, "crop_flip", "cpu", (0, 1), training={})
    study = study.but(backbone_options={"width": 4}, training={"precision": "32-true"})
    study.__dict__["data"] = data
    made = generalised_records(study, "dynamic_fsl", options={"batch": 32}, **HOW)
    again = generalised_records(study, "dynamic_fsl", options={"batch": 32}, **HOW)
    assert made == again and len(made["generalised_all"]) == 2
    other = generalised_records(study, "dynamic_fsl", "wide", options={"batch": 16}, **HOW)
    gain = compare(other["generalised_all"], made["generalised_all"], 3)
    means = [mean_over_seeds(g["generalised_all"], 3)[0] for g in (other, made)]
    assert gain[0] == pytest.approx(means[0] - means[1]) and gain[1] >= 0
    with pytest.raises(ValueError, match="different episodes or images"):
        compare(made["generalised_all"], made["generalised_novel"], 3)
    monkeypatch.setattr(generalised_measure, "fit", None)  # another question needs another run
    with pytest.raises(TypeError):
        measured_generalised(study.config("dynamic_fsl", batch=32), data, **{**HOW, "draws": 7})


def test_the_command_of_a_record_repeats_it(data, capsys):
    made = measured_generalised(CONFIG, data, **HOW)
    words = shlex.split(made["generalised_all"].command)
    assert words[-4:] == ["--generalised", "shots=[1,3]", "lessons=8", "draws=6"]
    assert not load_records()  # pages write no committed record
    measure.main(words[3:])
    assert "generalised_novel_top5--6-episodes: n = 1: 100.00" in capsys.readouterr().out
    committed = {record.head: record for record in load_records()}
    for head, record in made.items():
        assert committed[head].command == record.command
        for shot in HOW["shots"]:
            a, b = load_scores(record, shot), load_scores(committed[head], shot)
            assert np.array_equal(a.correct, b.correct)
    # An ordinary score of the same method is not mistaken for one of these.
    assert not load_records(method="dynamic_fsl", head="")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shots 1 5", "--generalised goes without --shots: its own settings follow it"),
        ("--on coloured --heads l2n --publish", "goes without --on, --heads, --publish: its own"),
        ("--corruptions blur --episodes 10000", "goes without --corruptions, --episodes: its own"),
        ("", "--generalised has no setting 'lesson': choose one of shots, lessons, draws"),
    ],
)
def test_what_would_be_ignored_is_refused(words, message, data, monkeypatch, capsys):
    monkeypatch.setattr(measure, "measure_generalised", lambda *_, **__: pytest.fail("measured"))
    setting = "lessons=8" if words else "lesson=8"
    with pytest.raises(SystemExit):
        measure.main(
            [*"dynamic_fsl --dataset coloured --generalised".split(), setting, *words.split()]
        )
    assert message in capsys.readouterr().err


def test_one_number_of_shots_need_not_be_a_list(data, monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "measure_generalised", lambda *_, **how: asked.append(how))
    for word in ("shots=3", "shots=[3]", "draws=6"):
        measure.main(["dynamic_fsl", "--dataset", "coloured", "--generalised", word])
    assert asked == [{"shots": [3]}, {"shots": [3]}, {"draws": 6}]


def test_other_processes_of_torchrun_only_train(data, monkeypatch, capsys):
    made = measured_generalised(CONFIG, data, **HOW)
    monkeypatch.setenv("RANK", "1")
    fits, fit = [], generalised_measure.fit
    monkeypatch.setattr(generalised_measure, "fit", lambda *a: fits.append(a) or fit(*a))
    generalised_measure.measure_generalised(CONFIG, data, **HOW)
    assert len(fits) == 1 and not load_records() and capsys.readouterr().out == ""
    # Where the first process finds the records, nobody trains.
    assert measured_generalised(CONFIG, data, **HOW).keys() == made.keys() and len(fits) == 1


def test_records_of_other_word_vectors_are_not_taken(data):
    words = {
        seed: {
            split: dataclasses.replace(
                part,
                semantics=torch.randn(
                    part.classes, 8, generator=torch.Generator().manual_seed(seed)
                ),
            )
            for split, part in data.items()
        }
        for seed in (1, 2)
    }
    config = dataclasses.replace(CONFIG, method="dynamic_fsl_traml")
    made = measured_generalised(config, words[1], **HOW)
    assert measured_generalised(config, words[1], **HOW) == made
    with pytest.raises(RunCorrupt, match="learned from other word vectors"):
        measured_generalised(config, words[2], **HOW)


def test_a_method_without_a_second_stage_is_refused(data):
    plain = Config("ce", backbone_options={"width": 4}, options={"batch": 32}, epochs=1)
    with pytest.raises(ValueError, match="'ce' has no second stage: take dynamic_fsl"):
        measured_generalised(plain, data, **HOW)
    assert torch.is_grad_enabled()
