#!/bin/bash
# Run the engine's tests on modules built with the address and undefined-behaviour sanitizers.
#
# The modules are built in a copy of the sources (build/asan), so that the ordinary ones stay.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/sanitizer_build.sh

build_copy build/asan address,undefined
names_tests "$@" || set -- tests/engine "$@"
# What measures memory or time (`cheap`) measures the sanitizer here.
# Python itself frees nothing at its end, so leaks are not told from its own. Tests that preload a
# library of their own come before the sanitizer, which is no harm to it.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:verify_asan_link_order=0 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -m pytest -k "not cheap" "$@"
