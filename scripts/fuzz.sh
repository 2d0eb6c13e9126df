#!/bin/bash
# Give the engine's parsers arbitrary bytes: FUZZ_EXECUTIONS inputs in all (200000), guided by
# coverage. See docs/testing.md.
#
#   fuzz.sh [TARGET...]      handshake request_stream link control; all unless said
#
# FUZZ_SEED makes a run repeatable. What libFuzzer found worth keeping stays in build/fuzz/corpus
# for the next run; an input that fails is in build/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/.."

EXECUTIONS=${FUZZ_EXECUTIONS:-200000}
SEED=${FUZZ_SEED:-0}      # 0: another one each time
# Out of 20 inputs, how many are for whom.
declare -A SHARE=([handshake]=4 [request_stream]=14 [link]=1 [control]=1)
COPY=$PWD/build/fuzz
python=$PWD/.venv/bin/python
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || targets=(handshake request_stream link control)

"$python" -c 'import atheris' 2>/dev/null ||
    { echo "fuzz: atheris has no build for this Python or machine; see docs/testing.md" >&2; exit 1; }
mkdir -p "$COPY/findings"
"$python" tests/fuzz/build.py "$COPY" > "$COPY/build.log" 2>&1 || { cat "$COPY/build.log" >&2; exit 1; }
# Only the native target needs the address sanitizer; Python alone is several times faster without.
sanitizer=$("$python" -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 PYTHONPATH=$COPY
"$python" -m tests.fuzz.seeds "$COPY/seeds"
cd "$COPY"
for target in "${targets[@]}"; do
    runs=$((EXECUTIONS * ${SHARE[$target]} / 20))
    preload=
    [ "$target" != request_stream ] || preload=$sanitizer
    mkdir -p "corpus/$target"
    echo "fuzz: $target, $runs executions"
    if ! LD_PRELOAD=$preload "$python" -m tests.fuzz.run "$target" -runs="$runs" -seed="$SEED" \
        -max_len=400 -timeout=20 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 \
        -artifact_prefix="findings/$target-" "corpus/$target" "seeds/$target" > "$target.log" 2>&1
    then
        tail -n 60 "$target.log" >&2
        echo "fuzz: $target failed; the input is in $COPY/findings" >&2
        exit 1
    fi
    grep -E 'number_of_executed_units|average_exec_per_sec|new_units_added' "$target.log"
done
