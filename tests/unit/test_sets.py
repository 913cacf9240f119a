"""Sets that arrive as they were sent, and as the same bytes from each process."""

from __future__ import annotations

import os
import subprocess
import sys

SETS = """
import enum
from dataclasses import dataclass
from typing import NamedTuple
import msgspec
from respool.encoding.codec import codec_for
from respool.encoding.signature import Signature

WORDS = ["ada", "bob", "eve", "mallory", "trent", "zoe"]

class Tag(msgspec.Struct, frozen=True, tag=True, array_like=True):
    name: str
    more: frozenset[str] = frozenset()

class Color(enum.Enum):
    RED, BLUE = "red", "blue"

@dataclass(frozen=True)
class Point:
    name: str
    tags: frozenset[str] = frozenset()

class Pair(NamedTuple):
    name: str
    tags: set[str]

class Model:  # as much of a pydantic model as is used
    def __init__(self, tags, other=None):
        self.tags, self.other = tags, other
    def __eq__(self, other):
        return isinstance(other, Model) and (self.tags, self.other) == (other.tags, other.other)
    def model_dump(self, *, mode, by_alias):
        if mode == "python":
            return {"tags": set(self.tags), "other": self.other}
        return {"tags": list(self.tags), "other": self.other and self.other.name}
    @classmethod
    def model_validate(cls, plain):
        return cls(set(plain["tags"]), Color[plain["other"]] if plain["other"] else None)

class Group:  # of models that have a hash, which the dicts in their place have not
    model_fields = {"members": None}
    def __init__(self, members):
        self.members = members
    def __eq__(self, other):
        return isinstance(other, Group) and self.members == other.members
    def model_dump(self, *, mode, by_alias):
        members = [{"name": each.name, "tags": list(each.tags)} for each in self.members]
        return {"members": members if mode == "json" else set(members)}
    @classmethod
    def model_validate(cls, plain):
        return cls({Point(each["name"], frozenset(each["tags"])) for each in plain["members"]})

class Inner(msgspec.Struct, rename="camel", omit_defaults=True, tag="inner"):
    plain_words: set[str]
    in_a_dict: dict[str, list[set[str]]] = {}
    mixed: set[int | str | None] = set()

class All(msgspec.Struct):
    inner: list[Inner]
    tags: set[Tag]
    colors: set[Color]
    point: Point
    pair: Pair
    model: Model
    keys: dict[str, int]

words = set(WORDS)
values = [
    (All, All(
        [Inner(words, {"z": [words], "a": [words]}, {*WORDS, 1, None})],
        {Tag(word, frozenset(WORDS)) for word in WORDS}, set(Color), Point("a", frozenset(WORDS)),
        Pair("a", words), Model(words), {"z": 1, "a": 2},
    )),
    (set[Point], {Point(word, frozenset(WORDS)) for word in WORDS}),
    (set[Color], set(Color)),
    (set[Tag], {Tag(word) for word in WORDS}),
    (Model, Model(words)),
    (Model, Model(words, Color.RED)),
    (Group, Group({Point(word, frozenset(WORDS)) for word in WORDS})),
    (dict[str, set[Point]], {"z": {Point(word) for word in WORDS}, "a": set()}),
]
for hint, value in values:
    def take(x): ...
    take.__annotations__ = {"x": hint}
    signature = Signature(take, bound=False, name="take")
    codec = codec_for("msgpack")
    body = codec.encode(signature.check((value,), {}), "args")
    (again,), _ = signature.convert(*codec.decode(body))
    assert again == value, (again, value)
    print(body.hex())
    if hint is All:
        assert list(again.keys) == ["z", "a"] == list(again.inner[0].in_a_dict), "dicts keep their order"
"""


def test_equal_sets_are_equal_bytes_in_every_process() -> None:
    """H8, H20: those of text are gone through in another order in each."""
    seeds = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(4)]
    made = [subprocess.check_output([sys.executable, "-c", SETS], env=env, text=True) for env in seeds]
    lines = [each.split() for each in made]
    assert len(lines[0]) == 8
    for others in zip(*lines, strict=True):
        assert len(set(others)) == 1
