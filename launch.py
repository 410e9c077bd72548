"""The one door: python launch.py VERB EXPERIMENT [--set a.b=c ...] [--only NAME]"""

from __future__ import annotations

import argparse
import sys
from functools import partial

HELP = """\
Encoders: pre-train BERT, RoBERTa, ALBERT and ELECTRA.

  python launch.py show     experiments/bert.py --only bert-base     what it is, its size and its cost
  python launch.py show     table-2.1                                the chapter's table beside exact counts
  python launch.py prepare  experiments/mini.py --set data.corpus=/texts/*.txt.xz
  python launch.py inspect  stores/KEY experiments/mini.py           what a store holds, rows as the model sees them
  python launch.py train    quickstart                               four tiny encoders, minutes on two cores
  python launch.py train    experiments/mini.py --only mini-electra --set optimizer.learning_rate=5e-4
  python launch.py evaluate runs/mini-electra                        held-out scores of a checkpoint
  python launch.py train    glue --with init_from=runs/mini-bert root=GLUE tasks=SST-2
  python launch.py train    albert_t4 --with corpus=TEXT.txt glue=GLUE    a table of ALBERT's paper, at small scale
  python launch.py status   albert_t4                                what is done, running, failed, and what is left
  python launch.py table    albert_t4 --format markdown              the paper's numbers beside ours
  python launch.py report   runs                                     all of it as one HTML page
  python launch.py predict  runs/mini-bert fill "The capital of France is [MASK]."
  python launch.py import   bert-base-uncased runs/bert-base         a published checkpoint becomes a run
  python launch.py export   runs/mini-bert mini-bert                 a run becomes a folder that transformers loads
  python launch.py bench    step --only bert-small-8x128             speed, beside this device's ceiling and others

An EXPERIMENT is a Python file that lists `experiments`, or the name of one in experiments/.
"""


