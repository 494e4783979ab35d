"""What is kept of a soak survives its process, and sums up over parts."""

from __future__ import annotations

from pathlib import Path

from tests.soak.churn import Churn
from tests.soak.footprint import Footprint, slope
from tests.soak.ledger import Ledger, report, seconds, summed


def part(ledger: Ledger, answered: int, refused: dict[str, int], grown: int) -> None:
    """Ten minutes of a node that takes `grown` bytes more a minute."""
    ledger.note("begin", commit="abc", cores=2)
    churn = Churn()
    churn.ring.asked = answered + sum(refused.values())
    churn.ring.answered = answered
    churn.ring.refused.update(refused)
    churn.events["kill"] += 3
    for minute in range(1, 11):
        taken = 100_000_000 + grown * minute
        churn.sizes.append((60.0 * minute, {"node": Footprint(taken, taken, 0, 12, 4)}))
        churn.disk = {"node": 1_000_000 * minute}
        ledger.look(60.0 * minute, churn, 1.5)


def test_parts_add_up_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "soak.jsonl")
    part(ledger, 40, {"CoverageError": 2}, 500_000)
    with ledger.path.open("a") as file:
        file.write('{"kind": "look", "s": 66')
    with ledger.path.open("a") as file:
        file.write("\n")
    part(ledger, 2, {}, 0)
    ledger.note("fault", text="something odd")
    ledger.note("end", why="ran to its end")
    parts = ledger.parts()
    assert [part.why for part in parts] == ["cut off", "ran to its end"]
    assert seconds(parts) == 1200.0
    total = summed(parts, "ring")
    assert (total.asked, total.answered, dict(total.refused)) == (44, 42, {"CoverageError": 2})
    text = report(parts)
    assert "20 min 0 s in 2 parts" in text and "| a requester | 44 | 42 | 0 | 0 | 2 CoverageError | 0 | 0 | 0 |" in text
    assert "+0.50, +0.50, +0.00" in text and "1440 MB" in text and "- something odd" in text


def test_a_slope_is_that_of_the_nearest_line() -> None:
    assert slope([(0.0, 1.0), (60.0, 3.0), (120.0, 5.0)]) == 2.0
    assert slope([(5.0, 1.0)]) == slope([]) == 0.0
