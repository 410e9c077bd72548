"""Learning curves: bands over seeds, axes in tokens and FLOPs, and the split into charts."""

from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from encoders.reporting import page
from encoders.reporting.plots import (
    LINE_COLOURS,
    MAX_LINES,
    TEXT_COLOUR,
    PlotSpec,
    build_charts,
    compute_axes,
    compute_band,
    draw_file,
    extract_curve,
    split_names,
)
from tests.reporting.test_page import BERT, ELECTRA, PAIRS, TASK, build_seeds, metric_rows


def test_a_band_reaches_from_the_lowest_to_the_highest_seed():
    # At 15 the first seed is half way from 1 to 2, at 20 the second one a third of the way from 4 to 1.
    curves = [([10, 20, 30], [1, 2, 3]), ([15, 30], [4, 1]), ([10, 30], [5, 5])]
    x, lowest, median, highest = compute_band([(np.array(x, float), np.array(y, float)) for x, y in curves])
    np.testing.assert_allclose(x, [15, 20, 30])
    np.testing.assert_allclose(lowest, [1.5, 2, 1])
    np.testing.assert_allclose(median, [4, 3, 3])
    np.testing.assert_allclose(highest, [5, 5, 5])


def test_a_seed_that_ends_early_counts_up_to_its_end():
    short, long = (np.array([10.0, 20]), np.array([1.0, 3])), (np.array([10.0, 40]), np.array([1.0, 7]))
    x, lowest, median, highest = compute_band([short, long])
    np.testing.assert_allclose([x, lowest, median, highest], [[10, 20, 40], [1, 3, 7], [1, 3, 7], [1, 3, 7]])


def test_seeds_that_end_nearly_together_all_count_to_the_end():
    x, lowest, median, highest = compute_band(
        [(np.array([50.0, last]), np.array([0.0, y])) for last, y in ((99.8, 1.0), (100.0, 2.0), (99.9, 6.0))]
    )
    np.testing.assert_allclose(x, [50, 100])
    np.testing.assert_allclose([lowest[-1], median[-1], highest[-1]], [1, 2, 6])


def test_a_long_log_is_thinned_to_two_hundred_points_with_its_last_one():
    x, _, median, _ = compute_band([(np.arange(1.0, 10_001), np.arange(1.0, 10_001))])
    assert len(x) == 200 and x[-1] == median[-1] == 10_000


def test_flops_are_those_of_each_phase():
    # A token of 16: 3 x (2 x (4 x 8 x 8 + 2 x 8 x 12) + 4 x 16 x 8 = 1408, and for 2 of 16 the words'
    # 2 x (8 x 8 + 8 x 50) = 928); a token of 32: 3 x (1920, and for 5 of 32 the same).
    first, second = 3 * (1408 + 928 * 2 / 16), 3 * (1920 + 928 * 5 / 32)
    logged = [{"step": step, "split": "train", "tokens": 10 * step} for step in (10, 30)]
    axes = compute_axes(BERT, logged)
    np.testing.assert_allclose(axes["steps"], [0, 10, 20, 30])
    np.testing.assert_allclose(axes["tokens"], [0, 100, 200, 300])
    np.testing.assert_allclose(axes["FLOPs"], np.cumsum([0, 100 * first, 100 * first, 100 * second]))


def test_an_evaluation_between_two_training_rows_is_interpolated():
    logged = [{"step": step, "split": "train", "tokens": 10 * step} for step in (10, 20)]
    judged = [{"step": step, "split": "heldout", "mlm_mask_accuracy": step / 100} for step in (5, 15, 25)]
    x, y = extract_curve((BERT, logged + judged), PlotSpec("heldout", "mlm_mask_accuracy"))
    np.testing.assert_allclose([x, y], [[50, 150], [0.05, 0.15]])  # the tokens before step 25 are not logged yet


def test_seeds_of_an_experiment_are_one_line():
    runs = [(e, metric_rows(e, level=1 + e.seed)) for e in build_seeds(TASK, 3)]
    (title, drawn), *others = build_charts(runs).items()
    assert title == "RTE, accuracy" and not others
    (line,) = next(chart for chart in drawn if chart.plot == PlotSpec("heldout", "accuracy")).lines
    assert (line.name, line.num_seeds) == ("bert-RTE", 3)
    np.testing.assert_allclose(line.lowest, 0.5 * np.array([1.1, 1.2, 1.3, 1.4]))
    np.testing.assert_allclose(line.median, 2 * line.lowest)
    np.testing.assert_allclose(line.highest, 3 * line.lowest)


def test_a_chart_shows_only_comparable_experiments():
    runs = [(experiment, metric_rows(experiment)) for experiment in (TASK, ELECTRA, PAIRS, BERT)]
    found = {
        title: {line.name for chart in drawn for line in chart.lines} for title, drawn in build_charts(runs).items()
    }
    assert found == {
        "Pre-training with masked tokens": {"bert", "pairs"},
        "Pre-training with replaced tokens": {"electra"},
        "RTE, accuracy": {"bert-RTE"},
    }
    (nsp,) = [
        chart for chart in build_charts(runs)["Pre-training with masked tokens"] if chart.plot.score == "nsp_accuracy"
    ]
    assert [line.name for line in nsp.lines] == ["pairs"]


def test_forty_experiments_are_split_into_charts_by_their_names():
    names = [f"{family}-{task}-rate{rate}" for family in "abcde" for task in ("x", "y") for rate in range(4)]
    parts = split_names(names)
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert [len({name[0] for name in part}) for part in parts] == [1] * 5
    assert all(len(part) <= MAX_LINES for part in split_names(f"same-{i}" for i in range(41)))
    runs = [(replace(BERT, name=f"bert-{i}"), metric_rows(BERT)) for i in range(11)]
    assert list(build_charts(runs)) == [f"Pre-training with masked tokens ({i} of 2)" for i in (1, 2)]


def test_no_two_lines_of_a_chart_look_alike():
    runs = [(replace(BERT, name=f"bert-{i}"), metric_rows(BERT)) for i in range(MAX_LINES)]
    for chart in build_charts(runs)["Pre-training with masked tokens"]:
        assert len({(line.colour, line.dashes) for line in chart.lines}) == MAX_LINES
        assert len({line.dashes for line in chart.lines[: len(LINE_COLOURS)]}) == len(LINE_COLOURS)


@pytest.mark.parametrize("ground", ["#ffffff", "#15181c"])
def test_lines_have_contrast_on_a_white_and_on_a_dark_background(ground):
    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for colour in LINE_COLOURS:
        dark, light = sorted((luminance(colour), luminance(ground)))
        assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.2, 1.4.11


def test_a_chart_as_a_file_names_its_lines_and_needs_no_page():
    ((chart, *_), *_) = build_charts([(BERT, metric_rows(BERT)), (PAIRS, metric_rows(PAIRS))]).values()
    texts = [element.text for element in ElementTree.fromstring(draw_file(chart)).iter() if element.text]
    assert {"bert", "pairs", chart.plot.score_title} <= set(texts)
    assert TEXT_COLOUR not in draw_file(chart) and "currentColor" not in draw_file(chart)


def test_charts_are_written_as_files(monkeypatch, tmp_path):
    run = {"spec": BERT, "metric_rows": metric_rows(BERT), "is_trained": True, "folder": tmp_path, "measured": ()}
    runs = [SimpleNamespace(**run)]
    monkeypatch.setattr(page, "read_runs", lambda folder: (runs, []))
    paths = page.write_charts(tmp_path, tmp_path / "charts")
    assert paths and sorted(paths) == sorted((tmp_path / "charts").iterdir())
