"""BERT, table 6: the size of the model (Devlin et al., 2019).

    python launch.py train bert_t6 --with corpus=wiki-1.txt.xz glue=GLUE

Cost and score: not measured here.

The paper's scores of tasks are means of five fine-tunings on the development sets; its "LM (ppl)" is the perplexity of
held-out masked tokens.
"""

from dataclasses import replace

from encoders.library.bert import experiments

from encoders.sweeps.paper_table import PaperTable, Study
from encoders.sweeps.score_columns import MLM_PERPLEXITY, MNLI, MRPC, NUM_PARAMS, SST2

COLUMNS = (MLM_PERPLEXITY, MNLI, MRPC, SST2, NUM_PARAMS)
# Layers, width and heads at paper and at small scale, the published row.
ROWS = (
    ((3, 768, 12), (1, 128, 4), (5.84, 77.9, 79.8, 88.4)),
    ((6, 768, 3), (2, 128, 1), (5.24, 80.6, 82.2, 90.7)),
    ((6, 768, 12), (2, 128, 4), (4.68, 81.9, 84.8, 91.3)),
    ((12, 768, 12), (4, 128, 4), (3.99, 84.4, 86.7, 92.9)),
    ((12, 1024, 16), (4, 192, 4), (3.54, 85.7, 86.9, 93.3)),
    ((24, 1024, 16), (8, 192, 4), (3.23, 86.6, 87.8, 93.7)),
)


def table(study: Study) -> PaperTable:
    base, rows = next(experiment for experiment in experiments if experiment.name == "bert-base"), []
    for sizes, small_sizes, published in ROWS:
        experiment = replace(base, model=replace(base.model, **name_sizes(*sizes)))
        num_layers, hidden_size, num_heads = sizes
        run_name = f"bert-l{num_layers}-h{hidden_size}-a{num_heads}"
        if not study.is_scaled_down and experiment == base:
            run_name = "bert"
        row_name, small = f"L={num_layers} H={hidden_size} A={num_heads}", {"model": name_sizes(*small_sizes)}
        rows.append(study.build_row(row_name, published, COLUMNS, run_name, experiment, small_changes=small))
    return study.build_table("bert_t6", "BERT, table 6: model size", COLUMNS, rows, "tokens")


def name_sizes(num_layers: int, hidden_size: int, num_heads: int) -> dict[str, int]:
    """Return the fields of a model by name."""
    return dict(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=num_heads,
        intermediate_size=4 * hidden_size,
        embedding_size=hidden_size,
    )
