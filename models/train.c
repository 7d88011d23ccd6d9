// train.c - train the decoder that run.c runs, on CPU threads, forward and backward by hand.
//
//     cc -O3 -march=native -o train models/train.c -lm -lpthread
//     ./train -o out.bin -z tokenizer.bin --valid path/to/valid --minutes 60 path/to/books
//
// How to read it. Sections 1-2 are the machine: vectors and one matrix product. Sections 3-7 are
// the network, each step followed by its derivative. Sections 8-13 are around it: optimizer, data,
// files, options. Shapes are row-major; weights are (out, in). The letters in shapes:
//
//     R  rows: tokens in one pass = sequences * T        dim, hidden, heads: as in run.c
//     T  tokens in one sequence = train_ctx              qkv = dim + 2 * kv_dim
//
// d_x is the derivative of the loss with respect to x and has the shape of x.
//
// Contents: 1 Vectors   2 Matrix product   3 Shape and parameters   4 Steps   5 Positions
//           6 Attention   7 Forward and backward   8 Optimizer   9 Text   10 Synthetic documents
//           11 Files   12 Training   13 Settings and main
//
// [Adam] Kingma, Ba 2014, 1412.6980   [AdamW] Loshchilov, Hutter 2017, 1711.05101
// [Random] Ruoss 2023, 2305.16843   [SHAPE] Kiyono 2021, 2109.05644
// [WSD] Hu 2024, 2404.06395
// [Muon] Jordan 2024   [RoPE] Su 2021, 2104.09864   [Flash] Dao 2022, 2205.14135
// [GEMM] Goto, van de Geijn 2008, "Anatomy of high-performance matrix multiplication"
#define TESTING
#include "../run.c"
#include <dirent.h>

// ================================================================================================
// 1  Vectors
//
// As many floats at a time as a register of the machine holds, through the compiler's vector
// extensions. Row lengths in the network are multiples of 16, so there are no tails.
//
// The product's tile, TILE_M rows by TILE_N columns, has to stay in registers: two vectors a row,
// two of B and one of A. AVX-512 and NEON have 32 registers, others 16.

#if defined __AVX512F__
enum { WIDTH = 16, TILE_M = 8 };
#elif defined __AVX__
enum { WIDTH = 8, TILE_M = 6 };
#elif defined __aarch64__
enum { WIDTH = 4, TILE_M = 8 };
#else
enum { WIDTH = 4, TILE_M = 6 };
#endif
enum { TILE_N = 2 * WIDTH };

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t veci __attribute__((vector_size(4 * WIDTH)));
typedef float vecu __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias)); // any address

static inline vec load(const float *p) { return *(const vecu *)p; }
static inline void store(float *p, vec x) { *(vecu *)p = x; }
static inline vec splat(float x) { return (vec){0} + x; }
static inline vec select_vec(veci mask, vec a, vec b)
{
    return (vec)(((veci)a & mask) | ((veci)b & ~mask));
}
static inline vec max_vec(vec a, vec b) { return select_vec(a > b, a, b); }

static inline float sum_vec(vec x)
{
    float s = 0;
    for (int i = 0; i < WIDTH; i++) s += x[i];
    return s;
}

// e^x of every lane; relative error below 2e-7; 0 below -87. x = n ln 2 + r, |r| <= ln 2 / 2, and
// e^r by its Taylor series to r^6; ln 2 is split in two so that r keeps its low bits.
static inline vec exp_vec(vec x)
{
    veci tiny = x < -87.0f;
    x = select_vec(x > 88.0f, splat(88.0f), select_vec(tiny, splat(-87.0f), x));
    vec shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: rounds to integer
    veci n = (veci)shifted - 0x4B400000;
    vec whole = shifted - 12582912.0f;
    vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec p = r * (1.0f / 720) + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return select_vec(tiny, splat(0), p * (vec)((n + 127) << 23));
}

enum {
    USE_PACK_A,
    USE_PACK_B,
    USE_KEYS,
    USE_VALUES,
    USE_SCORES,
    USE_D_SCORES,
    USE_QUERIES,
    USE_D_OUT,
    N_USES
};

// A buffer of n floats that belongs to the calling thread until its next call with the same use.
static float *thread_buffer(int use, size_t n)
{
    static __thread struct {
        float *p;
        size_t n;
    } kept[N_USES];
    if (kept[use].n < n) {
        free(kept[use].p);
        kept[use].p = aligned_alloc(64, (n * sizeof(float) + 63) & ~(size_t)63);
        if (!kept[use].p) die(1, "memory", "out of memory (%zu floats)", n);
        kept[use].n = n;
    }
    return kept[use].p;
}

// ================================================================================================
// 2  Matrix product
//
// C (m, n) = A (m, k) B (k, n), with any of the three stored transposed: a View is a pointer with
// a step per row and a step per column. The three products of a linear layer Y = X W^T are
//
//     forward  Y = X W^T        d_X = d_Y W        d_W += d_Y^T X
//
// The inner kernel keeps a tile of C in registers and adds, for each k, a column of A times a row
// of B: with 8 x 32 floats, 16 multiply-adds for 2 loads of B and 8 broadcasts of A [GEMM]. B is
// copied beforehand into panels of TILE_N columns, so that the kernel reads it in order. KC columns
// of a tile of A (8 KB) stay in the nearest cache while the panels, in the next one, pass by.

enum { KC = 256, NC = 512, BLOCK_M = 96 }; // BLOCK_M: a multiple of any TILE_M
enum { PACKED_TILE = TILE_M * (KC + 2) }; // floats from one packed tile of A to the next

typedef struct {
    const float *p;
    size_t row, col;
} View; // element (i, j): p[i*row + j*col]

static View rows_of(const float *p, size_t width) { return (View){p, width, 1}; }
static View transposed(View a) { return (View){a.p, a.col, a.row}; }
static View view_at(View a, size_t i, size_t j)
{
    return (View){a.p + i * a.row + j * a.col, a.row, a.col};
}

static inline __attribute__((always_inline)) void store_tile(float *c, size_t ldc,
                                                             vec s[TILE_M][2], int add)
{
#pragma GCC unroll 8
    for (int i = 0; i < TILE_M; i++)
        for (int j = 0; j < 2; j++) {
            float *to = c + (size_t)i * ldc + j * WIDTH;
            store(to, add ? load(to) + s[i][j] : s[i][j]);
        }
}

// c (TILE_M, TILE_N) (+)= a (TILE_M, k) b (k, TILE_N), b packed.
static inline __attribute__((always_inline)) void tile_kernel(float *c, size_t ldc, View a,
                                                              const float *b, size_t k, int add)
{
    vec s[TILE_M][2];
#pragma GCC unroll 8
    for (int i = 0; i < TILE_M; i++) s[i][0] = s[i][1] = splat(0);
    for (size_t p = 0; p < k; p++) {
        vec b0 = load(b + p * TILE_N), b1 = load(b + p * TILE_N + WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < TILE_M; i++) {
            float x = a.p[(size_t)i * a.row + p * a.col];
            s[i][0] += x * b0;
            s[i][1] += x * b1;
        }
    }
    store_tile(c, ldc, s, add);
}

// The kernel for the two ways in which a tile of A can lie, each compiled with its steps known: as
// rows of a larger matrix in order, or packed, its rows interleaved.
static void tile(float *c, size_t ldc, View a, const float *b, size_t k, int add)
{
    if (a.col == 1) tile_kernel(c, ldc, (View){a.p, a.row, 1}, b, k, add);
    else tile_kernel(c, ldc, (View){a.p, 1, TILE_M}, b, k, add);
}

// A tile at the border, with fewer rows or columns: computed whole, the part that exists kept.
static void tile_border(float *c, size_t ldc, View a, const float *b, size_t k, int add, size_t m,
                        size_t n)
{
    float whole[TILE_M * TILE_N];
    tile(whole, TILE_N, a, b, k, 0);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            float *to = c + i * ldc + j;
            *to = whole[i * TILE_N + j] + (add ? *to : 0);
        }
}

// out[tile][p][i] = a(TILE_M tile + i, p): the rows of each tile interleaved, those past m zero.
// All tiles side by side, since where the rows of A are columns of a matrix the next p lies far
// away. The distance between tiles is no power of two: with one they would all fall into the same
// few lines of the nearest cache.
static void pack_a(float *out, View a, size_t m, size_t k)
{
    for (size_t p = 0; p < k; p++)
        for (size_t i = 0; i < m; i += TILE_M) {
            float *to = out + i / TILE_M * PACKED_TILE + p * TILE_M;
            const float *from = a.p + i * a.row + p * a.col;
            if (m - i >= TILE_M && a.row == 1) memcpy(to, from, TILE_M * sizeof *to);
            else
                for (size_t r = 0; r < TILE_M; r++) to[r] = i + r < m ? from[r * a.row] : 0;
        }
}

// out[panel][p][j] = b(p, TILE_N panel + j), zero past n. A panel takes k * TILE_N floats.
static void pack_b(float *out, View b, size_t k, size_t n)
{
    for (size_t j = 0; j < n; j += TILE_N, out += k * TILE_N) {
        View from = view_at(b, 0, j);
        size_t width = n - j < TILE_N ? n - j : TILE_N;
        if (width < TILE_N) memset(out, 0, k * TILE_N * sizeof(float));
        if (b.col == 1 && width == TILE_N)
            for (size_t p = 0; p < k; p++) memcpy(out + p * TILE_N, from.p + p * b.row, TILE_N * 4);
        else
            for (size_t p = 0; p < k; p++)
                for (size_t i = 0; i < width; i++)
                    out[p * TILE_N + i] = from.p[p * b.row + i * b.col];
    }
}

// c (m, n) (+)= a (m, k) b (k, n) on this thread, for k <= KC rows of a packed b whose panels are
// `panel` floats apart. Rows of A that lie in order are read where they are, but for a last tile
// that is not whole.
static void gemm_block(float *c, size_t ldc, View a, const float *b, size_t panel, size_t m,
                       size_t n, size_t k, int add)
{
    float *packed = thread_buffer(USE_PACK_A, BLOCK_M / TILE_M * PACKED_TILE);
    for (size_t first = 0; first < m; first += BLOCK_M) {
        size_t rows = min_size(m - first, BLOCK_M), in_order = a.col == 1 ? rows / TILE_M : 0;
        in_order *= TILE_M;
        pack_a(packed, view_at(a, first + in_order, 0), rows - in_order, k);
        for (size_t i = 0; i < rows; i += TILE_M)
            for (size_t j = 0; j < n; j += TILE_N) {
                View from = {packed + (i - in_order) / TILE_M * PACKED_TILE, 1, TILE_M};
                if (i < in_order) from = view_at(a, first + i, 0);
                size_t height = min_size(rows - i, TILE_M), width = min_size(n - j, TILE_N);
                float *to = c + (first + i) * ldc + j;
                if (height == TILE_M && width == TILE_N)
                    tile(to, ldc, from, b + j / TILE_N * panel, k, add);
                else tile_border(to, ldc, from, b + j / TILE_N * panel, k, add, height, width);
            }
    }
}

// The same for any k, with b packed in panels of `depth` >= k rows.
static void gemm_packed(float *c, size_t ldc, View a, const float *b, size_t depth, size_t m,
                        size_t n, size_t k, int add)
{
    for (size_t p = 0; p < k; p += KC)
        gemm_block(c, ldc, view_at(a, 0, p), b + p * TILE_N, depth * TILE_N, m, n,
                   k - p < KC ? k - p : KC, add || p > 0);
}

// The same products with both factors rounded to bfloat16 (--bf16), sums in float32: two steps of k
// in one instruction, where the machine has it; on some about twice as fast, on others no faster. A
// factor keeps 8 bits of its significand; each product is off by up to 2^-8 of itself, and a
// trained model does not show it. Pairs of k lie together in a 32-bit word: A as 8 rows (row-major
// or interleaved, as above), B in panels.
static int use_bf16;

#if defined(__AVX512BF16__) && !defined(PLAIN)
typedef uint32_t vecw __attribute__((vector_size(4 * WIDTH)));

static inline vecw round_vec(vec x) // bfloat16 in the upper half, nearest even; the rest left over
{
    vecw bits = (vecw)x;
    return bits + 0x7fff + (bits >> 16 & 1);
}
static inline vecw pair16(vec even, vec odd) // lane by lane
{
    return round_vec(even) >> 16 | (round_vec(odd) & 0xffff0000);
}
static inline vecw pair32(const float *p) // 32 floats in order: 16 pairs
{
    return (vecw)_mm512_cvtne2ps_pbh((__m512)load(p + WIDTH), (__m512)load(p));
}
static inline vec add_pairs(vec s, vecw a, vecw b) // s + a.even * b.even + a.odd * b.odd
{
    return (vec)_mm512_dpbf16_ps((__m512)s, (__m512bh)a, (__m512bh)b);
}

// c (8, 32) (+)= a (8, k) b (k, 32) from pairs of k.
static inline __attribute__((always_inline)) void tile_pairs(float *c, size_t ldc,
                                                             const uint32_t *a, size_t a_row,
                                                             size_t a_col, const uint32_t *b,
                                                             size_t k, int add)
{
    vec s[TILE_M][2];
    for (int i = 0; i < TILE_M; i++) s[i][0] = s[i][1] = splat(0);
    for (size_t p = 0; p < k / 2; p++) {
        vecw b0 = (vecw)load((const float *)(b + p * TILE_N));
        vecw b1 = (vecw)load((const float *)(b + p * TILE_N + WIDTH));
#pragma GCC unroll 8
        for (int i = 0; i < TILE_M; i++) {
            vecw x = (vecw){0} + a[(size_t)i * a_row + p * a_col];
            s[i][0] = add_pairs(s[i][0], b0, x);
            s[i][1] = add_pairs(s[i][1], b1, x);
        }
    }
    store_tile(c, ldc, s, add);
}

// out[i][p / 2]: m rows of A, each in order, as pairs.
static void pair_rows(uint32_t *out, View a, size_t m, size_t k)
{
    for (size_t i = 0; i < m; i++)
        for (size_t p = 0; p < k; p += 2 * WIDTH) {
            vecw x = pair32(a.p + i * a.row + p);
            memcpy(out + i * (KC / 2) + p / 2, &x, sizeof x);
        }
}

// out[i / 8][p / 2][i % 8]: m rows of A that lie side by side. Many at a time, since the next p is
// far away in memory; two tiles of 8 fill a vector.
static void pair_columns(uint32_t *out, View a, size_t m, size_t k)
{
    for (size_t p = 0; p < k; p += 2)
        for (size_t i = 0; i < m; i += WIDTH) {
            const float *even = a.p + p * a.col + i;
            vecw x = pair16(load(even), load(even + a.col));
            uint32_t *to = out + i * (KC / 2) + p / 2 * TILE_M;
            memcpy(to, &x, TILE_M * 4);
            memcpy(to + TILE_M * (KC / 2), (const char *)&x + TILE_M * 4, TILE_M * 4);
        }
}

// out[panel][p / 2][j]: B as pairs, for n a multiple of 32.
static void pair_b(uint32_t *out, View b, size_t k, size_t n)
{
    for (size_t j = 0; j < n; j += TILE_N, out += k / 2 * TILE_N) {
        const float *from = b.p + j * b.col;
        if (b.col == 1)
            for (size_t p = 0; p < k; p += 2)
                for (size_t i = 0; i < TILE_N; i += WIDTH) {
                    const float *even = from + p * b.row + i;
                    vecw x = pair16(load(even), load(even + b.row));
                    memcpy(out + p / 2 * TILE_N + i, &x, sizeof x);
                }
        else
            for (size_t i = 0; i < TILE_N; i++)
                for (size_t p = 0; p < k; p += 2 * WIDTH) {
                    vecw x = pair32(from + i * b.col + p);
                    for (size_t q = 0; q < WIDTH; q++) out[(p / 2 + q) * TILE_N + i] = x[q];
                }
    }
}

