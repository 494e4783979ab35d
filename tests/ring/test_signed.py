"""Receipts of a live ring: replay of the run, and audits that tell lying stages from honest ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from receipts.check.verdict import Level, Verdict
from receipts.check.verify import Options, verify
from receipts.format.document import secrets_untrusted
from receipts.format.errors import Refusal
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from swarm.model.own_kernels import OwnKernels
from swarm.model.quant.native import library
from swarm.model.sampler import Sampling
from swarm.recheck.auditor import RingAuditor
from swarm.recheck.recompute import groups
from swarm.recheck.replayer import ModelReplayer
from swarm.ring.witness_service import WitnessRequest
from swarm.run import receipt
from swarm.run.api import CommittedTokens, Finished, RunRequest
from tests.ring.routes import Decodes

from .signed import LIES, SignedRing, Watching, signed_ring

SPANS = [(0, 3), (3, 6), (6, 8)]
PROMPT = tuple(range(7, 40))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random Llama of 8 layers, wide enough for errors of rows to be as even as real models' are."""
    return saved_model(tmp_path_factory, layers=8, seed=3)


def saved_model(folders: pytest.TempPathFactory, layers: int, seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=311, hidden_size=256, intermediate_size=512, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
        initializer_range=0.06,
    )  # fmt: skip
    folder = folders.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(folder)
    return open_model(str(folder), ModelStore(folders.mktemp("models")))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Another model of the same width, with fewer layers."""
    return saved_model(tmp_path_factory, layers=4, seed=8)


async def receipt_of(
    ring: SignedRing,
    tokens: int,
    speculation: Any = "plain",
    prompt: tuple[int, ...] = PROMPT,
    sampling: Sampling | None = None,
) -> Path:
    request = RunRequest(prompt, tokens, sampling or Sampling(), speculation=speculation)
    return Path(str((await ring.generate(request)).receipt))


async def audited(
    ring: SignedRing, path: Path, checkpoint: Checkpoint, count: int = 90, auditor: RingAuditor | None = None
) -> Verdict:
    options = Options(
        required=Level.SAMPLED,
        model=checkpoint.manifest,
        auditor=auditor or ring.auditor(checkpoint),
        audit_rows=count,
        secrets=secrets_untrusted(path.with_suffix(".secrets.json").read_bytes()),
    )
    return await asyncio.to_thread(verify, path.read_bytes(), options)


def replaying(
    path: Path, checkpoint: Checkpoint, group_bytes: int | None = None, own: OwnKernels | None = None
) -> Options:
    secrets = secrets_untrusted(path.with_suffix(".secrets.json").read_bytes())
    replayer = ModelReplayer(checkpoint, Decodes(words), group_bytes, own=own)
    return Options(model=checkpoint.manifest, replayer=replayer, secrets=secrets)


def words(ids: Sequence[int]) -> str:
    return "".join(f" {i}" for i in ids)


class Stretched(Block):
    """Two layers of another model that claim to be the layers asked for."""

    def __init__(self, block: Block) -> None:
        self.__dict__.update(block.__dict__)
        self.inner = block

    def view(self, first: int, last: int) -> Block:
        return self


@pytest.mark.parametrize(("threads", "speculation"), [(1, "plain"), (2, "stream")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
async def test_honest_stages_pass(
    wide: Checkpoint, tmp_path: Path, dtype: torch.dtype, threads: int, speculation: Any
) -> None:
    async with signed_ring(wide, SPANS, tmp_path, dtype=dtype, threads=threads) as ring:
        verdict = await audited(ring, await receipt_of(ring, 24, speculation), wide)
        assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), verdict.line


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("part", range(5))
async def test_honest_stages_pass_five_hundred_times(wide: Checkpoint, tmp_path: Path, part: int) -> None:
    """A hundred a part, the stages' types and threads in turn."""
    chooser = random.Random(17 + part)
    for number in range(25):
        for dtype in (torch.float32, torch.bfloat16):
            for threads in (1, 2):
                folder = tmp_path / f"{number}-{threads}-{dtype}"
                prompt = tuple(chooser.randrange(300) for _ in range(chooser.randint(4, 60)))
                async with signed_ring(wide, SPANS, folder, dtype=dtype, threads=threads) as ring:
                    path = await receipt_of(ring, 32, chooser.choice(["plain", "chain", "tree", "stream"]), prompt)
                    verdict = await audited(ring, path, wide)
                assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), (number, verdict.line)


LIARS = [(torch.bfloat16, stage, lie) for stage in range(3) for lie in LIES] + [(torch.float32, 0, "int8")]


@pytest.mark.parametrize(("dtype", "stage", "lie"), LIARS, ids=str)
async def test_a_lying_stage_is_caught(
    wide: Checkpoint, tmp_path: Path, dtype: torch.dtype, stage: int, lie: str
) -> None:
    async with signed_ring(wide, SPANS, tmp_path, dtype=dtype, twists={stage: LIES[lie]}) as ring:
        verdict = await audited(ring, await receipt_of(ring, 160 if stage == 2 else 24), wide)
        assert verdict.refusal is Refusal.AUDIT, verdict.line
        assert ring.nodes[stage].identity.id.hex()[:8] in verdict.line


