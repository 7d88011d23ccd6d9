// test_kernels.c: numbers, kernels, threads and linear algebra (sections 1 to 6 of run.c).
#define TESTING
#include "measure.c"
#include "check.h"
#include "codes.h"

// ---- Half precision ----------------------------------------------------------------------------

// One half or float, as vectors of them are converted.
static float half_to_float(uint16_t h) { return load_numbers(AS_F16, &h, 0, 1)[0]; }

static uint16_t float_to_half(float f)
{
    uint16_t h;
    store_numbers(AS_F16, &f, 1, &h);
    return h;
}

// What the bits of a half mean, in double, from the definition of the format.
static double half_value(uint16_t h)
{
    int exp = (h >> 10) & 31, man = h & 1023;
    double sign = h >> 15 ? -1 : 1;
    if (exp == 31) return man ? NAN : sign * INFINITY;
    return sign * (exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24));
}

static int same_or_nan(double a, double b) { return a == b ? signbit(a) == signbit(b) : a != a && b != b; }

static void test_half_to_float(void)
{
    static uint16_t halves[65536];
    static float one[65536], many[65536];
    int bad = 0, bad_many = 0, bad_back = 0;
    for (int h = 0; h < 65536; h++) {
        halves[h] = (uint16_t)h;
        one[h] = half_to_float((uint16_t)h);
        bad += !same_or_nan(one[h], half_value((uint16_t)h));
        if (isfinite(one[h])) bad_back += float_to_half(one[h]) != h;
    }
    uint16_t *back = xcalloc(65536, 2);
    for (size_t h = 0; h < 65536; h += LANES) vstore(many + h, load_numbers(AS_F16, halves, h, LANES));
    store_numbers(AS_F16, many, 65536, back);
    for (int h = 0; h < 65536; h++)
        bad_back += isinf(many[h]) ? !isnan(half_to_float(back[h])) // must not be lost
                                   : !same_or_nan(half_to_float(back[h]), many[h]);
    for (int h = 0; h < 65536; h++) bad_many += !same_or_nan(many[h], one[h]);
    memset(back, 0, 14 * 2);
    store_numbers(AS_F16, one + 0x3c01, 13, back); // a length that fits no vector
    for (int h = 0; h < 13; h++) bad_back += back[h] != h + 0x3c01;
    bad_back += back[13] != 0; // nothing is written behind it
    free(back);
    CHECK_INT(bad, 0);
    CHECK_INT(bad_many, 0);
    CHECK_INT(bad_back, 0);
}

// Rounding: the midpoint of two halves goes to the even one, its neighbours to the nearer one.
static void test_float_to_half(void)
{
    int bad = 0;
    for (int h = 0; h < 0x7bff; h++) {
        double lo = half_value((uint16_t)h), hi = half_value((uint16_t)(h + 1));
        float middle = (float)((lo + hi) / 2); // exact: 12 bits
        int even = h + (h & 1);
        bad += float_to_half(middle) != even;
        bad += float_to_half(nextafterf(middle, 0)) != h;
        bad += float_to_half(nextafterf(middle, 1e9f)) != h + 1;
        bad += float_to_half(-middle) != (even | 0x8000);
    }
    CHECK_INT(bad, 0);
    CHECK_INT(float_to_half(65504), 0x7bff);
    CHECK_INT(float_to_half(65520), 0x7bff); // not infinity: see vf_to_half
    CHECK_INT(float_to_half(-1e30f), 0xfbff);
    CHECK_INT(float_to_half(0x1p-26f), 0);
    CHECK_INT(float_to_half(-0.0f), 0x8000);
    static const float lost[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) CHECK(isnan(half_to_float(float_to_half(lost[i]))));
}

// ---- Float kernels -----------------------------------------------------------------------------

static float exp_one(float x)
{
    vf v = vexp(vset(x));
    return v[LANES - 1];
}

