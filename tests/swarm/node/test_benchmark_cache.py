"""What a machine measured of itself: kept, found again, made anew when anything changed, and shown by the doctor."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import swarm.node.host
from swarm.base.config import JoinConfig, MemberConfig
from swarm.base.events import silent
from swarm.cli.main import main
from swarm.model.files.manifest import Manifest
from swarm.model.files.store import ModelStore
from swarm.model.probe import Probe
from swarm.model.ways import Ways
from swarm.node.bandwidth import Rates
from swarm.node.benchmark_cache import FILE, KEEP_S, MOST_KEPT, RATES_KEEP_S, ProbeCache
from swarm.node.host import Host
from swarm.terminal.doctor import look_at_kept
from tests.ring.conftest import tiny_folder  # noqa: F401  a fixture

CPU = torch.device("cpu")
PROBE = Probe({1: 1.5, 8: 2.0, 64: 6.0}, {1: 0.0, 8: 0.0, 64: 0.0}, 10**9, 0.1)
MODEL = Manifest("tiny", {"num_hidden_layers": 2}, ())


def keep(cache: ProbeCache, probe: Probe = PROBE, model: Manifest = MODEL) -> None:
    cache.keep(CPU, torch.float32, 2, model, probe)


def test_a_measurement_is_found_again_for_just_what_it_was_made_of(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path)
    assert cache.find(CPU, torch.float32, 2, MODEL.digest) is None
    keep(cache)
    found = ProbeCache(tmp_path).find(CPU, torch.float32, 2, MODEL.digest)
    assert found is not None and found.ms == (1.5, 2.0, 6.0) and found.speed.ms_64 == 6.0 and found.name == "tiny"
    assert cache.find(CPU, torch.bfloat16, 2, MODEL.digest) is None
    assert cache.find(CPU, torch.float32, 1, MODEL.digest) is None
    assert cache.find(CPU, torch.float32, 2, "0" * 64) is None
    keep(cache, replace(PROBE, ms_per_layer={1: 9.0, 8: 9.0, 64: 9.0}))
    assert [m.ms for m in cache.all()] == [(9.0, 9.0, 9.0)]


def test_another_version_and_an_old_measurement_count_for_nothing(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path)
    keep(cache)
    data = json.loads((tmp_path / FILE).read_text())
    for change in ({"software": "wanswarm 0.0.1, torch 1"}, {"at": time.time() - KEEP_S - 1}, {"at": time.time() + 99}):
        (tmp_path / FILE).write_text(json.dumps({"probes": [{**data["probes"][0], **change}]}))
        assert cache.find(CPU, torch.float32, 2, MODEL.digest) is None


def test_what_was_measured_on_a_busy_machine_is_not_kept(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path)
    keep(cache, replace(PROBE, cpu_load=0.9))
    assert cache.all() == [] and not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "\xff", "[" * 100_000, '{"probes": 3}', '{"probes": [1, {}, null]}'),
        '{"probes": [{"device": "x", "ms": [1, 2]}], "rates": {"up_kbps": "fast"}}',
        '{"probes": [{"device": "a", "dtype": "b", "threads": 1, "model": "c", "software": "d", "ms": [1, 2, -3], '
        '"free_bytes": 1, "cpu_load": 0, "at": 1}], "rates": []}',
    ],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, "latin-1")
    cache = ProbeCache(tmp_path)
    assert cache.all() == [] and cache.rates() is None
    keep(cache)
    cache.keep_rates(Rates(40_000, 200_000))
    assert len(cache.all()) == 1 and cache.rates() == Rates(40_000, 200_000)


def test_the_file_stays_small_and_rates_grow_old(tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path)
    for layers in range(1, MOST_KEPT + 5):
        keep(cache, model=Manifest("tiny", {"num_hidden_layers": layers}, ()))
    assert len(cache.all()) == MOST_KEPT
    cache.keep_rates(Rates(1, 2))
    data = json.loads((tmp_path / FILE).read_text())
    data["rates"]["at"] -= RATES_KEEP_S + 1
    (tmp_path / FILE).write_text(json.dumps(data))
    assert cache.rates() is None


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    keep(ProbeCache(tmp_path / "not there"))


def test_a_node_measures_once_and_again_when_asked(
    tiny_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probes: list[int] = []

    def probe(block: object, report: object) -> Probe:
        probes.append(1)
        return PROBE

    monkeypatch.setattr(swarm.node.host, "probe", probe)
    store = ModelStore(tmp_path / "models")
    config = JoinConfig(MemberConfig(tmp_path, tmp_path / "models"))
    for again, expected in ((False, 1), (False, 1), (True, 2)):
        host = Host(replace(config, probe=again), store, b"n" * 32, CPU, torch.float32, 2, silent, ProbeCache(tmp_path))
        assert host.load(str(tiny_folder), (2, 4)).speed_us == (1500, 2000, 6000)
        assert len(probes) == expected
    assert host.room(store.open(str(tiny_folder), (0, 1), silent).manifest).speed.ms_1 == 1.5


def test_the_doctor_shows_what_the_node_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(ProbeCache(tmp_path))
    ProbeCache(tmp_path).keep_rates(Rates(2_000, 50_000))
    assert main(["doctor", "--state", str(tmp_path), "--models", str(tmp_path / "m"), "--json"]) == 0
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert "one layer of tiny in float32" in findings["node's speed"]["found"]
    assert "1 rows 1.50 ms, 8 rows 2.00 ms, 64 rows 6.00 ms" in findings["node's speed"]["found"]
    assert findings["node's bandwidth"]["found"] == "up 2, down 50 Mbit/s"
    assert "thin" in findings["node's bandwidth"]["advice"]
    assert "speed" not in findings  # nothing was loaded: it is known


def test_both_ways_of_holding_weights_are_kept_for_model_and_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ProbeCache(tmp_path)
    slow = Ways((3.0, 9.0), (2.0, 4.0))
    assert cache.ways(2, MODEL.digest) is None and slow.better == "expanded"
    cache.keep_ways(2, MODEL, slow)
    assert ProbeCache(tmp_path).ways(2, MODEL.digest) == slow
    assert cache.ways(1, MODEL.digest) is None and cache.ways(2, "0" * 64) is None
    cache.keep_ways(2, MODEL, Ways((1.0, 2.0), (2.0, 2.1)))
    found = cache.ways(2, MODEL.digest)
    assert found is not None and found.better == "auto" and len(cache.all_ways()) == 1
    assert Ways((1.0, 2.0), (0.95, 1.95)).better == "auto"  # not worth four times the memory
    (shown,) = [f.found for f in look_at_kept(MemberConfig(tmp_path, tmp_path), time.time()) if f.what == "weights"]
    assert "one layer of tiny takes 1.00 ms a row stored, 2.00 expanded" in shown


@pytest.mark.parametrize("change", [{"ways": None}, {"ways": {"stored": [1, 2]}}, {"threads": "x"}, {"at": []}, None])
def test_ways_that_nobody_wrote_count_for_nothing(tmp_path: Path, change: dict[str, object] | None) -> None:
    cache = ProbeCache(tmp_path)
    cache.keep_ways(2, MODEL, Ways((1.0, 2.0), (2.0, 4.0)))
    entry = json.loads((tmp_path / FILE).read_text())["ways"][0]
    (tmp_path / FILE).write_text(json.dumps({"ways": [None if change is None else {**entry, **change}]}))
    assert cache.ways(2, MODEL.digest) is None and cache.all_ways() == []
