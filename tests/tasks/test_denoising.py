"""Texts that are predicted from the vectors of shortened ones (TSDAE): the decoder, its loss, and a run."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.exchange.convert import export_run, import_checkpoint
from encoders.experiment import RunSpec
from encoders.inference.predictor import load_predictor
from encoders.measures.minimal_pairs import MinimalPairs
from encoders.objectives.embedding_losses import InfoNCE, Matryoshka, NoComparison
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.run import loop
from encoders.run.folder import RunError
from encoders.run.run import Run
from encoders.tasks.contrastive import Contrastive
from encoders.text.tokenization import load_tokenizer
from encoders.training.optimizer import flatten_with_paths
from encoders.training.step import compute_gradients
from encoders.utils.errors import UserError
from tests import task_examples
from tests.finetuning.tiny import MODEL
from tests.networks import make_vocab, random_parameters, write_random_run
from tests.refusals import raises_naming
from tests.tasks.test_contrastive import build_pairs_run
from tests.tasks.text_rows import make_text_batch

VOCAB = make_vocab(MODEL.vocab_size)
TSDAE = Contrastive(NoComparison(), "cls", deletion_rate=0.6)
CONFIG = replace(MODEL, num_layers=2, hidden_dropout=0.0, attention_dropout=0.0)
BATCH = make_text_batch(num_rows=8, num_texts=3)


@pytest.fixture(scope="module")
def params():
    return random_parameters(TSDAE, CONFIG, VOCAB, BATCH)


def test_a_token_is_predicted_from_the_vector_of_its_text_and_the_tokens_before_it(params):
    module = TSDAE.module(CONFIG, VOCAB)
    read_rows = lambda module, ids, vectors: module.encoder.decode(
        BATCH.replace(input_ids=ids), vectors, module.decoder["layers"]
    )
    decode = jax.jit(lambda *args: module.apply({"params": params}, *args, method=read_rows))
    vectors = np.random.default_rng(0).normal(size=(8, 3, CONFIG.hidden_size)).astype(np.float32)
    other_vectors, other_ids = vectors.copy(), np.array(BATCH.input_ids)
    other_vectors[:, 1] += 1.0
    place = int(BATCH.cls_positions[0, 1]) + 1
    other_ids[0, place] = 399
    hidden = decode(BATCH.input_ids, vectors)
    by_vector = np.abs(decode(BATCH.input_ids, other_vectors) - hidden).max(-1) > 1e-6
    by_token = np.abs(decode(other_ids, vectors) - hidden).max(-1) > 1e-6
    is_token = BATCH.example_ids > 0
    np.testing.assert_array_equal(by_vector & is_token, BATCH.example_ids == 2)
    follows = (BATCH.example_ids[0] == 2) & (np.arange(len(other_ids[0])) >= place)
    np.testing.assert_array_equal(by_token[0] & is_token[0], follows)
    assert not by_token[1:].any()


def test_objectives_that_contradict_themselves_are_refused():
    with raises_naming(UserError, "NoComparison", "deletion_rate", "masking"):
        Contrastive(NoComparison())
    with raises_naming(UserError, "objective.masking=Masking", "deletion_rate=0.6", "one of them"):
        Contrastive(masking=Masking(), deletion_rate=0.6)
    with raises_naming(UserError, "deletion_rate=1"):
        Contrastive(deletion_rate=1)
    with raises_naming(UserError, "objective.loss.loss=NoComparison", "whole vectors"):
        Matryoshka(NoComparison(), (4,))


def test_masks_are_filled_by_the_head_that_reads_the_encoder_and_not_by_that_of_a_decoder(tmp_path):
    tokenizer = load_tokenizer(task_examples.vocabulary(tmp_path))
    config = replace(MODEL, vocab_size=tokenizer.vocab.vocab_size)
    objectives = {"masked": MaskedLM(Masking()), "both": Contrastive(masking=Masking()), "denoised": TSDAE}
    for name, objective in objectives.items():
        write_random_run(tmp_path / name, RunSpec(name=name, model=config, objective=objective), tokenizer)
    fill = lambda name: list(load_predictor(tmp_path / name).fill_masks("a [MASK] b", top_k=3))
    (((expected, *_),),), (((best, *_),),) = fill("masked"), fill("both")
    assert best == (expected[0], pytest.approx(expected[1], rel=1e-5))
    with raises_naming(RunError, str(tmp_path / "denoised"), "decoder"):
        fill("denoised")
    assert "masked-token" in MinimalPairs().find_problem(Run.open(tmp_path / "denoised"))


@pytest.mark.live
@pytest.mark.parametrize("loss", [NoComparison(), InfoNCE()], ids=["alone", "beside a loss of vectors"])
def test_micro_steps_have_the_gradients_of_the_whole_batch(params, loss):
    objective = replace(TSDAE, loss=loss)
    module, batch = objective.module(CONFIG, VOCAB), jax.tree.map(jnp.asarray, BATCH)
    compute = jax.jit(compute_gradients, static_argnames=("module", "grad_accum_steps"))
    (loss, _), whole = compute(params, batch, 0, 0, module=module)
    (chunked_loss, _), chunked = compute(params, batch, 0, 0, module=module, grad_accum_steps=4)
    assert float(chunked_loss) == pytest.approx(float(loss), rel=1e-6)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * size), chunked, whole)


@pytest.mark.live
def test_a_run_on_texts_alone_learns_and_leaves_its_decoder_behind(tmp_path):
    made = build_pairs_run(tmp_path, objective=replace(TSDAE, best_score="spearman"))
    result = loop.train(made, tmp_path / "run", lambda line: None)
    assert 0 < result["heldout"]["reconstruction_loss"] < np.log(MODEL.vocab_size)
    assert "contrastive_loss" not in result["heldout"] and result["best"]["spearman"] > 0.5
    export_run(tmp_path / "run", tmp_path / "exported", log=(lines := []).append)
    assert "BertModel without the decoder, tokens" in " ".join(lines)
    assert next(load_predictor(tmp_path / "run").embed("good")).shape == (MODEL.hidden_size,)


@pytest.mark.live
def test_loss_and_gradients_are_those_of_transformers_with_a_decoder_of_equal_weights(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = dict(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    plain = dict(**sizes, max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    plain |= dict(attn_implementation="eager")
    torch.manual_seed(0)
    decoder_config = transformers.BertConfig(**plain, is_decoder=True, add_cross_attention=True)
    decoder = transformers.BertLMHeadModel(decoder_config).eval()
    for name, parameter in decoder.named_parameters():
        torch.nn.init.normal_(parameter, float("LayerNorm.weight" in name), 0.2)
    encoder = transformers.BertForMaskedLM(transformers.BertConfig(**plain)).eval()
    missing, left = encoder.load_state_dict(decoder.state_dict(), strict=False)
    assert not missing and all("crossattention" in name for name in left)
    encoder.save_pretrained(tmp_path / "published")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(395))]
    (tmp_path / "published" / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    import_checkpoint(tmp_path / "published", tmp_path / "run")
    predictor = load_predictor(tmp_path / "run")
    params = dict(jax.tree.map(np.asarray, predictor.params))
    tensors = {name: tensor.detach().numpy() for name, tensor in decoder.state_dict().items()}
    read = lambda end: np.stack(
        [tensors[f"bert.encoder.layer.{layer}.crossattention.{end}"] for layer in range(sizes["num_hidden_layers"])]
    )
    dense = lambda name: {"kernel": read(f"{name}.weight").swapaxes(1, 2), "bias": read(f"{name}.bias")}
    norm = {"scale": read("output.LayerNorm.weight"), "bias": read("output.LayerNorm.bias")}
    memory = {"value": dense("self.value"), "out": dense("output.dense"), "norm": norm}
    params = {name: params[name] for name in ("encoder", "tokens")} | {"decoder": {"layers": {"memory": memory}}}

    objective = Contrastive(NoComparison(), "mean", deletion_rate=0.6)
    batch = jax.tree.map(jnp.asarray, make_text_batch(num_rows=6, num_texts=1, seq_length=12))
    module = objective.module(predictor.config, VOCAB)
    (loss, _), gradients = jax.jit(compute_gradients, static_argnames="module")(params, batch, 0, 0, module=module)

    as_tensor = lambda x: torch.tensor(np.array(x), dtype=torch.long)
    seen = objective.corrupt(batch, VOCAB, 0)
    ids, short_ids = as_tensor(batch.input_ids), as_tensor(seen.shortened.input_ids)
    mask, short_mask = as_tensor(batch.example_ids > 0), as_tensor(seen.shortened.example_ids > 0)
    hidden = encoder.bert(short_ids, attention_mask=short_mask).last_hidden_state
    vectors = (hidden * short_mask[..., None]).sum(1) / short_mask.sum(1, keepdim=True)
    logits = decoder(ids, attention_mask=mask, encoder_hidden_states=vectors[:, None]).logits
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-5)
    of_torch = {name: p.grad for name, p in decoder.named_parameters()}
    shared = {name: p.grad for name, p in encoder.named_parameters()}
    grad = lambda name: (of_torch[name] + (0 if shared.get(name) is None else shared[name])).numpy()
    by_path, layers = dict(flatten_with_paths(gradients)), "bert.encoder.layer"
    pairs = {
        "bert.embeddings.word_embeddings.weight": by_path["encoder/embed/word/embedding"],
        f"{layers}.1.attention.self.query.weight": by_path["encoder/layers/attend/query/kernel"][1].T,
        f"{layers}.0.intermediate.dense.weight": by_path["encoder/layers/transform/up/kernel"][0].T,
        f"{layers}.0.crossattention.self.value.weight": by_path["decoder/layers/memory/value/kernel"][0].T,
        f"{layers}.1.crossattention.output.LayerNorm.bias": by_path["decoder/layers/memory/norm/bias"][1],
    }
    for name, ours in pairs.items():
        theirs = grad(name)
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max(), name
