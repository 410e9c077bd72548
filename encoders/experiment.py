"""An experiment as a value: overridden, varied, described and fingerprinted."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encoders.data.labelled import LabelledData
from encoders.data.mixing import find_corpus_weights
from encoders.data.packing import PackedFormat
from encoders.data.prepare import PretrainingData
from encoders.data.stream import Phase
from encoders.model.config import EncoderConfig, not_fingerprinted
from encoders.objectives.base import SupervisedObjective
from encoders.objectives.causal_lm import CausalLM
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.tasks.encoder_only import EncoderOnly
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.sharding import Mesh
from encoders.utils.overrides import (
    ExperimentError,
    apply_changes,
    check_choices,
    fingerprint_content,
    flatten_fields,
    format_name_part,
    shorten_text,
)

MAX_NAME_BYTES = 200  # bytes of a name: a file's has 255 at most


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run has learned something for: a model under an objective. An imported run is this and no more.

    Raises `ExperimentError` for a name that no folder can have.
    """

    name: str = not_fingerprinted()
    model: EncoderConfig
    objective: MaskedLM | ReplacedTokenDetection | ReplaceMLM | CausalLM | SupervisedObjective | EncoderOnly
    mesh: Mesh = not_fingerprinted(Mesh())

    def __post_init__(self):
        named = (
            self.name.isprintable() and not set(self.name) & set("/\\ ") and len(self.name.encode()) <= MAX_NAME_BYTES
        )
        if not self.name or not named or self.name[0] == ".":
            raise ExperimentError(f"name={self.name!r} is no name for a folder")
        check_choices(self)

    def require(self, condition: Any, message: str) -> None:
        if not condition:
            raise ExperimentError(f"{self.name}: {message}")


@dataclass(frozen=True, kw_only=True)
class Experiment(RunSpec):
    """All that determines a run, and beside it what only names, places or records it (mesh, name, intervals).

    `init_from` is the folder of a run, trained or imported, whose parameters this one begins with. Raises
    `ExperimentError` for parts that do not fit together.
    """

    data: PretrainingData | LabelledData
    optimizer: AdamW | Lamb
    phases: tuple[Phase, ...]
    seed: int = 0
    grad_accum_steps: int = 1  # micro-steps a batch is split into
    init_from: str | None = not_fingerprinted(None)
    intervals: Intervals = not_fingerprinted(Intervals())
    early_stopping: int | None = None  # evaluations in a row without a better score that end the run

    def __post_init__(self):
        super().__post_init__()
        require = self.require
        require(self.objective.loss_weights, f"{type(self.objective).__name__} has no loss, so nothing can be trained")
        require(self.phases, "phases is empty; a run needs at least one")
        require(0 <= self.seed < 2**31, f"seed={self.seed} must be from 0 to 2147483647")
        require(self.grad_accum_steps >= 1, f"grad_accum_steps={self.grad_accum_steps} must be at least 1")
        require(
            self.early_stopping is None or self.early_stopping >= 1,
            f"early_stopping={self.early_stopping} must be at least 1, or None",
        )
        untils = [phase.until_step for phase in self.phases]
        require(untils == sorted(set(untils)), f"phases.until_step={untils} must rise from phase to phase")
        spec = self.data.tokenizer
        require(
            spec.path or spec.vocab_size == self.model.vocab_size,
            f"data.tokenizer.vocab_size={spec.vocab_size} and model.vocab_size={self.model.vocab_size} differ; "
            "set both",
        )
        warmup = self.optimizer.warmup_steps
        require(
            warmup <= self.num_steps,
            f"optimizer.warmup_steps={warmup} is more than the {self.num_steps} steps of phases.until_step",
        )
        try:
            self.objective.check(self.model)
        except ValueError as error:
            raise ExperimentError(f"{self.name}: {error}") from None
        frozen = " and ".join(self.objective.frozen_params)
        require(
            self.init_from or not frozen,
            f"the objective keeps {frozen} as init_from has them, and init_from is None",
        )
        decay, shared = self.optimizer.layer_lr_decay, self.model.shared_parts
        require(
            decay == 1 or not shared, f"optimizer.layer_lr_decay={decay} is for layers that share nothing, not {shared}"
        )
        for phase in self.phases:
            positions = self.model.max_positions
            require(
                phase.format.max_example_length(phase.seq_length) <= positions,
                f"phases.seq_length={phase.seq_length} is longer than model.max_positions={positions}",
            )
            provided = set(phase.format.label_fields)
            missing = ", ".join(sorted(self.objective.required_fields - provided))
            have = ", ".join(sorted(provided)) or "no label"
            kind = type(phase.format).__name__
            require(
                not isinstance(phase.format, PackedFormat) or self.model.attention_impl != "cudnn",
                "model.attention_impl=cudnn is for rows of one example, and the format is PackedFormat; take "
                "cudnn_packed",
            )
            weights, corpora = find_corpus_weights(phase.format), len(getattr(self.data, "corpus", ()))
            require(
                weights is None or len(weights) == corpora,
                f"phases.format.corpus_weights={weights} are not one for each of the {corpora} items of data.corpus",
            )
            told, there = self.objective.label_names, self.data.label_names
            require(told == there or not told or not there, f"objective.label_names={told}, and the rows' are {there}")
            require(not missing, f"the objective needs {missing}, and the format {kind} provides {have}")
            require(
                phase.batch_size % self.grad_accum_steps == 0,
                f"phases.batch_size={phase.batch_size} is not a multiple of grad_accum_steps={self.grad_accum_steps}",
            )

    @property
    def num_steps(self) -> int:
        return self.phases[-1].until_step


