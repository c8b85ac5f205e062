"""Dynamic FSL: the generator by hand, both stages against loops, accuracy over old and new."""

import dataclasses
import time

import pytest
import torch
from conftest import coloured
from test_methods import SMALL, maps_of, mixed
from torch import Tensor
from torch.nn import functional

from fslib.generalised import evaluate_generalised, hold_out, train_stage_two, with_prior
from fslib.losses.margin import add_margins
from fslib.methods import build_method
from fslib.methods.dynamic_fsl import WeightGenerator
from fslib.train import TrainingDiverged


@pytest.mark.parametrize(
    ("gamma", "attention", "vector"),
    [
        (10.0, (0.11920, 0.88080), (0.7192, 1.6808, 0.0)),
        (30.0, (0.00247, 0.99753), (0.6025, 1.7975, 0.0)),
    ],
)
def test_a_written_vector_by_hand(gamma, attention, vector):
    net = WeightGenerator(2, 3, gamma)
    base = torch.eye(3)[:2]
    with torch.no_grad():
        net.phi.weight.copy_(torch.eye(3))
        net.keys.copy_(base)
    z = torch.tensor([0.6, 0.8, 0.0]).view(1, 1, 1, 3)
    assert net.attention(z).flatten().tolist() == pytest.approx(attention, abs=1e-4)
    made = net(5 * z, 2 * base)[0, 0]  # lengths do not count
    assert made.tolist() == pytest.approx(vector, abs=1e-4)
    if gamma == 30:
        assert functional.cosine_similarity(made, z.flatten(), 0).item() == pytest.approx(
            0.9492, abs=1e-4
        )


def test_the_generator_equals_the_loop_and_looks_only_where_it_may(normal):
    torch.manual_seed(0)
    net, base, support = WeightGenerator(4, 3), normal(4, 3), normal(2, 2, 5, 3)
    with torch.no_grad():
        net.of_mean.uniform_()
        net.of_memory.uniform_()
    allowed = torch.tensor([[True, True, False, True], [False, True, True, False]])
    made = net(support, base, allowed)
    for e in range(2):
        for n in range(2):
            memory, mean = torch.zeros(3), torch.zeros(3)
            for z in functional.normalize(support[e, n], dim=1):
                likeness = {
                    b: net.gamma * functional.cosine_similarity(net.phi(z), net.keys[b], 0)
                    for b in range(4)
                    if allowed[e, b]
                }
                total = sum(v.exp() for v in likeness.values())
                for b, v in likeness.items():
                    memory = memory + v.exp() / total * base[b] / base[b].norm() / 5
                mean = mean + z / 5
            torch.testing.assert_close(made[e, n], net.of_mean * mean + net.of_memory * memory)


def ready(name: str = "dynamic_fsl", **options):
    torch.manual_seed(0)
    method = build_method(name, **SMALL, **options)
    words = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    method.prepare(dataclasses.replace(coloured(classes=6, per_class=3), semantics=words))
    return method


def test_stage_one_is_a_cosine_classifier_with_a_learned_scale():
    method, batch = ready(), mixed()
    made = method.loss(batch, 0.0)
    z = maps_of(method, batch.images).mean((2, 3))
    logits = 10 * functional.normalize(z, dim=1) @ functional.normalize(method.weight, dim=1).T
    torch.testing.assert_close(made["loss"], functional.cross_entropy(logits, batch.labels))
    made["loss"].backward()
    assert method.scale.grad != 0 and method.backbone.blocks[0][0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.generator.parameters())


def test_stage_one_with_the_task_relevant_margin_goes_by_class_number():
    method, batch = ready("dynamic_fsl_traml"), mixed()
    made = method.loss(batch, 0.0)
    z = maps_of(method, batch.images).mean((2, 3))
    logits = method.compare(z, method.weight)
    table = method.margin.table(method.similarity)
    expected = functional.cross_entropy(add_margins(logits, batch.labels, table), batch.labels)
    expected = expected + method.margin.penalty * table.square().sum() / 30
    torch.testing.assert_close(made["loss"], expected)
    assert made["mean_margin"] > 0


