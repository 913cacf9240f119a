"""What is sent is what arrives: the codecs and the exceptions that cross to the caller."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import math
import pickle
import sys
import traceback
from asyncio import CancelledError
from collections import OrderedDict, namedtuple
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.encoding import codec, remote
from respool.encoding.codec import codec_for
from respool.encoding.remote import RemoteTraceback, decode_error, encode_error, error_summary
from respool.errors import AppendUnknown, ConfigError, CorruptBody, NotEncodable, RemoteError

MSGPACK = codec_for("msgpack")
JSON = codec_for("json")
KEY = b"0123456789abcdef"
ZONES = st.sampled_from(["Europe/Berlin", "America/New_York", "UTC", "Australia/Lord_Howe"])


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


@dataclass
class Point:
    x: int


class Record(msgspec.Struct):
    x: int


Pair = namedtuple("Pair", "a b")


class Model:
    """As much of a pydantic model as is looked at."""

    def model_validate(self) -> None: ...
    def model_dump(self) -> None: ...


def same(a: Any, b: Any) -> bool:
    """Equal and of the same types throughout; a tuple may have become a list, NaN equals NaN."""
    if isinstance(a, (list, tuple)) and type(b) is list:
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same_key(k, q) and same(v, w) for (k, v), (q, w) in zip(a.items(), b.items(), strict=True)
        )
    return same_key(a, b)


def same_key(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_key, a, b))
    if isinstance(a, (set, frozenset)):
        return sorted(map(described, a)) == sorted(map(described, b))
    return described(a) == described(b)


def described(value: Any) -> str:
    """Text that tells apart what == does not: the sign of zero, fold, a zone's name, 1 and True."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value)}{sorted(map(described, value))}"
    if isinstance(value, tuple):
        return f"tuple{[described(item) for item in value]}"
    return f"{type(value)} {value!r}"


offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones = st.none() | ZONES.map(ZoneInfo) | st.just(UTC) | offsets.map(timezone)
zones |= st.builds(timezone, offsets, st.text("ABC", min_size=1))
datetimes = st.builds(lambda d, z, f: d.replace(tzinfo=z, fold=f), st.datetimes(), zones, st.integers(0, 1))
times = st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), zones, st.integers(0, 1))
atoms = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.uuids()),
    *(
        st.integers(-(2**200), 2**200),
        st.decimals().filter(lambda d: not d.is_snan()),
        st.complex_numbers(allow_nan=False),
    ),
    *(datetimes, times, st.dates(), st.timedeltas()),
)
hashable = st.recursive(
    atoms, lambda inner: st.frozensets(inner, max_size=4) | st.tuples(inner, inner), max_leaves=4
)
values = st.recursive(
    hashable | st.sets(hashable, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=10) | st.tuples(inner) | st.dictionaries(hashable, inner, max_size=10)
    ),
    max_leaves=10,
)
foreign = st.sampled_from(
    [
        Color.RED,
        Level.LOW,
        Text("x"),
        Point(1),
        Record(1),
        Pair(1, 2),
        bytearray(b"x"),
        OrderedDict(),
        range(3),
        memoryview(b"x"),
        object(),
        int,
        len,
        "�",
        Model(),
        slice(1),
        ...,
        msgspec.UNSET,
        msgspec.msgpack.Ext(1, b""),
        msgspec.Raw(b"1"),
    ]
)
anything = st.recursive(
    values | foreign,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=4,
)


def arrives(codec: codec.Codec, value: Any) -> Any:
    return codec.decode(codec.encode(value))


@given(values)
def test_msgpack_arrives_as_sent(value: Any) -> None:
    assert same(value, arrives(MSGPACK, value))


def check_arrives_or_refused(codec: codec.Codec, value: Any) -> None:
    try:
        body = codec.encode(value)
    except NotEncodable:
        with pytest.raises(NotEncodable, match=r"^here"):
            codec.encode(value, "here")
    else:
        assert same(value, codec.decode(body))


@given(anything)
def test_msgpack_arrives_as_sent_or_is_refused(value: Any) -> None:
    check_arrives_or_refused(MSGPACK, value)