static void test_vexp(void)
{
    double worst = 0;
    for (double x = -87; x <= 88; x += 0.000731) {
        float f = (float)x;
        worst = fmax(worst, fabs(exp_one(f) / exp(f) - 1));
    }
    CHECK_NEAR(worst, 0, 3e-7);
    CHECK(exp_one(NAN) != exp_one(NAN));
    int bad = 0;
    for (uint32_t bits = 1; bits < 0x800000; bits += 4097) { // NaNs with something in them
        uint32_t nan = 0x7f800000 | bits | (bits & 1) << 31;
        float f;
        memcpy(&f, &nan, 4);
        bad += exp_one(f) == exp_one(f);
    }
    CHECK_INT(bad, 0);
    CHECK(exp_one(0) == 1);
    CHECK(exp_one(-1e30f) == 0);
    CHECK(exp_one(-INFINITY) == 0);
    CHECK(exp_one(-87.5f) == 0);
    CHECK_NEAR(exp_one(1e30f) / exp(88), 1, 1e-6); // held at e^88, not infinite
    CHECK_NEAR(exp_one(INFINITY) / exp(88), 1, 1e-6);
}

// The 16 running sums are added whatever the number of lanes, none twice, in the order that the
// comment says.
static void test_vsum(void)
{
    float f[SUMS], c[SUMS];
    vf v[SUM_VECTORS];
    for (int i = 0; i < SUMS; i++) f[i] = (float)(1 << i);
    memcpy(v, f, sizeof f);
    CHECK(vsum(v) == (float)((1 << SUMS) - 1));
    for (int i = 0; i < LANES; i++) c[i] = f[i];
    CHECK(vmax_lane(vload(c)) == (float)(1 << (LANES - 1)));
    vf part = vload_part((float[]){1, 2, 4, 8}, 3);
    CHECK(part[0] == 1 && part[2] == 4 && part[3] == 0);
    for (int round = 0; round < 100; round++) {
        for (int i = 0; i < SUMS; i++) f[i] = c[i] = random_gauss();
        for (int far = SUMS / 2; far; far /= 2)
            for (int i = 0; i < far; i++) c[i] += c[i + far];
        memcpy(v, f, sizeof f);
        float got = vsum(v);
        CHECK_BITS(&got, c, 1);
    }
}

static double naive_dot(const float *a, const float *b, size_t n, double *size)
{
    double sum = *size = 0;
    for (size_t k = 0; k < n; k++) sum += (double)a[k] * b[k], *size += fabs((double)a[k] * b[k]);
    return sum;
}

// The order of sums as section 2 states it, number by number.
static float plain_dot(const float *a, const float *b, size_t n)
{
    float sums[SUMS] = {0};
    for (size_t k = 0; k < n; k++)
        sums[k % SUMS] = FUSED ? fmaf(a[k], b[k], sums[k % SUMS]) : sums[k % SUMS] + a[k] * b[k];
    for (size_t far = SUMS / 2; far; far /= 2)
        for (size_t i = 0; i < far; i++) sums[i] += sums[i + far];
    return sums[0] + 0;
}

static void test_dot(void)
{
    float *a = random_floats(300), *b = random_floats(300);
    for (size_t n = 0; n <= 300; n++) {
        double size, want = naive_dot(a, b, n, &size);
        float got = dot(a, b, n), plain = plain_dot(a, b, n);
        CHECK_NEAR(got, want, 1e-6 * size);
        CHECK_BITS(&got, &plain, 1);
    }
    free(a);
    free(b);
}

// Products of floats for any number of tokens and rows, and of any length, the ends of blocks
// included: each output has the bits of the plain sum, and nothing else is written.
static void test_products_f32(void)
{
    enum { MOST = 40, ROWS = 2 * PANEL + 7 };
    size_t sizes[] = {1, 3, 8, 15, 16, 17, 33, 64, 100, 1024, 1030, 2100};
    for (size_t c = 0; c < COUNT(sizes); c++) {
        size_t cols = sizes[c];
        float *w = random_floats(ROWS * cols), *x = random_floats(MOST * cols);
        float *out = xcalloc(MOST * ROWS + 1, 4), *want = xcalloc(MOST * ROWS, 4);
        for (size_t n = 1; n <= MOST; n += n < 14 ? 1 : 13)
            for (size_t rows = 1; rows <= ROWS; rows += rows < 5 ? 1 : 11) {
                Tensor t = {&tensor_types[T_F32], (uint8_t *)w, NULL, 0, rows, cols, NULL};
                int before = n_failed;
                memset(out, 0, MOST * ROWS * 4);
                matmul(&(Quantized){0}, &(Product){&t, out}, 1, x, n);
                for (size_t i = 0; i < n * rows; i++)
                    want[i] = plain_dot(w + i % rows * cols, x + i / rows * cols, cols);
                CHECK_BITS(out, want, n * rows);
                CHECK(out[n * rows] == 0);
                note_failures(before, "cols %zu, rows %zu, n %zu", cols, rows, n);
                if (cols > 100) rows += 20, n += 3; // slow, and the same code
            }
        free(w), free(x), free(out), free(want);
    }
}

