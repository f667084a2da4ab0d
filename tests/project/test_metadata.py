"""What the package says of itself agrees: versions, dates, issue forms, hooks."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
FORMS = sorted(
    p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"
)
HEADINGS = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.M)


def test_the_version_is_the_newest_of_the_changelog():
    assert HEADINGS[0][0] == PROJECT["version"]


def test_the_changelog_opens_with_what_is_unreleased():
    assert re.findall(r"^## (.*)$", CHANGELOG, re.M)[0] == "[Unreleased]"


def test_every_version_of_the_changelog_has_a_link():
    linked = re.findall(r"^\[(.+)\]: https://", CHANGELOG, re.M)
    assert linked == ["Unreleased", *(version for version, _ in HEADINGS)]


def test_the_citation_has_every_key_that_its_format_requires():
    # https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema-guide.md
    assert {"authors", "cff-version", "message", "title"} <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0"
    assert all(author["name"] for author in CITATION["authors"])


def test_the_citation_names_the_version_and_its_date():
    assert (CITATION["version"], CITATION["date-released"].isoformat()) == HEADINGS[0]


def test_the_citation_has_the_authors_and_the_repository_of_the_package():
    assert CITATION["authors"] == PROJECT["authors"]
    assert CITATION["repository-code"] == PROJECT["urls"]["Repository"]


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_an_issue_form_has_the_keys_that_github_requires(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)


def test_a_bug_needs_the_message_and_the_files_of_the_run():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    required = {f["id"] for f in form["body"] if f.get("validations", {}).get("required")}
    assert required == {"message", "recipe", "environment"}


def test_every_hook_is_a_target_of_the_makefile():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    commands = [hook["entry"].split() for hook in repository["hooks"]]
    assert [make for make, target in commands if make != "make" or target not in targets] == []
