// test_position.c: how position enters, sections 4 and 5 of run.c: frequencies, attention factors,
// distances, rotation.
#define TESTING
#include "../run.c"
#include "check.h"
#include "model.h"

// ---- Golden frequencies ------------------------------------------------------------------------
// Computed apart from run.c by this Python, from the papers' formulas (theta(m, b) = b**(-2*m/d)):
//
//   linear   theta(m, b) / s
//   ntk      theta(m, b * s**(d/(d-2)))
//   dynamic  theta(m, b * (s*n/L - (s-1))**(d/(d-2)))
//   yarn     c = lambda r: d*log(L/(2*pi*r)) / (2*log(b))
//            low, high = max(floor(c(fast)), 0), min(ceil(c(slow)), d-1)
//            g = 1 - min(max((m-low)/(high-low), 0), 1)
//            theta(m, b)/s*(1-g) + theta(m, b)*g
//   llama3   w = 2*pi/theta(m, b); u = (L/w-lo)/(hi-lo)
//            theta(m, b) if w < L/hi else theta(m, b)/s if w > L/lo else (1-u)*theta(m, b)/s + u*theta(m, b)

typedef struct {
    const char *name;
    RopeConfig rope;
    int head_dim, n;
    int pairs[8];
    double want[8];
} Golden;

#define ALL_PAIRS {0, 1, 2, 3, 4, 5, 6, 7}

static const Golden golden[] = {
    {"none", {.method = ROPE_NONE, .theta = 10000, .factor = 4, .orig_ctx = 64}, 16, 160, ALL_PAIRS,
     {1, 0.316227766017, 0.1, 0.0316227766017, 0.01, 0.00316227766017, 0.001, 0.000316227766017}},
    {"linear", {.method = ROPE_LINEAR, .theta = 10000, .factor = 4, .orig_ctx = 64}, 16, 160,
     ALL_PAIRS,
     {0.25, 0.0790569415042, 0.025, 0.00790569415042, 0.0025, 0.000790569415042, 0.00025,
      7.90569415042e-05}},
    {"ntk", {.method = ROPE_NTK, .theta = 10000, .factor = 4, .orig_ctx = 64}, 16, 160, ALL_PAIRS,
     {1, 0.259412817015, 0.0672950096316, 0.0174571880196, 0.00452861832132, 0.00117478163592,
      0.000304753413551, 7.90569415042e-05}},
    {"dynamic, factor 1", {.method = ROPE_DYNAMIC, .theta = 10000, .factor = 1, .orig_ctx = 64}, 16,
     160, ALL_PAIRS,
     {1, 0.277428725875, 0.0769666979407, 0.0213527729445, 0.00592387259189, 0.00164345242541,
      0.000455940912419, 0.000126491106407}},
    {"dynamic, factor 4", {.method = ROPE_DYNAMIC, .theta = 10000, .factor = 4, .orig_ctx = 64}, 16,
     160, ALL_PAIRS,
     {1, 0.239481356006, 0.0573513198745, 0.0137345718523, 0.00328917389134, 0.000787695823638,
      0.000188638463965, 4.51753951453e-05}},
    {"yarn, ramp 0 to 3", {.method = ROPE_YARN, .theta = 10000, .factor = 4, .orig_ctx = 64}, 16,
     160, ALL_PAIRS,
     {1, 0.237170824513, 0.05, 0.00790569415042, 0.0025, 0.000790569415042, 0.00025,
      7.90569415042e-05}},
    {"by-parts, ramp 2 to 6",
     {.method = ROPE_BY_PARTS, .theta = 10000, .factor = 4, .orig_ctx = 512, .beta_fast = 8,
      .beta_slow = 0.25}, 16, 160, ALL_PAIRS,
     {1, 0.316227766017, 0.1, 0.0256935059889, 0.00625, 0.00138349647632, 0.00025,
      7.90569415042e-05}},
    {"yarn of 4096 by 16, ramp 20 to 46",
     {.method = ROPE_YARN, .theta = 10000, .factor = 16, .orig_ctx = 4096}, 128, 9999,
     {0, 20, 21, 30, 40, 45, 46, 63},
     {1, 0.056234132519, 0.046940859998, 0.00852684377297, 0.000881788962932, 0.000151771604732,
      8.33450895102e-05, 7.21738740431e-06}},
    {"llama3",
     {.method = ROPE_LLAMA3, .theta = 500000, .factor = 8, .orig_ctx = 8192}, 128, 9999,
     {0, 28, 29, 30, 32, 34, 35, 63},
     {1, 0.00321144599475, 0.0021665707635, 0.00137189356776, 0.000524846160993, 0.000178507812768,
      9.55621235396e-05, 3.06892598891e-07}},
};

