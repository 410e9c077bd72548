"""Random damage to every file of a run, a store and an import: each is noticed and named, or changes nothing.

`ENCODERS_MUTATIONS=300 python -m pytest -m live tests/run/test_mutations_live.py -s` prints what became of each kind.
"""

import os
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from encoders.exchange.convert import import_checkpoint
from encoders.inference.predictor import load_predictor
from encoders.run import loop
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import read_result, read_run_rows
from encoders.run.run import Run
from encoders.training import checkpoint
from encoders.utils.errors import is_expected
from encoders.utils.files import write_signed_json
from tests import texts
from tests.exchange.references import HOME
from tests.run.test_loop import experiment, final_state, quiet, without_time

pytestmark = [
    pytest.mark.live,
    # What Orbax leaves of its reads where one of them fails.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NUM_MUTATIONS = int(os.environ.get("ENCODERS_MUTATIONS", "60"))
TEXT_SUFFIXES = (".json", ".jsonl")


def flip_bit(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path, draw):
    os.truncate(path, draw.randrange(path.stat().st_size))


def remove(path, draw):
    path.unlink()


def swap(path, draw):
    other = draw.choice([p for p in list_files(path.parents[1]) if p != path])
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def overwrite_by_copy(path, draw):
    shutil.copy(draw.choice([p for p in list_files(path.parents[1]) if p != path]), path)


def take_from_another_run(path, draw):
    """Replace a file of a run by that of the same run with another seed."""
    run = next(p for p in path.parents if p.name in ("finished", "unfinished"))
    other = run.parent / f"other-{run.name}" / path.relative_to(run)
    if other.exists():
        shutil.copy(other, path)


def duplicate_line(path, draw):
    lines = path.read_bytes().splitlines(keepends=True)
    at = draw.randrange(len(lines))
    path.write_bytes(b"".join([*lines[: at + 1], *lines[at:]]))


def remove_line(path, draw):
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


def change_checkpoints(path, draw):
    """Rename, copy or remove a whole checkpoint, or all of them."""
    folder = next(p for p in [path, *path.parents] if p.name == "checkpoints")
    steps = sorted(folder.iterdir())
    kind = draw.choice(["rename", "copy", "remove", "remove all"])
    if kind == "rename":
        draw.choice(steps).rename(folder / "10")
    elif kind == "copy":
        shutil.copytree(draw.choice(steps), folder / "10")
    elif kind == "remove":
        shutil.rmtree(draw.choice(steps))
    else:
        shutil.rmtree(folder)


MUTATIONS = (flip_bit, truncate, remove, swap, overwrite_by_copy, duplicate_line, remove_line, change_checkpoints)


def list_files(folder):
    """Return the files that hold anything, without the lock."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size and not p.name.startswith("."))


def mutate(folder, draw):
    """Damage a random file of a folder, and return what was done."""
    changes = MUTATIONS + (take_from_another_run,) * (2 * (folder.name in ("finished", "unfinished")))
    path, change = draw.choice(list_files(folder)), draw.choice(changes)
    if change is change_checkpoints and "checkpoints" not in path.parts:
        change = flip_bit
    change(path, draw)
    return f"{change.__name__} {path.relative_to(folder)}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A finished run, the same run after nine of twelve steps, both with another seed, their store, and an import."""
    folder = tmp_path_factory.mktemp("home")
    corpus = str(texts.write(folder / "text.txt", documents=60))
    base = experiment(corpus, "bert", folder)
    base = replace(base, intervals=replace(base.intervals, keep_checkpoints=4))
    for name, seed in (("", base.seed), ("other-", base.seed + 1)):
        finished, unfinished = folder / f"{name}finished", folder / f"{name}unfinished"
        loop.train(replace(base, seed=seed), finished, quiet)
        shutil.copytree(finished, unfinished)
        shutil.rmtree(unfinished / "checkpoints" / "12")
        (unfinished / "result.json").unlink()
        write_signed_json(unfinished / checkpoint.SAVED_STEPS_FILE, {"latest": 9, "best": 9})
    import_checkpoint(HOME / "bert-pretraining", folder / "imported", tokenizer_files=HOME / "vocabularies" / "bert")
    return folder, base


def hash_leaves(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def resume(home, base, log):
    loop.train(base, home / "unfinished", log)
    return hash_leaves(final_state(home / "unfinished")), without_time(home / "unfinished")


def use_finished(home, base, log):
    run = Run.open(home / "finished")
    scores = evaluate_run(run, run.load_params("best")[1])
    (vector,) = load_predictor(home / "finished").embed(["a fox"])
    # Without its result a run counts as unfinished, and the same command makes it again.
    result = read_result(home / "finished") or loop.train(base, home / "finished", log)
    return scores, vector.tobytes(), read_run_rows(home / "finished"), without_speed(result)


def without_speed(result):
    return {name: value for name, value in result.items() if name != "tokens_per_second"}


def use_store(home, base, log):
    return without_speed(loop.train(base, home / "again", log))


def use_imported(home, base, log):
    return next(iter(load_predictor(home / "imported").embed(["a fox"]))).tobytes()


TARGETS = {"unfinished": resume, "finished": use_finished, "stores": use_store, "imported": use_imported}


@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_noticed_and_named_or_changes_nothing(target, home, tmp_path, monkeypatch):
    folder, base = home
    use = TARGETS[target]

    def build_copy(number) -> Path:
        copy = tmp_path / str(number)
        sources = (folder / name for name in dict.fromkeys([target, f"other-{target}", "stores", "text.txt"]))
        for source in filter(Path.exists, sources):
            name = source.name
            shutil.copytree(source, copy / name) if source.is_dir() else shutil.copy(source, copy / name)
        return copy

    def use_copy(copy, log):
        data = replace(base.data, store_dir=str(copy / "stores"))
        return use(copy, replace(base, data=data), log)

    clean = build_copy("clean")
    expected, outcomes, silent = use_copy(clean, quiet), Counter(), []
    for number in range(NUM_MUTATIONS // len(TARGETS)):
        draw, copy, lines = random.Random(number), build_copy(number), []
        change = mutate(copy / target, draw)
        try:
            found = use_copy(copy, lines.append)
        except Exception as error:
            assert is_expected(error), (change, error)
            named = [Path(change.split()[-1]).name, "checkpoint", str(copy / target)]
            assert any(name in str(error) for name in named), (change, error)
            outcomes[f"{change.split()[0]}: refused"] += 1
        else:
            said = any("damaged" in line or "missing" in line or "checkpoint" in line for line in lines)
            outcomes[f"{change.split()[0]}: {'mended' if said else 'harmless'}"] += 1
            # Rows that are gone are named; all that was trained is the same.
            only_rows_differ = use is resume and found[0] == expected[0] and "metrics.jsonl" in "".join(lines)
            if found != expected and not only_rows_differ:
                silent.append((change, lines))
        shutil.rmtree(copy)
    print(target, dict(sorted(outcomes.items())))
    assert not silent, silent
