"""Charts of linear probes by layer, and measurements on the page of a report."""

from pathlib import Path

import pytest

from encoders.measures.base import Measurement
from encoders.measures.probes import LinearProbe
from encoders.reporting.layer_charts import build_layer_charts
from encoders.reporting.plots import draw_svg


def measure_layers(*accuracies, step=10):
    scores = {f"probe_layer_{i}": accuracy for i, accuracy in enumerate(accuracies)}
    return LinearProbe("ud"), step, Measurement({"probe": max(accuracies), **scores})


def test_seeds_are_one_line_from_the_embedding_to_the_last_layer():
    measured = {
        Path("runs/bert-seed0"): [measure_layers(0.5, 0.6, 0.8)],
        Path("runs/bert-seed1"): [measure_layers(0.4, 0.6, 0.6)],
        Path("runs/albert"): [measure_layers(0.1, 0.2, 0.3, step=10), measure_layers(0.2, 0.3, 0.4, step=20)],
        Path("runs/other"): [],
    }
    ((title, (chart,)),) = build_layer_charts(measured).items()
    assert title == "Linear probes" and chart.plot.score_title == "Probe accuracy"
    lines = {line.name: line for line in chart.lines}
    assert lines["bert"].num_seeds == 2 and lines["bert"].x.tolist() == [0, 1, 2]
    assert lines["bert"].median == pytest.approx([0.45, 0.6, 0.7])
    assert lines["bert"].lowest == pytest.approx([0.4, 0.6, 0.6])
    assert lines["albert"].median == pytest.approx([0.2, 0.3, 0.4])  # of the newest step
    _, content = draw_svg(chart, "c1")
    assert "layer" in content and "Probe accuracy" in content


def test_runs_without_probes_have_no_chart():
    assert build_layer_charts({Path("runs/bert"): [(LinearProbe("ud"), 1, Measurement({"probe": 0.5}))]}) == {}
