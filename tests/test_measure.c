// test_measure.c: measure.c: what the tasks ask and where their facts stand, which answers are
// right, and what the modes perplexity and passkey print. The vocabulary and the models are made
// here; texts and tables are read back and computed anew.
#define TESTING
#define _GNU_SOURCE
#include <stdio.h>
static FILE *printed; // what run.c prints
#define printf(...) fprintf(printed, __VA_ARGS__)
#include "measure.c"
#undef printf
#include "check.h"
#include "model.h"
#include "gguf.h"

// ---- A vocabulary ------------------------------------------------------------------------------

// Control tokens, text, tokens without a text of their own (from CHAIN on), and the bytes.
static const char *const names[] = {
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", " ", "q", "u", "qu",
    "s"};
enum { BOS = 1, EOS, SPACE = 10, QU = 13, CHAIN = COUNT(names), BYTES = 48, VOCAB = BYTES + 256 };

static Tokenizer make_vocabulary(int add_bos, int space_prefix)
{
    Out tokens = {0}, types = {0};
    for (int id = 0; id < VOCAB; id++) {
        char name[8] = "";
        if (id >= BYTES) sprintf(name, "<0x%02X>", (unsigned)(id - BYTES) & 255);
        put_string(&tokens, id < CHAIN ? names[id] : name);
        put_u32(&types, id < SPACE ? 3 : 1);
    }
    Vocab v = {.tokens = {tokens.p, VOCAB, G_STRING}, .types = {types.p, VOCAB, G_I32}, .bos = BOS, .eos = EOS,
               .eot = -1, .add_bos = add_bos, .space_prefix = space_prefix};
    Tokenizer t;
    tokenizer_init(&t, "test", &v);
    free(types.p);
    return t;
}

// The ids of text[len]: the longest name each time, or the byte; control tokens in templates only.
static size_t naive_ids(const char *text, size_t len, int template, int *ids)
{
    size_t count = 0;
    for (size_t at = 0, n; at < len; at += n) {
        int best = template && text[at] <= EOS ? text[at] : BYTES + (uint8_t)text[at];
        n = 1;
        for (int id = template ? 0 : SPACE; id < CHAIN; id++) {
            size_t k = strlen(names[id]);
            if (k >= n && k <= len - at && !memcmp(text + at, names[id], k)) best = id, n = k;
        }
        ids[count++] = best;
    }
    return count;
}

static char *decode_all(const Tokenizer *t, const int *ids, size_t n)
{
    char *text = xcalloc(n + 1, 40), *end = text;
    for (size_t i = 0, len; i < n; i++, end += len) {
        const char *piece = tokenizer_decode(t, i ? ids[i - 1] : -1, ids[i], &len);
        memcpy(end, piece, len);
    }
    return text;
}

// ---- Tasks -------------------------------------------------------------------------------------

static char *days[] = {"Day a#.", "It is day b#, a longer one.", "And day c#."};

static int days_before(const char *text, const char *at)
{
    int n = 0;
    for (; text < at; text++) n += *text == '#';
    return n;
}

// The days come in turn from `first` on, n of them; a fact at `at` has at * n days before it,
// rounded up, and stands behind the fact before it.
static int well_placed(const Task *t, const char *text, size_t first, int n)
{
    const char *at = text;
    for (int i = 0; i < n; i++, at++)
        if (!(at = strchr(at, '#')) || at[-1] != "abc"[(first + (size_t)i) % 3]) return 0;
    if (strchr(at, '#')) return 0;
    at = text;
    for (int i = 0; i < t->n_facts; i++, at++) {
        at = strstr(at, t->fact[i]);
        if (!at || days_before(text, at) != (int)ceil(t->at[i] * n)) return 0;
    }
    return 1;
}

