"""An agent that gets better from run to run: a small model that cannot do a job, and the operator who does it then.

python gets_better.py [--folder gets_better] [--runs 20] [--learn-after 10]

Each incident is first given to SmolLM2-135M-Instruct, which has to end it by tool calls. What it cannot end the
operator does (a script), and the middleware records it. After the tenth run the memory learns: an adapter is distilled
from what is recorded and, when the gate accepts it, served. From then on the middleware's driver mode lets it act.
Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from langchain.agents import create_agent
from langgraph.errors import GraphRecursionError
from operations import SYSTEM, Incident, operate

from langchain_rag_tuned_memory import ChatRagTuned, RagTunedMemoryMiddleware
from rag_tuned_memory import Memory, Outcome, Recipe, Settings, Trajectory
from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.learning.events import Event
from rag_tuned_memory.models import CATALOG, pull

MOST_STEPS = 16
"""Of the agent's graph in one incident: about eight calls."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("gets_better"), help="where the memory lies")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--learn-after", type=int, default=10, help="the run after which the memory learns")
    given = parser.parse_args(arguments)
    settings = Settings(home=given.folder)
    for model in CATALOG:
        pull(model, cache=settings.cache)
    with Memory("operations", settings=settings) as memory:
        work(memory, runs=given.runs, learn_after=given.learn_after)


def work(memory: Memory, *, runs: int, learn_after: int) -> None:
    """The incidents in their order; those that are recorded are not done again."""
    known = {episode.goal for episode in memory.export()}
    for number, history in enumerate(incidents("operations", episodes=runs), start=1):
        incident = Incident.of(history)
        if incident.goal not in known:
            print(f"run {number:2}: {incident.name} ended by the {end(memory, incident, history)}", flush=True)
        if number == learn_after and memory.stats().serving is None:
            learn(memory)


def end(memory: Memory, incident: Incident, history: Trajectory) -> str:
    """Who ended it."""
    if attempt(memory, incident):
        return "agent"
    operate(memory, history)
    return f"operator (wrong fixes of the agent: {incident.wrong_fixes})" if incident.wrong_fixes else "operator"


def attempt(memory: Memory, incident: Incident) -> bool:
    """Let the model act. Recorded once it has learnt: before, its attempts are words that are not worth keeping."""
    driver = RagTunedMemoryMiddleware(
        memory,
        mode="driver",
        record=memory.stats().serving is not None,
        outcome=lambda _: Outcome(success=incident.over),
    )
    model = ChatRagTuned(memory=memory, model="base", max_tokens=96)
    agent = create_agent(model, incident.tools(), system_prompt=SYSTEM, middleware=[driver])
    try:
        agent.invoke({"messages": [("user", incident.goal)]}, {"recursion_limit": MOST_STEPS})
    except GraphRecursionError:
        return False
    finally:
        driver.close()
    return incident.over


def learn(memory: Memory) -> None:
    """Distil an adapter; from now on it serves, if the gate accepts it."""
    report = memory.distil(Recipe(mixture={"acting": 8}), on_event=tell)
    print(report.decision.summary, flush=True)


def tell(event: Event) -> None:
    """A line now and then: training takes minutes."""
    if event.done == event.total or (event.stage == "train" and event.done % 50 == 0):
        print(f"  {event.stage} {event.done} of {event.total}", flush=True)


if __name__ == "__main__":
    main()
