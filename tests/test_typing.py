"""What mypy and pyright say of a user's code: every marked mistake is reported, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USER_FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))

Lines = set[tuple[str, int]]


def marked_lines() -> Lines:
    return {
        (file.name, number)
        for file in USER_FILES
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.endswith("# error")
    }


def needs(checker: str) -> None:
    if importlib.util.find_spec(checker) is None and not os.environ.get("CI"):
        pytest.skip(f"{checker} is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project: the files in a folder of their own."""
    for file in USER_FILES:
        shutil.copy(file, tmp_path)
    return tmp_path


def check(project: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=project,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stdout + done.stderr  # 0: found nothing; above: did not run
    return done.stdout


def compare(reported: dict[tuple[str, int], str]) -> None:
    marked = marked_lines()
    assert len(marked) > 40
    assert not marked - reported.keys(), "mistakes that were not reported"
    assert not {line: reported[line] for line in reported.keys() - marked}, "reported where nothing is wrong"


def test_mypy_reports_exactly_the_marked_lines(project: Path) -> None:
    needs("mypy")
    cache = ROOT / ".mypy_cache" / "users"
    output = check(project, "mypy", "--strict", "--follow-imports=silent", f"--cache-dir={cache}", ".")
    found = re.findall(r"^(\w+\.py):(\d+): error: (.*)$", output, re.MULTILINE)
    compare({(file, int(line)): message for file, line, message in found})


def test_pyright_reports_exactly_the_marked_lines(project: Path) -> None:
    needs("pyright")
    (project / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}))
    output = check(project, "pyright", "--outputjson", "--pythonpath", sys.executable)
    found = json.loads(output)["generalDiagnostics"]
    compare({(Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"] for each in found})
