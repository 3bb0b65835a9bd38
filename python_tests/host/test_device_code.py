"""The device code that the build embeds."""

import re
import struct
from collections.abc import Iterator

import pytest
from hunyuan_kernels._C import build_information

from hunyuan_kernels._ops import LIBRARY, ops
from python_tests.host.device_code import assemble, disassemble, ptx_kernels


def stems() -> list[str]:
    return [stem for stem in ops.device_stems().split(",") if stem]


def test_build_information_says_whether_there_is_device_code() -> None:
    cuda = build_information()["cuda"]
    assert (cuda is None) == (stems() == [])
    if cuda is not None:
        assert re.fullmatch(r"nvcc \d+\.\d+\.\d+, sm_90a \([\w, ]+: sm_80 and newer\)", cuda)


@pytest.mark.parametrize("stem", stems())
def test_ptx_is_embedded_whole(stem: str) -> None:
    ptx = ops.device_ptx(stem)
    assert ".target sm_90a" in ptx
    assert ptx.count("{") == ptx.count("}")
    kernels = re.findall(r"\.entry (\w+)\(", ptx)
    assert kernels
    assert all(kernel.startswith(stem) for kernel in kernels)


PORTABLE = [stem for stem in ("dispatch", "quantize", "routing", "swiglu") if stem in stems()]


@pytest.mark.parametrize("stem", PORTABLE)
def test_portable_ptx_has_the_same_kernels(stem: str) -> None:
    kernels = [re.findall(r"\.entry (\w+)\(", ops.device_ptx(stem, portable)) for portable in (False, True)]
    assert kernels[0] == kernels[1]
    assert ".target sm_80" in ops.device_ptx(stem, True)


def fat_images() -> Iterator[set[tuple[str, int]]]:
    """What each fat image of the library holds: kind and architecture of its entries."""
    data, magic = LIBRARY.read_bytes(), struct.pack("<IHH", 0xBA55ED50, 1, 16)
    start = data.find(magic)
    while start >= 0:
        at, end = start + 16, start + 16 + struct.unpack_from("<Q", data, start + 8)[0]
        entries = set()
        while at < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
            entries.add(({1: "ptx", 2: "cubin"}[kind], struct.unpack_from("<I", data, at + 28)[0]))
            at += header + size
        yield entries
        start = data.find(magic, end)


def test_fat_images_serve_every_gpu_from_ampere_on() -> None:
    images = list(fat_images())
    assert len(images) == len(PORTABLE)
    for entries in images:
        assert entries >= {("cubin", 80), ("cubin", 90), ("ptx", 80), ("ptx", 90)}


def test_ptx_that_there_is_not() -> None:
    for stem in set(stems()) - set(PORTABLE):
        with pytest.raises(RuntimeError, match=f"portable is true, but '{stem}' needs sm_90a"):
            ops.device_ptx(stem, True)


def test_unknown_stem_names_what_there_is() -> None:
    with pytest.raises(RuntimeError, match=r"device_ptx: stem is 'nonsense', but this build has device code for: \w+"):
        ops.device_ptx("nonsense")


@pytest.mark.parametrize("stem", stems())
def test_the_assembler_finds_nothing_slow(stem: str) -> None:
    """No stack, no spilled registers, no wgmma that waits for the one before it."""
    _, said = assemble(stem)
    functions = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert len(functions) >= ops.device_ptx(stem).count(".entry")
    assert set(functions) == {("0", "0", "0")}
    assert not re.search(r"serialized|C75\d\d", said), said


def loops(lines: list[str]) -> list[list[str]]:
    """The bodies from a label to a branch back to it, of SASS or PTX."""
    at = {line[:-1]: index for index, line in enumerate(lines) if line.endswith(":")}
    found = []
    for index, line in enumerate(lines):
        branch = re.search(r"BRA `\((\.L_x_\d+)\)|\bbra(?:\.uni)?\s+(\S+);", line)
        if branch and at.get(label := branch[1] or branch[2], index) < index:
            found.append(lines[at[label] : index + 1])
    return found


def main_loop(lines: list[str], instruction: str, count: int) -> list[str]:
    """The instructions of the shortest loop with so many of one of them."""
    found = [loop for loop in loops(lines) if sum(instruction in line for line in loop) == count]
    assert found, f"no loop has {count} of {instruction}"
    return [line for line in min(found, key=len) if not line.endswith(":")]


#: More than nvcc 13.0.88 makes of any of them, by a few. A k-block of 128 x 256 x 64 takes the tensor cores 1024 clocks
#: by the data sheet; meanwhile each of the 4 schedulers issues this twice, for the 8 warps that multiply. Descriptors
#: that are not known to be equal in a warp would make 16 R2UR (moves to uniform registers), and 10 to 20 more in all.
MOST_INSTRUCTIONS_OF_A_K_BLOCK, MOST_MOVES_OF_DESCRIPTORS = 72, 4


def assert_lean(name: str, body: list[str], most_moves: int, memory: str = "LDL|STL|LDG|STG") -> None:
    """Few moves of descriptors, and none of these accesses to memory: of a stack, or of a GPU's memory."""
    moves = sum("R2UR" in line for line in body)
    assert moves <= most_moves, f"{name}: {moves} moves"
    assert not any(re.search(rf"\b({memory})\b", line) for line in body), name


