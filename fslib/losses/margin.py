"""Margins on logits: one table serves the adaptive, the naive, the cosine and the negative margin.

Let D[i, c] be the logit of query i for class c and y its true class. A margin table M (C, C) is
added to the logits of the WRONG classes before the softmax,

    Z[i, c] = D[i, c] + M[y, c]  for c != y,      loss = CE(Z, y),

so that a positive margin asks the true class to win by more than a hair; M = 0 is plain
cross-entropy and no margin is left at test. Li et al. (CVPR 2020) fill the table three ways:

    naive            M[y, c] = m
    class-relevant   M[y, c] = alpha cos(e_y, e_c) + beta           (e_c: word vector of class c)
    task-relevant    M[y, .] = G([cos(e_y, e_c)] for c != y)        (G: a small network)

A softmax ignores a constant: adding m to every wrong logit is subtracting m from the true one. So
the naive margin is CosFace's at m / s, and Negative Margin's loss is this one at s m.

No margin can be learned by plain descent: dLoss / dM[y, c] is the softmax of a wrong class, never
negative, so descent lowers every margin. `MODES` are five answers to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def add_margins(logits: Tensor, target: Tensor, margins: Tensor | float) -> Tensor:
    """Add to every wrong logit the margin between the true class and that class.

    Args:
        logits: (..., Q, C).
        target: int64 (..., Q), the true classes y.
        margins: A number, or a table (..., C, C): row y is added where y is true. Its diagonal
            is ignored.

    Returns:
        (..., Q, C).
    """
    table = torch.as_tensor(margins, dtype=logits.dtype, device=logits.device)
    table = table.expand(*logits.shape[:-2], logits.shape[-1], logits.shape[-1])
    true = target.unsqueeze(-1)
    rows = table.gather(-2, true.expand_as(logits))
    return logits + rows.scatter(-1, true, 0.0)


def lower_true(similarity: Tensor, target: Tensor, scale: Tensor | float, margin: float) -> Tensor:
    """Logits with the true class's similarity lowered: `scale * (S - margin * onehot(y))`.

    CosFace on cosines (Wang et al. 2018, margin > 0) and Negative Margin (Liu et al. 2020, < 0).

    Args:
        similarity: (..., Q, C), cosines or dot products.
        target: int64 (..., Q).
        scale: s.
        margin: m, of any sign.
    """
    true = functional.one_hot(target, similarity.shape[-1]).to(similarity.dtype)
    return scale * (similarity - margin * true)


def turn_true(cosines: Tensor, target: Tensor, scale: Tensor | float, margin: float) -> Tensor:
    """Logits with the true class's angle widened: `scale * cos(theta_y + margin)` (ArcFace).

    Past theta = pi - margin that cosine would rise again; there the line
    `cos(theta) - margin * sin(margin)` takes over, so the loss never rewards a wider angle.

    Args:
        cosines: (..., Q, C).
        target: int64 (..., Q).
        scale: s.
        margin: In radians, 0 to pi.
    """
    # The slope of the arc cosine is infinite at its two ends.
    theta = cosines.clamp(-1 + 1e-7, 1 - 1e-7).acos()
    turned = torch.where(
        theta + margin <= math.pi,
        torch.cos(theta + margin),
        cosines - margin * math.sin(margin),
    )
    true = functional.one_hot(target, cosines.shape[-1]).bool()
    return scale * torch.where(true, turned, cosines)


def word_similarity(words: Tensor) -> Tensor:
    """Cosine of every two word vectors: (..., C, w) to (..., C, C); 0 with a vector of zeros."""
    words = functional.normalize(words.float(), dim=-1)
    return words @ words.transpose(-1, -2)


def wrong(table: Tensor) -> Tensor:
    """The entries beside the diagonal, (..., C, C) to (..., C, C - 1)."""
    ways = table.shape[-1]
    beside = ~torch.eye(ways, dtype=torch.bool, device=table.device)
    return table[..., beside].unflatten(-1, (ways, ways - 1))


class NaiveMargin(nn.Module):
    """The same margin between any two classes (NAML, Eq. 2)."""

    def __init__(self, way: int, size: float = 1.0) -> None:
        super().__init__()
        self.size = size

    def forward(self, similarity: Tensor) -> Tensor:
        """Table of the shape of `similarity`."""
        return torch.full_like(similarity, self.size)


class ClassMargin(nn.Module):
    """A margin that grows with the similarity of two class names (CRAML, Eq. 3 and 4)."""

    def __init__(self, way: int, alpha: float = 1.0, beta: float = 0.1) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, similarity: Tensor) -> Tensor:
        """Table of the shape of `similarity`."""
        return self.alpha * similarity + self.beta


class TaskMargin(nn.Module):
    """Margins that depend on all classes of the task (TRAML, Eq. 5 and 6).

    The generator G is two times linear, batch normalisation, ReLU, as the paper has it. Its batch
    is one row a class and episode.

    Args:
        way: Classes of a task; G maps the way - 1 similarities of a class to as many margins.
        hidden: Width of G; narrower than way - 1 it could not even hand its inputs on.
        order: How the similarities are lined up. `literal`: by the number of the class in the
            task, so shuffling the classes changes the margins; `sorted`: most similar first;
            `shared`: one network for every pair, fed with its similarity and the row's mean,
            largest and smallest.
        activation: The last one: `relu` (margins of 0 or more) or `softplus` (above 0).
    """

    def __init__(
        self, way: int, hidden: int = 64, order: str = "literal", activation: str = "relu"
    ) -> None:
        super().__init__()
        last = {"relu": nn.ReLU, "softplus": nn.Softplus}
        if order not in ("literal", "sorted", "shared") or activation not in last:
            raise ValueError(
                "order is one of literal, sorted, shared and activation of relu, softplus, "
                f"not {order!r} and {activation!r}"
            )
        self.order = order
        inputs, outputs = (4, 1) if order == "shared" else (way - 1, way - 1)
        self.generator = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
            nn.BatchNorm1d(outputs),
            last[activation](),
        )

    def forward(self, similarity: Tensor) -> Tensor:
        """Table (..., way, way) of similarities (..., way, way); not symmetric, diagonal 0."""
        rows = wrong(similarity)
        inputs = rows
        if self.order == "sorted":
            inputs, place = rows.sort(dim=-1, descending=True, stable=True)
        elif self.order == "shared":
            about = (rows.mean(-1), rows.amax(-1), rows.amin(-1))
            inputs = torch.stack([rows, *(a.unsqueeze(-1).expand_as(rows) for a in about)], -1)
        made = self.generator(inputs.flatten(0, -2)).view_as(rows)
        if self.order == "sorted":
            made = torch.zeros_like(made).scatter(-1, place, made)
        beside = ~torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
        table = similarity.new_zeros(similarity.shape)
        table[..., beside] = made.flatten(-2).to(table.dtype)
        return table


TABLES: dict[str, type[nn.Module]] = {
    "naive": NaiveMargin,
    "class": ClassMargin,
    "task": TaskMargin,
}
"""Ways to fill the table."""

OF_TRUE = {"angular": turn_true, "cosine": lower_true}
"""Margins of face recognition, on the true logit alone."""

KINDS = ("none", *TABLES, *OF_TRUE)

MODES = ("fixed", "joint", "reversal", "bilevel", "floor")
"""How the margins themselves learn.

