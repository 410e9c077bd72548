"""Networks for tests, with parameters in which one that is left out shows."""

import jax
import jax.numpy as jnp
import numpy as np

from encoders.text.tokenization import VocabInfo


def make_vocab(vocab_size: int) -> VocabInfo:
    """Return a vocabulary with BERT's order of special tokens, in which every token is a word."""
    special_ids = (0, 1, 2, 3, 4)
    return VocabInfo(vocab_size, *special_ids, special_ids, bytes(-(-vocab_size // 8)), most_frequent_id=6)


def random_parameters(objective, model, facts, rows: dict):
    """Random parameters of an objective's module, no bias 0 and no scale 1; `rows` is a batch, for shapes."""
    rows, module = jax.tree.map(jnp.asarray, rows), objective.module(model, facts)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), objective.corrupt(rows, facts, 0))["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), shapes)
