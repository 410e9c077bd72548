import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.data.filters import Filters
from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.mixing import Mixed
from encoders.data.packing import Packed
from encoders.data.prepare import Data
from encoders.data.stream import Phase
from encoders.experiment import Experiment, fingerprint, override, vary
from encoders.families.electra import ElectraEmbeddings
from encoders.model.config import Model
from encoders.model.layers import CausalAttend
from encoders.objectives.causal_lm import NextToken
from encoders.objectives.masked_lm import Joint
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.restored_tokens import RestoredTokens
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder
from encoders.text.tokenization import Vocabulary
from encoders.training.metric_log import Cadence
from encoders.training.optimizer import AdamW, Lamb
from encoders.training.sharding import Mesh
from encoders.utils.overrides import ExperimentError, from_json, to_json

BASE = Experiment(
    name="tiny",
    model=Model(vocab=50, hidden=8, layers=3, heads=2, intermediate=12, embedding=4, positions=64),
    objective=Joint(Masking(), NextSentence()),
    data=Data(corpus=("text.txt",), vocabulary=Vocabulary(size=50)),
    optimizer=AdamW(rate=1e-3, warmup=10),
    phases=(
        Phase(until=80, length=32, batch=8, format=SegmentPairs()),
        Phase(until=100, length=64, batch=4, format=SegmentPairs()),
    ),
)
SWAPPED = tuple(replace(phase, format=SegmentPairs("swapped", short=0.0)) for phase in BASE.phases)
FULL = tuple(replace(phase, format=FullSentences(within=True)) for phase in BASE.phases)
TWO_STAGE = ReplacedTokens(width=1.0, tie="none", training="two_stage")
MIXED = (replace(BASE.phases[0], format=Packed(Mixed(SegmentPairs(), (1.0, 0.5)))),)
EXPERIMENTS = [
    BASE,
    replace(BASE, objective=Joint(Masking(copies=40, unit="word", ngrams=3), SentenceOrder()), phases=SWAPPED),
    replace(BASE, objective=Joint(Masking(copies=None)), phases=FULL, seed=7, accumulate=2),
    replace(
        BASE,
        name="electra",
        model=replace(BASE.model, embed=ElectraEmbeddings, deviation=128**-0.5, share=("attend",), groups=2),
        objective=ReplacedTokens(width=1 / 3, tie="none"),
        phases=(Phase(until=9, length=64, batch=4, format=ElectraPairs()),),
        optimizer=Lamb(warmup=2, clip=None, exclude=()),
        data=Data(vocabulary=Vocabulary(kind="bpe", path="~/gpt2"), heldout=0.1, folder="elsewhere"),
        mesh=Mesh(data=2, model=4),
        cadence=Cadence(log=3),
    ),
    replace(BASE, phases=MIXED, data=replace(BASE.data, corpus=("a.txt", "b.jsonl"), filters=Filters("documents"))),
    replace(BASE, objective=NextToken(), model=replace(BASE.model, attend=CausalAttend)),
    replace(BASE, objective=RestoredTokens(width=1 / 2, over="chosen")),
]


def fingerprints(*experiments):
    return {fingerprint(experiment, "store") for experiment in experiments}


# Construction


def test_an_experiment_is_a_value():
    again = from_json(to_json(BASE))
    assert again == BASE and hash(again) == hash(BASE) and again is not BASE
    assert replace(BASE, seed=1) != BASE
    with pytest.raises(FrozenInstanceError):
        BASE.seed = 1


def test_an_experiment_ends_with_its_last_phase():
    assert BASE.steps == 100


@pytest.mark.parametrize(
    "phases, objective, message",
    [
        (FULL, BASE.objective, "needs next_sentence, and the format FullSentences provides no label"),
        (SWAPPED, BASE.objective, "needs next_sentence, and the format SegmentPairs provides sentence_order"),
        ((BASE.phases[0], FULL[1]), BASE.objective, "needs next_sentence"),
        (BASE.phases, Joint(Masking(), SentenceOrder()), "needs sentence_order, .* provides next_sentence"),
    ],
)
def test_a_format_without_the_label_that_an_objective_needs_is_refused(phases, objective, message):
    with pytest.raises(ExperimentError, match=f"tiny: the objective {message}"):
        replace(BASE, phases=phases, objective=objective)


