// chat.c: texts and conversations, written for a model as it was trained to read them.
//
// The engine is run.c, which this program includes; `make` builds ./run from both. What stands here
// has nothing to do with a Transformer, hence a file of its own: two conventions of the text that a
// model was trained on. Wrong by a blank or a newline, the model answers badly and nobody knows
// why, so nothing is guessed.
//
// The first is how a text is cut into words before it becomes tokens: families of models have a
// regular expression each for it, in terms of Unicode's classes of characters.
//
// The second is how a conversation is written. A model file has a template, a text in the language
// Jinja that turns messages (each a role and a content) into what the model was trained on: it is
// executed, or refused. A conversation is a list of messages. For every turn the template writes
// all of it anew, and what the cache already holds of the result need not be read again: as a rule
// all but the last turn. So a template may leave out what was thought about earlier turns, and old
// turns may be dropped, without a case of their own.
//
// How to read this file. Words come first, and are used by run.c's tokenizer. A template then goes
// through four layers, each of which calls those before it: terms (what a template computes with),
// functions (what it can do to them), expressions (what it writes between braces) and tags (what
// decides what is written). Then come the formats for models that bring no template, what has to
// hold of a template before it is used, what a person at a terminal sees beside the text, and the
// turns of a conversation. Who wants to know only how a chat works begins there, at answer().
#ifndef TESTING
#define TESTING // leaves run.c's main out
#define CHAT
#endif
#include "run.c"
#include <poll.h>

// What the command line says beside run.c's options; the table is at the end.
static struct {
    const char *system, *format;
    int no_think, keep_all, show_tokens;
} talk;

// A copy that its owner may change and free.
static char *copy_string(const char *s) { return strcpy(xrealloc(NULL, strlen(s) + 1, 1), s); }

// --- how a text is cut into words ----------------------------------------------------------------

// Classes of characters by Unicode's general categories, as far as a cut of text into words depends
// on them. What is in none of them is 0; C_CASELESS are letters that are neither large nor small.
enum { C_UPPER = 1, C_LOWER = 2, C_CASELESS = 4, C_MARK = 8, C_NUMBER = 16, C_PUNCTUATION = 32,
       C_SPACE = 64, C_NEWLINE = 128 };

// Runs of characters of one class, from U+0000 on, by Unicode 14.0 as Python's unicodedata has it.
// Every byte is ten times a class and a digit: '#' is 0, '$' is 1 and so on, without the backslash.
// Class 0 is none, 1 to 7 are those above in their order, and 8 are large and small letters in
// turn, as in the Latin alphabet's later parts. The digits of neighbours of one class are one
// number, the length of the run. So ",o$+k" at the table's beginning are 9 characters of none, 5 of
// white space, 18 of none, and the blank.
static const char unicode_runs[] =
    ",o$+kc$f$dVUb&b/3c$a$9=a$a*k%)ka(a%Ba)W$8b$VBaXa/0$49;$?yz8uz8xz.z9.x/80918/80:/8.z.x8.8/8/x/9"
    "B.:E/8/8.u|8u|8.x/zt=/8/9.80ut=?B9>BI'BC$'F*B$B$*LLMxB$.8%B:a.).a0$.$/8.4$6:<.90:vx;.8$.8/92.;"
    "?wx$Ryx.ux8}z$05%Bf;8b)OPaLaMaMaL+CH'Eb%#b$b%LLa$cEDMLVUdCLJJaBR%QCM$OCVUD%Bad%BLDAMR%IJLLB$'V"
    "UDDTC$cB%L%CCOBTBNBP%ae$CFN%a$BB(CE$G,SECMO$NNFENBLSBRBAMbVUaBGN$I%C%CC$H$B&E%LBR%M%NB+L'C$DM%"
    "VUC%[%BaL%N$G'C%CC$H$C$C$C%L$P'M%N&L*E$B*VUMDLa$#N$J$D$CC$H$C$F%LBS$N$N%B$(CM%VUa+BQ$N$I%C%CC$"
    "H$C$F%LBR%M%N*N'C$DM%VU$B[$#LB$G&D$E&C$B$C&C&D&BC'P&N$O%B)L$'VX$&PI$D$CD$BG%LBR$N$O*M$D%B%CM%V"
    "U*a]$BNaI$D$CD$BA$F%LBR$N$O*M)C$CM%VU$C$&OJ$D$EBMBR$N$OB(DL]DM%V_$G$N$BI&CE$J$B%H&L'Q$L$S)VU%M"
    "a$%EILCR(HSaVUb&*C$B$F$CE$B$BALCTB%F$B$Q%VU%E&%B&ae$a&M)WU$L$L$LdMI$DG'MKaMFLL$NQ,L,e'b&*EDMKB"
    "VUfGOENBNCRDOBDLMBLVUO%05$.(.%;:aB:DCJ$E%H$B$E%EB$E%DD$E%H$B$E%BF$FH$E%GH%NiWU&BG$)53%=%aGCA$a"
    "BHkCGb&HFcXI*BIO,BJNb,BIM$%BD$D$M$%FCNMcBc$BL%VU)VU)aaN$LVU)IJ*FMDELB(HA$#DB$LM'LM+bVUDA%F$$EE"
    "'CG)VV&*CDP%bFDLK$MT%LVU)VU)gBf%NL',PEHLRI&VUg$#T,b$NDALNCVUEELO+dDGMK&eVU&DVUDGb@*10%0h+NaMLE"
    "LGLCNB(;;GD8:B:;DHQOuyt?}|?5=%3%?5?5=%3%?$.$.$.$.?58;%?5?5?5<$92$8&:$92&;%91'?2(:$92&kk(bdl(kb"
    "`$ac$abk$)VB%[&bBVU&b$BD($NN$*.'.%80908$.&2).$.$.$1$818E8%9/(.;'8$ZV.8Z&+%d%,b&#,[U*+WW)$)adXU"
    "',b&$a`'#&bb)&d&%b($'15;?.809z0x8.=C/utt8)xN.8(dVb:?$8(8%FG*Ba$'LCD,H$H$H$H$H$H$H$H$NMdgBcb%ab"
    "'$+kc$CVa`%ab$_QaF%XCa&IG%M%DaJAaE(ED$JE&Y$#DC'+BG&%VU&#^$VZ&%VU&,VZ&%#GFJC)'CCBFH)*EGbCGJcBGV"
    "UC%#xzBOaLKaBv|CMHAVUMf&$J%ux9zvB?x.utB%xBx9vt281uz0x(.8$8$8x%'D.8D8HLDLELCDP'L&[$#FCd+MFALS+b"
    "VU)LSGcBaCLVUCISbCDLN$$aCJ&OEHLOac$BVU'bFLBAVUF$EBLO,DLIM%VU%dCD&BNFALBNCMFMBLB%'DbBBPbDM$#G%G"
    "%G,H$H$;:$E@B)?7DFSaM%VU)BBBHC$%CD'EJ+'(%DGG%BAG&+>$%<(BLBA$BD$F$B$C$C$BAI&&DGDb$)GE%FE'#BC'LQ"
    "a`)LQce$ad$a'a$b'F$BDF'c$f$dVUb&b/3c$a$9=a$a$gIJ&G%G%G%D&(BC$CG$BJ$C$BF%BE&'BCD(c'YZ$%Z]$*W$$&"
    "L$&#CJ&EJ$(LW]'DCY,CAVIV(DIP(DA$aDG'IaZ'%1-;7HI%VU)03':='EA+FC$$a..$.2$4$/$88$8<$>$9)*DBB,CC$#"
    "I%'G$EC$J),G%B$EE$C&B%CD$a^CD%]DB+_'+BJ$C(ZCC[&aCG(a)'FG'WCV[%Y[BN$M(OE$D$CJ%N'L_*i*CJWaCJX&%I"
    "$CIM'Zg,FE&gCC%^BJ(^BI*d$%]+#HD((2.$&<8*[DGO+VU%,'XV$EC$Ma%C*+CJVUB+CCLLYe%%BIOd&+CB]%#CD,NFDL"
    "Pg'XULCMB,OEFLLb$dL$&CF*VU)NDGLO$VUdBMB+DFLbB,NEILOEdOaMVUBaBc$WU$$BI$CFLMfL)(H$B$E$BF$BAa)EHL"
    "M(VU)O$I%C%CC$H$C$F$MBR%M%N%B)L(FM%R&P$&,FDLSEeVUb$aLD&#EIMKCaB+VU$))EHR%TbcEM&'EILRcB$$VU)ac$"
    ",EDLNBa)VU('CH%LP'VWc$H$+(EELPa$##0/:9V_$%I%B%I$C$CEQ$M%OBLBMc,VU*#I%DJR%RBaBL%*BLKEARBOhL+BLL"
    "EGLQcBe$&HD%)&J$DHS$SBe$#W_&bDA%MM$LO*&H$C$DIQ&L$M$RBL+VU)G$C$DCP$M$PB*VU&$#BJOb$+&B$(WV'%aJCC"
    "$#%VVV$e$$BJG%)&)JHb$&BAHB'#',FID+)&&FGJ*DB$VU'bHJ$VU)DA%Pa$#EIRe'Ea$$VU$]$CB(BJ)++0/:9WXd$#$H"
    "F'LBPP*OBD)'CaBL$$M$'GBDG+BCDI'%J+,&(E$H$C$CJB'(D$*E+DJG%&#+BAH(BD&J*BA&Ma'*#'OQ%MN('%P&Q+S%R&"
    "#O$'+N$((WU$#+WZ$&(/39=/3>$8?/39=.$/%.%/%1$5;$8$>$88/39=/$1%5$4$9=/$1$2$.&4$9=/39=/39=/39=/39="
    "/39=/39?%/2$9<$=/2$9<$=/2$9<$=/2$9<$=/2$9<$=.8%ZU($%PP'PK+L$'L%e$(P$LP$$#'87B97%%(R$LR%R$M$P%$"
    "&EF&RH%VU'B&%$DAL$*EEOVU$%('H$E$C$BF$BJH%_R'$01:;RB'VU'b*+(Z_$X$Y*)YZ$VZ$,'E$CH$C$B%B$BA$E$B$B"
    ")B'B$B$B$D$C$B%B$B$B$B$B$C$B%E$H$E$E$B$BA$BH(D$F$BH(+#VX%*+*VU$#&#ECHCA&%EBFD*CCC%FHGC$'HEHD&$"
    "#&FEC$(#)EJDJ";

// What comes behind is in none, but for 240 marks at U+E0100, with which Japanese names choose the
// shape of a character.
static uint8_t char_classes[0x3134b];

// Fills char_classes. A run is filled anew with each digit of its length, which is simple and takes
// no time.
static void read_unicode_runs(void)
{
    uint8_t *from = char_classes, *to = from;
    int class = 0, n = 0;
    for (const char *p = unicode_runs; *p; p++) {
        int code = *p - '#' - (*p > '\\'), one = 1 << code / 10 >> 1;
        if (code / 10 != class) from = to, n = 0, class = code / 10;
        n = 10 * n + code % 10;
        for (to = from; to < from + n; to++)
            *to = (uint8_t)(class < 8 ? one : (to - from) % 2 ? C_LOWER : C_UPPER);
    }
    char_classes['\n'] = char_classes['\r'] = C_NEWLINE;
}

