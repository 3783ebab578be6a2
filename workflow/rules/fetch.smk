import re


localrules:
    fetch,


# A file of section `inputs` that does not exist yet. A file that exists is no output, whatever its entry says.
rule fetch:
    output:
        update("{file}"),  # `update`: not deleted before the job, if a user has put it there meanwhile
    log:
        "results/logs/fetch/{file}.log",
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=lambda wildcards, attempt: 500 * (attempt + 1),
        runtime=240,
    params:
        spec=provider.fetch_spec,
        version=RULES["fetch"].version,
    shell:
        "python -m dmd.stages.fetch --output {output:q} --spec {params.spec:q} --log {log:q}"


wildcard_constraints:
    file="|".join(map(re.escape, provider.missing)) or "(?!)",
