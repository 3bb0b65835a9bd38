// route, routing_from_ids, load_balancing_loss. The first two: from logits, or the ids of another router, to rows of an
// expert-major batch.
//
// First phase   ids and weights of every token (softmax and top-k of its logits), and counts [choice, expert] of every
//               chunk of kRoutingChunk tokens.
// Second phase  rank of an assignment within its expert = assignments of earlier choices + of this choice in earlier
//               chunks + in earlier threads of its block. rank < limit is kept, at row offset_e + rank. With recycling
//               (k = 1) dropped assignment i, in token order, goes to the expert of free slot pi(i)
//               (common/permutation.h), at the row behind that expert's kept ones and recycled ones of smaller i.
//
// Shapes    logits [T, E] bf16 or fp32, any row stride, E <= 512; ids, weights, rows [T, k]; a chunk is a block.
// Threads   first phase: a token's experts lie in 1 to 32 neighbouring lanes (tile/expert_lanes.cuh), so that rows are
//           read in whole vectors; then a thread per token. Second phase: a thread per token.
// One launch: routing_cluster_*, T <= 8 * 512: the blocks form one cluster and read each other's counts through
//           distributed shared memory. Otherwise two: routing_choose_* writes the counts to global memory, and
//           routing_assign reads them; it may start before the first has ended (programmatic dependent launch).
// Recycling: how many of the first R numbers i land in each expert must be known to every block (it moves the offsets).
//           The blocks of a cluster evaluate pi for a share of the numbers each, and add up their histograms; for its
//           own first number a block evaluates the part of a share that lies before it. No sort, no atomics in global
//           memory.
// Bounds    ids out of range mean no expert; num_tokens is kept within 0 and T. Results do not depend on the schedule:
//           shared-memory atomics add integers.
// Loss      load_balancing_loss = E / n^2 sum_t sum_e p[t, e] demand[e] over the n tokens that count, p the softmax: a
//           launch leaves an fp64 sum per block, a second one of a single block adds them up, in a fixed order. Its
//           gradient d/dlogit[t, e] = g E / n^2 p[t, e] (demand[e] - sum_f p[t, f] demand[f]) is one launch.
// Limits    the second phase reads the counts of all chunks in every block: quadratic in T beyond some 100,000 tokens.
#include "arch/cluster.cuh"
#include "arch/launch.cuh"
#include "common/permutation.h"
#include "kernels/routing_arguments.h"
#include "tile/expert_lanes.cuh"
#include "tile/rank.cuh"
#include "tile/reduce.cuh"

namespace hunyuan_kernels::kernels {
namespace {

using tile::bfloat16;

__device__ __forceinline__ int32_t counted_tokens(const int32_t* num_tokens, int32_t tokens) {
  return num_tokens ? min(max(*num_tokens, 0), tokens) : tokens;
}

// Power of two of lanes that hold a token's experts, kSlots each.
template <int kSlots>
__device__ __forceinline__ int lanes_for(int experts) {
  int lanes = 1;
  while (lanes * kSlots < experts) lanes *= 2;
  return lanes;
}

// Dynamic shared memory of both phases, in words; host/routing.cpp computes the same size.
struct Shared {
  uint32_t* counts;           // [k][E] of this chunk
  uint32_t* base;             // [k][E] rank of the first assignment of this chunk, choice and expert
  uint32_t* warp_counts;      // [warps][E], and at first [k][E]
  uint32_t* demand;           // [E]
  uint32_t* kept;             // [E]
  uint32_t* offsets;          // [E + 1]
  uint32_t* free_before;      // [E + 1]
  uint32_t* share;            // [E] recycled to each expert by this block's share of the numbers
  uint32_t* recycled_before;  // [E] numbers before this block's first one

