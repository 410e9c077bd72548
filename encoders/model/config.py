"""A model as a value: three parts, their sizes, and what its layers share."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Literal

from encoders.model.layers import Attend, Embeddings, Transform

# Parameters mean the same under any value of these.
FREE = ("vocab", "dropout", "attention_dropout", "deviation", "truncated", "dtype", "always_project")


def aside(default=MISSING):
    """A field that changes speed, memory or a label but no number: it stays out of the fingerprint."""
    return field(default=default, metadata={"aside": True})


@dataclass(frozen=True)
class Model:
    """An encoder-only transformer.

    `embed`, `attend` and `transform` are the classes of its parts. `share` names the parts that one set of
    parameters serves in every layer (ALBERT shares both); with `groups` > 1 there are that many sets, and
    layer `i` uses set `i * groups // layers`. Raises `ValueError` for sizes that do not fit together.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    embedding: int
    positions: int = 512
    segments: int = 2
    position_offset: int = 0  # RoBERTa: 2, its padding index + 1; padding reads the entry before it
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_epsilon: float = 1e-12
    deviation: float = 0.02
    truncated: bool = True  # TensorFlow's truncated normal, cut at two deviations; False is the plain normal
    share: tuple[str, ...] = ()
    groups: int = 1
    always_project: bool = False  # e to d also where they are equal: Hugging Face's ALBERT, not Google's
    dtype: Literal["float32", "bfloat16"] = "float32"
    embed: type = Embeddings
    attend: type = Attend
    transform: type = Transform
    attention: Literal["xla", "cudnn", "cudnn_packed"] = aside("xla")  # cudnn: one example a row, padded at its end
    unroll: bool = aside(False)
    remat: Literal["none", "dots", "full"] = aside("none")

    def __post_init__(self):
        for name in ("vocab", "hidden", "layers", "heads", "intermediate", "embedding", "positions", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
            if getattr(self, name) >= 2**31:
                raise ValueError(f"model.{name}={getattr(self, name)} must be below 2147483648")
        for name in ("segments", "position_offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 0")
        if self.hidden % self.heads:
            raise ValueError(f"model.hidden={self.hidden} is not a multiple of model.heads={self.heads}")
        unknown = set(self.share) - {"attend", "transform"}
        if unknown or len(set(self.share)) != len(self.share):
            raise ValueError(f"model.share={self.share} may hold 'attend' and 'transform', each once")
        if self.groups > 1 and not self.share:
            raise ValueError(f"model.groups={self.groups} needs something shared; model.share is empty")
        if self.groups > self.layers:
            raise ValueError(f"model.groups={self.groups} is more than model.layers={self.layers}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 0 and below 1")
        if self.attention != "xla" and (self.attention_dropout or self.dtype != "bfloat16"):
            raise ValueError(
                f"model.attention={self.attention!r} has no dropout and no float32: it needs "
                f"model.attention_dropout=0, not {self.attention_dropout}, and model.dtype=bfloat16, not {self.dtype}"
            )
        for name in ("deviation", "norm_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"model.{name}={getattr(self, name)} must be above 0")

    def computes(self) -> dict[str, object]:
        """The fields that decide what given parameters compute, apart from their shapes."""
        names = (f.name for f in fields(self) if f.name not in FREE and not f.metadata.get("aside"))
        return {name: getattr(self, name) for name in names}

    @property
    def projects(self) -> bool:
        """Whether a dense layer leads from the embeddings to the hidden width."""
        return self.always_project or self.embedding != self.hidden


def narrowed(model: Model, width: float, depth: float = 1.0) -> Model:
    """ELECTRA's generator for `model`: a fraction of its width and depth, the embedding kept.

    Heads of 64 and 4x intermediate layers, as `get_generator_config` of the released code.
    """
    hidden, layers = round(model.hidden * width), max(1, round(model.layers * depth))
    sizes = dict(hidden=hidden, layers=layers, heads=max(1, hidden // 64), intermediate=4 * hidden)
    try:
        return replace(model, **sizes, share=(), groups=1)
    except ValueError as error:
        raise ValueError(
            f"objective.width={width:.4g} and objective.depth={depth:.4g} make no generator: {error}"
        ) from None
