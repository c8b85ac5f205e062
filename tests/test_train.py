"""The training loop: its arithmetic, its schedule, its batches, its runs on disk."""

import dataclasses
import hashlib
import json
import math
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import coloured

from fslib.augment import crop_flip
from fslib.backbones import DropBlock
from fslib.methods import MixedClasses, build_method
from fslib.runs import Config, RunCorrupt, config_of, open_run
from fslib.train import epoch_rows, fit, learning_rate

TINY = Config(
    "ce",
    dataset="coloured",
    backbone_options={"width": 4},
    options={"batch": 32},
    epochs=2,
    precision="32-true",
)


def change(config: Config = TINY, **changes) -> Config:
    return dataclasses.replace(config, **changes)


def test_fit_is_the_plain_loop(coloured_sets, tmp_path):
    """Momentum, rates, channel statistics, batches: all rebuilt here by hand."""
    run = fit(change(augment="none", weight_decay=0.01), coloured_sets, runs=tmp_path)
    images = coloured_sets["train"]
    pixels = images.images.double() / 255
    method = change(augment="none").build(5)
    method.mean = pixels.mean((0, 2, 3)).float()
    method.std = pixels.transpose(0, 1).flatten(1).std(1).float()
    momentum = {name: torch.zeros_like(p) for name, p in method.named_parameters()}
    steps, losses = 120 // 32, []
    for epoch in range(2):
        order = np.random.default_rng([0, epoch, 0]).permutation(120)
        for step in range(steps):
            rows = order[step * 32 : (step + 1) * 32]
            normal = (pixels[rows].float() - method.mean[:, None, None]) / method.std[:, None, None]
            logits = method.classifier(method.backbone(normal).mean((2, 3), keepdim=True))
            loss = torch.nn.functional.cross_entropy(logits[..., 0, 0], images.labels[rows])
            method.zero_grad()
            loss.backward()
            share = (epoch * steps + step + 0.5) / (2 * steps)
            rate = 0.1 * (
                share / 0.15
                if share < 0.15
                else (1 + math.cos(math.pi * (share - 0.15) / 0.85)) / 2
            )
            for name, p in method.named_parameters():
                gradient = p.grad + 0.01 * p.data
                momentum[name] = 0.9 * momentum[name] + gradient
                p.data -= rate * (gradient + 0.9 * momentum[name])  # Nesterov
            losses.append(loss.item())
    for name, value in method.state_dict().items():
        torch.testing.assert_close(run.method.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    means = np.reshape(losses, (2, steps)).mean(1)
    np.testing.assert_allclose([row["loss"] for row in run.history], means, rtol=1e-4)
    assert [row["images"] for row in run.history] == [96, 192] and run.images_seen == 192
    assert run.history[-1]["lr"] == pytest.approx(rate)
    assert not run.method.training


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_network_trains_in_the_precision_asked_for(precision, coloured_sets, tmp_path):
    """On one device too, where Fabric leaves a marked method's arithmetic alone."""
    method, seen = change(precision=precision).build(5), []
    method.backbone.blocks[1][0].register_forward_hook(
        lambda part, inputs, output: seen.append((output.dtype, part.weight.dtype))
    )
    with mock.patch.object(Config, "build", lambda config, classes: method):
        run = fit(
            change(precision=precision, epochs=1), {"train": coloured_sets["train"]}, runs=tmp_path
        )
    expected = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    assert set(seen) == {(expected, torch.float32)} and run.facts["precision"] == precision


def test_training_learns(coloured_sets, tmp_path):
    """Five noisy colour patterns are learned, and so are the validation classes."""
    run = fit(change(epochs=15, augment="none"), coloured_sets, runs=tmp_path)
    first, last = run.history[0], run.history[-1]
    assert last["loss"] < 0.6 * first["loss"] and last["base_accuracy"] > 80
    assert last["val_5_shot"] > 60 and last["val_5_shot"] > last["val_1_shot"] > 30
    assert run.facts["data_digest"] == coloured_sets["train"].digest
    assert run.facts["processes"] == 1 and run.facts["precision"] == "32-true"


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (0.4, (1 + 0.5**0.5) / 2), (1.0, 0.0)],
)
def test_cosine_schedule(progress, rate):
    config = change(lr=2.0, warmup=0.2)
    assert learning_rate(config, progress) == pytest.approx(2 * rate, abs=1e-9)