  __device__ Shared(uint32_t* words, int top_k, int experts) {
    auto take = [&](int count) {
      uint32_t* place = words;
      words += count;
      return place;
    };
    counts = take(top_k * experts), base = take(top_k * experts);
    warp_counts = take(max(kRoutingChunk / 32, top_k) * experts);
    demand = take(experts), kept = take(experts), offsets = take(experts + 1), free_before = take(experts + 1);
    share = take(experts), recycled_before = take(experts);
  }
};

// ---- first phase ---------------------------------------------------------------------------------------------------

// ids and weights of the chunk's tokens from logits.
template <typename Element, int kSlots>
__device__ __forceinline__ void choose(const RoutingArguments& a, int32_t valid) {
  const int lanes = lanes_for<kSlots>(a.experts), per_pass = kRoutingChunk / lanes;
  tile::ExpertLanes<Element, kSlots> row(a.experts, lanes);
  for (int pass = 0; pass < lanes; ++pass) {
    const int64_t token = int64_t{blockIdx.x} * kRoutingChunk + pass * per_pass + threadIdx.x / lanes;
    const bool counts = token < valid;
    row.load(static_cast<const Element*>(a.logits) + token * a.logits_stride, counts, a.vectors);
    const float maximum = row.maximum(), sum = row.sum_of_exponentials(maximum);
    tile::LargestFirst<Element, kSlots> largest(row);
    float chosen_sum = 0.0f;
    for (int j = 0; j < a.top_k; ++j) {
      float value;
      const int expert = largest.take(value);
      const float p = expf(value - maximum) / sum;
      chosen_sum += p;
      if (token >= a.tokens || row.lane != 0) continue;
      a.expert_ids[token * a.top_k + j] = counts ? expert : -1;
      a.weights[token * a.top_k + j] = counts ? p : 0.0f;
    }
    if (!counts || row.lane != 0) continue;
    if (a.renormalize)
      for (int j = 0; j < a.top_k; ++j) a.weights[token * a.top_k + j] /= chosen_sum;
    if (a.statistics) a.statistics[2 * token] = maximum, a.statistics[2 * token + 1] = sum;
  }
}

// ids and weights as given, those out of range and of padding tokens cleared.
template <typename Id>
__device__ __forceinline__ void take_given(const RoutingArguments& a, int32_t valid) {
  const int64_t first = int64_t{blockIdx.x} * kRoutingChunk * a.top_k;
  const int64_t last = min(first + int64_t{kRoutingChunk} * a.top_k, int64_t{a.tokens} * a.top_k);
  for (int64_t i = first + threadIdx.x; i < last; i += kRoutingChunk) {
    const int64_t id = static_cast<const Id*>(a.given_ids)[i];
    const bool counts = i < int64_t{valid} * a.top_k;
    a.expert_ids[i] = counts && id >= 0 && id < a.experts ? static_cast<int32_t>(id) : -1;
    a.weights[i] = counts ? a.given_weights[i] : 0.0f;
  }
}

// counts[k][E] of this chunk, from the ids that the block has written. The counts are complete at the next barrier.
__device__ __forceinline__ void count_chunk(const RoutingArguments& a, uint32_t* counts) {
  for (int i = threadIdx.x; i < a.top_k * a.experts; i += kRoutingChunk) counts[i] = 0;
  __syncthreads();
  const int64_t token = int64_t{blockIdx.x} * kRoutingChunk + threadIdx.x;
  for (int j = 0; token < a.tokens && j < a.top_k; ++j)
    if (const int32_t expert = a.expert_ids[token * a.top_k + j]; expert >= 0)
      atomicAdd(counts + j * a.experts + expert, 1u);
}

// ---- second phase --------------------------------------------------------------------------------------------------

// The expert whose free slots include `slot`: the last e with free_before[e] <= slot and a free slot.
__device__ __forceinline__ int owner_of(uint32_t slot, const uint32_t* free_before, int experts) {
  int low = 0, high = experts;  // free_before[low] <= slot < free_before[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (free_before[middle] <= slot)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Counts the owners of the numbers first .. last - 1 into histogram[E].
__device__ __forceinline__ void count_owners(const SlotPermutation& permutation, uint32_t first, uint32_t last,
                                             const uint32_t* free_before, int experts, uint32_t* histogram) {
  for (uint32_t i = first + threadIdx.x; i < last; i += kRoutingChunk)
    atomicAdd(histogram + owner_of(permuted_slot(permutation, i), free_before, experts), 1u);
}

// p of an expert, from the softmax statistics of the first phase.
__device__ __forceinline__ float probability(const RoutingArguments& a, int64_t token, int expert) {
  const int64_t at = token * a.logits_stride + expert;
  const float logit = a.bfloat16_logits ? tile::load_float(static_cast<const bfloat16*>(a.logits) + at)
                                        : tile::load_float(static_cast<const float*>(a.logits) + at);
  return expf(logit - a.statistics[2 * token]) / a.statistics[2 * token + 1];
}

// Calls read(chunk, index) for counts of any chunk, index in [k][E]. True: blocks have read each other's share. Given
// ids have no probabilities, so nothing is recycled: kFromLogits = false leaves that part out.
template <bool kFromLogits, typename Read>
__device__ __forceinline__ bool assign(const RoutingArguments& a, const Shared& s, int32_t valid, Read&& read) {
  __shared__ SlotPermutation permutation;
  __shared__ uint32_t warp_sums[kRoutingChunk / 32];
  __shared__ uint32_t dropped_before_chunk, dropped_in_all;
  const int thread = threadIdx.x, experts = a.experts, pairs = a.top_k * experts;

  for (int i = thread; i < pairs; i += kRoutingChunk) {
    uint32_t before = 0, total = 0;
    for (int chunk = 0; chunk < a.chunks; ++chunk) {
      if (chunk == static_cast<int>(blockIdx.x)) before = total;
      total += read(chunk, i);
    }
    if (static_cast<int>(blockIdx.x) >= a.chunks) before = total;
    s.base[i] = before;
    s.warp_counts[i] = total;  // [k][E] for now
  }
  if (thread == 0) dropped_before_chunk = dropped_in_all = 0;
  __syncthreads();
  for (int e = thread; e < experts; e += kRoutingChunk) {
    uint32_t demand = 0;
    for (int j = 0; j < a.top_k; ++j) {
      s.base[j * experts + e] += demand;
      demand += s.warp_counts[j * experts + e];
    }
    s.demand[e] = demand;
    s.kept[e] = min(demand, a.limit);
    s.free_before[e] = a.seed ? a.limit - s.kept[e] : 0;
    s.offsets[e] = s.kept[e];
    s.share[e] = s.recycled_before[e] = 0;
    if (demand > a.limit) atomicAdd(&dropped_in_all, demand - a.limit);
    if (s.base[e] > a.limit) atomicAdd(&dropped_before_chunk, s.base[e] - a.limit);  // k = 1 when it is used
  }
  __syncthreads();

  // Where the recycled ones go.
  uint32_t recycled = 0;
  if constexpr (kFromLogits) {
    if (thread < 32) tile::exclusive_sums(s.free_before, experts);
    __syncthreads();
    recycled = min(dropped_in_all, s.free_before[experts]);
  }
  const uint32_t first_number = min(dropped_before_chunk, recycled);
  if (recycled > 0) {  // the same in every block
    if (thread == 0) permutation = make_slot_permutation(s.free_before[experts], static_cast<uint64_t>(*a.seed));
    __syncthreads();
    const uint32_t blocks = arch::cluster_size(), share = (recycled + blocks - 1) / blocks;
    const uint32_t mine = min(arch::cluster_rank() * share, recycled);
    count_owners(permutation, mine, min(mine + share, recycled), s.free_before, experts, s.share);
    const uint32_t whole_shares = first_number / share;
    count_owners(permutation, whole_shares * share, first_number, s.free_before, experts, s.recycled_before);
    arch::cluster_arrive();
    arch::cluster_wait();
    for (int e = thread; e < experts; e += kRoutingChunk) {
      uint32_t before = 0, all = 0;
      for (uint32_t rank = 0; rank < blocks; ++rank) {
        const uint32_t there = arch::load_cluster(arch::map_to_rank(s.share + e, rank));
        all += there;
        if (rank < whole_shares) before += there;
      }
      s.recycled_before[e] += before;
      s.offsets[e] += all;
    }
    __syncthreads();
  }
  if (thread < 32) tile::exclusive_sums(s.offsets, experts);
  __syncthreads();

  if (blockIdx.x == 0) {
    for (int e = thread; e <= experts; e += kRoutingChunk) a.expert_offsets[e] = s.offsets[e];
    for (int e = thread; e < experts; e += kRoutingChunk) a.demand[e] = s.demand[e];
    if (thread == 0) *a.num_recycled = recycled, *a.num_dropped = dropped_in_all - recycled;
  }
  for (int64_t row = s.offsets[experts] + int64_t{blockIdx.x} * kRoutingChunk + thread; row < a.rows_bound;
       row += int64_t{gridDim.x} * kRoutingChunk)
    a.token_ids[row] = -1;

  const int64_t token = int64_t{blockIdx.x} * kRoutingChunk + thread;
  const bool exists = token < a.tokens;
  bool dropped = false;
  for (int j = 0; j < a.top_k; ++j) {
    const int64_t assignment = token * a.top_k + j;
    const int32_t expert = exists && token < valid ? a.expert_ids[assignment] : -1;
    if (j > 0) __syncthreads();  // until the ranks of the choice before are read
    const uint32_t in_block = tile::rank_in_block(expert, s.warp_counts, experts);
    int32_t row = -1;
    if (expert >= 0) {
      const uint32_t rank = s.base[j * experts + expert] + in_block;
      dropped = rank >= a.limit;
      if (!dropped) {
        row = static_cast<int32_t>(s.offsets[expert] + rank);
        a.token_ids[row] = static_cast<int32_t>(token);
      }
    }
    if (exists) a.rows[assignment] = row;
  }
  if (recycled == 0) return false;

  // k = 1: the dropped ones, numbered in token order, to their free slots.
  const uint32_t lanes = arch::ballot(dropped);
  if (thread % 32 == 0) warp_sums[thread / 32] = __popc(lanes);
  __syncthreads();
  uint32_t number = dropped_before_chunk + __popc(lanes & arch::lanes_before());
  for (int warp = 0; warp < thread / 32; ++warp) number += warp_sums[warp];
  const bool finds_slot = dropped && number < recycled;
  const int32_t expert = finds_slot ? owner_of(permuted_slot(permutation, number), s.free_before, experts) : -1;
  const uint32_t in_block = tile::rank_in_block(expert, s.warp_counts, experts);
  if (finds_slot) {
    const auto row = static_cast<int32_t>(s.offsets[expert] + s.kept[expert] + s.recycled_before[expert] + in_block);
    a.expert_ids[token] = expert;
    a.weights[token] = probability(a, token, expert);
    a.rows[token] = row;
    a.token_ids[row] = static_cast<int32_t>(token);
  }
  return true;
}

// ---- backward ------------------------------------------------------------------------------------------------------

// Raw weights w_j = p[id_j]: d/dlogit_e = sum_j g_j w_j [id_j = e] - p_e sum_j g_j w_j. Renormalized ones are the
// softmax over the chosen logits alone: w_j in the place of p_e.
template <typename Element, int kSlots>
__device__ __forceinline__ void route_backward(const RouteBackwardArguments& a) {
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int lanes = lanes_for<kSlots>(a.experts);
  const int64_t token = int64_t{blockIdx.x} * (kRoutingBackwardThreads / lanes) + threadIdx.x / lanes;
  const bool counts = token < counted_tokens(a.num_tokens, a.tokens);
  tile::ExpertLanes<Element, kSlots> row(a.experts, lanes);
  row.load(static_cast<const Element*>(a.logits) + token * a.logits_stride, counts, a.vectors);
  const float maximum = row.maximum(), sum = row.sum_of_exponentials(maximum);
  const int64_t first = token * a.top_k;
  float dot = 0.0f;
  for (int j = 0; counts && j < a.top_k; ++j) dot += a.grad_weights[first + j] * a.weights[first + j];
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot)
    row.value[slot] = dot * (a.renormalize || !counts ? 0.0f : -expf(row.value[slot] - maximum) / sum);
  for (int j = 0; counts && j < a.top_k; ++j) {
    const int expert = a.expert_ids[first + j];
    const float w = a.weights[first + j], g = a.grad_weights[first + j];
    const float gradient = a.renormalize ? w * (g - dot) : w * g;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      if (row.expert(slot) == expert) row.value[slot] += gradient;
  }
  if (token < a.tokens) row.store(static_cast<Element*>(a.grad_logits) + token * a.experts, a.vectors);
}

// ---- load-balancing loss -------------------------------------------------------------------------------------------

// f(token, row, dot) for each token of this block's passes, by all lanes; `row` holds its probabilities, not yet
// divided by their sum, and dot = sum_e p[e] demand[e].
template <typename Element, int kSlots, typename F>
__device__ __forceinline__ void for_each_balance(const LoadBalancingLossArguments& a, int32_t valid, F&& f) {
  const int lanes = lanes_for<kSlots>(a.experts), per_pass = kLossThreads / lanes;
  tile::ExpertLanes<Element, kSlots> row(a.experts, lanes);
  float demand[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot)
    demand[slot] = row.expert(slot) < a.experts ? static_cast<float>(a.demand[row.expert(slot)]) : 0.0f;
  for (int pass = 0; pass < kLossPasses; ++pass) {
    const int64_t token = (int64_t{blockIdx.x} * kLossPasses + pass) * per_pass + threadIdx.x / lanes;
    row.load(static_cast<const Element*>(a.logits) + token * a.logits_stride, token < valid, a.vectors);
    const float maximum = row.maximum(), sum = row.sum_of_exponentials(maximum);
    float dot = 0.0f;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      row.value[slot] = __fdiv_rn(expf(row.value[slot] - maximum), sum);
      dot = fmaf(row.value[slot], demand[slot], dot);
    }
    f(token, row, demand, row.group_sum(dot));
  }
}

template <typename Element, int kSlots>
__device__ __forceinline__ void loss(const LoadBalancingLossArguments& a) {
  __shared__ double scratch[kLossThreads / 32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int32_t valid = counted_tokens(a.num_tokens, a.tokens);
  double sum = 0.0;
  for_each_balance<Element, kSlots>(a, valid, [&](int64_t token, const auto& row, const float (&)[kSlots], float dot) {
    if (row.lane == 0 && token < valid) sum += dot;
  });
  sum = tile::block_sum(sum, scratch);
  if (threadIdx.x == 0) a.partial_sums[blockIdx.x] = sum;
}

template <typename Element, int kSlots>
__device__ __forceinline__ void loss_backward(const LoadBalancingLossArguments& a) {
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int32_t valid = counted_tokens(a.num_tokens, a.tokens);
  const float n = static_cast<float>(max(valid, 1)), factor = *a.grad_loss * static_cast<float>(a.experts) / n / n;
  for_each_balance<Element, kSlots>(a, valid, [&](int64_t token, auto& row, const float (&demand)[kSlots], float dot) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot)
      row.value[slot] = token < valid ? factor * row.value[slot] * (demand[slot] - dot) : 0.0f;
    if (token < a.tokens) row.store(static_cast<Element*>(a.grad_logits) + token * a.experts, a.vectors);
  });
}

