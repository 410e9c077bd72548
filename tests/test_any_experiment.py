"""Any combination of fields: it trains, or it is refused by name before any work."""

import json
import math
import string
from collections import Counter
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs, SentencePairs
from encoders.data.mixing import MixedFormat
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment, apply_settings
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.run import loop
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals, read_metric_rows
from encoders.training.optimizer import AdamW, Lamb
from encoders.utils.serialization import ExperimentError, from_json_value, to_json_value
from tests import texts
from tests.refusals import raises_naming
from tests.test_experiment import paths_of

TINY = dict(
    vocab_size=300, hidden_size=12, num_layers=2, num_heads=2, intermediate_size=20, embedding_size=8, max_positions=40
)
LONGEST = 400  # characters of a message


def base(model, objective, optimizer, *formats) -> Experiment:
    return Experiment(
        name="any",
        model=replace(model, **TINY),
        objective=objective,
        data=PretrainingData(
            ("text.txt",), TokenizerSpec(vocab_size=300), sentence_splitting="lines", heldout_fraction=0.2
        ),
        optimizer=optimizer,
        phases=tuple(Phase(until, 32, 4, form) for until, form in enumerate(formats, start=3 - len(formats))),
        intervals=Intervals(eval_batches=1),
    )


PAIR = (AdamW(1e-3, 1), SegmentPairs(), SentencePairs())
BASES = [
    base(bert.TINY, MaskedLM(Masking(), NextSentencePrediction()), *PAIR),
    base(roberta.BASE, MaskedLM(Masking(dupe_factor=None)), AdamW(1e-3, 0), FullSentences()),
    base(
        albert.BASE,
        MaskedLM(Masking(dupe_factor=2, unit="word", max_ngram=3), SentenceOrderPrediction()),
        Lamb(1e-3, 1),
        SegmentPairs("swapped"),
    ),
    base(electra.BASE, ReplacedTokenDetection(), AdamW(1e-3, 1), ElectraPairs()),
    base(
        bert.TINY, MaskedLM(), AdamW(1e-3, 1), PackedFormat(MixedFormat(SegmentPairs(), (1.5,)), max_examples_per_row=3)
    ),
]

