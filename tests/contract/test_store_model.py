"""Random sequences of calls against a model of a few lines: dictionaries and a linear search."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from store_helpers import day, episode, passages_of, record, record_many, succeeded, vector

from rag_tuned_memory.errors import TrajectoryNotFound
from rag_tuned_memory.store import EpisodeStore, Filter
from rag_tuned_memory.trajectory import Trajectory

NAMESPACES = st.sampled_from(["alice", "alice-smith", "ALICE", "*"])
IDS = st.sampled_from("12345")
WORDS = ["orion", "vega", "disk", "INC-1042", "INC-10421", "Ünïcode", "restarted"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=4)


class StoreMachine(RuleBasedStateMachine):
    """Each step calls the store and the model, and compares."""

    new_store: Callable[[Path], EpisodeStore]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.new_store(Path(self.folder.name))
        self.model: dict[tuple[str, str], Trajectory] = {}
        self.writes: list[tuple[str, str]] = []

    def teardown(self) -> None:
        assert anyio.run(self.store.check) == []
        anyio.run(self.store.close)
        self.folder.cleanup()

    def of(self, namespace: str) -> list[Trajectory]:
        return [self.model[key] for key in self.writes if key[0] == namespace]

    @rule(
        namespace=NAMESPACES,
        source_id=IDS,
        texts=TEXTS,
        success=st.sampled_from([None, True, False]),
        tool=st.sampled_from([None, "restart"]),
        started=st.sampled_from([None, 1, 5]),
    )
    def put(
        self,
        namespace: str,
        source_id: str,
        texts: list[str],
        success: bool | None,
        tool: str | None,
        started: int | None,
    ) -> None:
        one = episode(
            namespace,
            source_id,
            *texts,
            tool=tool,
            outcome=succeeded(success),
            started_at=None if started is None else day(started),
        )
        key = (namespace, one.id)
        changed = self.model.get(key) != one
        assert anyio.run(record, self.store, one) is changed
        if changed:
            self.model[key] = one
            self.writes = [k for k in self.writes if k != key] + [key]

    @rule(namespace=NAMESPACES, given=st.lists(st.tuples(IDS, TEXTS), max_size=4, unique_by=lambda one: one[0]))
    def put_many(self, namespace: str, given: list[tuple[str, list[str]]]) -> None:
        many = [episode(namespace, source_id, *texts) for source_id, texts in given]
        changed = [self.model.get((namespace, one.id)) != one for one in many]
        assert anyio.run(record_many, self.store, many) == changed
        written = [one for one, new in zip(many, changed, strict=True) if new]
        for one in written:
            self.writes = [k for k in self.writes if k != (namespace, one.id)]
        for one in sorted(written, key=lambda one: self.sequence(one)):
            self.model[namespace, one.id] = one
            self.writes.append((namespace, one.id))

    def sequence(self, one: Trajectory) -> int:
        """Many at once may be written in any order."""
        return anyio.run(self.store.get, one.namespace, one.id).sequence

    @rule(namespace=NAMESPACES, ids=st.lists(IDS, max_size=3))
    def delete(self, namespace: str, ids: list[str]) -> None:
        wanted = [episode(namespace, i, "x").id for i in ids]
        there = [i for i in dict.fromkeys(wanted) if (namespace, i) in self.model]
        assert anyio.run(self.store.delete, namespace, wanted) == there
        for i in there:
            del self.model[namespace, i]
            self.writes.remove((namespace, i))

    @rule(namespace=NAMESPACES, source_id=IDS)
    def get(self, namespace: str, source_id: str) -> None:
        wanted = episode(namespace, source_id, "x").id
        expected = self.model.get((namespace, wanted))
        found = anyio.run(self.store.passages, namespace, wanted)
        assert found == (passages_of(expected) if expected else [])
        if expected:
            assert anyio.run(self.store.get, namespace, wanted).trajectory == expected
        else:
            with pytest.raises(TrajectoryNotFound):
                anyio.run(self.store.get, namespace, wanted)

    @rule(namespace=NAMESPACES, phrase=st.sampled_from([*WORDS, "orion vega", "1042", "restart"]))
    def mentions(self, namespace: str, phrase: str) -> None:
        pattern = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
        expected = sum(any(pattern.search(step.text) for step in one.steps) for one in self.of(namespace))
        assert anyio.run(self.store.mentions, namespace, phrase) == expected

    @rule(
        namespace=NAMESPACES,
        word=st.sampled_from(WORDS),
        success=st.sampled_from([None, True, False]),
        tool=st.sampled_from([None, "restart"]),
        since=st.sampled_from([None, 0, 3]),
        limit=st.integers(1, 6),
    )
    def candidates(
        self, namespace: str, word: str, success: bool | None, tool: str | None, since: int | None, limit: int
    ) -> None:
        where = Filter(success=success, tool=tool, since=None if since is None else day(since))
        allowed = [
            passage
            for one in self.of(namespace)
            if success is None or one.outcome.success is success
            for passage in passages_of(one)
            if tool is None or passage.tool == tool
            if where.since is None or (passage.time is not None and passage.time >= where.since)
        ]

        async def search() -> None:
            found = await self.store.candidates(namespace, word, vector(word), limit=limit, where=where)
            keys = [c.passage.key for c in found]
            assert len(set(keys)) == len(keys)
            assert all(c.passage in allowed for c in found)
            nearest = sorted((-float(vector(p.indexed) @ vector(word)), p.key) for p in allowed)[:limit]
            scores = [-(c.dense or 0) for c in found[: len(nearest)]]
            assert scores == pytest.approx([score for score, _ in nearest], abs=1e-5)
            with_word = [p for p in allowed if word.casefold() in p.indexed.casefold().split()]
            assert sum(c.bm25 is not None for c in found) >= min(limit, len(with_word))

        anyio.run(search)

    @invariant()
    def same_trajectories_in_the_same_order(self) -> None:
        async def scan(namespace: str) -> list[Trajectory]:
            return [stored.trajectory async for stored in self.store.scan(namespace)]

        expected = sorted({namespace for namespace, _ in self.model})
        assert anyio.run(self.store.namespaces) == expected
        for namespace in expected:
            assert anyio.run(scan, namespace) == self.of(namespace)
            assert anyio.run(self.store.stats, namespace).trajectories == len(self.of(namespace))

    @rule()
    def reopen(self) -> None:
        """A store that keeps files must find all again; one in memory is left as it is."""
        if any(Path(self.folder.name).iterdir()):
            anyio.run(self.store.close)
            self.store = self.new_store(Path(self.folder.name))


def test_any_sequence_of_calls_agrees_with_the_model(new_store: Callable[[Path], EpisodeStore]) -> None:
    machine = type("Machine", (StoreMachine,), {"new_store": staticmethod(new_store)})
    few = settings(
        max_examples=15,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(machine, settings=few)
