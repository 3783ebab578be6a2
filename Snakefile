# Distribution Matching Distillation: teacher -> pairs -> distill -> sample -> evaluate -> table, pictures.
# Every number is in config.yaml; workflow/rules/ holds the rules: docs/development.md lists them.
include: "workflow/rules/config_file.smk"


configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/tables.smk"
# fmt: off


module stages:
    snakefile: "workflow/rules/stages.smk"
    config: provider


# Settings shared by all rules of an experiment. Each rule sets `job`: its name, and its block if it makes one.
use rule images, teacher, text_encoder, autoencoder, tiny_autoencoder, reference, prompts, captions, \
    pipeline_text, pipeline_autoencoder, pipeline_latents, pipeline_denoiser, pipeline, pipeline_clip, \
    states, states_manifest, pairs, pairs_manifest, distill, pictures, export_onnx, export_pipeline, export_lora, \
    sample, samples_manifest, sheet, features, evaluate, inception_score, clip, retrieval, latency from stages with:
    log: "results/{experiment}/logs/<job>.log"
    benchmark: "results/{experiment}/benchmarks/<job>.tsv"
    conda: "../../envs/dmd.yaml"  # relative to workflow/rules/
    threads: provider.resource("threads")
    resources:
        gpu=provider.resource("gpu"),
        mem_mb=provider.resource("mem_mb"),
        runtime=provider.resource("runtime"),
        nodes=provider.resource("nodes"),
        tasks=provider.resource("tasks"),
        mpi=provider.resource("mpi"),
        tasks_per_gpu=provider.resource("tasks_per_gpu"),
        gres=provider.resource("gres"),


# fmt: on
localrules:
    all,
    table2,


# `make demo`: table demo, its charts, and the pictures of its distilled experiments.
rule all:
    default_target: True
    input:
        tables.target_files("demo"),


# `make table2`: tables demo and table2: three seeds, weightings, numbers of pairs.
rule table2:
    input:
        tables.target_files("demo"),
        tables.target_files("table2"),
