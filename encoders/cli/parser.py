"""The command line: verbs and their options, as plain arguments of the functions in `commands.py`."""

import argparse
import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from encoders.utils.errors import describe_error, escape_control, is_expected

BROKEN_PIPE_STATUS = 141  # as of a process that SIGPIPE ends

HELP = """\
Encoders: pre-train BERT, RoBERTa, ALBERT and ELECTRA.

  {command} show     bert --only bert-base                what it is, its size and its cost
  {command} show     table-2.1                            the chapter's table beside exact counts
  {command} price    bert --only bert-base --on v5e:4x4   hours and memory on accelerators, before a run
  {command} prepare  mini --set data.corpus=/texts/*.txt.xz
  {command} inspect  stores/KEY mini                      what a store holds, and rows as the model reads them
  {command} train    quickstart                           four tiny encoders, minutes on two cores
  {command} train    mini --only mini-electra --set optimizer.learning_rate=5e-4
  {command} evaluate runs/mini-electra                    held-out scores of a checkpoint
  {command} measure  runs/mini-bert --with blimp=blimp.jsonl.xz    what its encoder has learned
  {command} train    glue --with init_from=runs/mini-bert root=GLUE tasks=SST-2
  {command} train    albert_t4 --with corpus=TEXT.txt glue=GLUE    a table of ALBERT's paper, at small scale
  {command} status   albert_t4                            what is done, running, failed, and what is left
  {command} table    albert_t4 --format markdown          the paper's numbers beside ours
  {command} report   runs                                 all runs as one HTML page
  {command} predict  runs/mini-bert fill "The capital of France is [MASK]."
  {command} mine     runs/bert-base pairs.jsonl triplets.jsonl    hard negatives, to train with
  {command} import   bert-base-uncased runs/bert-base     a published checkpoint becomes a run
  {command} export   runs/mini-bert mini-bert             a run becomes a folder that transformers loads
  {command} bench    step --only bert-small-8x128         speed, beside this device's ceiling and others

An EXPERIMENT is a Python file that lists `experiments`, or a name: quickstart, mini, bert, glue, albert_t4 ...
"""


def get_command_name() -> str:
    """Return the command that was typed: `encoders` once it is installed, `python launch.py` in a checkout."""
    return "encoders" if Path(sys.argv[0]).stem == "encoders" else "python launch.py"


def make_option(usage: str, description: str | None, **settings) -> tuple[str, dict]:
    """Return the name and the settings of an argument, as `ArgumentParser.add_argument` takes them."""
    name, _, metavar = usage.partition(" ")
    return name, {"metavar": metavar or None, "help": description} | settings


def number_option(usage: str, description: str, dest: str | None = None) -> tuple[str, dict]:
    return make_option(usage, description, type=int, **({"dest": dest} if dest else {}))


def list_option(usage: str, description: str, dest: str) -> tuple[str, dict]:
    return make_option(usage, description, nargs="+", action="extend", dest=dest)


def make_flag(name: str, description: str, **settings) -> tuple[str, dict]:
    return name, {"action": "store_true", "help": description} | settings


def step_option(default: str) -> tuple[str, dict]:
    return make_option("--step N", f"best, latest, a step, or average:N of the last N ({default})")


