// One training step of a sparse autoencoder on rows of activations: its losses and their gradients, on a CPU.
//
// The encoder is dense. Everything after it (the reconstruction and all gradients) touches active latents only, of
// which there are few, so that a step costs little more than the encoder's matrix product. Written with vector types
// that every compiler maps to what the machine has. CHANNELS and LATENTS are set when this is compiled.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;  // floats of one vector
constexpr int TILE = 64;   // latents whose pre-activations are computed together,
constexpr int GROUP = 6;   // for so many rows: 24 sums and 4 weights fit 32 registers
constexpr int BLOCK = 48;  // rows whose pre-activations stay in the cache

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int C = CHANNELS, CP = round_up(C, LANES);
constexpr int F = LATENTS, FP = round_up(F, TILE);

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector vector) { *reinterpret_cast<Unaligned*>(to) = vector; }
inline void add(float* to, Vector vector) { store(to, load(to) + vector); }

inline float sum(Vector vector) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(vector));
#else
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += vector[lane];
  return total;
#endif
}

// What all threads read: weights laid out for them.
struct Weights {
  std::vector<float> encoder;       // FP/TILE x C x TILE
  std::vector<float> encoder_bias;  // FP; latents that only fill up a tile never fire
  std::vector<float> decoder;       // F x CP
  std::vector<float> decoder_bias;  // CP
  std::vector<float> norms;         // F
};

// What each thread adds up.
struct Sums {
  std::vector<float> encoder, decoder;  // F x CP
  std::vector<float> encoder_bias, norms;
  std::vector<float> decoder_bias;
  std::vector<int64_t> fired;
  std::vector<double> products;  // with a knee: of 1 + size / knee, whose logarithm is the penalty
  double squares = 0, penalties = 0;

  Sums()
      : encoder(F * CP), decoder(F * CP), encoder_bias(F), norms(F), decoder_bias(CP), fired(F), products(F, 1.0) {}
};

Weights lay_out(const float* encoder, const float* encoder_bias, const float* decoder, const float* decoder_bias) {
  Weights out;
  out.encoder.assign(static_cast<size_t>(FP) * C, 0.f);
  out.encoder_bias.assign(FP, -1.f);
  out.decoder.assign(static_cast<size_t>(F) * CP, 0.f);
  out.decoder_bias.assign(CP, 0.f);
  out.norms.resize(F);
  std::copy(encoder_bias, encoder_bias + F, out.encoder_bias.begin());
  std::copy(decoder_bias, decoder_bias + C, out.decoder_bias.begin());
  for (int f = 0; f < F; f++) {
    double square = 0;
    for (int c = 0; c < C; c++) {
      out.encoder[(static_cast<size_t>(f / TILE) * C + c) * TILE + f % TILE] = encoder[static_cast<size_t>(f) * C + c];
      const float weight = decoder[static_cast<size_t>(c) * F + f];
      out.decoder[static_cast<size_t>(f) * CP + c] = weight;
      square += static_cast<double>(weight) * weight;
    }
    out.norms[f] = static_cast<float>(std::sqrt(square));
  }
  return out;
}

