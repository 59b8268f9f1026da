#!/usr/bin/env bash
# Run the tests in several processes: run_shards.sh PYTHON COUNT [pytest arguments]. What fails is shown whole.
set -euo pipefail
python=$1 count=$2
shift 2
logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$logs"' EXIT

for ((i = 0; i < count; i++)); do
    "$python" -m pytest --shard "$i/$count" -p no:cacheprovider "$@" >"$logs/$i" 2>&1 &
    processes[i]=$!
done
status=0
for ((i = 0; i < count; i++)); do
    if wait "${processes[i]}"; then
        printf 'shard %d of %d: %s\n' "$((i + 1))" "$count" "$(tail -n 1 "$logs/$i")"
    else
        status=1
        cat "$logs/$i"
    fi
done
exit "$status"
