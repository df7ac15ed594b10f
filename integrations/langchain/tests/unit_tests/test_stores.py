"""LangGraph's store over episodes: what the references promise, and what ours adds."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.base import GetOp, InvalidNamespaceError, PutOp, SearchOp

from langchain_rag_tuned_memory import RagTunedStore
from langchain_rag_tuned_memory._store_items import item_id
from rag_tuned_memory import Filter, Memories, Memory, Settings
from rag_tuned_memory.adapters import State
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, StoreError
from rag_tuned_memory.recall.prompt import CLOSING, OPENING
from served_adapter import register

HERE = ("users", "alice")


@pytest.fixture
def store(memory: Memory) -> RagTunedStore:
    return RagTunedStore(memory)


def keys(found: list[Any]) -> list[str]:
    return [one.key for one in found]


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"": ""},
        {"text": "Zoë\u0000 \u2028 \U0001f600", "n": [1, 2.5, -0.0, 1e300, None, True, {"deep": [[]]}]},
        {"big": 12345678901234567890123456789},
        {"fenced": f"{OPENING}\nno echo\n{CLOSING}"},
        {"long": "word " * 100_000},
        {"$": 1, "a.b": 2, "value": {"value": 3}},
    ],
)
def test_values_survive_exactly(store: RagTunedStore, value: dict[str, Any]) -> None:
    store.put(HERE, "k", value)
    found = store.get(HERE, "k")
    assert found is not None
    assert repr(found.value) == repr(value)
    assert (found.key, found.namespace) == ("k", HERE)


def test_what_is_returned_is_nobody_elses(store: RagTunedStore) -> None:
    value = {"list": [1]}
    store.put(HERE, "k", value)
    value["list"].append(2)
    first = store.get(HERE, "k")
    assert first is not None
    first.value["list"].append(3)
    second = store.get(HERE, "k")
    assert second is not None
    assert second.value == {"list": [1]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"n": float("nan")}, r"value of users/alice/bad\.n: JSON cannot hold this"),
        ({"list": [{"at": datetime.now(UTC)}]}, r"bad\.list\[0\]\.at: JSON cannot hold a datetime"),
        ({1: "x"}, "the key 1 is not text"),
        ({"s": "\ud800"}, r"bad\.s: JSON cannot hold this"),
        (["no mapping"], "a mapping is needed, not list"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_the_batch_with_it(store: RagTunedStore, value: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        store.batch([PutOp(HERE, "good", {"a": 1}), PutOp(HERE, "bad", value)])
    assert store.search(()) == []


@pytest.mark.parametrize("levels", [91, 5000])
def test_what_is_nested_too_deeply_is_refused(store: RagTunedStore, levels: int) -> None:
    deep: Any = 1
    for _ in range(levels - 1):
        deep = [deep]
    with pytest.raises(InvalidInput, match="nested deeper than 90 levels"):
        store.batch([PutOp(HERE, "good", {}), PutOp(HERE, "k", {"deep": deep})])
    assert store.search(()) == []


def test_a_deep_value_survives(store: RagTunedStore) -> None:
    deep: Any = 1
    for _ in range(89):
        deep = [deep]
    store.put(HERE, "k", {"deep": deep})
    assert store.search(HERE)[0].value == {"deep": deep}


@pytest.mark.parametrize("key", ["", "a/b", "ä\u0000", "x" * 3000, '["tricky"]', "."])
def test_any_text_is_a_key(store: RagTunedStore, key: str) -> None:
    store.put(HERE, key, {"n": 1})
    assert keys(store.search(HERE)) == [key]
    store.delete(HERE, key)
    assert store.get(HERE, key) is None


def test_a_key_that_is_no_text_is_refused(store: RagTunedStore) -> None:
    with pytest.raises(InvalidInput, match="not valid UTF-8"):
        store.put(HERE, "\ud800", {"n": 1})
    with pytest.raises(InvalidInput, match="not valid UTF-8"):
        store.get(("\ud800",), "k")


@pytest.mark.parametrize("namespace", [("a.b",), ("",), ("a\0",)])
def test_bad_labels_are_refused_also_in_a_batch(store: RagTunedStore, namespace: tuple[str, ...]) -> None:
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(("fine",), "k", {}), PutOp(namespace, "k", {})])
    with pytest.raises(InvalidNamespaceError):
        store.put((), "k", {})
    assert store.list_namespaces() == []


def test_a_time_to_live_is_refused(store: RagTunedStore) -> None:
    with pytest.raises(NotImplementedError, match="TTL is not supported by RagTunedStore"):
        store.put(HERE, "k", {}, ttl=5)
    with pytest.raises(NotImplementedError, match="TTL is not supported by RagTunedStore"):
        store.batch([PutOp(HERE, "k", {}, ttl=5)])
    store.put(HERE, "k", {}, ttl=None)


def test_reads_of_a_batch_see_what_was_before_and_the_last_write_counts(store: RagTunedStore) -> None:
    store.put(HERE, "k", {"n": 0})
    put = [PutOp(HERE, "k", {"n": 1}), PutOp(HERE, "k", None), PutOp(HERE, "k", {"n": 2}), PutOp(HERE, "l", {"n": 3})]
    results = store.batch([put[0], GetOp(HERE, "k"), *put[1:], SearchOp(HERE), GetOp(HERE, "l")])
    assert results[0] is results[2] is None
    assert results[1].value == {"n": 0}  # type: ignore[union-attr]
    assert [one.value for one in results[5]] == [{"n": 0}]  # type: ignore[union-attr, union-attr]
    assert results[6] is None
    assert {one.key: one.value["n"] for one in store.search(HERE)} == {"k": 2, "l": 3}


def test_times(store: RagTunedStore) -> None:
    before = datetime.now(UTC)
    store.put(HERE, "k", {"n": 1})
    store.put(HERE, "k", {"n": 1})
    found = store.get(HERE, "k")
    assert found is not None
    assert before <= found.created_at < found.updated_at <= datetime.now(UTC)
    assert found.created_at.utcoffset() == timedelta(0)


def test_pages_are_complete_newest_first_and_bounded(store: RagTunedStore) -> None:
    for number in range(25):
        store.put(HERE, f"k{number}", {"n": number})
    pages = [keys(store.search(HERE, limit=10, offset=offset)) for offset in (0, 10, 20, 30)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert [key for page in pages for key in page] == [f"k{number}" for number in reversed(range(25))]
    assert store.search(HERE, limit=0) == []
    with pytest.raises(InvalidInput, match="must not be negative"):
        store.search(HERE, limit=-1)


def test_prefixes_are_of_labels(store: RagTunedStore) -> None:
    for namespace in [("u", "1"), ("u", "10"), ("u",), ("U", "1"), ("u", "1", "x")]:
        store.put(namespace, "k", {})
    assert {one.namespace for one in store.search(("u", "1"))} == {("u", "1"), ("u", "1", "x")}
    assert len(store.search(())) == 5
    assert store.list_namespaces(prefix=("u",), max_depth=2) == [("u",), ("u", "1"), ("u", "10")]
    assert store.list_namespaces(suffix=("1",)) == [("U", "1"), ("u", "1")]
    assert store.list_namespaces(prefix=("*", "1")) == [("U", "1"), ("u", "1"), ("u", "1", "x")]
    assert store.list_namespaces(limit=2, offset=1) == [("u",), ("u", "1")]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"n": 5}, {"five"}),
        ({"n": {"$gt": 5}}, {"nine"}),
        ({"n": {"$gte": 5, "$lt": 9}}, {"five"}),
        ({"n": {"$lte": 5}}, {"five"}),
        ({"n": {"$ne": 5}}, {"nine", "text", "none"}),
        ({"n": {"$eq": "high"}}, {"text"}),
        ({"n": None}, {"none"}),
        ({"missing": None}, {"five", "nine", "text", "none"}),
        ({"tag": {"colour": "red"}}, {"nine"}),
        ({"tag": {"colour": {"$ne": "red"}}}, {"five"}),
        ({"list": [1, 2]}, {"nine"}),
        ({"n": 5, "tag": {"colour": "red"}}, set()),
    ],
)
def test_filters(store: RagTunedStore, given: dict[str, Any], found: set[str]) -> None:
    store.put(HERE, "five", {"n": 5, "tag": {"colour": "blue"}})
    store.put(HERE, "nine", {"n": 9, "tag": {"colour": "red", "size": 1}, "list": [1, 2]})
    store.put(HERE, "text", {"n": "high"})
    store.put(HERE, "none", {"n": None})
    assert set(keys(store.search(HERE, filter=given))) == found
    assert set(keys(store.search(HERE, filter=given, query="colour high"))) == found


def test_an_unknown_operator_is_refused(store: RagTunedStore) -> None:
    for given in ({"n": {"$in": [1]}}, {"a": {"b": {"$regex": "x"}}}, {"n": {"$gt": 1, "plain": 2}}):
        with pytest.raises(ValueError, match="Unsupported operator"):
            store.search(HERE, filter=given)


def test_search_ranks_by_the_query_within_prefix_and_filter(store: RagTunedStore) -> None:
    store.put(HERE, "tea", {"text": "Alice drinks green tea in the morning", "kind": "food"})
    store.put(HERE, "bike", {"text": "Alice rides a red bicycle to work", "kind": "travel"})
    store.put(("users", "bob"), "tea", {"text": "Bob hates green tea", "kind": "food"})
    found = store.search(HERE, query="which tea in the morning?")
    assert keys(found) == ["tea", "bike"]
    assert found[0].namespace == HERE
    assert found[0].score is not None
    assert found[1].score is not None
    assert found[0].score > found[1].score
    assert keys(store.search(HERE, query="tea", filter={"kind": "travel"})) == ["bike"]
    assert {one.namespace for one in store.search((), query="green tea", limit=2)} == {HERE, ("users", "bob")}
    assert keys(store.search(HERE, query="tea", limit=1, offset=1)) == ["bike"]
    assert store.search(("nobody",), query="tea") == []
    assert len(store.search(HERE, query="  ")) == 2


def test_a_query_can_page_through_all_even_where_items_are_long(store: RagTunedStore) -> None:
    for number in range(8):
        store.put(HERE, f"k{number}", {"text": f"report {number}. " + "The disk of the database host is full. " * 300})
    pages = [keys(store.search(HERE, query="full disk", limit=3, offset=offset)) for offset in (0, 3, 6)]
    assert sorted(key for page in pages for key in page) == [f"k{number}" for number in range(8)]


def test_index_says_what_is_searched(store: RagTunedStore) -> None:
    store.put(HERE, "hidden", {"text": "the vault code is 4711"}, index=False)
    value = {"title": "groceries", "notes": [{"t": "oat milk"}, {"t": "bread"}], "x": "vault"}
    store.put(HERE, "part", value, ["title"])
    store.put(HERE, "missing", {"text": "vault"}, index=["nothing.here"])
    assert keys(store.search(HERE, query="vault code")) == ["part"]
    store.put(HERE, "part", value, ["notes[*].t"])
    assert len(store.search(HERE)) == 3
    assert store.search(HERE, query="oat milk")[0].key == "part"


def test_fields_are_searched_where_put_does_not_say(memory: Memory) -> None:
    store = RagTunedStore(memory, fields=["title"])
    store.put(HERE, "k", {"title": "groceries", "secret": "vault"})
    assert [one.text for one in memory.recall("vault").results] == ["groceries"]
    with pytest.raises(InvalidInput, match="a list of paths is needed"):
        RagTunedStore(memory, fields="title")


def test_an_item_is_an_episode_that_is_recalled_and_forgotten_like_any_other(
    memory: Memory, store: RagTunedStore, tmp_path: Path
) -> None:
    store.put(HERE, "prefs", {"drink": "green tea"})
    found = memory.recall("green tea").results[0]
    assert (found.actor, found.text) == ("users/alice/prefs", '{"drink": "green tea"}')
    assert found.trajectory_id == item_id("operations", (HERE, "prefs"))
    assert memory.recall("tea", where=Filter(source="langgraph-store")).results
    learned = register(memory.registry, "operations", tmp_path, [found.trajectory_id])
    store.delete(HERE, "prefs")
    assert memory.registry.state(learned.name) is State.TAINTED
    assert memory.recall("green tea").results == ()
    store.delete(HERE, "prefs")


def test_feedback_on_an_item_outlives_its_next_value(memory: Memory, store: RagTunedStore) -> None:
    store.put(HERE, "prefs", {"drink": "tea"})
    memory.feedback(item_id("operations", (HERE, "prefs")), "only in the morning")
    store.put(HERE, "prefs", {"drink": "coffee"})
    assert store.search(HERE)[0].value == {"drink": "coffee"}
    assert {"only in the morning"} <= {one.text for one in memory.recall("only in the morning").results}


def test_recalled_text_in_a_value_is_kept_but_never_recalled(memory: Memory, store: RagTunedStore) -> None:
    store.put(HERE, "note", {"text": f"{OPENING}\nthe vault code is 4711\n{CLOSING}"}, index=["text"])
    store.put(HERE, "mixed", {"text": f"hello {OPENING}\nthe vault code is 4711\n{CLOSING} world"}, index=["text"])
    assert "4711" not in "".join(one.text for one in memory.recall("vault code").results)
    assert len(store.search(HERE)) == 2


def test_other_episodes_are_no_items(memory: Memory, store: RagTunedStore) -> None:
    memory.record({"steps": [{"kind": "message", "text": "green tea"}]})
    assert store.search(()) == []
    assert store.search((), query="tea") == []
    assert store.list_namespaces() == []


def test_it_outlives_its_process(settings: Settings) -> None:
    with Memory("operations", settings=settings) as memory:
        RagTunedStore(memory).put(HERE, "k", {"n": 1})
    with Memory("operations", settings=settings) as memory:
        assert RagTunedStore(memory).search(HERE, query="n")[0].value == {"n": 1}


def test_users_are_told_apart_by_the_stores_namespace(memories: Memories) -> None:
    store = RagTunedStore(memories, namespace=lambda labels: labels[1])
    store.batch([PutOp(("m", user), "k", {"of": user}) for user in ("alice", "bob")])
    assert [one.value["of"] for one in store.search(("m", "bob"))] == ["bob"]
    assert [one.value["of"] for one in store.batch([SearchOp(("m", u)) for u in ("bob", "alice")])[1]] == ["alice"]  # type: ignore[union-attr, union-attr]
    assert store.list_namespaces(prefix=("m", "alice")) == [("m", "alice")]
    assert memories.of("alice").stats().store.trajectories == 1
    for ask in (
        lambda: store.search(("m",)),
        lambda: store.list_namespaces(),
        lambda: store.list_namespaces(prefix=("m", "*")),
        lambda: store.put(("m",), "k", {}),
    ):
        with pytest.raises(InvalidNamespace, match="does not tell whose items are meant"):
            ask()


def test_without_knowing_whose_items_nothing_is_done(memories: Memories, memory: Memory) -> None:
    with pytest.raises(InvalidNamespace, match="names none"):
        RagTunedStore(memories).put(HERE, "k", {})
    assert RagTunedStore(memories, namespace="alice").search(()) == []
    with pytest.raises(InvalidNamespace, match="bound to namespace 'operations'"):
        RagTunedStore(memory, namespace="alice").search(())


class Drinks(TypedDict):
    drink: str


def _graph(store: RagTunedStore, *, asynchronous: bool) -> Any:
    def remember(state: Drinks, runtime: Runtime) -> Drinks:
        assert runtime.store is not None
        before = runtime.store.get(HERE, "drink")
        runtime.store.put(HERE, "drink", {"is": state["drink"]})
        return {"drink": before.value["is"] if before else "nothing"}

    async def aremember(state: Drinks, runtime: Runtime) -> Drinks:
        assert runtime.store is not None
        before = await runtime.store.aget(HERE, "drink")
        await runtime.store.aput(HERE, "drink", {"is": state["drink"]})
        return {"drink": before.value["is"] if before else "nothing"}

    graph = StateGraph(Drinks)
    graph.add_node("remember", aremember if asynchronous else remember)
    graph.add_edge(START, "remember")
    return graph.compile(store=store)


def test_in_a_graph_the_config_says_whose_items(memories: Memories) -> None:
    graph = _graph(RagTunedStore(memories), asynchronous=False)
    alice, bob = ({"configurable": {"namespace": name}} for name in ("alice", "bob"))
    assert graph.invoke({"drink": "tea"}, alice) == {"drink": "nothing"}
    assert graph.invoke({"drink": "beer"}, bob) == {"drink": "nothing"}
    assert graph.invoke({"drink": "milk"}, alice) == {"drink": "tea"}
    with pytest.raises(InvalidNamespace, match="names none"):
        graph.invoke({"drink": "wine"})


async def test_in_an_async_graph_too(memories: Memories) -> None:
    graph = _graph(RagTunedStore(memories), asynchronous=True)
    configs = [{"configurable": {"namespace": f"user-{number}"}} for number in range(5)]
    first = await asyncio.gather(*(graph.ainvoke({"drink": str(n)}, one) for n, one in enumerate(configs)))
    again = await asyncio.gather(*(graph.ainvoke({"drink": "x"}, one) for one in configs))
    assert [one["drink"] for one in first] == ["nothing"] * 5
    assert [one["drink"] for one in again] == list("01234")


async def test_the_awaited_twins_do_the_same(store: RagTunedStore) -> None:
    await store.aput(HERE, "k", {"n": 1})
    found = await store.aget(HERE, "k")
    assert found is not None
    assert found.value == {"n": 1}
    assert keys(await store.asearch(HERE, query="n")) == ["k"]
    assert await store.alist_namespaces() == [HERE]
    store.put(HERE, "sync", {"n": 2})  # inside a running loop
    await store.adelete(HERE, "k")
    assert keys(await store.asearch(HERE)) == ["sync"]


def test_several_threads_and_loops_at_once(store: RagTunedStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                store.put(HERE, f"k{number}", {"turn": turn})
                asyncio.run(store.aput(HERE, "shared", {"by": number}))
                assert store.search(HERE, query=f"k{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {one.key: one.value.get("turn") for one in store.search(HERE)} == {
        "shared": None,
        **{f"k{number}": 4 for number in range(6)},
    }


def test_what_the_memory_raises_is_raised(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    file.write_bytes(b"no database" * 1000)
    with Memory("operations", settings=Settings(home=tmp_path, embedder="hashing")) as memory:
        store = RagTunedStore(memory)
        with pytest.raises(StoreError, match="not"):
            store.put(HERE, "k", {})
        with pytest.raises(StoreError):
            store.get(HERE, "k")
