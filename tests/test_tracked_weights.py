"""Trained weights in the repository stay small."""

from pathlib import Path

RESOURCES = Path(__file__).parents[1] / "workflow" / "resources"


def test_all_weights_together_have_at_most_25_megabytes():
    sizes = [path.stat().st_size for path in RESOURCES.rglob("*.safetensors")]
    assert sizes and sum(sizes) <= 25e6
