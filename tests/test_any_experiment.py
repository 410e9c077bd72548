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

from encoders.data import stream
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs, SentencePairs
from encoders.data.mixing import Mixed
from encoders.data.packing import Packed
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment, override
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.run import loop
from encoders.text.tokenization import Vocabulary
from encoders.training.metric_log import Cadence, rows
from encoders.training.optimizer import AdamW, Lamb
from encoders.utils.overrides import ExperimentError, from_json, to_json
from tests import texts
from tests.test_experiment import paths_of

TINY = dict(vocab=300, hidden=12, layers=2, heads=2, intermediate=20, embedding=8, positions=40)
LONGEST = 400  # characters of a message


def base(model, objective, optimizer, *formats) -> Experiment:
    return Experiment(
        name="any",
        model=replace(model, **TINY),
        objective=objective,
        data=Data(("text.txt",), Vocabulary(size=300), sentences="lines", heldout=0.2),
        optimizer=optimizer,
        phases=tuple(Phase(until, 32, 4, form) for until, form in enumerate(formats, start=3 - len(formats))),
        cadence=Cadence(heldout=1),
    )


PAIR = (AdamW(1e-3, 1), SegmentPairs(), SentencePairs())
BASES = [
    base(bert.TINY, Joint(Masking(), NextSentence()), *PAIR),
    base(roberta.BASE, Joint(Masking(copies=None)), AdamW(1e-3, 0), FullSentences()),
    base(
        albert.BASE,
        Joint(Masking(copies=2, unit="word", ngrams=3), SentenceOrder()),
        Lamb(1e-3, 1),
        SegmentPairs("swapped"),
    ),
    base(electra.BASE, ReplacedTokens(), AdamW(1e-3, 1), ElectraPairs()),
    base(bert.TINY, Joint(), AdamW(1e-3, 1), Packed(Mixed(SegmentPairs(), (1.5,)), most=3)),
]

