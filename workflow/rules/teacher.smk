# The frozen denoiser: trained on images, the exact one of a mixture, or one of others' files. The log of its training
# has no rows where it was not trained here.
rule teacher:
    input:
        owned("teacher"),
        images=read_by("teacher", "images"),
        file=given("teacher"),
        folder=saved("teacher"),
    output:
        denoiser="results/{experiment}/teacher/denoiser.safetensors",
        table="results/{experiment}/teacher/log.parquet",
    log:
        "results/{experiment}/logs/teacher.log",
    benchmark:
        "results/{experiment}/benchmarks/teacher.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: lambda wildcards: cores(wildcards) * teacher_processes(wildcards)
    resources:
        gpu=lambda wildcards: gpus(wildcards) * teacher_processes(wildcards),
        mem_mb=lambda wildcards, attempt: memory(4000, "teacher")(wildcards, attempt) * teacher_processes(wildcards),
        runtime=minutes(720, "teacher"),
    params:
        images=flag("images"),
        source=source("teacher"),
        spec=spec("teacher"),
        # a parameter that depends on the output is none that Snakemake compares: another cadence trains nothing anew
        cadence=lambda wildcards, output: canonical_json(teacher_cadence(wildcards)),
        version=RULES["teacher"].version,
    shell:
        "python -m dmd.stages.teacher {params.images} {params.source} --output {output.denoiser} --table {output.table} "
        "--spec {params.spec:q} {params.cadence:q} --log {log}"


# Text encoder and tokenizer of a Stable Diffusion folder.
rule text_encoder:
    input:
        owned("text_encoder"),
        folder=saved("teacher"),
    output:
        "results/{experiment}/teacher/text_encoder.safetensors",
    log:
        "results/{experiment}/logs/text_encoder.log",
    benchmark:
        "results/{experiment}/benchmarks/text_encoder.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(4000),
        runtime=60,
    params:
        source=source("teacher"),
        spec=spec("text_encoder"),
        version=RULES["text_encoder"].version,
    shell:
        "python -m dmd.stages.text_encoder {params.source} --output {output} --spec {params.spec:q} --log {log}"


# What decodes the latents of a teacher.
rule autoencoder:
    input:
        owned("autoencoder"),
        folder=saved("teacher"),
    output:
        "results/{experiment}/teacher/autoencoder.safetensors",
    log:
        "results/{experiment}/logs/autoencoder.log",
    benchmark:
        "results/{experiment}/benchmarks/autoencoder.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(4000),
        runtime=60,
    params:
        source=source("teacher"),
        spec=spec("autoencoder"),
        version=RULES["autoencoder"].version,
    shell:
        "python -m dmd.stages.autoencoder {params.source} --output {output} --spec {params.spec:q} --log {log}"


# The same, smaller and faster, from a folder of its own.
rule tiny_autoencoder:
    input:
        owned("tiny_autoencoder"),
        folder=saved("teacher.tiny_autoencoder"),
    output:
        "results/{experiment}/teacher/tiny_autoencoder.safetensors",
    log:
        "results/{experiment}/logs/tiny_autoencoder.log",
    benchmark:
        "results/{experiment}/benchmarks/tiny_autoencoder.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(4000),
        runtime=60,
    params:
        source=source("teacher.tiny_autoencoder"),
        spec=spec("tiny_autoencoder"),
        version=RULES["tiny_autoencoder"].version,
    shell:
        "python -m dmd.stages.autoencoder {params.source} --output {output} --spec {params.spec:q} --log {log}"