SET_EXAMPLE = "this field, such as objective.sentence_task=SentenceOrderPrediction"
WITH_TEXT = "arguments of a file whose experiments are a function, such as init_from=runs/NAME"
CHOICE = (
    list_option("--with NAME=VALUE", WITH_TEXT, "with_settings"),
    list_option("--set A.B=C", "change a field", "settings"),
    make_option("--only NAME", "only experiments of this name (globs)", action="append"),
)
EXPERIMENTS = (make_option("experiment EXPERIMENT", "a Python file, or a name such as quickstart"), *CHOICE)
RUNS = make_option("--runs DIR", "the folder of runs, also gs:// (runs)")
RUN = make_option("run RUN", "the folder of a run, also gs://")
BENCH_PARTS = "step, infer, data, peers, ceiling or ablate"
# The description of each verb, and its arguments: those of its function in `commands.py`, which has their defaults.
VERBS = {
    "show": ("the experiment, its parameters by part, FLOPs per token, memory; or table-2.1", *EXPERIMENTS),
    "price": (
        "estimate memory, speed, hours and money of a run on accelerators that need not be there",
        *EXPERIMENTS,
        make_option(
            "--on LIST",
            "such as v5e:4x4,2*v5p:2x2x2 (slices) by XLA, with the extra tpu; h200:8 by arithmetic",
            dest="topologies",
            required=True,
        ),
        list_option("--rate CHIP=MONEY", "the price of a chip's hour, such as v5e=1.20", "rates"),
        make_flag("--search", "try meshes, layouts of layers, remat and micro-steps, and print the fastest that fits"),
    ),
    "prepare": (
        "turn the corpus of an experiment into a store of tokens",
        *EXPERIMENTS,
        number_option("--workers N", "processes of this machine (its cores)", "num_workers"),
        make_option("--runner NAME", "an Apache Beam runner, such as DirectRunner; its pipeline options follow --"),
        make_flag("--repair", "compare a finished store with its checksums and mend it"),
    ),
    "train": (
        "train every experiment of a file; interrupted ones resume",
        *EXPERIMENTS,
        RUNS,
        make_option("--stop-after 3h55m", "save and end after this time, with status 75"),
        number_option("--jobs N", "experiments at once, on this machine (1)", "num_jobs"),
        make_option("--coordinator HOST:PORT", "address of process 0; auto: as jax.distributed finds it, on a TPU pod"),
        number_option("--processes N", "processes of a run; on this machine without --coordinator", "num_processes"),
        number_option("--process I", "the index of this process", "process_id"),
        make_option("--wait 5m", "time for the processes to find each other (5m)"),
        make_option("--watchdog 30m", "after this time without a step print all stacks and end (30m; 0s: never)"),
        make_option("--compilation-cache DIR", "keep compiled steps there, such as gs://BUCKET/compiled (~/.cache)"),
        make_flag("--profile", "trace the first steps and print where time is spent"),
    ),
    "status": ("list which experiments are done, running or failed, and the time left", *EXPERIMENTS, RUNS),
    "table": (
        "print the paper's table beside the runs, of a file of experiments/ablations/",
        *EXPERIMENTS,
        RUNS,
        make_option("--format", None, choices=("text", "markdown", "latex", "csv"), dest="table_format"),
        make_option("--record FILE", "write its results into a .json file, beside those of other runs, and print that"),
        make_option("--from FILE", "print the table of such a file, without runs", dest="recorded"),
    ),
    "report": (
        "write one page about all runs of a folder: tables, curves, costs, experiments",
        make_option("folder DIR", "the folder of runs (runs)", nargs="?", default="runs"),
        make_option("--results DIR", "write instead a Markdown page of the files that `table --record` has written"),
        make_option("--out FILE", "the page to write (DIR/report.html, DIR/README.md)"),
        make_option("--title TEXT", "its title (Runs, Results)"),
        make_option("--charts DIR", "write only its learning curves, as SVG files into a folder", dest="charts_dir"),
    ),
    "inspect": (
        "print what a store holds, and rows as the model reads them",
        make_option("store STORE", "the folder of a store, as prepare prints it"),
        make_option("experiment EXPERIMENT", "whose settings make the rows (BERT's)", nargs="?", default=None),
        *CHOICE,
        number_option("--rows N", "rows of each phase (3)", "num_rows"),
        make_flag("--plain", "no colours, as in a file"),
        make_flag("--verify", "compare the store with its checksums"),
    ),
    "evaluate": (
        "print held-out scores of a run's checkpoint, without its experiment file",
        RUN,
        step_option("latest"),
        make_option("--store DIR", "the run's store, if it has moved"),
        list_option("--corpus FILE", "score all documents of these texts instead of the run's held-out ones", "corpus"),
        number_option("--batches N", "held-out batches to read (all)", "num_batches"),
        list_option("--set A.B=C", f"evaluate as if the experiment had {SET_EXAMPLE}", "settings"),
    ),
    "measure": (
        "measure what encoders have learned: grammar, parts of speech, similarity, retrieval, clusters, calibration",
        make_option("runs RUN", "the folders of runs, also gs://", nargs="+"),
        make_option(
            "--what LIST",
            "heldout,corruption,blimp,probes,sts,retrieval,clustering,pairs (those that need no data or have it)",
        ),
        list_option(
            "--with NAME=PATH",
            "data: blimp=FILE probes=DIR sts=DIR retrieval=DIR clustering=FILE pairs=FILE",
            "with_settings",
        ),
        list_option("--set NAME.FIELD=C", "a setting of a measure, such as blimp.masking=word", "settings"),
        step_option("latest"),
    ),
    "predict": (
        "print what a run predicts for new texts",
        RUN,
        make_option(
            "kind",
            "fill [MASK], classify one text or two, tag words, answer a question, similarity of two texts or of all, "
            "vectors of texts or of tokens, mark replaced tokens (ELECTRA), search a corpus",
            choices=("fill", "classify", "tags", "answer", "similarity", "embed", "tokens", "replaced", "search"),
        ),
        make_option("texts TEXT", "texts; without any, the lines of --file or of standard input", nargs="*"),
        list_option("--second TEXT", "the second text of each, or the context of a question", "second_texts"),
        make_option("--file FILE", 'lines of TEXT, TEXT<tab>TEXT or {"text": ..., "second": ...}; - is standard input'),
        step_option("best"),
        make_flag("--json", "print JSON lines", dest="as_json"),
        make_option("--out FILE", "write the vectors of embed to a .npy, .npz or .parquet file, a row for each text"),
        make_option("--corpus FILE", 'what search looks through: lines of text, or .jsonl of {"_id", "title", "text"}'),
        make_option("--index DIR", "keep the vectors of the corpus there, for the next search"),
        number_option("--top N", "tokens for each mask, or texts for each query (5)", "top_k"),
        make_option(
            "--pool",
            "the vector of a text (as imported or trained, or mean)",
            choices=("cls", "mean", "last", "pooled", "attention"),
            dest="pooling",
        ),
        make_option("--prompt NAME", "a prompt of the run, put in front of each text of embed (the run's default)"),
        number_option("--size N", "the first numbers of each vector of embed (all)"),
        number_option("--layer N", "0 is the embedding, -1 the last layer (-1)"),
        make_option("--threshold X", "no answer where its score is above this (tuned on dev)", type=float),
        number_option("--batch N", "texts at a time (32)", "batch_size"),
    ),
    "mine": (
        "write pairs of texts with hard negatives, which a run finds",
        make_option("run RUN", "the folder of the run that embeds, also gs://"),
        make_option("pairs PAIRS", "a .jsonl, .tsv or .csv file with the columns anchor and positive"),
        make_option("out OUT", "the file of JSON lines to write: anchor, positive and a list, negative"),
        make_option("--corpus FILE", "search these texts: lines, or .jsonl as for predict (all positive texts)"),
        make_option("--ranks A:B", "take texts at these ranks, without positive ones (10:100)"),
        make_option("--margin X", "a negative's cosine is at most the positive's minus X (no limit)", type=float),
        make_option("--share X", "a negative's cosine is at most X of the positive's (no limit)", type=float),
        number_option("--negatives N", "negatives of each row, the nearest first (3)", "num_negatives"),
        make_option("--step N", "best, latest or a step (best)"),
        number_option("--batch N", "texts at a time (32)", "batch_size"),
    ),
    "submit": (
        "write a task's test predictions in the format that is handed in",
        make_option("run RUN", "the folder of a fine-tuned run"),
        make_option("folder DIR", "the folder to write the files in"),
        make_option("--root DIR", "the folder of the task's files, if they have moved"),
        step_option("best"),
    ),
    "copy": (
        "copy a run between folders of this machine and buckets",
        RUN,
        make_option("target DIR", "the folder to make, also gs:// or s3://"),
    ),
    "import": (
        "make a published checkpoint (a folder, as transformers has it) a run",
        make_option("folder DIR", "config.json, weights and tokenizer; or fairseq's .pt and dict.txt"),
        make_option("run RUN", "the folder of the run to make"),
        make_option("--generator DIR", "ELECTRA's generator (DIR/generator, if it exists)"),
        make_option("--vocabulary PATH", "tokenizer files, if they are not in DIR", dest="tokenizer_files"),
        make_option(
            "--ignore PATTERN", "leave out extra tensors of this name (globs)", action="append", dest="ignored"
        ),
    ),
    "export": (
        "write a run as a folder that transformers loads",
        RUN,
        make_option("folder DIR", "the folder to make"),
        step_option("latest"),
    ),
    "bench": (
        f"measure: {BENCH_PARTS}",
        make_option("measurement PART", BENCH_PARTS),
        make_option("experiment EXPERIMENT", "the experiments to measure (speed)", nargs="?", default="speed"),
        *CHOICE,
        number_option("--rounds N", "measurements of each variant, in turn (7)"),
        number_option("--units N", "steps of a measurement (1)"),
        make_option("--device", "one core, on a CPU (cpu)", choices=("cpu", "gpu", "tpu")),
        number_option("--core N", "the core to pin processes to (the last one)"),
        make_option("--task", "the work of peers (train)", choices=("train", "infer")),
        list_option("--change A.B=C", "what ablate changes, one at a time (a list of usual settings)", "changes"),
        make_flag("--text", "batches of text instead of random ids", dest="use_text"),
        make_flag("--as-installed", "do not let glibc keep freed memory, on either side"),
        make_option("--out DIR", "the folder of PART.json (bench)"),
    ),
}
CODE = make_option("--code FILE", "import a Python file first, which registers classes of its own", action="append")


