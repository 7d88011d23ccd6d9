// test_bpe.c: what models/bpe.c learns, and that run.c's encoder cuts text the same way.
#define TESTING_BPE
#include "../models/bpe.c"
#include "check.h"

// Nonsense with the traps of real text: double spaces, quotes, digits, apostrophes, UTF-8, and
// long words of three letters, in which one piece can be split in many ways.
static char *make_text(size_t parts_wanted, size_t *len)
{
    static const char *const parts[] = {
        "the ", "\xc3\xa9t\xc3\xa9 ", "'s ", "\"An", ".\" ", "--", "  ", "1234 ", "\n\n", "n't ",
        ", ",   "\xe2\x82\xac",       "? "};
    enum { N_PARTS = sizeof parts / sizeof *parts };
    char *text = xcalloc(parts_wanted * 20 + 1, 1);
    *len = 0;
    for (size_t i = 0; i < parts_wanted; i++) {
        const char *part = parts[random_bits() % N_PARTS];
        for (uint32_t k = random_bits() % 12; k; k--) text[(*len)++] = "aaban"[random_bits() % 5];
        memcpy(text + *len, part, strlen(part));
        *len += strlen(part);
    }
    return text;
}

// A merged piece is an optional space, then letters only or punctuation only.
static int well_formed(Piece p)
{
    int start = p.text[0] == ' ', class = char_class((unsigned char)p.text[start]);
    int bad = class > PUNCT;
    for (int i = start; i < p.len; i++) bad += char_class((unsigned char)p.text[i]) != class;
    return !bad;
}

static void test_pieces(int vocab_size)
{
    int bad = 0, longest = 0;
    for (int i = FIRST_CHAR; i < vocab_size; i++) {
        Piece p = vocab.piece[i];
        bad += vocab_find(p.text, (size_t)p.len) != i; // no piece twice
        if (p.len == (int)char_length(p.text, (size_t)p.len)) continue;
        bad += !well_formed(p);
        longest = p.len > longest ? p.len : longest;
    }
    CHECK_INT(vocab.n, vocab_size);
    CHECK_INT(bad, 0);
    CHECK(longest > 4 && longest <= MAX_PIECE);
}

// The ids of " " + text as the trainer cut its words, against the encoder on the whole text.
static void test_same_cut(const char *path, const char *text, size_t len, int vocab_size)
{
    Tokenizer t;
    int *got = xcalloc(len + 2, sizeof *got), n_got, n_want = 0, bad = 0;
    Vocab v = read_vocab(path, (size_t)vocab_size);
    tokenizer_init(&t, path, &v);
    n_got = tokenizer_encode(&t, text, len, got);
    char *spaced = xcalloc(len + 2, 1);
    spaced[0] = ' ';
    memcpy(spaced + 1, text, len);
    for (size_t i = 0, n; i < len + 1; i += n) {
        n = word_length(spaced + i, len + 1 - i);
        const Word *w = &words.word[table_slot(&words.index, spaced + i, n)->value];
        for (uint32_t k = 0; k < w->n; k++, n_want++)
            bad += n_want >= n_got || got[n_want] != w->ids[k];
    }
    CHECK_INT(n_got, n_want);
    CHECK_INT(bad, 0);
    free(got);
    free(spaced);
}

// The pieces of a word of characters that training never saw, after merging.
static Word merged(const char *text)
{
    Word w = {text, (uint32_t)strlen(text), 0, 1, NULL};
    split_word(&w);
    merge_word(&w);
    return w;
}

// The earlier piece goes first wherever it stands, and pieces join by what they spell together,
// not by the halves they were made of.
static void test_merge_order(void)
{
    int jk = vocab_add("jk", 2);
    vocab_add("kj", 2);
    int qwz = vocab_add("qwz", 3);
    vocab_add("wz", 2);
    Word w = merged("kjk");
    CHECK_INT(w.n, 2);
    CHECK_INT(w.ids[1], jk);
    w = merged("qwz");
    CHECK_INT(w.n, 1);
    CHECK_INT(w.ids[0], qwz);
}

static void test_word_length(void)
{
    CHECK_INT(word_length("don't go", 8), 5);
    CHECK_INT(word_length(" don't", 6), 6);
    CHECK_INT(word_length("  a", 3), 1);
    CHECK_INT(word_length(" 12", 3), 1);
    CHECK_INT(word_length("12", 2), 1);
    CHECK_INT(word_length(" .\"x", 4), 3);
    CHECK_INT(word_length("\n\nx", 3), 1);
    CHECK_INT(word_length(" ", 1), 1);
}

// The table of pairs grows: each is found again, and a search for one that is not there ends.
static void test_pairs(void)
{
    enum { N = 450 }; // of the pieces
    int lost = 0;
    size_t before = pairs.n;
    for (int left = 1; left <= N; left++)
        for (int right = 1; right <= N; right++) pair_add(left, right)->count = left * N + right;
    for (int left = 1; left <= N; left++)
        for (int right = 1; right <= N; right++) {
            uint32_t at = pairs.slot[pair_slot(left, right)];
            lost += !at || pairs.pair[at - 1].count != left * N + right;
        }
    CHECK_INT(lost, 0);
    CHECK(pairs.n <= before + N * N && !pairs.slot[pair_slot(N + 1, 1)]);
}

int main(void)
{
    enum { SIZE = 460 };
    char path[] = "/tmp/test_bpe_XXXXXX";
    size_t len;
    char *text = make_text(20000, &len);
    text[0] = 'T'; // " T": the first word is then the same with the encoder's space
    prepare();
    count_words(" ", 1);
    count_words(text, len);
    char first[MAX_WORD + 8] = " ";
    memcpy(first + 1, text, MAX_WORD);
    count_words(first, word_length(first, strlen(first)));
    add_special();
    add_characters(100);
    train_merges(SIZE);
    int fd = mkstemp(path);
    write_tokenizer(path);
    test_word_length();
    test_pieces(SIZE);
    test_same_cut(path, text, len, SIZE);
    test_merge_order();
    test_pairs();
    close(fd);
    unlink(path);
    return report("test_bpe");
}
