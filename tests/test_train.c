// test_train.c: models/train.c. The matrix product against plain loops, every derivative against
// finite differences, a resumed run against an unbroken one, the exported checkpoints against
// run.c's own forward pass, and the synthetic documents against what is said about them.
#define TESTING_TRAIN
#include "../models/train.c"
#include "check.h"
#include <sys/wait.h>

static void fill_normal(float *p, size_t n, uint64_t *rng)
{
    for (size_t i = 0; i < n; i++) p[i] = (float)draw_normal(rng);
}

// ---- Kernels -----------------------------------------------------------------------------------

// C = before + A B in double, by the definition. Returns the largest difference from c.
static double gemm_error(const float *c, const float *before, View a, View b, size_t m, size_t n,
                         size_t k)
{
    double worst = 0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double s = before ? before[i * n + j] : 0;
            for (size_t p = 0; p < k; p++)
                s += (double)a.p[i * a.row + p * a.col] * b.p[p * b.row + j * b.col];
            worst = fmax(worst, fabs(s - c[i * n + j]));
        }
    return worst;
}

static void check_gemm(size_t m, size_t n, size_t k, int form, uint64_t *rng)
{
    float *a = floats(m, k), *b = floats(k, n), *c = floats(m, n), *before = floats(m, n);
    int failed = n_failed, add = form >> 2;
    fill_normal(a, m * k, rng);
    fill_normal(b, k * n, rng);
    fill_normal(c, m * n, rng);
    memcpy(before, c, m * n * sizeof(float));
    View va = form & 1 ? transposed(rows_of(a, m)) : rows_of(a, k);
    View vb = form & 2 ? transposed(rows_of(b, k)) : rows_of(b, n);
    if (use_bf16) // factors that bfloat16 holds, so that only their sums are rounded
        for (size_t i = 0; i < (m + n) * k; i++) {
            float *x = i < m * k ? a + i : b + i - m * k;
            *x = roundf(*x * 32) / 32;
            if (fabsf(*x) > 4) *x = 4;
        }
    gemm(c, n, va, vb, m, n, k, add);
    CHECK_NEAR(gemm_error(c, add ? before : NULL, va, vb, m, n, k), 0, 1e-5 * sqrt((double)k));
    note_failures(failed, "%zu x %zu x %zu, form %d", m, n, k, form);
    free(a);
    free(b);
    free(c);
    free(before);
}

// Sizes with and without borders, each operand as it lies and transposed, replacing and adding.
static void test_gemm(void)
{
    static const size_t sizes[][3] = {{8, 32, 16}, {64, 64, 300},  {1, 1, 1},
                                      {13, 45, 7}, {200, 545, 33}, {129, 31, 520}};
    uint64_t rng = 1;
    for (size_t t = 0; t < sizeof sizes / sizeof *sizes; t++)
        for (int form = 0; form < 8; form++)
            check_gemm(sizes[t][0], sizes[t][1], sizes[t][2], form, &rng);
#if defined(__AVX512BF16__) && !defined(PLAIN)
    use_bf16 = 1;
    for (int form = 0; form < 8; form++) {
        check_gemm(8, 32, 32, form, &rng);
        check_gemm(200, 544, 352, form, &rng);
        check_gemm(13, 45, 7, form, &rng); // borders: not in pairs
    }
    use_bf16 = 0;
#endif
}

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

#if defined(__AVX512BF16__) && !defined(PLAIN)
// Rounding to bfloat16 goes to the nearest, ties to even, in both ways of packing.
static void test_bf16(void)
{
    float x[2 * WIDTH];
    for (int i = 0; i < 2 * WIDTH; i++) x[i] = (float)(256 + i) / (i % 3 ? 2.0f : -2.0f);
    vecw in_order = pair32(x), lanes = pair16(load(x), load(x + WIDTH));
    for (int i = 0; i < 2 * WIDTH; i++) {
        float want = rintf(x[i]); // 128 to 144 in steps of a half: 8 bits are whole numbers
        CHECK_INT(in_order[i / 2] >> i % 2 * 16 & 0xffff, bits_of(want) >> 16);
        CHECK_INT(lanes[i % WIDTH] >> i / WIDTH * 16 & 0xffff, bits_of(want) >> 16);
    }
}

#else
static void test_bf16(void) {}
#endif

static void test_exp(void)
{
    double worst = 0;
    for (float x = -86; x < 88; x += 0.01f)
        worst = fmax(worst, fabs(exp_vec(splat(x))[3] / exp((double)x) - 1));
    CHECK_NEAR(worst, 0, 3e-7);
    CHECK_NEAR(exp_vec(splat(-INFINITY))[0], 0, 0);
}

