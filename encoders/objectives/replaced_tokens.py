"""ELECTRA's replaced-token detection: a generator fills masks, a discriminator classifies every token (Clark et al.,
2020, §2), and the other ways of training them that the paper compares (§3.2, §3.5 and appendix F).
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from encoders.data.batch import Batch
from encoders.model.config import EncoderConfig
from encoders.model.ops import make_dense
from encoders.objectives.base import Metrics, ObjectiveModule
from encoders.objectives.generator import GeneratorBatch, GeneratorObjective, GeneratorObjectiveModule, GeneratorOutput
from encoders.objectives.losses import binary_cross_entropy, cross_entropy
from encoders.text.tokenization import VocabInfo
from encoders.utils.errors import UserError
from encoders.utils.field_checks import check_fields
from encoders.utils.metrics import Mean, roc_auc

NUM_HISTOGRAM_BINS = 1024  # of the discriminator's probability, for the ROC curve
# The generator's loss terms, each of weight 1. The paper gives no weights for the adversarial ones.
GENERATOR_LOSS_TERMS = {"joint": ("generator_loss",), "adversarial": ("policy_loss", "baseline_loss"), "two_stage": ()}


@dataclass(frozen=True)
class ReplacedTokenDetection(GeneratorObjective):
    """ELECTRA: `rtd_weight` times the discriminator's loss over all tokens, plus the generator's masked-token loss.

    With `loss_over="chosen"` the discriminator's loss is over the masked positions only ("ELECTRA 15%"); the area under
    the ROC curve is still over all tokens. A sample equal to the original token counts as original.

    `generator_training` selects the generator's loss: masked tokens ("joint") or the discriminator's errors
    ("adversarial"). With "two_stage" the generator is frozen: `init_from` names a run that trained it as a masked
    language model, and the discriminator starts from the same weights.
    """

    rtd_weight: float = 50.0
    loss_over: Literal["all", "chosen"] = "all"
    generator_training: Literal["joint", "adversarial", "two_stage"] = "joint"

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "objective.", [("rtd_weight", lambda weight: 0 <= weight < math.inf, "at least 0")])
        if self.generator_training != "joint" and self.generator_width is None:
            raise UserError(
                f"objective.generator_training={self.generator_training} needs a generator, and "
                "objective.generator_width is None"
            )
        if self.generator_training == "two_stage" and self.tie != "none":
            raise UserError(
                f"objective.generator_training=two_stage keeps the generator as it is, and with "
                f"objective.tie={self.tie} it would change with the discriminator; set objective.tie=none"
            )

    @property
    def frozen_params(self) -> tuple[str, ...]:
        return ("generator", "tokens") if self.generator_training == "two_stage" else ()

    @property
    def loss_weights(self) -> dict[str, float]:
        terms = () if self.generator_width is None else GENERATOR_LOSS_TERMS[self.generator_training]
        return dict.fromkeys(terms, 1.0) | {"rtd_loss": self.rtd_weight}

    def module(self, config: EncoderConfig, vocab: VocabInfo) -> ObjectiveModule:
        generator = self.get_generator_config(config)
        if self.generator_training == "two_stage" and generator != config:
            pairs = [(name, value, getattr(generator, name)) for name, value in vars(config).items()]
            differ = ", ".join(f"model.{name} is {mine} and {theirs}" for name, mine, theirs in pairs if mine != theirs)
            raise UserError(
                "objective.generator_training=two_stage begins both networks with the same weights, so they must "
                f"be of one size (objective.generator_width=1, objective.generator_depth=1); of discriminator and "
                f"generator {differ}"
            )
        return ReplacedTokenDetectionModule(config, self, vocab)

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = super().scores(sums)
        scores["rtd_baseline"] = max(scores["rtd_replaced"], 1 - scores["rtd_replaced"])  # of always the same answer
        if "rtd_histogram" in sums:
            scores["rtd_auc"], scores["rtd_auc_error"] = roc_auc(sums["rtd_histogram"].total)
        return scores


class ReplacedTokenDetectionModule(GeneratorObjectiveModule):
    """Discriminator and its head, a generator, and for adversarial training the generator's reward baseline."""

    def setup(self):
        super().setup()
        self.replaced = self.config.replaced_head(self.config)
        if self.objective.generator_training == "adversarial":
            self.baseline = make_dense(self.objective.get_generator_config(self.config), 1)

    def __call__(self, batch: GeneratorBatch, train: bool = False) -> Metrics:
        filled = self.fill_masks(batch, train)
        verdict = self.compute_replaced_logits(batch.replace(input_ids=filled.filled_ids), train)
        labels = (filled.filled_ids != batch.clean_ids).astype(jnp.int32)
        at_chosen = [jnp.take_along_axis(x, batch.masked_positions, axis=1) for x in (verdict, labels)]
        real = (batch.example_ids > 0).astype(jnp.float32)
        judged = (verdict, labels, real) if self.objective.loss_over == "all" else (*at_chosen, batch.masked_weights)
        metrics = filled.metrics | compute_rtd_metrics(*judged)
        if not train:  # of every token, whatever the loss is over
            metrics["rtd_histogram"] = build_score_histogram(verdict, labels, real)
        if self.objective.generator_training == "adversarial":
            # Without gradient, so that the baseline's loss does not train the generator.
            guess = self.baseline(jax.lax.stop_gradient(filled.hidden))[..., 0].astype(jnp.float32)
            metrics |= compute_policy_metrics(filled, binary_cross_entropy(*at_chosen), guess, batch.masked_weights)
        return metrics

    def compute_replaced_logits(self, batch: Batch, train: bool = False) -> Float[Array, "b l"]:
        """Return the discriminator's logit of every token that it was replaced."""
        return self.replaced(self.discriminator(batch, train=train), batch)


