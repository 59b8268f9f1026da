"""How many instructions the warps of SCSA's kernels issue, without a GPU: `python -m benchmarks.issued`.

Which way our kernels branch follows from sizes and program ids, not from what tensors hold. So the integers of the
first thread of a launch are enough: they are computed from the machine code for sm_90, and what comes from memory or
floating point is unknown. A way ahead that depends on the unknown is not taken: it skips what few threads do.
"""

import functools
import math
import operator
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeVar

import torch

from fastattn.bench.sizes import CONTIGUOUS
from fastattn.report import Table, to_text

from .machine_code import WORKS, Row, assembly_of, compiled, launches, leaves, scsa_cases

ARCH = 90
PROCESSORS = 132
PARAMETERS = 0x210  # where a kernel's parameters begin in the bank of constants
WORD = 1 << 32
Value = TypeVar("Value")
LIMIT = 300_000  # instructions, beyond which a loop is taken to be endless

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w)\s+)?([A-Z]\w*)((?:\.\w+)*)\s*(.*?)\s*;")
REGISTER = re.compile(r"(U?R)(\d+|Z)")
CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")
PREDICATE = re.compile(r"!?U?P[0-9T]")
WAYS = ("BRA", "EXIT")
COMPARISONS = {name.upper(): getattr(operator, name) for name in ("eq", "ne", "gt", "ge", "lt", "le")}


@dataclass(frozen=True)
class Instruction:
    """`@guard name.kinds operands`."""

    guard: str
    name: str
    kinds: frozenset[str]
    operands: tuple[str, ...]


