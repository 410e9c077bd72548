"""Configuration of an encoder: sizes, parts, sharing, and the conventions of its family."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import flax.linen as nn

from encoders.model.heads import MaskedTokenHead, Pooler, ReplacedTokenHead
from encoders.model.layers import Embeddings, FeedForward, SelfAttention
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.serialization import not_fingerprinted

SIZE_FIELDS = "vocab_size hidden_size num_layers num_heads intermediate_size embedding_size max_positions num_groups"
# Parts of a layer in their order, with the names of their parameters. Initial values depend on the names.
LAYER_PARTS = {"attention": "attend", "feed_forward": "transform"}


@dataclass(frozen=True)
class FamilyConventions:
    """Fine-tuning conventions of a model family; the defaults are BERT's."""

    name: str = "bert"
    classifier_head: Literal["pooled", "linear", "tanh"] = "pooled"  # after the pooler, alone, after a dense and a tanh
    token_classifier_head: Literal["linear", "pooled"] = "linear"  # alone, or after the pooler on every token
    num_separators: int = 1  # between two texts
    # The span head for questions that may have no answer (`encoders/tasks/question_answering.py`).
    answerability: Literal[
        "null_span", "pooled_null_span", "classifier", "conditioned_span", "electra_conditioned_span"
    ] = "null_span"


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and parts of an encoder-only transformer.

    `embeddings`, `attention`, `feed_forward`, `token_head`, `pooler`, `replaced_head`, `final_norm` and `row_features`
    are the classes of its parts. A family whose parts need other fields has a subclass. Layers share the parameters of
    `shared_parts` (ALBERT: both) in `num_groups` sets, and layer `i` uses set `i * num_groups // num_layers`. Raises
    `ValueError` for sizes that do not fit together. `embedding_size` is `hidden_size` unless it is given; with
    `dataclasses.replace` it keeps its number, and `embedding_size=None` follows the new hidden size.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    embedding_size: int | None = None
    max_positions: int = 512
    num_token_types: int = 2
    position_offset: int = 0  # RoBERTa: 2, its padding index + 1; padding reads the entry before it
    activation: Literal["gelu", "gelu_tanh", "silu"] = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    init_std: float = 0.02
    truncated_init: bool = True  # TensorFlow's truncated normal, cut at two deviations; False is the plain normal
    shared_parts: tuple[str, ...] = ()
    num_groups: int = 1
    always_project: bool = False  # e to d also where they are equal: Hugging Face's ALBERT, not Google's
    dtype: Literal["float32", "bfloat16"] = "float32"
    embeddings: type = Embeddings
    attention: type = SelfAttention
    feed_forward: type = FeedForward
    token_head: type = MaskedTokenHead
    pooler: type = Pooler
    replaced_head: type = ReplacedTokenHead
    final_norm: type | None = None  # after the last layer, where layers have their norms before
    row_features: type | None = None  # computed once a step from the rows, for all layers to read
    # Of an example's hidden states, for heads that read one vector; "late" is the mean after the pooler.
    pooling: Literal["cls", "mean", "late"] = "cls"
    # Read when a task builds its objective and format, which are fingerprinted themselves.
    conventions: FamilyConventions = not_fingerprinted(FamilyConventions())
    # cudnn takes one example a row, padded at its end.
    attention_impl: Literal["xla", "cudnn", "cudnn_packed"] = not_fingerprinted("xla")
    unroll_layers: bool = not_fingerprinted(False)  # without effect where layers are rematerialised
    remat: Literal["none", "dots", "full"] = not_fingerprinted("none")

    # Fields that may differ between a run and the run that its parameters come from.
    param_compatible_fields: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "hidden_dropout", "attention_dropout", "init_std", "truncated_init", "dtype", "always_project"),
        "pooling",
    )

    # Dense layers whose features are those of several matrices beside one another, with their number, and norms of a
    # layer that the next layer reads.
    fused_matrices: ClassVar[dict[str, int]] = {}
    leading_norms: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if self.embedding_size is None:
            object.__setattr__(self, "embedding_size", self.hidden_size)  # the dataclass is frozen
        checks = (
            (SIZE_FIELDS, lambda size: size >= 1, "at least 1"),
            (SIZE_FIELDS, lambda size: size < 2**31, "below 2147483648"),
            ("num_token_types position_offset", lambda count: count >= 0, "at least 0"),
            ("hidden_dropout attention_dropout", lambda rate: 0 <= rate < 1, "at least 0 and below 1"),
            ("pooling", lambda name: name in ("cls", "mean", "late"), "'cls', 'mean' or 'late'"),
            ("init_std layer_norm_eps", lambda value: 0 < value < math.inf, "above 0"),
        )
        check_fields(self, "model.", checks)
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"model.hidden_size={self.hidden_size} is not a multiple of model.num_heads={self.num_heads}"
            )
        if len({*self.shared_parts} & {*LAYER_PARTS}) < len(self.shared_parts):
            raise UserError(
                f"model.shared_parts={self.shared_parts} may hold 'attention' and 'feed_forward', each once"
            )
        if self.num_groups > 1 and not self.shared_parts:
            raise UserError(f"model.num_groups={self.num_groups} needs something shared; model.shared_parts is empty")
        if self.num_groups > self.num_layers:
            raise UserError(f"model.num_groups={self.num_groups} is more than model.num_layers={self.num_layers}")
        if self.attention_impl != "xla" and (self.attention_dropout or self.dtype != "bfloat16"):
            raise UserError(
                f"model.attention_impl={self.attention_impl!r} supports model.attention_dropout=0 and "
                f"model.dtype=bfloat16 only, not {self.attention_dropout} and {self.dtype}"
            )

    @property
    def attention_windows(self) -> tuple[int | None, ...]:
        """The tokens that a layer's attention sees around and with each token, for the first layers; they repeat.

        None is the whole example. Layers of different windows are compiled apart.
        """
        return (None,)

    @property
    def num_attention_products(self) -> int:
        """The matrix products of d numbers for each token and token that it attends to: a score, and its value."""
        return 2

    @property
    def layer_windows(self) -> tuple[int | None, ...]:
        """The window of each layer."""
        return tuple(itertools.islice(itertools.cycle(self.attention_windows), self.num_layers))

    def scale_sizes(self, hidden_size: int) -> dict[str, int | None]:
        """Return the sizes of this family's model of another hidden size, with heads of 64, apart from its depth."""
        sizes = {"hidden_size": hidden_size, "num_heads": max(1, hidden_size // 64)}
        return sizes | {"intermediate_size": 4 * hidden_size}

    def make_initializer(self, std: float):
        """Return the initialiser of matrices and tables with a deviation of `std`."""
        draw = nn.initializers.truncated_normal if self.truncated_init else nn.initializers.normal
        return draw(std)

    def count_projection_weights(self) -> int:
        """Return the weights of a layer's projections of queries, keys, values and outputs."""
        return 4 * self.hidden_size**2

    def find_vocabulary_problem(self, vocab) -> str | None:
        """Return why a vocabulary, a `VocabInfo`, does not fit this model, or None."""
        if vocab.vocab_size <= self.vocab_size:
            return None
        return f"the vocabulary has {vocab.vocab_size} entries, more than model.vocab_size={self.vocab_size}"

    def begin_layers(self, x):
        """Return what the first layer is given, a pytree, from the embeddings `[b l d]`."""
        return x

    def get_hidden_states(self, carried):
        """Return the hidden states `[b l d]` in what a layer returns."""
        return carried

    def replace_hidden_states(self, carried, x):
        """Return what a layer returns with other hidden states `[b l d]`."""
        return x

    def end_layers(self, carried):
        """Return the encoder's hidden states `[b l d]` from what the last layer returns."""
        return carried

    def collect_computation_fields(self) -> dict[str, object]:
        """Return the fields that change the output of given parameters, except for speed and memory."""
        selected = (field for field in fields(self) if not field.metadata.get("not_fingerprinted"))
        return {
            field.name: getattr(self, field.name)
            for field in selected
            if field.name not in self.param_compatible_fields
        }

    @property
    def has_norms_first(self) -> bool:
        """True if each part of a layer has its norm before it (pre-LN)."""
        return self.final_norm is not None

    @property
    def has_embedding_projection(self) -> bool:
        """True if a dense layer projects the embeddings to the hidden size."""
        return self.always_project or self.embedding_size != self.hidden_size


def derive_generator_config(config: EncoderConfig, generator_width: float, generator_depth=1.0) -> EncoderConfig:
    """Return ELECTRA's generator for `config`: a fraction of its width and depth, heads of 64.

    Its intermediate size is that of the family, four times the hidden size in BERT.
    """
    hidden, layers = round(config.hidden_size * generator_width), max(1, round(config.num_layers * generator_depth))
    try:
        return replace(config, **config.scale_sizes(hidden), num_layers=layers, shared_parts=(), num_groups=1)
    except ValueError as error:
        raise UserError(
            f"objective.generator_width={generator_width:.4g} and objective.generator_depth={generator_depth:.4g} "
            f"make no generator: {error}"
        ) from None
