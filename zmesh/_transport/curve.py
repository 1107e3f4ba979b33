"""What a secured node has of ZeroMQ besides its sockets: CURVE keys, a context of its own, the ZAP handler that decides
who may connect (ZeroMQ RFC 27), the watch on the inbox for handshakes that fail before anybody is asked.

libzmq asks one ZAP handler for all sockets of a context, so a secured node does not share the process's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from typing import Final

import zmq
import zmq.utils.monitor
import zmq.utils.z85

from . import PLAIN_STRANGER, WRONG_SERVER, Gate

__all__ = ["Descriptor", "InboxWatch", "Zap", "close_context", "peer_of", "public_of", "secure", "why_failed"]

_DOMAIN: Final = b"zmesh"
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_CURVE: Final = b"CURVE"
_HANDLED_A_TURN: Final = 64  # requests or events, before the loop does something else
_MOST_CONNECTIONS: Final = 65_536  # remembered by descriptor, to say who it was that failed

_WATCHED: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
MECHANISM_MISMATCH: Final = 0x1100_0002  # ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, zmq.h
_CRYPTOGRAPHIC: Final = 0x1100_0001  # ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC


def public_of(secret: str) -> str:
    """The public key of a secret one, both as Z85."""
    return zmq.curve_public(secret.encode()).decode()


def secure(sock: zmq.Socket[bytes], gate: Gate, server: str | None) -> None:
    """Put CURVE on a socket before it connects or binds. server: the key of the other side; None: it is the inbox."""
    sock.setsockopt(zmq.CURVE_PUBLICKEY, gate.public.encode())
    sock.setsockopt(zmq.CURVE_SECRETKEY, gate.secret.encode())
    if server is not None:
        sock.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
        return
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
    sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody is let in while no handler answers


def close_context(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """End a node's own context, once what its sockets had to send has left: not on the loop, which would wait."""
    with contextlib.suppress(RuntimeError):  # the interpreter ends, and starts no thread any more
        threading.Thread(target=context.term, name="zmesh-context", daemon=True).start()


class _Watched:
    """A socket of this node's own whose descriptor is on the loop. It is edge-triggered: all is read, or read later."""

    def __init__(self, sock: zmq.Socket[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        self._zmq = sock
        self._descriptor: int = sock.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._loop.add_reader(self._descriptor, self._look)
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        try:
            for _ in range(_HANDLED_A_TURN):
                if self._zmq.closed:
                    return
                self._handle()
            self._loop.call_soon(self._look)
        except zmq.Again:
            return
        except zmq.ZMQError as error:
            if error.errno not in (zmq.ETERM, zmq.ENOTSOCK):
                raise
        except BaseException:  # of who was told: the loop logs it, and the rest is not lost
            self._loop.call_soon(self._look)
            raise

    def _handle(self) -> None:
        """Take one message. Raises zmq.Again where there is none."""
        raise NotImplementedError

    def close(self) -> None:
        if not self._zmq.closed:
            self._loop.remove_reader(self._descriptor)
            self._zmq.close(linger=0)


class Zap(_Watched):
    """Answers libzmq's question who may connect, by key."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], gate: Gate) -> None:
        sock = context.socket(zmq.REP)
        sock.bind(_ZAP_ENDPOINT)
        self._gate = gate
        super().__init__(sock)

    def _handle(self) -> None:
        # version, request, domain, address, routing id, mechanism, credentials
        version, request, _, address, _, mechanism, *credentials = self._zmq.recv_multipart(zmq.NOBLOCK)
        key: str | None = None
        why: str | None = PLAIN_STRANGER
        status, user = b"500", b""
        try:  # whatever happens, there is an answer: without one this socket takes no further question
            if version == _VERSION and mechanism == _CURVE and len(credentials) == 1:
                key = zmq.utils.z85.encode(credentials[0]).decode()
                why = self._gate.refusal(key)
                status, user = (b"400", b"") if why is not None else (b"200", key.encode())
        finally:
            self._zmq.send_multipart([_VERSION, request, status, b"", user, b""])
        if why is not None:
            self._gate.refused(_host(address.decode(errors="replace")), key, why)


def why_failed(value: int) -> str:
    """What libzmq's code of a failed handshake means."""
    if value == MECHANISM_MISMATCH:
        return PLAIN_STRANGER
    return WRONG_SERVER if value == _CRYPTOGRAPHIC else f"its ZMTP handshake is wrong (0x{value:08x})"


class InboxWatch(_Watched):
    """Where there is no `guard`: hears of handshakes that fail before ZAP is asked, of who speaks without CURVE, or not
    to this node's key.

    Of such a failure libzmq tells no address. It tells the descriptor, right behind it, as the connection ends; whose
    that was is noted when it is accepted. A handshake that is broken off is no refusal: a node that dials several
    addresses of another does so, with all but the fastest.
    """

    def __init__(self, inbox: zmq.Socket[bytes], gate: Gate) -> None:
        self._gate = gate
        self._inbox = inbox
        self._who: dict[int, str] = {}
        self._failure: str | None = None
        super().__init__(inbox.get_monitor_socket(_WATCHED))

    def _handle(self) -> None:
        event = zmq.utils.monitor.recv_monitor_message(self._zmq, zmq.NOBLOCK)
        kind, value = int(event["event"]), int(event["value"])
        if kind == zmq.EVENT_ACCEPTED:
            if len(self._who) < _MOST_CONNECTIONS:
                self._who[value] = _who(value)
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._failure = why_failed(value)
        elif kind == zmq.EVENT_DISCONNECTED:
            who, why, self._failure = self._who.pop(value, "?"), self._failure, None
            if why is not None:
                self._gate.refused(who, None, why)

    def close(self) -> None:
        if not self._zmq.closed:
            with contextlib.suppress(zmq.ZMQError):
                self._inbox.disable_monitor()
        super().close()


def _who(descriptor: int) -> str:
    """The address of who is at the other end of a connection that libzmq has just accepted."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            name = connection.getpeername()
    except OSError:  # gone already
        return "?"
    return _host(str(name[0])) if isinstance(name, tuple) else "this host"


def peer_of(frame: zmq.Frame) -> str:
    """The host that sent a frame, as ZAP is told it."""
    try:
        return _host(str(frame.get("Peer-Address")))
    except zmq.ZMQError:
        return "?"


def _host(address: str) -> str:
    """Of what libzmq says: an IP address, or on ipc `localhost:UID:GID:PID`, which each process has another of."""
    return "this host" if address.startswith("localhost") else address.removeprefix("::ffff:")


class Descriptor:
    """An accepted connection as the kernel has it: its descriptor, and what tells it from one that takes its number."""

    __slots__ = ("_descriptor", "_inode")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._inode = _inode(descriptor)

    @classmethod
    def of(cls, frame: zmq.Frame) -> Descriptor:
        """That by which a frame came."""
        try:
            return cls(int(frame.get(zmq.SRCFD)))
        except zmq.ZMQError:  # it was over before libzmq had asked who was there
            return cls(-1)

    def shut(self) -> None:
        """End it for both sides; libzmq sees that and forgets it. Without effect on one that is over."""
        try:
            copy = os.dup(self._descriptor)
        except OSError:
            return
        with socket.socket(fileno=copy) as connection:
            if self._inode is not None and _inode(copy) == self._inode:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _inode(descriptor: int) -> int | None:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None
