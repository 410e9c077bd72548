"""RoBERTa, table 2: formats of the input, with and without next sentence (Liu et al., 2019).

    python launch.py train roberta_t2 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

RoBERTa's base model at the learning rate and the steps of BERT. Pairs of single sentences are far shorter than a row,
and rows of one document end early, so the paper raises the batch of both to about as many tokens. It does not say by
how much: eightfold and by a quarter are ours. At small scale all rows are short and all batches equal; the table gives
the tokens of each.
"""

from dataclasses import replace

from encoders.library.ablations.roberta_t1 import build_base_experiment

from encoders.data.formats import FullSentences, SegmentPairs, SentencePairs
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MLM_AT_MASK, MLM_PERPLEXITY, MNLI, NSP, RACE, SQUAD1_F1, SQUAD2_F1, SST2

COLUMNS = (SQUAD1_F1, SQUAD2_F1, MNLI, SST2, RACE, MLM_PERPLEXITY, MLM_AT_MASK, NSP)
CAVEAT = "the paper does not say how much larger its batches of short rows are"
# Format, sentence task, batch size, the published row.
ROWS = {
    "SEGMENT-PAIR + NSP": (SegmentPairs("random"), NextSentencePrediction(), 256, (90.4, 78.7, 84.0, 92.9, 64.2)),
    "SENTENCE-PAIR + NSP": (SentencePairs(), NextSentencePrediction(), 2048, (88.7, 76.2, 82.9, 92.1, 63.0)),
    "FULL-SENTENCES": (FullSentences(), None, 256, (90.4, 79.1, 84.7, 92.5, 64.8)),
    "DOC-SENTENCES": (FullSentences(within_document=True), None, 320, (90.6, 79.7, 84.7, 92.7, 65.6)),
}


def table(study: Study) -> PaperTable:
    base, rows = build_base_experiment(), []
    for name, (row_format, sentence_task, batch_size, published) in ROWS.items():
        experiment = replace(
            base,
            model=replace(base.model, num_token_types=2) if sentence_task else base.model,
            objective=replace(base.objective, sentence_task=sentence_task),
            phases=tuple(replace(phase, format=row_format, batch_size=batch_size) for phase in base.phases),
        )
        run_name = f"roberta-{name.lower().replace(' + ', '-')}"
        rows.append(study.build_row(name, published, COLUMNS, run_name, experiment))
    equal_in = "steps" if study.is_scaled_down else "steps, and about in tokens"
    return study.build_table("roberta_t2", "RoBERTa, table 2: input formats", COLUMNS, rows, equal_in, CAVEAT)
