"""Learning-rate schedules: the fraction of the learning rate after each number of updates.

The schedules of the four papers have names. The later ones are values with steps of their own: warm-up-stable-decay
(Hu et al., 2024, https://arxiv.org/abs/2404.06395), its 1-sqrt decay (Hägele et al., 2024,
https://arxiv.org/abs/2405.18392), cosine, and pieces with a peak for each phase of a run.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from encoders.utils.field_checks import check_fields

ScheduleName = Literal["replace", "peak", "product", "constant"]
DecayName = Literal["linear", "cosine", "one_minus_sqrt"]


def compute_one_minus_sqrt(step, num_steps: int) -> jax.Array:
    """Return 1 - √(t / N), clipped to the N steps."""
    return 1 - jnp.sqrt(jnp.clip(step / num_steps, 0, 1))


def build_decay(name: DecayName, num_steps: int) -> optax.Schedule:
    """Return the schedule from 1 to 0 over `num_steps`."""
    if name == "linear":
        return optax.linear_schedule(1.0, 0.0, num_steps)
    if name == "cosine":
        return optax.cosine_decay_schedule(1.0, num_steps)
    return partial(compute_one_minus_sqrt, num_steps=num_steps)


@dataclass(frozen=True)
class SchedulePiece:
    """Part of a schedule up to `until_step`, from the fraction `start` of the learning rate to the fraction `end`."""

    until_step: int
    start: float = 1.0
    end: float = 1.0
    decay: DecayName = "linear"

    def __post_init__(self):
        checks = (
            ("until_step", lambda step: step >= 1, "at least 1"),
            ("start end", lambda fraction: 0 <= fraction <= 1, "from 0 to 1"),
        )
        check_fields(self, "optimizer.schedule.pieces.", checks)

    def build_schedule(self, first_step: int) -> optax.Schedule:
        """Return the fraction by the number of steps since `first_step`."""
        decay = build_decay(self.decay, max(self.until_step - first_step, 1))
        return lambda step: self.end + (self.start - self.end) * decay(step)


class Schedule:
    """Base class of schedules that are values, frozen dataclasses. A subclass lists pieces that cover the run.

    The optimiser's warm-up of w steps multiplies them by min(1, t / w).
    """

    def list_pieces(self, warmup_steps: int, total_steps: int) -> tuple[SchedulePiece, ...]:
        raise NotImplementedError

    def find_problem(self, warmup_steps: int, total_steps: int) -> str | None:
        """Return why a run of `total_steps` cannot have this schedule, if it cannot."""
        return None

    def compute_fraction(self, step, warmup_steps: int, total_steps: int) -> jax.Array:
        """Return the fraction after `step` updates, without the warm-up."""
        pieces = self.list_pieces(warmup_steps, total_steps)
        first_steps = (0, *(piece.until_step for piece in pieces[:-1]))
        schedules = [piece.build_schedule(first_step) for piece, first_step in zip(pieces, first_steps, strict=True)]
        return optax.join_schedules(schedules, first_steps[1:])(step)


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """The whole rate until the last N steps, in which it decays to `final_fraction`.

    The trapezoidal schedule of ModernBERT (Warner et al., 2024, https://arxiv.org/abs/2412.13663, §2.2). N is
    `decay_fraction` of the run's T steps. "one_minus_sqrt" is f + (1 - f)(1 - √((t - T + N) / N)).

    >>> schedule = WarmupStableDecay(decay_fraction=0.5)
    >>> [float(compute_rate_fraction(schedule, step, warmup_steps=2, total_steps=8)) for step in (0, 1, 4, 5, 8)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    decay_fraction: float = 0.1
    decay: DecayName = "one_minus_sqrt"
    final_fraction: float = 0.0

    def __post_init__(self):
        checks = (
            ("decay_fraction", lambda fraction: 0 < fraction <= 1, "above 0 and at most 1"),
            ("final_fraction", lambda fraction: 0 <= fraction <= 1, "from 0 to 1"),
        )
        check_fields(self, "optimizer.schedule.", checks)

    def count_decay_steps(self, total_steps: int) -> int:
        return max(round(self.decay_fraction * total_steps), 1)

    def list_pieces(self, warmup_steps: int, total_steps: int) -> tuple[SchedulePiece, ...]:
        stable_steps = total_steps - self.count_decay_steps(total_steps)
        decay = SchedulePiece(total_steps, 1.0, self.final_fraction, self.decay)
        return (SchedulePiece(stable_steps), decay) if stable_steps else (decay,)

    def find_problem(self, warmup_steps: int, total_steps: int) -> str | None:
        if warmup_steps + self.count_decay_steps(total_steps) <= total_steps:
            return None
        return (
            f"optimizer.warmup_steps={warmup_steps} and optimizer.schedule.decay_fraction={self.decay_fraction} exceed "
            f"the run's {total_steps} steps; lower them or raise phases.until_step"
        )


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a period of a cosine from the end of the warm-up to the end of the run, down to `final_fraction`.

    Loshchilov and Hutter, 2017, https://arxiv.org/abs/1608.03983, without restarts.
    """

    final_fraction: float = 0.0

    def __post_init__(self):
        check_fields(self, "optimizer.schedule.", [("final_fraction", lambda share: 0 <= share <= 1, "from 0 to 1")])

    def list_pieces(self, warmup_steps: int, total_steps: int) -> tuple[SchedulePiece, ...]:
        decay = SchedulePiece(total_steps, 1.0, self.final_fraction, "cosine")
        return (SchedulePiece(warmup_steps), decay) if warmup_steps else (decay,)


@dataclass(frozen=True)
class PiecewiseSchedule(Schedule):
    """Pieces with ends and fractions of their own, such as one for each phase of a run.

    ModernBERT's pre-training, context extension at 3/8 of its rate, and annealing:

        PiecewiseSchedule(
            (
                SchedulePiece(until_step=850_000),
                SchedulePiece(until_step=975_000, start=0.375, end=0.375),
                SchedulePiece(until_step=1_000_000, start=0.375, end=0.0, decay="one_minus_sqrt"),
            )
        )
    """

    pieces: tuple[SchedulePiece, ...]

    def list_pieces(self, warmup_steps: int, total_steps: int) -> tuple[SchedulePiece, ...]:
        return self.pieces

    def find_problem(self, warmup_steps: int, total_steps: int) -> str | None:
        until_steps = [piece.until_step for piece in self.pieces]
        if until_steps == sorted(set(until_steps)) and until_steps[-1:] == [total_steps]:
            return None
        return f"optimizer.schedule.pieces.until_step={until_steps} must rise to the run's {total_steps} steps"


def compute_rate_fraction(schedule: ScheduleName | Schedule, step, warmup_steps: int, total_steps: int) -> jax.Array:
    """Return the fraction after t of T steps, w of them warm-up, as float32 of the shape of `step`.

    - "replace": t / w before w and max(0, 1 - t / T) from there, as in BERT and ALBERT: it drops by w / T at t = w.
    - "peak": t / w before w and (T - t) / (T - w) from there, as in RoBERTa. fairseq builds its scheduler with the rate
      of t = 1, but its trainer sets the rate of t = 0 before the first update.
    - "product": min(1, t / w) max(0, 1 - t / T), as in ELECTRA: the largest fraction is below 1.
    - "constant": min(1, t / w).
    - a `Schedule`: min(1, t / w) times its fraction.

    >>> [round(float(compute_rate_fraction("peak", step, warmup_steps=2, total_steps=6)), 3) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, step / warmup_steps) if warmup_steps else jnp.ones_like(step)
    if isinstance(schedule, Schedule):
        return warmup * schedule.compute_fraction(step, warmup_steps, total_steps)
    decay = jnp.maximum(0.0, 1.0 - step / total_steps)
    if schedule == "constant":
        return warmup
    if schedule == "product":
        return warmup * decay
    if schedule == "peak":
        decay = decay * total_steps / max(total_steps - warmup_steps, 1)
    return jnp.where(step < warmup_steps, warmup, decay)
