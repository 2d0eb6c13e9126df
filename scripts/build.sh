#!/bin/bash
# Compile the engine's modules in place; silent and quick when nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."

LOG=build/build.log
STAMP=build/.built

# Sources gone or renamed leave a module behind that would still be imported.
for module in facade/engine/*.so; do
    name=$(basename "${module%%.*}")
    if [ -e "$module" ] && [ "$name" != _cyutility ] && [ ! -e "facade/engine/$name.pyx" ]; then
        rm -f "$module" "facade/engine/$name.c"
    fi
done

fresh() {
    [ -e "$STAMP" ] || return 1
    [ -z "$(find setup.py .venv/pyvenv.cfg facade/engine \
        \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name setup.py -o -name pyvenv.cfg \) \
        -newer "$STAMP" -print -quit)" ] || return 1
    local source
    for source in facade/engine/*.pyx; do
        compgen -G "${source%.pyx}.*.so" >/dev/null || return 1
    done
}

mkdir -p build
if [ -z "${CFLAGS:-}${BUILD_TRACE:-}${BUILD_KEEP_GOING:-}" ] && fresh; then exit 0; fi
echo "building the engine"
started=$(mktemp build/started.XXXXXX)
if ! .venv/bin/python setup.py --quiet build_ext --inplace -j"$(nproc)" > "$LOG" 2>&1; then
    cat "$LOG" >&2
    rm -f "$started"
    exit 1
fi
grep -E 'warning:' "$LOG" >&2 || true
# The stamp has the time of the start: a source saved during the build is built again.
mv "$started" "$STAMP"
