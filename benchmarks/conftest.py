"""What a run is told, and what it tells about the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from harness import FULL, QUICK, Effort
from setting import machine

PACKAGES = (
    "pcmring", "numpy", "pytest-benchmark", "psutil", "sounddevice", "numcircbuf", "numpy-ringbuffer", "dvg-ringbuffer",
    "np-rw-buffer", "pa-ringbuffer", "rtmixer", "numpy-array-buffer", "shm-ring-buffer", "membridge", "ringbuf",
    "pypcmringbuffer",
)  # fmt: skip

LOAD_BEFORE = os.getloadavg()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="about a minute in all; figures to look at, not to quote")


@pytest.fixture(scope="session")
def effort(request: pytest.FixtureRequest) -> Effort:
    return QUICK if request.config.getoption("--quick") else FULL


def pytest_report_header() -> str:
    return machine()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().splitlines()[0]
    except OSError:
        return None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    del machine_info["node"]  # a machine's name is nobody's business
    machine_info |= {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_hugepage": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_before": LOAD_BEFORE,
        "versions": versions,
    }


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["machine_info"]["load_after"] = os.getloadavg()
