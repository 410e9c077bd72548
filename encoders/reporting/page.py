"""All runs of a folder → one HTML page that needs nothing else: tables, learning curves, each run's experiment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from encoders.experiment import Experiment, RunSpec, describe_experiment
from encoders.reporting import plots
from encoders.reporting.plots import Chart, ChartLine
from encoders.run.preemption import format_duration
from encoders.run.run import RunError, read_result, read_run_record
from encoders.training import metric_log
from encoders.utils.overrides import from_json_value


@dataclass(frozen=True)
class ReportTable:
    """A table: its head, its rows and what has to be said of them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSummary:
    """A run as its folder tells it."""

    folder: Path
    record: dict
    spec: RunSpec
    metric_rows: tuple[dict, ...]
    result: dict | None

    @classmethod
    def read(cls, folder: Path) -> RunSummary:
        """Raises `ValueError` or `KeyError` where a file is damaged, or of a version that had other fields."""
        record = read_run_record(folder)
        rows = tuple(metric_log.read_metric_rows(folder / "metrics.jsonl"))
        return cls(folder, record, from_json_value(record["experiment"]), rows, read_result(folder))

    @property
    def is_trained(self) -> bool:
        """Whether it is no imported run."""
        return isinstance(self.spec, Experiment)

    def select_split(self, split: str) -> list[dict]:
        return [row for row in self.metric_rows if row["split"] == split]

    @property
    def state(self) -> str:
        """How far it is."""
        if not self.is_trained:
            return "imported"
        if self.result:
            return f"finished, {self.result['steps']:,} steps"
        at, steps = self.metric_rows[-1]["step"] if self.metric_rows else 0, self.spec.num_steps
        return f"not finished: {at:,} of {steps:,} steps ({at / steps:.0%})"

    def collect_details(self) -> dict[str, str]:
        """What there is to know of it in a line each."""
        known = {"fingerprint": self.record["fingerprint"], "state": self.state, "folder": str(self.folder)}
        known["versions"] = ", ".join(f"{name} {version}" for name, version in self.record["versions"].items())
        known["devices"] = ", ".join(self.record["devices"])
        if self.result:
            known["parameters"] = f"{self.result['parameters']:,}"
        if train := self.select_split("train"):
            speed = self.result or train[-1]["time"]
            known["tokens"] = f"{train[-1]['tokens']:,}"
            known["tokens/s"] = f"{speed['tokens_per_second']:,.0f}"
            known["time"] = format_duration(sum(row["time"]["seconds"] for row in self.metric_rows))
        return known

    def build_score_table(self) -> ReportTable | None:
        """The held-out scores of the last evaluation, and of the best one once the run is finished."""
        last = self.select_split("heldout")[-1:]
        known = {f"step {last[0]['step']:,}": last[0]} if last else {}
        if self.result:
            known = {"last": self.result["heldout"]}
            if best := self.result.get("best"):
                known[f"best, step {best['step']:,}"] = best
        if not known:
            return None
        hidden = ("step", "split", "time")
        names = [name for name in next(iter(known.values())) if name not in hidden and not name.endswith("_error")]
        rows = tuple(
            (name.replace("_", " "), *(format_score(scores, name) for scores in known.values())) for name in names
        )
        return ReportTable("Held-out scores", ("score", *known), rows)


def format_score(scores: dict[str, float], score_name: str) -> str:
    """A score with its standard error, where there is one."""
    error = scores.get(f"{score_name}_error")
    return f"{scores[score_name]:.4g}" + ("" if error is None else f" ± {error:.2g}")


def format_count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def read_runs(folder: Path) -> tuple[list[RunSummary], list[str]]:
    """The runs in a folder by name, and of those that cannot be read why. Raises `RunError` where there is none."""
    places = sorted(path.parent for path in Path(folder).glob("*/experiment.json"))
    if not places:
        raise RunError(f"{folder} holds no runs (no */experiment.json)")
    runs, unread = [], []
    for place in places:
        try:
            runs.append(RunSummary.read(place))
        except (ValueError, KeyError, TypeError) as error:
            unread.append(f"{place.name}: {error}")
    return runs, unread


# The page -------------------------------------------------------------------------------------------------------------


