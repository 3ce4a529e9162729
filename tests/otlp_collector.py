"""A collector of OpenTelemetry traces: a real HTTP server that reads what OTLP/HTTP sends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.listeners.fakes import Answer, Request, serving


@dataclass(frozen=True)
class CollectedSpan:
    """A span that arrived. Ids are bytes; `parent` is empty at the root of a trace."""

    service: str
    name: str
    trace: bytes
    id: bytes
    parent: bytes
    kind: int
    failed: bool
    attributes: dict[str, Any]

    @property
    def url(self) -> str:
        """The URL of a request that was sent, "" of other spans."""
        return str(self.attributes.get("http.url", ""))


@dataclass
class Collector:
    """The spans that arrived, in no particular order."""

    url: str = ""
    spans: list[CollectedSpan] = field(default_factory=list)

    def answer(self, request: Request) -> Answer:
        assert (request.method, request.path) == ("POST", "/v1/traces")
        assert request.headers["content-type"] == "application/x-protobuf"
        for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    CollectedSpan(
                        service, span.name, span.trace_id, span.span_id, span.parent_span_id, span.kind,
                        span.status.code == 2, _values(span.attributes),
                    )
                    for span in scope.spans
                ]  # fmt: skip
        return Answer(200, b"", {"Content-Type": "application/x-protobuf"})

    def named(self, name: str) -> list[CollectedSpan]:
        return [span for span in self.spans if span.name == name]

    def children(self, parent: CollectedSpan) -> list[CollectedSpan]:
        return [span for span in self.spans if (span.trace, span.parent) == (parent.trace, parent.id)]


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector, and yield it."""
    collector = Collector()
    with serving(collector.answer) as url:
        collector.url = url
        yield collector
