// The way after the encoder in `sae_kernel.cpp` where many latents are active: all of them are computed, by matrix
// products of a processor's tiles (AMX).
//
// Tiles multiply bfloat16, which has 8 significant bits, and add up float32. A float32 is therefore split into what
// bfloat16 keeps of it and into the rest, itself rounded to bfloat16, and of the four products of parts the three
// larger ones are added up: an error of about 3e-6 of each summand is left.

#include <sys/syscall.h>
#include <unistd.h>

constexpr int PARTS = 2;
constexpr int PAIR = 2 * LANES;  // summation indices of one tile; and tiles are multiplied two by two, to load fewer
constexpr int CW = round_up(C, PAIR);
constexpr int MANY = 5;  // where more than one in so many latents is active, this way is the faster one
constexpr int C_DEPTH = CW / PAIR, F_DEPTH = FP / PAIR, ROW_DEPTH = BLOCK / PAIR;  // tiles along a summation

// In a left factor a tile has 16 rows of 16 pairs of numbers; in a right factor, for each of 16 pairs, 16 columns. The
// numbers of a pair are 16 summation indices apart. Taken as one, they make left and right one another's transpose.
struct Tile {
  Vector rows[LANES];
};

// Strips of 16 rows of a left factor, or of 16 columns of a right one: tile by tile along the summation, both parts.
typedef std::vector<Tile> Strips;

struct TileWeights {
  Strips decoder;                // right factor, latents x channels
  Strips directions;             // right factor, channels x latents
  Vectors decoder_bias, slopes;  // CW, FP; aligned, as tiles load them
};

// Linux lets a process use tiles when it has asked.
inline bool have_tiles() {
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
}

// While it lives, each of the thread's eight tiles has 16 rows of 64 bytes.
struct TilesInUse {
  TilesInUse() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }
  ~TilesInUse() { _tile_release(); }
  TilesInUse(const TilesInUse&) = delete;
};

// One row of a tile of each part. A float32's upper half is a bfloat16, rounded to the nearest by adding half a unit.
inline void split(Vector first, Vector second, Tile* tiles, int row) {
  constexpr __mmask32 upper_halves = 0xaaaaaaaa;
#pragma GCC unroll 2
  for (int part = 0; part < PARTS; part++) {
    const Integers one = reinterpret_cast<Integers>(first) + 0x8000;
    const Integers other = reinterpret_cast<Integers>(second) + 0x8000;
    const __m512i lower = _mm512_srli_epi32(reinterpret_cast<__m512i>(one), 16);
    tiles[part].rows[row] = reinterpret_cast<Vector>(
        _mm512_mask_blend_epi16(upper_halves, lower, reinterpret_cast<__m512i>(other)));
    first -= reinterpret_cast<Vector>(one & ~0xffff);
    second -= reinterpret_cast<Vector>(other & ~0xffff);
  }
}

// Exchanges the two off-diagonal quarters of blocks, from large blocks to small ones.
inline void transpose(Tile& tile) {
  const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int step = LANES / 2; step > 0; step /= 2) {
    const Integers right = (lane & step) != 0;
    const __m512i upper = reinterpret_cast<__m512i>(right ? (lane ^ step) + LANES : lane);
    const __m512i lower = reinterpret_cast<__m512i>(right ? lane + LANES : lane ^ step);
#pragma GCC unroll 16
    for (int row = 0; row < LANES; row++) {
      if (row & step) continue;
      const __m512 one = reinterpret_cast<__m512>(tile.rows[row]);
      const __m512 other = reinterpret_cast<__m512>(tile.rows[row + step]);
      tile.rows[row] = reinterpret_cast<Vector>(_mm512_permutex2var_ps(one, upper, other));
      tile.rows[row + step] = reinterpret_cast<Vector>(_mm512_permutex2var_ps(one, lower, other));
    }
  }
}

