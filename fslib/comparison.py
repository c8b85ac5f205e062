"""What groups of records say about each other: means over seeds, paired differences, seed spread.

Two things make a difference of accuracies uncertain. Other episodes would give another number;
pairing the same episodes shrinks that part to a tenth of a point. And the same training from
another seed would give another network, which pairing does not see. `compare` counts the second
part where it is told how far seeds lie apart (`SeedSpread`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from fslib.evaluate import interval
from fslib.results import Record, RecordMissing, load_scores


def mean_over_seeds(records: Sequence[Record], shot: int) -> tuple[float, float, float]:
    """Mean accuracy of several seeds scored on the same episodes.

    Returns:
        Mean in percent; half-width of the 95 % interval over episodes of the seeds' average;
        standard deviation between seeds (nan for one seed).
    """
    values = np.stack([load_scores(record, shot).accuracy for record in records])
    mean, ci95 = interval(values.mean(0))
    spread = values.mean(1).std(ddof=1) if len(values) > 1 else float("nan")
    return mean, ci95, float(spread)


@dataclass(frozen=True)
class SeedSpread:
    """How far runs that differ in nothing but their seed lie apart.

    Pooled over groups of such runs, so that rows of one seed can be judged by what the seed did to
    other rows of the same backbone, data and length of training. Pooling takes the spread to be
    the same for all of them. Without a group of two seeds nothing is known, and every half-width is
    zero.

    Attributes:
        groups: Records of each group, one a seed.
    """

    groups: Sequence[Sequence[Record]]

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the pooled deviation."""
        return sum(len(group) - 1 for group in self.groups)

    def deviation(self, shot: int) -> float:
        """Standard deviation between seeds, pooled, in percentage points; nan if unknown."""
        if not self.degrees:
            return float("nan")
        means = [[r.accuracy[str(shot)]["mean"] for r in group] for group in self.groups]
        return float(np.sqrt(sum(np.var(m) * len(m) for m in means) / self.degrees))

    def half_width(self, shot: int, first: int = 1, second: int = 1) -> float:
        """Of the 95 % interval of a difference that the seeds alone make (Student's t).

        Args:
            shot: Support images of a class.
            first: Seeds that one side is averaged over.
            second: Seeds of the other side.
        """
        if not self.degrees:
            return 0.0
        error = self.deviation(shot) * np.sqrt(1 / first + 1 / second)
        return float(error * stdtrit(self.degrees, 0.975))


def compare(
    first: Sequence[Record],
    second: Sequence[Record],
    shot: int,
    spread: SeedSpread | None = None,
) -> tuple[float, float]:
    """Paired difference of two groups of records, each averaged over its seeds.

    Args:
        first: Records of one side, one a seed.
        second: Records of the other side, scored on the same episodes.
        shot: Support images of a class.
        spread: What to count for the seeds, beside the episodes; nothing where None, and nothing
            where both sides are tests of the same networks.

    Returns:
        How much better `first` is and the half-width of its 95 % interval, in percentage points.

    Raises:
        RecordMissing: A group is empty.
        ValueError: The two were not scored on the same episodes.
    """
    if not first or not second:
        raise RecordMissing("one side has no records: measure it with `python -m fslib.measure`")
    sides = [[load_scores(r, shot) for r in group] for group in (first, second)]
    keys = {(len(s.correct), s.queries, s.way, s.seed) for group in sides for s in group}
    digests = {r.evaluated_digest for group in (first, second) for r in group}
    if len(keys) != 1 or len(digests) != 1:
        raise ValueError("records of different episodes or images cannot be paired")
    means = [np.mean([s.accuracy for s in group], axis=0) for group in sides]
    mean, ci95 = interval(means[0] - means[1])
    if spread is not None and _networks(first) != _networks(second):
        ci95 = float(np.hypot(ci95, spread.half_width(shot, len(first), len(second))))
    return mean, ci95


def _networks(records: Sequence[Record]) -> list[str]:
    """Which runs were scored, by the name of each."""
    return sorted(record.run for record in records)
