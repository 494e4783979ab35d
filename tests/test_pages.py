"""Every command on every page is one that this version takes, and those of the guides are run as they stand there."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from swarm.base.errors import UsageError
from swarm.cli.main import build_parser, main
from swarm.cli.parser import Parser
from swarm.discovery.obstacles import Cause
from swarm.testbed.cluster import LocalSwarm, local_ring
from tests.swarm.cli.surface import commands as all_commands
from tests.swarm.serve.tiny import tiny_model, tiny_tokenizer
from tests.warm import warm

ROOT = Path(__file__).parents[1]
MADE = {"cli.md"}  # from the parser itself
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = re.compile(r"```(?:sh|bash|console)?\n(.*?)```|((?:^(?: {4}|\t)\S.*\n(?:^\s*\n)*)+)", re.S | re.M)
INLINE = re.compile(r"`(swarm [a-z][^`|.…]*)`")


def commands(text: str) -> Iterator[str]:
    """Command lines of a page's blocks, continued lines as one."""
    for block in BLOCKS.finditer(text):
        whole = re.sub(r"\s*\\\n\s*", " ", block[1] or block[2] or "")
        for line in whole.splitlines():
            line = re.sub(r"^\s*(?:\$ )?(?:\.venv/bin/)?", "", line)
            if re.match(r"swarm [a-z]+( |$)", line):
                yield line


def mentions(text: str) -> Iterator[str]:
    """Commands within sentences, which may leave away what an option takes."""
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for found in INLINE.finditer(prose):
        yield " ".join(found[1].split())


def words(line: str) -> list[str]:
    """What the shell would hand over: no comment, no redirection, no second command."""
    given = shlex.split(line, comments=True)
    for end in (">", "|", "&&", ";", "2>", "<"):
        given = given[: given.index(end)] if end in given else given
    return given[1:]


@pytest.fixture(scope="module")
def parser() -> Parser:
    return build_parser()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in MADE], ids=lambda page: page.stem)
def test_commands_on_pages_are_taken(
    parser: Parser, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.txt").write_text("ann:0123456789abcdef0123\n")  # files that are read with the command line
    refused = []
    for line in commands(page.read_text()):
        try:
            parser.parse_args(words(line))
        except (SystemExit, UsageError) as end:
            told = capsys.readouterr().err.strip().splitlines()
            refused.append(f"{line}: {told[-1] if told else end}")
    assert refused == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in MADE], ids=lambda page: page.stem)
def test_commands_in_sentences_have_their_options(parser: Parser, page: Path) -> None:
    known = {
        name: {option for action in command._actions for option in action.option_strings}
        for name, command in all_commands(parser)
    }
    lost = []
    for line in mentions(page.read_text()):
        given = words(line)
        name = next((f"swarm {' '.join(given[:n])}" for n in (2, 1) if f"swarm {' '.join(given[:n])}" in known), "")
        unknown = [
            word for word in given if word.startswith("--") and word.partition("=")[0] not in known.get(name, ())
        ]
        if not name or unknown:
            lost.append(f"{line}: {' '.join(unknown) or 'no such command'}")
    assert lost == []


def test_commands_are_found_where_they_stand() -> None:
    page = "a `swarm top` b\n\n    $ swarm plan --nodes a \\\n        b\n\n```\nswarm verify x  # why\n```\n"
    assert list(commands(page)) == ["swarm plan --nodes a b", "swarm verify x  # why"]
    assert list(mentions(page)) == ["swarm top"]
    assert words("swarm probe --name ada > ada.toml   # here") == ["probe", "--name", "ada"]


def test_the_site_has_every_page_and_no_other() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named: list[str] = []

    def walk(entry: object) -> None:
        if isinstance(entry, str):
            named.append(entry)
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            walk(inner)

    walk(site["nav"])
    assert sorted(named) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_links_between_pages_lead_somewhere() -> None:
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                lost.append(f"{page.relative_to(ROOT)}: {target}")
    assert lost == []


