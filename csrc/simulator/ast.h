// Syntax tree of a PTX module: what the parser hands to the decoder.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "simulator/types.h"

namespace hunyuan_kernels::simulator {

struct OperandAst {
  enum class Kind : uint8_t { Name, Integer, Float, Address, Vector, Sink, String } kind = Kind::Name;
  std::string name;       // register or symbol
  std::string pair_name;  // second half of "dst|pred"
  uint64_t bits = 0;      // integer or float bit pattern
  uint8_t float_bytes = 0;
  int64_t offset = 0;                // symbol+offset, or the offset inside [ ]
  bool negated = false;              // !p
  std::vector<OperandAst> elements;  // vector elements; for Address: [base, coordinates...]
};

// A vector whose elements are asked for by position: a missing one raises std::out_of_range, which the decoder turns
// into an error that shows the instruction.
template <typename T>
struct CheckedList : std::vector<T> {
  const T& operator[](size_t i) const { return this->at(i); }
};

struct InstrAst {
  uint32_t line = 0;
  uint32_t scope = 0;
  std::string guard_name;
  bool guard_negated = false;
  std::string opcode;                   // complete, e.g. "ld.global.v4.f32"
  CheckedList<std::string_view> parts;  // opcode split at '.', views into `opcode`
  CheckedList<OperandAst> operands;
  std::vector<OperandAst> call_results;  // call (results), name, (arguments)
  std::vector<OperandAst> call_arguments;
  bool has(std::string_view part) const {
    for (auto p : parts)
      if (p == part) return true;
    return false;
  }
  std::string text() const;  // instruction as readable text
};

struct Variable {
  std::string name;
  Space space = Space::None;
  ScalarType type = ScalarType::None;
  uint32_t align = 1;
  uint64_t bytes = 0;
  bool is_extern = false;
  bool is_array = false;
  std::vector<uint8_t> initial_bytes;
  struct Relocation {
    uint64_t at;
    std::string symbol;
    int64_t addend;
    uint32_t bytes;
  };
  std::vector<Relocation> relocations;
};

struct RegisterDecl {
  ScalarType type;
  uint32_t index;
};

struct ScopeAst {
  int parent = -1;
  std::unordered_map<std::string, RegisterDecl> registers;
  std::unordered_map<std::string, uint32_t> labels;     // name -> instruction index
  std::unordered_map<std::string, Variable> variables;  // .param/.local/.shared/... of this scope
  std::unordered_map<std::string, std::vector<std::string>> branch_targets;
};

struct FunctionAst {
  std::string name;
  bool is_entry = false;
  bool is_extern = false;
  uint32_t line = 0;
  std::vector<Variable> params;
  std::vector<Variable> results;
  uint32_t max_threads[3] = {0, 0, 0};
  uint32_t required_threads[3] = {0, 0, 0};
  uint32_t required_cluster[3] = {0, 0, 0};
  uint32_t max_registers = 0;
  std::vector<ScopeAst> scopes;
  std::vector<InstrAst> instructions;
  uint32_t register_count = 0;
};

struct ModuleAst {
  std::string target;
  std::vector<Variable> variables;
  std::vector<std::unique_ptr<FunctionAst>> functions;
  const FunctionAst* find(const std::string& name) const {
    const FunctionAst* found = nullptr;
    for (auto& f : functions)
      if (f->name == name && (!found || found->is_extern)) found = f.get();
    return found;
  }
};

ModuleAst parse_module(const std::string& source);

}  // namespace hunyuan_kernels::simulator