// The words of a family are given as regular expressions, of which this is all that they need.
// Patterns are written as such, but that these capitals stand for classes of characters, in
// brackets, too:
//   A  a letter of any alphabet         U  a letter that is not small, or a mark
//   C  a letter that is large or small  K  a letter that is not large, or a mark
//   X  a mark (an accent, say)          N  a number             P  punctuation
//   B  a line's break, \r or \n         W  white space, breaks among it
// A digit says "once to so often", = that the character has to come next but is no part of the
// word, $ that nothing may come; E is an English ending, 's, 't, 're, 've, 'm, 'll or 'd, small or
// not. At each place the first pattern that matches makes a word; what lies between two matches is
// one, too. Behind NEXT are patterns by which each of these words is cut again.
//
// deepseek-llm's own list of letters leaves a few of C out: Armenian's and Georgian's small ones,
// and the ones for formulas. Its fourth step takes off the white space at a word's end, written
// here so that a long run of it is walked over once and not from each of its characters.
#define NEXT ""
#define ENDINGS "'[stmd]", "'[rv]e", "'ll"
#define SPACES "W+$", "W+W=" // the last one of several goes with the word behind it
#define GPT_2 ENDINGS, " ?A+", " ?N+", " ?[^WAN]+", SPACES
#define LLAMA(number) "E", "[^BAN]?A+", number, " ?[^WAN]+B*", "W*B+", SPACES
#define HAN "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
static const struct WordStyle {
    const char *name;         // names under which files know it
    int whole_words;          // a word that is a piece needs no merges; its models want BOS
    const char *patterns[16]; // what words look like
} word_styles[] = {
    {"gpt-2, default, olmo, mpt, phi-2, exaone4, mellum", 0, {GPT_2}},
    {"smollm, refact, starcoder, command-r, exaone, minerva-7b, mellum2", 0, {"N", NEXT, GPT_2}},
    {"llama-bpe, llama3, llama-v3, falcon3, pixtral", 1, {LLAMA("N3")}},
    {"dbrx, smaug-bpe", 0, {LLAMA("N3")}},
    {"qwen2, deepseek-r1-qwen, stablelm2, hunyuan", 0, {LLAMA("N")}},
    {"qwen35", 0, {"E", "[^BAN]?[AX]+", "N", " ?[^WAXN]+B*", "W*B+", SPACES}},
    {"seed-coder", 0, {"E", "[^BAN]?A+", "N", " ?[^WAN]+", "W*B+", SPACES}},
    {"tekken", 1, {"[^BAN]?U*K+", "[^BAN]?U+K*", "N", " ?[^WAN]+[B/]*", "W*B+", SPACES}},
    {"gpt-4o, llama4, kanana2", 0,
     {"[^BAN]?U*K+E?", "[^BAN]?U+K*E?", "N3", " ?[^WAN]+[B/]*", "W*B+", SPACES}},
    {"falcon", 0, {"[P$+<=>^~|`]+", NEXT, GPT_2, NEXT, "[0-9][0-9][0-9]"}},
    {"bloom", 0, {" ?[^W(|.,!?)\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c]+"}},
    {"deepseek-llm", 0, {"B", NEXT, "W?C+", NEXT,
                         "W?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", NEXT,
                         "[^B]*[^W]", "W+", NEXT, HAN, NEXT, "N+"}},
    {"deepseek-coder", 0, {"B", NEXT, "W?A+", NEXT, "W?P+", NEXT, HAN, NEXT, "N"}},
};

// A character of a text: the byte where it begins, and whether a word begins there, too.
typedef struct {
    uint32_t c;
    int at, begins;
} Char;

// Whether c is in the set at p: a class, a character, or in brackets several and ranges, or what is
// in none of them behind a ^.
static int in_set(const char *p, uint32_t c)
{
    enum { LARGE = C_UPPER | C_CASELESS, SMALL = C_LOWER | C_CASELESS };
    static const uint8_t classes[128] = {
        ['A'] = LARGE | SMALL, ['C'] = C_UPPER | C_LOWER, ['X'] = C_MARK, ['U'] = LARGE | C_MARK,
        ['K'] = SMALL | C_MARK, ['N'] = C_NUMBER, ['P'] = C_PUNCTUATION, ['B'] = C_NEWLINE,
        ['W'] = C_SPACE | C_NEWLINE};
    int brackets = *p == '[', not = brackets && p[1] == '^', found = 0;
    int class = c < sizeof char_classes ? char_classes[c] : c - 0xe0100 < 240 ? C_MARK : 0;
    p += brackets + not;
    do {
        size_t n;
        uint32_t first = read_char(p, 4, &n), last = first;
        p += n;
        if (brackets && *p == '-') last = read_char(p + 1, 4, &n), p += 1 + n;
        if (first < 128 && classes[first]) found |= classes[first] & class;
        else found |= first <= c && c <= last;
    } while (brackets && *p != ']');
    return (found != 0) != not;
}

// The end of what pattern p matches from s on, of characters before `end`; NULL: nothing. A set
// takes as many characters as it can, and gives them back one by one if the rest of the pattern
// does not match behind them: "W*B+" takes all white space up to the last line break in it.
static Char *match_pattern(const char *p, Char *s, Char *end)
{
    static const char *const endings[] = {"'[stmdSTMD]", "'[rvRV][eE]", "'[lL][lL]"};
    const char *behind = *p == '[' ? strchr(p, ']') + 1 : p + 1;
    Char *from = s, *match = NULL;
    if (!*p || *p == '$') return *p && s < end ? NULL : s;
    if (*p == 'E') { // the last of its pattern
        for (size_t i = 0; !match && i < COUNT(endings); i++)
            match = match_pattern(endings[i], s, end);
        return match || *behind != '?' ? match : s;
    }
    int times = *behind && strchr("?*+=123", *behind) ? *behind++ : '1';
    int least = times != '?' && times != '*';
    int most = isdigit(times) ? times - '0' : times == '*' || times == '+' ? INT_MAX : 1;
    while (s < end && s - from < most && in_set(p, s->c)) s++;
    if (times == '=') return s > from ? from : NULL;
    for (; !match && s - from >= least; s--) match = match_pattern(behind, s, end); // or fewer
    return match;
}

// Cuts the words of chars[n] by these patterns, and what comes of it by those behind the next NEXT.
// A word ends where the next one begins, and the end of a text counts as the beginning of one.
static void cut_words(const char *const *patterns, Char *chars, size_t n)
{
    const char *const *p = patterns;
    for (Char *word = chars, *end; word < chars + n; word = end) {
        for (end = word + 1; !end->begins;) end++;
        for (Char *at = word, *match; at < end; at = match ? match : at + 1) {
            for (p = patterns, match = NULL; !match && *p && **p; p++)
                match = match_pattern(*p, at, end);
            if (match) at->begins = match->begins = 1;
        }
    }
    while (*patterns && **patterns) patterns++;
    if (*patterns) cut_words(patterns + 1, chars, n);
}

// The characters of text[len] with one behind them, *n of them and the words cut, which the caller
// frees.
static Char *cut_text(const struct WordStyle *w, const char *text, size_t len, size_t *n)
{
    Char *chars = xrealloc(NULL, len + 1, sizeof *chars);
    *n = 0;
    for (size_t at = 0, step; at < len; at += step)
        chars[(*n)++] = (Char){read_char(text + at, len - at, &step), (int)at, !at};
    chars[*n] = (Char){0, (int)len, 1};
    cut_words(w->patterns, chars, *n);
    return chars;
}

// What run.c's encode_words is to do.
static void encode_by_style(Encoder *e, const char *text, size_t len)
{
    const struct WordStyle *w = e->t->words;
    size_t n;
    Char *chars = cut_text(w, text, len, &n);
    for (Char *word = chars, *end; word < chars + n; word = end) {
        for (end = word + 1; !end->begins;) end++;
        const char *s = text + word->at;
        size_t bytes = (size_t)(end->at - word->at);
        int id = w->whole_words ? find_piece(e->t, s, bytes, TOKEN_TEXT) : -1;
        if (id >= 0) e->ids[e->count++] = id;
        else encode_word(e, s, bytes);
    }
    free(chars);
}

// The style that has this name among its own. Where no text is read (NO_STATE) any will do for a
// name that is not known; of the others it is the style that says whether BOS comes first.
static const struct WordStyle *find_style(const char *path, const char *name)
{
    if (!char_classes['a']) read_unicode_runs();
    for (size_t i = 0; i < COUNT(word_styles); i++) {
        const struct WordStyle *w = &word_styles[i];
        for (const char *at = w->name; *name && (at = strstr(at, name)); at++)
            if ((at == w->name || at[-1] == ' ') && strchr(",", at[strlen(name)])) return w;
    }
    if (mode && mode->kind & NO_STATE) return word_styles;
    die(EXIT_DATA, path, "its cut of text into words (got %s, want one of %s)", name,
        LIST_NAMES(word_styles));
}

// The byte that GPT-2 writes as character c, or -1. Its lists of merges are lines of text with a
// space inside, in which a byte may be neither blank nor broken UTF-8: so bytes that are printable
// characters of Latin-1 stand for themselves, and the others are numbered from 256 on.
static int byte_of_letter(uint32_t c)
{
    if ((c > 32 && c < 127) || (c > 160 && c < 173) || (c > 173 && c < 256)) return (int)c;
    if (c < 256 || c > 323) return -1;
    return c <= 288 ? (int)c - 256 : c <= 322 ? (int)c - 289 + 127 : 173;
}

// A merge is two pieces with a space between, which is never the first byte of a piece: blanks are
// written as other characters. Its place in the list is its rank. Merges of pieces that are not
// there can never happen, and are left out.
static void read_merges(Tokenizer *t, const Vocab *v)
{
    Values list = v->merges;
    if (!list.at) die(EXIT_DATA, t->path, "no list tokenizer.ggml.merges");
    if (list.n > 1 << 24) die(EXIT_DATA, t->path, "too many merges (got %zu)", list.n);
    int (*pairs)[2] = xcalloc(list.n, sizeof *pairs);
    t->ranks = hash_init(list.n);
    for (size_t rank = 0, len; rank < v->merges.n; rank++) {
        const char *s = next_string(&list, &len), *space = len ? memchr(s + 1, ' ', len - 1) : NULL;
        char piece[512];
        int *pair = pairs[rank];
        if (!space || len > sizeof piece) die(EXIT_DATA, t->path, "merge %zu is no pair", rank);
        size_t left = (size_t)(space - s), right = len - left - 1;
        pair[0] = find_piece(t, piece, plain_text(s, left, 1, piece), TOKEN_ANY);
        pair[1] = find_piece(t, piece, plain_text(space + 1, right, 1, piece), TOKEN_ANY);
        if (pair[0] >= 0 && pair[1] >= 0) hash_add(&t->ranks, pair, sizeof *pairs, (int)rank);
    }
}

// What run.c's open_words is to do. Whether BOS comes first, where the file does not say: Llama's
// and Mistral's models want it, those after GPT-2 have none.
static void open_style(Tokenizer *t, const Vocab *v)
{
    t->words = find_style(t->path, v->pre);
    if (v->add_bos < 0) t->add_bos = t->words->whole_words;
    read_merges(t, v);
}

static int (*byte_of_char)(uint32_t c) = byte_of_letter;
static void (*open_words)(Tokenizer *t, const Vocab *v) = open_style;
static void (*encode_words)(Encoder *e, const char *text, size_t len) = encode_by_style;

// --- templates: an interpreter -------------------------------------------------------------------
//
//     {{ expression }}    writes what the expression comes to
//     {% if %} {% for %} {% set %}    have the meaning that their names say
//     {# comment #}       writes nothing, and all else is text that is written as it stands
//
// For example, ChatML, with which the models of several families were trained:
//
//     {% for m in messages %}<|im_start|>{{ m.role }}
//     {{ m.content }}<|im_end|>
//     {% endfor %}<|im_start|>assistant
//
// The interpreter knows the part of the language that templates use when there are no tools. It
// runs along the template's text without taking it apart first: a branch that is not taken is only
// searched for its end, so that what is unknown in it does no harm. Whatever goes wrong in an
// expression (an unknown function, a sum with something undefined, the template's own
// raise_exception) comes to a term of the kind "wrong", which carries the reason. It spreads to
// what is computed from it, and where it matters (it is to be written, or decides something) the
// template stops with that reason. A template that stops is refused.

