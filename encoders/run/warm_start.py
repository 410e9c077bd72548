"""Initial states: fresh parameters, or those of another run, trained or imported."""

from collections.abc import Callable
from contextlib import closing

import jax
import jax.numpy as jnp

from encoders.experiment import Experiment, list_differences
from encoders.model.encoder import find_encoder_name, merge_word_tables
from encoders.objectives.base import Objective
from encoders.objectives.generator import GeneratorObjective
from encoders.run.folder import TOKENIZER_FILE, RunError, read_run_record
from encoders.run.run import Run
from encoders.run.tiling import TILED_FIELDS, check_sizes, tile_params
from encoders.training.optimizer import flatten_with_paths


def init_sharded_state(run: Run):
    """Return the state before the first step, initialised on the devices that hold it."""
    return jax.jit(run.init_fn, out_shardings=run.state_shardings)(run.experiment.seed)


class WarmStart:
    """The source run that `init_from` names. Raises `RunError` if its model or its vocabulary does not fit."""

    def __init__(self, experiment: Experiment):
        self.run = Run.open(experiment.init_from)
        with closing(self.run.open_checkpoints()) as checkpoints:
            self.step = checkpoints.latest_step()
        if self.step is None:
            raise RunError(f"init_from={experiment.init_from} holds no checkpoint yet")
        self.init_key = f"{read_run_record(self.run.folder)['fingerprint']}@{self.step}"
        fields, new_fields = (
            {f"model.{name}": value for name, value in model.collect_computation_fields().items()}
            for model in (self.run.spec.model, experiment.model)
        )
        if len(experiment.model.shared_parts) == 2 and experiment.model.num_groups == 1:
            # One set of parameters serves all layers, so the depth may differ (ALBERT, table 11).
            fields["model.num_layers"] = new_fields["model.num_layers"]
        if experiment.init_by == "tiling":
            check_sizes(self.run.spec.model, experiment.model)
            fields |= {f"model.{name}": new_fields[f"model.{name}"] for name in TILED_FIELDS}
        if differences := list_differences(fields, new_fields):
            raise RunError(f"init_from={experiment.init_from} has another model: {'; '.join(differences)}")
        if experiment.data.tokenizer.path is not None:
            self.check_tokenizer(experiment.data.tokenizer.load())

    def check_tokenizer(self, tokenizer) -> None:
        """Raise `RunError` unless `tokenizer` gives every token the id that it has in the source run."""
        if not tokenizer.has_same_ids(self.run.tokenizer):
            folder = self.run.folder
            hint = f"whose parameters would mean other tokens; set data.tokenizer.path={folder / TOKENIZER_FILE}"
            raise RunError(f"the vocabulary differs from that of init_from={folder}, {hint}")

    def build_state(self, run: Run, log: Callable[[str], None]):
        """Return the state before the first step: parts of equal shapes from the source run, others fresh."""
        objective, new_shapes = run.spec.objective, run.state_shapes.params
        source_params = self.run.load_params(str(self.step), run.infer_shardings)[1]
        source_params = transfer_params(source_params, self.run.spec.objective, objective)
        if run.experiment.init_by == "tiling":
            source_params = tile_parts(source_params, new_shapes, run)
        transferred = {
            part: source_params[part]
            for part, shapes in new_shapes.items()
            if part in source_params and collect_shapes(source_params[part]) == collect_shapes(shapes)
        }
        if (encoder := find_encoder_name(new_shapes)) not in transferred:
            differences = list_differences(*map(collect_shapes, (source_params[encoder], new_shapes[encoder])))
            raise RunError(f"init_from={self.run.folder} has an encoder of other shapes: {'; '.join(differences)}")
        if missing := [part for part in objective.frozen_params if part not in transferred]:
            raise RunError(f"init_from={self.run.folder} lacks {', '.join(missing)}, which the objective never updates")

        def select_missing(state):
            return state.replace(params={part: tree for part, tree in state.params.items() if part not in transferred})

        out_shardings = select_missing(run.state_shardings)
        init_missing = jax.jit(lambda seed: select_missing(run.init_fn(seed)), out_shardings=out_shardings)
        state = init_missing(run.experiment.seed)
        fresh = f"; fresh: {', '.join(out_shardings.params)}" if out_shardings.params else ""
        log(f"initialised from {self.run.folder} (step {self.step}): {', '.join(transferred)}{fresh}")
        return state.replace(params={part: transferred.get(part, state.params.get(part)) for part in new_shapes})


def transfer_params(source_params: dict, source_objective: Objective, objective: Objective) -> dict:
    """Return the parameters that keep their meaning under another objective, by their names there.

    A head keeps it if both objectives have the same kind of encoder and, for a classifier, the same classes. ELECTRA's
    two-stage training starts discriminator and generator from the same masked language model.
    """
    if getattr(objective, "tie", "none") != "disentangled":
        source_params = merge_word_tables(source_params)
    source_name = find_encoder_name(source_params)
    name = "discriminator" if isinstance(objective, GeneratorObjective) else "encoder"
    source_labels, labels = (getattr(value, "label_names", ()) for value in (source_objective, objective))
    if source_name == name and (not source_labels or source_labels == labels):
        return source_params
    params, kept = {name: source_params[source_name]}, ["pooler"]
    if source_name != name and "generator" in objective.frozen_params:
        # A copy: a donated buffer may occur once.
        params["generator"] = jax.tree.map(jnp.copy, source_params[source_name])
        kept.append("tokens")
    return params | {part: source_params[part] for part in kept if part in source_params}


def tile_parts(source_params: dict, new_shapes: dict, run: Run) -> dict:
    """Return the parts that both runs have, tiled to the shapes of `run`, on the devices that hold them."""
    shared = {part: new_shapes[part] for part in source_params if part in new_shapes}
    tile = lambda params: {part: tile_params(params[part], shared[part], run.spec.model) for part in shared}
    shardings = {part: run.state_shardings.params[part] for part in shared}
    return jax.jit(tile, out_shardings=shardings)({part: source_params[part] for part in shared})


def collect_shapes(params: dict) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten_with_paths(params)}
