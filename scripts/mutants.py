"""Plant errors in a copy of the package and see that the tests catch each of them.

A test that never fails proves nothing. `mutants.toml`, beside this file, lists wrong lines of the Python and Cython
code, of the kind that would hurt users, and the tests that should notice. Everything happens in a temporary copy of
what git knows, built in place by this interpreter, which needs Cython, setuptools and what the tests import. First
the selections of tests run on the true copy; then one error after the other is planted, and taken out again.

A mutant is caught when a test fails or does not end. Exit status 1: one survived, or could not be planted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
#: A selection that takes longer does not end. Many times what each takes; one test may take a part of it.
LIMIT_S, TEST_LIMIT_S = 120, 20
#: How pytest names the test that failed, or that was running when the interpreter died.
CAUGHT_BY = re.compile(r"^(?:FAILED|ERROR) (?:\S*/)?(test_\w+\.py(?:::\S+)?)", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """One wrong line: `old`, which occurs exactly once in `file`, becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]  # names of selections, the likeliest first


class Copy:
    """The tree, in `folder`, where errors can be planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._planted: dict[Path, str] = {}  # true texts of what is changed
        listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], stdout=subprocess.PIPE, check=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        (folder / "tmp").mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",  # what is compiled is taken for new if only a few letters changed
            "PCMRING_BUILD": "debug",
            "HYPOTHESIS_PROFILE": "ci",
            "TMPDIR": str(folder / "tmp"),  # what a mutant leaves behind, or deletes, shall be in here
            "XDG_STATE_HOME": str(folder / "tmp"),
        }
        self.build()

    def run(self, where: str, *arguments: str, limit_s: float = 600) -> tuple[int, str]:
        """Run Python on `arguments`; its exit status, -9 when the time was up, and its output."""
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder / where,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # a session of its own: this program and what it started
                output = process.communicate()[0]
        return process.returncode, output

    def build(self) -> str:
        """Compile what changed; what the compiler said if that is nothing to run."""
        code, output = self.run(".", "setup.py", "--quiet", "build_ext", "--inplace")
        return output if code else ""

    def plant(self, mutant: Mutant) -> str:
        """Make the mutant the only error in the tree; why it cannot be, else an empty text."""
        changed = dict(self._planted)
        path = self.folder / mutant.file
        true = changed.get(path) or path.read_text(encoding="utf-8")
        if true.count(mutant.old) != 1:
            return f"text not found: {true.count(mutant.old)} times in {mutant.file}"
        self._planted = {path: true}
        for other, text in changed.items():
            other.write_text(text, encoding="utf-8")
        path.write_text(true.replace(mutant.old, mutant.new), encoding="utf-8")
        if any(file.suffix == ".pyx" for file in {path, *changed}) and (said := self.build()):
            return f"does not build: {said.strip().splitlines()[-1]}"
        return ""

    def caught_by(self, selection: str) -> str:
        """Run tests; the name of what failed, or an empty text."""
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_LIMIT_S}"]
        code, output = self.run("tests", "-m", "pytest", *options, *shlex.split(selection), limit_s=LIMIT_S)
        if code == 0:
            return ""
        found = CAUGHT_BY.search(output)
        if found or code < 0:
            return found[1] if found else f"ended by signal {-code}"
        return output.strip().splitlines()[-1] if output.strip() else f"exit status {code}"


def main() -> int:
    """Run the mutants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose name or file contains one of PART,PART…")
    options = parser.parse_args()

    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    mutants = [Mutant(**one) for one in listed["mutant"]]
    chosen = [one for one in mutants if any(part in f"{one.file} {one.name}" for part in options.only.split(","))]
    chosen.sort(key=lambda one: (one.file.endswith(".pyx"), one.file))  # compiles less often
    began = time.monotonic()
    results: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="pcmring-mutants-", ignore_cleanup_errors=True) as folder:
        copy = Copy(Path(folder))
        for name in dict.fromkeys(name for one in chosen for name in one.tests):
            if said := copy.caught_by(listed["tests"][name]):
                print(f"the true code fails {name}: {said}")
                return 1
        print(f"the true code passes ({time.monotonic() - began:.0f} s)\n")
        for one in chosen:
            before = time.monotonic()
            result, said = "ERROR", copy.plant(one)
            if not said:
                said = next(filter(None, (copy.caught_by(listed["tests"][name]) for name in one.tests)), "")
                result = "caught" if said else "SURVIVED"
            results[one.file, result] += 1
            seconds = time.monotonic() - before
            print(f"{result:8} {one.file.split('/')[-1]:20} {one.name:64} {seconds:5.1f} s  {said}", flush=True)
    print()
    for file in sorted({file for file, _ in results}):
        planted = sum(number for (where, _), number in results.items() if where == file)
        print(f"{file:40} {results[file, 'caught']:3} of {planted:3} caught")
    total, caught = results.total(), sum(number for (_, result), number in results.items() if result == "caught")
    print(f"{caught} of {total} caught, {time.monotonic() - began:.0f} s")
    return 0 if caught == total > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
