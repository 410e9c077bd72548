"""Runs initialised from another one: imported or trained, with the same objective or another."""

from contextlib import closing
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.prepare import prepare_store
from encoders.data.spec import PretrainingData
from encoders.data.stream import BatchStream, Phase
from encoders.exchange.convert import import_checkpoint
from encoders.experiment import Experiment, RunSpec
from encoders.objectives.base import total_loss
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.run import loop, tiling
from encoders.run.evaluate import evaluate_run
from encoders.run.folder import RunError, register_run
from encoders.run.prepare_run import prepare_run
from encoders.run.run import Run
from encoders.run.warm_start import WarmStart, init_sharded_state
from encoders.tasks.classification import Classification
from encoders.text.tokenization import TokenizerSpec
from encoders.training import step
from encoders.training.metric_log import Intervals, read_metric_rows
from encoders.training.optimizer import AdamW
from encoders.utils.errors import UserError
from encoders.utils.metrics import mean_value
from encoders.utils.serialization import fingerprint_content
from tests import texts
from tests.exchange.references import CASES, HOME
from tests.refusals import raises_naming


def quiet(line):
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text and runs imported from the reference checkpoints."""
    folder = tmp_path_factory.mktemp("home")
    texts.write(folder / "text.txt", documents=60)
    for name in ("bert-pretraining", "bert-encoder", "albert-masked", "electra-pair", "electra-discriminator"):
        import_checkpoint(HOME / name, folder / name, tokenizer_files=HOME / "vocabularies" / CASES[name].family)
    return folder


def experiment(home, start: str, objective, form, steps=20, length=16, **changes) -> Experiment:
    """Return training that starts from an imported run, with its model and vocabulary."""
    folder = home / start
    rest = dict(
        model=replace(Run.open(folder).spec.model, hidden_dropout=0.0, attention_dropout=0.0),
        data=PretrainingData(
            (str(home / "text.txt"),),
            TokenizerSpec(path=str(folder / "tokenizer.json")),
            heldout_fraction=0.1,
            store_dir=str(home / "stores"),
        ),
        optimizer=AdamW(1e-2, 2, bias_correction=True),
        phases=(Phase(until_step=steps, seq_length=length, batch_size=8, format=form),),
        intervals=Intervals(log_every=steps // 2, eval_every=steps, save_every=steps, eval_batches=4),
        init_from=str(folder),
    )
    return Experiment(name="next", objective=objective, **rest | changes)


def build_state(base: Experiment, folder):
    """Return the state before the first step, and the line that is logged about it."""
    lines = []
    return WarmStart(base).build_state(run_of(base, folder), lines.append), lines[0]


def run_of(base: Experiment, folder) -> Run:
    store = prepare_store(base.data, quiet)
    return Run(base, folder, store.vocab, lambda: store)


def by_heart(state, run, steps: int):
    """Return the state after some steps on the first batch, and the loss of each."""
    base, losses = run.experiment, []
    batch = next(
        BatchStream(run.store.train_split, run.vocab, base.phases, 0, 1, run.folder / "tables").iter_batches(
            0, base.num_steps
        )
    )
    for _ in range(steps):
        state, measured = step.train_step(state, batch, 0, **step.build_static_args(base, run.module))
        means = {name: mean_value(measured[name]) for name in base.objective.loss_weights}
        losses.append(total_loss(means, base.objective.loss_weights))
    return state, losses


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


BERT = (MaskedLM(Masking(), NextSentencePrediction()), SegmentPairs())


@pytest.mark.live
def test_pretraining_starts_from_an_imported_checkpoint(home, tmp_path):
    base = experiment(home, "bert-pretraining", *BERT, steps=60)
    before = Run.open(home / "bert-pretraining").load_params()[1]
    assert equal(build_state(base, tmp_path / "unused")[0].params, before)
    loop.train(base, tmp_path / "run", quiet)
    losses = [row["loss"] for row in read_metric_rows(tmp_path / "run" / "metrics.jsonl") if row["split"] == "train"]
    assert losses[-1] < losses[0]


@dataclass(frozen=True)
class Labelled(SegmentPairs):
    """Two texts with a label of whether the second follows the first: rows such as a task of text matching has."""

    label_fields = ("label",)


def test_fine_tuning_starts_from_an_imported_encoder_and_its_pooler(home, tmp_path):
    objective = Classification(("follows", "does not"))
    base = experiment(home, "bert-pretraining", objective, Labelled(), steps=60)
    state, line = build_state(base, tmp_path / "unused")
    before = Run.open(home / "bert-pretraining").load_params()[1]
    assert equal([state.params[part] for part in ("encoder", "pooler")], [before[p] for p in ("encoder", "pooler")])
    assert line.endswith("bert-pretraining (step 0): encoder, pooler; fresh: classes")
    _, losses = by_heart(state, run_of(base, tmp_path / "run"), 60)
    assert losses[-1] < losses[0] / 2


def test_an_encoder_alone_gets_fresh_heads(home, tmp_path):
    state, line = build_state(experiment(home, "bert-encoder", *BERT), tmp_path / "unused")
    assert equal(state.params["encoder"], Run.open(home / "bert-encoder").load_params()[1]["encoder"])
    assert line.endswith("(step 0): encoder, pooler; fresh: pair, tokens")


def test_a_pair_starts_a_pair_and_its_discriminator_starts_other_objectives(home, tmp_path):
    before = Run.open(home / "electra-pair").load_params()[1]
    pair = replace(Run.open(home / "electra-pair").spec.objective, masking=Masking())
    state, line = build_state(experiment(home, "electra-pair", pair, ElectraPairs()), tmp_path / "unused")
    assert equal(state.params, before) and "fresh" not in line
    state, _ = build_state(experiment(home, "electra-pair", MaskedLM(), FullSentences()), tmp_path / "unused")
    assert equal(state.params["encoder"], before["discriminator"])


def test_a_lone_discriminator_gets_a_fresh_generator(home, tmp_path):
    base = experiment(
        home, "electra-discriminator", ReplacedTokenDetection(generator_width=1 / 2, tie="none"), ElectraPairs()
    )
    state, line = build_state(base, tmp_path / "unused")
    assert "fresh: generator, tokens" in line
    assert equal(
        state.params["discriminator"], Run.open(home / "electra-discriminator").load_params()[1]["discriminator"]
    )


@pytest.fixture(scope="module")
def second_stage(home, tmp_path_factory):
    """An experiment that starts from a masked language model of the discriminator's size."""
    folder = tmp_path_factory.mktemp("first") / "run"
    model = replace(Run.open(home / "bert-pretraining").spec.model, num_heads=1, intermediate_size=4 * 12)
    alone = experiment(home, "bert-pretraining", MaskedLM(), FullSentences(), model=model)
    run = run_of(alone, folder)
    register_run(run.folder, run.experiment, run.store, "0" * 16)
    with closing(run.open_checkpoints(1)) as checkpoints:
        checkpoints.save(1, init_sharded_state(run), {}, None)
    objective = ReplacedTokenDetection(generator_width=1.0, tie="none", generator_training="two_stage")
    return replace(alone, objective=objective, optimizer=AdamW(1e-2, 0, weight_decay=0.5), init_from=str(folder))


