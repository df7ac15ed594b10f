"""What the sessions of one process share, and how a memory is opened again from what a serialised session says.

A workflow's context is serialised and restored between two runs, also within one process. These tables let a restored
session find the memory that it was given, and its recorder: neither can travel through JSON.
"""

from __future__ import annotations

import logging
import threading
import uuid
import weakref
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from llama_index.memory.rag_tuned.binding import Binding
from rag_tuned_memory import Memories, Memory, Settings
from rag_tuned_memory.capture import EpisodeRecorder
from rag_tuned_memory.errors import InvalidInput, InvalidNamespace, RagTunedMemoryError
from rag_tuned_memory.trajectory import describe, validate_namespace

_log = logging.getLogger(__name__)


def namespace_of(memory: Memory | Memories | None, namespace: str | None) -> str:
    """Whose memory it is, also where there is none yet.

    Raises:
        InvalidInput: no memory, or ``Memories`` without a namespace.
        InvalidNamespace: nobody is named, or somebody whose memory it is not.
    """
    if memory is not None:
        return Binding(memory, namespace).memory().namespace
    if namespace is None:
        raise InvalidNamespace(
            "nobody is named whose memory this is",
            place="namespace",
            remedy="Give a Memory, or namespace=, e.g. the user's id: there is no shared one.",
        )
    return validate_namespace(namespace)


class Origin(BaseModel):
    """The settings that a memory is opened from, without secrets: those come from the environment (RTM_*)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: str
    cache: str
    store: str
    embedder: str

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What may be told of ``settings``."""
        return cls(
            home=str(settings.home),
            cache=str(settings.cache),
            store=_without_login(settings.store),
            embedder=settings.embedder,
        )


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


class Link:
    """A memory and the one recorder of its open episodes."""

    def __init__(self, memory: Memory | Memories, name: str) -> None:
        self.memory = memory
        self.name = name
        self.recorder = EpisodeRecorder(memory)
        self._recovering = threading.Lock()
        self._recovered = False

    def of(self, namespace: str) -> Memory:
        """The memory of a namespace. Raises InvalidNamespace."""
        return Binding(self.memory, namespace).memory()

    @property
    def must_recover(self) -> bool:
        """Whether nobody looked yet for what killed processes left."""
        return not self._recovered

    def recover(self) -> None:
        """Store what killed processes left, once; it takes as long as embedding that does."""
        with self._recovering:
            if not self._recovered:
                self._recovered = True
                try:
                    self.recorder.recover()
                except (RagTunedMemoryError, OSError) as error:
                    _log.warning("episodes that a killed process left could not be stored: %s", error)


_lock = threading.Lock()
_names: weakref.WeakKeyDictionary[Memory | Memories, str] = weakref.WeakKeyDictionary()
_named: weakref.WeakValueDictionary[str, Memory | Memories] = weakref.WeakValueDictionary()
_links: weakref.WeakValueDictionary[str, Link] = weakref.WeakValueDictionary()
_opened: dict[Origin, Memories] = {}


def link_to(memory: Memory | Memories) -> Link:
    """The link of ``memory``, the same one for all sessions of this process."""
    with _lock:
        name = _names.setdefault(memory, uuid.uuid4().hex)
        _named[name] = memory
        link = _links.get(name)
        if link is None:
            link = _links[name] = Link(memory, name)
        return link


def link_named(name: str) -> Link | None:
    """The link with this name; None where its memory is of another process, or gone."""
    memory = _named.get(name)
    return link_to(memory) if memory is not None else None


def reopened(origin: Origin) -> Link:
    """A link to the memories that ``origin`` names, opened once in a process and closed at its end.

    Raises:
        InvalidInput: a setting of the environment has a value that cannot be.
    """
    with _lock:
        memories = _opened.get(origin)
        if memories is None:
            memories = _opened[origin] = Memories(settings=_settings(origin))
    return link_to(memories)


def _settings(origin: Origin) -> Settings:
    try:
        return Settings(**origin.model_dump())
    except ValidationError as error:
        raise InvalidInput(describe(error), place="settings (RTM_*)", remedy="Correct or unset it.") from error
