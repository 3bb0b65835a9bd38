// From router logits to rows of an expert-major batch, with a capacity and random compensation.
//
//   choose   softmax and top-k of each token
//   count    assignments of each expert
//   assign   rank of each assignment within its expert, in choice-major order (all first choices in token order, then
//            all second ones); rank < capacity is kept; dropped ones may be sent to free slots
//
// Ranks come from one pass that chooses and counts and one that assigns over chunks of tokens, with a prefix sum in
// between: threads start twice, memory is linear in T * k, nothing is sorted, and results do not depend on the number
// of threads. The i-th dropped
// assignment goes to the expert of free slot pi(i) (common/permutation.h); since that does not depend on which tokens
// were dropped, the sizes of all groups are known before the assigning pass.
#include "cpu/routing.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/integer_math.h"
#include "cpu/isa/microkernels.h"

namespace hunyuan_kernels::cpu {
namespace {

constexpr int64_t kTokensPerTask = 512;
constexpr int64_t kSlotsPerTask = 2048;

int64_t row_floats(int64_t experts) { return round_up(maximum(1, experts), kRoutingLanes); }
int64_t columns_floats(int64_t experts) { return row_floats(experts) * kRoutingLanes; }

LogitRows some_rows(const LogitRows& logits, int64_t first, int64_t tokens) {
  LogitRows part = logits;
  part.data = static_cast<const char*>(logits.data) + first * logits.stride * element_size(logits.dtype);
  part.tokens = tokens;
  return part;
}

class RowAssignment {
 public:
  RowAssignment(const RoutingSizes& sizes, const RoutingTensors& tensors, const RouterInputs* router,
                const ThreadPool& pool)
      : s(sizes),
        t(tensors),
        router_(router),
        recycles_(router && router->maxima),
        pool_(pool),
        // At least E tokens, so that the counts of a chunk are not more than its assignments.
        chunk_tokens_(maximum(kTokensPerTask, sizes.experts)),
        chunks_(ceil_div(sizes.valid_tokens, chunk_tokens_)),
        counts_(static_cast<size_t>(chunks_ * s.top_k * s.experts)),
        limit_(s.capacity == kNoCapacity ? s.assignments() : s.capacity) {}

  // Assignments of each expert by chunk and choice; then, in their place, the rank of the first one of them.
  void choose_and_count() {
    for_each_chunk([&](int64_t chunk, int64_t first, int64_t last) {
      if (router_) choose(first, last);
      for (int64_t token = first; token < last; ++token)
        for (int64_t j = 0; j < s.top_k; ++j) {
          const int32_t expert = t.expert_ids[token * s.top_k + j];
          if (is_expert(expert)) ++count_of(chunk, j)[expert];
        }
    });
    std::fill(t.demand, t.demand + s.experts, 0);
    for (int64_t j = 0; j < s.top_k; ++j)
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        int32_t* counts = count_of(chunk, j);
        for (int64_t e = 0; e < s.experts; ++e) {
          const int32_t count = counts[e];
          counts[e] = t.demand[e];
          t.demand[e] += count;
        }
      }
  }

  // Group sizes, and with recycling a row for each dropped assignment that gets a slot.
  void lay_out() {
    std::vector<int64_t> kept(s.experts), free_before(s.experts + 1);
    for (int64_t e = 0; e < s.experts; ++e) {
      kept[e] = minimum(t.demand[e], limit_);
      dropped_ += t.demand[e] - kept[e];
      free_before[e + 1] = free_before[e] + limit_ - kept[e];
    }
    std::vector<int32_t> added(s.experts);
    if (recycles_ && dropped_ > 0) {
      recycled_experts_.resize(minimum(dropped_, free_before.back()));
      recycled_rows_.resize(recycled_experts_.size());
      find_free_slots(free_before);
      for (size_t i = 0; i < recycled_experts_.size(); ++i) recycled_rows_[i] = added[recycled_experts_[i]]++;
    }
    t.expert_offsets[0] = 0;
    for (int64_t e = 0; e < s.experts; ++e)
      t.expert_offsets[e + 1] = static_cast<int32_t>(t.expert_offsets[e] + kept[e] + added[e]);
    for (size_t i = 0; i < recycled_rows_.size(); ++i) {
      const int32_t expert = recycled_experts_[i];
      recycled_rows_[i] += static_cast<int32_t>(t.expert_offsets[expert] + kept[expert]);
    }
    *t.num_recycled = static_cast<int32_t>(recycled_rows_.size());
    *t.num_dropped = static_cast<int32_t>(dropped_ - static_cast<int64_t>(recycled_rows_.size()));
  }