def episode(normal) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    novel = torch.tensor([[4, 1], [0, 5]])
    return normal(2, 2, 3, 4), novel, normal(2, 7, 4), torch.arange(14).view(2, 7) % 6


def test_stage_two_writes_the_played_classes_anew(normal):
    method = ready()
    support, novel, query, target = episode(normal)
    terms = []
    for e in range(2):
        allowed = torch.ones(1, 6, dtype=torch.bool)
        allowed[0, novel[e]] = False
        written = method.generator(support[e][None], method.weight, allowed)[0]
        weights = [
            written[novel[e].tolist().index(c)] if c in novel[e] else method.weight[c]
            for c in range(6)
        ]
        for z, y in zip(query[e], target[e], strict=True):
            logits = torch.stack([functional.cosine_similarity(z, w, 0) for w in weights]) * 10
            terms.append(logits.logsumexp(0) - logits[y])
    made = method.episode_loss(support, novel, query, target)
    torch.testing.assert_close(made["loss"], torch.stack(terms).mean())


def base_features(classes: int = 6, per_class: int = 20, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(classes, width, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    return centres[labels] + torch.randn(len(labels), width, generator=generator), labels


@pytest.mark.parametrize("name", ["dynamic_fsl", "dynamic_fsl_traml"])
def test_stage_two_learns_on_features_and_leaves_the_first_stage_alone(name):
    method = ready(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    features, labels = base_features()
    made, history = train_stage_two(
        method, features, labels, shot=2, query=5, episodes=240, lr=0.03, progress=False
    )
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    # The margins work against the loss, so what must rise is the accuracy.
    assert len(history) == 10 and history[-1]["accuracy"] > history[0]["accuracy"] + 5
    after = made.state_dict()
    for key in ("weight", "scale", "generator.keys", "generator.gamma", "generator.phi.weight"):
        assert not torch.equal(after[key], before[key])
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith("backbone"))
    again, _ = train_stage_two(
        method, features, labels, shot=2, query=5, episodes=240, lr=0.03, progress=False
    )
    assert all(torch.equal(v, after[k]) for k, v in again.state_dict().items())


def test_a_second_stage_that_diverges_says_where():
    features, labels = base_features()
    method = ready()
    with pytest.raises(
        TrainingDiverged, match=r"stage 2 is not a number at step 1 \(loss nan, acc"
    ):
        train_stage_two(method, features * float("nan"), labels, episodes=40, progress=False)
    with pytest.raises(TrainingDiverged, match=r"stage 2 is not a number at step \d+ \(loss"):
        train_stage_two(method, features, labels, lr=1e30, episodes=400, progress=False)


def test_the_generator_takes_over_after_the_second_stage(normal):
    method = ready()
    support, query = normal(2, 3, 2, 4), normal(2, 5, 4)
    mean = functional.normalize(support, dim=-1).mean(2)
    torch.testing.assert_close(method.score(support, query), method.compare(query, mean))
    method.stage.fill_(2)
    written = method.generator(support, method.weight)
    torch.testing.assert_close(method.score(support, query), method.compare(query, written))
    torch.testing.assert_close(
        method.branches()["mean"](support, query), method.compare(query, mean)
    )


def test_the_prior_of_new_classes_by_hand():
    base, novel = with_prior(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.5, 0.5]), 0.8)
    assert novel.exp().tolist() == pytest.approx([0.5848, 0.2152], abs=1e-4)
    assert base.exp().tolist() == pytest.approx([0.1330, 0.0489, 0.0180], abs=1e-4)


