"""Stages that are overloaded, hang, accuse others or answer nonsense: right text, or a clear error."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.base.errors import RunError, UsageError
from swarm.net.channel.message import Message
from swarm.net.channel.wire import decode_tensor_untrusted, encode_tensor
from swarm.ring.frame import DOWN, Answer, Drafts, Frame, encode_answer, encode_frame, parse_answer_untrusted
from swarm.ring.opening import OpenRun, RingSignal, encode_word
from swarm.run import run_loop as drive
from swarm.run.api import Finished, Recovering, RunRequest, RunResult
from swarm.run.ring_client import RingLink
from swarm.run.speculation import MOST_FRAMES, MOST_ROWS, Speculation
from swarm.stage import compute
from swarm.stage.admission import StageLimits
from swarm.stage.sender import Sender
from swarm.stage.session import StageSession
from tests.ring.conftest import VOCAB, Stage, TestRing, reference

BLOCKS = [(0, 2), (2, 4), (4, 6)]
SPARE = [*BLOCKS, *BLOCKS]


async def lived(ring: TestRing, request: RunRequest) -> tuple[RunResult, list[Recovering]]:
    """A run to its end, and how often its ring broke."""
    news: list[Recovering] = []
    async with aclosing(ring.desk.run(request)) as events:
        async for event in events:
            if isinstance(event, Recovering):
                news.append(event)
            if isinstance(event, Finished):
                return event.result, news
    raise AssertionError("no result")


def names(ring: TestRing, result: RunResult) -> list[int]:
    """Numbers of the stages that ended the run."""
    ids = [stage.plan.node.hex() for stage in ring.stages]
    return [ids.index(info.node) for info in result.ring]


# Overload


@pytest.mark.parametrize("limits", [StageLimits(queue_rows=64), StageLimits(queue_frames=2)])
async def test_a_stage_over_its_bound_costs_time_and_never_a_token(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, limits: StageLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Speculation.__init__

    def hasty(self: Speculation, *given: Any, **named: Any) -> None:
        whole(self, *given, **{**named, "chunk": 24})

    monkeypatch.setattr(Speculation, "__init__", hasty)
    rng = random.Random(5)
    prompts = [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(150, 400))) for _ in range(8)]
    async with make_ring(BLOCKS, limits=limits) as ring:
        found = await asyncio.gather(*(lived(ring, RunRequest(p, max_tokens=16)) for p in prompts))
        for prompt, (result, _) in zip(prompts, found, strict=True):
            assert list(result.token_ids) == reference(tiny_model, prompt, 16)
    assert any(news for _, news in found), "nothing was over its bound"
    assert all("rows wait here" in event.reason for _, news in found for event in news)


async def test_a_next_stage_that_reads_nothing_costs_bounded_memory(
    make_ring: Callable[..., Any], frames_taken: list[tuple[int, Frame]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks sends on and on, as no requester of ours does, and what is computed of it cannot leave."""

    async def stuck(self: Sender, *sent: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Sender, "give", stuck)
    async with make_ring(BLOCKS[:1] + [(2, 6)], StageLimits(queue_frames=16)) as ring:
        run = asyncio.create_task(lived(ring, RunRequest((1, 2, 3), max_tokens=4, speculation="plain")))
        head = ring.stages[0].server
        async with asyncio.timeout(30):
            while not frames_taken:  # noqa: ASYNC110 - frames have no event
                await asyncio.sleep(0.01)
        session, (_, frame) = next(iter(head.sessions.values())), frames_taken[0]
        for _ in range(200):
            if session.refused:
                break
            head._take_frame(session.upstream, encode_frame(replace(frame, seq=session.last_seq + 1)))
            async with asyncio.timeout(30):
                while session.queue or not session.idle.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0)
        assert session.refused and 8 <= session.outbox.qsize() <= 16
        run.cancel()
        await asyncio.wait([run])


def test_no_prompt_has_more_in_flight_than_every_stage_lets_wait() -> None:
    assert MOST_ROWS <= StageLimits().queue_rows // 2 and MOST_FRAMES <= StageLimits().queue_frames // 2


# Stages that hang, and tails that repeat themselves


