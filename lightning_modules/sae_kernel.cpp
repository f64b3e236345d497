// One training step of a sparse autoencoder on rows of activations: its losses and their gradients, on a CPU.
//
// The encoder is dense. Everything after it (the reconstruction and all gradients) touches active latents only, so that
// a step in which they are few costs little more than the encoder's matrix product; where they are many and the
// processor multiplies matrices by itself, `sae_kernel_tiles.h` computes all of them. Written with vector types that
// every compiler maps to what the machine has. CHANNELS and LATENTS are set when this is compiled.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;   // floats of one vector
constexpr int TILE = 64;    // latents whose pre-activations are computed together,
constexpr int GROUP = 6;    // for so many rows: 24 sums and 4 weights fit 32 registers
constexpr int ROWS = 48;    // rows whose pre-activations stay in the nearest cache
constexpr int BLOCK = 128;  // rows that tiles compute together
constexpr int RANKED = 64;  // of so many latents the largest are found by comparing each with each

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int C = CHANNELS, CV = round_up(C, LANES) / LANES, CP = CV * LANES;
constexpr int F = LATENTS, FP = round_up(F, TILE);

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int Integers __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef std::vector<Vector> Vectors;  // aligned to the vector's length: no access crosses a cache line

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector vector) { *reinterpret_cast<Unaligned*>(to) = vector; }
inline float* floats(Vectors& vectors) { return reinterpret_cast<float*>(vectors.data()); }
inline const float* floats(const Vectors& vectors) { return reinterpret_cast<const float*>(vectors.data()); }

inline float sum(Vector vector) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(vector));
#else
  float total = 0;
  for (int lane = 0; lane < LANES; lane++) total += vector[lane];
  return total;
#endif
}

enum Penalty { NONE, L1, LOGARITHM };

// What all threads read: weights laid out for them.
struct Weights {
  Vectors encoder;                  // FP/TILE x C x TILE
  Vectors encoder_bias;             // FP; latents that only fill up a tile never fire
  Vectors decoder;                  // F x CV
  Vectors decoder_bias;             // CV
  std::vector<float> norms, slopes;  // FP; slopes: of the penalty near 0, by the latent's size
  float knee;
};

// What each thread adds up.
struct Sums {
  Vectors encoder, decoder, decoder_bias;  // F x CV, and CV
  std::vector<float> encoder_bias, sizes;  // FP; sizes are weighted by the penalty's slope, 1 near 0
  std::vector<int> fired;
  std::vector<double> products;  // with a knee: of 1 + size / knee, whose logarithm is the penalty
  double squares = 0, penalties = 0;

  Sums()
      : encoder(F * CV), decoder(F * CV), decoder_bias(CV), encoder_bias(FP), sizes(FP), fired(FP), products(FP, 1.0) {}
};

constexpr double LARGE = 1e200;  // leaves room for two more float32 factors

// Before the product overflows; a latent that was never active may have no direction at all.
inline void take_logarithm(const Weights& weights, int f, Sums& sums) {
  if (!(sums.products[f] > 1)) return;
  sums.penalties += weights.slopes[f] / weights.norms[f] * weights.knee * std::log(sums.products[f]);
  sums.products[f] = 1;
}

Weights lay_out(const float* encoder, const float* encoder_bias, const float* decoder, const float* decoder_bias,
                const float* coefficients, float knee) {
  Weights out;
  out.encoder.resize(static_cast<size_t>(FP) * C / LANES);
  out.encoder_bias.resize(FP / LANES);
  out.decoder.resize(static_cast<size_t>(F) * CV);
  out.decoder_bias.resize(CV);
  out.norms.resize(FP);
  out.slopes.resize(FP);
  out.knee = knee;
  std::fill_n(floats(out.encoder_bias), FP, -1.f);
  std::copy_n(encoder_bias, F, floats(out.encoder_bias));
  std::copy_n(decoder_bias, C, floats(out.decoder_bias));
  for (int f = 0; f < F; f++) {
    double square = 0;
    for (int c = 0; c < C; c++) {
      floats(out.encoder)[(static_cast<size_t>(f / TILE) * C + c) * TILE + f % TILE] = encoder[static_cast<size_t>(f) * C + c];
      const float weight = decoder[static_cast<size_t>(c) * F + f];
      floats(out.decoder)[static_cast<size_t>(f) * CP + c] = weight;
      square += static_cast<double>(weight) * weight;
    }
    out.norms[f] = static_cast<float>(std::sqrt(square));
    out.slopes[f] = coefficients ? coefficients[f] * out.norms[f] : 0;
  }
  return out;
}

