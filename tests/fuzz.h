// fuzz.h: run.c on hostile input, thousands of inputs a second in one process. A target is a
// function that reads input as run.c does and, where it is accepted, uses what was read. die()
// ends in exit(), which here jumps back; what was allocated until then is freed. An input is
// accepted, or refused with one printable line and exit status 1 (2: usage); anything else aborts.
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static jmp_buf refused;
static int status; // of the refusal

__attribute__((noreturn)) static void leave(int code)
{
    status = code;
    longjmp(refused, 1);
}

// Memory that the input now tried has asked for, so that a refused one loses none.
static void *live[1 << 14];
static size_t n_live;
static int tracking;

static void *track(void *old, void *new)
{
    for (size_t i = n_live; old && i-- > 0;)
        if (live[i] == old) {
            live[i] = live[--n_live];
            break;
        }
    if (new && tracking && n_live < sizeof live / sizeof *live) live[n_live++] = new;
    return new;
}

static void *tracked_realloc(void *p, size_t n)
{
    track(p, NULL);
    return track(NULL, realloc(p, n));
}

static void tracked_free(void *p)
{
    track(p, NULL);
    free(p);
}

static struct {
    void *p;
    size_t size;
} mapped[256];
static size_t n_mapped;

static void *tracked_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    void *p = mmap(at, size, prot, flags, fd, offset);
    if (p != MAP_FAILED && tracking && n_mapped < sizeof mapped / sizeof *mapped)
        mapped[n_mapped].p = p, mapped[n_mapped++].size = size;
    return p;
}

// The file that run.c opens by whatever name.
static const uint8_t *input;
static size_t input_size;

static FILE *message; // stands for stderr

static FILE *open_input(void) { return fmemopen((void *)(uintptr_t)input, input_size, "rb"); }

#define TESTING
#undef stderr
#define stderr message
#define exit leave
#define aligned_alloc(alignment, n) track(NULL, aligned_alloc(alignment, n))
#define realloc tracked_realloc
#define free tracked_free
#define mmap tracked_mmap
#define fopen(path, how) (strncmp(path, "/proc/m", 7) && strncmp(path, "/sys/fs/", 8) \
                          ? open_input() : fopen(path, how))
#include "measure.c"
#undef exit
#undef aligned_alloc
#undef realloc
#undef free
#undef mmap
#undef fopen
#include "check.h"
#include "model.h"
#define GGUF_DIM 32
#include "gguf.h"
#include "archs.h"

// What is wrong with run.c, rather than with the input.
#define MUST(what) \
    do { \
        if (!(what)) { \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            fflush(stdout); \
            abort(); \
        } \
    } while (0)

// No larger than it has to be, so that reading past it is seen; as many bytes as `fill` says follow
// the data.
static void *exact_copy(const uint8_t *data, size_t size, size_t fill)
{
    uint8_t *copy = track(NULL, malloc(size + fill ? size + fill : 1));
    memset(copy + size, 0x3c, fill); // 0.01 in f32, 1.06 in f16
    return memcpy(copy, data, size);
}

static const char some_text[] = "Hello <|im_start|> caf\xc3\xa9 \xff 123\n\n  x'll <0x41> a beebee";

