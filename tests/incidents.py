"""Episodes of an operations agent, as plain data."""

from __future__ import annotations

from typing import Any


def episode(number: int = 1, **changes: Any) -> dict[str, Any]:
    """An incident as plain data."""
    fields: dict[str, Any] = {
        "source_id": f"incident-{number}",
        "goal": f"bring host db-{number} back",
        "started_at": f"2026-03-{number:02d}T08:00:00",
        "steps": [
            {"kind": "message", "actor": "user", "text": f"db-{number} does not answer"},
            {"kind": "tool_call", "tool": "df", "arguments": {"host": f"db-{number}"}},
            {"kind": "tool_result", "tool": "df", "text": f"the disk of db-{number} is full"},
        ],
        "outcome": {"success": True},
    }
    return fields | changes
