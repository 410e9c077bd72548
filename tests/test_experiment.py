import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.data.filters import CorpusFilters
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.mixing import MixedFormat
from encoders.data.packing import PackedFormat
from encoders.data.prepare import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment, apply_settings, fingerprint_experiment, vary_experiment
from encoders.families.electra import ElectraEmbeddings
from encoders.model.config import EncoderConfig
from encoders.model.layers import CausalSelfAttention
from encoders.objectives.causal_lm import CausalLM
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.text.tokenization import TokenizerSpec
from encoders.training.metric_log import Intervals
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.sharding import Mesh
from encoders.utils.overrides import ExperimentError, from_json_value, to_json_value

BASE = Experiment(
    name="tiny",
    model=EncoderConfig(
        vocab_size=50,
        hidden_size=8,
        num_layers=3,
        num_heads=2,
        intermediate_size=12,
        embedding_size=4,
        max_positions=64,
    ),
    objective=MaskedLM(Masking(), NextSentencePrediction()),
    data=PretrainingData(corpus=("text.txt",), tokenizer=TokenizerSpec(vocab_size=50)),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=10),
    phases=(
        Phase(until_step=80, seq_length=32, batch_size=8, format=SegmentPairs()),
        Phase(until_step=100, seq_length=64, batch_size=4, format=SegmentPairs()),
    ),
)
SWAPPED = tuple(replace(phase, format=SegmentPairs("swapped", short_seq_prob=0.0)) for phase in BASE.phases)
FULL = tuple(replace(phase, format=FullSentences(within_document=True)) for phase in BASE.phases)
TWO_STAGE = ReplacedTokenDetection(generator_width=1.0, tie="none", generator_training="two_stage")
MIXED = (replace(BASE.phases[0], format=PackedFormat(MixedFormat(SegmentPairs(), (1.0, 0.5)))),)
EXPERIMENTS = [
    BASE,
    replace(
        BASE,
        objective=MaskedLM(Masking(dupe_factor=40, unit="word", max_ngram=3), SentenceOrderPrediction()),
        phases=SWAPPED,
    ),
    replace(BASE, objective=MaskedLM(Masking(dupe_factor=None)), phases=FULL, seed=7, grad_accum_steps=2),
    replace(
        BASE,
        name="electra",
        model=replace(
            BASE.model, embeddings=ElectraEmbeddings, init_std=128**-0.5, shared_parts=("attention",), num_groups=2
        ),
        objective=ReplacedTokenDetection(generator_width=1 / 3, tie="none"),
        phases=(Phase(until_step=9, seq_length=64, batch_size=4, format=ElectraPairs()),),
        optimizer=Lamb(warmup_steps=2, clip_norm=None, no_decay=()),
        data=PretrainingData(
            tokenizer=TokenizerSpec(kind="bpe", path="~/gpt2"), heldout_fraction=0.1, store_dir="elsewhere"
        ),
        mesh=Mesh(data=2, model=4),
        intervals=Intervals(log_every=3),
    ),
    replace(
        BASE, phases=MIXED, data=replace(BASE.data, corpus=("a.txt", "b.jsonl"), filters=CorpusFilters("documents"))
    ),
    replace(BASE, objective=CausalLM(), model=replace(BASE.model, attention=CausalSelfAttention)),
    replace(BASE, objective=ReplaceMLM(generator_width=1 / 2, loss_over="chosen")),
]


def fingerprints(*experiments):
    return {fingerprint_experiment(experiment, "store") for experiment in experiments}


# Construction


def test_an_experiment_is_a_value():
    again = from_json_value(to_json_value(BASE))
    assert again == BASE and hash(again) == hash(BASE) and again is not BASE
    assert replace(BASE, seed=1) != BASE
    with pytest.raises(FrozenInstanceError):
        BASE.seed = 1


def test_an_experiment_ends_with_its_last_phase():
    assert BASE.num_steps == 100


