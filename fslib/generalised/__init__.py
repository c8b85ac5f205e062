"""Generalised few-shot learning: stage 2 on cached features, and accuracy over old and new."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fslib.data import ImageSet
from fslib.episodes import draw_episodes
from fslib.methods.dynamic_fsl import DynamicFSL

# Numbers compared at a time in evaluation (64 MB), and episodes drawn at a time in training.
CHUNK, DRAWN = 16_000_000, 400


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
    novel: int | None = None,
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
        novel: How many are; the paper's 250 of 389 in proportion where None.
        query: Query images of every class, old or played as new.
        episodes: How many in all (the authors: 24,000).
        count: Episodes of a step.
        lr: Learning rate.
        weight_decay: On all that trains.
        seed: Of the episodes.
        progress: Show a bar.

    Returns:
        The trained copy, and the means of the parts of its loss over each tenth of the training.
    """
    method = copy.deepcopy(method).train()
    novel = round(method.classes * 250 / 389) if novel is None else novel
    if not 1 <= novel < method.classes:
        raise ValueError(f"of {method.classes} base classes 1 to {method.classes - 1} can be new")
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
    parts = [h for h in np.array_split(np.arange(steps), min(10, steps)) if len(h)]
    means = [
        {key: float(torch.stack([history[i][key] for i in part]).mean()) for key in history[0]}
        for part in parts
    ]
    return method.eval(), means


@dataclass(frozen=True)
class Generalised:
    """Accuracy in percent of every draw of the support, (R,) each.

    Attributes:
        novel: New images among the new classes only (the papers' "novel").
        novel_among_all: New images among old and new classes.
        base_among_all: Old images among old and new classes.
        all: All images among old and new classes (the papers' "all").
        all_with_prior: The same, after the new classes were given a probability of their own.
    """

    novel: np.ndarray
    novel_among_all: np.ndarray
    base_among_all: np.ndarray
    all: np.ndarray
    all_with_prior: np.ndarray


def with_prior(base: Tensor, novel: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities when the new classes share `prior` and the old ones the rest.

    Args:
        base: Logits (..., C) of old classes.
        novel: Logits (..., J) of new classes.
        prior: Probability of a new class, in (0, 1).
    """
    log = np.log([1 - prior, prior])
    return base.log_softmax(-1) + float(log[0]), novel.log_softmax(-1) + float(log[1])


def _found(own: Tensor, others: Tensor | None, target: Tensor, top: int) -> Tensor:
    """Whether fewer than `top` logits exceed the true one, which is among `own`: (R, Q)."""
    true = own.gather(-1, target.expand(own.shape[:-1]).unsqueeze(-1))
    above = (own > true).sum(-1)
    if others is not None:
        above = above + (others > true).sum(-1)
    return above < top


def evaluate_generalised(
    method: DynamicFSL,
    base: tuple[Tensor, Tensor],
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    shot: int = 1,
    draws: int = 100,
    top: int = 1,
    prior: float = 0.8,
    seed: int = 0,
) -> Generalised:
    """Accuracy over old and new classes, averaged over images as the papers do.

    Args:
        method: Trained.
        base: Features (B, d) and labels (B,) of base images that were not trained on.
        support: Features and labels of new images from which the support is drawn.
        query: Features and labels of new images that are asked about.
        shot: Support images n of a class.
        draws: How often the support is drawn anew.
        top: A right answer is among the first so many.
        prior: Probability of a new class for `all_with_prior`.
        seed: Of the draws.
    """
    # One image more than needed: an episode has to have a query.
    drawn = draw_episodes(support[1], draws, int(support[1].max()) + 1, shot, 1, seed)
    order = drawn.classes.argsort(1)  # place j holds class j
    rows = drawn.support.gather(1, order.unsqueeze(-1).expand(-1, -1, shot))
    numbers = (len(base[0]) + len(query[0])) * (method.classes + rows.shape[1])
    hits: list[Tensor] = []
    with torch.inference_mode():
        old_base, old_query = (method.compare(x, method.weight) for x in (base[0], query[0]))
        for part in rows.split(max(1, CHUNK // numbers)):
            written = method.write(support[0][part])
            new_base, new_query = (method.compare(x, written) for x in (base[0], query[0]))
            prior_base = with_prior(old_base, new_base, prior)
            prior_query = with_prior(old_query, new_query, prior)[::-1]
            wide = old_base.expand(len(part), -1, -1)
            found = (
                _found(new_query, None, query[1], top),
                _found(new_query, old_query, query[1], top),
                _found(wide, new_base, base[1], top),
                _found(*prior_query, query[1], top),
                _found(prior_base[0].expand_as(wide), prior_base[1], base[1], top),
            )
            hits.append(torch.stack([f.double().sum(1) for f in found]))
    novel, among, old, novel_prior, old_prior = torch.cat(hits, 1).numpy() * 100
    new_images, images = len(query[0]), len(query[0]) + len(base[0])
    return Generalised(
        novel / new_images,
        among / new_images,
        old / len(base[0]),
        (among + old) / images,
        (novel_prior + old_prior) / images,
    )
