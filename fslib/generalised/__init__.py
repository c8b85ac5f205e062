"""Generalised few-shot learning: stage 2 on cached features, and accuracy over old and new."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fslib.data import ImageSet
from fslib.episodes import draw_episodes
from fslib.evaluate import Scores
from fslib.methods.dynamic_fsl import DynamicFSL
from fslib.train import TrainingDiverged

# Numbers compared at a time in evaluation (64 MB), and episodes drawn at a time in training.
CHUNK, DRAWN = 16_000_000, 400
PRIOR = 0.8
"""Probability that an image is of a new class, in the evaluation with a prior."""


def hold_out(images: ImageSet, share: float = 1 / 6) -> tuple[ImageSet, ImageSet]:
    """Part the images of every class: to learn from, and to be asked about.

    Args:
        images: Classes of which some images are to be set aside.
        share: Of each class, its last images; only where the data set has no part of its own
            for this (`original_part`).

    Returns:
        Both parts, with the same classes.
    """
    aside = images.original_part
    if aside is None:
        order = images.labels.argsort(stable=True)
        start = images.counts.cumsum(0) - images.counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order)) - start[images.labels[order]]
        kept = (images.counts * (1 - share)).round().long()
        aside = place >= kept[images.labels]
    kept, asked = (images.take(torch.nonzero(mask).flatten()) for mask in (~aside, aside))
    return tuple(dataclasses.replace(part, original_part=None) for part in (kept, asked))


def train_stage_two(
    method: DynamicFSL,
    features: Tensor,
    labels: Tensor,
    shot: int = 1,
    query: int = 6,
    episodes: int = 4000,
    count: int = 4,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    seed: int = 0,
    progress: bool = True,
) -> tuple[DynamicFSL, list[dict[str, float]]]:
    """Train what writes weight vectors, on episodes over all base classes.

    The features stay; base vectors, generator, scale and margins train. SGD with Nesterov momentum
    0.9; the rate falls to a tenth after two thirds of the episodes.

    Args:
        method: After stage 1; it is left as it is.
        features: (N, d), `method.test_features` of the base images.
        labels: int64 (N,), every base class present.
        shot: Support images k of a class that is played as new.
        query: Query images of every class, old or played as new.
        episodes: How many in all (the authors: 24,000).
        count: Episodes of a step.
        lr: Learning rate.
        weight_decay: On all that trains.
        seed: Of the episodes.
        progress: Show a bar.

    Returns:
        The trained copy, and the means of the parts of its loss over each tenth of the training.

    Raises:
        TrainingDiverged: The loss became NaN or infinite; names the step and the parts.
    """
    method = copy.deepcopy(method).train()
    novel = round(method.classes * 250 / 389)  # the paper's share of classes played as new
    method.generator.requires_grad_(True)
    method.backbone.requires_grad_(False)
    method.stage.fill_(2)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    history: list[dict[str, Tensor]] = []
    steps = max(1, episodes // count)
    for step in tqdm(range(steps), "stage 2", disable=not progress, mininterval=1):
        place = step * count % DRAWN
        if place < count:
            drawn = draw_episodes(
                labels, DRAWN + count, method.classes, shot, query, [seed, step * count // DRAWN]
            )
        part = drawn[place : place + count]
        optimiser.param_groups[0]["lr"] = lr if step < 2 * steps / 3 else lr / 10
        rows = part.support[:, :novel]
        support = features.index_select(0, rows.flatten()).view(*rows.shape, -1)
        asked = features.index_select(0, part.query.flatten()).view(count, -1, features.shape[1])
        loss = method.episode_loss(
            support, part.classes[:, :novel], asked, part.classes.repeat_interleave(query, 1)
        )
        optimiser.zero_grad()
        loss["loss"].backward()
        optimiser.step()
        history.append({key: value.detach() for key, value in loss.items()})
        if not bool(loss["loss"].isfinite()):
            said = ", ".join(f"{key} {float(value):.4g}" for key, value in history[-1].items())
            raise TrainingDiverged(
                f"the loss of stage 2 is not a number at step {step + 1} ({said}): lower its `lr`, "
                "or the `lr` of stage 1, and start again"
            )
    parts = [h for h in np.array_split(np.arange(steps), min(10, steps)) if len(h)]
    means = [
        {key: float(torch.stack([history[i][key] for i in part]).mean()) for key in history[0]}
        for part in parts
    ]
    return method.eval(), means


def with_prior(base: Tensor, novel: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities when the new classes share `prior` and the old ones the rest.

    Args:
        base: Logits (..., C) of old classes.
        novel: Logits (..., J) of new classes.
        prior: Probability of a new class, in (0, 1).
    """
    log = np.log([1 - prior, prior])
    return base.log_softmax(-1) + float(log[0]), novel.log_softmax(-1) + float(log[1])