void encode(const Weights& weights, const float* inputs /* BLOCK x CP */, float* pre /* BLOCK x FP */) {
  for (int tile = 0; tile < FP / TILE; tile++) {
    const float* kernel = &weights.encoder[static_cast<size_t>(tile) * C * TILE];
    const float* bias = &weights.encoder_bias[tile * TILE];
    for (int row = 0; row < BLOCK; row += GROUP) {
      Vector sums[GROUP][TILE / LANES];
#pragma GCC unroll 6
      for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 4
        for (int l = 0; l < TILE / LANES; l++) sums[r][l] = load(bias + l * LANES);
      for (int c = 0; c < C; c++) {
        Vector column[TILE / LANES];
#pragma GCC unroll 4
        for (int l = 0; l < TILE / LANES; l++) column[l] = load(kernel + c * TILE + l * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 4
          for (int l = 0; l < TILE / LANES; l++) sums[r][l] += inputs[(row + r) * CP + c] * column[l];
      }
#pragma GCC unroll 6
      for (int r = 0; r < GROUP; r++)
#pragma GCC unroll 4
        for (int l = 0; l < TILE / LANES; l++) store(pre + (row + r) * FP + tile * TILE + l * LANES, sums[r][l]);
    }
  }
}

// Not-a-number counts as above, so that it reaches the loss, where it is noticed.
inline int count_above(const float* pre, float threshold) {
  int count = 0;
  for (int f = 0; f < F; f++) count += !(pre[f] <= threshold);
  return count;
}

// Which latents are above the threshold, in order; `active` has room for FP + LANES.
inline int find_above(const float* pre, float threshold, int* active) {
  int count = 0;
#ifdef __AVX512F__
  const __m512 level = _mm512_set1_ps(threshold);
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int f = 0; f < FP; f += LANES) {
    const __mmask16 mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(pre + f), level, _CMP_NLE_UQ);
    _mm512_storeu_si512(active + count, _mm512_maskz_compress_epi32(mask, index));
    count += __builtin_popcount(mask);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(LANES));
  }
  while (count > 0 && active[count - 1] >= F) count--;  // not a number, in what fills up the last tile
#else
  for (int f = 0; f < F; f++) {
    active[count] = f;
    count += !(pre[f] <= threshold);
  }
#endif
  return count;
}

// The k largest latents above 0. A threshold that k of them exceed is searched by bisection, which finds none where
// the k-th and the next are equal: then they are put in order.
inline int find_largest(const float* pre, int k, int* active) {
  if (count_above(pre, 0.f) <= k) return find_above(pre, 0.f, active);
  float low = 0.f, high = 0.f;
  for (int f = 0; f < F; f++) high = pre[f] > high ? pre[f] : high;
  for (int step = 0; step < 24; step++) {
    const float middle = 0.5f * (low + high);
    const int count = count_above(pre, middle);
    if (count == k) return find_above(pre, middle, active);
    (count > k ? low : high) = middle;
  }
  const int count = find_above(pre, low, active);
  const auto size = [pre](int f) { return std::isnan(pre[f]) ? HUGE_VALF : pre[f]; };
  std::nth_element(active, active + k, active + count, [size](int a, int b) { return size(a) > size(b); });
  return std::min(count, k);
}

struct Penalty {
  const float* coefficients;  // F, or null for none
  float knee;                 // 0 for L1
};

void step_rows(const float* rows, int64_t count, const float* mean, float scale, const Weights& weights, int k,
               Penalty penalty, Sums& sums) {
  std::vector<float> inputs(BLOCK * CP), pre(static_cast<size_t>(BLOCK) * FP);
  std::vector<int> active(FP + LANES);
  for (int64_t start = 0; start < count; start += BLOCK) {
    const int size = static_cast<int>(std::min<int64_t>(BLOCK, count - start));
    for (int r = 0; r < size; r++)
      for (int c = 0; c < C; c++) inputs[r * CP + c] = (rows[(start + r) * C + c] - mean[c]) / scale;
    encode(weights, inputs.data(), pre.data());
    for (int r = 0; r < size; r++) {
      const float* input = &inputs[r * CP];
      const float* latents = &pre[static_cast<size_t>(r) * FP];
      const int found = k > 0 ? find_largest(latents, k, active.data()) : find_above(latents, 0.f, active.data());

      Vector error[CP / LANES];
      for (int l = 0; l < CP / LANES; l++) error[l] = load(&weights.decoder_bias[l * LANES]) - load(input + l * LANES);
      for (int i = 0; i < found; i++) {
        const float* direction = &weights.decoder[static_cast<size_t>(active[i]) * CP];
        const float latent = latents[active[i]];
        for (int l = 0; l < CP / LANES; l++) error[l] += latent * load(direction + l * LANES);
      }
      Vector square = error[0] * error[0];
      for (int l = 1; l < CP / LANES; l++) square += error[l] * error[l];
      sums.squares += sum(square);
      for (int l = 0; l < CP / LANES; l++) {
        error[l] += error[l];  // from here on the gradient of the squared error
        add(&sums.decoder_bias[l * LANES], error[l]);
      }

      double penalties = 0;
      for (int i = 0; i < found; i++) {
        const int f = active[i];
        const size_t offset = static_cast<size_t>(f) * CP;
        const float latent = latents[f];
        Vector along = error[0] * load(&weights.decoder[offset]);
        for (int l = 1; l < CP / LANES; l++) along += error[l] * load(&weights.decoder[offset + l * LANES]);
        float gradient = sum(along);
        if (penalty.coefficients) {
          const float size_of = latent * weights.norms[f];
          float slope = penalty.coefficients[f];
          if (penalty.knee > 0) {
            const float relative = size_of / penalty.knee;
            double& product = sums.products[f];
            product *= 1.0 + relative;
            if (product > 1e200) {
              penalties += slope * penalty.knee * std::log(product);
              product = 1;
            }
            slope /= 1 + relative;
          } else {
            penalties += slope * size_of;
          }
          gradient += slope * weights.norms[f];
          sums.norms[f] += slope * latent;
        }
        for (int l = 0; l < CP / LANES; l++) {
          add(&sums.decoder[offset + l * LANES], latent * error[l]);
          add(&sums.encoder[offset + l * LANES], gradient * load(input + l * LANES));
        }
        sums.encoder_bias[f] += gradient;
        sums.fired[f]++;
      }
      sums.penalties += penalties;
    }
  }
  if (penalty.coefficients && penalty.knee > 0)
    for (int f = 0; f < F; f++)
      sums.penalties += penalty.coefficients[f] * penalty.knee * std::log(sums.products[f]);
}

}  // namespace

