"""An experiment outside of Python: as JSON, as a fingerprint, and in words."""

import json
import sys
from dataclasses import dataclass, replace

import pytest

from encoders.data.formats import FullSentences
from encoders.experiment import describe, differences, fingerprint, override
from encoders.families.electra import ElectraEmbeddings
from encoders.objectives.masked_lm import Joint
from encoders.training.optimizer import AdamW, Lamb
from encoders.utils.overrides import ExperimentError, essence, flat, from_json, to_json
from tests.test_experiment import BASE, EXPERIMENTS, FULL, fingerprints

# JSON


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_reads_back_equal_from_json(experiment):
    again = from_json(json.loads(json.dumps(to_json(experiment))))
    assert again == experiment and describe(again) == describe(experiment)
    assert fingerprints(again) == fingerprints(experiment)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "encoders",
        "encoders.utils.overrides",
        "encoders.utils.overrides.importlib",
        "encoders.utils.overrides.find_class",
        "encoders.utils.overrides.Any",
        "encoders.experiment.Data",  # it is at home in encoders.data.prepare
        "encoders.experiment.Nothing",
        "encoders.nowhere.Model",
        "encoders.utils.overrides.importlib.os.system",
        "encoders_of_others.Model",
        "..os.system",
        "",
        None,
        7,
    ],
)
def test_json_names_nothing_but_classes_of_encoders(name):
    for kind in ("class", "type"):
        with pytest.raises(ExperimentError, match="is not a class of the encoders package"):
            from_json({kind: name})


def test_json_that_names_another_module_does_not_import_it(tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExperimentError):
        from_json({"class": "surprise.Model"})
    assert "surprise" not in sys.modules


def test_json_that_is_damaged_is_an_experiment_error():
    saved = to_json(BASE)
    with pytest.raises(ExperimentError, match="encoders.model.config.Model has no field leyers; it has activation"):
        from_json(saved | {"model": saved["model"] | {"leyers": 3}})
    with pytest.raises(ExperimentError, match="encoders.utils.overrides.ExperimentError is not a value"):
        from_json({"class": "encoders.utils.overrides.ExperimentError"})
    with pytest.raises(ExperimentError, match="is not a class"):
        from_json({"layers": 3})
    with pytest.raises(ExperimentError, match="encoders.training.optimizer.AdamW .*rate"):
        from_json({"class": "encoders.training.optimizer.AdamW", "warmup": 3})


@dataclass(frozen=True)
class OwnFormat(FullSentences):
    pass


def test_a_class_outside_of_encoders_is_not_saved():
    experiment = replace(BASE, objective=Joint(), phases=(replace(FULL[0], format=OwnFormat()),))
    with pytest.raises(ExperimentError, match="OwnFormat is not part of the encoders package"):
        to_json(experiment)


# Fingerprints


def test_the_fingerprint_of_an_experiment_never_changes():
    # A change here would start every run anew: a field that is added later must keep it by its default.
    assert fingerprint(EXPERIMENTS[0], "store") == "d9696082ecb41653"
    assert fingerprint(EXPERIMENTS[2], "store") == "8b7848684932536e"
    assert fingerprint(EXPERIMENTS[3], "store") == "45bfc6d11af7668c"


def test_a_field_added_at_its_default_keeps_the_fingerprint():
    def part(fields):
        made = type("Part", (), {"__annotations__": dict.fromkeys(fields, int), **fields})
        return dataclass(frozen=True)(made)

    old, new = part({"a": 1}), part({"a": 1, "b": 2})
    assert essence(new()) == essence(old()) and essence(new(a=3)) == essence(old(a=3))
    assert essence(new(b=3)) != essence(old())


def test_what_changes_no_number_changes_no_fingerprint():
    settings = [
        "name=another",
        "mesh.data=1",
        "mesh.model=2",
        "cadence.log=1",
        "cadence.keep=9",
        "model.unroll=true",
        "model.remat=full",
        "data.folder=elsewhere",
    ]
    assert len(fingerprints(BASE, *(override(BASE, [setting]) for setting in settings), override(BASE, settings))) == 1