@given(anything)
def test_json_arrives_as_sent_or_is_refused(value: Any) -> None:
    check_arrives_or_refused(JSON, value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_json_takes_all_that_json_has(value: Any) -> None:
    assert same(value, arrives(JSON, value))


@given(anything, st.sampled_from([MSGPACK, JSON]))
def test_what_holds_something_foreign_is_refused(value: Any, codec: codec.Codec) -> None:
    with pytest.raises(NotEncodable, match=r"^kwargs\['a'\]\[1\]"):
        codec.encode({"a": [1, Color.RED], "b": value}, "kwargs")


@given(st.binary())
def test_any_bytes_decode_or_are_corrupt(body: bytes) -> None:
    for each in (MSGPACK, JSON):
        with suppress(CorruptBody):
            each.decode(body)


@given(values, st.data())
def test_damage_is_a_value_or_corrupt(value: Any, data: st.DataObject) -> None:
    body = bytearray(MSGPACK.encode(value))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CorruptBody):
        MSGPACK.decode(bytes(body))


@given(st.sets(st.text() | st.integers() | st.tuples(st.text(), st.dates())))
def test_equal_sets_are_equal_bytes(items: set[Any]) -> None:
    grown: set[Any] = set(range(1000))  # a larger table has another order
    grown.update(items)
    grown.difference_update(set(range(1000)) - items)
    assert MSGPACK.encode(items) == MSGPACK.encode(grown)


@pytest.mark.parametrize(
    "value",
    [
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        [2**64] * 20,
        {2**64: 1},
        float("inf"),
        -0.0,
        [],
        {},
        (),
        set(),
        frozenset(),
        "",
        b"",
        {"a": ()},
        {(1, (2, "x")): 1},
        {frozenset({(1, 2)}): {date.min}},
        {None: 1, True: 2, 2.5: 3, b"x": 4, UUID(int=1): 5},
        [1.5] * 100,
        [[1]] * 100,
        Decimal("sNaN"),
    ],
)
def test_edges_arrive(value: Any) -> None:
    assert same(value, arrives(MSGPACK, value))


def test_tuples_arrive_as_lists_but_stay_tuples_as_keys_and_in_sets() -> None:
    assert arrives(MSGPACK, ({(1, 2): (3,)}, {(4,)})) == [{(1, 2): [3]}, {(4,)}]


def test_nan_arrives() -> None:
    assert math.isnan(arrives(MSGPACK, [float("nan")])[0])


def test_zones_arrive() -> None:
    named = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    got = arrives(MSGPACK, named)
    assert (got.tzinfo, got.fold, got.utcoffset()) == (named.tzinfo, 1, timedelta(hours=1))
    assert arrives(MSGPACK, datetime(2026, 1, 1, tzinfo=UTC)).tzinfo is UTC
    assert arrives(MSGPACK, time(1, tzinfo=timezone(timedelta(hours=1), "CET"))).tzname() == "CET"


class Offset(tzinfo):
    """A zone of another library: it has an offset and perhaps a name."""

    def __init__(self, offset: timedelta | None) -> None:
        self.offset = offset

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return self.offset

    def tzname(self, dt: datetime | None) -> str | None:
        return "XST"


def test_a_foreign_zone_arrives_as_its_offset() -> None:
    sent = datetime(2026, 1, 1, tzinfo=Offset(timedelta(hours=3)))
    got = arrives(MSGPACK, sent)
    assert (got, got.tzinfo, got.tzname()) == (sent, timezone(timedelta(hours=3)), "XST")


def test_a_zone_without_an_offset_is_refused() -> None:
    with pytest.raises(NotEncodable, match=r"args\[0\] has a time zone that gives no offset"):
        MSGPACK.encode([datetime(2026, 1, 1, tzinfo=Offset(None))], "args")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [{"when": Color.RED}],
            r"args\[0\]\['when'\] is of type .*Color and would not arrive.*annotate it with Color",
        ),
        (Level.LOW, r"args is of type .*Level.*send its \.value"),
        ([Text("x")], r"args\[0\] is of type .*Text.*convert it to a plain str"),
        ([Point(1)], r"args\[0\] .*annotate it with Point"),
        ([Record(1)], r"args\[0\] .*annotate it with Record"),
        ([Model()], r"args\[0\] .*annotate it with Model"),
        ([Pair(1, 2)], r"args\[0\] .*annotate it with Pair"),
        ([OrderedDict(a=1)], r"args\[0\] .*plain dict"),
        ([bytearray(b"x")], r"args\[0\] is of type bytearray.*bytes\(\)"),
        ({Color.RED: 1}, r"args<key> is of type .*Color"),
        ({(1, Color.RED): 1}, r"args<key> is of type .*Color"),
        ([{Color.RED}], r"args\[0\]<item> is of type .*Color"),
        (["a", "\ud800"], r"args\[1\] holds a lone surrogate"),
        ({"\ud800": 1}, r"args<key> holds a lone surrogate"),
        ([range(3)], r"args\[0\] is of type range .*plain data"),
    ],
)
def test_a_refusal_says_where_what_and_what_to_do(value: Any, message: str) -> None:
    with pytest.raises(NotEncodable, match=message):
        MSGPACK.encode(value, "args")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"x": b"1"}], r"record\[0\]\['x'\] is a bytes, which JSON does not have.*'msgpack'"),
        ([float("nan")], r"record\[0\] is nan, which JSON"),
        ({"when": date.min}, r"record\['when'\] is a date, which JSON"),
        ({1: 2}, r"record<key> 1 is a int.*str keys"),
        ({"\ud800": 1}, r"record<key> holds a lone surrogate"),
        ([10**5000], r"record\[0\] has too many digits"),
        ([Color.RED], r"record\[0\] is of type"),
        ([Text("x")], r"record\[0\] is of type"),
        ([{1}], r"record\[0\] is a set"),
    ],
)
def test_json_refuses_what_it_would_change(value: Any, message: str) -> None:
    with pytest.raises(NotEncodable, match=message):
        JSON.encode(value, "record")


