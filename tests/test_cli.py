"""The command line, against nodes that are processes of their own on 127.0.0.1."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import zmesh
from zmesh.cli import _bare
from zmesh.cli import _json as cli_json
from zmesh.cli import bench as cli_bench
from zmesh.cli._bench import Level
from zmesh.cli._commands import zmesh as command_line
from zmesh.cli.describe import signature_of, type_name
from zmesh.cli.serve import load_service

ROOT = Path(__file__).resolve().parent.parent
WITHIN = 30.0  # bounds a failure; a busy machine needs seconds to start a Python process
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("ZMESH_")}


class Served:
    """A `zmesh serve` process that has said that it is ready."""

    def __init__(self, *arguments: str, mesh: str) -> None:
        self.mesh = mesh
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zmesh", "serve", *arguments, "--mesh", mesh, "--listen", "tcp://127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=CLEAN,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        match = re.search(r"tcp://127\.0\.0\.1:\d+", self.ready)
        assert match is not None, self.ready + self.close()
        self.address = match[0]

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WITHIN)

    def close(self) -> str:
        """End it; what it said on stderr."""
        if self.process.poll() is None:
            self.process.kill()
        return self.process.communicate(timeout=WITHIN)[1]


def random_mesh() -> str:
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served("tests.served:Greeter", "tests.served:NAMED", "--name", "greeter-1", mesh=random_mesh())
    yield served
    served.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with ExitStack() as stack:

        def start(*arguments: str, mesh: str | None = None) -> Served:
            served = Served(*arguments, mesh=mesh or random_mesh())
            stack.callback(served.close)
            return served

        yield start


def here(*arguments: str, input: str | None = None, env: dict[str, str] | None = None) -> Result:
    """Run a command in this process, without the mesh of whoever runs the tests."""
    scrubbed = {name: None for name in os.environ if name.startswith("ZMESH_")}
    return CliRunner().invoke(command_line, arguments, input=input, env={**scrubbed, **(env or {})})


def at(served: Served, command: str, *arguments: str, input: str | None = None) -> Result:
    """Run a command that looks for no node but this one."""
    return here(command, "--mesh", served.mesh, "--peer", served.address, "--no-mdns", *arguments, input=input)


def program(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does."""
    argv = [sys.executable, "-m", "zmesh", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=WITHIN, check=False, cwd=ROOT, **more)


def failed(result: Result, status: int) -> str:
    """What it said on stderr, after a check that it failed as it should."""
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit), "no exception that nobody caught"
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


# -- serve


def test_ready_line_names_node_services_and_address(served: Served) -> None:
    assert served.ready == f"ready: greeter-1 serves Greeter, Named at {served.address}\n"


def test_drains_on_sigterm(serve: Callable[..., Served], tmp_path: Path) -> None:
    server = serve("tests.served:Greeter")
    begun, go = tmp_path / "begun", tmp_path / "go"
    where = ("--mesh", server.mesh, "--peer", server.address, "--no-mdns")
    calling = subprocess.Popen(
        [sys.executable, "-m", "zmesh", "call", *where, "Greeter.wait_for", f"begun={begun}", f"go={go}"],
        stdout=subprocess.PIPE,
        text=True,
        env=CLEAN,
    )
    try:
        give_up = time.monotonic() + WITHIN
        while not begun.exists():
            assert time.monotonic() < give_up
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        # It leaves: who calls now is refused, who was there before is still answered.
        assert program("call", *where, "Greeter.say_hello", "name=x", "--timeout", "0.5", env=CLEAN).returncode == 1
        assert server.process.poll() is None
        go.touch()
        assert calling.communicate(timeout=WITHIN)[0] == '"done"\n'
        assert server.process.wait(WITHIN) == 0
    finally:
        calling.kill()
        calling.wait(WITHIN)


def test_ctrl_c_ends_a_node_with_success(serve: Callable[..., Served]) -> None:
    server = serve("tests.served:Greeter")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(WITHIN) == 0
    assert server.close() == ""


