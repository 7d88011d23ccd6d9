// model.h: small random checkpoints of every version, and running them. The values that a right
// reader must see are kept in float arrays beside the file's bytes, so that a
// test can compute from them without run.c's loader. Include after check.h.

typedef struct {
    int version; // 0, 1, 2, 101, 102
    int dim, hidden, layers, heads, kv_heads, vocab, ctx;
    int group;             // versions 2 and 102
    int own_classifier;    // 0: shared with the embedding
    int encoding, scaling; // extension block: versions 101 and 102
    int rows, max_distance; // of the encoding: t5's buckets, shaw's K, learned's rows
    int window, sinks, logn;
    float theta, factor, eps; // 0: not given
    int seed;
} Shape;

typedef struct {
    Shape shape;
    float *tok_emb, *classifier, *final_norm;     // [vocab][dim], [vocab][dim], [dim]
    float *att_norm, *ffn_norm;                   // [layers][dim]
    float *wq, *wk, *wv, *wo, *w1, *w2, *w3;      // [layers][out][in]
    float *short_factors, *long_factors;          // [head_dim / 2]
    uint8_t *file;
    size_t size, room;
} TestModel;

static void put(TestModel *m, const void *bytes, size_t n)
{
    if (m->size + n > m->room) m->file = xrealloc(m->file, m->room = 2 * (m->size + n), 1);
    memcpy(m->file + m->size, bytes, n);
    m->size += n;
}

static void put_i32(TestModel *m, int32_t v) { put(m, &v, 4); }

static void put_floats(TestModel *m, const float *v, size_t n) { put(m, v, n * 4); }

// One matrix: floats, or int8 with a scale a group, whereupon v holds what the int8 mean.
static void put_matrix(TestModel *m, float *v, size_t n)
{
    size_t group = m->shape.version % 100 == 2 ? (size_t)m->shape.group : 0;
    if (!group) {
        put_floats(m, v, n);
        return;
    }
    float *scales = xcalloc(n / group, 4);
    for (size_t g = 0; g < n / group; g++) {
        for (size_t k = g * group; k < (g + 1) * group; k++)
            scales[g] = fmaxf(scales[g], fabsf(v[k]) / 127);
        for (size_t k = g * group; k < (g + 1) * group; k++) {
            int8_t q = (int8_t)lrintf(v[k] / scales[g]);
            put(m, &q, 1);
            v[k] = (float)q * scales[g];
        }
    }
    put_floats(m, scales, n / group);
    free(scales);
}

static void put_matrices(TestModel *m, float *v, size_t n)
{
    for (int l = 0; l < m->shape.layers; l++) put_matrix(m, v + (size_t)l * n, n);
}

// Matrices such that states of variance 1 give states of variance near 1; norms around 1.
static float *random_matrices(int count, int rows, int cols)
{
    size_t n = (size_t)count * (size_t)rows * (size_t)cols;
    float *p = random_floats(n), scale = 1 / sqrtf((float)cols);
    for (size_t i = 0; i < n; i++) p[i] *= scale;
    return p;
}

static float *random_norms(int count, int dim)
{
    float *p = random_floats((size_t)count * (size_t)dim);
    for (int i = 0; i < count * dim; i++) p[i] = 1 + 0.2f * p[i];
    return p;
}

static void make_weights(TestModel *m)
{
    Shape s = m->shape;
    int kv_dim = s.dim / s.heads * s.kv_heads, half = s.dim / s.heads / 2;
    test_rng = (uint64_t)s.seed + 1;
    m->tok_emb = random_floats((size_t)s.vocab * (size_t)s.dim);
    m->att_norm = random_norms(s.layers, s.dim);
    m->ffn_norm = random_norms(s.layers, s.dim);
    m->final_norm = random_norms(1, s.dim);
    m->wq = random_matrices(s.layers, s.dim, s.dim);
    m->wk = random_matrices(s.layers, kv_dim, s.dim);
    m->wv = random_matrices(s.layers, kv_dim, s.dim);
    m->wo = random_matrices(s.layers, s.dim, s.dim);
    m->w1 = random_matrices(s.layers, s.hidden, s.dim);
    m->w2 = random_matrices(s.layers, s.dim, s.hidden);
    m->w3 = random_matrices(s.layers, s.hidden, s.dim);
    m->classifier = s.own_classifier ? random_matrices(1, s.vocab, s.dim) : m->tok_emb;
    m->short_factors = xcalloc((size_t)half, 4);
    m->long_factors = xcalloc((size_t)half, 4);
    for (int i = 0; i < half; i++) {
        m->short_factors[i] = 1 + 0.1f * (float)i;
        m->long_factors[i] = 2 + 0.5f * (float)i;
    }
    // Sharper attention than random projections give, so that what is attended to matters.
    for (size_t i = 0; i < (size_t)(s.layers * s.dim * s.dim); i++) m->wq[i] *= 2;
}

static void put_shape(TestModel *m)
{
    Shape s = m->shape;
    put_i32(m, s.dim);
    put_i32(m, s.hidden);
    put_i32(m, s.layers);
    put_i32(m, s.heads);
    put_i32(m, s.kv_heads);
    put_i32(m, s.version == 0 && s.own_classifier ? -s.vocab : s.vocab);
    put_i32(m, s.ctx);
}