async def test_a_stage_of_a_smaller_model_is_caught(wide: Checkpoint, tmp_path: Path, small: Checkpoint) -> None:
    """The whole middle of the model is answered by two layers of another one."""
    block = load_block(small, 1, 3, torch.device("cpu"), torch.float32, exact=False)  # its layers keep their numbers
    block.first, block.last, block.n_layers = SPANS[1][0], SPANS[1][1], 8
    async with signed_ring(wide, SPANS, tmp_path, blocks={1: Stretched(block)}) as ring:
        verdict = await audited(ring, await receipt_of(ring, 16), wide)
        assert verdict.refusal is Refusal.AUDIT and ring.nodes[1].identity.id.hex()[:8] in verdict.line


async def test_groups_of_layers_give_the_same_verdict(wide: Checkpoint, tmp_path: Path) -> None:
    """A model that does not fit into memory is recomputed a layer at a time."""
    assert groups(wide.manifest, 0, 8, 1) == [(layer, layer + 1) for layer in range(8)]
    assert groups(wide.manifest, 0, 8, 1 << 40) == [(0, 8)]
    async with signed_ring(wide, SPANS, tmp_path, dtype=torch.bfloat16) as ring:
        path = await receipt_of(ring, 12, "stream")
        verdict = await audited(ring, path, wide, auditor=ring.auditor(wide, 1))
        assert verdict.exit_code == 0, verdict.line
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide, 1))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line


SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.8, seed=5),
    "filtered": Sampling(temperature=1.3, top_p=0.9, top_k=40, min_p=0.01, seed=2**62 + 1),
    "penalised": Sampling(temperature=0.7, repetition_penalty=1.3, seed=9),
}


@pytest.mark.parametrize("speculation", ["plain", "tree"])
@pytest.mark.parametrize("name", SAMPLINGS)
async def test_replay_and_audit_know_every_sampler(
    wide: Checkpoint, tmp_path: Path, name: str, speculation: Any
) -> None:
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        path = await receipt_of(ring, 20, speculation, sampling=SAMPLINGS[name])
        verdict = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert (verdict.exit_code, verdict.level) == (0, Level.REPLAYED), verdict.line
        assert "20/20 tokens equal" in str(verdict.claims)
        assert (await audited(ring, path, wide)).exit_code == 0


async def test_replay_of_bfloat16_is_exact_by_its_kernels_and_allows_near_ties_in_float32(
    wide: Checkpoint, tmp_path: Path
) -> None:
    ours = OwnKernels("", torch.bfloat16, "expanded", 1, row_invariant=True) if library() is not None else None

    async def replayed(path: Path, own: OwnKernels | None) -> Verdict:
        return await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide, own=own))

    async with signed_ring(wide, SPANS, tmp_path, dtype=torch.bfloat16) as ring:
        for speculation in ("plain", "tree"):
            path = await receipt_of(ring, 40, speculation)
            verdict = await replayed(path, None)
            assert verdict.refusal is None and verdict.exit_code in (0, 4), verdict.line
            if ours is not None:
                verdict = await replayed(path, ours)
                assert (verdict.exit_code, verdict.level) == (0, Level.REPLAYED), verdict.line
                assert "EXACT: 40/40 tokens equal" in str(verdict.claims)
    async with signed_ring(wide, SPANS, tmp_path / "lie", dtype=torch.bfloat16, twists={1: LIES["int4"]}) as ring:
        path = await receipt_of(ring, 40)
        for own in (None, ours):
            verdict = await replayed(path, own)
            assert verdict.refusal is Refusal.REPLAY, verdict.line


async def test_an_invented_run_has_good_signatures_and_no_more(
    wide: Checkpoint, tmp_path: Path, small: Checkpoint
) -> None:
    """Everybody colludes: fresh keys, layers that compute nothing."""
    async with signed_ring(wide, SPANS, tmp_path, twists=dict.fromkeys(range(3), LIES["identity"])) as ring:
        path = await receipt_of(ring, 8)
        assert verify(path.read_bytes()).level is Level.SIGNED
        verdict = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert verdict.refusal is Refusal.REPLAY
        assert verify(path.read_bytes(), Options(trust=frozenset({"ab" * 32}))).refusal is Refusal.UNTRUSTED
        other = verify(path.read_bytes(), Options(model=small.manifest))
        assert other.refusal is Refusal.MANIFEST


async def test_a_recovered_run_names_both_nodes(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, [*SPANS, SPANS[1]], tmp_path, dtype=torch.bfloat16) as ring:
        result = await ring.generate(RunRequest(PROMPT, max_tokens=40, speculation="plain"), drop_after=12)
        assert result.recoveries == 1 and result.new_tokens == 40
        data = Path(str(result.receipt)).read_bytes()
        verdict = verify(data)
        assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
        served = {(entry.node, entry.outcome) for entry in verdict.run.close.served}
        lost, newcomer = (ring.nodes[index].identity.id.hex() for index in (1, 3))
        assert {(lost, "lost"), (newcomer, "ended")} <= served


