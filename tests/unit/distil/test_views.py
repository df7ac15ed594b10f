import json
import time

import pytest
from histories import demo, said, stored

from rag_tuned_memory.distil.views import EpisodeView, find_identifiers, readable, view
from rag_tuned_memory.trajectory import Step, StepKind, Trajectory


def seen(trajectory: Trajectory) -> EpisodeView:
    return view(stored([trajectory])[0])


def tool_result(text: str) -> EpisodeView:
    return seen(Trajectory(namespace="n", steps=(Step(kind=StepKind.TOOL_RESULT, tool="t", text=text),)))


def test_an_incident_shows_what_its_agent_did() -> None:
    for one in demo():
        trajectory, shown = one.trajectory, view(one)
        closing = next(step for step in trajectory.steps if step.tool == "close_incident")
        assert closing.arguments is not None
        assert {key: shown.attributes[key] for key in ("incident", "cause", "fix")} == closing.arguments
        assert shown.identifiers[str(trajectory.source_id)] == "incident"
        assert shown.success is trajectory.outcome.success
        failed = [step.tool for step in trajectory.steps if step.error]
        assert list(shown.failed_tools) == failed
        tried = [step.tool for step in trajectory.steps if step.kind is StepKind.TOOL_RESULT]
        assert shown.recoveries == tuple((tool, tried[tried.index(tool) + 1]) for tool in failed if tool)
        assert shown.last_working_tool == "close_incident"


def test_an_attribute_has_one_value_in_an_episode() -> None:
    shown = tool_result(json.dumps({"name": {"first": "Ana"}, "legs": [{"seat": 1}, {"seat": 2}], "paid": True}))
    assert shown.attributes == {"first": "Ana", "paid": "yes"}


def test_lines_of_keys_and_values_in_messages() -> None:
    shown = seen(said("Booked:\n- **Flight number**: HAT045.\n* Seat: 12A\nnot: this\nURL: http://x\n"))
    assert shown.attributes == {"flight number": "HAT045", "seat": "12A", "url": "http://x"}
    assert shown.identifiers == {"HAT045": "flight"}


def test_a_key_or_name_too_long_to_be_asked_for_is_left_out() -> None:
    assert tool_result(json.dumps({"a key of five words": 1, "k" * 41: 2, "four words are fine": 3})).attributes == {
        "four words are fine": "3"
    }
    assert seen(said("We met Alpha Beta Gamma Delta Epsilon and Zeta.")).names == {"Zeta": 1}


def test_names_are_not_words_that_begin_a_sentence() -> None:
    shown = seen(
        said("Yesterday I met Caroline at the Grand Canyon. She and Caroline left on Monday.\nThen NASA called.")
    )
    assert shown.names == {"Caroline": 2, "Grand Canyon": 1, "NASA": 1}


def test_words_are_of_everything_that_was_said() -> None:
    assert {"fix", "it", "who", "zoë"} <= seen(said("Who? Zoë!", goal="Fix it")).words


@pytest.mark.parametrize(
    ("key", "text"), [("root_cause", "root cause"), ("rootCause", "root cause"), ("A.b-c", "a b c")]
)
def test_keys_are_made_readable(key: str, text: str) -> None:
    assert readable(key) == text


def test_identifiers_hold_letters_and_digits() -> None:
    assert find_identifiers("Fix INC-1042 for mia_li_3668 in 2024, not a1 or INC-1042") == ["INC-1042", "mia_li_3668"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        '{"a":' * 2_000 + "1" + "}" * 2_000,
        '{"a": 1',
        "[1, 2",
        "{}",
        '{"n": ' + "9" * 9_000 + "}",
        "[NaN]",
    ],
)
def test_json_that_is_none_or_too_deep_shows_nothing(text: str) -> None:
    assert tool_result(text).attributes == {}


def test_deep_arguments_are_read_down_to_a_limit() -> None:
    arguments: dict[str, object] = {"deepest": "x"}
    for _ in range(100):
        arguments = {"inner": arguments}
    step = Step.model_construct(kind=StepKind.TOOL_CALL, tool="t", arguments={"near": "y", **arguments}, text="")
    assert dict(seen(said("x").model_copy(update={"steps": (step,)})).attributes) == {"near": "y"}


@pytest.mark.parametrize("text", ["\n" * 200_000, "-=" * 100_000, "Aa " * 70_000, "a-" * 100_000, "Aa: " * 50_000])
def test_long_monotonous_text_is_read_in_linear_time(text: str) -> None:
    start = time.perf_counter()
    seen(said("x" + text, goal=text))
    assert time.perf_counter() - start < 5