// c (m, n) (+)= a b on this thread, for k <= KC, b in pairs.
static void gemm_block_pairs(float *c, size_t ldc, View a, const uint32_t *b, size_t m, size_t n,
                             size_t k, int add)
{
    enum { ROWS = 64 };
    uint32_t *pairs = (uint32_t *)thread_buffer(USE_PACK_A, ROWS * KC / 2);
    size_t row = a.col == 1 ? KC / 2 : 1, col = a.col == 1 ? 1 : TILE_M;
    for (size_t first = 0; first < m; first += ROWS) {
        size_t rows = m - first < ROWS ? m - first : ROWS;
        (a.col == 1 ? pair_rows : pair_columns)(pairs, view_at(a, first, 0), rows, k);
        for (size_t i = 0; i < rows; i += TILE_M)
            for (size_t j = 0; j < n; j += TILE_N)
                tile_pairs(c + (first + i) * ldc + j, ldc, pairs + i * (KC / 2), row, col,
                           b + j * (k / 2), k, add);
    }
}

#endif

// Whether the product has the form that the kernel of pairs takes.
static int fits_pairs(View a, View b, size_t m, size_t n, size_t k)
{
    return use_bf16 && m % WIDTH == 0 && n % TILE_N == 0 && k % (2 * WIDTH) == 0 &&
           (a.col == 1 || a.row == 1) && (b.col == 1 || b.row == 1);
}

typedef struct {
    float *c;
    size_t ldc;
    View a, b;
    size_t m, n, k, block_m;
    int add, pairs;
} Gemm;

// One block: c (m, n) (+)= a (m, k) b (k, n) for k <= KC; packed has room for b.
static void pack_and_multiply(const Gemm *g, float *c, View a, View b, float *packed, size_t m,
                              size_t n, size_t k, int add)
{
#if defined(__AVX512BF16__) && !defined(PLAIN)
    if (g->pairs) {
        pair_b((uint32_t *)packed, b, k, n);
        gemm_block_pairs(c, g->ldc, a, (uint32_t *)packed, m, n, k, add);
        return;
    }
#endif
    pack_b(packed, b, k, n);
    gemm_block(c, g->ldc, a, packed, k * TILE_N, m, n, k, add);
}

// Computes block t of C, block_m rows by NC columns. Each thread packs the part of B it needs
// itself: that costs little next to the product and spares a rendezvous.
static void gemm_task(void *arg, size_t t)
{
    const Gemm *g = arg;
    size_t across = (g->n + NC - 1) / NC;
    size_t i = t / across * g->block_m, j = t % across * NC;
    size_t m = g->m - i < g->block_m ? g->m - i : g->block_m;
    size_t n = g->n - j < NC ? g->n - j : NC;
    float *packed = thread_buffer(USE_PACK_B, (size_t)KC * NC);
    for (size_t p = 0; p < g->k; p += KC) {
        size_t k = g->k - p < KC ? g->k - p : KC;
        pack_and_multiply(g, g->c + i * g->ldc + j, view_at(g->a, i, p), view_at(g->b, p, j),
                          packed, m, n, k, g->add || p > 0);
    }
}

// C (m, n) with rows ldc apart (+)= A B, on all threads. Every element is summed in the same order
// whatever their number: k in steps of one, in blocks of KC.
static void gemm(float *c, size_t ldc, View a, View b, size_t m, size_t n, size_t k, int add)
{
    Gemm g = {c, ldc, a, b, m, n, k, 16 * BLOCK_M, add, fits_pairs(a, b, m, n, k)};
    size_t across = (n + NC - 1) / NC;
    size_t wanted = 4 * (size_t)pool.n_threads; // blocks; each packs its part of B anew
    while (g.block_m > BLOCK_M && (m + g.block_m - 1) / g.block_m * across < wanted)
        g.block_m /= 2;
    parallel_for((m + g.block_m - 1) / g.block_m * across, 1, gemm_task, &g);
}

// The three products of a linear layer: x (R, in), w (out, in), y (R, out).
static void linear(float *y, const float *x, const float *w, size_t R, size_t in, size_t out,
                   int add)
{
    gemm(y, out, rows_of(x, in), transposed(rows_of(w, in)), R, out, in, add);
}
static void linear_backward(float *d_x, float *d_w, const float *d_y, const float *x,
                            const float *w, size_t R, size_t in, size_t out)
{
    gemm(d_x, in, rows_of(d_y, out), rows_of(w, in), R, in, out, 0);
    gemm(d_w, in, transposed(rows_of(d_y, out)), rows_of(x, in), out, in, R, 1);
}

// ================================================================================================
// 3  Shape and parameters
//
// All parameters lie in one array, and so do their gradients and the optimizer's two moments; the
// same function places the pointers into each. Matrices that read the same input lie together and
// are one product: wq, wk, wv are the rows of wqkv; w1 (gate) and w3 (up) those of w13.

enum { MAX_LAYERS = 48 };

typedef struct {
    int32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, train_ctx;
    uint16_t encoding, spread; // spread: positions come from so many times train_ctx; 0: 0 .. T-1
    float rope_theta, norm_eps;
} Shape;

static size_t head_size(const Shape *s) { return (size_t)(s->dim / s->n_heads); }
static size_t kv_width(const Shape *s) { return head_size(s) * (size_t)s->n_kv_heads; }
static size_t qkv_width(const Shape *s) { return (size_t)s->dim + 2 * kv_width(s); }

typedef struct {
    float *att_norm, *ffn_norm; // (dim)
    float *wqkv;                // (qkv, dim)
    float *wo;                  // (dim, dim)
    float *w13;                 // (2 hidden, dim)
    float *w2;                  // (dim, hidden)
} NetLayer;

typedef struct {
    float *embedding;  // (vocab, dim), also the classifier
    float *final_norm; // (dim)
    NetLayer layer[MAX_LAYERS];
    float *encoding; // what the encoding learns, as in run.c's table; see place_encoding
} Params;

// Where the optimizer finds one matrix or vector inside the arrays, and how it treats it.
enum { KIND_NORM, KIND_EMBEDDING, KIND_MATRIX, KIND_TABLE, MAX_PARTS = 8 + MAX_LAYERS * 9 };
typedef struct {
    size_t at, rows, cols;
    int kind;
} Part;
typedef struct {
    Part part[MAX_PARTS];
    int n;
    size_t size;
} Parts;

static size_t add_part(Parts *p, size_t rows, size_t cols, int kind)
{
    size_t at = p->size;
    p->part[p->n++] = (Part){at, rows, cols, kind};
    p->size += rows * cols;
    return at;
}

enum { T5_BUCKETS = 32, T5_DISTANCE = 128, SHAW_DISTANCE = 32 };

// Positions that training can meet.
static size_t n_positions(const Shape *s)
{
    return (size_t)s->train_ctx * (s->spread ? s->spread : 1);
}

// What the encoding learns, in the order of run.c's section 10. Numbers that must be positive are
// kept as logarithms: of kerple's r1 and r2, of fire's c / 0.1 and T / (train_ctx / 4).
static void place_encoding(Parts *p, const Shape *s)
{
    size_t heads = (size_t)s->n_heads;
    switch (s->encoding) {
    case ENC_LEARNED: add_part(p, n_positions(s), (size_t)s->dim, KIND_TABLE); break;
    case ENC_T5: add_part(p, T5_BUCKETS, heads, KIND_TABLE); break;
    case ENC_SHAW: add_part(p, SHAW_DISTANCE + 1, head_size(s), KIND_TABLE); break;
    case ENC_KERPLE:
        add_part(p, 1, heads, KIND_TABLE);
        add_part(p, 1, heads, KIND_TABLE);
        break;
    case ENC_FIRE:
        add_part(p, 1, 1, KIND_TABLE);
        add_part(p, 1, 1, KIND_TABLE);
        add_part(p, 1, FIRE_HIDDEN, KIND_TABLE);
        add_part(p, 1, FIRE_HIDDEN, KIND_TABLE);
        add_part(p, heads, FIRE_HIDDEN, KIND_TABLE);
        add_part(p, 1, heads, KIND_TABLE);
        break;
    default: break;
    }
}

static float *at(float *base, size_t offset) { return base ? base + offset : NULL; }

// Lists the parts of the network and points `w` into the array at base (which may be NULL, to
// learn the size only).
static void place_params(Params *w, Parts *parts, const Shape *s, float *base)
{
    size_t dim = (size_t)s->dim, hidden = (size_t)s->hidden_dim, kv = kv_width(s);
    *parts = (Parts){.n = 0};
    w->embedding = at(base, add_part(parts, (size_t)s->vocab_size, dim, KIND_EMBEDDING));
    w->final_norm = at(base, add_part(parts, 1, dim, KIND_NORM));
    for (int l = 0; l < s->n_layers; l++) {
        NetLayer *y = &w->layer[l];
        y->att_norm = at(base, add_part(parts, 1, dim, KIND_NORM));
        y->ffn_norm = at(base, add_part(parts, 1, dim, KIND_NORM));
        y->wqkv = at(base, add_part(parts, dim, dim, KIND_MATRIX)); // wq
        add_part(parts, kv, dim, KIND_MATRIX);                      // wk
        add_part(parts, kv, dim, KIND_MATRIX);                      // wv
        y->wo = at(base, add_part(parts, dim, dim, KIND_MATRIX));
        y->w13 = at(base, add_part(parts, hidden, dim, KIND_MATRIX)); // w1
        add_part(parts, hidden, dim, KIND_MATRIX);                    // w3
        y->w2 = at(base, add_part(parts, dim, hidden, KIND_MATRIX));
    }
    w->encoding = at(base, parts->size);
    place_encoding(parts, s);
}

