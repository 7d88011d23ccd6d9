#!/bin/sh
# survey.sh BUILD: measures the models that models/survey.sh trains, alike in all but how they know
# positions, from their trained context of 256 tokens out to 16 times that: the experiment behind
# Zhao et al. 2023, "Length Extrapolation of Transformers" (arXiv 2312.17044), running.
#
#   windows    mean loss of non-overlapping windows. Longer ones have fewer tokens with little to
#              see before them, so this falls even for a model that makes nothing of far text.
#   position   loss by position: each octave from the windows that end with it
#   sliding    windows that slide by a quarter, the last quarter counted: every token sees at least
#              three quarters of a window, and the tokens are the same at every length
#   passkey, multi-key, variable tracking    % right, of texts with the fact at 5 depths
#
# and, where --rope-scaling linear means something, the first and the passkey with positions
# interpolated; for rope with the other methods as well. Encodings with a table of positions end
# with it; "clamped" repeats its last row. Those that were trained with positions drawn at random are
# tested so, too ("drawn"), as their paper does it.
#
# Numbers go to models/figures/survey.tsv, pictures beside it, the tables of models/ENCODINGS.md to
# stdout, what the instruments wrote to BUILD/survey. Models that are not there are skipped.
#
# Text: tests/heldout.txt, see figures.sh. From the environment: MODELS and FIGURES (folders),
# TOKENIZER, WINDOWS (of 4096 tokens; as much text at other lengths), SLIDES (likewise), TRIALS (in
# a cell of a test), JOBS (at once), NAMES (encodings, all of those below); LENGTHS, STRETCHED, KEYED
# and ASKED (lengths in tokens, below).

set -e
build=$1
models=${MODELS:-models}
figures=${FIGURES:-models/figures}
windows=${WINDOWS:-10}
slides=${SLIDES:-8}
trials=${TRIALS:-4}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
text=tests/heldout.txt
raw=$build/survey
trained=256
lengths=${LENGTHS:-256 512 1024 2048 4096}
stretched=${STRETCHED:-512 1024 2048} # by 2, 4 and 8
keyed=${KEYED:-256 512 1024 2048}     # passkey
asked=${ASKED:-256 512 1024}          # multi-key, variable tracking
drawn="256 512 1024 2048" # positions drawn from 2048, as in training
tab=$(printf '\t')

# name | class | where position enters | learned | source
encodings='
rope | relative | rotates q and k | no | RoFormer, Su et al. 2021, 2104.09864
xpos | relative | rotates and scales q and k | no | Sun et al. 2022, 2212.10554
nope | none | nowhere | no | Haviv et al. 2022, 2203.16634; Kazemnejad et al. 2023, 2305.19466
sinusoidal | absolute | added to the embedding | no | Vaswani et al. 2017, 1706.03762
shape | absolute, shifted at random | added to the embedding | no | Kiyono et al. 2021, 2109.05644
learned | absolute | added to the embedding | yes | GPT-2, Radford et al. 2019
alibi | relative | added to the score | no | Press et al. 2021, 2108.12409
t5 | relative | added to the score | yes | Raffel et al. 2019, 1910.10683
kerple | relative | added to the score | yes | Chi et al. 2022, 2205.09921
fire | relative | added to the score | yes | Li et al. 2023, 2310.04418
shaw | relative | added to the score, as q . r | yes | Shaw et al. 2018, 1803.02155
sandwich | relative | added to the score | no | Chi et al. 2022, 2212.10356
cape | absolute, moved and stretched at random | added to the embedding | no | Likhomanenko et al. 2021, 2106.03143
drope | rotary, then none | q and k rotated, until 7/8 of the training | no | Gelberg et al. 2025, 2512.12167
rope-randomized | randomized | rotates q and k | no | Ruoss et al. 2023, 2305.16843
learned-randomized | randomized | added to the embedding | yes | Ruoss et al. 2023, 2305.16843'

model() { echo "$models/pe-$1.bin"; } # name

# Whether the model takes these options; only a refusal of them (status 2) is a no.
takes() { # name option...
    file=$(model "$1")
    shift
    set -- "$file" ${TOKENIZER:+-z "$TOKENIZER"} -i x -n 1 "$@"
    ./run "$@" > /dev/null 2> "$raw/refusal" && return
    [ $? -eq 2 ] && return 1
    cat "$raw/refusal" >&2
    exit 1
}

