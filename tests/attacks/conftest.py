"""One tiny random model for all attacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.heal import make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("attacked") / "model")
