// gguf.h: small GGUF models with random weights, for tests. Written from the format's description,
// sharing nothing with the reader in run.c. Include check.h before it.

typedef struct {
    const char *arch;
    const char *types;   // of the matrices, in turn: names from gguf_types, with blanks between
    int bpe;             // tokenizer: byte-level BPE, not SentencePiece-style
    const char *scaling; // "linear", "yarn", "longrope", "freqs" (a tensor rope_freqs), or NULL;
                         // behind a blank the key attn_factor's value, if there is to be one
    const char *pre;     // of BPE
    const char *mark;    // what the chat template contains; NULL: chatml's
    int seldom;          // with keys and tokens that few files have
} GgufSpec;

typedef struct {
    uint8_t *p;
    size_t n, room;
} Out;

typedef struct {
    const char *name;
    uint32_t id;
    size_t block, bytes;
    float d, m;        // values that keep random weights small
    int d_at, m_at;    // where these halves lie in a block, -1: none
} GgufType;

static const GgufType gguf_types[] = {
    {"f32", 0, 1, 4, 0.05f, 0, -1, -1},       {"f16", 1, 1, 2, 0.05f, 0, -1, -1},
    {"bf16", 30, 1, 2, 0.05f, 0, -1, -1},     {"q8_0", 8, 32, 34, 0.0008f, 0, 0, -1},
    {"q4_0", 2, 32, 18, 0.01f, 0, 0, -1},     {"q4_1", 3, 32, 20, 0.01f, -0.075f, 0, 2},
    {"q5_0", 6, 32, 22, 0.005f, 0, 0, -1},    {"q5_1", 7, 32, 24, 0.005f, -0.08f, 0, 2},
    {"q4_k", 12, 256, 144, 2e-4f, 1.5e-3f, 0, 2}, {"q5_k", 13, 256, 176, 1e-4f, 1.5e-3f, 0, 2},
    {"q6_k", 14, 256, 210, 3e-5f, 0, 208, -1},   {"q2_k", 10, 256, 84, 2e-3f, 2e-3f, 80, 82},
    {"q3_k", 11, 256, 110, 4e-4f, 0, 108, -1},   {"iq4_nl", 20, 32, 18, 8e-4f, 0, 0, -1},
    {"iq4_xs", 23, 256, 136, 3e-5f, 0, 0, -1},
};

static uint16_t float_to_half(float f)
{
    uint16_t h;
    store_numbers(AS_F16, &f, 1, &h);
    return h;
}

static void put_bytes(Out *o, const void *p, size_t n)
{
    if (o->n + n > o->room) o->p = xrealloc(o->p, o->room = 2 * (o->n + n), 1);
    memcpy(o->p + o->n, p, n);
    o->n += n;
}

static void put_u32(Out *o, uint32_t v) { put_bytes(o, &v, 4); }
static void put_u64(Out *o, uint64_t v) { put_bytes(o, &v, 8); }

static void put_string(Out *o, const char *s)
{
    put_u64(o, strlen(s));
    put_bytes(o, s, strlen(s));
}

static uint64_t n_gguf_keys;
static size_t gguf_data_at; // where the tensors begin in the file built last

static void put_key(Out *o, const char *name, uint32_t type)
{
    n_gguf_keys++;
    put_string(o, name);
    put_u32(o, type);
}

static void key_u32(Out *o, const char *arch, const char *name, uint32_t v)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", arch, name);
    put_key(o, full, 4);
    put_u32(o, v);
}

static void key_f32(Out *o, const char *arch, const char *name, float v)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s", arch, name);
    put_key(o, full, 6);
    put_bytes(o, &v, 4);
}

static void key_text(Out *o, const char *name, const char *v)
{
    put_key(o, name, 8);
    put_string(o, v);
}

static void put_array(Out *o, const char *name, uint32_t elem, uint64_t n)
{
    put_key(o, name, 9);
    put_u32(o, elem);
    put_u64(o, n);
}

#ifdef GGUF_1B // the shape of Llama 3.2 1B, for measuring speed
enum { G_DIM = 2048, G_HIDDEN = 8192, G_HEADS = 32, G_KV_HEADS = 8, G_WINDOW = 24, G_LAYERS = 16,
       GGUF_VOCAB = 128256 };
#else
#ifndef GGUF_DIM // small files: K blocks then fit ffn_down alone
#define GGUF_DIM 256
#endif
enum { G_DIM = GGUF_DIM, G_HIDDEN = 256 + GGUF_DIM / 256 * 256, G_HEADS = 4, G_KV_HEADS = 2,
       G_WINDOW = 24, G_LAYERS = 2, GGUF_VOCAB = 320 };
#endif