// All singular values of the result are near 1: it keeps the length of any u from the left.
static void test_orthogonalize(void)
{
    enum { R = 32, C = 80 };
    static float g[R * C], x[R * C], work[2 * R * R + R * C];
    uint64_t rng = 5;
    double shortest = 9, longest = 0, along = 0;
    fill_normal(g, R * C, &rng);
    memcpy(x, g, sizeof x);
    orthogonalize(x, R, C, work);
    for (int trial = 0; trial < 100; trial++) {
        double u[R], in = 0, out = 0;
        for (int i = 0; i < R; i++) {
            u[i] = draw_normal(&rng);
            in += u[i] * u[i];
        }
        for (int j = 0; j < C; j++) {
            double y = 0;
            for (int i = 0; i < R; i++) y += u[i] * x[i * C + j];
            out += y * y;
        }
        shortest = fmin(shortest, sqrt(out / in));
        longest = fmax(longest, sqrt(out / in));
    }
    for (int i = 0; i < R * C; i++) along += (double)g[i] * x[i];
    CHECK(shortest > 0.65 && longest < 1.25);
    CHECK(along > 0);
}

// ---- Derivatives -------------------------------------------------------------------------------

static const Shape tiny = {64, 96, 2, 4, 2, 96, 96, ENC_ROPE, 0, 100, 1e-5f};

static void tiny_net(Net *n, Encoding encoding, int spread, uint64_t seed)
{
    Shape s = tiny;
    s.encoding = (uint16_t)encoding;
    s.spread = (uint16_t)spread;
    net_alloc(n, &s, 2);
    init_params(n->params, &n->parts, &s, &seed);
    for (size_t i = 0; i < n->parts.size; i++) // large enough that every path matters
        n->params[i] += 0.15f * (float)draw_normal(&seed);
    for (size_t r = 0; r < n->max_rows; r++) {
        n->token[r] = (uint16_t)draw_below(&seed, tiny.vocab_size);
        n->target[r] = (uint16_t)draw_below(&seed, tiny.vocab_size);
        n->weight[r] = r % 3 ? 1 : 0.5f;
    }
}

static double total_loss(Net *n)
{
    double total = 0;
    net_forward(n, n->max_rows);
    net_loss(n, n->max_rows, 0, NULL);
    for (size_t r = 0; r < n->max_rows; r++) total += (double)n->weight[r] * n->loss[r];
    return total;
}

// The loss with one part of the parameters moved by h u.
static double moved_loss(Net *n, const float *kept, const float *u, Part p, double h)
{
    size_t size = p.rows * p.cols;
    for (size_t k = 0; k < size; k++) n->params[p.at + k] = kept[p.at + k] + (float)h * u[k];
    double loss = total_loss(n);
    memcpy(n->params + p.at, kept + p.at, size * sizeof(float));
    return loss;
}

// The slope of the loss along a direction u, (L(w + h u) - L(w - h u)) / 2h, must be the dot
// product of gradient and u; tried along random directions and, first, near the gradient's own.
static void check_part(Net *n, int i, const float *kept, float *u, uint64_t *rng)
{
    Part p = n->parts.part[i];
    size_t size = p.rows * p.cols;
    const float *g = n->grads + p.at;
    for (int trial = 0; trial < 3; trial++) {
        int failed = n_failed;
        double slope = 0, length = 0, h = 8e-3 / sqrt((double)size);
        fill_normal(u, size, rng);
        for (size_t k = 0; k < size; k++) {
            if (trial == 0) u[k] += 3 * g[k] / (fabsf(g[k]) + 1e-3f);
            slope += (double)u[k] * g[k];
            length += (double)g[k] * g[k];
        }
        double want = (moved_loss(n, kept, u, p, h) - moved_loss(n, kept, u, p, -h)) / (2 * h);
        double tolerance = 0.01 * sqrt(length) + 0.003 * fabs(want);
        CHECK_NEAR(slope, want, tolerance);
        if (trial == 0) CHECK(fabs(0.95 * slope - want) > tolerance); // 5 % would be noticed
        note_failures(failed, "part %d, %zu x %zu", i, p.rows, p.cols);
    }
}

static void check_gradients(Encoding encoding, int spread)
{
    Net n;
    uint64_t rng = 7;
    int failed = n_failed;
    tiny_net(&n, encoding, spread, 3);
    draw_positions(&n.places, n.max_rows, &n.shape, 5);
    net_step(&n, n.max_rows);
    float *kept = floats(n.parts.size, 1), *u = floats(n.parts.size, 1);
    memcpy(kept, n.params, n.parts.size * sizeof(float));
    for (int i = 0; i < n.parts.n; i++) // fire's own: see check_biases
        if (n.parts.part[i].kind != KIND_TABLE || encoding != ENC_FIRE)
            check_part(&n, i, kept, u, &rng);
    note_failures(failed, "encoding %s, spread %d", encodings[encoding].name, spread);
    free(kept);
    free(u);
}

