"""Annotations as the schema: what may be annotated, and how values travel and are checked."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypedDict, TypeVar

import cbor2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from zmesh._signature import ABSENT
from zmesh._values import dump_untyped, load_untyped
from zmesh.errors import Internal, InvalidArgument
from zmesh.schema import MethodSchema, UnresolvedAnnotation, schema_of
from zmesh.service import Service, rpc

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Flat:
    n: int
    text: str


@dataclasses.dataclass(slots=True, order=True)
class FlatSlots:
    n: int
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class FlatFrozen:
    n: int
    text: str


@dataclasses.dataclass
class FlatChecked:
    n: int
    text: str

    def __post_init__(self) -> None:
        self.checked = True


@dataclasses.dataclass
class FlatGuarded:
    n: int
    text: str

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclasses.dataclass
class FlatLimited:
    n: Annotated[int, msgspec.Meta(gt=1)]
    text: bytes


FLAT = [Flat, FlatSlots, FlatFrozen, FlatChecked, FlatGuarded, FlatLimited]


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Page(Generic[T]):
    items: list[T]


class Options(TypedDict):
    depth: int
    name: NotRequired[str]


class Pair(NamedTuple):
    left: int
    right: str


class Record(msgspec.Struct):
    id: uuid.UUID
    at: datetime.datetime


@dataclasses.dataclass
class Image:
    pixels: NDArray[np.uint8]
    raw: memoryview
    thumbnail: bytes


@dataclasses.dataclass
class Percent:
    value: int

    def __post_init__(self) -> None:
        if self.value > 100:
            raise KeyError(self.value)


class NotConvertible:
    pass


def method_of(annotation: Any) -> MethodSchema:
    """A method that takes and returns one value of this annotation."""

    def same(self: Any, value: Any) -> Any:
        return value

    same.__annotations__ = {"value": annotation, "return": annotation}
    return schema_of(type("Probe", (Service,), {"same": rpc(same)})).methods["same"]


def over_the_wire(tree: object) -> object:
    return cbor2.loads(cbor2.dumps(tree))


class Greeter(Service):
    """Says hello."""

    @rpc
    async def say_hello(self, name: str, loud: bool = False, *, times: int = 1, tag: str | None = None) -> str:
        """Greet one person."""
        return name

    @rpc(idempotent=True)
    def shout(self, text: str) -> str:
        return text.upper()

    @rpc
    def untyped(self, value, other=5):  # type: ignore[no-untyped-def]
        return value

    @rpc
    def nothing(self) -> None:
        pass


SAY_HELLO = schema_of(Greeter).methods["say_hello"]


class TestBind:
    @pytest.mark.parametrize(
        ("args", "kwargs", "wire"),
        [
            (("Ann",), {}, {"name": "Ann"}),
            ((), {"name": "Ann"}, {"name": "Ann"}),
            (("Ann", True), {}, {"name": "Ann", "loud": True}),
            (("Ann",), {"times": 2, "loud": False}, {"name": "Ann", "loud": False, "times": 2}),
            (("Ann",), {"tag": None}, {"name": "Ann", "tag": None}),
        ],
    )
    def test_sends_what_was_passed_by_name_and_no_defaults(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], wire: dict[str, Any]
    ) -> None:
        assert SAY_HELLO.bind(args, kwargs) == wire

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((), {}, r"Greeter\.say_hello\(\) missing 1 required positional argument: 'name'"),
            (("a", True, 3), {}, r"Greeter\.say_hello\(\) takes from 1 to 2 positional arguments but 3 were given"),
            (("a",), {"nme": 1}, r"Greeter\.say_hello\(\) got an unexpected keyword argument 'nme'"),
            (("a",), {"name": "b"}, r"Greeter\.say_hello\(\) got multiple values for argument 'name'"),
        ],
    )
    def test_refuses_a_call_that_does_not_fit_as_python_does(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(TypeError, match=message):
            SAY_HELLO.bind(args, kwargs)

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((5,), {}, "Greeter.say_hello: argument 'name': expected `str`, got `int`"),
            (("a", 1), {}, "Greeter.say_hello: argument 'loud': expected `bool`, got `int`"),
            (("a",), {"times": True}, "Greeter.say_hello: argument 'times': expected `int`, got `bool`"),
            (("a",), {"tag": 5}, "Greeter.say_hello: argument 'tag': expected `str | null`, got `int`"),
            ((NotConvertible(),), {}, "Greeter.say_hello: argument 'name': expected `str`, got `NotConvertible`"),
        ],
    )
    def test_names_method_and_parameter_of_a_wrong_type(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidArgument) as caught:
            SAY_HELLO.bind(args, kwargs)
        assert caught.value.message == message
        assert not caught.value.may_have_run

    def test_parameters_may_have_any_name(self) -> None:
        class Names(Service):
            @rpc
            def put(self, type: str, dict: int, bind: str = "", wire: float = 0.0) -> None: ...

        put = schema_of(Names).methods["put"]
        assert put.bind(("a", 1), {"bind": "b", "wire": 1.5}) == {"type": "a", "dict": 1, "bind": "b", "wire": 1.5}
        assert put.load_arguments({"dict": 1, "type": "a"}) == (["a", 1, "", 0.0], {})

    def test_a_self_referential_value_is_refused(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(InvalidArgument, match=r"argument 'value': RecursionError"):
            schema_of(Greeter).methods["untyped"].bind((endless,), {})


class TestLoadArguments:
    @pytest.mark.parametrize(
        ("wire", "args", "kwargs"),
        [
            ({"name": "Ann"}, ["Ann", False], {}),
            ({"times": 3, "loud": True, "name": "Ann"}, ["Ann", True], {"times": 3}),
            (["Ann"], ["Ann", False], {}),
            (("Ann", True), ["Ann", True], {}),
        ],
    )
    def test_takes_a_map_or_an_array(self, wire: object, args: list[Any], kwargs: dict[str, Any]) -> None:
        assert SAY_HELLO.load_arguments(wire) == (args, kwargs)

    @pytest.mark.parametrize(
        ("wire", "message"),
        [
            ({}, "Greeter.say_hello: missing argument 'name'; it takes name, loud, times, tag"),
            ([], "Greeter.say_hello: missing argument 'name'; it takes name, loud, times, tag"),
            ({"name": "a", "nme": 1}, "Greeter.say_hello: unknown argument 'nme'; it takes name, loud, times, tag"),
            ({"name": "a", 5: 1}, "Greeter.say_hello: unknown argument 5; it takes name, loud, times, tag"),
            (["a", True, 3], "Greeter.say_hello: 3 positional arguments; it takes name, loud, times, tag"),
            ({"name": None}, "Greeter.say_hello: argument 'name': expected `str`, got `null`"),
            ({"name": "a", "times": 5.0}, "Greeter.say_hello: argument 'times': expected `int`, got `float`"),
            ("Ann", "Greeter.say_hello: arguments are a map or an array, got `str`"),
            (None, "Greeter.say_hello: arguments are a map or an array, got `NoneType`"),
        ],
    )
    def test_refuses(self, wire: object, message: str) -> None:
        with pytest.raises(InvalidArgument) as caught:
            SAY_HELLO.load_arguments(wire)
        assert caught.value.message == message
        assert not caught.value.may_have_run

    def test_a_required_keyword_only_argument(self) -> None:
        class Only(Service):
            @rpc
            def put(self, *, key: str) -> None: ...

        put = schema_of(Only).methods["put"]
        assert put.load_arguments({"key": "a"}) == ([], {"key": "a"})
        with pytest.raises(InvalidArgument, match="missing argument 'key'"):
            put.load_arguments({})

    def test_the_handlers_own_default_object_is_used_unchecked(self) -> None:
        marker = NotConvertible()

        class Defaults(Service):
            @rpc
            def put(self, key: str = marker) -> None: ...  # type: ignore[assignment]

        args, _ = schema_of(Defaults).methods["put"].load_arguments({})
        assert args[0] is marker

    def test_an_exception_of_a_users_conversion_is_the_callers_fault(self) -> None:
        with pytest.raises(InvalidArgument, match="argument 'value': KeyError: 101"):
            method_of(Percent).load_arguments({"value": {"value": 101}})


AT = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=datetime.UTC)
ID = uuid.UUID(int=5)

VALUES: list[tuple[Any, Any]] = [
    (str, "é"),
    (int, -(2**63)),
    (int, 2**80),
    (float, 1.5),
    (bool, True),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"ab")),
    (None, None),
    (Optional[int], None),  # noqa: UP045
    (int | str | None, "a"),
    (list[int], [1, 2]),
    (Sequence[str], ["a"]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (set[int], {1, 2}),
    (frozenset[str], frozenset({"a"})),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a"}),
    (dict[uuid.UUID, int], {ID: 1}),
    (Mapping[str, list[int]], {"a": [1]}),
    (Any, {"a": [1, None, b"x", 1.5]}),
    (object, ["a"]),
    (datetime.datetime, AT),
    (datetime.datetime, AT.replace(tzinfo=None)),
    (datetime.date, AT.date()),
    (datetime.time, AT.time()),
    (datetime.timedelta, datetime.timedelta(days=1, microseconds=5)),
    (uuid.UUID, ID),
    (decimal.Decimal, decimal.Decimal("1.50")),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (Literal["a", 1], 1),
    (Annotated[int, msgspec.Meta(ge=0)], 0),
    (Point, Point(1, 2.5)),
    (Tree, Tree(1, [Tree(2)])),
    (Page[int], Page([1])),
    (Page[Point], Page([Point(1)])),
    (Options, {"depth": 1}),
    (Pair, Pair(1, "a")),
    (Record, Record(ID, AT)),
    (list[Record] | None, [Record(ID, AT)]),
]


class TestValues:
    @pytest.mark.parametrize(("annotation", "value"), VALUES, ids=str)
    def test_arguments_and_results_arrive_as_they_were_sent(self, annotation: Any, value: Any) -> None:
        method = method_of(annotation)
        (argument,), _ = method.load_arguments(over_the_wire(method.bind((value,), {})))
        result = method.load_result(over_the_wire(method.dump_result(value)))
        for arrived in (argument, result):
            assert arrived == value
            assert type(arrived) is type(value)

    @pytest.mark.parametrize(
        ("annotation", "value", "wire"),
        [
            (datetime.datetime, AT, "2024-05-06T07:08:09.123456Z"),
            (datetime.timedelta, datetime.timedelta(seconds=90), "PT90S"),
            (uuid.UUID, ID, "00000000-0000-0000-0000-000000000005"),
            (decimal.Decimal, decimal.Decimal("1.50"), "1.50"),
            (Colour, Colour.RED, "red"),
            (Any, [ID, Colour.RED, Point(1)], [str(ID), "red", {"x": 1, "y": 0.0}]),
            (float, np.float64(1.5), 1.5),
            (float, np.float32(1.5), 1.5),
            (float, 3, 3),
            (int, np.int64(3), 3),
            (bool, np.bool_(True), True),
            (str, np.str_("a"), "a"),
            (Sequence[int], range(3), [0, 1, 2]),
            (Any, {"a": 1}.keys(), ["a"]),
        ],
        ids=str,
    )
    def test_travel_as_builtins(self, annotation: Any, value: Any, wire: Any) -> None:
        method = method_of(annotation)
        for tree in (method.bind((value,), {})["value"], method.dump_result(value)):
            assert tree == wire
            assert type(tree) is type(wire)

    @pytest.mark.parametrize(
        ("annotation", "wire"),
        [
            (datetime.datetime, AT),
            (datetime.date, AT.date()),
            (uuid.UUID, ID),
            (decimal.Decimal, decimal.Decimal("1.5")),
            (Record, {"id": ID, "at": AT}),
        ],
        ids=str,
    )
    def test_native_cbor_forms_are_taken_too(self, annotation: Any, wire: Any) -> None:
        (value,), _ = method_of(annotation).load_arguments({"value": wire})
        assert value == (Record(ID, AT) if annotation is Record else wire)

    def test_string_keys_are_taken_for_integers_on_arrival_only(self) -> None:
        method = method_of(dict[int, str])  # JavaScript objects have only string keys
        assert method.load_arguments({"value": {"1": "a"}}) == ([{1: "a"}], {})
        with pytest.raises(InvalidArgument):
            method.bind(({"1": "a"},), {})

    def test_unknown_fields_of_a_result_are_dropped(self) -> None:
        assert method_of(Point).load_result({"x": 1, "y": 2.0, "z": 3}) == Point(1, 2.0)

    def test_an_integer_is_a_float(self) -> None:
        loaded = method_of(float).load_result(3)
        assert loaded == 3.0
        assert type(loaded) is float


REFUSED: list[tuple[Any, Any]] = [
    (str, 5),
    (str, b"a"),
    (str, None),
    (str, ID),
    (str, AT),
    (str, decimal.Decimal(1)),
    (int, 5.0),
    (int, "5"),
    (int, True),
    (float, True),
    (float, "1.5"),
    (bool, 1),
    (bytes, "YWJj"),
    (memoryview, "YWJj"),
    (None, 5),
    (list[int], [1, "a"]),
    (list[int], {"a": 1}),
    (dict[str, int], {"a": "b"}),
    (tuple[int, str], (1,)),
    (Literal["a"], "b"),
    (Annotated[int, msgspec.Meta(ge=0)], -1),
    (Point, {"y": 1.0}),
    (Point, Point("a")),  # type: ignore[arg-type]
    (list[Point], [Point(1), Point(None)]),  # type: ignore[arg-type]
    (Record, Record(str(ID) + "?", AT)),  # type: ignore[arg-type]
    (Colour, "blue"),
    (Options, {"name": "a"}),
    (NDArray[np.float64], [[1.0], "a"]),
    (np.ndarray, 5),
    (np.ndarray, None),
    (NDArray[np.float64], np.zeros(2, np.int32)),
    (NDArray[np.floating[Any]], np.zeros(2, np.int32)),
    (np.ndarray, np.array([Ellipsis])),
]


class TestChecking:
    @pytest.mark.parametrize(("annotation", "value"), REFUSED, ids=str)
    def test_the_sender_refuses_what_does_not_fit(self, annotation: Any, value: Any) -> None:
        method = method_of(annotation)
        with pytest.raises(InvalidArgument, match=r"^INVALID_ARGUMENT: Probe\.same: argument 'value': \S"):
            method.bind((value,), {})
        with pytest.raises(Internal, match=r"Probe\.same returned a `.*` which is not its annotated `"):
            method.dump_result(value)

    @pytest.mark.parametrize(
        ("annotation", "wire"),
        [
            (annotation, dataclasses.asdict(value) if isinstance(value, Point) else value)
            for annotation, value in REFUSED
            if annotation not in (Record, list[Point]) and not (annotation is str and type(value) is not bytes)
        ],
        ids=str,
    )
    def test_the_receiver_refuses_what_does_not_fit(self, annotation: Any, wire: Any) -> None:
        method = method_of(annotation)
        with pytest.raises(InvalidArgument, match=r"Probe\.same: argument 'value': \S"):
            method.load_arguments({"value": wire})
        with pytest.raises(Internal, match=r"Probe\.same: the answer does not fit this caller's annotation `"):
            method.load_result(wire)

    def test_messages_say_where(self) -> None:
        with pytest.raises(InvalidArgument) as caught:
            method_of(Page[Point]).load_arguments({"value": {"items": [{"x": 1}, {"x": "a"}]}})
        assert caught.value.message == ("Probe.same: argument 'value': expected `int`, got `str` - at `$.items[1].x`")
        with pytest.raises(Internal) as failed:
            method_of(list[int]).dump_result([1, "a"])
        assert failed.value.message == (
            "Probe.same returned a `list` which is not its annotated `list[int]`: expected `int`, got `str` - at `$[1]`"
        )
        with pytest.raises(Internal) as wrong:
            method_of(NDArray[np.float64]).dump_result(np.zeros(1, np.int32))
        assert wrong.value.message.endswith("expected `numpy.ndarray` of float64, got one of int32")

    def test_what_has_no_form_is_refused_also_where_anything_goes(self) -> None:
        with pytest.raises(InvalidArgument, match=r"there is no conversion for `.*NotConvertible`"):
            method_of(Any).bind(([NotConvertible()],), {})
        with pytest.raises(TypeError, match="no conversion"):
            dump_untyped({"a": NotConvertible()})

    def test_scalars_of_the_annotated_class_take_no_conversion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Scalars(Service):
            @rpc
            def put(self, a: str, b: int, c: float, d: bool, e: bytes, f: None, g: str | None, h: Any) -> None: ...

        put = schema_of(Scalars).methods["put"]
        values = ["a", 1, 1.5, True, b"", None, None, "x"]

        def slow(*args: object, **kwargs: object) -> object:
            raise AssertionError("the slow path")

        monkeypatch.setattr(msgspec, "convert", slow)
        monkeypatch.setattr(msgspec, "to_builtins", slow)
        wire = put.bind(tuple(values), {})
        assert put.load_arguments(wire) == (values, {})
        assert put.dump_result(None) is None
        assert put.load_result(None) is None


class TestBinaries:
    @pytest.mark.parametrize("cls", FLAT)
    @pytest.mark.parametrize("n", [1, True, 1.0, "1", None, Level.LOW, np.int64(1), 2**70])
    @pytest.mark.parametrize("text", ["x", b"x", None])
    def test_a_dataclass_of_scalars_is_converted_as_by_msgspec(self, cls: type, n: Any, text: Any) -> None:
        method = method_of(cls)
        form = method._signature.result
        given = cls(n, text)
        tree = {"n": n, "text": text}

        def outcome(convert: Callable[[Any], Any], value: Any) -> object:
            try:
                converted = convert(value)
            except Exception as error:
                return type(error.__cause__ or error)
            return (type(converted), converted)

        def sent(value: Any) -> object:
            return method.binder(value)["value"]

        def answered(value: Any) -> object:
            flat = method.dump_flat(value)
            return method.dump_result(value) if flat is ABSENT else flat

        def invoked(wire: Any) -> Any:
            return method.invoke(lambda value: value, {"value": wire})

        for mine in (sent, answered):
            assert outcome(mine, given) == outcome(form.dump, given)
        for ours in (method.load_result, invoked):
            for wire in (
                tree,
                tree | {"more": 1},
                {"n": n},
                {"text": text, "n": n},
                {"n": n, "other": text},
                [n, text],
            ):
                assert outcome(ours, dict(wire) if isinstance(wire, dict) else wire) == outcome(form.load, wire)

    @pytest.mark.parametrize("cls", FLAT[:2])
    def test_a_dataclass_of_scalars_takes_no_conversion(self, cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
        method = method_of(cls)

        def slow(*args: object, **kwargs: object) -> object:
            raise AssertionError("went through a conversion")

        monkeypatch.setattr(msgspec, "convert", slow)
        monkeypatch.setattr(msgspec, "to_builtins", slow)
        given, tree = cls(1, "x"), {"n": 1, "text": "x"}
        assert method.binder(given) == {"value": tree}
        assert method.invoke(lambda value: value, {"value": dict(tree)}) == given
        assert method.dump_flat(given) == tree
        assert method.load_result(dict(tree)) == given

    def test_a_field_that_was_deleted_is_as_msgspec_has_it(self) -> None:
        given = Flat(1, "x")
        del given.n
        with pytest.raises(InvalidArgument, match="missing required field `n`"):
            method_of(Flat).binder(given)

    def test_a_memoryview_is_not_copied(self) -> None:
        view = memoryview(b"abc")
        method = method_of(memoryview)
        assert method.bind((view,), {})["value"] is view
        (argument,), _ = method.load_arguments({"value": view})
        assert argument is view
        assert method.load_result(b"abc") == view

    def test_bytes_are_bytes_however_they_came(self) -> None:
        loaded = method_of(bytes).load_result(memoryview(b"abc"))
        assert loaded == b"abc"
        assert type(loaded) is bytes
        nested = method_of(list[bytes]).load_result([memoryview(b"abc"), b"d"])
        assert [type(item) for item in nested] == [bytes, bytes]

    def test_what_is_not_annotated_gets_bytes(self) -> None:
        method = schema_of(Greeter).methods["untyped"]
        view = memoryview(b"abc")
        args, _ = method.load_arguments({"value": {"a": [view, {"b": view}]}, "other": view})
        assert args == [{"a": [b"abc", {"b": b"abc"}]}, b"abc"]
        assert type(args[0]["a"][1]["b"]) is bytes
        (items,), _ = method_of(dict[str, Any]).load_arguments({"value": {"a": view}})
        assert type(items["a"]) is bytes

    def test_an_array_is_not_copied(self) -> None:
        array = np.arange(4.0)
        for annotation in (np.ndarray, NDArray[np.float64], NDArray[np.floating[Any]], NDArray[Any], Any):
            method = method_of(annotation)
            assert method.bind((array,), {})["value"] is array
            (argument,), _ = method.load_arguments({"value": array})
            assert argument is array
            assert method.dump_result(array) is array
            assert method.load_result(array) is array

    def test_arrays_and_views_within_a_dataclass(self) -> None:
        image = Image(np.zeros((2, 2), np.uint8), memoryview(b"raw"), b"small")
        method = method_of(list[Image] | None)
        tree: Any = method.dump_result([image])
        assert tree[0]["pixels"] is image.pixels
        assert tree[0]["raw"] is image.raw
        tree[0]["thumbnail"] = memoryview(b"small")
        (loaded,) = method.load_result(tree)
        assert loaded.pixels is image.pixels
        assert loaded.raw is image.raw
        assert type(loaded.thumbnail) is bytes

    def test_lists_are_taken_for_arrays_on_arrival(self) -> None:
        loaded = method_of(NDArray[np.float64]).load_result([[1, 2], [3, 4]])
        assert loaded.dtype == np.float64
        assert loaded.tolist() == [[1, 2], [3, 4]]
        assert method_of(NDArray[np.int32]).load_result([]).dtype == np.int32
        with pytest.raises(Internal):
            method_of(NDArray[np.int32]).load_result([1.5])

    @pytest.mark.parametrize(
        ("annotation", "holds"),
        [
            (int, False),
            (Record, False),
            (list[dict[str, str]], False),
            (bytes, True),
            (memoryview | None, True),
            (dict[str, bytearray], True),
            (Image, True),
            (NDArray[np.float64], True),
            (Any, True),
            (list, True),
            (Tree, True),
        ],
        ids=str,
    )
    def test_tells_the_wire_where_binaries_may_be(self, annotation: Any, holds: bool) -> None:
        method = method_of(annotation)
        assert method.buffers_in_arguments is holds
        assert method.buffers_in_result is holds

    def test_numpy_is_not_imported_for_services_without_it(self) -> None:
        code = (
            "import sys\n"
            "from typing import Any\n"
            "from zmesh.service import Service, rpc\n"
            "from zmesh.schema import schema_of\n"
            "class S(Service):\n"
            "    @rpc\n"
            "    def put(self, a: list[bytes], b: Any) -> dict[str, Any]: ...\n"
            "put = schema_of(S).methods['put']\n"
            "put.load_arguments(put.bind(([b''], {'a': 1}), {}))\n"
            "put.dump_result({'a': 1})\n"
            "print(sorted({'numpy', 'zmq', 'zeroconf', 'rich'} & set(sys.modules)))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
        assert done.stdout == "[]\n"


class TestUntyped:
    def test_values_travel_as_they_would_for_any(self) -> None:
        tree: Any = dump_untyped({"at": AT, "point": Point(1), "items": (1, 2)})
        assert tree == {"at": "2024-05-06T07:08:09.123456Z", "point": {"x": 1, "y": 0.0}, "items": (1, 2)}
        assert dump_untyped("a") == load_untyped("a") == "a"
        loaded: Any = load_untyped([memoryview(b"a")])
        assert type(loaded[0]) is bytes
        assert type(load_untyped(memoryview(b"a"))) is bytes


class TestResults:
    def test_do_not_alias_what_the_handler_keeps(self) -> None:
        kept: dict[str, list[int]] = {"a": [1]}
        for annotation in (dict[str, list[int]], Any, dict):
            tree: Any = method_of(annotation).dump_result(kept)
            kept["a"].append(2)
            assert len(tree["a"]) == len(kept["a"]) - 1

    def test_none_is_checked(self) -> None:
        nothing = schema_of(Greeter).methods["nothing"]
        assert nothing.dump_result(None) is None
        with pytest.raises(Internal, match=r"Greeter\.nothing returned a `int` which is not its annotated"):
            nothing.dump_result(5)


class TestAnnotations:
    @pytest.mark.parametrize(
        ("annotation", "named"),
        [
            (complex, "complex"),
            (NotConvertible, "NotConvertible"),
            (Callable[[int], int], "Callable"),
            (list[NotConvertible], "NotConvertible"),
            (AsyncIterator[int] | None, "AsyncIterator"),
            (list[AsyncIterator[int]], "AsyncIterator"),
            (type, "type"),
            (bytes | str, "str-like"),
            (Point | dict[str, int], "dict-like"),
            (np.ndarray | bytes, "custom type"),
            (np.float64, "float64"),
            (msgspec.Raw, "Raw"),
            (5, "5"),
        ],
        ids=str,
    )
    def test_what_cannot_be_converted_is_refused_when_the_class_is_defined(self, annotation: Any, named: str) -> None:
        def take(self: Any, value: Any) -> None: ...

        take.__annotations__ = {"value": annotation, "return": None}
        with pytest.raises(TypeError, match=rf"^Shop\.take: argument 'value': .*{named}"):
            type("Shop", (Service,), {"take": rpc(take)})

        def give(self: Any) -> None: ...

        give.__annotations__ = {"return": annotation}
        with pytest.raises(TypeError, match=rf"^Shop\.give: return: .*{named}"):
            type("Shop", (Service,), {"give": rpc(give)})

    def test_a_field_whose_default_cannot_be_shown_is_refused(self) -> None:
        class Entry(NamedTuple):
            x: int = NotConvertible()  # type: ignore[assignment]

        with pytest.raises(TypeError, match=r"^Probe\.same: cannot be described: .*NotConvertible"):
            method_of(Entry)

    def test_signatures_that_cannot_travel_by_name_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"Shop\.put: \*items: "):

            class Shop(Service):
                @rpc
                def put(self, *items: int) -> None: ...

        with pytest.raises(TypeError, match=r"Shop2\.put: \*\*items: "):

            class Shop2(Service):
                @rpc  # type: ignore[arg-type]
                def put(self, **items: int) -> None: ...

        with pytest.raises(TypeError, match=r"Shop3\.put: item: .*positional-only"):

            class Shop3(Service):
                @rpc
                def put(self, item: int, /) -> None: ...

        with pytest.raises(TypeError, match=r"Shop4\.put: an rpc method takes `self` first"):

            class Shop4(Service):
                @rpc  # type: ignore[arg-type]
                def put() -> None: ...

    def test_a_type_that_is_defined_in_the_same_function_resolves(self) -> None:
        @dataclasses.dataclass
        class Local:
            x: int

        class Shop(Service):
            @rpc
            def put(self, item: Local) -> Local:
                return item

        put = schema_of(Shop).methods["put"]
        assert put.load_arguments({"item": {"x": 1}}) == ([Local(1)], {})

    def test_a_type_that_is_defined_in_the_class_resolves(self) -> None:
        class Shop(Service):
            class Item(NamedTuple):
                x: int

            Items = list[Item]

            @rpc
            def put(self, items: Items) -> None: ...

            @rpc
            def list(self) -> None: ...

            @rpc
            def other(self, name: list[str]) -> None: ...  # type: ignore[valid-type]  # the type, not the method

        (items,), _ = schema_of(Shop).methods["put"].load_arguments({"items": [[1]]})
        assert items == [Shop.Item(1)]

    def test_a_forward_reference_resolves_when_the_class_is_used(self) -> None:
        class Shop(Service):
            @rpc
            def put(self, item: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(UnresolvedAnnotation, match=r"Shop\.put: argument 'item': annotation `Later` does not"):
            schema_of(Shop)
        globals()["Later"] = Point
        try:
            assert schema_of(Shop).methods["put"].load_arguments({"item": {"x": 1}}) == ([Point(1)], {})
        finally:
            del globals()["Later"]
        assert schema_of(Shop) is schema_of(Shop)

    def test_a_forward_reference_to_what_cannot_be_converted_is_refused_when_the_class_is_used(self) -> None:
        class Shop(Service):
            @rpc
            def put(self, item: LaterRefused) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        globals()["LaterRefused"] = NotConvertible
        try:
            with pytest.raises(TypeError, match=r"Shop\.put: argument 'item': .*NotConvertible") as caught:
                schema_of(Shop)
            assert not isinstance(caught.value, UnresolvedAnnotation)
        finally:
            del globals()["LaterRefused"]

    def test_an_inherited_method_is_compiled_where_it_was_defined(self) -> None:
        def base() -> type[Service]:
            @dataclasses.dataclass
            class Local:
                x: int

            class Shop(Service):
                @rpc
                def put(self, item: Local) -> None: ...

            return Shop

        class Cheap(base()):  # type: ignore[misc]
            pass

        assert schema_of(Cheap).methods["put"].path == "Cheap.put"

    def test_only_services_have_a_schema(self) -> None:
        for wrong in (Point, Greeter(), "Greeter"):
            with pytest.raises(TypeError, match=r"derived from zmesh\.Service"):
                schema_of(wrong)  # type: ignore[arg-type]


class Streams(Service):
    @rpc
    async def countdown(self, start: int) -> AsyncIterator[int]:
        yield start

    @rpc
    async def total(self, numbers: AsyncIterator[int], scale: float = 1.0) -> int:
        return sum([n async for n in numbers])

    @rpc
    async def echo(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        async for line in lines:
            yield line

    @rpc
    def handed_on(self) -> AsyncIterator[Point]:
        raise NotImplementedError


class TestKinds:
    def test_come_from_the_signature(self) -> None:
        kinds = {name: method.kind for name, method in schema_of(Streams).methods.items()}
        assert kinds == {
            "countdown": "server_stream",
            "total": "client_stream",
            "echo": "bidi",
            "handed_on": "server_stream",
        }
        assert {method.kind for method in schema_of(Greeter).methods.values()} == {"unary"}

    def test_async_and_plain(self) -> None:
        methods = {**schema_of(Greeter).methods, **schema_of(Streams).methods}
        assert [name for name, method in methods.items() if not method.is_async] == [
            "shout",
            "untyped",
            "nothing",
            "handed_on",
        ]

    def test_a_stream_of_results_is_checked_by_the_item(self) -> None:
        countdown = schema_of(Streams).methods["countdown"]
        assert countdown.dump_result(3) == 3
        with pytest.raises(Internal):
            countdown.dump_result("3")

    def test_a_stream_of_arguments_is_passed_through(self) -> None:
        total = schema_of(Streams).methods["total"]
        assert total.stream_parameter == "numbers"
        items: Any = object()
        assert total.bind((items,), {}) == {"numbers": items}
        assert total.load_arguments({"numbers": items}) == ([items, 1.0], {})

    def test_refuses_what_is_no_stream(self) -> None:
        with pytest.raises(TypeError, match=r"Wrong\.f: an `async def` that returns .*AsyncIterator.* has no `yield`"):

            class Wrong(Service):
                @rpc
                async def f(self) -> AsyncIterator[int]:
                    raise NotImplementedError

        with pytest.raises(TypeError, match=r"Wrong2\.f: an async generator returns AsyncIterator"):

            class Wrong2(Service):
                @rpc
                async def f(self) -> int:  # type: ignore[misc]
                    yield 1

        with pytest.raises(TypeError, match=r"Wrong3\.f: a stream is written as an async generator"):

            class Wrong3(Service):
                @rpc
                def f(self) -> list[int]:  # type: ignore[misc]
                    yield 1

        with pytest.raises(TypeError, match=r"Wrong4\.f: one stream of arguments at most, got a, b"):

            class Wrong4(Service):
                @rpc
                async def f(self, a: AsyncIterator[int], b: AsyncIterator[int]) -> None: ...


class TestDescribe:
    def test_a_method(self) -> None:
        assert SAY_HELLO.describe() == {
            "name": "say_hello",
            "kind": "unary",
            "idempotent": False,
            "order": ["name", "loud", "times", "tag"],
            "doc": "Greet one person.",
            "parameters": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "loud": {"type": "boolean", "default": False},
                    "times": {"type": "integer", "default": 1},
                    "tag": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
            "result": {"type": "string"},
        }

    def test_types_are_defined_beside_what_refers_to_them(self) -> None:
        described = method_of(list[Point]).describe()
        for schema in (described["parameters"]["properties"]["value"], described["result"]):
            assert schema["items"] == {"$ref": "#/$defs/Point"}
        assert described["parameters"]["$defs"].keys() == described["result"]["$defs"].keys() == {"Point"}

    def test_streams_and_arrays(self) -> None:
        echo = schema_of(Streams).methods["echo"].describe()
        assert echo["parameters"]["properties"] == {}
        assert echo["stream"] == {"parameter": "lines", "items": {"type": "string"}}
        assert method_of(NDArray[np.float64]).describe()["result"] == {
            "type": "array",
            "description": "numpy.ndarray",
        }

    @pytest.mark.parametrize(("annotation", "value"), VALUES, ids=str)
    def test_is_json_for_every_annotation(self, annotation: Any, value: Any) -> None:
        json.dumps(method_of(annotation).describe())

    def test_a_service(self) -> None:
        schema = schema_of(Greeter)
        described = schema.describe()
        assert (described["name"], described["version"], described["doc"]) == ("Greeter", "1.0", "Says hello.")
        assert list(described["methods"]) == ["say_hello", "shout", "untyped", "nothing"]
        assert described["methods"]["shout"]["idempotent"] is True
        json.dumps(described)

    def test_the_digest_changes_with_the_interface_only(self) -> None:
        def digest(annotation: Any, text: str) -> str:
            def put(self: Any, value: Any) -> str:
                return text

            put.__annotations__ = {"value": annotation, "return": str}
            return schema_of(type("Shop", (Service,), {"put": rpc(put)})).digest

        assert digest(int, "a") == digest(int, "b")
        assert digest(int, "a") != digest(float, "a")
        assert len(digest(int, "a")) == 16
        int(digest(int, "a"), 16)

    def test_the_digest_is_the_same_in_every_process(self) -> None:
        code = (
            "import enum, dataclasses\n"
            "from typing import Literal\n"
            "from zmesh.service import Service, rpc\n"
            "from zmesh.schema import schema_of\n"
            "class E(enum.Enum):\n    A = 'a'\n    B = 'b'\n"
            "@dataclasses.dataclass\nclass P:\n    e: E\n    s: set[str]\n"
            "class S(Service):\n"
            "    @rpc\n"
            "    def put(self, p: P, e: E, x: int | str | None, l: Literal['x', 'y', 1, 2]) -> P: ...\n"
            "print(schema_of(S).digest)\n"
        )
        digests = {
            subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
                env={**os.environ, "PYTHONHASHSEED": seed},
            ).stdout
            for seed in ("1", "2", "3")
        }
        assert len(digests) == 1
