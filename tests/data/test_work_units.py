import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import encoders
from encoders.data import work_units
from encoders.data.beam_runner import BeamRunner, LocalRunner, UnfinishedWork
from encoders.data.filters import CorpusFilters
from encoders.data.prepare import find_damaged_units, prepare_store, repair_store
from encoders.data.spec import PretrainingData, compute_store_key
from encoders.data.work_units import PreparationJob
from encoders.text import corpus
from encoders.text.source import CorpusError
from encoders.text.tokenization import TokenizerSpec
from tests.data.test_prepare import FILES, content
from tests.file_events import watch_files
from tests.refusals import raises_naming
from tests.text.documents import read_corpus_documents
from tests.texts import made_up, write, written


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A corpus of seven units: of a text file four, of a compressed one, of JSON lines two."""
    monkeypatch.setattr(corpus, "RANGE_BYTES", 3000)
    first = write(tmp_path / "a.txt", documents=40)
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(write(tmp_path / "b", documents=20, seed=1).read_bytes()))
    lines = tmp_path / "c.jsonl"
    lines.write_text("".join(json.dumps({"text": "\n".join(d)}) + "\n" for d in made_up(20, seed=2)))
    made = PretrainingData(
        (str(first), str(packed), str(lines)),
        TokenizerSpec(vocab_size=300),
        heldout_fraction=0.2,
        store_dir=str(tmp_path / "s"),
    )
    assert len(made.list_units()) > 6
    return made


def elsewhere(data, name="2"):
    return replace(data, store_dir=f"{data.store_dir}-{name}")


def sentences(store):
    """What all documents of a store say, sorted."""
    say = lambda split, j: " ".join(
        store.tokenizer.decode(split.tokens[a:b])
        for a, b in zip(split.get_sentence_offsets(j), split.get_sentence_offsets(j)[1:], strict=False)
    )
    return sorted(
        say(split, j) for split in (store.train_split, store.eval_splits[0]) for j in range(split.num_documents)
    )


def test_the_store_is_the_same_whatever_the_number_of_processes(data):
    said = []
    assert content(prepare_store(data)) == content(prepare_store(elsewhere(data), said.append, LocalRunner(2)))
    assert any(line.startswith("tokens: ") and "units" in line for line in said)


def test_the_store_is_the_same_whatever_the_size_of_the_units_but_for_what_is_held_out(data, monkeypatch):
    small = prepare_store(data)
    monkeypatch.setattr(corpus, "RANGE_BYTES", 1 << 20)
    large = prepare_store(elsewhere(data))
    assert len(large.metadata["units"]) == 3 < len(small.metadata["units"])
    assert sentences(large) == sentences(small)


def test_every_document_is_in_one_unit_wherever_a_file_is_cut(tmp_path, monkeypatch):
    path = written(tmp_path / "a.txt", made_up(12))
    whole = list(read_corpus_documents((str(path),), "lines"))
    for size in (1, 7, 100, 1000, 5000):
        assert list(read_corpus_documents((str(path),), "lines", range_bytes=size)) == whole
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "\n".join(d)}) + "\n" for d in whole))
    for size in (1, 7, 100, 1000):
        assert list(read_corpus_documents((str(path),), "lines", range_bytes=size)) == whole


def test_a_finished_unit_is_not_made_again(data, monkeypatch):
    with pytest.raises(OSError):
        prepare_store(data, runner=Stops(after=3))
    parts = sorted((Path(data.store_dir) / f".{compute_store_key(data)}.work" / "units").iterdir())
    assert [path.name for path in parts] == ["000000", "000001", "000002"]
    made, write_units = [], work_units.write_finished_units

    def counted(work, units, path, say):
        made.extend(unit.unit_index for unit in units)
        write_units(work, units, path, say)

    monkeypatch.setattr(work_units, "write_finished_units", counted)
    again = prepare_store(data)
    assert made == list(range(3, len(again.metadata["units"])))
    assert content(again) == content(prepare_store(elsewhere(data)))


class Stops:
    """This machine, until some units are finished."""

    def __init__(self, after):
        self.after = after

    def check_available(self):
        pass

    def run_items(self, function, items, on_done, log):
        for item in items[: self.after]:
            function(item, log)
        raise OSError("the power is gone")


def test_a_damaged_part_of_interrupted_work_is_noticed_and_made_again(data):
    with pytest.raises(OSError):
        prepare_store(data, runner=Stops(after=3))
    part = Path(data.store_dir) / f".{compute_store_key(data)}.work" / "units" / "000001"
    flip(part / "train" / "tokens.bin", 10)
    said = []
    again = prepare_store(data, said.append)
    (line,) = [line for line in said if "damaged" in line]
    assert "unit 1" in line and again.metadata["units"][1]["name"] in line
    assert content(again) == content(prepare_store(elsewhere(data)))


def test_damaged_counts_of_interrupted_work_are_noticed_too(data):
    with pytest.raises(OSError):
        prepare_store(data, runner=Stops(after=2))
    os.truncate(Path(data.store_dir) / f".{compute_store_key(data)}.work" / "units" / "000000" / "counts.npy", 100)
    assert prepare_store(data).metadata["vocab"] == prepare_store(elsewhere(data)).metadata["vocab"]


def test_what_is_finished_stays_when_a_worker_is_killed_or_a_runner_is_missing(data, monkeypatch):
    with pytest.raises(OSError):
        prepare_store(data, runner=Stops(after=3))
    parts = Path(data.store_dir) / f".{compute_store_key(data)}.work" / "units"
    monkeypatch.setattr(LocalRunner, "run_items", lambda *given: Killed.run_items(*given))
    with pytest.raises(UnfinishedWork):
        prepare_store(data)
    assert len(list(parts.iterdir())) == 3
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with raises_naming(CorpusError, "apache_beam"):
        prepare_store(data, runner=BeamRunner("DirectRunner"))
    assert len(list(parts.iterdir())) == 3


class Killed:
    def run_items(self, function, items, on_done, log):
        raise UnfinishedWork("it was ended from outside")


def test_items_that_are_cut_otherwise_are_another_store(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.txt", documents=10, seed=number)
    made = lambda *names: PretrainingData(tuple(str(tmp_path / name) for name in names), TokenizerSpec(vocab_size=300))
    assert compute_store_key(made("*.txt")) != compute_store_key(made("0.txt", "1.txt"))


def flip(path, place):
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_part_of_a_store_is_named_and_rebuilt(data, name):
    store = prepare_store(data)
    whole = content(store)
    assert find_damaged_units(store) == []
    flip(store.path / name, (store.path / name).stat().st_size // 2)
    (number,) = find_damaged_units(store)
    (store.path / "tables").mkdir()
    repair_store(store, data, [number])
    assert content(store) == whole and find_damaged_units(store) == []
    assert sorted(path.name for path in store.path.iterdir()) == ["heldout", "store.json", "tokenizer.json", "train"]


@pytest.mark.parametrize("harm", ["cut", "long", "gone", "start"])
def test_a_file_that_is_cut_off_or_gone_or_too_long_is_rebuilt(data, harm):
    store = prepare_store(data)
    whole, path = content(store), store.path / "train" / ("tokens.bin" if harm == "cut" else "documents.bin")
    if harm == "cut":
        os.truncate(path, 1000)
    elif harm == "gone":
        path.unlink()
    elif harm == "start":
        flip(path, 0)
    else:
        path.write_bytes(path.read_bytes() + bytes(8))
    numbers = find_damaged_units(store)
    assert len(numbers) > 2
    repair_store(store, data, numbers, runner=LocalRunner(2 if harm == "cut" else 1))
    assert content(store) == whole and find_damaged_units(store) == []


def test_a_repair_that_cannot_be_leaves_the_store_as_it_is(data):
    store = prepare_store(data)
    (store.path / "tables").mkdir()
    tokenizer = store.path / "tokenizer.json"
    changed = tokenizer.read_text().replace('"ta"', '"TA"')
    with open(tokenizer, "w") as file:
        file.write(changed)
    with raises_naming(ValueError, "tokenizer.json", "remove the store"):
        find_damaged_units(store)
    before = content(store)
    with raises_naming(ValueError, "unit 0 ", store.key):
        repair_store(store, data, [0])
    assert content(store) == before and (store.path / "tables").exists()
    assert [path.name for path in Path(data.store_dir).iterdir()] == [store.key]


def test_a_vocabulary_is_trained_on_all_units_the_beginning_of_each_first(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "RANGE_BYTES", 1)
    monkeypatch.setattr(work_units, "MAX_SAMPLED_UNITS", 4)
    for number in range(10):
        written(tmp_path / f"{number}.txt", [[f"{number} {i} words."] for i in range(5)])
    made = PretrainingData((str(tmp_path / "*.txt"),), TokenizerSpec(vocab_size=300, train_chars=80), "lines")
    work = PreparationJob(made, tmp_path)
    todo = made.list_units()
    assert len(todo) == 50
    read = [document[0].split()[:2] for document in work_units.sample_documents(work, todo)]
    assert len(read) == 50 and len(set(map(tuple, read))) == 50
    first = [int(file) * 5 + int(i) for file, i in read[:4]]
    assert first == [0, 13, 26, 39]


def test_a_store_is_not_repaired_with_another_corpus(data):
    store = prepare_store(data)
    with raises_naming(ValueError, "corpus", "vocabulary"):
        repair_store(store, replace(data, corpus=data.corpus[:1]), [0])


KILLED = """
import sys
from encoders.data.prepare import find_damaged_units, prepare_store, repair_store
from encoders.data.spec import PretrainingData
from encoders.text import corpus
from encoders.text.tokenization import TokenizerSpec
if __name__ == "__main__":
    corpus.RANGE_BYTES = 3000
    tokenizer = TokenizerSpec(vocab_size=300)
    data = PretrainingData(tuple(sys.argv[2:]), tokenizer, heldout_fraction=0.2, store_dir=sys.argv[1])
    print("ready", flush=True)
    prepare_store(data)