def _above(own: Tensor, others: Tensor | None, target: Tensor) -> Tensor:
    """How many logits exceed the true one, which is among `own`: int64 (R, Q).

    A logit that is no number exceeds every other, and a true one that is none is never found.
    """
    true = own.gather(-1, target.expand(own.shape[:-1]).unsqueeze(-1))
    # No comparison with NaN holds, so that "above" would let it win.
    above = (~(own <= true)).sum(-1)
    if others is not None:
        above = above + (~(others <= true)).sum(-1)
    return above.masked_fill(~true.isfinite().squeeze(-1), torch.iinfo(above.dtype).max)


def evaluate_generalised(
    method: DynamicFSL,
    base: tuple[Tensor, Tensor],
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    shot: int = 1,
    draws: int = 100,
    tops: Sequence[int] = (1, 5),
) -> dict[tuple[str, int], Scores]:
    """Right answers over old and new classes; an "episode" is a draw of the support.

    All images are counted alike, as the papers do.

    Args:
        method: Trained.
        base: Features (B, d) and labels (B,) of base images that were not trained on.
        support: Features and labels of new images from which the support is drawn.
        query: Features and labels of new images that are asked about.
        shot: Support images n of a class.
        draws: How often the support is drawn anew.
        tops: A right answer is among the first so many.

    Returns:
        Scores by what is counted and one of `tops`. Counted are `novel`, new images among the new
        classes only (the papers' "novel"); `novel_joint` and `base_joint`, new and old images among
        old and new classes; `all`, both of these (the papers' "all"); `all_prior`, the same after
        the new classes were given the probability `PRIOR`.
    """
    # One image more than needed: an episode has to have a query.
    drawn = draw_episodes(support[1], draws, int(support[1].max()) + 1, shot, 1)
    order = drawn.classes.argsort(1)  # place j holds class j
    rows = drawn.support.gather(1, order.unsqueeze(-1).expand(-1, -1, shot))
    numbers = (len(base[0]) + len(query[0])) * (method.classes + rows.shape[1])
    hits: list[Tensor] = []
    with torch.inference_mode():
        old_base, old_query = (method.compare(x, method.weight) for x in (base[0], query[0]))
        for part in rows.split(max(1, CHUNK // numbers)):
            written = method.write(support[0][part])
            new_base, new_query = (method.compare(x, written) for x in (base[0], query[0]))
            prior_base = with_prior(old_base, new_base, PRIOR)
            prior_query = with_prior(old_query, new_query, PRIOR)[::-1]
            wide = old_base.expand(len(part), -1, -1)
            above = (
                _above(new_query, None, query[1]),
                _above(new_query, old_query, query[1]),
                _above(wide, new_base, base[1]),
                _above(*prior_query, query[1]),
                _above(prior_base[0].expand_as(wide), prior_base[1], base[1]),
            )
            hits.append(torch.stack([torch.stack([(a < k).sum(1) for a in above]) for k in tops]))
    asked = {"novel": (len(query[0]), rows.shape[1]), "base": (len(base[0]), method.classes)}
    asked["all"] = tuple(map(sum, zip(*asked.values(), strict=True)))
    scores = {}
    for top, found in zip(tops, torch.cat(hits, -1).numpy(), strict=True):
        novel, among, old, novel_prior, old_prior = found
        counts = {"novel": novel, "novel_joint": among, "base_joint": old}
        counts |= {"all": among + old, "all_prior": novel_prior + old_prior}
        for name, correct in counts.items():
            images, way = asked[name.partition("_")[0]]
            scores[name, top] = Scores(correct, images, way, shot, 0)
    return scores
