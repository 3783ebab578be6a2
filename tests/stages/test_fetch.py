"""Stage fetch against a server that may be slow of memory, drop connections or lie."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dmd.config import rule_lookups
from dmd.data import retries
from dmd.provenance import pinned, record
from dmd.stages import fetch
from tests.file_server import FileServer, serving

CONTENT = np.random.default_rng(0).bytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[FileServer]:
    caplog.set_level(logging.INFO, logger="dmd")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    with serving(FileServer(CONTENT)) as served:
        yield served


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "inputs" / "weights.bin"


def hidden(output: Path) -> set[str]:
    return {path.name for path in output.parent.iterdir()} - {output.name}


def part(output: Path) -> Path:
    return output.with_name(f".{output.name}.part")


def leave_part(server: FileServer, output: Path, num: int) -> None:
    """A download that was stopped after `num` bytes."""
    server.drops = [num] + [0] * (retries.TRIES)
    with pytest.raises(ValueError):
        fetch.run(output=output, url=server.url)
    server.drops, server.asked = [], []
    assert part(output).stat().st_size > 0 and not output.exists()


@pytest.mark.parametrize("sha256", [None, DIGEST[:8], DIGEST])
def test_file_comes_whole_with_a_record_and_nothing_else(server, output, sha256):
    fetch.run(output=output, url=server.url, sha256=sha256, size=len(CONTENT))
    assert output.read_bytes() == CONTENT
    assert hidden(output) == {".weights.bin.json"}
    known = record.read(output)
    assert known and (known["sha256"], known["size"], known["url"]) == (DIGEST, len(CONTENT), server.url)
    assert record.check(output) == DIGEST


def test_file_in_place_is_not_downloaded(server, output):
    output.parent.mkdir()
    output.write_bytes(b"put here by hand")
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == b"put here by hand" and hidden(output) == set() and server.asked == []


@pytest.mark.parametrize("status", [200, 404])
def test_file_that_appears_meanwhile_is_kept(server, output, status):
    server.status, server.before = status, lambda: output.write_bytes(b"put here by hand")
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == b"put here by hand" and hidden(output) == set()


def test_dropped_connections_are_resumed_where_they_ended(server, output, caplog):
    server.drops = [150_000, 100_000]
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == CONTENT
    first, *resumed = server.asked
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in resumed]
    assert first is None and len(starts) == 2 and 0 < starts[0] <= 150_000 < starts[1] <= 250_000
    assert "trying again" in caplog.text


def test_a_server_without_ranges_starts_from_zero(server, output):
    server.ranges, server.drops = False, [150_000, 150_000]
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == CONTENT and len(server.asked) == 3


def test_a_server_that_names_no_version_starts_from_zero(server, output):
    server.tag, server.drops = None, [150_000]
    fetch.run(output=output, url=server.url)
    assert output.read_bytes() == CONTENT and server.asked == [None, None]


def test_a_later_run_goes_on_from_what_the_first_left(server, output):
    leave_part(server, output, 150_000)
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == CONTENT and hidden(output) == {".weights.bin.json"}
    assert len(server.asked) == 1 and server.asked[0] is not None


@pytest.mark.parametrize("careful", [True, False])
def test_a_file_that_changed_on_the_server_starts_from_zero(server, output, careful):
    leave_part(server, output, 150_000)
    server.content, server.tag, server.careful = CONTENT[::-1], '"two"', careful
    fetch.run(output=output, url=server.url)
    assert output.read_bytes() == CONTENT[::-1]


def test_another_url_starts_from_zero(server, output):
    leave_part(server, output, 150_000)
    fetch.run(output=output, url=f"{server.url}?other")
    assert output.read_bytes() == CONTENT and server.asked == [None]


def test_a_damaged_part_is_noticed_and_downloaded_again(server, output):
    leave_part(server, output, 150_000)
    with open(part(output), "r+b") as stream:
        stream.write(b"damage")
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == CONTENT and len(server.asked) == 2 and server.asked[1] is None


def test_a_whole_part_needs_no_server(server, output):
    leave_part(server, output, 150_000)
    part(output).write_bytes(CONTENT)
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == CONTENT and server.asked == []


def test_corrupted_bytes_are_refused_and_discarded(server, output):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(ValueError, match=f"has sha256 .* inputs pins {DIGEST}.*discarded"):
        fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert not output.exists() and hidden(output) == set()


def test_another_size_is_refused_before_it_is_downloaded(server, output):
    with pytest.raises(ValueError, match="offers 400000 bytes, the file has 5"):
        fetch.run(output=output, url=server.url, size=5)
    assert not output.exists() and not part(output).exists()


@pytest.mark.parametrize("status", [206, 416])
def test_a_part_that_nobody_asked_for_is_no_file(server, output, status):
    server.status = status
    with pytest.raises(ValueError, match=f"the server answers {status}"):
        fetch.run(output=output, url=server.url)
    assert not output.exists() and hidden(output) == set()


def test_a_web_page_is_no_file(server, output):
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="sends a web page in place of the file"):
        fetch.run(output=output, url=server.url)
    assert not output.exists() and hidden(output) == set()


def test_size_from_the_configuration_ends_a_body_without_length(server, output):
    server.length, server.drops = False, [150_000]
    fetch.run(output=output, url=server.url, size=len(CONTENT))
    assert output.read_bytes() == CONTENT and len(server.asked) == 2
    output.unlink()
    with pytest.raises(ValueError, match="sends more than the 399999 bytes that the file has"):
        fetch.run(output=output, url=server.url, size=len(CONTENT) - 1)
    assert not output.exists() and not part(output).exists()


@pytest.mark.parametrize(("length", "sha256", "size"), [(True, None, None), (False, DIGEST, None), (False, None, 1)])
def test_only_a_file_of_which_nothing_is_known_is_warned_of(server, output, caplog, length, sha256, size):
    server.length = length
    fetch.run(output=output, url=server.url, sha256=sha256, size=size and len(CONTENT))
    assert "WARNING" not in caplog.text
    server.length = False
    fetch.run(output=output.with_name("other"), url=server.url)
    assert "WARNING:" in caplog.text and "sends no length" in caplog.text


@pytest.mark.parametrize("sha256", [None, DIGEST[:8]])
def test_another_file_than_came_before_is_refused_until_its_record_is_removed(server, output, sha256):
    pinned.write_record(output, DIGEST[:8] + "0" * 56, len(CONTENT))
    with pytest.raises(ValueError, match=f"sha256 {DIGEST}, but {DIGEST[:8]}0+ was recorded .* remove .*.bin.json if"):
        fetch.run(output=output, url=server.url, sha256=sha256)
    assert not output.exists() and hidden(output) == {".weights.bin.json"}
    record.sidecar(output).unlink()
    fetch.run(output=output, url=server.url, sha256=sha256)
    fetch.run(output=output, url=server.url, sha256=sha256)
    assert output.read_bytes() == CONTENT and record.check(output) == DIGEST


def test_whole_digest_decides_against_what_was_recorded(server, output):
    pinned.write_record(output, "0" * 64, 5)
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == CONTENT and record.check(output) == DIGEST


def test_a_connection_that_never_holds_ends_with_one_message(server, output):
    server.drops = [150_000] + [0] * 9
    with pytest.raises(ValueError, match="5 times in a row.*Run again to resume"):
        fetch.run(output=output, url=server.url)
    assert len(server.asked) == 1 + retries.TRIES - 1 and part(output).stat().st_size > 0


@pytest.mark.parametrize(("sha256", "words"), [(DIGEST, f"sha256 {DIGEST}"), (None, "sha256 unknown")])
def test_without_a_network_the_message_says_what_belongs_where(server, output, sha256, words):
    nowhere = "http://127.0.0.1:9/weights.bin"
    with pytest.raises(ValueError) as caught:
        fetch.run(output=output, url=nowhere, sha256=sha256)
    for word in (f"{output} is missing", nowhere, words, f"save it as {output}", "refused"):
        assert word in str(caught.value)


def test_a_missing_page_is_not_tried_again(server, output):
    server.status = 404
    with pytest.raises(ValueError, match="404 Not Found"):
        fetch.run(output=output, url=server.url)
    assert len(server.asked) == 1


def test_a_busy_server_is_tried_again(server, output):
    server.status = 503
    with pytest.raises(ValueError, match="503 Service Unavailable"):
        fetch.run(output=output, url=server.url)
    assert len(server.asked) == retries.TRIES


def test_a_kill_leaves_a_part_that_the_next_run_completes(server, output):
    server.drops = [200_000] + [0] * 9  # then the stage waits before it tries again
    line = [
        sys.executable,
        "-m",
        "dmd.stages.fetch",
        "--output",
        str(output),
        "--spec",
        json.dumps({"url": server.url}),
    ]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stderr is not None
        next(text for text in process.stderr if "trying again" in text)
        process.kill()
    assert not output.exists() and 0 < part(output).stat().st_size <= 200_000
    server.drops, server.asked = [], []
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert output.read_bytes() == CONTENT and server.asked != [None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("resumed", [True, False])
def test_a_full_disk_names_the_file_and_is_not_kept_full(server, small_disk, tmp_path, length, resumed):
    output = small_disk / "weights.bin"
    if resumed:
        leave_part(server, tmp_path / "large" / "weights.bin", 150_000)
        shutil.copytree(tmp_path / "large", small_disk, dirs_exist_ok=True)
    server.length = length
    before = server.asked[:]
    with pytest.raises(OSError, match=f"no space left while downloading {output} from {server.url} .*: .*run again"):
        fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert len(server.asked) == len(before) + 1  # a retry would not help
    assert [path.name for path in small_disk.rglob("*") if path.stat().st_size] == []


SECRET = "hunter2"


@pytest.mark.parametrize("given", ["in the environment", "in the command"])
@pytest.mark.parametrize("works", [True, False])
def test_password_and_query_of_a_url_are_used_and_kept_nowhere(server, output, monkeypatch, caplog, given, works):
    url = server.url.replace("//", f"//user:{SECRET}@") + f"?token={SECRET}&X-Amz-Signature={SECRET}"
    shown = server.url.replace("//", "//***@") + "?***"
    if given == "in the environment":
        monkeypatch.setenv(rule_lookups.SECRET_URLS, json.dumps({str(output): url}))
    server.drops, server.status = [150_000], 200 if works else 404
    said = ""
    try:
        fetch.run(output=output, url=shown if given == "in the environment" else url, size=len(CONTENT))
        known = record.read(output)
        assert known and known["url"] == shown
    except ValueError as error:
        said = str(error)
    assert output.exists() == works and (works or shown in said)
    assert server.paths and all(path.endswith(f"?token={SECRET}&X-Amz-Signature={SECRET}") for path in server.paths)
    kept = [path.read_bytes() for path in output.parent.iterdir() if path != output]
    assert SECRET not in said and not any(SECRET.encode() in each for each in kept)
    assert SECRET not in caplog.text and shown in caplog.text


def test_the_note_of_a_download_holds_no_secret(server, output):
    server.url += f"?token={SECRET}"
    leave_part(server, output, 150_000)
    assert not any(SECRET.encode() in path.read_bytes() for path in output.parent.iterdir())
    fetch.run(output=output, url=server.url, sha256=DIGEST)
    assert server.asked != [None] and output.read_bytes() == CONTENT


def test_of_two_jobs_that_make_the_same_file_the_second_waits_and_ends_well(server, output):
    """Snakemake removes the outputs of a job that failed, whoever made them."""
    asked, go_on = threading.Event(), threading.Event()
    server.before = lambda: asked.set() or go_on.wait(60)
    spec = json.dumps({"url": server.url, "sha256": DIGEST})
    line = [sys.executable, "-m", "dmd.stages.fetch", "--output", str(output), "--spec", spec]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as first:
        assert asked.wait(60)
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as second:
            assert f"another process is writing {output}: waiting" in second.stderr.readline()
            go_on.set()
            assert f"another process has made {output} meanwhile" in second.communicate()[1]
        first.communicate()
    assert first.returncode == second.returncode == 0
    assert output.read_bytes() == CONTENT and len(server.asked) == 1
