"""Tables of labels as spreadsheets and other systems write them: encodings, normal forms, padding, stray quotes."""

import unicodedata
from pathlib import Path

import pytest

from dmd.data import image_folder

NAMES = ["Ärger/été.png", "b.png"]
TABLE = "file,label\nÄrger/été.png,Süd\nb.png,Nord\n"


def labels(folder: Path, content: bytes, names: list[str] = NAMES) -> list[int]:
    path = folder / "labels.csv"
    path.write_bytes(content)
    return image_folder.labels(folder, names, str(path))[0]


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"],
)
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encoding_mark_and_line_ends_do_not_matter(tmp_path, encoding, mark, end):
    assert labels(tmp_path, TABLE.replace(",", mark).replace("\n", end).encode(encoding)) == [1, 0]


def test_name_in_another_normal_form_is_found_unless_two_files_have_it(tmp_path):
    for on_disk, listed in (("NFC", "NFD"), ("NFD", "NFC")):
        names = [unicodedata.normalize(on_disk, name) for name in NAMES]
        table = unicodedata.normalize(listed, TABLE)
        assert names[0] not in table and labels(tmp_path, table.encode(), names) == [1, 0]
    both = [unicodedata.normalize(form, NAMES[0]) for form in ("NFC", "NFD")]
    rows = "".join(f"{name},{form}\n" for form, name in enumerate(both))
    assert labels(tmp_path, f"file,label\n{rows}".encode(), both) == [0, 1]
    third = "e\u0301t\u00e9.png"  # neither form
    names = [unicodedata.normalize(form, third) for form in ("NFC", "NFD")]
    with pytest.raises(ValueError, match="line 2: no image"):
        labels(tmp_path, f"file,label\n{third},1\n".encode(), names)


@pytest.mark.parametrize("padding", ["\n", ",\n", " , \n", ",,,\n" * 1000, '"",""\n', "\n\n,\n"])
def test_rows_of_blank_cells_are_passed_over(tmp_path, padding):
    assert labels(tmp_path, (TABLE + padding).encode()) == [1, 0]
    assert labels(tmp_path, TABLE.replace("b.png", padding + "b.png").encode()) == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'file,label\nb.png,1\n"b.png,1\nb.png,2\n', "line 3: unexpected end of data: is there a stray quote"),
        (b"file,label\nb.png,1\n" + b"," * 1_000_001, "line 3: it has 1000001 characters, more than 1000000"),
        (b'file,label\nb.png,1\n"b.png,1\n"b.png,2\n', "line 3: .* is there a stray quote"),
        (b'file,label\nb.png,"' + b"x" * 200_000, "line 2: field larger than field limit"),
        (b"file,label,label\nb.png,1,2\n", "not one file and one label"),
        (b"file,label\nb.png,Smith, John\n", "line 2: it has 3 cells, but the first line has 2: is a text with"),
        (b"name,class\nb.png,1\n", "the columns 'name, class', not one file and one label"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "the columns .*, not one file and one label"),
        (b"a" * 100_000, "not one file and one label"),
        (b"file,label\nb.png\0,1\n", r"line 2: no image .b.png.x00. in"),
        ("file,label\nü.png,1\n".encode("utf-16")[:-1], "line 2 has the byte 0x0a, which is not utf-16: save it as"),
        (b"file,label\n" + b"a" * 9999 + b",1\n", "no image '" + "a" * 200 + "' in"),
        (b"", "labels.csv cannot be read as a table of labels: it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<html>", "an HTML or XML page"),
    ],
)
def test_damaged_table_is_refused_with_its_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as refused:
        labels(tmp_path, content)
    assert str(tmp_path / "labels.csv") in str(refused.value) and len(str(refused.value)) < 600


def test_labels_that_are_hardly_numbers_sort_as_texts(tmp_path):
    for odd in ("--5", "9" * 5000, "1.5", "-"):
        assert labels(tmp_path, f"file,label\nb.png,10\nc.png,9\nd.png,{odd}\n".encode(), ["b.png", "c.png", "d.png"])
    assert labels(tmp_path, b"file,label\nb.png,10\nc.png,-9\n", ["b.png", "c.png"]) == [1, 0]
