"""An experiment as a value: overridden, varied, described and fingerprinted."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encoders.data.labelled import Labelled
from encoders.data.mixing import weights_of
from encoders.data.packing import Packed
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.model.config import Model, aside
from encoders.objectives.base import Task
from encoders.objectives.causal_lm import NextToken
from encoders.objectives.masked_lm import Joint
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.restored_tokens import RestoredTokens
from encoders.tasks.encoder_only import Features
from encoders.training.metric_log import Cadence
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.sharding import Mesh
from encoders.utils.overrides import ExperimentError, change, check_choices, essence, flat, label, shortened

LONGEST = 200  # bytes of a name: a file's has 255 at most


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a run has learned something for: a model under an objective. An imported run is this and no more.

    Raises `ExperimentError` for a name that no folder can have.
    """

    name: str = aside()
    model: Model
    objective: Joint | ReplacedTokens | RestoredTokens | NextToken | Task | Features
    mesh: Mesh = aside(Mesh())

    def __post_init__(self):
        named = self.name.isprintable() and not set(self.name) & set("/\\ ") and len(self.name.encode()) <= LONGEST
        if not self.name or not named or self.name[0] == ".":
            raise ExperimentError(f"name={self.name!r} is no name for a folder")
        check_choices(self)

    def require(self, holds: Any, message: str) -> None:
        if not holds:
            raise ExperimentError(f"{self.name}: {message}")


@dataclass(frozen=True, kw_only=True)
class Experiment(Network):
    """All that determines a run, and beside it what only names, places or records it (mesh, name, cadence).

    `start` is the folder of a run, trained or imported, whose parameters this one begins with. Raises
    `ExperimentError` for parts that do not fit together.
    """

    data: Data | Labelled
    optimizer: AdamW | Lamb
    phases: tuple[Phase, ...]
    seed: int = 0
    accumulate: int = 1  # micro-steps a batch is split into
    start: str | None = aside(None)
    cadence: Cadence = aside(Cadence())
    stop_after: int | None = None  # evaluations in a row without a better score that end the run

    def __post_init__(self):
        super().__post_init__()
        require = self.require
        require(self.objective.weights, f"{type(self.objective).__name__} has no loss, so nothing can be trained")
        require(self.phases, "phases is empty; a run needs at least one")
        require(0 <= self.seed < 2**31, f"seed={self.seed} must be from 0 to 2147483647")
        require(self.accumulate >= 1, f"accumulate={self.accumulate} must be at least 1")
        require(
            self.stop_after is None or self.stop_after >= 1, f"stop_after={self.stop_after} must be at least 1, or None"
        )
        untils = [phase.until for phase in self.phases]
        require(untils == sorted(set(untils)), f"phases.until={untils} must rise from phase to phase")
        spec = self.data.vocabulary
        require(
            spec.path or spec.size == self.model.vocab,
            f"data.vocabulary.size={spec.size} and model.vocab={self.model.vocab} differ; set both",
        )
        warmup = self.optimizer.warmup
        require(warmup <= self.steps, f"optimizer.warmup={warmup} is more than the {self.steps} steps of phases.until")
        try:
            self.objective.check(self.model)
        except ValueError as error:
            raise ExperimentError(f"{self.name}: {error}") from None
        frozen = " and ".join(self.objective.frozen)
        require(self.start or not frozen, f"the objective keeps {frozen} as start has them, and start is None")
        decay, shared = self.optimizer.layer_decay, self.model.share
        require(
            decay == 1 or not shared, f"optimizer.layer_decay={decay} is for layers that share nothing, not {shared}"
        )
        for phase in self.phases:
            positions = self.model.positions
            require(
                phase.format.longest(phase.length) <= positions,
                f"phases.length={phase.length} is longer than model.positions={positions}",
            )
            provided = set(phase.format.labels)
            missing = ", ".join(sorted(self.objective.needs - provided))
            have = ", ".join(sorted(provided)) or "no label"
            kind = type(phase.format).__name__
            require(
                not isinstance(phase.format, Packed) or self.model.attention != "cudnn",
                "model.attention=cudnn is for rows of one example, and the format is Packed; take cudnn_packed",
            )
            weights, corpora = weights_of(phase.format), len(getattr(self.data, "corpus", ()))
            require(
                weights is None or len(weights) == corpora,
                f"phases.format.weights={weights} are not one for each of the {corpora} items of data.corpus",
            )
            told, there = self.objective.answers, self.data.labels
            require(told == there or not told or not there, f"objective.labels={told}, and the rows' are {there}")
            require(not missing, f"the objective needs {missing}, and the format {kind} provides {have}")
            require(
                phase.batch % self.accumulate == 0,
                f"phases.batch={phase.batch} is not a multiple of accumulate={self.accumulate}",
            )

    @property
    def steps(self) -> int:
        return self.phases[-1].until


def override(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """`experiment` with settings such as "model.layers=4", each read by the declared type of its field.

    A phase is named by its number, or `*` for all: "phases.*.batch=8". Parts that are chosen by class take the class's
    name: "objective.sentences=SentenceOrder". All settings apply at once, so that those which belong together can
    differ from the old values together. Raises `ExperimentError` with a suggestion.

    >>> from encoders.training.optimizer import AdamW
    >>> change(AdamW(rate=1e-3, warmup=10), {"rate": 0.1}).rate
    0.1
    """
    try:
        return change(experiment, nested(settings))
    except ExperimentError as error:
        raise ExperimentError(shortened(str(error))) from None


def nested(settings: Iterable[str]) -> dict:
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


def vary(base: Experiment, axes: Mapping[str, Sequence | Mapping[str, Any]]) -> list[Experiment]:
    """Every combination of the values in `axes`, named after what differs from `base`.

    An axis is a path and its values, or its values by label: `{"model.share": {"all": BOTH, "none": ()}}`.
    """
    choices = []
    for path, values in axes.items():
        named = values if isinstance(values, Mapping) else {label(value): value for value in values}
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
        members.append(change(base, changes))
    return members


def without_seeds(name: str) -> str:
    """What the seeds of one experiment have in common.

    >>> without_seeds("albert-small-seed0@SST-2-seed0")
    'albert-small@SST-2'
    """
    return re.sub(r"-seed\d+", "", name)


def fingerprint(experiment: Experiment, store_key: str, start_key: str | None = None) -> str:
    """16 hexadecimal digits that two experiments share if and only if they compute the same numbers.

    `store_key` stands for `data`, and `start_key` for `start`: contents rather than paths.
    """
    content = essence(experiment) | {"data": store_key} | ({"start": start_key} if start_key else {})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: Experiment, new: Experiment) -> list[str]:
    """What differs between two experiments, as "model.layers is 4 there and 6 here"."""
    a, b = flat(old), flat(new)
    none = object()
    return [
        f"{path} is {a.get(path, 'absent')} there and {b.get(path, 'absent')} here"
        for path in sorted(a.keys() | b.keys())
        if a.get(path, none) != b.get(path, none)
    ]


def describe(experiment: Experiment) -> str:
    """The experiment as lines of `path = value`."""
    return "\n".join(f"{path} = {value}" for path, value in flat(experiment).items())