// Each of the three reads the text as a model has to, and returns where the fact is that answers
// the question, in days before it; -1: the text does not say it.
static int solve_passkey(const char *text, int answer)
{
    int key = 0, again = 0, asked = 0;
    sscanf(strstr(text, "The pass"), "The pass key is %d. Remember it. %d is the pass key.", &key,
           &again);
    sscanf(strstr(text, "What"), "What is the pass key? The pass key is%n", &asked);
    if (key < 10000 || key > 99999 || key != answer || again != answer || !asked) return -1;
    return days_before(text, strstr(text, "The pass"));
}

static int solve_multikey(const char *text, int answer)
{
    char name[5][16], asked[16] = "", lead[16] = "";
    int n = 0, number, where = -1;
    sscanf(strstr(text, "What"), "What is the magic number for %15[A-Za-z]? "
           "The magic number for %15s is", asked, lead);
    for (const char *p = text; n < 5 && (p = strstr(p, "The magic")); p++) {
        if (sscanf(p, "The magic number for %15s is %d.", name[n], &number) != 2) continue;
        if (number < 1000 || number > 9999) return -1;
        for (int i = 0; i < n; i++)
            if (!strcmp(name[i], name[n])) return -1;
        if (!strcmp(name[n++], asked)) where = number == answer ? days_before(text, p) : -1;
    }
    return n == 4 && !strcmp(asked, lead) ? where : -1;
}

// Two boxes hold numbers, each of two others what one of these holds, which was said before.
static int solve_tracking(const char *text, int answer)
{
    int value[128] = {0}, where[128] = {0}, facts = 0, number;
    char box, other, asked = 0, lead = 0, from[128] = {0}, taken[128] = {0};
    for (const char *p = text; (p = strstr(p, "The box ")); p++) {
        if (sscanf(p, "The box %c holds %d.", &box, &number) == 2) other = 0, facts++;
        else if (sscanf(p, "The box %c holds what the box %c holds.", &box, &other) == 2)
            number = value[(int)other], facts += 10;
        else continue;
        if (value[(int)box] || number < 1000 || number > 9999 || (other && taken[(int)other]++))
            return -1;
        value[(int)box] = number;
        from[(int)box] = other;
        where[(int)box] = days_before(text, p);
    }
    sscanf(strstr(text, "What"), "What does the box %c hold? The box %c holds", &asked, &lead);
    if (facts != 22 || asked != lead || !from[(int)asked]) return -1;
    return value[(int)asked] == answer ? where[(int)from[(int)asked]] : -1;
}

static int (*const solvers[])(const char *, int) = {solve_passkey, solve_multikey, solve_tracking};

static char *task_text(const Grid *g, const Task *t, size_t first, size_t n)
{
    int *ids = encode_task(g, t, first, n, &n);
    char *text = decode_all(&g->s->tokenizer, ids, n);
    free(ids);
    return text;
}

// The text of a task must say the answer, at its depth; in a chat the lead begins the reply.
static void check_tasks(Grid g)
{
    static const double depths[] = {0, 0.25, 0.5, 0.8, 1};
    int unplaced = 0, unsolved = 0, unlike = 0;
    for (int i = 0; i < 5 * 4 * 12; i++) {
        double depth = depths[i % 5];
        int n = (int[]){0, 1, 4, 9}[i / 5 % 4];
        size_t first = (size_t)i / 20 % 3;
        uint64_t rng = seed_random((uint64_t)i);
        Task t = {0};
        char want[2000];
        task_kinds[g.kind].make(&t, depth, &rng);
        g.format = NULL;
        char *text = task_text(&g, &t, first, (size_t)n);
        unplaced += !well_placed(&t, text, first, n);
        unsolved += solvers[g.kind](text, t.answer) != (int)ceil(depth * n);
        g.format = chat_formats[0].template;
        char *chat = task_text(&g, &t, first, (size_t)n);
        text[strlen(text) - strlen(t.lead) - 1] = 0;
        sprintf(want, "user\n%s\nassistant\n%s", text, t.lead);
        unlike += strcmp(chat, want) != 0;
        free(text), free(chat);
    }
    CHECK_INT(unplaced, 0);
    CHECK_INT(unsolved, 0);
    CHECK_INT(unlike, 0);
}

