"""Golden values: a change of what a stage writes needs a higher number in dmd/config/rule_table.py.

Each entry holds the version it belongs to, a digest of the artifact's structure (names, types, shapes, keys) and
sums of its contents, which other CPUs reach to three digits. After raising a version, run
`python -m pytest tests/stages/test_versions.py` and copy what it prints.
"""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dmd.config.rule_table import VERSIONS
from dmd.data import manifest, shards
from dmd.models import loading
from dmd.provenance import files, tensor_files
from dmd.sampling.noise import seeded_noise
from dmd.stages import sample

GOLDEN: dict[str, tuple[int, str, list[float]]] = {
    "teacher": (
        4,
        "363afdfe940d08b2",
        [0.3227, 0.1629, -0.008264, 0.1534, 0.03784, -0.005952, 0.3124, 0.1535, -0.00804, 0.1194, 0.02292, -0.005285],
    ),
    "pairs": (3, "506a0919a40305c5", [2.492, 9.913, 0.0966, 5.0, 31.67, 0.8, 0.7688, 0.947, 0.03005]),
    "distill": (
        7,
        "e6f6314434dd534a",
        [
            0.3433,
            0.1873,
            -0.00996,
            0.1796,
            0.0616,
            -0.008786,
            0.3328,
            0.1753,
            -0.009422,
            0.1565,
            0.04454,
            -0.007701,
            0.05501,
            10.05,
            0.4363,
        ],
    ),
    "sample": (3, "600dd0360f3a8df2", [0.153, 0.04348, 0.004481, 4.5, 21.5, 0.0]),
}


def structure(value: object) -> object:
    """Keys and types of nested metadata, without the values."""
    if isinstance(value, dict):
        return {key: structure(inner) for key, inner in sorted(value.items())}
    return type(value).__name__


def digest(*parts: object) -> str:
    return hashlib.sha256(files.canonical_json(parts).encode()).hexdigest()[:16]


def moments(*images: torch.Tensor) -> list[float]:
    """Mean magnitude and energy of each, and its correlation with a fixed ramp."""
    found = []
    for image in images:
        values = image.double().flatten()
        ramp = torch.linspace(-1, 1, len(values), dtype=torch.float64)
        found += [float(values.abs().mean()), float(values.square().mean()), float((values * ramp).mean())]
    return found


def of_network(path: Path) -> tuple[str, list[float]]:
    """Structure of a denoiser's file, and what raw and averaged weights make of fixed noise."""
    content, metadata = tensor_files.load(path)
    names = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in sorted(content.items())]
    noise, label = seeded_noise(range(8), (1, 8, 8), num_classes=10)
    images = []
    for weights in ("raw", "ema"):
        denoiser, _ = loading.load_denoiser(path, weights=weights)
        for sigma in (0.5, 80.0):
            images.append(denoiser(sigma * noise, torch.full((8,), sigma), label))
    return digest(names, structure(metadata)), moments(*images)


def of_block(path: Path) -> tuple[str, list[float]]:
    """Structure of a block and its first tar, and moments of its fields."""
    block = manifest.read(path)
    with tarfile.open(block.shards[0].path) as archive:
        members = [[member.name, member.size if index else 0] for index, member in enumerate(archive.getmembers())]
    items = [item for _, item in shards.read(block.shards[0].path)]
    kinds = [[name, str(array.dtype), list(array.shape)] for name, array in items[0].items()]
    record = shards.read_record(block.shards[0].path)
    rows = [block.table["key"].to_pylist(), block.table["seed"].to_pylist(), block.table["label"].to_pylist()]
    fields = [torch.from_numpy(np.stack([item[name] for item in items])) for name in sorted(items[0])]
    return digest(members, kinds, structure(record), structure(block.metadata), rows), moments(*fields)


@pytest.fixture
def found(request, teacher_file, manifest_file, distilled_folder, tmp_path) -> tuple[str, list[float]]:
    """Structure and sums of what a stage writes now."""
    if request.param == "teacher":
        return of_network(teacher_file)
    if request.param == "pairs":
        return of_block(manifest_file.parent / "blocks" / "00000-00001.parquet")
    if request.param == "distill":
        kind, values = of_network(distilled_folder / "generator.safetensors")
        table, metadata = manifest.read_table(distilled_folder / "log.parquet")
        losses = np.array([table[name].to_numpy() for name in ("loss/matching", "loss/regression", "loss/fake")])
        return digest(kind, table.schema.names, structure(metadata)), values + np.nanmean(losses, 1).tolist()
    block = tmp_path / "blocks" / "00000-00000.parquet"
    numbers = {"weights": "ema", "first_seed": 0, "batch_size": 3, "labels": "random", "shard_size": 4}
    numbers |= {"num_samples": 4, "first": 0, "last": 0, "solver": {"name": "student"}}
    sample.run(denoiser=distilled_folder / "generator.safetensors", output=block, **numbers)
    return of_block(block)


@pytest.mark.parametrize(("name", "found"), [(name, name) for name in GOLDEN], indirect=["found"])
def test_a_stage_writes_what_its_version_wrote(name, found):
    kind, values = found
    print(f'    "{name}": ({VERSIONS[name]}, "{kind}", {[float(f"{value:.4g}") for value in values]}),')
    version, golden_kind, golden = GOLDEN[name]
    advice = f"raise {name!r} in dmd/config/rule_table.py if this change is meant, and copy the line printed above"
    assert version == VERSIONS[name], f"GOLDEN belongs to version {version}: copy the line printed above"
    assert kind == golden_kind, f"structure differs: {advice}"
    assert values == pytest.approx(golden, rel=2e-3, abs=1e-5), advice
