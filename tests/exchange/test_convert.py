"""Published checkpoints in and out, without PyTorch: `exchange/references.py` made the files with transformers."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import launch
from encoders.exchange.convert import export_run, find_unmatched, import_checkpoint
from encoders.exchange.weights import CheckpointError, IgnoredNames, read_weights
from encoders.experiment import RunSpec
from encoders.families import bert
from encoders.inference.predictor import load_predictor
from encoders.model import attention
from encoders.objectives.masked_lm import MaskedLM
from encoders.run.folder import RunError, build_run_record
from encoders.run.run import Run
from encoders.training.checkpoint import save_params
from encoders.training.step import init_params
from encoders.utils.files import write_json, write_signed_json
from tests.exchange.outputs import furthest, ours
from tests.exchange.references import CASES, HOME
from tests.refusals import assert_names, raises_naming

# float32 on both sides; sums in another order.
TOLERANCE = 1e-5
ONE_A_FAMILY = (
    *("bert-pretraining", "roberta-masked", "albert-masked", "electra-pair"),
    *("modernbert-masked", "eurobert-masked", "neobert-masked", "esm-masked", "deberta-v2-masked"),
)
ONE_A_HEAD = (
    *("bert-encoder", "bert-classes", "roberta-questions", "roberta-fairseq", "albert-tags"),
    *("electra-number", "electra-discriminator", "electra-generator"),
    *("modernbert-mean-classes", "modernbert-tags", "eurobert-classes", "deberta-v2-released"),
)

CHOSEN = (*ONE_A_FAMILY, *ONE_A_HEAD)


def import_reference(name, run, folder=None):
    import_checkpoint(folder or HOME / name, run, tokenizer_files=HOME / "vocabularies" / CASES[name].family)
    return run


def params_of(run) -> dict:
    return Run.open(run).load_params()[1]


def same(a, b) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def copied(name, folder):
    """Return a copy of a reference checkpoint, whose files may be changed."""
    shutil.copytree(HOME / name, folder)
    return folder


def configure(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, change) -> None:
    """Apply `change` to the tensors of a folder."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def refused(name, folder, run) -> str:
    """Return the error of a checkpoint that cannot be imported; nothing may be left of the run."""
    with pytest.raises(CheckpointError) as caught:
        import_reference(name, run, folder)
    assert not [path for path in run.parent.iterdir() if run.name in path.name]
    return str(caught.value)


def is_quick(name: str, implementation: str) -> bool:
    """All are run with the live tests."""
    return name in CHOSEN if implementation == "xla" else (name, implementation) == (ONE_A_FAMILY[0], "cudnn_packed")


@pytest.mark.parametrize(
    "name, implementation",
    [
        pytest.param(name, how, marks=[] if is_quick(name, how) else pytest.mark.live)
        for name in CASES
        for how in attention.ATTENTION_IMPLS
        if how == "xla" or name in CHOSEN
    ],
)
def test_hidden_states_and_every_logit_equal_those_of_transformers(name, implementation, tmp_path, monkeypatch):
    """With every implementation of attention; those of cuDNN as XLA computes them, for a CPU has no cuDNN."""
    run = import_reference(name, tmp_path / "run")
    monkeypatch.setitem(attention.ATTENTION_IMPLS, "xla", attention.ATTENTION_IMPLS[implementation])
    with np.load(HOME / name / "expected.npz") as expected:
        assert max(furthest(ours(run, expected), expected).values()) < TOLERANCE


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ONE_A_FAMILY else pytest.mark.live) for n in CASES],
)
def test_an_export_comes_back_as_it_was_to_the_bit(name, tmp_path):
    run = import_reference(name, tmp_path / "run")
    export_run(run, tmp_path / "out")
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    before, after = Run.open(run), Run.open(tmp_path / "again")
    assert same(before.load_params()[1], after.load_params()[1])
    assert before.spec.model.collect_computation_fields() == after.spec.model.collect_computation_fields()
    assert before.spec.objective == after.spec.objective
    assert before.vocab == after.vocab and before.tokenizer.has_same_ids(after.tokenizer)


def test_exported_tensors_have_their_published_names(tmp_path):
    import_reference("bert-pretraining", tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    before, after = read_weights(HOME / "bert-pretraining")[0], read_weights(tmp_path / "out")[0]
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].read(), after[name].read()) for name in before)


