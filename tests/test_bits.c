// test_bits.c: results that must be the same bits on every machine with a fused multiply-add, with
// any compiler, optimization, width of vectors and number of threads: hashes of what the words of
// section 2 and the products give, of logits, and the demo's text. "test_bits print" prints the
// tables anew, which a change of the order of sums, and nothing else, should ask for.
#define TESTING
#include "../run.c"
#include "check.h"

static int print;

static uint64_t hash_floats(const float *f, size_t n) // FNV-1a
{
    const uint8_t *b = (const uint8_t *)f;
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < 4 * n; i++) hash = (hash ^ b[i]) * 0x100000001b3;
    return hash;
}

static void check_hash(const char *what, const float *f, size_t n, uint64_t want)
{
    uint64_t got = hash_floats(f, n);
    count_check(print || got == want);
    if (print) printf("    {\"%s\", 0x%016llx},\n", what, (unsigned long long)got);
    else if (got != want)
        printf("%s: want %016llx, got %016llx; the first: %.9g\n", what, (unsigned long long)want,
               (unsigned long long)got, (double)f[0]);
}

typedef struct {
    const char *what;
    uint64_t want;
} Golden;

// ---- Words -------------------------------------------------------------------------------------

enum { MANY = 1 << 16 };

static void fill_exp(float *x)
{
    for (size_t i = 0; i < MANY; i += LANES) vstore(x + i, vexp(vload(x + i) * vset(30)));
}

static void fill_log(float *x)
{
    for (size_t i = 0; i < MANY; i += LANES)
        vstore(x + i, vlog(vset(1) + vload(x + i) * vload(x + i) * vset(1e5f)));
}

static void fill_half(float *x)
{
    uint16_t *h = xcalloc(MANY, 2);
    store_numbers(AS_F16, x, MANY, h);
    for (size_t i = 0; i < MANY; i += LANES) vstore(x + i, load_numbers(AS_F16, h, i, LANES));
    free(h);
}

static void fill_dot(float *x)
{
    for (size_t i = 0; i + 400 < MANY; i++) x[i] = dot(x + i, x + i + 13, i % 387);
}

static void fill_activations(float *x)
{
    State s = {.gate = x, .up = x + MANY / 2, .attn.config.hidden_dim = MANY / 4 - 1};
    gate_row(&s, 0);
    s = (State){.gate = x + MANY / 4, .up = s.up, .attn.config = {.hidden_dim = MANY / 4, .gelu = 1}};
    gate_row(&s, 0);
    Config c = {.norm_eps = 1e-5};
    for (size_t i = MANY / 2; i + 512 <= MANY; i += 512)
        norm_row(&(NormJob){x + i, x + i, {x + i, NULL, 512 - i % 7}, &c}, 0);
}

// Angles come from the C library's double-precision functions: this is a check of the library.
static void fill_angles(float *x)
{
    double freq[32];
    for (int m = 0; m < 32; m++) freq[m] = pow(10000, -2.0 * m / 64);
    for (size_t i = 0; i < MANY; i += 64)
        fill_phases(freq, NULL, NULL, 32, (double)(i * i % 4099), 1, x + i, 1);
}

static void test_words(void)
{
    static const Golden golden[] = {
        {"vexp", 0x83136e9db3f99c97},
        {"vlog", 0xc1feab0b74b8200f},
        {"halves", 0x1947ab6cec74f43a},
        {"dot", 0xd2cbdb620097d7c6},
        {"activations", 0x9e1a6edc322f4371},
        {"angles", 0x74cb5b7e6bf9c167},
    };
    void (*fill[])(float *x) = {fill_exp, fill_log, fill_half, fill_dot, fill_activations,
                                fill_angles};
    for (size_t i = 0; i < COUNT(golden); i++) {
        test_rng = i + 1;
        float *x = random_floats(MANY);
        fill[i](x);
        check_hash(golden[i].what, x, MANY, golden[i].want);
        free(x);
    }
}

// ---- Products ----------------------------------------------------------------------------------

