# Look-up of what tables and charts list.


def listed(kind, name):
    """The entry `name` of `tables` or `charts`; stops where there is none."""
    entries = getattr(SETTINGS, kind)
    if name not in entries:
        known = ", ".join(entries) or "none"
        refuse(f'the configuration has no "{name}" below {kind}{suggestion(name, entries)}; {kind} are: {known}')
    return entries[name]


def scores(metric):
    """The metric files of each experiment of a table, in its order; those of rows with `run: false` are `shown`."""
    return lambda wildcards: scored(metric, listed("tables", wildcards.table).rows, runs)


def shown(metric, wildcards):
    """Metric files of rows with `run: false` that are there. To Snakemake they are no inputs, which it would update."""
    rows = listed("tables", wildcards.table).rows
    found = scored(metric, rows, lambda row: not runs(row))
    return [path for path in found if path not in scored(metric, rows, runs) and os.path.exists(path)]


def scored(metric, rows, chosen):
    """Metric files of the experiments of chosen rows, each once, in order; of `clip` those that have one."""
    names = [name for row in rows if chosen(row) for name in row.experiments]
    known = [name for name in names if metric != "clip" or EXPERIMENTS.has(name, metric)]
    return [f"results/{name}/{metric}.json" for name in dict.fromkeys(known)]


def timed(wildcards):
    """Latencies of a table's experiments that are there: a table starts no measurement, which wants an idle machine."""
    paths = scored("latency", listed("tables", wildcards.table).rows, lambda row: True)
    return [path for path in paths if os.path.exists(path)]


def runs(row):
    """Whether jobs may be started for a row of a table."""
    return row.run


def table_spec(wildcards):
    """Rows of a table, each with its teacher, and the published ones to print beside them."""
    table = listed("tables", wildcards.table)
    rows = [row.model_dump(exclude={"run", "seeds"}, exclude_none=True) | taught_by(row) for row in table.rows]
    return canonical_json({"title": table.title, "rows": rows, "paper": PAPER.get(table.paper)})


def taught_by(row):
    """Owners of the teachers behind a row; rows of equal ones are compared with each other."""
    owners = {EXPERIMENTS.owner(name, "teacher") for name in row.experiments if EXPERIMENTS.has(name, "teacher")}
    return {"teacher": " ".join(sorted(owners))}


def points(wildcards):
    """Every point of a chart, a list of experiments, in order."""
    return [point for series in listed("charts", wildcards.chart).series for point in series.points]


def chart_inputs(wildcards):
    """Scores of every experiment of a chart; for Figure 3 the classes, and the samples of each panel."""
    kind, names = listed("charts", wildcards.chart).kind, sum(points(wildcards), ())
    if kind != "figure3":
        return [f"results/{name}/fid.json" for name in names]
    panels = [EXPERIMENTS.path(point[0], "samples_manifest") for point in points(wildcards)]
    return [f"results/{name}/classes.json" for name in names] + [f"results/{path}" for path in panels]


def chart_spec(wildcards):
    """Kind, title and series of a chart, and what its kind needs besides."""
    chart = listed("charts", wildcards.chart).whole()
    for series in chart["series"]:
        del series["seeds"]
        if chart["kind"] == "pairs":
            series["x"] = [num_pairs(point[0]) for point in series["points"]]
    if chart["kind"] == "figure3":
        chart["dataset"] = EXPERIMENTS.section(points(wildcards)[0][0], "dataset").whole()
    return canonical_json(chart)


def num_pairs(experiment):
    """Pairs that an experiment distills with."""
    return EXPERIMENTS.section(experiment, "pairs").num_pairs


def named(group):
    """Table, charts and pictures of a group: `demo` has demo.md, demo-*.png and pictures of each row's first seed."""

    def look_up(wildcards):
        if group not in SETTINGS.tables:
            refuse(f'the configuration has no table "{group}": add it, or ask for files such as results/NAME/fid.json')
        charts = [chart for chart in SETTINGS.charts if chart.startswith(f"{group}-")]
        return [
            f"results/tables/{group}.md",
            *(f"results/tables/{chart}.png" for chart in charts),
            *(f"results/{name}/pictures/grid.png" for name in pictured(SETTINGS.tables[group].rows)),
        ]

    return look_up


def pictured(rows):
    """Owners of the pictures of each row's first seed, teachers apart."""
    experiments = [row.experiments[0] for row in rows if runs(row)]
    try:
        return sorted({EXPERIMENTS.owner(name, "pictures") for name in experiments if EXPERIMENTS.distilled(name)})
    except ConfigError as error:
        refuse(error)
