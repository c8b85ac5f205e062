"""Records: round trip, names, and what is never replaced or read."""

import dataclasses
import json

import numpy as np
import pytest

from fslib.evaluate import Scores
from fslib.results import (
    Record,
    RecordMissing,
    code_version,
    load_records,
    load_scores,
    save_record,
    summary,
)
from fslib.runs import Config

EPISODES = {"way": 5, "query": 15, "episodes": 40, "seed": 0}


def measured(root, seed=0, shift=0, episodes=EPISODES, shots=(1, 5), **fields):
    """A record in `root` with made-up episodes; `shift` more right answers in each."""
    rng = np.random.default_rng(seed)
    scores = {
        shot: Scores(
            rng.integers(20, 60, episodes["episodes"]) + shift + shot,
            episodes["way"] * episodes["query"],
            episodes["way"],
            shot,
            episodes["seed"],
        )
        for shot in shots
    }
    record = Record(
        **{
            "method": "ce",
            "variant": "",
            "dataset": "toy",
            "evaluated_on": "toy",
            "backbone": "conv4",
            "profile": "cpu",
            "evaluated_digest": "abc",
            "config": {"method": "ce"},
            "facts": {"data_digest": "d"},
            **fields,
        },
        seed=seed,
        episodes=episodes,
        accuracy=summary(scores),
        history=[{"epoch": 1, "loss": 0.5}],
        command="python -m fslib.measure ce",
    )
    return save_record(record, scores, root), scores


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record, scores = measured(tmp_path)
    (loaded,) = load_records(tmp_path)
    assert loaded == record and loaded.root == tmp_path
    for shot in (1, 5):
        again = load_scores(loaded, shot)
        assert np.array_equal(again.correct, scores[shot].correct)
        assert dataclasses.replace(again, correct=None) == dataclasses.replace(
            scores[shot], correct=None
        )
        assert loaded.accuracy[str(shot)]["mean"] == round(scores[shot].mean, 3)
        assert loaded.accuracy[str(shot)]["ci95"] == round(scores[shot].ci95, 3)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    name = "toy--ce--conv4--cpu--seed0--40-episodes"
    assert files == [f"episodes/{name}.npy", f"runs/{name}.json"]
    saved = np.load(tmp_path / f"episodes/{name}.npy", allow_pickle=False)
    assert saved.dtype == np.uint8 and saved.shape == (2, 40)
    assert "root" not in json.loads((tmp_path / f"runs/{name}.json").read_text())


def test_the_name_says_what_was_measured(tmp_path):
    fields = {"variant": "deep", "evaluated_on": "birds", "corruption": "blur", "head": "l2n"}
    record, _ = measured(tmp_path, seed=3, **fields)
    assert record.id == "toy--ce--deep--conv4--cpu--seed3--on-birds--blur--head-l2n--40-episodes"


def test_records_are_found_by_their_fields_in_order_of_seed(tmp_path):
    for seed in (10, 2, 1):
        measured(tmp_path, seed)
    measured(tmp_path, 1, method="protonet")
    measured(tmp_path, 1, corruption="blur")
    found = load_records(tmp_path, method="ce", corruption="")
    assert [record.seed for record in found] == [1, 2, 10]
    assert len(load_records(tmp_path, method=["ce", "protonet"], seed=1)) == 3
    assert load_records(tmp_path, method="maml") == [] == load_records(tmp_path / "none")
    with pytest.raises(TypeError, match="records have no field colour"):
        load_records(tmp_path, colour="red")


def test_what_is_not_there_names_the_command_that_makes_it(tmp_path):
    record, _ = measured(tmp_path)
    with pytest.raises(RecordMissing, match=r"was scored at \[1, 5\] shots, not at 3"):
        load_scores(record, 3)
    (tmp_path / "episodes" / f"{record.id}.npy").unlink()
    with pytest.raises(RecordMissing, match=r"no episodes beside .*: run `python -m fslib.measure"):
        load_scores(record, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"method": "ce", "epochs": 9}},
        {"facts": {"data_digest": "other"}},
        {"evaluated_digest": "xyz"},
        {"episodes": {**EPISODES, "seed": 1}},
        {"episodes": {**EPISODES, "lessons": 9}},
    ],
)
def test_the_record_of_another_question_is_never_replaced(tmp_path, other):
    record, scores = measured(tmp_path)
    with pytest.raises(ValueError, match=r"another configuration, other data or other episodes"):
        measured(tmp_path, shift=1, **other)
    assert load_records(tmp_path) == [record]
    assert np.array_equal(load_scores(record, 5).correct, scores[5].correct)


def test_shots_are_added_to_a_record_and_never_taken_away(tmp_path):
    old, scores = measured(tmp_path, shots=(2, 5))
    with pytest.raises(ValueError, match=r"also has other shots: add 2 to --shots"):
        measured(tmp_path, shots=(1, 5))
    assert load_records(tmp_path) == [old]
    new, more = measured(tmp_path, shots=(1, 2, 5), shift=1)
    assert load_records(tmp_path) == [new]
    # The record that was read before still finds its rows, of which there are now others.
    for shot in (1, 2, 5):
        assert np.array_equal(load_scores(old, shot).correct, more[shot].correct)
    assert not np.array_equal(scores[2].correct, more[2].correct)


def test_episodes_of_other_shots_than_the_record_says_are_not_read(tmp_path):
    record, _ = measured(tmp_path)
    np.save(tmp_path / "episodes" / f"{record.id}.npy", np.zeros((3, 40), np.uint8))
    with pytest.raises(RecordMissing, match=r"are of other shots: delete .*\.json"):
        load_scores(record, 1)


def test_a_damaged_record_is_named(tmp_path):
    record, _ = measured(tmp_path)
    (tmp_path / "runs" / f"{record.id}.json").write_text('{"method": ')
    with pytest.raises(ValueError, match=rf"{record.id}\.json is damaged .*: restore or delete it"):
        load_records(tmp_path)


@pytest.mark.parametrize(("shift", "kind"), [(0, "uint8"), (230, "uint16"), (65_536, "uint32")])
def test_right_answers_take_as_many_bytes_as_they_need(tmp_path, shift, kind):
    record, scores = measured(tmp_path, episodes={**EPISODES, "query": 20_000}, shift=shift)
    assert np.array_equal(load_scores(record, 5).correct, scores[5].correct)
    assert np.load(tmp_path / f"episodes/{record.id}.npy").dtype == kind


def test_a_record_knows_its_run_by_name(tmp_path):
    record, _ = measured(tmp_path)
    assert record.run == Config("ce").identity("d")
    other = dataclasses.replace(record, config={"method": "ce", "epochs": 9})
    assert other.run == Config("ce", epochs=9).identity("d")


def test_a_field_of_a_later_version_does_not_hide_a_record(tmp_path):
    record, _ = measured(tmp_path)
    path = tmp_path / "runs" / f"{record.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new_field": 1}))
    assert load_records(tmp_path) == [record]


def test_a_record_says_which_code_made_it():
    version, sources = code_version().split("+")
    assert version.startswith("0.") and len(sources) == 8