// The sum of g * bias over all heads and pairs, as the parameters moved by h u give it.
static double weighted_biases(Net *n, const float *g, const float *u, Part p, double h)
{
    Places *e = &n->places;
    float *moved = floats(e->table_size, 1);
    size_t from = p.at - (size_t)(n->w.encoding - n->params);
    double sum = 0;
    memcpy(moved, n->w.encoding, e->table_size * sizeof(float));
    for (size_t k = 0; k < p.rows * p.cols; k++) moved[from + k] += (float)h * u[k];
    set_places(e, moved);
    for (size_t row = 0; row < (size_t)tiny.n_heads * e->T; row++)
        for (size_t j = 0; j <= row % e->T; j++)
            sum += (double)g[row * e->pitch + j] * e->bias[row * e->pitch + j];
    free(moved);
    return sum;
}

// Biases alone, for random derivatives g of each: a step so short that the kinks of fire's hidden
// units do not matter, and numbers that softmax would not notice count too.
static void check_biases(Encoding encoding)
{
    Net n;
    uint64_t rng = 3;
    tiny_net(&n, encoding, 0, 3);
    Places *e = &n.places;
    size_t one = (size_t)tiny.n_heads * e->T * e->pitch;
    float *g = floats(one, 1), *u = floats(e->table_size, 1), *d = floats(e->table_size, 1);
    for (size_t row = 0; row < 2 * (size_t)tiny.n_heads * e->T; row++)
        for (size_t j = 0; j <= row % e->T; j++) { // of two sequences; g is their sum
            float x = 1 + (float)draw_normal(&rng);
            e->d_bias[row * e->pitch + j] = x;
            g[(row * e->pitch + j) % one] += x;
        }
    set_places(e, n.w.encoding);
    places_backward(e, 2, d);
    for (int i = 2 + 9 * tiny.n_layers; i < n.parts.n; i++) {
        Part p = n.parts.part[i];
        int failed = n_failed;
        size_t size = p.rows * p.cols, from = p.at - (size_t)(n.w.encoding - n.params);
        for (int trial = 0; trial < 3; trial++) {
            double slope = 0, length = 0, h = 1e-3 / sqrt((double)size);
            fill_normal(u, size, &rng);
            for (size_t k = 0; k < size; k++) {
                if (trial == 0) u[k] = d[from + k] > 0 ? 3 : -3;
                slope += (double)u[k] * d[from + k];
                length += (double)d[from + k] * d[from + k];
            }
            double want = (weighted_biases(&n, g, u, p, h) - weighted_biases(&n, g, u, p, -h)) /
                          (2 * h), tolerance = 0.01 * sqrt(length) + 0.003 * fabs(want);
            CHECK_NEAR(slope, want, tolerance);
            if (trial == 0) CHECK(fabs(0.95 * slope - want) > tolerance);
        }
        note_failures(failed, "encoding %s, part %d", encodings[encoding].name, i);
    }
}

static void test_gradients(void)
{
    check_biases(ENC_T5);
    check_biases(ENC_KERPLE);
    check_biases(ENC_FIRE);
    for (int e = 0; e < N_ENCODINGS; e++) check_gradients((Encoding)e, 0);
    check_gradients(ENC_ROPE, 8);
    check_gradients(ENC_LEARNED, 8);
    check_gradients(ENC_SINUSOIDAL, 8);
}

// Drawn positions: rising, within the range, another draw for each sequence and seed; for
// sinusoidal one after the other.
static void test_positions(void)
{
    static const Encoding drawn[] = {ENC_ROPE, ENC_LEARNED, ENC_SINUSOIDAL};
    for (int k = 0; k < 3; k++) {
        Net n;
        int failed = n_failed, bad = 0, steps = 0, last = 0;
        tiny_net(&n, drawn[k], 8, 3);
        const int32_t *p = n.places.position;
        for (uint64_t seed = 0; seed < 50; seed++) {
            draw_positions(&n.places, n.max_rows, &n.shape, seed * n.max_rows);
            for (size_t r = 0; r < n.max_rows; r++) {
                int first = r % n.T == 0;
                bad += p[r] < 0 || p[r] >= 8 * tiny.train_ctx || (!first && p[r] <= p[r - 1]);
                steps += !first && p[r] == p[r - 1] + 1;
                last = p[r] > last ? p[r] : last;
            }
            bad += !memcmp(p, p + n.T, n.T * sizeof *p);
        }
        CHECK_INT(bad, 0);
        CHECK(last > 7.5 * tiny.train_ctx);
        double all = 50 * (double)(n.max_rows - 2);
        CHECK(drawn[k] == ENC_SINUSOIDAL ? steps == all : steps > 0.1 * all && steps < 0.15 * all);
        note_failures(failed, "encoding %s", encodings[drawn[k]].name);
    }
}

