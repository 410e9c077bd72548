"""The command line: its output and its refusals."""

import jax
import pytest

import launch
from encoders.cli.commands import enable_compilation_cache
from encoders.cli.experiment_files import ExperimentChoice, load_experiment_file
from tests import texts
from tests.exchange.references import HOME
from tests.refusals import assert_names
from tests.test_readme_commands import ROOT, TWO_PHASES, assert_refused, run_refused


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


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


# What a run will export as, and where a message leads


@pytest.mark.parametrize(
    "only, settings, values",
    [
        ("quickstart-bert", [], ["exports as BertForPreTraining"]),
        ("quickstart-roberta", [], ["exports as RobertaForMaskedLM"]),
        (
            "quickstart-electra",
            ["model.row_features=none"],
            ["exports as ElectraForPreTraining and ElectraForMaskedLM"],
        ),
        ("quickstart-electra", [], ["cannot be exported", "electra", "row_features=RotaryFeatures"]),
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