// As many days as there is room for: with one more the text would be too long.
static void check_fit(const Grid *g)
{
    int bad = 0, none = 0;
    uint64_t rng = seed_random(2);
    Task t = {0};
    task_kinds[g->kind].make(&t, 0.5, &rng);
    for (size_t room = 1, n, more; room < 500; room += room % 150 < 100 ? 31 : 1) {
        int *ids = fit_task(g, &t, 2, room, &n), n_days = 0;
        if (ids) {
            char *text = decode_all(&g->s->tokenizer, ids, n);
            n_days = days_before(text, text + strlen(text));
            bad += n > room || !well_placed(&t, text, 2, n_days++);
            free(text);
        } else none++;
        free(encode_task(g, &t, 2, (size_t)n_days, &more));
        bad += more <= room;
        free(ids);
    }
    CHECK_INT(bad, 0);
    CHECK(none > 0);
}

static void test_tasks(void)
{
    Session s = {.tokenizer = make_vocabulary(1, 0)};
    Grid g = {.s = &s, .filler = days, .n_filler = COUNT(days)};
    for (; g.kind < 3; g.kind++) {
        int before = n_failed;
        check_tasks(g);
        check_fit(&g);
        note_failures(before, "%s", task_kinds[g.kind].name);
    }
}

// ---- Answers and grids -------------------------------------------------------------------------

static const Shape small = {.version = 1, .dim = 64, .hidden = 32, .layers = 2, .heads = 4,
                            .kv_heads = 2, .vocab = VOCAB, .ctx = 400, .own_classifier = 1,
                            .seed = 3};

static void open_test_session(Session *s, TestModel *t, long long ctx, size_t chunk)
{
    t->size = 0; // the file anew, from the arrays
    put_weights(t, 64, 32, 32);
    put_matrix(t, t->classifier, VOCAB * 64);
    *s = (Session){.ctx = ctx, .logits = xcalloc(VOCAB, 4), .tokenizer = make_vocabulary(1, 0)};
    open_model(&s->model, t);
    state_init(&s->state, &s->model, 400, chunk, 1, 1);
}

// A model that counts: token i + 1 follows token i, up to 63.
static void open_counter(Session *s)
{
    TestModel t = make_model(small);
    memset(t.wo, 0, 2 * 64 * 64 * 4); // only the embedding is left
    memset(t.w2, 0, 2 * 64 * 32 * 4);
    memset(t.tok_emb, 0, VOCAB * 64 * 4);
    memset(t.classifier, 0, VOCAB * 64 * 4);
    for (int i = 0; i < 63; i++) t.tok_emb[i * 64 + i] = t.classifier[(i + 1) * 64 + i] = 1;
    for (int i = 0; i < 64; i++) t.final_norm[i] = 1;
    open_test_session(s, &t, 400, 128);
    free_test_model(&t);
}

static void set_piece(Session *s, int id, const char *text, int stop)
{
    s->tokenizer.pieces[id] = (Piece){.text = text, .len = (int)strlen(text), .stop = stop,
                                      .kind = TOKEN_TEXT};
}

