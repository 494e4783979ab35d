"""What the book of runs keeps of each."""

from __future__ import annotations

from swarm.run.api import CommittedTokens, Finished, RunResult
from swarm.serve.run_registry import KEPT, RunBook


def test_a_run_is_kept_without_its_every_token() -> None:
    book = RunBook()
    for number in range(2 * KEPT):
        note = book.begin("user", 5, 1000, 0.0)
        for step in range(1000 if number == 0 else 3):  # nobody looks at its rate meanwhile
            book.apply(note, CommittedTokens((1,), "a", (False,)), step * 1.0)
        assert len(note.recent) < 50
        assert note.tokens == (1000 if number == 0 else 3)
        book.end(note)
    assert len(book.past) == KEPT and not book.active
    assert not any(note.recent for note in book.past)


def test_neither_prompt_nor_text_of_a_run_is_kept() -> None:
    book = RunBook()
    note = book.begin("user", 30_000, 3, 0.0)
    said = RunResult(
        "abc",
        (7, 8, 9),
        tuple(range(30_000)),
        3,
        1.0,
        0.5,
        3.0,
        3,
        1.0,
        3,
        0.0,
        "none",
        "plain",
        (),
        "length",
        "r.json",
    )
    book.apply(note, Finished(said), 1.0)
    book.end(note)
    assert note.result is not None and note.tokens == 3 and note.result.receipt == "r.json"
    assert not (note.result.text or note.result.token_ids or note.result.prompt_token_ids)