def test_serves_a_module_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import zmesh\nclass Mine(zmesh.Service):\n    pass\n")
    found = subprocess.run(
        [sys.executable, "-c", "from zmesh.cli import main; main()", "serve", "mine:Nothing"],
        capture_output=True,
        text=True,
        timeout=WITHIN,
        cwd=tmp_path,
        env={**CLEAN, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert found.returncode == 2
    assert "module 'mine' has no 'Nothing'; services there: Mine" in found.stderr


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("greeter", "'greeter' names no service: write MODULE:CLASS"),
        ("no_such_module:Greeter", "there is no module 'no_such_module' in "),
        ("tests.no_such_module:Greeter", "there is no module 'tests.no_such_module' in "),
        ("tests.served:Greter", "module 'tests.served' has no 'Greter'; services there: Greeter, NAMED, Named"),
        ("tests.served:NOTHING", "tests.served:NOTHING is no zmesh.Service; services there: Greeter, NAMED, Named"),
        ("tests.served:Named", "make an instance in tests.served and name that, MODULE:INSTANCE"),
    ],
)
def test_serve_says_what_is_wrong_with_a_service(service: str, said: str) -> None:
    assert said in failed(here("serve", service), 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "127.0.0.1:7001"], "'127.0.0.1:7001' is no address; write tcp://HOST:PORT"),
        (["--capacity", "0"], "capacity is a positive number"),
        (["--threads", "0"], "--threads"),
        (["--balance", "luck"], "--balance"),
        (["--mesh", "a b"], "a mesh's name is"),
        (["--name", ""], "a node's name is"),
        (["tests.served:Greeter"], "two services of one name on one node: Greeter"),
    ],
)
def test_serve_says_what_is_wrong_with_an_option(arguments: list[str], said: str) -> None:
    assert said in failed(here("serve", "tests.served:Greeter", *arguments), 2)


def test_serve_says_where_a_module_of_the_user_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = failed(here("serve", "broken_module:Broken"), 1)
    assert f"{tmp_path}/broken_module.py:2: ZeroDivisionError: division by zero" in said


def test_a_missing_library_of_the_users_module_is_not_taken_for_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "No module named 'no_such_library'" in failed(here("serve", "needs_more:Broken"), 1)


def test_serve_fails_where_the_address_is_taken(served: Served) -> None:
    result = program("serve", "tests.served:Greeter", "--no-mdns", "--listen", served.address, env=CLEAN)
    assert result.returncode == 1
    assert "cannot serve: " in result.stderr
    assert "Traceback" not in result.stderr


def test_load_service_takes_classes_and_instances() -> None:
    assert type(load_service("tests.served:Greeter")).__name__ == "Greeter"
    assert type(load_service("tests.served:NAMED")).__name__ == "Named"


# -- ls


def test_ls_lists_nodes(served: Served) -> None:
    result = at(served, "ls")
    assert result.exit_code == 0, result.output
    title, node = result.stdout.splitlines()
    assert title.split() == ["NAME", "SERVICES", "STATE", "LOAD", "ROUND", "TRIP", "ADDRESS"]
    assert re.match(r"greeter-1 +Greeter 1\.2, Named 1\.0 +alive +\d+ +\d+\.\d ms +\S+", node)


def test_ls_lists_nodes_as_json(served: Served) -> None:
    (node,) = json.loads(at(served, "ls", "--json").stdout)
    assert node["name"] == "greeter-1"
    assert node["services"] == {"Greeter": "1.2", "Named": "1.0"}
    assert node["state"] == "alive"
    assert node["round_trip"] > 0
    assert {"id", "address", "load", "capacity"} <= node.keys()


def test_ls_of_an_empty_mesh(served: Served) -> None:
    mesh = random_mesh()
    result = here("ls", "--mesh", mesh, "--no-mdns", "--timeout", "1")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"no node in mesh '{mesh}' (run 'zmesh doctor')" in result.stderr
    assert json.loads(here("ls", "--mesh", mesh, "--no-mdns", "--timeout", "1", "--json").stdout) == []


def test_ls_says_what_stands_in_the_way(served: Served) -> None:
    result = here("ls", "--mesh", random_mesh(), "--peer", served.address, "--no-mdns", "--timeout", "1")
    assert f"{served.address}: " in result.stderr
    assert f"'greeter-1' belongs to mesh '{served.mesh}'" in result.stderr


# -- describe


def test_describe_shows_methods_arguments_and_docstrings(served: Served) -> None:
    result = at(served, "describe", "Greeter")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert text.startswith("Greeter 1.2\n    Says hello.\n\n    In many ways.\n\n")
    assert 'say_hello(name: str, greeting: str = "Hello") -> str\n    Greet one person.\n' in text
    assert "shout(text: str) -> str   [idempotent]\n" in text
    assert 'send(parcel: Parcel, note: bytes = "") -> dict[str, int]\n' in text
    assert '\nParcel: {weight: float, size: Size = "s", label: str | None = null}\n' in text
    assert '\nSize: "l" | "s"\n' in text


