# A block of shards of text states (encoded prompts), for a distillation that reads no pairs.
rule states:
    input:
        provider.owned("states"),
        prompts=provider.reads("states", "prompts"),
        text_encoder=provider.reads("states", "text_encoder"),
    output:
        "results/{experiment}/states/blocks/{first}-{last}.parquet",
    pathvars:
        job="states-{first}-{last}",
    params:
        spec=provider.spec("states"),
        version=provider.version("states"),
    shell:
        "python -m dmd.stages.states --prompts {input.prompts} --text-encoder {input.text_encoder} --output {output} "
        "--spec {params.spec:q} --log {log}"


# One table of all states, written after the digest of every shard is checked.
rule states_manifest:
    input:
        provider.owned("states_manifest"),
        provider.reads("states_manifest", "states"),
    output:
        "results/{experiment}/states/manifest.parquet",
    pathvars:
        job="states_manifest",
    params:
        blocks=braced,
        spec=provider.spec("states_manifest"),
        version=provider.version("states_manifest"),
    shell:
        "python -m dmd.stages.manifest --blocks {params.blocks} --output {output} --spec {params.spec:q} --log {log}"
