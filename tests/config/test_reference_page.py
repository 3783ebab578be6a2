"""The tracked page of all keys is the generated one, and leaves no key without a meaning."""

import re

from dmd.config import reference_page
from dmd.config.experiment import Experiment, File
from dmd.config.schema import definitions


def test_tracked_reference_is_the_generated_one():
    assert reference_page.PATH.read_text() == reference_page.text(), "run python -m dmd.config.reference_page"


def test_every_key_of_every_section_stands_there_with_its_meaning():
    page = reference_page.text()
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert all(len(row) >= 4 and row[-1].strip() for row in rows), [row for row in rows if not row[-1].strip()]
    models, parts = reference_page.Page().headings, page.split("\n## ")[1:]
    schemas = definitions([Experiment, File])
    assert len(models) == len(parts) == len(schemas)
    for model, part in zip(models, parts, strict=True):
        listed = set(re.findall(r"^\| `(\w+)` \|", part, re.M))
        keys = schemas[model.__name__].get("properties", {})
        selected = {key for key in ("kind", "name") if "const" in keys.get(key, {})}  # its value is in the heading
        assert listed | selected >= keys.keys(), (model, keys.keys() - listed)