// Reads n tokens and draws one more, in a way that `bits` choose, if the model is small enough.
static void run_model(const Model *m, uint64_t bits, int64_t ctx)
{
    const Config *c = &m->config;
    State s;
    size_t chunk = 1 + bits % 16, vocab = (size_t)c->vocab_size;
    size_t n = bits >> 16 & 3 || weight_bytes(m) > 1 << 16 ? 3 : 80;
    int exact = bits >> 4 & 1, kv = bits >> 7 & 1 ? KV_Q8 : bits >> 5 & 1, tokens[16] = {0};
    if (weight_bytes(m) > 4 << 20 || c->n_layers > 64 || c->dim > 1 << 12 ||
        c->hidden_dim > 1 << 14) return;
    Config resolved = *c;
    Cache cache = {0};
    rope_resolve(&resolved.rope, c->train_ctx, ctx);
    cache_layout(&cache, &resolved, ctx, chunk, 1);
    size_t most = bits >> 20 & 15 ? 8 << 20 : 256 << 20;
    if (cache.bytes > most || cache.n_slots * (size_t)c->head_dim > 1 << 20) return;
    state_init(&s, m, ctx, chunk, kv, exact);
    watched = NULL; // the last input's is freed
    if (bits >> 6 & 1) begin_watch(&s);
    float *logits = xcalloc(vocab, 4);
    size_t step = 0;
    for (size_t at = 0; at < n; at += step) {
        step = min_size(min_size(n - at, chunk), (size_t)ctx - at);
        if (!step) break;
        for (size_t i = 0; i < step; i++) tokens[i] = (int)((at + i) * 7919 % vocab);
        forward(&s, tokens, step, (int64_t)at);
    }
    forward(&s, tokens, 1, ctx - 1);
    classify(&s, 0, 1, logits);
    Sampler sampler = {(double)(bits >> 8 & 3) / 2, (double)(bits >> 10 & 3) / 3, bits >> 12 & 7,
                       0, bits >> 15 & 1 ? 1 : 0.1, seed_random(bits)};
    int bad = 0;
    for (size_t i = 0; i < vocab; i++) bad += !isfinite(logits[i]);
    if (!bad) {
        int id = sample(&sampler, logits, vocab, tokens, 16);
        MUST(id >= 0 && id < c->vocab_size);
    }
}

// Encodes text with every kind of token; ids must be in range, and decode to the same text.
static void check_text_ids(const Tokenizer *t, const char *text, size_t len, int lossless)
{
    int *ids = xrealloc(NULL, 2 * len + 2, sizeof *ids), prev = t->bos;
    int n = tokenizer_encode(t, text, len, ids);
    char *back = xrealloc(NULL, 1, 1);
    size_t total = 0;
    for (int i = 0; i < n; prev = ids[i++]) {
        size_t got;
        MUST(ids[i] >= 0 && ids[i] < t->vocab_size);
        const char *s = tokenizer_decode(t, prev, ids[i], &got);
        back = xrealloc(back, total + got + 1, 1);
        memcpy(back + total, s, got);
        total += got;
    }
    // The space before the text stays, if a token for the byte stands for it.
    size_t extra = total > len ? 1 : 0;
    MUST(!lossless || (total - extra == len && !memcmp(back + extra, text, len)));
}

// --- the targets --------------------------------------------------------------------------------

static Model model;
static Tokenizer tokenizer;

static void load_input(void (*load)(Model *), const uint8_t *data, size_t size, size_t fill)
{
    memset(&model, 0, sizeof model);
    model.path = "fuzz";
    model.file = exact_copy(data, size, fill);
    model.size = size + fill;
    load(&model);
    check_rope(&model.config, model.path);
}

static void use_checkpoint(const uint8_t *data, size_t size)
{
    load_input(load_checkpoint, data, size, 0);
    run_model(&model, hash_bytes((const char *)data, size), 150);
}

static void use_gguf_filled(const uint8_t *data, size_t size, size_t fill)
{
    if (size < 4) return; // model_load() looks at the first four bytes
    load_input(load_gguf, data, size, fill);
    tokenizer_init(&tokenizer, "fuzz", &model.vocab);
    check_text_ids(&tokenizer, some_text, sizeof some_text - 1, 0);
    Session s = {.model = model, .tokenizer = tokenizer};
    const char *what, *template = open_template(&s, &what);
    Term pair[2], turn = make_message(pair, "user", quote_text(&s.tokenizer, "there <|im_end|>"));
    size_t n;
    if (template) encode_chat(&s, template, &turn, 1, &n);
    run_model(&model, hash_bytes((const char *)data, min_size(size, 4096)), 150);
}

