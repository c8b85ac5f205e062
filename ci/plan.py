"""List the measurements that pages need under a profile, as the commands that make them.

    python ci/plan.py bml --profile cpu
    python ci/plan.py scl/ablations --profile cpu --missing

Nothing is trained at full size: a page runs on the small built-in images with a small backbone for
one epoch, while every measurement that it asks for is written down as it would be under the
profile. The lines fit into `ci/edition.txt`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import execute
import matplotlib
from IPython.core.interactiveshell import InteractiveShell

import fslib.data
import fslib.measure
import fslib.study
import fslib.train
from fslib import notebooks
from fslib.data import ImageSet, open_dataset
from fslib.generalised.measure import SHOTS, find_generalised, parts_of, protocol_words
from fslib.heads import HEADS
from fslib.measure import find_record, images_named
from fslib.paths import data_root, networks_root, results_root
from fslib.results import command_of
from fslib.runs import Config

STAND_IN = "glyphs_small"
COMMAND = "python -m fslib.measure "


class Need(NamedTuple):
    """One score that a page asks for; the order is that of `fslib.measure.find_record`."""

    on: str
    head: str
    corruption: str
    shots: tuple[int, ...]
    episodes: int


@functools.cache
def real_images(name: str, dataset: str, root: Path) -> ImageSet:
    """What the command line scores under a name, for a network trained on `dataset`.

    The pages of a plan see a stand-in, whose resized or reduced images have another digest.
    """
    return images_named(name, dataset, open_dataset(dataset, root), root)


class Plan:
    """What the pages asked for, in order: each configuration with its needs."""

    def __init__(self, missing: bool) -> None:
        self.missing, self.committed, self.networks = missing, results_root(), networks_root()
        self.needs: dict[str, tuple[Config, list[Need]]] = {}
        self.opened: set[str] = set()  # asked for the network
        self.taught: dict[str, list[str]] = {}  # asked for old and new classes at once: how
        self.measured, self.measured_generalised, self.fit = (
            fslib.measure.measured,
            fslib.study.measured_generalised,
            fslib.train.fit,
        )

    def open_dataset(self, name: str, root: Any = None) -> dict[str, ImageSet]:
        """Small images under the name asked for, with the real digest where it is at hand."""
        splits = open_dataset(STAND_IN)
        with contextlib.suppress(FileNotFoundError):
            real = open_dataset(name, root)
            splits = {
                split: dataclasses.replace(images, digest=real[split].digest)
                for split, images in splits.items()
                if split in real
            }
        return {split: dataclasses.replace(s, name=name) for split, s in splits.items()}

    def small(self, config: Config) -> Config:
        """The same experiment in a few seconds; the stand-in has no 30 classes for an episode."""
        options = dict(config.options)
        if "way" in options:
            options["way"] = min(options["way"], 20)
        return dataclasses.replace(config, backbone="conv4_32", epochs=1, seed=0, options=options)

    def note(
        self,
        config: Config,
        data: dict[str, ImageSet],
        images: ImageSet | None = None,
        head: str = "",
        corruption: str = "",
        shots: Any = (1, 5),
        episodes: int = 10_000,
    ) -> Any:
        """In the place of `measured`."""
        scored = data["test"] if images is None else images
        run = config.identity(data["train"].digest)
        _, needs = self.needs.setdefault(run + config.variant, (config, []))
        need = Need(scored.name, head, corruption, tuple(shots), episodes)
        if (head or corruption) and (scored.name != config.dataset or (head and corruption)):
            raise ValueError(
                f"no command scores {config.method} on {scored.name} with head {head!r} and "
                f"corruption {corruption!r}: fslib.measure takes one of the two, and only on "
                f"{config.dataset}, which it trained on"
            )
        if need not in needs and not (self.missing and self.recorded(config, run, need)):
            needs.append(need)
        return self.measured(self.small(config), data, images, head, corruption, shots, 200)

    def recorded(self, config: Config, run: str, need: Need) -> bool:
        """Whether a committed record has this score; none has it without the data set at hand."""
        try:
            images = real_images(need.on, config.dataset, data_root())
        except FileNotFoundError:
            return False
        return find_record(self.committed, config, run, images, *need[1:]) is not None

    def recorded_generalised(self, config: Config, *how: Any) -> bool:
        """The same for all scores of `measured_generalised`."""
        try:
            parts = parts_of(open_dataset(config.dataset))
        except FileNotFoundError:
            return False
        return bool(find_generalised(self.committed, config, parts, *how))

    def note_generalised(
        self,
        config: Config,
        data: dict[str, ImageSet],
        shots: Any = SHOTS,
        lessons: int = 4000,
        draws: int = 100,
    ) -> Any:
        """In the place of `measured_generalised`."""
        how = (shots, lessons, draws)
        if not (self.missing and self.recorded_generalised(config, *how)):
            key = config.identity(parts_of(data)["train"].digest) + config.variant
            self.needs.setdefault(key, (config, []))
            self.taught[key] = protocol_words(*how)
        return self.measured_generalised(self.small(config), data, shots, 20, 5)

    def train(self, config: Config, data: dict[str, ImageSet] | None = None, **how: Any) -> Any:
        """In the place of `fit`: a look inside needs the run, but no record."""
        data = self.open_dataset(config.dataset) if data is None else data
        run = config.identity(data["train"].digest)
        if not (self.missing and (self.networks / run / "run.json").exists()):
            self.needs.setdefault(run + config.variant, (config, []))
            self.opened.add(run + config.variant)
        return self.fit(self.small(config), data, **how)

    def lines(self) -> Iterator[str]:
        """One command for each configuration and protocol."""
        for key, (config, needs) in self.needs.items():
            network = ["--publish"] * (key in self.opened)
            if key in self.taught:
                yield command_of(config, self.taught[key]).removeprefix(COMMAND)
            for episodes in sorted({need.episodes for need in needs}, reverse=True):
                asked = [need for need in needs if need.episodes == episodes]
                yield self.line(config, asked, episodes, network)
                network = []
            if network:
                yield self.line(config, [], 10_000, network)

    def line(self, config: Config, needs: list[Need], episodes: int, network: list[str]) -> str:
        """The command that makes all records of one configuration and protocol."""
        words = {"on": [], "corruptions": [], "heads": []}
        for need in needs:
            if need.on != config.dataset:
                words["on"] += [config.dataset] * (not words["on"]) + [need.on]
            words["corruptions"] += [need.corruption] * bool(need.corruption)
            words["heads"] += [need.head] * bool(need.head)
        also = [w for key, found in words.items() if found for w in (f"--{key}", *unique(found))]
        shots = sorted({shot for need in needs for shot in need.shots}) or [1, 5]
        if shots != [1, 5]:
            also += ["--shots", *map(str, shots)]
        if episodes != 10_000:
            also += ["--episodes", str(episodes)]
        also += network
        return command_of(config, also).removeprefix(COMMAND)


def unique(words: list[str]) -> list[str]:
    """Each word once, heads in the order of `HEADS`."""
    order = {name: i for i, name in enumerate(HEADS)}
    return sorted(dict.fromkeys(words), key=lambda w: order.get(w, -1))


def walk(page: Path, parameters: dict[str, Any]) -> None:
    """Run a page's cells in this process."""
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    for cell in notebooks.read_page(page).cells:
        if cell.cell_type != "code":
            continue
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(cell.source, str(page), "exec"), shell.user_ns)
        if "parameters" in cell.metadata.get("tags", []):
            shell.user_ns.update({k: v for k, v in parameters.items() if k in shell.user_ns})


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("only", nargs="+", help="pages, such as bml or bml/training")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--book", type=Path, default=execute.ROOT / "book")
    parser.add_argument(
        "--missing",
        action="store_true",
        help="leave out what has a record (of data sets that are at hand: others count as missing)",
    )
    given = parser.parse_args(arguments)
    parameters = execute.profile_parameters(given.profile)
    plan = Plan(given.missing)
    matplotlib.use("Agg")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        for module in (fslib.data, fslib.study):
            stack.enter_context(mock.patch.object(module, "open_dataset", plan.open_dataset))
        for module in (fslib.measure, fslib.study):
            stack.enter_context(mock.patch.object(module, "measured", plan.note))
        stack.enter_context(mock.patch.object(fslib.study, "fit", plan.train))
        stack.enter_context(
            mock.patch.object(fslib.study, "measured_generalised", plan.note_generalised)
        )
        places = {"FSLIB_RUNS": scratch, "FSLIB_RESULTS": str(Path(scratch, "results"))}
        stack.enter_context(mock.patch.dict(os.environ, places))
        for page in execute.pages(given.book, given.only):
            if "profile" not in notebooks.parameters_of(notebooks.read_page(page)):
                continue  # it labels no record, so it makes none
            print(f"reading {page.relative_to(given.book)}", file=sys.stderr, flush=True)
            walk(page, parameters)
    print("\n".join(plan.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
