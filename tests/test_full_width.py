"""Rows that no page trains: they are read from the records, and compared only with their likes."""

import numpy as np
import pytest

from fslib.evaluate import Scores
from fslib.full_width import at_full_width, full_width_records
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
    found = full_width_records("toy")
    assert list(found) == ["CE"]
    assert found["CE"] == [wide]


def test_a_row_is_compared_with_the_others_in_pairs(results):
    recorded(results, "ce")
    recorded(results, "dmf", 3)
    recorded(results, "scl", 6, variant="ce_sc", config={"method": "scl", "epochs": 15})
    rows, text = at_full_width("toy", "DMF", ("CE", "CE + SC", "ProtoNet"))
    assert rows.data.count("<tr") == 4  # a head and three rows
    assert "Trained for 30 epochs (15 for CE + SC) on a GPU" in text.data
    assert "at 1 shot DMF is 4.00 ± 0.00 points above CE" in text.data
    assert "at 5 shots DMF is 4.00 ± 0.00 points below CE + SC" in text.data
    assert "ProtoNet" not in text.data  # it has no record
    assert "Every network has one seed" in text.data


def test_a_data_set_without_full_width_has_a_sentence(results):
    (text,) = at_full_width("toy", "BML", ("CE",))
    assert text.data == "No full-width network of this method is on record for toy."


def test_an_unknown_row_is_named():
    with pytest.raises(KeyError, match="not RelationNet"):
        at_full_width("toy", "RelationNet", ("CE",))
