"""The pages tell the truth: their Python runs as printed and prints what they say, their links lead somewhere, and what
they name exists.

How a page is read:

- Blocks marked `python` run one after the other, in one namespace, in a folder of their own. They may `await`.
- A block whose first line is `# name.py` is a file of that name, which later blocks import.
- A `text` block behind `<!-- output -->` is what the block before it printed; `...` stands for anything in a line.
- `console` blocks run in one bash, together with the `sh` blocks between them. Lines behind a command are what
  comes out after it, in this order; lines between them are not shown.
- `<!-- skip: reason -->` before a block: it does not run.
- `<!-- names: ... -->` before a file's block: later blocks have its names.
- `<!-- beside: COMMAND -->` before a block: it runs while the command does, on the same mesh.
- `<!-- stop: SIGTERM, once SERVICE.METHOD answers -->` before a block: it runs until the signal ends it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import zmesh

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "examples" / "README.md"])
RUNNING = [
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in (
            "tutorial",
            "testing",
            "errors",
            "discovery",
            "tour",
            "blocking",
            "streams",
            "one-to-many",
            "failover",
            "overload",
            "balancing",
            "serving",
            "security",
        )
    ),
]
SESSIONS = [ROOT / "README.md", DOCS / "tutorial.md"]
SESSION_SECONDS = 90

# On the tour, marked there as not built. A name leaves this list in the change that builds it.
NOT_BUILT_COMMANDS: set[str] = set()
NOT_BUILT_OPTIONS: set[str] = set()


@dataclass
class Block:
    """A fenced block: its language, its text, the page's line, and the comment right before it."""

    language: str
    text: str
    line: int
    comment: str

    @property
    def file(self) -> str | None:
        match = re.match(r"# (\w+\.py)\n", self.text)
        return match[1] if match else None

    @property
    def skipped(self) -> bool:
        return self.comment.startswith("skip:")


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    comment, opened, language = "", 0, ""
    for number, line in enumerate(lines, 1):
        if opened:
            if line == "```":
                found.append(Block(language, "\n".join(lines[opened : number - 1]) + "\n", opened + 1, comment))
                opened, comment = 0, ""
        elif line.startswith("```"):
            opened, language = number, line[3:]
        elif match := re.fullmatch(r"<!-- (.*) -->", line):
            comment = match[1]
        elif line:
            comment = ""
    assert not opened, f"{page.name}:{opened}: a block without an end"
    return found


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), text) is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, on a mesh of its own on 127.0.0.1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in os.environ if name.startswith("ZMESH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZMESH_MESH", f"docs-{secrets.token_hex(4)}")
    monkeypatch.setenv("ZMESH_LISTEN", "tcp://127.0.0.1:0")
    monkeypatch.setenv("ZMESH_INTERFACES", "127.0.0.1")
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def run_python(page: Path, block: Block, namespace: dict[str, Any]) -> str:
    """Run a block, which may await; what it printed."""
    # Padded, so that a traceback names the page's own line.
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, namespace)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    return printed.getvalue()


@contextlib.contextmanager
def surroundings(block: Block) -> Iterator[None]:
    """What a block's comment asks for while it runs."""
    if block.comment.startswith("beside: "):
        command = block.comment.removeprefix("beside: ").split()
        with subprocess.Popen([sys.executable, "-m", *command]) as process:
            try:
                yield
            finally:
                process.terminate()
                assert process.wait(20) == 0
    elif match := re.fullmatch(r"stop: SIGTERM, once (\w+)\.(\w+) answers", block.comment):
        ended = threading.Thread(target=end_when_it_answers, args=match.groups())
        ended.start()
        try:
            yield
        finally:
            ended.join()
    else:
        yield


def end_when_it_answers(service: str, method: str) -> None:
    """Signal this process, as a terminal would, once a node of it answers."""
    try:
        with zmesh.connect() as mesh:
            getattr(mesh.client(service), method)("World")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: page.name)
