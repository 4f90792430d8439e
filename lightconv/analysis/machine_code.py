"""Instructions of a compiled kernel and the loop in which it spends its time.

NVIDIA's code is read from the JSON of `nvdisasm -json`, or, where that is missing or older, as
`cuobjdump --dump-sass` prints it. AMD's is read as the compiler's assembly. A loop is a natural loop
of the control flow graph: an edge back to an instruction on every path into the loop, and all instructions between.
The main loop is the innermost loop with the most matrix instructions. Without matrix instructions it is the one with
the most loads and arithmetic. Loops waiting for a barrier and doing nothing else are ignored. A compiler may unroll,
split or pipeline loops: instructions are counted in the body as compiled.
"""

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

import networkx

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_SASS_PARTS = re.compile(r"(@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*)")
_SASS_TARGET = re.compile(r"(?:BRA|CALL)\S*(.*?)0x([0-9a-f]+)$")
SASS_BYTES = 16  # of an instruction since Volta
_AMD = re.compile(r"^(?:(\.L\w+):|\t([a-z]\w+)(?:[ \t]+([^;\n]*))?)", re.MULTILINE)
_AMD_ENDS = {"s_branch", "s_endpgm"}

# Regular expressions of opcodes by kind of instruction. The first kind that matches counts.
KINDS = {
    "matrix": r"[HIDQB]MMA|HGMMA|QGMMA|UTC\w*MMA|v_s?mfma",
    "memory": r"LDG(?!DEPBAR)|STG|UTMALDG|UTMASTG|global_|buffer_|flat_",
    "shared": r"LDS|STS|LDSM|STSM|LDTM|STTM|ds_",
    "arithmetic": r"FFMA|FMUL|FADD|FMNMX|FSEL|FSETP|HFMA|HADD|HMUL|MUFU|F2F|v_(?:pk_)?(?:fma|mul|add|max|min)\w*_f\d\d",
    # The high half of an integer product: an integer division by a number unknown to the compiler takes one, and one
    # more for its reciprocal if that is not computed ahead.
    "division": r"U?IMAD\.HI\.U32|[vs]_mul_hi_u32",
    "wait": r"BAR|DEPBAR|LDGDEPBAR|WARPGROUP|WARPSYNC|SYNCS|UTCBAR|NOP|s_waitcnt|s_barrier|s_nop|s_delay",
    "control": r"BRA|EXIT|CALL|RET|BSSY|BSYNC|ELECT|s_cbranch|s_branch",
}
_KIND_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in KINDS.items()]


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        address: position in bytes; AMD's assembly has no addresses, so its instructions are numbered instead.
        opcode: name with its modifiers, such as "LDG.E.128".
        operands: operands as printed.
        target: address of a possible jump; None without one.
        falls_through: True if the next instruction may follow.
    """

    address: int
    opcode: str
    operands: str
    target: int | None
    falls_through: bool

    @property
    def kind(self) -> str:
        """Key of `KINDS`, or "integer" for all others: addresses, masks and moves."""
        for kind, pattern in _KIND_PATTERNS:
            if pattern.match(self.opcode):
                return kind
        return "integer"


Instructions = tuple[Instruction, ...]


def instructions(listing: str) -> Instructions:
    """Return the instructions of a kernel.

    Args:
        listing: output of NVIDIA's disassembler, or AMD's assembly.
    """
    if "headerflags" in listing:
        return parse_sass(listing)
    return parse_amd(listing)


def parse_sass(listing: str) -> Instructions:
    """Return the instructions of a listing by ``cuobjdump --dump-sass``."""
    parsed = []
    for address, text in _SASS.findall(listing):
        predicate, opcode, operands = _SASS_PARTS.match(text).groups()  # type: ignore[union-attr]
        parsed.append(build_sass(int(address, 16), predicate, opcode, operands))
    return finish_sass(parsed)


def parse_sass_json(text: str) -> Instructions:
    """Return the instructions of the output of ``nvdisasm -json``: a head, then a list of functions.

    Raises:
        LookupError: If the output has another schema.
        ValueError: If it is not JSON.
    """
    _, functions = json.loads(text)
    parsed = []
    for function in functions:
        for number, fields in enumerate(function["sass-instructions"]):
            # JSON leaves out the spaces of the listing, and the addresses
            operands = fields.get("operands", "").replace(",", ", ")
            address = function["start"] + number * SASS_BYTES
            parsed.append(build_sass(address, fields.get("predicate"), fields["opcode"], operands))
    return finish_sass(parsed)


def build_sass(address: int, predicate: str | None, opcode: str, operands: str) -> Instruction:
    """Build an instruction from its parts, with its possible jump."""
    target = None
    condition = predicate
    may_end = opcode.startswith(("EXIT", "RET"))
    jump = _SASS_TARGET.match(f"{opcode} {operands}")
    if jump is not None:
        may_end = True
        target = int(jump[2], 16)
        # a branch may name its predicate among the operands: BRA P1, 0x10 or BRA.U UP0, 0x10
        condition = predicate or jump[1].strip()
    return Instruction(address, opcode, operands, target, bool(condition) or not may_end)


def finish_sass(parsed: list[Instruction]) -> Instructions:
    """Drop the padding after a kernel, and let calls of subroutines return."""
    # NOPs pad the last line of the instruction cache
    while parsed and parsed[-1].opcode == "NOP":
        parsed.pop()
    subroutines = subroutine_addresses(parsed)
    return tuple(_returning(i) if i.target in subroutines else i for i in parsed)


def subroutine_addresses(code: Iterable[Instruction]) -> set[int | None]:
    """Return the addresses of called code that returns.

    A CALL into code with a path to the kernel's end is a jump, not a call of a subroutine.
    """
    targets = []
    exits = set()
    skipping_calls = []
    for instruction in code:
        if instruction.opcode.startswith("CALL"):
            targets.append(instruction.target)
            skipping_calls.append(_returning(instruction))
        else:
            skipping_calls.append(instruction)
        if instruction.opcode.startswith("EXIT"):
            exits.add(instruction.address)
    flow = _control_flow(tuple(skipping_calls))
    return {t for t in targets if t in flow and exits.isdisjoint(networkx.descendants(flow, t))}


def _returning(call: Instruction) -> Instruction:
    return call._replace(target=None, falls_through=True)


def parse_amd(listing: str) -> Instructions:
    """Return the instructions of AMD's assembly."""
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for label, opcode, operands in _AMD.findall(listing.partition(".Lfunc_end")[0]):
        if label:
            labels[label] = len(lines)
        else:
            lines.append((opcode, operands.strip()))
    # a jump may lead forward, so labels resolve only after all lines have been read
    parsed = []
    for number, (opcode, operands) in enumerate(lines):
        parsed.append(Instruction(number, opcode, operands, labels.get(operands), opcode not in _AMD_ENDS))
    return tuple(parsed)


