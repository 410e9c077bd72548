import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder, is_stacked
from encoders.training.optimizer import AdamW, tree_paths
from encoders.training.sharding import MESH_AXES, Mesh, infer_shardings, make_batch_sharding, shard_batch
from encoders.training.step import make_blank_batch
from tests.refusals import assert_names, raises_naming

TINY = EncoderConfig(
    vocab_size=20, hidden_size=8, num_layers=3, num_heads=2, intermediate_size=12, embedding_size=4, max_positions=10
)

# What eight devices do is asked of a process of its own, so that the other tests keep one device.
EIGHT = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp
import numpy as np
import optax
from encoders.model.config import EncoderConfig
from encoders.model.encoder import Encoder
from encoders.data.batch import build_single_example_batch
from encoders.training.optimizer import Lamb
from encoders.training.sharding import Mesh, infer_shardings, shard_batch
from encoders.training.step import make_blank_batch

def refusal(mesh):
    try:
        mesh.build()
    except ValueError as error:
        return str(error)

tokens = np.arange(40, dtype=np.int32).reshape(8, 5) % 21
real = (tokens > 2).astype(np.int32)
batch = build_single_example_batch(tokens).replace(example_ids=real, token_type_ids=real)

def loss(params, model, batch):
    x = Encoder(model).apply({"params": params}, batch)
    return jnp.mean(x[..., 0] ** 2 * x[..., 1]), x

def start(model):
    return jax.jit(lambda key: Encoder(model).init(key, make_blank_batch(5))["params"])(jax.random.key(0))

def train(model, params, moments, rows):
    (_, x), grads = jax.value_and_grad(loss, has_aux=True)(params, model, rows)
    updates, moments = lamb.update(grads, moments, params)
    return x, optax.apply_updates(params, updates)

lamb = Lamb(learning_rate=0.1, warmup_steps=0).build_transformation(10)
step = jax.jit(train, static_argnums=0)
out = {"refused": [refusal(Mesh(data=3)), refusal(Mesh(fsdp=3)), refusal(Mesh(data=2, fsdp=2, model=1))]}
mesh = Mesh(fsdp=2, model=2).build()
out["shape"], out["types"] = dict(mesh.shape), sorted({kind.name for kind in mesh.axis_types})
out["part"] = dict(Mesh(data=1, model=-1).build(jax.devices()[:4]).shape)
placed = shard_batch(batch, mesh).input_ids
out["batch"] = [list(placed.shape), str(placed.sharding.spec), [len(s.data) for s in placed.addressable_shards]]
out["same batch"] = bool(np.array_equal(placed, tokens))
out["apart"] = {}
sizes = dict(hidden_size=8, max_positions=10)
even = EncoderConfig(vocab_size=22, num_layers=3, num_heads=2, intermediate_size=12, embedding_size=4, **sizes)
odd = EncoderConfig(
    vocab_size=21, num_layers=2, num_heads=1, intermediate_size=9, embedding_size=5, **sizes,
    shared_parts=("feed_forward",),
)
for name, model in (("even", even), ("odd", odd)):
    params = start(model)
    moments = lamb.init(params)
    spread, spread_moments = (jax.device_put(tree, infer_shardings(tree, mesh)) for tree in (params, moments))
    results = step(model, params, moments, batch), step(model, spread, spread_moments, shard_batch(batch, mesh))
    difference = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))), *results)
    out["apart"][name] = float(max(jax.tree.leaves(difference)))
    if name == "even":
        kernel = spread["layers"]["transform"]["up"]["kernel"]
        out["kernel"] = [list(kernel.shape), list(kernel.addressable_shards[0].data.shape)]
