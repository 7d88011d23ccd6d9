// archs.h: a small GGUF model of every architecture, with random weights in float32, for tests.
// What is written can be found again by name. Include check.h and gguf.h before it.

enum { A_DIM = 32, A_HEADS = 4, A_KV_HEADS = 2, A_HIDDEN = 48, A_CTX = 64, A_WINDOW = 9,
       A_ORIG = 16, A_N = 26 }; // tokens that are read

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
} ArchSpec;

#define A_RMS .gate = 1, .theta = 5000
#define A_OLD .layer_norm = 1, .gelu = 1, .bias = 1, .d = 8, .layers = 3
static const ArchSpec arch_specs[] = {
    {"llama", .layers = 2, .d = 8, A_RMS},
    {"llama", .layers = 2, .d = 8, A_RMS, .bias = 1, .fused = 1},
    {"llama", .layers = 2, .d = 8, A_RMS, .n_rot = 4, .factor = 3},
    {"qwen2", .layers = 2, .d = 8, A_RMS, .halves = 1, .bias = 1},
    {"qwen3", .layers = 2, .d = 12, A_RMS, .halves = 1, .qk = 1},
    {"gemma2", .layers = 4, .d = 12, A_RMS, .halves = 1, .post = 1, .gelu = 1, .global_every = 2,
     .emb_scale = 5.656854249492381, .score_cap = 3, .logit_cap = 4},
    {"gemma3", .layers = 7, .d = 12, A_RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1, .factor = 2,
     .global_every = 6, .local_theta = 10000, .emb_scale = 5.656854249492381},
    {"gemma3", .layers = 7, .d = 12, A_RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1,
     .global_every = 3, .local_theta = 700, .emb_scale = 5.656854249492381, .spelling = 1},
    {"gemma3", .layers = 7, .d = 12, A_RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1,
     .global_every = 4, .local_theta = 700, .emb_scale = 5.656854249492381, .spelling = 2},
    {"gemma3", .layers = 7, .d = 12, A_RMS, .halves = 1, .post = 1, .gelu = 1, .qk = 1,
     .global_every = 2, .local_theta = 700, .emb_scale = 5.656854249492381, .spelling = 3},
    {"gpt2", A_OLD, .fused = 1, .learned = 1},
    {"bloom", A_OLD, .fused = 1, .alibi = 1, .emb_norm = 1},
    {"gptneox", A_OLD, .fused = 1, .halves = 1, .n_rot = 4, .theta = 5000, .parallel = 1},
    {"gptneox", A_OLD, .halves = 1, .theta = 5000},
    {"smollm3", .layers = 5, .d = 8, A_RMS, .nope_every = 4},
    {"phi3", .layers = 2, .d = 8, A_RMS, .halves = 1, .fused = 2},
    {"phi3", .layers = 2, .d = 8, A_RMS, .halves = 1, .fused = 2, .longrope = 1.25},
    {"phi3", .layers = 2, .d = 12, A_RMS, .halves = 1, .fused = 2, .n_rot = 8, .longrope = 1.25},
    {"olmo2", .layers = 3, .d = 8, A_RMS, .halves = 1, .no_pre = 1, .post = 1, .qk = 2},
    {"olmo2", .layers = 5, .d = 8, A_RMS, .halves = 1, .no_pre = 1, .post = 1, .qk = 2,
     .global_every = 4, .local_theta = 5000},
    {"granite", .layers = 2, .d = 8, A_RMS, .emb_scale = 3, .branch_scale = 0.4, .logit_scale = 2.5,
     .score_scale = 0.2},
    {"mistral3", .layers = 2, .d = 12, A_RMS, .temp = 0.3},
    {"phi3", .layers = 2, .d = 8, A_RMS, .halves = 1, .fused = 2, // which is not in use
     .key = "phi3.attention.sliding_window u32 5"},
};

typedef struct {
    char name[64];
    size_t rows, cols;
    float *w;
} ArchWeight;
static ArchWeight arch_weights[256];
static int n_arch_weights;

static void put_floats_of(Tensors *t, const char *name, const float *w, size_t rows, size_t cols)
{
    put_tensor(t, name, &gguf_types[0], rows, cols);
    memcpy(t->data.p + t->data.n - 4 * rows * cols, w, 4 * rows * cols);
}

// Random weights of this name, which the evaluation will find.
static ArchWeight *make_arch_weights(const char *name, size_t rows, size_t cols, float mean,
                                     float scale)
{
    ArchWeight *x = &arch_weights[n_arch_weights++];
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
    for (int i = 0; i < n_arch_weights; i++)
        if (!strcmp(arch_weights[i].name, name)) return arch_weights[i].w;
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
        const ArchWeight *x = make_arch_weights(name, rows[i], cols, mean, scale);
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
    const ArchWeight *x = make_arch_weights(name, rows, cols, mean, scale);
    put_floats_of(t, name, x->w, cols > 1 ? rows : 1, cols > 1 ? cols : rows);
}

// A norm of n numbers; LayerNorm has a bias.
static void put_norm_of(Tensors *t, const ArchSpec *s, int l, const char *stem, size_t n)
{
    char part[64];
    snprintf(part, sizeof part, "%s.weight", stem);
    put_one(t, l, part, n, 1, 1, 0.2f);
    snprintf(part, sizeof part, "%s.bias", stem);
    if (s->layer_norm) put_one(t, l, part, n, 1, 0, 0.2f);
}

