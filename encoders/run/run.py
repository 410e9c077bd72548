"""A run as a value: the model that is trained or was imported, its vocabulary, its folder and its checkpoints."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import jax

from encoders.data.bucket_store import open_store
from encoders.data.store import STORE_FILE, Store
from encoders.data.stream import BatchStream, Phase, expand_batch_ramps
from encoders.experiment import Experiment, RunSpec
from encoders.run.folder import (
    CHECKPOINTS_FOLDER,
    RECORD_FILE,
    TOKENIZER_FILE,
    RunError,
    check_recorded_file,
    open_run_folder,
    parse_run_spec,
    read_run_record,
)
from encoders.run.time_account import count_logged_steps
from encoders.text.tokenization import VocabInfo, load_tokenizer
from encoders.training import distributed, sharding, step
from encoders.training.checkpoint import CheckpointDamaged, Checkpoints, build_abstract_state
from encoders.training.optimizer import flatten_with_paths
from encoders.training.sent_checkpoints import SentCheckpoints
from encoders.utils.buckets import find_scheme, parse_path
from encoders.utils.files import DamagedFile


@dataclass(frozen=True)
class Run:
    """A model and its vocabulary in a folder; `open_store` opens the store of its text or rows.

    Raises `RunError` for a vocabulary that the model cannot have.
    """

    spec: RunSpec
    folder: Path
    vocab: VocabInfo
    open_store: Callable[[], Store]

    def __post_init__(self):
        if problem := self.spec.model.find_vocabulary_problem(self.vocab):
            raise RunError(problem)

    @classmethod
    def open(cls, folder: str | Path, store_path: str | None = None) -> Self:
        """Return the run recorded in a folder; `store_path` is the new path of a store that was moved."""
        folder = open_run_folder(folder)
        record = read_run_record(folder)
        open_store = partial(open_recorded_store, folder, record, store_path)
        return cls(parse_run_spec(record), folder, VocabInfo.from_json_value(record["facts"]), open_store)

    @property
    def experiment(self) -> Experiment:
        """The experiment. Raises `RunError` for an imported run, which has none."""
        if not isinstance(self.spec, Experiment):
            hint = f"an experiment can start from its parameters (--set init_from={self.folder}), and "
            hint += "evaluate --corpus scores it on any text"
            raise RunError(f"{self.folder} was imported and has neither text nor training; {hint}")
        return self.spec

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return self.spec.mesh.build()

    @cached_property
    def module(self):
        return self.spec.objective.module(self.spec.model, self.vocab)

    def build_train_module(self, phase: Phase):
        """Return the module that trains in a phase: `module`, with the phase's mask rate where it has one."""
        return self.spec.objective.replace_mask_rate(phase.mask_rate).module(self.spec.model, self.vocab)

    def build_static_args(self, phase: Phase) -> dict:
        """Return the arguments of `train_step` in a phase that its compilation depends on, besides shapes."""
        return step.build_static_args(self.experiment, self.build_train_module(phase))

    @cached_property
    def store(self) -> Store:
        return self.open_store()

    @cached_property
    def tokenizer(self):
        """The tokenizer. Raises `RunError` if its file is missing or has changed."""
        return load_tokenizer(check_recorded_file(self.folder, TOKENIZER_FILE))

    @cached_property
    def init_fn(self) -> Callable:
        return partial(step.init_train_state, module=self.module, optimizer=self.experiment.optimizer)

    @cached_property
    def state_shapes(self):
        return step.eval_state_shapes(module=self.module, optimizer=self.experiment.optimizer)

    @cached_property
    def state_shardings(self):
        return self.infer_shardings(self.state_shapes)

    def infer_shardings(self, tree):
        return sharding.infer_shardings(tree, self.mesh)

    def open_stream(self) -> BatchStream:
        """Return the training batches of a run, of which this process reads the rows of its devices.

        To see what an objective makes of a batch:

            batch = run.open_stream().build_batch(0)
            corrupted = run.experiment.objective.corrupt(jax.tree.map(jnp.asarray, batch), run.vocab, seed=0)
        """
        experiment, find_local_rows = self.experiment, partial(sharding.find_local_rows, self.mesh)
        num_passes = experiment.objective.num_distinct_passes
        return BatchStream.from_store(self.store, experiment.phases, experiment.seed, num_passes, find_local_rows)

    def open_checkpoints(self, keep_checkpoints: int | None = None) -> Checkpoints:
        """Open the run's checkpoints: to read, or to write and keep the newest `keep_checkpoints`."""
        record = read_run_record(self.folder)
        owner = record["fingerprint"] if "format" in record else None
        kind = Checkpoints if find_scheme(self.folder) in (None, "gs") else SentCheckpoints
        return kind(self.folder / CHECKPOINTS_FOLDER, keep_checkpoints, owner)

    def restore_latest(self, checkpoints: Checkpoints, log: Callable[[str], None]) -> tuple[int, Any, dict]:
        """Return step, state and notes of the newest intact checkpoint, or step 0 and no state if there is none yet.

        Damaged checkpoints are logged and moved to damaged/. Raises `RunError` if all of them are damaged, and if one
        of several processes finds damage, since the others may not.
        """
        abstract_state, damaged = build_abstract_state(self.state_shapes, self.state_shardings), {}
        newest = self.find_newest_step(checkpoints, log)
        start_step, state, notes = 0, None, {}
        for saved_step in reversed(checkpoints.all_steps()):
            try:
                if state is None:
                    start_step, (state, notes) = saved_step, checkpoints.restore(saved_step, abstract_state)
                else:  # an older one may be the best
                    checkpoints.read_notes(saved_step)
            except CheckpointDamaged as error:
                damaged[saved_step] = str(error)
                if distributed.is_multi_process() and len(checkpoints.all_steps()) > 1:
                    text = f"{error}; it was moved to {checkpoints.move_damaged([saved_step])}"
                    raise RunError(
                        f"{self.folder}: {text}, and the same command resumes from the one before"
                    ) from error
                log(f"{self.folder}: {error}")
        if state is None and newest is None:
            newest = self.infer_saved_step()
        if state is None and (damaged or newest is not None):
            reasons = "; ".join(damaged.values()) or f"checkpoint {newest} is missing"
            raise RunError(f"{self.folder} lost all its checkpoints ({reasons}); to start over, remove it")
        if damaged:
            moved_to = checkpoints.move_damaged([*damaged])
            log(f"{self.folder}: resumes from step {start_step}; damaged checkpoints were moved to {moved_to}")
        return start_step, state, notes

    def find_newest_step(self, checkpoints: Checkpoints, log: Callable[[str], None]) -> int | None:
        """Return the newest step that was ever saved, and log where its checkpoint is missing."""
        try:
            newest = checkpoints.read_saved_steps().get("latest")
        except DamagedFile as error:
            log(f"{error}; the next checkpoint writes it again")
            return None
        if newest is not None and newest not in checkpoints.all_steps():
            log(f"{self.folder}: checkpoint {newest} is missing")
        return newest

    def infer_saved_step(self) -> int | None:
        """Return a step that the rows of a run prove to have been saved, or None.

        Each checkpoint waits for the one before, so a run that went beyond two intervals has saved the first.
        """
        recorded = parse_run_spec(read_run_record(self.folder))
        save_every = max(spec.intervals.save_every for spec in (recorded, self.experiment))
        return save_every if count_logged_steps(self.folder) > 2 * save_every else None

    def load_params(self, step_name: str = "latest", infer_shardings: Callable | None = None) -> tuple[int, dict]:
        """Return a step and its parameters, on the mesh or by `infer_shardings`.

        `step_name` is latest, best, a number, or average:N, the mean of the last N checkpoints (Vaswani et al., 2017,
        https://arxiv.org/abs/1706.03762, §6.1), whose step is that of the newest. Raises `RunError`.
        """
        checkpoints = self.open_checkpoints()
        names = self.name_steps(checkpoints)
        steps = {name: saved_step for name, saved_step in names.items() if name.isdigit()}
        num_averaged = 1
        if averaged := re.fullmatch(r"average:([1-9]\d*)", step_name):
            num_averaged, step_name = int(averaged.group(1)), "latest"
            self.check_num_averaged(num_averaged, [*steps])
        if step_name not in names:
            raise RunError(f"--step {step_name}: {self.folder} has {', '.join(names)}, and average:N of the last N")
        chosen = names[step_name]
        try:
            if checkpoints.read_saved_steps().get(step_name, chosen) != chosen:
                raise RunError(f"{self.folder}: the {step_name} checkpoint is missing; --step takes {', '.join(steps)}")
            selected = [chosen] if num_averaged == 1 else [*steps.values()][-num_averaged:]
            place = infer_shardings or self.infer_shardings
            params = average_trees(checkpoints.restore_params(saved_step, place) for saved_step in selected)
            self.check_param_shapes(params)
            return chosen, params
        except (CheckpointDamaged, DamagedFile) as error:
            others = ", ".join(name for name, saved_step in steps.items() if saved_step != chosen) or "none"
            raise RunError(f"{self.folder}: {error}; other steps, for --step: {others}") from error
        finally:
            checkpoints.close()

    def name_steps(self, checkpoints: Checkpoints) -> dict[str, int]:
        """Return the steps of checkpoints by name: latest, best and numbers. Raises `RunError` without a checkpoint."""
        if not (steps := {str(saved_step): saved_step for saved_step in checkpoints.all_steps()}):
            raise RunError(f"{self.folder} holds no checkpoint yet")
        return {"latest": checkpoints.latest_step(), "best": checkpoints.best_step()} | steps

    def check_num_averaged(self, num_averaged: int, steps: list[str]) -> None:
        """Raise `RunError` where the last `num_averaged` checkpoints are not all there: older ones may be the best."""
        limit = self.spec.intervals.keep_checkpoints if isinstance(self.spec, Experiment) else 1
        if num_averaged > min(limit, len(steps)):
            kept = f"keeps the last {limit} (intervals.keep_checkpoints)" if limit < num_averaged else "has fewer"
            raise RunError(f"--step average:{num_averaged}: {self.folder} {kept}, of steps {', '.join(steps)}")

    def check_param_shapes(self, params: dict) -> None:
        """Raise `RunError` where the model of the record has other shapes than its parameters."""
        expected = dict(flatten_with_paths(step.eval_module_shapes(self.module)))
        for path, leaf in flatten_with_paths(params):
            if path in expected and expected[path].shape != leaf.shape:
                shapes = f"{path} is {list(leaf.shape)} there and {list(expected[path].shape)} by the record"
                raise RunError(f"{self.folder}: {RECORD_FILE} does not fit the checkpoint: {shapes}")


