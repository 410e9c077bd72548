"""The experiment: a frozen value with everything that determines the numbers of a run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from encoders.data.labelled import LabelledData
from encoders.data.mixing import find_corpus_weights
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.model.config import EncoderConfig
from encoders.objectives.base import Objective, SupervisedObjective
from encoders.text.tokenization import make_blank_vocab
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.sharding import Mesh
from encoders.utils.overrides import apply_changes, check_choices, parse_settings, shorten_text
from encoders.utils.serialization import ExperimentError, fingerprint_content, flatten_fields, not_fingerprinted

MAX_NAME_BYTES = 200  # a file name has 255 bytes at most, and suffixes are added


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A model under an objective: all that is known of an imported run.

    Raises `ExperimentError` for a name that no folder can have and for a field that is not one of its choices.
    """

    name: str = not_fingerprinted()
    model: EncoderConfig
    objective: Objective
    mesh: Mesh = not_fingerprinted(Mesh())

    def __post_init__(self):
        has_bad_character = not self.name.isprintable() or set(self.name) & set("/\\ ")
        if not self.name or self.name[0] == "." or has_bad_character or len(self.name.encode()) > MAX_NAME_BYTES:
            raise ExperimentError(
                f"name={self.name!r} cannot be the name of a folder; take 1 to {MAX_NAME_BYTES} bytes without spaces "
                "and slashes, the first of them not a dot"
            )
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class Experiment(RunSpec):
    """Everything that determines the numbers of a run, and what names, places and records it (mesh, name, intervals).

    `init_from` is the folder of a trained or imported run whose parameters this one is initialised from.
    `grad_accum_steps` is the number of micro-steps that a batch is split into. `early_stopping` is the number of
    evaluations in a row without a better score that end the run. Raises `ExperimentError` for fields that do not fit
    together.
    """

    data: PretrainingData | LabelledData
    optimizer: AdamW | Lamb
    phases: tuple[Phase, ...]
    seed: int = 0
    grad_accum_steps: int = 1
    init_from: str | None = not_fingerprinted(None)
    intervals: Intervals = not_fingerprinted(Intervals())
    early_stopping: int | None = None

    def __post_init__(self):
        super().__post_init__()
        for find_problems in EXPERIMENT_CHECKS:
            for problem in find_problems(self):
                raise ExperimentError(f"{self.name}: {problem}")

    @property
    def num_steps(self) -> int:
        return self.phases[-1].until_step


# Checks: each yields what does not fit together, with the fields and their values ------------------------------------


def check_numbers(experiment: Experiment) -> Iterator[str]:
    if not 0 <= experiment.seed < 2**31:
        yield f"seed={experiment.seed} must be from 0 to 2147483647"
    if experiment.grad_accum_steps < 1:
        yield f"grad_accum_steps={experiment.grad_accum_steps} must be at least 1"
    if experiment.early_stopping is not None and experiment.early_stopping < 1:
        yield f"early_stopping={experiment.early_stopping} must be at least 1, or None"


def check_phase_order(experiment: Experiment) -> Iterator[str]:
    if not experiment.phases:
        yield "phases is empty; a run needs at least one"
    until_steps = [phase.until_step for phase in experiment.phases]
    if until_steps != sorted(set(until_steps)):
        yield f"phases.until_step={until_steps} must rise from phase to phase"


def check_vocab_size(experiment: Experiment) -> Iterator[str]:
    tokenizer, vocab_size = experiment.data.tokenizer, experiment.model.vocab_size
    if not tokenizer.path and tokenizer.vocab_size != vocab_size:
        yield f"data.tokenizer.vocab_size={tokenizer.vocab_size} and model.vocab_size={vocab_size} differ; set both"


def check_optimizer(experiment: Experiment) -> Iterator[str]:
    warmup_steps, num_steps = experiment.optimizer.warmup_steps, experiment.num_steps
    if warmup_steps > num_steps:
        yield (
            f"optimizer.warmup_steps={warmup_steps} exceeds the run's {num_steps} steps; lower it or raise "
            "phases.until_step"
        )
    decay, shared = experiment.optimizer.layer_lr_decay, experiment.model.shared_parts
    if decay != 1 and shared:
        yield f"optimizer.layer_lr_decay={decay} needs layers that share nothing, and model.shared_parts={shared}"


