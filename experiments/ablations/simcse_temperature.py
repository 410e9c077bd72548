"""SimCSE, table D.1: the temperature of the loss (Gao et al., 2021, appendix D).

    python launch.py train simcse_temperature --with corpus=wiki-1.txt.xz sentences=SENTENCES.txt glue=GLUE
    python launch.py train simcse_temperature --with scale=paper nli=nli_for_simcse.csv glue=GLUE

Cost and score: not measured here.

The paper's runs are supervised, and so are these at paper scale: `nli` is a file of the columns sent0, sent1 and
hard_neg. Below it they learn from sentences alone. "N/A", the dot product instead of the cosine, is the paper's alone.
Other files and the scales are those of `simcse_dropout`.
"""

from encoders.library.ablations.simcse_dropout import COLUMNS, SimcseRows

from encoders.sweeps.paper_table import PaperTable, Study

PUBLISHED = {0.001: 84.9, 0.01: 85.4, 0.05: 86.2, 0.1: 82.0, 1.0: 64.0}
SENTENCES_CAVEAT = "the paper's runs learn from NLI, and ours from sentences alone"
NLI_CAVEAT = "the paper keeps the dense layer on [CLS] in supervised vectors, and ours has it in training only"


def table(study: Study) -> PaperTable:
    rows = SimcseRows(study, from_nli=not study.is_scaled_down)
    chosen = [study.build_published_row("N/A", (85.9,), COLUMNS)]
    prefix = "simcse-nli" if rows.from_nli else "simcse"
    for temperature, score in PUBLISHED.items():
        run_name = prefix if temperature == 0.05 else f"{prefix}-temperature-{temperature:g}"
        changes = {"objective": {"loss": {"temperature": temperature}}}
        chosen.append(rows.build_row(f"τ = {temperature:g}", (score,), run_name, changes))
    title = "SimCSE, table D.1: temperature"
    caveat = NLI_CAVEAT if rows.from_nli else SENTENCES_CAVEAT
    return rows.build_table("simcse_temperature", title, chosen, "tokens", caveat)