def test_accuracies_over_old_and_new_equal_the_loop():
    method = ready()
    base, (features, labels) = base_features(), base_features(3, 30)
    features = features.roll(1, 1)
    support, query = (features[::2], labels[::2]), (features[1::2], labels[1::2])
    made, again = (
        evaluate_generalised(method, base, support, query, shot=2, draws=3, tops=(1, 2))
        for _ in range(2)
    )
    for top in (1, 2):
        right = {name: made[name, top].correct for name, k in made if k == top}
        assert (right["all"] == again["all", top].correct).all() and right["all"].shape == (3,)
        assert (right["novel"] >= right["novel_joint"]).all()
        assert (right["all"] == right["base_joint"] + right["novel_joint"]).all()
        assert (made["novel", top].queries, made["novel", top].way) == (45, 3)
        assert (made["base_joint", top].queries, made["base_joint", top].way) == (120, 6)
        assert (made["all_prior", top].queries, made["all_prior", top].way) == (165, 9)
    assert (made["all", 2].correct >= made["all", 1].correct).all()
    # One image a class as support: the draw does not matter and every number can be recounted.
    support = (features[::30], labels[::30])
    support = tuple(s.repeat_interleave(2, 0) for s in support)
    made = evaluate_generalised(method, base, support, query, draws=1)
    assert {top for _, top in made} == {1, 5}
    right = {name: int(made[name, 1].correct[0]) for name, _ in made}
    with torch.no_grad():
        written = method.write(support[0][::2][None, :, None])[0]
        logits = method.compare(query[0], torch.cat([method.weight, written]))
        old = method.compare(base[0], torch.cat([method.weight, written]))
    assert right["novel_joint"] == (logits.argmax(1) - 6 == query[1]).sum()
    assert right["novel"] == (logits[:, 6:].argmax(1) == query[1]).sum()
    assert right["base_joint"] == (old.argmax(1) == base[1]).sum()
    joint = [torch.cat(with_prior(x[:, :6], x[:, 6:], 0.8), 1).argmax(1) for x in (logits, old)]
    hits = (joint[0] - 6 == query[1]).sum() + (joint[1] == base[1]).sum()
    assert right["all_prior"] == hits
    assert made["all_prior", 1].accuracy[0] == pytest.approx(100 * hits.item() / 165)


def test_top_k_of_as_many_new_classes_is_always_right():
    method = ready()
    novel = base_features(3, 10)
    made = evaluate_generalised(method, base_features(), novel, novel, draws=2, tops=(3,))
    assert (made["novel", 3].accuracy == 100).all() and made["novel_joint", 3].accuracy.max() < 100


@pytest.mark.parametrize("broken", ["old", "one old", "new"])
def test_logits_that_are_no_numbers_are_never_right(broken):
    """No comparison with NaN holds, so none of them would lie above the true one."""
    method = ready()
    with torch.no_grad():
        if broken == "new":
            method.stage.fill_(2)
            method.generator.of_mean.fill_(torch.nan)
        else:  # the first stage writes vectors without looking at these
            method.weight[slice(None) if broken == "old" else 2] = torch.nan
    novel = base_features(3, 10)
    made = evaluate_generalised(method, base_features(), novel, novel, draws=2, tops=(1, 3))
    for name in ("novel_joint", "base_joint", "all", "all_prior"):
        assert (made[name, 1].correct == 0).all(), name
    assert (made["novel", 3].accuracy == (0 if broken == "new" else 100)).all()


def test_images_are_set_aside_by_their_part_or_the_last_of_each_class():
    images = coloured(classes=3, per_class=12)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    images = images.take(order)
    kept, asked = hold_out(images)
    assert kept.counts.tolist() == [10] * 3 and asked.counts.tolist() == [2] * 3
    assert torch.equal(asked.images[asked.labels == 1], images.images[images.rows_of(1)[-2:]])
    part = torch.arange(36) % 3 == 0
    kept, asked = hold_out(dataclasses.replace(images, original_part=part))
    assert torch.equal(asked.images, images.images[part]) and len(kept) == 24


def test_a_hundred_episodes_of_stage_two_take_seconds():
    method = build_method("dynamic_fsl", backbone="conv4", classes=64)
    features, labels = base_features(64, 20, 64)
    begin = time.process_time()
    train_stage_two(method, features, labels, shot=5, episodes=100, progress=False)
    assert time.process_time() - begin < 10