static void test_gemm_rows(void)
{
    enum { MOST = GEMM_ROWS + GEMM_ROWS / 3 + 3, INNER = 37, WIDE = GEMM_VECTORS * LANES };
    for (size_t N = WIDE; N <= 5 * WIDE; N += WIDE) {
        float *a = random_floats(MOST * INNER), *b = random_floats(INNER * N);
        float *start = random_floats(MOST * N), *c = xcalloc(MOST * N, 4), *one = xcalloc(N, 4);
        int bad = 0, bad_bits = 0;
        memcpy(c, start, MOST * N * 4);
        gemm_rows(MOST, a, b, INNER, N, c);
        for (size_t t = 0; t < MOST; t++) {
            memcpy(one, start + t * N, N * 4);
            gemm_rows(1, a + t * INNER, b, INNER, N, one);
            bad_bits += memcmp(one, c + t * N, N * 4) != 0;
            for (size_t v = 0; v < N; v++) {
                double want = start[t * N + v], size = fabs(want);
                for (size_t k = 0; k < INNER; k++) {
                    double p = (double)a[t * INNER + k] * b[k * N + v];
                    want += p, size += fabs(p);
                }
                bad += !(fabs(c[t * N + v] - want) <= 1e-6 * size);
            }
        }
        CHECK_INT(bad, 0);
        CHECK_INT(bad_bits, 0);
        free(a), free(b), free(start), free(c), free(one);
    }
}

// ---- int8 --------------------------------------------------------------------------------------

static Quantized quantized(size_t n, size_t cols, size_t group)
{
    size_t room = n + Q8_TOKENS - 1;
    return (Quantized){xcalloc(room * cols, 1), xcalloc(room * cols / group, 4),
                       xcalloc(room * cols / group, 4)};
}

static void free_quantized(Quantized *x)
{
    free(x->q), free(x->scale), free(x->minus_sum);
}

// Where token t's scale of group g stands: in tiles of tokens, which are side by side there.
static size_t scale_place(size_t n, size_t n_groups, size_t t, size_t g)
{
    size_t tile = n < Q8_TOKENS ? n : Q8_TOKENS;
    return (t / tile * n_groups + g) * tile + t % tile;
}

// Each value comes back within half a step of its group's scale; the largest exactly.
static void test_quantize_row(void)
{
    enum { COLS = 96, GROUP = 32, GROUPS = COLS / GROUP };
    float *x = random_floats(2 * COLS);
    memset(x, 0, GROUP * 4); // a group of zeros
    Quantized a = quantized(2, COLS, GROUP);
    int bad = 0, bad_sum = 0;
    Matmul m = {.x = x, .n = 2, .act = &a, .group = GROUP, .n_groups = GROUPS};
    for (size_t t = 0; t < 2; t++) quantize_row(&m, t);
    for (size_t g = 0; g < 2 * GROUPS; g++) {
        int sum = 0, largest = 0;
        size_t at = scale_place(2, GROUPS, g / GROUPS, g % GROUPS);
        for (size_t k = g * GROUP; k < (g + 1) * GROUP; k++) {
            bad += !(fabs(a.q[k] * (double)a.scale[at] - x[k]) <= 0.5001 * a.scale[at]);
            sum += a.q[k];
            largest |= abs(a.q[k]) == 127;
        }
        bad += largest != (g > 0);
        bad_sum += a.minus_sum[at] != -sum;
    }
    CHECK_INT(bad, 0);
    CHECK_INT(bad_sum, 0);
    CHECK(a.scale[0] == 0);
    free_quantized(&a);
    free(x);
}

