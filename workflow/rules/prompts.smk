# The prompts of pairs and states.
rule prompts:
    input:
        provider.owned("prompts"),
        files=provider.files("prompts"),
    output:
        "results/{experiment}/prompts/prompts.parquet",
    pathvars:
        job="prompts",
    params:
        spec=provider.spec("prompts"),
        version=RULES["prompts"].version,
    shell:
        "python -m dmd.stages.prompts --files {input.files:q} --output {output} --spec {params.spec:q} --log {log}"


# The captions that samples are drawn for.
use rule prompts as captions with:
    input:
        provider.owned("captions"),
        files=provider.files("sample.prompts"),
    output:
        "results/{experiment}/captions/captions.parquet",
    pathvars:
        job="captions",
    params:
        spec=provider.spec("captions"),