  // Rows of the kept assignments; dropped ones get -1 and, k = 1, their turn among the recycled.
  void assign() {
    std::vector<int64_t> dropped_before(chunks_ + 1);
    if (!recycled_rows_.empty()) count_dropped(dropped_before);
    for_each_chunk([&](int64_t chunk, int64_t first, int64_t last) {
      std::vector<int32_t> dropped_tokens;
      for (int64_t j = 0; j < s.top_k; ++j) {
        int32_t* ranks = count_of(chunk, j);
        for (int64_t token = first; token < last; ++token) {
          const int64_t assignment = token * s.top_k + j;
          const int32_t expert = t.expert_ids[assignment];
          t.rows[assignment] = -1;
          if (!is_expert(expert)) continue;
          const int32_t rank = ranks[expert]++;
          if (rank < limit_)
            put(assignment, token, t.expert_offsets[expert] + rank);
          else if (!recycled_rows_.empty())
            dropped_tokens.push_back(static_cast<int32_t>(token));
        }
      }
      if (!recycled_rows_.empty()) send_to_free_slots(dropped_before[chunk], dropped_tokens);
    });
    for (int64_t i = s.valid_tokens * s.top_k; i < s.assignments(); ++i) t.rows[i] = -1;
    std::fill(t.token_ids + t.expert_offsets[s.experts], t.token_ids + s.rows, -1);
  }

 private:
  bool is_expert(int32_t id) const { return static_cast<uint32_t>(id) < static_cast<uint64_t>(s.experts); }
  int32_t* count_of(int64_t chunk, int64_t choice) { return counts_.data() + (chunk * s.top_k + choice) * s.experts; }

  void put(int64_t assignment, int64_t token, int32_t row) {
    t.rows[assignment] = row;
    t.token_ids[row] = static_cast<int32_t>(token);
  }

  template <typename Body>
  void for_each_chunk(Body&& body) {
    parallel_tasks(pool_, chunks_, [&](int64_t chunk, int) {
      const int64_t first = chunk * chunk_tokens_;
      body(chunk, first, minimum(first + chunk_tokens_, s.valid_tokens));
    });
  }

  void choose(int64_t first, int64_t last) {
    std::vector<float> scratch(columns_floats(s.experts));
    microkernels_->choose(some_rows(router_->logits, first, last - first), s.top_k, router_->renormalize,
                          scratch.data(), t.expert_ids + first * s.top_k, t.weights + first * s.top_k,
                          recycles_ ? router_->maxima + first : nullptr, recycles_ ? router_->sums + first : nullptr);
  }

  // recycled_experts_[i]: the expert that owns free slot pi(i); free slots are numbered expert by expert.
  void find_free_slots(const std::vector<int64_t>& free_before) {
    const SlotPermutation permutation = make_slot_permutation(static_cast<uint32_t>(free_before.back()), router_->seed);
    const int64_t count = static_cast<int64_t>(recycled_experts_.size());
    // The owner of the first slot of each run of 2^shift slots: few steps are left to that of any slot.
    int shift = 0;
    while ((free_before.back() >> shift) > 4 * s.experts) ++shift;
    std::vector<int32_t> first_owner((free_before.back() >> shift) + 1);
    for (int64_t run = 0, e = 0; run < static_cast<int64_t>(first_owner.size()); ++run) {
      while (e + 1 < s.experts && free_before[e + 1] <= run << shift) ++e;
      first_owner[run] = static_cast<int32_t>(e);
    }
    parallel_ranges(pool_, count, kSlotsPerTask, [&](int64_t begin, int64_t end, int) {
      std::vector<uint32_t> slots(end - begin);
      microkernels_->permute(permutation, begin, end - begin, slots.data());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t slot = slots[i - begin];
        int32_t owner = first_owner[slot >> shift];
        while (free_before[owner + 1] <= slot) ++owner;
        recycled_experts_[i] = owner;
      }
    });
  }

  void count_dropped(std::vector<int64_t>& dropped_before) {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const int32_t* ranks = count_of(chunk, 0);
      const int32_t* next = chunk + 1 < chunks_ ? count_of(chunk + 1, 0) : t.demand;
      int64_t dropped = 0;
      for (int64_t e = 0; e < s.experts; ++e) dropped += maximum(next[e], limit_) - maximum(ranks[e], limit_);
      dropped_before[chunk + 1] = dropped_before[chunk] + dropped;
    }
  }

  // The dropped tokens of one chunk, numbered from `number` on: expert, weight (that expert's p) and row.
  void send_to_free_slots(int64_t number, const std::vector<int32_t>& tokens) {
    const LogitRows& logits = router_->logits;
    const int64_t recycled = static_cast<int64_t>(recycled_rows_.size());
    const int64_t count = maximum(0, minimum(static_cast<int64_t>(tokens.size()), recycled - number));
    std::vector<float> p(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = tokens[i] * logits.stride + recycled_experts_[number + i];
      const float logit = logits.dtype == DType::bfloat16 ? to_float(static_cast<const bfloat16*>(logits.data)[at])
                                                          : static_cast<const float*>(logits.data)[at];
      p[i] = logit - router_->maxima[tokens[i]];
    }
    microkernels_->exponentials(p.data(), count);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t token = tokens[i];
      t.expert_ids[token] = recycled_experts_[number + i];
      t.weights[token] = p[i] / router_->sums[token];
      put(token, token, recycled_rows_[number + i]);
    }
  }

  const RoutingSizes& s;
  const RoutingTensors& t;
  const RouterInputs* router_;
  const bool recycles_;
  const ThreadPool& pool_;
  const RoutingKernels* microkernels_ = &microkernels().routing;
  const int64_t chunk_tokens_, chunks_;
  std::vector<int32_t> counts_;
  const int64_t limit_;
  int64_t dropped_ = 0;
  std::vector<int32_t> recycled_experts_, recycled_rows_;
};