def nested(depth: int, wrap: Any, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


WRAPS = [
    lambda inner: [inner],
    lambda inner: {"a": inner},
    lambda inner: (inner, 1),
    lambda inner: [{"a": inner}] if not isinstance(inner, list) else inner,
]


@pytest.mark.parametrize("wrap", WRAPS[:3])
@pytest.mark.parametrize("inner", [1, date.min])
def test_depth_has_one_limit_whatever_it_holds(wrap: Any, inner: Any) -> None:
    deepest = nested(codec.MAX_DEPTH, wrap, inner)
    assert MSGPACK.decode(MSGPACK.encode(deepest)) is not None
    with pytest.raises(NotEncodable, match="nested more than 100 deep"):
        MSGPACK.encode(wrap(deepest))


@pytest.mark.parametrize("wrap", WRAPS[:3])
def test_depth_has_the_same_limit_in_json(wrap: Any) -> None:
    deepest = nested(codec.MAX_DEPTH, wrap)
    assert JSON.decode(JSON.encode(deepest)) is not None
    with pytest.raises(NotEncodable, match="nested more than 100 deep"):
        JSON.encode(wrap(deepest))


@pytest.mark.parametrize("wrap", [lambda inner: frozenset({inner}), lambda inner: {(inner,)} and (inner,)])
def test_deep_keys_arrive_or_are_refused(wrap: Any) -> None:
    assert arrives(MSGPACK, {nested(50, wrap): 1}) == {nested(50, wrap): 1}
    with pytest.raises(NotEncodable, match="nested more than 100 deep"):
        MSGPACK.encode({nested(150, wrap): 1})


@pytest.mark.parametrize("encoder", [MSGPACK, JSON])
def test_a_stack_that_is_nearly_used_up(encoder: codec.Codec) -> None:
    value = nested(codec.MAX_DEPTH, lambda inner: [inner, {"a": 10**30}])

    def within(frames: int) -> None:
        if frames:
            within(frames - 1)
        else:
            encoder.encode(value)

    used = len(inspect.stack())
    with pytest.raises(NotEncodable, match="nested deeper than the stack"):
        within(sys.getrecursionlimit() - used - 60)


def test_a_cycle_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    loop: dict[str, Any] = {}
    loop["a"] = [loop]
    for value in (ring, loop):
        for codec_ in (MSGPACK, JSON):
            with pytest.raises(NotEncodable, match="contains itself"):
                codec_.encode(value)


@pytest.mark.parametrize(
    "body", [b"", b"\x01\x02", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x81\x80\x01", b"\x91" * 5000]
)
def test_damaged_msgpack(body: bytes) -> None:
    with pytest.raises(CorruptBody):
        MSGPACK.decode(body)


@pytest.mark.parametrize("body", [b"", b"1 2", b"NaN", b"[" * 5000, b'"\\ud800"', b"{", b"\xff", b"1e999"])
def test_damaged_json(body: bytes) -> None:
    with pytest.raises(CorruptBody):
        JSON.decode(body)


def test_extensions_that_mean_nothing_are_corrupt() -> None:
    with pytest.raises(CorruptBody, match="unknown extension type 99"):
        MSGPACK.decode(msgspec.msgpack.encode([msgspec.msgpack.Ext(99, b"x")]))
    for code in range(1, 10):
        with pytest.raises(CorruptBody):
            MSGPACK.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(code, b"\xff")))