# What each field is set to: values that may do, depending on the others, and values that never do.
FIELDS = {
    "seed": ("0 7", "-1 2147483648 1.5"),
    "grad_accum_steps": ("1 2 4", "0 3 16"),
    "early_stopping": ("none 1", "0"),
    "model.vocab_size": ("300", "0 299 99999999999999999999"),
    "model.hidden_size": ("12 13 20", "0 -12 nan"),
    "model.num_heads": ("1 2 3 4", "0 -2 7"),
    "model.num_layers": ("1 2 3", "0 1e400"),
    "model.intermediate_size": ("1 20 33", "0"),
    "model.embedding_size": ("8 12 20", "0"),
    "model.max_positions": ("17 32 40", "7 0"),
    "model.num_token_types": ("0 1 2 3", "-1"),
    "model.position_offset": ("0 2", "-1"),
    "model.activation": ("gelu gelu_tanh", "relu"),
    "model.hidden_dropout": ("0 0.1", "1 -0.1 nan"),
    "model.attention_dropout": ("0 0.2", "1.5"),
    "model.layer_norm_eps": ("1e-12 1e-5", "-1 0"),
    "model.init_std": ("0.02 0.3", "0 inf"),
    "model.truncated_init": ("true false", "yes"),
    "model.shared_parts": ("() attention feed_forward attention,feed_forward", "attention,attention layers"),
    "model.num_groups": ("1 2 3", "0 9"),
    "model.always_project": ("true false", "2"),
    "model.dtype": ("float32 bfloat16", "float16"),
    "model.attention_impl": ("xla cudnn cudnn_packed", "flash"),
    "model.unroll_layers": ("true false", "-"),
    "model.remat": ("none dots full", "some"),
    "objective.masking.mask_rate": ("0.15 0.5 0.01", "0 1.15 -1"),
    "objective.masking.split": ("0.8,0.1,0.1 0,0,1 0,1,0", "0.8,0.1 0.8,0.1,0.2 2,-1,0"),
    "objective.masking.dupe_factor": ("1 3 none", "0"),
    "objective.masking.max_predictions": ("1 20 none", "0"),
    "objective.masking.unit": ("token word", "letter"),
    "objective.masking.max_ngram": ("1 3", "0"),
    "objective.masking.mask_special": ("true false", "0"),
    "objective.masking.rounding": ("nearest random", "up"),
    "objective.masking.replacements": ("all words", "none"),
    "objective.sentence_task": ("none NextSentencePrediction SentenceOrderPrediction", "Order"),
    "objective.generator_width": ("0.25 1 none 0.01", "0 -1"),
    "objective.generator_depth": ("1 0.5 2", "0"),
    "objective.rtd_weight": ("50 1", "-1"),
    "objective.temperature": ("1 0.5", "0"),
    "objective.loss_over": ("all chosen", "some"),
    "objective.generator_training": ("joint adversarial two_stage", "none"),
    "objective.tie": ("none tokens embeddings disentangled", "all"),
    "optimizer.learning_rate": ("1e-3 1", "0 nan"),
    "optimizer.warmup_steps": ("0 1 2", "3 -1 0.5"),
    "optimizer.weight_decay": ("0 0.1", "-1"),
    "optimizer.betas": ("0.9,0.98 0,0", "0.9 1,0.9"),
    "optimizer.eps": ("1e-8", "0"),
    "optimizer.clip_norm": ("none 0.5", "0"),
    "optimizer.bias_correction": ("true false", "1"),
    "optimizer.schedule": ("replace peak product constant CosineDecay", "cosine"),
    "optimizer.no_decay": ("() bias$", "[ )"),
    "optimizer.layer_lr_decay": ("1 0.8", "0 2"),
    "optimizer.decay_top_layer_twice": ("true", "0"),
    "phases.*.seq_length": ("8 17 32", "7 41 1e18"),
    "phases.*.batch_size": ("4 8", "0 -4 2.5"),
    "phases.*.num_length_buckets": ("1 2 5", "0"),
    "phases.*.mask_rate": ("none 0.05 0.4", "0 1 1.5"),
    "phases.*.format.negatives": ("random swapped", "next"),
    "phases.*.format.short_seq_prob": ("0 1", "-0.1 1.1"),
    "phases.*.format.match_released_code": ("true", "1"),
    "phases.*.format.within_document": ("true false", "1"),
    "phases.*.format.max_examples_per_row": ("1 8", "0"),
    "mesh.data": ("1 -1", "0 2"),
    "mesh.fsdp": ("1", "2"),
    "mesh.model": ("1", "-2 8"),
    "intervals.log_every": ("1 2 100", "0"),
    "intervals.eval_every": ("1 5", "0"),
    "intervals.save_every": ("1 1000", "-1"),
    "intervals.eval_batches": ("1", "0"),
    "intervals.max_bad_updates": ("1", "0"),
    "data.tokenizer.vocab_size": ("300", "4 301"),
    "data.corpus": ("text.txt", "()"),
    "data.max_unknown_rate": ("0.5 1", "-1 1.5"),
    "data.document_per_line": ("false", "1"),
    "data.sentence_splitting": ("lines", "words"),
}
GARBAGE = [
    *"none true nan inf -1 1e18 1e300 () [[ 0x10 1,2 0.5 EncoderConfig AdamW NextSentencePrediction * ٣ a=b".split(),
    "",
]
GARBAGE += ["x" * 999, "1" * 4400, "\x00", "\ud800"]
THOROUGH = dict(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def has(experiment: Experiment) -> list[str]:
    """The paths of `FIELDS` that an experiment has."""
    there = set(paths_of(experiment))
    return [path for path in FIELDS if path in there]


@st.composite
def chosen(draw, most: int, bases=BASES, wrong: bool = False, least: int = 1):
    """An experiment, and settings of some of its fields to what may do; with `wrong` one of them never does."""
    experiment = draw(st.sampled_from(bases))
    paths = draw(st.lists(st.sampled_from(has(experiment)), min_size=least, max_size=most, unique=True))
    values = [FIELDS[path][wrong and path == paths[0]].split() for path in paths]
    return experiment, [f"{path}={draw(st.sampled_from(some))}" for path, some in zip(paths, values, strict=True)]


def named(message: str, settings: list[str]) -> bool:
    """Whether the message is short, and names the field, or the part that is chosen by it, of one of the settings."""
    parts = {part for each in settings for part in each.partition("=")[0].strip().split(".")}
    return len(message) <= LONGEST and any(repr(part)[1:-1] in message for part in parts)


# Settings


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working directory with a text, and the store that all runs of this file have."""
    folder = tmp_path_factory.mktemp("home")
    texts.write(folder / "text.txt", documents=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def assert_read_or_refused(experiment, given):
    """The settings give a value that reads back from JSON as it was, or an error that names them in few words."""
    try:
        changed = apply_settings(experiment, given)
    except ExperimentError as error:
        assert named(str(error), given), error
    else:
        assert from_json_value(json.loads(json.dumps(to_json_value(changed)))) == changed


@given(chosen(3, wrong=True))
@settings(max_examples=150, **THOROUGH)
def test_what_a_field_never_holds_is_refused_by_its_name_before_any_work(home, drawn):
    experiment, given = drawn
    with pytest.raises(ValueError) as told:
        loop.train(apply_settings(experiment, given), home / "refused", lambda line: None)
    assert named(str(told.value), given) and not (home / "refused").exists()


@given(chosen(8))
@settings(max_examples=150, **THOROUGH)
def test_what_fields_may_hold_reads_back_from_json_or_is_refused_by_name(drawn):
    assert_read_or_refused(*drawn)


@pytest.mark.parametrize(
    "number, given, parts",
    [
        (0, "model.hidden_size=13", ["model.hidden_size=13", "model.num_heads=2"]),
        (0, "phases.*.seq_length=41", ["phases.seq_length=41", "model.max_positions=40"]),
        (0, "model.vocab_size=299", ["model.vocab_size=299", "data.tokenizer.vocab_size=300"]),
        (0, "objective.masking.mask_rate=1.15", ["objective.masking", "mask_rate=1.15", "below 1"]),
        (0, "grad_accum_steps=3", ["phases.batch_size=4", "grad_accum_steps=3"]),
        (0, "optimizer.warmup_steps=3", ["optimizer.warmup_steps=3", "2 steps", "phases.until_step"]),
        (
            0,
            "optimizer.layer_lr_decay=0.8 model.shared_parts=attention",
            ["optimizer.layer_lr_decay=0.8", "model.shared_parts=('attention',)"],
        ),
        (0, "model.num_groups=2", ["model.num_groups=2", "model.shared_parts is empty"]),
        (
            0,
            "model.attention_impl=cudnn",
            ["model.attention_impl='cudnn'", "model.attention_dropout=0", "model.dtype=bfloat16"],
        ),
        (0, "objective.sentence_task=SentenceOrderPrediction", ["sentence_order", "SegmentPairs", "next_sentence"]),
        (2, "objective.masking.unit=token", ["max_ngram=3", "unit='word'"]),
        (3, "objective.generator_width=0.01", ["objective.generator_width=0.01", "model.hidden_size=0"]),
        (4, "data.corpus=a,b", ["phases.format.corpus_weights=(1.5,)", "2 items of data.corpus"]),
    ],
)
def test_fields_that_do_not_fit_together_are_both_named_with_their_values(number, given, parts):
    with raises_naming(ExperimentError, *parts):
        apply_settings(BASES[number], given.split())


some_path = st.one_of(
    st.sampled_from(sorted({path for experiment in BASES for path in paths_of(experiment)})),
    st.builds(
        ".".join, st.tuples(st.sampled_from(list(FIELDS)), st.sampled_from(["0", "*", "learning_rate", "", "ü"]))
    ),
    st.text(min_size=1, max_size=12),
)
some_text = st.one_of(st.sampled_from(GARBAGE), st.text(max_size=9), st.floats().map(str), st.integers().map(str))


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")  # of a regex with [[
@given(st.sampled_from(BASES), st.lists(st.tuples(some_path, some_text), min_size=1, max_size=3))
@settings(max_examples=150, **THOROUGH)
def test_any_text_is_read_or_refused_in_few_words(experiment, pairs):
    assert_read_or_refused(experiment, [f"{path}={text}" for path, text in pairs])


@given(st.data())
@settings(max_examples=100, **THOROUGH)
def test_a_misspelt_name_is_answered_with_the_right_one(data):
    experiment = data.draw(st.sampled_from(BASES))
    path = data.draw(st.sampled_from([path for path in has(experiment) if len(path.rpartition(".")[2]) > 3]))
    part, _, name = path.rpartition(".")
    at, letter = data.draw(st.integers(0, len(name) - 1)), data.draw(st.sampled_from(string.ascii_lowercase))
    wrong = data.draw(st.sampled_from([name[:at] + name[at + 1 :], name[:at] + letter + name[at:]]))
    assume(wrong != name)
    with raises_naming(ExperimentError, repr(wrong), repr(name)):
        apply_settings(experiment, [f"{part}.{wrong}=1" if part else f"{wrong}=1"])


# JSON


def numbers(value, path=()):
    """The path of every number with a fraction in a JSON value."""
    if isinstance(value, float):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in inner for found in numbers(item, (*path, key))]


def changed(saved, path, value):
    """A JSON value with another one in the place of what is at `path`."""
    copy = json.loads(json.dumps(saved))
    *parents, last = path
    node = copy
    for key in parents:
        node = node[key]
    node[last] = value
    return copy


@pytest.mark.parametrize("experiment", BASES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(experiment, wrong):
    saved = to_json_value(experiment)
    assert len(numbers(saved)) > 12
    for path in numbers(saved):
        name = next(key for key in reversed(path) if isinstance(key, str))
        with raises_naming(ValueError, name):
            from_json_value(changed(saved, path, wrong))


@given(st.data())
@settings(max_examples=100, **THOROUGH)
def test_json_that_was_changed_anywhere_is_read_or_refused(data):
    saved = to_json_value(data.draw(st.sampled_from(BASES)))
    node, path = saved, ()
    while isinstance(node, dict | list) and node and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node, path = node[key], (*path, key)
    wrong = data.draw(st.sampled_from([None, True, -1, 2**70, 0.5, "", "x", [], [1, "x"], {}, {"class": "x"}, saved]))
    try:
        found = from_json_value(changed(saved, path, wrong))
    except ValueError as error:
        assert str(error)
    else:
        assert from_json_value(to_json_value(found)) == found


# Runs


@pytest.mark.live
@pytest.mark.parametrize("base", BASES[2:], ids=["albert", "electra", "packed"])
def test_any_combination_trains_two_steps_or_is_refused_by_name_before_any_work(base, home):
    seen = Counter()

    @given(chosen(9, [base], least=3))
    @settings(max_examples=2, phases=[hypothesis.Phase.generate], database=None, **THOROUGH)
    def run(drawn):
        experiment, given = drawn
        folder = home / f"{BASES.index(experiment)}-{seen.total()}"
        try:
            result = loop.train(apply_settings(experiment, given), folder, lambda line: None)
        except ValueError as error:
            seen["refused"] += 1
            assert named(str(error), given) and not folder.exists(), (given, error)
        else:
            seen["trained"] += 1
            logged = list(read_metric_rows(folder / "metrics.jsonl"))
            assert result["steps"] == 2 == logged[-1]["step"], given
            assert all(math.isfinite(row["loss"]) for row in logged), given

    run()
    assert seen["trained"], seen


def test_held_out_text_that_makes_no_example_is_told_before_any_work(home):
    """Otherwise the first evaluation would end the run, after a thousand steps."""
    alone = ["A lone sentence of words."]
    texts.written(home / "lone.txt", [alone, ["One of two.", "And the other."], *[alone] * 38])
    experiment = replace(BASES[0], data=replace(BASES[0].data, corpus=("lone.txt",)))
    with raises_naming(ValueError, "SegmentPairs", "heldout"):
        loop.train(experiment, home / "lone", lambda line: None)
    assert not (home / "lone").exists()
