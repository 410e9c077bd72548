"""The verb `show`: experiments, their costs, and what their runs export as."""

from functools import cache

from encoders.cli.experiment_files import ExperimentChoice, describe_small_scale, load_experiment_file
from encoders.costs.ledger import eval_param_shapes, format_ledger
from encoders.exchange import convert
from encoders.experiment import Experiment, RunSpec, describe_experiments
from encoders.reporting import summaries
from encoders.text.tokenization import TokenizerSpec
from encoders.utils.errors import escape_control


def show_experiments(choice: ExperimentChoice) -> None:
    if choice.experiment == "table-2.1":
        print(summaries.format_table_2_1())
        return
    chosen = load_experiment_file(choice)
    experiments = chosen.experiments
    if len(experiments) > 1:
        names = ", ".join(experiment.name for experiment in experiments)
        print(f"{len(experiments)} experiments: {names}\nEach with the fields in which they differ:\n")
    for experiment, description in zip(experiments, describe_experiments(experiments), strict=True):
        print(f"== {experiment.name}\n{escape_control(description)}")
        print(format_ledger(experiment))
        print(describe_experiment_export(experiment), end="\n\n")
    if chosen.table:
        for line in describe_small_scale(chosen.table):
            print(line)


def describe_experiment_export(experiment: Experiment) -> str:
    """Return the classes of transformers that a run of the experiment exports as, or why it cannot."""
    spec = RunSpec(name="any", model=experiment.model, objective=experiment.objective)
    return describe_spec_export(spec, experiment.data.tokenizer)


@cache  # seeds and recipes share a model, which is traced for its shapes
def describe_spec_export(spec: RunSpec, tokenizer: TokenizerSpec) -> str:
    return convert.describe_export(spec, tokenizer.find_pad_id(), eval_param_shapes(spec.model, spec.objective))
