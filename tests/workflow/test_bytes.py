"""The same configuration gives the same bytes, however many jobs run at a time."""

from pathlib import Path

from tests.workflow.conftest import SMALL, digests, make, write_config
from tests.workflow.photos import write_photos


def test_one_job_at_a_time_makes_the_bytes_of_two(finished: Path, tmp_path: Path):
    write_config(tmp_path, SMALL)
    write_photos(tmp_path / "photos")
    make(tmp_path, "--cores", "1")
    found = digests(tmp_path)
    kinds = {Path(name).suffix for name in found}
    assert kinds == {".safetensors", ".tar", ".parquet", ".json", ".md", ".csv", ".png"}
    assert found == {name: digest for name, digest in digests(finished).items() if not name.startswith("small-csv")}
