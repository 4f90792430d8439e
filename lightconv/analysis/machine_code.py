"""What a compiled kernel's machine code does: its instructions, and the loop in which it spends its time.

NVIDIA's code is read as `cuobjdump --dump-sass` prints it, AMD's as the compiler's assembly. A loop is a natural loop
of the control flow: what leads back to a point that every way into it passes. The main loop is the innermost one with
the most matrix instructions or, where there are none, the most loads and arithmetic; loops that only wait for a barrier
are none. A compiler may unroll, split or pipeline loops: what is counted is the body as it stands.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import networkx

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", re.MULTILINE)
_SASS_PARTS = re.compile(r"(@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*)")
_SASS_TARGET = re.compile(r"(?:BRA|CALL)\S*(.*?)0x([0-9a-f]+)$")
_AMD = re.compile(r"^(?:(\.L\w+):|\t([a-z]\w+)(?:[ \t]+([^;\n]*))?)", re.MULTILINE)
_AMD_ENDS = {"s_branch", "s_endpgm"}

# what each instruction is for; the first that matches counts
KINDS = {
    "matrix": r"[HIDQB]MMA|HGMMA|QGMMA|UTC\w*MMA|v_s?mfma",
    "memory": r"LDG(?!DEPBAR)|STG|UTMALDG|UTMASTG|global_|buffer_|flat_",
    "shared": r"LDS|STS|LDSM|STSM|LDTM|STTM|ds_",
    "arithmetic": r"FFMA|FMUL|FADD|FMNMX|FSEL|FSETP|HFMA|HADD|HMUL|MUFU|F2F|v_(?:pk_)?(?:fma|mul|add|max|min)\w*_f\d\d",
    # a high product: an integer division by a number that is not known takes one, and one more for its reciprocal
    # where that is not computed ahead
    "division": r"U?IMAD\.HI\.U32|[vs]_mul_hi_u32",
    "wait": r"BAR|DEPBAR|LDGDEPBAR|WARPGROUP|WARPSYNC|SYNCS|UTCBAR|NOP|s_waitcnt|s_barrier|s_nop|s_delay",
    "control": r"BRA|EXIT|CALL|RET|BSSY|BSYNC|ELECT|s_cbranch|s_branch",
}
_KIND_OF = [(kind, re.compile(pattern)) for kind, pattern in KINDS.items()]


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        address: in bytes; AMD's assembly has none, its instructions are numbered instead.
        opcode: with its modifiers, "LDG.E.128".
        operands: as printed.
        target: address that it may jump to.
        falls_through: whether the next instruction may follow.
    """

    address: int
    opcode: str
    operands: str
    target: int | None
    falls_through: bool

    @property
    def kind(self) -> str:
        """One of `KINDS`, or "integer" for what is left: addresses, masks, moves."""
        return next((kind for kind, pattern in _KIND_OF if pattern.match(self.opcode)), "integer")


Instructions = tuple[Instruction, ...]


def instructions(listing: str) -> Instructions:
    """The instructions of a kernel, by NVIDIA's disassembler or in AMD's assembly."""
    return _sass(listing) if "headerflags" in listing else _amd(listing)


def _sass(listing: str) -> Instructions:
    found = []
    for address, text in _SASS.findall(listing):
        predicate, opcode, operands = _SASS_PARTS.match(text).groups()  # type: ignore[union-attr]
        jump = _SASS_TARGET.match(f"{opcode} {operands}")
        condition = predicate or (jump and jump[1].strip())  # of a vector or of a uniform register
        ends = opcode.startswith(("EXIT", "RET")) or jump is not None
        target = int(jump[2], 16) if jump else None
        found.append(Instruction(int(address, 16), opcode, operands, target, bool(condition) or not ends))
    while found and found[-1].opcode == "NOP":  # what fills the last line of the cache
        found.pop()
    subroutines = _subroutines(tuple(found))
    return tuple(_comes_back(i) if i.target in subroutines else i for i in found)


def _subroutines(code: Instructions) -> set[int | None]:
    """Where calls lead that come back; others are jumps, from where some way leads to the kernel's end."""
    calls = [i for i in code if i.opcode.startswith("CALL")]
    flow = _flow(tuple(_comes_back(i) if i in calls else i for i in code))
    ends = {i.address for i in code if i.opcode.startswith("EXIT")}
    return {i.target for i in calls if i.target in flow and ends.isdisjoint(networkx.descendants(flow, i.target))}


def _comes_back(call: Instruction) -> Instruction:
    return call._replace(target=None, falls_through=True)


def _amd(listing: str) -> Instructions:
    lines: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for label, opcode, operands in _AMD.findall(listing.partition(".Lfunc_end")[0]):
        if label:
            labels[label] = len(lines)
        else:
            lines.append((opcode, operands.strip()))
    return tuple(
        Instruction(number, opcode, operands, labels.get(operands), opcode not in _AMD_ENDS)
        for number, (opcode, operands) in enumerate(lines)
    )


