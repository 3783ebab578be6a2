# Features and moments of the real data, or their published moments, and the floor of the distance.
rule reference:
    input:
        owned("reference"),
        images=read_by("reference", "images"),
        network=given("reference", "features"),
        statistics=given("reference", "moments"),
    output:
        "results/{experiment}/reference/reference.safetensors",
    log:
        "results/{experiment}/logs/reference.log",
    benchmark:
        "results/{experiment}/benchmarks/reference.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(4000, "reference"),
        runtime=minutes(120, "reference"),
    params:
        network=flag("network"),
        images=flag("images"),
        statistics=flag("statistics"),
        spec=spec("reference"),
        version=RULES["reference"].version,
    shell:
        "python -m dmd.stages.reference {params.network} {params.images} {params.statistics} --output {output} "
        "--spec {params.spec:q} --log {log}"