def check_objective(experiment: Experiment) -> Iterator[str]:
    objective = experiment.objective
    if not objective.loss_weights:
        yield f"objective={type(objective).__name__} has no loss to train; choose one that has"
    try:
        objective.module(experiment.model, make_blank_vocab(experiment.model.vocab_size))
    except ValueError as error:
        yield str(error)
    if objective.frozen_params and not experiment.init_from:
        frozen = " and ".join(objective.frozen_params)
        yield f"the objective never updates {frozen}, so init_from must name a run that has them; it is None"
    expected = objective.label_names if isinstance(objective, SupervisedObjective) else ()
    provided = experiment.data.label_names
    if expected and provided and expected != provided:
        yield f"objective.label_names={expected} differ from the labels of the rows, {provided}"


def check_phase_lengths(experiment: Experiment) -> Iterator[str]:
    max_positions = experiment.model.max_positions
    for phase in experiment.phases:
        if phase.format.max_example_length(phase.seq_length) > max_positions:
            yield (
                f"phases.seq_length={phase.seq_length} exceeds model.max_positions={max_positions}; lower it or raise "
                "model.max_positions"
            )
        if phase.batch_size % experiment.grad_accum_steps:
            yield (
                f"phases.batch_size={phase.batch_size} is not a multiple of "
                f"grad_accum_steps={experiment.grad_accum_steps}"
            )


def check_phase_formats(experiment: Experiment) -> Iterator[str]:
    for phase in experiment.phases:
        row_format, provided = phase.format, set(phase.format.label_fields)
        if isinstance(row_format, PackedFormat) and experiment.model.attention_impl == "cudnn":
            yield (
                "model.attention_impl='cudnn' is for rows of one example, and phases.format is PackedFormat; take "
                "'cudnn_packed'"
            )
        weights, num_corpora = find_corpus_weights(row_format), len(getattr(experiment.data, "corpus", ()))
        if weights is not None and len(weights) != num_corpora:
            yield (
                f"phases.format.corpus_weights={weights} must have one for each of the {num_corpora} items of "
                f"data.corpus"
            )
        if missing := sorted(experiment.objective.required_fields - provided):
            yield (
                f"the objective needs {', '.join(missing)}, and the format {type(row_format).__name__} provides "
                f"{', '.join(sorted(provided)) or 'no label'}"
            )


EXPERIMENT_CHECKS = (
    check_phase_order,
    check_numbers,
    check_vocab_size,
    check_optimizer,
    check_objective,
    check_phase_lengths,
    check_phase_formats,
)


# Functions of experiments ---------------------------------------------------------------------------------------------


def apply_settings(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """Return an experiment with settings such as "model.num_layers=4", each read by the declared type of its field.

    A phase is named by its index, or `*` for all: "phases.*.batch_size=8". A field that holds a class's value takes the
    name of the class: "objective.sentence_task=SentenceOrderPrediction". All settings apply at once, so fields that
    depend on each other can change together. Raises `ExperimentError` with a suggestion.

    >>> import encoders
    >>> quickstart = encoders.load_experiments("quickstart")["quickstart-bert"]
    >>> apply_settings(quickstart, ["seed=3", "phases.*.batch_size=8"]).phases[0].batch_size
    8
    """
    try:
        return apply_changes(experiment, parse_settings(settings))
    except ExperimentError as error:
        raise ExperimentError(shorten_text(str(error))) from None


def strip_seeds(name: str) -> str:
    """Return the name that all seeds of an experiment have in common.

    >>> strip_seeds("albert-small-seed0@SST-2-seed0")
    'albert-small@SST-2'
    """
    return re.sub(r"-seed\d+", "", name)


def fingerprint_experiment(experiment: Experiment, store_key: str, init_key: str | None = None) -> str:
    """Return 16 hexadecimal digits that two experiments share if and only if they compute the same numbers.

    `store_key` takes the place of `data`, and `init_key` that of `init_from`: contents rather than paths.
    """
    content = fingerprint_content(experiment) | {"data": store_key}
    if init_key:
        content["init_from"] = init_key
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def describe_differences(old: Experiment, new: Experiment) -> list[str]:
    """Return the fields that differ between two experiments, as "model.num_layers is 4 there and 6 here"."""
    old_fields, new_fields = flatten_fields(old), flatten_fields(new)
    absent = object()
    return [
        f"{path} is {old_fields.get(path, 'absent')} there and {new_fields.get(path, 'absent')} here"
        for path in sorted(old_fields.keys() | new_fields.keys())
        if old_fields.get(path, absent) != new_fields.get(path, absent)
    ]


def describe_experiment(experiment: Experiment) -> str:
    """Return an experiment as lines of `path = value`."""
    return "\n".join(f"{path} = {value}" for path, value in flatten_fields(experiment).items())
