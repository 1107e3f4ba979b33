"""Apply each patch of this folder to a copy of the package and run the soak on it, in the mix that the patch names: it
has to fail.

python -m tests.bugs [NAME...]       all of them, or those named, `lost_reply`
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def apply(patch: str, root: Path) -> None:
    """Apply a unified diff. Line numbers do not count: each hunk's text has to be there exactly once.

    Raises ValueError where it is not: the code has moved on, and the patch has to follow.
    """
    for part in re.split(r"^(?=--- a/)", patch, flags=re.MULTILINE)[1:]:
        header, *hunks = re.split(r"^@@.*\n", part, flags=re.MULTILINE)
        target = re.search(r"^\+\+\+ b/(\S+)", header, flags=re.MULTILINE)
        if target is None:
            raise ValueError(f"no file is named in {header!r}")
        path = root / target[1]
        text = path.read_text(encoding="utf-8")
        for hunk in hunks:
            lines = [line for line in hunk.splitlines(keepends=True) if line[0] in " +-"]
            old = "".join(line[1:] for line in lines if line[0] != "+")
            new = "".join(line[1:] for line in lines if line[0] != "-")
            if text.count(old) != 1:
                raise ValueError(f"this is in {target[1]} {text.count(old)} times, not once:\n{old}")
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def names() -> list[str]:
    """The bugs that are kept."""
    return sorted(path.stem for path in HERE.glob("*.patch"))


def hunt(name: str, seeds: str = "0:100") -> tuple[bool, str]:
    """Whether the soak finds a bug, and what it says."""
    with tempfile.TemporaryDirectory(prefix="zmesh-bug-") as folder:
        root = Path(folder)
        for package in ("zmesh", "tests"):
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        patch = (HERE / f"{name}.patch").read_text(encoding="utf-8")
        apply(patch, root)
        mix = re.search(r"^Mix: (\w+)$", patch, re.MULTILINE)
        done = subprocess.run(
            [sys.executable, "-m", "tests.soak", "--mix", mix[1] if mix else "streams", "--seeds", seeds, "--stop"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    # 1 is the soak's word for "a seed fails"; a package that does not even import says so differently.
    return done.returncode == 1 and "\nseed " in f"\n{done.stdout}", done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bugs", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=names(), metavar="NAME")
    escaped = 0
    for name in parser.parse_args().names:
        began = time.perf_counter()
        caught, said = hunt(name)
        escaped += not caught
        print(f"{name}: {'caught' if caught else 'ESCAPED'} in {time.perf_counter() - began:.1f} s")
        print("".join(f"  {line[:200]}\n" for line in said.splitlines()[: 2 if caught else 20]), end="")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