def apply_settings(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """`experiment` with settings such as "model.num_layers=4", each read by the declared type of its field.

    A phase is named by its number, or `*` for all: "phases.*.batch_size=8". Parts that are chosen by class take the
    class's name: "objective.sentence_task=SentenceOrderPrediction". All settings apply at once, so that those which
    belong together can differ from the old values together. Raises `ExperimentError` with a suggestion.

    >>> from encoders.training.optimizer import AdamW
    >>> apply_changes(AdamW(learning_rate=1e-3, warmup_steps=10), {"learning_rate": 0.1}).learning_rate
    0.1
    """
    try:
        return apply_changes(experiment, parse_settings(settings))
    except ExperimentError as error:
        raise ExperimentError(shorten_text(str(error))) from None


def parse_settings(settings: Iterable[str]) -> dict:
    """Settings as changes of changes, with a text for each field."""
    changes: dict = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ExperimentError(f"--set {setting!r} must be of the form a.b=value")
        node = changes
        *parents, leaf = path.strip().split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ExperimentError(f"--set {path}: {name} is set as a whole and in part")
        if isinstance(node.get(leaf), dict):
            raise ExperimentError(f"--set {path}: {leaf} is set as a whole and in part")
        node[leaf] = text.strip()
    return changes


def vary_experiment(base: Experiment, axes: Mapping[str, Sequence | Mapping[str, Any]]) -> list[Experiment]:
    """Every combination of the values in `axes`, named after what differs from `base`.

    An axis is a path and its values, or its values by label: `{"model.shared_parts": {"all": BOTH, "none": ()}}`.
    """
    choices = []
    for path, values in axes.items():
        named = values if isinstance(values, Mapping) else {format_name_part(value): value for value in values}
        if len(named) != len(values):
            raise ExperimentError(
                f"{path}: two of the values have one name; give them names of their own, {{name: value}}"
            )
        leaf = path.rpartition(".")[2]
        choices.append(
            [(path, part if isinstance(values, Mapping) else f"{leaf}{part}", v) for part, v in named.items()]
        )
    members = []
    for combination in itertools.product(*choices):
        changes: dict = {"name": "-".join([base.name, *(part for _, part, _ in combination)])}
        for path, _, value in combination:
            node = changes
            *parents, leaf = path.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = value
        members.append(apply_changes(base, changes))
    return members


def strip_seeds(name: str) -> str:
    """What the seeds of one experiment have in common.

    >>> strip_seeds("albert-small-seed0@SST-2-seed0")
    'albert-small@SST-2'
    """
    return re.sub(r"-seed\d+", "", name)


def fingerprint_experiment(experiment: Experiment, store_key: str, init_key: str | None = None) -> str:
    """16 hexadecimal digits that two experiments share if and only if they compute the same numbers.

    `store_key` stands for `data`, and `init_key` for `init_from`: contents rather than paths.
    """
    content = fingerprint_content(experiment) | {"data": store_key} | ({"start": init_key} if init_key else {})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def describe_differences(old: Experiment, new: Experiment) -> list[str]:
    """What differs between two experiments, as "model.num_layers is 4 there and 6 here"."""
    a, b = flatten_fields(old), flatten_fields(new)
    none = object()
    return [
        f"{path} is {a.get(path, 'absent')} there and {b.get(path, 'absent')} here"
        for path in sorted(a.keys() | b.keys())
        if a.get(path, none) != b.get(path, none)
    ]


def describe_experiment(experiment: Experiment) -> str:
    """The experiment as lines of `path = value`."""
    return "\n".join(f"{path} = {value}" for path, value in flatten_fields(experiment).items())
