# The generator as an ONNX file, whose outputs are compared with torch's before it is published. On request.
rule export_onnx:
    input:
        provider.owned("export_onnx"),
        generator=provider.reads("export_onnx", "distill"),
    output:
        "results/{experiment}/export/generator.onnx",
    pathvars:
        job="export_onnx",
    params:
        spec=provider.spec("export_onnx"),
        version=provider.version("export_onnx"),
    shell:
        "python -m dmd.stages.export_onnx --generator {input.generator} --output {output} --spec {params.spec:q} --log {log}"


# The generator as a folder for diffusers, with a model card that shows the scores that exist. On request.
rule export_pipeline:
    input:
        provider.owned("export_pipeline"),
        generator=provider.reads("export_pipeline", "distill"),
        text_encoder=provider.reads("export_pipeline", "text_encoder"),
        autoencoder=provider.reads("export_pipeline", "autoencoder"),
        manifest=provider.reads("export_pipeline", "pairs_manifest"),
        states=provider.reads("export_pipeline", "states_manifest"),
        prompts=provider.reads("export_pipeline", "prompts"),
    output:
        index="results/{experiment}/export/pipeline/model_index.json",
        files=expand("results/{{experiment}}/export/pipeline/{file}", file=PIPELINE),
    pathvars:
        job="export_pipeline",
    params:
        manifest=flag("manifest"),
        states=flag("states"),
        scores=existing_scores,
        digests=lambda wildcards: [sha256(Path(path)) for path in existing_scores(wildcards)],
        spec=provider.spec("export_pipeline"),
        version=provider.version("export_pipeline"),
    shell:
        "python -m dmd.stages.export_pipeline --generator {input.generator} --text-encoder {input.text_encoder} "
        "--autoencoder {input.autoencoder} {params.manifest} {params.states} --prompts {input.prompts} "
        "--scores {params.scores} --output {output.index} --spec {params.spec:q} --log {log}"


# The generator's LoRA adapter, if one was trained, for diffusers pipelines of its teacher. On request.
rule export_lora:
    input:
        provider.owned("export_lora"),
        generator=provider.reads("export_lora", "distill"),
    output:
        "results/{experiment}/export/pytorch_lora_weights.safetensors",
    pathvars:
        job="export_lora",
    params:
        spec=provider.spec("export_lora"),
        version=provider.version("export_lora"),
    shell:
        "python -m dmd.stages.export_lora --generator {input.generator} --output {output} --spec {params.spec:q} --log {log}"
