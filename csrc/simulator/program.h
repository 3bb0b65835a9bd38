// Decoded form of a kernel: a flat array of compact instructions with resolved registers.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "simulator/ast.h"
#include "simulator/error.h"
#include "simulator/types.h"

namespace hunyuan_kernels::simulator {

class Warp;
struct Instr;

enum class ExecStatus : uint8_t {
  Next,     // continue with the following instruction
  Yield,    // continue, but give other warps a turn
  Blocked,  // stay at this instruction and retry later
  Control,  // the handler changed the control flow itself
};
using ExecFn = ExecStatus (*)(Warp&, const Instr&, uint32_t mask);

// A register (offset >= 0 into the warp's register file) or a broadcast constant
// (offset < 0: ~offset into the program's constant pool). Every operand is an
// array of 32 lane values, `bytes` apart; predicates are one 32-bit lane mask.
struct Operand {
  int32_t offset = 0;
  uint8_t bytes = 0;
  bool present = false;
  bool negated = false;    // predicates only
  bool predicate = false;  // declared as .pred
};

enum class SymbolBase : uint8_t { None, Shared, EntryParam, Local };

struct AddressMode {
  Operand base;  // absent: offset alone
  SymbolBase symbol = SymbolBase::None;
  int64_t offset = 0;
};

enum class InstrClass : uint8_t {
  IntegerAlu,
  FloatAlu,
  Convert,
  Move,
  Predicate,
  Control,
  LoadGlobal,
  StoreGlobal,
  LoadShared,
  StoreShared,
  LocalMemory,
  ParamMemory,
  GenericMemory,
  Atomic,
  WarpCollective,
  MatrixLoadStore,
  Mma,
  Wgmma,
  Tma,
  AsyncCopy,
  Barrier,
  Mbarrier,
  Fence,
  Other,
  Count
};
const char* to_string(InstrClass cls);

// How undefined values pass through an instruction (definedness.cpp); most are told by their class.
enum class DataFlow : uint8_t { ByClass, Lanewise, Copy, Select, Shuffle, Collective, Memory, Mma, Wgmma, Use };

struct Instr {
  ExecFn fn = nullptr;
  int32_t guard = -1;  // register offset of the guard predicate
  bool guard_negated = false;
  InstrClass cls = InstrClass::Other;
  DataFlow flow = DataFlow::ByClass;
  uint16_t opcode_index = 0;
  uint32_t line = 0;
  uint32_t target = 0;  // branch / call target
  Operand op[5];
  AddressMode addr, addr2;
  ScalarType type = ScalarType::None, type2 = ScalarType::None;
  Space space = Space::None;
  uint8_t vec = 1;
  bool strong = false;  // volatile, relaxed, acquire, release or atomic access
  bool acquire = false, release = false;
  bool device_scope = true;  // false: orders threads of one block only (.cta)
  uint32_t flags = 0;        // meaning is private to the opcode's decoder and handler
  int64_t imm[3] = {0, 0, 0};
  std::vector<Operand> list;  // vectors, matrix fragments, coordinates
  std::vector<Operand> list2;
  // Registers by row: the register file is divided into rows of 64 bytes, and a register starts at a row.
  std::vector<uint32_t> reads, writes;
  bool watched = false;  // touches a register that some wgmma of the kernel uses
  const InstrAst* ast = nullptr;
};

struct CalleeInfo {
  std::string name;
  uint32_t entry = 0;
  std::vector<uint32_t> param_offsets, param_bytes;  // local-memory offsets of formal parameters
  std::vector<uint32_t> result_offsets, result_bytes;
};

struct ParamInfo {
  std::string name;
  uint32_t offset, bytes, align;
  bool is_float;
  ScalarType type;
};

struct Program {
  std::string kernel_name;
  std::vector<Instr> code;
  std::vector<uint8_t> constants;  // broadcast constant pool
  uint32_t register_bytes = 0;
  std::vector<uint8_t> row_bytes;  // by register row: bytes of a lane of the register that starts there, 0: lane mask
  uint32_t local_bytes = 0;        // per thread: .local variables and call parameters
  uint32_t static_shared_bytes = 0;
  uint32_t dynamic_shared_align = 16;
  std::vector<ParamInfo> params;
  uint32_t param_bytes = 0;
  std::vector<std::string> opcode_names;
  std::vector<InstrClass> opcode_classes;
  std::vector<CalleeInfo> callees;  // call targets
  const FunctionAst* entry = nullptr;
};

// Shared memory starts above a reserved area, as on the device (a null pointer is never valid).
constexpr uint32_t kSharedReserved = 1024;

constexpr uint32_t kRegisterRow = 64;

}  // namespace hunyuan_kernels::simulator
