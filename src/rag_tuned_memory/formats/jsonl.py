"""Our own form: JSONL, one trajectory a line, as ``Trajectory`` has its fields; read and written.

``namespace`` and ``id`` are not written: an export is about episodes, and whoever imports it says whose they are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from rag_tuned_memory.errors import InvalidTrajectory
from rag_tuned_memory.formats.base import MAX_STEP_BYTES, ErrorPolicy, OnError, OnSkip, import_records
from rag_tuned_memory.trajectory import Trajectory, canonical_json, validate_namespace


def read_jsonl(
    path: Path,
    namespace: str,
    *,
    on_error: OnError = "stop",
    on_skip: OnSkip | None = None,
    max_step_bytes: int = MAX_STEP_BYTES,
) -> Iterator[Trajectory]:
    """Each record of ``path`` as a trajectory of ``namespace``; see ``Importer`` for the arguments.

    A record's own ``namespace`` and ``id`` are ignored. A file without records is an empty export, and no error.
    """
    convert = partial(_trajectories, validate_namespace(namespace))
    policy = ErrorPolicy(on_error, on_skip)
    return import_records(path, convert, policy, max_step_bytes=max_step_bytes, may_be_empty=True)


def dump_jsonl(trajectories: Iterable[Trajectory], stream: IO[str]) -> int:
    """Write each trajectory as a line; returns how many. Equal trajectories give equal lines."""
    count = 0
    for trajectory in trajectories:
        content = trajectory.model_dump(mode="json", exclude={"id", "namespace"}, exclude_defaults=True)
        stream.write(canonical_json(content).decode() + "\n")
        count += 1
    return count


def write_jsonl(path: Path, trajectories: Iterable[Trajectory]) -> int:
    """Write a file, whole or not at all: an error leaves what was at ``path``. Returns how many were written."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as stream:
        try:
            count = dump_jsonl(trajectories, stream)
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(stream.name, path)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise
    return count


def is_trajectory_record(record: Any) -> bool:
    """Whether a record has the form that this module reads."""
    return isinstance(record, Mapping) and "steps" in record


def _trajectories(namespace: str, record: Any) -> Iterator[Trajectory]:
    if not isinstance(record, Mapping):
        raise InvalidTrajectory("not a trajectory: expected an object with 'steps'")
    fields = {key: value for key, value in record.items() if key not in ("id", "namespace")}
    yield Trajectory.parse({"namespace": namespace, **fields})
