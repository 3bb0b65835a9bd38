// Turns parsed instructions into compact executable ones.
#pragma once
#include <map>
#include <unordered_map>

#include "simulator/machine.h"
#include "simulator/simulator.h"

namespace hunyuan_kernels::simulator {

// Storage and addresses of a module's .global and .const variables.
struct ModuleStorage {
  std::map<std::string, ModuleVariable> symbols;
  std::vector<std::unique_ptr<uint8_t[]>> memory;
};

class DecodeContext {
 public:
  DecodeContext(const ModuleAst& module, const ModuleStorage& storage, Program& program)
      : module(module), storage(storage), program(program) {}
  const ModuleAst& module;
  const ModuleStorage& storage;
  Program& program;
  const FunctionAst* function = nullptr;
  const InstrAst* ast = nullptr;

  void decode_kernel(const FunctionAst& entry);

  [[noreturn]] void unsupported(const std::string& why = "") const;
  // Operands of the current instruction; each is entered into its reads or writes.
  Operand dest(const OperandAst& o);                    // register of any width or "_"; for handlers that ask the width
  Operand dest(const OperandAst& o, uint32_t bytes);    // register of exactly `bytes` or "_"
  Operand source(const OperandAst& o, uint32_t bytes);  // register or immediate of exactly `bytes`
  Operand any_source(const OperandAst& o, uint32_t bytes_of_immediate);  // register of any width
  Operand predicate(const OperandAst& o);       // predicate register, maybe negated, or constant
  Operand predicate_dest(const OperandAst& o);  // predicate register or "_"
  Operand pair_dest(const OperandAst& o);       // the p of "d|p"; absent when there is none
  Operand constant(uint64_t bits, uint32_t bytes);
  // op[0] = destination, op[1..] = sources of `bytes` each; the destination may differ.
  void operands(const InstrAst& a, Instr& instr, int sources, uint32_t bytes, uint32_t dest_bytes = 0);
  AddressMode address(const OperandAst& o);
  bool is_register(const std::string& name) const { return find_register(name).present; }
  uint64_t immediate(const OperandAst& o) const;
  // Finds what a symbol means: fills the address mode (base symbol, offset) or a constant address.
  bool symbol_address(const std::string& name, AddressMode& mode, Space* space = nullptr);
  uint32_t label_target(const std::string& name) const;  // only after layout
  const std::vector<std::string>* branch_targets(const std::string& name) const;
  uint32_t callee_index(const std::string& name);
  Operand carry(bool read, bool write);
  bool is_predicate(const OperandAst& o) const;
  uint32_t param_offset(const std::string& name, uint32_t* bytes) const;  // .param variable in local memory

  static constexpr int32_t kSinkOffset = 0;     // scratch for "_" results
  static constexpr int32_t kCarryOffset = 512;  // carry flag mask
  static constexpr int32_t kFirstRegister = 576;

 private:
  struct FunctionLayout {
    uint32_t entry = 0;
    std::vector<Operand> registers;
    std::unordered_map<std::string, uint32_t> local_offsets;  // .local, .param and formal parameters
    std::unordered_map<std::string, uint32_t> shared_offsets;
  };
  std::map<const FunctionAst*, FunctionLayout> layouts_;
  std::unordered_map<std::string, uint32_t> module_shared_;
  std::map<std::pair<uint64_t, uint32_t>, int32_t> constant_index_;
  std::unordered_map<std::string, uint16_t> opcode_index_;
  std::unordered_map<std::string, uint32_t> callee_index_;
  uint32_t dynamic_shared_offset_ = 0;

  void collect_functions(const FunctionAst& f, std::vector<const FunctionAst*>& order);
  void layout_function(const FunctionAst& f);
  void layout_shared(const std::vector<const FunctionAst*>& order);
  void decode_function(const FunctionAst& f);
  Operand find_register(const std::string& name) const;  // absent when there is none
  Operand reg(const OperandAst& o) const;                // must be a register
  Operand read(Operand o);
  Operand write(Operand o);
  Instr* current_ = nullptr;
  const Variable* find_variable(const std::string& name, int scope) const;
};

using DecodeFn = void (*)(DecodeContext&, const InstrAst&, Instr&);
using OpTable = std::unordered_map<std::string, DecodeFn>;

void register_integer_ops(OpTable&);
void register_bit_ops(OpTable&);
void register_compare_ops(OpTable&);
void register_float_ops(OpTable&);
void register_convert_ops(OpTable&);
void register_data_ops(OpTable&);
void register_control_ops(OpTable&);
void register_memory_ops(OpTable&);
void register_atomic_ops(OpTable&);
void register_collective_ops(OpTable&);
void register_mma_ops(OpTable&);
void register_wgmma_ops(OpTable&);
void register_async_copy_ops(OpTable&);
void register_tma_ops(OpTable&);
void register_barrier_ops(OpTable&);

enum class AtomicOp : uint8_t { Add, Min, Max, And, Or, Xor, Exch, Cas, Inc, Dec };
bool parse_atomic_op(std::string_view text, AtomicOp& op);
uint64_t reduce_value(AtomicOp op, ScalarType t, uint64_t a, uint64_t b);

// Decoders that live next to the asynchronous copies but share the opcode st / red.
void decode_store_async(DecodeContext& c, const InstrAst& a, Instr& instr);
void decode_reduce_async(DecodeContext& c, const InstrAst& a, Instr& instr);
void decode_tensor_copy(DecodeContext& c, const InstrAst& a, Instr& instr);
// Copies or reduces (imm[0]: AtomicOp, type: element type) a run of bytes.
void apply_bulk(uint8_t* destination, const uint8_t* data, uint32_t bytes, const Instr& instr, bool reduce);

// Fills strong, acquire, release and device_scope from the modifiers.
void decode_ordering(const InstrAst& ast, Instr& instr);

// First type among the opcode's parts at or after `from` (None when absent).
ScalarType type_part(const InstrAst& ast, int nth = 0);

}  // namespace hunyuan_kernels::simulator