def loops(code: Instructions) -> list[Instructions]:
    """The loops that have no loop within them, in the order of memory."""
    flow = _flow(code)
    dominators = networkx.immediate_dominators(flow, code[0].address)
    bodies: dict[int, set[int]] = {}
    for last, first in flow.edges:
        if last in dominators and _dominates(first, last, dominators):
            before = flow.subgraph(flow.nodes - {first})
            body = {first, last} | (networkx.ancestors(before, last) if last != first else set())
            bodies[first] = bodies.get(first, set()) | body
    listed = [tuple(i for i in code if i.address in body) for _, body in sorted(bodies.items())]
    listed = [body for body in listed if not all(i.kind in {"wait", "control"} for i in body)]
    return [body for body in listed if not any(set(other) < set(body) for other in listed)]


def _flow(code: Instructions) -> "networkx.DiGraph[int]":
    flow: networkx.DiGraph[int] = networkx.DiGraph()
    addresses = {i.address for i in code}
    flow.add_nodes_from(addresses)
    for instruction, following in zip(code, [*code[1:], None], strict=True):
        if instruction.falls_through and following is not None:
            flow.add_edge(instruction.address, following.address)
        if instruction.target in addresses:
            flow.add_edge(instruction.address, instruction.target)
    return flow


def _dominates(first: int, last: int, dominators: dict[int, int]) -> bool:
    """Whether every way to the last instruction passes the first."""
    at: int | None = last
    while at not in {first, None}:
        above = dominators.get(at)  # the entry's is itself or missing, by networkx's version
        at = above if above != at else None
    return at == first


def main_loop(code: Instructions) -> Instructions:
    """The loop in which the kernel spends its time; empty where there is none."""

    def work(body: Instructions) -> tuple[int, int]:
        counted = count(body)
        return counted["matrix"], counted["memory"] + counted["arithmetic"]

    return max(loops(code), key=work, default=())


def count(code: Iterable[Instruction]) -> dict[str, int]:
    """How many instructions of each kind."""
    kinds = [i.kind for i in code]
    return {kind: kinds.count(kind) for kind in (*KINDS, "integer")}


def load_bits(code: Instructions) -> tuple[int, ...]:
    """Bits that each load or asynchronous copy from global memory brings a thread, from wide to narrow.

    A copy by tensor memory access brings a whole rectangle and is not among them.
    """
    return _wide_to_narrow(map(bits_loaded, code))


def store_bits(code: Instructions) -> tuple[int, ...]:
    """Bits that each store to global memory takes from a thread, from wide to narrow."""
    return _wide_to_narrow(map(bits_stored, code))


def _wide_to_narrow(widths: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({bits for bits in widths if bits}, reverse=True))


def bits_loaded(instruction: Instruction) -> int:
    """Bits that one instruction brings a thread from global memory."""
    return _bits_moved(instruction.opcode, r"LDG(STS)?\b", r"load_(?:lds_)?")


def bits_stored(instruction: Instruction) -> int:
    """Bits that one instruction takes from a thread to global memory."""
    return _bits_moved(instruction.opcode, r"STG\b", "store_")


def _bits_moved(opcode: str, nvidia: str, amd: str) -> int:
    if re.match(nvidia, opcode):
        special = re.search(r"\.(?:[US](8|16)|(64|128|256))\b", opcode)
        return int(special[1] or special[2]) if special else 32
    found = re.match(rf"(?:global|buffer|flat)_{amd}(dwordx?(\d?)|[us]?byte|[us]?short)", opcode)
    if found is None:
        return 0
    return {"byte": 8, "hort": 16}.get(found[1][-4:], 32 * int(found[2] or 1))


def multiply_adds(instruction: Instruction) -> int:
    """Products that one matrix instruction of a warp (of a group of four by HGMMA and UTCHMMA) sums; 0 if it is none.

    Raises:
        ValueError: for a matrix instruction whose shape is not in its name.
    """
    if instruction.kind != "matrix":
        return 0
    name = instruction.opcode
    if group := re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", name):
        return int(group[1]) * int(group[2]) * int(group[3])
    if warp := re.search(r"\wMMA\.(16)(8)(\d+)", name):
        return int(warp[1]) * int(warp[2]) * int(warp[3])
    if wave := re.search(r"mfma_f32_(\d+)x(\d+)x(\d+)", name):
        return int(wave[1]) * int(wave[2]) * int(wave[3])
    raise ValueError(f"no shape in {name}")


def marked(listing: str) -> str:
    """A listing with a bar before each instruction of the main loop, without the encodings.

    Args:
        listing: as `instructions` takes it.
    """
    code = instructions(listing)
    body = {i.address for i in main_loop(code)}
    lines = []
    for i in code:
        bar = "|" if i.address in body else " "
        lines.append(f"{bar} {i.address:6x}  {i.kind:<10} {i.opcode} {i.operands}".rstrip())
    return "\n".join(lines)
