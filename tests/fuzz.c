// fuzz.c: looks for inputs that break run.c; the targets are in fuzz.h.
//
//   fuzz seeds DIR             writes what to begin with into DIR/TARGET/
//   fuzz replay FILE...        tries files; their names, or folders' names, begin with the target's
//   fuzz try SECONDS FILE...   and changed copies of them, for so long
//
// With -DLIBFUZZER it is a target for clang's libFuzzer, named by the variable FUZZ_TARGET.
#include "fuzz.h"

#ifdef LIBFUZZER
static int target;

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    target = find_target(getenv("FUZZ_TARGET") ? getenv("FUZZ_TARGET") : "");
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_input(target, data, size);
    return 0;
}
#else
static const char *folder;

static void write_seed(int target, const char *name, const uint8_t *data, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, targets[target].name);
    mkdir(folder, 0777);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s", folder, targets[target].name, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) perror(path), exit(1);
}

static struct {
    int target;
    const uint8_t *data;
    size_t size;
} now;

// Keeps what run.c broke on: MUST aborts, and so do the sanitizers with abort_on_error=1.
static void save_input(int sig)
{
    char name[64];
    sprintf(name, "crash-%s-%08zx", targets[now.target].name,
            hash_bytes((const char *)now.data, now.size) & 0xffffffff);
    FILE *f = fopen(name, "wb");
    if (f) fwrite(now.data, 1, now.size, f), fclose(f), printf("%s\n", name), fflush(stdout);
    signal(sig, SIG_DFL);
    raise(sig);
}

static uint8_t *read_file(const char *path, size_t *size) // run.c's reader gets the input
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = NULL;
    *size = 0;
    for (size_t room = 1 << 16, got = 1; f && got; *size += got, room *= 2) {
        data = xrealloc(data, room, 1);
        got = fread(data + *size, 1, room - *size, f);
    }
    if (!f || ferror(f)) perror(path), exit(1);
    fclose(f);
    return data;
}

static int target_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (int i = 0; i < N_TARGETS; i++)
        if (!strncmp(name, targets[i].name, strlen(targets[i].name))) return i;
    while (slash && slash > path && slash[-1] != '/') slash--;
    return find_target(slash ? slash : path);
}

// A copy with a few changed bytes or words, or shorter, or longer.
static void try_changed(int target, const uint8_t *file, size_t size, uint64_t *rng)
{
    uint8_t *copy = xcalloc(size + 64, 1);
    memcpy(copy, file, size);
    size_t head = min_size(size, next_random(rng) % 4 ? 8192 : size);
    for (uint64_t n = next_random(rng) % 5; n && head > 8; n--) {
        uint64_t r = next_random(rng), value = next_random(rng);
        uint8_t *at = &copy[(r >> 8) % (head - 7)];
        if (r % 4 == 0) *at ^= (uint8_t)(1u << (value >> 61));
        else if (r % 4 == 1) *at = (uint8_t)(value >> 33);
        else memcpy(at, &(uint64_t){r & 16 ? ~0ull << (value >> 58) : value >> (value >> 58)},
                    r % 4 == 2 ? 4 : 8);
    }
    uint64_t r = next_random(rng);
    if (r % 8 == 0) size = (r >> 8) % (size + 64);
    now.target = target, now.data = copy, now.size = size;
    try_input(target, copy, size);
    free(copy);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "seeds")) {
        folder = argv[2];
        give_seeds(write_seed);
        give_options(write_seed);
        give_short_lists(write_seed);
        return 0;
    }
    int changed = argc > 3 && !strcmp(argv[1], "try"), first = 2 + changed;
    if (argc <= first || (!changed && strcmp(argv[1], "replay"))) {
        puts("usage: fuzz seeds DIR | replay FILE... | try SECONDS FILE...");
        return 2;
    }
    if (changed) signal(SIGABRT, save_input);
    double end = seconds() + (changed ? atof(argv[2]) : 0);
    uint64_t rng = seed_random((uint64_t)time(NULL)), n = 0;
    do
        for (int i = first; i < argc; i++, n++) {
            size_t size;
            int target = target_of(argv[i]);
            uint8_t *file = read_file(argv[i], &size);
            if (changed) try_changed(target, file, size, &rng);
            else if (try_input(target, file, size)) printf("%s: %s", argv[i], said);
            free(file);
        }
    while (seconds() < end);
    printf("fuzz: %llu inputs tried, no crash\n", (unsigned long long)n);
    return 0;
}
#endif
