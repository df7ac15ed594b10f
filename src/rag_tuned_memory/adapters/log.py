"""The append-only state logs of a registry, and how several of them change as one.

Each adapter's folder holds ``state.jsonl``, one ``Transition`` a line. A change of several adapters (one is promoted,
another retires) is first written whole to ``.pending.json`` in one atomic step, from which on it holds: should the
process die, whoever next holds the registry's lock finishes it. All functions here need that lock.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rag_tuned_memory.adapters.files import replace_durably, sync_folder
from rag_tuned_memory.adapters.states import Transition
from rag_tuned_memory.errors import AdapterDamaged

STATE_FILE = "state.jsonl"
_PENDING_FILE = ".pending.json"
_PENDING = TypeAdapter(list[tuple[str, Transition]])


def encode(transition: Transition) -> bytes:
    """One line of a log."""
    return transition.model_dump_json(exclude_none=True).encode() + b"\n"


def read_log(folder: Path) -> list[Transition]:
    """The transitions of one adapter, oldest first.

    A last line without its line break was cut off by a crash and never took effect; it is left out.

    Raises:
        AdapterDamaged: the log is missing or a line cannot be read.
    """
    path = folder / STATE_FILE
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        raise _damaged(path, "the state log is missing") from None
    transitions: list[Transition] = []
    for number, line in enumerate(lines, start=1):
        try:
            transitions.append(Transition.model_validate_json(line))
        except ValidationError:
            raise _damaged(f"{path}:{number}", "this line of the state log cannot be read") from None
    if not transitions:
        raise _damaged(path, "the state log is empty")
    return transitions


def commit(registry: Path, changes: Sequence[tuple[str, Transition]]) -> None:
    """Append to the logs of one or more adapters, all or none, durably; after an OSError nothing has changed."""
    try:
        replace_durably(registry / _PENDING_FILE, _PENDING.dump_json(list(changes), exclude_none=True))
        recover(registry)
    except OSError:
        _undo(registry, changes)
        raise


def recover(registry: Path) -> None:
    """Finish a change that a crash interrupted; nothing happens where there is none.

    Raises:
        AdapterDamaged: the pending change cannot be read.
    """
    path = registry / _PENDING_FILE
    try:
        changes = _PENDING.validate_json(path.read_bytes())
    except FileNotFoundError:
        return
    except ValidationError:
        raise _damaged(path, "a change that was under way cannot be read") from None
    for name, transition in changes:
        _append_once(registry / name, transition)
    path.unlink()
    sync_folder(registry)


def _append_once(folder: Path, transition: Transition) -> None:
    if transition in read_log(folder):
        return
    with (folder / STATE_FILE).open("rb+") as stream:
        whole_lines = stream.read().rfind(b"\n") + 1
        stream.truncate(whole_lines)
        stream.seek(whole_lines)
        stream.write(encode(transition))
        stream.flush()
        os.fsync(stream.fileno())


def _undo(registry: Path, changes: Sequence[tuple[str, Transition]]) -> None:
    """Cut off what ``recover`` appended before it failed. Shortening a file works on a full disk.

    The pending file goes last: killed before that, the change is finished instead, and whole as well.
    """
    for name, transition in changes:
        with (registry / name / STATE_FILE).open("rb+") as stream:
            text = stream.read()
            whole = text[: text.rfind(b"\n") + 1]
            stream.truncate(len(whole.removesuffix(encode(transition))))
    (registry / _PENDING_FILE).unlink(missing_ok=True)


def _damaged(place: Path | str, message: str) -> AdapterDamaged:
    return AdapterDamaged(message, place=str(place), remedy="Restore the file from a backup; it is never edited.")
