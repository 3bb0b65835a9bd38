// wgmma.mma_async: descriptor decode, lazy execution, group tracking and hazard checks.
#include <algorithm>
#include <array>

#include "simulator/decode.h"
#include "simulator/lanes.h"
#include "simulator/matrix.h"
#include "simulator/memory.h"
#include "simulator/ops_data.h"
#include "simulator/warp_async.h"

namespace hunyuan_kernels::simulator {
namespace {

// Shared-memory matrix descriptor.
struct MatrixDescriptor {
  uint32_t start, leading, stride, base_offset, layout;
  explicit MatrixDescriptor(uint64_t d)
      : start((d & 0x3fff) << 4),
        leading(((d >> 16) & 0x3fff) << 4),
        stride(((d >> 32) & 0x3fff) << 4),
        base_offset((d >> 49) & 7),
        layout(d >> 62) {}
  uint32_t span() const { return layout == 1 ? 128 : layout == 2 ? 64 : layout == 3 ? 32 : 16; }
  uint32_t swizzle(uint32_t address) const {
    const uint32_t mask = layout == 1 ? 7 : layout == 2 ? 3 : layout == 3 ? 1 : 0;
    return address ^ ((((address >> 7) - base_offset) & mask) << 4);
  }
  // 16-byte chunk `c` of row `r` of a K-major operand.
  uint32_t k_major_chunk(uint32_t r, uint32_t c) const {
    uint32_t linear = start + (r / 8) * stride + (r % 8) * span() + (layout == 0 ? c * leading : c * 16);
    return swizzle(linear);
  }
  // Chunk of 8 consecutive rows (columns for B) starting at 8*g, at depth k, of an MN-major operand.
  uint32_t mn_major_chunk(uint32_t g, uint32_t k) const {
    if (layout == 0) return start + g * stride + (k % 8) * 16 + (k / 8) * leading;
    const uint32_t chunks = span() / 16;
    return swizzle(start + (g % chunks) * 16 + (g / chunks) * leading + (k % 8) * span() + (k / 8) * stride);
  }
};

enum : uint32_t { kARegisters = 1, kTransA = 2, kTransB = 4, kNegA = 8, kNegB = 16 };

// imm[0]: n, imm[1]: k; type: A element, type2: accumulator; type of B in imm[2]
ScalarType type_b(const Instr& instr) { return (ScalarType)instr.imm[2]; }

void chunks_of(const MatrixDescriptor& d, bool transposed, uint32_t first_row, uint32_t rows, uint32_t k,
               uint32_t element_bytes, std::vector<uint32_t>& out) {
  if (!transposed) {
    const uint32_t per_row = k * element_bytes / 16;
    for (uint32_t r = 0; r < rows; ++r)
      for (uint32_t c = 0; c < per_row; ++c) out.push_back(d.k_major_chunk(first_row + r, c));
  } else {
    for (uint32_t g = 0; g < rows / 8; ++g)
      for (uint32_t i = 0; i < k; ++i) out.push_back(d.mn_major_chunk(first_row / 8 + g, i));
  }
}

// Loads `rows` x k elements into out[row * k + depth].
template <typename T>
void load_operand(const SharedMemory& s, const uint32_t* chunks, bool transposed, uint32_t rows, uint32_t k,
                  ScalarType type, T* out) {
  const uint32_t per_chunk = 16 / size_of(type);
  T values[16];
  if (!transposed) {
    const uint32_t per_row = k / per_chunk;
    for (uint32_t r = 0; r < rows; ++r)
      for (uint32_t c = 0; c < per_row; ++c)
        decode_elements(&s.data[*chunks++], per_chunk, type, out + r * k + c * per_chunk);
  } else {
    for (uint32_t g = 0; g < rows / 8; ++g)
      for (uint32_t i = 0; i < k; ++i) {
        decode_elements(&s.data[*chunks++], per_chunk, type, values);
        for (uint32_t e = 0; e < 8; ++e) out[(g * 8 + e) * k + i] = values[e];
      }
  }
}

// Lanes of one accumulator register: f(lane, column offset, row offset).
template <typename F>
inline __attribute__((always_inline)) void for_tile(F&& f) {
  for (int q = 0; q < 4; ++q)
    for (int g = 0; g < 8; ++g) f(4 * g + q, 2 * q, g);
}

template <typename T>
void multiply(Warp& warp, const WgmmaOp& op) {
  const Instr& instr = *op.instr;
  const uint32_t n = (uint32_t)instr.imm[0], k = (uint32_t)instr.imm[1];
  alignas(64) T a[16 * 32], at[32 * 16];
  alignas(64) static thread_local T b[256 * 32], acc[256 * 16];
  const SharedMemory& s = warp.cta->shared;
  const uint32_t* chunks = op.chunks.data();
  if (instr.flags & kARegisters) {
    decode_a_fragment(op.a_registers.data(), instr.type, k, a);
  } else {
    load_operand(s, chunks, instr.flags & kTransA, 16, k, instr.type, a);
    chunks += 16 * k * size_of(instr.type) / 16;
  }
  load_operand(s, chunks, instr.flags & kTransB, n, k, type_b(instr), b);
  const T sign = ((instr.flags & kNegA) != 0) != ((instr.flags & kNegB) != 0) ? T(-1) : T(1);
  for (uint32_t r = 0; r < 16; ++r)
    for (uint32_t i = 0; i < k; ++i) at[i * 16 + r] = a[r * k + i] * sign;
  const bool half_accumulator = instr.type2 == ScalarType::F16;
  // Gather accumulators into acc[column][row].
  for (uint32_t v = 0; v < n / 2; ++v) {
    const uint32_t row = 8 * ((v >> 1) & 1), col = 8 * (v >> 2) + (v & 1);
    if (!op.scale_d) {
      for_tile([&](int lane, int c, int r) {
        acc[(col + c) * 16 + row + r] = T(0);
        (void)lane;
      });
    } else if (half_accumulator) {
      const uint16_t* d = warp.ptr<uint16_t>(instr.list[v / 2]);
      for_tile(
          [&](int lane, int c, int r) { acc[(col + c) * 16 + row + r] = (T)half_to_float(d[2 * lane + (v & 1)]); });
    } else {
      const T* d = warp.ptr<T>(instr.list[v]);
      for_tile([&](int lane, int c, int r) { acc[(col + c) * 16 + row + r] = d[lane]; });
    }
  }
  const uint32_t limited_bits =
      size_of(instr.type) == 1 && std::is_floating_point_v<T> ? warp.launch->options.fp8_accumulator_bits : 0;
  if (limited_bits) {
    for (uint32_t c = 0; c < n; ++c)
      for (uint32_t r = 0; r < 16; ++r)
        acc[c * 16 + r] = (T)limited_dot((float)acc[c * 16 + r], at, b, r, c, k, limited_bits);
  } else {
    // One vector holds the 16 rows of a column; eight columns at a time.
    typedef T Rows __attribute__((vector_size(16 * sizeof(T))));
    const Rows* depth_rows = reinterpret_cast<const Rows*>(at);
    Rows* columns = reinterpret_cast<Rows*>(acc);
    for (uint32_t c = 0; c < n; c += 8) {
      Rows sum[8];
      for (int j = 0; j < 8; ++j) sum[j] = columns[c + j];
      for (uint32_t i = 0; i < k; ++i)
        for (int j = 0; j < 8; ++j) sum[j] += depth_rows[i] * b[(c + j) * k + i];
      for (int j = 0; j < 8; ++j) columns[c + j] = sum[j];
    }
  }
  for (uint32_t v = 0; v < n / 2; ++v) {
    const uint32_t row = 8 * ((v >> 1) & 1), col = 8 * (v >> 2) + (v & 1);
    if (half_accumulator) {
      uint16_t* d = warp.ptr<uint16_t>(instr.list[v / 2]);
      for_tile(
          [&](int lane, int c, int r) { d[2 * lane + (v & 1)] = float_to_half((float)acc[(col + c) * 16 + row + r]); });
    } else {
      T* d = warp.ptr<T>(instr.list[v]);
      for_tile([&](int lane, int c, int r) { d[lane] = acc[(col + c) * 16 + row + r]; });
    }
  }
}

void execute(Warp& warp, WgmmaOp& op) {
  op.executed = true;
  if (op.is_copy) {
    uint32_t* d = warp.ptr<uint32_t>(op.instr->op[0]);
    const uint32_t* s = warp.ptr<uint32_t>(op.instr->op[1]);
    for_lanes(op.mask, [&](int lane) { d[lane] = s[lane]; });
  } else {
    static const auto multiply_integers = lane_parallel<&multiply<int32_t>>();
    static const auto multiply_reals = lane_parallel<&multiply<float>>();
    op.instr->type2 == ScalarType::S32 ? multiply_integers(warp, op) : multiply_reals(warp, op);
  }
}

void finish_reads(Warp& warp, WgmmaOp& op) {
  for (uint32_t c : op.chunks) --warp.cta->shared.async_readers[c / 16];
  op.chunks.clear();
}

void retire(Warp& warp, WgmmaOp& op) {
  retire_wgmma_registers(warp, op);
  if (op.is_copy) return;
  finish_reads(warp, op);
  --warp.wgmma_unfinished;
}

void retire_before(Warp& warp, uint32_t group) {
  for (auto& op : warp.wgmma_queue) {
    if ((int32_t)(op->group - group) >= 0) break;
    if (!op->executed) execute(warp, *op);
  }
  while (!warp.wgmma_queue.empty() && (int32_t)(warp.wgmma_queue.front()->group - group) < 0) {
    retire(warp, *warp.wgmma_queue.front());
    warp.wgmma_queue.pop_front();
  }
}

ExecStatus exec_wgmma(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  if (mask != kFullMask) warp.fail(instr, -1, "wgmma needs all 32 lanes of the warp");
  issue_wgmma_registers(warp, instr);
  auto op = std::make_unique<WgmmaOp>();
  op->instr = &instr;
  op->group = warp.wgmma_open_group;
  op->mask = mask;
  op->scale_d = warp.predicate(instr.op[2]) & 1;
  auto uniform = [&](const Operand& o) {
    const uint64_t* v = warp.ptr<uint64_t>(o);
    for (int lane = 1; lane < 32; ++lane)
      if (v[lane] != v[0]) warp.fail(instr, lane, "matrix descriptor differs between lanes");
    return v[0];
  };
  const uint32_t n = (uint32_t)instr.imm[0], k = (uint32_t)instr.imm[1];
  if (instr.flags & kARegisters) {
    op->a_registers.resize(4 * kWarpSize);
    for (int i = 0; i < 4; ++i)
      memcpy(&op->a_registers[i * kWarpSize], warp.ptr<uint32_t>(instr.list2[i]), 4 * kWarpSize);
  } else {
    chunks_of(MatrixDescriptor(uniform(instr.op[0])), instr.flags & kTransA, (warp.index % 4) * 16, 16, k,
              size_of(instr.type), op->chunks);
  }
  chunks_of(MatrixDescriptor(uniform(instr.op[1])), instr.flags & kTransB, 0, n, k, size_of(type_b(instr)), op->chunks);
  SharedMemory& s = warp.cta->shared;
  for (uint32_t c : op->chunks) {
    if (c < s.base || c + 16 > s.limit)
      warp.fail(instr, -1,
                format("wgmma operand chunk at shared address 0x%x lies outside [0x%x, 0x%x)", c, s.base, s.limit));
    uint64_t init[2];
    memcpy(init, &s.initialized[c], 16);
    if (s.has_generic_writes[c >> 10] || s.async_writers[c / 16] || (init[0] & init[1]) != 0x0101010101010101ull)
      check_async_read(warp, instr, -1, *warp.cta, c, 16);
    ++s.async_readers[c / 16];
    race_wgmma_read(warp, instr, c, 16);
  }
  ++warp.wgmma_unfinished;
  auto& counters = warp.launch->counters;
  std::string& name = warp.launch->scratch_name;
  name = "wgmma.";
  name += instr.ast->parts[4];
  for (size_t i = 5; i < instr.ast->parts.size(); ++i) {
    name += '.';
    name += instr.ast->parts[i];
  }
  ++counters.mma_count[name];
  counters.mma_flops[name] += 2ull * 16 * n * k;
  warp.wgmma_queue.push_back(std::move(op));
  if (warp.launch->options.eager_async) execute_oldest_wgmma(warp);
  return ExecStatus::Next;
}

ExecStatus exec_wgmma_fence(Warp& warp, const Instr&, uint32_t) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  ++warp.wgmma_fences;
  return ExecStatus::Next;
}
ExecStatus exec_wgmma_commit(Warp& warp, const Instr&, uint32_t) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  ++warp.wgmma_open_group;
  return ExecStatus::Next;
}

