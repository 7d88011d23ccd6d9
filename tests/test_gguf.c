// test_gguf.c: GGUF files. Losses of small models of each architecture and type against a forward
// pass in float64 (numpy) over weights unpacked by the gguf Python package; tokenizers and chat
// formats against their definitions; hostile files, each in a process of its own. With GGUF_MODELS
// set to a folder that has SmolLM2-135M-Instruct.Q4_1.gguf and gemma-3-270m-q4_k_m.gguf, those too.
#define TESTING
#include "measure.c"
#include "check.h"
#include "codes.h"
#include "gguf.h"
#include <sys/wait.h>

static const char some_text[] = "the quick abcabc fox dead beef cafe bad face 12345 <user> Hello "
                                "there, abacadabra and deadbeef";

static const struct {
    GgufSpec spec;
    int n;       // tokens predicted, and their
    double loss; // mean loss in nats, by numpy
} models[] = {
    {{"llama", "q4_0 q4_1 q5_0 q5_1 q8_0 f16 bf16", 0, "freqs", NULL, NULL, 0}, 91, 5.9240646},
    {{"qwen2", "q4_k q5_k q6_k", 1, "yarn", "qwen2", NULL, 0}, 69, 6.0474863},
    {{"qwen3", "q6_k q8_0 f32", 1, NULL, "llama-bpe", NULL, 0}, 70, 5.8275741},
    {{"gemma3", "q5_k q4_1 q4_k q5_0 q6_k", 0, "linear", NULL, NULL, 0}, 91, 6.5068668},
};
enum { N_MODELS = sizeof models / sizeof *models };

