// test_archs.c: a small GGUF model of every architecture, with random weights, against an
// evaluation in double precision that is written from the architectures' definitions and shares
// nothing with run.c: it reads the weights that were written, not those that were loaded. Then
// models that must be refused by name, and files that come in several parts.
#define TESTING
#include "measure.c"
#include "check.h"
#include "gguf.h"
#include "archs.h"
#include <sys/wait.h>

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
static void turn(const ArchSpec *s, int l, double *x, int p)
{
    int n = s->n_rot ? s->n_rot : s->d, local = arch_local(s, l);
    const float *factors = find_weights(-1, A_N > A_ORIG ? "rope_factors_long.weight"
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

static double keys_of[16][A_N][64], values_of[16][A_N][64]; // by layers

// y[dim] = attention of layer l for position i, whose normed state is x.
static void attend(const ArchSpec *s, int l, int i, const double *x, double *y)
{
    int d = s->d, first = arch_local(s, l) && i >= A_WINDOW ? i - A_WINDOW + 1 : 0;
    double q[64], *k = keys_of[l][i], out[64] = {0};
    times(q, l, "attn_q", A_HEADS * d, A_DIM, x);
    times(k, l, "attn_k", A_KV_HEADS * d, A_DIM, x);
    times(values_of[l][i], l, "attn_v", A_KV_HEADS * d, A_DIM, x);
    if (s->qk == 2) normed(q, l, "attn_q_norm", A_HEADS * d, q, 0);
    if (s->qk == 2) normed(k, l, "attn_k_norm", A_KV_HEADS * d, k, 0);
    for (int h = 0; h < A_HEADS; h++) {
        if (s->qk == 1) normed(q + h * d, l, "attn_q_norm", d, q + h * d, 0);
        turn(s, l, q + h * d, i);
    }
    for (int h = 0; h < A_KV_HEADS; h++) {
        if (s->qk == 1) normed(k + h * d, l, "attn_k_norm", d, k + h * d, 0);
        turn(s, l, k + h * d, i);
    }
    double scale = s->score_scale > 0 ? s->score_scale : 1 / sqrt(d);
    if (s->temp > 0) scale *= 1 + s->temp * log(1 + floor(i / (double)A_ORIG));
    for (int h = 0; h < A_HEADS; h++) {
        double score[A_N], sum = 0;
        int of = h / (A_HEADS / A_KV_HEADS) * d;
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
    times(y, l, "attn_output", A_DIM, A_HEADS * d, out);
}

static void feed_net(const ArchSpec *s, int l, const double *x, double *y)
{
    double gate[A_HIDDEN], up[A_HIDDEN];
    times(up, l, "ffn_up", A_HIDDEN, A_DIM, x);
    if (s->gate) times(gate, l, "ffn_gate", A_HIDDEN, A_DIM, x);
    for (int i = 0; i < A_HIDDEN; i++) {
        double a = s->gate ? gate[i] : up[i];
        double tanh_in = sqrt(2 / M_PI) * (a + 0.044715 * a * a * a);
        double act = s->gelu ? a / 2 * (1 + tanh(tanh_in)) : a / (1 + exp(-a));
        up[i] = s->gate ? act * up[i] : act;
    }
    times(y, l, "ffn_down", A_DIM, A_HIDDEN, up);
}

// logits[vocab] behind token `id` at position i.
static void evaluate(const ArchSpec *s, int id, int i, double *logits)
{
    double x[A_DIM], h[A_DIM], y[A_DIM], branch = s->branch_scale > 0 ? s->branch_scale : 1;
    const float *emb = find_weights(-1, "token_embd.weight") + id * A_DIM;
    const float *position = find_weights(-1, "position_embd.weight");
    for (int e = 0; e < A_DIM; e++)
        x[e] = emb[e] * (s->emb_scale > 0 ? s->emb_scale : 1) +
               (position ? position[i * A_DIM + e] : 0);
    normed(x, -1, "token_embd_norm", A_DIM, x, s->layer_norm);
    for (int l = 0; l < s->layers; l++) {
        double before[A_DIM];
        memcpy(before, x, sizeof x);
        normed(h, l, "attn_norm", A_DIM, x, s->layer_norm);
        attend(s, l, i, h, y);
        normed(y, l, "post_attention_norm", A_DIM, y, 0);
        for (int e = 0; e < A_DIM; e++) x[e] += branch * y[e];
        normed(h, l, "ffn_norm", A_DIM, s->parallel ? before : x, s->layer_norm);
        feed_net(s, l, h, y);
        normed(y, l, "post_ffw_norm", A_DIM, y, 0);
        for (int e = 0; e < A_DIM; e++) x[e] += branch * y[e];
    }
    normed(h, -1, "output_norm", A_DIM, x, s->layer_norm);
    const char *classifier = find_weights(-1, "output.weight") ? "output" : "token_embd";
    times(logits, -1, classifier, GGUF_VOCAB, A_DIM, h);
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
static double difference(const ArchSpec *s, const char *path, size_t chunk)
{
    static Model m;
    static State state;
    static double want[GGUF_VOCAB];
    static float logits[A_N * GGUF_VOCAB];
    double most = 0;
    int ids[A_N];
    for (int i = 0; i < A_N; i++) ids[i] = 3 + i * 67 % 300;
    model_load(&m, path);
    state_init(&state, &m, A_N, chunk, 1, 1);
    state.attn.text = A_N;
    for (size_t at = 0; at < A_N; at += chunk) {
        size_t step = min_size(chunk, A_N - at);
        forward(&state, ids + at, step, (int64_t)at);
        classify(&state, 0, step, logits + at * GGUF_VOCAB);
    }
    for (int i = 0; i < A_N; i++) {
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
    for (size_t k = 0; k < COUNT(arch_specs); k++) {
        size_t size;
        int before = n_failed;
        uint8_t *file = build_arch(&arch_specs[k], &size, 0, 1);
        char *path = path_of("model.gguf");
        write_file(path, file, size);
        CHECK_NEAR(difference(&arch_specs[k], path, A_N), 0, 1e-4);
        CHECK_NEAR(difference(&arch_specs[k], path, 7), 0, 1e-4);
        seen[FIND_NAME(archs, arch_specs[k].arch)] = 1;
        note_failures(before, "%s, row %zu", arch_specs[k].arch, k);
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
        ArchSpec s = arch_specs[0];
        size_t size;
        s.key = keys[i][0];
        uint8_t *file = build_arch(&s, &size, 0, 1);
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
    uint8_t *file = build_arch(&arch_specs[0], &size, 0, 1);
    uint8_t *name = memmem(file, size, "rms_epsilon", 11);
    name[0] = 'x';
    write_file(path_of("eps.gguf"), file, size);
    model_load(&m, path_of("eps.gguf"));
    CHECK_NEAR(m.config.norm_eps, 1e-5, 1e-9);
    free(file);
}

// What a model cannot do without: a gpt2 its positions, and longrope its second list.
static void test_missing(void)
{
    static const char *const names[] = {"position_embd", "rope_factors_short"};
    int i = 0;
    for (size_t k = 0; k < COUNT(arch_specs); k++) {
        ArchSpec s = arch_specs[k];
        size_t size, len;
        if (!(i ? s.longrope > 0 : s.learned)) continue;
        s.learned = 0;
        uint8_t *file = build_arch(&s, &size, 0, 1);
        uint8_t *name = i ? memmem(file, size, names[i], len = strlen(names[i])) : NULL;
        if (name) memcpy(name + len - 5, "shirt", 5);
        write_file(path_of("key.gguf"), file, size);
        check_load(path_of("key.gguf"), names[i]);
        free(file);
        if (++i == COUNT(names)) break;
    }
    CHECK_INT(i, COUNT(names));
}

// A model in several files: the same numbers; a file that is not there, cut off, or not the first.
static void test_parts(void)
{
    enum { PARTS = 3 };
    const ArchSpec *s = &arch_specs[4 + 2]; // with seven layers
    char name[64], want[64];
    size_t size = 0;
    for (int i = 0; i < PARTS; i++) {
        uint8_t *file = build_arch(s, &size, i, PARTS);
        snprintf(name, sizeof name, "m-%05d-of-%05d.gguf", i + 1, PARTS);
        write_file(path_of(name), file, size);
        free(file);
    }
    CHECK_NEAR(difference(s, path_of("m-00001-of-00003.gguf"), A_N), 0, 1e-4);
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
    test_missing();
    test_parts();
    unlink(path_of("model.gguf")), unlink(path_of("key.gguf")), unlink(path_of("eps.gguf"));
    rmdir(folder);
    return report("test_archs");
}
