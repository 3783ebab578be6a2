# Look-up of files that no job makes: images, teachers of others, inputs from outside.
import functools
import re


def given(section, *keys):
    """The file or files from outside that the config names under `section` or a key below it, or nothing."""

    def look_up(wildcards):
        entry = EXPERIMENTS.section(wildcards.experiment, section)
        for key in keys:
            entry = getattr(entry, key, None)
        place = ".".join([wildcards.experiment, section, *keys])
        if hasattr(entry, "files"):
            return [present(each, f"{place}.files[{number}]") for number, each in enumerate(entry.files)]
        return present(entry, place) if hasattr(entry, "file") else []

    return look_up


def present(entry, place):
    """The file of an entry of the config; stops unless it is there or can be fetched."""
    file, sha256 = entry.file, entry.sha256
    if file not in MISSING and not os.path.exists(file):
        refuse(
            f"{place}.file: {file} is missing; put the file{f' with sha256 {sha256}' if sha256 else ''} there, "
            "or name its URL below inputs"
        )
    return file


def missing_inputs():
    """Inputs by file that are not there now. Only these have a job: what is in place is a source, never an output."""
    return {entry.file: entry for entry in SETTINGS.inputs.values() if not os.path.exists(entry.file)}


def fetch_spec(wildcards):
    """Where a missing input comes from, and what is known of it."""
    entry = MISSING[wildcards.file]
    return canonical_json({"url": entry.url, "sha256": entry.sha256, "size": entry.size})


def saved(section):
    """Configurations and weights in the folder of a section, as diffusers saved them, or nothing."""

    def look_up(wildcards):
        folder = getattr(EXPERIMENTS.section(wildcards.experiment, section), "folder", None)
        if folder is None:
            return []
        found = [path for kind in ("json", "safetensors", "txt") for path in sorted(Path(folder).rglob(f"*.{kind}"))]
        if not any(path.suffix == ".safetensors" for path in found):
            refuse(f"{wildcards.experiment}.{section}.folder: {folder} is no folder with JSON and safetensors files")
        return [str(path) for path in found if not path.name.startswith(".")]

    return look_up


def source(section):
    """`--source PATH` where a section names a file or folder, else nothing."""

    def look_up(wildcards):
        entry = EXPERIMENTS.section(wildcards.experiment, section)
        path = getattr(entry, "file", None) or getattr(entry, "folder", None)
        return f"--source {shlex.quote(path)}" if path else ""

    return look_up


def clip_files(wildcards):
    """Configurations and weights of CLIP, or nothing."""
    return saved("evaluate.clip")(wildcards) if EXPERIMENTS.judged(wildcards.experiment) else []


def clip_folder(wildcards):
    """`--clip-network FOLDER` where CLIP sees the samples, else nothing."""
    if not EXPERIMENTS.judged(wildcards.experiment):
        return ""
    return f"--clip-network {shlex.quote(EXPERIMENTS.section(wildcards.experiment, 'evaluate.clip').folder)}"


def distance_weights(wildcards):
    """Weights of the distance of images that a method's losses use, or nothing."""
    entry = EXPERIMENTS.section(wildcards.experiment, "distill").method.distance()
    return present(entry, f"{wildcards.experiment}.distill.method") if getattr(entry, "file", None) else []


def dataset(wildcards):
    """Folders, label file and newest file of a dataset of images.

    A file that is added, removed or replaced changes its folder; one that is overwritten in place is the newest then.
    """
    entry = EXPERIMENTS.whole(wildcards.experiment).dataset
    if entry is None or entry.kind != "images":
        return []
    if not os.path.isdir(entry.folder):
        refuse(f"{wildcards.experiment}.dataset.folder: {entry.folder} is not a folder")
    files = [entry.labels] if entry.labels.endswith(".csv") else []
    return files + contents(entry.folder)


@functools.cache
def contents(folder):
    """All folders below a folder, itself first, and the file that was written last; hidden files do not count."""
    folders, newest = [], (0, None)
    for place, _, names in os.walk(folder):
        folders.append(place)
        paths = [os.path.join(place, name) for name in names if not name.startswith(".")]
        newest = max([newest, *((os.stat(path).st_mtime_ns, path) for path in paths if os.path.isfile(path))])
    return sorted(folders) + list(filter(None, newest[1:]))


def trained_on(wildcards):
    """The teacher whose images the reference is of, where files of images were read for both."""
    whole = EXPERIMENTS.whole(wildcards.experiment)
    images = getattr(whole.dataset, "kind", "") == "images" and getattr(whole.teacher, "kind", "") == "train"
    return artifact("teacher")(wildcards) if images and compared_with(wildcards) else []


def compared_with(wildcards):
    """What the real images are read from; nothing where their moments are given."""
    return [] if EXPERIMENTS.section(wildcards.experiment, "reference").moments else dataset(wildcards)


MISSING = missing_inputs()


wildcard_constraints:
    file="|".join(map(re.escape, MISSING)) or "(?!)",
