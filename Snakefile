# Distribution Matching Distillation: teacher -> pairs -> distill -> sample -> evaluate -> table, pictures.
# Every number is in config.yaml; workflow/rules/ holds one file per stage.
configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/files.smk"
include: "workflow/rules/listed.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/states.smk"
include: "workflow/rules/pairs.smk"
include: "workflow/rules/distill.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/tables.smk"


localrules:
    all,
    table2,


# `make demo`: the table of every row it names, and the pictures of what was distilled.
rule all:
    default_target: True
    input:
        named("demo"),


# `make table2`: three seeds, weightings, numbers of pairs.
rule table2:
    input:
        named("demo"),
        named("table2"),
