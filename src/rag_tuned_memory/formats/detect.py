"""Guesses a file's format from its first readable record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rag_tuned_memory.errors import InvalidRecord
from rag_tuned_memory.formats.base import Importer
from rag_tuned_memory.formats.jsonl import is_trajectory_record, read_jsonl
from rag_tuned_memory.formats.locomo import is_locomo_record, read_locomo
from rag_tuned_memory.formats.openai_chat import is_chat_record, read_openai_chat
from rag_tuned_memory.formats.records import read_records

IMPORTERS: dict[str, Importer] = {"openai-chat": read_openai_chat, "locomo": read_locomo, "jsonl": read_jsonl}
"""Each format's importer, by the name that ``--format`` takes."""

_SIGNS: dict[str, Callable[[Any], bool]] = {
    "jsonl": is_trajectory_record,
    "openai-chat": is_chat_record,
    "locomo": is_locomo_record,
}


def detect_format(path: Path) -> str:
    """The name in ``IMPORTERS`` of the format that ``path`` seems to have.

    Records that cannot be read are passed over, as an importer may be told to skip them.

    Raises:
        InvalidRecord: no record is readable, or the first that is has no known form.
    """
    remedy = f"Name its format: --format {'|'.join(IMPORTERS)}."
    unreadable: InvalidRecord | None = None
    for record in read_records(path):
        if record.error:
            unreadable = unreadable or record.error
            continue
        for name, fits in _SIGNS.items():
            if fits(record.value):
                return name
        raise InvalidRecord("the record has no known form", path=str(path), line=record.line, remedy=remedy)
    if unreadable:
        raise unreadable
    raise InvalidRecord("the file holds no records", path=str(path), remedy="Check that it is the right file.")
