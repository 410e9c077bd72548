"""Runs → curves: what they had learned after so many tokens, FLOPs and steps, all seeds in a band, drawn as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from encoders.costs.ledger import step_flops
from encoders.data.labelled import LabelledData
from encoders.experiment import Experiment, strip_seeds

MAX_LINES = 8  # in a chart
MIN_POINT_GAP = 1 / 200  # of the axis: points of a line are not nearer
# Four of Okabe and Ito's (2008), which stand out by 3 : 1 from white and from a dark ground.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
LINE_WIDTH = 1.8
LINE_DASHES = ((), (5, 1.5), (5, 1.5, 1, 1.5), (1.2, 1.2))  # in widths of a line
TEXT_COLOUR = "#010203"  # stands for the colour of the text around a chart

RunMetrics = tuple[Experiment, Sequence[Mapping]]  # an experiment and the rows of its metrics


@dataclass(frozen=True)
class ChartLine:
    """All seeds of an experiment: their median and how far they lie apart, at the same `x`."""

    name: str
    num_seeds: int
    colour: str
    dashes: tuple[float, ...]
    x: np.ndarray
    lowest: np.ndarray
    median: np.ndarray
    highest: np.ndarray


@dataclass(frozen=True)
class PlotSpec:
    """What a chart shows: a score of a split's rows ("train", "heldout") against tokens, FLOPs or steps."""

    split: str
    score: str
    axis: str = "tokens"

    @property
    def title(self) -> str:
        split = "Training" if self.split == "train" else "Held-out"
        return f"{split} {SCORE_NAMES.get(self.score) or self.score.replace('_', ' ')}"


@dataclass(frozen=True)
class Chart:
    plot: PlotSpec
    lines: tuple[ChartLine, ...]

    @property
    def caption(self) -> str:
        counts = sorted({line.num_seeds for line in self.lines})
        seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        band = f"The median of {seeds} seeds, in a band from the lowest to the highest."
        return f"{self.plot.title} against {self.plot.axis}. {band if counts[-1] > 1 else '1 seed each.'}"


SCORE_NAMES = {
    "mlm_loss": "loss on masked tokens",
    "mlm_mask_accuracy": "accuracy at [MASK]",
    "nsp_accuracy": "accuracy of next sentences",
    "sop_accuracy": "accuracy of sentence order",
    "generator_loss": "loss of the generator",
    "generator_mask_accuracy": "accuracy of the generator at [MASK]",
    "rtd_loss": "loss of the discriminator",
    "rtd_auc": "AUC of the discriminator",
    "rtd_recall": "share of replaced tokens found",
    "rtd_replaced": "share of tokens replaced",
}
PERCENT_SUFFIXES = ("accuracy", "recall", "replaced")  # are shown in percent

MLM_PLOTS = (
    PlotSpec("train", "mlm_loss"),
    PlotSpec("heldout", "mlm_mask_accuracy"),
    PlotSpec("heldout", "mlm_mask_accuracy", "FLOPs"),
    PlotSpec("heldout", "nsp_accuracy"),
    PlotSpec("heldout", "sop_accuracy"),
)
RTD_DIAGNOSTICS = ("generator_mask_accuracy", "rtd_auc", "rtd_recall", "rtd_replaced")
RTD_PLOTS = (
    PlotSpec("train", "generator_loss"),
    PlotSpec("train", "rtd_loss"),
    PlotSpec("heldout", "rtd_auc"),
    PlotSpec("heldout", "rtd_auc", "FLOPs"),
    *(PlotSpec("heldout", score, "steps") for score in RTD_DIAGNOSTICS),
)


PRETRAINING_PLOTS = {  # by the loss term that tells
    "mlm_loss": ("Pre-training with masked tokens", MLM_PLOTS),
    "rtd_loss": ("Pre-training with replaced tokens", RTD_PLOTS),
}


def choose_plots(experiment: Experiment) -> tuple[str, tuple[PlotSpec, ...]]:
    """What experiments have in common that can be compared in a chart, and the plots of such experiments."""
    objective = experiment.objective
    if isinstance(experiment.data, LabelledData):
        goal = objective.best_metric
        plots = (PlotSpec("train", "loss"), PlotSpec("heldout", goal), PlotSpec("heldout", goal, "FLOPs"))
        return f"{experiment.data.task.name}, {goal.replace('_', ' ')}", plots
    for term, found in PRETRAINING_PLOTS.items():
        if term in objective.loss_weights:
            return found
    *_, term = objective.loss_weights
    plots = (PlotSpec("train", term), PlotSpec("heldout", term), PlotSpec("heldout", term, "FLOPs"))
    return f"Pre-training, {term.replace('_', ' ')}", plots


