// test_tokenizer.c: section 12 of run.c, and the sampler, section 13. Run in the repository's
// folder: it reads tokenizer.bin there, and the tokenizers in $REFERENCE if that is set.
#define TESTING
#include "../run.c"
#include "check.h"

// ---- A tokenizer of our own --------------------------------------------------------------------

static void load_tokenizer(Tokenizer *t, const char *path, int n)
{
    Vocab v = read_vocab(path, (size_t)n);
    tokenizer_init(t, path, &v);
}

static void write_piece(FILE *f, const char *text, size_t len, float score)
{
    int32_t n = (int32_t)len;
    fwrite(&score, 4, 1, f);
    fwrite(&n, 4, 1, f);
    fwrite(text, 1, len, f);
}

// Random pieces over " abc" and two-byte letters, with scores of which many are equal: merges here
// meet ties and orders that no trained vocabulary has.
static void load_random_tokenizer(Tokenizer *t, int seed)
{
    static const char *letters[] = {" ", "a", "b", "c", "\xc3\xa9", "\xe2\x82\xac"};
    char path[] = "/tmp/run-test-XXXXXX", name[8];
    int fd = mkstemp(path), n = 3 + 256 + 5;
    FILE *f = fdopen(fd, "wb");
    int32_t longest = 30;
    test_rng = (uint64_t)seed;
    fwrite(&longest, 4, 1, f);
    for (int i = 0; i < 3; i++) write_piece(f, "\n<s>\n", 5, 0);
    for (int i = 0; i < 256; i++) {
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        write_piece(f, name, 6, 0);
    }
    for (int i = 0; i < 5; i++) write_piece(f, letters[i], strlen(letters[i]), 0); // not the sixth
    for (int i = 0; i < 120; i++, n++) {
        char piece[64] = "";
        for (int k = 2 + (int)(random_bits() % 4); k > 0; k--) strcat(piece, letters[random_bits() % 5]);
        write_piece(f, piece, strlen(piece), -(float)(random_bits() % 12));
    }
    fclose(f);
    load_tokenizer(t, path, n);
    unlink(path);
}

// llama2.c's encoder: the pieces in an array, the best neighbours joined, again and again.
static int naive_encode(const Tokenizer *t, const char *text, size_t len, int *ids)
{
    int n = 0;
    char *spaced = xcalloc(len + 2, 1), *joined = xcalloc(2 * len + 600, 1);
    spaced[0] = ' ';
    memcpy(spaced + 1, text, len);
    for (size_t at = 0, have; at < len + 1; at += have) {
        for (have = 1; at + have < len + 1 && have < 4 && (spaced[at + have] & 0xc0) == 0x80;) have++;
        int id = find_piece(t, spaced + at, have, TOKEN_ANY);
        if (id >= 0) ids[n++] = id;
        else for (size_t k = 0; k < have; k++) ids[n++] = (uint8_t)spaced[at + k] + 3;
    }
    for (;;) {
        float best = -1e30f;
        int best_id = -1, best_at = 0;
        for (int i = 0; i + 1 < n; i++) {
            const Piece *a = &t->pieces[ids[i]], *b = &t->pieces[ids[i + 1]];
            if (a->kind == TOKEN_BYTE || b->kind == TOKEN_BYTE) continue;
            memcpy(joined, a->text, (size_t)a->len);
            memcpy(joined + a->len, b->text, (size_t)b->len);
            int id = find_piece(t, joined, (size_t)(a->len + b->len), TOKEN_ANY);
            if (id < 0 || !(t->pieces[id].score > best)) continue;
            best = t->pieces[id].score, best_id = id, best_at = i;
        }
        if (best_id < 0) break;
        ids[best_at] = best_id;
        n--;
        memmove(ids + best_at + 1, ids + best_at + 2, (size_t)(n - best_at - 1) * sizeof *ids);
    }
    free(spaced), free(joined);
    return n;
}

// ---- Round trips -------------------------------------------------------------------------------

