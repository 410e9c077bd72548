"""A run's folder: the network that is trained there, its vocabulary, its checkpoints and its scores.

    runs/NAME/
      experiment.json     the experiment, its fingerprint, its vocabulary's facts, and where its store is
      tokenizer.json
      checkpoints/        the newest and the best; those that were found damaged are moved to damaged/
      metrics.jsonl       a row a log and an evaluation
      result.json         once it is finished
      .held               locked while a process trains there, and says which

An imported run has a network in the place of the experiment, and neither store, metrics nor result.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from encoders.data.example_table import add_example_axis
from encoders.data.store import Split, Store
from encoders.data.stream import Phase, iter_eval_batches, load_eval_table
from encoders.experiment import Experiment, RunSpec, describe_differences, fingerprint_experiment
from encoders.families.conventions import infer_conventions
from encoders.objectives.base import total_loss
from encoders.text.tokenization import VocabInfo
from encoders.training import distributed, sharding, step
from encoders.training.checkpoint import CheckpointDamaged, Checkpoints, build_abstract_state
from encoders.utils import metrics
from encoders.utils.files import write_json
from encoders.utils.overrides import from_json_value, to_json_value

LOCK_FILE, LOCK_RETRIES = ".held", 3
PATH_FIELD_PREFIXES = ("data.corpus is ", "data.root is ", "data.tokenizer.path is ")


class RunError(ValueError):
    """A run that cannot start or go on."""


class RunInUse(RunError):
    """A run that another process trains."""


class Run:
    """A network and its vocabulary, in its folder; with a store, if text is to be read."""

    def __init__(self, spec: RunSpec, folder: Path, vocab: VocabInfo, open_store: Callable[[], Store]):
        self.spec, self.folder, self.vocab, self.open_store = spec, Path(folder), vocab, open_store
        self.mesh = spec.mesh.build()
        if vocab.vocab_size > spec.model.vocab_size:
            raise RunError(
                f"the vocabulary has {vocab.vocab_size} entries and model.vocab_size={spec.model.vocab_size} is less"
            )
        self.module = spec.objective.module(spec.model, vocab)

    @classmethod
    def open(cls, folder: Path, store_path: str | None = None) -> Run:
        """A run from its folder alone; `store` says where its store has moved to."""
        record = read_run_record(folder)
        find = partial(open_recorded_store, folder, record, store_path)
        return cls(parse_run_spec(record), folder, VocabInfo.from_json_value(record["facts"]), find)

    @property
    def experiment(self) -> Experiment:
        """The experiment. Raises `RunError` for an imported run, which is none."""
        if not isinstance(self.spec, Experiment):
            raise RunError(
                f"{self.folder} was imported, with no text and nothing to train; an experiment can begin with its "
                f"parameters: --set init_from={self.folder}"
            )
        return self.spec

    @cached_property
    def store(self) -> Store:
        return self.open_store()

    @cached_property
    def tokenizer(self):
        """The vocabulary's rules. Raises `RunError` where their file is gone."""
        from encoders.text.tokenization import load_tokenizer

        path = self.folder / "tokenizer.json"
        if not path.exists():
            raise RunError(f"{self.folder} has lost its tokenizer.json")
        return load_tokenizer(path)

    @cached_property
    def init_fn(self) -> Callable:
        return partial(step.init_train_state, module=self.module, optimizer=self.experiment.optimizer)

    @cached_property
    def state_shapes(self):
        return jax.eval_shape(self.init_fn, self.experiment.seed)

    @cached_property
    def state_shardings(self):
        return self.infer_shardings(self.state_shapes)

    def infer_shardings(self, tree):
        """Where every leaf of parameters or of a state belongs on this run's mesh."""
        return sharding.infer_shardings(tree, self.mesh)

    def open_checkpoints(self, keep_checkpoints: int | None = None) -> Checkpoints:
        """The run's checkpoints; to write some, say how many to keep."""
        return Checkpoints(self.folder / "checkpoints", keep_checkpoints)

    def restore_latest(self, checkpoints: Checkpoints, log: Callable[[str], None]) -> tuple[int, Any, dict]:
        """The newest sound checkpoint: its step, state and notes; step 0 and no state where there is none yet.

        Damaged ones are named and set aside. Raises `RunError` where all are damaged.
        """
        like, damaged = build_abstract_state(self.state_shapes, self.state_shardings), {}
        for at in reversed(checkpoints.all_steps()):
            try:
                state, notes = checkpoints.restore(at, like)
            except CheckpointDamaged as error:
                damaged[at] = str(error)
                if distributed.is_multi_process() and len(checkpoints.all_steps()) > 1:  # perhaps only one has noticed
                    place = checkpoints.move_damaged([at])
                    raise RunError(f"{self.folder}: {error}; it is in {place}, and the same command goes on") from error
                log(f"{self.folder}: {error}")
                continue
            if damaged:
                log(
                    f"{self.folder}: going on from step {at}; damaged ones are in "
                    f"{checkpoints.move_damaged([*damaged])}"
                )
            return at, state, notes
        if damaged:
            raise RunError(
                f"{self.folder} has no usable checkpoint ({'; '.join(damaged.values())}); to start over, remove it"
            )
        return 0, None, {}

    def load_params(self, step_name: str = "latest", infer_shardings: Callable | None = None) -> tuple[int, dict]:
        """The step `at` names (latest, best, or its number), and its parameters, on this mesh or `placed` elsewhere."""
        checkpoints = self.open_checkpoints()
        steps = checkpoints.all_steps()
        if not steps:
            raise RunError(f"{self.folder} has no checkpoint yet")
        named = {"latest": checkpoints.latest_step(), "best": checkpoints.best_step()} | {
            str(step): step for step in steps
        }
        if step_name not in named:
            raise RunError(f"--step {step_name}: there are latest, best, {', '.join(map(str, steps))}")
        try:
            found = checkpoints.restore_params(named[step_name], infer_shardings or self.infer_shardings)
        except CheckpointDamaged as error:
            others = ", ".join(str(step) for step in steps if step != named[step_name]) or "none"
            raise RunError(f"{self.folder}: {error}; other steps, for --step: {others}") from error
        finally:
            checkpoints.close()
        return named[step_name], found

    def check_batch_sizes(self) -> None:
        """Raises `RunError` for rows that the mesh and the micro-steps do not divide."""
        share = sharding.count_batch_shards(self.mesh) * self.experiment.grad_accum_steps
        for phase in self.experiment.phases:
            if phase.batch_size % share:
                raise RunError(
                    f"phases.batch_size={phase.batch_size} is not a multiple of {share}: mesh.data x mesh.fsdp x "
                    "grad_accum_steps"
                )

    def evaluate(
        self, params, phase=None, num_batches: int | None = None, on_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Held-out scores in the given phase's format, by default the last one's; `told` is called with each batch."""
        self.check_batch_sizes()
        phase = phase or self.experiment.phases[-1]
        limit = num_batches or self.experiment.intervals.eval_batches
        first, *others = self.store.eval_splits
        judged = partial(self.evaluate_split, params, phase=phase, max_batches=limit, on_batch=on_batch)
        scores = judged(first)
        for split in others:  # dev_mismatched gives mismatched_accuracy
            part = split.name.removeprefix("dev_")
            scores |= {f"{part}_{name}": score for name, score in judged(split).items()}
        return scores

    def evaluate_split(
        self, params, split: Split, phase: Phase, max_batches: int, on_batch: Callable[[], None]
    ) -> dict[str, float]:
        """The scores of up to `limit` batches of one split."""
        objective, sums = self.experiment.objective, []
        ids, said = [], []
        for rows in iter_eval_batches(
            split, self.vocab, phase, phase.batch_size, max_batches, self.store.path / "tables"
        ):
            mine = sharding.find_local_rows(self.mesh, phase.batch_size)
            placed = sharding.shard_batch({name: each[mine] for name, each in rows.items()}, self.mesh)
            summed, heard = step.eval_step(params, placed, module=self.module)
            sums.append(summed)
            if len(sums) > 2:
                jax.block_until_ready(sums[-3])
            on_batch()
            if heard:
                ids.append(rows["id"][:, 0] // rows["id"].shape[1])
                said.append((rows["valid"][:, 0] == 1, heard))
        scores = objective.scores(metrics.sum_means(jax.device_get(sums)))
        scores = {"loss": total_loss(scores, objective.loss_weights)} | scores
        if said:
            table = add_example_axis(load_eval_table(split, phase, self.store.path / "tables"))
            real = np.concatenate([valid for valid, _ in said])
            rows = np.concatenate(ids)[real]
            scores |= objective.score_outputs(
                concatenate_padded([to_host(heard) for _, heard in said], real), table[rows], split
            )
        return scores


def to_host(tree):
    """Arrays of the devices on the host, those of other processes too."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def concatenate_padded(batches: list[dict[str, np.ndarray]], is_selected: np.ndarray) -> dict[str, np.ndarray]:
    """The chosen rows of all parts by name; what is shorter than the longest part is filled up with zeros."""
    whole = {}
    for name in batches[0]:
        arrays = [part[name] for part in batches]
        shape = np.max([array.shape[1:] for array in arrays], axis=0, initial=0).astype(int)
        full = [np.pad(x, [(0, 0), *((0, n - m) for n, m in zip(shape, x.shape[1:], strict=True))]) for x in arrays]
        whole[name] = np.concatenate(full)[is_selected]
    return whole


def open_recorded_store(folder: Path, record: dict, moved_to: str | None) -> Store:
    """The store a run was trained on, checked by its key."""
    path = Path(moved_to or record["store"])
    if not (path / "store.json").exists():
        raise RunError(f"the store of {folder} is not at {path}; pass where it is now with --store DIR")
    opened = Store.open(path)
    if opened.key != record["store_key"]:
        raise RunError(f"{path} is another store: {opened.key}, and the run was made with {record['store_key']}")
    return opened


def read_run_record(folder: Path) -> dict:
    """`experiment.json` of a run's folder. Raises `RunError` where there is none."""
    path = Path(folder) / "experiment.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RunError(f"{folder} holds no run (no experiment.json)") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None


def parse_run_spec(record: dict) -> RunSpec:
    """Return the experiment or imported network of a record; one saved without conventions gets its family's."""
    spec = from_json_value(record["experiment"])
    if "conventions" in record["experiment"]["model"]:
        return spec
    return replace(spec, model=replace(spec.model, conventions=infer_conventions(spec.model)))


def build_run_record(spec: RunSpec, fingerprint: str, vocab: VocabInfo) -> dict:
    """What `experiment.json` says of any run; `mark` is its fingerprint."""
    return {
        "fingerprint": fingerprint,
        "versions": {package.__name__: package.__version__ for package in (jax, np)},
        "devices": [str(device) for device in jax.devices()],
        "facts": vocab.to_json_value(),
        "experiment": to_json_value(spec),
    }


def register_run(run: Run, init_key: str | None) -> str:
    """Claim the run's folder for its experiment, and return its fingerprint.

    Raises `RunError` where the folder belongs to another experiment.
    """
    experiment, path = run.experiment, run.folder / "experiment.json"
    if not distributed.is_primary() and not wait_for_file(path):
        raise RunError(f"{run.folder}, which process 0 has made, is not there: all processes must see the same folders")
    mine = fingerprint_experiment(experiment, run.store.key, init_key)
    if path.exists():
        theirs = read_run_record(run.folder)
        if theirs["fingerprint"] != mine:
            network = from_json_value(theirs["experiment"])
            raise wrong_experiment(
                run.folder, describe_differences(network, experiment) or ["the content of data.corpus or of init_from"]
            )
        return mine
    run.folder.mkdir(parents=True, exist_ok=True)
    run.store.tokenizer.save(run.folder)
    place = {"store": str(run.store.path.resolve()), "store_key": run.store.key}
    write_json(path, build_run_record(experiment, mine, run.vocab) | place)
    return mine


def wrong_experiment(folder: Path, changes: list[str]) -> RunError:
    return RunError(
        f"{folder} belongs to another experiment: {'; '.join(changes)}. Give this one a name of its own "
        "(--set name=...) or another folder (--runs ...), or remove that folder"
    )


def wait_for_file(path: Path, timeout: float = 60.0) -> bool:
    """Whether a file that another process has made is there within `wait` seconds: file systems of networks lag."""
    until = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(1)
    return True


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keeps a run's folder for this process. Raises `RunInUse` while another one trains there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "a+", encoding="utf-8") as file:
        for tries in range(LOCK_RETRIES, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries:
                    file.seek(0)
                    raise RunInUse(f"{folder} is in use by {file.read() or 'another process'}") from None
                time.sleep(0.1)  # it may only have been looked at
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def lock_owner(folder: Path) -> str | None:
    """Which process trains in a run's folder, if one does."""
    try:
        with open(folder / LOCK_FILE, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "another process"
    except FileNotFoundError:
        pass
    return None


def read_result(folder: Path) -> dict | None:
    """The result of a finished run, else None. Raises `RunError` where it is damaged."""
    path = Path(folder) / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; without it the run goes on from its last checkpoint") from None


def differing_fields(experiment: Experiment, folder: Path) -> list[str]:
    """What differs between an experiment and the one that a folder belongs to, where there is one; not the places of
    texts, rows and vocabularies, whose contents `claim` compares."""
    if not (Path(folder) / "experiment.json").exists():
        return []
    there = from_json_value(read_run_record(folder)["experiment"])
    return [line for line in describe_differences(there, experiment) if not line.startswith(PATH_FIELD_PREFIXES)]
