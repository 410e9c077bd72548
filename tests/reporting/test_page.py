import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.labelled import LabelledData
from encoders.data.prepare import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment, RunSpec
from encoders.model.config import EncoderConfig
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.reporting import plots
from encoders.reporting.page import ReportTable, build_page
from encoders.reporting.plots import (
    LINE_COLOURS,
    MAX_LINES,
    PlotSpec,
    build_charts,
    compute_axes,
    compute_band,
    extract_curve,
    split_names,
)
from encoders.run.run import RunError
from encoders.tasks.classification import Classification
from encoders.tasks.text_tasks import TextRows, TextTask
from encoders.text.tokenization import TokenizerSpec
from encoders.training.optimizer import AdamW
from encoders.utils.overrides import to_json_value

BERT = Experiment(
    name="bert",
    model=EncoderConfig(
        vocab_size=50,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=12,
        embedding_size=8,
        max_positions=64,
    ),
    objective=MaskedLM(),
    data=PretrainingData(corpus=("text.txt",), tokenizer=TokenizerSpec(vocab_size=50)),
    optimizer=AdamW(learning_rate=1e-3, warmup_steps=10),
    phases=(Phase(20, 16, 8, FullSentences()), Phase(40, 32, 4, FullSentences())),
)
PAIRS = replace(
    BERT,
    name="pairs",
    objective=MaskedLM(sentence_task=NextSentencePrediction()),
    phases=(Phase(40, 32, 4, SegmentPairs()),),
)
ELECTRA = replace(BERT, name="electra", objective=ReplacedTokenDetection(), phases=(Phase(40, 32, 4, ElectraPairs()),))
TASK = replace(
    BERT,
    name="bert-RTE",
    objective=Classification(("0", "1"), score_names=("accuracy",)),
    data=LabelledData(
        TextTask("RTE", ("a", "b"), "label", ("0", "1"), ("accuracy",)), "rte", TokenizerSpec(path="words.json")
    ),
    phases=(Phase(40, 32, 4, TextRows(False, 1)),),
)
SCORES = {
    "bert": {"loss": 5.0, "mlm_loss": 5.0, "mlm_mask_accuracy": 0.25, "mlm_mask_accuracy_error": 0.01},
    "pairs": {"loss": 5.7, "mlm_loss": 5.0, "mlm_mask_accuracy": 0.25, "nsp_accuracy": 0.6},
    "electra": {"loss": 20.0, "generator_loss": 5.0, "rtd_loss": 0.3}
    | dict.fromkeys(("generator_mask_accuracy", "rtd_auc", "rtd_recall", "rtd_replaced"), 0.2),
    "bert-RTE": {"loss": 0.6, "label_loss": 0.6, "accuracy": 0.5},
}


def seeds(experiment, count):
    return [replace(experiment, name=f"{experiment.name}-seed{seed}", seed=seed) for seed in range(count)]


def rows(experiment, until=40, level=1.0):
    """A log every 10 steps of 10 tokens, and an evaluation after each."""
    base = next(SCORES[name] for name in sorted(SCORES, reverse=True) if experiment.name.startswith(name))
    for step in range(10, until + 1, 10):
        scores = {name: level * value * (1 + step / 100) for name, value in base.items()}
        yield (
            {"step": step, "split": "train", "tokens": 10 * step}
            | scores
            | {"time": {"seconds": 60.0, "tokens_per_second": 1234.5}}
        )
        yield {"step": step, "split": "heldout"} | scores | {"time": {"seconds": 1.0}}


