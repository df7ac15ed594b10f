"""Keeping recalled text within a number of tokens, counted in the text as it stands in the prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.recall.recollection import Recalled, Recollection

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""How many tokens each text takes: ``lambda texts: [len(ids) for ids in tokenizer(texts).input_ids]``."""

_UNIT = re.compile(r"[A-Za-z]{1,4}| (?![A-Za-z])|[^ A-Za-z]")


def estimate_tokens(texts: Sequence[str]) -> list[int]:
    """A cautious estimate without a tokenizer: more than the tokenizers of today's models need for usual text.

    Four letters, each digit and each sign count as a token, other characters as many as their UTF-8 bytes (a
    byte-level tokenizer never takes more); a single space belongs to the word after it.
    """
    return [sum(_cost(unit) for unit in _UNIT.findall(text)) for text in texts]


def _cost(unit: str) -> int:
    return 1 if unit.isascii() else len(unit.encode())


def within(recollection: Recollection, budget: int | None, count: CountTokens | None) -> Recollection:
    """``recollection`` with results left out until its assembled text takes at most ``budget`` tokens.

    Better results are kept first; one that does not fit is dropped, and worse but shorter ones are still tried.
    Each kept set was counted as a whole, so the bound holds for any counter, headings and fences included.
    """
    counter = count or estimate_tokens

    def tokens(results: Sequence[Recalled]) -> int:
        text = assemble(recollection.model_copy(update={"results": tuple(results)}))
        return int(counter([text])[0]) if text else 0

    everything = tokens(recollection.results)
    if budget is None or everything <= budget:
        return recollection.model_copy(update={"tokens": everything, "token_budget": budget})
    kept: list[Recalled] = []
    used = 0
    dropped: list[Recalled] = []
    for result in recollection.results:
        needed = tokens([*kept, result])
        if needed <= budget:
            kept.append(result)
            used = needed
        else:
            dropped.append(result)
    update = {"results": tuple(kept), "dropped": tuple(dropped), "tokens": used, "token_budget": budget}
    return recollection.model_copy(update=update)
