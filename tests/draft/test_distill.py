from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from draft import prompts
from draft.asset import MadeCheckpoint, default_drafter, load_drafter, read_made, same_vocabulary
from draft.base import ROOT, DraftStep
from draft.chat import Chat, Script, TurnChange
from draft.collect import play
from draft.corpus import Sample, batches, load_samples, recorded, save_samples
from draft.distill import Distiller, DistillSettings, distill
from draft.kinds import HELD_OUT, TRAIN
from draft.loss import sparse_kl
from draft.packed import round_rows
from draft.pick import pick_head, pick_layers
from draft.prompts import Prompt
from draft.student import Student, shortened
from draft.train import Feed, Trainer, endless, evaluate
from draft.trainer_state import load_state, save_state
from swarm.base.errors import UsageError
from swarm.base.events import Event, Notice
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling
from tests.draft.tiny import save_tiny, tiny_tokenizer

END = frozenset({1})
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target")
    save_tiny(path, layers=5, vocab=258)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def target(folder: Path) -> Checkpoint:
    return open_model(str(folder), ModelStore(folder / "store"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


def scripts(count: int, greedy: bool = True) -> list[Script]:
    warm = 0.0 if greedy else 1.0
    return [Script((0, 5 + i, 9), warm, -1, (), "chat", "test", greedy) for i in range(count)]


# Prompts


def test_every_kind_fills_and_no_held_out_kind_is_trained_on() -> None:
    rng = random.Random(1)
    names = Counter(kind for kind, _, _ in TRAIN + HELD_OUT)
    assert max(names.values()) == 1 and len(TRAIN) > 250
    assert not {t for _, _, t in TRAIN} & {t for _, _, t in HELD_OUT}
    for _, register, template in TRAIN + HELD_OUT:
        text = prompts.fill(template, rng)
        assert register in ("chat", "prose", "code", "edit", "raw")
        assert text and not prompts.SLOT.search(text)


def test_drawn_prompts_are_varied_and_never_held_out() -> None:
    rng = random.Random(2)
    drawn = [prompts.draw(rng) for _ in range(2000)]
    assert {p.source for p in drawn} == {"self", "task", "raw"}
    assert len({p.user for p in drawn if p.source == "task"}) > 600
    assert not {p.kind for p in drawn} & {kind for kind, _, _ in HELD_OUT}
    assert {prompts.held_out(rng).kind for _ in range(400)} == {kind for kind, _, _ in HELD_OUT}


def test_a_chat_script_is_what_the_template_renders() -> None:
    tokenizer = tiny_tokenizer()
    prompt = Prompt("task", "k", "chat", "Be brief.", "Hi", ("More",))
    script = Chat(tokenizer, END).script(prompt, random.Random(0))
    answer = [7, 8, 1]  # as the target would say it, end of turn included
    whole = [*script.prompt, *answer, *script.turns[0].tokens]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    said = tokenizer.decode(answer[:-1])
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "More"}]
    assert tokenizer.decode(whole) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_self_talk_goes_on_in_the_users_name_and_a_model_without_template_gets_raw_text() -> None:
    prompt = Prompt("self", "self", "chat", "Be brief.", "Tell me")
    script = Chat(tiny_tokenizer(), END).script(prompt, random.Random(0))
    assert tiny_tokenizer().decode(script.prompt).endswith("<s>user\nTell me")
    raw = Chat(tiny_tokenizer(None), END).script(prompt, random.Random(0))
    assert tiny_tokenizer().decode(raw.prompt).endswith("Tell me") and raw.turns == ()


# Collecting


def test_greedy_play_is_the_models_own_continuation_whatever_is_beside_it(model: LlamaForCausalLM) -> None:
    uneven = [Script((*range(2, 2 + n), 9), 0.0, -1, (), "chat", "test", True) for n in (1, 4, 9)]
    for sample, script in zip(play(model, uneven, END, 12, 0), uneven, strict=True):
        ids = torch.tensor([script.prompt])
        for step in range(len(sample.ids)):
            logits = model(ids).logits[0, -1]
            assert torch.allclose(sample.logits[step].float(), logits.topk(64).values, atol=0.02)
            ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        assert ids[0].tolist() == sample.tokens.tolist()