def test_the_path_of_the_text_is_not_in_the_fingerprint_and_its_content_is():
    moved = override(BASE, ["data.corpus=another.txt", "data.heldout=0.5"])
    assert fingerprints(moved) == fingerprints(BASE)  # the store's key tells
    assert fingerprint(BASE, "store") != fingerprint(BASE, "another store")


def test_what_changes_the_numbers_changes_the_fingerprint():
    settings = [
        "seed=1",
        "accumulate=2",
        "model.layers=4",
        "model.dropout=0",
        "model.share=attend",
        "model.activation=gelu_tanh",
        "model.dtype=bfloat16",
        "objective=Joint",
        "objective=ReplacedTokens",
        "objective.sentences=None",
        "objective.tokens.rate=0.2",
        "objective.tokens.copies=None",
        "optimizer.rate=2e-3",
        "optimizer.warmup=11",
        "optimizer.clip=None",
        "optimizer.exclude=",
        "phases.0.until=79",
        "phases.1.until=101",
        "phases.1.length=63",
        "phases.0.batch=4",
        "phases.*.format.short=0",
        "phases.0.format.released=true",
    ]
    changed = [override(BASE, [setting]) for setting in settings]
    lamb = replace(BASE, optimizer=Lamb(rate=1e-3, warmup=10))
    embed = replace(BASE, model=replace(BASE.model, embed=ElectraEmbeddings))
    shorter = replace(BASE, phases=BASE.phases[:1])
    distinct = {fingerprint(each, "store"): each for each in [BASE, *changed, lamb, embed, shorter]}
    assert len(distinct) == len(settings) + 4 - 1  # "objective=Joint" and "objective.sentences=None" are one


def test_equal_experiments_have_equal_fingerprints():
    whole = replace(BASE, optimizer=AdamW(rate=1, warmup=10, decay=0))  # as a file may have it
    read = override(BASE, ["optimizer.rate=1", "optimizer.decay=0"])  # 1.0 and 0.0
    assert whole == read
    assert fingerprints(whole) == fingerprints(read)


# In words


def test_differences_are_told_by_path():
    assert differences(BASE, BASE) == []
    other = override(BASE, ["model.layers=4", "objective.sentences=None", "model.share=attend", "phases.1.batch=2"])
    assert differences(BASE, other) == [
        "model.layers is 3 there and 4 here",
        "model.share is () there and ('attend',) here",
        "objective.sentences is NextSentence there and None here",
        "phases.1.batch is 4 there and 2 here",
    ]


def test_a_part_of_another_class_differs_with_all_that_is_its_own():
    told = differences(replace(BASE, phases=BASE.phases[:1]), replace(BASE, objective=Joint(), phases=FULL[:1]))
    assert told == [
        "objective.sentences is NextSentence there and None here",
        "phases.0.format is SegmentPairs there and FullSentences here",
        "phases.0.format.released is False there and absent here",
        "phases.0.format.second is random there and absent here",
        "phases.0.format.short is 0.1 there and absent here",
        "phases.0.format.within is absent there and True here",
    ]


def test_what_changes_no_number_is_no_difference():
    assert differences(BASE, override(BASE, ["name=other", "mesh.model=2", "cadence.log=1", "data.folder=there"])) == []


def test_a_phase_more_is_a_difference():
    told = differences(BASE, replace(BASE, phases=BASE.phases[:1]))
    assert told[0] == "phases is 2 of them there and 1 of them here"
    assert "phases.1.length is 64 there and absent here" in told


def test_an_experiment_describes_itself():
    lines = describe(BASE).splitlines()
    assert {"model.layers = 3", "objective.sentences = NextSentence", "phases.1.length = 64"} <= set(lines)
    assert len(lines) == len(flat(BASE))
