"""Operations that layers and heads are made of: dense layers, norms, dropout, and the sharding of rows.

Parameters are float32; `config` gives the initialiser, the compute dtype and the epsilon of norms.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt32

BATCH_AXES = ("data", "fsdp")  # mesh axes over which a batch is sharded
ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False) if x.dtype == jnp.float32 else gelu_with_slope(x),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "silu": nn.silu,
}


@jax.custom_vjp
def gelu_with_slope(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return exact gelu of numbers below float32, computed in float32; its gradient reads the slope, and nothing else.

    XLA joins erf with the product before, which it does not with the erfc and the powers of `nn.gelu`.
    """
    return gelu_with_slope_fwd(x)[0]


def gelu_with_slope_fwd(x):
    exact = lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))
    wide = x.astype(jnp.float32)
    y, slope = jax.jvp(exact, (wide,), (jnp.ones_like(wide),))
    return y.astype(x.dtype), slope.astype(x.dtype)


gelu_with_slope.defvjp(gelu_with_slope_fwd, lambda slope, dy: (slope * dy,))


def make_initializer(config, scale: float = 1.0):
    """Return the initialiser of `config` for matrices and tables, its deviation times `scale`."""
    return config.make_initializer(config.init_std * scale)


@jax.custom_vjp
def multiply_matrix(x: Float[Array, "... i"], w: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """Return `x w` in the form that is fast on the platform that is compiled for, which need not be this process's."""
    return jax.lax.platform_dependent(x, w, cpu=multiply_on_cpu, default=multiply_on_accelerator)


def multiply_matrix_bwd(residuals, dy):
    x, w = residuals
    compute_dw = {"cpu": compute_dw_on_cpu, "default": compute_dw_on_accelerator}
    return multiply_matrix(dy, w.T), jax.lax.platform_dependent(x, dy, **compute_dw)


multiply_matrix.defvjp(lambda x, w: (multiply_matrix(x, w), (x, w)), multiply_matrix_bwd)


def multiply_on_accelerator(x: Float[Array, "... i"], w: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """Return `x w` with the axes of x, so that XLA joins dropout, residual and the sums of a norm with the product.

    The matrix is copied before, in its dtype here: XLA would cut it out of the layers' float32 stack in the product.
    """
    return x @ jax.lax.optimization_barrier(w)


def multiply_on_cpu(x: Float[Array, "... i"], w: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """Return `x w` by a product of `[tokens, features]`: a fifth faster than one of `[b, l, features]`."""
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[1])


def compute_dw_on_accelerator(x: Float[Array, "... i"], dy: Float[Array, "... o"]) -> Float[Array, "i o"]:
    """Return the gradient `xᵀ dy` of a matrix, summed over all tokens."""
    tokens = tuple(range(x.ndim - 1))
    return jnp.tensordot(x, dy, axes=(tokens, tokens))


def compute_dw_on_cpu(x: Float[Array, "... i"], dy: Float[Array, "... o"]) -> Float[Array, "i o"]:
    """Return `xᵀ dy`, or where dy is narrower `(dyᵀ x)ᵀ`, from a transposed copy: a view has half the speed."""
    x, dy = (array.reshape(-1, array.shape[-1]) for array in (x, dy))
    apart = jax.lax.optimization_barrier  # without it XLA folds the transpose into the product
    transposed_matmul = lambda a, b: apart(apart(a.T) @ b)
    return transposed_matmul(x, dy) if x.shape[1] <= dy.shape[1] else transposed_matmul(dy, x).T


class Dense(nn.Dense):
    """A dense layer by `multiply_matrix`, whose output rematerialisation can save by its name."""

    dot_general: Callable = staticmethod(lambda x, w, *_, **__: multiply_matrix(x, w))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return checkpoint_name(super().__call__(x), "dense")


def make_dense(config, features: int, name: str | None = None, kernel_init=None, use_bias: bool = True) -> Dense:
    """Return a `Dense` with the initialiser and the compute dtype of `config`."""
    init = kernel_init or make_initializer(config)
    return Dense(features, use_bias=use_bias, dtype=jnp.dtype(config.dtype), kernel_init=init, name=name)


class LayerNorm(nn.LayerNorm):
    """Layer norm with float32 statistics, which returns the dtype of its input."""

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


def make_layer_norm(config, name: str | None = None, use_bias: bool = True) -> LayerNorm:
    return LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, use_bias=use_bias, name=name)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm with float32 statistics, which returns the dtype of its input."""

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


def make_rms_norm(config, name: str | None = None) -> RMSNorm:
    return RMSNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, name=name)


def shard_rows(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Return `x` with rows sharded as those of the batch and other axes whole; unchanged outside a mesh.

    Without the constraint XLA shards hidden states as the parameters, by width, with all rows on every device.
    """
    mesh = jax.typeof(x).sharding.mesh
    if mesh.size < 2 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(BATCH_AXES)))


def make_embedding_table(config, num_embeddings: int) -> nn.Embed:
    return nn.Embed(num_embeddings, config.embedding_size, embedding_init=make_initializer(config))


def hash_indices(key, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Return 32 random bits for each element of an array: a hash of its row, its index there and two words of `key`.

    The hash is the finaliser of MurmurHash3, once for each word of the key (https://github.com/aappleby/smhasher). It
    takes a fifth of the operations of JAX's generator, and elements need no word of another one: XLA computes it where
    it is read, again in the backward pass, so that no mask is saved.
    """
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(1, len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    bits, row = jnp.zeros((), jnp.uint32), jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
    for word, number in zip(jax.random.bits(key, (2,), jnp.uint32), (index, row), strict=True):
        bits ^= number ^ word
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
        bits ^= bits >> 16
    return bits


def drop_elements(key, x: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    scaled = x / jnp.asarray(1 - rate, x.dtype)
    return jnp.where(hash_indices(key, x.shape) >= jnp.uint32(round(rate * 2**32)), scaled, jnp.zeros((), x.dtype))


def keep_elements(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x


class Dropout(nn.Module):
    """Dropout by `hash_indices`, in the dtype of its input."""

    rate: float

    def __call__(self, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
        return self.draw_dropout(train)(x)

    def draw_dropout(self, train: bool) -> Partial:
        """Return a function that drops the same elements in every call: a pytree of its random key."""
        if not train or self.rate == 0.0:
            return Partial(keep_elements)
        return Partial(partial(drop_elements, rate=self.rate), self.make_rng("dropout"))
