"""``pcmring bench``: where the benchmarks are not to be had, and that their outcome is the command's."""

from __future__ import annotations

import pytest

from command import Home, complaint, empty_home  # noqa: F401 - a fixture


def test_without_a_checkout_it_says_where_the_benchmarks_are(home, tmp_path):
    done = home.run("bench", cwd=tmp_path)
    assert done.returncode == 1
    assert "go to a checkout of pcmring" in complaint(done)


def test_without_its_packages_it_says_what_to_install(home, tmp_path):
    (tmp_path / "run.py").touch()
    done = home.without("pytest_benchmark", "bench", tmp_path)
    assert done.returncode == 1
    assert "pip install 'pcmring[bench]'" in complaint(done)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_contender_that_is_wrong_is_exit_code_1(home, tmp_path, exit_code):
    for package in ("pytest_benchmark", "matplotlib"):
        pytest.importorskip(package)
    (tmp_path / "run.py").write_text(f"import sys; print(*sys.argv[1:]); sys.exit({exit_code})")
    done = home.run("bench", tmp_path, "--results", tmp_path / "results")
    assert done.returncode == exit_code
    assert done.stdout.split() == ["--quick", "--results", str(tmp_path / "results")]