// There is room for rows up to the next whole group.
void encode(const Weights& weights, const float* inputs /* rows x CP */, int rows, float* pre /* rows x FP */) {
  for (int tile = 0; tile < FP / TILE; tile++) {
    const float* kernel = floats(weights.encoder) + static_cast<size_t>(tile) * C * TILE;
    const float* bias = floats(weights.encoder_bias) + tile * TILE;
    for (int row = 0; row < rows; row += GROUP) {
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

// Which latents are at least the threshold, in order; `active` has room for FP + LANES. Not-a-number counts as reaching
// it, so that it reaches the loss, where it is noticed.
inline int find_reaching(const float* pre, float threshold, int* active) {
  int count = 0;
#ifdef __AVX512F__
  const __m512 level = _mm512_set1_ps(threshold);
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int f = 0; f < FP; f += LANES) {
    const __mmask16 mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(pre + f), level, _CMP_NLT_UQ);
    _mm512_storeu_si512(active + count, _mm512_maskz_compress_epi32(mask, index));
    count += __builtin_popcount(mask);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(LANES));
  }
  while (count > 0 && active[count - 1] >= F) count--;  // not a number, in what fills up the last tile
#else
  for (int f = 0; f < F; f++) {
    active[count] = f;
    count += !(pre[f] < threshold);
  }
#endif
  return count;
}

// For each of `count` values how many are larger, times -1; both arrays are filled up to whole vectors.
inline void rank(const float* values, int count, int* minus_larger) {
  for (int block = 0; block < count; block += LANES) {
    Integers minus{};
    for (int i = 0; i < count; i++) minus += values[i] > load(values + block);
    std::memcpy(minus_larger + block, &minus, sizeof minus);
  }
}

// What at least k latents reach. The latents are dealt into at least k groups, as many as fill up vectors; of their
// largest ones the k-th is such a value, and few latents beside the k largest reach it.
inline float reached_by(const float* pre, int k) {
  constexpr int most = std::min(RANKED, FP) / LANES;
  const int vectors = (2 * k + LANES - 1) / LANES;
  if (vectors > most) return 0;
  alignas(64) float largest[RANKED];
  int minus_larger[RANKED];
  for (int v = 0; v < vectors; v++) {
    Vector best = load(pre + v * LANES);
    for (int f = (v + vectors) * LANES; f < FP; f += vectors * LANES) {
      const Vector other = load(pre + f);
      best = other > best ? other : best;
    }
    store(largest + v * LANES, best);
  }
  rank(largest, vectors * LANES, minus_larger);
  float least = HUGE_VALF;
  for (int i = 0; i < vectors * LANES; i++) least = minus_larger[i] > -k && largest[i] < least ? largest[i] : least;
  return least;
}

// The k largest latents above 0. Those that fewer than k are larger than are too many where the k-th and the next are
// equal: then the latents are put in order.
inline int find_largest(const float* pre, int k, int* active) {
  int count = find_reaching(pre, std::max(FLT_MIN, reached_by(pre, k)), active);
  if (count <= k) return count;
  if (count <= RANKED) {
    alignas(64) float values[RANKED];
    int minus_larger[RANKED], kept = 0;
    for (int i = 0; i < count; i++) values[i] = pre[active[i]];
    for (int i = count; i % LANES; i++) values[i] = -HUGE_VALF;
    rank(values, count, minus_larger);
    for (int i = 0; i < count; i++) kept += minus_larger[i] > -k;
    if (kept == k) {
      kept = 0;
      for (int i = 0; i < count; i++) {
        active[kept] = active[i];
        kept += minus_larger[i] > -k;
      }
      return k;
    }
  }
  const auto size = [pre](int f) { return std::isnan(pre[f]) ? HUGE_VALF : pre[f]; };
  std::nth_element(active, active + k, active + count, [size](int a, int b) { return size(a) > size(b); });
  return k;
}

