"""The recordings of a real TGI: what was asked, what came back, and how an answer of ours is held against it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

FOLDER = Path(__file__).parents[3] / "fixtures" / "tgi_wire"
_COUNTS = re.compile(r"\d+(?= `)|(?<=Given: )\d+")
"""Token counts, which are of another tokenizer."""


def case(name: str) -> dict[str, Any]:
    """A recording."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def send(client: httpx.Client, name: str) -> httpx.Response:
    """The recorded request, to the same bytes; but the base model is named as this server names it."""
    request = case(name)["request"]
    asked = request.get("json")
    if isinstance(asked, dict) and str(asked.get("model")).startswith("/"):
        asked["model"] = client.get("/v1/models").json()["data"][0]["id"]
    body = None
    if name in UNPRINTABLE:
        body = UNPRINTABLE[name]
    elif "json" in request:
        body = json.dumps(request["json"]).encode()
    elif request.get("body") is not None:
        body = request["body"].encode()
    return client.request(request["method"], request["path"], content=body, headers=request["headers"])


UNPRINTABLE = {
    "bad_invalid_utf8": b'{"inputs":"\xff\xfe"}',
    "bad_payload_413": b'{"inputs":"' + b"a" * 2_100_000 + b'"}',
    # 421 tokens here too.
    "bad_inputs_over_max_input": b'{"inputs":"' + b"7" * 421 + b'","parameters":{"max_new_tokens":4}}',
}
"""Bodies that their recording does not hold, or that are counted by this tokenizer."""


def shape(value: Any) -> Any:
    """Keys and types of JSON; of a list those of its items, each once."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        shapes: list[Any] = []
        for one in map(shape, value):
            if one not in shapes:
                shapes.append(one)
        return shapes
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def events(body: str) -> list[Any]:
    """The events of a stream; their framing is checked byte by byte."""
    frames = body.split("\n\n")
    assert frames.pop() == "", "the last event ends with an empty line"
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames), body
    told = [frame.removeprefix("data: ") for frame in frames]
    return [one if one == "[DONE]" else json.loads(one) for one in told]


def without_counts(text: str) -> str:
    """An error's text without token counts."""
    return _COUNTS.sub("N", text)
