#!/bin/bash
# Run the engine's threaded tests on modules built with the thread sanitizer.
#
# The modules are built in a copy of the sources (build/tsan), so that the ordinary ones stay.
# Python itself is not instrumented: what it synchronizes by its own lock looks unsynchronized to
# the sanitizer, so tests/tsan.supp leaves out races that have Python's own frames on top.
set -euo pipefail
cd "$(dirname "$0")/.."

COPY=build/tsan
SANITIZER=-fsanitize=thread
# What shares memory between threads without Python's lock.
SUITES=(test_nbd_requests.py test_nbd_structured.py test_nbd_memory.py test_nbd_status.py
    test_io_pool.py test_volume_stack.py test_volume_conformance.py test_bitmap.py
    test_link_peers.py test_link_faults.py test_replication_pair.py)
mkdir -p "$COPY"
tar -cf - --exclude='*.so' --exclude='*.c' --exclude=__pycache__ \
    facade broker beans notifier console demo tests setup.py pyproject.toml |
    tar -xf - -C "$COPY" --keep-newer-files 2>/dev/null || true
python=$PWD/.venv/bin/python
suppressions=$PWD/tests/tsan.supp
cd "$COPY"
CFLAGS="-g -O1 -fno-omit-frame-pointer $SANITIZER" LDFLAGS="$SANITIZER" \
    "$python" setup.py --quiet build_ext --inplace -j"$(nproc)" > tsan-build.log 2>&1 ||
    { cat tsan-build.log >&2; exit 1; }
suites=()
for suite in "${SUITES[@]}"; do
    [ ! -e "tests/engine/$suite" ] || suites+=("tests/engine/$suite")
done
rm -f tsan-report.*
# The sanitizer wants its own places in memory: no randomized addresses.
LD_PRELOAD=$(gcc -print-file-name=libtsan.so) \
    TSAN_OPTIONS="suppressions=$suppressions:halt_on_error=0:exitcode=66:history_size=4:log_path=$PWD/tsan-report" \
    setarch "$(uname -m)" -R "$python" -m pytest -k "not cheap" "${@:-${suites[@]}}"