template <Penalty PENALTY>
void step_row(const float* input, const float* latents, const int* active, int found, const Weights& weights,
              Sums& sums) {
  const Vector* directions = weights.decoder.data();
  Vector error[CV], at[CV];
  for (int l = 0; l < CV; l++) at[l] = load(input + l * LANES);
  for (int l = 0; l < CV; l++) error[l] = weights.decoder_bias[l] - at[l];
  for (int i = 0; i < found; i++)
    for (int l = 0; l < CV; l++) error[l] += latents[active[i]] * directions[active[i] * CV + l];
  Vector square = error[0] * error[0];
  for (int l = 1; l < CV; l++) square += error[l] * error[l];
  sums.squares += sum(square);
  for (int l = 0; l < CV; l++) {
    error[l] += error[l];  // from here on the gradient of the squared error
    sums.decoder_bias[l] += error[l];
  }
  for (int i = 0; i < found; i++) {
    const int f = active[i];
    const float latent = latents[f];
    Vector along = error[0] * directions[f * CV];
    for (int l = 1; l < CV; l++) along += error[l] * directions[f * CV + l];
    float gradient = sum(along);
    if (PENALTY == L1) {
      gradient += weights.slopes[f];
      sums.sizes[f] += latent;
    } else if (PENALTY == LOGARITHM) {
      const float relative = latent * weights.norms[f] / weights.knee, slope = 1 / (1 + relative);
      gradient += weights.slopes[f] * slope;
      sums.sizes[f] += latent * slope;
      sums.products[f] *= 1.0 + relative;
      if (sums.products[f] > LARGE) take_logarithm(weights, f, sums);
    }
    for (int l = 0; l < CV; l++) {
      sums.decoder[f * CV + l] += latent * error[l];
      sums.encoder[f * CV + l] += gradient * at[l];
    }
    sums.encoder_bias[f] += gradient;
    sums.fired[f]++;
  }
}

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)
#include "sae_kernel_tiles.h"
#else  // the same that is never the faster way
struct TileWeights {};
struct TileBlock {
  TileBlock(const Weights&, const TileWeights&) {}
  static bool is_faster(const float*) { return false; }
  template <Penalty PENALTY>
  void step(const Vector*, const float*, Sums&) {}
  void add_to(Sums&) const {}
};
inline bool have_tiles() { return false; }
inline TileWeights lay_out_tiles(const Weights&) { return {}; }
#endif

template <Penalty PENALTY>
void step_rows(const float* rows, int64_t count, const float* mean, float scale, const Weights& weights,
               const TileWeights* tile_weights, int k, const float* coefficients, Sums& sums) {
  std::optional<TileBlock> tiles;
  if (tile_weights) tiles.emplace(weights, *tile_weights);
  const int block = tiles ? BLOCK : ROWS, room = round_up(block, GROUP);
  Vectors inputs(room * CV), pre(static_cast<size_t>(room) * FP / LANES);
  std::vector<int> active(FP + LANES);
  const float stretch = 1 / scale;
  for (int64_t start = 0; start < count; start += block) {
    const int size = static_cast<int>(std::min<int64_t>(block, count - start));
    for (int r = 0; r < size; r++)
      for (int c = 0; c < C; c++) floats(inputs)[r * CP + c] = (rows[(start + r) * C + c] - mean[c]) * stretch;
    encode(weights, floats(inputs), size, floats(pre));
    if (tiles && size == BLOCK && TileBlock::is_faster(floats(pre))) {
      tiles->step<PENALTY>(inputs.data(), floats(pre), sums);
      continue;
    }
    for (int r = 0; r < size; r++) {
      const float* latents = floats(pre) + static_cast<size_t>(r) * FP;
      const int found =
          k > 0 ? find_largest(latents, k, active.data()) : find_reaching(latents, FLT_MIN, active.data());
      step_row<PENALTY>(floats(inputs) + r * CP, latents, active.data(), found, weights, sums);
    }
  }
  if (tiles) tiles->add_to(sums);
  for (int f = 0; f < F; f++) {
    if (PENALTY == L1) sums.penalties += static_cast<double>(weights.slopes[f]) * sums.sizes[f];
    if (PENALTY == LOGARITHM) sums.penalties += coefficients[f] * weights.knee * std::log(sums.products[f]);
  }
}

