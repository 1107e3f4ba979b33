"""Keys, their files, the trust folder, `zmesh keys`: what is right is read back, what is wrong is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner, Result
from zmq.utils import z85

import zmesh
import zmesh.testing
from zmesh._arguments import peer_of
from zmesh._security import chosen, gate_of, keys
from zmesh._security.trust import TrustFolder
from zmesh.cli._commands import zmesh as command_line

SECRET = "correct horse battery staple, thirty-two characters and more"
# A vector of docs/protocol.md: whoever implements the derivation gets this key.
SECRET_PUBLIC = "MA5Y)!.)en:%.Ii-9&AYR[P%4VlEXXE3??QKwTn4"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ZMESH_")]:
        monkeypatch.delenv(name)


# -- keys as text


def test_z85_is_that_of_zeromq() -> None:
    for raw in (bytes(32), b"\xff" * 32, bytes(range(32)), os.urandom(32)):
        assert keys.encode(raw) == z85.encode(raw).decode()
        assert keys._decode(keys.encode(raw), "key") == raw


def test_a_pair_belongs_together_and_shows_no_secret() -> None:
    pair = keys.new_pair("greeter-1")
    assert zmq.curve_public(pair.secret.encode()).decode() == pair.public
    assert pair.secret not in repr(pair)
    assert keys.new_pair("greeter-1").secret != pair.secret


def test_the_fingerprint_is_half_of_the_sha_256_of_the_key() -> None:
    pair = keys.new_pair("a")
    assert keys.fingerprint(pair.public) == hashlib.sha256(z85.decode(pair.public.encode())).hexdigest()[:32]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "got 0 characters"),
        ("a" * 39, "got 39 characters"),
        ("a" * 41, "got 41 characters"),
        (None, "got NoneType"),
        (b"a" * 40, "got bytes"),
        ("a" * 39 + " ", "' ' is no character of Z85"),
        ("a" * 39 + "\N{SNOWMAN}", "is no character of Z85"),
        ("#" * 40, "stands for more than four bytes"),
    ],
)
def test_what_is_no_key_is_refused(text: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        keys.check_key(text)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".hidden", "a b", "a" * 64, "a\n", "é", 7, None])
def test_what_no_key_can_belong_to_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name that a key belongs to is"):
        keys.new_pair(name)


def test_a_mesh_secret_gives_one_pair_wherever_it_is_read() -> None:
    pair = keys.derive(SECRET)
    assert pair.public == SECRET_PUBLIC
    assert keys.derive(f"{SECRET}\n").secret == pair.secret, "an editor adds a line's end"
    assert keys.derive(f"{SECRET}.").public != pair.public
    raw = hashlib.scrypt(SECRET.encode(), salt=b"zmesh 1 mesh secret", n=16384, r=8, p=1, dklen=32)
    assert pair.secret == z85.encode(raw).decode(), "as docs/protocol.md says"
    assert keys.id_of_key(bytes(range(16)), SECRET_PUBLIC).hex() == "000102030405060799582fc880b7956b", (
        "its vector, too"
    )
    with pytest.raises(ValueError, match="at least 32 characters, got 5"):
        keys.derive(" abcde \n")


# -- files


def test_files_are_read_back(tmp_path: Path) -> None:
    pair = keys.new_pair("a")
    keys.write_private(tmp_path / "a.key", pair)
    keys.write_public(tmp_path / "a.pub", pair.public)
    assert keys.read_private(tmp_path / "a.key") == pair
    assert keys.read_public(tmp_path / "a.pub") == pair.public
    keys.write_secret(tmp_path / "secret", keys.new_secret())
    assert keys.read_secret(tmp_path / "secret").name == ""
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.key", "secret")] == [0o600, 0o600]


def test_private_files_that_others_can_read_are_refused(tmp_path: Path) -> None:
    keys.write_private(tmp_path / "a.key", keys.new_pair("a"))
    keys.write_secret(tmp_path / "secret", keys.new_secret())
    for mode in (0o640, 0o604, 0o620, 0o601):
        for name, read in (("a.key", keys.read_private), ("secret", keys.read_secret)):
            (tmp_path / name).chmod(mode)
            with pytest.raises(ValueError, match=rf"{name}: others can read .* \(mode {mode:04o}\): chmod 600"):
                read(tmp_path / name)


def test_files_that_are_something_else_are_refused_by_name(tmp_path: Path) -> None:
    good, other = keys.new_pair("a"), keys.new_pair("b")

    def refused(text: str | bytes, why: str, read: object = keys.read_private) -> None:
        path = tmp_path / "file"
        path.unlink(missing_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o600)
        with pytest.raises(ValueError, match=f"{path}: .*{why}"):
            read(path)  # type: ignore[operator]

    refused("", "a name that a key belongs to")
    refused("name = ", "this is no key file")
    refused(b"\xff\xfe\x00", "it is not text")
    refused("#" * 5000, "larger than 4096 bytes")
    refused(f'name = "a"\npublic = "{good.public}"\nsecret = "{good.public[:-1]}"', "secret: a key is 40 characters")
    refused(f'name = "a"\npublic = "{good.public}"\nsecret = "{other.secret}"', "does not belong to its secret key")
    refused(f'name = "../a"\npublic = "{good.public}"\nsecret = "{good.secret}"', "a name that a key belongs to")
    refused("", "public: a key is 40 characters", keys.read_public)
    refused(f'public = "{good.public}"\nsecret = "{good.secret}"', "this holds a private key", keys.read_public)
    refused("short", "at least 32 characters", keys.read_secret)
    refused(f"a = {'[' * 3000}", "this is no public key: maximum recursion depth", keys.read_public)
    os.mkfifo(tmp_path / "pipe")
    for read in (keys.read_private, keys.read_public, keys.read_secret):
        with pytest.raises(ValueError, match=f"{tmp_path / 'none'}: cannot read .*: No such file"):
            read(tmp_path / "none")
        with pytest.raises(ValueError, match=f"{tmp_path}: "):
            read(tmp_path)
        with pytest.raises(ValueError, match="pipe: this is no file"):
            read(tmp_path / "pipe")


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    for name in ("a.key", "a.pub"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"a.key: there is such a file already"):
        keys.write_private(tmp_path / "a.key", keys.new_pair("a"))
    with pytest.raises(ValueError, match=r"no/a.pub: cannot write: No such file or directory"):
        keys.write_public(tmp_path / "no" / "a.pub", keys.new_pair("a").public)
    assert (tmp_path / "a.key").read_text() == "mine"


# -- the trust folder


def test_a_trust_folder_follows_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = (keys.new_pair(name).public for name in "abc")
    keys.write_public(tmp_path / "a.pub", a)
    (tmp_path / "README").write_text("other files are not looked at")
    trust = TrustFolder(tmp_path)
    assert trust.names == {"a": a}
    assert trust.read() is False, "nothing has changed"

    keys.write_public(tmp_path / "b.pub", b)
    assert trust.read() is True
    assert (trust.names, trust.keys) == ({"a": a, "b": b}, {a: ["a"], b: ["b"]})

    (tmp_path / "a.pub").unlink()
    keys.write_public(tmp_path / "fresh", c)
    (tmp_path / "fresh").replace(tmp_path / "b.pub")
    assert trust.read() is True
    assert trust.names == {"b": c}

    (tmp_path / "b.pub").write_text("scribble")
    (tmp_path / "no name.pub").write_text(f'public = "{a}"')
    assert trust.read() is True
    assert trust.names == {}
    told = [problem.partition(": ")[0] for problem in trust.problems]
    assert told == [f"{tmp_path}/b.pub", f"{tmp_path}/no name.pub"]


def test_a_trust_folder_that_goes_away_trusts_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "trust"
    zmesh.testing.make_keys(tmp_path, "a")
    trust = TrustFolder(folder)
    folder.rename(tmp_path / "away")
    assert trust.read() is True
    assert trust.keys == {}
    assert trust.read() is False
    assert [record.levelname for record in caplog.records] == ["ERROR"], "told once"
    (tmp_path / "away").rename(folder)
    assert trust.read() is True
    assert list(trust.names) == ["a"]
    folder.chmod(0o777)
    assert trust.read() is True
    assert trust.names == {}, "anybody could trust himself there"


@pytest.mark.parametrize(("make", "why"), [(None, "No such file"), ("file", "Not a directory"), (0o757, "anybody can")])
def test_a_trust_folder_that_is_none_is_refused(tmp_path: Path, make: str | int | None, why: str) -> None:
    folder = tmp_path / "trust"
    if make == "file":
        folder.write_text("")
    elif isinstance(make, int):
        folder.mkdir()
        folder.chmod(make)
    with pytest.raises(ValueError, match=f"{folder}: .*{why}"):
        TrustFolder(folder)


# -- settings


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        ({}, ValueError, "either the mesh's secret file"),
        ({"secret_file": "s", "key_file": "k"}, ValueError, "either the mesh's secret file"),
        ({"key_file": "k"}, ValueError, "a key file takes the folder"),
        ({"secret_file": "s", "trust": "t"}, ValueError, "a trust folder goes with a key file"),
        ({"secret_file": 7}, TypeError, "Security.secret_file is a path, got 7"),
        ({"key_file": "k", "trust": ""}, ValueError, "Security.trust is a path, got ''"),
        ({"secret_file": "a\0b"}, ValueError, "Security.secret_file is a path, got 'a"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, str], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        zmesh.Security(**settings)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen() is None
    monkeypatch.setenv("ZMESH_TRUST", "t")
    assert chosen() is None, "who is trusted matters to a node with keys"
    monkeypatch.setenv("ZMESH_KEY_FILE", "k")
    assert chosen() == zmesh.Security(key_file="k", trust="t")
    assert chosen(secret_file="s") == zmesh.Security(secret_file="s"), "what is said wins"
    monkeypatch.setenv("ZMESH_SECRET_FILE", "s")
    with pytest.raises(ValueError, match="either the mesh's secret file"):
        zmesh.Node()
    assert zmesh.Node(security=None).security is None


def test_a_node_has_the_name_that_its_keys_belong_to(tmp_path: Path) -> None:
    security = zmesh.testing.make_keys(tmp_path, "a")["a"]
    assert zmesh.Node(security=security).name == "a"
    assert zmesh.Node(name="a", security=security).fingerprint == keys.fingerprint(gate_of(security).public)
    with pytest.raises(ValueError, match="name='b': the key file's keys belong to 'a'"):
        zmesh.Node(name="b", security=security)
    with pytest.raises(TypeError, match=r"security is a zmesh\.Security, got 'a.key'"):
        zmesh.Node(security="a.key")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("tcp://10.0.0.1:7001", (None, "tcp://10.0.0.1:7001")),
        ("a@tcp://10.0.0.1:7001", ("a", "tcp://10.0.0.1:7001")),
        ("ipc://@abstract", (None, "ipc://@abstract")),
        ("a@ipc://@abstract", ("a", "ipc://@abstract")),
    ],
)
def test_a_named_peer(text: str, peer: tuple[str | None, str]) -> None:
    assert peer_of(text) == peer


@pytest.mark.parametrize("text", ["@tcp://a:1", "a@", "a@b@tcp://a:1", "a@http://a:1", "a/b@tcp://a", "tcp://a@b:1:2"])
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no address|a node's name is"):
        zmesh.Node(peers=[text])


# -- the command line


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(command_line, ["keys", *arguments])


def done(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def test_keys_are_made_trusted_listed_and_revoked(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    made = done(run("new", "a")) + done(run("new", "b"))
    shown = {entry["file"]: entry for entry in json.loads(done(run("show", "a.key", "a.pub", "b.pub", "--json")))}
    assert shown["a.key"]["fingerprint"] == shown["a.pub"]["fingerprint"]
    secret = keys.read_private("a.key").secret
    assert shown["a.pub"]["fingerprint"] in made
    assert secret not in made + done(run("show", "a.key"))

    monkeypatch.setenv("ZMESH_TRUST", "trust")
    done(run("trust", "a.pub", "b.pub"))
    listed = {entry["name"]: entry["key"] for entry in json.loads(done(run("list", "--json")))}
    assert listed == {"a": shown["a.pub"]["key"], "b": shown["b.pub"]["key"]}
    assert TrustFolder("trust").names == listed
    done(run("revoke", "a"))
    assert done(run("list")).split() == ["b", shown["b.pub"]["fingerprint"]]

    refused = run("trust", "a.pub", "--name", "b")
    assert (refused.exit_code, "--replace revokes that one" in refused.output) == (1, True)
    assert "trusted in trust" in done(run("trust", "a.pub", "--name", "b", "--replace"))
    assert TrustFolder("trust").names == {"b": shown["a.pub"]["key"]}
    assert sorted(path.name for path in Path("trust").iterdir()) == ["b.pub"]


def test_a_mesh_secret_is_made(run) -> None:  # type: ignore[no-untyped-def]
    made = done(run("new", "--secret", "mesh"))
    assert Path("mesh").stat().st_mode & 0o777 == 0o600
    assert Path("mesh").read_text().strip() not in made
    fingerprint = keys.fingerprint(keys.read_secret("mesh").public)
    assert fingerprint in made
    assert fingerprint in done(run("show", "mesh"))


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["new"], 2, "give the NAME of a node, or --secret FILE"),
        (["new", "a", "--secret", "s"], 2, "give the NAME of a node, or --secret FILE"),
        (["new", "a/b"], 1, "a name that a key belongs to is 1 to 63 letters"),
        (["new", "a", "--folder", "none"], 1, "none/a.key: cannot write: No such file or directory"),
        (["new", "--secret", "none/s"], 1, "none/s: cannot write"),
        (["new", "taken"], 1, "taken.pub: there is such a file already"),
        (["show", "none.key"], 1, "none.key: cannot read this key file"),
        (["show", "taken.pub"], 1, "taken.pub: public: a key is 40 characters"),
        (["trust", "a.pub"], 2, "Missing option '--trust'"),
        (["trust", "none.pub", "--trust", "t"], 1, "none.pub: cannot read this public key"),
        (["trust", "taken.pub", "x.pub", "--name", "y", "--trust", "t"], 2, "--name goes with one file"),
        (["trust", "taken.pub", "--name", "../x", "--trust", "t"], 1, "a name that a key belongs to"),
        (["revoke", "b", "--trust", "t"], 1, "'b' is not trusted in t"),
        (["revoke", "../b", "--trust", "t"], 1, "a name that a key belongs to"),
        (["list", "--trust", "none"], 1, "none: cannot read this trust folder: No such file"),
        (["list", "--trust", "."], 1, "taken.pub: public: a key is 40 characters"),
    ],
)
def test_what_is_wrong_is_told(run, arguments: list[str], status: int, why: str) -> None:  # type: ignore[no-untyped-def]
    Path("taken.pub").write_text('public = "short"')
    result = run(*arguments)
    assert (result.exit_code, why in result.output) == (status, True), result.output