@pytest.mark.parametrize(
    "phases, objective, message",
    [
        (FULL, BASE.objective, "needs next_sentence, and the format FullSentences provides no label"),
        (SWAPPED, BASE.objective, "needs next_sentence, and the format SegmentPairs provides sentence_order"),
        ((BASE.phases[0], FULL[1]), BASE.objective, "needs next_sentence"),
        (
            BASE.phases,
            MaskedLM(Masking(), SentenceOrderPrediction()),
            "needs sentence_order, .* provides next_sentence",
        ),
    ],
)
def test_a_format_without_the_label_that_an_objective_needs_is_refused(phases, objective, message):
    with pytest.raises(ExperimentError, match=f"tiny: the objective {message}"):
        replace(BASE, phases=phases, objective=objective)


def test_an_objective_may_leave_a_label_unread():
    assert replace(BASE, objective=MaskedLM()).phases == BASE.phases


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"name": "a/b"}, "name=.a/b. is no name for a folder"),
        ({"name": ".."}, "is no name for a folder"),
        ({"name": ""}, "is no name for a folder"),
        ({"phases": ()}, "phases is empty"),
        ({"phases": BASE.phases[::-1]}, r"phases.until_step=\[100, 80\] must rise"),
        ({"phases": BASE.phases[:1] * 2}, r"phases.until_step=\[80, 80\] must rise"),
        ({"seed": -1}, "seed=-1 must be from 0 to 2147483647"),
        ({"seed": 2**31}, "seed=2147483648 must be"),
        ({"grad_accum_steps": 0}, "grad_accum_steps=0 must be at least 1"),
        ({"grad_accum_steps": 3}, "phases.batch_size=8 is not a multiple of grad_accum_steps=3"),
        (
            {"model": replace(BASE.model, vocab_size=51)},
            "data.tokenizer.vocab_size=50 and model.vocab_size=51 differ; set both",
        ),
        (
            {"model": replace(BASE.model, max_positions=63)},
            "phases.seq_length=64 is longer than model.max_positions=63",
        ),
        (
            {"optimizer": AdamW(learning_rate=1e-3, warmup_steps=101)},
            "optimizer.warmup_steps=101 is more than the 100 steps",
        ),
        ({"objective": CausalLM()}, "it needs model.attention=CausalSelfAttention, not SelfAttention"),
        (
            {"objective": ReplacedTokenDetection(generator_width=0.01)},
            "objective.generator_width=0.01 and objective.generator_depth=1 make no generator",
        ),
        (
            {"objective": TWO_STAGE, "model": replace(BASE.model, num_heads=1, intermediate_size=32)},
            "the objective keeps generator and tokens as init_from has them, and init_from is None",
        ),
        (
            {"phases": MIXED},
            r"phases.format.corpus_weights=\(1.0, 0.5\) are not one for each of the 1 items of data.corpus",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(wrong, message):
    with pytest.raises(ExperimentError, match=message):
        replace(BASE, **wrong)


def test_the_size_of_a_vocabulary_that_is_read_from_a_file_is_not_known_yet():
    data = PretrainingData(tokenizer=TokenizerSpec(path="vocab.txt"))
    assert replace(BASE, data=data).data.tokenizer.vocab_size != BASE.model.vocab_size


# Overrides


def leaf(experiment, path):
    value = experiment
    for name in path.split("."):
        value = value[int(name)] if isinstance(value, tuple) else getattr(value, name)
    return value


@pytest.mark.parametrize(
    "setting, expected",
    [
        ("name=other", "other"),
        ("seed=1e3", 1000),
        ("model.num_layers=4", 4),
        ("model.intermediate_size=1_000", 1000),
        ("model.hidden_dropout=0", 0.0),
        ("model.hidden_dropout=0.25", 0.25),
        ("model.layer_norm_eps=1e-5", 1e-5),
        ("model.truncated_init=False", False),
        ("model.truncated_init=true", True),
        ("model.shared_parts=attention,feed_forward", ("attention", "feed_forward")),
        ("model.shared_parts=('attention',)".replace("'", ""), ("attention",)),
        ("model.shared_parts=[feed_forward]", ("feed_forward",)),
        ("model.shared_parts=()", ()),
        ("model.shared_parts=", ()),
        ("model.activation=gelu_tanh", "gelu_tanh"),
        ("objective.masking.dupe_factor=None", None),
        ("objective.masking.dupe_factor=40", 40),
        ("objective.masking.split=0.9,0.1,0", (0.9, 0.1, 0.0)),
        ("objective.masking.max_predictions=20", 20),
        ("objective.sentence_task=None", None),
        ("objective.sentence_task=NextSentencePrediction", NextSentencePrediction()),
        ("objective=MaskedLM", MaskedLM()),
        ("objective=ReplacedTokenDetection", ReplacedTokenDetection()),
        ("objective=ReplaceMLM", ReplaceMLM()),
        ("optimizer.betas=(0.9, 0.98)", (0.9, 0.98)),
        ("optimizer.clip_norm=none", None),
        ("optimizer.clip_norm=2", 2.0),
        ("optimizer.no_decay=", ()),
        ("data.tokenizer.path=a = b.txt", "a = b.txt"),
        ("data.corpus=a.txt, b.txt", ("a.txt", "b.txt")),
        ("data.corpus=[ab].txt", ("[ab].txt",)),
        ("data.corpus=wiki-[0-9]", ("wiki-[0-9]",)),
        ("data.sentence_splitting=lines", "lines"),
        ("phases.0.batch_size=2", 2),
        ("phases.1.format.short_seq_prob=1", 1.0),
        ("mesh.data=2", 2),
        ("mesh=Mesh", Mesh()),
        ("intervals.log_every=5", 5),
        (" model.num_layers = 4 ", 4),
    ],
)
def test_a_setting_is_read_by_the_declared_type_of_its_field(setting, expected):
    value = leaf(apply_settings(BASE, [setting]), setting.partition("=")[0].strip())
    assert value == expected and type(value) is type(expected)
    if isinstance(expected, tuple):
        assert [type(part) for part in value] == [type(part) for part in expected]


def test_a_number_that_was_whole_may_become_a_fraction():
    none = apply_settings(BASE, ["model.hidden_dropout=0"])
    assert apply_settings(none, ["model.hidden_dropout=0.1"]) == BASE


def test_a_star_sets_all_phases_and_a_number_one():
    halved = apply_settings(BASE, ["phases.*.batch_size=2"])
    assert [phase.batch_size for phase in halved.phases] == [2, 2]
    assert [phase.batch_size for phase in apply_settings(BASE, ["phases.1.batch_size=2"]).phases] == [8, 2]
    assert [
        phase.batch_size for phase in apply_settings(BASE, ["phases.*.batch_size=2", "phases.0.batch_size=6"]).phases
    ] == [6, 2]


def test_settings_apply_at_once():
    both = apply_settings(BASE, ["model.vocab_size=60", "data.tokenizer.vocab_size=60"])
    assert both.model.vocab_size == both.data.tokenizer.vocab_size == 60
    sop = apply_settings(BASE, ["objective.sentence_task=SentenceOrderPrediction", "phases.*.format.negatives=swapped"])
    assert sop.objective == MaskedLM(Masking(), SentenceOrderPrediction())
    lamb = apply_settings(BASE, ["phases.1.until_step=5000", "optimizer=Lamb"])
    assert lamb.optimizer == Lamb()
    assert apply_settings(BASE, []) == BASE


@pytest.mark.parametrize(
    "setting, message",
    [
        (
            "modle.layers=4",
            "an experiment has no 'modle' .did you mean 'model'.*; it has data, early_stopping, grad_accum_steps",
        ),
        ("model.layer=4", "model has no 'layer' .did you mean 'num_layers'."),
        ("phases.0.bach_size=4", "phases.0 has no 'bach_size' .did you mean 'batch_size'."),
        ("=4", "an experiment has no ''; it has data, early_stopping, grad_accum_steps"),
        ("model.num_layers", "'model.num_layers' must be of the form a.b=value"),
        ("model.num_layers=four", "model.num_layers='four' is not a whole number"),
        ("model.num_layers=2.5", "model.num_layers='2.5' is not a whole number"),
        ("model.num_layers=nan", "model.num_layers='nan' is not a whole number"),
        ("model.num_layers=inf", "model.num_layers='inf' is not a whole number"),
        ("model.num_layers=", "model.num_layers='' is not a whole number"),
        ("model.num_layers=0", "--set model: model.num_layers=0 must be at least 1"),
        ("model.hidden_dropout=high", "model.hidden_dropout='high' is not a number"),
        ("model.hidden_dropout=1", "model.hidden_dropout=1.0 must be at least 0 and below 1"),
        ("model.init_std=nan", "model.init_std='nan' is not a number"),
        ("model.layer_norm_eps=inf", "model.layer_norm_eps='inf' is not a number"),
        ("model.truncated_init=1", "model.truncated_init='1' is not one of true, false"),
        ("model.activation=relu", "model.activation='relu' is not one of gelu, gelu_tanh"),
        ("model.hidden_size=9", "model.hidden_size=9 is not a multiple of model.num_heads=2"),
        ("model.shared_parts=attention,atend", "model.shared_parts=.* may hold 'attention' and 'feed_forward'"),
        ("model.shared_parts.*=attention", "model.shared_parts"),
        (
            "model.embeddings=ElectraEmbeddings",
            "model.embeddings cannot be set on the command line; write an experiment file",
        ),
        ("model.embeddings.name=x", "model.embeddings is .* and has no fields to set"),
        ("model.num_layers.x=4", "model.num_layers is 3 and has no fields to set"),
        ("model=EncoderConfig", "model='EncoderConfig' .*set its fields, such as model.vocab_size="),
        ("model=big", "model='big' is not EncoderConfig; set its fields, such as model.vocab_size="),
        (
            "objective.sentence_task=Order",
            "objective.sentence_task='Order' is not one of NextSentencePrediction, SentenceOrderPrediction",
        ),
        ("objective.sentence_task=SentenceOrderPrediction", "the objective needs sentence_order"),
        ("objective.masking.dupe_factor=some", "objective.masking.dupe_factor='some' is not a whole number"),
        ("objective.masking.split=0.8,0.2", "objective.masking.split='0.8,0.2' must have 3 values"),
        ("objective.masking.mask_rate=2", "--set objective.masking: mask_rate=2.0 must be above 0 and below 1"),
        ("optimizer=Adam", "optimizer='Adam' is not one of AdamW, Lamb"),
        ("optimizer=AdamW", "optimizer='AdamW' .*set its fields, such as optimizer.learning_rate="),
        ("optimizer=Lamb", "optimizer.warmup_steps=3125 is more than the 100 steps"),
        ("phases=2", "phases"),
        ("phases.0=Phase", "phases.0"),
        ("phases.*=4", "phases"),
        ("phases.2.batch_size=4", r"phases has no '2'; it has 0, 1 and \* for all"),
        ("phases.batch_size=4", r"phases has no 'batch_size'; it has 0, 1 and \* for all"),
        ("phases.*.seq_length=65", "phases.seq_length=65 is longer than model.max_positions=64"),
        ("phases.*.format=FullSentences", "phases.0.format cannot be set on the command line; write an experiment"),
        ("data.corpus=", "data.corpus is empty; it takes 'embedded', 'tfds:NAME', or files"),
        ("data.heldout_fraction=0", "data.heldout_fraction=0.0 must be above 0 and below 1"),
        ("data.sentence_splitting=words", "data.sentence_splitting='words' is not one of split, lines"),
        ("mesh.data=0", "mesh.data=0 must be at least 1"),
        ("intervals.log_every=0", "intervals.log_every=0 must be at least 1"),
        ("name=a/b", "name=.a/b. is no name for a folder"),
    ],
)
def test_a_setting_that_cannot_be_is_answered_with_what_can(setting, message):
    with pytest.raises(ExperimentError, match=message):
        apply_settings(BASE, [setting])


@pytest.mark.parametrize(
    "pair",
    [["optimizer=Lamb", "optimizer.learning_rate=1"], ["optimizer.learning_rate=1", "optimizer=Lamb"]],
    ids=["whole first", "part first"],
)
def test_a_part_is_set_as_a_whole_or_by_its_fields(pair):
    with pytest.raises(ExperimentError, match="optimizer is set as a whole and in part"):
        apply_settings(BASE, ["phases.1.until_step=5000", *pair])


def paths_of(value, path=""):
    """Every path in an experiment, those of its parts included."""
    inner = {}
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, tuple):
        inner = {str(i): item for i, item in enumerate(value)} | {"*": value[0] if value else None}
    below = [p for name, item in inner.items() for p in paths_of(item, f"{path}.{name}" if path else name)]
    return [path] * bool(path) + below


