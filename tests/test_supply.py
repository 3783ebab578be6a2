"""What comes from outside: no file can run anything, nothing comes without a digest or a null that says so."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dmd import config
from dmd.config import reading

ROOT = Path(__file__).resolve().parents[1]
TREES = ("dmd", "bench", "workflow")
MODULES = {  # that run what a file says, or fetch -> where they may be imported
    **dict.fromkeys("marshal shelve joblib dill cloudpickle runpy torch.hub torch.package torch.jit".split(), ()),
    **dict.fromkeys("urllib.request urllib3 http.client ftplib httpx aiohttp boto3 fsspec huggingface_hub".split(), ()),
    "pickle": (),
    "requests": tuple(f"dmd/data/{name}.py" for name in ("download", "web_folder", "web_request")),
}
NAMES = frozenset(  # wherever they stand, called or handed on; methods by their last name
    "pickle.load pickle.loads pickle.Unpickler builtins.eval builtins.exec builtins.__import__ "
    "importlib.import_module pandas.read_pickle os.system os.popen .load_state_dict_from_url .hf_hub_download "
    ".snapshot_download .urlopen .urlretrieve .extractall .unpack_archive".split()
)
PLACES = {"importlib.import_module": ("dmd/methods/__init__.py",)}  # of names of ours
REQUIRED = {  # function, or the name of a method -> (keyword, what it has to be)
    "torch.load": ("weights_only", "True"),
    "numpy.load": ("allow_pickle", "False"),
    ".from_pretrained": ("local_files_only", "True"),
    "yaml.load": ("Loader", "SafeLoader"),
}
COMMANDS = re.compile(r"(?<![\w-])(?:curl|wget|aria2c|scp|rsync|git clone)(?![\w-])")
INSTALLERS = re.compile(r"(?:pip|conda|mamba) install")
IN_RULES = ("os", "shlex", "signal", "sys", "re", "functools", "pathlib", "dmd")
IN_RULES += ("snakemake", "snakemake_interface_executor_plugins")


def dotted(node: ast.expr, bound: dict[str, str]) -> str:
    """Full name of an expression, names replaced by what imports bind them to; of others only `.` and the attribute."""
    if isinstance(node, ast.Name):
        return bound.get(node.id, f"builtins.{node.id}")
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, bound)
        return f"{inner}.{node.attr}" if inner and not inner.startswith((".", "builtins.")) else f".{node.attr}"
    return ""


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name that an import binds, and what it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                yield each.asname or each.name.split(".")[0], each.name if each.asname else each.name.split(".")[0]
                yield "", each.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


def python_faults(path: str, text: str) -> list[str]:
    """What a Python file imports, names or calls although it must not."""
    tree = ast.parse(text)
    found = list(imported(tree))
    bound = {name: what for name, what in found if name}
    used = [what for _, what in found]
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and COMMANDS.search(node.value):
            faults.append(f"{path}: runs {node.value!r}")
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        used.append(name := dotted(node, bound))
        key = name if name in REQUIRED else f".{name.rpartition('.')[2]}"
        if key in REQUIRED:
            word, wanted = REQUIRED[key]
            keywords = {each.arg: ast.unparse(each.value) for each in getattr(called.get(id(node)), "keywords", ())}
            if keywords.get(word) != wanted or (name == "torch.load" and "tests/" not in path):
                faults.append(f"{path}: {name} without {word}={wanted}, or not in its place")
    for name in used:
        forbidden = {name, f".{name.rpartition('.')[2]}"} & NAMES and path not in PLACES.get(name, ())
        faults += [f"{path}: {name}"] if forbidden else []
        modules = [each for each in MODULES if name == each or name.startswith(f"{each}.")]
        faults += [f"{path}: {name}" for each in modules if path not in MODULES[each]]
    return faults


def rule_faults(path: str, text: str) -> list[str]:
    """The same of files of rules, which are not quite Python: few imports, none of the names, no fetching shell."""
    modules = [one or other for one, other in re.findall(r"^\s*(?:import\s+(\S+)|from\s+(\S+)\s+import)", text, re.M)]
    found = [each for each in modules if each.split(".")[0] not in IN_RULES]
    for name in (*NAMES, *REQUIRED):
        before = r"(?<![\w.])" if name.startswith("builtins.") else r"(?<!\w)"
        found += re.findall(f"{before}{re.escape(name.removeprefix('builtins.'))}\\b", text)
    return [f"{path}: {each}" for each in (*found, *COMMANDS.findall(text), *INSTALLERS.findall(text))]


def test_nothing_reads_pickles_runs_text_or_fetches_by_itself():
    files = [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]
    rules = [
        ROOT / "Snakefile",
        *sorted((ROOT / "workflow").rglob("*.smk")),
        *sorted((ROOT / "profiles").rglob("*.yaml")),
    ]
    assert len(files) > 150 and len(rules) > 10
    found = [fault for path in files for fault in python_faults(str(path.relative_to(ROOT)), path.read_text())]
    found += [fault for path in rules for fault in rule_faults(str(path.relative_to(ROOT)), path.read_text())]
    assert not found


def test_loader_of_yaml_is_a_safe_one():
    assert issubclass(reading.SafeLoader, (yaml.SafeLoader, yaml.CSafeLoader))


def test_torch_loads_weights_alone_in_tests_too():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        faults = python_faults(f"tests/{path.name}", path.read_text())
        assert not [fault for fault in faults if "torch.load" in fault]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=True)",  # not in its place
        "from torch import load\nload(path)",
        "from torch import load as fetch\nfetch(path)",
        "import torch as t\nt.load(path)",
        "import torch\nlist(map(torch.load, paths))",
        "import torch\nread = torch.load",
        "import torch\ntorch.hub.load('owner/name', 'net')",
        "from torch import hub",
        "from torch.hub import load_state_dict_from_url",
        "import pickle\npickle.loads(text)",
        "from pickle import loads",
        "from pickle import Unpickler as Reader",
        "def read(path):\n    import pickle as p\n    return p.load(path)",
        "import marshal",
        "from joblib import load",
        "import requests\nrequests.Session().get(url)",
        "from requests import get",
        "import urllib.request",
        "import urllib.request as web\nweb.urlopen(url)",
        "from urllib import request",
        "from http.client import HTTPSConnection",
        "import huggingface_hub",
        "from huggingface_hub import hf_hub_download as fetch",
        "eval(text)",
        "run = exec",
        "exec(compile(text, '', 'exec'))",
        "__import__(name)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module",
        "import numpy as np\nnp.load(path)",
        "from numpy import load\nload(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import load\nload(text, Loader)",
        "pipeline.from_pretrained(folder)",
        "pipeline.from_pretrained(folder, local_files_only=False)",
        "archive.extractall(folder)",
        "import shutil\nshutil.unpack_archive(path)",
        "import subprocess\nsubprocess.run(['curl', url])",
        "import subprocess\nsubprocess.run(f'cd x && wget {url}', shell=True)",
        "import os\nos.system(command)",
    ],
)
def test_forbidden_python_is_found(text: str):
    assert python_faults("dmd/stages/example.py", text)


@pytest.mark.parametrize(
    "text",
    [
        "import re\nre.compile(text)",
        "import json\njson.load(stream)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "from pathlib import Path\nPath(name).open()",
        "import pickletools\npickletools.genops(stream)",
        "pipeline.from_pretrained(folder, local_files_only=True)",
        "from urllib.parse import quote",
        "network.eval()\nnetwork.compile(dynamic=False)",
    ],
)
def test_harmless_python_is_left_alone(text: str):
    assert not python_faults("dmd/stages/example.py", text)


def test_what_is_forbidden_elsewhere_stands_in_its_place():
    assert not python_faults("tests/test_example.py", "import torch\ntorch.load(path, weights_only=True)")
    assert not python_faults("dmd/data/download.py", "import requests\nrequests.get(url)")
    assert python_faults("tests/test_example.py", "import torch\ntorch.load(path)")


@pytest.mark.parametrize(
    "text",
    [
        "shell:\n    'curl -L {params.url} > {output}'",
        'shell:\n    "cd x && wget -q {params.url}"',
        "shell:\n    'python -m pip install x'",
        "import pickle",
        "from torch import load",
        "import requests",
        "    import torch",
        "params:\n    number=lambda wildcards: eval(wildcards.number)",
        "params:\n    tensors=torch.load(path)",
    ],
)
def test_forbidden_rules_are_found(text: str):
    assert rule_faults("workflow/rules/example.smk", text)


def test_harmless_rules_are_left_alone():
    assert not rule_faults(
        "workflow/rules/evaluate.smk", "import re\nrule evaluate:\n    shell: 'python -m dmd.stages.evaluate'"
    )


def test_every_input_that_is_fetched_has_a_digest_or_a_null_that_is_written_out():
    inputs = config.read_file(ROOT / "config.yaml")["inputs"]
    assert inputs
    for name, entry in inputs.items():
        assert "sha256" in entry, name
        assert entry["sha256"] is None or len(entry["sha256"]) in range(8, 65), name
