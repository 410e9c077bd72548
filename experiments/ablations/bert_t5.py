"""BERT, table 5: the objectives (Devlin et al., 2019).

    python launch.py train bert_t5 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

The paper's base model, with pairs of segments in every row. "LTR & No NSP" is a left-to-right model with a next-token
objective, fine-tuned left-to-right too: classes are read at the last token, the only one that sees the whole text.
The BiLSTM that the paper adds to it for fine-tuning is not implemented.
"""

from dataclasses import replace

from encoders.library.bert import experiments

from encoders.model.layers import CausalSelfAttention
from encoders.objectives.causal_lm import CausalLM
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MLM_AT_MASK, MNLI, MRPC, NSP, QNLI, SQUAD1_F1, SST2

COLUMNS = (MNLI, QNLI, MRPC, SST2, SQUAD1_F1, MLM_AT_MASK, NSP)


def table(study: Study) -> PaperTable:
    base = next(experiment for experiment in experiments if experiment.name == "bert-base")
    no_nsp = replace(base, objective=replace(base.objective, sentence_task=None))
    left_to_right = replace(base, model=replace(base.model, attention=CausalSelfAttention), objective=CausalLM())
    rows = [
        study.build_row("BERT base", (84.4, 88.4, 86.7, 92.7, 88.5), COLUMNS, "bert", base),
        study.build_row("No NSP", (83.9, 84.9, 86.5, 92.6, 87.9), COLUMNS, "bert-no-nsp", no_nsp),
        study.build_row("LTR & No NSP", (82.1, 84.3, 77.5, 92.1, 77.8), COLUMNS, "bert-ltr", left_to_right),
        study.build_published_row("+ BiLSTM", (82.1, 84.1, 75.7, 91.6, 84.9), COLUMNS),
    ]
    caveat = "the BiLSTM is not implemented here"
    return study.build_table("bert_t5", "BERT, table 5: objectives", COLUMNS, rows, "tokens", caveat)
