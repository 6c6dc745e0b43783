"""W4LMemoryManager: what a model takes, and what it leaves to audio."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from typing import Any

import psutil
import pytest

from pcmring import _memory, model_memory
from pcmring._memory import MB, CgroupMemory, MachineMemory, MemoryUnreadable
from pcmring.memory_manager import MemoryMonitor
from pcmring.model_memory import MODEL_GUESSES, ModelMemoryWarning, W4LMemoryManager

SEED = {"tiny": 150, "base": 250, "small": 500, "medium": 1500, "large": 2500}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say how much memory the machine has and how much is left, in MB."""

    def set_machine(total: float, left: float) -> None:
        memory = MachineMemory(int(total * MB), int(left * MB))
        monkeypatch.setattr(model_memory, "machine_memory", lambda: memory)

    set_machine(64000, 60000)
    return set_machine


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What this process takes, in MB: a test sets "mb". That real memory is measured, one test of its own shows."""
    usage = {"mb": 100.0}
    monkeypatch.setattr(model_memory, "rss_bytes", lambda: int(usage["mb"] * MB))
    monkeypatch.setattr(MemoryMonitor, "_read_usage", staticmethod(lambda: int(usage["mb"] * MB)))
    return usage


def test_before_set_model_it_is_as_in_the_seed() -> None:
    manager = W4LMemoryManager()
    assert manager.model_memory_mb == 0
    assert manager.memory_monitor is None
    assert manager.model_name is None
    assert not manager.measured


@pytest.mark.parametrize("name", SEED)
@pytest.mark.usefixtures("machine")
def test_the_limit_is_the_seeds_number_and_512_mb(name: str) -> None:
    manager = W4LMemoryManager()
    manager.set_model(name)
    assert manager.model_memory_mb == SEED[name]
    assert manager.memory_monitor is not None
    assert manager.memory_monitor.max_memory_mb == SEED[name] + 512


def test_every_guess_is_positive_and_names_its_source() -> None:
    assert {"large-v3", "turbo", "distil-large-v3", "tiny-int8", "large-v3-int8", "turbo-int8"} <= set(MODEL_GUESSES)
    for name, guess in MODEL_GUESSES.items():
        assert guess.memory_mb > 0, name
        assert len(guess.source) > 10, name
        if name.endswith("-int8") and name.removesuffix("-int8") not in SEED:
            assert guess.memory_mb < MODEL_GUESSES[name.removesuffix("-int8")].memory_mb


def test_an_unknown_model_is_refused_with_the_legal_names() -> None:
    manager = W4LMemoryManager()
    with pytest.raises(ValueError, match=r"'tiny', 'base'.*, got 'large-v4'$"):
        manager.set_model("large-v4")
    with pytest.raises(ValueError, match=r"got 'xyzzy'$"), manager.loading("xyzzy"):
        pytest.fail("entered")
    with pytest.raises(TypeError, match="model_name must be a str"):
        manager.set_model(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MemoryMonitor"):
        W4LMemoryManager("monitor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="buffer_memory_limit_mb"):
        W4LMemoryManager(buffer_memory_limit_mb=0)
    assert manager.memory_monitor is None


@pytest.mark.usefixtures("machine")
def test_changing_the_model_keeps_the_monitor_and_who_registered() -> None:
    calls: list[int] = []
    manager = W4LMemoryManager()
    manager.set_model("tiny")
    monitor = manager.memory_monitor
    assert monitor is not None
    monitor.add_cleanup_callback(lambda: calls.append(1))
    manager.set_model("medium")
    assert manager.memory_monitor is monitor
    assert monitor.max_memory_mb == 1500 + 512
    monitor.cleanup(force=True)
    assert calls == [1]


@pytest.mark.usefixtures("machine")
def test_a_monitor_that_is_given_is_used() -> None:
    monitor = MemoryMonitor(200)
    manager = W4LMemoryManager(monitor)
    manager.set_model("base")
    assert manager.memory_monitor is monitor
    assert monitor.max_memory_mb == 762


@pytest.mark.rss
def test_a_real_load_is_measured_and_replaces_the_guess() -> None:
    """192 MB are touched inside the block; whatever else the process does meanwhile is far less."""
    program = """