static void use_gguf(const uint8_t *data, size_t size) { use_gguf_filled(data, size, 0); }

// A GGUF file up to its weights, which are added: so that changes fall upon what describes them.
static void use_keys(const uint8_t *data, size_t size) { use_gguf_filled(data, size, 1 << 19); }

// A tokenizer.bin, for as many pieces as there are in it.
static void use_tokenizer(const uint8_t *data, size_t size)
{
    int n = 0;
    for (size_t at = 4; at + 8 <= size && n < 1 << 15; n++) {
        size_t len = (uint32_t)read_i32(data + at + 4);
        at += 8 + len;
    }
    input = data;
    input_size = size;
    Vocab v = read_vocab("fuzz", (size_t)(n ? n : 1));
    tokenizer_init(&tokenizer, "fuzz", &v);
    check_text_ids(&tokenizer, some_text, sizeof some_text - 1, 1);
    size_t tail = min_size(size, 200);
    check_text_ids(&tokenizer, (const char *)data + size - tail, tail, 1);
}

typedef struct {
    uint8_t p[1 << 17];
    size_t n;
} List;

static void add_string(List *l, const void *s, size_t len)
{
    if (l->n + 8 + len > sizeof l->p) return;
    memcpy(l->p + l->n, &(uint64_t){len}, 8);
    memcpy(l->p + l->n + 8, s, len);
    l->n += 8 + len;
}

// The name of a token that stands for a byte.
static size_t byte_name(int bpe, int byte, char out[8])
{
    if (!bpe) return (size_t)sprintf(out, "<0x%02X>", (unsigned)byte);
    for (uint32_t c = 33; c < 324; c++)
        if (byte_of_char(c) == byte) {
            if (c < 128) return (size_t)sprintf(out, "%c", (int)c);
            return (size_t)sprintf(out, "%c%c", (int)(0xc0 | c >> 6), (int)(0x80 | (c & 63)));
        }
    MUST(!"every byte has a character");
    return 0;
}