// Token `id` of the test vocabulary: three special ones, 256 bytes, one user-defined, then pairs
// of letters (which are also what BPE's merges make). Seldom: with spaces, and an empty one.
static void token_text(const GgufSpec *g, int id, char out[32])
{
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    static const char *const seldom[] = {"\xe2\x96\x81", "a", ("\xe2\x96\x81" "a"), "",
                                         "b", "e", "be", "ee"};
    int byte = id - 3, pair = id - 260;
    if (id < 3) strcpy(out, special[id]);
    else if (id == 259) strcpy(out, "<user>");
    else if (g->seldom && !g->bpe && id > 311) strcpy(out, seldom[id - 312]);
    else if (id > 259) sprintf(out, "%c%c", 'a' + pair % 8, 'a' + pair / 8 % 8);
    else if (!g->bpe) sprintf(out, "<0x%02X>", (unsigned)byte);
    else { // GPT-2's characters for bytes: printable ones as they are, the others from 256 on
        int c = 256;
        for (int b = 0; b <= byte; b++) {
            int plain = (b > 32 && b < 127) || (b > 160 && b != 173);
            if (b == byte && plain) c = b;
            else if (!plain && b < byte) c++;
        }
        if (c < 128) sprintf(out, "%c", c);
        else sprintf(out, "%c%c", 0xc0 | c >> 6, 0x80 | (c & 63));
    }
}

static void put_tokenizer(Out *o, const GgufSpec *g)
{
    char text[160];
    key_text(o, "tokenizer.ggml.model", g->bpe ? "gpt2" : "llama");
    key_text(o, "tokenizer.ggml.pre", g->pre ? g->pre : "default");
    put_array(o, "tokenizer.ggml.tokens", 8, GGUF_VOCAB);
    for (int id = 0; id < GGUF_VOCAB; id++) token_text(g, id, text), put_string(o, text);
    put_array(o, "tokenizer.ggml.token_type", 5, GGUF_VOCAB);
    for (int id = 0; id < GGUF_VOCAB; id++)
        put_u32(o, id < 3 ? 3 : id == 259 ? 4 : id < 259 && !g->bpe ? 6 : 1);
    if (!g->bpe) {
        put_array(o, "tokenizer.ggml.scores", 6, GGUF_VOCAB);
        for (int id = 0; id < GGUF_VOCAB; id++) put_bytes(o, &(float){-(float)id}, 4);
    } else {
        put_array(o, "tokenizer.ggml.merges", 8, GGUF_VOCAB - 260);
        for (int id = 260; id < GGUF_VOCAB; id++) {
            token_text(g, id, text);
            put_string(o, (char[]){text[0], ' ', text[1], 0});
        }
    }
    key_u32(o, "tokenizer.ggml.", "bos_token_id", 1);
    key_u32(o, "tokenizer.ggml.", "eos_token_id", 2);
    snprintf(text, sizeof text, "{%% for m in messages %%}{{ '%s' + m.role + '\n' + m.content + "
             "'<|im_end|>\n' }}{%% endfor %%}", g->mark ? g->mark : "<|im_start|>");
    key_text(o, "tokenizer.chat_template", text);
}

// Keys that few files have, with numbers of all widths.
static void put_seldom(Out *o, const char *arch, size_t d)
{
    char name[64];
    key_u32(o, arch, ".rope.dimension_count", (uint32_t)d);
    key_u32(o, arch, ".attention.causal", 1);
    key_u32(o, arch, ".attention.sliding_window_pattern", 3);
    key_f32(o, arch, ".rope.freq_base_swa", 20000);
    key_f32(o, arch, ".rope.scale_linear", 2);
    key_f32(o, arch, ".rope.scaling.yarn_beta_fast", 16);
    snprintf(name, sizeof name, "%s.rope.scaling.yarn_beta_slow", arch);
    put_key(o, name, 12);
    put_bytes(o, &(double){2}, 8);
    put_key(o, "general.alignment", 10);
    put_u64(o, 32);
    put_key(o, "split.count", 2);
    put_bytes(o, &(uint16_t){1}, 2);
    put_key(o, "tokenizer.ggml.add_bos_token", 7);
    put_bytes(o, &(uint8_t){0}, 1);
    put_key(o, "tokenizer.ggml.add_space_prefix", 0);
    put_bytes(o, &(uint8_t){!strcmp(arch, "gemma3")}, 1);
    put_key(o, "tokenizer.ggml.eot_token_id", 5);
    put_u32(o, 319);
}

// A file being put together: the list of tensors and their data.
typedef struct {
    const GgufSpec *spec;
    Out list, data;
    uint64_t n;
    const char *types; // left of spec->types
} Tensors;