static void put_layer_of(Tensors *t, const ArchSpec *s, int l)
{
    static const char *const qkv[] = {"attn_q.weight", "attn_k.weight", "attn_v.weight"};
    static const char *const qkv_bias[] = {"attn_q.bias", "attn_k.bias", "attn_v.bias"};
    static const char *const up[] = {"ffn_gate.weight", "ffn_up.weight"};
    const size_t d = s->d, q = A_HEADS * d, kv = A_KV_HEADS * d, rows[] = {q, kv, kv};
    const size_t hidden[] = {A_HIDDEN, A_HIDDEN};
    if (!s->no_pre) put_norm_of(t, s, l, "attn_norm", A_DIM);
    if (!s->no_pre) put_norm_of(t, s, l, "ffn_norm", A_DIM);
    put_group(t, l, "attn_qkv.weight", s->fused, 3, qkv, rows, A_DIM, 0, 0.4f);
    if (s->bias) put_group(t, l, "attn_qkv.bias", s->fused, 3, qkv_bias, rows, 1, 0, 0.3f);
    put_one(t, l, "attn_output.weight", A_DIM, q, 0, 0.3f);
    if (s->bias && strcmp(s->arch, "qwen2")) put_one(t, l, "attn_output.bias", A_DIM, 1, 0, 0.3f);
    if (s->qk) put_one(t, l, "attn_q_norm.weight", s->qk == 1 ? d : q, 1, 1, 0.2f);
    if (s->qk) put_one(t, l, "attn_k_norm.weight", s->qk == 1 ? d : kv, 1, 1, 0.2f);
    if (s->post) put_one(t, l, "post_attention_norm.weight", A_DIM, 1, 1, 0.2f);
    if (s->post) put_one(t, l, "post_ffw_norm.weight", A_DIM, 1, 1, 0.2f);
    put_group(t, l, "ffn_up.weight", s->fused == 2, 1 + s->gate, up + !s->gate, hidden, A_DIM, 0,
              0.3f);
    put_one(t, l, "ffn_down.weight", A_DIM, A_HIDDEN, 0, 0.3f);
    if (s->bias && !s->gate) put_one(t, l, "ffn_up.bias", A_HIDDEN, 1, 0, 0.3f);
    if (s->bias && !s->gate) put_one(t, l, "ffn_down.bias", A_DIM, 1, 0, 0.3f);
}

static int arch_local(const ArchSpec *s, int l)
{
    return s->global_every && (l + 1) % s->global_every;
}

static void put_pattern(Out *o, const ArchSpec *s)
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
        if (s->spelling == 1) put_bytes(o, &(uint8_t){arch_local(s, l) != 0}, 1);
        else put_u32(o, arch_local(s, l) != 0);
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

static void put_keys(Out *o, const ArchSpec *s)
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
    key_u32(o, a, ".context_length", A_CTX);
    key_u32(o, a, ".embedding_length", A_DIM);
    key_u32(o, a, ".feed_forward_length", A_HIDDEN);
    key_u32(o, a, ".block_count", (uint32_t)s->layers);
    key_u32(o, a, ".attention.head_count", A_HEADS);
    key_u32(o, a, ".attention.head_count_kv", A_KV_HEADS);
    key_f32(o, a, s->layer_norm ? ".attention.layer_norm_epsilon"
                                : ".attention.layer_norm_rms_epsilon", 1e-3f);
    if (s->d != A_DIM / A_HEADS) key_u32(o, a, ".attention.key_length", (uint32_t)s->d);
    if (s->n_rot) key_u32(o, a, ".rope.dimension_count", (uint32_t)s->n_rot);
    if (s->temp > 0 || s->longrope > 0)
        key_u32(o, a, ".rope.scaling.original_context_length", A_ORIG);
    if (s->global_every) key_u32(o, a, ".attention.sliding_window", A_WINDOW);
    if (!strcmp(a, "gptneox")) key_u32(o, a, ".use_parallel_residual", (uint32_t)s->parallel);
    for (size_t i = 0; i < COUNT(floats); i++)
        if (floats[i].v != 0) key_f32(o, a, floats[i].name, (float)floats[i].v);
    if (s->spelling) put_pattern(o, s);
    if (s->key) put_given(o, s->key);
}

static size_t arch_data_at; // where the tensors begin in the file built last

// The whole file, or part `no` of `parts`, with every parts-th tensor.
static uint8_t *build_arch(const ArchSpec *s, size_t *size, int no, int parts)
{
    static const GgufSpec tokenizer = {.arch = "test"};
    Tensors t[8] = {{.n = 0}};
    Out keys = {0}, o = {0};
    test_rng = 3;
    while (n_arch_weights) free(arch_weights[--n_arch_weights].w);
    n_gguf_keys = 0;
    if (!no) put_keys(&keys, s);
    if (!no) put_tokenizer(&keys, &tokenizer);
    if (parts > 1) key_u32(&keys, "split.", "count", (uint32_t)parts);
    put_one(&t[0], -1, "token_embd.weight", GGUF_VOCAB, A_DIM, 0, 0.7f);
    if (s->emb_norm) put_norm_of(&t[0], s, -1, "token_embd_norm", A_DIM);
    if (s->learned) put_one(&t[0], -1, "position_embd.weight", A_CTX, A_DIM, 0, 0.5f);
    for (int l = 0; l < s->layers; l++) put_layer_of(&t[l % parts], s, l);
    put_norm_of(&t[parts - 1], s, -1, "output_norm", A_DIM);
    if (!s->post) put_one(&t[parts - 1], -1, "output.weight", GGUF_VOCAB, A_DIM, 0, 0.3f);
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
    arch_data_at = o.n;
    put_bytes(&o, t[no].data.p, t[no].data.n);
    free(keys.p);
    for (int i = 0; i < parts; i++) free(t[i].list.p), free(t[i].data.p);
    *size = o.n;
    return o.p;
}
