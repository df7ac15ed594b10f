"""The script that makes the environment: pip's settings reach uv."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install.py"


@pytest.fixture(scope="module")
def install() -> Any:
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_environment_overrules_the_files_of_pip(install: Any) -> None:
    listed = "\n".join(
        [
            ":env:.index-url='https://env.example/simple'",
            "global.index-url='https://global.example/simple'",
            "global.cert='/etc/bundle.pem'",
            "user.cert='/home/me/bundle.pem'",
            "install.no-binary=':none:'",
            "some noise",
        ]
    )
    found = {"index-url": "https://env.example/simple", "cert": "/home/me/bundle.pem"}
    assert install.pip_settings(listed) == found


def test_uv_gets_what_pip_has_unless_it_is_told_otherwise(install: Any) -> None:
    pip = {
        "index-url": "https://one.example/simple",
        "extra-index-url": "https://two.example/simple\nhttps://three.example/simple",
        "find-links": "/wheels /more",
        "cert": "/bundle.pem",
    }
    made = install.uv_environment(pip, {"SSL_CERT_FILE": "/mine.pem"})
    assert made == {
        "UV_DEFAULT_INDEX": "https://one.example/simple",
        "UV_INDEX": "https://two.example/simple https://three.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_HTTP_TIMEOUT": "180",
    }
    assert install.uv_environment({}, {}) == {"UV_HTTP_TIMEOUT": "180"}


def test_constraints_are_exact_versions_without_paths_or_hosts() -> None:
    lines = (SCRIPT.parents[1] / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert len(pinned) > 50
    assert not [line for line in pinned if "==" not in line or "@" in line or "/" in line]