// What an expression comes to: a value of a few words, which is passed and copied as a number is.
// Texts are pieces of the template, of messages or of kept memory and end where n says, not with a
// zero. A message is a list of two, its role and its content. The order of kinds counts: up to
// T_WRONG nothing is there, and from T_TEXT on n is a length.
typedef struct Term {
    enum { T_UNDEFINED, T_NONE, T_WRONG, T_BOOL, T_NUMBER, T_TEXT, T_LIST, T_MESSAGE } kind;
    long n; // the number; bytes of the text, items of the list
    union {
        const char *s; // of something wrong: the reason, ended by a zero byte
        const struct Term *items;
    };
} Term;

// A template at work. Everything that it allocates is kept to its end, so that terms can share what
// they point to and nobody owns it. A template may be anybody's work: it has so much depth and so
// much work, and is stopped when that is used up.
typedef struct {
    const char *text, *at; // all of it, and how far it is read
    struct {
        Term name, value;
    } vars[128];    // the last one of a name counts, so that a loop's variables hide outer ones
    int n_vars;
    int depth;      // of blocks and expressions inside one another, and
    int loops;      // of loops
    size_t work;    // bytes kept and read so far: a template must come to an end
    char *out;      // what it has written, and
    size_t n_out, room;
    struct Kept {
        struct Kept *next;
        Term terms[];
    } *kept;
    char error[200]; // the reason why it stopped; empty: it did not
} Template;

enum { MOST_DEPTH = 100, MOST_WORK = 1 << 29 };
static const long MOST_NUMBER = 1000000000000000000; // Python has no end; two of them fit in a long

static const char BLANKS[] = " \t\r\n\v\f";

// What Python's strip() takes for white space in a text, which is more than what tags have.
static const char WHITE[] = " \t\r\n\v\f\34\35\36\37\302\205\u00a0\u1680\u2000\u2001\u2002\u2003"
    "\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000";

static Term text_term(const char *s) { return (Term){T_TEXT, (long)strlen(s), {s}}; }
static Term number_term(long n) { return (Term){T_NUMBER, n, {NULL}}; }
static Term bool_term(int yes) { return (Term){T_BOOL, yes, {NULL}}; }
static Term wrong_term(const char *reason) { return (Term){T_WRONG, 0, {reason}}; }

// What the name of a namespace comes to: its variables are others, and it cannot be used alone.
static const char a_namespace[] = "a namespace by itself";
static int is_namespace(Term v) { return v.kind == T_WRONG && v.s == a_namespace; }

static int is_name_char(char c) { return isalnum((unsigned char)c) || c == '_'; }

// Whether both are texts, and spelled alike.
static int same_text(Term a, Term b)
{
    return a.kind == T_TEXT && b.kind == T_TEXT && a.n == b.n && !memcmp(a.s, b.s, (size_t)a.n);
}

static int is_word(Term v, const char *word) { return same_text(v, text_term(word)); }

// Stops the template, for the first reason that is given. The position becomes the end of an empty
// text, so that everything that is under way comes to its end by itself.
static void stop_template(Template *t, const char *reason)
{
    if (!*t->error)
        snprintf(t->error, sizeof t->error, *t->at ? "%s, before \"%.*s\"" : "%s", reason,
                 (int)min_size(strcspn(t->at, "\n"), 40), t->at);
    t->at = "";
}

// Counts so many bytes or items as work. Whatever takes time for each of them is to say so here.
static void spend(Template *t, size_t n)
{
    if ((t->work += n) > MOST_WORK) stop_template(t, "it does not come to an end");
}

// Memory that the template has until its end, from which free_template() frees it.
static void *keep(Template *t, size_t bytes)
{
    struct Kept *k = xrealloc(NULL, sizeof *k + bytes, 1);
    k->next = t->kept;
    t->kept = k;
    spend(t, bytes);
    return k->terms;
}

// A copy of the text that ends with a zero byte.
static char *keep_string(Template *t, Term v)
{
    char *s = memcpy(keep(t, (size_t)v.n + 1), v.s, (size_t)v.n);
    s[v.n] = 0;
    return s;
}

// Whether it counts as yes, as in Python: a number that is not 0, a text or list that is not empty.
// What is not there is a no, but something wrong must not decide anything.
static int is_true(Template *t, Term v)
{
    if (v.kind == T_WRONG) stop_template(t, v.s);
    return v.kind > T_WRONG && v.n;
}

// Adds to what the template has written, which ends with a zero for those who print it.
static void write_text(Template *t, const char *s, size_t n)
{
    if (t->n_out + n >= t->room) {
        t->room = 2 * (t->n_out + n) + 256;
        t->out = xrealloc(t->out, t->room, 1);
    }
    memcpy(t->out + t->n_out, s, n);
    t->out[t->n_out += n] = 0;
    spend(t, n);
}

// Writes what an expression came to. A variable that nobody set writes nothing, as in Jinja.
static void write_term(Template *t, Term v)
{
    char digits[32];
    if (v.kind == T_NUMBER) v = text_term((sprintf(digits, "%ld", v.n), digits));
    if (v.kind == T_TEXT) write_text(t, v.s, (size_t)v.n);
    else if (v.kind) stop_template(t, v.kind == T_WRONG ? v.s : "what it writes is no text");
}

// --- variables -----------------------------------------------------------------------------------

// Variables lie in one array, the latest last. A loop notes how many there are and goes back to
// that number after each round, which is all that scopes are here.

// The latest variable of that name, or NULL.
static Term *find_var(Template *t, Term name)
{
    for (int i = t->n_vars - 1; i >= 0; i--)
        if (same_text(t->vars[i].name, name)) return &t->vars[i].value;
    return NULL;
}

static void add_var(Template *t, Term name, Term value)
{
    const Term *var = find_var(t, name);
    if (var && is_namespace(*var)) stop_template(t, "a namespace's name for something else");
    if (t->n_vars == COUNT(t->vars)) stop_template(t, "it has too many variables");
    else t->vars[t->n_vars].name = name, t->vars[t->n_vars++].value = value;
}

// --- words ---------------------------------------------------------------------------------------
//
// There is no list of words made beforehand: readers look at the text where the template stands,
// and step over what they know. White space before a word is stepped over with it.

// Steps over this word or sign, if it comes next. The end of a tag, which may begin with a minus,
// is no operator.
static int accept(Template *t, const char *word)
{
    const char *p = t->at + strspn(t->at, BLANKS), *end = p + (*p == '-' || *p == '+');
    size_t n = strlen(word);
    spend(t, 16 + (size_t)(p - t->at));
    if (strncmp(p, word, n) || (is_name_char(*word) && is_name_char(p[n]))) return 0;
    if ((*end == '%' || *end == '}') && end[1] == '}') return 0;
    t->at = p + n;
    return 1;
}

// A name. loop.first and a namespace's variables are variables with a dot in their name.
static Term read_name(Template *t)
{
    Term name = {T_TEXT, 0, {t->at += strspn(t->at, BLANKS)}};
    while (is_name_char(name.s[name.n])) name.n++;
    Term longer = {T_TEXT, name.n + (name.s[name.n] == '.'), {name.s}};
    while (is_name_char(name.s[longer.n])) longer.n++;
    if (longer.n > name.n && find_var(t, longer)) name = longer;
    if (!name.n || isdigit((unsigned char)*name.s)) stop_template(t, "a name is missing");
    else t->at += name.n;
    return name;
}

// A text in quotes of either kind, in which a backslash may begin a code for a character.
static Term read_string(Template *t)
{
    static const char codes[] = "ntr\\'\"", chars[] = "\n\t\r\\'\"";
    char quote = *t->at++, *s;
    const char *from = t->at;
    while (*t->at && *t->at != quote) t->at += *t->at == '\\' && t->at[1] ? 2 : 1;
    const char *end = t->at; // what stops the template changes t->at
    Term v = {T_TEXT, 0, {s = keep(t, (size_t)(end - from) + 1)}};
    for (; from < end && !*t->error; from++) {
        const char *code = *from == '\\' ? strchr(codes, from[1]) : NULL;
        if (*from == '\\' && !code && strchr("abfvxuUN01234567\n", from[1]))
            stop_template(t, "a code for a character that is not known here");
        s[v.n++] = code ? chars[code - codes] : *from;
        from += code != NULL;
    }
    t->at += *t->at == quote;
    return v;
}

// --- functions -----------------------------------------------------------------------------------
//
// They compute terms from terms and know nothing of the template's text. What is wrong in one of
// the arguments is the result, too, so that the reason that is told is the first one.

// Python's + and Jinja's ~: the sum of numbers, or texts one behind the other.
static Term join_terms(Template *t, Term a, Term b)
{
    if (a.kind == T_WRONG || b.kind == T_WRONG) return a.kind == T_WRONG ? a : b;
    if (a.kind == T_NUMBER && b.kind == T_NUMBER)
        return labs(a.n + b.n) < MOST_NUMBER ? number_term(a.n + b.n)
                                             : wrong_term("a number too large");
    if (a.kind != T_TEXT || b.kind != T_TEXT) return wrong_term("a sum of what is no text");
    char *s = keep(t, (size_t)(a.n + b.n) + 1);
    memcpy(s, a.s, (size_t)a.n);
    memcpy(s + a.n, b.s, (size_t)b.n);
    return (Term){T_TEXT, a.n + b.n, {s}};
}

// Where the part begins in text v, or NULL.
static const char *find_text(Term v, Term part)
{
    return memmem(v.s, (size_t)v.n, part.s, (size_t)part.n);
}

// Python's ==: texts are the same if they are spelled alike, lists and messages if their items are.
// A list may hold another one many times over, and be deep: that is work, and depth.
static int same_term(Template *t, Term a, Term b)
{
    int truth = a.kind + b.kind == T_BOOL + T_NUMBER && a.kind != b.kind; // 1 == true, as in Python
    int same = (a.kind == b.kind || truth) && a.n == b.n;
    if (!same || a.kind < T_TEXT) return same;
    spend(t, (size_t)a.n + 1);
    if (a.kind == T_TEXT) return same_text(a, b);
    if (++t->depth > 4 * MOST_DEPTH) stop_template(t, "lists too deep");
    for (long i = 0; same && i < a.n && !*t->error; i++)
        same = same_term(t, a.items[i], b.items[i]);
    t->depth--;
    return same;
}

// Python's `in`: a part of a text, an item of a list, a field of a message. In nothing there is
// nothing.
static Term is_inside(Template *t, Term part, Term v)
{
    if (v.kind == T_WRONG || part.kind == T_WRONG) return part.kind == T_WRONG ? part : v;
    if (v.kind == T_MESSAGE) return bool_term(is_word(part, "role") || is_word(part, "content"));
    if (v.kind >= T_TEXT) spend(t, (size_t)v.n);
    if (v.kind == T_TEXT && part.kind == T_TEXT) return bool_term(find_text(v, part) != NULL);
    if (v.kind && v.kind != T_LIST) return wrong_term("nothing can be in it");
    for (long i = 0; i < v.n && !*t->error; i++)
        if (same_term(t, v.items[i], part)) return bool_term(1);
    return bool_term(0);
}

// v without the characters of a set at these ends. They are whole ones: two may share a byte.
static Term strip_text(Template *t, Term v, Term set, int left, int right)
{
    for (size_t n; left && v.n; v.s += n, v.n -= (long)n) {
        read_char(v.s, (size_t)v.n, &n);
        spend(t, (size_t)set.n);
        if (*t->error || !find_text(set, (Term){T_TEXT, (long)n, {v.s}})) break;
    }
    for (long n; right && v.n; v.n -= n) {
        for (n = 1; n < v.n && n < 4 && ((uint8_t)v.s[v.n - n] & 0xc0) == 0x80;) n++;
        spend(t, (size_t)set.n);
        if (*t->error || !find_text(set, (Term){T_TEXT, n, {v.s + v.n - n}})) break;
    }
    return v;
}

