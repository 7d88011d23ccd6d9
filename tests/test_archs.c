// test_archs.c: a small GGUF model of every architecture, with random weights, against an
// evaluation in double precision that is written from the architectures' definitions and shares
// nothing with run.c: it reads the weights that were written, not those that were loaded. Then
// models that must be refused by name, and files that come in several parts.
#define TESTING
#include "measure.c"
#include "check.h"
#include "gguf.h"
#include <sys/wait.h>

enum { DIM = 32, HEADS = 4, KV_HEADS = 2, HIDDEN = 48, N = 26, CTX = 64, WINDOW = 9, ORIG = 16 };

typedef struct {
    const char *arch;
    int layers, d;           // d: of a head
    int layer_norm, no_pre, post, qk; // qk: 1 each head, 2 all together
    int gate, gelu, bias, fused;      // fused: 1 qkv, 2 gate and up, too
    int halves, n_rot;       // pairs (m, m + n_rot / 2); 0: all of d
    int learned, alibi, parallel, emb_norm;
    int global_every;        // with a window; local layers are the others
    int nope_every;
    double theta, local_theta, emb_scale, branch_scale, logit_scale, score_scale, score_cap;
    double logit_cap, temp, factor;   // factor: linear
    double longrope;         // the attention factor of a model with factors
    int spelling;            // of the pattern: 0 the architecture's, 1 booleans, 2 numbers, 3 one
    const char *key;         // a key to add, as "name type value", or NULL
} Spec;

#define RMS .gate = 1, .theta = 5000
#define OLD .layer_norm = 1, .gelu = 1, .bias = 1, .d = 8, .layers = 3
static const Spec specs[] = {
    {"llama", .layers = 2, .d = 8, RMS},
    {"llama", .layers = 2, .d = 8, RMS, .bias = 1, .fused = 1},
    {"llama", .layers = 2, .d = 8, RMS, .n_rot = 4, .factor = 3},
    {"qwen2", .layers = 2, .d = 8, RMS, .halves = 1, .bias = 1},
    {"qwen3", .layers = 2, .d = 12, RMS, .halves = 1, .qk = 1},
    {"gemma2", .layers = 4, .d = 12, RMS, .halves = 1, .post = 1, .gelu = 1, .global_every = 2,
     .emb_scale = 5.656854249492381, .score_cap = 3, .logit_cap = 4},
    {"gemma3", .layers = 7, .d = 12, RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1, .factor = 2,
     .global_every = 6, .local_theta = 10000, .emb_scale = 5.656854249492381},
    {"gemma3", .layers = 7, .d = 12, RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1,
     .global_every = 3, .local_theta = 700, .emb_scale = 5.656854249492381, .spelling = 1},
    {"gemma3", .layers = 7, .d = 12, RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1,
     .global_every = 4, .local_theta = 700, .emb_scale = 5.656854249492381, .spelling = 2},
    {"gemma3", .layers = 7, .d = 12, RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1,
     .global_every = 2, .local_theta = 700, .emb_scale = 5.656854249492381, .spelling = 3},
    {"gpt2", OLD, .fused = 1, .learned = 1},
    {"bloom", OLD, .fused = 1, .alibi = 1, .emb_norm = 1},
    {"gptneox", OLD, .fused = 1, .halves = 1, .n_rot = 4, .theta = 5000, .parallel = 1},
    {"gptneox", OLD, .halves = 1, .theta = 5000},
    {"smollm3", .layers = 5, .d = 8, RMS, .nope_every = 4},
    {"phi3", .layers = 2, .d = 8, RMS, .halves = 1, .fused = 2},
    {"phi3", .layers = 2, .d = 8, RMS, .halves = 1, .fused = 2, .longrope = 1.25},
    {"phi3", .layers = 2, .d = 12, RMS, .halves = 1, .fused = 2, .n_rot = 8, .longrope = 1.25},
    {"olmo2", .layers = 3, .d = 8, RMS, .halves = 1, .no_pre = 1, .post = 1, .qk = 2},
    {"olmo2", .layers = 5, .d = 8, RMS, .halves = 1, .no_pre = 1, .post = 1, .qk = 2,
     .global_every = 4, .local_theta = 5000},
    {"granite", .layers = 2, .d = 8, RMS, .emb_scale = 3, .branch_scale = 0.4, .logit_scale = 2.5,
     .score_scale = 0.2},
    {"mistral3", .layers = 2, .d = 12, RMS, .temp = 0.3},
};

