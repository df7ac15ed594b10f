"""Facts about all episodes together: counts, most frequent, what goes with what, trends, failures and their fixes.

Each is computed from the views, so that the answer is true of exactly the episodes it names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rag_tuned_memory.distil.facts import Fact, normalise
from rag_tuned_memory.distil.labels import Episode, month, noun
from rag_tuned_memory.distil.local_facts import attribute_keys
from rag_tuned_memory.distil.phrasing import topic_for

MAX_CATEGORIES = 12
"""An attribute with more different values than this is no category."""
MIN_SUPPORT = 2
"""What goes with what is only said when it was seen this often."""
TREND_FACTOR = 1.25


def global_facts(episodes: Sequence[Episode], *, limit: int) -> list[Fact]:
    """Up to ``limit`` facts, those about everything first."""
    if len(episodes) < 2:
        return []
    word = noun(episodes)
    words = {"noun": word, "nouns": f"{word}s"}
    keys = categories(episodes)
    found = [
        *_totals(episodes, words),
        *_most_common(episodes, keys, words),
        *_given(episodes, keys, words),
        *_failures(episodes, words),
        *_over_time(episodes, words),
        *_counts(episodes, keys, words),
        *_first(episodes, words),
    ]
    return [fact for fact in found if normalise(fact.answer)][:limit]


def categories(episodes: Sequence[Episode]) -> list[str]:
    """Attributes whose values recur, in the order in which an agent learns them."""
    kept = []
    for key in attribute_keys(episodes):
        values = Counter(e.view.attributes[key] for e in episodes if key in e.view.attributes)
        if len(values) <= MAX_CATEGORIES and values.most_common(1)[0][1] > 1:
            kept.append(key)
    return kept


def _fact(topic: str, slots: dict[str, str], answer: object, of: Iterable[Episode]) -> Fact:
    ids = tuple(dict.fromkeys(episode.view.trajectory_id for episode in of))
    return Fact(kind="global", topic=topic, slots=slots, answer=str(answer), trajectory_ids=ids)


def mode(values: Iterable[str]) -> tuple[str, int] | None:
    """The most frequent value and its count; None where several share the first place."""
    ranked = Counter(values).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0]


def _totals(episodes: Sequence[Episode], words: dict[str, str]) -> Iterator[Fact]:
    yield _fact("total", words, len(episodes), episodes)
    for topic, success in (("succeeded", True), ("failed", False)):
        matching = [e for e in episodes if e.view.success is success]
        if any(e.view.success is not None for e in episodes):
            yield _fact(topic, words, len(matching), episodes)


def _most_common(episodes: Sequence[Episode], keys: Sequence[str], words: dict[str, str]) -> Iterator[Fact]:
    for key in keys:
        having = [e for e in episodes if key in e.view.attributes]
        if best := mode(e.view.attributes[key] for e in having):
            yield _fact("most_common", {**words, "key": key}, best[0], having)


def _counts(episodes: Sequence[Episode], keys: Sequence[str], words: dict[str, str]) -> Iterator[Fact]:
    for key in keys:
        having = [e for e in episodes if key in e.view.attributes]
        for value, count in sorted(Counter(e.view.attributes[key] for e in having).items()):
            yield _fact("count", {**words, "key": key, "value": value}, count, having)


def _given(episodes: Sequence[Episode], keys: Sequence[str], words: dict[str, str]) -> Iterator[Fact]:
    """What usually comes with what: from an attribute that is known early to one that is found out later.

    For fixes only successful episodes count, since what did not help is no fix.
    """
    for position, given in enumerate(keys):
        for key in keys[position + 1 :]:
            topic = topic_for("given", key)
            groups: dict[str, list[Episode]] = defaultdict(list)
            for e in episodes:
                failed_fix = topic == "given_fix" and e.view.success is False
                if given in e.view.attributes and key in e.view.attributes and not failed_fix:
                    groups[e.view.attributes[given]].append(e)
            usual = {value: mode(e.view.attributes[key] for e in group) for value, group in sorted(groups.items())}
            if len({best[0] for best in usual.values() if best}) < 2:
                continue  # the same whatever is given: nothing is learnt from the pair
            for value, best in usual.items():
                if best and best[1] >= MIN_SUPPORT:
                    slots = {**words, "given": given, "value": value, "key": key}
                    yield _fact(topic, slots, best[0], groups[value])


def _failures(episodes: Sequence[Episode], words: dict[str, str]) -> Iterator[Fact]:
    with_tools = [e for e in episodes if e.view.tools]
    if best := mode(tool for e in with_tools for tool in e.view.tools):
        yield _fact("most_used_tool", words, best[0], with_tools)
    if best := mode(tool for e in with_tools for tool in e.view.failed_tools):
        yield _fact("most_failed_tool", words, best[0], with_tools)
    recoveries: dict[str, list[tuple[str, Episode]]] = defaultdict(list)
    for e in with_tools:
        for failed, worked in e.view.recoveries if e.view.success is not False else ():
            recoveries[failed].append((worked, e))
    for failed, found in sorted(recoveries.items()):
        best = mode(worked for worked, _ in found)
        if best and best[1] >= MIN_SUPPORT:
            yield _fact("recovery", {**words, "tool": failed}, best[0], [e for _, e in found])


def _over_time(episodes: Sequence[Episode], words: dict[str, str]) -> Iterator[Fact]:
    dated = [(e.view.time, e) for e in episodes if e.view.time]
    months = Counter(month(time) for time, _ in dated)
    if len(months) < 2:
        return
    every = [e for _, e in dated]
    if best := mode(month(time) for time, _ in dated):
        yield _fact("busiest_month", words, best[0], every)
    if trend := _trend([time for time, _ in dated]):
        yield _fact("trend", words, trend, every)
    for name, count in months.items():
        yield _fact("month_count", {**words, "month": name}, count, every)


def _trend(times: Sequence[datetime]) -> str | None:
    middle = times[0] + (times[-1] - times[0]) / 2
    earlier = sum(time <= middle for time in times)
    later = len(times) - earlier
    if later >= TREND_FACTOR * earlier:
        return "more frequent"
    return "less frequent" if earlier >= TREND_FACTOR * later else None


def _first(episodes: Sequence[Episode], words: dict[str, str]) -> Iterator[Fact]:
    if len({e.view.time.date() for e in episodes if e.view.time}) == len(episodes):
        yield _fact("first", words, episodes[0].label, episodes)