// The list of what stands between separators: counted first, and cut then. The parts are not copied
// but point into v.
static Term split_text(Template *t, Term v, Term separator)
{
    long n = 1;
    Term rest = v;
    if (!separator.n) return wrong_term("an empty separator");
    for (const char *cut; (cut = find_text(rest, separator)); n++)
        rest = (Term){T_TEXT, rest.s + rest.n - cut - separator.n, {cut + separator.n}};
    Term *parts = keep(t, (size_t)n * sizeof *parts);
    for (long i = 0; i < n; i++) {
        const char *end = i < n - 1 ? find_text(v, separator) : v.s + v.n;
        parts[i] = (Term){T_TEXT, end - v.s, {v.s}};
        v.n -= end - v.s + separator.n;
        v.s = end + separator.n;
    }
    return (Term){T_LIST, n, {.items = parts}};
}

// Cut at the old text, and joined with the new one.
static Term replace_text(Template *t, Term v, Term old, Term new)
{
    Term parts = split_text(t, v, old);
    if (parts.kind != T_LIST) return parts;
    size_t n = (size_t)v.n + (size_t)(parts.n - 1) * (size_t)new.n;
    if (n > MOST_WORK) return wrong_term("it does not come to an end");
    char *s = keep(t, n + 1), *end = s;
    for (long i = 0; i < parts.n; i++) {
        const Term *part = &parts.items[i];
        if (i) memcpy(end, new.s, (size_t)new.n), end += new.n;
        memcpy(end, part->s, (size_t)part->n), end += part->n;
    }
    return (Term){T_TEXT, end - s, {s}};
}

// Letters in another case: 'u'pper, 'l'ower, or words with a 't'itle's capitals (of ASCII only).
static Term change_case(Template *t, Term v, char how)
{
    char *s = keep_string(t, v);
    for (long i = 0; i < v.n; i++) {
        // Python and Jinja differ in where a word begins behind anything but these.
        if (how == 't' && !isalpha((unsigned char)s[i]) && !strchr(" \t\r\n\v\f-", s[i]))
            return wrong_term("a title with more than letters");
        int inside = i && isalpha((unsigned char)v.s[i - 1]);
        int up = how == 'u' || (how == 't' && !inside);
        s[i] = (char)(up ? toupper((unsigned char)s[i]) : tolower((unsigned char)s[i]));
    }
    return (Term){T_TEXT, v.n, {s}};
}

static time_t (*clock_of_templates)(time_t *) = time; // a test sets another

// Today, as strftime writes it: some templates tell the model what day it is.
static Term format_date(Template *t, Term format)
{
    time_t now = clock_of_templates(NULL);
    char *s = keep(t, 256);
    size_t n = strftime(s, 256, keep_string(t, format), localtime(&now));
    return (Term){T_TEXT, (long)n, {s}};
}

// A text's own functions; the argument is missing (n_args 0) or a text. Python's methods and
// Jinja's filters of one name do the same here: m.content.strip() and m.content | trim.
static Term call_on_text(Template *t, Term v, Term name, const Term *arg, int n_args)
{
    Term set = n_args ? arg[0] : text_term(WHITE);
    Term head = {T_TEXT, set.n, {v.s}}, tail = {T_TEXT, set.n, {v.s + v.n - set.n}};
    if (is_word(name, "trim") || is_word(name, "strip")) return strip_text(t, v, set, 1, 1);
    if (is_word(name, "lstrip")) return strip_text(t, v, set, 1, 0);
    if (is_word(name, "rstrip")) return strip_text(t, v, set, 0, 1);
    if (is_word(name, "upper") || is_word(name, "lower") || is_word(name, "title"))
        return change_case(t, v, *name.s);
    if (!n_args) return wrong_term("an unknown function");
    if (is_word(name, "split") && n_args == 1) return split_text(t, v, set);
    if (is_word(name, "replace") && n_args == 2 && arg[1].kind == T_TEXT)
        return replace_text(t, v, set, arg[1]);
    if (is_word(name, "startswith")) return bool_term(v.n >= set.n && same_text(head, set));
    if (is_word(name, "endswith")) return bool_term(v.n >= set.n && same_text(tail, set));
    return wrong_term("an unknown function");
}

// A method or filter of v, or a function (v is undefined then). raise_exception is how templates
// refuse what their models were not trained for, say two turns of the user one behind the other:
// its argument becomes the reason.
static Term call(Template *t, Term v, Term name, const Term *arg, int n_args)
{
    if (v.kind == T_WRONG) return v;
    for (int i = 0; i < n_args; i++)
        if (arg[i].kind == T_WRONG) return arg[i];
    int text = n_args && arg[0].kind == T_TEXT;
    spend(t, (v.kind >= T_TEXT ? (size_t)v.n : 0) + (text ? (size_t)arg[0].n : 0));
    if (is_word(name, "raise_exception") && text) return wrong_term(keep_string(t, arg[0]));
    if (is_word(name, "strftime_now") && text) return format_date(t, arg[0]);
    if (is_word(name, "default") && n_args) {
        int any = n_args > 1 && is_true(t, arg[1]); // what is empty counts as missing, too
        return (any ? is_true(t, v) : v.kind != T_UNDEFINED) ? v : arg[0];
    }
    if (is_word(name, "string") && v.kind == T_TEXT) return v;
    if (is_word(name, "list") && v.kind == T_LIST) return v;
    if (is_word(name, "length") && v.kind >= T_TEXT) {
        long n = v.n;
        for (long i = 0; v.kind == T_TEXT && i < v.n; i++) n -= ((uint8_t)v.s[i] & 0xc0) == 0x80;
        return number_term(n); // characters, not bytes
    }
    if (v.kind == T_TEXT && (!n_args || text)) return call_on_text(t, v, name, arg, n_args);
    return wrong_term("an unknown function");
}

// --- expressions ---------------------------------------------------------------------------------
//
// A function for each kind of expression reads its text and returns what it comes to, at once:
// there is no tree of the expression in between. read_expression() is the outermost, read_binary()
// reads operators by how strongly they bind, read_operand() what stands between them. Both sides of
// "and" and "or" are read and so computed, which does no harm where nothing has side effects: what
// is wrong on the side that does not count is dropped.

static Term read_expression(Template *t);

// Terms with commas between, up to the closing bracket; returns how many. Of names in front of
// arguments one is known, that of default's second; the others are refused, since which argument
// they name is not known.
static int read_items(Template *t, const char *close, Term *items, int most)
{
    int n = 0;
    while (!accept(t, close) && *t->at) {
        if (n == most || (n && !accept(t, ","))) stop_template(t, "a list goes wrong");
        else if (!accept(t, close)) {
            const char *from = t->at += strspn(t->at, BLANKS);
            while (is_name_char(*t->at)) t->at++;
            Term name = {T_TEXT, t->at - from, {from}};
            int named = name.n && accept(t, "=") && *t->at != '=';
            if (!named) t->at = from;
            items[n] = read_expression(t);
            if (named && !(n == 1 && is_word(name, "boolean")))
                items[n] = wrong_term("an argument by name");
            n++;
        } else break;
    }
    return n;
}

// The arguments of a call, if there are any, and its result. Filters may come without brackets.
static Term read_call(Template *t, Term v, Term name)
{
    Term args[4];
    int n = accept(t, "(") ? read_items(t, ")", args, COUNT(args)) : 0;
    return call(t, v, name, args, n);
}

// m.role or m['role']. Other names are those of tool calls and thoughts, which our messages do not
// have: they are undefined, and templates ask for that.
static Term find_attribute(Term v, Term name)
{
    if (v.kind == T_WRONG) return v;
    if (!v.kind) return wrong_term("a part of something undefined");
    if (v.kind != T_MESSAGE) return (Term){0};
    return is_word(name, "role") ? v.items[0] : is_word(name, "content") ? v.items[1] : (Term){0};
}

// Behind a bracket: [name], [i], or [from:to:step] of which the step is 1 or -1. As in Python a
// negative place counts from the end, [1:] is all but the first, and [::-1] is the list backwards,
// in which templates look for the last user's message.
static Term read_index(Template *t, Term v)
{
    Term part[3] = {{0}};
    int colons = 0, given = 0;
    while (!accept(t, "]") && *t->at) {
        if (!accept(t, ":")) part[colons] = read_expression(t), given |= 1 << colons;
        else if (++colons > 2) stop_template(t, "a third colon"), colons = 2;
    }
    for (int i = 0; i < 3; i++) {
        if (part[i].kind == T_WRONG) return part[i];
        if (part[i].kind > T_NUMBER && (colons || part[i].kind != T_TEXT))
            return wrong_term("a place that is no number");
        if (colons && given >> i & 1 && !part[i].kind) return wrong_term("an undefined place");
        if (part[i].kind == T_NONE) part[i].kind = T_UNDEFINED; // a part that is missing
    }
    if (!colons && part[0].kind == T_TEXT) return find_attribute(v, part[0]);
    if (v.kind == T_WRONG) return v;
    if (v.kind != T_LIST) return wrong_term("an item of what is no list");
    // A part that is missing is a number 0, so that [:n] begins at the beginning.
    long at = part[0].n < 0 ? part[0].n + v.n : part[0].n, back = part[2].kind && part[2].n == -1;
    long end = !part[1].kind ? v.n : part[1].n < 0 ? part[1].n + v.n : part[1].n;
    if (!colons) return part[0].kind && at >= 0 && at < v.n ? v.items[at] : (Term){0};
    if (part[2].kind && (part[2].n != -1 || part[0].kind || part[1].kind))
        return wrong_term("a slice with a step");
    if (end > v.n) end = v.n;
    if (at < 0) at = 0;
    if (at > end) at = end;
    Term *items = keep(t, (size_t)v.n * sizeof *items);
    for (long i = at; i < end; i++) items[back ? end - 1 - i : i - at] = v.items[i];
    return (Term){T_LIST, end - at, {.items = items}};
}

// Behind "is": whether the term is of one of these kinds, as Jinja sees them.
static Term read_test(Template *t, Term v)
{
#define KIND(k) (1 << T_##k)
    static const struct {
        const char *name;
        int kinds;
    } tests[] = {
        {"defined", ~KIND(UNDEFINED)}, {"undefined", KIND(UNDEFINED)}, {"none", KIND(NONE)},
        {"true", KIND(BOOL)}, {"false", KIND(BOOL)}, {"boolean", KIND(BOOL)},
        {"number", KIND(NUMBER) | KIND(BOOL)}, {"string", KIND(TEXT)}, {"mapping", KIND(MESSAGE)},
        {"iterable", KIND(UNDEFINED) | KIND(TEXT) | KIND(LIST) | KIND(MESSAGE)},
        {"sequence", KIND(UNDEFINED) | KIND(TEXT) | KIND(LIST) | KIND(MESSAGE)},
    };
#undef KIND
    int no = accept(t, "not");
    Term name = read_name(t);
    if (v.kind == T_WRONG) return v;
    for (size_t k = 0; k < COUNT(tests); k++) {
        if (!is_word(name, tests[k].name)) continue;
        int yes = tests[k].kinds >> v.kind & 1;
        if (is_word(name, "true")) yes = yes && v.n;
        if (is_word(name, "false")) yes = yes && !v.n;
        return bool_term(yes != no);
    }
    return wrong_term("an unknown test");
}

// Behind ( or [. One term in round brackets without a comma is no list.
static Term read_list(Template *t, const char *close)
{
    Term items[32], *kept;
    int n = read_items(t, close, items, COUNT(items));
    if (*t->error) return (Term){0};
    if (n == 1 && *close == ')' && t->at[-2] != ',') return items[0];
    kept = memcpy(keep(t, sizeof items), items, (size_t)n * sizeof *items);
    return (Term){T_LIST, n, {.items = kept}};
}

static Term read_digits(Template *t)
{
    long n = strtol(t->at, (char **)&t->at, 10);
    return n < MOST_NUMBER ? number_term(n) : wrong_term("a number too large");
}

