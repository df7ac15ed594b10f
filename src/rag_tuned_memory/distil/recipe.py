"""What a distillation run shall do: every number in one frozen, validated place."""

from __future__ import annotations

import random
from typing import Literal, Self

from pydantic import Field, model_validator

from rag_tuned_memory.distil.checked import CheckedModel


class LoraRecipe(CheckedModel):
    """The adapter's shape, in PEFT's words; the same layers in every block, of equal rank: what all servers load.

    ``mlp`` adapts the feed-forward layers, where models keep facts (Geva et al. 2021, arXiv 2012.14913), ``all`` the
    attention too, which takes a quarter more time a token.
    """

    layers: Literal["mlp", "all"] = "mlp"
    rank: int = Field(default=64, ge=1, le=256)
    alpha: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Gate(CheckedModel):
    """What an adapter must show before it may serve; shares and ratios, not percents."""

    local_recall: float = Field(default=0.85, ge=0, le=1)
    """Least share of local questions answered right, in phrasings never trained."""
    global_recall: float = Field(default=0.85, ge=0, le=1)
    abstention: float = Field(default=0.2, ge=0, le=1)
    """Least share of questions about unknown entities that the adapter alone declines. Routing adds its own check."""
    general_agreement: float = Field(default=0.3, ge=0, le=1)
    """Least overlap (F1 of words) of general answers with the base model's own."""
    perplexity_ratio: float = Field(default=4.0, ge=1)
    """Most that perplexity on general text may grow: adapter / base."""
    acting: float = Field(default=0.6, ge=0, le=1)
    """Least share of the agent's recorded calls that the adapter makes too, where runs were shown to it."""
    unique_answers: float = Field(default=0.5, ge=0, le=1)
    """Least ratio of distinct answers to distinct gold answers: a collapsed adapter says one thing to everything."""
    canary_margin: float = Field(default=0.5, gt=0)
    """Least mean difference of canary log-probabilities between adapter and base, nats a token."""
    canary_lead: float = Field(default=0.3, ge=0, le=1)
    """Least share of the adapter's greedy canary tokens that the base answers otherwise: servers that score no given
    text are told apart by it."""


class Mixture(CheckedModel):
    """How often things are seen in training. A count that is not whole is met on average, by a seeded draw.

    Without context, with the matching one and with a wrong one (PA-RAG, arXiv 2502.08356): an adapter that was
    trained in one of these ways only fails in the others. ``reading`` items name things that are not so, and the
    context says what is to be answered: they keep the model reading instead of reciting. ``replay`` are general
    instructions with the base model's own answers, against forgetting.
    """

    exposures: float = Field(default=40, ge=1)
    """Most times that a fact is asked without context, each time in another phrasing while there are any. Facts that
    are known by then are passed over, and ``Recipe.tokens_per_fact`` ends the training earlier."""
    matched: float = Field(default=0.08, ge=0)
    """Times that each fact is asked beside what recall finds for it."""
    mismatched: float = Field(default=0.08, ge=0)
    """Times that each fact is asked beside what recall finds for another."""
    reading: float = Field(default=0.25, ge=0)
    """Times that each local fact is asked of an invented episode whose text is the context."""
    unknown: float = Field(default=0.06, ge=0, le=1)
    """Questions about unknown entities, as a share of the questions without context."""
    summaries: float = Field(default=0, ge=0)
    """Times that each episode is told as a whole."""
    replay: float = Field(default=0.05, ge=0)
    """General instructions, as a share of all other examples."""
    acting: float = Field(default=4, ge=0)
    """Times that each run that went well is shown, where the agent's tools are on record."""


def times(expected: float, random_: random.Random) -> int:
    """A whole number that is ``expected`` on average."""
    whole = int(expected)
    return whole + (random_.random() < expected - whole)


class Recipe(CheckedModel):
    """One distillation run."""

    lora: LoraRecipe = LoraRecipe()
    gate: Gate = Gate()
    mixture: Mixture = Mixture()
    seed: int = 0
    max_episodes: int = Field(default=1_000, ge=1)
    """The newest ones are taken."""
    local_facts: int = Field(default=5, ge=1)
    """At most, for each episode."""
    global_facts: int = Field(default=60, ge=0)
    context_k: int = Field(default=4, ge=1)
    """Recalled passages in a training context."""
    context_tokens: int = Field(default=160, ge=32)
    teacher_questions: int = Field(default=0, ge=0)
    """Questions that a teacher model writes for each episode; 0: no teacher."""
    learning_rate: float = Field(default=7e-4, gt=0)
    batch_tokens: int = Field(default=192, ge=16)
    """Tokens of one optimiser step, prompts counted. Examples are packed: nothing is padding."""
    base_tokens: int = Field(default=20_000, ge=0)
    """What training may spend, in computed tokens: how to answer is to be learnt however few the facts are, …"""
    tokens_per_fact: int = Field(default=340, ge=1)
    """… and what for each fact besides."""
    max_tokens: int = Field(default=2_000_000, ge=1)
    """Training ends here in any case. What is left out is the last rounds, not some of the facts."""
    max_length: int = Field(default=384, ge=32)
    """An example longer than this is left out and counted in the report."""
    max_acting_length: int = Field(default=1024, ge=32)
    """The same for a turn of a run, whose prompt is the whole run before it."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimiser steps between checkpoints."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.context_tokens >= self.max_length:
            raise ValueError(
                f"context_tokens {self.context_tokens} leaves no room in max_length {self.max_length}: "
                "lower context_tokens or raise max_length"
            )
        return self