// ---- kernels -------------------------------------------------------------------------------------------------------

extern __shared__ uint32_t shared_words[];

template <typename FirstPhase>
__device__ __forceinline__ void choose_and_count(const RoutingArguments& a, FirstPhase&& first_phase) {
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  first_phase(a, counted_tokens(a.num_tokens, a.tokens));
  const Shared s(shared_words, a.top_k, a.experts);
  count_chunk(a, s.counts);
  __syncthreads();
  const int pairs = a.top_k * a.experts;
  for (int i = threadIdx.x; i < pairs; i += kRoutingChunk) a.counts[int64_t{blockIdx.x} * pairs + i] = s.counts[i];
}

template <bool kFromLogits, typename FirstPhase>
__device__ __forceinline__ void route_in_one_cluster(const RoutingArguments& a, FirstPhase&& first_phase) {
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const int32_t valid = counted_tokens(a.num_tokens, a.tokens);
  first_phase(a, valid);
  const Shared s(shared_words, a.top_k, a.experts);
  count_chunk(a, s.counts);
  arch::cluster_arrive();
  arch::cluster_wait();
  assign<kFromLogits>(a, s, valid,
                      [&](int chunk, int i) { return arch::load_cluster(arch::map_to_rank(s.counts + i, chunk)); });
  arch::cluster_arrive();  // the others may still be reading this block's shared memory
  arch::cluster_wait();
}

}  // namespace

