"""`swarm.AsyncClient`: a requester for programs that have an event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, Unpack, overload

from swarm.base.errors import RunError, UsageError
from swarm.base.events import Report, silent
from swarm.base.keywords import check_keywords
from swarm.base.members import MemberOptions, member_of

if TYPE_CHECKING:
    from receipts import Secret, Verdict
    from swarm.client.client import Requester
    from swarm.client.options import AnswerOptions, Prompt
    from swarm.model.constraint import Constraint
    from swarm.run.api import Draft, RunEvent, RunResult


class ClientOptions(MemberOptions, total=False):
    """Keywords of `Client` and `AsyncClient`; all may be left away.

    draft, draft_model     what drafts here, as for `swarm generate`
    exclude, only, owners  whom requests may pass through, as for `swarm generate`
    keep_receipts_s        after how long receipts in the state folder are removed (default: never)
    keep_for_learning      keep what is asked and answered for `swarm draft learn`, readably, in the state folder
    report                 is told of downloads and loading
    """

    draft: Draft
    draft_model: str
    exclude: Sequence[str]
    only: Sequence[str]
    owners: int
    keep_receipts_s: float
    keep_for_learning: bool
    report: Report


class Readable(Protocol):
    """What a pydantic model class has, as far as an answer needs it."""

    @classmethod
    def model_json_schema(cls) -> Mapping[str, object]: ...

    @classmethod
    def model_validate_json(cls, json_data: str, /) -> Self: ...


Model = TypeVar("Model", bound=Readable)
Schema = Mapping[str, object] | bool
"""A JSON Schema."""


class Unfinished(RunError):
    """The run ended early: a stage was lost and nobody could take over. `result`: what was committed until then."""

    def __init__(self, result: RunResult) -> None:
        super().__init__(
            f"the run ended after {result.new_tokens} tokens: a stage was lost and no replacement came; "
            "what was committed is in this error's `result`"
        )
        self.result = result


class AnswerStream:
    """The text of one answer as it comes: `async for piece in stream`. After the last piece `result` is there.

    Leaving it early (`aclose`, or `async with`) ends the run.
    """

    def __init__(self, events: AsyncGenerator[RunEvent]) -> None:
        self._events = events
        self._result: RunResult | None = None

    @property
    def result(self) -> RunResult:
        """Tokens, speed, ring and receipt. Raises UsageError before the end of the stream."""
        if self._result is None:
            raise UsageError("expected the stream to be read to its end first, found it under way")
        return self._result

    async def __aiter__(self) -> AsyncIterator[str]:
        from swarm.run.api import CommittedTokens, Finished

        async with aclosing(self._events) as events:
            async for event in events:
                match event:
                    case CommittedTokens(text=text) if text:
                        yield text
                    case Finished(result=result):
                        self._result = result
        if self.result.finish_reason == "swarm_incomplete":
            raise Unfinished(self.result)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the run, where it is under way."""
        await self._events.aclose()


