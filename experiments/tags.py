"""Fine-tuning on token classification, such as named entities: a tag for every word.

    python launch.py train tags --with init_from=runs/bert-base root=ENTITIES
    python launch.py predict runs/bert-base-tags-seed0 tags "Ada wrote to Rome."

Cost and score: not measured here; they depend on the rows.

The folder has `train` and `dev` as .txt in CoNLL format or as .jsonl with the lists "words" and "tags". The tags are
those of the training rows, in IOB1, IOB2, BIOES, BILOU or BMES. Rows are cut at `length` tokens, by default the
model's positions. `rates`, `batches`, `epochs` and `seeds` span a grid around BERT's recipe.
"""

from pathlib import Path

from encoders.finetuning.grids import build_finetuning_grid, count_train_rows, load_run_spec
from encoders.finetuning.recipes import build_recipes, set_row_length
from encoders.tasks.conll import read_tags
from encoders.tasks.token_classification import TokenTask


def experiments(
    init_from: str,
    root: str,
    train: str = "train.txt",
    dev: str = "dev.txt",
    labels: tuple[str, ...] = (),
    name: str = "tags",
    length: int | None = None,
    rates: tuple[float, ...] = (5e-5,),
    batches: tuple[int, ...] = (),
    epochs: tuple[float, ...] = (),
    seeds: int = 1,
):
    labels = labels or read_tags(Path(root).expanduser() / train)
    task = TokenTask(labels, name, files=(("train", train), ("dev", dev)))
    model = load_run_spec(init_from).model
    recipes = set_row_length(build_recipes("bert", name, model, rates, batches, epochs), length, model)
    run_name = f"{Path(init_from).name}-{name}"
    num_rows = count_train_rows(task, root)
    return build_finetuning_grid(run_name, task, root, recipes, num_rows, num_seeds=seeds, init_from=init_from)