def test_a_projection_that_google_does_not_have_is_exported_as_the_identity(tmp_path):
    """Hugging Face's ALBERT projects from e to d also where they are equal; papers' code does not."""
    folder = copied("albert-masked", tmp_path / "theirs")
    name = "albert.encoder.embedding_hidden_mapping_in"
    eye = {f"{name}.weight": np.eye(12, dtype=np.float32), f"{name}.bias": np.zeros(12, np.float32)}
    rewrite(folder, lambda tensors: tensors | eye)
    run = import_reference("albert-masked", tmp_path / "run", folder)
    assert "project" not in params_of(run)["encoder"] and not Run.open(run).spec.model.has_embedding_projection
    export_run(run, tmp_path / "out")
    again = read_weights(tmp_path / "out")[0]
    assert all(np.array_equal(again[name].read(), value) for name, value in eye.items())
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    assert same(params_of(run), params_of(tmp_path / "again"))


def test_embeddings_shared_by_a_pair_are_stored_once(tmp_path):
    params = params_of(import_reference("electra-pair", tmp_path / "run"))
    assert "embed" in params["discriminator"] and "embed" not in params["generator"]
    assert Run.open(tmp_path / "run").spec.objective.tie == "embeddings"


def test_a_generator_that_shares_nothing_has_its_own_embeddings(tmp_path):
    folder = copied("electra-pair", tmp_path / "theirs")
    rewrite(folder, lambda tensors: {name: value + 1 for name, value in tensors.items()})
    run = import_reference("electra-pair", tmp_path / "run", folder)
    assert Run.open(run).spec.objective.tie == "none"
    export_run(run, tmp_path / "out")
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    assert same(params_of(run), params_of(tmp_path / "again"))


def test_import_and_export_report_the_network_and_the_model_class(tmp_path, capsys):
    theirs = copied("bert-classes", tmp_path / "theirs")
    shutil.copy(HOME / "vocabularies" / "bert" / "vocab.txt", theirs)
    assert launch.main(["import", str(theirs), str(tmp_path / "run")]) == 0
    assert launch.main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "3 layers, Classification, classes, encoder, pooler" in shown and "BertForSequenceClassification" in shown
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "perhaps", "2": "yes"}


def test_a_pooler_without_a_sentence_task_is_imported_and_left_out_of_the_export(tmp_path):
    """As in the published files of RoBERTa and of ALBERT's masked words; transformers would call it unexpected."""
    folder = copied("bert-pretraining", tmp_path / "theirs")
    rewrite(folder, lambda tensors: {name: x for name, x in tensors.items() if "seq_relationship" not in name})
    run = import_reference("bert-pretraining", tmp_path / "run", folder)
    assert Run.open(run).spec.objective.sentence_task is None and "pooler" in params_of(run)
    said = []
    export_run(run, tmp_path / "out", log=said.append)
    assert said == [f"{tmp_path / 'out'}: BertForMaskedLM without the pooler"]
    kept = {name for name in read_weights(folder)[0] if "pooler" not in name}
    assert read_weights(tmp_path / "out")[0].keys() == kept
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_only_a_run_with_a_masked_token_head_fills_masks(tmp_path):
    run = load_predictor(import_reference("bert-classes", tmp_path / "run"))
    with raises_naming(RunError, "masked-token head", "classes, encoder, pooler"):
        next(run.fill_masks(["tan [MASK]"]))


