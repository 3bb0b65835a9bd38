// Softmax, top-k and the permutation of the router.
//
// Kernels work on kFloats tokens at a time, one in each lane: their logits are transposed into an [experts][kFloats]
// buffer, after which all steps are vertical. The j-th choice is the largest logit behind the one before it in the
// order (larger value, then lower expert), so nothing has to be marked as taken.

// columns[e][lane] = logit e of token first + lane, with room for round_up(experts, kFloats) experts; spare lanes
// repeat the first token.
template <typename Element>
HK_INLINE void load_columns_of(const LogitRows& logits, int64_t first, int lanes, float* columns) {
  const Element* data = static_cast<const Element*>(logits.data);
  for (int64_t e = 0; e < logits.experts; e += kFloats) {
    const int experts = static_cast<int>(minimum(kFloats, logits.experts - e));
    Floats tile[kFloats];
    HK_UNROLL
    for (int lane = 0; lane < kFloats; ++lane)
      tile[lane] = load_lanes(data + (first + (lane < lanes ? lane : 0)) * logits.stride + e, experts);
    transpose(tile);
    HK_UNROLL
    for (int i = 0; i < kFloats; ++i) store(columns + (e + i) * kFloats, tile[i]);
  }
}

HK_INLINE void load_columns(const LogitRows& logits, int64_t first, int lanes, float* columns) {
  if (logits.dtype == DType::bfloat16)
    load_columns_of<bfloat16>(logits, first, lanes, columns);
  else
    load_columns_of<float>(logits, first, lanes, columns);
}

template <typename Element>
HK_INLINE void store_columns_of(float* columns, int64_t experts, int64_t first, int lanes, Element* rows) {
  for (int64_t e = 0; e < experts; e += kFloats) {
    const int n = static_cast<int>(minimum(kFloats, experts - e));
    Floats tile[kFloats];
    HK_UNROLL
    for (int i = 0; i < kFloats; ++i) tile[i] = load(columns + (e + i) * kFloats);
    transpose(tile);
    for (int lane = 0; lane < lanes; ++lane) store_lanes(rows + (first + lane) * experts + e, tile[lane], n);
  }
}

// The largest logit of each lane. As torch's softmax: a NaN, +inf or nothing but -inf in a row makes its sum of
// exponentials NaN, and so its weights.
HK_INLINE Floats largest_of(const float* columns, int64_t experts) {
  Floats largest = splat(-__builtin_inff());
  for (int64_t e = 0; e < experts; ++e) largest = max_of(load(columns + e * kFloats), largest);
  return largest;
}

// The largest logit of each lane behind (previous, previous_id) in the order of the choices.
HK_INLINE Ints next_choice(const float* columns, int64_t experts, Floats& previous, Ints previous_id) {
  const Floats lowest = splat(-__builtin_inff());
  Floats best = lowest;
  Ints best_id = Ints{} - 1;
  for (int64_t e = 0; e < experts; ++e) {
    Floats v = load(columns + e * kFloats);
    v = select(v == v, v, lowest);
    const Ints id = Ints{} + static_cast<int32_t>(e);
    const Ints behind = (v < previous) | ((v == previous) & (id > previous_id));
    const Ints better = behind & ((v > best) | (best_id < 0));
    best = select(better, v, best);
    best_id = (Ints)select(better, (Words)id, (Words)best_id);
  }
  previous = best;
  return best_id;
}