// CAPE's: steps of one stretch each, but for half a token to either side; sequences begin anywhere,
// 0 among it, and the network sees what run.c's function adds there.
static void test_real_positions(void)
{
    Net n;
    tiny_net(&n, ENC_SINUSOIDAL, 8, 3);
    double *real = n.places.real = xcalloc(n.max_rows, sizeof *real), low = 1e9, high = -1e9;
    double least = 9, most = 0;
    int bad = 0;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        draw_positions(&n.places, n.max_rows, &n.shape, seed * n.max_rows);
        double stretch = (real[n.T - 1] - real[0]) / (double)(n.T - 1);
        for (size_t t = 1; t < n.T; t++)
            bad += fabs(real[t] - real[0] - stretch * (double)t) > 2.1 * 1.4;
        least = fmin(least, stretch), most = fmax(most, stretch);
        low = fmin(low, real[0]), high = fmax(high, real[0]);
    }
    CHECK_INT(bad, 0);
    CHECK(least > 0.65 && least < 0.78 && most > 1.33 && most < 1.5);
    CHECK(low < 0 && low > -0.3 * (double)n.T && high > 6 * (double)n.T);
    float *x = floats(n.max_rows, tiny.dim), *want = floats(1, tiny.dim);
    size_t last = n.max_rows - 1, dim = (size_t)tiny.dim;
    embed(&n, x, n.max_rows);
    memcpy(want, n.w.embedding + n.token[last] * dim, dim * sizeof *want);
    add_sinusoidal(&n.places.config, real[last], want);
    CHECK(!memcmp(x + last * dim, want, dim * sizeof *want));
    plain_positions(&n.places, n.max_rows);
    CHECK(real[0] == 0 && real[n.T - 1] == (double)n.T - 1 && real[n.T] == 0);
}

// ---- Files -------------------------------------------------------------------------------------

// -ln softmax(logits[n])[target]
static double loss_of(const float *logits, size_t n, int target)
{
    double max = logits[0], sum = 0;
    for (size_t i = 1; i < n; i++) max = fmax(max, logits[i]);
    for (size_t i = 0; i < n; i++) sum += exp(logits[i] - max);
    return log(sum) + max - logits[target];
}

// Losses of run.c, reading the exported file at full precision, against those of training.
static double exported_difference(Net *n, const char *path)
{
    Model m;
    State s;
    size_t T = n->T, V = (size_t)n->shape.vocab_size;
    float *logits = floats(T, V);
    int *ids = xcalloc(T, sizeof *ids);
    double worst = 0;
    total_loss(n);
    model_load(&m, path);
    state_init(&s, &m, (int64_t)T, T, 1, 1);
    for (size_t i = 0; i < T; i++) ids[i] = n->token[i];
    forward(&s, ids, T, 0);
    classify(&s, 0, T, logits);
    for (size_t i = 0; i < T; i++)
        worst = fmax(worst, fabs(loss_of(logits + i * V, V, n->target[i]) - n->loss[i]));
    return worst;
}

// Rounds all matrices as the Q8_0 file does, so that training computes with the same weights.
static void round_matrices(Net *n)
{
    for (int i = 0; i < n->parts.n; i++) {
        Part p = n->parts.part[i];
        int matrix = p.kind == KIND_MATRIX || p.kind == KIND_EMBEDDING;
        for (size_t k = 0; matrix && k < p.rows * p.cols; k += 32) {
            float *w = n->params + p.at + k, most = 0;
            for (int j = 0; j < 32; j++) most = fmaxf(most, fabsf(w[j]));
            for (int j = 0; j < 32; j++) w[j] = most / 127 * rintf(w[j] / (most / 127));
        }
    }
}

static int exported_version(Net *n, const char *path, int q8)
{
    Model m;
    export_checkpoint(n, path, q8);
    model_load(&m, path);
    return read_i32(m.file + 4);
}

static void check_export(const char *path, Encoding encoding, int spread)
{
    Net n;
    int failed = n_failed;
    tiny_net(&n, encoding, spread, 4);
    CHECK_INT(exported_version(&n, path, 0), 101); // theta 100 is in the extension only
    CHECK_NEAR(exported_difference(&n, path), 0, 2e-4);
    round_matrices(&n);
    CHECK_INT(exported_version(&n, path, 1), 102);
    CHECK_NEAR(exported_difference(&n, path), 0, 2e-4);
    n.shape.rope_theta = 10000;
    CHECK_INT(exported_version(&n, path, 0), encoding == ENC_ROPE ? 1 : 101);
    CHECK_INT(exported_version(&n, path, 1), encoding == ENC_ROPE ? 2 : 102);
    note_failures(failed, "encoding %s, spread %d", encodings[encoding].name, spread);
}

static void test_export(const char *path)
{
    for (int e = 0; e < N_ENCODINGS; e++) check_export(path, (Encoding)e, 0);
    check_export(path, ENC_LEARNED, 8);
}

// A model whose rotation was dropped is written, and runs, as one without positions.
static void test_dropped(const char *path)
{
    Net n;
    tiny_net(&n, ENC_ROPE, 0, 4);
    n.shape.rope_theta = 10000;
    double before = total_loss(&n);
    drop_positions(&n.places);
    CHECK(fabs(total_loss(&n) - before) > 1e-3);
    CHECK_INT(exported_version(&n, path, 0), 101);
    CHECK_NEAR(exported_difference(&n, path), 0, 2e-4);
}

// ---- Text --------------------------------------------------------------------------------------

