"""The two hosts of the margins: ProtoNet and AM3."""

import dataclasses

import pytest
import torch
from conftest import coloured
from test_methods import SMALL, episodes, gradients, maps_of
from torch import Tensor
from torch.nn import functional

from fslib.losses.margin import word_similarity
from fslib.methods import METHODS, Batch, build_method
from fslib.methods.margin_protonet import class_words
from fslib.train import _curve_point

FORM = {"way": 4, "shot": 2, "query": 3, "count": 2}


def named(classes: int = 6, width: int = 8):
    """An image set whose classes have word vectors and superclasses."""
    words = torch.randn(classes, width, generator=torch.Generator().manual_seed(3)) + 0.5
    kinds = tuple(f"kind{c // 2}" for c in range(classes))
    return dataclasses.replace(
        coloured(classes=classes, per_class=3), semantics=words, superclass=kinds
    )


def ready(name: str, **options):
    torch.manual_seed(0)
    options = {**({"words": 8} if name.startswith("am3") else {}), **options}
    method = build_method(name, **SMALL, **FORM, **options)
    method.prepare(named())
    return method


def labelled(method) -> Batch:
    """Two episodes over base classes 0, 1, 2, 3 and 5, 0, 4, 2."""
    batch = episodes(method.batches)
    labels = torch.tensor([[0, 1, 2, 3], [5, 0, 4, 2]])
    return Batch(batch.images, labels.flatten().repeat_interleave(5), batch.form)


def naive_loss(method, batch: Batch, table_of) -> Tensor:
    """Every query by itself; `table_of` gives the margin of two base classes."""
    features = maps_of(method, batch.images).flatten(1)
    labels, terms = batch.labels.view(2, 4, 5)[:, :, 0], []
    for episode, classes in zip(features.view(2, 4, 5, -1), labels, strict=True):
        prototypes = [way[:2].mean(0) for way in episode]
        for y in range(4):
            for z in episode[y, 2:]:
                logits = [-(z - p).square().sum() for p in prototypes]
                moved = [
                    d + (table_of(classes[y], classes[c]) if c != y else 0)
                    for c, d in enumerate(logits)
                ]
                moved = torch.stack(moved)
                terms.append(moved.logsumexp(0) - moved[y])
    return torch.stack(terms).mean()


def test_the_class_relevant_loss_equals_the_loop_over_queries():
    method = ready("protonet_craml", mode="joint", alpha=2.0, beta=0.3)
    batch = labelled(method)
    cosines = word_similarity(named().semantics)
    made = method.loss(batch, 0.0)
    alpha, beta = method.margin.table.alpha, method.margin.table.beta
    expected = naive_loss(method, batch, lambda a, b: alpha * cosines[a, b] + beta)
    torch.testing.assert_close(made["loss"], expected, rtol=1e-4, atol=1e-5)
    a, b = gradients(method, made["loss"]), gradients(method, expected)
    assert {"margin.table.alpha", "margin.table.beta"} <= a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)
    assert made["alpha"].item() == 2.0 and not made["alpha"].requires_grad


def test_without_a_margin_it_is_protonet():
    plain = build_method("protonet", **SMALL, **FORM)
    method = ready("protonet_naml", margin="none")
    plain.load_state_dict(method.state_dict(), strict=False)
    batch = labelled(method)
    a, b = method.loss(batch, 0.0), plain.loss(batch, 0.0)
    torch.testing.assert_close(a["loss"], b["loss"])
    assert a["episode_accuracy"] == b["episode_accuracy"]
    torch.testing.assert_close(ready("protonet_naml", size=0.0).loss(batch, 0.0)["loss"], a["loss"])


def test_the_task_relevant_table_goes_by_the_classes_of_each_episode():
    method = ready("protonet_traml", order="sorted")
    classes = torch.tensor([[0, 1, 2, 3], [5, 0, 4, 2]])
    table = method.margins_of(classes)
    cosines = word_similarity(named().semantics)
    expected = method.margin.table(torch.stack([cosines[c][:, c] for c in classes]))
    torch.testing.assert_close(table, expected)
    assert table.shape == (2, 4, 4)


