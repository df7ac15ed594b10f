"""``EpisodeRecorder``: episodes recorded while they happen, whatever happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from rag_tuned_memory.capture.episode import OpenEpisode
from rag_tuned_memory.errors import InvalidNamespace, InvalidTrajectory, RagTunedMemoryError
from rag_tuned_memory.memory import journal as files
from rag_tuned_memory.memory.blocking import Memory
from rag_tuned_memory.memory.journal import Journal, Opening
from rag_tuned_memory.memory.many import Memories
from rag_tuned_memory.memory.receipts import RecordReceipt
from rag_tuned_memory.trajectory import Outcome, Step, describe

_log = logging.getLogger(__name__)


class EpisodeRecorder:
    """Keeps open episodes, and stores each when it ends or pauses.

    Putting a step costs a line in a file: nothing is embedded and no store is asked while the agent works. A process
    that is killed leaves the file, and ``recover`` of any later recorder with the same ``RTM_HOME`` stores what it
    holds. Safe to use from several threads and event loops. Close it, or use it as a context manager.
    """

    def __init__(self, memory: Memory | Memories) -> None:
        self._memory = memory
        self._journal = Journal(memory.settings.home)
        self._open: dict[str, OpenEpisode] = {}
        self._lock = threading.Lock()

    def begin(
        self,
        namespace: str,
        *,
        source: str,
        source_id: str,
        goal: str = "",
        started_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> OpenEpisode:
        """The open episode of ``source_id``: a new one, or the one that is open already.

        One that was paused, here or in another process, is gone on with: what is stored of it stays.

        Raises:
            InvalidTrajectory: a field is wrong.
            InvalidNamespace: the memory is of another namespace.
        """
        self._of(namespace)
        fields = {"namespace": namespace, "source": source, "source_id": source_id, "goal": goal}
        opening = _opening({**fields, "started_at": started_at or datetime.now(UTC), "metadata": dict(metadata or {})})
        with self._lock:
            if opening.trajectory_id not in self._open:
                self._open[opening.trajectory_id] = self._new(opening)
            return self._open[opening.trajectory_id]

    def finish(self, episode: OpenEpisode, outcome: Outcome | None = None) -> RecordReceipt | None:
        """Store an episode that has ended; when this returns it can be recalled. None where nothing happened in it.

        Raises:
            RagTunedMemoryError: it could not be stored. It stays open, here and on disk: ``finish`` again.
        """
        return self._store(episode, outcome or Outcome())

    async def afinish(self, episode: OpenEpisode, outcome: Outcome | None = None) -> RecordReceipt | None:
        """As ``finish``, awaited."""
        return await self._astore(episode, outcome or Outcome())

    def pause(self, episode: OpenEpisode) -> RecordReceipt | None:
        """Store what happened so far of an episode that waits for somebody; ``begin`` goes on with it."""
        return self._store(episode, None)

    async def apause(self, episode: OpenEpisode) -> RecordReceipt | None:
        """As ``pause``, awaited."""
        return await self._astore(episode, None)

    def recover(self) -> list[RecordReceipt]:
        """Store what recorders that are gone left open; an episode that cannot be stored is left for the next time."""
        receipts = []
        for folder in self._journal.left():
            for file in sorted(folder.glob("*.jsonl")):
                try:
                    receipts += self._recovered(files.read(file))
                except InvalidNamespace:
                    continue  # another memory's
                except (RagTunedMemoryError, OSError) as error:
                    _log.warning("the episode in %s could not be stored and stays there: %s", file, error)
                    continue
                file.unlink(missing_ok=True)
        return receipts

    def close(self) -> None:
        """Store what is still open as paused; what cannot be stored stays on disk for ``recover``."""
        for episode in list(self._open.values()):
            try:
                self.pause(episode)
            except RagTunedMemoryError as error:
                _log.warning("an open episode could not be stored and waits on disk: %s", error)
        self._journal.close()

    def _recovered(self, found: tuple[Opening, Sequence[Step]] | None) -> list[RecordReceipt]:
        if found is None:
            return []
        opening, steps = found
        memory = self._of(opening.namespace)
        episode = OpenEpisode(opening, max_step_bytes=memory.settings.max_step_bytes)
        for step in steps:
            episode.put(step)
        trajectory = episode.trajectory()
        return [memory.extend(trajectory)] if trajectory else []

    def _store(self, episode: OpenEpisode, outcome: Outcome | None) -> RecordReceipt | None:
        changes, trajectory = episode.changes, episode.trajectory(outcome)
        receipt = self._of(episode.opening.namespace).extend(trajectory) if trajectory else None
        self._close(episode, changes)
        return receipt

    async def _astore(self, episode: OpenEpisode, outcome: Outcome | None) -> RecordReceipt | None:
        changes, trajectory = episode.changes, episode.trajectory(outcome)
        receipt = await self._of(episode.opening.namespace).aextend(trajectory) if trajectory else None
        self._close(episode, changes)
        return receipt

    def _new(self, opening: Opening) -> OpenEpisode:
        def written(step: Step) -> None:
            self._open[opening.trajectory_id] = episode  # also one that was closed while another thread was at work
            try:
                self._journal.write(opening, step)
            except OSError as error:
                _log.warning("a step is kept in memory only, its file cannot be written: %s", error)

        episode = OpenEpisode(opening, max_step_bytes=self._memory.settings.max_step_bytes, written=written)
        return episode

    def _close(self, episode: OpenEpisode, changes: int) -> None:
        with episode.held():
            if episode.changes == changes:  # else a step came while it was being stored
                self._open.pop(episode.trajectory_id, None)
                try:
                    self._journal.end(episode.opening)
                except OSError as error:
                    _log.warning("the file of a stored episode cannot be removed: %s", error)

    def _of(self, namespace: str) -> Memory:
        if isinstance(self._memory, Memories):
            return self._memory.of(namespace)
        if namespace != self._memory.namespace:
            raise InvalidNamespace(
                f"the memory is of namespace {self._memory.namespace!r}, the episode of {namespace!r}",
                remedy="Give the recorder a Memories object where it serves several namespaces.",
            )
        return self._memory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opening(fields: dict[str, Any]) -> Opening:
    try:
        return Opening.model_validate(fields)
    except ValidationError as error:
        raise InvalidTrajectory(describe(error), place="episode") from error