- `fixed`: not at all.
- `joint`: by descent on the same loss, as the paper's text has it; they collapse.
- `reversal`: by ascent, held back by a penalty on their square. The margin of a pair settles where
  the pair is confused, which is what the paper wants of it.
- `bilevel`: so that a step of the network on a loss with margins lowers a loss without margins,
  on other episodes.
- `floor`: as `joint`, but none falls below a floor.
"""


def held(table: Tensor, mode: str, floor: float = 0.5) -> Tensor:
    """The table as the loss sees it: its values, with the gradient that `mode` grants."""
    if mode in ("fixed", "bilevel"):
        return table.detach()
    if mode == "reversal":
        return 2 * table.detach() - table  # the values of the table, minus its gradient
    return table.clamp(min=floor) if mode == "floor" else table


def look_ahead(
    lesson: Tensor, exam: Tensor, network: Sequence[Tensor], margins: Sequence[Tensor]
) -> Tensor:
    """Zero, with the gradient in the margins of what one step of training does to an exam.

    After a short step of descent on the lesson L (with margins mu) the exam E has changed by
    -rate * <grad E, grad L(mu)>, gradients in the network's weights. This is the derivative of
    that product in mu, for a rate of 1; the network's own gradient is left alone.

    Args:
        lesson: Scalar loss with margins that carry their gradient.
        exam: Scalar loss of other episodes, without margins.
        network: Weights that take the step.
        margins: Parameters of the margins.
    """
    step = torch.autograd.grad(lesson, network, create_graph=True)
    wish = torch.autograd.grad(exam, network, retain_graph=True)
    change = -sum((a * b.detach()).sum() for a, b in zip(step, wish, strict=True))
    slopes = torch.autograd.grad(change, margins, retain_graph=True)
    line = sum((m * slope.detach()).sum() for m, slope in zip(margins, slopes, strict=True))
    return line - line.detach()


class MarginLoss(nn.Module):
    """Cross-entropy with margins of any kind, learned in any mode.

    Args:
        kind: One of `KINDS`; `none` is plain cross-entropy.
        way: Classes of a task.
        mode: One of `MODES`; of no meaning where nothing is learned.
        penalty: Weight of the mean squared margin, for `reversal`; (way - 1) / 19 where None, 1
            for 20 classes. In balance a margin is (way - 1) x (chance of that wrong class) /
            (2 x penalty); below a penalty of about (way - 1) / 20 a wide margin confuses its pair
            further and the margins run away.
        floor: Smallest margin, for `floor`.
        size: Of the naive (default 1), angular (0.3 radians) or cosine margin (0.1).
        **options: Of `ClassMargin` or `TaskMargin`.

    Raises:
        ValueError: A name is not known.
    """

    def __init__(
        self,
        kind: str,
        way: int,
        mode: str = "reversal",
        penalty: float | None = None,
        floor: float = 0.5,
        size: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if kind not in KINDS or mode not in MODES:
            raise ValueError(
                f"a margin is one of {', '.join(KINDS)}, trained {', '.join(MODES)}, "
                f"not {kind!r} and {mode!r}"
            )
        self.kind, self.mode, self.floor = kind, mode, floor
        self.penalty = (way - 1) / 19 if penalty is None else penalty
        default = {"angular": 0.3, "cosine": 0.1}.get(kind, 1.0)
        self.size = default if size is None else size
        if kind == "naive":
            options["size"] = self.size
        if options and kind not in TABLES:
            raise ValueError(f"margin {kind!r} does not take the options {', '.join(options)}")
        self.table = TABLES[kind](way, **options) if kind in TABLES else None
        # The modes differ only where there is something to learn.
        self.learned = self.table is not None and any(True for _ in self.table.parameters())

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        similarity: Tensor | None = None,
        scale: Tensor | float = 1.0,
        network: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """The loss and what is worth watching.

        Args:
            logits: (E, Q, way) without margin; for angular and cosine margins `scale` x cosine.
            target: int64 (E, Q).
            similarity: (E, way, way) or (way, way), `word_similarity` of the classes.
            scale: s of those cosines.
            network: Weights that `bilevel` looks ahead with.

        Returns:
            `loss`; where there is a table also its `mean_margin`, and the `gap` it has to be
            compared with, the median of true minus best wrong logit; `alpha` and `beta`.

        Raises:
            ValueError: `bilevel` has a single episode, so no other one to look ahead on.
        """
        if self.kind in OF_TRUE:
            logits = OF_TRUE[self.kind](logits / scale, target, scale, self.size)
        if self.table is None:
            return {"loss": _cross_entropy(logits, target).mean()}
        if similarity is None:
            similarity = logits.new_zeros(logits.shape[-1], logits.shape[-1])
        table = self.table(similarity)
        mode = self.mode if self.learned else "fixed"
        used = held(table, mode, self.floor)
        loss = _cross_entropy(add_margins(logits, target, used), target).mean()
        if mode == "reversal":
            loss = loss + self.penalty * wrong(table).square().mean()
        if mode == "bilevel" and torch.is_grad_enabled():
            half = len(logits) // 2
            if half < 1:
                raise ValueError("bilevel margins look ahead on a second episode: set `count` to 2")
            lesson = _cross_entropy(add_margins(logits, target, table), target)[:half].mean()
            exam = _cross_entropy(logits, target)[half:].mean()
            loss = loss + look_ahead(lesson, exam, network, list(self.table.parameters()))
        with torch.no_grad():
            true = target.unsqueeze(-1)
            best_wrong = logits.scatter(-1, true, -torch.inf).amax(-1)
            gap = (logits.gather(-1, true).squeeze(-1) - best_wrong).median()
        now = {n: p.detach().clone() for n, p in self.table.named_parameters() if p.ndim == 0}
        return {"loss": loss, "mean_margin": wrong(used).mean(), "gap": gap, **now}


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of every query, (E, Q, way) to (E, Q)."""
    return functional.cross_entropy(logits.transpose(-1, -2), target, reduction="none")