// Random bytes with no half precision scale that is infinite or NaN.
static uint8_t *random_blocks(const TensorType *type, size_t n)
{
    uint8_t *data = xcalloc(n, type->bytes);
    size_t last = type->bytes == 210 ? 208 : type->bytes == 110 ? 108 : type->bytes == 84 ? 80 : 0;
    for (size_t i = 0; i < n * type->bytes; i++) data[i] = (uint8_t)(random_bits() >> 24);
    for (size_t i = 0; i < n; i++) {
        uint8_t *scales = data + i * type->bytes + last;
        scales[1] = (scales[1] & 0x83) | 0x20;
        if (type->has_min) scales[3] = (scales[3] & 0x83) | 0x20;
    }
    return data;
}

static void test_products(void)
{
    enum { ROWS = 70, N = 29 };
    static const Golden golden[] = {
        {"q8_0", 0x3607ba94f6056d20},
        {"q4_0", 0xe088996f64ed505c},
        {"q4_1", 0x180c5c374f05f189},
        {"q5_0", 0x18d74960ea72012e},
        {"q5_1", 0xbc35fda489847b7a},
        {"q4_k", 0x94ccb5d1a75d4440},
        {"q5_k", 0x3ae66e4e4a904d9d},
        {"q6_k", 0xc1501ca82db0981a},
        {"q8_0 exact", 0x139f14d53fbc3d0f},
        {"q6_k exact", 0x1fad3da2e351c471},
        {"q2_k", 0x01be35b7610bf08c},
        {"q3_k", 0xff3cf92ef06a4e63},
        {"iq4_nl", 0x4128faa82a2edc59},
        {"iq4_xs", 0x8f021016f0b1d796},
        {"q2_k exact", 0x3842591295b55f58},
        {"iq4_nl exact", 0x11186354d9ebaaad},
    };
    for (size_t i = 0; i < COUNT(golden); i++) {
        const TensorType *type = tensor_types;
        size_t len = strcspn(golden[i].what, " "), cols = 768;
        while (strncmp(type->name, golden[i].what, len) || type->name[len]) type++;
        int exact = !!golden[i].what[len];
        test_rng = i + 1;
        uint8_t *data = random_blocks(type, ROWS * cols / type->block);
        float *x = random_floats(N * cols), *out = xcalloc(2 * N * ROWS, 4);
        Tensor w = {.type = type, .data = data, .group = type->group, .rows = ROWS, .cols = cols};
        Quantized none = {0}, act = {.q = xcalloc((N + Q8_TOKENS) * cols, 1),
                                     .scale = xcalloc((N + Q8_TOKENS) * cols, 4),
                                     .minus_sum = xcalloc((N + Q8_TOKENS) * cols, 4)};
        matmul(exact ? &none : &act, &(Product){&w, out}, 1, x, N);
        for (size_t t = 0; t < N; t++)
            matmul(exact ? &none : &act, &(Product){&w, out + (N + t) * ROWS}, 1, x + t * cols, 1);
        CHECK_BITS(out, out + N * ROWS, N * ROWS);
        check_hash(golden[i].what, out, N * ROWS, golden[i].want);
        free(data), free(x), free(out), free(act.q), free(act.scale), free(act.minus_sum);
    }
}

// ---- Models ------------------------------------------------------------------------------------

typedef struct {
    const char *model;
    int exact, kv;
    RopeConfig rope; // what differs from the checkpoint's
    uint64_t want;
} Run;

// Logits after 300 tokens (for a table of 256 positions, 200), of which the last ten are fed one
// by one.
static void check_run(const Run *run, const char *what)
{
    char path[100];
    Model m;
    State s;
    snprintf(path, sizeof path, "models/%s.bin", run->model);
    model_load(&m, path);
    RopeConfig *r = &m.config.rope;
    int learned = m.config.encoding == ENC_LEARNED, ids[300], n = learned ? 200 : 300;
    size_t vocab = (size_t)m.config.vocab_size;
    if (run->rope.method) r->method = run->rope.method, r->factor = run->rope.factor;
    if (run->rope.window) r->window = run->rope.window, r->sinks = run->rope.sinks;
    if (run->rope.reach) r->distance = run->rope.distance, r->reach = run->rope.reach;
    if (run->rope.orig_ctx) r->orig_ctx = run->rope.orig_ctx, r->logn = run->rope.logn;
    test_rng = 5;
    for (int i = 0; i < n; i++) ids[i] = (int)(random_bits() % vocab);
    float *logits = xcalloc(10 * vocab, 4);
    state_init(&s, &m, n, 50, run->kv, run->exact);
    for (int at = 0, step; at < n; at += step) {
        step = n - at <= 10 ? 1 : n - 10 - at < 50 ? n - 10 - at : 50;
        forward(&s, ids + at, (size_t)step, at);
        size_t row = n - at <= 10 ? (size_t)(n - at - 1) : 0;
        classify(&s, (size_t)step - 1, 1, logits + row * vocab);
    }
    check_hash(what, logits, 10 * vocab, run->want);
    free(logits);
}