def test_python_runs_as_printed(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder))  # for the commands beside a block
    namespace: dict[str, Any] = {"__name__": "docs"}
    printed, promised, ran = "", True, 0
    for block in blocks(page):
        if block.skipped:
            continue
        if block.language == "python":
            assert promised or not printed, f"{page.name}: what is printed before line {block.line} is not on the page"
            if block.file is not None:
                (folder / block.file).write_text(block.text, encoding="utf-8")
                printed, promised = "", True
                if block.comment.startswith("names:"):
                    namespace |= vars(importlib.import_module(block.file.removesuffix(".py")))
            else:
                with surroundings(block):
                    printed, promised = run_python(page, block, namespace), False
            ran += 1
        elif block.comment == "output":
            expected, actual = block.text.splitlines(), printed.splitlines()
            assert len(expected) == len(actual), f"{page.name}:{block.line}: printed was\n{printed}"
            for pattern, line in zip(expected, actual, strict=True):
                assert matches(pattern, line), f"{page.name}:{block.line}: printed was\n{printed}"
            promised = True
    assert promised or not printed, f"{page.name}: what the last block prints is not on the page: {printed}"
    assert ran, f"{page.name} has no Python"


@dataclass
class Step:
    """A command of a session and the lines that are promised after it."""

    command: str
    promised: list[str]
    line: int


def steps(page: Path) -> list[Step]:
    found: list[Step] = []
    for block in blocks(page):
        if block.skipped or block.language not in ("sh", "console"):
            continue
        for number, line in enumerate(block.text.splitlines(), block.line):
            if block.language == "sh":
                found.append(Step(line, [], number))
            elif line.startswith("$ "):
                found.append(Step(line[2:], [], number))
            else:
                found[-1].promised.append(line)
    return found


def shown(promised: list[str], came: list[str]) -> str | None:
    """The first promised line that did not come, after those before it; None where all did."""
    rest = iter(came)
    for pattern in promised:
        if not any(matches(pattern, line) for line in rest):
            return pattern
    return None


def session_script(session: list[Step]) -> str:
    """All commands for one bash. Behind a background command that promises output it waits for the test's word, as a
    reader waits for the line before typing on."""
    script = ["set -m"]  # as in a terminal: %1 is the first background job
    for number, step in enumerate(session):
        command = re.sub(r"^export ZMESH_MESH=.*", "true", step.command)  # this run has a mesh of its own
        script += [f"echo '--- step {number}'", command]
        if step.promised and command.endswith("&"):
            script.append(f"for _ in $(seq 300); do test -e shown-{number} && break; sleep 0.1; done")
    return "\n".join(script)


