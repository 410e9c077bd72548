"""BERT, table 6: the size of the model (Devlin et al., 2019).

    python launch.py train bert_t6 --with corpus=wiki-1.txt.xz glue=GLUE

The paper's scores of tasks are means of five restarts, on the development sets; its "LM (ppl)" is the perplexity of
masked tokens held out.
"""

from dataclasses import replace

from encoders.library.bert import experiments

from encoders.sweeps.paper_table import MLM_PERPLEXITY, MNLI, MRPC, NUM_PARAMS, SST2, PaperTable, Study

COLUMNS = (MLM_PERPLEXITY, MNLI, MRPC, SST2, NUM_PARAMS)
# Layers, width, heads; at small scale; the published row.
ROWS = (
    ((3, 768, 12), (1, 128, 4), (5.84, 77.9, 79.8, 88.4)),
    ((6, 768, 3), (2, 128, 1), (5.24, 80.6, 82.2, 90.7)),
    ((6, 768, 12), (2, 128, 4), (4.68, 81.9, 84.8, 91.3)),
    ((12, 768, 12), (4, 128, 4), (3.99, 84.4, 86.7, 92.9)),
    ((12, 1024, 16), (4, 192, 4), (3.54, 85.7, 86.9, 93.3)),
    ((24, 1024, 16), (8, 192, 4), (3.23, 86.6, 87.8, 93.7)),
)


def table(study: Study) -> PaperTable:
    base, rows = next(e for e in experiments if e.name == "bert-base"), []
    for sizes, small, published in ROWS:
        fields = [
            dict(
                num_layers=layers,
                hidden_size=hidden,
                num_heads=heads,
                intermediate_size=4 * hidden,
                embedding_size=hidden,
            )
            for layers, hidden, heads in (sizes, small)
        ]
        member = replace(base, model=replace(base.model, **fields[0]))
        layers, hidden, heads = sizes
        name, run = f"L={layers} H={hidden} A={heads}", f"bert-l{layers}-h{hidden}-a{heads}"
        if not study.is_small and member == base:
            run = "bert"
        rows.append(study.build_row(name, published, COLUMNS, run, member, small_changes={"model": fields[1]}))
    return study.build_table("bert_t6", "BERT, table 6: model size", COLUMNS, rows, "tokens")