void choose(const LogitRows& logits, int64_t top_k, bool renormalize, float* columns, int32_t* ids, float* weights,
            float* maxima, float* sums) {
  const int64_t experts = logits.experts;
  for (int64_t first = 0; first < logits.tokens; first += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, logits.tokens - first));
    load_columns(logits, first, lanes, columns);
    const Floats largest = largest_of(columns, experts);
    Floats sum{};
    for (int64_t e = 0; e < experts; ++e) sum += exp_of(load(columns + e * kFloats) - largest);

    // The first choice is the lowest expert with the largest logit, or expert 0 when none is above minus infinity.
    Floats previous = largest, chosen_sum{};
    Ints id{};
    const Ints any = largest > -__builtin_inff();
    for (int64_t e = experts - 1; e >= 0; --e)
      id =
          (Ints)select(any & (load(columns + e * kFloats) == largest), splat_bits(static_cast<uint32_t>(e)), (Words)id);
    for (int64_t j = 0; j < top_k; ++j) {
      if (j > 0) id = next_choice(columns, experts, previous, id);
      const Floats p = exp_of(previous - largest) / sum;
      chosen_sum += p;
      if (top_k == 1 && lanes == kFloats) {
        store_as(ids + first, id);
        store(weights + first, p);
        continue;
      }
      int32_t id_lanes[kFloats];
      store_as(id_lanes, id);
      float lane_values[kFloats];
      store(lane_values, p);
      for (int lane = 0; lane < lanes; ++lane) {
        ids[(first + lane) * top_k + j] = id_lanes[lane];
        weights[(first + lane) * top_k + j] = lane_values[lane];
      }
    }
    float lane_values[kFloats];
    if (renormalize) {
      store(lane_values, chosen_sum);
      for (int lane = 0; lane < lanes; ++lane)
        for (int64_t j = 0; j < top_k; ++j) weights[(first + lane) * top_k + j] /= lane_values[lane];
    }
    if (!maxima) continue;
    store(lane_values, largest);
    __builtin_memcpy(maxima + first, lane_values, lanes * sizeof(float));
    store(lane_values, sum);
    __builtin_memcpy(sums + first, lane_values, lanes * sizeof(float));
  }
}

void exponentials(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, n - i));
    store_lanes(x + i, exp_of(load_lanes(x + i, lanes)), lanes);
  }
}

// The walks of a block go on together: after each pass, those that ended outside the permutation's numbers are listed
// anew, so that no lane waits for the longest walk of its vector.
void permute(const SlotPermutation& permutation, int64_t begin, int64_t count, uint32_t* out) {
  constexpr int kBlock = 256;
  Words lane_numbers;
  for (int lane = 0; lane < kFloats; ++lane) lane_numbers[lane] = static_cast<uint32_t>(lane);
  for (int64_t start = 0; start < count; start += kBlock) {
    const int size = static_cast<int>(minimum(kBlock, count - start));
    uint32_t x[kBlock], numbers[kBlock] = {};
    int outside[kBlock], walking = 0;
    for (int i = 0; i < size; i += kFloats)
      store_as(x + i, permute_bits(permutation, lane_numbers + static_cast<uint32_t>(begin + start + i)));
    for (int i = 0; i < size; ++i) {
      outside[walking] = i;
      walking += x[i] >= permutation.size;
    }
    while (walking > 0) {
      for (int i = 0; i < walking; ++i) numbers[i] = x[outside[i]];
      for (int i = 0; i < walking; i += kFloats)
        store_as(numbers + i, permute_bits(permutation, load_as<Words>(numbers + i)));
      const int walked = walking;
      walking = 0;
      for (int i = 0; i < walked; ++i) {
        const int at = outside[i];
        x[at] = numbers[i];
        outside[walking] = at;
        walking += numbers[i] >= permutation.size;
      }
    }
    __builtin_memcpy(out + start, x, size * sizeof(uint32_t));
  }
}

// p[e] = softmax(logits of one token)[e]
template <typename Element>
HK_INLINE void softmax_row(const LogitRows& logits, int64_t token, float* p) {
  const Element* row = static_cast<const Element*>(logits.data) + token * logits.stride;
  float largest = -__builtin_inff(), sum = 0.0f;
  for (int64_t e = 0; e < logits.experts; e += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, logits.experts - e));
    store_lanes(p + e, load_lanes(row + e, lanes), lanes);
  }
  for (int64_t e = 0; e < logits.experts; ++e) largest = p[e] > largest ? p[e] : largest;
  for (int64_t e = 0; e < logits.experts; e += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, logits.experts - e));
    store_lanes(p + e, exp_of(load_lanes(p + e, lanes) - largest), lanes);
  }
  for (int64_t e = 0; e < logits.experts; ++e) sum += p[e];
  for (int64_t e = 0; e < logits.experts; ++e) p[e] /= sum;
}