// The 256 bytes of versions 1 and 2, with the extension block in 101 and 102.
static void put_header(TestModel *m)
{
    Shape s = m->shape;
    uint8_t shared = !s.own_classifier;
    put_i32(m, 0x616b3432);
    put_i32(m, s.version);
    put_shape(m);
    put(m, &shared, 1);
    put_i32(m, s.group);
    m->file = xrealloc(m->file, m->room = 1024, 1);
    memset(m->file + m->size, 0, 256 - m->size);
    m->size = 256;
    if (s.version < 100) return;
    int32_t ints[][2] = {{64, 0x31545845}, {68, s.encoding}, {72, s.ctx}, {84, s.scaling},
                         {116, s.window}, {120, s.sinks}, {124, s.logn}, {128, s.rows},
                         {132, s.max_distance}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) memcpy(m->file + ints[i][0], &ints[i][1], 4);
    memcpy(m->file + 76, &s.theta, 4);
    memcpy(m->file + 80, &s.eps, 4);
    memcpy(m->file + 88, &s.factor, 4);
}

// Header and weights, in the version's order.
static void put_weights(TestModel *m, size_t dim, size_t kv_dim, size_t hidden)
{
    size_t layers = m->shape.layers, vocab = m->shape.vocab;
    float *matrices[] = {m->wq, m->wk, m->wv, m->wo, m->w1, m->w2, m->w3};
    size_t rows[] = {dim, kv_dim, kv_dim, dim, hidden, hidden, hidden};
    int v0 = m->shape.version == 0;
    if (v0) put_shape(m);
    else put_header(m);
    if (v0) put_floats(m, m->tok_emb, vocab * dim);
    put_floats(m, m->att_norm, layers * dim);
    if (!v0) {
        put_floats(m, m->ffn_norm, layers * dim);
        put_floats(m, m->final_norm, dim);
        put_matrix(m, m->tok_emb, vocab * dim);
    }
    for (int k = 0; k < 7; k++) {
        if (v0 && k == 4) put_floats(m, m->ffn_norm, layers * dim);
        put_matrices(m, matrices[k], rows[k] * dim); // w2 is as large as w1
    }
    if (!v0) return;
    put_floats(m, m->final_norm, dim);
    size_t tables = m->shape.ctx * dim / m->shape.heads;
    float *nonsense = random_floats(tables); // to be skipped
    put_floats(m, nonsense, tables);
    free(nonsense);
}

// What the encoding learned, random: biases of a size that matters, fire's and kerple's first
// numbers positive.
static void put_encoding(TestModel *m)
{
    Shape s = m->shape;
    int H = s.heads, n = 0, positive = 0;
    if (s.encoding == ENC_LEARNED) n = s.rows * s.dim;
    if (s.encoding == ENC_T5) n = s.rows * H;
    if (s.encoding == ENC_SHAW) n = (s.rows + 1) * (s.dim / H);
    if (s.encoding == ENC_KERPLE) n = positive = 2 * H;
    if (s.encoding == ENC_FIRE) n = 2 + 2 * FIRE_HIDDEN + (FIRE_HIDDEN + 1) * H, positive = 2;
    float *table = random_floats((size_t)n);
    for (int i = 0; i < positive; i++) table[i] = fabsf(table[i]) + 0.05f;
    if (s.encoding == ENC_FIRE) table[1] *= 40; // T, in tokens
    put_floats(m, table, (size_t)n);
    free(table);
}

static TestModel make_model(Shape s)
{
    TestModel m = {.shape = s};
    size_t dim = (size_t)s.dim, hidden = (size_t)s.hidden, half = dim / (size_t)s.heads / 2;
    size_t kv_dim = 2 * half * (size_t)s.kv_heads;
    make_weights(&m);
    put_weights(&m, dim, kv_dim, hidden);
    if (s.own_classifier) put_matrix(&m, m.classifier, (size_t)s.vocab * dim);
    put_encoding(&m);
    if (s.scaling == 7) { // longrope
        put_floats(&m, m.short_factors, half);
        put_floats(&m, m.long_factors, half);
    }
    return m;
}

static void free_test_model(TestModel *m)
{
    if (m->classifier != m->tok_emb) free(m->classifier);
    float *parts[] = {m->tok_emb, m->final_norm, m->att_norm, m->ffn_norm, m->wq, m->wk, m->wv,
                      m->wo, m->w1, m->w2, m->w3, m->short_factors, m->long_factors};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
    free(m->file);
}

// ---- Running -----------------------------------------------------------------------------------

// Opens the model through run.c's loader, by way of a file that is gone afterwards.
static void open_model(Model *m, const TestModel *t)
{
    char path[] = "/tmp/run-test-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, t->file, t->size) != (ssize_t)t->size || close(fd)) {
        perror(path);
        exit(1);
    }
    model_load(m, path);
    unlink(path);
}

// Tokens from the tests' random numbers.
static int *random_tokens(size_t n, int vocab, int seed)
{
    int *tokens = xcalloc(n, sizeof *tokens);
    test_rng = (uint64_t)seed + 77;
    for (size_t i = 0; i < n; i++) tokens[i] = (int)(random_bits() % (unsigned)vocab);
    return tokens;
}

typedef struct {
    size_t chunk, step; // the state's capacity, and tokens fed at once
    int exact, kv;
    int64_t ctx;
} Feeding;

// The final normed states [n][dim] of all tokens, fed step by step; the caller frees them.
static float *final_states(const Model *m, const int *tokens, size_t n, Feeding f)
{
    size_t dim = (size_t)m->config.dim;
    float *out = xcalloc(n * dim, 4);
    State s;
    state_init(&s, m, f.ctx ? f.ctx : (int64_t)n, f.chunk, f.kv, f.exact);
    s.attn.text = (int64_t)n;
    for (size_t at = 0; at < n; at += f.step) {
        size_t count = min_size(f.step, n - at);
        forward(&s, tokens + at, count, (int64_t)at);
        memcpy(out + at * dim, s.xb, count * dim * 4);
    }
    return out;
}
