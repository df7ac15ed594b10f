"""What a batch of a LangGraph store does to one memory: reads first, then writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from langgraph.store.base import GetOp, Item, ListNamespacesOp, Op, PutOp, Result, SearchItem, SearchOp

from langchain_rag_tuned_memory._store_items import (
    SOURCE,
    Address,
    address_of,
    item_id,
    json_value,
    to_item,
    to_trajectory,
    value_of,
)
from langchain_rag_tuned_memory._store_matching import check_filter, in_condition, in_prefix, passes
from rag_tuned_memory import AsyncMemory, Filter, Trajectory
from rag_tuned_memory.errors import InvalidInput, TrajectoryNotFound

_PASSAGES_OF_AN_ITEM = 4
"""So many passages are recalled for each item wanted at first; long values have several."""


@dataclass(frozen=True, slots=True)
class Write:
    """The last write of a batch to one address; ``value`` is None where the item goes."""

    address: Address
    value: Mapping[str, Any] | None
    index: Literal[False] | Sequence[str]


def writes_of(ops: Sequence[Op], fields: Sequence[str]) -> list[Write]:
    """What is left of the batch's writes when later ones to the same address have replaced earlier ones.

    ``fields`` are the paths that are searched where an operation does not say.

    Raises:
        InvalidInput: a value that JSON cannot hold, or a filter with an unknown operator; nothing was written.
        NotImplementedError: an operation asks for a time to live.
    """
    writes: dict[Address, Write] = {}
    for op in ops:
        if isinstance(op, SearchOp):
            _check_search(op)
        if isinstance(op, PutOp):
            address = (tuple(op.namespace), op.key)
            writes[address] = Write(address, _value(op), fields if op.index is None else op.index)
    return list(writes.values())


def _check_search(op: SearchOp) -> None:
    check_filter(op.filter)
    if op.limit < 0 or op.offset < 0:
        raise InvalidInput(f"limit and offset must not be negative, are {op.limit} and {op.offset}", place="search")


def _value(op: PutOp) -> Mapping[str, Any] | None:
    if op.ttl is not None:
        raise NotImplementedError("TTL is not supported by RagTunedStore. Use ttl=None, and delete what is old.")
    if op.value is None:
        return None
    place = f"value of {'/'.join([*op.namespace, op.key])}"
    if not isinstance(op.value, Mapping):
        raise InvalidInput(f"a mapping is needed, not {type(op.value).__name__}", place=place)
    value: Mapping[str, Any] = json_value(op.value, place)
    return value


async def run(memory: AsyncMemory, ops: Sequence[Op], writes: Sequence[Write]) -> list[Result]:
    """The results of ``ops``, which see what was there before ``writes``."""
    items: list[Trajectory] | None = None
    results: list[Result] = []
    for op in ops:
        if items is None and _needs_all(op):
            items = await _all_items(memory)
        results.append(await _read(memory, op, items or []))
    await _write(memory, writes)
    return results


def _needs_all(op: Op) -> bool:
    if isinstance(op, SearchOp):
        return bool(op.namespace_prefix or op.filter) or not _asks(op)
    return isinstance(op, ListNamespacesOp)


def _asks(op: SearchOp) -> bool:
    return bool(op.query and op.query.strip())


async def _all_items(memory: AsyncMemory) -> list[Trajectory]:
    """Every item, the one that was written last first."""
    items = [one async for one in memory.export(where=Filter(source=SOURCE))]
    items.reverse()
    return items


async def _read(memory: AsyncMemory, op: Op, items: Sequence[Trajectory]) -> Result:
    match op:
        case GetOp():
            found = await _find(memory, (tuple(op.namespace), op.key))
            return None if found is None else to_item(found)
        case SearchOp() if _asks(op):
            return await _search(memory, op, items)
        case SearchOp():
            chosen = [one for one in items if _is_meant(one, op)]
            return [_search_item(one, None) for one in chosen[op.offset : op.offset + op.limit]]
        case ListNamespacesOp():
            return _namespaces(op, items)
        case PutOp():
            return None
        case _:
            raise InvalidInput(f"Unknown operation type: {type(op).__name__}", place="batch")


async def _find(memory: AsyncMemory, address: Address) -> Trajectory | None:
    try:
        return await memory.get(item_id(memory.namespace, address))
    except TrajectoryNotFound:
        return None


def _is_meant(one: Trajectory, op: SearchOp) -> bool:
    return in_prefix(address_of(one)[0], tuple(op.namespace_prefix)) and passes(value_of(one), op.filter)


def _search_item(one: Trajectory, score: float | None) -> SearchItem:
    item: Item = to_item(one)
    return SearchItem(
        namespace=item.namespace,
        key=item.key,
        value=item.value,
        created_at=item.created_at,
        updated_at=item.updated_at,
        score=score,
    )


async def _search(memory: AsyncMemory, op: SearchOp, items: Sequence[Trajectory]) -> list[SearchItem]:
    """The items that tell most about the query, each with the score of its best passage."""
    where = Filter(source=SOURCE)
    if _needs_all(op):
        where = Filter(source=SOURCE, trajectory_ids=frozenset(one.id for one in items if _is_meant(one, op)))
        if not where.trajectory_ids:
            return []
    wanted = op.offset + op.limit
    scores = await _best(memory, op.query or "", wanted, where) if op.limit else {}
    found: list[SearchItem] = []
    for identity, score in list(scores.items())[op.offset : wanted]:
        try:
            found.append(_search_item(await memory.get(identity), score))
        except TrajectoryNotFound:  # deleted meanwhile
            continue
    return found


async def _best(memory: AsyncMemory, query: str, wanted: int, where: Filter) -> dict[str, float]:
    """The ids of at least ``wanted`` items, where there are as many, best first."""
    k = _PASSAGES_OF_AN_ITEM * wanted
    while True:
        results = (await memory.recall(query, k=k, where=where)).results
        scores: dict[str, float] = {}
        for one in results:
            scores[one.trajectory_id] = max(one.score, scores.get(one.trajectory_id, one.score))
        if len(scores) >= wanted or len(results) < k:
            return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))
        k *= 2


def _namespaces(op: ListNamespacesOp, items: Sequence[Trajectory]) -> list[tuple[str, ...]]:
    found = {address_of(one)[0] for one in items}
    chosen = {one for one in found if all(in_condition(one, condition) for condition in op.match_conditions or ())}
    if op.max_depth is not None:
        chosen = {one[: op.max_depth] for one in chosen}
    return sorted(chosen)[op.offset : op.offset + op.limit]


async def _write(memory: AsyncMemory, writes: Sequence[Write]) -> None:
    gone = [item_id(memory.namespace, one.address) for one in writes if one.value is None]
    trajectories = [await _trajectory(memory, one, one.value) for one in writes if one.value is not None]
    if gone:
        await memory.forget(gone)
    for receipt in await memory.record_many(trajectories):
        if receipt.error is not None:
            raise receipt.error


async def _trajectory(memory: AsyncMemory, write: Write, value: Mapping[str, Any]) -> Trajectory:
    now = datetime.now(UTC)
    before = await _find(memory, write.address)
    return to_trajectory(
        memory.namespace,
        write.address,
        value,
        write.index,
        created_at=now if before is None or before.started_at is None else before.started_at,
        updated_at=now,
        max_step_bytes=memory.settings.max_step_bytes,
    )