// The text that ids stand for, after BOS.
static char *decode_all(const Tokenizer *t, const int *ids, int n, size_t *len)
{
    char *text = NULL;
    *len = 0;
    for (int i = 0; i < n; i++) {
        size_t got;
        const char *bytes = tokenizer_decode(t, i ? ids[i - 1] : ID_BOS, ids[i], &got);
        text = xrealloc(text, *len + got + 1, 1);
        memcpy(text + *len, bytes, got);
        *len += got;
    }
    return text;
}

static void check_round_trip(const Tokenizer *t, const char *text, size_t len)
{
    int *ids = xcalloc(len + 1, sizeof *ids), n = tokenizer_encode(t, text, len, ids), bad = 0;
    size_t got;
    CHECK(n <= (int)len + 1);
    for (int i = 0; i < n; i++) bad += ids[i] <= ID_EOS || ids[i] >= t->vocab_size;
    CHECK_INT(bad, 0);
    char *back = decode_all(t, ids, n, &got);
    CHECK_TEXT(back, got, text, len);
    free(ids), free(back);
}

static void check_against_naive(const Tokenizer *t, const char *text, size_t len)
{
    int *ids = xcalloc(len + 1, sizeof *ids), *want = xcalloc(len + 600, sizeof *ids);
    int n = tokenizer_encode(t, text, len, ids), n_want = naive_encode(t, text, len, want);
    int same = n == n_want && !memcmp(ids, want, (size_t)n * sizeof *ids);
    CHECK(same);
    if (!same) printf("    with text \"%.*s\": %d tokens, want %d\n", (int)len, text, n, n_want);
    free(ids), free(want);
}

static const char *samples[] = {
    "Once upon a time, there was a little girl named Lily.", " ", "   three spaces", "a", "\n", "\n\n",
    "end \n", "numbers 12345 and 3.14159", "caf\xc3\xa9 \xe2\x82\xac 5 \xf0\x9f\x98\x80 \xe4\xb8\xad\xe6\x96\x87",
    "<s>", "</s>", "\n<s>\n", "<unk>", "<0x41>", "<0x0A>", "[INST] <<SYS>>", "\t tab", ("\xef\xbb\xbf" "BOM"),
    "cut off \xe2\x82", "\xff\xfe not UTF-8 \xc0\x80 \x80\x80", "\xed\xa0\x80 surrogate", "\xf5\x80\x80\x80",
    "'But", "don't", "AaAaAa", "e\xcc\x81 combining"};

// Every character that UTF-8 spells, and bytes that spell none: too long a spelling, halves of
// UTF-16 pairs, what lies behind Unicode, sequences that are cut or begin in the middle.
static void test_characters(void)
{
    static const char *const none[] = {
        "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2 ", "\xe0\x80\xa0", "\xe0\x9f\xbf",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xe2\x82", "\xe2\x28\xa1", "\xf0\x80\x80\xa0",
        "\xf0\x8f\xbf\xbf", "\xf0\x9f\x98", "\xf4\x90\x80\x80", "\xf4\xbf\xbf\xbf", "\xf5\x80\x80\x80",
        "\xff"};
    size_t n, bad = 0;
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        char s[4] = {(char)c};
        size_t len = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        for (size_t i = len - 1, left = c; len > 1 && i > 0; i--, left >>= 6)
            s[i] = (char)(0x80 | (left & 0x3f));
        if (len > 1) s[0] = (char)(0xf00u >> len | c >> 6 * (len - 1));
        int pair = c >= 0xd800 && c < 0xe000;
        bad += read_char(s, len, &n) != (pair ? 0xfffd : c) || n != (pair ? 1 : len);
    }
    CHECK_INT(bad, 0);
    for (size_t i = 0; i < COUNT(none); i++) {
        CHECK_INT(read_char(none[i], strlen(none[i]), &n), 0xfffd);
        CHECK_INT(n, 1);
    }
}

