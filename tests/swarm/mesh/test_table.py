"""The table against a plain dictionary."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from swarm.mesh.table import BUCKETS, DIGEST_BYTES, Table
from tests.swarm.mesh.make import held

names = st.integers(0, 40).map(lambda n: bytes([n * 6, n % 3]) * 16)
steps = st.lists(
    st.tuples(st.sampled_from(["put", "put_all", "without"]), st.lists(st.tuples(names, st.integers(1, 4)), max_size=4))
)


@given(steps)
def test_it_is_a_dictionary_that_never_changes(story: list[tuple[str, list[tuple[bytes, int]]]]) -> None:
    table, model = Table(), {}
    for what, entries in story:
        many = [held(name, version) for name, version in entries]
        before = table, list(table)
        if what == "put":
            for one in many:
                table = table.put(one)
                model[one.key] = one
        elif what == "put_all":
            table = table.put_all(many)
            model.update({one.key: one for one in many})
        else:
            table = table.without(many)
            for one in many:
                model.pop(one.key, None)
        assert list(before[0]) == before[1]
    assert len(table) == len(model) and {h.key: h for h in table} == model
    assert all(table.get(k) == h for k, h in model.items()) and table.get(2**64 - 1) is None


@given(st.lists(st.tuples(names, st.integers(1, 4)), max_size=30), st.randoms(use_true_random=False))
def test_digests_are_equal_when_tables_are_and_name_the_bucket_when_not(
    entries: list[tuple[bytes, int]], draw: random.Random
) -> None:
    latest = {name: held(name, version) for name, version in entries}
    shuffled = draw.sample(list(latest.values()), len(latest))
    a, b = Table().put_all(latest.values()), Table()
    for one in shuffled:
        b = b.put(held(one.record.node, 99)).put(one)
    assert a.digest() == b.digest() and len(a.digest()) == DIGEST_BYTES and a.differing(b.digest()) == []
    for name, one in latest.items():
        assert a.differing(b.put(held(name, one.record.version + 1)).digest()) == [name[0]]
        assert a.differing(b.without([one]).digest()) == [name[0]]


def test_samples_reach_every_record_and_none_from_an_empty_table() -> None:
    draw = random.Random(1)
    assert Table().sample(draw) is None
    many = [held(bytes([n, 1]) * 16) for n in range(0, BUCKETS, 8)]
    table = Table().put_all(many)
    assert {table.sample(draw) for _ in range(2000)} == set(many)
    one = Table().put(many[0])
    assert one.sample(draw) == many[0]
