"""Costs of a compiled program, counted in its HLO text: bytes of memory and collectives, with the trips of loops.

XLA's own cost analysis counts the body of a loop once, so a network scanned over its layers seems far too cheap.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {  # move no data
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "opt-barrier", "partition-id", "replica-id",
    "iota", "async-update", "domain",
}  # fmt: skip
WIDTHS = {"pred": 1.0, "token": 0.0, "opaque": 0.0, "s4": 0.5, "u4": 0.5}
_HEADER = re.compile(r"(ENTRY )?%?([^\s(]+) \(.*\{\s*$")
_LINE = re.compile(r"\s+(?:ROOT )?%?([^\s=]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes

    @property
    def bytes(self) -> float:
        """Of its result in main memory; arrays that the compiler puts into on-chip memory, S(1), do not count."""
        return sum(size for size, on_chip in _arrays(self.type) if not on_chip)

    def called(self, attribute: str) -> str:
        """The computation of an attribute such as body=…; empty if there is none."""
        match = re.search(rf"\b{attribute}=%?([^\s,}})]+)", self.rest)
        return match[1] if match else ""


class Costs(NamedTuple):
    """Of one device. bytes: read and written in main memory. collectives: {kind: (how many, bytes that a device sends)}.
    unknown: loops whose trips could not be found, counted once."""

    bytes: float
    collectives: dict[str, tuple[float, float]]
    unknown: int

    def plus(self, other: "Costs", times: float = 1.0) -> "Costs":
        kinds = {**self.collectives}
        for kind, (number, size) in other.collectives.items():
            own = kinds.get(kind, (0.0, 0.0))
            kinds[kind] = own[0] + times * number, own[1] + times * size
        return Costs(self.bytes + times * other.bytes, kinds, self.unknown + other.unknown)


NOTHING = Costs(0.0, {}, 0)


def costs(text: str) -> Costs:
    """The costs of a program, `compiled.as_text()`."""
    computations, entry = _parsed(text)
    return _Counter(computations).of(entry)


class _Counter:
    def __init__(self, computations: dict[str, list[Instruction]]):
        self.computations = computations
        self.of = functools.cache(self._of)

    def _of(self, name: str) -> Costs:
        """The costs of one call of a computation."""
        total, types = NOTHING, {i.name: i for i in self.computations[name]}
        for instruction in self.computations[name]:
            if instruction.opcode == "while":
                trips = self._trips(instruction)
                total = total.plus(self.of(instruction.called("body")), trips or 1)
                total = total._replace(unknown=total.unknown + (trips is None))
            elif instruction.opcode == "conditional":
                branches = [self.of(branch) for branch in self._branches(instruction)]
                total = total.plus(max(branches, key=lambda cost: cost.bytes, default=NOTHING))
            elif instruction.opcode in ("call", "async-start"):
                total = total.plus(self.of(instruction.called("to_apply") or instruction.called("calls")))
            else:
                total = total.plus(self._one(instruction, types))
        return total

    def _one(self, instruction: Instruction, types: dict[str, Instruction]) -> Costs:
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return Costs(2 * instruction.bytes, {kind: (1.0, _sent(kind, instruction))}, 0)
        if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
            return NOTHING
        read = [types[name].bytes if name in types else 0.0 for name in instruction.operands]
        written, inside = instruction.bytes, NOTHING
        if instruction.opcode == "fusion":
            fused = self.computations[instruction.called("calls")]
            read, written = self._touched(fused, read, written)
            own = {i.name: i for i in fused}
            for one in fused:  # a collective with its neighbours, as on TPU
                if one.opcode.removesuffix("-start") in COLLECTIVES:
                    inside = inside.plus(self._one(one, own)._replace(bytes=0.0))
        elif instruction.opcode in ("dynamic-slice", "gather", "slice"):
            read = [written]
        elif instruction.opcode in ("dynamic-update-slice", "scatter"):
            update = read[1] if instruction.opcode == "dynamic-update-slice" else read[-1]
            read, written = [update], update
        elif instruction.opcode == "copy-start":
            read, written = [], 2 * types[instruction.operands[0]].bytes if instruction.operands[0] in types else 0.0
        return inside.plus(Costs(sum(read) + written, {}, 0))

    def _touched(self, fused: list[Instruction], read: list[float], written: float) -> tuple[list[float], float]:
        """(bytes read of each operand, bytes written) of a fusion. Of an operand that is only sliced, the slices are read; an
        array that is only updated in place is neither read nor written as a whole."""
        users: dict[str, list[Instruction]] = {}
        for one in fused:
            for name in one.operands:
                users.setdefault(name, []).append(one)
        own = {one.name: one for one in fused}

        def through(name: str) -> list[Instruction]:
            """The uses of a value, seen through bitcasts."""
            found: list[Instruction] = []
            for user in users.get(name, []):
                found += through(user.name) if user.opcode == "bitcast" else [user]
            return found

        for one in fused:
            if one.opcode != "parameter":
                continue
            number, uses = int(one.operands[0]), through(one.name)
            if uses and all(use.opcode in ("dynamic-slice", "slice", "gather") for use in uses):
                read[number] = min(read[number], sum(_size(use.type) for use in uses))
            elif uses and all(use.opcode == "dynamic-update-slice" for use in uses):
                updates = sum(_size(own[use.operands[1]].type) for use in uses if use.operands[1] in own)
                read[number], written = 0.0, max(written - _size(one.type), 0.0) + updates
        return read, written

    def _branches(self, instruction: Instruction) -> list[str]:
        match = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        if match:
            return [name.strip().lstrip("%") for name in match[1].split(",")]
        return [instruction.called("true_computation"), instruction.called("false_computation")]

    def _trips(self, loop: Instruction) -> int | None:
        """How often a loop runs: known_trip_count if XLA gives it, else the bound that its condition compares a counter with."""
        if match := re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.rest):
            return int(match[1])
        todo, bounds = [loop.called("condition")], []
        while todo:
            for one in self.computations.get(todo.pop(), []):
                if one.opcode == "constant" and one.type.startswith(("s32[]", "u32[]", "s64[]")):
                    bounds += [int(word) for word in one.operands if re.fullmatch(r"\d+", word)]
                if one.opcode == "fusion":
                    todo.append(one.called("calls"))
        return max(bounds) if bounds else None


def _sent(kind: str, instruction: Instruction) -> float:
    """Bytes that a device sends, by a ring (Chan et al. 2007): an array of a bytes in a group of n devices."""
    arrays = [size for size, _ in _arrays(instruction.type)]
    size, n = max(arrays, default=0.0) if instruction.opcode.endswith("-start") else sum(arrays), _group(instruction.rest)
    if kind == "collective-permute":
        return size
    whole = size * n if kind == "reduce-scatter" else size
    return (2 if kind == "all-reduce" else 1) * whole * (n - 1) / n


def _group(rest: str) -> int:
    """Devices in a group of a collective, from one of the three ways in which XLA writes the groups."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", rest):  # mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']*)'", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):  # [2,4]<=[8]
        return int(match[1])
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)  # {{0,1,2,3},{4,5,6,7}}
    return match[1].count(",") + 1 if match else 1


def _arrays(text: str) -> Iterator[tuple[float, bool]]:
    """(bytes, whether it is on the chip) of the arrays of a type."""
    for kind, sizes, layout in _ARRAY.findall(text):
        bits = re.search(r"\d+", kind)
        width = WIDTHS[kind] if kind in WIDTHS else int(bits[0]) / 8 if bits else 0.0
        yield width * math.prod(int(size) for size in sizes.split(",") if size), "S(1)" in layout


def _size(text: str) -> float:
    return sum(size for size, _ in _arrays(text))


def _parsed(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """({computation: instructions}, name of the entry)."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if (match := _HEADER.match(line)) and not line[:1].isspace():
                current = found.setdefault(match[2], [])
                entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            current = None
        elif match := _LINE.match(line):
            current.append(_instruction(match[1], match[2]))
    return found, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    close = _closing(rest, start)
    inside = re.sub(r"/\*.*?\*/", "", rest[start + 1 : close])
    operands = tuple(re.findall(r"%([^\s,()]+)", inside)) or tuple(word.strip() for word in inside.split(",") if word.strip())
    return Instruction(name, kind, rest[:start], operands, rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    """The place of the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