// What the model says, piece by piece, ! being a token that ends the text; with room for how many
// of them; and whether that is the answer 1234.
static void test_answers(void)
{
    static const struct {
        const char *said[7];
        int room, right;
        const char *got;
    } cases[] = {
        {{"1", "2", "3", "4", "x"}, 9, 1, "1234x"}, {{" ", "1", "2", "3", "4", "-"}, 9, 1, "1234-"},
        {{"  1", "23", "4", "\n"}, 9, 1, "1234 "},  {{"1234."}, 9, 1, "1234."},
        {{"1", "2", "3", "5", "x"}, 9, 0, "1235x"}, {{"2", "2", "3", "4", "x"}, 9, 0, "2234x"},
        {{"1", "2", "3", "4", "5"}, 9, 0, "12345"}, {{"12", "345"}, 9, 0, "12345"},
        {{"1", " ", "2", "3", "4"}, 9, 0, "1 234"}, {{"x", "1", "2", "3", "4"}, 9, 0, "x1234"},
        {{"1", "2", "3", "4", "!"}, 9, 1, "1234"},  {{"1", "2", "!", "3", "4", "x"}, 9, 0, "12"},
        {{"1", "2", "3", "4", "5"}, 3, 0, "123"},   {{"1", "2", "3", "4", "5"}, 4, 1, "1234"},
        {{"1234 is the number that you look for"}, 9, 1, "1234 is the number that you loo"},
    };
    static Session s;
    open_counter(&s);
    for (size_t i = 0; i < COUNT(cases); i++) {
        char got[32];
        int before = n_failed, id = CHAIN;
        for (int k = 0; k < 7; k++) {
            const char *text = cases[i].said[k] ? cases[i].said[k] : "";
            set_piece(&s, CHAIN + 1 + k, *text == '!' ? "" : text, *text == '!');
        }
        s.pos = 0;
        s.ctx = 1 + cases[i].room;
        CHECK_INT(answers(&s, &id, 1, "1234", got), cases[i].right);
        CHECK_TEXT(got, strlen(got), cases[i].got, strlen(cases[i].got));
        note_failures(before, "answer %zu", i);
    }
}

// Runs a mode and returns what it prints, which the caller frees; its table goes to `table`.
static char *output_of(void (*run)(Session *s), Session *s, FILE *table)
{
    static char path[32];
    char *text;
    size_t len;
    sprintf(path, "/proc/self/fd/%d", fileno(table));
    ask.tsv = path;
    printed = open_memstream(&text, &len);
    run(s);
    fclose(printed);
    rewind(table);
    return text;
}

typedef struct {
    int length, trial, tokens, right;
    double depth;
    char answer[16], got[32];
} Trial;

// Runs a model that says the same after every question, at three lengths and two depths.
static char *run_trials(Session *s, const char *said, Trial t[20])
{
    FILE *table = tmpfile();
    char line[200];
    int n = 0;
    set_piece(s, CHAIN, said, 0); // behind the s of "is", with which the lead ends
    set_piece(s, CHAIN + 1, ".", 0);
    char *text = output_of(run_passkey, s, table);
    while (n < 20 && fgets(line, sizeof line, table))
        n += sscanf(line, "passkey %d %lf %d %d %d %15s %31s", &t[n].length, &t[n].depth,
                    &t[n].trial, &t[n].tokens, &t[n].right, t[n].answer, t[n].got) == 7;
    CHECK_INT(n, 20);
    fclose(table);
    return text;
}

// One of 20 trials is right; a length that is too short for the text counts for nothing. In the
// last one, at depth 1, the fact is among the last tokens that were read.
static void test_grid(void)
{
    static Session s;
    Trial t[20];
    char want[100], said[16];
    int bad = 0, last[64];
    open_counter(&s);
    ask.length[0] = 60, ask.length[1] = 150, ask.length[2] = 250;
    ask.n_lengths = 3, ask.depths = 2, ask.trials = 5;
    free(run_trials(&s, "00000", t));
    strcpy(said, t[7].answer); // at length 150, depth 1
    char *text = run_trials(&s, said, t);
    for (int i = 0; i < 20; i++)
        bad += t[i].right != (i == 7) || t[i].depth != i / 5 % 2 || t[i].trial != i % 5 ||
               t[i].length != (i < 10 ? 150 : 250) || t[i].tokens > t[i].length - 8 ||
               t[i].tokens < t[i].length - 8 - 30 || strncmp(t[i].got, said, 5);
    CHECK_INT(bad, 0);
    sprintf(want, "\n       60       -       -\n      150       0 %s   20      10\n",
            "\u2591\u2591");
    CHECK(strstr(text, want));
    CHECK(strstr(text, "\nall cells: 5.0%\n"));
    free(text);
    for (int i = 0; i < 64; i++) last[i] = s.ids[s.pos - 64 + i];
    CHECK(strstr(text = decode_all(&s.tokenizer, last, 64), "is the pass key. What"));
    free(text);
}

