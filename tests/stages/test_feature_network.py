"""Stage feature_network: training is a pure function of its spec, and the tracked file says which spec made it."""

import json
from pathlib import Path

import pytest

from dmd.provenance import tensor_files
from dmd.stages import feature_network

RESOURCES = Path("workflow/resources")


def test_training_repeats_bit_for_bit_and_depends_on_the_seed(tmp_path):
    spec = json.loads((RESOURCES / "digits32.json").read_text()) | {"updates": 5}
    paths = [tmp_path / name for name in "abc"]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        feature_network.run(output=path, **(spec | {"seed": seed}))
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other


@pytest.mark.parametrize(("name", "accuracy"), [("digits32", 0.98), ("fashion64", 0.92)])
def test_tracked_file_was_made_from_the_tracked_spec(name, accuracy):
    metadata = tensor_files.load_metadata(RESOURCES / f"{name}.safetensors")
    assert {"kind": name} | metadata["spec"] == {"kind": name} | json.loads((RESOURCES / f"{name}.json").read_text())
    assert metadata["kind"] == name and metadata["accuracy"]["held_out"] >= accuracy
