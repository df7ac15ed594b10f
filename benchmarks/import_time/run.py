"""How long ``import rag_tuned_memory`` takes, in fresh interpreters, beside the interpreter's own start.

    python benchmarks/import_time/run.py [--repeat 20]

Writes ``result.json`` beside this file. ``package`` is the plain import, ``memory`` imports the class ``Memory`` (with
pydantic, numpy and apsw), ``command`` is ``rtm --version``. Seconds; the interpreter's start is subtracted from the
imports, and contained in ``command``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

TARGET = 0.3
_TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
STATEMENTS = {"package": "import rag_tuned_memory", "memory": "from rag_tuned_memory import Memory"}
FORBIDDEN = ("torch", "transformers", "peft", "weaviate")


def seconds(statement: str) -> float:
    done = subprocess.run([sys.executable, "-c", _TIMED.format(statement)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def command_seconds() -> float:
    started = time.perf_counter()
    code = "import sys; from rag_tuned_memory.cli import main; sys.exit(main(['--version']))"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return time.perf_counter() - started


def heavy_modules(statement: str) -> list[str]:
    program = f"{statement}; import sys; print(*[name for name in {FORBIDDEN!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def summary(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "most": round(max(values), 4)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=20)
    repeat = parser.parse_args().repeat
    results = {
        **{name: summary([seconds(statement) for _ in range(repeat)]) for name, statement in STATEMENTS.items()},
        "command": summary([command_seconds() for _ in range(repeat)]),
        "heavy_modules": heavy_modules("import rag_tuned_memory; rag_tuned_memory.Memory"),
        "target_seconds": TARGET,
        "repeat": repeat,
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
        },
    }
    Path(__file__).with_name("result.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))
    return int(results["package"]["median"] >= TARGET or bool(results["heavy_modules"]))


if __name__ == "__main__":
    sys.exit(main())
