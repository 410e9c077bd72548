"""The verb `mine`: hard negatives for the rows of a file of pairs."""

from __future__ import annotations

import re
from collections.abc import Callable

from encoders.inference.hard_negatives import NegativeRule, mine_negatives
from encoders.inference.predictor import load_predictor
from encoders.measures.base import find_step
from encoders.run.run import Run
from encoders.utils.serialization import ExperimentError


def mine_pairs(
    run: str,
    pairs: str,
    out: str,
    corpus: str | None = None,
    ranks: str = "10:100",
    step: str = "best",
    batch_size: int = 32,
    *,
    log: Callable[[str], None],
    **limits,
) -> None:
    """Write pairs with hard negatives and print the file; `limits` are fields of `NegativeRule`.

    Raises `ExperimentError` for ranks of another form, and `UserError` as `mine_negatives`.
    """
    if not re.fullmatch(r"\d+:\d+", ranks):
        raise ExperimentError(f"--ranks {ranks} must be FIRST:LAST, such as 10:100")
    first_rank, last_rank = map(int, ranks.split(":"))
    rule = NegativeRule((first_rank, last_rank), **limits)
    step_number = find_step(Run.open(run), step)
    predictor = load_predictor(run, str(step_number), batch_size)
    mine_negatives(predictor, step_number, pairs, out, rule, corpus, log)
    if predictor.num_truncated:
        log(f"truncated {predictor.num_truncated} texts that exceed the longest row of the run")
    print(out)