def build_parser() -> argparse.ArgumentParser:
    command = get_command_name()
    formatter = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(command, description=HELP.format(command=command), formatter_class=formatter)
    without_abbreviations = partial(argparse.ArgumentParser, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=without_abbreviations)
    for verb, (description, *arguments) in VERBS.items():
        verb_parser = verbs.add_parser(verb, help=description, description=description)
        for name, settings in (*arguments, CODE):
            verb_parser.add_argument(name, **settings)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the command line and return the status of the process; an error of the user is one line.

    An error that is not expected is a mistake in a program, and its traceback is shown.
    """
    if words is None:
        words = sys.argv[1:]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # ± and the like, where the locale is C
    try:
        arguments = parse_words(words)
        if arguments["verb"] is None:
            print(HELP.format(command=get_command_name()), end="")
            return 0
        from encoders.cli.commands import run_verb  # imports jax, which the help does not need

        status = run_verb(**arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return end_with_line("interrupted; the same command resumes from the newest checkpoint", 130)
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        return end_with_line("", BROKEN_PIPE_STATUS)
    except Exception as error:
        if not is_expected(error):
            raise
        return end_with_line(describe_error(error), 1)


def parse_words(words: list[str]) -> dict:
    """Return the arguments of `run_verb`; "verb" is None where nothing was typed."""
    end = words.index("--") if words[:1] == ["prepare"] and "--" in words else len(words)
    arguments = vars(build_parser().parse_args(words[:end]))
    if arguments["verb"] == "prepare":
        arguments["pipeline_options"] = words[end + 1 :]
    if arguments["verb"] == "train":
        arguments["command_line"] = words
    return arguments


def end_with_line(line: str, status: int) -> int:
    """Print a line, if there is one, to the standard error, drop output that nobody can take, and return `status`."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if line:
        with suppress(OSError):
            print(f"encoders: {escape_control(line)}", file=sys.stderr)
    return status
