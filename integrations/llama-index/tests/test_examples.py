"""The examples of memory and recorder run, and say what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def said(name: str) -> list[str]:
    """The lines that an example prints."""
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [line.strip() for line in ran.stdout.splitlines() if line.strip()]


def test_function_agent() -> None:
    lines = said("function_agent.py")
    monday, tuesday = lines[: lines.index("? Order 52 is late too. Please see to it.")], lines[-2:]
    assert [line.split()[0] for line in monday[1:3]] == ["tracking", "send_invoice"]
    assert tuesday[0] == "send_invoice {'order': 52}"  # it does not look again
    assert tuesday[1].startswith("> Customs held order 52")


def test_agent_workflow() -> None:
    lines = said("agent_workflow.py")
    first = lines[lines.index("INC-1: db-1 is slow.") : lines.index("INC-2: db-2 is slow. What was it the last time?")]
    second = lines[len(first) + lines.index("INC-1: db-1 is slow.") :]
    assert "finder: disk {'host': 'db-1'}" in first
    assert first[-1].startswith("fixer: db-1 was slow because old logs")
    assert not any("finder: disk" in line for line in second)  # it is shown what it was the last time
    assert "fixer: remove_logs {'host': 'db-2'}" in second
