"""ELECTRA's replaced-token detection: a generator fills masks, a discriminator judges every token (Clark et al., 2020,
§2), and the other ways of training the two with which it is compared (§3.2, §3.5 and appendix F).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from encoders.model.config import Model
from encoders.model.heads import ReplacedTokenHead
from encoders.model.layers import dense
from encoders.objectives.base import Metrics, Objectives
from encoders.objectives.generator import Filled, Generating, GeneratingModule
from encoders.objectives.losses import losses
from encoders.objectives.masking import Batch
from encoders.text.tokenization import Facts
from encoders.utils.metrics import Mean, auc

BINS = 1024  # of the discriminator's probability, for the ROC curve
# The generator's loss terms, each of weight 1. The paper gives no weights for the adversarial ones.
TERMS = {"joint": ("generator_loss",), "adversarial": ("policy_loss", "baseline_loss"), "two_stage": ()}


@dataclass(frozen=True)
class ReplacedTokens(Generating):
    """λ times the discriminator's loss over all tokens that are no padding, plus the generator's masked-token loss.

    With `over="chosen"` the loss is over the tokens alone that were masked out ("ELECTRA 15%"); the area under the ROC
    curve is of all tokens still. A sample equal to the original token is labelled original. `training` says what the
    generator learns from: masked tokens ("joint"), or the discriminator's errors ("adversarial"). With "two_stage" it
    learns nothing: the run that `start` names has trained it alone, as a masked language model, and with its weights
    the discriminator begins too.
    """

    weight: float = 50.0
    over: Literal["all", "chosen"] = "all"
    training: Literal["joint", "adversarial", "two_stage"] = "joint"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"objective.weight={self.weight} must be at least 0")
        if self.training != "joint" and self.width is None:
            raise ValueError(f"objective.training={self.training} needs a generator, and objective.width is None")
        if self.training == "two_stage" and self.tie != "none":
            raise ValueError(
                f"objective.training=two_stage keeps the generator as it is, and with objective.tie={self.tie} it "
                "would change with the discriminator; set objective.tie=none"
            )

    @property
    def frozen(self) -> tuple[str, ...]:
        return ("generator", "tokens") if self.training == "two_stage" else ()

    @property
    def weights(self) -> dict[str, float]:
        terms = () if self.width is None else TERMS[self.training]
        return dict.fromkeys(terms, 1.0) | {"rtd_loss": self.weight}

    def check(self, model: Model) -> None:
        super().check(model)
        if self.training == "two_stage" and (generator := self.generator(model)) != model:
            pairs = [(name, value, getattr(generator, name)) for name, value in vars(model).items()]
            differ = ", ".join(f"model.{name} is {mine} and {theirs}" for name, mine, theirs in pairs if mine != theirs)
            raise ValueError(
                "objective.training=two_stage begins both networks with the same weights, so they must be of one size "
                f"(objective.width=1, objective.depth=1); of discriminator and generator {differ}"
            )

    def begun(self, before: Objectives, found: dict) -> dict:
        begun = super().begun(before, found)
        if self.training == "two_stage" and before.body != self.body:
            # Its own copy: a donated buffer may occur once.
            begun |= {"generator": jax.tree.map(jnp.copy, found[before.body])}
            begun |= {name: found[name] for name in found if name == "tokens"}
        return begun

    def networks(self, model: Model) -> list[Model]:
        return [model] if self.frozen else super().networks(model)

    def flops(self, model: Model, sizes: np.ndarray) -> dict[str, np.ndarray]:
        return super().flops(model, sizes) | {"replaced": sizes * 2.0 * (model.hidden**2 + model.hidden)}

    def module(self, model: Model, facts: Facts) -> nn.Module:
        return ReplacedTokensModule(model, self, facts)

    def counts(self, batch: Batch) -> dict:
        chosen = batch["weights"].sum()
        judged = (batch["example"] > 0).sum() if self.over == "all" else chosen
        return dict.fromkeys(self.weights, chosen) | {"rtd_loss": judged}

    def scores(self, sums: Metrics) -> dict[str, float]:
        scores = super().scores(sums)
        scores["rtd_baseline"] = max(scores["rtd_replaced"], 1 - scores["rtd_replaced"])  # always the same verdict
        if "rtd_histogram" in sums:
            scores["rtd_auc"], scores["rtd_auc_error"] = auc(sums["rtd_histogram"].total)
        return scores

    def ailments(self, scores: dict[str, float]) -> list[str]:
        found = []
        if scores["rtd_replaced"] < 0.02:
            found.append(
                f"only {scores['rtd_replaced']:.1%} of the tokens are replaced, too few to learn from: a lower "
                "objective.width or objective.depth, a higher objective.temperature or mask rate may help"
            )
        if scores["rtd_accuracy"] <= scores["rtd_baseline"]:
            verdict = "original" if scores["rtd_replaced"] <= 0.5 else "replaced"
            found.append(
                f"the discriminator is right for {scores['rtd_accuracy']:.2%} of the tokens, and always saying "
                f"'{verdict}' would be for {scores['rtd_baseline']:.2%}: more steps, another optimizer.rate, a longer "
                "optimizer.warmup or a smaller generator (objective.width) may help"
            )
        learns = "generator_loss" in self.weights and "generator_mask_accuracy" in scores
        if learns and scores["generator_mask_accuracy"] <= scores["generator_mask_baseline"]:
            found.append(
                f"the generator finds {scores['generator_mask_accuracy']:.2%} of the masked tokens, and the commonest "
                f"token alone would be {scores['generator_mask_baseline']:.2%}: a higher optimizer.rate, or a lower "
                "objective.weight of the discriminator, may help"
            )
        return found


class ReplacedTokensModule(GeneratingModule):
    """Discriminator, its verdict, and a generator; a guess at the verdict where that is what the generator is after."""

    objective: ReplacedTokens

    def setup(self):
        super().setup()
        self.replaced = ReplacedTokenHead(self.model)
        if self.objective.training == "adversarial":
            self.baseline = dense(self.objective.generator(self.model), 1)

    def __call__(self, batch: Batch, train: bool = False) -> Metrics:
        filled = self.fill(batch, train)
        verdict = self.judge(batch | {"tokens": filled.tokens}, train)
        labels = (filled.tokens != batch["original"]).astype(jnp.int32)
        at_chosen = [jnp.take_along_axis(x, batch["picked"], axis=1) for x in (verdict, labels)] + [batch["weights"]]
        real = (batch["example"] > 0).astype(jnp.float32)
        judged = (verdict, labels, real) if self.objective.over == "all" else at_chosen
        metrics = filled.metrics | replaced_token_metrics(*judged)
        if not train:  # of every token, whatever the loss is over
            metrics["rtd_histogram"] = histogram(verdict, labels, real)
        if self.objective.training == "adversarial":
            # What the baseline reads carries no gradient: it is no third thing that the generator learns from.
            guess = self.baseline(jax.lax.stop_gradient(filled.hidden))[..., 0].astype(jnp.float32)
            metrics |= policy_metrics(filled, judged_loss(*at_chosen[:2]), guess, batch["weights"])
        return metrics

    def judge(self, batch: Batch, train: bool = False) -> Float[Array, "b l"]:
        """The discriminator's logit, for every token, that it was replaced."""
        rest = (batch["example"], batch["segments"], batch["positions"])
        return self.replaced(self.discriminator(batch["tokens"], *rest, train=train))


