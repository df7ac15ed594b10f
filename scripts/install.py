"""Makes the virtual environment that ``make demo`` and ``make test`` use. Needs Python 3.11 and nothing else.

uv installs three times as fast as pip, so it is tried first, with the index, links and certificates that pip is
configured with (uv does not read pip's configuration). Where that fails, pip does it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    f"{ROOT}[local,serve,teacher,test,weaviate]",
    f"{ROOT / 'integrations' / 'langchain'}[test]",
    f"{ROOT / 'integrations' / 'llama-index'}[test]",
)
WHAT = ["-c", str(ROOT / "constraints.txt"), *(part for package in PACKAGES for part in ("-e", package))]
LATER_WINS = ("global", "user", "site", ":env:")


def main() -> None:
    """``install.py FOLDER``: make the environment there and install the package with all that demo and tests need."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this very script says so
        sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}. Try: make PYTHON=python3.11 ...")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv").absolute()
    print(f"Making the environment {folder} and installing into it (some minutes, about 6 GB) …", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not install_with_uv(python):
        print("uv cannot be used here; pip does it, more slowly …", flush=True)
        run(python, "-m", "pip", "install", "--disable-pip-version-check", *WHAT, check=True)


def install_with_uv(python: Path) -> bool:
    """Whether uv could install everything."""
    quiet = ("--quiet", "--disable-pip-version-check")
    if os.environ.get("RTM_NO_UV") or run(python, "-m", "pip", "install", *quiet, "uv").returncode:
        return False
    listed = run(python, "-m", "pip", "config", "list", capture_output=True, text=True).stdout
    environment = {**os.environ, **uv_environment(pip_settings(listed), os.environ)}
    return run(python, "-m", "uv", "pip", "install", "--python", str(python), *WHAT, env=environment).returncode == 0


def run(python: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment's Python in the repository."""
    return subprocess.run([str(python), *arguments], cwd=ROOT, **options)  # type: ignore[call-overload,no-any-return]


def pip_settings(listed: str) -> dict[str, str]:
    """What ``pip config list`` prints, by option; the environment overrules the files."""
    found: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        key, equals, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if equals and section in LATER_WINS:
            rank = LATER_WINS.index(section)
            if option not in found or found[option][0] <= rank:
                found[option] = (rank, str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in found.items()}


def uv_environment(pip: dict[str, str], environment: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """uv's variables for the same index, links and certificates; those that are set already are left alone."""
    wanted = {
        "UV_DEFAULT_INDEX": pip.get("index-url", ""),
        "UV_INDEX": " ".join(pip.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
        "SSL_CERT_FILE": pip.get("cert", ""),
        # as pip does: the best version of all indexes, not of the first that knows the name
        "UV_INDEX_STRATEGY": "unsafe-best-match" if pip.get("extra-index-url") else "",
        "UV_HTTP_TIMEOUT": "180",
    }
    return {name: value for name, value in wanted.items() if value and name not in environment}


if __name__ == "__main__":
    main()
