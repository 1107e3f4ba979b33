"""Everything that somebody tries who may not connect; a line for each, with what became of it."""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from pathlib import Path

import zmq
import zmq.utils.monitor

import zmesh
from tests.net.programs.secured import Secured

WITHIN = 20.0  # seconds; it only bounds a failure
FAILURES = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): "let in",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "refused",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "refused",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "refused by its key",
    int(zmq.EVENT_DISCONNECTED): "refused",
}


def handshake(address: str, server: str | None) -> str:
    """What becomes of a handshake by bare ZeroMQ, with fresh keys where the server's is given."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    if server is not None:
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = server.encode()
    monitor = dealer.get_monitor_socket()
    dealer.connect(address)
    end = time.monotonic() + WITHIN
    result = "nothing"
    while result == "nothing" and monitor.poll(max(0, round(1000 * (end - time.monotonic()))), zmq.POLLIN):
        event = zmq.utils.monitor.recv_monitor_message(monitor)
        result = FAILURES.get(int(event["event"]), "nothing")
    dealer.disable_monitor()
    monitor.close(linger=0)
    dealer.close()
    context.term()
    return result


def speak(address: str, *lines: bytes, here: str = "") -> str:
    """What becomes of a connection on which these are said, each when the one before was answered. here: where it comes
    from."""
    host, port = address.removeprefix("tcp://").split(":")
    answers = 0
    with socket.create_connection((host, int(port)), timeout=WITHIN, source_address=(here, 0)) as connection:
        try:
            for line in lines:
                connection.sendall(line)
                answers += 1 if connection.recv(65_536) else 0
            while connection.recv(65_536):
                answers += 1
        except (ConnectionResetError, BrokenPipeError):
            pass
        except TimeoutError:
            return f"still open after {answers} answers"
    return f"closed after {answers} answers"


def commands(recorded: bytes) -> list[bytes]:
    """The greeting of a recorded connection, and the first two commands behind it: HELLO and INITIATE of CurveZMQ."""
    parts, at = [recorded[:64]], 64
    for _ in range(2):
        flags = recorded[at]
        assert flags & 4, "a command (RFC 37)"
        size = 9 + int.from_bytes(recorded[at + 1 : at + 9], "big") if flags & 2 else 2 + recorded[at + 1]
        parts.append(recorded[at : at + size])
        at += size
    return parts


async def plain_node(address: str) -> str:
    """After how long a node without security says what is wrong with its peer, and the error of its call."""
    began = time.monotonic()
    async with zmesh.Node(peers=[address], discovery=None, security=None) as node:
        call = asyncio.ensure_future(refused(node.client(Secured)))
        while not node.problems and time.monotonic() - began < WITHIN:
            await asyncio.sleep(0.01)
        seconds = time.monotonic() - began
        return f"{seconds:.3f} {await call}"


async def refused(secured: Secured) -> str:
    try:
        return await secured.options(timeout=1.0).echo("plain")
    except zmesh.RpcError as error:
        return error.message


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--address", required=True)
    options.add_argument("--server", required=True, help="the server's public key, which everybody may know")
    options.add_argument("--recorded", type=Path, required=True)
    options.add_argument(
        "--replay-from", required=True, help="an address of this host, so that it is told of by itself"
    )
    given = options.parse_args()
    recorded = commands(given.recorded.read_bytes())
    other, _ = zmq.curve_keypair()
    print(f"UNTRUSTED {handshake(given.address, given.server)}", flush=True)
    print(f"MISTAKEN {handshake(given.address, other.decode())}", flush=True)
    # The greeting of ZMTP 3.1: signature, version, mechanism, as-server, filler.
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    print(f"PLAIN {speak(given.address, greeting)}", flush=True)  # it may hang up before it has greeted
    print(f"REPLAYED {speak(given.address, *recorded, here=given.replay_from)}", flush=True)
    print(f"NODE {asyncio.run(plain_node(given.address))}", flush=True)


if __name__ == "__main__":
    main()
