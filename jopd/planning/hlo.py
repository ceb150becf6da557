"""What XLA made of a program, read from its optimised text: the collectives inside its loops."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}


class Collective(NamedTuple):
    """One instruction.

    Attributes:
      bytes: of its result on one device.
      depth: loops around it within the one that was asked about: 1 is once a layer.
    """

    name: str
    bytes: int
    depth: int


def decode_loop(text: str) -> list[Collective]:
    """The collectives of every loop that has a loop inside: of a rollout, the one over tokens,
    which has the one over layers; of a model whose layers are no loop, of every loop. Largest
    first.
    """
    computations, entry = _computations(text)
    loops = [line for line in computations.get(entry, []) if _body(line)]
    has_loop = lambda line: any(_body(it) for _, it in _inside(computations, _body(line) or ""))
    found = []
    for line in [line for line in loops if has_loop(line)] or loops:
        condition = line.partition("condition=")[2].partition(",")[0].lstrip("%")
        found += [
            Collective(_name(inner), size, depth)
            for part in (_body(line) or "", condition)
            for depth, inner in _inside(computations, part)
            if (size := _size(inner)) is not None
        ]
    return sorted(found, key=lambda it: -it.bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and " = " in line:
            current.append(line.strip())
    return computations, entry


def _inside(
    computations: dict[str, list[str]], name: str, depth: int = 0
) -> Iterator[tuple[int, str]]:
    """Every instruction of a computation and of those that it calls, with its loops."""
    for line in computations.get(name, []):
        yield depth, line
        body = _body(line)
        for called in re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line):
            if "to_apply" not in line or " call(" in line:
                yield from _inside(computations, called, depth + (called == body))


def _body(line: str) -> str | None:
    match = re.search(r" while\(.*body=%?([\w.\-]+)", line)
    return match[1] if match else None


def _name(line: str) -> str:
    return next(name for name in COLLECTIVES if re.search(rf" {name}(-start)?\(", line))


def _size(line: str) -> int | None:
    """The bytes of a collective's result; None of any other instruction."""
    match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
    if match is None:
        return None
    shapes = [
        math.prod(int(size) for size in sizes.split(",") if size)
        * _BYTES.get(kind, 1 if kind[1:].startswith("8") else 4)
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", match[1])
    ]
    # What starts is a tuple of operand and result.
    return max(shapes) if match[3] else sum(shapes)
