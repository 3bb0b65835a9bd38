// Modules: parsing, storage of module variables, lookup of kernels.
#include <algorithm>
#include <cstring>

#include "simulator/decode.h"
#include "simulator/simulator.h"

namespace hunyuan_kernels::simulator {

struct ModuleContents {
  explicit ModuleContents(std::string ptx) : source(std::move(ptx)), ast(parse_module(source)) {}
  std::string source;
  ModuleAst ast;
  ModuleStorage storage;
  std::mutex mutex;  // guards programs
  std::map<std::string, std::unique_ptr<Program>> programs;
};

namespace {

constexpr uint64_t kMaxVariableBytes = 1ull << 31;

void allocate(ModuleStorage& storage, const Variable& v) {
  if (v.space != Space::Global && v.space != Space::Const) return;
  if (storage.symbols.count(v.name)) return;
  if (v.bytes > kMaxVariableBytes || v.align > (1u << 20))
    throw SimError(format("module variable '%s' is too large: %llu bytes, alignment %u", v.name.c_str(),
                          (unsigned long long)v.bytes, v.align));
  const uint64_t align = std::max<uint64_t>(256, v.align), bytes = std::max<uint64_t>(v.bytes, 1);
  auto memory = std::make_unique<uint8_t[]>(bytes + align);
  const uint64_t address = ((uint64_t)memory.get() + align - 1) / align * align;
  if (!v.initial_bytes.empty()) memcpy((void*)address, v.initial_bytes.data(), v.initial_bytes.size());
  storage.symbols[v.name] = {address, bytes, v.space == Space::Const};
  storage.memory.push_back(std::move(memory));
}

void relocate(ModuleStorage& storage, const Variable& v) {
  for (auto& r : v.relocations) {
    auto it = storage.symbols.find(r.symbol);
    if (it == storage.symbols.end()) continue;  // e.g. a function address
    const uint64_t value = it->second.address + r.addend;
    memcpy((void*)(storage.symbols[v.name].address + r.at), &value, std::min(8u, r.bytes));
  }
}

const FunctionAst& find_kernel(const ModuleAst& ast, const std::string& name) {
  std::vector<const FunctionAst*> matches;
  for (auto& f : ast.functions) {
    if (!f->is_entry || f->is_extern) continue;
    if (f->name == name) return *f;
    if (f->name.find(name) != std::string::npos) matches.push_back(f.get());
  }
  if (matches.size() == 1) return *matches[0];
  std::string known;
  for (auto& f : ast.functions)
    if (f->is_entry && !f->is_extern && (matches.empty() || f->name.find(name) != std::string::npos))
      known += (known.empty() ? "" : ", ") + f->name;
  if (matches.empty()) throw SimError("no kernel named '" + name + "' in the module; it has: " + known);
  throw SimError("kernel name '" + name + "' is ambiguous; give the whole name of one of: " + known);
}

}  // namespace

Module::Module(std::string ptx) : contents_(std::make_unique<ModuleContents>(std::move(ptx))) {
  ModuleAst& ast = contents_->ast;
  ModuleStorage& storage = contents_->storage;
  for (auto& v : ast.variables) allocate(storage, v);
  for (auto& f : ast.functions)
    for (auto& scope : f->scopes)
      for (auto& [name, v] : scope.variables) allocate(storage, v);
  for (auto& v : ast.variables) relocate(storage, v);
}

Module::~Module() = default;

std::vector<std::string> Module::kernel_names() const {
  std::vector<std::string> names;
  for (auto& f : contents_->ast.functions)
    if (f->is_entry) names.push_back(f->name);
  return names;
}

const Program& Module::program(const std::string& name) const {
  const FunctionAst& found = find_kernel(contents_->ast, name);
  std::lock_guard lock(contents_->mutex);
  auto& slot = contents_->programs[found.name];
  if (!slot) {
    auto program = std::make_unique<Program>();
    DecodeContext(contents_->ast, contents_->storage, *program).decode_kernel(found);
    slot = std::move(program);
  }
  return *slot;
}

KernelInfo Module::kernel_info(const std::string& name) const {
  const Program& p = program(name);
  KernelInfo info;
  info.name = p.kernel_name;
  for (auto& parameter : p.params) info.parameters.push_back({parameter.name, parameter.offset, parameter.bytes});
  info.parameter_bytes = p.param_bytes;
  info.static_shared_bytes = p.static_shared_bytes;
  std::copy(std::begin(p.entry->required_threads), std::end(p.entry->required_threads), info.required_block);
  std::copy(std::begin(p.entry->required_cluster), std::end(p.entry->required_cluster), info.required_cluster);
  for (const auto* limit : {p.entry->max_threads, p.entry->required_threads})
    if (limit[0])
      info.max_threads = (uint32_t)std::min<uint64_t>(info.max_threads, uint64_t(limit[0]) * limit[1] * limit[2]);
  return info;
}

const ModuleVariable* Module::find_variable(const std::string& name) const {
  auto it = contents_->storage.symbols.find(name);
  return it == contents_->storage.symbols.end() ? nullptr : &it->second;
}

const std::map<std::string, ModuleVariable>& Module::variables() const { return contents_->storage.symbols; }

}  // namespace hunyuan_kernels::simulator