// A wgmma belongs to the four warps of its warpgroup: for one of them it is complete when all have issued it, and then
// its reads of shared memory are done for all. CUTLASS relies on it: one warp releases a stage for its whole warpgroup.
bool warpgroup_reaches(Warp& warp, uint32_t group) {
  const uint32_t first = warp.index / 4 * 4, end = std::min<uint32_t>(first + 4, (uint32_t)warp.cta->warps.size());
  for (uint32_t i = first; i < end; ++i) {
    const Warp& other = warp.cta->warps[i];
    if (!other.done && (int32_t)(other.wgmma_open_group - group) < 0) return false;
  }
  for (uint32_t i = first; i < end; ++i) {
    Warp& other = warp.cta->warps[i];
    for (auto& op : other.wgmma_queue) {
      if ((int32_t)(op->group - group) >= 0) break;
      if (!op->executed) execute(other, *op);
      finish_reads(other, *op);
    }
  }
  race_wgmma_wait(warp, group);
  return true;
}

ExecStatus exec_wgmma_wait(Warp& warp, const Instr& instr, uint32_t) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  if ((uint32_t)instr.imm[0] <= warp.wgmma_open_group) {
    const uint32_t group = warp.wgmma_open_group - (uint32_t)instr.imm[0];
    if (!warpgroup_reaches(warp, group)) return ExecStatus::Blocked;
    retire_before(warp, group);
  }
  warp.launch->progress();
  return ExecStatus::Next;
}

