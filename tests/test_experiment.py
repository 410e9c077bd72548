import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import encoders
from encoders.data.filters import CorpusFilters
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.mixing import MixedFormat
from encoders.data.packing import PackedFormat
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment, apply_settings, fingerprint_experiment
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
from encoders.utils.serialization import ExperimentError, from_json_value, to_json_value

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
        (FULL, BASE.objective, "next_sentence.*FullSentences"),
        (SWAPPED, BASE.objective, "next_sentence.*SegmentPairs.*sentence_order"),
        ((BASE.phases[0], FULL[1]), BASE.objective, "next_sentence"),
        (BASE.phases, MaskedLM(Masking(), SentenceOrderPrediction()), "sentence_order.*next_sentence"),
    ],
)
def test_a_format_without_the_label_that_an_objective_needs_is_refused(phases, objective, message):
    with pytest.raises(ExperimentError, match=f"tiny: .*{message}"):
        replace(BASE, phases=phases, objective=objective)


def test_an_objective_may_leave_a_label_unread():
    assert replace(BASE, objective=MaskedLM()).phases == BASE.phases


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"name": "a/b"}, "name='a/b'"),
        ({"name": ".."}, "name='..'"),
        ({"name": ""}, "name=''"),
        ({"phases": ()}, "^tiny: phases "),
        ({"phases": BASE.phases[::-1]}, r"phases.until_step=\[100, 80\]"),
        ({"phases": BASE.phases[:1] * 2}, r"phases.until_step=\[80, 80\]"),
        ({"seed": -1}, "seed=-1 .*2147483647"),
        ({"seed": 2**31}, "seed=2147483648 .*2147483647"),
        ({"grad_accum_steps": 0}, "grad_accum_steps=0 .*1"),
        ({"grad_accum_steps": 3}, "phases.batch_size=8 .*grad_accum_steps=3"),
        ({"model": replace(BASE.model, vocab_size=51)}, "data.tokenizer.vocab_size=50 .*model.vocab_size=51"),
        ({"model": replace(BASE.model, max_positions=63)}, "phases.seq_length=64 .*model.max_positions=63"),
        (
            {"optimizer": AdamW(learning_rate=1e-3, warmup_steps=101)},
            "optimizer.warmup_steps=101 .*100 steps.*phases.until_step",
        ),
        ({"objective": CausalLM()}, "model.attention=SelfAttention .*model.attention=CausalSelfAttention"),
        (
            {"objective": ReplacedTokenDetection(generator_width=0.01)},
            "objective.generator_width=0.01 .*objective.generator_depth=1",
        ),
        (
            {"objective": TWO_STAGE, "model": replace(BASE.model, num_heads=1, intermediate_size=32)},
            "generator and tokens.*init_from",
        ),
        ({"init_by": "tiling"}, "init_by=tiling .*init_from.*None"),
        ({"phases": MIXED}, r"phases.format.corpus_weights=\(1.0, 0.5\) .*1 items of data.corpus"),
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
        ("modle.layers=4", "'modle' .*'model'.*data, early_stopping, grad_accum_steps"),
        ("model.layer=4", "'layer' .*model .*'num_layers'"),
        ("phases.0.bach_size=4", "'bach_size' .*phases.0 .*'batch_size'"),
        ("=4", "''.*data, early_stopping, grad_accum_steps"),
        ("model.num_layers", "'model.num_layers' .*a.b=value"),
        ("model.num_layers=four", "model.num_layers='four'"),
        ("model.num_layers=2.5", "model.num_layers='2.5'"),
        ("model.num_layers=nan", "model.num_layers='nan'"),
        ("model.num_layers=inf", "model.num_layers='inf'"),
        ("model.num_layers=", "model.num_layers=''"),
        ("model.num_layers=0", "model.num_layers=0 .*1"),
        ("model.hidden_dropout=high", "model.hidden_dropout='high'"),
        ("model.hidden_dropout=1", "model.hidden_dropout=1.0 .*0.*1"),
        ("model.init_std=nan", "model.init_std='nan'"),
        ("model.layer_norm_eps=inf", "model.layer_norm_eps='inf'"),
        ("model.truncated_init=1", "model.truncated_init='1' .*true, false"),
        ("model.activation=relu", "model.activation='relu' .*gelu, gelu_tanh"),
        ("model.hidden_size=9", "model.hidden_size=9 .*model.num_heads=2"),
        ("model.shared_parts=attention,atend", "model.shared_parts=.*'atend'.*'attention' .*'feed_forward'"),
        ("model.shared_parts.*=attention", "model.shared_parts"),
        ("model.embeddings=ElectraEmbeddings", "model.embeddings .*experiment file"),
        ("model.embeddings.name=x", "model.embeddings=.*Embeddings"),
        ("model.num_layers.x=4", "model.num_layers=3"),
        ("model=EncoderConfig", "model='EncoderConfig' .*model.vocab_size="),
        ("model=big", "model='big' .*EncoderConfig.*model.vocab_size="),
        (
            "objective.sentence_task=Order",
            "objective.sentence_task='Order' .*NextSentencePrediction, SentenceOrderPrediction",
        ),
        ("objective.sentence_task=SentenceOrderPrediction", "sentence_order"),
        ("objective.masking.dupe_factor=some", "objective.masking.dupe_factor='some'"),
        ("objective.masking.split=0.8,0.2", "objective.masking.split='0.8,0.2' .*3"),
        ("objective.masking.mask_rate=2", "objective.masking.*mask_rate=2.0 .*0.*1"),
        ("optimizer=Adam", "optimizer='Adam' .*AdamW, Lamb"),
        ("optimizer=AdamW", "optimizer='AdamW' .*optimizer.learning_rate="),
        ("optimizer=Lamb", "optimizer.warmup_steps=3125 .*100 steps"),
        ("phases=2", "phases"),
        ("phases.0=Phase", "phases.0"),
        ("phases.*=4", "phases"),
        ("phases.2.batch_size=4", r"'2' .*phases.*0, 1 and \*"),
        ("phases.batch_size=4", r"'batch_size' .*phases.*0, 1 and \*"),
        ("phases.*.seq_length=65", "phases.seq_length=65 .*model.max_positions=64"),
        ("phases.*.format=FullSentences", "phases.0.format .*experiment file"),
        ("data.corpus=", "data.corpus .*'embedded'.*tfds:NAME.*files"),
        ("data.heldout_fraction=0", "data.heldout_fraction=0.0 .*0.*1"),
        ("data.sentence_splitting=words", "data.sentence_splitting='words' .*split, lines"),
        ("mesh.data=0", "mesh.data=0 .*1"),
        ("intervals.log_every=0", "intervals.log_every=0 .*1"),
        ("name=a/b", "name='a/b'"),
    ],
)
def test_a_bad_setting_is_refused_with_what_is_accepted(setting, message):
    with pytest.raises(ExperimentError, match=message):
        apply_settings(BASE, [setting])


@pytest.mark.parametrize(
    "pair",
    [["optimizer=Lamb", "optimizer.learning_rate=1"], ["optimizer.learning_rate=1", "optimizer=Lamb"]],
    ids=["whole first", "part first"],
)
def test_a_part_is_set_as_a_whole_or_by_its_fields(pair):
    with pytest.raises(ExperimentError, match="optimizer"):
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


def test_the_embedding_follows_the_hidden_size_unless_it_is_set():
    sizes = dict(vocab_size=30, num_layers=1, num_heads=2, intermediate_size=8)
    assert EncoderConfig(**sizes, hidden_size=16) == EncoderConfig(**sizes, hidden_size=16, embedding_size=16)
    plain, factorised = encoders.load_experiments("quickstart", only=["*-bert", "*-albert"]).values()
    for changes, size in (("model.hidden_size=64", 64), ("model.hidden_size=64 model.embedding_size=32", 32)):
        assert apply_settings(plain, changes.split()).model.embedding_size == size
    assert apply_settings(factorised, ["model.hidden_size=256"]).model.embedding_size == factorised.model.embedding_size
