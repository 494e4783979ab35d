"""`swarm verify`: every way out, over receipts of a ring that ran in this process."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm.cli.main import main
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.recheck.calibrate import measure_limits
from swarm.recheck.limits import limit_of, load_limits, save_limits
from swarm.run.api import RunRequest
from swarm.run.last_receipt import note_last

from ...ring.signed import LIES, signed_ring
from ..serve.tiny import tiny_tokenizer


@dataclass
class Place:
    """A model on disk, receipts of it, and nodes that still answer on their ports."""

    model: Path
    receipt: Path
    lying: Path
    folder: Path
    addresses: list[str]

    def verify(self, *words: object) -> int:
        return main(["verify", *map(str, words), "--models", str(self.folder / "models"), "--state", str(self.folder)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("verify")
    model = folder / "model"
    tokenizer = tiny_tokenizer()
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=None, bos_token_id=None,
        initializer_range=0.08,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    ready, done = threading.Event(), threading.Event()
    made: list[Place] = []
    ring = threading.Thread(target=lambda: asyncio.run(_serve(folder, model, made, ready, done)))
    ring.start()
    assert ready.wait(120)
    yield made[0]
    done.set()
    ring.join()


async def _serve(folder: Path, model: Path, made: list[Place], ready: threading.Event, done: threading.Event) -> None:
    checkpoint = open_model(str(model), ModelStore(folder / "models"))
    request = RunRequest((5, 6, 7, 8), 12, speculation="plain")
    decode = tiny_tokenizer().decode
    async with signed_ring(checkpoint, [(0, 3), (3, 6)], folder / "honest", decode=decode) as ring:
        await ring.generate(request, folder / "run.json")
        lies = {0: LIES["int4"]}
        async with signed_ring(checkpoint, [(0, 3), (3, 6)], folder / "lie", twists=lies, decode=decode) as liar:
            await liar.generate(request, folder / "lying.json")
        addresses = [f"{n.identity.id.hex()[:8]}={n.address[0]}:{n.address[1]}" for n in ring.nodes]
        made.append(Place(model, folder / "run.json", folder / "lying.json", folder, addresses))
        ready.set()
        await asyncio.to_thread(done.wait)


def test_what_the_receipt_itself_shows(place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert place.verify(place.receipt) == 0
    assert "level 1: signed and consistent" in capsys.readouterr().out
    assert place.verify(place.receipt, "--json", "--svg", tmp_path / "run.svg") == 0
    assert json.loads(capsys.readouterr().out)["level"] == 1
    assert (tmp_path / "run.svg").read_text().startswith("<svg")
    assert place.verify(place.receipt, "--require-level", "2") == 3
    changed = tmp_path / "changed.json"
    changed.write_bytes(place.receipt.read_bytes().replace(b'"level"', b'"leval"', 1)[:-2])
    assert place.verify(changed) not in (0, 1, 3, 4)


def test_a_run_is_shown_over_time(place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", str(place.receipt)]) == 0
    shown = capsys.readouterr().out
    assert "layers 0-2" in shown and "12 tokens" in shown and "busy" in shown
    assert main(["show", str(place.receipt), "--svg", str(tmp_path / "time.svg")]) == 0
    assert (tmp_path / "time.svg").read_text().startswith("<svg") and capsys.readouterr().out == ""
    changed = tmp_path / "changed.json"
    changed.write_bytes(place.receipt.read_bytes().replace(b"payload", b"peyload", 1))
    assert main(["show", str(changed)]) >= 2
    told = capsys.readouterr()
    assert "not drawn" in told.err and told.out == ""
    assert main(["show", "--state", str(tmp_path)]) == 2


def test_the_last_receipt_and_one_from_a_pipe(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "receipts"
    folder.mkdir()
    assert main(["verify", "--state", str(tmp_path)]) == 2
    assert "expected a receipt, found none" in capsys.readouterr().err
    for age, name in ((50, "b.json"), (20, "a.json"), (10, "a.secrets.json")):
        beside = place.receipt.with_suffix(".secrets.json").read_bytes()
        content = {"a.json": place.receipt.read_bytes(), "a.secrets.json": beside, "b.json": b"an older one"}
        (folder / name).write_bytes(content[name])
        os.utime(folder / name, (time.time() - age,) * 2)
    assert main(["verify", "--state", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "a.json" in told.err and "level 1" in told.out
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_bytes(place.receipt.read_bytes())
    for command in ("verify", "show"):
        note_last(folder, elsewhere)
        assert main([command, "--state", str(tmp_path)]) == 0
        assert "elsewhere.json" in capsys.readouterr().err
        os.utime(elsewhere, (time.time() - 30,) * 2)  # older than what lies in the folder
        assert main([command, "--state", str(tmp_path)]) == 0
        assert "a.json" in capsys.readouterr().err
        os.utime(elsewhere)
    elsewhere.unlink()
    assert main(["verify", "--state", str(tmp_path)]) == 0
    assert "a.json" in capsys.readouterr().err
    note_last(tmp_path / "elsewhere.json" / "file", elsewhere)  # nowhere to write it
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(place.receipt.read_bytes())))
    assert main(["verify", "-"]) == 0
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["verify", "-"]) not in (0, 1, 3, 4)


def test_trust(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = tmp_path / "trust"
    trust.write_text("ab" * 32 + "  # somebody\n")
    assert place.verify(place.receipt, "--trust", trust) == 40
    assert "untrusted: " in capsys.readouterr().out
    trust.write_text("not a key\n")
    for unusable in (trust, tmp_path / "absent"):
        with pytest.raises(SystemExit) as end:
            place.verify(place.receipt, "--trust", unusable)
        assert end.value.code == 2 and "argument --trust: cannot use the trust file" in capsys.readouterr().err


def test_replay(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.verify(place.receipt, "--replay", "--model", place.model, "--require-level", "4") == 0
    assert "12/12 tokens equal" in capsys.readouterr().out
    assert place.verify(place.lying, "--replay", "--model", place.model) == 41
    alone = tmp_path / "alone.json"
    alone.write_bytes(place.receipt.read_bytes())
    assert place.verify(alone, "--replay", "--model", place.model) == 4  # the prompt is not shown in it
    secrets = place.receipt.with_suffix(".secrets.json")
    assert place.verify(alone, "--replay", "--model", place.model, "--secrets", secrets) == 0
    # Another run's values: refused when given, left aside when they merely lie there.
    others = place.lying.with_suffix(".secrets.json")
    assert place.verify(alone, "--secrets", others) in (35, 36, 37)
    alone.with_suffix(".secrets.json").write_bytes(others.read_bytes())
    assert place.verify(alone) == 0
    assert place.verify(place.receipt, "--replay") == 2
    assert "--model REF" in capsys.readouterr().err


def test_audit(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    where = [word for address in place.addresses for word in ("--address", address)]
    words = (place.receipt, "--audit", "10", "--model", place.model, *where)
    assert place.verify(*words, "--require-level", "3") == 0
    assert "rows recomputed" in capsys.readouterr().out
    nowhere = [word.split("=")[0] + "=127.0.0.1:9" if "=" in word else word for word in where]
    assert place.verify(place.receipt, "--audit", "10", "--model", place.model, *nowhere) == 4
    assert "opened nothing" in capsys.readouterr().err
    assert place.verify(place.receipt, "--audit", "4", "--model", place.model, "--address", "12345678=h:1") == 2
    assert place.verify(place.receipt, "--audit", "4", "--model", place.model, "--no-lan") == 2  # no swarm is known


def test_models(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.verify(place.receipt, "--model", place.model) == 0
    assert "the manifest is the verifier's own" in capsys.readouterr().out
    assert place.verify(place.receipt, "--model", tmp_path / "absent") == 2
    other = tmp_path / "other"
    LlamaForCausalLM(LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )).save_pretrained(other)  # fmt: skip
    assert place.verify(place.receipt, "--model", other) == 38


def test_misuse_is_one_line(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        [],
        [tmp_path / "absent.json"],
        [place.receipt, "--secrets", tmp_path / "absent"],
        [place.receipt, "--svg", tmp_path / "no" / "where.svg"],
        [place.receipt, "--calibrate"],
    ):
        assert place.verify(*words) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(SystemExit) as misuse:
        place.verify(place.receipt, "--require-level", "5")
    assert misuse.value.code == 2


def test_limits_are_measured_kept_and_used(place: Place, tmp_path: Path) -> None:
    checkpoint = open_model(str(place.model), ModelStore(tmp_path))
    digest = checkpoint.manifest.digest
    assert load_limits(tmp_path, digest) is None
    settings = [("float32", "float32"), ("bfloat16", "bfloat16")]
    limits, measured = measure_limits(checkpoint, [list(range(5, 69)), list(range(40, 8, -1))], settings)
    assert [item.name for item in measured] == ["float32_float32", "bfloat16_bfloat16"]
    assert measured[0].honest_median < 1e-4 < measured[1].honest_median < 0.05
    save_limits(tmp_path, limits)
    assert load_limits(tmp_path, digest) == limits
    assert limit_of(limits)("mixed", "bfloat16") == limits.limits["bfloat16_bfloat16"]


def test_other_receipts_beside(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "receipts"
    folder.mkdir()
    for path in (place.receipt, place.lying):
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / f"{path.stem}.secrets.json").write_bytes(b"not a receipt")
    assert place.verify(place.receipt, "--beside", folder) == 0
    assert "keys sign in more than one of 2 receipts" in " ".join(capsys.readouterr().out.split())
    (folder / "broken.json").write_bytes(b"{}")
    assert place.verify(place.receipt, "--beside", folder) == 15
    assert place.verify(place.receipt, "--beside", tmp_path / "absent") == 2
