"""Learning curves of runs against tokens, FLOPs and steps: a line an experiment, all seeds in a band, drawn as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from encoders.costs.ledger import step_flops
from encoders.data.labelled import LabelledData
from encoders.experiment import Experiment, strip_seeds
from encoders.utils.errors import UserError

CHART_STYLE = Path(__file__).with_name("templates") / "chart.mplstyle"
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
MAX_LINES = 8  # of a chart
MIN_POINT_GAP = 1 / 200  # between two points of a line, as a share of the axis
# Four colours of Okabe and Ito (2008) with a contrast of at least 3 to 1 on a white and on a dark background.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
LINE_WIDTH = 1.8
LINE_DASHES = ((), (5, 1.5), (5, 1.5, 1, 1.5), (1.2, 1.2))  # in widths of a line
TEXT_COLOUR = "#010203"  # a placeholder that `clean_svg` replaces by the text colour of the page

# An experiment and the rows of its metrics.
RunMetrics = tuple[Experiment, Sequence[Mapping]]


@dataclass(frozen=True)
class ChartLine:
    """All seeds of an experiment: lowest, median and highest score at each `x`, arrays of one length."""

    name: str
    num_seeds: int
    colour: str
    dashes: tuple[float, ...]
    x: np.ndarray
    lowest: np.ndarray
    median: np.ndarray
    highest: np.ndarray

    @property
    def dash_array(self) -> str:
        """Return the dashes as SVG's `stroke-dasharray`, in pixels."""
        return " ".join(f"{LINE_WIDTH * length:g}" for length in self.dashes) or "none"


@dataclass(frozen=True)
class PlotSpec:
    """The axes of a chart: a score of the rows of a split ("train", "heldout") against tokens, FLOPs or steps, or a
    "measured" score against layers."""

    split: str
    score: str
    axis: str = "tokens"

    @property
    def score_title(self) -> str:
        name = SCORE_NAMES.get(self.score) or self.score.replace("_", " ")
        splits = {"train": "Training", "heldout": "Held-out"}
        return f"{splits[self.split]} {name}" if self.split in splits else name[:1].upper() + name[1:]


@dataclass(frozen=True)
class Chart:
    """A plot and its lines."""

    plot: PlotSpec
    lines: tuple[ChartLine, ...]

    @property
    def caption(self) -> str:
        counts = sorted({line.num_seeds for line in self.lines})
        seeds = "1 seed each."
        if counts[-1] > 1:
            count = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
            seeds = f"The median of {count} seeds, in a band from the lowest to the highest."
        return f"{self.plot.score_title} against {self.plot.axis}. {seeds}"


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
PERCENT_SUFFIXES = ("accuracy", "recall", "replaced")  # of the scores that are shown in percent
RTD_DIAGNOSTICS = ("generator_mask_accuracy", "rtd_auc", "rtd_recall", "rtd_replaced")


def build_score_plots(loss: str, score: str) -> tuple[PlotSpec, ...]:
    return PlotSpec("train", loss), PlotSpec("heldout", score), PlotSpec("heldout", score, "FLOPs")


def choose_plots(experiment: Experiment) -> tuple[str, tuple[PlotSpec, ...]]:
    """Return the title of the group of comparable experiments that this one is in, and the plots of the group."""
    objective = experiment.objective
    if isinstance(experiment.data, LabelledData):
        metric = objective.best_metric
        return f"{experiment.data.task.name}, {metric.replace('_', ' ')}", build_score_plots("loss", metric)
    if "mlm_loss" in objective.loss_weights:
        sentence_tasks = (PlotSpec("heldout", f"{task}_accuracy") for task in ("nsp", "sop"))
        plots = (*build_score_plots("mlm_loss", "mlm_mask_accuracy"), *sentence_tasks)
        return "Pre-training with masked tokens", plots
    if "rtd_loss" in objective.loss_weights:
        diagnostics = (PlotSpec("heldout", score, "steps") for score in RTD_DIAGNOSTICS)
        plots = (PlotSpec("train", "generator_loss"), *build_score_plots("rtd_loss", "rtd_auc"), *diagnostics)
        return "Pre-training with replaced tokens", plots
    *_, term = objective.loss_weights
    return f"Pre-training, {term.replace('_', ' ')}", build_score_plots(term, term)


