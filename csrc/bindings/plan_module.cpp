// Python surface of the plans: hunyuan_kernels._C.plans. A plan needs no device and no memory.
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "bindings/python_module.h"
#include "host/quantize.h"

namespace py = pybind11;

namespace hunyuan_kernels {
namespace {

py::tuple extent(const driver::Extent& e) { return py::make_tuple(e.x, e.y, e.z); }

void register_quantize(py::module_& m) {
  using host::QuantizePlan;
  py::class_<QuantizePlan>(m, "QuantizePlan")
      .def_readonly("row_regions", &QuantizePlan::row_regions, "regions of a matrix, one below the other")
      .def_readonly("column_regions", &QuantizePlan::column_regions, "regions of a matrix, side by side")
      .def_readonly("workspace_bytes", &QuantizePlan::workspace_bytes)
      .def_readonly("launches", &QuantizePlan::launches)
      .def("__str__", &QuantizePlan::text)
      .def("__repr__", &QuantizePlan::text);
  m.def(
      "quantize",
      [](QuantizeRecipe recipe, DType dtype, int64_t rows, int64_t columns, int64_t matrices,
         std::optional<int64_t> row_stride, std::optional<int64_t> matrix_stride, bool is_static, int64_t alignment,
         int sms) {
        driver::DeviceProperties device;
        device.sms = sms;
        const int64_t stride = row_stride.value_or(columns);
        return host::plan_quantize({recipe, dtype, matrices, rows, columns, matrix_stride.value_or(rows * stride),
                                    stride, is_static, alignment},
                                   device);
      },
      py::kw_only(), py::arg("recipe"), py::arg("dtype"), py::arg("rows"), py::arg("columns"), py::arg("matrices") = 1,
      py::arg("row_stride") = py::none(), py::arg("matrix_stride") = py::none(), py::arg("is_static") = false,
      py::arg("alignment") = 256, py::arg("sms") = 132,
      "The plan of quantize_fp8 for x [matrices, rows, columns]; strides in elements (contiguous by default), "
      "alignment "
      "of x in bytes.");
}

}  // namespace

void register_plans(py::module_& parent) {
  py::module_ m = parent.def_submodule("plans", "What host code decides for a problem, before any device is involved");
  py::native_enum<DType>(m, "DType", "enum.Enum")
      .value("float32", DType::float32)
      .value("bfloat16", DType::bfloat16)
      .value("float8_e4m3fn", DType::float8_e4m3fn)
      .value("int32", DType::int32)
      .value("int64", DType::int64)
      .finalize();
  py::native_enum<QuantizeRecipe>(m, "QuantizeRecipe", "enum.Enum")
      .value("tensor", QuantizeRecipe::tensor)
      .value("row", QuantizeRecipe::row)
      .value("block_1x128", QuantizeRecipe::block_1x128)
      .value("block_128x128", QuantizeRecipe::block_128x128)
      .finalize();
  using driver::KernelLaunch;
  py::class_<KernelLaunch>(m, "KernelLaunch")
      .def_readonly("stem", &KernelLaunch::stem)
      .def_readonly("kernel", &KernelLaunch::kernel)
      .def_property_readonly("grid", [](const KernelLaunch& l) { return extent(l.grid); })
      .def_property_readonly("block", [](const KernelLaunch& l) { return extent(l.block); })
      .def_property_readonly("cluster", [](const KernelLaunch& l) { return extent(l.cluster); })
      .def_readonly("shared_bytes", &KernelLaunch::shared_bytes)
      .def_readonly("programmatic", &KernelLaunch::programmatic)
      .def("__str__", &KernelLaunch::text)
      .def("__repr__", &KernelLaunch::text);
  register_quantize(m);
}

}  // namespace hunyuan_kernels
