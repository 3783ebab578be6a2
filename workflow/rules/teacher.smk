# The teacher: trained on images, the exact denoiser of a mixture, imported from released files, or the student of
# another experiment. The training log has no rows unless the teacher is trained here.
rule teacher:
    input:
        provider.owned("teacher"),
        provider.files("teacher", "teacher"),
        images=provider.reads("teacher", "images"),
        student=provider.student,
    output:
        denoiser="results/{experiment}/teacher/denoiser.safetensors",
        table="results/{experiment}/teacher/log.parquet",
    pathvars:
        job="teacher",
    params:
        images=flag("images"),
        student=flag("student"),
        source=provider.source("teacher"),
        watched=provider.watched("teacher", "teacher"),
        spec=provider.spec("teacher"),
        cadence=provider.cadence("teacher"),
        solvers=provider.solvers,
        version=provider.version("teacher"),
    shell:
        "python -m dmd.stages.teacher {params.images} {params.student} {params.source} "
        "--output {output.denoiser} --table {output.table} "
        "--spec {params.spec:q} {params.cadence:q} {params.solvers:q} --log {log}"


# Text encoder and tokenizer of a Stable Diffusion folder.
rule text_encoder:
    input:
        provider.owned("text_encoder"),
        provider.files("text_encoder", "teacher"),
    output:
        "results/{experiment}/teacher/text_encoder.safetensors",
    pathvars:
        job="text_encoder",
    params:
        source=provider.source("teacher"),
        watched=provider.watched("text_encoder", "teacher"),
        spec=provider.spec("text_encoder"),
        version=provider.version("text_encoder"),
    shell:
        "python -m dmd.stages.text_encoder {params.source} --output {output} --spec {params.spec:q} --log {log}"


# The autoencoder that decodes the latents of a teacher.
rule autoencoder:
    input:
        provider.owned("autoencoder"),
        provider.files("autoencoder", "teacher"),
    output:
        "results/{experiment}/teacher/autoencoder.safetensors",
    pathvars:
        job="autoencoder",
    params:
        source=provider.source("teacher"),
        watched=provider.watched("autoencoder", "teacher"),
        spec=provider.spec("autoencoder"),
        version=provider.version("autoencoder"),
    shell:
        "python -m dmd.stages.autoencoder {params.source} --output {output} --spec {params.spec:q} --log {log}"


# A tiny autoencoder, which decodes faster, from its own folder.
use rule autoencoder as tiny_autoencoder with:
    input:
        provider.owned("tiny_autoencoder"),
        provider.files("tiny_autoencoder", "teacher.tiny_autoencoder"),
    output:
        "results/{experiment}/teacher/tiny_autoencoder.safetensors",
    pathvars:
        job="tiny_autoencoder",
    params:
        source=provider.source("teacher.tiny_autoencoder"),
        watched=provider.watched("tiny_autoencoder", "teacher.tiny_autoencoder"),
        spec=provider.spec("tiny_autoencoder"),
        version=provider.version("tiny_autoencoder"),
