// Parts of the pybind11 module `_C`.
#pragma once
#include <pybind11/pybind11.h>

#include <vector>

#include "simulator/simulator.h"

namespace hunyuan_kernels {

// `_C.simulator.Gpu`: a simulated device whose attributes are its options.
struct Gpu {
  simulator::Device device;
  std::vector<pybind11::object> keep_alive;

  void enqueue(const simulator::Module& module, const std::string& kernel, const pybind11::object& grid,
               const pybind11::object& block, const pybind11::object& cluster, int64_t smem_bytes,
               const pybind11::sequence& args, bool programmatic);
  std::vector<simulator::Report> synchronize();
  simulator::Report launch(const simulator::Module& module, const std::string& kernel, const pybind11::object& grid,
                           const pybind11::object& block, const pybind11::object& cluster, int64_t smem_bytes,
                           const pybind11::sequence& args);
};

// Adds the submodule `simulator`.
void register_simulator(pybind11::module_& parent);
// Adds the submodule `driver`: the simulated GPU behind the driver table. After register_simulator.
void register_driver(pybind11::module_& parent);
// Adds the submodule `plans`: what host code decides for a problem.
void register_plans(pybind11::module_& parent);

}  // namespace hunyuan_kernels
