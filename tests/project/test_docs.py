"""Names in the documentation exist, examples run, messages are real, and the language is plain."""

import ast
import dataclasses
import io
import itertools
import re
import runpy
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml
from lib.layers import LAYERS

from jaxalign import settings
from jaxalign.commands import COMMANDS
from jaxalign.core.types import Pairs
from jaxalign.diagnostics import DIAGNOSTICS
from jaxalign.objectives import OBJECTIVES
from jaxalign.recipe.read import parse, resolved
from jaxalign.recipe.scorers import kind_of, read_scorers
from jaxalign.settings.pair import READS
from jaxalign.settings.score import KINDS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A path in backticks or in a command: a file of the repository, told by its first folder.
FOLDERS = "jaxalign|configs|docs|examples|tests|tpu_scripts|benchmarks"
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./*-]*\w")
SECTIONS = {
    "run": settings.Run,
    "model": settings.Model,
    "mesh": settings.Mesh,
    "data": settings.Data,
    "reference": settings.Reference,
    "optimizer": settings.Optimizer,
    "lora": settings.Lora,
}
RECIPES = [
    README,
    *(ROOT / "docs" / f"{page}.md" for page in ("own-model", "coming-from-trl", "choosing")),
]
each_document = pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.M | re.S)


def anchors(path):
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@each_document
def test_every_link_to_a_file_resolves(path):
    links = [link for link in LINK.findall(path.read_text()) if "://" not in link]
    assert [x for x in links if not (path.parent / x.partition("#")[0]).exists()] == []


@each_document
def test_every_link_to_a_heading_resolves(path):
    links = [link.partition("#") for link in LINK.findall(path.read_text()) if "://" not in link]
    pages = [(path.parent / page if page else path, anchor) for page, _, anchor in links if anchor]
    assert [(p.name, a) for p, a in pages if a not in anchors(p)] == []


@each_document
def test_every_file_named_exists(path):
    named = PATH.findall(path.read_text())
    # CONTRIBUTING.md tells where a new objective, foo.py, would go.
    assert [x for x in named if not list(ROOT.glob(x)) and not x.endswith("foo.py")] == []


@each_document
def test_every_command_named_is_one(path):
    named = re.findall(r"(?:`|^|/bin/)jaxalign ([a-z]+)", path.read_text(), re.M)
    assert set(named) <= set(COMMANDS)


@pytest.mark.parametrize(
    "path",
    [path for path in DOCS if path.name != "CHANGELOG.md"],  # it names old settings too
    ids=lambda p: p.name,
)
def test_every_setting_named_is_one(path):
    named = re.findall(rf"`({'|'.join(SECTIONS)})\.(\w+)[:`]", path.read_text())
    known = {(s, f.name) for s, record in SECTIONS.items() for f in dataclasses.fields(record)}
    assert set(named) <= known


def test_the_page_about_running_lists_every_command():
    rows = re.findall(r"^\| `jaxalign (\w+) ", (ROOT / "docs" / "running.md").read_text(), re.M)
    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_python_of_the_readme_prints_what_it_says(number):
    code = blocks(README, "python")[number]
    said = re.findall(r"^print\(.*\)  # (.+)$", code, re.M)
    assert said, "an example prints something, and says what in a comment"
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    assert out.getvalue().splitlines() == said


@pytest.mark.parametrize(
    "text",
    [text for page in RECIPES for text in blocks(page, "yaml") if "run:" in text],
    ids=itertools.count(),
)
def test_every_recipe_shown_is_one(text):
    assert parse(yaml.safe_load(text)).stages


@pytest.mark.parametrize("path", [README, ROOT / "docs" / "own-model.md"], ids=lambda p: p.name)
def test_every_flag_shown_is_one_of_the_recipe_above_it(path):
    text = blocks(path, "yaml")[0]
    flags = re.findall(r"--([a-z]+\.[a-z_.-]+)", path.read_text())
    assert flags
    for flag in flags:
        value = resolved(parse(yaml.safe_load(text)))
        for key in flag.replace("-", "_").split("."):
            assert key in value, flag
            value = value[key]


MAKING = ROOT / "docs" / "making-data.md"


def test_the_page_about_data_lists_every_scorer_and_every_method():
    tables = re.split(r"^## ", MAKING.read_text(), flags=re.M)
    scorers, methods = (
        {name for name in re.findall(r"^\| `(\w+)` \|", table, re.M)}
        for table in tables
        if table.startswith(("Score\n", "Pair\n"))
    )
    assert set(KINDS) <= scorers
    assert set(READS) <= methods


def test_every_scorer_shown_is_one():
    shown, *_ = blocks(MAKING, "yaml")
    found = read_scorers(yaml.safe_load(shown))
    assert [kind_of(record) for record in found] == [
        kind for one in yaml.safe_load(shown) for kind in ([one] if isinstance(one, str) else one)
    ]
    assert {kind_of(record) for record in found} == set(KINDS)


def test_the_options_of_a_scorer_listed_are_those_it_has():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", MAKING.read_text(), re.M)
    common = {"name", "weight"}
    for kind, said in rows:
        if kind in KINDS:
            named = set(re.findall(r"`(\w+)`", said)) - common
            own = {name for name in KINDS[kind].__annotations__ if name not in common}
            assert own <= named, kind
            assert named <= {f.name for f in dataclasses.fields(KINDS[kind])}, kind


def test_the_rounds_shown_are_a_recipe():
    shown = yaml.safe_load(blocks(MAKING, "yaml")[1])
    given = {"run": {"dir": "runs/x"}, "model": {"path": "x"}}
    assert list(parse(given | shown).stages)[-1] == "round-3/dpo"


def test_the_readme_counts_the_objectives():
    assert f"{len(OBJECTIVES)} objectives" in README.read_text()


@pytest.mark.parametrize("name", ["objectives.md", "models.md"])
def test_a_page_made_from_records_is_current(name):
    path = ROOT / "docs" / "build.py"
    pages = runpy.run_path(str(path))["PAGES"]
    assert pages[name]() == path.with_name(name).read_text(), "run docs/build.py"


def test_every_objective_has_its_place_in_the_guide():
    page = (ROOT / "docs" / "choosing.md").read_text()
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(OBJECTIVES)


def test_every_name_given_for_another_library_is_one_of_ours():
    page = (ROOT / "docs" / "coming-from-trl.md").read_text()
    cells = [row.split("|")[2] for row in page.splitlines() if row.startswith("| ")]
    known = {*OBJECTIVES, *(k for o in OBJECTIVES.values() for k in o.hyper)}
    known |= {f"reference.{f.name}" for f in dataclasses.fields(settings.Reference)}
    known |= {"data.max_prompt"}
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(named) > 40
    assert [n for n in named if n not in known and n.partition(":")[0] not in known] == []


def test_every_diagnostic_has_its_row_and_section_in_its_page():
    page = (ROOT / "docs" / "diagnostics.md").read_text()
    table = page.partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(DIAGNOSTICS)
    sections = re.findall(r"^## (.+)$", page, re.M)
    assert [s for s in sections if s in DIAGNOSTICS] == list(DIAGNOSTICS)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \|", table, re.M)
    for name, data, reference in rows:
        assert (data == "pairs") == (DIAGNOSTICS[name].data == (Pairs,))
        live = any(stat.joint for stat in DIAGNOSTICS[name].needs)
        wanted = ("live" if live else "yes") if "ref" in DIAGNOSTICS[name].inputs else "no"
        assert reference == wanted


def test_every_dependency_has_its_line():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(d for group in extras.values() for d in group)]
    names = {re.split(r"[\[<>=]", d)[0] for d in wanted} - {"jaxalign"} | set(extras)
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    assert sorted(n for n in names if not re.search(rf"(?<![\w-]){n}(?![\w-])", section)) == []


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    text = "".join(path.read_text() for path in DOCS)
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.M)) <= targets


def test_the_design_lists_the_layers_of_the_package():
    rows = re.findall(
        r"^\| (\d+) \| ([`\w, ]+) \|", (ROOT / "docs" / "design.md").read_text(), re.M
    )
    listed = [set() for _ in LAYERS]
    for layer, names in rows:
        listed[int(layer) - 1] |= set(re.findall(r"\w+", names))
    assert listed == [set(layer) for layer in LAYERS]


def test_the_documentation_names_every_recipe():
    recipes = [f"configs/{path.name}" for path in ROOT.glob("configs/*.yaml")]
    assert recipes
    text = "".join(path.read_text() for path in DOCS)
    assert [name for name in recipes if name not in text] == []


def test_the_readme_stays_under_150_lines():
    assert len(README.read_text().splitlines()) < 150


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert sorted(re.findall(r"[\w-]+\.md", nav)) == sorted(p.name for p in ROOT.glob("docs/*.md"))


def test_every_function_of_the_tour_exists():
    named = re.findall(r"`([\w/]+\.py):(\w+)`", (ROOT / "docs" / "tour.md").read_text())
    assert len(named) >= 9
    missing = []
    for file, name in named:
        body = ast.parse((ROOT / file).read_text()).body
        defined = {n.name for n in body if isinstance(n, ast.FunctionDef)}
        defined |= {t.id for n in body if isinstance(n, ast.Assign) for t in n.targets}
        missing += [] if name in defined else [f"{file}:{name}"]
    assert missing == []


def test_the_code_shown_on_the_tour_is_the_code():
    shown = blocks(ROOT / "docs" / "tour.md", "python")
    assert shown
    for block in shown:
        first, *lines = block.splitlines()
        source = {
            line.strip() for line in (ROOT / first.removeprefix("# ")).read_text().splitlines()
        }
        assert [line for line in lines if line.strip() not in source] == []


def messages():
    """Every text in the package, a mark in place of each value filled in."""
    found = []
    for path in (ROOT / "jaxalign").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_message_explained_is_one_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^### `(.+)`$", page, re.M)
    assert len(quoted) >= 25
    theirs = {"RESOURCE_EXHAUSTED"}
    known = messages()
    unknown = []
    for message in set(quoted) - theirs:
        fragments = [re.escape(part) for part in message.split("...") if part]
        if not any(re.search(".*".join(fragments), text, re.S) for text in known):
            unknown.append(message)
    assert unknown == []