// A vocabulary, merges and a text: byte 0 flags, 1 and 2 the number of tokens and of merges; a
// token is a length, a kind and text, a merge two numbers of tokens. The rest is the text.
static void use_text(const uint8_t *data, size_t size)
{
    static const char *const styles[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    static List tokens, merges;
    static int32_t types[1024];
    static float scores[1024];
    static const char *texts[256];
    size_t at = 3, lens[256], n = 0;
    if (size < 3) return;
    int bpe = data[0] & 1, first = bpe ? 256 : 259;
    char name[8];
    tokens.n = merges.n = 0;
    for (; n < 3 && !bpe; n++) types[n] = 3, add_string(&tokens, "<s>", n);
    for (int b = 0; b < 256; b++, types[n++] = 1)
        add_string(&tokens, name, byte_name(bpe, b, name));
    for (int k = 0; k < data[1] && at + 2 <= size; k++, n++) {
        size_t len = min_size(data[at] % 16, size - at - 2);
        types[n] = data[at] >> 5 == 1 ? 3 : data[at] >> 5 == 2 ? 4 : 1;
        scores[n] = (int8_t)data[at + 1];
        texts[n - (size_t)first] = (const char *)data + at + 2;
        lens[n - (size_t)first] = len;
        add_string(&tokens, data + at + 2, len);
        at += 2 + len;
    }
    size_t n_merges = 0;
    for (int k = 0; k < data[2] && at + 2 <= size; k++, at += 2, n_merges++) {
        char both[64];
        size_t len = 0;
        for (int side = 0; side < 2; side++) {
            size_t id = data[at + (size_t)side], own = n - (size_t)first;
            if (own && id % 2) memcpy(both + len, texts[id / 2 % own], lens[id / 2 % own]),
                               len += lens[id / 2 % own];
            else len += byte_name(1, (int)id / 2 + 32, both + len);
            if (!side) both[len++] = ' ';
        }
        add_string(&merges, both, len);
    }
    Vocab v = {.tokens = {tokens.p, n, G_STRING}, .merges = {merges.p, n_merges, G_STRING},
               .bos = bpe ? -1 : data[0] & 32 ? (int)n - 1 : 1, .eos = -1, .eot = -1,
               .types = {(uint8_t *)types, n, G_I32},
               .scores = {bpe ? NULL : (uint8_t *)scores, n, G_F32},
               .space_prefix = data[0] >> 4 & 1};
    if (bpe) v.pre = styles[data[0] >> 1 & 3];
    tokenizer_init(&tokenizer, "fuzz", &v);
    // SentencePiece-style, U+2581 comes back as a space, and a space follows user-defined tokens.
    int spaced = 0;
    for (size_t i = 0; i < n; i++) spaced |= types[i] == 4 && v.space_prefix;
    int lossless = bpe || !(spaced || memmem(data + at, size - at, "\xe2\x96\x81", 3));
    check_text_ids(&tokenizer, (const char *)data + at, size - at, lossless);
}

// A small model of each encoding, as it is, and with a scaling and a window of its own.
enum { N_KINDS = 2 * N_ENCODINGS };

static const TestModel *model_of_kind(int kind)
{
    static TestModel models[N_KINDS];
    int encoding = kind % N_ENCODINGS, own = kind >= N_ENCODINGS;
    int rotates = encoding == ENC_ROPE || encoding == ENC_XPOS;
    if (models[kind].file) return &models[kind];
    tracking = 0;
    models[kind] = make_model((Shape){.version = 101, .dim = 16, .hidden = 16, .layers = 1,
        .heads = 2, .kv_heads = 1, .vocab = 8, .ctx = 64, .encoding = encoding, .rows = 64,
        .max_distance = 100, .scaling = !own ? ROPE_NONE : rotates ? ROPE_LONGROPE
                                                     : encodings[encoding].linear,
        .factor = 2 * own, .window = 20 * own, .sinks = 3 * own, .logn = own});
    tracking = 1;
    return &models[kind];
}

// A command line, one word a line, of measure if the first byte's highest bit is set, else of run,
// on the kind of model that the other bits name.
static void use_options(const uint8_t *data, size_t size)
{
    static const char factors[] = "1 1.5, 2 4";
    static __typeof__(opt) defaults;
    static __typeof__(ask) asked_by_default;
    static __typeof__(talk) talk_by_default;
    static int started;
    if (!started) defaults = opt, asked_by_default = ask, talk_by_default = talk;
    started = 1;
    opt = defaults;
    ask = asked_by_default;
    talk = talk_by_default;
    asked = unasked;
    if (!size) return;
    program = data[0] & 128 ? measure_program : chat_program;
    const TestModel *file = model_of_kind((data[0] & 127) % N_KINDS);
    int argc = 1;
    char *argv[40] = {"run"}, *words = xrealloc(NULL, size, 1);
    memcpy(words, data + 1, size - 1);
    words[size - 1] = 0;
    input = (const uint8_t *)factors;
    input_size = sizeof factors - 1;
    for (char *w = words; w && argc < 39;) argv[argc++] = strsep(&w, "\n");
    parse_options(argc, argv);
    if (program == measure_program) check_measure();
    load_input(load_checkpoint, file->file, file->size, 0);
    set_rope(&model.config);
    int64_t ctx = choose_context(&model.config);
    MUST(ctx >= 1 && ctx <= 1 << 28 && ask.n_lengths <= 32);
    int window = model.config.rope.window;
    if (ctx < 1 << 12 || (window && window < 1 << 12 && opt.chunk < 1 << 12))
        run_model(&model, hash_bytes((const char *)data, size), ctx);
}

// A list of factors for as many pairs as the first byte says.
static void use_factors(const uint8_t *data, size_t size)
{
    size_t pairs = size ? 1 + data[0] % 8 : 0;
    if (!size) return;
    input = data + 1;
    input_size = size - 1;
    const float *list = read_factors("fuzz", pairs);
    for (size_t i = 0; i < pairs; i++) MUST(list[i] > 0 && list[i] <= 1e6f);
}

static const struct {
    const char *name;
    void (*use)(const uint8_t *data, size_t size);
} targets[] = {
    {"checkpoint", use_checkpoint}, {"gguf", use_gguf}, {"keys", use_keys},
    {"tokenizer", use_tokenizer}, {"text", use_text}, {"options", use_options},
    {"factors", use_factors},
};
enum { N_TARGETS = sizeof targets / sizeof *targets };

// The target whose name the text begins with; the program ends if there is none.
static int find_target(const char *text)
{
    for (int i = 0; i < N_TARGETS; i++)
        if (!strncmp(text, targets[i].name, strlen(targets[i].name))) return i;
    printf("no such target: %s\n", text);
    exit(2);
}

static char said[8192]; // about the last input, if it was refused

// 0: accepted; else the exit status with which the input was refused.
static int try_input(int target, const uint8_t *data, size_t size)
{
    if (!message) {
        message = fmemopen(said, sizeof said, "w");
        scratch(32 << 20); // enough for all inputs, and not theirs
    }
    memset(said, 0, sizeof said);
    rewind(message);
    status = 0;
    tracking = 1;
    if (!setjmp(refused)) targets[target].use(data, size);
    tracking = 0;
    fflush(message);
    if (status) {
        size_t len = strlen(said);
        MUST(status == EXIT_DATA || (status == EXIT_USAGE && targets[target].use == use_options));
        MUST(len > 6 && !strncmp(said, "run: ", 5) && said[len - 1] == '\n');
        for (size_t i = 0; i + 1 < len; i++) MUST(!iscntrl((unsigned char)said[i]));
    } else MUST(!*said || targets[target].use == use_options); // which may give a hint
    while (n_live) free(live[--n_live]);
    for (; n_mapped; n_mapped--) munmap(mapped[n_mapped - 1].p, mapped[n_mapped - 1].size);
    return status;
}

// --- good files to begin with -------------------------------------------------------------------

// A tokenizer.bin of 300 pieces: three special, the bytes, letters and pairs of them.
static size_t make_tokenizer(uint8_t *out)
{
    size_t size = 4;
    memset(out, 0, 4);
    for (int id = 0; id < 300; id++) {
        static const char *const special[] = {"<unk>", "<s>", "</s>"}, letters[] = " helox1fb";
        char text[16];
        int pair = id - 259;
        if (id < 3) strcpy(text, special[id]);
        else if (id < 259) snprintf(text, sizeof text, "<0x%02X>", (unsigned)(id - 3));
        else snprintf(text, sizeof text, "%c%.1s", letters[pair % 9],
                      &letters[pair < 9 ? 9 : pair % 8]);
        float score = -(float)(id % 10);
        int32_t len = (int32_t)strlen(text);
        memcpy(out + size, &score, 4);
        memcpy(out + size + 4, &len, 4);
        memcpy(out + size + 8, text, (size_t)len);
        size += 8 + (size_t)len;
    }
    return size;
}

typedef void (*Give)(int target, const char *name, const uint8_t *data, size_t size);

// Each version, each encoding, and each method of scaling.
static void give_checkpoints(Give give)
{
    static const int versions[] = {0, 1, 2, 101, 102};
    enum { ENCODED = 5, SCALED = ENCODED + N_ENCODINGS, END = SCALED + N_ROPE_METHODS };
    for (int k = 0; k < END; k++) {
        int encoding = k < ENCODED || k >= SCALED ? 0 : k - ENCODED;
        Shape s = {.version = k < ENCODED ? versions[k] : 101 + k % 2, .dim = 16, .hidden = 16,
                   .layers = 1 + k % 2, .heads = 2, .kv_heads = 1, .vocab = 8, .ctx = 8, .group = 8,
                   .own_classifier = k % 3 == 0, .encoding = encoding, .rows = 16,
                   .max_distance = 40, .scaling = k < SCALED ? ROPE_NONE : k - SCALED,
                   .window = k % 4 == 3 ? 20 : 0, .sinks = k % 4 == 3 ? 2 : 0};
        char name[48];
        sprintf(name, "v%d-%d-%d", s.version, encoding, s.scaling);
        TestModel t = make_model(s);
        give(find_target("checkpoint"), name, t.file, t.size);
        free_test_model(&t);
    }
}

static void give_ggufs(Give give)
{
    static const GgufSpec specs[] = {
        {"llama", "f32 q8_0 q4_0 q4_1 q5_0 f16 bf16 q4_k q8_0", 0, "freqs", NULL, "<|user|>", 0},
        {"llama", "q4_0", 1, NULL, "smollm", NULL, 0},
        {"qwen2", "q8_0 q5_1 q4_0 q4_1 q5_0 f16 bf16 q5_k", 1, "yarn", "qwen2",
         "<|start_header_id|>", 0},
        {"qwen3", "q8_0 q5_1 q4_0 iq4_nl q5_0 f16 bf16 q3_k", 1, "linear", "llama-bpe", "<<SYS>>", 0},
        {"gemma3", "q4_0", 0, NULL, NULL, "<start_of_turn>", 1},
        {"llama", "q4_0", 0, "yarn 1.5", NULL, "[INST]", 1},
        {"llama", "q8_0", 0, "longrope", NULL, NULL, 0},
        {"llama", "f16", 0, "longrope 1.25", NULL, NULL, 1},
    };
    for (size_t i = 0; i < COUNT(specs); i++) {
        size_t size;
        uint8_t *file = build_gguf(&specs[i], 1, &size);
        give(find_target("gguf"), (char[]){(char)('a' + i), 0}, file, size);
        give(find_target("keys"), (char[]){(char)('a' + i), 0}, file, gguf_data_at);
        free(file);
    }
}

// The architectures that build_gguf() does not write, with tensors fused and biases, windows'
// patterns in three spellings, and the keys that only they have.
static void give_architectures(Give give)
{
    for (size_t i = 0; i < COUNT(arch_specs); i++) {
        size_t size;
        if (i && !strcmp(arch_specs[i].arch, arch_specs[i - 1].arch) && !arch_specs[i].spelling &&
            !(arch_specs[i].longrope > 0)) continue;
        uint8_t *file = build_arch(&arch_specs[i], &size, 0, 1);
        give(find_target("gguf"), (char[]){(char)('A' + i), 0}, file, size);
        give(find_target("keys"), (char[]){(char)('A' + i), 0}, file, arch_data_at);
        free(file);
    }
}

// GGUF files with fewer scores or types than tokens, or without longrope's short factors, or all of
// its factors, which are the last tensors: to be refused.
static void give_short_lists(Give give)
{
    static const char *const lists[] = {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"};
    for (int i = 0; i < 4; i++) {
        size_t size;
        GgufSpec spec = {.arch = "llama", .types = "q4_0", .scaling = "longrope"};
        uint8_t *file = build_gguf(&spec, 1, &size);
        if (i < 2) shorten_list(file, size, lists[i]);
        else file[8] -= (uint8_t)(i - 1);
        give(find_target("keys"), (char[]){'s', (char)('0' + i), 0}, file, gguf_data_at);
        free(file);
    }
}

static void give_seeds(Give give)
{
    static const char *const lines[] = {
        "\0-n\n5\n-t\n0.5\n--rope-scaling=yarn\n-c\n200", "\0--self-extend\n4:16\n--logn\n-c\n300",
        "\0--window\n20\n--sinks\n3\nm.bin", "\200--rerope\n16\n-m\npasskey\n--lengths\n40,50",
        "\200--leaky-rerope\n16:4.5\n-m\nperplexity\n--stride\n9", "\3--clamp-positions\n-c\n90",
        "\0--rope-scaling\nlongrope\n--long-factors\nx\n--short-factors\ny\n--rope-orig-ctx\n30",
        "\0--rope-scaling\ndynamic\n--rope-factor\n1.5\n-c\n100\n--rope-theta\n500",
        "\0--rope-scaling\nllama3\n--low-freq-factor\n2\n--high-freq-factor\n3\n-c\n99",
        "\4--rope-scaling\nlinear\n-c\n128", "\6--rope-scaling\nntk\n-c\n128"};
    static const char *const texts[] = {"\0\3\0\2\5ab\2\7ba\3\11abaabab ba", ("\1\2\3\2\1ab\4\1abab"
        "\202\204\1\3\3\202the abab 12's\n\n x"), "\6\1\0\102\1<u>ab<u>ab",
        "\5\0\0it's 1234 caf\303\251\r\n"};
    static uint8_t tokenizer_file[8000];
    give_checkpoints(give);
    give_ggufs(give);
    give_architectures(give);
    size_t size = make_tokenizer(tokenizer_file);
    give(find_target("tokenizer"), "a", tokenizer_file, size);
    for (int i = 0; i < 4; i++) {
        size_t n = 3 + strlen(texts[i] + 3);
        give(find_target("text"), (char[]){(char)('a' + i), 0}, (const uint8_t *)texts[i], n);
    }
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        give(find_target("options"), (char[]){(char)('a' + i), 0}, (const uint8_t *)lines[i],
             1 + strlen(lines[i] + 1));
    give(find_target("factors"), "a", (const uint8_t *)"\0031, 1.5 2\n2.5", 13);
}

// Each option by itself, with values at the ends of its range, within and past it, for RoPE, for
// RoPE with a scaling of its own, and for another kind of model: not all of them are good.
static void give_program_options(Give give)
{
    static const char *const texts[] = {"x", "4:16", "16:4.5", "40,50"};
    size_t count = 0, measures = program == measure_program ? 128 : 0;
    const Option *o;
    for (size_t at = 0; (o = option_at(at)); at++) {
        if (!o->name) continue;
        int is_float = o->kind == N_DOUBLE, is_flag = !*o->arg;
        int is_text = o->kind == N_TEXT || strchr(o->arg, ':');
        const double numbers[] = {o->lo, fmax(o->lo, 2), o->hi, 2 * o->hi};
        size_t n_values = o->names.n ? o->names.n : is_flag ? 1 : 4;
        for (size_t i = 0; i < 3 * n_values; i++) {
            size_t k = i / 3, other = count + k;
            char number[32], name[64], line[96] = {(char)(i % 3 * N_ENCODINGS + measures)};
            if (i % 3 == 2) line[0] = (char)(other % N_KINDS + measures);
            snprintf(number, sizeof number, is_float ? "%.9g" : "%.0f", numbers[k % 4]);
            snprintf(name, sizeof name, "%c-%s-%zu", measures ? 'm' : 'o', o->name, i);
            int n = snprintf(line + 1, sizeof line - 1, "-c\n90\n--%s%s%s", o->name,
                             is_flag ? "" : "\n",
                             is_flag ? "" : o->names.n ? entry_name(o->names, k)
                             : is_text ? texts[k] : number);
            give(find_target("options"), name, (const uint8_t *)line, 1 + (size_t)n);
        }
        count++;
    }
}

static void give_options(Give give)
{
    const Names *const programs[] = {chat_program, measure_program};
    for (size_t i = 0; i < COUNT(programs); i++) {
        program = programs[i];
        give_program_options(give);
    }
}
