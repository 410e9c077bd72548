"""RoBERTa, table 2: formats of the input, with and without next sentence (Liu et al., 2019).

    python launch.py train roberta_t2 --with corpus=wiki-1.txt.xz glue=GLUE

RoBERTa's base model at BERT's rate and steps. Pairs of single sentences are far shorter than a row and rows of one
document end early, so the paper raises the batch of both for about as many tokens; by how much it does not say: here
eightfold and by a quarter. At small scale rows are short, and all have the same batch: the table says how many tokens
each saw.
"""

from dataclasses import replace

from encoders.library.ablations.roberta_t1 import build_base_experiment

from encoders.data.formats import FullSentences, SegmentPairs, SentencePairs
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.sweeps.paper_table import (
    MLM_AT_MASK,
    MLM_PERPLEXITY,
    MNLI,
    NSP,
    RACE,
    SQUAD1_F1,
    SQUAD2_F1,
    SST2,
    PaperTable,
    Study,
)

COLUMNS = (SQUAD1_F1, SQUAD2_F1, MNLI, SST2, RACE, MLM_PERPLEXITY, MLM_AT_MASK, NSP)
CAVEATS = ("the paper does not say how much larger its batches of short rows are",)
# Format, next sentence, rows, the published row.
ROWS = {
    "SEGMENT-PAIR + NSP": (SegmentPairs("random"), NextSentencePrediction(), 256, (90.4, 78.7, 84.0, 92.9, 64.2)),
    "SENTENCE-PAIR + NSP": (SentencePairs(), NextSentencePrediction(), 2048, (88.7, 76.2, 82.9, 92.1, 63.0)),
    "FULL-SENTENCES": (FullSentences(), None, 256, (90.4, 79.1, 84.7, 92.5, 64.8)),
    "DOC-SENTENCES": (FullSentences(within_document=True), None, 320, (90.6, 79.7, 84.7, 92.7, 65.6)),
}


def table(study: Study) -> PaperTable:
    base, rows = build_base_experiment(), []
    for name, (form, task, batch, published) in ROWS.items():
        phases = tuple(replace(phase, format=form, batch_size=batch) for phase in base.phases)
        model = replace(base.model, num_token_types=2) if task else base.model
        member = replace(base, model=model, objective=replace(base.objective, sentence_task=task), phases=phases)
        run = f"roberta-{name.lower().replace(' + ', '-')}"
        rows.append(study.build_row(name, published, COLUMNS, run, member))
    return study.build_table(
        "roberta_t2",
        "RoBERTa, table 2: input formats",
        COLUMNS,
        rows,
        "steps" if study.is_small else "steps, and about in tokens",
        *CAVEATS,
    )
