"""Train, score and record in one command: the one that stands in every record.

    python -m fslib.measure ce --dataset cifar_fs --backbone resnet12_slim --epochs 19 --seed 0

trains (or opens) the run, scores it at 1 and 5 shots and writes a record for each image set,
corruption and head that is asked for. Records that are there already are not made again. Beside
other data sets, `--on` takes the own base and validation classes, `cifar_fs_train cifar_fs_val`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch

from fslib.analysis.corruption import CORRUPTIONS, corrupt
from fslib.data import ImageSet, open_dataset
from fslib.device import first_process, on_usual_device
from fslib.episodes import TooFewImages
from fslib.evaluate import Scores, embed_recent, evaluate
from fslib.generalised.measure import SETTINGS, measure_generalised
from fslib.heads.registry import ALL_HEADS
from fslib.methods import METHODS
from fslib.paths import networks_root, results_root
from fslib.results import Record, record_of, records_of_run, save_record, scratch_root, summary
from fslib.runs import Config, Run, publish_run
from fslib.train import fit
from fslib.values import value_of

DESCRIPTION = (__doc__ or "").split("\n")[0]
OWN_PARTS = ("train", "val")
"""What `--on` may name after the own data set and `_`, beside other data sets."""
WAY, QUERY = 5, 15
"""Classes of every episode that is scored here, and query images of each."""


def score_run(
    run: Run,
    images: ImageSet,
    heads: Sequence[str] = ("",),
    shots: Sequence[int] = (1, 5),
    episodes: int = 10_000,
    base: ImageSet | None = None,
    corruption: str = "",
    also: Sequence[str] = (),
    root: Path | None = None,
) -> list[Record]:
    """Score a run on one image set under several heads and write the records.

    Args:
        run: A trained run.
        images: Novel classes, already at the side the run was trained at; it is recorded.
        heads: Keys of `ALL_HEADS` or names of the method's branches; "" is the method's own.
        shots: Support images of a class.
        episodes: How many, drawn with seed 0.
        base: Training images, for centred heads.
        corruption: A key of `CORRUPTIONS`, or "".
        also: Words of the command line beyond the configuration.
        root: Folder of results.
    """
    # The record names the clean images; the corruption and its seed say what was done to them.
    clean = images
    if corruption:
        images = corrupt(images, corruption, seed=0)

    def scored(**how: Any) -> dict[int, Scores]:
        return {
            shot: evaluate(run.method, images, shot, WAY, QUERY, episodes, maps=maps, **how)
            for shot in shots
        }

    made = []
    with on_usual_device(run.method):
        maps = embed_recent(run.folder, run.method, images, corruption)
        for name in heads:
            branch = name if name in run.method.branches() else ""
            if name and not branch and name not in ALL_HEADS:
                known = [*ALL_HEADS, *run.method.branches()]
                raise ValueError(f"unknown head {name!r}: choose one of {', '.join(known)}")
            head, mean = ALL_HEADS[name] if name and not branch else None, None
            if head is not None and head.centre:
                if base is None:
                    raise ValueError(f"head {name!r} needs the base images")
                # 100 images a class give the mean feature to far below its effect.
                base_maps = embed_recent(run.folder, run.method, base.subset(per_class=100))
                mean = head.raw_features(base_maps).mean(0)
            scores = scored(head=head, base_mean=mean, branch=branch)
            parts = [] if name else run.method.branches()
            record = record_of(
                run,
                images,
                scores,
                {"way": WAY, "query": QUERY, "episodes": episodes, "seed": 0},
                also,
                evaluated_on=clean.name,
                evaluated_digest=clean.digest,
                corruption=corruption,
                head=name,
                branches={part: summary(scored(branch=part)) for part in parts},
            )
            made.append(save_record(record, scores, root))
    return made


def find_record(
    root: Path,
    config: Config,
    wanted: str,
    images: ImageSet,
    head: str,
    corruption: str,
    shots: Sequence[int],
    episodes: int,
    base: ImageSet | None = None,
) -> Record | None:
    """The record that answers exactly this question, if there is one; see `measured`.

    Its run learned from the word vectors of `base`, if it read any; from whichever where None.
    """
    where = {"evaluated_on": images.name, "evaluated_digest": images.digest}
    where |= {"head": head, "corruption": corruption}
    for record in records_of_run(root, config, wanted, shots, base, **where):
        if record.episodes["episodes"] == episodes:
            return record
    return None


def check_counts(images: ImageSet, shots: Sequence[int]) -> None:
    """Refuse, before a training, images that could not be scored after it.

    Args:
        images: To be scored on.
        shots: Support images of a class.

    Raises:
        TooFewImages: There are too few classes, or a class has too few images.
    """
    present = images.counts.nonzero().flatten()
    smallest = int(present[images.counts[present].argmin()])
    count, need = int(images.counts[smallest]), max(shots) + QUERY
    if len(present) < WAY or count < need:
        raise TooFewImages(
            f"{WAY} classes of {need} images ({max(shots)} support + {QUERY} query) are needed and "
            f"{images.name} has {len(present)}, of which {images.class_names[smallest]} has "
            f"{count}: add images"
            + (f", or ask for at most {count - QUERY} shots" if QUERY < count < need else "")
        )


def measured(
    config: Config,
    data: Mapping[str, ImageSet],
    images: ImageSet | None = None,
    head: str = "",
    corruption: str = "",
    shots: Sequence[int] = (1, 5),
    episodes: int = 10_000,
) -> Record:
    """The record of a measurement: the committed one, or one made now.

    What a page calls for every number it prints. A committed record is taken where it answers
    exactly this question; otherwise the run is trained (or opened), scored and kept beside the
    runs, never among the committed records, which only the command line writes.

    Args:
        config: What to train.
        data: Splits of `config.dataset`.
        images: Scored on; the novel classes of `data` where None.
        head: A key of `ALL_HEADS` or a branch of the method; "" is the method's own.
        corruption: A key of `CORRUPTIONS`, or "".
        shots: Support images of a class.
        episodes: How many.
    """
    base = data["train"]
    images = (data["test"] if images is None else images).resized(base.size[0])
    wanted = config.identity(base.digest)
    scratch = scratch_root(wanted, images.digest, sorted(shots), episodes)
    for root in (results_root(), scratch):
        record = find_record(root, config, wanted, images, head, corruption, shots, episodes, base)
        if record is not None:
            return record
    check_counts(images, shots)
    run = fit(config, data)
    return score_run(run, images, (head,), shots, episodes, base, corruption, root=scratch)[0]


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` words as a dictionary; values are JSON or, for plain words, YAML."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise SystemExit(f"an option is NAME=VALUE, such as point_wise=true, not {word!r}")
        pairs[key] = value_of(value)
    return pairs


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fslib.measure", description=DESCRIPTION)
    parser.add_argument("method", choices=sorted(METHODS))
    hints = get_type_hints(Config)
    for field in dataclasses.fields(Config):
        flag = f"--{field.name.replace('_', '-')}"
        if field.name in ("options", "backbone_options"):
            parser.add_argument(flag, nargs="*", default=[], metavar="NAME=VALUE")
        elif field.name == "milestones":
            parser.add_argument(flag, nargs="*", default=[], metavar="SHARE:FACTOR")
        elif field.name != "method":
            parser.add_argument(flag, type=hints[field.name], default=field.default)
    parser.add_argument("--on", nargs="*", help="image sets to score on; the own one by default")
    own = "also, on the own image set"
    parser.add_argument(
        "--corruptions", nargs="*", default=[], choices=sorted(CORRUPTIONS), help=own
    )
    parser.add_argument(
        "--heads", nargs="*", default=[], help=f"{own}: {', '.join(ALL_HEADS)}, or a branch"
    )
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--episodes", type=int, default=10_000)
    both = "old and new classes at once (fslib.generalised.measure): shots, lessons, draws"
    parser.add_argument("--generalised", nargs="*", metavar="NAME=VALUE", help=both)
    parser.add_argument("--root", help="folder of packed data sets")
    parser.add_argument(
        "--publish", action="store_true", help="keep the network beside the records, for the pages"
    )
    return parser


def _generalised(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """The settings of `--generalised`; refuses what cannot be asked for beside it."""
    others = ("shots", "on", "heads", "corruptions", "episodes", "publish")
    given = parser.parse_args(words, argparse.Namespace(**dict.fromkeys(others)))
    if ignored := [f"--{name}" for name in others if getattr(given, name) is not None]:
        parser.error(f"--generalised goes without {', '.join(ignored)}: its own settings follow it")
    how = _pairs(given.generalised)
    if unknown := [name for name in how if name not in SETTINGS]:
        known = ", ".join(SETTINGS)
        parser.error(f"--generalised has no setting {unknown[0]!r}: choose one of {known}")
    return how | {"shots": _listed(how["shots"])} if "shots" in how else how


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    words = sys.argv[1:] if words is None else words
    parser = _parser()
    given = vars(parser.parse_args(words))
    fields = {f.name: given[f.name] for f in dataclasses.fields(Config)}
    fields |= {key: _pairs(given[key]) for key in ("options", "backbone_options")}
    fields["milestones"] = tuple(tuple(map(float, word.split(":"))) for word in given["milestones"])
    config = Config(**fields)
    if given["generalised"] is not None:
        how = _generalised(parser, words)
        return measure_generalised(config, open_dataset(config.dataset, given["root"]), **how)
    also = [
        word
        for key in ("on", "corruptions", "heads", "shots", "episodes")
        if given[key] != parser.get_default(key)
        for word in (f"--{key}", *map(str, _listed(given[key])))
    ]
    shots, episodes = given["shots"], given["episodes"]
    data = open_dataset(config.dataset, given["root"])
    base = data["train"]
    wanted = config.identity(base.digest)
    known = [*ALL_HEADS, *config.build(base.classes).branches()]
    if unknown := [head for head in given["heads"] if head not in known]:
        parser.error(f"unknown head {unknown[0]!r}: choose one of {', '.join(known)}")

    questions: list[tuple[ImageSet, str, dict[str, Record | None]]] = []
    for name in given["on"] or [config.dataset]:
        own = name == config.dataset
        images = images_named(name, config.dataset, data, given["root"])
        check_counts(images, shots)
        for corruption in ["", *(given["corruptions"] if own else [])]:
            heads = ["", *given["heads"]] if own and not corruption else [""]
            asked = (corruption, shots, episodes, base)
            found = {
                head: find_record(results_root(), config, wanted, images, head, *asked)
                for head in heads
            }
            questions.append((images, corruption, found))

    publish = given["publish"] and not (networks_root() / wanted / "run.json").exists()
    if publish or any(None in found.values() for *_, found in questions):
        run = fit(config, data, root=given["root"])
    if not first_process():
        return  # the others only help to train
    if publish:
        publish_run(run, networks_root())
    for images, corruption, found in questions:
        records = [record for record in found.values() if record]
        if missing := [head for head in found if not found[head]]:
            records += score_run(run, images, missing, shots, episodes, base, corruption, also)
        for record in records:
            line = "  ".join(
                f"{shot}-shot {score['mean']:.2f} ± {score['ci95']:.2f}"
                for shot, score in record.accuracy.items()
            )
            print(f"{record.id}: {line}", flush=True)


def images_named(
    name: str, dataset: str, data: Mapping[str, ImageSet], root: str | Path | None = None
) -> ImageSet:
    """What is scored under a name, for a network trained on the splits `data` of `dataset`.

    Its novel classes under its own name, one of its `OWN_PARTS` (`cifar_fs_val`), or all of another
    data set, resized.
    """
    part = name.removeprefix(f"{dataset}_")
    if name == dataset:
        return data["test"]
    if part in OWN_PARTS:
        return part_of(data, part)
    return join(open_dataset(name, root)).resized(data["train"].size[0])


def part_of(splits: Mapping[str, ImageSet], name: str) -> ImageSet:
    """Base (`train`) or validation classes (`val`) to score on, 100 images each, `cifar_fs_val`."""
    part = splits[name].subset(per_class=100)
    return dataclasses.replace(part, name=f"{part.name}_{name}")


def join(splits: Mapping[str, ImageSet]) -> ImageSet:
    """All classes of all splits as one image set, for a transfer to another data set."""
    parts = list(splits.values())
    offsets = [sum(p.classes for p in parts[:i]) for i in range(len(parts))]
    words = [p.semantics for p in parts if p.semantics is not None]
    return ImageSet(
        name=parts[0].name,
        split="all",
        images=torch.cat([p.images for p in parts]),
        labels=torch.cat([p.labels + o for p, o in zip(parts, offsets, strict=True)]),
        class_names=tuple(name for p in parts for name in p.class_names),
        semantics=torch.cat(words) if len(words) == len(parts) else None,
        digest="+".join(p.digest[:16] for p in parts),
    )


if __name__ == "__main__":
    main()
