"""The table says what the score files say: means over seeds, ratios, and nothing where there is no score."""

import json
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import ttest_rel

from dmd.config import read_yaml
from dmd.report.table_text import EMPTY, rounded
from dmd.stages import tables


def score(folder: Path, name: str, values: list[float], **changes: object) -> Path:
    """A fid.json as stage evaluate writes it."""
    fields = {
        "experiment": name,
        "metric": "fd-digits32",
        "value": sum(values) / len(values),
        "values": values,
        "network_calls": 1,
        "floor": {"mean": 0.5, "std": 0.01, "num": 20},
        "training": {"value": 3.0},
        "features": {"name": "digits32", "sha256": "f"},
        "reference": {"name": "digits-held-out", "sha256": "r"},
    }
    path = folder / name / "fid.json"
    path.parent.mkdir()
    path.write_text(json.dumps(fields | changes))
    return path


def made(folder: Path, rows: dict[str, list[str]], scores: list[Path], **more: object) -> tuple[str, pd.DataFrame]:
    spec = [{"label": label, "experiments": names} for label, names in rows.items()]
    markdown, csv = folder / "table.md", folder / "table.csv"
    tables.run(scores=scores, markdown=markdown, csv=csv, rows=spec, **more)  # type: ignore[arg-type]
    return markdown.read_text(), pd.read_csv(csv).set_index("label")