static const Run runs[] = {
    {"tales", .want = 0x04838dcb443e36ef},
    {"tales", .exact = 1, .want = 0x175b6cae163797ab},
    {"tales", .kv = KV_F32, .want = 0xc8a53138619befcc},
    {"tales", .kv = KV_Q8, .want = 0x0850733a86642d17},
    {"tales", .rope = {.method = ROPE_YARN, .factor = 4}, .want = 0x0d2a9a36704456d9},
    {"tales", .rope = {.method = ROPE_DYNAMIC, .factor = 2, .orig_ctx = 100},
     .want = 0x3b2dcb488b1572af},
    {"tales", .rope = {.window = 90, .sinks = 4}, .want = 0x913badc39bb44c68},
    {"tales", .rope = {.distance = DIST_REROPE, .reach = 70, .logn = 1, .orig_ctx = 100},
     .want = 0xfc2f4d5b7d796ad0},
    {"pe-alibi", .want = 0x4465f87c4f057839},
    {"pe-alibi", .kv = KV_Q8, .want = 0x8f809ba129fb9d5e},
    {"pe-fire", .want = 0x74ea9d4bb3a2aab5},
    {"pe-kerple", .want = 0x07b17c1af3d6677c},
    {"pe-learned", .want = 0xa7da66c61569cb9b},
    {"pe-nope", .want = 0x319edda57122d019},
    {"pe-sandwich", .want = 0x74cc48c9594285c1},
    {"pe-shaw", .want = 0x50722220975365f3},
    {"pe-sinusoidal", .want = 0x4fead494a9c936e3},
    {"pe-t5", .want = 0x596f572d166438e7},
    {"pe-xpos", .want = 0xfbb77a8a2c38a025},
};

static void test_runs(size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char what[100];
        snprintf(what, sizeof what, "run %zu, %s", i, runs[i].model);
        check_run(&runs[i], what);
    }
}

// The text that the README shows. `program` is the ./run beside this one.
static void test_demo(const char *self)
{
    static const char want[] =
        "Once upon a time, there was a little girl named Lily. She loved to play in "
        "the park with her friends. One day, she saw a new park with a big, red ball."
        " Lily was so happy and wanted to play with the ball.\n"
        "Lily took the ball to her friend Tom. Tom was a little girl who loved to "
        "play with the ball. They played together and had fun. But then, something "
        "unexpected happened. The ball started to vanish! Lily and Tom were scared. "
        "They did not know what to do.\n"
        "Then, a big bird came and picked up the ball. The bird picked up the ball "
        "and gave it back to Lily. Lily was so happy and thanked Tom for the kind of "
        "gift. From that day on, Lily and Tom played together every day, and they "
        "always had fun together.\n";
    char command[PATH_MAX + 100], text[4096];
    const char *slash = strrchr(self, '/');
    snprintf(command, sizeof command, "%.*srun models/tales.bin -i 'Once upon a time' -t 0.8 -n 200"
             " -s 7 2>&-", slash ? (int)(slash + 1 - self) : 0, self);
    FILE *f = popen(command, "r");
    size_t n = f ? fread(text, 1, sizeof text, f) : 0;
    CHECK(f && pclose(f) == 0);
    if (print) printf("%.*s", (int)n, text);
    else CHECK_TEXT(text, n, want, sizeof want - 1);
}

int main(int argc, char **argv)
{
    print = argc > 1 && !strcmp(argv[1], "print");
    if (FUSED) {
        test_words();
        test_products();
        test_runs(COUNT(runs));
        pool_start(3);
        test_products();
        test_runs(4);
        test_demo(argv[0]);
    } else printf("test_bits: not a machine with fused multiply-adds: nothing is promised\n");
    return report("test_bits");
}
