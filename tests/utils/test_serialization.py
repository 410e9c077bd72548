"""An experiment outside of Python: as JSON, as a fingerprint, and in words."""

import json
import sys
from dataclasses import dataclass, replace

import pytest

from encoders.data.formats import FullSentences
from encoders.experiment import apply_settings, describe_differences, describe_experiment, fingerprint_experiment
from encoders.families.electra import ElectraEmbeddings
from encoders.objectives.masked_lm import MaskedLM
from encoders.training.optimizer import AdamW, Lamb
from encoders.utils.overrides import (
    ExperimentError,
    fingerprint_content,
    flatten_fields,
    from_json_value,
    to_json_value,
)
from tests.test_experiment import BASE, EXPERIMENTS, FULL, fingerprints

# JSON


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_reads_back_equal_from_json(experiment):
    again = from_json_value(json.loads(json.dumps(to_json_value(experiment))))
    assert again == experiment and describe_experiment(again) == describe_experiment(experiment)
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
        "encoders.experiment.PretrainingData",  # it is at home in encoders.data.prepare
        "encoders.experiment.Nothing",
        "encoders.nowhere.EncoderConfig",
        "encoders.utils.overrides.importlib.os.system",
        "encoders_of_others.EncoderConfig",
        "..os.system",
        "",
        None,
        7,
    ],
)
def test_json_names_nothing_but_classes_of_encoders(name):
    for kind in ("class", "type"):
        with pytest.raises(ExperimentError, match="is not a class of the encoders package"):
            from_json_value({kind: name})


def test_json_that_names_another_module_does_not_import_it(tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExperimentError):
        from_json_value({"class": "surprise.EncoderConfig"})
    assert "surprise" not in sys.modules


def test_json_that_is_damaged_is_an_experiment_error():
    saved = to_json_value(BASE)
    with pytest.raises(
        ExperimentError, match="encoders.model.config.EncoderConfig has no field leyers; it has activation"
    ):
        from_json_value(saved | {"model": saved["model"] | {"leyers": 3}})
    with pytest.raises(ExperimentError, match="encoders.utils.overrides.ExperimentError is not a value"):
        from_json_value({"class": "encoders.utils.overrides.ExperimentError"})
    with pytest.raises(ExperimentError, match="is not a class"):
        from_json_value({"num_layers": 3})
    with pytest.raises(ExperimentError, match="encoders.training.optimizer.AdamW .*learning_rate"):
        from_json_value({"class": "encoders.training.optimizer.AdamW", "warmup_steps": 3})


@dataclass(frozen=True)
class OwnFormat(FullSentences):
    pass


def test_a_class_outside_of_encoders_is_not_saved():
    experiment = replace(BASE, objective=MaskedLM(), phases=(replace(FULL[0], format=OwnFormat()),))
    with pytest.raises(ExperimentError, match="OwnFormat is not part of the encoders package"):
        to_json_value(experiment)


# Fingerprints


def test_the_fingerprint_of_an_experiment_never_changes():
    # A change here would start every run anew: a field that is added later must keep it by its default.
    assert fingerprint_experiment(EXPERIMENTS[0], "store") == "73b8d4802efec601"
    assert fingerprint_experiment(EXPERIMENTS[2], "store") == "e3a8c3aede9f8c61"
    assert fingerprint_experiment(EXPERIMENTS[3], "store") == "37c8cbb7ee055384"


def test_a_field_added_at_its_default_keeps_the_fingerprint():
    def part(fields):
        made = type("Part", (), {"__annotations__": dict.fromkeys(fields, int), **fields})
        return dataclass(frozen=True)(made)

    old, new = part({"a": 1}), part({"a": 1, "b": 2})
    assert fingerprint_content(new()) == fingerprint_content(old()) and fingerprint_content(
        new(a=3)
    ) == fingerprint_content(old(a=3))
    assert fingerprint_content(new(b=3)) != fingerprint_content(old())


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
    assert (
        len(
            fingerprints(
                BASE, *(apply_settings(BASE, [setting]) for setting in settings), apply_settings(BASE, settings)
            )
        )
        == 1
    )


def test_the_path_of_the_text_is_not_in_the_fingerprint_and_its_content_is():
    moved = apply_settings(BASE, ["data.corpus=another.txt", "data.heldout_fraction=0.5"])
    assert fingerprints(moved) == fingerprints(BASE)  # the store's key tells
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
    distinct = {fingerprint_experiment(each, "store"): each for each in [BASE, *changed, lamb, embed, shorter]}
    assert len(distinct) == len(settings) + 4 - 1  # "objective=MaskedLM" and "objective.sentence_task=None" are one


def test_equal_experiments_have_equal_fingerprints():
    whole = replace(BASE, optimizer=AdamW(learning_rate=1, warmup_steps=10, weight_decay=0))  # as a file may have it
    read = apply_settings(BASE, ["optimizer.learning_rate=1", "optimizer.weight_decay=0"])  # 1.0 and 0.0
    assert whole == read
    assert fingerprints(whole) == fingerprints(read)


# In words


def test_differences_are_told_by_path():
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


def test_a_part_of_another_class_differs_with_all_that_is_its_own():
    told = describe_differences(
        replace(BASE, phases=BASE.phases[:1]), replace(BASE, objective=MaskedLM(), phases=FULL[:1])
    )
    assert told == [
        "objective.sentence_task is NextSentencePrediction there and None here",
        "phases.0.format is SegmentPairs there and FullSentences here",
        "phases.0.format.match_released_code is False there and absent here",
        "phases.0.format.negatives is random there and absent here",
        "phases.0.format.short_seq_prob is 0.1 there and absent here",
        "phases.0.format.within_document is absent there and True here",
    ]


def test_what_changes_no_number_is_no_difference():
    assert (
        describe_differences(
            BASE, apply_settings(BASE, ["name=other", "mesh.model=2", "intervals.log_every=1", "data.store_dir=there"])
        )
        == []
    )


def test_a_phase_more_is_a_difference():
    told = describe_differences(BASE, replace(BASE, phases=BASE.phases[:1]))
    assert told[0] == "phases is 2 of them there and 1 of them here"
    assert "phases.1.seq_length is 64 there and absent here" in told


def test_an_experiment_describes_itself():
    lines = describe_experiment(BASE).splitlines()
    assert {
        "model.num_layers = 3",
        "objective.sentence_task = NextSentencePrediction",
        "phases.1.seq_length = 64",
    } <= set(lines)
    assert len(lines) == len(flatten_fields(BASE))
