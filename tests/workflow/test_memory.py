"""The memory plan before anything starts, of networks that are not ours."""

import importlib.util
from pathlib import Path

import pytest
from pydantic import ValidationError

from dmd.config.artifacts import Experiments
from dmd.config.inheritance import load
from dmd.config.training import Distill
from tests.trainings import changed
from workflow.scripts import stand_in

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "workflow" / "scripts" / "memory.py"
UNET = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [16, 32], "layers_per_block": 1}
UNET |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
UNET |= {"norm_num_groups": 8}


TEXT = {"kind": "unet2d-condition", "config": {"sample_size": 8, "in_channels": 4, "out_channels": 4}}
TEXT["config"] |= {"block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4}
TEXT["config"] |= {"cross_attention_dim": 32, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
TEXT["config"] |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
TINY = {"kind": "tiny", "config": {"num_encoder_blocks": [1] * 3, "num_decoder_blocks": [1] * 3}}
TINY["config"] |= {"encoder_block_out_channels": [8] * 3, "decoder_block_out_channels": [8] * 3}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("memory_script", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def section(given: dict, **keys) -> Distill:
    return Distill.model_validate(changed(given, **keys))


@pytest.mark.parametrize("num_classes", [None, 3])
def test_memory_of_a_network_from_diffusers_is_counted(script, distill_section, num_classes):
    network = {"kind": "unet2d", "config": {**UNET, "num_class_embeds": num_classes}}
    found = script.needed(network, section(distill_section))
    assert all(size > 0 for size in found.values()) and any("activations" in name for name in found)


def test_memory_of_a_text_network_knows_guidance_joined_pairs_decoders_and_batches_of_phases(script, distill_section):
    def total(*codecs: str, **keys) -> int:
        given = {"regression_batch_size": 8, "regression_distance": {"kind": "l2", "decoder": "tiny"}}
        return sum(script.needed(TEXT, section(distill_section, **{**given, **keys}), codecs).values())

    plain = total()
    assert total(guidance=3.0, matching_batch_size=40) > total(matching_batch_size=40) > plain
    assert total(match_pairs=True) > plain and total(match_pairs=True, guidance=3.0) > total(match_pairs=True)
    assert total(script.canonical_json(TINY)) > plain
    phases = [phase | {"regression_batch_size": 16} for phase in distill_section["method"]["phases"]]
    assert total(phases=phases) == total(regression_batch_size=16) > plain


def test_memory_of_adapters_is_that_of_what_they_train(script, distill_section):
    whole = script.needed(TEXT, section(distill_section))
    found = script.needed(TEXT, section(distill_section, adapter={"rank": 2}))
    assert found["weights of teacher"] > 0.9 * whole["weights of teacher"] > 9 * found["weights of student"]
    assert found["moments"] == 2 * (found["weights of student"] + found["weights of fake"])


def test_memory_of_processes_and_micro_batches_is_that_of_their_rows(script, distill_section):
    batch = {"matching_batch_size": 32, "regression_batch_size": 32}
    alone = script.needed(TEXT, section(distill_section, **batch))
    shared = script.needed(TEXT, section(distill_section, **batch, processes=4, compute={"micro_batch_size": 2}))
    assert any("of 32 rows" in name for name in alone) and any("of 2 rows" in name for name in shared)
    assert shared["exchange of gradients"] > 0 and "exchange of gradients" not in alone


def test_passes_of_a_whole_distillation_are_those_of_the_paper():
    """Student and fake update 3 each, real and fake score 1, on the matching batch; the student 3 on pairs."""
    distill = Experiments(load(REPOSITORY / "config.yaml")).section("cifar10-cond", "distill")
    assert stand_in.image_passes(distill) == 300_000 * 11 * 392


def test_passes_count_guidance_joined_pairs_and_batches_of_phases(distill_section):
    batches = {"matching_batch_size": 64, "regression_batch_size": 32}
    phases = [{"updates": 20}, {"updates": 10, "matching_batch_size": 16, "regression_batch_size": 8}]
    section = Distill.model_validate(changed(distill_section, guidance=3.0, match_pairs=True, phases=phases, **batches))
    expected = sum(updates * ((3 + 3 + 3) * num + (3 + 3 + 3) * num // 2) for updates, num in ((20, 64), (10, 16)))
    assert stand_in.image_passes(section) == expected
    assert stand_in.batch_passes(section) == round(expected / 64)


FEW: dict[str, dict] = {
    "sid": {"name": "sid"},
    "consistency": {"name": "consistency", "target_decay": 0.9},
    "progressive": {"name": "progressive", "phases": [{"updates": 2, "steps": 2}, {"updates": 2, "steps": 1}]},
    "dmd2 of several calls": {"name": "dmd2", "calls": 3},
    "dmd2 with decoupled guidance": {"name": "dmd2", "calls": 3, "guidance": 3.0, "decoupled": {}},
    "dmd2 with levels of the teacher": {"name": "dmd2", "levels": {"kind": "teacher"}},
    "dmd2 with times of a scheduler": {"name": "dmd2", "calls": 2, "times": {"kind": "lcm"}},
    "dmd2 with a GAN loss": {"name": "dmd2", "adversarial": {"r1": 1.0}},
    "tdm": {"name": "tdm", "phases": [{"updates": 2}]},
    "diff-instruct": {"name": "diff-instruct", "phases": [{"updates": 2}]},
    "f-distill": {"name": "f-distill", "phases": [{"updates": 2}]},
    "gan": {"name": "gan", "phases": [{"updates": 2}]},
    "ect": {"name": "ect", "phases": [{"updates": 2}]},
    "moment-matching": {"name": "moment-matching", "phases": [{"updates": 2}]},
    "mean-flow": {"name": "mean-flow", "phases": [{"updates": 2}]},
    "scm": {"name": "scm", "phases": [{"updates": 2}]},
    "lcm": {"name": "lcm", "embedded": False, "phases": [{"updates": 2}]},
    "lcm with guidance as an input": {"name": "lcm", "phases": [{"updates": 2}]},
    "meng": {"name": "meng", "phases": [{"updates": 2}]},
    "ufogen": {"name": "ufogen", "reconstruction_weight": 1.0, "phases": [{"updates": 2}]},
    "boot": {
        "name": "boot",
        "levels": 6,
        "boundary_weight": 1.0,
        "boundary_batch_size": 8,
        "phases": [{"updates": 2}],
    },
    "imm": {"name": "imm", "phases": [{"updates": 2}]},
    "ctm": {"name": "ctm", "phases": [{"updates": 2}]},
    "dfno": {"name": "dfno", "states": 3, "phases": [{"updates": 2}]},
    "tract": {"name": "tract", "phases": [{"updates": 2, "groups": 2}, {"updates": 2, "groups": 1}]},
    "rectified flow": {"name": "rectified-flow", "objective": "reflow", "phases": [{"updates": 2}]},
}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("adapter", [None, {"rank": 2}], ids=["whole", "adapters"])
def test_memory_of_every_method_is_counted(script, name, adapter):
    """Also of those that read what they draw, or the noise levels that they compute."""
    method = {"batch_size": 8, **FEW[name]}
    network = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 0}
    refused = {each: f"method {each} does not support it" for each in ("mean-flow", "dfno", "imm", "ctm")}
    refused |= dict.fromkeys(("lcm with guidance as an input", "meng"), "the teacher's network, which does not take")
    if adapter is not None and name in refused:
        with pytest.raises(ValidationError, match=f"adapter: .*{refused[name]}"):
            Distill.model_validate({"method": method, "adapter": adapter})
        return
    found = script.needed(network, Distill.model_validate({"method": method, "adapter": adapter}))
    assert all(size > 0 for size in found.values()) and any("activations of 8 rows" in title for title in found)


KEPT = []  # trainers on fake tensors, which the cache would keep, too: torch may crash when it collects them


def test_fake_and_real_tensors_need_the_same_memory(script, distill_section, monkeypatch):
    """Real ones are measured where they are quicker."""
    measured = stand_in._measured.__wrapped__
    monkeypatch.setattr(stand_in, "_measured", lambda *given: KEPT.append(measured(*given)) or KEPT[-1])
    found = []
    for quick in (0, stand_in.QUICK):
        monkeypatch.setattr(stand_in, "QUICK", quick)
        found.append(script.needed({"kind": "unet2d", "config": UNET}, section(distill_section)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("keys", "teacher"), [({}, 1), ({"guidance": 3.0}, 2), ({"guidance": 3.0, "decoupled": {}}, 3)], ids=str
)
def test_passes_count_the_calls_before_the_trained_one_and_those_of_guidance(keys, teacher):
    """Student 3 and the mean of 0, 1 and 2 before it, teacher, fake 1; then fake 3 twice, once on new images."""
    phases = [{"updates": 10, "fake_updates": 2}]
    method = {"name": "dmd2", "batch_size": 8, "calls": 3, "phases": phases, **keys}
    expected = 10 * 8 * ((3 + 1) + teacher + 1 + 3 + (1 + 1) + 3)
    assert stand_in.image_passes(Distill.model_validate({"method": method})) == pytest.approx(expected, rel=0.05)


def test_the_network_of_a_round_is_that_of_the_first_teacher(script, tmp_path, monkeypatch):
    experiments = Experiments(load(REPOSITORY / "config.yaml"))
    monkeypatch.chdir(tmp_path)  # without results
    found = [script.architecture(experiments, name) for name in ("digits-instaflow", "digits")]
    assert found[0] == found[1] and found[0]["kind"] == "ddpmpp"
