"""Tables and differences of the pages: what they print is what the records hold."""

import dataclasses

import numpy as np
import pytest

from fslib import pages
from fslib.comparison import SeedSpread
from fslib.evaluate import Scores
from fslib.results import Record, save_record, summary


def recorded(root, shift: int, seed: int = 0, method: str = "ce") -> Record:
    """A record of 30 episodes with `shift` more right answers in each."""
    rng = np.random.default_rng(seed)  # the episodes of a seed
    scores = {shot: Scores(rng.integers(20, 50, 30) + shift, 75, 5, shot, 0) for shot in (1, 5)}
    record = Record(
        method=method,
        variant="",
        dataset="toy",
        evaluated_on="toy",
        backbone="conv4",
        profile="",
        seed=seed,
        episodes={"way": 5, "query": 15, "episodes": 30, "seed": 0},
        accuracy=summary(scores),
        evaluated_digest="abc",
        facts={"precision": "32-true"},
    )
    return save_record(record, scores, root)


@pytest.fixture
def two(tmp_path):
    """The same episodes, three right answers of 75 apart."""
    return [recorded(tmp_path, 0)], [recorded(tmp_path, 3, method="bml")]


def test_accuracies_show_mean_interval_and_the_spread_of_seeds(tmp_path, two):
    one = pages.accuracies({"CE": two[0]})
    mean, ci95 = (two[0][0].accuracy["1"][k] for k in ("mean", "ci95"))
    assert one.loc[0, "1-shot"] == f"{mean:.2f} ± {ci95:.2f}"
    assert "seeds (spread)" not in one
    seeds = [two[0][0], recorded(tmp_path, 0, seed=1)]
    means = [r.accuracy["5"]["mean"] for r in seeds]
    shown = pages.accuracies({"CE": seeds}, shots=(5,)).loc[0, "seeds (spread)"]
    assert shown == f"2 ({np.std(means, ddof=1):.2f})"


def test_gains_are_paired_so_a_constant_shift_has_no_interval(two):
    first, second = two
    found = pages.gains({"BML": (second, first)}, shots=(1,))
    assert found.loc[0, "label"] == "BML, 1 shot"
    assert found.loc[0, "mean"] == pytest.approx(4.0)  # 3 of 75
    assert found.loc[0, "ci95"] == pytest.approx(0.0, abs=1e-9)
    assert pages.gain_table({"BML": (second, first)}).loc[0, "5-shot"] == "+4.00 ± 0.00"
    assert pages.gain_table({"CE": (first, second)}).loc[0, "5-shot"] == "-4.00 ± 0.00"
    verdicts = [pages.earned(*p) for p in ((second, first), (first, second), (first, first))]
    assert verdicts == ["yes", "no", "cannot be told"]


def test_each_shot_has_its_clause(two):
    said = pages.at_each_shot("BML", "CE", two[1], two[0])
    above = "BML is 4.00 ± 0.00 points above CE"
    assert said == f"at 1 shot {above}; at 5 shots {above}"


def test_what_a_seed_does_widens_every_interval(two):
    (first,), _ = two
    moved = {"1": {"mean": first.accuracy["1"]["mean"] + 3, "ci95": 0.0}}
    spread = SeedSpread([[first, dataclasses.replace(first, accuracy=moved)]])
    pair = [[dataclasses.replace(r, config={"method": r.method})] for (r,) in reversed(two)]
    width = spread.half_width(1)
    assert width > 4  # so a lead of four points is no finding
    assert pages.gains({"": pair}, (1,), spread).loc[0, "ci95"] == pytest.approx(width)
    assert pages.gain_table({"": pair}, (1,), spread).loc[0, "1-shot"] == f"+4.00 ± {width:.2f}"
    assert pages.earned(*pair, (1,)) == "yes"
    assert pages.earned(*pair, (1,), spread) == "cannot be told"
    said = pages.at_each_shot("BML", "CE", *pair, (1,), spread)
    assert said == f"at 1 shot BML and CE cannot be told apart (+4.00 ± {width:.2f} points)"