// Softmax sums of chunks, added in order: the same result for any number of threads.
constexpr int64_t kBalanceTokens = 256;

std::vector<float> demand_fractions(const int32_t* demand, int64_t experts, int64_t tokens) {
  std::vector<float> fractions(experts);
  for (int64_t e = 0; e < experts; ++e)
    fractions[e] = static_cast<float>(static_cast<double>(demand[e]) / static_cast<double>(tokens));
  return fractions;
}

}  // namespace

void assign_rows(const RoutingSizes& sizes, const RoutingTensors& tensors, const RouterInputs* router,
                 const ThreadPool& pool) {
  RowAssignment assignment(sizes, tensors, router, pool);
  assignment.choose_and_count();
  assignment.lay_out();
  assignment.assign();
}

void route_backward(const RouteBackwardArguments& a, const ThreadPool& pool) {
  const RoutingKernels& kernels = microkernels().routing;
  const int64_t row_bytes = a.logits.experts * element_size(a.logits.dtype);
  parallel_ranges(pool, a.logits.tokens, kTokensPerTask, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(row_floats(a.logits.experts));
    for (int64_t token = begin; token < end; ++token) {
      void* grad_logits = static_cast<char*>(a.grad_logits) + token * row_bytes;
      const int64_t at = token * a.top_k;
      if (token < a.valid_tokens)
        kernels.weights_backward(a.logits, token, a.top_k, a.renormalize, a.expert_ids + at, a.weights + at,
                                 a.grad_weights + at, scratch.data(), grad_logits);
      else
        std::memset(grad_logits, 0, row_bytes);
    }
  });
}

float load_balancing_loss(const LogitRows& logits, int64_t valid_tokens, const int32_t* demand,
                          const ThreadPool& pool) {
  if (valid_tokens == 0) return 0.0f;
  const RoutingKernels& kernels = microkernels().routing;
  const std::vector<float> fractions = demand_fractions(demand, logits.experts, valid_tokens);
  std::vector<double> sums(ceil_div(valid_tokens, kBalanceTokens));
  parallel_ranges(pool, valid_tokens, kBalanceTokens, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(columns_floats(logits.experts));
    float of_tokens[kBalanceTokens];
    kernels.balance(some_rows(logits, begin, end - begin), fractions.data(), scratch.data(), of_tokens);
    double sum = 0.0;
    for (int64_t i = 0; i < end - begin; ++i) sum += of_tokens[i];
    sums[begin / kBalanceTokens] = sum;
  });
  double total = 0.0;
  for (double sum : sums) total += sum;
  return static_cast<float>(total * static_cast<double>(logits.experts) / static_cast<double>(valid_tokens));
}

void load_balancing_loss_backward(const LogitRows& logits, int64_t valid_tokens, const int32_t* demand, float grad_loss,
                                  void* grad_logits, const ThreadPool& pool) {
  const RoutingKernels& kernels = microkernels().routing;
  const std::vector<float> fractions = demand_fractions(demand, logits.experts, maximum(1, valid_tokens));
  const float factor = grad_loss * static_cast<float>(logits.experts) / static_cast<float>(maximum(1, valid_tokens));
  const int64_t row_bytes = logits.experts * element_size(logits.dtype);
  parallel_ranges(pool, logits.tokens, kBalanceTokens, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(columns_floats(logits.experts));
    char* rows = static_cast<char*>(grad_logits) + begin * row_bytes;
    const int64_t valid = minimum(maximum(0, valid_tokens - begin), end - begin);
    kernels.balance_backward(some_rows(logits, begin, valid), fractions.data(), factor, scratch.data(), rows);
    std::memset(rows + valid * row_bytes, 0, (end - begin - valid) * row_bytes);
  });
}

}  // namespace hunyuan_kernels::cpu