def line(markdown: str, label: str) -> list[str]:
    """The cells of the markdown row that starts with a label."""
    (found,) = [row for row in markdown.splitlines() if row.startswith(f"| {label} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_row_of_several_trainings_is_their_mean_and_sample_standard_deviation(tmp_path):
    scores = [score(tmp_path, f"digits-seed{i}", [value, value + 2]) for i, value in enumerate((1.0, 2.0, 6.0))]
    markdown, csv = made(tmp_path, {"full": ["digits-seed0", "digits-seed1", "digits-seed2"]}, scores)
    assert csv.loc["full", "value"] == pytest.approx(4.0)
    assert csv.loc["full", "std"] == pytest.approx(7**0.5)
    assert csv.loc["full", "num"] == 3
    assert "4.00 ± 2.65" in line(markdown, "full") and "3 trainings" in line(markdown, "full")


def test_row_of_a_teacher_has_sample_sets_and_no_trainings(tmp_path):
    scores = [score(tmp_path, name, [value]) for name, value in (("a", 1.0), ("b", 3.0))]
    rows = [{"label": "teacher", "experiments": ["a", "b"], "of_teacher": True}]
    tables.run(scores=scores, markdown=tmp_path / "t.md", csv=tmp_path / "t.csv", rows=rows)
    assert "2 sample sets" in line((tmp_path / "t.md").read_text(), "teacher")


def test_row_of_one_training_shows_the_spread_of_its_sample_sets(tmp_path):
    markdown, csv = made(tmp_path, {"full": ["digits"]}, [score(tmp_path, "digits", [1.0, 3.0])])
    assert csv.loc["full", "std"] == pytest.approx(2**0.5)
    assert "2 sample sets" in line(markdown, "full")


def test_ratio_is_to_the_row_of_the_same_data_with_most_calls(tmp_path):
    other = {"reference": {"name": "toy", "sha256": "t"}, "metric": "fd-coordinates"}
    scores = [
        score(tmp_path, "teacher", [2.0], network_calls=35),
        score(tmp_path, "few", [4.0], network_calls=4),
        score(tmp_path, "digits", [3.0]),
        score(tmp_path, "toy", [9.0], **other),
    ]
    markdown, csv = made(tmp_path, {name: [name] for name in ("digits", "few", "teacher", "toy")}, scores)
    assert csv["ratio"].tolist()[:3] == pytest.approx([2.5 / 1.5, 3.5 / 1.5, 1.0])
    assert csv["ratio"].isna().tolist() == [False, False, False, True]
    assert "1.67" in line(markdown, "digits")


def test_beside_a_teacher_at_the_floor_there_is_no_ratio(tmp_path):
    scores = [score(tmp_path, "teacher", [0.5], network_calls=35), score(tmp_path, "digits", [3.0])]
    markdown, csv = made(tmp_path, {name: [name] for name in ("digits", "teacher")}, scores)
    assert csv["ratio"].isna().all() and csv["excess"].tolist() == [2.5, 0.0] and "Ratio" not in markdown


def test_ratio_is_to_the_own_teacher_where_two_have_the_same_reference(tmp_path):
    calls = {"cond": 1, "uncond": 1, "cond-teacher": 35, "uncond-teacher": 35}
    values = dict(zip(calls, (3.0, 8.0, 2.0, 4.0), strict=True))
    scores = [score(tmp_path, name, [values[name]], network_calls=calls[name]) for name in calls]
    rows = [{"label": name, "experiments": [name], "teacher": name.split("-")[0]} for name in calls]
    tables.run(scores=scores, markdown=tmp_path / "t.md", csv=tmp_path / "t.csv", rows=rows)
    assert pd.read_csv(tmp_path / "t.csv")["ratio"].tolist() == pytest.approx([2.5 / 1.5, 7.5 / 3.5, 1.0, 1.0])
    assert "to that of the same teacher and data" in (tmp_path / "t.md").read_text()


def test_floor_of_training_images_is_not_called_one_of_held_out_images(tmp_path):
    path = score(tmp_path, "a", [2.0], held_out={"value": 3.0})
    fields = json.loads(path.read_text())
    del fields["training"]
    path.write_text(json.dumps(fields))
    markdown, _ = made(tmp_path, {"full": ["a"]}, [path])
    assert "to the training images:" in markdown and "held-out images" not in markdown


def test_row_without_score_stays_empty(tmp_path):
    markdown, csv = made(tmp_path, {"here": ["a"], "absent": ["b"]}, [score(tmp_path, "a", [1.0])])
    assert set(line(markdown, "absent")[1:]) == {EMPTY}
    assert csv.loc["absent", ["value", "std", "num", "network_calls", "floor", "ratio"]].isna().all()
    assert csv.loc["absent", "experiments"] == "b"


def test_row_counts_only_the_seeds_that_have_a_score(tmp_path):
    _, csv = made(tmp_path, {"full": ["a", "b", "c"]}, [score(tmp_path, n, [2.0]) for n in ("a", "b")])
    assert csv.loc["full", "num"] == 2


def test_published_rows_stand_apart_with_their_values(tmp_path):
    paper = [{"label": "DMD", "value": 2.66, "network_calls": 1}, {"label": "EDM", "value": 1.84}]
    markdown, csv = made(tmp_path, {"full": ["a"]}, [score(tmp_path, "a", [1.0])], paper=paper, title="Table 2")
    assert markdown.startswith("# Table 2\n")
    assert markdown.index("Published") < markdown.index("| DMD |")
    assert line(markdown, "DMD")[1:] == ["2.66", "1"]
    assert line(markdown, "EDM")[1:] == ["1.84", EMPTY]
    assert csv["source"].tolist() == ["ours", "published", "published"]


PAPER = [
    {"label": "DMD", "dataset": "CIFAR-10", "value": 2.66, "network_calls": 1},
    {"label": "DMD", "dataset": "ImageNet-64", "value": 2.62, "network_calls": 1},
]


def beside(folder: Path, scores: list[Path], published: object) -> str:
    rows = [{"label": "ours", "experiments": ["a"], "published": published}]
    tables.run(scores=scores, markdown=folder / "t.md", csv=folder / "t.csv", rows=rows, paper=PAPER)  # type: ignore[arg-type]
    return (folder / "t.md").read_text()


def test_measured_row_stands_beside_the_published_one_of_the_same_data(tmp_path):
    named = {"label": "DMD", "dataset": "ImageNet-64"}
    moments = {"floor": {"kind": "gaussian", "mean": 0.5, "std": 0.01, "num": 20}, "metric": "fid"}
    path = score(tmp_path, "a", [2.0, 3.0], **moments)
    fields = json.loads(path.read_text())
    del fields["training"]  # nothing of the kind is known where only moments of the real data are
    path.write_text(json.dumps(fields))
    markdown = beside(tmp_path, [path], named)
    rows = [row for row in markdown.splitlines() if row.startswith("| DMD |")]
    assert rows == ["| DMD | CIFAR-10 | 2.66 | - | 1 |", "| DMD | ImageNet-64 | 2.62 | 2.50 ± 0.707, min 2.00 | 1 |"]
    assert "Gaussian draws" in markdown and "held-out images" not in markdown
    assert "| ours |" in markdown and "to training images" not in markdown


def test_value_in_other_features_is_not_taken_for_a_fid(tmp_path):
    markdown = beside(
        tmp_path, [score(tmp_path, "a", [2.0], metric="fd-inception")], {"label": "DMD", "dataset": "CIFAR-10"}
    )
    assert "| DMD | CIFAR-10 | 2.66 | 2.00 (fd-inception) | 1 |" in markdown


def test_published_row_stays_empty_where_nothing_was_run(tmp_path):
    markdown = beside(tmp_path, [], {"label": "DMD", "dataset": "CIFAR-10"})
    assert "| DMD | CIFAR-10 | 2.66 | - | 1 |" in markdown and "this project |" not in markdown


def test_row_beside_no_one_published_row_is_refused(tmp_path):
    for named in ({"label": "DMD"}, {"label": "DMDD", "dataset": "CIFAR-10"}):
        with pytest.raises(ValueError, match=r"'ours' cannot stand beside .* free are: DMD \(CIFAR-10\); DMD"):
            beside(tmp_path, [], named)


def test_csv_keeps_every_digit(tmp_path):
    _, csv = made(tmp_path, {"full": ["a"]}, [score(tmp_path, "a", [1 / 3])])
    assert csv.loc["full", "value"] == 1 / 3


def test_label_accuracy_is_averaged_over_the_seeds(tmp_path):
    scores = [score(tmp_path, name, [1.0]) for name in ("a", "b")]
    files = []
    for name, accuracy in (("a", {"value": 0.9}), ("b", {"value": 0.8})):
        files.append(tmp_path / name / "classes.json")
        files[-1].write_text(json.dumps({"experiment": name, "accuracy": accuracy}))
    markdown, _ = made(tmp_path, {"full": ["a", "b"]}, scores, classes=files)
    assert "85.0 %" in line(markdown, "full")


def test_clip_scores_and_seconds_stand_beside_the_published_ones(tmp_path):
    path = score(tmp_path, "a", [9.0], metric="clean-fid")
    others = {}
    for kind, values in {"clip": {"a": 0.31, "b": 0.25}, "latency": {"a": 0.05}}.items():
        others[kind] = [tmp_path / name / f"{kind}.json" for name in values]
        for place, (name, value) in zip(others[kind], values.items(), strict=True):
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps({"experiment": name, "value": value}))
    published = {"label": "DMD", "value": 11.49, "network_calls": 1, "clip": 0.32, "latency": 0.09}
    better = {"label": "GigaGAN", "value": 9.09, "note": "better than DMD"}
    rows = [
        {"label": "ours", "experiments": ["a"], "published": {"label": "DMD"}},
        {"label": "b", "experiments": ["b"]},
    ]
    files = {"clips": others["clip"], "latencies": others["latency"]}
    place = {"markdown": tmp_path / "t.md", "csv": tmp_path / "t.csv"}
    tables.run(scores=[path], **files, **place, rows=rows, paper=[published, better])
    markdown, csv = (tmp_path / "t.md").read_text(), pd.read_csv(tmp_path / "t.csv").set_index("label")
    assert "| DMD | 11.5 | 9.00 | 1 | 0.320 | 0.310 | 0.0900 | 0.0500 |" in markdown
    assert (
        "| published | distance | here | network calls | CLIP score | CLIP score here | seconds per image |" in markdown
    )
    assert "0.250" in line(markdown, "b") and EMPTY in line(markdown, "b")
    assert markdown.rstrip().endswith("GigaGAN: better than DMD")
    assert csv.loc["ours", "clip"] == 0.31 and csv.loc["ours", "latency"] == 0.05 and csv.loc["DMD", "clip"] == 0.32
    assert not any(column.endswith("here") for column in csv.columns)


def test_columns_that_no_row_has_are_not_in_the_csv(tmp_path):
    _, csv = made(tmp_path, {"full": ["a"]}, [score(tmp_path, "a", [1.0])])
    assert not {"clip", "latency", "note"} & set(csv.columns)


def test_paper_says_what_is_better_than_dmd():
    paper = read_yaml(Path("workflow/resources/published_values.yaml"))
    for name in ("table3", "table4"):
        values = {row["label"]: row["value"] for row in paper[name]}
        noted = {row["label"] for row in paper[name] if "note" in row}
        assert noted == {label for label, value in values.items() if value < values["DMD"]}
        assert "SD v1.5, 50 steps" in noted and ("GigaGAN" in noted) == (name == "table3")


def test_same_scores_give_the_same_bytes(tmp_path):
    scores = [score(tmp_path, name, [1.0, 2.0]) for name in ("a", "b")]
    contents = []
    for order in (scores, scores[::-1]):
        made(tmp_path, {"full": ["a", "b"]}, order)
        contents.append([(tmp_path / f"table.{suffix}").read_bytes() for suffix in ("md", "csv")])
    assert contents[0] == contents[1]


def test_row_that_mixes_metrics_is_refused(tmp_path):
    scores = [score(tmp_path, "a", [1.0]), score(tmp_path, "b", [1.0], metric="fid")]
    with pytest.raises(ValueError, match=r"row 'full' mixes several values of metric"):
        made(tmp_path, {"full": ["a", "b"]}, scores)
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_samples", 50), ("protocol", {"quantise": None}), ("features", {"name": "digits32", "sha256": "other"})],
)
def test_distances_that_cannot_be_compared_are_neither_averaged_nor_subtracted(tmp_path, field, value):
    scores = [
        score(tmp_path, "a", [1.0], first_seeds=[0]),
        score(tmp_path, "b", [1.0], first_seeds=[0], **{field: value}),
    ]
    with pytest.raises(ValueError, match=f"row 'full' mixes several values of {field}"):
        made(tmp_path, {"full": ["a", "b"]}, scores)
    with pytest.raises(ValueError, match=f"`differences` of rows 'a' and 'b': their {field} differ: "):
        made(tmp_path, {"a": ["a"], "b": ["b"]}, scores, differences=[("a", "b")])


