"""Our store beside LangGraph's own: random operations must give the same on all three, but for the table below."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import BaseStore, GetOp, ListNamespacesOp, MatchCondition, Op, PutOp, Result, SearchOp
from langgraph.store.memory import InMemoryStore
from langgraph.store.sqlite import SqliteStore

from langchain_rag_tuned_memory import RagTunedStore
from rag_tuned_memory import Memories

# Where the references differ from each other, and which way ours goes. The random operations keep to what both agree
# on; (1) is taken out of the comparison by `_unordered`, (2) by `_namespaces`, which compares with SqliteStore alone.
# The last test shows each line.
DIFFERENCES = """
what                                     InMemoryStore          SqliteStore              ours
order of a search without a query        first written first    last second first        last written first   (1)
namespace whose last item went           stays in the list      goes                     goes                 (2)
namespace that was only asked for        gets into the list     -                        -                    (2)
order of namespaces                      of the labels          of the dotted text       of the labels        (2)
created_at of an overwritten item        new                    stays                    stays
timestamps                               UTC                    naive                    UTC
a mapping as filter, no operator in it   matches inner fields   refused                  matches inner fields
a list as filter                         matches                never matches            matches
$gt, $gte, $lt, $lte on text or None     raises                 compares in its own way  does not match
$ne on None or what is not there         matches                does not match           matches
a dot in a filter's field                a character            a path                   a character
other signs in a filter's field          characters             refused                  characters
a query, where no index was configured   ignored                ignored                  ranks by meaning and words
index=False and a query                  last, score None       left out                 left out
"""


NAMESPACES = [("u",), ("u", "1"), ("u", "10"), ("u", "1", "x"), ("U", "1"), ("a-b",), ("a", "b"), ("ü", "*")]
KEYS = ["k", "K", "k/1", "", "ключ", "a'b\"c"]
FIELDS = ["n", "s", "flag", "other"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
values = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(-3, 3) | st.sampled_from([0.5, -2.5]),
        "s": st.sampled_from(["red", "blue", "", "3"]),
        "flag": st.booleans(),
        "other": trees,
    },
)
namespaces = st.sampled_from(NAMESPACES)
prefixes = st.sampled_from([(), *NAMESPACES, ("nobody",)])
# what both references agree on
conditions = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(-3, 3) | st.dictionaries(st.sampled_from(["$eq"]), st.integers(-3, 3), min_size=1),
        "s": st.sampled_from(["red", "blue", "", "3", None]),
        "flag": st.booleans() | st.none(),
        "missing": st.none(),
    },
)
paths = st.lists(st.sampled_from(["u", "1", "*", "x", "U", "b"]), min_size=1, max_size=3).map(tuple)
matches = st.lists(
    st.builds(MatchCondition, match_type=st.sampled_from(["prefix", "suffix"]), path=paths), max_size=2
).map(tuple)
addresses = st.tuples(namespaces, st.sampled_from(KEYS))
puts = st.builds(lambda where, value: PutOp(*where, value), addresses, values)
deletes = st.builds(lambda where: PutOp(*where, None), addresses)
gets = st.builds(lambda where: GetOp(*where), addresses)
searches = st.builds(lambda prefix, given: SearchOp(prefix, given, limit=1000), prefixes, st.none() | conditions)
lists = st.builds(lambda found, depth: ListNamespacesOp(found, depth, 1000), matches, st.none() | st.integers(1, 3))
operations: st.SearchStrategy[Op] = st.one_of(puts, puts, deletes, gets, searches, lists)
batches = st.lists(st.lists(operations, min_size=1, max_size=8), min_size=1, max_size=6)


@dataclass
class Three:
    ours: BaseStore
    in_memory: BaseStore
    sqlite: BaseStore


@pytest.fixture
def three(memories: Memories) -> Iterator[Any]:
    opened: list[sqlite3.Connection] = []

    def make() -> Three:
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        opened.append(connection)
        sqlite = SqliteStore(connection)
        sqlite.setup()
        return Three(RagTunedStore(memories, namespace=uuid.uuid4().hex), InMemoryStore(), sqlite)

    yield make
    for connection in opened:
        connection.close()


def _item(one: Any) -> Any:
    return None if one is None else (one.namespace, one.key, repr(one.value))


def _unordered(result: Result) -> Any:
    return sorted(map(_item, result)) if isinstance(result, list) else _item(result)


def _namespaces(result: Any) -> list[tuple[str, ...]]:
    return sorted(result)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_batches=batches)
def test_random_operations_give_the_same(three: Any, given_batches: list[list[Op]]) -> None:
    stores = three()
    for batch in given_batches:
        ours, in_memory, sqlite = (one.batch(batch) for one in (stores.ours, stores.in_memory, stores.sqlite))
        for op, mine, first, second in zip(batch, ours, in_memory, sqlite, strict=True):
            if isinstance(op, ListNamespacesOp):
                assert mine == _namespaces(second)
            else:
                assert _unordered(mine) == _unordered(first) == _unordered(second), op


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_batches=batches, size=st.integers(1, 5), prefix=prefixes)
def test_pages_together_are_the_whole(
    three: Any, given_batches: list[list[Op]], size: int, prefix: tuple[str, ...]
) -> None:
    stores = three()
    for batch in given_batches:
        stores.ours.batch(batch)
        stores.sqlite.batch(batch)
    whole = stores.sqlite.search(prefix, limit=1000)
    for query in (None, "red blue"):
        pages = _pages(lambda at, query=query: stores.ours.search(prefix, query=query, limit=size, offset=at), size)
        wanted = whole if query is None else [one for one in whole if one.value]  # an empty value has no text
        assert _unordered(pages) == _unordered(wanted)
    labels = _pages(lambda at: stores.ours.list_namespaces(limit=size, offset=at), size)
    assert labels == _namespaces(stores.sqlite.list_namespaces(limit=1000))


def _pages(page: Any, size: int) -> list[Any]:
    found: list[Any] = []
    while some := page(len(found)):
        found += some
        if len(some) < size:
            break
    return found


OPERANDS: list[Any] = [0, 2, -1.5, "red", "", None, True]


@pytest.mark.parametrize("operator", ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"])
def test_operators_on_what_can_be_compared(three: Any, operator: str) -> None:
    stores = three()
    puts = [PutOp(("u",), f"k{number}", {"n": value}) for number, value in enumerate([-2, -1.5, 0, 1, 2, 2.5])]
    for store in (stores.ours, stores.in_memory, stores.sqlite):
        store.batch(puts)
    for operand in (-2, 0, 1.5, 2, 3):
        op = {"n": {operator: operand}}
        found = [_unordered(one.search((), filter=op)) for one in (stores.ours, stores.in_memory, stores.sqlite)]
        assert found[0] == found[1] == found[2], op


def test_the_differences_are_as_the_table_says(three: Any) -> None:
    stores = three()
    every = (stores.ours, stores.in_memory, stores.sqlite)

    def keys(given: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        for store in every:
            try:
                found.append({one.key for one in store.search(("u",), filter=given)})
            except Exception as error:
                found.append(type(error).__name__)
        return found

    for store in every:
        store.put(("gone",), "k", {})
        store.delete(("gone",), "k")
        store.put(("u",), "old", {"n": 1, "tag": {"colour": "red"}, "list": [1], "a.b": 1})
        store.put(("u",), "new", {"n": "x", "a": {"b": 1}})
        store.get(("asked",), "k")
    assert [store.list_namespaces() for store in every] == [[("u",)], [("asked",), ("gone",), ("u",)], [("u",)]]
    assert [one.key for one in stores.ours.search(("u",))] == ["new", "old"]
    assert [one.key for one in stores.in_memory.search(("u",))] == ["old", "new"]
    assert keys({"tag": {"colour": "red"}}) == [{"old"}, {"old"}, "ValueError"]
    assert keys({"list": [1]})[:2] == [{"old"}, {"old"}]
    assert keys({"n": {"$gt": 0}}) == [{"old"}, "ValueError", {"old"}]
    assert keys({"missing": {"$gt": 0}}) == [set(), "TypeError", set()]
    assert keys({"missing": {"$ne": 1}}) == [{"old", "new"}, {"old", "new"}, set()]
    assert keys({"a.b": 1}) == [{"old"}, {"old"}, {"new"}]
    assert keys({"a b": 1}) == [set(), set(), "ValueError"]
    assert keys({"nothing": None}) == [{"old", "new"}] * 3
    created = [store.get(("u",), "old").created_at for store in every]  # type: ignore[union-attr]
    for store in every:
        store.put(("u",), "old", {"n": 2})
    again = [store.get(("u",), "old").created_at for store in every]  # type: ignore[union-attr]
    assert [before == after for before, after in zip(created, again, strict=True)] == [True, False, True]
    assert [one.tzinfo is None for one in again] == [False, False, True]
    assert [one.score is None for one in stores.ours.search(("u",), query="x")] == [False, False]
    assert [one.score for one in stores.in_memory.search(("u",), query="x")] == [None, None]