def hanging(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes frames and computes none; its connection lives and it answers pings."""
    monkeypatch.setattr(stage.server, "_take_frame", lambda peer, message: None)


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_stage_that_hangs_is_found_by_leaving_suspects_out_in_turn(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, victim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "LEAST_DEADLINE_S", 0.5)
    monkeypatch.setattr(drive, "DEADLINE_PASSES", 0.5)
    async with make_ring(SPARE) as ring, asyncio.timeout(90):
        hanging(ring.stages[victim], monkeypatch)
        result, news = await lived(ring, RunRequest((1, 2, 3), max_tokens=12, patience_s=60.0))
        assert victim not in names(ring, result)
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 12)
    assert len(news) >= 3 - victim


async def test_a_ring_without_a_way_round_the_one_that_hangs_ends_the_run_with_the_reason(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "LEAST_DEADLINE_S", 0.2)
    monkeypatch.setattr(drive, "DEADLINE_PASSES", 0.1)
    async with make_ring(BLOCKS) as ring, asyncio.timeout(60):
        hanging(ring.stages[1], monkeypatch)
        with pytest.raises(RunError, match="no progress for . s while its ring broke . times.*no answer for 0.4 s"):
            await lived(ring, RunRequest((1, 2, 3), max_tokens=12, patience_s=1.0))


# Malformed answers: the loss of the tail, and of nobody else


def repeated(answer: Answer) -> Answer:
    return replace(answer, seq=max(0, answer.seq - 1))


def ahead(answer: Answer) -> Answer:
    return replace(answer, seq=answer.seq + 40)


def short(answer: Answer) -> Answer:
    none: Any = np.zeros(0, np.int32)
    return Answer(answer.run, answer.epoch, answer.seq, none, none, none, none, none.reshape(0, 0), none.reshape(0, 0))


def unknown(answer: Answer) -> Answer:
    return replace(answer, token=answer.token + np.int32(VOCAB))


def broken(answer: Answer) -> Message:
    message = encode_answer(answer)
    return replace(message, body=bytes(message.body)[:-1])


@pytest.mark.parametrize("twist", [repeated, ahead, short, unknown, broken])
async def test_one_malformed_answer_is_the_loss_of_the_tail_and_of_nobody_else(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, twist: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_ring(SPARE) as ring, asyncio.timeout(60):
        sender, left = ring.stages[2].server._sender, [6]
        give = sender.give

        async def twisted(session: StageSession, peer: Any, seq: int, message: Message) -> None:
            left[0] -= 1
            if left[0] == 0 and message.kind != DOWN:
                lie = twist(parse_answer_untrusted(message))
                message = encode_answer(lie) if isinstance(lie, Answer) else lie
            await give(session, peer, seq, message)

        monkeypatch.setattr(sender, "give", twisted)
        result, news = await lived(ring, RunRequest((1, 2, 3), max_tokens=30, speculation="chain"))
        assert names(ring, result) == [0, 1, 5]
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)
    assert len(news) == 1


def as_int8(answer: Answer) -> Answer:
    assert answer.hidden is not None
    return replace(answer, hidden=encode_tensor(decode_tensor_untrusted(*answer.hidden, torch.float32), "int8"))


def with_drafts(answer: Answer) -> Answer:
    return replace(answer, drafts=Drafts(0, np.ones((1, 1), np.int32), np.ones((1, 1), np.float32)))


def with_tokens(answer: Answer) -> Answer:
    one: Any = np.zeros(1, np.int32)
    told = replace(answer, row=one.astype(np.uint32), token=one, margin=one.astype(np.float32))
    return replace(told, logprob=told.margin, top_token=one[:, None][:, :0], top_logprob=told.margin[:, None][:, :0])


@pytest.mark.parametrize("twist", [as_int8, with_drafts, with_tokens])
async def test_rows_that_come_home_to_private_layers_come_alone_and_as_agreed(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, twist: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_ring([(0, 6), (0, 6)]) as ring, asyncio.timeout(60):
        left = [6]
        for stage in ring.stages:
            give = stage.server._sender.give

            async def twisted(*about: Any, give: Any = give) -> None:
                *where, message = about
                left[0] -= message.kind != DOWN
                if left[0] == 0 and message.kind != DOWN:
                    message = encode_answer(twist(parse_answer_untrusted(message)))
                await give(*where, message)

            monkeypatch.setattr(stage.server._sender, "give", twisted)
        result, news = await lived(ring, RunRequest((1, 2, 3), max_tokens=12, speculation="plain", private=1))
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 12)
    assert len(news) == 1


# Accusations


async def test_who_accuses_repeatedly_is_left_out_with_the_accused(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head says of every tail that it computes nonsense."""
    async with make_ring([*SPARE, (4, 6)]) as ring, asyncio.timeout(60):
        liar = ring.stages[0].server
        give = Sender.give

        async def accusing(self: Sender, session: StageSession, peer: Any, seq: int, message: Message) -> None:
            await give(self, session, peer, seq, message)
            if self is liar._sender and seq % 8 == 5:
                word = RingSignal("lost", session.run, session.opening.epoch, stage=2, reason="it computes nonsense")
                await session.upstream.send(encode_word(word))

        monkeypatch.setattr(Sender, "give", accusing)
        result, news = await lived(ring, RunRequest((1, 2, 3), max_tokens=40, speculation="plain", draft="none"))
        assert 0 not in names(ring, result) and 3 in names(ring, result)
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 40)
    assert len(news) == 2