// A text, a number, a list, a variable or a call, and all that is hung on behind it: .name,
// [index], | filter, is test.
static Term read_operand(Template *t)
{
    Term v;
    t->at += strspn(t->at, BLANKS);
    if (*t->at == '\'' || *t->at == '"') v = read_string(t);
    else if (isdigit((unsigned char)*t->at)) v = read_digits(t);
    else if (accept(t, "(")) v = read_list(t, ")");
    else if (accept(t, "[")) v = read_list(t, "]");
    else {
        Term name = read_name(t), *var = find_var(t, name);
        v = *t->at == '(' ? read_call(t, (Term){0}, name) : var ? *var : (Term){0};
    }
    for (;;)
        if (accept(t, "[")) v = read_index(t, v);
        else if (accept(t, "|")) v = read_call(t, v, read_name(t));
        else if (accept(t, "is")) v = read_test(t, v);
        else if (accept(t, ".")) {
            Term name = read_name(t);
            if (*t->at == '(') v = read_call(t, v, name);
            else if (is_namespace(v)) v = (Term){0}; // no variable of it
            else v = find_attribute(v, name);
        } else return v;
}

// The operators, those that bind least first, in each group the longer of two that begin alike.
static const struct {
    char sign[4];
    int level;
} operators[] = {{"or", 1}, {"and", 2}, {"==", 4}, {"!=", 4}, {"<=", 4}, {">=", 4}, {"<", 4},
                 {">", 4}, {"in", 4}, {"not", 4}, {"+", 5}, {"-", 5}, {"~", 6}, {"%", 7}};
enum { LEVEL_NOT = 3, LEVEL_COMPARISON = 4 };

// a and b joined by the operator, of which the first letter tells which it is. As in Python "or"
// and "and" give one of their sides, not just yes or no: m.name or 'user'.
static Term apply_operator(Template *t, const char *sign, Term a, Term b)
{
    if (a.kind == T_WRONG) return a;
    if (*sign == 'o' || *sign == 'a') return is_true(t, a) == (*sign == 'o') ? a : b;
    if (b.kind == T_WRONG) return b;
    switch (*sign) {
    case '~':
        if (a.kind == T_NUMBER && b.kind == T_NUMBER) return wrong_term("numbers joined as texts");
        return join_terms(t, a, b);
    case '+': return join_terms(t, a, b);
    case '=': return bool_term(same_term(t, a, b));
    case '!': return bool_term(!same_term(t, a, b));
    case 'i': return is_inside(t, a, b);
    case 'n': a = is_inside(t, a, b); return a.kind == T_WRONG ? a : bool_term(!a.n);
    }
    if (a.kind != T_NUMBER || b.kind != T_NUMBER) return wrong_term("arithmetic without numbers");
    int equal = sign[1] == '=' && a.n == b.n;
    switch (*sign) {
    case '-': return join_terms(t, a, number_term(-b.n));
    case '<': return bool_term(a.n < b.n || equal);
    case '>': return bool_term(a.n > b.n || equal);
    }
    return b.n > 0 && a.n >= 0 ? number_term(a.n % b.n) : wrong_term("a remainder of that");
}

// Operands and the operators of this level or a higher one between them. Whatever stands to the
// right of an operator is read one level higher, so that a - b - c is (a - b) - c, and after each
// operator the search begins anew with the weakest.
static Term read_binary(Template *t, int level)
{
    Term a;
    int compared = 0;
    if (++t->depth > 4 * MOST_DEPTH) stop_template(t, "too many signs");
    if (level <= LEVEL_NOT && accept(t, "not")) {
        a = read_binary(t, LEVEL_NOT);
        if (a.kind != T_WRONG) a = bool_term(!is_true(t, a));
    } else if (accept(t, "-")) {
        a = read_binary(t, 8);
        a = a.kind == T_NUMBER ? number_term(-a.n) : wrong_term("a minus without a number");
    } else a = read_operand(t);
    // A sign is only accepted here if its level is high enough; a lower one is left to the caller.
    for (size_t k = 0; k < COUNT(operators);) {
        const char *sign = operators[k].sign;
        if (operators[k].level < level || !accept(t, sign)) k++;
        else {
            if (*sign == 'n' && !accept(t, "in")) stop_template(t, "a not without its in");
            if (operators[k].level == LEVEL_COMPARISON && compared++)
                stop_template(t, "two comparisons in one");
            a = apply_operator(t, sign, a, read_binary(t, operators[k].level + 1));
            k = 0;
        }
    }
    t->depth--;
    return a;
}

// With Python's choice: A if C else B. Without an else the other is undefined, and writes nothing.
static Term read_expression(Template *t)
{
    if (++t->depth > MOST_DEPTH) stop_template(t, "brackets too deep");
    Term v = read_binary(t, 1);
    if (accept(t, "if")) {
        Term condition = read_binary(t, 1), other = {0};
        if (accept(t, "else")) other = read_expression(t);
        if (condition.kind == T_WRONG) v = condition;
        else if (!is_true(t, condition)) v = other;
    }
    t->depth--;
    return v;
}

// --- tags ----------------------------------------------------------------------------------------
//
// run_block() goes along text and tags up to a tag that ends a block, and hands that tag's word to
// who began the block. A block is live, or it is skipped: then tags are still matched with their
// ends, but nothing is computed or written. White space around tags is half of what makes a
// template right; its rules are in close_tag() and end_of_text().

// Every tag ends here, whether its text was computed or skipped: what stands before the end now is
// what no reader knew. Steps over the end of a tag and the white space that goes with it: all of it
// behind a minus, the newline behind a {% %} or {# #}, as for the models' authors (trim_blocks),
// none behind a plus.
static void close_tag(Template *t)
{
    t->at += strspn(t->at, BLANKS);
    int strip = *t->at == '-', stay = *t->at == '+';
    t->at += strip || stay;
    char kind = *t->at;
    if (!kind || !strchr("%}#", kind) || t->at[1] != '}') {
        stop_template(t, "something unknown in a tag");
        return;
    }
    t->at += 2;
    if (strip) t->at += strspn(t->at, BLANKS);
    else if (kind != '}' && !stay && *t->at == '\n') t->at++;
}

// Goes to the end of a tag that ends with this character and a brace, but not to one inside a text
// in quotes. A sign in front of the end is left for close_tag().
static void skip_tag(Template *t, char kind)
{
    for (char c; (c = *t->at) && !(c == kind && t->at[1] == '}'); t->at++)
        if (c == '\'' || c == '"') {
            for (t->at++; *t->at && *t->at != c; t->at++) t->at += *t->at == '\\' && t->at[1];
            if (!*t->at) break;
        }
    if (*t->at && (t->at[-1] == '-' || t->at[-1] == '+')) t->at--;
}

// Where the text in front of a tag ends: a minus takes all white space away, and a block that is
// the first in its line the blanks before it (lstrip_blocks). The last newline of all is no text.
static const char *end_of_text(const Template *t, const char *from, const char *tag)
{
    const char *end = tag;
    if (!*tag) return end > from && end[-1] == '\n' ? end - 1 : end;
    if (tag[2] == '-') {
        while (end > from && strchr(BLANKS, end[-1])) end--;
        return end;
    }
    if (tag[1] == '{' || tag[2] == '+') return end;
    while (end > from && (end[-1] == ' ' || end[-1] == '\t')) end--;
    return end == t->text || end[-1] == '\n' ? end : tag;
}

// Writes the text up to the next tag, if it is live, and steps behind the tag's beginning. Returns
// its second character, { or %, or 0 at the end.
static char next_tag(Template *t, int live)
{
    for (const char *from, *tag; *(from = t->at);) {
        for (tag = from; *tag && !(*tag == '{' && tag[1] && strchr("{%#", tag[1]));) tag++;
        if (live) write_text(t, from, (size_t)(end_of_text(t, from, tag) - from));
        if (*t->error) break;
        spend(t, (size_t)(tag - from) + 1);
        t->at = tag;
        if (!*tag) break;
        t->at += 2 + (tag[2] == '-' || tag[2] == '+');
        if (tag[1] != '#') return tag[1];
        const char *close = strstr(t->at, "#}");
        if (close) t->at = close - (close > t->at && (close[-1] == '-' || close[-1] == '+'));
        else stop_template(t, "a comment without its end");
        close_tag(t);
    }
    return 0;
}

static Term run_block(Template *t, int live);

// From behind the word if to behind its endif: each branch is a block, of which at most one is
// live.
static void run_if(Template *t, int live)
{
    int done = !live; // one branch was taken, or none may be
    Term word = text_term("if");
    while (!is_word(word, "endif") && !*t->error) {
        int take = 0;
        if (done) skip_tag(t, '%');
        else take = is_word(word, "else") || is_true(t, read_expression(t));
        done |= take;
        close_tag(t);
        word = run_block(t, take);
        if (!is_word(word, "endif") && strncmp(word.s, "el", 2))
            stop_template(t, "an if without its end");
    }
    close_tag(t);
}

// One time round a loop, live if there is an item. The loop's own variables are set for the round,
// so that those of a loop inside hide them and are gone with it.
static void run_body(Template *t, Term name, Term list, long i)
{
    add_var(t, text_term("loop.index0"), number_term(i));
    add_var(t, text_term("loop.index"), number_term(i + 1));
    add_var(t, text_term("loop.first"), bool_term(i == 0));
    add_var(t, text_term("loop.last"), bool_term(i == list.n - 1));
    if (i < list.n) add_var(t, name, list.items[i]);
    Term word = run_block(t, i < list.n);
    if (!is_word(word, "endfor")) stop_template(t, "a for without its end, or unknown words in it");
}

// Goes back to the body for each item of the list. A list without items, or one that is not live,
// has its body skipped once, to get to its end.
static void run_for(Template *t, int live)
{
    Term name = {0}, list = {0};
    if (live) {
        name = read_name(t);
        if (!accept(t, "in")) stop_template(t, "a for without its in");
        list = read_binary(t, 1);
        if (list.kind && list.kind != T_LIST)
            stop_template(t, list.kind == T_WRONG ? list.s : "a for without a list");
    } else skip_tag(t, '%');
    close_tag(t);
    const char *body = t->at; // where every round begins
    int outside = t->n_vars;
    if (list.kind != T_LIST) list.n = 0;
    for (long i = 0; (i < list.n || !i) && !*t->error; i++) {
        t->at = body;
        t->loops++;
        run_body(t, name, list, i);
        t->loops--;
        if (!*t->error) spend(t, (size_t)(t->at - body)); // also what was only stepped over
        t->n_vars = outside; // what was set inside ends with it; only a namespace's variables stay
    }
    close_tag(t);
}

// Behind set: name = expression, or name = namespace(name = expression, ...). What is set inside a
// loop is forgotten at the end of the round; a namespace is how a template remembers something from
// one round to the next.
static void run_set(Template *t)
{
    Term name = read_name(t), dot = join_terms(t, name, text_term("."));
    if (*t->at == '.') {
        if (t->loops) stop_template(t, "a new variable of a namespace in a loop");
        else t->at++;
        name.n += 1 + read_name(t).n;
    }
    if (!accept(t, "=")) stop_template(t, "a set without its =");
    if (accept(t, "namespace")) {
        accept(t, "(");
        add_var(t, name, wrong_term(a_namespace));
        while (!accept(t, ")") && *t->at) {
            Term field = join_terms(t, dot, read_name(t));
            if (!accept(t, "=")) stop_template(t, "a namespace without its =");
            add_var(t, field, read_expression(t));
            accept(t, ",");
        }
        return;
    }
    Term value = read_expression(t), *var = find_var(t, name);
    if (is_namespace(value)) stop_template(t, a_namespace);
    if (var && memchr(name.s, '.', (size_t)name.n)) *var = value;
    else add_var(t, name, value);
}