// --- the file, and what was written into it ------------------------------------------------------

typedef struct {
    char name[64];
    size_t rows, cols;
    float *w;
} Written;
static Written written[256];
static int n_written;

static void put_floats_of(Tensors *t, const char *name, const float *w, size_t rows, size_t cols)
{
    put_tensor(t, name, &gguf_types[0], rows, cols);
    memcpy(t->data.p + t->data.n - 4 * rows * cols, w, 4 * rows * cols);
}

// Random weights of this name, which the evaluation will find.
static Written *make_weights(const char *name, size_t rows, size_t cols, float mean, float scale)
{
    Written *x = &written[n_written++];
    snprintf(x->name, sizeof x->name, "%s", name);
    x->rows = rows, x->cols = cols;
    x->w = random_floats(rows * cols);
    for (size_t i = 0; i < rows * cols; i++) x->w[i] = mean + scale * x->w[i];
    return x;
}

static const float *find_weights(int l, const char *part)
{
    char name[64];
    if (l < 0) snprintf(name, sizeof name, "%s", part);
    else snprintf(name, sizeof name, "blk.%d.%s", l, part);
    for (int i = 0; i < n_written; i++)
        if (!strcmp(written[i].name, name)) return written[i].w;
    return NULL;
}

// Tensors `parts` of layer l as one of that name, or each by itself.
static void put_group(Tensors *t, int l, const char *whole, int fused, int n,
                      const char *const *parts, const size_t *rows, size_t cols, float mean,
                      float scale)
{
    char name[64];
    float *all = NULL;
    size_t total = 0;
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "blk.%d.%s", l, parts[i]);
        const Written *x = make_weights(name, rows[i], cols, mean, scale);
        if (!fused) put_floats_of(t, name, x->w, cols > 1 ? rows[i] : 1, cols > 1 ? cols : rows[i]);
        all = xrealloc(all, total + rows[i] * cols, 4);
        memcpy(all + total, x->w, 4 * rows[i] * cols);
        total += rows[i] * cols;
    }
    snprintf(name, sizeof name, "blk.%d.%s", l, whole);
    if (fused) put_floats_of(t, name, all, cols > 1 ? total / cols : 1, cols > 1 ? cols : total);
    free(all);
}

static void put_one(Tensors *t, int l, const char *part, size_t rows, size_t cols, float mean,
                    float scale)
{
    char name[64];
    if (l < 0) snprintf(name, sizeof name, "%s", part);
    else snprintf(name, sizeof name, "blk.%d.%s", l, part);
    const Written *x = make_weights(name, rows, cols, mean, scale);
    put_floats_of(t, name, x->w, cols > 1 ? rows : 1, cols > 1 ? cols : rows);
}

// A norm of n numbers; LayerNorm has a bias.
static void put_norm_of(Tensors *t, const Spec *s, int l, const char *stem, size_t n)
{
    char part[64];
    snprintf(part, sizeof part, "%s.weight", stem);
    put_one(t, l, part, n, 1, 1, 0.2f);
    snprintf(part, sizeof part, "%s.bias", stem);
    if (s->layer_norm) put_one(t, l, part, n, 1, 0, 0.2f);
}

