"""Small things that every page of the book needs: showing code, quoting papers, one table style."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from fslib.comparison import SeedSpread, compare, mean_over_seeds
from fslib.paths import ROOT
from fslib.results import Record


def show_source(*things: Any) -> Markdown:
    """The source of functions, methods or classes, so that a page never holds a second copy.

    Args:
        *things: What `inspect.getsource` understands.

    Returns:
        Highlighted code, in JupyterLab and in the rendered book.
    """
    blocks = []
    for thing in things:
        file = inspect.getsourcefile(thing) or ""
        lines, start = inspect.getsourcelines(thing)
        indent = len(lines[0]) - len(lines[0].lstrip())
        code = "".join(line[indent:] if line.strip() else line for line in lines).rstrip()
        place = file[file.rfind("fslib") :]
        blocks.append(f"`{place}`, line {start}:\n\n```python\n{code}\n```")
    return Markdown("\n\n".join(blocks))


def table(rows: pd.DataFrame | Sequence[dict[str, Any]], digits: int = 2) -> HTML:
    """A table without row numbers.

    Args:
        rows: A frame, or one dictionary a row.
        digits: Decimals of plain numbers.
    """
    shown = pd.DataFrame(rows).to_html(
        index=False, border=0, na_rep="", float_format=f"{{:.{digits}f}}".format
    )
    return HTML(shown.replace(" ± ", "&nbsp;±&nbsp;"))  # a number stays with its interval


def published(dataset: str, settings: Sequence[str] = (), paper: str | None = None) -> pd.DataFrame:
    """Numbers that the papers print, with the table each stands in.

    Args:
        dataset: As the papers write it, such as `CIFAR-FS`.
        settings: Only these, such as `5-way 1-shot`; all where empty.
        paper: `bml`, `dmf`, `margins`, `scl` or `negative_margin`; all where None.

    Returns:
        Columns paper, method, backbone, dataset, setting, accuracy, ci95, source.
    """
    table = pd.read_csv(ROOT / "results" / "published.csv")
    keep = table["dataset"].eq(dataset)
    if settings:
        keep &= table["setting"].isin(list(settings))
    if paper:
        keep &= table["paper"].eq(paper)
    return table[keep].reset_index(drop=True)


def in_words(first: str, second: str, difference: tuple[float, float], unit: str = "points") -> str:
    """A paired difference as a sentence that claims no more than its interval allows.

    Args:
        first: What is compared.
        second: With what.
        difference: Mean of first - second and the half-width of its 95 % interval.
        unit: Of both numbers.
    """
    mean, ci95 = difference
    if abs(mean) <= ci95:
        return f"{first} and {second} cannot be told apart ({mean:+.2f} ± {ci95:.2f} {unit})"
    side = "above" if mean > 0 else "below"
    return f"{first} is {abs(mean):.2f} ± {ci95:.2f} {unit} {side} {second}"


def shots_in_words(shot: int) -> str:
    """`1 shot`, `5 shots`."""
    return f"{shot} shot{'' if shot == 1 else 's'}"


def at_each_shot(
    first: str,
    second: str,
    made: Sequence[Record],
    against: Sequence[Record],
    shots: Sequence[int] = (1, 5),
    spread: SeedSpread | None = None,
) -> str:
    """`in_words` for the paired difference of two groups of records, at each number of shots.

    Args:
        first: Name of what is compared.
        second: Name of what it is compared with.
        made: Records of the first, one a seed.
        against: Records of the second.
        shots: A clause each.
        spread: Of the seeds, which the intervals then count; see `fslib.comparison.compare`.
    """
    return "; ".join(
        f"at {shots_in_words(shot)} "
        + in_words(first, second, compare(made, against, shot, spread))
        for shot in shots
    )


def _with_interval(mean: float, ci95: float, sign: str = "") -> str:
    return f"{mean:{sign}.2f}" + ("" if pd.isna(ci95) else f" ± {ci95:.2f}")


def accuracies(
    groups: Mapping[str, Sequence[Record]], shots: Sequence[int] = (1, 5)
) -> pd.DataFrame:
    """A table of accuracies with their 95 % intervals over episodes.

    Args:
        groups: Name of the row to its records, one a seed.
        shots: A column each.

    Returns:
        Columns "", `<shot>-shot` for each shot and, where a row has several seeds,
        `seeds (spread)`: their number and the standard deviation between them at each shot.
    """
    rows = []
    for name, records in groups.items():
        found = [mean_over_seeds(records, shot) for shot in shots]
        row = {"": name}
        row |= {
            f"{shot}-shot": _with_interval(mean, ci95)
            for shot, (mean, ci95, _) in zip(shots, found, strict=True)
        }
        if len(records) > 1:
            spread = " / ".join(f"{value[2]:.2f}" for value in found)
            row["seeds (spread)"] = f"{len(records)} ({spread})"
        rows.append(row)
    return pd.DataFrame(rows)


def gains(
    pairs: Mapping[str, tuple[Sequence[Record], Sequence[Record]]],
    shots: Sequence[int] = (1, 5),
    spread: SeedSpread | None = None,
) -> pd.DataFrame:
    """Paired differences, as `fslib.plots.interval_plot` draws them.

    Args:
        pairs: Label to (records, records it is compared with).
        shots: A row each.
        spread: Of the seeds, which the intervals then count.

    Returns:
        Columns label, mean, ci95 in percentage points.
    """
    rows = []
    for label, (first, second) in pairs.items():
        for shot in shots:
            mean, ci95 = compare(first, second, shot, spread)
            rows.append({"label": f"{label}, {shot} shot", "mean": mean, "ci95": ci95})
    return pd.DataFrame(rows)


def gain_table(
    pairs: Mapping[str, tuple[Sequence[Record], Sequence[Record]]],
    shots: Sequence[int] = (1, 5),
    spread: SeedSpread | None = None,
) -> pd.DataFrame:
    """The paired differences of `gains` in numbers, a column for each shot."""
    return pd.DataFrame(
        [
            {"": label}
            | {
                f"{shot}-shot": _with_interval(*compare(first, second, shot, spread), "+")
                for shot in shots
            }
            for label, (first, second) in pairs.items()
        ]
    )


def above_chance(name: str, records: Sequence[Record], shot: int = 1) -> str:
    """How far a method has come from guessing, with a warning below twice the rate of guessing.

    Args:
        name: Of the method.
        records: Its records, one a seed.
        shot: Support images of a class.
    """
    mean, ci95, _ = mean_over_seeds(records, shot)
    chance = 100 / records[0].episodes["way"]
    said = (
        f"At {shots_in_words(shot)} {name} reaches {mean:.2f} ± {ci95:.2f} %; guessing gives "
        f"{chance:.0f} %"
    )
    if mean < 2 * chance:
        return f"{said}. So short a training says little for or against any of its parts."
    return f"{said}."


def earned(
    made: Sequence[Record],
    against: Sequence[Record],
    shots: Sequence[int] = (1, 5),
    spread: SeedSpread | None = None,
) -> str:
    """Whether a part earns its place, as far as the intervals of the paired differences tell.

    Args:
        made: Records with the part, one a seed.
        against: Records without it.
        shots: All of them have a say.
        spread: Of the seeds, which the intervals then count.

    Returns:
        `yes` (better at one at least, worse at none), `no`, `both ways` or `cannot be told`.
    """
    pairs = [compare(made, against, shot, spread) for shot in shots]
    better = any(mean > ci95 for mean, ci95 in pairs)
    worse = any(mean < -ci95 for mean, ci95 in pairs)
    if better:
        return "both ways" if worse else "yes"
    return "no" if worse else "cannot be told"


def verdicts(
    parts: Mapping[str, tuple[Sequence[Record], Sequence[Record]]],
    shots: Sequence[int] = (1, 5),
    spread: SeedSpread | None = None,
) -> pd.DataFrame:
    """What each part brings, as `gain_table`, and whether it has `earned` its place."""
    found = gain_table(parts, shots, spread)
    found["earns its place here"] = [earned(*pair, shots, spread) for pair in parts.values()]
    return found


def seeds_in_words(spread: SeedSpread, shots: Sequence[int] = (1, 5)) -> str:
    """What the seed alone does to an accuracy, and that the intervals of a page count it.

    Args:
        spread: Measured on groups of runs that differ in their seed alone.
        shots: A number each.
    """
    if not spread.degrees:
        return (
            "Every network has one seed, so intervals count the episodes alone: another seed may "
            "move a difference further than that."
        )
    several = [group for group in spread.groups if len(group) > 1]
    apart = " and ".join(f"{spread.deviation(k):.2f} at {shots_in_words(k)}" for k in shots)
    networks = "one network" if len(several) == 1 else f"{len(several)} networks"
    alone = " and ".join(f"{spread.half_width(k):.2f}" for k in shots)
    precisions = {record.facts["precision"] for group in several for record in group}
    return (
        f"Trained anew from another seed, a network scores differently: by {apart} (pooled "
        f"standard deviation in points, from {sum(map(len, several))} runs of {networks}). So two "
        f"runs of the *same* network may lie up to {alone} points apart by chance alone (95 %), "
        "and the intervals below count this beside the episodes."
        + (
            f" Some of these runs were computed in {' and some in '.join(sorted(precisions))}; "
            "what that does to a run is part of the number."
            if len(precisions) > 1
            else ""
        )
    )


def beside_published(
    paper: pd.DataFrame,
    groups: Mapping[str, Sequence[Record]],
    source: str,
    shots: Sequence[int] = (1, 5),
) -> pd.DataFrame:
    """Published accuracies with our own below them, in one table.

    Args:
        paper: Rows of `published`, of settings such as `5-way 1-shot`.
        groups: Name of the row to its records, one a seed.
        source: What stands in the column `source` of our rows.
        shots: A column each.
    """
    shown = [_with_interval(*pair) for pair in zip(paper["accuracy"], paper["ci95"], strict=True)]
    printed = (
        paper.assign(shown=shown)
        .pivot(index=["method", "backbone", "source"], columns="setting", values="shown")
        .reset_index()
        .rename_axis(columns=None)
    )
    ours = [
        {"method": name, "backbone": records[0].backbone, "source": source}
        | {
            f"5-way {shot}-shot": _with_interval(*mean_over_seeds(records, shot)[:2])
            for shot in shots
        }
        for name, records in groups.items()
    ]
    return pd.concat([printed, pd.DataFrame(ours)])


def unlike_speeds(records: Iterable[Record]) -> str:
    """What to say of speeds that were not measured alike; "" where they were.

    Args:
        records: Those whose speeds are compared.
    """
    facts = [record.facts for record in records]
    unlike = []
    if len({f["precision"] for f in facts}) > 1:
        unlike.append("with the same precision")
    # No core counts a GPU's work, and the clock only where no other run shares it.
    if any("gpu" in f.get("machine", {}) for f in facts):
        unlike.append("on processor cores alone")
    if not unlike:
        return ""
    return (
        f"These rows were not all computed {' and '.join(unlike)}, so their speeds cannot be "
        "compared; `benchmarks/` holds a fair comparison. "
    )


def costs(groups: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """What training cost, from the facts of the first record of each row.

    Args:
        groups: Name of the row to its records, one a seed.

    Returns:
        Columns "", images seen, precision of the arithmetic, core-minutes and images a core-second
        (validation not counted); with a GPU, whose work no core counts, also minutes and images a
        second by the clock, and what each row was computed on.
    """
    facts = {name: records[0].facts for name, records in groups.items()}
    columns = {
        "": list(facts),
        "images seen": [f"{f['images_seen']:,}" for f in facts.values()],
        "precision": [f["precision"] for f in facts.values()],
        "core-minutes": [f["cpu_seconds"] / 60 for f in facts.values()],
        "images a core-second": [f["images_seen"] / f["cpu_seconds"] for f in facts.values()],
    }
    if any("gpu" in f.get("machine", {}) for f in facts.values()):
        columns["minutes"] = [f["seconds"] / 60 for f in facts.values()]
        columns["images a second"] = [f["images_seen"] / f["seconds"] for f in facts.values()]
        columns["computed on"] = [f["machine"].get("gpu", "cores") for f in facts.values()]
    return pd.DataFrame(columns)