def loops(code: Instructions) -> list[Instructions]:
    """Return the innermost loops, in the order of their first instruction in memory."""
    flow = _control_flow(code)
    dominators = networkx.immediate_dominators(flow, code[0].address)
    # loops that start at the same instruction are one loop with several ways back
    bodies: dict[int, set[int]] = {}
    for last, first in flow.edges:
        if last in dominators and dominates(first, last, dominators):
            bodies.setdefault(first, set()).update(natural_loop(flow, first, last))
    working = []
    for _, addresses in sorted(bodies.items()):
        body = tuple(i for i in code if i.address in addresses)
        if any(i.kind not in {"wait", "control"} for i in body):
            working.append(body)
    return [body for body in working if not any(set(inner) < set(body) for inner in working)]


def natural_loop(flow: "networkx.DiGraph[int]", first: int, last: int) -> set[int]:
    """Return the addresses of the loop closed by an edge from `last` back to `first`."""
    if first == last:
        return {first}
    # all instructions with a path to the last one that avoids the first one
    inside = flow.subgraph(flow.nodes - {first})
    return {first, last} | networkx.ancestors(inside, last)


def _control_flow(code: Instructions) -> "networkx.DiGraph[int]":
    flow: networkx.DiGraph[int] = networkx.DiGraph()
    addresses = {i.address for i in code}
    flow.add_nodes_from(addresses)
    for instruction, following in zip(code, [*code[1:], None], strict=True):
        if instruction.falls_through and following is not None:
            flow.add_edge(instruction.address, following.address)
        if instruction.target in addresses:
            flow.add_edge(instruction.address, instruction.target)
    return flow


