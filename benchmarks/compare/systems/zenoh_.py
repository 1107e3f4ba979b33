"""Zenoh: a queryable answers, a querier asks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import cbor2
import zenoh

from ..clients import TEXT, Blocking, now
from ..worker import free_port, ready

TIMEOUT = 30.0


def _session(listen: Sequence[str], connect: Sequence[str]) -> Any:
    config = zenoh.Config()
    settings = {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "transport/shared_memory/enabled": False,
        "listen/endpoints": list(listen),
        "connect/endpoints": list(connect),
    }
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


def serve(variant: str, beside: Sequence[str]) -> None:
    port = free_port()
    session = _session([f"tcp/127.0.0.1:{port}"], [])
    key = f"bench/{port}"

    def echo(query: Any) -> None:
        with query:
            query.reply(f"{key}/echo", cbor2.dumps(cbor2.loads(query.payload.to_bytes())))

    def size(query: Any) -> None:
        with query:
            query.reply(f"{key}/size", cbor2.dumps(len(query.payload.to_bytes())))

    def back(query: Any) -> None:
        with query:
            query.reply(f"{key}/back", query.payload.to_bytes())

    def items(query: Any) -> None:
        with query:
            for index in range(cbor2.loads(query.payload.to_bytes())):
                query.reply(f"{key}/items", cbor2.dumps({"i": index, "s": TEXT}))

    declared = [session.declare_queryable(f"{key}/{f.__name__}", f, complete=True) for f in (echo, size, back, items)]
    ready(f"tcp/127.0.0.1:{port}")
    threading.Event().wait()
    del declared


class Client(Blocking):
    def open(self, addresses: Sequence[str]) -> None:
        self._session = _session([], addresses)
        ports = [address.rpartition(":")[2] for address in addresses]
        self._echoes = [self._querier(f"bench/{port}/echo") for port in ports]
        self._items, self._size, self._back = (
            self._querier(f"bench/{ports[0]}/{name}") for name in ("items", "size", "back")
        )
        give_up = time.monotonic() + TIMEOUT
        while not all(querier.matching_status for querier in [*self._echoes, self._items, self._size, self._back]):
            assert time.monotonic() < give_up, "zenoh does not find its queryables"
            time.sleep(0.02)

    def _querier(self, key: str) -> Any:
        return self._session.declare_querier(
            key,
            target=zenoh.QueryTarget.BEST_MATCHING,
            consolidation=zenoh.ConsolidationMode.NONE,
            congestion_control=zenoh.CongestionControl.BLOCK,
            timeout=TIMEOUT,
        )

    def echo(self, argument: Any) -> Any:
        return cbor2.loads(next(iter(self._echoes[0].get(payload=cbor2.dumps(argument)))).ok.payload.to_bytes())

    def size(self, value: bytes) -> int:
        size: int = cbor2.loads(next(iter(self._size.get(payload=value))).ok.payload.to_bytes())
        return size

    def back(self, value: bytes) -> Any:
        return next(iter(self._back.get(payload=value))).ok.payload.to_bytes()

    def fan(self, arguments: Sequence[Any]) -> Sequence[Any]:
        asked = [q.get(payload=cbor2.dumps(a)) for q, a in zip(self._echoes, arguments, strict=True)]
        return [cbor2.loads(next(iter(replies)).ok.payload.to_bytes()) for replies in asked]

    def keep(self, in_flight: int, end: float) -> tuple[int, int]:
        """A callback for each answer, which makes room for the next call."""
        room = threading.Semaphore(in_flight)
        count = {"done": 0, "wrong": 0}  # callbacks are run one at a time, by one thread

        def ask(argument: Any) -> None:
            def answered(reply: Any) -> None:
                count["wrong"] += cbor2.loads(reply.ok.payload.to_bytes()) != argument
                count["done"] += 1
                room.release()

            self._echoes[0].get(zenoh.handlers.Callback(answered, indirect=False), payload=cbor2.dumps(argument))

        asked = 0
        while not asked or now() < end:
            assert room.acquire(timeout=TIMEOUT), "zenoh does not answer"
            asked += 1
            ask(self.make(next(self.numbers)))
        for _ in range(in_flight):
            assert room.acquire(timeout=TIMEOUT), "zenoh does not answer"
        return count["done"], count["wrong"]

    def items(self, count: int) -> Iterator[Any]:
        for reply in self._items.get(zenoh.handlers.FifoChannel(4096), payload=cbor2.dumps(count)):
            yield cbor2.loads(reply.ok.payload.to_bytes())