// Threads that stay from step to step, since starting one takes as long as a thousand rows. Waking one takes long as well,
// so that they look out for the next step for a while before they sleep.
class Helpers {
 public:
  // Of this process: a fork has none of its parent's threads. Never destroyed, for they may wait until the end.
  static Helpers& here() {
    static std::mutex making;
    static Helpers* made = nullptr;
    static pid_t owner = 0;
    const std::lock_guard<std::mutex> lock(making);
    if (owner != getpid()) {
      made = new Helpers;
      owner = getpid();
    }
    return *made;
  }

  // work(0) is done here, work(1) to work(threads - 1) by as many others.
  void run(int threads, const std::function<void(int)>& work) {
    const std::lock_guard<std::mutex> one_at_a_time(busy_);
    while (count_ < threads - 1) std::thread(&Helpers::serve, this, ++count_, round_.load()).detach();
    work_ = &work;
    threads_ = threads;
    left_ = count_;
    {
      const std::lock_guard<std::mutex> lock(sleeping_);
      ++round_;
    }
    wake_.notify_all();
    work(0);
    while (left_ > 0) std::this_thread::yield();
  }

 private:
  void serve(int index, uint64_t seen) {
    for (;; seen++) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(300);
      while (round_ == seen && std::chrono::steady_clock::now() < end) rest();
      if (round_ == seen) {
        std::unique_lock<std::mutex> lock(sleeping_);
        wake_.wait(lock, [&] { return round_ != seen; });
      }
      if (index < threads_) (*work_)(index);
      --left_;
    }
  }

  static void rest() {
#if defined(__x86_64__)
    for (int i = 0; i < 16; i++) __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
  }

  std::mutex busy_, sleeping_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> left_{0};  // helpers that are not done with this round
  const std::function<void(int)>* work_ = nullptr;
  int threads_ = 0, count_ = 0;
};

}  // namespace

// All arrays are contiguous float32 unless said otherwise; gradients and losses are of the mean over rows.
extern "C" void sae_step(
    const float* rows /* count x C */, int64_t count, const float* mean /* C */, float scale,
    const float* encoder /* F x C */, const float* encoder_bias /* F */, const float* decoder /* C x F */,
    const float* decoder_bias /* C */, int k /* 0: all above 0 */, const float* coefficients /* F, or null */,
    float knee /* 0: L1 */, int threads, float* d_encoder, float* d_encoder_bias, float* d_decoder,
    float* d_decoder_bias, int64_t* fired /* F */, float* numbers /* loss, squared error, penalty, active latents, explained variance */) {
  const Weights weights = lay_out(encoder, encoder_bias, decoder, decoder_bias, coefficients, knee);
  std::optional<TileWeights> tiles;
  if (k == 0 && have_tiles()) tiles = lay_out_tiles(weights);
  const int64_t share = (count + threads - 1) / threads;
  std::vector<Sums> sums(threads);
  const auto work = [&](int thread) {
    const int64_t start = std::min(thread * share, count), size = std::min(share, count - start);
    const auto step = !coefficients ? step_rows<NONE> : knee > 0 ? step_rows<LOGARITHM> : step_rows<L1>;
    step(rows + start * C, size, mean, scale, weights, tiles ? &*tiles : nullptr, k, coefficients, sums[thread]);
  };
  if (threads > 1)
    Helpers::here().run(threads, work);
  else
    work(0);

  double squares = 0, penalties = 0, active = 0;
  for (const Sums& part : sums) {
    squares += part.squares / count;
    penalties += part.penalties / count;
  }
  const float mean_over = 1.f / count;
  for (int f = 0; f < F; f++) {
    float bias = 0, size = 0;
    fired[f] = 0;
    for (const Sums& part : sums) {
      bias += part.encoder_bias[f];
      size += part.sizes[f];
      fired[f] += part.fired[f];
    }
    active += fired[f];
    d_encoder_bias[f] = bias * mean_over;
    const float stretch = coefficients && weights.norms[f] > 0 ? coefficients[f] * size / weights.norms[f] : 0;
    for (int c = 0; c < C; c++) {
      const size_t at = static_cast<size_t>(f) * CP + c;
      float d_in = 0, d_out = stretch * floats(weights.decoder)[at];
      for (const Sums& part : sums) {
        d_in += floats(part.encoder)[at];
        d_out += floats(part.decoder)[at];
      }
      d_encoder[static_cast<size_t>(f) * C + c] = d_in * mean_over;
      d_decoder[static_cast<size_t>(c) * F + f] = d_out * mean_over;
    }
  }
  for (int c = 0; c < C; c++) {
    float bias = 0;
    for (const Sums& part : sums) bias += floats(part.decoder_bias)[c];
    d_decoder_bias[c] = bias * mean_over;
  }
  const double found[] = {squares + penalties, squares, penalties, active / count, 1 - squares / C};
  std::copy(std::begin(found), std::end(found), numbers);
}

