"""ESM-2: counts, the scale of embeddings, packed rows, its alphabet, and what its files say."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from encoders.costs.ledger import count_params, eval_param_shapes
from encoders.data.batch import build_single_example_batch
from encoders.exchange.convert import describe_export, export_run, import_checkpoint
from encoders.exchange.tokenizer_files import CHARACTER_LIST_CLASSES
from encoders.exchange.weights import CheckpointError, read_weights
from encoders.experiment import RunSpec
from encoders.families import esm
from encoders.model.config import derive_generator_config
from encoders.model.encoder import Encoder
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.tasks.question_answering import SpanPrediction
from encoders.text.tokenization import TokenizerSpec, load_tokenizer
from encoders.training.step import init_params
from encoders.utils.errors import UserError
from tests.exchange import references
from tests.exchange.outputs import furthest, ours
from tests.exchange.references import HOME
from tests.families.rows import pack_rows
from tests.refusals import assert_names, raises_naming

# EsmModel without pooler and EsmForMaskedLM of transformers 5.24, without the contact head; tied weights counted once.
COUNTS = {
    "esm2-8m": (7_408_960, 7_512_353),
    "esm2-35m": (33_269_280, 33_501_153),
    "esm2-150m": (147_728_000, 148_139_553),
    "esm2-650m": (649_400_320, 651_042_593),
    "esm2-3b": (2_832_442_880, 2_839_004_193),
}
MASK = 32
TINY = esm.make_esm_config(12, 3, 3, init_std=0.5, rope_theta=90.0)
ALPHABET = HOME / "vocabularies" / "esm"


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_size_has_its_number_of_parameters(name):
    tree = eval_param_shapes(esm.SIZES[name], MaskedLM())
    assert (count_params(tree["encoder"]), count_params(tree)) == COUNTS[name]
    assert COUNTS.keys() == esm.SIZES.keys()


def make_rows(*lengths):
    """Rows of one example each, of these lengths, the first with three masks and the last with one."""
    ids = np.random.default_rng(0).integers(4, MASK, (len(lengths), max(lengths)))
    ids[0, [1, 2, 5]] = ids[-1, 3] = MASK
    return build_single_example_batch(ids, lengths=np.array(lengths))


def encode(config, batch, **kwargs):
    params = jax.jit(Encoder(TINY).init)(jax.random.key(0), make_rows(6))
    return jax.jit(partial(Encoder(config).apply, **kwargs))(params, batch)


def test_packed_examples_have_the_hidden_states_of_rows_of_their_own_whose_shares_of_masks_differ():
    lengths = (9, 14, 6)
    alone = make_rows(*lengths)
    expected = np.concatenate([x[:n] for x, n in zip(encode(TINY, alone), lengths, strict=True)])
    packed = encode(TINY, pack_rows(alone, *lengths))[0, : sum(lengths)]
    np.testing.assert_allclose(packed, expected, rtol=0, atol=3e-6)


def test_embeddings_are_scaled_by_the_share_of_masks_of_their_example_and_zero_on_masks_and_padding():
    lengths = (9, 14, 6)
    scales = np.asarray(esm.compute_token_scale(pack_rows(make_rows(*lengths), *lengths), MASK))[0]
    expected = np.repeat([0.88 / (1 - 3 / 9), 0.88, 0.88 / (1 - 1 / 6), 0], (*lengths, 2))
    expected[[1, 2, 5, 23 + 3]] = 0
    np.testing.assert_allclose(scales, expected, rtol=1e-6)


def test_an_example_of_masks_alone_is_finite():
    batch = build_single_example_batch(np.full((1, 4), MASK))
    assert np.isfinite(encode(TINY, batch)).all()


def test_without_token_dropout_a_mask_is_a_token_like_others():
    batch, plain = make_rows(9, 14), replace(TINY, token_dropout=False, mask_token_id=5)
    params = jax.jit(Encoder(TINY).init)(jax.random.key(0), batch)["params"]
    table = params["embed"]["word"]["embedding"]
    states = encode(plain, batch, output_hidden_states=True)
    np.testing.assert_array_equal(states[0][0, :9], np.asarray(table)[batch.input_ids[0, :9]])


def test_all_hidden_states_end_with_the_norm_after_the_last_layer():
    batch = make_rows(9, 14)
    states = encode(TINY, batch, output_hidden_states=True)
    assert states.shape == (TINY.num_layers + 1, 2, 14, 12)
    np.testing.assert_array_equal(states[-1], encode(TINY, batch))
    assert abs(np.asarray(states[-1]).mean(-1)).max() < 1e-5 < abs(np.asarray(states[-2]).mean(-1)).max()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"hidden_size": 15, "embedding_size": 15}, ["heads of 5"]),
        ({"mask_token_id": 33}, ["mask_token_id=33", "33"]),
        ({"rope_theta": 0.0}, ["rope_theta=0.0"]),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, named):
    with raises_naming(UserError, *named):
        replace(TINY, **changes)


def test_a_vocabulary_whose_mask_has_another_id_is_refused_before_anything_runs(tmp_path):
    vocab = load_tokenizer(HOME / "vocabularies" / "bert").vocab
    config = replace(TINY, vocab_size=61)
    assert_names(config.find_vocabulary_problem(vocab), "mask_token_id=32", vocab.mask_id)
    for fitting in (replace(config, mask_token_id=vocab.mask_id), replace(config, token_dropout=False)):
        assert fitting.find_vocabulary_problem(vocab) is None
    with raises_naming(CheckpointError, "mask_token_id=32", "mask, 4"):
        import_checkpoint(HOME / "esm-masked", tmp_path / "run", tokenizer_files=HOME / "vocabularies" / "bert")
    run = import_run("esm-masked", tmp_path / "run")
    opened = Run.open(run)
    with raises_naming(RunError, "mask_token_id=32", "31"):
        replace(opened, vocab=replace(opened.vocab, mask_id=31))


def test_a_generator_of_half_the_width_has_heads_that_rotate():
    generator = derive_generator_config(esm.SIZES["esm2-150m"], 0.25)
    assert (generator.hidden_size, generator.num_heads, generator.intermediate_size) == (160, 2, 640)


@pytest.mark.parametrize("objective, head", [(SpanPrediction(), "spans"), (ReplacedTokenDetection(0.5), "replaced")])
def test_a_head_that_transformers_has_no_class_for_is_named_before_training(objective, head):
    vocab = load_tokenizer(
        ALPHABET / "vocab.txt", kind="character", own_names=CHARACTER_LIST_CLASSES["EsmTokenizer"]
    ).vocab
    module = objective.module(replace(esm.SIZES["esm2-8m"], num_layers=1), vocab)
    shapes = jax.eval_shape(lambda: init_params(0, module))
    described = describe_export(RunSpec(name="own", model=module.config, objective=objective), vocab.pad_id, shapes)
    assert_names(described, f"esm: it does not have {head}")


# The alphabet ---------------------------------------------------------------------------------------------------------


def test_the_published_list_is_an_alphabet_of_which_text_gives_amino_acids_only():
    names = ("cls=<cls>", "pad=<pad>", "sep=<eos>", "unk=<unk>", "mask=<mask>")
    tokenizer = TokenizerSpec("character", path=str(ALPHABET / "vocab.txt"), special_tokens=names).load()
    vocab = tokenizer.vocab
    assert (vocab.cls_id, vocab.pad_id, vocab.sep_id, vocab.unk_id, vocab.mask_id) == (0, 1, 2, 3, 32)
    assert vocab.special_ids == (0, 1, 2, 3, 31, 32) and vocab.vocab_size == 33 and not tokenizer.lowers_text
    assert tokenizer.encode_batch(["LAG.-", "L A\nG", "Llag"]) == [[4, 5, 6, 29, 30], [4, 5, 6], [4, 3]]
    ids, offsets = tokenizer.encode_with_offsets(["L xy G"])
    assert (ids, offsets) == ([[4, 3, 6]], [[(0, 1), (2, 4), (5, 6)]])
    assert tokenizer.decode([0, 4, 5, 2]) == "<cls>LA<eos>"


def test_the_list_of_an_esm_tokenizer_is_read_whatever_is_beside_it(tmp_path):
    run = import_run("esm-masked", tmp_path / "run")
    export_run(run, tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text().split() == (ALPHABET / "vocab.txt").read_text().split()
    beside = shutil.copytree(ALPHABET, tmp_path / "beside")
    shutil.copy(HOME / "vocabularies" / "modernbert" / "tokenizer.json", beside)
    import_checkpoint(HOME / "esm-masked", tmp_path / "again", tokenizer_files=beside)
    assert Run.open(tmp_path / "again").vocab == Run.open(run).vocab


# What published files say ---------------------------------------------------------------------------------------------


def import_run(name, run, folder=None):
    import_checkpoint(folder or HOME / name, run, tokenizer_files=ALPHABET)
    return run


PUBLISHED = {
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "mask_token_id": 32,
    "emb_layer_norm_before": False,
    "layer_norm_eps": 1e-5,
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    **dict(hidden_size=320, num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280, hidden_act="gelu"),
}


def test_the_published_configuration_is_read():
    read = esm.ARCHITECTURE.read_encoder_config
    assert read(PUBLISHED) == replace(esm.SIZES["esm2-8m"], truncated_init=False)
    other = read(PUBLISHED | {"mask_token_id": 4, "token_dropout": False, "rope_theta": 500.0})
    assert (other.mask_token_id, other.token_dropout, other.rope_theta) == (4, False, 500.0)
    assert read(json.loads(json.dumps(esm.ARCHITECTURE.build_hf_config(other)))) == other


@pytest.mark.parametrize(
    "values, named",
    [
        ({"emb_layer_norm_before": True}, ["emb_layer_norm_before=True"]),
        ({"position_embedding_type": "absolute"}, ["position_embedding_type='absolute'", "rotary"]),
        ({"hidden_act": "relu"}, ["hidden_act='relu'"]),
        ({"is_folding_model": True}, ["is_folding_model=True"]),
        ({"token_dropout": "yes"}, ["token_dropout='yes'"]),
        ({"mask_token_id": None}, ["mask_token_id=None"]),
        ({"mask_token_id": 33}, ["mask_token_id=33"]),
    ],
)
def test_a_value_that_is_not_supported_is_named(values, named):
    with raises_naming(UserError, *named):
        esm.ARCHITECTURE.read_encoder_config(PUBLISHED | values)
    with raises_naming(UserError, "position_embedding_type='absolute'"):
        esm.ARCHITECTURE.read_encoder_config({})


def change_tensors(name, folder, change):
    """Write a copy of a reference checkpoint with other tensors to `folder`."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(HOME / name, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return folder


