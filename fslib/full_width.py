"""The book's rows at the papers' width, which no page trains: they are read from their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import HTML, Markdown

from fslib.comparison import SeedSpread
from fslib.pages import accuracies, at_each_shot, seeds_in_words, table
from fslib.results import Record, load_records

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


def full_width_records(dataset: str) -> dict[str, list[Record]]:
    """Records of the full-width ResNet-12 under the profile `paper`, for the rows that have some.

    Args:
        dataset: Trained and scored on.

    Returns:
        Key of `ROWS` to its records, one a seed, in the order of `ROWS`.
    """
    found = {
        name: load_records(
            dataset=dataset,
            evaluated_on=dataset,
            corruption="",
            backbone="resnet12",
            profile="paper",
            method=method,
            variant=variant,
            head=head,
        )
        for name, (method, variant, head) in ROWS.items()
    }
    return {name: records for name, records in found.items() if records}


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


def at_full_width(dataset: str, row: str, against: Sequence[str]) -> list[Any]:
    """A table of the full-width rows, and what it says of one of them.

    Args:
        dataset: Trained and scored on.
        row: A key of `ROWS`.
        against: Keys of `ROWS` that it is compared with.

    Returns:
        What a cell displays: a table and a paragraph, or a paragraph alone where there is none.

    Raises:
        KeyError: A key is not one of `ROWS`.
    """
    if unknown := {row, *against} - set(ROWS):
        raise KeyError(f"rows of full width are {', '.join(ROWS)}, not {', '.join(unknown)}")
    groups = full_width_records(dataset)
    if row not in groups:
        return [Markdown(f"No full-width network of this method is on record for {dataset}.")]
    spread = SeedSpread(list(groups.values()))
    compared = "; ".join(
        at_each_shot(row, other, groups[row], groups[other], spread=spread)
        for other in against
        if other in groups
    )
    rows: HTML = table(accuracies(groups))
    return [
        rows,
        Markdown(f"Trained for {_training(groups)}: {compared}. {seeds_in_words(spread)}"),
    ]
