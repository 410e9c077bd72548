from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.costs import ledger
from encoders.costs.ledger import compute_forward_flops
from encoders.data.batch import build_single_example_batch
from encoders.data.formats import FullSentences
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment
from encoders.families import albert, bert, electra
from encoders.model.config import EncoderConfig
from encoders.model.flops import forward_flops
from encoders.model.layers import CausalSelfAttention
from encoders.objectives.causal_lm import CausalLM
from encoders.objectives.embedding_losses import InfoNCE, NoComparison
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.masking import Masking
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.restored_tokens import ReplaceMLM
from encoders.tasks.contrastive import Contrastive
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW

TINY = EncoderConfig(
    vocab_size=500, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512, embedding_size=64,
    hidden_dropout=0.0, attention_dropout=0.0,
    unroll_layers=True,  # XLA counts the body of a loop once
)  # fmt: skip


def experiment(model, objective, length=40, batch=2, start=None):
    return Experiment(
        name="costs",
        model=model,
        objective=objective,
        data=PretrainingData(tokenizer=TokenizerSpec(vocab_size=model.vocab_size)),
        optimizer=AdamW(learning_rate=0.1, warmup_steps=0),
        phases=(Phase(until_step=1, seq_length=length, batch_size=batch, format=FullSentences()),),
        init_from=start,
    )


def test_factorised_embeddings_of_albert_take_a_sixth():
    line = ledger.describe_embedding_size(albert.BASE)
    assert line == "V x H = 30,000 x 768 = 23.04 M; factorised V x E + E x H = 30,000 x 128 + 128 x 768 = 3.94 M"
    assert ledger.describe_embedding_size(bert.BASE) == "V x H = 30,522 x 768 = 23.44 M"


def test_parameters_are_counted_by_part():
    tree = ledger.eval_param_shapes(TINY, MaskedLM(Masking()))
    parts = ledger.count_params_by_part(tree)
    assert parts == {
        "encoder/embed/word": 500 * 64,
        "encoder/embed/position": 512 * 64,
        "encoder/embed/segment": 2 * 64,
        "encoder/embed/norm": 2 * 64,
        "encoder/project": 64 * 128 + 128,
        "encoder/layers/attend": 2 * (4 * (128 * 128 + 128) + 2 * 128),
        "encoder/layers/transform": 2 * (2 * 128 * 512 + 512 + 128 + 2 * 128),
        "tokens": 128 * 64 + 64 + 2 * 64 + 500,
    }
    assert ledger.count_params(tree) == sum(parts.values())


def test_attention_costs_the_square_of_each_example_and_not_of_the_row():
    sizes = np.array([100, 300, 112])
    together = ledger.step_flops(experiment(bert.BASE, MaskedLM(Masking())), sizes)
    assert together.tolist() == [
        ledger.step_flops(experiment(bert.BASE, MaskedLM(Masking())), np.array([size])).item() for size in sizes
    ]
    assert together.sum() < ledger.step_flops(experiment(bert.BASE, MaskedLM(Masking())), np.array([512])).item()


@pytest.mark.parametrize(
    "model, objective",
    [
        (TINY, MaskedLM(Masking())),
        (electra.to_electra_config(TINY), ReplacedTokenDetection(generator_width=1 / 2)),
        (replace(TINY, attention=CausalSelfAttention), CausalLM()),
        (TINY, ReplaceMLM(generator_width=1 / 2)),
        (TINY, ReplaceMLM(generator_width=1 / 2, loss_over="chosen")),
    ],
    ids=["mlm", "rtd", "clm", "all tokens", "replace mlm"],
)
def test_the_flops_of_a_step_are_those_that_xla_counts(model, objective):
    module = objective.module(model, ledger.make_blank_vocab(model.vocab_size))
    rows = jax.tree.map(lambda field: jnp.repeat(field, 2, axis=0), build_single_example_batch(np.full((1, 40), 10)))
    batch = jax.eval_shape(lambda: objective.corrupt(rows, module.vocab, 0))

    def loss(params, batch):
        metrics = module.apply({"params": params}, batch, True)
        return sum(metrics[name].total for name in objective.loss_weights)

    counted = jax.jit(jax.grad(loss)).lower(ledger.eval_param_shapes(model, objective), batch).cost_analysis()["flops"]
    ours = 2 * ledger.step_flops(experiment(model, objective), np.array([40])).item()
    assert ours < counted < 1.1 * ours  # XLA counts softmax, norms and activations too


def test_sentence_embeddings_cost_the_passes_over_their_tokens_too():
    sizes, vectors, tokens = np.array([100]), InfoNCE(), NoComparison()
    cost = lambda *given, **changes: compute_forward_flops(Contrastive(*given, **changes), TINY, sizes)
    once, masked_lm = forward_flops(TINY, sizes), compute_forward_flops(MaskedLM(Masking()), TINY, sizes)
    assert cost(vectors) == {"encoder": once}
    assert cost(vectors, masking=Masking()) == masked_lm | {"encoder": 2 * once}
    assert cost(tokens, masking=Masking()) == masked_lm
    denoised, beside = (cost(loss, deletion_rate=0.6) for loss in (tokens, vectors))
    assert beside["encoder"] - denoised["encoder"] == once and denoised["encoder"] == forward_flops(TINY, 0.4 * sizes)
    assert denoised["decoder"] == once + 2 * 2 * 2 * 128**2 * sizes  # two products of 128 x 128 in two layers
    assert denoised["tokens"] == compute_forward_flops(CausalLM(), TINY, sizes)["tokens"]


def test_a_generator_that_is_kept_as_it_is_costs_no_backward_pass():
    both = ReplacedTokenDetection(generator_width=1.0, tie="none")
    kept = experiment(TINY, replace(both, generator_training="two_stage"), start="runs/mlm")
    sizes = np.array([40])
    costs = compute_forward_flops(both, TINY, sizes)
    once = 40 * 2 * (128 * 128 + 128) + costs["discriminator"]
    assert ledger.step_flops(kept, sizes) == 3 * once + forward_flops(TINY, sizes) + costs["tokens"]
    assert ledger.step_flops(experiment(TINY, both), sizes) == 3 * (once + forward_flops(TINY, sizes) + costs["tokens"])
    ratio = ledger.estimate_memory(experiment(TINY, both))["activations"] / ledger.estimate_memory(kept)["activations"]
    assert ratio == 2


def test_the_ledger_of_a_large_model_needs_no_memory_and_says_all():
    text = ledger.format_ledger(experiment(bert.LARGE, MaskedLM(Masking()), length=512, batch=256))
    head = 77 / 512 * 2 * (1024 * 1024 + 1024 * 30_522)  # a token
    flops = 3 * (forward_flops(bert.LARGE, np.array([512])).item() / 512 + head) / 1e6
    assert "335,174,458" in text and f"{flops:,.1f} M in training" in text  # 0.15 x 512 = 76.8 predictions
    assert "31.25 M" in text and "GiB" in text


def test_memory_counts_twelve_bytes_a_parameter_and_less_where_activations_are_recomputed():
    sizes = {
        remat: ledger.estimate_memory(experiment(EncoderConfig(**vars(TINY) | {"remat": remat}), MaskedLM(Masking())))
        for remat in ("none", "dots", "full")
    }
    count = ledger.count_params(ledger.eval_param_shapes(TINY, MaskedLM(Masking())))
    assert {size["parameters and moments"] for size in sizes.values()} == {12 * count}
    assert sizes["none"]["activations"] > sizes["dots"]["activations"] > sizes["full"]["activations"] > 0
