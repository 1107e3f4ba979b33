"""Security between hosts: what an eavesdropper sees, who is refused, what revoking does; over real sockets."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import zmesh.testing
from zmesh._security import keys

from .capture import Capture, said
from .namespaces import Host, Network, Program, wait_until

SERVICE = "tests.net.programs.secured:Secured"
TEXT = "the-text-of-the-call"
PORT, PLAIN = 7001, 7002
LOOSE_SECOND = 5.0  # the promise is 1 s, kept in virtual time; a busy machine may be late. The figure is printed


def serve(host: Host, port: int, *options: str) -> Program:
    command = ["serve", SERVICE, "--listen", f"tcp://{host.ipv4}:{port}", "--no-mdns", "-v", *options]
    return host.run(sys.executable, "-m", "zmesh", *command, name="serve")


def client(host: Host, peer: str, *options: str, security: zmesh.Security | None = None) -> Program:
    env = {"ZMESH_PEERS": peer, "ZMESH_DISCOVERY": "none"}
    if security is not None:
        env |= {"ZMESH_KEY_FILE": str(security.key_file), "ZMESH_TRUST": str(security.trust)}
    return host.run(sys.executable, "-m", "tests.net.programs.secured", TEXT, *options, name="client", env=env)


def logged(server: Program, pattern: str) -> None:
    server.wait_for(f"^zmesh.security: refused a handshake from {pattern}", 10.0)


def test_security_between_hosts(make_network: Callable[[int], Network], tmp_path: Path) -> None:
    one, two = make_network(2).hosts
    secured = zmesh.testing.make_keys(tmp_path, "server", "client")
    public = {name: keys.read_public(tmp_path / "trust" / f"{name}.pub") for name in secured}
    with (
        Capture(two, PLAIN, tmp_path / "plain.pcap") as plain,
        Capture(two, PORT, tmp_path / "secured.pcap") as capture,
    ):
        open_to_all = serve(one, PLAIN)
        server = serve(one, PORT, "--key-file", str(secured["server"].key_file), "--trust", str(tmp_path / "trust"))
        one_of_all = client(two, f"tcp://{one.ipv4}:{PLAIN}")
        waiting = client(two, f"server@tcp://{one.ipv4}:{PORT}", "--then-wait", security=secured["client"])
        waiting.wait_for("^ECHOED")
        assert one_of_all.wait() == 0

    # An eavesdropper reads everything, or sees that something is said, and nothing of it.
    assert plain.raw.count(TEXT.encode()) == 2, "there and back"
    recorded = said(capture.raw, PORT)
    assert b"CURVE" in recorded, "the capture has the connection"
    for word in (TEXT, "echo", "Secured", "zmesh-python"):
        assert word.encode() in plain.raw, word
        assert word.encode() not in capture.raw, word
    open_to_all.close()

    # Strangers are refused, and told of in the log.
    (tmp_path / "recorded").write_bytes(recorded)
    replayer = two.ipv4.rpartition(".")[0] + ".102"  # of one host and reason there is only one line
    two.ip("addr", "add", f"{replayer}/24", "dev", "eth0")
    stranger = two.python(
        "tests.net.programs.stranger", f"--address=tcp://{one.ipv4}:{PORT}", f"--server={public['server']}",
        f"--recorded={tmp_path / 'recorded'}", f"--replay-from={replayer}",
    )  # fmt: skip
    assert stranger.wait() == 0, str(stranger)
    stranger.wait_for("^UNTRUSTED refused by its key$")
    stranger.wait_for("^MISTAKEN refused$")
    stranger.wait_for("^PLAIN closed after [01] answers$")
    stranger.wait_for("^REPLAYED closed after 2 answers$")  # a greeting and a WELCOME, which it cannot use
    seconds, _, problem = stranger.wait_for("^NODE (.*)")[1].partition(" ")
    print(f"a node without security knows after {seconds} s what is wrong")
    assert float(seconds) < LOOSE_SECOND
    assert re.search("secured,? and this node is not", problem), problem
    logged(server, f"{two.ipv4}, key [0-9a-f]{{32}}: its key is not in the trust folder")
    here = rf"({two.ipv4}|\?)"  # where it hangs up at once, a busy node comes too late to see who it was
    logged(server, f"{here}: it speaks ZMTP without CURVE")
    for who in (two.ipv4, replayer):
        logged(server, rf"({who}|\?): its handshake is not for this node's key, or was recorded and replayed")

    # Revoking ends the link that stands, with an error on both sides; the key is refused from then on.
    (tmp_path / "trust" / "client.pub").unlink()
    began = time.monotonic()
    server.wait_for("^HANDLER cancelled", LOOSE_SECOND)
    waiting.say("")
    error = waiting.wait_for("^ERROR (.*)", LOOSE_SECOND)[1]
    print(f"revoked: {time.monotonic() - began:.3f} s until both sides had their error")
    assert error.startswith("MaybeExecuted Secured.wait was sent to 'server'"), error
    assert "the key of 'client' was revoked" in error
    server.wait_for("^zmesh.link: refused the link with 'client' .*: the key of 'client' was revoked")
    waiting.wait_for("^AGAIN DeadlineExceeded .*it does not trust this node's key")
    logged(server, f"{two.ipv4}, key {keys.fingerprint(public['client'])}: its key is not in the trust folder")
    assert waiting.wait() == 0
    wait_until(lambda: not one.sockets("state", "established").strip() or None, 10.0, lambda: "no connection is left")
