// Python surface of the driver table: hunyuan_kernels._C.driver. hunyuan_kernels/simulator.py is what people use.
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/python_module.h"
#include "driver/device.h"
#include "driver/simulated_gpu.h"

namespace py = pybind11;

namespace hunyuan_kernels {

using driver::Extent;
using driver::SimulatedGpu;

namespace {

// Kernels that are not of this build, on a GPU or on a simulated one, by the same calls.
class CodeRunner {
 public:
  explicit CodeRunner(int ordinal) : device_(driver::Device::cuda(ordinal)) {}
  explicit CodeRunner(SimulatedGpu& gpu) : simulated_(simulate(gpu)), device_(*simulated_) {}

  const driver::DeviceProperties& properties() const { return device_.properties(); }

  driver::Device::Library load(const std::string& code, const std::string& what) {
    driver::Device::Current current(device_);
    return device_.load(code.c_str(), what);
  }
  // Each argument as the bytes that the kernel gets; as many as it has parameters.
  void launch(driver::Device::Library& library, const std::string& kernel, const std::vector<uint32_t>& grid,
              const std::vector<uint32_t>& block, const std::vector<uint32_t>& cluster, uint32_t shared_bytes,
              bool programmatic, std::vector<std::string> arguments, uintptr_t stream) {
    std::vector<void*> parameters;
    for (std::string& argument : arguments) parameters.push_back(argument.data());
    const driver::KernelLaunch launch{
        "",           kernel,      extent("grid", grid), extent("block", block), extent("cluster", cluster),
        shared_bytes, programmatic};
    py::gil_scoped_release release;
    driver::Device::Current current(device_);
    device_.launch(library, launch, reinterpret_cast<driver::CUstream>(stream), parameters.data());
  }
  void declare_memory(const std::string& name, uintptr_t address, uint64_t bytes, bool read_only) {
    device_.declare_memory(name.c_str(), reinterpret_cast<void*>(address), bytes, read_only);
  }
  void finish() {
    py::gil_scoped_release release;
    device_.finish_call("hunyuan_kernels");
  }
  // Innermost dimension first; strides in bytes, of the dimensions from the second on.
  py::bytes tensor_map(int type, uintptr_t address, const std::vector<uint64_t>& dimensions,
                       const std::vector<uint64_t>& strides, const std::vector<uint32_t>& box,
                       const std::vector<uint32_t>& element_strides, int swizzle, bool nan_fill) {
    const size_t rank = dimensions.size();
    if (rank == 0 || strides.size() + 1 != rank || box.size() != rank || element_strides.size() != rank)
      throw py::value_error("tensor_map: " + std::to_string(rank) + " dimensions, " + std::to_string(strides.size()) +
                            " strides, " + std::to_string(box.size()) + " of the box and " +
                            std::to_string(element_strides.size()) +
                            " element strides; strides are one less than dimensions, the others as many");
    driver::CUtensorMap map;
    driver::Device::Current current(device_);
    check_driver(
        device_.table(),
        device_.table().cuTensorMapEncodeTiled(
            &map, static_cast<driver::CUtensorMapDataType>(type), static_cast<uint32_t>(rank),
            reinterpret_cast<void*>(address), dimensions.data(), strides.data(), box.data(), element_strides.data(),
            driver::CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<driver::CUtensorMapSwizzle>(swizzle),
            driver::CU_TENSOR_MAP_L2_PROMOTION_NONE, static_cast<driver::CUtensorMapFloatOOBfill>(nan_fill)),
        "cuTensorMapEncodeTiled");
    return py::bytes(reinterpret_cast<const char*>(&map), sizeof(map));
  }

 private:
  static std::unique_ptr<driver::Device> simulate(SimulatedGpu& gpu) {
    SimulatedGpu::make_current(&gpu);
    return std::make_unique<driver::Device>(driver::simulated_driver(), 0);
  }
  static Extent extent(const char* what, const std::vector<uint32_t>& values) {
    if (values.empty() || values.size() > 3) throw py::value_error(std::string(what) + " needs 1 to 3 dimensions");
    return {values[0], values.size() > 1 ? values[1] : 1, values.size() > 2 ? values[2] : 1};
  }

