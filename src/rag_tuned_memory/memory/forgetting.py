"""Forgetting: out of the store, out of service, and an honest list of what is left."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import anyio.to_thread

from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.states import State
from rag_tuned_memory.distil.lock import RunLock
from rag_tuned_memory.errors import DistilBusy, InvalidInput
from rag_tuned_memory.learning.runs import run_folders
from rag_tuned_memory.memory.receipts import ForgetReceipt
from rag_tuned_memory.store.base import EpisodeStore, Filter


async def chosen(
    store: EpisodeStore, namespace: str, trajectory_ids: Sequence[str] | None, where: Filter | None
) -> list[str]:
    """The ids to forget: those given, or those of all trajectories that ``where`` lets through.

    Raises:
        InvalidInput: neither or both were given, or a filter that lets everything through.
    """
    if (trajectory_ids is None) == (where is None):
        raise InvalidInput(
            "say what to forget: either trajectory_ids or where", place="forget", remedy="Give exactly one of them."
        )
    if where is not None:
        if not where:
            raise InvalidInput(
                "this filter lets every trajectory through",
                place="forget.where",
                remedy="Set a condition; to forget all, give all ids.",
            )
        return [stored.trajectory.id async for stored in store.scan(namespace, where=where)]
    if isinstance(trajectory_ids, str) or not all(isinstance(one, str) for one in trajectory_ids or ()):
        raise InvalidInput("trajectory_ids must be a list of ids", place="forget", remedy="Write [id].")
    return list(dict.fromkeys(trajectory_ids or ()))


async def forget(
    store: EpisodeStore,
    registry: AdapterRegistry,
    runs: Path,
    copies: Sequence[Path],
    namespace: str,
    ids: Sequence[str],
) -> ForgetReceipt:
    """Remove trajectories, and taint what learned from them.

    The store comes first: a run that selects its episodes from here on does not see them, and one that ends later
    notices (see ``memory.distilling``). Adapters are tainted also for ids that are not in the store any more, so that
    a forget that was interrupted is completed by doing it again. ``copies`` are folders with text or vectors made from
    episodes of this namespace that can be made again: they are deleted.
    """
    removed = await store.delete(namespace, ids)
    tainted = await anyio.to_thread.run_sync(taint_learners, registry, namespace, set(ids))
    deleted, remaining = await anyio.to_thread.run_sync(_clear_runs, runs, namespace)
    deleted += await anyio.to_thread.run_sync(_delete, copies)
    remaining += [_kept_files(registry, name) for name in tainted]
    newest = await anyio.to_thread.run_sync(registry.newest, namespace)
    retrain = newest is not None and newest.name in tainted
    if retrain:
        remaining.append(
            "A new adapter without what was forgotten is to be trained: a worker does it, or `rtm distil`."
        )
    return ForgetReceipt(
        removed=tuple(removed),
        missing=tuple(one for one in ids if one not in removed),
        tainted=tuple(tainted),
        deleted=tuple(deleted),
        remaining=tuple(remaining),
        retrain_due=retrain,
    )


def taint_learners(registry: AdapterRegistry, namespace: str, trajectory_ids: Collection[str]) -> list[str]:
    """Bar every adapter that learned one of these from serving; returns their names, also of those barred before."""
    names = []
    for manifest in registry.list(namespace):
        count = len(_learned(manifest).intersection(trajectory_ids))
        if not count:
            continue
        if registry.state(manifest.name) is not State.TAINTED:
            registry.taint(manifest.name, f"{count} of the trajectories that it learned were forgotten")
        names.append(manifest.name)
    return names


def _learned(manifest: Manifest) -> set[str]:
    return {one.trajectory_id for one in manifest.learned}


def _clear_runs(runs: Path, namespace: str) -> tuple[list[str], list[str]]:
    """Delete what unfinished runs left: their data sets quote what is forgotten."""
    folders = run_folders(runs, namespace)
    if not folders:
        return [], []
    try:
        with RunLock(runs, namespace):
            return _delete(folders), []
    except DistilBusy as error:
        return [], [
            f"A run is under way and may have read it ({error.message}): its adapter will not serve, and its folder "
            f"{folders[0].parent} goes when it ends."
        ]


def _delete(folders: Sequence[Path]) -> list[str]:
    there = [folder for folder in folders if folder.is_dir()]
    for folder in there:
        shutil.rmtree(folder)
    return [str(folder) for folder in there]


def _kept_files(registry: AdapterRegistry, name: str) -> str:
    return (
        f"The files of {name} (weights, data set, report) still hold it and never serve: delete all but manifest.json "
        f"and state.jsonl in {registry.files_of(name)} where they must go too."
    )
