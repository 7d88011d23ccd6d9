// test_attention.c: the whole model, sections 3 to 10 of run.c: the loader's view of every version,
// attention against its definition in double, and the promise that the bits depend neither on how
// a prompt is cut nor on the number of threads.
#define TESTING
#include "../run.c"
#include "check.h"
#include "model.h"

// ---- The definition, in double -----------------------------------------------------------------

static int visible(const RopeConfig *r, int i, int j)
{
    return j <= i && (!r->window || i - j < r->window || j < r->sinks);
}

static double rising[1024]; // positions with gaps of 1 to 13

// D(i, j): how far away key j looks from query i.
static double distance(const RopeConfig *r, int i, int j)
{
    int W = r->reach, G = (int)r->other, C = r->reach;
    if (r->positions) return r->positions[i] - r->positions[j];
    if (r->window && r->sinks && i - j >= r->window)
        return (i < r->sinks + r->window - 1 ? i : r->sinks + r->window - 1) - j;
    if (r->distance == DIST_DUAL_CHUNK && i / C != j / C)
        return fmin(i / C - j / C == 1 ? i % C + C : 2 * C - 1, C + r->other) - j % C;
    if (r->distance == DIST_FULL || r->distance == DIST_DUAL_CHUNK || i - j < W) return i - j;
    if (r->distance == DIST_STRING) return i - j - W + G;
    if (r->distance == DIST_REROPE) return W;
    if (r->distance == DIST_LEAKY) return W + (i - j - W) / r->other;
    return i / G - j / G + W - W / G;
}

// q and k: one head each, pairs interleaved. freq: [d / 2]. The score times sqrt(d).
static double rotated_product(const double *q, const double *k, const double *freq, int d,
                              double D)
{
    double sum = 0;
    for (int m = 0; m < d / 2; m++) {
        double c = cos(D * freq[m]), s = sin(D * freq[m]);
        double re = q[2 * m] * k[2 * m] + q[2 * m + 1] * k[2 * m + 1];
        double im = q[2 * m + 1] * k[2 * m] - q[2 * m] * k[2 * m + 1];
        sum += re * c - im * s;
    }
    return sum;
}

// y[n][rows] = x[n][cols] w[rows][cols]^T
static double *times(const double *x, const float *w, int n, int rows, int cols)
{
    double *y = xcalloc((size_t)n * (size_t)rows, sizeof *y);
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++) y[t * rows + r] += x[t * cols + c] * (double)w[r * cols + c];
    return y;
}

static double *normed(const double *x, const float *weight, int n, int dim)
{
    double *y = xcalloc((size_t)n * (size_t)dim, sizeof *y);
    for (int t = 0; t < n; t++) {
        double squares = 0;
        for (int i = 0; i < dim; i++) squares += x[t * dim + i] * x[t * dim + i];
        double scale = 1 / sqrt(squares / dim + 1e-5);
        for (int i = 0; i < dim; i++) y[t * dim + i] = x[t * dim + i] * scale * (double)weight[i];
    }
    return y;
}

// Frequencies for length n; their values are test_position.c's business. Pairs past the fraction
// and past the dimensions that turn stand still.
static void frequencies(const Config *c, double n, double *freq)
{
    int d = c->n_rot ? c->n_rot : c->head_dim, last = d / 2;
    if (c->rope.fraction > 0) last = (int)floor(c->rope.fraction * d / 2);
    for (int m = 0; m < c->head_dim / 2; m++)
        freq[m] = c->encoding == ENC_NOPE || m >= last ? 0
                : rope_methods[c->rope.method].frequency(&c->rope, d, m, n);
}