// The keys of a list are all different, the pair that is asked for stands in it once, and what the
// examples say stands in it, too.
static void test_kv(void)
{
    static Session s;
    TestModel model = make_model(small);
    open_test_session(&s, &model, 400, 64);
    s.tokenizer = make_vocabulary(0, 0);
    Grid g = {.s = &s, .kind = 3};
    for (uint64_t seed = 1; seed < 40; seed++) {
        uint64_t rng = seed_random(seed);
        Task t = {0};
        size_t n_ids;
        char said[80], *text, *end;
        int keys[301], bad = 0, before = n_failed;
        make_kv(&t, (double)(seed % 5) / 4, &rng);
        int *ids = encode_task(&g, &t, 0, 300, &n_ids);
        text = decode_all(&s.tokenizer, ids, n_ids);
        char *at = text;
        for (int i = 0; i < 301; i++, at = end) {
            int value;
            sscanf(at, "The value of %d is %d.%n", &keys[i], &value, &bad);
            end = at + bad + 1;
            if (keys[i] == kv_key(t.pairs, 0)) CHECK(value == t.answer);
        }
        bad = 0;
        for (int i = 0; i < 301; i++)
            for (int k = 0; k < i; k++) bad += keys[i] == keys[k];
        CHECK_INT(bad, 0);
        for (int i = 0; i < 2; i++, at = strchr(at, '.') + 2) {
            at = strchr(at, '?') + 2;
            snprintf(said, sizeof said, "%.*s", (int)strcspn(at, "."), at);
            CHECK(strstr(text, said) < at && strlen(said) > 20);
        }
        snprintf(said, sizeof said, "What is the value of %d? The value of %d is", kv_key(t.pairs, 0),
                 kv_key(t.pairs, 0));
        CHECK(!strcmp(at, said));
        note_failures(before, "kv, seed %d", (int)seed);
        free(ids), free(text);
    }
    free_test_model(&model);
}

// Losses from the last 13 to 16 tokens (all, where there are fewer): windows of 16 begin at every
// fourth token, and each counts where it is the first to have its last four.
static void test_recent(void)
{
    static Session s;
    TestModel model = make_model(small);
    int ids[101], bad = 0;
    double got[100];
    float logits[VOCAB];
    open_test_session(&s, &model, 400, 7);
    for (int i = 0; i < 101; i++) ids[i] = (int)(random_bits() % VOCAB);
    Perplexity p = {.n = 100, .vocab = VOCAB, .to_feed = 1, .logits = xcalloc(LOGIT_ROWS * VOCAB, 4)};
    CHECK_INT(recent_losses(&s, &p, ids, 16, got), 100);
    for (int i = 0; i < 100; i++) {
        int from = i < 16 ? 0 : (i - 12) / 4 * 4;
        for (int k = from; k <= i; k++) forward(&s.state, ids + k, 1, k - from);
        classify(&s.state, 0, 1, logits);
        bad += !(fabs(cross_entropy(logits, VOCAB, ids[i + 1]) - got[i]) < 1e-5);
    }
    CHECK_INT(bad, 0);
    free(p.logits);
    free_test_model(&model);
}

// ---- Perplexity --------------------------------------------------------------------------------

typedef struct {
    int ctx, stride, windows, chunk, add_bos, entropy;
} Case;

typedef struct {
    int window, position, token, bytes;
    double nll, entropy;
} TableRow;

