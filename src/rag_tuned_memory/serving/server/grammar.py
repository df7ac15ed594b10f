"""Grammars as TGI's and OpenAI's protocols ask for them."""

from __future__ import annotations

from typing import Any

import anyio.to_thread

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.folder import ModelFolder
from rag_tuned_memory.serving.local.grammar import GrammarConstraint, Grammars
from rag_tuned_memory.serving.server.errors import failed, validation
from rag_tuned_memory.serving.server.shapes import compact
from rag_tuned_memory.serving.server.wire_json import BadJson, anything, read

_NO_BLANKS = {"x-guidance": {"whitespace_flexible": False}}
"""A small model would fill its budget with blanks."""


class AskedGrammars:
    """Makes the constraint that a request asks for."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._grammars = Grammars()

    async def constraint(self, kind: str, value: Any) -> GrammarConstraint:
        """A fresh constraint for one answer. Raises Refused for a grammar that is none."""
        return await anyio.to_thread.run_sync(self._constraint, kind, value)

    def _constraint(self, kind: str, value: Any) -> GrammarConstraint:
        tokenizer = self._folder.tokenizer()
        # TGI finds a bad expression only when it generates, and a bad schema when it validates.
        if kind == "regex":
            try:
                return self._grammars.regex(tokenizer, value)
            except InvalidInput as error:
                raise failed(error.message) from None
        schema = _schema(value["schema"] if kind == "json_schema" else value)
        try:
            return self._grammars.json(tokenizer, compact({**_NO_BLANKS, **_closed(schema)}))
        except InvalidInput as error:
            raise validation(f"grammar is not valid: {error.message}") from None


def _schema(given: Any) -> dict[str, Any]:
    """A JSON schema, that may come as text. Raises Refused."""
    schema = given
    if isinstance(given, str):
        try:
            schema = read(given.encode(), anything)
        except BadJson as error:
            raise validation(f"grammar is not valid: {error}") from None
    if not isinstance(schema, dict):
        raise validation("grammar is not valid: it must be a JSON schema")
    if "properties" not in schema:
        raise validation("grammar is not valid: Grammar must have a 'properties' field")
    return schema


def _closed(schema: Any) -> Any:
    """The schema with objects that have the properties named and no others, which is how TGI reads one."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if isinstance(schema.get("properties"), dict) else closed
