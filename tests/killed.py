"""Processes that die at any step of what they write."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

STEPS = ("fsync", "rename", "replace", "unlink", "mkdir", "truncate", "open")


def killed_at(step: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a child that SIGKILLs itself at its n-th step on the disk; whether it lived that long."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        count = 0

        def deadly(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, deadly(getattr(os, name)))
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False
