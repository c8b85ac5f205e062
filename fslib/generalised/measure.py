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

from fslib.data import ImageSet
from fslib.device import first_process
from fslib.evaluate import Scores, embed_images
from fslib.generalised import evaluate_generalised, hold_out, train_stage_two
from fslib.methods.dynamic_fsl import DynamicFSL
from fslib.paths import results_root
from fslib.results import Record, record_of, records_of_run, save_record, scratch_root
from fslib.runs import Config
from fslib.train import fit

SHOTS = (1, 2, 5, 10, 20)
SETTINGS = ("shots", "lessons", "draws")
"""What `--generalised` takes, see `measured_generalised`."""
COUNTS = {
    f"generalised_{name}{ending}": (name, top)
    for name in ("novel", "novel_joint", "base_joint", "all", "all_prior")
    for ending, top in (("", 1), ("_top5", 5))
}
"""`head` of a record to what `fslib.generalised.evaluate_generalised` calls it."""


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
    train, how = parts["train"], {"episodes": draws, "seed": 0, "lessons": lessons}
    where = {"head": list(COUNTS), "evaluated_digest": _digest(parts)}
    found = {
        record.head: record
        for record in records_of_run(
            root, config, config.identity(train.digest), shots, train, **where
        )
        if {key: record.episodes.get(key) for key in how} == how
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
        Key of `COUNTS` to its record; nothing in the other processes of a `torchrun`, which only
        help to train.

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
    if not first_process():
        return {}
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
    train, *asked = (
        (
            method.test_features(embed_images(method, parts[name], progress=True)),
            parts[name].labels,
        )
        for name in ("train", "base", "support", "novel")
    )
    scores: dict[str, dict[int, Scores]] = {head: {} for head in COUNTS}
    for shot in shots:
        taught, _ = train_stage_two(method, *train, shot, episodes=lessons, seed=seed)
        made = evaluate_generalised(taught, *asked, shot, draws)
        for head, count in COUNTS.items():
            scores[head][shot] = made[count]
    return scores


def measure_generalised(config: Config, data: Mapping[str, ImageSet], **how: Any) -> None:
    """What the command line does: the same among the committed records, and a line for each."""
    made = measured_generalised(config, data, root=results_root(), **how)
    if not first_process():
        return
    for record in made.values():
        line = "  ".join(f"n = {n}: {score['mean']:.2f}" for n, score in record.accuracy.items())
        print(f"{record.id}: {line}", flush=True)
