# Features, moments and predicted classes of a block of samples; with evaluate.clip also cosines of images and captions.
rule features:
    input:
        provider.owned("features"),
        provider.files("features", "reference.features", "evaluate.clip"),
        block=provider.reads("features", "sample"),
        reference=provider.reads("features", "reference"),
        autoencoder=provider.reads("features", "autoencoder"),
        captions=provider.reads("features", "captions"),
    output:
        "results/{experiment}/features/{first}-{last}.safetensors",
    pathvars:
        job="features-{first}-{last}",
    params:
        network=provider.source("reference.features", "--network"),
        watched=provider.watched("features", "reference.features", "evaluate.clip"),
        autoencoder=flag("autoencoder"),
        clip=provider.source("evaluate.clip", "--clip-network"),
        captions=flag("captions"),
        spec=provider.spec("features"),
        version=provider.version("features"),
    shell:
        "python -m dmd.stages.features --block {input.block} --reference {input.reference} {params.network} "
        "{params.autoencoder} {params.clip} {params.captions} "
        "--output {output} --spec {params.spec:q} --log {log}"


# The metrics that need only features.
rule evaluate:
    input:
        provider.owned("evaluate"),
        reference=provider.reads("evaluate", "reference"),
        features=provider.reads("evaluate", "features"),
        teacher=provider.trained_on,
    output:
        fid="results/{experiment}/fid.json",
        kid="results/{experiment}/kid.json",
        prdc="results/{experiment}/prdc.json",
        classes="results/{experiment}/classes.json",
        memorisation="results/{experiment}/memorisation.json",
    pathvars:
        job="evaluate",
    params:
        teacher=flag("teacher"),
        spec=provider.spec("evaluate"),
        version=provider.version("evaluate"),
    shell:
        "python -m dmd.stages.evaluate --reference {input.reference} --features {input.features} {params.teacher} "
        "--fid {output.fid} --kid {output.kid} --prdc {output.prdc} --classes {output.classes} "
        "--memorisation {output.memorisation} --spec {params.spec:q} --log {log}"


# The Inception Score, from features of the Inception network; on request.
rule inception_score:
    input:
        provider.owned("inception_score"),
        provider.files("inception_score", "reference.features"),
        reference=provider.reads("inception_score", "reference"),
        features=provider.reads("inception_score", "features"),
    output:
        "results/{experiment}/inception_score.json",
    pathvars:
        job="inception_score",
    params:
        network=provider.source("reference.features", "--network"),
        watched=provider.watched("inception_score", "reference.features"),
        spec=provider.spec("inception_score"),
        version=provider.version("inception_score"),
    shell:
        "python -m dmd.stages.inception_score --reference {input.reference} --features {input.features} "
        "{params.network} --output {output} --spec {params.spec:q} --log {log}"


# The CLIP score: the mean of the cosines of images and captions that rule features has computed.
rule clip:
    input:
        provider.owned("clip"),
        features=provider.reads("clip", "features"),
    output:
        "results/{experiment}/clip.json",
    pathvars:
        job="clip",
    params:
        spec=provider.spec("clip"),
        version=provider.version("clip"),
    shell:
        "python -m dmd.stages.clip --features {input.features} --output {output} --spec {params.spec:q} --log {log}"


# How often samples are found by their prompts, and real images by their captions. On request.
rule retrieval:
    input:
        provider.owned("retrieval"),
        provider.files("retrieval", "evaluate.clip"),
        samples=provider.reads("retrieval", "sample"),
        captions=provider.reads("retrieval", "captions"),
        images=provider.reads("retrieval", "images"),
        autoencoder=provider.reads("retrieval", "autoencoder"),
    output:
        "results/{experiment}/retrieval.json",
    pathvars:
        job="retrieval",
    params:
        images=flag("images"),
        autoencoder=flag("autoencoder"),
        clip=provider.source("evaluate.clip", "--clip-network"),
        watched=provider.watched("retrieval", "evaluate.clip"),
        spec=provider.spec("retrieval"),
        version=provider.version("retrieval"),
    shell:
        "python -m dmd.stages.retrieval --samples {input.samples} --captions {input.captions} {params.images} "
        "{params.autoencoder} {params.clip} --output {output} --spec {params.spec:q} --log {log}"


# Seconds per image on the machine that runs this job, which should be idle otherwise. On request.
rule latency:
    input:
        provider.owned("latency"),
        denoiser=provider.reads("latency", "distill", "teacher"),
        text_encoder=provider.reads("latency", "text_encoder"),
        autoencoder=provider.reads("latency", "autoencoder", "tiny_autoencoder"),
    output:
        "results/{experiment}/latency.json",
    pathvars:
        job="latency",
    params:
        text_encoder=flag("text_encoder"),
        autoencoder=flag("autoencoder"),
        spec=provider.spec("latency"),
        version=provider.version("latency"),
    shell:
        "python -m dmd.stages.latency --denoiser {input.denoiser} {params.text_encoder} {params.autoencoder} "
        "--output {output} --spec {params.spec:q} --log {log}"
