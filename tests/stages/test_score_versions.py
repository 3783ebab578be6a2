"""Golden values of reference, features and evaluate, as in test_versions.py: other bytes need a higher version."""

import hashlib
import json

import pytest

from dmd.config.rule_table import METRICS, VERSIONS
from dmd.provenance import files, tensor_files
from dmd.stages import evaluate
from tests.stages.scored import draw_points, make_features, make_reference

GOLDEN = {
    "versions": {"reference": 5, "features": 3, "evaluate": 3},
    "structure": "78ee2c27ef654777",
    "numbers": [
        1.16,
        1.198,
        0.532,
        0.04943,
        0.532,
        1.169,
        1.204,
        0.55,
        0.0985,
        0.55,
        200.0,
        1.162,
        0.52,
        211.7,
        0.52,
        13.17,
        0.008678,
        0.008678,
        0.01605,
        -0.1349,
        0.96,
        0.956,
        0.9767,
        0.82,
        0.012,
        1.0,
        0.4844,
        0.04,
        0.06992,
    ],
}
NUMBERS = {
    "fid": ("value", "min", "training"),
    "kid": ("value",),
    "prdc": ("precision", "recall", "density", "coverage"),
    "classes": ("real", "accuracy"),
    "memorisation": ("auc", "nearer", "distance"),
}


def structure(value: object) -> object:
    """Keys and types of nested metadata, without the values."""
    if isinstance(value, dict):
        return {key: structure(inner) for key, inner in sorted(value.items())}
    return type(value).__name__


@pytest.fixture
def found(tmp_path) -> tuple[str, list[float]]:
    """Digest of names, types and shapes of what the stages write now, and its numbers."""
    real = make_reference(tmp_path / "reference.safetensors")
    block = make_features(tmp_path, real, draw_points(200, seed=1), first=0)
    outputs = {name: tmp_path / f"{name}.json" for name in METRICS}
    numbers = {"experiment": "points", "neighbours": 3, "kid_subset": None, "seed": 0}
    evaluate.run(reference=real, features=[block], **outputs, **numbers)
    kinds: list[object] = []
    values = []
    for path in (real, block):
        content, metadata = sorted(tensor_files.load(path)[0].items()), tensor_files.load_metadata(path)
        kinds += [[[name, str(value.dtype), list(value.shape)] for name, value in content], structure(metadata)]
        values += [float(value.double().abs().mean()) for _, value in content]
    scores = {name: json.loads(path.read_text()) for name, path in outputs.items()}
    for name, keys in NUMBERS.items():
        values += [value["value"] if isinstance(value := scores[name][key], dict) else value for key in keys]
    text = files.canonical_json([*kinds, structure(scores)])
    return hashlib.sha256(text.encode()).hexdigest()[:16], values


def test_scoring_stages_write_what_their_versions_wrote(found):
    kind, values = found
    print(f'    "structure": "{kind}",\n    "numbers": {[float(f"{value:.4g}") for value in values]},')
    advice = "raise the version in dmd/config/rule_table.py if this change is meant, and copy the lines printed above"
    assert GOLDEN["versions"] == {name: VERSIONS[name] for name in GOLDEN["versions"]}, advice
    assert kind == GOLDEN["structure"], f"structure differs: {advice}"
    assert values == pytest.approx(GOLDEN["numbers"], rel=2e-3, abs=1e-5), advice
