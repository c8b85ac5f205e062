"""The filters and scores of `fslib.metafilter`, to rounding, without whole maps of every pair.

1. The offset convolution is linear: conv(query) + conv(prototype), once an image, added a pair.
2. Sampling commutes with mixing channels: what each filter tap makes of a prototype is computed
   once a class, and only those few channels are sampled for a pair.
3. For a kernel of 1 the ODE has a closed form, a gain on the positive activations.
4. A score needs only the sum over a filter group, so no aligned map is ever formed.

Channels come last here: (..., h, w, C).

"To rounding" holds in one precision. In mixed precision `DynamicMetaFilter.loss` leaves the
convolution of the first step to autocast, so offsets have the 3 digits of bfloat16 here, and all of
theirs in `plain_scores`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fslib.metafilter import TAPS, MetaFilter


class _WeightedRows(torch.autograd.Function):
    """out[n] = sum_j weight[n, j] table[index[n, j]]: a sparse matrix times a table.

    `embedding_bag` does it without forming the gathered rows. Its own gradient to the table is
    slow; here that is the product with the transposed matrix, which the sorted index spells out.
    """

    @staticmethod
    def forward(ctx, table, weight, index, order, rows, starts):
        ctx.save_for_backward(table, weight, index, order, rows, starts)
        return functional.embedding_bag(index, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        table, weight, index, order, rows, starts = ctx.saved_tensors
        to_table = to_weight = None
        grad = grad.contiguous()
        if ctx.needs_input_grad[0]:
            to_table = functional.embedding_bag(
                rows,
                grad,
                starts[: len(table)],
                per_sample_weights=weight.flatten()[order],
                mode="sum",
            )
        if ctx.needs_input_grad[1]:
            with torch.enable_grad():
                weight = weight.detach().requires_grad_()
                again = functional.embedding_bag(
                    index, table.detach(), per_sample_weights=weight, mode="sum"
                )
            (to_weight,) = torch.autograd.grad(again, weight, grad)
        return to_table, to_weight, None, None, None, None


def sample_taps(taps: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Bilinear samples of one map a tap, summed over the taps; zero outside the map.

    Args:
        taps: (n, h, w, 9, d), nine maps of d channels.
        vertical: (n, N, 9) where to sample each, in cells; 0 is the centre of the first row.
        horizontal: (n, N, 9).

    Returns:
        (n, N, d).
    """
    maps, height, width, count, channels = taps.shape
    # A ring of zeros stands for everything outside, two cells wide where index + 1 may lead.
    table = functional.pad(taps, (0, 0, 0, 0, 1, 2, 1, 2)).flatten(0, 3)
    across, down = count, (width + 3) * count  # rows from a cell to its right and lower neighbour
    vertical, horizontal = vertical.clamp(-1, height), horizontal.clamp(-1, width)
    top, left = vertical.detach().floor(), horizontal.detach().floor()
    low, right = vertical - top, horizontal - left
    # Few passes and few new tensors: here, not in the sampling, most of the time would go.
    both = low * right
    low_only, right_only = low - both, right - both
    neither = (1 - low).sub_(right_only)
    first = torch.arange(maps, device=taps.device).view(-1, 1, 1) * (height + 3) * down
    first = (first + down + across + torch.arange(count, device=taps.device)).int()
    index = top.int().mul_(down).add_(left.int(), alpha=across).add_(first).flatten(0, 1)
    transposed = None, None, None
    if taps.requires_grad:
        ranked, order = index.flatten().sort()
        starts = torch.searchsorted(ranked, torch.arange(len(table), device=taps.device).int())
        transposed = order, (order // count).int(), starts.int()
    # The four neighbours have one index in four shifted views of the table.
    corners = (
        (0, neither),
        (across, right_only),
        (down, low_only),
        (down + across, both),
    )
    total = 0
    for shift, weight in corners:
        part = _WeightedRows.apply(table[shift:], weight.flatten(0, 1), index, *transposed)
        total = part.add_(total)  # in place: these are the largest tensors there are
    return total.view(maps, -1, channels)


def offset_parts(metafilter: MetaFilter, maps: Tensor) -> Tensor:
    """What each image adds to the offsets of its pairs, as a query and as a prototype.

    Args:
        metafilter: Its offset convolution is linear, so the two halves of its input part.
        maps: (B, C, h, w).

    Returns:
        (B, h, w, 36): vertical and horizontal moves of the 9 cells as a query, then the same as a
        prototype. Nothing, (B, h, w, 0), without sampling.
    """
    if metafilter.offset is None:
        return maps.new_empty((len(maps), *maps.shape[2:], 0))
    weight = metafilter.offset.weight.unflatten(0, (TAPS, 2)).unflatten(2, (2, -1))
    weight = weight.permute(2, 1, 0, 3, 4, 5).flatten(0, 2)  # (role, axis, cell), C, 5, 5
    return functional.conv2d(maps, weight, padding=2).permute(0, 2, 3, 1)


def fast_filters(
    metafilter: MetaFilter, prototypes: Tensor, of_prototypes: Tensor, of_query: Tensor
) -> Tensor:
    """The filters of all pairs from parts computed once an image (speed-ups 1 and 2).

    Args:
        metafilter: The learned tensors.
        prototypes: (E, K, h, w, C).
        of_prototypes: (E, K, h, w, 36) their `offset_parts`.
        of_query: (E, Q, h, w, 36) those of the queries.

    Returns:
        (E, K, Q, h, w, g k k); without sampling (E, K, 1, h, w, g k k), the same for every query.
    """
    episodes, ways, height, width, _ = prototypes.shape
    if metafilter.offset is None:
        flat = prototypes.flatten(0, 1).movedim(-1, 1)
        made = functional.conv2d(flat, metafilter.psi, padding=1).movedim(1, -1)
        return made.view(episodes, ways, 1, height, width, -1).sigmoid()
    # What tap j of the filter makes of each cell: (E K, h, w, 9, g k k).
    mixing = metafilter.psi.flatten(2).permute(1, 2, 0).flatten(1)
    taps = (prototypes @ mixing).flatten(0, 1).unflatten(-1, (TAPS, -1))

    def count(cells: int) -> Tensor:
        return torch.arange(cells, device=taps.device, dtype=taps.dtype)

    window = count(3) - 1
    home = (
        (count(height).view(-1, 1, 1, 1) + window.view(-1, 1)).expand(height, width, 3, 3),
        (count(width).view(-1, 1, 1) + window).expand(height, width, 3, 3),
    )  # where the nine cells lie before they move
    from_query, _ = of_query.unflatten(-1, (2, 2, TAPS)).unbind(-3)
    _, from_prototypes = of_prototypes.unflatten(-1, (2, 2, TAPS)).unbind(-3)
    places = []
    for axis in (0, 1):
        moved = from_prototypes[..., axis, :] + home[axis].flatten(2)
        place = from_query[..., axis, :].flatten(2).unsqueeze(1) + moved.flatten(2).unsqueeze(2)
        places.append(place.view(episodes * ways, -1, TAPS))
    made = sample_taps(taps, *places).sigmoid_()
    return made.view(episodes, ways, -1, height, width, made.shape[-1])


def fast_scores(metafilter: MetaFilter, filters: Tensor, query: Tensor, weights: Tensor) -> Tensor:
    """Scores of all pairs without an aligned map (speed-ups 3 and 4); a kernel of 1 only.

    score = sum over groups of gain x (that group's share of w.q) + w.(what the field stops).

    Args:
        metafilter: Knows the gain.
        filters: (E, K, Q or 1, h, w, g).
        query: (E, Q, h, w, C), without offset parts.
        weights: (E, K, C).

    Returns:
        (E, K, Q, h, w).
    """
    groups, shape = metafilter.groups, query.shape[1:4]
    flat = query.flatten(1, 3)  # (E, Q P, C)
    active = flat if metafilter.linear_field else flat.relu()
    # One product with the weights spread over a block diagonal gives the share of every group.
    member = torch.arange(groups, device=flat.device).repeat_interleave(flat.shape[-1] // groups)
    blocks = weights.transpose(1, 2).unsqueeze(-1) * functional.one_hot(member, groups).unsqueeze(1)
    shares = (active @ blocks.flatten(2)).unflatten(-1, (-1, groups)).transpose(1, 2)
    gained = (metafilter.gain(filters) * shares.unflatten(2, shape)).sum(-1)
    stopped = weights @ flat.transpose(1, 2) - shares.sum(-1)
    return gained + stopped.unflatten(-1, shape)
