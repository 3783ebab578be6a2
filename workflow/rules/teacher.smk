# The frozen denoiser: trained on the dataset, the exact one of a mixture, or one of others' files.
rule teacher:
    input:
        owned("teacher"),
        dataset=taught_with,
        file=given("teacher"),
        folder=teacher_folder,
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
        mem_mb=memory(4000, "teacher"),
        runtime=minutes(720, "teacher"),
    params:
        source=teacher_source,
        spec=spec("teacher"),
        version=VERSIONS["teacher"],
    shell:
        "python -m dmd.stages.teacher {params.source} --output {output} --spec {params.spec:q} --log {log}"
