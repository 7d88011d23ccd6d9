// make_model.c: writes a small random checkpoint for the command-line tests.
//
//   make_model OUT [name=value]...      names: the int fields of Shape, in model.h, and nan=1
//
// Without values: version 1, dim 32, hidden 64, 2 layers, 4 heads, 2 KV heads, vocab 4096, ctx 96.
#define TESTING
#include "../run.c"
#include "check.h"
#include "model.h"

static Shape shape = {.version = 1, .dim = 32, .hidden = 64, .layers = 2, .heads = 4, .kv_heads = 2,
                      .vocab = 4096, .ctx = 96, .group = 16, .theta = 10000, .eps = 1e-5f, .seed = 1};

static const struct {
    const char *name;
    int *to;
} fields[] = {
    {"version", &shape.version}, {"dim", &shape.dim}, {"hidden", &shape.hidden},
    {"layers", &shape.layers}, {"heads", &shape.heads}, {"kv_heads", &shape.kv_heads},
    {"vocab", &shape.vocab}, {"ctx", &shape.ctx}, {"group", &shape.group},
    {"own_classifier", &shape.own_classifier}, {"encoding", &shape.encoding},
    {"rows", &shape.rows}, {"max_distance", &shape.max_distance}, {"scaling", &shape.scaling}, {"window", &shape.window},
    {"sinks", &shape.sinks}, {"logn", &shape.logn}, {"seed", &shape.seed},
};

int main(int argc, char **argv)
{
    int nan = 0;
    prog = "make_model";
    if (argc < 2) die(EXIT_USAGE, "usage", "make_model OUT [name=value]...");
    for (int a = 2; a < argc; a++) {
        char *value = strchr(argv[a], '=');
        int *to = NULL;
        if (!value) die(EXIT_USAGE, argv[a], "want name=value");
        *value++ = 0;
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            if (!strcmp(argv[a], fields[i].name)) to = fields[i].to;
        if (!strcmp(argv[a], "nan")) to = &nan;
        if (!to) die(EXIT_USAGE, argv[a], "no such field");
        *to = (int)parse_number(EXIT_USAGE, argv[a], value, 1, INT_MIN, INT_MAX);
    }
    TestModel m = make_model(shape);
    if (nan) memset(m.file + m.size - 4, 0xff, 4);
    FILE *f = fopen(argv[1], "wb");
    if (!f || fwrite(m.file, 1, m.size, f) != m.size || fclose(f))
        die(EXIT_DATA, argv[1], "cannot write");
    free_test_model(&m);
    return 0;
}
