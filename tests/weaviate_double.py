"""A double of a Weaviate server, on the client's own gRPC stubs: for faults that a real server cannot be asked for.

It keeps objects and evaluates the conditions that the store uses; ranking, cluster and schema rules are not its
business. ``faults`` says what becomes of the next requests.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from weaviate.proto.v1 import (
    aggregate_pb2,
    base_pb2,
    batch_delete_pb2,
    batch_pb2,
    properties_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

Place = tuple[str, str]
Fault = Callable[[grpc.ServicerContext, Any], Any]
"""Given the context and the request: aborts, returns a reply in place of the real one, or None to go on."""

_Op = base_pb2.Filters.Operator


@dataclass
class Double(weaviate_pb2_grpc.WeaviateServicer):
    """``objects[collection, tenant][uuid]`` is ``(properties, vector)``; ``requests`` counts calls by name."""

    version: str = "1.39.4"
    ready: bool = True
    port: int = 0
    grpc_port: int = 0
    schema: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[Place, dict[str, tuple[dict[str, Any], bytes]]] = field(default_factory=dict)
    faults: dict[str, deque[Fault | None]] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)

    def url(self, **settings: object) -> str:
        more = "".join(f"&{name}={value}" for name, value in settings.items())
        return f"weaviate://127.0.0.1:{self.port}?grpc={self.grpc_port}{more}"

    def fail_next(self, name: str, *faults: Fault | None) -> None:
        """What becomes of the next requests ``name``, one after the other; None leaves one alone."""
        self.faults.setdefault(name, deque()).extend(faults)

    def _fault(self, name: str, context: grpc.ServicerContext, request: Any) -> Any:
        self.requests[name] = self.requests.get(name, 0) + 1
        waiting = self.faults.get(name)
        fault = waiting.popleft() if waiting else None
        return None if fault is None else fault(context, request)

    def BatchObjects(self, request: Any, context: grpc.ServicerContext) -> Any:
        if (reply := self._fault("BatchObjects", context, request)) is not None:
            return reply
        self.store(request.objects)
        return batch_pb2.BatchObjectsReply()

    def store(self, objects: Any) -> None:
        """Keep objects of a batch."""
        for one in objects:
            place = self.objects.setdefault((one.collection, one.tenant), {})
            properties = MessageToDict(one.properties.non_ref_properties)
            place[one.uuid] = (properties, one.vectors[0].vector_bytes if one.vectors else b"")

    def BatchDelete(self, request: Any, context: grpc.ServicerContext) -> Any:
        if (reply := self._fault("BatchDelete", context, request)) is not None:
            return reply
        place = self._place(request, context)
        found = [name for name, one in place.items() if _meets(request.filters, name, one[0])]
        for name in found:
            del place[name]
        return batch_delete_pb2.BatchDeleteReply(matches=len(found), successful=len(found))

    def Aggregate(self, request: Any, context: grpc.ServicerContext) -> Any:
        if (reply := self._fault("Aggregate", context, request)) is not None:
            return reply
        found = self._found(request, context)
        return aggregate_pb2.AggregateReply(single_result=aggregate_pb2.AggregateReply.Single(objects_count=len(found)))

    def Search(self, request: Any, context: grpc.ServicerContext) -> Any:
        if (reply := self._fault("Search", context, request)) is not None:
            return reply
        found = self._found(request, context)
        if request.HasField("near_vector"):
            query = np.frombuffer(request.near_vector.vectors[0].vector_bytes, dtype="<f4")
            found.sort(key=lambda one: -float(np.frombuffer(one[2], dtype="<f4") @ query))
        if request.HasField("bm25_search"):
            words = set(request.bm25_search.query.split())
            found = [one for one in found if words & set(str(one[1].get("terms", "")).split())]
        if request.sort_by:
            found.sort(key=lambda one: one[1][request.sort_by[0].path[0]])
        reply = search_get_pb2.SearchReply(results=[_result(*one) for one in found[: request.limit or None]])
        if request.HasField("near_vector"):
            for result, one in zip(reply.results, found, strict=False):
                result.metadata.distance = 1 - float(np.frombuffer(one[2], dtype="<f4") @ query)
                result.metadata.distance_present = True
        return reply

    def _found(self, request: Any, context: grpc.ServicerContext) -> list[tuple[str, dict[str, Any], bytes]]:
        place = self._place(request, context)
        where = request.filters if request.HasField("filters") else None
        return [(name, *one) for name, one in sorted(place.items()) if where is None or _meets(where, name, one[0])]

    def _place(self, request: Any, context: grpc.ServicerContext) -> dict[str, tuple[dict[str, Any], bytes]]:
        if request.collection.endswith("Values"):
            return self.objects.setdefault((request.collection, ""), {})
        found = self.objects.get((request.collection, request.tenant))
        if found is None:
            context.abort(grpc.StatusCode.UNKNOWN, f'tenant not found: "{request.tenant}"')
        assert found is not None
        return found


def _meets(where: Any, name: str, properties: dict[str, Any]) -> bool:
    parts = [_meets(one, name, properties) for one in where.filters]
    if where.operator == _Op.OPERATOR_AND:
        return all(parts)
    of = where.target.property
    have = name if of in ("_id", "id") else properties.get(of)
    kind = where.WhichOneof("test_value")
    given = getattr(where, kind)
    if where.operator == _Op.OPERATOR_CONTAINS_ANY:
        return have in list(given.values)
    if where.operator == _Op.OPERATOR_CONTAINS_ALL:
        return set(given.values) <= set(str(have).split())
    if have is None:
        return False
    compare = {
        _Op.OPERATOR_EQUAL: have == given,
        _Op.OPERATOR_NOT_EQUAL: have != given,
        _Op.OPERATOR_GREATER_THAN: have > given,
        _Op.OPERATOR_GREATER_THAN_EQUAL: have >= given,
        _Op.OPERATOR_LESS_THAN: have < given,
    }
    return bool(compare[where.operator])


def _result(name: str, properties: dict[str, Any], vector: bytes) -> Any:
    fields = {key: _value(value) for key, value in properties.items()}
    metadata = search_get_pb2.MetadataResult(id_as_bytes=UUID(name).bytes, score=1.0, score_present=True)
    if vector:
        metadata.vectors.append(
            base_pb2.Vectors(name="passage", vector_bytes=vector, type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32)
        )
    return search_get_pb2.SearchResult(
        properties=search_get_pb2.PropertiesResult(non_ref_props=properties_pb2.Properties(fields=fields)),
        metadata=metadata,
    )


def _value(value: Any) -> Any:
    if isinstance(value, bool):
        return properties_pb2.Value(bool_value=value)
    if isinstance(value, float):
        return properties_pb2.Value(int_value=int(value))
    return properties_pb2.Value(text_value=value)


def unavailable(context: grpc.ServicerContext, _: Any) -> None:
    """The server is starting, or a node is gone."""
    context.abort(grpc.StatusCode.UNAVAILABLE, "connection refused")


def broken(context: grpc.ServicerContext, _: Any) -> None:
    """Something that trying again does not mend."""
    context.abort(grpc.StatusCode.INTERNAL, "something is broken")


def refusing(*positions: int, reason: str) -> Fault:
    """A batch of which some objects are not taken."""

    def fault(_: grpc.ServicerContext, request: Any) -> Any:
        errors = [batch_pb2.BatchObjectsReply.BatchError(index=at, error=reason) for at in positions]
        return batch_pb2.BatchObjectsReply(errors=errors)

    return fault


def losing(double: Double, *positions: int) -> Fault:
    """A batch that is acknowledged whole, and of which some objects are not kept."""

    def fault(_: grpc.ServicerContext, request: Any) -> Any:
        double.store([one for at, one in enumerate(request.objects) if at not in positions])
        return batch_pb2.BatchObjectsReply()

    return fault


def slow(seconds: float) -> Fault:
    """A request that is answered late."""

    def fault(_: grpc.ServicerContext, request: Any) -> None:
        threading.Event().wait(seconds)

    return fault


@contextmanager
def serving(double: Double) -> Iterator[Double]:
    """Answer REST and gRPC on loopback."""
    rpc = grpc.server(futures.ThreadPoolExecutor(8))
    weaviate_pb2_grpc.add_WeaviateServicer_to_server(double, rpc)
    double.grpc_port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    rest = ThreadingHTTPServer(("127.0.0.1", 0), _handler(double))
    double.port = rest.server_address[1]
    thread = threading.Thread(target=rest.serve_forever, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        rest.shutdown()
        rest.server_close()
        rpc.stop(0).wait()


def _handler(double: Double) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.removeprefix("/v1/")
            if path == "meta":
                self.answer(200, {"version": double.version})
            elif path == ".well-known/ready":
                self.answer(200 if double.ready else 503, {})
            elif path == "schema":
                self.answer(200, {"classes": list(double.schema.values())})
            elif path.removeprefix("schema/") in double.schema:
                self.answer(200, double.schema[path.removeprefix("schema/")])
            else:
                self.answer(404, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            double.schema[body["class"]] = body
            self.answer(200, body)

        def answer(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    return Handler