def compute_policy_metrics(
    filled: GeneratorOutput,
    reward: Float[Array, "b k"],
    baseline_logits: Float[Array, "b k"],
    weights: Float[Array, "b k"],
) -> Metrics:
    """Return the losses of REINFORCE with a learned baseline, rewarded by the discriminator's loss (appendix F).

    The policy loss is log p(sample) (R - b): R is the discriminator's loss of the sample, b = -log sigmoid(baseline
    logit). The baseline learns b = R by cross-entropy, sigmoid(baseline logit) = exp(-R).
    """
    reward = jax.lax.stop_gradient(reward)
    better = reward - jax.lax.stop_gradient(jax.nn.softplus(-baseline_logits))
    terms = {
        "policy_loss": cross_entropy(filled.logits, filled.sampled_ids) * better,
        "policy_reward": reward,
        "baseline_loss": binary_cross_entropy(baseline_logits, jnp.exp(-reward)),
    }
    return {name: Mean((term * weights).sum(), weights.sum()) for name, term in terms.items()}


def compute_rtd_metrics(
    logits: Float[Array, "b l"], labels: Int[Array, "b l"], token_weights: Float[Array, "b l"]
) -> Metrics:
    """Return loss, accuracy, recall on replaced tokens and their share, over tokens of weight 1."""
    count, replaced = token_weights.sum(), (labels * token_weights).sum()
    nll = binary_cross_entropy(logits, labels)
    predicted = (logits > 0).astype(jnp.int32)
    return {
        "rtd_loss": Mean((nll * token_weights).sum(), count),
        "rtd_accuracy": Mean(((predicted == labels) * token_weights).sum(), count),
        "rtd_recall": Mean((predicted * labels * token_weights).sum(), replaced),
        "rtd_replaced": Mean(replaced, count),
    }


def build_score_histogram(
    logits: Float[Array, "b l"], labels: Int[Array, "b l"], token_weights: Float[Array, "b l"]
) -> Mean:
    """Return the weight of tokens by label and by bin of their probability, `[2, NUM_HISTOGRAM_BINS]`."""
    bins = jnp.minimum((jax.nn.sigmoid(logits) * NUM_HISTOGRAM_BINS).astype(jnp.int32), NUM_HISTOGRAM_BINS - 1)
    return Mean(jnp.zeros((2, NUM_HISTOGRAM_BINS)).at[labels, bins].add(token_weights), token_weights.sum())
