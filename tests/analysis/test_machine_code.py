"""Loops and counts of short listings, written as NVIDIA's disassembler and AMD's compiler print them."""

import pytest

from lightconv.analysis.machine_code import (
    Instruction,
    bits_loaded,
    count,
    instructions,
    load_bits,
    loops,
    main_loop,
    mark_main_loop,
    multiply_adds,
    store_bits,
)

SPIN = "SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR9+0x14020], R14"


def sass(*lines):
    """A listing of instructions at 0x0, 0x10, 0x20, ..., each with its encoding, as cuobjdump prints them."""
    text = ["", "\tcode for sm_90a", "\t\tFunction : _kernel", '\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_64BIT_ADDRESS"']
    for number, line in enumerate(lines):
        text.append(f"        /*{16 * number:04x}*/                   {line + ' ;':<54}/* 0x00000a00ff017b82 */")
        text.append(f"{'':<88}/* 0x000e300000000800 */")
    return "\n".join([*text, "\t\t.........."])


NESTED = sass(
    "LDC R1, c[0x0][0x28]",
    "IADD3 R2, R1, 0x1, RZ",  # 0x10: the outer loop
    "LDG.E.128 R4, [R2.64]",  # 0x20: the inner one
    "HMMA.16816.F32 R24, R40.reuse, R44, R24",
    "@!P0 BRA 0x20",
    "ISETP.NE.AND P1, PT, R1, RZ, PT",
    "@P1 BRA 0x10",
    "EXIT",
)
AMD = """\
	.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
	.type	_kernel,@function
_kernel:                                ; @_kernel
.Lfunc_begin0:
	.cfi_startproc
	.loc	1 292 0 prologue_end            ; implicit_gemm.py:292:0
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_branch .LBB0_2
.LBB0_1:                                ;   in Loop: Header=BB0_2 Depth=1
	v_mfma_f32_32x32x8_f16 v[18:33], v[94:95], v[96:97], v[18:33]
.LBB0_2:                                ; =>This Inner Loop Header: Depth=1
	global_load_dwordx4 v[2:5], v[0:1], off
	s_waitcnt vmcnt(0)
	s_cbranch_scc1 .LBB0_1
; %bb.3:
	s_cbranch_vccz .LBB0_5
; %bb.4:
	s_endpgm
.LBB0_5:
	v_mul_f32_e32 v1, 0x4f7ffffe, v1
	s_endpgm
.Lfunc_end0:
	s_nop 0
"""


def spans(listing):
    """First and last address of each loop."""
    return [(body[0].address, body[-1].address) for body in loops(instructions(listing))]


def test_parsed_instructions():
    code = instructions(NESTED)
    assert len(code) == 8
    assert code[3] == Instruction(0x30, "HMMA.16816.F32", "R24, R40.reuse, R44, R24", None, True)
    assert code[4] == Instruction(0x40, "BRA", "0x20", 0x20, True)
    assert code[7] == Instruction(0x70, "EXIT", "", None, False)


@pytest.mark.parametrize(
    ("line", "target", "falls_through"),
    [
        ("BRA 0x10", 0x10, False),
        ("@P0 BRA 0x10", 0x10, True),
        ("@!UP0 BRA 0x10", 0x10, True),
        ("BRA P1, 0x10", 0x10, True),
        ("BRA.U UP0, 0x10", 0x10, True),
        ("BRA.DIV ~URZ, 0x10", 0x10, True),
        ("EXIT", None, False),
        ("@P0 EXIT", None, True),
        ("RET.REL.NODEC R52 0x0", None, False),
        ("IADD3 R2, R1, 0x10, RZ", None, True),
    ],
)
def test_jump_targets(line, target, falls_through):
    found = instructions(sass(line, "LDG.E R1, [R2.64]", "EXIT"))[0]
    assert (found.target, found.falls_through) == (target, falls_through)


def test_padding_is_left_out():
    assert len(instructions(sass("NOP", "EXIT", "BRA 0x20", "NOP", "NOP"))) == 3


def test_innermost_loop():
    assert spans(NESTED) == [(0x20, 0x40)]


def test_loop_with_several_back_edges():
    assert spans(sass("FFMA R1, R2, R3, R1", "@P0 BRA 0x0", "FADD R1, R2, R3", "@P1 BRA 0x0", "EXIT")) == [(0x0, 0x30)]
    assert spans(sass("FFMA R1, R2, R3, R1", "@P0 BRA 0x40", "FADD R1, R2, R3", "BRA 0x0", "@P1 BRA 0x0", "EXIT")) == [
        (0x0, 0x40)
    ]


def test_waiting_loop_is_ignored():
    assert spans(sass(SPIN, "@!P3 BRA 0x0", "EXIT")) == []
    assert spans(sass("EXIT", "BRA 0x10")) == []


