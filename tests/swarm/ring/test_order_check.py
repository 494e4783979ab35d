"""Orders are taken once, whatever happens to the process in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm.base.errors import BusyError, PeerError
from swarm.ring.order_check import OrderBook

ORDER, RUN, OTHER = "ab" * 32, b"r" * 16, b"s" * 16


@pytest.mark.parametrize(("epoch", "run"), [(1, RUN), (0, RUN), (1, OTHER), (2, OTHER)])
def test_an_epoch_is_taken_once_and_never_in_another_session(tmp_path: Path, epoch: int, run: bytes) -> None:
    book = OrderBook(tmp_path / "orders")
    book.take(ORDER, 1, RUN)
    for known in (book, OrderBook(tmp_path / "orders")):
        with pytest.raises(PeerError, match="has not taken"):
            known.take(ORDER, epoch, run)
    book.take(ORDER, 2, RUN)
    with pytest.raises(PeerError):
        OrderBook(tmp_path / "orders").take(ORDER, 2, RUN)


def test_a_torn_line_costs_neither_those_before_nor_those_after(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    OrderBook(path).take(ORDER, 0, RUN)
    with path.open("ab") as file:
        file.write(b"cd" * 20)
    OrderBook(path).take("ef" * 32, 0, RUN)
    book = OrderBook(path)
    for order in (ORDER, "ef" * 32):
        with pytest.raises(PeerError):
            book.take(order, 0, RUN)


def test_of_an_order_two_objects_stay_and_of_the_oldest_none() -> None:
    book = OrderBook(most=10)
    for number in range(100):
        book.take(f"{number:064x}", number, RUN)
    assert len(book._taken) == 10
    assert {type(held) for entry in book._taken.items() for held in entry} == {bytes}


def test_a_line_that_is_no_order_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    path.write_text(f"{ORDER} {1 << 80} {RUN.hex()}\n{ORDER} -1 {RUN.hex()}\n{'ef' * 32} 3 {RUN.hex()}\n")
    book = OrderBook(path)
    book.take(ORDER, 0, RUN)
    with pytest.raises(PeerError):
        book.take("ef" * 32, 3, RUN)


def test_the_file_is_bounded(tmp_path: Path) -> None:
    book = OrderBook(tmp_path / "orders", most=10)
    for number in range(100):
        book.take(f"{number:064x}", 0, RUN)
    assert len((tmp_path / "orders").read_bytes().splitlines()) <= 20
    again = OrderBook(tmp_path / "orders", most=10)
    for number in range(90, 100):
        with pytest.raises(PeerError):
            again.take(f"{number:064x}", 0, RUN)


def test_what_cannot_be_noted_is_not_taken(tmp_path: Path) -> None:
    book = OrderBook(tmp_path / "missing" / "orders")
    with pytest.raises(BusyError):
        book.take(ORDER, 0, RUN)