static void put_tensor(Tensors *t, const char *name, const GgufType *type, size_t rows, size_t cols)
{
    put_string(&t->list, name);
    put_u32(&t->list, rows > 1 ? 2 : 1);
    put_u64(&t->list, cols);
    if (rows > 1) put_u64(&t->list, rows);
    put_u32(&t->list, type->id);
    while (t->data.n % 32) put_bytes(&t->data, "", 1);
    put_u64(&t->list, t->data.n);
    t->n++;
    for (size_t i = 0; i < rows * cols / type->block; i++) {
        uint8_t block[256];
        for (size_t k = 0; k < type->bytes; k++) block[k] = (uint8_t)(random_bits() >> 24);
        if (type->block == 1) {
            float f = type->d * random_uniform();
            uint32_t bits;
            memcpy(&bits, &f, 4);
            uint16_t half = type->id == 30 ? (uint16_t)(bits >> 16) : float_to_half(f);
            memcpy(block, type->id ? (void *)&half : (void *)&f, type->bytes);
        }
        uint16_t d = float_to_half(type->d), m = float_to_half(type->m);
        if (type->d_at >= 0) memcpy(block + type->d_at, &d, 2);
        if (type->m_at >= 0) memcpy(block + type->m_at, &m, 2);
        put_bytes(&t->data, block, type->bytes);
    }
}

// A vector around `mean`.
static void put_vector(Tensors *t, int layer, const char *part, size_t n, float mean)
{
    char name[64];
    if (layer < 0) snprintf(name, sizeof name, "%s", part);
    else snprintf(name, sizeof name, "blk.%d.%s", layer, part);
    put_tensor(t, name, &gguf_types[0], 1, n);
    for (size_t i = 0; i < n; i++) {
        float f = mean + 0.1f * random_uniform();
        memcpy(t->data.p + t->data.n - 4 * (n - i), &f, 4);
    }
}

// A matrix of the next type.
static void put_next_matrix(Tensors *t, int layer, const char *part, size_t rows, size_t cols)
{
    char name[64];
    if (layer < 0) snprintf(name, sizeof name, "%s", part);
    else snprintf(name, sizeof name, "blk.%d.%s", layer, part);
    if (!*t->types) t->types = t->spec->types;
    size_t len = strcspn(t->types, " ");
    for (size_t i = 0; i < sizeof gguf_types / sizeof *gguf_types; i++)
        if (strlen(gguf_types[i].name) == len && !memcmp(gguf_types[i].name, t->types, len))
            put_tensor(t, name, &gguf_types[i], rows, cols);
    t->types += len + (t->types[len] == ' ');
}

static void put_layer(Tensors *t, int l, size_t d)
{
    const char *arch = t->spec->arch;
    int gemma = !strcmp(arch, "gemma3");
    put_vector(t, l, "attn_norm.weight", G_DIM, 1);
    put_next_matrix(t, l, "attn_q.weight", G_HEADS * d, G_DIM);
    put_next_matrix(t, l, "attn_k.weight", G_KV_HEADS * d, G_DIM);
    put_next_matrix(t, l, "attn_v.weight", G_KV_HEADS * d, G_DIM);
    put_next_matrix(t, l, "attn_output.weight", G_DIM, G_HEADS * d);
    if (!strcmp(arch, "qwen2")) {
        put_vector(t, l, "attn_q.bias", G_HEADS * d, 0.1f);
        put_vector(t, l, "attn_k.bias", G_KV_HEADS * d, -0.2f);
        put_vector(t, l, "attn_v.bias", G_KV_HEADS * d, 0.3f);
    }
    if (!strcmp(arch, "qwen3") || gemma) {
        put_vector(t, l, "attn_q_norm.weight", d, 2);
        put_vector(t, l, "attn_k_norm.weight", d, 2);
    }
    if (gemma) put_vector(t, l, "post_attention_norm.weight", G_DIM, 0.5f);
    put_vector(t, l, "ffn_norm.weight", G_DIM, 1);
    put_next_matrix(t, l, "ffn_gate.weight", G_HIDDEN, G_DIM);
    put_next_matrix(t, l, "ffn_up.weight", G_HIDDEN, G_DIM);
    put_next_matrix(t, l, "ffn_down.weight", G_DIM, G_HIDDEN);
    if (gemma) put_vector(t, l, "post_ffw_norm.weight", G_DIM, 0.5f);
}

