"""Namespaces become tenants, and no two the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.store.weaviate.names import generation, object_id, tenant

ALLOWED = re.compile(r"[a-z0-9_-]{1,64}")


@pytest.mark.parametrize(
    ("namespace", "expected"),
    [
        ("alice", "alice"),
        ("alice-smith", "alice-smith"),
        ("ALICE", "_41_4c_49_43_45"),
        ("alice_1", "alice_5f1"),
        ("*", "_2a"),
        ("é", "_c3_a9"),
    ],
)
def test_what_can_be_read_stays_readable(namespace: str, expected: str) -> None:
    assert tenant(namespace) == expected


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_two_namespaces_are_two_tenants(one: str, other: str) -> None:
    assert (tenant(one) == tenant(other)) is (one == other)
    assert ALLOWED.fullmatch(tenant(one))


def test_a_long_name_is_no_other_names_encoding() -> None:
    long = "x" * 65
    assert len(tenant(long)) == 64
    assert tenant(long) != tenant(tenant(long))


def test_ids_keep_parts_apart() -> None:
    assert object_id("passage", "a", "bc") != object_id("passage", "ab", "c")
    assert object_id("passage", "a", 1) == object_id("passage", "a", 1)
    assert object_id("trajectory", "\ud800") == object_id("trajectory", "\ud800")


def test_a_version_has_its_content_and_its_parent() -> None:
    first = generation("hash a", "")
    second = generation("hash b", first)
    assert generation("hash a", "") == first
    assert len({first, second, generation("hash a", second)}) == 3
