"""Experiments of text: what they need, who owns what, and that more pairs are new blocks only."""

import copy
from typing import Any

import pytest

from dmd import config
from dmd.config import Experiments
from dmd.jobs.experiment_progress import Results
from tests.config.test_experiments import BASE as CLASSES

FILE = {"kind": "file", "file": "prompts.parquet"}
METHOD = {"name": "dmd", "sigma": None, "levels": {"kind": "teacher"}}
TEXT: dict[str, Any] = {
    "teacher": {"kind": "stable-diffusion", "folder": "sd"},
    "prompts": FILE,
    "pairs": {
        "num_pairs": 24, "shard_size": 4, "shards_per_job": 3, "guidance": 3, "solver": {"name": "pndm", "steps": 50}
    },
    "sample": {"from": "teacher", "num_samples": 8, "shard_size": 4},
}  # fmt: skip
TEXT["sample"]["prompts"] = {"kind": "coco", "file": "captions.json"}
TEXT["sample"]["solver"] = {"name": "dpmsolver++", "steps": 4, "spacing": "trailing"}


def resolved(**children: dict[str, Any]) -> Experiments:
    """`text`, `classes` and the given children of `text`."""
    written = {"text": copy.deepcopy(TEXT), "classes": copy.deepcopy(CLASSES)}
    written |= {name: {"extends": "text", **section} for name, section in children.items()}
    return Experiments(config.resolve({"experiments": written}))


def test_specs_mention_a_variant_only_where_it_is_named():
    tiny = {"teacher": {"variant": "fp16", "tiny_autoencoder": {"folder": "t", "variant": "bf16"}}}
    reference = {"features": {"kind": "inception", "file": "i.pt"}, "protocol": {"quantise": 256}}
    reference["moments"] = {"file": "m.npz"}
    clip = {"evaluate": {"clip": {"folder": "c", "variant": "fp16"}}, "reference": reference}
    found = resolved(half=tiny | clip, plain={"teacher": {"tiny_autoencoder": {"folder": "t"}}})
    for rule, variant in (("teacher", "fp16"), ("text_encoder", "fp16"), ("tiny_autoencoder", "bf16")):
        assert found.spec("half", rule)["variant"] == variant and "variant" not in found.spec("plain", rule)
    assert found.spec("half", "autoencoder")["variant"] == "fp16" and "variant" not in found.spec("text", "autoencoder")
    assert found.spec("half", "features")["clip"]["variant"] == "fp16"
    for bad in ("fp16.safetensors", "../fp16", ""):
        with pytest.raises(config.ConfigError, match="teacher.variant"):
            resolved(half={"teacher": {"variant": bad}})


def test_specs_mention_guidance_and_precision_only_where_they_are_on():
    found = resolved(plain={"pairs": {"guidance": 1.0}}, half={"pairs": {"dtype": "float16"}})
    assert found.spec("text", "pairs")["guidance"] == 3.0 and "guidance" not in found.spec("plain", "pairs")
    assert found.spec("half", "pairs")["dtype"] == "float16"
    for name in ("text", "classes"):
        assert not {"dtype", "prompts"} & (found.spec(name, "pairs").keys() | found.spec(name, "sample").keys())
    assert "guidance" not in found.spec("classes", "sample").keys() | found.spec("classes", "pairs").keys()
    assert found.spec("text", "sample")["solver"] == {"name": "dpmsolver++", "steps": 4, "spacing": "trailing"}


def test_specs_of_prompts_name_no_paths():
    laion = {"kind": "laion", "files": [{"file": "a.parquet"}, {"file": "b.parquet"}], "threshold": 6}
    found = resolved(laion={"prompts": laion})
    assert found.spec("text", "prompts") == {"source": {"kind": "file", "sha256": None, "column": "prompt"}}
    assert found.spec("text", "captions") == {"source": {"kind": "coco", "sha256": None, "num": None, "seed": 0}}
    assert found.spec("laion", "prompts")["source"] == {
        "kind": "laion", "files": [{"sha256": None}] * 2, "text_column": "TEXT", "score_column": "AESTHETIC_SCORE",
        "threshold": 6.0, "num": None, "seed": 0,
    }  # fmt: skip


def test_progress_counts_the_text_states_of_a_block(tmp_path):
    """Blocks of states have shards of their own size, with or without a section sample."""
    states = {"states": {"num_states": 60, "shard_size": 10, "shards_per_job": 4}}
    method = {**METHOD, "regression_weight": 0.0, "match_pairs": False, "phases": [{"updates": 1}]}
    text = {name: section for name, section in TEXT.items() if name not in ("pairs", "sample")}
    written = {"text": {**text, **states, "distill": {"method": method}}}
    found = Experiments(config.resolve({"experiments": written}))
    assert [found.num_items("text", "states", block) for block in found.blocks("text", "states")] == [40, 20]
    stages = {stage.name: stage.jobs for stage in Results(tmp_path, found).stages("text")}
    assert [job.num_images for job in stages["states"]] == [40, 20, 0]


