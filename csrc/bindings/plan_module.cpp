// Python surface of the plans: hunyuan_kernels._C.plans. A plan needs no device and no memory.
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "bindings/python_module.h"
#include "host/dispatch.h"
#include "host/fp8_gemm.h"
#include "host/fp8_gemm_weight_only.h"
#include "host/grouped_gemm.h"
#include "host/quantize.h"
#include "host/routing.h"
#include "host/swiglu.h"

namespace py = pybind11;

namespace hunyuan_kernels {
namespace {

py::tuple extent(const driver::Extent& e) { return py::make_tuple(e.x, e.y, e.z); }

// What every plan shows.
template <typename Plan>
py::class_<Plan> plan_class(py::module_& m, const char* name) {
  return py::class_<Plan>(m, name)
      .def_readonly("launches", &Plan::launches)
      .def("__str__", &Plan::text)
      .def("__repr__", &Plan::text);
}

void register_quantize(py::module_& m) {
  using host::QuantizePlan;
  plan_class<QuantizePlan>(m, "QuantizePlan")
      .def_readonly("row_regions", &QuantizePlan::row_regions, "regions of a matrix, one below the other")
      .def_readonly("column_regions", &QuantizePlan::column_regions, "regions of a matrix, side by side")
      .def_readonly("workspace_bytes", &QuantizePlan::workspace_bytes);
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

void register_routing(py::module_& m) {
  using host::LossPlan;
  using host::RoutingPlan;
  plan_class<RoutingPlan>(m, "RoutingPlan")
      .def_readonly("chunks", &RoutingPlan::chunks, "of tokens, one for each block")
      .def_property_readonly("workspace_bytes",
                             [](const RoutingPlan& p) { return 4 * (p.counts_words + p.statistics_words); });
  m.def(
      "routing",
      [](DType source, int64_t tokens, int64_t top_k, int64_t experts, std::optional<int64_t> capacity, bool recycle,
         int capability, int shared_bytes) {
        driver::DeviceProperties device;
        device.capability = capability, device.shared_bytes = shared_bytes;
        return host::plan_routing("route", {source, tokens, top_k, experts, capacity, recycle}, device);
      },
      py::kw_only(), py::arg("source"), py::arg("tokens"), py::arg("top_k"), py::arg("experts"),
      py::arg("capacity") = py::none(), py::arg("recycle") = false, py::arg("capability") = 90,
      py::arg("shared_bytes") = driver::DeviceProperties().shared_bytes,
      "The plan of route (source: dtype of the logits) and routing_from_ids (source: dtype of the ids).");
  m.def(
      "route_backward",
      [](DType dtype, int64_t tokens, int64_t experts) {
        return host::plan_route_backward("route_backward", dtype, tokens, experts);
      },
      py::kw_only(), py::arg("dtype"), py::arg("tokens"), py::arg("experts"));
  plan_class<LossPlan>(m, "LossPlan").def_property_readonly("workspace_bytes", [](const LossPlan& p) {
    return p.launches.size() == 2 ? 8 * p.blocks : 0;
  });
  m.def(
      "load_balancing_loss",
      [](DType dtype, int64_t tokens, int64_t experts, bool backward) {
        return host::plan_loss("load_balancing_loss", dtype, tokens, experts, backward);
      },
      py::kw_only(), py::arg("dtype"), py::arg("tokens"), py::arg("experts"), py::arg("backward") = false);
}

void register_rows(py::module_& m) {
  using host::RowMovement;
  py::native_enum<RowMovement>(m, "RowMovement", "enum.Enum")
      .value("dispatch", RowMovement::dispatch)
      .value("dispatch_fp8", RowMovement::dispatch_fp8)
      .value("combine", RowMovement::combine)
      .value("combine_backward", RowMovement::combine_backward)
      .finalize();
  plan_class<host::RowMovementPlan>(m, "RowMovementPlan");
  m.def(
      "row_movement",
      [](RowMovement movement, DType dtype, int64_t rows, int64_t hidden, int64_t alignment) {
        return host::plan_row_movement({movement, dtype, rows, hidden, alignment});
      },
      py::kw_only(), py::arg("movement"), py::arg("dtype"), py::arg("rows"), py::arg("hidden"),
      py::arg("alignment") = 256,
      "The plan of dispatch, dispatch_fp8, combine and combine_backward for rows [rows, hidden] that are written "
      "(combine_backward: those of grad_y); alignment of every row in bytes.");
  plan_class<host::SwigluPlan>(m, "SwigluPlan");
  m.def(
      "swiglu",
      [](DType dtype, int64_t rows, int64_t columns, bool backward, int64_t alignment) {
        return host::plan_swiglu({backward, dtype, rows, columns, alignment});
      },
      py::kw_only(), py::arg("dtype"), py::arg("rows"), py::arg("columns"), py::arg("backward") = false,
      py::arg("alignment") = 256, "The plan of swiglu for x [rows, 2 columns]; alignment of every row in bytes.");
}

// Plans of matrix products.
template <typename Plan>
void product_plan_class(py::module_& m, const char* name) {
  plan_class<Plan>(m, name)
      .def_readonly("candidates", &Plan::candidates)
      .def_property_readonly("taken", [](const Plan& p) { return p.candidate(); })
      .def_readonly("panel_tiles", &Plan::panel_tiles)
      .def_readonly("column_panels", &Plan::column_panels);
}

void register_product_candidate(py::module_& m) {
  using host::ProductCandidate;
  py::class_<ProductCandidate>(m, "ProductCandidate")
      .def_readonly("tile_rows", &ProductCandidate::tile_rows)
      .def_readonly("tile_columns", &ProductCandidate::tile_columns)
      .def_readonly("cluster", &ProductCandidate::cluster, "blocks that divide the depth; 0: no kernel for few rows")
      .def_readonly("multicast", &ProductCandidate::multicast, "blocks side by side that load each row once")
      .def_readonly("illegal", &ProductCandidate::illegal, "why it cannot be taken; empty: it can")
      .def_readonly("tiles", &ProductCandidate::tiles, "the most that the group sizes can make")
      .def_readonly("likely_tiles", &ProductCandidate::likely_tiles, "with groups of equal size")
      .def_readonly("waves", &ProductCandidate::waves)
      .def_readonly("flops", &ProductCandidate::flops)
      .def_readonly("bytes", &ProductCandidate::bytes)
      .def_readonly("sm_clocks", &ProductCandidate::sm_clocks)
      .def_readonly("memory_clocks", &ProductCandidate::memory_clocks)
      .def_property_readonly("clocks", &ProductCandidate::clocks);
}

void register_grouped_gemm(py::module_& m) {
  using host::GroupedGemmForm;
  py::native_enum<GroupedGemmForm>(m, "GroupedGemmForm", "enum.Enum")
      .value("rows", GroupedGemmForm::rows)
      .value("swiglu", GroupedGemmForm::swiglu)
      .value("swiglu_preactivation", GroupedGemmForm::swiglu_preactivation)
      .value("weight_gradient", GroupedGemmForm::weight_gradient)
      .finalize();
  product_plan_class<host::GroupedGemmPlan>(m, "GroupedGemmPlan");
  m.def(
      "grouped_gemm",
      [](GroupedGemmForm form, int64_t experts, int64_t rows, int64_t columns, int64_t depth, bool across, DType out,
         int sms, const std::string& options) {
        driver::DeviceProperties device;
        device.sms = sms;
        return host::plan_grouped_gemm({form, experts, rows, columns, depth, across, out}, device,
                                       host::ProductOptions::of("grouped_gemm", options));
      },
      py::kw_only(), py::arg("form") = GroupedGemmForm::rows, py::arg("experts"), py::arg("rows"), py::arg("columns"),
      py::arg("depth"), py::arg("across") = false, py::arg("out") = DType::bfloat16, py::arg("sms") = 132,
      py::arg("options") = "",
      "The plan of a [rows, depth] times b [experts, columns, depth] (columns = 2I for SwiGLU), b contiguous along "
      "depth or across. weight_gradient: of grad_out [rows, columns] and a [rows, depth]. options: multicast and "
      "column_panels, with a comma between them.");
}

void register_fp8_gemm(py::module_& m) {
  product_plan_class<host::Fp8GemmPlan>(m, "Fp8GemmPlan");
  m.def(
      "fp8_gemm",
      [](std::optional<int64_t> experts, int64_t rows, int64_t columns, int64_t depth, bool swiglu, bool in_blocks,
         DType out, int sms) {
        driver::DeviceProperties device;
        device.sms = sms;
        return host::plan_fp8_gemm(
            {swiglu, experts.has_value(), experts.value_or(1), rows, columns, depth, in_blocks, out}, device);
      },
      py::kw_only(), py::arg("experts") = py::none(), py::arg("rows"), py::arg("columns"), py::arg("depth"),
      py::arg("swiglu") = false, py::arg("in_blocks") = false, py::arg("out") = DType::bfloat16, py::arg("sms") = 132,
      "The plan of a [rows, depth] times b [experts, columns, depth], without experts [columns, depth], in e4m3; "
      "in_blocks: scales of one of them vary along the depth.");
  product_plan_class<host::Fp8WeightOnlyPlan>(m, "Fp8WeightOnlyPlan");
  m.def(
      "fp8_weight_only",
      [](std::optional<int64_t> experts, int64_t rows, int64_t columns, int64_t depth, bool swiglu, bool packed,
         bool in_blocks, DType out, int sms) {
        driver::DeviceProperties device;
        device.sms = sms;
        return host::plan_fp8_weight_only(
            {swiglu, experts.has_value(), experts.value_or(1), rows, columns, depth, packed, in_blocks, out}, device);
      },
      py::kw_only(), py::arg("experts") = py::none(), py::arg("rows"), py::arg("columns"), py::arg("depth"),
      py::arg("swiglu") = false, py::arg("packed") = false, py::arg("in_blocks") = false,
      py::arg("out") = DType::bfloat16, py::arg("sms") = 132,
      "The plan of a [rows, depth] in bf16 times b [experts, columns, depth], without experts [columns, depth], in "
      "e4m3; "
      "packed: b is of prepack; in_blocks: its scales vary along the depth.");
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
  register_product_candidate(m);
  register_grouped_gemm(m);
  register_fp8_gemm(m);
  register_routing(m);
  register_rows(m);
}

}  // namespace hunyuan_kernels
