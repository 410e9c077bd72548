"""Next-token prediction from left to right: BERT's "LTR & No NSP" (Devlin et al., 2019, §5.1 and table 5)."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from encoders.data.batch import Batch
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.model.heads import compute_vocabulary_logits
from encoders.objectives.base import Metrics, Objective, ObjectiveModule, perplexity
from encoders.objectives.losses import compute_class_metrics
from encoders.objectives.masking import MaskedBatch
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
from encoders.utils.metrics import Mean


def choose_next_tokens(batch: Batch) -> MaskedBatch:
    """Return `batch` with every token of an example but its first to predict, at its position."""
    tokens, example = batch.input_ids, batch.example_ids
    follows = (example[:, 1:] > 0) & (example[:, 1:] == example[:, :-1])
    return MaskedBatch(
        **batch.get_arrays(),
        clean_ids=tokens,
        masked_positions=jnp.broadcast_to(jnp.arange(1, tokens.shape[1]), follows.shape),
        masked_labels=tokens[:, 1:],
        masked_weights=follows.astype(jnp.float32),
    )


@dataclass(frozen=True)
class CausalLM(Objective):
    """The loss of every token of an example but its first, given the tokens before it; needs causal attention."""

    loss_weights: ClassVar[dict[str, float]] = {"clm_loss": 1.0}
    num_distinct_passes: ClassVar[int | None] = 1

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> ObjectiveModule:
        if not config.attention.is_causal:
            raise UserError(
                f"model.attention={config.attention.__name__} lets CausalLM read the tokens that it predicts; set "
                "model.attention=CausalSelfAttention"
            )
        return CausalLMModule(config, self, vocab)

    def corrupt(self, batch: Batch, vocab: VocabInfo, seed) -> MaskedBatch:
        return choose_next_tokens(batch)

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = super().scores(sums)
        return scores | {"clm_perplexity": perplexity(scores["clm_loss"])}


class CausalLMModule(ObjectiveModule):
    """An encoder and its masked-token head, which reads the position before the one that it predicts."""

    def setup(self):
        self.encoder = Encoder(self.config)
        self.tokens = self.config.token_head(self.config)

    def __call__(self, batch: MaskedBatch, train: bool = False) -> Metrics:
        """Return loss, accuracy, and as `clm_baseline` the accuracy of always predicting the most frequent token."""
        labels, weights = batch.masked_labels, batch.masked_weights
        is_most_frequent = (labels == self.vocab.most_frequent_id) * weights
        metrics = compute_class_metrics(self.compute_token_logits(batch, train), labels, weights, "clm")
        return metrics | {"clm_baseline": Mean(is_most_frequent.sum(), weights.sum())}

    def compute_token_logits(self, batch: MaskedBatch, train: bool = False) -> Float[Array, "b k v"]:
        """Return vocabulary logits at the masked positions, each from the tokens before it."""
        hidden = self.encoder(batch, train=train)
        before = jnp.maximum(batch.masked_positions - 1, 0)
        return compute_vocabulary_logits(self.tokens, self.encoder, hidden, before)