def split_names(names: Iterable[str], max_names: int = MAX_LINES, word_index: int = 0) -> list[list[str]]:
    """The names in lists of at most `max_names`, those together that begin with the same words.

    >>> split_names(["bert-MRPC", "bert-RTE", "albert-MRPC", "albert-RTE"], max_names=3)
    [['albert-MRPC', 'albert-RTE'], ['bert-MRPC', 'bert-RTE']]
    """
    names = sorted(names)
    if len(names) <= max_names:
        return [names]
    nth_word = lambda name: name.split("-")[word_index : word_index + 1]
    parts: list[list[str]] = []
    for _, same in groupby(names, nth_word):
        for part in split_names(same, max_names, word_index + 1):
            if parts and len(parts[-1]) + len(part) <= max_names:
                parts[-1] += part
            else:
                parts.append(part)
    return parts


# Curves ---------------------------------------------------------------------------------------------------------------


def compute_axes(experiment: Experiment, rows: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """Steps, and the tokens and FLOPs until each: at every row of the training split, and where a phase ends.

    Between two rows every step has the same number of tokens.
    """
    told = [(0, 0)] + [(row["step"], row["tokens"]) for row in rows if row["split"] == "train"]
    steps, tokens = np.array(told, float).T
    phases = experiment.phases
    ends = np.array([phase.until_step for phase in phases])
    knots = np.union1d(steps, ends[ends < steps[-1]])
    tokens = np.interp(knots, steps, tokens)
    cost = np.array(
        [step_flops(experiment, np.array([phase.seq_length])).item() / phase.seq_length for phase in phases]
    )
    phase = np.minimum(np.searchsorted(ends, knots[1:]), len(phases) - 1)
    flops = np.concatenate([[0.0], np.cumsum(np.diff(tokens) * cost[phase])])
    return {"steps": knots, "tokens": tokens, "FLOPs": flops}


def extract_curve(run_metrics: RunMetrics, plot: PlotSpec) -> tuple[np.ndarray, np.ndarray]:
    """A run's points in a plot. Rows of which it is not known yet how many tokens they came after are left out."""
    experiment, rows = run_metrics
    axes = compute_axes(experiment, rows)
    known = [row for row in rows if row["split"] == plot.split and plot.score in row]
    points = [(row["step"], row[plot.score]) for row in known if row["step"] <= axes["steps"][-1]]
    steps, scores = np.array(points, float).reshape(-1, 2).T
    return np.interp(steps, axes["steps"], axes[plot.axis]), np.where(np.isfinite(scores), scores, np.nan)


def compute_band(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`x`, and the lowest, the median and the highest of the curves there, each read between its own points.

    It begins where all curves have begun. A curve that ends before the others counts up to its end, or to theirs where
    that is within a hundredth: seeds see about, not quite, the same number of tokens.
    """
    begin, end = max(x[0] for x, _ in curves), max(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = thin_points(grid[grid >= begin], MIN_POINT_GAP * end)
    there = [(grid <= x[-1]) | (x[-1] >= 0.99 * end) for x, _ in curves]
    values = [np.where(t, np.interp(grid, x, y), np.nan) for t, (x, y) in zip(there, curves, strict=True)]
    ordered = np.sort(values, axis=0)  # what is not there comes last
    count = np.isfinite(ordered).sum(axis=0)
    take_rank = lambda rank: np.take_along_axis(ordered, np.maximum(rank, 0)[None], axis=0)[0]
    return grid, take_rank(0 * count), (take_rank((count - 1) // 2) + take_rank(count // 2)) / 2, take_rank(count - 1)


def thin_points(points: np.ndarray, min_gap: float) -> np.ndarray:
    """The last of the rising points, and before it those that are at least so far apart.

    >>> thin_points(np.array([1.0, 2.0, 2.5, 3.0]), min_gap=1.0)
    array([1., 2., 3.])
    """
    kept: list[float] = []
    for point in points[::-1]:
        if not kept or kept[-1] - point >= min_gap:
            kept.append(point)
    return np.array(kept[::-1])


def build_charts(runs: Sequence[RunMetrics]) -> dict[str, list[Chart]]:
    """The charts of all runs, by the title of the group that they belong to."""
    kinds: dict[tuple[str, tuple[PlotSpec, ...]], dict[str, list[RunMetrics]]] = {}
    for trained in sorted(
        runs, key=lambda trained: (isinstance(trained[0].data, LabelledData), choose_plots(trained[0])[0])
    ):
        kinds.setdefault(choose_plots(trained[0]), {}).setdefault(strip_seeds(trained[0].name), []).append(trained)
    found = {}
    for (title, plots), named in kinds.items():
        parts = split_names(named)
        for number, names in enumerate(parts, 1):
            drawn = [Chart(plot, lines) for plot in plots if (lines := build_lines(names, named, plot))]
            if drawn:
                found[title if len(parts) == 1 else f"{title} ({number} of {len(parts)})"] = drawn
    return found


def build_lines(
    names: Sequence[str], runs_by_name: Mapping[str, Sequence[RunMetrics]], plot: PlotSpec
) -> tuple[ChartLine, ...]:
    """A line for each experiment that has the plot's score; an experiment looks the same in all plots."""
    lines = []
    for place, name in enumerate(names):
        curves = [each for each in (extract_curve(trained, plot) for trained in runs_by_name[name]) if len(each[0])]
        if curves:
            colour = LINE_COLOURS[place % len(LINE_COLOURS)]
            dashes = LINE_DASHES[(place + place // len(LINE_COLOURS)) % len(LINE_DASHES)]
            lines.append(ChartLine(name, len(curves), colour, dashes, *compute_band(curves)))
    return tuple(lines)


# Drawing --------------------------------------------------------------------------------------------------------------


def draw_svg(chart: Chart, id_prefix: str) -> str:
    """A chart as SVG that is as wide as its place and has its text's colour; `mark` begins each of its ids.

    Raises `ValueError` where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'encoders[report]'") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc changes no report
        matplotlib.rcParams |= MATPLOTLIB_STYLE
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        exponent = choose_exponent(max(line.x[-1] for line in chart.lines))
        for line in chart.lines:
            x, few = line.x / 10.0**exponent, len(line.x) <= 12
            if line.num_seeds > 1:
                axes.fill_between(x, line.lowest, line.highest, color=line.colour, alpha=0.18, linewidth=0)
            style = (0, line.dashes) if line.dashes else "solid"
            axes.plot(x, line.median, color=line.colour, linestyle=style, marker="o" if few else None)
        axes.set_title(chart.plot.title, loc="left")
        axes.set_xlabel(chart.plot.axis + (f" (×10{str(exponent).translate(SUPERSCRIPTS)})" if exponent else ""))
        axes.set_xlim(left=0)
        axes.locator_params(nbins=6)
        if chart.plot.score.endswith(PERCENT_SUFFIXES):
            axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 9):g}%")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    return clean_svg(file.getvalue(), id_prefix)


SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
MATPLOTLIB_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "encoders",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "lines.linewidth": LINE_WIDTH,
    "lines.markersize": 3.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 6,
    **{f"{part}.color": TEXT_COLOUR for part in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{part}": TEXT_COLOUR for part in ("edgecolor", "labelcolor", "titlecolor")},
}


def choose_exponent(largest: float) -> int:
    """The power of ten, in threes, by which numbers up to `most` are divided to be read easily; none below 10,000.

    >>> choose_exponent(8_000), choose_exponent(15_000_000), choose_exponent(9.9e17)
    (0, 6, 15)
    """
    return 0 if largest < 10_000 else int(np.log10(largest) // 3) * 3


def clean_svg(svg: str, id_prefix: str) -> str:
    """Matplotlib's SVG file as a part of a page."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>", svg, count=1)
    svg = svg.replace("xlink:href", "href").replace(TEXT_COLOUR, "currentColor").replace("<g/>", "")
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", re.sub(r"font-family: [^;\"]*; ", "", svg))
    used = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg))
    svg = re.sub(r" id=\"([^\"]*)\"", lambda found: f' id="{id_prefix}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r"(href=\"|url\()#", rf"\1#{id_prefix}-", svg)
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"<!--.*?-->", "", svg, flags=re.S)).strip()
