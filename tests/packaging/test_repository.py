"""What the repository's host and its visitors read: templates, workflows, the threat model, and the words of the Makefile."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

TREE = Path(__file__).resolve().parents[2]
HOST = TREE / ".github"
WORKFLOWS = sorted((HOST / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (HOST / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
MAKEFILE = (TREE / "Makefile").read_text()
THREATS = (TREE / "docs" / "threat-model.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:src|native|scripts|tests|docs)/[^` ]+)`", THREATS)))


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def by_name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", FORMS, ids=by_name)
def test_a_form_can_be_filled_in(path: Path) -> None:
    form = loaded(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert ids
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"].get("label" if field["type"] != "markdown" else "value")
        assert field["type"] != "dropdown" or field["attributes"]["options"]


def test_updates_come_for_all_that_is_locked() -> None:
    updates = {(each["package-ecosystem"], each["directory"]) for each in loaded(HOST / "dependabot.yml")["updates"]}
    assert updates == {("uv", "/"), ("pip", "/scripts"), ("github-actions", "/")}


@pytest.mark.parametrize("path", WORKFLOWS, ids=by_name)
def test_a_workflow_may_only_read_unless_a_job_says_more(path: Path) -> None:
    workflow = loaded(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"], name


@pytest.mark.parametrize("path", WORKFLOWS, ids=by_name)
def test_actions_are_those_that_were_looked_at(path: Path) -> None:
    """A tag can be moved to another commit, a commit's name can't."""
    used = re.findall(r"uses: (.*)$", path.read_text(), re.MULTILINE)
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v[\d.]+", each)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=by_name)
def test_a_workflow_calls_words_that_there_are(path: Path) -> None:
    called = set(re.findall(r"(?:run: |sudo |^ +)make ([a-z][a-z0-9-]*)", path.read_text(), re.MULTILINE))
    assert called <= words()


def words() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("word", sorted(words()))
def test_a_word_of_the_makefile_can_be_made(word: str) -> None:
    """What it would run, said and not done."""
    done = subprocess.run(["make", "--dry-run", word], cwd=TREE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    scripts = re.findall(r"\bscripts/[\w.-]+", done.stdout)
    assert [each for each in scripts if not (TREE / each).exists()] == []


def test_what_the_guide_says_to_make_can_be_made() -> None:
    for page in ("CONTRIBUTING.md", "README.md", "SECURITY.md"):
        called = set(re.findall(r"(?:^    |`)make ([a-z][a-z0-9-]*)", (TREE / page).read_text(), re.MULTILINE))
        assert called <= words(), page


def test_every_page_is_on_the_site_and_in_the_index() -> None:
    """`make docs` checks their links."""

    def leaves(nav: Any) -> list[str]:
        return (
            [nav]
            if isinstance(nav, str)
            else [leaf for each in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(each)]
        )

    pages = {f"docs/{path.name}" for path in (TREE / "docs").glob("*.md")}
    assert pages <= set(leaves(loaded(TREE / "mkdocs.yml")["nav"]))
    index = set(re.findall(r"\]\(([\w-]+\.md)\)", (TREE / "docs" / "index.md").read_text()))
    assert {Path(page).name for page in pages} - {"index.md"} <= index


def test_the_bill_of_materials_leaves_nothing_out(tmp_path: Path) -> None:
    bill = {"metadata": {"component": {"name": "kybernate"}}, "components": [{"name": "aiohttp"}]}
    text = f"{'ab' * 32}  ./libgmp10_2%3a6.3.0+dfsg-5+b2_amd64.deb\n{'cd' * 32}  ./criu_4.2.1-1_amd64.deb\n"

    def completed(packages: str) -> subprocess.CompletedProcess[str]:
        listed = tmp_path / "packages.sha256"
        listed.write_text(packages)
        command = [sys.executable, str(TREE / "scripts" / "materials.py"), "1.2.3", str(listed)]
        return subprocess.run(command, input=json.dumps(bill), capture_output=True, text=True, check=False)

    done, damaged = completed(text), completed("no package\n" + text)
    whole = json.loads(done.stdout)
    assert whole["metadata"]["component"]["version"] == "1.2.3"
    assert [each["name"] for each in whole["components"]] == ["aiohttp", "libgmp10", "criu"]
    assert whole["components"][1]["purl"] == "pkg:deb/debian/libgmp10@2%3A6.3.0%2Bdfsg-5%2Bb2?arch=amd64"
    assert (damaged.returncode, damaged.stdout) == (1, "")


def test_the_threat_model_names_something() -> None:
    assert len([name for name in NAMED if "::" in name]) > 50


@pytest.mark.parametrize("name", NAMED)
def test_what_the_threat_model_names_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    path = TREE / file
    assert path.is_file()
    if function:
        defined = {
            each.name
            for each in ast.walk(ast.parse(path.read_text()))
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert function in defined