def end_session(leader: int) -> None:
    """Kill every process of a session; each has a process group of its own."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" ")
            session = rest.rpartition(")")[2].split()[3]  # state, parent, group, session: proc(5)
            if int(session) == leader:
                os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("page", SESSIONS, ids=lambda page: page.name)
def test_session_runs_as_printed(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    session = steps(page)
    assert session
    binaries = Path(sys.executable).parent
    bash = subprocess.Popen(
        ["bash", "-c", session_script(session)],
        cwd=folder,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    guard = threading.Timer(SESSION_SECONDS, end_session, [bash.pid])
    guard.start()
    output: list[list[str]] = []
    assert bash.stdout is not None
    try:
        for line in bash.stdout:
            if line.startswith("--- step "):
                output.append([])
            elif output:
                output[-1].append(line.rstrip())
                number = len(output) - 1
                if shown(session[number].promised, output[number]) is None:
                    (folder / f"shown-{number}").touch()
        bash.wait()
    finally:
        guard.cancel()
        end_session(bash.pid)
    everything = "\n".join("\n".join([f"$ {step.command}", *came]) for step, came in zip(session, output, strict=False))
    assert len(output) == len(session), f"{page.name}: the session did not end:\n{everything}"
    for step, came in zip(session, output, strict=True):
        missing = shown(step.promised, came)
        assert missing is None, (
            f"{page.name}:{step.line}: `{step.command}` did not show `{missing}`; all of it:\n{everything}"
        )


# -- links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}; there are {sorted(anchors(file))}"


# -- names


def all_text() -> dict[str, str]:
    return {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}


def test_every_variable_exists_and_is_documented() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "zmesh").rglob("*.py"))
    read = set(re.findall(r'"(ZMESH_[A-Z_]+)"', source)) - {"ZMESH_TEST"}
    assert read, "the search sees nothing"
    for name, text in all_text().items():
        assert set(re.findall(r"\bZMESH_[A-Z]+(?:_[A-Z]+)*\b", text)) <= read, name
    pages = [(DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("discovery", "security")]
    assert read <= set(re.findall(r"\bZMESH_[A-Z_]+\b", "".join(pages)))


def commands() -> dict[str, set[str]]:
    """Each command of the command line, with its options."""
    import click

    from zmesh.cli._commands import zmesh as group

    context = click.Context(group)
    found = {"": {option for parameter in group.params for option in parameter.opts}}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        parts = [command, *command.commands.values()] if isinstance(command, click.Group) else [command]
        found[name] = {option for part in parts for each in part.params for option in each.opts} | {"--help"}
    return found


def test_every_command_and_option_exists() -> None:
    known = commands()
    assert {"serve", "ls", "describe", "call", "doctor", "demo"} <= set(known)
    assert not NOT_BUILT_COMMANDS & set(known), "built by now: mark it so on the tour, and take it off this list"
    assert not NOT_BUILT_OPTIONS & set().union(*known.values()), "built by now: the same"
    own = set().union(*known.values())
    for page in PAGES:
        name, text = page.name, page.read_text(encoding="utf-8")
        typed = [f"$ {line}" for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
        for line in [*text.splitlines(), *typed]:
            for command, rest in re.findall(r"(?:`|'|\$ |\$\()zmesh ([a-z]+)\b([^`|']*)", line):
                if command in NOT_BUILT_COMMANDS:
                    continue
                assert command in known, f"{name}: `zmesh {command}`: {line}"
                options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest)) - NOT_BUILT_OPTIONS
                assert options <= known[command], f"{name}: {line}"
            for option in re.findall(r"`(--[a-z][a-z-]+)", line):
                assert option in own | NOT_BUILT_OPTIONS | {"--write", "--seeds"}, f"{name}: {option}"


def test_every_attribute_of_zmesh_exists() -> None:
    """`zmesh.Node` and the like, anywhere in a page; what is not built is marked on the tour alone.
    In quotes it is a method's path, of the built-in service."""
    import zmesh
    import zmesh.testing

    for name, text in all_text().items():
        if name in ("docs/tour.md", "docs/protocol.md"):  # the protocol names wire paths: zmesh.describe
            continue
        for attribute in re.findall(r'(?<!")\bzmesh\.((?:testing\.)?[A-Za-z]\w*)', text):
            value: Any = zmesh
            for part in attribute.split("."):
                found = hasattr(value, part) or importlib.util.find_spec(f"{value.__name__}.{part}") is not None
                assert found, f"{name}: zmesh.{attribute}"
                value = getattr(value, part, value)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for name, text in all_text().items():
        assert set(re.findall(r"`make ([a-z]+)`", text)) <= targets, name


# -- drawn pages


def diagrams() -> Any:
    spec = importlib.util.spec_from_file_location("docs_diagrams", DOCS / "diagrams.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_state_diagrams_are_those_of_the_tables() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    drawn = diagrams()
    assert drawn.drawn(page) == page, "run: python docs/diagrams.py --write"
    for text in drawn.diagrams().values():
        assert text in page


def test_a_changed_table_changes_the_diagram(monkeypatch: pytest.MonkeyPatch) -> None:
    from zmesh._core import peer

    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    row = {**peer.TRANSITIONS[peer.State.DEAD], peer.Event.GOODBYE: peer.State.IDLE}
    monkeypatch.setitem(peer.TRANSITIONS, peer.State.DEAD, row)
    assert diagrams().drawn(page) != page
