# A block of shards of images from the generator or the teacher. The tars lie beside.
rule sample:
    input:
        owned("sample"),
        denoiser=sampled,
        prompts=read_by("sample", "captions"),
        text_encoder=read_by("sample", "text_encoder"),
        lora_file=given("sample", "lora"),
    output:
        "results/{experiment}/samples/blocks/{first}-{last}.parquet",
    log:
        "results/{experiment}/logs/sample-{first}-{last}.log",
    benchmark:
        "results/{experiment}/benchmarks/sample-{first}-{last}.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(2000, "sample"),
        runtime=minutes(240, "sample"),
    params:
        prompts=flag("prompts"),
        text_encoder=flag("text_encoder"),
        lora_file=flag("lora_file"),
        spec=spec("sample"),
        version=RULES["sample"].version,
    shell:
        "python -m dmd.stages.sample --denoiser {input.denoiser} {params.prompts} {params.text_encoder} "
        "{params.lora_file} --output {output} --spec {params.spec:q} --log {log}"


# One table over all samples, after hashing every shard again.
rule samples_manifest:
    input:
        owned("samples_manifest"),
        blocks("sample"),
    output:
        "results/{experiment}/samples/manifest.parquet",
    log:
        "results/{experiment}/logs/samples_manifest.log",
    benchmark:
        "results/{experiment}/benchmarks/samples_manifest.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(2000),
        runtime=60,
    params:
        spec=spec("samples_manifest"),
        version=RULES["samples_manifest"].version,
    shell:
        "python -m dmd.stages.manifest --blocks {input} --output {output} --spec {params.spec:q} --log {log}"


# The first samples, whatever drew them, each with its prompt or class. On request.
rule sheet:
    input:
        owned("sheet"),
        block=lambda wildcards: blocks("sample")(wildcards)[0],
        prompts=read_by("sheet", "captions"),
        autoencoder=read_by("sheet", "autoencoder"),
    output:
        report(
            "results/{experiment}/pictures/samples.png",
            caption="../report/samples.rst",
            category="pictures",
            subcategory="{experiment}",
        ),
    log:
        "results/{experiment}/logs/sheet.log",
    benchmark:
        "results/{experiment}/benchmarks/sheet.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(4000),
        runtime=30,
    params:
        prompts=flag("prompts"),
        autoencoder=flag("autoencoder"),
        spec=spec("sheet"),
        version=RULES["sheet"].version,
    shell:
        "python -m dmd.stages.sheet --block {input.block} {params.prompts} {params.autoencoder} --output {output} "
        "--spec {params.spec:q} --log {log}"
