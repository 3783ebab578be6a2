# The generator as an ONNX file, compared with torch before it is written. Nothing asks for it but its path.
rule export:
    input:
        provider.owned("export"),
        generator=provider.reads("export", "distill"),
    output:
        "results/{experiment}/export/generator.onnx",
    pathvars:
        job="export",
    params:
        spec=provider.spec("export"),
        version=RULES["export"].version,
    shell:
        "python -m dmd.stages.export --generator {input.generator} --output {output} --spec {params.spec:q} --log {log}"


# The generator as a folder that stock diffusers opens, with a model card. Scores that are there stand in the card.
rule pipeline:
    input:
        provider.owned("pipeline"),
        generator=provider.reads("pipeline", "distill"),
        text_encoder=provider.reads("pipeline", "text_encoder"),
        autoencoder=provider.reads("pipeline", "autoencoder"),
        manifest=provider.reads("pipeline", "pairs_manifest"),
        states=provider.reads("pipeline", "states_manifest"),
        prompts=provider.reads("pipeline", "prompts"),
    output:
        index="results/{experiment}/export/pipeline/model_index.json",
        files=expand("results/{{experiment}}/export/pipeline/{file}", file=PIPELINE),
    pathvars:
        job="pipeline",
    params:
        manifest=flag("manifest"),
        states=flag("states"),
        scores=existing_scores,
        digests=lambda wildcards: [sha256(Path(path)) for path in existing_scores(wildcards)],
        spec=provider.spec("pipeline"),
        version=RULES["pipeline"].version,
    shell:
        "python -m dmd.stages.pipeline --generator {input.generator} --text-encoder {input.text_encoder} "
        "--autoencoder {input.autoencoder} {params.manifest} {params.states} --prompts {input.prompts} "
        "--scores {params.scores} --output {output.index} --spec {params.spec:q} --log {log}"


# The adapter of the generator, where one was trained, for pipelines of its teacher.
rule lora:
    input:
        provider.owned("lora"),
        generator=provider.reads("lora", "distill"),
    output:
        "results/{experiment}/export/pytorch_lora_weights.safetensors",
    pathvars:
        job="lora",
    params:
        spec=provider.spec("lora"),
        version=RULES["lora"].version,
    shell:
        "python -m dmd.stages.lora --generator {input.generator} --output {output} --spec {params.spec:q} --log {log}"
