#!/bin/sh
# chat.sh BUILD: conversations, on random checkpoints: what the model is given for what is typed,
# how replies end and what is said about it, and a terminal (BUILD/terminal), with Ctrl-C and a line
# that the terminal cuts. Run in the repository's folder.

. tests/check.sh
LC_ALL=C
export LC_ALL

cp tokenizer.bin "$tmp/"
"$build/make_model" "$tmp/m.bin" version=1
"$build/make_gguf" "$tmp/m.gguf" llama
m=$tmp/m.bin
g=$tmp/m.gguf

# chat NAME STATUS ARGS... < TURNS: leaves the output in $tmp/out, stderr in $tmp/err.
chat() {
    name=$1 want=$2
    shift 2
    "$run" "$@" > "$tmp/out" 2> "$tmp/err"
    got=$?
    if [ $got -eq "$want" ]; then ok
    else bad "$name: exit status $got, want $want: $(cat "$tmp/err")"; fi
}

# says TEXT, silent TEXT: stderr has it, or not.
says() {
    if grep -q -e "$1" "$tmp/err"; then ok; else bad "$name: want '$1' in: $(cat "$tmp/err")"; fi
}
silent() {
    if grep -q -e "$1" "$tmp/err"; then bad "$name: '$1' in: $(cat "$tmp/err")"; else ok; fi
}

# refused NAME STATUS TEXT ARGS...: in one line that has the text.
refused() {
    name=$1 want=$2 text=$3
    shift 3
    "$run" "$@" > "$tmp/out" 2> "$tmp/err" < /dev/null
    got=$?
    if [ $got -eq "$want" ] && [ ! -s "$tmp/out" ] && [ "$(wc -l < "$tmp/err")" -eq 1 ] &&
       grep -q -e "$text" "$tmp/err"; then ok
    else bad "$name: exit status $got, want $want and '$text': $(cat "$tmp/err")"; fi
}

# ---- What is typed, and what the model reads -----------------------------------------------------

# reads TEXT ARGS... < TURNS: the pieces of all that was read, with nothing between them.
reads() {
    text=$1
    shift
    "$run" "$@" -m chat -n 1 -t 0 --show-tokens > "$tmp/out" 2> "$tmp/err"
    got=$(sed -n 's/^pieces: //p' "$tmp/err" | tr -d ' \n')
    case $got in *"$text"*) ok ;; *) bad "$* reads $got, want $text" ;; esac
}
printf 'one\r\n\n\r\ntwo \\\nthree\\\n\nfour\n' > "$tmp/turns"
reads "[INST]▁one▁[/INST]" "$m" < "$tmp/turns"
reads "[INST]▁two▁<0x0A>three▁[/INST]" "$m" < "$tmp/turns"
reads "[INST]▁four▁[/INST]" "$m" < "$tmp/turns"
if [ "$(grep -c ^tokens: "$tmp/err")" -eq 3 ]; then ok; else bad "empty lines are turns"; fi
if grep ^tokens: "$tmp/err" | grep -qvE '^tokens:( [0-9]+)+$'; then bad "tokens: no ids"
else ok; fi
printf '//clear\n' > "$tmp/turns"
reads "[INST]▁/clear▁[/INST]" "$m" < "$tmp/turns"
printf 'one\n/clear\ntwo\n/other\n' > "$tmp/turns"
reads "<</SYS>><0x0A><0x0A>one▁[/INST]" "$m" -y "Be ▁brief." < "$tmp/turns"
reads "[INST]▁/other▁[/INST]" "$m" < "$tmp/turns"
"$run" "$m" -m chat -n 1 -t 0 --show-tokens -y Brief < "$tmp/turns" > "$tmp/out" 2> "$tmp/err"
got=$(sed -n 's/^pieces: //p' "$tmp/err" | tr -d ' ' | sed -n 2p)
if [ "$got" = "two▁[/INST]" ]; then ok; else bad "after /clear it reads $got"; fi
reads "one" "$m" -y "" < "$tmp/turns"
if grep -q SYS "$tmp/err"; then bad "-y '' writes a system's text"; else ok; fi
printf 'last words' > "$tmp/turns"
reads "last▁words" "$m" < "$tmp/turns"
reads "S:Hi<0x0A>U:last▁words<|A:" "$m" -y Hi --chat-format 'S:{}\n|U:|<|A:|E' < "$tmp/turns"

