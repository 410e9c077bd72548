import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from encoders.data.formats import ElectraPairs, FullSentences, SegmentPairs
from encoders.data.labelled import LabelledData
from encoders.data.spec import PretrainingData
from encoders.data.stream import Phase
from encoders.experiment import Experiment, RunSpec
from encoders.model.config import EncoderConfig
from encoders.objectives.masked_lm import MaskedLM
from encoders.objectives.replaced_tokens import ReplacedTokenDetection
from encoders.objectives.sentence_pair import NextSentencePrediction
from encoders.reporting.page import build_page
from encoders.reporting.plots import LINE_COLOURS
from encoders.reporting.table_formats import ReportTable
from encoders.run.folder import RunError
from encoders.tasks.classification import Classification
from encoders.tasks.text_tasks import TextRows, TextTask
from encoders.text.tokenization import TokenizerSpec, make_blank_vocab
from encoders.training.optimizer import AdamW
from encoders.utils.errors import is_control
from encoders.utils.serialization import to_json_value
from tests.refusals import raises_naming

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


def build_seeds(experiment, count):
    return [replace(experiment, name=f"{experiment.name}-seed{seed}", seed=seed) for seed in range(count)]


def metric_rows(experiment, until=40, level=1.0):
    """Return a training row every 10 steps of 10 tokens, and an evaluation after each."""
    base = next(SCORES[name] for name in sorted(SCORES, reverse=True) if experiment.name.startswith(name))
    rows = []
    for step in range(10, until + 1, 10):
        scores = {name: level * value * (1 + step / 100) for name, value in base.items()}
        time = {"seconds": 60.0, "tokens_per_second": 1234.5}
        rows.append({"step": step, "split": "train", "tokens": 10 * step} | scores | {"time": time})
        rows.append({"step": step, "split": "heldout"} | scores | {"time": {"seconds": 1.0}})
    return rows