// A tag that begins with this word, behind which it stands. Macros are for tools, as far as has
// been seen: their definitions are skipped.
static void run_tag(Template *t, Term word, int live)
{
    if (is_word(word, "if")) run_if(t, live);
    else if (is_word(word, "for")) run_for(t, live);
    else if (is_word(word, "generation") || is_word(word, "endgeneration")) close_tag(t);
    else if (is_word(word, "macro")) { // calls of it will be wrong
        skip_tag(t, '%');
        close_tag(t);
        run_block(t, 0);
        close_tag(t);
    } else {
        if (!live) skip_tag(t, '%');
        else if (is_word(word, "set")) run_set(t);
        else stop_template(t, "an unknown word at the beginning of a tag");
        close_tag(t);
    }
}

// Executes, or skips, up to the tag that ends the block or begins its next branch; returns the word
// it begins with, nothing at the end of the template.
static Term run_block(Template *t, int live)
{
    Term word = text_term("");
    if (++t->depth > MOST_DEPTH) stop_template(t, "blocks too deep");
    for (char tag; (tag = next_tag(t, live)); word = text_term("")) {
        if (tag == '%') {
            static const char *const ends[] = {"endif", "elif", "else", "endfor", "endmacro"};
            word = read_name(t);
            size_t k = 0;
            while (k < COUNT(ends) && !is_word(word, ends[k])) k++;
            if (k < COUNT(ends)) break;
            run_tag(t, word, live);
        } else {
            if (live) write_term(t, read_expression(t));
            else skip_tag(t, '}');
            close_tag(t);
        }
    }
    t->depth--;
    return word;
}

// Frees what it has kept and written.
static void free_template(Template *t)
{
    for (struct Kept *k = t->kept, *next; k; k = next) next = k->next, free(k);
    free(t->out);
    *t = (Template){0};
}

// Writes messages[n] as the template says, to t->out. t->error says why that did not work, if it
// is not empty. think: what the template is told about it; -1: nothing. free_template ends it.
static void run_template(Template *t, const char *text, const Term *messages, long n, Term bos,
                         Term eos, int think)
{
    static const char *const yes[] = {"true", "True", "add_generation_prompt", "strftime_now"};
    static const char *const no[] = {"false", "False"};
    static const char *const none[] = {"none", "None", "tools", "documents"};
    *t = (Template){.text = text, .at = text};
    for (size_t i = 0; i < COUNT(yes); i++) add_var(t, text_term(yes[i]), bool_term(1));
    for (size_t i = 0; i < COUNT(no); i++) add_var(t, text_term(no[i]), bool_term(0));
    for (size_t i = 0; i < COUNT(none); i++) add_var(t, text_term(none[i]), (Term){.kind = T_NONE});
    if (think >= 0) add_var(t, text_term("enable_thinking"), bool_term(think));
    add_var(t, text_term("messages"), (Term){T_LIST, n, {.items = messages}});
    add_var(t, text_term("bos_token"), bos);
    add_var(t, text_term("eos_token"), eos);
    write_text(t, "", 0);
    if (run_block(t, 1).n) stop_template(t, "an end without its beginning");
}

// --- formats -------------------------------------------------------------------------------------

// Formats by name, for models that bring none; mark: a token that only such a model has. They are
// templates like others.
typedef struct {
    const char *name, *mark, *template;
} ChatFormat;

#define EACH(text) "{% for m in messages %}" text "{% endfor %}"
// Here the system's text becomes a part of the first user's.
#define EACH_TURN(system, user, reply) \
    "{% set ns = namespace(system='') %}" \
    EACH("{% if m.role == 'system' %}{% set ns.system = " system " %}" \
         "{% elif m.role == 'user' %}{{ " user " }}{% set ns.system = '' %}" \
         "{% else %}{{ " reply " }}{% endif %}")
static const ChatFormat chat_formats[] = {
    {"chatml", "<|im_start|>", EACH("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n")
     "{{ '<|im_start|>assistant\n' }}"},
    {"llama3", "<|start_header_id|>", "{{ bos_token }}"
     EACH("<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>")
     "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"},
    {"gemma", "<start_of_turn>", "{{ bos_token }}"
     EACH_TURN("m.content + '\n\n'",
               "'<start_of_turn>user\n' + ns.system + m.content | trim + '<end_of_turn>\n'",
               "'<start_of_turn>model\n' + m.content | trim + '<end_of_turn>\n'")
     "{{ '<start_of_turn>model\n' }}"},
    {"llama2", NULL, EACH_TURN("'<<SYS>>\n' + m.content + '\n<</SYS>>\n\n'",
                               "bos_token + '[INST] ' + ns.system + m.content | trim + ' [/INST]'",
                               "' ' + m.content | trim + ' ' + eos_token")},
    {"mistral", NULL, "{{ bos_token }}"
     EACH_TURN("m.content + '\n\n'", "'[INST] ' + ns.system + m.content + ' [/INST]'",
               "m.content + eos_token")},
    {"phi3", NULL, EACH("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n") "{{ '<|assistant|>\n' }}"},
    {"zephyr", NULL, EACH("<|{{ m.role }}|>\n{{ m.content + eos_token }}\n")
     "{{ '<|assistant|>\n' }}"},
};

// A text that is written as a file is, and is there, ended by a zero byte, when that is closed.
static FILE *open_text(char **text, size_t *len)
{
    FILE *out = open_memstream(text, len);
    if (!out) die(EXIT_DATA, "memory", "cannot begin a text (%s)", strerror(errno));
    return out;
}

static void close_text(FILE *out)
{
    if (fclose(out)) die(EXIT_DATA, "memory", "cannot write a text (%s)", strerror(errno));
}

// The template for 'SYSTEM|USER|REPLY|END': what stands before a system's text, before a user's,
// before a reply and behind it. {} in the first two is the text's place, if it is not their end; a
// bar in <|token|> or [|token|] is no separator. NULL: these are not four parts.
static const char *compose_template(const char *parts)
{
    static const char *const ends[][2] = {
        {"{% for m in messages %}{% if m.role == 'system' %}{{ '", "' + m.content }}"},
        {"{% elif m.role == 'user' %}{{ '", "' + m.content }}"},
        {"{{ '", "' }}"},
        {"{% else %}{{ m.content + '", "' }}{% endif %}{% endfor %}"}};
    char *text;
    size_t len, part = 0, placed = 0; // placed: {} has said where the text goes
    FILE *out = open_text(&text, &len);
    fputs(ends[0][0], out);
    for (const char *p = parts; *p && part < COUNT(ends); p++) {
        int token = (p > parts && strchr("<[", p[-1])) || (p[1] && strchr(">]", p[1]));
        if (*p == '|' && !token) {
            fputs(placed ? "' }}" : ends[part][1], out);
            if (++part < COUNT(ends)) fputs(ends[part][0], out);
            placed = 0;
        } else if (part < 2 && !strncmp(p, "{}", 2)) {
            fputs("' + m.content + '", out);
            placed = 1;
            p++;
        } else fprintf(out, *p == '\'' ? "\\%c" : "%c", *p);
    }
    fputs(ends[3][1], out);
    close_text(out);
    return part == 3 ? text : NULL;
}

// --- the template to be used ---------------------------------------------------------------------
//
// Before the first turn a template is tried on a small conversation. That shows whether it can be
// executed at all, which tokens it writes (no user may write those), and what it writes behind a
// reply: the token at which the model's replies have to end, whatever the file says about its EOS.

// The kinds of tokens that a template may write as such, beside its text.
enum { TOKEN_SPECIAL = TOKEN_CONTROL | TOKEN_USER };

// A token as a text for the template, which writes BOS and EOS by name.
static Term piece_term(const Tokenizer *t, int id)
{
    return id < 0 ? text_term("") : (Term){T_TEXT, t->pieces[id].len, {t->pieces[id].text}};
}

// Writes messages[n], to out->out; 0 if the template refuses them, for the reason out->error.
// Either way free_template() is the caller's to call.
static int write_chat(const Tokenizer *t, Template *out, const char *template,
                      const Term *messages, size_t n)
{
    run_template(out, template, messages, (long)n, piece_term(t, t->bos), piece_term(t, t->eos),
                 talk.no_think ? 0 : -1);
    return !*out->error;
}

// The pair has to live as long as the message does.
static Term make_message(Term pair[2], const char *role, const char *content)
{
    pair[0] = text_term(role);
    pair[1] = text_term(content);
    return (Term){T_MESSAGE, 2, {.items = pair}};
}

// The token that a template writes at s[len], or -1. A piece that looks like <this> or [this] is
// meant as a token even if the file calls it text.
static int find_token(const Tokenizer *t, const char *s, size_t len, size_t *n)
{
    int id = match_special(t, s, len, TOKEN_SPECIAL, n);
    if (id >= 0 || (*s != '<' && *s != '[')) return id;
    for (size_t k = min_size(len, 64); k > 2 && id < 0; k--)
        if (s[k - 1] == (*s == '<' ? '>' : ']')) id = find_piece(t, s, *n = k, TOKEN_TEXT);
    if (id < 0) *n = 1;
    return id;
}

// Tries the template on a small conversation, whose texts are a byte that no template writes, so
// that they can be counted: each has to be there. Its tokens become control tokens, which no text
// can write, and the first one behind a reply ends replies. Returns what is wrong with it, or NULL.
static const char *try_template(Tokenizer *t, const char *template)
{
    static char reason[sizeof(((Template *)NULL)->error)];
    Template sample;
    Term pairs[3][2], messages[3];
    int texts = 0, ended = 0;
    for (int i = 0; i < 3; i++)
        messages[i] = make_message(pairs[i], i == 1 ? "assistant" : "user", "\2");
    if (!write_chat(t, &sample, template, messages, 3)) memcpy(reason, sample.error, sizeof reason);
    else strcpy(reason, "it does not write what is said");
    for (size_t at = 0, n; at < sample.n_out; at += n) {
        int id = find_token(t, sample.out + at, sample.n_out - at, &n);
        texts += sample.out[at] == 2;
        if (id < 0) continue;
        // User-defined ones may be blanks, or marks of thoughts that a person is to see: of them
        // only what ends a turn is not the user's to write.
        Piece *p = &t->pieces[id];
        int user = p->kind == TOKEN_USER;
        int ends = texts == 2 && !ended && (!user || strchr("<[", *p->text));
        if (user && !ends && !p->stop) continue;
        p->kind = TOKEN_CONTROL;
        if (ends) p->stop = ended = 1;
    }
    int right = !*sample.error && texts == 3;
    free_template(&sample);
    return right ? NULL : reason;
}

// The model's own template, one string, or none. llama2.c's files have no keys.
static Values own_template(const Model *m)
{
    return m->keys ? find_key(m, "tokenizer.chat_template", 1) : (Values){0};
}

// The template to be used, or NULL; *what says what it is, or why there is none. What the user says
// counts first, then the model's own template, then a format of which the vocabulary has the mark.
static const char *find_template(const Session *s, const char **what)
{
    const char *name = talk.format ? talk.format : s->model.vocab.tokens.n ? NULL : "llama2", *text;
    size_t len = 0;
    int row = name ? FIND_NAME(chat_formats, name) : -1;
    if (name && row < 0) {
        if (!(text = compose_template(name)))
            die(EXIT_USAGE, "--chat-format", "no such format (got '%.99s', want %s, or "
                "'SYSTEM|USER|REPLY|END')", name, LIST_NAMES(chat_formats));
        *what = "as --chat-format says";
        return text;
    }
    // A template is a string of the file, which need not end with a zero.
    Values own = own_template(&s->model);
    if (!name && own.n) {
        text = next_string(&own, &len);
        *what = memchr(text, 0, len) ? "a zero byte in it" : "the model's own";
        if (memchr(text, 0, len)) return NULL;
        char *copy = xcalloc(len + 1, 1), *to = copy; // lines may end in \r\n or in \r
        for (size_t i = 0; i < len; i++)
            if (text[i] != '\r') *to++ = text[i];
            else if (i + 1 == len || text[i + 1] != '\n') *to++ = '\n';
        return copy;
    }
    for (size_t k = 0; row < 0 && k < COUNT(chat_formats); k++) {
        const char *mark = chat_formats[k].mark;
        if (mark && find_piece(&s->tokenizer, mark, strlen(mark), TOKEN_ANY) >= 0) row = (int)k;
    }
    *what = row < 0 ? "there is none" : chat_formats[row].name;
    return row < 0 ? NULL : chat_formats[row].template;
}

