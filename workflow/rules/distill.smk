# A student of few network calls, trained by the configured method. If distill.processes is above 1, the stage starts
# torchrun, through srun on several nodes. SLURM gets one task per node, and threads, memory and `gres` for each node.
rule distill:
    input:
        provider.owned("distill"),
        provider.files("distill", "distill.method", "distill.monitor.features", "distill.monitor.clip"),
        teacher=provider.reads("distill", "teacher"),
        manifest=provider.reads("distill", "pairs_manifest"),
        images=provider.reads("distill", "images"),
        states=provider.reads("distill", "states_manifest"),
        start=provider.start,
        tiny_autoencoder=provider.reads("distill", "tiny_autoencoder"),
        autoencoder=provider.reads("distill", "autoencoder"),
        prompts=provider.reads("distill", "prompts"),
    output:
        generator="results/{experiment}/distill/generator.safetensors",
        table="results/{experiment}/distill/log.parquet",
    pathvars:
        job="distill",
    params:
        manifest=flag("manifest"),
        images=flag("images"),
        states=flag("states"),
        start=flag("start"),
        lpips=provider.source("distill.method", "--lpips"),
        network=provider.source("distill.monitor.features", "--network"),
        clip=provider.source("distill.monitor.clip", "--clip-network"),
        watched=provider.watched("distill", "distill.method", "distill.monitor.features", "distill.monitor.clip"),
        tiny_autoencoder=flag("tiny_autoencoder"),
        autoencoder=flag("autoencoder"),
        prompts=flag("prompts"),
        spec=provider.spec("distill"),
        cadence=provider.cadence("distill"),
        place=provider.storage,
        version=provider.version("distill"),
    shell:
        "python -m dmd.stages.distill --teacher {input.teacher} {params.manifest} {params.images} {params.states} "
        "{params.start} {params.lpips} {params.tiny_autoencoder} {params.autoencoder} "
        "{params.network} {params.clip} {params.prompts} "
        "--output {output.generator} --table {output.table} "
        "--spec {params.spec:q} {params.cadence:q} {params.place:q} --log {log}"


# Images of teacher and generator from the same noise, and the curves of the training.
rule pictures:
    input:
        provider.owned("pictures"),
        teacher=provider.reads("pictures", "teacher"),
        generator=provider.reads("pictures", "distill"),
        table=provider.reads("pictures", "distill", number=1),
        prompts=provider.reads("pictures", "captions"),
        text_encoder=provider.reads("pictures", "text_encoder"),
        autoencoder=provider.reads("pictures", "autoencoder"),
    output:
        grid=report(
            "results/{experiment}/pictures/grid.png",
            caption="../report/grid.rst",
            category="pictures",
            subcategory="{experiment}",
        ),
        training=report(
            "results/{experiment}/pictures/training.png",
            caption="../report/training.rst",
            category="pictures",
            subcategory="{experiment}",
        ),
    pathvars:
        job="pictures",
    params:
        prompts=flag("prompts"),
        text_encoder=flag("text_encoder"),
        autoencoder=flag("autoencoder"),
        spec=provider.spec("pictures"),
        version=provider.version("pictures"),
    shell:
        "python -m dmd.stages.pictures --teacher {input.teacher} --generator {input.generator} --table {input.table} "
        "{params.prompts} {params.text_encoder} {params.autoencoder} "
        "--grid {output.grid} --training {output.training} --spec {params.spec:q} --log {log}"