static void test_texts(const Tokenizer *t)
{
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++)
        check_round_trip(t, samples[i], strlen(samples[i]));
    check_round_trip(t, "a\0b\0\0c", 6);
    for (int byte = 0; byte < 256; byte++) {
        char one = (char)byte, name[8];
        check_round_trip(t, &one, 1);
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte); // text that looks like a byte piece
        check_round_trip(t, name, 6);
    }
    int none;
    CHECK_INT(tokenizer_encode(t, "", 0, &none), 0);
}

// Random bytes, and random text in which merges are frequent.
static void test_random_texts(const Tokenizer *t)
{
    char text[200];
    for (int round = 0; round < 300; round++) {
        size_t len = 1 + random_bits() % 200;
        for (size_t i = 0; i < len; i++)
            text[i] = round % 2 ? (char)(random_bits() >> 24)
                                : "the  and he said, 'in on er a\n"[random_bits() % 30];
        check_round_trip(t, text, len);
        if (round % 2 == 0) check_against_naive(t, text, len);
    }
}

static void test_random_tokenizers(void)
{
    static const char *letters[] = {" ", "a", "b", "c", "\xc3\xa9", "\xe2\x82\xac"};
    for (int seed = 1; seed <= 20; seed++) {
        Tokenizer t;
        load_random_tokenizer(&t, seed);
        for (int round = 0; round < 40; round++) {
            char text[256] = "";
            for (int k = (int)(random_bits() % 60); k >= 0; k--)
                strcat(text, letters[random_bits() % 6]);
            check_against_naive(&t, text, strlen(text));
            check_round_trip(&t, text, strlen(text));
        }
    }
}

// Processor time, so that other programs on the machine do not count.
static double encode_seconds(const Tokenizer *t, const char *text, size_t len)
{
    int *ids = xcalloc(len + 1, sizeof *ids);
    clock_t start = clock();
    CHECK(tokenizer_encode(t, text, len, ids) > 0);
    free(ids);
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

// Seconds that it may take: SLOW says how many where a tool watches every instruction.
static double allowed(void)
{
    const char *slow = getenv("SLOW");
#ifdef __SANITIZE_ADDRESS__
    if (!slow) return 10; // the sanitizer's time, not ours
#endif
    return slow ? atof(slow) : 1;
}

// Half a million bytes, over 100,000 tokens, in far less than a second; also where every character
// is the same or nothing merges.
static void test_speed(const Tokenizer *t)
{
    enum { SIZE = 500000 };
    char *text = xcalloc(SIZE, 1);
    for (size_t i = 0; i < SIZE; i++) text[i] = "etaoin shrdlu, and the "[random_bits() % 23];
    CHECK(encode_seconds(t, text, SIZE) < allowed());
    memset(text, 'a', SIZE);
    CHECK(encode_seconds(t, text, SIZE) < allowed());
    memset(text, ' ', SIZE);
    CHECK(encode_seconds(t, text, SIZE) < allowed());
    memset(text, 0x80, SIZE);
    CHECK(encode_seconds(t, text, SIZE) < allowed());
    free(text);
}

static void test_tokenizer_file(const char *path, int vocab)
{
    Tokenizer t;
    int before = n_failed;
    load_tokenizer(&t, path, vocab);
    test_texts(&t);
    test_random_texts(&t);
    test_speed(&t);
    note_failures(before, "%s", path);
}

// Ids that llama2.c and sentencepiece give.
static void test_llama2(const char *path)
{
    static const struct { const char *text; int n, ids[16]; } known[] = {
        {"Hello world", 2, {15043, 3186}},
        {"Once upon a time", 4, {9038, 2501, 263, 931}},
        {"I believe the meaning of life is", 7, {306, 4658, 278, 6593, 310, 2834, 338}},
    };
    Tokenizer t;
    load_tokenizer(&t, path, 32000);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int ids[64], n = tokenizer_encode(&t, known[i].text, strlen(known[i].text), ids);
        CHECK_INT(n, known[i].n);
        for (int k = 0; k < known[i].n; k++) CHECK_INT(ids[k], known[i].ids[k]);
    }
}