async def test_an_answer_to_the_ring_before_is_no_fault_of_the_new_tail(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old tail may answer between the loss and the opening of the next ring."""
    async with make_ring(SPARE) as ring, asyncio.timeout(60):
        sender, left = ring.stages[2].server._sender, [6]
        give, turn_to = sender.give, RingLink.turn_to
        late: list[Answer] = []

        async def broken_once(session: StageSession, peer: Any, seq: int, message: Message) -> None:
            left[0] -= 1
            if left[0] == 0 and message.kind != DOWN:
                late.append(parse_answer_untrusted(message))
                message = broken(late[0])
            await give(session, peer, seq, message)

        def turned(self: RingLink, opening: OpenRun) -> None:
            for answer in late:
                self.take_answer(answer, encode_answer(answer))
            turn_to(self, opening)
            for answer in late:
                self.take_answer(answer, encode_answer(answer))

        monkeypatch.setattr(sender, "give", broken_once)
        monkeypatch.setattr(RingLink, "turn_to", turned)
        result, news = await lived(ring, RunRequest((1, 2, 3), max_tokens=30, speculation="chain"))
        assert names(ring, result) == [0, 1, 5] and late
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)
    assert len(news) == 1


async def test_a_stage_cannot_have_one_before_it_left_out(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_ring(SPARE) as ring, asyncio.timeout(60):
        liar, give = ring.stages[1].server, Sender.give

        async def accusing(self: Sender, session: StageSession, peer: Any, seq: int, message: Message) -> None:
            await give(self, session, peer, seq, message)
            if self is liar._sender and seq == 5:
                word = RingSignal("lost", session.run, session.opening.epoch, stage=0, reason="it computes nonsense")
                await session.upstream.send(encode_word(word))

        monkeypatch.setattr(Sender, "give", accusing)
        result, _ = await lived(ring, RunRequest((1, 2, 3), max_tokens=20, speculation="plain", draft="none"))
        assert names(ring, result) == [0, 4, 2]
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 20)


# Tokens that the model does not know


async def test_a_token_id_beyond_the_embedding_is_said_to_be_that(make_ring: Callable[..., Any]) -> None:
    async with make_ring(BLOCKS) as ring:
        with pytest.raises(UsageError, match=f"expected token ids of 0 to {VOCAB - 1}, .* found {VOCAB} in the prompt"):
            await lived(ring, RunRequest((1, VOCAB), max_tokens=2))
        ring.desk.target = replace(ring.desk.target, vocab_size=None)
        with pytest.raises(RunError, match=f"expected token ids from 0 to {VOCAB - 1}, found {VOCAB}"):
            await lived(ring, RunRequest((1, VOCAB), max_tokens=2, patience_s=0.5))


# Hidden rows that are not finite


def poisoning(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes on one value that is no number, in its second frame and in all that follow."""
    give, sender = stage.server._sender.give, stage.server._sender

    async def poisoned(session: StageSession, peer: Any, seq: int, message: Message) -> None:
        if message.header.get("do") == "frame" and seq:
            body = bytearray(message.body)
            body[-4:] = np.array([np.nan], "<f4").tobytes()
            message = replace(message, body=bytes(body))
        await give(session, peer, seq, message)

    monkeypatch.setattr(sender, "give", poisoned)


async def test_rows_that_are_not_finite_end_the_epoch_by_name_and_never_become_a_token(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_ring(SPARE) as ring, asyncio.timeout(90):
        poisoning(ring.stages[1], monkeypatch)
        result, news = await lived(ring, RunRequest((1, 2, 3), max_tokens=12, patience_s=60.0))
        assert 1 not in names(ring, result)
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 12)
    assert "expected finite hidden rows from the stage before" in news[0].reason


async def test_rows_too_large_for_the_wire_are_the_word_of_the_one_that_has_them(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "fits", lambda output, wire: False)
    async with make_ring(BLOCKS) as ring, asyncio.timeout(60):
        with pytest.raises(RunError, match="beyond the wire format float32"):
            await lived(ring, RunRequest((1, 2, 3), max_tokens=4, patience_s=1.0))
