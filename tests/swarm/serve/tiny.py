"""A requester without a ring: a real, tiny, random transformer in this process, drawn from by the real sampler."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from swarm.base.errors import SwarmError
from swarm.base.swarm_state import SwarmState
from swarm.model.compiling import Compiler
from swarm.model.constraint import Constraint
from swarm.model.held import Vocabulary
from swarm.model.sampler import pick
from swarm.model.text.spelling import special_tokens
from swarm.model.text.template import PLAIN_CHAT, TemplateOptions, TemplateRenderer
from swarm.run.api import (
    CommittedTokens,
    Finished,
    PromptRead,
    Recovering,
    RingOpened,
    RunEvent,
    RunRequest,
    RunResult,
    StageInfo,
)
from swarm.run.detokenizer import TextStream

TEMPLATE = (
    "{%- if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 256
TEMPLATES = TemplateRenderer()
EXAMPLE_RECEIPT = Path(__file__).parents[3] / "docs/receipts/three-cpu-stages.json"
RING = (StageInfo("aa" * 32, "cpu", (0, 1), 0.4, rtt_ms=20.0), StageInfo("bb" * 32, "cpu", (1, 2), 0.5, rtt_ms=30.0))


def tiny_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Every byte is a token, so any text goes in and out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(vocab: int) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class TinyManifest:
    model: str = "tiny-random"
    digest: str = "0f" * 32
    n_layers: int = 2
    vocab_size: int = 258
    context: int = CONTEXT

    def layer_bytes(self, layer: int) -> int:
        return 10_400_000


@dataclass
class TinyBackend:
    """Fits `swarm.serve.backend.Backend`.

    `gate`: every token waits for it, so a test decides when an answer goes on. `fail`: error raised after
    `fail_after` tokens. `script`: text said instead of the model's. `flood`:
    so many further characters per token. `open_runs`: runs that hold the ring now. `told`: its invite, and whether that
    is a secret. `example`: the receipt that every run leaves.
    """

    receipts_dir: Path
    manifest: TinyManifest = field(default_factory=TinyManifest)
    tokenizer: Any = field(default_factory=tiny_tokenizer)
    state: SwarmState = SwarmState("")
    flights: dict[str, int] = field(default_factory=dict)
    script: str | None = None
    fail: SwarmError | None = None
    fail_after: int = 0
    recover_after: int | None = None
    incomplete: bool = False
    on_token: Callable[[int], None] = lambda count: None
    gate: asyncio.Event | None = None
    flood: int = 0
    ring: tuple[StageInfo, ...] = RING
    open_runs: int = 0
    most_open: int = 0
    cancelled: int = 0
    requests: list[RunRequest] = field(default_factory=list)
    told: tuple[str, bool] | None = None
    example: Path = EXAMPLE_RECEIPT

    def __post_init__(self) -> None:
        self._model = tiny_model(self.manifest.vocab_size)
        ends = [int(self.tokenizer.eos_token_id)]
        self.compiler = Compiler(lambda: Vocabulary(self.tokenizer, self.manifest.vocab_size, ends))
        self._thread = ThreadPoolExecutor(1)
        self._changed = asyncio.Condition()
        self._ids = itertools.count(1)

    async def compile(self, constraint: Constraint, of: str | None = "") -> None:
        await self.compiler.held_soon(self.compiler.ready(constraint, 0), of)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: TemplateOptions = PLAIN_CHAT,
    ) -> Sequence[int]:
        return TEMPLATES.encode(self.tokenizer, messages, options)

    def encode(self, text: str) -> Sequence[int]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def invite(self) -> tuple[str, bool] | None:
        return self.told

    def view(self) -> SwarmState:
        return self.state

    def rows_in_flight(self) -> Mapping[str, int]:
        return self.flights

    async def until(self, runs: int) -> None:
        """Wait until so many runs hold the ring."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self.open_runs == runs)

    async def _count(self, change: int) -> None:
        async with self._changed:
            self.open_runs += change
            self.most_open = max(self.most_open, self.open_runs)
            self._changed.notify_all()

    async def run(self, request: RunRequest) -> AsyncIterator[RunEvent]:
        self.requests.append(request)
        await self._count(1)
        try:
            if self.fail is not None and not self.fail_after:
                raise self.fail
            run_id = f"run{next(self._ids)}"
            yield RingOpened(run_id, self.ring)
            async for event in self._answer(request, run_id):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            await self._count(-1)

    async def _answer(self, request: RunRequest, run_id: str) -> AsyncIterator[RunEvent]:
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        special = special_tokens(self.tokenizer)
        stream = TextStream(
            self,
            request.stop,
            before=(*request.prompt_ids, *request.given),
            special=special,
            keep_stop=request.keep_stop,
            stop_tokens=frozenset(request.stop_token_ids),
        )
        draw = self._scripted() if self.script is not None else self._drawn(request)
        tokens: list[int] = []
        finish = "length"
        for read in sorted({0, len(request.prompt_ids) // 2, len(request.prompt_ids)}):
            yield PromptRead(read, 0, len(request.prompt_ids), time.monotonic() - started)
        while len(tokens) < request.max_tokens:
            if self.fail is not None and len(tokens) == self.fail_after:
                raise self.fail
            if self.recover_after == len(tokens):
                yield Recovering(self.ring[-1].node, "no answer for 2 s")
            if self.gate is not None:
                await self.gate.wait()
            drawn = await loop.run_in_executor(self._thread, next, draw, None)
            ends = drawn is not None and drawn.token == self.tokenizer.eos_token_id and not request.ignore_eos
            if drawn is None or (ends and len(tokens) >= len(request.given)):
                finish = "stop"
                break
            tokens.append(drawn.token)
            logprobs = ((drawn.logprob, drawn.top),) if request.sampling.logprobs else ()
            text = "" if len(tokens) <= len(request.given) else stream.feed(drawn.token) + "x" * self.flood
            yield CommittedTokens((drawn.token,), text, (len(tokens) % 2 == 0,), logprobs, stream.take_pieces())
            self.on_token(len(tokens))
            if stream.stopped:
                finish = "stop"
                break
        rest = stream.finish()
        if rest:
            yield CommittedTokens((), rest, ())
        seconds = max(time.monotonic() - started, 1e-6)
        if self.incomplete:
            finish = "swarm_incomplete"
        yield Finished(self._result(request, run_id, stream.text, tokens, seconds, finish))

    def _drawn(self, request: RunRequest) -> Any:
        """Tokens of the model, one at a time, with a cache."""
        cache = DynamicCache(config=self._model.config)
        ids = list(request.prompt_ids)
        fresh, held_to = ids, None
        if (constraint := request.sampling.constraint) is not None:
            held_to = self.compiler.held(self.compiler.ready(constraint, len(ids)))
        shaping, sampling = request.sampling.shaping, request.sampling
        if shaping is not None:
            ends = (int(self.tokenizer.eos_token_id),) if shaping.least else ()
            sampling = replace(sampling, shaping=replace(shaping, after=len(ids), ends=ends))
        while True:
            with torch.inference_mode():  # not across the yield: several answers take turns in one thread
                logits = self._model(input_ids=torch.tensor([fresh]), past_key_values=cache).logits[:, -1].float()
                allowed = None if held_to is None else [held_to.after(ids[len(request.prompt_ids) :])]
                answer = ids[len(request.prompt_ids) :]
                picked = pick(logits, [len(ids)], sampling, [ids], allowed, [answer])[0]
            yield picked
            ids.append(picked.token)
            fresh = [picked.token]

    def _scripted(self) -> Any:
        @dataclass(frozen=True)
        class Said:
            token: int
            logprob: float = -0.1
            top: tuple[tuple[int, float], ...] = ()

        yield from (Said(token) for token in self.encode(self.script or ""))

    def _result(
        self, request: RunRequest, run_id: str, text: str, tokens: list[int], seconds: float, finish: Any
    ) -> RunResult:
        receipt = None
        if request.receipt:
            path = self.receipts_dir / f"{run_id}.json"
            path.write_bytes(self.example.read_bytes())  # of another run, but a receipt
            receipt = str(path)
        return RunResult(
            text=text,
            token_ids=tuple(tokens),
            prompt_token_ids=request.prompt_ids,
            new_tokens=len(tokens),
            seconds=seconds,
            ttft_seconds=seconds / max(1, len(tokens)),
            tokens_per_second=len(tokens) / seconds,
            passes=len(tokens),
            tokens_per_pass=1.0,
            rows_sent=len(tokens),
            acceptance=0.5,
            drafter="none",
            speculation=request.speculation,
            ring=self.ring,
            finish_reason=finish,
            receipt=receipt,
            run_id=run_id,
            pass_ms=2.0,
            drafted_rows=2,
            depth_sent=(2,),
            depth_accepted=(1,),
            parts_ms={"queue": 0.5, "compute": 1.0, "network": 0.5},
        )
