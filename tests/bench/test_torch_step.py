"""The same work in torch and transformers, at tiny sizes: it learns, and it is the work that it says it is."""

import math

import numpy as np
import pytest

from encoders.bench import torch_step
from tests.refusals import raises_naming

pytestmark = pytest.mark.live
VOCAB, B, L = 97, 3, 10
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
OWN = {"albert": {"embedding_size": 20, "hidden_act": "gelu_new"}, "electra": {"embedding_size": 20}}


@pytest.fixture(autouse=True)
def torch():
    pytest.importorskip("transformers")
    return pytest.importorskip("torch")


@pytest.fixture
def spec(tmp_path):
    """A training step's order, with what `changes` says; the last `padding` positions of every row are padding."""

    def order(family="bert", padding=0, **changes):
        draw = np.random.default_rng(1)
        original = draw.integers(5, VOCAB, (1, B, L))
        labels = np.where(np.arange(L) % 4 == 1, original, -100)  # positions 1 and 5 and 9
        mask = np.broadcast_to((np.arange(L) < L - padding).astype(int), original.shape)
        ids, types = np.where(labels == -100, original, 4), np.zeros_like(original)
        arrays = {"ids": ids, "original": original, "mask": mask, "types": types, "labels": labels}
        np.savez(tmp_path / "inputs.npz", **arrays, pair=draw.integers(0, 2, (1, B)))
        config = CONFIG | OWN.get(family, {})
        generator = config | {"hidden_size": 12, "intermediate_size": 30} if family == "electra" else None
        fixed = {"task": "train", "dtype": "float32", "engine": "eager", "device": "cpu", "threads": 1}
        own = {"family": family, "config": config, "generator": generator, "pair": family in torch_step.PAIR_LABELS}
        return fixed | own | {"inputs": str(tmp_path / "inputs.npz")} | changes

    return order


def trained(spec, steps=20):
    run, facts = torch_step.build_torch_work(spec)
    return [float(run()) for _ in range(steps)], facts


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_the_loss_starts_at_chance_and_falls(family, spec):
    losses, facts = trained(spec(family))
    pair = {"bert": math.log(2), "albert": math.log(2), "roberta": 0.0, "electra": 50 * math.log(2)}
    assert losses[0] == pytest.approx(math.log(VOCAB) + pair[family], rel=0.1)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    assert facts["attention"] == "eager"


def test_bfloat16_trains_float32_parameters_to_nearly_the_same_loss(spec):
    (exact, _), (rounded, facts) = (trained(spec(dtype=dtype), 1) for dtype in ("float32", "bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_float32_on_a_cpu_is_never_rounded_to_bfloat16(spec, torch):
    torch_step.build_torch_work(spec(task="infer"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_compiled_step_is_compiled_before_it_is_timed(spec):
    one = CONFIG | {"num_hidden_layers": 1}  # half the code to compile
    losses, facts = trained(spec(engine="compile", pair=False, config=one))
    assert facts["compile_seconds"] > 1
    assert losses[-1] < losses[0] < math.log(VOCAB) + 0.5


def test_onnxruntime_and_torch_compute_the_same_hidden_states(spec):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    for padding in (0, 3):
        orders = [spec(padding=padding, task="infer", engine=engine) for engine in ("eager", "onnxruntime")]
        eager, exported = (float(torch_step.build_torch_work(order)[0]()) for order in orders)
        assert exported == pytest.approx(eager, abs=1e-4)


def test_electras_two_models_share_one_tensor_of_embeddings(spec):
    order = spec("electra")
    (generator, discriminator), _ = torch_step.build_torch_electra(order)
    word = discriminator.electra.embeddings.word_embeddings.weight
    assert generator.electra.embeddings.word_embeddings.weight is word
    assert generator.generator_lm_head.weight is word
    both = sum(p.numel() for model in (generator, discriminator) for p in model.parameters())
    shared = sum(p.numel() for p in discriminator.electra.embeddings.parameters())
    assert torch_step.build_torch_work(order)[1]["parameters"] == both - shared


@pytest.mark.parametrize("padding", [0, 3])
def test_a_mask_is_passed_only_where_there_is_padding(padding, spec):
    (batch,) = torch_step.load_torch_batches(spec(padding=padding))
    assert ("attention_mask" in batch["inputs"]) == bool(padding)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_inference_is_the_encoder_without_a_pooler(family, spec):
    run, facts = torch_step.build_torch_work(spec(family, task="infer"))
    assert facts["attention"] == "sdpa, flash_attention"
    assert float(run()) == float(run())
    hidden, embedding = CONFIG["hidden_size"], OWN.get(family, {}).get("embedding_size", CONFIG["hidden_size"])
    rows = VOCAB + CONFIG["max_position_embeddings"] + CONFIG["type_vocab_size"] + 2  # and a norm's two
    layer = (
        4 * hidden * (hidden + 1) + 2 * hidden * CONFIG["intermediate_size"] + CONFIG["intermediate_size"] + 5 * hidden
    )
    project = (embedding + 1) * hidden if embedding != hidden else 0
    assert facts["parameters"] == rows * embedding + project + layer * (1 if family == "albert" else 2)


def test_inference_in_bfloat16_gives_nearly_the_same_checksum(spec):
    exact, rounded = (
        float(torch_step.build_torch_work(spec(task="infer", dtype=dtype))[0]()) for dtype in ("float32", "bfloat16")
    )
    assert rounded == pytest.approx(exact, abs=0.02 * B * L)
    assert rounded != exact


def test_an_engine_that_cannot_do_the_work_is_named(spec):
    with raises_naming(ValueError, "engine='onnxruntime'", "train, cpu, float32", "eager, compile"):
        torch_step.build_torch_work(spec(engine="onnxruntime"))