def build_page(folder: Path, report_tables: Sequence[ReportTable], title: str = "Runs") -> str:
    """One HTML page about all runs in `folder`, with the tables that others have made of them.

    Raises `RunError` where there is no run, and `ValueError` where matplotlib is not installed.
    """
    runs, unread = read_runs(folder)
    charts = plots.build_charts([(run.spec, run.metric_rows) for run in runs if run.is_trained])
    parts = [(f"table-{n}", sheet.title, render_table(sheet)) for n, sheet in enumerate(report_tables, 1)]
    parts += [(f"curves-{n}", name, render_charts(group, f"c{n}")) for n, (name, group) in enumerate(charts.items(), 1)]
    parts.append(("runs", "Every run", "\n".join([*map(render_unreadable, unread), *map(render_run, runs)])))
    contents = [build_element("li", build_element("a", escape(name), href=f"#{mark}")) for mark, name, _ in parts]
    body = [
        build_element("h1", escape(title)),
        build_element("p", escape(summarize_folder(folder, runs, unread))),
        build_element("nav", build_element("ul", *contents), aria_label="Contents"),
        *(
            build_element("section", build_element("h2", escape(name)), "\n", inner, id=mark)
            for mark, name, inner in parts
        ),
    ]
    head = (
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        build_element("title", escape(title)),
        build_element("style", PAGE_CSS),
    )
    inner = "\n".join([build_element("head", "\n".join(head)), build_element("body", "\n".join(body))])
    return f"<!doctype html>\n{build_element('html', inner, lang='en')}\n"


def build_element(element: str, /, *inner: str, **attributes: str) -> str:
    """An element; what it holds is HTML already, and `_` in the name of an attribute stands for `-`."""
    told = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    return f"<{element}{told}>{''.join(inner)}</{element}>"


def summarize_folder(folder: Path, runs: Sequence[RunSummary], unreadable_runs: Sequence[str]) -> str:
    """How many runs there are, how far they are, on which devices and when they were written."""
    finished = sum(run.result is not None for run in runs)
    imported = sum(not run.is_trained for run in runs)
    counts = {"finished": finished, "not finished": len(runs) - finished - imported, "imported": imported}
    counts["not readable"] = len(unreadable_runs)
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    sentences = [f"{format_count(len(runs) + len(unreadable_runs), 'run')} in {Path(folder).resolve().name}: {told}."]
    if runs:
        devices = sorted({describe_devices(run.record["devices"]) for run in runs if run.is_trained})
        sentences += [f"Trained on {' or '.join(devices)}."] * bool(devices)
        names = ("experiment.json", "metrics.jsonl", "result.json")
        files = [run.folder / name for run in runs for name in names if (run.folder / name).exists()]
        days = sorted(f"{datetime.fromtimestamp(file.stat().st_mtime, UTC):%Y-%m-%d %H:%M}" for file in files)
        sentences.append(f"Their files are from {days[0]} to {days[-1]} UTC.")
    return " ".join(sentences)


def describe_devices(devices: Sequence[str]) -> str:
    """Devices by kind.

    >>> describe_devices(["cuda:0", "cuda:1"])
    '2 cuda'
    """
    return " and ".join(f"{count} {kind}" for kind, count in Counter(map(parse_device_kind, devices)).items())


def parse_device_kind(device: str) -> str:
    """A device's kind, as of `cuda:0` or `TFRT_CPU_0`."""
    return device.partition(":")[0].partition("_")[0]


def render_table(report_table: ReportTable) -> str:
    """A sheet as a table that scrolls by itself where it is too wide, and its notes."""
    columns = list(zip(*report_table.rows, strict=True)) or [()] * len(report_table.header)
    kinds = [choose_cell_class(cells) for cells in columns]
    head = [
        build_element("th", escape(cell), class_=kind, scope="col")
        for cell, kind in zip(report_table.header, kinds, strict=True)
    ]
    rows = [build_element("tr", *head)]
    for first, *others in report_table.rows:
        cells = [build_element("td", escape(cell), class_=kind) for cell, kind in zip(others, kinds[1:], strict=True)]
        rows.append(build_element("tr", build_element("th", escape(first), scope="row"), *cells))
    body = build_element("tbody", "\n".join(rows[1:]))
    whole = build_element("table", build_element("thead", rows[0]), "\n", body, style=f"--columns: {len(kinds)}")
    notes = [build_element("p", escape(note), class_="note") for note in report_table.notes]
    return "\n".join(
        [
            build_element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=report_table.title),
            *notes,
        ]
    )


def choose_cell_class(cells: Sequence[str]) -> str:
    """How a column is set: as numbers where letters are not in the majority, else as words or as prose."""
    text = "".join(cells)
    if sum(map(str.isalpha, text)) <= sum(map(str.isdigit, text)):
        return "number"
    return "words" if max(map(len, cells)) < 30 else "prose"


