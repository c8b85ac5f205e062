"""AM3, adaptive cross-modal prototypes (Xing, Rostamzadeh, Oreshkin & Pinheiro, NeurIPS 2019).

Picture a class of which you saw one blurred image but know the name: "a kind of bear". AM3 turns
the name's word vector e_c into a second prototype and mixes the two; how much the image counts is
decided by the name itself:

    w_c = g(e_c),      lambda_c = sigmoid(h(w_c)),
    prototype_c = lambda_c * mean of the support + (1 - lambda_c) * w_c

g and h are networks of one hidden layer. Li et al. (2020) train this host with their margins.
Unlike plain prototypes it needs the names of new classes too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fslib.backbones import Backbone
from fslib.data import ImageSet
from fslib.methods.margin_protonet import MarginProtoNet, class_words


class AM3(MarginProtoNet):
    """Prototypes from images and names.

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        words: Width of the word vectors.
        word_hidden: Width of g and h.
        dropout: Share of their hidden units that is dropped in training.
        mix: Fix lambda for all classes rather than learn it: 1 is ProtoNet, 0 ignores the images.
        metric: As in `MarginProtoNet`; the released AM3 does not square the distance.
        pool: `mean` of the map; the width of a prototype has to be known beforehand.
        **options: Of `MarginProtoNet`. Its `semantics` concern the margin alone: prototypes are
            made of the classes' own names, in training as at test.
    """

    uses_semantics = True

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        words: int = 100,
        word_hidden: int = 300,
        dropout: float = 0.7,
        mix: float | None = None,
        metric: str = "euclidean",
        pool: str = "mean",
        **options: Any,
    ) -> None:
        if pool != "mean":
            raise ValueError("AM3 makes prototypes of a known width: its pool is mean")
        super().__init__(backbone, classes, metric=metric, pool=pool, **options)
        self.mix = mix
        width = backbone.channels
        self.from_words = _two_layers(words, word_hidden, width, dropout)
        self.from_prototype = _two_layers(width, word_hidden, 1, dropout)
        self.register_buffer("words", torch.zeros(classes, words))

    def prepare(self, images: ImageSet) -> None:
        """Take the word vectors of the base classes from the training images."""
        super().prepare(images)
        words = class_words(images)
        if words.shape != self.words.shape:
            raise ValueError(
                f"the word vectors of {images.name} are {words.shape[1]} wide: "
                f"set the option `words` to that, not to {self.words.shape[1]}"
            )
        self.words.copy_(words)

    def image_share(self, words: Tensor) -> Tensor:
        """Lambda of every class: word vectors (..., w) to (..., 1), in (0, 1)."""
        return self._parts(words)[1]

    def _parts(self, words: Tensor) -> tuple[Tensor, Tensor]:
        named = self.from_words(words).float()
        if self.mix is not None:
            return named, named.new_full((*named.shape[:-1], 1), self.mix)
        return named, self.from_prototype(named).float().sigmoid()

    def mixed(self, support: Tensor, words: Tensor) -> Tensor:
        """Prototypes (E, way, d) of support (E, way, shot, d) and word vectors (E, way, w)."""
        named, share = self._parts(words)
        return share * support.mean(2) + (1 - share) * named

    def prototypes(self, support: Tensor, classes: Tensor) -> Tensor:
        """Prototypes of base classes (E, way), whose word vectors are known."""
        return self.mixed(support, self.words[classes])

    def score(self, support: Tensor, query: Tensor, semantics: Tensor | None = None) -> Tensor:
        """Logits of every query for every way, see `Method.score`.

        Raises:
            ValueError: There are no word vectors.
        """
        if semantics is None:
            raise ValueError("AM3 needs the word vectors of the classes it is to tell apart")
        return self.compare(query, self.mixed(support, semantics.to(support)))

    def branches(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """`image`: the same features without the names, lambda = 1."""
        return {"image": lambda support, query: self.compare(query, support.mean(2))}


def _two_layers(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, linear, started as in the released code."""
    net = nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
    )
    for layer in (net[0], net[3]):
        # Variance 0.2 / outputs and no bias: lambda starts near one half.
        nn.init.normal_(layer.weight, std=(0.2 / layer.out_features) ** 0.5)
        nn.init.zeros_(layer.bias)
    return net
