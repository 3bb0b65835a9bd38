"""simulated_gpu: which calls it takes, what it reports, what it refuses."""

import dataclasses
import threading

import pytest
import torch
from hunyuan_kernels._C import plans
from nvcc import compile_module

import hunyuan_kernels as hk
from hunyuan_kernels._ops import MissingKernelError
from hunyuan_kernels.reference.quantize import quantize_fp8 as reference
from hunyuan_kernels.testing.compare import compare_exact
from hunyuan_kernels.testing.simulated import SETTINGS, Traffic, check_simulated, demanded_bytes, moved_bytes
from hunyuan_kernels.testing.spec import Work, all_specs
from python_tests.backends import needs_device_code

X = torch.randn(40, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
CPU_ONLY = sorted(hk._ops.CPU_ONLY)


def check_quantized(recipe="row"):
    for got, want in zip(hk.quantize_fp8(X, recipe), reference(X, recipe), strict=True):
        assert compare_exact(recipe, got, want)


@needs_device_code
def test_reports_hold_what_the_plan_launched():
    with hk.simulated_gpu(sms=3) as gpu:
        check_quantized("tensor")
        check_quantized("row")
    planned = [
        launch
        for recipe in ("tensor", "row")
        for launch in plans.quantize(
            recipe=plans.QuantizeRecipe[recipe], dtype=plans.DType.bfloat16, rows=40, columns=256, sms=3
        ).launches
    ]
    assert [(r.kernel, r.grid, r.block, r.cluster) for r in gpu.reports] == [
        (launch.kernel, launch.grid, launch.block, launch.cluster) for launch in planned
    ]
    row = gpu.reports[2]
    assert row.counters["global_load_bytes"] == X.numel() * 2
    assert row.counters["global_store_bytes"] == X.numel() + 40 * 4
    assert row.counters["blocks"] == row.grid[0]
    assert sum(row.instructions.values()) * 32 >= row.lane_instructions > X.numel() / 8
    assert "quantize_row_bfloat16" in str(row)
    assert f"grid {row.grid}" in str(row)
    assert gpu.findings == []


@needs_device_code
def test_only_calls_inside_are_simulated():
    check_quantized()
    with hk.simulated_gpu() as gpu:
        check_quantized()
        inside = len(gpu.reports)
    check_quantized()
    assert len(gpu.reports) == inside == 1


@needs_device_code
def test_the_same_seed_is_the_same_schedule():
    def instructions(seed):
        with hk.simulated_gpu(seed=seed) as gpu:
            check_quantized("block_128x128")
        return [report.instructions for report in gpu.reports]

    assert instructions(1) == instructions(1)


@needs_device_code
def test_threads_do_not_share_a_gpu():
    """A thread started inside runs on the CPU; two threads that simulate have a GPU each."""
    reports, errors = {}, []
    both_inside = threading.Barrier(2, timeout=60)

    def plain():
        check_quantized()

    def simulate(name):
        try:
            with hk.simulated_gpu() as gpu:
                both_inside.wait()
                for _ in range(3):
                    check_quantized(name)
                both_inside.wait()
                reports[name] = [report.kernel for report in gpu.reports]
        except Exception as error:
            errors.append(error)

    with hk.simulated_gpu() as gpu:
        threads = [
            threading.Thread(target=plain),
            *(threading.Thread(target=simulate, args=[n]) for n in ("row", "tensor")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert gpu.reports == []
    assert errors == []
    assert reports == {
        "row": ["quantize_row_bfloat16"] * 3,
        "tensor": ["quantize_tensor_amax_bfloat16", "quantize_tensor_bfloat16"] * 3,
    }


def test_nesting_is_refused_and_leaves_the_outer_one_whole():
    with hk.simulated_gpu() as gpu:
        inner = hk.simulated_gpu()
        with (
            pytest.raises(RuntimeError, match="this thread is inside another simulated_gpu; leave that one first"),
            inner,
        ):
            pass
        hk.quantize_fp8(X, "row")
        assert len(gpu.reports) == 1
    with hk.simulated_gpu():
        pass


def test_an_exception_ends_the_simulation():
    with pytest.raises(KeyError), hk.simulated_gpu():
        raise KeyError
    hk.route(torch.randn(4, 4), 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sms": 0}, ValueError, "sms is 0; allowed: 1 to 1024"),
        ({"sms": 1025}, ValueError, "sms is 1025; allowed"),
        ({"latency": 0}, ValueError, "latency is 0; allowed: 1 to "),
        ({"seed": -1}, ValueError, "seed is -1; allowed: 0 to "),
        ({"seed": 1.5}, TypeError, "seed is 1.5; an int is required"),
        ({"sms": True}, TypeError, "sms is True; an int is required"),
        ({"warp_size": 64}, TypeError, "warp_size"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message), hk.simulated_gpu(**options):
        pass


def test_bad_arguments_of_an_op_are_its_own_errors():
    with hk.simulated_gpu() as gpu, pytest.raises(RuntimeError, match=r"^quantize_fp8: x has dtype float16; allowed"):
        hk.quantize_fp8(X.half(), "row")
    assert gpu.findings == []


def test_other_ops_of_torch_are_untouched():
    with hk.simulated_gpu() as gpu:
        assert torch.equal(X.float() @ X.float().T, (X.float() @ X.float().T).T)
        assert hk._ops.ops.instruction_set()
    assert gpu.reports == []


@pytest.mark.parametrize("name", CPU_ONLY)
def test_ops_without_a_cuda_kernel_refuse(name):
    """What a CUDA tensor meets, and what a call inside simulated_gpu meets: the same registration."""
    op = getattr(torch.ops.hunyuan_kernels, name).default
    values = {"Tensor": torch.zeros(1), "int": 1, "float": 1.0, "bool": True, "str": "", "ScalarType": torch.bfloat16}
    arguments = {
        a.name: next((value for kind, value in values.items() if kind in str(a.type)), None)
        for a in op._schema.arguments
    }
    with pytest.raises(MissingKernelError, match=rf"^{name}: runs on the CPU only.*\.cpu\(\)"):
        op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), **arguments)
    with hk.simulated_gpu(), pytest.raises(MissingKernelError, match=rf"^{name}: "):
        op(**arguments)


def test_every_op_is_simulated_or_says_that_it_cannot_be():
    simulated = set()
    for spec in all_specs():
        if not spec.cuda_cases():  # packed weights are for CPUs, and a whole model is not timed on a simulated GPU
            assert spec.stem in ("prepack", "model") or spec.name.endswith("_packed")
            continue
        reports = []
        for case in spec.cases():
            arguments = case.make(0)
            if not spec.on_cuda(arguments):
                continue
            with hk.simulated_gpu() as gpu:
                try:
                    spec.function(**arguments)
                except MissingKernelError:
                    break
            reports += gpu.reports  # none where a case has nothing to compute
            if reports:
                simulated.add(spec.name)
                break
        else:
            pytest.fail(f"{spec.name} ran, but not on the simulated GPU")
    movement = {"quantize_fp8", "route", "routing_from_ids", "dispatch", "dispatch_fp8", "combine", "swiglu"}
    gemms = {"grouped_gemm", "grouped_gemm_wgrad_", "grouped_swiglu", "moe"}
    assert simulated >= movement | gemms | {"fp8_gemm", "grouped_gemm_fp8", "grouped_swiglu_fp8"}


def test_each_byte_is_counted_as_often_as_it_is_moved():
    module, x, out = compile_module("traffic.cu"), torch.randn(1000), torch.empty(1000)
    gpu = hk._C.simulator.Gpu()
    demanded = demanded_bytes(Work(flops=0, bytes=8000), [out])
    assert demanded == Traffic(4000, 4000)

    def traffic(kernel):
        report = gpu.launch(module, kernel, grid=4, block=256, args=[out, x, 1000])
        assert torch.equal(out, 2 * x)
        return moved_bytes([report]).over(demanded)

    assert traffic("read_twice") == Traffic(2.0, 1.0)
    assert traffic("everything_twice") == Traffic(2.0, 2.0)


def test_nothing_demanded():
    assert Traffic(0, 0).over(Traffic(0, 0)) == Traffic(1.0, 1.0)
    assert Traffic(1, 0).over(Traffic(0, 0)).read == float("inf")


@needs_device_code
@pytest.mark.parametrize(
    ("recipe", "read"), [("tensor", 2.0), ("row", 1.0), ("block_1x128", 1.0), ("block_128x128", 1.0)]
)
def test_quantize_moves_what_its_shapes_demand(recipe, read):
    """Each byte once; the recipe `tensor` reads x twice, and maxima that are few beside it."""
    spec = next(spec for spec in all_specs() if spec.name == "quantize_fp8")
    x = torch.randn(512, 1024).bfloat16()
    with hk.simulated_gpu() as gpu:
        outputs = hk.quantize_fp8(x, recipe)
    work = spec.work({"x": x, "recipe": recipe})
    traffic = moved_bytes(gpu.reports).over(demanded_bytes(work, outputs))
    assert traffic.read == pytest.approx(read, rel=1e-2)
    assert traffic.written == pytest.approx(1.0, rel=1e-3)


@needs_device_code
@pytest.mark.parametrize("name", ["dispatch", "dispatch_fp8", "combine", "swiglu"])
def test_rows_move_what_their_shapes_demand(name):
    """At Hunyuan-Large's hidden size: each byte once, in whole sectors (scales, too, which lie M-major); only the words
    that a warp looks up take a sector each."""
    spec = next(spec for spec in all_specs() if spec.name == name)
    generator = torch.Generator().manual_seed(0)
    routing = hk.route(torch.randn(128, 16, generator=generator), 1)
    x, shared, residual = (torch.randn(128, 6400, generator=generator).bfloat16() for _ in range(3))
    arguments = {
        "combine": {"y": x, "routing": routing, "shared": shared, "residual": residual},
        "swiglu": {"x": x, "expert_offsets": routing.expert_offsets},
    }.get(name, {"x": x, "routing": routing})
    with hk.simulated_gpu(split_warps=False) as gpu:  # as a GPU runs: lanes together
        got = spec.function(**arguments)
    outputs = got if isinstance(got, tuple) else (got,)
    demanded = demanded_bytes(spec.work(arguments), outputs)
    traffic = moved_bytes(gpu.reports).over(demanded)
    assert traffic.read == pytest.approx(1.0, rel=1e-2)
    assert traffic.written == pytest.approx(1.0, rel=1e-3)
    (report,) = gpu.reports
    counters = report.counters
    assert counters["global_store_sectors"] * 32 == pytest.approx(counters["global_store_bytes"], rel=1e-3)
    assert counters["global_load_sectors"] * 32 <= 1.05 * demanded.read


@needs_device_code
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_wrong_kernel_fails_the_check(setting):
    """Compared with a reference that is off by one, every case fails and says under which setting."""
    spec = next(spec for spec in all_specs() if spec.name == "quantize_fp8")
    wrong = dataclasses.replace(
        spec,
        cases=lambda: spec.cases()[:2],
        reference=lambda x, recipe: (spec.reference(x, recipe)[0], spec.reference(x, recipe)[1] * 2),
    )
    outcome = check_simulated(wrong, setting, seeds=2)
    assert outcome.cases == len(outcome.failures) == 4
    assert all(f"simulated, {setting}: scale" in failure for failure in outcome.failures)
