"""The book's rows at the papers' width, which no page trains: they are read from their records.

Beside them stand the same rows of the slim ResNet-12, those of the published edition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import Markdown

from fslib.comparison import SeedSpread, compare
from fslib.pages import accuracies, seeds_in_words, shots_in_words, table
from fslib.results import Record, load_records

SHOTS = (1, 5)
SLIM, FULL = "slim", "full width"
# Name of the row to the method, variant and head of its records.
ROWS: Mapping[str, tuple[str, str, str]] = {
    "CE": ("ce", "", ""),
    "ProtoNet": ("protonet", "", ""),
    "BML": ("bml", "", ""),
    "DMF": ("dmf", "", ""),
    "AM3 + TRAML": ("am3_traml", "", "image"),
    "CE, one pooling fewer": ("ce", "no_last_pool", ""),
    "CE + SC": ("scl", "ce_sc", ""),
    "neg-cosine": ("negative_margin", "", ""),
}


def records_of_width(dataset: str, backbone: str, profile: str) -> dict[str, list[Record]]:
    """Records of one backbone under one profile, for the rows that have some.

    Args:
        dataset: Trained and scored on.
        backbone: Its name.
        profile: That the networks were trained under.

    Returns:
        Key of `ROWS` to its records, one a seed, in the order of `ROWS`.
    """
    found = {
        name: load_records(
            dataset=dataset,
            evaluated_on=dataset,
            corruption="",
            backbone=backbone,
            profile=profile,
            method=method,
            variant=variant,
            head=head,
        )
        for name, (method, variant, head) in ROWS.items()
    }
    return {name: _most_episodes(records) for name, records in found.items() if records}


def _most_episodes(records: Sequence[Record]) -> list[Record]:
    """Those of the longest test, as a row can also have been scored on fewer episodes."""
    most = max(record.episodes["episodes"] for record in records)
    return [record for record in records if record.episodes["episodes"] == most]


def _training(groups: Mapping[str, Sequence[Record]]) -> str:
    """How long and on what the rows were trained, as a clause."""
    by_epochs: dict[int, list[str]] = {}
    for name, records in groups.items():
        by_epochs.setdefault(records[0].config["epochs"], []).append(name)
    usual = max(by_epochs, key=lambda epochs: len(by_epochs[epochs]))
    others = "; ".join(
        f"{epochs} for {', '.join(names)}" for epochs, names in by_epochs.items() if epochs != usual
    )
    processors = {
        r.facts["machine"].get("gpu", "processor cores") for rs in groups.values() for r in rs
    }
    where = " or ".join(sorted(processors))
    return f"{usual} epochs" + (f" ({others})" if others else "") + f" on {where}"


def _steps(
    row: str, against: Sequence[str], widths: Mapping[str, Mapping[str, Sequence[Record]]]
) -> dict[str, dict[str, dict[int, tuple[float, float]]]]:
    """The paired differences: compared with what, at which width, at how many shots."""
    spreads = {width: SeedSpread(list(groups.values())) for width, groups in widths.items()}
    return {
        other: {
            width: {k: compare(groups[row], groups[other], k, spreads[width]) for k in SHOTS}
            for width, groups in widths.items()
            if row in groups and other in groups
        }
        for other in against
        if other in widths[FULL]
    }


def _change(
    step: Mapping[str, Mapping[int, tuple[float, float]]], shot: int
) -> tuple[float, float]:
    """How much larger a difference is at full width, with the half-width of its interval."""
    (wide, wide_ci95), (slim, slim_ci95) = step[FULL][shot], step[SLIM][shot]
    return wide - slim, math.hypot(wide_ci95, slim_ci95)


def _beside_slim(
    row: str, steps: Mapping[str, Mapping[str, Mapping[int, tuple[float, float]]]]
) -> list[Any]:
    """The differences at both widths, and which of them the width has moved."""
    rows, moved = [], []
    for other, step in steps.items():
        for shot in SHOTS:
            shown = {f"{row} over": f"{other}, {shots_in_words(shot)}"}
            shown |= {width: "{:+.2f} ± {:.2f}".format(*step[width][shot]) for width in step}
            if SLIM in step:
                change, ci95 = _change(step, shot)
                shown["change"] = f"{change:+.2f} ± {ci95:.2f}"
                if abs(change) > ci95:
                    moved.append(shown[f"{row} over"])
            rows.append(shown)
    if not any(SLIM in step for step in steps.values()):
        return [table(rows)]
    said = (
        f"The change is told apart from zero for {'; '.join(moved)}"
        if moved
        else "No change is told apart from zero"
    )
    return [
        table(rows),
        Markdown(
            f"{said}. The full-width networks also had a longer schedule, so a change is not the "
            "work of the width alone."
        ),
    ]


def at_full_width(dataset: str, row: str, against: Sequence[str]) -> list[Any]:
    """The full-width rows, and how one of them stands to others there and in the slim network.

    Args:
        dataset: Trained and scored on.
        row: A key of `ROWS`.
        against: Keys of `ROWS` that it is compared with.

    Returns:
        What a cell displays: accuracies and differences, with a paragraph each, or a paragraph
        alone where there is no record.

    Raises:
        KeyError: A key is not one of `ROWS`.
    """
    if unknown := {row, *against} - set(ROWS):
        raise KeyError(f"rows of full width are {', '.join(ROWS)}, not {', '.join(unknown)}")
    widths = {
        SLIM: records_of_width(dataset, "resnet12_slim", "cpu"),
        FULL: records_of_width(dataset, "resnet12", "paper"),
    }
    groups = widths[FULL]
    if row not in groups:
        return [Markdown(f"No full-width network of this method is on record for {dataset}.")]
    steps = _steps(row, against, widths)
    text = f"Trained for {_training(groups)}. {seeds_in_words(SeedSpread(list(groups.values())))}"
    return [
        table(accuracies(groups)),
        Markdown(text),
        *(_beside_slim(row, steps) if steps else []),
    ]
