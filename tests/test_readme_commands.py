"""Every command of the README, at a small size, and what it leaves."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import launch
from encoders.bench import measurements
from tests import task_examples, texts
from tests.exchange.references import HOME
from tests.refusals import assert_names

ROOT = Path(__file__).parents[1]
# Minutes become seconds: few steps, few rows, a small text.
SHORT = [
    "phases.*.until_step=6",
    "phases.*.batch_size=8",
    "optimizer.warmup_steps=2",
    "intervals.log_every=2",
    "intervals.eval_every=6",
    "model.num_layers=1",
    "intervals.eval_batches=2",
    "data.heldout_fraction=0.2",
    "data.sentence_splitting=lines",
]
TWO_PHASES = [*SHORT, "phases.0.until_step=3", "phases.*.seq_length=32"]  # of quickstart and mini, alike
SMALL = [
    "model.num_layers=1",
    "model.hidden_size=8",
    "model.num_heads=2",
    "model.intermediate_size=16",
    "model.embedding_size=8",
]
SMALL += ["model.vocab_size=300", "data.tokenizer.vocab_size=300", "phases.*.batch_size=2", "phases.*.seq_length=32"]
TASK = [
    "phases.*.until_step=6",
    "phases.*.num_length_buckets=1",
    "phases.*.batch_size=8",
    "phases.*.seq_length=19",
    "optimizer.warmup_steps=2",
    "intervals.eval_every=3",
]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run_refused(capsys, *arguments) -> str:
    """Run a command that is refused, and return its message."""
    assert launch.main(list(arguments)) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def assert_refused(capsys, *arguments, values) -> None:
    """Check that a command is refused with a message that has all of the values."""
    assert_names(run_refused(capsys, *arguments), *values)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, and the stores and runs that the commands of this file make."""
    folder = tmp_path_factory.mktemp("home")
    texts.write(folder / "text.txt", documents=200)
    return folder


