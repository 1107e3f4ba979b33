"""What a node costs that does nothing: processor time and memory, alone and among peers found by mDNS on 127.0.0.1."""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from tests.net.figures import table

ROOT = Path(__file__).resolve().parents[1]
NODE = """
import asyncio, sys, zmesh

class Idle(zmesh.Service):
    @zmesh.rpc
    async def nothing(self) -> None: ...

async def main() -> None:
    async with zmesh.Node(Idle(), name=sys.argv[1], interfaces=["127.0.0.1"]) as node:
        if sys.argv[2] == "linked":
            await node.client(Idle).nothing()
        print("READY", flush=True)
        await node.serve_forever()

asyncio.run(main())
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(nodes: int, linked: bool, seconds: float) -> list[dict[str, float]]:
    """Per node: percent of a core, MiB resident."""
    env = {**os.environ, "ZMESH_MESH": f"idle-{secrets.token_hex(4)}"}
    processes = []
    try:
        for number in range(nodes):
            argv = [sys.executable, "-c", NODE, f"idle-{number}", "linked" if linked else "alone"]
            processes.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env))
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "READY\n", "a node did not start"
        time.sleep(2.0)  # what belongs to starting (announcements are repeated for a second) is not idleness
        before = [cpu_seconds(process.pid) for process in processes]
        began = time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        return [
            {"core_percent": 100 * (cpu_seconds(process.pid) - start) / elapsed, "rss_mib": resident_mib(process.pid)}
            for process, start in zip(processes, before, strict=True)
        ]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def report(seconds: float, peers: int = 4) -> str:
    """The table of both."""
    linked = f"with {peers} peers, links made"
    results = {"alone": measure(1, False, seconds), linked: measure(peers + 1, True, seconds)}
    rows = []
    for name, nodes in results.items():
        cpu, memory = max(node["core_percent"] for node in nodes), max(node["rss_mib"] for node in nodes)
        rows.append([name, f"{cpu:.2f}", f"{memory:.1f}"])
    return table(["an idle node", "% of a core (the most of a node)", "MiB resident (the most)"], rows)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=20.0)
    options.add_argument("--peers", type=int, default=4, help="in the second measurement")
    given = options.parse_args()
    print(report(given.seconds, given.peers))


if __name__ == "__main__":
    main()