async def test_a_run_that_came_to_nothing_has_a_receipt(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        request = RunRequest(PROMPT, max_tokens=200, speculation="plain", patience_s=0.5)
        result = await ring.generate(request, drop_after=5)
        assert result.finish_reason == "swarm_incomplete" and result.receipt is not None
        verdict = verify(Path(result.receipt).read_bytes())
        assert (verdict.exit_code, verdict.level) == (0, Level.SIGNED), verdict.line
        assert verdict.run is not None and verdict.run.close.outcome == "failed"
        assert {entry.node for entry in verdict.run.close.served} == {n.identity.id.hex() for n in ring.nodes}
        assert verdict.run.close.new_tokens == len(result.token_ids) > 0


async def test_a_receipt_that_cannot_be_written_costs_no_answer(wide: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        request = RunRequest(PROMPT, max_tokens=5, speculation="plain")
        whole = await ring.generate(request)
        async with aclosing(ring.desk.run(request, tmp_path / "file" / "r.json")) as events:
            result = next(event.result for event in [event async for event in events] if isinstance(event, Finished))
    assert result.token_ids == whole.token_ids and result.finish_reason == "length" and result.receipt is None
    assert "cannot write the receipt" in (result.receipt_unwritten or "") and whole.receipt_unwritten is None


async def test_a_run_whose_reader_left_has_a_receipt(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        async with aclosing(ring.desk.run(RunRequest(PROMPT, max_tokens=300), tmp_path / "left.json")) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    break
        verdict = verify((tmp_path / "left.json").read_bytes())
        assert (verdict.exit_code, verdict.level) == (0, Level.SIGNED), verdict.line
        assert verdict.run is not None and verdict.run.close.outcome == "cancelled"
        assert {entry.outcome for entry in verdict.run.close.served} == {"ended"}
        assert not any(node.server.sessions for node in ring.nodes if node.server is not None)


async def test_a_witness_that_fails_does_not_cost_the_others(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, SPANS, tmp_path, witnesses=3) as ring:
        gone = ring.witnesses[1]
        path, seen = tmp_path / "run.json", 0
        async with aclosing(ring.desk.run(RunRequest(PROMPT, max_tokens=24, speculation="plain"), path)) as events:
            async for event in events:
                seen += isinstance(event, CommittedTokens)
                if seen == 12:
                    await gone.board.aclose()
        verdict = verify(path.read_bytes())
        assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
        closed = {found.key for found in verdict.run.witnesses if found.closed is not None}
        assert closed == {ring.witnesses[index].identity.id.hex() for index in (0, 2)}
        trust = frozenset({verdict.run.requester, *verdict.run.nodes(), *closed})
        assert verify(path.read_bytes(), Options(trust=trust)).level is Level.WITNESSED


async def test_a_witness_whose_word_comes_after_it_became_a_stage_is_left_out(
    wide: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovered, ask = asyncio.Event(), Watching.ask_witness

    async def late(self: Watching, node: bytes, asked: WitnessRequest) -> bytes:
        await recovered.wait()
        return await ask(self, node, asked)

    monkeypatch.setattr(Watching, "ask_witness", late)
    monkeypatch.setattr(receipt, "WITNESS_TIMEOUT_S", 30.0)
    async with signed_ring(wide, [*SPANS, SPANS[1]], tmp_path) as ring:
        spare = ring.nodes[-1]
        ring.witnesses.append(spare)
        path, begun = tmp_path / "run.json", False
        async with aclosing(ring.desk.run(RunRequest(PROMPT, max_tokens=24, speculation="plain"), path)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens) and not begun:
                    begun = True
                    await ring.nodes[1].kill()
                elif isinstance(event, CommittedTokens) and ring.desk.links:
                    (link,) = ring.desk.links.values()
                    if spare.identity.id in {stage.node for stage in link.opening.stages}:
                        recovered.set()
        assert recovered.is_set()
        verdict = verify(path.read_bytes())
        assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
        assert spare.identity.id.hex() in verdict.run.nodes() and not verdict.run.witnesses


async def test_operators_disclose_for_themselves(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, SPANS, tmp_path, disclose=[0, 1]) as ring:
        verdict = verify((await receipt_of(ring, 8)).read_bytes())
        assert verdict.exit_code == 0, verdict.line
        shown = [(secret.name, secret.value) for secret in verdict.disclosed.plain.values()]
        uuids = {value for name, value in shown if name == "uuid"}
        assert uuids == {"GPU-node-0", "GPU-node-1"}
        addresses = [value for name, value in shown if name == "address"]
        # Head and second stage see each other; the requester sees the head, which let it say so.
        assert len(addresses) == 3
        host, port = ring.nodes[0].address
        assert f"{host}:{port}" in addresses
    async with signed_ring(wide, SPANS, tmp_path / "quiet") as ring:
        assert not verify((await receipt_of(ring, 8)).read_bytes()).disclosed.plain
