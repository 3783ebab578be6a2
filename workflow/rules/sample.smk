# A block of shards of images from the generator or the teacher. The tars lie in samples/.
rule sample:
    input:
        provider.owned("sample"),
        provider.files("sample", "sample.lora"),
        denoiser=provider.reads("sample", "distill", "teacher"),
        prompts=provider.reads("sample", "captions"),
        text_encoder=provider.reads("sample", "text_encoder"),
    output:
        "results/{experiment}/samples/blocks/{first}-{last}.parquet",
    pathvars:
        job="sample-{first}-{last}",
    params:
        prompts=flag("prompts"),
        text_encoder=flag("text_encoder"),
        lora_file=provider.source("sample.lora", "--lora-file"),
        watched=provider.watched("sample", "sample.lora"),
        spec=provider.spec("sample"),
        version=provider.version("sample"),
    shell:
        "python -m dmd.stages.sample --denoiser {input.denoiser} {params.prompts} {params.text_encoder} "
        "{params.lora_file} --output {output} --spec {params.spec:q} --log {log}"


# One table of all samples, written after the digest of every shard is checked.
use rule states_manifest as samples_manifest with:
    input:
        provider.owned("samples_manifest"),
        provider.reads("samples_manifest", "sample"),
    output:
        "results/{experiment}/samples/manifest.parquet",
    pathvars:
        job="samples_manifest",
    params:
        spec=provider.spec("samples_manifest"),
        version=provider.version("samples_manifest"),


# A contact sheet of the first samples of student or teacher, each with its prompt or class. On request.
rule sheet:
    input:
        provider.owned("sheet"),
        block=lambda wildcards: provider.reads("sheet", "sample")(wildcards)[0],
        prompts=provider.reads("sheet", "captions"),
        autoencoder=provider.reads("sheet", "autoencoder"),
    output:
        report(
            "results/{experiment}/pictures/samples.png",
            caption="../report/samples.rst",
            category="pictures",
            subcategory="{experiment}",
        ),
    pathvars:
        job="sheet",
    params:
        prompts=flag("prompts"),
        autoencoder=flag("autoencoder"),
        spec=provider.spec("sheet"),
        version=provider.version("sheet"),
    shell:
        "python -m dmd.stages.sheet --block {input.block} {params.prompts} {params.autoencoder} --output {output} "
        "--spec {params.spec:q} --log {log}"