# Writes down a measurement to be made. The name of its table is what survey.tsv says of it.
plan() { # encoding method view length mode option...
    table=$raw/$1.$2.$3.$4 mode=$5
    job=$(model "$1")
    shift 5
    echo "$table $job $mode -j 1 $*" >> "$raw/jobs"
}

plan_windows() { # encoding method length option...
    of=$1 how=$2 n=$3
    shift 3
    plan "$of" "$how" windows "$n" perplexity -f $text -c "$n" \
        --windows $((windows * 4096 / n)) "$@"
}

# The last quarter of windows that end at the same tokens, from 3072 on, whatever their length; the
# table begins earlier for short ones.
plan_sliding() { # encoding method length option...
    of=$1 how=$2 n=$3
    shift 3
    plan "$of" "$how" sliding "$n" perplexity -f $text -c "$n" --stride $((n / 4)) \
        --windows $((4096 * (slides + 3) / n - 3)) "$@"
}

plan_test() { # encoding method mode length option...
    of=$1 how=$2 mode=$3 n=$4
    shift 4
    plan "$of" "$how" "$mode" "$n" "$mode" --lengths "$n" --depths 5 --trials "$trials" "$@"
}

# All that is asked of an encoding, past the end of its table with positions clamped.
plan_encoding() { # encoding
    for n in $lengths; do
        how=none
        takes "$1" -c "$n" || how=clamped
        set -- "$1"
        [ $how = none ] || set -- "$1" --clamp-positions
        takes "$@" -c "$n" || continue
        name=$1
        shift
        plan_windows "$name" "$how" "$n" "$@"
        plan_sliding "$name" "$how" "$n" "$@"
        case " $keyed " in *" $n "*) plan_test "$name" "$how" passkey "$n" "$@" ;; esac
        case " $asked " in *" $n "*) plan_test "$name" "$how" retrieval "$n" "$@" ;; esac
        set -- "$name"
    done
}

# A method that stretches what an encoding has learned to each length, by 2, 4 and 8, if the
# encoding has such a method.
plan_stretched() { # encoding method
    takes "$1" -c 512 --rope-scaling "$2" || return 0
    for n in $stretched; do
        plan_windows "$1" "$2" "$n" --rope-scaling "$2"
        plan_test "$1" "$2" passkey "$n" --rope-scaling "$2"
    done
}

# The tests with positions drawn from the range that the model was trained with.
plan_drawn() { # encoding
    for n in $drawn; do
        plan_windows "$1" drawn "$n" --positions 2048
        plan_test "$1" drawn passkey "$n" --positions 2048
        case " $asked " in *" $n "*) plan_test "$1" drawn retrieval "$n" --positions 2048 ;; esac
    done
    plan_sliding "$1" drawn 2048 --positions 2048
}

# A row of survey.tsv: the mean of column `nll` and its standard error over windows.
mean_row() { # encoding method view length table condition
    awk -F '\t' -v OFS='\t' -v n="$4" -v row="$1$tab$2$tab$3$tab${7:-$4}" "FNR > 1 && ($6)"' {
            if ($1 != window) { window = $1; w++ }
            sum[w] += $4; count[w]++; total += $4; all++
        }
        END {
            for (i = 1; i <= w; i++) { m = sum[i] / count[i]; a += m; b += m * m }
            e = w > 1 ? sprintf("%.4f", sqrt((b / w - (a / w) ^ 2) / (w - 1))) : "-"
            if (all) printf "%s\t%.4f\t%s\t%d\n", row, total / all, e, all
        }' "$5"
}

# Rows of survey.tsv from one table of answers.
score_rows() { # encoding method table
    awk -F '\t' -v row="$1$tab$2" 'FNR > 1 { n[$1 "\t" $2]++; right[$1 "\t" $2] += $6 }
        END { for (k in n) { p = right[k] / n[k]
            printf "%s\t%s\t%.1f\t%.1f\t%d\n", row, k, 100 * p, 100 * sqrt(p * (1 - p) / n[k]), n[k]
        } }' "$3" | sort -t "$tab" -k 3,3 -k 4,4n
}