// The definition of a tile, one number at a time: codes[PANEL][cols] are int8 whose zero is 0.
static void tile_plain(const int8_t *codes, const float *scales, const float *mins,
                       const Matmul *m, float *out, size_t stride, size_t n_rows)
{
    const Quantized *x = m->act;
    size_t n_groups = m->n_groups, cols = n_groups * m->group;
    for (size_t t = 0; t < m->n; t++)
        for (size_t r = 0; r < n_rows; r++) {
            vf sum = {0};
            for (size_t g = 0; g < n_groups; g++) {
                size_t at = scale_place(m->n, n_groups, t, g);
                int32_t dot = 0;
                for (size_t k = g * m->group; k < (g + 1) * m->group; k++)
                    dot += codes[r * cols + k] * x->q[t * cols + k];
                float scale = scales[g * PANEL + r] * x->scale[at];
                sum = vmuladd(vset((float)dot), vset(scale), sum);
                if (!mins) continue;
                float min = mins[g * PANEL + r] * x->scale[at];
                sum = vmuladd(vset(x->minus_sum[at]), vset(min), sum);
            }
            out[t * stride + r] = sum[0];
        }
}

// One shape: the fast tile equals the plain one bit for bit, and both the definition in double.
static void check_tile_q8(size_t n, size_t cols, size_t group, int n_rows, int has_min)
{
    enum { STRIDE = 19 };
    Quantized x = quantized(n, cols, group);
    float *act = random_floats(n * cols), *scales = random_floats(cols / group * PANEL);
    float *mins = random_floats(cols / group * PANEL);
    int8_t *w = xcalloc(PANEL * cols, 1);
    for (size_t i = 0; i < PANEL * cols; i++) w[i] = (int8_t)(random_bits() >> 24); // -128 too
    Matmul m = {.x = act, .n = n, .act = &x, .group = group, .n_groups = cols / group};
    for (size_t t = 0; t < n; t++) quantize_row(&m, t);
    float *fast = xcalloc(n * STRIDE, 4), *plain = xcalloc(n * STRIDE, 4);
    void *room = xcalloc(PANEL * cols, 1);
    Panel panel = {.rows = (char *)w, .pitch = cols, .scales = scales, .mins = mins, .words = room,
                   .m = &m, .out = fast, .out_pitch = STRIDE, .n_rows = (size_t)n_rows};
    const TensorType with_min = {.block = group, .bytes = group, .group = group, .has_min = 1,
                                 .bits = 8, .stored = 8, .zero = ZERO, .apart = 1};
    if (has_min) tile_codes(&with_min, &panel); // planar types have no minima
    else tile_planar(&panel);
    tile_plain(w, scales, has_min ? mins : NULL, &m, plain, STRIDE, (size_t)n_rows);
    int before = n_failed, bad = 0;
    CHECK_BITS(fast, plain, n * STRIDE); // beyond n_rows both still hold zeros
    for (size_t t = 0; t < n; t++)
        for (int r = 0; r < n_rows; r++) {
            double want = 0, size = 0;
            for (size_t k = 0; k < cols; k++) {
                size_t lane = k / group * PANEL + (size_t)r;
                double weight = (double)w[(size_t)r * cols + k] * scales[lane];
                if (has_min) weight -= mins[lane];
                size_t at = scale_place(n, cols / group, t, k / group);
                double p = weight * x.q[t * cols + k] * x.scale[at];
                want += p, size += fabs(p);
            }
            bad += !(fabs(fast[t * STRIDE + (size_t)r] - want) <= 1e-6 * size);
        }
    CHECK_INT(bad, 0);
    note_failures(before, "n %zu, cols %zu, group %zu, rows %d, min %d", n, cols, group, n_rows,
                  has_min);
    free_quantized(&x);
    free(act), free(scales), free(mins), free(w), free(fast), free(plain), free(room);
}