// The same, tried.
static const char *open_template(Session *s, const char **what)
{
    const char *template = find_template(s, what);
    const char *wrong = template ? try_template(&s->tokenizer, template) : NULL;
    if (wrong) *what = wrong;
    return wrong ? NULL : template;
}

// What a system text does to what the template writes for a user's first turn: 0 is nothing, and
// below 0 that gets shorter, which tells that the template puts in a text of its own if there is
// none. One that refuses the text says so later. A text that is the template's own changes nothing,
// but another one does.
static int system_effect(const Tokenizer *t, const char *template, const char *text)
{
    Template with, without;
    Term pairs[2][2], messages[] = {make_message(pairs[0], "system", text),
                                    make_message(pairs[1], "user", "Hi")};
    int effect = 1;
    if (write_chat(t, &with, template, messages, 2)) {
        if (write_chat(t, &without, template, messages + 1, 1))
            effect = with.n_out < without.n_out ? -1 : strcmp(with.out, without.out) != 0;
        free_template(&without);
    }
    free_template(&with);
    if (!effect && *text && strcmp(text, "?")) effect = system_effect(t, template, "?") != 0;
    return effect;
}

// The ids of text[len], which a template wrote; the caller frees them. Its control tokens are found
// where own[i] is 1: byte i is the template's, and not a user's. What is between them is text,
// which tokenizer_encode() reads, user-defined tokens and all. BOS comes first if the model wants
// it and the template did not write it; of nothing at all the ids are those of an empty text.
static int *encode_written(const Tokenizer *t, const char *text, const char *own, size_t len,
                           size_t *n)
{
    int *ids = xrealloc(encode_text(t, "", 0, n), 2 * len + 2, sizeof *ids); // ids[0] may stay
    size_t from = 0, step;
    int written = len && own[0] && match_special(t, text, len, TOKEN_SPECIAL, &step) == t->bos;
    *n = t->add_bos && !written;
    for (size_t at = 0; at < len; at += step) {
        int id = match_special(t, text + at, len - at, own[at] ? TOKEN_SPECIAL : TOKEN_USER, &step);
        if (id < 0 || t->pieces[id].kind != TOKEN_CONTROL) continue;
        *n += (size_t)tokenizer_encode(t, text + from, at - from, ids + *n);
        ids[(*n)++] = id;
        if (t->strip_right && id != t->bos && id != t->eos) // Phi-3's way
            while (at + step < len && isspace((unsigned char)text[at + step])) step++;
        from = at + step;
    }
    *n += (size_t)tokenizer_encode(t, text + from, len - from, ids + *n);
    *n = max_size(1, *n);
    return ids;
}

// The ids of messages[n] and the beginning of a reply; the caller frees them. A user cannot write
// control tokens: behind a byte 1 (see quote_text) there is none. own[i] says of byte i of the text
// whether a token may begin there, and the marks are taken out.
static int *encode_chat(const Session *s, const char *template, const Term *messages, size_t n,
                        size_t *n_ids)
{
    Template out;
    if (!write_chat(&s->tokenizer, &out, template, messages, n))
        die(EXIT_DATA, s->model.path, "its chat template refuses (%s); see --chat-format",
            out.error);
    char *own = memset(xrealloc(NULL, out.n_out + 1, 1), 1, out.n_out + 1);
    size_t len = 0;
    for (size_t at = 0; at < out.n_out; at++) {
        if (out.out[at] == 1 && at + 1 < out.n_out) own[len] = 0, at++;
        out.out[len++] = out.out[at];
    }
    int *ids = encode_written(&s->tokenizer, out.out, own, len, n_ids);
    free(own);
    free_template(&out);
    return ids;
}

// A copy of the text with a byte 1 in front of each control token in it and of each byte 1. The
// template moves texts around, trims and joins them; the mark travels along, and so it is known
// afterwards which tokens are the template's and which are letters that a user typed.
static char *quote_text(const Tokenizer *t, const char *text)
{
    size_t len = strlen(text), n, to = 0;
    char *quoted = xcalloc(2 * len + 1, 1);
    for (size_t at = 0; at < len; at++) {
        int id = match_special(t, text + at, len - at, TOKEN_SPECIAL, &n);
        if (text[at] == 1 || (id >= 0 && t->pieces[id].kind == TOKEN_CONTROL)) quoted[to++] = 1;
        quoted[to++] = text[at];
    }
    return quoted;
}

// --- at the terminal -----------------------------------------------------------------------------
//
// What a person sees who waits for a text, or wonders about it; run.c by itself does without.

// How far the work is, and how long it will take at the speed so far. A line on stderr that
// replaces itself, when someone is there to see it and the work takes more than a second; it goes
// away when all is done.
static void show_progress(const char *what, double start, size_t done, size_t total)
{
    double took = seconds() - start;
    if (took < 1 || !isatty(STDERR_FILENO)) return;
    fputs("\r\033[K", stderr);
    if (done < total)
        fprintf(stderr, "%s: %zu of %zu, %.0f s left", what, done, total,
                took / (double)done * (double)(total - done));
}

// With --show-tokens, what the model is about to read: ids, and then pieces in which blanks and
// bytes that are no characters can be seen. Most of what goes wrong between a model and its user is
// a missing blank or a turn's mark that became letters.
static void show_tokens(const Tokenizer *t, const int *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) fprintf(stderr, i ? " %d" : "tokens: %d", ids[i]);
    fputs("\npieces:", stderr);
    for (size_t i = 0; i < n; i++) {
        const Piece *p = &t->pieces[ids[i]];
        fputc(' ', stderr);
        for (size_t at = 0, step; at < (size_t)p->len; at += step) {
            uint32_t c = read_char(p->text + at, (size_t)p->len - at, &step);
            if (c == ' ') fputs("\u2581", stderr);
            else if (c < 32 || c == 127 || c == 0xfffd || (c > 127 && c < 160))
                fprintf(stderr, "<0x%02X>", (unsigned)(c == 0xfffd ? (uint8_t)p->text[at] : c));
            else fwrite(p->text + at, 1, step, stderr);
        }
    }
    fputc('\n', stderr);
}

// A read that waits for a line goes on after Ctrl-C (SA_RESTART), or ends (0).
static void catch_interrupt(int flags)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = flags | SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
}

// What goes wrong without an error. More context than trained without a method works with RoPE, as
// far as the program goes, but what is written becomes nonsense, and the user should know why and
// what would help. And the wrong cut into words gives tokens that the model never saw.
static void give_hints(const Session *s)
{
    const Config *c = &s->model.config;
    const RopeConfig *r = &c->rope;
    const Vocab *v = &s->model.vocab;
    if (v->pre && !strcmp(v->pre, "default"))
        fprintf(stderr, "%s: how text is cut into words is not said (tokenizer.ggml.pre), and "
                "guessed: as for GPT-2\n", prog);
    int plain = c->encoding == ENC_ROPE && !r->method && !r->distance && !r->window;
    if (plain && s->ctx > c->train_ctx)
        fprintf(stderr, "%s: context %lld is past the trained %d, where plain RoPE fails; try "
                "--rerope %d --logn, or --rope-scaling yarn\n", prog, s->ctx, c->train_ctx,
                (c->train_ctx + 1) / 2);
}

// Mode generate of run.c, after what it will read.
static void run_shown(Session *s)
{
    give_hints(s);
    if (talk.show_tokens) {
        size_t n;
        int *ids = encode_text(&s->tokenizer, s->text ? s->text : "", s->len, &n);
        show_tokens(&s->tokenizer, ids, n);
        free(ids);
    }
    run_generate(s);
}

// --- turns ---------------------------------------------------------------------------------------
//
// A turn is the user's text and the reply to it. Nothing is kept between turns but the messages and
// the cache: the template writes the whole conversation, and the longest beginning that the cache
// has already is not read again.

// Turns end with a zero byte, and must not end before.
static void check_string(const char *what, const char *text, size_t len)
{
    if (strlen(text) < len) die(EXIT_DATA, what, "a zero byte in it (at %zu)", strlen(text));
}

// Forgets all but the first pos tokens. Where a window made the cache a ring, later tokens may have
// taken the room of some that a query at pos still sees: then everything has to be read again.
static void rewind_session(Session *s, size_t pos)
{
    const Cache *c = &s->state.attn.cache;
    size_t window = (size_t)s->state.attn.config.rope.window;
    size_t seen = pos > window ? pos - window : 0;
    size_t first = max_size(seen / TILE, c->sink_slots), ring = c->n_slots - c->sink_slots;
    size_t filled = (size_t)s->state.attn.text; // at least so far, since position 0 was
    s->pos = first + ring >= ceil_div(filled, TILE) ? pos : 0;
}

// What has been said so far. The contents of messages belong to it.
typedef struct {
    const char *template;
    Term *messages; // [n]
    size_t n, kept; // the first ones stay: the system's, if there is one
} Conversation;

// The content is the conversation's from now on.
static void add_message(Conversation *c, const char *role, const char *content)
{
    c->messages = xrealloc(c->messages, c->n + 1, sizeof *c->messages);
    c->messages[c->n++] = make_message(xcalloc(2, sizeof(Term)), role, content);
}

// Forgets n messages.
static void drop_messages(Conversation *c, size_t from, size_t n)
{
    if (!n) return;
    for (size_t i = from; i < from + n; i++) {
        free((void *)c->messages[i].items[1].s);
        free((void *)c->messages[i].items);
    }
    c->n -= n;
    memmove(c->messages + from, c->messages + from + n, (c->n - from) * sizeof *c->messages);
}

// The ids of the conversation without so many of its oldest turns; the caller frees them. It is
// tried out on a copy: nothing is forgotten for a turn that does not fit alone.
static int *encode_without(const Session *s, const Conversation *c, size_t turns, size_t *n)
{
    size_t n_left = c->n - 2 * turns;
    Term *left = xcalloc(n_left, sizeof *left), *old = c->messages + c->kept;
    memcpy(left, c->messages, c->kept * sizeof *left);
    memcpy(left + c->kept, old + 2 * turns, (n_left - c->kept) * sizeof *left);
    int *ids = encode_chat(s, c->template, left, n_left, n);
    free(left);
    return ids;
}

// The ids of the conversation, which the caller frees. If they and a reply do not fit into the
// context the oldest turns go, but never the last; NULL if it does not fit even so, or if nothing
// may go. How many go is found by halving: to write a long text anew for each turn takes minutes.
static int *fit_conversation(const Session *s, Conversation *c, size_t *n)
{
    size_t ctx = (size_t)s->ctx, most = talk.keep_all ? 0 : (c->n - c->kept - 1) / 2, gone = 0;
    // A reply needs some room, or the next turn would be dropped at once; the last turn may do with
    // what there is.
    size_t room = min_size(opt.steps ? (size_t)opt.steps : 256, ctx / 4);
    int *ids;
    for (size_t low = 0, high = most + 1;;) { // as many, or as few; past most it never fits
        ids = encode_without(s, c, gone, n);
        if (*n + (gone == most ? 0 : room) < ctx) high = gone;
        else low = gone + 1;
        if (high == gone && low == high) break;
        free(ids);
        if (low > most) return NULL;
        gone = high > most ? most : (low + high) / 2;
    }
    if (gone)
        fprintf(stderr, "%s: the context of %zu tokens is full: the oldest turns (%zu) are "
                "forgotten; use -c for more, or --window with --sinks\n", prog, ctx, gone);
    drop_messages(c, c->kept, 2 * gone);
    return ids;
}

