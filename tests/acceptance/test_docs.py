"""What the pages say is true: code runs and prints what stands beside it, commands work, links lead on.

Python blocks of a page run in order in one namespace, in an empty home with the hashing embedder; ``# >`` lines in a
block are what it prints. In ``console`` blocks each ``$ rtm …`` line runs, and the lines below it must be among its
output, in order. ``<!-- not run: reason -->`` before a block leaves it out.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from rag_tuned_memory.cli import main

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "integrations").glob("*/README.md")),
]
_BLOCK = re.compile(r"(?:<!-- (not run: [^>]+) -->\s*)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PRINTED = re.compile(r"^ *# ?> (.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the line that it begins in."""

    language: str
    text: str
    line: int
    skipped: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[2], found[3], text[: found.start(3)].count("\n") + 1, bool(found[1]))
        for found in _BLOCK.finditer(text)
    ]


def run_python(page: Path, block: Block, names: dict[str, object]) -> None:
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    assert printed.getvalue().splitlines() == _PRINTED.findall(block.text), f"{page.name}, line {block.line}"


def run_console(page: Path, block: Block) -> None:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        program, *arguments = shlex.split(command, comments=True)
        assert program == "rtm", f"{page.name}: only rtm commands are run, not {command!r}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = main(arguments)
        assert status == 0, f"{page.name}: {command}\n{printed.getvalue()}"
        lines = iter(line.rstrip() for line in printed.getvalue().splitlines())
        for wanted in filter(None, map(str.rstrip, shown)):
            assert wanted in lines, f"{page.name}: {command} does not print {wanted!r}:\n{printed.getvalue()}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "RTM_HOME", "RTM_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("RTM_EMBEDDER", "hashing")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.skipped:
            continue
        if block.language == "python":
            run_python(page, block, names)
        elif block.language == "console":
            run_console(page, block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


ARCHITECTURE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_layout_is_the_real_one() -> None:
    package = REPOSITORY / "src" / "rag_tuned_memory"
    layout = ARCHITECTURE.partition("src/rag_tuned_memory/\n")[2].partition("```")[0]
    named = set(re.findall(r"^  ([\w.]+?)/? ", layout, re.MULTILINE))
    kept = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert named == kept - {"__init__.py"}
    for folder in re.findall(r"^(\w+)/ ", layout, re.MULTILINE):
        assert (REPOSITORY / folder).is_dir(), folder


def test_the_layers_are_those_that_are_held() -> None:
    contract = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    held = [
        {part.strip().removeprefix("rag_tuned_memory.") for part in layer.split("|")} for layer in contract["layers"]
    ]
    drawn = ARCHITECTURE.partition("import-linter holds it:\n")[2].partition("\n\nOne concept")[0]
    assert [set(re.findall(r"[\w.]+", layer)) for layer in drawn.split("←")] == held[::-1]


def test_every_command_is_on_its_page() -> None:
    page = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["--help"]) == 0
    commands = re.findall(r"^  (\w+)  ", printed.getvalue().partition("Commands:")[2], re.MULTILINE)
    assert len(commands) > 10
    assert [name for name in commands if f"`rtm {name}" not in page] == []


def test_every_benchmark_is_on_its_page() -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (REPOSITORY / "benchmarks").glob("*/run.py")}
    assert folders == set(re.findall(r"\(\.\./benchmarks/(\w+)\)", page))
