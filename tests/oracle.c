/* oracle.c: a slow second opinion on run.c's per-token losses, in float64.
 *
 *     oracle MODEL RUN.tsv [flags]     recompute every window of RUN.tsv and compare
 *     oracle --self-test MODEL         identities between methods, on a RoPE model
 *
 * RUN.tsv is what `run -m perplexity --tsv` writes: a header line that names at least the columns
 * window, position, token and nll, then one row a prediction. position is that of the query
 * (0-based), token is the id predicted. A window starts with BOS (--bos N, or --first N for a model
 * without one); after that each row's token is the next input. Every window must hold its positions
 * 0..n-1. --print writes this program's own rows instead; --entropy compares that column too;
 * --tol-max and --tol-mean bound the difference. All other flags name a method and mean what they
 * mean to run.c.
 *
 * Nothing is shared with run.c. A window is evaluated layer by layer from the definitions: nothing
 * is cached but cos and sin, nothing is fused, every number is a double. Query i scores key j as
 *
 *     a^2 / sqrt(d) * sum_m zeta_m^(D/512) Re[ q_m conj(k_m) exp(i D theta_m) ]  +  bias_h(i, D)
 *
 * with pair m = (2m, 2m+1) of a head of size d read as a complex number, the distance D(i, j), the
 * scaled frequencies theta_m, the attention factor a, and zeta = 1 except for xPos. Encodings that
 * do not rotate have theta = 0 and a = 1. Shapes are row-major and weights are (out, in); L is the
 * original context, s the factor, H the number of heads.
 */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

/* ---- Errors, memory, numbers ----------------------------------------------------------------- */