// softmax(scores) v for query i of one head, of a text of n tokens. q, k, v: the head's part of row 0; strides: of rows.
static void naive_query(const Config *c, int n, int i, const double *q, const double *k,
                        const double *v, int stride, double *out)
{
    const RopeConfig *r = &c->rope;
    int d = c->head_dim;
    double freq[256], *p = xcalloc((size_t)i + 1, sizeof *p), most = -INFINITY, sum = 0;
    double a = attention_factor(r), scale = 1 / sqrt(d);
    if (r->logn) scale *= fmax(1, log(i + 1.0) / log(r->orig_ctx));
    if (r->temp > 0) scale *= 1 + r->temp * log(1 + floor((i + 1.0) / r->temp_ctx));
    frequencies(c, r->method == ROPE_LONGROPE ? n : i + 1, freq);
    for (int j = 0, turn = c->n_rot ? c->n_rot : d; j <= i; j++) {
        if (!visible(r, i, j)) continue;
        p[j] = a * a * rotated_product(q, k + j * stride, freq, turn, distance(r, i, j));
        for (int e = turn; e < d; e++) p[j] += q[e] * k[j * stride + e];
        p[j] *= scale;
        most = fmax(most, p[j]);
    }
    for (int j = 0; j <= i; j++) sum += p[j] = visible(r, i, j) ? exp(p[j] - most) : 0;
    for (int e = 0; e < d; e++) {
        out[e] = 0;
        for (int j = 0; j <= i; j++) out[e] += p[j] / sum * v[j * stride + e];
    }
    free(p);
}

static double *naive_attention(const Config *c, const double *q, const double *k, const double *v,
                               int n)
{
    int d = c->head_dim, group = c->n_heads / c->n_kv_heads, stride = c->n_kv_heads * d;
    double *out = xcalloc((size_t)n * (size_t)c->dim, sizeof *out);
    for (int h = 0; h < c->n_heads; h++)
        for (int i = 0; i < n; i++) {
            int at = i * c->dim + h * d, kv = h / group * d;
            naive_query(c, n, i, q + at, k + kv, v + kv, stride, out + at);
        }
    return out;
}

static void add_to(double *x, double *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += y[i];
    free(y);
}

static void naive_layer(const TestModel *t, const Config *c, int l, double *x, int n)
{
    int dim = c->dim, kv = c->n_kv_heads * c->head_dim, hidden = c->hidden_dim;
    size_t dd = (size_t)(l * dim * dim), dk = (size_t)(l * kv * dim), dh = (size_t)(l * hidden * dim);
    double *h = normed(x, t->att_norm + l * dim, n, dim);
    double *q = times(h, t->wq + dd, n, dim, dim), *k = times(h, t->wk + dk, n, kv, dim);
    double *v = times(h, t->wv + dk, n, kv, dim), *a = naive_attention(c, q, k, v, n);
    add_to(x, times(a, t->wo + dd, n, dim, dim), (size_t)(n * dim));
    free(h), free(q), free(k), free(v), free(a);
    h = normed(x, t->ffn_norm + l * dim, n, dim);
    double *gate = times(h, t->w1 + dh, n, hidden, dim), *up = times(h, t->w3 + dh, n, hidden, dim);
    for (int i = 0; i < n * hidden; i++) gate[i] *= up[i] / (1 + exp(-gate[i]));
    add_to(x, times(gate, t->w2 + dh, n, dim, hidden), (size_t)(n * dim));
    free(h), free(gate), free(up);
}

// The final normed states of all tokens. c: the config with its positions resolved.
static double *naive_states(const TestModel *t, const Config *c, const int *tokens, int n)
{
    double *x = xcalloc((size_t)n * (size_t)c->dim, sizeof *x);
    for (int i = 0; i < n * c->dim; i++)
        x[i] = (double)t->tok_emb[tokens[i / c->dim] * c->dim + i % c->dim];
    for (int l = 0; l < c->n_layers; l++) naive_layer(t, c, l, x, n);
    double *out = normed(x, t->final_norm, n, c->dim);
    free(x);
    return out;
}

// ---- Methods -----------------------------------------------------------------------------------

static const float test_short[64] = {1, 1.1f, 1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f};
static const float test_long[64] = {2, 3, 4, 5, 6, 7, 8, 9};

