// Softmax attention where there are few rows, or few keys: attention/biased_attention.py calls it.
//
// Whatever the shape, the arithmetic is one small product of matrices whose result stays in
// registers: ROWS rows by a panel of WIDTH keys, or of WIDTH dimensions of a head. Scores are in
// units of log 2. Work is cut by constants, not by the number of threads, and partial sums are
// added in a fixed order: the bits do not depend on who computes.
//
// `Attention` is what Python passes, field by field.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <omp.h>

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, ROWS = 8;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, ROWS = 4;
#else
constexpr int VECTOR_BYTES = 16, ROWS = 4;
#endif
constexpr int BLOCK = 32;    // rows that share one reading of the keys
constexpr int TILE = 1024;   // rows, and keys, of one task of the backward pass
constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

template <typename T> struct Simd;

template <> struct Simd<float> {
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef float Anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int MANTISSA_BITS = 23, LEAST_EXPONENT = -126, TERMS = 8;
};

template <> struct Simd<double> {
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES)));
    typedef double Anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t Integers __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int MANTISSA_BITS = 52, LEAST_EXPONENT = -1022, TERMS = 14;
};

template <typename T> using Vector = typename Simd<T>::Vector;
template <typename T> constexpr int LANES = VECTOR_BYTES / sizeof(T);
template <typename T> constexpr int WIDTH = 2 * LANES<T>;
template <typename T> constexpr T INFINITE = std::numeric_limits<T>::infinity();

template <typename T> INLINE Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename Simd<T>::Anywhere*>(from);
}

template <typename T> INLINE void store(T* to, Vector<T> value) {
    *reinterpret_cast<typename Simd<T>::Anywhere*>(to) = value;
}

// 2^x for x up to 127; 0 below the normal numbers. Taylor's series of 2^r for |r| <= 1/2.
template <typename T> INLINE Vector<T> exp2(Vector<T> x) {
    using S = Simd<T>;
    const Vector<T> least = Vector<T>{} + T(S::LEAST_EXPONENT);
    const Vector<T> bounded = x > least ? x : least;
    // The sum is rounded to an integer, which then is in its lowest bits
    constexpr T ROUND = T(1.5) * T(int64_t(1) << S::MANTISSA_BITS);
    const Vector<T> rounded = bounded + ROUND, r = bounded - (rounded - ROUND);
    T coefficients[S::TERMS] = {1};
    for (int i = 1; i < S::TERMS; ++i) coefficients[i] = coefficients[i - 1] * T(LN_2) / i;
    Vector<T> power = Vector<T>{} + coefficients[S::TERMS - 1];
#pragma GCC unroll 16
    for (int i = S::TERMS - 2; i >= 0; --i) power = power * r + coefficients[i];
    using Integers = typename S::Integers;
    const Integers bits = (Integers)power + ((Integers)rounded << S::MANTISSA_BITS);
    return x > least ? (Vector<T>)bits : Vector<T>{};
}

// ROWS x WIDTH numbers in registers
template <typename T> struct Accumulator {
    Vector<T> at[ROWS][2] = {};

    INLINE void load_from(const T* from, int64_t row) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            for (int i = 0; i < 2; ++i) at[r][i] = load(from + r * row + i * LANES<T>);
    }

    INLINE void store_to(T* to, int64_t row) const {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            for (int i = 0; i < 2; ++i) store(to + r * row + i * LANES<T>, at[r][i]);
    }

    // Adds a b: a of ROWS x length in any layout, b of length x WIDTH
    INLINE void add_product(int length, const T* a, int64_t a_row, int64_t a_step, const T* b,
                            int64_t b_row) {
        for (int l = 0; l < length; ++l) {
            const Vector<T> left = load(b + l * b_row), right = load(b + l * b_row + LANES<T>);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const T factor = a[r * a_row + l * a_step];
                at[r][0] += factor * left;
                at[r][1] += factor * right;
            }
        }
    }
};

int64_t num_parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

// Where numbers are kept for a while; without memory it counts what would be needed
template <typename T> struct Scratch {
    T* memory;
    int64_t size = 0;

    T* take(int64_t count) {
        T* const part = memory ? memory + size : nullptr;
        size += num_parts(count, 64) * 64;  // vectors do not straddle lines of the cache
        return part;
    }
};

}  // namespace

// tiles x b x h x n x p, dense in p; strides count numbers
template <typename T> struct Tensor {
    T* data;
    int64_t tile, sequence, head, row;
};

