// fuzz_gguf.c: a fuzz target for the GGUF reader and the tokenizers it fills.
//
//   clang -g -O1 -fsanitize=fuzzer,address,undefined -DLIBFUZZER tests/fuzz_gguf.c -lm -lpthread
//   cc -g -O1 -fsanitize=address,undefined -fno-sanitize-recover tests/fuzz_gguf.c -lm -lpthread
//   ./a.out FILE...      runs files, such as those that the fuzzer found
//   ./a.out -n 1000 FILE and that many changed copies of each
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

static Model model;
static Tokenizer tokenizer;

// Loads the file, encodes some text, and unpacks the last row of a matrix of each layer.
__attribute__((noinline)) static void use_model(void)
{
    static const char text[] = "Hello <|im_start|> caf\xc3\xa9 \xff 123\n\n  x";
    static int ids[2 * sizeof text];
    load_gguf(&model);
    tokenizer_from_vocab(&tokenizer, "fuzz", &model.vocab);
    int n = tokenizer_encode(&tokenizer, text, NULL, sizeof text - 1, ids);
    for (int i = 0; i < n; i++) tokenizer_decode(&tokenizer, -1, ids[i], &(size_t){0});
    find_chat_format(&model.vocab, NULL);
    for (int l = 0; l < model.config.n_layers; l++) {
        const Tensor *w = &model.layers[l].w2;
        float *row = xcalloc(w->cols, 4);
        w->type->unpack(w, w->rows - 1, row);
        free(row);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void *copy;
    if (size < 4 || memcmp(data, "GGUF", 4)) return 0;
    memset(&model, 0, sizeof model);
    memset(&tokenizer, 0, sizeof tokenizer);
    copy = aligned_alloc(4096, round_up(size, 4096));
    uint8_t *begin = (uint8_t *)copy + round_up(size, 4096) - size;
    begin -= (uintptr_t)begin % 8; // as near to the end as alignment allows
    memcpy(begin, data, size);
    model.path = "fuzz";
    model.map = begin;
    model.size = size;
    if (!setjmp(refused)) use_model();
    void *mine[] = {tokenizer.file, tokenizer.pieces, tokenizer.ids.slots, tokenizer.rules,
                    tokenizer.ranks.slots, model.layers, copy};
    for (int i = 0; i < 7; i++) free(mine[i]);
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
        uint8_t *at = &copy[r % head];
        *at = (uint8_t)(r >> 40 & 1 ? (int)(r >> 48) : *at ^ 1 << (r >> 61));
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