// The rows that a text's table must have, each window run at once; the entropies are those of
// attention that is the same for all keys. The space put before the text is none of its bytes.
static int naive_rows(const Session *s, const Case *c, int *ids, int n_ids, TableRow *rows)
{
    int n = c->ctx < n_ids ? c->ctx : n_ids, step = c->stride ? c->stride : n - 1, count = 0;
    float *logits = xcalloc((size_t)n * VOCAB, 4);
    State st;
    state_init(&st, &s->model, 400, (size_t)n, 1, 1);
    for (int w = 0; w * step + n <= n_ids && (!c->windows || w < c->windows); w++) {
        int *window = ids + w * step, first = *window;
        if (c->add_bos) *window = BOS;
        forward(&st, window, (size_t)n - 1, 0);
        classify(&st, 0, (size_t)n - 1, logits);
        for (int i = n - 1 - step; i < n - 1; i++) {
            int id = window[i + 1], added = c->add_bos && !w && !i, bytes = id == QU ? 2 : !added;
            double sum = 0; // loss: -ln of the token's share in softmax(logits)
            for (int k = 0; k < VOCAB; k++)
                sum += exp((double)logits[i * VOCAB + k] - (double)logits[i * VOCAB + id]);
            rows[count++] = (TableRow){w, i, id, bytes, log(sum), log(i + 1)};
        }
        *window = first;
    }
    free(logits);
    return count;
}

static void check_table(FILE *table, int entropy, const TableRow *rows, int n)
{
    char line[100] = "";
    int got = 0, bad = 0;
    CHECK(fgets(line, sizeof line, table) && !strncmp(line, "window\tposition\ttoken\tnll", 25));
    for (TableRow r, want; fgets(line, sizeof line, table); got++) {
        want = rows[got < n ? got : 0];
        bad += sscanf(line, "%d\t%d\t%d\t%lf\t%lf", &r.window, &r.position, &r.token, &r.nll,
                      &r.entropy) != 4 + entropy;
        bad += r.window != want.window || r.position != want.position || r.token != want.token;
        bad += !(fabs(r.nll - want.nll) < 1e-5) ||
               (entropy && !(fabs(r.entropy - want.entropy) < 1e-4));
    }
    CHECK_INT(got, n);
    CHECK_INT(bad, 0);
}

// Loss, perplexity, bits per byte and entropy over positions from..to, as they must be printed.
static void check_means(const TableRow *rows, int n, int from, int to, int n_got, const double *got)
{
    double nll = 0, entropy = 0, count = 0, bytes = 0;
    for (int i = 0; i < n; i++)
        if (rows[i].position >= from && rows[i].position <= to)
            nll += rows[i].nll, entropy += rows[i].entropy, bytes += rows[i].bytes, count++;
    CHECK_NEAR(got[0], nll / count, 6e-5);
    CHECK_NEAR(got[1] / exp(nll / count), 1, 1e-4);
    CHECK_NEAR(got[2], bytes > 0 ? nll / bytes / log(2) : 0, 6e-5);
    if (n_got > 3) CHECK_NEAR(got[3], entropy / count, 6e-4);
}

// The standard deviation of the windows' means, or of the tokens of the only window, divided by
// the square root of how many there are.
static double naive_error(const TableRow *rows, int n)
{
    int windows = rows[n - 1].window + 1, many = windows > 1 ? windows : n;
    double means[400] = {0}, mean = 0, sum = 0;
    for (int i = 0; i < n; i++) means[windows > 1 ? rows[i].window : i] += rows[i].nll * many / n;
    for (int i = 0; i < many; i++) mean += means[i] / many;
    for (int i = 0; i < many; i++) sum += (means[i] - mean) * (means[i] - mean);
    return sqrt(sum / (many - 1)) / sqrt(many);
}

// The lines for ranges of positions, which together are all of them, and the line for all.
static void check_summary(const char *line, const Case *c, const TableRow *rows, int n)
{
    int first = rows[0].position, next = first, lines = 0, from, to;
    double got[4], error, windows, predictions;
    char over[32];
    for (; (line = strchr(line, '\n') + 1) &&
           sscanf(line, "%d %d %lf %lf %lf %lf", &from, &to, got, got + 1, got + 2, got + 3) > 4;
         lines++, next = to + 1) {
        CHECK_INT(from, next);
        check_means(rows, n, from, to, 3 + c->entropy, got);
    }
    CHECK_INT(next, rows[n - 1].position + 1);
    CHECK_INT(lines, next - first < 16 ? next - first : 16);
    CHECK_INT(sscanf(line, "loss %lf +- %lf (standard error over %31[^)]), perplexity %lf, "
                     "bits/byte %lf\n%lf windows, %lf predictions", got, &error, over, got + 1,
                     got + 2, &windows, &predictions), 7);
    check_means(rows, n, 0, INT_MAX, 3, got);
    CHECK_NEAR(error, naive_error(rows, n), 6e-5);
    CHECK(!strcmp(over, windows > 1 ? "windows" : "the tokens of one window"));
    CHECK(windows == rows[n - 1].window + 1 && predictions == n);
}

