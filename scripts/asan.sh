#!/bin/bash
# Run the engine's tests on modules built with the address and undefined-behaviour sanitizers.
#
# The modules are built in a copy of the sources (build/asan), so that the ordinary ones stay.
set -euo pipefail
cd "$(dirname "$0")/.."

COPY=build/asan
SANITIZERS=-fsanitize=address,undefined
mkdir -p "$COPY"
# Only what changed is copied, so that only that is built again.
tar -cf - --exclude='*.so' --exclude='*.c' --exclude=__pycache__ \
    facade broker beans notifier console demo tests setup.py pyproject.toml |
    tar -xf - -C "$COPY" --keep-newer-files 2>/dev/null || true
python=$PWD/.venv/bin/python
cd "$COPY"
CFLAGS="-g -O1 -fno-omit-frame-pointer $SANITIZERS" LDFLAGS="$SANITIZERS" \
    "$python" setup.py --quiet build_ext --inplace -j"$(nproc)" > asan-build.log 2>&1 ||
    { cat asan-build.log >&2; exit 1; }
# Programs that are not ours run without the sanitizer: some hang under it.
mkdir -p tools
for tool in qemu-img qemu-io qemu-nbd qemu-storage-daemon nbdkit nbdcopy nbdinfo nbdfuse fio mke2fs; do
    if real=$(command -v "$tool"); then
        printf '#!/bin/sh\nunset LD_PRELOAD\nexec %s "$@"\n' "$real" > "tools/$tool"
        chmod +x "tools/$tool"
    fi
done
# What measures memory or time (`cheap`) measures the sanitizer here.
# Python itself frees nothing at its end, so leaks are not told from its own. Tests that preload a
# library of their own come before the sanitizer, which is no harm to it.
PATH="$PWD/tools:$PATH" LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:verify_asan_link_order=0 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -m pytest tests/engine -k "not cheap" "$@"