def render_charts(charts: Sequence[Chart], id_prefix: str) -> str:
    """Charts side by side, each with its legend and what it shows."""
    return build_element(
        "div", *(render_chart(chart, f"{id_prefix}-{n}") for n, chart in enumerate(charts, 1)), class_="charts"
    )


def render_chart(chart: Chart, id_prefix: str) -> str:
    drawn = plots.draw_svg(chart, id_prefix).replace(
        "<svg ", f'<svg role="img" aria-label="{escape(chart.caption)}" ', 1
    )
    legend = build_element(
        "ul",
        *(build_element("li", render_legend_line(line), escape(line.name)) for line in chart.lines),
        class_="legend",
    )
    return build_element("figure", drawn, "\n", legend, "\n", build_element("figcaption", escape(chart.caption)))


def render_legend_line(line: ChartLine) -> str:
    """A piece of a line as it looks in a chart."""
    dashes = " ".join(f"{plots.LINE_WIDTH * length:g}" for length in line.dashes) or "none"
    drawn = build_element(
        "path", d="M0 4H26", stroke=line.colour, stroke_width=f"{plots.LINE_WIDTH}", stroke_dasharray=dashes
    )
    return build_element("svg", drawn, width="26", height="8", aria_hidden="true")


def render_unreadable(reason: str) -> str:
    return build_element("p", escape(f"Could not be read: {reason}"), class_="note")


def render_run(run: RunSummary) -> str:
    """All about a run, folded up."""
    head = build_element(
        "summary", build_element("b", escape(run.spec.name)), " ", build_element("span", escape(run.state))
    )
    facts = [
        build_element("dt", escape(name)) + build_element("dd", escape(value))
        for name, value in run.collect_details().items()
    ]
    scores = run.build_score_table()
    text = json.dumps(run.record["experiment"], indent=1, ensure_ascii=False)
    inner = [
        build_element("dl", *facts),
        *([render_table(scores)] if scores else []),
        build_element("pre", escape(describe_experiment(run.spec)), tabindex="0"),
        build_element(
            "details", build_element("summary", "The same as JSON"), build_element("pre", escape(text), tabindex="0")
        ),
    ]
    return build_element("details", head, "\n".join(inner), class_="run")


PAGE_CSS = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --faint: #57606a; --line: #d0d7de; --link: #0550ae }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #15181c; --ink: #e4e7eb; --faint: #9aa4af; --line: #3a424b; --link: #7ab7ff }
}
* { box-sizing: border-box }
body {
  max-width: 70rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere;
  background: var(--ground); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
}
h1, h2 { line-height: 1.25 }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem }
a { color: var(--link) }
nav ul { columns: 20rem; column-gap: 3rem; padding-left: 1.2rem }
nav li { break-inside: avoid }
.note, .run span, figcaption { font-size: .875rem }
.note, .run span, figcaption, dt { color: var(--faint) }
.scroll, pre { overflow-x: auto; overflow-wrap: normal }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
thead th { border-bottom-width: 2px; vertical-align: bottom; min-width: 5.5rem }
th { background: var(--ground); font-weight: 600 }
th:first-child { position: sticky; left: 0; padding-left: 0; min-width: clamp(9rem, 20vw, 14rem) }
th[scope=row] { font-weight: 400; overflow-wrap: anywhere }
.number:not(:first-child) { text-align: right }
td.number { white-space: nowrap }
td.prose { min-width: 16rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem }
figure { margin: 0 }
figure > svg { display: block; width: 100%; height: auto; stroke-linejoin: round }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: .25rem 0; padding: 0; font-size: .875rem }
.legend li { list-style: none }
.legend svg { margin-right: .4rem; vertical-align: middle }
.run { padding: .5rem 0; border-bottom: 1px solid var(--line) }
summary { cursor: pointer }
dl { display: grid; font-size: .875rem; grid-template-columns: max-content 1fr; gap: .1rem 1rem }
dd { margin: 0 }
pre { padding: .75rem; border: 1px solid var(--line); border-radius: .25rem; font-size: .8125rem }
@media print {
  html { font-size: 80% }
  body { max-width: none; padding: 0 }
  nav { display: none }
  table { font-size: min(.85rem, 8.2rem / var(--columns)) }
  th, td { padding: .15rem .25rem }
  th:first-child { position: static }
  td.prose, thead th, th:first-child { min-width: 0 }
  .scroll, pre { overflow: visible }
  pre { white-space: pre-wrap; overflow-wrap: anywhere }
  h2 { break-after: avoid }
  figure, tr { break-inside: avoid }
}
"""