def with_frequencies(tensors, frequencies):
    """Replace the frequencies under the name of transformers 5.24 by those of each layer, as published."""
    others = {name: x for name, x in tensors.items() if "inv_freq" not in name}
    name = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
    return others | {name.format(layer): frequencies for layer in range(3)}


def test_frequencies_that_were_rounded_to_float16_are_computed_and_exported_so(tmp_path):
    """As in all published files of ESM-2."""
    rounded = np.float32([1, np.float16(1 / np.sqrt(90.0))])
    change = lambda tensors: with_frequencies(tensors, rounded)
    run = import_run("esm-masked", tmp_path / "run", change_tensors("esm-masked", tmp_path / "theirs", change))
    assert Run.open(run).spec.model.rotary_precision == "float16"
    export_run(run, tmp_path / "out")
    np.testing.assert_array_equal(read_weights(tmp_path / "out")[0]["esm.rotary_embeddings.inv_freq"].read(), rounded)
    again = import_run("esm-masked", tmp_path / "again", tmp_path / "out")
    assert Run.open(again).spec.model == Run.open(run).spec.model
    batch, precise = make_rows(9, 14), replace(TINY, rotary_precision="float16")
    assert np.abs(encode(TINY, batch) - encode(precise, batch)).max() > 1e-5


