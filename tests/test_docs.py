"""README.md and docs/: links lead somewhere, what code is named after is there, examples are valid."""

import ast
import re
from pathlib import PurePath

import pytest

from dmd.config import RULES, Experiments, resolve
from tests import pages
from tests.pages import NAMES, PAGES, ROOT

PLACES = ("dmd", "docs", "workflow", "config", "tests", "bench", "profiles", "envs", ".ci")  # tracked folders
NO_FILE = re.compile(r"[*{]|NAME|mine\b")  # of a path: it stands for others


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", NAMES)
def test_lines_fit_on_a_screen(name: str):
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str):
    page = ROOT / name
    assert pages.links(page)
    for link in pages.links(page):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT) and target.is_file(), link
        assert not anchor or anchor in pages.anchors(target), link


@pytest.mark.parametrize("name", NAMES)
def test_no_two_headings_have_one_anchor(name: str):
    found = pages.anchors(ROOT / name)
    assert len(found) == len(set(found))


def test_readme_leads_to_every_page():
    assert {str(path.relative_to(ROOT)) for path in PAGES[1:]} <= {link.split("#")[0] for link in pages.links(PAGES[0])}


@pytest.mark.parametrize("name", NAMES)
def test_files_between_backticks_are_there(name: str):
    for words in pages.code(ROOT / name):
        for path in re.findall(rf"(?:^|\s)((?:{'|'.join(map(re.escape, PLACES))})/[^\s,;:`]*)", words):
            assert NO_FILE.search(path) or (ROOT / path).exists(), path


def defined(name: str) -> bool:
    """Whether a dotted name is a module of the package, or stands in one."""
    parts, place = name.split("."), ROOT
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / f"{parts.pop(0)}.py" if parts and (place / f"{parts[0]}.py").is_file() else place / "__init__.py"
    body = ast.parse(file.read_text()).body
    for part in parts:
        found = [node for node in body if part in names(node)]
        if not found:
            return False
        body = getattr(found[-1], "body", [])
    return True


def names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()


def test_unknown_names_are_told_from_known_ones():
    assert defined("dmd.load") and defined("dmd.methods.dmd.Dmd.loss") and defined("dmd.verify")
    assert not defined("dmd.lod") and not defined("dmd.methods.dmd.Dmd.los") and not defined("dmd.stages.verfy.x")


@pytest.mark.parametrize("name", NAMES)
def test_dotted_names_of_the_package_are_defined(name: str):
    for words in pages.code(ROOT / name):
        for dotted in re.findall(r"(?<![\w/.])dmd(?:\.\w+)+", words):
            assert defined(dotted), dotted


@pytest.mark.parametrize("name", NAMES)
def test_make_knows_targets_and_variables(name: str):
    makefile = (ROOT / "Makefile").read_text()
    for words in pages.code(ROOT / name):
        if not words.startswith("make "):
            continue
        target, *settings = words.split("#")[0].split()[1:]
        assert re.search(rf"^([\w-]+ )*{target}( [\w-]+)*: ", makefile, re.M), words
        assert all(re.search(rf"\b{each.split('=')[0]}\b", makefile) for each in settings), words


def test_tree_of_results_has_every_artifact():
    tree = (ROOT / "results" / "README.md").read_text()
    for file in (PurePath(file) for rule in RULES.values() for file in rule.files):
        assert f"{file.parts[0]}/" in tree or len(file.parts) == 1, file
        assert "pipeline" in file.parts or file.name.replace(":05d", "") in tree, file


def test_table_of_rules_is_complete():
    page = (ROOT / "docs" / "development.md").read_text()
    listed = {
        file: {rule: stage or rule for rule, stage in re.findall(r"`(\w+)`(?: \((\w+)\))?", rules)}
        for file, rules in re.findall(r"^\| `(\w+\.smk)` \| (.*) \|$", page, re.M)
    }
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        written = re.findall(r"^ *(?:rule|use rule \w+ as) (\w+)(?: with)?:$", path.read_text(), re.M)
        assert listed.get(path.name, {}) == {rule: RULES[rule].stage for rule in written if rule != "missing"}, path
    assert {rule for rules in listed.values() for rule in rules} == set(RULES)


def test_examples_are_valid_and_share_what_the_pages_say():
    found = Experiments(resolve(pages.configuration()))
    owners = {rule: found.owner("digits-slower", rule) for rule in ("teacher", "reference", "pairs", "distill")}
    assert owners == {"teacher": "digits", "reference": "digits", "pairs": "digits", "distill": "digits-slower"}
    assert found.owner("shapes-teacher", "teacher") == "shapes"
