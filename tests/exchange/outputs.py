"""What a run of ours computes from ids, under the names that `references.py` gives to transformers' outputs."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from encoders.data.batch import build_single_example_batch
from encoders.objectives.masking import MaskedBatch
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.run import Run


def batch_of(inputs: dict[str, np.ndarray]) -> MaskedBatch:
    """A batch in which every position is picked."""
    batch = build_single_example_batch(inputs["ids"], inputs["types"])
    at, ids = batch.position_ids, batch.input_ids
    batch = batch.replace(example_ids=inputs["mask"])
    return MaskedBatch(
        **batch.get_arrays(), clean_ids=ids, masked_positions=at, masked_labels=ids, masked_weights=np.ones(ids.shape)
    )


def everything(module, batch: MaskedBatch) -> dict:
    """Hidden states, and what each head of a bound module says."""
    lone = isinstance(module.objective, ReplacedTokenDetection)
    encoder = module.discriminator if lone else module.encoder
    out = {"hidden": encoder(batch, output_hidden_states=True)}
    first = out["hidden"][-1][:, :1]
    if lone:
        out["replaced"] = module.compute_replaced_logits(batch)
    if hasattr(module, "tokens"):
        out["tokens"] = module.compute_token_logits(batch)
    if hasattr(module, "pair"):
        out["pair"] = module.pair(module.pooler(first))[:, 0]
    elif hasattr(module, "pooler") and not any(hasattr(module, head) for head in ("classes", "tags", "spans")):
        out["pooled"] = module.pooler(first)[:, 0]
    if hasattr(module, "classes"):
        out["classes"] = module.compute_logits(batch)[:, 0]
    if hasattr(module, "tags"):
        out["tags"] = module.compute_logits(batch)
    if hasattr(module, "spans"):
        out["spans"] = module.compute_logits(batch)[0]
    return out


def ours(run: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the run in a folder."""
    opened = Run.open(run)
    _, params = opened.load_params()
    compute = jax.jit(partial(opened.module.apply, method=everything))
    return {name: np.asarray(array) for name, array in compute({"params": params}, batch_of(inputs)).items()}


def furthest(mine: dict, expected) -> dict[str, float]:
    """For every output the largest difference on real tokens, relative to the largest number there."""
    mask = expected["mask"] > 0
    real = {"hidden": lambda x: x[:, mask], "tokens": lambda x: x[mask], "replaced": lambda x: x[mask]}
    real["spans"] = real["tags"] = real["tokens"]
    apart = {}
    for name in sorted(set(expected) - {"ids", "mask", "types"}):
        cut = real.get(name, lambda x: x)
        theirs, here = cut(expected[name]), cut(mine[name])
        assert theirs.shape == here.shape, (name, theirs.shape, here.shape)
        apart[name] = float(np.abs(theirs - here).max() / np.abs(theirs).max())
    return apart