def test_steps_schedule():
    config = change(lr=1.0, schedule="steps", warmup=0.0, milestones=((0.5, 0.1), (0.8, 0.5)))
    rates = [learning_rate(config, p) for p in (0.0, 0.49, 0.5, 0.79, 0.8, 1.0)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.05, 0.05])


def test_an_epoch_shows_each_image_at_most_once_and_is_a_function_of_seed_and_epoch():
    images, method = coloured(), build_method("ce", classes=5, batch=16)
    rows = epoch_rows(method, images, [3, 1, 0], 7)
    assert rows.shape == (7, 16) and rows.unique().numel() == 112
    assert torch.equal(rows, epoch_rows(method, images, [3, 1, 0], 7))
    assert not torch.equal(rows, epoch_rows(method, images, [3, 2, 0], 7))
    assert not torch.equal(rows, epoch_rows(method, images, [4, 1, 0], 7))
    # Two processes share the epoch: neither sees an image of the other's.
    shared = [epoch_rows(method, images, [3, 1, rank], 3) for rank in (0, 1)]
    assert torch.cat(shared).unique().numel() == 96
    assert method.batches == MixedClasses(16)


def test_episodic_batches_are_whole_episodes():
    images = coloured()
    method = build_method("protonet", classes=5, way=3, shot=2, query=2, count=2)
    rows = epoch_rows(method, images, [0, 0, 0], 4)
    assert rows.shape == (4, 24)
    labels = images.labels[rows].view(4, 2, 3, 4)
    assert (labels == labels[..., :1]).all()  # one class a way
    assert all(len(set(e)) == 3 for e in labels[..., 0].flatten(0, 1).tolist())
    assert all(len(set(e)) == 12 for e in rows.view(8, 12).tolist())


def test_a_finished_run_is_opened_and_not_trained_again(coloured_sets, tmp_path, monkeypatch):
    run = fit(TINY, coloured_sets, runs=tmp_path)
    monkeypatch.setattr("fslib.train._train", lambda *_: pytest.fail("trained again"))
    again = fit(change(profile="cpu", variant="same"), coloured_sets, runs=tmp_path)
    assert again.folder == run.folder and again.history == run.history
    for key, value in run.method.state_dict().items():
        assert torch.equal(value, again.method.state_dict()[key])
    names = sorted(p.name for p in run.folder.iterdir())
    assert names == [".lock", "config.json", "run.json", "weights.safetensors"]
    opened = open_run(run.folder)
    assert opened.config == TINY and opened.facts == run.facts
    with pytest.raises(FileNotFoundError, match=r"no finished run at .*: train it"):
        open_run(tmp_path / "nothing")


def test_the_name_of_a_run_follows_what_decides_it():
    name = TINY.identity("d")
    assert name.startswith("ce-coloured-")
    assert change(profile="cpu", variant="x").identity("d") == name
    others = [change(seed=1), change(lr=0.2), change(options={"batch": 16}), change(epochs=3)]
    names = {name, TINY.identity("e"), *(config.identity("d") for config in others)}
    assert len(names) == 6
    # Runs are found again years later: this name must never change.
    assert (
        Config("ce").identity("0" * 64)
        == "ce-glyphs-" + hashlib.sha256(json.dumps(["ce", {}, "0" * 64]).encode()).hexdigest()[:10]
    )


def test_equal_numbers_are_one_run_however_they_are_written():
    asked = {"lr": 1, "weight_decay": 0, "warmup": 0, "milestones": [[0.5, 0], (1, 1)]}
    whole, real = (
        Config("ce", schedule="steps", **values)
        for values in (
            asked,
            {"lr": 1.0, "weight_decay": 0.0, "warmup": 0.0, "milestones": ((0.5, 0.0), (1.0, 1.0))},
        )
    )
    assert whole == real and whole.identity("d") == real.identity("d")
    assert json.dumps(whole.as_dict()) == json.dumps(real.as_dict())


def with_words(sets, seed: int | None):
    """The same images with word vectors; without any for None."""
    generator = torch.Generator().manual_seed(seed or 0)
    words = None if seed is None else torch.randn(5, 8, generator=generator)
    return {split: dataclasses.replace(part, semantics=words) for split, part in sets.items()}


