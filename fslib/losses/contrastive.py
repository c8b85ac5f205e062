r"""Contrastive losses over whole images and over their locations (Ouali et al. 2021).

A picture in words: the images of a batch stand in a circle and every image calls those of its
own class nearer and all others away. What "near" means is one number for a pair of images, so a
loss is a similarity matrix plus one rule:

.. math:: L = -\frac{1}{N} \sum_i \frac{1}{|P_i|} \sum_{j \in P_i}
    \log \frac{\exp(S_{ij} / \tau)}{\sum_{k \neq i} \exp(S_{ik} / \tau)}

- **Global** similarity compares two images as wholes: the cosine of their projected features.
- **Spatial** similarity compares them place by place: each location of one image looks for what
  matches it in the other (attention), and is compared with what it found.

Nothing here knows of episodes, shots or feature maps of a certain size: any two sets of images
(of `N_a` and `N_b`), maps of any height and width, any network in front.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

AGGREGATES = ("mean", "max")


def contrastive_loss(
    similarity: Tensor, labels: Tensor, other_labels: Tensor | None = None, tau: float = 0.1
) -> Tensor:
    """The contrastive loss of a similarity matrix; the mean over positives is outside the log.

    Supervised: labels are classes. Self-supervised: labels are the numbers of the images, so
    that only the other views of an image are its positives.

    Args:
        similarity: (N_a, N_b).
        labels: (N_a,) of the rows.
        other_labels: (N_b,) of the columns. Where None, the columns are the rows' own images
            and an image is no pair with itself; otherwise every pair counts.
        tau: Temperature; the similarities are divided by it.

    Returns:
        Scalar, the mean over all rows; a row without positives adds 0.

    Raises:
        ValueError: The labels do not fit the matrix.
    """
    itself = other_labels is None
    columns = labels if itself else other_labels
    if similarity.shape != (len(labels), len(columns)):
        raise ValueError(
            f"a similarity matrix of {tuple(similarity.shape)} needs as many labels, not "
            f"{len(labels)} and {len(columns)}: repeat them once for every view"
        )
    logits = _exact(similarity) / tau
    positive = labels[:, None] == columns
    if itself:
        own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        # Before the softmax: its row maximum must not be the image's match with itself.
        logits, positive = logits.masked_fill(own, -torch.inf), positive & ~own
    log_share = torch.where(positive, logits.log_softmax(1), 0)
    return -(log_share.sum(1) / positive.sum(1).clamp(min=1)).mean()


def loss_floor(labels: Tensor) -> Tensor:
    """The least that `contrastive_loss` of a set with itself can reach: the mean of ``log |P_i|``.

    An image with several positives has to share its probability among them, so a supervised
    contrastive loss does not go to 0.

    Args:
        labels: (N,), repeated for every view.
    """
    positives = (labels[:, None] == labels).sum(1) - 1
    return positives.clamp(min=1).double().log().mean()


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all pairs: (N_a, d) and (N_b, d) to (N_a, N_b)."""
    with torch.autocast(a.device.type, enabled=False):
        a, b = (functional.normalize(_exact(x), dim=-1) for x in (a, b))
        return a @ b.T


def aligned_cosine(query: Tensor, value: Tensor, key: Tensor, other_value: Tensor) -> Tensor:
    r"""How well each location of x is found again in y, for all pairs (x, y).

    Location r of x attends to y, :math:`P_{rs} = \mathrm{softmax}_s(q_r \cdot k_s / \sqrt d)`,
    gathers :math:`\hat v_r = \sum_s P_{rs} v^y_s` and is compared with it,
    :math:`\cos(v^x_r, \hat v_r)`. The gathered vectors, (N_a, N_b, R, width) numbers, are never
    made. Both parts of the cosine come from products of values, which are as small as the
    attention itself:

    .. math:: v^x_r \cdot \hat v_r = \sum_s P_{rs} (v^x_r \cdot v^y_s), \qquad
        |\hat v_r|^2 = \sum_{st} P_{rs} (v^y_s \cdot v^y_t) P_{rt}

    Args:
        query: (N_a, R, d) of x.
        value: (N_a, R, width) of x.
        key: (N_b, S, d) of y.
        other_value: (N_b, S, width) of y.

    Returns:
        (N_a, N_b, R) in [-1, 1].
    """
    first, places = query.shape[:2]
    second, others = key.shape[:2]
    # The short axis S stands before the long one (N_a R): softmax and sums run over it lane by
    # lane, and each product below is one large matrix multiplication.
    query = query.flatten(0, 1) * query.shape[-1] ** -0.5
    attention = (key.flatten(0, 1) @ query.T).view(second, others, -1).softmax(1)
    value = functional.normalize(value, dim=-1).flatten(0, 1)
    products = (other_value.flatten(0, 1) @ value.T).view(second, others, -1)
    gram = other_value @ other_value.transpose(1, 2)  # (N_b, S, S)
    dot = (attention * products).sum(1)
    square = (attention * (gram @ attention)).sum(1)
    # Where values cancel, their rounding is all that is left: a floor keeps it from being blown up.
    largest = gram.detach().diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
    square = torch.maximum(square, largest * torch.finfo(square.dtype).eps + 1e-24)
    return (dot * square.rsqrt()).view(second, first, places).transpose(0, 1)


