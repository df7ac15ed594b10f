"""Immutable, versioned adapters in plain files.

    <folder>/alice-v7/adapter_model.safetensors, adapter_config.json   what PEFT wrote, for any server
    <folder>/alice-v7/manifest.json                                    lineage, with the checksum of each file
    <folder>/alice-v7/state.jsonl                                      each change of state: time, reason, actor
    <folder>/alice-v7/report.html, report.json, …                      whatever else the run left

A version's files never change; only lines are added to its state log. Several processes may share one registry.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rag_tuned_memory.adapters.log import STATE_FILE, commit, encode, read_log, recover
from rag_tuned_memory.adapters.manifest import Draft, Manifest, adapter_name, parse_name
from rag_tuned_memory.adapters.publish import (
    MANIFEST_FILE,
    draft_to_manifest,
    manifest_bytes,
    publish,
    read_manifest,
    staged_copy,
    verify_files,
)
from rag_tuned_memory.adapters.states import NEVER_SERVES, State, Transition, check_transition
from rag_tuned_memory.distil.naming import namespace_slug
from rag_tuned_memory.errors import (
    AdapterError,
    AdapterNotFound,
    AdapterNotServable,
    IllegalTransition,
    InvalidInput,
    StoreFull,
)
from rag_tuned_memory.trajectory import validate_namespace

__all__ = ["MANIFEST_FILE", "STATE_FILE", "AdapterRegistry"]

Manifests = list[Manifest]
Transitions = list[Transition]
Changes = list[tuple[str, State]]


class AdapterRegistry:
    """The adapters of all namespaces below ``folder``, which is made when the first one is registered.

    All methods block on files (some for as long as a checksum of the weights takes): call them from async code by
    ``anyio.to_thread.run_sync``. ``actor`` is written to the log beside each change; by default user, host and process.
    Where a method takes a ``namespace``, an adapter of another one is not found.

    Raises everywhere: AdapterDamaged where a file cannot be read or differs from its checksum, AdapterError where the
    folder cannot be used or another process held the lock for ``lock_timeout`` seconds.
    """

    def __init__(self, folder: Path | str, *, actor: str | None = None, lock_timeout: float = 30.0) -> None:
        self.folder = Path(folder)
        self._actor = actor or _this_process()
        self._lock_timeout = lock_timeout

    # Reading

    def list(self, namespace: str | None = None) -> Manifests:
        """All adapters, or those of one namespace, by slug and version."""
        slug = None if namespace is None else namespace_slug(validate_namespace(namespace))
        return [read_manifest(self.folder / name) for name in self._names(slug)]

    def get(self, name: str, *, namespace: str | None = None) -> Manifest:
        """One adapter's manifest. Raises AdapterNotFound."""
        return read_manifest(self._existing(name, namespace))

    def files_of(self, name: str, *, namespace: str | None = None) -> Path:
        """The folder of an adapter in any state, to read its report; nothing is verified. Raises AdapterNotFound."""
        return self._existing(name, namespace)

    def path(self, name: str, *, namespace: str | None = None) -> Path:
        """The folder to load an adapter from, after its files were compared with their checksums.

        Raises:
            AdapterNotServable: it is rejected or tainted.
            AdapterDamaged: a file differs, is missing, or other weights lie beside it.
            AdapterNotFound: there is none.
        """
        folder = self._existing(name, namespace)
        state = self.state(name)
        if state in NEVER_SERVES:
            raise AdapterNotServable(
                f"adapter {name} is {state} and never serves", remedy="Distil again, or use another version."
            )
        verify_files(folder, read_manifest(folder))
        return folder

    def state(self, name: str, *, namespace: str | None = None) -> State:
        """What an adapter is now. Raises AdapterNotFound."""
        return self.history(name, namespace=namespace)[-1].new

    def history(self, name: str, *, namespace: str | None = None) -> Transitions:
        """All changes of an adapter's state, oldest first. Raises AdapterNotFound."""
        folder = self._existing(name, namespace)
        with self._locked():
            return read_log(folder)

    def serving(self, namespace: str) -> Manifest | None:
        """The adapter that answers for a namespace, if any."""
        slug = namespace_slug(validate_namespace(namespace))
        if not self.folder.is_dir():
            return None
        with self._locked():
            name = _serving_name(self._logs(slug))
        return None if name is None else read_manifest(self.folder / name)

    def newest(self, namespace: str) -> Manifest | None:
        """The latest version whatever its state: its watermark is how far the last run came."""
        names = self._names(namespace_slug(validate_namespace(namespace)))
        return read_manifest(self.folder / names[-1]) if names else None

    def learned_from(self, trajectory_id: str, namespace: str) -> Manifests:
        """All adapters of a namespace that were trained on a trajectory, in whatever state.

        A damaged manifest raises instead of being left out: it might name the trajectory.
        """
        return [
            manifest
            for manifest in self.list(namespace)
            if any(learned.trajectory_id == trajectory_id for learned in manifest.learned)
        ]

    def next_name(self, namespace: str) -> str:
        """The name that the next registration of this namespace gets; holds while no other process registers one."""
        return adapter_name(namespace, self._next_version(namespace_slug(validate_namespace(namespace))))

    # Writing

    def register(self, namespace: str, source: Path | str, draft: Draft) -> Manifest:
        """Copy a finished run's folder into the registry as the next version, in the state candidate.

        ``source`` holds what PEFT's ``save_pretrained`` wrote, and anything else worth keeping. The gate's decision is
        computed here from the draft's metrics and recipe, so that no caller can bring another one. Either the whole
        version is there afterwards or nothing, also when the process is killed on the way.

        Raises:
            InvalidInput: weights or configuration are missing in ``source``, or it holds a registry's own files.
            AdapterNotFound: ``draft.parent`` is no adapter of this namespace.
            StoreFull: no space is left; nothing was registered.
        """
        slug = namespace_slug(validate_namespace(namespace))
        if draft.parent is not None:
            self._existing(draft.parent, namespace)
        with self._clear_errors(), staged_copy(Path(source), self.folder) as (staging, files), self._locked():
            version = self._next_version(slug)
            manifest = draft_to_manifest(draft, namespace, version, files)
            self._refuse_foreign(manifest, slug)
            data, digest = manifest_bytes(manifest)
            made = self._transition(slug, State.TRAINING, State.CANDIDATE, "registered", manifest_sha256=digest)
            publish(staging, self.folder / manifest.name, {MANIFEST_FILE: data, STATE_FILE: encode(made)})
        return manifest

    def conclude(self, name: str, *, namespace: str | None = None) -> State:
        """Put the gate's decision about a candidate into force: accepted or rejected."""
        decision = self.get(name, namespace=namespace).decision
        state = State.ACCEPTED if decision.accepted else State.REJECTED
        return self.transition(name, state, decision.summary, namespace=namespace)

    def transition(self, name: str, state: State, reason: str, *, namespace: str | None = None) -> State:
        """Change an adapter's state and log why; ``serving`` goes through ``promote``.

        Raises:
            IllegalTransition: the table forbids it, or ``accepted`` was asked for what the gate rejected.
            AdapterNotServable: a rejected or tainted adapter was to serve.
        """
        if state is State.SERVING:
            return self.promote(name, reason, namespace=namespace)
        folder = self._existing(name, namespace)
        if state is State.ACCEPTED and not (decision := read_manifest(folder).decision).accepted:
            raise IllegalTransition(
                f"adapter {name} cannot become accepted. {decision.summary}",
                remedy="Distil again, or lower the thresholds in the recipe.",
            )
        with self._locked():
            self._commit(parse_name(name)[0], [(name, state)], reason)
        return state

    def promote(self, name: str, reason: str, *, namespace: str | None = None) -> State:
        """Let an accepted or retired adapter serve; in the same step the one that serves now retires.

        Nothing changes when it serves already. Raises as ``transition`` and ``path`` do.
        """
        self._existing(name, namespace)
        with self._locked():
            return self._serve(name, reason)

    def rollback(self, namespace: str, reason: str) -> Manifest:
        """Let the one that served before the present one serve again, in place of it; returns what serves now.

        Tainted adapters are passed over, and so is whatever was itself rolled back from. When nothing serves (it was
        tainted or retired), the one that served last and still may serves again.

        Raises:
            AdapterNotFound: there is nothing to go back to; what serves goes on serving.
            AdapterDamaged: its files are not what they were.
        """
        slug = namespace_slug(validate_namespace(namespace))
        with self._locked():
            logs = self._logs(slug)
            current = _serving_name(logs)
            before = [name for name in _served_in_order(logs) if name != current]
            if not before:
                raise AdapterNotFound(
                    f"no earlier adapter of namespace {namespace!r} can serve again",
                    remedy="Promote an accepted version, or taint the present one to fall back to retrieval.",
                )
            self._serve(before[-1], reason)
        return read_manifest(self.folder / before[-1])

    def taint(self, name: str, reason: str, *, namespace: str | None = None) -> State:
        """Bar an adapter from ever serving (again), at once; works on damaged files too. Raises AdapterNotFound."""
        return self.transition(name, State.TAINTED, reason, namespace=namespace)

    def remark(self, name: str, text: str, *, namespace: str | None = None) -> None:
        """Write a line into an adapter's log that changes nothing: what happened when it was to serve."""
        folder = self._existing(name, namespace)
        with self._locked():
            slug, state = parse_name(name)[0], read_log(folder)[-1].new
            with self._clear_errors():
                commit(self.folder, [(name, self._transition(slug, state, state, text))])

    # Inside; those below that read or write logs need the lock

    def _serve(self, name: str, reason: str) -> State:
        slug, _ = parse_name(name)
        logs = self._logs(slug)
        if logs[name][-1].new is State.SERVING:
            return State.SERVING
        check_transition(name, logs[name][-1].new, State.SERVING)
        verify_files(self.folder / name, read_manifest(self.folder / name))
        changes = [(name, State.SERVING)]
        if (current := _serving_name(logs)) is not None:
            changes.insert(0, (current, State.RETIRED))
        self._commit(slug, changes, reason)
        return State.SERVING

    def _commit(self, slug: str, changes: Changes, reason: str) -> None:
        entries = []
        for offset, (name, new) in enumerate(changes):
            old = read_log(self.folder / name)[-1].new
            check_transition(name, old, new)
            entries.append((name, self._transition(slug, old, new, reason, offset=offset)))
        with self._clear_errors():
            commit(self.folder, entries)

    def _transition(
        self, slug: str, old: State, new: State, reason: str, *, offset: int = 0, manifest_sha256: str | None = None
    ) -> Transition:
        if not reason.strip():
            raise InvalidInput("a change of an adapter's state needs a reason", remedy="Say why, in a few words.")
        last = max((line.sequence for log in self._logs(slug).values() for line in log), default=0)
        return Transition(
            sequence=last + 1 + offset,
            time=datetime.now(UTC),
            old=old,
            new=new,
            reason=reason,
            actor=self._actor,
            manifest_sha256=manifest_sha256,
        )

    def _logs(self, slug: str) -> dict[str, Transitions]:
        return {name: read_log(self.folder / name) for name in self._names(slug)}

    def _names(self, slug: str | None) -> tuple[str, ...]:
        if not self.folder.is_dir():
            return ()
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(AdapterNotFound):
                found.append((parse_name(path.name), path.name))
        return tuple(name for (of, _), name in sorted(found) if slug is None or of == slug)

    def _existing(self, name: str, namespace: str | None) -> Path:
        slug, _ = parse_name(name)
        folder = self.folder / name
        if not folder.is_dir() or (namespace is not None and slug != namespace_slug(validate_namespace(namespace))):
            where = "" if namespace is None else f" in namespace {namespace!r}"
            raise AdapterNotFound(
                f"there is no adapter {name}{where}",
                place=str(self.folder),
                remedy="`rtm adapters list` shows what there is.",
            )
        return folder

    def _next_version(self, slug: str) -> int:
        names = self._names(slug)
        return parse_name(names[-1])[1] + 1 if names else 1

    def _refuse_foreign(self, manifest: Manifest, slug: str) -> None:
        """Two namespaces with one slug would see each other's adapters; 64 bits of hash make this a formality."""
        names = self._names(slug)
        if names and read_manifest(self.folder / names[-1]).namespace != manifest.namespace:
            raise AdapterError(f"another namespace owns the adapter names {slug}-v…", remedy="Rename the namespace.")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the registry's lock, with any interrupted change finished first."""
        with self._clear_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=self._lock_timeout, poll_interval=0.005):
                recover(self.folder)
                yield

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Timeout as error:
            raise AdapterError(
                f"another process held the adapter registry for over {self._lock_timeout:g} s",
                place=str(self.folder),
                remedy="Try again when it is done.",
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull(
                    "no space is left on the device; the adapter registry is as it was",
                    place=str(self.folder),
                    remedy="Free some space, then try again.",
                ) from error
            raise AdapterError(
                f"the adapter registry cannot be used: {error.strerror or error}",
                place=str(error.filename or self.folder),
                remedy="Check that the folder exists and can be written.",
            ) from error


def _serving_name(logs: dict[str, Transitions]) -> str | None:
    return next((name for name, log in logs.items() if log[-1].new is State.SERVING), None)


def _served_in_order(logs: dict[str, Transitions]) -> list[str]:
    """Which adapters a rollback may go back to, the nearest last.

    A promotion puts an adapter on top. A retired one that serves again takes away all above it (they were given up).
    """
    lines = sorted((line.sequence, name, line) for name, log in logs.items() for line in log if line.old != line.new)
    stack: list[str] = []
    for _, name, line in lines:
        if line.new is State.SERVING and line.old is State.RETIRED and name in stack:
            del stack[stack.index(name) + 1 :]
        elif line.new is State.SERVING:
            stack.append(name)
    return [name for name in stack if logs[name][-1].new is not State.TAINTED]


def _this_process() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}:{os.getpid()}"