// splitmix64: one 64-bit word of state, so that a saved run continues with the same numbers.
static uint64_t draw_bits(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static double draw_real(uint64_t *state)
{ // [0, 1)
    return (double)(draw_bits(state) >> 11) * 0x1p-53;
}
static int draw_below(uint64_t *state, int n) { return (int)(draw_real(state) * n); }
static double draw_normal(uint64_t *state)
{ // Box-Muller
    double u = 1 - draw_real(state), v = draw_real(state);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

// Table k of the encoding: normal with deviation 0.02, but kerple's r1 evenly from 0 to 2 and r2
// from 0 to 1 over the heads, fire's c and T as above and its hidden units spread over the input.
static void init_table(float *w, Part p, int k, const Shape *s, uint64_t *rng)
{
    for (size_t i = 0; i < p.rows * p.cols; i++) {
        double normal = draw_normal(rng), share = ((double)i + 0.5) / (double)p.cols;
        w[i] = (float)(0.02 * normal);
        if (s->encoding == ENC_KERPLE) w[i] = (float)log(k ? share : 2 * share);
        if (s->encoding == ENC_FIRE)
            w[i] = (float)(k < 2 || k == 5 ? 0 : k == 4 ? 0.1 * normal : 0.6 * normal);
    }
}

// Norms 1, matrices normal with deviation 0.02, those that write into the residual stream (wo, w2)
// less by 1/sqrt(2 n_layers), because that many of them add up there [GPT-2]. The encoding's
// tables draw their own numbers, so that all else is the same for every encoding.
static void init_params(float *base, const Parts *parts, const Shape *s, uint64_t *rng)
{
    uint64_t own = ~*rng; // not *rng, or the tables would repeat the embedding's numbers
    int first_table = 2 + 9 * s->n_layers;
    for (int i = 0; i < parts->n; i++) {
        Part p = parts->part[i];
        int in_layer = (i - 2) % 9; // place_params' order
        int writes = i >= 2 && (in_layer == 5 || in_layer == 8);
        double deviation = 0.02 / (writes ? sqrt(2.0 * s->n_layers) : 1);
        if (p.kind == KIND_TABLE) init_table(base + p.at, p, i - first_table, s, &own);
        for (size_t k = 0; p.kind != KIND_TABLE && k < p.rows * p.cols; k++)
            base[p.at + k] = p.kind == KIND_NORM ? 1 : (float)(deviation * draw_normal(rng));
    }
}

// ================================================================================================
// 4  Steps
//
// The small steps between the matrix products, row by row, each beside its derivative.

typedef struct {
    const float *in, *in2, *in3;
    float *out, *out2;
    size_t width;
    float eps;
    const float *table;
} RowStep;

enum { ROW_GRAIN = 64 };

// out = in / sqrt(mean(in^2) + eps) * weight (in2); out2, one float a row: 1 / sqrt(...).
static void rmsnorm_task(void *arg, size_t r)
{
    const RowStep *a = arg;
    const float *x = a->in + r * a->width;
    float *y = a->out + r * a->width;
    vec squares = splat(0);
    for (size_t i = 0; i < a->width; i += WIDTH) squares += load(x + i) * load(x + i);
    float rstd = 1 / sqrtf(sum_vec(squares) / (float)a->width + a->eps);
    for (size_t i = 0; i < a->width; i += WIDTH)
        store(y + i, load(x + i) * rstd * load(a->in2 + i));
    a->out2[r] = rstd;
}

static void norm_forward(float *y, float *rstd, const float *x, const float *w, size_t R,
                         const Shape *s)
{
    RowStep a = {
        .in = x, .in2 = w, .out = y, .out2 = rstd, .width = (size_t)s->dim, .eps = s->norm_eps};
    parallel_for(R, ROW_GRAIN, rmsnorm_task, &a);
}

// y_i = x_i r w_i with r = (mean x^2 + eps)^-1/2, g_i = d_y_i w_i:
//     d_x_i += r (g_i - x_i r^2 mean(g x))        d_w_i += sum over rows of d_y_i x_i r
// in d_y, in2 x, in3 r; out d_x; out2 one row of d_w for every block of ROW_GRAIN rows, added up
// by the caller in a fixed order. table w.
static void norm_backward_task(void *arg, size_t r)
{
    const RowStep *a = arg;
    const float *x = a->in2 + r * a->width, *d_y = a->in + r * a->width, *w = a->table;
    float *d_x = a->out + r * a->width, *d_w = a->out2 + r / ROW_GRAIN * a->width;
    float rstd = a->in3[r];
    vec dots = splat(0);
    for (size_t i = 0; i < a->width; i += WIDTH)
        dots += load(d_y + i) * load(w + i) * load(x + i);
    float mean = sum_vec(dots) / (float)a->width * rstd * rstd;
    for (size_t i = 0; i < a->width; i += WIDTH) {
        vec g = load(d_y + i), xi = load(x + i);
        store(d_x + i, load(d_x + i) + rstd * (g * load(w + i) - xi * mean));
        store(d_w + i, load(d_w + i) + g * xi * rstd);
    }
}

// partial: room for ceil(R / ROW_GRAIN) rows of dim floats.
static void norm_backward(float *d_x, float *d_w, const float *d_y, const float *x,
                          const float *rstd, const float *w, size_t R, const Shape *s,
                          float *partial)
{
    size_t dim = (size_t)s->dim, blocks = (R + ROW_GRAIN - 1) / ROW_GRAIN;
    memset(partial, 0, blocks * dim * sizeof(float));
    RowStep a = {
        .in = d_y, .in2 = x, .in3 = rstd, .out = d_x, .out2 = partial, .width = dim, .table = w};
    parallel_for(R, ROW_GRAIN, norm_backward_task, &a);
    for (size_t b = 0; b < blocks; b++)
        for (size_t i = 0; i < dim; i++) d_w[i] += partial[b * dim + i];
}

static inline vec sigmoid_vec(vec x) { return 1 / (1 + exp_vec(-x)); }

// in (R, 2 hidden): gate | up.  out (R, hidden) = silu(gate) * up,  silu(g) = g / (1 + e^-g).
static void swiglu_task(void *arg, size_t r)
{
    const RowStep *a = arg;
    for (size_t i = 0; i < a->width; i += WIDTH) {
        const float *gate = a->in + r * 2 * a->width + i;
        vec g = load(gate);
        store(a->out + r * a->width + i, g * sigmoid_vec(g) * load(gate + a->width));
    }
}

// d_up = d silu(g);  d_gate = d up (s + g s (1 - s)),  s = sigmoid(g). in d (R, hidden), in2
// gate | up, out d_gate | d_up (R, 2 hidden).
static void swiglu_backward_task(void *arg, size_t r)
{
    const RowStep *a = arg;
    for (size_t i = 0; i < a->width; i += WIDTH) {
        size_t at = r * 2 * a->width + i;
        vec d = load(a->in + r * a->width + i), g = load(a->in2 + at);
        vec up = load(a->in2 + at + a->width), s = sigmoid_vec(g);
        store(a->out + at, d * up * (s + g * s * (1 - s)));
        store(a->out + at + a->width, d * g * s);
    }
}

// s[0..n) := e^(s - shift); returns the sum.
static float exp_row(float *s, size_t n, float shift)
{
    vec total = splat(0);
    for (size_t j = 0; j < n; j += WIDTH) {
        vec e = exp_vec(load(s + j) - shift);
        total += e;
        store(s + j, e);
    }
    return sum_vec(total);
}

static float max_row(const float *s, size_t n)
{
    vec top = load(s);
    for (size_t j = WIDTH; j < n; j += WIDTH) top = max_vec(top, load(s + j));
    float m = top[0];
    for (int i = 1; i < WIDTH; i++) m = top[i] > m ? top[i] : m;
    return m;
}

// Softmax, loss and its derivative for rows of logits, in place: logits become d_logits.
//     loss_r = log sum_j e^(z_j) - z_target        d_z_j = weight_r (softmax_j - [j = target])
// logits (rows, V); loss in nats and weight, one a row.
typedef struct {
    float *logits, *loss;
    const float *weight;
    const uint16_t *target;
    size_t V;
} Loss;

static void loss_task(void *arg, size_t r)
{
    const Loss *a = arg;
    float *z = a->logits + r * a->V;
    float top = max_row(z, a->V), z_target = z[a->target[r]] - top;
    float sum = exp_row(z, a->V, top), factor = a->weight[r] / sum;
    a->loss[r] = logf(sum) - z_target;
    for (size_t j = 0; j < a->V; j += WIDTH) store(z + j, load(z + j) * factor);
    z[a->target[r]] -= a->weight[r];
}

// ================================================================================================
// 5  Positions
//
// The three places of run.c's section 4, forward and backward. Biases come from run.c's own
// functions, called with the numbers of the moment as if a file had held them. They depend on the
// head, the query and the key but not on the text, so they are worked out once a pass, and their
// derivatives are gathered over all layers and sequences before they reach the parameters.
//
// Positions are 0 .. T - 1, or else, with spread > 0, others for each sequence: T of them at
// random in rising order [Random], or for sinusoidal all moved by one random offset [SHAPE].
// CAPE's (Likhomanenko et al. 2021, arXiv 2106.03143) are real numbers: moved by such an offset,
// each by up to half a token more, and stretched around the sequence's middle by one factor
// between 1/1.4 and 1.4. DroPE (Gelberg et al. 2025, arXiv 2512.12167) turns q and k for the first
// seven eighths of a run and then no longer: what it writes is a model without positions.

typedef struct {
    Config config;          // for run.c's functions
    size_t T, pitch;        // pitch: floats of a row of biases
    int32_t *position;      // (R), and for CAPE as a real number, or NULL
    double *real;
    const float *added;     // place 1: (positions, dim) or NULL
    float *rotation;        // place 2: (2, positions, head_dim), of queries and of keys, or NULL
    float *bias, *d_bias;   // place 3: (heads, T, pitch), (sequences, heads, T, pitch), or NULL
    float *table, *partial; // kerple, fire: the numbers as in a file; fire: (T, numbers)
    float *d_shaw;          // (sequences * n_kv_heads, SHAW_DISTANCE + 1, head_dim)
    size_t table_size;
} Places;

static void plain_positions(Places *e, size_t R)
{
    for (size_t r = 0; r < R; r++) e->position[r] = (int32_t)(r % e->T);
    for (size_t r = 0; e->real && r < R; r++) e->real[r] = (double)(r % e->T);
}

// CAPE's positions of one sequence that begins at integer position `from`.
static void draw_real_positions(double *real, size_t T, double from, uint64_t *rng)
{
    double stretch = pow(1.4, 2 * draw_real(rng) - 1), middle = 0.5 * ((double)T - 1);
    for (size_t t = 0; t < T; t++) {
        double p = (double)t - middle + draw_real(rng) - 0.5;
        real[t] = from + middle + stretch * p;
    }
}

// Positions of R rows for training; the same seed draws the same.
static void draw_positions(Places *e, size_t R, const Shape *s, uint64_t seed)
{
    size_t T = e->T, all = n_positions(s);
    for (size_t r = 0; s->spread && r < R; r += T) {
        size_t chosen = 0, p = 0;
        uint64_t rng = seed + r;
        rng = draw_bits(&rng);
        if (s->encoding == ENC_SINUSOIDAL) p = (size_t)draw_below(&rng, (int)(all - T + 1));
        for (; chosen < T; p++) // selection sampling: position p with the chance wanted / left
            if (s->encoding == ENC_SINUSOIDAL ||
                draw_real(&rng) * (double)(all - p) < (double)(T - chosen))
                e->position[r + chosen++] = (int32_t)p;
        if (e->real) draw_real_positions(e->real + r, T, e->position[r], &rng);
    }
}

// --- Place 2: rotation --------------------------------------------------------------------------

typedef struct {
    float *qkv;
    const Shape *shape;
    const Places *places;
    float sign;
} Rotation;

// [RoPE] Rotates pair (2i, 2i+1) of every query and key head of qkv (R, qkv), in place, by the
// angle pos * theta^(-2i/head_dim); by the opposite angle if sign < 0, which is the derivative.
// rotation: cos and sin of pair i in 2i and 2i+1.
static void rotate_task(void *arg, size_t r)
{
    const Rotation *a = arg;
    const Shape *s = a->shape;
    size_t hd = head_size(s), dim = (size_t)s->dim, width = dim + kv_width(s);
    const float *query = a->places->rotation + (size_t)a->places->position[r] * hd;
    const float *key = query + n_positions(s) * hd;
    float *x = a->qkv + r * qkv_width(s);
    for (size_t h = 0; h < width; h += hd)
        for (size_t i = 0; i < hd; i += 2) {
            const float *turn = (h < dim ? query : key) + i;
            float re = x[h + i], im = x[h + i + 1], c = turn[0], sn = a->sign * turn[1];
            x[h + i] = re * c - im * sn;
            x[h + i + 1] = re * sn + im * c;
        }
}

static void rotate_heads(float *qkv, size_t R, const Shape *s, const Places *e, float sign)
{
    Rotation a = {qkv, s, e, sign};
    if (e->rotation) parallel_for(R, ROW_GRAIN, rotate_task, &a);
}

// xPos: query amplitudes zeta^(p/512), key amplitudes the inverse, p from the middle.
static float *rotation_table(const Shape *s)
{
    size_t hd = head_size(s), n = n_positions(s);
    float *table = xcalloc(2 * n * hd, sizeof(float));
    for (size_t pos = 0; pos < n; pos++)
        for (size_t i = 0; i < hd; i += 2) {
            double angle = (double)pos * pow(s->rope_theta, -(double)i / (double)hd), fade = 0;
            if (s->encoding == ENC_XPOS)
                fade = xpos_decay((int)hd, (int)i / 2) * ((double)pos - 0.5 * (double)n);
            for (size_t key = 0; key < 2; key++) {
                float *to = table + (key * n + pos) * hd + i;
                to[0] = (float)(exp(key ? -fade : fade) * cos(angle));
                to[1] = (float)(exp(key ? -fade : fade) * sin(angle));
            }
        }
    return table;
}

// --- Place 3: biases ----------------------------------------------------------------------------

// One row of the biases, row = head * T + query.
static void bias_task(void *arg, size_t row)
{
    const Places *e = arg;
    size_t i = row % e->T;
    Query q = {&e->config, row / e->T, (int64_t)i, NULL};
    for (size_t t0 = 0; t0 <= i; t0 += TILE) {
        float D[TILE], *bias = e->bias + row * e->pitch + t0;
        for (size_t k = 0; k < TILE; k++) D[k] = i > t0 + k ? (float)(i - t0 - k) : 0;
        memset(bias, 0, sizeof D);
        encodings[e->config.encoding].bias(&q, D, bias);
    }
}

// Takes over the parameters of the moment, before a pass.
static void set_places(Places *e, const float *params)
{
    int n_positive = e->config.encoding == ENC_FIRE ? 2 : 2 * e->config.n_heads;
    e->config.table = params;
    if (e->config.encoding == ENC_LEARNED) e->added = params;
    if (e->table) {
        memcpy(e->table, params, e->table_size * sizeof(float));
        for (int i = 0; i < n_positive; i++) e->table[i] = expf(params[i]);
        if (e->config.encoding == ENC_FIRE) {
            e->table[0] *= 0.1f;
            e->table[1] *= (float)e->T / 4;
        }
        e->config.table = e->table;
    }
    if (e->bias) parallel_for((size_t)e->config.n_heads * e->T, 16, bias_task, e);
}

// by[D] = the sum of d_bias over all queries of one head.
static void sum_by_distance(const Places *e, size_t head, double *by)
{
    memset(by, 0, e->T * sizeof *by);
    for (size_t i = 0; i < e->T; i++)
        for (size_t j = 0; j <= i; j++) by[i - j] += e->d_bias[(head * e->T + i) * e->pitch + j];
}

// bias = table[bucket(D)][h]
static void t5_backward(const Places *e, size_t head, const double *by, float *d)
{
    for (size_t D = 0; D < e->T; D++) {
        size_t b = (size_t)t5_buckets(&e->config, vset((float)D))[0];
        d[b * (size_t)e->config.n_heads + head] += (float)by[D];
    }
}

// bias = -r1 ln(1 + r2 D);  d_ln r1 = d bias,  d_ln r2 = -d r1 r2 D / (1 + r2 D)
static void kerple_backward(const Places *e, size_t head, const double *by, float *d)
{
    size_t heads = (size_t)e->config.n_heads;
    double r1 = e->table[head], r2 = e->table[heads + head], d_r1 = 0, d_r2 = 0;
    for (size_t D = 0; D < e->T; D++) {
        d_r1 -= by[D] * r1 * log1p(r2 * (double)D);
        d_r2 -= by[D] * r1 * r2 * (double)D / (1 + r2 * (double)D);
    }
    d[head] += (float)d_r1;
    d[heads + head] += (float)d_r2;
}

// Hidden unit u for query i: h = relu(w1 x + b1), bias_head = sum over u of w2[head][u] h + b2.
// x, ones [n]; adds to d (laid out as the table) and to d_x [n]; work [2 pitch].
static void fire_unit(const Places *e, size_t i, size_t u, const float *x, const float *ones,
                      float *d_x, float *d, float *work)
{
    size_t heads = (size_t)e->config.n_heads, n = i + 1, at_w2 = 2 + 2 * FIRE_HIDDEN + u;
    float *h = work, *d_h = work + e->pitch;
    float w1 = e->table[2 + u], b1 = e->table[2 + FIRE_HIDDEN + u];
    for (size_t j = 0; j < n; j++) h[j] = fmaxf(w1 * x[j] + b1, 0);
    memset(d_h, 0, n * sizeof(float));
    for (size_t head = 0; head < heads; head++) {
        const float *g = e->d_bias + (head * e->T + i) * e->pitch;
        float w2 = e->table[at_w2 + head * FIRE_HIDDEN];
        for (size_t j = 0; j < n; j++) d_h[j] += w2 * g[j];
        d[at_w2 + head * FIRE_HIDDEN] += dot(g, h, n);
    }
    for (size_t j = 0; j < n; j++) {
        d_h[j] = h[j] > 0 ? d_h[j] : 0;
        d_x[j] += w1 * d_h[j];
    }
    d[2 + u] += dot(d_h, x, n);
    d[2 + FIRE_HIDDEN + u] += dot(d_h, ones, n);
}

// Query i: e->partial[i], the derivatives of fire's numbers. With N = max(i, T):
//     x = ln(cD + 1) / ln(cN + 1)      d_x/d_c = (D / (cD + 1) - x N / (cN + 1)) / ln(cN + 1)
//                           d_x/d_T = -x c / ((cN + 1) ln(cN + 1)) where N = T
static void fire_task(void *arg, size_t i)
{
    const Places *e = arg;
    size_t heads = (size_t)e->config.n_heads, at_b2 = e->table_size - heads;
    float c = e->table[0], T = e->table[1], *x = thread_buffer(USE_SCORES, 5 * e->pitch);
    float *ones = x + e->pitch, *d_x = ones + e->pitch, *work = d_x + e->pitch;
    float *d = e->partial + i * e->table_size, N = fmaxf((float)i, T), psi = log1pf(c * N);
    float slope = N / (c * N + 1), d_c = 0, along = 0;
    memset(d, 0, e->table_size * sizeof(float));
    for (size_t j = 0; j <= i; j++) {
        x[j] = log1pf(c * (float)(i - j)) / psi;
        ones[j] = 1;
        d_x[j] = 0;
    }
    for (size_t u = 0; u < FIRE_HIDDEN; u++) fire_unit(e, i, u, x, ones, d_x, d, work);
    for (size_t j = 0; j <= i; j++) {
        float D = (float)(i - j);
        d_c += d_x[j] * (D / (c * D + 1) - x[j] * slope) / psi;
        along += d_x[j] * x[j];
    }
    d[0] = d_c * c;
    d[1] = (float)i < T ? -along * c * T / ((c * N + 1) * psi) : 0;
    for (size_t head = 0; head < heads; head++)
        d[at_b2 + head] = dot(e->d_bias + (head * e->T + i) * e->pitch, ones, i + 1);
}

// d[size] += the sum over n rows of size floats.
static void add_up(float *d, const float *rows, size_t n, size_t size)
{
    for (size_t r = 0; r < n; r++)
        for (size_t i = 0; i < size; i++) d[i] += rows[r * size + i];
}

// From the derivatives of biases, gathered over so many sequences, to d, those of the parameters.
static void places_backward(Places *e, size_t sequences, float *d)
{
    size_t heads = (size_t)e->config.n_heads;
    if (e->d_shaw)
        add_up(d, e->d_shaw, sequences * (size_t)e->config.n_kv_heads, e->table_size);
    if (!e->d_bias) return;
    if (sequences > 1) {
        size_t size = heads * e->T * e->pitch;
        add_up(e->d_bias, e->d_bias + size, sequences - 1, size);
    }
    if (e->config.encoding == ENC_FIRE) {
        parallel_for(e->T, 8, fire_task, e);
        add_up(d, e->partial, e->T, e->table_size);
        return;
    }
    double *by = xcalloc(e->T, sizeof *by);
    for (size_t head = 0; head < heads; head++) {
        sum_by_distance(e, head, by);
        (e->config.encoding == ENC_T5 ? t5_backward : kerple_backward)(e, head, by, d);
    }
    free(by);
}

// Shaw: s[j] += q . r[min(i - j, K)], before scaling; r (K + 1, hd).
static void shaw_scores(float *s, const float *q, const float *r, size_t i, size_t hd)
{
    float by[SHAW_DISTANCE + 1];
    for (size_t n = 0; n <= SHAW_DISTANCE; n++) by[n] = dot(q, r + n * hd, hd);
    for (size_t j = 0; j <= i; j++) s[j] += by[min_size(i - j, SHAW_DISTANCE)];
}

// d_q += sum over j of d_s[j] r[min(i - j, K)];  d_r[min(i - j, K)] += d_s[j] q
static void shaw_backward(const float *d_s, const float *q, const float *r, size_t i, size_t hd,
                          float *d_q, float *d_r)
{
    float by[SHAW_DISTANCE + 1] = {0};
    for (size_t j = 0; j <= i; j++) by[min_size(i - j, SHAW_DISTANCE)] += d_s[j];
    for (size_t n = 0; n <= SHAW_DISTANCE; n++)
        for (size_t k = 0; k < hd; k++) {
            d_q[k] += by[n] * r[n * hd + k];
            d_r[n * hd + k] += by[n] * q[k];
        }
}

static float *floats(size_t rows, size_t width)
{
    float *p = aligned_alloc(64, (rows * width * sizeof(float) + 63) & ~(size_t)63);
    if (!p) die(1, "memory", "out of memory (%zu floats)", rows * width);
    memset(p, 0, rows * width * sizeof(float));
    return p;
}

static float *sinusoidal_rows(const Config *c, size_t n)
{
    float *rows = floats(n, (size_t)c->dim);
    for (size_t p = 0; p < n; p++) add_sinusoidal(c, (double)p, rows + p * (size_t)c->dim);
    return rows;
}

// From now on nothing turns.
static void drop_positions(Places *e)
{
    e->config.encoding = ENC_NOPE;
    e->rotation = NULL;
}

// Room for so many sequences at a time; table_size: parameters of the encoding.
static void places_alloc(Places *e, const Shape *s, size_t sequences, size_t table_size)
{
    int kind = s->encoding, learns = kind == ENC_T5 || kind == ENC_KERPLE || kind == ENC_FIRE;
    size_t T = (size_t)s->train_ctx, heads = (size_t)s->n_heads;
    *e = (Places){.T = T, .pitch = round_up(T, TILE), .table_size = table_size};
    e->config = (Config){.dim = s->dim, .n_heads = s->n_heads, .n_kv_heads = s->n_kv_heads,
                         .head_dim = (int)head_size(s), .encoding = (Encoding)kind,
                         .max_distance = kind == ENC_T5 ? T5_DISTANCE : 0};
    if (kind == ENC_LEARNED) e->config.rows = (int)n_positions(s);
    if (kind == ENC_T5) e->config.rows = T5_BUCKETS;
    if (kind == ENC_SHAW) e->config.rows = SHAW_DISTANCE;
    e->position = xcalloc(T * sequences, sizeof *e->position);
    plain_positions(e, T * sequences);
    if (kind == ENC_SINUSOIDAL) e->added = sinusoidal_rows(&e->config, n_positions(s));
    if (is_rotary(&e->config)) e->rotation = rotation_table(s);
    if (kind == ENC_SHAW) e->d_shaw = floats(sequences * (size_t)s->n_kv_heads, table_size);
    else if (encodings[kind].bias) e->bias = floats(heads * T, e->pitch);
    if (learns) e->d_bias = floats(sequences * heads * T, e->pitch);
    if (kind == ENC_KERPLE || kind == ENC_FIRE) e->table = floats(table_size, 1);
    if (kind == ENC_FIRE) e->partial = floats(T, table_size);
}

// ================================================================================================
// 6  Attention
//
// One task is one sequence and one key/value head with the query heads that share it. Queries go
// in blocks of 64, each against the keys up to its own end: the scores of a block (64, T) stay in
// the cache and are never kept. Backward computes them again from q, k and the saved log-sum-exp
// of each row [Flash].
//
//     S = Q K^T / sqrt(head_dim) + bias      P = softmax(S), j <= i only      O = P V
//     d_P = d_O V^T      d_S = P (d_P - rowsum(d_O O))      d_V += P^T d_O
//     d_Q = d_S K / sqrt(head_dim)      d_K += d_S^T Q / sqrt(head_dim)

enum { QUERIES = 64 };

typedef struct {
    const Shape *shape;
    const Places *places;
    size_t T;
    float *qkv, *out, *lse; // (R, qkv), (R, dim), (R, n_heads)
    const float *d_out;     // (R, dim)
    float *d_qkv;           // (R, qkv)
} Attending;

// One head of one sequence: row 0 of each, and its keys and values packed for the products.
typedef struct {
    const float *q, *d_o;
    float *o, *lse, *d_q, *d_k, *d_v;
    const float *keys_t, *keys, *values_t, *values; // (hd, T), (T, hd), (hd, T), (T, hd)
    const float *bias, *shaw;                       // (T, pitch), (K + 1, hd), or NULL
    float *d_bias, *d_shaw;
} Head;

// Scores of query i with q (hd), s[0..n), in place: scaled, with the relative bias (place 3), and
// -inf for keys after i. n is a multiple of 16.
static void finish_scores(float *s, const Attending *a, const Head *h, const float *q, size_t i,
                          size_t n, float scale)
{
    if (h->shaw) shaw_scores(s, q, h->shaw, i, head_size(a->shape));
    for (size_t j = 0; j < n; j += WIDTH) store(s + j, load(s + j) * scale);
    for (size_t j = 0; h->bias && j < n; j += WIDTH)
        store(s + j, load(s + j) + load(h->bias + i * a->places->pitch + j));
    for (size_t j = i + 1; j < n; j++) s[j] = -INFINITY;
}

static void attend_block(const Attending *a, const Head *h, size_t i0)
{
    const Shape *s = a->shape;
    size_t hd = head_size(s), m = a->T - i0 < QUERIES ? a->T - i0 : QUERIES, n = i0 + m;
    float scale = 1 / sqrtf((float)hd), *scores = thread_buffer(USE_SCORES, QUERIES * a->T);
    size_t step = qkv_width(s), dim = (size_t)s->dim, heads = (size_t)s->n_heads;
    gemm_packed(scores, a->T, rows_of(h->q + i0 * step, step), h->keys_t, hd, m, n, hd, 0);
    for (size_t r = 0; r < m; r++) {
        float *row = scores + r * a->T;
        finish_scores(row, a, h, h->q + (i0 + r) * step, i0 + r, n, scale);
        float top = max_row(row, n), sum = exp_row(row, n, top);
        for (size_t j = 0; j < n; j += WIDTH) store(row + j, load(row + j) * (1 / sum));
        h->lse[(i0 + r) * heads] = top + logf(sum);
    }
    gemm_packed(h->o + i0 * dim, dim, rows_of(scores, a->T), h->values, a->T, m, hd, n, 0);
}

// d_S of one row in place of d_P: weights p (n), d_p (n) -> p (d_p - sum d_o o) scale.
static void d_scores_row(float *d_p, const float *p, const float *d_o, const float *o, size_t n,
                         size_t hd, float scale)
{
    vec dots = splat(0);
    for (size_t i = 0; i < hd; i += WIDTH) dots += load(d_o + i) * load(o + i);
    float along = sum_vec(dots);
    for (size_t j = 0; j < n; j += WIDTH)
        store(d_p + j, load(p + j) * (load(d_p + j) - along) * scale);
}

static void attend_backward_block(const Attending *a, const Head *h, size_t i0)
{
    const Shape *s = a->shape;
    size_t hd = head_size(s), T = a->T, m = T - i0 < QUERIES ? T - i0 : QUERIES, n = i0 + m;
    size_t step = qkv_width(s), dim = (size_t)s->dim, heads = (size_t)s->n_heads;
    size_t panels = (hd + TILE_N - 1) / TILE_N * TILE_N;
    float scale = 1 / sqrtf((float)hd), *p = thread_buffer(USE_SCORES, QUERIES * T);
    float *d_s = thread_buffer(USE_D_SCORES, QUERIES * T);
    float *q = thread_buffer(USE_QUERIES, QUERIES * panels);
    float *d_o = thread_buffer(USE_D_OUT, QUERIES * panels);
    View q_rows = rows_of(h->q + i0 * step, step), d_o_rows = rows_of(h->d_o + i0 * dim, dim);
    gemm_packed(p, T, q_rows, h->keys_t, hd, m, n, hd, 0);
    gemm_packed(d_s, T, d_o_rows, h->values_t, hd, m, n, hd, 0);
    for (size_t r = 0; r < m; r++) {
        finish_scores(p + r * T, a, h, q_rows.p + r * step, i0 + r, n, scale);
        exp_row(p + r * T, n, h->lse[(i0 + r) * heads]);
        d_scores_row(d_s + r * T, p + r * T, d_o_rows.p + r * dim, h->o + (i0 + r) * dim, n, hd,
                     scale);
        float *d_bias = h->d_bias ? h->d_bias + (i0 + r) * a->places->pitch : NULL;
        for (size_t j = 0; d_bias && j < n; j += WIDTH)
            store(d_bias + j, load(d_bias + j) + load(d_s + r * T + j) * (1 / scale));
    }
    pack_b(q, q_rows, m, hd);
    pack_b(d_o, d_o_rows, m, hd);
    gemm_packed(h->d_q + i0 * step, step, rows_of(d_s, T), h->keys, T, m, hd, n, 0);
    gemm_packed(h->d_k, step, transposed(rows_of(d_s, T)), q, m, n, hd, m, 1);
    gemm_packed(h->d_v, step, transposed(rows_of(p, T)), d_o, m, n, hd, m, 1);
    for (size_t r = 0; h->shaw && r < m; r++)
        shaw_backward(d_s + r * T, q_rows.p + r * step, h->shaw, i0 + r, hd,
                      h->d_q + (i0 + r) * step, h->d_shaw);
}

// Where head number `head` of sequence t / n_kv_heads has its place-3 terms.
static void set_head_places(const Attending *a, Head *h, size_t t, size_t head)
{
    const Places *e = a->places;
    size_t size = a->T * e->pitch, heads = (size_t)a->shape->n_heads;
    size_t sequence = t / (size_t)a->shape->n_kv_heads;
    if (e->bias) h->bias = e->bias + head * size;
    if (e->d_bias) h->d_bias = e->d_bias + (sequence * heads + head) * size;
    if (e->d_shaw) {
        h->shaw = e->config.table;
        h->d_shaw = e->d_shaw + t * e->table_size;
    }
}

// Task t: sequence t / n_kv_heads, key/value head t % n_kv_heads. Forward if d_out is NULL. d_qkv
// must be zero at first: the query heads of a group add into the same d_k and d_v.
static void attention_task(void *arg, size_t t)
{
    const Attending *a = arg;
    const Shape *s = a->shape;
    size_t hd = head_size(s), T = a->T, step = qkv_width(s), dim = (size_t)s->dim;
    size_t n_kv = (size_t)s->n_kv_heads, group = (size_t)s->n_heads / n_kv;
    size_t packed = T * ((hd + TILE_N - 1) / TILE_N * TILE_N);
    size_t row = t / n_kv * T, kv = t % n_kv;
    size_t at_k = row * step + dim + kv * hd, at_v = at_k + kv_width(s);
    float *keys = thread_buffer(USE_KEYS, 2 * packed),
          *values = thread_buffer(USE_VALUES, 2 * packed);
    Head h = {
        .keys_t = keys, .keys = keys + packed, .values_t = values, .values = values + packed};
    View k = rows_of(a->qkv + at_k, step), v = rows_of(a->qkv + at_v, step);
    pack_b(keys, transposed(k), hd, T);
    if (!a->d_out) pack_b(values + packed, v, T, hd);
    else {
        pack_b(keys + packed, k, T, hd);
        pack_b(values, transposed(v), hd, T);
        h.d_k = a->d_qkv + at_k;
        h.d_v = a->d_qkv + at_v;
    }
    for (size_t head = kv * group; head < (kv + 1) * group; head++) {
        h.q = a->qkv + row * step + head * hd;
        h.o = a->out + row * dim + head * hd;
        h.lse = a->lse + row * (size_t)s->n_heads + head;
        set_head_places(a, &h, t, head);
        if (a->d_out) {
            h.d_o = a->d_out + row * dim + head * hd;
            h.d_q = a->d_qkv + row * step + head * hd;
        }
        for (size_t i = 0; i < T; i += QUERIES)
            if (a->d_out) attend_backward_block(a, &h, i);
            else attend_block(a, &h, i);
    }
}

// ================================================================================================
// 7  Forward and backward
//
// What backward needs is kept from forward, one set a layer.

typedef struct {
    float *x;             // (R, dim) the residual stream entering the layer
    float *norm1, *rstd1; // (R, dim), (R)
    float *qkv;           // (R, qkv) q and k after rotation
    float *att, *lse;     // (R, dim), (R, n_heads)
    float *mid;           // (R, dim) the stream between attention and FFN
    float *norm2, *rstd2;
    float *gate_up; // (R, 2 hidden)
    float *act;     // (R, hidden)
} Saved;

enum { LOSS_ROWS = 512 };

typedef struct {
    Shape shape;
    Parts parts;
    size_t T, max_rows;
    float *params, *grads, *moment1, *moment2;
    Params w, d;
    Saved saved[MAX_LAYERS];
    float *x_last, *norm, *rstd; // after the last layer
    float *d_x, *d_wide, *d_narrow, *partial, *logits;
    Places places;
    uint16_t *token, *target; // (R)
    float *weight, *loss;     // (R): of each target in the loss; nats
} Net;

static void alloc_saved(Saved *a, const Shape *s, size_t R)
{
    size_t dim = (size_t)s->dim, hidden = (size_t)s->hidden_dim;
    a->x = floats(R, dim);
    a->norm1 = floats(R, dim);
    a->rstd1 = floats(R, 1);
    a->qkv = floats(R, qkv_width(s));
    a->att = floats(R, dim);
    a->lse = floats(R, (size_t)s->n_heads);
    a->mid = floats(R, dim);
    a->norm2 = floats(R, dim);
    a->rstd2 = floats(R, 1);
    a->gate_up = floats(R, 2 * hidden);
    a->act = floats(R, hidden);
}

// Floats of work space for muon_update: the largest matrix, and orthogonalize()'s beside it.
static size_t muon_room(const Parts *parts)
{
    size_t most = 0;
    for (int i = 0; i < parts->n; i++) {
        Part p = parts->part[i];
        size_t r = min_size(p.rows, p.cols);
        if (p.kind == KIND_MATRIX) most = max_size(most, 2 * (p.rows * p.cols + r * r));
    }
    return most;
}

// A network for `sequences` sequences at a time; parameters zero.
static void net_alloc(Net *n, const Shape *shape, size_t sequences)
{
    *n = (Net){.shape = *shape, .T = (size_t)shape->train_ctx};
    const Shape *s = &n->shape;
    size_t R = n->max_rows = n->T * sequences, dim = (size_t)s->dim, hidden = (size_t)s->hidden_dim;
    size_t wide = 2 * hidden > qkv_width(s) ? 2 * hidden : qkv_width(s);
    place_params(&n->w, &n->parts, s, NULL);
    n->params = floats(n->parts.size, 1);
    n->grads = floats(n->parts.size, 1);
    n->moment1 = floats(n->parts.size, 1);
    n->moment2 = floats(n->parts.size, 1);
    place_params(&n->w, &n->parts, s, n->params);
    place_params(&n->d, &n->parts, s, n->grads);
    for (int l = 0; l < s->n_layers; l++) alloc_saved(&n->saved[l], s, R);
    n->x_last = floats(R, dim);
    n->norm = floats(R, dim);
    n->rstd = floats(R, 1);
    n->d_x = floats(R, dim);
    n->d_wide = floats(R, wide);
    n->d_narrow = floats(R, hidden > dim ? hidden : dim);
    n->partial = floats(R / ROW_GRAIN + 1, dim);
    n->logits = floats(max_size(LOSS_ROWS * (size_t)s->vocab_size, muon_room(&n->parts)), 1);
    places_alloc(&n->places, s, sequences, n->parts.size - (size_t)(n->w.encoding - n->params));
    n->token = xcalloc(R, sizeof(uint16_t));
    n->target = xcalloc(R, sizeof(uint16_t));
    n->weight = floats(R, 1);
    n->loss = floats(R, 1);
}

// x (R, dim) = embedding of each token, and (place 1) the vector of its position.
static void embed(const Net *n, float *x, size_t R)
{
    size_t dim = (size_t)n->shape.dim;
    for (size_t r = 0; r < R; r++) {
        memcpy(x + r * dim, n->w.embedding + n->token[r] * dim, dim * sizeof(float));
        if (n->places.real)
            add_sinusoidal(&n->places.config, n->places.real[r], x + r * dim);
        else if (n->places.added)
            add_rows(x + r * dim, n->places.added + (size_t)n->places.position[r] * dim, dim);
    }
}

static void layer_forward(Net *n, int l, float *x_next, size_t R)
{
    const Shape *s = &n->shape;
    const NetLayer *w = &n->w.layer[l];
    Saved *a = &n->saved[l];
    size_t dim = (size_t)s->dim, hidden = (size_t)s->hidden_dim;
    norm_forward(a->norm1, a->rstd1, a->x, w->att_norm, R, s);
    linear(a->qkv, a->norm1, w->wqkv, R, dim, qkv_width(s), 0);
    rotate_heads(a->qkv, R, s, &n->places, 1); // place 2
    Attending at = {s, &n->places, n->T, a->qkv, a->att, a->lse, NULL, NULL};
    parallel_for(R / n->T * (size_t)s->n_kv_heads, 1, attention_task, &at);
    memcpy(a->mid, a->x, R * dim * sizeof(float));
    linear(a->mid, a->att, w->wo, R, dim, dim, 1);
    norm_forward(a->norm2, a->rstd2, a->mid, w->ffn_norm, R, s);
    linear(a->gate_up, a->norm2, w->w13, R, dim, 2 * hidden, 0);
    RowStep swiglu = {.in = a->gate_up, .out = a->act, .width = hidden};
    parallel_for(R, ROW_GRAIN, swiglu_task, &swiglu);
    memcpy(x_next, a->mid, R * dim * sizeof(float));
    linear(x_next, a->act, w->w2, R, hidden, dim, 1);
}

// From n->token (R) to the normed last layer (R, dim) in n->norm.
static void net_forward(Net *n, size_t R)
{
    int L = n->shape.n_layers;
    set_places(&n->places, n->w.encoding);
    embed(n, n->saved[0].x, R);
    for (int l = 0; l < L; l++) layer_forward(n, l, l + 1 < L ? n->saved[l + 1].x : n->x_last, R);
    norm_forward(n->norm, n->rstd, n->x_last, n->w.final_norm, R, &n->shape);
}

// n->loss (R) from n->norm and n->target, LOSS_ROWS rows of logits at a time. With backward also
// the derivatives of sum(weight * loss): d_norm (R, dim) and the classifier's d_w.
static void net_loss(Net *n, size_t R, int backward, float *d_norm)
{
    size_t dim = (size_t)n->shape.dim, V = (size_t)n->shape.vocab_size;
    for (size_t r = 0; r < R; r += LOSS_ROWS) {
        size_t rows = R - r < LOSS_ROWS ? R - r : LOSS_ROWS;
        const float *x = n->norm + r * dim;
        linear(n->logits, x, n->w.embedding, rows, dim, V, 0);
        Loss a = {n->logits, n->loss + r, n->weight + r, n->target + r, V};
        parallel_for(rows, 16, loss_task, &a);
        if (backward)
            linear_backward(d_norm + r * dim, n->d.embedding, n->logits, x, n->w.embedding, rows,
                            dim, V);
    }
}

// d_x (R, dim), the derivative at the layer's output, becomes that at its input.
static void layer_backward(Net *n, int l, size_t R)
{
    const Shape *s = &n->shape;
    const NetLayer *w = &n->w.layer[l];
    NetLayer *d = &n->d.layer[l];
    const Saved *a = &n->saved[l];
    size_t dim = (size_t)s->dim, hidden = (size_t)s->hidden_dim, qkv = qkv_width(s);
    float *d_x = n->d_x, *narrow = n->d_narrow, *wide = n->d_wide;
    linear_backward(narrow, d->w2, d_x, a->act, w->w2, R, hidden, dim);
    RowStep swiglu = {.in = narrow, .in2 = a->gate_up, .out = wide, .width = hidden};
    parallel_for(R, ROW_GRAIN, swiglu_backward_task, &swiglu);
    linear_backward(narrow, d->w13, wide, a->norm2, w->w13, R, dim, 2 * hidden);
    norm_backward(d_x, d->ffn_norm, narrow, a->mid, a->rstd2, w->ffn_norm, R, s, n->partial);

    linear_backward(narrow, d->wo, d_x, a->att, w->wo, R, dim, dim);
    memset(wide, 0, R * qkv * sizeof(float));
    Attending at = {s, &n->places, n->T, a->qkv, a->att, a->lse, narrow, wide};
    parallel_for(R / n->T * (size_t)s->n_kv_heads, 1, attention_task, &at);
    rotate_heads(wide, R, s, &n->places, -1);
    linear_backward(narrow, d->wqkv, wide, a->norm1, w->wqkv, R, dim, qkv);
    norm_backward(d_x, d->att_norm, narrow, a->x, a->rstd1, w->att_norm, R, s, n->partial);
}

// d_x (R, dim), now the derivative at the embedding, goes to the rows of tokens and positions.
static void embed_backward(Net *n, size_t R)
{
    size_t dim = (size_t)n->shape.dim;
    for (size_t r = 0; r < R; r++) {
        const float *d_x = n->d_x + r * dim;
        add_rows(n->d.embedding + n->token[r] * dim, d_x, dim);
        if (n->shape.encoding == ENC_LEARNED)
            add_rows(n->d.encoding + (size_t)n->places.position[r] * dim, d_x, dim);
    }
}

// Forward, loss and backward for R rows of token, target and weight; adds to n->grads.
static void net_step(Net *n, size_t R)
{
    size_t dim = (size_t)n->shape.dim, sequences = R / n->T;
    Places *e = &n->places;
    size_t biases = sequences * (size_t)n->shape.n_heads * n->T * e->pitch;
    size_t shaw = sequences * (size_t)n->shape.n_kv_heads * e->table_size;
    net_forward(n, R);
    if (e->d_bias) memset(e->d_bias, 0, biases * sizeof(float));
    if (e->d_shaw) memset(e->d_shaw, 0, shaw * sizeof(float));
    net_loss(n, R, 1, n->d_narrow);
    memset(n->d_x, 0, R * dim * sizeof(float));
    norm_backward(n->d_x, n->d.final_norm, n->d_narrow, n->x_last, n->rstd, n->w.final_norm, R,
                  &n->shape, n->partial);
    for (int l = n->shape.n_layers - 1; l >= 0; l--) layer_backward(n, l, R);
    places_backward(e, sequences, n->d.encoding);
    embed_backward(n, R);
}

// ================================================================================================
// 8  Optimizer
//
// Norms and the embedding are updated by AdamW, matrices by Muon (or AdamW too).
//
//     Adam:  m = b1 m + (1-b1) g   v = b2 v + (1-b2) g^2   w -= lr m^ / (sqrt(v^) + eps)
//     Muon:  m = mu m + g          w -= lr * 0.2 sqrt(max(rows, cols)) * orthogonal(g + mu m)
//
// orthogonal(G) replaces the singular values of G by about 1: every direction that the gradient
// has learns equally fast. 0.2 sqrt(max) gives the update the size of Adam's, so that one learning
// rate serves both [Muon]. Weight decay on matrices is apart from the gradient [AdamW].

typedef struct {
    float lr, beta1, beta2, momentum, decay, clip;
    int muon;
} Optimizer;

typedef struct {
    Net *net;
    Part part;
    float lr, decay, scale, m_fix, v_fix;
    const Optimizer *o;
} Update;

// One row of one part; scale multiplies the gradient (clipping).
static void adam_task(void *arg, size_t row)
{
    const Update *u = arg;
    size_t cols = u->part.cols;
    float *w = u->net->params + u->part.at, *m = u->net->moment1 + u->part.at;
    float *v = u->net->moment2 + u->part.at;
    const float *g = u->net->grads + u->part.at;
    float b1 = u->o->beta1, b2 = u->o->beta2;
    for (size_t i = row * cols; i < (row + 1) * cols; i++) {
        float gi = g[i] * u->scale;
        m[i] = b1 * m[i] + (1 - b1) * gi;
        v[i] = b2 * v[i] + (1 - b2) * gi * gi;
        w[i] -= u->lr * (m[i] * u->m_fix / (sqrtf(v[i] * u->v_fix) + 1e-8f) + u->decay * w[i]);
    }
}

// x (r, c), r <= c, to about U V^T of its singular value decomposition: five steps of
// X := a X + (b A + c A A) X with A = X X^T, whose polynomial drives singular values in (0, 1]
// towards 1 (to between 0.7 and 1.2, which is enough) [Muon]. work: 2 r r + r c floats.
static void orthogonalize(float *x, size_t r, size_t c, float *work)
{
    float *a = work, *b = work + r * r, *next = work + 2 * r * r;
    double squares = 0;
    for (size_t i = 0; i < r * c; i++) squares += (double)x[i] * x[i];
    float norm = 1 / ((float)sqrt(squares) + 1e-7f);
    for (size_t i = 0; i < r * c; i++) x[i] *= norm;
    for (int step = 0; step < 5; step++) {
        View X = rows_of(x, c);
        gemm(a, r, X, transposed(X), r, r, c, 0);
        gemm(b, r, rows_of(a, r), rows_of(a, r), r, r, r, 0);
        for (size_t i = 0; i < r * r; i++) b[i] = -4.7750f * a[i] + 2.0315f * b[i];
        gemm(next, c, rows_of(b, r), X, r, c, r, 0);
        for (size_t i = 0; i < r * c; i++) x[i] = 3.4445f * x[i] + next[i];
    }
}

static void muon_update(const Update *u)
{
    size_t rows = u->part.rows, cols = u->part.cols, n = rows * cols;
    size_t r = rows < cols ? rows : cols, c = rows < cols ? cols : rows;
    float *w = u->net->params + u->part.at, *m = u->net->moment1 + u->part.at;
    const float *g = u->net->grads + u->part.at;
    float *x = u->net->logits, *work = x + n, mu = u->o->momentum; // free by now
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            size_t k = i * cols + j;
            m[k] = mu * m[k] + g[k] * u->scale;
            x[rows <= cols ? k : j * rows + i] = g[k] * u->scale + mu * m[k];
        }
    orthogonalize(x, r, c, work);
    float lr = u->lr * 0.2f * sqrtf((float)c), keep = 1 - u->lr * u->decay;
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++) {
            size_t k = i * cols + j;
            w[k] = w[k] * keep - lr * x[rows <= cols ? k : j * rows + i];
        }
}

