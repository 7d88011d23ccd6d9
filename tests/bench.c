// bench.c: how fast the engine is, and how fast this machine would let it be.
//
//   bench [-j N] [-r ROUNDS] limits            what memory and multipliers give, best of the rounds
//   bench [-j N] [-r ROUNDS] FILE TASK...      pN: read a prompt of N tokens; dN: decode after N
//   bench ... -q FILE TASK                     only the number, in tokens a second
//   bench ... -k q8 FILE TASK...               with a cache of another type than f16
//
// A task's time is the median of its rounds. Its share of the limit is the time that the limits
// ask for divided by the time it took: all weights and the KV cache read once a token (decode), or
// every multiplication done at peak, int8 or float as it is (prompt).
#define TESTING
#include "measure.c"

typedef struct {
    double read, f32, int8; // bytes, float operations, int8 operations a second; 0: unknown
} Limits;

static struct {
    int threads, rounds, quiet, kv;
} option = {.rounds = 5};

// ---- The machine -------------------------------------------------------------------------------

enum { READ_BYTES = 256 << 20, READ_BLOCK = 1 << 20, CHAINS = 12, STEPS = 20000, BURSTS = 200 };
static _Atomic int sink; // where results go, so that they are computed

static void read_block(void *arg, size_t block)
{
    const vi *p = (const vi *)arg + block * (READ_BLOCK / sizeof(vi));
    vi sum[8] = {{0}};
    for (size_t i = 0; i < READ_BLOCK / sizeof(vi); i += 8)
        for (int k = 0; k < 8; k++) sum[k] ^= p[i + (size_t)k];
    for (int k = 0; k < 8; k++) atomic_fetch_add(&sink, sum[k][0]);
}

static void multiply_floats(void *arg, size_t item)
{
    (void)arg, (void)item;
    vf sum[CHAINS], a = vset(0.999f), b = vset(0.001f);
    for (int k = 0; k < CHAINS; k++) sum[k] = vset((float)k);
    for (size_t i = 0; i < STEPS; i++)
        for (int k = 0; k < CHAINS; k++) sum[k] = vmuladd(sum[k], a, b);
    for (int k = 0; k < CHAINS; k++) atomic_fetch_add(&sink, (int)sum[k][0]);
}

// One instruction's worth of products of bytes and the sum it goes to: what int8 can reach, in the
// machine's own words, whatever the engine does.
static void multiply_int8(void *arg, size_t item)
{
    (void)arg, (void)item;
    vi sum[CHAINS] = {{0}}, a = 1 - (vi){0}, b = a;
    for (size_t i = 0; i < STEPS; i++)
        for (int k = 0; k < CHAINS; k++) {
            KEEP(a);
#if LANES == 16
            sum[k] = (vi)_mm512_dpbusd_epi32((mi)sum[k], (mi)a, (mi)b);
#elif LANES == 8
            sum[k] = (vi)_mm256_add_epi16((mi)sum[k], _mm256_maddubs_epi16((mi)a, (mi)b));
#else
            sum[k] += a * b;
#endif
        }
    for (int k = 0; k < CHAINS; k++) atomic_fetch_add(&sink, sum[k][0]);
}

// Seconds that the fastest of the rounds takes for n blocks.
static double best_time(size_t n, Work work, void *arg)
{
    double best = INFINITY;
    for (int i = 0; i < option.rounds; i++) {
        double start = seconds();
        parallel_for(n, 1, work, arg);
        best = fmin(best, seconds() - start);
    }
    return best;
}

static Limits measure_limits(void)
{
    Limits l = {0};
    vi *buffer = xcalloc(READ_BYTES, 1);
    size_t n = READ_BYTES / READ_BLOCK;
    memset(buffer, 1, READ_BYTES); // pages of its own
    l.read = READ_BYTES / best_time(n, read_block, buffer);
    free(buffer);
    double count = (double)BURSTS * STEPS * CHAINS * 2;
    l.f32 = count * LANES / best_time(BURSTS, multiply_floats, NULL);
    if (LANES > 4) l.int8 = count * sizeof(vi) / best_time(BURSTS, multiply_int8, NULL);
    return l;
}

// ---- The engine --------------------------------------------------------------------------------

static void run_prompt(State *s, const int *ids, size_t n)
{
    for (size_t at = 0, step; at < n; at += step) {
        step = min_size(n - at, s->chunk);
        forward(s, ids + at, step, (int64_t)at);
    }
}

enum { DECODED = 16 };