template <typename T> struct Attention {
    int64_t num_threads, batch_size, num_heads, num_rows, num_keys, head_dim;
    const T* bias;  // of each key, or null
    T* lse;         // b h n
    T* squares;     // b h blocks m: of each block of rows, the sum of squared weights; or null
    T* scratch;     // as much as `attend_scratch` or `differentiate_scratch` says
    Tensor<T> q, k, v;
    Tensor<T> out;  // data null: no output is wanted
    Tensor<T> grad;
    Tensor<T> dq, dk, dv;  // from each tile of keys, b h n p; from each tile of rows, b h m p

    int64_t num_sequences() const { return batch_size * num_heads; }
    int padded_dim() const { return num_parts(head_dim, WIDTH<T>) * WIDTH<T>; }
    int panel_size() const { return WIDTH<T> * padded_dim(); }

    T* row(const Tensor<T>& x, int64_t s, int64_t i) const {
        return x.data + s / num_heads * x.sequence + s % num_heads * x.head + i * x.row;
    }

    // `count` rows times a factor, filled up with zeros to `size` rows of the padded dimension
    void pack(const Tensor<T>& from, int64_t s, int64_t first, int64_t count, int64_t size,
              T factor, T* to) const {
        const int width = padded_dim();
        std::memset(to, 0, size * width * sizeof(T));
        for (int64_t i = 0; i < count; ++i)
            for (int c = 0; c < head_dim; ++c)
                to[i * width + c] = row(from, s, first + i)[c] * factor;
    }

    // And back again
    void unpack(const T* from, int64_t count, T factor, const Tensor<T>& to, int64_t tile,
                int64_t s, int64_t first) const {
        for (int64_t i = 0; i < count; ++i)
            for (int c = 0; c < head_dim; ++c)
                row(to, s, first + i)[tile * to.tile + c] = from[i * padded_dim() + c] * factor;
    }

    // A packed panel, a row for each dimension
    void transpose(const T* panel, T* to) const {
        for (int c = 0; c < head_dim; ++c)
            for (int j = 0; j < WIDTH<T>; ++j) to[c * WIDTH<T> + j] = panel[j * padded_dim() + c];
    }

    // Of a panel of keys, in units of log 2; -inf where there is no key
    void panel_bias(int64_t first, T* to) const {
        for (int64_t j = 0; j < WIDTH<T>; ++j) {
            const T given = bias && first + j < num_keys ? bias[first + j] * T(LOG2_E) : 0;
            to[j] = first + j < num_keys ? given : -INFINITE<T>;
        }
    }
};