def test_an_unknown_zone_is_corrupt() -> None:
    data = msgspec.msgpack.encode(["2026-01-01T00:00:00", 0, "Mars/Base"])
    with pytest.raises(CorruptBody, match="Mars/Base"):
        MSGPACK.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, data)))


def test_the_format_stays() -> None:
    """Records are kept for weeks: these bytes must decode for ever."""
    for value, body in {
        date(2026, 1, 31): "c70a02" + b"2026-01-31".hex(),
        datetime(2026, 1, 2, tzinfo=UTC): "c71701" + "93b3" + b"2026-01-02T00:00:00".hex() + "0000",
        time(1, 2, 3, fold=1): "c70c0393a8" + b"01:02:03".hex() + "01c0",
        timedelta(1, 2, 3): "d60493010203",
        UUID(int=1): "d805" + "00" * 15 + "01",
        Decimal("1.50"): "d606" + b"1.50".hex(),
        frozenset({2, 1}): "c7050882" + "01c002c0",
        1j: "d809" + "00" * 14 + "f03f",
        2**64: "c7090a01" + "00" * 8,
    }.items():
        assert MSGPACK.encode(value).hex() == body
        assert same(value, MSGPACK.decode(bytes.fromhex(body)))
    assert MSGPACK.encode({1}).hex() == "c703078101c0"


def test_codec_for_suggests() -> None:
    with pytest.raises(ConfigError, match=r"unknown content type 'msgpak'; did you mean 'msgpack'\?"):
        codec_for("msgpak")


@pytest.mark.parametrize("key", [None, b"", b"short"])
def test_pickle_needs_a_key(key: bytes | None) -> None:
    with pytest.raises(ConfigError, match="needs a signing key"):
        codec_for("pickle", key)


def test_pickle_is_signed() -> None:
    signed = codec_for("pickle", KEY)
    body = signed.encode([Point(1), (2,), Color.RED])
    assert signed.decode(body) == [Point(1), (2,), Color.RED]
    assert body[:32] == hmac.digest(KEY, body[32:], hashlib.sha256)
    for wrong in (body[:-1], body + b"x", b"", body[32:], pickle.dumps(1)):
        with pytest.raises(CorruptBody, match="signature"):
            signed.decode(wrong)
    with pytest.raises(CorruptBody, match="signature"):
        codec_for("pickle", KEY[::-1]).decode(body)


def test_pickle_refuses_what_cannot_be_pickled() -> None:
    with pytest.raises(NotEncodable, match="args cannot be pickled"):
        codec_for("pickle", KEY).encode(lambda: 1, "args")


def test_a_pickle_that_fails_to_load_is_corrupt() -> None:
    body = b"cno_such_module\nName\n."
    with pytest.raises(CorruptBody, match="no_such_module"):
        codec_for("pickle", KEY).decode(hmac.digest(KEY, body, "sha256") + body)


# Exceptions.


class Plain(Exception):
    pass


class Coded(Exception):
    """Its message is made from other arguments, which a naive rebuild would run again."""

    def __init__(self, message: str, code: int = 3) -> None:
        super().__init__(f"E{code}: {message}")
        self.code = code


class Needy(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("needs both")
        self.a, self.b = a, b


class Outer:
    class Inner(ValueError):
        pass


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as caught:  # noqa: BLE001 - whatever was passed
        return caught


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("x"),
        KeyError("k"),
        KeyError(("a", 1)),
        Plain(),
        Plain(1, (2, (3,))),
        Outer.Inner("y"),
        FileNotFoundError(2, "No such file", "a.txt"),
        OSError("plain"),
        Coded("boom"),
        Needy(1, 2),
        Frozen(7),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        AppendUnknown("lost", ("a",)),
        ImportError("no", name="x"),
        Plain(date.min, {1}, Decimal(1)),
    ],
)
def test_an_exception_arrives_as_its_own_type(exc: BaseException) -> None:
    got = decode_error(encode_error(raised(exc)))
    assert type(got) is type(exc)
    assert str(got) == str(exc)
    plain = vars(exc).keys() - {"__notes__", "ids"}
    assert {name: vars(got)[name] for name in plain} == {name: vars(exc)[name] for name in plain}
    assert got.args == exc.args


def test_an_oserror_keeps_its_file() -> None:
    got = decode_error(encode_error(PermissionError(13, "denied", "a.txt", None, "b.txt")))
    assert isinstance(got, PermissionError)
    assert (got.errno, got.filename, got.filename2) == (13, "a.txt", "b.txt")


def test_an_init_that_makes_the_message_is_not_trusted_with_it() -> None:
    got = decode_error(encode_error(Coded("boom", 7)))
    assert isinstance(got, Coded)
    assert (str(got), got.code) == ("E7: boom", 7)


