"""The documents are true: generated ones are fresh, and every block of the README runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import mergegraph
from docs import generate

REPOSITORY = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
RUNNABLE = ("bash", "python", "yaml")


@dataclass(frozen=True)
class Block:
    """A fenced block: executed, unless a comment on the line above says why not."""

    kind: str
    text: str
    reason: str | None


def blocks(path: Path) -> list[Block]:
    return [
        Block(m["kind"], m["text"], m["reason"]) for m in FENCE.finditer(path.read_text(encoding="utf-8"))
    ]


def execute(block: Block, directory: Path) -> None:
    """Run a block; a yaml block becomes the file that its first line names."""
    if block.kind == "yaml":
        name = block.text.splitlines()[0].removeprefix("#").strip()
        (directory / name).write_text(block.text)
        return
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c"] if block.kind == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, block.text],
        cwd=directory,
        env={**os.environ, "PATH": binaries},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", sorted(generate.PAGES))
def test_a_generated_document_is_fresh(name: str) -> None:
    path = REPOSITORY / "docs" / name
    assert path.read_text(encoding="utf-8") == generate.render_page(name), "run `make docs`"


def test_every_readme_block_runs_or_says_why_not() -> None:
    for block in blocks(REPOSITORY / "README.md"):
        assert block.kind in (*RUNNABLE, "text"), f"what is this block?\n{block.text}"


def test_the_readme_works_from_top_to_bottom(demo: Path) -> None:
    for block in blocks(REPOSITORY / "README.md"):
        if block.kind in RUNNABLE and block.reason is None:
            execute(block, demo)


def test_every_relative_link_leads_somewhere() -> None:
    for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_architecture_page_names_only_what_is_there() -> None:
    page = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    source = REPOSITORY / "src" / "mergegraph"
    named = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?|[a-z_]+\.py)`", page)
    assert len(named) > 20
    missing = [x for x in named if not (source / x).exists() and not (REPOSITORY / x).exists()]
    assert missing == []


def test_the_changelog_knows_this_version() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(mergegraph.__version__)}\b", changelog, re.M)
