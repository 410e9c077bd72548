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
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from encoders.data.formats import examples
from encoders.data.store import Split, Store
from encoders.data.stream import Phase, heldout_batches, heldout_table
from encoders.experiment import Experiment, Network, differences, fingerprint
from encoders.objectives.base import total_loss
from encoders.text.tokenization import Facts
from encoders.training import distributed, sharding, step
from encoders.training.checkpoint import Checkpoints, Damaged, abstract
from encoders.utils import metrics
from encoders.utils.files import write_json
from encoders.utils.overrides import from_json, to_json

HELD, LOOKS = ".held", 3
PLACES = ("data.corpus is ", "data.root is ", "data.vocabulary.path is ")


class RunError(ValueError):
    """A run that cannot start or go on."""


class InUse(RunError):
    """A run that another process trains."""


class Run:
    """A network and its vocabulary, in its folder; with a store, if text is to be read."""

    def __init__(self, network: Network, folder: Path, facts: Facts, store: Callable[[], Store]):
        self.network, self.folder, self.facts, self.find_store = network, Path(folder), facts, store
        self.mesh = network.mesh.build()
        if facts.size > network.model.vocab:
            raise RunError(f"the vocabulary has {facts.size} entries and model.vocab={network.model.vocab} is less")
        self.module = network.objective.module(network.model, facts)

    @classmethod
    def open(cls, folder: Path, store: str | None = None) -> Run:
        """A run from its folder alone; `store` says where its store has moved to."""
        record = read_record(folder)
        find = partial(find_store, folder, record, store)
        return cls(from_json(record["experiment"]), folder, Facts.from_json(record["facts"]), find)

    @property
    def experiment(self) -> Experiment:
        """The experiment. Raises `RunError` for an imported run, which is none."""
        if not isinstance(self.network, Experiment):
            raise RunError(
                f"{self.folder} was imported, with no text and nothing to train; an experiment can begin with its "
                f"parameters: --set start={self.folder}"
            )
        return self.network

    @cached_property
    def store(self) -> Store:
        return self.find_store()

    @cached_property
    def tokenizer(self):
        """The vocabulary's rules. Raises `RunError` where their file is gone."""
        from encoders.text.tokenization import load

        path = self.folder / "tokenizer.json"
        if not path.exists():
            raise RunError(f"{self.folder} has lost its tokenizer.json")
        return load(path)

    @cached_property
    def init(self) -> Callable:
        return partial(step.init, module=self.module, optimizer=self.experiment.optimizer)

    @cached_property
    def shapes(self):
        return jax.eval_shape(self.init, self.experiment.seed)

    @cached_property
    def shardings(self):
        return self.placed(self.shapes)

    def placed(self, tree):
        """Where every leaf of parameters or of a state belongs on this run's mesh."""
        return sharding.shardings(tree, self.mesh)

    def checkpoints(self, keep: int | None = None) -> Checkpoints:
        """The run's checkpoints; to write some, say how many to keep."""
        return Checkpoints(self.folder / "checkpoints", keep)

    def newest(self, checkpoints: Checkpoints, say: Callable[[str], None]) -> tuple[int, Any, dict]:
        """The newest sound checkpoint: its step, state and notes; step 0 and no state where there is none yet.

        Damaged ones are named and set aside. Raises `RunError` where all are damaged.
        """
        like, damaged = abstract(self.shapes, self.shardings), {}
        for at in reversed(checkpoints.steps()):
            try:
                state, notes = checkpoints.restore(at, like)
            except Damaged as error:
                damaged[at] = str(error)
                if distributed.several() and len(checkpoints.steps()) > 1:  # perhaps only one has noticed
                    place = checkpoints.set_aside([at])
                    raise RunError(f"{self.folder}: {error}; it is in {place}, and the same command goes on") from error
                say(f"{self.folder}: {error}")
                continue
            if damaged:
                say(f"{self.folder}: going on from step {at}; damaged ones are in {checkpoints.set_aside([*damaged])}")
            return at, state, notes
        if damaged:
            raise RunError(
                f"{self.folder} has no usable checkpoint ({'; '.join(damaged.values())}); to start over, remove it"
            )
        return 0, None, {}

    def params(self, at: str = "latest", placed: Callable | None = None) -> tuple[int, dict]:
        """The step `at` names (latest, best, or its number), and its parameters, on this mesh or `placed` elsewhere."""
        checkpoints = self.checkpoints()
        steps = checkpoints.steps()
        if not steps:
            raise RunError(f"{self.folder} has no checkpoint yet")
        named = {"latest": checkpoints.latest(), "best": checkpoints.best()} | {str(step): step for step in steps}
        if at not in named:
            raise RunError(f"--step {at}: there are latest, best, {', '.join(map(str, steps))}")
        try:
            found = checkpoints.params(named[at], placed or self.placed)
        except Damaged as error:
            others = ", ".join(str(step) for step in steps if step != named[at]) or "none"
            raise RunError(f"{self.folder}: {error}; other steps, for --step: {others}") from error
        finally:
            checkpoints.close()
        return named[at], found

    def check_batches(self) -> None:
        """Raises `RunError` for rows that the mesh and the micro-steps do not divide."""
        share = sharding.shards(self.mesh) * self.experiment.accumulate
        for phase in self.experiment.phases:
            if phase.batch % share:
                raise RunError(
                    f"phases.batch={phase.batch} is not a multiple of {share}: mesh.data x mesh.fsdp x accumulate"
                )

    def evaluate(
        self, params, phase=None, batches: int | None = None, told: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Held-out scores in the given phase's format, by default the last one's; `told` is called with each batch."""
        self.check_batches()
        phase = phase or self.experiment.phases[-1]
        limit = batches or self.experiment.cadence.heldout
        first, *others = self.store.heldouts
        judged = partial(self.judged, params, phase=phase, limit=limit, told=told)
        scores = judged(first)
        for split in others:  # dev_mismatched gives mismatched_accuracy
            part = split.name.removeprefix("dev_")
            scores |= {f"{part}_{name}": score for name, score in judged(split).items()}
        return scores

    def judged(self, params, split: Split, phase: Phase, limit: int, told: Callable[[], None]) -> dict[str, float]:
        """The scores of up to `limit` batches of one split."""
        objective, sums = self.experiment.objective, []
        ids, said = [], []
        for rows in heldout_batches(split, self.facts, phase, phase.batch, limit, self.store.path / "tables"):
            mine = sharding.local_rows(self.mesh, phase.batch)
            placed = sharding.place({name: each[mine] for name, each in rows.items()}, self.mesh)
            summed, heard = step.eval_step(params, placed, module=self.module)
            sums.append(summed)
            if len(sums) > 2:
                jax.block_until_ready(sums[-3])
            told()
            if heard:
                ids.append(rows["id"][:, 0] // rows["id"].shape[1])
                said.append((rows["valid"][:, 0] == 1, heard))
        scores = objective.scores(metrics.add(jax.device_get(sums)))
        scores = {"loss": total_loss(scores, objective.weights)} | scores
        if said:
            table = examples(heldout_table(split, phase, self.store.path / "tables"))
            real = np.concatenate([valid for valid, _ in said])
            rows = np.concatenate(ids)[real]
            scores |= objective.score(joined([fetched(heard) for _, heard in said], real), table[rows], split)
        return scores


def fetched(tree):
    """Arrays of the devices on the host, those of other processes too."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def joined(parts: list[dict[str, np.ndarray]], chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The chosen rows of all parts by name; what is shorter than the longest part is filled up with zeros."""
    whole = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        shape = np.max([array.shape[1:] for array in arrays], axis=0, initial=0).astype(int)
        full = [np.pad(x, [(0, 0), *((0, n - m) for n, m in zip(shape, x.shape[1:], strict=True))]) for x in arrays]
        whole[name] = np.concatenate(full)[chosen]
    return whole


def find_store(folder: Path, record: dict, moved: str | None) -> Store:
    """The store a run was trained on, checked by its key."""
    path = Path(moved or record["store"])
    if not (path / "store.json").exists():
        raise RunError(f"the store of {folder} is not at {path}; pass where it is now with --store DIR")
    opened = Store.open(path)
    if opened.key != record["store_key"]:
        raise RunError(f"{path} is another store: {opened.key}, and the run was made with {record['store_key']}")
    return opened


def read_record(folder: Path) -> dict:
    """`experiment.json` of a run's folder. Raises `RunError` where there is none."""
    path = Path(folder) / "experiment.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise RunError(f"{folder} holds no run (no experiment.json)") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None


def record(network: Network, mark: str, facts: Facts) -> dict:
    """What `experiment.json` says of any run; `mark` is its fingerprint."""
    return {
        "fingerprint": mark,
        "versions": {package.__name__: package.__version__ for package in (jax, np)},
        "devices": [str(device) for device in jax.devices()],
        "facts": facts.to_json(),
        "experiment": to_json(network),
    }


def claim(run: Run, start_key: str | None) -> str:
    """Claim the run's folder for its experiment, and return its fingerprint.

    Raises `RunError` where the folder belongs to another experiment.
    """
    experiment, path = run.experiment, run.folder / "experiment.json"
    if not distributed.primary() and not seen(path):
        raise RunError(f"{run.folder}, which process 0 has made, is not there: all processes must see the same folders")
    mine = fingerprint(experiment, run.store.key, start_key)
    if path.exists():
        theirs = read_record(run.folder)
        if theirs["fingerprint"] != mine:
            network = from_json(theirs["experiment"])
            raise foreign(run.folder, differences(network, experiment) or ["the content of data.corpus or of start"])
        return mine
    run.folder.mkdir(parents=True, exist_ok=True)
    run.store.tokenizer.save(run.folder)
    place = {"store": str(run.store.path.resolve()), "store_key": run.store.key}
    write_json(path, record(experiment, mine, run.facts) | place)
    return mine


def foreign(folder: Path, changes: list[str]) -> RunError:
    return RunError(
        f"{folder} belongs to another experiment: {'; '.join(changes)}. Give this one a name of its own "
        "(--set name=...) or another folder (--runs ...), or remove that folder"
    )


def seen(path: Path, wait: float = 60.0) -> bool:
    """Whether a file that another process has made is there within `wait` seconds: file systems of networks lag."""
    until = time.monotonic() + wait
    while not path.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(1)
    return True


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a run's folder for this process. Raises `InUse` while another one trains there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / HELD, "a+", encoding="utf-8") as file:
        for tries in range(LOOKS, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries:
                    file.seek(0)
                    raise InUse(f"{folder} is in use by {file.read() or 'another process'}") from None
                time.sleep(0.1)  # it may only have been looked at
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def holder(folder: Path) -> str | None:
    """Which process trains in a run's folder, if one does."""
    try:
        with open(folder / HELD, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read() or "another process"
    except FileNotFoundError:
        pass
    return None


def result(folder: Path) -> dict | None:
    """The result of a finished run, else None. Raises `RunError` where it is damaged."""
    path = Path(folder) / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; without it the run goes on from its last checkpoint") from None


def mismatch(experiment: Experiment, folder: Path) -> list[str]:
    """What differs between an experiment and the one that a folder belongs to, where there is one; not the places of
    texts, rows and vocabularies, whose contents `claim` compares."""
    if not (Path(folder) / "experiment.json").exists():
        return []
    there = from_json(read_record(folder)["experiment"])
    return [line for line in differences(there, experiment) if not line.startswith(PLACES)]