static double frequency_of(const RopeConfig *r, int head_dim, int m, double n)
{
    return rope_methods[r->method].frequency(r, head_dim, m, n);
}

static void test_golden(void)
{
    for (size_t k = 0; k < sizeof golden / sizeof *golden; k++) {
        const Golden *g = &golden[k];
        RopeConfig r = g->rope;
        int before = n_failed;
        rope_resolve(&r, r.orig_ctx, r.orig_ctx); // defaults: betas, low and high
        for (int i = 0; i < 8; i++)
            CHECK_NEAR(frequency_of(&r, g->head_dim, g->pairs[i], g->n) / g->want[i], 1, 1e-11);
        note_failures(before, "%s", g->name);
    }
}

static void test_longrope(void)
{
    float shorts[4] = {1, 1.5f, 2, 3}, longs[4] = {4, 8, 16, 32};
    RopeConfig r = {.method = ROPE_LONGROPE, .theta = 10000, .factor = 32, .orig_ctx = 4096,
                    .short_factors = shorts, .long_factors = longs};
    for (int m = 0; m < 4; m++) {
        double theta = pow(10, -m);
        CHECK_NEAR(frequency_of(&r, 8, m, 4096), theta / (double)shorts[m], 1e-12);
        CHECK_NEAR(frequency_of(&r, 8, m, 4097), theta / (double)longs[m], 1e-12);
    }
    CHECK_NEAR(attention_factor(&r), 1.1902380714238083, 1e-12); // sqrt(1 + ln 32 / ln 4096)
}

static void test_attention_factor(void)
{
    for (int k = 0; k < N_ROPE_METHODS; k++) {
        RopeConfig r = {.method = k, .theta = 10000, .factor = 4, .orig_ctx = 64};
        double want = k == ROPE_YARN ? 1.138629436111989        // 0.1 ln 4 + 1
                    : k == ROPE_LONGROPE ? 1.1547005383792517 : 1; // sqrt(1 + ln 4 / ln 64)
        CHECK_NEAR(attention_factor(&r), want, 1e-12);
        r.factor = 1;
        CHECK(attention_factor(&r) == 1);
        r.attn_factor = 1.25; // the total, whatever the method's own
        CHECK(attention_factor(&r) == 1.25);
    }
}

// Factor 1 is the table of none, bit for bit, for every method that promises it; dynamic is, for
// every factor, up to L.
static void test_factor_one(void)
{
    for (int k = 0; k < N_ROPE_METHODS; k++)
        for (int d = 2; d <= 128; d *= 2) {
            if (k == ROPE_LONGROPE) continue;
            RopeConfig none = {.theta = 10000}, r = {.method = k, .theta = 10000, .orig_ctx = 512};
            r.factor = k == ROPE_DYNAMIC ? 3 : 1;
            rope_resolve(&r, 512, 512);
            int bad = 0, before = n_failed;
            for (int m = 0; m < d / 2; m++)
                for (int n = 1; n <= 512; n += 511)
                    bad += frequency_of(&r, d, m, n) != frequency_of(&none, d, m, n);
            CHECK_INT(bad, 0);
            note_failures(before, "%s, head size %d", rope_methods[k].name, d);
        }
}

// No setting gives a frequency that is not a positive number.
static void test_finite(void)
{
    static const int contexts[] = {1, 2, 7, 512, 1 << 28};
    static const double thetas[] = {1.5, 10000, 1e12}, factors[] = {1, 1.5, 1e6};
    float list[64];
    for (int i = 0; i < 64; i++) list[i] = 1 + (float)i;
    for (int k = 0; k < N_ROPE_METHODS; k++) {
        int bad = 0, before = n_failed;
        for (int d = 2; d <= 128; d *= 2)
            for (int i = 0; i < 45; i++) {
                RopeConfig r = {.method = k, .theta = thetas[i % 3], .factor = factors[i / 3 % 3],
                                .orig_ctx = contexts[i / 9], .short_factors = list,
                                .long_factors = list};
                rope_resolve(&r, 512, 512);
                for (int m = 0; m < d / 2; m++) {
                    double v = frequency_of(&r, d, m, 1 << 28);
                    bad += !(v > 0 && v <= 1);
                }
                bad += !isfinite(attention_factor(&r)) || !(attention_factor(&r) >= 1);
            }
        CHECK_INT(bad, 0);
        note_failures(before, "%s", rope_methods[k].name);
    }
}

