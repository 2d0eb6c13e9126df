#!/bin/bash
# Bring this checkout's needs onto the machine, only where something is missing.
#
#   setup.sh SECTION...      sections of scripts/debian-packages.txt: build run test fuzz
#
# Debian packages first (by apt as root, or with a sudo that asks no password; otherwise the one
# command to type is printed), then .venv with the versions of scripts/constraints.txt. When
# nothing is missing it takes a fraction of a second and writes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

LIST=scripts/debian-packages.txt
VENV=.venv
STAMP=$VENV/.trellis-setup
DEBIAN_MODULES=/usr/lib/python3/dist-packages

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

holds() {  # FACT
    local what=${1#*:}
    case "$1" in
        program:*) PATH=$PATH:/usr/sbin:/sbin command -v "$what" >/dev/null ;;
        file:*) compgen -G "$what" >/dev/null ;;
        module:*) [ -n "$python" ] && case " $python_facts " in *" $what "*) ;; *) false ;; esac ;;
        header:*) [ -n "$python" ] && [ -e "$python_include/$what" ] ;;
        *) fail "$LIST: $1 is no fact that can be checked" ;;
    esac
}

missing_packages() {  # SECTION...
    local section package facts fact
    while read -r section package facts; do
        case "$section" in ''|'#'*) continue ;; esac
        case " $* " in *" $section "*) ;; *) continue ;; esac
        for fact in $facts; do
            if ! holds "$fact"; then echo "$package"; break; fi
        done
    done < "$LIST"
}

ask_python() {
    python=$(find_python)
    python_facts='' python_include=''
    [ -n "$python" ] || return 0
    { read -r python_facts; read -r python_include; } < <("$python" -c '
import importlib.util, sysconfig
print(*(n for n in ("venv", "ensurepip") if importlib.util.find_spec(n)))
print(sysconfig.get_path("include"))')
}

install_packages() {  # SECTION...
    local missing
    ask_python
    mapfile -t missing < <(missing_packages "$@")
    if [ -z "$python" ]; then missing+=(python3); fi
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        fail "these are missing, and there is no apt-get to install them: ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    if [ "$(id -u)" = 0 ]; then
        scripts/install-debian-packages.sh "${missing[@]}"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n scripts/install-debian-packages.sh "${missing[@]}"
    else
        fail "Debian packages are missing. Type this, then start again:
    sudo $PWD/scripts/install-debian-packages.sh ${missing[*]}"
    fi
    ask_python
    [ -n "$python" ] || fail "Python 3.11 or newer is needed, and this system's packages have none"
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" = 0 ] || fail "still missing after the installation: ${missing[*]}"
}

wanted_stamp() { cat pyproject.toml scripts/constraints.txt scripts/setup.sh | sha256sum; echo "$PWD"; }

link_debian_modules() {
    # Debian's libnbd is built for Debian's Python. Only its own files come into .venv, by a folder
    # of links and a .pth: all of dist-packages would shadow the pinned versions.
    local site tag folder file
    { read -r site; read -r tag; } < <("$VENV/bin/python" -c '
import sysconfig
print(sysconfig.get_path("purelib"))
print(sysconfig.get_config_var("EXT_SUFFIX"))')
    folder=$PWD/$VENV/debian-modules
    [ -e "$DEBIAN_MODULES/libnbdmod$tag" ] || return 0
    mkdir -p "$folder"
    for file in nbd.py "libnbdmod$tag"; do ln -sfn "$DEBIAN_MODULES/$file" "$folder/$file"; done
    printf '%s\n' "$folder" > "$site/trellis_debian_modules.pth"
}

make_venv() {
    if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted_stamp)" ] && [ -x "$VENV/bin/python" ] &&
        { [ ! -e "$DEBIAN_MODULES/nbd.py" ] || [ -e "$VENV/debian-modules/nbd.py" ]; }; then
        return
    fi
    if ! "$VENV/bin/python" -c '' 2>/dev/null; then
        say "making $VENV with $python"
        rm -rf "$VENV"
        "$python" -m venv "$VENV"
    fi
    rm -f "$STAMP"
    say "installing Python packages into $VENV"
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet install
        --constraint scripts/constraints.txt)
    "${pip[@]}" setuptools Cython
    # The compiled modules are built in place by `make build`, with all processors and a lock.
    BUILD_SKIP_EXTENSIONS=1 "${pip[@]}" --no-build-isolation --editable '.[dev]'
    link_debian_modules
    wanted_stamp > "$STAMP"
}

[ $# -gt 0 ] || fail "which sections? (build run test fuzz)"
install_packages "$@"
mkdir -p build
exec 9>build/.setup.lock
flock 9
make_venv
