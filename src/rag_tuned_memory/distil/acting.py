"""Ways of acting: what the agent called at each point of its runs that went well, as it will be asked again.

Behaviour cloning of runs that succeeded (as in FireAct, arXiv 2310.05915): each of the agent's turns is learnt after
the turns before it, in the form in which the model is asked when it drives an agent (``serving.tools``). A turn whose
call failed is not learnt; where there are any, the run is shown a second time without them, so that the agent goes the
right way at once and still knows how to recover. Half of the runs are shown beside what recall finds for their goal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.serving.base import InferenceBackend, Message
from rag_tuned_memory.serving.tokens import token_counter
from rag_tuned_memory.serving.tools import Call, Tool, Turn, called, conversation
from rag_tuned_memory.store.base import StoredTrajectory
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory

TOOLS, SYSTEM = "tools", "system"
"""Where the metadata of a trajectory holds the tools that the agent had, and the system message that it was given."""
_TOOLS = TypeAdapter(tuple[Tool, ...])


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One of the agent's turns: what was said before it, and what it said and called."""

    prompt: tuple[Message, ...]
    answer: str
    calls: tuple[Call, ...]
    tools: tuple[Tool, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """The turns of one run in their order, each of whose prompts begins with the one before.

    ``beside``: recalled text stands in the prompts.
    """

    trajectory_id: str
    turns: tuple[Demonstration, ...]
    beside: bool = False


async def demonstrated_runs(
    stored: Sequence[StoredTrajectory],
    recall: Recall,
    backend: InferenceBackend,
    *,
    k: int,
    token_budget: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Run]:
    """The runs to be learnt from, alternately without and beside what recall finds of other episodes for their goal."""
    taught = [one.trajectory for one in stored if teaches(one.trajectory)]
    count = token_counter(backend)
    runs: list[Run] = []
    for done, trajectory in enumerate(taught, start=1):
        found = await recall.recall(
            trajectory.namespace, asked(trajectory), k=2 * k, token_budget=token_budget, count_tokens=count
        )
        others = [one for one in found.results if one.trajectory_id != trajectory.id][:k]
        context = assemble(found.model_copy(update={"results": tuple(others)}))
        runs += runs_of(trajectory)
        runs += runs_of(trajectory, context) if context else []
        if on_progress:
            on_progress(done, len(taught))
    return runs


def teaches(trajectory: Trajectory) -> bool:
    """Whether a run went well, says which tools there were, and called some."""
    calls = any(step.kind is StepKind.TOOL_CALL for step in trajectory.steps)
    return trajectory.outcome.success is True and calls and bool(tools_of(trajectory.metadata))


def asked(trajectory: Trajectory) -> str:
    """What the agent was asked to do: the user's words, or else the goal."""
    first = trajectory.steps[0]
    return first.text if _is_users(first) else trajectory.goal


def tools_of(metadata: Mapping[str, Any]) -> tuple[Tool, ...]:
    """The tools that a recorder noted; empty where it did not, or where they cannot be read."""
    try:
        return _TOOLS.validate_python(metadata.get(TOOLS) or ())
    except ValidationError:
        return ()


def runs_of(trajectory: Trajectory, context: str = "") -> list[Run]:
    """A run as it was, and, where calls failed in it, as it should have been; ``context`` is recalled text."""
    as_it_was, as_it_should_be = list(turns_of(trajectory)), turns_that_worked(trajectory)
    versions = [as_it_was, as_it_should_be] if len(as_it_should_be) < len(as_it_was) else [as_it_was]
    failed = _failed(trajectory)
    return [run for version in versions if (run := _run(trajectory, version, failed, context)).turns]


@dataclass(frozen=True, slots=True)
class RecordedTurn(Turn):
    """A turn with the ids of its calls, or of the call that it answers."""

    call_ids: tuple[str | None, ...] = ()
    call_id: str | None = None


def turns_of(trajectory: Trajectory) -> Iterator[RecordedTurn]:
    """The steps as turns: what the agent said and called before the next result is one turn."""
    own: list[Step] = []
    if not _is_users(trajectory.steps[0]) and trajectory.goal:
        yield RecordedTurn("user", trajectory.goal)
    for step in trajectory.steps:
        if step.kind in (StepKind.THOUGHT, StepKind.TOOL_CALL) or (
            step.kind is StepKind.MESSAGE and not _is_users(step)
        ):
            own.append(step)
            continue
        yield from _own_turn(own)
        own = []
        if step.kind is StepKind.TOOL_RESULT:
            yield RecordedTurn("tool", step.text or step.error or "", name=step.tool, call_id=step.call_id)
        elif _is_users(step):
            yield RecordedTurn("user", step.text)
    yield from _own_turn(own)


def turns_that_worked(trajectory: Trajectory) -> list[RecordedTurn]:
    """The turns without those that made a call which failed, and without these calls' results."""
    failed = _failed(trajectory)
    turns = turns_of(trajectory)
    return [turn for turn in turns if not _calls_one_of(turn, failed) and turn.call_id not in failed]


def _own_turn(steps: Sequence[Step]) -> Iterator[RecordedTurn]:
    if not steps:
        return
    calls = [step for step in steps if step.kind is StepKind.TOOL_CALL]
    text = "\n".join(step.text for step in steps if step.kind is not StepKind.TOOL_CALL and step.text)
    yield RecordedTurn(
        "assistant",
        text,
        calls=tuple(Call(name=step.tool or "", arguments=step.arguments or {}) for step in calls),
        call_ids=tuple(step.call_id for step in calls),
    )


def _run(trajectory: Trajectory, turns: Sequence[RecordedTurn], failed: set[str | None], context: str) -> Run:
    tools = tools_of(trajectory.metadata)
    own = str(trajectory.metadata.get(SYSTEM) or "")
    system = Turn("system", "\n\n".join(part for part in (own, context) if part))
    learnt = [
        Demonstration(conversation([system, *turns[:place]], tools), called(turn.text, turn.calls), turn.calls, tools)
        for place, turn in enumerate(turns)
        if turn.role == "assistant" and not _calls_one_of(turn, failed)
    ]
    return Run(trajectory.id, tuple(learnt), beside=bool(context))


def _failed(trajectory: Trajectory) -> set[str | None]:
    """The ids of the calls that failed, as far as they have any."""
    results = (step for step in trajectory.steps if step.kind is StepKind.TOOL_RESULT and step.error)
    return {step.call_id for step in results if step.call_id is not None}


def _calls_one_of(turn: RecordedTurn, failed: set[str | None]) -> bool:
    return not failed.isdisjoint(turn.call_ids)


def _is_users(step: Step) -> bool:
    return step.kind is StepKind.MESSAGE and step.actor in ("user", "human")
