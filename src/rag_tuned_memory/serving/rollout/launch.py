"""Starting and stopping a server that reads LORA_ADAPTERS when it starts: as a process, or by one's own command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict

from rag_tuned_memory.errors import BackendError, InvalidInput
from rag_tuned_memory.serving.compatibility import path_problems

_LOG_TAIL = 1500
_MARK = "RTM_SUPERVISED"


class Server(BaseModel):
    """A server that was started. ``pid`` and ``created`` (seconds since 1970) tell its process from a later one."""

    model_config = ConfigDict(frozen=True)

    url: str
    pid: int | None = None
    created: float | None = None
    log: str | None = None


class Launcher(Protocol):
    """Starts and stops servers; they outlive the process that started them."""

    async def start(self, adapters: Mapping[str, Path]) -> Server:
        """Start one that serves these adapters by their names; it need not be ready yet. Raises BackendError."""
        ...

    async def alive(self, server: Server) -> bool:
        """Whether it may still run; False only where it certainly does not."""
        ...

    async def stop(self, server: Server) -> None:
        """Let it finish what it does, and end it; without effect where it has ended."""
        ...

    async def strays(self, known: Sequence[Server]) -> list[Server]:
        """Servers that run and are none of these: their supervisor was killed before it could write them down."""
        ...

    async def why(self, server: Server) -> str:
        """What it said at last, for an error's text."""
        ...


