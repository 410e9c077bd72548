"""Numbers recorded before the library was renamed: a change of names and structure changes none of them.

`golden.json` holds digests of integer arrays and bytes, which must be equal, and floats, which must be close, under
keys that are chosen here. A rename changes only the functions of the first section, and no value but `store/key/*`, a
digest of JSON with field names. Runs start from parameters filled by their published (Hugging Face) names, without
dropout: Flax folds the names of modules into random keys, so fresh parameters and dropout do change with these.
To record anew, in one process, the keys that match some patterns:

    GOLDEN_RECORD='store/key/*,run/bert/*' python -m pytest tests/test_golden.py
"""

import hashlib
import json
import math
import os
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.packing import PackedFormat
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.data.stream import BatchStream, Phase
from encoders.exchange.convert import export_run, import_checkpoint
from encoders.experiment import Experiment, RunSpec
from encoders.families import albert, bert, electra, roberta
from encoders.finetuning.grids import Recipe, build_finetuning
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.run import loop
from encoders.run.folder import build_run_record
from encoders.run.run import Run
from encoders.tasks.glue import GLUE_TASKS
from encoders.tasks.squad import SQUAD_2_0
from encoders.text.tokenization import TokenizerSpec
from encoders.training.checkpoint import save_params
from encoders.training.metric_log import Intervals, read_metric_rows
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.step import init_params
from encoders.utils.files import write_json
from tests import task_examples

# The library's API: all of it that a rename touches ------------------------------------------------------------------

SIZES = dict(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, max_positions=40, init_std=0.1
)
# Names of this file, and those of the library.
FIELDS = {
    "tokens": "input_ids", "examples": "example_ids", "segments": "token_type_ids", "positions": "position_ids",
    "real": "example_mask", "first tokens": "cls_positions", "places": "example_index", "passes": "pass_index",
}  # fmt: skip
LABELS = {"next": "next_sentence", "order": "sentence_order"}
MASKED = {
    "shown": "input_ids", "clean": "clean_ids", "chosen": "masked_positions", "targets": "masked_labels",
    "weights": "masked_weights",
}  # fmt: skip
SCORES = {
    "loss": "loss", "label loss": "label_loss", "label accuracy": "accuracy",
    "masked loss": "mlm_loss", "masked accuracy": "mlm_accuracy", "masked perplexity": "mlm_perplexity",
    "at mask accuracy": "mlm_mask_accuracy", "at mask baseline": "mlm_mask_baseline",
    "next loss": "nsp_loss", "next accuracy": "nsp_accuracy", "next baseline": "nsp_baseline",
    "order loss": "sop_loss", "order accuracy": "sop_accuracy", "order baseline": "sop_baseline",
    "replaced loss": "rtd_loss", "replaced accuracy": "rtd_accuracy", "replaced recall": "rtd_recall",
    "replaced share": "rtd_replaced", "replaced baseline": "rtd_baseline", "replaced area": "rtd_auc",
    "generator loss": "generator_loss", "generator accuracy": "generator_accuracy",
    "generator perplexity": "generator_perplexity", "generator at mask accuracy": "generator_mask_accuracy",
    "start loss": "first_loss", "end loss": "last_loss", "span accuracy": "span_accuracy", "exact": "exact",
    "f1": "f1", "f1 at zero": "f1_at_zero", "threshold": "threshold", "no answer": "no_answer_accuracy",
}  # fmt: skip


