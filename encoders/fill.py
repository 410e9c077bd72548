"""Fill-in: what a masked language model says at each [MASK] of a text."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from encoders.training.run import Run, RunError


def fill(run: Run, params: dict, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """For each [MASK] (or <mask>) in `text` the `top` likeliest tokens with their probabilities; ELECTRA's generator
    answers for ELECTRA. Raises `RunError` for a text without a mask or longer than the model's positions, and for a
    run without a masked-token head."""
    if "tokens" not in params:
        raise RunError(f"{run.folder} has no masked-token head, only {', '.join(sorted(params))}")
    facts, tokenizer = run.facts, run.tokenizer
    text, found = re.subn(r"\[MASK\]|<mask>", tokenizer.token(facts.mask), text)
    if not found:
        raise RunError(f"{text!r} has no [MASK]")
    ids = [facts.cls, *tokenizer.encode(text), facts.sep]
    if len(ids) > run.network.model.positions:
        raise RunError(f"{len(ids)} tokens are more than model.positions={run.network.model.positions}")
    tokens = np.array([ids], np.int32)
    picked = np.flatnonzero(tokens[0] == facts.mask)[None]
    batch = {
        "tokens": tokens,
        "example": np.ones_like(tokens),
        "segments": np.zeros_like(tokens),
        "positions": np.arange(tokens.size, dtype=np.int32)[None],
        "picked": picked,
    }
    logits = run.module.apply({"params": params}, jax.tree.map(jnp.asarray, batch), method="predict")[0]
    probability = jax.nn.softmax(logits[:, : facts.size])
    values, best = jax.lax.top_k(probability, min(top, facts.size))
    return [
        [(tokenizer.token(int(i)), float(p)) for p, i in zip(ps, row, strict=True)]
        for ps, row in zip(values, best, strict=True)
    ]