@pytest.mark.parametrize("frequencies", [[1.0, 0.2], [1.0], [1.0, 0.1, 0.01]])
def test_other_frequencies_than_those_of_the_base_are_named(frequencies, tmp_path):
    change = lambda tensors: with_frequencies(tensors, np.float32(frequencies))
    theirs = change_tensors("esm-masked", tmp_path / "theirs", change)
    with raises_naming(CheckpointError, "layer.0.attention.self.rotary_embeddings.inv_freq", "rope_theta=90.0"):
        import_run("esm-masked", tmp_path / "run", theirs)


def test_tensors_that_are_no_part_of_the_network_are_left_out_and_others_are_named(tmp_path):
    unread = {
        "esm.embeddings.position_embeddings.weight": np.zeros((19, 12), np.float32),
        "esm.embeddings.position_ids": np.zeros((1, 19), np.int64),
    }
    theirs = change_tensors("esm-masked", tmp_path / "theirs", lambda tensors: tensors | unread)
    import_run("esm-masked", tmp_path / "run", theirs)
    other = {"esm.contact_head.other.weight": np.zeros(3, np.float32)}
    theirs = change_tensors("esm-masked", tmp_path / "more", lambda tensors: tensors | other)
    with raises_naming(CheckpointError, "unexpected: esm.contact_head.other.weight"):
        import_run("esm-masked", tmp_path / "again", theirs)


