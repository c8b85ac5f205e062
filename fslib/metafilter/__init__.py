"""The dynamic filter of DMF and the alignment by it: the equations, pair by pair.

A *pair* is a query image with the prototype map of one way. `MetaFilter` holds the two learned
tensors and the equations as the paper states them; `plain_scores` applies them to whole feature
maps of every pair. `fslib.metafilter.fast` gives the same numbers in a tenth of the time; for mixed
precision see there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SOLVERS = ("auto", "exact", "rk4", "dopri5")
TAPS = 9  # a dynamic neighbourhood is a 3 x 3 window whose cells are moved


class MetaFilter(nn.Module):
    """Filters made for a pair, and the query map aligned by them.

    Args:
        channels: C of the maps.
        groups: g; channels are filtered alike in g contiguous blocks. The paper takes 64, 160 or
            320 for 640 channels.
        kernel: Side k of a filter, odd.
        sampling: Move the window's cells by predicted offsets; otherwise a plain convolution
            (Table 2a).
        alignments: Number T of recursions of Eq. 7; the ODE of Eq. 9 where None (Table 2d). It may
            be set to another number after training.
        solver: Of the ODE: `exact` (kernel 1 only), one step of `rk4`, adaptive `dopri5`; `auto`
            is exact for a kernel of 1 and rk4 otherwise.
        tolerance: Relative and absolute, for `dopri5`.
        linear_field: Leave out the rectifier of the field, as the paper's Eq. 3 does.
        zero_init_offset: Start from the undistorted window, as is usual for deformable
            convolutions.
    """

    def __init__(
        self,
        channels: int,
        groups: int = 64,
        kernel: int = 1,
        sampling: bool = True,
        alignments: int | None = None,
        solver: str = "auto",
        tolerance: float = 1e-2,
        linear_field: bool = False,
        zero_init_offset: bool = False,
    ) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise ValueError(f"{groups} groups do not divide the {channels} channels of the map")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, to have a centre, not {kernel}")
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
        if solver == "exact" and kernel > 1:
            raise ValueError("only a kernel of 1 has an exact solution: choose rk4 or dopri5")
        if alignments is not None and alignments < 0:
            raise ValueError(f"alignments must be 0 or more, or None for the ODE, not {alignments}")
        self.channels, self.groups, self.kernel = channels, groups, kernel
        self.alignments, self.linear_field, self.tolerance = alignments, linear_field, tolerance
        self.solver = ("exact" if kernel == 1 else "rk4") if solver == "auto" else solver
        self.offset = nn.Conv2d(2 * channels, 2 * TAPS, 5, padding=2, bias=False)
        if zero_init_offset:
            nn.init.zeros_(self.offset.weight)
        if not sampling:
            self.offset = None
        bound = (TAPS * channels) ** -0.5
        self.psi = nn.Parameter(
            torch.empty(groups * kernel**2, channels, 3, 3).uniform_(-bound, bound)
        )

    def offsets(self, query: Tensor, prototype: Tensor) -> Tensor:
        """How far each cell of the window moves, seen from both images (Eq. 4, 5).

        Args:
            query: (M, C, h, w), one a pair.
            prototype: (M, C, h, w).

        Returns:
            (M, 18, h, w) in cells: channel 2j is the vertical, 2j + 1 the horizontal move of cell j
            of the 3 x 3 window, row by row.
        """
        return self.offset(torch.cat([query, prototype], 1))

    def filters(self, query: Tensor, prototype: Tensor) -> Tensor:
        """A filter for every position of a pair, f = sigmoid(Psi * sampled prototype) (Eq. 6).

        Args:
            query: (M, C, h, w).
            prototype: (M, C, h, w).

        Returns:
            (M, g, k k, h, w) in (0, 1).
        """
        # torchvision takes seconds to import, and only this reference needs it.
        from torchvision.ops import deform_conv2d

        if self.offset is None:
            made = functional.conv2d(prototype, self.psi, padding=1)
        else:
            moves = self.offsets(query, prototype)
            made = deform_conv2d(prototype, moves, self.psi, padding=1)
        return made.sigmoid().unflatten(1, (self.groups, -1))

    def field(self, query: Tensor, filters: Tensor) -> Tensor:
        """The filtered map F(q): channel c at p is relu(sum_j f[group of c, j, p] q[c, p + j]).

        Args:
            query: (M, C, h, w).
            filters: (M, g, k k, h, w).

        Returns:
            (M, C, h, w).
        """
        windows = functional.unfold(query, self.kernel, padding=self.kernel // 2)
        windows = windows.view(len(query), self.groups, -1, self.kernel**2, *query.shape[2:])
        made = (windows * filters.unsqueeze(2)).sum(3).flatten(1, 2)
        return made if self.linear_field else made.relu()

    def align(self, query: Tensor, filters: Tensor) -> Tensor:
        """The aligned query map: T times q <- q + F(q) (Eq. 7), or dq/dt = F(q) to t = 1 (Eq. 9).

        Args:
            query: (M, C, h, w).
            filters: (M, g, k k, h, w).

        Returns:
            (M, C, h, w).
        """
        if self.alignments is not None:
            for _ in range(self.alignments):
                query = query + self.field(query, filters)
            return query
        if self.solver != "exact":
            return self._solve(lambda _, q: self.field(q, filters), query)
        # One tap never changes the sign of q: dq/dt = f q where the field lets q through, else 0.
        grown = query * filters.exp().squeeze(2).repeat_interleave(query.shape[1] // self.groups, 1)
        return grown if self.linear_field else torch.where(query > 0, grown, query)

    def gain(self, filters: Tensor) -> Tensor:
        """What a kernel of 1 comes to: aligned q is gain x q wherever the field lets q through.

        (1 + f)^T for T alignments, exp(f) for the ODE, 1 + f + f^2/2 + f^3/6 + f^4/24 for one step
        of any fourth-order Runge-Kutta rule; at most 0.4 % lie between the last two.

        Args:
            filters: Any shape, values in [0, 1].

        Returns:
            The same shape.
        """
        if self.alignments is not None:
            return (1 + filters) ** self.alignments
        if self.solver == "exact":
            return filters.exp()
        if self.solver == "rk4":
            return 1 + filters * (1 + filters / 2 * (1 + filters / 3 * (1 + filters / 4)))
        return self._solve(lambda _, gain: filters * gain, torch.ones_like(filters))

    def _solve(self, field, start: Tensor) -> Tensor:
        from torchdiffeq import odeint  # seconds to import

        ends = torch.tensor([0.0, 1.0], dtype=start.dtype, device=start.device)
        # Without a step size rk4 takes one step over [0, 1], whatever the tolerances (as released).
        limits = {"rtol": self.tolerance, "atol": self.tolerance}
        return odeint(field, start, ends, method=self.solver, **limits)[-1]


def class_weights(prototypes: Tensor, normalise: bool = True) -> Tensor:
    """The meta-classifier: the prototype map, unit length at every position, then averaged.

    Args:
        prototypes: (..., P, C), positions before channels.
        normalise: Off for the paper's plain average.

    Returns:
        (..., C).
    """
    return (functional.normalize(prototypes, dim=-1) if normalise else prototypes).mean(-2)


def plain_scores(metafilter: MetaFilter, prototypes: Tensor, query: Tensor, weights: Tensor):
    """Filters and scores from whole maps of all pairs: the equations as they stand.

    Args:
        metafilter: The learned tensors.
        prototypes: (E, K, C, h, w).
        query: (E, Q, C, h, w).
        weights: (E, K, C) of `class_weights`.

    Returns:
        Filters (E, K, Q, h, w, g k k) and scores (E, K, Q, h, w), each the product of class weight
        and aligned map at a position.
    """
    shape = (prototypes.shape[0], prototypes.shape[1], query.shape[1])
    s = prototypes.unsqueeze(2).expand(*shape, *prototypes.shape[2:]).flatten(0, 2)
    q = query.unsqueeze(1).expand(*shape, *query.shape[2:]).flatten(0, 2)
    filters = metafilter.filters(q, s)
    aligned = metafilter.align(q, filters).unflatten(0, shape)
    scores = torch.einsum("ekc,ekqchw->ekqhw", weights, aligned)
    return filters.flatten(1, 2).movedim(1, -1).unflatten(0, shape), scores