print(json.dumps(out))
"""


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mesh(data=1, fsdp=1, model=1):
    return AbstractMesh((data, fsdp, model), MESH_AXES)


def parameters(model):
    return jax.eval_shape(lambda: Encoder(model).init(jax.random.key(0), make_blank_batch(5))["params"])


def specs(tree, mesh) -> dict[str, P]:
    found = jax.tree.map(lambda path, sharding: (path, sharding.spec), tree_paths(tree), infer_shardings(tree, mesh))
    return dict(jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, tuple) and not isinstance(x, P)))


@pytest.fixture(scope="module")
def eight():
    """What the script above finds on eight devices."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", EIGHT]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_table_splits_every_kind_of_parameter():
    found = specs(parameters(TINY), mesh(2, 2, 2))
    assert found == {
        "embed/word/embedding": P("model", "fsdp"),
        "embed/position/embedding": P(None, "fsdp"),
        "embed/segment/embedding": P(None, "fsdp"),
        "embed/norm/scale": P(),
        "embed/norm/bias": P(),
        "project/kernel": P("fsdp"),
        "project/bias": P(),
        **{f"layers/attend/{name}/kernel": P(None, "fsdp", "model") for name in ("query", "key", "value")},
        **{f"layers/attend/{name}/bias": P(None, "model") for name in ("query", "key", "value")},
        "layers/attend/out/kernel": P(None, "model", "fsdp"),
        "layers/attend/out/bias": P(),
        "layers/transform/up/kernel": P(None, "fsdp", "model"),
        "layers/transform/up/bias": P(None, "model"),
        "layers/transform/down/kernel": P(None, "model", "fsdp"),
        "layers/transform/down/bias": P(),
        **{f"layers/{part}/norm/{name}": P() for part in ("attend", "transform") for name in ("scale", "bias")},
    }


def test_heads_are_split_too():
    heads = {
        "tokens": {"dense": {"kernel": leaf(8, 4)}, "norm": {"scale": leaf(4)}, "bias": leaf(20)},
        "sentences": {"kernel": leaf(8, 2), "bias": leaf(2)},
        "replaced": {"dense": {"kernel": leaf(8, 8)}, "out": {"kernel": leaf(8, 1), "bias": leaf(1)}},
    }
    assert specs(heads, mesh(1, 2, 2)) == {
        "tokens/dense/kernel": P("fsdp"),
        "tokens/norm/scale": P(),
        "tokens/bias": P("model"),
        "sentences/kernel": P("fsdp"),
        "sentences/bias": P(),
        "replaced/dense/kernel": P("fsdp"),
        "replaced/out/kernel": P("fsdp"),
        "replaced/out/bias": P(),
    }


@pytest.mark.parametrize("share", [(), ("attention",), ("feed_forward",), ("attention", "feed_forward")])
def test_the_first_axis_of_a_stack_stays_whole(share):
    model = EncoderConfig(
        vocab_size=20,
        hidden_size=8,
        num_layers=4,
        num_heads=2,
        intermediate_size=12,
        embedding_size=8,
        shared_parts=share,
        num_groups=2 if share else 1,
    )
    found = specs({"discriminator": {"encoder": parameters(model)}}, mesh(2, 2, 2))
    assert all(spec[:1] in ((), (None,)) for path, spec in found.items() if is_stacked(path))
    for field, part, name in (("attention", "attend", "query"), ("feed_forward", "transform", "up")):
        home = "shared" if field in share else "layers"
        assert found[f"discriminator/encoder/{home}/{part}/{name}/kernel"] == P(None, "fsdp", "model")


def test_moments_lie_where_their_parameters_lie():
    params, on = parameters(TINY), mesh(2, 2, 2)
    moments = jax.eval_shape(AdamW(learning_rate=0.1, warmup_steps=1).build_transformation(10).init, params)
    found = infer_shardings({"step": leaf(), "params": params, "moments": moments}, on)
    adam = found["moments"]["adam"]
    assert adam.m == adam.v == found["params"] == infer_shardings(params, on)
    assert found["step"].spec == adam.count.spec == P()


def test_a_mesh_of_one_device_leaves_everything_whole():
    assert set(specs(parameters(TINY), mesh()).values()) == {P()}


