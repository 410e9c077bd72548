"""Batches that grow over the first updates of a phase: the sizes, the rows, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from encoders.costs.ledger import count_phase_rows
from encoders.data.stream import BatchRamp, Phase, expand_batch_ramps
from encoders.experiment import ExperimentError
from encoders.run.run import check_batch_sizes
from encoders.training.sharding import Mesh
from encoders.utils.errors import UserError
from tests.data.streams import PAIRS, opener, same
from tests.refusals import raises_naming
from tests.run.test_loop import experiment

RAMP = BatchRamp(start=2, unit=1, num_steps=12)
GROWING = Phase(until_step=20, seq_length=16, batch_size=6, format=PAIRS, batch_ramp=RAMP)


def sizes_of(*phases) -> list[int]:
    """The batch size of every step."""
    expanded = expand_batch_ramps(phases)
    starts = (0, *(phase.until_step for phase in expanded))
    spans = zip(expanded, starts, strict=False)
    return [size for phase, start in spans for size in [phase.batch_size] * (phase.until_step - start)]


def list_rows(batches) -> list[tuple[int, int]]:
    """The pass and the index of every row, in order of these."""
    columns = [np.concatenate([getattr(b, name)[:, 0] for b in batches]) for name in ("pass_index", "example_index")]
    return sorted(zip(*map(np.ndarray.tolist, columns), strict=True))


@pytest.mark.parametrize(
    "phases, sizes",
    [
        ([GROWING], [2] * 3 + [3] * 3 + [4] * 3 + [5] * 3 + [6] * 8),
        ([replace(GROWING, batch_ramp=BatchRamp(2, 2, 5))], [2] * 2 + [4] * 3 + [6] * 15),
        ([replace(GROWING, batch_ramp=BatchRamp(1, 4, 20))], [1] * 10 + [5] * 10),  # the whole phase, up to its unit
        ([replace(GROWING, batch_ramp=None)], [6] * 20),
        (
            [Phase(3, 16, 9, PAIRS), replace(GROWING, batch_size=4, batch_ramp=BatchRamp(2, 1, 2))],
            [9] * 3 + [2, 3] + [4] * 15,
        ),
    ],
)
def test_each_size_of_a_ramp_is_held_for_the_same_number_of_updates(phases, sizes):
    assert sizes_of(*phases) == sizes


@pytest.mark.parametrize("num_length_buckets", [1, 2])
def test_a_growing_batch_depends_on_its_step_alone_and_no_row_is_left_out_or_read_twice(num_length_buckets, tmp_path):
    new, growing = opener(tmp_path), replace(GROWING, num_length_buckets=num_length_buckets)
    constant = replace(growing, batch_size=1, batch_ramp=None, until_step=sum(sizes_of(growing)))
    batches = [new((growing,)).build_batch(step) for step in range(20)]
    assert [len(batch.input_ids) for batch in batches] == sizes_of(growing)
    anew = new((growing,))
    assert all(same(anew.build_batch(step), batches[step]) for step in (19, 4, 11, 0, 12))
    stream = new((constant,))
    singly = [stream.build_batch(step) for step in range(constant.until_step)]
    assert list_rows(batches) == list_rows(singly)


@pytest.mark.parametrize(
    "ramp, named",
    [
        (BatchRamp(4, 1, 5), ["batch_ramp.start=4", "batch_size=4"]),
        (BatchRamp(1, 1, 2), ["batch_ramp.num_steps=2", "3 batch sizes", "12 steps"]),
        (BatchRamp(1, 1, 13), ["batch_ramp.num_steps=13", "3 batch sizes", "12 steps"]),
    ],
)
def test_a_ramp_that_does_not_fit_its_phase_is_refused(ramp, named, tmp_path):
    made = experiment("text.txt", "bert", tmp_path)
    with raises_naming(ExperimentError, *named):
        replace(made, phases=(replace(made.phases[0], batch_ramp=ramp),))


def test_every_size_of_a_ramp_must_be_divided_by_micro_steps_and_devices(tmp_path):
    made = experiment("text.txt", "bert", tmp_path)
    phases = (replace(made.phases[0], batch_ramp=BatchRamp(2, 1, 4)),)
    with raises_naming(ExperimentError, "phases.batch_size=3", "grad_accum_steps=2"):
        replace(made, phases=phases, grad_accum_steps=2)
    with raises_naming(UserError, "phases.batch_size=3", "2: mesh.data"):
        check_batch_sizes(replace(made, phases=phases), Mesh().build_abstract(2))


@pytest.mark.parametrize("field", ["start", "unit", "num_steps"])
def test_a_ramp_without_rows_or_steps_is_refused(field):
    with raises_naming(ValueError, f"phases.batch_ramp.{field}=0"):
        replace(RAMP, **{field: 0})


def test_the_cost_of_a_ramp_is_that_of_its_rows(tmp_path):
    made = experiment("text.txt", "bert", tmp_path)
    made = replace(made, phases=(replace(made.phases[0], batch_ramp=BatchRamp(2, 1, 4)),))
    assert sum(rows for rows, _ in count_phase_rows(made)) == 2 * 2 + 2 * 3 + 8 * 4
