# Features, moments and predicted classes of one block of samples, and with evaluate.clip how well captions fit.
rule features:
    input:
        owned("features"),
        block=block_of("sample"),
        reference=artifact("reference"),
        network=given("reference", "features"),
        autoencoder=read_by("features", "autoencoder"),
        clip=clip_files,
        captions=read_by("features", "captions"),
    output:
        "results/{experiment}/features/{first}-{last}.safetensors",
    log:
        "results/{experiment}/logs/features-{first}-{last}.log",
    benchmark:
        "results/{experiment}/benchmarks/features-{first}-{last}.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(2000, "features"),
        runtime=minutes(120, "features"),
    params:
        network=flag("network"),
        autoencoder=flag("autoencoder"),
        clip=clip_folder,
        captions=flag("captions"),
        spec=spec("features"),
        version=RULES["features"].version,
    shell:
        "python -m dmd.stages.features --block {input.block} --reference {input.reference} {params.network} "
        "{params.autoencoder} {params.clip} {params.captions} "
        "--output {output} --spec {params.spec:q} --log {log}"


# Every metric of one experiment, from the features alone.
rule evaluate:
    input:
        owned("evaluate"),
        reference=artifact("reference"),
        features=blocks("features"),
        teacher=trained_on,
    output:
        fid="results/{experiment}/fid.json",
        kid="results/{experiment}/kid.json",
        prdc="results/{experiment}/prdc.json",
        classes="results/{experiment}/classes.json",
        memorisation="results/{experiment}/memorisation.json",
    log:
        "results/{experiment}/logs/evaluate.log",
    benchmark:
        "results/{experiment}/benchmarks/evaluate.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(2000, "evaluate"),
        runtime=minutes(60, "evaluate"),
    params:
        teacher=flag("teacher"),
        spec=spec("evaluate"),
        version=RULES["evaluate"].version,
    shell:
        "python -m dmd.stages.evaluate --reference {input.reference} --features {input.features} {params.teacher} "
        "--fid {output.fid} --kid {output.kid} --prdc {output.prdc} --classes {output.classes} "
        "--memorisation {output.memorisation} --spec {params.spec:q} --log {log}"


# Inception Score, from the same features; on request, and only where they are the Inception network's.
rule inception_score:
    input:
        owned("inception_score"),
        reference=artifact("reference"),
        features=blocks("features"),
        network=given("reference", "features"),
    output:
        "results/{experiment}/inception_score.json",
    log:
        "results/{experiment}/logs/inception_score.log",
    benchmark:
        "results/{experiment}/benchmarks/inception_score.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(2000),
        runtime=60,
    params:
        spec=spec("inception_score"),
        version=RULES["inception_score"].version,
    shell:
        "python -m dmd.stages.inception_score --reference {input.reference} --features {input.features} "
        "--network {input.network} --output {output} --spec {params.spec:q} --log {log}"


# Mean cosine of images and captions, of cosines that are among the features.
rule clip:
    input:
        owned("clip"),
        features=blocks("features"),
    output:
        "results/{experiment}/clip.json",
    log:
        "results/{experiment}/logs/clip.log",
    benchmark:
        "results/{experiment}/benchmarks/clip.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=memory(2000),
        runtime=60,
    params:
        spec=spec("clip"),
        version=RULES["clip"].version,
    shell:
        "python -m dmd.stages.clip --features {input.features} --output {output} --spec {params.spec:q} --log {log}"


# Seconds from a prompt to its image, on the machine that it runs on, which should do nothing else. On request.
rule latency:
    input:
        owned("latency"),
        denoiser=sampled,
        text_encoder=read_by("latency", "text_encoder"),
        autoencoder=decoder,
    output:
        "results/{experiment}/latency.json",
    log:
        "results/{experiment}/logs/latency.log",
    benchmark:
        "results/{experiment}/benchmarks/latency.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(8000, "latency"),
        runtime=minutes(60, "latency"),
    params:
        text_encoder=flag("text_encoder"),
        autoencoder=flag("autoencoder"),
        spec=spec("latency"),
        version=RULES["latency"].version,
    shell:
        "python -m dmd.stages.latency --denoiser {input.denoiser} {params.text_encoder} {params.autoencoder} "
        "--output {output} --spec {params.spec:q} --log {log}"