class AsyncClient:
    """A guest of a swarm: `async with AsyncClient(invite) as client: await client.generate("Hello")`.

    `swarm`: an invite, or the Path of a file that holds one; None: the local network's swarm, then the one used last.
    Any number of answers may be under way at once. Every method raises SwarmError: what was expected, found, and to do.
    """

    def __init__(self, swarm: str | Path | None = None, **options: Unpack[ClientOptions]) -> None:
        check_keywords(options, ClientOptions)
        self._member = member_of(swarm, options)
        self._options = options
        self._report = options.get("report", silent)
        self._stack: AsyncExitStack | None = None
        self._requester: Requester | None = None

    async def __aenter__(self) -> Self:
        from swarm.mesh.invite import parse_invite_untrusted

        if self._member.invite is not None:
            parse_invite_untrusted(self._member.invite)  # before what takes seconds to import
        from swarm.client.client import Requester, RequesterConfig
        from swarm.client.route_policy import read_rules

        if self._stack is not None:
            raise UsageError("expected a client to be entered once, found it entered already; make another one")
        given = self._options
        config = RequesterConfig(
            self._member,
            given.get("draft", "auto"),
            given.get("draft_model"),
            keep_receipts_s=given.get("keep_receipts_s"),
            keep_for_learning=given.get("keep_for_learning", False),
            rules=read_rules(given.get("exclude", ()), given.get("only", ()), given.get("owners", 1)),
        )
        self._stack = AsyncExitStack()
        try:
            self._requester = await self._stack.enter_async_context(await Requester.connect(config, self._report))
        except BaseException:
            self._stack = None  # it may be tried again
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack, self._requester = self._stack, None, None
        if stack is not None:
            await stack.aclose()

    @property
    def model(self) -> str:
        """Name of the model that the swarm serves."""
        return self._inside.manifest.model

    async def generate(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> RunResult:
        """One whole answer. Raises Unfinished where the ring was lost on the way."""
        return await self._whole(prompt, options, None)

    def stream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> AnswerStream:
        """The text of one answer as it comes."""
        return AnswerStream(self._events(prompt, options, None))

    @overload
    async def structured(self, prompt: Prompt, schema: type[Model], **options: Unpack[AnswerOptions]) -> Model: ...

    @overload
    async def structured(self, prompt: Prompt, schema: Schema, **options: Unpack[AnswerOptions]) -> Any: ...

    async def structured(
        self, prompt: Prompt, schema: type[Model] | Schema, **options: Unpack[AnswerOptions]
    ) -> Model | Any:
        """An answer held to a JSON Schema (a dict), parsed; for a pydantic model class, an object of that class.

        Raises RunError when `max_tokens` ended it before the JSON was whole, and when a rule of the class that its
        schema does not tell refuses it.
        """
        from swarm.model.grammars import from_schema

        model = schema if isinstance(schema, type) and hasattr(schema, "model_json_schema") else None
        shape: object = model.model_json_schema() if model is not None else schema
        if not isinstance(shape, Mapping | bool):
            raise UsageError(f"expected a JSON Schema or a pydantic model class, found {type(schema).__name__}")
        result = await self._whole(prompt, options, from_schema(shape))
        if result.finish_reason != "stop":
            raise RunError(
                f"expected a whole JSON value, found one that ended after {result.new_tokens} tokens "
                f"({result.finish_reason}); give more with max_tokens"
            )
        if model is None:
            return json.loads(result.text)
        try:
            return model.model_validate_json(result.text)
        except ValueError as error:  # pydantic's own is one
            why = " ".join(str(error).split())[:300]
            raise RunError(
                f"expected an answer that {model.__name__} takes, found one that it refuses: {why}"
            ) from error

    async def verify(
        self, receipt: RunResult | Path | str | bytes, *, replay: bool = False, audit: int = 0, model: str | None = None
    ) -> Verdict:
        """What a receipt proves: of a result of this client, a file, or bytes.

        `replay` recomputes the run, `audit` has so many frames opened by the nodes of this swarm and recomputes those;
        both with `model`, your own copy (None: the one that this client has).
        """
        from receipts.check.verify import Options
        from swarm.recheck.check import CheckConfig, check

        where = self._inside.ref if model is None and (replay or audit) else model
        data, secrets = await asyncio.to_thread(_read, receipt)
        config = CheckConfig(
            self._member.models, Options(secrets=secrets), model=where, replay=replay, audit=audit, member=self._member
        )
        return await check(data, config, self._report)

    @property
    def _inside(self) -> Requester:
        if self._requester is None:
            raise UsageError("expected the client to be entered, found it closed; write `async with AsyncClient(...)`")
        return self._requester

    async def _whole(self, prompt: Prompt, options: AnswerOptions, held: Constraint | None) -> RunResult:
        stream = AnswerStream(self._events(prompt, options, held))
        async for _ in stream:
            pass
        return stream.result

    async def _events(
        self, prompt: Prompt, options: AnswerOptions, held: Constraint | None
    ) -> AsyncGenerator[RunEvent]:
        from swarm.client.options import AnswerOptions, conversation, receipt_path, request_of

        check_keywords(options, AnswerOptions)
        requester = self._inside
        if options.get("raw"):
            if not isinstance(prompt, str) or options.get("system") is not None:
                raise UsageError("expected one text and no system message with raw, found a conversation")
            ids = requester.encode(prompt)
        else:
            said = conversation(prompt, options.get("system"))
            ids = await asyncio.to_thread(requester.encode_chat, said)
        request = request_of(options, tuple(ids), held, self._options.get("draft", "auto"))
        async with aclosing(requester.run(request, receipt_path(options))) as events:
            async for event in events:
                yield event


def _read(receipt: RunResult | Path | str | bytes) -> tuple[bytes, tuple[Secret, ...]]:
    """The bytes of a receipt, and what the file beside it discloses. Raises UsageError where there are none."""
    from swarm.recheck.files import read_file, secrets_beside

    if isinstance(receipt, bytes):
        return receipt, ()
    if not isinstance(receipt, Path | str) and not hasattr(receipt, "receipt"):
        raise UsageError(f"expected a result, the path of a receipt or its bytes, found {receipt!r}")
    path = receipt if isinstance(receipt, Path | str) else receipt.receipt
    if path is None and not isinstance(receipt, Path | str) and receipt.receipt_unwritten:
        raise UsageError(f"expected a run that left a receipt, found one that could not: {receipt.receipt_unwritten}")
    if path is None:
        raise UsageError("expected a run that left a receipt, found one that was told to leave none")
    data = read_file(Path(path))
    return data, secrets_beside(Path(path), data)
