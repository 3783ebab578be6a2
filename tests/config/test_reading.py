"""YAML is read without guesses: no key twice, no key that is no text, no value that unfolds to gigabytes."""

import tracemalloc
from pathlib import Path

import pytest

from dmd import config
from dmd.config.command_line import check_arguments
from dmd.config.reading import MAX_BYTES, parse_yaml

ROOT = Path(__file__).resolve().parents[2]


def nested(depth: int, *, mapping: bool) -> str:
    """Collections of nine aliases of the collection before; in full 9^depth values."""
    lines = ["a0: &a0 [x]" if not mapping else "a0: &a0 {x: 1}"]
    for number in range(1, depth):
        aliases = [f"*a{number - 1}"] * 9
        inner = (
            ", ".join(f"k{index}: {alias}" for index, alias in enumerate(aliases)) if mapping else ", ".join(aliases)
        )
        lines.append(f"a{number}: &a{number} {{{inner}}}" if mapping else f"a{number}: &a{number} [{inner}]")
    return "\n".join(lines) + "\n"


REFUSED_YAML = {  # text -> message
    "a: 1\na: 2\n": 'the key "a" stands twice in a mapping: in line 1 and in line 2',
    'a: 1\n"a": 2\n': 'the key "a" stands twice .* line 1 and in line 2',
    "a: 1\n'\\x61': 2\nb: 3\n\"\\x61\": 2\n": 'the key "a" stands twice .* line 1 and in line 4',
    "a: 1\n!!str a: 2\n": 'the key "a" stands twice',
    "a: {b: {c: 1, d: 2, c: 3}}\n": 'the key "c" stands twice',
    "a: [{b: 1, b: 2}]\n": 'the key "b" stands twice',
    "{a: 1, a: 1}\n": 'the key "a" stands twice',
    '{"a": 1, "a": 2}': 'the key "a" stands twice',  # a file of JSON
    "? a\n: 1\n? a\n: 2\n": 'the key "a" stands twice',
    "&k a: 1\n*k : 2\n": 'the key "a" stands twice',
    "x: &x {a: 1}\ny: {<<: *x, <<: *x}\n": 'the key "<<" stands twice',
    "x: &x {a: 1}\ny: {<<: *x, a: 1, a: 2}\n": 'the key "a" stands twice',
    "x: &x {a: 1, a: 2}\ny: *x\n": 'the key "a" stands twice',
    "1: a\n'1': b\n": "line 1: the key 1 is no text",
    "1: a\n0x1: b\n": "line 1: the key 1 is no text",
    "true: a\nyes: b\n": "the key true is no text",
    "~: a\nnull: b\n": "the key ~ is no text",
    "2001-01-01: a\n": "the key 2001-01-01 is no text",
    "? [a, b]\n: 1\n": "line 1: a key is no text",
    "? {a: b}\n: 1\n": "line 1: a key is no text",
    "a: &a [*a]\n": "line 1: \\*a stands inside of itself",
    "a: &a {b: *a}\n": "stands inside of itself",
    "a: *b\n": "undefined alias",
    "a: !!python/object/apply:os.system [ls]\n": "could not determine a constructor",
    "a: 1\n---\nb: 2\n": "expected a single document",
    "a: [1\n": "expected ',' or ']'",
    "a: 2001-99-99\n": "month must be in 1..12",
    "a: " + "[" * 40 + "]" * 40: "nested more than 32 deep",
    "a: " + "[" * 100_000: "nested more than 32 deep",
    "a: " + "{b: " * 40 + "}" * 40: "nested more than 32 deep",
    "\n".join(["a0: &a0 [x]", *(f"a{i + 1}: &a{i + 1} [*a{i}]" for i in range(40))]): "nested more than 32 deep",
    nested(10, mapping=False): "more than 1000000 values",
    nested(10, mapping=True): "more than 1000000 values",
    "\n".join(["a0: &a0 {x: 1}", *(f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}" for i in range(9))]): (
        "more than 1000000 values"
    ),
}


@pytest.mark.parametrize("text", REFUSED_YAML, ids=range(len(REFUSED_YAML)))
def test_yaml_whose_meaning_is_open_or_whose_size_explodes_is_refused(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(config.ConfigError, match=rf"^{tmp_path}/a.yaml: (?s:.*){REFUSED_YAML[text]}"):
        config.read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("mapping", [True, False])
def test_aliases_are_counted_before_anything_is_built(tmp_path: Path, mapping: bool):
    (tmp_path / "a.yaml").write_text(nested(30, mapping=mapping))
    tracemalloc.start()
    with pytest.raises(config.ConfigError, match="more than 1000000 values"):
        config.read_yaml(tmp_path / "a.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_yaml_file_has_a_largest_size(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(config.ConfigError, match=f"a.yaml: {MAX_BYTES + 1} bytes are more than {MAX_BYTES}"):
        config.read_yaml(tmp_path / "a.yaml")


def test_aliases_and_merge_keys_that_stay_small_are_read(tmp_path: Path):
    text = "a: &a {k: 0, n: [1]}\nd: {e: {f: &x {<<: *a, k: 1}}}\ny: {<<: *x}\nz: {<<: [*x, *a], n: 2}\nw: *a\n"
    (tmp_path / "a.yaml").write_text(text)
    inner = {"k": 1, "n": [1]}
    assert config.read_yaml(tmp_path / "a.yaml") == {
        "a": {"k": 0, "n": [1]}, "d": {"e": {"f": inner}}, "y": inner, "z": {"k": 1, "n": 2}, "w": {"k": 0, "n": [1]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["a=1", "b=2", "a=3"], '--config: the key "a" stands twice'),
        (["a={b: 1}", "a={c: 2}"], '--config: the key "a" stands twice'),  # which Snakemake would merge
        (["a={b: 1, b: 2}"], '--config a: the key "b" stands twice in a mapping: in line 1 and in line 1'),
        (["a={'b': {'c': 1, 'c': 2}}"], '--config a: the key "c" stands twice'),
        (["a=" + "[" * 50], "--config a: line 1: .*nested more than 32 deep"),
    ],
)
def test_command_line_is_checked_like_a_file(entries: list[str], message: str):
    check_arguments(["experiments={a: {extends: b}}", "storage="])
    with pytest.raises(config.ConfigError, match=message):
        check_arguments(entries)


def test_templates_of_snakemake_which_run_python_are_refused(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("__use_yte__: true\na: ?open('ran', 'w')\n")
    with pytest.raises(config.ConfigError, match=r"config\.yaml: __use_yte__: templates, .* are not supported"):
        config.read_yaml(tmp_path / "config.yaml")


def test_every_yaml_file_of_the_project_is_read_by_the_same_rules():
    for path in [*ROOT.glob("*.yaml"), *(ROOT / "config").glob("*.yaml")]:
        assert config.read_yaml(path)
    for path in (ROOT / "profiles").rglob("*.yaml"):  # templates, which no configuration may be
        assert parse_yaml(path.read_text(), str(path))
    assert config.read_yaml(ROOT / "workflow" / "resources" / "published_values.yaml")


def test_merge_key_of_yaml_may_stand_beside_its_own(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert config.read_yaml(tmp_path / "a.yaml")["b"] == {"x": 3, "y": 2}
