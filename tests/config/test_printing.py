"""Text from outside on the screen and in logs: one line, no control characters, no secrets, and not too long."""

import json
import re
import unicodedata

import pytest
import torch

from dmd.config import printing
from dmd.report import card, contact_sheet, plots, table_text
from dmd.stages import charts

CONTROLS = [chr(number) for number in (*range(32), *range(127, 160))]
INVISIBLE = [*"\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ud800\udcff"]


@pytest.mark.parametrize("show", [printing.line, printing.piece, printing.lines, printing.markdown])
@pytest.mark.parametrize("character", CONTROLS + INVISIBLE, ids=lambda character: f"{ord(character):04x}")
def test_characters_that_no_reader_sees_are_escaped(character, show):
    shown = show(f"cat{character}dog")
    shown.encode()  # no surrogates
    text = shown if show is not printing.lines else shown.replace("\n", "")
    assert not any(unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") for each in text)
    assert character == "\n" or "dog" in shown and shown != "catdog"


def test_other_text_stays_as_it_is():
    for text in ("a photo of a cat", "größer, 日本語 ✓", "results/a b/c.png", "what? no/yes", "a@b.c", "5 / 3?"):
        assert printing.line(text) == printing.piece(text) == printing.without_secrets(text) == text


@pytest.mark.parametrize(("show", "limit"), [(printing.line, printing.LINE), (printing.piece, printing.PIECE)])
def test_long_text_loses_its_middle(show, limit):
    assert show("a" * limit) == "a" * limit
    shown = show("begin" + "x" * 10**7 + "end")
    assert len(shown) <= limit and shown.startswith("beginx") and shown.endswith("xend") and "characters" in shown
    assert len(show("\x1b" * 10**6)) <= limit
    assert len(show("/?" * 10**6)) <= limit  # not in quadratic time, either


def test_a_traceback_keeps_its_last_lines():
    shown = printing.lines("\n".join(f"line {number}" for number in range(10**5))).split("\n")
    assert len(shown) == printing.LINES and shown[-1] == "line 99999"


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@host/path/file.bin",
        "https://secret@host/file.bin",
        "http://user:se@secret@host:80/file.bin is missing",
        "s3://KEY:secret@bucket/folder",
        "https://host/file.bin?X-Amz-Signature=secret&X-Amz-Date=1",
        "https://host/file.bin?token=secret",
        "https://host/file.bin?a=1&sig=secret%2F+/=&b=2",
        "https://host/file.bin?secret",
        "https://host?key=secret",
        "(from https://host/a?token=secret) and (https://host/b?token=secret)",
        '{"url":"https://user:secret@host/file.bin?token=secret","size":1}',
        "Max retries exceeded with url: /file.bin?token=secret (Caused by Error('x'))",
        "InvalidURL('https://user:secret@host/?sig=secret')",
    ],
)
def test_secrets_of_urls_are_never_shown(text):
    for show in (printing.line, printing.piece, printing.lines, printing.markdown, printing.without_secrets):
        assert "secret" not in show(text) and "***" in show(text).replace("\\", "")


def test_markdown_is_neither_markup_nor_html():
    assert printing.markdown("a | b <script>*c* `d` [e](f)") == r"a \| b &lt;script&gt;\*c\* \`d\` [e\](f)"
    assert printing.markdown("_x_ ~~y~~ $z$ & \n\n- w") == r"\_x\_ \~~y\~~ \$z\$ &amp; \\n\\n- w"
    for text in ("beta_start 0.1, [1, 2]", "fd-digits32: 3.5 ± 0.2 (min 1) #4", "LADD; w/o KL, 50 %"):
        assert printing.markdown(text) == text


HOSTILE = "a|b](http://x) <script>alert(1)</script>\n| forged | row |\n# heading\x1b[2J *b*"
MARKUP = re.compile(r"(?<!\\)(\]\(|\*)")


def test_labels_of_a_table_are_neither_rows_nor_markup():
    row = {"source": "ours", "label": HOSTILE, "dataset": "d", "metric": "fid", "value": 1.0, "note": HOSTILE}
    row |= {"num": 1, "spread": "trainings"}
    text = table_text.text([row, {**row, "source": "published", "label": HOSTILE + "2"}], HOSTILE)
    assert "<script>" not in text and "\x1b" not in text and not MARKUP.search(text)
    assert not [line for line in text.splitlines() if line.startswith(("| forged", "# heading"))]


def test_values_of_a_card_are_neither_rows_nor_markup(tmp_path):
    (tmp_path / "fid.json").write_text(
        json.dumps({"metric": HOSTILE, "value": 1.0, "num_samples": 2, "reference": {"name": HOSTILE}})
    )
    text = card._table({"x": HOSTILE, "y": {"z": HOSTILE}}) + "\n" + card._scores([tmp_path / "fid.json"])
    assert "<script>" not in text and "\x1b" not in text and not MARKUP.search(text) and len(text.splitlines()) == 7


@pytest.mark.parametrize("label", [HOSTILE, "$\\bad{$", "$x^2$", "_hidden", "\\$", "\0\u202e", "x" * 10**6])
def test_any_label_and_title_stand_in_a_chart_as_text(label, tmp_path):
    figure, axes = plots.new(1, 1, size=(3.0, 3.0))
    charts._draw(axes[0, 0], 0, label, [1.0], [[2.0]])
    plots.heading(figure, label)
    (entry,) = axes[0, 0].legend().get_texts()
    assert entry._preprocess_math(entry.get_text()) == (" " * (label[0] == "_") + printing.piece(label), False)
    plots.save(figure, tmp_path / "chart.png")


@pytest.mark.parametrize("prompt", [HOSTILE, "$\\bad{$", "\0\u202e", "x" * 10**7, "word " * 10**6])
def test_any_prompt_can_be_drawn_below_its_image(prompt, tmp_path):
    figure = contact_sheet.contact_sheet([torch.zeros(1, 3, 4, 4)], [prompt], "title")
    plots.save(figure, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size < 10**6
