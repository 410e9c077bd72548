"""TSDAE (Wang et al., 2021, https://arxiv.org/abs/2104.06979): sentence embeddings from texts alone, by denoising.

    python launch.py train tsdae --with init_from=runs/bert-base sentences=SENTENCES.txt sts=STS-B/dev.tsv

Cost and score, measured on one core beside other work: with two layers of 128, pre-trained on 2 M tokens, [CLS] goes
from 0.23 to 0.50 on STS-B's development set in 20 minutes (experiments/README.md, "Sentence embeddings").

Of every sentence 60 % of the tokens are deleted, and a decoder predicts the whole of it from the vector of what is
left. The paper deletes words. `sentences` is a file of one sentence a line; a batch holds each of its sentences twice,
with other tokens deleted. `sts` is a file of the columns sentence1, sentence2 and score, which selects the best
checkpoint.

From memory, not from a source at hand: batches of 8 at 3e-5 for an epoch, [CLS] as the vector. The decoder shares the
layers of the encoder and starts from its head of masked tokens, as the paper's. `deletions`, `poolings` and `seeds`
span a grid.
"""

import itertools
from pathlib import Path
from typing import Literal

from encoders.library.simcse import EVAL_EVERY_ROWS

from encoders.finetuning.grids import Recipe, build_finetuning, count_train_rows
from encoders.objectives.embedding_losses import NoComparison
from encoders.tasks.contrastive import Contrastive
from encoders.tasks.text_groups import EmbeddingTask
from encoders.training.optimizer import AdamW


def experiments(
    init_from: str,
    sts: str,
    sentences: str,
    deletions: tuple[float, ...] = (0.6,),
    poolings: tuple[Literal["cls", "mean"], ...] = ("cls",),
    rate: float = 3e-5,
    batch: int = 8,
    epochs: float = 1,
    length: int = 64,
    seeds: int = 1,
):
    path = Path(sentences).expanduser().resolve()
    files = (("train", path.name), ("dev", str(Path(sts).expanduser().resolve())))
    task = EmbeddingTask(text_columns=("text",), column_names=("text",), scored_splits=("dev",), files=files)
    num_rows = count_train_rows(task, str(path.parent))
    recipe = Recipe(
        rate,
        batch,
        epochs,
        warmup=0,
        max_seq_length=length,
        optimizer=AdamW(1.0, 0, weight_decay=0.0, bias_correction=True),
        evals_per_epoch=max(1, num_rows // EVAL_EVERY_ROWS),
    )
    chosen = []
    for deletion_rate, pooling, seed in itertools.product(deletions, poolings, range(seeds)):
        labels = [f"deletion{deletion_rate}"] * (len(deletions) > 1) + [pooling] * (len(poolings) > 1)
        objective = Contrastive(NoComparison(), pooling, best_score="spearman", deletion_rate=deletion_rate)
        name = "-".join([Path(init_from).name, "tsdae", *labels, f"seed{seed}"])
        source = dict(init_from=init_from, objective=objective, seed=seed)
        chosen.append(build_finetuning(name, task, str(path.parent), recipe, num_rows, **source))
    return chosen