@pytest.mark.parametrize("mode", ["fixed", "joint", "reversal", "bilevel", "floor"])
def test_the_network_learns_alike_in_every_mode_and_the_margins_as_told(mode):
    method = ready("protonet_craml", mode=mode, alpha=1.0, beta=2.0)  # all above the floor
    batch = labelled(method)
    made = gradients(method, method.loss(batch, 0.0)["loss"])
    reference = ready("protonet_craml", mode="joint", alpha=1.0, beta=2.0)
    joint = gradients(reference, reference.loss(batch, 0.0)["loss"])
    for key, slope in joint.items():
        if key.startswith("backbone"):
            torch.testing.assert_close(made[key], slope, rtol=1e-3, atol=1e-5)
    beta = made.get("margin.table.beta")
    assert joint["margin.table.beta"] > 0  # descent lowers it
    if mode == "fixed":
        assert beta is None
    elif mode == "reversal":
        table = method.margins_of(torch.tensor([[0, 1, 2, 3], [5, 0, 4, 2]]))
        off = table[:, ~torch.eye(4, dtype=torch.bool)]
        held_back = method.margin.penalty * 2 * off.mean()
        torch.testing.assert_close(beta, held_back - joint["margin.table.beta"])
    elif mode == "bilevel":
        assert torch.isfinite(beta) and beta != joint["margin.table.beta"]
    else:
        torch.testing.assert_close(beta, joint["margin.table.beta"])


@pytest.mark.parametrize("name", ["protonet_arcface", "protonet_cosface"])
def test_margins_of_face_recognition_use_scaled_cosines(name):
    method = ready(name, scale=7.0, size=0.0)
    assert method.metric == "cosine" and method.head.metric == "cosine"
    batch = labelled(method)
    plain = ready("protonet_naml", margin="none", metric="cosine", scale=7.0)
    torch.testing.assert_close(
        method.loss(batch, 0.0)["loss"], plain.loss(batch, 0.0)["loss"], rtol=1e-4, atol=1e-4
    )
    assert ready(name, size=0.3).loss(batch, 0.0)["loss"] > plain.loss(batch, 0.0)["loss"]
    learned = ready(name, learn_scale=True)
    assert "scale" in gradients(learned, learned.loss(batch, 0.0)["loss"])
    assert "scale" not in gradients(method, method.loss(batch, 0.0)["loss"])


def test_the_three_metrics(normal):
    query, prototypes = normal(1, 3, 5), normal(1, 4, 5)
    squared, euclidean, cosine = (
        build_method("protonet_naml", **SMALL, metric=m, scale=3.0).compare(query, prototypes)
        for m in ("squared", "euclidean", "cosine")
    )
    torch.testing.assert_close(euclidean, -torch.cdist(query, prototypes))
    torch.testing.assert_close(squared, -euclidean.square())
    expected = 3 * functional.cosine_similarity(query[:, :, None], prototypes[:, None], dim=-1)
    torch.testing.assert_close(cosine, expected)
    same = query.clone().requires_grad_()
    method = build_method("protonet_naml", **SMALL, metric="euclidean")
    method.compare(same, same.detach()).sum().backward()
    assert torch.isfinite(same.grad).all()  # also at distance 0


def test_what_distances_mean_for_a_softmax():
    d = torch.tensor([1, 1.5, 2, 2.5, 3])
    assert (-d).softmax(0).tolist() == pytest.approx(
        [0.4287, 0.26, 0.1577, 0.0956, 0.058], abs=1e-4
    )
    expected = [0.7452, 0.2135, 0.0371, 0.0039, 0.0002]
    assert (-d.square()).softmax(0).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_scores_at_test_do_not_know_the_margin(normal):
    support, query = normal(2, 4, 2, 16), normal(2, 5, 16)
    wanted = ready("protonet_naml", size=0.0).score(support, query)
    for name in ("naml", "craml", "traml"):
        assert torch.equal(ready(f"protonet_{name}").score(support, query), wanted)


def test_a_prototype_of_am3_by_hand():
    method = ready("am3")
    with torch.no_grad():
        for part in method.from_words, method.from_prototype:
            for p in part.parameters():
                p.zero_()
        method.from_words[3].bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
        method.from_prototype[3].bias.fill_(torch.tensor(0.25).logit())
    support = torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 3, 4)
    made = method.mixed(support, torch.ones(1, 2, 8))
    assert made[0, 1].tolist() == pytest.approx([0.25, 0.75, 0, 0])