// Everything that changes positions, alone and together. L is 150 unless given: texts go past it.
static const struct {
    const char *name;
    RopeConfig rope;
} methods[] = {
    {"none", {.method = ROPE_NONE}},
    {"linear", {.method = ROPE_LINEAR, .factor = 3}},
    {"ntk", {.method = ROPE_NTK, .factor = 3}},
    {"dynamic", {.method = ROPE_DYNAMIC}},
    {"dynamic 2", {.method = ROPE_DYNAMIC, .factor = 2}},
    {"yarn", {.method = ROPE_YARN, .factor = 4}},
    {"longrope", {.method = ROPE_LONGROPE, .factor = 4, .short_factors = test_short,
                  .long_factors = test_long}},
    {"log-n", {.logn = 1}},
    {"window", {.window = 100}},
    {"window 1", {.window = 1}},
    {"sinks", {.window = 100, .sinks = 4}},
    {"many sinks", {.window = 70, .sinks = 70}},
    {"self-extend", {.distance = DIST_SELF_EXTEND, .reach = 90, .other = 4}},
    {"self-extend 7", {.distance = DIST_SELF_EXTEND, .reach = 65, .other = 7}},
    {"rerope", {.distance = DIST_REROPE, .reach = 90}},
    {"leaky", {.distance = DIST_LEAKY, .reach = 90, .other = 3}},
    {"leaky 2.5", {.distance = DIST_LEAKY, .reach = 33, .other = 2.5}},
    {"dynamic, self-extend", {.method = ROPE_DYNAMIC, .distance = DIST_SELF_EXTEND, .reach = 90,
                              .other = 4}},
    {"dynamic, sinks", {.method = ROPE_DYNAMIC, .window = 100, .sinks = 4}},
    {"longrope, window, log-n", {.method = ROPE_LONGROPE, .factor = 4, .window = 200, .logn = 1,
                                 .short_factors = test_short, .long_factors = test_long}},
    {"leaky, window", {.distance = DIST_LEAKY, .reach = 50, .other = 3, .window = 130}},
    {"string", {.distance = DIST_STRING, .reach = 90, .other = 20}},
    {"string, yarn, log-n", {.method = ROPE_YARN, .factor = 2, .distance = DIST_STRING, .reach = 50,
                             .other = 17, .logn = 1}},
    {"dual-chunk of tiles", {.distance = DIST_DUAL_CHUNK, .other = 20, .reach = 128}},
    {"dual-chunk", {.distance = DIST_DUAL_CHUNK, .other = 20, .reach = 100}},
    {"dual-chunk, short", {.distance = DIST_DUAL_CHUNK, .other = 9, .reach = 27}},
    {"dual-chunk, yarn, log-n", {.method = ROPE_YARN, .factor = 2, .distance = DIST_DUAL_CHUNK,
                                 .other = 16, .reach = 96, .logn = 1}},
    {"dual-chunk, dynamic", {.method = ROPE_DYNAMIC, .distance = DIST_DUAL_CHUNK, .other = 16,
                             .reach = 150}},
    {"dual-chunk, window", {.distance = DIST_DUAL_CHUNK, .other = 16, .reach = 75, .window = 200}},
    {"attention temperature", {.temp = 0.3, .temp_ctx = 100}},
    {"a fraction", {.fraction = 0.6}},
    {"a fraction, yarn, self-extend", {.method = ROPE_YARN, .factor = 2, .fraction = 0.3,
                                       .distance = DIST_SELF_EXTEND, .reach = 65, .other = 7}},
    {"positions", {.positions = rising}},
    {"positions, yarn, window", {.positions = rising, .method = ROPE_YARN, .factor = 4,
                                 .window = 90}},
    {"positions, dynamic", {.positions = rising, .method = ROPE_DYNAMIC}},
};
enum { N_METHODS = sizeof methods / sizeof *methods };

static void set_method(Model *m, int k)
{
    double theta = m->config.rope.theta;
    m->config.rope = methods[k].rope;
    m->config.rope.theta = theta;
    m->config.rope.orig_ctx = 150;
}

static const Shape small = {.version = 1, .dim = 64, .hidden = 96, .layers = 1, .heads = 4,
                            .kv_heads = 2, .vocab = 50, .ctx = 150, .seed = 3};

static double worst_difference(const float *a, const double *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs(a[i] - b[i]));
    for (size_t i = 0; i < n; i++) worst = a[i] == a[i] ? worst : INFINITY;
    return worst;
}

