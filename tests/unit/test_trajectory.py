from typing import Any

import pytest

from rag_tuned_memory.errors import InvalidTrajectory
from rag_tuned_memory.trajectory import Trajectory


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": []}, "steps: Tuple should have at least 1 item after validation, not 0"),
        (
            {"steps": [{"kind": "dream", "text": "x"}]},
            "steps.0.kind: Input should be 'message', 'thought', 'tool_call', 'tool_result', 'observation'"
            " or 'feedback'",
        ),
        ({"steps": [{"kind": "message"}]}, "steps.0: Value error, a step needs text, a tool, arguments or an error"),
        ({}, "steps: Field required"),
    ],
)
def test_a_bad_field_is_named_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTrajectory) as caught:
        Trajectory.parse({"namespace": "n", **fields})
    assert caught.value.message == message


def test_many_bad_fields_are_counted() -> None:
    steps = [{"kind": "dream", "text": "x"}] * 5
    with pytest.raises(InvalidTrajectory, match=r"steps\.2\.kind: .* \(and 2 more\)"):
        Trajectory.parse({"namespace": "n", "steps": steps})
