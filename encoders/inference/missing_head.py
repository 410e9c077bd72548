"""The error for a head that a run lacks, with a command that makes one."""

from collections.abc import Collection
from pathlib import Path

from encoders.run.folder import RunError

# By the head's parameters; RUN is the run without it.
HEAD_COMMANDS = {  # commands that make a run with a head; RUN is the one without it
    "tokens": "train mini --only mini-bert --set init_from=RUN data.tokenizer.path=RUN/tokenizer.json",
    "pooler": "train mini --only mini-bert --set init_from=RUN data.tokenizer.path=RUN/tokenizer.json",
    "replaced": "train mini --only mini-electra --set init_from=RUN data.tokenizer.path=RUN/tokenizer.json",
    "classes": "train own --with init_from=RUN root=FOLDER texts=COLUMN labels=A,B",
    "tags": "train tags --with init_from=RUN root=FOLDER",
    "spans": "train squad --with init_from=RUN root=FOLDER",
}


def missing_head(folder: Path, params: Collection[str], param_name: str, head_name: str) -> RunError:
    """Return the error for a run in `folder` whose parameters lack those of a head."""
    problem = f"{folder} needs a {head_name} head and has {', '.join(sorted(params))}"
    return RunError(f"{problem}; this makes one: {HEAD_COMMANDS[param_name].replace('RUN', str(folder))}")
