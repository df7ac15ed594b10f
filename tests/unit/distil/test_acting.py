"""Runs as demonstrations: what is learnt of them, and in which form."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from rag_tuned_memory.demo.world import incidents
from rag_tuned_memory.distil.acting import Run, runs_of, teaches, turns_of, turns_that_worked
from rag_tuned_memory.distil.compose import Material, compose
from rag_tuned_memory.distil.curriculum import Curriculum, Item
from rag_tuned_memory.distil.labels import Episode, label_episodes
from rag_tuned_memory.distil.packing import Tokenised
from rag_tuned_memory.distil.recipe import Mixture
from rag_tuned_memory.distil.rehearsal import rehearsed, renamed, repeat_factors
from rag_tuned_memory.distil.unknown import Strangers
from rag_tuned_memory.distil.views import view
from rag_tuned_memory.serving.tools import Call, called
from rag_tuned_memory.store.base import StoredTrajectory
from rag_tuned_memory.trajectory import Trajectory

TOOLS = [{"name": name} for name in ("look", "cut", "sew")]


def run(*steps: dict[str, Any], success: bool | None = True, **metadata: Any) -> Trajectory:
    return Trajectory.parse(
        {
            "namespace": "a",
            "goal": "mend it",
            "steps": steps,
            "outcome": {"success": success},
            "metadata": {"tools": TOOLS, "system": "You mend.", **metadata},
        }
    )


def call(name: str, call_id: str) -> dict[str, Any]:
    return {"kind": "tool_call", "tool": name, "arguments": {"at": "x"}, "call_id": call_id}


def result(name: str, call_id: str, text: str = "done", error: str | None = None) -> dict[str, Any]:
    return {"kind": "tool_result", "tool": name, "text": text, "call_id": call_id, "error": error}


ASKED = {"kind": "message", "actor": "user", "text": "Mend my coat."}
MENDED = run(
    ASKED,
    {"kind": "message", "actor": "assistant", "text": "I look first."},
    call("look", "1"),
    result("look", "1", "a hole"),
    call("cut", "2"),
    result("cut", "2", "", error="worse now"),
    call("sew", "3"),
    result("sew", "3"),
    {"kind": "message", "actor": "assistant", "text": "It is mended."},
)


def test_only_runs_that_went_well_and_name_their_tools_teach() -> None:
    assert teaches(MENDED)
    assert not teaches(run(ASKED))
    assert not teaches(run(ASKED, call("look", "1"), success=None))
    assert not teaches(run(ASKED, call("look", "1"), success=False))
    assert not teaches(run(ASKED, call("look", "1"), tools=None))
    assert not teaches(run(ASKED, call("look", "1"), tools="nonsense"))
    assert not any(teaches(one) for one in incidents("a", episodes=3)), "the demo's history names no tools"


def test_steps_become_turns() -> None:
    roles = [turn.role for turn in turns_of(MENDED)]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant", "tool", "assistant"]
    first = list(turns_of(MENDED))[1]
    assert (first.text, [one.name for one in first.calls]) == ("I look first.", ["look"])


def test_the_goal_is_what_the_user_asked_where_nobody_spoke() -> None:
    assert next(iter(turns_of(run(call("look", "1"))))).text == "mend it"


def test_calls_that_ran_together_are_one_turn() -> None:
    both = run(ASKED, call("look", "1"), call("sew", "2"), result("look", "1"), result("sew", "2"))
    (shown,) = runs_of(both)
    assert [one.name for one in shown.turns[0].calls] == ["look", "sew"]


def test_a_call_that_failed_is_shown_and_not_learnt_and_then_left_out() -> None:
    as_it_was, as_it_should_be = runs_of(MENDED)
    learnt = [[one.name for one in turn.calls] for turn in as_it_was.turns]
    assert learnt == [["look"], ["sew"], []] == [[one.name for one in turn.calls] for turn in as_it_should_be.turns]
    cut = called("", [Call(name="cut", arguments={"at": "x"})])
    assert cut in [message.content for message in as_it_was.turns[1].prompt]
    assert all("cut" not in message.content for message in as_it_should_be.turns[2].prompt[1:])
    assert as_it_should_be.turns[2].answer == "It is mended."


def test_a_failure_without_an_id_takes_nothing_else_away() -> None:
    nameless = run(ASKED, call("look", "1"), result("look", "1"), result("cut", "", error="worse") | {"call_id": None})
    assert [turn.role for turn in turns_that_worked(nameless)] == ["user", "assistant", "tool", "tool"]


def test_the_prompt_is_the_one_of_an_agent_with_what_is_recalled_last() -> None:
    system = runs_of(MENDED, "<recalled>")[0].turns[0].prompt[0]
    assert system.role == "system"
    assert system.content.index("- sew()") < system.content.index("You mend.") < system.content.index("<recalled>")
    assert system.content.endswith("<recalled>")


def test_the_turns_of_a_run_stay_together_in_the_training_set() -> None:
    material = Material([], [], {}, (), runs=runs_of(MENDED))
    examples = compose(material, Mixture(acting=3), seed=1)
    groups = [example.group for example in examples]
    assert len(groups) == 2 * 3 * 3
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [3] * 6
    assert all(groups[place] == groups[place + 1] for place in range(0, len(groups), 3))


def stored(number: int, tool: str) -> StoredTrajectory:
    one = Trajectory.parse(
        {
            "namespace": "a",
            "goal": f"Mend coat C-{number}.",
            "steps": [
                call(tool, "1") | {"arguments": {"coat": f"C-{number}"}},
                result(tool, "1", f"C-{number} is whole"),
            ],
            "outcome": {"success": True},
            "metadata": {"tools": TOOLS},
        }
    )
    return StoredTrajectory(one, number, datetime(2026, 1, 1, tzinfo=UTC), one.content_hash)


def coats(*tools: str) -> tuple[list[Episode], list[Run]]:
    """A coat for each tool, mended with it."""
    all_ = [stored(1000 + place, tool) for place, tool in enumerate(tools)]
    return label_episodes([view(one) for one in all_]), [run for one in all_ for run in runs_of(one.trajectory)]


def test_a_run_is_shown_once_as_it_was_and_then_of_things_that_are_not_there() -> None:
    episodes, runs = coats("sew")
    strangers = Strangers(episodes, seed=1)
    first, *others = rehearsed(runs, episodes, strangers, 4, random.Random(1))
    assert first == runs[0]
    names = set()
    for other in others:
        (turn,) = other.turns
        name = turn.calls[0].arguments["coat"]
        assert name != "C-1000"
        assert turn.prompt[-1].content == f"Mend coat {name}."
        assert turn.answer == called("", turn.calls)
        names.add(name)
    assert len(names) == 3


def test_a_run_whose_texts_do_not_name_its_entity_is_shown_as_it_was() -> None:
    episodes, runs = coats("sew")
    assert renamed(runs[0], None, Strangers(episodes, seed=1)) is runs[0]
    assert renamed(runs[0], "coat C-4711", Strangers(episodes, seed=1)) is runs[0]


def test_runs_with_a_rare_call_are_shown_more_often() -> None:
    episodes, runs = coats(*["sew"] * 15, "cut")
    factors = repeat_factors(runs)
    assert sorted(factors.values()) == [1.0] * 15 + [pytest.approx(2.0)]
    shown = list(rehearsed(runs, episodes, Strangers(episodes, seed=1), 3, random.Random(1)))
    assert [len([one for one in shown if one.trajectory_id == run.trajectory_id]) for run in runs] == [3] * 15 + [6]


def test_a_run_in_which_nothing_went_well_counts_once() -> None:
    assert repeat_factors([Run("x", ())]) == {"x": 1.0}


def test_a_group_shares_a_row_that_is_longer_than_the_others() -> None:
    def item(*ids: int, group: str | None = None) -> Item:
        return Item(Tokenised(ids, len(ids) - 1), group=group)

    items = [item(1, 2, 3, group="a"), item(1, 2, 3, 4, group="a"), item(1, 2, 3, 4, 5, group="a"), item(1, 2, 9)]
    course = Curriculum(items, batch_tokens=3, budget=100)
    rows = []
    while (row := course.next_row()) is not None:
        rows.append(row.ids)
    assert rows == [[1, 2, 3, 4, 5], [1, 2, 9]]
