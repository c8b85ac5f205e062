"""The elastic constraint of BML: lessons that grow harder while the network learns.

An episode is easy to solve, so a branch that learns only on episodes soon stops learning. BML
(Zhou et al., ICCV 2021, section 3.2.2) therefore pretends that a query lies farther from its own
class than it does, by a length that grows with training and with how hard the query is. Nothing
moves in the feature space: one distance is lengthened before the softmax, and the gradient has
to pull the query nearer to make up for it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def elastic_constraint(
    distances: Tensor,
    target: Tensor,
    progress: float,
    alpha1: float = 5.5,
    alpha2: float = 0.1,
    gate: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""How far every query is pushed from its own class (BML, Algorithm 1).

    .. math:: d_{EL} = \frac{\alpha_1 \, e / E}{1 + \exp(-\alpha_2 \Delta)}, \qquad
        \Delta = d_t - \min_{n \ne t} d_n

    where t is the true way and e / E the share of training done. The released code also asks
    that neither the true way nor the nearest wrong one has a probability above one half, which
    is the same as asking it of all ways; the paper does not mention this gate.

    Args:
        distances: (..., way) squared distances to the prototypes.
        target: int64 (...), the true way.
        progress: Share of training done, 0 to 1.
        alpha1: Longest push, approached by the hardest queries at the end; 0 switches it off.
        alpha2: How much harder queries are pushed farther.
        gate: Push only where the gate is open.

    Returns:
        The push (...), at least 0 and a constant for the gradient, and where the gate is open,
        bool (...), whether it is used or not.
    """
    distances, column = distances.detach(), target.unsqueeze(-1)
    true = distances.gather(-1, column).squeeze(-1)
    # Infinity, not a sort: an exact tie or an exact zero is then nothing special.
    hardest = distances.scatter(-1, column, torch.inf).amin(-1)
    push = alpha1 * progress * torch.sigmoid(alpha2 * (true - hardest))
    undecided = (-distances).softmax(-1).amax(-1) <= 0.5
    return (push * undecided if gate else push), undecided


def push_away(
    distances: Tensor,
    target: Tensor,
    progress: float,
    alpha1: float = 5.5,
    alpha2: float = 0.1,
    gate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Distances with the one to the true way lengthened by `elastic_constraint` (BML Eq. 5).

    The negative of the result are logits for ordinary cross-entropy. Eq. 5 leaves the push out
    of its denominator, so that its probabilities do not add up to one; the released code
    normalises them, and so does this.

    Args:
        distances: (..., way).
        target: int64 (...).
        progress: See `elastic_constraint`, as the rest.
        alpha1: Longest push.
        alpha2: How it grows with difficulty.
        gate: Push only where no way has more than half of the probability.

    Returns:
        (..., way), differing from `distances` in the true column only, and where the gate is
        open, bool (...).
    """
    push, undecided = elastic_constraint(distances, target, progress, alpha1, alpha2, gate)
    return distances.scatter_add(-1, target.unsqueeze(-1), push.unsqueeze(-1)), undecided
