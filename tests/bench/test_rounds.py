"""Timing: processes in turn, and ratios only where a core was free."""

import pytest

from encoders.bench.rounds import Timing, Unavailable, Variant, Worker, alternate, ratio

SPEC = {"task": "product", "sizes": (8, 4, 6), "dtype": "float32"}


def of(cpu, wall, device="cpu") -> Timing:
    return Timing({"device": device}, cpu, wall)


def test_a_ratio_is_one_of_medians_of_processor_time():
    assert ratio(of([4, 5, 100], [4, 5, 100]), of([2, 2.5, 3], [2, 2.5, 3])) == 2.0
    assert of([4, 5, 6], [9, 9, 9]).seconds() == 5


def test_no_ratio_is_given_where_the_machine_was_busy():
    free, busy = of([1.0], [1.2]), of([1.0], [1.4])
    assert ratio(free, free) == 1 and ratio(free, busy) is None and ratio(busy, free) is None


def test_on_an_accelerator_wall_time_counts():
    assert ratio(of([0.1], [3.0], "gpu"), of([0.1], [2.0], "gpu")) == 1.5


def test_the_spread_is_the_distance_of_the_quartiles_over_the_median():
    assert of([1, 2, 3, 4, 5], [0] * 5).spread() == pytest.approx(2 / 3)
    assert of([7], [7]).spread() == 0


def test_variants_take_turns_and_one_that_cannot_run_is_left_out_with_its_reason():
    said = []
    odd = Variant("odd", "ours", SPEC | {"sizes": (8, 4)})
    timings = alternate([Variant("a", "ours", SPEC), odd, Variant("b", "ours", SPEC)], 3, 2, None, said.append)
    assert list(timings) == ["a", "b"] and len(said) == 1 and said[0].startswith("odd is left out: ValueError")
    for timing in timings.values():
        assert len(timing.cpu) == len(timing.wall) == 3 and min(timing.wall) > 0
        assert timing.facts["flops"] % (2 * 8 * 4 * 6) == 0 and timing.facts["device"] == "cpu"
        assert timing.facts["peak_bytes"] > 1e6 and timing.values == [timing.values[0]] * 3


def test_a_process_that_ends_is_unavailable():
    with pytest.raises(Unavailable, match="its process ended with"):
        Worker(Variant("none", "ours", SPEC, {"PYTHONHOME": "nowhere"}), None)
