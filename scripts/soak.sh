#!/bin/bash
# Run the federation, fault and end-to-end tests again and again for SOAK_MINUTES (60).
set -euo pipefail
cd "$(dirname "$0")/.."

MINUTES=${SOAK_MINUTES:-60}
export TEST_POWER_CUT_ROUNDS=${TEST_POWER_CUT_ROUNDS:-500}
export TEST_FAULT_STRIDE=${TEST_FAULT_STRIDE:-1}
export TEST_KILL_ROUNDS=${TEST_KILL_ROUNDS:-200}
suites=()
for suite in tests/engine tests/federation tests/faults tests/e2e; do
    if compgen -G "$suite/test_*.py" >/dev/null; then suites+=("$suite"); fi
done
end=$((SECONDS + MINUTES * 60))
round=0
while [ "$SECONDS" -lt "$end" ]; do
    round=$((round + 1))
    echo "soak: round $round, $(((end - SECONDS) / 60)) minutes left"
    .venv/bin/python -m pytest -q -m "not install" "${suites[@]}"
done
echo "soak: $round rounds without a failure"
