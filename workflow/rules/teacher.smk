# The frozen denoiser: trained on the dataset, or the exact one of a mixture.
rule teacher:
    input:
        owned("teacher"),
        dataset=dataset,
    output:
        "results/{experiment}/teacher/denoiser.safetensors",
    log:
        "results/{experiment}/logs/teacher.log",
    benchmark:
        "results/{experiment}/benchmarks/teacher.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(4000),
        runtime=720,
    params:
        spec=spec("teacher"),
        version=VERSIONS["teacher"],
    shell:
        "python -m dmd.stages.teacher --output {output} --spec {params.spec:q} --log {log}"