def test_the_readme_counts_model_classes_as_the_table_does() -> None:
    told = re.search(
        r"^(\d+) exact, (\d+) refused, (\d+) not built, 0 wrong", (ROOT / "docs/models.md").read_text(), re.M
    )
    assert told is not None
    exact, refused, unknown = told.groups()
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| **wanswarm** |"))
    whole = sum(map(int, told.groups()))
    assert f"{exact} of transformers' {whole} causal classes" in row
    assert f"[{refused} are refused by name]" in row and f"{unknown} could not be tried" in row


def guide_commands() -> list[str]:
    return list(commands((ROOT / "docs/guides/big-model.md").read_text()))


def test_the_guide_s_plan_prints_what_stands_there(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/guides/big-model.md").read_text()
    shown = re.search(r"\$ (swarm plan --nodes docs/fleets/three-pcs.toml)\n(.*?)```", text, re.S)
    assert shown is not None
    given = words(shown[1])
    given[given.index("--nodes") + 1] = str(ROOT / given[given.index("--nodes") + 1])
    assert main(given) == 0
    told = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for line in shown[2].splitlines():
        assert line == "..." or line.rstrip() in told, line


async def test_the_guide_s_friends_get_their_answer(tmp_path: Path) -> None:
    """From measuring to an answer, with the guide's own words: only names, folders and ports are put in."""
    folder = tmp_path / "tiny"
    whole = tiny_model(258)
    whole.config.eos_token_id = whole.generation_config.eos_token_id = tiny_tokenizer().eos_token_id
    whole.generation_config.do_sample, whole.generation_config.temperature = True, 0.7
    whole.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    lines = guide_commands()

    def put(line: str, **values: str) -> list[str]:
        for name, value in values.items():
            line = re.sub(rf"\b{name}\b", value, line)
        return words(line)

    here = ("--models", str(tmp_path / "models"))
    probing = next(line for line in lines if line.startswith("swarm probe"))
    assert await asyncio.to_thread(main, [*put(probing, REF=str(folder)), *here]) == 0
    joining = [line for line in lines if line.startswith("swarm join")]
    assert [put(line, REF=str(folder), INVITE="x")[0] for line in joining] == ["join", "join"]
    extra = ("--cpu", "--threads", "1", "--dtype", "float32", *here)
    async with local_ring(
        LocalSwarm(tmp_path, model=str(folder), arguments=extra, command=warm()), [(0, 1), (1, 2)]
    ) as ring:
        answered = await ring.generate("Why do leaves change colour?", "--max-tokens", "8", "--ignore-eos", *here)
        assert answered["new_tokens"] == 8
        order = json.loads(Path(answered["receipt"]).read_bytes())["readable"][0]
        assert order["predicate"]["sampler"]["temperature_ppm"] == 700_000  # as the model's makers recommend
        asking = next(line for line in lines if line.startswith("swarm status"))
        state = ("--state", str(tmp_path / "asker"), *here, "--no-lan")
        assert await asyncio.to_thread(main, [*put(asking, INVITE=ring.invite), *state]) == 0


COMPOSE = sorted((ROOT / "docs/deploy").glob("*compose.yaml"))


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.stem)
def test_compose_files_start_what_there_is(
    parser: Parser, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands parse, mounted files exist or are said to be made, layers cover the model once, scraped ports listen."""
    text = path.read_text()
    told = yaml.safe_load(text)
    services, volumes = told["services"], told["volumes"]
    monkeypatch.chdir(tmp_path)
    Path("keys.txt").write_text("ann:0123456789abcdef0123\n")
    layers: list[str] = []
    ports: dict[str, str] = {}
    for name, service in services.items():
        if not service["image"].startswith("wanswarm") or "entrypoint" in service:
            continue
        given = [
            word.replace("/run/keys.txt", "keys.txt").replace("/door/invite", "INVITE") for word in service["command"]
        ]
        arguments = parser.parse_args(given)
        if getattr(arguments, "layers", None):
            layers += [word.partition("=")[2] for word in given if word.startswith("--layers")]
        ports[name] = "8080" if given[0] == "serve" else str(arguments.listen[1])
        assert set(service.get("depends_on", ())) <= set(services)
    cuts = sorted(tuple(map(int, pair.split(":"))) for pair in layers)
    if cuts:
        assert [cuts[0][0], cuts[-1][1]] == [0, 30] and all(a[1] == b[0] for a, b in zip(cuts, cuts[1:], strict=False))
    for service in services.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            made = f"docs/deploy/{source[2:]}" in text.split("services:")[0]
            assert source in volumes or made or (path.parent / source).exists(), mount
    for target in re.findall(r'"([a-z]+:\d+)"', text.partition("scrape_configs")[2].partition("grafana-source")[0]):
        name, _, port = target.partition(":")
        assert ports[name] == port, target


STARTED = sorted((ROOT / "docs/deploy").glob("*.service"))


@pytest.mark.parametrize("path", STARTED, ids=lambda path: path.stem)
def test_services_start_what_there_is(
    parser: Parser, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is taken, its files and folders are those that the unit or its page has made, and what it answers a
    stop with fits the time that systemd leaves it."""
    unit = re.sub(r"\\\n\s*", "", path.read_text())
    monkeypatch.chdir(tmp_path)
    Path("keys").write_text("ann:0123456789abcdef0123\n")
    Path("invite").write_text("swarm1x\n")
    line = re.findall(r"^ExecStart=/opt/wanswarm/bin/(swarm .*)$", unit, re.M)
    assert len(line) == 1
    made = {f"/var/lib/{name}" for name in re.findall(r"^StateDirectory=(.*)$", unit, re.M)}
    made |= {f"/var/cache/{name}" for name in re.findall(r"^CacheDirectory=(.*)$", unit, re.M)}
    put = {word: Path(word).name for word in words(line[0]) if word.startswith("/etc/wanswarm/")}
    asked = parser.parse_args([put.get(word, word) for word in words(line[0])])
    for folder in (asked.state, asked.models):
        assert any(str(folder) == each or str(folder).startswith(f"{each}/") for each in made), folder
    told = path.read_text() + (ROOT / "docs/deploy/README.md").read_text()
    assert all(told.count(word) > 1 for word in put), put
    assert float(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)[0]) > asked.grace


