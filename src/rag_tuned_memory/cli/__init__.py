"""The ``rtm`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for errors, 2 for wrong usage, 130 after Ctrl-C.

    An error is one line on stderr that begins with ``error:``.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:  # without loading anything
        from rag_tuned_memory import __version__

        print(f"rtm {__version__}")
        return 0
    from rag_tuned_memory.cli.app import run

    try:
        return run(given)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
