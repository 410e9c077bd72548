"""What a run costs on accelerators that are not there: floors by arithmetic, the price of a run, and the search."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import encoders
from encoders.costs import ledger, search
from encoders.costs.chips import CHIPS, Topology, parse_topologies
from encoders.costs.device_use import measure_device_use
from encoders.costs.price import StepFloor, StepPrice, compute_run_seconds
from encoders.costs.search import SPLIT_PARAMS, find_fitting_settings, search_settings, try_settings
from encoders.data.stream import BatchRamp
from encoders.training.sharding import Mesh
from encoders.utils.errors import UserError
from tests.refusals import raises_naming

BASE = encoders.load_experiments("bert")["bert-base"]
EIGHT = Topology("v5e", (2, 4))


def test_a_topology_is_a_chip_and_its_grid():
    grid, gpus, slices = parse_topologies("v5p:2x2x2, h200:8,2*v5e:4x4")
    assert (slices.name, slices.slice_name, slices.num_chips) == ("2*v5e:4x4", "v5e:4x4", 32)
    assert (grid.name, grid.num_chips, grid.is_tpu) == ("v5p:2x2x2", 8, True)
    assert (gpus.name, gpus.num_chips, gpus.is_tpu) == ("h200:8", 8, False)
    assert {name for name, chip in CHIPS.items() if chip.cycle_flops} == {"v5e", "v5p", "v6e"}


@pytest.mark.parametrize("given", ["", "v5e", "v9:2x2", "v5e:2x0", "v5e:2y2", "h200:", "0*v5e:2x2"])
def test_what_is_no_topology_is_refused(given):
    with raises_naming(UserError, f"--on {given}".strip(), "h200:8"):
        parse_topologies(given)


def test_a_floor_is_the_slowest_of_products_memory_and_gradients():
    phase, eight = BASE.phases[0], Topology("h200", (8,))
    floor = StepFloor(BASE, phase, eight)
    num_params = ledger.count_params(ledger.eval_param_shapes(BASE.model, BASE.objective))
    saved = ledger.count_saved_activations(BASE.model, 128)
    assert floor.product_seconds == pytest.approx(ledger.step_flops(BASE, np.array([128])).item() * 256 / 8 / 989e12)
    assert floor.memory_seconds == pytest.approx((16 * saved * 256 * 128 / 8 + 40 * num_params) / 4.8e12)
    assert floor.sending_seconds == pytest.approx(2 * 7 / 8 * 4 * num_params / 450e9)
    assert floor.seconds == max(floor.product_seconds, floor.memory_seconds, floor.sending_seconds)
    two = StepFloor(BASE, phase, replace(eight, num_slices=2))
    assert two.sending_seconds == pytest.approx(floor.sending_seconds + 2 * 1 / 2 * 4 * num_params / 8 / 50e9)
    halved = replace(BASE, model=replace(BASE.model, dtype="bfloat16"))
    assert StepFloor(halved, phase, eight).memory_seconds < floor.memory_seconds


def make_price(experiment, phase, milliseconds: float = 100.0, missing_memory=None) -> StepPrice:
    cycles = Counter({"attention": int(milliseconds * 1e-3 * EIGHT.chip.clock)})
    return StepPrice(experiment, phase, EIGHT, 1e9, 2e9, cycles, Counter(), missing_memory)


def test_the_price_of_a_run_is_that_of_all_its_rows():
    short, long = BASE.phases
    prices = [make_price(BASE, short, 100), make_price(BASE, long, 500)]
    assert compute_run_seconds(prices) == pytest.approx(900_000 * 0.1 + 100_000 * 0.5, rel=1e-6)
    half = replace(short, batch_ramp=BatchRamp(128, 64, 900_000))
    ramped = replace(BASE, phases=(half, long))
    rows = sum(count for count, phase in ledger.count_phase_rows(ramped) if phase.until_step <= 900_000)
    prices = [make_price(ramped, half, 100), make_price(ramped, long, 500)]
    assert compute_run_seconds(prices) == pytest.approx(rows * 0.1 / 256 + 100_000 * 0.5, rel=1e-6)


def test_a_step_takes_what_it_computes_and_what_it_sends():
    price = replace(make_price(BASE, BASE.phases[0], 100), sent_bytes=Counter({"all-reduce": 4e9}))
    assert (price.computing_seconds, price.sending_seconds) == pytest.approx((0.1, 0.02), rel=1e-6)
    assert price.tokens_per_second == pytest.approx(256 * 128 / 0.12, rel=1e-6)
    flops = ledger.step_flops(BASE, np.array([128])).item() * 256
    assert price.share_of_peak == pytest.approx(flops / 0.12 / 8 / 197e12, rel=1e-6)


def fake_compiler(fits, milliseconds):
    """Return a `price_step` that knows which experiments fit, and how long their steps take."""

    def price_step(experiment, phase, topology):
        shards = 8 * experiment.grad_accum_steps
        if phase.batch_size % shards:
            raise UserError("rows do not divide")
        if not fits(experiment):
            return make_price(experiment, phase, missing_memory="40 GiB")
        return make_price(experiment, phase, milliseconds(experiment))

    return price_step


def test_settings_that_fit_are_tried_from_the_cheapest(monkeypatch):
    fits = lambda experiment: experiment.model.remat == "full" and experiment.grad_accum_steps >= 4
    monkeypatch.setattr(search, "price_step", fake_compiler(fits, lambda experiment: 100))
    trials = []
    assert try_settings(BASE, EIGHT, {}).run_seconds == math.inf
    found = find_fitting_settings(BASE, EIGHT, trials.append)
    assert found.settings == {"mesh": Mesh(), "model.remat": "full", "grad_accum_steps": 4} and trials[-1] is found
    assert [(t.settings["model.remat"], t.settings["grad_accum_steps"]) for t in trials] == [
        *[("dots", 1), ("full", 1), ("full", 2), ("full", 4)]
    ]


def test_where_nothing_fits_the_search_ends_when_rows_divide_no_further(monkeypatch):
    monkeypatch.setattr(search, "price_step", fake_compiler(lambda experiment: False, None))
    trials = []
    assert find_fitting_settings(BASE, EIGHT, trials.append) is None
    assert {trial.settings["mesh"] for trial in trials} == {Mesh(), SPLIT_PARAMS}
    assert max(trial.settings["grad_accum_steps"] for trial in trials if not trial.problem) == 32


def test_the_search_keeps_what_is_faster_and_gives_it_the_micro_steps_with_which_it_fits(monkeypatch):
    fits = lambda experiment: not experiment.model.unroll_layers or experiment.grad_accum_steps >= 2
    gains = lambda experiment: (
        (100 - 30 * experiment.model.unroll_layers - 5 * (experiment.mesh == SPLIT_PARAMS))
        * (1.1 if experiment.model.remat == "full" else 1)
    )
    monkeypatch.setattr(search, "price_step", fake_compiler(fits, gains))
    start = replace(BASE, model=replace(BASE.model, remat="full"))
    own = try_settings(start, EIGHT, {})
    best = search_settings(start, EIGHT, own, lambda trial: None)
    layout = {"model.unroll_layers": True, "model.remat": "none", "grad_accum_steps": 2}  # one step does not fit
    assert best.settings == {"mesh": SPLIT_PARAMS} | layout
    assert best.run_seconds == pytest.approx(own.run_seconds * 65 / 110, rel=1e-6)


def test_a_known_chip_has_shares_of_its_peak_and_of_what_arithmetic_allows():
    phase, kinds = BASE.phases[0], {"NVIDIA H200": "h200", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
    for kind, name in kinds.items():
        devices = [SimpleNamespace(device_kind=kind)] * 4
        floor = StepFloor(BASE, phase, Topology(name, (4,)))
        use = measure_device_use(BASE, phase, 2.0, devices)
        assert use["share_of_peak"] == pytest.approx(2 * floor.product_seconds, abs=1e-4)
        assert use["share_of_floor"] == pytest.approx(2 * floor.seconds, abs=1e-4)
    assert not measure_device_use(BASE, phase, 2.0, jax.devices())
