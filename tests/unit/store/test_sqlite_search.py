"""What the embedded store's text search does beyond the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_helpers import episode, record, vector

from rag_tuned_memory.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


async def test_words_of_most_passages_are_left_out_where_rarer_ones_occur(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "memory.db")
    for number, text in enumerate(["the disk of orion", "the disk of vega", "the fan of vega", "the rack of vega"]):
        await record(store, episode("alice", str(number), text))
    found = await store.candidates("alice", "the disk of orion", vector("nothing like it"), limit=10)
    by_text = sorted((c for c in found if c.bm25 is not None), key=lambda c: -(c.bm25 or 0))
    assert [c.passage.text for c in by_text] == ["the disk of orion", "the disk of vega"]
    await store.close()
