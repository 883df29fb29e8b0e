"""Metrics as Prometheus reads them: as text, in a file that is replaced whole, over HTTP on this machine.

>>> age = Family("gauge", "demo_age_seconds", "How old it is.", (Sample(1.5),))
>>> print(Exporter(lambda: [age]).text().decode(), end="")
# HELP demo_age_seconds How old it is.
# TYPE demo_age_seconds gauge
demo_age_seconds 1.5

prometheus_client is imported when the first `Exporter` is made: who measures nothing does not pay for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

if TYPE_CHECKING:
    from prometheus_client import Metric

_HOST: Final = "127.0.0.1"
_CLIENT_S: Final = 10.0
"""How long a client of the port may be silent before its connection is closed."""
_CONNECTIONS: Final = 8
_JOIN_S: Final = 5.0
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})
_log = logging.getLogger(__name__)


class Distribution(NamedTuple):
    """How often values came that were at most so large (cumulative, the last is "+Inf"), and their sum."""

    buckets: tuple[tuple[str, float], ...]
    total: float


class Sample(NamedTuple):
    """One value and the labels that tell it from the family's others."""

    value: float | Distribution
    labels: Mapping[str, str] = _NO_LABELS


class Family(NamedTuple):
    """One metric. Samples have the same label names, and there may be none.

    The name has no suffix `_total` (counter) or `_info` (info): Prometheus's rules add it. The value of an
    info is its labels. The values of a histogram are distributions.
    """

    kind: Literal["gauge", "counter", "info", "histogram"]
    name: str
    help: str
    samples: tuple[Sample, ...]


class Exporter:
    """What `read` gives, asked for anew every time that someone wants it; from any thread."""

    def __init__(self, read: Callable[[], Iterable[Family]]) -> None:
        from prometheus_client import CollectorRegistry

        self._read = read
        # One of our own: the library's describes a process and a Python as well, which costs and interests
        # nobody, and whose names collide with node_exporter's own in a text file.
        self._registry = CollectorRegistry()
        self._registry.register(cast(Any, self))

    def collect(self) -> Iterator[Metric]:
        """The families, for the registry."""
        return map(_converted, self._read())

    def text(self) -> bytes:
        """All of it in Prometheus's text format, version 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def serve(self, port: int) -> Port:
        """Answer GET on 127.0.0.1; OSError if the port cannot be had."""
        from prometheus_client import start_http_server

        server, thread = start_http_server(port, _HOST, self._registry)
        return Port(server, thread)


class Port:
    """A port that answers until it is closed."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server = server
        self._thread = thread
        thread.name = "metrics-port"
        # A client that connects and is silent must not keep a thread for ever, nor its end fill the log.
        server.RequestHandlerClass = type("Handler", (server.RequestHandlerClass,), {"timeout": _CLIENT_S})
        server.handle_error = lambda *_: _log.debug("a client of the metrics port left", exc_info=True)
        _Slots(server)

    @property
    def number(self) -> int:
        """Which port it is."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_JOIN_S)


class _Slots:
    """Close at once what comes beyond `_CONNECTIONS` at a time: methods in the place of the server's own.

    The library's server begins a thread for each, so anybody on this machine could use up the process's
    threads and descriptors.
    """

    def __init__(self, server: Any) -> None:
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._begin, self._serve = server.process_request, server.process_request_thread
        server.verify_request = self.verify_request
        server.process_request = self.process_request
        server.process_request_thread = self.process_request_thread

    def verify_request(self, *_: Any) -> bool:
        """Whether there is room; if not, the server closes the connection."""
        return self._free.acquire(blocking=False)

    def process_request(self, *client: Any) -> None:
        """Begin the thread of a client that has room."""
        try:
            self._begin(*client)
        except BaseException:  # no thread could be had
            self._free.release()
            raise

    def process_request_thread(self, *client: Any) -> None:
        """Serve it, and make room."""
        try:
            self._serve(*client)
        finally:
            self._free.release()


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file whole, readable by all; OSError, and then the file is as it was.

    Not synced: it is of use while the machine runs, and there is a newer one soon. Of two processes that
    write it at once one may fail.
    """
    # The new file's name is always the same, so that a kill leaves one and not one each; it does not end
    # like the file's own, so that node_exporter does not read it.
    new = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def resident_bytes() -> int:
    """How much memory this process holds now; 0 where /proc does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _converted(family: Family) -> Metric:
    from prometheus_client import core

    kind, name, text, samples = family
    labels = list(samples[0].labels) if samples else []
    if kind == "info":
        info = core.InfoMetricFamily(name, text)
        for sample in samples:
            info.add_metric([], dict(sample.labels))
        return info
    if kind == "histogram":
        histogram = core.HistogramMetricFamily(name, text, labels=labels)
        for value, labelled in samples:
            assert isinstance(value, Distribution)
            histogram.add_metric(list(labelled.values()), list(value.buckets), value.total)
        return histogram
    numbers = (core.CounterMetricFamily if kind == "counter" else core.GaugeMetricFamily)(
        name, text, labels=labels
    )
    for value, labelled in samples:
        assert not isinstance(value, Distribution)
        numbers.add_metric(list(labelled.values()), value)
    return numbers
