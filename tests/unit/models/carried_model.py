"""A tiny model, as the hub and as a wheel would carry it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

FILES = {
    "config.json": json.dumps({"model_type": "bert", "hidden_size": 8}).encode(),
    "model.safetensors": save({"weight": np.arange(64, dtype=np.float32)}),
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b"{}",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def make_wheel(folder: Path) -> Path:
    info = "tiny_carrier-1.0.dist-info"
    files = {
        "tiny_carrier/__init__.py": b"raise SystemExit('a carrier must never be imported')\n",
        "tiny_carrier/model.zip": _zip(FILES),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-carrier\nVersion: 1.0\nRequires-Dist: absent-package\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    path = folder / "tiny_carrier-1.0-py3-none-any.whl"
    path.write_bytes(_zip(files))
    return path
