"""The same configuration gives the same bytes, however many jobs run at a time."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

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


def test_no_artifact_holds_a_pickle(finished: Path):
    """Each is one of a format that is read above, or text or a picture, and in none of them there is an object."""
    results = finished / "results"
    found = [path for path in results.rglob("*") if path.is_file() and not {"logs", "benchmarks"} & {*path.parts}]
    assert {path.suffix for path in found} <= {".safetensors", ".tar", ".parquet", ".json", ".md", ".csv", ".png"}
    for path in found:
        content = path.read_bytes()
        assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), path
        if path.suffix == ".safetensors":
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F32", "F64", "I64"}
        if path.suffix == ".parquet":
            assert not {"object", "binary"} & {str(column) for column in pq.read_schema(path).types}
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                members = archive.getmembers()
                assert all(member.isreg() and not Path(member.name).is_absolute() for member in members)
                for member in members[1:]:
                    np.load(io.BytesIO(archive.extractfile(member).read()), allow_pickle=False)  # type: ignore[union-attr]