def aggregate(cosines: Tensor, how: str = "mean") -> Tensor:
    """The `mean` or the `max` of the cosines of all locations, (..., R) to (...)."""
    return cosines.amax(-1) if how == "max" else cosines.mean(-1)


class Projection(nn.Sequential):
    """Two linear layers without bias and a ReLU between them, (..., inputs) to (..., width)."""

    def __init__(self, inputs: int, width: int = 80) -> None:
        super().__init__(
            nn.Linear(inputs, inputs, bias=False), nn.ReLU(), nn.Linear(inputs, width, bias=False)
        )


class GlobalSimilarity(nn.Module):
    """The cosine of two projected feature vectors.

    Args:
        inputs: Length of a feature vector.
        width: Length of its projection.
    """

    def __init__(self, inputs: int, width: int = 80) -> None:
        super().__init__()
        self.head = Projection(inputs, width)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Features (N_a, inputs) and (N_b, inputs), or a set with itself, to (N_a, N_b)."""
        a = self.head(a)
        return cosine_similarity(a, a if b is None else self.head(b))


class SpatialSimilarity(nn.Module):
    """The cosine of two images place by place, after each was aligned with the other.

    With `T(x, y)` the aggregated `aligned_cosine`, the similarity is `T(x, y) + T(y, x)`. No
    position enters: a map is a bag of locations.

    Args:
        inputs: Channels of a map.
        width: Length of queries, keys and values.
        aggregate: How the locations' cosines become one number, one of `AGGREGATES`.
        average: Halve the sum of the two directions; the paper does not, which for the same
            temperature makes the softmax twice as sharp.
        chunk: Images of the first set at a time, recomputed in the backward pass, so that memory
            is that of one chunk; 0 for all at once.
    """

    def __init__(
        self,
        inputs: int,
        width: int = 80,
        aggregate: str = "mean",
        average: bool = False,
        chunk: int = 0,
    ) -> None:
        super().__init__()
        if aggregate not in AGGREGATES:
            raise ValueError(
                f"unknown aggregate {aggregate!r}: choose one of {', '.join(AGGREGATES)}"
            )
        self.query, self.key, self.value = (Projection(inputs, width) for _ in range(3))
        self.aggregate, self.average, self.chunk = aggregate, average, chunk

    def project(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (N, inputs, h, w) to queries, keys and values, each (N, h w, width)."""
        locations = maps.flatten(2).transpose(1, 2)
        return tuple(_exact(part(locations)) for part in (self.query, self.key, self.value))

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Similarity of all pairs.

        Args:
            a: (N_a, inputs, h, w).
            b: (N_b, inputs, h', w'); the same set where None, which is half the work.

        Returns:
            (N_a, N_b), in [-2, 2], or in [-1, 1] where it is averaged.
        """
        first = self.project(a)
        second = first if b is None else self.project(b)
        with torch.autocast(a.device.type, enabled=False):
            there = self._directed(first, second)
            back = there if b is None else self._directed(second, first)
        return (there + back.T) * (0.5 if self.average else 1)

    def attention(self, a: Tensor, b: Tensor) -> Tensor:
        """Where each location of `a` looks in `b`, (N_a, N_b, h w, h' w'); rows sum to 1."""
        query, key = self.project(a)[0], self.project(b)[1]
        scores = torch.einsum("ard,bsd->abrs", query, key) * query.shape[-1] ** -0.5
        return scores.softmax(-1)

    def _directed(self, x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> Tensor:
        (query, _, value), (_, key, other_value) = x, y

        def similarity(query: Tensor, value: Tensor, key: Tensor, other: Tensor) -> Tensor:
            return aggregate(aligned_cosine(query, value, key, other), self.aggregate)

        if not self.chunk:
            return similarity(query, value, key, other_value)
        options = {"use_reentrant": False, "preserve_rng_state": False}
        pieces = zip(query.split(self.chunk), value.split(self.chunk), strict=True)
        return torch.cat(
            [checkpoint(similarity, q, v, key, other_value, **options) for q, v in pieces]
        )


def feature_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared distance of unit vectors, the contrastive distillation loss.

    It keeps the pull of a contrastive loss (a student's feature towards its teacher's) and drops
    the push, so it does not spread classes any further. 0 for equal directions, 2 for
    orthogonal, 4 for opposite ones.

    Args:
        teacher: (N, d) features, or maps (N, d, h, w) compared location by location.
        student: As the teacher's.
    """
    teacher, student = (functional.normalize(_exact(x), dim=1) for x in (teacher, student))
    return (teacher - student).square().sum(1).mean()


def soft_label_loss(teacher: Tensor, student: Tensor, temperature: float = 4.0) -> Tensor:
    """Knowledge distillation (Hinton et al. 2015), temperature^2 KL(teacher || student).

    Args:
        teacher: Logits (N, classes).
        student: As the teacher's.
        temperature: Softens both; its square keeps the size of the gradient.
    """
    teacher, student = ((_exact(x) / temperature).log_softmax(1) for x in (teacher, student))
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def _exact(values: Tensor) -> Tensor:
    """Half precision to float32; a similarity over a temperature needs its digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
