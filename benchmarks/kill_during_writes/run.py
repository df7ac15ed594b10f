"""Kill writing processes with SIGKILL at random moments and look for what was lost or half written.

Each round starts writers (two by default, at the same time) on one file, kills them after a random time (in every
fifth round while they start, open and recover the file), then opens the file anew. Every acknowledged write must be
there exactly, the one write that was under way wholly or not at all, and ``check()`` must find nothing. SIGKILL ends
a process, not the machine: what a loss of power does rests on ``synchronous=FULL`` and is not shown here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import anyio
from writer import NAMESPACE, episode, operation, write

from rag_tuned_memory.errors import TrajectoryNotFound
from rag_tuned_memory.store.sqlite import SqliteStore

FORK = multiprocessing.get_context("fork")
"""A forked process starts within milliseconds. This one never opens the file nor starts a thread, so it may fork."""
ROUNDS_A_FILE = 25
"""A fresh file after so many rounds: each round checks the whole file."""


def _run_writer(path: str, run: str, acknowledge: Connection) -> None:
    write(path, run, acknowledge.fileno())


def kill_writers(path: str, runs: list[str], seconds: list[float], *, starting: bool) -> dict[str, int]:
    """Start a writer for each run, kill each after its time; returns how many writes each had acknowledged.

    The time counts from the start of the process, or (not ``starting``) from the first acknowledgement of all.
    """
    started = []
    for run in runs:
        reading, writing = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_run_writer, args=(path, run, writing), daemon=True)
        process.start()
        writing.close()
        started.append((run, process, reading))
    if not starting and not all(reading.poll(60) for _, _, reading in started):
        raise SystemExit("a writer acknowledged nothing within a minute")
    begin = time.monotonic()
    acknowledged = {}
    for (run, process, reading), after in sorted(zip(started, seconds, strict=True), key=lambda pair: pair[1]):
        time.sleep(max(0.0, begin + after - time.monotonic()))
        if not process.is_alive():
            raise SystemExit(f"the writer of {run} ended by itself with {process.exitcode}")
        process.kill()
        process.join()
        acknowledged[run] = _bytes_left(reading)
    return acknowledged


def _bytes_left(reading: Connection) -> int:
    with reading:
        count = 0
        while block := os.read(reading.fileno(), 65536):
            count += len(block)
    return count


def state(writes: int) -> dict[int, int | None]:
    """The version of each episode after so many writes; None: removed."""
    return {what.episode: what.version for what in map(operation, range(writes))}


async def version_found(store: SqliteStore, run: str, number: int) -> int | str | None:
    """The version of an episode in the store, None if absent, or what is wrong with it."""
    wanted, _, _ = episode(run, number, 0)
    try:
        stored = await store.get(NAMESPACE, wanted.id)
    except TrajectoryNotFound:
        return f"{run}/{number}: passages without it" if await store.passages(NAMESPACE, wanted.id) else None
    version = len(stored.trajectory.steps) - len(wanted.steps)
    trajectory, passages, _ = episode(run, number, version)
    if stored.trajectory != trajectory or await store.passages(NAMESPACE, wanted.id) != passages:
        return f"{run}/{number}: half written"
    return version


async def verify(path: str, acknowledged: dict[str, int]) -> tuple[list[str], int]:
    """What is wrong with the file, and how many unacknowledged last writes are there."""
    store = SqliteStore(path)
    wrong, extra = await store.check(), 0
    for run, writes in acknowledged.items():
        before, after = state(writes), state(writes + 1)
        found = {number: await version_found(store, run, number) for number in after}
        before = {number: before.get(number) for number in after}
        extra += found == after and before != after
        if found not in (before, after):
            differing = {n: (v, before[n], after[n]) for n, v in found.items() if v not in (before[n], after[n])}
            wrong.append(f"{run} after {writes} writes: {differing or found}")
    await store.close()
    return wrong, extra


def _send_verdict(path: str, acknowledged: dict[str, int], answer: Connection) -> None:
    answer.send(anyio.run(verify, path, acknowledged))


def verify_elsewhere(path: str, acknowledged: dict[str, int]) -> tuple[list[str], int]:
    """``verify`` in a process of its own."""
    reading, writing = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send_verdict, args=(path, acknowledged, writing))
    process.start()
    writing.close()
    verdict: tuple[list[str], int] = reading.recv()
    process.join()
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--longest", type=float, default=0.25, help="seconds until the kill, at most")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--folder", default=None, help="where the files are written (default: a temporary folder)")
    parser.add_argument("--out", default=str(Path(__file__).with_name("result.json")))
    arguments = parser.parse_args()
    times = random.Random(arguments.seed)
    begin = time.monotonic()
    kills = rounds = writes = extra = silent = 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        while kills < arguments.kills:
            path = str(Path(folder) / f"{rounds // ROUNDS_A_FILE}.db")
            runs = [f"round-{rounds}-{w}" for w in range(min(arguments.writers, arguments.kills - kills))]
            seconds = [times.uniform(0, arguments.longest) for _ in runs]
            acknowledged = kill_writers(path, runs, seconds, starting=rounds % 5 == 0)
            found, more = verify_elsewhere(path, acknowledged)
            wrong += found
            extra += more
            kills += len(runs)
            silent += sum(not count for count in acknowledged.values())
            writes += sum(acknowledged.values())
            rounds += 1
    result = {
        "kills": kills,
        "writers_at_once": arguments.writers,
        "acknowledged_writes": writes,
        "kills_before_the_first_acknowledgement": silent,
        "unacknowledged_last_writes_found_whole": extra,
        "lost_or_half_written": wrong,
        "seconds": round(time.monotonic() - begin, 1),
    }
    text = json.dumps(result, indent=2) + "\n"
    Path(arguments.out).write_text(text)
    print(text, end="")
    if wrong or not writes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
