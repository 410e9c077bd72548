"""How a run begins: with fresh parameters, or with those of another run, trained or imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from encoders.model.config import Model
from encoders.run.run import Run, RunError, read_record
from encoders.text.tokenization import load
from encoders.training.optimizer import leaves


def fresh(run: Run):
    """The state before the first step, made where it belongs."""
    return jax.jit(run.init, out_shardings=run.shardings)(run.experiment.seed)


def one_for_all(model: Model) -> bool:
    """Whether one set of parameters serves all layers: deeper ALBERTs begin with shallower ones (table 11)."""
    return len(model.share) == 2 and model.groups == 1


class Start:
    """The run whose parameters `experiment.start` names.

    Raises `RunError` where the model or the vocabulary of the two do not fit, before any long work.
    """

    def __init__(self, experiment):
        self.run = Run.open(Path(experiment.start))
        checkpoints = self.run.checkpoints()
        self.at = checkpoints.latest()
        checkpoints.close()
        if self.at is None:
            raise RunError(f"start={experiment.start} has no checkpoint yet")
        self.key = f"{read_record(self.run.folder)['fingerprint']}@{self.at}"
        mine, theirs = experiment.model, self.run.network.model
        changes = [
            f"model.{name} is {value} there and {mine.computes()[name]} here"
            for name, value in theirs.computes().items()
            if value != mine.computes()[name] and (name != "layers" or not one_for_all(mine))
        ]
        if changes:
            raise RunError(f"start={experiment.start} is of another model: {'; '.join(changes)}")
        if (path := experiment.data.vocabulary.path) is not None:
            self.check_vocabulary(load(path, experiment.data.vocabulary.lowercase))

    def check_vocabulary(self, tokenizer) -> None:
        """Raises `RunError` unless `tokenizer` gives every token the id it had in the run begun with."""
        if not tokenizer.same_ids(self.run.tokenizer):
            raise RunError(
                f"the vocabulary is not that of start={self.run.folder}, whose parameters would mean other tokens; "
                f"set data.vocabulary.path={self.run.folder / 'tokenizer.json'}"
            )

    def state(self, run: Run, say: Callable[[str], None]):
        """The state before the first step of `run`: every part that both have, as it was; the others fresh.

        Raises `RunError` for an encoder of other shapes.
        """
        now = run.network.objective
        mine, found = now.body, self.run.params(str(self.at), run.placed)[1]
        found = now.begun(self.run.network.objective, found)
        wanted = run.shapes.params
        shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
        taken = {part: found[part] for part in wanted if part in found and shapes(found[part]) == shapes(wanted[part])}
        if mine not in taken:
            there, here = ({path: x.shape for path, x in leaves(tree)} for tree in (found[mine], wanted[mine]))
            changes = [
                f"{path} is {there.get(path)} there and {here.get(path)} here"
                for path in sorted(there.keys() | here.keys())
                if there.get(path) != here.get(path)
            ]
            raise RunError(f"start={self.run.folder} has an encoder of other shapes: {'; '.join(changes)}")
        if missing := [part for part in now.frozen if part not in taken]:
            raise RunError(f"start={self.run.folder} has no {' and no '.join(missing)} that the objective could keep")

        def rest(seed):
            state = run.init(seed)
            return state.replace(params={part: tree for part, tree in state.params.items() if part not in taken})

        left = {part: tree for part, tree in run.shardings.params.items() if part not in taken}
        state = jax.jit(rest, out_shardings=run.shardings.replace(params=left))(run.experiment.seed)
        new = f"; new: {', '.join(left)}" if left else ""
        say(f"begins with {self.run.folder} (step {self.at}): {', '.join(taken)}{new}")
        return state.replace(params={part: taken.get(part, state.params.get(part)) for part in wanted})