#define HK_FIRST_PHASES(suffix, from_logits, phase)                          \
  extern "C" __global__ void __launch_bounds__(kRoutingChunk, 1)             \
      routing_choose_##suffix(const __grid_constant__ RoutingArguments a) {  \
    choose_and_count(a, phase);                                              \
  }                                                                          \
  extern "C" __global__ void __launch_bounds__(kRoutingChunk, 1)             \
      routing_cluster_##suffix(const __grid_constant__ RoutingArguments a) { \
    route_in_one_cluster<from_logits>(a, phase);                             \
  }
HK_FIRST_PHASES(int32, false, take_given<int32_t>)
HK_FIRST_PHASES(int64, false, take_given<int64_t>)
#define HK_KERNELS(suffix, Element, slots)                                                             \
  HK_FIRST_PHASES(suffix##_##slots, true, (choose<Element, slots>))                                    \
  extern "C" __global__ void __launch_bounds__(kRoutingBackwardThreads)                                \
      routing_backward_##suffix##_##slots(const __grid_constant__ RouteBackwardArguments a) {          \
    route_backward<Element, slots>(a);                                                                 \
  }                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kLossThreads)                                           \
      routing_loss_##suffix##_##slots(const __grid_constant__ LoadBalancingLossArguments a) {          \
    loss<Element, slots>(a);                                                                           \
  }                                                                                                    \
  extern "C" __global__ void __launch_bounds__(kLossThreads)                                           \
      routing_loss_backward_##suffix##_##slots(const __grid_constant__ LoadBalancingLossArguments a) { \
    loss_backward<Element, slots>(a);                                                                  \
  }