// Euclidean norm of all gradients, in double, in one fixed order.
static double gradient_norm(const Net *n)
{
    double squares = 0;
    for (size_t i = 0; i < n->parts.size; i += 4096) {
        float block = 0;
        size_t end = i + 4096 < n->parts.size ? i + 4096 : n->parts.size;
        for (size_t k = i; k < end; k++) block += n->grads[k] * n->grads[k];
        squares += block;
    }
    return sqrt(squares);
}

// One step with learning rate lr (step counts from 1); gradients longer than clip are shortened to
// it. Returns the gradient's norm before that.
static double update_params(Net *n, const Optimizer *o, float lr, uint64_t step)
{
    double norm = gradient_norm(n);
    float scale = norm > o->clip ? (float)(o->clip / norm) : 1;
    for (int i = 0; i < n->parts.n; i++) {
        Part p = n->parts.part[i];
        Update u = {n,
                    p,
                    lr,
                    p.kind == KIND_MATRIX ? o->decay : 0,
                    scale,
                    1 / (1 - powf(o->beta1, (float)step)),
                    1 / (1 - powf(o->beta2, (float)step)),
                    o};
        if (p.kind == KIND_MATRIX && o->muon) muon_update(&u);
        else parallel_for(p.rows, ceil_div(16384, p.cols), adam_task, &u);
    }
    return norm;
}

