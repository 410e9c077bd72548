"""An experiment outside of Python: as JSON, as a fingerprint, and in words."""

import json
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from encoders.data.formats import FullSentences
from encoders.experiment import apply_settings, describe_differences, describe_experiments, fingerprint_experiment
from encoders.families.electra import ElectraEmbeddings
from encoders.objectives.masked_lm import MaskedLM
from encoders.training.optimizer import AdamW, Lamb
from encoders.utils import serialization
from encoders.utils.serialization import (
    ExperimentError,
    fingerprint_content,
    flatten_fields,
    from_json_value,
    register_class,
    renamed_field,
    to_json_value,
)
from tests.refusals import raises_naming
from tests.test_experiment import BASE, EXPERIMENTS, FULL, fingerprints

GOLDEN = Path(__file__).with_name("saved_experiments.json")

# JSON


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_reads_back_equal_from_json(experiment):
    again = from_json_value(json.loads(json.dumps(to_json_value(experiment))))
    assert again == experiment and describe_experiments([again]) == describe_experiments([experiment])
    assert fingerprints(again) == fingerprints(experiment)


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "subprocess.Popen", "encoders", "encoders.model.config.EncoderConfig",
        "encoders.utils.overrides:difflib.os.system", "ExperimentError", "", None, 7, ["MaskedLM"],
    ],
)  # fmt: skip
def test_json_names_nothing_but_classes_of_the_table(name):
    for kind in ("class", "type"):
        with pytest.raises(ExperimentError) as refused:
            from_json_value({kind: name})
        assert repr(str(name)) in str(refused.value) and "--code" in str(refused.value)


def test_reading_json_imports_no_file_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("surprise.EncoderConfig", "surprise:EncoderConfig", "surprise"):
        with pytest.raises(ExperimentError, match=name):
            from_json_value({"class": name})
    assert "surprise" not in sys.modules


def test_all_unknown_classes_are_named_at_once():
    saved = to_json_value(BASE)
    saved["model"]["attention"]["type"], saved["objective"]["class"] = "LinearAttention", "SpanLM"
    with pytest.raises(ExperimentError, match="'LinearAttention, SpanLM'"):
        from_json_value(saved)


def test_damaged_json_is_refused_by_class_and_field():
    saved = to_json_value(BASE)
    with raises_naming(ExperimentError, "leyers", "EncoderConfig", "num_layers"):
        from_json_value(saved | {"model": saved["model"] | {"leyers": 3}})
    with raises_naming(ExperimentError, "AdamW", "learning_rate"):
        from_json_value({"class": "AdamW", "warmup_steps": 3})
    with pytest.raises(ExperimentError, match="''"):
        from_json_value({"num_layers": 3})