def build_parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="launch.py", description=HELP, formatter_class=argparse.RawTextHelpFormatter)
    whole_words = partial(argparse.ArgumentParser, allow_abbrev=False)
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=whole_words)
    for name, text in (
        ("show", "the experiment, its parameters by part, FLOPs per token, memory; or table-2.1"),
        ("prepare", "turn its corpus into a store of tokens"),
        ("train", "train every member, going on where an interrupted one stands"),
        ("status", "which members are done, running, failed, and how long the others will take"),
        ("table", "the paper's table beside the runs, of a file of experiments/ablations/"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("experiment", metavar="EXPERIMENT")
        add_experiment_arguments(verb)
        if name == "prepare":
            add_prepare_arguments(verb)
        if name in ("train", "status", "table"):
            verb.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept (runs)")
        if name == "table":
            verb.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text")
        if name == "train":
            verb.add_argument("--stop-after", default=None, metavar="3h55m", help="save and end then, with status 75")
            verb.add_argument(
                "--jobs", type=int, default=None, metavar="N", help="members at once, on this machine (1)"
            )
            add_host_arguments(verb)
            verb.add_argument("--profile", action="store_true", help="trace the first steps and say where time goes")
    verb = verbs.add_parser("report", help="one page about all runs of a folder: tables, curves, costs, experiments")
    verb.add_argument("folder", metavar="DIR", help="where the runs are")
    verb.add_argument("--out", default=None, metavar="FILE", help="the page to write (DIR/report.html)")
    verb.add_argument("--title", default="Runs", metavar="TEXT", help="its title (Runs)")
    verb = verbs.add_parser("inspect", help="what a store holds, and rows as the model sees them")
    verb.add_argument("store", metavar="STORE", help="a store's folder, as prepare prints it")
    verb.add_argument(
        "experiment", metavar="EXPERIMENT", nargs="?", default=None,
        help="whose formats and objective make the rows; without one BERT's",
    )  # fmt: skip
    add_experiment_arguments(verb)
    verb.add_argument("--rows", type=int, default=3, metavar="N", help="rows of each phase (3)")
    verb.add_argument("--plain", action="store_true", help="no colours, which a file gets in any case")
    verb.add_argument("--verify", action="store_true", help="compare the store with its checksums")
    verb = verbs.add_parser("evaluate", help="held-out scores of a run's checkpoint, without its experiment file")
    add_run_arguments(verb)
    verb.add_argument("--batches", type=int, default=None, metavar="N", help="held-out batches to read (all)")
    verb.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="A.B=C",
        help="score it as if its experiment had this field, such as objective.sentence_task=SentenceOrderPrediction",
    )  # fmt: skip
    add_predict_arguments(verbs.add_parser("predict", help="what a run says of new texts"))
    verb = verbs.add_parser("submit", help="answer a task's test rows in the format that is handed in")
    verb.add_argument("run", metavar="RUN", help="a fine-tuned run's folder")
    verb.add_argument("folder", metavar="DIR", help="where the files are written")
    verb.add_argument("--root", default=None, metavar="DIR", help="where the task's files are, if not where they were")
    verb.add_argument("--step", default="best", metavar="N", help="best (default), latest, or a step")
    verb = verbs.add_parser("import", help="make a published checkpoint (a folder, as transformers has it) a run")
    verb.add_argument("folder", metavar="DIR", help="config.json, weights and tokenizer; or fairseq's .pt and dict.txt")
    verb.add_argument("run", metavar="RUN", help="the folder of the run to make")
    verb.add_argument("--generator", default=None, metavar="DIR", help="ELECTRA's generator (DIR/generator, if there)")
    verb.add_argument("--vocabulary", default=None, metavar="PATH", help="tokenizer files that are elsewhere")
    verb = verbs.add_parser("export", help="write a run as a folder that transformers loads")
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("folder", metavar="DIR", help="the folder to make")
    verb.add_argument("--step", default="latest", metavar="N", help="latest (default), best, or a step")
    add_bench_arguments(
        verbs.add_parser("bench", help="measure: step, infer, data, peers, ceiling, roofline, links or ablate")
    )
    return top


def add_host_arguments(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument(
        "--coordinator", default=None, metavar="HOST:PORT",
        help="where process 0 of a run of several is; auto: as jax.distributed finds out, as on a TPU pod",
    )  # fmt: skip
    subparser.add_argument(
        "--processes", type=int, default=None, metavar="N", help="how many; without --coordinator they start here"
    )
    subparser.add_argument("--process", type=int, default=None, metavar="I", help="which of them this one is")
    subparser.add_argument("--wait", default="5m", metavar="5m", help="how long they wait for each other (5m)")
    subparser.add_argument(
        "--watchdog",
        default="30m",
        metavar="30m",
        help="without a step for so long say where it hangs, then end (30m; 0s: never)",
    )


def add_prepare_arguments(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument(
        "--workers", type=int, default=None, metavar="N", help="processes of this machine (its cores)"
    )
    subparser.add_argument(
        "--runner", default=None, metavar="NAME",
        help="an Apache Beam runner instead, such as DirectRunner, FlinkRunner, SparkRunner or DataflowRunner, with "
        "its pipeline options after --",
    )  # fmt: skip
    subparser.add_argument(
        "--repair", action="store_true", help="compare a finished store with its checksums and mend it"
    )


def add_experiment_arguments(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument(
        "--with", nargs="+", action="extend", default=[], metavar="NAME=VALUE", dest="given",
        help="what a file whose experiments are a function takes, such as init_from=runs/NAME",
    )  # fmt: skip
    subparser.add_argument("--set", nargs="+", action="extend", default=[], metavar="A.B=C", help="change a field")
    subparser.add_argument("--only", action="append", default=[], metavar="NAME", help="members with this name (globs)")


def add_bench_arguments(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument("part", metavar="PART", help="step, infer, data, peers, ceiling, roofline, links or ablate")
    subparser.add_argument(
        "experiment", metavar="EXPERIMENT", nargs="?", default="speed", help="what is measured (speed)"
    )
    add_experiment_arguments(subparser)
    subparser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="measurements of each variant, in turn (7)"
    )
    subparser.add_argument("--units", type=int, default=1, metavar="N", help="steps a measurement (1)")
    subparser.add_argument(
        "--device", choices=("cpu", "gpu", "tpu"), default="cpu", help="on a CPU one core is used (cpu)"
    )
    subparser.add_argument(
        "--core", type=int, default=None, metavar="N", help="the core to be pinned to (the last one)"
    )
    subparser.add_argument("--task", choices=("train", "infer"), default="train", help="of peers (train)")
    subparser.add_argument("--text", action="store_true", help="batches of the experiment's text, not of random ids")
    subparser.add_argument(
        "--as-installed", action="store_true", help="do not let glibc keep freed memory, on either side"
    )
    subparser.add_argument("--out", default="bench", metavar="DIR", help="where PART.json is written (bench)")


def add_predict_arguments(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument("run", metavar="RUN", help="a run's folder")
    subparser.add_argument(
        "what", choices=("fill", "classify", "answer", "similarity", "embed", "tokens", "replaced"),
        help="fill [MASK], classify one text or two, answer a question, similarity of two texts or of all, vectors of "
        "texts or of tokens, mark replaced tokens (ELECTRA)",
    )  # fmt: skip
    subparser.add_argument(
        "text", nargs="*", metavar="TEXT", help="texts; without any, lines of --file or standard input"
    )
    subparser.add_argument(
        "--second", nargs="+", default=[], metavar="TEXT", help="the second text of each, or the text asked"
    )
    subparser.add_argument(
        "--file", default=None, metavar="FILE",
        help='lines of a text, of two with a tab between, or of {"text": ..., "second": ...}; - is standard input',
    )  # fmt: skip
    subparser.add_argument("--step", default="best", metavar="N", help="best (default), latest, or a step")
    subparser.add_argument("--json", action="store_true", help="print JSON lines")
    subparser.add_argument("--top", type=int, default=5, metavar="N", help="words a mask (5)")
    subparser.add_argument(
        "--pool", choices=("cls", "mean", "pooled"), default="mean", help="the vector of a text (mean)"
    )
    subparser.add_argument("--layer", type=int, default=-1, metavar="N", help="0 is the embedding, -1 the last (-1)")
    subparser.add_argument(
        "--threshold", type=float, default=None, metavar="X", help="of `null`, above it: no answer (tuned)"
    )
    subparser.add_argument("--batch", type=int, default=32, metavar="N", help="texts at a time (32)")


def add_run_arguments(subparser: argparse.ArgumentParser) -> None:
    subparser.add_argument("run", metavar="RUN", help="a run's folder")
    subparser.add_argument("--step", default="latest", metavar="N", help="latest (default), best, or a step")
    subparser.add_argument("--store", default=None, metavar="DIR", help="where the run's store is, if it has moved")


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    passed = given.index("--") if given[:1] == ["prepare"] and "--" in given else len(given)
    options = build_parser().parse_args(given[:passed])
    options.passed, options.line = given[passed + 1 :], given[:passed]
    if options.verb is None:
        print(HELP, end="")
        return 0
    from encoders.cli import commands

    try:
        commands.check_local_folders(options)
        return commands.VERBS[options.verb](options)
    except (ValueError, OSError) as error:
        if not commands.is_expected(error):
            raise
        print(f"launch.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("launch.py: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # ± and the like, where the locale is C
    sys.exit(main())
