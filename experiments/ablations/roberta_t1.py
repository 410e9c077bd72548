"""RoBERTa, table 1: one mask, ten, or a new one each time (Liu et al., 2019).

    python launch.py train roberta_t1 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score, measured on one core of a shared Intel Xeon with `tokens=2e6 'tasks=()' seeds=3`: 2 to 5 minutes a run.
New masks are a little better than ten, one mask is far worse: experiments/README.md, "The papers' tables".

The paper's "static" is ten differently masked copies, each seen four times in 40 epochs, and "dynamic" a new mask each
time. The row of one mask is not in the paper. Its reference is BERT-base as published (Yang et al., 2019), one run. In
one pass over new text every mask is new, and in ten passes ten masks are as many as new ones. So smaller runs read
0.1 % of the text for each million tokens. Of wiki-1, 38 M tokens with a vocabulary of 2,048, these are about 20 passes.
With more text raise data.heldout_fraction.
"""

from dataclasses import replace

from encoders.library.roberta import experiments

from encoders.families import roberta
from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MLM_AT_MASK, MLM_PERPLEXITY, MNLI, SQUAD2_F1, SST2, ScoreColumn

COLUMNS = (
    SQUAD2_F1,
    MNLI,
    SST2,
    replace(MLM_PERPLEXITY, order_column="SQuAD2.0 F1"),
    replace(MLM_AT_MASK, order_column="SQuAD2.0 F1"),
    ScoreColumn("MLM, all chosen", "mlm_accuracy", order_column="SQuAD2.0 F1"),
)
# Different masks of an example, the published row.
ROWS = {
    "one mask": (1, ()),
    "ten masks (static)": (10, (78.3, 84.3, 92.5)),
    "a new mask each time (dynamic)": (None, (78.7, 84.0, 92.9)),
}
TEXT_SHARE_PER_TOKEN = 1e-9  # below the paper's scale


def table(study: Study) -> PaperTable:
    base = build_base_experiment()
    text_share = min(TEXT_SHARE_PER_TOKEN * study.num_tokens, 0.5)
    few_documents = {"data": {"heldout_fraction": round(1 - text_share, 6)}}
    rows = [study.build_published_row("reference: BERT-base", (76.3, 84.3, 92.8), COLUMNS)]
    for name, (dupe_factor, published) in ROWS.items():
        masking = replace(base.objective.masking, dupe_factor=dupe_factor)
        experiment = replace(base, objective=replace(base.objective, masking=masking))
        run_name = f"roberta-masks-{dupe_factor or 'new'}"
        if not study.is_scaled_down and dupe_factor is None:
            run_name = "roberta-full-sentences"
        rows.append(study.build_row(name, published, COLUMNS, run_name, experiment, small_changes=few_documents))
    caveat = f"ours trains on {100 * text_share:.2g} % of the text and holds the rest out"
    caveats = [caveat] if study.is_scaled_down else []
    title = "RoBERTa, table 1: static and dynamic masks"
    return study.build_table("roberta_t1", title, COLUMNS, rows, "tokens", *caveats)


def build_base_experiment():
    """Return RoBERTa-base at BERT's learning rate, warm-up, batch and steps, with rows of 512 (§3.1, §4.1)."""
    base = experiments[0]
    phases = tuple(replace(phase, until_step=1_000_000, batch_size=256) for phase in base.phases)
    optimizer = replace(base.optimizer, learning_rate=1e-4, warmup_steps=10_000)
    return replace(base, model=roberta.BASE, phases=phases, optimizer=optimizer)