namespace {

// Keys and values of one sequence, panel by panel
template <typename T> struct Panels {
    const int64_t count, size;
    T *const keys, *const values, *const biases;

    Panels(const Attention<T>& given, Scratch<T>& scratch)
        : count(num_parts(given.num_keys, WIDTH<T>)), size(given.panel_size()),
          keys(scratch.take(count * size)), values(scratch.take(count * size)),
          biases(scratch.take(count * WIDTH<T>)) {}

    void read(const Attention<T>& given, int64_t s, int64_t panel) const {
        const int64_t first = panel * WIDTH<T>;
        const int64_t num_keys = std::min<int64_t>(WIDTH<T>, given.num_keys - first);
        T* const packed = values + panel * size;
        given.pack(given.k, s, first, num_keys, WIDTH<T>, 1, packed);
        given.transpose(packed, keys + panel * size);
        given.pack(given.v, s, first, num_keys, WIDTH<T>, 1, packed);
        given.panel_bias(first, biases + first);
    }
};

// The weights of one block of rows over all keys
template <typename T> class BlockOfRows {
    static constexpr int64_t PANEL_SCORES = BLOCK * WIDTH<T>;

    const Attention<T>& given;
    const Panels<T>& panels;
    T *const rows, *const scores;  // scores panel by panel, row by row
    T shifts[BLOCK], inverses[BLOCK];

  public:
    BlockOfRows(const Attention<T>& given, const Panels<T>& panels, Scratch<T>& scratch)
        : given(given), panels(panels), rows(scratch.take(BLOCK * given.padded_dim())),
          scores(scratch.take(panels.count * PANEL_SCORES)) {}

    void compute(int64_t s, int64_t block) {
        const int64_t first = block * BLOCK;
        const int count = std::min<int64_t>(BLOCK, given.num_rows - first);
        const T scale = T(LOG2_E / std::sqrt(double(given.head_dim)));
        given.pack(given.q, s, first, count, BLOCK, scale, rows);
        score();
        for (int r = 0; r < BLOCK; r += ROWS) exponentiate(r);
        for (int r = 0; r < count; ++r)
            given.lse[s * given.num_rows + first + r] = shifts[r] * T(LN_2) - std::log(inverses[r]);
        if (given.out.data)
            for (int r = 0; r < count; r += ROWS)
                weigh_values(r, std::min(ROWS, count - r), given.row(given.out, s, first + r));
        if (given.squares) {
            const int64_t num_blocks = num_parts(given.num_rows, BLOCK);
            square(count, given.squares + (s * num_blocks + block) * given.num_keys);
        }
    }

  private:
    void score() {
        Vector<T> largest[BLOCK];
        for (auto& x : largest) x = Vector<T>{} - INFINITE<T>;
        for (int64_t panel = 0; panel < panels.count; ++panel) {
            const T* bias = panels.biases + panel * WIDTH<T>;
            for (int r0 = 0; r0 < BLOCK; r0 += ROWS) {
                const int width = given.padded_dim();
                Accumulator<T> sum;
                sum.add_product(given.head_dim, rows + r0 * width, width, 1,
                                panels.keys + panel * panels.size, WIDTH<T>);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r)
                    for (int i = 0; i < 2; ++i) {
                        const Vector<T> x = sum.at[r][i] + load(bias + i * LANES<T>);
                        largest[r0 + r] = x > largest[r0 + r] ? x : largest[r0 + r];
                        sum.at[r][i] = x;
                    }
                sum.store_to(scores + panel * PANEL_SCORES + r0 * WIDTH<T>, WIDTH<T>);
            }
        }
        for (int r = 0; r < BLOCK; ++r) {
            shifts[r] = largest[r][0];
            for (int i = 1; i < LANES<T>; ++i) shifts[r] = std::max(shifts[r], largest[r][i]);
        }
    }

    void exponentiate(int r0) {
        Vector<T> totals[ROWS] = {};
        for (int64_t panel = 0; panel < panels.count; ++panel) {
            T* score = scores + panel * PANEL_SCORES + r0 * WIDTH<T>;
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r)
                for (int i = 0; i < 2; ++i) {
                    T* at = score + r * WIDTH<T> + i * LANES<T>;
                    const Vector<T> weight = exp2<T>(load(at) - shifts[r0 + r]);
                    totals[r] += weight;
                    store(at, weight);
                }
        }
        for (int r = 0; r < ROWS; ++r) {
            T total = 0;
            for (int i = 0; i < LANES<T>; ++i) total += totals[r][i];
            inverses[r0 + r] = 1 / total;
        }
    }

    void weigh_values(int r0, int count, T* to) const {
        for (int c = 0; c < given.head_dim; c += WIDTH<T>) {
            Accumulator<T> sum;
            for (int64_t panel = 0; panel < panels.count; ++panel)
                sum.add_product(WIDTH<T>, scores + panel * PANEL_SCORES + r0 * WIDTH<T>, WIDTH<T>,
                                1, panels.values + panel * panels.size + c, given.padded_dim());
            T result[ROWS * WIDTH<T>];
            sum.store_to(result, WIDTH<T>);
            for (int r = 0; r < count; ++r)
                for (int i = 0; i < WIDTH<T> && c + i < given.head_dim; ++i)
                    to[r * given.out.row + c + i] = result[r * WIDTH<T> + i] * inverses[r0 + r];
        }
    }

    void square(int count, T* to) const {
        for (int64_t j = 0; j < given.num_keys; j += WIDTH<T>) {
            Vector<T> sums[2] = {};
            for (int r = 0; r < count; ++r)
                for (int i = 0; i < 2; ++i) {
                    const T* weight = scores + j * BLOCK + r * WIDTH<T> + i * LANES<T>;
                    const Vector<T> normalized = load(weight) * inverses[r];
                    sums[i] += normalized * normalized;
                }
            std::memcpy(to + j, sums, std::min<int64_t>(WIDTH<T>, given.num_keys - j) * sizeof(T));
        }
    }
};