// ---- Output ------------------------------------------------------------------------------------

// What a Stream has written so far.
static size_t written(Stream *s, char *buf)
{
    fflush(s->out);
    rewind(s->out);
    return fread(buf, 1, 100, s->out);
}

static void check_stream(const char *piece1, const char *now, const char *piece2, const char *later)
{
    char buf[100];
    Stream s = {.out = tmpfile()};
    stream_write(&s, piece1, strlen(piece1));
    size_t n = written(&s, buf);
    CHECK_TEXT(buf, n, now, strlen(now));
    stream_write(&s, piece2, strlen(piece2));
    n = written(&s, buf);
    CHECK_TEXT(buf, n, later, strlen(later));
    fclose(s.out);
}

static void test_stream(void)
{
    check_stream("a\xe2\x82", "a", "\xac" "b", "a\xe2\x82\xac" "b");   // held until complete
    check_stream("\xf0\x9f", "", "\x98\x80", "\xf0\x9f\x98\x80");
    check_stream("\xe2", "", "x", "\xe2x");               // never to be completed: let go
    check_stream("\xe2\x82", "", "\xe2\x82\xac", "\xe2\x82\xe2\x82\xac");
    check_stream("\x80\x81", "\x80\x81", "", "\x80\x81"); // nothing to wait for
    check_stream("\xff" "a", "\xff" "a", "\xc3", "\xff" "a");
    char buf[100];
    Stream s = {.out = tmpfile()};
    stream_write(&s, "\xe2\x82", 2);
    stream_flush(&s); // the end of the text
    CHECK_INT(written(&s, buf), 2);
    stream_write(&s, "a\0b", 3); // zeros are text, too
    CHECK_INT(written(&s, buf), 5);
    fclose(s.out);
}

// ---- Sampler -----------------------------------------------------------------------------------

enum { N = 8, DRAWS = 40000 };
static const float base_logits[N] = {0.5f, 2, -1, 1, 1.5f, -3, 0, 1.99f};

static Sampler plain_sampler(void)
{
    return (Sampler){.temperature = 1, .top_p = 1, .repeat_penalty = 1, .rng = seed_random(5)};
}

static int draw(Sampler *s, const int *recent, int n_recent)
{
    float logits[N];
    memcpy(logits, base_logits, sizeof logits);
    return sample(s, logits, N, recent, n_recent);
}

static void count_draws(Sampler s, int *counts)
{
    memset(counts, 0, N * sizeof *counts);
    for (int i = 0; i < DRAWS; i++) counts[draw(&s, NULL, 0)]++;
}

// Counts against probabilities within five standard deviations; want: relative, 0 for cut tokens.
static void check_counts(Sampler s, const double *want)
{
    int counts[N];
    double sum = 0;
    count_draws(s, counts);
    for (int i = 0; i < N; i++) sum += want[i];
    for (int i = 0; i < N; i++) {
        double p = want[i] / sum;
        CHECK_NEAR(counts[i], DRAWS * p, 5 * sqrt(DRAWS * p * (1 - p)));
    }
}

static void test_greedy(void)
{
    Sampler cases[4];
    int counts[N];
    for (int i = 0; i < 4; i++) cases[i] = plain_sampler();
    cases[0].temperature = 0;
    cases[1].top_k = 1;
    cases[2].top_p = 1e-6f;
    cases[3].min_p = 1;
    for (int i = 0; i < 4; i++) {
        count_draws(cases[i], counts);
        CHECK_INT(counts[1], DRAWS);
    }
    cases[2].top_p = 0; // keeps one token, not none
    CHECK_INT(draw(&cases[2], NULL, 0), 1);
}