import numpy as np
from pcmring import W4LMemoryManager
manager = W4LMemoryManager()
with manager.loading("tiny"):
    model = np.ones(192 << 20, dtype=np.uint8)
assert manager.measured
assert 184 < manager.model_memory_mb < 240, manager.model_memory_mb
assert manager.memory_monitor.max_memory_mb == manager.model_memory_mb + 512
assert manager.memory_monitor.sample().model == int(manager.model_memory_mb * (1 << 20))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("machine")
def test_what_was_measured_is_remembered_for_its_model(usage: dict[str, float]) -> None:
    manager = W4LMemoryManager()
    with manager.loading("tiny"):
        usage["mb"] += 96
    assert manager.measured
    assert manager.model_memory_mb == 96
    assert manager.memory_monitor is not None
    assert manager.memory_monitor.max_memory_mb == 96 + 512
    assert manager.memory_monitor.sample().model == 96 * MB
    assert manager.get_statistics()["source"] == "measured round its load"
    manager.set_model("base")
    assert not manager.measured
    assert manager.memory_monitor.sample().model == 0
    manager.set_model("tiny")
    assert manager.model_memory_mb == 96


@pytest.mark.usefixtures("machine")
def test_a_models_memory_never_makes_audio_pay(usage: dict[str, float]) -> None:
    """Ten times what was guessed: neither while it loads nor after it does anything get cleaned up."""
    calls: list[int] = []
    manager = W4LMemoryManager(MemoryMonitor(1))
    monitor = manager.memory_monitor
    assert monitor is not None
    monitor.add_cleanup_callback(lambda: calls.append(1))
    with manager.loading("tiny"):
        usage["mb"] += 1500
        assert monitor.is_memory_high()
        assert monitor.cleanup() == 0
    assert not monitor.is_memory_high()
    monitor.cleanup()
    assert calls == []
    usage["mb"] += 600  # this is not the model
    monitor.cleanup()
    assert calls == [1]


