# Features and moments of the real data, and the floor of the distance.
rule reference:
    input:
        owned("reference"),
        dataset=dataset,
        network=given("reference", "features"),
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
        mem_mb=memory(4000),
        runtime=120,
    params:
        network=flag("network"),
        spec=spec("reference"),
        version=VERSIONS["reference"],
    shell:
        "python -m dmd.stages.reference {params.network} --output {output} --spec {params.spec:q} --log {log}"
