"""Where operands, fragments and accumulators lie, against CuTe's layout functions compiled on the host.

Shared memory is filled through CuTe's addresses, with NaN patterns between; the instruction runs with CuTe's
descriptor; registers are read through CuTe's layouts. What the simulator reads elsewhere gives NaN or a wrong sum."""

import json
import subprocess

import numpy as np
import pytest
import torch
from cutlass_headers import SOURCES, compile_with_cutlass
from hunyuan_kernels._C import simulator
from nvcc import compile_module

from bench.gpu.conformance import layouts, wgmma
from hunyuan_kernels.testing.simulated import SETTINGS

TORCH_TYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "e4m3": torch.float8_e4m3fn}
DEPTHS = {"bf16": 16, "tf32": 8, "e4m3": 32}
ROWS = 64  # of wgmma


@pytest.fixture(scope="module")
def tables():
    program = compile_with_cutlass(
        "layouts", [SOURCES / "layouts.cpp"], lambda folder: ["-std=c++17", str(SOURCES / "layouts.cpp")]
    )
    file = program.with_suffix(".json")
    if not file.is_file():
        unfinished = file.with_suffix(".unfinished")
        # CuTe says on standard output that there is no shared memory to give the address of: descriptors are for 0.
        subprocess.run([program, unfinished], check=True, stdout=subprocess.DEVNULL)
        unfinished.rename(file)
    return json.loads(file.read_text())


def operands(tables, dtype, major, swizzle):
    """One entry for each step of the instruction's depth."""
    keys = {"type": dtype, "major": major, "swizzle": swizzle}
    found = [o for o in tables["operands"] if o and keys.items() <= o.items()]
    assert found, keys
    return found


def addresses(tables, operand):
    return np.array(operand["addresses"]).reshape(tables["lines"], -1)


