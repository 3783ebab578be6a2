# The prompts of pairs and states.
rule prompts:
    input:
        provider.owned("prompts"),
        provider.files("prompts", "prompts"),
        images=provider.reads("prompts", "images"),
    output:
        "results/{experiment}/prompts/prompts.parquet",
    pathvars:
        job="prompts",
    params:
        files=provider.source("prompts", "--files"),
        images=flag("images"),
        watched=provider.watched("prompts", "prompts"),
        spec=provider.spec("prompts"),
        version=provider.version("prompts"),
    shell:
        "python -m dmd.stages.prompts {params.files} {params.images} --output {output} --spec {params.spec:q} "
        "--log {log}"


# The captions that samples are drawn for.
use rule prompts as captions with:
    input:
        provider.owned("captions"),
        provider.files("captions", "sample.prompts"),
        images=provider.reads("captions", "images"),
    output:
        "results/{experiment}/captions/captions.parquet",
    pathvars:
        job="captions",
    params:
        files=provider.source("sample.prompts", "--files"),
        images=flag("images"),
        watched=provider.watched("captions", "sample.prompts"),
        spec=provider.spec("captions"),
        version=provider.version("captions"),