class ProcessLauncher:
    """Starts ``command`` as a process in a session of its own, on a free port of loopback.

    Args:
        command: the program and its arguments; ``{port}`` stands for the port. Such as
            ``["text-generation-launcher", "--model-id", "/models/base", "--port", "{port}"]``, or ``rtm serve-model``.
        logs: folder for what the servers print, a file each.
        environment: further variables; LORA_ADAPTERS is set here.
        stop_seconds: how long a server may take to end before it is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        logs: Path,
        *,
        environment: Mapping[str, str] | None = None,
        stop_seconds: float = 100.0,
    ) -> None:
        if not any("{port}" in word for word in command):
            raise InvalidInput(
                f"the command has no place for the port: {shlex.join(command)}", remedy="Write {port} where it belongs."
            )
        self._command, self._logs = list(command), logs
        self._environment = dict(environment or {})
        self._stop_seconds = stop_seconds

    @property
    def _mark(self) -> str:
        return str(self._logs.absolute())

    async def start(self, adapters: Mapping[str, Path]) -> Server:
        """See ``Launcher``."""
        return await anyio.to_thread.run_sync(self._start, lora_adapters(adapters))

    async def alive(self, server: Server) -> bool:
        """See ``Launcher``."""
        return await anyio.to_thread.run_sync(lambda: _process(server) is not None)

    async def stop(self, server: Server) -> None:
        """See ``Launcher``: SIGTERM, and after ``stop_seconds`` SIGKILL for it and all it started."""
        await anyio.to_thread.run_sync(self._stop, server)

    async def strays(self, known: Sequence[Server]) -> list[Server]:
        """See ``Launcher``: told by a mark in their environment."""
        return await anyio.to_thread.run_sync(self._strays, {one.pid for one in known})

    async def why(self, server: Server) -> str:
        """See ``Launcher``: the end of its log."""
        if server.log is None:
            return "it left no log"
        try:
            text = await anyio.Path(server.log).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"its log cannot be read: {error}"
        return f"its log ends in: {text[-_LOG_TAIL:].strip() or 'nothing'}"

    def _start(self, adapters: str) -> Server:
        port = _free_port()
        command = [word.replace("{port}", str(port)) for word in self._command]
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"server-{time.time_ns()}.log"
        try:
            with log.open("ab") as stream:
                process = subprocess.Popen(
                    command,
                    env=os.environ | self._environment | {"LORA_ADAPTERS": adapters, _MARK: self._mark},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
        except OSError as error:
            raise BackendError(
                f"the server cannot be started: {error}", place=shlex.join(command), remedy="Install it, or name it."
            ) from error
        created = _created(process.pid)
        return Server(url=f"http://127.0.0.1:{port}", pid=process.pid, created=created, log=str(log))

    def _strays(self, known: set[int | None]) -> list[Server]:
        """The leaders of sessions that carry our mark."""
        import psutil

        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                leads = os.getsid(process.pid) == process.pid
                if leads and process.pid not in known and process.environ().get(_MARK) == self._mark:
                    found.append(Server(url="unknown", pid=process.pid, created=process.create_time()))
        return found

    def _stop(self, server: Server) -> None:
        import psutil

        process = _process(server)
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            started = process.children(recursive=True)
            process.terminate()
            _, left = psutil.wait_procs([process], timeout=self._stop_seconds)
            for one in [*left, *(child for child in started if child.is_running())]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs([process], timeout=5)


class CommandLauncher:
    """Leaves starting and stopping to a command: a rollout of Compose, Kubernetes, systemd.

    ``command up`` starts a server that serves what LORA_ADAPTERS in its environment says, beside the one that runs, and
    prints its URL as the last line. ``command down URL`` ends one. Both must be done within ``seconds``.
    """

    def __init__(self, command: Sequence[str], *, seconds: float = 600.0) -> None:
        self._command, self._seconds = list(command), seconds

    async def start(self, adapters: Mapping[str, Path]) -> Server:
        """See ``Launcher``. Raises BackendError: the command failed, or printed no URL."""
        printed = await self._run(["up"], {"LORA_ADAPTERS": lora_adapters(adapters)})
        url = (printed.strip().splitlines() or [""])[-1].strip()
        if not url.startswith(("http://", "https://")):
            raise BackendError(
                f"its last line is no URL: {url!r}", place=shlex.join(self._command), remedy="Print the server's URL."
            )
        return Server(url=url)

    async def alive(self, server: Server) -> bool:
        """See ``Launcher``: it cannot be known here."""
        return True

    async def stop(self, server: Server) -> None:
        """See ``Launcher``."""
        await self._run(["down", server.url], {})

    async def strays(self, known: Sequence[Server]) -> list[Server]:
        """See ``Launcher``: they cannot be known here."""
        return []

    async def why(self, server: Server) -> str:
        """See ``Launcher``."""
        return "the command that started it may know more"

    async def _run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
        command = [*self._command, *arguments]
        place = shlex.join(command)
        try:
            async with asyncio.timeout(self._seconds):
                done = await anyio.run_process(command, check=False, env=os.environ | dict(environment))
        except TimeoutError as error:
            raise BackendError(f"it was not done within {self._seconds:g} s", place=place) from error
        except OSError as error:
            raise BackendError(f"it cannot be run: {error}", place=place) from error
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace")[-_LOG_TAIL:].strip()
            raise BackendError(f"it failed with {done.returncode}: {said}", place=place)
        return done.stdout.decode(errors="replace")


def lora_adapters(adapters: Mapping[str, Path]) -> str:
    """TGI's syntax: ``name=/path,name=/path``. Raises InvalidInput for what it cannot say."""
    for name, path in adapters.items():
        for problem in [*path_problems(name, "tgi", what="the name"), *path_problems(str(path), "tgi")]:
            raise InvalidInput(problem.sentence, place=f"{name}={path}", remedy=problem.remedy)
    return ",".join(f"{name}={path}" for name, path in adapters.items())


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _created(pid: int) -> float | None:
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _process(server: Server) -> Any:
    """The server's process, unless it has ended; another one may have its number since."""
    import psutil

    if server.pid is None or server.created is None:
        return None
    try:
        process = psutil.Process(server.pid)
        if abs(process.create_time() - server.created) > 1:
            return None
        if process.status() == psutil.STATUS_ZOMBIE:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(server.pid, os.WNOHANG)
            return None
    except psutil.NoSuchProcess:
        return None
    return process