def average_trees(trees: Iterable[dict]) -> dict:
    """Return the mean of trees of arrays; one tree is in memory beside the mean."""
    iterator = iter(trees)
    mean = next(iterator)
    for count, tree in enumerate(iterator, start=2):
        mean = jax.tree.map(lambda m, x, n=count: m + (x - m) / n, mean, tree)
    return mean


def open_recorded_store(folder: Path, record: dict, moved_to: str | None) -> Store:
    """Open the store that a run was trained on. Raises `RunError` if it is missing or its key differs."""
    path = parse_path(moved_to or record["store"])
    if not (path / STORE_FILE).exists():
        raise RunError(f"the store of {folder} is not at {path}; pass its new path with --store DIR")
    store = open_store(path)
    if store.key != record["store_key"]:
        raise RunError(f"{path} has the key {store.key}, but the run was trained on the store {record['store_key']}")
    store.verify()
    return store


def check_batch_sizes(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Raise `RunError` for batches that the devices and the micro-steps do not divide."""
    divisor = sharding.count_batch_shards(mesh) * experiment.grad_accum_steps
    product = f"{divisor}: mesh.data x mesh.fsdp x grad_accum_steps"
    for phase in expand_batch_ramps(experiment.phases):
        if phase.batch_size % divisor:
            raise RunError(f"phases.batch_size={phase.batch_size} is not a multiple of {product}")
