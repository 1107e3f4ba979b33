"""A caller between hosts with the right key and the wrong permission."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import zmesh.testing
from zmesh._security import keys

from .namespaces import Network, Program

PORT = 7001


def test_the_right_key_and_the_wrong_permission(make_network: Callable[[int], Network], tmp_path: Path) -> None:
    one, two = make_network(2).hosts
    rules = tmp_path / "permissions.toml"
    rules.write_text('[allow]\n"Greeter.say_hello" = ["friend"]\n')
    secured = zmesh.testing.make_keys(tmp_path, "greeter", "friend", "other")
    server = one.run(
        sys.executable, "-m", "zmesh", "serve", "tests.net.programs.greeter:Greeter", "--no-mdns",
        "--listen", f"tcp://{one.ipv4}:{PORT}", "--permissions", str(rules),
        "--key-file", str(secured["greeter"].key_file), "--trust", str(secured["greeter"].trust), name="serve",
    )  # fmt: skip
    server.wait_for("^ready")

    def call(name: str) -> Program:
        return two.run(
            sys.executable, "-m", "zmesh", "call", "Greeter.say_hello", "name=World", "--no-mdns",
            "--peer", f"greeter@tcp://{one.ipv4}:{PORT}",
            "--key-file", str(secured[name].key_file), "--trust", str(secured[name].trust), name=f"call-{name}",
        )  # fmt: skip

    friend, other = call("friend"), call("other")
    assert friend.wait() == 0, friend
    assert friend.output == '"Hello, World"\n'
    assert other.wait() == 1, other
    missing = (
        'no entry that allows Greeter.say_hello has this caller in its list: {}, line 2: [allow] "Greeter.say_hello"'
    )
    assert other.output.startswith(
        "PERMISSION_DENIED: 'greeter' does not let 'other' call Greeter.say_hello: " + missing.format(rules.name)
    )
    print_ = keys.fingerprint(keys.read_public(tmp_path / "trust" / "other.pub"))
    line = f"zmesh.security: refused a call from {two.ipv4}, key {print_}: Greeter.say_hello: {missing.format(rules)}"
    server.wait_for(f"^{re.escape(line)}$")