// All arrays are contiguous float32 unless said otherwise; gradients and losses are of the mean over rows.
extern "C" void sae_step(
    const float* rows /* count x C */, int64_t count, const float* mean /* C */, float scale,
    const float* encoder /* F x C */, const float* encoder_bias /* F */, const float* decoder /* C x F */,
    const float* decoder_bias /* C */, int k /* 0: all above 0 */, const float* coefficients /* F, or null */,
    float knee /* 0: L1 */, int threads, float* d_encoder, float* d_encoder_bias, float* d_decoder,
    float* d_decoder_bias, int64_t* fired /* F */, double* losses /* squared error, penalty */) {
  const Weights weights = lay_out(encoder, encoder_bias, decoder, decoder_bias);
  const int64_t share = (count + threads - 1) / threads;
  std::vector<Sums> sums(threads);
  const auto work = [&](int thread) {
    const int64_t start = std::min(thread * share, count), size = std::min(share, count - start);
    step_rows(rows + start * C, size, mean, scale, weights, k, {coefficients, knee}, sums[thread]);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; thread++) others.emplace_back(work, thread);
  work(0);
  for (auto& other : others) other.join();

  losses[0] = losses[1] = 0;
  for (const Sums& part : sums) {
    losses[0] += part.squares / count;
    losses[1] += part.penalties / count;
  }
  const float mean_over = 1.f / count;
  for (int f = 0; f < F; f++) {
    float bias = 0, norm = 0;
    fired[f] = 0;
    for (const Sums& part : sums) {
      bias += part.encoder_bias[f];
      norm += part.norms[f];
      fired[f] += part.fired[f];
    }
    d_encoder_bias[f] = bias * mean_over;
    const float stretch = weights.norms[f] > 0 ? norm / weights.norms[f] : 0;
    for (int c = 0; c < C; c++) {
      const size_t at = static_cast<size_t>(f) * CP + c;
      float d_in = 0, d_out = stretch * weights.decoder[at];
      for (const Sums& part : sums) {
        d_in += part.encoder[at];
        d_out += part.decoder[at];
      }
      d_encoder[static_cast<size_t>(f) * C + c] = d_in * mean_over;
      d_decoder[static_cast<size_t>(c) * F + f] = d_out * mean_over;
    }
  }
  for (int c = 0; c < C; c++) {
    float bias = 0;
    for (const Sums& part : sums) bias += part.decoder_bias[c];
    d_decoder_bias[c] = bias * mean_over;
  }
}
