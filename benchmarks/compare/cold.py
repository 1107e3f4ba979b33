"""The shortest program with each system that calls a known peer once: from starting Python to the answer.

Bytecode is cached, as it is after installing, whatever the environment says.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .sides import ROOT, WITHIN, Failed

__all__ = ["PROGRAMS", "start"]

_MESSAGE = "{'name': 'World', 'n': 1, 'data': 'x'}"
_MAIN = "import asyncio\nasync def main():\n {}\nasyncio.run(main())"
_ZMESH = "peers=[address], discovery=None, config=zmesh.Config(ipc=False)"
# What each imports, and what it does then. `answered()` notes the time.
PROGRAMS = {
    "bare": (
        "import cbor2, zmq",
        "s = zmq.Context().socket(zmq.DEALER); s.linger = 0; s.connect(address)\n"
        f"s.send(cbor2.dumps([1, 'echo', {_MESSAGE}])); cbor2.loads(s.recv()); answered()",
    ),
    "zmesh": (
        "import asyncio, zmesh",
        _MAIN.format(
            f"async with zmesh.Node({_ZMESH}) as node:\n"
            f"  await node.client('Echo').echo(message={_MESSAGE}); answered()"
        ),
    ),
    "zmesh-blocking": (
        "import zmesh",
        f"with zmesh.connect({_ZMESH}) as mesh: mesh.client('Echo').echo(message={_MESSAGE}); answered()",
    ),
    "grpc": (
        "import asyncio, grpc.aio; from benchmarks.compare.systems.grpc_ import Message",
        _MAIN.format(
            "async with grpc.aio.insecure_channel(address) as channel:\n"
            "  await channel.unary_unary('/bench.Echo/Echo', request_serializer=Message.SerializeToString, "
            f"response_deserializer=Message.FromString)(Message(**{_MESSAGE})); answered()"
        ),
    ),
    "nats": (
        "import asyncio, cbor2, nats",
        _MAIN.format(
            "url, _, subject = address.rpartition('/'); c = await nats.connect(url)\n"
            f" await c.request(subject, cbor2.dumps({_MESSAGE}), timeout=9); answered(); await c.close()"
        ),
    ),
    "pyro5": ("import Pyro5.api", f"Pyro5.api.Proxy(address).echo({_MESSAGE}); answered()"),
    "rpyc": (
        "import rpyc",
        "host, _, port = address.rpartition(':')\nrpyc.connect(host, int(port)).root.echo('World', 1, 'x'); answered()",
    ),
    "zenoh": (
        "import cbor2, json, zenoh",
        "c = zenoh.Config(); c.insert_json5('scouting/multicast/enabled', 'false')\n"
        "c.insert_json5('connect/endpoints', json.dumps([address]))\n"
        "with zenoh.open(c) as s:\n"
        f" m = cbor2.dumps({_MESSAGE}); key = f\"bench/{{address.rpartition(':')[2]}}/echo\"\n"
        " while not [r.ok for r in s.get(key, payload=m)]: pass\n"  # until it has met the queryable there is no answer
        " answered()",
    ),
    "zerorpc": ("import zerorpc", f"c = zerorpc.Client(address); c.echo({_MESSAGE}); answered(); c.close()"),
}


def start(system: str, address: str, cache: str) -> dict[str, float]:
    """Run the program: milliseconds until its imports were done, and until the answer. Raises Failed."""
    imports, ask = PROGRAMS[system]
    noted = "print(time.monotonic(), flush=True)"
    program = f"import sys, time\n{imports}\n{noted}\naddress = sys.argv[1]\ndef answered(): {noted}\n{ask}"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", program, address]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=WITHIN,
            cwd=ROOT,
            env={**env, "PYTHONPYCACHEPREFIX": cache},
        )
    except subprocess.CalledProcessError as error:
        raise Failed(str(error.stderr).strip().rpartition("\n")[2]) from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"no answer within {WITHIN:g} s") from error
    imported, answered = (1000 * (float(line) - began) for line in done.stdout.split())
    return {"imports ms": imported, "ms": answered}
