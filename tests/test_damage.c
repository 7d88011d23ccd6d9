// test_damage.c: damaged files, by the targets of fuzz.h: good ones of each format cut at every
// byte of the header and at many behind it, every field set to values at the edges, pairs of
// fields to values whose products wrap, random changes; and the inputs in tests/regress, each of
// which once broke something. Whatever is not accepted must be refused in one line.
#include "fuzz.h"
#include <dirent.h>

enum { CHECKPOINT, GGUF }; // targets
static int n_accepted, n_refused;

static int attempt(int target, const uint8_t *data, size_t size)
{
    int got = try_input(target, data, size);
    n_accepted += !got;
    n_refused += !!got;
    return got;
}

// Every cut, at each byte of the header and some behind it, and, for checkpoints, every extension
// must be refused. header: its bytes.
static void cut(int target, const uint8_t *file, size_t size, size_t header)
{
    int accepted = 0;
    size_t behind = (size - header) / 61 + 1;
    for (size_t n = 4; n < size; n += n < header ? 1 : behind) accepted += !attempt(target, file, n);
    uint8_t *longer = xcalloc(size + 4096, 1);
    memcpy(longer, file, size);
    for (size_t more = 1; more <= 4096 && target == CHECKPOINT; more *= 4)
        accepted += !attempt(target, longer, size + more);
    free(longer);
    CHECK_INT(accepted, 0);
}

// A tokenizer cut anywhere is refused, unless it is one of fewer pieces with all bytes among them.
static void cut_pieces(int target, const uint8_t *file, size_t size)
{
    int accepted = 0;
    for (size_t n = 0; n < size; n++) accepted += !attempt(target, file, n);
    CHECK_INT(accepted, 300 - 259);
}

static const uint64_t edges[] = {0, 1, (uint64_t)-1, INT_MAX, 0x80000000, 1 << 16, 1 << 24, 65537,
                                 (uint64_t)1 << 31 | (uint64_t)1 << 63, (uint64_t)1 << 61,
                                 0x7fc00000, 0x7f800000}; // float's NaN and infinity
enum { N_EDGES = sizeof edges / sizeof *edges };

// Each of the places in [from, to) with each of the values, in 4 bytes or 8.
static void sweep(int target, const uint8_t *file, size_t size, size_t from, size_t to, size_t step,
                  size_t bytes)
{
    uint8_t *copy = xcalloc(size, 1);
    memcpy(copy, file, size);
    for (size_t at = from; at + bytes <= to; at += step)
        for (int e = 0; e < N_EDGES; e++) {
            memcpy(copy + at, &edges[e], bytes);
            attempt(target, copy, size);
            memcpy(copy + at, file + at, bytes);
        }
    free(copy);
}

// Two of the seven numbers of a checkpoint's shape together.
static void sweep_pairs(const uint8_t *file, size_t size, size_t shape)
{
    static const int32_t pairs[][2] = {{1 << 16, 1 << 16}, {1 << 24, 1 << 24}, {1 << 20, 1 << 12},
                                       {65537, 65535}, {INT_MAX, 2}, {4096, 1 << 24}, {2, 2}};
    uint8_t *copy = xcalloc(size, 1);
    memcpy(copy, file, size);
    for (size_t a = 0; a < 7; a++)
        for (size_t b = 0; b < 7; b++)
            for (int p = 0; p < 7 && a != b; p++) {
                memcpy(copy + shape + 4 * a, &pairs[p][0], 4);
                memcpy(copy + shape + 4 * b, &pairs[p][1], 4);
                attempt(CHECKPOINT, copy, size);
                memcpy(copy + shape, file + shape, 28);
            }
    free(copy);
}

// Up to four changes anywhere.
static void change(int target, const uint8_t *file, size_t size, int tries)
{
    uint8_t *copy = xcalloc(size, 1);
    for (int k = 0; k < tries; k++) {
        memcpy(copy, file, size);
        for (uint32_t c = 1 + random_bits() % 4; c; c--) {
            size_t head = random_bits() % 2 ? min_size(size, 300) : size, at = random_bits() % head;
            uint32_t r = random_bits();
            if (r % 3 == 0 && at + 4 <= size) memcpy(&copy[at], &edges[r / 4 % N_EDGES], 4);
            else copy[at] ^= (uint8_t)(r >> 24);
        }
        attempt(target, copy, size);
    }
    free(copy);
}