PATHS = sorted({path for experiment in EXPERIMENTS for path in paths_of(experiment)})
CLASSES = (
    "EncoderConfig MaskedLM ReplacedTokenDetection Masking NextSentencePrediction AdamW Lamb Phase SegmentPairs Mesh"
)
CLASSES += " Intervals PretrainingData TokenizerSpec"
VALUES = [*CLASSES.split(), *"none true 0 1 -1 2 0.5 1e3 1e999 nan () 1,2 0.9,0.9".split(), ""]
some_path = st.one_of(
    st.sampled_from(PATHS),
    st.builds(".".join, st.tuples(st.sampled_from(PATHS), st.sampled_from(["0", "*", "x", "", "learning_rate"]))),
    st.text(max_size=12),
)
some_value = st.one_of(st.sampled_from(VALUES), st.text(max_size=8), st.floats().map(str), st.integers().map(str))


@given(
    st.sampled_from(EXPERIMENTS),
    st.lists(st.builds(lambda path, value: f"{path}={value}", some_path, some_value), min_size=1, max_size=2),
)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_any_setting_works_or_is_an_experiment_error(experiment, given):
    try:
        changed = apply_settings(experiment, given)
    except ExperimentError as error:
        assert str(error)
    else:
        assert from_json_value(json.loads(json.dumps(to_json_value(changed)))) == changed


