// Part of the pybind11 module `_C`.
#pragma once
#include <pybind11/pybind11.h>

namespace hunyuan_kernels {

// Adds the submodule `simulator`.
void register_simulator(pybind11::module_& parent);

}  // namespace hunyuan_kernels