// run.c's states of a text against the definition's.
static void check_naive(const TestModel *t, const Model *m, int n, Feeding f, double tolerance)
{
    State s; // for the config with everything resolved
    int *tokens = random_tokens((size_t)n, t->shape.vocab, n);
    state_init(&s, m, f.ctx ? f.ctx : n, 1, 1, 1);
    double *want = naive_states(t, &s.attn.config, tokens, n);
    float *got = final_states(m, tokens, (size_t)n, f);
    CHECK_NEAR(worst_difference(got, want, (size_t)(n * t->shape.dim)), 0, tolerance);
    free(tokens), free(want), free(got);
}

static void test_methods_naive(void)
{
    TestModel t = make_model(small);
    Model m;
    open_model(&m, &t);
    for (int k = 0; k < N_METHODS; k++) {
        int before = n_failed;
        set_method(&m, k);
        check_naive(&t, &m, 530, (Feeding){.chunk = 128, .step = 128, .exact = 1}, 1e-4);
        note_failures(before, "method %s", methods[k].name);
        m.config.n_rot = 10; // of 16
        before = n_failed;
        check_naive(&t, &m, 200, (Feeding){.chunk = 37, .step = 37, .exact = 1}, 1e-4);
        note_failures(before, "method %s, partial", methods[k].name);
        m.config.n_rot = 0;
    }
    free_test_model(&t);
}

// ---- Shapes and versions -----------------------------------------------------------------------

// dim, hidden, heads, kv heads: head sizes 2, 8, 16, 20, 48, 64, 128 and all kinds of sharing.
static const int shapes[][4] = {{16, 24, 8, 8},   {64, 100, 8, 4},  {64, 44, 4, 1}, {80, 52, 4, 2},
                                {96, 64, 2, 2},   {144, 172, 3, 3}, {128, 64, 2, 1}, {256, 128, 2, 1},
                                {192, 32, 12, 1}};
static const int versions[] = {0, 1, 2, 101, 102};

static void check_shape(Shape s)
{
    TestModel t = make_model(s);
    Model m;
    int before = n_failed;
    open_model(&m, &t);
    CHECK_INT(m.config.dim, s.dim);
    CHECK_INT(m.config.vocab_size, s.vocab);
    CHECK_INT(m.config.train_ctx, s.ctx);
    CHECK_INT(m.config.encoding, s.encoding);
    check_naive(&t, &m, 70, (Feeding){.chunk = 33, .step = 33, .exact = 1}, 1e-4);
    // Rounded activations and keys: close, but not the same.
    check_naive(&t, &m, 70, (Feeding){.chunk = 33, .step = 33, .exact = 0}, 0.25);
    note_failures(before, "version %d, dim %d, hidden %d, heads %d, kv heads %d, group %d",
                  s.version, s.dim, s.hidden, s.heads, s.kv_heads, s.group);
    free_test_model(&t);
}

// Groups: 8 straddles the rows of w2 where hidden is 100, 44, 52, 172; 4 and 16 are also in use.
static void test_shapes(void)
{
    for (size_t v = 0; v < sizeof versions / sizeof *versions; v++)
        for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
            const int *d = shapes[k];
            int group = d[1] % 16 == 0 ? 16 : d[1] % 8 == 0 && k % 2 ? 4 : 8;
            Shape s = {.version = versions[v], .dim = d[0], .hidden = d[1], .heads = d[2],
                       .kv_heads = d[3], .layers = 2, .vocab = 40, .ctx = 64, .group = group,
                       .own_classifier = k % 2, .seed = (int)k};
            check_shape(s);
        }
}