/* One line on stderr, then exit: 1 for a bad file, 2 for bad usage. */
static void die(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("oracle: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(status);
}

/* Every allocation is on one list, the newest first; release(mark) frees those newer than mark. */
typedef union Block { union Block *next; max_align_t align; } Block;
static Block *blocks;

static void *allocate(size_t count, size_t size) {
    Block *b = calloc(1, sizeof *b + count * size);
    if (!b) die(1, "out of memory (%zu x %zu bytes)", count, size);
    b->next = blocks;
    blocks = b;
    return b + 1;
}

static void release(Block *mark) {
    while (blocks != mark) {
        Block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

static double *doubles(size_t count) { return allocate(count, sizeof(double)); }

/* Row i of a matrix with so many columns. */
static double *row(double *x, int i, int columns) { return x + (size_t)i * columns; }

static double number(const char *name, const char *text, double min, double max) {
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !(x >= min && x <= max))
        die(2, "%s: not a number in range (got %s, want %g to %g)", name, text, min, max);
    return x;
}

static int whole(const char *name, const char *text) {
    double x = number(name, text, 0, INT_MAX);
    if (x != floor(x)) die(2, "%s: not a whole number (got %s)", name, text);
    return (int)x;
}

/* The whole file with a zero byte after it. */
static unsigned char *read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    long n = f && !fseek(f, 0, SEEK_END) ? ftell(f) : -1;
    if (n < 0 || n == LONG_MAX) die(1, "%s: %s", path, f ? "not a plain file" : strerror(errno));
    unsigned char *data = allocate((size_t)n + 1, 1);
    rewind(f);
    if (fread(data, 1, (size_t)n, f) != (size_t)n) die(1, "%s: cannot be read", path);
    fclose(f);
    *size = (size_t)n;
    return data;
}

/* ---- The model file -------------------------------------------------------------------------- */

enum { ROPE, NOPE, SINUSOIDAL, LEARNED, ALIBI, T5, XPOS, KERPLE, FIRE, SHAW, SANDWICH, N_ENCODINGS };
enum { NONE, LINEAR, NTK, DYNAMIC, BY_PARTS, YARN, LLAMA3, LONGROPE, N_SCALINGS };
enum { FULL, SELF_EXTEND, REROPE, LEAKY, STRING, DUAL_CHUNK };
enum { FIRE_HIDDEN = 32 };

/* How positions are treated: from the model file, each field replaced by its flag. 0 is unset. */
typedef struct {
    int scaling, map;               /* one of the two lists above */
    double theta, factor, orig_ctx, attn_factor, beta_fast, beta_slow, low_freq, high_freq;
    double window, sinks, logn, ctx; /* ctx: the context asked for, only for the default factor */
    double map_window, group, leak; /* W of a distance map; self-extend's G; leaky-rerope's k */
    double chunk, shift;            /* dual-chunk's C; string's W, whose S is map_window */
    double temp, temp_ctx;          /* attention temperature: B and L0 */
    double fraction;                /* of the pairs that turn; 0: all */
    double *short_list, *long_list; /* longrope, [d/2] each */
} Method;

/* The numbers in Method: flag, offset in the file's header (0: not there), kind, place. */
static const struct { const char *flag; int at; char kind; size_t field; } fields[] = {
    {"--rope-theta", 76, 'f', offsetof(Method, theta)},
    {"--rope-factor", 88, 'f', offsetof(Method, factor)},
    {"--rope-orig-ctx", 92, 'i', offsetof(Method, orig_ctx)},
    {"--rope-attn-factor", 96, 'f', offsetof(Method, attn_factor)},
    {"--beta-fast", 100, 'f', offsetof(Method, beta_fast)},
    {"--beta-slow", 104, 'f', offsetof(Method, beta_slow)},
    {"--low-freq-factor", 108, 'f', offsetof(Method, low_freq)},
    {"--high-freq-factor", 112, 'f', offsetof(Method, high_freq)},
    {"--window", 116, 'i', offsetof(Method, window)},
    {"--sinks", 120, 'i', offsetof(Method, sinks)},
    {"--logn", 124, 'i', offsetof(Method, logn)}, /* as a flag it has no value: see flags() */
    {"-c", 0, 'i', offsetof(Method, ctx)},
};
enum { N_FIELDS = sizeof fields / sizeof *fields };

static double *field_of(Method *t, int i) { return (double *)((char *)t + fields[i].field); }

typedef struct {
    int version, dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len;
    int head_dim, kv_dim, group_size, separate_classifier;
    int encoding, train_ctx, rows, max_distance; /* rows: learned's rows, shaw's K, t5's buckets */
    double norm_eps;
    double **tok_emb, **classifier, **final_norm; /* lists of one: [vocab][dim] twice, [dim] */
    double **att_norm, **ffn_norm;                /* lists by layer: [dim] each */
    double **wq, **wk, **wv, **wo;                /* [dim|kv_dim|kv_dim|dim][dim] */
    double **w1, **w2, **w3;                      /* gate [hidden][dim], down [dim][hidden], up */
    double *table;   /* learned [rows][dim], t5 [rows][H], shaw [K+1][d] */
    double *r1, *r2; /* kerple, [H] each */
    double *fire, *fire_w1, *fire_b1, *fire_w2, *fire_b2; /* {c, T}, [32], [32], [H][32], [H] */
    Method method;
} Model;

typedef struct { const char *path; const unsigned char *data; size_t size, at; } Cursor;

static int i32_at(const unsigned char *p) {
    return (int)(int32_t)(p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

static double f32_at(const unsigned char *p) {
    int32_t bits = i32_at(p);
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static const unsigned char *take(Cursor *c, size_t count, size_t size) {
    if (count > (c->size - c->at) / size)
        die(1, "%s: too short (want %zu x %zu bytes at %zu)", c->path, count, size, c->at);
    c->at += count * size;
    return c->data + c->at - count * size;
}

/* n numbers: f32 if group is 0, else n int8 and then n/group f32 scales over the flat tensor. */
static double *take_numbers(Cursor *c, size_t n, int group) {
    if (group && n % group) die(1, "%s: %zu weights are no groups of %d", c->path, n, group);
    const unsigned char *p = take(c, n, group ? 1 : 4), *scales = NULL;
    double *x = doubles(n);
    if (group) scales = take(c, n / group, 4);
    for (size_t i = 0; i < n; i++)
        x[i] = group ? (signed char)p[i] * f32_at(scales + 4 * (i / group)) : f32_at(p + 4 * i);
    return x;
}

/* One tensor (out, in) for each of so many layers. */
static double **take_layers(Cursor *c, int layers, int out, int in, int group) {
    double **list = allocate((size_t)layers, sizeof *list);
    for (int l = 0; l < layers; l++) list[l] = take_numbers(c, (size_t)out * in, group);
    return list;
}

/* A letter for each kind of weight, in the file's order; v0 has two unused tables after its own. */
static void take_weights(Cursor *c, Model *m) {
    int D = m->dim, L = m->n_layers, g = m->group_size;
    for (const char *p = m->version ? "afneqkvo123" : "eaqkvof123n"; *p; p++) {
        if (*p == 'e') m->tok_emb = take_layers(c, 1, m->vocab_size, D, g);
        if (*p == 'a') m->att_norm = take_layers(c, L, 1, D, 0);
        if (*p == 'f') m->ffn_norm = take_layers(c, L, 1, D, 0);
        if (*p == 'n') m->final_norm = take_layers(c, 1, 1, D, 0);
        if (*p == 'q') m->wq = take_layers(c, L, D, D, g);
        if (*p == 'k') m->wk = take_layers(c, L, m->kv_dim, D, g);
        if (*p == 'v') m->wv = take_layers(c, L, m->kv_dim, D, g);
        if (*p == 'o') m->wo = take_layers(c, L, D, D, g);
        if (*p == '1') m->w1 = take_layers(c, L, m->hidden_dim, D, g);
        if (*p == '2') m->w2 = take_layers(c, L, D, m->hidden_dim, g);
        if (*p == '3') m->w3 = take_layers(c, L, m->hidden_dim, D, g);
    }
    if (m->version == 0) take(c, (size_t)m->max_seq_len * (m->head_dim / 2), 2 * 4);
    m->classifier = m->separate_classifier ? take_layers(c, 1, m->vocab_size, D, g) : m->tok_emb;
}

/* The f32 tables of encodings that learned something, then longrope's lists; the file ends. */
static void take_tables(Cursor *c, Model *m) {
    size_t H = (size_t)m->n_heads, d = (size_t)m->head_dim, rows = (size_t)m->rows;
    if (m->encoding == LEARNED) m->table = take_numbers(c, rows * m->dim, 0);
    if (m->encoding == T5) m->table = take_numbers(c, rows * H, 0);
    if (m->encoding == SHAW) m->table = take_numbers(c, (rows + 1) * d, 0);
    if (m->encoding == KERPLE) {
        m->r1 = take_numbers(c, H, 0);
        m->r2 = take_numbers(c, H, 0);
    }
    if (m->encoding == FIRE) {
        m->fire = take_numbers(c, 2, 0);
        m->fire_w1 = take_numbers(c, FIRE_HIDDEN, 0);
        m->fire_b1 = take_numbers(c, FIRE_HIDDEN, 0);
        m->fire_w2 = take_numbers(c, H * FIRE_HIDDEN, 0);
        m->fire_b2 = take_numbers(c, H, 0);
    }
    if (m->method.scaling == LONGROPE) {
        m->method.short_list = take_numbers(c, d / 2, 0);
        m->method.long_list = take_numbers(c, d / 2, 0);
    }
}

/* The seven sizes at p, and those that follow from them. */
static void read_sizes(const unsigned char *p, const char *path, Model *m) {
    int *size[7] = {&m->dim, &m->hidden_dim, &m->n_layers, &m->n_heads, &m->n_kv_heads,
                    &m->vocab_size, &m->max_seq_len};
    for (int i = 0; i < 7; i++) {
        *size[i] = i32_at(p + 4 * i);
        if (i == 5 && m->version == 0 && *size[i] < 0 && *size[i] > -INT_MAX) {
            m->separate_classifier = 1;
            *size[i] = -*size[i];
        }
        if (*size[i] < 1 || *size[i] > 1 << 24) die(1, "%s: bad size %d: %d", path, i, *size[i]);
    }
    if (m->dim % m->n_heads || m->n_heads % m->n_kv_heads) die(1, "%s: heads do not divide", path);
    m->head_dim = m->dim / m->n_heads;
    m->kv_dim = m->head_dim * m->n_kv_heads;
    m->train_ctx = m->max_seq_len;
}

/* v0 is seven int32 and no more; the others have 256 bytes, with an optional block EXT1 at 64. */
static void take_header(Cursor *c, Model *m) {
    m->norm_eps = 1e-5;
    m->method.theta = 10000;
    if (c->size < 4 || i32_at(c->data) != 0x616b3432) {
        read_sizes(take(c, 7, 4), c->path, m);
        return;
    }
    const unsigned char *h = take(c, 1, 256);
    m->version = i32_at(h + 4);
    if (m->version != 1 && m->version != 2 && m->version != 101 && m->version != 102)
        die(1, "%s: unknown version %d", c->path, m->version);
    read_sizes(h + 8, c->path, m);
    m->separate_classifier = !h[36];
    if (m->version % 100 == 2 && (m->group_size = i32_at(h + 37)) < 1)
        die(1, "%s: bad group size", c->path);
    if (memcmp(h + 64, "EXT1", 4)) return;
    m->encoding = i32_at(h + 68);
    m->train_ctx = i32_at(h + 72);
    m->norm_eps = f32_at(h + 80);
    m->method.scaling = i32_at(h + 84);
    m->rows = i32_at(h + 128);
    m->max_distance = i32_at(h + 132);
    for (int i = 0; i < N_FIELDS; i++) {
        const unsigned char *p = h + fields[i].at;
        if (fields[i].at) *field_of(&m->method, i) = fields[i].kind == 'f' ? f32_at(p) : i32_at(p);
    }
}

static int is_rotary(const Model *m) { return m->encoding == ROPE || m->encoding == XPOS; }

static Model *load_model(const char *path) {
    Model *m = allocate(1, sizeof *m);
    Cursor c = {.path = path};
    c.data = read_file(path, &c.size);
    take_header(&c, m);
    if (m->encoding < 0 || m->encoding >= N_ENCODINGS || m->method.scaling < 0 ||
        m->method.scaling >= N_SCALINGS || m->train_ctx < 1 || m->rows < 0 || m->rows > 1 << 24 ||
        !(m->norm_eps > 0))
        die(1, "%s: bad extension block", path);
    if (is_rotary(m) && m->head_dim % 2) die(1, "%s: odd head size %d", path, m->head_dim);
    if (m->encoding == T5 && (m->rows < 2 || m->rows % 2 || m->max_distance <= m->rows / 2))
        die(1, "%s: bad t5 buckets (%d, distance %d)", path, m->rows, m->max_distance);
    take_weights(&c, m);
    take_tables(&c, m);
    if (c.at != c.size) die(1, "%s: %zu bytes left over", path, c.size - c.at);
    return m;
}

/* ---- The method: flags, defaults, what goes together ----------------------------------------- */

/* count positive numbers, separated by blanks or commas. */
static double *read_list(const char *path, int count) {
    size_t size;
    char *p = (char *)read_file(path, &size);
    double *list = doubles((size_t)count + 1);
    for (int n = 0;; n++) {
        p += strspn(p, ", \t\r\n");
        if (!*p && n == count) return list;
        char *end;
        list[n] = strtod(p, &end);
        if (end == p || !(list[n] > 0) || n == count)
            die(1, "%s: want %d positive numbers", path, count);
        p = end;
    }
}

static int scaling_by_name(const char *name) {
    static const char *names[N_SCALINGS] = {"none",     "linear", "ntk",    "dynamic",
                                            "by-parts", "yarn",   "llama3", "longrope"};
    for (int i = 0; i < N_SCALINGS; i++)
        if (!strcmp(name, names[i])) return i;
    if (strcmp(name, "pi")) die(2, "--rope-scaling: unknown method (got %s)", name);
    return LINEAR;
}

/* --rerope W, --self-extend G:W, --leaky-rerope W:k, --string S:W, --dual-chunk C:W. */
static void set_map(Method *t, int map, const char *name, const char *value) {
    const char *colon = strchr(value, ':');
    char first[32] = "";
    if (t->map != FULL) die(2, "%s: only one distance map at a time", name);
    if ((map == REROPE) != !colon) die(2, "%s: want %s (got %s)", name, colon ? "W" : "A:B", value);
    snprintf(first, sizeof first, "%.*s", colon ? (int)(colon - value) : 31, value);
    t->map = map;
    if (map == SELF_EXTEND) t->group = number(name, first, 1, INT_MAX);
    if (map == DUAL_CHUNK) t->chunk = whole(name, first);
    if (map == STRING) t->shift = whole(name, colon + 1);
    t->map_window = whole(name, map == SELF_EXTEND || map == DUAL_CHUNK ? colon + 1 : first);
    if (map == LEAKY) t->leak = number(name, colon + 1, 1e-9, 1e300);
    if (t->group != floor(t->group)) die(2, "%s: not a whole number (got %s)", name, value);
}

/* One flag with its value. Returns 0 if it is no flag of a method. */
static int set_flag(const Model *m, Method *t, const char *name, const char *value) {
    static const char *maps[] = {"", "--self-extend", "--rerope", "--leaky-rerope", "--string",
                                 "--dual-chunk"};
    for (int i = 0; i < N_FIELDS; i++)
        if (!strcmp(name, fields[i].flag)) {
            int real = fields[i].kind == 'f';
            *field_of(t, i) = real ? number(name, value, 1e-12, 1e12) : whole(name, value);
            return 1;
        }
    for (int i = SELF_EXTEND; i <= DUAL_CHUNK; i++)
        if (!strcmp(name, maps[i])) return set_map(t, i, name, value), 1;
    if (!strcmp(name, "--rope-fraction")) t->fraction = number(name, value, 1e-9, 1);
    else if (!strcmp(name, "--attn-temp")) {
        const char *colon = strchr(value, ':');
        if (!colon) die(2, "%s: want B:L0 (got %s)", name, value);
        t->temp = strtod(value, NULL);
        t->temp_ctx = whole(name, colon + 1);
    } else if (!strcmp(name, "--rope-scaling")) t->scaling = scaling_by_name(value);
    else if (!strcmp(name, "--long-factors")) t->long_list = read_list(value, m->head_dim / 2);
    else if (!strcmp(name, "--short-factors")) t->short_list = read_list(value, m->head_dim / 2);
    else return 0;
    return 1;
}

/* Fills what is unset and refuses what is not defined. */
static void finish_method(const Model *m, Method *t) {
    int e = m->encoding, absolute = e == NOPE || e == SINUSOIDAL || e == LEARNED;
    if (!t->orig_ctx) t->orig_ctx = m->train_ctx;
    if (!t->ctx) t->ctx = m->train_ctx;
    if (!t->factor) t->factor = t->scaling == DYNAMIC ? 1 : fmax(1, t->ctx / t->orig_ctx);
    if (!t->beta_fast) t->beta_fast = 32;
    if (!t->beta_slow) t->beta_slow = 1;
    if (!t->low_freq) t->low_freq = 1;
    if (!t->high_freq) t->high_freq = 4;
    for (int i = 0; i < N_FIELDS; i++)
        if (!(*field_of(t, i) >= 0)) die(2, "%s: want a positive number", fields[i].flag);
    if (is_rotary(m) && !t->theta) die(2, "--rope-theta: want a positive base");
    if (t->scaling == LONGROPE && (!t->short_list || !t->long_list))
        die(2, "longrope: want both lists");
    if ((t->logn || t->scaling == LONGROPE) && t->orig_ctx < 2)
        die(2, "--rope-orig-ctx: want at least 2");
    if (t->sinks && (!t->window || t->map != FULL))
        die(2, "--sinks: want --window and no distance map");
    if (absolute && t->map != FULL) die(2, "distance map: the encoding uses no distance");
    if (!is_rotary(m) && t->attn_factor) die(2, "--rope-attn-factor: wants a rotary encoding");
    if ((!is_rotary(m) && t->scaling != NONE && t->scaling != LINEAR) ||
        (t->scaling == LINEAR && (e == NOPE || e == FIRE || e == SHAW || e == SANDWICH)))
        die(2, "--rope-scaling: not defined for this encoding");
}

/* ---- Frequencies ----------------------------------------------------------------------------- */

/* The base that stretches the lowest frequency by s: base * s^(d/(d-2)). */
static double ntk_base(double base, double s, int d) {
    return d > 2 ? base * pow(s, d / (d - 2.0)) : base;
}

/* by-parts: g_m = 1 - clamp((m-low)/(high-low), 0, 1) over the pair index m; 1 keeps, 0 divides.
 * low and high come from c(r) = d ln(L/(2 pi r)) / (2 ln base): the pair with r turns in L. */
static double by_parts_ramp(const Method *t, int d, int m) {
    double per_log = d / (2 * log(t->theta));
    double low = fmax(floor(per_log * log(t->orig_ctx / (2 * PI * t->beta_fast))), 0);
    double high = fmin(ceil(per_log * log(t->orig_ctx / (2 * PI * t->beta_slow))), d - 1);
    if (high == low) high += 0.001;
    return 1 - fmin(fmax((m - low) / (high - low), 0), 1);
}

/* llama3: by the wavelength w = 2 pi/theta. Short waves stay, long ones are divided by s, and
 * those between get a blend. */
static double llama3_frequency(const Method *t, double theta) {
    double w = 2 * PI / theta, L = t->orig_ctx;
    if (w < L / t->high_freq) return theta;
    if (w > L / t->low_freq) return theta / t->factor;
    double blend = (L / w - t->low_freq) / (t->high_freq - t->low_freq);
    return (1 - blend) * theta / t->factor + blend * theta;
}

/* theta[d/2]: radians a token for each pair, for a query whose text has n tokens. */
static void scaled_frequencies(const Method *t, int d, int n, double *theta) {
    double base = t->theta, s = t->factor, L = t->orig_ctx;
    if (t->scaling == NTK) base = ntk_base(base, s, d);
    if (t->scaling == DYNAMIC && n > L) base = ntk_base(base, fmax(1, s * n / L - (s - 1)), d);
    for (int m = 0; m < d / 2; m++) {
        double plain = pow(base, -2.0 * m / d), g;
        theta[m] = plain;
        if (t->scaling == LINEAR) theta[m] = plain / s;
        if (t->scaling == BY_PARTS || t->scaling == YARN) {
            g = by_parts_ramp(t, d, m);
            theta[m] = plain / s * (1 - g) + plain * g;
        }
        if (t->scaling == LLAMA3) theta[m] = llama3_frequency(t, plain);
        if (t->scaling == LONGROPE) theta[m] = plain / (n > L ? t->long_list : t->short_list)[m];
        if (t->fraction && m >= floor(t->fraction * d / 2 + 1e-9)) theta[m] = 0;
    }
}

/* a, which multiplies q and k both: the score carries a^2. */
static double attention_factor(const Method *t) {
    if (t->attn_factor) return t->attn_factor;
    if (t->factor <= 1) return 1;
    if (t->scaling == YARN) return 0.1 * log(t->factor) + 1;
    if (t->scaling == LONGROPE) return sqrt(1 + log(t->factor) / log(t->orig_ctx));
    return 1;
}

/* ---- Distance and mask ----------------------------------------------------------------------- */

/* Whether query i sees key j <= i; *D is then their distance in tokens. */
static int sees(const Method *t, int i, int j, double *D) {
    double W = t->map_window, G = t->group, C = t->chunk;
    *D = i - j;
    if (t->window && i - j >= t->window) {
        if (j >= t->sinks) return 0;
        *D = fmin(i, t->sinks + t->window - 1) - j;
    }
    if (t->map == DUAL_CHUNK) {
        double behind = floor(i / C) - floor(j / C); /* chunks between them */
        if (behind == 1) *D = fmin(fmod(i, C) + C, C + W) - fmod(j, C);
        if (behind > 1) *D = fmin(2 * C - 1, C + W) - fmod(j, C);
        return 1;
    }
    if (t->map == FULL || i - j < W) return 1;
    if (t->map == STRING) *D = i - j - W + t->shift;
    if (t->map == SELF_EXTEND) *D = floor(i / G) - floor(j / G) + W - floor(W / G);
    if (t->map == REROPE) *D = W;
    if (t->map == LEAKY) *D = W + (i - j - W) / t->leak;
    return 1;
}

/* ---- Bias: what encodings that do not rotate add to the score -------------------------------- */

/* ALiBi: 2^(-8(h+1)/H) for H a power of two, else the slopes of the power of two P below H and then
 * every second slope of 2P: numbers 0, 2, 4 ... of that list. */
static double alibi_slope(int h, int H) {
    int P = 1;
    while (2 * P <= H) P *= 2;
    return h < P ? exp2(-8.0 * (h + 1) / P) : exp2(-8.0 * (2 * (h - P) + 1) / (2 * P));
}

/* T5's causal bucket of distance n, perhaps a fraction: exact below B/2, then logarithmic. The tiny
 * term keeps a distance exactly on a bucket's edge in the upper bucket. */
static int t5_bucket(double n, int B, int max_distance) {
    int half = B / 2;
    if (n < half) return (int)floor(n);
    double steps = floor(log(n / half) / log((double)max_distance / half) * half + 1e-9);
    return (int)fmin(B - 1, half + steps);
}

/* FIRE: bias[h] = MLP(psi(D) / psi(max(i, T)))_h psi(x) = ln(c x + 1), MLP 1 -> 32 -> H, ReLU. */
static void fire_bias(const Model *m, int i, double D, double *bias) {
    double c = m->fire[0], T = m->fire[1], x = log(c * D + 1) / log(c * fmax(i, T) + 1);
    memcpy(bias, m->fire_b2, (size_t)m->n_heads * sizeof *bias);
    for (int u = 0; u < FIRE_HIDDEN; u++) {
        double hidden = fmax(0, m->fire_w1[u] * x + m->fire_b1[u]);
        for (int h = 0; h < m->n_heads; h++) bias[h] += m->fire_w2[h * FIRE_HIDDEN + u] * hidden;
    }
}

/* bias[H] of query i at distance D. Shaw's term needs q and is added with the score. */
static void pair_bias(const Model *m, const Method *t, int i, double D, double *bias) {
    int H = m->n_heads;
    double r = t->scaling == LINEAR ? D / t->factor : D;
    for (int h = 0; h < H; h++) {
        bias[h] = 0;
        if (m->encoding == ALIBI) bias[h] = -alibi_slope(h, H) * r;
        if (m->encoding == T5)
            bias[h] = row(m->table, t5_bucket(r, m->rows, m->max_distance), H)[h];
        if (m->encoding == KERPLE) bias[h] = -m->r1[h] * log(1 + m->r2[h] * r);
        for (int k = 0; m->encoding == SANDWICH && k < 64; k++)
            bias[h] += cos(r / pow(10000, 2.0 * k / 128)) / (8.0 * (h + 1) / H);
    }
    if (m->encoding == FIRE) fire_bias(m, i, D, bias);
}

/* ---- Forward --------------------------------------------------------------------------------- */

/* A key that the present query sees; phase[d/2][2] is zeta^(D/512) times cos and sin of D theta. */
typedef struct { int key; double D; const double *phase; double *bias; } Pair;

/* A prediction: the token after position, its loss and the attention's entropy there, in nats. */
typedef struct { int window, position, token; double nll, entropy; } Row;

/* One window of n tokens under way; d is the head size. */
typedef struct {
    const Model *model;
    const Method *method;
    Row *rows;                   /* [n] */
    int n, n_phases;             /* tokens; rows of phases filled so far */
    double *x, *q, *k, *v, *out; /* x, q, out [n][dim]; k, v [n][kv_dim] */
    double *theta, *new_theta;   /* [d/2]: the frequencies that phases hold; scratch */
    double *phases, *fractions;  /* [n][d]: by whole distance; by pair for other distances */
    double *bias, *scores;       /* [n][H]; [n] */
    Pair *pairs;                 /* [n] */
} Window;

static void fill_phase(const Window *w, double D, double *phase) {
    int d = w->model->head_dim;
    for (int m = 0; m < d / 2; m++) {
        double decay = w->model->encoding == XPOS ? pow((2.0 * m / d + 0.4) / 1.4, D / 512) : 1;
        phase[2 * m] = decay * cos(D * w->theta[m]);
        phase[2 * m + 1] = decay * sin(D * w->theta[m]);
    }
}

/* The phases at distance D: from the table if D is whole, else worked out in scratch[d]. */
static const double *phase_at(Window *w, double D, double *scratch) {
    int d = w->model->head_dim;
    if (D != floor(D) || D < 0 || D >= w->n) return fill_phase(w, D, scratch), scratch;
    for (; w->n_phases <= D; w->n_phases++)
        fill_phase(w, w->n_phases, row(w->phases, w->n_phases, d));
    return row(w->phases, (int)D, d);
}

/* Lists the keys of query i in pairs[]; returns how many. New frequencies empty the phase table. */
static int list_pairs(Window *w, int i) {
    const Model *m = w->model;
    int count = 0, d = m->head_dim;
    size_t bytes = (size_t)(d / 2) * sizeof(double);
    if (is_rotary(m)) {
        int length = w->method->scaling == LONGROPE ? w->n + 1 : i + 1; // of the whole text
        scaled_frequencies(w->method, d, length, w->new_theta);
        if (memcmp(w->theta, w->new_theta, bytes)) w->n_phases = 0;
        memcpy(w->theta, w->new_theta, bytes);
    }
    for (int j = 0; j <= i; j++) {
        Pair *p = &w->pairs[count];
        if (!sees(w->method, i, j, &p->D)) continue;
        p->key = j;
        p->bias = row(w->bias, count, m->n_heads);
        if (is_rotary(m)) p->phase = phase_at(w, p->D, row(w->fractions, count, d));
        pair_bias(m, w->method, i, p->D, p->bias);
        count++;
    }
    return count;
}

/* q, k [d]: sum_m Re[ q_m conj(k_m) phase_m ], or plain q.k without a phase. */
static double match(const double *q, const double *k, const double *phase, int d) {
    double sum = 0;
    for (int e = 0; !phase && e < d; e++) sum += q[e] * k[e];
    for (int e = 0; phase && e < d; e += 2) {
        double re = q[e] * k[e] + q[e + 1] * k[e + 1], im = q[e + 1] * k[e] - q[e] * k[e + 1];
        sum += re * phase[e] - im * phase[e + 1];
    }
    return sum;
}

/* scores[count] become probabilities; returns their entropy, ln Z - sum p (score - max). */
static double softmax(double *scores, int count) {
    double max = -INFINITY, Z = 0, mean = 0;
    for (int c = 0; c < count; c++) max = fmax(max, scores[c]);
    for (int c = 0; c < count; c++) Z += exp(scores[c] - max);
    for (int c = 0; c < count; c++) {
        double p = exp(scores[c] - max) / Z;
        mean += p * (scores[c] - max);
        scores[c] = p;
    }
    return log(Z) - mean;
}

/* Row i of out[n][dim]: the heads side by side, each sum_j softmax_j(score) v_j. */
static void attend(Window *w, int i) {
    const Model *m = w->model;
    const Method *t = w->method;
    int count = list_pairs(w, i), d = m->head_dim;
    double a = is_rotary(m) ? attention_factor(t) : 1, scale = a * a / sqrt(d);
    if (t->logn) scale *= fmax(1, log(i + 1) / log(t->orig_ctx));
    if (t->temp) scale *= 1 + t->temp * log(1 + floor((i + 1) / t->temp_ctx));
    for (int h = 0; h < m->n_heads; h++) {
        const double *q = row(w->q, i, m->dim) + h * d;
        double *out = row(w->out, i, m->dim) + h * d;
        int kv = h / (m->n_heads / m->n_kv_heads) * d; /* this head's place in a row of k and v */
        for (int c = 0; c < count; c++) {
            const Pair *p = &w->pairs[c];
            double score = match(q, row(w->k, p->key, m->kv_dim) + kv, p->phase, d);
            if (m->encoding == SHAW)
                score += match(q, row(m->table, (int)fmin(floor(p->D), m->rows), d), NULL, d);
            w->scores[c] = scale * score + p->bias[h];
        }
        w->rows[i].entropy += softmax(w->scores, count) / ((double)m->n_layers * m->n_heads);
        memset(out, 0, (size_t)d * sizeof *out);
        for (int c = 0; c < count; c++) {
            const double *v = row(w->v, w->pairs[c].key, m->kv_dim) + kv;
            for (int e = 0; e < d; e++) out[e] += w->scores[c] * v[e];
        }
    }
}

/* y[out] = W[out][in] x[in]. */
static void matvec(double *y, double *W, const double *x, int out, int in) {
    for (int r = 0; r < out; r++) y[r] = match(row(W, r, in), x, NULL, in);
}

/* y[dim] = x / sqrt(mean(x^2) + eps) * weight. */
static void rmsnorm(double *y, const double *x, const double *weight, const Model *m) {
    double root = sqrt(match(x, x, NULL, m->dim) / m->dim + m->norm_eps);
    for (int c = 0; c < m->dim; c++) y[c] = x[c] / root * weight[c];
}

/* x[dim] += PE(p) for the two encodings that enter here, at position p/s under linear. */
static void add_absolute(const Model *m, const Method *t, int position, double *x) {
    double p = t->scaling == LINEAR ? position / t->factor : position;
    int low = (int)floor(p), high = low + 1 < m->rows ? low + 1 : low;
    if (m->encoding == LEARNED && p >= m->rows)
        die(1, "position %d is past the learned table (%d rows)", position, m->rows);
    for (int c = 0; c < m->dim; c++) {
        double angle = p / pow(10000, (double)(c - c % 2) / m->dim);
        if (m->encoding == SINUSOIDAL) x[c] += c % 2 ? cos(angle) : sin(angle);
        if (m->encoding == LEARNED)
            x[c] += (1 - (p - low)) * row(m->table, low, m->dim)[c] +
                    (p - low) * row(m->table, high, m->dim)[c];
    }
}

/* x[dim] += w2 (silu(w1 y) * w3 y) with y = rmsnorm(x); scratch[2*dim + 2*hidden_dim]. */
static void feed_forward(const Model *m, int l, double *x, double *scratch) {
    double *y = scratch, *down = y + m->dim, *gate = down + m->dim, *up = gate + m->hidden_dim;
    rmsnorm(y, x, m->ffn_norm[l], m);
    matvec(gate, m->w1[l], y, m->hidden_dim, m->dim);
    matvec(up, m->w3[l], y, m->hidden_dim, m->dim);
    for (int u = 0; u < m->hidden_dim; u++) gate[u] *= up[u] / (1 + exp(-gate[u]));
    matvec(down, m->w2[l], gate, m->dim, m->hidden_dim);
    for (int c = 0; c < m->dim; c++) x[c] += down[c];
}

/* Layer l for all positions: x += wo attention(rmsnorm(x)), then the feed-forward part. */
static void layer(Window *w, int l, double *scratch) {
    const Model *m = w->model;
    for (int i = 0; i < w->n; i++) {
        rmsnorm(scratch, row(w->x, i, m->dim), m->att_norm[l], m);
        matvec(row(w->q, i, m->dim), m->wq[l], scratch, m->dim, m->dim);
        matvec(row(w->k, i, m->kv_dim), m->wk[l], scratch, m->kv_dim, m->dim);
        matvec(row(w->v, i, m->kv_dim), m->wv[l], scratch, m->kv_dim, m->dim);
    }
    for (int i = 0; i < w->n; i++) {
        double *x = row(w->x, i, m->dim);
        attend(w, i);
        matvec(scratch, m->wo[l], row(w->out, i, m->dim), m->dim, m->dim);
        for (int c = 0; c < m->dim; c++) x[c] += scratch[c];
        feed_forward(m, l, x, scratch);
    }
}

/* -ln p(target) from x[dim], the last layer's output: logits = classifier rmsnorm(x).
 * scratch[dim + vocab_size]. */
static double token_loss(const Model *m, const double *x, int target, double *scratch) {
    double *logits = scratch + m->dim, max = -INFINITY, Z = 0;
    rmsnorm(scratch, x, m->final_norm[0], m);
    matvec(logits, m->classifier[0], scratch, m->vocab_size, m->dim);
    for (int c = 0; c < m->vocab_size; c++) max = fmax(max, logits[c]);
    for (int c = 0; c < m->vocab_size; c++) Z += exp(logits[c] - max);
    return max + log(Z) - logits[target];
}

/* Fills nll and entropy of rows[n], one window whose first input is the token first. */
static void evaluate(const Model *m, const Method *t, int first, Row *rows, int n) {
    Block *mark = blocks;
    size_t N = (size_t)n, d = (size_t)m->head_dim, dim = (size_t)m->dim;
    Window w = {.model = m, .method = t, .rows = rows, .n = n, .x = doubles(N * dim),
                .q = doubles(N * dim), .k = doubles(N * m->kv_dim), .v = doubles(N * m->kv_dim),
                .out = doubles(N * dim),
                .theta = doubles(d), .new_theta = doubles(d), .phases = doubles(N * d),
                .fractions = doubles(N * d), .bias = doubles(N * m->n_heads), .scores = doubles(N),
                .pairs = allocate(N, sizeof(Pair))};
    double *scratch = doubles(2 * dim + 2 * (size_t)m->hidden_dim + m->vocab_size);
    for (int i = 0; i < n; i++) {
        int token = i ? rows[i - 1].token : first;
        memcpy(row(w.x, i, m->dim), row(m->tok_emb[0], token, m->dim), dim * sizeof(double));
        add_absolute(m, t, i, row(w.x, i, m->dim));
        rows[i].entropy = 0;
    }
    for (int l = 0; l < m->n_layers; l++) layer(&w, l, scratch);
    for (int i = 0; i < n; i++)
        rows[i].nll = token_loss(m, row(w.x, i, m->dim), rows[i].token, scratch);
    release(mark);
}

/* ---- Compare with a run ---------------------------------------------------------------------- */

/* The rows of a TSV file, their number, and whether it has the column entropy. */
static Row *read_rows(const char *path, int *count, int *has_entropy) {
    static const char *names[5] = {"window", "position", "token", "nll", "entropy"};
    int column[5] = {-1, -1, -1, -1, -1}, lines = 0, n = 0;
    size_t size;
    char *p = (char *)read_file(path, &size);
    for (size_t i = 0; i < size; i++) lines += p[i] == '\n';
    Row *rows = allocate((size_t)lines + 1, sizeof *rows);
    for (int header = 1; *p; header = 0) {
        char *value[5] = {"-1", "-1", "-1", "-1", "0"}, last = 0;
        for (int c = 0; last != '\n'; c++) { /* cut off field c; note it if wanted */
            char *field = p;
            p += strcspn(p, "\t\n");
            last = *p ? *p : '\n';
            if (*p) *p++ = 0;
            field[strcspn(field, "\r")] = 0;
            for (int k = 0; k < 5; k++) {
                if (header && !strcmp(field, names[k])) column[k] = c;
                if (!header && column[k] == c) value[k] = field;
            }
        }
        for (int k = 0; k < 4; k++)
            if (column[k] < 0) die(1, "%s: no column %s", path, names[k]);
        if (!header)
            rows[n++] = (Row){whole("window", value[0]), whole("position", value[1]),
                              whole("token", value[2]), number("nll", value[3], -1e-3, 1e9),
                              number("entropy", value[4], -1e-3, 1e9)};
    }
    if (!n) die(1, "%s: no rows", path);
    *count = n;
    *has_entropy = column[4] >= 0;
    return rows;
}

/* Replaces the numbers of all rows by this program's, window by window. */
static void recompute(const Model *m, const Method *t, int first, Row *rows, int count) {
    if (first >= m->vocab_size) die(2, "--bos: past the vocabulary (got %d)", first);
    for (int at = 0, n; at < count; at += n) {
        for (n = 0; at + n < count && rows[at + n].window == rows[at].window; n++) {
            const Row *r = &rows[at + n];
            if (r->position != n) die(1, "window %d: not full (no position %d)", r->window, n);
            if (r->token >= m->vocab_size) die(1, "token %d: past the vocabulary", r->token);
        }
        evaluate(m, t, first, rows + at, n);
    }
}

typedef struct { int first, print, entropy; double tol_max, tol_mean; } Options;

/* One line; returns the exit status. A loss that is not a number counts as infinitely far off. */
static int report(const Row *run, const Row *mine, int count, const Options *o) {
    double sum_run = 0, sum_mine = 0, sum = 0, max = 0, max_entropy = 0;
    for (int r = 0; r < count; r++) {
        double diff = fabs(run[r].nll - mine[r].nll), e = fabs(run[r].entropy - mine[r].entropy);
        sum_run += run[r].nll;
        sum_mine += mine[r].nll;
        sum += diff;
        max = fmax(max, isnan(diff) ? INFINITY : diff);
        max_entropy = fmax(max_entropy, isnan(e) ? INFINITY : e);
    }
    int ok = max <= o->tol_max && sum / count <= o->tol_mean;
    if (o->entropy && max_entropy > 1e-3) ok = 0;
    printf("rows %d  nll run %.6f oracle %.6f  diff max %.3g mean %.3g", count, sum_run / count,
           sum_mine / count, max, sum / count);
    if (o->entropy) printf("  entropy diff max %.3g", max_entropy);
    printf("  %s\n", ok ? "ok" : "FAIL");
    return !ok;
}

static void print_rows(const Row *r, int count) {
    puts("window\tposition\ttoken\tnll\tentropy");
    for (; count--; r++)
        printf("%d\t%d\t%d\t%.9f\t%.9f\n", r->window, r->position, r->token, r->nll, r->entropy);
}

/* argv[argc], all flags, into the method and the options; then the defaults. */
static Options flags(const Model *m, Method *t, int argc, char **argv) {
    Options o = {.first = 1, .tol_max = 2e-3, .tol_mean = 5e-5};
    for (int a = 0; a < argc; a++) {
        const char *name = argv[a];
        if (!strcmp(name, "--print")) { o.print = 1; continue; }
        if (!strcmp(name, "--entropy")) { o.entropy = 1; continue; }
        if (!strcmp(name, "--logn")) { t->logn = 1; continue; }
        if (++a == argc) die(2, "%s: unknown, or its value is missing", name);
        if (!strcmp(name, "--chunk")) continue; /* how run cuts the text, which must not matter */
        if (!strcmp(name, "--bos") || !strcmp(name, "--first")) o.first = whole(name, argv[a]);
        else if (!strcmp(name, "--tol-max")) o.tol_max = number(name, argv[a], 0, 1e9);
        else if (!strcmp(name, "--tol-mean")) o.tol_mean = number(name, argv[a], 0, 1e9);
        else if (!set_flag(m, t, name, argv[a])) die(2, "%s: unknown option", name);
    }
    finish_method(m, t);
    return o;
}

/* ---- Self-test: identities between methods --------------------------------------------------- */

/* Two settings that must agree (or, after '!', must not) over 96 tokens; L = 32 unless said. */
static const char *identities[][2] = {
    {"--rope-scaling linear --rope-factor 1", ""},
    {"--rope-scaling ntk --rope-factor 1", ""},
    {"--rope-scaling yarn --rope-factor 1", ""},
    {"--rope-scaling llama3 --rope-factor 1", ""},
    {"--rope-scaling ntk -c 64", "--rope-scaling ntk --rope-factor 2"},
    {"--rope-scaling dynamic --rope-orig-ctx 96", ""},
    {"--rope-scaling dynamic --rope-orig-ctx 95", "!"},
    {"--rope-scaling dynamic -c 64", "--rope-scaling dynamic --rope-factor 1"},
    {"--rope-scaling linear --rope-factor 3", "--leaky-rerope 0:3"},
    {"--rope-scaling linear --rope-factor 3", "!"},
    {"--rope-scaling yarn --rope-factor 4",
     "--rope-scaling by-parts --rope-factor 4 --rope-attn-factor 1.13862943611198906"},
    {"--rope-scaling llama3 --rope-factor 4 --low-freq-factor 1e-9 --high-freq-factor 2e-9", ""},
    {"--rope-scaling llama3 --rope-factor 4 --low-freq-factor 1e8 --high-freq-factor 2e8",
     "--rope-scaling linear --rope-factor 4"},
    {"--window 96", ""},
    {"--window 95", "!"},
    {"--window 8 --sinks 96", ""},
    {"--window 92 --sinks 4", ""},
    {"--window 91 --sinks 4", "!"},
    {"--self-extend 4:96", ""},
    {"--self-extend 1:10", ""},
    {"--self-extend 1000:10", "--rerope 10"},
    {"--self-extend 4:10", "!--rerope 10"},
    {"--rerope 96", ""},
    {"--leaky-rerope 10:1", ""},
    {"--leaky-rerope 10:1e200", "--rerope 10"},
    {"--string 96:8", ""},
    {"--string 20:20", ""},
    {"--string 20:1", "!"},
    {"--dual-chunk 96:8", ""},
    {"--dual-chunk 48:48", ""}, /* twice the chunk, and no distance is cut off */
    {"--dual-chunk 48:40", "!"},
    {"--dual-chunk 20:5", "!"},
    {"--rope-fraction 1", ""},
    {"--rope-fraction 0.5", "!"},
    {"--attn-temp 0.1:97", ""},
    {"--attn-temp 0.1:90", "!"},
    {"--logn --rope-orig-ctx 96", ""},
    {"--logn --rope-orig-ctx 90", "!"},
};

/* The losses of n tokens under the flags in text, which single blanks separate. */
static void try_flags(const Model *m, const char *text, Row *rows, int n) {
    Method t = {.theta = m->method.theta, .orig_ctx = 32};
    char copy[256], *argv[32];
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *p = strtok(copy, " "); p; p = strtok(NULL, " ")) argv[argc++] = p;
    flags(m, &t, argc, argv);
    for (int i = 0; i < n; i++)
        rows[i].token = (int)((i + 1) * 2654435761u % (unsigned)m->vocab_size);
    evaluate(m, &t, 1 % m->vocab_size, rows, n);
}

static int self_test(const Model *m) {
    enum { N = 96, COUNT = sizeof identities / sizeof *identities };
    Row a[N], b[N], half[N / 2];
    int failures = 0;
    if (m->encoding != ROPE) die(2, "--self-test: wants a RoPE model");
    for (int c = 0; c < COUNT; c++) {
        int differ = *identities[c][1] == '!', causal = 1;
        double max = 0;
        try_flags(m, identities[c][0], a, N);
        try_flags(m, identities[c][1] + differ, b, N);
        try_flags(m, identities[c][0], half, N / 2); /* the future must not matter */
        for (int i = 0; i < N; i++) max = fmax(max, fabs(a[i].nll - b[i].nll));
        for (int i = 0; i < N / 2; i++) causal &= a[i].nll == half[i].nll;
        if ((max < 1e-9) != differ && causal) continue;
        printf("not ok: %s | %s | differ by %g%s\n", identities[c][0], identities[c][1], max,
               causal ? "" : ", not causal");
        failures++;
    }
    printf("self-test: %d identities, %d failures\n", COUNT, failures);
    return failures > 0;
}

int main(int argc, char **argv) {
    int count, has_entropy;
    if (argc < 3) die(2, "usage: oracle MODEL RUN.tsv [flags] | oracle --self-test MODEL");
    if (!strcmp(argv[1], "--self-test")) return self_test(load_model(argv[2]));
    Model *m = load_model(argv[1]);
    Method method = m->method;
    Options o = flags(m, &method, argc - 3, argv + 3);
    Row *run = read_rows(argv[2], &count, &has_entropy);
    Row *mine = allocate((size_t)count, sizeof *mine);
    if (o.entropy && !has_entropy) die(1, "%s: no column entropy", argv[2]);
    memcpy(mine, run, (size_t)count * sizeof *mine);
    recompute(m, &method, o.first, mine, count);
    if (!o.print) return report(run, mine, count, &o);
    print_rows(mine, count);
    return 0;
}
