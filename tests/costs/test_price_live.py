"""The price of a run by XLA's compiler for TPUs, which the extra `tpu` brings and any CPU runs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import encoders
from encoders.costs import ledger
from encoders.costs.chips import parse_topologies
from encoders.costs.price import describe_devices, price_step
from encoders.costs.program import parse_collectives, sum_cycles_by_part
from encoders.training.sharding import Mesh
from encoders.utils.errors import UserError
from tests.refusals import raises_naming

pytestmark = pytest.mark.live
TINY = encoders.load_experiments("bert")["bert-tiny"]


@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_a_large_product_is_estimated_at_the_peak_rate(name):
    """Published peaks and XLA's estimates agree on 2048 x 4096 x 4096 within a fifth."""
    (topology,) = parse_topologies(name)
    place = jax.sharding.SingleDeviceSharding(describe_devices(topology)[0])
    x, y = (jax.ShapeDtypeStruct((n, 4096), jnp.bfloat16, sharding=place) for n in (2048, 4096))
    program = jax.jit(lambda x, y: x @ y).lower(x, y).compile().as_text()
    seconds = sum(sum_cycles_by_part(program).values()) / topology.chip.clock
    share = 2 * 2048 * 4096**2 / seconds / topology.chip.peak_flops
    assert 0.8 < share < 1.0


def test_a_step_is_priced_on_chips_that_are_not_there():
    (topology,) = parse_topologies("v5e:2x2")
    experiment = replace(TINY, model=replace(TINY.model, dtype="bfloat16"), phases=TINY.phases[:1])
    price = price_step(experiment, experiment.phases[0], topology)
    num_params = ledger.count_params(ledger.eval_param_shapes(experiment.model, experiment.objective))
    assert price.fits and 12 * num_params < price.argument_bytes < 13 * num_params
    assert {"attention", "feed-forward", "heads and losses", "optimizer"} <= price.cycles.keys()
    assert 0 < price.share_of_peak < 1
    (sent,) = price.sent_bytes.values()  # in bfloat16 or float32; the word table's twice, for lookup and logits
    assert 2 * 3 / 4 * 2 * num_params < sent < 2 * 3 / 4 * (2 + 4) * num_params


def test_what_does_not_fit_is_told_with_what_it_needs():
    (topology,) = parse_topologies("v5e:2x2")
    phase = replace(TINY.phases[1], until_step=TINY.num_steps, batch_size=4096)
    price = price_step(replace(TINY, phases=(phase,)), phase, topology)
    assert not price.fits and float(price.missing_memory.removesuffix(" GiB")) > 16


def test_a_grid_that_is_unknown_to_the_compiler_is_refused():
    (topology,) = parse_topologies("v5e:3x7")
    with raises_naming(UserError, "--on v5e:3x7"):
        describe_devices(topology)


def test_the_axis_data_goes_across_slices_and_only_its_sums_leave_them():
    (topology,) = parse_topologies("2*v5e:2x2")
    mesh = Mesh(data=2, fsdp=4).build(describe_devices(topology))
    assert [{device.slice_index for device in row.ravel()} for row in mesh.devices] == [{0}, {1}]
    shard = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))
    gradient = jax.jit(jax.grad(lambda w, x: jnp.tanh(x @ w).sum()), out_shardings=NamedSharding(mesh, P("fsdp")))
    program = gradient.lower(shard((512, 512), "fsdp"), shard((64, 512), ("data", "fsdp"))).compile().as_text()
    sent = {collective.kind: collective.sent_bytes for collective in parse_collectives(program)}
    assert sent["network send"] == 512 * 512 * 4 / 4  # each chip its share
