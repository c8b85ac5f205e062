"""One training loop for every method: `fit(config) -> Run`.

A finished run is opened, not trained again; an interrupted one goes on at its last whole epoch
and ends bit for bit where an uninterrupted one ends. All randomness of an epoch is a function of
(seed, epoch), which is why no generator has to be saved.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from fslib.augment import augment
from fslib.backbones import set_progress
from fslib.data import ImageSet, open_dataset
from fslib.device import (
    LEADER,
    describe_machine,
    first_process,
    first_process_trains,
    resolve_precision,
    this_job,
    usual_device,
)
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images, evaluate
from fslib.methods import Batch, Episodic, Method
from fslib.paths import runs_root
from fslib.runs import (
    Config,
    Run,
    folder_of,
    load_checkpoint,
    open_run,
    save_checkpoint,
    save_tensors,
    write_json,
)

# Points of the learning curve, and what each is measured on: enough to see the shape, cheap
# enough to cost about one per cent of training.
CURVE_POINTS, CURVE_EPISODES, CURVE_PER_CLASS = 8, 500, 150


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number."""


def learning_rate(config: Config, progress: float) -> float:
    """The rate at a share `progress` of training: linear warm-up, then cosine or steps."""
    if progress < config.warmup:
        return config.lr * progress / config.warmup
    if config.schedule == "cosine":
        done = (progress - config.warmup) / (1 - config.warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * math.prod(f for share, f in config.milestones if progress >= share)


def _optimiser(config: Config, method: Method) -> torch.optim.Optimizer:
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimiser == "sgd":
        return torch.optim.SGD(method.parameters(), momentum=0.9, nesterov=True, **shared)
    return torch.optim.Adam(method.parameters(), **shared)


def epoch_rows(method: Method, images: ImageSet, seed: list[int], steps: int) -> Tensor:
    """Rows of the images of every batch of an epoch, (steps, images of a batch).

    Args:
        method: Says how it wants its batches.
        images: Training split.
        seed: Names the stream: run seed, epoch, process.
        steps: Batches.
    """
    form = method.batches
    if isinstance(form, Episodic):
        drawn = draw_episodes(
            images.labels,
            steps * form.count,
            form.way,
            form.shot,
            form.query,
            seed,
            images.class_names,
        )
        return drawn.index.reshape(steps, form.images)
    # All processes shuffle alike and each takes its own stretch, so no image comes twice.
    *stream, rank = seed
    order = np.random.default_rng([*stream, 0]).permutation(len(images))
    part = order[rank * steps * form.size : (rank + 1) * steps * form.size]
    return torch.from_numpy(part).view(steps, form.size)


def _fabric(precision: str) -> Fabric:
    """One device, or as many processes as `torchrun` started."""
    world, local = (int(os.environ.get(k, 1)) for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(
        accelerator=usual_device(),
        devices=local,
        num_nodes=max(1, world // local),
        precision=resolve_precision(precision, usual_device()),
    )
    fabric.launch()
    return fabric


def _check_finite(history: list[dict[str, Tensor]], first_step: int, epoch: int) -> None:
    losses = torch.stack([parts["loss"] for parts in history])
    if bool(torch.isfinite(losses).all()):
        return
    at = int((~torch.isfinite(losses)).nonzero()[0])
    parts = ", ".join(f"{key} {float(value):.4g}" for key, value in history[at].items())
    raise TrainingDiverged(
        f"the loss is not a number at epoch {epoch + 1}, step {first_step + at + 1} ({parts}): "
        "lower `lr` or lengthen `warmup` and start again"
    )


def _train_epoch(
    fabric: Fabric,
    module: Any,
    optimiser: Any,
    config: Config,
    images: ImageSet,
    pixels: Tensor,
    epoch: int,
    steps: int,
    bar: tqdm,
) -> dict[str, float]:
    """One epoch; returns the mean of every part of the loss."""
    form = module.module.batches
    stream = [config.seed, epoch, fabric.global_rank]
    rows = epoch_rows(module.module, images, stream, steps).to(pixels.device)
    labels = images.labels.to(pixels.device)
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> 1)
    )
    parts: list[dict[str, Tensor]] = []
    module.train()
    for step in range(steps):
        progress = (epoch * steps + step) / (config.epochs * steps)
        for group in optimiser.param_groups:
            # The middle of the step, so that the first step of a warm-up already moves.
            group["lr"] = learning_rate(config, progress + 0.5 / (config.epochs * steps))
        set_progress(module, progress)
        chosen = rows[step]
        views = [
            augment(pixels.index_select(0, chosen), policy or config.augment, generator)
            for policy in form.views
        ]
        batch = Batch(fabric.to_device(torch.cat(views)), fabric.to_device(labels[chosen]), form)
        # On one device the strategy wraps nothing, and Fabric then does not cast a marked method.
        with fabric.autocast():
            loss = module.loss(batch, progress)
        optimiser.zero_grad(set_to_none=True)
        fabric.backward(loss["loss"])
        optimiser.step()
        parts.append({key: value.detach().float() for key, value in loss.items()})
        # Reading a number waits for the device, so on a GPU only every 50th step does.
        if fabric.device.type == "cpu" or step % 50 == 49 or step == steps - 1:
            unchecked = step % 50 + 1 if fabric.device.type != "cpu" else 1
            _check_finite(parts[-unchecked:], step + 1 - unchecked, epoch)
            bar.set_postfix_str(f"loss {float(parts[-1]['loss']):.3f}", refresh=False)
        bar.update()
    return {key: float(torch.stack([p[key] for p in parts]).mean()) for key in parts[0]}


def _curve_point(method: Method, images: ImageSet) -> dict[str, float]:
    """Accuracy on the validation classes, a small fixed set of episodes."""
    small = images.subset(per_class=CURVE_PER_CLASS)
    maps = embed_images(method, small)
    point = {}
    method.eval()  # a score can have parts that drop features in training, as AM3's has
    for shot in (1, 5):
        query = min(15, int(small.counts.min()) - shot)
        if query < 1 or small.classes < 2:
            continue
        way = min(5, small.classes)
        scores = evaluate(method, small, shot, way, query, CURVE_EPISODES, maps=maps)
        point[f"val_{shot}_shot"] = scores.mean
    method.train()
    return point


def _train(config: Config, data: Mapping[str, ImageSet], folder: Path, progress: bool) -> None:
    """Train to the end, going on from the checkpoint where there is one."""
    images = data["train"]
    fabric = _fabric(config.precision)
    method = config.build(images.classes).to(memory_format=torch.channels_last)
    # What a run keeps from its first step to its last.
    kept = {"semantics": _prepare(method, images), "processes": fabric.world_size}
    if method.teacher:
        method.learn_from(open_run(folder_of(method.teacher, folder.parent)).method)
    steps = len(images) // (method.batches.images * fabric.world_size)
    if steps < 1:
        raise ValueError(
            f"{len(images)} training images do not fill one batch of "
            f"{method.batches.images * fabric.world_size}: lower the batch of {config.method!r}"
        )
    raw_optimiser = _optimiser(config, method)
    history: list[dict[str, Any]] = []
    module, optimiser = fabric.setup(method, raw_optimiser)
    module.mark_forward_method("loss")
    # After the set-up, so that the optimiser's state follows the weights to their device.
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        facts = load_checkpoint(checkpoint, method, raw_optimiser)
        history = facts["history"]
        for key, now in kept.items():
            if (begun := facts.get(key, now)) != now:
                raise ValueError(
                    f"{folder} was begun with {key} = {begun}, and now {key} = {now}: go on as it "
                    "was begun, or delete the folder and start again"
                )
    pixels = fabric.to_device(images.images)  # uint8: CIFAR-FS takes 118 MB

    every = max(1, config.epochs // CURVE_POINTS)
    total = steps * config.epochs
    label = f"{config.method} {config.variant} seed {config.seed}".replace("  ", " ")
    hidden = not (progress and fabric.global_rank == 0)
    with tqdm(
        total=total, initial=steps * len(history), desc=label, disable=hidden, mininterval=1
    ) as bar:
        for epoch in range(len(history), config.epochs):
            wall, cpu = time.perf_counter(), time.process_time()
            devices = [fabric.device] if fabric.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                # Dropout draws from the global generator: pinned to (seed, epoch, process).
                mixed = np.random.SeedSequence([config.seed, epoch, 1 + fabric.global_rank])
                torch.manual_seed(int(mixed.generate_state(1)[0]))
                row: dict[str, Any] = _train_epoch(
                    fabric, module, optimiser, config, images, pixels, epoch, steps, bar
                )
            # Like the images, the processors' seconds are those of all processes.
            used = torch.tensor(time.process_time() - cpu, dtype=torch.float64)
            row |= {
                "epoch": epoch + 1,
                "images": (epoch + 1) * steps * method.batches.images * fabric.world_size,
                "lr": raw_optimiser.param_groups[0]["lr"],
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": float(fabric.all_reduce(used, reduce_op="sum")),
            }
            if "val" in data and (epoch % every == every - 1 or epoch == config.epochs - 1):
                row |= _curve_point(method, data["val"])
            history.append(row)
            if fabric.global_rank == 0 and epoch < config.epochs - 1:
                save_checkpoint(checkpoint, method, raw_optimiser, history=history, **kept)
            fabric.barrier()
    if fabric.global_rank == 0:
        save_tensors(folder / "weights.safetensors", method.state_dict(), method=config.method)
        facts = {
            "classes": images.classes,
            "data_digest": images.digest,
            "images_seen": history[-1]["images"],
            "seconds": sum(row["seconds"] for row in history),
            "cpu_seconds": sum(row["cpu_seconds"] for row in history),
            "precision": resolve_precision(config.precision, fabric.device),
            **kept,
            "machine": describe_machine(),
        }
        content = {"config": config.as_dict(), "facts": facts, "history": history}
        write_json(folder / "run.json", content)
        checkpoint.unlink(missing_ok=True)
    fabric.barrier()


def _prepare(method: Method, images: ImageSet) -> str | None:
    """Prepare a method; sha256 of the word vectors that it took from the images, None for none."""
    words = None
    try:
        method.prepare(dataclasses.replace(images, semantics=None))
    except ValueError:  # it cannot do without them
        words = images.semantics_digest
    method.prepare(images)
    return words


def _open(folder: Path, config: Config, images: ImageSet) -> Run:
    """A finished run under the labels (profile, variant) that were asked for now."""
    return dataclasses.replace(open_run(folder, images), config=config)


def fit(
    config: Config,
    data: Mapping[str, ImageSet] | None = None,
    root: str | os.PathLike[str] | None = None,
    runs: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Run:
    """Train a method, or open the run: one trained here before, or one that is published.

    Args:
        config: What to train.
        data: The splits; `open_dataset(config.dataset, root)` where None.
        root: Folder of packed data sets.
        runs: Folder of runs; `$FSLIB_RUNS` or `runs/` of the project where None.
        progress: Show a bar.

    Returns:
        The finished run.

    Raises:
        ValueError: A name or an option is not known, or the run was begun in another way.
        TrainingDiverged: The loss became NaN or infinite; names the step and the parts.
        RunCorrupt: The run is damaged, or learned from other word vectors.
    """
    data = open_dataset(config.dataset, root) if data is None else data
    runs = runs_root() if runs is None else Path(runs)
    images = data["train"]
    folder = folder_of(config.identity(images.digest), runs)
    if (folder / "run.json").exists():
        return _open(folder, config, images)
    if not first_process():
        if first_process_trains(folder):
            _train(config, data, folder, progress)
        return _open(folder, config, images)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # Like the bar, not part of what a page shows.
        said = f"{folder.name} is being trained by another process: waiting for it"
        tqdm.write(said, file=sys.stderr)
        lock.acquire()
    try:
        if not (folder / "run.json").exists():
            for stray in folder.glob(".*.partial"):
                stray.unlink()
            write_json(folder / "config.json", config.as_dict())
            write_json(folder / LEADER, this_job())
            _train(config, data, folder, progress)
    finally:
        (folder / LEADER).unlink(missing_ok=True)
        lock.release()
    return _open(folder, config, images)
