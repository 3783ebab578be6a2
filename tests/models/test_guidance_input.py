"""Guidance as an input of a network: at first it changes nothing, and diffusers' network embeds it as pipelines do."""

from pathlib import Path

import pytest
import torch

from dmd import torchvision_operators
from dmd.models import loading
from dmd.models.adapters import with_network
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build, extended
from dmd.models.networks.unet2d_condition import GUIDANCE_WIDTH, guidance_features
from dmd.provenance import tensor_files

MLP = {"kind": "mlp", "channels": 1, "resolution": 4, "width": 16, "layers": 2, "num_classes": 3}
UNET = {"kind": "ddpmpp", "resolution": 4, "channels": 1, "width": 16, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [], "num_classes": 3}
STABLE = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [8], "layers_per_block": 1}
STABLE |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
STABLE |= {"norm_num_groups": 4, "attention_head_dim": 2, "cross_attention_dim": 6}
NETWORKS = {"mlp": MLP, "unet": UNET, "unet2d-condition": {"kind": "unet2d-condition", "config": STABLE}}
SIGMA, GUIDANCE = torch.tensor([0.1, 1.0, 9.0]), torch.tensor([1.0, 3.0, 8.5])


def random(network: dict) -> Denoiser:
    torch.manual_seed(0)
    made = Denoiser(build(network), sigma_data=0.6).eval()
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return made


def inputs(network: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and conditions."""
    label = torch.randn(3, 5, 6) if network["kind"] == "unet2d-condition" else torch.tensor([0, 1, 2])
    return torch.randn(3, 1, 4, 4), label


@pytest.mark.parametrize("name", NETWORKS)
def test_it_changes_nothing_at_first_and_then_enters(name):
    network = NETWORKS[name]
    before, (image, label) = random(network), inputs(network)
    after = loading.extended(before, network, guidance=True)
    assert not before.takes_guidance and after.takes_guidance
    first = before(image, SIGMA, label)
    torch.testing.assert_close(after(image, SIGMA, label, guidance=GUIDANCE), first, rtol=1e-6, atol=1e-6)
    (added,) = [value for key, value in after.network.named_parameters() if key not in before.network.state_dict()]
    added.data.normal_()
    found = after(image, SIGMA, label, guidance=GUIDANCE)
    assert not torch.allclose(found[1:], after(image, SIGMA, label)[1:])
    after.guidance = 3.0
    torch.testing.assert_close(after(image, SIGMA, label)[1], found[1])
    assert with_network(after, after.network).guidance == 3.0
    half = after.to(torch.bfloat16)(image.bfloat16(), SIGMA, label if label.ndim == 1 else label.bfloat16())
    assert half.dtype == torch.bfloat16 and bool(half.isfinite().all())
    with pytest.raises(ValueError, match=r"noise_condition: shape \(3,\) is not \(B, 2\)"):
        after.network(image, torch.ones(3), label)


def test_both_inputs_have_columns_of_their_own():
    network, (image, label) = UNET, inputs(UNET)
    found = loading.extended(random(network), network, second_time=True, guidance=True)
    found.network.second_time.linear.weight.data.normal_()
    found.network.guidance_input.linear.weight.data.normal_()
    given = {"end": 0.5 * SIGMA, "guidance": GUIDANCE}
    whole = found(image, SIGMA, label, **given)
    for name in given:
        assert not torch.allclose(found(image, SIGMA, label, **{**given, name: None}), whole)


def test_networks_of_other_kinds_are_refused():
    for kind in ("unet2d", "sd3"):
        with pytest.raises(ValueError, match=f"network '{kind}' cannot take the guidance as an input"):
            extended({"kind": kind, "config": {}}, guidance=True)


def test_features_are_those_of_the_stock_pipeline():
    torchvision_operators.ensure()
    from diffusers import LatentConsistencyModelPipeline

    pipeline = LatentConsistencyModelPipeline.__new__(LatentConsistencyModelPipeline)
    expected = pipeline.get_guidance_scale_embedding(GUIDANCE - 1, embedding_dim=GUIDANCE_WIDTH)
    torch.testing.assert_close(guidance_features(GUIDANCE, GUIDANCE_WIDTH), expected, rtol=0, atol=1e-6)


def test_file_has_the_range_and_damaged_ranges_are_refused(tmp_path: Path):
    network = extended(MLP, guidance=True)
    weights = {f"ema.{name}": value for name, value in build(network).state_dict().items()}
    facts = {"kind": "generator", "network": network, "shape": [1, 4, 4], "num_classes": 3, "sigma_data": 0.6}
    tensor_files.save(tmp_path / "good", weights, facts | {"guidance_range": [1.0, 5.0]})
    denoiser, _ = loading.load_denoiser(tmp_path / "good")
    assert isinstance(denoiser, Denoiser) and denoiser.guidance == 3.0
    for odd in (None, [5.0, 1.0], [0.5, 2.0], [1.0, 1e9], "1", [1.0]):
        tensor_files.save(tmp_path / "bad", weights, facts | ({} if odd is None else {"guidance_range": odd}))
        with pytest.raises(ValueError, match="guidance_range .* does not fit a network with guidance_input True"):
            loading.load_denoiser(tmp_path / "bad")
