# The texts that pairs are made of.
rule prompts:
    input:
        owned("prompts"),
        files=given("prompts"),
    output:
        "results/{experiment}/prompts/prompts.parquet",
    log:
        "results/{experiment}/logs/prompts.log",
    benchmark:
        "results/{experiment}/benchmarks/prompts.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(4000, "prompts"),
        runtime=minutes(120, "prompts"),
    params:
        spec=spec("prompts"),
        version=RULES["prompts"].version,
    shell:
        "python -m dmd.stages.prompts --files {input.files:q} --output {output} --spec {params.spec:q} --log {log}"


# The texts that samples are made of.
rule captions:
    input:
        owned("captions"),
        files=given("sample", "prompts"),
    output:
        "results/{experiment}/captions/captions.parquet",
    log:
        "results/{experiment}/logs/captions.log",
    benchmark:
        "results/{experiment}/benchmarks/captions.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(4000, "captions"),
        runtime=minutes(120, "captions"),
    params:
        spec=spec("captions"),
        version=RULES["captions"].version,
    shell:
        "python -m dmd.stages.prompts --files {input.files:q} --output {output} --spec {params.spec:q} --log {log}"