static void put_layer_of(Tensors *t, const Spec *s, int l)
{
    static const char *const qkv[] = {"attn_q.weight", "attn_k.weight", "attn_v.weight"};
    static const char *const qkv_bias[] = {"attn_q.bias", "attn_k.bias", "attn_v.bias"};
    static const char *const up[] = {"ffn_gate.weight", "ffn_up.weight"};
    const size_t d = s->d, q = HEADS * d, kv = KV_HEADS * d, rows[] = {q, kv, kv};
    const size_t hidden[] = {HIDDEN, HIDDEN};
    if (!s->no_pre) put_norm_of(t, s, l, "attn_norm", DIM);
    if (!s->no_pre) put_norm_of(t, s, l, "ffn_norm", DIM);
    put_group(t, l, "attn_qkv.weight", s->fused, 3, qkv, rows, DIM, 0, 0.4f);
    if (s->bias) put_group(t, l, "attn_qkv.bias", s->fused, 3, qkv_bias, rows, 1, 0, 0.3f);
    put_one(t, l, "attn_output.weight", DIM, q, 0, 0.3f);
    if (s->bias && strcmp(s->arch, "qwen2")) put_one(t, l, "attn_output.bias", DIM, 1, 0, 0.3f);
    if (s->qk) put_one(t, l, "attn_q_norm.weight", s->qk == 1 ? d : q, 1, 1, 0.2f);
    if (s->qk) put_one(t, l, "attn_k_norm.weight", s->qk == 1 ? d : kv, 1, 1, 0.2f);
    if (s->post) put_one(t, l, "post_attention_norm.weight", DIM, 1, 1, 0.2f);
    if (s->post) put_one(t, l, "post_ffw_norm.weight", DIM, 1, 1, 0.2f);
    put_group(t, l, "ffn_up.weight", s->fused == 2, 1 + s->gate, up + !s->gate, hidden, DIM, 0,
              0.3f);
    put_one(t, l, "ffn_down.weight", DIM, HIDDEN, 0, 0.3f);
    if (s->bias && !s->gate) put_one(t, l, "ffn_up.bias", HIDDEN, 1, 0, 0.3f);
    if (s->bias && !s->gate) put_one(t, l, "ffn_down.bias", DIM, 1, 0, 0.3f);
}

static int is_local(const Spec *s, int l)
{
    return s->global_every && (l + 1) % s->global_every;
}

static void put_pattern(Out *o, const Spec *s)
{
    char name[64];
    snprintf(name, sizeof name, "%s.attention.sliding_window_pattern", s->arch);
    if (s->spelling == 3) {
        put_key(o, name, 11); // a number of 64 bits
        put_u64(o, (uint64_t)s->global_every);
        return;
    }
    put_array(o, name, s->spelling == 1 ? 7 : 5, (uint64_t)s->layers);
    for (int l = 0; l < s->layers; l++)
        if (s->spelling == 1) put_bytes(o, &(uint8_t){is_local(s, l) != 0}, 1);
        else put_u32(o, is_local(s, l) != 0);
}

// A key that is given as "name type value": u32, f32 or str.
static void put_given(Out *o, const char *key)
{
    char name[96], type[8], value[96];
    if (sscanf(key, "%95s %7s %95s", name, type, value) != 3) return;
    if (!strcmp(type, "str")) key_text(o, name, value);
    else if (!strcmp(type, "u32")) key_u32(o, name, "", (uint32_t)strtol(value, NULL, 10));
    else key_f32(o, name, "", strtof(value, NULL));
}

static void put_keys(Out *o, const Spec *s)
{
    const char *a = s->arch;
    const struct { const char *name; double v; } floats[] = {
        {".rope.freq_base", s->theta},
        {".embedding_scale", strcmp(a, "granite") ? 0 : s->emb_scale},
        {".residual_scale", s->branch_scale}, {".logit_scale", s->logit_scale},
        {".attention.scale", s->score_scale}, {".attn_logit_softcapping", s->score_cap},
        {".final_logit_softcapping", s->logit_cap}, {".attention.temperature_scale", s->temp},
        {".rope.scaling.factor", s->factor}, {".rope.scaling.attn_factor", s->longrope},
        {".rope.freq_base_swa", s->spelling ? s->local_theta : 0},
    };
    key_text(o, "general.architecture", a);
    key_u32(o, a, ".context_length", CTX);
    key_u32(o, a, ".embedding_length", DIM);
    key_u32(o, a, ".feed_forward_length", HIDDEN);
    key_u32(o, a, ".block_count", (uint32_t)s->layers);
    key_u32(o, a, ".attention.head_count", HEADS);
    key_u32(o, a, ".attention.head_count_kv", KV_HEADS);
    key_f32(o, a, s->layer_norm ? ".attention.layer_norm_epsilon"
                                : ".attention.layer_norm_rms_epsilon", 1e-3f);
    if (s->d != DIM / HEADS) key_u32(o, a, ".attention.key_length", (uint32_t)s->d);
    if (s->n_rot) key_u32(o, a, ".rope.dimension_count", (uint32_t)s->n_rot);
    if (s->temp > 0 || s->longrope > 0)
        key_u32(o, a, ".rope.scaling.original_context_length", ORIG);
    if (s->global_every) key_u32(o, a, ".attention.sliding_window", WINDOW);
    if (!strcmp(a, "gptneox")) key_u32(o, a, ".use_parallel_residual", (uint32_t)s->parallel);
    for (size_t i = 0; i < COUNT(floats); i++)
        if (floats[i].v != 0) key_f32(o, a, floats[i].name, (float)floats[i].v);
    if (s->spelling) put_pattern(o, s);
    if (s->key) put_given(o, s->key);
}