def dominates(first: int, last: int, dominators: dict[int, int]) -> bool:
    """Return True if every path from the entry to the last instruction passes the first."""
    at: int | None = last
    while at not in {first, None}:
        above = dominators.get(at)
        # the entry's immediate dominator is itself or missing, depending on networkx's version
        at = above if above != at else None
    return at == first


def main_loop(code: Instructions) -> Instructions:
    """Return the loop in which the kernel spends its time; empty without a loop."""

    def work(body: Instructions) -> tuple[int, int]:
        counted = count(body)
        return counted["matrix"], counted["memory"] + counted["arithmetic"]

    return max(loops(code), key=work, default=())


def count(code: Iterable[Instruction]) -> dict[str, int]:
    """Return the number of instructions of each kind, keyed by `KINDS` and "integer"."""
    counted = dict.fromkeys((*KINDS, "integer"), 0)
    for instruction in code:
        counted[instruction.kind] += 1
    return counted


def load_bits(code: Instructions) -> tuple[int, ...]:
    """Return the distinct widths of loads from global memory, in bits per thread, from wide to narrow.

    Asynchronous copies count as loads. Copies by tensor memory access bring a whole rectangle and are left out.
    """
    return _wide_to_narrow(map(bits_loaded, code))


def store_bits(code: Instructions) -> tuple[int, ...]:
    """Return the distinct widths of stores to global memory, in bits per thread, from wide to narrow."""
    return _wide_to_narrow(map(bits_stored, code))


def _wide_to_narrow(widths: Iterable[int]) -> tuple[int, ...]:
    distinct = set(widths) - {0}
    return tuple(sorted(distinct, reverse=True))


def bits_loaded(instruction: Instruction) -> int:
    """Return the bits per thread that one instruction loads from global memory; 0 for others.

    Example:
        >>> bits_loaded(Instruction(0, "LDG.E.128", "R4, [R2.64]", None, True))
        128
    """
    return _bits_moved(instruction.opcode, r"LDG(STS)?\b", r"load_(?:lds_)?")


def bits_stored(instruction: Instruction) -> int:
    """Return the bits per thread that one instruction stores to global memory; 0 for others."""
    return _bits_moved(instruction.opcode, r"STG\b", "store_")


def _bits_moved(opcode: str, nvidia: str, amd: str) -> int:
    if re.match(nvidia, opcode):
        width = re.search(r"\.(?:[US](8|16)|(64|128|256))\b", opcode)
        return int(width[1] or width[2]) if width else 32  # without a suffix: one word
    moved = re.match(rf"(?:global|buffer|flat)_{amd}(dwordx?(\d?)|[us]?byte|[us]?short)", opcode)
    if moved is None:
        return 0
    if moved[1].endswith("byte"):
        return 8
    if moved[1].endswith("short"):
        return 16
    return 32 * int(moved[2] or 1)


def multiply_adds(instruction: Instruction) -> int:
    """Return how many multiply-adds one matrix instruction takes; 0 for other instructions.

    The number is per warp, or per group of four warps for HGMMA and UTCHMMA.

    Raises:
        ValueError: If a matrix instruction's name does not hold its shape.

    Example:
        >>> multiply_adds(Instruction(0, "HMMA.16816.F32", "R24, R40, R44, R24", None, True))
        2048
    """
    if instruction.kind != "matrix":
        return 0
    name = instruction.opcode
    shapes = (
        r"GMMA\.(\d+)x(\d+)x(\d+)",  # a warp group of NVIDIA's
        r"\wMMA\.(16)(8)(\d+)",  # a warp of NVIDIA's
        r"mfma_f32_(\d+)x(\d+)x(\d+)",  # a wave of AMD's
    )
    for pattern in shapes:
        shape = re.search(pattern, name)
        if shape:
            return int(shape[1]) * int(shape[2]) * int(shape[3])
    raise ValueError(f"no shape in {name}")


def mark_main_loop(listing: str) -> str:
    """Return a listing without encodings and with a bar before each instruction of the main loop.

    Args:
        listing: output of NVIDIA's disassembler, or AMD's assembly.
    """
    code = instructions(listing)
    body = {i.address for i in main_loop(code)}
    lines = []
    for i in code:
        bar = "|" if i.address in body else " "
        lines.append(f"{bar} {i.address:6x}  {i.kind:<10} {i.opcode} {i.operands}".rstrip())
    return "\n".join(lines)
