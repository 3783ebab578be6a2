"""Files from outside: which are read, what is refused by name, and what changes the digest that reruns a job."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dmd.config import source_files
from dmd.config.messages import ConfigError

FUTURE = 4_000_000_000 * 10**9


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of one image each, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("cats/1.png", "dogs/2.JPG"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_bytes(b"first")
    return Path("photos")


def test_links_to_images_and_folders_are_followed(photos: Path):
    Path("elsewhere/deeper").mkdir(parents=True)
    Path("elsewhere/deeper/3.png").touch()
    Path("one.png").touch()
    (photos / "birds").symlink_to("../elsewhere")
    (photos / "fish").mkdir()
    (photos / "fish/nested").symlink_to("../../elsewhere/deeper")
    (photos / "cats/4.png").symlink_to("../../one.png")
    Path("link").symlink_to("photos")
    expected = ["birds/deeper/3.png", "cats/1.png", "cats/4.png", "dogs/2.JPG", "fish/nested/3.png"]
    assert source_files.images(photos).names == source_files.images("link").names == expected
    before = source_files.images(photos).digest
    os.utime("one.png", ns=(1, 1))
    assert source_files.images(photos).digest != before


def loop(photos: Path) -> None:
    (photos / "cats/all").symlink_to("..")


def loop_of_two(photos: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (photos / one).mkdir()
        (photos / one / "over").symlink_to(f"../{other}")


def many_ways(photos: Path) -> None:
    """2^20 paths to one folder."""
    for level in range(20):
        (photos / f"z{level}").mkdir()
        for side in "ab":
            (photos / f"z{level}" / side).symlink_to(f"../z{level + 1}" if level < 19 else "../cats")


def deep(photos: Path) -> None:
    photos.joinpath(*["d"] * 150).mkdir(parents=True)


def a_socket(photos: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(photos / "x.png"))


def gone(photos: Path, name: str) -> None:
    (photos / name).symlink_to("nowhere")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (loop, "photos/cats/all goes in a circle: it is a link to .*/photos, a folder that holds it"),
        (loop_of_two, "photos/a/over/over goes in a circle"),
        (many_ways, "links lead to the same folder in more than 100 ways"),
        (deep, "d/d: folders are nested more than 100 deep"),
        (lambda photos: gone(photos, "x.png"), "photos/x.png is a link to nowhere, which is missing"),
        (lambda photos: gone(photos, "birds"), "photos/birds is a link to nowhere, which is missing"),
        (lambda photos: (photos / "x.png").symlink_to("x.png"), "photos/x.png cannot be read: Too many levels"),
        (lambda photos: (photos / "birds").symlink_to("birds"), "photos/birds cannot be read: Too many levels"),
        (lambda photos: os.mkfifo(photos / "x.png"), "photos/x.png is a named pipe, not a file"),
        (a_socket, "photos/x.png is a socket, not a file"),
        (lambda photos: (photos / "x.png").symlink_to("/dev/zero"), "photos/x.png is a device, not a file"),
        (lambda photos: (photos / "x.png").mkdir(), "photos/x.png is a folder, not a file"),
        (
            lambda photos: (photos / "up").symlink_to("../results/a"),
            "photos/up is no folder of images: it lies in .*/re",
        ),
        (
            lambda photos: (photos / "up").symlink_to(".."),
            "photos/up is no folder of images: it is /",
        ),
    ],
)
def test_what_cannot_be_read_is_named_and_not_passed_over(photos: Path, spoil: Callable[[Path], None], message: str):
    Path("results/a").mkdir(parents=True)
    spoil(photos)
    with pytest.raises(ConfigError, match=message):
        source_files.images(photos)


@pytest.mark.parametrize("name", ["cats", "cats/1.png"])
def test_what_may_not_be_read_is_named(photos: Path, name: str):
    """In a process of its own, which gives up the rights of root where it has them."""
    Path.cwd().chmod(0o755)
    (photos / name).chmod(0)
    if not (child := os.fork()):
        said = ""
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            source_files.images("photos")
        except ConfigError as error:
            said = str(error)
        os._exit(0 if re.search(f"photos/{name} .*cannot be read: Permission denied", said) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (photos / name).chmod(0o700)


@pytest.mark.parametrize("folder", [".", "..", "/", "results", "results/a", ".snakemake/log", "photos/..", "here"])
def test_folder_with_pictures_of_the_workflow_is_refused(photos: Path, folder: str):
    for each in ("results/a", ".snakemake/log"):
        Path(each).mkdir(parents=True)
    Path("here").symlink_to(".")
    with pytest.raises(
        ConfigError, match=f"{folder} is no folder of images: it (is|holds|lies in) /.*own folder|of th"
    ):
        source_files.images(folder)


@pytest.mark.parametrize(("place", "kind"), [("absent", "missing"), ("photos/cats/1.png", "a file")])
def test_what_is_no_folder_is_refused(photos: Path, place: str, kind: str):
    with pytest.raises(ConfigError, match=f"^{place} is not a folder: it is {kind}$"):
        source_files.images(place)


def same_size(image: Path) -> None:
    status = image.stat()
    image.write_bytes(b"other")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))


def same_time(image: Path) -> None:
    status, new = image.stat(), image.with_name("new")
    new.write_bytes(b"other")
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(image)


def longer(image: Path) -> None:
    status = image.stat()
    image.write_bytes(b"longer")
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        same_size,
        same_time,
        longer,
        lambda image: os.utime(image, ns=(0, 0)),
        lambda image: os.utime(image, ns=(FUTURE, FUTURE)),
        lambda image: image.rename(image.with_name("0.png")),
        lambda image: image.with_name("0.png").touch(),
        Path.unlink,
    ],
)
def test_change_of_an_image_changes_the_digest_whatever_its_time(photos: Path, change: Callable[[Path], None]):
    before = source_files.images(photos).digest
    assert source_files.images(photos).digest == before
    change(photos / "cats/1.png")
    assert source_files.images(photos).digest != before
    file = "photos/dogs/2.JPG"
    before = source_files.identity([file])
    change(Path(file))
    assert source_files.identity([file]) != before or change.__name__ == "<lambda>" and Path(file).stat().st_mtime > 9


def test_other_files_change_nothing_and_are_counted(photos: Path):
    before = source_files.images(photos)
    for name in (".DS_Store", "cats/._1.png", "Thumbs.db", "cats/desktop.ini", "Thumbs2.db", "README", ".git/x.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    os.mkfifo(photos / "pipe")
    after = source_files.images(photos)
    assert (after.digest, after.names) == (before.digest, before.names)
    assert after.passed_over == {"hidden": 3, ".db": 2, ".ini": 1, "none": 2}


ODD = ["{word}", "{}", "{{a}}", "a\nb", "-rf", "it's", '"', "$HOME", "a b", "\x1b[2J", "ü", os.fsdecode(b"\xe9\xff")]


@pytest.mark.parametrize("name", ODD)
def test_any_name_is_listed_and_shown_in_one_line(photos: Path, name: str):
    (photos / name).mkdir()
    (photos / name / f"{name}.png").touch()
    assert f"{name}/{name}.png" in source_files.images(photos).names
    os.mkfifo(photos / name / "x.png")
    with pytest.raises(ConfigError) as caught:
        source_files.images(photos)
    assert str(caught.value).isprintable() and "x.png is a named pipe" in str(caught.value)


def test_fetched_file_is_known_until_it_is_replaced(photos: Path):
    file = "photos/a.bin"
    Path(file).write_bytes(b"abc")
    assert not source_files.was_fetched(file)
    for content, fetched in (('{"url": "u", "size": 3}', True), ('{"size": 3}', False), ("[1]", False), ("{", False)):
        Path("photos/.a.bin.json").write_text(content)
        os.utime(file)
        assert source_files.was_fetched(file) == fetched, content
    Path("photos/.a.bin.json").write_text('{"url": "u", "size": 3}')
    for time in (0, FUTURE):
        os.utime(file, ns=(time, time))
        assert not source_files.was_fetched(file)
