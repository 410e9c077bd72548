"""The command line: its output, its refusals, and every command of the README."""

import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import pytest

import launch
from encoders.bench import measurements
from encoders.cli.commands import enable_compilation_cache
from encoders.cli.experiment_files import ExperimentChoice, load_experiment_file
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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, and the stores and runs that the commands of this file make."""
    folder = tmp_path_factory.mktemp("home")
    texts.write(folder / "text.txt", documents=200)
    return folder


def run_refused(capsys, *arguments) -> str:
    """Run a command that is refused, and return its message."""
    assert launch.main(list(arguments)) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def assert_refused(capsys, *arguments, values) -> None:
    """Check that a command is refused with a message that has all of the values."""
    assert_names(run_refused(capsys, *arguments), *values)


def test_without_arguments_it_prints_examples(capsys):
    assert launch.main([]) == 0
    assert "python launch.py train" in capsys.readouterr().out


def test_show_prints_both_products_of_the_factorised_embedding(capsys):
    assert launch.main(["show", "albert", "--only", "albert-base"]) == 0
    shown = capsys.readouterr().out
    assert "30,000 x 768 = 23.04 M" in shown and "30,000 x 128 + 128 x 768 = 3.94 M" in shown
    assert "11,813,810" in shown


def test_table_2_1_has_every_size_with_its_exact_count(capsys):
    assert launch.main(["show", "table-2.1"]) == 0
    shown = capsys.readouterr().out
    for number in ("110,106,428", "336,226,108", "124,697,433", "355,412,057", "11,813,810", "17,847,474"):
        assert number in shown
    for number in ("59,021,490", "223,158,450", "23,122,875", "119,386,427", "354,655,291", "0.28", "RTD"):
        assert number in shown


@pytest.mark.parametrize(
    "setting, values",
    [
        ("model.layrs=4", ["'layrs'", "'num_layers'"]),
        ("model.num_layers=four", ["model.num_layers='four'"]),
        ("model.attention_impl=flash", ["model.attention_impl='flash'", "xla"]),
        ("model.attention_impl=cudnn", ["model.attention_impl='cudnn'", "float32"]),
        ("model.hidden_size=129", ["model.hidden_size=129", "model.num_heads"]),
        ("phases.*.seq_length=128", ["phases.seq_length=128", "model.max_positions=64"]),
        ("data.tokenizer.vocab_size=3", ["tokenizer.vocab_size=3", "special tokens"]),
        ("data.tokenizer.vocab_size=4096", ["data.tokenizer.vocab_size=4096", "model.vocab_size=1024"]),
        ("grad_accum_steps=5", ["phases.batch_size=32", "grad_accum_steps=5"]),
        ("optimizer.learning_rate", ["'optimizer.learning_rate'", "a.b=value"]),
        ("objective.masking.mask_rate=2", ["mask_rate=2.0"]),
        ("optimizer.warmup_steps=1000000", ["optimizer.warmup_steps=1000000", "2800 steps", "phases.until_step"]),
    ],
)
def test_a_bad_setting_is_refused_before_any_work(setting, values, capsys, tmp_path):
    command = ["train", "quickstart", "--only", "quickstart-bert", "--runs", str(tmp_path / "runs"), "--set", setting]
    assert_refused(capsys, *command, values=values)
    assert not (tmp_path / "runs").exists()


def test_an_option_of_another_measurement_is_refused(capsys):
    command = ["bench", "step", "--change", "model.hidden_dropout=0"]
    assert_refused(capsys, *command, values=["--change model.hidden_dropout=0", "ablate", "step"])


def test_an_unknown_experiment_is_refused_with_a_suggestion(capsys):
    assert_refused(capsys, "train", "quickstrat", values=["'quickstrat'", "'quickstart'"])
    assert_refused(capsys, "show", "quickstart", "--only", "bert", values=["--only bert", "quickstart-bert"])


def test_a_named_experiment_is_found_from_any_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch.main(["show", "quickstart", "--only", "quickstart-bert"]) == 0
    assert "quickstart-bert" in capsys.readouterr().out
    assert_refused(capsys, "show", "glue", values=["glue", "init_from="])
    assert_refused(capsys, "status", "albert_t4", "--only", "none", values=["none", "albert-e768-all-small-seed0"])


@pytest.mark.parametrize(
    "content, value",
    [
        (None, "no-such.txt"),
        (b"", "empty"),
        (b"\n\n  \n", "blank"),
        (b"caf\xe9 is not UTF-8\n", "UTF-8"),
        (b"one document only.\n", "blank lines"),
    ],
)
def test_a_bad_text_file_is_refused_and_named(content, value, capsys, tmp_path):
    path = tmp_path / "no-such.txt"
    if content is not None:
        path.write_bytes(content)
    settings = [f"data.corpus={path}", f"data.store_dir={tmp_path / 'stores'}", *TWO_PHASES]
    shown = run_refused(
        capsys, "train", "quickstart", "--only", "quickstart-bert", "--runs", str(tmp_path), "--set", *settings
    )
    assert_names(shown, value, "no-such.txt")
    assert not list(tmp_path.glob("stores/*"))  # nothing half-made is left


def test_a_folder_without_rows_of_ones_own_is_refused(capsys, tmp_path):
    given = ["train", "own", "--with", "init_from=runs/none", f"root={tmp_path}"]
    assert_refused(capsys, *given, values=[str(tmp_path), "train.tsv, train.csv, train.jsonl"])
    for ending in ("tsv", "csv"):
        (tmp_path / f"train.{ending}").touch()
    assert_refused(capsys, *given, values=["train.tsv and train.csv"])


def test_a_folder_that_holds_no_run_is_refused(capsys, tmp_path):
    assert_refused(capsys, "evaluate", str(tmp_path), values=[str(tmp_path), "experiment.json"])


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
    if arguments == ["report", "runs"]:
        arguments = ["report", f"{home}/runs"]
    if verb in ("status", "table", "train"):
        arguments += ["--runs", f"{home}/runs"]
    if verb == "bench":
        arguments += ["--rounds", "1", "--out", f"{home}/bench", "--set", *SMALL, store, corpus]
        arguments += ["data.heldout_fraction=0.2", "data.sentence_splitting=lines"]
    return arguments


@pytest.fixture(scope="module")
def statuses(home) -> dict[str, int]:
    """Run every command of the README in its order, and return the status of each."""
    write_published_checkpoint(home / "published" / "bert-base-uncased")
    task_examples.classes(home / "GLUE" / "SST-2")
    task_examples.numbers(home / "GLUE" / "STS-B")
    task_examples.squad(home / "squad")
    task_examples.tags(home / "entities")
    task_examples.text_pairs(home / "pairs")
    (home / "mined").mkdir()
    task_examples.write_measured_data(home)
    # Other tests run meanwhile, whose tools keep caches there.
    list_names = lambda: {path.name for path in ROOT.iterdir() if path.name[0] not in "._"}
    names_before = list_names()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(measurements, "MATMUL_SIZES", (64, 64, 64))
        made = {command: launch.main(shorten(command, home)) for command in list_commands()}
    assert list_names() == names_before  # all is written elsewhere
    return made


def test_every_command_of_the_readme_works(statuses):
    assert len(statuses) >= 8
    assert set(statuses.values()) == {0}, {command: status for command, status in statuses.items() if status}


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


def test_arguments_that_a_table_does_not_take_are_refused(capsys, tmp_path):
    assert_refused(capsys, "table", "quickstart", values=["quickstart", "`table`"])
    assert_refused(capsys, "status", "README.md", values=["README.md", "Python file"])
    given = ["table", "albert_t5", "--with", "scale=paper"]
    assert_refused(capsys, *given, "tokens=5e6", values=["tokens", "scale=small", "scale=paper"])
    assert_refused(capsys, *given, "runs=here", values=["'runs=here'", "NAME=VALUE", "scale, corpus"])
    middle = ["status", "albert_t5", "--with", "scale=middle"]
    assert_refused(capsys, *middle, values=["scale='middle'", "paper, small"])
    train = ["train", "albert_t5", "--runs", str(tmp_path)]
    assert_refused(capsys, *train, "--with", "glue=nowhere", values=["nowhere/SST-2", "train.tsv"])
    assert_refused(capsys, *train, "--with", "tasks=RTE", values=["tasks=RTE", "albert_t5"])
    assert_refused(capsys, *train, "--set", "name=mine", values=["--set name=", "table"])
    assert not list(tmp_path.iterdir())


def test_a_setting_changes_the_chosen_experiments_and_no_others():
    choice = ExperimentChoice("bert_t8", only=["bert-small-seed?"], settings=["objective.masking.mask_rate=0.2"])
    found = load_experiment_file(choice)
    assert {member.objective.masking.mask_rate for member in found.experiments} == {0.2} and len(found.experiments) == 3
    assert {e.objective.masking.mask_rate for e in found.other_experiments if "@" not in e.name} == {0.15}
    assert {e.objective.masking.mask_rate for e in found.table.rows[0].pretrain_runs} == {0.2}


def test_a_finished_run_is_named_with_how_to_start_over(statuses, home, capsys):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("runs/*/metrics.jsonl")}
    settings = [f"data.corpus={home / 'text.txt'}", f"data.store_dir={home / 'stores'}", *TWO_PHASES]
    assert launch.main(["train", "quickstart", "--runs", f"{home}/runs", "--set", *settings]) == 0
    shown = capsys.readouterr()
    assert_names(shown.err, "quickstart-bert, quickstart-roberta, quickstart-electra, quickstart-albert", "remove")
    assert_names(shown.out, "quickstart-bert", "RTD AUC", "NSP", "SOP")
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("runs/*/metrics.jsonl")}


def test_compiled_steps_are_cached_where_the_user_says_else_in_the_users_cache(monkeypatch, tmp_path):
    folder = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    assert folder and jax.config.jax_compilation_cache_dir == folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "encoders" / "compiled")
        enable_compilation_cache("gs://bucket/compiled")
        assert jax.config.jax_compilation_cache_dir == "gs://bucket/compiled"
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)


def test_a_profile_is_written_into_the_folder_of_the_run(statuses, home):
    assert list((home / "runs" / "profiled" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("part", ["ceiling", "step"])
def test_a_part_of_the_benchmark_writes_its_rows_and_where_they_were_measured(part, statuses, home):
    written = json.loads((home / "bench" / f"{part}.json").read_text())
    assert written["part"] == part and written["rows"] and all(row["what"] for row in written["rows"])
    assert {"commit", "python", "jax", "processor", "core", "load before", "load after"} <= written["about"].keys()


def test_an_unknown_measurement_or_core_is_refused(capsys):
    assert_refused(capsys, "bench", "speed", values=["'speed'", "step, infer, data"])
    assert_refused(capsys, "bench", "step", "--rounds", "0", values=["--rounds 0", "1"])
    assert_refused(capsys, "bench", "step", "--core", "99999", values=["--core 99999"])


def test_a_folder_in_a_bucket_needs_the_package_of_its_scheme(capsys):
    assert_refused(capsys, "train", "quickstart", "--runs", "gs://a/runs", values=["gs://a/runs", "gcsfs"])
    assert_refused(capsys, "evaluate", "gs://a/run", values=["gs://a/run", "gcsfs"])
    assert_refused(
        capsys, "prepare", "quickstart", "--set", "data.store_dir=gs://a/stores", values=["gs://a/stores", "gcsfs"]
    )


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


# What a run will export as, and where a message leads


@pytest.mark.parametrize(
    "only, settings, values",
    [
        ("quickstart-bert", [], ["exports as BertForPreTraining"]),
        ("quickstart-roberta", [], ["exports as RobertaForMaskedLM"]),
        ("quickstart-electra", [], ["exports as ElectraForPreTraining and ElectraForMaskedLM"]),
        (
            "quickstart-roberta",
            ["model.position_offset=5"],
            ["cannot be exported", "roberta", "model.position_offset=2", "padding id 1"],
        ),
    ],
)
def test_show_says_what_a_run_exports_as_or_why_it_cannot(only, settings, values, capsys):
    setting_words = ["--set", *settings] if settings else []
    assert launch.main(["show", "quickstart", "--only", only, *setting_words]) == 0
    shown = capsys.readouterr().out
    assert all(value in shown for value in values), shown


def test_messages_name_the_command_that_leads_on(capsys, tmp_path):
    runs = ["--runs", str(tmp_path / "runs")]
    published = [
        "train",
        "quickstart",
        "--only",
        "quickstart-bert",
        *runs,
        "--set",
        f"init_from={HOME / 'bert-encoder'}",
    ]
    assert_refused(capsys, *published, values=["import", str(HOME / "bert-encoder")])
    texts.write(tmp_path / "text.txt", documents=20)
    table = ["train", "albert_t5", *runs, "--with", f"corpus={tmp_path / 'text.txt'}"]
    assert_refused(capsys, *table, values=["--with glue=", "glue/SST-2"])
    table[-1] = f"corpus={tmp_path / 'none.txt'}"
    assert_refused(capsys, *table, f"glue={tmp_path}", values=["--with glue="])


def test_a_model_beyond_the_machines_memory_is_refused_before_any_work(capsys, tmp_path):
    command = ["train", "quickstart", "--only", "quickstart-bert", "--runs", str(tmp_path / "runs")]
    settings = ["model.max_positions=1000000000", f"data.store_dir={tmp_path / 'stores'}"]
    assert_refused(capsys, *command, "--set", *settings, values=["GiB", "model.max_positions=1000000000"])
    assert not (tmp_path / "stores").exists()