// What is not given comes from the trained context and the context asked for.
static void test_defaults(void)
{
    RopeConfig r = {.method = ROPE_YARN};
    rope_resolve(&r, 512, 2048);
    CHECK_INT(r.orig_ctx, 512);
    CHECK(r.factor == 4 && r.beta_fast == 32 && r.beta_slow == 1);
    r = (RopeConfig){.method = ROPE_LINEAR};
    rope_resolve(&r, 512, 100);
    CHECK(r.factor == 1); // never below 1
    r = (RopeConfig){.method = ROPE_DYNAMIC};
    rope_resolve(&r, 512, 2048);
    CHECK(r.factor == 1);
    r = (RopeConfig){.method = ROPE_LLAMA3, .orig_ctx = 256, .factor = 8};
    rope_resolve(&r, 512, 2048);
    CHECK_INT(r.orig_ctx, 256);
    CHECK(r.factor == 8 && r.low_freq_factor == 1 && r.high_freq_factor == 4);
}

// ---- Distance ----------------------------------------------------------------------------------

// The distance at which query i sees key j: that of the map whose run the key lies in.
static double seen_distance(const RopeConfig *r, int64_t i, int64_t j)
{
    int map = 0;
    while (j < first_key(r, map, i)) map++;
    return query_position(r, map, i) - key_position(r, map, j);
}

// The definitions, for i - j >= reach where that has a meaning.
static double defined_distance(const RopeConfig *r, int64_t i, int64_t j)
{
    double W = r->reach, other = r->other, n = (double)(i - j);
    int64_t C = r->reach, G = (int64_t)other, of_i = i / (C ? C : 1), of_j = j / (C ? C : 1);
    switch (r->distance) {
    case DIST_FULL: return !r->sinks || n < W ? n : fmin((double)i, r->sinks + W - 1) - (double)j;
    case DIST_SELF_EXTEND: return n < W ? n : (double)(i / G - j / G) + W - floor(W / other);
    case DIST_REROPE: return fmin(n, W);
    case DIST_LEAKY: return n < W ? n : W + (n - W) / other;
    case DIST_STRING: return n < W ? n : n - W + other;
    case DIST_DUAL_CHUNK:
        if (of_i == of_j) return n;
        if (of_i == of_j + 1) return fmin((double)(i % C + C), (double)C + other) - (double)(j % C);
        return fmin(2.0 * (double)C - 1, (double)C + other) - (double)(j % C);
    default: return n;
    }
}

static void test_distances(void)
{
    const RopeConfig cases[] = {
        {.distance = DIST_FULL}, {.window = 20, .sinks = 4, .reach = 20},
        {.distance = DIST_SELF_EXTEND, .reach = 30, .other = 7}, {.distance = DIST_REROPE, .reach = 30},
        {.distance = DIST_LEAKY, .reach = 30, .other = 2.5},
        {.distance = DIST_STRING, .reach = 30, .other = 8},
        {.distance = DIST_DUAL_CHUNK, .other = 11, .reach = 37},
        {.distance = DIST_DUAL_CHUNK, .other = 64, .reach = 64},
    };
    for (size_t k = 0; k < COUNT(cases); k++) {
        const RopeConfig *r = &cases[k];
        double worst = 0;
        int before = n_failed;
        for (int64_t i = 0; i < 300; i++)
            for (int64_t j = 0; j <= i; j++) {
                if (r->sinks && j >= 4 && i - j >= 20) continue; // not seen
                worst = fmax(worst, fabs(seen_distance(r, i, j) - defined_distance(r, i, j)));
            }
        CHECK_NEAR(worst, 0, 1e-9);
        note_failures(before, "distance %d, %d:%g", r->distance, r->reach, r->other);
    }
    RopeConfig window = {.window = 20}, sinks = {.window = 20, .sinks = 4};
    rope_resolve(&window, 64, 64);
    rope_resolve(&sinks, 64, 64);
    CHECK_INT(n_maps(&window), 1);
    CHECK_INT(n_maps(&sinks), 2);
}

static void test_query_scale(void)
{
    RopeConfig r = {.logn = 1, .orig_ctx = 512};
    CHECK(query_scale(&r, 0) == 1 && query_scale(&r, 511) == 1);
    CHECK_NEAR(query_scale(&r, 512), 1.000312779511895, 1e-12); // ln 513 / ln 512
    CHECK_NEAR(query_scale(&r, 4095), 1.3333333333, 1e-9); // 12 ln 2 / 9 ln 2
    CHECK(query_scale(&(RopeConfig){.orig_ctx = 512}, 4095) == 1);
    RopeConfig temp = {.temp = 0.1, .temp_ctx = 8192};
    CHECK(query_scale(&temp, 8190) == 1);
    CHECK_NEAR(query_scale(&temp, 8191), 1.0693147180559945, 1e-12); // 1 + ln 2 / 10
    CHECK_NEAR(query_scale(&temp, 99999), 1.2564949357461537, 1e-12); // 1 + ln 13 / 10
    temp.logn = 1, temp.orig_ctx = 512; // both: their product
    CHECK_NEAR(query_scale(&temp, 8191), 1.0693147180559945 * 13 / 9, 1e-12);
}

