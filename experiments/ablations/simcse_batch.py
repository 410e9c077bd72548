"""SimCSE, appendix A: the grid of batch sizes and learning rates (Gao et al., 2021).

    python launch.py train simcse_batch --with corpus=wiki-1.txt.xz sentences=SENTENCES.txt glue=GLUE

Cost and score: not measured here.

The paper searched this grid and publishes the score of its choice alone, 64 sentences at 3e-5. It finds that the batch
size matters little as long as the learning rate is tuned for each. All runs learn from sentences alone. Below the
paper's scale the rates have the same ratios to the one of the scale. Files and scales are those of `simcse_dropout`.
"""

import itertools

from encoders.library.ablations.simcse_dropout import SimcseRows

from encoders.sweeps.paper_table import PaperTable, Study

BATCH_SIZES = (64, 128, 256, 512)
RATES = (1e-5, 3e-5, 5e-5)
CHOSEN = (64, 3e-5)


def table(study: Study) -> PaperTable:
    rows, chosen = SimcseRows(study), []
    for batch_size, rate in itertools.product(BATCH_SIZES, RATES):
        learning_rate = round(rate * rows.recipe.learning_rate / CHOSEN[1], 9)
        is_default = (batch_size, rate) == CHOSEN
        run_name = "simcse" if is_default else f"simcse-batch-{batch_size}-{learning_rate:g}"
        name, published = f"{batch_size} at {learning_rate:g}", (82.5,) if is_default else ()
        recipe_fields = dict(batch_size=batch_size, learning_rate=learning_rate)
        chosen.append(rows.build_row(name, published, run_name, **recipe_fields))
    title = "SimCSE, appendix A: batch size and learning rate"
    return rows.build_table("simcse_batch", title, chosen, "epochs")