static void test_tile_q8(void)
{
    size_t groups[] = {32, 64, 96, 128, 256};
    for (size_t i = 0; i < 2 * COUNT(groups); i++) {
        size_t group = groups[i / 2];
        int has_min = i % 2;
        for (size_t n = 1; n <= 20; n++) check_tile_q8(n, 2 * group, group, PANEL, has_min);
        for (int n_rows = 1; n_rows < PANEL; n_rows += 3) {
            check_tile_q8(13, 4 * group, group, n_rows, has_min);
            check_tile_q8(1, 4 * group, group, n_rows, has_min);
        }
        check_tile_q8(9, group, group, PANEL, has_min);
        check_tile_q8(9, 3 * group, group, PANEL, has_min);
        check_tile_q8(2, 16 * group, group, PANEL - 1, has_min);
    }
}

// Products of each block type, for one token and for several, have the bits of the plain tile on
// their codes and scales taken apart: for few blocks and many, and for panels that are not full.
static void test_blocks(void)
{
    enum { N = Q8_TOKENS + 3 };
    size_t sizes[] = {1, 2, 3, 5, 18};
    for (size_t i = 0; i < COUNT(tensor_types) * COUNT(sizes); i++) {
        const TensorType *type = &tensor_types[i % COUNT(tensor_types)];
        if (type->unpack != unpack_blocks) continue;
        size_t n = sizes[i / COUNT(tensor_types)], cols = n * type->block, rows = PANEL + 3;
        size_t pitch = n * type->bytes, d_at = type->bytes == 210 ? 208 : type->bytes == 110 ? 108 : type->bytes == 84 ? 80 : 0;
        uint8_t *data = xcalloc(2 * PANEL, pitch);
        int8_t *codes = xcalloc(PANEL, cols);
        float *scales = xcalloc(PANEL * cols, 4), *mins = xcalloc(PANEL * cols, 4);
        for (size_t k = 0; k < rows * pitch; k++) data[k] = (uint8_t)(random_bits() >> 24);
        for (size_t k = 0; k < rows * n; k++) // scales and minima that are no NaN
            for (size_t half = 0; half < (type->has_min ? 2 : 1); half++)
                data[k * type->bytes + d_at + 2 * half + 1] &= 0xbf;
        Tensor w = {type, data, NULL, type->group, rows, cols, NULL};
        float *x = random_floats(N * cols), *want = xcalloc(N * rows, 4);
        float *one = xcalloc(N * rows, 4), *all = xcalloc(N * rows, 4);
        Quantized act = quantized(N, cols, type->group);
        Matmul m = {.n = N, .act = &act, .group = type->group, .n_groups = cols / type->group};
        matmul(&act, &(Product){&w, all}, 1, x, N);
        for (size_t r0 = 0; r0 < rows; r0 += PANEL) {
            size_t n_rows = min_size(PANEL, rows - r0);
            read_scales(type, data + r0 * pitch, pitch, n, scales, mins);
            for (size_t r = 0; r < n_rows; r++)
                block_codes(type, data + (r0 + r) * pitch, n, codes + r * cols);
            tile_plain(codes, scales, type->has_min ? mins : NULL, &m, want + r0, rows, n_rows);
        }
        for (size_t t = 0; t < N; t++)
            matmul(&act, &(Product){&w, one + t * rows}, 1, x + t * cols, 1);
        int before = n_failed;
        CHECK_BITS(all, want, N * rows);
        CHECK_BITS(one, want, N * rows);
        note_failures(before, "%s, cols %zu", type->name, cols);
        free_quantized(&act);
        free(data), free(codes), free(scales), free(mins);
        free(x), free(want), free(one), free(all);
    }
}