def test_describe_as_json_is_what_the_node_says(served: Served) -> None:
    described = json.loads(at(served, "describe", "Greeter", "--json").stdout)
    assert described["version"] == "1.2"
    assert described["methods"]["say_hello"]["doc"] == "Greet one person."
    assert described["methods"]["say_hello"]["parameters"]["required"] == ["name"]


def test_describe_of_a_service_that_nobody_offers(served: Served) -> None:
    said = failed(at(served, "describe", "Nobody", "--timeout", "1"), 1)
    assert "'Nobody'" in said
    assert "greeter-1" in said


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({}, "Any"),
        ({"type": "integer"}, "int"),
        ({"type": "array"}, "list"),
        ({"type": "array", "items": {"type": "number"}}, "list[float]"),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}]}, "tuple[int, None]"),
        ({"type": "array", "description": "numpy.ndarray"}, "numpy.ndarray"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "dict[str, bool]"),
        ({"type": "object"}, "dict"),
        ({"type": ["string", "null"]}, "str | None"),
        ({"anyOf": [{"$ref": "#/$defs/Item"}, {"type": "null"}]}, "Item | None"),
        ({"enum": ["a", 1]}, '"a" | 1'),
        ({"const": "a"}, '"a"'),
        ({"type": "string", "contentEncoding": "base64"}, "bytes"),
        ({"type": "string", "format": "date-time"}, "datetime"),
        ({"type": "string", "format": "uuid"}, "UUID"),
        ({"type": "unheard-of"}, "Any"),
    ],
)
def test_type_name(schema: dict[str, Any], name: str) -> None:
    assert type_name(schema) == name


def test_signature_of_a_stream() -> None:
    method = {
        "kind": "bidi",
        "idempotent": False,
        "parameters": {"properties": {}, "required": []},
        "stream": {"parameter": "lines", "items": {"type": "string"}},
        "result": {"type": "integer"},
    }
    assert signature_of(method, "echo") == "echo(lines: stream of str) -> stream of int"


# -- call


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["Greeter.say_hello", "name=World"], '"Hello, World"'),
        (["Greeter.say_hello", "name=a=b", "greeting=Grüß Gott"], '"Grüß Gott, a=b"'),
        (["Greeter.say_hello", 'name="3"'], '"Hello, 3"'),
        (["Greeter.shout", "text=NaN"], '"NAN"'),
        (["Greeter.twice", "value=3"], "[3, 3]"),
        (["Greeter.twice", "value=-0.5"], "[-0.5, -0.5]"),
        (["Greeter.twice", 'value={"a": [null, true]}'], '[{"a": [null, true]}, {"a": [null, true]}]'),
        (["Greeter.twice", "value="], '["", ""]'),
        (["Greeter.twice", 'value={"$base64": "aGk="}'], '[{"$base64": "aGk="}, {"$base64": "aGk="}]'),
        (["Greeter.send", 'parcel={"weight": 2}', 'note={"$base64": "aGVsbG8="}'], '{"weight": 2, "note": 5}'),
        (["Greeter.say_hello", "--json-args", '{"name": "World"}'], '"Hello, World"'),
        (["Greeter.say_hello", "--json-args", '{"name": "World"}', "greeting=Bye"], '"Bye, World"'),
        (["Greeter.tell_metadata", "-m", "tenant=a", "-m", "n=1"], '{"tenant": "a", "n": "1"}'),
        (["Named.name"], '"an instance"'),
    ],
)
def test_call(served: Served, arguments: list[str], printed: str) -> None:
    result = at(served, "call", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{printed}\n"
    assert result.stderr == ""


def test_call_reads_arguments_from_standard_input(served: Served) -> None:
    assert at(served, "call", "Greeter.twice", "--json-args", "-", input='{"value": 1}').stdout == "[1, 1]\n"


def test_call_tells_who_answered(served: Served) -> None:
    assert at(served, "call", "Greeter.tell_metadata", "-v").stderr == "answered by greeter-1\nanswer: 'yes'\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Greeter.find", "key=spoon"], "NOT_FOUND: no spoon [said by greeter-1]\n  key: spoon\n"),
        (["Greeter.fail"], "INTERNAL: LookupError: lost [said by greeter-1]\n"),
        (["Greeter.say_hello", "name=3"], "INVALID_ARGUMENT: Greeter.say_hello: argument 'name': expected `str`, got"),
        (["Greeter.say_hello"], "INVALID_ARGUMENT: Greeter.say_hello: missing argument 'name'"),
        (["Greeter.say_hello", "name=x", "age=3"], "INVALID_ARGUMENT: Greeter.say_hello: "),
        (["Greeter.bye"], "UNIMPLEMENTED: service 'Greeter' has no method 'bye'; it has say_hello, shout, "),
        (["Nobody.home", "--timeout", "0.5"], "DEADLINE_EXCEEDED: "),
    ],
)
def test_call_that_fails_says_code_and_message(served: Served, arguments: list[str], said: str) -> None:
    assert failed(at(served, "call", *arguments), 1).startswith(said)