template <typename T> int64_t attend_scratch(const Attention<T>& given) {
    Scratch<T> shared{nullptr}, own{nullptr};
    const Panels<T> panels(given, shared);
    BlockOfRows<T>(given, panels, own);
    return shared.size + given.num_threads * own.size;
}

template <typename T> void attend(const Attention<T>& given) {
    Scratch<T> scratch{given.scratch};
    const Panels<T> panels(given, scratch);
    const int64_t own_size = (attend_scratch(given) - scratch.size) / given.num_threads;
#pragma omp parallel num_threads(given.num_threads)
    {
        Scratch<T> own{given.scratch + scratch.size + omp_get_thread_num() * own_size};
        BlockOfRows<T> rows(given, panels, own);
        for (int64_t s = 0; s < given.num_sequences(); ++s) {
#pragma omp for
            for (int64_t panel = 0; panel < panels.count; ++panel) panels.read(given, s, panel);
#pragma omp for
            for (int64_t block = 0; block < num_parts(given.num_rows, BLOCK); ++block)
                rows.compute(s, block);
        }
    }
}

// With P_ij = exp(s_ij - lse_i) and a gradient G of the output O = P V,
//
//     dV = P' G,   dS_ij = P_ij (G_i V_j' - G_i O_i'),   dQ = dS K / sqrt(p),
//     dK = dS' Q / sqrt(p),
//
// here for a tile of rows, and of keys panel by panel.
template <typename T> class TileOfGradients {
    const Attention<T>& given;
    const int width, panel_size;
    T *const rows, *const grads, *const row_sums;
    T *const masses, *const products;  // lse, and G_i O_i'
    T *const keys, *const values, *const transposed_keys, *const transposed_values;
    T *const key_sums, *const value_sums, *const biases;
    T *const weights, *const score_grads;  // P and dS

  public:
    TileOfGradients(const Attention<T>& given, Scratch<T>& scratch)
        : given(given), width(given.padded_dim()), panel_size(given.panel_size()),
          rows(scratch.take(TILE * width)), grads(scratch.take(TILE * width)),
          row_sums(scratch.take(TILE * width)), masses(scratch.take(TILE)),
          products(scratch.take(TILE)), keys(scratch.take(panel_size)),
          values(scratch.take(panel_size)), transposed_keys(scratch.take(panel_size)),
          transposed_values(scratch.take(panel_size)), key_sums(scratch.take(panel_size)),
          value_sums(scratch.take(panel_size)), biases(scratch.take(WIDTH<T>)),
          weights(scratch.take(BLOCK * WIDTH<T>)), score_grads(scratch.take(BLOCK * WIDTH<T>)) {}

    void compute(int64_t s, int64_t row_tile, int64_t key_tile) {
        const int64_t first = row_tile * TILE;
        const int64_t count = std::min<int64_t>(TILE, given.num_rows - first);
        const int64_t end = std::min<int64_t>(given.num_keys, (key_tile + 1) * TILE);
        read_rows(s, first, count);
        for (int64_t j = key_tile * TILE; j < end; j += WIDTH<T>) {
            const int num_keys = std::min<int64_t>(WIDTH<T>, end - j);
            read_panel(s, j, num_keys);
            for (int64_t i = 0; i < count; i += BLOCK) {
                for (int r = 0; r < BLOCK; r += ROWS) differentiate_scores(i + r, r);
                for (int c = 0; c < given.head_dim; c += WIDTH<T>) add_gradients(i, c);
            }
            given.unpack(key_sums, num_keys, T(LN_2), given.dk, row_tile, s, j);
            given.unpack(value_sums, num_keys, 1, given.dv, row_tile, s, j);
        }
        given.unpack(row_sums, count, scale(), given.dq, key_tile, s, first);
    }

  private:
    T scale() const { return T(1 / std::sqrt(double(given.head_dim))); }

    void read_rows(int64_t s, int64_t first, int64_t count) {
        const int64_t padded = num_parts(count, BLOCK) * BLOCK;
        given.pack(given.q, s, first, count, padded, scale() * T(LOG2_E), rows);
        given.pack(given.grad, s, first, count, padded, 1, grads);
        std::memset(row_sums, 0, padded * width * sizeof(T));
        for (int64_t i = 0; i < padded; ++i) {
            products[i] = 0;
            masses[i] = INFINITE<T>;  // rows of the padding have no weights
            if (i >= count) continue;
            masses[i] = given.lse[s * given.num_rows + first + i] * T(LOG2_E);
            for (int c = 0; c < given.head_dim; ++c)
                products[i] += given.row(given.out, s, first + i)[c] * grads[i * width + c];
        }
    }

    void read_panel(int64_t s, int64_t first, int num_keys) {
        given.pack(given.k, s, first, num_keys, WIDTH<T>, 1, keys);
        given.pack(given.v, s, first, num_keys, WIDTH<T>, 1, values);
        given.transpose(keys, transposed_keys);
        given.transpose(values, transposed_values);
        given.panel_bias(first, biases);
        std::memset(key_sums, 0, panel_size * sizeof(T));
        std::memset(value_sums, 0, panel_size * sizeof(T));
    }

    // P and dS of ROWS rows
    void differentiate_scores(int64_t i, int r0) {
        Accumulator<T> weight;
        weight.add_product(given.head_dim, rows + i * width, width, 1, transposed_keys, WIDTH<T>);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            for (int half = 0; half < 2; ++half) {
                const Vector<T> bias = load(biases + half * LANES<T>);
                weight.at[r][half] = exp2<T>(weight.at[r][half] + (bias - masses[i + r]));
            }
        T* to = weights + r0 * WIDTH<T>;
        weight.store_to(to, WIDTH<T>);
        Accumulator<T> score_grad;
        score_grad.add_product(given.head_dim, grads + i * width, width, 1, transposed_values,
                               WIDTH<T>);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
            for (int half = 0; half < 2; ++half) {
                const Vector<T> stored = load(to + r * WIDTH<T> + half * LANES<T>);
                score_grad.at[r][half] = stored * (score_grad.at[r][half] - products[i + r]);
            }
        score_grad.store_to(score_grads + r0 * WIDTH<T>, WIDTH<T>);
    }

    // Of a block of rows and a panel of keys, WIDTH dimensions of dQ, dK and dV
    void add_gradients(int64_t i, int c) {
        for (int r = 0; r < BLOCK; r += ROWS) {
            T* to = row_sums + (i + r) * width + c;
            Accumulator<T> sum;
            sum.load_from(to, width);
            sum.add_product(WIDTH<T>, score_grads + r * WIDTH<T>, WIDTH<T>, 1, keys + c, width);
            sum.store_to(to, width);
        }
        for (int j = 0; j < WIDTH<T>; j += ROWS) {
            add_over_rows(score_grads + j, rows + i * width + c, key_sums + j * width + c);
            add_over_rows(weights + j, grads + i * width + c, value_sums + j * width + c);
        }
    }

    // Adds a' b, summed over a block of rows, for ROWS keys
    void add_over_rows(const T* a, const T* b, T* to) const {
        Accumulator<T> sum;
        sum.load_from(to, width);
        sum.add_product(BLOCK, a, 1, WIDTH<T>, b, width);
        sum.store_to(to, width);
    }
};