def test_an_objective_may_leave_a_label_unread():
    assert replace(BASE, objective=Joint()).phases == BASE.phases


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"name": "a/b"}, "name=.a/b. is no name for a folder"),
        ({"name": ".."}, "is no name for a folder"),
        ({"name": ""}, "is no name for a folder"),
        ({"phases": ()}, "phases is empty"),
        ({"phases": BASE.phases[::-1]}, r"phases.until=\[100, 80\] must rise"),
        ({"phases": BASE.phases[:1] * 2}, r"phases.until=\[80, 80\] must rise"),
        ({"seed": -1}, "seed=-1 must be from 0 to 2147483647"),
        ({"seed": 2**31}, "seed=2147483648 must be"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"accumulate": 3}, "phases.batch=8 is not a multiple of accumulate=3"),
        ({"model": replace(BASE.model, vocab=51)}, "data.vocabulary.size=50 and model.vocab=51 differ; set both"),
        ({"model": replace(BASE.model, positions=63)}, "phases.length=64 is longer than model.positions=63"),
        ({"optimizer": AdamW(rate=1e-3, warmup=101)}, "optimizer.warmup=101 is more than the 100 steps"),
        ({"objective": NextToken()}, "it needs model.attend=CausalAttend, not Attend"),
        ({"objective": ReplacedTokens(width=0.01)}, "objective.width=0.01 and objective.depth=1 make no generator"),
        (
            {"objective": TWO_STAGE, "model": replace(BASE.model, heads=1, intermediate=32)},
            "the objective keeps generator and tokens as start has them, and start is None",
        ),
        ({"phases": MIXED}, r"phases.format.weights=\(1.0, 0.5\) are not one for each of the 1 items of data.corpus"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(wrong, message):
    with pytest.raises(ExperimentError, match=message):
        replace(BASE, **wrong)


def test_the_size_of_a_vocabulary_that_is_read_from_a_file_is_not_known_yet():
    data = Data(vocabulary=Vocabulary(path="vocab.txt"))
    assert replace(BASE, data=data).data.vocabulary.size != BASE.model.vocab


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
        ("model.layers=4", 4),
        ("model.intermediate=1_000", 1000),
        ("model.dropout=0", 0.0),
        ("model.dropout=0.25", 0.25),
        ("model.norm_epsilon=1e-5", 1e-5),
        ("model.truncated=False", False),
        ("model.truncated=true", True),
        ("model.share=attend,transform", ("attend", "transform")),
        ("model.share=('attend',)".replace("'", ""), ("attend",)),
        ("model.share=[transform]", ("transform",)),
        ("model.share=()", ()),
        ("model.share=", ()),
        ("model.activation=gelu_tanh", "gelu_tanh"),
        ("objective.tokens.copies=None", None),
        ("objective.tokens.copies=40", 40),
        ("objective.tokens.split=0.9,0.1,0", (0.9, 0.1, 0.0)),
        ("objective.tokens.limit=20", 20),
        ("objective.sentences=None", None),
        ("objective.sentences=NextSentence", NextSentence()),
        ("objective=Joint", Joint()),
        ("objective=ReplacedTokens", ReplacedTokens()),
        ("objective=RestoredTokens", RestoredTokens()),
        ("optimizer.betas=(0.9, 0.98)", (0.9, 0.98)),
        ("optimizer.clip=none", None),
        ("optimizer.clip=2", 2.0),
        ("optimizer.exclude=", ()),
        ("data.vocabulary.path=a = b.txt", "a = b.txt"),
        ("data.corpus=a.txt, b.txt", ("a.txt", "b.txt")),
        ("data.corpus=[ab].txt", ("[ab].txt",)),
        ("data.corpus=wiki-[0-9]", ("wiki-[0-9]",)),
        ("data.sentences=lines", "lines"),
        ("phases.0.batch=2", 2),
        ("phases.1.format.short=1", 1.0),
        ("mesh.data=2", 2),
        ("mesh=Mesh", Mesh()),
        ("cadence.log=5", 5),
        (" model.layers = 4 ", 4),
    ],
)
def test_a_setting_is_read_by_the_declared_type_of_its_field(setting, expected):
    value = leaf(override(BASE, [setting]), setting.partition("=")[0].strip())
    assert value == expected and type(value) is type(expected)
    if isinstance(expected, tuple):
        assert [type(part) for part in value] == [type(part) for part in expected]