def test_call_that_expires_says_that_it_may_have_run(served: Served, tmp_path: Path) -> None:
    never = tmp_path / "never"
    said = failed(
        at(served, "call", "Greeter.wait_for", f"begun={tmp_path / 'begun'}", f"go={never}", "--timeout", "0.5"), 1
    )
    assert said.startswith("DEADLINE_EXCEEDED: ")
    assert "the handler may have run" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Greeter"], "'Greeter' is no method: write SERVICE.METHOD"),
        (["Greeter._private"], "is no method"),
        (["Greeter.say_hello", "World"], "'World' is no argument: write NAME=VALUE"),
        (["Greeter.say_hello", "name=a", "name=b"], "argument 'name' is given twice"),
        (["Greeter.say_hello", "--json-args", '{"name": "a"}', "name=b"], "argument 'name' is given twice"),
        (["Greeter.say_hello", "--json-args", "{"], "--json-args: "),
        (["Greeter.say_hello", "--json-args", "[1]"], "--json-args takes an object"),
        (["Greeter.say_hello", 'name={"$base64": "?"}'], "argument 'name': '$base64' stands before base64 text"),
        (["Greeter.say_hello", "-m", "tenant"], "'tenant' is no metadata: write NAME=VALUE"),
        (["Greeter.say_hello", "--timeout", "0"], "--timeout"),
        (["Greeter.say_hello", "--peer", "localhost"], "'localhost' is no address; write tcp://HOST:PORT"),
        (["Greeter.say_hello", "--unheard-of"], "No such option"),
    ],
)
def test_wrong_usage_of_call(arguments: list[str], said: str) -> None:
    assert said in failed(here("call", *arguments), 2)


def test_nodes_are_found_by_mdns(serve: Callable[..., Served]) -> None:
    server = serve("tests.served:Greeter", "--name", "here")
    where = ("--mesh", server.mesh, "--interface", "127.0.0.1")
    began = time.monotonic()
    result = program("call", *where, "Greeter.say_hello", "name=World", env=CLEAN)
    print(f"zmesh call: {time.monotonic() - began:.3f} s from start to end of the process")
    assert (result.returncode, result.stdout, result.stderr) == (0, '"Hello, World"\n', "")
    (node,) = json.loads(here("ls", *where, "--json").stdout)
    assert node["name"] == "here"
    assert server.terminate() == 0
    assert json.loads(here("ls", *where, "--json").stdout) == []


def test_environment_is_taken(served: Served) -> None:
    env = {"ZMESH_MESH": served.mesh, "ZMESH_PEERS": served.address, "ZMESH_DISCOVERY": "none"}
    assert here("call", "Named.name", env=env).stdout == '"an instance"\n'


# -- why


def test_why_says_where_a_call_would_go_and_sends_nothing(served: Served) -> None:
    def calls() -> int:
        (node,) = json.loads(at(served, "describe", "Greeter", "--stats", "--json").stdout)
        return int(node["methods"].get("Greeter.say_hello", {"calls": 0})["calls"])

    before = calls()
    result = at(served, "why", "Greeter.say_hello")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Greeter.say_hello would go to greeter-1 now: the only one that can take it"
    assert lines[2].split()[:2] == ["NODE", "STATE"]
    assert lines[3].split()[:3] == ["→", "greeter-1", "alive"]
    assert calls() == before