# All rows from one table, by its name.
table_rows() { # table
    name=${1##*/}
    of=${name%%.*} name=${name#*.}
    how=${name%%.*} name=${name#*.}
    view=${name%%.*} n=${name#*.}
    n=${n%.tsv}
    case $view in
    windows) mean_row "$of" "$how" windows "$n" "$1" 1 ;;
    sliding) # a prediction's target is token window * stride + position + 1 of the text
        mean_row "$of" "$how" sliding "$n" "$1" "\$1 * (n / 4) + \$2 + 1 >= 3072" ;;
    *) score_rows "$of" "$how" "$1" ;;
    esac
    # Loss by position: the second half of each window, but of the shortest all from 32 on.
    case $view.$how in windows.none | windows.clamped | windows.drawn) from=$((n / 2)) ;; *) return ;; esac
    [ "$n" -gt $trained ] || from=32
    while [ $from -lt "$n" ]; do
        mean_row "$of" "$how" position "$n" "$1" "\$2 + 1 >= $from && \$2 + 1 < 2 * $from" \
            "$from-$((2 * from - 1))"
        from=$((2 * from))
    done
}

# The tables of one view of an encoding, the shortest length first. Where a line is clamped, those
# of lengths that need no clamping come before.
tables() { # encoding method view
    for n in $lengths; do
        table=$raw/$1.$2.$3.$n.tsv
        [ -e "$table" ] || [ "$2" != clamped ] || table=$raw/$1.none.$3.$n.tsv
        [ ! -e "$table" ] || echo "$table"
    done
}

# One table out of those. Losses: each octave of positions from the windows that end with it, those
# before the first from the shortest.
join_tables() { # encoding method view
    tables "$@" | {
        files=
        while read -r table; do files="$files $table"; done
        # shellcheck disable=SC2086 # words of $files are files
        awk -F '\t' 'FNR == 1 { n = FILENAME; sub(/\.tsv$/, "", n); sub(/.*\./, "", n) }
            NR == 1 || (FNR > 1 && (NR == FNR || FILENAME !~ /windows/ || $2 + 1 >= n / 2))' $files
    }
}

has_rows() { # encoding method view
    grep -q "^$1$tab$2$tab$3$tab" "$figures/survey.tsv"
}

# The means of one view of an encoding, for plot.
means() { # encoding method view
    printf 'tokens\tloss\n'
    awk -F '\t' -v OFS='\t' -v of="$1" -v how="$2" -v view="$3" -v trained=$trained '
        $1 == of && $3 == view && ($2 == how || ($2 == "none" && how == "clamped")) { print $4, $5 }
        $1 == of && $3 == view && $2 == "none" && how == "linear" && $4 == trained { print $4, $5 }
        ' "$figures/survey.tsv" | sort -n
}

# Draws a picture with a line, or a map, for each encoding that has what is wanted.
draw() { # kind picture view method title
    kind=$1 picture=$figures/$2.svg view=$3 only=$4 title=$5
    set --
    for name in $names; do
        for how in ${only:-none clamped drawn}; do
            has_rows "$name" "$how" "$view" || continue
            table=$raw/$name.$how.$kind.$view
            if [ "$kind" = means ]; then means "$name" "$how" "$view" > "$table"
            else join_tables "$name" "$how" "$view" > "$table"; fi
            label=$name
            case $how in clamped | drawn) label="$name, $how" ;; esac
            set -- "$@" "$label=$table"
        done
    done
    [ $# -eq 0 ] && return
    "$build/plot" "$kind" "$picture" $trained "$title" "$@" > "$raw/plot.table"
    echo "$picture"
}

