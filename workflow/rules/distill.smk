# A student of few calls, by the method that the configuration names. With distill.processes the stage starts torchrun itself, on
# several nodes of a cluster through srun. SLURM counts threads by task, one on each node, memory and `gres` by node.
rule distill:
    input:
        owned("distill"),
        teacher=artifact("teacher"),
        manifest=read_by("distill", "pairs_manifest"),
        images=read_by("distill", "images"),
        states=read_by("distill", "states_manifest"),
        start=start,
        lpips=distance_weights,
        tiny_autoencoder=read_by("distill", "tiny_autoencoder"),
        autoencoder=read_by("distill", "autoencoder"),
    output:
        generator="results/{experiment}/distill/generator.safetensors",
        table="results/{experiment}/distill/log.parquet",
    log:
        "results/{experiment}/logs/distill.log",
    benchmark:
        "results/{experiment}/benchmarks/distill.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: lambda wildcards: cores(wildcards) * per_node(wildcards)
    resources:
        gpu=lambda wildcards: gpus(wildcards) * processes(wildcards) if nodes(wildcards) == 1 else None,
        mem_mb=lambda wildcards, attempt: memory(4000, "distill")(wildcards, attempt) * per_node(wildcards),
        runtime=minutes(1440, "distill"),
        nodes=nodes,
        tasks=several_nodes(nodes),
        mpi=several_nodes("srun"),
        tasks_per_gpu=several_nodes(0),
        gres=several_nodes(lambda wildcards: f"gpu:{per_node(wildcards)}" if gpus(wildcards) else None),
    params:
        manifest=flag("manifest"),
        images=flag("images"),
        states=flag("states"),
        start=flag("start"),
        lpips=flag("lpips"),
        tiny_autoencoder=flag("tiny_autoencoder"),
        autoencoder=flag("autoencoder"),
        spec=spec("distill"),
        # a parameter that depends on the output is none that Snakemake compares: another cadence trains nothing anew
        cadence=lambda wildcards, output: canonical_json(EXPERIMENTS.section(wildcards.experiment, "distill").cadence()),
        place=place,
        version=RULES["distill"].version,
    shell:
        "python -m dmd.stages.distill --teacher {input.teacher} {params.manifest} {params.images} {params.states} "
        "{params.start} {params.lpips} {params.tiny_autoencoder} {params.autoencoder} "
        "--output {output.generator} --table {output.table} "
        "--spec {params.spec:q} {params.cadence:q} {params.place:q} --log {log}"


# Teacher and generator from the same noise, and the curves of the training.
rule pictures:
    input:
        owned("pictures"),
        teacher=artifact("teacher"),
        generator=artifact("distill"),
        table=training_log,
        prompts=read_by("pictures", "captions"),
        text_encoder=read_by("pictures", "text_encoder"),
        autoencoder=read_by("pictures", "autoencoder"),
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
    log:
        "results/{experiment}/logs/pictures.log",
    benchmark:
        "results/{experiment}/benchmarks/pictures.tsv"
    conda:
        "../../envs/dmd.yaml"
    threads: cores
    resources:
        gpu=gpus,
        mem_mb=memory(2000, "pictures"),
        runtime=minutes(60, "pictures"),
    params:
        prompts=flag("prompts"),
        text_encoder=flag("text_encoder"),
        autoencoder=flag("autoencoder"),
        spec=spec("pictures"),
        version=RULES["pictures"].version,
    shell:
        "python -m dmd.stages.pictures --teacher {input.teacher} --generator {input.generator} --table {input.table} "
        "{params.prompts} {params.text_encoder} {params.autoencoder} "
        "--grid {output.grid} --training {output.training} --spec {params.spec:q} --log {log}"
