"""Two processes of one job hash each shard once between them; a damaged one stops both by its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

from dmd.data import manifest as manifests
from dmd.data import shared_verification
from dmd.data.pairs import PairReader
from dmd.jobs import processes
from tests.data import reading_process
from tests.data.test_pairs import build

ROOT = Path(__file__).resolve().parents[2]


def read_by_two(folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Two processes, and the store that torchrun would hold."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    given[processes.LAUNCHER] = str(os.getpid())
    environment = {**os.environ, **given, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, reading_process.__file__, str(folder / "manifest.parquet")]
    workers = [
        subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "RANK": str(rank)}
        )
        for rank in range(2)
    ]
    answers = [worker.communicate(timeout=180) for worker in workers]
    return [
        subprocess.CompletedProcess(line, worker.returncode, *answer)
        for worker, answer in zip(workers, answers, strict=True)
    ]


def test_two_processes_hash_each_shard_once(tmp_path):
    pairs = build(tmp_path, num_shards=12, size=3)
    first, second = (json.loads(answer.stdout) for answer in read_by_two(tmp_path))
    assert sorted(first["hashed"] + second["hashed"]) == [f"{number:05d}.tar" for number in range(12)]
    assert first["hashed"] and second["hashed"]
    one, other = PairReader(pairs, seed=0).batch(0, 72)[1].split(36)
    assert first["labels"] == second["labels"] == (one + other).tolist()


def test_a_damaged_shard_stops_both_by_its_name(tmp_path):
    build(tmp_path, num_shards=2, size=3)
    path = tmp_path / "00001.tar"
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)
    for answer in read_by_two(tmp_path):
        assert answer.returncode == 1 and f"{path} is damaged: sha256" in answer.stderr


def test_alone_a_process_asks_nobody(monkeypatch, tmp_path):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    build(tmp_path, num_shards=2, size=3)
    reader = PairReader(manifests.read(tmp_path / "manifest.parquet"), seed=0, verify=shared_verification.verify_once())
    assert sorted(reader.batch(0, 6)[1].tolist()) == list(range(6))


def test_a_shard_that_was_checked_is_not_checked_again_by_a_later_process():
    store, calls = distributed.HashStore(), []
    for _ in range(3):
        shared_verification._SharedVerifier(store)(7, lambda: calls.append(7))
    assert calls == [7]

    store.add("dmd/shard/9/claims", 1)  # of a process whose file system does not answer
    with pytest.raises(ValueError, match="shard 9: the process that verifies it has not ended in 0.1 s"):
        shared_verification._SharedVerifier(store, patience=0.1)(9, lambda: calls.append(9))
    assert calls == [7]

    def damaged() -> None:
        raise ValueError("00008.tar is damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="00008.tar is damaged"):
            shared_verification._SharedVerifier(store)(8, damaged)