@pytest.mark.parametrize(
    ("method", "options", "reads"),
    [
        ("protonet_craml", {}, True),
        ("protonet_traml", {"semantics": "none"}, False),
        ("protonet_naml", {}, False),
        ("am3", {"words": 8}, True),
        ("dynamic_fsl_traml", {"batch": 32}, True),
        ("dynamic_fsl", {"batch": 32}, False),
    ],
)
def test_a_run_of_other_word_vectors_is_not_opened(
    method, options, reads, coloured_sets, tmp_path, monkeypatch
):
    """The name of a run says nothing of them."""
    if "batch" not in options:
        options = {"way": 3, "shot": 2, "query": 2} | options
    config = change(method=method, options=options, epochs=1)
    one, other, none = (with_words(coloured_sets, seed) for seed in (1, 2, None))
    run = fit(config, {"train": one["train"]}, runs=tmp_path)
    words = hashlib.sha256(one["train"].semantics.numpy()).hexdigest()
    assert run.facts["semantics"] == (words if reads else None)
    monkeypatch.setattr("fslib.train._train", lambda *_: pytest.fail("trained again"))
    for same in (one, none):
        assert fit(config, {"train": same["train"]}, runs=tmp_path).folder == run.folder
    if reads:
        with pytest.raises(RunCorrupt, match="learned from other word vectors than coloured has"):
            fit(config, {"train": other["train"]}, runs=tmp_path)
    else:
        assert fit(config, {"train": other["train"]}, runs=tmp_path).folder == run.folder
    # Runs from before this was noted stay what they were.
    content = json.loads((run.folder / "run.json").read_text())
    del content["facts"]["semantics"]
    (run.folder / "run.json").write_text(json.dumps(content))
    assert fit(config, {"train": other["train"]}, runs=tmp_path).folder == run.folder


def test_a_part_of_the_data_is_another_run(coloured_sets, tmp_path):
    whole = fit(change(epochs=1), coloured_sets, runs=tmp_path)
    part = {"train": coloured_sets["train"].subset(per_class=20)}
    less = fit(change(epochs=1), part, runs=tmp_path)
    assert less.folder != whole.folder and less.images_seen == 96
    assert "val_1_shot" in whole.history[0] and "val_1_shot" not in less.history[0]


def test_a_configuration_survives_json():
    config = change(schedule="steps", milestones=((0.5, 0.1),), options={"batch": 8})
    assert config_of(json.loads(json.dumps(config.as_dict()))) == config


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, same, other = (change(seed=s).build(5).state_dict() for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    key = "backbone.blocks.0.0.weight"
    assert torch.equal(first[key], same[key]) and not torch.equal(first[key], other[key])


def test_progress_drives_the_ramp_and_views_follow_one_another(
    coloured_sets, tmp_path, monkeypatch
):
    seen, views, forward = [], [], DropBlock.forward

    def watched(self, maps):
        if self.training:
            seen.append(self.progress)
        return forward(self, maps)

    def spied(self, batch, progress):
        views.append((len(batch.images), len(batch.labels), progress))
        maps = self.backbone(self.normalise(batch.images[: len(batch.labels)]))
        return {"loss": maps.square().mean()}

    method = "fslib.methods.ce.CrossEntropy"
    monkeypatch.setattr(DropBlock, "forward", watched)
    monkeypatch.setattr(f"{method}.loss", spied)
    monkeypatch.setattr(
        "fslib.methods.ce.MixedClasses", lambda size: MixedClasses(size, ("", "none"))
    )
    options = {"widths": (2, 2, 2, 2), "drop_rate": 0.1}
    config = change(backbone="resnet12", backbone_options=options, epochs=2)
    fit(config, {"train": coloured_sets["train"]}, runs=tmp_path)
    assert [v[:2] for v in views] == [(64, 32)] * 6
    assert [v[2] for v in views] == pytest.approx([i / 6 for i in range(6)])
    assert seen == pytest.approx([i / 6 for i in range(6) for _ in range(2)])


def test_augmentation_is_a_function_of_seed_and_epoch(coloured_sets, tmp_path, monkeypatch):
    batches = []

    def watched(images, policy, generator):
        made = crop_flip(images, generator).float() / 255
        batches.append(made)
        return made

    monkeypatch.setattr("fslib.train.augment", watched)
    for seed, runs in ((0, "a"), (0, "b"), (1, "c")):
        fit(change(seed=seed, epochs=1), {"train": coloured_sets["train"]}, runs=tmp_path / runs)
    first, again, other = (torch.cat(batches[i : i + 3]) for i in (0, 3, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