# Variations


def test_a_variation_has_every_combination_named_after_what_differs():
    members = vary_experiment(BASE, {"model.num_layers": [2, 4], "model.hidden_dropout": [0.0, 0.1]})
    assert [member.name for member in members] == [
        "tiny-num_layers2-hidden_dropout0.0",
        "tiny-num_layers2-hidden_dropout0.1",
        "tiny-num_layers4-hidden_dropout0.0",
        "tiny-num_layers4-hidden_dropout0.1",
    ]
    assert [(m.model.num_layers, m.model.hidden_dropout) for m in members] == [(2, 0.0), (2, 0.1), (4, 0.0), (4, 0.1)]
    assert all(replace(m, name="tiny", model=BASE.model) == BASE for m in members)


def test_values_may_have_labels():
    members = vary_experiment(
        BASE, {"model.shared_parts": {"all": ("attention", "feed_forward"), "none": ()}, "seed": [0, 1]}
    )
    assert [m.name for m in members] == ["tiny-all-seed0", "tiny-all-seed1", "tiny-none-seed0", "tiny-none-seed1"]
    assert [m.model.shared_parts for m in members] == [("attention", "feed_forward")] * 2 + [()] * 2


@pytest.mark.parametrize(
    "path, values",
    [
        ("model.shared_parts", [("attention", "feed_forward"), ("attention",), ("feed_forward",), ()]),
        ("objective.masking.dupe_factor", [1, 10, None]),
        ("objective.sentence_task", [None, NextSentencePrediction()]),
        ("optimizer", [AdamW(learning_rate=1e-3, warmup_steps=10), Lamb(warmup_steps=10)]),
        ("model.embeddings", [BASE.model.embeddings, ElectraEmbeddings]),
        ("model.activation", ["gelu", "gelu_tanh"]),
    ],
)
def test_values_of_every_kind_give_members_with_names_of_their_own(path, values):
    members = vary_experiment(BASE, {path: values})
    assert [leaf(member, path.replace("*", "0")) for member in members] == values
    assert len({member.name for member in members}) == len(values)


def test_a_variation_of_nothing_is_the_base():
    assert vary_experiment(BASE, {}) == [BASE]


def test_a_variation_of_what_is_not_there_is_an_error():
    with pytest.raises(ExperimentError, match="did you mean 'num_layers'"):
        vary_experiment(BASE, {"model.layer": [1, 2]})
