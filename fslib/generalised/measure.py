"""Generalised few-shot learning as records: both stages, every number of shots, in one command.

    python -m fslib.measure dynamic_fsl --dataset cifar_fs --generalised lessons=4000

trains (or opens) stage 1 without the base images that are asked about later, trains stage 2 anew
for every number of shots, and writes one ordinary record for each way of counting (`COUNTS`). Its
"episodes" are the draws of the support, so intervals and paired differences are over draws; the
images that are asked about are always the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fslib.data import ImageSet
from fslib.evaluate import Scores, embed_images
from fslib.generalised import evaluate_generalised, hold_out, train_stage_two
from fslib.methods.dynamic_fsl import DynamicFSL
from fslib.paths import results_root
from fslib.results import (
    Record,
    load_records,
    record_of,
    save_record,
    scratch_root,
)
from fslib.runs import Config, config_of
from fslib.train import fit

SHOTS = (1, 2, 5, 10, 20)
COUNTS = {
    f"generalised_{name}{ending}": (attribute, top)
    for name, attribute in (
        ("novel", "novel"),
        ("novel_joint", "novel_among_all"),
        ("base_joint", "base_among_all"),
        ("all", "all"),
        ("all_prior", "all_with_prior"),
    )
    for ending, top in (("", 1), ("_top5", 5))
}
"""`head` of a record to (field of `fslib.generalised.Generalised`, answers that count)."""


def parts_of(data: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """Base and novel images to learn from, and as many of each class to be asked about.

    Returns:
        `train` and `val` for stage 1, `support` (novel), and `base` and `novel` to ask about.
    """
    train, base = hold_out(data["train"])
    support, novel = hold_out(data["test"])
    each = int(min(base.counts.min(), novel.counts.min()))
    if each < 1:
        raise ValueError(f"a class of {train.name} has no image left to be asked about")
    asked = {"base": base.subset(per_class=each), "novel": novel.subset(per_class=each)}
    return {**data, "train": train, "support": support, **asked}


def protocol_words(shots: Sequence[int], lessons: int, draws: int) -> list[str]:
    """The words of the command line that ask for these records."""
    options = {"shots": list(shots), "lessons": lessons, "draws": draws}
    return ["--generalised", *(f"{key}={value}".replace(" ", "") for key, value in options.items())]


def _digest(parts: Mapping[str, ImageSet]) -> str:
    return "+".join(parts[name].digest[:16] for name in ("base", "novel"))


def find_generalised(
    root: Path,
    config: Config,
    parts: Mapping[str, ImageSet],
    shots: Sequence[int],
    lessons: int,
    draws: int,
) -> dict[str, Record]:
    """The records that answer exactly this question; none where one is missing.

    Args:
        root: Where they are looked for.
        config: Of stage 1.
        parts: Of `parts_of`.
        shots: Support images of a class.
        lessons: Episodes of a stage 2.
        draws: How often the support is drawn.
    """
    wanted = config.identity(parts["train"].digest)
    how = {"episodes": draws, "seed": 0, "lessons": lessons}
    found = {
        record.head: record
        for record in load_records(
            root,
            method=config.method,
            variant=config.variant,
            seed=config.seed,
            head=list(COUNTS),
            evaluated_digest=_digest(parts),
        )
        if config_of(record.config).identity(record.facts["data_digest"]) == wanted
        and set(map(str, shots)) <= set(record.accuracy)
        and {key: record.episodes.get(key) for key in how} == how
    }
    return found if len(found) == len(COUNTS) else {}


def measured_generalised(
    config: Config,
    data: Mapping[str, ImageSet],
    shots: Sequence[int] = SHOTS,
    lessons: int = 4000,
    draws: int = 100,
    root: Path | None = None,
) -> dict[str, Record]:
    """The records of generalised few-shot learning: committed ones, or made now.

    Args:
        config: Of stage 1; a `DynamicFSL`.
        data: Splits of `config.dataset`.
        shots: Support images n of a class; one stage 2 for each.
        lessons: Episodes of a stage 2.
        draws: How often the support is drawn for a score.
        root: Where records are written, and looked for; as in `fslib.measure.measured` where None.

    Returns:
        Key of `COUNTS` to its record.

    Raises:
        ValueError: The method has no second stage.
    """
    parts = parts_of(data)
    wanted = config.identity(parts["train"].digest)
    scratch = scratch_root(wanted, _digest(parts), sorted(shots), lessons, draws)
    for place in (results_root(), scratch) if root is None else (root,):
        if found := find_generalised(place, config, parts, shots, lessons, draws):
            return found
    run = fit(config, parts)
    if not isinstance(run.method, DynamicFSL):
        raise ValueError(f"{config.method!r} has no second stage: take dynamic_fsl")
    scores = _score(run.method, parts, shots, lessons, draws, config.seed)
    how = {"episodes": draws, "seed": 0, "lessons": lessons}
    saved = {}
    for head, of_shots in scores.items():
        one = of_shots[shots[0]]
        record = record_of(
            run,
            parts["novel"],
            of_shots,
            {"way": one.way, "query": one.queries // one.way, **how},
            protocol_words(shots, lessons, draws),
            head=head,
            evaluated_digest=_digest(parts),
        )
        saved[head] = save_record(record, of_shots, scratch if root is None else root)
    return saved


def _score(
    method: DynamicFSL,
    parts: Mapping[str, ImageSet],
    shots: Sequence[int],
    lessons: int,
    draws: int,
    seed: int,
) -> dict[str, dict[int, Scores]]:
    """Right answers of every draw, by key of `COUNTS` and by shots."""
    known = {
        name: (
            method.test_features(embed_images(method, parts[name], progress=True)),
            parts[name].labels,
        )
        for name in ("train", "support", "base", "novel")
    }
    scores: dict[str, dict[int, Scores]] = {head: {} for head in COUNTS}
    for shot in shots:
        taught, _ = train_stage_two(method, *known["train"], shot, episodes=lessons, seed=seed)
        asked = (known["base"], known["support"], known["novel"])
        made = {top: evaluate_generalised(taught, *asked, shot, draws, top) for top in (1, 5)}
        for head, (field, top) in COUNTS.items():
            # Fields that start with "all" count both kinds of classes.
            kinds = [kind for kind in ("base", "novel") if field.startswith(kind)]
            counted = [parts[kind] for kind in kinds or ("base", "novel")]
            images, ways = sum(map(len, counted)), sum(part.classes for part in counted)
            right = np.rint(getattr(made[top], field) * images / 100).astype(np.int64)
            scores[head][shot] = Scores(right, images, ways, shot, 0)
    return scores


def measure_generalised(config: Config, data: Mapping[str, ImageSet], **how: Any) -> None:
    """What the command line does: the same among the committed records, and a line for each."""
    for record in measured_generalised(config, data, root=results_root(), **how).values():
        line = "  ".join(f"n = {n}: {score['mean']:.2f}" for n, score in record.accuracy.items())
        print(f"{record.id}: {line}", flush=True)