HK_INLINE void softmax_row(const LogitRows& logits, int64_t token, float* p) {
  if (logits.dtype == DType::bfloat16)
    softmax_row<bfloat16>(logits, token, p);
  else
    softmax_row<float>(logits, token, p);
}

// out[e] = x[e] in the dtype of the logits
HK_INLINE void store_row(const float* x, const LogitRows& logits, void* out) {
  for (int64_t e = 0; e < logits.experts; e += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, logits.experts - e));
    const Floats v = load_lanes(x + e, lanes);
    if (logits.dtype == DType::bfloat16)
      store_lanes(static_cast<bfloat16*>(out) + e, v, lanes);
    else
      store_lanes(static_cast<float*>(out) + e, v, lanes);
  }
}

// Raw weights w_j = p[id_j]: d/dlogit_e = sum_j g_j w_j [id_j = e] - p_e sum_j g_j w_j. Renormalized ones are the
// softmax over the chosen logits alone: w_j in the place of p_e.
void weights_backward(const LogitRows& logits, int64_t token, int64_t top_k, bool renormalize, const int32_t* ids,
                      const float* weights, const float* grad_weights, float* p, void* grad_logits) {
  float dot = 0.0f;
  for (int64_t j = 0; j < top_k; ++j) dot += grad_weights[j] * weights[j];
  if (renormalize) {
    for (int64_t e = 0; e < logits.experts; ++e) p[e] = 0.0f * dot;  // NaN weights make the whole row NaN
    for (int64_t j = 0; j < top_k; ++j) p[ids[j]] = weights[j] * (grad_weights[j] - dot);
  } else {
    softmax_row(logits, token, p);
    for (int64_t e = 0; e < logits.experts; ++e) p[e] *= -dot;
    for (int64_t j = 0; j < top_k; ++j) p[ids[j]] += grad_weights[j] * weights[j];
  }
  store_row(p, logits, grad_logits);
}

// Exponentials in the place of the logits; their sum, and that of their products with the fractions.
HK_INLINE void balance_columns(float* columns, int64_t experts, const float* fractions, Floats& sum, Floats& dot) {
  const Floats largest = largest_of(columns, experts);
  sum = dot = Floats{};
  for (int64_t e = 0; e < experts; ++e) {
    const Floats p = exp_of(load(columns + e * kFloats) - largest);
    store(columns + e * kFloats, p);
    sum += p;
    dot += p * fractions[e];
  }
}

void balance(const LogitRows& logits, const float* fractions, float* columns, float* out) {
  for (int64_t first = 0; first < logits.tokens; first += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, logits.tokens - first));
    load_columns(logits, first, lanes, columns);
    Floats sum, dot;
    balance_columns(columns, logits.experts, fractions, sum, dot);
    store_lanes(out + first, dot / sum, lanes);
  }
}

void balance_backward(const LogitRows& logits, const float* fractions, float factor, float* columns,
                      void* grad_logits) {
  for (int64_t first = 0; first < logits.tokens; first += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, logits.tokens - first));
    load_columns(logits, first, lanes, columns);
    Floats sum, dot;
    balance_columns(columns, logits.experts, fractions, sum, dot);
    const Floats mean = dot / sum, scale = factor / sum;
    for (int64_t e = 0; e < logits.experts; ++e)
      store(columns + e * kFloats, load(columns + e * kFloats) * scale * (fractions[e] - mean));
    if (logits.dtype == DType::bfloat16)
      store_columns_of(columns, logits.experts, first, lanes, static_cast<bfloat16*>(grad_logits));
    else
      store_columns_of(columns, logits.experts, first, lanes, static_cast<float*>(grad_logits));
  }
}

constexpr RoutingKernels routing_kernels = {choose, exponentials, permute, weights_backward, balance, balance_backward};