def list_commands() -> list[str]:
    """Return the lines of the README that start with `python launch.py`."""
    return re.findall(r"^python launch\.py (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)


def write_published_checkpoint(folder: Path) -> None:
    """Write a small checkpoint as transformers does."""
    shutil.copytree(HOME / "bert-pretraining", folder)
    shutil.copy(HOME / "vocabularies" / "bert" / "vocab.txt", folder)


def shorten(command: str, home: Path) -> list[str]:
    """Return the arguments of a command of the README, in the folder of this file and at a small size."""
    replacements = {"runs/": f"{home}/runs/", "PUBLISHED": f"{home}/published", "exported": f"{home}/exported"}
    replacements |= {"submissions": f"{home}/submissions", "root=GLUE": f"root={home}/GLUE", "SQUAD": f"{home}/squad"}
    replacements |= {"REVIEWS": f"{home}/GLUE/SST-2", "ENTITIES": f"{home}/entities"}
    replacements |= {
        "BLIMP/blimp.jsonl.xz": f"{home}/pairs.jsonl",
        "UD_ENGLISH-EWT": f"{home}/ud",
        "PAIRS": f"{home}/pairs",
        "MINED": f"{home}/mined",
        "=STS": f"={home}/sts",
        "results/": f"{home}/results/",
        "--results results --out ": f"--results {home}/results --out {home}/",
    }
    if "stores/KEY" in command:
        replacements["stores/KEY"] = str(next((home / "stores").glob("*/store.json")).parent)
    for name, path in replacements.items():
        command = command.replace(name, path)
    arguments = shlex.split(command)
    verb, corpus, store = arguments[0], f"data.corpus={home}/text.txt", f"data.store_dir={home}/stores"
    if "--from" in arguments or "--results" in arguments:
        return arguments
    if "albert_t5" in arguments:
        options = ["--with", "seeds=1", "tokens=12288", "rows=16", f"corpus={home}/text.txt", f"glue={home}/GLUE"]
        sizes = [size for size in SMALL if "embedding_size" not in size]
        options += [] if verb == "train" else arguments[2:]
        arguments = [verb, "albert_t5", *options, "--only", "albert-small*"]
        arguments += ["--set", *sizes, "intervals.eval_batches=2", store]
    elif verb in ("prepare", "train"):
        settings = [corpus, store, *(TWO_PHASES if "mini" in command or "quickstart" in command else SHORT)]
        arguments = [argument for argument in arguments if "TEXTS" not in argument]
        arguments += [
            *([] if "--set" in arguments else ["--set"]),
            *([store, *TASK] if "--with" in arguments else settings),
        ]
    if command == "train quickstart":  # CI runs it whole
        arguments += ["--only", "quickstart-bert", "--only", "quickstart-electra"]
    if arguments == ["report", "runs"]:
        arguments = ["report", f"{home}/runs"]
    if verb in ("status", "table", "train"):
        arguments += ["--runs", f"{home}/runs"]
    if verb == "bench":
        arguments += ["--rounds", "1", "--out", f"{home}/bench", "--set", *SMALL, store, corpus]
        arguments += ["data.heldout_fraction=0.2", "data.sentence_splitting=lines"]
    return arguments


# Words of commands that fine-tune, prepare a store in other ways or need more processes. Live tests run them, the
# default ones the rest.
LIVE_WORDS = ("mini", "train first", "import PUBLISHED", "bert-base-uncased", "bench", "--processes")


def run_commands(home: Path, commands: list[str]) -> dict[str, int]:
    """Run commands of the README in their order, and return the status of each."""
    # Other tests run meanwhile, whose tools keep caches there.
    list_names = lambda: {path.name for path in ROOT.iterdir() if path.name[0] not in "._"}
    names_before = list_names()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(measurements, "MATMUL_SIZES", (64, 64, 64))
        made = {command: launch.main(shorten(command, home)) for command in commands}
    assert list_names() == names_before  # all is written elsewhere
    return made


@pytest.fixture(scope="module")
def statuses(home) -> dict[str, int]:
    """Run the commands of the README without `LIVE_WORDS`, and return the status of each."""
    write_published_checkpoint(home / "published" / "bert-base-uncased")
    task_examples.classes(home / "GLUE" / "SST-2")
    task_examples.numbers(home / "GLUE" / "STS-B")
    task_examples.squad(home / "squad")
    task_examples.tags(home / "entities")
    task_examples.text_pairs(home / "pairs")
    (home / "mined").mkdir()
    task_examples.write_measured_data(home)
    return run_commands(home, [command for command in list_commands() if not is_live(command)])


def is_live(command: str) -> bool:
    return any(word in command for word in LIVE_WORDS)


def test_every_command_of_the_readme_works(statuses):
    assert len(statuses) >= 24
    assert set(statuses.values()) == {0}, {command: status for command, status in statuses.items() if status}


@pytest.mark.live
def test_every_other_command_of_the_readme_works(statuses, home):
    made = run_commands(home, [command for command in list_commands() if is_live(command)])
    assert len(made) >= 24
    assert set(made.values()) == {0}, {command: status for command, status in made.items() if status}
    for part in ("ceiling", "step"):
        written = json.loads((home / "bench" / f"{part}.json").read_text())
        assert written["part"] == part and written["rows"] and all(row["what"] for row in written["rows"])
        assert {"commit", "python", "jax", "processor", "core", "load before", "load after"} <= written["about"].keys()


def test_the_page_of_a_report_has_the_table_and_every_run(statuses, home):
    page = (home / "runs" / "report.html").read_text()
    assert "ALBERT, table 5" in page and "albert-small-seed0@SST-2-seed0" in page and "quickstart-electra" in page
    assert "Measures" in page and "corruption auc uniform" in page


def test_evaluate_scores_a_run_under_another_objective(statuses, home, capsys):
    given = ["objective.sentence_task=NextSentencePrediction", "phases.*.format.negatives=random"]
    assert launch.main(["evaluate", f"{home}/runs/albert-small-seed0", "--batches", "2", "--set", *given]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert 0 <= shown["nsp_accuracy"] <= 1 and "sop_accuracy" not in shown
    command = ["evaluate", f"{home}/runs/albert-small-seed0", "--set", "objective=ReplacedTokenDetection"]
    assert_refused(capsys, *command, values=["discriminator, generator"])


def test_a_finished_run_is_named_with_how_to_start_over(statuses, home, capsys):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("runs/*/metrics.jsonl")}
    settings = [f"data.corpus={home / 'text.txt'}", f"data.store_dir={home / 'stores'}", *TWO_PHASES]
    chosen = ["--only", "quickstart-bert", "--only", "quickstart-electra"]
    assert launch.main(["train", "quickstart", *chosen, "--runs", f"{home}/runs", "--set", *settings]) == 0
    shown = capsys.readouterr()
    assert_names(shown.err, "quickstart-bert, quickstart-electra", "remove")
    assert_names(shown.out, "quickstart-bert", "RTD AUC", "NSP", "SOP")
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("runs/*/metrics.jsonl")}


def test_a_profile_is_written_into_the_folder_of_the_run(statuses, home):
    assert list((home / "runs" / "profiled" / "profile").rglob("*.xplane.pb"))


def test_evaluate_needs_nothing_but_the_run(statuses, home, capsys):
    assert launch.main(["evaluate", f"{home}/runs/quickstart-electra", "--batches", "2"]) == 0
    scores = json.loads(capsys.readouterr().out)
    result = json.loads((home / "runs/quickstart-electra/result.json").read_text())
    assert scores["rtd_auc"] == pytest.approx(result["heldout"]["rtd_auc"], abs=1e-6)
    command = ["evaluate", f"{home}/runs/quickstart-electra", "--step", "7"]
    assert_refused(capsys, *command, values=["--step 7", "latest, best, 6"])


def test_fill_gives_the_likeliest_tokens_of_each_mask(statuses, home, capsys):
    command = ["predict", f"{home}/runs/quickstart-bert", "fill"]
    assert launch.main([*command, "a [MASK] and a [MASK]", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(len(re.findall(r"\d%", line)) == 3 for line in lines[1:])
    assert_refused(capsys, *command, "no mask here", values=["[MASK]", "'no mask here'"])
