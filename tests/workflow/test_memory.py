"""The memory plan before anything starts, of networks that are not ours."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "workflow" / "scripts" / "memory.py"
UNET = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [16, 32], "layers_per_block": 1}
UNET |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
UNET |= {"norm_num_groups": 8}


@pytest.mark.parametrize("num_classes", [None, 3])
def test_memory_of_a_network_from_diffusers_is_counted(distill_numbers, num_classes):
    spec = importlib.util.spec_from_file_location("memory_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    network = {"kind": "unet2d", "config": {**UNET, "num_class_embeds": num_classes}}
    found = script.needed(network, distill_numbers | {"compute": {}, "processes": 1})
    assert all(size > 0 for size in found.values()) and any("activations" in name for name in found)
