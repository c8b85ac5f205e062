"""The committed record of a measurement: one JSON file, and every episode's right answers.

`results/runs/<id>.json` says what was trained, on what it was scored and what came out;
`results/episodes/<id>.npy` holds (shots, E), the right answers of every episode, so any two
records over the same episodes can be compared in pairs years later.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fslib
from fslib.evaluate import Scores
from fslib.image_set import ImageSet
from fslib.paths import ROOT, results_root, runs_root
from fslib.runs import Config, Run, config_of, same_words, write_atomically, write_json


class RecordMissing(LookupError):
    """No record answers to what was asked for; the message names the command that makes one."""


@functools.cache
def code_version() -> str:
    """Version and a hash of fslib's sources, such as `0.1.0+3fa2c1d9`."""
    total = hashlib.sha256()
    for file in sorted((ROOT / "fslib").rglob("*.py")):
        total.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return f"{fslib.__version__}+{total.hexdigest()[:8]}"


def command_of(config: Config, also: Sequence[str] = ()) -> str:
    """The shell command that repeats a run and its records."""
    words = ["python", "-m", "fslib.measure", config.method]
    plain = Config(config.method)
    for entry in dataclasses.fields(Config):
        value = getattr(config, entry.name)
        if entry.name == "method" or value == getattr(plain, entry.name):
            continue
        if isinstance(value, Mapping):
            words += [f"--{entry.name.replace('_', '-')}"]
            words += [f"{key}={json.dumps(given)}" for key, given in value.items()]
        elif entry.name == "milestones":
            words += ["--milestones", *(f"{a}:{b}" for a, b in value)]
        else:
            words += [f"--{entry.name.replace('_', '-')}", str(value)]
    return shlex.join([*words, *also])


@dataclass(frozen=True)
class Record:
    """What was measured, and how.

    Attributes:
        method: Name of the method.
        variant: What an ablation changed; "" for the main row.
        dataset: Trained on.
        evaluated_on: Scored on, such as `cifar_fs` or `flowers102`.
        corruption: Degradation of the scored images; "" for none.
        head: Test-time classifier, a key of `fslib.heads.registry.ALL_HEADS`; "" for the method's
            own.
        backbone: Name of the backbone.
        profile: `cpu`, `paper`, ...
        seed: Of training.
        episodes: Way, query, number and seed of the episodes.
        accuracy: Shot to mean and ci95, in percent: `{"1": {"mean": ..., "ci95": ...}}`.
        branches: The same for parts of a method, by name.
        history: One row an epoch.
        facts: Seconds, processor seconds, images seen, data digest, machine, precision.
        config: All that decided the run.
        evaluated_digest: sha256 of the scored images.
        code: Version of fslib that scored it.
        command: What repeats it.
        root: Folder of results it lies in; not part of the file.
    """

    method: str
    variant: str
    dataset: str
    evaluated_on: str
    backbone: str
    profile: str
    seed: int
    episodes: dict[str, int]
    accuracy: dict[str, dict[str, float]]
    corruption: str = ""
    head: str = ""
    branches: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    evaluated_digest: str = ""
    code: str = ""
    command: str = ""
    root: Path | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        """File name without ending; says what the record is."""
        parts = [self.dataset, self.method, self.variant, self.backbone, self.profile]
        parts += [f"seed{self.seed}"]
        if self.evaluated_on != self.dataset:
            parts.append(f"on-{self.evaluated_on}")
        parts += [self.corruption, f"head-{self.head}" if self.head else ""]
        if self.episodes["episodes"] != 10_000:
            parts.append(f"{self.episodes['episodes']}-episodes")
        return "--".join(part for part in parts if part)

    @property
    def run(self) -> str:
        """Name of the run that was scored, see `fslib.runs.Config.identity`."""
        return config_of(self.config).identity(self.facts.get("data_digest", ""))


FIELDS = {f.name for f in dataclasses.fields(Record)} - {"root"}


def summary(scores: dict[int, Scores]) -> dict[str, dict[str, float]]:
    """Mean and interval a shot, rounded to a thousandth of a point."""
    return {
        str(shot): {"mean": round(s.mean, 3), "ci95": round(s.ci95, 3)}
        for shot, s in sorted(scores.items())
    }


def record_of(
    run: Run,
    images: ImageSet,
    scores: dict[int, Scores],
    episodes: dict[str, int],
    also: Sequence[str] = (),
    **more: Any,
) -> Record:
    """The record of a run's scores, not yet written.

    Args:
        run: What was trained.
        images: Scored on.
        scores: Shot to scores.
        episodes: Way, query, number and seed of the episodes.
        also: Words of the command line beyond the configuration.
        **more: Other attributes of `Record`, such as `head`.
    """
    config = run.config
    known = {
        "method": config.method,
        "variant": config.variant,
        "dataset": config.dataset,
        "evaluated_on": images.name,
        "backbone": config.backbone,
        "profile": config.profile,
        "seed": config.seed,
        "episodes": episodes,
        "accuracy": summary(scores),
        "history": run.history,
        "facts": {**run.facts, "scored_side": images.size[0]},
        "config": config.as_dict(),
        "evaluated_digest": images.digest,
        "code": code_version(),
        "command": command_of(config, also),
    }
    return Record(**known | more)


