"""What a real TGI server answered (tests/fixtures/tgi_wire), as the bytes that were on the wire."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OTHERS = ("chat_", "cmpl_", "v1_", "cors_", "health_head", "invocations", "models_one", "vertex")
"""Recordings of routes that this client does not use; ``rtm serve-model`` is held to them."""
FOLDER = Path(__file__).parents[3] / "fixtures" / "tgi_wire"


@dataclass(frozen=True)
class Reply:
    """Pieces of bytes to send one after the other; then the connection is kept, or ``closed``."""

    pieces: tuple[bytes, ...]
    closed: bool = False
    pause: float = 0.0
    """Seconds before each piece but the first."""

    @property
    def wire(self) -> bytes:
        return b"".join(self.pieces)

    def cut(self, length: int) -> Reply:
        """The first ``length`` bytes, then the connection ends."""
        return Reply((self.wire[:length],), closed=True)


def names() -> list[str]:
    """Recorded exchanges, without timelines and other notes."""
    every = (path for path in FOLDER.glob("*.json") if not path.stem.startswith(_OTHERS))
    found = {path.stem: json.loads(path.read_text()) for path in every}
    whole = (name for name, one in found.items() if "error" in one or "body" in one.get("response", {}))
    return sorted(whole)


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def reply(name: str) -> Reply:
    """The recorded answer: its status line, its headers in order, its body in the chunks in which it came."""
    recorded = load(name)
    if "response" not in recorded:  # the server closed the connection without a word
        return Reply((), closed=True)
    answer = recorded["response"]
    body = answer["body"].encode()
    head = [f"{answer['http_version']} {answer['status']} {answer['reason']}"]
    for key, value in answer["headers"]:
        # Paths in bodies were made neutral after recording, which changed some lengths.
        head.append(f"{key}: {len(body) if key == 'content-length' and body else value}")
    start = "\r\n".join(head).encode() + b"\r\n\r\n"
    if b"transfer-encoding: chunked" not in start:
        return Reply((start + body,))
    pieces, at = [start], 0
    sizes = [size for _, size in answer.get("chunks_ms_bytes", [])]
    for size in sizes if sum(sizes) == len(body) else [len(body)]:
        pieces.append(chunk(body[at : at + size]))
        at += size
    if "read_error" in recorded:
        return Reply(tuple(pieces), closed=True)
    return Reply((*pieces, b"0\r\n\r\n"))


def body(name: str) -> Any:
    """The recorded body, read as JSON; a list's only item."""
    found = json.loads(load(name)["response"]["body"])
    return found[0] if isinstance(found, list) else found


def events(name: str) -> list[dict[str, Any]]:
    """The events of a recorded stream."""
    lines = load(name)["response"]["body"].split("\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def json_reply(content: Any, status: int = 200, *, reason: str = "OK", kind: str = "application/json") -> Reply:
    """An answer that was not recorded."""
    data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    return Reply((head.encode() + data,))


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(text: str, *, id: int = 7, logprob: float | None = -0.5, special: bool = False) -> dict[str, Any]:
    return {"id": id, "text": text, "logprob": logprob, "special": special}


def stream_reply(
    tokens: list[dict[str, Any]],
    *,
    reason: str = "length",
    input_length: int = 5,
    pause: float = 0.0,
    ends: bool = True,
    generated_text: str | None = None,
) -> Reply:
    """A stream of these tokens in TGI's framing; with ``ends`` False the last event never comes."""
    pieces = [STREAM_HEAD]
    for index, one in enumerate(tokens, 1):
        last = ends and index == len(tokens)
        details = {"finish_reason": reason, "generated_tokens": index, "seed": None, "input_length": input_length}
        text = "".join(other["text"] for other in tokens) if generated_text is None else generated_text
        event = {
            "index": index,
            "token": one,
            "generated_text": text if last else None,
            "details": details if last else None,
        }
        pieces.append(chunk(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"))
    if ends:
        pieces.append(b"0\r\n\r\n")
    return Reply(tuple(pieces), pause=pause)
