// check.h: what the unit tests share. A check prints its expression, what it wanted, what it got
// and where it stands when it fails; report() prints the totals and gives main its exit status.
// A check that covers many values counts the bad ones first and is then one check.

static int n_passed, n_failed;

static void count_check(int ok)
{
    if (ok) n_passed++;
    else n_failed++;
}

static void check_true(int ok, const char *expr, const char *file, int line)
{
    count_check(ok);
    if (!ok) printf("%s:%d: %s: want true, got false\n", file, line, expr);
}

static void check_int(long long got, long long want, const char *expr, const char *file, int line)
{
    count_check(got == want);
    if (got != want) printf("%s:%d: %s: want %lld, got %lld\n", file, line, expr, want, got);
}

static void check_near(double got, double want, double tolerance, const char *expr,
                       const char *file, int line)
{
    int ok = fabs(got - want) <= tolerance; // false for NaN
    count_check(ok);
    if (!ok)
        printf("%s:%d: %s: want %.9g within %.3g, got %.9g\n", file, line, expr, want, tolerance,
               got);
}

// Floats that must be the same bits: 0 and -0 differ, a NaN equals itself.
static void check_bits(const float *got, const float *want, size_t n, const char *expr,
                       const char *file, int line)
{
    size_t bad = 0, first = 0;
    for (size_t i = n; i-- > 0;)
        if (memcmp(got + i, want + i, 4)) bad++, first = i;
    count_check(!bad);
    if (bad)
        printf("%s:%d: %s: want %.9g, got %.9g at %zu, %zu of %zu differ\n", file, line, expr,
               (double)want[first], (double)got[first], first, bad, n);
}

static void check_text(const char *got, size_t got_len, const char *want, size_t want_len,
                       const char *expr, const char *file, int line)
{
    int ok = got_len == want_len && !memcmp(got, want, want_len);
    count_check(ok);
    if (!ok)
        printf("%s:%d: %s: want \"%.*s\", got \"%.*s\"\n", file, line, expr, (int)want_len, want,
               (int)got_len, got);
}

// Whether vmuladd() rounds once on this machine.
#if defined(PLAIN) || defined(__FMA__) || defined(__FP_FAST_FMAF) || defined(__aarch64__)
#define FUSED 1
#else
#define FUSED 0
#endif

#define CHECK(expr) check_true(!!(expr), #expr, __FILE__, __LINE__)
#define CHECK_INT(got, want) check_int((long long)(got), (long long)(want), #got, __FILE__, __LINE__)
#define CHECK_NEAR(got, want, tolerance) \
    check_near(got, want, tolerance, #got, __FILE__, __LINE__)
#define CHECK_BITS(got, want, n) check_bits(got, want, n, #got, __FILE__, __LINE__)
#define CHECK_TEXT(got, got_len, want, want_len) \
    check_text(got, got_len, want, want_len, #got, __FILE__, __LINE__)

// Names a group of checks that a loop repeats, when one of them has failed since `before`.
static void note_failures(int before, const char *fmt, ...)
{
    if (n_failed == before) return;
    va_list ap;
    va_start(ap, fmt);
    printf("    with ");
    vprintf(fmt, ap);
    putchar('\n');
    va_end(ap);
}

static int report(const char *name)
{
    printf("%s: %d passed, %d failed\n", name, n_passed, n_failed);
    return n_failed > 0;
}

// The tests' own random numbers (a 64-bit linear congruential generator), so that a change of
// run.c's changes no test.
static uint64_t test_rng = 1;

static uint32_t random_bits(void)
{
    test_rng = test_rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(test_rng >> 32);
}

static float random_uniform(void) // in (-1, 1)
{
    return ((float)(random_bits() >> 8) + 0.5f) * 0x1p-23f - 1;
}

static float random_gauss(void) // mean 0, variance 1: the sum of 12 uniform numbers
{
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += random_uniform();
    return sum / 2;
}

static float *random_floats(size_t n)
{
    float *p = xcalloc(n, 4);
    for (size_t i = 0; i < n; i++) p[i] = random_gauss();
    return p;
}
