"""What a drafter's ranks take from the text before: as the tail's own penalties over the whole of it."""

from __future__ import annotations

import random

import pytest
import torch

from draft.ranker import Ranker
from swarm.model.sampler import Sampling, shaped
from swarm.model.shaping import Shaping

VOCAB = 40
SHAPED = {
    "repetition": Sampling(repetition_penalty=1.3),
    "counted": Sampling(shaping=Shaping(presence=1.0, frequency=1.5, bias=((4, 3.0),))),
    "both": Sampling(repetition_penalty=0.8, shaping=Shaping(frequency=0.5)),
}


@pytest.mark.parametrize("tokens", [None, torch.arange(1, VOCAB, 3)], ids=["all", "some"])
@pytest.mark.parametrize("name", SHAPED)
def test_penalties_are_those_of_the_tail_at_every_length(name: str, tokens: torch.Tensor | None) -> None:
    """Also for two runs after one another, and where several tokens become certain between two ranks."""
    rng, sampling = random.Random(3), SHAPED[name]
    ranker = Ranker(VOCAB if tokens is None else len(tokens), tokens, torch.device("cpu"))
    for prompt in ([rng.randrange(VOCAB) for _ in range(12)], [5]):
        ranker.begin(prompt, sampling)
        answer: list[int] = []
        for grown in (0, 1, 3, 0, 2):
            for token in [rng.randrange(VOCAB) for _ in range(grown)]:
                ranker.saw(token)
                answer.append(token)
            paths = [[], [7], [7, 7, answer[0] if answer else 2]]
            logits = torch.randn(len(paths), VOCAB)
            texts = [[*answer, *path] for path in paths]
            expected = shaped(logits, [0] * len(paths), sampling, [[*prompt, *text] for text in texts], None, texts)
            if tokens is not None:
                logits, expected = logits[:, tokens], expected[:, tokens]
            for row, children in enumerate(ranker.rank(logits, [0] * len(paths), paths)):
                values, best = torch.softmax(expected[row], -1).topk(len(children))
                assert [child.token for child in children] == (best if tokens is None else tokens[best]).tolist()
                assert [child.confidence for child in children] == pytest.approx(values.tolist())