def test_turns_are_forced_after_an_end_and_the_last_end_closes(model: LlamaForCausalLM) -> None:
    ends = frozenset(range(0, 258, 3))
    script = Script((4, 5), 1.0, -1, (TurnChange((20, 21, 22), 1.0),), "chat", "test", False)
    sample = play(model, [script], ends, 60, 3)[0]
    said = sample.tokens.tolist()[2:]
    first = next(i for i, token in enumerate(said) if token in ends)
    assert said[first + 1 : first + 4] == [20, 21, 22]
    second = next(i for i, token in enumerate(said[first + 4 :]) if token in ends)
    assert len(said) == first + 4 + second + 1
    assert len(sample.ids) == len(said)


def test_samples_survive_the_disk_and_batches_hold_each_once(model: LlamaForCausalLM, tmp_path: Path) -> None:
    samples = play(model, scripts(6, greedy=False), END, 10, 1)
    save_samples(tmp_path / "a.safetensors", samples)
    again = load_samples(tmp_path / "a.safetensors")
    for a, b in zip(samples, again, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.ids, b.ids) and torch.equal(a.logits, b.logits)
        assert (a.start, a.register, a.kind, a.greedy) == (b.start, b.register, b.kind, b.greedy)
    seen = list(batches(again, 30, random.Random(0)))
    assert sum(len(b.rows) for b in seen) == recorded(samples)
    for batch in seen:
        said = batch.inputs.flatten()[batch.rows]
        row = 0
        for sample in batch.samples:
            expected = sample.tokens[sample.start : -1].long()
            assert torch.equal(said[row : row + len(expected)], expected)
            row += len(expected)


# Picking