printf '\357\273\277A file.\n' > "$tmp/bom"
reads "[INST]▁A▁file.<0x0A>▁[/INST]" "$m" -f "$tmp/bom" --chat-format mistral < /dev/null
reads "[INST]▁A▁file.<0x0A><0x0A>Why?▁[/INST]" "$m" -f "$tmp/bom" -i 'Why?' < /dev/null
printf '// a comment\n' > "$tmp/slashes"
reads "//▁a▁comment" "$m" -f "$tmp/slashes" < /dev/null
"$run" "$m" -f "$tmp/bom" -i 'Why?' -n 5 -t 0 > "$tmp/out" 2> "$tmp/err"
printf 'A file.\n\nWhy?' | "$run" "$m" -f - -n 5 -t 0 > "$tmp/want" 2> /dev/null
if [ -s "$tmp/want" ] && cmp -s "$tmp/out" "$tmp/want"; then ok
else bad "-f and -i: $(cat "$tmp/out" "$tmp/err")"; fi
printf '\377\376A\000' > "$tmp/utf16"
refused "UTF-16" 1 "iconv -f UTF-16" "$m" -f "$tmp/utf16"
printf '\376\377\000A' > "$tmp/utf16"
refused "UTF-16, the other way" 1 "iconv -f UTF-16" "$m" -m chat -f "$tmp/utf16"

# ---- Formats -------------------------------------------------------------------------------------

refused "a format that is none" 2 "want chatml, llama3" "$m" -m chat --chat-format nosuch
refused "three parts" 2 "SYSTEM|USER|REPLY|END" "$m" -m chat --chat-format 'a|b|c'
refused "no such choice" 2 "no such choice" "$g" -m chat --no-think
sed 's/for m in messages/for m of messages/' "$g" > "$tmp/bad.gguf"
refused "a template that is not understood" 1 "a for without its in" "$tmp/bad.gguf" -m chat
says "chatml, llama3, gemma"
"$run" "$tmp/bad.gguf" -m info > "$tmp/out" 2> "$tmp/err" < /dev/null
if grep -q "chat format  *unknown" "$tmp/out"; then ok; else bad "info of it: $(cat "$tmp/out")"; fi
chat "another format" 0 "$tmp/bad.gguf" -m chat --chat-format chatml -i Hi -n 3 < /dev/null
sed 's/tokenizer.chat_template/tokenizer.chat_templatx/' "$g" > "$tmp/none.gguf"
if cmp -s "$g" "$tmp/none.gguf"; then bad "there was no template"; else ok; fi
"$run" "$tmp/none.gguf" -m chat -i Hi -n 3 > "$tmp/out" 2> "$tmp/err" < /dev/null
if grep -q "no chat template" "$tmp/err"; then ok; else bad "no template: $(cat "$tmp/err")"; fi

# ---- Endings -------------------------------------------------------------------------------------

printf 'Hello\nHow are you?\n' > "$tmp/turns"
chat "-n" 0 "$m" -m chat -t 0 -n 5 < "$tmp/turns"
says "the reply was cut by -n"
says "; seed [0-9]*; ended by the user"
chat "a full context" 0 "$m" -m chat -t 0 -c 100 -i Hello < /dev/null
says "the reply was cut by a full context (see -c, --window)"
for i in 1 2 3 4 5 6 7 8 9; do echo "This is turn number $i"; done > "$tmp/many"
chat "many turns" 0 "$m" -m chat -t 0 -c 100 -n 9 -y Brief --show-tokens < "$tmp/many"
says "the context of 100 tokens is full: the oldest turns (1) are forgotten; use -c"
if [ "$(grep -c ^tokens: "$tmp/err")" -eq 9 ]; then ok; else bad "not all turns are answered"; fi
last=$(grep ^pieces: "$tmp/err" | tail -n 1 | tr -d ' ')
if [ "${last%"turn▁number▁9▁[/INST]"}" != "$last" ]; then ok
else bad "the last turn: $(tail -n 2 "$tmp/err")"; fi
chat "--keep-all" 0 "$m" -m chat -t 0 -c 100 -n 9 --keep-all < "$tmp/many"
says "this turn does not fit into the context of 100 tokens"
silent "forgotten"
(echo Hello; seq 200 | tr '\n' ' '; echo; echo Hello) > "$tmp/long"
chat "a turn that is too long" 0 "$m" -m chat -t 0 -c 100 -n 5 --show-tokens < "$tmp/long"
says "this turn does not fit into the context of 100 tokens"
if [ "$(grep -c ^tokens: "$tmp/err")" -eq 2 ]; then ok; else bad "the turns around it"; fi
silent "forgotten"
last=$(grep ^pieces: "$tmp/err" | tail -n 1 | tr -d ' ')
case $last in *"</s>"*"[INST]▁Hello▁[/INST]") ok ;; *) bad "the turn before it: $last" ;; esac
chat "a window" 0 "$m" -m chat -t 0 --window 40 --sinks 4 -n 60 --chunk 8 < "$tmp/many"
silent "forgotten"

# A text that has grown past L is read with LongRoPE's long list; after /clear it is short again.
"$build/make_gguf" "$tmp/long.gguf" llama f32 spm longrope
printf '%s\n/clear\nHello there\n' "$(seq 70 | tr '\n' ' ')" > "$tmp/turns"
echo "Hello there" > "$tmp/fresh"
chat "longrope, one turn" 0 "$tmp/long.gguf" -m chat -t 0 -n 9 < "$tmp/fresh"
cp "$tmp/out" "$tmp/want"
chat "longrope, /clear" 0 "$tmp/long.gguf" -m chat -t 0 -n 9 < "$tmp/turns"
tail -c "$(wc -c < "$tmp/want")" "$tmp/out" > "$tmp/last"
if [ -s "$tmp/want" ] && cmp -s "$tmp/want" "$tmp/last"; then ok; else bad "longrope after /clear"; fi

