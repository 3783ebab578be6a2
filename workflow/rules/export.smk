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
        version=VERSIONS["export"],
    shell:
        "python -m dmd.stages.export --generator {input.generator} --output {output} --spec {params.spec:q} --log {log}"