def test_file_that_is_no_score_is_named(tmp_path):
    path = tmp_path / "fid.json"
    for content in ("{", "{}", "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"fid\.json cannot be read as a score file"):
            made(tmp_path, {"full": ["a"]}, [path])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (12.345, "12.3"), (1234.5, "1234"), (2e-5, "2.00e-05"), (0.0, "0"), (35, "35")],
)
def test_rounding_keeps_three_significant_digits(value, text):
    assert rounded(value) == text


def compared(folder: Path, first: dict[int, float], second: dict[int, float]) -> tuple[str, pd.DataFrame]:
    """A table of rows `a` and `b`, whose distances, and recalls of a tenth of them, are given by seed."""
    scores, prdcs = [], []
    for name, values in {"a": first, "b": second}.items():
        for seed, value in values.items():
            experiment, seeds = f"{name}{seed}", {"first_seeds": [seed * 1000000]}
            scores.append(score(folder, experiment, [value], **seeds))
            prdcs.append(folder / experiment / "prdc.json")
            prdcs[-1].write_text(
                json.dumps({"experiment": experiment, "recall": {"value": value / 10}, **seeds, "value": 0})
            )
    rows = {name: [f"{name}{seed}" for seed in values] for name, values in {"a": first, "b": second}.items()}
    return made(folder, rows, scores, prdcs=prdcs, differences=[("a", "b")])