static void put_config(Out *o, const GgufSpec *g, int n_layers, size_t d)
{
    key_text(o, "general.architecture", g->arch);
    key_text(o, "general.name", "a model"); // two that nobody reads
    key_text(o, "general.note", "nothing");
    key_u32(o, g->arch, ".context_length", 512);
    key_u32(o, g->arch, ".embedding_length", G_DIM);
    key_u32(o, g->arch, ".feed_forward_length", G_HIDDEN);
    key_u32(o, g->arch, ".block_count", (uint32_t)n_layers);
    key_u32(o, g->arch, ".attention.head_count", G_HEADS);
    key_u32(o, g->arch, ".attention.head_count_kv", G_KV_HEADS);
    key_f32(o, g->arch, ".attention.layer_norm_rms_epsilon", 1e-6f);
    key_f32(o, g->arch, ".rope.freq_base", 50000);
    if (d != G_DIM / G_HEADS) {
        key_u32(o, g->arch, ".attention.key_length", (uint32_t)d);
        key_u32(o, g->arch, ".attention.value_length", (uint32_t)d);
    }
    if (!strcmp(g->arch, "gemma3")) key_u32(o, g->arch, ".attention.sliding_window", G_WINDOW);
    if (!g->scaling || !strcmp(g->scaling, "freqs") || !strcmp(g->scaling, "nameless") ||
        !strcmp(g->scaling, "bias")) return;
    char key[64], type[16];
    float attn_factor;
    int n = sscanf(g->scaling, "%15s %f", type, &attn_factor);
    snprintf(key, sizeof key, "%s.rope.scaling.type", g->arch);
    key_text(o, key, type);
    if (n == 2) key_f32(o, g->arch, ".rope.scaling.attn_factor", attn_factor);
    key_f32(o, g->arch, ".rope.scaling.factor", 4);
    key_u32(o, g->arch, ".rope.scaling.original_context_length", 128);
}

// The whole file; *size gets its length. The same spec and seed give the same bytes.
static uint8_t *build_gguf(const GgufSpec *g, uint64_t seed, size_t *size)
{
    int own_head_dim = !strcmp(g->arch, "qwen3") || !strcmp(g->arch, "gemma3");
    int n_layers = strcmp(g->arch, "gemma3") ? G_LAYERS : 7; // the sixth is global
    size_t d = own_head_dim ? G_DIM / 2 : G_DIM / G_HEADS;
    Tensors t = {.spec = g, .types = g->types};
    test_rng = seed;
    put_next_matrix(&t, -1, "token_embd.weight", GGUF_VOCAB, G_DIM);
    for (int l = 0; l < n_layers; l++) put_layer(&t, l, d);
    if (g->scaling && !strcmp(g->scaling, "nameless"))
        put_tensor(&t, ".weight", &gguf_types[0], 1, 0); // no numbers, and no name, for a norm
    else put_vector(&t, -1, "output_norm.weight", G_DIM, 1);
    int bias = g->scaling && !strcmp(g->scaling, "bias"); // of a classifier that is not there
    if (bias) put_vector(&t, -1, "output.bias", GGUF_VOCAB, 1);
    else if (!strcmp(g->arch, "llama"))
        put_next_matrix(&t, -1, "output.weight", GGUF_VOCAB, G_DIM);
    if (g->scaling && !strcmp(g->scaling, "freqs"))
        put_vector(&t, -1, "rope_freqs.weight", d / 2, 3);
    if (g->scaling && !strncmp(g->scaling, "longrope", 8)) {
        put_vector(&t, -1, "rope_factors_long.weight", d / 2, 4);
        put_vector(&t, -1, "rope_factors_short.weight", d / 2, 1);
    }
    Out keys = {0}, o = {0};
    n_gguf_keys = 0;
    put_config(&keys, g, n_layers, d);
    put_tokenizer(&keys, g);
    if (g->seldom) put_seldom(&keys, g->arch, d);
    put_bytes(&o, "GGUF", 4);
    put_u32(&o, 3);
    put_u64(&o, t.n);
    put_u64(&o, n_gguf_keys);
    put_bytes(&o, keys.p, keys.n);
    put_bytes(&o, t.list.p, t.list.n);
    while (o.n % 32) put_bytes(&o, "", 1);
    gguf_data_at = o.n;
    put_bytes(&o, t.data.p, t.data.n);
    free(keys.p), free(t.list.p), free(t.data.p);
    *size = o.n;
    return o.p;
}

// Takes the last four of one of the tokenizer's lists of numbers: a key that nobody reads gets
// their bytes.
static void shorten_list(uint8_t *file, size_t size, const char *name)
{
    uint32_t left = GGUF_VOCAB - 4;
    uint8_t *n = (uint8_t *)memmem(file, size, name, strlen(name)) + strlen(name) + 8;
    memcpy(n, &left, 4);
    memcpy(n + 8 + 4 * left, "\2\0\0\0\0\0\0\0zz\2\0\0\0\0\0", 16);
    file[16]++; // keys
}