def test_the_head_of_contacts_is_exported_as_it_was_imported(tmp_path):
    run = import_run("esm-masked", tmp_path / "run")
    export_run(run, tmp_path / "out")
    theirs, ours = read_weights(HOME / "esm-masked")[0], read_weights(tmp_path / "out")[0]
    names = [name for name in theirs if "contact_head" in name]
    assert sorted(names) == ["esm.contact_head.regression.bias", "esm.contact_head.regression.weight"]
    for name in names:
        np.testing.assert_array_equal(ours[name].read(), theirs[name].read())
    short = lambda tensors: tensors | {"esm.contact_head.regression.weight": np.zeros((1, 2), np.float32)}
    theirs = change_tensors("esm-masked", tmp_path / "short", short)
    with raises_naming(CheckpointError, "contact_head.regression.weight is [1, 2]", "[1, 9]"):
        import_run("esm-masked", tmp_path / "again", theirs)


# Beside transformers --------------------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize("name", COUNTS)
def test_rounded_frequencies_of_published_sizes_are_those_of_torch(name):
    import torch

    config = replace(esm.SIZES[name], rotary_precision="float16")
    head_size = config.hidden_size // config.num_heads
    theirs = (1.0 / 10000 ** (torch.arange(0, head_size, 2).float() / head_size)).half().float().numpy()
    np.testing.assert_array_equal(esm.compute_stored_frequencies(config), theirs)


@pytest.mark.live
def test_outputs_with_rounded_frequencies_equal_those_of_transformers(tmp_path):
    case = references.CASES["esm-masked"]
    model, inputs = references.model_of(case, seed=3), references.inputs_of(case, seed=3)
    frequencies = model.esm.rotary_embeddings.inv_freq
    frequencies.copy_(frequencies.half().float())
    references.safetensors(model, tmp_path / "theirs")
    expected = inputs | references.outputs_of(case, model, inputs)
    run = import_run("", tmp_path / "run", tmp_path / "theirs")
    assert max(furthest(ours(run, expected), expected).values()) < 1e-5


@pytest.mark.live
@pytest.mark.parametrize("reader", ["EsmTokenizer", "AutoTokenizer"])
def test_transformers_reads_the_exported_alphabet_with_equal_ids(reader, tmp_path):
    import transformers

    export_run(import_run("esm-masked", tmp_path / "run"), tmp_path / "out")
    published = transformers.EsmTokenizer.from_pretrained(ALPHABET)
    exported = getattr(transformers, reader).from_pretrained(tmp_path / "out")
    for text in (*references.TEXTS, *references.OWN_TEXTS["esm"]):
        assert exported(text)["input_ids"] == published(text)["input_ids"], text
    assert exported("MKV", "LAG")["input_ids"] == published("MKV", "LAG")["input_ids"]
