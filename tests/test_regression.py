"""Regression episodes against scikit-learn on whole features, one episode at a time."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from fslib.augment import augment
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images, evaluate
from fslib.heads.regression import (
    REGRESSION_TESTS,
    RegressionTest,
    embed_copies,
    evaluate_regression,
    features_of,
    projected,
)
from fslib.logistic import probabilities
from fslib.methods import build_method
from fslib.paths import ROOT


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    return build_method("ce", "conv4", 5, {"width": 6, "pools": (True, True, False, False)}).eval()


def test_both_features(normal):
    maps = normal(3, 4, 5, 5)
    made = features_of(maps)
    torch.testing.assert_close(made["global"], functional.normalize(maps.mean((2, 3)), dim=1))
    # On 5 x 5 the windows are rows and columns 0 to 2 and 2 to 4.
    windows = [maps[:, :, r : r + 3, c : c + 3].amax((2, 3)) for r in (0, 2) for c in (0, 2)]
    grid = functional.normalize(torch.stack(windows, 2).flatten(1), dim=1)
    torch.testing.assert_close(made["spatial"], grid)
    assert made["spatial"].shape == (3, 16)


def test_the_projection_changes_no_probability(normal):
    support = functional.normalize(normal(15, 200), dim=1)
    query, labels = functional.normalize(normal(9, 200), dim=1), np.arange(3).repeat(5)
    small, asked = projected(support, query)
    assert small.shape == (15, 15) and asked.shape == (9, 15) and small.dtype == np.float64
    model = LogisticRegression(max_iter=1000).fit(support.double().numpy(), labels)
    whole = model.predict_proba(query.double().numpy())
    np.testing.assert_allclose(probabilities(small, labels, asked), whole, rtol=0, atol=1e-9)


def test_copies_are_augmented_views_of_the_rows_that_were_asked_for(method, coloured_sets):
    images = coloured_sets["test"]
    rows = torch.tensor([3, 50, 7])
    made = embed_copies(method, images, rows, copies=2, seed=4, batch_size=2)
    assert made["global"].shape == (3, 2, 6) and made["spatial"].shape == (3, 2, 24)
    generator = torch.Generator().manual_seed(4)
    for some, place in ((rows[:2], slice(0, 2)), (rows[2:], slice(2, 3))):
        for copy in range(2):
            view = augment(images.images[some], "crop_flip_jitter", generator)
            expected = features_of(embed_images(method, view))
            for kind, values in expected.items():
                torch.testing.assert_close(made[kind][place, copy], values)
    clean = embed_copies(method, images, rows, copies=0)
    expected = features_of(embed_images(method, images.images[rows]))
    torch.testing.assert_close(clean["spatial"][:, 0], expected["spatial"])


def test_equal_copies_are_embedded_once_and_repeated(method, coloured_sets):
    images, rows = coloured_sets["test"], torch.tensor([2, 9])
    same = embed_copies(method, images, rows, copies=3, policy="none")
    clean = embed_copies(method, images, rows, copies=0)
    for kind, values in same.items():
        assert values.shape == (2, 3, clean[kind].shape[2])
        assert torch.equal(values, clean[kind].expand(-1, 3, -1))


def test_the_test_is_a_head_that_every_method_can_be_scored_with(
    method, coloured_sets, monkeypatch
):
    """All four ways of joining come from one fit, and equal `evaluate_regression`."""
    images = coloured_sets["test"]
    asked = {"shot": 2, "way": 3, "query": 4, "episodes": 5, "seed": 3}
    made = evaluate_regression(method, images, **asked, copies=5, jobs=1)
    fits = []
    from fslib.heads import regression

    whole = regression.evaluate_regression
    monkeypatch.setattr(regression, "_FITTED", {})
    monkeypatch.setattr(
        regression, "evaluate_regression", lambda *a, **k: fits.append(1) or whole(*a, **k)
    )
    maps = embed_images(method, images)
    for name in ("global", "spatial", "sum", "max"):
        head = REGRESSION_TESTS[f"scl_{name}"]
        scores = evaluate(method, images, head=head, maps=maps.clone(), **asked)
        assert np.array_equal(scores.correct, made[name].correct)
        assert (scores.queries, scores.way, scores.shot, scores.seed) == (12, 3, 2, 3)
    assert len(fits) == 1
    other = evaluate(method, images, head=RegressionTest(copies=1), maps=maps + 0.1, **asked)
    assert len(fits) == 2 and len(other.correct) == 5


def test_the_names_of_the_tests():
    assert {h.copies for h in REGRESSION_TESTS.values()} == {0, 1, 5, 10, 25}
    assert REGRESSION_TESTS["scl_sum"] == RegressionTest()
    assert REGRESSION_TESTS["scl_global_same"].policy == "none"


@pytest.mark.parametrize("copies", [0, 3])
def test_scores_equal_a_loop_over_episodes(method, coloured_sets, copies):
    images = coloured_sets["test"]
    made = evaluate_regression(
        method, images, shot=2, way=3, query=4, episodes=6, seed=1, copies=copies, jobs=1
    )
    assert list(made) == ["global", "spatial", "sum", "max"]
    table = draw_episodes(images.labels, 6, 3, 2, 4, seed=1, class_names=images.class_names)
    rows = table.support.unique()
    copied = embed_copies(method, images, rows, copies, seed=1)
    plain, turned = features_of(embed_images(method, images)), []
    for e in range(6):
        found = {}
        for kind, features in copied.items():
            support, labels = [], []
            for way in range(3):
                for row in table.support[e, way]:
                    for copy in features[int((rows == row).nonzero())]:
                        support.append(copy.double().numpy())
                        labels.append(way)
            model = LogisticRegression(max_iter=1000).fit(np.stack(support), labels)
            found[kind] = model.predict_proba(
                plain[kind][table.query[e].flatten()].double().numpy()
            )
        found["sum"] = found["global"] + found["spatial"]
        found["max"] = np.maximum(found["global"], found["spatial"])
        for name, chances in found.items():
            right = (chances.argmax(1) == np.arange(3).repeat(4)).sum()
            # The solver stops within about 1e-4, which may turn a query whose best two are closer.
            second, first = np.sort(chances, axis=1)[:, -2:].T
            turned.append((first - second < 5e-4).sum())
            assert abs(made[name].correct[e] - right) <= turned[-1]
    assert sum(turned) <= 0.05 * 6 * 12 * 4
    assert copies or made["sum"].mean > 45  # chance is 33 %, colours are changed in the copies
    assert (made["sum"].queries, made["sum"].way, made["sum"].shot, made["sum"].seed) == (
        12,
        3,
        2,
        1,
    )


def test_a_process_that_fits_regressions_does_without_torch():
    """It starts in a fraction of the time; torch takes seconds to import."""
    code = "import sys, fslib.logistic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert probabilities.__module__ == "fslib.logistic"
