# A block of shards of (noise, label, image), where the teacher's ODE ends at the image. The tars lie in pairs/.
rule pairs:
    input:
        provider.owned("pairs"),
        teacher=provider.reads("pairs", "teacher"),
        prompts=provider.reads("pairs", "prompts"),
        text_encoder=provider.reads("pairs", "text_encoder"),
    output:
        "results/{experiment}/pairs/blocks/{first}-{last}.parquet",
    pathvars:
        job="pairs-{first}-{last}",
    params:
        prompts=flag("prompts"),
        text_encoder=flag("text_encoder"),
        spec=provider.spec("pairs"),
        place=provider.storage,
        version=provider.version("pairs"),
    shell:
        "python -m dmd.stages.pairs --teacher {input.teacher} {params.prompts} {params.text_encoder} --output {output} "
        "--spec {params.spec:q} {params.place:q} --log {log}"


# One table of all pairs, written after the digest of every shard is checked.
rule pairs_manifest:
    input:
        provider.owned("pairs_manifest"),
        provider.reads("pairs_manifest", "pairs"),
    output:
        "results/{experiment}/pairs/manifest.parquet",
    pathvars:
        job="pairs_manifest",
    params:
        blocks=braced,
        spec=provider.spec("pairs_manifest"),
        place=provider.storage,
        version=provider.version("pairs_manifest"),
    shell:
        "python -m dmd.stages.manifest --blocks {params.blocks} --output {output} "
        "--spec {params.spec:q} {params.place:q} --log {log}"