// The whole file, or part `no` of `parts`, with every parts-th tensor.
static uint8_t *build_file(const Spec *s, size_t *size, int no, int parts)
{
    static const GgufSpec tokenizer = {.arch = "test"};
    Tensors t[8] = {{.n = 0}};
    Out keys = {0}, o = {0};
    test_rng = 3;
    n_written = 0;
    n_gguf_keys = 0;
    if (!no) put_keys(&keys, s);
    if (!no) put_tokenizer(&keys, &tokenizer);
    if (parts > 1) key_u32(&keys, "split.", "count", (uint32_t)parts);
    put_one(&t[0], -1, "token_embd.weight", GGUF_VOCAB, DIM, 0, 0.7f);
    if (s->emb_norm) put_norm_of(&t[0], s, -1, "token_embd_norm", DIM);
    if (s->learned) put_one(&t[0], -1, "position_embd.weight", CTX, DIM, 0, 0.5f);
    for (int l = 0; l < s->layers; l++) put_layer_of(&t[l % parts], s, l);
    put_norm_of(&t[parts - 1], s, -1, "output_norm", DIM);
    if (!s->post) put_one(&t[parts - 1], -1, "output.weight", GGUF_VOCAB, DIM, 0, 0.3f);
    size_t pairs = (size_t)(s->n_rot ? s->n_rot : s->d) / 2;
    if (s->longrope > 0) put_one(&t[0], -1, "rope_factors_short.weight", pairs, 1, 1, 0.05f);
    if (s->longrope > 0) put_one(&t[0], -1, "rope_factors_long.weight", pairs, 1, 3, 0.2f);
    put_bytes(&o, "GGUF", 4);
    put_u32(&o, 3);
    put_u64(&o, t[no].n);
    put_u64(&o, n_gguf_keys);
    put_bytes(&o, keys.p, keys.n);
    put_bytes(&o, t[no].list.p, t[no].list.n);
    while (o.n % 32) put_bytes(&o, "", 1);
    put_bytes(&o, t[no].data.p, t[no].data.n);
    *size = o.n;
    return o.p;
}

static void write_file(const char *path, const uint8_t *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, size, f) != size || fclose(f)) perror(path), exit(1);
}

// --- the evaluation ------------------------------------------------------------------------------

// y[rows] = w[rows][cols] x + bias
static void times(double *y, int l, const char *stem, size_t rows, size_t cols, const double *x)
{
    char part[64];
    snprintf(part, sizeof part, "%s.weight", stem);
    const float *w = find_weights(l, part);
    snprintf(part, sizeof part, "%s.bias", stem);
    const float *b = find_weights(l, part);
    for (size_t r = 0; r < rows; r++) {
        y[r] = b ? b[r] : 0;
        for (size_t c = 0; c < cols; c++) y[r] += (double)w[r * cols + c] * x[c];
    }
}

