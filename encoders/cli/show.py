"""The verb `show`: experiments, their fingerprints and costs, and what their runs export as."""

from collections.abc import Callable
from functools import cache

from encoders.cli.experiment_files import ExperimentChoice, describe_small_scale, load_experiment_file
from encoders.costs.ledger import eval_param_shapes, format_ledger
from encoders.data.labelled import LabelledData
from encoders.data.spec import PretrainingData, compute_store_key
from encoders.exchange import convert
from encoders.experiment import Experiment, RunSpec, describe_experiments, fingerprint_experiment
from encoders.reporting import summaries
from encoders.run.warm_start import WarmStart
from encoders.text.tokenization import TokenizerSpec
from encoders.utils.errors import UserError, describe_error, escape_control
from encoders.utils.serialization import ExperimentError

MAX_HASHED_BYTES = 256 << 20  # of a corpus, for a fingerprint that is shown


def show_experiments(choice: ExperimentChoice) -> None:
    if choice.experiment == "table-2.1":
        print(summaries.format_table_2_1())
        return
    chosen = load_experiment_file(choice)
    experiments = chosen.experiments
    if len(experiments) > 1:
        names = ", ".join(experiment.name for experiment in experiments)
        print(f"{len(experiments)} experiments: {names}\nEach with the fields in which they differ:\n")
    find_store_key = cache(compute_small_store_key)  # experiments share their text
    for experiment, description in zip(experiments, describe_experiments(experiments), strict=True):
        print(f"== {experiment.name}\n{escape_control(description)}")
        print(escape_control(describe_fingerprint(experiment, find_store_key)))
        print(format_ledger(experiment))
        print(describe_experiment_export(experiment), end="\n\n")
    if chosen.table:
        for line in describe_small_scale(chosen.table, choice.experiment):
            print(line)


def describe_fingerprint(
    experiment: Experiment, find_store_key: Callable[[PretrainingData | LabelledData], str]
) -> str:
    """Return a line with the fingerprint, or with what it is made of and why it is not known yet."""
    parts = "all fields but name, mesh, intervals, folders and speed, and the contents of the text and of init_from"
    try:
        init_key = WarmStart(experiment).init_key if experiment.init_from else None
        fingerprint = fingerprint_experiment(experiment, find_store_key(experiment.data), init_key)
    except (UserError, OSError) as error:
        return f"fingerprint: of {parts}; not known yet: {describe_error(error)}"
    return f"fingerprint {fingerprint}: of {parts}"


def compute_small_store_key(data: PretrainingData | LabelledData) -> str:
    """Return the key of a store. Raises `ExperimentError` where much text would be read for it."""
    units = data.list_units() if isinstance(data, PretrainingData) else ()
    num_bytes = sum(byte_range.approx_bytes for unit in units for byte_range in unit.byte_ranges)
    if num_bytes > MAX_HASHED_BYTES:
        raise ExperimentError(f"the text has about {num_bytes:,} bytes, and `train` reads it")
    return compute_store_key(data)


def describe_experiment_export(experiment: Experiment) -> str:
    """Return the classes of transformers that a run of the experiment exports as, or why it cannot."""
    spec = RunSpec(name="any", model=experiment.model, objective=experiment.objective)
    return describe_spec_export(spec, experiment.data.tokenizer)


@cache  # seeds and recipes share a model, which is traced for its shapes
def describe_spec_export(spec: RunSpec, tokenizer: TokenizerSpec) -> str:
    return convert.describe_export(spec, tokenizer.find_pad_id(), eval_param_shapes(spec.model, spec.objective))
