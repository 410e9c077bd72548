"""How a run begins: with fresh parameters, or with those of another run, trained or imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from encoders.model.config import EncoderConfig
from encoders.run.run import Run, RunError, read_run_record
from encoders.text.tokenization import load_tokenizer
from encoders.training.optimizer import flatten_with_paths


def init_sharded_state(run: Run):
    """The state before the first step, made where it belongs."""
    return jax.jit(run.init_fn, out_shardings=run.state_shardings)(run.experiment.seed)


def is_fully_shared(config: EncoderConfig) -> bool:
    """Whether one set of parameters serves all layers: deeper ALBERTs begin with shallower ones (table 11)."""
    return len(config.shared_parts) == 2 and config.num_groups == 1


class WarmStart:
    """The run whose parameters `experiment.start` names.

    Raises `RunError` where the model or the vocabulary of the two do not fit, before any long work.
    """

    def __init__(self, experiment):
        self.run = Run.open(Path(experiment.init_from))
        checkpoints = self.run.open_checkpoints()
        self.step = checkpoints.latest_step()
        checkpoints.close()
        if self.step is None:
            raise RunError(f"init_from={experiment.init_from} has no checkpoint yet")
        self.init_key = f"{read_run_record(self.run.folder)['fingerprint']}@{self.step}"
        mine, theirs = experiment.model, self.run.spec.model
        changes = [
            f"model.{name} is {value} there and {mine.collect_computation_fields()[name]} here"
            for name, value in theirs.collect_computation_fields().items()
            if value != mine.collect_computation_fields()[name] and (name != "num_layers" or not is_fully_shared(mine))
        ]
        if changes:
            raise RunError(f"init_from={experiment.init_from} is of another model: {'; '.join(changes)}")
        if (path := experiment.data.tokenizer.path) is not None:
            self.check_tokenizer(load_tokenizer(path, experiment.data.tokenizer.lowercase))

    def check_tokenizer(self, tokenizer) -> None:
        """Raises `RunError` unless `tokenizer` gives every token the id it had in the run begun with."""
        if not tokenizer.has_same_ids(self.run.tokenizer):
            raise RunError(
                f"the vocabulary is not that of init_from={self.run.folder}, whose parameters would mean other tokens; "
                f"set data.tokenizer.path={self.run.folder / 'tokenizer.json'}"
            )

    def build_state(self, run: Run, log: Callable[[str], None]):
        """The state before the first step of `run`: every part that both have, as it was; the others fresh.

        Raises `RunError` for an encoder of other shapes.
        """
        now = run.spec.objective
        mine, found = now.encoder_name, self.run.load_params(str(self.step), run.infer_shardings)[1]
        found = now.transfer_params(self.run.spec.objective, found)
        wanted = run.state_shapes.params
        get_shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
        taken = {
            part: found[part]
            for part in wanted
            if part in found and get_shapes(found[part]) == get_shapes(wanted[part])
        }
        if mine not in taken:
            there, here = (
                {path: x.shape for path, x in flatten_with_paths(tree)} for tree in (found[mine], wanted[mine])
            )
            changes = [
                f"{path} is {there.get(path)} there and {here.get(path)} here"
                for path in sorted(there.keys() | here.keys())
                if there.get(path) != here.get(path)
            ]
            raise RunError(f"init_from={self.run.folder} has an encoder of other shapes: {'; '.join(changes)}")
        if missing := [part for part in now.frozen_params if part not in taken]:
            raise RunError(
                f"init_from={self.run.folder} has no {' and no '.join(missing)} that the objective could keep"
            )

        def init_missing_params(seed):
            state = run.init_fn(seed)
            return state.replace(params={part: tree for part, tree in state.params.items() if part not in taken})

        left = {part: tree for part, tree in run.state_shardings.params.items() if part not in taken}
        state = jax.jit(init_missing_params, out_shardings=run.state_shardings.replace(params=left))(
            run.experiment.seed
        )
        new = f"; new: {', '.join(left)}" if left else ""
        log(f"begins with {self.run.folder} (step {self.step}): {', '.join(taken)}{new}")
        return state.replace(params={part: taken.get(part, state.params.get(part)) for part in wanted})
