# A block of shards of text states: prompts that are encoded once, for a distillation that reads no pairs.
rule states:
    input:
        owned("states"),
        prompts=artifact("prompts"),
        text_encoder=artifact("text_encoder"),
    output:
        "results/{experiment}/states/blocks/{first}-{last}.parquet",
    log:
        "results/{experiment}/logs/states-{first}-{last}.log",
    benchmark:
        "results/{experiment}/benchmarks/states-{first}-{last}.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(4000),
        runtime=240,
    params:
        spec=spec("states"),
        version=RULES["states"].version,
    shell:
        "python -m dmd.stages.states --prompts {input.prompts} --text-encoder {input.text_encoder} --output {output} "
        "--spec {params.spec:q} --log {log}"


# One table over all states, after hashing every shard again.
rule states_manifest:
    input:
        owned("states_manifest"),
        blocks("states"),
    output:
        "results/{experiment}/states/manifest.parquet",
    log:
        "results/{experiment}/logs/states_manifest.log",
    benchmark:
        "results/{experiment}/benchmarks/states_manifest.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(2000),
        runtime=60,
    params:
        blocks=braced,
        spec=spec("states_manifest"),
        version=RULES["states_manifest"].version,
    shell:
        "python -m dmd.stages.manifest --blocks {params.blocks} --output {output} --spec {params.spec:q} --log {log}"
