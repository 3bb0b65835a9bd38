// Python surface of the simulated driver: hunyuan_kernels._C.driver. hunyuan_kernels/simulator.py is what people use.
#include <pybind11/stl.h>

#include "bindings/python_module.h"
#include "driver/simulated_gpu.h"

namespace py = pybind11;

namespace hunyuan_kernels {

using driver::Extent;
using driver::SimulatedGpu;

void register_driver(py::module_& parent) {
  py::module_ m = parent.def_submodule("driver", "The CUDA driver functions that host code calls, by the simulator");
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
  m.def(
      "table_address", [] { return reinterpret_cast<uintptr_t>(&driver::simulated_driver()); },
      "address of the driver table, for code that is given a driver at run time");
}

}  // namespace hunyuan_kernels
