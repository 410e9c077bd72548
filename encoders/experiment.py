"""The experiment: a frozen value with everything that determines the numbers of a run."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from encoders.data.labelled import LabelledData
from encoders.data.mixing import find_corpus_weights
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase, expand_batch_ramps, find_ramp_problem
from encoders.model.config import EncoderConfig
from encoders.objectives.base import Objective, SupervisedObjective
from encoders.text.tokenization import make_blank_vocab
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import OptimizerConfig
from encoders.training.sharding import Mesh
from encoders.utils.overrides import apply_changes, check_choices, parse_settings, shorten_text
from encoders.utils.serialization import ExperimentError, fingerprint_content, flatten_fields, not_fingerprinted

MAX_NAME_BYTES = 200  # a file name has 255 bytes at most, and suffixes are added


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A model under an objective: all that is known of an imported run. Raises `ExperimentError` for bad values."""

    name: str = not_fingerprinted()
    model: EncoderConfig
    objective: Objective
    mesh: Mesh = not_fingerprinted(Mesh())

    def __post_init__(self):
        has_bad_character = not self.name.isprintable() or set(self.name) & set("/\\ ")
        if not self.name or self.name[0] == "." or has_bad_character or len(self.name.encode()) > MAX_NAME_BYTES:
            accepted = f"1 to {MAX_NAME_BYTES} bytes without spaces and slashes, the first of them not a dot"
            raise ExperimentError(f"name={self.name!r} cannot be the name of a folder; take {accepted}")
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class Experiment(RunSpec):
    """Everything that determines the numbers of a run, and what names, places and records it (mesh, name, intervals).

    `init_from` is the folder of a trained or imported run whose parameters this one is initialised from: those of equal
    shapes, or with `init_by="tiling"` those of a smaller model, made larger (`encoders/run/tiling.py`).
    `grad_accum_steps` is the number of micro-steps that a batch is split into. `early_stopping` is the number of
    evaluations in a row without a better score that end the run. Raises `ExperimentError` for fields that do not fit
    together.
    """

    data: PretrainingData | LabelledData
    optimizer: OptimizerConfig
    phases: tuple[Phase, ...]
    seed: int = 0
    grad_accum_steps: int = 1
    init_from: str | None = not_fingerprinted(None)
    init_by: Literal["copying", "tiling"] = "copying"
    intervals: Intervals = not_fingerprinted(Intervals())
    early_stopping: int | None = None

    def __post_init__(self):
        super().__post_init__()
        for problem in find_problems(self):
            raise ExperimentError(f"{self.name}: {problem}")

    @property
    def num_steps(self) -> int:
        return self.phases[-1].until_step


def find_problems(experiment: Experiment) -> Iterator[str]:
    """Yield what does not fit together, with the fields and their values."""
    model, objective, optimizer = experiment.model, experiment.objective, experiment.optimizer
    phases = experiment.phases
    if not phases:
        yield "phases is empty; a run needs at least one"
    until_steps = [phase.until_step for phase in phases]
    if until_steps != sorted(set(until_steps)):
        yield f"phases.until_step={until_steps} must rise from phase to phase"
    if not 0 <= experiment.seed < 2**31:
        yield f"seed={experiment.seed} must be from 0 to 2147483647"
    if experiment.grad_accum_steps < 1:
        yield f"grad_accum_steps={experiment.grad_accum_steps} must be at least 1"
    if experiment.early_stopping is not None and experiment.early_stopping < 1:
        yield f"early_stopping={experiment.early_stopping} must be at least 1, or None"
    tokenizer, vocab_size = experiment.data.tokenizer, model.vocab_size
    if not tokenizer.path and tokenizer.vocab_size != vocab_size:
        yield f"data.tokenizer.vocab_size={tokenizer.vocab_size} and model.vocab_size={vocab_size} differ; set both"
    if problem := optimizer.find_schedule_problem(experiment.num_steps):
        yield problem
    decay, shared = optimizer.layer_lr_decay, model.shared_parts
    if decay != 1 and shared:
        yield f"optimizer.layer_lr_decay={decay} needs layers that share nothing, and model.shared_parts={shared}"
    if not objective.loss_weights:
        yield f"objective={type(objective).__name__} has no loss to train; choose one that has"
    try:
        objective.module(experiment.model, make_blank_vocab(experiment.model.vocab_size))
    except ValueError as error:
        yield str(error)
    if objective.frozen_params and not experiment.init_from:
        frozen = " and ".join(objective.frozen_params)
        yield f"the objective never updates {frozen}, so init_from must name a run that has them; it is None"
    if experiment.init_by == "tiling" and not experiment.init_from:
        yield "init_by=tiling needs init_from, the run of a smaller model; it is None"
    expected = objective.label_names if isinstance(objective, SupervisedObjective) else ()
    provided = experiment.data.label_names
    if expected and provided and expected != provided:
        yield f"objective.label_names={expected} differ from the labels of the rows, {provided}"
    for phase, first_step in zip(phases, (0, *until_steps), strict=False):
        if problem := find_ramp_problem(phase, first_step):
            yield problem
    for phase in expand_batch_ramps(phases):
        yield from find_phase_problems(experiment, phase)


