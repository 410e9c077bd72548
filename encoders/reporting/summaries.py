"""Summaries of finished runs as text, and the parameter counts of the published models (`show table-2.1`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from encoders.costs.ledger import count_encoder_params, count_params, eval_param_shapes
from encoders.experiment import Experiment, strip_seeds
from encoders.families import albert, bert, electra, roberta
from encoders.objectives.base import Scores, SupervisedObjective, select_numbers
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction, SentenceOrderPrediction
from encoders.reporting.table_formats import format_grid


def format_accuracy(scores: dict[str, float], task: str) -> str:
    """Return `accuracy ± error (baseline)` of a task in percent, or a dash for a missing score."""
    if f"{task}_accuracy" not in scores:
        return "-"
    error = scores.get(f"{task}_accuracy_error")
    spread = "" if error is None else f" ±{error:.1%}"
    return f"{scores[f'{task}_accuracy']:.1%}{spread} ({scores[f'{task}_baseline']:.1%})"


def summarize_results(finished_runs: Sequence[tuple[Experiment, dict]]) -> str:
    """Return a table of the pre-training runs and one of the fine-tuning runs, from experiments and their results."""
    pretrained: list[dict] = []
    finetuned: dict[str, list[tuple[Experiment, dict]]] = {}  # the seeds of an experiment together
    for experiment, result in finished_runs:
        if isinstance(experiment.objective, SupervisedObjective):
            finetuned.setdefault(strip_seeds(experiment.name), []).append((experiment, result["best"]))
        else:
            pretrained.append(result)
    tables = []
    if pretrained:
        header = ("run", "parameters", "tokens/s", "steps", "loss", "MLM at [MASK] (commonest)", "NSP / SOP")
        rows = [(*header, "RTD AUC (0.5)"), *map(format_pretrained, pretrained)]
        note = "Held-out scores ± standard error, and in brackets what guessing would reach."
        tables.append(f"{format_grid(rows)}\n{note}")
    if finetuned:
        header = ("run", "seeds", "metric", "median", "lowest", "highest", "steps", "other medians")
        rows = [header, *(format_finetuned(name, runs) for name, runs in finetuned.items())]
        note = "Scores of each run's best checkpoint on the development rows; steps: the median of the best."
        tables.append(f"{format_grid(rows)}\n{note}")
    return "\n\n".join(tables)


def format_finetuned(name: str, runs: Sequence[tuple[Experiment, Scores]]) -> tuple[str, ...]:
    """Return the row of all seeds of an experiment: median, lowest and highest of its best metric, other medians."""
    experiment, first = runs[0]
    metric = experiment.objective.best_metric
    hidden_names, hidden_endings = ("step", "loss", metric), ("_loss", "_error", "label_accuracy")
    others = [score for score in select_numbers(first) if score not in hidden_names]
    others = [s for s in others if not s.endswith(hidden_endings) and all(s in best for _, best in runs)]
    medians = {score: statistics.median(best[score] for _, best in runs) for score in ("step", metric, *others)}
    values = [best[metric] for _, best in runs]
    return (
        name,
        str(len(values)),
        metric,
        *(f"{number:.4g}" for number in (medians[metric], min(values), max(values))),
        f"{medians['step']:,.0f} of {experiment.num_steps:,}",
        ", ".join(f"{score.replace('_', ' ')} {medians[score]:.4g}" for score in others),
    )


def format_pretrained(result: dict) -> tuple[str, ...]:
    """Return the row of a run: size, speed, and held-out scores with their baselines in brackets."""
    scores = result["heldout"]
    prefix = "generator" if "generator_loss" in scores else "mlm"
    sentence_task = next((task for task in ("sop", "nsp") if f"{task}_accuracy" in scores), None)
    rtd_auc = f"{scores['rtd_auc']:.3f} ±{scores['rtd_auc_error']:.3f}" if "rtd_auc" in scores else "-"
    return (
        result["name"],
        f"{result['parameters']:,}",
        f"{result['tokens_per_second']:,.0f}",
        f"{result['steps']:,}",
        f"{scores['loss']:.3f}",
        format_accuracy(scores, f"{prefix}_mask"),
        f"{sentence_task.upper()} {format_accuracy(scores, sentence_task)}" if sentence_task else "-",
        rtd_auc,
    )


NSP = MaskedLM(sentence_task=NextSentencePrediction())
SOP = MaskedLM(sentence_task=SentenceOrderPrediction())
RTD_SMALL, RTD_BASE, RTD_LARGE = (ReplacedTokenDetection(generator_width=width) for width in (1.0, 1 / 3, 1 / 4))

# A textbook's table of the four families: size, model, objective, the printed number (in 10^8), and what it counts.
TABLE_2_1 = (
    ("bert-base", bert.BASE, NSP, "1.1", "the paper's 110M: encoder or with heads"),
    ("bert-large", bert.LARGE, NSP, "3.4", "the paper's 340M, rounded up from 335M or 336M"),
    ("roberta-base", roberta.BASE, MaskedLM(), "1.2", "the paper's 125M, truncated"),
    ("roberta-large", roberta.LARGE, MaskedLM(), "3.5", "the paper's 355M, truncated"),
    ("albert-base", albert.BASE, SOP, "0.12", "the paper's 12M: encoder or with heads"),
    ("albert-large", albert.LARGE, SOP, "0.18", "the paper's 18M: encoder or with heads"),
    ("albert-xlarge", albert.XLARGE, SOP, "0.6", "the paper's 60M, rounded up from 59M"),
    ("albert-xxlarge", albert.XXLARGE, SOP, "2.2", "the encoder; the paper has 235M, 233M and 225M"),
    ("electra-small", electra.SMALL, RTD_SMALL, "0.28", "2 x 14M: two equal networks, nothing tied"),
    ("electra-base", electra.BASE, RTD_BASE, "2.2", "2 x 110M, but the generator is 1/3 wide"),
    ("electra-large", electra.LARGE, RTD_LARGE, "6.6", "2 x 330M, but the generator is 1/4 wide"),
)
FAMILIES_2_1 = {
    "bert": ("2018.10", "about 15 GB", "MLM + NSP"),
    "roberta": ("2019.07", "160 GB", "dynamic MLM"),
    "albert": ("2019.09", "about 15 GB", "MLM + SOP"),
    "electra": ("2020.03", "about 20 to 200 GB", "RTD"),
}


def format_table_2_1() -> str:
    """Return the textbook's table 2.1, our exact counts beside it, and what each printed number counts."""
    header = ("model", "published", "corpus", "task", "printed", "encoder", "with heads")
    rows = [(*header, "what the printed number counts")]
    for name, config, objective, printed, meaning in TABLE_2_1:
        family = FAMILIES_2_1[name.partition("-")[0]]
        num_encoder = count_encoder_params(config, objective)
        num_total = count_params(eval_param_shapes(config, objective))
        rows.append((name, *family, printed, f"{num_encoder:,}", f"{num_total:,}", meaning))
    return format_grid(rows) + (
        "\nprinted: in 10^8. encoder: with embeddings and a pre-trained pooler; for ELECTRA the discriminator."
        "\nwith heads: all parameters that pre-training updates; for ELECTRA both networks, embeddings tied."
    )