def test_artifacts_of_text_are_read_where_the_condition_is_text():
    found = resolved()
    assert [rule for rule, _ in found.upstream("text", "pairs")] == ["teacher", "prompts", "text_encoder"]
    assert [rule for rule, _ in found.upstream("text", "sample")] == ["teacher", "captions", "text_encoder"]
    assert [rule for rule, _ in found.upstream("classes", "pairs")] == ["teacher"]


@pytest.mark.parametrize(
    ("section", "owned"),
    [
        ({"prompts": {"file": "other.parquet"}}, {"prompts", "pairs", "pairs_manifest"}),
        ({"pairs": {"guidance": 8}}, {"pairs", "pairs_manifest"}),
        ({"pairs": {"num_pairs": 48}}, {"pairs_manifest"}),
        ({"sample": {"prompts": {"num": 4}}}, {"captions", "sample", "samples_manifest"}),
        ({"sample": {"guidance": 8}}, {"sample", "samples_manifest"}),
    ],
)
def test_child_owns_what_its_texts_change(section, owned):
    found = resolved(child=section)
    rules = ("teacher", "text_encoder", "prompts", "captions", "pairs", "pairs_manifest", "sample", "samples_manifest")
    assert {rule for rule in rules if found.owner("child", rule) == "child"} == owned


def test_more_pairs_are_new_blocks_of_the_same_specs():
    found = resolved(more={"pairs": {"num_pairs": 48}})
    before, after = found.blocks("text", "pairs"), found.blocks("more", "pairs")
    assert before == after[: len(before)] == [(0, 2), (3, 5)] and len(after) == 4
    for block in before:
        assert found.path("more", "pairs", block) == found.path("text", "pairs", block)
        assert found.spec("more", "pairs", block) == found.spec("text", "pairs", block)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"prompts": {"kind": "lion"}}, ["child.prompts.kind", "lion"]),
        ({"prompts": {"colum": "text"}}, ["child.prompts", 'did you mean "column"?']),
        ({"prompts": {"kind": "laion", "files": [], "threshold": 6}}, ["child.prompts.files"]),
        ({"pairs": {"guidance": 0.5}}, ["child.pairs.guidance: 0.5 is less than the minimum of 1"]),
        ({"pairs": {"dtype": "bfloat16"}}, ["child.pairs.dtype", "bfloat16"]),
        ({"pairs": {"solver": {"name": "ddim", "stps": 3}}}, ["child.pairs.solver", '"stps"']),
        ({"pairs": {"solver": {"name": "ddim", "steps": 3, "spacing": "even"}}}, ["child.pairs.solver.spacing"]),
        (
            {"teacher": {"kind": "diffusers", "folder": "x"}},
            ["child.prompts: a teacher of kind diffusers takes no prompts"],
        ),
        ({"teacher": {"kind": "edm", "file": "x"}}, ["child.pairs.solver.name: pndm", "kind edm has none"]),
        ({"teacher": {"kind": "edm", "file": "x"}}, ["child.pairs.guidance: 3.0", "edm does not support guidance"]),
        (
            {
                "teacher": {"kind": "edm", "file": "x"},
                "distill": {"method": {"name": "dmd2", "times": {"kind": "lcm"}}},
            },
            ["child.distill.method.times.kind: lcm needs the scheduler of the teacher, but kind edm has none"],
        ),
        (
            {"distill": {"method": {"name": "dmd"}}},
            ["child.distill.method.sigma: 80.0, but pndm starts at the teacher's highest level: write null"],
        ),
        (
            {"sample": {"from": "generator", "guidance": 3, "solver": {"name": "student"}}},
            ["child.sample.guidance: 3.0, but a student is sampled without"],
        ),
    ],
)
def test_fault_of_texts_is_named(section, words):
    with pytest.raises(config.ConfigError) as caught:
        resolved(child=section)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("drop", "place"), [("pairs", "prompts"), ("sample", "sample.prompts")])
def test_teacher_of_text_needs_prompts(drop, place):
    alone = {"teacher": TEXT["teacher"], drop: {key: TEXT[drop][key] for key in TEXT[drop] if key != "prompts"}}
    with pytest.raises(config.ConfigError, match=f"alone.{place}: a teacher of kind stable-diffusion needs prompts"):
        config.resolve({"experiments": {"alone": alone}})


def test_adapter_file_needs_an_adapter():
    adapted = {"distill": {"method": METHOD, "adapter": {"rank": 4}}}
    whole = {"distill": {"method": METHOD}}
    found = resolved(adapted=adapted, whole=whole)
    assert found.has("adapted", "export_lora") and not found.has("whole", "export_lora")
    assert found.has("whole", "export_pipeline") and not found.has("classes", "export_pipeline")
    with pytest.raises(config.ConfigError, match="whole.distill.adapter: null"):
        found.spec("whole", "export_lora")