@pytest.mark.skipif("grouped_gemm" not in stems(), reason="this build has no device code: no nvcc was found")
def test_main_loops_of_the_grouped_gemm() -> None:
    """Four tensor core instructions for each k-block of 64, and little beside them."""
    kernels = disassemble("grouped_gemm")
    assert kernels
    for name, lines in kernels.items():
        body = main_loop(lines, "HGMMA", 4)
        shape = "64x128x16" if "_128_" in name else "64x256x16"
        assert all(shape in line for line in body if "HGMMA" in line), name
        assert len(body) <= MOST_INSTRUCTIONS_OF_A_K_BLOCK, f"{name}: {len(body)}"
        assert_lean(name, body, MOST_MOVES_OF_DESCRIPTORS)


@pytest.mark.skipif("grouped_gemm_few_rows" not in stems(), reason="this build has no device code: no nvcc was found")
def test_main_loops_for_few_rows() -> None:
    """The same for each 128 weights, of which SwiGLU has two."""
    kernels = disassemble("grouped_gemm_few_rows")
    assert kernels
    for name, lines in kernels.items():
        parts, tokens = 2 if "swiglu" in name else 1, 16 if "_16" in name else 64
        body = main_loop(lines, "HGMMA", 4 * parts)
        assert all(f"64x{tokens}x16" in line for line in body if "HGMMA" in line), name
        assert len(body) <= 48 + 20 * parts, f"{name}: {len(body)}"
        assert_lean(name, body, MOST_MOVES_OF_DESCRIPTORS * parts)


@pytest.mark.skipif("fp8_gemm" not in stems(), reason="this build has no device code: no nvcc was found")
def test_main_loops_of_the_fp8_gemm_in_ptx() -> None:
    """What the disassembly shows below, where there is no disassembler: e4m3 products, and one addition to each sum."""
    for name, lines in ptx_kernels("fp8_gemm").items():
        products = 4 if "_128_" in name else 8
        body = main_loop(lines, "wgmma.mma_async", products)
        assert sum("m64n128k32.f32.e4m3.e4m3" in line for line in body) == products, name
        addition = "fma.rn.f32" if "blocks" in name else "add.f32"
        assert sum(addition in line for line in body) == 16 * products, name
        other = [line for line in body if re.search(r"\b(add|sub|fma|mul)\.\S*f32\b", line) and addition not in line]
        assert len(other) <= 4, f"{name}: {other}"  # the products of two scales, for two rows and each part
        assert not any(re.search(r"\b(st\.global|ld\.local|st\.local)", line) for line in body), name


@pytest.mark.skipif("fp8_gemm_weight_only" not in stems(), reason="this build has no device code: no nvcc was found")
def test_main_loops_of_weight_only_fp8_in_ptx() -> None:
    """Conversions of pairs, loads of 16 or 2 bytes, and one addition to each sum where scales vary along K."""
    for name, lines in ptx_kernels("fp8_gemm_weight_only").items():
        parts, tokens = 2 if "swiglu" in name else 1, 16 if "_16" in name else 64
        body = main_loop(lines, "wgmma.mma_async", 8 * parts)
        assert sum(f"m64n{tokens}k16.f32.bf16.bf16" in line for line in body) == 8 * parts, name
        packed = "packed" in name
        counts = {"cvt.rn.f16x2.e4m3x2": 32, "ld.shared.v4": 4 if packed else 0, "ld.shared.u16": 0 if packed else 32}
        counts["fma.rn.f32"] = tokens // 2 if "blocks" in name else 0
        for text, count in counts.items():
            assert sum(text in line for line in body) == count * parts, f"{name}: {text}"


@pytest.mark.skipif("fp8_gemm" not in stems(), reason="this build has no device code: no nvcc was found")
def test_main_loops_of_the_fp8_gemm() -> None:
    """Four tensor core instructions of e4m3 for each 128 columns of a k-block, and one addition to each of 64 sums."""
    kernels = disassemble("fp8_gemm")
    assert kernels
    for name, lines in kernels.items():
        products = 4 if "_128_" in name else 8
        body = main_loop(lines, "QGMMA", products)
        assert all("64x128x32" in line for line in body if "QGMMA" in line), name
        additions = sum(bool(re.search(r"\b(FADD|FFMA)\b", line)) for line in body)
        assert additions == 16 * products, f"{name}: {additions}"
        others = len(body) - additions
        assert others <= (192 if "blocks" in name else 80), f"{name}: {others}"
        assert_lean(name, body, MOST_MOVES_OF_DESCRIPTORS, "LDL|STL|STG")


@pytest.mark.skipif("fp8_gemm_weight_only" not in stems(), reason="this build has no device code: no nvcc was found")
def test_main_loops_of_weight_only_fp8() -> None:
    """For each 128 x 128 weights a thread expands 64 and has 8 tensor core instructions: 128 conversions, as many bytes
    as weights read from shared memory (packed: 16 at a time), one addition to each sum where scales vary along K."""
    kernels = disassemble("fp8_gemm_weight_only")
    assert kernels
    for name, lines in kernels.items():
        parts, tokens = 2 if "swiglu" in name else 1, 16 if "_16" in name else 64
        body = main_loop(lines, "HGMMA", 8 * parts)
        assert all(f"64x{tokens}x16" in line for line in body if "HGMMA" in line), name
        conversions = {"UNPACK_B": 32, "HADD2.F32": 64, "PACK_AB": 32}
        loads = {"LDS.128": 4, "LDS.U16": 0} if "packed" in name else {"LDS.128": 0, "LDS.U16": 32}
        sums = {"FFMA": tokens // 2 if "blocks" in name else 0}
        for text, count in (conversions | loads | sums).items():
            assert sum(text in line for line in body) == count * parts, f"{name}: {text}"
        assert_lean(name, body, MOST_MOVES_OF_DESCRIPTORS * parts, "LDL|STL|STG")