def build_experiment(family: str, home: Path, stretch: int = 1) -> Experiment:
    """Return a tiny run of a family: 6 steps, or `stretch` times as many."""
    fairseq = dict(
        weight_decay=0.1, betas=(0.9, 0.98), clip_norm=None, bias_correction=True, schedule="peak", no_decay=()
    )
    dynamic = Masking(dupe_factor=None, rounding="random", replacements="words")
    words, swapped = Masking(dupe_factor=2, unit="word", max_ngram=3), SegmentPairs("swapped", short_seq_prob=0.5)
    layerwise = AdamW(2e-3, 2, schedule="product", layer_lr_decay=0.8)
    sizes, embedding, objective, form, optimizer, lengths = {
        "bert": (
            bert,
            32,
            MaskedLM(Masking(dupe_factor=2), NextSentencePrediction()),
            SegmentPairs(),
            AdamW(2e-3, 2),
            (24, 32),
        ),
        "roberta": (roberta, 32, MaskedLM(dynamic), FullSentences(), AdamW(2e-3, 2, **fairseq), (32,)),
        "albert": (
            albert,
            16,
            MaskedLM(words, SentenceOrderPrediction()),
            PackedFormat(swapped, max_examples_per_row=3),
            Lamb(5e-3, 2),
            (40,),
        ),
        "electra": (electra, 16, ReplacedTokenDetection(generator_width=1 / 2), ElectraPairs(), layerwise, (32,)),
    }[family]
    ends = [stretch * 6 * (i + 1) // len(lengths) for i in range(len(lengths))]
    return Experiment(
        name=family,
        model=replace(sizes.BASE, **SIZES, embedding_size=embedding, hidden_dropout=0.0, attention_dropout=0.0),
        objective=objective,
        data=build_data(home, "bpe" if family == "roberta" else "wordpiece"),
        optimizer=optimizer,
        phases=tuple(Phase(end, length, 8, form) for end, length in zip(ends, lengths, strict=True)),
        seed=3,
        grad_accum_steps=2 if family == "roberta" else 1,
        intervals=Intervals(log_every=1, eval_batches=1),
    )


def build_data(home: Path, kind: str) -> PretrainingData:
    corpus, tokenizer = write_corpus(home / "corpus.txt"), TokenizerSpec(kind=kind, vocab_size=SIZES["vocab_size"])
    return PretrainingData((str(corpus),), tokenizer, heldout_fraction=0.2, store_dir=str(home / "stores"))


def build_task_run(kind: str, home: Path) -> Experiment:
    """Return the run of a classifier, or of a model that answers questions of which some have no answer."""
    task, root, length = {
        "classes": (GLUE_TASKS["SST-2"], task_examples.classes(home / "classes", rows=64, dev=16), 12),
        "answers": (SQUAD_2_0, task_examples.squad(home / "answers", questions=16, unanswerable=True), 40),
    }[kind]
    recipe = Recipe(
        2e-3, 16, num_steps=6, max_seq_length=length, head_dropout=0.0, num_length_buckets=2 if kind == "classes" else 1
    )
    model, words = build_experiment("bert", home).model, task_examples.vocabulary(home, size=SIZES["vocab_size"])
    experiment = build_finetuning(kind, task, root, recipe, 64, init_from=None, config=model, tokenizer_path=words)
    stored = replace(experiment.data, store_dir=str(home / "stores"))
    return replace(experiment, data=stored, intervals=Intervals(log_every=1, eval_batches=9))


def start_filled(experiment: Experiment, home: Path) -> Experiment:
    """Return the experiment that starts from `home/start`, whose parameters are filled by their published names."""
    store, empty, published = prepare_store(experiment.data), home / "empty", home / "published"
    network = RunSpec(name="empty", model=experiment.model, objective=experiment.objective)
    shapes = jax.eval_shape(partial(init_params, 0, network.objective.module(network.model, store.vocab)))
    empty.mkdir()
    store.tokenizer.save(empty)
    write_json(empty / "experiment.json", build_run_record(network, "none", store.vocab))
    save_params(empty / "checkpoints", jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), "none")
    export_run(empty, published)
    for path in published.rglob("model.safetensors"):
        save_file({name: fill_array(name, tensor.shape) for name, tensor in load_file(path).items()}, path)
    import_checkpoint(published, home / "start")
    return replace(experiment, init_from=str(home / "start"))


def train(experiment: Experiment, folder: Path) -> dict[str, float]:
    """Train; return loss and gradient norm of every step, and held-out scores, by the names of this file."""
    scores = loop.train(experiment, folder, lambda line: None)["heldout"]
    values = {f"held-out/{name}": scores[theirs] for name, theirs in SCORES.items() if theirs in scores}
    for row in (row for row in read_metric_rows(folder / "metrics.jsonl") if row["split"] == "train"):
        values |= {f"step {row['step']}/loss": row["loss"], f"step {row['step']}/gradient norm": row["gradient_norm"]}
    return values


