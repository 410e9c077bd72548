"""Charts of what linear probes read from each layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from encoders.experiment import strip_seeds
from encoders.measures.base import MeasuredStep
from encoders.reporting.plots import Chart, PlotSpec, build_chart_line, split_names

LAYER_SCORE = re.compile(r"(.+)_layer_(\d+)")
Curve = tuple[np.ndarray, np.ndarray]  # layers and accuracies


def build_layer_charts(measured: Mapping[Path, Sequence[MeasuredStep]]) -> dict[str, list[Chart]]:
    """Return a chart of accuracy by layer for each probe that runs were measured with, by the title of its group.

    Layer 0 is the embedding. The seeds of an experiment are one line; the newest step of a run counts.
    """
    curves_by_probe: dict[str, dict[str, list[Curve]]] = {}
    for folder, steps in measured.items():
        for probe, curve in collect_layer_curves(steps).items():
            curves_by_probe.setdefault(probe, {}).setdefault(strip_seeds(folder.name), []).append(curve)
    charts = {}
    for probe, curves_by_name in sorted(curves_by_probe.items()):
        plot = PlotSpec("measured", f"{probe}_accuracy", "layer")
        for names in split_names(curves_by_name):
            lines = [build_chart_line(i, name, curves_by_name[name]) for i, name in enumerate(names)]
            charts.setdefault("Linear probes", []).append(Chart(plot, tuple(lines)))
    return charts


def collect_layer_curves(steps: Sequence[MeasuredStep]) -> dict[str, Curve]:
    """Return layers and accuracies of each probe of a run, at its newest measured step."""
    curves: dict[str, tuple[int, Curve]] = {}
    for measure, step, measurement in steps:
        matches = [match for name in measurement.scores if (match := LAYER_SCORE.fullmatch(name))]
        points = sorted((int(match[2]), measurement.scores[match[0]]) for match in matches)
        if points and step >= curves.get(measure.name, (0, None))[0]:
            layers, accuracies = np.array(points, float).T
            curves[measure.name] = step, (layers, accuracies)
    return {name: curve for name, (_, curve) in curves.items()}