@pytest.mark.usefixtures("machine")
def test_a_load_that_takes_no_memory_teaches_nothing(usage: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    manager = W4LMemoryManager()
    with manager.loading("tiny"):
        usage["mb"] -= 64
    assert manager.model_memory_mb == 150
    assert not manager.measured
    assert "stays a guess" in caplog.text


@pytest.mark.usefixtures("machine")
def test_a_load_that_fails_teaches_nothing_and_the_monitor_works_on(usage: dict[str, float]) -> None:
    manager = W4LMemoryManager()

    def load() -> None:
        with manager.loading("tiny"):
            usage["mb"] += 32
            raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        load()
    assert not manager.measured
    monitor = manager.memory_monitor
    assert monitor is not None
    calls: list[int] = []
    monitor.max_memory_mb = 1
    monitor.add_cleanup_callback(lambda: calls.append(1))
    monitor.cleanup()
    assert calls == [1]


def test_a_model_larger_than_the_machine_is_warned_of(machine: Any) -> None:
    machine(2000, 1900)
    manager = W4LMemoryManager()
    with pytest.warns(ModelMemoryWarning, match="'large' needs about 2500 MB.*has 2000 MB: it cannot be loaded"):
        manager.set_model("large")
    assert manager.model_name == "large"


def test_a_model_larger_than_what_is_left_is_warned_of(machine: Any) -> None:
    machine(8000, 400)
    manager = W4LMemoryManager()
    with pytest.warns(ModelMemoryWarning, match="400 MB are left of 8000 MB") as seen:
        manager.set_model("small")
    assert seen[0].filename == __file__
    loading = manager.loading("medium")
    with pytest.warns(ModelMemoryWarning, match="'medium'") as seen:
        loading.__enter__()
    assert seen[0].filename == __file__
    loading.__exit__(None, None, None)


def test_a_model_that_is_loaded_already_did_fit(machine: Any, usage: dict[str, float]) -> None:
    manager = W4LMemoryManager()
    with manager.loading("tiny"):
        usage["mb"] += 64
    machine(8000, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager.set_model("tiny")


def test_a_cgroup_counts_as_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "cgroup_memory", lambda: CgroupMemory(100 * MB, 40 * MB))
    manager = W4LMemoryManager()
    assert manager.get_audio_budget() == 10 * MB
    with pytest.warns(ModelMemoryWarning, match="has 100 MB"):
        manager.set_model("tiny")


def test_memory_that_cannot_be_read_is_logged_not_guessed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if sys.platform != "linux":
        pytest.skip("makes psutil fail by its procfs path, which only Linux has")
    monkeypatch.setattr(psutil, "PROCFS_PATH", "/nonexistent")
    manager = W4LMemoryManager()
    with caplog.at_level(logging.WARNING):
        manager.set_model("tiny")
    assert "not known" in caplog.text
    with pytest.raises(MemoryUnreadable):
        manager.get_audio_budget()


@pytest.mark.parametrize(
    ("left_mb", "model", "budget_mb"),
    [
        (60000, None, 100),  # what was configured
        (400, None, 100),  # both the same
        (399, None, 99.75),
        (200, None, 50),
        (350, "tiny", 50),  # not loaded yet: 350 - 150 are left for the rest
        (151, "tiny", 0.25),
        (149, "tiny", 0),
    ],
)
def test_audio_gets_what_is_configured_or_a_quarter_of_what_is_left(
    machine: Any, left_mb: float, model: str | None, budget_mb: float
) -> None:
    manager = W4LMemoryManager()
    if model:
        manager.set_model(model)
    machine(64000, left_mb)
    assert manager.get_audio_budget() == int(budget_mb * MB)


@pytest.mark.parametrize(
    ("left_mb", "arguments", "seconds"),
    [
        (60000, {}, 30.0),
        (4 * 64000 * 12.5 / MB, {}, 12.5),
        (4 * 32000 * 10 / MB, {"dtype": "int16"}, 10.0),
        (4 * 384000 * 7 / MB, {"sample_rate": 48000, "channels": 2}, 7.0),
        (0.001, {}, 1.0),
        (0, {}, 1.0),
    ],
)
def test_a_buffer_is_as_long_as_the_budget_holds_from_1_to_30_s(
    machine: Any, left_mb: float, arguments: dict[str, Any], seconds: float
) -> None:
    machine(64000, left_mb)
    assert W4LMemoryManager().get_optimal_buffer_seconds(**arguments) == pytest.approx(seconds, rel=1e-4)


def test_a_small_budget_can_be_configured(machine: Any) -> None:
    machine(64000, 60000)
    manager = W4LMemoryManager(buffer_memory_limit_mb=64000 * 5 / MB)
    assert manager.get_optimal_buffer_seconds() == pytest.approx(5.0, rel=1e-4)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="sample_rate"):
            manager.get_optimal_buffer_seconds(sample_rate=bad)
        with pytest.raises(ValueError, match="channels"):
            manager.get_optimal_buffer_seconds(channels=bad)  # type: ignore[arg-type]


@pytest.mark.usefixtures("machine")
def test_statistics_say_what_is_known_and_from_where() -> None:
    manager = W4LMemoryManager()
    assert manager.get_statistics()["source"] is None
    manager.set_model("turbo")
    statistics = manager.get_statistics()
    assert statistics["model_name"] == "turbo"
    assert statistics["model_memory_mb"] == 2150
    assert not statistics["measured"]
    assert not statistics["resident"]
    assert "809 M parameters" in statistics["source"]
    assert statistics["memory_limit_mb"] == 2150 + 512
    assert statistics["audio_budget_bytes"] == 100 * MB
