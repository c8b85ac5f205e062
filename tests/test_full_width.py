"""Rows that no page trains: they are read from the records, and compared only with their likes."""

import dataclasses
import re

import numpy as np
import pytest

from fslib.evaluate import Scores
from fslib.full_width import at_full_width, records_of_width
from fslib.results import Record, save_record, summary


def recorded(root, method: str, shift: int = 0, **changed) -> Record:
    """A record of 30 episodes with `shift` more right answers of 75 in each."""
    right = np.random.default_rng(0).integers(20, 50, 30) + shift
    scores = {shot: Scores(right, 75, 5, shot, 0) for shot in (1, 5)}
    known = {
        "method": method,
        "variant": "",
        "dataset": "toy",
        "evaluated_on": "toy",
        "backbone": "resnet12",
        "profile": "paper",
        "seed": 0,
        "episodes": {"way": 5, "query": 15, "episodes": 30, "seed": 0},
        "accuracy": summary(scores),
        "evaluated_digest": "abc",
        "config": {"method": method, "epochs": 30},
        "facts": {"precision": "bf16-mixed", "machine": {"gpu": "a GPU"}},
    }
    return save_record(Record(**known | changed), scores, root)


def cells(shown) -> list[list[str]]:
    """The text of a table, row by row."""
    rows = re.findall(r"<tr.*?</tr>", shown.data.replace("&nbsp;", " "), re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results that pages read."""
    monkeypatch.setenv("FSLIB_RESULTS", str(tmp_path))
    return tmp_path


def test_only_records_of_full_width_are_rows(results):
    wide = recorded(results, "ce")
    recorded(results, "ce", backbone="conv4")
    recorded(results, "protonet", profile="cpu")
    recorded(results, "scl", variant="ce_gc")
    found = records_of_width("toy", "resnet12", "paper")
    assert list(found) == ["CE"]
    assert found["CE"] == [wide]


def test_a_row_scored_twice_has_its_longest_test(results):
    long = recorded(results, "ce")
    short = Scores(np.full(10, 30), 75, 5, 1, 0)
    few = {"way": 5, "query": 15, "episodes": 10, "seed": 0}
    save_record(
        dataclasses.replace(long, episodes=few, accuracy=summary({1: short})), {1: short}, results
    )
    assert records_of_width("toy", "resnet12", "paper")["CE"] == [long]


def test_a_row_is_compared_with_the_others_in_pairs(results):
    recorded(results, "ce")
    recorded(results, "dmf", 3)
    recorded(results, "scl", 6, variant="ce_sc", config={"method": "scl", "epochs": 15})
    rows, text, differences = at_full_width("toy", "DMF", ("CE", "CE + SC", "ProtoNet"))
    assert rows.data.count("<tr") == 4  # a head and three rows
    assert "Trained for 30 epochs (15 for CE + SC) on a GPU" in text.data
    assert "Every network has one seed" in text.data
    assert cells(differences) == [  # three of 75 answers are four points; ProtoNet has no record
        ["DMF over", "full width"],
        ["CE, 1 shot", "+4.00 ± 0.00"],
        ["CE, 5 shots", "+4.00 ± 0.00"],
        ["CE + SC, 1 shot", "-4.00 ± 0.00"],
        ["CE + SC, 5 shots", "-4.00 ± 0.00"],
    ]


def test_the_slim_rows_stand_beside_them(results):
    slim = {"backbone": "resnet12_slim", "profile": "cpu"}
    recorded(results, "ce")
    recorded(results, "dmf", 3)
    recorded(results, "ce", **slim)
    recorded(results, "dmf", -3, **slim)
    *_, differences, text = at_full_width("toy", "DMF", ("CE",))
    assert cells(differences) == [
        ["DMF over", "slim", "full width", "change"],
        ["CE, 1 shot", "-4.00 ± 0.00", "+4.00 ± 0.00", "+8.00 ± 0.00"],
        ["CE, 5 shots", "-4.00 ± 0.00", "+4.00 ± 0.00", "+8.00 ± 0.00"],
    ]
    assert "apart from zero for CE, 1 shot; CE, 5 shots." in text.data


def test_a_data_set_without_full_width_has_a_sentence(results):
    (text,) = at_full_width("toy", "BML", ("CE",))
    assert text.data == "No full-width network of this method is on record for toy."


def test_an_unknown_row_is_named():
    with pytest.raises(KeyError, match="not RelationNet"):
        at_full_width("toy", "RelationNet", ("CE",))