# The tables of models/ENCODINGS.md, in Markdown.
print_tables() {
    echo "$encodings" | awk -F ' *[|] *' -v OFS=' | ' -v rows="$figures/survey.tsv" \
        -v models="$models" '
        function get(of, how, view, n, form) {
            if (how == "clamped" && !((of, how, view, n) in value)) how = "none"
            return (of, how, view, n) in value ? sprintf(form, value[of, how, view, n]) : "-"
        }
        function line(label, of, how, about, file) {
            print "| " label, about, file, get(of, how, "windows", 256, "%.3f"),
                get(of, how, "windows", 2048, "%.3f"), get(of, how, "sliding", 2048, "%.3f"),
                get(of, how, "passkey", 256, "%.0f"), get(of, how, "passkey", 1024, "%.0f") " |"
        }
        function stretch(of, how) {
            print "| " of, how, get(of, how, "windows", 512, "%.3f"),
                get(of, how, "windows", 1024, "%.3f"), get(of, how, "windows", 2048, "%.3f"),
                get(of, how, "passkey", 512, "%.0f"), get(of, how, "passkey", 1024, "%.0f"),
                get(of, how, "passkey", 2048, "%.0f") " |"
        }
        BEGIN {
            while ((getline row < rows) > 0) {
                split(row, field, "\t")
                value[field[1], field[2], field[3], field[4]] = field[5]
                has[field[1], field[2]] = 1
            }
            print "| encoding", "class", "where position enters", "learned", "source", "model",
                "loss, 256", "2048", "sliding, 2048", "passkey %, 256", "1024 |"
            print "|---|---|---|---|---|---|---|---|---|---|---|"
        }
        NF < 5 || !(($1, "none") in has) { next }
        {
            about = $2 " | " $3 " | " $4 " | " $5
            line($1, $1, "none", about, "`" models "/pe-" $1 ".bin`")
            if (($1, "clamped", "windows", 2048) in value)
                line($1 ", clamped", $1, "clamped", " | | | ", "the same")
            if (($1, "drawn", "windows", 2048) in value)
                line($1 ", drawn", $1, "drawn", " | | | ", "the same")
            known[++n] = $1
        }
        END {
            print "\n| encoding", "positions", "loss, 512", "1024", "2048", "passkey %, 512",
                "1024", "2048 |\n|---|---|---|---|---|---|---|---|"
            split("none clamped linear ntk dynamic yarn", methods, " ")
            for (i = 1; i <= n; i++) {
                if (!((known[i], "linear") in has)) continue
                for (m = 1; m <= 6; m++)
                    if ((known[i], methods[m], "windows", 512) in value)
                        stretch(known[i], methods[m])
            }
        }'
}

begin=$(date +%s)
mkdir -p "$raw" "$figures"
rm -f "$raw"/*
wanted=${NAMES:-$(echo "$encodings" | awk '{ print $1 }')} names='' skipped=''
for name in $wanted; do
    if [ -e "$(model "$name")" ]; then names="$names $name"
    else skipped="$skipped $name"; fi
done
if [ -z "$names" ]; then
    echo "survey.sh: $models/pe-*.bin: no models (make them with models/survey.sh)" >&2
    exit 1
fi
[ -z "$skipped" ] || echo "survey.sh: skipped, no $models/pe-NAME.bin:$skipped" >&2

for name in $names; do
    plan_encoding "$name"
    plan_stretched "$name" linear
    case $name in *-randomized) plan_drawn "$name" ;; esac
    [ "$name" != rope ] || for how in ntk dynamic yarn; do plan_stretched rope $how; done
done
# The longest texts first, so that no long measurement is left over at the end.
awk '{ n = split($1, part, "."); print part[n] "\t" $0 }' "$raw/jobs" | sort -rn | cut -f 2- |
    xargs -L 1 -P "$jobs" sh tests/measure.sh

{
    printf 'encoding\tmethod\tview\ttokens\tvalue\terror\tof\n'
    while read -r table rest; do table_rows "$table.tsv"; done < "$raw/jobs"
} > "$raw/survey.tsv"
mv "$raw/survey.tsv" "$figures/survey.tsv"

about="Lower is better. The Wind in the Willows; each model saw 256 tokens at a time in training."
draw loss survey-position windows "" "Loss against position, one model for each encoding
$about"
draw means survey-windows windows "" "Loss of windows that do not overlap, by their length
$about"
draw means survey-sliding sliding "" "Loss of the last quarter of sliding windows, by their length
$about"
draw means survey-linear windows linear "Windows with positions or distances divided by 2, 4 and 8
$about"
draw grid survey-passkey passkey "" "Passkey: per cent of right answers
Five digits within filler text, asked for at its end; $trials texts a cell."

print_tables
echo "survey.sh: $(($(date +%s) - begin)) s"
