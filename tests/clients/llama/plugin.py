"""A plugin of pytest for llama.cpp's own tests: leaves out what belongs to their model, and keeps all else.
Ends well when the tests of `known.KNOWN` fail, and they alone.

Their model (stories260K) says certain words, and its vocabulary makes so many tokens of a prompt. Ours says others:
those words, and those numbers alone, fit anything here.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import utils  # type: ignore[import-not-found]  # llama.cpp's, found on the path of its tests
from known import KNOWN  # type: ignore[import-not-found]  # beside this file, which is on the path too

WORDS = re.compile(r"Suddenly|going\|bed|princesses|But she|Sarax|\^ blue|Whillicter|felter|little\|girl|John|Aside")
"""Of patterns that are about what stories260K says."""
COUNTED = ("n_prompt",)


class AnyCount(int):
    """Equals every number of tokens that a prompt may have."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other > 0

    def __hash__(self) -> int:
        return 0


def pytest_configure() -> None:
    real = utils.match_regex
    utils.match_regex = lambda pattern, text: (
        isinstance(text, str) and (WORDS.search(pattern) is not None or real(pattern, text))
    )
    utils.ServerPreset.load_all = lambda: None  # nothing is to be downloaded


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    if lost := sorted(KNOWN.keys() - {item.name for item in items}):
        raise pytest.UsageError(f"expected known failures to be tests that there are, found {', '.join(lost)}")
    for item in items:
        if item.name in KNOWN:
            item.add_marker(pytest.mark.xfail(reason=KNOWN[item.name], strict=True))
        spec = getattr(item, "callspec", None)
        for name in COUNTED:
            if spec is not None and name in spec.params:
                spec.params[name] = AnyCount(spec.params[name])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    done = {"passed": 0, "failed": 0, "xfailed": 0}
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for name in done:
        done[name] = len({report.nodeid for report in reporter.stats.get(name, ())})
    done["failed"] += len(reporter.stats.get("error", ()))
    apply = sum(done.values())
    share = 100 * done["passed"] / max(1, apply)
    print(
        f"\nof {apply} that apply {done['passed']} pass, {share:.1f}%; known to fail: {done['xfailed']} of {len(KNOWN)}"
    )
