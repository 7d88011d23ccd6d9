// fuzz_gguf.c: a fuzz target for the GGUF reader and the tokenizers it fills.
//
//   clang -g -O1 -fsanitize=fuzzer,address,undefined -DLIBFUZZER tests/fuzz_gguf.c -lm -lpthread
//   cc -g -O1 -fsanitize=address,undefined -fno-sanitize-recover -o fuzz_gguf tests/fuzz_gguf.c -lm -lpthread
//   ./fuzz_gguf FILE...           runs files, such as those that the fuzzer found
//   ./fuzz_gguf -n 1000 FILE      and that many changed copies of each
//
// die() ends in exit(), which here jumps back: a refused file is a good end. What was allocated
// until then is lost, so look for leaks elsewhere (-detect_leaks=0).
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdlib.h>

static jmp_buf refused;
__attribute__((noreturn)) static void leave(int status)
{
    longjmp(refused, status ? status : 1);
}

#define TESTING
#define exit leave
#include "../run.c"
#undef exit

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello <|im_start|> caf\xc3\xa9 \xff 123\n\n  x";
    static Model m;
    static Tokenizer t;
    static int ids[2 * sizeof text];
    static void *copy;
    if (size < 4 || memcmp(data, "GGUF", 4)) return 0;
    memset(&m, 0, sizeof m);
    memset(&t, 0, sizeof t);
    copy = aligned_alloc(4096, round_up(size, 4096));
    uint8_t *end = (uint8_t *)copy + round_up(size, 4096) - size;
    end -= (uintptr_t)end % 8; // as near to the end as alignment allows
    memcpy(end, data, size);
    m.path = "fuzz";
    m.map = end;
    m.size = size;
    if (!setjmp(refused)) {
        load_gguf(&m);
        tokenizer_from_vocab(&t, "fuzz", &m.vocab);
        int n = tokenizer_encode(&t, text, sizeof text - 1, ids);
        for (int i = 0; i < n; i++) tokenizer_decode(&t, -1, ids[i], &(size_t){0});
        find_chat_format(&m.vocab, NULL);
        for (int l = 0; l < m.config.n_layers; l++) { // the last row of a matrix is in the file
            const Tensor *w = &m.layers[l].w2;
            float *row = xcalloc(w->cols, 4);
            w->type->unpack(w, w->rows - 1, row);
            free(row);
        }
    }
    tokenizer_free(&t);
    free(m.layers);
    free(copy);
    return 0;
}

#ifndef LIBFUZZER
// A copy with a few changed bytes, or shorter.
static void run_changed(const uint8_t *file, size_t size, uint64_t seed)
{
    uint64_t rng = seed_random(seed);
    uint8_t *copy = xrealloc(NULL, size, 1);
    memcpy(copy, file, size);
    size_t head = min_size(size, next_random(&rng) % 4 ? 8192 : size);
    for (int n = 1 + (int)(next_random(&rng) % 4); n; n--) {
        uint64_t r = next_random(&rng);
        copy[r % head] = r >> 40 & 1 ? (uint8_t)(r >> 48) : (uint8_t)(copy[r % head] ^ 1 << (r >> 61));
    }
    if (next_random(&rng) % 8 == 0) size = next_random(&rng) % size;
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

int main(int argc, char **argv)
{
    int first = 1, copies = 0;
    if (argc > 3 && !strcmp(argv[1], "-n")) {
        copies = atoi(argv[2]);
        first = 3;
        if (!freopen("/dev/null", "w", stderr)) return 1; // the messages of refused files
    }
    for (int i = first; i < argc; i++) {
        size_t size;
        char *file = read_text(argv[i], &size);
        LLVMFuzzerTestOneInput((const uint8_t *)file, size);
        for (int k = 0; k < copies; k++) run_changed((const uint8_t *)file, size, (uint64_t)k);
        free(file);
    }
    puts("done");
    return 0;
}
#endif
