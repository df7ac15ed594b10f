"""The example of this part runs, and says what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def said(*arguments: str) -> list[dict[str, str]]:
    """What was printed for each question: the choice, the answer, and what it was taken from."""
    command = [sys.executable, str(EXAMPLES / "router_query_engine.py"), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = []
    for block in ran.stdout.strip().split("\n\n"):
        _, choice, answer, *sources = (line.strip() for line in block.splitlines())
        found.append({"choice": choice, "answer": answer, "sources": "\n".join(sources)})
    return found


def test_router_query_engine() -> None:
    recorded, manual, unknown = said()
    assert recorded["choice"].startswith("memory, route retrieval")
    assert "pool exhaustion" in recorded["answer"]
    assert "pool exhaustion" in recorded["sources"]
    assert manual["choice"].startswith("documents: nothing in memory is near the query")
    assert manual["answer"].startswith("> Holiday requests are made two weeks ahead")
    assert "[manual]" in manual["sources"]
    assert unknown == {
        "choice": "memory, route retrieval: the store never saw INC-0000",
        "answer": "> I have no memory of INC-0000.",
        "sources": "",
    }


def test_a_question_of_one_s_own() -> None:
    (one,) = said("--ask", "Who needs to approve a certificate?")
    assert "security officer" in one["answer"]
