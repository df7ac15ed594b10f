"""Ctrl-C during a distillation keeps a checkpoint, and the same command goes on from it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from incidents import episode
from rag_tuned_memory import Memory, Settings

pytestmark = pytest.mark.slow

RTM = [sys.executable, "-c", "import sys; from rag_tuned_memory.cli import main; sys.exit(main())"]


def test_a_stopped_run_is_gone_on_with(tmp_path: Path, tiny_model: Path) -> None:
    home = tmp_path / "home"
    changes = {"RTM_HOME": str(home), "RTM_EMBEDDER": "hashing", "RTM_MODEL": str(tiny_model), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **changes}
    with Memory("ops", settings=Settings(home=home, embedder="hashing")) as memory:
        memory.record_many(episode(number) for number in range(1, 7))
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"max_tokens": 40_000, "max_length": 384, "batch_tokens": 384}))
    command = [*RTM, "distil", "-n", "ops", "--recipe", str(recipe)]

    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("train "):
                break
        run.send_signal(signal.SIGINT)
        told = run.stderr.read()
        assert run.wait(120) == 130
    assert re.search(r"stopped: training stopped at step \d+ of about \d+. Go on with the same command\.", told)
    checkpoints = list((home / "runs" / "ops").glob("*/checkpoint*"))
    assert len(checkpoints) == 1
    stopped_at = int(re.findall(r"stopped at step (\d+)", told)[0])

    again = subprocess.run([*command], capture_output=True, env=environment, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    first = re.search(r"^train (\d+)/", again.stderr, re.MULTILINE)
    assert first is not None
    assert int(first[1]) == stopped_at + 1
    with Memory("ops", settings=Settings(home=home, embedder="hashing")) as memory:
        assert list(memory.stats().adapters) == ["ops-v1"]
    assert not any((home / "runs" / "ops").iterdir())
