"""The tracked page of all keys is the generated one, and leaves no key without a meaning."""

import re

from dmd.config import reference_page
from dmd.config.experiment import Experiment, File
from dmd.config.schema import definitions

TAGS = {"kind", "name"}  # stand in headings where they choose a section


def test_tracked_reference_is_the_generated_one():
    assert reference_page.PATH.read_text() == reference_page.text(), "run python -m dmd.config.reference_page"


def test_every_key_of_every_section_stands_there_with_its_meaning():
    page = reference_page.text()
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert all(len(row) >= 4 and row[-1].strip() for row in rows), [row for row in rows if not row[-1].strip()]
    listed = {row[0].strip(" `") for row in rows}
    assert listed >= {key for part in definitions([Experiment, File]).values() for key in part["properties"]} - TAGS
    assert len(re.findall("^## ", page, re.M)) == len(definitions([Experiment, File]))