// The extension block: each field arrives, and NoPE sees no positions.
static void test_extension(void)
{
    Shape s = {.version = 101, .dim = 32, .hidden = 16, .heads = 2, .kv_heads = 1, .layers = 1,
               .vocab = 30, .ctx = 99, .scaling = ROPE_LONGROPE, .theta = 500000, .factor = 8,
               .window = 70, .sinks = 3, .logn = 1};
    TestModel t = make_model(s);
    Model m;
    open_model(&m, &t);
    CHECK(m.config.rope.theta == 500000);
    CHECK(m.config.rope.factor == 8);
    CHECK_INT(m.config.rope.method, ROPE_LONGROPE);
    CHECK_INT(m.config.rope.window, 70);
    CHECK_INT(m.config.rope.sinks, 3);
    CHECK_INT(m.config.rope.logn, 1);
    CHECK_BITS(m.config.rope.short_factors, t.short_factors, 8);
    CHECK_BITS(m.config.rope.long_factors, t.long_factors, 8);
    check_naive(&t, &m, 150, (Feeding){.chunk = 40, .step = 40, .exact = 1}, 1e-4);
    free_test_model(&t);
    s = (Shape){.version = 102, .dim = 32, .hidden = 16, .heads = 2, .kv_heads = 1, .layers = 2,
                .vocab = 30, .ctx = 99, .group = 8, .encoding = ENC_NOPE};
    check_shape(s);
}

static void test_classify(void)
{
    Shape s = small;
    for (s.own_classifier = 0; s.own_classifier < 2; s.own_classifier++) {
        TestModel t = make_model(s);
        Model m;
        State st;
        int *tokens = random_tokens(9, s.vocab, 1), bad = 0;
        float logits[4 * 50];
        open_model(&m, &t);
        state_init(&st, &m, 9, 9, 1, 1);
        forward(&st, tokens, 9, 0);
        classify(&st, 5, 4, logits);
        for (int i = 0; i < 4 * s.vocab; i++) {
            double want = 0;
            for (int e = 0; e < s.dim; e++)
                want += (double)st.xb[(5 + i / s.vocab) * s.dim + e] *
                        (double)t.classifier[i % s.vocab * s.dim + e];
            bad += !(fabs(logits[i] - want) <= 1e-4);
        }
        CHECK_INT(bad, 0);
        free(tokens);
        free_test_model(&t);
    }
}

// ---- The same bits -----------------------------------------------------------------------------

// Feeds the text in several ways; all must give the bits of one token at a time.
static void check_chunks(const Model *m, int n, int exact, size_t few, const char *name)
{
    const size_t chunks[] = {few, 64, 128};
    int *tokens = random_tokens((size_t)n, m->config.vocab_size, 5);
    size_t size = (size_t)n * (size_t)m->config.dim;
    float *want = final_states(m, tokens, (size_t)n, (Feeding){.chunk = 1, .step = 1, .exact = exact});
    for (size_t k = 0; k < sizeof chunks / sizeof *chunks; k++) {
        int before = n_failed;
        Feeding f = {.chunk = chunks[k], .step = chunks[k], .exact = exact};
        float *got = final_states(m, tokens, (size_t)n, f);
        CHECK_BITS(got, want, size);
        note_failures(before, "%s, chunk %zu, exact %d, %d tokens", name, chunks[k], exact, n);
        free(got);
    }
    free(tokens), free(want);
}

static void test_chunks(void)
{
    static const size_t few[] = {2, 3, 7}; // small chunks cost most: one for each method
    Shape s = small;
    s.layers = 2;
    s.version = 2;
    s.group = 16;
    TestModel t = make_model(s);
    Model m;
    open_model(&m, &t);
    for (int k = 0; k < N_METHODS; k++) {
        set_method(&m, k);
        check_chunks(&m, k ? 600 : 1100, k % 2, few[k % 3], methods[k].name); // past SEGMENT, twice
    }
    free_test_model(&t);
    s = (Shape){.version = 2, .dim = 96, .hidden = 100, .heads = 2, .kv_heads = 1, .layers = 2,
                .vocab = 50, .ctx = 64, .group = 8, .seed = 9};
    t = make_model(s); // head size 48, w2's groups straddle rows
    open_model(&m, &t);
    for (int k = 0; k < 3; k++) check_chunks(&m, 200, 0, few[k], "head size 48");
    free_test_model(&t);
}