// Groups run over the flat tensor: here they straddle rows, as hidden_dim 172 with group 8 may.
static void test_unpack(void)
{
    enum { ROWS = 6, COLS = 172, GROUP = 8 };
    static int8_t q[ROWS * COLS];
    static uint16_t halves[ROWS * COLS];
    float *scales = random_floats(ROWS * COLS / GROUP), out[COLS];
    for (size_t i = 0; i < ROWS * COLS; i++) {
        q[i] = (int8_t)(random_bits() >> 24);
        halves[i] = (uint16_t)(random_bits() >> 20); // positive and finite
    }
    Tensor q8 = {&tensor_types[T_Q8], (uint8_t *)q, scales, GROUP, ROWS, COLS, NULL};
    Tensor f16 = {&tensor_types[T_F16], (uint8_t *)halves, NULL, 0, ROWS, COLS, NULL};
    int bad = 0;
    for (size_t row = 0; row < ROWS; row++) {
        unpack_numbers(&q8, row, out);
        for (size_t i = 0; i < COLS; i++)
            bad += out[i] != (float)q[row * COLS + i] * scales[(row * COLS + i) / GROUP];
        unpack_numbers(&f16, row, out);
        for (size_t i = 0; i < COLS; i++) bad += out[i] != half_value(halves[row * COLS + i]);
    }
    CHECK_INT(bad, 0);
    CHECK_INT(tensor_bytes(&q8), ROWS * COLS + ROWS * COLS / GROUP * 4);
    CHECK_INT(tensor_bytes(&f16), ROWS * COLS * 2);
    free(scales);
}

// Which planar groups are multiplied as int8: those that do not straddle rows, are made of 32
// values at a time, and are no larger than 256.
static void test_int8_group(void)
{
    float scale = 1;
    for (size_t group = 1; group < 400; group++)
        for (size_t cols = 1; cols <= 1024; cols++) {
            Tensor w = {&tensor_types[T_Q8], NULL, &scale, group, 1, cols, NULL};
            int want = cols % group == 0 && group % 32 == 0 && group <= 256;
            if (int8_group(&w) != (want ? group : 0)) CHECK_INT(int8_group(&w), want * group);
        }
    CHECK_INT(int8_group(&(Tensor){.type = &tensor_types[T_F32], .cols = 64}), 0);
}

// ---- matmul ------------------------------------------------------------------------------------

// A random weight matrix in one of the types.
static Tensor random_tensor(int type, size_t rows, size_t cols, size_t group)
{
    Tensor t = {&tensor_types[type], NULL, NULL, type == T_Q8 ? group : 0, rows, cols, NULL};
    uint8_t *data = xcalloc(rows * cols, t.type->bytes);
    for (size_t i = 0; i < rows * cols; i++) {
        if (type == T_F32) ((float *)data)[i] = random_gauss();
        else if (type == T_F16) ((uint16_t *)data)[i] = float_to_half(random_gauss());
        else if (type == T_BF16) ((uint16_t *)data)[i] = (uint16_t)(0x3e00 + (random_bits() >> 23));
        else data[i] = (uint8_t)(random_bits() >> 24);
    }
    t.data = data;
    if (type == T_Q8) t.scales = random_floats(rows * cols / group);
    return t;
}

// Three products that share x (two of one group size, one of another), for n tokens at once:
// the same bits one token at a time, and the definition's values.
static void check_matmul(int type, size_t cols, size_t group, size_t group3, int int8, size_t n)
{
    size_t rows[3] = {50, 16, 33};
    Tensor w[3];
    float *x = random_floats(n * cols), *all[3], *one[3];
    Product jobs[3];
    for (int k = 0; k < 3; k++) {
        w[k] = random_tensor(type, rows[k], cols, k == 2 ? group3 : group);
        all[k] = xcalloc(n * rows[k], 4);
        one[k] = xcalloc(n * rows[k], 4);
        jobs[k] = (Product){&w[k], all[k]};
    }
    Quantized act = quantized(n, cols, 1), none = {0}; // room for any group size
    int before = n_failed, bad = 0;
    matmul(int8 ? &act : &none, jobs, 3, x, n);
    for (size_t t = 0; t < n; t++) {
        for (int k = 0; k < 3; k++) jobs[k].out = one[k] + t * rows[k];
        matmul(int8 ? &act : &none, jobs, 3, x + t * cols, 1);
    }
    float *row = xcalloc(cols, 4);
    for (int k = 0; k < 3; k++) {
        CHECK_BITS(all[k], one[k], n * rows[k]);
        for (size_t i = 0; i < n * rows[k]; i++) {
            double size;
            w[k].type->unpack(&w[k], i % rows[k], row);
            double want = naive_dot(row, x + i / rows[k] * cols, cols, &size);
            bad += !(fabs(all[k][i] - want) <= (int8 ? 0.02 : 1e-6) * size);
        }
        free((void *)w[k].data), free((void *)w[k].scales), free(all[k]), free(one[k]);
    }
    CHECK_INT(bad, 0);
    note_failures(before, "type %d, cols %zu, group %zu, int8 %d, n %zu", type, cols, group, int8, n);
    free_quantized(&act);
    free(x), free(row);
}