// Writes bytes to a temporary file.
static char *write_file(const uint8_t *bytes, size_t size)
{
    static char path[32];
    strcpy(path, "/tmp/run-gguf-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size || close(fd)) perror(path), exit(1);
    return path;
}

static uint8_t *find_bytes(uint8_t *file, size_t size, const char *s)
{
    uint8_t *p = memmem(file, size, s, strlen(s));
    if (!p) printf("no %s\n", s), exit(1);
    return p + strlen(s);
}

static void open_spec(Session *s, const GgufSpec *spec)
{
    size_t size;
    uint8_t *file = build_gguf(spec, 1, &size);
    memset(s, 0, sizeof *s);
    char *path = write_file(file, size);
    model_load(&s->model, path);
    unlink(path);
    tokenizer_init(&s->tokenizer, spec->arch, &s->model.vocab);
    free(file);
}

// Losses of ids[n] in chunks of `chunk` tokens; the mean.
static double losses(Session *s, const int *ids, size_t n, size_t chunk, int exact, float *nll)
{
    size_t vocab = (size_t)s->model.config.vocab_size;
    float *logits = xcalloc(chunk * vocab, 4);
    double sum = 0;
    state_init(&s->state, &s->model, 512, chunk, 0, exact);
    for (size_t at = 0; at < n - 1; at += chunk) {
        size_t step = min_size(chunk, n - 1 - at);
        forward(&s->state, ids + at, step, (int64_t)at);
        classify(&s->state, 0, step, logits);
        for (size_t t = 0; t < step; t++)
            sum += nll[at + t] = (float)cross_entropy(logits + t * vocab, vocab, ids[at + t + 1]);
    }
    free(logits);
    return sum / (double)(n - 1);
}

static void test_losses(void)
{
    for (int k = 0; k < N_MODELS; k++) {
        Session s;
        float exact[256], chunked[256], one[256];
        size_t n;
        int before = n_failed;
        open_spec(&s, &models[k].spec);
        int *ids = encode_text(&s.tokenizer, some_text, sizeof some_text - 1, &n);
        CHECK_INT(n - 1, models[k].n);
        CHECK_NEAR(losses(&s, ids, n, 128, 1, exact), models[k].loss, 2e-6);
        losses(&s, ids, n, 7, 1, chunked);
        CHECK_BITS(chunked, exact, n - 1);
        CHECK_NEAR(losses(&s, ids, n, 64, 0, one), models[k].loss, 0.02);
        losses(&s, ids, n, 1, 0, chunked);
        CHECK_BITS(chunked, one, n - 1);
        note_failures(before, "%s", models[k].spec.arch);
        free(ids);
    }
}

// The attention factor: the file's is multiplied with yarn's own, and is all of longrope's.
static void test_attention_factors(void)
{
    static const struct {
        const char *scaling;
        int method;
        double want;
    } cases[] = {
        {"linear", ROPE_LINEAR, 1},
        {"yarn", ROPE_YARN, 1.1386294361}, // 0.1 ln 4 + 1
        {"yarn 1.5", ROPE_YARN, 1.5 * 1.1386294361},
        {"longrope", ROPE_LONGROPE, 1},
        {"longrope 1.25", ROPE_LONGROPE, 1.25},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Session s;
        int before = n_failed;
        open_spec(&s, &(GgufSpec){.arch = "llama", .types = "q4_0", .scaling = cases[i].scaling});
        const RopeConfig *r = &s.model.config.rope;
        CHECK_INT(r->method, cases[i].method);
        CHECK_NEAR(attention_factor(r), cases[i].want, 1e-9);
        if (r->method == ROPE_YARN) { // another factor changes yarn's own part
            s.model.config.rope.factor = 8;
            CHECK_NEAR(attention_factor(r), cases[i].want / 1.1386294361 * 1.2079441542, 1e-9);
        }
        if (r->method == ROPE_LONGROPE) // which of its lists is which
            CHECK(fabsf(r->long_factors[0] - 4) < 0.2f && fabsf(r->short_factors[0] - 1) < 0.2f);
        note_failures(before, "%s", cases[i].scaling);
    }
}

// Keys that few files have, and numbers of all widths; a token with a space, and an empty one.
static void test_seldom(void)
{
    Session s;
    int ids[8];
    GgufSpec spec = {.arch = "llama", .types = "q4_0", .scaling = "yarn", .mark = "[INST]",
                     .seldom = 1};
    open_spec(&s, &spec);
    const Vocab *v = &s.model.vocab;
    const RopeConfig *r = &s.model.config.rope;
    CHECK(r->beta_fast == 16 && r->beta_slow == 2); // a float and a double
    CHECK(r->factor == 4);                          // the new name before the old one
    CHECK(v->add_bos <= 0 && !s.tokenizer.add_bos && !v->space_prefix && v->eot == 319);
    CHECK_INT(tokenizer_encode(&s.tokenizer, "b a", 3, ids), 2);
    CHECK_INT(ids[1], 314);
    CHECK_INT(s.tokenizer.pieces[315].len, 0);
    CHECK_INT(own_template(&s.model).n, 1);
    CHECK_INT(s.model.config.global_every, 0);
    spec.arch = "gemma3";
    open_spec(&s, &spec);
    CHECK_INT(s.model.config.global_every, 3);
    CHECK(s.model.config.local.theta == 20000);
}

// gemma3: the command line's window narrows local layers, too, if it is below theirs.
static void test_local_window(void)
{
    static const int windows[][3] = {{0, 0, G_WINDOW}, {10, 10, 10}, {100, 100, G_WINDOW}};
    for (int i = 0; i < 3; i++) {
        Session s;
        open_spec(&s, &models[3].spec);
        s.model.config.rope.window = windows[i][0];
        state_init(&s.state, &s.model, 512, 16, 0, 0);
        CHECK_INT(s.state.attn.positions[0].rope.window, windows[i][1]); // of global layers
        CHECK_INT(s.state.attn.positions[1].rope.window, windows[i][2]); // of local ones
    }
}

// The config that a gemma3's keys give with this number of layers, whatever its tensors are.
static Config gemma_config(uint32_t n_layers)
{
    size_t size;
    uint8_t *file = build_gguf(&models[3].spec, 1, &size);
    memcpy(find_bytes(file, size, "gemma3.block_count") + 4, &n_layers, 4);
    Model m = {.path = "gemma3", .file = file, .size = size, .arch = "gemma3",
               .at = 4 + 4 + 8 + 8, .tensors = &(FileItem){.used = 0}};
    m.keys = gguf_list(&m, NULL, n_gguf_keys, gguf_key);
    gguf_vocab(&m, &m.vocab);
    gguf_config(&m, &archs[FIND_NAME(archs, "gemma3")]);
    free(m.keys);
    free(file);
    return m.config;
}

// Scores of the gemma3 of 62 layers are divided by sqrt(dim / n_heads), not by sqrt(head_dim).
static void test_score_scale(void)
{
    CHECK_INT(gemma_config(62).n_layers, 62);
    CHECK_NEAR(gemma_config(62).score_scale, sqrt((double)G_HEADS / G_DIM), 1e-7);
    CHECK_NEAR(gemma_config(48).score_scale, 0, 0); // 1 / sqrt(head_dim)
}

// What the bits of a half mean.
static double half_value(uint16_t h)
{
    int exp = (h >> 10) & 31, man = h & 1023;
    return (h >> 15 ? -1 : 1) * (exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24));
}

