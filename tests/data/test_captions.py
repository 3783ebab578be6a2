"""Captions: a table with a row per caption, and the rows of shards that hold them; glyphs of a font."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from dmd.data import captions, dataset, glyphs
from dmd.data.captions import Captions
from dmd.data.image_shards import ImageReader
from dmd.data.prompts import Prompts
from dmd.stages import images, prompts

ROOT = Path(__file__).resolve().parents[2]
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
TABLE = "codepoint,split,caption\n1F600,,a grin\n2603,training,snow  man\nU+2603,held_out,a man of snow\n41,,letter a\n"


def glyph_section(folder: Path, table: str = TABLE) -> dict[str, object]:
    path = folder / "captions.csv"
    path.write_text(table)
    return {
        **{"kind": "glyphs", "file": str(FONT), "sha256": None, "captions": str(path), "resolution": 16},
        **{"split_seed": 0, "num_held_out": 1},
    }


def test_table_gives_each_character_its_captions_by_split(tmp_path: Path):
    (tmp_path / "t.csv").write_text(TABLE)
    found = captions.of_code_points(tmp_path / "t.csv")
    assert [*found] == ["\U0001f600", "\u2603", "A"]
    assert found["\u2603"] == Captions(("snow man",), ("a man of snow",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("zz,,a", "line 2: 'zz' is no code point in hexadecimal digits"),
        ("D800,,a", "line 2: 'D800' is no code point"),
        ("FFFFFFFFFF,,a", "line 2: 'FFFFFFFFFF' is no code point"),
        ("41,,", "line 2: the caption is blank"),
        ("41,test,a", "line 2: split 'test' is none of training, held_out"),
        ("41,held_out,a", "has no training caption of 'A'"),
        ("41,,a\n41,held_out,a", "the held-out caption 'a' of 'A' is a training caption of 'A'"),
        ("42,,a\n41,,b\n41,held_out,a", "the held-out caption 'a' of 'A' is a training caption of 'B'"),
        ("41,,a cat, sitting", "line 2: it has 4 cells, but the first line has 3: is a text"),
        (f"41,,{'x' * 10_001}", "line 2: the caption has 10001 characters, more than 10000"),
        ("", "has no captions"),
    ],
)
def test_unusable_row_is_named(tmp_path: Path, row: str, message: str):
    (tmp_path / "t.csv").write_text(f"codepoint,split,caption\n{row}\n")
    with pytest.raises(ValueError, match=message):
        captions.of_code_points(tmp_path / "t.csv")


@pytest.mark.parametrize("header", ["file,caption,splits", "file,caption,split,split", "file,caption,Split,width"])
def test_columns_of_captions_that_would_be_passed_over_are_refused(tmp_path: Path, header: str):
    (tmp_path / "t.csv").write_text(f"{header}\na.png,a cat,held_out,\na.png,pet,,\n")
    with pytest.raises(ValueError, match="t.csv: a table of captions .* once each: remove '(split|splits|width)'"):
        captions.of_files(tmp_path / "t.csv", ["a.png"], tmp_path)


def test_captions_may_have_capital_letters_in_the_header_and_must_be_unicode(tmp_path: Path):
    text = "File,Caption,Split\na.png,dog’s ball,held_out\na.png,pet,\n"
    (tmp_path / "t.csv").write_text(text)
    assert captions.of_files(tmp_path / "t.csv", ["a.png"], tmp_path) == [Captions(("pet",), ("dog’s ball",))]
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(ValueError, match="line 2 has the byte 0x92, which is not UTF-8: save it as UTF-8"):
        captions.of_files(tmp_path / "t.csv", ["a.png"], tmp_path)


def test_captions_of_files_name_every_image(tmp_path: Path):
    (tmp_path / "t.csv").write_text("file;caption\na/1.png;a cat; \n2.png;a dog\na/1.png;pet, of a kind\n")
    found = captions.of_files(tmp_path / "t.csv", ["2.png", "a/1.png"], tmp_path)
    assert found == [Captions(("a dog",), ()), Captions(("a cat", "pet, of a kind"), ())]
    with pytest.raises(ValueError, match="line 2: no image 'a/1.png'"):
        captions.of_files(tmp_path / "t.csv", ["2.png"], tmp_path)
    with pytest.raises(ValueError, match=r"no training caption of '3.png' \(1 such images\)"):
        captions.of_files(tmp_path / "t.csv", ["2.png", "a/1.png", "3.png"], tmp_path)


@pytest.mark.parametrize("each", [Captions(("a", "ß ü"), ("c",)), Captions(("a",), ()), Captions((), ())])
def test_captions_survive_a_row_of_a_shard(each: Captions):
    assert captions.of_fields(each.fields()) == each


def test_glyph_is_centred_on_white_and_a_missing_one_is_refused():
    picture = glyphs.draw(FONT, ["I"], resolution=32)[0]
    assert picture.shape == (3, 32, 32) and picture.min() < 80
    assert (picture[:, 0] == 255).all() and (picture[:, :, 0] == 255).all()  # a margin
    dark = np.flatnonzero((picture[0] < 128).any(0))
    assert abs(dark.mean() - 15.5) < 1.5
    with pytest.raises(ValueError, match="has no glyph of U\\+1F9A3"):
        glyphs.draw(FONT, ["\U0001f9a3"], resolution=32)
    with pytest.raises(ValueError, match="captions.csv"):
        glyphs.draw(ROOT / "workflow/resources/emoji/captions.csv", ["a"], resolution=32)


def test_captions_lie_beside_the_images_in_shards_and_become_prompts(tmp_path: Path):
    section = glyph_section(tmp_path)
    out = tmp_path / "images" / "manifest.parquet"
    images.run(output=out, dataset=section, shard_size=2)
    expected = dataset.load(section, "training")
    for in_memory in (2**28, 0):
        reader = ImageReader(out, "training", in_memory=in_memory)
        assert len(reader) == 2 and reader.sha256 == expected.sha256
        assert torch.equal(reader.batch(torch.arange(2)), expected.images)
        assert reader.captions(torch.arange(2)) == dataset.captions_of(section, ["training"])
    of_all = ImageReader(out, "training").captions(torch.arange(2)) + ImageReader(out, "held_out").captions(
        torch.arange(1)
    )
    assert sorted(of_all) == sorted(captions.of_code_points(Path(section["captions"])).values())
    source = {"kind": "captions", "split": "training", "num": None, "seed": 0}
    prompts.run(images=out, output=tmp_path / "p.parquet", source=source)
    texts = Prompts(tmp_path / "p.parquet")
    assert sorted(texts.rows(range(2))) == sorted(each.training[0] for each in reader.captions(torch.arange(2)))
    with pytest.raises(ValueError, match="fewer than num 3"):
        prompts.run(images=out, output=tmp_path / "q.parquet", source={**source, "num": 3})


def test_digest_of_images_changes_with_their_captions_and_not_with_paths(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4), name.replace("a", "red").replace("b", "blue")).save(tmp_path / f"photos/{name}.png")
    section = {"kind": "images", "folder": str(tmp_path / "photos"), "labels": "none", "resolution": 4, "channels": 3}
    section |= {"resize": "box", "crop": "center", "split_seed": 0, "num_held_out": 1}
    digests = {dataset.load(section, "training").sha256}
    for text in ("red", "crimson"):
        (tmp_path / f"{text}.csv").write_text(f"file,caption\na.png,{text}\nb.png,blue\n")
        with_captions = {**section, "captions": str(tmp_path / f"{text}.csv")}
        digests.add(dataset.load(with_captions, "training").sha256)
        assert dataset.captions_of(with_captions, ["training", "held_out"])
    assert len(digests) == 3 and dataset.captions_of(section, ["training"]) is None
    assert len({dataset.load(glyph_section(tmp_path), "held_out").sha256 for _ in range(2)}) == 1


def test_tracked_captions_of_emoji_describe_single_characters():
    found = captions.of_code_points(ROOT / "workflow/resources/emoji/captions.csv")
    assert 600 <= len(found) <= 700
    assert all(len(each.held_out) == 1 and len(each.training) >= 2 for each in found.values())
    training = {text for each in found.values() for text in each.training}
    assert not training & {text for each in found.values() for text in each.held_out}