def judged_loss(verdict: Float[Array, "b k"], labels: Int[Array, "b k"]) -> Float[Array, "b k"]:
    """Binary cross-entropy."""
    return jax.nn.softplus(verdict) - verdict * labels


def policy_metrics(
    filled: Filled, reward: Float[Array, "b k"], guess: Float[Array, "b k"], weights: Float[Array, "b k"]
) -> Metrics:
    """REINFORCE with a learned baseline: the generator is after the discriminator's loss (appendix F).

    Its expected reward has the gradient of log p(sample) (R - b), R being the discriminator's loss for the sample and
    b = -log sigmoid(`guess`), which learns by cross-entropy to be R: sigmoid(`guess`) to be exp(-R).
    """
    reward, count = jax.lax.stop_gradient(reward), weights.sum()
    better = reward - jax.lax.stop_gradient(jax.nn.softplus(-guess))
    return {
        "policy_loss": Mean((losses(filled.logits, filled.samples) * better * weights).sum(), count),
        "policy_reward": Mean((reward * weights).sum(), count),
        "baseline_loss": Mean(((jax.nn.softplus(guess) - guess * jnp.exp(-reward)) * weights).sum(), count),
    }


def replaced_token_metrics(
    verdict: Float[Array, "b l"], labels: Int[Array, "b l"], real: Float[Array, "b l"]
) -> Metrics:
    """Binary cross-entropy over the tokens that are `real`; accuracy, recall on the replaced, their fraction."""
    count, replaced = real.sum(), (labels * real).sum()
    nll = judged_loss(verdict, labels)
    said = (verdict > 0).astype(jnp.int32)
    return {
        "rtd_loss": Mean((nll * real).sum(), count),
        "rtd_accuracy": Mean(((said == labels) * real).sum(), count),
        "rtd_recall": Mean((said * labels * real).sum(), replaced),
        "rtd_replaced": Mean(replaced, count),
    }


def histogram(verdict: Float[Array, "b l"], labels: Int[Array, "b l"], real: Float[Array, "b l"]) -> Mean:
    """How many `real` tokens of each label have a probability in each of `BINS` equal bins, `[2, BINS]`."""
    bins = jnp.minimum((jax.nn.sigmoid(verdict) * BINS).astype(jnp.int32), BINS - 1)
    return Mean(jnp.zeros((2, BINS)).at[labels, bins].add(real), real.sum())
