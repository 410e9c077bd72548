"""The verb `measure`: what the encoders of runs have learned, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from encoders.measures.base import Measure, load_or_measure, merge_scores
from encoders.measures.clustering import Clustering
from encoders.measures.fixed_corruption import FixedCorruption
from encoders.measures.masked_tokens import MaskedTokens
from encoders.measures.minimal_pairs import MinimalPairs
from encoders.measures.pair_classification import PairClassification
from encoders.measures.probes import LinearProbe
from encoders.measures.retrieval import Retrieval
from encoders.measures.sts import SentenceSimilarity
from encoders.run.run import Run
from encoders.utils.overrides import apply_changes, parse_settings
from encoders.utils.serialization import ExperimentError

MEASURES: dict[str, type[Measure]] = {
    "heldout": MaskedTokens,
    "corruption": FixedCorruption,
    "blimp": MinimalPairs,
    "probes": LinearProbe,
    "sts": SentenceSimilarity,
    "retrieval": Retrieval,
    "clustering": Clustering,
    "pairs": PairClassification,
}
WITHOUT_DATA = [name for name, cls in MEASURES.items() if "path" not in cls.__dataclass_fields__]


def measure_runs(
    runs: Sequence[str],
    what: str | None = None,
    with_settings: Sequence[str] = (),
    settings: Sequence[str] = (),
    step: str = "latest",
    *,
    log: Callable[[str], None],
) -> None:
    """Print the scores of each run as JSON; what is in its folder already is read from there.

    Raises `ExperimentError` for an unknown measure, and `UserError` for data that is missing or cannot be read.
    """
    measures = choose_measures(what, with_settings, settings)
    for measure in measures:
        measure.list_files()  # data that is missing ends the command before any work
    for folder in runs:
        measurements = load_or_measure(folder, measures, step, log)
        print(json.dumps({"run": Run.open(folder).spec.name, "step": step} | merge_scores(measurements), indent=1))


def choose_measures(what: str | None, with_settings: Sequence[str], settings: Sequence[str]) -> list[Measure]:
    """Return the measures of `--what`, by default those that need no data and those that `--with` gives data."""
    paths = {}
    for setting in with_settings:
        name, equals, path = setting.partition("=")
        if not equals or name not in MEASURES or name in WITHOUT_DATA:
            accepted = ", ".join(name for name in MEASURES if name not in WITHOUT_DATA)
            raise ExperimentError(f"--with {setting!r} must be NAME=PATH with a name of {accepted}")
        paths[name] = path
    names = what.split(",") if what else [name for name in MEASURES if name in WITHOUT_DATA or name in paths]
    if unknown := [name for name in names if name not in MEASURES]:
        raise ExperimentError(f"--what {unknown[0]} is not one of {', '.join(MEASURES)}")
    if missing := [name for name in names if name not in WITHOUT_DATA and name not in paths]:
        raise ExperimentError(f"--what {missing[0]} needs data: add --with {missing[0]}=PATH")
    if unused := [name for name in paths if name not in names]:
        raise ExperimentError(f"--with {unused[0]}={paths[unused[0]]} is not used: --what names {what}")
    changes = parse_settings(settings)
    if unknown := [name for name in changes if name not in names]:
        raise ExperimentError(f"--set {unknown[0]}... is not one of the measures {', '.join(names)}")
    measures = []
    for name in names:
        measure = MEASURES[name](path=paths[name]) if name in paths else MEASURES[name]()
        measures.append(apply_changes(measure, changes[name], name) if name in changes else measure)
    return measures
