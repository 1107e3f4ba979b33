"""What went over a host's wire, by tcpdump, and what one side of a connection said in it."""

from __future__ import annotations

import shutil
import signal
import struct
from pathlib import Path
from types import TracebackType

from .conftest import skip_or_fail
from .namespaces import Host

__all__ = ["Capture", "said"]


class Capture:
    """Everything of a TCP port on a host's interface, while the context is open; then `raw` has the file's bytes."""

    def __init__(self, host: Host, port: int, path: Path) -> None:
        if shutil.which("tcpdump") is None:
            skip_or_fail("no 'tcpdump' (Debian package tcpdump)")
        self.path = path
        self.raw = b""
        # Packets are handed over at once and in full; -Z root: it may write where the test may.
        self._program = host.run(
            "tcpdump",
            "-i",
            "eth0",
            "-s",
            "0",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-w",
            str(path),
            f"tcp port {port}",
        )

    def __enter__(self) -> Capture:
        self._program.wait_for("listening on")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._program.signal(signal.SIGINT)
        self._program.wait()
        self.raw = self.path.read_bytes()


def said(raw: bytes, port: int) -> bytes:
    """What was sent to a TCP port by the first IPv4 connection to it, in order, in a little-endian pcap of Ethernet
    (the file format: draft-ietf-opsawg-pcap; the headers: RFC 791, RFC 9293)."""
    assert struct.unpack_from("<I", raw)[0] in (0xA1B2C3D4, 0xA1B23C4D)
    pieces: dict[int, bytes] = {}
    source: int | None = None
    at = 24
    while at < len(raw):
        length = struct.unpack_from("<I", raw, at + 8)[0]
        packet = raw[at + 16 : at + 16 + length]
        at += 16 + length
        if packet[12:14] != b"\x08\x00" or packet[23] != 6:
            continue
        tcp = packet[14 + 4 * (packet[14] & 15) : 14 + struct.unpack_from("!H", packet, 16)[0]]
        sender, receiver, sequence = struct.unpack_from("!HHI", tcp)
        payload = tcp[4 * (tcp[12] >> 4) :]
        if receiver == port and payload and source in (None, sender):
            source = sender
            pieces[sequence] = payload
    return b"".join(pieces[sequence] for sequence in sorted(pieces))