# Names that last


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Classes that a test registers are forgotten after it."""
    for registry in ("REGISTERED_CLASSES", "FORMER_CLASS_NAMES"):
        monkeypatch.setattr(serialization, registry, dict(getattr(serialization, registry)))


def test_a_class_outside_the_package_is_saved_once_it_is_registered():
    @dataclass(frozen=True)
    class OwnFormat(FullSentences):
        pass

    experiment = replace(BASE, objective=MaskedLM(), phases=(replace(FULL[0], format=OwnFormat()),))
    with raises_naming(ExperimentError, "OwnFormat", "@encoders.register"):
        to_json_value(experiment)
    register_class(OwnFormat)
    saved = to_json_value(experiment)
    assert saved["phases"][0]["format"]["class"] == "OwnFormat"
    assert from_json_value(saved) == experiment


def test_a_name_belongs_to_one_class():
    with raises_naming(ExperimentError, "MaskedLM", "name"):
        register_class(dataclass(frozen=True)(type("MaskedLM", (), {})))
    for number in (1, 2):
        cls = dataclass(frozen=True)(type(f"Part{number}", (), {}))
        if number == 1:
            register_class(cls, "Part")
        else:
            with raises_naming(ExperimentError, "Part ", "Part1 ", "Part2 "):
                register_class(cls, "Part")


def test_a_renamed_class_or_field_reads_older_files_and_keeps_its_fingerprint():
    @register_class(name="Old")
    @dataclass(frozen=True)
    class Before:
        rate: float
        masks: int = 1

    saved, content = to_json_value(Before(0.5, 2)), fingerprint_content(Before(0.5, 2))
    serialization.REGISTERED_CLASSES.clear()

    @register_class(name="New", formerly=("Old",))
    @dataclass(frozen=True)
    class After:
        mask_rate: float = renamed_field("rate")
        num_masks: int = renamed_field("masks", default=1)

    assert from_json_value(saved) == After(0.5, 2)
    assert fingerprint_content(After(0.5, 2)) == content
    assert to_json_value(After(0.5)) == {"class": "New", "mask_rate": 0.5, "num_masks": 1}


def test_a_moved_class_changes_no_saved_byte_and_no_fingerprint(monkeypatch):
    before, fingerprint = json.dumps(to_json_value(BASE)), fingerprints(BASE)
    elsewhere = types.ModuleType("encoders.elsewhere")
    vars(elsewhere).update(vars(sys.modules[MaskedLM.__module__]))
    monkeypatch.setattr(MaskedLM, "__module__", "encoders.elsewhere")
    monkeypatch.setitem(serialization.CLASS_ADDRESSES, "MaskedLM", "encoders.elsewhere:MaskedLM")
    monkeypatch.setitem(sys.modules, "encoders.elsewhere", elsewhere)
    assert json.dumps(to_json_value(BASE)) == before and fingerprints(BASE) == fingerprint
    assert from_json_value(json.loads(before)) == BASE


# The golden file


@pytest.mark.parametrize("number", range(len(EXPERIMENTS)))
def test_saved_experiments_and_fingerprints_never_change(number):
    """A change here would lose every run: a new field has a default, a renamed one says `formerly`."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[number]
    assert fingerprint_experiment(EXPERIMENTS[number], "store") == golden["fingerprint"]
    assert from_json_value(golden["experiment"]) == EXPERIMENTS[number]
    assert fingerprints(from_json_value(golden["experiment"])) == {golden["fingerprint"]}


# Fingerprints


def test_a_field_added_at_its_default_keeps_the_fingerprint():
    def make_part(values):
        cls = type("Part", (), {"__annotations__": dict.fromkeys(values, int), **values})
        return register_class(dataclass(frozen=True)(cls))

    before, after = make_part({"a": 1}), make_part({"a": 1, "b": 2})
    assert fingerprint_content(after()) == fingerprint_content(before())
    assert fingerprint_content(after(a=3)) == fingerprint_content(before(a=3))
    assert fingerprint_content(after(b=3)) != fingerprint_content(before())


def test_what_changes_no_number_changes_no_fingerprint():
    settings = [
        "name=another",
        "mesh.data=1",
        "mesh.model=2",
        "intervals.log_every=1",
        "intervals.keep_checkpoints=9",
        "model.unroll_layers=true",
        "model.remat=full",
        "data.store_dir=elsewhere",
    ]
    changed = [apply_settings(BASE, [setting]) for setting in settings]
    assert len(fingerprints(BASE, *changed, apply_settings(BASE, settings))) == 1


def test_the_path_of_the_text_is_not_in_the_fingerprint_and_its_content_is():
    moved = apply_settings(BASE, ["data.corpus=another.txt", "data.heldout_fraction=0.5"])
    assert fingerprints(moved) == fingerprints(BASE)  # the key of the store stands for both
    assert fingerprint_experiment(BASE, "store") != fingerprint_experiment(BASE, "another store")