def read_parameters(folder: Path) -> dict:
    return Run.open(folder).load_params()[1]


def read_store(data) -> tuple[str, list[int], dict[str, np.ndarray]]:
    """Return the key of the store of `data`, its vocabulary's size and special ids, and its arrays."""
    store, arrays = prepare_store(data), {}
    for side, split in (("train", store.train_split), ("held-out", store.eval_splits[0])):
        parts = {"tokens": split.tokens, "sentences": split.sentence_offsets, "documents": split.document_offsets}
        arrays |= {f"{side}/{name}": array for name, array in parts.items()}
    return (
        store.key,
        [getattr(store.vocab, name) for name in ("vocab_size", "pad_id", "unk_id", "cls_id", "sep_id", "mask_id")],
        arrays,
    )


def iterate_batches(experiment: Experiment, home: Path):
    """Yield a step, its batch, and what is made of it: masked, and for ELECTRA filled by a generator's samples."""
    store, objective, seed = prepare_store(experiment.data), experiment.objective, experiment.seed
    stream = BatchStream(
        store.train_split, store.vocab, experiment.phases, seed, objective.num_distinct_passes, home / "tables"
    )
    module = objective.module(experiment.model, store.vocab)
    mask = jax.jit(lambda batch: objective.corrupt(batch, store.vocab, seed))
    if has_generator := isinstance(objective, ReplacedTokenDetection):
        params = read_parameters(Path(start_filled(experiment, home).init_from))
        fill = jax.jit(partial(module.apply, {"params": params}, method="fill_masks"))
    for step in (0, 1, 58, 59, 60, 119):
        batch = stream.build_batch(step)
        masked = mask(batch)
        arrays = {f"rows/{name}": getattr(batch, field) for name, field in FIELDS.items()}
        arrays |= {f"rows/{name}": batch.labels[field] for name, field in LABELS.items() if field in batch.labels}
        arrays |= {f"masked/{name}": getattr(masked, field) for name, field in MASKED.items()}
        if has_generator:
            filled = fill(masked)
            arrays |= {"filled/tokens": filled.filled_ids, "filled/samples": filled.sampled_ids}
        yield step, arrays


# Inputs that no random generator of a library makes -------------------------------------------------------------------


def draw(below: int, *key) -> int:
    """Return a number below `below`, always the same for a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") % below


def write_corpus(path: Path) -> Path:
    """Write 60 documents of 3 to 9 paragraphs of one or two sentences of 2 to 11 made-up words."""
    words, lines = ["".join(letters) for letters in product("tsnrlmdkpb", "aeiou", "nsrtl", "aeiou")], []
    for document in range(60):
        for paragraph in range(3 + draw(7, document)):
            sentences = []
            for key in ((i, paragraph, document) for i in range(1 + draw(2, paragraph, document))):
                ranks = [draw(1 + draw(len(words), 0, n, *key), 1, n, *key) for n in range(2 + draw(10, *key))]
                sentences.append(" ".join(words[rank] for rank in ranks).capitalize() + ".")
            lines.append(" ".join(sentences))
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def fill_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers between -0.25 and 0.25 that depend on a tensor's name alone, 1 more for a norm's scale."""
    words = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * int(np.prod(shape))), "<u4") >> 8
    scale = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
    return (words.reshape(shape) / 2**25 - 0.25 + scale).astype(np.float32)


# Comparison -----------------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).with_name("golden.json")
PATTERNS = [pattern for pattern in os.environ.get("GOLDEN_RECORD", "").split(",") if pattern]
# Other CPUs sum in another order: float32 differs by some 1e-7, which six updates enlarge. Accuracies are ratios of
# counts far below 1 / RTOL: a difference of one is always larger.
RTOL = 2e-5
FAMILIES = ("bert", "roberta", "albert", "electra")


def digest_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def digest_integers(array) -> str:
    return digest_bytes(np.asarray(array).astype("<i4").tobytes())