static void test_matmul(void)
{
    size_t counts[] = {1, 2, 3, 5, 6, 7, 8, 13, 40};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        check_matmul(T_F32, 172, 1, 1, 0, counts[i]);
        check_matmul(T_F16, 48, 1, 1, 0, counts[i]);
        check_matmul(T_F16, 172, 1, 1, 0, counts[i]);
        check_matmul(T_BF16, 172, 1, 1, 0, counts[i]);
        check_matmul(T_Q8, 128, 32, 32, 0, counts[i]);
        check_matmul(T_Q8, 128, 32, 32, 1, counts[i]);
        check_matmul(T_Q8, 128, 32, 16, 1, counts[i]);
        check_matmul(T_Q8, 48, 8, 8, 1, counts[i]);
        check_matmul(T_Q8, 128, 32, 50, 1, counts[i]); // the third straddles: floats
    }
}

// ---- Rows --------------------------------------------------------------------------------------

static void test_rmsnorm(void)
{
    for (size_t dim = 1; dim < 70; dim += 3) {
        float *x = random_floats(dim), *w = random_floats(dim), *out = xcalloc(dim, 4);
        double squares = 0;
        int bad = 0;
        for (size_t i = 0; i < dim; i++) squares += (double)x[i] * x[i];
        norm_row(&(NormJob){out, x, {w, NULL, dim}, &(Config){.norm_eps = 1e-5}}, 0);
        for (size_t i = 0; i < dim; i++) {
            double want = x[i] / sqrt(squares / (double)dim + 1e-5) * w[i];
            bad += !(fabs(out[i] - want) <= 1e-6 * fabs(want));
        }
        CHECK_INT(bad, 0);
        free(x), free(w), free(out);
    }
}

static void test_gate(void)
{
    float gate[3] = {-1.5f, 0.25f, 3}, up[3] = {1, 1, 2};
    State s = {.gate = gate, .up = up, .attn.config = {.hidden_dim = 3, .gelu = 1}};
    gate_row(&s, 0); // gelu by tanh
    CHECK_NEAR(gate[0], -0.100428, 1e-6);
    CHECK_NEAR(gate[1], 0.149675, 1e-6);
    CHECK_NEAR(gate[2], 2 * 2.996363, 4e-6);
    for (size_t n = 1; n < 70; n += 3) {
        float *gate = random_floats(n + 1), *up = random_floats(n), *was = xcalloc(n + 1, 4);
        int bad = 0;
        gate[0] = -100; // e^100 is out of range: must be 0, not NaN
        memcpy(was, gate, (n + 1) * 4);
        s = (State){.gate = gate, .up = up, .attn.config.hidden_dim = (int)n};
        gate_row(&s, 0);
        for (size_t i = 0; i < n; i++) {
            double want = was[i] / (1 + exp(-(double)was[i])) * up[i];
            bad += !(fabs(gate[i] - want) <= 2e-6 * fabs(want) + 1e-30);
        }
        CHECK_INT(bad, 0);
        CHECK(gate[n] == was[n]); // nothing past the end
        free(gate), free(up), free(was);
    }
}

static void test_cross_entropy(void)
{
    float *logits = random_floats(1003);
    for (int target = 0; target < 1003; target += 77) {
        double sum = 0;
        for (int i = 0; i < 1003; i++) sum += exp(logits[i]);
        CHECK_NEAR(cross_entropy(logits, 1003, target), log(sum) - logits[target], 1e-6);
    }
    float far[3] = {1000, 0, -1000}; // no overflow
    CHECK_NEAR(cross_entropy(far, 3, 0), 0, 1e-6);
    CHECK_NEAR(cross_entropy(far, 3, 2), 2000, 1e-3);
    static const float bad[] = {NAN, INFINITY, -INFINITY}; // of any token, not of the target alone
    for (int i = 0; i < 3; i++) CHECK(!isfinite(cross_entropy((float[]){1, 2, bad[i]}, 3, 0)));
    free(logits);
}

