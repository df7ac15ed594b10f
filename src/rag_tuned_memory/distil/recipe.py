"""What a distillation run shall do: every number in one frozen, validated place."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rag_tuned_memory.errors import InvalidRecipe


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraRecipe(_Part):
    """The adapter's shape, in PEFT's words. All linear layers of every block, equal rank: what all servers load."""

    rank: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Gate(_Part):
    """What an adapter must show before it may serve; shares and drifts, not percents."""

    local_recall: float = Field(default=0.85, ge=0, le=1)
    """Least share of local questions answered right, in phrasings never trained."""
    global_recall: float = Field(default=0.85, ge=0, le=1)
    abstention: float = Field(default=0.2, ge=0, le=1)
    """Least share of questions about unknown entities that the adapter alone declines. Routing adds its own check."""
    general_agreement: float = Field(default=0.3, ge=0, le=1)
    """Least token overlap of general answers with the base model's own."""
    perplexity_ratio: float = Field(default=4.0, ge=1)
    """Most that perplexity on general text may grow: adapter / base."""
    unique_answers: float = Field(default=0.5, ge=0, le=1)
    """Least ratio of distinct answers to distinct gold answers: a collapsed adapter says one thing to everything."""
    canary_margin: float = Field(default=0.5, gt=0)
    """Least mean difference of canary log-probabilities between adapter and base, nats a token."""


class Recipe(_Part):
    """One distillation run."""

    lora: LoraRecipe = LoraRecipe()
    gate: Gate = Gate()
    seed: int = 0
    tokens_per_fact: int = Field(default=550, ge=1)
    """Training tokens for each fact: the length of the run. 500 to 650 suffice for SmolLM2-135M."""
    max_tokens: int = Field(default=2_000_000, ge=1)
    """Training stops here however many facts there are."""
    learning_rate: float = Field(default=2e-3, gt=0)
    batch_tokens: int = Field(default=512, ge=16)
    """Tokens of one optimiser step, counted with the prompt."""
    max_length: int = Field(default=768, ge=32)
    """An example longer than this is left out and counted in the report."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints."""
    max_facts: int = Field(default=2_000, ge=1)
    """When there are more, the latest episodes come first and each kind of question keeps its share."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_tokens < self.max_length // 4:
            raise InvalidRecipe(
                f"batch_tokens {self.batch_tokens} is far below max_length {self.max_length}",
                remedy="Raise batch_tokens or lower max_length.",
            )
        return self
