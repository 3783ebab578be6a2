"""Inputs and specs of rules tables and charts, as functions of wildcards; see `rule_lookups`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from dmd.config.artifacts import Experiments
from dmd.config.experiment import Chart, Row, Table
from dmd.config.inheritance import Configuration
from dmd.config.messages import ConfigError, suggestion
from dmd.config.rule_lookups import exits_on_config_error
from dmd.config.rule_table import RULES
from dmd.config.section_base import canonical_json

T = TypeVar("T")
SHOWN = ("fid", "classes", "kid", "prdc", "clip")  # score files that a table shows
Look = Callable[[Any], list[str]]


class TableLookups:
    """Look-ups in the tables and charts of a configuration; `paper` holds published tables by name.

    Raises:
        ConfigError: a table names a published one that is unknown.
    """

    def __init__(self, configuration: Configuration, experiments: Experiments, paper: Mapping[str, Any]) -> None:
        self.tables, self.charts, self.paper = configuration.tables, configuration.charts, paper
        self.experiments = experiments
        for name, table in self.tables.items():
            if table.paper is not None and table.paper not in paper:
                hint = suggestion(table.paper, paper)
                known = ", ".join(paper)
                raise ConfigError(f'tables.{name}.paper: unknown table "{table.paper}"{hint}; known: {known}')

    def target_files(self, name: str) -> Look:
        """Files that belong to a table: for `demo` demo.md, demo-*.png and the grid of each row's first experiment."""

        @exits_on_config_error
        def look_up(wildcards: Any) -> list[str]:
            if name not in self.tables:
                raise ConfigError(
                    f'the configuration has no table "{name}": add it, or ask for files such as results/NAME/fid.json'
                )
            first = [row.experiments[0] for row in self.tables[name].rows if row.run]
            distilled = [each for each in first if self.experiments.distilled(each)]
            owners = {self.experiments.owner(each, "pictures") for each in distilled}
            return [
                f"results/tables/{name}.md",
                *(f"results/tables/{chart}.png" for chart in self.charts if chart.startswith(f"{name}-")),
                *(f"results/{owner}/pictures/grid.png" for owner in sorted(owners)),
            ]

        return look_up

    def scores(self, metric: str) -> Look:
        """Files of a metric for the experiments of a table, in order, without rows that have `run: false`."""

        @exits_on_config_error
        def look_up(wildcards: Any) -> list[str]:
            return self._scores(metric, [row for row in self._table(wildcards).rows if row.run])

        return look_up

    def existing(self, metric: str) -> Look:
        """Existing files of a metric for rows with `run: false`. As inputs they would be updated by Snakemake."""

        @exits_on_config_error
        def look_up(wildcards: Any) -> list[str]:
            rows = self._table(wildcards).rows
            run = self.scores(metric)(wildcards)
            others = self._scores(metric, [row for row in rows if not row.run])
            return [path for path in others if path not in run and os.path.exists(path)]

        return look_up

    @exits_on_config_error
    def latencies(self, wildcards: Any) -> list[str]:
        """Existing latency files of a table's experiments. Tables start no measurement, which needs an idle machine."""
        return [path for path in self._scores("latency", self._table(wildcards).rows) if os.path.exists(path)]

    @exits_on_config_error
    def retrievals(self, wildcards: Any) -> list[str]:
        """Existing retrieval files of a table's experiments; they are made on request."""
        return [path for path in self._scores("retrieval", self._table(wildcards).rows) if os.path.exists(path)]

    def not_inputs(self, wildcards: Any) -> list[str]:
        """All files that a table shows besides its inputs."""
        scores = [path for metric in SHOWN for path in self.existing(metric)(wildcards)]
        return self.latencies(wildcards) + self.retrievals(wildcards) + scores

    def _scores(self, metric: str, rows: Iterable[Row]) -> list[str]:
        """Files of a metric for the experiments of rows, each once, in order; for `clip` where it is configured."""
        names = dict.fromkeys(name for row in rows for name in row.experiments)
        known = [name for name in names if metric != "clip" or self.experiments.has(name, metric)]
        return [f"results/{name}/{metric}.json" for name in known]

    @exits_on_config_error
    def table_spec(self, wildcards: Any) -> str:
        """Rows of a table, each with the owners of its teachers, and the published rows to print beside them.

        Rows with the same teachers are compared with each other.
        """
        table = self._table(wildcards)
        rows = []
        for row in table.rows:
            taught = [name for name in row.experiments if self.experiments.has(name, "teacher")]
            owners = sorted({self.experiments.owner(name, "teacher") for name in taught})
            values = row.model_dump(exclude={"run", "seeds"}, exclude_none=True)
            of_teacher = {} if any(map(self.experiments.distilled, row.experiments)) else {"of_teacher": True}
            rows.append(values | {"teacher": " ".join(owners), **of_teacher})
        more = {"differences": table.differences} if table.differences else {}
        return canonical_json({"title": table.title, "rows": rows, "paper": self.paper.get(table.paper or ""), **more})

    @exits_on_config_error
    def table_version(self, wildcards: Any) -> str:
        """The version of rule tables, and a digest of all that its scores are made from."""
        rows = self._table(wildcards).rows
        return self._version("tables", [name for row in rows if row.run for name in row.experiments])

    @exits_on_config_error
    def chart_version(self, wildcards: Any) -> str:
        """The version of rule charts, and a digest of all that its scores are made from."""
        series = self._chart(wildcards).series
        return self._version("charts", [name for each in series for point in each.points for name in point])

    def _version(self, rule: str, names: Iterable[str]) -> str:
        made = [[self.experiments.spec(name, "evaluate"), self.experiments.lineage(name, "evaluate")] for name in names]
        return f"{RULES[rule].version} {hashlib.sha256(canonical_json({'made': made}).encode()).hexdigest()[:16]}"

    @exits_on_config_error
    def chart_inputs(self, wildcards: Any) -> list[str]:
        """Scores of every experiment of a chart; for Figure 3 the classes; and the samples of each panel or row."""
        chart = self._chart(wildcards)
        points = [point for series in chart.series for point in series.points]
        names = [name for point in points for name in point]
        metric = "classes" if chart.kind == "figure3" else "fid"
        scores = [f"results/{name}/{metric}.json" for name in names]
        if chart.kind not in ("figure3", "images"):
            return scores
        panels = [self.experiments.path(point[0], "samples_manifest") for point in points]
        return scores + [f"results/{path}" for path in panels]

    @exits_on_config_error
    def chart_spec(self, wildcards: Any) -> str:
        """Kind, title and series of a chart, and the further values that its kind needs."""
        chart = self._chart(wildcards)
        spec = chart.with_defaults()
        del spec["seeds"]  # the points have their experiments
        for series in spec["series"]:
            if chart.kind == "pairs":
                firsts = [point[0] for point in series["points"]]
                series["x"] = [self.experiments.section(name, "pairs").num_pairs for name in firsts]
        if chart.kind == "figure3":
            spec["dataset"] = self.experiments.section(chart.series[0].points[0][0], "dataset").with_defaults()
        return canonical_json(spec)

    def _table(self, wildcards: Any) -> Table:
        return _entry(self.tables, "tables", wildcards.table)

    def _chart(self, wildcards: Any) -> Chart:
        return _entry(self.charts, "charts", wildcards.chart)


def _entry(entries: Mapping[str, T], kind: str, name: str) -> T:
    """The entry of `tables` or `charts`."""
    if name not in entries:
        known, hint = ", ".join(entries) or "none", suggestion(name, entries)
        raise ConfigError(f'the configuration has no "{name}" below {kind}{hint}; {kind} are: {known}')
    return entries[name]