static Tokenizer tokenizer;

// Sentences of pieces chosen at random, as a book.
static void make_text(Text *x, double synthetic)
{
    static const char *const word[] = {"cat", "dog", "runs", "sleeps", "tree",  "over",
                                       "big", "and", "the",  "little", "house", "river"};
    char *text = xcalloc(1 << 18, 1);
    size_t n = 0;
    for (test_rng = 1; n < (1 << 18) - 200;) {
        n += (size_t)sprintf(text + n, "The");
        for (uint32_t k = 3 + random_bits() % 9; k; k--)
            n += (size_t)sprintf(text + n, " %s", word[random_bits() % 12]);
        n += (size_t)sprintf(text + n, random_bits() % 6 ? ". " : ".\n\n");
    }
    *x = (Text){.tokenizer = &tokenizer,
                .n = 1,
                .rng = 9,
                .synthetic = synthetic,
                .answer_weight = 4,
                .repetition = 0.25};
    classify_pieces(x, 4096);
    Source *s = &x->source[0];
    int *ids = xcalloc(n + 2, sizeof *ids);
    int count = tokenizer_encode(&tokenizer, text, n, ids);
    s->token = xcalloc((size_t)count, sizeof *s->token);
    for (int i = 0; i < count; i++) s->token[i] = (uint16_t)ids[i];
    s->n = (size_t)count;
    s->share = s->first_share = s->last_share = 1;
    free(ids);
    free(text);
}

// Whether the tokens want[n] occur in ids[from, to).
static int occurs(const uint16_t *ids, size_t from, size_t to, const uint16_t *want, size_t n)
{
    for (size_t i = from; i + n <= to; i++)
        if (!memcmp(ids + i, want, n * sizeof *ids)) return 1;
    return 0;
}

// A window's targets are its tokens one place on, up to the next BOS; the weighted runs are
// numbers of 4 or 5 digits, each of which stands in its document before as well.
static void check_window(const uint16_t *token, const uint16_t *target, const float *weight,
                         size_t T, int *n_answers)
{
    int shifted = 0, found = 0, answers = 0, digits = 0;
    size_t begin = 0;
    for (size_t i = 0; i < T; i++) {
        if (token[i] == ID_BOS) begin = i;
        shifted += i + 1 == T || token[i + 1] == target[i] || token[i + 1] == ID_BOS;
        if (weight[i] != 4 || (i && weight[i - 1] == 4)) continue;
        size_t n = 0;
        for (; i + n < T && weight[i + n] == 4; n++)
            digits += isdigit((unsigned char)*tokenizer.pieces[target[i + n]].text) != 0;
        digits -= (int)n;
        found += (n == 4 || n == 5) && occurs(token, begin, i, target + i, n);
        answers++;
    }
    CHECK_INT(shifted, (long long)T);
    CHECK_INT(token[0], ID_BOS);
    CHECK_INT(digits, 0);
    CHECK_INT(found, answers);
    *n_answers += answers;
}

static void test_windows(void)
{
    enum { T = 512 };
    static uint16_t token[T], target[T];
    static float weight[T];
    Text x;
    int answers = 0, in_books = 0;
    make_text(&x, 0);
    for (int i = 0; i < 50; i++) {
        fill_synthetic_window(&x, 0, T, token, target, weight);
        check_window(token, target, weight, T, &answers);
    }
    CHECK(answers >= 50);
    for (int i = 0; i < 50; i++) {
        fill_text_window(&x, 0, T, token, target, weight);
        check_window(token, target, weight, T, &in_books);
    }
    CHECK_INT(in_books, 0);
}

// Makes a file that holds this text.
static void save_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    CHECK(f && fputs(text, f) >= 0 && !fclose(f));
}

// How often a token stands in a text.
static size_t count_token(const Source *s, int token)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) n += s->token[i] == token;
    return n;
}

// Every document of a file begins with BOS and ends with EOS; a text without the line <|end|> has
// no EOS, and one that merely contains those letters is not cut.
static void test_documents(const char *path)
{
    Source s = {0}, whole = {0}, none = {0};
    save_text(path, "\n\nOne cat.\nTwo.\n\n<|end|>\n\n<|end|>\nA dog.\n<|end|>\n\nA bird.\n");
    append_path(&s, &tokenizer, path);
    CHECK_INT(count_token(&s, ID_BOS), 3);
    CHECK_INT(count_token(&s, ID_EOS), 2);
    CHECK_INT(s.ends, 2);
    CHECK_INT(s.bytes, 13 + 6 + 10); // the text behind the last end stays as it is
    int want[16], n = tokenizer_encode(&tokenizer, "One cat.\nTwo.", 13, want), same = 0;
    for (int i = 0; i < n; i++) same += s.token[1 + i] == want[i];
    CHECK_INT(same, n);
    CHECK_INT(s.token[n + 1], ID_EOS);
    CHECK_INT(s.token[n + 2], ID_BOS);
    save_text(path, "A line with <|end|> in it.\n<|end|> at its start\n");
    append_path(&whole, &tokenizer, path);
    CHECK_INT(count_token(&whole, ID_BOS), 1);
    CHECK_INT(count_token(&whole, ID_EOS), 0);
    save_text(path, "\n<|end|>\n\n");
    append_path(&none, &tokenizer, path);
    CHECK_INT(none.n, 0);
}

