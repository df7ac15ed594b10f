"""Does memory make a small model a better agent? Held-out incidents of the operations world, by way.

``run.py [--folder build/langchain_agent] [--incidents 20]``: an operator's 20 runs are recorded by the middleware of a
LangChain agent and distilled into an adapter. SmolLM2-135M-Instruct is then the agent: without memory, with recalled
text, with recalled runs shown as turns, with the adapter, with adapter and text, and as the memory decides. Each stage
is kept in the folder and not done again.
Writes ``rows.jsonl`` and ``result.json`` beside this script.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langgraph.errors import GraphRecursionError

from langchain_rag_tuned_memory import ChatRagTuned, RagTunedDemonstrations, RagTunedMemoryMiddleware
from rag_tuned_memory import Memory, Recipe, Settings
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.evaluation.stamp import code_hash, machine, versions
from rag_tuned_memory.models import CATALOG, pull

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "integrations" / "langchain" / "examples"))
from operations import SYSTEM, Incident, operate  # noqa: E402

NAMESPACE = "operations"
RUNS = 20
MOST_CALLS = 10
RECALLED = {"k": 6, "token_budget": 240}


@dataclass(frozen=True)
class Way:
    """How the agent is helped. ``must_call``: it may not answer in words, which the base does at once."""

    recalls: bool = False
    shown_runs: bool = False
    tuned: bool = False
    driver: bool = False
    must_call: bool = False


WAYS = {
    "no memory": Way(),
    "no memory, must call": Way(must_call=True),
    "recalled text": Way(recalls=True),
    "recalled runs": Way(shown_runs=True),
    "adapter": Way(tuned=True),
    "adapter and recalled text": Way(recalls=True, tuned=True),
    "as the memory decides": Way(driver=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/langchain_agent"))
    parser.add_argument("--incidents", type=int, default=20)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    given = parser.parse_args()
    settings = Settings(home=given.folder)
    for name in CATALOG:
        pull(name, cache=settings.cache)
    with Memory(NAMESPACE, settings=settings) as memory:
        record(memory)
        adapter = distil(memory)
        rows = dict(kept(given.folder))
        for way in given.ways:
            for history in incidents(NAMESPACE, skip=RUNS, episodes=given.incidents):
                key = f"{way}/{history.source_id}"
                if key not in rows:
                    rows[key] = drive(memory, adapter, WAYS[way], Incident.of(history)) | {"way": way, "incident": key}
                    keep(given.folder, key, rows[key])
            print(way, summary([row for row in rows.values() if row["way"] == way]), flush=True)
        write(memory, adapter, list(rows.values()))


def record(memory: Memory) -> None:
    """The operator's runs, recorded as they happen. Doing it again changes nothing."""
    for history in incidents(NAMESPACE, episodes=RUNS):
        operate(memory, history)
    print(memory.stats().store, flush=True)


def distil(memory: Memory) -> str:
    """The adapter's name; trained where there is none."""
    if (serving := memory.stats().serving) is None:
        report = memory.distil(Recipe(mixture={"acting": 8}), on_event=_tell)
        print(report.decision.summary, report.manifest.metrics, flush=True)
        if not report.promoted:
            raise SystemExit("The gate rejected the adapter: nothing to drive with.")
        serving = report.manifest.name
    return serving


def drive(memory: Memory, adapter: str, way: Way, incident: Incident) -> dict[str, Any]:
    """Let the model end one incident; nothing of it is recorded."""
    helpers: list[Any] = []
    if way.must_call:
        helpers.append(must_call)
    if way.shown_runs:
        helpers.append(RagTunedDemonstrations(memory, on_error="raise"))
    if way.recalls or way.driver:
        mode = "driver" if way.driver else "recall"
        helpers.append(RagTunedMemoryMiddleware(memory, mode=mode, record=False, on_error="raise", **RECALLED))
    model = ChatRagTuned(memory=memory, model=adapter if way.tuned else "base", max_tokens=96)
    agent = create_agent(model, incident.tools(), system_prompt=SYSTEM, middleware=helpers)
    began, messages, ended = time.monotonic(), [], "done"
    try:
        for state in agent.stream(
            {"messages": [{"role": "user", "content": incident.goal}]},
            {"recursion_limit": 2 * MOST_CALLS + 1},
            stream_mode="values",
        ):
            messages = state["messages"]
    except GraphRecursionError:
        ended = "too many calls"
    used = [message.usage_metadata for message in messages if getattr(message, "usage_metadata", None)]
    return {
        "success": incident.over,
        "cleared": incident.cleared,
        "wrong_fixes": incident.wrong_fixes,
        "model_calls": len(used),
        "prompt_tokens": sum(one["input_tokens"] for one in used),
        "seconds": round(time.monotonic() - began, 2),
        "ended": ended,
        "said": [str(message.text)[-200:] or message.tool_calls for message in messages if message.type == "ai"],
    }


@wrap_model_call
def must_call(request: Any, handler: Any) -> Any:
    """The model has to call a tool."""
    return handler(request.override(tool_choice="any"))


def kept(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    path = folder / "rows.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        yield row["incident"], row


def keep(folder: Path, key: str, row: dict[str, Any]) -> None:
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    count = max(1, len(rows))
    return {
        "incidents": len(rows),
        "ended": sum(row["success"] for row in rows),
        "wrong fixes": sum(row["wrong_fixes"] for row in rows),
        "model calls": round(sum(row["model_calls"] for row in rows) / count, 1),
        "prompt tokens": round(sum(row["prompt_tokens"] for row in rows) / count),
    }


def write(memory: Memory, adapter: str, rows: list[dict[str, Any]]) -> None:
    (HERE / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = {
        "ways": {way: summary([row for row in rows if row["way"] == way]) for way in WAYS},
        "adapter": dict(memory.registry.get(adapter).metrics),
        "stamp": {"code_sha256": code_hash(), "versions": versions(), "machine": machine()},
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["ways"], indent=2))


def _tell(event: Any) -> None:
    if event.stage != "train" or event.done % 50 == 0:
        print(event.stage, event.done, event.total, event.detail, flush=True)


if __name__ == "__main__":
    main()
