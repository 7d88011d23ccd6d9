// codes.h: the codes of blocks as numbers, for tests.

// The codes, less the type's zero, of n blocks of one row: q[n][block].
static void block_codes(const TensorType *type, const uint8_t *b, size_t n, int8_t *q)
{
    for (; n; n--, b += type->bytes, q += type->block)
        for (size_t u = 0; u < type->block / 32; u++) {
            vi codes[2];
            read_codes(type, (const char *)b, 0, 0, u, codes);
            for (size_t h = 0; h < 2; h++) {
                vc less = (vc)codes[h] - (uint8_t)type->zero;
                memcpy(q + 16 * piece_of(type, u, h), &less, 16);
            }
        }
}
