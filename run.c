// run.c: a Transformer engine in one file, for text longer than the model was trained on.
//
//   cc -O3 -march=native -ffp-contract=off -o run run.c -lm -lpthread
//   ./run models/tales.bin -i "Once upon a time"          generate text
//   ./run models/tales.bin -c 2048 --rope-scaling yarn ... past the trained context
//   ./run TinyLlama-1.1B-Chat.Q4_K_M.gguf -i "Why"         a GGUF model, as it is
//   ./run -h                                               everything else
//
// Other files include this one: chat.c, which holds conversations and cuts words for byte-level
// tokenizers (make builds ./run from it); tests/measure.c, the instruments; tests and tools.
//
// It memory-maps a decoder-only checkpoint and runs it on CPU threads with libc, libm and
// pthreads only. Keys are cached before rotation and RoPE is computed inside the attention loop,
// so the published ways of stretching a model's context can be tried, and compared, exactly.
//
// How to read this file. Code uses only what stands above it; three routes:
//   position      sections 3 to 7, then 9: how position enters a Transformer, what can be
//                 stretched, the attention loop. An evening; 1 and 2 have the words it is told in.
//   one layer     section 3 (every shape), then forward() in section 9
//   speed         section 2, Tensor in 3, then 6 and 8: vectors, threads, products
//
// Notation. Arrays are row-major and shapes are written in brackets, [n][dim]; weights are always
// [out][in]. I is the imaginary unit. Pair m of a head is two of its dimensions, the plane that
// RoPE turns at the angular speed theta_m (radians per token); i is the query's position, j <= i
// the key's, both 0-based, in tokens, and D = i - j their distance; L is the trained context; s is
// the factor by which it is stretched; n = i + 1 the current length.
//
//   1  Errors and memory           6  Threads                       11  GGUF
//   2  Vectors                     7  Cache and attention           12  Tokenizer
//   3  Shapes                      8  Tensor types and products     13  Sampler
//   4  Position I: the encodings   9  Forward                       14  Generate
//   5  Position II: longer texts  10  Checkpoints                   15  Options and main
//
// Names in brackets are papers, listed at the end of the file.

#if __SIZEOF_POINTER__ != 8 || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "run.c maps little-endian files of any size: it needs a 64-bit little-endian machine"
#endif
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(PLAIN) // the definition that everything faster is checked against
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define X86_V3 1
#include <immintrin.h>
#elif defined(__aarch64__)
#define NEON 1
#include <arm_neon.h>
#endif

// ================================================================================================
// 1  Errors and memory
//
// There is one way to fail: die() prints one line and exits. Numeric code (sections 2 to 9) calls
// it only where it gets memory; whether its results are finite is looked at by those who asked for
// them. Sizes are computed with saturating arithmetic: a product that does not fit becomes
// SIZE_MAX, which equals no file's size and can be allocated by nobody, so one comparison at the
// end catches every overflow on the way. A reader who came for the subject can skim section 2,
// the words that inner loops are written in, and go on at section 3.

#define INLINE static inline __attribute__((always_inline))
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *prog = "run"; // what messages begin with; tests/measure.c has its own name

enum { EXIT_DATA = 1, EXIT_USAGE = 2 }; // a bad file or system failure; a bad command line

// One line whatever the names in it hold: control characters, U+0080 to U+009F too, become '?'.
static void make_printable(char *c)
{
    for (; *c; c++) {
        int wide = *c == '\xc2' && (c[1] & 0xe0) == 0x80;
        if (wide || iscntrl((unsigned char)*c)) c[wide] = *c = '?';
    }
}

// Ends the program with "run: WHAT: WHY" on stderr and `code` as its exit status; what: the file or
// the option that is to blame.
__attribute__((noreturn, format(printf, 3, 4))) static void die(int code, const char *what,
                                                                const char *fmt, ...)
{
    char line[PATH_MAX + 512];
    int n = snprintf(line, sizeof line, "%s: %.*s: ", prog, PATH_MAX, *what ? what : "''");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
    va_end(ap);
    make_printable(line);
    fflush(stdout);
    fprintf(stderr, "%s\n", line);
    exit(code);
}

// Sizes: products, sums and multiples that saturate, and division that rounds up.
static size_t mul_size(size_t a, size_t b) { return b && a > SIZE_MAX / b ? SIZE_MAX : a * b; }
static size_t add_size(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }
static size_t ceil_div(size_t a, size_t b) { return a / b + (a % b != 0); }
static size_t round_up(size_t a, size_t b) { return mul_size(ceil_div(a, b), b); }
static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

// Memory for n items, zeroed, that begins at a cache line and so at a vector; 64 bytes behind it
// may be read by whole vectors. It is there, or the program ends.
static void *xcalloc(size_t n, size_t size)
{
    size_t bytes = round_up(add_size(mul_size(n, size), 64), 64);
    void *p = bytes > PTRDIFF_MAX ? NULL : aligned_alloc(64, bytes);
    if (!p) die(EXIT_DATA, "memory", "cannot allocate (got none, want %zu bytes)", bytes);
    return memset(p, 0, bytes);
}

// Zeroed memory that is real only where it is touched.
static void *reserve(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die(EXIT_DATA, "memory", "cannot reserve %zu bytes", bytes);
    return p;
}

// A larger place for p's items, or for the first ones if p is NULL; not zeroed.
static void *xrealloc(void *p, size_t n, size_t size)
{
    p = realloc(p, max_size(1, mul_size(n, size)));
    if (!p) die(EXIT_DATA, "memory", "cannot allocate (want %zu x %zu bytes)", n, size);
    return p;
}

// ================================================================================================
// 2  Vectors
//
// The words in which everything that runs over many numbers is written: LANES floats or integers at
// once, as the compiler's vector extensions have them (gcc and clang turn them into SSE, AVX or
// NEON). What these cannot say has a plain form and, beside it, one in the machine's own
// instructions: MM(op) is x86's instruction op for vectors of this width. The plain form says what
// the result is, to the last bit; -DPLAIN compiles it alone.

#if defined(X86_V3) && defined(__AVX512VNNI__)
#define LANES 16
#define MM(op) _mm512_##op
#elif defined(X86_V3)
#define LANES 8
#define MM(op) _mm256_##op
#else
#define LANES 4
#endif