void decode_wgmma(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Wgmma;
  std::string_view op = a.parts[1];
  if (op == "fence") {
    instr.fn = &exec_wgmma_fence;
    return;
  }
  if (op == "commit_group") {
    instr.fn = &exec_wgmma_commit;
    return;
  }
  if (op == "wait_group") {
    instr.imm[0] = (int64_t)c.immediate(a.operands[0]);
    instr.fn = &exec_wgmma_wait;
    return;
  }
  if (op != "mma_async" || a.has("sp")) c.unsupported();
  int m = 0, n = 0, k = 0;
  for (auto p : a.parts)
    if (p.size() > 3 && p[0] == 'm' && isdigit((unsigned char)p[1]))
      sscanf(std::string(p).c_str(), "m%dn%dk%d", &m, &n, &k);
  if (m != 64 || n < 8 || n > 256 || n % 8) c.unsupported("shape");
  instr.imm[0] = n;
  instr.imm[1] = k;
  instr.type2 = type_part(a, 0);
  instr.type = type_part(a, 1);
  instr.imm[2] = (int64_t)type_part(a, 2);
  if (k * (int)size_of(instr.type) != 32) c.unsupported("depth");
  for (auto& e : a.operands[0].elements) instr.list.push_back(c.source(e, 4));
  const size_t expected = instr.type2 == ScalarType::F16 ? n / 4 : n / 2;
  if (instr.list.size() != expected) c.unsupported("accumulator register count");
  if (a.operands[1].kind == OperandAst::Kind::Vector) {
    instr.flags |= kARegisters;
    for (auto& e : a.operands[1].elements) instr.list2.push_back(c.source(e, 4));
    if (instr.list2.size() != 4) c.unsupported("A register count");
  } else {
    instr.op[0] = c.source(a.operands[1], 8);
  }
  instr.op[1] = c.source(a.operands[2], 8);
  instr.op[2] = c.predicate(a.operands[3]);
  size_t at = 4;
  auto next = [&]() { return at < a.operands.size() ? (int64_t)c.immediate(a.operands[at++]) : 0; };
  if (instr.type2 != ScalarType::S32) {
    if (next() == -1) instr.flags |= kNegA;
    if (next() == -1) instr.flags |= kNegB;
  }
  if (size_of(instr.type) == 2) {
    if (!(instr.flags & kARegisters) && next()) instr.flags |= kTransA;
    if (next()) instr.flags |= kTransB;
  }
  instr.fn = &exec_wgmma;
}

}  // namespace

void execute_oldest_wgmma(Warp& warp) {
  for (auto& op : warp.wgmma_queue)
    if (!op->executed) {
      execute(warp, *op);
      return;
    }
}

void finish_wgmma(Warp& warp) { retire_before(warp, warp.wgmma_open_group + 1); }

void register_wgmma_ops(OpTable& t) { t["wgmma"] = &decode_wgmma; }

}  // namespace hunyuan_kernels::simulator
