"""Runs → tables beside the papers' numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from encoders.costs.ledger import count_encoder_params, count_params, eval_param_shapes
from encoders.experiment import Experiment, strip_seeds
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.base import SupervisedObjective
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction


def format_grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first row is the head, the first column is text and the others are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    format_row = lambda row: "  ".join(
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    return "\n".join([format_row(rows[0]), format_row(["-" * width for width in widths]), *map(format_row, rows[1:])])


def format_percent(scores: dict[str, float], score_name: str, baseline_name: str) -> str:
    """`accuracy ± error (baseline)` in percent, or a dash where the run has no such score."""
    if score_name not in scores:
        return "-"
    error = scores.get(f"{score_name}_error")
    spread = "" if error is None else f" ±{error:.1%}"
    return f"{scores[score_name]:.1%}{spread} ({scores[baseline_name]:.1%})"


def summarize_results(finished_runs: Sequence[tuple[Experiment, dict]]) -> str:
    """Finished runs and their results: a table of pre-training, and one of tasks."""
    tasks = [pair for pair in finished_runs if isinstance(pair[0].objective, SupervisedObjective)]
    others = [
        result for experiment, result in finished_runs if not isinstance(experiment.objective, SupervisedObjective)
    ]
    return "\n\n".join([*[format_pretrained(others)] * bool(others), *[format_finetuned(tasks)] * bool(tasks)])


def format_finetuned(finished_runs: Sequence[tuple[Experiment, dict]]) -> str:
    """A row for all seeds of an experiment: median, lowest and highest of the goal's score, and other medians."""
    seeds: dict[str, list[tuple[Experiment, dict]]] = {}
    for experiment, result in finished_runs:
        seeds.setdefault(strip_seeds(experiment.name), []).append((experiment, result))
    rows = [["run", "seeds", "goal", "median", "lowest", "highest", "steps", "other medians"]]
    for name, runs in seeds.items():
        goal = runs[0][0].objective.best_metric
        best = [result["best"] for _, result in runs]
        each = sorted(scores[goal] for scores in best)
        hidden = ("step", "loss", goal)
        others = [n for n in best[0] if n not in hidden and not n.endswith(("_loss", "_error", "label_accuracy"))]
        medians = ", ".join(f"{n.replace('_', ' ')} {statistics.median(s[n] for s in best):.4g}" for n in others)
        numbers = (statistics.median(each), each[0], each[-1])
        steps = f"{statistics.median(scores['step'] for scores in best):,.0f} of {runs[0][0].num_steps:,}"
        rows.append([name, str(len(each)), goal, *(f"{number:.4g}" for number in numbers), steps, medians])
    note = "Scores of each run's best checkpoint on the development rows; steps: the median of the best."
    return f"{format_grid(rows)}\n{note}"


def format_pretrained(results: Sequence[dict]) -> str:
    """A row for each run: size, speed, and held-out scores with their baselines in brackets."""
    rows = [
        ["run", "parameters", "tokens/s", "steps", "loss", "MLM at [MASK] (commonest)", "NSP / SOP", "RTD AUC (0.5)"]
    ]
    for result in results:
        scores = result["heldout"]
        prefix = "generator" if "generator_loss" in scores else "mlm"
        sentence = next((name for name in ("nsp", "sop") if f"{name}_accuracy" in scores), None)
        rows.append(
            [
                result["name"],
                f"{result['parameters']:,}",
                f"{result['tokens_per_second']:,.0f}",
                f"{result['steps']:,}",
                f"{scores['loss']:.3f}",
                format_percent(scores, f"{prefix}_mask_accuracy", f"{prefix}_mask_baseline"),
                f"{sentence.upper()} {format_percent(scores, f'{sentence}_accuracy', f'{sentence}_baseline')}"
                if sentence
                else "-",
                f"{scores['rtd_auc']:.3f} ±{scores['rtd_auc_error']:.3f}" if "rtd_auc" in scores else "-",
            ]
        )
    note = "Held-out scores ± standard error, and in brackets what guessing would reach."
    return f"{format_grid(rows)}\n{note}"


NSP, SOP = MaskedLM(sentence_task=NextSentencePrediction()), MaskedLM(sentence_task=SentenceOrderPrediction())

# The chapter's table 2.1: size, model, objective, the printed number (in 10^8), and what that number counts.
TABLE_2_1 = (
    ("bert-base", bert.BASE, NSP, "1.1", "the paper's 110M: encoder or with heads"),
    ("bert-large", bert.LARGE, NSP, "3.4", "the paper's 340M, rounded up from 335M or 336M"),
    ("roberta-base", roberta.BASE, MaskedLM(), "1.2", "the paper's 125M, truncated"),
    ("roberta-large", roberta.LARGE, MaskedLM(), "3.5", "the paper's 355M, truncated"),
    ("albert-base", albert.BASE, SOP, "0.12", "the paper's 12M: encoder or with heads"),
    ("albert-large", albert.LARGE, SOP, "0.18", "the paper's 18M: encoder or with heads"),
    ("albert-xlarge", albert.XLARGE, SOP, "0.6", "the paper's 60M, rounded up from 59M"),
    ("albert-xxlarge", albert.XXLARGE, SOP, "2.2", "the encoder; the paper has 235M, 233M and 225M"),
    (
        "electra-small",
        electra.SMALL,
        ReplacedTokenDetection(generator_width=1.0),
        "0.28",
        "2 x 14M: two equal networks, nothing tied",
    ),
    (
        "electra-base",
        electra.BASE,
        ReplacedTokenDetection(generator_width=1 / 3),
        "2.2",
        "2 x 110M, but the generator is 1/3 wide",
    ),
    (
        "electra-large",
        electra.LARGE,
        ReplacedTokenDetection(generator_width=1 / 4),
        "6.6",
        "2 x 330M, but the generator is 1/4 wide",
    ),
)
FAMILIES_2_1 = {
    "bert": ("2018.10", "about 15 GB", "MLM + NSP"),
    "roberta": ("2019.07", "160 GB", "dynamic MLM"),
    "albert": ("2019.09", "about 15 GB", "MLM + SOP"),
    "electra": ("2020.03", "about 20 to 200 GB", "RTD"),
}


def format_table_2_1() -> str:
    """The chapter's table 2.1, our exact counts beside it, and what each printed number counts."""
    rows = [
        ["model", "published", "corpus", "task", "printed", "encoder", "with heads", "what the printed number counts"]
    ]
    for name, model, objective, printed, reading in TABLE_2_1:
        tree = eval_param_shapes(model, objective)
        encoder = count_encoder_params(model, objective)
        rows.append(
            [name, *FAMILIES_2_1[name.split("-")[0]], printed, f"{encoder:,}", f"{count_params(tree):,}", reading]
        )
    return format_grid(rows) + (
        "\nprinted: in 10^8. encoder: with embeddings and, where it is pre-trained, the pooler; for ELECTRA the"
        "\ndiscriminator's. with heads: all that pre-training updates; for ELECTRA both networks, embeddings tied."
    )
