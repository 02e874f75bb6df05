"""What a newcomer meets first: README's configuration is a right one, links lead somewhere, the start page lists every page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
README = TREE / "README.md"
DOCS = TREE / "docs"
PAGES = sorted([*TREE.glob("*.md"), *DOCS.glob("*.md"), *(TREE / "examples").glob("**/*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def configuration() -> str:
    blocks = re.findall(r"^```yaml\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def anchors(page: Path) -> set[str]:
    """The headings, as GitHub and most generators of sites name them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_configuration_of_the_readme_passes_check(tmp_path: Path) -> None:
    file = tmp_path / "kybernate.yaml"
    file.write_text(configuration())
    done = subprocess.run(
        [sys.executable, "-m", "kybernate.cli", "check", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [line.split()[:2] for line in done.stdout.splitlines()]
    assert [kind for kind in (["chat", "model"], ["code", "model"], ["train", "job"]) if kind not in kinds] == []


def test_the_configuration_of_the_readme_is_short() -> None:
    assert len(configuration().splitlines()) <= 12


def test_status_and_installation_are_on_the_first_screen() -> None:
    lines = README.read_text().splitlines()
    installation = lines.index("## Install")
    assert installation < 40
    above = "\n".join(lines[:installation])
    assert "**Status:**" in above
    assert "**Requirements:**" in above
    assert "x86-64" in above
    assert "driver 570" in above


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TREE)))
def test_lines_fit_on_a_screen(page: Path) -> None:
    """A table's row and a picture's text can't be broken."""
    lines = [line for line in page.read_text().splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in lines if len(line) > 120] == []


def test_the_start_page_lists_every_page() -> None:
    listed = set(_LINK.findall((DOCS / "index.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= listed
