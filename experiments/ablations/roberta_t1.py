"""RoBERTa, table 1: one mask, ten, or a new one each time (Liu et al., 2019).

    python launch.py train roberta_t1 --with corpus=wiki-1.txt.xz glue=GLUE

The paper's "static" is ten differently masked copies, each seen four times in 40 epochs, and "dynamic" a new mask each
time. The chapter calls the ten copies dynamic, and BERT's single mask static: that is the row of one mask, which the
paper has not. Its reference is BERT-base as published (Yang et al., 2019), one run. Small runs read 4 % of the text,
so that it comes round about ten times: in one pass over new text every mask is new.
"""

from dataclasses import replace

from encoders.ablation import MASKED, MNLI, PERPLEXITY, SQUAD2_F1, SST2, Column, Study, Table
from encoders.families import roberta
from experiments.roberta import experiments

COLUMNS = (
    SQUAD2_F1,
    MNLI,
    SST2,
    replace(PERPLEXITY, like="SQuAD2.0 F1"),
    replace(MASKED, like="SQuAD2.0 F1"),
    Column("MLM, all chosen", "mlm_accuracy", like="SQuAD2.0 F1"),
)
ROWS = {
    "one mask (the chapter's static)": (1, ()),
    "ten masks (static; the chapter's dynamic)": (10, (78.3, 84.3, 92.5)),
    "a new mask each time (dynamic)": (None, (78.7, 84.0, 92.9)),
}
FEW = {"data": {"heldout": 0.96}}


def table(study: Study) -> Table:
    base, rows = of_base(), [study.published("reference: BERT-base", (76.3, 84.3, 92.8), COLUMNS)]
    for name, (copies, published) in ROWS.items():
        member = replace(base, objective=replace(base.objective, tokens=replace(base.objective.tokens, copies=copies)))
        run = f"roberta-masks-{copies or 'new'}" if study.small or copies else "roberta-full-sentences"
        rows.append(study.row(name, published, COLUMNS, run, member, small=FEW))
    return study.table("roberta_t1", "RoBERTa, table 1: static and dynamic masks", COLUMNS, rows, "tokens")


def of_base():
    """BERT's recipe on RoBERTa's base model in full rows: 256 of 512 tokens, a million steps (§3.1, §4.1)."""
    base = experiments[0]
    phases = tuple(replace(phase, until=1_000_000, batch=256) for phase in base.phases)
    adam = replace(base.optimizer, rate=1e-4, warmup=10_000)
    return replace(base, model=roberta.BASE, phases=phases, optimizer=adam)
