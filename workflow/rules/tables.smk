localrules:
    tables,
    charts,


wildcard_constraints:
    table="[a-z0-9][a-z0-9-]*",
    chart="[a-z0-9][a-z0-9-]*",


# A table of rows with mean and spread over seeds, beside published ones. Scores of rows with `run: false`, and
# latencies, are not inputs but parameters, with their digests, so that no job is started for them.
rule tables:
    input:
        scores=tables.scores("fid"),
        classes=tables.scores("classes"),
        kids=tables.scores("kid"),
        prdcs=tables.scores("prdc"),
        clips=tables.scores("clip"),
    output:
        markdown=report("results/tables/{table}.md", caption="../report/table.rst", category="tables"),
        csv="results/tables/{table}.csv",
    log:
        "results/logs/tables-{table}.log",
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=lambda wildcards, attempt: 500 * (attempt + 1),
        runtime=10,
    params:
        shown_scores=tables.existing("fid"),
        shown_classes=tables.existing("classes"),
        shown_kids=tables.existing("kid"),
        shown_prdcs=tables.existing("prdc"),
        shown_clips=tables.existing("clip"),
        latencies=tables.latencies,
        retrievals=tables.retrievals,
        digests=lambda wildcards: [sha256(Path(path)) for path in tables.not_inputs(wildcards)],
        spec=tables.table_spec,
        version=tables.table_version,
    shell:
        "python -m dmd.stages.tables --scores {input.scores} {params.shown_scores} "
        "--classes {input.classes} {params.shown_classes} --clips {input.clips} {params.shown_clips} "
        "--kids {input.kids} {params.shown_kids} --prdcs {input.prdcs} {params.shown_prdcs} "
        "--latencies {params.latencies} --retrievals {params.retrievals} "
        "--markdown {output.markdown} --csv {output.csv} --spec {params.spec:q} --log {log}"


# Charts of scores against network calls or pairs, images of several experiments, and the paper's Figure 3.
rule charts:
    input:
        tables.chart_inputs,
    output:
        report("results/tables/{chart}.png", caption="../report/chart.rst", category="charts"),
    log:
        "results/logs/charts-{chart}.log",
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=lambda wildcards, attempt: 500 * (attempt + 1),
        runtime=10,
    params:
        spec=tables.chart_spec,
        version=tables.chart_version,
    shell:
        "python -m dmd.stages.charts --inputs {input} --output {output} --spec {params.spec:q} --log {log}"