def write(folder, network, told=(), finished=True):
    """A run's folder."""
    home = folder / network.name
    home.mkdir(parents=True)
    record = {"fingerprint": f"{network.name}'s", "versions": {"jax": "0.10.2"}, "devices": ["cpu:0"]}
    (home / "experiment.json").write_text(json.dumps(record | {"experiment": to_json_value(network)}))
    told = list(told)
    if told:
        (home / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    if told and finished:
        scores = {name: value for name, value in told[-1].items() if name not in ("split", "time")}
        result = {"steps": 40, "parameters": 1234567, "tokens_per_second": 1234.5, "heldout": scores, "best": scores}
        (home / "result.json").write_text(json.dumps(result))


def write_all(folder):
    """Every kind of run: two seeds of a task, three objectives, one that is not finished, one that was imported."""
    write(folder, BERT, rows(BERT, until=20), finished=False)
    write(folder, PAIRS, rows(PAIRS))
    write(folder, ELECTRA, rows(ELECTRA))
    for seed in seeds(TASK, 3):
        write(folder, seed, rows(seed, level=1 + seed.seed))
    write(folder, RunSpec(name="from-elsewhere", model=BERT.model, objective=MaskedLM()))
    return folder


class Parsed(HTMLParser):
    """The elements of a page, each of which has to be closed, and in its place."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def having(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    pytest.importorskip("matplotlib")
    sheet = ReportTable(
        "A <table>", ("run", "score", "said"), (("a&b", "1.5", "well"), ('"c"', "-", "less <b>")), ("So & so",)
    )
    folder = write_all(tmp_path_factory.mktemp("runs"))
    return folder, build_page(folder, [sheet], "All of <them>")


# What is on the page --------------------------------------------------------------------------------------------------


def test_every_element_is_closed_and_every_id_is_there_once(whole):
    parsed = Parsed(whole[1])
    ids = parsed.having("id")
    assert len(set(ids)) == len(ids)
    used = [name[1:] for name in parsed.having("href")] + re.findall(r"url\(#([^)]*)\)", whole[1])
    assert set(used) <= set(ids) and len(used) > 20


def test_the_page_refers_to_nothing_outside_itself(whole):
    parsed = Parsed(whole[1])
    assert not parsed.having("src") and not parsed.having("xlink:href")
    assert all(name.startswith("#") for name in parsed.having("href"))
    assert "@import" not in whole[1] and "http" not in whole[1]
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.elements}


def test_every_run_is_there_once_and_says_how_far_it_is(whole):
    texts = Parsed(whole[1]).texts
    for name in ("bert", "pairs", "electra", "bert-RTE-seed0", "bert-RTE-seed1", "bert-RTE-seed2", "from-elsewhere"):
        assert texts.count(f"{name}'s") == 1
    assert "not finished: 20 of 40 steps (50%)" in texts
    assert texts.count("finished, 40 steps") == 2 * 5
    assert "7 runs in" in whole[1] and ": 5 finished, 1 not finished, 1 imported. Trained on 1 cpu." in whole[1]


def test_a_run_shows_its_scores_its_speed_and_its_experiment(whole):
    shown = "\n".join(Parsed(whole[1]).texts)
    assert "0.3 ± 0.012" in shown  # 0.25 and 0.01 at step 20 of the run that is not finished
    assert "1,234,567" in shown and "1,234" in shown
    assert "optimizer.learning_rate = 0.001" in shown and '"class": "encoders.experiment.Experiment"' in shown


def test_numbers_of_a_table_stand_at_the_right_and_words_at_the_left(whole):
    cells = [attrs.get("class") for tag, attrs in Parsed(whole[1]).elements if tag in ("td", "th")]
    assert cells[:3] == ["words", "number", "words"]


def test_a_chart_says_what_it_shows_and_of_how_many_seeds(whole):
    labels = Parsed(whole[1]).having("aria-label")
    assert (
        "Held-out accuracy against tokens. The median of 3 seeds, in a band from the lowest to the highest." in labels
    )
    assert "Held-out accuracy at [MASK] against FLOPs. 1 seed each." in labels
    for score in ("accuracy of the generator at [MASK]", "AUC of the discriminator", "share of tokens replaced"):
        assert f"Held-out {score} against steps. 1 seed each." in labels
    assert whole[1].count("<figure>") == whole[1].count("<figcaption>") == whole[1].count('role="img"')


def test_charts_take_the_colours_and_the_width_of_the_page(whole):
    assert whole[1].count("viewBox") == whole[1].count("<figure>")
    assert "currentColor" in whole[1]
    for colour in set(re.findall(r"(?:fill|stroke): (#\w+)", whole[1])):
        assert colour in LINE_COLOURS


def test_the_same_folder_gives_the_same_page(whole):
    folder, text = whole
    sheet = ReportTable(
        "A <table>", ("run", "score", "said"), (("a&b", "1.5", "well"), ('"c"', "-", "less <b>")), ("So & so",)
    )
    assert build_page(folder, [sheet], "All of <them>") == text


def test_names_that_look_like_html_are_shown_as_they_are(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("bert<b>", 'bert"onclick="', "bert&amp;'"):
        odd = replace(BERT, name=name)
        write(tmp_path, odd, rows(odd))
    texts = Parsed(build_page(tmp_path, [], title="<i>")).texts
    for name in ("bert<b>", 'bert"onclick="', "bert&amp;'"):
        assert name in texts
    assert texts.count("<i>") == 2


# Folders as they may be -----------------------------------------------------------------------------------------------


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no runs"):
        build_page(tmp_path, [])


def test_a_torn_last_row_is_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path, BERT, rows(BERT, until=20), finished=False)
    before = build_page(tmp_path, [])
    with open(tmp_path / "bert" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "split": "tr')
    after = build_page(tmp_path, [])
    assert re.sub("files are from .*? UTC", "", after) == re.sub("files are from .*? UTC", "", before)


def test_a_run_that_cannot_be_read_is_named_with_its_reason(tmp_path):
    write(tmp_path, RunSpec(name="sound", model=BERT.model, objective=MaskedLM()))
    for name, text in (("torn", '{"experiment": '), ("foreign", "[]"), ("other", '{"experiment": {"class": "os.x"}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.json").write_text(text)
    shown = "\n".join(Parsed(build_page(tmp_path, [])).texts)
    assert "4 runs" in shown and "3 not readable" in shown
    for name in ("torn", "foreign", "other"):
        assert f"Could not be read: {name}: " in shown


def test_a_run_that_has_just_begun_has_no_curve_yet(tmp_path):
    write(tmp_path, BERT)
    text = build_page(tmp_path, [])
    assert "not finished: 0 of 40 steps" in text and "<figure>" not in text


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path):
    pytest.importorskip("matplotlib")
    write(tmp_path, BERT, [row | ({"mlm_loss": float("nan")} if row["step"] == 20 else {}) for row in rows(BERT)])
    text = build_page(tmp_path, [])
    assert "Training loss on masked tokens" in text and not re.search(r'd="[^"]*(nan|inf)', text)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, BERT, rows(BERT))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'encoders\[report\]'"):
        build_page(tmp_path, [])


# Curves ---------------------------------------------------------------------------------------------------------------


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


def test_a_long_log_becomes_a_line_of_some_hundred_points_with_its_last_one():
    x, _, median, _ = compute_band([(np.arange(1.0, 10_001), np.arange(1.0, 10_001))])
    assert len(x) == 200 and x[-1] == median[-1] == 10_000


def test_flops_are_those_of_each_phase():
    # A token of 16: 3 x (2 x (4 x 8 x 8 + 2 x 8 x 12) + 4 x 16 x 8 = 1408, and for 2 of 16 the words'
    # 2 x (8 x 8 + 8 x 50) = 928); a token of 32: 3 x (1920, and for 5 of 32 the same).
    first, second = 3 * (1408 + 928 * 2 / 16), 3 * (1920 + 928 * 5 / 32)
    logged = [{"step": step, "split": "train", "tokens": 10 * step} for step in (10, 30)]
    found = compute_axes(BERT, logged)
    np.testing.assert_allclose(found["steps"], [0, 10, 20, 30])
    np.testing.assert_allclose(found["tokens"], [0, 100, 200, 300])
    np.testing.assert_allclose(found["FLOPs"], np.cumsum([0, 100 * first, 100 * first, 100 * second]))


def test_an_evaluation_between_two_logs_came_after_the_tokens_in_between():
    logged = [{"step": step, "split": "train", "tokens": 10 * step} for step in (10, 20)]
    judged = [{"step": step, "split": "heldout", "mlm_mask_accuracy": step / 100} for step in (5, 15, 25)]
    x, y = extract_curve((BERT, logged + judged), PlotSpec("heldout", "mlm_mask_accuracy"))
    np.testing.assert_allclose([x, y], [[50, 150], [0.05, 0.15]])  # nobody knows yet how many tokens came before 25


def test_seeds_of_an_experiment_are_one_line():
    runs = [(seed, list(rows(seed, level=1 + seed.seed))) for seed in seeds(TASK, 3)]
    (title, drawn), *others = build_charts(runs).items()
    assert title == "RTE, accuracy" and not others
    (line,) = next(chart for chart in drawn if chart.plot == PlotSpec("heldout", "accuracy")).lines
    assert (line.name, line.num_seeds) == ("bert-RTE", 3)
    np.testing.assert_allclose(line.lowest, 0.5 * np.array([1.1, 1.2, 1.3, 1.4]))
    np.testing.assert_allclose(line.median, 2 * line.lowest)
    np.testing.assert_allclose(line.highest, 3 * line.lowest)


def test_only_what_can_be_compared_stands_in_one_chart():
    runs = [(experiment, list(rows(experiment))) for experiment in (TASK, ELECTRA, PAIRS, BERT)]
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


def test_forty_experiments_are_some_charts_of_those_with_like_names():
    names = [f"{family}-{task}-rate{rate}" for family in "abcde" for task in ("x", "y") for rate in range(4)]
    parts = split_names(names)
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert [len({name[0] for name in part}) for part in parts] == [1] * 5
    assert all(len(part) <= MAX_LINES for part in split_names(f"same-{i}" for i in range(41)))
    runs = [(replace(BERT, name=f"bert-{i}"), list(rows(BERT))) for i in range(11)]
    assert list(build_charts(runs)) == [f"Pre-training with masked tokens ({i} of 2)" for i in (1, 2)]


def test_no_two_lines_of_a_chart_look_alike():
    runs = [(replace(BERT, name=f"bert-{i}"), list(rows(BERT))) for i in range(MAX_LINES)]
    for chart in build_charts(runs)["Pre-training with masked tokens"]:
        assert len({(line.colour, line.dashes) for line in chart.lines}) == MAX_LINES
        assert len({line.dashes for line in chart.lines[: len(LINE_COLOURS)]}) == len(LINE_COLOURS)


@pytest.mark.parametrize("ground", ["#ffffff", "#15181c"])
def test_lines_stand_out_from_a_white_and_from_a_dark_ground(ground):
    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for colour in plots.LINE_COLOURS:
        dark, light = sorted((luminance(colour), luminance(ground)))
        assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.2, 1.4.11
