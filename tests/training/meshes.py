"""Five steps of tiny families on meshes of eight devices, beside the same steps on one device.

python -m tests.training.meshes            every mesh of eight devices, every family
python -m tests.training.meshes bert       one family; a mesh may follow, such as 2x2x2 (data x fsdp x model)
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from encoders.bench.inputs import read_text_batches
from encoders.costs.price import compile_train_step
from encoders.costs.program import Collective, parse_collectives
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra, eurobert, modernbert
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training import step
from encoders.training.optimizer import AdamW, Lamb, StableAdamW
from encoders.training.sharding import Mesh, infer_shardings, shard_batch
from tests import texts

STEPS, ROWS, LENGTH, VOCABULARY = 5, 16, 20, 88  # no axis of a parameter is a multiple of the length
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=8, intermediate_size=64, max_positions=LENGTH
)
FAMILIES = {
    "bert": (
        replace(bert.BASE, **SIZES, embedding_size=32),
        MaskedLM(Masking(), NextSentencePrediction()),
        SegmentPairs(),
        AdamW(1e-3, 2),
    ),
    "albert": (
        replace(albert.BASE, **SIZES, embedding_size=16),
        MaskedLM(Masking(unit="word", max_ngram=3), SentenceOrderPrediction()),
        SegmentPairs("swapped"),
        Lamb(1e-2, 2),
    ),
    "electra": (
        replace(electra.BASE, **SIZES, embedding_size=32),
        ReplacedTokenDetection(generator_width=1 / 2),
        ElectraPairs(),
        AdamW(1e-3, 2),
    ),
    "modernbert": (
        replace(modernbert.BASE, **SIZES, embedding_size=32, local_window=4),
        MaskedLM(Masking(0.3)),
        FullSentences(),
        StableAdamW(1e-3, 2),
    ),
    "eurobert": (
        eurobert.make_eurobert_config(32, 2, 8, 64, vocab_size=VOCABULARY, num_key_heads=4, max_positions=LENGTH),
        MaskedLM(Masking(0.3)),
        FullSentences(),
        AdamW(1e-3, 2),
    ),
}
MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(sizes) == 8]


def experiment(family: str, home: Path) -> Experiment:
    model, objective, form, optimizer = FAMILIES[family]
    text = texts.write(home / "text.txt")
    return Experiment(
        name=family,
        model=model,
        objective=objective,
        data=PretrainingData(
            (str(text),),
            TokenizerSpec(vocab_size=VOCABULARY),
            "lines",
            heldout_fraction=0.1,
            store_dir=str(home / "stores"),
        ),
        optimizer=optimizer,
        phases=(Phase(until_step=STEPS, seq_length=LENGTH, batch_size=ROWS, format=form),),
    )


def trained(made: Experiment, facts, batches, mesh) -> tuple[np.ndarray, dict, list[Collective]]:
    """The loss terms of every step `[step, term]`, the parameters after the last, and what one step sends."""
    run_step = compile_train_step(made, facts, mesh)
    init = partial(step.init_train_state, module=made.objective.module(made.model, facts), optimizer=made.optimizer)
    state, losses = jax.jit(init, out_shardings=infer_shardings(jax.eval_shape(init, made.seed), mesh))(made.seed), []
    for batch in batches:
        state, metrics = run_step(state, shard_batch(batch, mesh), made.seed)  # refuses a state that has moved
        losses.append([metrics[name].total / metrics[name].count for name in made.objective.loss_weights])
    return np.array(losses), jax.device_get(state.params), list(parse_collectives(run_step.as_text()))


def compared(family: str, meshes=MESHES) -> Iterator[tuple[str, float, float, list[Collective]]]:
    """Each mesh, the largest deviations of loss terms and of parameters from one device, and what a step sends."""
    with tempfile.TemporaryDirectory() as home:
        made = experiment(family, Path(home))
        facts, batches = read_text_batches(made, made.phases[0], STEPS)
        losses, params, _ = trained(made, facts, batches, Mesh().build(jax.devices()[:1]))
        for sizes in meshes:
            found = trained(made, facts, batches, Mesh(*sizes).build())
            apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), found[1], params)
            name = "x".join(map(str, sizes))
            yield name, float(np.abs(found[0] - losses).max()), float(max(jax.tree.leaves(apart))), found[2]


def main(family: str | None = None, *chosen: str) -> None:
    meshes = [tuple(map(int, name.split("x"))) for name in chosen] or MESHES
    print("family  data x fsdp x model  loss apart  parameters apart  kB sent by a device")
    for name in [family] if family else FAMILIES:
        for mesh, losses, params, sent in compared(name, meshes):
            size = sum(each.sent_bytes for each in sent) / 1e3
            print(f"{name:<7} {mesh:>19} {losses:11.1e} {params:17.1e} {size:20,.0f}", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    main(*sys.argv[1:])
