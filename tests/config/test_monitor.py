"""What the monitor of a distillation reads, what reruns it, and settings that contradict it."""

import copy
from typing import Any

import pytest

from dmd import config
from dmd.config.artifacts import Experiments

PROMPTS = {"kind": "file", "file": "prompts.parquet"}
BASE: dict[str, Any] = {
    "teacher": {"kind": "stable-diffusion", "folder": "sd", "tiny_autoencoder": {"folder": "tiny"}},
    "dataset": {"kind": "images", "folder": "photos", "resolution": 8, "num_held_out": "all"},
    "reference": {
        "features": {"kind": "inception", "file": "i.pth", "sha256": "a" * 64},
        "protocol": {"quantise": 256},
    },
    "prompts": PROMPTS,
    "pairs": {"num_pairs": 16, "shard_size": 4},
    "distill": {"method": {"name": "dmd", "sigma": None, "levels": {"kind": "teacher"}, "phases": [{"updates": 5}]}},
    "sample": {"num_samples": 8, "shard_size": 4, "prompts": PROMPTS},
    "evaluate": {"clip": {"folder": "clips/vit"}},
}


def experiments(**monitor: Any) -> Experiments:
    """`base`, and `child` with keys of its monitor; `monitor=None` has none."""
    section = monitor if "monitor" in monitor else {"monitor": monitor}
    written = {"base": copy.deepcopy(BASE), "child": {"extends": "base", "distill": section}}
    return Experiments(config.resolve({"experiments": written}))


def fault(**sections: Any) -> str:
    with pytest.raises(config.ConfigError) as caught:
        config.resolve({"experiments": {"base": copy.deepcopy(BASE), "child": {"extends": "base", **sections}}})
    return str(caught.value)


def upstream(found: Experiments, name: str) -> list[str]:
    return [rule for rule, _ in found.upstream(name, "distill")]


def test_distill_reads_features_and_decoder_and_with_clip_the_prompts():
    before = ["teacher", "pairs_manifest"]
    assert upstream(experiments(), "base") == [*before, "autoencoder"]
    assert upstream(experiments(decoder="tiny"), "child") == [*before, "tiny_autoencoder"]
    assert upstream(experiments(decoder="none", features=None), "child") == before
    assert upstream(experiments(clip=True), "child") == [*before, "autoencoder", "prompts"]
    assert upstream(experiments(monitor=None), "child") == before


def test_spec_has_what_is_read_and_nothing_else():
    found = experiments(clip=True)
    features = {"kind": "inception", "sha256": "a" * 64, "resize": "tf"}
    assert found.spec("base", "distill")["features"] == features and "clip" not in found.spec("base", "distill")
    clip = {"sha256": None, "prefix": "A photo depicts ", "resize": None, "name": "vit"}
    assert found.spec("child", "distill")["clip"] == clip
    without = experiments(monitor=None).spec("child", "distill")
    assert without["monitor"] is None and not {"features", "clip"} & without.keys()


@pytest.mark.parametrize(
    ("monitor", "section", "reruns"),
    [
        ({}, {"reference": {"protocol": {"resize": {"size": 4}}}}, False),
        ({}, {"reference": {"features": {"batch_size": 8}}}, False),
        ({}, {"reference": {"features": {"resize": "clean"}}}, True),
        ({"features": None}, {"reference": {"features": {"resize": "clean"}}}, False),
        ({}, {"evaluate": {"clip": {"folder": "clips/large"}}}, False),
        ({}, {"evaluate": {"clip": None}}, False),
        ({"clip": True}, {"evaluate": {"clip": {"folder": "clips/large"}}}, True),
        ({"clip": True}, {"evaluate": {"seed": 1}}, False),
        ({}, {"sample": {"weights": "best"}}, False),
        ({}, {"sample": {"weights": "best", "prompts": {"file": "others.parquet"}}}, False),
        ({}, {"distill": {"monitor": {"every": 2}}}, True),
    ],
)
def test_only_what_is_read_reruns_distill(monitor, section, reruns):
    base = copy.deepcopy(BASE)
    base["distill"]["monitor"] = monitor
    found = Experiments(config.resolve({"experiments": {"base": base, "child": {"extends": "base", **section}}}))
    assert (found.owner("child", "distill") == "child") == reruns


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"sample": {"weights": "best"}, "distill": {"monitor": None}},
            "sample.weights: best, but these weights are kept only if distill.monitor.best names a number",
        ),
        ({"sample": {"weights": "best"}, "distill": {"monitor": {"best": None}}}, "sample.weights: best, but these"),
        ({"distill": {"monitor": {"clip": True}}, "evaluate": {"clip": None}}, "clip: true, but section evaluate has"),
        ({"distill": {"monitor": {"decoder": "none"}}}, "decoder: none, but features: reference needs decoded images"),
        (
            {"distill": {"monitor": {"decoder": "tiny"}}, "teacher": {"tiny_autoencoder": None}},
            "monitor.decoder: tiny, but section teacher has no tiny_autoencoder",
        ),
        (
            {"distill": {"method": {"name": "dmd2", "calls": 2}, "monitor": {"best": "same_noise"}}},
            "best: same_noise, but the student makes 2 calls",
        ),
        ({"distill": {"monitor": {"seeds": 100}}}, "num_images: 80 is less than seeds 100"),
        ({"distill": {"monitor": {"evry": 100}}}, 'did you mean "every"'),
    ],
)
def test_contradictions_are_told(sections, message):
    assert message in fault(**sections)


def test_clip_needs_prompts():
    teacher = {"kind": "diffusers", "folder": "ddpm"}
    message = fault(teacher=teacher, distill={"monitor": {"clip": True}})
    assert "monitor.clip: true, but a teacher of kind diffusers takes no prompts" in message


def test_best_weights_are_kept_for_the_calls_at_the_end_of_training():
    method = {"name": "progressive", "phases": [{"steps": 2, "updates": 5}, {"steps": 1, "updates": 5}], "keep": [2]}
    digits = {"dataset": {"kind": "digits"}, "teacher": {"kind": "edm", "file": "a.pkl"}}
    section = {
        **digits,
        "distill": {"method": method},
        "sample": {"num_samples": 8, "shard_size": 4, "weights": "best"},
    }
    config.resolve({"experiments": {"base": copy.deepcopy(section)}})
    section["sample"]["calls"] = 2
    with pytest.raises(config.ConfigError, match="weights: best, but for 2 calls the file holds averaged weights only"):
        config.resolve({"experiments": {"base": section}})