def parse(assembly: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions, and at which of them each label is."""
    code: list[Instruction] = []
    labels = {}
    for line in assembly.splitlines():
        if label := re.match(r"(\.L\w*):", line):
            labels[label[1]] = len(code)
        elif found := INSTRUCTION.search(line):
            guard, name, kinds, rest = found.groups()
            operands = re.split(r",\s*(?![^\[]*\])", rest.replace(".reuse", "")) if rest else []
            code.append(Instruction(guard or "PT", name, frozenset(kinds.split(".")), tuple(operands)))
    return code, labels


def signed(value: int) -> int:
    """A word as a signed number."""
    return value - WORD if value >> 31 else value


def to_bits(value: float) -> int:
    return struct.unpack("<I", struct.pack("<f", value))[0]


def from_bits(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def known(function: Callable[..., Value]) -> Callable[..., Value | None]:
    """Make a function of words unknown where one of them is."""

    @functools.wraps(function)
    def of_words(*words: int | None) -> Value | None:
        return None if None in words else function(*words)

    return of_words


@dataclass
class Thread:
    """The first thread of a program: its registers and predicates, None where unknown, and its constants."""

    constants: dict[int, int]
    registers: dict[str, int | None] = field(default_factory=dict)
    predicates: dict[str, bool | None] = field(default_factory=dict)
    products: int = 0  # of numbers, that tensor cores form of a warp's matrices; of float32 they count twice

    def word(self, operand: str) -> int | None:
        """The value of an operand."""
        if operand[0] == "-":
            return known(lambda value: -value % WORD)(self.word(operand[1:]))
        if operand[0] == "~":
            return known(lambda value: ~value % WORD)(self.word(operand[1:]))
        if operand in ("RZ", "URZ", "SRZ"):
            return 0
        if operand.startswith("0x"):
            return int(operand, 16) % WORD
        if operand.startswith("SR_"):
            return 0 if re.match(r"SR_(TID|CTAID|CgaCtaId|LANEID)", operand) else None
        if place := CONSTANT.fullmatch(operand):
            return self.constants.get(int(place[1], 16))
        return self.registers.get(operand)

    def pair(self, operand: str) -> int | None:
        """The value of an operand and the next one, of 64 bits."""
        return known(lambda low, high: high * WORD + low)(self.word(operand), self.word(after(operand)))

    def truth(self, operand: str) -> bool | None:
        """The value of a predicate."""
        name = operand.lstrip("!")
        value = True if name in ("PT", "UPT") else self.predicates.get(name)
        return None if value is None else value != operand.startswith("!")

    def run(self, code: Sequence[Instruction], labels: dict[str, int]) -> int:
        """Run to the end; return how many instructions were issued."""
        place = 0
        for count in range(1, LIMIT):
            instruction = code[place]
            place += 1
            self.products += products(instruction)
            taken = self.truth(instruction.guard)
            if instruction.name in WAYS:
                for condition in filter(PREDICATE.fullmatch, instruction.operands):
                    taken = every(taken, self.truth(condition))
                if taken and instruction.name == "EXIT":
                    return count
                if taken is not False and "DIV" not in instruction.kinds and instruction.name == "BRA":
                    target = labels[instruction.operands[-1].strip("`()")]
                    if taken is None and target < place:
                        raise RuntimeError(f"how often a loop is run is unknown: {instruction}")
                    place = target if taken else place
            elif taken is not False:
                self.execute(instruction if taken else replace(instruction, name="unknown"))
        raise RuntimeError("an endless loop")

    def execute(self, instruction: Instruction) -> None:
        """Set what an instruction writes."""
        name, kinds, operands = instruction.name.removeprefix("U"), instruction.kinds, list(instruction.operands)
        target = "RZ"
        written: list[str] = []
        while operands and PREDICATE.fullmatch(operands[0]) and len(written) < (2 if name in TWO_PREDICATES else 1):
            written.append(operands.pop(0))
        if operands and REGISTER.fullmatch(operands[0]) and name not in TWO_PREDICATES:
            target = operands.pop(0)
            while operands and PREDICATE.fullmatch(operands[0]) and name in CARRIES:
                written.append(operands.pop(0))
        result, truths = HANDLERS[name](self, kinds, operands) if name in HANDLERS else (None, ())
        for offset in range(WORDS.get(name, 1) if name in WORDS else width(kinds)):
            if not target.endswith("Z"):
                self.registers[target] = None if result is None else result >> 32 * offset & WORD - 1
            target = after(target)
        for predicate, truth in zip(written, [*truths, None, None], strict=False):
            self.predicates[predicate] = truth


TWO_PREDICATES = {"ISETP", "FSETP", "PLOP3"}  # are written
CARRIES = {"IADD3", "IMAD", "LEA"}  # may write them
WORDS = {"HMMA": 4, "CS2R": 2}  # of the result


def products(instruction: Instruction) -> int:
    """How many products of numbers a warp has formed by an instruction, as those of 16 bits cost."""
    shape = next((kind for kind in instruction.kinds if re.fullmatch(r"\d+x\d+x\d+|16816|1688", kind)), None)
    if instruction.name == "HMMA" and shape in HMMA:
        count = HMMA[shape]
    elif instruction.name == "HGMMA" and shape:
        count = math.prod(map(int, shape.split("x"))) // 4  # a warp's of four
    else:
        return 0
    return count * (2 if "TF32" in instruction.kinds else 1)


HMMA = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8}


def width(kinds: frozenset[str]) -> int:
    """How many words are written."""
    return 4 if "128" in kinds else 2 if kinds & {"64", "WIDE"} else 1


def after(operand: str) -> str:
    """The register, or constant, that holds the next word."""
    if place := CONSTANT.fullmatch(operand):
        return f"c[0x0][{int(place[1], 16) + 4:#x}]"
    found = REGISTER.fullmatch(operand)
    return f"{found[1]}{int(found[2]) + 1}" if found and found[2] != "Z" else "RZ"


def every(*truths: bool | None) -> bool | None:
    """Whether all hold."""
    return False if False in truths else None if None in truths else True


def either(*truths: bool | None) -> bool | None:
    """Whether one holds."""
    return True if True in truths else None if None in truths else False


def move(thread: Thread, kinds, operands):
    return (thread.pair if "64" in kinds else thread.word)(operands[0]), ()


def zero(thread: Thread, kinds, operands):
    return (0 if operands == ["SRZ"] else None), ()


def constant(thread: Thread, kinds, operands):
    """HFMA2 writes a constant where it multiplies zeros: two halves of 16 bits."""
    if [operand.lstrip("-") for operand in operands[:2]] != ["RZ", "RZ"]:
        return None, ()
    high, low = (struct.unpack("<H", struct.pack("<e", float(half)))[0] for half in operands[2:4])
    return high << 16 | low, ()


def add(thread: Thread, kinds, operands):
    carries = [thread.truth(operand) for operand in operands[3:]] if "X" in kinds else []
    total = known(lambda *words: sum(words))(*map(thread.word, operands[:3]), *carries)
    return total, (known(lambda t: t >= WORD)(total), known(lambda t: t >= 2 * WORD)(total))


def multiply(thread: Thread, kinds, operands):
    first, second = map(thread.word, operands[:2])
    if "RZ" in operands[:2] or "URZ" in operands[:2]:
        first = second = 0
    if "U32" not in kinds and kinds & {"WIDE", "HI"}:
        first, second = known(signed)(first), known(signed)(second)
    third = (thread.pair if kinds & {"WIDE", "HI"} else thread.word)(operands[2])
    carries = [thread.truth(operand) for operand in operands[3:]] if "X" in kinds else []
    total = known(lambda a, b, *c: a * b + sum(c))(first, second, third, *carries)
    return known(lambda t: t >> 32)(total) if "HI" in kinds else total, ()


def shift_and_add(thread: Thread, kinds, operands):
    first, second = map(thread.word, operands[:2])
    shift = thread.word(operands[3 if "HI" in kinds and "SX32" not in kinds else 2])
    if "HI" not in kinds:
        return known(lambda a, b, n: (a << n) % WORD + b)(first, second, shift), ()
    high = known(lambda a: -(a >> 31) % WORD)(first) if "SX32" in kinds else thread.word(operands[2])
    carry = thread.truth(operands[-1]) if "X" in kinds else 0
    scaled = known(lambda low, high, by: ((high * WORD + low << by) >> 32) % WORD)(first, high, shift)
    return known(lambda *words: sum(words))(scaled, second, carry), ()


def shift(thread: Thread, kinds, operands):
    def shifted(low: int, by: int, high: int) -> int:
        if "L" in kinds:
            return (high * WORD + low << by) >> 32 if "HI" in kinds else low << by
        if "HI" in kinds:
            return (signed(high) if kinds & {"S32", "S64"} else high) >> by
        return (high * WORD + low) >> by

    return known(shifted)(*map(thread.word, operands[:3])), ()


def logic(thread: Thread, kinds, operands):
    table = int(operands[3], 16)

    def looked_up(*words: int) -> int:
        result = 0
        for entry in range(8):
            if table >> entry & 1:
                picked = [word if entry >> 2 - i & 1 else ~word for i, word in enumerate(words)]
                result |= picked[0] & picked[1] & picked[2]
        return result % WORD

    words = [thread.word(operand) for operand in operands[:3]]
    # the result may not depend on what is unknown
    results = {looked_up(*(fill if word is None else word for word in words)) for fill in (0, WORD - 1)}
    result = results.pop() if len(results) == 1 else None
    return result, (known(bool)(result),)


def predicate_logic(thread: Thread, kinds, operands):
    truths = [thread.truth(operand) for operand in operands[:3]]

    def looked_up(table: int) -> bool | None:
        picks = product(*([truth] if truth is not None else [False, True] for truth in truths))
        found = {bool(table >> 4 * a + 2 * b + c & 1) for a, b, c in picks}
        return found.pop() if len(found) == 1 else None

    return None, [looked_up(int(operand, 16)) for operand in operands[3:5]]


def compare(thread: Thread, kinds, operands):
    (comparison,) = COMPARISONS.keys() & kinds
    words = [thread.word(operand) for operand in operands[:2]]
    if "U32" not in kinds:
        words = [known(signed)(word) for word in words]
    result = known(COMPARISONS[comparison])(*words)
    if "EX" in kinds and result is not None and words[0] == words[1]:  # the lower words decide
        result = thread.truth(operands[3])
    join = either if "OR" in kinds else every
    other = thread.truth(operands[2])
    return None, (join(result, other), join(known(operator.not_)(result), other))


def select(thread: Thread, kinds, operands):
    first, second = map(thread.word, operands[:2])
    truth = thread.truth(operands[2])
    return (first if first == second else None) if truth is None else first if truth else second, ()


def extreme(thread: Thread, kinds, operands):
    *words, least = [*map(thread.word, operands[:-1]), thread.truth(operands[-1])]
    if len(words) == 3:  # of the sum of the first two
        words = [known(lambda a, b: (a + b) % WORD)(*words[:2]), words[2]]
    order = (lambda word: word) if "U32" in kinds else signed
    return known(lambda a, b, least: (min if least else max)(a, b, key=order))(*words, least), ()


def pack(thread: Thread, kinds, operands):
    """Predicates become the bits of a register, where the mask has ones."""
    mask = thread.word(operands[2])
    assert mask is not None  # an immediate
    bits = [thread.truth(f"P{place}") if mask >> place & 1 else 0 for place in range(7)]
    packed = known(lambda *bits: sum(bit << place for place, bit in enumerate(bits)))(*bits)
    return known(lambda bits, others: bits | others & ~mask)(packed, thread.word(operands[1])), ()


def unpack(thread: Thread, kinds, operands):
    word, mask = thread.word(operands[1]), thread.word(operands[2])
    assert mask is not None  # an immediate
    for place in range(7):
        if mask >> place & 1:
            thread.predicates[f"P{place}"] = known(lambda bits, place=place: bool(bits >> place & 1))(word)
    return None, ()


def convert_to_float(thread: Thread, kinds, operands):
    return known(to_bits)(thread.word(operands[0])), ()


def reciprocal(thread: Thread, kinds, operands):
    bits = thread.word(operands[0]) if "RCP" in kinds else None
    return to_bits(1 / from_bits(bits)) if bits else None, ()


def convert_to_integer(thread: Thread, kinds, operands):
    return known(lambda bits: min(max(int(from_bits(bits)), 0), WORD - 1))(thread.word(operands[0])), ()


HANDLERS: dict[str, Callable[..., tuple[int | None, Sequence[bool | None]]]] = {
    **dict.fromkeys(("MOV", "R2UR", "S2R", "S2UR", "LDC"), move),
    "CS2R": zero,
    "HFMA2": constant,
    "IADD3": add,
    "VIADD": lambda thread, kinds, operands: add(thread, kinds, [*operands[:2], "RZ"]),
    "IMAD": multiply,
    "LEA": shift_and_add,
    "SHF": shift,
    "LOP3": logic,
    "PLOP3": predicate_logic,
    "ISETP": compare,
    "SEL": select,
    "VIMNMX": extreme,
    "VIADDMNMX": extreme,
    "P2R": pack,
    "R2P": unpack,
    "IABS": lambda thread, kinds, operands: (known(lambda word: abs(signed(word)))(thread.word(operands[0])), ()),
    "SHFL": lambda thread, kinds, operands: (thread.word(operands[0]) if "IDX" in kinds else None, ()),
    "I2F": convert_to_float,
    "MUFU": reciprocal,
    "F2I": convert_to_integer,
}


def issued(row: Row) -> int:
    """How many instructions a warp of a launch's first program issues."""
    return work(row)[0]


@functools.cache
def work(row: Row) -> tuple[int, int]:
    """How many instructions a warp of a launch's first program issues, and the products that tensor cores form."""
    pointers = sum(kind.startswith("*") for kind in leaves(row.compilation.types))
    words = [0, 0] * pointers + list(row.sizes)
    constants = {PARAMETERS + 4 * place: word % WORD for place, word in enumerate(words)}
    thread = Thread(constants)
    return thread.run(*parse(assembly_of(compiled(row.compilation).asm["cubin"]))), thread.products


def per_element(row: Row) -> float:
    """How many instructions the warps of a launch issue for each element of x."""
    return issued(row) * row.compilation.warps * row.programs / math.prod(row.case.shape)


def busiest(rows: Sequence[Row]) -> int:
    """How many instructions the busiest of a GPU's processors issues, in launches one after the other."""
    return sum(issued(row) * row.compilation.warps * -(-row.programs // PROCESSORS) for row in rows)


def tables() -> list[Table]:
    """One table for each of ResNet-50's stages."""
    columns = ("pass", "kernel", "programs", "issued by a warp", "by all, per element", "by the busiest processor")
    found = []
    for case in scsa_cases(dtypes=[torch.bfloat16], formats=[CONTIGUOUS]):
        rows = [row for work in WORKS for row in launches(case, work, ARCH)]
        cells: list[tuple[str, ...]] = [
            (
                row.work, row.compilation.kernel.removesuffix("_kernel"), str(row.programs), str(issued(row)),
                f"{per_element(row):.2f}", str(busiest([row])),
            )
            for row in rows
        ]  # fmt: skip
        found.append(Table(f"sm_{ARCH}, {case}, of {PROCESSORS} processors", columns, cells))
    return found


if __name__ == "__main__":
    for table in tables():
        print(to_text(table), end="\n\n")