// to = start + left x right, for two strips of each with `depth` tiles along the summation. Distances from row to row
// are in numbers; 0 where all rows start alike. Loads of tiles are spread among products, which take longer.
inline void multiply(const Tile* left, const Tile* right, int depth, const float* start, size_t start_apart, float* to,
                     size_t to_apart) {
  const int strip = depth * PARTS;
  _tile_loadd(0, start, 4 * start_apart);
  _tile_loadd(1, start + LANES, 4 * start_apart);
  _tile_loadd(2, start + LANES * start_apart, 4 * start_apart);
  _tile_loadd(3, start + LANES * start_apart + LANES, 4 * start_apart);
  for (int d = 0; d < depth; d++, left += PARTS, right += PARTS) {
    _tile_loadd(4, left, 64);  // what is kept times the rest
    _tile_loadd(6, right + 1, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + strip + 1, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + strip, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(7, right + strip, 64);
    _tile_dpbf16ps(0, 4, 6);  // kept times kept
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(4, left + 1, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(5, left + strip + 1, 64);
    _tile_dpbf16ps(0, 4, 6);  // the rest times what is kept
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, to, 4 * to_apart);
  _tile_stored(1, to + LANES, 4 * to_apart);
  _tile_stored(2, to + LANES * to_apart, 4 * to_apart);
  _tile_stored(3, to + LANES * to_apart + LANES, 4 * to_apart);
}

inline TileWeights lay_out_tiles(const Weights& weights) {
  const auto direction = [&](int f, int l) { return f < F && l < CV ? weights.decoder[f * CV + l] : Vector{}; };
  TileWeights out;
  out.decoder.resize(static_cast<size_t>(CW / LANES) * F_DEPTH * PARTS);
  out.directions.resize(static_cast<size_t>(FP / LANES) * C_DEPTH * PARTS);
  for (int l = 0; l < CW / LANES; l++)
    for (int d = 0; d < F_DEPTH; d++)
      for (int row = 0; row < LANES; row++) {
        const int f = d * PAIR + row;
        split(direction(f, l), direction(f + LANES, l), &out.decoder[(l * F_DEPTH + d) * PARTS], row);
      }
  for (int f = 0; f < FP; f += LANES)
    for (int d = 0; d < C_DEPTH; d++) {
      Tile* const tiles = &out.directions[(f / LANES * C_DEPTH + d) * PARTS];
      for (int row = 0; row < LANES; row++) split(direction(f + row, 2 * d), direction(f + row, 2 * d + 1), tiles, row);
      for (int part = 0; part < PARTS; part++) transpose(tiles[part]);
    }
  out.decoder_bias = weights.decoder_bias;
  out.decoder_bias.resize(CW / LANES);
  out.slopes.resize(FP / LANES);
  std::copy_n(weights.slopes.begin(), FP, floats(out.slopes));
  return out;
}

// What one thread needs for a block of rows, and its sums of weights' gradients over all its blocks.
class TileBlock {
 public:
  TileBlock(const Weights& weights, const TileWeights& tiles)
      : weights(weights), tiles(tiles), latents(static_cast<size_t>(BLOCK / LANES) * F_DEPTH * PARTS),
        errors(BLOCK / LANES * C_DEPTH * PARTS), inputs_across(CW / LANES * ROW_DEPTH * PARTS),
        errors_across(CW / LANES * ROW_DEPTH * PARTS), latents_down(2 * ROW_DEPTH * PARTS),
        gradients_down(2 * ROW_DEPTH * PARTS), reconstructions(BLOCK * CW / LANES),
        gradients{Vectors(PAIR * PAIR / LANES), Vectors(PAIR * PAIR / LANES)},
        d_encoder(static_cast<size_t>(CW) * FP / LANES), d_decoder(static_cast<size_t>(CW) * FP / LANES) {}

  // From the pre-activations themselves, so that a step can be repeated bit for bit.
  static bool is_faster(const float* pre /* BLOCK x FP */) {
    int64_t active = 0;
    for (int i = 0; i < BLOCK * FP; i += LANES) active += __builtin_popcount(reaching(load(pre + i)));
    return active * MANY > BLOCK * FP;
  }

  template <Penalty PENALTY>
  void step(const Vector* rows /* BLOCK x CV */, const float* pre /* BLOCK x FP */, Sums& sums) {
    static const Vector zeros[2] = {};
    for (int f = 0; f < FP; f += PAIR)
      for (int r = 0; r < BLOCK; r++) {
        const Vector one = load(pre + r * FP + f), other = load(pre + r * FP + f + LANES);
        split(only(reaching(one), one), only(reaching(other), other),
              &latents[(r / LANES * F_DEPTH + f / PAIR) * PARTS], r % LANES);
      }
    for (int c = 0; c < CW; c += PAIR)
      for (int r = 0; r < BLOCK; r += PAIR)
        multiply(&latents[r / LANES * F_DEPTH * PARTS], &tiles.decoder[c / LANES * F_DEPTH * PARTS], F_DEPTH,
                 floats(tiles.decoder_bias) + c, 0, floats(reconstructions) + r * CW + c, CW);
    find_errors(rows, sums);
    for (int f = 0; f < FP; f += PAIR) {
      const Vector* const start = PENALTY == L1 ? &tiles.slopes[f / LANES] : zeros;
      for (int depth = 0; depth <= ROW_DEPTH; depth++) {
        if (depth < ROW_DEPTH)  // products of the next rows are on their way meanwhile
          multiply(&errors[2 * depth * C_DEPTH * PARTS], &tiles.directions[f / LANES * C_DEPTH * PARTS], C_DEPTH,
                   reinterpret_cast<const float*>(start), 0, floats(gradients[depth % 2]), PAIR);
        if (depth > 0)
          for (int half = 0; half < 2; half++) find_gradients<PENALTY>(pre, f + half * LANES, half, depth - 1, sums);
      }
      for (int c = 0; c < CW; c += PAIR) {
        const size_t at = static_cast<size_t>(c) * FP + f, strip = c / LANES * ROW_DEPTH * PARTS;
        float *const encoder = floats(d_encoder) + at, *const decoder = floats(d_decoder) + at;
        multiply(&inputs_across[strip], gradients_down.data(), ROW_DEPTH, encoder, FP, encoder, FP);
        multiply(&errors_across[strip], latents_down.data(), ROW_DEPTH, decoder, FP, decoder, FP);
      }
    }
  }

  void add_to(Sums& sums) const {
    for (int f = 0; f < FP; f += LANES)
      for (int l = 0; l < CV; l++) {
        add_across(d_encoder, f, l, sums.encoder);
        add_across(d_decoder, f, l, sums.decoder);
      }
  }

 private:
  // Not-a-number counts as active, as in `find_reaching`.
  static __mmask16 reaching(Vector pre) {
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(pre), _mm512_set1_ps(FLT_MIN), _CMP_NLT_UQ);
  }

  static Vector only(__mmask16 lanes, Vector from) {
    return reinterpret_cast<Vector>(_mm512_maskz_mov_ps(lanes, reinterpret_cast<__m512>(from)));
  }

  static void add_across(const Vectors& from, int f, int l, Vectors& to) {
    Tile tile;
    for (int row = 0; row < LANES; row++)
      tile.rows[row] = from[(static_cast<size_t>(l * LANES + row) * FP + f) / LANES];
    transpose(tile);
    for (int row = 0; row < LANES && f + row < F; row++) to[(f + row) * CV + l] += tile.rows[row];
  }

  void find_errors(const Vector* rows, Sums& sums) {
    Vector square{};
    for (int depth = 0; depth < ROW_DEPTH; depth++)
      for (int d = 0; d < C_DEPTH; d++) {
        for (int row = 0; row < LANES; row++) {
          Vector error[2][2];  // of this row and the one 16 below, for two strips of channels
#pragma GCC unroll 2
          for (int half = 0; half < 2; half++) {
            const int l = 2 * d + half;
            Vector input[2];
#pragma GCC unroll 2
            for (int below = 0; below < 2; below++) {
              const int r = depth * PAIR + below * LANES + row;
              input[below] = l < CV ? rows[r * CV + l] : Vector{};
              const Vector difference = reconstructions[r * (CW / LANES) + l] - input[below];
              square += difference * difference;
              error[below][half] = difference + difference;  // the gradient of the squared error
            }
            if (l < CV) sums.decoder_bias[l] += error[0][half] + error[1][half];
            split(input[0], input[1], &inputs_across[(l * ROW_DEPTH + depth) * PARTS], row);
            split(error[0][half], error[1][half], &errors_across[(l * ROW_DEPTH + depth) * PARTS], row);
          }
          for (int below = 0; below < 2; below++)
            split(error[below][0], error[below][1], &errors[((2 * depth + below) * C_DEPTH + d) * PARTS], row);
        }
        for (int l = 2 * d; l < 2 * d + 2; l++)
          for (int part = 0; part < PARTS; part++) {
            transpose(inputs_across[(l * ROW_DEPTH + depth) * PARTS + part]);
            transpose(errors_across[(l * ROW_DEPTH + depth) * PARTS + part]);
          }
      }
    sums.squares += sum(square);
  }

  // Of one strip of latents, for the rows of one tile along their summation.
  template <Penalty PENALTY>
  void find_gradients(const float* pre, int f, int half, int depth, Sums& sums) {
    const Vector norms = load(&weights.norms[f]), slopes = load(&weights.slopes[f]);
    Vector bias{}, size{};
    __m512i fired{};
    for (int row = 0; row < LANES; row++) {
      Vector latent[2], gradient[2], relative[2];
#pragma GCC unroll 2
      for (int below = 0; below < 2; below++) {
        const int r = below * LANES + row;
        const Vector found = load(pre + (depth * PAIR + r) * FP + f);
        const __mmask16 active = reaching(found);
        latent[below] = only(active, found);
        gradient[below] = gradients[depth % 2][2 * r + half];
        if (PENALTY == L1) size += latent[below];
        if (PENALTY == LOGARITHM) {
          relative[below] = latent[below] * norms / weights.knee;
          const Vector slope = 1 / (1 + relative[below]);
          gradient[below] += slopes * slope;
          size += latent[below] * slope;
        }
        gradient[below] = only(active, gradient[below]);
        bias += gradient[below];
        fired = _mm512_mask_sub_epi32(fired, active, fired, _mm512_set1_epi32(-1));
      }
      if (PENALTY == LOGARITHM) multiply_products(relative, f, sums);
      split(latent[0], latent[1], &latents_down[(half * ROW_DEPTH + depth) * PARTS], row);
      split(gradient[0], gradient[1], &gradients_down[(half * ROW_DEPTH + depth) * PARTS], row);
    }
    store(&sums.encoder_bias[f], load(&sums.encoder_bias[f]) + bias);
    store(&sums.sizes[f], load(&sums.sizes[f]) + size);
    _mm512_storeu_si512(&sums.fired[f], _mm512_add_epi32(fired, _mm512_loadu_si512(&sums.fired[f])));
  }

  // Relative sizes of two rows.
  void multiply_products(const Vector (&relative)[2], int f, Sums& sums) {
    const __m512d one = _mm512_set1_pd(1);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++, f += LANES / 2) {
      __m512d products = _mm512_loadu_pd(&sums.products[f]);
#pragma GCC unroll 2
      for (const Vector& row : relative) {
        const __m512d pair = reinterpret_cast<__m512d>(row);
        const __m256 eight = _mm256_castpd_ps(half ? _mm512_extractf64x4_pd(pair, 1) : _mm512_castpd512_pd256(pair));
        products = _mm512_mul_pd(products, _mm512_add_pd(one, _mm512_cvtps_pd(eight)));
      }
      _mm512_storeu_pd(&sums.products[f], products);
      if (_mm512_cmp_pd_mask(products, _mm512_set1_pd(LARGE), _CMP_GT_OQ))
        for (int lane = 0; lane < LANES / 2; lane++) take_logarithm(weights, f + lane, sums);
    }
  }

  const Weights& weights;
  const TileWeights& tiles;
  const TilesInUse in_use;
  Strips latents, errors;                 // left factors, rows x latents and rows x channels
  Strips inputs_across, errors_across;    // left factors, channels x rows
  Strips latents_down, gradients_down;    // right factors, rows x two strips of latents
  Vectors reconstructions, gradients[2];  // BLOCK x CW; of 32 rows, two strips of latents
  Vectors d_encoder, d_decoder;           // CW x FP
};