// ================================================================================================
// 9  Text
//
// Texts are encoded once and kept as 16-bit ids, BOS before each. A file of many short documents
// has a line <|end|> after each of them, in whose place EOS stands: so a model learns that a story
// ends. A training window is BOS and T - 1 tokens of text, with the T tokens of text as targets:
// every window begins as a text does when the model runs. Windows come from a permutation of all
// places T apart, with a new shift each time round. Every other one moves on to the start of a
// paragraph; of documents, three in four move on to the start of one.

enum { MAX_SOURCES = 8, MAX_QUESTIONS = 3, LOOK_AHEAD = 200, LOOK_AHEAD_DOCUMENTS = 640 };
enum { MAX_CTX = 8192, LEAST_TEXT = 2 * MAX_CTX + LOOK_AHEAD_DOCUMENTS + 1 }; // of window_start
static const char document_end[] = "<|end|>";

typedef struct {
    uint16_t *token;
    size_t n, bytes, ends; // ends: how many documents end with EOS
    double share, first_share, last_share;
} Source;

static size_t look_ahead(const Source *s) { return s->ends ? LOOK_AHEAD_DOCUMENTS : LOOK_AHEAD; }

typedef struct {
    Tokenizer *tokenizer;
    uint8_t *starts_sentence, *ends_sentence; // of each piece
    uint16_t newline, full_stop, question_mark;
    uint16_t *word; // the pieces that are a space and letters
    int n_words;
    Source source[MAX_SOURCES];
    int n;
    uint64_t rng, cursor[MAX_SOURCES]; // all the state that a resumed run needs
    double synthetic, repetition;      // shares now: of all windows, of synthetic texts
    double early;                      // 1 as training begins, 0 at its end
    float answer_weight;
    double links;   // share of the retrieval texts whose boxes hold what others hold
    double hints;   // share of their questions that have a hint
    int n_hints;    // in the text written last, with their places and what is to be learned there
    struct { size_t at; uint16_t token; } hint[MAX_QUESTIONS];
    double shorten; // more of the synthetic texts are short, however late it is
} Text;

static void append_document(Source *s, Tokenizer *t, const char *text, size_t len, int ends)
{
    int *ids = xcalloc(len + 2, sizeof(int));
    int n = tokenizer_encode(t, text, len, ids);
    s->token = xrealloc(s->token, s->n + (size_t)n + 2, sizeof(uint16_t));
    s->token[s->n++] = ID_BOS;
    for (int i = 0; i < n; i++) s->token[s->n++] = (uint16_t)ids[i];
    if (ends) s->token[s->n++] = ID_EOS;
    s->ends += (size_t)ends;
    s->bytes += len;
    free(ids);
}

// The start of the next line of `text` that is <|end|>, or NULL.
static const char *find_end(const char *text)
{
    for (const char *p = text; (p = strstr(p, document_end)); p++) {
        char after = p[sizeof document_end - 1];
        if ((p == text || p[-1] == '\n') && (!after || after == '\n')) return p;
    }
    return NULL;
}

// Adds the documents of a file, without the empty lines around them, or a file that has no line
// <|end|> as one text as it stands.
static void append_file(Source *s, Tokenizer *t, const char *path)
{
    size_t len;
    char *text = read_text(path, &len);
    const char *from = text, *end;
    while ((end = find_end(from))) {
        const char *to = end;
        while (from < to && *from == '\n') from++;
        while (to > from && to[-1] == '\n') to--;
        if (to > from) append_document(s, t, from, (size_t)(to - from), 1);
        from = end + sizeof document_end - 1;
    }
    if (from == text || from[strspn(from, "\n")])
        append_document(s, t, from, len - (size_t)(from - text), 0);
    free(text);
}

// Adds a file, or all files of a folder in the order of their names.
static void append_path(Source *s, Tokenizer *t, const char *path)
{
    struct stat st;
    if (stat(path, &st)) die(1, path, "cannot read: %s", strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        append_file(s, t, path);
        return;
    }
    struct dirent **entry;
    int n = scandir(path, &entry, NULL, alphasort);
    if (n < 0) die(1, path, "cannot read: %s", strerror(errno));
    for (int i = 0; i < n; i++) {
        char name[PATH_MAX];
        if (snprintf(name, sizeof name, "%s/%s", path, entry[i]->d_name) >= (int)sizeof name)
            die(1, path, "path too long");
        if (!stat(name, &st) && S_ISREG(st.st_mode)) append_file(s, t, name);
        free(entry[i]);
    }
    free(entry);
}

// Marks which pieces can start a sentence (" W...") and which can end one (punctuation with a full
// stop, question or exclamation mark and no comma).
static void classify_pieces(Text *x, int vocab_size)
{
    x->starts_sentence = xcalloc((size_t)vocab_size, 1);
    x->ends_sentence = xcalloc((size_t)vocab_size, 1);
    x->word = xcalloc((size_t)vocab_size, sizeof *x->word);
    x->n_words = 0;
    for (int i = 3 + 256; i < vocab_size; i++) {
        Piece p = x->tokenizer->pieces[i];
        x->starts_sentence[i] = p.len > 1 && p.text[0] == ' ' && isupper((unsigned char)p.text[1]);
        for (int k = 0; k < p.len; k++) {
            if (strchr(".?!", p.text[k])) x->ends_sentence[i] = 1;
            if (strchr(",- (", p.text[k])) {
                x->ends_sentence[i] = 0;
                break;
            }
        }
        if (p.len == 1 && p.text[0] == '\n') x->newline = (uint16_t)i;
        if (p.len == 1 && p.text[0] == '.') x->full_stop = (uint16_t)i;
        if (p.len == 1 && p.text[0] == '?') x->question_mark = (uint16_t)i;
        if (p.len > 2 && p.text[0] == ' ' && isalpha((unsigned char)p.text[1]))
            x->word[x->n_words++] = (uint16_t)i;
    }
}