def test_waiting_out_of_line():
    code = sass(
        SPIN,
        "@!P3 BRA 0x80",
        "FFMA R1, R2, R3, R1",  # 0x20: both from above and back from the end
        "HGMMA.64x128x16.F32 R24, R88, gdesc[UR8], R24",  # 0x30: the loop
        SPIN,
        "@!P4 BRA 0xb0",
        "@P0 BRA 0x30",  # 0x60
        "EXIT",
        SPIN,  # 0x80: the first wait's
        "@!P3 BRA 0x80",
        "BRA 0x20",
        SPIN,  # 0xb0: the loop's
        "@!P4 BRA 0xb0",
        "BRA 0x60",
    )
    assert [[i.address for i in body] for body in loops(instructions(code))] == [
        [0x30, 0x40, 0x50, 0x60, 0xB0, 0xC0, 0xD0]
    ]


def test_loop_with_two_entries_is_ignored():
    code = sass("@P0 BRA 0x20", "FFMA R1, R2, R3, R1", "FFMA R1, R2, R3, R1", "@P1 BRA 0x10", "EXIT")
    assert spans(code) == []


def test_loop_entered_at_its_end():
    code = sass("BRA 0x30", "FFMA R1, R2, R3, R1", "BRA 0x30", "LDG.E R1, [R2.64]", "@P0 BRA 0x10", "EXIT")
    assert spans(code) == [(0x10, 0x40)]


def test_calls_and_jumps():
    subroutine = ("I2F.U64.RP R62, R40", "@P0 BRA 0xa0", "MUFU.RCP R62, R62", "RET.REL.NODEC R52 0x0")
    code = sass(
        "MOV R52, 0x20",
        "CALL.REL.NOINC 0x80",
        "LDG.E R1, [R2.64]",  # 0x20: the loop
        "@P1 CALL.REL.NOINC 0x60",
        "CALL.REL.NOINC 0x80",
        "BRA 0x20",
        "CALL.REL.NOINC 0x80",  # 0x60: after it
        "EXIT",
        *subroutine,
    )
    read = instructions(code)
    assert [(i.target, i.falls_through) for i in read if i.opcode.startswith("CALL")] == [
        (None, True), (0x60, True), (None, True), (None, True),
    ]  # fmt: skip
    assert spans(code) == [(0x20, 0x50)]


def loop(first, *body):
    return *body, f"@P0 BRA {16 * first:#x}"


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        (["LDG.E R1, [R2.64]"] * 9, ["HMMA.1688.F32.TF32 R4, R4, R8, R4"], 1),  # the matrix instruction
        (["IADD3 R2, R1, 0x1, RZ"] * 9, ["LDG.E R1, [R2.64]", "FADD R3, R3, R1"], 1),  # else loads and arithmetic
        (["LDG.E R1, [R2.64]", "FADD R3, R3, R1"], ["LDGDEPBAR"] * 9, 0),
    ],
)
def test_main_loop(first, second, chosen):
    bodies = loop(0, *first), loop(len(first) + 1, *second)
    main = main_loop(instructions(sass(*bodies[0], *bodies[1], "EXIT")))
    assert [i.opcode for i in main] == [line.split()[0] for line in bodies[chosen][:-1]] + ["BRA"]


def test_no_main_loop():
    assert main_loop(instructions(sass("LDG.E R1, [R2.64]", "@P0 BRA 0x30", "FADD R3, R3, R1", "EXIT"))) == ()