def test_why_with_arguments_makes_the_call(served: Served) -> None:
    result = at(served, "why", "Greeter.say_hello", "name=World", "--json")
    assert result.exit_code == 0, result.output
    why = json.loads(result.stdout)
    (attempt,) = why["attempts"]
    assert (why["method"], why["made"], attempt["node"], attempt["outcome"]) == (
        "Greeter.say_hello", True, "greeter-1", "answered",
    )  # fmt: skip
    assert why["choices"][0]["candidates"][0]["report_age"] is not None


def test_why_of_a_call_that_fails_explains_it_as_well(served: Served) -> None:
    result = at(served, "why", "Greeter.fail", "--call")
    assert result.exit_code == 1
    assert result.stdout.startswith("Greeter.fail failed: ")
    assert "greeter-1, first at 0 ms: failed after " in result.stdout
    assert result.stderr.startswith("INTERNAL")


def test_why_where_nobody_takes_it(served: Served) -> None:
    result = at(served, "why", "Greeter.say_hello", "--node", "greeter-2")
    assert result.exit_code == 1
    assert result.stdout.startswith("Greeter.say_hello would go to nobody now: no node named 'greeter-2' offers")
    assert "another was asked for" in result.stdout
    result = at(served, "why", "Nobody.knows")
    assert result.exit_code == 1
    assert result.stdout.startswith("Nobody.knows would go to nobody now: no node offers 'Nobody'")
    assert "has no method 'say_helo'" in failed(at(served, "why", "Greeter.say_helo"), 1)
    assert "is no method: write SERVICE.METHOD" in failed(at(served, "why", "say_hello"), 2)