// One step of Adam. Each of the first five comes as encoder, its bias, decoder and its bias, laid out as above; with
// `unit_norm` the decoder's directions have length 1, and keep it.
extern "C" void sae_update(float* const* parameters, float* const* gradients, float* const* averages,
                           float* const* squares, float* const* steps /* one number each; all alike */,
                           bool unit_norm, float largest_norm /* of all gradients; 0: any */, float rate, float beta1,
                           float beta2, float epsilon) {
  constexpr size_t sizes[] = {static_cast<size_t>(F) * C, F, static_cast<size_t>(C) * F, C};
  for (int part = 0; part < 4; part++) ++*steps[part];
  const int step = static_cast<int>(*steps[0]);
  float* directions = parameters[2];
  std::vector<float> lengths(F), along(F);
  const auto measure = [&] {
    std::fill(lengths.begin(), lengths.end(), 0.f);
    for (int c = 0; c < C; c++)
      for (int f = 0; f < F; f++) lengths[f] += directions[c * F + f] * directions[c * F + f];
  };
  if (unit_norm) {  // leave out of the gradient what would only change lengths
    measure();
    for (int c = 0; c < C; c++)
      for (int f = 0; f < F; f++) along[f] += gradients[2][c * F + f] * directions[c * F + f];
    for (int f = 0; f < F; f++) along[f] /= lengths[f];
    for (int c = 0; c < C; c++)
      for (int f = 0; f < F; f++) gradients[2][c * F + f] -= along[f] * directions[c * F + f];
  }
  float shrink = 1;
  if (largest_norm > 0) {
    double square = 0;
    for (int part = 0; part < 4; part++) {
      Vector sums{};
      size_t i = 0;
      for (; i + LANES <= sizes[part]; i += LANES) sums += load(gradients[part] + i) * load(gradients[part] + i);
      for (; i < sizes[part]; i++) square += static_cast<double>(gradients[part][i]) * gradients[part][i];
      square += sum(sums);
    }
    shrink = std::min(1.f, largest_norm / (static_cast<float>(std::sqrt(square)) + 1e-6f));
  }
  const float size = rate / static_cast<float>(1 - std::pow(static_cast<double>(beta1), step));
  const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(static_cast<double>(beta2), step)));
  for (int part = 0; part < 4; part++) {
    float *const parameter = parameters[part], *const average = averages[part], *const square = squares[part];
    const float* const gradient = gradients[part];
    for (size_t i = 0; i < sizes[part]; i++) {
      const float slope = shrink * gradient[i];
      average[i] += (1 - beta1) * (slope - average[i]);
      square[i] = beta2 * square[i] + (1 - beta2) * slope * slope;
      parameter[i] -= size * average[i] / (std::sqrt(square[i]) * root + epsilon);
    }
  }
  if (unit_norm) {
    measure();
    for (int f = 0; f < F; f++) lengths[f] = 1 / std::max(std::sqrt(lengths[f]), 1e-12f);
    for (int c = 0; c < C; c++)
      for (int f = 0; f < F; f++) directions[c * F + f] *= lengths[f];
  }
}