def integers(rows, columns, seed):
    return torch.randint(-4, 5, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


def image(size, at, values, dtype):
    """Bytes of shared memory with `values` at the byte addresses `at`, and NaN patterns elsewhere."""
    memory = np.full(size, 0xFF, dtype=np.uint8)
    raw = values.to(TORCH_TYPES[dtype]).contiguous().view(torch.uint8).numpy().reshape(*values.shape, -1)
    memory[at[..., None] + np.arange(raw.shape[-1])] = raw
    return memory


def wgmma_kernel(dtype, n, transposed, a_in_registers):
    accumulators = ", ".join(f"%d{i}" for i in range(n // 2))
    a = "{%a0, %a1, %a2, %a3}" if a_in_registers else "%desc_a"
    majors = "" if dtype != "bf16" else f", {transposed[1]}" if a_in_registers else ", {}, {}".format(*transposed)
    store = "\n".join(f"st.global.f32 [%out + {4 * i}], %d{i};" for i in range(n // 2))
    load = "\n".join(f"ld.global.u32 %a{i}, [%from + {4 * i}];" for i in range(4))
    return f"""
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 tile[];
.visible .entry k(.param .u64 memory, .param .u32 bytes, .param .u64 a, .param .u64 b, .param .u64 registers,
                  .param .u64 out) {{
  .reg .pred %p;
  .reg .f32 %d<{n // 2}>;
  .reg .b32 %a<4>, %i, %bytes, %to, %tile, %word, %thread;
  .reg .b64 %memory, %from, %out, %desc_a, %desc_b, %at;
  mov.u32 %thread, %tid.x;
  ld.param.u64 %memory, [memory];
  ld.param.u32 %bytes, [bytes];
  mov.u32 %tile, tile;
  shl.b32 %i, %thread, 2;
COPY:
  cvt.u64.u32 %from, %i;
  add.s64 %from, %from, %memory;
  ld.global.u32 %word, [%from];
  add.u32 %to, %tile, %i;
  st.shared.u32 [%to], %word;
  add.u32 %i, %i, 512;
  setp.lt.u32 %p, %i, %bytes;
  @%p bra COPY;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  ld.param.u64 %desc_a, [a];
  ld.param.u64 %desc_b, [b];
  shr.u32 %to, %tile, 4;
  cvt.u64.u32 %at, %to;
  add.s64 %desc_a, %desc_a, %at;
  add.s64 %desc_b, %desc_b, %at;
  ld.param.u64 %from, [registers];
  mul.wide.u32 %at, %thread, 16;
  add.s64 %from, %from, %at;
  {load}
  setp.ne.u32 %p, 0, 0;
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n{n}k{DEPTHS[dtype]}.f32.{dtype}.{dtype}
    {{{accumulators}}}, {a}, %desc_b, %p, 1, 1{majors};
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  ld.param.u64 %out, [out];
  mul.wide.u32 %at, %thread, {2 * n};
  add.s64 %out, %out, %at;
  {store}
  ret;
}}
"""


def run_wgmma(tables, options, dtype, n, descriptors, transposed, memory, fragment=None):
    """[64][n], from the accumulators of the 128 threads."""
    registers = torch.zeros(128, 4, dtype=torch.int32) if fragment is None else fragment
    out = torch.full((128, n // 2), float("nan"))
    module = simulator.Module(wgmma_kernel(dtype, n, transposed, fragment is not None))
    gpu = simulator.Gpu(
        async_latency=options["latency"], check_races=options["check_races"], split_warps=options["split_warps"]
    )
    arguments = [torch.from_numpy(memory), memory.size, *descriptors, registers, out]
    gpu.launch(module, "k", grid=1, block=128, smem_bytes=memory.size, args=arguments)
    places = torch.tensor(tables["accumulators"][str(n)]).reshape(128, -1)
    result = torch.full((n * ROWS,), float("nan"))
    result[places.flatten()] = out.flatten()
    return result.reshape(n, ROWS).T


@pytest.mark.parametrize("swizzle", ["none", "32", "64", "128"])
@pytest.mark.parametrize("dtype", wgmma.DTYPES)
def test_conformance_suite_places_operands_alike(tables, dtype, swizzle):
    """bench/gpu/conformance, whose oracle is written down apart: the same bytes and descriptors, K-major."""
    steps = operands(tables, dtype, "K", swizzle)
    depth = 32 // wgmma.DTYPES[dtype].itemsize
    parts = [wgmma.exact_operand(dtype, tables["lines"], depth, step) for step in range(len(steps))]
    placed, descriptors = layouts.place(torch.cat(parts, 1), 0 if swizzle == "none" else int(swizzle), False)
    want = np.zeros(placed.numel(), dtype=np.uint8)
    for of, part in zip(steps, parts, strict=True):
        raw = part.view(torch.uint8).numpy().reshape(*part.shape, -1)
        want[addresses(tables, of)[..., None] + np.arange(raw.shape[-1])] = raw
    assert np.array_equal(placed.numpy(), want)
    assert descriptors == [of["descriptor"] + (of["start"] >> 4) for of in steps]


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_conformance_suite_places_accumulators_alike(tables, n):
    places = torch.tensor(tables["accumulators"][str(n)]).reshape(128, n // 2)
    row, column = layouts.accumulator_positions(n, packed=False)
    assert torch.equal((row + ROWS * column).T, places)
    row, column = layouts.accumulator_positions(n, packed=True)  # pairs share a register
    assert torch.equal((row + ROWS * column).permute(1, 0, 2).reshape(128, n // 2), places)


@pytest.mark.parametrize("dtype", TORCH_TYPES)
def test_conformance_suite_places_fragments_alike(tables, dtype):
    a = integers(ROWS, DEPTHS[dtype], 1)
    places = torch.tensor(tables["fragments"][dtype]).reshape(128, -1)
    want = a.T.flatten()[places].to(TORCH_TYPES[dtype]).contiguous().view(torch.int32)
    assert torch.equal(layouts.a_fragment(a.to(TORCH_TYPES[dtype])).T, want)


FORMS = [("bf16", "K"), ("bf16", "MN"), ("tf32", "K"), ("e4m3", "K")]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("swizzle", ["none", "32", "64", "128"])
@pytest.mark.parametrize(("dtype", "major"), FORMS)
def test_wgmma_operands_in_shared_memory(tables, dtype, major, swizzle, setting):
    """A and B of the same layout; A in the first lines of its tile."""
    n = 128
    b_at = 1 << 16  # where the second tile begins
    for step, of in enumerate(operands(tables, dtype, major, swizzle)):
        at = addresses(tables, of)
        a, b = integers(ROWS, DEPTHS[dtype], step), integers(n, DEPTHS[dtype], step + 10)
        memory = np.concatenate(
            [image(b_at, at[:ROWS], a, dtype), image(1 << 15, at, b, dtype)],
        )
        start = of["descriptor"] + (of["start"] >> 4)
        transposed = (int(major == "MN"),) * 2
        got = run_wgmma(tables, SETTINGS[setting], dtype, n, [start, start + (b_at >> 4)], transposed, memory)
        assert torch.equal(got, a @ b.T), (step, of["start"])


@pytest.mark.parametrize(("dtype", "major"), FORMS)
@pytest.mark.parametrize("n", [8, 64, 128])
def test_wgmma_fragments_and_accumulators(tables, dtype, major, n):
    (of, *_) = operands(tables, dtype, major, "128")
    a, b = integers(ROWS, DEPTHS[dtype], 1), integers(tables["lines"], DEPTHS[dtype], 2)
    places = torch.tensor(tables["fragments"][dtype]).reshape(128, -1)
    fragment = a.T.flatten()[places].to(TORCH_TYPES[dtype]).contiguous().view(torch.int32)
    memory = image(1 << 15, addresses(tables, of), b, dtype)
    descriptors = [0, of["descriptor"]]
    got = run_wgmma(tables, SETTINGS["latency 64"], dtype, n, descriptors, (0, int(major == "MN")), memory, fragment)
    assert torch.equal(got, a @ b[:n].T)


@pytest.mark.parametrize("swizzle", ["32", "64", "128"])
def test_tensor_copies_swizzle_as_wgmma_reads(tables, gpu, swizzle):
    """A box as wide as the span lies in shared memory as CuTe's K-major layout has it."""
    columns, rows = int(swizzle) // 2, 24
    source = torch.arange(1, rows * columns + 1, dtype=torch.int32).to(torch.int16).reshape(rows, columns)
    target, raw = torch.zeros_like(source), torch.zeros(rows * columns * 2, dtype=torch.uint8)
    maps = [
        simulator.TensorMap("u16", t, [columns, rows], [columns * 2], [columns, rows], swizzle=int(swizzle))
        for t in (source, target)
    ]
    gpu.launch(
        compile_module("tensor.cu"),
        "tma_roundtrip",
        grid=1,
        block=128,
        smem_bytes=16384,
        args=[*maps, raw, raw.numel(), 0, 0],
    )
    steps = operands(tables, "bf16", "K", swizzle)[: columns // 16]
    at = np.concatenate([addresses(tables, of)[:rows] for of in steps], axis=1)
    words = raw.view(torch.int16).numpy()
    assert np.array_equal(words[at // 2], source.numpy())
    assert torch.equal(target, source)


def matrix_kernel(form, load):
    count = int(form[1])
    registers = ", ".join(f"%r{i}" for i in range(count))
    each = range(count)
    to_registers = "\n".join(f"ld.global.u32 %r{i}, [%values + {4 * i}];" for i in each)
    from_registers = "\n".join(f"st.global.u32 [%values + {4 * i}], %r{i};" for i in each)
    fill = "ld.global.v4.u32 {%w0, %w1, %w2, %w3}, [%rows];\nst.shared.v4.u32 [%row], {%w0, %w1, %w2, %w3};"
    drain = "ld.shared.v4.u32 {%w0, %w1, %w2, %w3}, [%row];\nst.global.v4.u32 [%rows], {%w0, %w1, %w2, %w3};"
    body = (
        f"{fill}\nbar.warp.sync -1;\nldmatrix.sync.aligned.m8n8.{form}.shared.b16 {{{registers}}}, [%row];\n"
        f"{from_registers}"
        if load
        else f"{fill}\n{to_registers}\nbar.warp.sync -1;\n"
        f"stmatrix.sync.aligned.m8n8.{form}.shared.b16 [%row], {{{registers}}};\nbar.warp.sync -1;\n{drain}"
    )
    return f"""
.version 8.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 rows, .param .u64 values) {{
  .reg .b32 %r<4>, %w<4>, %lane, %row, %word;
  .reg .b64 %rows, %values, %at;
  .shared .align 16 .b8 tile[512];
  mov.u32 %lane, %tid.x;
  ld.param.u64 %rows, [rows];
  ld.param.u64 %values, [values];
  mul.wide.u32 %at, %lane, 16;
  add.s64 %rows, %rows, %at;
  mov.u32 %row, tile;
  shl.b32 %word, %lane, 4;
  add.u32 %row, %row, %word;
  mul.wide.u32 %at, %lane, {4 * count};
  add.s64 %values, %values, %at;
  {body}
  ret;
}}
"""


@pytest.mark.parametrize("form", ["x1", "x2", "x4", "x1.trans", "x2.trans", "x4.trans"])
def test_ldmatrix(tables, gpu, form):
    rows = torch.arange(256, dtype=torch.int16)  # of 32 lanes
    registers = torch.full((32, int(form[1]) * 2), -1, dtype=torch.int16)
    gpu.launch(simulator.Module(matrix_kernel(form, load=True)), "k", grid=1, block=32, args=[rows, registers])
    assert registers.flatten().tolist() == tables["loads"][form]


@pytest.mark.parametrize("form", ["x1", "x2", "x4", "x1.trans", "x2.trans", "x4.trans"])
def test_stmatrix(tables, gpu, form):
    rows = torch.full((256,), -1, dtype=torch.int16)
    registers = torch.arange(32 * int(form[1]) * 2, dtype=torch.int16)
    gpu.launch(simulator.Module(matrix_kernel(form, load=False)), "k", grid=1, block=32, args=[rows, registers])
    want = torch.full((256,), -1, dtype=torch.int16)
    want[torch.tensor(tables["stores"][form])] = registers
    assert torch.equal(rows, want)