def scratch_root(run: str, *question: Any) -> Path:
    """Folder of results, beside the runs, for the records that answer one question.

    The name of a record says neither shots nor images: in one folder for all questions, two pages
    that run side by side would write over each other's.

    Args:
        run: Name of the run, `Config.identity`.
        *question: What decides the scores beside it, as JSON.
    """
    key = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:10]
    return runs_root() / "records" / f"{run}-{key}"


def _record(content: Mapping[str, Any], root: Path) -> Record:
    """The record that a file holds; fields of a later version are left out."""
    return Record(**{k: v for k, v in content.items() if k in FIELDS}, root=root)


def save_record(record: Record, scores: dict[int, Scores], root: Path | None = None) -> Record:
    """Write a record and its episodes.

    A record of the same question is replaced by one that has all of its shots.

    Args:
        record: What was measured.
        scores: Shot to scores, those that `record.accuracy` summarises.
        root: Folder of results; the project's where None.

    Returns:
        The record, which now knows where it lies.

    Raises:
        ValueError: The record of this name is of another configuration, other data or episodes,
            or it has shots that this one lacks.
    """
    root = results_root() if root is None else root
    there = root / "runs" / f"{record.id}.json"
    if there.exists():
        other = _record(json.loads(there.read_text(encoding="utf-8")), root)
        questions = [(r.run, r.evaluated_digest, r.episodes) for r in (other, record)]
        if questions[0] != questions[1]:
            raise ValueError(
                f"{there} is the record of another configuration, other data or other episodes: "
                "give this one a variant of its own"
            )
        if lacking := sorted(set(map(int, other.accuracy)) - set(map(int, record.accuracy))):
            words = " ".join(map(str, lacking))
            raise ValueError(f"{there} also has other shots: add {words} to --shots")
    correct = np.stack([scores[shot].correct for shot in sorted(scores)])
    # Opening through a buffer keeps numpy from appending its own ending to the partial file.
    buffer = io.BytesIO()
    smallest = np.min_scalar_type(correct.max(initial=0))
    np.save(buffer, correct.astype(smallest), allow_pickle=False)
    write_atomically(
        root / "episodes" / f"{record.id}.npy",
        lambda partial: partial.write_bytes(buffer.getvalue()),
    )
    content = dataclasses.asdict(record)
    del content["root"]
    write_json(root / "runs" / f"{record.id}.json", content)
    return dataclasses.replace(record, root=root)


def load_records(root: Path | None = None, **where: Any) -> list[Record]:
    """Committed records whose fields have these values, in order of seed.

    Args:
        root: Folder of results; the project's where None.
        **where: Field to value, or to a list of admitted values.

    Raises:
        TypeError: A record has no such field.
        ValueError: A record cannot be read.
    """
    root = results_root() if root is None else root
    if unknown := set(where) - FIELDS:
        raise TypeError(f"records have no field {', '.join(sorted(unknown))}")
    found = []
    # A record's name says its method and seed: most files need not be read.
    method, seed = where.get("method"), where.get("seed")
    named = f"*--{method}--*" if isinstance(method, str) else "*"
    named += f"--seed{seed}*.json" if isinstance(seed, int) else ".json"
    for path in sorted((root / "runs").glob(named)):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): restore or delete it") from None
        if all(
            content.get(k) in v if isinstance(v, list | tuple) else content.get(k) == v
            for k, v in where.items()
        ):
            found.append(_record(content, root))
    return sorted(found, key=lambda r: (r.method, r.variant, r.evaluated_on, r.seed))


def records_of_run(
    root: Path,
    config: Config,
    run: str,
    shots: Sequence[int],
    images: ImageSet | None = None,
    **where: Any,
) -> list[Record]:
    """The records of one run that have these shots.

    Args:
        root: Folder of results.
        config: Of the run; its labels are those of the records.
        run: Its name.
        shots: All of them have to be there.
        images: What the run has to have learned from, see `fslib.runs.same_words`.
        **where: Of `load_records`.
    """
    labels = {"method": config.method, "variant": config.variant, "seed": config.seed}
    return [
        record
        for record in load_records(root, **labels, **where)
        if record.run == run
        and set(map(str, shots)) <= set(record.accuracy)
        and (images is None or same_words(record.facts, images))
    ]


def load_scores(record: Record, shot: int) -> Scores:
    """Right answers of every episode of a record at one shot.

    Raises:
        RecordMissing: The record was not scored at this shot, or its episodes are not there.
    """
    root = record.root or results_root()
    path, written = root / "episodes" / f"{record.id}.npy", root / "runs" / f"{record.id}.json"
    if not (path.exists() and written.exists()):
        raise RecordMissing(f"no episodes beside {record.id}: run `{record.command}`")
    # Asked of the file: since this record was read, one with more shots may have replaced it.
    shots = sorted(map(int, json.loads(written.read_text(encoding="utf-8"))["accuracy"]))
    if shot not in shots:
        raise RecordMissing(f"{record.id} was scored at {shots} shots, not at {shot}")
    rows = np.load(path, allow_pickle=False)
    if len(rows) != len(shots):  # stopped between the two files
        raise RecordMissing(f"the episodes of {record.id} are of other shots: delete {written}")
    correct = rows[shots.index(shot)].astype(np.int64)
    e = record.episodes
    return Scores(correct, e["way"] * e["query"], e["way"], shot, e["seed"])
