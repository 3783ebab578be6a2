"""Charts are the same bytes for the same scores, and refuse numbers that do not fit each other."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dmd.data import manifest, shards
from dmd.provenance import files
from dmd.stages import charts

MIXTURE = {
    "kind": "gaussian-mixture",
    "means": [[-1.0, 0.0], [1.0, 0.0]],
    "stds": [0.2, 0.2],
    "weights": [1, 1],
}


def score(folder: Path, name: str, values: list[float], **changes: object) -> Path:
    """A fid.json as stage evaluate writes it."""
    fields = {
        "experiment": name,
        "metric": "fd-digits32",
        "value": sum(values) / len(values),
        "values": values,
        "network_calls": 1,
        "floor": {"mean": 1.1, "std": 0.1, "num": 20},
    }
    path = folder / name / "fid.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields | changes))
    return path


def samples(folder: Path, name: str, points: np.ndarray) -> list[Path]:
    """Manifest of points (N, 2) in one shard, and a classes.json with the share of each mode."""
    shard = folder / name / "00000.tar"
    shard.parent.mkdir(parents=True)
    image = points.astype(np.float32).reshape(-1, 2, 1, 1)
    shards.write(shard, [(i, {"image": each}) for i, each in enumerate(image)], {})
    rows = [
        {
            "key": f"{i:08d}",
            "shard": shard.name,
            "index": i,
            "label": -1,
            "seed": i,
            "offset": place.offset,
            "length": place.length,
            "size": shard.stat().st_size,
            "sha256": files.sha256(shard),
        }
        for i, place in shards.Shard(shard).index()
    ]
    manifest.write(folder / name / "manifest.parquet", pa.Table.from_pylist(rows, manifest.SCHEMA), {})
    classes = folder / name / "classes.json"
    right = int((points[:, 0] > 0).sum())
    classes.write_text(json.dumps({"experiment": name, "counts": [[len(points) - right, right]]}))
    return [classes, folder / name / "manifest.parquet"]


def calls_inputs(folder: Path) -> tuple[list[Path], list[dict]]:
    paths = [score(folder, f"euler{n}", [40.0 / n, 42.0 / n], network_calls=n) for n in (1, 2, 4, 8)]
    paths.append(score(folder, "teacher", [1.4, 1.5], network_calls=35))
    paths += [score(folder, f"digits-seed{n}", [2.0 + n / 5]) for n in range(3)]
    teacher = [[f"euler{n}"] for n in (1, 2, 4, 8)] + [["teacher"]]
    return paths, [
        {"label": "teacher", "points": teacher},
        {"label": "DMD, one step", "points": [[f"digits-seed{n}" for n in range(3)]]},
    ]


def is_picture(path: Path) -> bool:
    """Whether a PNG shows more than one colour, and says nothing of software or date."""
    with Image.open(path) as image:
        return len(image.convert("RGB").getcolors(1 << 24) or []) > 50 and not {"Software", "date"} & set(image.info)


def test_calls_chart_is_the_same_bytes_each_time(tmp_path):
    paths, series = calls_inputs(tmp_path)
    outputs = [tmp_path / "first.png", tmp_path / "second.png"]
    for output in outputs:
        charts.run(inputs=paths, output=output, kind="calls", series=series, title="Distance against cost")
    assert is_picture(outputs[0])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_chart_changes_with_a_score(tmp_path):
    paths, series = calls_inputs(tmp_path)
    charts.run(inputs=paths, output=tmp_path / "before.png", kind="calls", series=series)
    score(tmp_path, "teacher", [9.0, 9.5], network_calls=35)
    charts.run(inputs=paths, output=tmp_path / "after.png", kind="calls", series=series)
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()


def test_excess_depends_on_the_distance_to_the_floor_alone(tmp_path):
    """Points at and below the floor are shown, too."""
    pictures = []
    for name, shift in (("low", 0.0), ("high", 4.0)):
        floor = {"mean": 1.0 + shift, "std": 0.25, "num": 20}
        values = {"a": [3.0, 3.5], "b": [1.0], "c": [0.75]}
        paths = [
            score(tmp_path / name, each, [value + shift for value in numbers], floor=floor, network_calls=calls)
            for calls, (each, numbers) in enumerate(values.items(), 1)
        ]
        series = [{"label": "teacher", "points": [[each] for each in values]}]
        for value in ("excess", "distance"):
            output = tmp_path / name / f"{value}.png"
            charts.run(inputs=paths, output=output, kind="calls", series=series, value=value)
            pictures.append(output.read_bytes())
    assert pictures[0] == pictures[2] and len({*pictures}) == 3
    charts.run(inputs=[], output=tmp_path / "none.png", kind="calls", series=series, value="excess")  # no score yet


def test_pairs_chart_takes_its_places_from_the_spec(tmp_path):
    places = [256, 1024, 4096, 10000]
    paths, series = [], []
    for label, values in (("full", [4.0, 3.0, 2.5, 2.4]), ("no matching", [9.0, 7.0, 4.0, 3.0])):
        names = [f"{label[:2]}{place}" for place in places]
        paths += [score(tmp_path, name, [v, v * 1.1]) for name, v in zip(names, values, strict=True)]
        series.append({"label": label, "points": [[name] for name in names], "x": places})
    charts.run(inputs=paths, output=tmp_path / "pairs.png", kind="pairs", series=series)
    assert is_picture(tmp_path / "pairs.png")
    for each in series:
        del each["x"]
    with pytest.raises(ValueError, match="has 4 points, but x is None"):
        charts.run(inputs=paths, output=tmp_path / "none.png", kind="pairs", series=series)
    assert not (tmp_path / "none.png").exists()


def test_figure3_draws_a_panel_for_each_manifest(tmp_path):
    generator = np.random.default_rng(0)
    inputs, series = [], []
    for label, share in (
        ("real score only", 0.0),
        ("matching, no regression", 0.05),
        ("full objective", 0.5),
    ):
        right = generator.random(600) < share
        points = np.stack([np.where(right, 1.0, -1.0), np.zeros(600)], 1) + generator.normal(0, 0.2, (600, 2))
        inputs += samples(tmp_path, label.replace(" ", "-"), points)
        series.append({"label": label, "points": [[label.replace(" ", "-")]]})
    output = tmp_path / "figure3.png"
    charts.run(inputs=inputs, output=output, kind="figure3", series=series, dataset=MIXTURE, title="Figure 3")
    assert is_picture(output)
    with pytest.raises(ValueError, match="3 panels, but 2 manifests"):
        charts.run(inputs=inputs[:-1], output=output, kind="figure3", series=series, dataset=MIXTURE)
    with pytest.raises(ValueError, match="needs a dataset of kind gaussian-mixture"):
        charts.run(inputs=inputs, output=output, kind="figure3", series=series)


def test_figure3_refuses_an_altered_shard(tmp_path):
    inputs = samples(tmp_path, "a", np.zeros((4, 2)))
    shard = tmp_path / "a" / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    series = [{"label": "a", "points": [["a"]]}]
    with pytest.raises(ValueError, match=r"00000\.tar"):
        charts.run(inputs=inputs, output=tmp_path / "x.png", kind="figure3", series=series, dataset=MIXTURE)


def images_of(folder: Path, name: str, images: np.ndarray, first_seed: int = 0, facts: dict | None = None) -> Path:
    """Manifest of images (N, C, H, W) in shards of 16, with seeds and labels."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    tables = []
    for number, part in enumerate(np.split(images.astype(np.float32), range(16, len(images), 16))):
        shard = folder / name / f"{number:05d}.tar"
        items = [(16 * number + i, {"image": each, "label": np.int64(i % 10)}) for i, each in enumerate(part)]
        shards.write(shard, items, {})
        size, digest = shard.stat().st_size, files.sha256(shard)
        with shards.Shard(shard) as found:
            tables.append(manifest.rows_of(found, shard.name, size=size, sha256=digest, first_seed=first_seed))
    manifest.write(folder / name / "manifest.parquet", pa.concat_tables(tables), {"facts": facts or {}})
    return folder / name / "manifest.parquet"