// Start of the window number `count` of a source whose windows are T apart.
static size_t window_start(const Source *s, uint64_t count, size_t T, uint64_t seed)
{
    size_t windows = (s->n - look_ahead(s) - 1) / T - 1, stride = windows * 618 / 1000 | 1;
    for (size_t a = stride, b = windows;;) { // a step without common divisor visits all
        while (b) {
            size_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1) break;
        a = stride += 2;
        b = windows;
    }
    uint64_t round = count / windows, mix = seed + round;
    size_t shift = draw_bits(&mix) % T, first = draw_bits(&mix) % windows;
    return (first + count % windows * stride) % windows * T + shift;
}

// Fills one window (T) from the text at `at`: token = BOS and text, target = text. Where one text
// follows another its BOS is no prediction, and does not count.
static void fill_window(const Source *s, size_t at, size_t T, uint16_t *token, uint16_t *target,
                        float *weight)
{
    for (size_t i = 0; i < T; i++) {
        token[i] = i ? s->token[at + i - 1] : ID_BOS;
        target[i] = s->token[at + i];
        weight[i] = target[i] != ID_BOS;
    }
}

// Whether a window may begin at token `at`: with a paragraph, or with a document.
static int starts_text(const Text *x, const Source *s, size_t at)
{
    if (s->ends) return s->token[at - 1] == ID_BOS;
    return s->token[at - 1] == x->newline && s->token[at] != x->newline;
}

static void fill_text_window(Text *x, int which, size_t T, uint16_t *token, uint16_t *target,
                             float *weight)
{
    const Source *s = &x->source[which];
    size_t at = window_start(s, x->cursor[which]++, T, (uint64_t)which * 1000003);
    size_t to = at + 1, last = at + look_ahead(s);
    while (to <= last && !starts_text(x, s, to)) to++;
    uint64_t coins = draw_bits(&x->rng);
    if (to <= last && (coins & 1 || (s->ends && coins & 2))) at = to;
    fill_window(s, at, T, token, target, weight);
}

static int draw_source(Text *x)
{
    double u = draw_real(&x->rng);
    for (int i = 0; i < x->n - 1; i++)
        if ((u -= x->source[i].share) < 0) return i;
    return x->n - 1;
}

// ================================================================================================
// 10  Synthetic documents
//
// Texts that can only be continued by looking back, so that the model learns to retrieve. Filler
// is whole sentences of the texts; statements stand at random places between them; the questions
// and their answers end the text. N is a random number without leading zero; D its digits.
//
// passkey (D = 5), one statement:
//     The pass key is N. Remember it. N is the pass key.
//     ... What is the pass key? The pass key is N.
// magic number (D = 4), 2 to 6 statements with different names and numbers:
//     The magic number for Anna is N.
//     ... What is the magic number for Anna? The magic number for Anna is N.
//     ... (1 to 3 of them asked for)
// boxes (D = 4), a chain of 1 to 3 boxes, in this order, and 1 to 3 others, anywhere:
//     The box A holds N.
//     The box C holds what the box A holds.
//     ... What does the box C hold? The box C holds N.
//     ... (1 to 3 of them asked for)
// linked boxes (--links): 2 to 6, of which two in three hold what an earlier one of them holds: the
//     same statements, with more to follow. The number is two steps away (the box that is looked
//     into, and what that holds), and guessing between all numbers teaches neither. So some of the
//     questions have a hint (--hints): the text is the same, but what is to be learned behind their
//     question mark is not the next word, it is the letter of the box that the asked one looks into
//     (or its own, if it has a number). Once that is known there, the number is one step away.
// repetition, 8 to 120 words drawn at random from the vocabulary, with a number in place of some,
// then the same again; the first time they do not count, as nobody could know them:
//     Say after me: W W N W ... W. W W N W ... W.
// Boxes are letters A to Z. The names are those of the list below. A text has up to T tokens, but
// short ones are frequent while training is young: a model learns to look back over a few words
// first.

enum { MAX_FACTS = 8, MAX_TOKENS = 96 };

static const char *const names[] = {
    "Anna", "Ben",  "Clara", "David", "Emma",  "Frank", "Grace", "Henry", "Ida", "Jack",
    "Kate", "Lucy", "Mary",  "Nora",  "Oscar", "Peter", "Rose",  "Sam",   "Tom", "Walter",
};
enum { N_NAMES = sizeof names / sizeof *names };

typedef struct {
    char fact[MAX_FACTS][128], question[MAX_QUESTIONS][128];
    int n_facts, n_questions, digits;
    int linked, via[MAX_QUESTIONS]; // linked boxes: which fact is of the box that is looked into
} Retrieval;

static int draw_number(uint64_t *rng, int digits)
{
    int low = digits == 5 ? 10000 : 1000;
    return low + draw_below(rng, 9 * low);
}

// order[0..n) becomes n different numbers below `below` <= 32.
static void choose_different(uint64_t *rng, int *order, int n, int below)
{
    uint32_t used = 0;
    for (int i = 0; i < n; i++) {
        do order[i] = draw_below(rng, below);
        while (used >> order[i] & 1);
        used |= 1u << order[i];
    }
}

static void write_passkey(Retrieval *d, uint64_t *rng)
{
    int key = draw_number(rng, d->digits = 5);
    d->n_facts = d->n_questions = 1;
    snprintf(d->fact[0], sizeof *d->fact, "The pass key is %d. Remember it. %d is the pass key.",
             key, key);
    snprintf(d->question[0], sizeof *d->question, "What is the pass key? The pass key is %d.", key);
}

static void write_magic_numbers(Retrieval *d, uint64_t *rng)
{
    int who[MAX_FACTS], number[MAX_FACTS], asked[MAX_QUESTIONS];
    d->digits = 4;
    d->n_facts = 2 + draw_below(rng, 5);
    d->n_questions = 1 + draw_below(rng, d->n_facts < MAX_QUESTIONS ? d->n_facts : MAX_QUESTIONS);
    choose_different(rng, who, d->n_facts, N_NAMES);
    choose_different(rng, asked, d->n_questions, d->n_facts);
    for (int i = 0; i < d->n_facts; i++)
        snprintf(d->fact[i], sizeof *d->fact, "The magic number for %s is %d.", names[who[i]],
                 number[i] = draw_number(rng, 4));
    for (int i = 0; i < d->n_questions; i++) {
        const char *name = names[who[asked[i]]];
        snprintf(d->question[i], sizeof *d->question,
                 "What is the magic number for %s? The magic number for %s is %d.", name, name,
                 number[asked[i]]);
    }
}

// box[0..chain) is the chain; the others follow in the order of their statements.
static void write_boxes(Retrieval *d, uint64_t *rng)
{
    int box[MAX_FACTS], number[MAX_FACTS], asked[MAX_QUESTIONS], linked = 0;
    int chain = 1 + draw_below(rng, 3), n = chain + 1 + draw_below(rng, 3);
    d->digits = 4;
    d->n_facts = n;
    d->n_questions = 1 + draw_below(rng, n < MAX_QUESTIONS ? n : MAX_QUESTIONS);
    choose_different(rng, box, n, 26);
    choose_different(rng, asked, d->n_questions, n);
    for (int i = 0; i < n; i++) number[i] = i && i < chain ? number[0] : draw_number(rng, 4);
    for (int i = 0; i < n; i++) { // the others come in between the chain at random
        int next = draw_below(rng, n - i) < chain - linked ? linked++ : chain + i - linked;
        if (next && next < chain)
            snprintf(d->fact[i], sizeof *d->fact, "The box %c holds what the box %c holds.",
                     'A' + box[next], 'A' + box[next - 1]);
        else
            snprintf(d->fact[i], sizeof *d->fact, "The box %c holds %d.", 'A' + box[next],
                     number[next]);
    }
    for (int i = 0; i < d->n_questions; i++)
        snprintf(d->question[i], sizeof *d->question,
                 "What does the box %c hold? The box %c holds %d.", 'A' + box[asked[i]],
                 'A' + box[asked[i]], number[asked[i]]);
}

// Three links in four lead to a box that has a number. A linked box is asked for first, if there is
// one.
static void write_links(Retrieval *d, uint64_t *rng)
{
    int box[MAX_FACTS], number[MAX_FACTS], root[MAX_FACTS], via[MAX_FACTS], asked[MAX_QUESTIONS];
    int n = d->n_facts = 2 + draw_below(rng, 5), n_links = 0, first = 0;
    d->digits = 4;
    d->linked = 1;
    d->n_questions = 1 + draw_below(rng, n < MAX_QUESTIONS ? n : MAX_QUESTIONS);
    choose_different(rng, box, n, 26);
    choose_different(rng, asked, d->n_questions, n);
    for (int i = 0; i < n; i++) {
        int of = i && draw_below(rng, 3) ? draw_below(rng, i) : -1;
        if (of >= 0 && draw_below(rng, 4)) of = root[of];
        number[i] = of < 0 ? draw_number(rng, 4) : number[of];
        root[i] = of < 0 ? i : root[of];
        via[i] = of < 0 ? i : of;
        if (of >= 0 && draw_below(rng, ++n_links) == 0) first = i; // each as likely
        if (of < 0)
            snprintf(d->fact[i], sizeof *d->fact, "The box %c holds %d.", 'A' + box[i], number[i]);
        else
            snprintf(d->fact[i], sizeof *d->fact, "The box %c holds what the box %c holds.",
                     'A' + box[i], 'A' + box[of]);
    }
    for (int i = 0; i < d->n_questions; i++) {
        int which = !i ? first : asked[i] == first ? asked[0] : asked[i]; // none twice
        d->via[i] = via[which];
        snprintf(d->question[i], sizeof *d->question,
                 "What does the box %c hold? The box %c holds %d.", 'A' + box[which],
                 'A' + box[which], number[which]);
    }
}

static size_t put_statement(const Text *x, const char *text, uint16_t *out)
{
    int ids[2 * sizeof *((Retrieval *)0)->question];
    int n = tokenizer_encode(x->tokenizer, text, strlen(text), ids);
    for (int i = 0; i < n; i++) out[i] = (uint16_t)ids[i];
    return (size_t)n;
}

// Copies whole sentences, at least `least` and at most `most` tokens of them, from s at *at, which
// moves on; BOS and EOS between documents are left out. Returns the number of tokens: 0 if no
// sentence ends there.
static size_t put_sentences(const Text *x, const Source *s, size_t *at, size_t least, size_t most,
                            uint16_t *out)
{
    size_t n = 0, end = 0, from = *at;
    uint16_t last = 0;
    for (size_t i = from; n <= most && end < least && i < s->n; i++) {
        uint16_t token = s->token[i];
        if (token == ID_BOS || token == ID_EOS) continue;
        if (n && x->starts_sentence[token] && x->ends_sentence[last]) {
            end = n;
            *at = i;
        }
        last = token;
        n++;
    }
    for (size_t i = from, k = 0; k < end; i++)
        if (s->token[i] != ID_BOS && s->token[i] != ID_EOS) out[k++] = s->token[i];
    return end;
}

// A random place in the source where a sentence starts.
static size_t sentence_start(Text *x, const Source *s)
{
    size_t at = (size_t)(draw_real(&x->rng) * (double)(s->n - 4096));
    for (size_t stop = at + 1024; at < stop; at++)
        if (x->starts_sentence[s->token[at + 1]] && x->ends_sentence[s->token[at]]) break;
    return at + 1;
}

// Writes one document of at most `room` tokens (BOS not counted) and the weights of its tokens;
// returns its length, or 0 if it has no room. Filler is cut between the statements in random
// shares.
static size_t put_document(Text *x, const Retrieval *d, const Source *s, size_t room, uint16_t *out,
                           float *weight)
{
    uint16_t statement[MAX_FACTS + MAX_QUESTIONS][MAX_TOKENS];
    size_t len[MAX_FACTS + MAX_QUESTIONS], need = 0, n = 0, at = sentence_start(x, s);
    double cut[MAX_FACTS + 1], total = 0, share = draw_real(&x->rng);
    for (int i = 0; i < d->n_facts + d->n_questions; i++)
        need += len[i] = put_statement(x, i < d->n_facts ? d->fact[i] : d->question[i - d->n_facts],
                                       statement[i]);
    if (need > room) return 0;
    double filler = pow(share, 1 + x->early + x->shorten) * (double)(room - need);
    for (int i = 0; i <= d->n_facts; i++) total += cut[i] = -log(1 - draw_real(&x->rng));
    for (int i = 0; i < d->n_facts + d->n_questions; i++) {
        size_t want = i <= d->n_facts ? (size_t)(filler * cut[i] / total) : 0, from = n;
        n += put_sentences(x, s, &at, want > 24 ? want - 24 : 0, want, out + n);
        memcpy(out + n, statement[i], len[i] * sizeof *out);
        n += len[i];
        while (from < n) weight[from++] = 1;
        if (i < d->n_facts) continue;
        for (size_t k = 0; k < (size_t)d->digits; k++)
            weight[n - 2 - k] = x->answer_weight; // the number's digits, then the full stop
        if (!d->linked || draw_real(&x->rng) >= x->hints) continue;
        size_t behind = n - len[i];
        while (behind < n && out[behind++] != x->question_mark);
        if (behind == n) continue; // no such piece
        weight[behind] = x->answer_weight;
        x->hint[x->n_hints].at = behind;
        x->hint[x->n_hints++].token = statement[d->via[i - d->n_facts]][2]; // The box A
    }
    return n;
}

// A repetition of at most `room` tokens; see put_document.
static size_t put_repetition(Text *x, size_t room, uint16_t *out, float *weight)
{
    uint16_t order[MAX_TOKENS];
    double share = draw_real(&x->rng);
    size_t n = put_statement(x, "Say after me:", order), words = 8 + (size_t)(112 * share * share);
    if (n + 2 * (words + 1) > room) return 0;
    for (size_t i = 0; i < n + 2 * (words + 1); i++) weight[i] = 1;
    memcpy(out, order, n * sizeof *out);
    for (size_t i = 0; i < words; i++) out[n + i] = x->word[draw_below(&x->rng, x->n_words)];
    for (size_t i = 0; i + 5 <= words; i += 5) {
        char number[16];
        snprintf(number, sizeof number, "%d", draw_number(&x->rng, 4));
        if (draw_real(&x->rng) < 0.3) put_statement(x, number, out + n + i); // a space, 4 digits
    }
    for (size_t i = 0; i < words; i++) weight[n + i] = 0;
    out[n + words] = x->full_stop;
    memcpy(out + n + words + 1, out + n, (words + 1) * sizeof *out);
    return n + 2 * (words + 1);
}

static size_t put_retrieval(Text *x, const Source *s, size_t room, uint16_t *out, float *weight)
{
    static void (*const kinds[])(Retrieval *, uint64_t *) = {write_passkey, write_magic_numbers,
                                                             write_boxes};
    Retrieval d = {.linked = 0};
    if (x->links > 0 && draw_real(&x->rng) < x->links)
        write_links(&d, &x->rng);
    else
        kinds[draw_below(&x->rng, 3)](&d, &x->rng);
    return put_document(x, &d, s, room, out, weight);
}

// Fills one window with synthetic documents, each after its own BOS, and the rest, when one no
// longer fits, with book text. The answers' digits weigh answer_weight.
static void fill_synthetic_window(Text *x, int which, size_t T, uint16_t *token, uint16_t *target,
                                  float *weight)
{
    fill_text_window(x, which, T, token, target, weight);
    for (size_t begin = 0; begin + 64 <= T;) {
        size_t room = T - begin - 1;
        x->n_hints = 0;
        size_t n = draw_real(&x->rng) < x->repetition
                       ? put_repetition(x, room, target + begin, weight + begin)
                       : put_retrieval(x, &x->source[which], room, target + begin, weight + begin);
        if (!n) return;
        token[begin] = ID_BOS;
        memcpy(token + begin + 1, target + begin, n * sizeof *token); // n < T - begin
        for (int h = 0; h < x->n_hints; h++) target[begin + x->hint[h].at] = x->hint[h].token;
        begin += n;
        target[begin] = ID_BOS; // the last full stop, then the next BOS
        weight[begin++] = 0;
        if (begin < T) token[begin] = ID_BOS;
    }
}