static void run_decode(State *s, const int *ids, size_t depth, float *logits)
{
    for (size_t i = 0; i < DECODED; i++) {
        forward(s, ids + i, 1, (int64_t)(depth + i));
        classify(s, 0, 1, logits);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The task's median seconds a token.
static double measure_task(State *s, int prompt, size_t n)
{
    size_t vocab = (size_t)s->attn.config.vocab_size, n_ids = n + DECODED;
    int *ids = xcalloc(n_ids, sizeof *ids);
    float *logits = xcalloc(vocab, 4);
    double *times = xcalloc((size_t)option.rounds, sizeof *times);
    uint64_t rng = seed_random(1);
    for (size_t i = 0; i < n_ids; i++) ids[i] = random_below(&rng, (int)vocab);
    for (int i = 0; i < option.rounds; i++) {
        double start = seconds();
        if (prompt) run_prompt(s, ids, n);
        else run_decode(s, ids, n, logits);
        times[i] = (seconds() - start) / (double)(prompt ? n : DECODED);
    }
    qsort(times, (size_t)option.rounds, sizeof *times, by_value);
    double median = times[option.rounds / 2];
    free(ids), free(logits), free(times);
    return median;
}

// Seconds a token that the limits ask for. Operations count multiplications and additions.
static double ideal_time(const State *s, int prompt, size_t n, const Limits *l)
{
    const Config *c = &s->attn.config;
    double dim = c->dim, kv_dim = (double)c->n_kv_heads * c->head_dim, layers = c->n_layers;
    if (!prompt) {
        double kv = layers * c->n_kv_heads * (double)(s->attn.cache.tile_bytes * n / TILE);
        return ((double)weight_bytes(s->model) + kv) / l->read;
    }
    double weights = 2 * layers * (2 * dim * dim + 2 * dim * kv_dim + 3 * dim * c->hidden_dim);
    double attention = 2 * layers * 2 * dim * (double)n / 2;
    int int8 = s->act.q && int8_group(&s->model->layers->wq) && l->int8 > 0;
    return weights / (int8 ? l->int8 : l->f32) + attention / l->f32;
}

static void run_tasks(const char *path, char **tasks, int n_tasks, const Limits *l)
{
    Model m;
    State s;
    size_t most = 0;
    model_load(&m, path);
    for (int i = 0; i < n_tasks; i++) {
        if (*tasks[i] != 'p' && *tasks[i] != 'd') die(EXIT_USAGE, tasks[i], "want pN or dN");
        most = max_size(most, (size_t)parse_number(EXIT_USAGE, tasks[i], tasks[i] + 1, 1, 0,
                                                   1 << 20));
    }
    if (option.kv < 0) die(EXIT_USAGE, "-k", "want one of %s", LIST_NAMES(kv_types));
    state_init(&s, &m, (int64_t)most + DECODED, 128, option.kv, 0);
    memset(s.attn.cache.tiles, 0x2c, s.attn.cache.bytes); // small numbers, on pages of its own
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    for (int i = 0; i < n_tasks; i++) {
        int prompt = *tasks[i] == 'p';
        size_t n = (size_t)atoll(tasks[i] + 1);
        double time = measure_task(&s, prompt, n);
        if (option.quiet) printf("%.2f\n", 1 / time);
        else
            printf("%-16s %s %6zu %10.1f tok/s %5.0f%% of the %s\n", name,
                   prompt ? "prompt of   " : "decode after", n, 1 / time,
                   100 * ideal_time(&s, prompt, n, l) / time, prompt ? "multipliers" : "bandwidth");
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    prog = "bench";
    int a = 1;
    for (; a < argc && *argv[a] == '-'; a++) {
        if (!strcmp(argv[a], "-q")) option.quiet = 1;
        else if (!strcmp(argv[a], "-j") && a + 1 < argc)
            option.threads = (int)parse_number(EXIT_USAGE, "-j", argv[++a], 1, 1, 1024);
        else if (!strcmp(argv[a], "-r") && a + 1 < argc)
            option.rounds = (int)parse_number(EXIT_USAGE, "-r", argv[++a], 1, 1, 1000);
        else if (!strcmp(argv[a], "-k") && a + 1 < argc)
            option.kv = FIND_NAME(kv_types, argv[++a]);
        else die(EXIT_USAGE, argv[a], "no such option");
    }
    if (a == argc) die(EXIT_USAGE, "usage", "bench [-j N] [-r ROUNDS] [-k f16|f32|q8] [-q] limits | FILE TASK...");
    pool_start(option.threads ? option.threads : processors());
    Limits l = {0};
    if (!option.quiet) l = measure_limits();
    if (strcmp(argv[a], "limits")) run_tasks(argv[a], argv + a + 1, argc - a - 1, &l);
    else
        printf("%d threads read %.1f GB/s; multiply %.0f GFLOP/s in float, %.0f GOP/s in int8\n",
               pool.n_threads, l.read / 1e9, l.f32 / 1e9, l.int8 / 1e9);
    return 0;
}
