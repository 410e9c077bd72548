"""Held-out evaluation of a run's parameters."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np

from encoders.data.example_table import add_example_axis
from encoders.data.filters import CorpusFilters
from encoders.data.formats import FullSentences, SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.store import Split, SplitWriter, Store, choose_token_dtype
from encoders.data.stream import Phase, iter_eval_batches, load_eval_table
from encoders.data.work_units import PreparationJob
from encoders.experiment import Experiment
from encoders.objectives.base import Scores, total_loss
from encoders.run.folder import TOKENIZER_FILE, RunError
from encoders.run.run import Run, check_batch_sizes
from encoders.text.tokenization import TokenizerSpec
from encoders.training import sharding, step
from encoders.training.optimizer import AdamW
from encoders.utils import metrics

EVAL_ROWS_PER_DEVICE = 8  # of imported runs, whose scores do not depend on it


def evaluate_run(
    run: Run,
    params: dict,
    phase: Phase | None = None,
    num_batches: int | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Scores:
    """Return the held-out scores of `params` in the format of a phase, by default the last one.

    At most `num_batches` batches of each split are read, by default `intervals.eval_batches`. Scores of the second and
    later splits are prefixed: `dev_mismatched` gives `mismatched_accuracy`.
    """
    check_batch_sizes(run.experiment, run.mesh)
    phase = phase or run.experiment.phases[-1]
    max_batches = num_batches or run.experiment.intervals.eval_batches
    scores = {}
    for i, split in enumerate(run.store.eval_splits):
        prefix = split.name.removeprefix("dev_") + "_" if i else ""
        split_scores = evaluate_split(run, params, split, phase, max_batches, on_batch)
        scores |= {prefix + name: score for name, score in split_scores.items()}
    return scores


@contextmanager
def open_corpus(run: Run, corpus: Sequence[str]) -> Iterator[Run]:
    """Yield the run with all documents of `corpus` as its held-out text, split and tokenised as its own text is; an
    imported run with those of `build_text_experiment`.

    Raises `RunError` for a run whose objective needs labelled rows, and `CorpusError` for a corpus that cannot be read.
    """
    experiment = run.spec if isinstance(run.spec, Experiment) else build_text_experiment(run)
    data = experiment.data
    if not isinstance(data, PretrainingData):
        raise RunError(f"{run.folder} was fine-tuned on labelled rows; --corpus needs a run that was trained on text")
    data = replace(data, corpus=tuple(corpus), filters=CorpusFilters())
    data.check_readable()
    with TemporaryDirectory(prefix="encoders-") as name:
        job, joiner = PreparationJob.in_folder(data, Path(name)), run.tokenizer.sentence_joiner
        with ExitStack() as files:
            writer = SplitWriter(files, job.work_dir / "heldout", run.vocab)
            for unit in job.data.list_units():
                for sentences in job.read_sentences(unit, Counter()):
                    lines = [(joiner if i else "") + sentence for i, sentence in enumerate(sentences)]
                    writer.add_document([ids for ids in run.tokenizer.encode_batch(lines) if ids])
        dtype = np.dtype(choose_token_dtype(run.vocab)).name
        store = Store(job.work_dir, {"splits": {"heldout": writer.counts}, "dtype": dtype})
        yield Run(experiment, run.folder, run.vocab, lambda: store)


def build_text_experiment(run: Run) -> Experiment:
    """Return an experiment that scores an imported run on text, in rows of at most 512 tokens of the format that its
    objective reads. Raises `RunError` for an objective that text does not score."""
    objective, formats = run.spec.objective, (FullSentences(), SegmentPairs("random"), SegmentPairs("swapped"))
    fitting = [row_format for row_format in formats if objective.required_fields <= set(row_format.label_fields)]
    if not fitting or not objective.loss_weights:
        accepted = "a run with a head for masked tokens, replaced tokens or sentence pairs"
        raise RunError(f"{run.folder} holds {type(objective).__name__}, which text does not score; take {accepted}")
    batch_size = EVAL_ROWS_PER_DEVICE * sharding.count_batch_shards(run.mesh)
    return Experiment(
        name=run.spec.name,
        model=run.spec.model,
        objective=objective,
        mesh=run.spec.mesh,
        data=PretrainingData(tokenizer=TokenizerSpec(path=str(run.folder / TOKENIZER_FILE))),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=0),  # never used
        phases=(Phase(1, min(512, run.spec.model.max_positions), batch_size, fitting[0]),),
    )


def evaluate_split(
    run: Run, params: dict, split: Split, phase: Phase, max_batches: int, on_batch: Callable[[], None]
) -> Scores:
    """Return the scores of up to `max_batches` batches of one split."""
    objective, tables_dir = run.experiment.objective, run.store.path / "tables"
    local_rows = sharding.find_local_rows(run.mesh, phase.batch_size)
    batch_metrics, outputs, row_ids, is_real = [], [], [], []
    for batch in iter_eval_batches(split, run.vocab, phase, phase.batch_size, max_batches, tables_dir):
        device_batch = sharding.shard_batch(jax.tree.map(lambda field: field[local_rows], batch), run.mesh)
        means, row_outputs = step.eval_step(params, device_batch, module=run.module)
        batch_metrics.append(means)
        if len(batch_metrics) > 2:  # at most two batches are in flight
            jax.block_until_ready(batch_metrics[-3])
        on_batch()
        if row_outputs:
            outputs.append(row_outputs)
            row_ids.append(batch.example_index[:, 0] // batch.example_index.shape[1])
            is_real.append(batch.example_mask[:, 0] == 1)
    scores = objective.scores(metrics.sum_means(jax.device_get(batch_metrics)))
    if objective.loss_weights.keys() <= scores.keys():  # rows may be scored without a loss
        scores = {"loss": total_loss(scores, objective.loss_weights)} | scores
    if outputs:
        selected = np.concatenate(is_real)
        table = add_example_axis(load_eval_table(split, phase, tables_dir))
        rows = table[np.concatenate(row_ids)[selected]]
        scores |= objective.score_outputs(concatenate_padded(list(map(to_host, outputs)), selected), rows, split)
    return scores


def to_host(tree):
    """Return device arrays as NumPy arrays, with the parts that other processes hold."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def concatenate_padded(batches: list[dict[str, np.ndarray]], is_selected: np.ndarray) -> dict[str, np.ndarray]:
    """Concatenate the fields of all batches and return the selected rows.

    Shorter rows are padded with zeros, and scores with -inf, so that no candidate is added.
    """
    fields = {}
    for name in batches[0]:
        arrays = [batch[name] for batch in batches]
        row_shape = np.max([array.shape[1:] for array in arrays], axis=0, initial=0).astype(int)
        padding = [[(0, 0), *((0, size) for size in row_shape - array.shape[1:])] for array in arrays]
        fill = -np.inf if np.issubdtype(arrays[0].dtype, np.floating) else 0
        pad_rows = partial(np.pad, constant_values=fill)
        fields[name] = np.concatenate(list(map(pad_rows, arrays, padding)))[is_selected]
    return fields
