# A dataset as shards, with a manifest that also names its splits, classes and standard deviation.
rule images:
    input:
        provider.owned("images"),
        provider.files("images", "dataset"),
    output:
        "results/{experiment}/images/manifest.parquet",
    pathvars:
        job="images",
    params:
        watched=provider.watched("images", "dataset"),
        spec=provider.spec("images"),
        version=provider.version("images"),
    shell:
        "python -m dmd.stages.images --output {output} --spec {params.spec:q} --log {log}"