@pytest.mark.parametrize(
    ("kind", "opcodes"),
    [
        ("matrix", "HMMA.16816.F32 HGMMA.64x128x16.F32 QGMMA.64x8x32.F32 UTCHMMA v_mfma_f32_16x16x16_bf16"),
        ("memory", "LDG.E.128 LDGSTS.E STG.E.U16 UTMALDG.4D global_store_short buffer_load_dword"),
        ("shared", "LDS.128 STS LDSM.16.MT88.4 LDTM.x16 ds_read_b128"),
        ("arithmetic", "FFMA FADD.FTZ HFMA2 MUFU.RCP v_fma_f32 v_pk_mul_f32 v_max_f32_e32"),
        ("division", "IMAD.HI.U32 UIMAD.HI.U32 v_mul_hi_u32 s_mul_hi_u32"),
        ("wait", "BAR.SYNC.DEFER_BLOCKING DEPBAR.LE LDGDEPBAR WARPGROUP.ARRIVE SYNCS.EXCH.64 NOP s_waitcnt s_barrier"),
        ("control", "BRA.U EXIT CALL.REL.NOINC RET.REL.NODEC BSYNC ELECT s_cbranch_scc1 s_branch"),
        (
            "integer",
            "IADD3 IMAD.WIDE IMAD.HI LEA.HI.X.SX32 I2F.RP LDC ULDC.64 v_mad_u64_u32 s_load_dwordx2",
        ),
    ],
)
def test_kind_of_instruction(kind, opcodes):
    code = [Instruction(0, opcode, "", None, True) for opcode in opcodes.split()]
    counted = count(code)
    assert counted.pop(kind) == len(code), [i.opcode for i in code if i.kind != kind]
    assert not any(counted.values())


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("LDG.E", 32),
        ("LDG.E.CONSTANT", 32),
        ("LDG.E.64", 64),
        ("LDG.E.128", 128),
        ("LDG.E.128.CONSTANT", 128),
        ("LDG.E.U16", 16),
        ("LDG.E.U8", 8),
        ("LDG.E.S8", 8),
        ("LDGSTS.E", 32),
        ("LDGSTS.E.LTC128B", 32),
        ("LDGSTS.E.LTC128B.64", 64),
        ("LDGSTS.E.BYPASS.LTC128B.128", 128),
        ("LDGDEPBAR", 0),
        ("LDS.128", 0),
        ("UTMALDG.4D", 0),
        ("STG.E.128", 0),
        ("global_load_dwordx4", 128),
        ("buffer_load_dwordx2", 64),
        ("global_load_dword", 32),
        ("global_load_ushort", 16),
        ("buffer_load_short_d16_hi", 16),
        ("global_load_ubyte", 8),
        ("global_store_dwordx4", 0),
    ],
)
def test_bits_loaded(opcode, bits):
    instruction = Instruction(0, opcode, "", None, True)
    assert bits_loaded(instruction) == bits
    assert load_bits((instruction,)) == ((bits,) if bits else ())


@pytest.mark.parametrize(
    ("opcode", "bits"),
    [
        ("STG.E", 32),
        ("STG.E.U16", 16),
        ("STG.E.U8", 8),
        ("STG.E.128", 128),
        ("LDG.E.128", 0),
        ("STS.128", 0),
        ("UTMASTG.4D", 0),
        ("global_store_dwordx4", 128),
        ("buffer_store_short", 16),
        ("global_store_byte", 8),
        ("global_load_dwordx4", 0),
    ],
)
def test_bits_stored(opcode, bits):
    assert store_bits((Instruction(0, opcode, "", None, True),)) == ((bits,) if bits else ())


def test_distinct_widths():
    opcodes = ("LDG.E.U8", "LDG.E.128", "FADD", "LDG.E", "LDG.E.128")
    assert load_bits(tuple(Instruction(0, opcode, "", None, True) for opcode in opcodes)) == (128, 32, 8)


@pytest.mark.parametrize(
    ("opcode", "products"),
    [
        ("HMMA.16816.F32", 16 * 8 * 16),
        ("HMMA.16816.F32.BF16", 16 * 8 * 16),
        ("HMMA.1688.F32.TF32", 16 * 8 * 8),
        ("HGMMA.64x128x16.F32", 64 * 128 * 16),
        ("HGMMA.64x64x8.F32.TF32", 64 * 64 * 8),
        ("v_mfma_f32_32x32x8_f16", 32 * 32 * 8),
        ("v_mfma_f32_16x16x16_bf16", 16 * 16 * 16),
        ("FFMA", 0),
        ("HFMA2.MMA", 0),
    ],
)
def test_multiply_adds(opcode, products):
    assert multiply_adds(Instruction(0, opcode, "", None, True)) == products


def test_matrix_instruction_without_shape():
    with pytest.raises(ValueError, match="no shape in UTCHMMA"):
        multiply_adds(Instruction(0, "UTCHMMA", "", None, True))


def test_parsed_amd_assembly():
    code = instructions(AMD)
    assert [i.address for i in code] == list(range(10))
    assert code[1] == Instruction(1, "s_branch", ".LBB0_2", 3, False)
    assert (code[5].target, code[5].falls_through) == (2, True)
    assert not code[7].falls_through, "the end of the program"
    assert code[6].target == 8, "what stands behind the first end of the program"
    assert spans(AMD) == [(2, 5)]
    assert load_bits(main_loop(code)) == (128,)
    assert [i.kind for i in main_loop(code)] == ["matrix", "memory", "wait", "control"]


@pytest.mark.parametrize("listing", [NESTED, AMD, sass("LDG.E R1, [R2.64]", "EXIT")])
def test_marked_main_loop(listing):
    code = instructions(listing)
    lines = mark_main_loop(listing).splitlines()
    assert [int(line[1:].split()[0], 16) for line in lines] == [i.address for i in code]
    assert [int(line[1:].split()[0], 16) for line in lines if line[0] == "|"] == [i.address for i in main_loop(code)]
    assert [line.split()[-1] for line in lines] == [(i.operands or i.opcode).split()[-1] for i in code]