def find_phase_problems(experiment: Experiment, phase: Phase) -> Iterator[str]:
    row_format, num_micro_steps = phase.format, experiment.grad_accum_steps
    max_positions = experiment.model.max_positions
    if row_format.max_example_length(phase.seq_length) > max_positions:
        limit = f"model.max_positions={max_positions}; lower it or raise model.max_positions"
        yield f"phases.seq_length={phase.seq_length} exceeds {limit}"
    if phase.batch_size % num_micro_steps:
        yield f"phases.batch_size={phase.batch_size} is not a multiple of grad_accum_steps={num_micro_steps}"
    if isinstance(row_format, PackedFormat) and experiment.model.attention_impl == "cudnn":
        yield "model.attention_impl='cudnn' is not for phases.format=PackedFormat; take 'cudnn_packed'"
    try:
        experiment.objective.replace_mask_rate(phase.mask_rate)
    except ValueError as error:
        yield str(error)
    if isinstance(experiment.data, LabelledData):
        weighted, num_weighted = "data.task.sources", len(getattr(experiment.data.task, "sources", ()))
    else:
        weighted, num_weighted = "data.corpus", len(experiment.data.corpus)
    weights = find_corpus_weights(row_format)
    if weights is not None and len(weights) != num_weighted:
        yield f"phases.format.corpus_weights={weights} must have one for each of the {num_weighted} items of {weighted}"
    if problem := experiment.objective.find_format_problem(row_format, experiment.model):
        yield problem


def apply_settings(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """Return an experiment with settings such as "model.num_layers=4", each read by the declared type of its field.

    A phase is named by its index, or `*` for all. A field that holds a class's value takes the name of the class:
    "objective.sentence_task=SentenceOrderPrediction". All settings apply at once. An embedding as wide as the hidden
    states stays so unless it is set too. Raises `ExperimentError`.

    >>> import encoders
    >>> quickstart = encoders.load_experiments("quickstart")["quickstart-bert"]
    >>> apply_settings(quickstart, ["seed=3", "phases.*.batch_size=8"]).phases[0].batch_size
    8
    """
    model = experiment.model
    try:
        changes = parse_settings(settings)
        sizes = changes.get("model")
        if isinstance(sizes, dict) and "hidden_size" in sizes and model.embedding_size == model.hidden_size:
            sizes.setdefault("embedding_size", "none")
        return apply_changes(experiment, changes)
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
    return list_differences(flatten_fields(old), flatten_fields(new))


def list_differences(old: dict, new: dict) -> list[str]:
    """Return the entries that differ between two dictionaries, as `describe_differences` does."""
    pairs = [(path, old.get(path, "absent"), new.get(path, "absent")) for path in sorted(old.keys() | new.keys())]
    return [f"{path} is {there} there and {here} here" for path, there, here in pairs if there != here]


def describe_experiments(experiments: Sequence[RunSpec]) -> list[str]:
    """Return every field of each experiment as lines of `path = value`; of several, those that differ between them."""
    flat = [flatten_fields(experiment, fingerprinted_only=False) for experiment in experiments]
    if len(flat) > 1:
        first, *others = flat
        shared = [path for path in first if all(path in o and o[path] == first[path] for o in others)]
        flat = [{path: fields[path] for path in fields if path not in shared} for fields in flat]
    return ["\n".join(f"{path} = {value}" for path, value in fields.items()) for fields in flat]
