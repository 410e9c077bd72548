"""SimCSE (Gao et al., 2021, https://arxiv.org/abs/2104.08821): sentence embeddings from texts alone, or from NLI.

    python launch.py train simcse --with init_from=runs/bert-base sentences=wiki1m_for_simcse.txt sts=STS-B/dev.tsv
    python launch.py train simcse --with init_from=runs/bert-base nli=nli_for_simcse.csv sts=STS-B/dev.tsv
    python launch.py measure runs/bert-base-simcse-seed0 --with sts=STS

Cost and score: not measured here. Published for BERT-base on the STS-B development set (tables 1, D.1 and 6):
unsupervised 82.5, supervised 86.2.

`sentences` is a file of one sentence a line; a sentence is its own positive text under another dropout. `nli` holds
premises, each with a hypothesis that it entails and one that contradicts it. It is SimCSE's own .csv file of the
columns sent0, sent1 and hard_neg, or a file of the columns sentence1, sentence2 and gold_label, as those of SNLI and
MNLI. A folder is read as those of snli_1.0_train.jsonl, multinli_1.0_train.jsonl and train.tsv (MNLI of GLUE) that it
holds. `sts` is a file of the columns sentence1, sentence2 and score, which selects the best checkpoint.

The recipe is that of the paper's appendix A for BERT-base: batches of 64 at 3e-5 for an epoch, or of 512 at 5e-5 for
three. Texts are cut at 32 tokens. `temperatures`, `poolings`, `dropouts`, `batches`, `rates` and `seeds` span a grid.
"""

import itertools
from pathlib import Path
from typing import Literal

from encoders.finetuning.grids import Recipe, build_finetuning, count_train_rows, load_run_spec
from encoders.objectives.embedding_losses import InfoNCE
from encoders.tasks.contrastive import Contrastive
from encoders.tasks.text_groups import EmbeddingTask
from encoders.training.optimizer import AdamW
from encoders.utils.serialization import ExperimentError

EVAL_EVERY_ROWS = 64 * 250  # of training, as in the released code
NLI_COLUMNS = ("sent0", "sent1", "hard_neg")
NLI_FILES = ("snli_1.0_train.jsonl", "multinli_1.0_train.jsonl", "train.tsv")  # of a folder
LABELLED_NLI = dict(text_columns=("sentence1", "sentence2"), nli_label_column="gold_label", num_texts=3)


def find_nli_files(folder: Path) -> list[str]:
    """Return which of `NLI_FILES` a folder holds. Raises `ExperimentError` for a folder without them."""
    names = [name for name in NLI_FILES if (folder / name).is_file()]
    if not names:
        raise ExperimentError(f"nli={folder} holds none of {', '.join(NLI_FILES)}")
    return names


def experiments(
    init_from: str,
    sts: str,
    sentences: str | None = None,
    nli: str | None = None,
    temperatures: tuple[float, ...] = (0.05,),
    poolings: tuple[Literal["cls", "mean"], ...] = ("cls",),
    dropouts: tuple[float, ...] = (0.1,),
    batches: tuple[int, ...] = (),
    rates: tuple[float, ...] = (),
    epochs: float | None = None,
    length: int = 32,
    seeds: int = 1,
):
    if (sentences is None) == (nli is None):
        raise ExperimentError(f"sentences={sentences} and nli={nli}: give one of them, texts alone or NLI")
    path = Path(sentences or nli).expanduser().resolve()
    root, rows = (path, find_nli_files(path)) if nli and path.is_dir() else (path.parent, [path.name])
    files = (("train", rows[0]), ("dev", str(Path(sts).expanduser().resolve())))
    scored = dict(scored_splits=("dev",), files=files)
    if sentences:
        task = EmbeddingTask(text_columns=("text",), column_names=("text",), **scored)
        batches, rates, epochs = batches or (64,), rates or (3e-5,), epochs or 1
    else:
        layout = dict(text_columns=NLI_COLUMNS, num_texts=3) if ".csv" in path.suffixes else LABELLED_NLI
        sources = tuple((name, 1.0) for name in rows) if len(rows) > 1 else ()
        task = EmbeddingTask(sources=sources, **layout, **scored)
        batches, rates, epochs = batches or (512,), rates or (5e-5,), epochs or 3
    num_rows, model = count_train_rows(task, str(root)), load_run_spec(init_from).model
    names = {"temperature": temperatures, "pool": poolings, "dropout": dropouts, "batch": batches, "rate": rates}
    chosen = []
    for values in itertools.product(*names.values(), range(seeds)):
        temperature, pooling, dropout, batch_size, rate, seed = values
        labels = [
            f"{name}{value}" for (name, options), value in zip(names.items(), values, strict=False) if options[1:]
        ]
        recipe = Recipe(
            rate,
            batch_size,
            epochs,
            warmup=0,
            max_seq_length=length,
            optimizer=AdamW(1.0, 0, weight_decay=0.0, bias_correction=True),
            model_overrides=(("hidden_dropout", dropout), ("attention_dropout", dropout)),
            evals_per_epoch=max(1, num_rows // EVAL_EVERY_ROWS),
        )
        objective = Contrastive(
            InfoNCE(temperature),
            pooling,
            projection_size=model.hidden_size if pooling == "cls" else None,
            best_score="spearman",
        )
        name = "-".join([Path(init_from).name, "simcse", *labels, f"seed{seed}"])
        source = dict(init_from=init_from, objective=objective, seed=seed)
        chosen.append(build_finetuning(name, task, str(root), recipe, num_rows, **source))
    return chosen