def split_names(names: Iterable[str], max_names: int = MAX_LINES, word_index: int = 0) -> list[list[str]]:
    """Split names into lists of at most `max_names`, so that names with the same first words stay together.

    >>> split_names(["bert-MRPC", "bert-RTE", "albert-MRPC", "albert-RTE"], max_names=3)
    [['albert-MRPC', 'albert-RTE'], ['bert-MRPC', 'bert-RTE']]
    """
    names = sorted(names)
    if len(names) <= max_names:
        return [names]
    lists: list[list[str]] = []
    for _, same_word in groupby(names, lambda name: name.split("-")[word_index : word_index + 1]):
        for names_of_word in split_names(same_word, max_names, word_index + 1):
            if lists and len(lists[-1]) + len(names_of_word) <= max_names:
                lists[-1] += names_of_word
            else:
                lists.append(names_of_word)
    return lists


# Curves ---------------------------------------------------------------------------------------------------------------


def compute_axes(experiment: Experiment, rows: Sequence[Mapping]) -> dict[str, np.ndarray]:
    """Return steps, tokens and FLOPs at every row of the training split and at the end of every phase.

    The steps between two rows are taken to have the same number of tokens each.
    """
    logged = [(0, 0)] + [(row["step"], row["tokens"]) for row in rows if row["split"] == "train"]
    steps, tokens = np.array(logged, float).T
    phases = experiment.phases
    phase_ends = np.array([phase.until_step for phase in phases])
    knots = np.union1d(steps, phase_ends[phase_ends < steps[-1]])
    tokens = np.interp(knots, steps, tokens)
    token_flops = [step_flops(experiment, np.array([p.seq_length]), p.mask_rate).item() / p.seq_length for p in phases]
    phase_index = np.minimum(np.searchsorted(phase_ends, knots[1:]), len(phases) - 1)
    flops = np.concatenate([[0.0], np.cumsum(np.diff(tokens) * np.array(token_flops)[phase_index])])
    return {"steps": knots, "tokens": tokens, "FLOPs": flops}


