"""Fixtures: a replaying server, and the client of it over the tiny model's folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from recordings import stream_reply, token
from replay_server import Answer, ReplayServer

from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.tgi import TgiBackend, TimeLimits

SHORT = TimeLimits(connect=2, first_token=5, between_tokens=5, total=10, probe=5)


@pytest.fixture
def tokenize(tiny_model: Path) -> Callable[[str], list[int]]:
    """How a TGI server of the tiny model splits text."""
    tokenizer = ModelFolder(tiny_model).tokenizer()
    return lambda text: list(tokenizer(text)["input_ids"])


@pytest.fixture
def serve(tokenize: Callable[[str], list[int]]) -> Iterator[Callable[..., ReplayServer]]:
    """Starts servers and stops them."""
    started: list[ReplayServer] = []

    def start(answer: Answer | None = None, port: int = 0) -> ReplayServer:
        started.append(ReplayServer(answer or stream_reply([token("hi")]), tokenize=tokenize, port=port))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
async def connect(tiny_model: Path) -> AsyncIterator[Callable[..., TgiBackend]]:
    """Makes clients and closes them."""
    made: list[TgiBackend] = []

    def make(server: ReplayServer | str, **settings: object) -> TgiBackend:
        url = server if isinstance(server, str) else server.url
        made.append(TgiBackend(url, tiny_model, **{"timeout": SHORT, **settings}))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for backend in made:
        await backend.close()
