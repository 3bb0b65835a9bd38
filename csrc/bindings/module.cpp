// The pybind11 module `_C`: what the build contains, plans, and the simulator. It needs no torch; the ops do not need
// it.
#include <pybind11/pybind11.h>

#include "bindings/python_module.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information of hunyuan_kernels, its plans, and its PTX simulator.";
  hunyuan_kernels::register_simulator(m);
  hunyuan_kernels::register_driver(m);
  hunyuan_kernels::register_plans(m);
  m.def(
      "build_information",
      [] {
        py::dict information;
        information["version"] = HUNYUAN_KERNELS_VERSION;
        information["torch"] = TORCH_BUILD_VERSION;
        information["compiler"] = COMPILER_ID;
        information["processor"] = BUILD_PROCESSOR;
        if (*BUILD_CUDA)
          information["cuda"] = BUILD_CUDA;
        else
          information["cuda"] = py::none();
        return information;
      },
      "Versions and tools of this build as a dict: version, torch (whose headers were used), compiler, processor, cuda "
      "(compiler and architecture of the device code, None when there is none).");
}
