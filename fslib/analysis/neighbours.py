"""Nearest neighbours in feature space."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(
    query: Tensor, gallery: Tensor, k: int, skip_self: bool = False
) -> tuple[Tensor, Tensor]:
    """The k gallery rows most similar to each query, by the cosine.

    Args:
        query: (Q, d).
        gallery: (G, d).
        k: Neighbours wanted.
        skip_self: Query i is gallery row i and is not its own neighbour.

    Returns:
        Row numbers int64 (Q, k), most similar first, and their similarities (Q, k).

    Raises:
        ValueError: If the gallery holds fewer than k candidates.
    """
    if skip_self and len(query) != len(gallery):
        raise ValueError("skip_self needs query and gallery to be the same images.")
    if not 1 <= k <= len(gallery) - skip_self:
        raise ValueError(f"k={k} neighbours of {len(gallery) - skip_self}: choose a smaller k.")
    query, gallery = F.normalize(query, dim=1), F.normalize(gallery, dim=1)
    rows, values = [], []
    for start in range(0, len(query), 1024):  # bounds the memory of the similarity table
        table = query[start : start + 1024] @ gallery.T
        if skip_self:
            own = torch.arange(len(table), device=table.device)
            table[own, own + start] = -torch.inf
        best = table.topk(k, dim=1)
        rows.append(best.indices)
        values.append(best.values)
    return torch.cat(rows), torch.cat(values)


def accuracy_against_k(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    ks: list[int],
    skip_self: bool = False,
) -> dict[int, float]:
    """Accuracy in percent of a majority vote among k neighbours, for several k.

    Of two classes with as many votes, the one whose nearest voter is nearer wins.

    Args:
        query: (Q, d).
        query_labels: int64 (Q,).
        gallery: (G, d).
        gallery_labels: int64 (G,).
        ks: The numbers of neighbours to try.
        skip_self: As in `nearest`.

    Returns:
        Accuracy for each k.
    """
    rows, _ = nearest(query, gallery, max(ks), skip_self)
    voted = gallery_labels[rows]  # (Q, max k), nearest first
    ballots = F.one_hot(voted).float()
    # A share below one vote that shrinks with the rank of a class's first voter decides ties.
    first = ballots.cumsum(1).clamp_max(1.0).sum(1) / (max(ks) + 1)
    result = {}
    for k in ks:
        winner = (ballots[:, :k].sum(1) + first).argmax(1)
        result[k] = 100 * (winner == query_labels).float().mean().item()
    return result