def extract_curve(run_metrics: RunMetrics, plot: PlotSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of a run in a plot, without the rows after the last one that counts tokens."""
    experiment, rows = run_metrics
    axes = compute_axes(experiment, rows)
    last_step = axes["steps"][-1]
    scored = [row for row in rows if row["split"] == plot.split and plot.score in row]
    points = [(row["step"], row[plot.score]) for row in scored if row["step"] <= last_step]
    steps, scores = np.array(points, float).reshape(-1, 2).T
    return np.interp(steps, axes["steps"], axes[plot.axis]), np.where(np.isfinite(scores), scores, np.nan)


def compute_band(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """Return `x` and the lowest, the median and the highest of the curves there, interpolated linearly.

    The band starts at the latest first point. A curve counts up to its last point, or up to the end of the band if
    that is within a hundredth: seeds see about, not exactly, the same number of tokens.
    """
    start = max(x[0] for x, _ in curves)
    end = max(x[-1] for x, _ in curves)
    points = np.unique(np.concatenate([x for x, _ in curves]))
    grid = thin_points(points[points >= start], MIN_POINT_GAP * end)
    covered = [(grid <= x[-1]) | (x[-1] >= 0.99 * end) for x, _ in curves]
    scores = np.where(covered, [np.interp(grid, x, y) for x, y in curves], np.nan)
    scores = np.ma.masked_invalid(scores)  # a seed that has ended, or whose score is not finite, does not count
    return grid, *(rank(scores, axis=0).filled(np.nan) for rank in (np.ma.min, np.ma.median, np.ma.max))


def thin_points(points: np.ndarray, min_gap: float) -> np.ndarray:
    """Return the last of the rising points and, going back from it, those at least `min_gap` apart."""
    thinned = [points[-1]]
    for point in points[-2::-1]:
        if thinned[-1] - point >= min_gap:
            thinned.append(point)
    return np.array(thinned[::-1])


def build_charts(runs: Sequence[RunMetrics]) -> dict[str, list[Chart]]:
    """Return the charts of all runs by the title of their group, pre-training first."""
    groups: dict[tuple[str, tuple[PlotSpec, ...]], dict[str, list[RunMetrics]]] = {}
    for run in sorted(runs, key=lambda run: (isinstance(run[0].data, LabelledData), choose_plots(run[0])[0])):
        experiment = run[0]
        groups.setdefault(choose_plots(experiment), {}).setdefault(strip_seeds(experiment.name), []).append(run)
    charts_by_title = {}
    for (title, plots), runs_by_name in groups.items():
        name_lists = split_names(runs_by_name)
        for number, names in enumerate(name_lists, 1):
            charts = [Chart(plot, lines) for plot in plots if (lines := build_lines(names, runs_by_name, plot))]
            if charts:
                suffix = "" if len(name_lists) == 1 else f" ({number} of {len(name_lists)})"
                charts_by_title[title + suffix] = charts
    return charts_by_title


def build_lines(names: Sequence[str], runs_by_name: Mapping, plot: PlotSpec) -> tuple[ChartLine, ...]:
    """Return a line for each experiment that has the plot's score; its look is the same in all plots."""
    lines = []
    for index, name in enumerate(names):
        curves = [curve for curve in (extract_curve(run, plot) for run in runs_by_name[name]) if len(curve[0])]
        if curves:
            lines.append(build_chart_line(index, name, curves))
    return tuple(lines)


def build_chart_line(index: int, name: str, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> ChartLine:
    """Return the line of an experiment, of one curve for each seed; `index` chooses its look."""
    colour = LINE_COLOURS[index % len(LINE_COLOURS)]
    dashes = LINE_DASHES[(index + index // len(LINE_COLOURS)) % len(LINE_DASHES)]
    return ChartLine(name, len(curves), colour, dashes, *compute_band(curves))


# Drawing --------------------------------------------------------------------------------------------------------------


def draw_svg(chart: Chart, id_prefix: str) -> tuple[str, str]:
    """Return the `viewBox` and the content of an SVG element that draws a chart; its ids start with `id_prefix`.

    It takes the width and the text colour of its surroundings. Raises `ValueError` if matplotlib is not installed.
    """
    return clean_svg(draw_chart(chart, transparent=True), id_prefix)


def draw_file(chart: Chart) -> str:
    """Return a chart as an SVG file with a legend, black on white."""
    return draw_chart(chart, has_legend=True, facecolor="white").replace(TEXT_COLOUR, "#000000")


def draw_chart(chart: Chart, has_legend: bool = False, **settings) -> str:
    """Return matplotlib's SVG of a chart; `settings` are those of `savefig`."""
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib, which is not installed; run pip install 'encoders[report]'") from None
    with style.context(CHART_STYLE, after_reset=True):  # so that a user's matplotlibrc does not change the report
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        axes = figure.subplots()
        end = max(line.x[-1] for line in chart.lines)
        exponent = 0 if end < 10_000 else int(np.log10(end) // 3) * 3  # labels are divided by a power of a thousand
        for line in chart.lines:
            x = line.x / 10.0**exponent
            if line.num_seeds > 1:
                axes.fill_between(x, line.lowest, line.highest, color=line.colour, alpha=0.18, linewidth=0)
            look = {"linewidth": LINE_WIDTH, "linestyle": (0, line.dashes) if line.dashes else "solid"}
            look |= {"marker": "o" if len(x) <= 12 else None, "label": line.name}
            axes.plot(x, line.median, color=line.colour, **look)
        if has_legend:
            axes.legend(frameon=False)
        axes.set_title(chart.plot.score_title, loc="left")
        unit = f" (×10{str(exponent).translate(SUPERSCRIPTS)})" if exponent else ""
        axes.set_xlabel(chart.plot.axis + unit)
        axes.set_xlim(left=0)
        axes.locator_params(nbins=6, **{"axis": "x", "integer": True} if chart.plot.axis == "layer" else {})
        if chart.plot.score.endswith(PERCENT_SUFFIXES):
            axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 9):g}%")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, **settings)
    return file.getvalue()


def clean_svg(svg: str, id_prefix: str) -> tuple[str, str]:
    """Return the `viewBox` and the content of matplotlib's SVG, with ids of its own and without fonts and colours."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    view_box, content = re.search(r"<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>(.*)</svg>", svg, flags=re.S).groups()
    content = content.replace("xlink:href", "href").replace(TEXT_COLOUR, "currentColor").replace("<g/>", "")
    content = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", re.sub(r"font-family: [^;\"]*; ", "", content))
    used_ids = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", content))
    rename_id = lambda match: f' id="{id_prefix}-{match[1]}"' if match[1] in used_ids else ""
    content = re.sub(r" id=\"([^\"]*)\"", rename_id, content)
    content = re.sub(r"(href=\"|url\()#", rf"\1#{id_prefix}-", content)
    return view_box, re.sub(r"\s*\n\s*", "\n", content).strip()
