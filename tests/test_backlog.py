"""Very many answers at once, to a peer that does not read for a while, over real sockets: the link holds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import zmesh

CALLS = 4_000
SIZE = 6_000  # bytes of an answer: the kernel's buffers take a thousand, libzmq's queue another thousand


class Holding(zmesh.Service):
    def __init__(self) -> None:
        self.open = 0
        self.gate = asyncio.Event()

    @zmesh.rpc
    async def hold(self, number: int) -> str:
        self.open += 1
        await self.gate.wait()
        return f"{number:{SIZE}}"


class Path:
    """Between a caller and a server: lets nothing through to the caller while it is shut."""

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._server.connect((host, int(port)))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.clear = threading.Event()
        self.clear.set()
        self._threads = [threading.Thread(target=self._begin, daemon=True)]
        self._threads[0].start()

    def _begin(self) -> None:
        with contextlib.suppress(OSError):
            self._caller, _ = self._listener.accept()
            self._threads.append(threading.Thread(target=self._carry, args=(self._caller, self._server), daemon=True))
            self._threads[1].start()
            self._carry(self._server, self._caller)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                if source is self._server:
                    self.clear.wait(60)
                data = source.recv(64 * 1024)
                if not data:
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.clear.set()
        for end in (self._listener, self._server, self._caller):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(10)


def test_a_caller_that_stands_still_gets_all_its_answers() -> None:
    patient = zmesh.Config(ipc=False, bulk=False, timeout=100, suspect_after=60, transport_timeout=60, admission=False)
    frugal = patient.replace(max_message=8_192)  # so that each answer is an envelope

    async def main() -> None:
        holding = Holding()
        async with zmesh.Node(holding, listen="tcp://127.0.0.1:0", discovery=None, config=patient) as server:
            with contextlib.closing(Path(server.addresses[0])) as path:
                async with zmesh.Node(peers=[path.address], discovery=None, config=frugal) as caller:
                    client = caller.client(Holding)
                    answers = asyncio.gather(*(client.hold(number) for number in range(CALLS)))
                    while holding.open < CALLS and not answers.done():
                        await asyncio.sleep(0.01)
                    [link] = server._hub._accepted  # type: ignore[union-attr]
                    path.clear.clear()
                    holding.gate.set()
                    while not link.full and not answers.done():
                        await asyncio.sleep(0.01)
                    path.clear.set()
                    assert [int(each) for each in await answers] == list(range(CALLS))

    asyncio.run(main())