"""


@pytest.mark.live
def test_preparation_that_is_killed_at_random_moments_ends_with_the_same_bytes(data):
    command = [sys.executable, "-c", KILLED, data.store_dir, *data.corpus]
    path, killed, draw = Path(data.store_dir) / compute_store_key(data), 0, random.Random(os.urandom(8))
    while not path.exists():
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(Path(encoders.__file__).parents[1])}, stdout=subprocess.PIPE
        )
        with process:
            process.stdout.readline()
            time.sleep(draw.uniform(0, 0.2 + 0.05 * killed))
            process.send_signal(signal.SIGKILL)
        killed += 1
    print(f"killed {killed} times")
    assert content(prepare_store(data)) == content(prepare_store(elsewhere(data)))


FULL = """
import resource, signal, sys
from encoders.data.prepare import find_damaged_units, prepare_store, repair_store
from encoders.data.spec import PretrainingData
from encoders.text.tokenization import TokenizerSpec
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))  # no file may grow beyond
tokenizer = TokenizerSpec(path=sys.argv[1] + "/vocab")
prepare_store(PretrainingData(tuple(sys.argv[2:]), tokenizer, heldout_fraction=0.2, store_dir=sys.argv[1]))
"""


def test_a_disk_that_fills_up_is_named_and_leaves_nothing_that_looks_whole(data):
    tokenizer = prepare_store(elsewhere(data)).path / "tokenizer.json"
    vocabulary = Path(data.store_dir) / "vocab" / "tokenizer.json"
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_bytes(tokenizer.read_bytes())
    environment = os.environ | {"PYTHONPATH": str(Path(encoders.__file__).parents[1])}
    command = [sys.executable, "-c", FULL, data.store_dir, data.corpus[0]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert f"UserError: no space is left in {data.store_dir}" in done.stderr
    assert not [path for path in Path(data.store_dir).glob("*/store.json")]
    assert prepare_store(replace(data, tokenizer=TokenizerSpec(path=str(vocabulary)))).train_split.num_documents


def test_a_glob_of_small_files_is_few_units_and_reads_in_the_order_of_names(tmp_path):
    for number, document in enumerate(made_up(30)):
        written(tmp_path / f"{number:02}.txt", [document])
    made = PretrainingData(
        (str(tmp_path / "*.txt"),), TokenizerSpec(vocab_size=300), heldout_fraction=0.2, store_dir=str(tmp_path / "s")
    )
    store = prepare_store(made)
    assert (
        len(store.metadata["units"]) == 1 and store.train_split.num_documents + store.eval_splits[0].num_documents == 30
    )
    assert store.metadata["units"][0]["name"].endswith(
        "29.txt from 0 to " + f"{(tmp_path / '29.txt').stat().st_size:,}"
    )


@pytest.mark.parametrize("deduplicate", ["kept", "documents"])
def test_a_small_file_costs_few_calls_and_no_folder_of_its_own_however_many_there_are(tmp_path, deduplicate):
    written_files = [str(written(tmp_path / f"{i:02}.txt", [d])) for i, d in enumerate(made_up(90))]

    def count_calls(num_files):
        calls, lines = Counter(), []
        tokenizer, filters = TokenizerSpec(vocab_size=300), CorpusFilters(deduplicate)
        made = PretrainingData(
            tuple(written_files[:num_files]), tokenizer, store_dir=str(tmp_path / f"{num_files}"), filters=filters
        )
        with watch_files(lambda event, path: calls.update([event] if tmp_path in path.parents else [])):
            store = prepare_store(made, lines.append)
        assert len(store.metadata["units"]) == num_files and find_damaged_units(store) == []
        return calls, len(lines)

    (few, few_lines), (many, many_lines) = count_calls(30), count_calls(90)
    assert few["open"] and (many.total() - few.total()) / 60 < 30
    assert (many["os.mkdir"], many["os.rename"]) == (few["os.mkdir"], few["os.rename"])
    assert many_lines == few_lines


def test_duplicates_are_found_over_all_units_in_any_number_of_buckets_and_processes(data, monkeypatch):
    repeated = replace(data, corpus=(*data.corpus, data.corpus[0]), filters=CorpusFilters(deduplicate="documents"))
    one = prepare_store(repeated)
    assert one.metadata["filtered"]["duplicate documents"] == 40
    monkeypatch.setattr(work_units, "MAX_BUCKET_HASHES", 10)
    many = prepare_store(elsewhere(repeated), runner=LocalRunner(2))
    assert content(one) == content(many)
    paragraphs = replace(repeated, filters=CorpusFilters(deduplicate="paragraphs"))
    assert sentences(prepare_store(paragraphs))


def test_what_is_left_out_counts_in_the_key_only_where_something_is(data):
    assert compute_store_key(replace(data, filters=CorpusFilters())) == compute_store_key(data)
    assert compute_store_key(replace(data, filters=CorpusFilters(min_characters=1))) != compute_store_key(data)


# Runners


def test_a_worker_that_is_killed_is_named_with_its_remedy(data):
    with raises_naming(UnfinishedWork, "2 workers", "killed", "--workers"):
        LocalRunner(2).run_items(end, [1, 2, 3], lambda count: None, print)


def end(item, say=None):
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_error_in_a_worker_is_that_of_the_unit(data):
    with open(data.corpus[0], "ab") as file:
        file.write(b"\n\n" + b"caf\xe9\n")
    with raises_naming(CorpusError, "a.txt:", "UTF-8"):
        prepare_store(data, runner=LocalRunner(2))
    assert not Path(data.store_dir).exists()


def test_a_runner_without_beam_is_named_with_its_remedy(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with raises_naming(CorpusError, "--runner DirectRunner", "pip install 'encoders[beam]'"):
        prepare_store(data, runner=BeamRunner("DirectRunner"))


@pytest.mark.live
def test_beams_direct_runner_makes_the_same_store(data):
    pytest.importorskip("apache_beam")
    filtered = replace(data, filters=CorpusFilters(deduplicate="paragraphs"))
    for each in (data, filtered):
        assert content(prepare_store(each)) == content(
            prepare_store(elsewhere(each), runner=BeamRunner("DirectRunner"))
        )
    assert np.array_equal(prepare_store(data).train_split.tokens, prepare_store(elsewhere(data)).train_split.tokens)
