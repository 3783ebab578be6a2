# Distribution Matching Distillation: teacher -> pairs -> distill -> sample -> evaluate -> table, pictures.
# Every number is in config.yaml; workflow/rules/ holds one file per stage.
configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/tables.smk"
# fmt: off


module stages:
    snakefile: "workflow/rules/stages.smk"
    config: provider


# What all rules of an experiment have in common. Each names its `job`: the rule, and its block where it has one.
use rule images, teacher, text_encoder, autoencoder, tiny_autoencoder, reference, prompts, captions, \
    states, states_manifest, pairs, pairs_manifest, distill, pictures, export, pipeline, lora, \
    sample, samples_manifest, sheet, features, evaluate, inception_score, clip, latency from stages with:
    log: "results/{experiment}/logs/<job>.log"
    benchmark: "results/{experiment}/benchmarks/<job>.tsv"
    conda: "../../envs/dmd.yaml"  # as seen from workflow/rules/
    threads: provider.asks("threads")
    resources:
        gpu=provider.asks("gpu"),
        mem_mb=provider.asks("mem_mb"),
        runtime=provider.asks("runtime"),
        nodes=provider.asks("nodes"),
        tasks=provider.asks("tasks"),
        mpi=provider.asks("mpi"),
        tasks_per_gpu=provider.asks("tasks_per_gpu"),
        gres=provider.asks("gres"),


# fmt: on
localrules:
    all,
    table2,


# `make demo`: the table of every row it names, and the pictures of what was distilled.
rule all:
    default_target: True
    input:
        tables.group("demo"),


# `make table2`: three seeds, weightings, numbers of pairs.
rule table2:
    input:
        tables.group("demo"),
        tables.group("table2"),
