"""The guides of encoders/README.md: each file is trained as it stands, from the command line, at a small size.

Their classes are outside the package: an objective, a model part and a task that no other file of ours names.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.cli.parser import main
from encoders.data import stream
from encoders.data.prepare import prepare_store
from encoders.library import LIBRARY_FOLDER
from encoders.objectives.masking import Masking
from encoders.training.metric_log import read_metric_rows
from tests import task_examples, texts

ROOT = Path(__file__).parents[1]
GUIDES = LIBRARY_FOLDER / "guides"
SMALL = [
    "data.tokenizer.vocab_size=300", "model.vocab_size=300", "model.hidden_size=16", "model.embedding_size=16",
    "model.intermediate_size=24", "phases.*.until_step=3", "phases.*.batch_size=8", "optimizer.warmup_steps=1",
    "intervals.log_every=1", "intervals.eval_batches=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    texts.write(folder / "text.txt", documents=80)
    return folder


def train_guide(home: Path, guide: str, *arguments: str) -> int:
    settings = [f"data.corpus={home / 'text.txt'}", f"data.store_dir={home / 'stores'}", *SMALL]
    return main(["train", str(GUIDES / guide), "--runs", str(home / "runs"), *arguments, "--set", *settings])


@pytest.fixture(scope="module")
def span_masking(home) -> Path:
    assert train_guide(home, "span_masking.py") == 0
    return home / "runs" / "span-masking"


def test_every_file_that_the_guides_name_is_there():
    text = (ROOT / "encoders" / "README.md").read_text(encoding="utf-8")
    files = re.findall(r"\]\(\.\./(experiments/[\w/]+\.py)\)", text)
    assert len(files) >= 4 and all((ROOT / file).is_file() for file in files)


def test_the_readme_quotes_a_whole_experiment_file():
    code = (LIBRARY_FOLDER / "first.py").read_text(encoding="utf-8").split('"""', 2)[2].strip()
    assert f"```python\n{code}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_an_objective_of_a_file_trains_and_predicts(span_masking, home, capsys):
    losses = [row["loss"] for row in read_metric_rows(span_masking / "metrics.jsonl") if row["split"] == "train"]
    assert len(losses) == 3 and np.isfinite(losses).all()
    capsys.readouterr()
    predict = ["predict", str(span_masking), "fill", "the [MASK]", "--code", str(GUIDES / "span_masking.py")]
    assert main(predict) == 0
    assert "%" in capsys.readouterr().out


def test_its_spans_are_whole_words_of_one_fate_within_the_quota(home):
    module = encoders.import_file(GUIDES / "span_masking.py")
    run = encoders.load_experiments(str(GUIDES / "span_masking.py"))["span-masking"]
    run = encoders.apply_settings(
        run, [f"data.corpus={home / 'text.txt'}", f"data.store_dir={home / 'stores'}", *SMALL]
    )
    store = prepare_store(run.data)
    batches = stream.BatchStream(store.train_split, store.vocab, run.phases, 0, None, home / "tables")
    batch = jax.tree.map(jnp.asarray, batches.build_batch(0))
    masking = Masking(unit="word", dupe_factor=None, split=(0.5, 0.0, 0.5))
    masked = module.SpanMaskedLM(masking).corrupt(batch, store.vocab, 0)
    chosen = np.zeros(batch.input_ids.shape, bool)
    for row, (positions, weights) in enumerate(zip(masked.masked_positions, masked.masked_weights, strict=True)):
        chosen[row, np.asarray(positions)[np.asarray(weights) > 0]] = True
    size = (batch.example_ids > 0).sum(1)
    assert (chosen.sum(1) <= np.maximum(np.round(0.15 * size), 1)).all() and chosen.any(1).all()
    continues = ~store.vocab.compute_word_starts()[batch.input_ids]
    joined = continues[:, 1:] & (batch.example_ids[:, 1:] > 0)
    assert (chosen[:, 1:] == chosen[:, :-1])[joined].all()
    shown = np.asarray(masked.input_ids) == store.vocab.mask_id
    inside = chosen[:, 1:] & chosen[:, :-1]
    assert (shown[:, 1:] == shown[:, :-1])[inside].all()


def test_a_family_of_a_file_trains(home):
    assert train_guide(home, "family.py") == 0
    params = encoders.load(home / "runs" / "gated-bert-tiny").params
    assert params["encoder"]["layers"]["transform"]["gate"]["kernel"].shape == (2, 16, 24)


def test_a_task_of_a_file_is_learned_from_a_run_and_a_bad_line_is_named(span_masking, home, capsys):
    source = Path(task_examples.classes(home / "SST-2"))
    reviews = home / "reviews"
    reviews.mkdir()
    for split in ("train", "dev"):
        rows = (line.split("\t") for line in (source / f"{split}.tsv").read_text().splitlines()[1:])
        (reviews / f"{split}.txt").write_text("".join(f"__label__{label} {text}\n" for text, label in rows))
    arguments = ["--with", f"init_from={span_masking}", f"root={reviews}", "labels=0,1"]
    settings = ["data.store_dir=" + str(home / "stores"), "phases.*.num_length_buckets=1", "phases.*.seq_length=16"]
    command = ["train", str(GUIDES / "task.py"), "--code", str(GUIDES / "span_masking.py"), *arguments]
    command += ["--runs", str(home / "runs"), "--set", *settings]
    assert main(command) == 0
    (run,) = (home / "runs").glob("span-masking-fasttext*")
    predict = ["predict", str(run), "classify", "a text", "--code", str(GUIDES / "task.py")]
    assert main(predict) == 0
    (reviews / "train.txt").write_text("no label\n")
    capsys.readouterr()
    assert main(command) == 1
    assert "train.txt:1" in capsys.readouterr().err