def test_difference_of_rows_is_paired_by_start_noise_with_the_interval_of_student(tmp_path):
    first, second = {0: 1.0, 1: 2.0, 2: 6.0, 7: 50.0}, {2: 4.0, 1: 1.0, 0: 1.0}
    markdown, csv = compared(tmp_path, first, second)
    expected = ttest_rel([1.0, 2.0, 6.0], [1.0, 1.0, 4.0]).confidence_interval(0.95)
    row = csv.loc["a - b"].set_index("metric").loc["distance"]
    assert row["value"] == pytest.approx(1.0) and row["num"] == 3
    assert (row["low"], row["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert "| a - b | 3 | 1.00 [-1.48, 3.48] | 0.1000 [-0.148, 0.348] |" in markdown.replace("0.100 ", "0.1000 ")
    assert "| difference | seeds | distance | recall |" in markdown


def test_difference_of_one_pair_has_no_interval_and_of_none_is_empty(tmp_path):
    for name, seed, shown in (("one", 0, "| a - b | 1 | -1.00 |"), ("none", 1, "| a - b | 0 |")):
        (tmp_path / name).mkdir()
        markdown, _ = compared(tmp_path / name, {0: 1.0}, {seed: 2.0})
        assert shown in markdown


def test_retrieval_is_compared_prompt_by_prompt(tmp_path):
    """A prompt counts by the fraction of its samples that are found; prompts of one row alone do not count."""
    ranks = {
        "a": {"cat": [1], "dog": [2], "sun": [9], "cup": [1], "car": [1]},
        "b": {"cat": [3], "dog": [8], "sun": [1], "cup": [1, 7]},
    }
    retrievals = [tmp_path / f"{name}.json" for name in ranks]
    for path, of_prompts in zip(retrievals, ranks.values(), strict=True):
        found = {"top1": {"value": 0.5}, "top5": {"value": 0.5}, "ranks": of_prompts}
        path.write_text(json.dumps({"experiment": path.stem, **found}))
    rows = {name: [name] for name in ranks}
    markdown, csv = made(tmp_path, rows, [], retrievals=retrievals, differences=[("a", "b")])
    expected = ttest_rel([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.5]).confidence_interval(0.95)
    row = csv.loc["a - b"].set_index("metric").loc["top 1"]
    assert (row["value"], row["num"]) == (pytest.approx(0.125), 4)
    assert (row["low"], row["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert "| difference | prompts | top 1 | top 5 |" in markdown and "| a - b | 4 | 0.125 [" in markdown
    assert "seeds" not in markdown and "istance" not in markdown  # no distance was measured


def test_differences_of_a_row_whose_experiments_share_their_noise_are_refused(tmp_path):
    scores = [score(tmp_path, name, [1.0], first_seeds=[0]) for name in ("a", "b", "c")]
    with pytest.raises(ValueError, match="row 'two' has experiments with the same start noise"):
        made(tmp_path, {"two": ["a", "b"], "one": ["c"]}, scores, differences=[("one", "two")])


def test_row_shows_kernel_distance_recall_and_what_is_over_the_floor(tmp_path):
    scores = [score(tmp_path, name, [value], first_seeds=[0]) for name, value in (("a", 1.5), ("b", 2.5))]
    kids = [tmp_path / name / "kid.json" for name in ("a", "b")]
    for path, value in zip(kids, (0.25, 0.75), strict=True):
        path.write_text(json.dumps({"experiment": path.parent.name, "value": value, "first_seeds": [0]}))
    markdown, csv = made(tmp_path, {"full": ["a", "b"]}, scores, kids=kids)
    assert csv.loc["full", "kid"] == 0.5 and csv.loc["full", "kid_std"] == pytest.approx(0.125**0.5)
    assert csv.loc["full", "excess"] == 1.5 and "recall" not in csv.columns
    assert "0.500 ± 0.354" in line(markdown, "full")
