"""Grammars as llama.cpp writes them: what they allow, and what is refused by name."""

from __future__ import annotations

import pytest

from swarm.base.errors import UsageError
from swarm.model.gbnf import MAX_RULES
from swarm.model.grammars import from_grammar
from tests.swarm.model.lettered import allows, lettered


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (r'root ::= "\u0041\u00e9\U0001F600" "\\u0041"', ["Aé😀\\u0041"], ["A"]),
        (r"root ::= [\u0041-\u0043]+", ["AC"], ["D", ""]),
        ("root ::= [\\u0400-\\u04ff]", ["ж"], ["a"]),
        ("root ::= .", ["\n", "x", "é"], ["", "xx"]),
        ('root ::= "."', ["."], ["x"]),
        ("root ::= [.]", ["."], ["x"]),
        ("root ::= [a&&b~~]+", ["a&b~"], ["c"]),
        ("root ::= [^&]", ["a", "\n"], ["&"]),
        ("root ::= [a-c]{,2}", ["", "ab"], ["abc"]),
        ('root ::= [a-c]{2} [0-9]{1,} ","?', ["ab12", "cc3,"], ["a1", "ab"]),
        ('root ::= ("a" |\n "b"){2} # [ " \\u\n', ["ab"], ["a"]),
        ('root ::= a-b "x"*\na-b ::= "{,"\n', ["{,", "{,xx"], ["x"]),
        ('# start: x\nroot ::= "start: y" | "::="', ["start: y", "::="], ["x"]),
        ("start: /[0-9]{2}/", ["12"], ["1"]),
        ('%llguidance {}\nstart: "a" | "b"', ["a", "b"], ["c"]),
    ],
)
def test_grammars_allow_what_llama_cpp_says(grammar: str, right: list[str], wrong: list[str]) -> None:
    held = lettered().held(from_grammar(grammar))
    assert [text for text in right if not allows(held, text)] == []
    assert [text for text in wrong if allows(held, text)] == []


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("root ::= " + "(" * 9000, "too deep"),
        ("root ::= a" + "\n" * 32_000, "'a' not found"),
        ("root ::= r0\n" + 'r0 ::= "a"\n' * MAX_RULES, "at most 600 rules"),
        (r'root ::= "\ud800"', "no character"),
        (r"root ::= [\U00110000]", "no character"),
        ("root ::= [--/]", r"\\x2d"),
        ('a ::= "x"', "root"),
        ("", "root"),
        ('root ::= "a', "end of input"),
        ('root ::= A | a\nA ::= "x"\na ::= "y"', "already exists"),
    ],
)
def test_what_is_no_grammar_is_refused_by_name(grammar: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        from_grammar(grammar)