static void damage(int target, const char *name, const uint8_t *file, size_t size)
{
    int before = n_failed;
    CHECK_INT(attempt(target, file, size), 0);
    change(target, file, size, target == GGUF ? 60 : 150);
    if (target == CHECKPOINT) {
        size_t version = name[1] == '0' ? 0 : 8, header = version ? 256 : 28;
        int scaled = name[strlen(name) - 1] != '0'; // by a method: its shape is that of another file
        cut(target, file, size, header);
        sweep(target, file, size, scaled ? 64 : 0, version ? 136 : 28, version ? 1 : 4, 4);
        if (!scaled) sweep_pairs(file, size, version);
    } else if (target == GGUF) {
        const uint8_t *tokens = memmem(file, size, "tokenizer.ggml.tokens", 21);
        const uint8_t *list = memmem(file, size, "token_embd.weight", 17);
        size_t at = (size_t)(tokens - file) + 60, tensors = (size_t)(list - file) - 8;
        size_t head = tensors + 600;
        cut(target, file, size, head);
        size_t step = strchr("ac", *name) ? 1 : 5; // these two have all kinds of keys between them
        for (size_t bytes = 4; bytes <= 8; bytes += 4) {
            sweep(target, file, size, 4, at, step, bytes);
            sweep(target, file, size, tensors, head, step, bytes);
        }
    } else sweep(target, file, size, 0, min_size(size, 100), 1, min_size(size, 4));
    if (targets[target].use == use_tokenizer) cut_pieces(target, file, size);
    note_failures(before, "%s %s", targets[target].name, name);
}

// An option by itself is right or a mistake in usage.
static void try_option(int target, const char *name, const uint8_t *line, size_t size)
{
    int before = n_failed;
    CHECK(attempt(target, line, size) != EXIT_DATA);
    note_failures(before, "%s", name);
}

static void try_short_list(int target, const char *name, const uint8_t *file, size_t size)
{
    int before = n_failed;
    CHECK_INT(attempt(target, file, size), EXIT_DATA);
    note_failures(before, "%s", name);
}

static void replay(const char *folder)
{
    DIR *d = opendir(folder);
    int n = 0;
    CHECK(d != NULL);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[1024];
        static uint8_t data[1 << 20];
        if (*e->d_name == '.') continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        FILE *f = fopen(path, "rb");
        size_t size = f ? fread(data, 1, sizeof data, f) : 0;
        if (f) fclose(f);
        int got = attempt(find_target(e->d_name), data, size), before = n_failed;
        if (strstr(e->d_name, "-refused")) CHECK(got > 0);
        note_failures(before, "%s", e->d_name);
        n++;
    }
    if (d) closedir(d);
    CHECK(n > 0);
}

// A vocabulary that can write nothing of a turn: there is a token to go on from all the same.
static void test_empty_turn(void)
{
    static List tokens;
    size_t n;
    add_string(&tokens, "Q", 1);
    Vocab v = {.tokens = {tokens.p, 1, G_STRING}, .merges.at = tokens.p, .bos = -1, .eos = -1,
               .eot = -1, .pre = "gpt-2"};
    Session s = {0};
    tokenizer_init(&s.tokenizer, "test", &v);
    Term pair[2], turn = make_message(pair, "user", "xyz");
    int *ids = encode_chat(&s, chat_formats[0].template, &turn, 1, &n);
    CHECK(n == 1 && ids[0] == 0);
}

int main(void)
{
    test_empty_turn();
    alarm(600);
    give_seeds(damage);
    give_options(try_option);
    give_short_lists(try_short_list);
    replay("tests/regress");
    CHECK(n_accepted > 100);
    CHECK(n_refused > 1000);
    printf("test_damage: %d inputs accepted, %d refused\n", n_accepted, n_refused);
    return report("test_damage");
}
