// Softmax, top-k and the permutation of the router.
//
// choose() works on kFloats tokens at a time, one in each lane: their logits are copied expert by expert into a
// [experts][kFloats] buffer, after which all steps are vertical. The j-th choice is the largest logit behind the one
// before it in the order (larger value, then lower expert), so nothing has to be marked as taken.

template <typename Element>
HK_INLINE float logit_at(const LogitRows& logits, int64_t token, int64_t expert) {
  Element value = static_cast<const Element*>(logits.data)[token * logits.stride + expert];
  if constexpr (sizeof(Element) == sizeof(bfloat16))
    return to_float(value);
  else
    return value;
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

template <typename Element>
void choose_of(const LogitRows& logits, int64_t top_k, bool renormalize, float* columns, int32_t* ids, float* weights,
               float* maxima, float* sums) {
  const int64_t experts = logits.experts;
  for (int64_t first = 0; first < logits.tokens; first += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, logits.tokens - first));
    for (int lane = 0; lane < kFloats; ++lane) {
      const int64_t token = first + (lane < lanes ? lane : 0);  // spare lanes repeat the first token
      for (int64_t e = 0; e < experts; ++e) columns[e * kFloats + lane] = logit_at<Element>(logits, token, e);
    }
    // As torch's softmax: a NaN, +inf or nothing but -inf in a row makes its sum NaN, and so its weights.
    Floats largest = splat(-__builtin_inff()), sum{};
    for (int64_t e = 0; e < experts; ++e) largest = max_of(load(columns + e * kFloats), largest);
    for (int64_t e = 0; e < experts; ++e) sum += exp_of(load(columns + e * kFloats) - largest);

    Floats previous = splat(__builtin_inff()), chosen_sum{};
    Ints id = Ints{} - 1;
    for (int64_t j = 0; j < top_k; ++j) {
      id = next_choice(columns, experts, previous, id);
      int32_t id_lanes[kFloats];
      store_as(id_lanes, id);
      float lane_values[kFloats];
      for (int lane = 0; lane < kFloats; ++lane) lane_values[lane] = columns[id_lanes[lane] * kFloats + lane];
      const Floats p = exp_of(load(lane_values) - largest) / sum;
      chosen_sum += p;
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

void choose(const LogitRows& logits, int64_t top_k, bool renormalize, float* scratch, int32_t* ids, float* weights,
            float* maxima, float* sums) {
  if (logits.dtype == DType::bfloat16)
    choose_of<bfloat16>(logits, top_k, renormalize, scratch, ids, weights, maxima, sums);
  else
    choose_of<float>(logits, top_k, renormalize, scratch, ids, weights, maxima, sums);
}

void exponentials(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, n - i));
    store_lanes(x + i, exp_of(load_lanes(x + i, lanes)), lanes);
  }
}

void permute(const SlotPermutation& permutation, int64_t begin, int64_t count, uint32_t* out) {
  Words lane_numbers;
  for (int lane = 0; lane < kFloats; ++lane) lane_numbers[lane] = static_cast<uint32_t>(lane);
  for (int64_t i = 0; i < count; i += kFloats) {
    const int lanes = static_cast<int>(minimum(kFloats, count - i));
    Words x = lane_numbers + static_cast<uint32_t>(begin + i);
    x = select((Ints)(x < permutation.size), x, Words{});  // spare lanes must end their walk, too
    x = permute_bits(permutation, x);
    for (;;) {
      const Ints outside = (Ints)(x >= permutation.size);
      int32_t outside_lanes[kFloats], any = 0;
      store_as(outside_lanes, outside);
      for (int lane = 0; lane < kFloats; ++lane) any |= outside_lanes[lane];
      if (!any) break;
      x = select(outside, permute_bits(permutation, x), x);
    }
    uint32_t numbers[kFloats];
    store_as(numbers, x);
    __builtin_memcpy(out + i, numbers, lanes * sizeof(uint32_t));
  }
}

// p[e] = softmax(logits of one token)[e]
template <typename Element>
HK_INLINE void softmax_row(const LogitRows& logits, int64_t token, float* p) {
  float largest = -__builtin_inff(), sum = 0.0f;
  for (int64_t e = 0; e < logits.experts; ++e) {
    p[e] = logit_at<Element>(logits, token, e);
    largest = p[e] > largest ? p[e] : largest;
  }
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

float balance(const LogitRows& logits, int64_t token, const float* fractions, float* p) {
  softmax_row(logits, token, p);
  float sum = 0.0f;
  for (int64_t e = 0; e < logits.experts; ++e) sum += p[e] * fractions[e];
  return sum;
}

void balance_backward(const LogitRows& logits, int64_t token, const float* fractions, float factor, float* p,
                      void* grad_logits) {
  const float mean = balance(logits, token, fractions, p);
  for (int64_t e = 0; e < logits.experts; ++e) p[e] *= factor * (fractions[e] - mean);
  store_row(p, logits, grad_logits);
}

constexpr RoutingKernels routing_kernels = {choose, exponentials, permute, weights_backward, balance, balance_backward};
