"""Encoder-only language models in JAX and Flax: BERT, RoBERTa, ALBERT and ELECTRA, pre-trained and fine-tuned.

An experiment is a frozen value. `train` makes a run of it, a folder that `load` opens for predictions:

>>> import encoders, pathlib, tempfile
>>> text = pathlib.Path(tempfile.mkdtemp(), "text.txt")
>>> _ = text.write_text("The cat sat on the mat.\\nIt slept there.\\n\\n" * 60)
>>> experiment = encoders.load_experiments("tiny", corpus=text)["tiny"]
>>> result = encoders.train(experiment, runs=text.parent)
>>> predictor = encoders.load(text.parent / "tiny")
>>> len(next(predictor.fill_masks(["The [MASK] sat."]))[0])
5

Here are `load`, `train`, `load_experiments`, `apply_settings`, `import_file`, `register`, and every class that an
experiment can hold: `encoders.Experiment`, `encoders.EncoderConfig`, `encoders.MaskedLM`, `encoders.AdamW` and so on.
They are imported at their first use. The packages, lowest first, each importing only those before it:

    utils        values as JSON, changes by path, files, metrics
    model        the encoder: configuration, layers, heads, FLOPs
    text         corpora and tokenizers
    families     sizes and parts of BERT, RoBERTa, ALBERT, ELECTRA
    data         stores of tokens, formats of rows, batches by step
    objectives   masked LM, sentence pairs, replaced tokens, causal LM
    tasks        GLUE, SQuAD and other downstream tasks
    training     step, optimisers, schedules, sharding, checkpoints
    experiment   the value that determines a run
    costs        parameters, FLOPs and memory of an experiment
    run          one run: its folder, its loop, its evaluation
    finetuning   recipes and grids of the papers
    inference    predictions of a run
    exchange     published checkpoints in and out
    sweeps       many runs: the papers' tables
    reporting    results as text, Markdown, LaTeX, plots, HTML
    bench        measurements of speed
    cli          the command line
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.utils.serialization import CLASS_ADDRESSES

if TYPE_CHECKING:
    from encoders.experiment import Experiment
    from encoders.inference.predictor import Predictor

FUNCTION_ADDRESSES = {
    "apply_settings": "encoders.experiment:apply_settings",
    "load_experiments": "encoders.cli.experiment_files:load_experiments",
    "import_file": "encoders.utils.code_files:import_file",
    "register": "encoders.utils.serialization:register_class",
}


def load(run: str | Path, step: str = "best", batch_size: int = 32) -> Predictor:
    """Return the predictor of a run, trained or imported, at a checkpoint: best, latest, or a step.

    Raises `RunError` for a folder that is not a run.

    >>> import encoders, pathlib, tempfile
    >>> text = pathlib.Path(tempfile.mkdtemp(), "text.txt")
    >>> _ = text.write_text("The cat sat on the mat.\\nIt slept there.\\n\\n" * 60)
    >>> _ = encoders.train(encoders.load_experiments("tiny", corpus=text)["tiny"], runs=text.parent)
    >>> next(encoders.load(text.parent / "tiny").embed(["The cat sat."])).shape
    (16,)
    """
    from encoders.inference.predictor import load_predictor

    return load_predictor(run, step, batch_size)


def train(experiment: Experiment, runs: str | Path = "runs", log: Callable[[str], None] = lambda line: None) -> dict:
    """Train an experiment in its folder, `runs`/NAME, and return its result; an interrupted run resumes.

    `log` gets a line for each event. The result has the steps, the speed and the held-out scores, as in result.json.

    >>> import encoders, pathlib, tempfile
    >>> text = pathlib.Path(tempfile.mkdtemp(), "text.txt")
    >>> _ = text.write_text("The cat sat on the mat.\\nIt slept there.\\n\\n" * 60)
    >>> experiment = encoders.load_experiments("tiny", corpus=text)["tiny"]
    >>> encoders.train(encoders.apply_settings(experiment, ["seed=1"]), runs=text.parent)["steps"]
    4
    """
    from encoders.run.loop import train as train_run

    return train_run(experiment, Path(runs) / experiment.name, log)


def __getattr__(name: str) -> Any:
    address = FUNCTION_ADDRESSES.get(name) or CLASS_ADDRESSES.get(name)
    if address is None:
        raise AttributeError(f"module 'encoders' has no attribute {name!r}")
    module, _, attribute = address.partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTION_ADDRESSES, *CLASS_ADDRESSES])
