"""A file system that is full for real: one line names the file, nothing half-written keeps it full, and it goes on."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmd.data import manifest
from dmd.provenance import files
from dmd.stages import pairs, prompts
from dmd.train.checkpoints import clear
from tests.stages.test_prompts import LAION, table
from tests.trainings import NAMES, changed, checkpoints, digests, distil

pytestmark = pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
Resize = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A folder that is a file system of its own, and what changes its size, such as "100k"."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    yield folder, resize
    subprocess.run(["umount", "--lazy", folder], check=True)


def refused(folder: Path, error: OSError) -> str:
    """The path, below the folder, that the one line of an error names; nothing half-written is left."""
    before, _, advice = str(error).partition(": nothing was written; ")
    assert advice == "free some space and run again" and "\n" not in before
    named = Path(before.removeprefix("no space left while writing "))
    assert not list(folder.rglob(".tmp*"))
    return str(named.relative_to(folder))


def test_training_goes_on_from_its_checkpoint_once_there_is_space(
    disk, teacher_file, manifest_file, distill_section, distilled_folder
):
    """Whatever is written when the disk is full: a checkpoint, a picture, the log, the generator."""
    folder, resize = disk
    named, size = [], 8
    while not (folder / NAMES[0]).exists():
        resize(f"{size}k")
        try:
            distil(folder, changed(distill_section, grid_every=1), teacher=teacher_file, manifest=manifest_file)
        except OSError as error:
            named.append(refused(folder, error))
        size = size * 3 if size < 200 else size * 3 // 2
        assert size < 100_000
    assert digests(folder) == digests(distilled_folder) and not checkpoints(folder)
    assert {name.partition("/")[0] for name in named} >= {"checkpoints"} and len(named) > 2


def test_shards_go_on_with_the_next_once_there_is_space(disk, teacher_file, pairs_numbers, tmp_path):
    folder, resize = disk
    numbers = pairs_numbers | {"last": 5}
    block, whole = folder / "blocks/b.parquet", tmp_path / "whole/blocks/b.parquet"
    pairs.run(teacher=teacher_file, output=whole, **numbers)
    size = (whole.parent.parent / "00000.tar").stat().st_size
    resize(f"{2 * size + 40_000}")
    with pytest.raises(OSError) as caught:
        pairs.run(teacher=teacher_file, output=block, **numbers)
    name = refused(folder, caught.value)
    assert name.endswith(".tar")
    kept = {path.name: path.stat().st_ino for path in folder.glob("0*.tar")}
    assert kept and name not in kept
    resize("64m")
    pairs.run(teacher=teacher_file, output=block, **numbers)
    assert all((folder / each).stat().st_ino == number for each, number in kept.items())
    found, wanted = (sorted(shard.sha256 for shard in manifest.read(path).shards) for path in (block, whole))
    assert found == wanted


def test_sorting_of_prompts_leaves_nothing_on_a_full_disk(disk, tmp_path):
    folder, resize = disk
    texts = [f"prompt {number} with so many words that it takes some place" for number in range(3000)]
    source = LAION | {"seed": 0, "num": None, "files": [{"sha256": None}]}
    file = table(tmp_path / "laion.parquet", TEXT=texts, AESTHETIC_SCORE=[7.0] * len(texts))
    resize("400k")
    with pytest.raises(OSError) as caught:
        prompts.run(files=[file], output=folder / "prompts.parquet", source=source)
    assert refused(folder, caught.value) == "prompts.parquet"
    resize("64m")
    prompts.run(files=[file], output=folder / "prompts.parquet", source=source)
    assert (folder / "prompts.parquet").exists()


@pytest.mark.skipif(not all(map(shutil.which, ("mkfs.ext4", "e2fsck", "losetup"))), reason="needs tools of ext4")
def test_removed_checkpoints_do_not_come_back_after_an_error_of_the_disk(tmp_path):
    """An error makes ext4 read-only; what no fsync has sent to the disk is lost, also that files were removed."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    with open(image, "wb") as stream:
        stream.truncate(8 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-qF", image], check=True)
    mount = ["mount", "-o", "loop,errors=remount-ro", image, folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        line = ["findmnt", "--noheadings", "--output", "SOURCE", str(folder)]
        device = subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()
        paths = [folder / "checkpoints" / name for name in ("00000220.safetensors", ".00000220.safetensors.json")]
        for path in paths:
            with files.atomic(path) as temporary:
                temporary.write_text("whole")
        clear(folder / "checkpoints")
        Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")
        subprocess.run(["umount", folder], check=True)
        assert subprocess.run(["e2fsck", "-p", image], capture_output=True).returncode in (0, 1)
        subprocess.run(mount, check=True)
        assert not any(path.exists() for path in paths)
    finally:
        subprocess.run(["umount", "--lazy", folder], capture_output=True)
