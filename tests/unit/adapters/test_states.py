from itertools import product

import pytest

from rag_tuned_memory.adapters.states import TRANSITIONS, State, check_transition
from rag_tuned_memory.errors import AdapterNotServable, IllegalTransition

LEGAL = {
    ("training", "candidate"),
    ("candidate", "accepted"),
    ("candidate", "rejected"),
    ("accepted", "serving"),
    ("serving", "retired"),
    ("retired", "serving"),
} | {(state.value, "tainted") for state in State}


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
def test_exactly_the_legal_steps_pass(old: State, new: State) -> None:
    if (old.value, new.value) in LEGAL:
        check_transition("a-v1", old, new)
    elif new is State.SERVING and old in (State.REJECTED, State.TAINTED):
        with pytest.raises(AdapterNotServable, match="never serves"):
            check_transition("a-v1", old, new)
    else:
        with pytest.raises(IllegalTransition, match=rf"a-v1 is {old} and cannot become {new}.*may become"):
            check_transition("a-v1", old, new)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[State.TAINTED] = frozenset({State.SERVING})  # type: ignore[index]