// Chunks of unequal lengths, as a conversation brings them, against single tokens.
static void test_uneven_chunks(void)
{
    TestModel t = make_model(small);
    Model m;
    State s;
    open_model(&m, &t);
    for (int k = 0; k < N_METHODS; k++) {
        int n = 300, before = n_failed, bad = 0, *tokens = random_tokens(300, 50, 6);
        set_method(&m, k);
        float *want = final_states(&m, tokens, 300, (Feeding){.chunk = 1, .step = 1});
        state_init(&s, &m, n, 50, 0, 0);
        s.attn.text = n;
        for (int at = 0, step; at < n; at += step) {
            step = at % 3 == 0 ? 1 : 1 + (int)(random_bits() % 50);
            step = step < n - at ? step : n - at;
            forward(&s, tokens + at, (size_t)step, at);
            bad += memcmp(want + at * 64, s.xb, (size_t)step * 64 * 4) != 0;
        }
        CHECK_INT(bad, 0);
        note_failures(before, "method %s", methods[k].name);
        free(tokens), free(want);
    }
    free_test_model(&t);
}

// Keys and values in int8: near the exact ones, and the same bits for every chunk.
static void test_int8_cache(void)
{
    static const int some[] = {0, 3, 10, 12}; // none, dynamic, sinks, self-extend
    Shape s = small;
    s.layers = 2;
    TestModel t = make_model(s);
    Model m;
    open_model(&m, &t);
    for (int k = 0; k < 4; k++) {
        int before = n_failed, *tokens = random_tokens(600, s.vocab, 5);
        set_method(&m, some[k]);
        float *exact = final_states(&m, tokens, 600, (Feeding){.chunk = 64, .step = 64, .exact = 1});
        float *want = final_states(&m, tokens, 600, (Feeding){.chunk = 1, .step = 1, .kv = KV_Q8});
        float *got = final_states(&m, tokens, 600, (Feeding){.chunk = 50, .step = 50, .kv = KV_Q8});
        CHECK_BITS(got, want, (size_t)600 * (size_t)s.dim);
        double sum = 0, worst = 0, size = 0;
        for (int i = 0; i < 600 * s.dim; i++) {
            double error = fabs(got[i] - exact[i]);
            sum += error, worst = fmax(worst, error), size += fabs(exact[i]);
        }
        CHECK(worst > 0 && sum < 0.01 * size && worst < 0.2);
        note_failures(before, "%s, mean error %g of %g, worst %g", methods[some[k]].name,
                      sum / 600 / s.dim, size / 600 / s.dim, worst);
        free(tokens), free(exact), free(want), free(got);
    }
    free_test_model(&t);
}

// Layers that know no position see no more than the window either, which is all that the cache holds.
static void test_still_layers(void)
{
    Shape s = small;
    s.layers = 2;
    TestModel t = make_model(s);
    Model m;
    open_model(&m, &t);
    m.config.nope_every = 2;
    m.config.local = (RopeConfig){.theta = 10000, .still = 1};
    m.layers[1].local = 1;
    for (int sinks = 0; sinks < 5; sinks += 4) {
        int *tokens = random_tokens(600, s.vocab, 5);
        m.config.rope.window = 64;
        m.config.rope.sinks = sinks;
        float *want = final_states(&m, tokens, 600, (Feeding){.chunk = 600, .step = 600});
        float *got = final_states(&m, tokens, 600, (Feeding){.chunk = 20, .step = 20});
        CHECK_BITS(got, want, (size_t)600 * (size_t)s.dim);
        free(tokens), free(want), free(got);
    }
    free_test_model(&t);
}

