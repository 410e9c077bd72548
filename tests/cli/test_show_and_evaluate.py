"""`show` prints what identifies experiments, `evaluate` scores any text, and control characters are shown escaped."""

import json
from dataclasses import replace

import pytest

import encoders
from encoders.cli.experiment_files import describe_small_scale, find_experiment_file, import_experiment_file
from encoders.cli.parser import main
from encoders.data.work_units import is_held_out
from encoders.exchange.convert import import_checkpoint
from encoders.experiment import describe_experiments
from encoders.run.run import Run
from encoders.sweeps.paper_table import Study
from encoders.utils.errors import escape_control, is_control
from encoders.utils.serialization import ExperimentError, flatten_fields
from tests import texts
from tests.exchange.references import HOME as REFERENCES
from tests.test_experiment import BASE


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    texts.write(home / "text.txt", documents=30)
    texts.write(home / "other.txt", documents=10, seed=1)
    experiment = encoders.load_experiments("tiny", corpus=home / "text.txt")["tiny"]
    encoders.train(experiment, home / "tiny", log=lambda line: None)
    return home


def test_one_experiment_is_shown_with_all_its_fields(home, capsys):
    assert main(["show", "tiny", "--with", f"corpus={home}/text.txt", "--set", "mesh.fsdp=1"]) == 0
    lines = set(capsys.readouterr().out.splitlines())
    assert {"== tiny", "mesh.fsdp = 1", "intervals.eval_batches = 1", f"data.store_dir = {home}/stores"} <= lines
    assert {"seed = 0", "name = tiny", "init_from = None"} <= lines


def test_the_fingerprint_is_shown_or_why_it_is_not_known(home, capsys, monkeypatch, caplog):
    def show(*settings: str) -> str:
        assert main(["show", "tiny", "--with", f"corpus={home}/text.txt", "--set", "name=x", *settings]) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fingerprint"))

    recorded = json.loads((home / "tiny" / "experiment.json").read_text())["fingerprint"]
    assert recorded in show() and recorded not in show("seed=3")
    # TFDS reads TFDS_DATA_DIR when it is imported, and another test may have done that already.
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(home / "tfds"))
    assert f"is not prepared in {home}/tfds" in show("data.corpus=tfds:wikipedia/20230601.en") and not caplog.records
    assert f"{home}/nothing.txt" in show(f"data.corpus={home}/nothing.txt")
    assert f"{home}/nothing" in show(f"init_from={home}/nothing")
    monkeypatch.setattr("encoders.cli.show.MAX_HASHED_BYTES", 10)
    size = (home / "text.txt").stat().st_size
    assert f"{size:,} bytes" in show() and recorded not in show()


def test_of_several_experiments_the_fields_that_differ_are_shown():
    first, second, third = describe_experiments([BASE, replace(BASE, name="b", seed=3), replace(BASE, name="c")])
    assert first.splitlines() == [f"name = {BASE.name}", "seed = 0"]
    assert second.splitlines() == ["name = b", "seed = 3"] and third.splitlines() == ["name = c", "seed = 0"]
    assert len(describe_experiments([BASE])[0].splitlines()) == len(flatten_fields(BASE, fingerprinted_only=False))


def test_any_text_is_scored_with_the_runs_own_tokenizer_and_format(home, capsys):
    def evaluate(*options: str) -> dict:
        assert main(["evaluate", f"{home}/tiny", *options]) == 0
        return json.loads(capsys.readouterr().out)

    own, other = evaluate(), evaluate("--corpus", f"{home}/other.txt")
    both = evaluate("--corpus", f"{home}/other.txt", f"{home}/text.txt")
    assert own.keys() == other.keys() == both.keys()
    assert len({scores["mlm_loss"] for scores in (own, other, both)}) == 3
    assert evaluate("--corpus", f"{home}/other.txt") == other
    without_task = evaluate("--corpus", f"{home}/other.txt", "--set", "objective.sentence_task=None")
    assert "nsp_accuracy" in other and "nsp_accuracy" not in without_task


def test_the_scores_of_the_held_out_documents_as_a_corpus_are_those_of_the_store(home, capsys):
    """The documents that the run held out, written as a text, give the numbers of the run's own evaluation."""
    main(["evaluate", f"{home}/tiny"])
    own = json.loads(capsys.readouterr().out)
    documents = (home / "text.txt").read_text().strip().split("\n\n")
    held_out = [text for index, text in enumerate(documents) if is_held_out(0, index, 0.2)]
    (home / "heldout.txt").write_text("\n\n".join(held_out) + "\n")
    assert main(["evaluate", f"{home}/tiny", "--corpus", f"{home}/heldout.txt"]) == 0
    assert json.loads(capsys.readouterr().out) == own


