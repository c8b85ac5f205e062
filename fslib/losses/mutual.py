"""The mutual loss of BML: two views of an image tell each other what they see."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def mutual_loss(
    first: Tensor, second: Tensor, temperature: float = 4.0, detach_target: bool = False
) -> Tensor:
    r"""Kullback-Leibler divergence in both directions (BML Eq. 7 and 8).

    .. math:: L = \frac{T^2}{B} \sum_i D(q_i \| r_i) + D(r_i \| q_i), \qquad
        q_i = \operatorname{softmax}(f_i / T), \quad r_i = \operatorname{softmax}(g_i / T)

    The softmax runs over the channels of a feature, which are no classes. The paper states
    neither the temperature nor the factor; both are those of the released code. At this
    temperature the loss is close to the variance over channels of f - g, that is, to a centred
    squared error: it ignores a constant added to all channels, and little else.

    Args:
        first: (B, C) features of one view.
        second: (B, C) of the other.
        temperature: T.
        detach_target: Take the first argument of each divergence as given, so that each view
            learns from one of the two terms alone. The value stays the same.

    Returns:
        A scalar, at least 0 but for rounding.
    """
    first = functional.log_softmax(first.float() / temperature, dim=1)
    second = functional.log_softmax(second.float() / temperature, dim=1)

    def divergence(target: Tensor, learner: Tensor) -> Tensor:
        """D(target || learner); torch lets the gradient into both unless told otherwise."""
        target = target.detach() if detach_target else target
        return functional.kl_div(learner, target, reduction="batchmean", log_target=True)

    return temperature**2 * (divergence(first, second) + divergence(second, first))
