"""Stage prompts: which texts are left of files of others, in which order, and what is refused."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmd.data import prompt_sources, prompts
from dmd.data.captions import Captions
from dmd.data.prompts import Prompts
from dmd.stages import prompts as stage

LAION = {"kind": "laion", "text_column": "TEXT", "score_column": "AESTHETIC_SCORE", "threshold": 6.0}
LAION |= {"num": None, "seed": 0}
FILE = {"kind": "file", "sha256": None, "column": "prompt"}


def table(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def made(folder: Path, files: list[Path], source: dict) -> Prompts:
    """The file that the stage writes into `folder`."""
    if source["kind"] == "laion":
        source = source | {"files": [{"sha256": None} for _ in files]}
    stage.run(files=files, output=folder / "prompts" / "prompts.parquet", source=source)
    assert [path.name for path in sorted((folder / "prompts").iterdir())] == [
        ".prompts.parquet.json",
        "prompts.parquet",
    ]
    return Prompts(folder / "prompts" / "prompts.parquet")


def every(found: Prompts) -> list[str]:
    return found.rows(range(len(found)))


@pytest.fixture
def laion_files(tmp_path) -> list[Path]:
    """Two files: scores 4 .. 8, texts 0 .. 699, each of them about three times."""
    drawn = random.Random(0)
    rows = [(f"text {drawn.randrange(700)}", drawn.choice([4.0, 5.75, 6.0, 6.25, 8.0])) for _ in range(2000)]
    return [
        table(tmp_path / f"{part}.parquet", TEXT=[text for text, _ in chosen], AESTHETIC_SCORE=[at for _, at in chosen])
        for part, chosen in enumerate((rows[:900], rows[900:]))
    ]


def read(paths: list[Path]) -> list[tuple[str, float]]:
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [(row["TEXT"], row["AESTHETIC_SCORE"]) for row in rows]


def test_laion_keeps_each_well_rated_text_once_and_counts_the_others(laion_files, tmp_path):
    found = made(tmp_path, laion_files, LAION | {"threshold": 6.25})
    rows = read(laion_files)
    kept = [text for text, score in rows if score >= 6.25]
    assert sorted(every(found)) == sorted(set(kept)) and 400 < len(found) < 700
    assert found.metadata["counts"] == {
        "rows": 2000, "below_threshold": 2000 - len(kept), "empty": 0, "too_long": 0,
        "distinct": len(set(kept)), "duplicates": len(kept) - len(set(kept)),
    }  # fmt: skip


def test_laion_order_depends_on_the_seed_and_not_on_files_rows_or_memory(laion_files, tmp_path, monkeypatch):
    first = every(made(tmp_path / "first", laion_files, LAION))
    backwards = read(laion_files)[::-1]
    texts, scores = (list(each) for each in zip(*backwards, strict=True))
    other = table(tmp_path / "other.parquet", AESTHETIC_SCORE=np.float32(scores).tolist(), TEXT=texts)
    monkeypatch.setattr(prompt_sources, "IN_MEMORY", 50)
    monkeypatch.setattr(prompt_sources, "BATCH_SIZE", 64)
    assert every(made(tmp_path / "second", [other], LAION)) == first
    seeded = every(made(tmp_path / "third", laion_files, LAION | {"seed": 1}))
    assert seeded != first and sorted(seeded) == sorted(first) != first


def test_laion_num_takes_the_first_of_the_order(laion_files, tmp_path):
    whole = every(made(tmp_path / "whole", laion_files, LAION))
    some = made(tmp_path / "some", laion_files, LAION | {"num": 100})
    assert every(some) == whole[:100] and some.metadata["counts"]["distinct"] == len(whole)
    with pytest.raises(ValueError, match=f"num: 5000 were asked for, {len(whole)} are left"):
        made(tmp_path / "many", laion_files, LAION | {"num": 5000})


def test_laion_leaves_out_what_nobody_can_use(tmp_path):
    texts = ["  a cat ", "", "   ", None, "x" * 10_001, "a cat", "x" * 10_000, "a dog", "low", "unrated", "odd"]
    scores = [6.5, 7.0, 7.0, 7.0, 9.0, 6.0, 6.0, 7.0, 5.9, None, float("nan")]
    found = made(tmp_path, [table(tmp_path / "a.parquet", TEXT=texts, AESTHETIC_SCORE=scores)], LAION)
    assert sorted(every(found)) == ["a cat", "a dog", "x" * 10_000]
    counts = {"rows": 11, "below_threshold": 3, "empty": 3, "too_long": 1, "distinct": 3, "duplicates": 1}
    assert found.metadata["counts"] == counts


def test_the_same_prompts_have_the_same_bytes_however_they_come(laion_files, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "GROUP_SIZE", 100)
    texts = [f"text {number}" for number in range(250)]
    for name, cuts in (("a", [250]), ("b", [30, 90, 250])):
        arrays = [pa.array(part) for part in np.split(np.array(texts, object), cuts)]
        assert prompts.write(tmp_path / name, arrays, lambda: {"counts": {}}) == 250
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.ParquetFile(tmp_path / "a").num_row_groups == 3
    assert Prompts(tmp_path / "a").rows([249, 0, 99, 100, 100]) == [texts[row] for row in (249, 0, 99, 100, 100)]


def test_a_file_of_prompts_is_taken_as_it_is(tmp_path):
    texts = ["b", " a ", "b", "x" * 10_000]
    found = made(tmp_path, [table(tmp_path / "p.parquet", other=[1, 2, 3, 4], prompt=texts)], FILE)
    assert every(found) == texts and found.metadata["counts"] == {"rows": 4}
    assert pq.read_table(tmp_path / "prompts" / "prompts.parquet").column_names == ["prompt"]


def test_coco_gives_one_caption_of_each_of_num_images(tmp_path):
    captions = [
        {"image_id": image, "id": 5 * image + number, "caption": f" image {image}, caption {number}\n"}
        for number in (1, 0, 2)
        for image in range(50)
    ]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": captions}))
    source = {"kind": "coco", "sha256": None, "num": 20, "seed": 0}
    found = every(made(tmp_path, [path], source))
    assert len(set(found)) == 20 and set(found) < {f"image {image}, caption 0" for image in range(50)}
    assert found != every(made(tmp_path / "b", [path], source | {"seed": 1}))
    assert found == every(made(tmp_path / "c", [path], source | {"num": None}))[:20]
    with pytest.raises(ValueError, match="captions of 50 images, fewer than num 51"):
        made(tmp_path / "d", [path], source | {"num": 51})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read as COCO captions .*: .annotations. is missing"):
        made(tmp_path / "e", [tmp_path / "other.json"], source)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption": ["a"]}, r"has no column 'prompt' of texts; its columns are caption"),
        ({"prompt": [1, 2]}, r"column 'prompt' holds int64, not texts"),
        ({"prompt": ["", None, " \t"]}, r"no prompts are left from .*p.parquet"),
        ({"prompt": ["x" * 10_001]}, r"row 0 .* has 10001 characters, more than 10000"),
        ({"prompt": pa.array([], pa.string())}, r"no prompts are left from .*p.parquet"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_used_is_refused(tmp_path, columns, message):
    path = table(tmp_path / "p.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        made(tmp_path, [path], FILE)
    assert list((tmp_path / "prompts").iterdir()) == []


def test_laion_without_its_columns_is_refused(tmp_path):
    path = table(tmp_path / "p.parquet", TEXT=["a"], score=[6.0])
    with pytest.raises(ValueError, match="has no column 'AESTHETIC_SCORE' of scores; its columns are TEXT, score"):
        made(tmp_path, [path], LAION)
    with pytest.raises(ValueError, match="column 'TEXT' holds string, not scores"):
        made(tmp_path, [path], LAION | {"score_column": "TEXT"})


def test_a_file_that_is_no_table_or_another_than_pinned_is_named(tmp_path):
    path = tmp_path / "p.parquet"
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match="p.parquet cannot be read as a parquet table"):
        made(tmp_path, [path], FILE)
    with pytest.raises(ValueError, match="p.parquet has sha256 .* but prompts.sha256 pins 0123"):
        made(tmp_path, [path], FILE | {"sha256": "01234567"})
    with pytest.raises(ValueError, match="gone.parquet is missing"):
        made(tmp_path, [tmp_path / "gone.parquet"], FILE)
    with pytest.raises(ValueError, match="holds no prompts that a stage of this project wrote"):
        Prompts(table(path, prompt=["a"]))


def test_file_with_an_empty_cell_or_without_rows_is_told(tmp_path):
    path = tmp_path / "p.parquet"
    prompts.write(path, [pa.array(["a", None])], lambda: {})
    with pytest.raises(ValueError, match=f"{path} claims 2 prompts, but has 1"):
        prompts.Prompts(path).rows([0])
    prompts.write(path, [], lambda: {})
    assert len(prompts.Prompts(path)) == 0


def test_blank_rows_at_the_end_are_left_out_and_others_are_refused_when_drawn(tmp_path):
    path = table(tmp_path / "p.parquet", prompt=["a", "", "b", None, " \t", "c", None, "", "  "])
    found = made(tmp_path, [path], FILE)
    assert len(found) == 6 and found.rows([0, 2, 5]) == ["a", "b", "c"]
    for row in (1, 3, 4):
        with pytest.raises(ValueError, match=rf"prompts.parquet: the prompt of row {row} .* is blank in its source"):
            found.rows([row])


def test_blank_captions_are_passed_over_unless_an_image_has_no_other(tmp_path):
    captions = [{"image_id": 1, "id": 1, "caption": " "}, {"image_id": 1, "id": 2, "caption": "a cat"}]
    captions += [{"image_id": image, "id": 9 + image, "caption": f"{image}"} for image in range(2, 9)]
    captions += [{"image_id": 9, "id": 30, "caption": "\n"}]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": captions}), encoding="utf-16")
    order = [image for image in sorted(range(1, 10), key=lambda image: prompt_sources._digest(str(image), 0))]
    num = order.index(9)
    expected = ["a cat" if image == 1 else f"{image}" for image in order[:num]]
    assert num > 1 and prompt_sources.coco(path, num=num, seed=0) == expected
    with pytest.raises(ValueError, match=f"{path}: caption 30 has 0 characters"):
        prompt_sources.coco(path, num=num + 1, seed=0)


def test_small_file_of_long_or_many_texts_is_refused_without_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_sources, "MOST_BYTES", 1 << 20)
    path = tmp_path / "p.parquet"
    for text, num in (("a" * 1_000_000, 100_000), ("a" * 100, 200_000)):
        repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int32)), pa.array([text]))
        pq.write_table(pa.table({"prompt": repeated}), path, compression="zstd", store_schema=False)
        assert path.stat().st_size < 4000
        with pytest.raises(ValueError, match=f"{path} .*a thousand times as large as the file"):
            list(prompt_sources.column(path, "prompt"))


def test_column_of_categories_is_taken_as_texts(tmp_path):
    path = table(tmp_path / "p.parquet", prompt=pa.array(["a", "b", "a"]).dictionary_encode())
    assert every(made(tmp_path, [path], FILE)) == ["a", "b", "a"]


def test_file_that_claims_less_than_no_row_is_told(tmp_path):
    path = tmp_path / "p.parquet"
    prompts.write(path, [pa.array(["a", "b"])], lambda: {})
    content, said = path.read_bytes(), []
    for place in range(content.index(b"PAR1", 4) - 400, len(content) - 8):  # lowest bit of a number there: its sign
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            len(prompts.Prompts(path))
        except ValueError as error:
            said.append(str(error))
    assert any(each.startswith(f"{path} claims -3 to ") for each in said)
    assert all(str(path) in each for each in said)


def test_first_captions_are_one_of_each_image_then_a_second_of_each():
    of_images = [Captions(tuple(f"{image} {number}" for number in range(1 + image % 3)), ()) for image in range(30)]
    of_images.append(Captions(("0 0",), ("unseen",)))  # the caption of another image

    def drawn(seed: int) -> list[str]:
        section = {"split": "training", "num": None, "seed": seed}
        return prompt_sources.captions(Path("images"), of_images, section, Counter())

    texts = drawn(0)
    images = [int(text.split()[0]) for text in texts]
    rounds = [images[:30], images[30:50], images[50:]]
    assert [sorted(each) for each in rounds] == [[n for n in range(30) if n % 3 >= least] for least in range(3)]
    assert len({*texts}) == 60 and sorted(drawn(1)) == sorted(texts) != texts != drawn(1)
