"""A compiled program as text (`compiled.as_text()`), read into computations of instructions.

    %name = f32[8,128]{1,0:T(8,128)S(1)} opcode(%operand, ...), attribute=..., attribute=...
     name             shapes               opcode    operands             attributes

Only what planning asks for is understood: shapes without layouts, operands by name, attributes on demand.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?)(?<=[ )\]}])([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")
_METADATA = re.compile(r", metadata=\{(?:[^{}\"]|\"[^\"]*\")*\}")
_WIDTHS = {"pred": 1.0, "token": 0.0, "opaque": 0.0, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25, "f4e2m1fn": 0.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """An array's element type, such as "bf16", and its sizes."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without padding to the tiles of a layout."""
        return self.elements * width(self.dtype)


@functools.lru_cache(maxsize=None)
def width(dtype: str) -> float:
    """Bytes of one element."""
    if dtype in _WIDTHS:
        return _WIDTHS[dtype]
    bits = re.match(r"(?:bf|f|s|u|c)(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0.0


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """All arrays of a type, those of tuples in order."""
    return tuple(
        Shape(dtype=dtype, dims=tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for dtype, sizes in _SHAPE.findall(text)
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        opcode: such as "fusion" or "all-gather-start".
        type_text: the result's type, as written.
        arguments: what stands between the parentheses.
        attributes: what follows them, without metadata.
        root: it is what the computation returns.
    """

    name: str
    opcode: str
    type_text: str
    arguments: str
    attributes: str
    root: bool

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The result's arrays."""
        return parse_shapes(self.type_text)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))

    def attribute(self, name: str) -> str | None:
        """A plain attribute's word or number, such as `index=3`; None if there is none."""
        found = re.search(rf"(?:^|[ ,]){name}=[%\"]?([\w.\-<>$]+)", self.attributes)
        return found[1] if found else None

    def braces(self, name: str) -> str | None:
        """What stands in the braces of an attribute such as `dimensions={0,1}`; None if there is none."""
        start = re.search(rf"(?:^|[ ,]){name}=\{{", self.attributes)
        return self.attributes[start.end() : closing(self.attributes, start.end(), "{}")] if start else None

    def called(self, *names: str) -> list[str]:
        """Computations named by attributes such as `calls`, `body` or `branch_computations`."""
        found = []
        for name in names:
            listed = self.braces(name)
            one = self.attribute(name) if listed is None else None
            found += re.findall(r"%?([\w.\-]+)", listed) if listed else [one] if one else []
        return found


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Computation:
    """A function of the program: its instructions by name, and the one whose result it returns."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """What it returns."""
        return next((one for one in self.instructions.values() if one.root), list(self.instructions.values())[-1])

    @functools.cached_property
    def parameters(self) -> dict[str, int]:
        """Position of each parameter."""
        return {one.name: int(one.arguments) for one in self.instructions.values() if one.opcode == "parameter"}

    def operand_shapes(self, instruction: Instruction) -> list[tuple[Shape, ...]]:
        """The arrays of each operand."""
        return [self.instructions[name].shapes for name in instruction.operands]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Module:
    """A whole program of one device; on several slices, that of the devices of one slice.

    Attributes:
        entry: where it begins.
        computations: all, by name.
        partitions: devices that run it together.
    """

    entry: Computation
    computations: dict[str, Computation]
    partitions: int


def closing(text: str, start: int, pair: str) -> int:
    """Where the bracket opened just before `start` closes; the end if it never does."""
    depth = 1
    for found in re.compile("[" + re.escape(pair) + "]").finditer(text, start):
        depth += 1 if found[0] == pair[0] else -1
        if not depth:
            return found.start()
    return len(text)


def parse_line(line: str) -> Instruction | None:
    """Reads one line of a computation; None if it is no instruction."""
    match = _INSTRUCTION.match(_COMMENT.sub("", line))
    if not match:
        return None
    root, name, type_text, opcode, rest = match.groups()
    end = closing(rest, 0, "()")
    attributes = _METADATA.sub("", rest[end + 1 :])
    return Instruction(
        name=name, opcode=opcode, type_text=type_text, arguments=rest[:end], attributes=attributes, root=bool(root)
    )


@functools.lru_cache(maxsize=4)
def parse(text: str) -> Module:
    """Reads a program.

    Args:
        text: `compiled.as_text()` of one module.

    Raises:
        ValueError: no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = Computation(name=header[2], instructions={})
                computations.setdefault(header[2], current)
                entry = current if header[1] and entry is None else entry
        elif line.startswith("}"):
            current = None
        elif instruction := parse_line(line):
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text holds no entry computation; expected compiled.as_text()")
    partitions = re.search(r"\bnum_partitions=(\d+)", text)
    return Module(entry=entry, computations=computations, partitions=int(partitions[1]) if partitions else 1)