def is_same(recorded, value) -> bool:
    """Return whether a value is the recorded one, or one of those that were recorded on different processors.

    A generator's sample is a choice between tokens, and rounding decides it where two are equally likely: with AVX-512
    and without it one token of ELECTRA's held-out rows differs.
    """
    if isinstance(recorded, list) and not isinstance(value, list):
        return any(is_same(other, value) for other in recorded)
    are_floats = isinstance(recorded, float) and isinstance(value, float)
    return math.isclose(value, recorded, rel_tol=RTOL) if are_floats else value == recorded


def compare(section: str, values: dict) -> None:
    """Compare all values of a section, whose keys begin with its name, with the recorded ones; or record them."""
    values = {f"{section}/{name}": value for name, value in values.items()}
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    keys = values.keys() | {key for key in golden if key.startswith(f"{section}/")}
    renewed = {key for key in keys if any(fnmatch(key, pattern) for pattern in PATTERNS)}
    if renewed:
        others = {key: value for key, value in golden.items() if key not in renewed}
        golden = others | {key: values[key] for key in renewed & values.keys()}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(golden.items())]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    differing = sorted(key for key in keys if not is_same(golden.get(key), values.get(key)))
    lines = [f"{key}: recorded {golden.get(key)}, now {values.get(key)}" for key in differing]
    assert not lines, "\n".join([f"{len(lines)} of {len(keys)} values of {section} differ:", *lines])


def summarise_parameters(tree: dict) -> dict[str, float]:
    """Return the sum of all parameters, and the absolute sums of the leaves in rising order."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    sums = sorted(float(np.abs(leaf).sum()) for leaf in leaves)
    totals = {"trained/sum": sum(float(leaf.sum()) for leaf in leaves), "trained/absolute sum": sum(sums)}
    return totals | {f"trained/leaf {i:02}": value for i, value in enumerate(sums)}


def digest_folder(folder: Path) -> dict[str, str]:
    """Return digests of all files, and of each published tensor."""
    values = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        place, tensors = path.relative_to(folder).as_posix(), load_file(path) if path.suffix == ".safetensors" else {}
        values |= {place: digest_bytes(path.read_bytes())}
        values |= {f"{place}/{name}": digest_bytes(tensor.tobytes()) for name, tensor in tensors.items()}
    return values


# Tests ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_store_has_the_recorded_content(kind, tmp_path):
    key, vocabulary, arrays = read_store(build_data(tmp_path, kind))
    values = {name: digest_integers(array) for name, array in arrays.items()} | {"vocabulary": vocabulary}
    compare(f"store/{kind}", values | {f"{name}/size": len(array) for name, array in arrays.items()})
    compare(f"store/key/{kind}", {"digest": key})


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_masks_and_samples_are_the_recorded_ones(family, tmp_path):
    values, passes = {}, set()
    for step, arrays in iterate_batches(build_experiment(family, tmp_path, stretch=20), tmp_path):
        values |= {f"step {step}/{name}": digest_integers(array) for name, array in arrays.items()}
        passes |= set(arrays["rows/passes"].ravel().tolist())
    assert len(passes) > 1, "the steps must cross an epoch"
    compare(f"batches/{family}", values)


@pytest.mark.parametrize(
    "family", ["albert", "electra", *(pytest.param(f, marks=pytest.mark.live) for f in FAMILIES[:2])]
)
def test_a_run_has_the_recorded_losses_parameters_scores_and_bytes(family, tmp_path):
    experiment = start_filled(build_experiment(family, tmp_path), tmp_path)
    values = train(experiment, tmp_path / "run")
    export_run(tmp_path / "start", tmp_path / "out")
    values |= {f"export/{name}": digest for name, digest in digest_folder(tmp_path / "out").items()}
    compare(f"run/{family}", values | summarise_parameters(read_parameters(tmp_path / "run")))


@pytest.mark.parametrize("kind", ["classes", "answers"])
def test_a_fine_tuned_run_has_the_recorded_losses_and_scores(kind, tmp_path):
    experiment = start_filled(build_task_run(kind, tmp_path), tmp_path)
    values, arrays = train(experiment, tmp_path / "run"), read_store(experiment.data)[2]
    compare(f"fine-tuned/{kind}", values | {name: digest_integers(array) for name, array in arrays.items()})