def test_the_spread_of_seeds_is_said_with_what_it_rests_on(two):
    (one,), (other,) = two
    moved = dataclasses.replace(one, accuracy={k: {"mean": 0.0, "ci95": 0.0} for k in ("1", "5")})
    spread = SeedSpread([[one, moved], [other]])
    said = pages.seeds_in_words(spread)
    assert "from 2 runs of one network)" in said
    assert f"{spread.deviation(1):.2f} at 1 shot and {spread.deviation(5):.2f} at 5 shots" in said
    assert f"{spread.half_width(1):.2f} and {spread.half_width(5):.2f} points apart" in said
    assert "Some of these runs" not in said
    half = dataclasses.replace(one, facts=one.facts | {"precision": "bf16-mixed"})
    said = pages.seeds_in_words(SeedSpread([[half, *spread.groups[0][1:]]]))
    assert "computed in 32-true and some in bf16-mixed; what" in said
    assert pages.seeds_in_words(SeedSpread([[one]])).startswith("Every network has one seed")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ({1: (2.0, 1.0), 5: (0.5, 1.0)}, "yes"),
        ({1: (-2.0, 1.0), 5: (0.5, 1.0)}, "no"),
        ({1: (2.0, 1.0), 5: (-2.0, 1.0)}, "both ways"),
        ({1: (1.0, 1.0), 5: (0.0, 0.0)}, "cannot be told"),
    ],
)
def test_a_part_earns_its_place_beyond_its_interval(monkeypatch, differences, verdict):
    monkeypatch.setattr(pages, "compare", lambda _, __, shot, ___: differences[shot])
    assert pages.earned([], []) == verdict
    judged = pages.verdicts({"part": ([], [])}).loc[0]
    shown = {f"{k}-shot": f"{mean:+.2f} ± {ci95:.2f}" for k, (mean, ci95) in differences.items()}
    assert judged.to_dict() == {"": "part", **shown, "earns its place here": verdict}


def test_little_is_claimed_near_chance(two, tmp_path):
    said = pages.above_chance("CE", two[0])
    assert said.startswith("At 1 shot CE reaches") and said.endswith("guessing gives 20 %.")
    near = pages.above_chance("CE", [recorded(tmp_path / "near", -18)])
    assert near.endswith("little for or against any of its parts.")


def test_published_rows_stand_above_ours(two):
    paper = pages.published("CIFAR-FS", ("5-way 1-shot", "5-way 5-shot"), "bml")
    paper = paper[paper["method"] == "BML"]
    shown = pages.beside_published(paper, {"CE": two[0]}, "here")
    assert list(shown["method"]) == ["BML", "CE"] and list(shown["source"])[1] == "here"
    assert shown.iloc[0]["5-way 1-shot"] == "73.45 ± 0.47"
    assert shown.iloc[1]["5-way 5-shot"].startswith(f"{two[0][0].accuracy['5']['mean']:.2f}")


def test_a_published_number_without_interval_is_shown_alone(two):
    paper = pages.published("CIFAR-FS", ("5-way 1-shot",), "bml")
    paper = paper[paper["method"] == "BML released weights"]
    assert pages.beside_published(paper, {}, "here").iloc[0]["5-way 1-shot"] == "74.99"


def test_words_claim_no_more_than_the_interval():
    assert "cannot be told apart" in pages.in_words("A", "B", (0.3, 0.4))
    assert pages.in_words("A", "B", (-1.0, 0.4)) == "A is 1.00 ± 0.40 points below B"


def test_differences_of_other_episodes_are_refused(tmp_path, two):
    other = dataclasses.replace(two[0][0], evaluated_digest="another")
    with pytest.raises(ValueError, match="cannot be paired"):
        pages.gains({"": (two[0], [other])})


def test_a_number_of_a_table_stays_with_its_interval():
    shown = pages.table([{"": "CE", "1-shot": "50.00 ± 0.20", "shots": 1.0}], digits=1).data
    assert "<td>50.00&nbsp;±&nbsp;0.20</td>" in shown and "<td>1.0</td>" in shown


def test_speeds_of_unlike_arithmetic_are_not_compared(two):
    (one,), (other,) = two
    assert pages.unlike_speeds([one, other]) == ""
    half = dataclasses.replace(other, facts={"precision": "bf16-mixed"})
    assert "same precision" in pages.unlike_speeds(iter([one, half]))


def test_speeds_of_a_gpu_are_not_compared(two):
    (one,), (other,) = two
    fast = dataclasses.replace(other, facts=one.facts | {"machine": {"gpu": "a fast one"}})
    assert "processor cores alone" in pages.unlike_speeds([one, fast])
    assert "processor cores alone" in pages.unlike_speeds([fast, fast])


def test_costs_are_the_facts_of_the_first_seed(tmp_path):
    record = dataclasses.replace(
        recorded(tmp_path, 0),
        facts={"images_seen": 6000, "cpu_seconds": 120.0, "precision": "32-true"},
    )
    dearer = dataclasses.replace(record, facts=record.facts | {"cpu_seconds": 1.0})
    (row,) = pages.costs({"CE": [record, dearer]}).to_dict("records")
    cost = {
        "": "CE",
        "images seen": "6,000",
        "precision": "32-true",
        "core-minutes": 2.0,
        "images a core-second": 50.0,
    }
    assert row == cost
    # The seconds of the cores say nothing of a GPU's work, so the clock stands beside them.
    facts = record.facts | {"seconds": 30.0, "machine": {"gpu": "a fast one"}}
    (row,) = pages.costs({"CE": [dataclasses.replace(record, facts=facts)]}).to_dict("records")
    assert row == cost | {"minutes": 0.5, "images a second": 200.0, "computed on": "a fast one"}
