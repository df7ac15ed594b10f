"""Wrong answers during rollouts, with faults injected: none is allowed.

``run.py [--rollouts 50] [--requests 10000]`` supervises real ``rtm serve-model`` processes (a tiny random model, random
adapters) by ``BlueGreen`` while clients ask all the time, each request naming an adapter that is held, the base model,
or one that is not there. What each adapter answers to each prompt is known from the local backend; an answer that
differs is a wrong one. Each rollout has one of ``FAULTS``. Writes ``result.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from rag_tuned_memory.errors import AdapterNotLoaded, RagTunedMemoryError
from rag_tuned_memory.evaluation.stamp import code_hash, machine, versions
from rag_tuned_memory.serving.base import Fingerprint, Message, Request
from rag_tuned_memory.serving.fingerprint import make_fingerprint
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.rollout import BlueGreen, ProcessLauncher
from rag_tuned_memory.serving.tgi import TgiBackend, TimeLimits
from tiny_model import build_random_adapter, build_tiny_model

HERE = Path(__file__).parent
CLIENTS = 4
PAUSE = 0.05
"""Seconds between two requests of a client: the servers that start share the machine with all this."""
HELD = 3
"""Versions that are kept; older ones are unloaded."""
TOKENS = 8
PROMPTS = [f"What was the cause of incident {number}?" for number in range(6)]
CANARIES = [[Message("user", f"Who repaired incident {number}?")] for number in range(4)]
FAULTS = {
    "none": "nothing goes wrong",
    "wrong weights": "another adapter's files lie under the new name",
    "no files": "the new adapter's folder is missing, so the new server ends at its start",
    "new server killed": "SIGKILL while it starts or is proven",
    "new server hung": "SIGSTOP while it starts",
    "current server killed": "SIGKILL while requests run; it is started again",
    "supervisor gone": "the supervisor is abandoned without a word, another one takes over",
    "clients leave": "streams are closed after their first piece",
}


@dataclass
class World:
    """What the clients and the rollouts share."""

    backend: BlueGreen
    expected: dict[str | None, list[str]]
    held: list[str] = field(default_factory=list)
    excused: bool = False
    """Whether the server that answers was just made to fail."""
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=50)
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = anyio.run(partial(run, Path(folder), given.rollouts, given.requests))
    result["faults"] = FAULTS
    result["stamp"] = {"code_sha256": code_hash(), "versions": versions(), "machine": machine()}
    (HERE / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["wrong_answers"] or result["requests_failed_without_excuse"]))


async def run(folder: Path, rollouts: int, requests: int) -> dict[str, Any]:
    chance = random.Random(7)
    model = build_tiny_model(folder / "model")
    made = {f"ops-v{number}": folder / "adapters" / f"ops-v{number}" for number in range(1, rollouts + 1)}
    for number, path in enumerate(made.values()):
        build_random_adapter(model, path, seed=number)
    fingerprints, expected = await prepared(model, made)
    world = World(supervisor(model, folder), expected)
    seconds: list[float] = []
    outcomes: Counter[str] = Counter()
    async with anyio.create_task_group() as group:
        for number in range(CLIENTS):
            group.start_soon(client, world, random.Random(number))
        for number, (name, path) in enumerate(made.items()):
            fault = list(FAULTS)[number % len(FAULTS)] if number else "none"
            began = time.monotonic()
            outcomes[
                f"{fault}: {await rollout(world, name, path, fingerprints[name], fault, chance, model, folder)}"
            ] += 1
            seconds.append(time.monotonic() - began)
            while sum(world.counts.values()) < requests * (number + 1) / rollouts:  # noqa: ASYNC110
                await anyio.sleep(0.05)
            print(f"{number + 1}/{rollouts} {fault}: {dict(world.counts)}", file=sys.stderr, flush=True)
        group.cancel_scope.cancel()
    await world.backend.close(stop=True)
    return {
        "requests": sum(world.counts.values()),
        "rollouts": rollouts,
        "wrong_answers": len(world.wrong),
        "requests_failed_without_excuse": len(world.failed),
        "examples": (world.wrong + world.failed)[:5],
        "requests_by_kind": dict(sorted(world.counts.items())),
        "rollouts_by_fault_and_outcome": dict(sorted(outcomes.items())),
        "median_rollout_seconds": round(sorted(seconds)[len(seconds) // 2], 1),
        "servers_left_running": len(servers(folder)),
    }


async def prepared(
    model: Path, adapters: dict[str, Path]
) -> tuple[dict[str, Fingerprint], dict[str | None, list[str]]]:
    """Each adapter's fingerprint, and what it answers to each prompt."""
    backend = LocalBackend(model, dtype="float32", device="cpu")
    fingerprints: dict[str, Fingerprint] = {}
    expected: dict[str | None, list[str]] = {None: await answers(backend, None)}
    for name, path in adapters.items():
        await backend.load_adapter(name, path)
        fingerprints[name] = await make_fingerprint(backend, name, [(one, "Ana repaired it.") for one in CANARIES])
        expected[name] = await answers(backend, name)
        await backend.unload_adapter(name)
    await backend.close()
    return fingerprints, expected


async def answers(backend: LocalBackend, adapter: str | None) -> list[str]:
    return [
        one.text.rstrip("\ufffd") for one in await backend.generate([request(prompt, adapter) for prompt in PROMPTS])
    ]