  std::unique_ptr<driver::Device> simulated_;
  driver::Device& device_;
};

void register_code_runner(py::module_& m) {
  py::class_<driver::Device::Library>(m, "Library", "Code on a device.");
  py::class_<CodeRunner>(m, "CodeRunner", "Launches kernels that are not of this build, on a GPU or a simulated one.")
      .def(py::init<int>(), py::arg("ordinal"), "the GPU with this number, as torch counts them")
      .def(py::init<SimulatedGpu&>(), py::arg("gpu"), py::keep_alive<1, 2>(),
           "a simulated GPU, which becomes the calling thread's")
      .def_property_readonly("capability", [](const CodeRunner& r) { return r.properties().capability; })
      .def_property_readonly("sms", [](const CodeRunner& r) { return r.properties().sms; })
      .def("load", &CodeRunner::load, py::arg("code"), py::arg("what"), "PTX text, or for a GPU a cubin")
      .def("launch", &CodeRunner::launch, py::arg("library"), py::arg("kernel"), py::arg("grid"), py::arg("block"),
           py::arg("cluster"), py::arg("shared_bytes"), py::arg("programmatic"), py::arg("arguments"),
           py::arg("stream"), "queues a kernel; arguments as bytes, one for each of its parameters")
      .def("declare_memory", &CodeRunner::declare_memory, py::arg("name"), py::arg("address"), py::arg("bytes"),
           py::arg("read_only"), "what the launches to come may touch; of no effect on a GPU")
      .def("finish", &CodeRunner::finish, "runs what was queued on a simulated GPU; of no effect on a GPU")
      .def("tensor_map", &CodeRunner::tensor_map, py::arg("type"), py::arg("address"), py::arg("dimensions"),
           py::arg("strides"), py::arg("box"), py::arg("element_strides"), py::arg("swizzle"), py::arg("nan_fill"),
           "the 128 bytes of a tensor map");
  m.def(
      "cuda_device_count",
      [] {
        const driver::DriverTable& table = driver::cuda_driver();
        int count = 0;
        check_driver(table, table.cuDeviceGetCount(&count), "cuDeviceGetCount");
        return count;
      },
      "GPUs that the CUDA driver has; raises RuntimeError with the reason where there is no usable driver");
}

}  // namespace

void register_driver(py::module_& parent) {
  py::module_ m = parent.def_submodule("driver", "The CUDA driver functions that host code calls");
  auto extent = [](const Extent& e) { return py::make_tuple(e.x, e.y, e.z); };
  using Completed = SimulatedGpu::CompletedLaunch;
  py::class_<Completed>(m, "CompletedLaunch")
      .def_property_readonly("grid", [extent](const Completed& c) { return extent(c.grid); })
      .def_property_readonly("block", [extent](const Completed& c) { return extent(c.block); })
      .def_property_readonly("cluster", [extent](const Completed& c) { return extent(c.cluster); })
      .def_readonly("report", &Completed::report);
  py::class_<SimulatedGpu>(m, "SimulatedGpu")
      .def(py::init([](const Gpu& options) { return std::make_unique<SimulatedGpu>(options.device.options); }),
           py::arg("options"))
      .def(
          "make_current", [](SimulatedGpu& self) { SimulatedGpu::make_current(&self); },
          "the calling thread's driver functions act on this GPU")
      .def_static("make_none_current", [] { SimulatedGpu::make_current(nullptr); })
      .def("substitute", &SimulatedGpu::substitute, py::arg("ptx"), py::arg("module"), py::keep_alive<1, 3>(),
           "where this PTX text is loaded from now on, the module is")
      .def_property_readonly("completed", &SimulatedGpu::completed, "launches that ran, in order")
      .def_property_readonly("findings", &SimulatedGpu::findings, "what was found wrong with others, as text");
  register_code_runner(m);
  m.def(
      "table_address", [] { return reinterpret_cast<uintptr_t>(&driver::simulated_driver()); },
      "address of the driver table, for code that is given a driver at run time");
}

}  // namespace hunyuan_kernels
