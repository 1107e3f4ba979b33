"""How the items of a stream are converted: one by one, and small ones in rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from ._generated import make_dump_small
from ._values import Form, dump_untyped, load_untyped

__all__ = ["UNTYPED", "Items", "Streams"]


class Items(NamedTuple):
    """The items of one stream.

    dump, load: an item to its tree for CBOR and back; they raise RpcError where it does not fit.
    small: as `dump` where that is simple and the item is small, else ABSENT.
    load_row: of several trees at once. Raises whatever it likes where one does not fit: `load` says which, and why.
    """

    dump: Callable[[object], object]
    load: Callable[[object], Any]
    small: Callable[[object], object]
    load_row: Callable[[list[object]], list[Any]]

    @classmethod
    def of(cls, form: Form, dump: Callable[[object], object], load: Callable[[object], Any]) -> Items:
        """Of this annotation."""
        annotation: Any = list[form.annotation]  # type: ignore[name-defined]
        row = Form(annotation)
        return cls(dump, load, make_dump_small(form), cast("Callable[[list[object]], list[Any]]", row.load))


class Streams(NamedTuple):
    """The streams of a method, or of a call; None where it has none of that kind."""

    arguments: Items | None
    answers: Items | None


UNTYPED: Final = Items(
    dump_untyped,
    load_untyped,
    make_dump_small(Form(Any)),
    cast("Callable[[list[object]], list[Any]]", load_untyped),
)
