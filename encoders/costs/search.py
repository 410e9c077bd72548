"""A search of the settings with which a run is fastest on a topology: each is compiled, and the best that fits wins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from encoders.costs.chips import Topology
from encoders.costs.price import StepPrice, compute_run_seconds, price_step
from encoders.experiment import Experiment, apply_settings
from encoders.training.sharding import Mesh
from encoders.utils.errors import UserError

WHOLE_PARAMS, SPLIT_PARAMS = Mesh(), Mesh(data=1, fsdp=-1)  # on every chip, or divided among them
MAX_GRAD_ACCUM_STEPS = 64
# How layers are compiled, the fastest first; it changes speed and memory alone.
LAYER_LAYOUTS = tuple(
    {"model.unroll_layers": unrolled, "model.remat": remat}
    for unrolled, remat in ((True, "none"), (False, "none"), (False, "dots"), (False, "full"))
)
NUM_DOUBLINGS = 3  # of the micro-steps of a layout that does not fit
Settings = dict[str, object]  # by the path of a field


@dataclass(frozen=True)
class Trial:
    """Settings that were tried, and the price of each phase with them; `problem` says why there is none."""

    settings: Settings
    prices: tuple[StepPrice, ...] = ()
    problem: str | None = None

    @property
    def run_seconds(self) -> float:
        """Return the estimated seconds of the run; infinite where it does not fit."""
        if self.problem or not all(price.fits for price in self.prices):
            return math.inf
        return compute_run_seconds(self.prices)


def format_settings(settings: Settings) -> list[str]:
    """Return settings as the words that `--set` takes."""
    words = []
    for path, value in settings.items():
        if isinstance(value, Mesh):
            words += [f"mesh.{name}={size}" for name, size in vars(value).items()]
        else:
            words.append(f"{path}={str(value).lower() if isinstance(value, bool) else value}")
    return words


def get_setting(experiment: Experiment, path: str) -> object:
    """Return the value of a field of an experiment or of its model."""
    return getattr(experiment.model if path.startswith("model.") else experiment, path.removeprefix("model."))


def try_settings(experiment: Experiment, topology: Topology, settings: Settings) -> Trial:
    """Return the price of each phase with changed settings, up to the first that does not fit."""
    prices = []
    try:
        changed = apply_settings(experiment, format_settings(settings))
        for phase in changed.phases:
            prices.append(price_step(changed, phase, topology))
            if not prices[-1].fits:
                break
    except UserError as error:
        return Trial(settings, problem=str(error))
    return Trial(settings, tuple(prices))


def find_fitting_settings(experiment: Experiment, topology: Topology, log: Callable[[Trial], None]) -> Trial | None:
    """Return the first settings that fit, or None.

    Parameters stay on every chip before they are divided. Products are saved before all is recomputed, and then
    micro-steps become ever smaller.
    """
    num_halvings = int(math.log2(MAX_GRAD_ACCUM_STEPS))
    recomputed = [("dots", 1), *(("full", 2**i) for i in range(num_halvings + 1))]
    for mesh in dict.fromkeys((experiment.mesh, SPLIT_PARAMS)):
        for remat, num_micro_steps in recomputed:
            steps = experiment.grad_accum_steps * num_micro_steps
            settings = {"mesh": mesh, "model.remat": remat, "grad_accum_steps": steps}
            trial = try_settings(experiment, topology, settings)
            log(trial)
            if trial.run_seconds < math.inf:
                return trial
            if trial.problem:  # the rows do not divide further
                break
    return None


def search_settings(experiment: Experiment, topology: Topology, start: Trial, log: Callable[[Trial], None]) -> Trial:
    """Return the fastest trial that is found from one that fits: with the better mesh, each layout of the layers, in
    as few micro-steps as fit."""
    best = start

    def try_other(settings: Settings) -> Trial:
        nonlocal best
        trial = try_settings(experiment, topology, best.settings | settings)
        log(trial)
        best = min(best, trial, key=lambda trial: trial.run_seconds)
        return trial

    def get_current(path: str) -> object:
        return best.settings.get(path, get_setting(experiment, path))

    for mesh in (WHOLE_PARAMS, SPLIT_PARAMS):
        if mesh != get_current("mesh"):
            try_other({"mesh": mesh})
    tried = {path: get_current(path) for path in LAYER_LAYOUTS[0]}
    for layout in LAYER_LAYOUTS:
        num_doublings = 0 if layout == tried else NUM_DOUBLINGS + 1
        for doubling in range(num_doublings):
            trial = try_other(layout | {"grad_accum_steps": experiment.grad_accum_steps * 2**doubling})
            if trial.problem or trial.run_seconds < math.inf:
                break
    return best
