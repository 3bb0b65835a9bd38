// The torch library `hunyuan_kernels`, and the ops that take no tensor. Each stem adds its ops in bindings/<stem>.cpp.
#include "bindings/torch_glue.h"
#include "cpu/isa/microkernels.h"

namespace hunyuan_kernels {
namespace {

std::string supported_instruction_sets() { return cpu::supported_instruction_sets(); }

std::string force_instruction_set(std::string name) {
  cpu::force_instruction_set(name.c_str());
  return cpu::microkernels().name;
}

std::string instruction_set() { return cpu::microkernels().name; }

}  // namespace
}  // namespace hunyuan_kernels

STABLE_TORCH_LIBRARY_FRAGMENT(hunyuan_kernels, m) {
  m.def("instruction_set() -> str");
  m.def("supported_instruction_sets() -> str");
  m.def("force_instruction_set(str name) -> str");
  m.def("fill_new_memory(bool fill) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(hunyuan_kernels, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&hunyuan_kernels::instruction_set));
  m.impl("supported_instruction_sets", TORCH_BOX(&hunyuan_kernels::supported_instruction_sets));
  m.impl("force_instruction_set", TORCH_BOX(&hunyuan_kernels::force_instruction_set));
  m.impl("fill_new_memory", TORCH_BOX(&hunyuan_kernels::fill_new_memory));
}
