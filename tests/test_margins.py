"""The chapter's sweep: one name a network, and a look that agrees with its parts."""

import re

import pytest
import torch
from test_methods import SMALL

from benchmarks import negative_margin
from fslib.analysis.discriminability import base_peaks, discriminability, effective_peaks
from fslib.analysis.margins import (
    DENSE,
    FEW,
    by_sign,
    look_at,
    network,
    pooled,
    published_gain,
    swept,
    top1,
)
from fslib.methods import build_method
from fslib.methods.negative_margin import SCALES


def test_the_short_sweep_is_part_of_the_long_one_and_zero_of_both():
    for similarity in SCALES:
        assert set(FEW[similarity]) <= set(DENSE[similarity]) and 0.0 in FEW[similarity]
        assert len(DENSE[similarity]) == 13 and swept(similarity, False) == FEW[similarity]
        assert list(DENSE[similarity]) == sorted(DENSE[similarity])


def test_every_network_has_a_name_of_its_own_and_no_option_at_its_default():
    def asked(*of):
        return {k: v for k, v in network(*of).items() if k not in ("method", "variant")}

    assert asked("cosine", -0.02, 30.0) == {}
    assert asked("dot", 0.0) == {"similarity": "dot", "margin": 0.0}
    assert asked("cosine", -0.09, 10) == {"margin": -0.09, "scale": 10}
    assert network("dot", -0.3)["variant"] == "dot_scale_5_minus_1_500"
    assert network("dot", -0.3, trained="adam")["variant"] == "adam_dot_scale_5_minus_1_500"
    assert network("cosine", round(-0.3 / 90, 6), 90)["variant"] == "cosine_scale_90_minus_0_300"
    names = {network(s, m, k)["variant"] for s in SCALES for m in DENSE[s] for k in (None, 7)}
    assert len(names) == 52
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize("similarity", SCALES)
def test_a_look_is_made_of_its_parts(similarity, normal):
    method = build_method("negative_margin", **SMALL, similarity=similarity).eval()
    base, novel = normal(24, 4).relu(), normal(10, 4).relu()
    base_labels, novel_labels = torch.arange(24) % 6, torch.arange(10) % 2
    seen = look_at(method, (base, base_labels), (novel, novel_labels))
    assert seen.base == discriminability(base, base_labels)
    assert seen.novel == discriminability(novel, novel_labels)
    logits = method.scale * method.similarity(novel)
    torch.testing.assert_close(seen.peaks, base_peaks(logits, novel_labels))
    torch.testing.assert_close(seen.effective, effective_peaks(seen.peaks))
    assert seen.nearest.sum(1).tolist() == pytest.approx([1, 1])
    assert not seen.peaks.requires_grad


def test_base_accuracy_is_of_the_classifier_without_margin(coloured_sets):
    method = build_method("negative_margin", "conv4", 5, {"width": 4}, margin=-5.0).eval()
    features, labels = pooled(method, coloured_sets["train"])
    assert features.shape == (120, 4)
    right = top1(method, coloured_sets["train"])
    assert set(right.unique().tolist()) <= {0.0, 100.0}
    assert torch.equal(right, 100.0 * (method.similarity(features).argmax(1) == labels))


def test_the_benchmark_agrees_with_one_episode_at_a_time():
    made = {
        line["what"]: line
        for line in negative_margin.measure(episodes=2, slow_episodes=2, passes=3, images=128)[
            "rows"
        ]
    }
    for head in ("cosine", "dot"):
        assert made[f"{head} head: largest difference of a weight"]["met"]
        assert made[f"600 episodes, 5 shots, 21 steps, {head} head"]["value"] > 0
    assert len(made) == 7


def test_a_sweep_is_taken_together_by_sign():
    made = {-0.2: ["a"], -0.1: ["b"], 0.0: ["c", "d"], 0.1: ["e"]}
    assert by_sign(made) == {
        "the lowest, -0.2": (["a"], ["c", "d"]),
        "all below zero": (["a", "b"], ["c", "d"]),
        "all above zero": (["e"], ["c", "d"]),
    }
    assert "all above zero" not in by_sign({-0.1: ["b"], 0.0: ["c"]})


def test_published_gains_are_the_dossiers():
    gain, ci95 = published_gain("mini, 1", "Neg-Cosine", "Cosine")
    assert gain == pytest.approx(62.33 - 51.87) and ci95 == pytest.approx(
        (0.82**2 + 0.77**2) ** 0.5
    )
    assert published_gain("CUB, 5", "Neg-Softmax", "Baseline softmax (Ours)")[0] == pytest.approx(
        4.61
    )