def test_images_of_the_same_noise_stand_below_each_other(tmp_path):
    black, white = -np.ones((40, 1, 8, 8)), np.ones((40, 1, 8, 8))
    inputs = [score(tmp_path, "teacher", [1.0]), images_of(tmp_path, "teacher", black)]
    inputs += [images_of(tmp_path, "student", white)]
    series = [{"label": name, "points": [[name]]} for name in ("teacher", "student")]
    charts.run(inputs=inputs, output=tmp_path / "rows.png", kind="images", series=series)
    with Image.open(tmp_path / "rows.png") as picture:
        levels = np.asarray(picture.convert("L"))
    dark = np.argwhere((levels < 5).mean(1) > 0.3)[:, 0]  # lines of the picture that cross the black images
    assert 0 < dark.min() and dark.max() < len(levels) / 2
    with pytest.raises(ValueError, match="2 rows of images, but 1 manifests"):
        charts.run(inputs=inputs[:2], output=tmp_path / "x.png", kind="images", series=series)
    inputs[2] = images_of(tmp_path, "student", white, first_seed=1)
    with pytest.raises(ValueError, match="other seeds or labels"):
        charts.run(inputs=inputs, output=tmp_path / "x.png", kind="images", series=series)
    inputs[2] = images_of(tmp_path, "student", white, facts={"codec": True})
    with pytest.raises(ValueError, match="holds latents"):
        charts.run(inputs=inputs, output=tmp_path / "x.png", kind="images", series=series)
    inputs[2] = images_of(tmp_path, "student", np.ones((40, 2, 1, 1)))
    with pytest.raises(ValueError, match="holds no images"):
        charts.run(inputs=inputs, output=tmp_path / "x.png", kind="images", series=series)


def test_experiment_without_score_is_left_out(tmp_path):
    paths, series = calls_inputs(tmp_path)
    more = [*series, {"label": "absent", "points": [["absent"]]}]
    charts.run(inputs=paths, output=tmp_path / "chart.png", kind="calls", series=more)
    assert is_picture(tmp_path / "chart.png")


def test_mixed_metrics_and_unknown_kinds_are_refused(tmp_path):
    paths, series = calls_inputs(tmp_path)
    with pytest.raises(ValueError, match="chart kind 'bars'"):
        charts.run(inputs=paths, output=tmp_path / "x.png", kind="bars", series=series)
    paths.append(score(tmp_path, "other", [1.0], metric="fid"))
    with pytest.raises(ValueError, match="cannot show the metrics fd-digits32, fid"):
        charts.run(inputs=paths, output=tmp_path / "x.png", kind="calls", series=series)
