"""Putting another name into a text."""

from __future__ import annotations

import re

from rag_tuned_memory.distil.labels import DATE, head


def name_in_text(label: str) -> str:
    """The part of a label that stands in an episode's text: its date, or its identifier."""
    date = DATE.search(label)
    return date[0] if date else head(label).split()[-1]


def replaced(text: str, old: str, new: str) -> str | None:
    """``text`` with every whole ``old`` replaced, None where there is none."""
    changed, count = re.subn(rf"(?<!\w){re.escape(old)}(?!\w)", lambda _: new, text, flags=re.IGNORECASE)
    return changed if count else None
