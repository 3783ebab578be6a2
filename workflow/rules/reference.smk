# Features and moments of the real data, or their published moments, and the floor of the distance.
rule reference:
    input:
        provider.owned("reference"),
        images=provider.reads("reference", "images"),
        network=provider.files("reference.features"),
        statistics=provider.files("reference.moments"),
    output:
        "results/{experiment}/reference/reference.safetensors",
    pathvars:
        job="reference",
    params:
        network=flag("network"),
        images=flag("images"),
        statistics=flag("statistics"),
        spec=provider.spec("reference"),
        version=RULES["reference"].version,
    shell:
        "python -m dmd.stages.reference {params.network} {params.images} {params.statistics} --output {output} "
        "--spec {params.spec:q} --log {log}"
