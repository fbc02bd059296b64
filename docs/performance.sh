#!/bin/sh
# Measures everything that docs/performance.md shows, and writes the tables into it between its two marks.
#
#   docs/performance.sh [OPTION of `concilium-demo bench --tables all`]...
#
# For instance: docs/performance.sh --repeat 50 --seed 7. Nothing else should run on the machine meanwhile.
set -eu
cd "$(dirname "$0")/.."
document=docs/performance.md
cargo build --release -p concilium-demo
tables=$(mktemp)
trap 'rm -f "$tables" "$document.new"' EXIT
"${CARGO_TARGET_DIR:-target}/release/concilium-demo" bench --tables all "$@" > "$tables"
awk -v tables="$tables" '
    /^<!-- tables: end -->$/ { inside = 0 }
    !inside { print }
    /^<!-- tables: begin -->$/ {
        inside = 1
        print ""
        while ((getline line < tables) > 0) print line
    }
' "$document" > "$document.new"
cat "$document.new" > "$document"