# What each field is set to: values that may do, depending on the others, and values that never do.
FIELDS = {
    "seed": ("0 7", "-1 2147483648 1.5"),
    "accumulate": ("1 2 4", "0 3 16"),
    "stop_after": ("none 1", "0"),
    "model.vocab": ("300", "0 299 99999999999999999999"),
    "model.hidden": ("12 13 20", "0 -12 nan"),
    "model.heads": ("1 2 3 4", "0 -2 7"),
    "model.layers": ("1 2 3", "0 1e400"),
    "model.intermediate": ("1 20 33", "0"),
    "model.embedding": ("8 12 20", "0"),
    "model.positions": ("17 32 40", "7 0"),
    "model.segments": ("0 1 2 3", "-1"),
    "model.position_offset": ("0 2", "-1"),
    "model.activation": ("gelu gelu_tanh", "relu"),
    "model.dropout": ("0 0.1", "1 -0.1 nan"),
    "model.attention_dropout": ("0 0.2", "1.5"),
    "model.norm_epsilon": ("1e-12 1e-5", "-1 0"),
    "model.deviation": ("0.02 0.3", "0 inf"),
    "model.truncated": ("true false", "yes"),
    "model.share": ("() attend transform attend,transform", "attend,attend layers"),
    "model.groups": ("1 2 3", "0 9"),
    "model.always_project": ("true false", "2"),
    "model.dtype": ("float32 bfloat16", "float16"),
    "model.attention": ("xla cudnn cudnn_packed", "flash"),
    "model.unroll": ("true false", "-"),
    "model.remat": ("none dots full", "some"),
    "objective.tokens.rate": ("0.15 0.5 0.01", "0 1.15 -1"),
    "objective.tokens.split": ("0.8,0.1,0.1 0,0,1 0,1,0", "0.8,0.1 0.8,0.1,0.2 2,-1,0"),
    "objective.tokens.copies": ("1 3 none", "0"),
    "objective.tokens.limit": ("1 20 none", "0"),
    "objective.tokens.unit": ("token word", "letter"),
    "objective.tokens.ngrams": ("1 3", "0"),
    "objective.tokens.special": ("true false", "0"),
    "objective.tokens.rounding": ("nearest random", "up"),
    "objective.tokens.replacements": ("all words", "none"),
    "objective.sentences": ("none NextSentence SentenceOrder", "Order"),
    "objective.width": ("0.25 1 none 0.01", "0 -1"),
    "objective.depth": ("1 0.5 2", "0"),
    "objective.weight": ("50 1", "-1"),
    "objective.temperature": ("1 0.5", "0"),
    "objective.over": ("all chosen", "some"),
    "objective.training": ("joint adversarial two_stage", "none"),
    "objective.tie": ("none tokens embeddings", "all"),
    "optimizer.rate": ("1e-3 1", "0 nan"),
    "optimizer.warmup": ("0 1 2", "3 -1 0.5"),
    "optimizer.decay": ("0 0.1", "-1"),
    "optimizer.betas": ("0.9,0.98 0,0", "0.9 1,0.9"),
    "optimizer.epsilon": ("1e-8", "0"),
    "optimizer.clip": ("none 0.5", "0"),
    "optimizer.correction": ("true false", "1"),
    "optimizer.schedule": ("replace peak product constant", "cosine"),
    "optimizer.exclude": ("() bias$", "[ )"),
    "optimizer.layer_decay": ("1 0.8", "0 2"),
    "optimizer.released_layer_decay": ("true", "0"),
    "phases.*.length": ("8 17 32", "7 41 1e18"),
    "phases.*.batch": ("4 8", "0 -4 2.5"),
    "phases.*.cuts": ("1 2 5", "0"),
    "phases.*.format.second": ("random swapped", "next"),
    "phases.*.format.short": ("0 1", "-0.1 1.1"),
    "phases.*.format.released": ("true", "1"),
    "phases.*.format.within": ("true false", "1"),
    "phases.*.format.most": ("1 8", "0"),
    "mesh.data": ("1 -1", "0 2"),
    "mesh.fsdp": ("1", "2"),
    "mesh.model": ("1", "-2 8"),
    "cadence.log": ("1 2 100", "0"),
    "cadence.evaluate": ("1 5", "0"),
    "cadence.save": ("1 1000", "-1"),
    "cadence.heldout": ("1", "0"),
    "cadence.patience": ("1", "0"),
    "data.vocabulary.size": ("300", "4 301"),
    "data.corpus": ("text.txt", "()"),
    "data.sentences": ("lines", "words"),
}
GARBAGE = [*"none true nan inf -1 1e18 1e300 () [[ 0x10 1,2 0.5 Model AdamW NextSentence * ٣ a=b".split(), ""]
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
        patch.setattr(stream, "CUTS", 1)  # one length to compile
        yield folder


def assert_read_or_refused(experiment, given):
    """The settings give a value that reads back from JSON as it was, or an error that names them in few words."""
    try:
        changed = override(experiment, given)
    except ExperimentError as error:
        assert named(str(error), given), error
    else:
        assert from_json(json.loads(json.dumps(to_json(changed)))) == changed


@given(chosen(3, wrong=True))
@settings(max_examples=150, **THOROUGH)
def test_what_a_field_never_holds_is_refused_by_its_name_before_any_work(home, drawn):
    experiment, given = drawn
    with pytest.raises(ValueError) as told:
        loop.train(override(experiment, given), home / "refused", lambda line: None)
    assert named(str(told.value), given) and not (home / "refused").exists()


@given(chosen(8))
@settings(max_examples=150, **THOROUGH)
def test_what_fields_may_hold_reads_back_from_json_or_is_refused_by_name(drawn):
    assert_read_or_refused(*drawn)


