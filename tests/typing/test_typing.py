"""The stubs: programs type-check against them, and they say what the compiled modules do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pcmring

pytest.importorskip("mypy", reason="mypy is not installed")

HERE = Path(__file__).parent
CONFIG = HERE / "mypy.ini"
PACKAGE = Path(pcmring.__file__).parent


def run(*arguments: object) -> None:
    """Run `python -m` with these arguments; what it printed is the failure's message."""
    environment = dict(os.environ)
    for name in ("LD_PRELOAD", "PYTHONMALLOC"):  # a sanitizer is for our code, not for mypy
        environment.pop(name, None)
    if not {"site-packages", "dist-packages"} & set(PACKAGE.parts):
        environment["MYPYPATH"] = str(PACKAGE.parent)
    result = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = getattr(request.config, "cache", None)
    return Path(cache.mkdir("mypy")) if cache is not None else tmp_path_factory.mktemp("mypy")


def test_usage_type_checks(cache: Path) -> None:
    run("mypy", "--config-file", CONFIG, "--cache-dir", cache, HERE / "usage.py")


def test_the_package_type_checks(cache: Path) -> None:
    run("mypy", "--config-file", CONFIG, "--cache-dir", cache, "-p", "pcmring")


def test_the_stubs_agree_with_the_compiled_modules() -> None:
    """stubtest compares every name, signature and attribute; `make lint-stubs` adds the modules that have no stub."""
    compiled = [f"pcmring.{name}" for name in ("_buffer", "_capture", "_tracker")]
    allowlist = ("--allowlist", HERE / "allowlist.txt", "--ignore-unused-allowlist")
    run("mypy.stubtest", *compiled, "--mypy-config-file", CONFIG, *allowlist)
