"""DeBERTa-v3: counts, distances, packed rows, its head of replaced tokens, and what its files say."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from encoders.costs.ledger import count_params, eval_param_shapes
from encoders.exchange.convert import export_run, import_checkpoint
from encoders.exchange.weights import CheckpointError, read_weights
from encoders.experiment import RunSpec
from encoders.families import deberta
from encoders.inference.predictor import load_predictor
from encoders.model.encoder import Encoder
from encoders.model.flops import forward_flops
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.folder import build_run_record
from encoders.run.run import Run
from encoders.run.warm_start import transfer_params
from encoders.tasks.classification import Classification
from encoders.tasks.question_answering import SpanPrediction
from encoders.tasks.token_classification import TokenClassification
from encoders.text.tokenization import load_tokenizer
from encoders.training.checkpoint import save_params
from encoders.training.step import init_params
from encoders.utils.errors import UserError
from encoders.utils.files import write_json
from tests.exchange.references import DISTANCES, HOME
from tests.families.rows import make_rows, pack_rows

# DebertaV2Model, ForMaskedLM, ForSequenceClassification of two classes, ForTokenClassification of two.
COUNTS = {
    "deberta-v3-xsmall": (70_682_112, 70_958_820, 70_830_722, 70_682_882),
    "deberta-v3-small": (141_304_320, 142_024_548, 141_896_450, 141_305_858),
    "deberta-v3-base": (183_831_552, 184_551_780, 184_423_682, 183_833_090),
    "deberta-v3-large": (434_012_160, 435_191_908, 435_063_810, 434_014_210),
    "mdeberta-v3-base": (278_218_752, 279_061_880, 278_810_882, 278_220_290),
}
TINY = deberta.make_deberta_config(
    12, 2, num_heads=3, vocab_size=40, max_positions=64, position_buckets=6, init_std=0.5, hidden_dropout=0.0
)


@pytest.mark.parametrize("name", deberta.SIZES)
def test_a_published_size_has_its_number_of_parameters(name):
    config, labels = deberta.SIZES[name], ("a", "b")
    count = lambda objective: count_params(eval_param_shapes(config, objective))
    encoder = count_params(eval_param_shapes(config, MaskedLM())["encoder"])
    heads = MaskedLM(), Classification(labels, "pooled"), TokenClassification(labels)
    assert (encoder, *map(count, heads)) == COUNTS[name]
    assert count(SpanPrediction()) == count(TokenClassification(labels))


def test_near_distances_have_buckets_of_their_own_and_far_ones_share_them():
    rows = deberta.bucket_distances(np.arange(-600, 601), 256, 512)
    assert rows[0] == 0 and rows[-1] == 511 and (np.diff(rows) >= 0).all()
    np.testing.assert_array_equal(rows[600 + np.arange(512)], 512 - rows[600 - np.arange(512)])
    near = np.arange(-128, 129)
    np.testing.assert_array_equal(rows[600 + near], 256 + near)
    # By the formula of https://github.com/microsoft/DeBERTa, in float64.
    far = np.arange(129, 512)
    expected = 128 + np.ceil(np.log(far / 128) / np.log(511 / 128) * 127)
    np.testing.assert_array_equal(rows[600 + far], 256 + expected)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_aligned_scores_are_those_of_the_distance_between_query_and_key(length):
    scores = np.random.default_rng(0).normal(size=(2, 3, length, 2 * length - 1))
    aligned = deberta.align_distances(jnp.asarray(scores))
    for i in range(length):
        for j in range(length):
            np.testing.assert_array_equal(aligned[:, :, i, j], scores[:, :, i, length - 1 - i + j].astype(np.float32))


@pytest.mark.parametrize("method", ["__call__", "judge"])
def test_examples_packed_into_a_row_have_the_hidden_states_and_verdicts_of_rows_of_their_own(method):
    lengths, module = (9, 14, 6), Discriminator(TINY)
    alone = make_rows(*lengths)
    params = jax.jit(partial(module.init, method="judge"))(jax.random.key(0), alone)
    compute = jax.jit(partial(module.apply, params, method=method))
    outputs, packed = compute(alone), compute(pack_rows(alone, *lengths))
    expected = np.concatenate([outputs[i, :length] for i, length in enumerate(lengths)])
    np.testing.assert_allclose(packed[0, : sum(lengths)], expected, rtol=0, atol=5e-6)


class Discriminator(Encoder):
    """An encoder with its head of replaced tokens."""

    def judge(self, batch):
        return self.config.replaced_head(self.config, parent=None).apply(self.head_params(batch), self(batch), batch)

    def head_params(self, batch):
        hidden = jnp.zeros((*batch.input_ids.shape, self.config.hidden_size))
        return self.config.replaced_head(self.config, parent=None).init(jax.random.key(1), hidden, batch)


def test_shared_layers_compute_what_equal_layers_do():
    batch, config = make_rows(9, 14), replace(TINY, shared_parts=("attention", "feed_forward"))
    params = jax.jit(Encoder(config).init)(jax.random.key(0), batch)["params"]
    layers = jax.tree.map(lambda stack: jnp.repeat(stack, TINY.num_layers, axis=0), params["shared"])
    equal = {"embed": params["embed"], "row_features": params["row_features"], "layers": layers}
    outputs = [jax.jit(Encoder(c).apply)({"params": p}, batch) for c, p in ((config, params), (TINY, equal))]
    np.testing.assert_allclose(*outputs, rtol=0, atol=2e-6)


@pytest.mark.live
def test_layers_that_are_computed_again_give_equal_outputs_and_gradients():
    batch, config = make_rows(9, 14), replace(TINY, remat="full")
    params = Encoder(TINY).init(jax.random.key(0), batch)
    loss = lambda config: jax.jit(jax.value_and_grad(lambda p: jnp.square(Encoder(config).apply(p, batch)).sum()))
    for expected, found in zip(*map(jax.tree.leaves, (loss(TINY)(params), loss(config)(params))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_flops_count_the_scores_of_distances():
    size, plain = np.array([100.0]), deberta.BASE.num_layers * 100 * 2.0 * (4 * 768**2 + 2 * 768 * 3072)
    # Of each pair a score and a value, and of each token and side twice as many scores of distances.
    assert forward_flops(deberta.BASE, size) == plain + 12 * 100 * 2 * 768 * (2 + 4) * 100


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"position_buckets": 1}, ["position_buckets=1"]),
        ({"max_relative_positions": 0}, ["max_relative_positions=0"]),
        ({"attention_impl": "cudnn", "attention_dropout": 0.0, "dtype": "bfloat16"}, ["attention_impl='cudnn'", "xla"]),
    ],
)
def test_a_size_that_does_not_fit_is_named(changes, named):
    with pytest.raises(UserError) as caught:
        replace(TINY, **changes)
    assert all(words in str(caught.value) for words in named)


# What config.json says ------------------------------------------------------------------------------------------------

# As beside the released v3-base; other fields have the defaults of transformers.
PUBLISHED = deberta.V3_VALUES | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
PUBLISHED |= {"intermediate_size": 3072, "position_buckets": 256, "max_relative_positions": -1, "model_type": "x"}


def test_a_published_configuration_is_read():
    read = deberta.ARCHITECTURE.read_encoder_config
    assert read(PUBLISHED) == deberta.BASE
    assert read(PUBLISHED | {"pos_att_type": ["c2p", "p2c"]}) == deberta.BASE
    near = replace(deberta.BASE, max_relative_positions=100)
    assert read(json.loads(json.dumps(deberta.ARCHITECTURE.build_hf_config(near)))) == near


@pytest.mark.parametrize(
    "values, named",
    [
        (None, ["relative_attention=False"]),
        ({"position_biased_input": True}, ["position_biased_input=True"]),
        ({"pos_att_type": "c2p"}, ["pos_att_type='c2p'"]),
        ({"share_att_key": False}, ["share_att_key=False"]),
        ({"norm_rel_ebd": "none"}, ["norm_rel_ebd='none'"]),
        ({"conv_kernel_size": 3}, ["conv_kernel_size=3"]),
        ({"type_vocab_size": 2}, ["type_vocab_size=2"]),
        ({"pooler_hidden_act": "tanh"}, ["pooler_hidden_act='tanh'"]),
        ({"embedding_size": 128}, ["embedding_size=128", "768"]),
        ({"position_buckets": -1}, ["position_buckets=-1"]),
        ({"max_relative_positions": "all"}, ["max_relative_positions='all'"]),
    ],
)
def test_a_value_that_is_not_supported_is_named(values, named):
    with pytest.raises(UserError) as caught:
        deberta.ARCHITECTURE.read_encoder_config({} if values is None else PUBLISHED | values)
    assert all(words in str(caught.value) for words in named)


# Published files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path):
    """The files of a released discriminator: half precision, its two heads, and a table of the mask decoder."""
    folder = shutil.copytree(HOME / "deberta-v2-released", tmp_path / "theirs")
    draw = np.random.default_rng(0)
    shapes = {"dense.weight": (12, 12), "dense.bias": 12, "classifier.weight": (1, 12), "classifier.bias": 1}
    shapes |= {"LayerNorm.weight": 12, "LayerNorm.bias": 12}
    extra = {f"mask_predictions.{name}": draw.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    extra["deberta.embeddings.position_embeddings.weight"] = np.zeros((19, 12), np.float16)
    path = folder / "model.safetensors"
    save_file(load_file(path) | extra, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))
    shutil.copy(HOME / "vocabularies" / "deberta-v2" / "spm.model", folder)
    return folder


def test_a_released_file_is_imported_as_a_discriminator_and_what_is_not_read_is_named(released, tmp_path):
    lines = []
    import_checkpoint(released, tmp_path / "run", log=lines.append)
    run = Run.open(tmp_path / "run")
    assert run.spec.objective == ReplacedTokenDetection(generator_width=None)
    unread = next(line for line in lines if "position_embeddings" in line)
    assert all(name in unread for name in ("cls.predictions.bias", "cls.predictions.transform.dense.weight"))
    batch = make_rows(9, 5)
    apply = partial(run.module.apply, {"params": run.load_params()[1]})
    logits = apply(batch, method="compute_replaced_logits")
    # By the formula of microsoft/DeBERTa.
    hidden = np.asarray(apply(batch, method=lambda module, batch: module.discriminator(batch)), np.float64)
    tensors = {name: np.asarray(x, np.float64) for name, x in load_file(released / "model.safetensors").items()}
    head = lambda name: tensors[f"mask_predictions.{name}"]
    x = hidden + hidden[:, :1]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-7)
    x = x * head("LayerNorm.weight") + head("LayerNorm.bias")
    x = np.asarray(jax.nn.gelu(x @ head("dense.weight").T + head("dense.bias"), approximate=False))
    expected = (x @ head("classifier.weight").T + head("classifier.bias"))[..., 0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_an_exported_discriminator_has_the_names_of_the_released_files_and_comes_back_to_the_bit(released, tmp_path):
    import_checkpoint(released, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["DebertaV2Model"]
    published, exported = read_weights(released)[0], read_weights(tmp_path / "out")[0]
    left_out = {name for name in published if "position_embeddings" in name or "lm_predictions" in name}
    assert exported.keys() == published.keys() - left_out
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    before, after = (Run.open(tmp_path / name) for name in ("run", "again"))
    assert before.spec.objective == after.spec.objective
    jax.tree.map(np.testing.assert_array_equal, before.load_params()[1], after.load_params()[1])


def test_a_disentangled_discriminator_leaves_its_run_with_the_sum_of_its_tables(tmp_path):
    """In an export, and as what other objectives start from."""
    objective = ReplacedTokenDetection(generator_width=1, generator_depth=0.5, tie="disentangled")
    tokenizer = load_tokenizer(HOME / "vocabularies" / "deberta-v2")
    model = replace(TINY, vocab_size=48, num_heads=1, intermediate_size=48)
    params = jax.jit(partial(init_params, module=objective.module(model, tokenizer.vocab)))(0)
    params["words"]["shift"] = jax.random.normal(jax.random.key(1), params["words"]["shift"].shape)
    own = params["generator"]["embed"]["word"]["embedding"]
    run = tmp_path / "run"
    run.mkdir()
    tokenizer.save(run)
    spec = RunSpec(name="own", model=model, objective=objective)
    write_json(run / "experiment.json", build_run_record(spec, "mark", tokenizer.vocab))
    save_params(run / "checkpoints", params, "none")
    export_run(run, tmp_path / "out")
    name = "deberta.embeddings.word_embeddings.weight"
    read_table = lambda folder: read_weights(tmp_path / folder)[0][name].read()
    np.testing.assert_array_equal(read_table("out"), own + params["words"]["shift"])
    np.testing.assert_array_equal(read_table("out/generator"), own)
    encoder = transfer_params(params, objective, MaskedLM())["encoder"]
    np.testing.assert_array_equal(encoder["embed"]["word"]["embedding"], own + params["words"]["shift"])
    assert transfer_params(params, objective, objective) == params
    # The tables that an import finds differ, so each network has one of its own there.
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    again = Run.open(tmp_path / "again")
    assert again.spec.objective.tie == "none" and again.spec.objective.generator_depth == 0.5
    vectors = [list(load_predictor(folder).embed(["tan ber", "mut"])) for folder in (run, tmp_path / "again")]
    np.testing.assert_allclose(*vectors, rtol=0, atol=1e-5)


def test_a_file_with_the_masked_token_head_twice_is_refused(released, tmp_path):
    path = released / "model.safetensors"
    save_file(load_file(path) | {"cls.predictions.bias": np.zeros(48, np.float16)}, path)
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.bias"):
        import_checkpoint(released, tmp_path / "run")


def test_every_key_of_the_references_says_what_v3_has():
    assert DISTANCES.items() >= deberta.V3_VALUES.items()