@pytest.mark.parametrize(
    "number, given, parts",
    [
        (0, "model.hidden=13", ["model.hidden=13", "model.heads=2"]),
        (0, "phases.*.length=41", ["phases.length=41", "model.positions=40"]),
        (0, "model.vocab=299", ["model.vocab=299", "data.vocabulary.size=300"]),
        (0, "objective.tokens.rate=1.15", ["objective.tokens", "rate=1.15", "below 1"]),
        (0, "accumulate=3", ["phases.batch=4", "accumulate=3"]),
        (0, "optimizer.warmup=3", ["optimizer.warmup=3", "the 2 steps of phases.until"]),
        (0, "optimizer.layer_decay=0.8 model.share=attend", ["optimizer.layer_decay=0.8", "not ('attend',)"]),
        (0, "model.groups=2", ["model.groups=2", "model.share is empty"]),
        (0, "model.attention=cudnn", ["model.attention='cudnn'", "model.attention_dropout=0", "model.dtype=bfloat16"]),
        (0, "objective.sentences=SentenceOrder", ["sentence_order", "SegmentPairs", "next_sentence"]),
        (2, "objective.tokens.unit=token", ["ngrams=3", "unit='word'"]),
        (3, "objective.width=0.01", ["objective.width=0.01", "model.hidden=0"]),
        (4, "data.corpus=a,b", ["phases.format.weights=(1.5,)", "2 items of data.corpus"]),
    ],
)
def test_fields_that_do_not_fit_together_are_both_named_with_their_values(number, given, parts):
    with pytest.raises(ExperimentError) as told:
        override(BASES[number], given.split())
    assert all(part in str(told.value) for part in parts), told.value


some_path = st.one_of(
    st.sampled_from(sorted({path for experiment in BASES for path in paths_of(experiment)})),
    st.builds(".".join, st.tuples(st.sampled_from(list(FIELDS)), st.sampled_from(["0", "*", "rate", "", "ü"]))),
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
    with pytest.raises(ExperimentError, match=f"has no {wrong!r} .did you mean {name!r}.."):
        override(experiment, [f"{part}.{wrong}=1" if part else f"{wrong}=1"])


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
    saved = to_json(experiment)
    assert len(numbers(saved)) > 12
    for path in numbers(saved):
        name = next(key for key in reversed(path) if isinstance(key, str))
        with pytest.raises(ValueError, match=name):
            from_json(changed(saved, path, wrong))


@given(st.data())
@settings(max_examples=100, **THOROUGH)
def test_json_that_was_changed_anywhere_is_read_or_refused(data):
    saved = to_json(data.draw(st.sampled_from(BASES)))
    node, path = saved, ()
    while isinstance(node, dict | list) and node and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        node, path = node[key], (*path, key)
    wrong = data.draw(st.sampled_from([None, True, -1, 2**70, 0.5, "", "x", [], [1, "x"], {}, {"class": "x"}, saved]))
    try:
        found = from_json(changed(saved, path, wrong))
    except ValueError as error:
        assert str(error)
    else:
        assert from_json(to_json(found)) == found


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
            result = loop.train(override(experiment, given), folder, lambda line: None)
        except ValueError as error:
            seen["refused"] += 1
            assert named(str(error), given) and not folder.exists(), (given, error)
        else:
            seen["trained"] += 1
            logged = list(rows(folder / "metrics.jsonl"))
            assert result["steps"] == 2 == logged[-1]["step"], given
            assert all(math.isfinite(row["loss"]) for row in logged), given

    run()
    assert seen["trained"], seen


def test_held_out_text_that_makes_no_example_is_told_before_any_work(home):
    """Otherwise the first evaluation would end the run, after a thousand steps."""
    alone = ["A lone sentence of words."]
    texts.written(home / "lone.txt", [alone, ["One of two.", "And the other."], *[alone] * 38])
    experiment = replace(BASES[0], data=replace(BASES[0].data, corpus=("lone.txt",)))
    with pytest.raises(ValueError, match="SegmentPairs.* makes no example of the heldout split; it has too little"):
        loop.train(experiment, home / "lone", lambda line: None)
    assert not (home / "lone").exists()