template <typename T> int64_t differentiate_scratch(const Attention<T>& given) {
    Scratch<T> own{nullptr};
    TileOfGradients<T>(given, own);
    return given.num_threads * own.size;
}

template <typename T> void differentiate(const Attention<T>& given) {
    const int64_t own_size = differentiate_scratch(given) / given.num_threads;
#pragma omp parallel num_threads(given.num_threads)
    {
        Scratch<T> own{given.scratch + omp_get_thread_num() * own_size};
        TileOfGradients<T> tile(given, own);
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t s = 0; s < given.num_sequences(); ++s)
            for (int64_t i = 0; i < num_parts(given.num_rows, TILE); ++i)
                for (int64_t j = 0; j < num_parts(given.num_keys, TILE); ++j) tile.compute(s, i, j);
    }
}

}  // namespace

#define EXPORT(T, NAME)                                                                            \
    void attend_##NAME(const Attention<T>* given) { attend(*given); }                              \
    void differentiate_##NAME(const Attention<T>* given) { differentiate(*given); }                \
    int64_t attend_scratch_##NAME(const Attention<T>* given) { return attend_scratch(*given); }    \
    int64_t differentiate_scratch_##NAME(const Attention<T>* given) {                              \
        return differentiate_scratch(*given);                                                      \
    }

extern "C" {
EXPORT(float, float32)
EXPORT(double, float64)
extern const int64_t rows_of_a_block = BLOCK, rows_of_a_tile = TILE;
extern const int64_t bytes_of_arguments = sizeof(Attention<float>);
}
