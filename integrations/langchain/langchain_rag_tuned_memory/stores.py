"""``RagTunedStore``: LangGraph's store over the episode store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from langchain_rag_tuned_memory._extras import missing
from langchain_rag_tuned_memory._namespaces import asked_namespace, memory_of
from rag_tuned_memory import AsyncMemory, Memories, Memory
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace
from rag_tuned_memory.trajectory import validate_namespace

try:
    from langgraph.store.base import BaseStore, GetOp, ListNamespacesOp, Op, PutOp, Result, SearchOp
    from langgraph.store.base import validate_op_namespace as check_labels
except ImportError as error:
    raise missing("RagTunedStore", "langgraph", "agents") from error

from langchain_rag_tuned_memory._store_operations import Write, run, writes_of

Work = Callable[[AsyncMemory], Awaitable[list[Result]]]
Tenant = str | Callable[[tuple[str, ...]], str]


class RagTunedStore(BaseStore):
    """LangGraph's long-term store, whose items can also be recalled, distilled into an adapter and forgotten.

    Each item is a small trajectory (source ``langgraph-store``) of the memory's namespace: ``put`` returns when it is
    durable and can be found; ``search`` with ``query`` ranks by meaning and words; ``delete`` forgets, and adapters
    that learned the item stop serving. Items come in the order in which they were written, the newest first, or the
    best first. Safe to use from several threads, event loops and processes; what one batch writes is seen by
    the next.

    ``memory`` is the memory that holds the items, or the memories of many users. For these, ``namespace`` says whose
    items are meant, or is a function that tells it from the store's own namespace (``lambda labels: labels[1]`` where
    these are ``("memories", user)``); without it, the running graph's config does (``configurable``, ``namespace``).
    ``fields`` are the paths of a value that are searched, ``$`` is all of it.

    Raises:
        InvalidInput: a value that JSON cannot hold; an unknown filter operator.
        InvalidNamespace: it cannot be told whose items are meant. An invalid label is LangGraph's
            ``InvalidNamespaceError``.
        NotImplementedError: a time to live; it is not supported.
        RagTunedMemoryError: what the memory raises, such as StoreError.
    """

    supports_ttl = False

    def __init__(
        self, memory: Memory | Memories, *, namespace: Tenant | None = None, fields: Sequence[str] = ("$",)
    ) -> None:
        if isinstance(fields, str):
            raise InvalidInput("a list of paths is needed", place="RagTunedStore.fields", remedy=f"Write [{fields!r}].")
        self._memory = memory
        self._namespace = namespace
        self._fields = tuple(fields)

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Execute operations: reads see what was there before the batch; of several writes to a key the last counts."""
        every = list(ops)
        results: list[Result] = [None] * len(every)
        for memory, places, work in self._works(every):
            for place, result in zip(places, memory.call(work), strict=True):
                results[place] = result
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As ``batch``."""
        every = list(ops)
        results: list[Result] = [None] * len(every)
        for memory, places, work in self._works(every):
            for place, result in zip(places, await memory.acall(work), strict=True):
                results[place] = result
        return results

    def _works(self, ops: list[Op]) -> list[tuple[Memory, list[int], Work]]:
        """What is to be done in each memory, with the places of its operations; all are checked first."""
        by_memory: dict[str, tuple[Memory, list[int]]] = {}
        for place, op in enumerate(ops):
            check_labels(op)
            memory = self._memory_of(op)
            by_memory.setdefault(memory.namespace, (memory, []))[1].append(place)
        works: list[tuple[Memory, list[int], Work]] = []
        for memory, places in by_memory.values():
            some = [ops[place] for place in places]
            writes: list[Write] = writes_of(some, self._fields)
            works.append((memory, places, partial(run, ops=some, writes=writes)))
        return works

    def _memory_of(self, op: Op) -> Memory:
        return memory_of(self._memory, asked_namespace(self._tenant(_labels(op)), None))

    def _tenant(self, labels: tuple[str, ...]) -> str | None:
        if not callable(self._namespace):
            return self._namespace
        try:
            return validate_namespace(self._namespace(labels))
        except (LookupError, TypeError, InvalidNamespace) as error:
            raise InvalidNamespace(
                f"the store's namespace {labels!r} does not tell whose items are meant",
                place="RagTunedStore",
                remedy="Give a namespace, or a prefix without '*', that is long enough for the function given.",
            ) from error


def _labels(op: Op) -> tuple[str, ...]:
    """The store's namespace that an operation names, as far as it does."""
    match op:
        case GetOp() | PutOp():
            return tuple(op.namespace)
        case SearchOp():
            return tuple(op.namespace_prefix)
        case ListNamespacesOp():
            prefixes = [tuple(one.path) for one in op.match_conditions or () if one.match_type == "prefix"]
            known = prefixes[0] if prefixes else ()
            return known[: known.index("*")] if "*" in known else known
        case _:
            return ()
