"""Short texts made up on the spot, for tasks that work on a given text: passages, code, logs, JSON, CSV."""

from __future__ import annotations

import random
from collections.abc import Callable

from draft.words import WORDS

Fill = Callable[[str, random.Random], str]

SENTENCES = (
    "{when} {person}, a {job}, {verb} {thing} in {place} {because}.",
    "{person} and {person} {verb} {thing} near {place}.",
    "{when}, {person} wrote a short report about {topic}.",
    "The {job} from {place} {verb} {thing}, {because}.",
    "{person} paid {small} euros for {product}.",
    "A talk about {topic} was held in {place}; {small} people came.",
    "{then}",
)

# In code, A, B and C stand for names and N for a number.
CODE = (
    """def add_A(B, C):
    A = []
    for x in B:
        if x > N:
            A.append(x * C)
    return A""",
    """def get_A(B):
    if not B:
        return None
    C = B[0]
    for x in B[1:]:
        C = max(C, x)
    return C""",
    """class BigA:
    def __init__(self, B):
        self.B = B
        self.C = N

    def update(self, C):
        self.C += C
        return self.B""",
    """function AOf(B) {
  let C = N;
  for (const x of B) {
    C += x.A;
  }
  return C;
}""",
    """#include <stdio.h>

int A(int B) {
    int C = 0;
    for (int i = 0; i < B; i++) {
        C += i * N;
    }
    return C;
}""",
    """with open('A.txt') as f:
    B = f.read().split()
C = {}
for w in B:
    C[w] = C.get(w, 0) + 1
print(C)""",
    """import json

def load_A(path):
    B = json.load(open(path))
    return [C for C in B if C['A'] >= N]""",
    "const A = (B, C) => B.filter(x => x.id !== C).map(x => x.A);",
    """while A < N:
    B = C + A
    A += 1
    print(A, B)""",
    """public int A(int[] B) {
    int C = N;
    for (int v : B) {
        if (v > C) { C = v; }
    }
    return C;
}""",
)


def passage(rng: random.Random, fill: Fill) -> str:
    """Three to six sentences about invented events."""
    sentences = [fill(rng.choice(SENTENCES), rng) for _ in range(rng.randint(2, 5))]
    return " ".join([*sentences, rng.choice(WORDS["then"])])


def code(rng: random.Random) -> str:
    """A few lines of Python, JavaScript, C or Java, with names and numbers of their own."""
    names = rng.sample(WORDS["noun"], 3)
    text = rng.choice(CODE).replace("BigA", names[0].title())
    out = []
    for i, char in enumerate(text):
        alone = not text[i - 1 : i].isalnum() or not text[i - 1 : i].isascii()
        after = text[i + 1 : i + 2]
        if char in "ABC" and alone and (not after.islower() or after == "O" or text[i + 1 : i + 3] == "Of"):
            out.append(names["ABC".index(char)])
        elif char == "N" and alone and not after.isalnum():
            out.append(rng.choice(WORDS["small"]))
        else:
            out.append(char)
    return "".join(out)


def log(rng: random.Random) -> str:
    """Three to six lines of a service's log."""
    hour, lines = rng.randint(0, 22), []
    events = ("request done in %d ms", "retry %d", "connection lost after %d s", "user %d logged in", "queue length %d")
    for i in range(rng.randint(3, 6)):
        level, service = rng.choice(("INFO", "INFO", "WARN", "ERROR")), rng.choice(WORDS["service"])
        when = f"2024-0{rng.randint(1, 9)}-1{i} {hour:02d}:{10 + i}:{rng.randint(10, 59)}"
        lines.append(f"{when} {level} {service}: {rng.choice(events) % rng.randint(1, 900)}")
    return "\n".join(lines)


def json_rows(rng: random.Random) -> str:
    """One to four objects with three keys."""
    a, b, c = rng.sample(WORDS["column"], 3)
    rows = []
    for _ in range(rng.randint(1, 4)):
        name, mood = rng.choice(WORDS["person"]), rng.choice(WORDS["feeling"])
        rows.append(f'{{"{a}": "{name}", "{b}": {rng.randint(1, 99)}, "{c}": "{mood}"}}')
    return "[" + ",\n ".join(rows) + "]"


def csv_rows(rng: random.Random) -> str:
    """A header and three to six people."""
    rows = []
    for _ in range(rng.randint(3, 6)):
        rows.append(f"{rng.choice(WORDS['person'])},{rng.choice(WORDS['job'])},{rng.randint(18, 80)}")
    return "\n".join(["name,job,age", *rows])
