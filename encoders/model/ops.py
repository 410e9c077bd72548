"""Operations that layers and heads are made of: dense layers, norms, dropout, and the sharding of rows.

Parameters are float32; `config` gives the initialiser, the compute dtype and the epsilon of norms.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt32

BATCH_AXES = ("data", "fsdp")  # mesh axes over which a batch is sharded
ACTIVATIONS: dict[str, Callable] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "silu": nn.silu,
}


def make_initializer(config, scale: float = 1.0):
    """Return the initialiser of `config` for matrices and tables, its deviation times `scale`."""
    return config.make_initializer(config.init_std * scale)


@jax.custom_vjp
def transposed_grad_matmul(x: Float[Array, "n i"], w: Float[Array, "i o"]) -> Float[Array, "n o"]:
    """Return `x w`; on CPU its gradient reads a transposed copy: on a view XLA's code has half the speed there."""
    return x @ w


def transposed_grad_matmul_bwd(residuals, dy):
    x, w = residuals
    # The platform is the one that is compiled for, which need not be that of this process.
    return dy @ w.T, jax.lax.platform_dependent(x, dy, cpu=multiply_transposed_copy, default=lambda x, dy: x.T @ dy)


def multiply_transposed_copy(x: Float[Array, "n i"], dy: Float[Array, "n o"]) -> Float[Array, "i o"]:
    """Return `xᵀ dy`, or where dy is narrower `(dyᵀ x)ᵀ`, with a copy of the transposed matrix."""
    apart = jax.lax.optimization_barrier  # without it XLA folds the transpose into the product
    transposed_matmul = lambda a, b: apart(apart(a.T) @ b)
    return transposed_matmul(x, dy) if x.shape[1] <= dy.shape[1] else transposed_matmul(dy, x).T


transposed_grad_matmul.defvjp(lambda x, w: (x @ w, (x, w)), transposed_grad_matmul_bwd)


def dense_dot_general(x: Float[Array, "n i"], w: Float[Array, "i o"], *_, **__) -> Float[Array, "n o"]:
    """Return `x w`; replaces `lax.dot_general` for these axes."""
    return transposed_grad_matmul(x, w)


class Dense(nn.Dense):
    """A dense layer applied to `[tokens, features]`: on CPU a fifth faster than on `[b, l, features]`."""

    dot_general: Callable = dense_dot_general

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


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
    """Return 32 random bits for each element of an array: a hash of its index and of two words of `key`.

    The hash is the finaliser of MurmurHash3, once for each word of the key (https://github.com/aappleby/smhasher). It
    takes a fifth of the operations of JAX's generator, and elements need no word of another one: XLA computes it where
    it is read, again in the backward pass, so that no mask is saved.
    """
    bits, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        bits += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    for word in jax.random.bits(key, (2,), jnp.uint32):
        bits ^= word
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
        bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
        bits ^= bits >> 16
    return bits


class Dropout(nn.Module):
    """Dropout by `hash_indices`, in the dtype of its input."""

    rate: float

    def __call__(self, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
        if not train or self.rate == 0.0:
            return x
        bits = hash_indices(self.make_rng("dropout"), x.shape)
        scaled = x / jnp.asarray(1 - self.rate, x.dtype)
        return jnp.where(bits >= jnp.uint32(round(self.rate * 2**32)), scaled, jnp.zeros((), x.dtype))