def request(prompt: str, adapter: str | None) -> Request:
    return Request((Message("user", prompt),), adapter, TOKENS)


def supervisor(model: Path, folder: Path) -> BlueGreen:
    serve = "import sys; from rag_tuned_memory.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", serve, "serve-model", "--model", str(model), "--port", "{port}"]
    command += ["--dtype", "float32", "--device", "cpu"]
    environment = {"OMP_NUM_THREADS": "1"}
    return BlueGreen(
        ProcessLauncher(command, folder / "logs", environment=environment, stop_seconds=5),
        lambda url: TgiBackend(url, model, timeout=TimeLimits(connect=5, first_token=20, between_tokens=20, total=60)),
        folder / "state",
        base_model=ModelFolder(model).identity,
        start_seconds=40,
        drain_seconds=30,
    )


async def client(world: World, chance: random.Random) -> None:
    """Ask for ever; an answer that is not the adapter's own is wrong."""
    while True:
        await anyio.sleep(PAUSE)
        number = chance.randrange(len(PROMPTS))
        adapter = chance.choice([None, *world.held, *world.held, "no-such-adapter"])
        backend, excused = world.backend, world.excused
        asked = request(PROMPTS[number], adapter)
        try:
            if chance.random() < 0.3:
                text = "".join([chunk.text async for chunk in backend.stream(asked)])
            else:
                text = (await backend.generate([asked]))[0].text
        except AdapterNotLoaded:
            # a version may have left between the choice and the request
            world.counts["not loaded" if adapter not in world.held else "failed"] += 1
            if adapter in world.held:
                world.failed.append(f"{adapter} is held and was not there")
            continue
        except RagTunedMemoryError as error:
            excuse = excused or world.excused or world.backend is not backend
            world.counts["failed with the server" if excuse else "failed"] += 1
            if not excuse:
                world.failed.append(f"{type(error).__name__}: {error}")
            continue
        world.counts["answered by the base" if adapter is None else "answered by an adapter"] += 1
        text = text.rstrip("\ufffd")  # a character that was cut off is shown by one client and not by the other
        if adapter == "no-such-adapter" or text != world.expected[adapter][number]:
            world.wrong.append(f"{adapter}: {text!r}, expected {world.expected.get(adapter, [''] * 9)[number]!r}")


async def rollout(
    world: World,
    name: str,
    path: Path,
    fingerprint: Fingerprint,
    fault: str,
    chance: random.Random,
    model: Path,
    folder: Path,
) -> str:
    """Roll one version out while something goes wrong; what came of it."""
    good = path.with_name(f"{name}-good")
    if fault == "wrong weights":
        shutil.move(path, good)
        build_random_adapter(model, path, seed=10_000)
    elif fault == "no files":
        shutil.move(path, good)
    try:
        outcome = await injected(world, name, path, fingerprint, fault, chance, model, folder)
    finally:
        if good.exists():
            shutil.rmtree(path, ignore_errors=True)
            shutil.move(good, path)
    if outcome == "rolled out":
        world.held.append(name)
        while len(world.held) > HELD:
            await world.backend.unload_adapter(world.held.pop(0))
    return outcome


async def injected(
    world: World,
    name: str,
    path: Path,
    fingerprint: Fingerprint,
    fault: str,
    chance: random.Random,
    model: Path,
    folder: Path,
) -> str:
    before = servers(folder)
    outcome = "refused"
    async with anyio.create_task_group() as group:
        if fault in ("new server killed", "new server hung"):
            group.start_soon(harm_new, fault, before, folder, chance.uniform(0.2, 4))
        elif fault == "current server killed":
            group.start_soon(harm_current, world, before, chance.uniform(0, 3))
        elif fault == "clients leave":
            group.start_soon(leave, world)
        try:
            await world.backend.load_adapter(name, path, fingerprint)
            outcome = "rolled out"
        except RagTunedMemoryError as error:
            outcome = f"refused ({type(error).__name__})"
            print(f"{fault}: {error}", file=sys.stderr)
        group.cancel_scope.cancel()
    if fault == "supervisor gone":
        old, world.excused = world.backend, True
        assert old._only is not None
        old._only.release(force=True)  # what the end of its process does; it cleans nothing up
        world.backend = supervisor(model, folder)
        await world.backend.adapters()
        await anyio.sleep(0.5)
        await old.close()
    world.excused = False
    return outcome


async def harm_new(fault: str, before: set[int], folder: Path, after: float) -> None:
    """Kill or stop the server that was started last, some time after its start."""
    while not (new := servers(folder) - before):  # noqa: ASYNC110
        await anyio.sleep(0.02)
    await anyio.sleep(after)
    for pid in new:
        process = psutil.Process(pid)
        process.kill() if fault == "new server killed" else process.suspend()


async def harm_current(world: World, before: set[int], after: float) -> None:
    await anyio.sleep(after)
    world.excused = True
    for pid in before:
        psutil.Process(pid).kill()
    await anyio.sleep(3600)


async def leave(world: World) -> None:
    while True:
        stream: Any = world.backend.stream(request(PROMPTS[0], None))
        await anext(stream)
        await stream.aclose()
        await anyio.sleep(0.05)


def servers(folder: Path) -> set[int]:
    """The servers that this run's supervisors started."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("RTM_SUPERVISED") == str(folder / "logs") and "serve-model" in process.cmdline():
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    main()