// y = the norm of x[n] of that name, or x itself if there is none.
static void normed(double *y, int l, const char *stem, size_t n, const double *x, int centred)
{
    char part[64];
    double mean = 0, square = 0;
    snprintf(part, sizeof part, "%s.weight", stem);
    const float *w = find_weights(l, part);
    snprintf(part, sizeof part, "%s.bias", stem);
    const float *b = find_weights(l, part);
    for (size_t i = 0; i < n && centred; i++) mean += x[i] / (double)n;
    for (size_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / (double)n;
    for (size_t i = 0; i < n; i++)
        y[i] = w ? (x[i] - mean) / sqrt(square + 1e-3f) * w[i] + (b ? b[i] : 0) : x[i];
}

static double capped(double x, double c) { return c > 0 ? c * tanh(x / c) : x; }

// x[d], a head of layer l, turned for position p.
static void turn(const Spec *s, int l, double *x, int p)
{
    int n = s->n_rot ? s->n_rot : s->d, local = is_local(s, l);
    const float *factors = find_weights(-1, N > ORIG ? "rope_factors_long.weight"
                                                     : "rope_factors_short.weight");
    double base = local && s->local_theta > 0 ? s->local_theta : s->theta;
    if (!(base > 0) || (s->nope_every && (l + 1) % s->nope_every == 0)) return;
    for (int m = 0; m < n / 2; m++) {
        double angle = p * pow(base, -2.0 * m / n), a = s->longrope > 0 ? s->longrope : 1;
        if (s->factor > 0 && !local) angle /= s->factor;
        if (factors) angle /= factors[m];
        double *re = x + (s->halves ? m : 2 * m), *im = x + (s->halves ? m + n / 2 : 2 * m + 1);
        double r = a * (*re * cos(angle) - *im * sin(angle));
        *im = a * (*re * sin(angle) + *im * cos(angle));
        *re = r;
    }
}

static double keys_of[16][N][64], values_of[16][N][64]; // by layers

// y[dim] = attention of layer l for position i, whose normed state is x.
static void attend(const Spec *s, int l, int i, const double *x, double *y)
{
    int d = s->d, first = is_local(s, l) && i >= WINDOW ? i - WINDOW + 1 : 0;
    double q[64], *k = keys_of[l][i], out[64] = {0};
    times(q, l, "attn_q", HEADS * d, DIM, x);
    times(k, l, "attn_k", KV_HEADS * d, DIM, x);
    times(values_of[l][i], l, "attn_v", KV_HEADS * d, DIM, x);
    if (s->qk == 2) normed(q, l, "attn_q_norm", HEADS * d, q, 0);
    if (s->qk == 2) normed(k, l, "attn_k_norm", KV_HEADS * d, k, 0);
    for (int h = 0; h < HEADS; h++) {
        if (s->qk == 1) normed(q + h * d, l, "attn_q_norm", d, q + h * d, 0);
        turn(s, l, q + h * d, i);
    }
    for (int h = 0; h < KV_HEADS; h++) {
        if (s->qk == 1) normed(k + h * d, l, "attn_k_norm", d, k + h * d, 0);
        turn(s, l, k + h * d, i);
    }
    double scale = s->score_scale > 0 ? s->score_scale : 1 / sqrt(d);
    if (s->temp > 0) scale *= 1 + s->temp * log(1 + floor(i / (double)ORIG));
    for (int h = 0; h < HEADS; h++) {
        double score[N], sum = 0;
        int of = h / (HEADS / KV_HEADS) * d;
        for (int j = first; j <= i; j++) {
            double dot = 0;
            for (int e = 0; e < d; e++) dot += q[h * d + e] * keys_of[l][j][of + e];
            score[j] = capped(dot * scale, s->score_cap);
            if (s->alibi) score[j] -= exp2(-2 * (h + 1)) * (i - j);
            sum += score[j] = exp(score[j]);
        }
        for (int j = first; j <= i; j++)
            for (int e = 0; e < d; e++) out[h * d + e] += score[j] / sum * values_of[l][j][of + e];
    }
    times(y, l, "attn_output", DIM, HEADS * d, out);
}

static void feed_net(const Spec *s, int l, const double *x, double *y)
{
    double gate[HIDDEN], up[HIDDEN];
    times(up, l, "ffn_up", HIDDEN, DIM, x);
    if (s->gate) times(gate, l, "ffn_gate", HIDDEN, DIM, x);
    for (int i = 0; i < HIDDEN; i++) {
        double a = s->gate ? gate[i] : up[i];
        double tanh_in = sqrt(2 / M_PI) * (a + 0.044715 * a * a * a);
        double act = s->gelu ? a / 2 * (1 + tanh(tanh_in)) : a / (1 + exp(-a));
        up[i] = s->gate ? act * up[i] : act;
    }
    times(y, l, "ffn_down", DIM, HIDDEN, up);
}

// logits[vocab] behind token `id` at position i.
static void evaluate(const Spec *s, int id, int i, double *logits)
{
    double x[DIM], h[DIM], y[DIM], branch = s->branch_scale > 0 ? s->branch_scale : 1;
    const float *emb = find_weights(-1, "token_embd.weight") + id * DIM;
    const float *position = find_weights(-1, "position_embd.weight");
    for (int e = 0; e < DIM; e++)
        x[e] = emb[e] * (s->emb_scale > 0 ? s->emb_scale : 1) +
               (position ? position[i * DIM + e] : 0);
    normed(x, -1, "token_embd_norm", DIM, x, s->layer_norm);
    for (int l = 0; l < s->layers; l++) {
        double before[DIM];
        memcpy(before, x, sizeof x);
        normed(h, l, "attn_norm", DIM, x, s->layer_norm);
        attend(s, l, i, h, y);
        normed(y, l, "post_attention_norm", DIM, y, 0);
        for (int e = 0; e < DIM; e++) x[e] += branch * y[e];
        normed(h, l, "ffn_norm", DIM, s->parallel ? before : x, s->layer_norm);
        feed_net(s, l, h, y);
        normed(y, l, "post_ffw_norm", DIM, y, 0);
        for (int e = 0; e < DIM; e++) x[e] += branch * y[e];
    }
    normed(h, -1, "output_norm", DIM, x, s->layer_norm);
    const char *classifier = find_weights(-1, "output.weight") ? "output" : "token_embd";
    times(logits, -1, classifier, GGUF_VOCAB, DIM, h);
    for (int e = 0; e < GGUF_VOCAB; e++)
        logits[e] = capped(logits[e] / (s->logit_scale > 0 ? s->logit_scale : 1), s->logit_cap);
}

// --- tests ---------------------------------------------------------------------------------------

static char folder[] = "/tmp/run-archs-XXXXXX";

static char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

// The largest difference of the file's logits, in chunks, from those of the evaluation.
static double difference(const Spec *s, const char *path, size_t chunk)
{
    static Model m;
    static State state;
    static double want[GGUF_VOCAB];
    static float logits[N * GGUF_VOCAB];
    double most = 0;
    int ids[N];
    for (int i = 0; i < N; i++) ids[i] = 3 + i * 67 % 300;
    model_load(&m, path);
    state_init(&state, &m, N, chunk, 1, 1);
    state.attn.text = N;
    for (size_t at = 0; at < N; at += chunk) {
        size_t step = min_size(chunk, N - at);
        forward(&state, ids + at, step, (int64_t)at);
        classify(&state, 0, step, logits + at * GGUF_VOCAB);
    }
    for (int i = 0; i < N; i++) {
        evaluate(s, ids[i], i, want);
        for (int e = 0; e < GGUF_VOCAB; e++)
            most = fmax(most, fabs(want[e] - logits[i * GGUF_VOCAB + e])); // false for NaN
        if (!isfinite(logits[i * GGUF_VOCAB])) return INFINITY;
    }
    return most;
}

static void test_architectures(void)
{
    int seen[COUNT(archs)] = {0};
    for (size_t k = 0; k < COUNT(specs); k++) {
        size_t size;
        int before = n_failed;
        uint8_t *file = build_file(&specs[k], &size, 0, 1);
        char *path = path_of("model.gguf");
        write_file(path, file, size);
        CHECK_NEAR(difference(&specs[k], path, N), 0, 1e-4);
        CHECK_NEAR(difference(&specs[k], path, 7), 0, 1e-4);
        seen[FIND_NAME(archs, specs[k].arch)] = 1;
        note_failures(before, "%s, row %zu", specs[k].arch, k);
        free(file);
    }
    for (size_t a = 0; a < COUNT(archs); a++) CHECK(seen[a]);
}

// Loads a file in a process of its own; *said gets what it wrote to stderr. The exit status.
static int try_load(const char *path, char said[1024])
{
    int status;
    FILE *err = tmpfile();
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        Model m;
        dup2(fileno(err), STDERR_FILENO);
        model_load(&m, path);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    rewind(err);
    said[fread(said, 1, 1023, err)] = 0;
    fclose(err);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Accepted if want is NULL, else refused in words that hold it.
static void check_load(const char *path, const char *want)
{
    char said[1024];
    int got = try_load(path, said), before = n_failed;
    CHECK_INT(got, want ? 1 : 0);
    CHECK(want ? strstr(said, want) != NULL : !*said);
    CHECK(!want || strchr(said, '\n') == said + strlen(said) - 1); // one line
    note_failures(before, "want '%s', got '%s'", want ? want : "", said);
}

// Keys that nobody reads: some say that the model is another one, some mean nothing.
static void test_keys(void)
{
    static const char *const keys[][2] = {
        {"llama.expert_count u32 8", "a mixture of experts"}, {"llama.expert_count u32 0", NULL},
        {"llama.ssm.conv_kernel u32 4", "recurrent layers"},
        {"llama.vision.block_count u32 4", "a vision tower"},
        {"adapter.type str lora", "an adapter"},
        {"llama.attn_x_softcapping f32 30", "llama.attn_x_softcapping"},
        {"llama.attention.clamp_kqv f32 8", "not known"}, {"llama.x_multiplier f32 2", "not known"},
        {"llama.x_multiplier f32 1", NULL}, {"llama.attention.key_length_swa u32 8", "not known"},
        {"llama.rope.scaling.yarn_ext_factor f32 -1", NULL},
        {"llama.rope.scaling.finetuned u32 1", NULL}, {"other.x_multiplier f32 2", NULL},
        {"llama.vocab_size u32 320", NULL}, {"llama.attention.sliding_window u32 4294967295", NULL},
        {"llama.rope.dimension_count u32 0", NULL}, {"llama.logit_scale u32 2", NULL},
        {"llama.logit_scale str 2", "want a number"},
        {"llama.rope.scaling.type str foo", "got foo"},
    };
    for (size_t i = 0; i < COUNT(keys); i++) {
        Spec s = specs[0];
        size_t size;
        s.key = keys[i][0];
        uint8_t *file = build_file(&s, &size, 0, 1);
        char *path = path_of("key.gguf");
        write_file(path, file, size);
        check_load(path, keys[i][1]);
        free(file);
    }
}

// An epsilon that the file leaves out.
static void test_epsilon(void)
{
    size_t size;
    Model m;
    uint8_t *file = build_file(&specs[0], &size, 0, 1);
    uint8_t *name = memmem(file, size, "rms_epsilon", 11);
    name[0] = 'x';
    write_file(path_of("eps.gguf"), file, size);
    model_load(&m, path_of("eps.gguf"));
    CHECK_NEAR(m.config.norm_eps, 1e-5, 1e-9);
    free(file);
}

// A model in several files: the same numbers; a file that is not there, cut off, or not the first.
static void test_parts(void)
{
    enum { PARTS = 3 };
    const Spec *s = &specs[4 + 2]; // with seven layers
    char name[64], want[64];
    size_t size = 0;
    for (int i = 0; i < PARTS; i++) {
        uint8_t *file = build_file(s, &size, i, PARTS);
        snprintf(name, sizeof name, "m-%05d-of-%05d.gguf", i + 1, PARTS);
        write_file(path_of(name), file, size);
        free(file);
    }
    CHECK_NEAR(difference(s, path_of("m-00001-of-00003.gguf"), N), 0, 1e-4);
    check_load(path_of("m-00002-of-00003.gguf"), "00001-of-00003");
    truncate(path_of("m-00003-of-00003.gguf"), (off_t)size - 100);
    check_load(path_of("m-00001-of-00003.gguf"), "m-00003-of-00003.gguf: cut off: 100 of");
    unlink(path_of("m-00002-of-00003.gguf"));
    snprintf(want, sizeof want, "m-00002-of-00003.gguf: cannot open");
    check_load(path_of("m-00001-of-00003.gguf"), want);
    for (int i = 0; i < PARTS; i++) {
        snprintf(name, sizeof name, "m-%05d-of-%05d.gguf", i + 1, PARTS);
        unlink(path_of(name));
    }
}

int main(void)
{
    if (!mkdtemp(folder)) perror(folder), exit(1);
    test_architectures();
    test_keys();
    test_epsilon();
    test_parts();
    unlink(path_of("model.gguf")), unlink(path_of("key.gguf")), unlink(path_of("eps.gguf"));
    rmdir(folder);
    return report("test_archs");
}
