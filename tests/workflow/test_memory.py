"""The memory plan before anything starts, of networks that are not ours."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "workflow" / "scripts" / "memory.py"
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


@pytest.mark.parametrize("num_classes", [None, 3])
def test_memory_of_a_network_from_diffusers_is_counted(script, distill_numbers, num_classes):
    network = {"kind": "unet2d", "config": {**UNET, "num_class_embeds": num_classes}}
    found = script.needed(network, distill_numbers | {"compute": {}, "processes": 1})
    assert all(size > 0 for size in found.values()) and any("activations" in name for name in found)


def test_memory_of_a_text_network_knows_guidance_joined_pairs_decoders_and_batches_of_phases(script, distill_numbers):
    numbers = distill_numbers | {"compute": {}, "processes": 1, "regression_batch_size": 8}

    def total(*codecs: str, **changed) -> int:
        return sum(script.needed(TEXT, numbers | changed, codecs).values())

    plain = total()
    assert total(guidance=3.0, matching_batch_size=40) > total(matching_batch_size=40) > plain
    assert total(match_pairs=True) > plain and total(match_pairs=True, guidance=3.0) > total(match_pairs=True)
    assert total(script.canonical_json(TINY)) > plain
    phases = [phase | {"regression_batch_size": 16} for phase in numbers["phases"]]
    assert total(phases=phases) == total(regression_batch_size=16) > plain