static void check_perplexity(TestModel *t, const Case *c)
{
    static const char *const words[] = {"a", "b", "c", "s", "qu", " ", "\n", "7"};
    static Session s;
    char text[400] = "";
    int ids[400] = {BOS, SPACE}, skip = 2 * c->add_bos, before = n_failed;
    TableRow rows[1600];
    test_rng = 1; // windows that begin with a space, too
    for (int i = 0; i < 150; i++) strcat(text, words[random_bits() % 8]);
    open_test_session(&s, t, c->ctx, (size_t)c->chunk);
    s.tokenizer = make_vocabulary(c->add_bos, c->add_bos);
    s.text = text;
    s.len = strlen(text);
    ask.stride = c->stride, ask.windows = c->windows, ask.entropy = c->entropy;
    FILE *table = tmpfile();
    char *out = output_of(run_perplexity, &s, table);
    int n = naive_rows(&s, c, ids, skip + (int)naive_ids(text, s.len, 0, ids + skip), rows);
    check_table(table, c->entropy, rows, n);
    check_summary(out, c, rows, n);
    note_failures(before, "-c %d --stride %d --windows %d --chunk %d, BOS %d", c->ctx, c->stride,
                  c->windows, c->chunk, c->add_bos);
    fclose(table);
    free(out);
}

static void test_perplexity(void)
{
    static const Case cases[] = {
        {40, 0, 0, 50, 1, 0}, {40, 13, 0, 7, 1, 0}, {40, 0, 2, 40, 1, 0}, {90, 5, 3, 64, 1, 0},
        {400, 0, 0, 16, 1, 0}, {40, 0, 0, 128, 0, 0}, {41, 39, 0, 9, 0, 0}, {40, 0, 0, 17, 1, 1},
        {70, 30, 2, 50, 1, 1}};
    TestModel t = make_model(small);
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (cases[i].entropy) memset(t.wq, 0, 2 * 64 * 64 * 4); // all scores alike
        check_perplexity(&t, &cases[i]);
    }
    free_test_model(&t);
}

// The entropy of attention over i + 1 equal scores is ln(i + 1): here q is zero.
static void test_entropy(void)
{
    Shape shape = small;
    shape.layers = 1;
    TestModel t = make_model(shape);
    Model m;
    State s;
    size_t zeros = (size_t)(small.dim * small.dim) * 4, at = 256 + (size_t)(3 + small.vocab) * 64 * 4;
    memset(t.file + at, 0, zeros); // wq, in version 1 with one layer
    open_model(&m, &t);
    state_init(&s, &m, 600, 600, 1, 1);
    begin_watch(&s);
    int *tokens = random_tokens(600, small.vocab, 2), bad = 0;
    forward(&s, tokens, 600, 0);
    for (int k = 0; k < 600 * small.heads; k++) {
        int i = k / small.heads;
        Softmax w = seen_softmax(&s.attn, 0, (size_t)i, (size_t)(k % small.heads));
        bad += !(fabs(w.largest + log(w.sum) - w.weighted / w.sum - log(i + 1)) < 1e-4);
        bad += !(fabs(w.first / w.sum - 1.0 / (i + 1)) < 1e-6);
    }
    CHECK_INT(bad, 0);
    free(tokens);
    free_test_model(&t);
}

int main(void)
{
    opt.seed = 1; // as check_measure() has it
    test_tasks();
    test_answers();
    test_grid();
    test_kv();
    test_recent();
    test_entropy();
    test_perplexity();
    return report("test_measure");
}
