"""SimCSE, table 3: dropout as the only difference between a sentence and itself (Gao et al., 2021, §3).

    python launch.py train simcse_dropout --with corpus=wiki-1.txt.xz sentences=SENTENCES.txt glue=GLUE

Cost and score: not measured here.

`sentences` is a file of one sentence a line, and the development set of STS-B is that of `glue`. At paper scale they
are the paper's million sentences (wiki1m_for_simcse.txt), and the runs start from the imported run bert-base-uncased in
the folder of runs, as in experiments/simcse.py. Below it they start from a masked language model of the study's text,
and learn from the first 10,000 sentences (`rows`).

The row "fixed 0.1", one dropout mask for both sentences of a pair, is the paper's alone. The scores of all tables of
SimCSE are those of BERT-base on the development set, which selects the checkpoint too.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from encoders.library.ablations.electra_t5 import BASE, replace_with_masked_lm
from encoders.library.simcse import EVAL_EVERY_ROWS, NLI_COLUMNS

from encoders.experiment import Experiment
from encoders.families import bert
from encoders.finetuning.grids import Recipe, build_finetuning, count_train_rows
from encoders.objectives.embedding_losses import InfoNCE
from encoders.sweeps.paper_table import PaperRow, PaperTable, PublishedNumber, Study
from encoders.sweeps.score_columns import ScoreColumn
from encoders.tasks.contrastive import Contrastive
from encoders.tasks.glue import locate_glue_rows
from encoders.tasks.text_groups import EmbeddingTask
from encoders.training.optimizer import AdamW
from encoders.utils.overrides import apply_changes

COLUMNS = (ScoreColumn("STS-B", "spearman"),)
IMPORTED_RUN = "bert-base-uncased"
DROPOUT = (("hidden_dropout", 0.1), ("attention_dropout", 0.1))
NUM_ROWS = {"sentences": 1_000_000, "nli": 314_000}  # of the paper (§6.1), for a file that is elsewhere
SMALL_SCALE_CAVEAT = "ours learns vectors with the paper's dropout, after pre-training without"
PUBLISHED = {0.0: 71.1, 0.01: 72.6, 0.05: 81.1, 0.1: 82.5, 0.15: 81.4, 0.2: 80.5, 0.5: 71.0}


@dataclass(frozen=True)
class SimcseRows:
    """Rows of a table of SimCSE on sentences alone, or `from_nli`, with the recipe of experiments/simcse.py.

    Below the paper's scale learning rate, epochs, optimizer and the length of texts are those of the scale's recipe.
    """

    study: Study
    from_nli: bool = False
    columns: Sequence[ScoreColumn] = COLUMNS

    @property
    def train_file(self) -> Path:
        return Path(self.study.nli if self.from_nli else self.study.sentences).expanduser()

    @property
    def root(self) -> str:
        return str(self.train_file.parent)

    @cached_property
    def task(self) -> EmbeddingTask:
        dev_file = Path(locate_glue_rows(self.study.glue, "STS-B"), "dev.tsv").expanduser()
        # Relative, since a folder of this machine means nothing where results are recorded.
        files = (("train", self.train_file.name), ("dev", os.path.relpath(dev_file, self.root)))
        scored = dict(scored_splits=("dev",), files=files)
        if self.from_nli:
            return EmbeddingTask(text_columns=NLI_COLUMNS, num_texts=3, **scored)
        return EmbeddingTask(text_columns=("text",), column_names=("text",), **scored)

    @cached_property
    def num_rows(self) -> int:
        return count_train_rows(self.task, self.root, NUM_ROWS["nli" if self.from_nli else "sentences"])

    @cached_property
    def recipe(self) -> Recipe:
        """The hyperparameters for BERT-base (table A.1), or those of the scale."""
        learning_rate, batch_size, num_epochs = (5e-5, 512, 3) if self.from_nli else (3e-5, 64, 1)
        shared = dict(batch_size=batch_size, model_overrides=DROPOUT)
        if self.study.is_scaled_down:
            return replace(self.study.small_scale.recipe, **shared)
        return Recipe(
            learning_rate,
            num_epochs=num_epochs,
            warmup=0,
            max_seq_length=32,
            optimizer=AdamW(1.0, 0, weight_decay=0.0, bias_correction=True),
            evals_per_epoch=max(1, self.num_rows // EVAL_EVERY_ROWS),
            **shared,
        )

    @cached_property
    def source_runs(self) -> tuple[Experiment, ...]:
        """The masked language models to start from, one for each seed; none at paper scale."""
        if not self.study.is_scaled_down:
            return ()
        build_run = partial(self.study.build_pretrain_run, "rate-mlm-15", replace_with_masked_lm(BASE))
        return tuple(map(build_run, self.study.pretrain_seeds))

    def build_row(
        self,
        name: str,
        published: Sequence[PublishedNumber],
        run_name: str,
        changes: Mapping[str, Any] = {},
        **recipe_fields,
    ) -> PaperRow:
        """Return a row whose runs have other fields of the recipe, and nested `changes` at last."""
        sources = [(run.name, run.model) for run in self.source_runs]
        sources = sources or [(IMPORTED_RUN, bert.BASE)] * (self.study.seeds or 5)
        recipe, runs = replace(self.recipe, **recipe_fields), []
        for seed, (source, model) in enumerate(sources):
            run = build_finetuning(
                f"{run_name}-{self.study.scale}-seed{seed}",
                self.task,
                self.root,
                recipe,
                self.num_rows,
                init_from=f"{self.study.runs}/{source}",
                config=model,
                tokenizer_path=f"{self.study.runs}/{source}/tokenizer.json",
                seed=seed,
                objective=Contrastive(InfoNCE(0.05), "cls", projection_size=model.hidden_size, best_score="spearman"),
                max_train_rows=self.study.rows if self.study.is_scaled_down else None,
            )
            runs.append(apply_changes(run, changes))
        row = self.study.build_published_row(name, published, self.columns)
        return replace(row, pretrain_runs=tuple(runs), source_runs=self.source_runs)

    def build_table(self, name: str, title: str, rows: Sequence[PaperRow], equal_in: str, *caveats: str) -> PaperTable:
        if self.study.is_scaled_down:
            caveats = (SMALL_SCALE_CAVEAT, *caveats)
        return self.study.build_table(name, title, self.columns, rows, equal_in, *caveats)


def table(study: Study) -> PaperTable:
    rows = SimcseRows(study)
    chosen = []
    for rate, score in PUBLISHED.items():
        run_name = "simcse" if rate == dict(DROPOUT)["hidden_dropout"] else f"simcse-dropout-{rate:g}"
        changes = {"model": {"hidden_dropout": rate, "attention_dropout": rate}}
        chosen.append(rows.build_row(f"p = {rate:g}", (score,), run_name, changes))
    chosen.append(study.build_published_row("fixed 0.1", (43.6,), COLUMNS))
    return rows.build_table("simcse_dropout", "SimCSE, table 3: dropout", chosen, "tokens")
