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
    outputs = [path for job in needed for path in job.output]
    absent = {path: provider.missing[path] for path in outputs if path in provider.missing}
    absent.update((each.path, each) for path in outputs for each in provider.gone.get(path, []))
    if not all(each.is_downloaded for each in absent.values()):
        sys.exit(f"error: files are missing\n{listed(absent.values())}")
    waited = runs.hold(outputs, logger.info)
    if waited or any(os.path.exists(path) for job in needed for path in workflow.dag.reason(job).missing_output):
        workflow.persistence.unlock()
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)  # plans again, since another run has made files meanwhile


wildcard_constraints:
    file="|".join(map(re.escape, provider.downloads)) or "(?!)",
    missing="|".join(re.escape(path) for path, each in provider.missing.items() if not each.is_downloaded) or "(?!)",
