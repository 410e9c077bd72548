"""The verb `price`: what a run costs on accelerators, before it starts. All its figures are estimates."""

import math
from collections.abc import Callable, Sequence

import jax

from encoders.cli.experiment_files import ExperimentChoice, load_experiment_file
from encoders.costs.chips import CHIPS, Topology, parse_topologies
from encoders.costs.ledger import estimate_memory, format_gibibytes
from encoders.costs.price import StepFloor, StepPrice, compute_phase_flops, compute_run_seconds, describe_devices
from encoders.costs.search import Trial, find_fitting_settings, format_settings, search_settings, try_settings
from encoders.experiment import Experiment
from encoders.run.preemption import format_duration
from encoders.utils.serialization import ExperimentError


def price_experiments(
    choice: ExperimentChoice,
    topologies: str,
    log: Callable[[str], None],
    rates: Sequence[str] = (),
    search: bool = False,
) -> int:
    """Print the price of each experiment on each topology; the status is 1 where nothing that was tried fits."""
    chosen, hourly_rates = parse_topologies(topologies), parse_rates(rates)
    jax.config.update("jax_platforms", "cpu")  # an accelerator of this machine is left alone
    for topology in chosen:
        if topology.is_tpu:
            describe_devices(topology)  # raises `UserError` before any work
    all_fit = True
    for experiment in load_experiment_file(choice).experiments:
        for topology in chosen:
            rate = hourly_rates.get(topology.chip_name)
            print(f"== {experiment.name} on {topology.name}, {topology.num_chips} chips")
            if topology.is_tpu:
                all_fit &= price_on_tpus(experiment, topology, rate, search, log)
            else:
                print_floor(experiment, topology, rate)
            print()
    return 0 if all_fit else 1


def parse_rates(words: Sequence[str]) -> dict[str, float]:
    """Return the price of a chip's hour by its name, from words such as v5e=1.20. Raises `ExperimentError`."""
    rates = {}
    for word in words:
        name, _, amount = word.partition("=")
        try:
            rates[name] = float(amount)
        except ValueError:
            rates[name] = math.nan
        if name not in CHIPS or not 0 <= rates[name] < math.inf:
            raise ExperimentError(f"--rate {word}: write CHIP=MONEY for an hour of a chip, of {', '.join(CHIPS)}")
    return rates


def price_on_tpus(
    experiment: Experiment, topology: Topology, rate: float | None, search: bool, log: Callable[[str], None]
) -> bool:
    """Print the price of each phase, then settings that fit or are faster; return whether any fit."""
    log_trial = lambda trial: log(f"tried {describe_trial(trial)}")
    log(f"compiling {experiment.name} for {topology.name}, which takes minutes")
    own = best = try_settings(experiment, topology, {})
    print_trial(own)
    if own.run_seconds == math.inf:
        best = find_fitting_settings(experiment, topology, log_trial)
    if best is not None and search:
        best = search_settings(experiment, topology, best, log_trial)
    if best is None:
        print("  nothing that was tried fits; take more chips, or fewer rows a step")
        return False
    if best is not own:
        print(f"  with --set {' '.join(format_settings(best.settings))}")
        print_trial(best)
    print(describe_run(compute_run_seconds(best.prices), topology, rate))
    return True


def print_trial(trial: Trial) -> None:
    if trial.problem:
        print(f"  {trial.problem}")
    for price in trial.prices:
        print(describe_step(price), *describe_price(price), sep="\n    ")


def describe_price(price: StepPrice) -> list[str]:
    """Return lines about a step of one phase."""
    memory = price.topology.chip.memory_bytes / 2**30
    if not price.fits:
        mesh = price.experiment.mesh.build_abstract(price.topology.num_chips)
        parts = format_gibibytes(estimate_memory(price.experiment, mesh))
        return [f"does not fit: XLA needs {price.missing_memory} of {memory:g} GiB; by arithmetic {parts}"]
    arguments, temporaries = (num_bytes / 2**30 for num_bytes in (price.argument_bytes, price.temporary_bytes))
    cycles, total = price.cycles.most_common(), sum(price.cycles.values())
    sent = ", ".join(f"{kind} {size / 1e9:.3g} GB" for kind, size in price.sent_bytes.most_common())
    unknown = f"; {price.num_unknown} instructions have no estimate and count nothing" if price.num_unknown else ""
    milliseconds, sending = (f"{1e3 * seconds:.1f} ms" for seconds in (price.seconds, price.sending_seconds))
    return [
        f"fits: {arguments:.2f} GiB of arguments and {temporaries:.2f} of temporaries, of {memory:g} a chip",
        f"XLA's estimate of a step: {milliseconds}, of which {sending} sending if nothing overlaps{unknown}",
        "computing: " + ", ".join(f"{part} {count / total:.0%}" for part, count in cycles if count >= total / 200),
        f"a chip sends: {sent or 'nothing'}",
        f"{format_speed(price)}, {price.share_of_peak:.1%} of the peak rate",
    ]


def describe_step(price: StepPrice | StepFloor) -> str:
    phase, flops = price.phase, compute_phase_flops(price.experiment, price.phase)
    rows = f"{phase.batch_size} rows of {phase.seq_length}"
    return f"  to step {phase.until_step:,}: {rows}, {flops / 1e12:.3g} TFLOP a step"


def format_speed(price: StepPrice | StepFloor) -> str:
    speed = price.tokens_per_second
    return f"{speed:,.0f} tokens/s, {speed / price.topology.num_chips:,.0f} a chip"


def print_floor(experiment: Experiment, topology: Topology, rate: float | None) -> None:
    """Print the shortest time of each phase on GPUs."""
    floors = [StepFloor(experiment, phase, topology) for phase in experiment.phases]
    for floor in floors:
        times = f"products {1e3 * floor.product_seconds:.1f}, memory {1e3 * floor.memory_seconds:.1f}"
        print(describe_step(floor))
        print(f"    floor by arithmetic, ms: {times}, sending {1e3 * floor.sending_seconds:.1f}")
        print(f"    at most {format_speed(floor)}")
    print(describe_run(compute_run_seconds(floors), topology, rate, "at least "))


def describe_run(seconds: float, topology: Topology, rate: float | None, bound: str = "") -> str:
    hours = seconds / 3600 * topology.num_chips
    line = f"  whole run: {bound}{format_duration(seconds)}, {hours:,.1f} chip hours"
    return line if rate is None else f"{line}, {hours * rate:,.2f} at {rate:g} a chip hour"


def describe_trial(trial: Trial) -> str:
    """Return the settings of a trial and what came of them."""
    settings = " ".join(format_settings(trial.settings)) or "the experiment's own settings"
    if trial.problem:
        return f"{settings}: {trial.problem}"
    if trial.run_seconds == math.inf:
        return f"{settings}: does not fit, {trial.prices[-1].missing_memory}"
    gibibytes = max(price.argument_bytes + price.temporary_bytes for price in trial.prices) / 2**30
    return f"{settings}: fits in {gibibytes:.2f} GiB, {trial.run_seconds / 3600:.2f} hours"
