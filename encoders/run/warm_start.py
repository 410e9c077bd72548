"""Initial states: fresh parameters, or those of another run, trained or imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from encoders.experiment import Experiment
from encoders.model.config import EncoderConfig
from encoders.model.encoder import find_encoder_name
from encoders.objectives.base import Objective, SupervisedObjective
from encoders.objectives.generator import GeneratorObjective
from encoders.run.folder import TOKENIZER_FILE, RunError, read_run_record
from encoders.run.run import Run
from encoders.text.tokenization import load_tokenizer
from encoders.training.optimizer import flatten_with_paths


def init_sharded_state(run: Run):
    """Return the state before the first step, initialised on the devices that hold it."""
    return jax.jit(run.init_fn, out_shardings=run.state_shardings)(run.experiment.seed)


def is_fully_shared(config: EncoderConfig) -> bool:
    """Return whether one set of parameters serves all layers, so that the depth may differ (ALBERT, table 11)."""
    return len(config.shared_parts) == 2 and config.num_groups == 1


class WarmStart:
    """The source run that `init_from` names, and the transfer of its newest parameters.

    Raises `RunError` if its model or its vocabulary does not fit the experiment.
    """

    def __init__(self, experiment: Experiment):
        self.run = Run.open(Path(experiment.init_from))
        checkpoints = self.run.open_checkpoints()
        self.step = checkpoints.latest_step()
        checkpoints.close()
        if self.step is None:
            raise RunError(f"init_from={experiment.init_from} holds no checkpoint yet")
        self.init_key = f"{read_run_record(self.run.folder)['fingerprint']}@{self.step}"
        self.check_model(experiment)
        if (path := experiment.data.tokenizer.path) is not None:
            self.check_tokenizer(load_tokenizer(path, experiment.data.tokenizer.lowercase))

    def check_model(self, experiment: Experiment) -> None:
        """Raise `RunError` if the model of the source run computes something else."""
        new_fields = experiment.model.collect_computation_fields()
        differences = [
            f"model.{name} is {value} there and {new_fields[name]} here"
            for name, value in self.run.spec.model.collect_computation_fields().items()
            if value != new_fields[name] and (name != "num_layers" or not is_fully_shared(experiment.model))
        ]
        if differences:
            raise RunError(f"init_from={experiment.init_from} has another model: {'; '.join(differences)}")

    def check_tokenizer(self, tokenizer) -> None:
        """Raise `RunError` unless `tokenizer` gives every token the id that it has in the source run."""
        if not tokenizer.has_same_ids(self.run.tokenizer):
            raise RunError(
                f"the vocabulary differs from that of init_from={self.run.folder}, whose parameters would mean other "
                f"tokens; set data.tokenizer.path={self.run.folder / TOKENIZER_FILE}"
            )

    def build_state(self, run: Run, log: Callable[[str], None]):
        """Return the state before the first step of `run`: parts of equal shapes from the source run, others fresh.

        Raises `RunError` for an encoder of other shapes, and for frozen parts that the source run lacks.
        """
        objective = run.spec.objective
        source_params = self.run.load_params(str(self.step), run.infer_shardings)[1]
        source_params = transfer_params(source_params, self.run.spec.objective, objective)
        new_shapes = run.state_shapes.params
        transferred = {
            part: source_params[part]
            for part, shapes in new_shapes.items()
            if part in source_params and collect_shapes(source_params[part]) == collect_shapes(shapes)
        }
        if (encoder := find_encoder_name(new_shapes)) not in transferred:
            raise self.wrong_shapes(source_params[encoder], new_shapes[encoder])
        if missing := [part for part in objective.frozen_params if part not in transferred]:
            raise RunError(
                f"init_from={self.run.folder} lacks {', '.join(missing)}, which the objective keeps as init_from has it"
            )

        def init_missing_params(seed):
            state = run.init_fn(seed)
            return state.replace(params={part: tree for part, tree in state.params.items() if part not in transferred})

        missing_shardings = {part: tree for part, tree in run.state_shardings.params.items() if part not in transferred}
        out_shardings = run.state_shardings.replace(params=missing_shardings)
        state = jax.jit(init_missing_params, out_shardings=out_shardings)(run.experiment.seed)
        fresh = f"; fresh: {', '.join(missing_shardings)}" if missing_shardings else ""
        log(f"initialised from {self.run.folder} (step {self.step}): {', '.join(transferred)}{fresh}")
        return state.replace(params={part: transferred.get(part, state.params.get(part)) for part in new_shapes})

    def wrong_shapes(self, source_encoder: dict, new_encoder: dict) -> RunError:
        """Return the error for an encoder whose shapes differ from those of the experiment."""
        source_shapes, new_shapes = collect_shapes(source_encoder), collect_shapes(new_encoder)
        differences = [
            f"{path} is {source_shapes.get(path)} there and {new_shapes.get(path)} here"
            for path in sorted(source_shapes.keys() | new_shapes.keys())
            if source_shapes.get(path) != new_shapes.get(path)
        ]
        return RunError(f"init_from={self.run.folder} has an encoder of other shapes: {'; '.join(differences)}")


def transfer_params(source_params: dict, source_objective: Objective, objective: Objective) -> dict:
    """Return the parameters that keep their meaning under another objective, by their names there.

    A head keeps it if both objectives have the same kind of encoder and, for a classifier, the same classes. ELECTRA's
    two-stage training starts discriminator and generator from the same masked language model.
    """
    source_name = find_encoder_name(source_params)
    name = "discriminator" if isinstance(objective, GeneratorObjective) else "encoder"
    source_labels, labels = get_label_names(source_objective), get_label_names(objective)
    if source_name == name and (not source_labels or source_labels == labels):
        return source_params
    params = {name: source_params[source_name]}
    if "pooler" in source_params:
        params["pooler"] = source_params["pooler"]
    if source_name != name and "generator" in objective.frozen_params:
        # A copy: a donated buffer may occur once.
        params["generator"] = jax.tree.map(jnp.copy, source_params[source_name])
        if "tokens" in source_params:
            params["tokens"] = source_params["tokens"]
    return params


def get_label_names(objective: Objective) -> tuple[str, ...]:
    """Return the classes of a classifier, none for any other objective."""
    return objective.label_names if isinstance(objective, SupervisedObjective) else ()


def collect_shapes(params: dict) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf by its path."""
    return {path: leaf.shape for path, leaf in flatten_with_paths(params)}