// Three in four windows of documents begin with one; no loss is taken on a BOS; synthetic texts
// with filler from documents hold none of their BOS and EOS but the one in front of each.
static void test_document_windows(const char *path)
{
    enum { T = 256, N = 400 };
    static uint16_t token[T], target[T];
    static float weight[T];
    Text x;
    int starts = 0, weighed = 0, stray = 0, answers = 0;
    FILE *f = fopen(path, "wb");
    for (int i = 0; i < 3000; i++)
        fprintf(f, "Zed the cat has %d dogs. The end. So it is.\n<|end|>\n", i);
    CHECK(f && !fclose(f));
    make_text(&x, 0);
    Source *s = &x.source[0];
    s->n = 0;
    append_path(s, &tokenizer, path);
    uint16_t first = s->token[1];
    for (int i = 0; i < N; i++) {
        fill_text_window(&x, 0, T, token, target, weight);
        starts += target[0] == first;
        for (size_t k = 0; k < T; k++) weighed += target[k] == ID_BOS && weight[k] != 0;
    }
    CHECK_INT(weighed, 0);
    CHECK(starts > 0.7 * N && starts < 0.85 * N);
    for (int i = 0; i < 100; i++) {
        uint16_t out[T];
        x.repetition = 0;
        size_t n = put_retrieval(&x, s, T - 1, out, weight);
        for (size_t k = 0; k < n; k++) stray += out[k] == ID_BOS || out[k] == ID_EOS;
        answers += n > 0;
    }
    CHECK_INT(stray, 0);
    CHECK_INT(answers, 100);
    // Nor is it learned in a window that a synthetic text begins and documents fill up.
    for (int i = 0; i < N; i++) {
        x.repetition = i % 2;
        fill_synthetic_window(&x, 0, T, token, target, weight);
        for (size_t k = 0; k < T; k++) weighed += target[k] == ID_BOS && weight[k] != 0;
    }
    CHECK_INT(weighed, 0);
}

// What a box holds by the statements of d, followed link by link; *links counts them.
static int box_content(const Retrieval *d, char box, int *links)
{
    for (int i = 0; i < d->n_facts; i++) {
        char name, of;
        int number;
        if (sscanf(d->fact[i], "The box %c holds %d.", &name, &number) == 2 && name == box)
            return number;
        if (sscanf(d->fact[i], "The box %c holds what the box %c holds.", &name, &of) == 2 &&
            name == box) {
            ++*links;
            return box_content(d, of, links);
        }
    }
    return -1;
}

// The box that this one looks into, or its own letter.
static char looked_into(const Retrieval *d, char box)
{
    char name, of;
    for (int i = 0; i < d->n_facts; i++)
        if (sscanf(d->fact[i], "The box %c holds what the box %c holds.", &name, &of) == 2 &&
            name == box) return of;
    return box;
}

// Linked boxes: every answer follows from the statements, and many need one link or more.
static void test_links(void)
{
    enum { N = 1000 };
    uint64_t rng = 5;
    int wrong = 0, linked = 0, far = 0;
    for (int i = 0; i < N; i++) {
        Retrieval d;
        write_links(&d, &rng);
        for (int k = 0; k < d.n_questions; k++) {
            char box, again;
            int number = 0, links = 0;
            sscanf(d.question[k], "What does the box %c hold? The box %c holds %d.", &box, &again,
                   &number);
            wrong += box != again || number < 1000 || number != box_content(&d, box, &links);
            linked += links > 0;
            far += links > 1;
            wrong += d.fact[d.via[k]][8] != looked_into(&d, box);
            for (int j = 0; j < k; j++) wrong += !strcmp(d.question[j], d.question[k]);
        }
    }
    CHECK_INT(wrong, 0);
    CHECK(linked > N && far > N / 20);
}

// A hint is a letter that stands in place of what comes next behind a question mark, and nowhere
// else; the text that the network sees is without it.
static void test_hints(void)
{
    enum { T = 512, N = 50 };
    static uint16_t token[T], target[T];
    static float weight[T];
    Text x;
    int hints = 0, questions = 0, wrong = 0;
    make_text(&x, 0);
    x.repetition = 0;
    x.links = 1;
    for (int i = 0; i < N; i++) {
        x.hints = i % 2 * 0.5;
        fill_synthetic_window(&x, 0, T, token, target, weight);
        for (size_t k = 0; k + 1 < T; k++) {
            const Piece *next = &tokenizer.pieces[token[k + 1]];
            const Piece *want = &tokenizer.pieces[target[k]];
            questions += token[k] == x.question_mark && i % 2;
            if (token[k + 1] == target[k] || token[k + 1] == ID_BOS) continue;
            hints++;
            wrong += token[k] != x.question_mark || !i % 2 || weight[k] != x.answer_weight;
            wrong += want->len != 2 || !isupper((unsigned char)want->text[1]);
            wrong += next->len < 4 || memcmp(next->text, " The", 4);
        }
    }
    CHECK_INT(wrong, 0);
    CHECK(hints > questions / 3 && hints < questions * 2 / 3 && questions > N);
}