@pytest.mark.live
def test_a_second_stage_keeps_the_generator_and_initialises_the_discriminator_from_it(second_stage, tmp_path):
    before = Run.open(second_stage.init_from).load_params()[1]
    generator = {"generator": before["encoder"], "tokens": before["tokens"]}
    state, line = build_state(second_stage, tmp_path / "unused")
    assert line.endswith("(step 1): discriminator, generator, tokens; fresh: replaced")
    assert equal({part: state.params[part] for part in generator}, generator)
    assert equal(state.params["discriminator"], before["encoder"])
    state, _ = by_heart(state, run_of(second_stage, tmp_path / "run"), 3)
    assert equal({part: state.params[part] for part in generator}, generator)
    pairs = zip(*map(jax.tree.leaves, (state.params["discriminator"], before["encoder"])), strict=True)
    assert not any(np.array_equal(*pair) for pair in pairs)


def test_a_second_stage_without_a_generator_to_keep_is_refused(second_stage, tmp_path, monkeypatch):
    _, params = Run.open(second_stage.init_from).load_params()
    monkeypatch.setattr(Run, "load_params", lambda *_: (4, {"encoder": params["encoder"]}))
    with raises_naming(RunError, "tokens"):
        build_state(second_stage, tmp_path / "unused")


@pytest.mark.live
def test_a_trained_run_starts_another_from_its_newest_checkpoint(home, tmp_path):
    first = experiment(home, "bert-pretraining", *BERT, steps=4)
    loop.train(first, tmp_path / "first", quiet)
    second = replace(first, init_from=str(tmp_path / "first"))
    state, line = build_state(second, tmp_path / "unused")
    assert equal(state.params, Run.open(tmp_path / "first").load_params()[1]) and "(step 4)" in line


def test_a_deeper_albert_starts_from_the_one_layer_of_a_shallower_one_and_another_model_is_refused(home, tmp_path):
    one = experiment(home, "albert-masked", MaskedLM(), FullSentences())
    layers = one.model.num_layers
    assert set(one.model.shared_parts) == {"attention", "feed_forward"} and layers > 1
    state, _ = build_state(replace(one, model=replace(one.model, num_layers=3 * layers)), tmp_path)
    _, before = Run.open(home / "albert-masked").load_params()
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], before["encoder"])
    base = experiment(home, "bert-encoder", MaskedLM(), FullSentences())
    with raises_naming(RunError, f"model.num_layers is {base.model.num_layers}", "7"):
        WarmStart(replace(base, model=replace(base.model, num_layers=7)))


