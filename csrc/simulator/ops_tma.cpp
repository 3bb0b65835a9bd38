// Tensor copies (cp.async.bulk.tensor, tile mode), tensor-map edits.
#include <algorithm>

#include "simulator/bulk.h"
#include "simulator/decode.h"
#include "simulator/mbarrier.h"
#include "simulator/memory.h"
#include "simulator/tensor_map.h"

namespace hunyuan_kernels::simulator {
namespace {

enum : uint32_t { kStore = 1, kMulticast = 2, kReduce = 4 };

TensorMap read_map(Warp& warp, const Instr& instr, int lane, uint64_t address) {
  if (address % 64)
    warp.fail(instr, lane, format("tensor map address 0x%llx is not 64-byte aligned", (unsigned long long)address));
  Instr generic;
  generic.space = Space::Generic;
  generic.ast = instr.ast;
  generic.line = instr.line;
  TensorMap map;
  for (uint32_t i = 0; i < sizeof(map); i += 16)
    memcpy((uint8_t*)&map + i, memory_pointer(warp, generic, lane, address + i, 16, Access::Read), 16);
  if (map.magic != TensorMap::kMagic)
    warp.fail(instr, lane, "the address does not hold a tensor map of this simulator");
  if (const std::string problem = map.problem(); !problem.empty())
    warp.fail(instr, lane, "invalid tensor map: " + problem);
  return map;
}

// Calls row(shared_linear_offset, global_address_of_first_element or 0 when the row is out of bounds) for each inner
// row.
template <typename F>
void for_each_row(const TensorMap& map, const int32_t* coordinates, F&& row) {
  uint32_t counts[5] = {1, 1, 1, 1, 1}, index[5] = {};
  for (int i = 1; i < map.rank; ++i) counts[i] = (map.box[i] + map.element_strides[i] - 1) / map.element_strides[i];
  const uint32_t rows = map.rows();
  for (uint32_t r = 0; r < rows; ++r) {
    bool inside = true;
    uint64_t address = map.address;
    for (int i = 1; i < map.rank; ++i) {
      int64_t c = (int64_t)coordinates[i] + (int64_t)index[i] * map.element_strides[i];
      if (c < 0 || (uint64_t)c >= map.dims[i])
        inside = false;
      else
        address += (uint64_t)c * map.strides[i - 1];
    }
    row(r * map.row_pitch(), address, inside);
    for (int i = 1; i < map.rank && ++index[i] == counts[i]; ++i) index[i] = 0;
  }
}

// Range of inner elements [first, last) of the box that lie inside the tensor.
void inner_range(const TensorMap& map, int32_t c0, uint32_t& first, uint32_t& last) {
  int64_t lo = std::max<int64_t>(0, -(int64_t)c0), hi = std::min<int64_t>(map.box[0], (int64_t)map.dims[0] - c0);
  first = (uint32_t)std::min<int64_t>(lo, map.box[0]);
  last = (uint32_t)std::max<int64_t>(first, hi);
}

// Every global row that the copy touches must be registered memory.
void check_global(Warp& warp, const Instr& instr, int lane, const TensorMap& map, const int32_t* coordinates,
                  bool write) {
  uint32_t first, last;
  inner_range(map, coordinates[0], first, last);
  if (first >= last) return;
  const uint32_t size = map.element_bytes();
  for_each_row(map, coordinates, [&](uint32_t, uint64_t address, bool inside) {
    if (!inside) return;
    uint64_t begin = address + (coordinates[0] + (int64_t)first) * size,
             end = address + (coordinates[0] + (int64_t)last) * size;
    global_range(warp, instr, lane, begin, end - begin, write);
  });
}

void load_box(const TensorMap& map, const int32_t* coordinates, std::vector<uint8_t>& rows_out) {
  const uint32_t size = map.element_bytes(), pitch = map.row_pitch();
  rows_out.assign(map.shared_bytes(), 0);
  uint32_t first, last;
  inner_range(map, coordinates[0], first, last);
  for_each_row(map, coordinates, [&](uint32_t linear, uint64_t address, bool inside) {
    uint8_t* out = &rows_out[linear];
    if (map.nan_fill) {
      static const uint8_t f32[4] = {0xff, 0xff, 0xff, 0x7f}, f16[2] = {0xff, 0x7f};
      for (uint32_t i = 0; i + size <= pitch; i += size) memcpy(out + i, size == 2 ? f16 : f32, std::min(size, 4u));
    }
    if (!inside || first >= last) return;
    const uint8_t* source = (const uint8_t*)address + (int64_t)coordinates[0] * size;
    memcpy(out + first * size, source + first * size, (last - first) * size);
  });
}

void store_box(const TensorMap& map, const int32_t* coordinates, const std::vector<uint8_t>& rows, const Instr& instr,
               bool reduce) {
  const uint32_t size = map.element_bytes();
  uint32_t first, last;
  inner_range(map, coordinates[0], first, last);
  if (first >= last) return;
  for_each_row(map, coordinates, [&](uint32_t linear, uint64_t address, bool inside) {
    if (!inside) return;
    uint8_t* target = (uint8_t*)address + ((int64_t)coordinates[0] + first) * size;
    apply_bulk(target, &rows[linear + first * size], (last - first) * size, instr, reduce);
  });
}

ScalarType reduction_type(TensorDataType t) {
  using D = TensorDataType;
  using S = ScalarType;
  switch (t) {
    case D::U32: return S::U32;
    case D::S32: return S::S32;
    case D::U64: return S::U64;
    case D::S64: return S::S64;
    case D::F16: return S::F16;
    case D::BF16: return S::BF16;
    case D::F64: return S::F64;
    case D::U8: return S::B8;
    case D::U16: return S::B16;
    default: return S::F32;
  }
}

// list: coordinates; addr: shared address; addr2: tensor map; list2[0]: mbarrier; op[0]: multicast mask
ExecStatus exec_tensor_copy(Warp& warp, const Instr& instr, uint32_t mask) {
  Launch& launch = *warp.launch;
  auto strip = [](uint64_t a) { return (a & kWindowMask) == kSharedWindow ? a & ~kWindowMask : a; };
  for (int lane : Lanes(mask)) {
    const TensorMap map = read_map(warp, instr, lane, warp.address(instr.addr2, lane));
    if (map.rank != instr.list.size())
      warp.fail(instr, lane, format("tensor map of rank %u used with %zu coordinates", map.rank, instr.list.size()));
    struct Coordinates {
      int32_t v[5];
    } at{};
    for (size_t i = 0; i < instr.list.size(); ++i) at.v[i] = warp.ptr<int32_t>(instr.list[i])[lane];
    const uint64_t shared = strip(warp.address(instr.addr, lane));
    if (shared % 128)
      warp.fail(instr, lane,
                format("shared address 0x%llx of a tensor copy is not 128-byte aligned", (unsigned long long)shared));
    uint32_t offset;
    const uint32_t bytes = map.shared_bytes(), span = map.swizzle_span();
    Cta& target = async_shared_range(warp, instr, lane, shared, bytes, offset);
    const Instr* issued = &instr;
    Warp* issuer = &warp;
    if (instr.flags & kStore) {
      check_async_read(warp, instr, lane, target, offset, bytes);
      check_global(warp, instr, lane, map, at.v, true);
      hold_cta(target);
      ++launch.counters.tma_stores;
      launch.counters.tma_store_bytes += map.box_bytes();
      auto pending = add_pending(launch.pending_bulk, warp, 1u << lane, warp.bulk_group);
      hold_source(*pending, instr, target, offset, bytes);
      race_bulk_read(warp, instr, lane, target, offset, bytes);
      launch.defer([=, &target] {
        auto rows = std::make_shared<std::vector<uint8_t>>(bytes);
        for (uint32_t i = 0; i < bytes; i += 16)
          memcpy(&(*rows)[i], &target.shared.data[swizzle_address(offset + i, span)], 16);
        pending->read_done = true;
        issuer->launch->defer([=] {
          Instr reduction;
          reduction.type = reduction_type((TensorDataType)map.type);
          reduction.imm[0] = issued->imm[0];
          store_box(map, at.v, *rows, reduction, (issued->flags & kReduce) != 0);
          pending->done = true;
        });
        release_cta(target);
      });
      continue;
    }
    check_global(warp, instr, lane, map, at.v, false);
    const uint64_t barrier = strip(warp.address({instr.list2[0], SymbolBase::None, 0}, lane));
    uint32_t ctas = 1u << target.rank;
    if (instr.flags & kMulticast) ctas = (uint32_t)warp.value(instr.op[0], lane) & 0xffff;
    for (int rank : Lanes(ctas)) {
      if ((size_t)rank >= warp.cta->cluster->ctas.size())
        warp.fail(instr, lane, format("multicast to block rank %u outside the cluster", rank));
      Cta& t = *warp.cta->cluster->ctas[rank];
      if (!t.active) warp.fail(instr, lane, format("multicast to block rank %u, which has already exited", rank));
      check_async_overwrite(warp, instr, lane, t, offset, bytes);
      add_async_writer(t, offset, bytes, 1);
      hold_incoming(t, warp, instr, lane);
    }
    ++launch.counters.tma_loads;
    launch.counters.tma_load_bytes += map.box_bytes();
    Cluster* cluster = warp.cta->cluster;
    launch.defer([=] {
      std::vector<uint8_t> rows;
      load_box(map, at.v, rows);
      for (int rank : Lanes(ctas)) {
        Cta& t = *cluster->ctas[rank];
        add_async_writer(t, offset, bytes, -1);
        for (uint32_t i = 0; i < bytes; i += 16) async_write(t, swizzle_address(offset + i, span), &rows[i], 16);
        uint64_t address = (issued->flags & kMulticast)
                               ? (uint64_t(t.rank) << kCtaRankShift) | (barrier & ((1u << kCtaRankShift) - 1))
                               : barrier;
        mbarrier_complete_tx(*issuer, *issued, lane, mbarrier_at(*issuer, *issued, lane, address, true),
                             map.box_bytes());
        release_incoming(t);
      }
    });
  }
  return ExecStatus::Next;
}

ExecStatus exec_no_op(Warp&, const Instr&, uint32_t) { return ExecStatus::Next; }

// tensormap.replace.tile.<field>: imm[0] field, imm[1] ordinal
enum Field {
  kAddress,
  kRank,
  kBoxDim,
  kGlobalDim,
  kGlobalStride,
  kElementStride,
  kElemType,
  kInterleave,
  kSwizzle,
  kFill
};
ExecStatus exec_replace(Warp& warp, const Instr& instr, uint32_t mask) {
  for (int lane : Lanes(mask)) {
    uint64_t address = warp.address(instr.addr, lane), value = warp.value(instr.op[0], lane);
    TensorMap map;
    for (int i = 0; i < 8; ++i)
      memcpy((uint8_t*)&map + 16 * i, memory_pointer(warp, instr, lane, address + 16 * i, 16, Access::Read), 16);
    if (map.magic != TensorMap::kMagic)
      warp.fail(instr, lane, "the address does not hold a tensor map of this simulator");
    const int ord = (int)instr.imm[1];
    switch (instr.imm[0]) {
      case kAddress: map.address = value; break;
      case kRank: map.rank = (uint8_t)value + 1; break;
      case kBoxDim: map.box[ord] = (uint16_t)value; break;
      case kGlobalDim: map.dims[ord] = value; break;
      case kGlobalStride: map.strides[ord] = value; break;
      case kElementStride:
        if (ord > 0) map.element_strides[ord] = (uint8_t)value;  // ignored in the innermost dimension
        break;
      case kElemType: {
        static const uint8_t order[] = {0, 1, 2, 3, 4, 5, 6, 7, 10, 8, 9, 11, 12};
        map.type = order[std::min<uint64_t>(value, 12)];
        break;
      }
      case kSwizzle: map.swizzle = value == 3 ? 8 : value == 2 ? 4 : value == 1 ? 2 : 0; break;
      case kFill: map.nan_fill = (uint8_t)value; break;
      default: break;
    }
    for (int i = 0; i < 8; ++i)
      memcpy(memory_pointer(warp, instr, lane, address + 16 * i, 16, Access::Write), (uint8_t*)&map + 16 * i, 16);
  }
  return ExecStatus::Next;
}

// tensormap.cp_fenceproxy: copies 128 bytes from shared to global memory.
ExecStatus exec_map_copy(Warp& warp, const Instr& instr, uint32_t mask) {
  if (!warp.converged(kFullMask)) return ExecStatus::Blocked;
  int lane = first_lane(mask);
  Instr shared = instr, global = instr;
  shared.space = Space::Shared;
  global.space = Space::Global;
  for (int i = 0; i < 8; ++i)
    memcpy(memory_pointer(warp, global, lane, warp.address(instr.addr, lane) + 16 * i, 16, Access::Write),
           memory_pointer(warp, shared, lane, warp.address(instr.addr2, lane) + 16 * i, 16, Access::Read), 16);
  return ExecStatus::Next;
}

void decode_tensor_map_edit(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Tma;
  if (a.parts[1] == "cp_fenceproxy") {
    instr.addr = c.address(a.operands[0]);
    instr.addr2 = c.address(a.operands[1]);
    instr.fn = &exec_map_copy;
    return;
  }
  static const char* fields[] = {"global_address", "rank",     "box_dim",           "global_dim",   "global_stride",
                                 "element_stride", "elemtype", "interleave_layout", "swizzle_mode", "fill_mode"};
  instr.imm[0] = -1;
  for (int i = 0; i < 10; ++i)
    if (a.has(fields[i])) instr.imm[0] = i;
  if (a.parts[1] != "replace" || instr.imm[0] < 0) c.unsupported();
  instr.space = a.has("global")                           ? Space::Global
                : a.has("shared::cta") || a.has("shared") ? Space::Shared
                                                          : Space::Generic;
  instr.addr = c.address(a.operands[0]);
  bool ordinal = a.operands.size() == 3;
  if (ordinal) instr.imm[1] = (int64_t)c.immediate(a.operands[1]);
  instr.op[0] = c.source(a.operands.back(), a.parts.back() == "b64" ? 8 : 4);
  instr.fn = &exec_replace;
}

}  // namespace

void decode_tensor_copy(DecodeContext& c, const InstrAst& a, Instr& instr) {
  instr.cls = InstrClass::Tma;
  if (a.has("im2col") || a.has("im2col_no_offs") || a.has("tile::gather4") || a.has("tile::scatter4")) c.unsupported();
  if (a.has("prefetch")) {
    instr.fn = &exec_no_op;
    return;
  }
  size_t global_at = 0, shared_at = 0;
  for (size_t i = 0; i < a.parts.size(); ++i) {
    if (a.parts[i] == "global" && !global_at) global_at = i;
    if (a.parts[i].substr(0, 6) == "shared" && !shared_at) shared_at = i;
  }
  const bool store = global_at < shared_at;
  const OperandAst& tensor = a.operands[store ? 0 : 1];
  const OperandAst& shared = a.operands[store ? 1 : 0];
  if (tensor.kind != OperandAst::Kind::Address || tensor.elements.size() != 2) c.unsupported("tensor operand");
  OperandAst base = tensor;
  base.elements.resize(1);
  instr.addr2 = c.address(base);
  // A kernel parameter named directly is a generic address of the parameter window.
  if (instr.addr2.symbol == SymbolBase::EntryParam && !instr.addr2.base.present)
    instr.addr2.offset += (int64_t)kParamWindow;
  for (auto& e : tensor.elements[1].elements) instr.list.push_back(c.source(e, 4));
  instr.addr = c.address(shared);
  if (store) {
    instr.flags |= kStore;
    if (a.parts[1] == "reduce") {
      instr.flags |= kReduce;
      instr.strong = true;
      AtomicOp op = AtomicOp::Add;
      for (auto p : a.parts) parse_atomic_op(p, op);
      instr.imm[0] = (int64_t)op;
    }
  } else {
    AddressMode barrier = c.address(a.operands[2]);
    if (!barrier.base.present || barrier.offset) c.unsupported("mbarrier address must be a register");
    instr.list2.push_back(barrier.base);
    if (a.has("multicast::cluster")) {
      instr.flags |= kMulticast;
      instr.op[0] = c.any_source(a.operands[3], 2);
    }
  }
  instr.fn = &exec_tensor_copy;
}

void register_tma_ops(OpTable& t) { t["tensormap"] = &decode_tensor_map_edit; }

}  // namespace hunyuan_kernels::simulator