// A model wide enough that every loop is shared out, on 1 to 4 threads, by chunks of 1, 5, 128.
static void test_threads(void)
{
    Shape s = {.version = 2, .dim = 256, .hidden = 704, .heads = 4, .kv_heads = 2, .layers = 2,
               .vocab = 600, .ctx = 150, .group = 32, .seed = 4};
    static const int some[] = {0, 3, 10, 12}; // none, dynamic, sinks, self-extend
    static const size_t steps[] = {1, 5, 128};
    enum { N = 560 };
    TestModel t = make_model(s);
    Model m;
    open_model(&m, &t);
    int *tokens = random_tokens(N, s.vocab, 8);
    float *want[4];
    for (int threads = 1; threads <= 4; threads++) {
        pool_start(threads);
        for (int k = 0; k < 4; k++) {
            set_method(&m, some[k]);
            if (threads == 1) want[k] = final_states(&m, tokens, N, (Feeding){.chunk = 64, .step = 64});
            for (int c = threads == 1 ? 1 : 0; c < 3; c++) {
                if (k && c == 0 && threads != 2) continue; // for time's sake
                int before = n_failed;
                float *got = final_states(&m, tokens, N, (Feeding){.chunk = steps[c], .step = steps[c]});
                CHECK_BITS(got, want[k], (size_t)N * (size_t)s.dim);
                note_failures(before, "%s, %d threads, chunk %zu", methods[some[k]].name, threads,
                              steps[c]);
                free(got);
            }
        }
    }
    pool_start(1);
    for (int k = 0; k < 4; k++) free(want[k]);
    free(tokens);
    free_test_model(&t);
}

// ---- Identities --------------------------------------------------------------------------------

// Two settings under which the same text must give the same bits.
static void check_same(RopeConfig a, RopeConfig b, int n, Feeding fa, Feeding fb,
                       const char *what)
{
    TestModel t = make_model(small);
    Model m;
    open_model(&m, &t);
    int before = n_failed, *tokens = random_tokens((size_t)n, small.vocab, 2);
    a.theta = b.theta = 10000;
    m.config.rope = a;
    float *x = final_states(&m, tokens, (size_t)n, fa);
    m.config.rope = b;
    float *y = final_states(&m, tokens, (size_t)n, fb);
    CHECK_BITS(x, y, (size_t)n * (size_t)small.dim);
    note_failures(before, "%s", what);
    free(tokens), free(x), free(y);
    free_test_model(&t);
}

static void test_identities(void)
{
    Feeding f = {.chunk = 32, .step = 32}, one = {.chunk = 1, .step = 1};
    RopeConfig none = {.orig_ctx = 150};
    check_same((RopeConfig){.window = 601}, none, 600, f, f, "window larger than the text");
    check_same((RopeConfig){.window = 600}, none, 600, one, f, "window as large as the text");
    check_same((RopeConfig){.window = 601, .sinks = 5}, none, 600, f, f, "and sinks");
    check_same((RopeConfig){.distance = DIST_SELF_EXTEND, .reach = 600, .other = 4}, none, 600, f, f,
               "self-extend, W above the text");
    check_same((RopeConfig){.distance = DIST_REROPE, .reach = 600}, none, 600, f, one,
               "rerope, W above the text");
    check_same((RopeConfig){.distance = DIST_STRING, .reach = 600, .other = 9}, none, 600, f, f,
               "string, S above the text");
    check_same((RopeConfig){.distance = DIST_DUAL_CHUNK, .other = 9, .reach = 600}, none, 600, f, one,
               "dual-chunk, C above the text");
    check_same((RopeConfig){.fraction = 1}, none, 600, f, f, "all pairs turn");
    check_same((RopeConfig){.method = ROPE_DYNAMIC, .orig_ctx = 600, .factor = 4}, none, 600, f, f,
               "dynamic up to L");
    check_same((RopeConfig){.logn = 1, .orig_ctx = 600}, none, 600, f, f, "log-n up to L");
    for (int k = ROPE_LINEAR; k <= ROPE_LLAMA3; k++)
        if (k != ROPE_DYNAMIC)
            check_same((RopeConfig){.method = k, .factor = 1, .orig_ctx = 150}, none, 300, f, f,
                       rope_methods[k].name);
}

