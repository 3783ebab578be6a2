"""A stage that reads a large file from outside ends about a second after SIGTERM, and leaves nothing half-written."""

import csv
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PATIENCE = 120.0  # seconds until the log begins, on a busy machine
CPU_SECONDS = 2.5  # that a stage takes after the signal; of the clock they may be more on a busy machine
SIDE = 11_585  # of an image with the most pixels that are read
SAID = "stopped by SIGTERM before the end: run again, finished files are kept"
Command = list[str]
PROMPTS = {"sha256": None, "column": "prompt", "num": 10, "seed": 0}
IMAGES = {"kind": "images", "resolution": 8, "channels": 3, "resize": "lanczos", "crop": "center"}
IMAGES |= {"num_held_out": 1, "split_seed": 0}


def _prompts(path: Path, kind: str) -> Command:
    spec = json.dumps({"source": {**PROMPTS, "kind": kind}})
    return ["prompts", "--files", str(path), "--output", str(path.parent / "out" / "prompts.parquet"), "--spec", spec]


def _captions(folder: Path) -> Command:
    path = folder / "captions.json"
    text = [f'{{"image_id":{number},"id":{number},"caption":"a picture of it"}}' for number in range(1_500_000)]
    path.write_text(f'{{"annotations":[{",".join(text)}]}}')
    return _prompts(path, "coco")


def _table(folder: Path) -> Command:
    """One row group whose dictionary has every row, which is looked through for each batch of rows."""
    texts = [f"prompt {number} of a picture, with more words" for number in range(800_000)]
    pq.write_table(pa.table({"prompt": texts}), folder / "prompts.parquet", dictionary_pagesize_limit=1 << 30)
    return _prompts(folder / "prompts.parquet", "file")


def _images(folder: Path, *, labels: str = "none") -> Command:
    spec = {"dataset": {**IMAGES, "folder": str(folder / "photos"), "labels": labels}, "shard_size": 4}
    return ["images", "--output", str(folder / "out" / "manifest.parquet"), "--spec", json.dumps(spec)]


def _large_images(folder: Path) -> Command:
    (folder / "photos").mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(folder / "photos/0.png", compress_level=1)
    for number in range(1, 8):
        os.link(folder / "photos/0.png", folder / f"photos/{number}.png")
    return _images(folder)


def _labels(folder: Path) -> Command:
    (folder / "photos").mkdir()
    names = [f"{number}.png" for number in range(2)]
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / "photos" / name)
    with open(folder / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["file", "label"], *([name, "1"] for name in names)])
        stream.write(",\n" * 12_000_000)
    return _images(folder, labels=str(folder / "labels.csv"))


def _teacher(folder: Path, kind: str, source: Path) -> Command:
    output, table = folder / "out" / "denoiser.safetensors", folder / "out" / "log.parquet"
    line = ["teacher", "--source", str(source), "--output", str(output), "--table", str(table)]
    return [*line, "--spec", json.dumps({"kind": kind})]


def _pickle(folder: Path) -> Command:
    """An EDM file that is one text, of zeros that take no place on the disk."""
    with open(folder / "edm.pkl", "wb") as stream:
        stream.write(pickle.PROTO + b"\4" + pickle.BINUNICODE8 + struct.pack("<Q", 1 << 30))
        stream.seek(1 << 30, os.SEEK_CUR)
        stream.write(pickle.STOP)
    return _teacher(folder, "edm", folder / "edm.pkl")


def _weights(folder: Path) -> Command:
    torch.save({"time_embed.0.weight": torch.zeros(1 << 29)}, folder / "weights.pt")
    return _teacher(folder, "openai", folder / "weights.pt")


def _safetensors(folder: Path) -> Command:
    """A pipeline of diffusers whose weights are zeros that take no place on the disk."""
    pipeline, num = folder / "pipeline", 1 << 29
    for name in ("unet", "scheduler"):
        (pipeline / name).mkdir(parents=True)
    unet = {"_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [32, 32], "layers_per_block": 1}
    unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}
    (pipeline / "unet/config.json").write_text(json.dumps(unet))
    (pipeline / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (pipeline / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    entry = {"conv_in.weight": {"dtype": "F16", "shape": [num], "data_offsets": [0, 2 * num]}}
    header = json.dumps(entry).encode()
    with open(pipeline / "unet/diffusion_pytorch_model.safetensors", "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(stream.tell() + 2 * num)
    return _teacher(folder, "diffusers", pipeline)


FAST = {"captions": _captions, "table": _table, "images": _large_images, "labels": _labels}
LARGE = {"pickle": _pickle, "weights": _weights, "safetensors": _safetensors}


def ends_well(folder: Path, command: Command, delay: float) -> None:
    """Sends SIGTERM `delay` seconds after the log began."""
    log = folder / "log.txt"
    line = [sys.executable, "-m", f"dmd.stages.{command[0]}", *command[1:], "--log", str(log)]
    process = subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    assert process.poll() is None, process.communicate()
    before = psutil.Process(process.pid).cpu_times()
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert used.ru_utime + used.ru_stime - before.user - before.system < CPU_SECONDS
    assert process.returncode == os.EX_TEMPFAIL and said.splitlines()[-1].endswith(SAID), said
    assert log.read_text().splitlines()[-1].endswith(SAID) and "Traceback" not in said
    assert json.loads((folder / "log.status.json").read_text())["state"] == "stopped"
    assert not [path for path in (folder / "out").rglob("*") if path.suffix != ".lock"]


@pytest.mark.parametrize("make", FAST.values(), ids=FAST)
def test_stage_that_reads_a_large_file_ends_soon_after_sigterm(tmp_path: Path, make: Callable[[Path], Command]):
    ends_well(tmp_path, make(tmp_path), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_stage_that_reads_gigabytes_ends_soon_after_sigterm(
    tmp_path: Path, make: Callable[[Path], Command], delay: float
):
    ends_well(tmp_path, make(tmp_path), delay)


STUCK = """
import hashlib, pathlib, sys
from dmd.jobs import job, signals
from dmd.provenance import files, record

def run(*, output: pathlib.Path) -> None:
    with record.writing(output), files.atomic(output) as temporary:
        temporary.write_text("half of it")
        if "deferred" in output.name:
            with signals.deferred():
                print("begun", flush=True)
                hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
            print("ended", signals.received(), flush=True)
        else:
            print("begun", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})

job.main(run)
"""


@pytest.mark.parametrize("name", ["file", "deferred"])
def test_stage_within_one_long_step_of_a_library_ends_unless_its_end_is_deferred(tmp_path: Path, name: str):
    """pbkdf2_hmac is one step for Python, as the decoding of an image is."""
    rounds = 10_000_000 if name == "deferred" else 1_000_000_000
    script, output = tmp_path / "script.py", tmp_path / "out" / name
    script.write_text(STUCK.format(rounds=rounds))
    line = [sys.executable, str(script), "--output", str(output)]
    environment = ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    printed, said = process.communicate(timeout=PATIENCE)
    if name == "deferred":
        assert printed == "ended SIGTERM\n" and process.returncode == 0, said
        assert output.exists()
        return
    assert process.returncode == os.EX_TEMPFAIL, said
    assert said.splitlines()[-1].endswith(SAID) and "Traceback" not in said
    assert not list((tmp_path / "out").glob(".tmp*")) and not output.exists()
