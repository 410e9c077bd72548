"""From BERT's layers to ModernBERT's in steps, each one changed field of `SteppedConfig`; no paper's table.

    python launch.py train bert_to_modernbert --with corpus=wiki-1.txt.xz glue=GLUE

Measured on one core of an AMD EPYC beside other work, 2 M tokens a run and three seeds (experiments/results/README.md):
16 minutes a row. Rotary positions make the difference, 12.2 to 25.5 % at [MASK]; the other steps cannot be told apart.
`table`, `report` and `predict` read its runs with `--code experiments/ablations/bert_to_modernbert.py`, which has the
parts of its layers.

All rows are masked language models of equal FLOPs: 15 % of tokens, rows of one text. The window of the last step is 16
tokens, in every second layer. Of ModernBERT's layers the norm of the embeddings, which takes the place of the first
layer's norm, and the smaller deviation of output matrices are not steps of their own: the last row is ModernBERT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import flax.linen as nn
from encoders.library.ablations.objective_body import (
    BASE,
    LEARNED_POSITIONS,
    MODERN,
    build_short_rows,
    replace_with_masked_lm,
)

import encoders
from encoders.costs.ledger import run_flops
from encoders.families import modernbert
from encoders.model import rotary
from encoders.model.config import EncoderConfig
from encoders.model.layers import attend
from encoders.model.ops import ACTIVATIONS, Dropout, make_dense, make_layer_norm
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MLM_AT_MASK, SST2

COLUMNS = (SST2, MLM_AT_MASK)


def add_residual(config, x, compute):
    """Return `x` plus `compute` of it, with the norm of a layer before or after."""
    norm = make_layer_norm(config, "norm", use_bias=config.use_biases)
    return x + compute(norm(x)) if config.norm_first else norm(x + compute(x))


@encoders.register
class SteppedAttention(nn.Module):
    """Self-attention and residual, with the norm before or after."""

    config: object
    is_causal = False

    @nn.compact
    def __call__(self, x, context, train: bool):
        config = self.config

        def mix_tokens(x):
            project = lambda name: make_dense(config, config.hidden_size, name, use_bias=config.use_biases)(x)
            shape = *x.shape[:2], config.num_heads, -1
            query, key, value = (project(name).reshape(shape) for name in ("query", "key", "value"))
            if (table := context.row_features) is not None:
                query, key = rotary.rotate_heads(query, table), rotary.rotate_heads(key, table)
            mixed = attend(config, query, key, value, context, train).reshape(x.shape)
            out = make_dense(config, config.hidden_size, "out", use_bias=config.use_biases)(mixed)
            return Dropout(config.hidden_dropout)(out, train)

        return add_residual(config, x, mix_tokens)


@encoders.register
class SteppedFeedForward(nn.Module):
    """Feed-forward network and residual, with the norm before or after."""

    config: object
    num_matrices = 2

    @nn.compact
    def __call__(self, x, context, train: bool):
        config = self.config

        def transform(x):
            expand = lambda name: make_dense(config, config.intermediate_size, name, use_bias=config.use_biases)(x)
            inner = ACTIVATIONS[config.activation](expand("up"))
            if self.num_matrices == 3:
                inner = inner * expand("gate")
            out = make_dense(config, config.hidden_size, "down", use_bias=config.use_biases)(inner)
            return Dropout(config.hidden_dropout)(out, train)

        return add_residual(config, x, transform)


@encoders.register
class GatedSteppedFeedForward(SteppedFeedForward):
    """`SteppedFeedForward` whose inner features are multiplied by those of a second matrix."""

    num_matrices = 3


@encoders.register
class SteppedFinalNorm(nn.Module):
    """The norm after the last layer, where layers have theirs before."""

    config: object

    @nn.compact
    def __call__(self, x):
        config = self.config
        return make_layer_norm(config, "norm", use_bias=config.use_biases)(x) if config.norm_first else x


@encoders.register
@dataclass(frozen=True)
class SteppedConfig(EncoderConfig):
    """BERT's layers by default; each field that follows makes one thing of them ModernBERT's."""

    feed_forward: type = SteppedFeedForward  # or GatedSteppedFeedForward
    norm_first: bool = False
    use_biases: bool = True
    local_window: int | None = None  # in every second layer
    attention: type = SteppedAttention
    final_norm: type | None = SteppedFinalNorm

    @property
    def attention_windows(self) -> tuple[int | None, ...]:
        return (None, self.local_window) if self.local_window else (None,)


STEPS = {
    "rotary positions": {"row_features": rotary.RotaryFeatures},
    "gated feed-forward": {"feed_forward": GatedSteppedFeedForward},
    "norms before": {"norm_first": True},
    "no biases": {"use_biases": False},
    "local layers": {"local_window": 16},
}
SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")


def table(study: Study) -> PaperTable:
    masked_lm, short_rows = replace_with_masked_lm(BASE), build_short_rows(study)
    model = SteppedConfig(**{name: getattr(BASE.model, name) for name in SIZES})
    modern = replace(modernbert.BASE, vocab_size=model.vocab_size, pooling="cls")
    learned = LEARNED_POSITIONS | short_rows
    compute = run_flops(study.build_pretrain_run("steps-bert", replace(masked_lm, model=model), small_changes=learned))
    models = [("BERT's layers", "steps-bert", model, learned)]
    for index, (name, fields) in enumerate(STEPS.items(), 1):
        model = replace(model, **fields)
        # Three matrices of two thirds of the width have the size of two.
        changes = {"model": {"intermediate_size": MODERN["model"]["intermediate_size"]}} if index > 1 else {}
        models.append((f"+ {name}", f"steps-{index}", model, changes | short_rows))
    models.append(("ModernBERT's layers", "body-modernbert-mlm", modern, MODERN | short_rows))
    rows = []
    for name, run_name, model, changes in models:
        experiment, scaling = replace(masked_lm, model=model), dict(small_changes=changes, total_flops=compute)
        rows.append(study.build_row(name, (), COLUMNS, run_name, experiment, **scaling))
    return study.build_table("bert_to_modernbert", "From BERT's layers to ModernBERT's", COLUMNS, rows, "FLOPs")
