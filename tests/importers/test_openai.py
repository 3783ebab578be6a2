"""OpenAI's teacher of consistency models: a forward pass written from its definition, refusals."""

import math
import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dmd.models import loading
from dmd.provenance import files
from dmd.stages import teacher

State = dict[str, torch.Tensor]
WIDTH, CLASSES = 128, 5


def random_state() -> State:
    """Two levels of 128 and 256 channels, a block each, attention in the second; all weights random."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}

    def layer(name: str, *shape: int, scale: float = 0.03) -> None:
        state[f"{name}.weight"] = scale * torch.randn(shape, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

    def norm(name: str, channels: int) -> None:
        layer(name, channels, scale=0.2)
        state[f"{name}.weight"] += 1

    def block(name: str, before: int, after: int) -> None:
        norm(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * after, 4 * WIDTH)
        norm(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1, 1, scale=0.1)
        layer(f"{name}.proj_out", channels, channels, 1, 1, scale=0.1)

    layer("time_embed.0", 4 * WIDTH, WIDTH)
    layer("time_embed.2", 4 * WIDTH, 4 * WIDTH)
    state["label_emb.weight"] = torch.randn(CLASSES, 4 * WIDTH, generator=generator)
    layer("input_blocks.0.0", 128, 3, 3, 3, scale=0.2)
    channels = {"input_blocks.1.0": (128, 128), "input_blocks.2.0": (128, 128), "input_blocks.3.0": (128, 256)}
    channels |= {"middle_block.0": (256, 256), "middle_block.2": (256, 256), "output_blocks.0.0": (512, 256)}
    channels |= {"output_blocks.1.0": (384, 256), "output_blocks.1.2": (256, 256)}
    channels |= {"output_blocks.2.0": (384, 128), "output_blocks.3.0": (256, 128)}
    for name, (before, after) in channels.items():
        block(name, before, after)
    for name in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        attention(name, 256)
    norm("out.0", 128)
    layer("out.2", 3, 128, 3, 3)
    return state


def reference(state: State, image: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The network of `random_state` after Dhariwal and Nichol 2021, in the names of the file."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])

    def block(name: str, x: torch.Tensor, resample=lambda x: x) -> torch.Tensor:
        hidden = conv(f"{name}.in_layers.2", resample(F.silu(norm(f"{name}.in_layers.0", x))))
        scale, shift = linear(f"{name}.emb_layers.1", F.silu(embedding))[:, :, None, None].chunk(2, 1)
        hidden = F.silu(norm(f"{name}.out_layers.0", hidden) * (1 + scale) + shift)
        x = resample(x)
        skip = conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in state else x
        return skip + conv(f"{name}.out_layers.3", hidden)

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        num, channels, height, width = x.shape
        parts = conv(f"{name}.qkv", norm(f"{name}.norm", x)).chunk(3, 1)
        query, key, value = (part.reshape(num, channels // 64, 64, -1) for part in parts)
        weight = (torch.einsum("nhcq,nhck->nhqk", query, key) / 8).softmax(-1)
        mixed = torch.einsum("nhqk,nhck->nhcq", weight, value).reshape(x.shape)
        return x + conv(f"{name}.proj_out", mixed)

    def up(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    angle = time[:, None] * torch.exp(-math.log(10000) * torch.arange(WIDTH // 2) / (WIDTH // 2))
    features = torch.cat([angle.cos(), angle.sin()], 1)
    embedding = linear("time_embed.2", F.silu(linear("time_embed.0", features))) + state["label_emb.weight"][label]
    stem = conv("input_blocks.0.0", image)
    one = block("input_blocks.1.0", stem)
    two = block("input_blocks.2.0", one, lambda x: F.avg_pool2d(x, 2))
    three = attention("input_blocks.3.1", block("input_blocks.3.0", two))
    hidden = attention("middle_block.1", block("middle_block.0", three))
    hidden = block("middle_block.2", hidden)
    hidden = attention("output_blocks.0.1", block("output_blocks.0.0", torch.cat([hidden, three], 1)))
    hidden = attention("output_blocks.1.1", block("output_blocks.1.0", torch.cat([hidden, two], 1)))
    hidden = block("output_blocks.1.2", hidden, up)
    hidden = block("output_blocks.2.0", torch.cat([hidden, one], 1))
    hidden = block("output_blocks.3.0", torch.cat([hidden, stem], 1))
    return conv("out.2", F.silu(norm("out.0", hidden)))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("openai") / "teacher.pt"
    torch.save(random_state(), path)
    return path


def test_imported_teacher_equals_a_forward_pass_over_the_file(source, tmp_path):
    teacher.run(
        output=tmp_path / "t",
        table=tmp_path / "log.parquet",
        kind="openai",
        source=source,
        sha256=files.sha256(source),
        resolution=8,
    )
    denoiser, metadata = loading.load_denoiser(tmp_path / "t")
    assert metadata["network"] == {
        "kind": "adm", "resolution": 8, "channels": 3, "width": 128, "multipliers": [1, 2], "blocks": 1,
        "attention": [4], "num_classes": 5, "dropout": 0.1,
    }  # fmt: skip
    image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma, label = torch.tensor([0.002, 0.5, 5.0, 80.0]), torch.tensor([0, 4, 2, 2])
    level = sigma[:, None, None, None]
    with torch.no_grad():
        out = reference(random_state(), image / (level**2 + 0.25).sqrt(), 1000 * sigma.log() / 4, label)
        expected = (0.25 * image + 0.5 * level * (level**2 + 0.25).sqrt() * out) / (level**2 + 0.25)
        found = denoiser(image, sigma, label)
    assert float(out.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def changed(**tensors: torch.Tensor | None) -> State:
    state = random_state() | {name.replace("__", "."): value for name, value in tensors.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(time_embed__0__weight=None), "time_embed.0.weight is missing"),
        (changed(encoder__weight=torch.ones(2)), "encoder.weight is not a weight of such a network"),
        (changed(input_blocks__2__0__op__weight=torch.ones(2)), "input_blocks.2.0.op.weight is not a weight"),
        (changed(out__2__bias=None), 'holds another architecture: Missing key.*"out_conv.bias"'),
        (changed(label_emb__weight=torch.full((5, 512), torch.nan)), "not finite: label_emb.weight"),
        ({"a.weight": torch.ones(2)}, "time_embed.0.weight is missing"),
        ([torch.ones(2)], "holds no dict of names and tensors"),
        ({"a": 3}, "something else than tensors: a"),
        (changed(out__2__bias=torch.ones(1).expand(1 << 30)), "out.2.bias: sizes, strides or offset reach beyond"),
        (changed(out__2__bias=torch.ones(3).to_sparse()), "global torch._utils._rebuild_sparse_tensor is refused"),
        (changed(out__2__bias=torch.ones(3, device="meta")), "global torch._utils._rebuild_meta_tensor.* is refused"),
        (changed(out__2__bias=torch.ones(3, dtype=torch.int64)), "something else than real numbers: out.2.bias"),
        (changed(time_embed__0__weight=torch.ones(512, 0)), "time_embed.0.weight: the tensor is empty"),
        (dict.fromkeys("abc", torch.ones(9999)), "more bytes than the file has"),
    ],
)
def test_file_of_another_network_is_named(state, message, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message) as refused:
        teacher.run(
            output=tmp_path / "t", table=tmp_path / "log.parquet", kind="openai", source=tmp_path / "a.pt", resolution=8
        )
    assert "\n" not in str(refused.value) and not (tmp_path / "t").exists()


def test_blocks_that_only_a_name_claims_are_not_made(tmp_path):
    state = {name: value for name, value in random_state().items() if not name.startswith("output_blocks.")}
    state |= {f"output_blocks.{num}.0.out_layers.0.weight": torch.ones(128) for num in (0, 999)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds another architecture: 999 blocks for [0-9]+ tensors"):
        teacher.run(
            output=tmp_path / "t", table=tmp_path / "log.parquet", kind="openai", source=tmp_path / "a.pt", resolution=8
        )


def test_compressed_file_that_would_grow_is_refused_before_it_is_read(tmp_path):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as old, zipfile.ZipFile(tmp_path / "a.pt", "w", 8) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    with pytest.raises(ValueError, match="its parts claim [0-9]+ bytes, more than the file has"):
        teacher.run(output=tmp_path / "t", table=tmp_path / "log.parquet", kind="openai", source=tmp_path / "a.pt")


def test_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    class Hostile:
        def __reduce__(self):
            return os.system, ("touch executed",)

    monkeypatch.chdir(tmp_path)
    torch.save({"a": Hostile()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="cannot be read as a file of weights only"):
        teacher.run(output=tmp_path / "t", table=tmp_path / "log.parquet", kind="openai", source=tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()


def test_truncated_file_is_refused(source, tmp_path):
    content = source.read_bytes()
    for size in (0, 10, 1000, len(content) // 2, len(content) - 1):
        (tmp_path / "a.pt").write_bytes(content[:size])
        (tmp_path / ".a.pt.json").unlink(missing_ok=True)
        with pytest.raises(
            ValueError, match="a.pt cannot be read: it (is empty|ends early)|a.pt cannot be read as a file of weights"
        ):
            teacher.run(output=tmp_path / "t", table=tmp_path / "log.parquet", kind="openai", source=tmp_path / "a.pt")
