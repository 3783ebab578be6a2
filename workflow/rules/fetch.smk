import re


localrules:
    fetch,
    missing,


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


# A file or folder that no rule can make. A dry run plans it, and `onstart` ends a run before its first job.
rule missing:
    output:
        "{missing}",
    log:
        "results/logs/missing/{missing}.log",
    run:
        raise FileNotFoundError(f"{output} is missing: put it there")


onstart:
    needed = list(workflow.dag.needrun_jobs())
    absent = [provider.missing[path] for job in needed for path in job.output if path in provider.missing]
    if not all(each.is_downloaded for each in absent):
        sys.exit(f"error: files are missing\n{listed(absent)}")
    waited = runs.hold((path for job in needed for path in job.output), logger.info)
    if waited or any(os.path.exists(path) for job in needed for path in workflow.dag.reason(job).missing_output):
        workflow.persistence.unlock()
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)  # plans again, since another run has made files meanwhile


wildcard_constraints:
    file="|".join(map(re.escape, provider.downloads)) or "(?!)",
    missing="|".join(re.escape(path) for path, each in provider.missing.items() if not each.is_downloaded) or "(?!)",
