"""The permission file: what it says, what it refuses to say, and what becomes of it when it changes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zmesh._security.keys import fingerprint
from zmesh._security.permission_file import PermissionFile, read_permissions
from zmesh._security.permissions import Permissions
from zmesh._security.trust import TrustFolder
from zmesh.cli._commands import zmesh as command_line

TILL = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
ALICE = "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"
STRANGER = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"

SHOP = f"""\
# The shop's rules
[groups]
tills = ["till-1", "{TILL}"]
"managers" = [
    "alice",  # "x" = 1
]

[allow]
"Orders.place" = ["@tills", "@managers"]
"Orders.*" = ["@managers"]
"shop.*.get_*" = ["*"]

[deny]
# "Orders.drop" = ["nobody"]
"Orders.drop" = [
    "*",
]
"""


def shop() -> Permissions:
    return Permissions.parse(SHOP, "shop.toml")


@pytest.mark.parametrize(
    ("key", "names", "path", "allowed", "why"),
    [
        (TILL, (), "Orders.place", True, 'allowed by shop.toml, line 9: [allow] "Orders.place"'),
        (STRANGER, ("till-1",), "Orders.place", True, "line 9"),
        (STRANGER, ("x", "alice"), "Orders.cancel", True, 'line 10: [allow] "Orders.*"'),
        (TILL, (), "Orders.cancel", False,
         'no entry that allows Orders.cancel has this caller in its list: shop.toml, line 10: [allow] "Orders.*"'),
        (ALICE, ("alice",), "Orders.drop", False, 'denied by shop.toml, line 15: [deny] "Orders.drop"'),
        (STRANGER, (), "shop.Stock.get_all", True, "line 11"),
        (STRANGER, (), "shop.eu.Stock.get_all", True, "line 11"),
        (STRANGER, (), "shop.Stock.take", False, "no entry allows shop.Stock.take to anybody in shop.toml"),
        (STRANGER, (), "shop.get_all", False, "no entry allows"),
        (ALICE, ("alice",), "Orders.v2.place", False, "no entry allows"),  # another service
        (ALICE, ("alice",), "MyOrders.place", False, "no entry allows"),
        (ALICE, ("tills",), "Orders.place", False, "no entry that allows"),  # a name is no group
        (STRANGER, (), "zmesh.describe", True, "built in"),
        (None, ("alice",), "Orders.place", False, "the caller has proven no key"),
        (None, (), "zmesh.describe", False, "the caller has proven no key"),
    ],
)  # fmt: skip
def test_decisions(key: str | None, names: tuple[str, ...], path: str, allowed: bool, why: str) -> None:
    decision = shop().decide(key, names, path)
    assert decision.allowed == allowed
    assert why in decision.why


def test_built_in_methods_are_for_all_until_an_entry_of_their_own_says_else() -> None:
    rules = Permissions.parse(
        '[allow]\n"*" = ["alice"]\n"zmesh.stats" = ["alice"]\n[deny]\n"zmesh.info" = ["*"]\n', "p.toml"
    )
    for path, stranger, alice in (
        ("zmesh.describe", True, True),
        ("zmesh.stats", False, True),
        ("zmesh.info", False, False),
        ("Any.thing", False, True),
        ("any.where.at_all", False, True),
    ):
        assert rules.decide(STRANGER, (), path).allowed == stranger, path
        assert rules.decide(ALICE, ("alice",), path).allowed == alice, path


def test_an_empty_allow_denies_everybody() -> None:
    rules = Permissions.parse("[allow]", "p.toml")
    assert not rules.decide(ALICE, ("alice",), "Orders.place").allowed
    assert rules.decide(ALICE, ("alice",), "zmesh.describe").allowed


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"p.toml: is empty; to deny every call, write \[allow\] and nothing below it"),
        ("# nothing\n\n", "p.toml: is empty"),
        ("[allow", r"p.toml: no TOML: .*at end of document"),
        ('[allow]\n"A.b" = ["x"]\n"A.b" = ["y"]', "p.toml: no TOML: Cannot overwrite a value"),
        ("a = " + "[" * 5000, "p.toml: no TOML: maximum recursion depth exceeded"),
        ('[alow]\n"A.b" = ["x"]', r"p.toml: unknown key 'alow'; there are \[groups\], \[allow\] and \[deny\]"),
        ('default = "allow"', "p.toml: unknown key 'default'"),
        ('allow = ["x"]', r"p.toml: 'allow' is a table: write \[allow\]"),
        ('[allow]\n"A.b" = "x"', r"""p.toml, line 2: \[allow\] "A.b": callers are a list of texts, got 'x'"""),
        ('[allow]\n"A.b" = []', r'p.toml, line 2: \[allow\] "A.b": the list is empty'),
        ('[groups]\n\ng = []', r'p.toml, line 3: \[groups\] "g": the list is empty'),
        ('[allow]\n"A.b" = [""]', r"""line 2: \[allow\] "A.b": a caller is a name, .*; '' has 0 characters"""),
        ('[allow]\n"A.b" = [7]', r"line 2: .*a caller is a name, .*; 7$"),
        ('[allow]\n"A.b" = ["two words"]', "line 2: .*; 'two words' has 9 characters"),
        (f'[allow]\n"A.b" = ["{TILL[:-1]}"]', "line 2: .*has 39 characters"),
        (f'[allow]\n"A.b" = ["{"#" * 40}"]', "line 2: .*has 40 characters"),  # more than 32 bytes
        ('[allow]\n"A.b" = ["@tils"]\n[groups]\ntills = ["x"]',
         r"""line 2: \[allow\] "A.b": '@tils' is no group of \[groups\]; there is @tills"""),
        ('[deny]\n"A.b" = ["@x"]', r"'@x' is no group of \[groups\]; there is none"),
        ('[groups]\na = ["x"]\nb = ["@a"]', r"""line 3: \[groups\] "b": '@a': groups do not have groups in them"""),
        ('[groups]\n"@a" = ["x"]', r"line 2: .*a group's name is 1 to 32 letters"),
        ('[allow]\nOrders.place = ["x"]', r'line 2: .*write the whole method in quotes, like "Orders.place" = '),
        ('[allow]\nplace = ["x"]', r'line 2: \[allow\] "place": what may be called is "SERVICE.METHOD"'),
        ('[allow]\n"Orders." = ["x"]', 'what may be called is "SERVICE.METHOD"'),
        ('[allow]\n"Orders place.x" = ["x"]', 'what may be called is "SERVICE.METHOD"'),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_its_place(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Permissions.parse(text, "p.toml")


# -- a file on disk


def write(path: Path, text: str) -> None:
    """As `mv` puts a new version in place: another inode, so that two of one size in one moment are two."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "p.toml", f'[allow]\n"A.b" = ["{TILL}"]\n')
    return tmp_path / "p.toml"


