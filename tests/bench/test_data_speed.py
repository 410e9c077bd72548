"""What is measured between text and batches; how fast it is, no test asks."""

import os
from types import SimpleNamespace

import pytest

from encoders.bench import data_speed
from encoders.data.formats import SegmentPairs
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.model.config import EncoderConfig
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.sentence_pair import SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW
from tests import texts

MODEL = EncoderConfig(
    vocab_size=300, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20, embedding_size=8, max_positions=40
)


def test_an_accelerator_eats_the_tokens_that_its_products_take():
    # 989 TFLOP/s at half of the peak, and 0.4945 GFLOP a token: a million tokens a second
    assert data_speed.count_fed_accelerators(3e6, 0.4945e9) == pytest.approx(3)
    assert data_speed.count_fed_accelerators(3e6, 0.4945e9, peak_flops=98.9e12, mfu=1.0) == pytest.approx(15)


@pytest.fixture
def member(tmp_path):
    corpus = str(texts.write(tmp_path / "text.txt", documents=60))
    return Experiment(
        name="tiny",
        model=MODEL,
        objective=MaskedLM(Masking(), SentenceOrderPrediction()),
        data=PretrainingData(
            (corpus,), TokenizerSpec(vocab_size=300), heldout_fraction=0.1, store_dir=str(tmp_path / "stores")
        ),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=1),
        phases=(Phase(until_step=3, seq_length=32, batch_size=4, format=SegmentPairs("swapped")),),
    )


def test_every_step_from_text_to_masks_is_measured(member, monkeypatch):
    monkeypatch.setattr(data_speed, "BATCH_SHAPES", ((4, 40),))
    monkeypatch.setattr(data_speed, "BATCHES_PER_ROUND", 2)
    cores = os.sched_getaffinity(0)
    options = SimpleNamespace(rounds=2, core=min(cores), log=lambda line: None)
    rows = {row["what"]: row for row in data_speed.measure_data_speed([member], options)}
    assert os.sched_getaffinity(0) == cores
    of = lambda name: f"{name}, 4 x 40"
    forms = ("full sentences", "pairs", "packed pairs")
    assert list(rows) == [
        "tokenise and write a store",
        *(f"example table, {name}, length 40" for name in ("random", "swapped", "full sentences")),
        "pack pairs, length 40",
        *(
            what
            for form in forms
            for what in (
                of(f"read {form}"),
                of(f"first batch after a restart, {form}"),
                *([of(f"mask {form}") + ", tiny"] if form != "full sentences" else []),
            )
        ),
    ]
    assert all(min(row["seconds"], row["wall"], row["tokens_per_cpu_second"]) > 0 for row in rows.values())
    assert rows["tokenise and write a store"]["megabytes_per_second"] > 0
    pack = rows["pack pairs, length 40"]
    assert 0 < pack["padding"] < pack["padding_before"] < 1
    assert rows[of("read packed pairs")]["padding"] < rows[of("read pairs")]["padding"]
    assert all(rows[of(f"read {form}")]["feeds tiny"] > 0 for form in forms)
    assert os.listdir(os.path.join(member.data.store_dir)) and not list(tables(member))


def tables(member):
    """What was left in the member's own stores."""
    for folder, _, files in os.walk(member.data.store_dir):
        yield from (os.path.join(folder, name) for name in files if name.endswith(".npy"))


def test_work_that_takes_long_is_not_repeated(monkeypatch):
    monkeypatch.setattr(data_speed, "MAX_SECONDS", 0.0)
    calls = []
    data_speed.time_token_work("slow", 1, lambda: calls.append(sum(range(100_000))), rounds=9)
    assert len(calls) == 1