// The ring gives what a cache of everything gives. A cache made for large chunks needs no ring.
static void test_ring(void)
{
    RopeConfig window = {.window = 70, .orig_ctx = 150}, sinks = {.window = 70, .sinks = 66, .orig_ctx = 150};
    RopeConfig leaky = {.window = 130, .distance = DIST_LEAKY, .reach = 40, .other = 3};
    RopeConfig all[] = {window, sinks, leaky};
    for (int k = 0; k < 3; k++) {
        TestModel t = make_model(small);
        Model m;
        State ring, full;
        open_model(&m, &t);
        all[k].theta = 10000;
        m.config.rope = all[k];
        state_init(&ring, &m, 1000, 7, 0, 0);
        state_init(&full, &m, 1000, 1000, 0, 0);
        CHECK(ring.attn.cache.n_slots < 8);
        CHECK_INT(full.attn.cache.n_slots, 16);
        free_test_model(&t);
        check_same(all[k], all[k], 1000, (Feeding){.chunk = 7, .step = 7},
                   (Feeding){.chunk = 1000, .step = 7}, "ring against full cache");
        check_same(all[k], all[k], 1000, (Feeding){.chunk = 130, .step = 130},
                   (Feeding){.chunk = 1, .step = 1}, "rings of two sizes");
    }
}

// dynamic has no memory: after a long text, the same state gives a short one's bits.
static void test_no_memory(void)
{
    TestModel t = make_model(small);
    Model m;
    State s;
    open_model(&m, &t);
    set_method(&m, 3);
    int *tokens = random_tokens(400, small.vocab, 2);
    float *want = final_states(&m, tokens, 180, (Feeding){.chunk = 180, .step = 180});
    state_init(&s, &m, 400, 400, 0, 0);
    forward(&s, tokens, 400, 0);
    forward(&s, tokens, 180, 0);
    CHECK_BITS(s.xb, want, 180 * 64);
    free(tokens), free(want);
    free_test_model(&t);
}

// What the system says of its memory: "max", an empty file and none mean that there is no limit.
static void test_memory_files(void)
{
    static const struct {
        const char *text, *form;
        size_t want;
    } files[] = {{"500000000\n", "%zu", 500000000}, {"max\n", "%zu", SIZE_MAX},
                 {"", "%zu", SIZE_MAX}, {"MemTotal: 9 kB\nMemFree: 8 kB\n", "MemFree: %zu", 8}};
    for (size_t i = 0; i < COUNT(files); i++) {
        char path[64];
        FILE *f = tmpfile();
        fputs(files[i].text, f);
        fflush(f);
        sprintf(path, "/proc/self/fd/%d", fileno(f));
        CHECK_INT(read_number(path, files[i].form), files[i].want);
        fclose(f);
    }
    CHECK_INT(read_number("/no/such/file", "%zu"), SIZE_MAX);
    CHECK(available_memory() > 1 << 20 && available_memory() < (size_t)1 << 50);
}

// Scores of any size that a float has: the largest gets all, masked keys and those of minus infinity
// nothing. Where no key has any weight there is no answer: 0 / 0, NaN, which the logits then show.
static void test_large_scores(void)
{
    static const float best[] = {-3e38f, -1e31f, 0, 1e31f, 3e38f, -INFINITY};
    for (int k = 0; k < 6; k++) {
        float score[TILE], o[LANES] = {0};
        RowSums sums = EMPTY;
        for (int i = 0; i < TILE; i++) score[i] = i == 3 ? best[k] : i < 10 ? -3.2e38f : 1e38f;
        if (k == 5) for (int i = 0; i < TILE; i++) score[i] = -INFINITY;
        Positions p = {.rope = {0}};
        Batch w = {.a = &(Attention){.p = &p}, .row = &(Row){.query.i = 9}};
        gather_scores(&w, 0, 0, score, NULL);
        softmax_step(score, o, &sums, LANES);
        CHECK(sums.largest == fmaxf(best[k], EMPTY.largest) && sums.sum == (k < 5) && o[0] == 0);
        if (k == 5) continue;
        CHECK(score[3] == 1 && score[10] == 0);
    }
}

int main(void)
{
    for (int j = 1; j < 1024; j++) rising[j] = rising[j - 1] + 1 + j * j % 13;
    test_large_scores();
    test_memory_files();
    test_shapes();
    test_extension();
    test_classify();
    test_methods_naive();
    test_identities();
    test_ring();
    test_no_memory();
    test_chunks();
    test_uneven_chunks();
    test_int8_cache();
    test_still_layers();
    test_threads();
    return report("test_attention");
}