def write_run(folder, spec, rows=(), finished=True):
    """Write a run's folder; a run without rows is not finished."""
    run_folder = folder / spec.name
    run_folder.mkdir(parents=True)
    record = {"fingerprint": f"{spec.name}'s", "versions": {"jax": "0.10.2"}, "devices": ["cpu:0"]}
    record["facts"] = make_blank_vocab(50).to_json_value()
    (run_folder / "experiment.json").write_text(json.dumps(record | {"experiment": to_json_value(spec)}))
    if rows:
        (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if rows and finished:
        scores = {name: value for name, value in rows[-1].items() if name not in ("split", "time")}
        result = {"name": spec.name, "steps": 40, "parameters": 1234567, "tokens_per_second": 1234.5}
        result |= {"heldout": scores, "best": scores}
        (run_folder / "result.json").write_text(json.dumps(result))


def write_all_runs(folder):
    """Write every kind of run: three seeds of a task, three objectives, one of them unfinished, and an imported one."""
    write_run(folder, BERT, metric_rows(BERT, until=20), finished=False)
    write_run(folder, PAIRS, metric_rows(PAIRS))
    write_run(folder, ELECTRA, metric_rows(ELECTRA))
    for experiment in build_seeds(TASK, 3):
        write_run(folder, experiment, metric_rows(experiment, level=1 + experiment.seed))
    write_run(folder, RunSpec(name="from-elsewhere", model=BERT.model, objective=MaskedLM()))
    return folder


class ParsedPage(HTMLParser):
    """The elements and texts of a page; fails for an element that is not closed in its place."""

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

    def collect_attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


REPORT_TABLE = ReportTable(
    "A <table>", ("run", "score", "said"), (("a&b", "1.5", "well"), ('"c"', "-", "less <b>")), ("So & so",)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def html(folder):
    pytest.importorskip("matplotlib")
    return build_page(folder, [REPORT_TABLE], "All of <them>")


# What is on the page --------------------------------------------------------------------------------------------------


def test_every_element_is_closed_and_every_id_is_there_once(html):
    parsed = ParsedPage(html)
    ids = parsed.collect_attributes("id")
    assert len(set(ids)) == len(ids)
    used = [name[1:] for name in parsed.collect_attributes("href")] + re.findall(r"url\(#([^)]*)\)", html)
    assert set(used) <= set(ids) and len(used) > 20


def test_the_page_refers_to_nothing_outside_itself(html):
    parsed = ParsedPage(html)
    assert not parsed.collect_attributes("src") and not parsed.collect_attributes("xlink:href")
    assert all(name.startswith("#") for name in parsed.collect_attributes("href"))
    assert "@import" not in html and "http" not in html
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.elements}


def test_every_run_is_shown_once_with_its_progress(html):
    texts = ParsedPage(html).texts
    for name in ("bert", "pairs", "electra", "bert-RTE-seed0", "bert-RTE-seed1", "bert-RTE-seed2", "from-elsewhere"):
        assert texts.count(f"{name}'s") == 1
    assert "not finished: 20 of 40 steps (50%)" in texts
    assert texts.count("finished, 40 steps") == 2 * 5
    assert "7 runs in" in html and ": 5 finished, 1 not finished, 1 imported. Trained on 1 cpu." in html


def test_a_run_shows_its_scores_its_speed_and_its_experiment(html):
    shown = "\n".join(ParsedPage(html).texts)
    assert "0.3 ± 0.012" in shown  # 0.25 and 0.01 at step 20 of the run that is not finished
    assert "1,234,567" in shown and "1,234" in shown
    assert "optimizer.learning_rate = 0.001" in shown and '"class": "Experiment"' in shown


def test_columns_of_numbers_and_of_words_have_classes_of_their_own(html):
    cells = [attrs.get("class") for tag, attrs in ParsedPage(html).elements if tag in ("td", "th")]
    assert cells[:3] == ["words", "number", "words"]


def test_the_caption_of_a_chart_names_its_axes_and_the_number_of_seeds(html):
    labels = ParsedPage(html).collect_attributes("aria-label")
    assert (
        "Held-out accuracy against tokens. The median of 3 seeds, in a band from the lowest to the highest." in labels
    )
    assert "Held-out accuracy at [MASK] against FLOPs. 1 seed each." in labels
    for score in ("accuracy of the generator at [MASK]", "AUC of the discriminator", "share of tokens replaced"):
        assert f"Held-out {score} against steps. 1 seed each." in labels
    assert html.count("<figure>") == html.count("<figcaption>") == html.count('role="img"')


def test_charts_take_the_text_colour_and_the_width_of_the_page(html):
    assert html.count("viewBox") == html.count("<figure>")
    assert "currentColor" in html
    for colour in set(re.findall(r"(?:fill|stroke): (#\w+)", html)):
        assert colour in LINE_COLOURS


def test_the_same_folder_gives_the_same_page(folder, html):
    assert build_page(folder, [REPORT_TABLE], "All of <them>") == html


def test_names_that_look_like_html_are_shown_as_they_are(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("bert<b>", 'bert"onclick="', "bert&amp;'"):
        odd = replace(BERT, name=name)
        write_run(tmp_path, odd, metric_rows(odd))
    texts = ParsedPage(build_page(tmp_path, [], title="<i>")).texts
    for name in ("bert<b>", 'bert"onclick="', "bert&amp;'"):
        assert name in texts
    assert texts.count("<i>") == 2


# Unusual folders ------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_run_is_refused(tmp_path):
    with raises_naming(RunError, tmp_path):
        build_page(tmp_path, [])


def test_a_torn_last_row_is_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    write_run(tmp_path, BERT, metric_rows(BERT, until=20), finished=False)
    before = build_page(tmp_path, [])
    with open(tmp_path / "bert" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "split": "tr')
    after = build_page(tmp_path, [])
    assert re.sub("files are from .*? UTC", "", after) == re.sub("files are from .*? UTC", "", before)


def test_a_run_that_cannot_be_read_is_named_with_its_reason(tmp_path):
    write_run(tmp_path, RunSpec(name="sound", model=BERT.model, objective=MaskedLM()))
    for name, text in (("torn", '{"experiment": '), ("foreign", "[]"), ("other", '{"experiment": {"class": "os.x"}}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "experiment.json").write_text(text)
    shown = "\n".join(ParsedPage(build_page(tmp_path, [])).texts)
    assert "4 runs" in shown and "3 not readable" in shown
    for name in ("torn", "foreign", "other"):
        assert f"Could not be read: {name}: " in shown


DAMAGE = {
    "no JSON": ("experiment.json", "{"),
    "a row": ("metrics.jsonl", '{"step": "x"}\n'),
    "another shape": ("result.json", '{"steps": 4, "heldout": [1]}'),
    "a text as a number": ("result.json", '{"name": "a", "steps": "4", "parameters": 1, "tokens_per_second": 1}'),
    "no vocabulary": ("experiment.json", '{"fingerprint": "", "versions": {}, "devices": []}'),
    "saved steps": ("saved_steps.json", "[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_named_and_the_others_are_on_the_page(tmp_path, damage):
    for name in ("a", "b", "c"):
        write_run(tmp_path, replace(BERT, name=name), metric_rows(BERT))
    file, text = DAMAGE[damage]
    (tmp_path / "b" / file).write_text(text)
    shown = "\n".join(ParsedPage(build_page(tmp_path, [])).texts)
    assert "2 finished, 1 not readable" in shown and "Could not be read: b: " in shown and file in shown


@pytest.mark.live
def test_a_page_of_hundreds_of_runs_of_which_one_is_damaged_is_made(tmp_path):
    for number in range(300):
        write_run(tmp_path, replace(BERT, name=f"run-{number}", seed=number), metric_rows(BERT))
    (tmp_path / "run-200" / "result.json").write_text("{")
    shown = build_page(tmp_path, [])
    assert "Could not be read: run-200: " in shown and "299 finished, 1 not readable" in shown


def test_control_characters_are_shown_escaped(tmp_path):
    pytest.importorskip("matplotlib")
    write_run(tmp_path, replace(BERT, data=replace(BERT.data, corpus=("a\x1b[31m\u202e.txt",))))
    shown = build_page(tmp_path, [ReportTable("T\x07", ("", "x"), (("r\x9b", "1"),), ("n\x00",))])
    assert not [character for character in shown if is_control(character)]
    for escaped in ("T\\u0007", "r\\u009b", "n\\u0000", "a\\u001b[31m\\u202e.txt"):
        assert escaped in shown


def test_progress_is_that_of_the_newest_checkpoint(tmp_path):
    write_run(tmp_path, BERT, metric_rows(BERT, until=20), finished=False)
    (tmp_path / "bert" / "saved_steps.json").write_text(json.dumps({"latest": 30, "best": None}))
    assert "not finished: 30 of 40 steps (75%)" in build_page(tmp_path, [])


def test_a_run_without_metrics_has_no_curve(tmp_path):
    write_run(tmp_path, BERT)
    text = build_page(tmp_path, [])
    assert "not finished: 0 of 40 steps" in text and "<figure>" not in text


def test_a_loss_that_is_nan_leaves_a_gap(tmp_path):
    pytest.importorskip("matplotlib")
    write_run(
        tmp_path, BERT, [row | ({"mlm_loss": float("nan")} if row["step"] == 20 else {}) for row in metric_rows(BERT)]
    )
    text = build_page(tmp_path, [])
    assert "Training loss on masked tokens" in text and not re.search(r'd="[^"]*(nan|inf)', text)


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_the_extra_to_install(tmp_path, monkeypatch, library):
    write_run(tmp_path, BERT, metric_rows(BERT))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"{library}.*encoders\[report\]"):
        build_page(tmp_path, [])
