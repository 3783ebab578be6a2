"""Inputs from outside in the workflow: missing ones are fetched, those in place are nobody's output."""

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmd.config import source_files
from tests.file_server import FileServer, serving
from tests.workflow.conftest import SMALL, jobs, make, snakemake, write_config
from tests.workflow.photos import write_photos
from tests.workflow.test_plan import script
from workflow.scripts import plan, prune

CONTENT = b"VGG16 in all but its weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = "inputs/vgg16.pth"
GENERATOR = "results/small/distill/generator.safetensors"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(FileServer(CONTENT)) as served:
        yield served


def configured(folder: Path, **entry: Any) -> None:
    """The small experiment with LPIPS, whose trunk is the input `vgg16`; another input that nothing names."""
    config = copy.deepcopy(SMALL)
    config["experiments"]["small"]["distill"]["method"]["regression_distance"] = {
        "kind": "lpips",
        "file": FILE,
        "size": 16,
    }
    config["inputs"] = {
        "vgg16": {"file": FILE, "sha256": None, **entry},
        "other": {"file": "inputs/other.pkl", "url": "http://127.0.0.1:9/other.pkl", "sha256": None},
    }
    write_config(folder, config)


def dry(folder: Path) -> str:
    answer = snakemake(folder, "--dry-run", "--forceall", GENERATOR)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_dry_run_lists_exactly_the_missing_files(tmp_path: Path):
    configured(tmp_path, url="http://127.0.0.1:9/vgg16.pth", size=3 * 2**20)
    write_photos(tmp_path / "photos")
    found = dry(tmp_path)
    assert jobs(found)["fetch"] == 1 and f"output: {FILE} " in found and "other.pkl" not in found
    table, _, missing = script(plan, tmp_path, "small").partition("\n\nMissing, downloaded by a run (1):\n")
    assert missing.startswith(f"  {FILE}\n") and "from: http://127.0.0.1:9/vgg16.pth\n" in missing
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    assert rows["fetch"][1:] == ["1", "0", "0.0", "min", "3.0", "MiB"] and rows["all"][1] == "11"
    configured(tmp_path, url="http://127.0.0.1:9/vgg16.pth")
    assert ">= 0.0 MiB" in next(line for line in script(plan, tmp_path, "small").splitlines() if "fetch" in line)
    (tmp_path / "inputs").mkdir()
    (tmp_path / FILE).write_bytes(CONTENT)
    assert jobs(dry(tmp_path))["fetch"] == 0


def test_missing_file_is_fetched_once_and_then_left_alone(tmp_path: Path, server: FileServer):
    configured(tmp_path, url=server.url, sha256=DIGEST)
    make(tmp_path, "--cores", "1", FILE)
    path = tmp_path / FILE
    before = path.stat()
    assert path.read_bytes() == CONTENT and len(server.asked) == 1
    assert source_files.was_fetched(str(path))  # so it stays an input of its readers, which need not run again
    assert f"sha256 {DIGEST}" in (tmp_path / "results/logs/fetch" / f"{FILE}.log").read_text()
    configured(tmp_path, url=f"{server.url}?elsewhere", sha256="0" * 64)  # whoever reads the file will refuse it
    write_photos(tmp_path / "photos")
    assert jobs(dry(tmp_path))["fetch"] == 0 and jobs(dry(tmp_path))["distill"] == 1
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert len(server.asked) == 1
    assert script(prune, tmp_path).startswith("0 files")


def test_stage_refuses_a_file_that_changed_after_it_was_fetched(finished: Path, broken: Path, server: FileServer):
    configured(broken, url=server.url)
    make(broken, "--cores", "1", FILE)
    (broken / FILE).write_bytes(CONTENT[::-1])
    answer = snakemake(broken, "--cores", "1", GENERATOR)
    errors = [line for line in answer.stderr.splitlines() if " error: " in line]
    assert answer.returncode != 0 and len(errors) == 1 and f"{FILE} has changed: sha256" in errors[0]
    assert (broken / FILE).read_bytes() == CONTENT[::-1]


def test_unreachable_file_ends_the_run_with_one_message(tmp_path: Path, server: FileServer):
    server.status = 404
    configured(tmp_path, url=server.url, sha256=DIGEST)
    answer = snakemake(tmp_path, "--cores", "1", FILE)
    errors = [line for line in answer.stderr.splitlines() if " error: " in line]
    assert answer.returncode != 0 and len(errors) == 1 and "Traceback" not in answer.stderr
    words = (f"{FILE} is missing", server.url, DIGEST, f"save it as {tmp_path / FILE}")
    assert all(word in errors[0] for word in words)


def test_file_that_appears_after_the_jobs_were_planned_is_kept(tmp_path: Path, server: FileServer):
    server.content = CONTENT[::-1]
    server.before = lambda: (tmp_path / FILE).write_bytes(CONTENT)
    configured(tmp_path, url=server.url, sha256=DIGEST)
    make(tmp_path, "--cores", "1", FILE)
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_password_and_token_of_a_url_are_in_no_output_and_no_file(tmp_path: Path, server: FileServer):
    """Snakemake prints the command of a job that fails, and keeps the parameters of each job."""
    url = server.url.replace("//", "//user:hunter2@") + "?X-Amz-Signature=hunter2"
    configured(tmp_path, url=url, sha256=DIGEST)
    printed = ""
    for status, succeeds in ((404, False), (200, True)):
        server.status = status
        answer = snakemake(tmp_path, "--cores", "1", "--printshellcmds", "--verbose", FILE)
        assert (answer.returncode == 0) == succeeds, answer.stdout + answer.stderr
        printed += answer.stdout + answer.stderr
    assert (tmp_path / FILE).read_bytes() == CONTENT and {*server.paths} == {"/weights.bin?X-Amz-Signature=hunter2"}
    assert server.url.replace("//", "//***@") + "?***" in printed and "hunter2" not in printed
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "config.yaml"]
    for path in kept:
        assert b"hunter2" not in path.read_bytes() and b"aHVudGVyM" not in path.read_bytes(), path  # nor in base64


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": {"file": "results/a"}}, "inputs.a.file: results/a is not below inputs/"),
        (
            {"a": {"file": "inputs/a"}, "b": {"file": "inputs/a"}},
            "inputs.b.file: inputs/a is also the path of inputs.a",
        ),
        ({"a": {"file": "inputs/a", "sha256": ...}}, 'inputs.a: lacks the key "sha256", which has no default'),
        (
            {"a": {"file": "inputs/a", "sha256": "1234567"}},
            "inputs.a.sha256: '1234567' does not match '^[0-9a-f]{8,64}$'",
        ),
    ],
)
def test_contradicting_inputs_are_refused(tmp_path: Path, inputs: dict[str, Any], message: str):
    entries = {name: {"url": "http://127.0.0.1:9/a", "sha256": None, **entry} for name, entry in inputs.items()}
    entries = {name: {key: value for key, value in each.items() if value is not ...} for name, each in entries.items()}
    write_config(tmp_path, {**SMALL, "inputs": entries})
    answer = snakemake(tmp_path, "--dry-run")
    assert answer.returncode != 0 and message in answer.stderr
