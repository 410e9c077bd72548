"""Timing: processes in turn, and ratios only where a core was free."""

import pytest

import encoders
from encoders.bench.measurements import BenchOptions, measure_ablations
from encoders.bench.rounds import Timing, Variant, VariantUnavailable, VariantWorker, compute_speedup, time_alternately
from tests.refusals import raises_naming

SPEC = {"task": "product", "sizes": (8, 4, 6), "dtype": "float32"}


def of(cpu, wall, device="cpu") -> Timing:
    return Timing({"device": device}, cpu, wall)


def test_a_ratio_is_one_of_medians_of_processor_time():
    assert compute_speedup(of([4, 5, 100], [4, 5, 100]), of([2, 2.5, 3], [2, 2.5, 3])) == 2.0
    assert of([4, 5, 6], [9, 9, 9]).median_seconds() == 5


def test_no_ratio_is_given_where_the_machine_was_busy():
    free, busy = of([1.0], [1.2]), of([1.0], [1.4])
    assert (
        compute_speedup(free, free) == 1 and compute_speedup(free, busy) is None and compute_speedup(busy, free) is None
    )


def test_on_an_accelerator_wall_time_counts():
    assert compute_speedup(of([0.1], [3.0], "gpu"), of([0.1], [2.0], "gpu")) == 1.5


def test_the_spread_is_the_distance_of_the_quartiles_over_the_median():
    assert of([1, 2, 3, 4, 5], [0] * 5).relative_spread() == pytest.approx(2 / 3)
    assert of([7], [7]).relative_spread() == 0


def test_variants_take_turns_and_one_that_cannot_run_is_left_out_with_its_reason():
    said = []
    odd = Variant("odd", "jax", SPEC | {"sizes": (8, 4)})
    timings = time_alternately([Variant("a", "jax", SPEC), odd, Variant("b", "jax", SPEC)], 3, 2, None, said.append)
    assert list(timings) == ["a", "b"] and len(said) == 1 and said[0].startswith("odd is left out: ValueError")
    for timing in timings.values():
        assert len(timing.cpu_seconds) == len(timing.wall_seconds) == 3 and min(timing.wall_seconds) > 0
        assert timing.info["flops"] % (2 * 8 * 4 * 6) == 0 and timing.info["device"] == "cpu"
        assert timing.info["peak_bytes"] > 1e6 and timing.values == [timing.values[0]] * 3


def test_a_process_that_ends_is_unavailable():
    with raises_naming(VariantUnavailable, "process"):
        VariantWorker(Variant("none", "jax", SPEC, {"PYTHONHOME": "nowhere"}), None)


def test_an_ablation_times_each_change_that_is_asked_for(monkeypatch):
    timed = []

    def time_variants(options, *variants):
        timed.append([variant.spec["experiment"]["model"].get("remat") for variant in variants])
        return {variant.name: of([2.0], [2.0]) for variant in variants}

    monkeypatch.setattr(BenchOptions, "time_variants", time_variants)
    options = BenchOptions(changes=("model.remat=full", "model.remat=dots"))
    rows = list(measure_ablations([encoders.load_experiments("bert")["bert-tiny"]], options))
    assert [row["what"] for row in rows] == [f"bert-tiny, model.remat={remat}" for remat in ("full", "dots")]
    assert [after for _, after in timed] == ["full", "dots"] and {before for before, _ in timed} == {"none"}
