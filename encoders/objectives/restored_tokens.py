"""Replace MLM and All-Tokens MLM: ELECTRA with a network that predicts the original token (Clark et al., 2020,
§3.5)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.model.config import EncoderConfig
from encoders.model.heads import gather_hidden_states
from encoders.model.ops import make_dense
from encoders.objectives.base import Metrics, ObjectiveModule
from encoders.objectives.generator import GeneratorBatch, GeneratorObjective, GeneratorObjectiveModule
from encoders.objectives.losses import cross_entropy
from encoders.text.tokenization import VocabInfo
from encoders.utils.metrics import Mean


@dataclass(frozen=True)
class ReplaceMLM(GeneratorObjective):
    """The loss of the original tokens, read from a text that a generator filled, plus the generator's loss.

    Both have weight 1, which the paper does not give. With `loss_over="all"` (All-Tokens MLM) the network has a copy
    mechanism: p(token) = D [token is shown] + (1 - D) softmax, where D is the sigmoid of a linear layer on the hidden
    state. With "chosen" (Replace MLM) the loss is over the masked positions.
    """

    loss_over: Literal["all", "chosen"] = "all"

    @property
    def loss_weights(self) -> dict[str, float]:
        return ({} if self.generator_width is None else {"generator_loss": 1.0}) | {"restored_loss": 1.0}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> ObjectiveModule:
        self.get_generator_config(config)
        return ReplaceMLMModule(config, self, vocab)


class ReplaceMLMModule(GeneratorObjectiveModule):
    """An encoder with a masked-token head, the gate of its copy mechanism, and a generator."""

    def setup(self):
        super().setup()
        self.restored = self.config.token_head(self.config)
        if self.objective.loss_over == "all":
            self.gate = make_dense(self.config, 1)

    def __call__(self, batch: GeneratorBatch, train: bool = False) -> Metrics:
        filled = self.fill_masks(batch, train)
        hidden = self.discriminator(batch.replace(input_ids=filled.filled_ids), train=train)
        gather_masked = lambda x: jnp.take_along_axis(x, batch.masked_positions, axis=1)
        chosen, table = batch.masked_weights, self.discriminator.active_embeddings.word_embedding.embedding
        if self.objective.loss_over == "chosen":
            logits = self.restored(gather_hidden_states(hidden, batch.masked_positions), table)
            nll, weights, right, copied = cross_entropy(logits, batch.masked_labels), chosen, logits.argmax(-1), {}
        else:
            logits, gate = self.restored(hidden, table), self.gate(hidden)[..., 0].astype(jnp.float32)
            weights = (batch.example_ids > 0).astype(jnp.float32)
            nll = -copy_log_probability(logits, gate, filled.filled_ids, batch.clean_ids)
            right = gather_masked(predict_likeliest_tokens(logits, gate, filled.filled_ids))
            copied = {"restored_copied": Mean((jax.nn.sigmoid(gate) * weights).sum(), weights.sum())}
        count_right = lambda ids: Mean(((ids == batch.masked_labels) * chosen).sum(), chosen.sum())
        restored = {
            "restored_loss": Mean((nll * weights).sum(), weights.sum()),
            "restored_accuracy": count_right(right),
            "restored_baseline": count_right(gather_masked(filled.filled_ids)),  # of always predicting the token shown
        }
        return filled.metrics | copied | restored


def copy_log_probability(
    logits: Float[Array, "b l v"], gate_logits: Float[Array, "b l"], shown_ids: Int[Array, "b l"], token_ids
) -> Float[Array, "b l"]:
    """Return the log-probability of `token_ids` under the copy mechanism."""
    copied = jnp.where(shown_ids == token_ids, jax.nn.log_sigmoid(gate_logits), -jnp.inf)
    return jnp.logaddexp(copied, jax.nn.log_sigmoid(-gate_logits) - cross_entropy(logits, token_ids))


def predict_likeliest_tokens(
    logits: Float[Array, "b l v"], gate_logits: Float[Array, "b l"], shown_ids: Int[Array, "b l"]
) -> Int[Array, "b l"]:
    """Return the likeliest tokens under the copy mechanism: the one shown or the softmax's."""
    best = logits.argmax(-1)
    log_probability = partial(copy_log_probability, logits, gate_logits, shown_ids)
    return jnp.where(log_probability(shown_ids) >= log_probability(best), shown_ids, best)
