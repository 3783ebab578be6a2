"""Distances of decoded latents: in parts as in one, with a gradient through the decoder for one side."""

import gc

import pytest
import torch

from dmd.methods.parts.decoded_distance import CHUNKS, DecodedDistance
from dmd.methods.parts.distances import l2_distance
from dmd.models import loading
from dmd.models.autoencoder import Codec
from dmd.models.tensor_bytes import Peak
from dmd.stages import autoencoder
from dmd.train.memory import distance_bytes
from tests.stable_diffusion_files import make_stable_diffusion, make_tiny_autoencoder

NUM = 6


@pytest.fixture(scope="module", params=["tiny", "full"])
def codec(request, tmp_path_factory) -> Codec:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        autoencoder.run(output=folder / "a", source=make_tiny_autoencoder(folder / "s"), kind="tiny")
    else:
        autoencoder.run(output=folder / "a", source=make_stable_diffusion(folder / "s"), kind="stable-diffusion")
    return loading.load_codec(folder / "a")


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, NUM, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()


def test_distance_and_gradient_are_those_of_whole_decoded_images(codec):
    image, reference = latents()
    whole, parts = image.clone().requires_grad_(), image.clone().requires_grad_()
    direct = l2_distance(codec.decode(whole), codec.decode(reference))
    direct.backward()
    found = DecodedDistance(l2_distance, codec)(parts, reference)
    (0.25 * found).backward()
    torch.testing.assert_close(found, direct)
    torch.testing.assert_close(parts.grad, 0.25 * whole.grad, rtol=1e-4, atol=1e-7)
    assert whole.grad.flatten(1).abs().amax(1).min() > 0


def test_latents_are_decoded_in_parts_and_only_the_generated_ones_with_a_graph(codec, monkeypatch):
    seen, decode = [], Codec.decode

    def watched(self, latent):
        seen.append((len(latent), latent.requires_grad, torch.is_grad_enabled()))
        return decode(self, latent)

    monkeypatch.setattr(Codec, "decode", watched)
    image, reference = latents()
    DecodedDistance(l2_distance, codec)(image.requires_grad_(), reference.requires_grad_()).backward()
    sizes = [len(part) for part in image.split(CHUNKS[codec.kind])]
    assert [each for each in seen if each[2]] == [(size, True, True) for size in sizes]
    assert [size for size, _, graph in seen if not graph] == sizes and reference.grad is None
    assert all(parameter.grad is None for parameter in codec.parameters())


def test_plan_of_memory_knows_what_a_decoder_keeps(codec):
    distance, chunk = DecodedDistance(l2_distance, codec), CHUNKS[codec.kind]
    one = distance_bytes(distance, (4, 8, 8), 1)
    assert distance_bytes(distance, (4, 8, 8), NUM) == chunk * one > 4 * 3 * 32 * 32 * chunk


def test_plan_of_memory_leaves_nothing_behind(codec):
    """A GPU would lack it for the whole training."""
    with Peak() as peak:
        assert distance_bytes(DecodedDistance(l2_distance, codec), (4, 8, 8), 1) > 0
    gc.collect()
    assert peak.now == 0 < peak.most


def test_shapes_must_agree(codec):
    with pytest.raises(ValueError, match=r"image has shape \(6, 4, 8, 8\), reference \(3, 4, 8, 8\)"):
        DecodedDistance(l2_distance, codec)(latents()[0], latents()[1][:3])
