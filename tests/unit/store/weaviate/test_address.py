"""One setting says which Weaviate."""

from __future__ import annotations

import pytest

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.store.weaviate import parse_address


def test_a_server() -> None:
    address = parse_address("weaviate://db.example:8081?grpc=50055&prefix=Test1&index=flat&replicas=3&deadline=5")
    assert (address.host, address.port, address.grpc_host, address.grpc_port) == (
        "db.example",
        8081,
        "db.example",
        50055,
    )
    assert (address.prefix, address.index, address.replicas, address.deadline) == ("Test1", "flat", 3, 5.0)
    assert not address.secure
    assert str(address) == "weaviate://db.example:8081?grpc=50055"


def test_defaults() -> None:
    address = parse_address("weaviate://localhost")
    assert (address.port, address.grpc_port, address.consistency) == (8080, 50051, "QUORUM")


def test_tls_and_the_cloud() -> None:
    own = parse_address("weaviates://db.example")
    assert (own.port, own.grpc_host, own.grpc_port, own.secure) == (443, "db.example", 50051, True)
    cloud = parse_address("weaviates://abc.c0.europe-west3.gcp.weaviate.cloud")
    assert (cloud.grpc_host, cloud.grpc_port) == ("grpc-abc.c0.europe-west3.gcp.weaviate.cloud", 443)


def test_an_embedded_server_has_a_folder() -> None:
    address = parse_address("weaviate+embedded:///var/lib/memory?version=1.40.2")
    assert (address.folder, address.version, address.host) == ("/var/lib/memory", "1.40.2", "127.0.0.1")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("weaviate://", "names no server"),
        ("weaviate+embedded://", "names no folder"),
        ("weaviate://host:99999", "[Pp]ort"),
        ("weaviate://host?grpc=x", "grpc_port"),
        ("weaviate://host:50051", "both be at port 50051"),
        ("weaviate://host?index=best", "index"),
        ("weaviate://host?prefix=lower", "capital"),
        ("weaviate://host?replicas=0", "replicas"),
        ("weaviate://host?deadline=inf", "deadline"),
        ("weaviate://host?colour=red", "colour"),
        ("weaviate://host?secure=1&host=other", "host"),
    ],
)
def test_a_bad_address_is_refused_with_what_is_wrong(url: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        parse_address(url)
    assert caught.value.remedy


def test_a_key_does_not_stand_in_the_url_nor_in_the_error() -> None:
    with pytest.raises(InvalidInput, match="RTM_WEAVIATE_API_KEY") as caught:
        parse_address("weaviate://:sesame@host")
    assert "sesame" not in str(caught.value)