// One round visits every place once.
static void test_permutation(void)
{
    Source s = {.n = 40000};
    size_t T = 64, windows = (s.n - LOOK_AHEAD - 1) / T - 1, bad = 0;
    uint8_t *seen = xcalloc(windows, 1);
    for (size_t i = 0; i < windows; i++) {
        size_t at = window_start(&s, windows + i, T, 1);
        bad += at + T + LOOK_AHEAD >= s.n || seen[at / T]++;
    }
    CHECK_INT(bad, 0);
    free(seen);
}

// ---- Training ----------------------------------------------------------------------------------

static void start_run(Net *n, Text *x, const Settings *o)
{
    net_alloc(n, &o->shape, (size_t)o->micro);
    make_text(x, 0.3);
    init_params(n->params, &n->parts, &o->shape, &x->rng);
}

static void run_steps(Net *n, Text *x, const Settings *o, Progress *p, int steps)
{
    Means m = {0};
    for (int i = 0; i < steps; i++) train_step(n, x, o, p, &m);
}

// Six steps in one go, and three, a save, a load into a fresh network, and three more.
static void test_resume(const char *path)
{
    static const Shape shape = {32, 64, 2, 2, 1, 4096, 256, ENC_ROPE, 0, 10000, 1e-5f};
    Settings o = settings;
    o.shape = shape;
    o.batch = 2;
    o.micro = 1;
    o.tokens = 4000;
    Net a, b;
    Text x, y;
    Progress p = {0}, q = {0};
    start_run(&a, &x, &o);
    run_steps(&a, &x, &o, &p, 6);
    start_run(&b, &y, &o);
    run_steps(&b, &y, &o, &q, 3);
    save_state(path, &b, &y, &q);
    net_alloc(&b, &shape, 1);
    make_text(&y, 0.3);
    memset(&q, 0, sizeof q);
    read_state(open_state(path, &q), path, &b, &y, &q);
    run_steps(&b, &y, &o, &q, 3);
    CHECK_INT(q.tokens, p.tokens);
    CHECK_BITS(b.params, a.params, a.parts.size);
    CHECK_BITS(b.moment2, a.moment2, a.parts.size);
}

// The rate stays until the last fifth and falls to nothing there; shares move by mix_tokens.
static void test_schedule(void)
{
    Settings o = settings;
    Text x = {.n = 2, .source = {{.first_share = 0.9, .last_share = 0.5},
                                 {.first_share = 0.1, .last_share = 0.5}}};
    o.lr = 0.01;
    o.final_lr = o.warmup = 0;
    o.fall = 0.2;
    o.tokens = 1000;
    o.mix_tokens = 400;
    CHECK_NEAR(learning_rate(&o, &(Progress){.tokens = 0}), 0.01, 1e-12);
    CHECK_NEAR(learning_rate(&o, &(Progress){.tokens = 800}), 0.01, 1e-12);
    CHECK_NEAR(learning_rate(&o, &(Progress){.tokens = 900}), 0.005, 1e-12);
    CHECK_NEAR(learning_rate(&o, &(Progress){.tokens = 1000}), 0, 1e-12);
    o.fall = 1;
    CHECK_NEAR(learning_rate(&o, &(Progress){.tokens = 500}), 0.005, 1e-12);
    mix_texts(&x, &o, &(Progress){.tokens = 200});
    CHECK_NEAR(x.source[0].share, 0.7, 1e-12);
    mix_texts(&x, &o, &(Progress){.tokens = 900});
    CHECK_NEAR(x.source[1].share, 0.5, 1e-12);
}

// A few steps on one batch must learn it.
static void test_learning(void)
{
    Net n;
    tiny_net(&n, ENC_ROPE, 0, 6);
    uint64_t seed = 1;
    init_params(n.params, &n.parts, &tiny, &seed);
    double before = total_loss(&n);
    for (uint64_t step = 1; step <= 60; step++) {
        memset(n.grads, 0, n.parts.size * sizeof(float));
        net_step(&n, n.max_rows);
        update_params(&n, &settings.optimizer, 5e-3f, step);
    }
    CHECK(total_loss(&n) < 0.5 * before);
}

// ---- Options -----------------------------------------------------------------------------------

