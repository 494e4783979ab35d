"""`swarm.Client`: a requester for programs without an event loop. The same names as `AsyncClient`, each waits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

from swarm.base.blocking import Background, Blocking
from swarm.client.async_client import AnswerStream, AsyncClient, ClientOptions, Model, Schema

if TYPE_CHECKING:
    from receipts.check.verdict import Verdict
    from swarm.client.options import AnswerOptions, Prompt
    from swarm.run.api import RunResult


class AnswerPieces:
    """The text of one answer as it comes: `for piece in stream`. After the last piece `result` is there.

    Leaving it early (`close`, or `with`) ends the run.
    """

    def __init__(self, background: Background, stream: AnswerStream) -> None:
        self._stream = stream
        self._pieces = background.iterate(self._read)

    @property
    def result(self) -> RunResult:
        """Tokens, speed, ring and receipt. Raises UsageError before the end of the stream."""
        return self._stream.result

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the run, where it is under way."""
        self._pieces.close()

    async def _read(self) -> AsyncGenerator[str]:
        async with self._stream as stream:
            async for piece in stream:
                yield piece


class Client(Blocking[AsyncClient]):
    """A guest of a swarm: `with Client(invite) as client: client.generate("Hello")`. Usable from several threads.

    Arguments, options and errors are those of `AsyncClient`.
    """

    def __init__(self, swarm: str | Path | None = None, **options: Unpack[ClientOptions]) -> None:
        super().__init__(AsyncClient(swarm, **options))

    @property
    def model(self) -> str:
        """Name of the model that the swarm serves."""
        return self._inner.model

    def generate(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> RunResult:
        """One whole answer. Raises Unfinished where the ring was lost on the way."""
        return self._background.call(self._inner.generate(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[AnswerOptions]) -> AnswerPieces:
        """The text of one answer as it comes."""
        return AnswerPieces(self._background, self._inner.stream(prompt, **options))

    @overload
    def structured(self, prompt: Prompt, schema: type[Model], **options: Unpack[AnswerOptions]) -> Model: ...

    @overload
    def structured(self, prompt: Prompt, schema: Schema, **options: Unpack[AnswerOptions]) -> Any: ...

    def structured(self, prompt: Prompt, schema: type[Model] | Schema, **options: Unpack[AnswerOptions]) -> Model | Any:
        """An answer held to a JSON Schema (a dict), parsed; for a pydantic model class, an object of that class."""
        return self._background.call(self._inner.structured(prompt, schema, **options))

    def verify(
        self, receipt: RunResult | Path | str | bytes, *, replay: bool = False, audit: int = 0, model: str | None = None
    ) -> Verdict:
        """What a receipt proves: of a result of this client, a file, or bytes."""
        return self._background.call(self._inner.verify(receipt, replay=replay, audit=audit, model=model))