def test_the_traceback_of_the_worker_is_printed() -> None:
    got = decode_error(encode_error(raised(ValueError("deep"))))
    assert isinstance(got.__cause__, RemoteTraceback)
    assert "in raised" in got.remote_traceback  # type: ignore[attr-defined]
    shown = "".join(traceback.format_exception(got))
    assert shown.index("in raised") < shown.index("direct cause") < shown.rindex("ValueError: deep")


def test_notes_and_causes_arrive() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise Plain("second") from first
    except Plain as second:
        second.add_note("a note")
        got = decode_error(encode_error(second))
    assert got.__notes__ == ["a note"]
    assert got.remote_causes == [("KeyError", "'first'")]  # type: ignore[attr-defined]


def test_causes_that_go_round_end() -> None:
    a, b = Plain("a"), Plain("b")
    a.__context__, b.__context__ = b, a
    assert [message for _, message in decode_error(encode_error(a)).remote_causes] == ["b"]  # type: ignore[attr-defined]


def test_arguments_that_cannot_be_sent_leave_the_type_and_message() -> None:
    got = decode_error(encode_error(Plain(object)))
    assert type(got) is Plain
    assert str(got) == str(Plain(object))


def test_what_is_not_importable_is_a_remote_error() -> None:
    class Local(Exception):
        pass

    for exc in (Local("x"), ExceptionGroup("g", [ValueError()])):
        got = decode_error(encode_error(raised(exc)))
        assert isinstance(got, RemoteError)
        assert got.message == str(exc)
        assert got.type_name.endswith(type(exc).__qualname__)
        assert "in raised" in got.remote_traceback


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("os", "system"),
        ("os", "getcwd"),
        ("builtins", "int"),
        ("subprocess", "Popen"),
        ("__main__", "Error"),
        ("no.such.module", "Error"),
        ("builtins", "NoSuchError"),
        ("", ""),
        ("os", "path"),
        (".x", "Y"),
    ],
)
def test_nothing_but_exceptions_is_ever_made(module: str, qualname: str) -> None:
    body = msgspec.msgpack.encode([module, qualname, "hi", MSGPACK.encode(["x"]), {}, [], "tb"])
    got = decode_error(body)
    assert type(got) is RemoteError
    assert got.message == "hi"


def test_a_module_that_exits_when_imported(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits_at_import.py").write_text("raise SystemExit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    body = msgspec.msgpack.encode(["exits_at_import", "Error", "hi", None, {}, [], "tb"])
    assert type(decode_error(body)) is RemoteError


def test_everything_is_bounded() -> None:
    huge = Plain("x" * 10_000_000, "é" * 1_000_000)
    huge.blob = "y" * 10_000_000  # type: ignore[attr-defined]
    huge.add_note("z" * 10_000_000)
    body = encode_error(raised(huge))
    assert len(body) < 200_000
    got = decode_error(body)
    assert type(got) is Plain
    assert "bytes left out" in str(got)


def test_a_long_traceback_keeps_head_and_tail() -> None:
    exc = raised(Plain("start " + "m" * 100_000 + " end"))
    got = decode_error(encode_error(exc, traceback_limit=1000)).remote_traceback  # type: ignore[attr-defined]
    assert got.startswith("Traceback")
    assert got.rstrip().endswith("end")
    assert len(got) < 1100


@pytest.mark.parametrize(
    "exc", [Unprintable(), Plain("\ud800"), Plain({"a": "\ud800"}), RecursionError("deep")]
)
def test_encoding_an_exception_never_fails(exc: BaseException) -> None:
    assert type(decode_error(encode_error(raised(exc)))) is type(exc)


def test_error_summary_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    body = msgspec.msgpack.encode(["never.imported", "Error", "hi", None, {}, [], "tb"])
    monkeypatch.setattr(remote, "importlib", None)
    assert error_summary(body) == ("never.imported.Error", "hi")
    assert error_summary(encode_error(ValueError("x"))) == ("ValueError", "x")


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x90", bytes(range(200, 250))])
def test_a_damaged_exception_is_corrupt(body: bytes) -> None:
    for decode in (decode_error, error_summary):
        with pytest.raises(CorruptBody):
            decode(body)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError])
def test_what_is_no_exception_ends_nobody_who_asks_for_it(kind: type[BaseException]) -> None:
    got = decode_error(encode_error(raised(kind("over"))))
    assert type(got) is RemoteError
    assert f"{kind.__name__}: over" in str(got)
    assert "in raised" in got.remote_traceback