// The exit status of applying one option, in a process of its own.
static int setting_status(const char *name, const char *value)
{
    int status;
    pid_t child = fork();
    if (!child) {
        if (!freopen("/dev/null", "w", stderr)) exit(99);
        apply_setting(name, value);
        choose_encoding(&settings);
        check_settings(&settings);
        exit(0);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_settings(void)
{
    CHECK_INT(setting_status("--minutes", "5"), 0);
    CHECK_INT(setting_status("--minutes", "5x"), 2);
    CHECK_INT(setting_status("--minutes", NULL), 2);
    CHECK_INT(setting_status("--lr", "0.001"), 2); // neither --tokens nor --minutes
    settings.minutes = 1;
    CHECK_INT(setting_status("--lr", "nan"), 2);
    CHECK_INT(setting_status("--layers", "0"), 2);
    CHECK_INT(setting_status("--heads", "3"), 2);
    CHECK_INT(setting_status("--micro", "3"), 2);
    CHECK_INT(setting_status("--nonsense", "3"), 2);
    CHECK_INT(setting_status("--encoding", "kerple"), 0);
    CHECK_INT(setting_status("--encoding", "shape"), 0);
    CHECK_INT(setting_status("--encoding", "cape"), 0);
    CHECK_INT(setting_status("--encoding", "drope"), 0);
    CHECK_INT(setting_status("--encoding", "cherry"), 2);
    settings.encoding = "alibi";
    CHECK_INT(setting_status("--randomized", "8"), 2);
    settings.encoding = "learned";
    CHECK_INT(setting_status("--randomized", "8"), 0);
    settings.encoding = NULL;
}

// ---- Speed -------------------------------------------------------------------------------------
//
// Not part of the tests, since it says something only where nothing else runs:
//     build/test_train speed

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// The most multiply-adds that a core does: as many chains of them as the product's tile has
// vectors, all in registers. GFLOP/s, the best of some tries.
static double peak_speed(void)
{
    enum { CHAINS = 2 * TILE_M, STEPS = 1000000 };
    double best = 1e9;
    volatile float one = 1, keep;
    vec s[CHAINS], a = splat(one), b = splat(one * 1e-9f), total = splat(0);
    for (int i = 0; i < CHAINS; i++) s[i] = splat((float)i);
    for (int rep = 0; rep < 9; rep++) {
        double start = thread_seconds();
        for (int n = 0; n < STEPS; n++)
#pragma GCC unroll 16
            for (int i = 0; i < CHAINS; i++) s[i] = s[i] * a + b;
        best = fmin(best, thread_seconds() - start);
    }
    for (int i = 0; i < CHAINS; i++) total += s[i];
    keep = total[0];
    (void)keep;
    return 2e-9 * CHAINS * WIDTH * STEPS / best;
}

static void time_gemm(const char *name, View a, View b, size_t m, size_t n, size_t k, double peak)
{
    float *c = floats(m, n);
    double best = 1e9;
    for (int rep = 0; rep < 9; rep++) {
        double start = thread_seconds();
        gemm(c, n, a, b, m, n, k, 0);
        best = fmin(best, thread_seconds() - start);
    }
    double speed = 2e-9 * (double)(m * n * k) / best;
    printf("  %-8s %5zu x %4zu x %4zu  %6.1f GFLOP/s  %3.0f %%\n", name, m, n, k, speed,
           100 * speed / peak);
    free(c);
}

// The three products of the layers of the default model, on one thread.
static int print_speed(void)
{
    static const size_t sizes[][2] = {{256, 512}, {256, 256}, {256, 1024}, {512, 256}}; // in, out
    enum { R = 4096, MOST = 1024 };
    float *x = floats(R, MOST), *w = floats(MOST, MOST);
    uint64_t rng = 1;
    double peak = peak_speed();
    pool_start(1);
    fill_normal(x, R * MOST, &rng);
    fill_normal(w, MOST * MOST, &rng);
    printf("peak %.1f GFLOP/s, vectors of %d floats\n", peak, WIDTH);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t in = sizes[i][0], out = sizes[i][1];
        View d_y = rows_of(x, out);
        time_gemm("X W^T", rows_of(x, in), transposed(rows_of(w, in)), R, out, in, peak);
        time_gemm("d_Y W", d_y, rows_of(w, in), R, in, out, peak);
        time_gemm("d_Y^T X", transposed(d_y), rows_of(x, in), out, in, R, peak);
    }
    return 0;
}

int main(int argc, char **argv)
{
    char path[] = "/tmp/test_train_XXXXXX";
    prog = "test_train";
    if (argc > 1 && !strcmp(argv[1], "speed")) return print_speed();
    int fd = mkstemp(path);
    test_settings();
    pool_start(2);
    Vocab v = read_vocab("tokenizer.bin", 4096);
    tokenizer_init(&tokenizer, "tokenizer.bin", &v);
    test_gemm();
    test_bf16();
    test_exp();
    test_orthogonalize();
    test_gradients();
    test_positions();
    test_real_positions();
    test_export(path);
    test_dropped(path);
    test_windows();
    test_documents(path);
    test_document_windows(path);
    test_permutation();
    test_links();
    test_hints();
    test_resume(path);
    test_schedule();
    test_learning();
    close(fd);
    unlink(path);
    return report("test_train");
}
