"""Prometheus metrics of gateways and nodes, in registries of their own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from swarm.base.swarm_state import NodeState
from swarm.run.api import CommittedTokens, Finished, Recovering, RingOpened, RunEvent, WaitingForCoverage
from swarm.run.run_stats import PARTS
from swarm.serve.allowance import Allowances
from swarm.serve.run_registry import RunNote
from swarm.serve.state import DashboardState, layer_ms, queue_ms
from swarm.serve.state_broadcaster import HasState
from swarm.stage.server import StageServer
from swarm.stage.stats import StageCounts

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RequestMetrics:
    """Requests by route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "wanswarm_http_requests", "Requests answered", ["route", "method", "status"], registry=registry
        )
        self._latency = Histogram(
            "wanswarm_http_request_seconds", "Time of a request", ["route"], buckets=_SECONDS, registry=registry
        )

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._latency.labels(route).observe(seconds)


class GatewayMetrics:
    """Counters fed by requests and run events."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.requests = RequestMetrics(registry)
        self._runs = Counter("wanswarm_runs", "Runs by how they ended", ["outcome"], registry=registry)
        self._tokens = Counter("wanswarm_tokens", "Tokens by kind", ["kind"], registry=registry)
        self._passes = Counter("wanswarm_passes", "Trips round the ring", registry=registry)
        self._rows = Counter("wanswarm_rows_sent", "Rows sent round the ring", registry=registry)
        self._drafted = Counter(
            "wanswarm_drafted_rows", "Drafted rows by what came of them", ["outcome"], registry=registry
        )
        self._recoveries = Counter("wanswarm_recoveries", "Stages lost during runs", registry=registry)
        self._ttft = Histogram(
            "wanswarm_first_token_seconds", "Time to first token", buckets=_SECONDS, registry=registry
        )
        self._pass = Histogram(
            "wanswarm_pass_seconds", "Median pass time of each run", buckets=_SECONDS, registry=registry
        )
        self._parts = Counter("wanswarm_pass_part_seconds", "Time of passes by part", ["part"], registry=registry)
        self._rate = Histogram("wanswarm_run_tokens_per_second", "Speed of each run", buckets=_RATES, registry=registry)

    def event(self, event: RunEvent) -> None:
        match event:
            case WaitingForCoverage() | RingOpened():
                pass
            case CommittedTokens(tokens, _, drafted):
                self._tokens.labels("generated").inc(len(tokens))
                self._tokens.labels("foreseen").inc(sum(drafted))
            case Recovering(_, _, leaving):
                self._recoveries.inc(not leaving)
            case Finished(result):
                self._tokens.labels("prompt").inc(len(result.prompt_token_ids))
                self._tokens.labels("prompt_cached").inc(result.cached_prompt_tokens)
                self._passes.inc(result.passes)
                self._rows.inc(result.rows_sent)
                self._ttft.observe(result.ttft_seconds)
                self._pass.observe(result.pass_ms / 1000)
                accepted = sum(result.depth_accepted)
                self._drafted.labels("accepted").inc(accepted)
                self._drafted.labels("rejected").inc(result.drafted_rows - accepted)
                for part, ms in result.parts_ms.items():
                    self._parts.labels(part).inc(result.passes * ms / 1000)
                self._rate.observe(result.tokens_per_second)

    def ended(self, note: RunNote) -> None:
        self._runs.labels(note.result.finish_reason if note.result else note.state).inc()


class HasStage(Protocol):
    """A node, which computes once it has loaded its layers."""

    @property
    def stage(self) -> StageServer | None: ...


class StageCollector(Collector):
    """What a node computed, read from its stage at scrape time."""

    def __init__(self, node: HasStage) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        stage = self._node.stage
        counts = StageCounts() if stage is None else stage.counts
        waiting = 0 if stage is None else stage.sessions.rows_waiting
        for name, text, value in (
            ("runs", "Runs that opened here", counts.runs),
            ("recoveries", "Runs that came again in a ring formed anew", counts.recoveries),
            ("forwards", "Forwards of the block", counts.forwards),
            ("passes", "Frames computed; several share a forward", counts.passes),
            ("rows", "Rows computed: prompts, tokens and drafts", counts.rows),
            ("tokens", "Tokens drawn here, as the tail of runs", counts.tokens),
        ):
            family = CounterMetricFamily(f"wanswarm_stage_{name}", text)
            family.add_metric([], value)
            yield family
        parts = CounterMetricFamily(
            "wanswarm_stage_part_seconds", "Time by part: queue, compute, network", labels=["part"]
        )
        for part, seconds in zip(PARTS, (counts.queue_s, counts.compute_s, counts.network_s), strict=True):
            parts.add_metric([part], seconds)
        yield parts
        yield _gauge("wanswarm_stage_rows_waiting", "Rows that wait to be computed", waiting)


class StateCollector(Collector):
    """Gauges read from the dashboard's state at scrape time; the same on gateways and nodes.

    `shown`: one for each model. With several every gauge has the label `model`.
    """

    def __init__(self, *shown: HasState) -> None:
        self._shown = shown

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        several = len(self._shown) > 1
        for state in [each.state() for each in self._shown]:
            for name, text, labels, value in _gauges(state):
                if several:
                    labels = {"model": state.swarm.model, **labels}
                family = families.get(name)
                if family is None:
                    family = families[name] = GaugeMetricFamily(name, text, labels=list(labels))
                family.add_metric(list(labels.values()), value)
        return families.values()


class KeyCollector(Collector):
    """What each API key has used, under its name in the file of keys."""

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("wanswarm_key_requests", "Requests of each API key", labels=["key"])
        tokens = CounterMetricFamily("wanswarm_key_tokens", "Tokens of each API key", labels=["key", "kind"])
        for name in self._allowances.names:
            account = self._allowances.usage(name, time.monotonic()) or {}
            requests.add_metric([name], account["requests"])
            tokens.add_metric([name, "prompt"], account["prompt_tokens"])
            tokens.add_metric([name, "generated"], account["completion_tokens"])
        return [requests, tokens]


def _gauges(state: DashboardState) -> Iterable[tuple[str, str, dict[str, str], float]]:
    """(name, help, labels, value) of everything that a state tells."""
    live, seen = [run for run in state.runs if run.live], state.swarm
    for name, text, value in (
        ("wanswarm_nodes_serving", "Nodes that serve layers", sum(node.serves for node in seen.nodes)),
        ("wanswarm_layers_missing", "Layers that nobody serves", sum(b - a for a, b in seen.missing)),
        ("wanswarm_layer_holders_min", "Holders of the rarest layer", min(seen.held, default=0)),
        ("wanswarm_requests_waiting", "Requests in the queue", state.waiting),
        ("wanswarm_runs_active", "Runs on the ring", len(live)),
        ("wanswarm_rows_in_flight", "Rows on their way", sum(run.rows_in_flight or 0 for run in live)),
    ):
        yield name, text, {}, value
    for node in seen.nodes:
        for name, text, known in _of_node(node):
            if known is not None:
                yield name, text, {"node": node.id[:12]}, known
    for edge in seen.edges:
        labels = {"a": edge.a[:12], "b": edge.b[:12], "kind": edge.kind}
        yield "wanswarm_edge_rtt_seconds", "Median round trip", labels, edge.rtt_ms / 1000


def _of_node(node: NodeState) -> Iterable[tuple[str, str, float | None]]:
    layer, queue = layer_ms(node), queue_ms(node)
    yield "wanswarm_node_layer_seconds", "Compute time of one layer", layer and layer / 1000
    yield "wanswarm_node_kv_used_bytes", "Memory of sessions in use", node.kv_used
    yield "wanswarm_node_kv_budget_bytes", "Memory of sessions at most", node.kv_capacity or None
    yield "wanswarm_node_sessions", "Open sessions", node.sessions
    yield "wanswarm_node_queue_seconds", "Mean wait of a frame", queue and queue / 1000


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def render(*registries: CollectorRegistry) -> bytes:
    """The text that Prometheus scrapes."""
    return b"".join(generate_latest(registry) for registry in registries)
