# The generator as an ONNX file, compared with torch before it is written. Nothing asks for it but its path.
rule export:
    input:
        owned("export"),
        generator=artifact("distill"),
    output:
        "results/{experiment}/export/generator.onnx",
    log:
        "results/{experiment}/logs/export.log",
    benchmark:
        "results/{experiment}/benchmarks/export.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=0,
        mem_mb=memory(8000),
        runtime=60,
    params:
        spec=spec("export"),
        version=RULES["export"].version,
    shell:
        "python -m dmd.stages.export --generator {input.generator} --output {output} --spec {params.spec:q} --log {log}"


# The generator as a folder that stock diffusers opens, with a model card. Scores that are there stand in the card.
rule pipeline:
    input:
        owned("pipeline"),
        generator=artifact("distill"),
        text_encoder=artifact("text_encoder"),
        autoencoder=artifact("autoencoder"),
        manifest=read_by("pipeline", "pairs_manifest"),
        states=read_by("pipeline", "states_manifest"),
        prompts=artifact("prompts"),
    output:
        index="results/{experiment}/export/pipeline/model_index.json",
        files=expand("results/{{experiment}}/export/pipeline/{file}", file=PIPELINE),
    log:
        "results/{experiment}/logs/pipeline.log",
    benchmark:
        "results/{experiment}/benchmarks/pipeline.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(16000),
        runtime=60,
    params:
        manifest=flag("manifest"),
        states=flag("states"),
        scores=measured,
        digests=lambda wildcards: [sha256(Path(path)) for path in measured(wildcards)],
        spec=spec("pipeline"),
        version=RULES["pipeline"].version,
    shell:
        "python -m dmd.stages.pipeline --generator {input.generator} --text-encoder {input.text_encoder} "
        "--autoencoder {input.autoencoder} {params.manifest} {params.states} --prompts {input.prompts} "
        "--scores {params.scores} --output {output.index} --spec {params.spec:q} --log {log}"


# The adapter of the generator, where one was trained, for pipelines of its teacher.
rule lora:
    input:
        owned("lora"),
        generator=artifact("distill"),
    output:
        "results/{experiment}/export/pytorch_lora_weights.safetensors",
    log:
        "results/{experiment}/logs/lora.log",
    benchmark:
        "results/{experiment}/benchmarks/lora.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(16000),
        runtime=60,
    params:
        spec=spec("lora"),
        version=RULES["lora"].version,
    shell:
        "python -m dmd.stages.lora --generator {input.generator} --output {output} --spec {params.spec:q} --log {log}"