// ---- Rotation ----------------------------------------------------------------------------------

enum { D = 20, PAIRS = D / 2 };

// x (pairs split) turned to `position`.
static void turn(const float *x, double position, float *out)
{
    float phases[D];
    double freq[PAIRS];
    for (int m = 0; m < PAIRS; m++) freq[m] = pow(10000, -2.0 * m / D);
    fill_phases(freq, NULL, NULL, PAIRS, position, 1, phases, 1);
    rotate(AS_F32, x, phases, PAIRS, out);
}

static void test_rotation(void)
{
    float *q = random_floats(D), *k = random_floats(D), a[D], b[D];
    double longer = 0, differs = 0, angle = 0;
    for (int position = 0; position < 1 << 20; position += 4999) {
        turn(q, position, a);
        for (int m = 0; m < PAIRS; m++) {
            double before = hypot(q[m], q[m + PAIRS]), after = hypot(a[m], a[m + PAIRS]);
            longer = fmax(longer, fabs(after / before - 1));
            double want = position * pow(10000, -2.0 * m / D); // the definition, at once
            angle = fmax(angle, fabs(q[m] * cos(want) - q[m + PAIRS] * sin(want) - a[m]));
        }
        turn(k, position - 17, b);
        double far = dot(a, b, D);
        turn(q, 17, a);
        differs = fmax(differs, fabs(far - dot(a, k, D)));
    }
    CHECK_NEAR(longer, 0, 1e-6);
    CHECK_NEAR(angle, 0, 1e-6);
    CHECK_NEAR(differs, 0, 1e-5);
    turn(q, 123, a);
    turn(a, -123, b); // and back
    for (int m = 0; m < D; m++) CHECK_NEAR(b[m], q[m], 1e-6);
    free(q), free(k);
}

// A text behaves alike wherever it stands: with a window, once the window is full, only distances
// matter, up to positions of many millions.
static void test_translation(void)
{
    Shape shape = {.version = 1, .dim = 64, .hidden = 32, .layers = 1, .heads = 2, .kv_heads = 1,
                   .vocab = 50, .ctx = 150, .seed = 3};
    static const int64_t starts[] = {0, 1, 63, 64, 1000003, 200000000};
    enum { N = 260, WINDOW = 90 };
    TestModel t = make_model(shape);
    Model m;
    State s;
    float want[N * 64];
    int *tokens = random_tokens(N, 50, 1);
    open_model(&m, &t);
    m.config.rope.window = WINDOW;
    for (size_t k = 0; k < sizeof starts / sizeof *starts; k++) {
        state_init(&s, &m, 1 << 28, N, 1, 1);
        forward(&s, tokens, N, starts[k]);
        if (!k) memcpy(want, s.xb, sizeof want);
        double worst = 0;
        for (int i = WINDOW * 64; i < N * 64; i++) worst = fmax(worst, fabs(want[i] - s.xb[i]));
        CHECK_NEAR(worst, 0, 1e-4);
    }
    free(tokens);
    free_test_model(&t);
}

// Sandwich's sum, at distances that are looked up, at fractions, and past the table.
static void test_sandwich(void)
{
    static const float distances[] = {0, 1, 7, 0.5f, 255, 300.25f, 4095, 4096, 5000, 123456};
    Config c = {.n_heads = 3, .encoding = ENC_SANDWICH};
    float D[TILE] = {0}, score[TILE] = {0};
    memcpy(D, distances, sizeof distances);
    Query q = {.c = &c, .head = 1};
    bias_sandwich(&q, D, score);
    for (size_t k = 0; k < COUNT(distances); k++) {
        double want = 0;
        for (int m = 0; m < 64; m++) want += cos(D[k] * pow(10000, -2.0 * m / 128));
        CHECK_NEAR(score[k], want / (8.0 * 2 / 3), 1e-5);
    }
}

int main(void)
{
    test_sandwich();
    test_golden();
    test_longrope();
    test_attention_factor();
    test_factor_one();
    test_finite();
    test_defaults();
    test_distances();
    test_query_scale();
    test_rotation();
    test_translation();
    return report("test_position");
}