def test_a_layer_that_does_nothing_is_left_out_first(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    for idle in (1, 3):
        model.model.layers[idle].self_attn.o_proj.weight.zero_()
        model.model.layers[idle].mlp.down_proj.weight.zero_()
    samples = play(model, scripts(4), END, 12, 1)
    assert pick_layers(model, samples, 3) == (0, 2, 4)
    ids = torch.tensor([[3, 4, 5]])
    short = shortened(model, (0, 2, 4))(ids, use_cache=False)
    assert torch.allclose(short.logits, model(ids).logits, atol=1e-5)
    with pytest.raises(UsageError, match="1 to 5"):
        pick_layers(model, samples, 6)


def test_the_head_keeps_what_the_target_says(model: LlamaForCausalLM) -> None:
    samples = play(model, scripts(4), END, 12, 1)
    head = pick_head(samples, 258, 120).tolist()
    assert len(head) == 120 and head == sorted(set(head))
    assert {t for s in samples for t in s.ids[:, 0].tolist()} <= set(head)
    assert pick_head(samples, 258, 0).tolist() == list(range(258))


# Training


def test_the_loss_and_its_gradient_are_those_of_dense_kl() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(5, 8, requires_grad=True)
    head, ids = torch.randn(20, 8), torch.stack([torch.randperm(20)[:4] for _ in range(5)])
    target = torch.softmax(torch.randn(5, 4), -1)
    sparse_kl(hidden, head, ids, target).backward()
    found = hidden.grad
    hidden.grad = None
    dense = torch.zeros(5, 20).scatter(1, ids, target)
    said = torch.log_softmax(hidden @ head.T, -1)
    loss = torch.nn.functional.kl_div(said, dense, reduction="batchmean")
    loss.backward()
    assert torch.allclose(found, hidden.grad, atol=1e-5)
    assert float(sparse_kl(hidden, head, ids, target).detach()) == pytest.approx(float(loss.detach()), abs=1e-5)


def fresh(model: LlamaForCausalLM, samples: list[Sample]) -> Student:
    return Student(model, (0, 2, 4), pick_head(samples, 258, 200))


def test_training_brings_the_student_closer_and_leaves_the_target_alone(model: LlamaForCausalLM) -> None:
    before = {name: value.clone() for name, value in model.named_parameters()}
    samples = play(model, scripts(24, greedy=False), END, 16, 1)
    student = fresh(model, samples)
    untrained = evaluate(student, samples)["all"]
    trainer, feed = Trainer(student, rate=3e-3, warmup=5), endless(lambda: [samples], 400, random.Random(0))
    losses = [trainer.step(next(feed), i / 60) for i in range(60)]
    score = evaluate(student, samples)["all"]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert score.first > untrained.first + 0.15 and score.positions == recorded(samples)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_a_feed_goes_on_where_another_was_and_holds_each_sample_once(model: LlamaForCausalLM, tmp_path: Path) -> None:
    for i in range(8):
        save_samples(tmp_path / f"{i}.safetensors", play(model, scripts(2, greedy=False), END, 6 + i, i))
    files = sorted(tmp_path.iterdir())
    whole = Feed(files, 40, seed=3)
    said = [(batch.inputs.tolist(), whole.place) for batch, _ in zip(whole, range(40), strict=False)]
    first = [inputs for inputs, (done, _) in said if done == 0]
    assert sum(len(inputs) for inputs in first) == 16 and said[-1][1][0] > 1  # two of each file, and more passes follow
    assert [inputs for inputs, (done, _) in said if done == 1] != first
    for at in (3, len(first), len(first) + 2):
        again = Feed(files, 40, seed=3, place=said[at - 1][1])
        assert [batch.inputs.tolist() for batch, _ in zip(again, range(5), strict=False)] == [
            inputs for inputs, _ in said[at : at + 5]
        ]


@pytest.mark.parametrize("four_bits", [False, True])
def test_a_trainer_goes_on_from_disk_as_if_never_stopped(
    model: LlamaForCausalLM, tmp_path: Path, four_bits: bool
) -> None:
    samples = play(model, scripts(8, greedy=False), END, 10, 1)
    feed = list(batches(samples, 60, random.Random(0)))[:2]
    through, stopped = (Trainer(fresh(model, samples), four_bits=four_bits) for _ in range(2))
    for trainer in (through, stopped):
        trainer.step(feed[0], 0.1)
    save_state(tmp_path / "s.safetensors", stopped)
    resumed = Trainer(fresh(model, samples), four_bits=four_bits)
    load_state(tmp_path / "s.safetensors", resumed)
    assert (resumed.steps, resumed.positions) == (through.steps, through.positions)
    assert resumed.step(feed[1], 0.2) == through.step(feed[1], 0.2)
    for (name, a), (_, b) in zip(through.student.trained(), resumed.student.trained(), strict=True):
        assert torch.allclose(a, b, atol=1e-7), name


def test_training_in_four_bits_moves_weights_from_place_to_place(model: LlamaForCausalLM) -> None:
    samples = play(model, scripts(24, greedy=True), END, 24, 1)
    student = fresh(model, samples)
    before = evaluate(student, samples)["all"]
    trainer, feed = Trainer(student, 3e-3, 5, four_bits=True), endless(lambda: [samples], 400, random.Random(0))
    first = {name: grid.codes(dict(student.trained())[name].data) for name, grid in trainer.grids.items()}
    losses = [trainer.step(next(feed), i / 60) for i in range(60)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert evaluate(student, samples)["all"].first > before.first + 0.1
    weights = dict(student.trained())
    for name, grid in trainer.grids.items():
        assert torch.equal(grid.nearest(weights[name].data), weights[name].data), name
    moved = [
        float((grid.codes(weights[name].data) != first[name]).float().mean()) for name, grid in trainer.grids.items()
    ]
    assert 0.01 < sum(moved) / len(moved)
    assert all("down_proj" not in name for name in trainer.grids) and trainer.grids  # 48 columns there


# The whole way


class Clock:
    """Each look at it costs a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 1.0
        return self.seconds

    wall = now


SMALL = DistillSettings(
    layers=3, minutes=0.4, batch=4, new_tokens=16, step_tokens=900, head=200, held_out=8, collect_share=0.25
)


def make(folder: Path, target: Checkpoint, out: Path, settings: DistillSettings, events: list[Event]) -> Distiller:
    return Distiller(target, tiny_tokenizer(), END, out, settings, CPU, events.append, Clock())


@pytest.mark.parametrize("dtype", ["int8", "q4_1"])
def test_a_made_drafter_loads_and_ranks_as_its_stored_weights_do(
    folder: Path, target: Checkpoint, tmp_path: Path, dtype: str
) -> None:
    events: list[Event] = []
    scores = make(folder, target, tmp_path / "d", replace(SMALL, dtype=dtype), events).run("a test")
    assert set(scores) == ({"float32", "int8"} if dtype == "int8" else {"q4_1"})
    assert scores[dtype]["all"].positions > 0
    card = (tmp_path / "d" / "README.md").read_text()
    assert "a test" in card and f"{scores[dtype]['all'].first:.3f}" in card
    store = ModelStore(folder / "store")
    drafter = load_drafter(str(tmp_path / "d"), target, tiny_tokenizer(), store, CPU, dtype=torch.float32)
    assert drafter is not None and drafter.block.n_layers == 3 and drafter.block.vocab_size == 200
    made = read_made(tmp_path / "d")
    assert made is not None
    checkpoint = MadeCheckpoint(made, target)
    plain = LlamaForCausalLM(checkpoint.config).eval()
    state = {n: checkpoint.read(n, torch.float32) for n in checkpoint.manifest.entries}
    plain.load_state_dict(state, strict=False)
    plain.tie_weights()
    tokens = checkpoint.head_tokens()
    prompt = [4, 9, 30, 2]
    drafter.begin(prompt, Sampling())
    (level,) = drafter.step(DraftStep(expand=(ROOT,), width=1))[0].levels
    assert level[0].token == int(tokens[plain(torch.tensor([prompt])).logits[0, -1][tokens].argmax()])


def test_a_stopped_run_goes_on_and_a_foreign_folder_is_refused(
    folder: Path, target: Checkpoint, tmp_path: Path
) -> None:
    events: list[Event] = []
    first = make(folder, target, tmp_path, SMALL, events)
    first.run("first")
    files = sorted((tmp_path / "work" / "train").iterdir())
    longer = DistillSettings(**{**SMALL.__dict__, "minutes": 0.6})
    second = make(folder, target, tmp_path, longer, events)
    second.run("second")
    assert second.state.layers == first.state.layers and second.state.trained_s > first.state.trained_s
    assert set(files) <= set((tmp_path / "work" / "train").iterdir())
    assert any("going on" in e.text for e in events if isinstance(e, Notice))
    other = tmp_path / "other"
    save_tiny(other, layers=5, seed=9, vocab=258)
    with pytest.raises(UsageError, match="another target"):
        make(folder, open_model(str(other), ModelStore(other / "store")), tmp_path, SMALL, events)


def test_the_command_names_itself_on_the_card(folder: Path, tmp_path: Path) -> None:
    settings = DistillSettings(
        layers=2, minutes=0.02, batch=2, new_tokens=8, step_tokens=900, head=0, held_out=2, dtype="bfloat16"
    )
    scores = distill(str(folder), tmp_path, settings, ModelStore(folder / "store"), CPU)
    assert set(scores) == {"float32"}
    assert f"swarm draft distill --target {folder} --layers 2" in (tmp_path / "README.md").read_text()


def test_int8_rows_are_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(7, 33) * torch.logspace(-3, 2, 7)[:, None]
    packed, scale = round_rows(weight)
    assert packed.dtype == torch.int8
    assert bool(((packed.float() * scale[:, None] - weight).abs() <= scale[:, None] * 0.5001).all())
    zero, scale = round_rows(torch.zeros(2, 3))
    assert torch.equal(zero.float() * scale[:, None], torch.zeros(2, 3))


# Refusals


def test_one_token_more_is_another_vocabulary() -> None:
    ours, theirs = tiny_tokenizer(), tiny_tokenizer()
    assert same_vocabulary(theirs, ours)
    theirs.add_tokens(["<new>"])
    assert not same_vocabulary(theirs, ours)


def test_a_missing_folder_and_a_drafter_for_another_shape_are_refused(
    folder: Path, target: Checkpoint, tmp_path: Path
) -> None:
    store = ModelStore(folder / "store")
    with pytest.raises(UsageError, match="no draft model at"):
        load_drafter(str(tmp_path / "nothing"), target, tiny_tokenizer(), store, CPU)
    config = {**target.manifest.config, "hidden_size": 64}
    told = '{"target": "other", "target_digest": "00", "layers": [0]}'
    body = str(config).replace("'", '"').replace("True", "true").replace("False", "false").replace("None", "null")
    (tmp_path / "config.json").write_text(body[:-1] + f', "drafter": {told}}}')
    with pytest.raises(UsageError, match="was made for other"):
        load_drafter(str(tmp_path), target, tiny_tokenizer(), store, CPU)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="distil it again"):
        load_drafter(str(tmp_path), target, tiny_tokenizer(), store, CPU)


@pytest.mark.parametrize("layers", [0, 6, (0, 5), (1, 1), (2, 0), ()])
def test_layers_that_the_target_lacks_are_refused_before_any_work(
    folder: Path, tmp_path: Path, layers: int | tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match="--layers must be 1 to 5"):
        distill(str(folder), tmp_path / "d", DistillSettings(layers=layers), ModelStore(folder / "store"), CPU)
    assert not (tmp_path / "d").exists()


def test_a_model_that_ships_no_drafter_gets_none(folder: Path, target: Checkpoint) -> None:
    assert default_drafter(target.manifest) is None
    assert load_drafter(None, target, tiny_tokenizer(), ModelStore(folder / "store"), CPU) is None