// The value of number i of a block, from the descriptions of the formats, byte by byte.
static double value_q2_k(const uint8_t *b, int i)
{
    uint16_t d[2];
    memcpy(d, b + 80, 4);
    int code = b[16 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3, scale = b[i / 16];
    return half_value(d[0]) * (scale & 15) * code - half_value(d[1]) * (scale >> 4);
}

static double value_q3_k(const uint8_t *b, int i)
{
    uint16_t d;
    memcpy(&d, b + 108, 2);
    int code = b[32 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3, g = i / 16;
    int low = g < 8 ? b[96 + g] & 15 : b[96 + g - 8] >> 4, high = b[104 + g % 4] >> g / 4 * 2 & 3;
    return half_value(d) * (low + 16 * high - 32) * (code - (b[i % 32] >> i / 32 & 1 ? 0 : 4));
}

static const int8_t iq4_values[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1, 13, 25, 38, 53, 69, 89, 113};

static double value_iq4_nl(const uint8_t *b, int i)
{
    uint16_t d;
    memcpy(&d, b, 2);
    return half_value(d) * iq4_values[b[2 + i % 16] >> i / 16 * 4 & 15];
}

static double value_iq4_xs(const uint8_t *b, int i)
{
    uint16_t d[2];
    memcpy(d, b, 4);
    int g = i / 32, scale = (b[4 + g / 2] >> g % 2 * 4 & 15) + 16 * (d[1] >> 2 * g & 3) - 32;
    return half_value(d[0]) * scale * iq4_values[b[8 + g * 16 + i % 16] >> i % 32 / 16 * 4 & 15];
}

static void test_values(void)
{
    static const struct {
        const char *name;
        double (*value)(const uint8_t *block, int i);
    } types[] = {{"q2_k", value_q2_k}, {"q3_k", value_q3_k}, {"iq4_nl", value_iq4_nl},
                 {"iq4_xs", value_iq4_xs}};
    for (size_t k = 0; k < COUNT(types) * 100; k++) {
        const TensorType *type = &tensor_types[FIND_NAME(tensor_types, types[k / 100].name)];
        uint8_t block[256];
        float row[256];
        int bad = 0;
        for (size_t i = 0; i < type->bytes; i++) block[i] = (uint8_t)(random_bits() >> 24);
        for (size_t at = 0; at < type->bytes; at += type->bytes == 110 ? 108 : 2)
            if (at + 2 <= type->bytes) block[at + 1] &= 0xbf; // no half is infinite or NaN
        Tensor t = {.type = type, .data = block, .group = type->group, .rows = 1,
                    .cols = type->block};
        type->unpack(&t, 0, row);
        for (size_t i = 0; i < type->block; i++) {
            double want = types[k / 100].value(block, (int)i);
            bad += !(fabs(row[i] - want) <= 1e-6 * fabs(want) + 1e-9);
        }
        CHECK_INT(bad, 0);
    }
}

// Each block type: the codes and the scales of a panel of rows mean what unpack says.
static void test_panels(void)
{
    enum { BLOCKS = 3, MOST = 256 * BLOCKS };
    static float row[MOST], scales[MOST * PANEL], mins[MOST * PANEL];
    static int8_t q[MOST];
    for (int k = T_BLOCKS; k < (int)COUNT(tensor_types); k++) {
        const TensorType *type = &tensor_types[k];
        size_t pitch = BLOCKS * type->bytes, cols = BLOCKS * type->block;
        uint8_t *data = xcalloc(PANEL, pitch);
        for (size_t i = 0; i < PANEL * pitch; i++) data[i] = (uint8_t)(random_bits() >> 26);
        Tensor t = {type, data, NULL, type->group, PANEL, cols, NULL};
        int bad = 0;
        memset(mins, 0, sizeof mins);
        read_scales(type, data, pitch, BLOCKS, scales, mins);
        for (size_t r = 0; r < PANEL; r++) {
            type->unpack(&t, r, row);
            block_codes(type, data + r * pitch, BLOCKS, q);
            for (size_t i = 0; i < cols; i++) {
                size_t lane = i / type->group * PANEL + r;
                double value = (double)q[i] * scales[lane], min = mins[lane];
                bad += !(fabs(value - min - row[i]) <= 1e-6 * (fabs(value) + fabs(min)));
            }
        }
        CHECK_INT(bad, 0);
        free(data);
    }
}

// --- tokenizers ---------------------------------------------------------------------------------

// The words of `text` with a bar between, cut as `style` does it.
static void check_words(const char *style, const char *text, const char *want)
{
    char got[512];
    size_t n = 0, n_chars, len = strlen(text);
    Char *chars = cut_text(find_style("style", style), text, len, &n_chars);
    for (Char *c = chars; c < chars + n_chars; c++) {
        if (c > chars && c->begins) got[n++] = '|';
        for (int at = c->at; at < c[1].at; at++) got[n++] = text[at];
    }
    got[n++] = '|';
    CHECK_INT(chars[0].begins, 1);
    CHECK_INT(chars[n_chars].at, len);
    CHECK_TEXT(got, n, want, strlen(want));
    free(chars);
}

// What the regular expressions of the models' own tokenizers make of it.
static void test_words(void)
{
    static const char text[] =
        "I'LL say: it's 12345é, №½x!!  Two\n\n  \tHTTPServer's caf\xc3\xa9 e\xcc\x81t "
        "你好，世界。(a+b)—/path/\n$100 “q” 😀  ";
    static const struct { const char *style, *want; } known[] = {
        {"gpt-2",
         "I|'|LL| say|:| it|'s| 12345|é|,| №|½|x|!!| | Two|\n\n  |\t|HTTPServer|'s|"
         " café| e|\xcc\x81" "|t| 你好|，|世界|。(|a|+|b|)—/|path|/|\n|$|100| “|q|”| 😀|  |"},
        {"smollm",
         "I|'|LL| say|:| it|'s| |1|2|3|4|5|é|,| №|½|x|!!| | Two|\n\n  |\t|HTTPServer|'s|"
         " café| e|\xcc\x81" "|t| 你好|，|世界|。(|a|+|b|)—/|path|/|\n|$|1|0|0| “|q|”| 😀|  |"},
        {"llama-bpe",
         "I|'LL| say|:| it|'s| |123|45|é|,| №|½|x|!!| | Two|\n\n|  |\tHTTPServer|'s|"
         " café| e|\xcc\x81" "t| 你好|，世界|。(|a|+b|)—/|path|/\n|$|100| “|q|”| 😀|  |"},
        {"qwen2",
         "I|'LL| say|:| it|'s| |1|2|3|4|5|é|,| №|½|x|!!| | Two|\n\n|  |\tHTTPServer|'s|"
         " café| e|\xcc\x81" "t| 你好|，世界|。(|a|+b|)—/|path|/\n|$|1|0|0| “|q|”| 😀|  |"},
        {"qwen35",
         "I|'LL| say|:| it|'s| |1|2|3|4|5|é|,| №|½|x|!!| | Two|\n\n|  |\tHTTPServer|'s|"
         " café| e\xcc\x81" "t| 你好|，世界|。(|a|+b|)—/|path|/\n|$|1|0|0| “|q|”| 😀|  |"},
        {"seed-coder",
         "I|'LL| say|:| it|'s| |1|2|3|4|5|é|,| №|½|x|!!| | Two|\n\n|  |\tHTTPServer|'s|"
         " café| e|\xcc\x81" "t| 你好|，世界|。(|a|+b|)—/|path|/|\n|$|1|0|0| “|q|”| 😀|  |"},
        {"tekken",
         "I|'LL| say|:| it|'s| |1|2|3|4|5|é|,| №|½|x|!!| | Two|\n\n|  |\tHTTPServer|'s|"
         " café| e\xcc\x81" "t| 你好|，世界|。(|a|+b|)—/|path|/\n|$|1|0|0| “|q|”| 😀|  |"},
        {"gpt-4o",
         "I'LL| say|:| it's| |123|45|é|,| №|½|x|!!| | Two|\n\n|  |\tHTTPServer's| café|"
         " e\xcc\x81" "t| 你好|，世界|。(|a|+b|)—/|path|/\n|$|100| “|q|”| 😀|  |"},
        {"falcon",
         "I|'|LL| say|:| it|'|s| |123|45|é|,| №|½|x|!!| | Two|\n\n  |\t|HTTPServer|'|s|"
         " café| e|\xcc\x81" "|t| 你好|，|世界|。(|a|+|b|)—/|path|/|\n|$|100| |“|q|”| 😀|  |"},
        {"bloom",
         "I'LL| say:| it's| 12345é|,| №½x|!! | Two|\n\n  \t|HTTPServer's| café|"
         " e\xcc\x81" "t| 你好|，|世界|。(|a+b|)|—/path/|\n|$100| “q”| 😀|  |"},
        {"deepseek-llm",
         "I|'|LL| say|:| it|'|s| |12345|é|,| |№|½|x|!!| | Two|\n|\n|  |\tHTTPServer|'|s|"
         " caf|é| e|\xcc\x81" "|t| |你好|，|世界|。|(|a|+|b|)|—|/|path|/|\n|$|100| |“|q|”| 😀|"
         "  |"},
        {"deepseek-coder",
         "I|'|LL| say|:| it|'|s| |1|2|3|4|5|é|,| |№|½|x|!!| | Two|\n|\n|  |\tHTTPServer|"
         "'|s| café| e|\xcc\x81" "|t| |你好|，|世界|。|(|a|+|b|)|—|/|path|/|\n|$|1|0|0| |“|q|"
         "”| 😀  |"},
    };
    read_unicode_runs();
    CHECK_INT(char_classes['a'], C_LOWER);
    CHECK_INT(char_classes['Z'], C_UPPER);
    CHECK_INT(char_classes[0x101], C_LOWER); // of letters in turn
    CHECK_INT(char_classes[0x1c5], C_UPPER); // a title's
    CHECK_INT(char_classes[0x4e2d], C_CASELESS);
    CHECK_INT(char_classes[0x20000], C_CASELESS);
    CHECK_INT(char_classes[0x662], C_NUMBER);
    CHECK_INT(char_classes[0xbd], C_NUMBER);
    CHECK_INT(char_classes[0x3000], C_SPACE);
    CHECK_INT(char_classes['\r'], C_NEWLINE);
    CHECK_INT(char_classes[0x301], C_MARK);
    CHECK_INT(char_classes[0x2014], C_PUNCTUATION);
    CHECK_INT(char_classes[0x1f600], 0);
    for (size_t i = 0; i < COUNT(known); i++) check_words(known[i].style, text, known[i].want);
    check_words("gpt-2", "I'll go, DON'T  2024x \n\n\n y",
                "I|'ll| go|,| DON|'|T| | 2024|x| \n\n\n| y|");
    check_words("llama3", "I'LL go(x) 12345  a\n\n b", "I|'LL| go|(x|)| |123|45| | a|\n\n| b|");
    check_words("qwen2", "a=12\r\n\tif {\n}  ", "a|=|1|2|\r\n|\tif| {\n|}|  |");
    check_words("gpt-2", "\xff\xfe" "a", "\xff\xfe|a|");
    check_words("gpt-4o", "\U0010ffff", "\U0010ffff|"); // behind all classes
    check_words("deepseek-llm", "12  a", "12| | a|"); // the blank that is left is cut off
    check_words("mellum", "12x", "12|x|");
    check_words("minerva-7b", "12x", "1|2|x|");
}

// Long runs are walked over a few times, not once from each of their characters.
static void test_long_words(void)
{
    static const char *const runs[] = {" ", "a", "A", "1", "!", "'", "\n", "\t1", "好", "か。", "\xcc\x81"};
    enum { TIMES = 50000 };
    for (size_t w = 0; w < COUNT(word_styles); w++)
        for (size_t k = 0; k < COUNT(runs); k++) {
            size_t size = strlen(runs[k]), len = TIMES * size;
            char *text = xrealloc(NULL, len + 1, 1);
            for (size_t i = 0; i < TIMES; i++) memcpy(text + i * size, runs[k], size);
            text[len] = '1';
            clock_t start = clock();
            size_t n;
            Char *chars = cut_text(&word_styles[w], text, len + 1, &n);
            CHECK(clock() - start < 3 * CLOCKS_PER_SEC); // for each character, it would be minutes
            free(chars);
            free(text);
        }
}

static void test_special_tokens(void)
{
    for (int k = 0; k < N_MODELS; k += 2) {
        Session s;
        int ids[64];
        const char text[] = "<s>ab</s><user>";
        open_spec(&s, &models[k].spec);
        const Tokenizer *t = &s.tokenizer;
        int n = tokenizer_encode(t, text, sizeof text - 1, ids), control = 0;
        for (int i = 0; i < n; i++) control += t->pieces[ids[i]].kind == TOKEN_CONTROL;
        CHECK_INT(control, 0);       // a user cannot write them
        CHECK_INT(ids[n - 1], 259);  // but this one is anybody's
        char template[sizeof text];
        memset(template, 1, sizeof template);
        size_t len, n_written;
        int *written = encode_written(t, text, template, sizeof text - 1, &n_written);
        CHECK_INT(written[0], 1);
        CHECK_INT(written[n_written - 2], 2);
        free(written);
        tokenizer_decode(t, -1, 2, &len);
        CHECK_INT(len, 0);
        CHECK(t->pieces[2].stop && !t->pieces[259].stop);
    }
}

// Encodes text[len] into ids, *n of them, and decodes these again, to got; returns its length.
static size_t there_and_back(const Tokenizer *t, const char *text, size_t len, int *ids, int *n,
                             char *got)
{
    size_t size = 0, step;
    *n = tokenizer_encode(t, text, len, ids);
    for (int i = 0; i < *n; i++, size += step) {
        const char *piece = tokenizer_decode(t, i ? ids[i - 1] : t->bos, ids[i], &step);
        memcpy(got + size, piece, step);
    }
    return size;
}

// Nor those that the file names as its BOS, EOS and EOT, if they are SentencePiece's: here one of
// them is the pair "ab", of the type of text. The space behind a BOS in a text would not come back.
static void test_named_ends(void)
{
    static const char text[] = "ab ab";
    Session s;
    open_spec(&s, &(GgufSpec){.arch = "llama", .types = "q4_0", .seldom = 1});
    for (int named = 0; named < 4; named++) {
        Vocab v = s.model.vocab;
        Tokenizer t;
        char got[16];
        int ids[16], n, pairs = 0;
        v.space_prefix = 1;
        if (named) *(named == 1 ? &v.bos : named == 2 ? &v.eos : &v.eot) = 268;
        tokenizer_init(&t, "named", &v);
        size_t size = there_and_back(&t, text, sizeof text - 1, ids, &n, got);
        for (int i = 0; i < n; i++) pairs += ids[i] == 268;
        CHECK_INT(pairs, named ? 0 : 2);
        CHECK_TEXT(got, size, text, sizeof text - 1);
    }
}

// Decoding gives the text back.
static void test_round_trip(void)
{
    static const char text[] = "caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\x98\x80\n\n  1 2\t"
                               "\xff abab";
    for (int k = 0; k < N_MODELS; k++) {
        Session s;
        char got[256];
        int ids[256], n;
        open_spec(&s, &models[k].spec);
        size_t size = there_and_back(&s.tokenizer, text, sizeof text - 1, ids, &n, got);
        size_t space = (size_t)s.tokenizer.space_prefix; // a byte here, so it is not stripped
        CHECK_TEXT(got + space, size - space, text, sizeof text - 1);
    }
}

// --- bad files ----------------------------------------------------------------------------------

// Loads the file in a process of its own: 0 if accepted (and it runs), 1 if refused in one line,
// -1 for anything else.
static int try_file(const uint8_t *bytes, size_t size)
{
    char *path = write_file(bytes, size);
    FILE *err = tmpfile();
    int status, lines = 0;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        Model m;
        Tokenizer t;
        State s;
        int ids[64];
        dup2(fileno(err), STDERR_FILENO);
        alarm(20);
        model_load(&m, path);
        tokenizer_init(&t, path, &m.vocab);
        tokenizer_encode(&t, "abc <0x41> \xff 12", 14, ids);
        state_init(&s, &m, 2, 2, 0, 0);
        forward(&s, (int[]){0, m.config.vocab_size - 1}, 2, 0);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    unlink(path);
    rewind(err);
    for (int c; (c = fgetc(err)) != EOF;) lines += c == '\n';
    fclose(err);
    if (!WIFEXITED(status)) return -1;
    if (WEXITSTATUS(status) == 0 && lines == 0) return 0;
    return WEXITSTATUS(status) == 1 && lines == 1 ? 1 : -1;
}

// The file with n bytes of v at `skip` bytes behind the name `key`: must be refused.
static void check_refused(const char *key, ptrdiff_t skip, uint64_t v, size_t n)
{
    size_t size;
    uint8_t *file = build_gguf(&models[0].spec, 1, &size);
    memcpy(find_bytes(file, size, key) + skip, &v, n);
    int before = n_failed;
    CHECK_INT(try_file(file, size), 1);
    note_failures(before, "%s + %td = %llu", key, skip, (unsigned long long)v);
    free(file);
}

static void test_bad_fields(void)
{
    static const uint64_t big = UINT64_MAX, wrap = (uint64_t)1 << 61;
    check_refused("GGUF", 0, 1, 4); // version
    check_refused("GGUF", 0, 0x03000000, 4);
    check_refused("GGUF", 4, big, 8); // tensors, keys
    check_refused("GGUF", 4, wrap, 8);
    check_refused("GGUF", 12, big, 8);
    check_refused("GGUF", 12, 5, 8);
    check_refused("general.architecture", 0, 4, 4); // not a string
    check_refused("general.architecture", 12, 'z', 1);
    check_refused("general.architecture", 4, big, 8);
    check_refused("llama.context_length", 4, 0, 4);
    check_refused("llama.embedding_length", 0, 6, 4); // float, where a whole number should be
    check_refused("llama.embedding_length", 4, 0x7fffffff, 4);
    check_refused("llama.block_count", 4, 4096, 4);
    check_refused("llama.block_count", 4, 1u << 31, 4);
    check_refused("llama.block_count", 4, 1, 4); // tensors are left over
    check_refused("llama.attention.head_count", 4, 0, 4);
    check_refused("llama.attention.head_count_kv", 4, 3, 4);
    check_refused("llama.attention.layer_norm_rms_epsilon", 4, 0x7fc00000, 4); // NaN
    check_refused("llama.rope.freq_base", 4, 0x3f000000, 4); // 0.5
    check_refused("llama.context_length", (size_t)-20, 'x', 1);
    check_refused("tokenizer.ggml.model", 12, 'x', 1);
    check_refused("tokenizer.ggml.tokens", 4, 5, 4); // element types
    check_refused("tokenizer.ggml.tokens", 4, 9, 4);
    check_refused("tokenizer.ggml.tokens", 4, 99, 4);
    check_refused("tokenizer.ggml.tokens", 8, big, 8);
    check_refused("tokenizer.ggml.tokens", 8, wrap, 8);
    check_refused("tokenizer.ggml.tokens", 16, big - 7, 8); // a string's length
    check_refused("tokenizer.ggml.scores", 4, 5, 4); // whole numbers
    check_refused("tokenizer.ggml.scores", 8, ((uint64_t)1 << 62) + 320, 8);
    check_refused("tokenizer.ggml.token_type", 4, 6, 4);
    check_refused("tokenizer.ggml.bos_token_id", 4, 320, 4);
    check_refused("<0x41", 0, 'G', 1); // byte tokens are found by name
    check_refused("<0x0", 0, '-', 1);
    check_refused("blk.0.attn_q.weight", 0, 5, 4); // dimensions
    check_refused("blk.0.attn_q.weight", 0, 0, 4);
    check_refused("blk.0.attn_q.weight", 4, 128, 8);
    check_refused("blk.0.attn_q.weight", 4, big, 8);
    check_refused("blk.0.attn_q.weight", 20, 99, 4); // type
    check_refused("blk.0.attn_q.weight", 24, big - 31, 8); // offset
    check_refused("blk.0.attn_q.weight", 24, 1 << 30, 8);
    check_refused("blk.0.attn_q.weight", 24, 2, 8);
    check_refused("blk.0.attn_norm.weight", 12, 8, 4); // a norm in q8_0
    check_refused("blk.0.attn_q", 0, '_', 1); // a tensor that no llama has
    check_refused("blk.1.attn_", (size_t)-7, '0', 1); // twice the same name
    check_refused("general.no", (size_t)-1, 'a' | 'm' << 8, 2); // no: general.name, twice
    check_refused("general.no", 0, 0, 1); // a zero byte in a name
    check_refused("llama.embedding_lengt", 0, '\n', 1); // then there is none
}

// A tensor of no numbers whose name is what is left where a fused matrix has no name; and the bias
// of a classifier that is not there, so that it would be added to nothing.
static void test_stray_tensors(void)
{
    static const char *const kinds[] = {"nameless", "bias"};
    for (size_t i = 0; i < COUNT(kinds); i++) {
        size_t size;
        GgufSpec spec = {.arch = "llama", .types = "q4_0", .scaling = kinds[i]};
        uint8_t *file = build_gguf(&spec, 1, &size);
        CHECK_INT(try_file(file, size), 1);
        free(file);
    }
}

// A model whose tokens see later ones.
static void test_not_causal(void)
{
    size_t size;
    GgufSpec spec = {.arch = "llama", .types = "q4_0", .scaling = "yarn", .seldom = 1};
    uint8_t *file = build_gguf(&spec, 1, &size);
    CHECK_INT(try_file(file, size), 0);
    find_bytes(file, size, "llama.attention.causal")[4] = 0;
    CHECK_INT(try_file(file, size), 1);
    free(file);
}

// Lists that are not there, or shorter than the vocabulary, in files that are whole.
static void test_bad_lists(void)
{
    static const char *const lists[] = {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"};
    GgufSpec spec = {.arch = "llama", .types = "q4_0", .scaling = "longrope"};
    size_t size;
    uint8_t *file = build_gguf(&spec, 1, &size);
    CHECK_INT(try_file(file, size), 0);
    file[8] -= 2; // the last two tensors are longrope's factors
    CHECK_INT(try_file(file, size), 1);
    free(file);
    for (int i = 0; i < 2; i++) {
        file = build_gguf(&spec, 1, &size);
        shorten_list(file, size, lists[i]);
        CHECK_INT(try_file(file, size), 1);
        free(file);
    }
}

// --- real models --------------------------------------------------------------------------------

static const struct {
    const char *file, *text;
    int ids[24], n; // by llama.cpp
    double loss;    // of some_text, by numpy
} real[] = {
    {"SmolLM2-135M-Instruct.Q4_1.gguf", "Ça va? x=12 日本 👋\n\n  don't",
     {142, 225, 81, 46316, 47, 1792, 45, 33, 34, 17097, 241, 115,
      40993, 15107, 235, 229, 8866, 1326, 982}, 19, 5.9201506},
    {"gemma-3-270m-q4_k_m.gguf", "Ça va? x=12 日本 👋\n\n  don't",
     {231436, 5380, 236881, 1123, 236784, 236770, 236778, 33375, 155818,
      108, 138, 13246, 236789, 236745}, 14, 7.0752364},
};

static void test_real(void)
{
    const char *folder = getenv("GGUF_MODELS");
    if (!folder || !*folder) {
        printf("test_gguf: GGUF_MODELS is not set: the public models are skipped\n");
        return;
    }
    for (int k = 0; k < 2; k++) {
        char path[4096];
        int ids[256];
        size_t count;
        float nll[256];
        Session s = {0};
        snprintf(path, sizeof path, "%s/%s", folder, real[k].file);
        double start = seconds();
        model_load(&s.model, path);
        tokenizer_init(&s.tokenizer, path, &s.model.vocab);
        CHECK(seconds() - start < 5);
        const char *text = real[k].text;
        int n = tokenizer_encode(&s.tokenizer, text, strlen(text), ids), bad = 0;
        CHECK_INT(n, real[k].n);
        for (int i = 0; i < real[k].n; i++) bad += ids[i] != real[k].ids[i];
        CHECK_INT(bad, 0);
        int *prompt = encode_text(&s.tokenizer, some_text, sizeof some_text - 1, &count);
        CHECK_NEAR(losses(&s, prompt, count, 32, 1, nll), real[k].loss, 1e-5);
        CHECK_NEAR(losses(&s, prompt, count, 32, 0, nll), real[k].loss, 0.1);
        free(prompt);
    }
}

int main(void)
{
    test_values();
    test_panels();
    test_losses();
    test_attention_factors();
    test_seldom();
    test_local_window();
    test_score_scale();
    test_words();
    test_long_words();
    test_special_tokens();
    test_named_ends();
    test_round_trip();
    test_bad_fields();
    test_bad_lists();
    test_stray_tensors();
    test_not_causal();
    test_real();
    return report("test_gguf");
}