HK_KERNELS(float32, float, 4)
HK_KERNELS(float32, float, 8)
HK_KERNELS(float32, float, 16)
HK_KERNELS(bfloat16, bfloat16, 4)
HK_KERNELS(bfloat16, bfloat16, 8)
HK_KERNELS(bfloat16, bfloat16, 16)
#undef HK_KERNELS
#undef HK_FIRST_PHASES

extern "C" __global__ void __launch_bounds__(kLossThreads)
    routing_loss_sum(const __grid_constant__ LoadBalancingLossArguments a) {
  __shared__ double scratch[kLossThreads / 32];
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  double sum = 0.0;
  for (int i = threadIdx.x; i < a.blocks; i += kLossThreads) sum += a.partial_sums[i];
  sum = tile::block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  const double n = counted_tokens(a.num_tokens, a.tokens);
  *a.loss = n > 0.0 ? static_cast<float>(sum * a.experts / (n * n)) : 0.0f;
}

extern "C" __global__ void __launch_bounds__(kRoutingChunk, 1)
    routing_assign(const __grid_constant__ RoutingArguments a) {
  arch::wait_for_previous_launch();
  arch::allow_next_launch();
  const Shared s(shared_words, a.top_k, a.experts);
  const int64_t pairs = int64_t{a.top_k} * a.experts;
  const bool shares_are_read = assign<true>(a, s, counted_tokens(a.num_tokens, a.tokens), [&](int chunk, int i) {
    return arch::load_relaxed(a.counts + chunk * pairs + i);
  });
  if (!shares_are_read) return;
  arch::cluster_arrive();  // as above
  arch::cluster_wait();
}

}  // namespace hunyuan_kernels::kernels