def test_a_source_run_that_does_not_fit_is_refused_before_any_work(home, tmp_path):
    base = experiment(home, "bert-pretraining", *BERT)
    refused = [
        (replace(base, init_from=str(tmp_path)), [tmp_path]),
        (replace(base, model=replace(base.model, activation="gelu_tanh")), ["model.activation is gelu"]),
        (replace(base, model=replace(base.model, intermediate_size=24)), ["model.intermediate_size is 20", "24"]),
        (replace(base, init_from=str(home / "electra-pair")), ["model.embeddings is"]),
    ]
    for wrong, values in refused:
        with raises_naming(RunError, *values):
            loop.train(wrong, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_is_refused_since_parameters_would_mean_other_tokens(home, tmp_path):
    base = experiment(home, "bert-pretraining", *BERT)
    for vocabulary in (TokenizerSpec(path=str(home / "electra-pair" / "tokenizer.json")), TokenizerSpec(vocab_size=61)):
        wrong = replace(base, data=replace(base.data, tokenizer=vocabulary))
        with raises_naming(RunError, "data.tokenizer.path="):
            loop.train(wrong, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_other_shapes_are_refused_with_their_names(home, tmp_path):
    base = experiment(home, "bert-pretraining", *BERT)
    with raises_naming(RunError, "embed/word/embedding is (61, 12)", "(64, 12)"):
        build_state(replace(base, model=replace(base.model, vocab_size=64)), tmp_path / "unused")


def test_an_imported_run_has_no_text_to_evaluate(home):
    run = Run.open(home / "bert-encoder")
    assert isinstance(run.spec, RunSpec)
    with raises_naming(RunError, "--set init_from="):
        evaluate_run(run, run.load_params()[1])


def test_the_source_run_is_part_of_the_fingerprint(home, tmp_path):
    base = experiment(home, "bert-pretraining", *BERT, steps=4)
    with prepare_run(base, tmp_path / "run", quiet):
        pass
    other = replace(base, init_from=str(home / "bert-encoder"))
    with raises_naming(RunError, "init_from"), prepare_run(other, tmp_path / "run", quiet):
        pass


# Tiled from a smaller model -------------------------------------------------------------------------------------------


def test_layers_are_those_of_the_same_relative_depth():
    base_to_large = [round(j * 22 / 28) for j in range(28)]
    assert tiling.choose_layers(22, 28).tolist() == base_to_large
    # The norm that leads to layer j + 1 is the one that leads to its counterpart, and the last stays the last.
    assert tiling.choose_layers(22, 28, leads=True).tolist() == [*(layer - 1 for layer in base_to_large[1:]), 21]


def test_a_larger_model_has_the_smaller_one_in_the_middle_of_its_matrices(home, tmp_path):
    import_checkpoint(HOME / "modernbert-masked", home / "modernbert", tokenizer_files=HOME / "vocabularies/modernbert")
    small = Run.open(home / "modernbert").spec.model
    large = replace(small, hidden_size=18, embedding_size=18, num_layers=7, num_heads=3, intermediate_size=24)
    objective = (MaskedLM(Masking(dupe_factor=None)), FullSentences())
    base = experiment(home, "modernbert", *objective, model=large, init_by="tiling")
    state, line = build_state(base, tmp_path / "unused")
    before, after = Run.open(home / "modernbert").load_params()[1], state.params
    assert "fresh" not in line and jax.tree.structure(before) == jax.tree.structure(after)
    old, new = (params["encoder"]["layers"] for params in (before, after))
    for layer, source in enumerate(tiling.choose_layers(5, 7)):
        # Inner features and gates are two halves, of 20 and of 24; 18 hidden features have 3 more at each side.
        for half in range(2):
            found = new["transform"]["up"]["kernel"][layer][:, half * 24 : half * 24 + 24]
            expected = old["transform"]["up"]["kernel"][source][:, half * 20 : half * 20 + 20]
            np.testing.assert_array_equal(found[3:15, 2:22], expected)
            np.testing.assert_array_equal(found[:3, 2:22], expected[-3:])
            np.testing.assert_array_equal(found[3:15, 22:], expected[:, :2])
        for third in range(3):
            found = new["attend"]["qkv"]["kernel"][layer][:, third * 18 : third * 18 + 18]
            expected = old["attend"]["qkv"]["kernel"][source][:, third * 12 : third * 12 + 12]
            np.testing.assert_array_equal(found[3:15, 3:15], expected)
    np.testing.assert_array_equal(after["tokens"]["bias"], before["tokens"]["bias"])
    np.testing.assert_array_equal(
        new["transform"]["next_norm"]["scale"][-1][3:15], old["transform"]["next_norm"]["scale"][-1]
    )
    with raises_naming(RunError, "model.num_layers", "7"):
        WarmStart(replace(base, init_by="copying"))
    shorter = replace(base, model=replace(large, num_layers=4))
    with raises_naming(UserError, "model.num_layers=4", "5"):
        WarmStart(shorter)
    with raises_naming(RunError, "local_window"):
        WarmStart(replace(base, model=replace(large, local_window=6)))


def test_a_tiled_run_is_another_experiment_than_a_copied_one(home):
    base = experiment(home, "bert-pretraining", *BERT)
    assert fingerprint_content(base) != fingerprint_content(replace(base, init_by="tiling"))
    assert "init_by" not in fingerprint_content(base)