// The text of ids[n]. Its control tokens stand as they are, so that a template that is shown the
// reply finds them; what only spells one with letters is quoted as if a user had typed it, who may
// have asked for just that. A zero byte would end the message, and is left out.
static char *spell_ids(const Tokenizer *t, const int *ids, size_t n)
{
    char *text;
    size_t len;
    FILE *out = open_text(&text, &len);
    for (size_t i = 0, end; i < n; i = end) {
        char *part;
        Stream stream = {.out = open_text(&part, &len)};
        int control = t->pieces[ids[i]].kind == TOKEN_CONTROL;
        for (end = i; end < n && (t->pieces[ids[end]].kind == TOKEN_CONTROL) == control; end++) {
            const Piece *p = &t->pieces[ids[end]];
            for (int k = 0; k < p->len; k++)
                if (p->text[k]) stream_write(&stream, &p->text[k], 1);
        }
        close_text(stream.out);
        char *quoted = control ? NULL : quote_text(t, part);
        fputs(control ? part : quoted, out);
        free(quoted);
        free(part);
    }
    close_text(out);
    return text;
}

// Answers the user's text, and tells why if the reply was cut. 0: it does not fit. At least one
// token is always read, since only that gives the logits from which the reply begins.
static int answer(Session *s, Conversation *c, const char *text)
{
    size_t n, common = 0;
    add_message(c, "user", quote_text(&s->tokenizer, text));
    int *ids = fit_conversation(s, c, &n);
    if (!ids) {
        drop_messages(c, c->n - 1, 1);
        return 0;
    }
    // What the cache holds is used as far as it is the beginning of the new text, too.
    while (common < min_size(n - 1, s->pos) && ids[common] == s->ids[common]) common++;
    const Attention *a = &s->state.attn;
    const RopeConfig *r = &a->positions[0].rope;
    if (rope_methods[r->method].changes == ONCE && a->text > r->orig_ctx &&
        (int64_t)n <= r->orig_ctx) common = 0; // short again: by the short list
    rewind_session(s, common);
    // Behind the ids come those that the reply consists of, as many as were made.
    size_t before = s->made.n;
    if (talk.show_tokens) show_tokens(&s->tokenizer, ids + s->pos, n - s->pos);
    const char *end = reply(s, ids + s->pos, n - s->pos, 0);
    free(ids);
    if (end != THE_MODEL) fprintf(stderr, "%s: the reply was cut by %s\n", prog, end);
    add_message(c, "assistant", spell_ids(&s->tokenizer, s->ids + n, s->made.n - before));
    interrupted = 0; // Ctrl-C ended the reply, not the conversation, and may do so again
    catch_interrupt(SA_RESTART);
    return 1;
}

// Writes the prompt and waits for a line at the terminal, or for Ctrl-C, which may come at any
// moment after the prompt is there: it is let through only while the program waits.
static void wait_for_line(const char *prompt)
{
    sigset_t before;
    block_interrupt(&before);
    fputs(prompt, stderr);
    if (!interrupted) ppoll(&(struct pollfd){STDIN_FILENO, POLLIN, 0}, 1, NULL, &before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

// Reads a turn: a line, and the next one, too, where it ends with a backslash. The caller frees it.
// NULL at the end, or when Ctrl-C ends the wait for it. A terminal hands over lines of at most
// 4,095 bytes and drops the rest without a word, so that is said here.
static char *read_turn(void)
{
    enum { TERMINAL_LINE = 4096 }; // what a terminal hands over at most, with the newline
    char *line = NULL, *turn = NULL;
    size_t room = 0, len = 0;
    int terminal = isatty(STDIN_FILENO);
    for (int more = 1; more;) {
        if (terminal) wait_for_line(turn ? "| " : "> ");
        if (interrupted) break;
        catch_interrupt(0); // it ends the wait for a line that did not come from a terminal, too
        ssize_t n = getline(&line, &room, stdin);
        catch_interrupt(SA_RESTART);
        if (n < 0 && !feof(stdin) && !interrupted)
            die(EXIT_DATA, "standard input", "cannot read (%s)", strerror(errno));
        if (n < 0) break;
        check_string("standard input", line, (size_t)n);
        if (terminal && n >= TERMINAL_LINE)
            fprintf(stderr, "%s: the terminal cut a line to %zd bytes; use -f, a pipe, or shorter "
                    "lines with a backslash at the end\n", prog, n - 1);
        n -= line[n - 1] == '\n';
        n -= n && line[n - 1] == '\r';
        more = n && line[n - 1] == '\\';
        line[n - more] = 0;
        turn = xrealloc(turn, len + (size_t)n + 2, 1);
        len += (size_t)sprintf(turn + len, more ? "%s\n" : "%s", line);
    }
    free(line);
    if (terminal && (interrupted || !turn)) fputc('\n', stderr);
    if (!interrupted) return turn;
    free(turn);
    return NULL;
}

// Turn by turn on stdin and stdout. The first turn may be given. A line that begins with // is a
// turn that begins with /, so that no text is out of reach for the one command there is, /clear.
static void run_chat(Session *s)
{
    const char *what;
    Conversation c = {.template = open_template(s, &what)};
    if (!c.template)
        die(EXIT_DATA, s->model.path, "no chat template that can be followed (%s); use "
            "--chat-format with %s, or 'SYSTEM|USER|REPLY|END'", what, LIST_NAMES(chat_formats));
    if (talk.no_think && !strstr(c.template, "enable_thinking"))
        die(EXIT_USAGE, "--no-think", "the chat template has no such choice");
    if (!talk.format && s->model.vocab.tokens.n && !own_template(&s->model).n)
        fprintf(stderr, "%s: the model has no chat template, but the tokens of %s, which is used; "
                "see --chat-format\n", prog, what);
    give_hints(s);
    if (opt.steps < 0) opt.steps = 0; // a reply may be as long as the model wants
    if (talk.system) {
        int effect = system_effect(&s->tokenizer, c.template, talk.system);
        if (*talk.system && !effect)
            die(EXIT_USAGE, "--system", "the chat template has no place for it");
        if (*talk.system || effect < 0)
            add_message(&c, "system", quote_text(&s->tokenizer, talk.system));
    }
    c.kept = c.n;
    if (s->text) check_string("prompt", s->text, s->len);
    if (s->text && !answer(s, &c, s->text))
        die(EXIT_DATA, "prompt", "a turn longer than the context (want less than %lld tokens); "
            "use a larger -c, or --window", s->ctx);
    for (char *turn; !interrupted && (turn = read_turn()); free(turn)) {
        int slash = !strncmp(turn, "//", 2), clear = !strcmp(turn, "/clear");
        if (clear) drop_messages(&c, c.kept, c.n - c.kept);
        else if (*turn && !answer(s, &c, turn + slash))
            fprintf(stderr, "%s: this turn does not fit into the context of %lld tokens, and is "
                    "left out; see -c\n", prog, s->ctx);
    }
    say_speed(s, "the user");
    drop_messages(&c, 0, c.n);
    free(c.messages);
}

// --- info ---------------------------------------------------------------------------------------

// How positions enter, in one line.
static void print_rope(const char *what, const RopeConfig *r)
{
    printf("%-14s%s, base %g, L %d, factor %g, attention factor %g", what,
           rope_methods[r->method].name, r->theta, r->orig_ctx, r->method ? r->factor : 1,
           attention_factor(r));
    if (r->window) printf(", window %d", r->window);
    printf("\n");
}

// Parameters and bytes of all matrices, by type.
static void print_weights(Model *m)
{
    size_t bytes[COUNT(tensor_types)] = {0}, total = 0, parameters = 0;
    Weight list[N_WEIGHTS];
    for (int l = 0; l < m->config.n_layers; l++) {
        list_weights(m, l, list);
        for (const Weight *w = list; w < list + (l ? N_OF_LAYER : N_WEIGHTS); w++) {
            const Tensor *t = w->to;
            int again = w->to == &m->classifier && t->data == m->tok_emb.data;
            if (w->kind > TABLE || !w->rows || again) continue; // no matrix, not there, or counted
            bytes[t->type - tensor_types] += tensor_bytes(t);
            parameters += t->rows * t->cols;
        }
    }
    printf("weights       ");
    for (int i = 0; i < (int)COUNT(tensor_types); i++) {
        if (bytes[i]) printf("%s %.1f MB, ", tensor_types[i].name, bytes[i] / 1e6);
        total += bytes[i];
    }
    printf("together %.1f MB, %.1fM parameters\n", total / 1e6, parameters / 1e6);
}

// What the model is, and what a context of ctx tokens takes: all that can be said without running
// it, so that somebody with a file knows within a second whether it can be run, how, and on what
// machine.
static void run_info(Session *s)
{
    const Model *m = &s->model;
    const Tokenizer *t = &s->tokenizer;
    Config c = m->config;
    Cache cache = {0};
    const char *what, *template = open_template(s, &what);
    rope_resolve(&c.rope, c.train_ctx, s->ctx);
    rope_resolve(&c.local, c.train_ctx, s->ctx);
    cache_layout(&cache, &c, s->ctx, opt.chunk, opt.exact ? KV_F32 : opt.kv);
    printf("architecture  %s\nlayers        %d, dim %d, hidden %d, %d heads (%d for keys) of %d\n",
           m->arch, c.n_layers, c.dim, c.hidden_dim, c.n_heads, c.n_kv_heads, c.head_dim);
    print_weights(&s->model);
    printf("trained       %d tokens\n", c.train_ctx);
    if (c.encoding == ENC_ROPE) print_rope("RoPE", &c.rope);
    else printf("positions     %s\n", encodings[c.encoding].name);
    int n_local = 0;
    for (int l = 0; l < c.n_layers; l++) n_local += m->layers[l].local;
    if (n_local && c.local.still) printf("no position   in %d layers\n", n_local);
    else if (n_local) print_rope("local layers", &c.local);
    if (n_local && !c.local.still) printf("              %d of %d\n", n_local, c.n_layers);
    printf("chat format   %s\n", template ? what : "unknown");
    char *words = copy_string(t->words ? m->vocab.pre : ""); // whatever it holds
    make_printable(words);
    printf("tokenizer     %s%s, %d tokens, %s\n",
           t->words ? "byte-level BPE, words as " : "SentencePiece-style", words, t->vocab_size,
           t->add_bos ? "BOS" : "no BOS");
    free(words);
    double row = 2.0 * (c.dim + c.hidden_dim + q_dim(&c) + kv_dim(&c));
    printf("memory        %.1f MB file (mapped), %.1f MB KV cache at -c %lld, %.1f MB besides\n",
           m->size / 1e6, cache.bytes / 1e6, s->ctx, 4 * (opt.chunk * row + c.vocab_size) / 1e6);
}

// --- options -------------------------------------------------------------------------------------

// Modes, then the options that only they have; the others are those of run.c.
static const Mode chat_modes[] = {
    {"generate", run_shown, ENDLESS}, {"chat", run_chat, ENDLESS},
    {"info", run_info, NO_STATE},
};

static const Option chat_options[] = {
    {"mode", 'm', "MODE", "generate, chat (with rlwrap -a) or info; what measures is in ./measure",
     NAME(opt.mode, chat_modes)},
    {"system", 'y', "TEXT", "chat: the system's text (the model's own)", TEXT(talk.system)},
    {"chat-format", 0, "FORMAT", "(the model's) or SYSTEM|USER|REPLY|END", TEXT(talk.format)},
    {"no-think", 0, "", "chat: no thoughts, if the template has that choice", FLAG(talk.no_think)},
    {"keep-all", 0, "", "chat: refuse turns rather than forget old ones", FLAG(talk.keep_all)},
    {"show-tokens", 0, "", "what the model reads, on stderr", FLAG(talk.show_tokens)},
};
static const Names chat_program[] = {
    NAMES(chat_options), NAMES(text_options), NAMES(shared_options), NAMES(config_fields), {0}};

#ifdef CHAT
int main(int argc, char **argv)
{
    progress = show_progress;
    return run_main(chat_program, NULL, argc, argv);
}
#endif
