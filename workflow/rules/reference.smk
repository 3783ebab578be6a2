# Features and moments of the real data, or their published moments, and the floor of the distance.
rule reference:
    input:
        provider.owned("reference"),
        provider.files("reference", "reference.features", "reference.moments"),
        images=provider.reads("reference", "images"),
    output:
        "results/{experiment}/reference/reference.safetensors",
    pathvars:
        job="reference",
    params:
        network=provider.source("reference.features", "--network"),
        images=flag("images"),
        statistics=provider.source("reference.moments", "--statistics"),
        watched=provider.watched("reference", "reference.features", "reference.moments"),
        spec=provider.spec("reference"),
        version=provider.version("reference"),
    shell:
        "python -m dmd.stages.reference {params.network} {params.images} {params.statistics} --output {output} "
        "--spec {params.spec:q} --log {log}"
