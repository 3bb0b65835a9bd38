"""The driver table by the simulator: what a driver would refuse is refused, with a text that says why."""

import ctypes
from collections.abc import Iterator

import pytest
import torch
from hunyuan_kernels._C import driver, simulator

import hunyuan_kernels as hk
from hunyuan_kernels._ops import NAMESPACE
from python_tests.host.driver_client import (
    CLUSTER_DIMENSION,
    MAX_DYNAMIC_SHARED,
    NON_PORTABLE_CLUSTER,
    PROGRAMMATIC_SERIALIZATION,
    Driver,
    DriverError,
)

#: add_one(words, count): adds 1 to each of `count` words, one per thread.
PTX = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry add_one(.param .u64 words, .param .u64 count)
{
  .reg .pred %p;
  .reg .b32 %r<5>;
  .reg .b64 %rd<6>;
  ld.param.u64 %rd1, [words];
  ld.param.u64 %rd2, [count];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  cvt.u64.u32 %rd3, %r4;
  setp.ge.u64 %p, %rd3, %rd2;
  @%p bra done;
  griddepcontrol.wait;
  shl.b64 %rd4, %rd3, 2;
  add.s64 %rd5, %rd1, %rd4;
  ld.global.u32 %r1, [%rd5];
  add.s32 %r1, %r1, 1;
  st.global.u32 [%rd5], %r1;
done:
  ret;
}
"""


@pytest.fixture
def gpu() -> Iterator[driver.SimulatedGpu]:
    gpu = driver.SimulatedGpu(simulator.Gpu(num_sms=3))
    gpu.make_current()
    yield gpu
    driver.SimulatedGpu.make_none_current()


def test_a_launch_waits_in_the_queue_and_runs(gpu: driver.SimulatedGpu) -> None:
    table, words = Driver(), torch.zeros(70, dtype=torch.int32)
    kernel = table.kernel(PTX, "add_one")
    table.declare_memory(words.data_ptr(), 280, b"words", False)
    for _ in range(2):
        table.launch(kernel, words.data_ptr(), 70, grid=3, attributes={PROGRAMMATIC_SERIALIZATION: (1,)})
    assert not words.any()
    table.run_queue()
    assert words.eq(2).all()
    assert [(c.report.kernel, c.grid, c.block, c.cluster) for c in gpu.completed] == [
        ("add_one", (3, 1, 1), (32, 1, 1), (1, 1, 1))
    ] * 2
    assert gpu.findings == []


def test_memory_is_declared_for_one_queue(gpu: driver.SimulatedGpu) -> None:
    table, words = Driver(), torch.zeros(32, dtype=torch.int32)
    kernel = table.kernel(PTX, "add_one")
    table.declare_memory(words.data_ptr(), 128, b"words", False)
    table.launch(kernel, words.data_ptr(), 32)
    table.run_queue()
    table.launch(kernel, words.data_ptr(), 32)
    with pytest.raises(DriverError, match="out-of-bounds global load") as error:
        table.run_queue()
    assert error.value.code == 719
    assert gpu.findings == [str(error.value)]
    assert len(gpu.completed) == 1


def test_a_finding_says_where(gpu: driver.SimulatedGpu) -> None:
    table, words = Driver(), torch.zeros(64, dtype=torch.int32)
    kernel = table.kernel(PTX, "add_one")
    table.declare_memory(words.data_ptr(), 160, b"words", False)  # 40 words: lane 8 of the second block is past them
    table.launch(kernel, words.data_ptr(), 64, grid=2)
    with pytest.raises(DriverError) as error:
        table.run_queue()
    line = 1 + PTX.splitlines().index("  ld.global.u32 %r1, [%rd5];")
    for part in (
        "add_one",
        f"line {line}",
        "block (1,0,0)",
        "warp 0",
        "lane 8",
        f"0x{words.data_ptr() + 160:x}",
        "words",
    ):
        assert part in str(error.value), f"{part!r} is not in {error.value}"


def test_read_only_memory(gpu: driver.SimulatedGpu) -> None:
    table, words = Driver(), torch.zeros(32, dtype=torch.int32)
    table.declare_memory(words.data_ptr(), 128, b"words", True)
    table.launch(table.kernel(PTX, "add_one"), words.data_ptr(), 32)
    with pytest.raises(DriverError, match="store to read-only memory 'words'"):
        table.run_queue()


def test_a_refused_launch_takes_the_queue_with_it(gpu: driver.SimulatedGpu) -> None:
    table, words = Driver(), torch.zeros(32, dtype=torch.int32)
    kernel = table.kernel(PTX, "add_one")
    table.declare_memory(words.data_ptr(), 128, b"words", False)
    table.launch(kernel, words.data_ptr(), 32)
    with pytest.raises(DriverError, match="1025"):
        table.launch(kernel, words.data_ptr(), 32, block=1025)
    table.run_queue()
    assert not words.any()
    assert gpu.completed == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, "grid dimension x is 0"),
        ({"shared_bytes": 49 * 1024}, r"50176 bytes of dynamic shared memory were not allowed \(CU_FUNC_ATTRIBUTE_MAX"),
        (
            {"grid": 16, "attributes": {CLUSTER_DIMENSION: (16, 1, 1)}},
            "clusters of more than 8 blocks were not allowed",
        ),
        ({"grid": 3, "attributes": {CLUSTER_DIMENSION: (2, 1, 1)}}, "not a multiple of the cluster's 2"),
        ({"attributes": {3: (1,)}}, "launch attribute 3 is unknown to the simulator"),
    ],
)
def test_refused_launches(gpu: driver.SimulatedGpu, options: dict, message: str) -> None:
    table = Driver()
    with pytest.raises(DriverError, match=message) as error:
        table.launch(table.kernel(PTX, "add_one"), 0, 0, **options)
    assert error.value.code == 1


def test_kernel_attributes_allow_more(gpu: driver.SimulatedGpu) -> None:
    table = Driver()
    kernel = table.kernel(PTX, "add_one")
    table.cuKernelSetAttribute(MAX_DYNAMIC_SHARED, 227 * 1024, kernel, 0)
    table.cuKernelSetAttribute(NON_PORTABLE_CLUSTER, 1, kernel, 0)
    table.launch(kernel, 0, 0, grid=16, shared_bytes=227 * 1024, attributes={CLUSTER_DIMENSION: (16, 1, 1)})
    table.run_queue()
    assert gpu.completed[0].cluster == (16, 1, 1)
    with pytest.raises(
        DriverError, match=r"232449 bytes of dynamic shared memory for kernel add_one, outside \[0, 232448\]"
    ):
        table.cuKernelSetAttribute(MAX_DYNAMIC_SHARED, 227 * 1024 + 1, kernel, 0)
    with pytest.raises(DriverError, match="kernel attribute 99 is unknown"):
        table.cuKernelSetAttribute(99, 1, kernel, 0)


def test_code_that_does_not_load(gpu: driver.SimulatedGpu) -> None:
    table = Driver()
    with pytest.raises(DriverError) as error:
        table.kernel("not PTX", "add_one")
    assert error.value.code == 218
    with pytest.raises(DriverError, match="no kernel named 'subtract_one' in the module; it has: add_one") as error:
        table.kernel(PTX, "subtract_one")
    assert error.value.code == 500
    with pytest.raises(DriverError, match="no kernel is named 'add'; near: add_one"):
        table.kernel(PTX, "add")


def test_device(gpu: driver.SimulatedGpu) -> None:
    table, value = Driver(), ctypes.c_int()

    def attribute(which: int) -> int:
        table.cuDeviceGetAttribute(ctypes.byref(value), which, 0)
        return value.value

    assert [attribute(which) for which in (16, 75, 76, 97)] == [3, 9, 0, 227 * 1024]
    with pytest.raises(DriverError, match="device attribute 1000 is unknown"):
        attribute(1000)
    table.cuDeviceGetCount(ctypes.byref(value))
    assert value.value == 1
    with pytest.raises(DriverError, match="device 1 does not exist") as error:
        table.cuDeviceGet(ctypes.byref(value), 1)
    assert error.value.code == 101


def test_tensor_maps_follow_the_rules_of_the_driver(gpu: driver.SimulatedGpu) -> None:
    table, x = Driver(), torch.zeros(64, 64)
    memory = torch.empty(256, dtype=torch.uint8)
    address = (memory.data_ptr() + 127) // 128 * 128

    def encode(box_columns: int, swizzle: int = 0) -> None:
        table.cuTensorMapEncodeTiled(
            ctypes.c_void_p(address),
            7,  # fp32
            2,
            ctypes.c_void_p(x.data_ptr()),
            (ctypes.c_uint64 * 2)(64, 64),
            (ctypes.c_uint64 * 1)(256),
            (ctypes.c_uint32 * 2)(box_columns, 8),
            (ctypes.c_uint32 * 2)(1, 1),
            0,
            swizzle,
            0,
            0,
        )

    encode(32, 3)
    assert memory.any()
    with pytest.raises(DriverError, match="box dimension 0 is 257, outside"):
        encode(257)
    with pytest.raises(DriverError, match="more than the swizzle span of 128"):
        encode(64, 3)


def test_a_thread_without_gpu() -> None:
    with pytest.raises(DriverError, match="no simulated GPU is current on this thread") as error:
        Driver().kernel(PTX, "add_one")
    assert error.value.code == 100


def test_a_finding_in_an_op_is_raised_with_its_name() -> None:
    """A throwaway op that launches through the table, with too little memory declared."""

    def faulty(x: torch.Tensor) -> torch.Tensor:
        table = Driver()
        table.launch(table.kernel(PTX, "add_one"), x.data_ptr(), x.numel())
        try:
            table.run_queue()
        except DriverError as error:
            raise RuntimeError(str(error)) from error
        return x

    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    try:
        library.define("test_faulty(Tensor x) -> Tensor")
        library.impl("test_faulty", faulty, "CUDA")
        with hk.simulated_gpu() as gpu, pytest.raises(simulator.SimError, match=r"^test_faulty: .*out-of-bounds"):
            torch.ops.hunyuan_kernels.test_faulty(torch.zeros(32, dtype=torch.int32))
        assert len(gpu.findings) == 1
        assert gpu.reports == []
    finally:
        library._destroy()