def test_a_file_that_cannot_be_used(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.toml: cannot read this permission file: No such file"):
        read_permissions(tmp_path / "nothing.toml")
    with pytest.raises(ValueError, match=r"cannot read this permission file: Is a directory|this is no file"):
        read_permissions(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: this is no file"):
        read_permissions(tmp_path / "pipe")
    path.write_bytes(b"\xff\xfe[")
    with pytest.raises(ValueError, match=r"p\.toml: this is no permission file: it is not text"):
        read_permissions(path)
    path.chmod(0o646)
    with pytest.raises(ValueError, match=r"anybody can write to this permission file: chmod o-w .*p\.toml"):
        read_permissions(path)


def test_a_changed_file_is_read_when_it_has_come_to_rest(path: Path) -> None:
    file = PermissionFile(path, None)
    assert file.decide(TILL, "A.b").allowed
    assert file.allowed == {(TILL, "A.b")}
    write(path, '[allow]\n"A.c" = ["*"]\n')
    file.refresh()
    assert file.allowed, "perhaps somebody still writes it"
    file.refresh()
    assert not file.allowed
    assert not file.decide(TILL, "A.b").allowed
    assert file.decide(TILL, "A.c").allowed


def test_a_broken_file_keeps_the_old_rules_and_is_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = PermissionFile(path, None)
    for broken, reason in (
        ('[allow]\n"A.b" = ["@x"]\n', "line 2: [allow] \"A.b\": '@x' is no group"),
        ("", "is empty"),
        (None, "cannot read this permission file: No such file or directory"),
    ):
        caplog.clear()
        if broken is None:
            os.unlink(path)
        else:
            write(path, broken)
        for _ in range(10):
            file.refresh()
        (line,) = caplog.records
        assert line.levelno == logging.ERROR
        assert reason in line.getMessage()
        assert "The permissions that were read before stay in force until this is mended" in line.getMessage()
        assert file.decide(TILL, "A.b").allowed
        assert not file.decide(STRANGER, "A.b").allowed
    write(path, '[allow]\n"A.b" = ["*"]\n')
    file.refresh()
    file.refresh()
    assert file.decide(STRANGER, "A.b").allowed


def test_names_are_those_of_the_trust_folder_now(tmp_path: Path, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "trust"
    folder.mkdir()
    (folder / "till-1.pub").write_text(f'public = "{TILL}"\n')
    trust = TrustFolder(folder)
    write(path, '[groups]\ntills = ["till-1", "till-2"]\n[allow]\n"A.b" = ["@tills"]\n')
    file = PermissionFile(path, trust)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} names callers that {folder} does not have: till-2"
    ]
    assert file.decide(TILL, "A.b").allowed
    assert not file.decide(ALICE, "A.b").allowed
    write(folder / "till-1.pub", f'public = "{ALICE}"\n')
    assert trust.read()
    file.refresh()
    assert not file.allowed, "what was decided under the old names is forgotten"
    assert not file.decide(TILL, "A.b").allowed
    assert file.decide(ALICE, "A.b").allowed


# -- zmesh keys explain


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs it with the rules of the shop, and with the keys of alice, of till-1 and of a stranger trusted."""
    for name in [name for name in os.environ if name.startswith("ZMESH_")]:
        monkeypatch.delenv(name)
    (tmp_path / "trust").mkdir()
    for name, key in (("till-1", TILL), ("alice", ALICE), ("new", STRANGER)):
        (tmp_path / "trust" / f"{name}.pub").write_text(f'public = "{key}"\n')
    write(tmp_path / "shop.toml", SHOP)
    monkeypatch.chdir(tmp_path)
    options = ["--permissions", "shop.toml", "--trust", "trust"]
    return lambda *arguments: CliRunner().invoke(command_line, ["keys", "explain", *options, *arguments])


def test_explain_says_which_line_allows_and_which_denies(explain: Callable[..., Result]) -> None:
    result = explain("alice", "Orders.place")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f'alice (key {fingerprint(ALICE)}) may call Orders.place: allowed by shop.toml, line 9: [allow] "Orders.place"',
        '  shop.toml, line 9: [allow] "Orders.place" = @managers, @tills',
        '  shop.toml, line 10: [allow] "Orders.*" = @managers',
        "  @managers = alice",
        f"  @tills = {TILL}, till-1",
    ]
    result = explain("new", "Orders.cancel")
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"new (key {fingerprint(STRANGER)}) may not call Orders.cancel: no entry that allows Orders.cancel has this "
        'caller in its list: shop.toml, line 10: [allow] "Orders.*"',
        '  shop.toml, line 10: [allow] "Orders.*" = @managers',
        "  @managers = alice",
    ]
    assert (
        'may not call Orders.drop: denied by shop.toml, line 15: [deny] "Orders.drop"'
        in explain(ALICE, "Orders.drop").output
    )
    told = json.loads(explain(TILL, "Orders.place", "--json").output)
    assert (told["node"], told["allowed"], told["line"], told["entry"]) == ("till-1", True, 9, "Orders.place")


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["alice", "Orders"], 2, "'Orders' is no method: write SERVICE.METHOD"),
        (["alice", "Orders.*"], 2, "is no method"),
        (["bob", "Orders.place"], 1, "'bob' is not in the trust folder trust; and key: a key is 40 characters"),
        (["HfG" + ALICE[3:], "Orders.place"], 1, "nobody in the trust folder trust has this key"),
        (["alice", "A.b", "--permissions", "no.toml"], 1, "no.toml: cannot read this permission file: No such file"),
        (["alice", "A.b", "--trust", "no"], 1, "no: cannot read this trust folder"),
    ],
)
def test_explain_refuses_what_makes_no_sense(
    explain: Callable[..., Result], arguments: list[str], status: int, error: str
) -> None:
    result = explain(*arguments)
    assert result.exit_code == status
    assert error in result.output
