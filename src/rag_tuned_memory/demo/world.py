"""A seeded operations agent: it looks at incidents, finds a cause, tries fixes, and closes or escalates.

The history is generated, so that every clone has the same one and the right answers are known. Causes decide which
fix works, services have their usual causes, and the agent sometimes tries the wrong fix first: what a memory can
learn beyond single episodes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rag_tuned_memory.trajectory import Outcome, Step, StepKind, Trajectory

SERVICES = ("checkout-api", "search-index", "billing-worker", "auth-gateway", "media-cdn")
SYMPTOMS = ("latency above two seconds", "requests failing with 503", "jobs stuck in the queue", "login errors")


@dataclass(frozen=True, slots=True)
class Remedy:
    """What ends one kind of incident: the tool call, and how the agent words it."""

    tool: str
    fix: str
    log: str


REMEDIES = {
    "expired certificate": Remedy("rotate_certificate", "rotate the certificate", "x509: certificate is past its date"),
    "memory leak": Remedy("restart_service", "restart the service", "worker killed: out of memory"),
    "full disk": Remedy("purge_logs", "purge old logs", "write failed: no space left on device"),
    "bad release": Remedy("roll_back", "roll back the release", "unhandled exception after version change"),
    "pool exhaustion": Remedy("raise_pool_limit", "raise the pool limit", "timeout waiting for a connection"),
    "stale cache": Remedy("flush_cache", "flush the cache", "checksum of cached entry differs"),
}
USUAL_CAUSES = {
    "checkout-api": ("pool exhaustion", "bad release", "pool exhaustion"),
    "search-index": ("full disk", "memory leak", "full disk"),
    "billing-worker": ("bad release", "memory leak", "bad release"),
    "auth-gateway": ("expired certificate", "stale cache", "expired certificate"),
    "media-cdn": ("stale cache", "full disk", "stale cache"),
}
FIRST_DAY = datetime(2026, 2, 3, 8, 0, tzinfo=UTC)


def incidents(namespace: str, *, episodes: int = 20, skip: int = 0, seed: int = 5) -> list[Trajectory]:
    """``episodes`` incidents in order of time, after leaving out the first ``skip`` of the same endless history.

    The n-th incident of a seed is the same however many are asked for.
    """
    random_ = random.Random(seed)
    numbers = random_.sample(range(1000, 9999), 400)
    day = FIRST_DAY
    history = []
    for number in numbers[: skip + episodes]:
        day += timedelta(days=random_.randint(2, 8), minutes=random_.randint(0, 600) - 300)
        history.append(_incident(namespace, f"INC-{number}", day, random_))
    return history[skip:]


def _incident(namespace: str, name: str, start: datetime, random_: random.Random) -> Trajectory:
    service = random_.choice(SERVICES)
    cause = random_.choice(USUAL_CAUSES[service])
    symptom = random_.choice(SYMPTOMS)
    right = REMEDIES[cause]
    resolved = random_.random() < 0.8
    wrong_first = not resolved or random_.random() < 0.3
    log = _Log(start, random_)
    log.tool("get_alert", {"incident": name}, {"service": service, "status": "firing"})
    log.tool("read_logs", {"service": service, "lines": 50}, right.log)
    log.say(StepKind.THOUGHT, f"The logs of {service} point to: {cause}.")
    if wrong_first:
        other = random_.choice([remedy for key, remedy in REMEDIES.items() if key != cause])
        log.tool(other.tool, {"service": service}, "no change: the alert is still firing", error="alert still firing")
    if resolved:
        log.tool(right.tool, {"service": service}, "done, the alert cleared")
    last = {"incident": name, "cause": cause, "fix": right.fix if resolved else "none, escalated"}
    log.tool("close_incident", last, "recorded")
    log.say(StepKind.MESSAGE, _summary(name, service, cause, right.fix if resolved else None))
    return Trajectory(
        namespace=namespace,
        source="demo-operations",
        source_id=name,
        goal=f"Resolve incident {name}: {service} has {symptom}.",
        steps=tuple(log.steps),
        outcome=Outcome(success=resolved, score=float(resolved)),
        started_at=start,
        ended_at=log.now,
    )


def _summary(name: str, service: str, cause: str, fix: str | None) -> str:
    ending = f"I could {fix}, and the alert cleared." if fix else "No fix worked, so I escalated it to the owners."
    return f"{name} on {service} was caused by {cause}. {ending}"


class _Log:
    """Collects steps with times that move on."""

    def __init__(self, start: datetime, random_: random.Random) -> None:
        self.now = start
        self.steps: list[Step] = []
        self._random = random_

    def _tick(self) -> datetime:
        self.now += timedelta(minutes=self._random.randint(1, 9))
        return self.now

    def say(self, kind: StepKind, text: str) -> None:
        self.steps.append(Step(kind=kind, actor="assistant", text=text, started_at=self._tick()))

    def tool(
        self, name: str, arguments: Mapping[str, str | int], result: Mapping[str, str] | str, error: str | None = None
    ) -> None:
        call_id = f"call-{len(self.steps)}"
        self.steps.append(
            Step(
                kind=StepKind.TOOL_CALL,
                actor="assistant",
                tool=name,
                arguments=dict(arguments),
                call_id=call_id,
                started_at=self._tick(),
            )
        )
        text = result if isinstance(result, str) else json.dumps(dict(result))
        self.steps.append(
            Step(
                kind=StepKind.TOOL_RESULT,
                tool=name,
                call_id=call_id,
                text=text,
                error=error,
                started_at=self._tick(),
            )
        )