def test_the_odd_vocabulary_of_roberta_is_split_by_width_instead():
    tree, on = {"embed": {"word": {"embedding": leaf(50265, 768)}}, "tokens": {"bias": leaf(50265)}}, mesh(4, 1, 2)
    assert specs(tree, on) == {"embed/word/embedding": P(None, "model"), "tokens/bias": P()}


def test_an_axis_that_is_taken_is_not_split_again():
    tree, on = {"embed": {"word": {"embedding": leaf(50265, 768)}}}, mesh(1, 2, 4)
    assert specs(tree, on) == {"embed/word/embedding": P(None, "fsdp")}


def test_an_axis_may_fall_to_one_before_it_but_never_to_the_stack():
    tree = {"layers": {"attend": {"out": {"kernel": leaf(4, 6, 7)}, "query": {"bias": leaf(4, 7)}}}}
    assert specs(tree, mesh(1, 2, 1)) == {"layers/attend/out/kernel": P(None, "fsdp"), "layers/attend/query/bias": P()}
    assert specs(tree, mesh(1, 1, 2)) == {"layers/attend/out/kernel": P(None, "model"), "layers/attend/query/bias": P()}


def test_a_small_generator_with_one_head_is_split_where_it_can_be():
    one = EncoderConfig(vocab_size=30, hidden_size=6, num_layers=2, num_heads=1, intermediate_size=24, embedding_size=8)
    found = specs(parameters(one), mesh(1, 1, 4))
    assert found["layers/attend/query/kernel"] == P()
    assert found["layers/transform/up/kernel"] == P(None, None, "model")


def test_rows_of_a_batch_are_split_over_data_and_fsdp():
    assert make_batch_sharding(mesh(2, 2, 2)).spec == P(("data", "fsdp"))


def test_a_batch_is_placed_on_the_one_device_of_this_process():
    batch = {"tokens": np.arange(6, dtype=np.int32).reshape(3, 2), "label": np.arange(3)}
    on = Mesh().build(jax.devices()[:1])
    for name, rows in shard_batch(batch, on).items():
        assert rows.sharding == make_batch_sharding(on)
        np.testing.assert_array_equal(rows, batch[name])


def test_the_rest_of_the_devices_goes_to_the_axis_that_is_minus_one(eight):
    assert eight["shape"] == {"data": 2, "fsdp": 2, "model": 2}
    assert eight["part"] == {"data": 1, "fsdp": 1, "model": 4}
    assert eight["types"] == ["Auto"]


def test_a_mesh_that_does_not_divide_the_devices_is_refused(eight):
    named = [
        ("mesh.data=3, mesh.fsdp=1, mesh.model=1", "exactly 3 devices"),
        ("mesh.data=-1, mesh.fsdp=3, mesh.model=1", "multiple of 3 devices"),
        ("mesh.data=2, mesh.fsdp=2, mesh.model=1", "exactly 4 devices"),
    ]
    for message, values in zip(eight["refused"], named, strict=True):
        assert_names(message, *values, "8", "-1")


@pytest.mark.parametrize(
    "sizes, values",
    [
        ({"data": 0}, ["mesh.data=0", "at least 1"]),
        ({"fsdp": -2}, ["mesh.fsdp=-2", "at least 1"]),
        ({"model": 1.5}, ["mesh.model=1.5", "at least 1"]),
        ({"data": -1, "model": -1}, ["data=-1", "model=-1", "only one"]),
    ],
)
def test_sizes_of_a_mesh_are_checked(sizes, values):
    with raises_naming(ValueError, *values):
        Mesh(**sizes)


def test_a_device_holds_its_part_of_a_kernel_and_its_rows_of_the_batch(eight):
    assert eight["kernel"] == [[3, 8, 12], [3, 4, 6]]
    shape, spec, rows = eight["batch"]
    assert shape == [8, 5] and "('data', 'fsdp')" in spec and rows == [2] * 8
    assert eight["same batch"]


@pytest.mark.parametrize("name", ["even", "odd"])  # odd: one head, and sizes that neither axis divides
def test_eight_devices_compute_and_learn_what_one_does(eight, name):
    assert eight["apart"][name] < 1e-5  # float32 sums in another order
