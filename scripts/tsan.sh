#!/bin/bash
# Run the engine's threaded tests on modules built with the thread sanitizer.
#
# The modules are built in a copy of the sources (build/tsan), so that the ordinary ones stay.
# Python itself is not instrumented: what it synchronizes by its own lock looks unsynchronized to
# the sanitizer, so tests/tsan.supp leaves out races that have Python's own frames on top.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/sanitizer_build.sh

# What shares memory between threads without Python's lock.
SUITES=(test_nbd_requests.py test_nbd_structured.py test_nbd_extended.py test_nbd_memory.py
    test_nbd_status.py test_nbd_slow_clients.py test_nbd_slow_tcp_clients.py test_nbd_tls.py
    test_io_pool.py
    test_volume_stack.py test_volume_conformance.py test_read_only_volume.py test_resize.py
    test_power_cut_volume.py test_bitmap.py test_change_map.py test_hot_extents.py
    test_block_kernels.py test_copier.py test_link_peers.py test_link_faults.py
    test_replication_pair.py)
suppressions=$PWD/tests/tsan.supp

build_copy build/tsan thread
names_tests "$@" || set -- "${SUITES[@]/#/tests/engine/}" "$@"
rm -f tsan-report.*
status=0
# An engine process with a report goes on and ends as it would; the reports are counted below.
# The sanitizer wants its own places in memory: no randomized addresses.
LD_PRELOAD=$(gcc -print-file-name=libtsan.so) \
    TSAN_OPTIONS="suppressions=$suppressions:halt_on_error=0:exitcode=0:history_size=4:log_path=$PWD/tsan-report" \
    setarch "$(uname -m)" -R "$python" -m pytest -k "not cheap" "$@" || status=$?
if compgen -G 'tsan-report.*' > /dev/null; then
    echo "races, in $PWD/tsan-report.*:" >&2
    grep -hs '^SUMMARY' tsan-report.* | sort | uniq -c | sort -rn >&2 || true
    exit 1
fi
exit "$status"
