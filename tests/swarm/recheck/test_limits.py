"""Limits that ship with the program."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from receipts.check.recompute import default_limit, limits_untrusted
from swarm.model.files.store import DEFAULT_MODEL
from swarm.recheck.calibrate import SETTINGS
from swarm.recheck.limits import limit_of, load_limits


def test_the_default_model_has_limits_for_what_its_rings_compute_in(tmp_path: Path) -> None:
    data = files("swarm").joinpath(f"data/limits/{DEFAULT_MODEL}.json").read_bytes()
    limits = limits_untrusted(data)
    assert limits.model == DEFAULT_MODEL and load_limits(tmp_path, limits.manifest) == limits
    fine, coarse = limits.get("float32", "float32"), limits.get("bfloat16", "bfloat16")
    assert fine.samples > 1000 and coarse.samples > 1000
    assert fine.median_ppm < coarse.median_ppm and fine.tie_ppm < coarse.tie_ppm
    assert limit_of(limits)("mixed", "bfloat16") == coarse
    assert limit_of(limits)("mixed q8", "bfloat16") == limits.get("q8", "bfloat16") != coarse
    assert limit_of(limits)("mixed q8", "mixed q8") == limits.get("q8", "bfloat16")
    for dtype, wire in SETTINGS:
        assert limits.get(dtype, wire).samples > 1000, (dtype, wire)


def test_other_models_get_the_built_in_ones(tmp_path: Path) -> None:
    assert load_limits(tmp_path, "ab" * 32) is None
    assert limit_of(None)("bfloat16", "bfloat16") == default_limit("bfloat16", "bfloat16")
