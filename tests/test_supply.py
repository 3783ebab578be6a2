"""What comes from outside: no file can run anything, nothing comes without a digest or a null that says so."""

import ast
from collections.abc import Iterator
from pathlib import Path

from dmd import config

ROOT = Path(__file__).resolve().parents[1]
TREES = ("dmd", "bench", "workflow", "tests")
FORBIDDEN = {  # name of a function, or its end -> where it may stand
    "pickle.load": (),
    "pickle.loads": (),
    "Unpickler": (),
    "joblib.load": (),
    "dill.load": (),
    "shelve.open": (),
    "marshal.loads": (),
    "torch.hub.load": (),
    "load_state_dict_from_url": (),
    "hf_hub_download": (),
    "snapshot_download": (),
    "urlopen": (),
    "urlretrieve": (),
    "extractall": (),
    "unpack_archive": (),
    "eval": (),
    "exec": (),
    "requests.get": ("dmd/artifacts/download.py",),
    "requests.request": ("dmd/artifacts/web_folder.py",),
}


def calls(tree: str) -> Iterator[tuple[Path, str, dict[str, ast.expr]]]:
    """File, dotted name and keywords of each call in a tree of the repository."""
    for path in sorted((ROOT / tree).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                keywords = {each.arg: each.value for each in node.keywords if each.arg}
                yield path.relative_to(ROOT), ast.unparse(node.func), keywords


def said(keywords: dict[str, ast.expr], name: str) -> object:
    """A keyword that is written out, None where it is not."""
    value = keywords.get(name)
    return value.value if isinstance(value, ast.Constant) else None


def test_torch_loads_weights_alone_and_in_one_place():
    found = [(path, keywords) for tree in TREES for path, name, keywords in calls(tree) if name == "torch.load"]
    assert all(said(keywords, "weights_only") is True for _, keywords in found)
    assert {str(path) for path, _ in found if path.parts[0] != "tests"} == {"dmd/artifacts/weights_file.py"}


def test_nothing_reads_pickles_runs_text_or_fetches_by_itself():
    for tree in TREES[:3]:
        for path, name, keywords in calls(tree):
            bad = [each for each in FORBIDDEN if name == each or ("." in each and name.endswith(f".{each}"))]
            bad += [
                each for each in FORBIDDEN if "." not in each and each not in ("eval", "exec") and name.endswith(each)
            ]
            assert not [each for each in bad if str(path) not in FORBIDDEN[each]], f"{path}: {name}"
            if name in ("np.load", "numpy.load"):
                assert said(keywords, "allow_pickle") is False, path
            if name == "yaml.load":
                assert "SafeLoader" in ast.unparse(keywords["Loader"]), path
            if name.endswith(".from_pretrained"):
                assert said(keywords, "local_files_only") is True, f"{path}: {name}"


def test_every_input_that_is_fetched_has_a_digest_or_a_null_that_is_written_out():
    inputs = config.read_yaml(ROOT / "config.yaml")["inputs"]
    assert inputs
    for name, entry in inputs.items():
        assert "sha256" in entry, name
        assert entry["sha256"] is None or len(entry["sha256"]) in range(8, 65), name
