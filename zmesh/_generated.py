"""What every call of a method passes, generated for its annotations, as dataclasses generate `__init__`: a loop over
parameters and a function for each value cost several times as much as all else that a call does here.

Most values are scalars, or dicts, lists and dataclasses of scalars, that need neither checks of msgspec's nor a search
for large binary values. The generated code asks for the classes in them, and hands everything else to `Form`.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ._signature import ABSENT, Parameter
from ._values import Form

if TYPE_CHECKING:
    from .schema import MethodSchema

__all__ = ["Send", "make_caller", "make_dump_flat", "make_dump_small", "make_invoke", "make_load"]

Send = Callable[[dict[str, object], bool], Any]
"""Takes the arguments of a call by name, and whether they hold nothing but scalars, dicts and lists."""

_BUFFERS: Final = frozenset({bytes, bytearray, memoryview})
_NUMBERS: Final = frozenset({int, float, bool, type(None)})
_SMALL: Final = 4096  # characters of a small value, in all its texts
_FEW: Final = 16  # values in it
# Parameters may be called like builtins; none begins with "_zmesh".
_SCOPE: Final = {
    "_zmesh_absent": ABSENT,
    "_zmesh_type": type,
    "_zmesh_map": map,
    "_zmesh_len": len,
    "_zmesh_dict": dict,
    "_zmesh_list": list,
    "_zmesh_str": str,
    "_zmesh_names": frozenset({str}),
    "_zmesh_key_error": KeyError,
    "_zmesh_exception": Exception,
    "_zmesh_new": object.__new__,
}


def make_caller(method: MethodSchema, parameters: Sequence[Parameter]) -> Callable[[Send], Callable[..., Any]]:
    """A function that makes functions with the handler's own signature, so that Python itself refuses what does not fit
    it. These give the arguments to what it was made with, and return what that returns."""
    scope: dict[str, Any] = dict(_SCOPE)
    signature: list[str] = []
    required: list[str] = []
    lines: list[str] = []
    optional: list[str] = []
    for number, each in enumerate(parameters):
        if each.keyword_only and "*" not in signature:
            signature.append("*")
        check: list[str] = []
        if not each.is_stream:
            scope[f"_zmesh_dump_{number}"] = _dumper(method, each)
            convert = [f"{each.name} = _zmesh_dump_{number}({each.name})"]
            if each.form.may_hold_buffers:
                convert.append("_zmesh_plain = False")
            flat = f"{each.name} = {each.name}.copy()"  # what its owner does with it then is no affair of the call
            record = _dumped(scope, number, each.name, each.form)
            check = _by_class(scope, number, each.name, each.form, [], flat, convert, record=record, without=_BUFFERS)
        if each.default is ABSENT:
            signature.append(each.name)
            required.append(f"{each.name!r}: {each.name}")
            lines += check
        else:
            signature.append(f"{each.name}=_zmesh_absent")
            optional.append(f"if {each.name} is not _zmesh_absent:")
            optional += _indented([*check, f"_zmesh_wire[{each.name!r}] = {each.name}"])
    body = [
        "_zmesh_plain = True",
        *lines,
        f"_zmesh_wire = {{{', '.join(required)}}}",
        *optional,
        "return _zmesh_send(_zmesh_wire, _zmesh_plain)",
    ]
    call = [f"def _zmesh_call({', '.join(signature)}):", *_indented(body)]
    call += [f"_zmesh_call.__qualname__ = {method.path!r}", "return _zmesh_call"]  # which Python's TypeError names
    maker: Callable[[Send], Callable[..., Any]] = _define("make", "_zmesh_send", call, scope)
    return maker


def make_invoke(method: MethodSchema, parameters: Sequence[Parameter]) -> Callable[[Callable[..., Any], object], Any]:
    """A function that calls a handler with arguments as they came. Raises InvalidArgument where they do not fit."""
    scope: dict[str, Any] = dict(_SCOPE) | {"_zmesh_load": method.load_arguments}
    lines: list[str] = []
    for number, each in enumerate(parameters):
        scope[f"_zmesh_load_{number}"] = _loader(method, each)
        convert = [f"_zmesh_{number} = _zmesh_load_{number}(_zmesh_{number})"]
        record = _loaded(scope, number, f"_zmesh_{number}", each.form)
        lines += _by_class(scope, number, f"_zmesh_{number}", each.form, [], "pass", convert, record=record)
    given = "; ".join(f"_zmesh_{number} = _zmesh_wire[{each.name!r}]" for number, each in enumerate(parameters))
    names = [f"{each.name}=" if each.keyword_only else "" for each in parameters]
    arguments = ", ".join(f"{name}_zmesh_{number}" for number, name in enumerate(names))
    body = [
        f"if _zmesh_type(_zmesh_wire) is _zmesh_dict and _zmesh_len(_zmesh_wire) == {len(parameters)}:",
        f"    try: {given or 'pass'}",
        "    except _zmesh_key_error: pass",
        "    else:",
        *_indented(_indented([*lines, f"return _zmesh_handler({arguments})"])),
        "_zmesh_args, _zmesh_named = _zmesh_load(_zmesh_wire)",
        "return _zmesh_handler(*_zmesh_args, **_zmesh_named)",
    ]
    invoke: Callable[[Callable[..., Any], object], Any] = _define("invoke", "_zmesh_handler, _zmesh_wire", body, scope)
    return invoke


def make_load(form: Form, other: Callable[[object], Any]) -> Callable[[object], Any]:
    """A function from a decoded tree to a value of this annotation; `other` does so for what is not simple."""
    scope: dict[str, Any] = dict(_SCOPE) | {"_zmesh_other": other}
    record, done = _loaded(scope, 0, "_zmesh_it", form), "return _zmesh_it"
    check = _by_class(scope, 0, "_zmesh_it", form, [done], done, [], record=record)
    load: Callable[[object], Any] = _define("load", "_zmesh_it", [*check, "return _zmesh_other(_zmesh_it)"], scope)
    return load


def make_dump_flat(form: Form) -> Callable[[object], object]:
    """A function from a value of this annotation to its tree where that is simple, to ABSENT where it is not."""
    scope: dict[str, Any] = dict(_SCOPE)
    record, done, flat = _dumped(scope, 0, "_zmesh_it", form), "return _zmesh_it", "return _zmesh_it.copy()"
    check = _by_class(scope, 0, "_zmesh_it", form, [done], flat, [], record=record, without=_BUFFERS)
    dump: Callable[[object], object] = _define("dump_flat", "_zmesh_it", [*check, "return _zmesh_absent"], scope)
    return dump


def make_dump_small(form: Form) -> Callable[[object], object]:
    """As `make_dump_flat`, and ABSENT also where a text is long, or there are many values."""
    scope: dict[str, Any] = dict(_SCOPE)
    lines: list[str] = []
    if form.exact & _NUMBERS:
        lines.append(f"if {_is_one_of(scope, 'numbers', '_zmesh_it', form.exact & _NUMBERS)}: return _zmesh_it")
    if str in form.exact:
        lines.append(f"if _zmesh_type(_zmesh_it) is _zmesh_str and _zmesh_len(_zmesh_it) <= {_SMALL}: return _zmesh_it")
    record = _dumped(scope, 0, "_zmesh_it", form, small=True)
    if record:
        lines += [f"if {record[0]}:", *_indented([*record[1:], "    return _zmesh_it"])]
    for kind, flat, values in (("dict", form.flat_dict, ".values()"), ("list", form.flat_list, "")):
        if flat is not None:
            scope[f"_zmesh_in_{kind}"] = flat - _BUFFERS
            lines.append(
                f"if (_zmesh_type(_zmesh_it) is _zmesh_{kind} and _zmesh_len(_zmesh_it) <= {_FEW}"
                f" and _zmesh_in_{kind}.issuperset(_zmesh_map(_zmesh_type, _zmesh_it{values}))"
            )
            if kind == "dict":
                lines.append(" and _zmesh_names.issuperset(_zmesh_map(_zmesh_type, _zmesh_it))")
                lines.append(f" and _zmesh_len(''.join(_zmesh_it)) <= {_SMALL}")
            lines += [
                "):",
                f"    for _zmesh_0 in _zmesh_it{values}:",
                f"        if _zmesh_type(_zmesh_0) is _zmesh_str and _zmesh_len(_zmesh_0) > {_SMALL // _FEW}: break",
                "    else: return _zmesh_it.copy()",
            ]
    dump: Callable[[object], object] = _define("dump_small", "_zmesh_it", [*lines, "return _zmesh_absent"], scope)
    return dump


def _by_class(
    scope: dict[str, Any],
    number: int,
    name: str,
    form: Form,
    exact: list[str],
    flat: str,
    other: list[str],
    *,
    record: list[str],
    without: frozenset[type] = frozenset(),
) -> list[str]:
    """The lines that look at the class of what is called `name`: what follows for a scalar that needs nothing done,
    for a dict or list of such, and for anything else. record: those for a dataclass of such, from `_dumped` or
    `_loaded`."""
    branches: list[tuple[str, list[str]]] = []
    if form.exact - without:
        branches.append((_is_one_of(scope, f"exact_{number}", name, form.exact - without), exact or ["pass"]))
    if form.flat_dict is not None:
        scope[f"_zmesh_values_{number}"] = form.flat_dict - without
        condition = (
            f"_zmesh_type({name}) is _zmesh_dict"
            f" and _zmesh_values_{number}.issuperset(_zmesh_map(_zmesh_type, {name}.values()))"
            f" and _zmesh_names.issuperset(_zmesh_map(_zmesh_type, {name}))"
        )
        branches.append((condition, [flat]))
    if form.flat_list is not None:
        scope[f"_zmesh_items_{number}"] = form.flat_list - without
        condition = (
            f"_zmesh_type({name}) is _zmesh_list and _zmesh_items_{number}.issuperset(_zmesh_map(_zmesh_type, {name}))"
        )
        branches.append((condition, [flat]))
    if record:
        branches.append((record[0], [*record[1:], *_indented(exact), "else:", *_indented(other or ["pass"])]))
    if not branches:
        return other
    lines: list[str] = []
    for place, (condition, then) in enumerate(branches):
        lines += [f"{'elif' if place else 'if'} {condition}:", *_indented(then)]
    return [*lines, "else:", *_indented(other)] if other else lines


def _is_one_of(scope: dict[str, Any], label: str, name: str, classes: frozenset[type]) -> str:
    """The condition that something is of one of these classes."""
    one = len(classes) == 1
    scope[f"_zmesh_{label}"] = next(iter(classes)) if one else classes
    return f"_zmesh_type({name}) {'is' if one else 'in'} _zmesh_{label}"


def _dumped(scope: dict[str, Any], number: int, name: str, form: Form, *, small: bool = False) -> list[str]:
    """The condition that `name` is a dataclass whose tree is easily made, and the lines that do so; the last is an `if`
    for what follows then. small: it has no long texts besides."""
    fields = _fields_of(scope, number, form, _BUFFERS)
    if form.record is None or not fields:
        return []
    conditions = [fits for _, fits in fields.values()]
    texts = [(fields[field][0], len(classes) == 1) for field, classes in form.record[1].items() if str in classes]
    if small:
        longest = _SMALL // max(len(texts), 1)
        for text, always in texts:
            either = "" if always else f"_zmesh_type({text}) is not _zmesh_str or "
            conditions.append(f"({either}_zmesh_len({text}) <= {longest})")
    scope[f"_zmesh_class_{number}"] = form.record[0]
    given = "; ".join(f"{local} = {name}.{field}" for field, (local, _) in fields.items())
    tree = ", ".join(f"{field!r}: {local}" for field, (local, _) in fields.items())
    return [
        f"_zmesh_type({name}) is _zmesh_class_{number}",
        f"try: {given}",
        f"except _zmesh_exception: {next(iter(fields.values()))[0]} = _zmesh_absent",
        f"if {' and '.join(conditions)}:",
        f"    {name} = {{{tree}}}",
    ]


def _loaded(scope: dict[str, Any], number: int, name: str, form: Form) -> list[str]:
    """As `_dumped`, from a tree to a dataclass. As msgspec does, this does not call its `__init__`."""
    fields = _fields_of(scope, number, form)
    if form.record is None or not fields:
        return []
    scope[f"_zmesh_class_{number}"] = form.record[0]
    given = "; ".join(f"{local} = {name}[{field!r}]" for field, (local, _) in fields.items())
    return [
        f"_zmesh_type({name}) is _zmesh_dict and _zmesh_len({name}) == {len(fields)}",
        f"try: {given}",
        f"except _zmesh_key_error: {next(iter(fields.values()))[0]} = _zmesh_absent",
        f"if {' and '.join(fits for _, fits in fields.values())}:",
        f"    {name} = _zmesh_new(_zmesh_class_{number})",
        *(f"    {name}.{field} = {local}" for field, (local, _) in fields.items()),
    ]


def _fields_of(
    scope: dict[str, Any], number: int, form: Form, without: frozenset[type] = frozenset()
) -> dict[str, tuple[str, str]]:
    """Of a dataclass of scalars, by field: the local name of its value, and the condition that this needs nothing done.
    Empty where one of them always does."""
    fields: dict[str, tuple[str, str]] = {}
    for place, (field, classes) in enumerate({} if form.record is None else form.record[1].items()):
        if not classes - without or not field.isidentifier() or keyword.iskeyword(field):
            return {}
        local = f"_zmesh_{number}_{place}"
        fields[field] = local, _is_one_of(scope, f"field_{number}_{place}", local, classes - without)
    return fields


def _dumper(method: MethodSchema, parameter: Parameter) -> Callable[[object], object]:
    dump, exact = parameter.form.dump, parameter.form.exact

    def dump_argument(value: object) -> object:
        if type(value) in exact:
            return value
        try:
            return dump(value)
        except Exception as error:
            method.refuse_argument(parameter.name, error)

    return dump_argument


def _loader(method: MethodSchema, parameter: Parameter) -> Callable[[object], object]:
    load = parameter.form.load

    def load_argument(value: object) -> object:
        try:
            return load(value)
        except Exception as error:  # a conversion may run the user's own __post_init__, which may raise anything
            method.refuse_argument(parameter.name, error)

    return load_argument


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _define(name: str, parameters: str, body: list[str], scope: dict[str, Any]) -> Any:
    exec("\n".join([f"def {name}({parameters}):", *_indented(body)]), scope)
    return scope[name]