# A cache that was cut back gives the text of one that never held more, a window's, too.
printf 'one\n%s\n/clear\nWhat is it?\n' "$(seq 90 | tr '\n' ' ')" > "$tmp/turns"
printf 'What is it?\n' > "$tmp/fresh"
for how in "-c 2000" "-c 2000 --kv f32 --chunk 5" "--window 40 --chunk 8" \
    "--window 40 --sinks 4 --chunk 8"; do
    # shellcheck disable=SC2086 # the words of $how are options
    chat "cut back, $how" 0 "$m" -m chat -t 0 -n 30 $how -y Brief < "$tmp/turns"
    tail -n 1 "$tmp/out" > "$tmp/text1"
    # shellcheck disable=SC2086
    chat "never more, $how" 0 "$m" -m chat -t 0 -n 30 $how -y Brief < "$tmp/fresh"
    tail -n 1 "$tmp/out" > "$tmp/text2"
    if [ -s "$tmp/text1" ] && cmp -s "$tmp/text1" "$tmp/text2"; then ok
    else bad "$how: $(cat "$tmp/text1") is not $(cat "$tmp/text2")"; fi
done

# The seed that is told gives the text again; without -s there are two (a random model likes one token
# much: it has to be hot for texts that are never alike by chance).
for i in 1 2; do
    "$run" "$m" -i Once -n 20 -t 9 -p 1 > "$tmp/text$i" 2> "$tmp/err"
    seed=$(sed -n 's/.*; seed \([0-9]*\);.*/\1/p' "$tmp/err")
done
if cmp -s "$tmp/text1" "$tmp/text2"; then bad "two runs are alike"; else ok; fi
"$run" "$m" -i Once -n 20 -t 9 -p 1 -s "$seed" > "$tmp/text1" 2> "$tmp/err"
if cmp -s "$tmp/text1" "$tmp/text2"; then ok; else bad "seed $seed gives another text"; fi
"$run" "$m" -i Once -n 20 -t 9 -p 1 -s "$seed" --no-echo > "$tmp/text2" 2> "$tmp/err"
if [ "Once$(cat "$tmp/text2")" = "$(cat "$tmp/text1")" ]; then ok
else bad "--no-echo: $(cat "$tmp/text2")"; fi
"$run" "$m" -i Once -n 20 -t 0 > "$tmp/out" 2> "$tmp/err"
says "ended by -n"

# ---- A terminal ----------------------------------------------------------------------------------

# on_terminal NAME STATUS ARGS... < SCRIPT
on_terminal() {
    name=$1 want=$2
    shift 2
    "$build/terminal" "$tmp/err" "$run" "$@" 2> "$tmp/why"
    got=$?
    if [ $got -eq "$want" ]; then ok
    else bad "$name: exit status $got, want $want: $(cat "$tmp/why") $(tail -c 300 "$tmp/err")"; fi
}

{
    for i in 1 2 3 4 5 6 7 8 9 10; do printf '? > \n> This is turn %s\n? cut by -n\n' $i; done
    printf '? > \n> one \\\n? | \n> two\n? cut by -n\n? > \n^D\n? ended by the user\n'
} > "$tmp/script"
on_terminal "ten turns" 0 "$m" -m chat -t 0 -n 8 --kv f32 < "$tmp/script"
printf '? > \nline 5000\n? cut a line to 4095 bytes\n? cut by\n? > \n^D\n? ended\n' > "$tmp/script"
on_terminal "a long line" 0 "$m" -m chat -t 0 -n 2 -c 20000 < "$tmp/script"
printf '? > \nline 4000\n? cut by\n? > \n^D\n? ended\n' > "$tmp/script"
on_terminal "a line that fits" 0 "$m" -m chat -t 0 -n 2 -c 20000 < "$tmp/script"
silent "terminal cut"
cat > "$tmp/script" << 'END'
? > 
> Hello
? Hello
more 40
^C
? the reply was cut by Ctrl-C
? > 
> Again
? Again
more 40
^C
? the reply was cut by Ctrl-C
? > 
^C
? ended by the user
END
on_terminal "Ctrl-C in replies and at the prompt" 0 "$m" -m chat -t 0 --window 50 < "$tmp/script"
{
    for i in 1 2 3 4 5 6 7 8 9; do printf '? > \n> This is turn %s\n? cut by -n\n' $i; done
    printf '? > \n^D\n? ended by the user\n'
} > "$tmp/script"
on_terminal "past the context" 0 "$m" -m chat -t 0 -n 20 -c 100 < "$tmp/script"
says "are forgotten"

report
