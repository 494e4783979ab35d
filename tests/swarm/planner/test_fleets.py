"""Fleet files, dry runs over them, and forecasts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import UsageError
from swarm.cli.main import main
from swarm.node.fleet_entry import MachineEntry, as_json, describe_shape
from swarm.planner.dry_run import dry_run, dry_run_data
from swarm.planner.fleet import KnownRtts, Member, ModelShape, Speed
from swarm.planner.fleet_file import parse_fleet, read_fleet
from swarm.planner.forecast import Timing, choice_chances, forecast, reprice, timing, tree_tokens
from swarm.planner.route import Ask, plan_route
from tests.swarm.serve.tiny import tiny_model, tiny_tokenizer

FLEETS = sorted((Path(__file__).parents[3] / "docs" / "fleets").glob("*.toml"))
SMALL: dict[str, Any] = {
    "model": {"name": "m", "layers": 4, "layer_gb": 1.0, "hidden": 64, "kv_bytes": 10},
    "node": [
        {"name": "a", "memory_gb": 2.5, "ms": [1, 1, 2], "region": "x"},
        {"name": "b", "memory_gb": 2.5, "ms": [1, 1, 2], "region": "y"},
    ],
    "rtt": {"default_ms": 30},
}


def changed(table: str, **entries: Any) -> dict[str, Any]:
    fleet = json.loads(json.dumps(SMALL))
    target = fleet["node"][0] if table == "node" else fleet.setdefault(table, {})
    target.update(entries)
    return fleet


@pytest.mark.parametrize("path", FLEETS, ids=lambda path: path.stem)
def test_the_shipped_fleets_hold_their_models_and_route(path: Path) -> None:
    fleet = read_fleet([path])
    run = dry_run(fleet)
    assert run.route is not None, run.problem
    assert min(run.held) >= 1
    data = json.loads(json.dumps(dry_run_data(run)))
    assert data["pass_ms"] >= data["one_row_ms"] > 0
    rates = data["tokens_per_second"]
    assert rates["plain"] <= rates["chain"]["rate"] and rates["plain"] <= rates["tree"]["rate"]
    by_name = {node["node"]: node["layers"] for node in data["nodes"]}
    for stage in data["route"]:
        held = by_name[stage["node"]]
        assert held[0] <= stage["layers"][0] < stage["layers"][1] <= held[1]


def test_every_example_is_known() -> None:
    assert [path.stem for path in FLEETS] == ["four-unequal", "six-regions", "three-pcs", "volunteers"]


def test_a_fleet_that_is_too_small_says_what_it_lacks() -> None:
    run = dry_run(parse_fleet(changed("model", layers=9)))
    assert run.route is None
    assert run.problem == (
        "layers 4-8 are held by nobody; 2 nodes present; the model needs 9 GB and KV besides, the nodes have 5 GB"
    )


def test_json_reads_like_toml(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps(SMALL))
    assert read_fleet([path]) == parse_fleet(SMALL)


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        ({}, "at least one"),
        ([], "expected a table as the file, found list"),
        (changed("node", ms=[1, 2]), r"number 1: expected 3 numbers as ms"),
        (changed("node", ms=[1, "x", 2]), r"number from 0 to"),
        (changed("node", memory_gb=-1), r"number from 0 to"),
        (changed("node", memory_gb=True), r"number from 0 to"),
        (changed("node", colour="red"), r"found 'colour'"),
        (changed("node", count=0), r"whole number over 0 as count"),
        (changed("node", count=10**6), r"at most 20000 nodes"),
        (changed("node", name="b"), r"found 'b' twice"),
        (changed("rtt", regions=[["x", "y"]]), r"expected \[name, name, ms\]"),
        (changed("request", accept=1.5), r"number from 0.01 to 0.99"),
        (changed("model", layers="many"), r"whole number over 0 as layers"),
    ],
)
def test_mistakes_are_named(fleet: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_fleet(fleet)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the fleet file"):
        read_fleet([tmp_path / "absent.toml"])
    (tmp_path / "bad.toml").write_text("= nothing")
    with pytest.raises(UsageError, match="expected TOML or JSON"):
        read_fleet([tmp_path / "bad.toml"])


def test_fixed_layers_are_taken_or_refused() -> None:
    run = dry_run(parse_fleet(changed("node", layers=[2, 4])))
    assert run.taken[0].block is not None and (run.taken[0].block.first, run.taken[0].block.last) == (2, 4)
    assert run.route is not None and run.route.nodes == ("b", "a")
    tight = dry_run(parse_fleet(changed("node", layers=[0, 4])))
    assert tight.taken[0].block is None and tight.taken[0].why == "only 2 of the 4 given layers fit"
    with pytest.raises(UsageError, match="layers 3:9 are not in a model of 4"):
        dry_run(parse_fleet(changed("node", layers=[3, 9])))


def test_spread_properties_cover_their_range_the_same_way_each_time() -> None:
    fleet = parse_fleet(changed("node", count=11, memory_gb=[1, 2], slowdown=[1, 3]))
    memory = [node.room.memory_bytes for node in fleet.nodes[:11]]
    assert min(memory) == 10**9 and max(memory) == 2 * 10**9 and len(set(memory)) == 11
    assert memory != sorted(memory)
    assert fleet == parse_fleet(changed("node", count=11, memory_gb=[1, 2], slowdown=[1, 3]))


def test_distances_come_from_pairs_then_regions_then_defaults() -> None:
    rtt = {"default_ms": 50, "local_ms": 2, "regions": [["x", "y", 20]], "nodes": [["a", "c", 7]]}
    nodes = [{"name": n, "memory_gb": 1, "ms": [1, 1, 1], "region": r} for n, r in ("ax", "by", "cy", "dz")]
    nodes[1]["last_mile_ms"] = 5
    fleet = parse_fleet({**SMALL, "node": nodes, "rtt": rtt})
    matrix = fleet.rtts(["a", "b", "c", "d", "x"])
    assert np.array_equal(matrix, matrix.T)
    assert matrix[0].tolist() == [0, 25, 7, 50, 2]
    assert matrix[1].tolist() == [25, 0, 7, 55, 25]


@given(st.floats(0.05, 0.95), st.integers(1, 60))
def test_trees_beat_chains_of_as_many_rows(accept: float, rows: int) -> None:
    chances = choice_chances(accept)
    assert sum(chances) < 1 and chances == sorted(chances, reverse=True) or accept < 0.3
    tokens, depth = tree_tokens(accept, rows)
    chain = (1 - accept ** (rows + 1)) / (1 - accept)
    assert tokens >= chain - 1e-9
    assert 1 <= depth <= rows
    assert tokens <= 1 / (1 - sum(chances)) + 1e-9


def test_a_forecast_is_never_under_plain_decoding() -> None:
    dear = Timing(pass_ms=10.0, row_ms=50.0, frame_ms=5.0, frame_row_ms=50.0, slowest="computing on a")
    guess = forecast(dear, 0.5)
    assert guess.chain == guess.tree == (0, 1.0, 100.0) and guess.plain == 100.0


def test_timing_is_the_price_at_other_sizes() -> None:
    model = ModelShape("m", (1,) * 4, hidden_size=1000, kv_bytes=1)
    members = [
        Member("a", 0, 2, Speed(1, 2, 3), up_mbps=100),
        Member("b", 2, 4, Speed(10, 20, 73), down_mbps=50),
    ]
    rtts = KnownRtts(default_ms=40)
    route = plan_route(model, members, rtts, Ask("me"))
    times = timing(model, members, rtts, "me", route)
    one, many = (reprice(model, members, rtts, "me", route, rows).pass_ms for rows in (1, 64))
    assert times.pass_ms == one and times.row_ms == pytest.approx((many - one) / 63)
    # 64 rows: 146 ms of compute at b, but 2000 bytes a row over 50 Mbit/s are 20 ms.
    assert times.slowest == "computing on b" and times.frame_ms == 20
    assert one == pytest.approx(3 * 20 + 2 + 20 + 3 + 0.32)


def saved(folder: Path, name: str, **tables: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(tables))
    return path


def test_several_files_are_one_fleet(tmp_path: Path) -> None:
    a, b = ({"name": name, "memory_gb": 2.5, "ms": [1, 1, 2], "region": name} for name in "ab")
    first = saved(tmp_path, "a.json", model=SMALL["model"], node=[a])
    second = saved(tmp_path, "b.json", model=SMALL["model"], node=[b], rtt={"default_ms": 30, "local_ms": 2})
    fleet = read_fleet([first, second])
    assert [node.room.node for node in fleet.nodes] == ["a", "b"]
    assert fleet.rtts(["a", "b"])[0, 1] == 30
    assert read_fleet([first, second], 7.0).rtts(["a", "b"])[0, 1] == 7
    assert dry_run(fleet).route is not None


def test_files_that_describe_two_models_are_refused(tmp_path: Path) -> None:
    node = SMALL["node"][:1]
    first = saved(tmp_path, "a.json", model=SMALL["model"], node=node)
    second = saved(tmp_path, "b.json", model={**SMALL["model"], "layer_gb": 2.0}, node=SMALL["node"][1:])
    with pytest.raises(UsageError, match="one model.*2.0 GB in .*b.json; swarm probe"):
        read_fleet([first, second])
    with pytest.raises(UsageError, match="expected a table as the file, found list"):
        read_fleet([first, saved_text(tmp_path, "[1]")])
    with pytest.raises(UsageError, match="'a' twice"):
        read_fleet([first, first])


def saved_text(folder: Path, text: str) -> Path:
    path = folder / "text.json"
    path.write_text(text)
    return path


def test_a_measured_machine_is_a_fleet_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `swarm probe` writes, as TOML and as JSON, is what `swarm plan` reads."""
    folder = tmp_path / "tiny"
    tiny_model(258).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    here = ["--model", str(folder), "--state", str(tmp_path), "--models", str(tmp_path / "models")]
    files = []
    for name, ending in (("ada", ".toml"), ('b"\\en', ".json")):
        words = ["probe", "--name", name, "--owner", "us", *(["--json"] if ending == ".json" else []), *here]
        assert main(words) == 0
        files.append(tmp_path / f"machine{ending}")
        files[-1].write_text(capsys.readouterr().out)
    fleet = read_fleet(files, 40.0)
    assert [node.room.node for node in fleet.nodes] == ["ada", 'b"\\en']
    assert {node.owner for node in fleet.nodes} == {"us"} and fleet.rtts(["ada", 'b"\\en'])[0, 1] == 40
    assert all(node.room.memory_bytes > 0 and node.room.speed.ms_1 > 0 for node in fleet.nodes if node.room.speed)
    assert fleet.model is not None and fleet.model.n_layers == 2
    assert main(["plan", "--nodes", *map(str, files), "--rtt", "40", *here]) == 0
    assert "ada [0-1]" in capsys.readouterr().out


def test_a_model_that_cannot_be_cut_everywhere_is_described_so() -> None:
    shape = ModelShape("m", (10**9,) * 6, 64, 10, head_bytes=10**8, every_bytes=10**7, forbidden=frozenset({2, 3}))
    described = describe_shape(shape)
    assert described.together == ((1, 4),) and described.head_gb == 0.11
    told = json.loads(as_json(described, MachineEntry("a", "a", 1.0, (1.0, 1.0, 2.0))))
    read = parse_fleet(told).model
    assert read is not None and read.forbidden == shape.forbidden and read.layer_bytes == shape.layer_bytes