def test_a_folder_that_exists_is_never_written_to(tmp_path):
    run = import_reference("bert-encoder", tmp_path / "run")
    with raises_naming(CheckpointError, tmp_path / "run"):
        import_reference("bert-encoder", run)
    with raises_naming(CheckpointError, tmp_path):
        export_run(run, tmp_path)


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    run = import_reference("bert-encoder", tmp_path / "run")
    monkeypatch.setattr("encoders.exchange.convert.write_tokenizer", lambda *_: 1 / 0)
    for folder in (tmp_path / "out", tmp_path / "made" / "for" / "out"):
        with pytest.raises(ZeroDivisionError):
            export_run(run, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


FOUR = """
import json, sys
sys.path.insert(0, {root!r})
import jax
jax.config.update("jax_num_cpu_devices", 4)
from encoders.exchange.convert import export_run, find_unmatched, import_checkpoint
from encoders.run.run import Run
import_checkpoint({folder!r}, {run!r}, tokenizer_files={tokenizer_files!r})
params = Run.open({run!r}).load_params()[1]
table = params["encoder"]["embed"]["word"]["embedding"]
print(json.dumps([list(table.shape), *(list(piece.data.shape) for piece in table.addressable_shards)]))
export_run({run!r}, {out!r})
"""


def test_every_device_reads_its_share_of_the_parameters(tmp_path):
    """In a process with four of them; what is read and written there is the same as with one."""
    places = dict(run=str(tmp_path / "run"), out=str(tmp_path / "out"), root=str(Path(__file__).parents[2]))
    places |= dict(folder=str(HOME / "bert-pretraining"), tokenizer_files=str(HOME / "vocabularies" / "bert"))
    done = subprocess.run([sys.executable, "-c", FOUR.format(**places)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[61, 12], *[[61, 3]] * 4]
    assert same(params_of(tmp_path / "run"), params_of(import_reference("bert-pretraining", tmp_path / "one")))
    before, after = read_weights(HOME / "bert-pretraining")[0], read_weights(tmp_path / "out")[0]
    assert all(np.array_equal(before[name].read(), after[name].read()) for name in before)


@pytest.mark.parametrize(
    "setting, shown",
    [
        ({"shared_parts": ("attention",)}, "shared_parts="),
        ({"position_offset": 3}, "position_offset=3"),
    ],
)
def test_a_network_that_no_architecture_represents_is_refused_with_the_reason_of_its_family(setting, shown, tmp_path):
    run = import_reference("bert-masked", tmp_path / "like")
    like = Run.open(run)
    network = RunSpec(name="own", model=replace(bert.TINY, **setting), objective=MaskedLM())
    folder = tmp_path / "own"
    folder.mkdir()
    like.tokenizer.save(folder)
    write_json(folder / "experiment.json", build_run_record(network, "mark", like.vocab))
    shapes = jax.eval_shape(partial(init_params, 0, network.objective.module(network.model, like.vocab)))
    save_params(folder / "checkpoints", jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), "none")
    with raises_naming(CheckpointError, "bert: ", shown) as raised:
        export_run(folder, tmp_path / "out")
    assert "albert: " not in str(raised.value)
    assert not (tmp_path / "out").exists()


# What does not fit --------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_tensors_are_one_list(tmp_path):
    def change(tensors):
        tensors.pop("bert.encoder.layer.1.output.dense.bias")
        tensors["bert.pooler.dense.weight"] = np.zeros((12, 13), np.float32)
        return tensors | {"bert.encoder.layer.3.output.dense.bias": np.zeros(12, np.float32)}

    folder = copied("bert-pretraining", tmp_path / "theirs")
    rewrite(folder, change)
    assert_names(
        refused("bert-pretraining", folder, tmp_path / "run"),
        "missing: bert.encoder.layer.1.output.dense.bias",
        "unexpected: bert.encoder.layer.3.output.dense.bias",
        *("bert.pooler.dense.weight is [12, 13]", "[12, 12]"),
    )


def test_extra_tensors_are_left_out_by_name(tmp_path):
    folder = copied("bert-pretraining", tmp_path / "theirs")
    rewrite(folder, lambda tensors: tensors | {"probe.0.weight": np.zeros(3, np.float32)})
    said = refused("bert-pretraining", folder, tmp_path / "run")
    assert "unexpected: probe.0.weight" in said and "--ignore" in said
    words = ["import", str(folder), str(tmp_path / "run"), "--vocabulary", str(HOME / "vocabularies" / "bert")]
    assert launch.main([*words, "--ignore", "probe.*"]) == 0
    assert same(params_of(tmp_path / "run"), params_of(import_reference("bert-pretraining", tmp_path / "plain")))


def test_a_pattern_that_matches_no_name_is_logged(tmp_path):
    lines, folder = [], copied("electra-pair", tmp_path / "theirs")
    rewrite(folder / "generator", lambda tensors: tensors | {"probe.0.weight": np.zeros(3, np.float32)})
    options = dict(tokenizer_files=HOME / "vocabularies" / "electra", log=lines.append)
    import_checkpoint(folder, tmp_path / "run", ignored=["prob.*", "probe.*"], **options)
    (line,) = [line for line in lines if "--ignore" in line]
    assert_names(line, "--ignore prob.* ", "no tensor")
    write_json(tmp_path / "modules.json", [{"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}])
    ignored = IgnoredNames(("2_*", "Normalize", "similarity_fn_name", "Pooling"))
    assert find_unmatched(ignored, tmp_path) == ["Pooling"]


@pytest.mark.parametrize(
    "change, values",
    [
        ({"max_position_embeddings": 10**9}, ["position_embeddings.weight is [19, 12]", "[1000000000, 12]"]),
        ({"model_type": "gpt2"}, ["model_type='gpt2'", "bert, roberta, albert, electra"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type='relative_key'"]),
        ({"is_decoder": True}, ["is_decoder=True"]),
        ({"hidden_act": "swish"}, ["hidden_act='swish'"]),
        ({"hidden_size": "twelve"}, ["hidden_size='twelve'"]),
        ({"hidden_size": 13}, ["model.hidden_size=13"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers=1000000000"]),
        ({"vocab_size": 60}, ["word_embeddings.weight is [61, 12]", "[60, 12]"]),
        ({"hidden_dropout_prob": 2.0}, ["model.hidden_dropout=2.0"]),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, values, tmp_path):
    folder = copied("bert-pretraining", tmp_path / "theirs")
    configure(folder, **change)
    assert_names(refused("bert-pretraining", folder, tmp_path / "run"), *values)


def test_tied_tensors_that_disagree_are_refused(tmp_path):
    folder = copied("bert-pretraining", tmp_path / "theirs")
    copy = "cls.predictions.decoder.weight"
    rewrite(folder, lambda tensors: tensors | {copy: tensors["bert.embeddings.word_embeddings.weight"] + 0.5})
    message = refused("bert-pretraining", folder, tmp_path / "run")
    assert_names(message, copy, "bert.embeddings.word_embeddings.weight", "0.5")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    folder = copied("bert-encoder", tmp_path / "theirs")
    wrong = {"encoder.layer.2.output.dense.bias": np.nan, "pooler.dense.weight": np.inf}
    rewrite(folder, lambda tensors: {name: value + np.float32(wrong.get(name, 0)) for name, value in tensors.items()})
    message = refused("bert-encoder", folder, tmp_path / "run")
    assert_names(message, *(f"bert.{name} " for name in wrong))
    assert message.count("finite") == 2


def test_a_vocabulary_larger_than_the_word_table_is_refused(tmp_path):
    with raises_naming(CheckpointError, "291 entries", "model.vocab_size=61"):
        import_checkpoint(HOME / "bert-encoder", tmp_path / "run", tokenizer_files=HOME / "vocabularies" / "roberta")


def test_a_truncated_file_is_refused(tmp_path):
    folder = copied("bert-encoder", tmp_path / "theirs")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refused("bert-encoder", folder, tmp_path / "run")


def test_a_generator_of_another_discriminator_is_refused(tmp_path):
    folder = copied("electra-pair", tmp_path / "theirs")
    configure(folder / "generator", layer_norm_eps=1e-3)
    assert_names(refused("electra-pair", folder, tmp_path / "run"), "layer_norm_eps=0.001", "1e-12")


def test_problems_of_a_generator_have_a_prefix(tmp_path):
    folder = copied("electra-pair", tmp_path / "theirs")
    lost = "electra.encoder.layer.0.output.dense.bias"
    for part in (folder, folder / "generator"):
        rewrite(part, lambda tensors: {name: value for name, value in tensors.items() if name != lost})
    said = refused("electra-pair", folder, tmp_path / "run").splitlines()
    assert f"  missing: {lost}" in said and f"  generator: missing: {lost}" in said


def test_a_tensor_that_cannot_be_read_is_named(tmp_path):
    """Two bytes of an archive are changed, which its own sum of the entry tells."""
    folder = copied("bert-masked", tmp_path / "theirs")
    path = folder / "pytorch_model.bin"
    table = read_weights(folder)[0]["bert.embeddings.word_embeddings.weight"].read().tobytes()
    content = path.read_bytes()
    assert content.count(table) == 1
    path.write_bytes(content.replace(table, b"\x01\x02" + table[2:]))
    said = refused("bert-masked", folder, tmp_path / "run")
    assert re.search(r"bert.embeddings.word_embeddings.weight: a tensor of shape \[61, 12\] cannot be read: .+", said)


def test_a_folder_without_a_checkpoint_or_without_a_vocabulary_is_refused(tmp_path, capsys):
    assert "nothing" in refused("bert-encoder", tmp_path / "nothing", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused("bert-encoder", tmp_path / "empty", tmp_path / "run")
    assert launch.main(["import", str(HOME / "bert-encoder"), str(tmp_path / "run")]) == 1
    assert "--vocabulary" in capsys.readouterr().err


def test_a_record_of_other_sizes_than_its_parameters_is_refused_before_anything_is_built(tmp_path):
    run = import_reference("bert-encoder", tmp_path / "run")
    record = json.loads((run / "experiment.json").read_text())
    record["experiment"]["model"]["max_positions"] = 10**9
    write_signed_json(run / "experiment.json", record)
    with pytest.raises(RunError, match=r"embed/position/embedding is \[19, 12\] .*\[1000000000, 12\]"):
        load_predictor(run)
