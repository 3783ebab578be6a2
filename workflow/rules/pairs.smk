# A block of shards of (noise, label, image), the image being the end of the teacher's ODE. The tars lie beside.
rule pairs:
    input:
        owned("pairs"),
        teacher=artifact("teacher"),
        prompts=read_by("pairs", "prompts"),
        text_encoder=read_by("pairs", "text_encoder"),
    output:
        "results/{experiment}/pairs/blocks/{first}-{last}.parquet",
    log:
        "results/{experiment}/logs/pairs-{first}-{last}.log",
    benchmark:
        "results/{experiment}/benchmarks/pairs-{first}-{last}.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(2000, "pairs"),
        runtime=minutes(240, "pairs"),
    params:
        prompts=flag("prompts"),
        text_encoder=flag("text_encoder"),
        spec=spec("pairs"),
        place=place,
        version=RULES["pairs"].version,
    shell:
        "python -m dmd.stages.pairs --teacher {input.teacher} {params.prompts} {params.text_encoder} --output {output} "
        "--spec {params.spec:q} {params.place:q} --log {log}"


# One table over all pairs, after hashing every shard again.
rule pairs_manifest:
    input:
        owned("pairs_manifest"),
        blocks("pairs"),
    output:
        "results/{experiment}/pairs/manifest.parquet",
    log:
        "results/{experiment}/logs/pairs_manifest.log",
    benchmark:
        "results/{experiment}/benchmarks/pairs_manifest.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(2000, "pairs_manifest"),
        runtime=minutes(60, "pairs_manifest"),
    params:
        blocks=braced,
        spec=spec("pairs_manifest"),
        place=place,
        version=RULES["pairs_manifest"].version,
    shell:
        "python -m dmd.stages.manifest --blocks {params.blocks} --output {output} "
        "--spec {params.spec:q} {params.place:q} --log {log}"