// Fills R rows of the network's input.
static void fill_batch(Text *x, Net *n, size_t R)
{
    for (size_t r = 0; r < R; r += n->T) {
        int which = draw_source(x), synthetic = draw_real(&x->rng) < x->synthetic;
        (synthetic ? fill_synthetic_window : fill_text_window)(x, which, n->T, n->token + r,
                                                               n->target + r, n->weight + r);
    }
}

// ================================================================================================
// 11  Files
//
// Two kinds: the state, from which training continues exactly, and the checkpoint that run.c reads,
// whose layout is told in run.c's section 10. Both are written beside their place and renamed, so
// that a reader never sees half a file.

typedef struct {
    FILE *f;
    const char *path;
    char temporary[PATH_MAX];
} Writer;

static void writer_open(Writer *w, const char *path)
{
    w->path = path;
    if (snprintf(w->temporary, PATH_MAX, "%s.new", path) >= PATH_MAX) die(1, path, "path too long");
    w->f = fopen(w->temporary, "wb");
    if (!w->f) die(1, w->temporary, "cannot write: %s", strerror(errno));
}

// Whether a file could be written there, if one is asked for: known before hours of training.
static void check_output(const char *path)
{
    Writer w;
    struct stat st;
    if (!path) return;
    if (!stat(path, &st) && S_ISDIR(st.st_mode)) die(1, path, "cannot write: a directory");
    writer_open(&w, path);
    fclose(w.f);
    unlink(w.temporary);
}

static void put(Writer *w, const void *data, size_t size, size_t n) { fwrite(data, size, n, w->f); }

static void writer_close(Writer *w)
{
    int bad = fflush(w->f) || ferror(w->f) || fsync(fileno(w->f));
    if (fclose(w->f) || bad || rename(w->temporary, w->path))
        die(1, w->path, "cannot write: %s", strerror(errno));
}

// n weights as Q8_0: int8 values, then one float32 scale for every 32 of them: w = scale * value,
// scale = max |w| / 127.
static void put_q8(Writer *w, const float *x, size_t n)
{
    enum { GROUP = 32 };
    int8_t *values = xcalloc(n, 1);
    float *scales = xcalloc(n / GROUP, sizeof(float));
    for (size_t g = 0; g < n / GROUP; g++) {
        float most = 0;
        for (size_t i = 0; i < GROUP; i++) most = fmaxf(most, fabsf(x[g * GROUP + i]));
        scales[g] = most / 127;
        for (size_t i = 0; i < GROUP && most > 0; i++)
            values[g * GROUP + i] = (int8_t)lrintf(x[g * GROUP + i] / scales[g]);
    }
    put(w, values, 1, n);
    put(w, scales, sizeof(float), n / GROUP);
    free(values);
    free(scales);
}

// One tensor of every layer in turn, `at` parameters after the place that `of` names.
static void put_layers(Writer *w, const Net *n, float *const *of, size_t at, size_t size, int q8)
{
    for (int l = 0; l < n->shape.n_layers; l++) {
        const float *x = *(float *const *)((const char *)of + (size_t)l * sizeof(NetLayer)) + at;
        if (q8) put_q8(w, x, size);
        else put(w, x, sizeof(float), size);
    }
}

static void put_i32(unsigned char *header, size_t at, int32_t x) { memcpy(header + at, &x, 4); }
static void put_f32(unsigned char *header, size_t at, float x) { memcpy(header + at, &x, 4); }

// The 256 bytes before the weights. Version 1 (float32) or 2 (Q8_0) when a reader that knows
// llama2.c's header alone computes the same; 100 more when the extension block at byte 64 has to
// be read. Fields that stay zero there say "not set".
static void put_header(Writer *w, const Net *n, int q8)
{
    const Shape *s = &n->shape;
    unsigned char header[256] = {0};
    int encoding = n->places.config.encoding; // s->encoding, or none after it was dropped
    int plain = encoding == ENC_ROPE && s->rope_theta == 10000 && s->norm_eps == 1e-5f;
    int32_t sizes[] = {s->dim,        s->hidden_dim, s->n_layers, s->n_heads,
                       s->n_kv_heads, s->vocab_size, s->train_ctx};
    put_i32(header, 0, 0x616b3432);
    put_i32(header, 4, (q8 ? 2 : 1) + (plain ? 0 : 100));
    memcpy(header + 8, sizes, sizeof sizes);
    header[36] = 1; // the classifier is the embedding
    if (q8) put_i32(header, 37, 32);
    memcpy(header + 64, "EXT1", 4);
    put_i32(header, 68, encoding);
    put_i32(header, 72, s->train_ctx);
    put_f32(header, 76, s->rope_theta);
    put_f32(header, 80, s->norm_eps);
    put_i32(header, 128, n->places.config.rows);
    put_i32(header, 132, n->places.config.max_distance);
    put(w, header, 1, sizeof header);
}

static void export_checkpoint(Net *n, const char *path, int q8)
{
    const Shape *s = &n->shape;
    const NetLayer *y = n->w.layer;
    size_t dim = (size_t)s->dim, hidden = (size_t)s->hidden_dim, kv = kv_width(s);
    Writer w;
    writer_open(&w, path);
    put_header(&w, n, q8);
    put_layers(&w, n, &y->att_norm, 0, dim, 0);
    put_layers(&w, n, &y->ffn_norm, 0, dim, 0);
    put(&w, n->w.final_norm, sizeof(float), dim);
    if (q8) put_q8(&w, n->w.embedding, (size_t)s->vocab_size * dim);
    else put(&w, n->w.embedding, sizeof(float), (size_t)s->vocab_size * dim);
    put_layers(&w, n, &y->wqkv, 0, dim * dim, q8);               // wq
    put_layers(&w, n, &y->wqkv, dim * dim, kv * dim, q8);        // wk
    put_layers(&w, n, &y->wqkv, (dim + kv) * dim, kv * dim, q8); // wv
    put_layers(&w, n, &y->wo, 0, dim * dim, q8);
    put_layers(&w, n, &y->w13, 0, hidden * dim, q8); // w1
    put_layers(&w, n, &y->w2, 0, hidden * dim, q8);
    put_layers(&w, n, &y->w13, hidden * dim, hidden * dim, q8); // w3
    set_places(&n->places, n->w.encoding);
    put(&w, n->places.config.table, sizeof(float), n->places.table_size);
    writer_close(&w);
}

// What a run has done so far; with the parameters and moments, the state.
typedef struct {
    char magic[8];
    Shape shape;
    uint64_t step, tokens, rng, cursor[MAX_SOURCES];
    double seconds, drop; // drop, cape, muon: as in the settings
    int32_t cape, muon, dropped;
    int32_t unused; // no bytes that nobody has set
} Progress;

static const char state_magic[8] = "TRAIN02";

static void save_state(const char *path, const Net *n, const Text *x, Progress *p)
{
    Writer w;
    memcpy(p->magic, state_magic, sizeof p->magic);
    p->shape = n->shape;
    p->rng = x->rng;
    memcpy(p->cursor, x->cursor, sizeof p->cursor);
    writer_open(&w, path);
    put(&w, p, sizeof *p, 1);
    put(&w, n->params, sizeof(float), n->parts.size);
    put(&w, n->moment1, sizeof(float), n->parts.size);
    put(&w, n->moment2, sizeof(float), n->parts.size);
    writer_close(&w);
}

// Reads a state's first part, which holds the shape; returns the file, open at the arrays.
static FILE *open_state(const char *path, Progress *p)
{
    FILE *f = fopen(path, "rb");
    if (!f) die(1, path, "cannot read: %s", strerror(errno));
    if (fread(p, sizeof *p, 1, f) != 1 || memcmp(p->magic, state_magic, sizeof p->magic))
        die(1, path, "not a training state");
    return f;
}

static void read_state(FILE *f, const char *path, Net *n, Text *x, const Progress *p)
{
    size_t size = n->parts.size;
    if (fread(n->params, sizeof(float), size, f) != size ||
        fread(n->moment1, sizeof(float), size, f) != size ||
        fread(n->moment2, sizeof(float), size, f) != size || fgetc(f) != EOF)
        die(1, path, "not the size that its header says");
    fclose(f);
    x->rng = p->rng;
    memcpy(x->cursor, p->cursor, sizeof x->cursor);
}

// ================================================================================================
// 12  Training

typedef struct {
    const char *out, *out_f32, *tokenizer, *valid, *state, *resume, *encoding;
    Shape shape;
    Optimizer optimizer;
    double lr, final_lr, fall, minutes, save_minutes, tokens, mix_tokens, answer_weight;
    double synthetic, synthetic_end, repetition, repetition_end; // an end below 0: no change
    double links, hints, shorten;
    double drop; // the share of the run after which RoPE is dropped; 0: never
    int cape;
    long long batch, micro, warmup, log_every, valid_windows, threads, seed, randomized;
} Settings;

static volatile sig_atomic_t stop_asked;
static void on_signal(int sig)
{
    (void)sig;
    stop_asked = 1;
}

// How far the run is, 0 to 1: by tokens or by time, whichever is further. Measured by time, the
// learning rate comes down by the deadline however fast the machine was.
static double run_fraction(const Settings *o, const Progress *p)
{
    double by_tokens = o->tokens > 0 ? (double)p->tokens / o->tokens : 0;
    double by_time = o->minutes > 0 ? p->seconds / (60 * o->minutes) : 0;
    return fmin(fmax(by_tokens, by_time), 1);
}

// Linear warmup over the first steps; over the last share `fall` of the run half a cosine from lr
// down to final_lr * lr. With a fall of 1 that is all of the run. With less the rate is constant
// before it, so a state from there can be continued for as long as one likes: what it would be
// worth as a model shows a second run from the same state that falls at once [WSD].
static double learning_rate(const Settings *o, const Progress *p)
{
    double fallen = o->fall > 0 ? fmax(run_fraction(o, p) - (1 - o->fall), 0) / o->fall : 0;
    double fall = 0.5 + 0.5 * cos(3.14159265358979 * fallen);
    double rise = o->warmup ? (double)(p->step + 1) / (double)o->warmup : 1;
    return o->lr * fmin(rise, 1) * (o->final_lr + (1 - o->final_lr) * fall);
}

typedef struct {
    double nats, bits_per_byte;
    size_t tokens;
} Score;

// Mean loss over at most `windows` windows (0: all) spread evenly over held-out text: BOS, then
// T - 1 tokens, T predictions each, as in training. The end of a document counts as no byte.
static Score evaluate(Net *n, const Text *x, const Source *s, size_t windows)
{
    size_t all = (s->n - 1) / n->T, bytes = 0, tokens = 0;
    double nats = 0;
    if (!windows || windows > all) windows = all;
    plain_positions(&n->places, n->max_rows);
    for (size_t i = 0; i < windows; i += n->max_rows / n->T) {
        size_t now = windows - i < n->max_rows / n->T ? windows - i : n->max_rows / n->T;
        for (size_t k = 0; k < now; k++)
            fill_window(s, 1 + (i + k) * all / windows * n->T, n->T, n->token + k * n->T,
                        n->target + k * n->T, n->weight + k * n->T);
        net_forward(n, now * n->T);
        net_loss(n, now * n->T, 0, NULL);
        for (size_t r = 0; r < now * n->T; r++) {
            if (n->target[r] == ID_BOS) continue;
            nats += n->loss[r];
            tokens++;
            if (n->target[r] == ID_EOS) continue;
            // The space that the encoder puts before a text is no byte of it.
            size_t at = 1 + (i + r / n->T) * all / windows * n->T + r % n->T;
            bytes += (size_t)x->tokenizer->pieces[n->target[r]].len - (s->token[at - 1] == ID_BOS);
        }
    }
    return (Score){nats / (double)tokens, nats / log(2) / (double)bytes, tokens};
}

// Running means of the loss: of all targets, and of the answers' digits and hints alone, which are
// known by their weight: if that is 0 or 1 nothing tells them from others.
typedef struct {
    double all, n_all, answers, n_answers;
} Means;

static void add_losses(Means *m, const Net *n, size_t R, float answer_weight, float share)
{
    for (size_t r = 0; r < R; r++) {
        m->all += n->weight[r] > 0 ? n->loss[r] : 0;
        m->n_all += n->weight[r] > 0;
        if (n->weight[r] > 0 && n->weight[r] == answer_weight * share && answer_weight != 1) {
            m->answers += n->loss[r];
            m->n_answers++;
        }
    }
}

// The shares of texts, of synthetic texts and of repetitions, a straight line from the first value
// to the last, which it reaches with the end of the run or after mix_tokens. Copying has to be
// learned before finding, so a run begins with many repetitions.
static void mix_texts(Text *x, const Settings *o, const Progress *p)
{
    double done = o->mix_tokens > 0 ? fmin((double)p->tokens / o->mix_tokens, 1)
                                    : run_fraction(o, p);
    for (int i = 0; i < x->n; i++) {
        Source *s = &x->source[i];
        s->share = s->first_share + done * (s->last_share - s->first_share);
    }
    x->early = 1 - done;
    x->synthetic = o->synthetic;
    x->repetition = o->repetition;
    if (o->synthetic_end >= 0) x->synthetic += done * (o->synthetic_end - o->synthetic);
    if (o->repetition_end >= 0) x->repetition += done * (o->repetition_end - o->repetition);
}

// One update from batch * T tokens, taken micro sequences at a time.
static double train_step(Net *n, Text *x, const Settings *o, Progress *p, Means *means)
{
    float share = 1 / (float)((size_t)o->batch * n->T);
    memset(n->grads, 0, n->parts.size * sizeof(float));
    mix_texts(x, o, p);
    if (o->drop > 0 && run_fraction(o, p) >= o->drop) p->dropped = 1;
    if (p->dropped) drop_positions(&n->places);
    for (long long done = 0; done < o->batch; done += o->micro) {
        size_t R = (size_t)o->micro * n->T;
        fill_batch(x, n, R);
        for (size_t r = 0; r < R; r++) n->weight[r] *= share;
        draw_positions(&n->places, R, &n->shape, p->tokens);
        net_step(n, R);
        add_losses(means, n, R, x->answer_weight, share);
        p->tokens += R;
    }
    double norm = update_params(n, &o->optimizer, (float)learning_rate(o, p), p->step + 1);
    p->step++;
    return norm;
}

static void print_progress(const Settings *o, const Progress *p, Means *m, double norm,
                           double speed)
{
    double done = run_fraction(o, p), left = done > 0 ? p->seconds * (1 / done - 1) : 0;
    fprintf(stderr,
            "step %llu  %.2fM tokens  loss %.4f  answers %.3f  norm %.2f  lr %.5f  "
            "%.0f tok/s  %.0f min left\n",
            (unsigned long long)p->step, (double)p->tokens / 1e6, m->all / m->n_all,
            m->n_answers ? m->answers / m->n_answers : 0, norm, learning_rate(o, p), speed,
            left / 60);
    *m = (Means){0};
}

// Held-out texts, one a path of --valid.
typedef struct {
    Source source[MAX_SOURCES];
    char path[MAX_SOURCES][PATH_MAX];
    int n;
} Valid;

static void save_all(Net *n, const Text *x, const Settings *o, Progress *p, const Valid *valid,
                     size_t windows)
{
    if (o->state) save_state(o->state, n, x, p);
    if (o->out) export_checkpoint(n, o->out, 1);
    if (o->out_f32) export_checkpoint(n, o->out_f32, 0);
    for (int i = 0; i < valid->n; i++) {
        Score s = evaluate(n, x, &valid->source[i], windows);
        fprintf(stderr,
                "step %llu  %.2fM tokens  valid %.4f nats/token  %.4f bits/byte  (%zu tokens)  "
                "%s\n",
                (unsigned long long)p->step, (double)p->tokens / 1e6, s.nats, s.bits_per_byte,
                s.tokens, valid->path[i]);
    }
}

