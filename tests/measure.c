// measure.c: instruments for text longer than the trained context.
//
// Perplexity by position shows where a method breaks; passkey shows whether a far fact can be
// fetched at all; retrieval asks for one fact among several and for a chain of them, since passkey
// saturates early; kv for one pair of a long list; contrast finds the tokens that profit from far
// text. The rope table shows what a method does to each pair, bench what the machine does. Ctrl-C
// keeps what was measured. The engine is run.c, how a model wants a turn to be written is chat.c;
// this program includes both.
#ifndef TESTING
#define TESTING // leaves run.c's main out
#define MEASURE
#endif
#include "../chat.c"

// What the command line says; the table of options is at the end.
static struct {
    const char *lengths, *tsv, *mask;
    int windows, stride, depths, trials, entropy, first, recent, positions;
    size_t length[32], n_lengths; // of --lengths
} ask;

// --- tables --------------------------------------------------------------------------------------

// The table that --tsv asks for. It grows in memory and is written once, when all is measured, so
// that there is a whole table or none, whatever ends the program.
static FILE *tsv;
static char *table;
static size_t table_len;

// A table must not take the place of what is being read, nor of a file that the text goes to.
static void check_inputs(const char *path)
{
    const char *inputs[] = {opt.checkpoint, opt.file, opt.tokenizer, ask.mask, opt.long_factors,
                            opt.short_factors, "/dev/stdin"};
    char part[PATH_MAX];
    struct stat a, b;
    int n = 0, len = opt.checkpoint ? (int)strlen(opt.checkpoint) : 0;
    if (stat(path, &a) || !S_ISREG(a.st_mode)) return;
    if (len > 20) sscanf(opt.checkpoint + len - 20, "-00001-of-%5d.gguf", &n); // it has n files
    n = n > 0 ? n : 0;
    for (int i = 0; i < (int)COUNT(inputs) + n; i++) {
        const char *input = i < n ? part : inputs[i - n];
        if (i < n) part_path(part, opt.checkpoint, i + 1, n);
        if (input && !stat(input, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev)
            die(EXIT_USAGE, "--tsv", "would replace %s", input);
    }
    if (!fstat(STDOUT_FILENO, &b) && a.st_ino == b.st_ino && a.st_dev == b.st_dev)
        die(EXIT_USAGE, "--tsv", "standard output goes to the same file");
}

// Whether a table can be written is looked at before hours are spent on it.
static void tsv_open(const char *header)
{
    if (ask.tsv) {
        const char *slash = strrchr(ask.tsv, '/');
        char folder[PATH_MAX] = ".";
        struct stat st;
        check_inputs(ask.tsv);
        if (slash) snprintf(folder, sizeof folder, "%.*s/", (int)(slash - ask.tsv), ask.tsv);
        int there = !stat(ask.tsv, &st);
        if (there && S_ISDIR(st.st_mode)) errno = EISDIR;
        else if (!there && !lstat(ask.tsv, &st)) errno = ENOENT; // a link that leads nowhere
        else if (*ask.tsv && !access(there ? ask.tsv : folder, W_OK)) errno = 0;
        if (errno || !*ask.tsv) die(EXIT_DATA, ask.tsv, "cannot write (%s)", strerror(errno));
    }
    tsv = open_memstream(&table, &table_len);
    if (!tsv) die(EXIT_DATA, "memory", "cannot begin a table (%s)", strerror(errno));
    fprintf(tsv, "%s\n", header);
}

// Writes the table to its place: a file, a device, a pipe, or what a link leads to.
static void tsv_close(void)
{
    if (fclose(tsv)) die(EXIT_DATA, "memory", "cannot hold the table (%s)", strerror(errno));
    if (!ask.tsv) return;
    int there = !access(ask.tsv, F_OK);
    FILE *f = fopen(ask.tsv, "w");
    int bad = !f || fwrite(table, 1, table_len, f) < table_len, err = errno;
    if (f && fclose(f) && !bad) bad = 1, err = errno;
    if (bad && f && !(there ? truncate(ask.tsv, 0) : unlink(ask.tsv))) {} // no part of a table
    if (bad) die(EXIT_DATA, ask.tsv, "cannot write (%s)", strerror(err));
    free(table);
}

// The end of a row: a bar that is `full` long at share 1.
static void print_bar(double share, int full)
{
    int n = (int)fmin(fmax(share, 0) * full + 0.5, full);
    printf("  %.*s\n", n, "########################################");
}

// --- perplexity ----------------------------------------------------------------------------------

enum { LOGIT_ROWS = 32, BUCKETS = 16 };

// -ln softmax(logits[n])[target], in nats; NaN if any logit is infinite or NaN.
static double cross_entropy(const float *logits, size_t n, int target)
{
    float max = logits[0];
    for (size_t i = 1; i < n; i++) max = logits[i] > max ? logits[i] : max;
    double sum = 0;
    for (size_t i = 0; i < n; i += LANES) {
        size_t left = min_size(LANES, n - i);
        vf x = vload_part(logits + i, left), v = vexp(x - vset(max)) + vset(0) * x;
        for (size_t l = 0; l < left; l++) sum += v[l];
    }
    return log(sum) + max - logits[target];
}

// What can be measured beside the loss: a share of attention, or its entropy, a head.
enum { ENTROPY, FIRST, SINKS, N_EXTRAS };
static const struct {
    const char *name;
    const int *asked;
} extras[N_EXTRAS] = {
    [ENTROPY] = {"entropy", &ask.entropy}, [FIRST] = {"first", &ask.first},
    [SINKS] = {"sinks", &ask.first},
};

// Sums over n predictions, or over n windows' means.
typedef struct {
    double n, nll, squares, bytes, extra[N_EXTRAS];
} Sums;

static void add_loss(Sums *s, double nll, double bytes, const double *extra)
{
    s->n++;
    s->nll += nll;
    s->squares += nll * nll;
    s->bytes += bytes;
    for (int k = 0; extra && k < N_EXTRAS; k++) s->extra[k] += extra[k];
}

// Their mean's standard error, in words: of one number there is none.
static const char *standard_error(const Sums *s)
{
    static char text[32];
    double mean = s->nll / s->n, variance = (s->squares / s->n - mean * mean) / (s->n - 1);
    snprintf(text, sizeof text, s->n > 1 ? "%.4f" : "?", sqrt(fmax(0, variance)));
    return text;
}

// What a mask says of a prediction: the token that it is for, and whether that is a key token.
typedef struct {
    int token, key; // token -1: it says nothing
} Mark;

typedef struct {
    size_t n, from;             // of a window, predictions from..n-1 count
    size_t fed, to_feed;        // tokens so far, and in all
    size_t n_buckets, n_windows;
    Sums bucket[BUCKETS], all, windows, keys;
    Sums *layer;                // [n_layers]: its attention
    const Mark *marks;          // [n_windows][n], or NULL
    double start;
    size_t vocab;               // rows at hand:
    float *logits;              // [LOGIT_ROWS][vocab]
    const int *target;          // the tokens that they predict
    double *nll;                // [n]: of a window, and
    double (*extra)[N_EXTRAS];  // [n]
    double *at;                 // where in nll the rows at hand go
} Perplexity;

static void loss_row(void *arg, size_t t)
{
    Perplexity *p = arg;
    p->at[t] = cross_entropy(p->logits + t * p->vocab, p->vocab, p->target[t]);
}

// What is seen of a softmax: its largest score, the sum of its weights exp(score - largest), the
// sum of weight * score, and the first token's weight.
typedef struct {
    double largest, sum, weighted, first;
} Softmax;

// [n_layers][parts][n_heads] of the chunk at hand. Its queries are one part each; a single query is
// in as many parts as it has segments, which may be attended to at the same time.
static Softmax *watched;
static size_t watched_parts;

static void merge_softmax(Softmax *s, Softmax p)
{
    double largest = fmax(s->largest, p.largest);
    double old = exp(s->largest - largest), new = exp(p.largest - largest);
    if (!(p.sum > 0)) return;
    if (!(s->sum > 0)) old = 0, new = 1, largest = p.largest;
    *s = (Softmax){largest, s->sum * old + p.sum * new, s->weighted * old + p.weighted * new,
                   s->first * old + p.first * new};
}

// Attention's watch: a query's scores of tile t. The softmax of the tile alone, with no values to
// be weighted (v_dim 0), joins what was seen of the query's part.
static void watch_scores(const Attention *a, const Query *q, int64_t t, const float *score)
{
    size_t part = (size_t)(a->n_parts > 1 ? t / SEGMENT_TILES : q->i - a->pos);
    float weight[TILE], finite[TILE];
    RowSums sums = EMPTY;
    for (int k = 0; k < TILE; k++) finite[k] = fmaxf(score[k], -1e30f); // no 0 * infinity
    softmax_step(memcpy(weight, score, sizeof weight), NULL, &sums, 0);
    Softmax tile = {sums.largest, sums.sum, dot(weight, finite, TILE), t ? 0 : *weight};
    size_t at = ((size_t)a->layer * watched_parts + part) * (size_t)q->c->n_heads + q->head;
    merge_softmax(watched + at, tile);
}

// Has attention watched, and forgets what was seen before.
static void begin_watch(State *s)
{
    Attention *a = &s->attn;
    size_t segments = ceil_div(a->cache.n_slots, SEGMENT_TILES);
    watched_parts = max_size(s->chunk, segments);
    size_t n = watched_parts * (size_t)a->config.n_layers * (size_t)a->config.n_heads;
    a->watch = watch_scores;
    watched = memset(xrealloc(watched, n, sizeof *watched), 0, n * sizeof *watched);
}

// The softmax of query t of the chunk in a layer and head.
static Softmax seen_softmax(const Attention *a, size_t layer, size_t t, size_t head)
{
    Softmax s = {0}, *of = watched + layer * watched_parts * a->config.n_heads + head;
    for (size_t part = t; part < (a->n > 1 ? t + 1 : watched_parts); part++)
        merge_softmax(&s, of[part * a->config.n_heads]);
    return s;
}

// What one token's softmax in one head adds to the means: its entropy, the share of the first
// token, and whether that is more than 0.3.
static void add_softmax(double mean[N_EXTRAS], Softmax s, double n_heads)
{
    mean[ENTROPY] += (s.largest + log(s.sum) - s.weighted / s.sum) / n_heads;
    mean[FIRST] += s.first / s.sum / n_heads;
    mean[SINKS] += (s.first > 0.3 * s.sum) / n_heads;
}

// What was seen of the attention of row t of the chunk, as means over heads: of each layer added to
// its sums, of all layers to extra.
static void watch_row(const Session *s, Perplexity *p, size_t t, double *extra)
{
    const Attention *a = &s->state.attn;
    size_t layers = a->config.n_layers, heads = a->config.n_heads;
    for (size_t l = 0; a->watch && l < layers; l++) {
        double mean[N_EXTRAS] = {0};
        for (size_t h = 0; h < heads; h++)
            add_softmax(mean, seen_softmax(a, l, t, h), (double)heads);
        add_loss(&p->layer[l], 0, 0, mean);
        for (int k = 0; k < N_EXTRAS; k++) extra[k] += mean[k] / (double)layers;
    }
}

// Before a line is written: what --positions cannot be together with. xPos fades over a tile's
// positions as far as floats reach, which tiles of neighbours never meet.
static void check_positions(const Session *s)
{
    enum { XPOS_REACH = 1 << 15 };
    const Config *c = &s->model.config;
    if (!ask.positions) return;
    if (ask.positions < s->ctx)
        die(EXIT_USAGE, "--positions", "fewer than a text may have tokens (got %d, want %lld or "
            "more)", ask.positions, s->ctx);
    check_learned(c, "--positions", ask.positions);
    if (encodings[c->encoding].decay && ask.positions > XPOS_REACH)
        die(EXIT_USAGE, "--positions", "too far for encoding %s (got %d, want at most %d)",
            encodings[c->encoding].name, ask.positions, XPOS_REACH);
    if (c->encoding == ENC_FIRE || c->rope.distance)
        die(EXIT_USAGE, "--positions", "not with %s, which counts tokens",
            c->rope.distance ? "a distance method" : "encoding fire");
}

// With --positions N the n tokens of a text stand at positions that are drawn anew for each text:
// so many of 0 .. N-1, in order (selection sampling: each is taken with the chance wanted / left).
// That is how models of "randomized" encodings are trained, and in their paper also tested (Ruoss
// et al. 2023, arXiv 2305.16843). Angles of the text before are forgotten.
static void draw_positions(Session *s, size_t n, uint64_t *rng)
{
    static double *at;
    size_t all = (size_t)ask.positions, chosen = 0, room = round_up(max_size(n, s->ctx), TILE);
    if (!all) return;
    at = xrealloc(at, room, sizeof *at);
    for (size_t p = 0; chosen < n; p++)
        if (random_unit(rng) * (double)(all - p) < (double)(n - chosen)) at[chosen++] = (double)p;
    for (; chosen < room; chosen++) at[chosen] = at[chosen - 1] + 1;
    Attention *a = &s->state.attn;
    a->config.rope.positions = at;
    for (int kind = 0; kind < 2; kind++) {
        Positions *p = &a->positions[kind];
        p->rope.positions = at;
        for (size_t k = 0; p->angles && k < s->state.chunk; k++) p->angles[k].length = 0;
    }
}

// The losses of predictions from..n-1 (prediction i is that of ids[i + 1]) with ids[0 .. n-1] in an
// empty cache, to nll[i - from]; returns before which one Ctrl-C ended it.
static size_t window_losses(Session *s, Perplexity *p, const int *ids, size_t n, size_t from,
                            double *nll, double (*extra)[N_EXTRAS])
{
    size_t at = 0;
    s->state.attn.text = (int64_t)n + 1;
    for (size_t step; at < n && !interrupted; at += step) {
        step = min_size(n - at, s->state.chunk);
        if (ask.entropy || ask.first) begin_watch(&s->state);
        forward(&s->state, ids + at, step, at);
        for (size_t t = at < from ? from - at : 0; t < step; t += LOGIT_ROWS) {
            size_t rows = min_size(LOGIT_ROWS, step - t);
            p->target = ids + at + t + 1;
            p->at = nll + at + t - from;
            classify(&s->state, t, rows, p->logits);
            parallel_for(rows, ceil_div(MIN_SHARE, p->vocab), loss_row, p);
            for (size_t r = 0; r < rows; r++) {
                if (!isfinite(p->at[r]))
                    die(EXIT_DATA, s->model.path, "its loss is not finite at position %zu",
                        at + t + r);
                double *seen = extra ? extra[at + t + r - from] : NULL;
                if (seen) watch_row(s, p, t + r, memset(seen, 0, sizeof *extra));
            }
        }
        p->fed += step;
        show_progress("tokens", p->start, interrupted ? p->to_feed : p->fed, p->to_feed);
    }
    return max_size(at, from);
}

// Adds the loss of ids[i + 1].
static void add_prediction(const Session *s, Perplexity *p, const int *ids, size_t i)
{
    double nll = p->nll[i - p->from], *extra = p->extra[i - p->from];
    size_t len, w = (size_t)p->windows.n;
    size_t b = ((i - p->from + 1) * p->n_buckets - 1) / (p->n - p->from);
    int prev = i || !w ? ids[i] : -1; // a later window's first space is the text's own
    tokenizer_decode(&s->tokenizer, prev, ids[i + 1], &len);
    add_loss(&p->bucket[b], nll, len, extra);
    add_loss(&p->all, nll, len, extra);
    if (p->marks) {
        Mark mark = p->marks[w * p->n + i];
        if (mark.token >= 0 && mark.token != ids[i + 1])
            die(EXIT_DATA, ask.mask, "made for another text, tokenizer or -c (window %zu, position "
                "%zu: got token %d, want %d)", w, i, mark.token, ids[i + 1]);
        if (mark.token >= 0 && mark.key) add_loss(&p->keys, nll, 0, NULL);
    }
    fprintf(tsv, "%zu\t%zu\t%d\t%.7f", w, i, ids[i + 1], nll);
    for (int k = 0; k < N_EXTRAS; k++)
        if (*extras[k].asked) fprintf(tsv, "\t%.7f", extra[k]);
    fprintf(tsv, "\n");
}

// Runs ids[n + 1] from an empty cache; each is predicted from those before it.
static void score_window(Session *s, Perplexity *p, const int *ids)
{
    double before = p->all.nll;
    uint64_t rng = seed_random(1 + (((uint64_t)opt.seed - 1) << 32) + (uint64_t)p->windows.n);
    draw_positions(s, p->n, &rng);
    size_t to = window_losses(s, p, ids, p->n, p->from, p->nll, p->extra);
    for (size_t i = p->from; i < to; i++) add_prediction(s, p, ids, i);
    if (to == p->n) add_loss(&p->windows, (p->all.nll - before) / (p->n - p->from), 0, NULL);
}

// A mask as mode contrast writes it: columns by their names, one row a prediction.
static const Mark *read_mask(const char *path, size_t n_windows, size_t n)
{
    static const char *const names[] = {"window", "position", "token", "key"};
    size_t len;
    Mark *marks = xcalloc(n_windows * n, sizeof *marks);
    for (size_t i = 0; i < n_windows * n; i++) marks[i].token = -1;
    char *text = read_text(path, &len), *line = strsep(&text, "\n"), *field;
    int column[64], columns = 0;
    for (; columns < 64 && (field = strsep(&line, "\t\r")); columns++)
        column[columns] = FIND_NAME(names, field);
    int seen = 0;
    for (int c = 0; c < columns; c++) seen |= column[c] < 0 ? 0 : 1 << column[c];
    if (seen != 15) die(EXIT_DATA, path, "not a mask (want columns %s)", LIST_NAMES(names));
    while ((line = strsep(&text, "\n"))) {
        if (!line[strspn(line, " \r")]) continue;
        long long value[4] = {-1, -1, -1, -1};
        for (int c = 0; c < columns && (field = strsep(&line, "\t\r")); c++)
            if (column[c] >= 0)
                value[column[c]] = (long long)parse_number(EXIT_DATA, path, field, 1, 0,
                                                           column[c] == 3 ? 1 : 1e9);
        if (value[0] < 0 || value[1] < 0 || value[2] < 0 || value[3] < 0)
            die(EXIT_DATA, path, "a row without a window, a position, a token and a key of 0 or 1");
        if ((size_t)value[0] < n_windows && (size_t)value[1] < n)
            marks[(size_t)value[0] * n + (size_t)value[1]] = (Mark){(int)value[2], (int)value[3]};
    }
    return marks;
}

static double bits_per_byte(const Sums *s) { return s->bytes ? s->nll / s->bytes / M_LN2 : 0; }

static void print_extras(const Sums *s)
{
    for (int k = 0; k < N_EXTRAS; k++)
        if (*extras[k].asked) printf(" %8.3f", s->extra[k] / s->n);
}

static void print_perplexity(const Perplexity *p)
{
    size_t n = p->n - p->from, many = p->windows.n > 1;
    double top = 0, took = seconds() - p->start, windows = fmax(1, p->windows.n);
    for (size_t b = 0; b < p->n_buckets; b++) top = fmax(top, p->bucket[b].nll / p->bucket[b].n);
    printf("     from        to     loss  perplexity bits/byte");
    for (int k = 0; k < N_EXTRAS; k++)
        if (*extras[k].asked) printf("  %7s", extras[k].name);
    printf("\n");
    for (size_t b = 0; b < p->n_buckets && p->bucket[b].n > 0; b++) {
        const Sums *s = &p->bucket[b];
        double loss = s->nll / s->n;
        printf("%9zu %9zu %8.4f %11.2f %9.4f", p->from + b * n / p->n_buckets,
               p->from + (b + 1) * n / p->n_buckets - 1, loss, exp(loss), bits_per_byte(s));
        print_extras(s);
        print_bar(loss / top, 30);
    }
    double loss = p->all.nll / p->all.n;
    printf("loss %.4f +- %s (standard error over %s), perplexity %.3f, bits/byte %.4f\n", loss,
           standard_error(many ? &p->windows : &p->all),
           many ? "windows" : "the tokens of one window", exp(loss), bits_per_byte(&p->all));
    if (p->marks && p->keys.n > 0)
        printf("key tokens: loss %.4f +- %s (standard error over %.0f tokens)\n",
               p->keys.nll / p->keys.n, standard_error(&p->keys), p->keys.n);
    else if (p->marks) printf("key tokens: none in these windows\n");
    printf("%.0f windows, %.0f predictions, %.1f s, %.1f tok/s\n", windows, p->all.n, took,
           p->fed / took);
}

// The same means for each layer: which ones keep their attention on the first token.
static void print_layers(const Session *s, const Perplexity *p)
{
    printf("layer");
    for (int k = 0; k < N_EXTRAS; k++)
        if (*extras[k].asked) printf("  %7s", extras[k].name);
    printf("\n");
    for (int l = 0; l < s->model.config.n_layers; l++) {
        printf("%5d", l);
        print_extras(&p->layer[l]);
        printf("\n");
    }
}

// Windows of as many tokens as the context has, each with its own BOS and an empty cache, side by
// side; or, with a stride, sliding by it, the last `stride` predictions of each counting. Returns
// the text's ids.
static int *begin_windows(Session *s, Perplexity *p, size_t stride)
{
    size_t n_ids;
    if (!s->text) die(EXIT_USAGE, mode->name, "needs a text: -f FILE");
    int *ids = encode_text(&s->tokenizer, s->text, s->len, &n_ids);
    size_t n = min_size(s->ctx, n_ids), step = stride ? stride : n - 1;
    if (s->ctx < 2) die(EXIT_USAGE, "-c", "nothing to predict (got %lld, want 2)", s->ctx);
    if (n < 2) die(EXIT_DATA, "text", "nothing to predict (got %zu tokens, want 2)", n);
    if (stride >= n) die(EXIT_USAGE, "--stride", "want less than the window of %zu tokens", n);
    give_hints(s);
    *p = (Perplexity){.n = n - 1, .from = n - 1 - step, .start = seconds(),
                      .n_buckets = min_size(BUCKETS, step), .n_windows = 1 + (n_ids - n) / step,
                      .vocab = s->model.config.vocab_size};
    if (ask.windows) p->n_windows = min_size(p->n_windows, ask.windows);
    p->to_feed = p->n_windows * p->n;
    p->logits = xcalloc(LOGIT_ROWS * p->vocab, 4);
    p->nll = xcalloc(p->n, sizeof *p->nll);
    p->extra = xcalloc(p->n, sizeof *p->extra);
    p->layer = xcalloc(s->model.config.n_layers, sizeof *p->layer);
    return ids;
}

// Window w of the text, its BOS in place: its first token is in no later one.
static const int *window_ids(const Session *s, const Perplexity *p, int *ids, size_t w)
{
    int *window = ids + w * (p->n - p->from);
    if (s->tokenizer.add_bos) *window = s->tokenizer.bos;
    return window;
}

static void run_perplexity(Session *s)
{
    Perplexity p;
    check_positions(s);
    int *ids = begin_windows(s, &p, ask.stride);
    if (ask.mask) p.marks = read_mask(ask.mask, p.n_windows, p.n);
    char header[128] = "window\tposition\ttoken\tnll";
    for (int k = 0; k < N_EXTRAS; k++)
        if (*extras[k].asked) strcat(strcat(header, "\t"), extras[k].name);
    tsv_open(header);
    for (size_t w = 0; w < p.n_windows && !interrupted; w++)
        score_window(s, &p, window_ids(s, &p, ids, w));
    tsv_close();
    if (p.all.n > 0) print_perplexity(&p);
    if (p.all.n > 0 && ask.first) print_layers(s, &p);
}

// --- contrast ------------------------------------------------------------------------------------
//
// Most tokens of a text are told by the words just before them, so the mean loss hardly knows
// whether a model reads what lies further back. This mode finds the tokens that do profit, after
// [LongPPL] (Fang et al. 2024, arXiv 2410.23771): a prediction is a key one if the model is sure of
// it with all of the window before it (a log-probability above -2) and gains more than 2 nats by
// that over the last tokens alone (a quarter of the trained context unless --recent says how many).
// The table is a mask, which --mask gives to mode perplexity.
//
// Make one mask, by a model and a method that can be trusted at this length, and give it to every
// method. A method that chose its own key tokens would be judged where it does well: that is the
// circle which the common mask avoids. It still favours what the mask's maker can use.

static const double SURE = 2, GAIN = 2; // nats

// Losses of predictions 0..n-1 of ids[n + 1] from the last `recent` tokens at most, and no fewer
// than three quarters of them where there are so many; returns before which one it was interrupted.
static size_t recent_losses(Session *s, Perplexity *p, const int *ids, size_t recent, double *nll)
{
    size_t step = max_size(1, recent / 4), done = 0;
    for (size_t first = 0; done < p->n && !interrupted; first += step) {
        size_t n = min_size(recent, p->n - first);
        done = first + window_losses(s, p, ids + first, n, done - first, nll + done, NULL);
    }
    return done;
}

static void run_contrast(Session *s)
{
    Perplexity p;
    int *ids = begin_windows(s, &p, 0);
    size_t recent = ask.recent ? (size_t)ask.recent : max_size(4, s->model.config.train_ctx / 4);
    if (recent >= p.n)
        die(EXIT_USAGE, "--recent", "want less than the window (got %zu, window of %zu tokens)",
            recent, p.n + 1);
    double *short_nll = xcalloc(p.n, sizeof *short_nll);
    Sums far = {0}, near = {0};
    p.to_feed *= 5;
    tsv_open("window\tposition\ttoken\tnll\trecent\tkey");
    for (size_t w = 0; w < p.n_windows && !interrupted; w++) {
        const int *window = window_ids(s, &p, ids, w);
        size_t n = window_losses(s, &p, window, p.n, 0, p.nll, p.extra);
        n = min_size(n, recent_losses(s, &p, window, recent, short_nll));
        for (size_t i = 0; i < n; i++) {
            int key = p.nll[i] < SURE && short_nll[i] - p.nll[i] > GAIN;
            add_loss(&p.all, p.nll[i], 0, NULL);
            if (key) add_loss(&far, p.nll[i], 0, NULL), add_loss(&near, short_nll[i], 0, NULL);
            fprintf(tsv, "%zu\t%zu\t%d\t%.7f\t%.7f\t%d\n", w, i, window[i + 1], p.nll[i],
                    short_nll[i], key);
        }
    }
    tsv_close();
    printf("%.0f of %.0f predictions are key ones (%.2f %%)\n", far.n, p.all.n,
           100 * far.n / fmax(1, p.all.n));
    if (far.n > 0)
        printf("their loss: %.4f +- %s with all of the window, %.4f with the last %zu tokens\n",
               far.nll / far.n, standard_error(&far), near.nll / near.n, recent);
}

// --- passkey and retrieval -----------------------------------------------------------------------
// A fact, or several, somewhere in a long filler text, and a question at the end; the answer is
// decoded greedily and must begin with exactly the right digits.

typedef struct {
    int n_facts, answer;
    char fact[4][96], question[64], lead[64]; // lead: how the reply begins
    double at[4];                             // where in the filler the facts are, 0 to 1, in order
    unsigned pairs;                           // kv: chooses the other pairs; 0: the filler is text
} Task;

__attribute__((format(printf, 3, 4))) static void add_fact(Task *t, double at, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int i = t->n_facts++;
    for (; i > 0 && t->at[i - 1] > at; i--) {
        t->at[i] = t->at[i - 1];
        strcpy(t->fact[i], t->fact[i - 1]);
    }
    t->at[i] = at;
    vsnprintf(t->fact[i], sizeof t->fact[i], fmt, ap);
    va_end(ap);
}

static int random_below(uint64_t *rng, int n) { return (int)(random_unit(rng) * (float)n); }

// A passkey, stated twice. [PI] 3.4, after Mohtashami and Jaggi 2023
static void make_passkey(Task *t, double depth, uint64_t *rng)
{
    int key = t->answer = 10000 + random_below(rng, 90000);
    add_fact(t, depth, "The pass key is %d. Remember it. %d is the pass key.", key, key);
    sprintf(t->question, "What is the pass key?");
    sprintf(t->lead, "The pass key is");
}

// Four keys with names (RULER's multi-key). The one at `depth` is asked for.
static void make_multikey(Task *t, double depth, uint64_t *rng)
{
    static const char *const names[] = {"Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace",
                                        "Henry"};
    int first = random_below(rng, 8);
    for (int i = 0; i < 4; i++) {
        int number = 1000 + random_below(rng, 9000);
        if (!i) t->answer = number;
        add_fact(t, i ? random_unit(rng) : depth, "The magic number for %s is %d.",
                 names[(first + 3 * i) % 8], number);
    }
    sprintf(t->question, "What is the magic number for %s?", names[first]);
    sprintf(t->lead, "The magic number for %s is", names[first]);
}

// A chain of two assignments to follow, which begins at `depth`, and another one that leads astray
// (RULER's variable tracking).
static void make_tracking(Task *t, double depth, uint64_t *rng)
{
    int a = random_below(rng, 26), number = t->answer = 1000 + random_below(rng, 9000);
    int b = (a + 1 + random_below(rng, 8)) % 26, c = (a + 9 + random_below(rng, 8)) % 26;
    int d = (a + 17 + random_below(rng, 8)) % 26;
    double later = depth + (1 - depth) * random_unit(rng), other = random_unit(rng);
    add_fact(t, depth, "The box %c holds %d.", 'A' + a, number);
    add_fact(t, later, "The box %c holds what the box %c holds.", 'A' + b, 'A' + a);
    add_fact(t, other, "The box %c holds %d.", 'A' + c, 1000 + random_below(rng, 9000));
    add_fact(t, other + (1 - other) * random_unit(rng), "The box %c holds what the box %c holds.",
             'A' + d, 'A' + c);
    sprintf(t->question, "What does the box %c hold?", 'A' + b);
    sprintf(t->lead, "The box %c holds", 'A' + b);
}

// Key number i of the list that `pairs` chooses: all different, as 7919 and 9000 have no divisor in
// common.
static int kv_key(unsigned pairs, size_t i) { return (int)(1000 + (pairs + i * 7919) % 9000); }

// Its value: any four digits that have nothing to do with the key.
static int kv_value(unsigned pairs, size_t i)
{
    return (int)(1000 + seed_random(pairs + (uint64_t)i * 0x100000001) % 9000);
}

// A list of pairs and nothing else (Liu et al. 2023, "Lost in the middle", arXiv 2307.03172): the
// pair at `depth` is asked for, after two questions with their answers, which show a base model
// what is wanted.
static void make_kv(Task *t, double depth, uint64_t *rng)
{
    t->pairs = (unsigned)(next_random(rng) >> 40 | 1);
    int key = kv_key(t->pairs, 0);
    t->answer = kv_value(t->pairs, 0);
    add_fact(t, depth, "The value of %d is %d.", key, t->answer);
    sprintf(t->question, "What is the value of %d?", key);
    sprintf(t->lead, "The value of %d is", key);
}

static const struct {
    const char *name;
    void (*make)(Task *t, double depth, uint64_t *rng);
} task_kinds[] = {
    {"passkey", make_passkey}, {"multi-key", make_multikey}, {"variable tracking", make_tracking},
    {"kv", make_kv},
};

// What all cells of a grid have in common.
typedef struct {
    Session *s;
    int kind;                 // of the tasks
    const char *format; // of the model, or NULL
    char **filler;            // sentences [n_filler], repeated as often as needed
    size_t n_filler;
} Grid;

// The filler's sentences, cut out of `text`; they end before a blank or with the line.
static void split_sentences(Grid *g, char *text)
{
    for (char *s = text; *(s += strspn(s, " \t\r\n"));) {
        g->filler = xrealloc(g->filler, g->n_filler + 1, sizeof *g->filler);
        g->filler[g->n_filler++] = s;
        while (*s && *s != '\n' && !(s[0] == ' ' && strchr(".!?", s[-1]))) s++;
        if (*s) *s++ = 0;
    }
    if (!g->n_filler) die(EXIT_DATA, "filler", "no sentences in it");
}

// The ids of the task's text with n sentences of filler, from sentence `first` on: as a user's turn
// and the beginning of the reply if the model has a turn format, as one text otherwise.
static int *encode_task(const Grid *g, const Task *t, size_t first, size_t n, size_t *n_ids)
{
    char *text;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    if (!out) die(EXIT_DATA, "memory", "cannot begin a text (%s)", strerror(errno));
    unsigned pairs = t->pairs;
    for (size_t i = 0, fact = 0; i <= n; i++) {
        for (; fact < (size_t)t->n_facts && t->at[fact] * n <= i; fact++)
            fprintf(out, "%s ", t->fact[fact]);
        if (i < n && pairs)
            fprintf(out, "The value of %d is %d. ", kv_key(pairs, i + 1), kv_value(pairs, i + 1));
        else if (i < n) fprintf(out, "%s ", g->filler[(first + i) % g->n_filler]);
    }
    for (size_t k = 1; pairs && n > 1 && k < 3; k++) { // examples, a third and two thirds down
        size_t i = k * n / 3 + 1;
        fprintf(out, "What is the value of %d? The value of %d is %d. ", kv_key(pairs, i),
                kv_key(pairs, i), kv_value(pairs, i));
    }
    fputs(t->question, out);
    if (!g->format) fprintf(out, " %s", t->lead);
    if (fclose(out)) die(EXIT_DATA, "memory", "cannot write a text (%s)", strerror(errno));
    int *ids;
    if (g->format) {
        Term pair[2], turn = make_message(pair, "user", quote_text(&g->s->tokenizer, text));
        ids = encode_chat(g->s, g->format, &turn, 1, n_ids);
        free((void *)pair[1].s);
        ids = xrealloc(ids, *n_ids + 2 * sizeof t->lead, sizeof *ids);
        *n_ids += tokenizer_encode(&g->s->tokenizer, t->lead, strlen(t->lead), ids + *n_ids);
    } else ids = encode_text(&g->s->tokenizer, text, len, n_ids);
    free(text);
    return ids;
}

// The ids of the longest such text that fits into `room` tokens; NULL if none does.
static int *fit_task(const Grid *g, const Task *t, size_t first, size_t room, size_t *n_ids)
{
    size_t n = 0, more = 1;
    for (int fits = 1; more && n <= room; more = fits ? 2 * more : more / 2) {
        free(encode_task(g, t, first, n + more, n_ids)); // n sentences fit, if any do
        if (*n_ids <= room) n += more;
        else fits = 0;
    }
    int *ids = encode_task(g, t, first, n, n_ids);
    if (*n_ids <= room) return ids;
    free(ids);
    return NULL;
}

// Decodes greedily until the text is longer than the answer; 1 if that is how it begins and no
// other digit follows.
static int answers(Session *s, const int *ids, size_t n, const char *answer, char got[32])
{
    size_t used = 0, want = strlen(answer), len;
    feed(s, ids, n);
    while (used <= want && !interrupted && (long long)s->pos < s->ctx) {
        int id = argmax(s->logits, s->model.config.vocab_size);
        const char *text = tokenizer_decode(&s->tokenizer, s->ids[s->pos - 1], id, &len);
        for (size_t i = 0; i < len && used < 31; i++)
            if (used || text[i] != ' ') got[used++] = isspace((uint8_t)text[i]) ? ' ' : text[i];
        if (s->tokenizer.pieces[id].stop) break;
        feed(s, &id, 1);
    }
    got[used] = 0;
    return !strncmp(got, answer, want) && !isdigit((unsigned char)got[want]);
}

// Where the fact is in column d, 0 to 1.
static double grid_depth(int d) { return ask.depths > 1 ? (double)d / (ask.depths - 1) : 0.5; }

// One cell of the grid: the share of right answers at one length and depth; -1: interrupted, or
// the length has no room for the task.
static double run_cell(const Grid *g, size_t l, int d)
{
    uint64_t texts = (((uint64_t)opt.seed - 1) * 32 + l) * 64 + d; // seeds have none in common
    int right = 0;
    for (int trial = 0; trial < ask.trials; trial++) {
        uint64_t rng = seed_random(1 + texts * 1024 + trial);
        for (int i = 0; i < 4; i++) next_random(&rng);
        Task task = {0};
        char got[32], answer[16];
        size_t n;
        task_kinds[g->kind].make(&task, grid_depth(d), &rng);
        sprintf(answer, "%d", task.answer);
        g->s->pos = 0;
        size_t first = random_below(&rng, (int)min_size(g->n_filler, 1 << 20));
        draw_positions(g->s, ask.length[l], &rng); // last: the text is the same without
        int *ids = fit_task(g, &task, first, ask.length[l] - 8, &n); // 8 tokens for the answer
        if (!ids) return -1;
        int ok = answers(g->s, ids, n, answer, got);
        free(ids);
        if (interrupted) return -1;
        right += ok;
        fprintf(tsv, "%s\t%zu\t%.3f\t%d\t%zu\t%d\t%s\t%s\n", task_kinds[g->kind].name,
                ask.length[l], grid_depth(d), trial, n, ok, answer, got);
    }
    return (double)right / ask.trials;
}

static void run_grid(const Grid *g)
{
    static const char *const shades[] = {"  ", "\u2591\u2591", "\u2592\u2592", "\u2593\u2593",
                                         "\u2588\u2588"};
    double total = 0, cells = 0;
    printf("%s: %% right over %d trials, by depth of the fact (0: at the beginning)\n%9s",
           task_kinds[g->kind].name, ask.trials, "tokens");
    for (int d = 0; d < ask.depths; d++) printf(" %6.0f%%", 100 * grid_depth(d));
    printf("     all\n");
    for (size_t l = 0; l < ask.n_lengths && !interrupted; l++) {
        double right = 0, done = 0;
        printf("%9zu", ask.length[l]); // seen when the row is complete: progress uses the line
        for (int d = 0; d < ask.depths; d++) {
            double share = interrupted ? -1 : run_cell(g, l, d);
            if (share < 0) printf("%8s", "-");
            else printf(" %s %4.0f", shades[lround(share * 4)], 100 * share);
            if (share >= 0) right += share, done++;
        }
        if (done > 0) printf(" %7.0f", 100 * right / done);
        printf("\n");
        check_written(stdout, "stdout");
        total += right;
        cells += done;
    }
    if (cells > 0) printf("all cells: %.1f%%\n", 100 * total / cells);
}

static void check_context(long long ctx)
{
    if (ctx < 32) die(EXIT_USAGE, "-c", "too short for a test (got %lld)", ctx);
}

// The lengths to test where --lengths does not say: from an eighth of the context up.
static void fill_lengths(long long ctx)
{
    check_context(ctx);
    if (ask.n_lengths) return;
    for (long long n = ctx < 256 ? ctx : ctx / 8; n <= ctx; n *= 2) ask.length[ask.n_lengths++] = n;
}

// Tasks of kinds first..last, each over the whole grid. The filler is the user's text, if any.
static void run_grids(Session *s, int first, int last)
{
    fill_lengths(s->ctx);
    check_positions(s);
    static const char classic[] = "The grass is green. The sky is blue. The sun is yellow. "
                                  "Here we go. There and back again.";
    const char *what;
    int own = own_template(&s->model).n > 0;
    Grid g = {.s = s, .kind = first, .format = own ? open_template(s, &what) : NULL};
    give_hints(s);
    if (s->text) check_string("filler", s->text, s->len);
    split_sentences(&g, copy_string(s->text ? s->text : classic));
    tsv_open("task\tlength\tdepth\ttrial\ttokens\tright\tanswer\tgot");
    for (; g.kind <= last && !interrupted; g.kind++) run_grid(&g);
    tsv_close();
}

static void run_passkey(Session *s) { run_grids(s, 0, 0); }
static void run_retrieval(Session *s) { run_grids(s, 1, 2); }

// A pair takes 8 tokens and more; after 9000 pairs keys would come again, with other values.
static void run_kv(Session *s)
{
    fill_lengths(s->ctx);
    for (size_t l = 0; l < ask.n_lengths; l++)
        if (ask.length[l] > 8 * 9000)
            die(EXIT_USAGE, "--lengths", "keys of four digits do not suffice (got %zu, want at "
                "most %d)", ask.length[l], 8 * 9000);
    run_grids(s, 3, 3);
}

// --- rope ----------------------------------------------------------------------------------------

// A row for each pair of the dimensions that are made to turn: how long its wave was and is; then
// the mean of cos(D theta_m) over them, which is what their rotation leaves of the score of equal q
// and k at distance D.
static void run_rope(Session *s)
{
    const Config *c = &s->model.config;
    RopeConfig *r = &s->model.config.rope;
    if (!is_rotary(c))
        die(EXIT_USAGE, "--mode rope", "the model does not rotate (its encoding is %s)",
            encodings[c->encoding].name);
    rope_resolve(r, c->train_ctx, s->ctx);
    size_t pairs = rotary_dims(c) / 2;
    double *before = xcalloc(pairs, 8), *after = xcalloc(pairs, 8), n = s->ctx;
    tsv_open("pair\twavelength\tscaled\tturns\tratio");
    print_rope("RoPE", r);
    printf(" pair   wavelength       scaled  turns in L    ratio   at length %.0f\n", n);
    for (size_t m = 0; m < pairs; m++) {
        before[m] = rope_none(r, rotary_dims(c), (int)m, n);
        if (r->own_factors) before[m] /= r->own_factors[m];
        after[m] = pair_frequency(c, r, m, n);
        double wave = 2 * M_PI / before[m], scaled = 2 * M_PI / after[m], ratio = scaled / wave;
        double turns = r->orig_ctx / wave, most = r->factor;
        if (r->method == ROPE_DYNAMIC) most = fmax(1, 1 + r->factor * (n / r->orig_ctx - 1));
        const char *what = isinf(ratio) ? "still" : fabs(ratio - 1) < 1e-3 ? "kept"
                         : ratio > 0.999 * most ? "interpolated" : "mixed";
        printf("%5zu %12.1f %12.1f %11.3f %8.3f  %s\n", m, wave, scaled, turns, ratio, what);
        fprintf(tsv, "%zu\t%.6g\t%.6g\t%.6g\t%.6g\n", m, wave, scaled, turns, ratio);
    }
    tsv_close();
    printf("\nmean of cos(D theta) over pairs: how a score decays with the distance D\n"
           "%9s %8s %8s\n", "D", "trained", "scaled");
    for (double D = 1; D <= n; D *= 2) {
        double trained = 0, scaled = 0;
        for (size_t m = 0; m < pairs; m++) {
            trained += cos(D * before[m]) / pairs;
            scaled += cos(D * after[m]) / pairs;
        }
        printf("%9.0f %8.3f %8.3f", D, trained, scaled);
        print_bar(scaled, 40);
    }
}

// --- bench ---------------------------------------------------------------------------------------

// Bytes of the weights that are read for each token: all matrices, the classifier among them even
// if it is the embeddings' table, and norms. As embeddings that table has one row read, which does
// not count, and neither do biases.
static size_t weight_bytes(const Model *model)
{
    Model m = *model; // a copy, since the list has places where weights could be put
    size_t sum = 0;
    Weight list[N_WEIGHTS];
    for (int l = 0; l < m.config.n_layers; l++) {
        list_weights(&m, l, list);
        for (const Weight *w = list; w < list + (l ? N_OF_LAYER : N_WEIGHTS); w++) {
            if (w->kind == MATRIX && w->rows) sum += tensor_bytes(w->to);
            if (w->kind == NORM && ((const Norm *)w->to)->weight) sum += 4 * w->rows;
        }
    }
    return sum;
}

// Tokens that a query with n before it sees: the mean over layers, of which some have a window.
static double seen_tokens(const Session *s, double n)
{
    const Attention *a = &s->state.attn;
    double sum = 0;
    for (int l = 0; l < a->config.n_layers; l++) {
        const RopeConfig *r = &a->positions[s->model.layers[l].local].rope;
        sum += r->window ? fmin(n, r->window + r->sinks) : n;
    }
    return sum / a->config.n_layers;
}

// With 0, 1/4, 1/2 and 3/4 of the context used: the speed of reading the next quarter, and that of
// writing DECODED tokens.
static void run_bench(Session *s)
{
    enum { DECODED = 32 };
    const Config *c = &s->model.config;
    size_t quarter = s->ctx / 4, elem = number_size(s->state.attn.cache.as);
    size_t kv = 2 * c->n_layers * kv_dim(c) * elem, weight = weight_bytes(&s->model);
    // Multiplications and additions of a token, classifier left out, and of a token that it sees
    double q = q_dim(c), net = (3.0 - c->no_gate) * c->dim * c->hidden_dim;
    double weights = 2 * c->dim * (q + kv_dim(c)) + net;
    double flops = 2 * c->n_layers * weights, seen_flops = 4 * c->n_layers * q;
    if (quarter < DECODED) die(EXIT_USAGE, "-c", "too short to measure (got %lld)", s->ctx);
    int *ids = xcalloc(quarter, sizeof *ids);
    uint64_t rng = seed_random(1);
    for (size_t i = 0; i < quarter; i++) ids[i] = random_below(&rng, c->vocab_size);
    printf("%9s %12s %9s %12s %8s\n", "context", "prompt tok/s", "GFLOP/s", "decode tok/s", "GB/s");
    for (size_t depth = 0; depth < 4 * quarter; depth += quarter) {
        double start = seconds();
        s->pos = depth;
        s->state.attn.text = s->ctx; // as if all had been read; at 0 feed() begins a text
        feed(s, ids, quarter);
        double middle = seconds(), read = quarter / (middle - start);
        s->pos = depth;
        for (int i = 0; i < DECODED && !interrupted; i++) feed(s, ids + i, 1);
        double made = DECODED / (seconds() - middle);
        if (interrupted) return;
        printf("%9zu %12.1f %9.1f %12.1f %8.2f\n", depth, read,
               (flops + seen_flops * seen_tokens(s, depth + quarter / 2.0)) * read / 1e9, made,
               (weight + kv * seen_tokens(s, depth)) * made / 1e9);
        fflush(stdout);
    }
}

// --- options -------------------------------------------------------------------------------------

// The lengths to test, "A,B,C". The longest is the context, from which methods have their factors,
// unless -c says which is.
static void parse_lengths(void)
{
    size_t longest = 0;
    if (opt.ctx) check_context(opt.ctx);
    for (char *list = copy_string(ask.lengths); list;) {
        if (ask.n_lengths == COUNT(ask.length)) die(EXIT_USAGE, "--lengths", "more than 32");
        size_t n = parse_number(EXIT_USAGE, "--lengths", strsep(&list, ","), 1, 32,
                                opt.ctx ? opt.ctx : 1 << 28);
        ask.length[ask.n_lengths++] = n;
        longest = max_size(longest, n);
    }
    if (!opt.ctx) opt.ctx = (int)longest;
}

enum { GRID = 8 }; // beside run.c's kinds: a task at several lengths and depths
static const Mode measure_modes[] = {
    {"perplexity", run_perplexity, 0}, {"passkey", run_passkey, GRID},
    {"retrieval", run_retrieval, GRID}, {"kv", run_kv, GRID}, {"contrast", run_contrast, 0},
    {"rope", run_rope, NO_STATE}, {"bench", run_bench, 0},
};

static const Option measure_options[] = {
    {"mode", 'm', "MODE", NULL, NAME(opt.mode, measure_modes)},
    {"windows", 0, "K", "perplexity: so many windows of -c at most", NUMBER(ask.windows, 1, 1e9)},
    {"stride", 0, "N", "perplexity: slide by N, score the last N", NUMBER(ask.stride, 1, 1 << 28)},
    {"entropy", 0, "", "perplexity: entropy of attention, too", FLAG(ask.entropy)},
    {"first", 0, "", "perplexity: attention's share on the first token, too", FLAG(ask.first)},
    {"mask", 0, "PATH", "perplexity: loss of key tokens, by contrast's table", TEXT(ask.mask)},
    {"recent", 0, "N", "contrast: the short context (a quarter of L)",
     NUMBER(ask.recent, 1, 1 << 28)},
    {"positions", 0, "N", "of a text's tokens: drawn from 0 .. N-1, in order, by -s",
     NUMBER(ask.positions, 1, 1 << 24)},
    {"lengths", 0, "A,B,..", "passkey, retrieval, kv: lengths in tokens", TEXT(ask.lengths)},
    {"depths", 0, "D", "passkey, retrieval, kv: places of the fact (5)", NUMBER(ask.depths, 1, 64)},
    {"trials", 0, "T", "passkey, retrieval, kv: texts a place (5)", NUMBER(ask.trials, 1, 1024)},
    {"tsv", 0, "PATH", "the measurements as a table", TEXT(ask.tsv)},
};
static const Names measure_program[] = {
    NAMES(measure_options), NAMES(shared_options), NAMES(config_fields), {0}};

// Refuses what a mode would ignore, and fills in what was not said: the same seed each time, so
// that all methods get the same texts.
static void check_measure(void)
{
    int perplexity = mode->run == run_perplexity, contrast = mode->run == run_contrast;
    int grid = mode->kind & GRID, filled = grid && mode->run != run_kv;
    int text = perplexity || contrast || filled;
    const struct {
        const char *name;
        int given, fits;
    } own[] = {
        {"--windows", ask.windows, perplexity || contrast}, {"--stride", ask.stride, perplexity},
        {"--entropy", ask.entropy, perplexity}, {"--first", ask.first, perplexity},
        {"--mask", ask.mask != NULL, perplexity}, {"--recent", ask.recent, contrast},
        {"--positions", ask.positions, perplexity || grid}, {"--depths", ask.depths, grid},
        {"--lengths", ask.lengths != NULL, grid}, {"--trials", ask.trials, grid},
        {"--tsv", ask.tsv != NULL, mode->run != run_bench},
        {"--file", opt.file != NULL, text}, {"--prompt", opt.prompt != NULL, text},
        {"--seed", opt.seed >= 0, grid || ask.positions},
        {"a distance method", asked.rope.distance, mode->run != run_rope},
    };
    for (size_t i = 0; i < COUNT(own); i++)
        if (own[i].given && !own[i].fits)
            die(EXIT_USAGE, own[i].name, "not for mode %s", mode->name);
    if (ask.lengths) parse_lengths();
    if (!ask.depths) ask.depths = 5;
    if (!ask.trials) ask.trials = 5;
    if (opt.seed < 0) opt.seed = 1;
}

#ifdef MEASURE
int main(int argc, char **argv)
{
    prog = "measure";
    progress = show_progress;
    return run_main(measure_program, check_measure, argc, argv);
}
#endif