def test_a_number_that_was_whole_may_become_a_fraction():
    none = override(BASE, ["model.dropout=0"])
    assert override(none, ["model.dropout=0.1"]) == BASE


def test_a_star_sets_all_phases_and_a_number_one():
    halved = override(BASE, ["phases.*.batch=2"])
    assert [phase.batch for phase in halved.phases] == [2, 2]
    assert [phase.batch for phase in override(BASE, ["phases.1.batch=2"]).phases] == [8, 2]
    assert [phase.batch for phase in override(BASE, ["phases.*.batch=2", "phases.0.batch=6"]).phases] == [6, 2]


def test_settings_apply_at_once():
    both = override(BASE, ["model.vocab=60", "data.vocabulary.size=60"])
    assert both.model.vocab == both.data.vocabulary.size == 60
    sop = override(BASE, ["objective.sentences=SentenceOrder", "phases.*.format.second=swapped"])
    assert sop.objective == Joint(Masking(), SentenceOrder())
    lamb = override(BASE, ["phases.1.until=5000", "optimizer=Lamb"])
    assert lamb.optimizer == Lamb()
    assert override(BASE, []) == BASE


@pytest.mark.parametrize(
    "setting, message",
    [
        ("modle.layers=4", "an experiment has no 'modle' .did you mean 'model'.*; it has accumulate, cadence, data"),
        ("model.layer=4", "model has no 'layer' .did you mean 'layers'."),
        ("phases.0.bach=4", "phases.0 has no 'bach' .did you mean 'batch'."),
        ("=4", "an experiment has no ''; it has accumulate"),
        ("model.layers", "'model.layers' must be of the form a.b=value"),
        ("model.layers=four", "model.layers='four' is not a whole number"),
        ("model.layers=2.5", "model.layers='2.5' is not a whole number"),
        ("model.layers=nan", "model.layers='nan' is not a whole number"),
        ("model.layers=inf", "model.layers='inf' is not a whole number"),
        ("model.layers=", "model.layers='' is not a whole number"),
        ("model.layers=0", "--set model: model.layers=0 must be at least 1"),
        ("model.dropout=high", "model.dropout='high' is not a number"),
        ("model.dropout=1", "model.dropout=1.0 must be at least 0 and below 1"),
        ("model.deviation=nan", "model.deviation='nan' is not a number"),
        ("model.norm_epsilon=inf", "model.norm_epsilon='inf' is not a number"),
        ("model.truncated=1", "model.truncated='1' is not one of true, false"),
        ("model.activation=relu", "model.activation='relu' is not one of gelu, gelu_tanh"),
        ("model.hidden=9", "model.hidden=9 is not a multiple of model.heads=2"),
        ("model.share=attend,atend", "model.share=.* may hold 'attend' and 'transform'"),
        ("model.share.*=attend", "model.share"),
        ("model.embed=ElectraEmbeddings", "model.embed cannot be set on the command line; write an experiment file"),
        ("model.embed.name=x", "model.embed is .* and has no fields to set"),
        ("model.layers.x=4", "model.layers is 3 and has no fields to set"),
        ("model=Model", "model='Model' .*set its fields, such as model.vocab="),
        ("model=big", "model='big' is not Model; set its fields, such as model.vocab="),
        ("objective.sentences=Order", "objective.sentences='Order' is not one of NextSentence, SentenceOrder"),
        ("objective.sentences=SentenceOrder", "the objective needs sentence_order"),
        ("objective.tokens.copies=some", "objective.tokens.copies='some' is not a whole number"),
        ("objective.tokens.split=0.8,0.2", "objective.tokens.split='0.8,0.2' must have 3 values"),
        ("objective.tokens.rate=2", "--set objective.tokens: rate=2.0 must be above 0 and below 1"),
        ("optimizer=Adam", "optimizer='Adam' is not one of AdamW, Lamb"),
        ("optimizer=AdamW", "optimizer='AdamW' .*set its fields, such as optimizer.rate="),
        ("optimizer=Lamb", "optimizer.warmup=3125 is more than the 100 steps"),
        ("phases=2", "phases"),
        ("phases.0=Phase", "phases.0"),
        ("phases.*=4", "phases"),
        ("phases.2.batch=4", r"phases has no '2'; it has 0, 1 and \* for all"),
        ("phases.batch=4", r"phases has no 'batch'; it has 0, 1 and \* for all"),
        ("phases.*.length=65", "phases.length=65 is longer than model.positions=64"),
        ("phases.*.format=FullSentences", "phases.0.format cannot be set on the command line; write an experiment"),
        ("data.corpus=", "data.corpus is empty; it takes 'embedded', 'tfds:NAME', or files"),
        ("data.heldout=0", "data.heldout=0.0 must be above 0 and below 1"),
        ("data.sentences=words", "data.sentences='words' is not one of split, lines"),
        ("mesh.data=0", "mesh.data=0 must be at least 1"),
        ("cadence.log=0", "cadence.log=0 must be at least 1"),
        ("name=a/b", "name=.a/b. is no name for a folder"),
    ],
)
def test_a_setting_that_cannot_be_is_answered_with_what_can(setting, message):
    with pytest.raises(ExperimentError, match=message):
        override(BASE, [setting])


