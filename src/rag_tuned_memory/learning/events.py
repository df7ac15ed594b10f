"""What a distillation run tells while it works, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rag_tuned_memory.adapters.gate import Decision
from rag_tuned_memory.adapters.manifest import Manifest
from rag_tuned_memory.distil.evaluation import Evaluation
from rag_tuned_memory.distil.train import Progress

Stage = Literal["select", "teach", "contexts", "runs", "replay", "compose", "train", "fingerprint", "evaluate", "gate"]


@dataclass(frozen=True, slots=True)
class Event:
    """``done`` of ``total`` in one stage (total 0: not known). ``training`` is set in the stage ``train``."""

    stage: Stage
    done: int
    total: int
    detail: str = ""
    training: Progress | None = None


OnEvent = Callable[[Event], None]
"""Called from the event loop, and while it trains from the training's own thread: what is passed on to the loop from
there needs its token (``anyio.lowlevel.current_token()``)."""


@dataclass(frozen=True, slots=True)
class DistilReport:
    """How a run ended. ``promoted`` says whether the new adapter serves now; ``report`` is the HTML page."""

    manifest: Manifest
    decision: Decision
    evaluation: Evaluation
    promoted: bool
    report: Path
    seconds: float
    composition: dict[str, int]
