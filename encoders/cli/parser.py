"""The command line: verbs and their options, as plain arguments of the functions in `commands.py`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

HELP = """\
Encoders: pre-train BERT, RoBERTa, ALBERT and ELECTRA.

  {command} show     bert --only bert-base                what it is, its size and its cost
  {command} show     table-2.1                            the chapter's table beside exact counts
  {command} prepare  mini --set data.corpus=/texts/*.txt.xz
  {command} inspect  stores/KEY mini                      what a store holds, and rows as the model reads them
  {command} train    quickstart                           four tiny encoders, minutes on two cores
  {command} train    mini --only mini-electra --set optimizer.learning_rate=5e-4
  {command} evaluate runs/mini-electra                    held-out scores of a checkpoint
  {command} train    glue --with init_from=runs/mini-bert root=GLUE tasks=SST-2
  {command} train    albert_t4 --with corpus=TEXT.txt glue=GLUE    a table of ALBERT's paper, at small scale
  {command} status   albert_t4                            what is done, running, failed, and what is left
  {command} table    albert_t4 --format markdown          the paper's numbers beside ours
  {command} report   runs                                 all runs as one HTML page
  {command} predict  runs/mini-bert fill "The capital of France is [MASK]."
  {command} import   bert-base-uncased runs/bert-base     a published checkpoint becomes a run
  {command} export   runs/mini-bert mini-bert             a run becomes a folder that transformers loads
  {command} bench    step --only bert-small-8x128         speed, beside this device's ceiling and others

An EXPERIMENT is a Python file that lists `experiments`, or a name: quickstart, mini, bert, glue, albert_t4 ...
"""


def get_command_name() -> str:
    """Return the command that was typed: `encoders` once it is installed, `python launch.py` in a checkout."""
    return "encoders" if Path(sys.argv[0]).stem == "encoders" else "python launch.py"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every verb; the name of an option is that of its argument in `commands.py`."""
    parser = argparse.ArgumentParser(
        prog=get_command_name(),
        description=HELP.format(command=get_command_name()),
        formatter_class=argparse.RawTextHelpFormatter,
    )
    without_abbreviations = partial(argparse.ArgumentParser, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=without_abbreviations)
    for name, (description, add_arguments) in VERB_ARGUMENTS.items():
        verb = verbs.add_parser(name, help=description, description=description)
        add_arguments(verb)
        verb.add_argument(
            "--code", action="append", default=[], metavar="FILE",
            help="import a Python file first, which registers classes of its own",
        )  # fmt: skip
    return parser


def add_experiment(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("experiment", metavar="EXPERIMENT", help="a Python file, or a name such as quickstart")
    add_choice(verb)


def add_choice(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--with", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="with_settings",
        help="arguments of a file whose experiments are a function, such as init_from=runs/NAME",
    )  # fmt: skip
    add_settings(verb, "change a field")
    verb.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="only experiments of this name (globs)"
    )


def add_settings(verb: argparse.ArgumentParser, description: str) -> None:
    verb.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="A.B=C", dest="settings", help=description
    )


def add_runs(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--runs", default="runs", metavar="DIR", help="the folder of runs (runs)")


def add_step(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument("--step", default=default, metavar="N", help=f"best, latest, or a step ({default})")


def add_status(verb: argparse.ArgumentParser) -> None:
    add_experiment(verb)
    add_runs(verb)


def add_table(verb: argparse.ArgumentParser) -> None:
    add_status(verb)
    verb.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", dest="table_format")


def add_train(verb: argparse.ArgumentParser) -> None:
    add_status(verb)
    verb.add_argument("--stop-after", metavar="3h55m", help="save and end after this time, with status 75")
    verb.add_argument("--jobs", type=int, metavar="N", dest="num_jobs", help="experiments at once, on this machine (1)")
    verb.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help="address of process 0 of a run of several; auto: as jax.distributed finds it, such as on a TPU pod",
    )  # fmt: skip
    verb.add_argument(
        "--processes", type=int, metavar="N", dest="num_processes",
        help="processes of a run; without --coordinator they start on this machine",
    )  # fmt: skip
    verb.add_argument("--process", type=int, metavar="I", dest="process_id", help="the index of this process")
    verb.add_argument("--wait", default="5m", metavar="5m", help="time for the processes to find each other (5m)")
    verb.add_argument(
        "--watchdog", default="30m", metavar="30m",
        help="after this time without a step print all stacks and end (30m; 0s: never)",
    )  # fmt: skip
    verb.add_argument("--profile", action="store_true", help="trace the first steps and print where time is spent")


def add_prepare(verb: argparse.ArgumentParser) -> None:
    add_experiment(verb)
    verb.add_argument(
        "--workers", type=int, metavar="N", dest="num_workers", help="processes of this machine (its cores)"
    )
    verb.add_argument(
        "--runner", metavar="NAME",
        help="an Apache Beam runner instead, such as DirectRunner, FlinkRunner, SparkRunner or DataflowRunner, with "
        "its pipeline options after --",
    )  # fmt: skip
    verb.add_argument("--repair", action="store_true", help="compare a finished store with its checksums and mend it")


def add_inspect(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("store", metavar="STORE", help="the folder of a store, as prepare prints it")
    verb.add_argument(
        "experiment", metavar="EXPERIMENT", nargs="?",
        help="the experiment whose formats and objective make the rows; without one BERT's",
    )  # fmt: skip
    add_choice(verb)
    verb.add_argument("--rows", type=int, default=3, metavar="N", dest="num_rows", help="rows of each phase (3)")
    verb.add_argument("--plain", action="store_true", help="no colours, as in a file")
    verb.add_argument("--verify", action="store_true", help="compare the store with its checksums")


def add_report(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", metavar="DIR", help="the folder of runs")
    verb.add_argument("--out", metavar="FILE", help="the page to write (DIR/report.html)")
    verb.add_argument("--title", default="Runs", metavar="TEXT", help="its title (Runs)")


def add_evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", help="the folder of a run")
    add_step(verb, "latest")
    verb.add_argument("--store", metavar="DIR", help="the run's store, if it has moved")
    verb.add_argument("--batches", type=int, metavar="N", dest="num_batches", help="held-out batches to read (all)")
    add_settings(
        verb, "evaluate as if the experiment had this field, such as objective.sentence_task=SentenceOrderPrediction"
    )


def add_predict(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", help="the folder of a run")
    verb.add_argument(
        "kind", choices=("fill", "classify", "answer", "similarity", "embed", "tokens", "replaced"),
        help="fill [MASK], classify one text or two, answer a question, similarity of two texts or of all, vectors of "
        "texts or of tokens, mark replaced tokens (ELECTRA)",
    )  # fmt: skip
    verb.add_argument(
        "texts", nargs="*", metavar="TEXT", help="texts; without any, the lines of --file or of standard input"
    )
    verb.add_argument(
        "--second", nargs="+", default=[], metavar="TEXT", dest="second_texts",
        help="the second text of each, or the context of a question",
    )  # fmt: skip
    verb.add_argument(
        "--file", metavar="FILE",
        help='lines of a text, of two with a tab between, or of {"text": ..., "second": ...}; - is standard input',
    )  # fmt: skip
    add_step(verb, "best")
    verb.add_argument("--json", action="store_true", dest="as_json", help="print JSON lines")
    verb.add_argument("--top", type=int, default=5, metavar="N", dest="top_k", help="tokens for each mask (5)")
    verb.add_argument(
        "--pool", choices=("cls", "mean", "pooled"), default="mean", dest="pooling", help="the vector of a text (mean)"
    )
    verb.add_argument("--layer", type=int, default=-1, metavar="N", help="0 is the embedding, -1 the last layer (-1)")
    verb.add_argument(
        "--threshold", type=float, metavar="X", help="no answer where its score is above this (tuned on dev)"
    )
    verb.add_argument("--batch", type=int, default=32, metavar="N", dest="batch_size", help="texts at a time (32)")


def add_submit(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", help="the folder of a fine-tuned run")
    verb.add_argument("folder", metavar="DIR", help="the folder to write the files in")
    verb.add_argument("--root", metavar="DIR", help="the folder of the task's files, if they have moved")
    add_step(verb, "best")


def add_import(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", metavar="DIR", help="config.json, weights and tokenizer; or fairseq's .pt and dict.txt")
    verb.add_argument("run", metavar="RUN", help="the folder of the run to make")
    verb.add_argument("--generator", metavar="DIR", help="ELECTRA's generator (DIR/generator, if it exists)")
    verb.add_argument(
        "--vocabulary", metavar="PATH", dest="tokenizer_files", help="tokenizer files, if they are not in DIR"
    )


def add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", help="the folder of a run")
    verb.add_argument("folder", metavar="DIR", help="the folder to make")
    add_step(verb, "latest")


def add_bench(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "measurement", metavar="PART", help="step, infer, data, peers, ceiling, roofline, links or ablate"
    )
    verb.add_argument(
        "experiment", metavar="EXPERIMENT", nargs="?", default="speed", help="the experiments to measure (speed)"
    )
    add_choice(verb)
    verb.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements of each variant, in turn (7)")
    verb.add_argument("--units", type=int, default=1, metavar="N", help="steps of a measurement (1)")
    verb.add_argument("--device", choices=("cpu", "gpu", "tpu"), default="cpu", help="one core, on a CPU (cpu)")
    verb.add_argument("--core", type=int, metavar="N", help="the core to pin processes to (the last one)")
    verb.add_argument("--task", choices=("train", "infer"), default="train", help="the work of peers (train)")
    verb.add_argument("--text", action="store_true", dest="use_text", help="batches of text instead of random ids")
    verb.add_argument("--as-installed", action="store_true", help="do not let glibc keep freed memory, on either side")
    verb.add_argument("--out", default="bench", metavar="DIR", help="the folder of PART.json (bench)")


VERB_ARGUMENTS = {
    "show": ("the experiment, its parameters by part, FLOPs per token, memory; or table-2.1", add_experiment),
    "prepare": ("turn the corpus of an experiment into a store of tokens", add_prepare),
    "train": ("train every experiment of a file; interrupted ones resume", add_train),
    "status": ("list which experiments are done, running or failed, and the time left", add_status),
    "table": ("print the paper's table beside the runs, of a file of experiments/ablations/", add_table),
    "report": ("write one page about all runs of a folder: tables, curves, costs, experiments", add_report),
    "inspect": ("print what a store holds, and rows as the model reads them", add_inspect),
    "evaluate": ("print held-out scores of a run's checkpoint, without its experiment file", add_evaluate),
    "predict": ("print what a run predicts for new texts", add_predict),
    "submit": ("write a task's test predictions in the format that is handed in", add_submit),
    "import": ("make a published checkpoint (a folder, as transformers has it) a run", add_import),
    "export": ("write a run as a folder that transformers loads", add_export),
    "bench": ("measure: step, infer, data, peers, ceiling, roofline, links or ablate", add_bench),
}


def parse_arguments(words: list[str]) -> tuple[str | None, dict]:
    """Return the verb of a command line, None without one, and the arguments of its function."""
    end = words.index("--") if words[:1] == ["prepare"] and "--" in words else len(words)
    arguments = vars(build_parser().parse_args(words[:end]))
    verb = arguments.pop("verb")
    if verb == "prepare":
        arguments["pipeline_options"] = words[end + 1 :]
    if verb == "train":
        arguments["command_line"] = words
    return verb, arguments


def main(words: list[str] | None = None) -> int:
    """Run the command line and return the status of the process."""
    if words is None:
        words = sys.argv[1:]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # ± and the like, where the locale is C
    verb, arguments = parse_arguments(words)
    if verb is None:
        print(HELP.format(command=get_command_name()), end="")
        return 0
    from encoders.cli import commands, messages  # import jax, which the help does not need

    try:
        return commands.run_verb(verb, **arguments)
    except (ValueError, OSError) as error:
        if not messages.is_expected(error):
            raise
        print(f"encoders: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("encoders: interrupted; the same command resumes from the newest checkpoint", file=sys.stderr)
        return 130