@pytest.mark.parametrize(
    "pair",
    [["optimizer=Lamb", "optimizer.rate=1"], ["optimizer.rate=1", "optimizer=Lamb"]],
    ids=["whole first", "part first"],
)
def test_a_part_is_set_as_a_whole_or_by_its_fields(pair):
    with pytest.raises(ExperimentError, match="optimizer is set as a whole and in part"):
        override(BASE, ["phases.1.until=5000", *pair])


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
CLASSES = "Model Joint ReplacedTokens Masking NextSentence AdamW Lamb Phase SegmentPairs Mesh Cadence Data Vocabulary"
VALUES = [*CLASSES.split(), *"none true 0 1 -1 2 0.5 1e3 1e999 nan () 1,2 0.9,0.9".split(), ""]
some_path = st.one_of(
    st.sampled_from(PATHS),
    st.builds(".".join, st.tuples(st.sampled_from(PATHS), st.sampled_from(["0", "*", "x", "", "rate"]))),
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
        changed = override(experiment, given)
    except ExperimentError as error:
        assert str(error)
    else:
        assert from_json(json.loads(json.dumps(to_json(changed)))) == changed


# Variations


def test_a_variation_has_every_combination_named_after_what_differs():
    members = vary(BASE, {"model.layers": [2, 4], "model.dropout": [0.0, 0.1]})
    assert [member.name for member in members] == [
        "tiny-layers2-dropout0.0",
        "tiny-layers2-dropout0.1",
        "tiny-layers4-dropout0.0",
        "tiny-layers4-dropout0.1",
    ]
    assert [(m.model.layers, m.model.dropout) for m in members] == [(2, 0.0), (2, 0.1), (4, 0.0), (4, 0.1)]
    assert all(replace(m, name="tiny", model=BASE.model) == BASE for m in members)


def test_values_may_have_labels():
    members = vary(BASE, {"model.share": {"all": ("attend", "transform"), "none": ()}, "seed": [0, 1]})
    assert [m.name for m in members] == ["tiny-all-seed0", "tiny-all-seed1", "tiny-none-seed0", "tiny-none-seed1"]
    assert [m.model.share for m in members] == [("attend", "transform")] * 2 + [()] * 2


@pytest.mark.parametrize(
    "path, values",
    [
        ("model.share", [("attend", "transform"), ("attend",), ("transform",), ()]),
        ("objective.tokens.copies", [1, 10, None]),
        ("objective.sentences", [None, NextSentence()]),
        ("optimizer", [AdamW(rate=1e-3, warmup=10), Lamb(warmup=10)]),
        ("model.embed", [BASE.model.embed, ElectraEmbeddings]),
        ("model.activation", ["gelu", "gelu_tanh"]),
    ],
)
def test_values_of_every_kind_give_members_with_names_of_their_own(path, values):
    members = vary(BASE, {path: values})
    assert [leaf(member, path.replace("*", "0")) for member in members] == values
    assert len({member.name for member in members}) == len(values)


def test_a_variation_of_nothing_is_the_base():
    assert vary(BASE, {}) == [BASE]


def test_a_variation_of_what_is_not_there_is_an_error():
    with pytest.raises(ExperimentError, match="did you mean 'layers'"):
        vary(BASE, {"model.layer": [1, 2]})