# -- bench


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else will be found, so there is nobody to wait for."""
    monkeypatch.setattr(cli_bench, "_SETTLE", 0.05)


@pytest.mark.usefixtures("alone")
def test_bench_of_a_method_counts_every_call(served: Served) -> None:
    result = at(served, "bench", "Greeter.shout", "text=hi", "-n", "1", "-n", "4", "--calls", "21", "--json")
    assert result.exit_code == 0, result.output
    levels = json.loads(result.stdout)
    assert [(level["in_flight"], level["calls"]) for level in levels] == [(1, 21), (4, 21)]
    for level in levels:
        assert level["nodes"] == {"greeter-1": 21}
        assert level["errors"] == {}
        assert 0 < level["latency"]["p50"] <= level["latency"]["p99.9"] <= level["worst"] < WITHIN
        assert level["calls_per_second"] == pytest.approx(21 / level["seconds"])


@pytest.mark.usefixtures("alone")
def test_bench_of_a_method_that_changes_something_must_be_meant(served: Served) -> None:
    assert "Greeter.say_hello is not idempotent" in failed(at(served, "bench", "Greeter.say_hello", "name=x"), 2)
    result = at(served, "bench", "Greeter.say_hello", "name=x", "--yes", "--calls", "3", "-n", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split()[:2] == ["2", "3"]  # in flight, calls


@pytest.mark.usefixtures("alone")
def test_bench_counts_errors_by_code(served: Served) -> None:
    result = at(served, "bench", "Greeter.find", "key=spoon", "--yes", "--calls", "3", "-n", "3")
    assert result.exit_code == 1
    assert "3 NOT_FOUND" in result.stdout
    assert "no spoon" in result.stderr


@pytest.mark.usefixtures("alone")
def test_bench_prints_what_there_is_on_ctrl_c(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = cli_bench.measure

    async def interrupted(level: Any, call: Any, seconds: float, calls: int | None) -> None:
        if level.in_flight == 1:
            await measure(level, call, seconds, 5)
            return
        signal.raise_signal(signal.SIGINT)
        await measure(level, call, seconds, calls)
        raise AssertionError("still there")

    monkeypatch.setattr(cli_bench, "measure", interrupted)
    result = at(served, "bench", "Greeter.shout", "text=hi", "--json", "--seconds", "20")
    assert result.exit_code == 130
    first, *rest = json.loads(result.stdout)
    assert first["calls"] == 5
    assert all(level["in_flight"] == 16 for level in rest)


def test_bench_between_two_processes() -> None:
    result = here("bench", "-n", "1", "-n", "8", "--seconds", "0.1", "--json")
    assert result.exit_code == 0, result.output
    levels = json.loads(result.stdout)
    assert [list(level["nodes"]) for level in levels] == [["bench"], ["bench"]]
    assert all(level["bare_calls_per_second"] > 0 for level in levels)


def test_bench_does_not_wait_for_the_bare_loop_on_ctrl_c() -> None:
    async def measured() -> float:
        stop = threading.Event()
        stop.set()
        async with _bare.opened() as address:
            return _bare.rate(address, "text", 3, 3600.0, stop)

    assert asyncio.run(measured()) > 0


def test_bench_shows_the_share_of_each_node(capsys: pytest.CaptureFixture[str]) -> None:
    level = Level(1000, seconds=2.0)
    level.latencies.extend([0.001] * 3 + [0.25])
    level.nodes.update({"a": 3, "b": 1})
    level.bare = 4.0
    cli_bench.echo([level])
    latencies = ["P50", "P90", "P99", "P99.9", "WORST"]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["IN", "FLIGHT", "CALLS", "CALLS/S", *latencies, "ERRORS", "BARE", "CALLS/S", "OF", "BARE"],
        ["1,000", "4", "2", "1,000", "µs", *["250.0", "ms"] * 4, "0", "4", "0.50"],
        [],
        ["NODE", "1,000", "IN", "FLIGHT"],
        ["a", "75.0", "%"],
        ["b", "25.0", "%"],
    ]


# -- JSON


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (memoryview(b"hi"), '{"$base64": "aGk="}'),
        ({1: (b"", {2})}, '{"1": [{"$base64": ""}, [2]]}'),
        ({None: "é"}, '{"null": "é"}'),
        (1j, '"1j"'),
    ],
)
def test_to_json(value: object, text: str) -> None:
    assert cli_json.to_json(value) == text


def test_arrays_become_lists() -> None:
    numpy = pytest.importorskip("numpy")
    assert cli_json.to_json({"a": numpy.array([[1, 2]])}) == '{"a": [[1, 2]]}'


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "World", "{", "01", ""])
def test_what_is_no_json_is_a_string(text: str) -> None:
    assert cli_json.argument_of(text) == text


# -- the group


def test_help_lists_every_command() -> None:
    text = here("--help").stdout
    for name in ("serve", "ls", "describe", "call", "doctor", "demo", "version"):
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
        assert here(name, "--help").exit_code == 0


def test_unknown_command_is_wrong_usage() -> None:
    assert "No such command 'fly'" in failed(here("fly"), 2)


def test_versions() -> None:
    assert here("--version").stdout == f"zmesh {zmesh.__version__}\n"
    assert f"zmesh {zmesh.__version__}\n" in here("version").stdout
    found = json.loads(here("version", "--json").stdout)
    assert {"zmesh", "python", "pyzmq", "libzmq", "zeroconf", "cbor2", "msgspec"} <= found.keys()
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["libzmq"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    script = here("--completion", shell).stdout
    assert f"_ZMESH_COMPLETE={shell}_complete" in script


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("zmesh de", ["demo", "describe"]),
        ("zmesh call Gr", ["Greeter."]),
        ("zmesh call Greeter.s", ["Greeter.say_hello", "Greeter.send", "Greeter.shout"]),
        ("zmesh describe N", ["Named"]),
        ("zmesh call Nobody.", []),
    ],
)
def test_completion(served: Served, words: str, completed: list[str]) -> None:
    env = {
        "ZMESH_MESH": served.mesh,
        "ZMESH_PEERS": served.address,
        "ZMESH_DISCOVERY": "none",
        "_ZMESH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = program(env={**CLEAN, **env})
    assert result.stderr == ""
    assert sorted(line.partition(",")[2] for line in result.stdout.splitlines() if line) == completed


def test_nothing_of_the_command_line_is_loaded_before_it_runs() -> None:
    code = "import sys, zmesh.cli; print(sorted({'click', 'rich', 'zeroconf', 'zmq', 'uvloop'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_call_loads_no_more_than_it_needs(served: Served) -> None:
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(sorted({'rich', 'uvloop', 'numpy', 'zmesh.cli.demo'} & set(sys.modules))))\n"
        "from zmesh.cli import main\n"
        f"sys.argv[1:] = ['call', 'Named.name', '--no-mdns', '--mesh', {served.mesh!r}, '--peer', {served.address!r}]\n"
        "main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=CLEAN)
    assert found.stdout == '"an instance"\n[]\n'
