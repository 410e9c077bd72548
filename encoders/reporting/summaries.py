"""Runs → tables beside the papers' numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from encoders.costs.ledger import encoder_parameters, parameters, shapes
from encoders.experiment import Experiment, without_seeds
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.base import Task
from encoders.objectives.masked_lm import Joint
from encoders.objectives.replaced_tokens import ReplacedTokens
from encoders.objectives.sentence_pair import NextSentence, SentenceOrder


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first row is the head, the first column is text and the others are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    line = lambda row: "  ".join(
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    return "\n".join([line(rows[0]), line(["-" * width for width in widths]), *map(line, rows[1:])])


def percent(scores: dict[str, float], name: str, baseline: str) -> str:
    """`accuracy ± error (baseline)` in percent, or a dash where the run has no such score."""
    if name not in scores:
        return "-"
    error = scores.get(f"{name}_error")
    spread = "" if error is None else f" ±{error:.1%}"
    return f"{scores[name]:.1%}{spread} ({scores[baseline]:.1%})"


def summary(finished: Sequence[tuple[Experiment, dict]]) -> str:
    """Finished runs and their results: a table of pre-training, and one of tasks."""
    tasks = [pair for pair in finished if isinstance(pair[0].objective, Task)]
    others = [result for experiment, result in finished if not isinstance(experiment.objective, Task)]
    return "\n\n".join([*[pre_trained(others)] * bool(others), *[fine_tuned(tasks)] * bool(tasks)])


def fine_tuned(finished: Sequence[tuple[Experiment, dict]]) -> str:
    """A row for all seeds of an experiment: median, lowest and highest of the goal's score, and other medians."""
    seeds: dict[str, list[tuple[Experiment, dict]]] = {}
    for experiment, result in finished:
        seeds.setdefault(without_seeds(experiment.name), []).append((experiment, result))
    rows = [["run", "seeds", "goal", "median", "lowest", "highest", "steps", "other medians"]]
    for name, runs in seeds.items():
        goal = runs[0][0].objective.goal
        best = [result["best"] for _, result in runs]
        each = sorted(scores[goal] for scores in best)
        hidden = ("step", "loss", goal)
        others = [n for n in best[0] if n not in hidden and not n.endswith(("_loss", "_error", "label_accuracy"))]
        medians = ", ".join(f"{n.replace('_', ' ')} {statistics.median(s[n] for s in best):.4g}" for n in others)
        numbers = (statistics.median(each), each[0], each[-1])
        steps = f"{statistics.median(scores['step'] for scores in best):,.0f} of {runs[0][0].steps:,}"
        rows.append([name, str(len(each)), goal, *(f"{number:.4g}" for number in numbers), steps, medians])
    return f"{grid(rows)}\nScores of each run's best checkpoint on the development rows; steps: the median of the best."


def pre_trained(results: Sequence[dict]) -> str:
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
                percent(scores, f"{prefix}_mask_accuracy", f"{prefix}_mask_baseline"),
                f"{sentence.upper()} {percent(scores, f'{sentence}_accuracy', f'{sentence}_baseline')}"
                if sentence
                else "-",
                f"{scores['rtd_auc']:.3f} ±{scores['rtd_auc_error']:.3f}" if "rtd_auc" in scores else "-",
            ]
        )
    note = "Held-out scores ± standard error, and in brackets what guessing would reach."
    return f"{grid(rows)}\n{note}"


NSP, SOP = Joint(sentences=NextSentence()), Joint(sentences=SentenceOrder())

# The chapter's table 2.1: size, model, objective, the printed number (in 10^8), and what that number counts.
TABLE_2_1 = (
    ("bert-base", bert.BASE, NSP, "1.1", "the paper's 110M: encoder or with heads"),
    ("bert-large", bert.LARGE, NSP, "3.4", "the paper's 340M, rounded up from 335M or 336M"),
    ("roberta-base", roberta.BASE, Joint(), "1.2", "the paper's 125M, truncated"),
    ("roberta-large", roberta.LARGE, Joint(), "3.5", "the paper's 355M, truncated"),
    ("albert-base", albert.BASE, SOP, "0.12", "the paper's 12M: encoder or with heads"),
    ("albert-large", albert.LARGE, SOP, "0.18", "the paper's 18M: encoder or with heads"),
    ("albert-xlarge", albert.XLARGE, SOP, "0.6", "the paper's 60M, rounded up from 59M"),
    ("albert-xxlarge", albert.XXLARGE, SOP, "2.2", "the encoder; the paper has 235M, 233M and 225M"),
    ("electra-small", electra.SMALL, ReplacedTokens(width=1.0), "0.28", "2 x 14M: two equal networks, nothing tied"),
    ("electra-base", electra.BASE, ReplacedTokens(width=1 / 3), "2.2", "2 x 110M, but the generator is 1/3 wide"),
    ("electra-large", electra.LARGE, ReplacedTokens(width=1 / 4), "6.6", "2 x 330M, but the generator is 1/4 wide"),
)
FACTS_2_1 = {
    "bert": ("2018.10", "about 15 GB", "MLM + NSP"),
    "roberta": ("2019.07", "160 GB", "dynamic MLM"),
    "albert": ("2019.09", "about 15 GB", "MLM + SOP"),
    "electra": ("2020.03", "about 20 to 200 GB", "RTD"),
}


def table_2_1() -> str:
    """The chapter's table 2.1, our exact counts beside it, and what each printed number counts."""
    rows = [
        ["model", "published", "corpus", "task", "printed", "encoder", "with heads", "what the printed number counts"]
    ]
    for name, model, objective, printed, reading in TABLE_2_1:
        tree = shapes(model, objective)
        encoder = encoder_parameters(model, objective)
        rows.append([name, *FACTS_2_1[name.split("-")[0]], printed, f"{encoder:,}", f"{parameters(tree):,}", reading])
    return grid(rows) + (
        "\nprinted: in 10^8. encoder: with embeddings and, where it is pre-trained, the pooler; for ELECTRA the"
        "\ndiscriminator's. with heads: all that pre-training updates; for ELECTRA both networks, embeddings tied."
    )