def test_what_changes_the_numbers_changes_the_fingerprint():
    settings = [
        "seed=1",
        "grad_accum_steps=2",
        "model.num_layers=4",
        "model.hidden_dropout=0",
        "model.shared_parts=attention",
        "model.activation=gelu_tanh",
        "model.dtype=bfloat16",
        "objective=MaskedLM",
        "objective=ReplacedTokenDetection",
        "objective.sentence_task=None",
        "objective.masking.mask_rate=0.2",
        "objective.masking.dupe_factor=None",
        "optimizer.learning_rate=2e-3",
        "optimizer.warmup_steps=11",
        "optimizer.clip_norm=None",
        "optimizer.no_decay=",
        "phases.0.until_step=79",
        "phases.1.until_step=101",
        "phases.1.seq_length=63",
        "phases.0.batch_size=4",
        "phases.*.format.short_seq_prob=0",
        "phases.0.format.match_released_code=true",
    ]
    changed = [apply_settings(BASE, [setting]) for setting in settings]
    lamb = replace(BASE, optimizer=Lamb(learning_rate=1e-3, warmup_steps=10))
    embed = replace(BASE, model=replace(BASE.model, embeddings=ElectraEmbeddings))
    shorter = replace(BASE, phases=BASE.phases[:1])
    distinct = {
        fingerprint_experiment(experiment, "store"): experiment for experiment in [BASE, *changed, lamb, embed, shorter]
    }
    assert len(distinct) == len(settings) + 4 - 1  # "objective=MaskedLM" and "objective.sentence_task=None" are one


def test_equal_experiments_have_equal_fingerprints():
    from_file = replace(BASE, optimizer=AdamW(learning_rate=1, warmup_steps=10, weight_decay=0))
    read = apply_settings(BASE, ["optimizer.learning_rate=1", "optimizer.weight_decay=0"])  # 1.0 and 0.0
    assert from_file == read
    assert fingerprints(from_file) == fingerprints(read)


# In words


def test_differences_are_listed_by_path():
    assert describe_differences(BASE, BASE) == []
    other = apply_settings(
        BASE,
        ["model.num_layers=4", "objective.sentence_task=None", "model.shared_parts=attention", "phases.1.batch_size=2"],
    )
    assert describe_differences(BASE, other) == [
        "model.num_layers is 3 there and 4 here",
        "model.shared_parts is () there and ('attention',) here",
        "objective.sentence_task is NextSentencePrediction there and None here",
        "phases.1.batch_size is 4 there and 2 here",
    ]


def test_a_part_of_another_class_differs_in_all_fields_of_both():
    differences = describe_differences(
        replace(BASE, phases=BASE.phases[:1]), replace(BASE, objective=MaskedLM(), phases=FULL[:1])
    )
    assert differences == [
        "objective.sentence_task is NextSentencePrediction there and None here",
        "phases.0.format is SegmentPairs there and FullSentences here",
        "phases.0.format.match_released_code is False there and absent here",
        "phases.0.format.negatives is random there and absent here",
        "phases.0.format.short_seq_prob is 0.1 there and absent here",
        "phases.0.format.within_document is absent there and True here",
    ]


def test_what_changes_no_number_is_no_difference():
    settings = ["name=other", "mesh.model=2", "intervals.log_every=1", "data.store_dir=there"]
    assert describe_differences(BASE, apply_settings(BASE, settings)) == []


def test_a_phase_more_is_a_difference():
    differences = describe_differences(BASE, replace(BASE, phases=BASE.phases[:1]))
    assert differences[0] == "phases is 2 of them there and 1 of them here"
    assert "phases.1.seq_length is 64 there and absent here" in differences


def test_an_experiment_describes_itself():
    lines = describe_experiments([BASE])[0].splitlines()
    assert {
        "model.num_layers = 3",
        "objective.sentence_task = NextSentencePrediction",
        "phases.1.seq_length = 64",
    } <= set(lines)
    assert len(lines) == len(flatten_fields(BASE, fingerprinted_only=False))
    assert {"mesh.data = -1", "intervals.log_every = 100", "data.store_dir = stores"} <= set(lines)


if __name__ == "__main__":  # python -m tests.utils.test_serialization, once, before the first release
    golden = [
        {"fingerprint": fingerprint_experiment(experiment, "store"), "experiment": to_json_value(experiment)}
        for experiment in EXPERIMENTS
    ]
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
