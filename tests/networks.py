"""Networks and runs for tests, with parameters in which one that is left out shows."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from encoders.costs.ledger import eval_param_shapes
from encoders.experiment import RunSpec
from encoders.run.folder import build_run_record
from encoders.text.tokenization import Tokenizer, VocabInfo
from encoders.training.checkpoint import save_params
from encoders.utils.files import write_json


def make_vocab(vocab_size: int) -> VocabInfo:
    """Return a vocabulary with BERT's order of special tokens, in which every token is a word."""
    special_ids = (0, 1, 2, 3, 4)
    return VocabInfo(vocab_size, *special_ids, special_ids, bytes(-(-vocab_size // 8)), most_frequent_id=6)


def random_parameters(objective, model, facts, rows: dict):
    """Random parameters of an objective's module, no bias 0 and no scale 1; `rows` is a batch, for shapes."""
    rows, module = jax.tree.map(jnp.asarray, rows), objective.module(model, facts)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), objective.corrupt(rows, facts, 0))["params"])
    return fill_randomly(shapes)


def fill_randomly(shapes, std=0.3):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, std, leaf.shape).astype(np.float32), shapes)


def write_random_run(folder: Path, spec: RunSpec, tokenizer: Tokenizer) -> None:
    """Write a run that was never trained, as `import` does. Nothing is compiled."""
    folder.mkdir(parents=True)
    tokenizer.save(folder)
    write_json(folder / "experiment.json", build_run_record(spec, "0" * 16, tokenizer.vocab))
    params = fill_randomly(eval_param_shapes(spec.model, spec.objective), std=0.5)  # words in context differ much
    save_params(folder / "checkpoints", params, "none")