def test_am3_mixes_image_and_name_at_test_as_in_training(normal):
    method = ready("am3").eval()
    support, query, words = normal(3, 4, 2, 4), normal(3, 5, 4), normal(3, 4, 8)
    named_part = method.from_words(words)
    share = method.image_share(words)
    assert share.shape == (3, 4, 1) and (share > 0).all() and (share < 1).all()
    prototypes = share * support.mean(2) + (1 - share) * named_part
    torch.testing.assert_close(
        method.score(support, query, words), -torch.cdist(query, prototypes), rtol=1e-4, atol=1e-4
    )
    image = -torch.cdist(query, support.mean(2))
    torch.testing.assert_close(method.branches()["image"](support, query), image)
    with pytest.raises(ValueError, match="needs the word vectors"):
        method.score(support, query)
    assert method.uses_semantics


def test_the_ends_of_lambda(normal):
    support, query, words = normal(3, 4, 2, 4), normal(3, 5, 4), normal(3, 4, 8)
    only_image = ready("am3", mix=1.0).eval()
    torch.testing.assert_close(
        only_image.score(support, query, words), -torch.cdist(query, support.mean(2))
    )
    only_name = ready("am3", mix=0.0).eval()
    assert torch.equal(
        only_name.score(support, query, words), only_name.score(normal(3, 4, 2, 4), query, words)
    )


@pytest.mark.parametrize("name", [n for n in METHODS if n.startswith("am3")])
def test_every_part_of_am3_learns_under_every_margin(name):
    method = ready(name)
    made = gradients(method, method.loss(labelled(method), 0.0)["loss"])
    for part in ("backbone.blocks.0.0.weight", "from_words.0.weight", "from_prototype.0.weight"):
        assert made[part].abs().sum() > 0
    method = ready(name, word_hidden=7, dropout=0.0)
    assert method.from_words[0].weight.shape == (7, 8)
    assert torch.equal(method.words, named().semantics)


@pytest.mark.parametrize("source", ["shuffled", "superclass", "none"])
def test_am3_mixes_the_true_names_whatever_its_margins_go_by(source):
    """It is tested with them, and would else learn to read names that nobody shows it."""
    method = ready("am3_traml", semantics=source)
    assert torch.equal(method.words, named().semantics)
    assert torch.equal(method.similarity, word_similarity(class_words(named(), source)))


def test_other_sources_of_similarity():
    images = named()
    words = class_words(images)
    shuffled = class_words(images, "shuffled")
    assert (shuffled != words).any(1).all()  # no class keeps its own
    assert torch.equal(shuffled.sort(0).values, words.sort(0).values)
    kinds = word_similarity(class_words(images, "superclass"))
    assert kinds[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert torch.equal(word_similarity(class_words(images, "none")), torch.eye(6))


def test_missing_words_are_named():
    images = named()
    words = images.semantics.clone()
    words[2] = 0
    with pytest.raises(ValueError, match="no word vector for train2:"):
        class_words(dataclasses.replace(images, semantics=words))
    with pytest.raises(ValueError, match=r"data_scripts\.glove --pack data/coloured --from"):
        build_method("protonet_traml", **SMALL).prepare(coloured(classes=6))
    build_method("protonet_naml", **SMALL).prepare(coloured(classes=6))  # needs none
    with pytest.raises(ValueError, match="are 8 wide: set the option `words` to that, not to 100"):
        build_method("am3", **SMALL).prepare(images)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("protonet_naml", {"metric": "manhattan"}, "choose one of squared, euclidean, cosine"),
        ("am3", {"pool": "flatten"}, "its pool is mean"),
        ("am3_traml", {"semantics": "sound"}, "unknown semantics 'sound'"),
        ("protonet_traml", {"order": "any"}, "order is one of"),
        ("protonet_traml", {"depth": 3}, "does not take these options: .*depth"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        ready(name, **options)


def test_the_learning_curve_of_am3_is_scored_without_dropout():
    """Its score runs the networks of the words; twice the same, and training goes on after."""
    method, images = ready("am3", dropout=0.5).train(), named()
    with torch.no_grad():  # lambda of one half: with dropout the words would move the prototypes
        method.from_words[3].weight.mul_(10)
    points = [_curve_point(method, images) for _ in range(4)]
    assert points[0].keys() == {"val_1_shot"} and all(point == points[0] for point in points)
    assert method.training
