// test_loader.c: damaged files. Random changes to the header, or to the size, of a checkpoint of
// each version, and to a tokenizer: the loader must refuse in one line with status 1, or accept a
// model that then runs. Anything else, a crash or a hang, is a failure. Each try is a process.
#define TESTING
#include "../run.c"
#include "check.h"
#include "model.h"
#include <sys/wait.h>

// What the child does: opens the file and, if it is accepted, runs a few tokens.
static void use_model(const char *path)
{
    Model m;
    State s;
    model_load(&m, path);
    if (m.config.train_ctx < 2) _exit(0); // accepted; no room for two tokens
    state_init(&s, &m, 2, 2, 0, 0);
    float *logits = xcalloc((size_t)m.config.vocab_size, 4);
    forward(&s, (int[]){0, m.config.vocab_size - 1}, 2, 0);
    classify(&s, 1, 1, logits);
    _exit(0);
}

static void use_tokenizer(const char *path)
{
    Tokenizer t;
    int ids[64], n;
    size_t len;
    tokenizer_load(&t, path, 300);
    n = tokenizer_encode(&t, "a quick <0x41> \xff\xc3\xa9 test", NULL, 20, ids);
    for (int i = 0; i < n; i++) tokenizer_decode(&t, ID_BOS, ids[i], &len);
    _exit(0);
}

// Runs use(path) in a process of its own; 1 if it ends as it should.
static int survives(void (*use)(const char *), const char *path)
{
    FILE *err = tmpfile();
    int status, lines = 0;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fileno(err), STDERR_FILENO);
        alarm(20);
        use(path);
    }
    waitpid(pid, &status, 0);
    rewind(err);
    for (int c; (c = fgetc(err)) != EOF;) lines += c == '\n';
    fclose(err);
    int ok = WIFEXITED(status) && (WEXITSTATUS(status) == 0 ? lines == 0
                                                            : WEXITSTATUS(status) == 1 && lines == 1);
    if (!ok) printf("    status %#x, %d lines on stderr\n", (unsigned)status, lines);
    return ok;
}

static int32_t odd_number(void)
{
    static const int32_t some[] = {0, 1, -1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 255, 256, 4096, 65535,
                                   65536, 1 << 20, 1 << 24, (1 << 24) + 1, 1 << 28, 1 << 30,
                                   INT_MAX, INT_MIN, 0x7fc00000, 0x7f800000, 0x3f800000};
    return random_bits() % 4 ? some[random_bits() % (sizeof some / sizeof *some)]
                             : (int32_t)random_bits();
}

static void write_file(const char *path, const uint8_t *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) {
        perror(path);
        exit(1);
    }
}

// Up to three changed numbers among the first `header` bytes, and now and then another size.
static void damage_and_use(void (*use)(const char *), const uint8_t *data, size_t size,
                           size_t header, const char *path, int tries)
{
    uint8_t *copy = xcalloc(2 * size, 1);
    int bad = 0;
    for (int k = 0; k < tries; k++) {
        size_t n = k % 8 ? size : random_bits() % (2 * size);
        memset(copy, 0, 2 * size);
        memcpy(copy, data, size);
        for (uint32_t c = 1 + random_bits() % 3; c; c--) {
            int32_t v = odd_number();
            memcpy(copy + random_bits() % (header - 3), &v, 4);
        }
        write_file(path, copy, n);
        int ok = survives(use, path);
        bad += !ok;
        if (!ok) printf("    try %d\n", k);
    }
    CHECK_INT(bad, 0);
    free(copy);
}

static void test_models(const char *path, int tries)
{
    static const int versions[] = {0, 1, 2, 101, 102};
    for (int v = 0; v < 5; v++) {
        Shape s = {.version = versions[v], .dim = 16, .hidden = 16, .layers = 1, .heads = 2,
                   .kv_heads = 1, .vocab = 8, .ctx = 8, .group = 8, .scaling = v == 3 ? 7 : 0};
        TestModel t = make_model(s);
        int before = n_failed;
        write_file(path, t.file, t.size);
        CHECK(survives(use_model, path));
        damage_and_use(use_model, t.file, t.size, versions[v] ? 136 : 28, path, tries);
        damage_and_use(use_model, t.file, t.size, t.size, path, tries / 2); // weights, too
        note_failures(before, "version %d", versions[v]);
        free_test_model(&t);
    }
}

// 300 pieces: three special, the bytes, and some short ones.
static size_t make_tokenizer(uint8_t *out)
{
    size_t size = 4;
    memset(out, 0, 4);
    for (int id = 0; id < 300; id++) {
        char text[16] = "<x>";
        if (id >= 3 && id < 259) snprintf(text, sizeof text, "<0x%02X>", (unsigned)(id - 3));
        if (id >= 259) snprintf(text, sizeof text, "%c%c", ' ' + id % 7, 'a' + id % 19);
        float score = -(float)(id % 10);
        int32_t len = (int32_t)strlen(text);
        memcpy(out + size, &score, 4);
        memcpy(out + size + 4, &len, 4);
        memcpy(out + size + 8, text, (size_t)len);
        size += 8 + (size_t)len;
    }
    return size;
}

int main(int argc, char **argv)
{
    int tries = argc > 1 ? atoi(argv[1]) : 100;
    char path[] = "/tmp/run-test-XXXXXX";
    static uint8_t tokenizer[8000];
    close(mkstemp(path));
    test_models(path, tries);
    size_t size = make_tokenizer(tokenizer);
    write_file(path, tokenizer, size);
    CHECK(survives(use_tokenizer, path));
    damage_and_use(use_tokenizer, tokenizer, size, size, path, tries);
    unlink(path);
    return report("test_loader");
}
