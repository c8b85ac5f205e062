"""One setting under which a page trains and scores everything that it compares.

A page names its data, backbone and schedule once; each row of a table is then one call that says
what is different about it, so two rows differ in what their calls differ in and in nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fslib.data import ImageSet, open_dataset
from fslib.generalised.measure import COUNTS, measured_generalised
from fslib.measure import measured
from fslib.packs import BUILT_IN
from fslib.results import Record
from fslib.runs import Config, Run
from fslib.train import fit


def usual_rate(method: str, dataset: str) -> float:
    """The learning rate that this book trains a method with: 0.1 for all, as most papers do.

    On the built-in letters a short training at 0.1 leaves near chance the methods that compare by
    squared distances, and the one whose loss multiplies its gradients by a scale of 5 or 30: they
    get a smaller rate there. Plain classifiers and SCL gain from a larger one. The rates were
    chosen on the validation classes (a student of SCL takes its teacher's).

    Args:
        method: A key of `fslib.methods.METHODS`.
        dataset: As in `fslib.runs.Config`.
    """
    if dataset.startswith(BUILT_IN):
        if method.startswith("protonet"):
            return 0.01
        if method in ("bml", "negative_margin"):
            return 0.02
        if method == "ce" or method.startswith("scl"):
            return 0.2
    return 0.1


@dataclass(frozen=True)
class Study:
    """What all runs of a page share.

    Attributes:
        dataset: Trained and, unless told otherwise, scored on.
        backbone: A key of `fslib.backbones.BACKBONES`.
        epochs: Passes over the training images.
        augment: A key of `fslib.augment.POLICIES`.
        profile: A label of every record.
        seeds: One run each.
        episodes: Of every score.
        backbone_options: Arguments of the backbone.
        training: Any other field of `Config`, such as `{"lr": 0.05}` in place of `usual_rate`.
    """

    dataset: str
    backbone: str
    epochs: int
    augment: str = "crop_flip"
    profile: str = ""
    seeds: Sequence[int] = (0,)
    episodes: int = 10_000
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def data(self) -> dict[str, ImageSet]:
        """The splits of the data set."""
        return open_dataset(self.dataset)

    def but(self, **changes: Any) -> Study:
        """The same study with some fields changed, such as a smaller backbone for a sweep."""
        return dataclasses.replace(self, **changes)

    def config(self, method: str, variant: str = "", seed: int | None = None, **options) -> Config:
        """What to train.

        Args:
            method: A key of `fslib.methods.METHODS`.
            variant: What is changed, "" for the main row; a label of the record.
            seed: The first of `seeds` where None.
            **options: Arguments of the method.
        """
        return Config(
            method,
            dataset=self.dataset,
            backbone=self.backbone,
            options=options,
            backbone_options=dict(self.backbone_options),
            augment=self.augment,
            epochs=self.epochs,
            seed=self.seeds[0] if seed is None else seed,
            profile=self.profile,
            variant=variant,
            **{"lr": usual_rate(method, self.dataset), **self.training},
        )

    def run(self, method: str, variant: str = "", **options: Any) -> Run:
        """The trained network of the first seed, for a look inside; arguments as above."""
        return fit(self.config(method, variant, **options), self.data)

    def records(
        self,
        method: str,
        variant: str = "",
        *,
        head: str = "",
        corruption: str = "",
        images: ImageSet | None = None,
        shots: Sequence[int] = (1, 5),
        **options: Any,
    ) -> list[Record]:
        """A record for each seed, committed or made now; see `fslib.measure.measured`.

        Args:
            method: A key of `fslib.methods.METHODS`.
            variant: What is changed, "" for the main row.
            head: A key of `ALL_HEADS` or a branch of the method; "" is the method's own.
            corruption: A key of `CORRUPTIONS`, or "".
            images: Scored on; the novel classes of the own data set where None.
            shots: Support images of a class.
            **options: Arguments of the method.
        """
        return [
            measured(
                self.config(method, variant, seed, **options),
                self.data,
                images,
                head,
                corruption,
                shots,
                self.episodes,
            )
            for seed in self.seeds
        ]


def generalised_records(
    study: Study,
    method: str,
    variant: str = "",
    *,
    options: Mapping[str, Any] | None = None,
    **how: Any,
) -> dict[str, list[Record]]:
    """Records over old and new classes, one a seed, under each key of `COUNTS`.

    Args:
        study: What all runs share.
        method: `dynamic_fsl` or `dynamic_fsl_traml`.
        variant: What is changed.
        options: Arguments of the method.
        **how: `shots`, `lessons` and `draws` of `fslib.generalised.measure.measured_generalised`.
    """
    made = [
        measured_generalised(
            study.config(method, variant, seed, **(options or {})), study.data, **how
        )
        for seed in study.seeds
    ]
    return {head: [records[head] for records in made] for head in COUNTS}