def table_of_rows(study: Study, *changes: dict):
    base = encoders.load_experiments("bert", only=["bert-base"])["bert-base"]
    rows = [
        study.build_row(f"row {dropout}", (), (), f"d{dropout}", apply_dropout(base, dropout), small_changes=change)
        for dropout, change in zip((0.0, 0.1), changes, strict=True)
    ]
    return study.build_table("mine", "Mine", (), rows, "tokens")


def apply_dropout(experiment, dropout: float):
    return replace(experiment, model=replace(experiment.model, hidden_dropout=dropout))


def test_rows_that_small_scale_makes_equal_are_refused_by_name():
    study = Study(tasks=(), seeds=1)
    with pytest.raises(ExperimentError, match="'row 0.0' and 'row 0.1'.*small_changes"):
        table_of_rows(study, {}, {})
    assert len(table_of_rows(study, {}, {"model": {"hidden_dropout": 0.1}}).rows) == 2
    assert len(table_of_rows(replace(study, scale="paper"), {}, {}).rows) == 2


def test_what_small_scale_overrides_is_listed():
    table = import_experiment_file(find_experiment_file("albert_t7_t8")).table(Study())
    shared, *rows = list(describe_small_scale(table, "albert_t7_t8"))[1:]
    assert "model.num_layers is 12 there and 2 here" in shared and "vocab_size is 30000 there and 2048 here" in shared
    dropped = "model.hidden_dropout is 0.1 there and 0.0 here"
    assert [dropped in row for row in rows[:4]] == [True, True, False, False]
    assert "phases.0.until_step" in rows[-1]


def test_a_table_in_a_file_of_ones_own_is_shown_with_what_small_scale_overrides(tmp_path, capsys):
    path = tmp_path / "own_table.py"
    path.write_text(find_experiment_file("albert_t7_t8").read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["show", str(path), "--only", "*-seed0", "--with", f"corpus={path}"]) == 0
    assert "model.num_layers is 12 there and 2 here" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\x00b", "\x9b2J", "\u202eabc", "\u2066x", "\x7f", "\v"])
def test_a_control_character_becomes_visible(text, home, capsys):
    assert not any(map(is_control, escape_control(text))) and escape_control("ä\t字\n👩‍🚀") == "ä\t字\n👩‍🚀"
    assert json.loads(escape_control(json.dumps(text, ensure_ascii=False))) == text
    for options in ([], ["--json"]):
        assert main(["predict", f"{home}/tiny", "embed", f"word {text}", *options]) == 0
    assert main(["predict", f"{home}/tiny{text}", "embed", "word"]) == 1
    shown = capsys.readouterr()
    assert not any(map(is_control, shown.out + shown.err))
    assert shown.out.count(escape_control(text)) == 2 and escape_control(text) in shown.err


@pytest.mark.parametrize(
    "name, family, scores",
    [
        ("bert-pretraining", "bert", {"mlm_loss", "nsp_accuracy"}),
        ("albert-pretraining", "albert", {"mlm_loss", "sop_accuracy"}),
        ("roberta-masked", "roberta", {"mlm_loss"}),
        ("electra-discriminator", "electra", {"rtd_auc"}),
        ("electra-pair", "electra", {"rtd_auc", "generator_accuracy"}),
        ("bert-encoder", "bert", None),
        ("bert-questions", "bert", None),
    ],
)
def test_an_imported_run_is_scored_on_any_text_that_its_objective_reads(name, family, scores, home, tmp_path, capsys):
    published = REFERENCES / name
    import_checkpoint(published, tmp_path / "run", tokenizer_files=REFERENCES / "vocabularies" / family)
    status = main(["evaluate", f"{tmp_path}/run", "--corpus", f"{home}/text.txt", f"{home}/other.txt"])
    shown = capsys.readouterr()
    if scores is None:
        (line,) = shown.err.splitlines()
        objective = type(Run.open(tmp_path / "run").spec.objective).__name__
        assert status == 1 and f"{tmp_path}/run" in line and objective in line
    else:
        assert status == 0 and scores <= json.loads(shown.out).keys(), shown