// The letter says what a vector holds: LANES floats (f), int32 (i), uint32 (u), int8 (b) or halves
// (h); a whole vector's single bytes (c) or shorts (s); or four floats, whatever LANES is (4). mi
// and mi_half are what x86's instructions for integers want, __m512i and so on.
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint8_t vc __attribute__((vector_size(4 * LANES)));
typedef uint16_t vs __attribute__((vector_size(4 * LANES)));
typedef int8_t vb __attribute__((vector_size(LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef float v4 __attribute__((vector_size(16)));
typedef long long mi __attribute__((vector_size(4 * LANES)));
typedef long long mi_half __attribute__((vector_size(2 * LANES)));
typedef float vf_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vf vload(const float *p) { return *(const vf_unaligned *)p; }
INLINE void vstore(float *p, vf v) { *(vf_unaligned *)p = v; }

INLINE vf vfloat(vi v) { return __builtin_convertvector(v, vf); }

// f in all lanes: a number that meets a vector goes to each. (-0 - 0 is -0, while -0 + 0 is 0.)
INLINE vf vset(float f) { return f - (vf){0}; }

// a where a comparison holds, which sets all bits of a lane of the mask, and b elsewhere.
INLINE vf vselect(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

// a > b ? a : b and a < b ? a : b by lanes: b where either is NaN.
INLINE vf vmax(vf a, vf b)
{
#if defined(MM)
    return (vf)MM(max_ps)(a, b);
#else
    return vselect(a > b, a, b);
#endif
}

INLINE vf vmin(vf a, vf b) { return -vmax(-a, -b); }

// a * b + c, rounded once: written out, since compilers are told never to fuse a product and a sum
// on their own (they would choose anew in every loop, and results would depend on the choice).
// Machines older than fused multiply-adds round twice, and have results of their own.
INLINE vf vmuladd(vf a, vf b, vf c)
{
#if defined(MM)
    return (vf)MM(fmadd_ps)(a, b, c);
#elif defined(NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(PLAIN) || defined(__FMA__) || defined(__FP_FAST_FMAF)
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// Loads the n floats that are left, or LANES of them; what is missing is 0.
INLINE vf vload_part(const float *p, size_t n)
{
    vf v = {0};
    if (n >= LANES) return vload(p);
    memcpy(&v, p, n * 4);
    return v;
}

INLINE void vstore_part(float *p, vf v, size_t n)
{
    if (n >= LANES) vstore(p, v);
    else memcpy(p, &v, n * 4);
}

// Asks for so many bytes from p on, into the second-level cache.
INLINE void prefetch(const void *p, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}

// KEEP keeps a vector in its register, where gcc would rather load it again for each use: it is
// loads that limit the speed of products. RELAX tells the processor that this thread only waits.
#if defined(__x86_64__)
#define KEEP(v) __asm__("" : "+v"(v))
#define RELAX() __builtin_ia32_pause()
#else
#define KEEP(v) (void)(v)
#define RELAX() (void)0
#endif

// A dot product of floats is summed in one order, whatever the width of vectors: number k goes to
// running sum k % SUMS, and at the end a fixed tree adds sums at a distance of 8, of 4, of 2 and of
// 1. The running sums are one vector of 16 lanes, two of 8 or four of 4.
enum { SUMS = 16, SUM_VECTORS = SUMS / LANES };

// Adds the running sums by that tree. A sum of nothing but -0 would depend on whether zeros were
// added as padding: adding 0 last makes it 0 in any case.
INLINE float vsum(const vf sums[SUM_VECTORS])
{
    v4 a[4];
    memcpy(a, sums, sizeof a);
    v4 b = (a[0] + a[2]) + (a[1] + a[3]);
    return ((b[0] + b[2]) + (b[1] + b[3])) + 0;
}

// The largest lane.
INLINE float vmax_lane(vf v)
{
    float max = v[0];
    for (int i = 1; i < LANES; i++) max = v[i] > max ? v[i] : max;
    return max;
}

// a[n] . b[n]
static float dot(const float *a, const float *b, size_t n)
{
    vf sums[SUM_VECTORS] = {{0}};
    for (size_t k = 0; k < n; k += SUMS)
        for (size_t i = 0, at = k; i < SUM_VECTORS && at < n; i++, at += LANES)
            sums[i] = vmuladd(vload_part(a + at, n - at), vload_part(b + at, n - at), sums[i]);
    return vsum(sums);
}

// q[n] = x / scale rounded to int8, halves to even. The scale, max|x| / 127, is returned, or NaN if
// an x is not finite. *minus_sum gets 0 less the sum of q, exact for n below 2^17; where the scale
// is NaN it means nothing.
static float round_to_bytes(const float *x, size_t n, int8_t *q, float *minus_sum)
{
    const vf round = vset(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
    vf max = {0}, sums[SUM_VECTORS] = {{0}};
    for (size_t k = 0; k < n; k += LANES) {
        vf v = vload_part(x + k, n - k);
        max = vmax(vmax(v, -v), max);
    }
    float largest = vmax_lane(max), inverse = largest > 1e-36f ? 127 / largest : 0;
    for (size_t k = 0; k < n; k += LANES) {
        vf rounded = (vload_part(x + k, n - k) * vset(inverse) + round) - round;
        vb bytes = __builtin_convertvector(__builtin_convertvector(rounded, vi), vb);
        memcpy(q + k, &bytes, min_size(LANES, n - k));
        sums[0] -= rounded;
    }
    *minus_sum = vsum(sums);
    return fabsf(*minus_sum) < 1e9f ? largest / 127 : NAN;
}

// e^x by lanes: x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7; 2^n
// is a float whose exponent is n. ln 2 is a number of few bits less a small one, so that r keeps
// digits which a single float for ln 2 would lose. Relative error below 3e-7 for -87 <= x <= 88; 0
// below (a score of minus a lot gets exactly no weight), e^88 above.
INLINE vf vexp(vf x)
{
    const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};
    const vf shift = vset(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
    vf y = vmax(vset(-87), vmin(vset(88), x)); // in this order, NaN stays NaN
    vf shifted = vmuladd(y, vset(1.44269504f), shift), n = shifted - shift;
    vf r = vmuladd(n, vset(2.12194440e-4f), vmuladd(n, vset(-0.693359375f), y));
    vf p = vset(1.0f / 5040);
    for (size_t i = 0; i < COUNT(taylor); i++) p = vmuladd(p, r, vset(taylor[i]));
    vf e = p * (vf)(((vu)shifted << 23) + 0x3f800000u); // the low bits of `shifted` are n
    return vselect(x < vset(-87), vset(0), e);
}

// ln x for x >= 1, by lanes: x = 2^n f, 1/sqrt 2 <= f < sqrt 2, and with t = (f - 1) / (f + 1)
// ln f = 2 (t + t^3/3 + t^5/5 + ...). Error below 2e-7 of the larger of the result and 1.
INLINE vf vlog(vf x)
{
    vi n = ((vi)x - 0x3f3504f3) >> 23; // the bits of 1/sqrt 2
    vf f = (vf)((vi)x - (n << 23)), t = (f - vset(1)) / (f + vset(1)), u = t * t;
    vf p = vmuladd(vset(2.0f / 9), u, vset(2.0f / 7));
    p = vmuladd(vmuladd(p, u, vset(2.0f / 5)), u, vset(2.0f / 3));
    p = t * vmuladd(p, u, vset(2));
    return vmuladd(vfloat(n), vset(0.69314718f), p);
}

// x[n] = c tanh(x / c) = c - 2c / (e^(2x/c) + 1), which never passes c; if c is 0, x stays as it
// is. The term 0 * x is NaN where x is infinite, which then is found out rather than capped.
static void soft_cap(float *x, size_t n, float c)
{
    for (size_t i = 0; c > 0 && i < n; i += LANES) {
        vf y = vload_part(x + i, n - i), e = vexp(y * vset(2 / c));
        vstore_part(x + i, vset(c) - vset(2 * c) / (e + vset(1)) + vset(0) * y, n - i);
    }
}

// LANES numbers of IEEE half precision as floats. A half's exponent and fraction, moved 13 bits up,
// are those of a float 2^-112 times as large, even of a subnormal one; only infinity and NaN need
// their exponents filled.
INLINE vf half_to_vf(vh h)
{
#if defined(MM)
    return (vf)MM(cvtph_ps)((mi_half)h);
#elif defined(NEON)
    return (vf)vcvt_f32_f16((float16x4_t)h);
#else
    vu bits = __builtin_convertvector(h, vu), sign = bits >> 15 << 31;
    bits = bits << 17 >> 4;
    bits |= (vu)(bits >= 0x0f800000) & 0x7f800000;
    return (vf)((vu)((vf)bits * vset(0x1p112f)) | sign);
#endif
}

// Floats as halves, to nearest even. Too large a value becomes the largest half, not infinity,
// since an infinite value in the cache would poison (0 * inf) even queries that cannot see it.
// Infinity itself becomes NaN, so that a model with such weights is found out. In the plain version
// a number below 2^-14, a subnormal half, is rounded to multiples of 2^-24 by adding 0.5, whose
// last bit that is.
INLINE vh vf_to_half(vf v)
{
    v = vmax(vset(-65504), vmin(vset(65504), v)) + vset(0) * v; // infinity and NaN become NaN
#if defined(MM)
    return (vh)MM(cvtps_ph)(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(NEON)
    return (vh)vcvt_f16_f32((float32x4_t)v);
#else
    vu bits = (vu)v << 1 >> 1, sign = (vu)v >> 16 & 0x8000, nan = (vu)(v != v) & 0x7e00;
    vu normal = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10);
    vu small = (vu)((vf)bits + vset(0.5f)) - (vu)vset(0.5f);
    vf half = vselect(bits < 0x38800000, (vf)small, (vf)normal); // 2^-14
    return __builtin_convertvector((vu)half | sign | nan, vh);
#endif
}

// How numbers are stored, as GGUF numbers it, and the bytes of each.
enum { AS_F32 = 0, AS_F16 = 1, AS_INT8 = 24, AS_BF16 = 30 };
INLINE size_t number_size(int as) { return as == AS_F32 ? 4 : as == AS_INT8 ? 1 : 2; }

// Numbers i, i + 1, ... of an array, of which n are left, or LANES. bf16 are the upper halves of
// floats.
INLINE vf load_numbers(int as, const void *p, size_t i, size_t n)
{
    vh halves = {0};
    vb bytes = {0};
    if (as == AS_F32) return vload_part((const float *)p + i, n);
    if (as == AS_INT8) {
        if (n >= LANES) memcpy(&bytes, (const int8_t *)p + i, sizeof bytes);
        else memcpy(&bytes, (const int8_t *)p + i, n);
        return vfloat(__builtin_convertvector(bytes, vi));
    }
    const uint16_t *h = (const uint16_t *)p + i;
    if (n >= LANES) memcpy(&halves, h, sizeof halves);
    else memcpy(&halves, h, n * 2);
    return as == AS_F16 ? half_to_vf(halves) : (vf)(__builtin_convertvector(halves, vu) << 16);
}

// Stores x[n] as floats, halves or int8. int8 are rounded as round_to_bytes() does it, and have
// their scale returned; the others need none, which is 1.
static float store_numbers(int as, const float *x, size_t n, void *out)
{
    if (as == AS_INT8) return round_to_bytes(x, n, out, &(float){0}); // the sum is not needed
    if (as == AS_F32) memcpy(out, x, n * 4);
    for (size_t i = 0; as == AS_F16 && i < n; i += LANES) {
        vh half = vf_to_half(vload_part(x + i, n - i));
        memcpy((uint16_t *)out + i, &half, min_size(LANES, n - i) * 2);
    }
    return 1;
}

// ================================================================================================
// 3  Shapes
//
// A decoder-only Transformer reads tokens, numbers below vocab_size. A table gives each of them a
// vector of dim floats, the residual stream x. Every layer adds to x twice: what attention finds in
// the token and those before it, and what a feed-forward net of hidden_dim units makes of x alone.
// In attention a token has n_heads queries of head_dim numbers each. They are compared with keys,
// and weigh values by how well these fit; every group of query heads shares one of n_kv_heads heads
// of keys and values. The classifier turns the last x into a score, the logit, for each token that
// could come next.
//
// Here is every shape once. The numbers of a model are a Config, its matrices are Tensors, its
// norms and biases floats. Two doors fill them in, one for llama2.c's files and our own (section
// 10), one for GGUF (section 11).

typedef struct TensorType TensorType; // f32, q8_0, ...: section 8 has the table of them

// A matrix as it lies in the file. y = x w^T + bias: a row of w gives one number of y.
typedef struct {
    const TensorType *type;
    const uint8_t *data;  // [rows][cols] in the type's layout
    const float *scales;  // [rows * cols / group] of llama2.c's Q8_0, which has them apart, or NULL
    size_t group;         // values that share a scale; 0: floats
    size_t rows, cols;    // out, in
    const float *bias;    // [rows], or NULL: nothing is added
} Tensor;

// What a norm multiplies by, and adds. weight NULL: the model does not have this norm.
typedef struct {
    const float *weight, *bias; // [dim]; bias may be NULL
    size_t dim;                 // so many numbers are normed together
} Norm;

// How a model was trained to know positions (section 4), what can be done to its frequencies and to
// the distances it sees when a text is longer (section 5).
typedef enum { ENC_ROPE, ENC_NOPE, ENC_SINUSOIDAL, ENC_LEARNED, ENC_ALIBI, ENC_T5, ENC_XPOS,
               ENC_KERPLE, ENC_FIRE, ENC_SHAW, ENC_SANDWICH, N_ENCODINGS } Encoding;
enum { FIRE_HIDDEN = 32 }; // units in FIRE's one hidden layer
enum { ROPE_NONE, ROPE_LINEAR, ROPE_NTK, ROPE_DYNAMIC, ROPE_BY_PARTS, ROPE_YARN, ROPE_LLAMA3,
       ROPE_LONGROPE, N_ROPE_METHODS };
typedef enum { DIST_FULL, DIST_SELF_EXTEND, DIST_REROPE, DIST_LEAKY, DIST_STRING,
               DIST_DUAL_CHUNK } Distance;

// How positions are computed: what the checkpoint says, overridden by the command line. 0 stands
// for "not given", and in window, sinks, logn, still and temp for "none". The capital letters are
// those of the methods' formulas, in section 5.
typedef struct {
    int method;        // index into rope_methods
    double theta;      // the base, from which pairs have their speeds theta_m (section 4)
    double factor;     // s
    double attn_factor; // a; 0: the method's own
    double attn_times, attn_log; // change yarn's own: see yarn_attention()
    double beta_fast, beta_slow, low_freq_factor, high_freq_factor;
    const float *short_factors, *long_factors; // longrope: [n_rot / 2]
    const float *own_factors; // of the wavelengths, whatever the method: [n_rot / 2], or NULL
    double fraction;   // P: pairs from floor(P * n_rot / 2) on do not turn; 0: all do [p-RoPE]
    int orig_ctx;      // L: what methods count from; 0: train_ctx, put in before use
    int window, sinks; // W, S
    Distance distance;
    int reach;         // how far the near map reaches: W; S of string, C of dual-chunk
    double other;      // of the far maps: G of self-extend, k, W of string and dual-chunk
    int logn;          // whether queries are scaled by log-n (query_scale)
    int still;         // nothing turns
    const double *positions; // of tokens, if not 0, 1, 2, ...; [whole tiles]
    double temp;       // B of the attention temperature
    int temp_ctx;      // its L0
    int temp_from_0;   // i in place of i + 1 there
} RopeConfig;

// The numbers of a model. For every field from n_rot on, 0 is what llama2.c's models have.
typedef struct {
    int dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size;
    int train_ctx;      // tokens: the context that it was trained on
    double norm_eps;
    Encoding encoding;
    int rows;           // learned: of the table; t5: buckets; shaw: K, the farthest distance told
    int max_distance;   // t5: from here on all distances share the last bucket
    const float *table; // what the encoding learned, as it lies in the file
    RopeConfig rope;
    int n_rot;         // dimensions of a head that turn; 0: all
    int rope_split;    // their pairs are (m, m + n_rot / 2), not (2m, 2m + 1)
    int gelu;          // the feed-forward net's activation: gelu, not silu
    int no_gate;       // it has no gate: w1 goes up, and there is no w3
    int layer_norm;    // norms take the mean away first
    int no_pre_norm;   // no norms before attention and the feed-forward net
    int post_norm;     // norms of what joins the residual stream
    int qk_norm;       // norms of q and k: 1 of each head, 2 of all heads together
    int parallel;      // the feed-forward net reads x as attention did, without its result
    double emb_scale;    // embeddings are multiplied by it, unless 0
    double score_scale;  // scores are multiplied by it; 0: 1 / sqrt(head_dim)
    double branch_scale; // what joins the residual stream is multiplied by it, unless 0
    double logit_scale;  // logits are divided by it, unless 0
    double score_cap, logit_cap; // c: x becomes c tanh(x / c), unless 0
    int global_every;  // every so many layers one is global (`rope`), others `local`; 0: all global
    int nope_every;    // every so many layers one has no position: it is `local`, and that `still`
    RopeConfig local;  // positions in local layers
} Config;

// A layer's weights.
typedef struct {
    Tensor wq, wk, wv, wo; // [q_dim | kv_dim | kv_dim][dim], [dim][q_dim]
    Tensor w1, w2, w3;     // gate, down, up: [hidden_dim][dim], [dim][hidden_dim], as w1; in most
                           // models they make w2 (silu(w1 x) * w3 x) of x
    Norm att_norm, ffn_norm;           // of what the two branches read
    Norm post_att_norm, post_ffn_norm; // of what they add to the residual stream
    Norm q_norm, k_norm;               // before rotation, of each head or of all together
    int local;                         // positions are Config's local ones
} Layer;

// n values of one type, one after the other in the file; strings each behind its length in 64 bits.
typedef struct {
    const uint8_t *at; // NULL: none
    size_t n;
    uint32_t type;     // as GGUF numbers it
} Values;

// The tokenizer that came with the model, raw; section 12 makes use of it. tokens.n 0: none did.
typedef struct {
    Values tokens, merges; // strings
    Values scores, types;  // numbers: as many as tokens, or none
    const char *pre;       // of a byte-level BPE, which merges bytes by rank (GPT-2), how text is
                           // cut into words; NULL: pieces by score (SentencePiece)
    int bos, eos, eot;     // ids, or -1
    Values ends;           // all EOS
    int add_bos;           // -1: as others of its kind do
    int space_prefix;
    int strip_right;       // blanks behind a control token are none of the text
} Vocab;

// A file that was opened, mapped into memory and understood, or is about to be.
typedef struct {
    const char *arch, *path;    // arch first: by it archs (section 11) is searched
    Config config;
    Vocab vocab;
    Tensor tok_emb, classifier; // [vocab_size][dim]
    Norm emb_norm, final_norm;  // of the embeddings, and before the classifier
    Layer *layers;              // [n_layers]
    const uint8_t *file;        // mapped into memory: the first, if there are several
    size_t size;                // of all its files
    size_t at;                  // GGUF: how far it was read,
    struct FileItem *keys, *tensors; // and what its lists have (section 11); tensors while loading
} Model;

// What all heads of a token have together: queries, and keys (or values).
static size_t q_dim(const Config *c) { return (size_t)c->n_heads * c->head_dim; }
static size_t kv_dim(const Config *c) { return (size_t)c->n_kv_heads * c->head_dim; }

// ================================================================================================
// 4  Position I: the encodings
//
// Attention by itself is blind to order: it weighs a set of keys by what they are, and any shuffle
// of the set gives the same sum. Only the mask, which hides keys to come, tells a decoder that
// some keys lie before others ([NoPE] leaves it at that). Everything else about position must be
// put in, and there are three places where it can enter:
//   1  added to the embedding, before the first layer: the absolute position p
//   2  by rotating q and k: the score becomes a function of the distance D = i - j
//   3  added to the score, after 1 / sqrt(head_dim): a function of D (and in [Shaw] of q), while q
//      and k stay as they are
// The table `encodings` at the end of this section has a column for each place; another encoding is
// one more function and one more row.
//
// --- Place 1: added to the embedding ------------------------------------------------------------
//
// To x[dim], the embedding, embed_tokens() of section 9 adds a vector for position p, which is a
// fraction where positions are interpolated (section 5).

// For even e, PE[e] = sin(p / 10000^(e/dim)) and PE[e+1] its cosine. [Sin] 3.5
static void add_sinusoidal(const Config *c, double p, float *x)
{
    for (int e = 0; e < c->dim; e += 2) {
        double angle = p * pow(10000, -(double)e / c->dim);
        x[e] += (float)sin(angle);
        x[e + 1] += (float)cos(angle);
    }
}

// Row p of the table, or a mixture of two rows where p lies between them. Past the last row it
// stays there: options that lead past it are refused unless the user wants that. [GPT-2]
static void add_learned(const Config *c, double p, float *x)
{
    size_t dim = (size_t)c->dim, last = (size_t)c->rows - 1, low = (size_t)fmin(p, (double)last);
    const float *a = c->table + low * dim, *b = c->table + min_size(low + 1, last) * dim;
    float share = (float)fmin(p - (double)low, 1);
    for (size_t i = 0; i < dim; i++) x[i] += (1 - share) * a[i] + share * b[i];
}

// --- Place 2: rotation --------------------------------------------------------------------------
//
// RoPE reads a head's q and k as complex numbers, one for each pair m of dimensions, and turns them
// by the angle position * theta_m: q_m exp(I i theta_m), k_m exp(I j theta_m). The speeds theta_m
// (section 5) fall from 1 for the first pair to about 1 / base for the last. In the product of the
// one with the conjugate of the other i and j are gone, but for the distance D = i - j [RoPE]:
//   score = a^2 / sqrt(head_dim) * sum over m of Re[ q_m conj(k_m) exp(I D theta_m) ]
// (a, the attention factor, is 1 unless a method of section 5 says otherwise.) Re[q conj(k)] is the
// plain dot product of the two as vectors of real numbers: once both are turned, the score is the
// usual one.
//
// A table of all angles would, for each head and layer, have to be read along with the keys, and in
// floats it is twice as large as keys in half precision. But keys are read in tiles of TILE
// positions. With t0 the first position of a tile and r = j - t0 a key's place in it,
//   D = i - t0 - r,  so  exp(I D theta) = exp(I i theta) conj(exp(I t0 theta)) conj(exp(I r theta))
// The last factor is the same in every tile: one key table, exp(I r theta_m) for r < TILE, turns
// the keys of all of them (its conjugate comes from conj(k)), and, 16 KB for heads of 64, stays
// in the nearest cache. Only where a method of section 5 has the keys of a tile stand at uneven
// steps is there a key table for that tile alone. The other two are the query's: a number for each
// query times a number for each tile. All angles are computed in double, so that positions of
// millions stay exact to float's last bits. Encodings that do not rotate take the same path with
// all theta_m = 0, which costs them a turn by nothing.
//
// Complex numbers are arrays [2][pairs] here: all real parts (cosines), then all imaginary parts.

enum { TILE = 64 };

// How many of a head's dimensions turn; they are its first ones.
static int rotary_dims(const Config *c) { return c->n_rot ? c->n_rot : c->head_dim; }

// x, out: [head_dim]. Projections give pair m of the dimensions that turn as the neighbours
// (2m, 2m + 1) or as the halves (m, m + n_rot / 2); out has real and imaginary parts apart. The
// dimensions that do not turn may be paired in any way that is the same for q and k. Halves of a
// whole head stay where they are, which is what Shaw's table wants (bias_shaw).
static void split_pairs(const Config *c, const float *x, float *out)
{
    size_t pairs = c->head_dim / 2, turning = rotary_dims(c) / 2;
    for (size_t m = 0; m < pairs; m++) {
        int halves = c->rope_split && m < turning;
        out[m] = x[halves ? m : 2 * m];
        out[pairs + m] = x[halves ? turning + m : 2 * m + 1];
    }
}

// out = x * phases; all [2][n]. What the n are does not matter here: the pairs of a query, or all
// pairs of all keys of a tile, so that one call turns a tile.
INLINE void rotate(int as, const void *x, const float *phases, size_t n, float *out)
{
    for (size_t m = 0; m < n; m += LANES) {
        size_t left = n - m;
        vf a = load_numbers(as, x, m, left), b = load_numbers(as, x, n + m, left);
        vf c = vload_part(phases + m, left), s = vload_part(phases + n + m, left);
        vstore_part(out + m, vmuladd(a, c, -(b * s)), left);
        vstore_part(out + n + m, vmuladd(a, s, b * c), left);
    }
}

// xPos lets pair m fade with the distance: its part of the score times zeta_m^(D / 512), so that
// fast pairs, whose angle says nothing about far keys, are heard from near ones only. The published
// form scales q by zeta^(i/512) and k by zeta^(-j/512), which overflows floats after some 36
// thousand tokens; here the key's part is relative to its tile (in the key table), and q fades by
// its distance from there. Returns ln zeta_m / 512. [xPos] eq. 13
static double xpos_decay(int head_dim, int m)
{
    return log((2.0 * m / head_dim + 0.4) / 1.4) / 512;
}

// q[2][pairs] *= zeta_m^(D / 512), D in tokens
static void fade(float *q, const float *decay, float D, size_t pairs)
{
    for (size_t m = 0; m < pairs; m += LANES) {
        size_t left = pairs - m;
        vf amplitude = vexp(vload_part(decay + m, left) * vset(D));
        vstore_part(q + m, vload_part(q + m, left) * amplitude, left);
        vstore_part(q + pairs + m, vload_part(q + pairs + m, left) * amplitude, left);
    }
}

// What turns pair m by so many tokens: scale * gain[m] * exp(tokens * (I freq[m] - decay[m])), to
// out [2][pairs], whose numbers are `apart` floats from each other. gain NULL: 1; decay NULL: 0.
static void fill_phases(const double *freq, const double *gain, const float *decay, size_t pairs,
                        double tokens, double scale, float *out, size_t apart)
{
    for (size_t m = 0; m < pairs; m++) {
        double amplitude = gain ? scale * gain[m] : scale;
        if (decay && decay[m] != 0) amplitude *= exp(-tokens * decay[m]);
        out[m * apart] = (float)(amplitude * cos(tokens * freq[m]));
        out[(pairs + m) * apart] = (float)(amplitude * sin(tokens * freq[m]));
    }
}

// --- Place 3: added to the score ----------------------------------------------------------------
//
// score[TILE] += the bias of one query towards the keys of one tile. D[TILE]: their distances in
// tokens, 0 for keys to come, which are masked. They may be fractions (linear, leaky-rerope).

typedef struct {
    const Config *c;
    size_t head;    // of the query, < n_heads
    int64_t i;      // its position
    const float *q; // [2][pairs]; scaled as the score is
} Query;

// - slope_h D. Slopes of n_heads = P, a power of two: 2^(-8 (h + 1) / P). Heads past such a P get
// every second slope of 2P. [ALiBi] 3, and its reference code
static void bias_alibi(const Query *q, const float *D, float *score)
{
    int h = (int)q->head, P = 1 << ilogb(q->c->n_heads);
    vf slope = vset((float)exp2(h < P ? -8.0 * (h + 1) / P : -4.0 * (2 * (h - P) + 1) / P));
    for (size_t k = 0; k < TILE; k += LANES)
        vstore(score + k, vload(score + k) - slope * vload(D + k));
}

// The buckets of distances, of which there are B, the table's rows: D itself up to B/2, then evenly
// in the logarithm, and the last one for all that is farther,
//   bucket(D) = B/2 + floor(ln(D / (B/2)) / ln(max_distance / (B/2)) * B/2);
// in floats, as in its authors' code. A millionth of B/2 is added, lest rounding put a distance at
// the very edge into the bucket before; where B is large it moves a few others (none with T5's 32
// and 128). Below B/2, where vlog() is not defined, its result is not taken. [T5] 2.1
INLINE vi t5_buckets(const Config *c, vf D)
{
    vf half = vset((float)c->rows / 2), rate = half / vlog(vset((float)c->max_distance) / half);
    vf far = vmuladd(vlog(D * (1 / half)), rate, half * vset(1.000001f));
    vf bucket = vmin(vselect(D < half, D, far), vset((float)c->rows - 1));
    return __builtin_convertvector(bucket, vi);
}

// table[bucket(D)][h]
static void bias_t5(const Query *q, const float *D, float *score)
{
    const float *table = q->c->table + q->head;
    for (size_t k = 0; k < TILE; k += LANES) {
        vi at = t5_buckets(q->c, vload(D + k)) * q->c->n_heads;
        for (size_t i = 0; i < LANES; i++) score[k + i] += table[at[i]];
    }
}

// - r1 ln(1 + r2 D), r1 and r2 of the head. [KERPLE] eq. 7, logarithmic
static void bias_kerple(const Query *q, const float *D, float *score)
{
    const float *r1 = q->c->table + q->head, *r2 = r1 + q->c->n_heads;
    for (size_t k = 0; k < TILE; k += LANES) {
        vf log = vlog(vset(1) + vset(*r2) * vload(D + k));
        vstore(score + k, vload(score + k) - vset(*r1) * log);
    }
}

// MLP(psi(D) / psi(max(i, T)))_h, psi(x) = ln(c x + 1): distances as a share of the text so far,
// so that no input is larger than 1 however long the text. One hidden layer, ReLU. [FIRE] eq. 4
// In the table: c, T, w1[FIRE_HIDDEN], b1[FIRE_HIDDEN], w2[n_heads][FIRE_HIDDEN], b2[n_heads].
static void bias_fire(const Query *q, const float *D, float *score)
{
    const float *table = q->c->table, *w1 = table + 2, *b1 = w1 + FIRE_HIDDEN;
    const float *w2 = b1 + FIRE_HIDDEN + q->head * FIRE_HIDDEN;
    const float *b2 = b1 + FIRE_HIDDEN * (1 + (size_t)q->c->n_heads) + q->head;
    vf c = vset(table[0]), psi_n = vlog(vmuladd(c, vset(fmaxf((float)q->i, table[1])), vset(1)));
    for (size_t k = 0; k < TILE; k += LANES) {
        vf x = vlog(vmuladd(c, vload(D + k), vset(1))) / psi_n, sum = vset(*b2);
        for (size_t u = 0; u < FIRE_HIDDEN; u++) {
            vf hidden = vmax(vmuladd(vset(w1[u]), x, vset(b1[u])), vset(0));
            sum = vmuladd(vset(w2[u]), hidden, sum);
        }
        vstore(score + k, vload(score + k) + sum);
    }
}

// q . r[min(D, K)]: a key of its own for each distance. q was split into halves (complete_config
// sets rope_split), which leaves it in the order of the table's rows. [Shaw] eq. 4, the key side
static void bias_shaw(const Query *q, const float *D, float *score)
{
    size_t d = (size_t)q->c->head_dim, seen = SIZE_MAX;
    float product = 0;
    for (size_t k = 0; k < TILE; k++) {
        size_t n = (size_t)fminf(D[k], (float)q->c->rows);
        if (n != seen) product = dot(q->q, q->c->table + n * d, d);
        score[k] += product;
        seen = n;
    }
}

// The sum over m < 64 of cos(D / 10000^(m/64)): what the product of [Sin]'s vectors of positions i
// and j is, if they have 128 numbers. It falls like the logarithm of D. Cosines take long: sums for
// whole distances below 4096 are kept (0: not yet), whichever thread comes first.
static float sine_product(float D)
{
    static _Atomic float kept[4096];
    int keeps = D < COUNT(kept) && D == floorf(D);
    float known = keeps ? kept[(size_t)D] : 0;
    if (known != 0) return known;
    double sum = 0;
    for (int m = 0; m < 64; m++) sum += cos(D * pow(10000, -m / 64.0));
    if (keeps) kept[(size_t)D] = (float)sum;
    return (float)sum;
}

// That sum / r_h, the head's compression ratio r_h = 8 (h + 1) / n_heads. [Sandwich] 5
static void bias_sandwich(const Query *q, const float *D, float *score)
{
    float ratio = 8 * (float)(q->head + 1) / (float)q->c->n_heads;
    for (size_t k = 0; k < TILE; k++) score[k] += sine_product(D[k]) / ratio;
}

// --- The table ----------------------------------------------------------------------------------

static const struct {
    const char *name, *what;
    void (*add)(const Config *c, double p, float *x);           // place 1, or NULL
    int rotates;                                                // place 2, and
    double (*decay)(int head_dim, int m);                       // how pairs fade, or NULL
    void (*bias)(const Query *q, const float *D, float *score); // place 3, or NULL
    int linear;                         // does --rope-scaling linear mean something?
} encodings[N_ENCODINGS] = {
    [ENC_ROPE] = {"rope", "q and k rotated", NULL, 1, NULL, NULL, 1},
    [ENC_NOPE] = {"nope", "none at all", NULL, 0, NULL, NULL, 0},
    [ENC_SINUSOIDAL] = {"sinusoidal", "sines added", add_sinusoidal, 0, NULL, NULL, 1},
    [ENC_LEARNED] = {"learned", "a vector a position added", add_learned, 0, NULL, NULL, 1},
    [ENC_ALIBI] = {"alibi", "score - slope D", NULL, 0, NULL, bias_alibi, 1},
    [ENC_T5] = {"t5", "score + table[bucket of D]", NULL, 0, NULL, bias_t5, 1},
    [ENC_XPOS] = {"xpos", "rotated, fast pairs fade with D", NULL, 1, xpos_decay, NULL, 1},
    [ENC_KERPLE] = {"kerple", "score - r1 ln(1 + r2 D)", NULL, 0, NULL, bias_kerple, 1},
    [ENC_FIRE] = {"fire", "score + MLP(D as a share of i)", NULL, 0, NULL, bias_fire, 0},
    [ENC_SHAW] = {"shaw", "score + q . r[min(D, K)]", NULL, 0, NULL, bias_shaw, 0},
    [ENC_SANDWICH] = {"sandwich", "score + sum of cos(D / 10000^(m/64)) / r", NULL, 0, NULL,
                      bias_sandwich, 0},
};

static int is_rotary(const Config *c) { return encodings[c->encoding].rotates; }

// ================================================================================================
// 5  Position II: longer texts
//
// The fast pairs turn every few tokens: in training they have met every angle. The slow ones have
// not finished a turn within L tokens; past L their angles are new, the model never learned what
// those mean, and it fails at once. A method can change four things:
//   the frequencies theta_m, so that n tokens fit into the angles that L tokens used;
//   the attention factor a, which sharpens scores again that longer text has blurred;
//   the distance D, so that no distance is larger than a trained one;
//   the scale of the query, which sharpens like a, but by position.
// They can be combined. The attention loop does not know which were chosen.
//
// --- Frequencies --------------------------------------------------------------------------------
//
// One function a method, all of one shape: the frequency of pair m, in radians a token, at the
// current length n = i + 1. dims counts the dimensions that turn.

// As trained, whatever the length: theta_m = base^(-2m/d). [RoPE] 3.2.2
static double rope_none(const RopeConfig *r, int dims, int m, double n)
{
    (void)n;
    return pow(r->theta, -2.0 * m / dims);
}

// Position interpolation: s tokens where there was one. [PI] eq. 4
static double rope_linear(const RopeConfig *r, int dims, int m, double n)
{
    return rope_none(r, dims, m, n) / r->factor;
}

// A larger base, base * s^(d / (d - 2)): the first pair stays, the last is interpolated by s. [NTK]
static double rope_ntk(const RopeConfig *r, int dims, int m, double n)
{
    return rope_none(r, dims, m, n) * pow(r->factor, -2.0 * m / fmax(dims - 2, 1));
}

// NTK with a factor that grows with n, 1 + s (n / L - 1), and none up to L; with s = 1 it is n / L,
// just what the length needs. [NTK], dynamic
static double rope_dynamic(const RopeConfig *r, int dims, int m, double n)
{
    RopeConfig now = *r;
    now.factor = n > r->orig_ctx ? r->factor * n / r->orig_ctx - (r->factor - 1) : 1;
    return rope_ntk(&now, dims, m, n);
}

// The pair, as a real number, that makes `turns` turns within L tokens. [YaRN] 3.2
static double pair_with_turns(const RopeConfig *r, int dims, double turns)
{
    return dims * log(r->orig_ctx / (2 * M_PI * turns)) / (2 * log(r->theta));
}

// theta, all of it kept, where x is `all` or beyond; theta / s, none kept, where it is `none` or
// beyond; in between a mixture.
static double blend(const RopeConfig *r, double theta, double x, double none, double all)
{
    double kept = fmin(fmax((x - none) / (all - none), 0), 1);
    return r->factor <= 1 ? theta : theta / r->factor * (1 - kept) + theta * kept;
}

// Pairs that turn often within L tell neighbours apart and are kept; pairs that never finish a
// turn are interpolated; the ramp is between beta_fast and beta_slow turns. As in every shipped
// implementation it runs over m; the paper words it over turns. [YaRN] 3.2; with yarn_attention
// below, [YaRN] 3.4
static double rope_by_parts(const RopeConfig *r, int dims, int m, double n)
{
    double low = fmax(floor(pair_with_turns(r, dims, r->beta_fast)), 0);
    double high = fmin(ceil(pair_with_turns(r, dims, r->beta_slow)), dims - 1);
    if (low == high) high += 0.001;
    return blend(r, rope_none(r, dims, m, n), m, high, low);
}

// More keys blur the softmax; a larger a makes up for it. Found by fits: 0.1 ln s + 1. [YaRN] eq.
// 22. Some models multiply it by attn_times (0: 1), or divide it by 0.1 attn_log ln s + 1.
static double yarn_attention(const RopeConfig *r)
{
    double a = 0.1 * log(fmax(1, r->factor)), times = r->attn_times > 0 ? r->attn_times : 1;
    return times * (a + 1) / (r->attn_log * a + 1);
}

// By-parts with the ramp over the turns themselves. [Llama3]
static double rope_llama3(const RopeConfig *r, int dims, int m, double n)
{
    double theta = rope_none(r, dims, m, n), turns = r->orig_ctx * theta / (2 * M_PI);
    return blend(r, theta, turns, r->low_freq_factor, r->high_freq_factor);
}

// A factor for each pair, found by search; one list for texts up to L, another for longer ones. Its
// models are trained with the long list from the first token of a long text on, so n is the whole
// text's length here, and a text that grows past L must be read again. [LongRoPE]
static double rope_longrope(const RopeConfig *r, int dims, int m, double n)
{
    const float *list = n > r->orig_ctx ? r->long_factors : r->short_factors;
    return rope_none(r, dims, m, n) / list[m];
}

// LongRoPE's attention factor. [LongRoPE], as Phi-3 computes it
static double longrope_attention(const RopeConfig *r)
{
    return r->factor <= 1 || r->orig_ctx < 2 ? 1 : sqrt(1 + log(r->factor) / log(r->orig_ctx));
}

static const struct {
    const char *name, *what;
    double (*frequency)(const RopeConfig *r, int dims, int m, double n);
    double (*attention)(const RopeConfig *r); // NULL: a = 1
    enum { NEVER, ONCE, ALWAYS } changes;     // Do frequencies change past L? ONCE: when the text
                                              // is longer; ALWAYS: with every token.
} rope_methods[N_ROPE_METHODS] = {
    {"none", "as trained", rope_none, NULL, NEVER},
    {"linear", "all frequencies / s (position interpolation; also: pi)", rope_linear, NULL, NEVER},
    {"ntk", "a larger base: slow pairs interpolated, fast ones kept", rope_ntk, NULL, NEVER},
    {"dynamic", "ntk with a factor that grows with the text", rope_dynamic, NULL, ALWAYS},
    {"by-parts", "slow pairs / s, fast ones kept, a ramp between", rope_by_parts, NULL, NEVER},
    {"yarn", "by-parts, and sharper attention", rope_by_parts, yarn_attention, NEVER},
    {"llama3", "by-parts with a ramp over turns", rope_llama3, NULL, NEVER},
    {"longrope", "a factor for each pair, from two lists", rope_longrope, longrope_attention, ONCE},
};

// a: the given one replaces the method's own.
static double attention_factor(const RopeConfig *r)
{
    if (r->attn_factor > 0) return r->attn_factor;
    return rope_methods[r->method].attention ? rope_methods[r->method].attention(r) : 1;
}

// --- Distance -----------------------------------------------------------------------------------
//
// Every distance method is a short list of maps from positions to positions; the rotation does the
// rest. Under a map the query at i stands at A(i) and the key at j at B(j), and their distance is D
// = A(i) - B(j). Under map 0, the near one, both stand where they are; under the others, the far
// ones, nearer to each other. For each query the keys are cut into runs, one a map: map 0 has the
// keys from first_key(0, i) to the query, map 1 those before them, from first_key(1, i) on, and so
// on back to key 0.
//   sinks         A = min(i, S + W - 1)     B = j          [Streaming]; keys behind the window of
//                                                          W are masked, but for the first S
//   self-extend   A = f(i) + W - f(W)       B = f(j) = floor(j / G)            [SelfExt]
//   rerope        A = W                     B = 0          [ReRoPE]
//   leaky-rerope  A = f(i) + W - f(W)       B = f(j) = j / k                   [ReRoPE]
//   string        A = i - S + W             B = j          [STRING]
//   dual-chunk    A = min(i mod C + C, C + W) towards the chunk before, min(2C - 1, C + W) towards
//                 older ones                B = j mod C    [DCA], as ChunkLlama computes it
// A query sees the last W tokens (string: S; dual-chunk: its own chunk of C) under map 0. The terms
// W - f(W) and W - S let far distances begin where the near ones end, or, with string, at W.
// RopeConfig's `reach` holds the W of the first four rows, S of string and C; `other` holds G, k,
// and the W of string and dual-chunk. Dual-chunk's chunks have nothing to do with those of a
// prompt, the tokens that are read together (section 7).

// How many maps the method has.
static int n_maps(const RopeConfig *r)
{
    return r->distance == DIST_FULL ? 1 + (r->sinks > 0) : r->distance == DIST_DUAL_CHUNK ? 3 : 2;
}

// B(j). Under map 0 tokens may stand elsewhere than at 0, 1, 2, ..., for models that were trained
// with positions drawn at random (tests/measure.c).
static double key_position(const RopeConfig *r, int map, int64_t j)
{
    if (!map) return r->positions ? r->positions[j] : (double)j;
    switch (r->distance) {
    case DIST_SELF_EXTEND: return floor((double)j / r->other);
    case DIST_REROPE: return 0;
    case DIST_LEAKY: return (double)j / r->other;
    case DIST_DUAL_CHUNK: return (double)(j % r->reach);
    default: return (double)j;
    }
}

// A(i). `at` is B(i), where i would stand as a key; the first four rows' W is `reach` here.
static double query_position(const RopeConfig *r, int map, int64_t i)
{
    double at = key_position(r, map, i), reach = r->reach, W = r->other;
    if (!map) return at;
    switch (r->distance) {
    case DIST_FULL: return fmin(at, r->sinks + reach - 1); // sinks
    case DIST_STRING: return at - reach + W;
    case DIST_DUAL_CHUNK: return fmin(map == 1 ? at + reach : 2 * reach - 1, reach + W);
    default: return at + reach - key_position(r, map, r->reach);
    }
}

// The first key, perhaps negative, that query i sees under this map; older ones are the next map's.
static int64_t first_key(const RopeConfig *r, int map, int64_t i)
{
    if (map == n_maps(r) - 1) return 0;
    if (r->distance != DIST_DUAL_CHUNK) return i - r->reach + 1;
    return (i / r->reach - map) * r->reach;
}

// Encodings that do not rotate know one method, linear: positions and distances / s.
static double position_stretch(const Config *c)
{
    return !is_rotary(c) && c->rope.method == ROPE_LINEAR ? c->rope.factor : 1;
}

// --- The scale of the query ---------------------------------------------------------------------
//
// The more keys there are, the flatter the softmax; a query that is multiplied by more than 1 makes
// it sharper again. By position, unlike the attention factor, so that short texts stay as they are:
//   log-n                  max(1, ln(i + 1) / ln L), which keeps the entropy steady. [ReRoPE]
//   attention temperature  1 + B ln(1 + floor((i + 1) / L0)). [Llama4]
static double query_scale(const RopeConfig *r, int64_t i)
{
    double n = (double)i + 1, scale = 1;
    if (r->logn && r->orig_ctx > 1) scale = fmax(1, log(n) / log(r->orig_ctx));
    double steps = r->temp > 0 ? floor((n - r->temp_from_0) / r->temp_ctx) : 0;
    return scale * (1 + r->temp * log(1 + steps));
}

// --- What a model needs of all this -------------------------------------------------------------

enum { MAPS = 3 }; // at most

// The tables of one set of frequencies: under each map what turns keys, and what turns queries back
// to a tile. A slot is a tile's place in the cache; which tiles are uneven, is_uneven() tells
// below. Encodings that do not rotate have the tables, too, with all frequencies 0.
typedef struct {
    int64_t length;     // of texts that these frequencies are for, 0: none yet. Up to L they are
                        // those of L, and past it, unless they always change, those of L + 1
    double *freq;       // [pairs], radians per token
    double *gain;       // [pairs]: a^2, for the query, since keys carry none; 1 for pairs that are
                        // not meant to turn (n_rot)
    float *decay;       // [pairs], ln zeta_m / 512 a token: 0 but for xPos
    float *key[MAPS];   // key tables, [1 + n_slots][2][pairs][TILE]: exp(I (B(t0 + r) - B(t0))
                        // theta_m), with xPos times zeta_m^(-r/512), turns the key at place r of
                        // a tile. The first is for all tiles whose keys stand at even steps; an
                        // uneven tile in slot n has table 1 + n. All layers and heads share them
    float *tile[MAPS];  // [n_slots][2][pairs]: exp(-I B(t0) theta_m) of each slot's tile: turns
                        // queries back
    int64_t *slot_tile; // [n_slots]: which tile that is, -1: none
} Angles;

// theta'_m, by which pair m turns at length n, in radians a token; 0: it does not.
static double pair_frequency(const Config *c, const RopeConfig *r, size_t m, double n)
{
    double turning = rotary_dims(c) / 2, last = r->fraction > 0 ? r->fraction * turning : turning;
    if (!is_rotary(c) || r->still || m >= (size_t)(last + 1e-9)) return 0; // .58 * 50 < 29
    return rope_methods[r->method].frequency(r, rotary_dims(c), (int)m, n) /
           (r->own_factors ? r->own_factors[m] : 1);
}

// Applies the method: sets the frequencies for length n, fills each map's first key table, and has
// what belongs to tiles made anew (plan_tiles in section 7). Angles get their room here, when they
// are first used: most models need one set, and where frequencies always change, each query of a
// chunk has its own, but only if the chunk ends past L. It is reserved: key tables of even tiles
// are never touched.
static void set_angles(Angles *a, const Config *c, const RopeConfig *r, size_t n_slots, int64_t n)
{
    size_t pairs = c->head_dim / 2, turning = rotary_dims(c) / 2;
    double factor = attention_factor(r);
    int64_t most = r->orig_ctx + (n > r->orig_ctx); // L, or L + 1 for all that is longer
    n = rope_methods[r->method].changes == ALWAYS && n > most ? n : most;
    if (a->length == n) return;
    if (!a->freq)
        *a = (Angles){.freq = xcalloc(pairs, sizeof *a->freq),
                      .gain = xcalloc(pairs, sizeof *a->gain),
                      .decay = xcalloc(pairs, sizeof *a->decay),
                      .slot_tile = xcalloc(n_slots, sizeof *a->slot_tile)};
    a->length = n;
    for (size_t m = 0; m < pairs; m++) {
        a->freq[m] = pair_frequency(c, r, m, (double)n);
        if (encodings[c->encoding].decay)
            a->decay[m] = (float)encodings[c->encoding].decay(c->head_dim, (int)m);
        a->gain[m] = m < turning ? factor * factor : 1;
    }
    for (size_t slot = 0; slot < n_slots; slot++) a->slot_tile[slot] = -1;
    for (int map = 0; map < n_maps(r); map++) {
        if (!a->key[map]) {
            a->key[map] = reserve(mul_size(n_slots + 1, 2 * pairs * TILE * 4));
            a->tile[map] = reserve(mul_size(n_slots, 2 * pairs * 4));
        }
        for (int k = 0; k < TILE; k++)
            fill_phases(a->freq, NULL, a->decay, pairs, k * key_position(r, map, 1), 1,
                        a->key[map] + k, TILE);
    }
}

// Whether the keys of tile t stand at uneven steps under a map: self-extend's B is a staircase,
// dual-chunk's begins again at 0 where a chunk ends, and positions may be the user's. They are
// even if TILE - 1 steps as long as the one from 0 to 1 lead from the tile's first key to its last
// (nearly, since steps that are fractions are rounded).
static int is_uneven(const RopeConfig *r, int map, int64_t t)
{
    double first = key_position(r, map, t * TILE), last = key_position(r, map, t * TILE + TILE - 1);
    return r->positions || fabs(last - first - (TILE - 1) * key_position(r, map, 1)) > 0.5;
}

// ================================================================================================
// 6  Threads
//
// One pool for everything. parallel_for() cuts n items of work into shares of at most `grain`
// items, and whoever is free takes the next one: the caller works too, and a worker that sleeps or
// whose processor is busy elsewhere is not waited for unless it holds a share.
//
// Results do not depend on the number of threads or on who did what. How much an item holds may
// follow from the number of threads, but an item writes only its own outputs, and each output is
// one sum whose order is fixed by what is summed. No sum is split at a place that depends on the
// threads: the segments into which attention cuts a text (section 7), and which may go to several
// threads, end at fixed positions and are merged in their order.
//
// A job is announced by the ticket: its generation in the high half, the shares that nobody has
// taken yet in the low half. A share is taken by one compare-and-swap of the ticket. Whoever holds
// one may read the job's fields: they were written before the ticket that announced them, and are
// written again only when all shares have been counted as done.

typedef void (*Work)(void *arg, size_t item);

// A share is about so many multiplications at least, so that small models wait for no other thread.
// Callers whose work is dearer than a multiplication take a quarter or an eighth of it. SPINS is
// told at pool_worker().
enum { MIN_SHARE = 1 << 16, SPINS = 1 << 15 };

// The ticket and the count of finished shares lie in two cache lines, so that who takes work does
// not disturb who counts it.
static struct {
    int n_threads;
    Work work;
    void *arg;
    size_t n, grain, shares;
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic size_t done;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} pool = {.n_threads = 1, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

// Takes shares of the current job until none is left.
static void pool_work(void)
{
    uint64_t ticket;
    while ((uint32_t)(ticket = atomic_load(&pool.ticket))) {
        if (!atomic_compare_exchange_weak(&pool.ticket, &ticket, ticket - 1)) continue;
        size_t item = (pool.shares - (uint32_t)ticket) * pool.grain;
        for (size_t end = min_size(pool.n, item + pool.grain); item < end; item++)
            pool.work(pool.arg, item);
        atomic_fetch_add(&pool.done, 1);
    }
}

// The number of the job that was announced last.
static uint64_t pool_generation(void) { return atomic_load(&pool.ticket) >> 32; }

// Holds Ctrl-C back from this thread. before: what the mask was, for who wants it back, or NULL.
static void block_interrupt(sigset_t *before)
{
    sigset_t interrupt;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    pthread_sigmask(SIG_BLOCK, &interrupt, before);
}

// A worker spins for about a millisecond after each job (SPINS), since the next one follows soon
// while a model runs, and to wake sixteen sleepers takes longer than many a job; it sleeps when
// none comes. It looks for a job once more, under the lock, before it sleeps, and jobs are
// announced under the lock, so that no wake is lost. Ctrl-C is for the first thread, which may be
// waiting for a line: were it handled here, that one would wait on.
static void *pool_worker(void *unused)
{
    (void)unused;
    block_interrupt(NULL);
    for (;;) {
        uint64_t seen = pool_generation();
        pool_work();
        for (int spin = 0; spin < SPINS && pool_generation() == seen; spin++, RELAX())
            if (spin % 64 == 63) sched_yield(); // the caller may need this processor
        if (pool_generation() != seen) continue;
        pthread_mutex_lock(&pool.lock);
        while (pool_generation() == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

// Calls work(arg, item) for items 0..n-1, and returns when all are done. A share is `grain` items,
// one after the other, or what is left of them, and begins at a multiple of grain. Not to be
// nested.
static void parallel_for(size_t n, size_t grain, Work work, void *arg)
{
    if (pool.n_threads == 1 || n <= grain) {
        for (size_t item = 0; item < n; item++) work(arg, item);
        return;
    }
    pool.work = work;
    pool.arg = arg;
    pool.n = n;
    pool.grain = grain;
    pool.shares = ceil_div(n, grain);
    atomic_store(&pool.done, 0);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.ticket, (1ull << 32) + pool.shares); // all of the last job's are taken
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    pool_work();
    for (int spin = 0; atomic_load(&pool.done) < pool.shares; spin++)
        if (spin < 1000) RELAX();
        else sched_yield(); // the holder of the last share may need this processor
}

// Scratch memory of the calling thread, at least `bytes` long, kept from call to call.
static void *scratch(size_t bytes)
{
    static _Thread_local void *mem;
    static _Thread_local size_t size;
    if (bytes > size) {
        free(mem);
        mem = xcalloc(size = bytes, 1);
    }
    return mem;
}

// ================================================================================================
// 7  Cache and attention
//
// For a query at i under one head, this section computes what these lines say, for many queries at
// once and without a place for n scores; scale(i) is query_scale(i) / sqrt(head_dim), or times the
// model's own score_scale, and times a^2 for the pairs that turn; a cap (score_cap), which comes
// before the bias, and xPos's fading are left out:
//   for each key j <= i that the query can see
//       map = the one in whose run j lies; D = A(i) - B(j) under it
//       score[j] = scale(i) * (q turned by A(i)) . (k[j] turned by B(j)) + bias(D)
//   weight = softmax(score)
//   out = sum over j of weight[j] * v[j]
// The queries are those of a chunk: the tokens that are read together, a piece of a prompt or one.
//
// The cache holds keys that are not rotated, for two reasons: a distance method needs the same key
// at several positions, one for each map; and a method whose frequencies change while the text
// grows must turn old keys anew (engines that cache turned keys leave them at their old angles).
// The cache is made of tiles of TILE positions that begin at absolute positions. A tile of keys is
// transposed, [head_dim][TILE], real parts of the pairs first and then imaginary parts, so that the
// rotation and the scores run over keys in vector lanes with no shuffles; a tile of values is
// [TILE][v_dim], v_dim being head_dim rounded up to what the products take at once.
//
// Attention reads tile after tile: it turns the tile's keys, multiplies queries with them, masks
// and biases the scores, and adds the values up by an online softmax [Flash]. A softmax over all
// keys would need all scores first, since exp() overflows unless the largest is taken off. But
//   sum of exp(score - new) value = exp(old - new) * sum of exp(score - old) value
// so it is enough to keep, for each query and head, the largest score so far, the sum of
// exp(score - largest) and the output o, which is the sum of values weighted alike. When a tile
// brings a larger score, the sum and o are scaled down to it, and at the very end o is divided by
// the sum.
//
// The order of all sums is fixed by positions alone. Every SEGMENT positions the softmax is merged
// into a total and begins anew. A prompt merges segments as it goes; a single token, which offers
// too little work otherwise, hands its segments to different threads and merges them afterwards, in
// the same order: the same arithmetic, so the same bits.

enum { SEGMENT_TILES = 8, SEGMENT = SEGMENT_TILES * TILE };
static const float MASKED = -INFINITY; // exp(MASKED - largest) = 0

// --- A product for attention --------------------------------------------------------------------

// So many sums are made at a time: they fill the registers, of which AVX-512 has 32 and AVX2 16.
enum { GEMM_ROWS = LANES == 16 ? 12 : 6, GEMM_VECTORS = 2 };

// Scores and weighted values are both small products of a few rows (queries) with a tile: [rows][d]
// times [d][TILE], and [rows][TILE] times [TILE][v_dim]. A processor can do two multiply-adds of
// vectors at once but load only two vectors meanwhile, so a number must be used several times for
// each time it is loaded: GEMM_ROWS rows meet GEMM_VECTORS vectors, and a load of either serves
// all of the others. Lanes are keys in the first and dimensions in the second, so each output is
// one chain of multiply-adds in the order of k, and its bits do not depend on how many rows or
// lanes are computed at once.
//
// c[nt][N] += a[nt][K] b[K][N] in GEMM_VECTORS vectors of c's columns; nt is a constant wherever
// this is inlined. The sums stay in registers.
INLINE void gemm_tile(size_t nt, const float *a, const float *b, size_t K, size_t N, float *c)
{
    vf sum[GEMM_ROWS][GEMM_VECTORS];
    for (size_t t = 0; t < nt; t++)
        for (size_t v = 0; v < GEMM_VECTORS; v++) sum[t][v] = vload(c + t * N + v * LANES);
    for (size_t k = 0; k < K; k++) {
        vf row[GEMM_VECTORS];
        for (size_t v = 0; v < GEMM_VECTORS; v++) {
            row[v] = vload(b + k * N + v * LANES);
            if (nt > 1) KEEP(row[v]);
        }
        for (size_t t = 0; t < nt; t++) {
            vf ak = vset(a[t * K + k]);
            for (size_t v = 0; v < GEMM_VECTORS; v++) sum[t][v] = vmuladd(ak, row[v], sum[t][v]);
        }
    }
    for (size_t t = 0; t < nt; t++)
        for (size_t v = 0; v < GEMM_VECTORS; v++) vstore(c + t * N + v * LANES, sum[t][v]);
}

// c[n][N] += a[n][K] b[K][N], N a multiple of GEMM_VECTORS vectors. As many rows are taken at once
// as fill the registers, then a third, then single ones.
static void gemm_rows(size_t n, const float *a, const float *b, size_t K, size_t N, float *c)
{
    enum { NT = GEMM_ROWS, SOME = NT / 3, WIDTH = GEMM_VECTORS * LANES };
    for (size_t v = 0; v < N; v += WIDTH)
        for (size_t t = 0, nt; t < n; t += nt) {
            nt = n - t < SOME ? 1 : n - t < NT ? SOME : NT;
            if (nt == NT) gemm_tile(NT, a + t * K, b + v, K, N, c + t * N + v);
            else if (nt > 1) gemm_tile(SOME, a + t * K, b + v, K, N, c + t * N + v);
            else gemm_tile(1, a + t * K, b + v, K, N, c + t * N + v);
        }
}

// --- The cache ----------------------------------------------------------------------------------

// What a key's or a value's numbers are rounded to. As int8 they take half the memory of halves.
// One scale is enough for a whole key or value, and it never meets their numbers: that of a key is
// multiplied into its scores, that of a value into its weight.
enum { KV_F16, KV_F32, KV_Q8 };
static const struct {
    const char *name;
    int as;
} kv_types[] = {{"f16", AS_F16}, {"f32", AS_F32}, {"q8", AS_INT8}};

// For each layer and KV head n_slots tiles: [n_layers][n_kv_heads][n_slots], each of them its keys
// [head_dim][TILE], its values [TILE][v_dim], and in int8 the floats [2][TILE] that scale both.
typedef struct {
    int as;              // how its numbers are stored
    size_t n_slots;      // of which the first
    size_t sink_slots;   // are for the sinks' tiles
    size_t v_dim;        // head_dim rounded up to a multiple of GEMM_VECTORS vectors
    size_t tile_bytes;   // of both, and of the scales
    uint8_t *tiles;
    size_t bytes;        // reserved
} Cache;

// Where tile t is kept, its slot. Without a window that is slot t; with one, the sinks' tiles stay
// in the first slots and the others take turns in a ring: memory does not grow with the text.
static size_t tile_slot(const Cache *c, int64_t t)
{
    size_t at = (size_t)t, sinks = c->sink_slots;
    return at < sinks ? at : sinks + (at - sinks) % (c->n_slots - sinks);
}

// Lays out a cache for max_seq_len positions, or for the window if global layers have one. Then the
// ring must hold what any query of a chunk sees, W + chunk - 1 positions (the last query's window,
// and what lies before it for the first one), and one tile more, since they need not begin with a
// tile.
static void cache_layout(Cache *c, const Config *cfg, int64_t max_seq_len, size_t chunk, int kv)
{
    const RopeConfig *r = &cfg->rope;
    size_t sinks = ceil_div(r->sinks, TILE), ring = ceil_div(r->window + chunk - 1, TILE) + 1;
    c->n_slots = ceil_div(max_seq_len, TILE);
    if (r->window) c->n_slots = min_size(c->n_slots, sinks + ring);
    c->sink_slots = min_size(sinks, c->n_slots - 1);
    c->as = kv_types[kv].as;
    c->v_dim = round_up(cfg->head_dim, GEMM_VECTORS * LANES);
    size_t scales = c->as == AS_INT8 ? 2 * 4 : 0; // of a position
    c->tile_bytes = TILE * ((cfg->head_dim + c->v_dim) * number_size(c->as) + scales);
    size_t rows = (size_t)cfg->n_layers * cfg->n_kv_heads;
    c->bytes = mul_size(mul_size(rows, c->n_slots), c->tile_bytes);
}

// --- What attention works on --------------------------------------------------------------------

// What an online softmax keeps beside o. `largest` begins as a number rather than as minus
// infinity, so that a row that sees only masked keys stays empty, with no NaN from MASKED - MASKED,
// and an empty one adds nothing when it is merged.
typedef struct {
    float largest; // score so far
    float sum;     // of the weights exp(score - largest)
} RowSums;
static const RowSums EMPTY = {-FLT_MAX, 0};

// The positions of one chunk's queries, as layers of one kind see them: some models have local
// layers, with a window or a base of their own, or with no position, and the others are global. All
// queries share one set of frequencies, unless those change with every token.
typedef struct {
    RopeConfig rope;
    Angles *angles;      // [chunk], of which query t uses the one at t * each
    int each;            // 1: past L frequencies change with every token; 0: all share the first
    size_t batch;        // so many queries are attended to together
    float *phase[MAPS];  // [chunk][2][pairs]: each query's phases at A(i), with the score's scale
} Positions;

// The chunk at hand, its place in the text, and the model's cache.
typedef struct Attention {
    Config config;
    Cache cache;
    Positions positions[2]; // of global and of local layers
    float *q, *k, *v;       // [chunk][q_dim | kv_dim | kv_dim]; q is attention's output, too
    // Shown what a query sees of each tile, score[TILE]: for the instruments. NULL: nobody looks.
    void (*watch)(const struct Attention *a, const Query *q, int64_t t, const float *score);
    int64_t text;           // tokens of the whole text as far as is known; 0: it ends with the
                            // chunk. It grows only, until the cache is filled from 0 again
    int64_t pos;            // the chunk's first position, and
    size_t n;               // its tokens
    int layer;              // the current one, and
    const Positions *p;     // its positions
    size_t n_parts;         // segments that a single query is split into; 1: not split
    float *total;           // [n | n_parts][n_heads][v_dim], and
    RowSums *sums;          // [n | n_parts][n_heads]: the softmax of each query and head
} Attention;

// One query under one of its heads.
typedef struct {
    Query query;  // its position and head: what a bias asks for (section 4)
    size_t total; // which of Attention's totals this row's softmax goes to
    RowSums sums; // of the segment at hand
} Row;

// What a thread works on: a batch of queries under one KV head, which a group of heads shares
// [GQA]: rows = queries * group.
typedef struct {
    const Attention *a;
    size_t kv_head;      // under which its queries are attended to, and
    size_t part;         // which of the n_parts
    size_t rows;
    float *q;            // [maps][rows][2][pairs]: q under each map, scaled
    float *qt;           // [rows][2][pairs]: q for one tile
    float *tile;         // [2][pairs][TILE]: its keys, turned; later [TILE][v_dim]: its values
    float *score;        // [maps][rows][TILE]
    float *o;            // [rows][v_dim]: of the segment at hand
    Row *row;            // [rows]
} Batch;

// Tile t of a KV head in the current layer.
static uint8_t *tile_at(const Attention *a, size_t kv_head, int64_t t)
{
    const Cache *c = &a->cache;
    size_t row = (size_t)a->layer * a->config.n_kv_heads + kv_head;
    return c->tiles + (row * c->n_slots + tile_slot(c, t)) * c->tile_bytes;
}

// The scales of its keys, and TILE floats behind them those of its values; NULL: it has none.
static float *tile_scales(const Attention *a, size_t kv_head, int64_t t)
{
    const Cache *c = &a->cache;
    return c->as == AS_INT8 ? (float *)(tile_at(a, kv_head, t) + c->tile_bytes) - 2 * TILE : NULL;
}

// The chunk's k and v of KV head h, into the cache: keys with their pairs split, a column of the
// tile each; values as a row.
static void store_kv(void *arg, size_t h)
{
    const Attention *a = arg;
    const Cache *c = &a->cache;
    size_t d = a->config.head_dim, n_kv = a->config.n_kv_heads, elem = number_size(c->as);
    float *key = scratch(8 * d);
    uint8_t *stored = (uint8_t *)(key + d);
    for (size_t t = 0; t < a->n; t++) {
        size_t pos = (size_t)a->pos + t, r = pos % TILE, at = (t * n_kv + h) * d;
        uint8_t *keys = tile_at(a, h, (int64_t)(pos / TILE)), *column = keys + r * elem;
        uint8_t *values = keys + (TILE * d + r * c->v_dim) * elem;
        float *scales = tile_scales(a, h, (int64_t)(pos / TILE));
        split_pairs(&a->config, a->k + at, key);
        float key_scale = store_numbers(c->as, key, d, stored);
        float value_scale = store_numbers(c->as, a->v + at, d, values);
        if (scales) scales[r] = key_scale, scales[TILE + r] = value_scale;
        for (size_t e = 0; e < d; e++, column += TILE * elem)
            for (size_t b = 0; b < elem; b++) column[b] = stored[e * elem + b];
    }
}

// --- Planning a chunk ---------------------------------------------------------------------------

// The first tile from t on that some query from position `first` on can see.
static int64_t next_tile(const RopeConfig *r, int64_t first, int64_t t)
{
    int64_t oldest = r->window && t * TILE >= r->sinks ? (first - r->window + 1) / TILE : 0;
    return t > oldest ? t : oldest;
}

// Phases of the tiles that the chunk can see, and the key tables of uneven ones, as far as they are
// not there yet.
static void plan_tiles(const Attention *a, const RopeConfig *r, Angles *angles)
{
    size_t pairs = a->config.head_dim / 2;
    int64_t last = (a->pos + (int64_t)a->n - 1) / TILE;
    for (int64_t t = 0; (t = next_tile(r, a->pos, t)) <= last; t++) {
        size_t slot = tile_slot(&a->cache, t);
        if (angles->slot_tile[slot] == t) continue;
        angles->slot_tile[slot] = t;
        for (int map = 0; map < n_maps(r); map++) {
            double first = key_position(r, map, t * TILE);
            float *back = angles->tile[map] + slot * 2 * pairs;
            float *key = angles->key[map] + (slot + 1) * TILE * 2 * pairs;
            fill_phases(angles->freq, NULL, NULL, pairs, -first, 1, back, 1);
            if (!is_uneven(r, map, t)) continue;
            for (int k = 0; k < TILE; k++)
                fill_phases(angles->freq, NULL, angles->decay, pairs,
                            key_position(r, map, t * TILE + k) - first, 1, key + k, TILE);
        }
    }
}

// Prepares all angles for the chunk's queries, once for all layers (where they share one set, the
// first query finds work to do, the others find it done), and chooses the batch: how many queries
// are attended to together. A large batch is good, since each turned tile of keys serves all of it.
// But its queries must share their frequencies, its rows must fit into the processor's caches
// (BATCH_ROWS do), and there should be three items of work for each thread, so that others can make
// up for a late one. A row's bits do not depend on which rows share its batch.
enum { BATCH_ROWS = 192 };

static void plan_positions(const Attention *a, Positions *p)
{
    const Config *c = &a->config;
    const RopeConfig *r = &p->rope;
    size_t d = c->head_dim, n_kv = c->n_kv_heads, group = c->n_heads / n_kv;
    size_t fair = ceil_div(a->n * n_kv, 3 * pool.n_threads);
    double scale = c->score_scale > 0 ? c->score_scale : 1 / sqrt(c->head_dim);
    int64_t end = a->pos + (int64_t)a->n, length = a->text > end ? a->text : end;
    int always = rope_methods[r->method].changes == ALWAYS; // else once, by the whole text
    p->each = always && end > r->orig_ctx;
    p->batch = p->each ? 1 : max_size(1, min_size(BATCH_ROWS / group, fair));
    for (size_t t = 0; t < a->n; t++) {
        int64_t i = a->pos + (int64_t)t;
        Angles *angles = p->angles + t * p->each;
        set_angles(angles, c, r, a->cache.n_slots, always ? i + 1 : length);
        plan_tiles(a, r, angles);
        for (int map = 0; map < n_maps(r); map++)
            fill_phases(angles->freq, angles->gain, NULL, d / 2, query_position(r, map, i),
                        scale * query_scale(r, i), p->phase[map] + t * d, 1);
    }
}

// --- One batch of queries -----------------------------------------------------------------------

// The batch that item number `item` is about, counted through parts, in each part through batches,
// and in each batch through KV heads. Its rows get room carved from the thread's scratch memory and
// are made ready: totals empty, queries turned by each map's phases (which carry the scale of the
// score and of the query).
static Batch begin_batch(const Attention *a, size_t item)
{
    const Config *c = &a->config;
    const Positions *p = a->p;
    size_t n_heads = c->n_heads, n_kv = c->n_kv_heads, n_batches = ceil_div(a->n, p->batch);
    size_t d = c->head_dim, v_dim = a->cache.v_dim, tile = TILE * v_dim;
    size_t q0 = item / n_kv % n_batches * p->batch, nq = min_size(p->batch, a->n - q0);
    size_t group = n_heads / n_kv, rows = nq * group;
    Batch w = {.a = a, .kv_head = item % n_kv, .part = item / n_kv / n_batches, .rows = rows};
    w.tile = scratch((tile + rows * (MAPS * (TILE + d) + v_dim + d)) * 4 + rows * sizeof(Row));
    w.o = w.tile + tile;
    w.qt = w.o + rows * v_dim;
    w.q = w.qt + rows * d;
    w.score = w.q + MAPS * rows * d;
    w.row = (Row *)(w.score + MAPS * rows * TILE);
    for (size_t row = 0; row < rows; row++) {
        size_t query = q0 + row / group, head = w.kv_head * group + row % group;
        size_t at = query * n_heads + head, to = at + w.part * n_heads;
        w.row[row] = (Row){{c, head, a->pos + (int64_t)query, w.q + row * d}, to, EMPTY};
        memset(a->total + to * v_dim, 0, v_dim * 4);
        a->sums[to] = EMPTY;
        split_pairs(c, a->q + at * d, w.qt);
        for (int map = 0; map < n_maps(&p->rope); map++)
            rotate(AS_F32, w.qt, p->phase[map] + query * d, d / 2, w.q + (map * rows + row) * d);
    }
    return w;
}

// x[n] *= y[n], n a multiple of LANES.
static void multiply_rows(float *x, const float *y, size_t n)
{
    for (size_t k = 0; k < n; k += LANES) vstore(x + k, vload(x + k) * vload(y + k));
}

// w->score = scores of all rows against the keys of tile t under one map. The equation of section 4
// in its three factors: keys are turned by their place in the tile, exp(I r theta) (if it is uneven
// exp(I (B(t0 + r) - B(t0)) theta)), from the key table number `table`; a row's q is turned by
// exp(I A(i) theta), in begin_batch(), and here back by the tile's exp(-I B(t0) theta).
static void score_tile(const Batch *w, int map, int64_t t)
{
    const Positions *p = w->a->p;
    const Angles *angles = p->angles + (w->row->query.i - w->a->pos) * p->each;
    size_t d = w->a->config.head_dim, pairs = d / 2;
    float *score = w->score + map * w->rows * TILE;
    size_t slot = tile_slot(&w->a->cache, t), table = is_uneven(&p->rope, map, t) ? slot + 1 : 0;
    const float *back = angles->tile[map] + slot * d; // by B(t0)
    const float *scales = tile_scales(w->a, w->kv_head, t);
    rotate(w->a->cache.as, tile_at(w->a, w->kv_head, t), angles->key[map] + table * TILE * d,
           pairs * TILE, w->tile);
    for (size_t row = 0; row < w->rows; row++) {
        float *q = w->qt + row * d;
        rotate(AS_F32, w->q + (map * w->rows + row) * d, back, pairs, q);
        if (angles->decay[0] == 0) continue; // all but xPos
        double at = query_position(&p->rope, map, w->row[row].query.i);
        fade(q, angles->decay, (float)(at - key_position(&p->rope, map, t * TILE)), pairs);
    }
    memset(score, 0, w->rows * TILE * 4);
    gemm_rows(w->rows, w->qt, w->tile, d, TILE, score);
    for (size_t row = 0; scales && row < w->rows; row++)
        multiply_rows(score + row * TILE, scales, TILE);
    soft_cap(score, w->rows * TILE, (float)w->a->config.score_cap);
}

// --- What a row sees ----------------------------------------------------------------------------
//
// Scores are computed for whole tiles under each map. Which of them a row really sees, and under
// which map, is told by positions alone: a key belongs to the map whose run it lies in, a key
// behind the window or to come belongs to none. Runs and windows begin and end anywhere in a tile.

// How many keys of the tile at t0 are before position p.
static int keys_before(int64_t p, int64_t t0)
{
    return p < t0 ? 0 : p - t0 < TILE ? (int)(p - t0) : TILE;
}

// Puts together in `score` what a row sees of the tile at t0. score is the row's under map 0, so
// the keys of map 0 have theirs; those of other maps get it here, and D[TILE], if it is wanted, the
// distances. Runs are gone through backwards from the query: each ends (`to`) where the one before
// began (`from`). Keys behind the window (the sinks excepted) and keys to come are masked.
static void gather_scores(const Batch *w, size_t row, int64_t t0, float *score, float *D)
{
    const RopeConfig *r = &w->a->p->rope;
    int64_t i = w->row[row].query.i;
    int seen = keys_before(i + 1, t0), hidden = r->window ? keys_before(i - r->window + 1, t0) : 0;
    float stretch = D ? (float)position_stretch(&w->a->config) : 1;
    if (D) memset(D, 0, TILE * sizeof *D);
    for (int map = 0, to = seen, from; map < n_maps(r); map++, to = from) {
        from = keys_before(first_key(r, map, i), t0);
        if (map) memcpy(score + from, w->score + (map * w->rows + row) * TILE + from,
                        (to - from) * sizeof *score);
        double at = query_position(r, map, i);
        for (int k = from; D && k < to; k++)
            D[k] = (float)fmax(at - key_position(r, map, t0 + k), 0) / stretch;
    }
    for (int k = seen; k < TILE; k++) score[k] = MASKED;
    for (int k = keys_before(r->sinks, t0); k < hidden; k++) score[k] = MASKED;
}

// One step of the online softmax on one row: score[TILE] becomes the weights exp(score - largest)
// of the tile's values, and what is summed so far, o[v_dim] and the sums, is rescaled to the new
// largest score. Most tiles bring none, and then nothing is rescaled.
static void softmax_step(float *score, float *o, RowSums *sums, size_t v_dim)
{
    vf max = vset(sums->largest), sum[SUM_VECTORS] = {{0}};
    for (size_t k = 0; k < TILE; k += LANES) max = vmax(max, vload(score + k));
    float largest = vmax_lane(max);
    if (largest != sums->largest) {
        float shrink = vexp(vset(sums->largest - largest))[0];
        for (size_t k = 0; k < v_dim; k += LANES) vstore(o + k, vload(o + k) * vset(shrink));
        *sums = (RowSums){largest, sums->sum * shrink};
    }
    for (size_t k = 0; k < TILE; k += SUMS)
        for (size_t i = 0; i < SUM_VECTORS; i++) {
            float *at = score + k + i * LANES;
            vf weight = vexp(vload(at) - vset(largest));
            sum[i] += weight;
            vstore(at, weight);
        }
    sums->sum += vsum(sum);
}

// The attention loop's body: a batch's rows over the keys of tile t. Scores under each map that
// some row needs; then row by row what it sees, place 3's bias, the softmax; then the values.
static void attend_tile(const Batch *w, int64_t t)
{
    const Attention *a = w->a;
    const Cache *c = &a->cache;
    const RopeConfig *r = &a->p->rope;
    int biased = encodings[a->config.encoding].bias != NULL;
    const float *scales = tile_scales(a, w->kv_head, t);
    for (int map = 0; map < n_maps(r); map++) {
        int64_t from = first_key(r, map, w->row->query.i), last = w->row[w->rows - 1].query.i;
        int64_t to = map ? first_key(r, map - 1, last) : last + 1;
        if (from < t * TILE + TILE && to > t * TILE) score_tile(w, map, t);
    }
    for (size_t row = 0; row < w->rows; row++) {
        float *score = w->score + row * TILE, D[TILE];
        gather_scores(w, row, t * TILE, score, biased ? D : NULL);
        if (biased) encodings[a->config.encoding].bias(&w->row[row].query, D, score);
        if (a->watch) a->watch(a, &w->row[row].query, t, score);
        softmax_step(score, w->o + row * c->v_dim, &w->row[row].sums, c->v_dim);
        if (scales) multiply_rows(score, scales + TILE, TILE);
    }
    const void *v = tile_at(a, w->kv_head, t) + TILE * a->config.head_dim * number_size(c->as);
    for (size_t k = 0; c->as != AS_F32 && k < TILE * c->v_dim; k += LANES)
        vstore(w->tile + k, load_numbers(c->as, v, k, LANES));
    gemm_rows(w->rows, w->score, c->as != AS_F32 ? w->tile : v, TILE, c->v_dim, w->o);
}

// Adds a segment's softmax, o and its sums p, to total number `to`: both are first rescaled to the
// larger of their two largest scores.
static void merge_row(const Attention *a, size_t to, const float *o, RowSums p)
{
    size_t v_dim = a->cache.v_dim;
    float *total = a->total + to * v_dim;
    RowSums t = a->sums[to];
    float largest = t.largest > p.largest ? t.largest : p.largest;
    float old = vexp(vset(t.largest - largest))[0], new = vexp(vset(p.largest - largest))[0];
    for (size_t i = 0; i < v_dim; i++) total[i] = total[i] * old + o[i] * new;
    a->sums[to] = (RowSums){largest, t.sum * old + p.sum * new};
}

// q = o / sum for query and head number `at` (query * n_heads + head), whose parts, if there are
// several, are first merged in their order. The output takes q's place, since nobody asks with it
// any more.
static void finish_row(const Attention *a, size_t at)
{
    size_t d = a->config.head_dim, v_dim = a->cache.v_dim, n_heads = a->config.n_heads;
    for (size_t part = at + n_heads; part < a->n_parts * n_heads; part += n_heads)
        merge_row(a, at, a->total + part * v_dim, a->sums[part]);
    const float *o = a->total + at * v_dim;
    for (size_t i = 0; i < d; i++) a->q[at * d + i] = o[i] / a->sums[at].sum;
}

// An item is (part, batch, KV head). A part is all segments of the batch, one after the other, or
// one segment of a single query, which is finished when all parts are done. The next tile is asked
// for, into the second-level cache, while one is worked on.
static void attend_part(void *arg, size_t item)
{
    const Attention *a = arg;
    Batch w = begin_batch(a, item);
    const RopeConfig *r = &a->p->rope;
    int64_t first = w.row->query.i, t = next_tile(r, first, (int64_t)w.part * SEGMENT_TILES);
    int64_t end = w.row[w.rows - 1].query.i / TILE + 1;
    do {
        int64_t stop = (t / SEGMENT_TILES + 1) * SEGMENT_TILES, next;
        memset(w.o, 0, w.rows * a->cache.v_dim * 4);
        for (size_t row = 0; row < w.rows; row++) w.row[row].sums = EMPTY;
        for (; t < end && t < stop; t = next) {
            next = next_tile(r, first, t + 1);
            if (next < end) prefetch(tile_at(a, w.kv_head, next), a->cache.tile_bytes);
            attend_tile(&w, t);
        }
        for (size_t row = 0; row < w.rows; row++)
            merge_row(a, w.row[row].total, w.o + row * a->cache.v_dim, w.row[row].sums);
    } while (t < end && a->n_parts == 1);
    for (size_t row = 0; row < w.rows && a->n_parts == 1; row++) finish_row(a, w.row[row].total);
}

// --- All queries --------------------------------------------------------------------------------

// For each chunk plan_positions() is called once, then in each layer store_kv() and this (section
// 9). q = softmax(q k^T) v for all queries and heads of the chunk. A prompt is cut into items by
// its batches of queries; a single query, which has but n_kv_heads items otherwise, by segments
// too, unless it has a window, in which there are few.
static void attention(Attention *a)
{
    const RopeConfig *r = &a->p->rope;
    size_t n_heads = a->config.n_heads, seen = a->pos + a->n;
    if (r->window) seen = min_size(seen, r->window + a->n);
    a->n_parts = a->n == 1 && !r->window ? ceil_div(seen, SEGMENT) : 1;
    size_t items = a->n_parts * ceil_div(a->n, a->p->batch) * a->config.n_kv_heads;
    size_t cost = 1 + 2 * a->config.dim * max_size(seen, TILE) * a->n / items; // of one, about
    parallel_for(items, ceil_div(MIN_SHARE / 4, cost), attend_part, a);
    for (size_t at = 0; at < n_heads && a->n_parts > 1; at++) finish_row(a, at);
}

// ================================================================================================
// 8  Tensor types and products
//
// A weight matrix stays in the file, in the type it was stored in. A Tensor says where it is and
// how to read it; everything that depends on the type is one row of tensor_types. Q8_0 here is
// llama2.c's planar layout: all int8 values, then one f32 scale a group, with groups running over
// the flattened tensor, so that a group may begin in one row and end in the next. GGUF's types are
// blocks, each with its own scales; all of them mean value = (code - zero) * scale - min, with a
// code of 2 to 8 bits, zero that of the type, and scale and min those of the value's group.
//
// Two products of a weight matrix with activations are all that a Transformer needs beside
// attention's own: one in float and one in int8. Both take a panel at a time (as many rows as a
// vector has lanes), and of its products a tile: those with a few tokens, as many as leave their
// sums in registers.
//
// What makes them fast is the same in both. One token (decoding) is bound by memory: weights are
// read once, where they lie, in the order in which they lie, and what will be wanted is asked for
// early. Many tokens (a prompt) are bound by the multipliers: a panel is unpacked once, and then
// meets every token with nothing left to be decoded. In int8 it is rearranged, too, so that a
// vector holds the same column of all rows and meets a token's value in every lane: nothing has to
// be moved or added up between lanes. Both ways add in the same order.

typedef struct Panel Panel;

struct TensorType {
    const char *name;
    int gguf;       // its number in GGUF files, -1: none
    void (*unpack)(const Tensor *t, size_t row, float *out); // out[cols]: the row, exactly
    void (*tile)(const Panel *p);                            // the product in int8
    size_t block;   // values in a block, and
    size_t bytes;   // bytes in a block (without planar Q8_0's separate scales)
    size_t group;   // block types: values that share a scale
    int has_min;
    int bits;       // of a code, of which
    int stored;     // so many lie together, the others apart from them
    int zero;       // the code that means 0
    size_t apart;   // how pieces share bytes: see "Codes" below
    // Where in a block something begins:
    size_t at, high; // the stored bits; the bits above them
    size_t d_at;    // half-precision d, and behind it dmin: the block's scale and minimum, or what
                    // those of its groups are multiples of
    size_t numbers; // 16 bytes that hold the multiples
    // The scale of group g as a multiple of d or, if g counts on past the groups, a minimum as one
    // of dmin; for PANEL rows, a lane each. Lane r of w[k] is word k of the 16 bytes of row r.
    // NULL: the block is one group.
    vi (*number)(const vi w[4], int g);
};

// A row that is stored number by number: floats of any kind, or int8 that have their scales apart.
static void unpack_numbers(const Tensor *t, size_t row, float *out)
{
    size_t n = t->cols, at = row * n;
    int as = t->scales ? AS_INT8 : t->type->gguf;
    for (size_t i = 0; i < n; i += LANES)
        vstore_part(out + i, load_numbers(as, t->data, at + i, n - i), n - i);
    for (size_t i = 0; t->scales && i < n; i++) out[i] *= t->scales[(at + i) / t->group];
}

// --- Panels -------------------------------------------------------------------------------------
// A panel is as many rows of a matrix as there are lanes, a lane for each; they lie at one pitch,
// the bytes from a row to the next.
//
// Vectors consist of quarters of 16 bytes: LANES / 4 of them, whatever the name says. Processors
// move words (4 bytes) within quarters at once, and between quarters slowly. So rows are loaded
// into quarters from the start, and moving words within quarters alone brings row r to lane r. With
// 8 lanes, and rk for word k of row r:
//   load_rows(0)   00 01 02 03 | 40 41 42 43           out[0]   00 10 20 30 | 40 50 60 70
//   load_rows(1)   10 11 12 13 | 50 51 52 53    -->    out[1]   01 11 21 31 | 41 51 61 71
//   load_rows(2)   20 21 22 23 | 60 61 62 63           out[2]   02 12 22 32 | 42 52 62 72
//   load_rows(3)   30 31 32 33 | 70 71 72 73           out[3]   03 13 23 33 | 43 53 63 73

enum { PANEL = LANES };

// 16 bytes each of rows i, i + 4, ... of a panel, whose row 0 has them at `at`. The empty statement
// makes the pointer be computed here: compilers would rather have one for each row of a panel, and
// run out of registers.
INLINE vi load_rows(const void *at, size_t pitch, int i)
{
    at += (size_t)i * pitch;
    __asm__("" : "+r"(at));
#if LANES == 16
    __m256i low = _mm256_loadu2_m128i(at + 4 * pitch, at);
    __m256i high = _mm256_loadu2_m128i(at + 12 * pitch, at + 8 * pitch);
    return (vi)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#elif LANES == 8
    return (vi)_mm256_loadu2_m128i(at + 4 * pitch, at);
#else
    return (vi)vload(at);
#endif
}

// The same 16 bytes in every quarter.
INLINE vi load_everywhere(const void *p)
{
#if LANES == 16
    return (vi)_mm512_broadcast_i32x4(_mm_loadu_si128(p));
#elif LANES == 8
    return (vi)_mm256_broadcastsi128_si256(_mm_loadu_si128(p));
#else
    return (vi)vload(p);
#endif
}

// a0 b0 a1 b1 of the words of each quarter, and a2 b2 a3 b3.
#if defined(MM)
INLINE vi zip_low(vi a, vi b) { return (vi)MM(unpacklo_epi32)((mi)a, (mi)b); }
INLINE vi zip_high(vi a, vi b) { return (vi)MM(unpackhi_epi32)((mi)a, (mi)b); }
#else
INLINE vi zip_low(vi a, vi b) { return (vi){a[0], b[0], a[1], b[1]}; }
INLINE vi zip_high(vi a, vi b) { return (vi){a[2], b[2], a[3], b[3]}; }
#endif

// Vector a of the four has words of rows 0, 4, ... in its quarters, as load_rows() gives them, b
// those of rows 1, 5, ... and so on; in out[k] lane r is word k of row r. Only words within
// quarters move.
INLINE void transpose_words(vi a, vi b, vi c, vi d, vi out[4])
{
    vi low[2] = {zip_low(a, c), zip_low(b, d)};     // words 0 and 1
    vi high[2] = {zip_high(a, c), zip_high(b, d)}; // words 2 and 3
    out[0] = zip_low(low[0], low[1]);
    out[1] = zip_high(low[0], low[1]);
    out[2] = zip_low(high[0], high[1]);
    out[3] = zip_high(high[0], high[1]);
}

// Byte by byte bytes[at], in each quarter; the numbers in `at` are below 16.
INLINE vi look_up(vi bytes, vi at)
{
#if defined(MM)
    return (vi)MM(shuffle_epi8)((mi)bytes, (mi)at);
#elif defined(NEON)
    return (vi)vqtbl1q_u8((uint8x16_t)bytes, (uint8x16_t)at);
#else
    vc from = (vc)bytes, to = (vc)at;
    for (size_t i = 0; i < sizeof to; i++) to[i] = from[to[i]];
    return (vi)to;
#endif
}

// Loads 16 bytes of each row, transposed: lane r of a[k] is word k of row r.
INLINE void transpose_rows(const void *at, size_t pitch, vi a[4])
{
    transpose_words(load_rows(at, pitch, 0), load_rows(at, pitch, 1), load_rows(at, pitch, 2),
                    load_rows(at, pitch, 3), a);
}

// --- Scales -------------------------------------------------------------------------------------

// Blocks of 32: half d, half m if the type has minima, and bytes (Q8_0), or nibbles (Q4), or a
// fifth bit of each in 4 bytes and nibbles (Q5). The low nibbles of 16 bytes are values 0..15, the
// high ones 16..31. A value is q * d + m, or (q - half the range) * d.
//
// Blocks of 256 have a half d, and dmin if the type has minima, and numbers of four to eight bits
// by which each group's scale is a multiple of d, and its minimum one of dmin. The numbers lie in
// 16 bytes, of which words are looked at in all rows at once.

// `bits` bits of w from bit `first` on, of each row in its lane.
INLINE vi bits_at(const vi w[4], int first, int bits)
{
    return w[first / 32] >> first % 32 & ((1 << bits) - 1);
}

// Q4_K and Q5_K: half d and half dmin, a word together, and for each of 8 groups of 32 a scale and
// a minimum of six bits in 12 bytes: those of groups 0..3 in the low bits of bytes 0..3 (scales)
// and 4..7 (minima), those of groups 4..7 in the low and high nibbles of bytes 8..11 and the high
// bits of bytes 0..7 (two each). In Q5_K then a plane of 32 bytes: bit g of byte k is the fifth bit
// of group g's k. Then 32 bytes a pair of groups: one in low nibbles, the next in high ones.
INLINE vi number_k(const vi w[4], int g)
{
    vi six = w[1 + g / 8], four = (w[3] >> g / 8 * 4 & 0x0f0f0f0f) | (six >> 2 & 0x30303030);
    return (g % 8 < 4 ? six & 0x3f3f3f3f : four) >> g % 4 * 8 & 0xff;
}

// Q6_K: 128 bytes of nibbles, 64 of upper pairs of bits, an int8 scale for each of 16 groups of 16,
// and half d: (q - 32) * scale * d. Each half of the block is four rows of 32 values: rows 0 and 1
// in the low nibbles of 64 bytes, 2 and 3 in the high ones, row r's upper bits at bit 2r of 32.
INLINE vi number_q6_k(const vi w[4], int g) { return w[g / 4] << (24 - g % 4 * 8) >> 24; }

// Q2_K: for each of 16 groups of 16 a byte, the scale in its low nibble and the minimum in its high
// one, then 64 bytes of pairs of bits, half d and half dmin.
INLINE vi number_q2_k(const vi w[4], int g) { return bits_at(w, g % 16 * 8 + g / 16 * 4, 4); }

// Q3_K: a plane of 32 bytes with the third bits, 64 bytes of pairs, 12 of scales of six bits, less
// 32, and half d. The low four bits of scales 0..7 are the low nibbles of bytes 0..7, those of
// 8..15 the high ones; bytes 8..11 have the upper two, of scales 0..3 in their lowest bits and so
// on. A word of codes comes before them in w.
INLINE vi number_q3_k(const vi w[4], int g)
{
    vi low = bits_at(w, 32 + g % 8 * 8 + g / 8 * 4, 4);
    return (low | bits_at(w, 96 + g % 4 * 8 + g / 4 * 2, 2) << 4) - 32;
}

// IQ4_XS: half d, then for each of 8 groups of 32 a scale of six bits, less 32: the upper two bits
// of all in two bytes, the low four in four bytes, two each; then nibbles, 16 bytes a group.
INLINE vi number_iq4_xs(const vi w[4], int g)
{
    return (bits_at(w, 32 + g * 4, 4) | bits_at(w, 16 + g * 2, 2) << 4) - 32;
}

// The scales of n blocks in each row of a panel: scale[n groups in all][PANEL] and, where the type
// has minima, min likewise. d is in 16 bytes that begin at `at`, which are moved back where they
// would reach beyond the block. `type` is a constant where it matters, in a product.
INLINE void read_scales(const TensorType *type, const void *rows, size_t pitch, size_t n,
                        float *scale, float *min)
{
    size_t at = min_size(type->d_at, type->bytes - 16), d_at = type->d_at - at;
    for (int groups = (int)(type->block / type->group); n; n--, rows += type->bytes) {
        vi w[4], halves[4];
        transpose_rows(rows + at, pitch, halves);
        transpose_rows(rows + type->numbers, pitch, w);
        vi both = halves[d_at / 4] >> (int)(d_at % 4 * 8); // d, and above it dmin if there is one
        vf d = half_to_vf(__builtin_convertvector(both, vh));
        vf dmin = half_to_vf(__builtin_convertvector(both >> 16, vh));
        for (int g = 0; g < groups; g++, scale += PANEL, min += PANEL) {
            vstore(scale, type->number ? d * vfloat(type->number(w, g)) : d);
            if (!type->has_min) continue;
            vstore(min, type->number ? dmin * vfloat(type->number(w, g + groups)) : -dmin);
        }
    }
}

// --- Words --------------------------------------------------------------------------------------
// Words are four codes that are multiplied together with four int8 of x: dot_words() adds their
// products, lane by lane, to a running sum, and widen() makes of that the sum in 32 bits. All of it
// is exact, so every machine gets the same integers, whatever its instructions. VNNI and NEON add
// in 32 bits at once. AVX2 adds neighbouring products in 16 bits, where some such pairs of short
// codes can be added before they must be widened: (2^bits - 1) * 127 * 2 goes 2^(7 - bits) times
// into 32767. Both VNNI and AVX2 multiply unsigned by signed bytes, but codes of 8 bits are signed:
// with AVX2 x gets their sign (and sums are widened at once), and for VNNI FLIP turns an int8 w
// into w + 128, a code whose zero is ZERO.
#if LANES == 16 || (LANES == 8 && defined(__AVXVNNI__))
#define VNNI
enum { NARROW = 0, FLIP = (int32_t)0x80808080, ZERO = 128 };
#else
enum { NARROW = LANES == 8, FLIP = 0, ZERO = 0 };
#endif

INLINE vi dot_words(int bits, vi sum, vi w, vi x)
{
    (void)bits;
#if defined(VNNI)
    return (vi)MM(dpbusd_epi32)((mi)sum, (mi)w, (mi)x);
#elif LANES == 8
    if (bits < 8) return (vi)MM(add_epi16)((mi)sum, MM(maddubs_epi16)((mi)w, (mi)x));
    mi pairs = MM(maddubs_epi16)(MM(abs_epi8)((mi)w), MM(sign_epi8)((mi)x, (mi)w));
    return sum + (vi)MM(madd_epi16)(pairs, MM(set1_epi16)(1));
#elif defined(NEON) && defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
#else
    for (int up = 0; up < 32; up += 8) sum += (w << up >> 24) * (x << up >> 24);
    return sum;
#endif
}

// How many words' products a sum has room for before it must be widened.
INLINE size_t room_for(int bits) { return NARROW && bits < 8 ? 128u >> bits : SIZE_MAX; }

INLINE vi widen(int bits, vi sum)
{
#if LANES == 8
    if (NARROW && bits < 8) return (vi)MM(madd_epi16)((mi)sum, MM(set1_epi16)(1));
#endif
    return (void)bits, sum;
}

// In each quarter the sums a0 + a2, b0 + b2, a1 + a3, b1 + b3. Of rows 0 and 2, then of 1 and 3,
// and then of these two results, it makes the sums of the words of rows 0 to 3, each in its lane.
INLINE vi add_zips(int bits, vi a, vi b)
{
    vi low = zip_low(a, b), high = zip_high(a, b);
    return NARROW && bits < 8 ? (vi)((vs)low + (vs)high) : low + high;
}

// --- Codes --------------------------------------------------------------------------------------
// A piece is 16 values that follow each other in a row; a unit is 16 bytes that hold two of them:
// one in the low nibbles, and in the high ones the piece `apart` pieces later. So the units of a
// block, 0, 1, 2, ..., hold these pieces:
//   apart 1   0 1, 2 3, ...                       IQ4_XS, and blocks of 32, which are one unit
//   apart 2   0 2, 1 3, 4 6, 5 7, ...             Q4_K, Q5_K
//   apart 4   0 4, 1 5, 2 6, 3 7, 8 12, ...       Q6_K
// Bits above the fourth lie elsewhere in the block. Q2_K and Q3_K store pairs of bits: 16 bytes
// hold four pieces, as two units that are numbered as in Q4_K, 0 2 in the lower two pairs of each
// byte and 4 6 in the upper two. A unit of codes of a byte is 32 bytes. IQ4's nibbles are numbers
// of values in a table, which become codes of a byte.
//
// In products all of this is inlined, and the type is a constant: loops are unrolled, and no shift
// is left to be computed.

// The piece of unit u's low bits (h = 0) or high ones (h = 1).
INLINE size_t piece_of(const TensorType *type, size_t u, size_t h)
{
    return u / type->apart * 2 * type->apart + u % type->apart + h * type->apart;
}

// Bits above the stored are kept, in blocks of 256, in planes of 32 bytes: the lowest bits of each
// byte (two in Q6_K, else one) are those of the plane's first 32 values, the next bits those of the
// next 32, and a unit's two pieces share their 16 bytes. Blocks of 32 have 32 single bits in 4
// bytes: each of a piece's 16 looks up the byte that has its bit, and keeps that.
INLINE void add_high_bits(const TensorType *type, const char *high, size_t pitch, int i, size_t u,
                          vi codes[2])
{
    static const uint8_t byte_of[2][16] = {{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},
                                           {2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3}};
    static const uint8_t bit_of[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    int each = type->bits - type->stored, plane = (int)piece_of(type, u, 0) / 2 * each / 8;
    int mask = ((1 << each) - 1) * 0x01010101 << type->stored;
    vi v = load_rows(high + (size_t)plane * 32 + u % 2 * 16, pitch, i);
    vc bit = (vc)load_everywhere(bit_of);
    for (size_t h = 0; h < 2; h++) {
        int up = type->stored - (int)piece_of(type, u, h) / 2 * each % 8;
        if (type->apart > 1) codes[h] |= (up < 0 ? v >> -up : v << up) & mask;
        else codes[h] |= (vi)(((vc)look_up(v, load_everywhere(byte_of[h])) & bit) == bit) & mask;
    }
}

// The codes of unit u, of rows i, i + 4, ... of a panel: those of its two pieces.
INLINE void read_codes(const TensorType *type, const char *block, size_t pitch, int i,
                       size_t u, vi codes[2])
{
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1, 13, 25, 38, 53, 69, 89, 113}; // of IQ4's nibbles
    int stored = type->stored, shift = stored == 2 ? (int)u / 2 % 2 * 4 : 0;
    int mask = (int)(((1u << stored) - 1) * 0x01010101); // in each byte
    const char *at = block + type->at;
    at += stored == 8 ? 32 * u : stored == 4 ? 16 * u : u / 4 * 32 + u % 2 * 16;
    vi units = load_rows(at, pitch, i);
    codes[0] = units >> shift & mask;
    codes[1] = stored < 8 ? units >> (shift + stored) & mask : load_rows(at + 16, pitch, i);
    if (type->bits > stored && type->bits < 8)
        add_high_bits(type, block + type->high, pitch, i, u, codes);
    for (int h = 0; h < 2 && type->bits == 8; h++)
        codes[h] = (stored == 4 ? look_up(load_everywhere(values), codes[h]) : codes[h]) ^ FLIP;
}

// A row of blocks, exactly. Every row of the panel that is read for it is this one.
static void unpack_blocks(const Tensor *t, size_t row, float *out)
{
    const TensorType *type = t->type;
    size_t n = t->cols / type->block;
    const uint8_t *b = t->data + row * n * type->bytes;
    for (; n; n--, b += type->bytes, out += type->block) {
        float scale[16 * PANEL], min[16 * PANEL] = {0};
        read_scales(type, b, 0, 1, scale, min);
        for (size_t u = 0; u < type->block / 32; u++) {
            vi codes[2];
            read_codes(type, (const char *)b, 0, 0, u, codes);
            for (size_t h = 0; h < 2; h++) {
                size_t at = 16 * piece_of(type, u, h), lane = at / type->group * PANEL;
                vc code = (vc)codes[h] - (uint8_t)type->zero;
                for (size_t i = 0; i < 16; i++)
                    out[at + i] = (float)(int8_t)code[i] * scale[lane] - min[lane];
            }
        }
    }
}

enum { Q8_TOKENS = LANES == 16 ? 8 : 4 }; // in a tile of int8, so that its sums fill the registers

// A single token asks for floats so many bytes ahead: rows of weights are short, and the
// processor's own prefetching starts anew in each.
enum { AHEAD = 16384 };

// --- int8 ---------------------------------------------------------------------------------------
// A vector of activations is rounded to int8 with one scale a group, the group being that of the
// weights it will meet. The product of a row with it is then
//   y = sum over groups g, in order, of  (sum over k in g of w_k x_k)  *  (scale_w[g] scale_x[g])
//                                          - (sum over k in g of x_k)  *  (min_w[g] scale_x[g])
// where the inner sums are of integers, hence exact and free of order, and the outer one a chain
// of multiply-adds, the second line only for types with a minimum.

typedef struct {
    int8_t *q;        // [n][cols], and room for Q8_TOKENS - 1 rows more: full tiles; or NULL
    float *scale;     // [n / T][n_groups][T], and room for a tile more: the T = min(n, Q8_TOKENS)
                      // tokens of a tile side by side, as they are read, and away from those of
                      // other tiles, which as a rule other threads write
    float *minus_sum; // likewise: of the group's q, a whole number
} Quantized;

typedef struct {
    const Tensor *w; // [rows][cols]
    float *out;      // [n][rows]
} Product;

typedef struct {
    const Product *jobs;
    const float *x;         // [n][cols]
    size_t n;               // tokens
    const Quantized *act;   // x in int8
    size_t group, n_groups; // values in a group, groups in a row; 0: floats are multiplied
    size_t n_panels;        // of all jobs together
    size_t grain;           // panels in a stretch: see matmul_stretch()
    size_t ways, turns;     // threads, and the stretches of each if all are equally fast
} Matmul;

// PANEL rows of codes, a lane for each, the tokens that they meet, and where the products go.
struct Panel {
    const char *rows;           // row 0's first block, and
    size_t pitch;               // bytes to the next row's
    float *scales, *mins;       // [n_groups][PANEL]
    vi *words;                  // [cols / 4], room for codes that are rearranged
    const Matmul *m;
    float *out;                 // out[t][r] = row r . x[t]
    size_t out_pitch, n_rows;   // floats from out[t] to out[t + 1]; rows that there are
};

// sum + what group g adds: of d, the sums of products, and of x's group, its sum and scale. A code
// whose zero is not 0 has added that many times the sum of x to d; that is taken off exactly, since
// d is a whole number below 2^24.
INLINE vf add_group(const TensorType *type, vf sum, const Panel *p, size_t g, vi d,
                    float minus_sum, float scale)
{
    vf products = vfloat(d);
    if (type->zero) products = vmuladd(vset(minus_sum), vset((float)type->zero), products);
    sum = vmuladd(products, vload(p->scales + g * PANEL) * vset(scale), sum);
    if (!type->has_min) return sum;
    return vmuladd(vset(minus_sum), vload(p->mins + g * PANEL) * vset(scale), sum);
}

// d[g], lane r: the dot product of group g of row r's block with that of x. For one token it is
// cheaper to multiply rows as they lie, and to transpose the sums. A unit's two pieces belong to
// one group or to two, and `step` units together make them whole. Narrow sums are widened when all
// is added, if there is room for that, else when two rows are.
INLINE void dot_block(const TensorType *type, const Panel *p, const char *at, const int8_t *x,
                      vi *d)
{
    int bits = type->bits, late = room_for(bits) >= type->group / 4, rest = late ? bits : 8;
    size_t sides = 16 * type->apart < type->group ? 1 : 2;
    size_t step = max_size(1, type->group / 32 * sides);
    vi half[2][2]; // of the rows, their sums zipped; within the loop gcc 12 may mix up its places
#pragma GCC unroll 8
    for (size_t u = 0; u < type->block / 32; u += step) {
        for (int i = 0; i < 2; i++) {
            vi sum[2][2] = {{{0}}}; // of rows i and i + 2
            for (size_t v = 0; v < 2 * step; v++) {
                vi codes[2], *s = sum[v / step];
                read_codes(type, at, p->pitch, i + 2 * (int)(v / step), u + v % step, codes);
                for (size_t h = 0; h < 2; h++) {
                    vi xh = load_everywhere(x + 16 * piece_of(type, u + v % step, h));
                    s[h % sides] = dot_words(bits, s[h % sides], codes[h], xh);
                }
            }
            for (size_t h = 0; h < sides; h++) {
                half[h][i] = add_zips(bits, sum[0][h], sum[1][h]);
                if (!late) half[h][i] = widen(bits, half[h][i]);
            }
        }
        for (size_t h = 0; h < sides; h++)
            d[piece_of(type, u, h) * 16 / type->group] =
                widen(rest, add_zips(rest, half[h][0], half[h][1]));
    }
}

// One token. While a block is worked on, as much is asked for of the panel after the next: by the
// time the thread is there, it will have come. (Rows of a panel lie far apart, which the
// processor's own prefetching does not follow.)
INLINE void tile_one(const TensorType *type, const Panel *p)
{
    const Quantized *x = p->m->act;
    size_t groups = type->block / type->group;
    vf sum = {0};
    vi d[16] = {{0}}; // of a block's groups
    for (size_t g = 0, at = 0; g < p->m->n_groups; g += groups, at += type->bytes) {
        prefetch(p->rows + PANEL * (2 * p->pitch + at), PANEL * type->bytes);
        dot_block(type, p, p->rows + at, x->q + g * type->group, d);
        for (size_t k = 0; k < groups; k++)
            sum = add_group(type, sum, p, g + k, d[k], x->minus_sum[g + k], x->scale[g + k]);
    }
    vstore_part(p->out, sum, p->n_rows);
}

// p->words: four neighbouring codes of every row in that row's lane.
INLINE void pack_words(const TensorType *type, const Panel *p)
{
    vi *words = p->words;
    for (size_t at = 0; at < p->pitch; at += type->bytes, words += type->block / 4) {
        prefetch(p->rows + PANEL * (2 * p->pitch + at), PANEL * type->bytes);
        for (size_t u = 0; u < type->block / 32; u++) {
            vi c[4][2];
            for (int i = 0; i < 4; i++) read_codes(type, p->rows + at, p->pitch, i, u, c[i]);
            for (size_t h = 0; h < 2; h++)
                transpose_words(c[0][h], c[1][h], c[2][h], c[3][h],
                                words + 4 * piece_of(type, u, h));
        }
    }
}

// A packed panel against Q8_TOKENS tokens from t on: a word of codes of each row (a vector of
// `words`) times the same four values of x in all lanes. Where sums are narrow they are widened
// after `run` words, before they can overflow. Behind the last token there is room, and rubbish.
INLINE void tile_some(const TensorType *type, const Panel *p, size_t t)
{
    const Matmul *m = p->m;
    const Quantized *x = m->act;
    const vi *words = p->words;
    size_t n_groups = m->n_groups, cols = n_groups * type->group, quads = type->group / 4;
    size_t run = min_size(quads, room_for(type->bits));
    const int8_t *q = x->q + t * cols;
    vf sum[Q8_TOKENS] = {{0}};
    size_t T = min_size(m->n, Q8_TOKENS), at = t * n_groups;
    for (size_t g = 0; g < n_groups; g++, words += quads, q += type->group, at += T) {
        vi d[Q8_TOKENS] = {{0}};
        for (size_t begin = 0; begin < quads; begin += run) {
            vi part[Q8_TOKENS] = {{0}};
#pragma GCC unroll 8
            for (size_t k = begin; k < begin + run; k++)
                for (size_t i = 0; i < Q8_TOKENS; i++) {
                    int32_t four;
                    memcpy(&four, q + i * cols + 4 * k, 4);
                    part[i] = dot_words(type->bits, part[i], words[k], four - (vi){0});
                    KEEP(part[i]);
                }
            for (size_t i = 0; i < Q8_TOKENS; i++) d[i] += widen(type->bits, part[i]);
        }
        for (size_t i = 0; i < Q8_TOKENS; i++)
            sum[i] = add_group(type, sum[i], p, g, d[i], x->minus_sum[at + i], x->scale[at + i]);
    }
    for (size_t i = 0; i < Q8_TOKENS && t + i < m->n; i++)
        vstore_part(p->out + (t + i) * p->out_pitch, sum[i], p->n_rows);
}

INLINE void tile_codes(const TensorType *type, const Panel *p)
{
    if (p->m->n == 1) tile_one(type, p);
    else pack_words(type, p);
    for (size_t t = 0; p->m->n > 1 && t < p->m->n; t += Q8_TOKENS) tile_some(type, p, t);
}

// Planar groups are like blocks of nothing but codes. Usual sizes are constants.
INLINE void tile_groups(size_t group, const Panel *p)
{
    tile_codes(&(const TensorType){.block = group, .bytes = group, .group = group, .bits = 8,
                                   .stored = 8, .zero = ZERO, .apart = 1}, p);
}

static void tile_planar(const Panel *p)
{
    if (p->m->group == 32) tile_groups(32, p);
    else if (p->m->group == 64) tile_groups(64, p);
    else tile_groups(p->m->group, p);
}

// The types in blocks: names, numbers in GGUF, and what TensorType has from `block` on, in its
// order. From here each goes to the functions that are made for it and to the table.
// name, GGUF, block, bytes, group, has_min, bits, stored, zero, apart, at, high, d_at, numbers, ...
#define BLOCK_TYPES(TYPE) \
    TYPE(q8_0, 8, 32, 34, 32, 0, 8, 8, ZERO, 1, 2, 0, 0, 0, NULL) \
    TYPE(q4_0, 2, 32, 18, 32, 0, 4, 4, 8, 1, 2, 0, 0, 0, NULL) \
    TYPE(q4_1, 3, 32, 20, 32, 1, 4, 4, 0, 1, 4, 0, 0, 0, NULL) \
    TYPE(q5_0, 6, 32, 22, 32, 0, 5, 4, 16, 1, 6, 2, 0, 0, NULL) \
    TYPE(q5_1, 7, 32, 24, 32, 1, 5, 4, 0, 1, 8, 4, 0, 0, NULL) \
    TYPE(q2_k, 10, 256, 84, 16, 1, 2, 2, 0, 2, 16, 0, 80, 0, number_q2_k) \
    TYPE(q3_k, 11, 256, 110, 16, 0, 3, 2, 4, 2, 32, 0, 108, 92, number_q3_k) \
    TYPE(q4_k, 12, 256, 144, 32, 1, 4, 4, 0, 2, 16, 0, 0, 0, number_k) \
    TYPE(q5_k, 13, 256, 176, 32, 1, 5, 4, 0, 2, 48, 16, 0, 0, number_k) \
    TYPE(q6_k, 14, 256, 210, 16, 0, 6, 4, 32, 4, 0, 128, 208, 192, number_q6_k) \
    TYPE(iq4_nl, 20, 32, 18, 32, 0, 8, 4, ZERO, 1, 2, 0, 0, 0, NULL) \
    TYPE(iq4_xs, 23, 256, 136, 32, 0, 8, 4, ZERO, 1, 8, 0, 0, 0, number_iq4_xs)

#define KERNEL(name, gguf, ...) \
    static void tile_##name(const Panel *p) \
    { \
        const TensorType type = {NULL, 0, NULL, NULL, __VA_ARGS__}; \
        read_scales(&type, p->rows, p->pitch, p->pitch / type.bytes, p->scales, p->mins); \
        tile_codes(&type, p); \
    }
BLOCK_TYPES(KERNEL)

enum { T_F32, T_F16, T_BF16, T_Q8, T_BLOCKS };
static const TensorType tensor_types[] = {
    [T_F32] = {.name = "f32", .gguf = AS_F32, .block = 1, .bytes = 4, .unpack = unpack_numbers},
    [T_F16] = {.name = "f16", .gguf = AS_F16, .block = 1, .bytes = 2, .unpack = unpack_numbers},
    [T_BF16] = {.name = "bf16", .gguf = AS_BF16, .block = 1, .bytes = 2, .unpack = unpack_numbers},
    [T_Q8] = {"q8_0 (planar)", -1, unpack_numbers, tile_planar, .block = 1, .bytes = 1},
#define ROW(name, gguf, ...) \
    {#name, gguf, unpack_blocks, tile_##name, __VA_ARGS__},
    BLOCK_TYPES(ROW)
};

// Bytes that the tensor takes in the file, or SIZE_MAX when that does not fit in a size_t. Where
// groups are not the type's, but the tensor's own, their scales lie behind the codes.
static size_t tensor_bytes(const Tensor *t)
{
    size_t n = mul_size(t->rows, t->cols);
    size_t bytes = mul_size(n / t->type->block, t->type->bytes);
    return t->group == t->type->group ? bytes : add_size(bytes, mul_size(n / t->group, 4));
}

// --- float --------------------------------------------------------------------------------------
// Every output is one sum in the order of section 2: running sums along the inner dimension, and at
// the end the tree, of a whole panel at once. A tile is DOT_ROWS rows and DOT_TOKENS tokens, or
// one: a vector of each row meets one of each token, so that a load serves several multiply-adds,
// and the sums of all pairs fill the registers. Where SUMS are more than one vector, many tokens go
// through the tile once for each. It is DOT_COLS columns wide, so that all of it stays in the
// first-level cache meanwhile.

enum { DOT_ROWS = 4, DOT_TOKENS = GEMM_ROWS / 2, DOT_COLS = 1024 };

// Adds to the sums the products of the numbers from `at` on, of which n are left. `as` and nt, the
// number of tokens, are constants wherever this is inlined.
INLINE void dot_step(int as, size_t nt, const uint8_t *rows, size_t pitch, const float *x,
                     size_t cols, size_t at, size_t n, vf sum[DOT_TOKENS][DOT_ROWS])
{
    vf xt[DOT_TOKENS];
    for (size_t t = 0; t < nt; t++) {
        xt[t] = vload_part(x + t * cols + at, n);
        KEEP(xt[t]);
    }
    for (size_t r = 0; r < DOT_ROWS; r++) {
        vf row = load_numbers(as, rows + r * pitch, at, n);
        if (nt > 1) KEEP(row);
        for (size_t t = 0; t < nt; t++) sum[t][r] = vmuladd(row, xt[t], sum[t][r]);
    }
}

// sums[t][r] = row r . x[t], having got as far as column `begin`, up to column `end`. A single
// token is bound by memory, and asks for what comes.
INLINE void dot_tile(int as, size_t nt, const uint8_t *rows, size_t pitch, const float *x,
                     size_t cols, size_t begin, size_t end, vf (*sums)[PANEL][SUM_VECTORS])
{
    for (size_t i = 0, nv = nt > 1 ? 1 : SUM_VECTORS; i < SUM_VECTORS; i += nv) {
        vf sum[SUM_VECTORS][DOT_TOKENS][DOT_ROWS] = {{{{0}}}};
        size_t k = begin;
        for (size_t v = 0; begin && v < nv; v++)
            for (size_t t = 0; t < nt; t++)
                for (size_t r = 0; r < DOT_ROWS; r++) sum[v][t][r] = sums[t][r][i + v];
        for (; k + SUMS <= end; k += SUMS) {
            for (size_t r = 0; nt == 1 && r < DOT_ROWS; r++)
                prefetch(rows + r * pitch + k * number_size(as) + AHEAD, 1);
            for (size_t v = 0; v < nv; v++)
                dot_step(as, nt, rows, pitch, x, cols, k + (i + v) * LANES, LANES, sum[v]);
        }
        for (size_t v = 0; v < nv; v++) {
            size_t at = k + (i + v) * LANES;
            if (at < end) dot_step(as, nt, rows, pitch, x, cols, at, end - at, sum[v]);
            for (size_t t = 0; t < nt; t++)
                for (size_t r = 0; r < DOT_ROWS; r++) sums[t][r][i + v] = sum[v][t][r];
        }
    }
}

// The size of groups in which rows of w can be multiplied as int8, or 0. The others are multiplied
// as floats: float types, and planar groups that straddle rows, that no whole 32 bytes make, or
// that are so large that a sum might not be exact as a float.
static size_t int8_group(const Tensor *w)
{
    return w->scales && (w->cols % w->group || w->group % 32 || w->group > 256) ? 0 : w->group;
}

// Rows [r0, r0 + n_rows) of one product in int8; n_rows <= PANEL. Codes are read where they lie,
// and so are scales in blocks; planar ones, rows of n_groups floats, are transposed here, by fours
// as far as there are as many. The last panel, if it is not full, is copied to where there is
// something behind it.
static void product_q8(const Matmul *m, const Product *p, size_t r0, size_t n_rows)
{
    const Tensor *w = p->w;
    const TensorType *type = w->type;
    size_t cols = w->cols, n_groups = cols / w->group, n = PANEL * n_groups;
    size_t pitch = cols / type->block * type->bytes;
    vi *words = scratch(PANEL * (cols + pitch) + 2 * n * 4);
    float *scales = (float *)(words + cols / 4), *mins = scales + n;
    const uint8_t *rows = w->data + r0 * pitch;
    if (n_rows < PANEL) rows = memcpy(mins + n, rows, n_rows * pitch);
    size_t g = 0, in_fours = w->scales && n_rows == PANEL ? n_groups / 4 * 4 : 0;
    for (; g < in_fours; g += 4) {
        vi fours[4];
        transpose_rows(w->scales + r0 * n_groups + g, n_groups * 4, fours);
        memcpy(scales + g * PANEL, fours, sizeof fours);
    }
    for (; w->scales && g < n_groups; g++)
        for (size_t r = 0; r < n_rows; r++)
            scales[g * PANEL + r] = w->scales[(r0 + r) * n_groups + g];
    type->tile(&(Panel){.rows = (const char *)rows, .pitch = pitch, .scales = scales,
                        .mins = mins, .words = words, .m = m, .out = p->out + r0,
                        .out_pitch = w->rows, .n_rows = n_rows});
}

// out[r] = vsum(sums[r]), for n <= PANEL rows: with the quarters of rows i, i + 4, ... in one
// vector the tree runs in all of them, and to its end once rows are lanes.
INLINE void sum_panel(const vf sums[PANEL][SUM_VECTORS], size_t n, float *out)
{
    vi fours[4], a[4];
    for (int i = 0; i < 4; i++) {
        vf q[4];
        for (int k = 0; k < 4; k++)
            q[k] = (vf)load_rows((const char *)sums + 16 * k, sizeof *sums, i);
        fours[i] = (vi)((q[0] + q[2]) + (q[1] + q[3]));
    }
    transpose_words(fours[0], fours[1], fours[2], fours[3], a);
    vf sum = (((vf)a[0] + (vf)a[2]) + ((vf)a[1] + (vf)a[3])) + vset(0);
    vstore_part(out, sum, n);
}

// What product_q8() does, in float. Fewer tokens than a tile has are multiplied one by one, with
// rows where they lie, if these are of a float type and fill their tiles. Else rows are unpacked
// first, exactly; so they are for many tokens, which want vectors that do not straddle cache lines.
// Of the next panel some is then asked for with each tile. The last tile begins early, to be full.
static void product_f32(const Matmul *m, const Product *p, size_t r0, size_t n_rows)
{
    const Tensor *w = p->w;
    int many = m->n >= DOT_TOKENS, as = w->type->gguf;
    size_t nt = many ? DOT_TOKENS : 1, cols = w->cols, pitch = cols * w->type->bytes;
    size_t width = many ? DOT_COLS : cols; // a single token reads rows from end to end
    const uint8_t *rows = w->data + r0 * pitch, *next = rows + PANEL * pitch;
    size_t share = many ? ceil_div(PANEL * pitch, ceil_div(m->n, nt)) : 0;
    if (w->group || many || n_rows % DOT_ROWS) {
        float *unpacked = scratch(PANEL * cols * 4);
        for (size_t r = 0; r < n_rows; r++) w->type->unpack(w, r0 + r, unpacked + r * cols);
        rows = (const uint8_t *)unpacked, pitch = cols * 4, as = AS_F32;
    }
    for (size_t t = 0; t < m->n; t += nt, next += share) {
        vf sums[DOT_TOKENS][PANEL][SUM_VECTORS];
        size_t first = min_size(t, m->n - nt);
        const float *x = m->x + first * cols;
        prefetch(next, share);
        for (size_t k = 0; k < cols; k += width)
            for (size_t r = 0; r < n_rows; r += DOT_ROWS) {
                const uint8_t *at = rows + r * pitch;
                vf (*sum)[PANEL][SUM_VECTORS] = (void *)&sums[0][r];
                size_t end = min_size(cols, k + width);
                if (many) dot_tile(AS_F32, DOT_TOKENS, at, pitch, x, cols, k, end, sum);
                else if (as == AS_F32) dot_tile(AS_F32, 1, at, pitch, x, cols, k, end, sum);
                else if (as == AS_F16) dot_tile(AS_F16, 1, at, pitch, x, cols, k, end, sum);
                else dot_tile(AS_BF16, 1, at, pitch, x, cols, k, end, sum);
            }
        for (size_t i = 0; i < nt; i++)
            sum_panel(sums[i], n_rows, p->out + (first + i) * w->rows + r0);
    }
}

// Work items are stretches of panels, which are numbered through all products. A thread prefetches
// past the end of its stretch, so the next one that it takes should follow there. With 2 ways of 3
// turns, items 0 1 2 3 4 5 are stretches 0 3 1 4 2 5: two threads that take items in turn have
// 0 1 2 and 3 4 5. A thread that is late loses some, which costs a prefetch and changes no result.
static void matmul_stretch(void *arg, size_t item)
{
    const Matmul *m = arg;
    size_t first = (item % m->ways * m->turns + item / m->ways) * m->grain;
    size_t behind = min_size(first + m->grain, m->n_panels);
    for (size_t panel = first, n; panel < behind; panel++) {
        const Product *p = m->jobs;
        size_t r0 = panel * PANEL;
        for (; r0 >= (n = round_up(p->w->rows, PANEL)); p++) r0 -= n;
        (m->group ? product_q8 : product_f32)(m, p, r0, min_size(PANEL, p->w->rows - r0));
    }
}

// Rounds row t of x to int8, group by group. What is not finite shows in the scale.
static void quantize_row(void *arg, size_t t)
{
    const Matmul *m = arg;
    const Quantized *a = m->act;
    size_t T = min_size(m->n, Q8_TOKENS);
    for (size_t g = 0; g < m->n_groups; g++) {
        size_t from = (t * m->n_groups + g) * m->group, at = (t / T * m->n_groups + g) * T + t % T;
        a->scale[at] = round_to_bytes(m->x + from, m->group, a->q + from, a->minus_sum + at);
    }
}

static void add_rows(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

// jobs[k].out[n][rows] = x[n][cols] w_k^T + bias for products that share x. act: room for x as
// int8, or none to compute exactly. For few tokens, where memory is the limit, each thread's share
// is cut into no more than STRETCHES: long ones prefetch better, but the last one is waited for.
enum { STRETCHES = 4 };

static void matmul(const Quantized *act, const Product *jobs, int n_jobs, const float *x, size_t n)
{
    size_t cols = jobs->w->cols, group = act->q ? int8_group(jobs->w) : 0;
    Matmul m = {.jobs = jobs, .x = x, .n = n, .act = act, .group = group,
                .n_groups = group ? cols / group : 0};
    const Product *rest = jobs, *end = jobs + n_jobs; // rest: from the first of another group size
    for (; rest < end && (act->q ? int8_group(rest->w) : 0) == group; rest++)
        m.n_panels += ceil_div(rest->w->rows, PANEL);
    size_t threads = (size_t)pool.n_threads;
    m.grain = ceil_div(MIN_SHARE, PANEL * cols * n);
    if (n <= Q8_TOKENS)
        m.grain = max_size(ceil_div(m.grain, 2), ceil_div(m.n_panels, STRETCHES * threads));
    m.ways = m.n_panels > m.grain ? threads : 1;
    m.turns = ceil_div(m.n_panels, m.grain * m.ways);
    if (group) parallel_for(n, ceil_div(MIN_SHARE, 4 * cols), quantize_row, &m);
    parallel_for(m.ways * m.turns, 1, matmul_stretch, &m);
    for (const Product *p = jobs; p < rest; p++)
        for (size_t t = 0; p->w->bias && t < n; t++)
            add_rows(p->out + t * p->w->rows, p->w->bias, p->w->rows);
    if (rest < end) matmul(act, rest, (int)(end - rest), x, n);
}

// ================================================================================================
// 9  Forward
//
// The whole model is the list of steps in forward(). A layer adds twice to the residual stream x:
//   x += wo attention(wq norm(x), wk norm(x), wv norm(x))
//   x += w2 (silu(w1 norm(x)) * w3 norm(x))
// The first is where tokens see each other; in the second each is alone with what it has. Since
// both only add, what an early layer found stays to be read by all later ones. Models differ in the
// norms they have, in biases, scales and the activation: those are fields of Config, or weights
// that are there or not, and each stands at the one place below where it acts.
//
// matmul(act, products, how many, x, n) is section 8's: out [n][rows] = x [n][cols] w^T + bias for
// matrices that share x. A chunk of a prompt and a single token take the same path; arrays have a
// row for each token of the chunk. Logits are computed only for the tokens that need them, by
// classify(): for a prompt that is its last one, the others being known.

// A running model, and room for one chunk of tokens.
typedef struct {
    const Model *model;
    size_t chunk;     // tokens at most in one forward pass
    Attention attn;
    float *x, *xb;    // [chunk][dim]: the residual stream, and its normed copy
    float *y;         // [chunk][dim]: what joins the stream
    float *gate, *up; // [chunk][hidden_dim]
    Quantized act;    // room for activations in int8; none: exact
} State;

// Fills in what neither the checkpoint nor the command line gave. ctx: the context asked for.
static void rope_resolve(RopeConfig *r, int train_ctx, int64_t ctx)
{
    if (!r->orig_ctx) r->orig_ctx = train_ctx;
    if (!r->temp_ctx) r->temp_ctx = r->orig_ctx;
    if (!(r->factor > 0))
        r->factor = r->method == ROPE_DYNAMIC ? 1 : fmax(1, (double)ctx / r->orig_ctx);
    if (!(r->beta_fast > 0)) r->beta_fast = 32;
    if (!(r->beta_slow > 0)) r->beta_slow = 1;
    if (!(r->low_freq_factor > 0)) r->low_freq_factor = 1;
    if (!(r->high_freq_factor > 0)) r->high_freq_factor = 4;
    if (r->sinks) r->reach = r->window;
}

// The number that stands in a line of this form, or SIZE_MAX if there is none.
static size_t read_number(const char *path, const char *form)
{
    size_t n = SIZE_MAX;
    char line[128];
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, form, &n) == 1) break;
    if (f) fclose(f);
    return n;
}

// Bytes that can be had without swapping: the kernel's estimate or, if there is none, all of the
// memory; but no more than a container may use, which is in one file or the other, by the version
// of its control groups.
static size_t available_memory(void)
{
    size_t bytes = mul_size(read_number("/proc/meminfo", "MemAvailable: %zu"), 1024);
    if (bytes == SIZE_MAX) bytes = mul_size(sysconf(_SC_PHYS_PAGES), sysconf(_SC_PAGESIZE));
    bytes = min_size(bytes, read_number("/sys/fs/cgroup/memory.max", "%zu"));
    return min_size(bytes, read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", "%zu"));
}

// A state for texts of max_seq_len tokens, read in chunks. exact: nothing is rounded to int8 or
// half precision. Room is reserved rather than allocated, so that only what is used costs memory.
static void state_init(State *s, const Model *m, int64_t max_seq_len, size_t chunk, int kv_type,
                       int exact)
{
    const Config *c = &m->config;
    size_t dim = c->dim, hidden = c->hidden_dim, q = q_dim(c), kv = kv_dim(c);
    *s = (State){.model = m, .chunk = chunk, .attn.config = *c};
    Attention *a = &s->attn;
    RopeConfig *rope = &a->config.rope, *local = &a->config.local;
    // The cache holds no more than the global window and its sinks: a local layer can see no
    // further.
    if (!local->window) local->sinks = rope->sinks;
    if (rope->window && (!local->window || local->window > rope->window))
        local->window = rope->window;
    rope_resolve(rope, c->train_ctx, max_seq_len);
    rope_resolve(local, c->train_ctx, max_seq_len);
    cache_layout(&a->cache, &a->config, max_seq_len, chunk, exact ? KV_F32 : kv_type);
    size_t have = available_memory();
    if (a->cache.bytes > have)
        die(EXIT_DATA, "-c", "the KV cache does not fit (got %.1f GB available, want %.1f GB for "
            "%lld tokens); use a smaller -c or --window", (double)have / 1e9,
            (double)a->cache.bytes / 1e9, (long long)max_seq_len);
    a->cache.tiles = reserve(a->cache.bytes);
    for (int kind = 0; kind < (c->global_every || c->nope_every ? 2 : 1); kind++) {
        Positions *p = &a->positions[kind];
        p->rope = kind ? *local : *rope;
        p->angles = xcalloc(chunk, sizeof *p->angles);
        for (int map = 0; map < MAPS; map++) p->phase[map] = reserve(chunk * c->head_dim * 4);
    }
    size_t parts = max_size(chunk, rope->window ? 1 : ceil_div(max_seq_len, SEGMENT)) * c->n_heads;
    a->total = reserve(mul_size(parts, a->cache.v_dim * 4));
    a->sums = reserve(mul_size(parts, sizeof *a->sums));
    float **rooms[] = {&s->x, &s->xb, &a->q, &a->k, &a->v, &s->gate, &s->up, &s->y};
    size_t sizes[] = {dim, dim, q, kv, kv, hidden, hidden, dim};
    for (size_t i = 0; i < COUNT(rooms); i++)
        *rooms[i] = reserve(mul_size(mul_size(chunk, sizes[i]), 4));
    if (exact) return;
    size_t widest = mul_size(chunk + Q8_TOKENS - 1, max_size(dim, max_size(q, hidden)));
    s->act.q = reserve(widest);
    s->act.scale = reserve(mul_size(widest, 4));
    s->act.minus_sum = reserve(mul_size(widest, 4));
}

// Rows to be normed, by several threads.
typedef struct {
    float *out;
    const float *in;
    Norm norm;
    const Config *config;
} NormJob;

// out[dim] = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias. LayerNorm centres x so;
// for RMSNorm, which most models have, the mean is taken to be 0 and there is no bias. Either way
// the next matrix meets numbers of about the same size, however much was added to x by then.
static void norm_row(void *arg, size_t row)
{
    const NormJob *j = arg;
    size_t dim = j->norm.dim;
    const float *x = j->in + row * dim;
    float *out = j->out + row * dim;
    double sum = 0;
    for (size_t i = 0; j->config->layer_norm && i < dim; i++) sum += x[i];
    float mean = (float)(sum / (double)dim);
    for (size_t i = 0; i < dim; i++) out[i] = x[i] - mean;
    float scale = 1 / sqrtf(dot(out, out, dim) / (float)dim + (float)j->config->norm_eps);
    for (size_t i = 0; i < dim; i++) out[i] = out[i] * scale * j->norm.weight[i];
    if (j->norm.bias) add_rows(out, j->norm.bias, dim);
}

// out[n] = the numbers of in, normed row by row, or as they are if the model does not have this
// norm; out may be in.
static void norm(const State *s, float *out, const float *in, Norm norm, size_t n)
{
    NormJob job = {out, in, norm, &s->attn.config};
    if (norm.weight) parallel_for(n / norm.dim, ceil_div(MIN_SHARE / 8, norm.dim), norm_row, &job);
    else if (out != in) memcpy(out, in, n * sizeof *out);
}

// x = the embeddings of the chunk's tokens. Some encodings add a vector for each position: place 1
// of section 4.
static void embed_tokens(State *s, const int *tokens)
{
    const Attention *a = &s->attn;
    const Config *c = &a->config;
    const Tensor *table = &s->model->tok_emb;
    float scale = (float)c->emb_scale;
    for (size_t t = 0; t < a->n; t++) {
        float *x = s->x + t * table->cols;
        table->type->unpack(table, (size_t)tokens[t], x);
        for (size_t i = 0; scale > 0 && i < table->cols; i++) x[i] *= scale;
        double p = key_position(&c->rope, 0, a->pos + (int64_t)t) / position_stretch(c);
        if (encodings[c->encoding].add) encodings[c->encoding].add(c, p, x);
    }
    norm(s, s->x, s->x, s->model->emb_norm, a->n * table->cols);
}

// q, k and v of the chunk from xb, k and v into the cache: the three products share their input, so
// they are one job for the threads. q and k of some models are normed, each head for itself (or all
// heads together), which keeps scores small whatever the weights. A single token's k and v are
// stored by one thread: they are soon written.
static void project(State *s, const Layer *l)
{
    Attention *a = &s->attn;
    size_t n = a->n, n_kv = a->config.n_kv_heads;
    matmul(&s->act, (Product[]){{&l->wq, a->q}, {&l->wk, a->k}, {&l->wv, a->v}}, 3, s->xb, n);
    norm(s, a->q, a->q, l->q_norm, n * l->wq.rows);
    norm(s, a->k, a->k, l->k_norm, n * l->wk.rows);
    parallel_for(n_kv, n > 1 ? 1 : n_kv, store_kv, a);
}

// gate = act(gate) * up in row t of the chunk: the gated unit of the feed-forward net; act(gate)
// alone if the model has no gate. act is silu(x) = x / (1 + e^-x), or gelu(x) =
// x / (1 + e^-z) with z = sqrt(8/pi) (x + 0.044715 x^3), its approximation by tanh:
// (1 + tanh y) / 2 = 1 / (1 + e^-2y).
static void gate_row(void *arg, size_t t)
{
    const State *s = arg;
    const Config *c = &s->attn.config;
    for (size_t i = t * c->hidden_dim, n = i + c->hidden_dim; i < n; i += LANES) {
        vf x = vload_part(s->gate + i, n - i), z = x;
        if (c->gelu) z = vset(1.59576912f) * (x + vset(0.044715f) * x * x * x);
        vf g = x / (vset(1) + vexp(-z));
        vstore_part(s->gate + i, c->no_gate ? g : g * vload_part(s->up + i, n - i), n - i);
    }
}

// y = what the feed-forward net makes of xb: w2 (act(w1 xb) * w3 xb), or w2 act(w1 xb).
static void feed_forward(State *s, const Layer *l)
{
    size_t n = s->attn.n, hidden = s->attn.config.hidden_dim;
    int gated = !s->attn.config.no_gate;
    matmul(&s->act, (Product[]){{&l->w1, s->gate}, {&l->w3, s->up}}, 1 + gated, s->xb, n);
    parallel_for(n, ceil_div(MIN_SHARE / 8, hidden), gate_row, s);
    matmul(&s->act, &(Product){&l->w2, s->y}, 1, s->gate, n);
}

// Row t of x += y. branch_scale, below 1, lets deep models add so much the less.
static void join_row(void *arg, size_t t)
{
    const State *s = arg;
    const Config *c = &s->attn.config;
    float scale = c->branch_scale > 0 ? (float)c->branch_scale : 1;
    float *x = s->x + t * c->dim, *y = s->y + t * c->dim;
    for (int i = 0; i < c->dim; i++) x[i] += scale * y[i];
}

// x += y: what a branch made of the residual stream joins it, normed first in some models.
static void join_stream(State *s, Norm post_norm)
{
    size_t n = s->attn.n, dim = s->attn.config.dim;
    norm(s, s->y, s->y, post_norm, n * dim);
    parallel_for(n, ceil_div(MIN_SHARE / 8, dim), join_row, s);
}

// Runs tokens[n <= chunk] at positions pos .. pos + n - 1, all of whose predecessors are in the
// cache. Afterwards xb [n][dim] holds the final normed states, ready for classify(). Positions
// enter in embed_tokens() (place 1) and in attention() (places 2 and 3, the mask and the window),
// which finds the angles that plan_positions() has prepared for all layers; and nowhere else.
static void forward(State *s, const int *tokens, size_t n, int64_t pos)
{
    const Model *m = s->model;
    Attention *a = &s->attn;
    const Config *c = &a->config;
    size_t size = n * c->dim;
    a->pos = pos;
    a->n = n;
    embed_tokens(s, tokens);
    for (int kind = 0; kind < 2; kind++)
        if (a->positions[kind].angles) plan_positions(a, &a->positions[kind]);
    for (a->layer = 0; a->layer < c->n_layers; a->layer++) {
        const Layer *l = &m->layers[a->layer];
        a->p = &a->positions[l->local];
        norm(s, s->xb, s->x, l->att_norm, size);
        project(s, l);
        attention(a);
        matmul(&s->act, &(Product){&l->wo, s->y}, 1, a->q, n);
        if (!c->parallel) join_stream(s, l->post_att_norm);

        norm(s, s->xb, s->x, l->ffn_norm, size);
        if (c->parallel) join_stream(s, l->post_att_norm); // now that the net has read x without it
        feed_forward(s, l);
        join_stream(s, l->post_ffn_norm);
    }
    norm(s, s->xb, s->x, m->final_norm, size);
}

// logits[count][vocab_size] for tokens [first, first + count) of the last chunk: how well each row
// of the classifier, one a token of the vocabulary, agrees with the final state. Many models take
// the embedding table itself for it, since a token is likely where its own vector would fit.
static void classify(State *s, size_t first, size_t count, float *logits)
{
    const Config *c = &s->attn.config;
    size_t n = count * s->model->classifier.rows;
    float scale = (float)c->logit_scale;
    matmul(&s->act, &(Product){&s->model->classifier, logits}, 1, s->xb + first * c->dim, count);
    for (size_t i = 0; scale > 0 && i < n; i++) logits[i] /= scale;
    soft_cap(logits, n, (float)c->logit_cap);
}

// ================================================================================================
// 10  Checkpoints
//
// Two kinds of files hold models: llama2.c's, and GGUF (section 11). Both are the same two things
// in different wrapping, numbers and tensors, and both come to the same two tables. config_fields
// has an entry for each number of Config: what the files and the user call it, and which values it
// may have. list_weights() has one for each tensor: its name, its shape, which follows from those
// numbers, and its place in the model. Behind the two doors nobody knows which kind of file it was.
//
// Nothing in a file is trusted: every number is held against its range, and every tensor against
// its shape and the end of the file, before it is used. The file itself is mapped, not read: its
// weights are computed with where they lie, and a model that is larger than the memory still runs.
//
// llama2.c's files, little-endian:
//   version 0   28 bytes: int32 dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size,
//               max_seq_len; a negative vocab_size says that a classifier of its own follows.
//               Then floats, in the order of load_checkpoint(), each over all layers.
//   version 1   256 bytes: magic 0x616b3432, version, the seven int32 above, u8 shared classifier.
//               Then floats, in its other order.
//   version 2   as 1, with int32 group at byte 37; the norms in f32, the matrices of each layer and
//               of the model as planar Q8_0: int8 values, then f32 scales.
// Our own models carry an extension block in the header's padding (offsets below). A reader that
// does not know the block would compute some of them wrongly; those have version 101 or 102
// instead of 1 or 2, the layout being the same. What the encoding learned comes last, in f32:
//   learned     [rows][dim]               kerple   r1 [n_heads], r2 [n_heads]
//   t5          [rows][n_heads]           fire     c, T, w1 [32], b1 [32], w2 [n_heads][32],
//   shaw        [rows + 1][head_dim]               b2 [n_heads]
// and behind it longrope's short and long factors, [head_dim / 2] each.

// Many tables here have entries that begin with a name: methods, encodings, architectures, types of
// tensors. What is done with all of them is to find an entry, and to list the names for somebody
// who wrote another; so that no table needs functions of its own, they see it as an array of
// unknown entries of `size` bytes.

// An array whose entries begin with their names.
typedef struct {
    const char *at;
    size_t n, size;
} Names;
#define NAMES(array) {(const char *)(array), COUNT(array), sizeof *(array)}

static const char *entry_name(Names t, size_t i) { return *(char *const *)(t.at + i * t.size); }

// Which entry has this name, or -1.
static int find_name(Names t, const char *name)
{
    for (size_t i = 0; i < t.n; i++)
        if (!strcmp(entry_name(t, i), name)) return (int)i;
    return -1;
}
#define FIND_NAME(array, name) find_name((Names)NAMES(array), name)

// "a, b, c", for messages.
static const char *list_names(Names t)
{
    static char list[512];
    *list = 0;
    for (size_t i = 0; i < t.n; i++) strcat(strcat(list, i ? ", " : ""), entry_name(t, i));
    return list;
}
#define LIST_NAMES(array) list_names((Names)NAMES(array))

// Numbers in a file, single ones as well as the lists that come with a model (Values), are of the
// types that GGUF has: 8-bit to 64-bit integers, floats, booleans, strings. Writers of files do not
// agree on which to take for what, so nobody here asks: a number is read as a double, whatever it
// is, which is exact up to 2^53, and wherever it lies: a file owes nobody an alignment. These
// are a value's bytes and what it is, by GGUF's number of its type: u unsigned, i signed, f float,
// s string. A boolean is a number, 0 or 1.
static const uint8_t value_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
static const char value_kinds[] = "uiuiuifus-uif";
enum { G_U8 = 0, G_I32 = 5, G_F32 = 6, G_STRING = 8, G_ARRAY = 9 };

// Number i of a list, whatever they are. An integer of few bytes fills the low ones of v; shifting
// it up and down again spreads its sign.
static double number_at(Values list, size_t i)
{
    union { uint64_t u; float f; double d; } v = {0};
    size_t bytes = value_bytes[list.type], unused = 64 - 8 * bytes;
    memcpy(&v, list.at + i * bytes, bytes);
    if (value_kinds[list.type] == 'u') return (double)v.u;
    if (value_kinds[list.type] == 'f') return bytes == 4 ? v.f : v.d;
    return (double)((int64_t)(v.u << unused) >> unused);
}

static int32_t read_i32(const uint8_t *p) { return (int)number_at((Values){p, 1, G_I32}, 0); }

// The next of a list of strings, *len bytes without a zero behind them; the list begins behind it
// afterwards.
static const char *next_string(Values *list, size_t *len)
{
    const char *s = (const char *)list->at + 8;
    memcpy(len, list->at, 8);
    list->at += 8 + *len;
    return s;
}

// What llama2.c's files and our extension block begin with, and how long a header is.
enum { MAGIC = 0x616b3432, EXT_MAGIC = 0x31545845, HEADER = 256 }; // "24ka", "EXT1"

// Ends the program, since the model's file is not as it has to be.
#define REFUSE(m, ...) die(EXIT_DATA, (m)->path, __VA_ARGS__)

// --- files --------------------------------------------------------------------------------------

// A mapped file that shrinks, or whose disk fails, shows when a page of it is read: by arithmetic,
// never in the middle of something that die() uses.
static const char *mapped_path;

static void on_lost(int sig)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    (void)sig;
    while (atomic_flag_test_and_set(&said)) pause(); // another thread says it
    die(EXIT_DATA, mapped_path, "shrank while in use, or cannot be read");
}

// Maps m's file. Pages come into memory as they are touched: the first token touches all of them,
// in order and by all threads, which is as fast as asking for them ahead.
static void map_file(Model *m)
{
    struct stat st;
    int fd = open(m->path, O_RDONLY | O_NONBLOCK); // a pipe is refused, not waited for
    if (fd < 0 || fstat(fd, &st)) REFUSE(m, "cannot open (%s)", strerror(errno));
    if (!S_ISREG(st.st_mode)) REFUSE(m, "not a file that can be mapped");
    if (!st.st_size) REFUSE(m, "the file is empty");
    m->size = (size_t)st.st_size;
    m->file = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (m->file == MAP_FAILED) REFUSE(m, "cannot map (%s)", strerror(errno));
    close(fd);
    if (!mapped_path) mapped_path = m->path; // of several files the one that the user named
    signal(SIGBUS, on_lost);
}

// --- numbers ------------------------------------------------------------------------------------
//
// A number of Config comes from a header, from a GGUF key or from an option of the command line:
// one entry says what it is called in each, and what it may be. Options that are no numbers of
// Config have entries of the same kind in tables of their own (section 15).

// The command line is read before there is a model, so what it says about Config goes to a Config
// of its own, and is laid over the model's later. Where it says nothing there is 0, or -1 where 0
// has a meaning: --window 0 takes a model's window away, which is not the same as to say nothing.
#define UNASKED {.rope = {.method = -1, .window = -1, .sinks = -1, .temp = -1}}
static const Config unasked = UNASKED;
static Config asked = UNASKED;

// A number or a text that somebody sets: the user by the option's name, a header, a GGUF key, or
// several of these. Entries without a name are of two kinds: what only files say, and the second
// number of an option such as --string S:W, whose entry is the one before.
typedef struct {
    const char *name;  // NULL: no option
    char letter;       // 0: none
    const char *arg;   // "": takes no value, and sets 1; with a colon: the next entry has the rest
    const char *help;  // NULL: help lists the names
    enum { N_INT, N_DOUBLE, N_WHOLE, N_TEXT } kind; // WHOLE: a double, but no fraction
    void *to;          // of a field: where it is in `asked`
    double lo, hi;
    Names names;       // if any, the value is the number of one of them
    const char *field; // its name in Config; NULL: no file says it
    int at;            // in a header of version 1, the extension block being at 64; 0: nowhere
    const char *key;   // in GGUF, behind the architecture's name; NULL: nowhere
    int needed;        // a GGUF file without this key is refused
    Distance distance; // the option chooses this method
} Option;

// What stands behind an option's words. The kind is that of the variable.
#define TYPE_OF(x) _Generic(x, double: N_DOUBLE, const char *: N_TEXT, default: N_INT)
#define NUMBER(v, low, high) .kind = TYPE_OF(v), .to = &v, .lo = low, .hi = high
#define WHOLE(v, low, high) .kind = N_WHOLE, .to = &v, .lo = low, .hi = high
#define FLAG(v) NUMBER(v, 0, 1)
#define TEXT(v) NUMBER(v, 0, 0)
#define NAME(v, table) NUMBER(v, 0, 0), .names = NAMES(table)
#define FIELD(m, low, high, offset, in_gguf) \
    NUMBER(asked.m, low, high), .field = #m, .at = offset, .key = in_gguf

// The numbers of Config. Rows are read from the first to the last, so of two keys for one number
// the better comes last. A range is what the arithmetic can stand, not what is wise: a limit that a
// header could pass would be memory read beyond its end, or a loop without one.
#define REACH NUMBER(asked.rope.reach, 1, 1 << 28)
#define OTHER WHOLE(asked.rope.other, 1, 1 << 28)
static const Option config_fields[] = {
    // The shape.
    {FIELD(dim, 1, 1 << 24, 8, ".embedding_length"), .needed = 1},
    {FIELD(hidden_dim, 1, 1 << 24, 12, ".feed_forward_length"), .needed = 1},
    {FIELD(n_layers, 1, 4096, 16, ".block_count"), .needed = 1},
    {FIELD(n_heads, 1, 1 << 16, 20, ".attention.head_count"), .needed = 1},
    {FIELD(n_kv_heads, 1, 1 << 16, 24, ".attention.head_count_kv")},
    {FIELD(head_dim, 2, 1 << 14, 0, ".attention.key_length")},
    {FIELD(vocab_size, -(1 << 24), 1 << 24, 28, NULL)},
    {FIELD(train_ctx, 1, 1 << 28, 32, ".context_length"), .needed = 1},
    // What the extension block adds, and GGUF's names for the same.
    {FIELD(encoding, 0, N_ENCODINGS - 1, 68, NULL)},
    {FIELD(train_ctx, 1, 1 << 28, 72, NULL)},
    {FIELD(norm_eps, 1e-12, 1, 80, ".attention.layer_norm_rms_epsilon")},
    {FIELD(norm_eps, 1e-12, 1, 0, ".attention.layer_norm_epsilon")},
    {FIELD(rows, 0, 1 << 24, 128, NULL)},
    {FIELD(max_distance, 0, 1 << 28, 132, NULL)},
    // What only GGUF's architectures have.
    {FIELD(local.theta, 1.5, 1e12, 0, ".rope.freq_base_swa")},
    {FIELD(n_rot, 2, 1 << 14, 0, ".rope.dimension_count")},
    {FIELD(parallel, 0, 1, 0, ".use_parallel_residual")},
    {FIELD(emb_scale, 1e-6, 1e6, 0, ".embedding_scale")},
    {FIELD(branch_scale, 1e-6, 1e6, 0, ".residual_scale")},
    {FIELD(logit_scale, 1e-6, 1e6, 0, ".logit_scale")},
    {FIELD(score_scale, 1e-6, 1e6, 0, ".attention.scale")},
    {FIELD(rope.attn_log, 0, 100, 0, ".rope.scaling.yarn_log_multiplier")},
    {FIELD(score_cap, 1e-3, 1e6, 0, ".attn_logit_softcapping")},
    {FIELD(logit_cap, 1e-3, 1e6, 0, ".final_logit_softcapping")},
    // Positions past the trained length, of which the user has a say.
    {FIELD(rope.factor, 1, 1e6, 0, ".rope.scale_linear")}, // its name in old files
    {"rope-scaling", 0, "METHOD", NULL,
     FIELD(rope.method, 0, N_ROPE_METHODS - 1, 84, NULL), .names = NAMES(rope_methods)},
    {"rope-factor", 0, "S", "(-c / L)", FIELD(rope.factor, 1, 1e6, 88, ".rope.scaling.factor")},
    {"rope-orig-ctx", 0, "L", "(as trained)",
     FIELD(rope.orig_ctx, 1, 1 << 28, 92, ".rope.scaling.original_context_length")},
    {"rope-theta", 0, "BASE", "(as trained)", FIELD(rope.theta, 1.5, 1e12, 76, ".rope.freq_base")},
    {"rope-attn-factor", 0, "A", "(the method's)",
     FIELD(rope.attn_factor, 1e-3, 1e3, 96, ".rope.scaling.attn_factor")},
    {"beta-fast", 0, "TURNS", "yarn: kept above (32)",
     FIELD(rope.beta_fast, 1e-3, 1e6, 100, ".rope.scaling.yarn_beta_fast")},
    {"beta-slow", 0, "TURNS", "interpolated below (1)",
     FIELD(rope.beta_slow, 1e-3, 1e6, 104, ".rope.scaling.yarn_beta_slow")},
    {"low-freq-factor", 0, "N", "llama3 (1)", FIELD(rope.low_freq_factor, 1e-3, 1e6, 108, NULL)},
    {"high-freq-factor", 0, "N", "llama3 (4)", FIELD(rope.high_freq_factor, 1e-3, 1e6, 112, NULL)},
    {"rope-fraction", 0, "P", "the share of pairs to turn", FIELD(rope.fraction, 1e-6, 1, 0, NULL)},
    // Which keys a query sees, and how sharply.
    {"window", 0, "W", "attend to the last W tokens only",
     FIELD(rope.window, 0, 1 << 28, 116, ".attention.sliding_window")},
    {"sinks", 0, "S", "and to the first S (of --window)", FIELD(rope.sinks, 0, 1 << 20, 120, NULL)},
    {"logn", 0, "", "scale queries past L by ln(n) / ln(L)", FIELD(rope.logn, 0, 1, 124, NULL)},
    {"attn-temp", 0, "B:L0", "scale queries by 1 + B ln(1 + floor(n / L0))",
     FIELD(rope.temp, 0, 1e3, 0, ".attention.temperature_scale")},
    {FIELD(rope.temp_ctx, 1, 1 << 28, 0, NULL)},
    // The distances that it sees: a method, with its one or two numbers as its authors write them.
    {"self-extend", 0, "G:W", "groups of G past distance W", OTHER, .distance = DIST_SELF_EXTEND},
    {REACH},
    {"rerope", 0, "W", "no distance above W", REACH, .distance = DIST_REROPE},
    {"leaky-rerope", 0, "W:K", "past W, distances / K", REACH, .distance = DIST_LEAKY},
    {NUMBER(asked.rope.other, 1, 1 << 28)},
    {"string", 0, "S:W", "from S on, distances - S + W", REACH, .distance = DIST_STRING},
    {OTHER},
    {"dual-chunk", 0, "C:W", "chunks of C, W of it near", REACH, .distance = DIST_DUAL_CHUNK},
    {OTHER},
    // Which method that is has no option to itself: set_option() sets it with theirs.
    {NUMBER(asked.rope.distance, 0, DIST_DUAL_CHUNK)},
};

// How far into a Config a field is, in the model's as in `asked`.
static size_t field_at(const Option *f) { return (size_t)((char *)f->to - (char *)&asked); }

static void store_value(const Option *f, void *to, double v)
{
    if (f->kind == N_INT) *(int *)to = (int)v;
    else *(double *)to = v;
}

// A number of the file, if it is in its range; the dot before a key is for the architecture's name.
// The comparison is written so that NaN is in no range.
static double check_range(const Model *m, const char *name, double v, double lo, double hi)
{
    if (!(v >= lo && v <= hi))
        REFUSE(m, "%s (got %.10g, want %.10g to %.10g)", name + (*name == '.'), v, lo, hi);
    return v;
}

// Ranges are for each number by itself. This holds them against each other: heads share what they
// divide, pairs of dimensions turn, and a table has the rows that its encoding can use. It also
// fills in what nobody said, as it is in most models or follows from the others, and makes room for
// the layers.
static void complete_config(Model *m)
{
    Config *c = &m->config;
    if (!(c->norm_eps > 0)) c->norm_eps = 1e-5;
    if (!(c->rope.theta > 0)) c->rope.theta = 10000;
    // Heads: queries share keys in groups of the same size, and pairs of dimensions turn.
    if (!c->n_kv_heads) c->n_kv_heads = c->n_heads;
    if (c->n_heads % c->n_kv_heads)
        REFUSE(m, "n_heads is no multiple of n_kv_heads (got %d, %d)", c->n_heads, c->n_kv_heads);
    if (!c->head_dim && c->dim % c->n_heads)
        REFUSE(m, "dim is no multiple of n_heads (got %d, %d)", c->dim, c->n_heads);
    if (!c->head_dim) c->head_dim = c->dim / c->n_heads;
    if (c->head_dim % 2) REFUSE(m, "odd head size (got %d, want an even one)", c->head_dim);
    if (c->encoding == ENC_SHAW) c->rope_split = 1; // q keeps its order, that of the table
    if (c->n_rot % 2 || c->n_rot > c->head_dim)
        REFUSE(m, "of a head's %d dimensions %d turn (want an even number, and no more)",
               c->head_dim, c->n_rot);
    // What ranges leave open, and what the encoding needs.
    if (c->vocab_size < 1) REFUSE(m, "vocab_size (got %d)", c->vocab_size);
    if (c->encoding == ENC_LEARNED && !c->rows) REFUSE(m, "a table of no positions");
    if (c->encoding == ENC_T5 && (c->rows < 2 || c->rows > 1 << 12 || c->rows % 2 ||
                                  c->max_distance <= c->rows / 2))
        REFUSE(m, "t5's %d buckets or max_distance %d", c->rows, c->max_distance);
    m->layers = xcalloc(c->n_layers, sizeof *m->layers);
}

// Refuses positions that mean nothing, together or for the model's encoding. It looks at what a
// file says (path is its name), and again when options were laid over that (path NULL): the
// option that a message names is then the cause.
static void check_rope(const Config *c, const char *path)
{
    const RopeConfig *r = &c->rope;
    const char *encoding = encodings[c->encoding].name, *method = rope_methods[r->method].name;
    // Defaults are filled in before they are compared, in a copy: --beta-slow 33 is wrong only
    // because --beta-fast is 32 where nobody says otherwise.
    RopeConfig full = *r;
    rope_resolve(&full, c->train_ctx, c->train_ctx);
#define WRONG(option, ...) die(path ? EXIT_DATA : EXIT_USAGE, path ? path : option, __VA_ARGS__)
    if (r->method == ROPE_LONGROPE && !(r->long_factors && r->short_factors))
        WRONG("--rope-scaling", "longrope needs --long-factors and --short-factors");
    if (r->sinks && (!r->window || r->distance))
        WRONG("--sinks", "sinks need a window, and no other distance method");
    if (full.beta_fast < full.beta_slow)
        WRONG("--beta-fast", "below --beta-slow (got %g, %g)", full.beta_fast, full.beta_slow);
    if (full.high_freq_factor < full.low_freq_factor)
        WRONG("--high-freq-factor", "below --low-freq-factor");
    if (is_rotary(c)) return;
    if (r->method && !(r->method == ROPE_LINEAR && encodings[c->encoding].linear))
        WRONG("--rope-scaling", "%s is not defined for encoding %s", method, encoding);
    if (r->distance && !encodings[c->encoding].bias)
        WRONG("distance method", "the model knows no distances (its encoding is %s)", encoding);
}

// --- weights ------------------------------------------------------------------------------------

// A tensor that a model may have, [rows][cols], and its place in the model; rows 0: this one has
// none. A vector is a column, [n][1], so that the bias of a matrix has the matrix's rows. Some
// files keep tensors that are multiplied with the same input as one, so that one product does for
// them all: then this one is `fused`, the rows from `first` on out of `all`. Cutting them apart
// again costs nothing, since rows lie one behind the other.
typedef struct {
    enum { MATRIX, TABLE, NORM, LIST } kind; // Tensor, Tensor of which rows are read, Norm, floats
    void *to;
    const char *name; // in GGUF; a layer's stands behind "blk.N."
    size_t rows, cols;
    const char *fused;
    size_t first, all;
} Weight;

// Every tensor, with layer l's first and the model's behind them. Here is what shapes follow from:
// a model of layers that normalize behind their branches, not before, has no attn_norm, one without
// a gate no ffn_gate, and what the encoding learned has a shape for each encoding. `angles` are
// cosines and sines that version 0 of llama2.c's files has, and which nobody reads.
enum { N_OF_LAYER = 13, N_WEIGHTS = N_OF_LAYER + 9 };
static void list_weights(Model *m, int l, Weight list[N_WEIGHTS])
{
    Config *c = &m->config;
    RopeConfig *r = &c->rope;
    Layer *y = &m->layers[l];
    size_t dim = c->dim, hidden = c->hidden_dim, q = q_dim(c), kv = kv_dim(c), d = c->head_dim;
    size_t pre = c->no_pre_norm ? 0 : dim, post = c->post_norm ? dim : 0, qkv = q + 2 * kv;
    size_t q_norm = ((size_t[]){0, d, q})[c->qk_norm], k_norm = ((size_t[]){0, d, kv})[c->qk_norm];
    size_t gate = c->no_gate ? 0 : hidden, vocab = c->vocab_size, heads = c->n_heads;
    size_t pairs = rotary_dims(c) / 2, factors = r->method == ROPE_LONGROPE ? pairs : 0;
    // Two rows for kerple's r1 and r2; fire's net in one piece, as the head of the section lists
    // it.
    const size_t table[N_ENCODINGS][2] = { // what the encoding learned
        [ENC_LEARNED] = {c->rows, dim}, [ENC_T5] = {c->rows, heads}, [ENC_KERPLE] = {2, heads},
        [ENC_FIRE] = {2 + 2 * FIRE_HIDDEN + heads * (FIRE_HIDDEN + 1), 1},
        [ENC_SHAW] = {c->rows + 1, d},
    };
    const Weight all[N_WEIGHTS] = {
        // Attention.
        {NORM, &y->att_norm, "attn_norm", pre, 1, "", 0, 0},
        {MATRIX, &y->wq, "attn_q", q, dim, "attn_qkv", 0, qkv},
        {MATRIX, &y->wk, "attn_k", kv, dim, "attn_qkv", q, qkv},
        {MATRIX, &y->wv, "attn_v", kv, dim, "attn_qkv", q + kv, qkv},
        {NORM, &y->q_norm, "attn_q_norm", q_norm, 1, "", 0, 0},
        {NORM, &y->k_norm, "attn_k_norm", k_norm, 1, "", 0, 0},
        {MATRIX, &y->wo, "attn_output", dim, q, "", 0, 0},
        {NORM, &y->post_att_norm, "post_attention_norm", post, 1, "", 0, 0},
        // The feed-forward net: w1 is the gate, w3 goes up, w2 down; without a gate w1 goes up.
        {NORM, &y->ffn_norm, "ffn_norm", pre, 1, "", 0, 0},
        {MATRIX, &y->w1, "ffn_gate", gate, dim, "ffn_up", 0, gate + hidden},
        {MATRIX, gate ? &y->w3 : &y->w1, "ffn_up", hidden, dim, "ffn_up", gate, gate + hidden},
        {MATRIX, &y->w2, "ffn_down", dim, hidden, "", 0, 0},
        {NORM, &y->post_ffn_norm, "post_ffw_norm", post, 1, "", 0, 0},
        // Once in a model: its two ends, and what it knows about positions.
        {TABLE, &m->tok_emb, "token_embd", vocab, dim, "", 0, 0},
        {NORM, &m->emb_norm, "token_embd_norm", dim, 1, "", 0, 0},
        {NORM, &m->final_norm, "output_norm", dim, 1, "", 0, 0},
        {MATRIX, &m->classifier, "output", vocab, dim, "", 0, 0},
        {LIST, &c->table, "position_embd", table[c->encoding][0], table[c->encoding][1], "", 0, 0},
        {LIST, &r->own_factors, "rope_freqs", pairs, 1, "", 0, 0},
        {LIST, &r->short_factors, "rope_factors_short", factors, 1, "", 0, 0},
        {LIST, &r->long_factors, "rope_factors_long", factors, 1, "", 0, 0},
        {LIST, NULL, "angles", c->train_ctx, d, "", 0, 0},
    };
    memcpy(list, all, sizeof all);
}

// Vectors and tables are floats in memory: those in the file if they are f32, else a copy, unpacked
// once, since other types are for storing, not for computing with; NULL: there is no tensor.
static const float *to_floats(Tensor t)
{
    if (!t.data || t.type == &tensor_types[T_F32]) return (const float *)t.data;
    float *floats = xcalloc(t.rows * t.cols, 4);
    for (size_t r = 0; r < t.rows; r++) t.type->unpack(&t, r, floats + r * t.cols);
    return floats;
}

// Puts the tensor in w's place. The embeddings are the classifier, too, unless one of its own comes
// behind them: the score of a token is then how much the last state is like the token's own vector.
// Each value of a list is held against a range, so that an infinite one is found that would not
// show in the logits. Factors are positive, and so are kerple's numbers and fire's first two.
static void put_weight(Model *m, const Weight *w, Tensor t)
{
    if (!t.data || !w->to) return;
    if (w->kind == TABLE) m->classifier = t;
    if (w->kind <= TABLE) *(Tensor *)w->to = t;
    else if (w->kind == NORM) *(Norm *)w->to = (Norm){to_floats(t), t.bias, t.rows};
    else {
        const float *list = *(const float **)w->to = to_floats(t);
        Encoding e = w->to == &m->config.table ? m->config.encoding : ENC_ROPE;
        size_t positive = e == ENC_FIRE ? 2 : e == ENC_ROPE || e == ENC_KERPLE ? SIZE_MAX : 0;
        for (size_t i = 0; i < t.rows * t.cols; i++)
            check_range(m, w->name, list[i], i < positive ? 1e-6 : -1e9, 1e9);
    }
}

// --- llama2.c's files ---------------------------------------------------------------------------

// Config from the file's first bytes; returns the file's version. Without the magic number it is 0,
// which has none: whatever is no model looks like that, and is told by numbers out of their ranges.
static int read_header(Model *m)
{
    // The file's length comes before its numbers, the version before what depends on it. Without an
    // extension block there is no version 101 or 102.
    int has_magic = m->size >= 4 && read_i32(m->file) == MAGIC;
    size_t header = has_magic ? HEADER : 28;
    if (m->size < header)
        REFUSE(m, "cut off in the header (got %zu bytes, want %zu)", m->size, header);
    int version = has_magic ? read_i32(m->file + 4) : 0, v = version % 100;
    int extended = has_magic && read_i32(m->file + 64) == EXT_MAGIC;
    if (has_magic && ((v != 1 && v != 2) || version > (extended ? 102 : 2)))
        REFUSE(m, "unknown version (got %d, want 1, 2 or, extended, 101, 102)", version);
    // Version 0, which has neither magic number nor version, has its numbers 8 bytes earlier. In
    // the extension block a number of 0 was not given: the block grew with the methods, and older
    // files have zeros where newer ones say something.
    for (const Option *f = config_fields; f < config_fields + COUNT(config_fields); f++) {
        if (!f->at || (f->at >= 64 && !extended)) continue;
        const uint8_t *p = m->file + f->at - (v ? 0 : 8);
        double x = number_at((Values){p, 1, f->kind == N_INT ? G_I32 : G_F32}, 0);
        if (x == 0 && f->at >= 64) continue;
        store_value(f, (char *)&m->config + field_at(f), check_range(m, f->field, x, f->lo, f->hi));
    }
    if (!v) m->config.vocab_size = abs(m->config.vocab_size);
    complete_config(m);
    return version;
}

// Walks the file from its beginning to its end: it has no directory, only an order. A tensor of
// layers comes once, for all of them one behind the other. Nothing is used before the sizes of all
// are known to add up to the file's, but for checks of what lies in it. In version 2 matrices are
// planar Q8_0, all values and then all scales: whole groups, and scales at a multiple of 4, which
// floats need.
static void load_checkpoint(Model *m)
{
    static const char *const orders[2][16] = {
        {"token_embd", "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm",
         "ffn_gate", "ffn_down", "ffn_up", "output_norm", "angles", "output"},
        {"attn_norm", "ffn_norm", "output_norm", "token_embd", "attn_q", "attn_k", "attn_v",
         "attn_output", "ffn_gate", "ffn_down", "ffn_up", "output", "position_embd",
         "rope_factors_short", "rope_factors_long"},
    };
    int version = read_header(m);
    int shared = version ? m->file[36] != 0 : read_i32(m->file + 20) > 0; // the classifier
    size_t at = version ? HEADER : 28, group = 0;
    if (version % 100 == 2) group = check_range(m, "group", read_i32(m->file + 37), 1, 1 << 16);
    for (const char *const *name = orders[version > 0]; *name; name++) {
        if (shared && !strcmp(*name, "output")) continue;
        // Shapes are the same for all layers; only the place is another, so the list is made anew.
        for (int l = 0, k = 0; l < (k < N_OF_LAYER ? m->config.n_layers : 1); l++) {
            Weight list[N_WEIGHTS];
            list_weights(m, l, list);
            for (k = 0; strcmp(list[k].name, *name);) k++;
            const Weight *w = &list[k];
            Tensor t = {.group = w->kind <= TABLE ? group : 0, .rows = w->rows, .cols = w->cols};
            t.type = &tensor_types[t.group ? T_Q8 : T_F32];
            size_t values = mul_size(w->rows, w->cols), from = at;
            if (t.group && (values % group || values % 4))
                REFUSE(m, "a matrix of %zu values is not whole groups of %zu", values, group);
            at = add_size(from, tensor_bytes(&t));
            if (!values || at > m->size) continue;
            t.data = m->file + from;
            if (t.group) t.scales = (const float *)(t.data + values);
            put_weight(m, w, t);
        }
    }
    if (at != m->size)
        REFUSE(m, "its size does not fit its header (got %zu bytes, want %zu)", m->size, at);
}

// ================================================================================================
// 11  GGUF
//
// The other kind of file: a list of typed keys, a list of tensor names with types, shapes and
// offsets, and the data, aligned:
//   "GGUF", u32 version, u64 n_tensors, u64 n_keys
//   key:     string name, u32 type, value (of an array: u32 element type, u64 count, elements)
//   tensor:  string name, u32 n_dims, u64 dims[n_dims] (the inner one first), u32 type, u64 offset
//   string:  u64 length, bytes
// A count is held against the bytes that are left before anything is allocated or skipped.
//
// What is not understood is refused rather than passed over. A model that is computed without one
// of its steps still writes fluent text, only worse, and nobody could tell why; so a tensor that
// the architecture does not use is an error, as is a key that speaks of a step that is not known
// here. Keys that only describe the model (its name, its author, its licence) are many, and free.

// A key or a tensor of the file, found again by its name.
typedef struct FileItem {
    char name[256];  // "": the end of a list
    int used;        // by the model, that is read
    Values values;   // of a key: what it holds
    Tensor tensor;   // [n][1]: a vector; dimensions behind the second count as rows
    uint32_t number; // of the tensor's type in GGUF, which may be unknown here (type NULL)
    size_t offset;   // where it begins, behind the file's lists
} FileItem;

// The entry of that name, or NULL. Lists have some hundred entries, each looked for a few times, so
// that going through them is quick enough.
static FileItem *find_entry(FileItem *list, const char *name)
{
    while (*list->name && strcmp(list->name, name)) list++;
    return *list->name ? list : NULL;
}

// Moves past n items of `size` bytes, all in the file. Everything is read by way of this function,
// so that here alone the end of the file can be met; the division keeps n * size from wrapping.
static const uint8_t *gguf_skip(Model *m, size_t n, size_t size)
{
    if (n > (m->size - m->at) / size)
        REFUSE(m, "cut off, or a wrong count (want %zu x %zu bytes at %zu)", n, size, m->at);
    m->at += n * size;
    return m->file + m->at - n * size;
}

// The next number, of `size` bytes, which may be fewer than a size_t has: the others stay 0.
static size_t gguf_number(Model *m, size_t size)
{
    size_t v = 0;
    memcpy(&v, gguf_skip(m, size, 1), size);
    return v;
}

// What stands behind a key's name: its type and value, which stays where it is. Strings have to be
// gone through one by one, since each says only its own length. Arrays of arrays do not occur.
static void gguf_key(Model *m, FileItem *k)
{
    size_t n = 1;
    uint32_t type = gguf_number(m, 4);
    if (type == G_ARRAY) type = gguf_number(m, 4), n = gguf_number(m, 8);
    if (type >= COUNT(value_bytes) || type == G_ARRAY)
        REFUSE(m, "key %s has an unknown type (got %u)", k->name, type);
    k->values = (Values){m->file + m->at, n, type};
    for (; type == G_STRING && n > 0; n--) gguf_skip(m, gguf_number(m, 8), 1);
    if (n > 0) gguf_skip(m, n, value_bytes[type]);
}

// What stands behind a tensor's name. Dimensions are written with the inner one first, what is
// `cols` here; a tensor of one row is a vector and becomes a column. The offset counts from the end
// of this list.
static void gguf_tensor(Model *m, FileItem *e)
{
    Tensor *t = &e->tensor;
    size_t n_dims = gguf_number(m, 4);
    t->cols = n_dims ? gguf_number(m, 8) : 1;
    t->rows = 1;
    while (n_dims-- > 1) t->rows = mul_size(t->rows, gguf_number(m, 8));
    if (t->rows == 1) t->rows = t->cols, t->cols = 1; // a vector
    e->number = gguf_number(m, 4);
    e->offset = gguf_number(m, 8);
    for (size_t i = 0; i < COUNT(tensor_types); i++)
        if (tensor_types[i].gguf == (int64_t)e->number) t->type = &tensor_types[i];
    if (t->type) t->group = t->type->group;
}

// Adds n entries to the list (NULL: none yet), each a name and what `read` reads; behind the last
// is one without a name, which ends it. A name may not come twice: readers would differ in which of
// the two they take, and a file that means one thing to one program and another to the next is a
// trap.
static FileItem *gguf_list(Model *m, FileItem *list, size_t n, void (*read)(Model *, FileItem *))
{
    size_t have = 0;
    if (n > 1 << 14) REFUSE(m, "too many keys or tensors (got %zu)", n);
    while (list && *list[have].name) have++;
    list = xrealloc(list, have + n + 1, sizeof *list);
    memset(list + have, 0, (n + 1) * sizeof *list);
    for (FileItem *e = list + have; e < list + have + n; e++) {
        size_t len = gguf_number(m, 8);
        const char *name = (const char *)gguf_skip(m, len, 1);
        if (len < 1 || len >= sizeof e->name || memchr(name, 0, len))
            REFUSE(m, "a broken name before byte %zu", m->at);
        memcpy(e->name, name, len);
        if (find_entry(list, e->name) != e) REFUSE(m, "%s is there twice", e->name);
        read(m, e);
    }
    return list;
}

// A key's values, none if it is not there. ".name" stands for "architecture.name": each
// architecture has the same keys under its own name. Whoever asks for a key has understood it, and
// marks it used.
static Values find_key(const Model *m, const char *name, int is_text)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", *name == '.' ? m->arch : "", name);
    FileItem *k = find_entry(m->keys, full);
    if (!k) return (Values){0};
    if ((k->values.type == G_STRING) != is_text)
        REFUSE(m, "key %s (want %s)", full, is_text ? "text" : "a number");
    k->used = 1;
    return k->values;
}

// The number that a key says, or `absent`. Writers say "none" in many ways: by leaving the key out,
// by -1, by the largest unsigned number (which is -1, seen by somebody else), and by 0 where it can
// mean nothing else. Of a list it is the first. An architecture's list has a number for each layer,
// and all of them have to be equal: where layers differ in size the shapes in list_weights() would
// not hold.
static double key_number(const Model *m, const char *name, double lo, double hi, double absent)
{
    Values k = find_key(m, name, 0);
    double v = k.n ? number_at(k, 0) : -1;
    for (size_t i = 1; i < k.n && *name == '.'; i++)
        if (number_at(k, i) != v)
            REFUSE(m, "%s is not the same for all layers: such a model cannot be run", name + 1);
    if (v == -1 || v == UINT32_MAX || v == 0x1p64 || (v == 0 && lo > 0)) return absent;
    return check_range(m, name, v, lo, hi);
}

// A short string, or `absent`. More than some bytes are no word that anybody knows: it will be
// refused as such, cut as it is.
static const char *key_word(const Model *m, const char *name, const char *absent)
{
    Values v = find_key(m, name, 1);
    size_t len;
    const char *word = v.n ? next_string(&v, &len) : NULL;
    return word ? memcpy(xcalloc(32, 1), word, min_size(len, 31)) : absent;
}

// What architectures differ in: a Model of each, as it is where the file does not say otherwise, of
// which only the name, Config and strip_right are filled in. Names are those that converters write,
// and stand for families: "llama" is also Mistral, SmolLM, TinyLlama and many others, that are
// computed alike. Most of them turn halves of a head, (m, m + n_rot / 2); the converters of llama
// permute wq and wk, so that these have neighbours as pairs. Newer ones norm q and k before they
// turn, which keeps scores from growing, or norm what a branch gives, not what it gets; gemma has
// local layers, which see a window, between global ones. Older ones (gpt2, bloom, gptneox) have
// LayerNorm, biases, and a feed-forward net without a gate, and differ in how they know positions:
// by a learned table, by ALiBi, by turning a part of each head.
//
// Two things cannot be written in numbers, and gguf_config() knows what stands for them: gemma
// scales embeddings by sqrt(dim) (emb_scale -1), and divides scores by sqrt(dim / n_heads) in its
// model of n_layers layers, but not in others.
#define LAYER_NORM .layer_norm = 1, .no_gate = 1, .gelu = 1
#define GEMMA .post_norm = 1, .rope_split = 1, .gelu = 1, .emb_scale = -1, .norm_eps = 1e-6
static const Model archs[] = {
    // Rotation of neighbours, or of halves, of each whole head.
    {.arch = "llama"},
    {"qwen2", .config = {.rope_split = 1, .norm_eps = 1e-6}},
    {"qwen3", .config = {.rope_split = 1, .norm_eps = 1e-6, .qk_norm = 1}},
    // Two kinds of layers, with two windows and, in gemma3, two bases.
    {"gemma2", .config = {GEMMA, .n_layers = 46, .global_every = 2, .rope.window = 4096,
                          .score_cap = 50, .logit_cap = 30}},
    {"gemma3", .config = {GEMMA, .n_layers = 62, .global_every = 6, .local.theta = 10000,
                          .qk_norm = 1}},
    // A vector added, a bias by distance, a part of each head turned.
    {"gpt2", .config = {LAYER_NORM, .encoding = ENC_LEARNED}},
    {"bloom", .config = {LAYER_NORM, .encoding = ENC_ALIBI}},
    {"gptneox", .config = {LAYER_NORM, .rope_split = 1, .parallel = 1}},
    // Every fourth layer without positions.
    {"smollm3", .config = {.nope_every = 4, .local.still = 1, .norm_eps = 1e-6}},
    // LongRoPE's lists, if they come along; its window is in files but not in use, so all layers
    // are global. Its own tokenizer drops blanks behind control tokens.
    {"phi3", .config = {.rope_split = 1, .global_every = 1}, .vocab.strip_right = 1},
    // Norms behind the branches; scales in front of everything; queries that grow sharper.
    {"olmo2", .config = {.rope_split = 1, .no_pre_norm = 1, .post_norm = 1, .qk_norm = 2,
                         .norm_eps = 1e-6, .global_every = 4}},
    {"granite", .config.norm_eps = 1e-6},
    {"mistral3", .config.rope.temp_from_0 = 1},
};

// What the keys say about scaling, in our terms. A model with factors for each pair is one of
// LongRoPE, whether or not a key says so.
static void gguf_rope(Model *m, RopeConfig *r)
{
    int factors = find_entry(m->tensors, "rope_factors_long.weight") != NULL;
    const char *type = key_word(m, ".rope.scaling.type",
                                factors ? "longrope" : r->factor > 0 ? "linear" : "none");
    r->method = FIND_NAME(rope_methods, type);
    if (r->method < 0)
        REFUSE(m, "RoPE scaling (got %s, want one of %s)", type, LIST_NAMES(rope_methods));
    if (r->method == ROPE_NONE) r->factor = r->attn_factor = 0;
    // The file's is all of longrope's attention factor, but is multiplied with yarn's own.
    if (r->method == ROPE_LONGROPE && !(r->attn_factor > 0)) r->attn_factor = 1;
    if (r->method == ROPE_YARN) r->attn_times = r->attn_factor, r->attn_factor = 0;
}

// The tokenizer's lists, each as long as there are tokens, and ids, each of one of them. Section 12
// makes sense of them, and knows whether BOS begins a text where the file does not say (-1); here
// they only have to be whole. SentencePiece cannot do without scores, byte-level BPE without merges
// (chat.c looks at these).
static void gguf_vocab(Model *m, Vocab *v)
{
    const char *model = key_word(m, "tokenizer.ggml.model", "?");
    if (!strcmp(model, "gpt2")) v->pre = key_word(m, "tokenizer.ggml.pre", "default");
    else if (strcmp(model, "llama")) REFUSE(m, "tokenizer (got %s, want llama or gpt2)", model);
    v->tokens = find_key(m, "tokenizer.ggml.tokens", 1);
    v->merges = find_key(m, "tokenizer.ggml.merges", 1);
    v->scores = find_key(m, "tokenizer.ggml.scores", 0);
    v->types = find_key(m, "tokenizer.ggml.token_type", 0);
    v->ends = find_key(m, "tokenizer.ggml.eos_token_id", 0); // some files have several
    size_t n = check_range(m, "vocabulary", v->tokens.n, 1, 1 << 24);
    if ((v->scores.at ? v->scores.n != n || value_kinds[v->scores.type] != 'f' : !v->pre) ||
        (v->types.at && (v->types.n != n || value_kinds[v->types.type] == 'f')))
        REFUSE(m, "%zu tokens, but not as many scores (floats) and types (integers)", n);
    // An id that is no token's is a broken file; -1 stands for none.
    v->eos = (int)key_number(m, "tokenizer.ggml.eos_token_id", -1, n - 1, -1);
    v->bos = (int)key_number(m, "tokenizer.ggml.bos_token_id", -1, n - 1, -1);
    v->eot = (int)key_number(m, "tokenizer.ggml.eot_token_id", -1, n - 1, -1);
    v->add_bos = (int)key_number(m, "tokenizer.ggml.add_bos_token", 0, 1, -1);
    v->space_prefix = key_number(m, "tokenizer.ggml.add_space_prefix", 0, 1, 1) != 0;
}

// Config: the architecture's, then what the keys say, then what follows from both. Where layers are
// local, the file's window is theirs, and the global ones have none.
static void gguf_config(Model *m, const Model *arch)
{
    Config *c = &m->config;
    *c = arch->config;
    for (const Option *f = config_fields; f < config_fields + COUNT(config_fields); f++) {
        double v = f->key ? key_number(m, f->key, f->lo, f->hi, NAN) : NAN;
        if (isnan(v) && f->needed) REFUSE(m, "no key %s%s", m->arch, f->key);
        if (isnan(v)) continue;
        if (f->kind == N_INT && v != rint(v))
            REFUSE(m, "%s (got %g, want a whole number)", f->key + 1, v);
        store_value(f, (char *)c + field_at(f), v);
    }
    c->vocab_size = (int)m->vocab.tokens.n;
    if (c->encoding == ENC_LEARNED) c->rows = c->train_ctx;
    complete_config(m);
    // Values as long as keys, and tokens that see no later ones: all else is refused.
    key_number(m, ".attention.value_length", c->head_dim, c->head_dim, 0);
    if (key_number(m, ".attention.causal", 0, 1, 1) == 0)
        REFUSE(m, "a model whose tokens see later ones, which cannot be run");
    gguf_rope(m, &c->rope);
    // What the table of architectures could not say in numbers.
    if (c->emb_scale < 0) c->emb_scale = sqrt(c->dim);
    if (c->n_layers == arch->config.n_layers) c->score_scale = sqrt((double)c->n_heads / c->dim);
    if (!(c->local.theta > 0)) c->local.theta = c->rope.theta;
    if (!c->rope.window) c->global_every = 0; // it is for local layers
    if (c->global_every) c->local.window = c->rope.window, c->rope.window = 0;
    // Which layers are local: by the architecture's number or the file's, of which every so many-th
    // is global, or by a list of the file's, with a boolean or a number for each layer. In a model
    // that leaves some layers without positions, these are the local ones, which stand still.
    Values list = find_key(m, ".attention.sliding_window_pattern", 0);
    if (list.n > 1 && list.n != (size_t)c->n_layers)
        REFUSE(m, "a pattern of %zu layers (want %d)", list.n, c->n_layers);
    if (list.n && c->rope.window)
        REFUSE(m, "a pattern of windows, which is not known for a %s", m->arch);
    if (list.n == 1 && c->global_every)
        c->global_every = (int)check_range(m, "window pattern", number_at(list, 0), 1, 4096);
    for (int l = 0; l < c->n_layers; l++)
        m->layers[l].local = c->nope_every ? (l + 1) % c->nope_every == 0
                           : !c->global_every ? 0 : list.n > 1 ? number_at(list, l) != 0
                           : (l + 1) % c->global_every != 0;
}

// GGUF's types by their numbers, for messages about those that are not among tensor_types: whoever
// reads "IQ2_XXS" knows which other file to look for, which a number would not tell him.
static const char *const ggml_types[] = {
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K",
    "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
    "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16", [34] = "TQ1_0", "TQ2_0",
    [39] = "MXFP4"};

// Tensor w of layer l, or with l < 0 of the model; what: its weight, or the bias that is added to
// what that gives. It has its own name, or is a part of the fused one, which is known by its rows:
// "ffn_up" is fused in some files and only itself in others. No data: the file has none, which is
// right only for a bias, a norm of embeddings, a classifier, and factors of its own.
static Tensor take_tensor(Model *m, const Weight *w, int l, const char *what)
{
    char name[64], layer[16] = "";
    int bias = *what == 'b', needed = !bias && w->to != &m->emb_norm && w->to != &m->classifier &&
                                      w->to != &m->config.rope.own_factors;
    if (l >= 0) snprintf(layer, sizeof layer, "blk.%d.", l);
    snprintf(name, sizeof name, "%s%s.%s", layer, w->fused, what);
    FileItem *e = find_entry(m->tensors, name);
    int part = e && *w->fused && e->tensor.rows == w->all;
    snprintf(name, sizeof name, "%s%s.%s", layer, part ? w->fused : w->name, what);
    if (!part) e = find_entry(m->tensors, name);
    if (!e && needed) REFUSE(m, "no tensor %s", name);
    if (!e) return (Tensor){0};
    Tensor t = e->tensor;
    if (!t.type) {
        const char *type = e->number < COUNT(ggml_types) ? ggml_types[e->number] : NULL;
        REFUSE(m, "tensor %s has a type that is not known (got %s, number %u, want one of %s)",
               name, type ? type : "a new one", e->number, LIST_NAMES(tensor_types));
    }
    size_t cols = bias ? 1 : w->cols, block = t.type->block;
    if (part) t.rows = w->rows, t.data += w->first * (t.cols / block) * t.type->bytes;
    if (t.rows != w->rows || t.cols != cols || cols % block)
        REFUSE(m, "tensor %s (got %zu x %zu, want %zu x %zu, and rows of whole blocks of %zu)",
               name, t.rows, t.cols, w->rows, cols, block);
    e->used = 1;
    return t;
}

// The lists of keys and of tensors; these are added to those of files read before. All of them must
// be in the file: downloads break off, and the end of the last tensor says how much is missing.
static void gguf_directory(Model *m)
{
    size_t end = 0;
    if (gguf_number(m, 4) != 0x46554747) REFUSE(m, "no GGUF file");
    uint32_t version = gguf_number(m, 4);
    if (version && version << 16 == 0)
        REFUSE(m, "a big-endian GGUF file (want a little-endian one)");
    if (version != 2 && version != 3) REFUSE(m, "GGUF version (got %u, want 2 or 3)", version);
    size_t n_tensors = gguf_number(m, 8), n_keys = gguf_number(m, 8);
    m->keys = gguf_list(m, NULL, n_keys, gguf_key);
    m->tensors = gguf_list(m, m->tensors, n_tensors, gguf_tensor);
    // Behind the lists the data begin, aligned as the file says. Of a type that is not known here
    // the size is not known either; that a byte of it is there will do until the type is refused.
    size_t begin = round_up(m->at, (size_t)key_number(m, "general.alignment", 4, 1 << 20, 32));
    for (FileItem *e = m->tensors; *e->name; e++) {
        if (e->tensor.data) continue; // another file's
        size_t at = add_size(begin, e->offset);
        end = max_size(end, add_size(at, e->tensor.type ? tensor_bytes(&e->tensor) : 1));
        if (at % 4) REFUSE(m, "tensor %s is at byte %zu", e->name, at);
        e->tensor.data = m->file + min_size(at, m->size);
    }
    if (end > m->size) REFUSE(m, "cut off: %zu of its %zu bytes are missing", end - m->size, end);
}

// The path of file i of the n that a model comes in, given that of the first. (A path that is too
// short to be one is not cut but lengthened.)
static void part_path(char path[PATH_MAX], const char *first, int i, int n)
{
    snprintf(path, PATH_MAX, "%.*s-%05d-of-%05d.gguf", (int)strlen(first) - 20, first, i, n);
}

// The tensors of a model's other files, if it comes in several, NAME-00001-of-00003.gguf and so on:
// large models are cut up for hosts that limit the size of a file. Each of them is a GGUF file with
// a directory of its own, mapped by itself. The first has the keys, and is the one to be named.
static void add_parts(Model *m)
{
    char path[PATH_MAX];
    int n = (int)key_number(m, "split.count", 0, 99999, 0);
    part_path(path, m->path, 1, n);
    if (n > 1 && strcmp(path, m->path))
        REFUSE(m, "one of %d files that are a model (want NAME-00001-of-%05d.gguf)", n, n);
    for (int i = 2; i <= n; i++) {
        part_path(path, m->path, i, n);
        Model part = {.path = path, .tensors = m->tensors};
        map_file(&part);
        gguf_directory(&part);
        m->tensors = part.tensors;
        m->size += part.size;
        free(part.keys);
    }
}

// Keys, by a part of their names, of models that cannot be run, unless their number is 0, -1 or
// `none`, with which the step would do nothing. First what a model may be altogether, so that its
// user hears that, and not which tensor is missed first; then steps that some architectures have in
// addition: caps, scales and limits that have no field of Config, or not by this name.
static const char other[] = "a model with a step that is not known here";
static const struct {
    const char *sign;
    double none;
    const char *what;
} signs[] = {
    {"expert_count", 0, "a mixture of experts"}, {"ssm.", 0, "a model with recurrent layers"},
    {"wkv.", 0, "a recurrent model"}, {"shortconv.", 0, "a model with convolutions"},
    {"clip.", 0, "a vision tower, without the model of text that it belongs to"},
    {"vision.", 0, "a model with a vision tower"}, {"adapter.", 0, "an adapter, not a model"},
    {"decoder_start_token", 0, "a model with an encoder"},
    {"softcap", 0, other}, {"clamp", 0, other}, {"temperature", 0, other}, {"sections", 0, other},
    {"lora_rank", 0, other}, {"_swa", 0, other}, {"scale", 1, other}, {"multiplier", 1, other},
    {"yarn_", 1, other}, {"max_alibi_bias", 8, other},
};

// Refuses a model by such a key. Keys that were used are known, and so no sign of anything; other
// steps count only where the architecture is `known`, which might have used them.
static void check_signs(const Model *m, int known)
{
    for (const FileItem *k = m->keys; *k->name; k++)
        for (size_t i = 0; i < COUNT(signs); i++) {
            int own = known && !strncmp(k->name, m->arch, strlen(m->arch));
            if (k->used || !strstr(k->name, signs[i].sign)) continue;
            for (size_t j = 0; (own || signs[i].what != other) && j < k->values.n; j++) {
                double v = k->values.type == G_STRING ? NAN : number_at(k->values, j);
                if (v != 0 && v != -1 && v != signs[i].none)
                    REFUSE(m, "%s, which cannot be run (key %s)", signs[i].what, k->name);
            }
        }
}

// A GGUF file from its directory to its weights, in the order in which things follow from each
// other. Refusals come from the general to the particular: no model that can be run at all, an
// architecture that is not known, a number that is out of range, a tensor that is not there.
static void load_gguf(Model *m)
{
    Weight list[N_WEIGHTS];
    gguf_directory(m);
    m->arch = key_word(m, "general.architecture", "?");
    int arch = FIND_NAME(archs, m->arch);
    if (arch < 0) check_signs(m, 0);
    if (!strcmp(m->arch, "?")) add_parts(m); // a file that is not the first says nothing of itself
    if (arch < 0) REFUSE(m, "architecture (got %s, want one of %s)", m->arch, LIST_NAMES(archs));
    add_parts(m);
    gguf_vocab(m, &m->vocab);
    m->vocab.strip_right = archs[arch].vocab.strip_right && !m->vocab.pre;
    gguf_config(m, &archs[arch]);
    check_signs(m, 1);
    // Any matrix and any norm may come with a bias: converters write them where the model was
    // trained with some, whatever its architecture is called.
    for (int l = 0; l < m->config.n_layers; l++) {
        list_weights(m, l, list);
        for (const Weight *w = list; w < list + (l ? N_OF_LAYER : N_WEIGHTS); w++) {
            int layer = w < list + N_OF_LAYER ? l : -1;
            if (!w->rows || !w->to) continue;
            Tensor t = take_tensor(m, w, layer, "weight");
            if (t.data && (w->kind == MATRIX || w->kind == NORM)) // a bias alone would be dropped
                t.bias = to_floats(take_tensor(m, w, layer, "bias"));
            put_weight(m, w, t);
        }
    }
    for (const FileItem *e = m->tensors; *e->name; e++)
        if (!e->used) REFUSE(m, "tensor %s: not of a %s", e->name, m->arch);
    free(m->tensors);
}

// --- either kind --------------------------------------------------------------------------------

// What people take for a model file, by the bytes at its beginning: pages that a browser saved, the
// stand-ins that git leaves where large files should be, models of other programs. None of them
// could be the number with which a llama2.c file begins, a width of 16 million at most.
static const struct {
    size_t at;
    const char *bytes, *what;
} strangers[] = {
    {0, "version https://git-lfs", "a pointer of Git LFS, not the file: git lfs pull brings that"},
    {0, "<!doctype", "a web page"}, {0, "<html", "a web page"}, {0, "PK\3\4", "a zip archive"},
    {8, "{\"", "a safetensors file: convert it to GGUF"},
    {2, "gg", "an old GGML file: convert it to GGUF"},
};

// Either door: a GGUF file says so in its first four bytes, and later which architecture it has;
// all others are llama2.c's.
static void model_load(Model *m, const char *path)
{
    *m = (Model){.arch = "llama2.c", .path = path};
    map_file(m);
    int gguf = m->size >= 4 && !memcmp(m->file, "GGUF", 4);
    for (size_t i = 0; !gguf && i < COUNT(strangers); i++) {
        size_t n = strlen(strangers[i].bytes), at = strangers[i].at;
        if (m->size >= at + n && !strncasecmp((const char *)m->file + at, strangers[i].bytes, n))
            REFUSE(m, "no model that can be read, but %s", strangers[i].what);
    }
    // Neither kind begins with eight letters; what a server says instead of sending a file does.
    size_t letters = 0, most = min_size(m->size, 8);
    while (letters < most && (isprint(m->file[letters]) || isspace(m->file[letters]))) letters++;
    if (!gguf && letters == 8) REFUSE(m, "no model that can be read, but a text");
    if (gguf) load_gguf(m);
    else load_checkpoint(m);
    check_rope(&m->config, path);
}

// ================================================================================================
// 12  Tokenizer
//
// A model reads and writes numbers, each of which stands for a piece of text: a common word with
// the space before it, a part of a rare one, or at worst a single byte. How a text becomes pieces
// was learned from other texts, and has to be repeated here to the letter: other pieces for the
// same words would be as good as another language.
//
// Text becomes small symbols, and then the neighbours that come first in the vocabulary's order
// are merged, the leftmost first among equals, until none can be. There are two kinds:
//   SentencePiece-style   symbols are characters (bytes where the vocabulary lacks one), any two
//                         whose joined text is a piece can merge, the best score first
//   byte-level BPE        text is cut into words, symbols are bytes, a list of merges says which
//                         pairs of pieces can merge, and its order which first
// So "lower" may go l o w e r, l o w er, lo w er, low er, lower: "er" was the most frequent pair
// when the vocabulary was learned, and stands first. A tree that names the best merge makes both
// O(n log n). Pieces come from llama2.c's tokenizer.bin or from the model file. Here they are plain
// bytes of text, so decoding is concatenation.

// --- characters ---------------------------------------------------------------------------------

// Bytes in the UTF-8 sequence that begins with this byte: 1 to 4; 1 for a byte that begins none.
// The ones at the top of the first byte count the bytes, 0xc2 is the first that is needed (0xc0 and
// 0xc1 would spell ASCII in two bytes), and behind 0xf4 Unicode has ended.
static size_t utf8_length(char lead)
{
    uint8_t b = (uint8_t)lead;
    return b < 0xc2 || b > 0xf4 ? 1 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4;
}

// The character at the beginning of s[len > 0], and in *n its bytes. Each byte behind the first
// adds six bits. A byte that is no UTF-8 is a character of its own, U+FFFD, which is neither letter
// nor number nor space: a text that is broken loses nothing on its way to ids and back.
static uint32_t read_char(const char *s, size_t len, size_t *n)
{
    size_t want = utf8_length(*s);
    uint32_t c = (uint8_t)*s;
    *n = 1;
    if (want == 1 || want > len) return c < 0x80 ? c : 0xfffd;
    c &= 0x7fu >> want;
    for (size_t i = 1; i < want; i++) {
        if (((uint8_t)s[i] & 0xc0) != 0x80) return 0xfffd;
        c = c << 6 | ((uint8_t)s[i] & 0x3f);
    }
    // Spelled longer than it need be, half of a UTF-16 pair, or behind the last of Unicode.
    if (c < (want == 4 ? 0x10000u : want == 3 ? 0x800u : 0x80u) || c >> 11 == 0x1b || c > 0x10ffff)
        return 0xfffd;
    *n = want;
    return c;
}

// --- pieces -------------------------------------------------------------------------------------

enum { ID_UNK, ID_BOS, ID_EOS }; // of tokenizer.bin

// Text can become pieces of the kind TOKEN_TEXT by merging. Control tokens (the end of a turn, say)
// are no text, and recognised in templates only (chat.c); user-defined ones are found in any text.
// Bytes are SentencePiece's, for characters that it has no piece for. Kinds are bits, so that a
// search can be for several.
enum { TOKEN_TEXT = 1, TOKEN_CONTROL = 2, TOKEN_USER = 4, TOKEN_BYTE = 8, TOKEN_ANY = 15 };

typedef struct {
    const char *text; // of SentencePiece's <0x41>, say, the byte itself
    int len;
    float score;
    int kind;
    int stop; // ends a turn or a text
} Piece;

// A hash table from bytes to numbers, at most half full: a key lies where its hash says, or in the
// next free slot behind that. Keys stay where their owner has them.
typedef struct {
    size_t size; // a power of two
    struct HashSlot {
        const void *key; // NULL: free
        size_t len;
        int number;
    } *slots;
} Hash;

typedef struct {
    const char *path;
    Piece *pieces;          // [vocab_size]
    int vocab_size;
    Hash ids[2];            // by text: those of kind TOKEN_TEXT, and all others
    int byte_id[256];       // SentencePiece-style
    const struct WordStyle *words; // byte-level BPE: how text is cut; NULL: SentencePiece-style
    Hash ranks;             // then, by pair of ids that may merge: its place in the list of merges
    uint8_t special_len[256]; // of the longest that begins with this byte and is, or may become, a
                              // user-defined or a control token
    int bos, eos, add_bos, space_prefix, strip_right;
} Tokenizer;

static Hash hash_init(size_t n)
{
    size_t size = 64;
    while (size < 2 * n) size *= 2;
    return (Hash){size, xcalloc(size, sizeof(struct HashSlot))};
}

static size_t hash_bytes(const void *key, size_t len) // FNV-1a
{
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < len; i++) h = (h ^ ((const uint8_t *)key)[i]) * 0x100000001b3;
    return (size_t)(h ^ h >> 32);
}

// The key's slot, or the free one where it would be.
static struct HashSlot *hash_slot(const Hash *h, const void *key, size_t len)
{
    size_t at = hash_bytes(key, len) & (h->size - 1);
    for (; h->slots[at].key; at = (at + 1) & (h->size - 1))
        if (h->slots[at].len == len && !memcmp(h->slots[at].key, key, len)) break;
    return &h->slots[at];
}

// The first of equals counts.
static void hash_add(Hash *h, const void *key, size_t len, int number)
{
    struct HashSlot *slot = hash_slot(h, key, len);
    if (!slot->key) *slot = (struct HashSlot){key, len, number};
}

// The piece with that text, if it is of these kinds; -1: none. Both tables are looked at but for
// TOKEN_TEXT: a text that became a control token (chat.c) or a byte stays in the first. Nearly all
// the work of encoding is done here: once for each symbol, and once for each pair that may merge.
static int find_piece(const Tokenizer *t, const char *s, size_t len, int kinds)
{
    for (int k = 0; k < 1 + (kinds != TOKEN_TEXT); k++) {
        const struct HashSlot *slot = hash_slot(&t->ids[k], s, len);
        if (slot->key && t->pieces[slot->number].kind & kinds) return slot->number;
    }
    return -1;
}

// --- merging ------------------------------------------------------------------------------------

// Symbols tile the text: symbols[i] is the one that begins at byte i, and the next begins where it
// ends. A merge makes the left one longer, and the right one is dead from then on: nothing leads
// to it, and it merges with nothing.
typedef struct {
    int len, id;  // id -1: a byte, which merges with nothing
    int prev;     // where the symbol before it begins, or -1
    int merged;   // the piece that it would make with the next one, or -1,
    float score;  // and how soon that should be made, the highest first
} Symbol;

// Text on its way to ids. A merge changes its two symbols and what their neighbours can make, and
// nothing else; to search for the next best from the beginning each time would take n^2 steps. So
// above the symbols stands a tree, like that of a tournament: a leaf is a place in the word, and
// each node has the place of the higher score of the two below it, of equals the left one. best[1]
// is the root and so the next merge, and when a symbol changes, only the log2(n) nodes above it are
// played again. The children of node k are 2 k and 2 k + 1; leaves begin at n_leaves, a power of 2.
typedef struct {
    const Tokenizer *t;
    const char *text; // a word, in which anything may merge
    Symbol *symbols;
    int *best;
    size_t n_leaves;
    int *ids, count;
} Encoder;

// Looks what the symbol at a place makes with the next one, and plays the nodes above it again. A
// merge's score is its piece's, or in a list of merges minus its place there, exact up to 2^24.
static void offer_merge(Encoder *e, int at)
{
    const Tokenizer *t = e->t;
    Symbol *s = e->symbols, *a = &s[at], *b = a + a->len;
    int pair[] = {a->id, b->id};
    int may = a->id >= 0 && b->id >= 0;
    const struct HashSlot *rank = may && t->words ? hash_slot(&t->ranks, pair, sizeof pair) : NULL;
    if (rank) may = rank->key != NULL;
    a->merged = may ? find_piece(t, e->text + at, a->len + b->len, TOKEN_TEXT) : -1;
    e->best[e->n_leaves + at] = at;
    a->score = a->merged < 0 ? -INFINITY : rank ? -(float)rank->number : t->pieces[a->merged].score;
    for (size_t k = (e->n_leaves + at) / 2; k; k /= 2) {
        int left = e->best[2 * k], right = e->best[2 * k + 1];
        e->best[k] = s[right].score > s[left].score ? right : left;
    }
}

// Adds the ids of text[len], within which anything may merge: lays out the symbols (characters, or
// bytes in byte-level BPE, where read_char() is shown one at a time), offers what each makes with
// the next, and does the best merge of all until there is none. Places where none begins have
// s[len] in their leaves, a symbol that merges with nothing.
static void encode_word(Encoder *e, const char *text, size_t len)
{
    const Tokenizer *t = e->t;
    Symbol *s = e->symbols;
    int prev = -1;
    e->text = text;
    for (e->n_leaves = 1; e->n_leaves <= len;) e->n_leaves *= 2;
    for (size_t k = 0; k < 2 * e->n_leaves; k++) e->best[k] = (int)len;
    for (size_t at = 0, n; at < len; prev = (int)at, at += n) {
        read_char(text + at, t->words ? 1 : len - at, &n);
        int id = find_piece(t, text + at, n, TOKEN_TEXT);
        if (id < 0) n = 1;
        s[at] = (Symbol){.len = (int)n, .id = id, .prev = prev};
    }
    s[len] = (Symbol){.len = 1, .id = -1, .prev = prev, .merged = -1, .score = -INFINITY};
    for (size_t at = 0; at < len; at += s[at].len) offer_merge(e, (int)at);
    for (int at; s[at = e->best[1]].merged >= 0;) {
        Symbol *a = &s[at], *b = a + a->len;
        *a = (Symbol){.len = a->len + b->len, .id = a->merged, .prev = a->prev};
        a[a->len].prev = at;
        b->id = -1;
        offer_merge(e, (int)(b - s));
        offer_merge(e, at);
        if (a->prev >= 0) offer_merge(e, a->prev);
    }
    for (size_t at = 0; at < len; at += s[at].len) {
        int id = s[at].id < 0 && !t->words ? t->byte_id[(uint8_t)text[at]] : s[at].id;
        if (id >= 0) e->ids[e->count++] = id; // a byte that the vocabulary lacks is dropped
    }
}

// Byte-level BPE merges within words only, so that "dog." and "dog!" do not become two pieces
// beside "dog", and a word takes the blank before it along. Each family of models has its own idea
// of words, in regular expressions over Unicode's classes of characters. That is a matter of text
// and not of Transformers: chat.c brings what stands behind these pointers. Without it, where they
// are NULL, vocabularies in SentencePiece's way are all that can be used. The first says which byte
// a character stands for where a piece or a merge is spelled in the file, or -1; the second finds
// `words` and `ranks`, and what add_bos is where the file does not say; the third cuts a text and
// calls encode_word() for each word.
static int (*byte_of_char)(uint32_t c);
static void (*open_words)(Tokenizer *t, const Vocab *v);
static void (*encode_words)(Encoder *e, const char *text, size_t len);

// Adds the ids of text without special tokens. SentencePiece's is one word, perhaps with a space
// before it: the first word of a text is then the same piece as inside of one.
static void encode_plain(Encoder *e, const char *text, size_t len)
{
    size_t space = len && e->t->space_prefix; // none where there is no text
    char *copy = xrealloc(NULL, len + space, 1);
    *copy = ' ';
    memcpy(copy + space, text, len);
    (e->t->words ? encode_words : encode_word)(e, copy, len + space);
    free(copy);
}

// The token of these kinds (none is TOKEN_TEXT) at the beginning of s[len], the longest of them, or
// -1; *n gets its length. special_len says how far to look, which is nowhere for most bytes.
static int match_special(const Tokenizer *t, const char *s, size_t len, int kinds, size_t *n)
{
    int id = -1;
    *n = 1;
    for (size_t k = min_size(t->special_len[(uint8_t)*s], len); k && id < 0; k--)
        id = find_piece(t, s, *n = k, kinds);
    return id;
}

// Encodes text[len] into ids (room for 2 * len + 1), without BOS or EOS, and returns how many. No
// text has control tokens: if users could write them, they could end their turn and begin the
// model's.
static int tokenizer_encode(const Tokenizer *t, const char *text, size_t len, int *ids)
{
    if (len >= INT_MAX / 2) die(EXIT_DATA, "text", "too long (got %zu bytes)", len);
    // A word has a space before it, at most, and an end; the tree's leaves are fewer than twice
    // that.
    Encoder e = {.t = t, .ids = ids, .symbols = xrealloc(NULL, len + 2, sizeof *e.symbols),
                 .best = xrealloc(NULL, 4 * (len + 2), sizeof *e.best)};
    size_t from = 0;
    for (size_t at = 0, n; at < len; at += n) {
        int id = match_special(t, text + at, len - at, TOKEN_USER, &n);
        if (id < 0) continue;
        encode_plain(&e, text + from, at - from);
        ids[e.count++] = id;
        from = at + n;
    }
    encode_plain(&e, text + from, len - from);
    free(e.best);
    free(e.symbols);
    return e.count;
}

// The bytes of a token, given the one before it: the space that encode_plain() put before a text is
// no part of it. Control tokens are no text. Bytes of one character may come from several tokens.
static const char *tokenizer_decode(const Tokenizer *t, int prev, int id, size_t *len)
{
    const Piece *p = &t->pieces[id];
    int strip = t->space_prefix && prev == t->bos && p->kind != TOKEN_BYTE && p->len &&
                p->text[0] == ' ';
    *len = p->kind == TOKEN_CONTROL ? 0 : (size_t)(p->len - strip);
    return p->text + strip;
}

// --- loading ------------------------------------------------------------------------------------

// The pieces that stand for bytes, named <0x00> to <0xFF>; all of them have to be there, and none
// may be a control token, which a text could then write.
static void find_byte_pieces(Tokenizer *t)
{
    static char bytes[256];
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        int id = t->byte_id[byte] = find_piece(t, name, 6, TOKEN_TEXT | TOKEN_USER);
        if (id < 0) die(EXIT_DATA, t->path, "no piece for byte %d (want %s)", byte, name);
        bytes[byte] = (char)byte;
        t->pieces[id] = (Piece){.text = &bytes[byte], .len = 1, .kind = TOKEN_BYTE};
    }
}

// Reads all of a file ("-": standard input) into memory that the caller frees; *len is its size. A
// zero byte ends it, for those who read numbers there. A pipe's size is known only at its end.
static char *read_text(const char *path, size_t *len)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    if (!f) die(EXIT_DATA, path, "cannot open (%s)", strerror(errno));
    char *text = NULL;
    *len = 0;
    do {
        text = xrealloc(text, 2 * *len + (1 << 16), 1);
        *len += fread(text + *len, 1, *len + (1 << 16) - 1, f);
        if (*len >= INT_MAX / 2) die(EXIT_DATA, path, "too long (want at most 1 GB)");
        if (ferror(f)) die(EXIT_DATA, path, "cannot read (%s)", strerror(errno));
    } while (!feof(f)); // at a terminal the end is told but once
    if (f != stdin) fclose(f);
    text[*len] = 0;
    return text;
}

// s[len] as plain text, to out[len], which may be s; returns its length. bpe: characters are bytes;
// else U+2581 is a space.
static size_t plain_text(const char *s, size_t len, int bpe, char *out)
{
    size_t n = 0, step;
    for (size_t at = 0; at < len; at += step) {
        uint32_t c = read_char(s + at, len - at, &step);
        int byte = bpe ? byte_of_char(c) : c == 0x2581 ? ' ' : -1;
        if (byte >= 0) out[n++] = (char)byte;
        else memmove(out + n, s + at, step), n += step;
    }
    return n;
}

// Pieces as the file has them become plain text where they are text: what they are compared with is
// the user's. Type numbers in the file: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6
// byte. Of a SentencePiece vocabulary BOS, EOS and EOT are control tokens whatever their type is,
// so that no text can write them (some files in GPT-2's way name a comma as a BOS that they never
// use). Each piece is then found by its text, of two that are spelled alike the first; what
// looks like <this> or [this] may become a control token when a template writes it (chat.c).
static void read_pieces(Tokenizer *t, const Vocab *v)
{
    Values list = v->tokens;
    for (int k = 0; k < 2; k++) t->ids[k] = hash_init(list.n);
    for (int id = 0; id < t->vocab_size; id++) {
        size_t len;
        Piece *p = &t->pieces[id];
        double type = v->types.at ? number_at(v->types, (size_t)id) : 1;
        if (!v->pre && (id == v->bos || id == v->eos || id == v->eot)) type = 3;
        if (v->scores.at) p->score = (float)number_at(v->scores, (size_t)id);
        if (isnan(p->score)) die(EXIT_DATA, t->path, "piece %d has no score (got nan)", id);
        const char *spelled = next_string(&list, &len);
        p->kind = type == 4 ? TOKEN_USER : type == 2 || type == 3 ? TOKEN_CONTROL : TOKEN_TEXT;
        if (len > 1 << 16) die(EXIT_DATA, t->path, "token %d is too long (got %zu)", id, len);
        char *text = memcpy(xrealloc(NULL, len, 1), spelled, len);
        if (p->kind == TOKEN_TEXT) len = plain_text(text, len, v->pre != NULL, text);
        p->text = text;
        p->len = (int)len;
        p->stop = id == v->eos || id == v->eot;
        if (!len) continue;
        hash_add(&t->ids[p->kind != TOKEN_TEXT], p->text, len, id);
        uint8_t *most = &t->special_len[(uint8_t)*p->text];
        int special = p->kind != TOKEN_TEXT || strchr("<[", *p->text);
        if (special && len > *most && len < 256) *most = (uint8_t)len;
    }
}

// Tokens that end a turn: those of the file, and others, whatever the file says about them. Many
// files name one EOS, that of a text, but their models end a turn with another one, and would talk
// on to themselves. Among a file's ids -1 and more than there are may stand for none.
static void find_stops(Tokenizer *t, const Vocab *v)
{
    static const char *const names[] = {
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>",
        "<|eot|>", "<|EOT|>", "<EOT>", "<|end_of_turn|>", "<end_of_turn>", "<turn|>", "<eos>",
        "</s>"};
    for (size_t i = 0, n = COUNT(names); i < n + v->ends.n; i++) {
        double id = i >= n ? number_at(v->ends, i - n)
                  : find_piece(t, names[i], strlen(names[i]), TOKEN_CONTROL | TOKEN_USER);
        if (id >= 0 && id < t->vocab_size) t->pieces[(int)id].stop = 1;
    }
}

// llama2.c's tokenizer.bin, of n pieces: int32 longest piece, then for each id f32 score, int32
// length, and the bytes, which are plain text. Without its score an entry is a string of GGUF's:
// its length takes the score's place, too. What ends llama2.c's texts is BOS.
static Vocab read_vocab(const char *path, size_t n)
{
    size_t size, at = 4, id = 0;
    uint8_t *file = (uint8_t *)read_text(path, &size), *types = xcalloc(n, 1);
    float *scores = xcalloc(n, sizeof *scores);
    for (size_t len; id < n && at + 8 <= size; id++, at += 8 + len) {
        len = (uint32_t)read_i32(file + at + 4);
        if (len > size - at - 8) break;
        memcpy(&scores[id], file + at, 4);
        memcpy(file + at, &len, 8);
    }
    if (id < n || at != size)
        die(EXIT_DATA, path, "not a tokenizer.bin of %zu pieces, as this model's (got %zu, and %zu "
            "bytes of %zu)", n, id, min_size(at, size), size);
    types[ID_UNK] = 2;
    return (Vocab){.tokens = {file + 4, n, G_STRING}, .scores = {(uint8_t *)scores, n, G_F32},
                   .types = {types, n, G_U8}, .bos = ID_BOS, .eos = ID_EOS,
                   .eot = ID_BOS, .add_bos = 1, .space_prefix = 1};
}

// Pieces and what finds them, then what ends a turn, then how words are cut and merged, or which
// pieces stand for bytes. Whether BOS comes first is the file's to say, or its kind's:
// SentencePiece's want it, and of the others some. BOS is none where the file names an ordinary
// piece (a comma, in some).
static void tokenizer_init(Tokenizer *t, const char *path, const Vocab *v)
{
    size_t n = v->tokens.n;
    *t = (Tokenizer){.path = path, .vocab_size = (int)n, .pieces = xcalloc(n, sizeof *t->pieces),
                     .bos = v->bos, .eos = v->eos, .add_bos = v->add_bos,
                     .space_prefix = v->space_prefix && !v->pre, .strip_right = v->strip_right};
    if (v->pre && !open_words)
        die(EXIT_DATA, path, "a byte-level tokenizer, whose words run.c alone cannot cut; "
            "build chat.c: see make");
    read_pieces(t, v);
    find_stops(t, v);
    if (v->pre) open_words(t, v);
    else find_byte_pieces(t);
    if (t->bos >= 0 && t->pieces[t->bos].kind == TOKEN_TEXT) t->bos = -1;
    t->add_bos = t->add_bos && t->bos >= 0;
}

// ================================================================================================
// 13  Sampler
//
// From logits to the next token. The model's opinion is p = softmax(logits / temperature): below 1
// it becomes surer, above 1 more daring, at 0 the likeliest token is all that is left. Before that
// a penalty makes recent tokens less likely; after it top-k, min-p and top-p drop what is unlikely,
// and one draw from what is left decides. The same seed gives the same text.
//
// Why drop anything? The tail of a distribution is long: ten thousand tokens of one in a hundred
// thousand each are drawn once in ten times, and one wrong word leads the text astray. top-k keeps
// a number of tokens, top-p (nucleus sampling) as many as have a share of the whole, which are few
// where the model is sure and many where it is not; min-p those that are not much less likely than
// the best.

typedef struct {
    double temperature; // 0: always the most likely token
    double top_p;       // smallest set of tokens with at least this probability; 1: all
    int top_k;          // this many tokens at most; 0: all
    double min_p;       // at least this share of the best token's probability; 0: all
    double repeat_penalty; // divides recent tokens' positive logits, multiplies negative; 1: none
    uint64_t rng;
} Sampler;

// A token that may be drawn; p is its probability by that of the likeliest one.
typedef struct {
    float p;
    int id;
} Candidate;

enum { REPEAT_WINDOW = 64 }; // how many tokens are "recent"

// xorshift64* (Vigna 2016): three shifts walk through all states but 0, a product mixes the result.
// The upper bits are the better ones.
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d;
}

// At least 0 and below 1: as many bits as a float holds.
static float random_unit(uint64_t *state) { return (float)(next_random(state) >> 40) * 0x1p-24f; }

// A state for a seed. Seeds that are neighbours must not give texts that are alike, so splitmix64
// stirs the bits first. Never zero, whatever the seed: zero is the generator's fixed point.
static uint64_t seed_random(uint64_t seed)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15; // splitmix64
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (z ^ z >> 31) | 1;
}

// Where the largest number is, the first one among equals.
static int argmax(const float *v, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (v[i] > v[best]) best = i;
    return (int)best;
}

// qsort's order: the likelier first, the smaller id among equals, so that it is the same
// everywhere.
static int more_likely(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    return x->p < y->p ? 1 : x->p > y->p ? -1 : x->id - y->id;
}

// Makes recent tokens less likely, whichever sign their logits have. What is read first is written
// afterwards, so that a token that occurred twice pays only once.
static void penalize(float *logits, float penalty, const int *recent, int n)
{
    float less[REPEAT_WINDOW];
    for (int i = 0; i < n; i++) less[i] = logits[recent[i]];
    for (int i = 0; i < n; i++)
        logits[recent[i]] = less[i] > 0 ? less[i] / penalty : less[i] * penalty;
}

// Draws a token. logits [n] are overwritten. recent: the last tokens, n_recent of them. To draw is
// to lay the probabilities side by side and see on which of them a random point falls.
static int sample(Sampler *s, float *logits, size_t n, const int *recent, int n_recent)
{
    if (s->repeat_penalty != 1) penalize(logits, s->repeat_penalty, recent, n_recent);
    int best = argmax(logits, n);
    if (s->temperature == 0) return best;
    // All p are relative to the best token's, so that its own is 1 and none overflows. What is
    // below the floor can matter to no cut.
    float top = logits[best], floor = fmaxf(s->min_p, 1e-9f), total = 0, sum = 0;
    Candidate *c = xrealloc(NULL, n, sizeof *c);
    size_t left = 0, keep = 0, i = 0;
    vf scale = vset((float)s->temperature);
    for (size_t k = 0; k < n; k += LANES)
        vstore_part(logits + k, vexp((vload_part(logits + k, n - k) - vset(top)) / scale), n - k);
    logits[best] = 1; // even where the temperature is too small for a float
    for (size_t k = 0; k < n; k++)
        if (logits[k] >= floor) c[left++] = (Candidate){logits[k], (int)k};
    if (s->top_k || s->top_p < 1) qsort(c, left, sizeof *c, more_likely);
    if (s->top_k) left = min_size(left, (size_t)s->top_k);
    for (size_t k = 0; k < left; k++) total += c[k].p;
    // top-p keeps candidates until they have that share of the total; the draw falls on a point of
    // what they have together.
    while (keep < left && sum <= (float)s->top_p * total) sum += c[keep++].p;
    float draw = random_unit(&s->rng) * sum;
    while (i + 1 < keep && (draw -= c[i].p) >= 0) i++;
    int id = c[i].id;
    free(c);
    return id;
}

// ================================================================================================
// 14  Generate
//
// A Session is a loaded model with its tokenizer and what it has read. To generate is to read a
// prompt, draw the next token from the logits, read that, too, and so on; conversations (chat.c)
// and instruments (tests/measure.c) are made of the same steps. Text goes to stdout and nothing
// else does; what a person may want to know about the run goes to stderr.

// What the command line says; section 15 has an entry for each option.
static struct {
    const char *checkpoint, *tokenizer, *prompt, *file;
    const char *long_factors, *short_factors;
    double steps, seed; // whole numbers
    int mode, kv; // which entries of their tables
    int ctx, threads, chunk;
    int exact, clamp_positions, help, version;
    int no_echo;
    Sampler sampler;
} opt = {.steps = -1, .seed = -1, .chunk = 128,
         .sampler = {.temperature = 1, .top_p = 0.9, .repeat_penalty = 1}};

typedef struct {
    Model model;
    Tokenizer tokenizer;
    State state;
    const char *text; // the user's [len], or NULL
    size_t len;
    float *logits;    // [vocab_size], of the token after the last one read
    long long ctx;    // positions that may be used
    size_t pos;       // positions used: what the cache holds
    int *ids;         // [pos]: the tokens there, and at a reply's end one that was not read
    struct { size_t n; double s; } read, made; // tokens of prompts, and of replies, so far, and
                                               // the seconds they took
} Session;

// Set by Ctrl-C, and looked at between tokens and between the chunks of a prompt: a step of the
// model is never left half done, so that its cache can be used afterwards.
static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig) { interrupted = sig; }

// Seconds since some moment in the past.
static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// A prompt of a hundred pages is minutes without a word of text: a program can have it told how far
// a work is that began at `start`.
static void (*progress)(const char *what, double start, size_t done, size_t total);

// Reads tokens[n] in chunks and sets the logits; stops early on Ctrl-C. A chunk goes through the
// model as one matrix, so that every weight is fetched from memory once for all of its tokens: that
// is why a prompt is read many times faster than a text is written. The logits of the last token
// are all that is needed. A text that outgrows LongRoPE's short list is read again from its
// beginning, with the long one: keys are cached unrotated, but what the layers made of the old
// angles is in them. A model with NaN or infinity among its weights is found out here.
static void feed(Session *s, const int *tokens, size_t n)
{
    Attention *a = &s->state.attn;
    const RopeConfig *r = &a->positions[0].rope;
    double start = seconds();
    size_t step = 0, vocab = s->model.config.vocab_size, before = s->pos, end = before + n;
    s->ids = xrealloc(s->ids, end + 1, sizeof *s->ids);
    memcpy(s->ids + before, tokens, n * sizeof *tokens);
    int outgrown = rope_methods[r->method].changes == ONCE && before && a->text <= r->orig_ctx &&
                   (int64_t)end > r->orig_ctx;
    if (outgrown) fprintf(stderr, "%s: past %d tokens: reading all again\n", prog, r->orig_ctx);
    if (!before || (int64_t)end > a->text) a->text = (int64_t)end;
    size_t from = outgrown ? 0 : before; // of the cache no more holds, even if Ctrl-C comes at once
    for (s->pos = from; s->pos < end && !interrupted; s->pos += step) {
        step = min_size(end - s->pos, s->state.chunk);
        forward(&s->state, s->ids + s->pos, step, s->pos);
        size_t done = (interrupted ? end : s->pos + step) - from; // Ctrl-C ends the work
        if (progress) progress("reading, tokens", start, done, end - from);
    }
    if (step) classify(&s->state, step - 1, 1, s->logits);
    for (size_t i = 0; i < vocab; i++)
        if (!isfinite(s->logits[i]))
            die(EXIT_DATA, s->model.path, "its logits are not finite at position %zu", s->pos - 1);
}

// Text that could not be written (a full disk, a closed pipe) is an error, told as soon as
// possible.
static void check_written(FILE *f, const char *name)
{
    if (fflush(f) || ferror(f)) die(EXIT_DATA, name, "cannot write (%s)", strerror(errno));
}

// Text on its way out. A token may end inside a character (an emoji's four bytes are rarely one
// piece), so an incomplete UTF-8 sequence at the end waits for its other bytes, and is dropped if
// there are none. On a terminal, characters that it would obey are shown, ESC as ^[: what a model
// has read somewhere must not rename windows or type commands.
typedef struct {
    FILE *out;
    int terminal;
    char held[4];
    size_t n;
} Stream;

// Writes the held character, whole or not.
static void stream_flush(Stream *s)
{
    uint8_t c = s->n ? (uint8_t)s->held[s->n - 1] : 0;
    int low = s->n == 1 && (c < 32 || c == 127) && c != '\n' && c != '\t';
    int high = s->n == 2 && (uint8_t)s->held[0] == 0xc2 && c < 0xa0; // ESC and c - 64 in one
    if (s->terminal && (low || high)) fprintf(s->out, low ? "^%c" : "^[%c", c ^ (low ? 64 : 192));
    else fwrite(s->held, 1, s->n, s->out);
    s->n = 0;
}

// Writes all characters that are complete by now. Control characters were told apart by their first
// byte, or as the two bytes of U+0080 to U+009F.
static void stream_write(Stream *s, const char *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (((uint8_t)bytes[i] & 0xc0) != 0x80) stream_flush(s); // it will never be completed
        s->held[s->n++] = bytes[i];
        if (s->n >= utf8_length(s->held[0])) stream_flush(s);
    }
    check_written(s->out, "stdout"); // not when hours of text went to a full disk or a closed pipe
}

// What ends a text that is whole; whatever else ends one cuts it.
static const char THE_MODEL[] = "the model";

// Reads ids[n] and goes on until a stop token, the number of steps asked for, a full context or
// Ctrl-C; returns which, in words. echo: the user's text is written out first, as llama2.c does.
// Every token is drawn from the logits, written out, and read in its turn, which gives the next
// logits. The last one need not be read, since nothing follows it, but stands behind the others in
// s->ids.
static const char *reply(Session *s, const int *ids, size_t n, int echo)
{
    const Tokenizer *t = &s->tokenizer;
    Stream out = {.out = stdout, .terminal = isatty(STDOUT_FILENO)};
    double start = seconds();
    size_t before = s->pos;
    feed(s, ids, n);
    double middle = seconds();
    if (s->pos > before) s->read.n += s->pos - before; // fewer than n after Ctrl-C
    if (echo) stream_write(&out, s->text, s->len);
    const char *end = interrupted ? "Ctrl-C" : NULL;
    for (long long made = 0; !end;) {
        size_t recent = min_size(s->pos, REPEAT_WINDOW), len;
        int id = sample(&opt.sampler, s->logits, s->model.config.vocab_size,
                        s->ids + s->pos - recent, (int)recent);
        if (t->pieces[id].stop) end = THE_MODEL;
        else {
            const char *text = tokenizer_decode(t, s->ids[s->pos - 1], id, &len);
            stream_write(&out, text, len);
            s->ids[s->pos] = id;
            s->made.n++;
            if ((long long)s->pos >= s->ctx) end = "a full context (see -c, --window)";
            else if (++made == opt.steps) end = "-n"; // nothing follows its last token
            else feed(s, &id, 1);
            if (interrupted) end = "Ctrl-C";
        }
    }
    fputc('\n', stdout);
    check_written(stdout, "stdout");
    s->read.s += middle - start;
    s->made.s += seconds() - middle;
    return end;
}

// The last line of a run, with all that is needed to have the text again. Reading and writing have
// speeds of their own: the one is bound by arithmetic, the other by the bandwidth of memory.
static void say_speed(const Session *s, const char *ending)
{
    fprintf(stderr, "prompt: %zu tokens, %.1f tok/s; generated: %zu tokens, %.1f tok/s; seed %.0f; "
            "ended by %s\n", s->read.n, s->read.n / fmax(s->read.s, 1e-9), s->made.n,
            s->made.n / fmax(s->made.s, 1e-9), opt.seed, ending);
}

// The text's tokens, with BOS first if the model wants it. There is at least one, since a model
// needs one to go on from. The caller frees them.
static int *encode_text(const Tokenizer *t, const char *text, size_t len, size_t *n)
{
    int *ids = xrealloc(NULL, add_size(mul_size(len, 2), 2), sizeof *ids);
    ids[0] = t->bos >= 0 ? t->bos : t->eos >= 0 ? t->eos : 0;
    *n = max_size(1, (size_t)t->add_bos + tokenizer_encode(t, text, len, ids + t->add_bos));
    return ids;
}

// Mode generate: continues the prompt. It has to fit into the context whole, since a text whose
// beginning was silently cut off is another text.
static void run_generate(Session *s)
{
    size_t n;
    int *ids = encode_text(&s->tokenizer, s->text ? s->text : "", s->len, &n);
    if ((long long)n > s->ctx)
        die(EXIT_DATA, "prompt", "longer than the context (got %zu tokens, want %lld at most); "
            "use -c %zu, or --window", n, s->ctx, n + 256);
    if (opt.steps < 0) opt.steps = 256;
    say_speed(s, reply(s, ids, n, !opt.no_echo));
    free(ids);
}

// The user's text: a file's, the prompt, or both, the prompt on a line of its own behind the file.
// A byte order mark is no text. UTF-16, as some editors write it, would be read as letters with
// zeros between, and is refused.
static void read_prompt(Session *s)
{
    char *text = opt.file ? read_text(opt.file, &s->len) : xcalloc(1, 1);
    const char *prompt = opt.prompt ? opt.prompt : "";
    if (s->len >= 2 && (!memcmp(text, "\xff\xfe", 2) || !memcmp(text, "\xfe\xff", 2)))
        die(EXIT_DATA, opt.file, "UTF-16 (want UTF-8); convert it: iconv -f UTF-16 -t UTF-8");
    size_t mark = strncmp(text, "\xef\xbb\xbf", 3) ? 0 : 3;
    text = xrealloc(text, s->len + strlen(prompt) + 2, 1);
    const char *form = s->len > mark && *prompt ? "\n%s" : "%s";
    s->len += (size_t)sprintf(text + s->len, form, prompt) - mark;
    if (opt.file || opt.prompt) s->text = text + mark;
}

// ================================================================================================
// 15  Options and main
//
// Tables say what every option is called, where its value goes and what it may be; the parser, the
// range checks and the help text all come from them. The numbers of Config have theirs in section
// 10, since files know them, too. A program (this one, chat.c, tests/measure.c) is a list of such
// tables, and the names of its first option are its modes, the things that it can do with a model.
//
// What the command line says is checked in the order in which it can be known to be wrong: options
// by themselves, before any file is opened; the file; then both together. A mistake in the command
// line ends with status 2, one in a file or in the system with 1, each with one line on stderr.

// Numbers are parsed whole: "12x", "", "nan" and what is out of range are refused, never clamped.
// what: the option or the file that says it; code: the exit status if it is wrong.
static double parse_number(int code, const char *what, const char *s, int whole, double lo,
                           double hi)
{
    char *end;
    double v = strtod(s, &end);
    if (end == s || *end || isspace((unsigned char)*s) || (whole && v != rint(v)))
        die(code, what, "not a %snumber (got '%.99s')", whole ? "whole " : "", s);
    if (!(v >= lo && v <= hi))
        die(code, what, "out of range (got %.99s, want %.15g to %.15g)", s, lo, hi);
    return v;
}

// What a program can do. ENDLESS: where a window keeps memory constant, there is no end to the
// text; NO_STATE: the model is looked at, and does not run.
enum { ENDLESS = 1, NO_STATE = 2 };
typedef struct {
    const char *name;
    void (*run)(Session *s);
    int kind;
} Mode;

// Options of every program that includes this file.
static const Option shared_options[] = {
    // Where text and model come from.
    {"prompt", 'i', "TEXT", "the text to continue; chat: first turn", TEXT(opt.prompt)},
    {"file", 'f', "PATH", "all of a file, - is standard input; -i follows it", TEXT(opt.file)},
    {"seed", 's', "N", "the same seed gives the same text", WHOLE(opt.seed, 0, 9e15)},
    {"tokenizer", 'z', "PATH", "(tokenizer.bin beside the model or above)", TEXT(opt.tokenizer)},
    // What the run costs.
    {"ctx", 'c', "N", "context (as trained; --window: no end)", NUMBER(opt.ctx, 1, 1 << 28)},
    {"threads", 'j', "N", "(processors that may be used)", NUMBER(opt.threads, 1, 1024)},
    {"chunk", 0, "N", "tokens of a prompt read at once (128)", NUMBER(opt.chunk, 1, 1 << 15)},
    {"kv", 0, "f16|f32|q8", "type of the KV cache (f16)", NAME(opt.kv, kv_types)},
    {"exact", 0, "", "all activations and the KV cache in float32", FLAG(opt.exact)},
    // Positions: the numbers of section 10's table are joined by these.
    {"long-factors", 0, "PATH", "longrope: a number a pair", TEXT(opt.long_factors)},
    {"short-factors", 0, "PATH", "the same up to L tokens", TEXT(opt.short_factors)},
    {"clamp-positions", 0, "", "learned: past the table, its last row", FLAG(opt.clamp_positions)},
    {"help", 'h', "", "this text", FLAG(opt.help)},
    {"version", 0, "", "that of the program", FLAG(opt.version)},
};

// Options of programs that write text: how much of it, and how the next token is drawn (section
// 13).
static const Option text_options[] = {
    {"steps", 'n', "N", "new tokens (256; chat: no end); 0: no end", WHOLE(opt.steps, 0, 1e12)},
    {"temp", 't', "T", "temperature (1); 0: likeliest", NUMBER(opt.sampler.temperature, 0, 1e3)},
    {"top-p", 'p', "P", "from the likeliest tokens up to P (0.9)", NUMBER(opt.sampler.top_p, 0, 1)},
    {"top-k", 'k', "K", "from the K likeliest; 0: all", NUMBER(opt.sampler.top_k, 0, 1e9)},
    {"min-p", 0, "P", "none below P times the likeliest", NUMBER(opt.sampler.min_p, 0, 1)},
    {"repeat-penalty", 0, "R", "for 64 tokens", NUMBER(opt.sampler.repeat_penalty, 0.1, 10)},
    {"no-echo", 0, "", "the prompt is not written out", FLAG(opt.no_echo)},
};

// A program is a list of tables of options, ended by an empty one. Its first option says what it is
// to do: one of its modes, by default the first.
static const Names *program;
static const Mode *mode; // the one that was chosen

// Entry i of the program's tables, counted through all of them, or NULL behind the last.
static const Option *option_at(size_t i)
{
    for (const Names *table = program; table->n; i -= table++->n)
        if (i < table->n) return (const Option *)table->at + i;
    return NULL;
}

// One line an option, in the order of the tables: its names, what its value is, and what it does.
static void print_help(void)
{
    const Option *o;
    printf("usage: %s CHECKPOINT [options], with defaults in brackets\n", prog);
    for (size_t i = 0; (o = option_at(i)); i++) {
        char left[64], letter[] = {'-', o->letter, ',', ' ', 0};
        if (!o->name) continue;
        snprintf(left, sizeof left, "%4s--%s %s", o->letter ? letter : "", o->name, o->arg);
        printf("  %-30s %s\n", left, o->help ? o->help : list_names(o->names));
    }
    printf("--rope-scaling:\n");
    for (int i = 0; i < N_ROPE_METHODS; i++)
        printf("  %-30s %s\n", rope_methods[i].name, rope_methods[i].what);
}

// Sets what option o says; text: its value, of which the next entry takes what follows a colon. A
// name that is none is answered with those that are.
static void set_option(const Option *o, const char *name, char *text)
{
    if (o->arg && strchr(o->arg, ':')) {
        char *colon = strchr(text, ':');
        if (!colon) die(EXIT_USAGE, name, "want two numbers, %s (got '%.99s')", o->arg, text);
        *colon = 0;
        set_option(o + 1, name, colon + 1);
    }
    if (o->distance && asked.rope.distance && asked.rope.distance != o->distance)
        die(EXIT_USAGE, "distance method", "only one can be used (got %s, too)", name);
    if (o->distance) asked.rope.distance = o->distance;
    int whole = o->kind != N_DOUBLE, flag = o->arg && !*o->arg;
    int row = find_name(o->names, strcmp(text ? text : "", "pi") ? text : "linear"); // as [PI] says
    if (o->names.n && row < 0)
        die(EXIT_USAGE, name, "no such name (got '%.99s', want %s)", text,
            o->help ? o->help : list_names(o->names));
    if (o->kind == N_TEXT) *(const char **)o->to = text;
    else if (o->names.n || flag) store_value(o, o->to, flag ? 1 : row);
    else store_value(o, o->to, parse_number(EXIT_USAGE, name, text, whole, o->lo, o->hi));
}

// The whole command line: "--name value", "--name=value", "-n value", and one word without a dash,
// the model's file. Options may stand before it and behind it, and the last of two counts.
static void parse_options(int argc, char **argv)
{
    for (int a = 1; a < argc; a++) {
        char *arg = argv[a], *value = !strncmp(arg, "--", 2) ? strchr(arg, '=') : NULL;
        if (arg[0] != '-' || !arg[1]) {
            if (opt.checkpoint) die(EXIT_USAGE, arg, "a second checkpoint; see %s -h", prog);
            opt.checkpoint = arg;
            continue;
        }
        if (value) *value++ = 0;
        const Option *o;
        for (size_t i = 0; (o = option_at(i)); i++)
            if (arg[1] == '-' ? o->name && !strcmp(arg + 2, o->name)
                              : o->letter == arg[1] && !arg[2]) break;
        if (!o) die(EXIT_USAGE, arg, "no such option; see %s -h", prog);
        if (!*o->arg && value) die(EXIT_USAGE, arg, "takes no value");
        if (*o->arg && !value && !(value = argv[++a]))
            die(EXIT_USAGE, arg, "needs a value (%s)", o->arg);
        set_option(o, arg, value);
    }
    mode = (const Mode *)option_at(0)->names.at + opt.mode;
}

// tokenizer.bin beside the checkpoint, or in the folder above, where several models share it; no
// pipe, which might never end.
static const char *find_tokenizer(const char *checkpoint)
{
    static char path[PATH_MAX];
    struct stat st;
    const char *slash = strrchr(checkpoint, '/');
    int len = slash ? (int)(slash - checkpoint) + 1 : 0;
    for (int up = 0; up < 2; up++) {
        snprintf(path, sizeof path, "%.*s%stokenizer.bin", len, checkpoint, up ? "../" : "");
        if (!stat(path, &st) && S_ISREG(st.st_mode)) return path;
    }
    die(EXIT_DATA, checkpoint, "no tokenizer.bin beside it or in the folder above; use -z");
}

// As many threads as this process may use processors: taskset and containers allow it fewer than
// the machine has, and more threads than processors wait for each other.
static int processors(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

// Starts the pool's other threads, which never end.
static void pool_start(int n_threads)
{
    for (int i = pool.n_threads; i < n_threads; i++) {
        pthread_t thread;
        int err = pthread_create(&thread, NULL, pool_worker, NULL);
        if (err) die(EXIT_DATA, "threads", "cannot start thread %d (%s)", i + 1, strerror(err));
    }
    pool.n_threads = n_threads;
}

// LongRoPE's factors from a file: numbers separated by blanks or commas, one a pair, all positive.
static const float *read_factors(const char *path, size_t pairs)
{
    size_t len, n = 0;
    char *text = read_text(path, &len), *word;
    float *list = xcalloc(len / 2 + 1, sizeof *list); // room for digits with one byte between
    if (strlen(text) < len) die(EXIT_DATA, path, "a zero byte among its numbers");
    while ((word = strsep(&text, ", \t\r\n")))
        if (*word) list[n++] = (float)parse_number(EXIT_DATA, path, word, 0, 1e-6, 1e6);
    if (n != pairs) die(EXIT_DATA, path, "one number a pair (got %zu, want %zu)", n, pairs);
    return list;
}

// Lays what the command line says about positions over the model's; both were held against the same
// ranges, and check_rope() looks at what they are together. Another method takes the place of the
// model's factors, too, which belong to the model's own; a window that is taken away takes its
// sinks along. What can have no effect on this model is refused, since whoever gives it expects
// one.
static void set_rope(Config *c)
{
    RopeConfig *r = &c->rope;
    const RopeConfig *from = &asked.rope;
    if (from->method >= 0 && from->method != r->method) r->factor = r->attn_factor = 0;
    for (const Option *f = config_fields; f < config_fields + COUNT(config_fields); f++) {
        size_t at = field_at(f), bytes = f->kind == N_INT ? sizeof(int) : sizeof(double);
        if (memcmp(f->to, (char *)&unasked + at, bytes)) memcpy((char *)c + at, f->to, bytes);
    }
    if (!r->window && from->sinks < 0) r->sinks = 0;
    if (!from->window) c->local.window = 0;
    int ramp = r->method == ROPE_BY_PARTS || r->method == ROPE_YARN;
    if (from->factor > 0 && !r->method)
        die(EXIT_USAGE, "--rope-factor", "needs --rope-scaling METHOD");
    if ((opt.long_factors || opt.short_factors) && r->method != ROPE_LONGROPE)
        die(EXIT_USAGE, "--long-factors, --short-factors", "needs --rope-scaling longrope");
    if ((from->beta_fast > 0 || from->beta_slow > 0) && !ramp)
        die(EXIT_USAGE, "--beta-fast, --beta-slow", "needs --rope-scaling yarn");
    if ((from->low_freq_factor > 0 || from->high_freq_factor > 0) && r->method != ROPE_LLAMA3)
        die(EXIT_USAGE, "--low-freq-factor, --high-freq-factor", "needs --rope-scaling llama3");
    // Lists whose length is the model's.
    if (opt.long_factors) r->long_factors = read_factors(opt.long_factors, rotary_dims(c) / 2);
    if (opt.short_factors) r->short_factors = read_factors(opt.short_factors, rotary_dims(c) / 2);
    if (!is_rotary(c) && (from->theta > 0 || from->attn_factor > 0 || from->fraction > 0))
        die(EXIT_USAGE, "--rope-theta, --rope-attn-factor, --rope-fraction", "the model does not "
            "rotate (its encoding is %s)", encodings[c->encoding].name);
    check_rope(c, NULL);
}

// Refuses n positions where the model's learned ones end: what lies behind was never there.
static void check_learned(const Config *c, const char *option, long long n)
{
    double stretch = position_stretch(c);
    if (c->encoding == ENC_LEARNED && !opt.clamp_positions && (n - 1) / stretch >= c->rows)
        die(EXIT_USAGE, option, "past the model's learned positions (got %lld, want at most %d); "
            "see --clamp-positions", n, (int)ceil(c->rows * stretch));
}

// Which context the run uses: -c, else as trained; or, where a window keeps memory constant, as
// much as there is text. Then the factor of a method that follows from the context is that of the
// trained one: a context without end has no ratio to it. Learned positions have an end even so.
static long long choose_context(Config *c)
{
    long long ctx = opt.ctx ? opt.ctx : c->train_ctx;
    int bounded = c->encoding == ENC_LEARNED && !opt.clamp_positions;
    int endless = mode->kind & ENDLESS && c->rope.window && !opt.ctx;
    rope_resolve(&c->rope, c->train_ctx, ctx);
    check_learned(c, "-c", ctx);
    return endless && !bounded ? 1 << 28 : ctx;
}

// From the command line to a model that can be fed: everything that a mode needs, and for those
// that only look at the model (NO_STATE) no threads, cache or way to cut text.
static void open_session(Session *s)
{
    model_load(&s->model, opt.checkpoint);
    Config *c = &s->model.config;
    set_rope(c);
    s->ctx = choose_context(c);
    Vocab v = s->model.vocab;
    if (!opt.tokenizer && !v.tokens.n) opt.tokenizer = find_tokenizer(opt.checkpoint);
    if (opt.tokenizer) v = read_vocab(opt.tokenizer, (size_t)c->vocab_size);
    tokenizer_init(&s->tokenizer, opt.tokenizer ? opt.tokenizer : opt.checkpoint, &v);
    read_prompt(s);
    if (mode->kind & NO_STATE) return;
    pool_start(opt.threads ? opt.threads : processors());
    // Frequencies that always change need Angles for each of a chunk's tokens. Where keys may stand
    // at uneven steps, each of these takes as much memory as one head's keys in floats.
    size_t chunk = opt.chunk, most = c->rope.distance ? 8 : TILE;
    if (rope_methods[c->rope.method].changes == ALWAYS) chunk = min_size(chunk, most);
    // The cache is reserved here, and what does not fit is refused with its size.
    state_init(&s->state, &s->model, s->ctx, chunk, opt.kv, opt.exact);
    s->logits = xcalloc(c->vocab_size, 4);
    // A seed for who gives none: short enough to be typed, and another one each time, since of the
    // clock's nanoseconds it takes those that change within a second.
    if (opt.seed < 0) opt.seed = (double)((uint64_t)(1e9 * seconds()) % (1 << 30));
    opt.sampler.rng = seed_random((uint64_t)opt.seed);
}

// All that a program's main does, from the command line to the last line that is written; check:
// what must hold of the program's own options before a file is opened.
static int run_main(const Names *tables, void (*check)(void), int argc, char **argv)
{
    // A closed stdin, stdout or stderr must not become some file that is opened later.
    for (int fd = 0; fd >= 0 && fd < 3;) fd = open("/dev/null", O_RDONLY);
    static Session s;
    program = tables;
    parse_options(argc, argv);
    if (opt.help) print_help();
    else if (opt.version) printf("%s 0.1\n", prog);
    else {
        if (!opt.checkpoint)
            die(EXIT_USAGE, "usage", "%s CHECKPOINT [options]; see %s -h", prog, prog);
        if (check) check();
        open_session(&s);
        // The first Ctrl-C ends the text cleanly, the second ends the program, as the system would
        // have done without this. A broken pipe and a limit on files' sizes show as failed writes,
        // which are told in words, and not as the end of the program by a signal.
        struct sigaction once = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART | SA_RESETHAND};
        sigaction(SIGINT, &once, NULL);
        signal(SIGPIPE, SIG_IGN);
        signal(SIGXFSZ, SIG_IGN);
        mode->run(&s);
    }
    check_written(stdout, "stdout");
    return 0;
}

// The engine alone. chat.c and tests/measure.c are programs that can do more.
#ifndef TESTING
static const Mode run_modes[] = {{"generate", run_generate, ENDLESS}};
static const Option run_options[] = {
    {"mode", 'm', "MODE",
     "generate; conversations are in chat.c, what measures in tests/measure.c: see make",
     NAME(opt.mode, run_modes)},
};
static const Names run_program[] = {
    NAMES(run_options), NAMES(text_options), NAMES(shared_options), NAMES(config_fields), {0}};

int main(int argc, char **argv) { return run_main(run_program, NULL, argc, argv); }
#endif

// ================================================================================================
// Papers
//
// [RoPE]      Su et al. 2021, RoFormer, arXiv 2104.09864
// [PI]        Chen et al. 2023, position interpolation, arXiv 2306.15595
// [NTK]       bloc97 2023, "NTK-aware scaled RoPE"; emozilla 2023, its dynamic form
// [YaRN]      Peng et al. 2023, arXiv 2309.00071
// [Llama3]    Grattafiori et al. 2024, the Llama 3 models, arXiv 2407.21783
// [LongRoPE]  Ding et al. 2024, arXiv 2402.13753
// [Streaming] Xiao et al. 2023, attention sinks, arXiv 2309.17453
// [SelfExt]   Jin et al. 2024, Self-Extend, arXiv 2401.01325
// [ReRoPE]    Su Jianlin 2023, ReRoPE and Leaky ReRoPE; log-n scaling, 2021
// [Flash]     Dao et al. 2022, attention by tiles with an online softmax, arXiv 2205.14135
// [Sin]       Vaswani et al. 2017, sinusoidal positions, arXiv 1706.03762
// [GPT-2]     Radford et al. 2019, learned positions
// [NoPE]      Haviv et al. 2022, arXiv 2203.16634; Kazemnejad et al. 2023, arXiv 2305.19466
// [ALiBi]     Press et al. 2021, arXiv 2108.12409
// [T5]        Raffel et al. 2019, arXiv 1910.10683
// [xPos]      Sun et al. 2022, arXiv 2212.10554
// [KERPLE]    Chi et al. 2022, arXiv 2205.09921
// [FIRE]      Li et al. 2023, arXiv 2310.04418
// [Shaw]      Shaw et al. 2018, arXiv 1803.02155
// [Sandwich]  Chi et al. 2022, arXiv 2212.10356
// [STRING]    An et al. 2024, arXiv 2410.18745
// [DCA]       An et al. 2024, Dual Chunk Attention, arXiv 2402.17463
// [Llama4]    Meta 2025, attention temperature
// [p-RoPE]    Barbero et al. 2024, arXiv 2410.06205
// [GQA]       Ainslie et al. 2023, grouped-query attention, arXiv 2305.13245
