import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.distil.naming import namespace_slug


@pytest.mark.parametrize("namespace", ["alice", "a", "7", "team-42", "alice-v7", "x" * 40])
def test_a_plain_namespace_is_its_own_slug(namespace: str) -> None:
    assert namespace_slug(namespace) == namespace


@pytest.mark.parametrize(
    ("namespace", "readable"),
    [
        ("Alice", "alice"),
        ("Zoë/Prod", "zoe-prod"),
        ("a,b=c@d e", "a-b-c-d-e"),
        ("-rf", "rf"),
        ("../../etc", "etc"),
        ("日本", "namespace"),
        ("x" * 41, "x" * 23),
    ],
)
def test_any_other_keeps_what_is_readable_and_a_hash(namespace: str, readable: str) -> None:
    assert re.fullmatch(rf"{readable}-[0-9a-f]{{16}}", namespace_slug(namespace))


@given(st.text(min_size=1, max_size=256).filter(lambda text: text.isprintable()))
def test_a_slug_is_always_a_name_that_servers_take(namespace: str) -> None:
    slug = namespace_slug(namespace)
    assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", slug)
    # What looks like another namespace's slug is not taken as it is.
    assert slug == namespace or namespace_slug(slug) != slug


def test_composed_and_decomposed_letters_are_two_namespaces() -> None:
    assert namespace_slug("zo\u00eb") != namespace_slug("zoe\u0308")