static void test_distribution(void)
{
    double p[N], cut[N];
    Sampler s = plain_sampler();
    for (int i = 0; i < N; i++) p[i] = exp(base_logits[i]);
    check_counts(s, p);
    s.temperature = 0.5f;
    for (int i = 0; i < N; i++) cut[i] = p[i] * p[i];
    check_counts(s, cut);
    s = plain_sampler();
    s.top_k = 3; // ids 1, 7, 4
    for (int i = 0; i < N; i++) cut[i] = i == 1 || i == 7 || i == 4 ? p[i] : 0;
    check_counts(s, cut);
    s = plain_sampler();
    s.min_p = 0.3f; // logits above 2 + ln 0.3 = 0.796: the same and id 3
    cut[3] = p[3];
    check_counts(s, cut);
    s = plain_sampler();
    s.top_p = 0.5f; // ids 1 and 7 have 0.53, id 1 alone 0.26
    for (int i = 0; i < N; i++) cut[i] = i == 1 || i == 7 ? p[i] : 0;
    check_counts(s, cut);
}

static void test_penalty(void)
{
    int recent[] = {1, 5, 1, 1};
    float logits[N];
    memcpy(logits, base_logits, sizeof logits);
    penalize(logits, 2, recent, 4);
    CHECK(logits[1] == 1);   // 2 / 2, once
    CHECK(logits[5] == -6);  // -3 * 2
    CHECK(logits[0] == 0.5f && logits[7] == base_logits[7]);
    Sampler s = plain_sampler();
    s.temperature = 0;
    s.repeat_penalty = 2;
    CHECK_INT(draw(&s, recent, 4), 7);
    s.repeat_penalty = 1;
    CHECK_INT(draw(&s, recent, 4), 1);
}

// Logits of any size, and a penalty that makes the best one infinite.
static void test_large_logits(void)
{
    float logits[3] = {-3e38f, 3e38f, 1}, again[3], infinite[3] = {-3e38f, INFINITY, 1};
    Sampler s = plain_sampler();
    memcpy(again, logits, sizeof logits);
    CHECK_INT(sample(&s, logits, 3, NULL, 0), 1);
    s.repeat_penalty = 0.1f;
    CHECK_INT(sample(&s, again, 3, (int[]){1}, 1), 1);
    s.top_p = 0.9f;
    CHECK_INT(sample(&s, infinite, 3, NULL, 0), 1);
}

static void test_seeds(void)
{
    Sampler a = plain_sampler(), b = plain_sampler(), c = plain_sampler();
    c.rng = seed_random(6);
    int same = 0, other = 0;
    for (int i = 0; i < 1000; i++) {
        int x = draw(&a, NULL, 0);
        same += x == draw(&b, NULL, 0);
        other += x == draw(&c, NULL, 0);
    }
    CHECK_INT(same, 1000);
    CHECK(other < 500);
    int bad = 0;
    uint64_t rng = seed_random(0);
    for (int i = 0; i < 100000; i++) {
        float u = random_unit(&rng);
        bad += !(u >= 0 && u < 1);
    }
    CHECK_INT(bad, 0);
    CHECK(seed_random(0) != 0 && seed_random(-0x9e3779b97f4a7c15u) != 0);
}

static void test_argmax(void)
{
    CHECK_INT(argmax((float[]){1, 3, 3, 2}, 4), 1); // the first of equals
    CHECK_INT(argmax((float[]){-5}, 1), 0);
}

int main(void)
{
    const char *reference = getenv("REFERENCE");
    char path[4096];
    test_tokenizer_file("tokenizer.bin", 4096);
    test_random_tokenizers();
    if (reference && *reference) {
        snprintf(path, sizeof path, "%s/stories260K/tok512.bin", reference);
        test_tokenizer_file(path, 512);
        snprintf(path, sizeof path, "%s/llama2/tokenizer.bin", reference);
        test_tokenizer_file(path, 32000);
        test_llama2(path);
    } else
        printf("test_tokenizer: REFERENCE is not set: the Llama 2 tokenizer is skipped\n");
    test_characters();
    test_stream();
    test_greedy();
    test_distribution();
    test_penalty();
    test_large_logits();
    test_seeds();
    test_argmax();
    return report("test_tokenizer");
}