def test_the_container_starts_what_there_is(parser: Parser) -> None:
    text = (ROOT / "Dockerfile").read_text()
    usual = re.findall(r"^CMD (\[.*\])$", text, re.M)
    assert len(usual) == 1 and 'ENTRYPOINT ["swarm"]' in text
    assert parser.parse_args(json.loads(usual[0])).listen == ("::", 7700)
    for given in re.findall(r"docker run .* wanswarm:\w+ (join .*?)(?:  .*)?$", text, re.M):
        parser.parse_args(given.split())


def test_every_cause_of_a_failed_join_is_on_the_page_with_the_test_that_makes_it_real() -> None:
    said = {
        cause for path in (ROOT / "swarm").rglob("*.py") for cause in re.findall(r"cause: ([a-z]+)", path.read_text())
    }
    known = said | set(get_args(Cause))
    page = (ROOT / "docs/guides/troubleshooting.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z]+)` \|.*\| (`tests/.*`) \|$", page, re.M))
    assert set(rows) == known
    for cause, tests in rows.items():
        for path in re.findall(r"`([^`]+)`", tests):
            assert cause in (ROOT / path).read_text(), (cause, path)


def test_what_is_deployed_listens_on_both_families() -> None:
    for path in [*PAGES, ROOT / "Dockerfile", *(ROOT / "docs/deploy").iterdir()]:
        assert not re.search(r"--(listen|host)\W+0\.0\.0\.0", path.read_text()), path  # IPv4 alone
