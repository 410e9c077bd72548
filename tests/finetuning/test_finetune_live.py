"""Fine-tuning beside transformers on torch: the same batches, updates and rates give the same losses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.stream import BatchStream
from encoders.exchange.convert import export_run
from encoders.families import albert, bert, electra, roberta
from encoders.finetuning.grids import Recipe, build_finetuning
from encoders.run import loop
from encoders.run.run import Run
from encoders.tasks.glue import GLUE_TASKS
from encoders.training import step
from encoders.training.optimizer import AdamW
from tests import task_examples

pytestmark = pytest.mark.live
TINY = dict(
    vocab_size=400,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=48,
    max_positions=64,
    init_std=0.1,
    hidden_dropout=0.0,
)
FAMILIES = {"bert": bert, "roberta": roberta, "albert": albert, "electra": electra}
HEADS = {"bert": "pooled", "roberta": "tanh", "albert": "pooled", "electra": "gelu"}  # those of transformers
STEPS = 12


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_losses_equal_those_of_torch(family, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    embedding = 16 if family in ("albert", "electra") else 32
    model = replace(FAMILIES[family].SIZES[f"{family}-base"], **TINY, embedding_size=embedding, attention_dropout=0.0)
    words = task_examples.vocabulary(tmp_path, "bpe" if family == "roberta" else "wordpiece")
    adam = AdamW(1.0, 0, bias_correction=True)
    recipe = Recipe(
        2e-3, 8, num_steps=STEPS, warmup=3, max_seq_length=32, head_dropout=0.0, optimizer=adam, num_length_buckets=1
    )
    given = dict(init_from=None, config=model, tokenizer_path=words)
    experiment = build_finetuning(
        family, GLUE_TASKS["SST-2"], task_examples.classes(tmp_path / "SST-2"), recipe, 96, **given
    )
    objective = replace(experiment.objective, head=HEADS[family])
    data = replace(experiment.data, store_dir=str(tmp_path / "stores"))
    experiment = replace(experiment, objective=objective, data=data)
    begin = replace(
        experiment, name="begin", optimizer=replace(experiment.optimizer, learning_rate=1e-30, warmup_steps=0)
    )
    begin = replace(begin, phases=(replace(experiment.phases[0], until_step=1),))
    loop.train(begin, tmp_path / "begin", lambda line: None)  # leaves the parameters as they were
    export_run(tmp_path / "begin", tmp_path / "out")

    run = Run.open(tmp_path / "begin")
    _, params = run.load_params()
    stream = BatchStream(run.store.train_split, run.vocab, experiment.phases, 0, 1, run.store.path / "tables")
    state = jax.jit(lambda: step.init_train_state(0, module=run.module, optimizer=experiment.optimizer))().replace(
        params=params
    )
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    excluded = lambda name: "norm" in name.lower() or name.endswith("bias")
    groups = [
        {"params": [p for n, p in theirs.named_parameters() if excluded(n) is out], "weight_decay": 0.01 * (not out)}
        for out in (False, True)
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-6)
    for index in range(STEPS):
        batch = stream.build_batch(index)
        ids, mask = torch.tensor(batch.input_ids).long(), torch.tensor(batch.example_ids > 0).long()
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(batch.labels["label"][:, 0]).long()}
        loss = theirs(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = float(experiment.optimizer.compute_learning_rate(index, STEPS))
        adam.step(), adam.zero_grad()
        placed = jax.tree.map(jnp.asarray, batch)
        state, measured = step.train_step(state, placed, 0, **step.build_static_args(experiment, run.module))
        ours = measured["label_loss"]
        np.testing.assert_allclose(ours.total / ours.count, loss.item(), rtol=2e-4)
