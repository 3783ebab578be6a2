# A dataset as shards with an index: named splits, classes and the standard deviation stand in the manifest.
rule images:
    input:
        owned("images"),
        dataset=dataset,
    output:
        "results/{experiment}/images/manifest.parquet",
    log:
        "results/{experiment}/logs/images.log",
    benchmark:
        "results/{experiment}/benchmarks/images.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(4000),
        runtime=720,
    params:
        spec=spec("images"),
        version=RULES["images"].version,
    shell:
        "python -m dmd.stages.images --output {output} --spec {params.spec:q} --log {log}"