static void train(Net *n, Text *x, const Settings *o, Progress *p, const Valid *valid)
{
    double before = p->seconds, start = seconds(), logged = start, saved = start;
    uint64_t tokens_then = p->tokens;
    Means means = {0};
    p->drop = o->drop;
    p->cape = o->cape;
    p->muon = o->optimizer.muon;
    if (p->dropped) drop_positions(&n->places); // even if no step is left
    while (run_fraction(o, p) < 1 && !stop_asked) {
        double norm = train_step(n, x, o, p, &means), now = seconds();
        p->seconds = before + now - start;
        if (!isfinite(norm)) // what was saved last is whole
            die(1, "training", "the gradient is not finite in step %llu; a smaller --lr may help",
                (unsigned long long)p->step);
        if (p->step % (uint64_t)o->log_every == 0) {
            print_progress(o, p, &means, norm, (double)(p->tokens - tokens_then) / (now - logged));
            logged = now;
            tokens_then = p->tokens;
        }
        if (now - saved > 60 * o->save_minutes) {
            save_all(n, x, o, p, valid, (size_t)o->valid_windows);
            saved = now;
        }
    }
    save_all(n, x, o, p, valid, stop_asked ? (size_t)o->valid_windows : 0);
}

// ================================================================================================
// 13  Settings and main
//
// Every option takes a value. Numbers are parsed whole; anything else is refused.

typedef struct {
    const char *name;
    void *value;
    enum { TEXT, INT32, INT64, FLOAT32, FLOAT64 } type;
    double low, high;
    const char *help;
} Setting;

static Settings settings = {
    .shape = {256, 640, 6, 8, 4, 4096, 512, ENC_ROPE, 0, 10000, 1e-5f},
    .optimizer =
        {.beta1 = 0.9f, .beta2 = 0.95f, .momentum = 0.95f, .decay = 0.1f, .clip = 1, .muon = 1},
    .tokenizer = "tokenizer.bin",
    .lr = 4e-3,
    .final_lr = 0.05,
    .fall = 1,
    .save_minutes = 10,
    .synthetic = 0.08,
    .repetition = 0.25,
    .synthetic_end = -1,
    .repetition_end = -1,
    .answer_weight = 4,
    .batch = 16,
    .micro = 8,
    .warmup = 60,
    .log_every = 10,
    .valid_windows = 64,
    .threads = 2,
    .seed = 1,
};

static const Setting setting_table[] = {
    {"-o", &settings.out, TEXT, 0, 0, "checkpoint to write, Q8_0"},
    {"--out-f32", &settings.out_f32, TEXT, 0, 0, "checkpoint to write, float32"},
    {"-z", &settings.tokenizer, TEXT, 0, 0, "tokenizer"},
    {"--valid", &settings.valid, TEXT, 0, 0, "held-out texts: paths with commas between"},
    {"--state", &settings.state, TEXT, 0, 0, "state to write"},
    {"--resume", &settings.resume, TEXT, 0, 0, "state to continue from, with its shape"},
    {"--dim", &settings.shape.dim, INT32, 16, 8192, "width of the residual stream"},
    {"--hidden", &settings.shape.hidden_dim, INT32, 32, 32768, "width of the FFN"},
    {"--layers", &settings.shape.n_layers, INT32, 1, MAX_LAYERS, "layers"},
    {"--heads", &settings.shape.n_heads, INT32, 1, 256, "query heads"},
    {"--kv-heads", &settings.shape.n_kv_heads, INT32, 1, 256, "key/value heads"},
    {"--vocab", &settings.shape.vocab_size, INT32, 260, 65535, "pieces of the tokenizer"},
    {"--ctx", &settings.shape.train_ctx, INT32, 32, MAX_CTX, "tokens of a sequence"},
    {"--theta", &settings.shape.rope_theta, FLOAT32, 1, 1e9, "RoPE base"},
    {"--encoding", &settings.encoding, TEXT, 0, 0, "a name of run.c's list, shape, cape or drope"},
    {"--randomized", &settings.randomized, INT64, 2, 1024,
     "rope, learned: positions from N times the context; shape: offsets (8)"},
    {"--batch", &settings.batch, INT64, 1, 4096, "sequences in an update"},
    {"--micro", &settings.micro, INT64, 1, 4096, "sequences in one pass"},
    {"--lr", &settings.lr, FLOAT64, 0, 1, "peak learning rate"},
    {"--final-lr", &settings.final_lr, FLOAT64, 0, 1, "learning rate at the end, as a share"},
    {"--fall", &settings.fall, FLOAT64, 0, 1, 
     "share of the run, its last, in which it falls"},
    {"--warmup", &settings.warmup, INT64, 0, 1000000, "steps of rising learning rate"},
    {"--bf16", &use_bf16, INT32, 0, 1, "1: matrix products of bfloat16, faster"},
    {"--decay", &settings.optimizer.decay, FLOAT32, 0, 1, "weight decay"},
    {"--clip", &settings.optimizer.clip, FLOAT32, 1e-3, 1e9, "longest gradient"},
    {"--muon", &settings.optimizer.muon, INT32, 0, 1, "1: Muon for matrices; 0: AdamW"},
    {"--tokens", &settings.tokens, FLOAT64, 0, 1e12, "tokens to train on"},
    {"--minutes", &settings.minutes, FLOAT64, 0, 1e6, "time to train for"},
    {"--save-minutes", &settings.save_minutes, FLOAT64, 0.01, 1e6, "time between saves"},
    {"--mix-tokens", &settings.mix_tokens, FLOAT64, 0, 1e12,
     "shares have moved by then; default: at the end"},
    {"--synthetic", &settings.synthetic, FLOAT64, 0, 1, "share of synthetic windows"},
    {"--repetition", &settings.repetition, FLOAT64, 0, 1, "share of repetitions among those"},
    {"--synthetic-end", &settings.synthetic_end, FLOAT64, 0, 1,
     "the share moves there; default: stays"},
    {"--repetition-end", &settings.repetition_end, FLOAT64, 0, 1, "likewise"},
    {"--links", &settings.links, FLOAT64, 0, 1, "share of linked boxes among questions"},
    {"--hints", &settings.hints, FLOAT64, 0, 1, "share of their questions that have a hint"},
    {"--shorten", &settings.shorten, FLOAT64, 0, 100, "by how much synthetic texts are shorter"},
    {"--answer-weight", &settings.answer_weight, FLOAT64, 0, 100, "weight of an answer's digits"},
    {"--log-every", &settings.log_every, INT64, 1, 1000000, "steps between lines"},
    {"--valid-windows", &settings.valid_windows, INT64, 1, 1000000,
     "windows of a check while training"},
    {"-j", &settings.threads, INT64, 1, 256, "threads"},
    {"--seed", &settings.seed, INT64, 0, 1e15, "seed"},
};
enum { N_SETTINGS = sizeof setting_table / sizeof *setting_table };

static void print_settings(void)
{
    printf("train [options] FILE_OR_FOLDER[=SHARE]...\n");
    for (int i = 0; i < N_SETTINGS; i++)
        printf("  %-18s %s\n", setting_table[i].name, setting_table[i].help);
}

static void apply_setting(const char *name, const char *value)
{
    const Setting *o = setting_table;
    while (o < setting_table + N_SETTINGS && strcmp(o->name, name)) o++;
    if (o == setting_table + N_SETTINGS) die(2, name, "unknown option");
    if (!value) die(2, name, "needs a value");
    int whole = o->type == INT32 || o->type == INT64;
    double v = o->type == TEXT ? 0
             : parse_number(EXIT_USAGE, name, value, whole, o->low, o->high);
    switch (o->type) {
    case TEXT: *(const char **)o->value = value; break;
    case INT32: *(int32_t *)o->value = (int32_t)v; break;
    case INT64: *(long long *)o->value = (long long)v; break;
    case FLOAT32: *(float *)o->value = (float)v; break;
    case FLOAT64: *(double *)o->value = (double)v; break;
    }
}

// The encoding's number and the spread of its positions. Some names are those of a way to train
// another encoding.
static void choose_encoding(Settings *o)
{
    const char *name = o->encoding ? o->encoding : "rope";
    int shape = !strcmp(name, "shape"), i = 0;
    if (!o->encoding && !o->randomized) return;
    if ((o->cape = !strcmp(name, "cape"))) shape = 1;
    o->drop = strcmp(name, "drope") ? 0 : 7.0 / 8;
    if (o->drop > 0) name = "rope";
    if (shape) name = "sinusoidal";
    while (i < N_ENCODINGS && strcmp(name, encodings[i].name)) i++;
    if (i == N_ENCODINGS) die(2, "--encoding", "no such encoding (got '%s')", o->encoding);
    if (o->randomized && i != ENC_ROPE && i != ENC_LEARNED && !shape)
        die(2, "--randomized", "wants rope, learned or shape (got %s)", encodings[i].name);
    o->shape.encoding = (uint16_t)i;
    o->shape.spread = (uint16_t)(o->randomized ? o->randomized : shape ? 8 : 0);
}

static void check_shape(const Shape *s)
{
    if (s->dim % s->n_heads)
        die(2, "--heads", "does not divide dim %d (got %d)", s->dim, s->n_heads);
    if (s->n_heads % s->n_kv_heads)
        die(2, "--kv-heads", "does not divide heads %d (got %d)", s->n_heads, s->n_kv_heads);
    if (head_size(s) % 16)
        die(2, "--heads", "want heads of a multiple of 16 (got %zu)", head_size(s));
    if (s->hidden_dim % 32) die(2, "--hidden", "want a multiple of 32 (got %d)", s->hidden_dim);
    if (s->dim % 32) die(2, "--dim", "want a multiple of 32 (got %d)", s->dim);
    if (s->train_ctx % 32) die(2, "--ctx", "want a multiple of 32 (got %d)", s->train_ctx);
    if (s->vocab_size % 32) die(2, "--vocab", "want a multiple of 32 (got %d)", s->vocab_size);
}

static void check_settings(const Settings *o)
{
    check_shape(&o->shape);
    if (o->batch % o->micro) die(2, "--micro", "does not divide batch (got %lld)", o->micro);
#if !defined(__AVX512BF16__) || defined(PLAIN)
    if (use_bf16) die(2, "--bf16", "this build has no products of bfloat16");
#endif
    if (o->tokens <= 0 && o->minutes <= 0) die(2, "--tokens", "want --tokens or --minutes");
    check_output(o->out);
    check_output(o->out_f32);
    check_output(o->state);
}

// Encodes one argument, PATH, PATH=SHARE or PATH=SHARE:LAST, where the share moves from the first
// number to the last; without a share a text counts by its size.
static void load_source(Text *x, const char *argument)
{
    if (x->n == MAX_SOURCES) die(2, argument, "too many texts (want at most %d)", MAX_SOURCES);
    Source *s = &x->source[x->n++];
    char path[PATH_MAX];
    const char *equals = strrchr(argument, '=');
    snprintf(path, sizeof path, "%.*s", (int)(equals ? equals - argument : PATH_MAX - 1), argument);
    append_path(s, x->tokenizer, path);
    s->first_share = s->last_share = (double)s->n;
    if (equals) {
        char first[64];
        const char *colon = strchr(equals, ':');
        snprintf(first, sizeof first, "%.*s", (int)strcspn(equals + 1, ":"), equals + 1);
        s->first_share = s->last_share = parse_number(EXIT_USAGE, argument, first, 0, 0, 1e9);
        if (colon) s->last_share = parse_number(EXIT_USAGE, argument, colon + 1, 0, 0, 1e9);
    }
    if (s->n < LEAST_TEXT)
        die(1, argument, "too little text (got %zu tokens, want %d)", s->n, LEAST_TEXT);
}

static void load_text(Text *x, const Settings *o, char **paths, int n_paths)
{
    double first = 0, last = 0;
    x->answer_weight = (float)o->answer_weight;
    x->links = o->links;
    x->hints = o->hints;
    x->shorten = o->shorten;
    x->rng = (uint64_t)o->seed * 0x9E3779B97F4A7C15u;
    classify_pieces(x, o->shape.vocab_size);
    for (int i = 0; i < n_paths; i++) load_source(x, paths[i]);
    for (int i = 0; i < x->n; i++) {
        first += x->source[i].first_share;
        last += x->source[i].last_share;
    }
    if (first <= 0 || last <= 0) die(2, "shares", "all are 0");
    for (int i = 0; i < x->n; i++) {
        Source *s = &x->source[i];
        s->first_share /= first;
        s->last_share /= last;
        fprintf(stderr, "%s: %zu tokens, %.2f bytes each, share %.3f to %.3f\n", paths[i], s->n,
                (double)s->bytes / (double)s->n, s->first_share, s->last_share);
    }
}

// Encodes the held-out texts of a list of paths with commas between them, or of NULL.
static void load_valid(Valid *v, Tokenizer *t, const char *list, size_t T)
{
    for (const char *from = list; from; v->n++) {
        if (v->n == MAX_SOURCES) die(2, "--valid", "too many paths (want at most %d)", MAX_SOURCES);
        size_t len = strcspn(from, ",");
        snprintf(v->path[v->n], PATH_MAX, "%.*s", (int)len, from);
        append_path(&v->source[v->n], t, v->path[v->n]);
        if (v->source[v->n].n <= T)
            die(1, v->path[v->n], "too little text (got %zu tokens, want %zu)", v->source[v->n].n,
                T + 1);
        from = from[len] ? from + len + 1 : NULL;
    }
}

// Applies all settings of the command line; returns where its texts begin.
static int apply_settings(int argc, char **argv)
{
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i += 2) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help")) {
            print_settings();
            exit(0);
        }
        apply_setting(argv[i], argv[i + 1]);
    }
    choose_encoding(&settings);
    return i;
}

#ifndef TESTING_TRAIN
int main(int argc, char **argv)
{
    prog = "train";
    int i = apply_settings(argc, argv);
    if (i >= argc) die(2, "usage", "train [options] FILE_OR_FOLDER[=SHARE]...; see train --help");
    Progress progress = {0};
    FILE *state = settings.resume ? open_state(settings.resume, &progress) : NULL;
    if (state) {
        settings.shape = progress.shape;
        settings.drop = progress.drop;
        settings.cape = progress.cape;
        settings.optimizer.muon = progress.muon;
        apply_settings(argc, argv); // what was asked for must be what the state has
        if (memcmp(&settings.shape, &progress.shape, sizeof progress.shape))
            die(2, settings.resume, "a state of another shape (got dim %d, %d layers, context %d)",
                progress.shape.dim, progress.shape.n_layers, progress.shape.train_ctx);
        if (settings.drop != progress.drop || settings.cape != progress.cape)
            die(2, settings.resume, "a state of another encoding (want %s)",
                progress.cape ? "cape" : progress.drop > 0 ? "drope"
                              : encodings[progress.shape.encoding].name);
        if (settings.optimizer.muon != progress.muon)
            die(2, settings.resume, "of another optimizer (want --muon %d)", progress.muon);
    }
    check_settings(&settings);
    pool_start((int)settings.threads);

    static Tokenizer tokenizer;
    static Text text = {.tokenizer = &tokenizer};
    static Net net;
    Vocab pieces = read_vocab(settings.tokenizer, (size_t)settings.shape.vocab_size);
    tokenizer_init(&tokenizer, settings.tokenizer, &pieces);
    load_text(&text, &settings, argv + i, argc - i);
    static Valid valid;
    load_valid(&valid, &tokenizer, settings.valid, (size_t)settings.shape.train_ctx);
    net_alloc(&net, &settings.shape, (size_t)settings.micro);
    if (settings.cape)
        net.places.real = xcalloc((size_t)settings.micro * net.T, sizeof *net.places.real);
    if (state) read_state(state, settings.resume, &net, &text, &progress);
    else init_params(net.params, &net.parts, &settings.shape, &text.rng);
    fprintf(stderr, "%zu parameters\n", net.parts.size);
    signal(SIGINT, on_signal); // before this there is nothing to save: it would replace a model
    signal(SIGTERM, on_signal);
    train(&net, &text, &settings, &progress, &valid);
    return run_fraction(&settings, &progress) < 1; // 1: stopped before its end
}
#endif
