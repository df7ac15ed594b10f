"""Models of what a user sets: frozen, no unknown fields, and InvalidRecipe where a value cannot be."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rag_tuned_memory.errors import InvalidRecipe


class CheckedModel(BaseModel):
    """Base of recipes and policies. Made by its constructor, a bad one raises InvalidRecipe, naming the field.

    Inside other pydantic models, and from ``model_validate``, the ValidationError says the same: pydantic takes every
    ValueError that a model raises, and InvalidRecipe is one, for its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    named: ClassVar[str] = "recipe"
    """What errors call it."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidRecipe(_faults(error), place=self.named) from error


def _faults(error: ValidationError) -> str:
    """Every field at fault with what is wrong there, through models inside models."""
    return "; ".join(_fault(detail) for detail in error.errors(include_url=False, include_input=False))


def _fault(detail: Any) -> str:
    where = ".".join(map(str, detail["loc"]))
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRecipe):  # of a part, whose message begins with its own field
        return f"{where}.{cause.message}"
    what = str(cause) if cause is not None else detail["msg"]
    return f"{where}: {what}" if where else what
