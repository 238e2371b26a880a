from __future__ import annotations

from bench.inversion import INVERSION_PROTOCOLS
from bench.listing import list_kind
from bench.probes import PROBE_PROTOCOLS
from bench.protocols import PROTOCOLS
from bench.throughput import THROUGHPUT_PROTOCOLS


def test_metrics_lists_every_protocol_with_summary_and_paper() -> None:
    lines = {line.split()[0]: line for line in list_kind("metrics")}
    assert list(lines) == [*PROTOCOLS, *PROBE_PROTOCOLS, *INVERSION_PROTOCOLS, *THROUGHPUT_PROTOCOLS]
    for registry in (PROTOCOLS, PROBE_PROTOCOLS, INVERSION_PROTOCOLS):
        for name, protocol in registry.items():
            assert protocol.summary in lines[name]
            assert protocol.paper in lines[name]