// ---- Threads -----------------------------------------------------------------------------------

enum { MOST_ITEMS = 5000 };
static _Atomic int visits[MOST_ITEMS];

static void visit(void *arg, size_t i)
{
    int step = *(int *)arg;
    atomic_fetch_add(&visits[i], step);
}

// Every item exactly once, whatever n, the grain and the number of threads; with pauses that let
// the workers fall asleep, and with jobs so short that workers arrive when they are over.
static void test_parallel_for(void)
{
    int jobs = 0, total = 0, bad = 0;
    for (int round = 0; round < 20000; round++) {
        if (round % 2000 == 0) pool_start(1 + round / 2000); // more threads than processors
        size_t n = round % 3 ? 1 + random_bits() % 40 : 1 + random_bits() % 1000;
        size_t grain = 1 + random_bits() % (round % 5 ? 3 : 100);
        int step = 1 + round % 7;
        jobs++;
        if (round % 1000 == 999) usleep(2000);
        parallel_for(n, grain, visit, &step);
        for (size_t i = 0; i < n; i++, total++) bad += atomic_exchange(&visits[i], 0) != step;
        bad += atomic_load(&visits[n]) != 0;
    }
    parallel_for(0, 1, visit, &jobs); // nothing to do
    CHECK_INT(atomic_load(&visits[0]), 0);
    CHECK_INT(bad, 0);
    CHECK_INT(jobs, 20000);
    CHECK(total > 20000);
}

static void test_scratch(void)
{
    char *small = scratch(100), *large = scratch(100000);
    memset(large, 1, 100000);
    CHECK(((uintptr_t)small | (uintptr_t)large) % 64 == 0); // for vectors
    CHECK(scratch(50) == (void *)large);                    // kept
}

// ---- Sizes -------------------------------------------------------------------------------------

static void test_sizes(void)
{
    CHECK(mul_size(SIZE_MAX / 2, 3) == SIZE_MAX);
    CHECK(add_size(SIZE_MAX, 1) == SIZE_MAX);
    CHECK(mul_size(SIZE_MAX, 0) == 0);
    CHECK(ceil_div(0, 7) == 0 && ceil_div(7, 7) == 1 && ceil_div(8, 7) == 2);
    CHECK(round_up(65, 64) == 128 && round_up(64, 64) == 64);
    Tensor huge = {&tensor_types[T_F32], NULL, NULL, 0, (size_t)1 << 40, (size_t)1 << 40, NULL};
    CHECK(tensor_bytes(&huge) == SIZE_MAX);
}

static pthread_t first_thread;
static _Atomic int other_shares, open_to_interrupts;

static void look_at_signals(void *unused, size_t item)
{
    sigset_t blocked;
    (void)unused, (void)item;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    if (pthread_equal(pthread_self(), first_thread)) return;
    other_shares++;
    open_to_interrupts += !sigismember(&blocked, SIGINT);
}

// Ctrl-C goes to the thread that may wait for a line, not to a worker; that one can be interrupted.
static void test_interrupts(void)
{
    sigset_t blocked;
    first_thread = pthread_self();
    pool_start(pool.n_threads + 2);
    for (int i = 0; i < 100000 && other_shares < 10; i++)
        parallel_for(64, 1, look_at_signals, NULL);
    CHECK(other_shares > 0);
    CHECK_INT(open_to_interrupts, 0);
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    CHECK(!sigismember(&blocked, SIGINT));
}

int main(void)
{
    test_sizes();
    test_half_to_float();
    test_float_to_half();
    test_vexp();
    test_vsum();
    test_dot();
    test_products_f32();
    test_gemm_rows();
    test_quantize_row();
    test_tile_q8();
    test_blocks();
    test_int8_group();
    test_unpack();
    test_rmsnorm();
    test_gate();
    test_cross_entropy();
    test_scratch();
    test_matmul(); // on one thread, and
    test_parallel_for();
    test_matmul(); // on many
    test_interrupts();
    return report("test_kernels");
}
