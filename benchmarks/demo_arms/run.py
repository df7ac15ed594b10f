"""The demo's six arms: makes the rows beside this script, or checks what is written here against them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from rag_tuned_memory.demo.run import run_demo
from rag_tuned_memory.demo.steps import RESULTS, SUMMARY_FILE, DemoPlan
from rag_tuned_memory.evaluation.plot import arms_table
from rag_tuned_memory.evaluation.results import ABOUT_FILE, ArmsResult

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where the demo works; kept for later")
    parser.add_argument("--check", action="store_true", help="only compute the figures again from the committed rows")
    given = parser.parse_args()
    if given.check:
        return check()
    run_demo(DemoPlan(folder=given.folder))
    for path in (given.folder / RESULTS).iterdir():
        shutil.copy(path, HERE / path.name)
    shutil.copy(given.folder / SUMMARY_FILE, HERE / SUMMARY_FILE)
    return check()


def check() -> int:
    """0 if the written figures are those of the rows."""
    from rich.console import Console

    result = ArmsResult.read(HERE)
    Console().print(arms_table(result))
    written = json.loads((HERE / ABOUT_FILE).read_text(encoding="utf-8"))["summary"]
    same = result.summary() == written
    print("The written figures are those of the rows." if same else "The written figures differ from the rows!")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
