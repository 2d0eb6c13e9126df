# Sourced by asan.sh and tsan.sh: the engine built with sanitizers, in a copy of the sources.
#
# build_copy FOLDER SANITIZERS leaves the caller in FOLDER, with $python set and a folder of tools
# in front of PATH. names_tests WORD... tells whether pytest's arguments name files or folders.

names_tests() {
    local word
    for word; do
        [ ! -e "${word%%::*}" ] || return 0
    done
    return 1
}

build_copy() {
    local copy=$1 sanitizers=$2 tool real
    mkdir -p "$copy"
    # Only what changed is copied, so that only that is built again.
    tar -cf - --exclude='*.so' --exclude='*.c' --exclude=__pycache__ \
        facade broker beans notifier console demo tests setup.py pyproject.toml |
        tar -xf - -C "$copy" --keep-newer-files 2>/dev/null || true
    python=$PWD/.venv/bin/python
    cd "$copy"
    CFLAGS="-g -O1 -fno-omit-frame-pointer -fsanitize=$sanitizers" LDFLAGS="-fsanitize=$sanitizers" \
        "$python" setup.py --quiet build_ext --inplace -j"$(nproc)" > build.log 2>&1 ||
        { cat build.log >&2; exit 1; }
    # Programs that are not ours run without the sanitizer: some hang or crash under it, shells too,
    # so what starts them is Python.
    mkdir -p tools
    for tool in qemu-img qemu-io qemu-nbd qemu-storage-daemon nbdkit nbdcopy nbdinfo nbdfuse fio \
        mke2fs openssl; do
        if real=$(PATH=${PATH#"$PWD/tools:"} command -v "$tool"); then
            printf '#!%s -IS\nimport os, sys\nos.environ.pop("LD_PRELOAD", None)\nos.execv("%s", [%s])\n' \
                "$python" "$real" "'$real', *sys.argv[1:]" > "tools/$tool"
            chmod +x "tools/$tool"
        fi
    done
    PATH="$PWD/tools:$PATH"
}
