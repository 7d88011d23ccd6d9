// make_gguf.c: writes a small GGUF model with random weights.
//
//   make_gguf OUT ARCH [TYPES [spm|bpe [none|linear|yarn|freqs [PRE [seldom]]]]]
//   make_gguf a.gguf gemma3 "q4_k q6_k" bpe linear qwen2
#define TESTING
#include "../run.c"
#include "check.h"
#include "gguf.h"

int main(int argc, char **argv)
{
    if (argc < 3)
        die(EXIT_USAGE, "usage", "make_gguf OUT ARCH [TYPES [spm|bpe [SCALING [PRE [seldom]]]]]");
    const char *scaling = argc > 5 && strcmp(argv[5], "none") ? argv[5] : NULL;
    GgufSpec spec = {argv[2], argc > 3 ? argv[3] : "f32", argc > 4 && !strcmp(argv[4], "bpe"),
                     scaling, argc > 6 ? argv[6] : NULL, NULL, argc > 7};
    size_t size;
    uint8_t *file = build_gguf(&spec, 1, &size);
    FILE *f = fopen(argv[1], "wb");
    if (!f || fwrite(file, 1, size, f) != size || fclose(f))
        die(EXIT_DATA, argv[1], "cannot write (%s)", strerror(errno));
    free(file);
    return 0;
}
