"""Shards in a storage: what is read has the recorded digest or is refused, whatever connections and disks do."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmd.data import manifest, remote, retries
from dmd.data.pairs import PairReader
from dmd.data.remote import StorageError
from dmd.data.storage import LOCAL, Settings, Storage
from dmd.data.web_folder import WebFolder
from dmd.provenance import files, record
from dmd.verify import run as verify
from tests import file_server, s3_server
from tests.data.test_pairs import build, labels


@pytest.fixture(scope="module")
def moto():
    with s3_server.serving() as server:
        yield server


@pytest.fixture
def s3(moto, monkeypatch):
    """The server, well behaved; pauses are short."""
    for name, value in s3_server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    moto.drops.clear()
    moto.flips.clear()
    moto.asked.clear()
    return moto


@pytest.fixture
def pairs(tmp_path) -> manifest.Manifest:
    """Four shards of three pairs in results/, with records."""
    (tmp_path / "results").mkdir()
    found = build(tmp_path / "results", num_shards=4, size=3)
    for file in found.shards:
        entry = record.entry(file.sha256, file.size, stage="pairs", inputs={})
        record.write(file.path, entry)
    return found


def place(tmp_path, endpoint: str | None = None) -> Settings:
    folders = {"folder": str(tmp_path / "results"), "cache": str(tmp_path / "cache")}
    return {**folders, "prefix": f"s3://{s3_server.BUCKET}/{tmp_path.name}", "cache_gb": 1.0, "endpoint": endpoint}


@pytest.fixture
def away(s3, tmp_path, pairs) -> Settings:
    """Settings of a storage that has all four shards, which are not here any more."""
    storage = Storage(place(tmp_path, s3.endpoint))
    for file in pairs.shards:
        storage.upload(file.path)
        storage.remove_local(file.path)
    s3.asked.clear()
    return place(tmp_path, s3.endpoint)


def whole_epoch(pairs, source=LOCAL) -> list[int]:
    return labels(PairReader(pairs, seed=0, source=source), 0, 12)


def cached(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_storage_gives_the_pairs_of_the_folder_it_was_filled_from(s3, tmp_path, pairs):
    before = whole_epoch(pairs)
    storage = Storage(place(tmp_path, s3.endpoint))
    for file in pairs.shards:
        storage.upload(file.path)
        storage.remove_local(file.path)
        assert not file.path.exists() and storage.open(file).path.parent == tmp_path / "cache"
    assert whole_epoch(pairs, storage) == before
    assert cached(tmp_path) == sorted(f"{file.sha256}.tar" for file in pairs.shards)


def test_shard_that_is_there_is_not_uploaded_again(s3, tmp_path, pairs):
    storage = Storage(place(tmp_path, s3.endpoint))
    storage.upload(pairs.shards[0].path)
    assert len(s3.tars("PUT")) == 1
    storage.upload(pairs.shards[0].path)
    assert len(s3.tars("PUT")) == 1


def test_upload_that_does_not_arrive_whole_is_refused_and_leaves_no_record(s3, tmp_path, pairs):
    file, storage = pairs.shards[0], Storage(place(tmp_path, s3.endpoint))
    s3.flips["00000.tar"] = 1  # what is read back
    with pytest.raises(ValueError, match=f"{storage.url(file.path)} was damaged in upload: .* not {file.sha256}"):
        storage.upload(file.path)
    assert storage.record(file.path) is None and file.path.exists()
    storage.upload(file.path)
    assert storage.record(file.path)["sha256"] == file.sha256


def test_dropped_connections_go_on_where_they_ended(s3, tmp_path, pairs, away, monkeypatch):
    monkeypatch.setattr(remote, "PIECE", 4096)
    file, lines = pairs.shards[0], []
    s3.drops = [2000] * 13  # the library itself asks three times for a piece, four of which are on their way
    with Storage(away, log=lines.append).open(file) as shard:
        assert files.sha256(shard.path) == file.sha256
    assert "NETWORK_CONNECTION" in "".join(lines) and "trying again" in lines[-1]
    starts = [int(wanted.removeprefix("bytes=").split("-")[0]) for _, _, wanted in s3.asked if wanted]
    assert not s3.drops and max(starts) == file.size - 4096


def test_connections_that_are_always_dropped_end_with_the_url(s3, pairs, away, monkeypatch):
    monkeypatch.setattr(retries, "TRIES", 2)
    s3.drops = [10] * 100
    storage = Storage(away)
    with pytest.raises(ValueError, match=f"{storage.url(pairs.shards[0].path)}: .*2 times in a row"):
        storage.open(pairs.shards[0])


def test_byte_corrupted_on_its_way_is_downloaded_once_more(s3, tmp_path, pairs, away):
    lines: list[str] = []
    s3.flips["00001.tar"] = 1
    with Storage(away, log=lines.append).open(pairs.shards[1]) as shard:
        assert files.sha256(shard.path) == pairs.shards[1].sha256
    assert s3.tars().count(f"{tmp_path.name}/00001.tar") == 2
    assert "00001.tar came with sha256" in lines[-1]


def test_corrupted_shard_is_named_and_never_read(s3, tmp_path, pairs, away):
    s3.flips["00001.tar"] = 99
    storage = Storage(away)
    with pytest.raises(ValueError, match="00001.tar is damaged: its downloads have sha256 [0-9a-f]{64}") as caught:
        PairReader(pairs, seed=0, source=storage).batch(0, 12)
    assert pairs.shards[1].sha256 in str(caught.value) and storage.url(pairs.shards[1].path) in str(caught.value)
    assert f"{pairs.shards[1].sha256}.tar" not in cached(tmp_path)


def test_altered_copy_in_the_cache_is_replaced(s3, tmp_path, pairs, away):
    expected = whole_epoch(pairs, Storage(away))
    copy = tmp_path / "cache" / f"{pairs.shards[2].sha256}.tar"
    body = bytearray(copy.read_bytes())
    body[-1100] ^= 1
    copy.write_bytes(body)
    s3.asked.clear()
    assert whole_epoch(pairs, Storage(away)) == expected
    assert s3.tars() == [f"{tmp_path.name}/00002.tar"] and files.sha256(copy) == pairs.shards[2].sha256


def test_two_processes_share_a_cache_and_download_each_shard_once(s3, tmp_path, pairs, away):
    code = """if True:
        import json, pathlib, sys
        from dmd.data import manifest
        from dmd.data.storage import Storage
        storage = Storage(json.loads(sys.argv[1]))
        storage.prepare(shards := manifest.read(pathlib.Path(sys.argv[2])).shards)
        print([int(item["label"]) for file in shards for _, item in storage.open(file).items()])
    """
    command = [sys.executable, "-c", code, json.dumps(away), str(pairs.path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [json.loads(process.communicate()[0]) for process in processes]
    assert sorted(s3.tars()) == [f"{tmp_path.name}/0000{number}.tar" for number in range(4)]
    assert said == [[*range(12)]] * 2


def test_cache_keeps_to_its_limit_and_drops_the_least_recently_used(s3, tmp_path, pairs, away):
    limit = 2 * pairs.shards[0].size
    storage = Storage({**away, "cache_gb": limit / 1e9})
    for number in (0, 1, 0, 2):
        storage.open(pairs.shards[number]).close()
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= limit
    assert cached(tmp_path) == sorted(f"{pairs.shards[number].sha256}.tar" for number in (0, 2))


def test_cache_smaller_than_the_pairs_gives_the_same_pairs_and_says_so(s3, tmp_path, pairs, away):
    expected, lines = whole_epoch(pairs, Storage(away)), []
    shutil.rmtree(tmp_path / "cache")
    small = Storage({**away, "cache_gb": 2 * pairs.shards[0].size / 1e9}, log=lines.append)
    assert whole_epoch(pairs, small) == expected
    assert lines[0].startswith("WARNING") and "raise it" in lines[0] and len(cached(tmp_path)) == 2


def test_cache_removes_no_file_but_its_own(s3, tmp_path, pairs, away):
    own = tmp_path / "cache" / "thesis.pkl"
    (own.parent / "folder").mkdir(parents=True)
    own.write_bytes(bytes(2 * pairs.shards[0].size))
    small = Storage({**away, "cache_gb": 2 * pairs.shards[0].size / 1e9})
    assert whole_epoch(pairs, small) and own.stat().st_size == 2 * pairs.shards[0].size
    tars = sorted(f"{file.sha256}.tar" for file in pairs.shards)
    assert {"thesis.pkl", "folder"} < {*cached(tmp_path)} and len({*cached(tmp_path)} & {*tars}) == 2


def test_download_that_goes_on_is_counted_once(s3, tmp_path, pairs, away):
    first, second = pairs.shards[:2]
    storage = Storage({**away, "cache_gb": (first.size + second.size) / 1e9})
    storage.open(first).close()
    partial = tmp_path / "cache" / f".{second.sha256}.tar.{second.size}.part"
    partial.write_bytes(s3_bytes(storage, second)[: second.size // 2])
    storage.open(second).close()
    assert cached(tmp_path) == sorted(f"{file.sha256}.tar" for file in (first, second))


def test_cache_too_small_for_one_shard_is_refused(pairs, away):
    storage = Storage({**away, "cache_gb": (pairs.shards[0].size - 1) / 1e9})
    with pytest.raises(ValueError, match="00000.tar has .* GB, but storage.cache_gb is .*: raise it"):
        storage.open(pairs.shards[0])


def test_full_disk_ends_with_one_message_and_leaves_nothing(tmp_path, pairs, away):
    (tmp_path / "cache").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path / "cache")]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        with pytest.raises(OSError, match="no space left in .*cache while downloading s3://.*00000.tar"):
            Storage(away).open(pairs.shards[0])
        assert cached(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "cache")], check=True)


def test_shard_that_is_nowhere_is_named(s3, pairs, away, tmp_path):
    with pytest.raises(ValueError, match="00000.tar is not here but at s3://bucket/"):
        LOCAL.verify(pairs.shards[0])
    elsewhere = Storage({**away, "prefix": "s3://bucket/elsewhere"})
    with pytest.raises(ValueError, match="s3://bucket/elsewhere/00000.tar is not there"):
        elsewhere.open(pairs.shards[0])


def test_digest_that_is_none_names_no_file_of_the_cache(tmp_path, pairs, away):
    file = dataclasses.replace(pairs.shards[0], sha256="../../evil")
    with pytest.raises(ValueError, match="recorded with sha256 '../../evil', which is not a digest"):
        Storage(away).open(file)
    assert not (tmp_path / "cache").exists() and not list(tmp_path.parent.glob("evil*"))


def test_file_outside_the_mirrored_folder_has_no_place(tmp_path):
    with pytest.raises(ValueError, match="is not below"):
        Storage(place(tmp_path)).url(tmp_path / "other.tar")


def test_web_server_gives_the_same_pairs_after_a_dropped_connection(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    expected = whole_epoch(pairs)
    served = {f"/deep/{path.name}": path.read_bytes() for path in (tmp_path / "results").iterdir()}
    with file_server.serving(file_server.FileServer(b"", folder=served, drops=[3000])) as server:
        storage = Storage({**place(tmp_path), "prefix": server.url.replace("weights.bin", "deep")})
        assert storage.record(pairs.shards[0].path)["sha256"] == pairs.shards[0].sha256
        assert storage.sizes([pairs.shards[0].path, tmp_path / "results" / "9.tar"]) == [pairs.shards[0].size, None]
        for file in pairs.shards:
            file.path.unlink()
        assert whole_epoch(pairs, storage) == expected
    with pytest.raises(ValueError, match="read-only"):
        storage.upload(pairs.path)


def test_verify_takes_no_shard_for_lost_that_the_storage_has(s3, tmp_path, pairs, away, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = Path("results/manifest.parquet")
    with record.publish(block, stage="manifest", inputs=record_of(pairs)) as temporary:
        shutil.copy(block, temporary)
    assert verify(folder=Path("results"), delete=True) == {}
    assert f"s3://bucket/{tmp_path.name}: 4 files are only there" in capsys.readouterr().out
    Storage(away)._remote.remove("00003.tar")
    bad = verify(folder=Path("results"), delete=True)
    assert bad[Path("results/00003.tar")] == f"is missing in s3://bucket/{tmp_path.name}, where it was stored"
    assert set(bad) == {Path("results/00003.tar"), block} and not block.exists()


@pytest.mark.parametrize(
    "place", [1, {}, {"prefix": 1, "endpoint": None, "name": "a"}, {"prefix": "s3://a", "name": [1]}]
)
def test_record_that_does_not_say_where_a_shard_is_stored_makes_it_missing(tmp_path, pairs, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = pairs.shards[0]
    entry = record.entry(file.sha256, file.size, stage="pairs", inputs={})
    record.write(file.path, {**entry, "stored": place})
    shutil.move(file.path, tmp_path / "elsewhere.tar")
    assert verify(folder=Path("results"), delete=False)[Path("results/00000.tar")] == "is missing"
    with pytest.raises(ValueError, match="00000.tar is missing"):
        LOCAL.verify(file)


def test_storage_that_does_not_answer_is_not_taken_for_empty(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(retries, "TRIES", 2)
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    path = pairs.shards[0].path
    served = {f"/deep/{each.name}": each.read_bytes() for each in (tmp_path / "results").iterdir()}
    with file_server.serving(file_server.FileServer(b"", folder=served)) as server:
        storage = Storage({**place(tmp_path), "prefix": server.url.replace("weights.bin", "deep")})
        assert storage.record(path) == record.read(path)
        server.head_status = 503
        with pytest.raises(StorageError, match="00000.tar: the server answers 503 .*2 times in a row"):
            storage.record(path)
        server.head_status, server.status = 200, 500
        with pytest.raises(StorageError, match=".00000.tar.json: the server answers 500"):
            storage.record(path)


@pytest.mark.parametrize("num", [None, 5000])
def test_connection_dropped_within_a_small_file_is_made_again(tmp_path, monkeypatch, num):
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    content = os.urandom(1 << 20)
    with file_server.serving(file_server.FileServer(content, drops=[100, 4000])) as server:
        folder = WebFolder(server.url.rpartition("/")[0], log=print)
        assert folder.read("weights.bin", num) == content[:num]
        assert len(server.asked) == 3
        server.drops[:] = [100] * 99
        with pytest.raises(StorageError, match=f"{server.url}: .*{retries.TRIES} times in a row"):
            folder.read("weights.bin", num)


def s3_bytes(storage: Storage, file: manifest.ShardFile) -> bytes:
    return storage.head(file.path, file.size)


def record_of(pairs) -> record.Inputs:
    return {"shards": {os.path.relpath(file.path): file.sha256 for file in pairs.shards}}
