# A CLIP trained on images and captions: its network of texts encodes the prompts, the whole may score images.
rule pipeline_text:
    input:
        provider.owned("pipeline_text"),
        images=provider.reads("pipeline_text", "images"),
    output:
        encoder="results/{experiment}/pipeline/text/text_encoder.safetensors",
        image_text="results/{experiment}/pipeline/text/image_text.safetensors",
        table="results/{experiment}/pipeline/text/log.parquet",
    pathvars:
        job="pipeline_text",
    params:
        spec=provider.spec("pipeline_text"),
        cadence=provider.cadence("pipeline_text"),
        version=provider.version("pipeline_text"),
    shell:
        "python -m dmd.stages.train_text --images {input.images} --output {output.encoder} "
        "--image-text {output.image_text} --table {output.table} "
        "--spec {params.spec:q} {params.cadence:q} --log {log}"


# An AutoencoderKL trained on images.
rule pipeline_autoencoder:
    input:
        provider.owned("pipeline_autoencoder"),
        images=provider.reads("pipeline_autoencoder", "images"),
    output:
        autoencoder="results/{experiment}/pipeline/autoencoder/autoencoder.safetensors",
        table="results/{experiment}/pipeline/autoencoder/log.parquet",
    pathvars:
        job="pipeline_autoencoder",
    params:
        spec=provider.spec("pipeline_autoencoder"),
        cadence=provider.cadence("pipeline_autoencoder"),
        version=provider.version("pipeline_autoencoder"),
    shell:
        "python -m dmd.stages.train_autoencoder --images {input.images} --output {output.autoencoder} "
        "--table {output.table} --spec {params.spec:q} {params.cadence:q} --log {log}"


# Latents of the training images, as they are and changed, for the training of the denoiser.
rule pipeline_latents:
    input:
        provider.owned("pipeline_latents"),
        images=provider.reads("pipeline_latents", "images"),
        autoencoder=provider.reads("pipeline_latents", "pipeline_autoencoder"),
    output:
        "results/{experiment}/pipeline/latents/manifest.parquet",
    pathvars:
        job="pipeline_latents",
    params:
        spec=provider.spec("pipeline_latents"),
        version=provider.version("pipeline_latents"),
    shell:
        "python -m dmd.stages.latents --images {input.images} --autoencoder {input.autoencoder} --output {output} "
        "--spec {params.spec:q} --log {log}"


# A UNet2DConditionModel trained on latents and captions.
rule pipeline_denoiser:
    input:
        provider.owned("pipeline_denoiser"),
        latents=provider.reads("pipeline_denoiser", "pipeline_latents"),
        text_encoder=provider.reads("pipeline_denoiser", "pipeline_text"),
        autoencoder=provider.reads("pipeline_denoiser", "pipeline_autoencoder"),
    output:
        denoiser="results/{experiment}/pipeline/denoiser/denoiser.safetensors",
        table="results/{experiment}/pipeline/denoiser/log.parquet",
    pathvars:
        job="pipeline_denoiser",
    params:
        spec=provider.spec("pipeline_denoiser"),
        cadence=provider.cadence("pipeline_denoiser"),
        version=provider.version("pipeline_denoiser"),
    shell:
        "python -m dmd.stages.train_denoiser --latents {input.latents} --text-encoder {input.text_encoder} "
        "--autoencoder {input.autoencoder} --output {output.denoiser} --table {output.table} "
        "--spec {params.spec:q} {params.cadence:q} --log {log}"


# The trained parts as one folder for diffusers, in half precision, which a teacher can name.
rule pipeline:
    input:
        provider.owned("pipeline"),
        denoiser=provider.reads("pipeline", "pipeline_denoiser"),
        text_encoder=provider.reads("pipeline", "pipeline_text"),
        autoencoder=provider.reads("pipeline", "pipeline_autoencoder"),
    output:
        index="results/{experiment}/pipeline/folder/model_index.json",
        others=expand("results/{{experiment}}/pipeline/folder/{name}", name=FOLDER),
    pathvars:
        job="pipeline",
    params:
        spec=provider.spec("pipeline"),
        version=provider.version("pipeline"),
    shell:
        "python -m dmd.stages.save_pipeline --denoiser {input.denoiser} --text-encoder {input.text_encoder} "
        "--autoencoder {input.autoencoder} --output {output.index} --spec {params.spec:q} --log {log}"


# The trained CLIP as a folder for transformers, in half precision, which evaluate.clip can name.
rule pipeline_clip:
    input:
        provider.owned("pipeline_clip"),
        image_text=provider.reads("pipeline_clip", "pipeline_text", number=1),
    output:
        config="results/{experiment}/pipeline/clip/config.json",
        others=expand("results/{{experiment}}/pipeline/clip/{name}", name=CLIP),
    pathvars:
        job="pipeline_clip",
    params:
        spec=provider.spec("pipeline_clip"),
        version=provider.version("pipeline_clip"),
    shell:
        "python -m dmd.stages.save_clip --image-text {input.image_text} --output {output.config} "
        "--spec {params.spec:q} --log {log}"
