#!/usr/bin/env bash
# The compose demo as a test: see usage() below.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'USAGE'
Usage: docker/test.sh [--keep]

Builds the image and runs docker-compose.yml as a project of its own (concilium-test), with volumes and
networks of its own, which are removed at the end:

  demo        `up --build --exit-code-from client` ends 0 with right labels; a second run on the same
              volumes too; the ledgers of the three servers agree
  isolation   who reaches whom, who sees which key, what a container may do
  killed      a server killed under a client's requests and restarted has lost nothing
  partition   a server cut off from the others: clients get a retryable error, and it heals
  monitoring  Prometheus reads the metrics of the three servers; skipped if its image is not here

  --keep      leave containers, networks and volumes for a look at them

Skipped, visibly, if no Docker engine or no Compose answers. Where no image can be pulled, run
docker/base-images.sh first. Exit codes: 0 passed or skipped, 1 failed, 2 wrong usage.
USAGE
}

keep=no
for argument in "$@"; do
    case $argument in
    --keep) keep=yes ;;
    --help | -h) usage && exit 0 ;;
    *)
        echo "docker/test.sh: unknown argument $argument; see --help" >&2
        exit 2
        ;;
    esac
done

if ! docker info >/dev/null 2>&1; then
    echo "SKIPPED docker/test.sh: no Docker engine answers"
    exit 0
fi
if docker compose version >/dev/null 2>&1; then
    program=(docker compose)
elif command -v docker-compose >/dev/null; then
    program=(docker-compose)
else
    echo "SKIPPED docker/test.sh: neither 'docker compose' nor 'docker-compose' is installed"
    exit 0
fi

# Not those of the demo, which may be running.
project=concilium-test
export DEMO_PEERS_PREFIX=${TEST_PEERS_PREFIX:-10.213.78}
export DEMO_PROMETHEUS_PORT=${TEST_PROMETHEUS_PORT:-19090}
export DEMO_IMAGE=${DEMO_IMAGE:-concilium}
# The same programs, built in less time.
export BUILD_PROFILE=${BUILD_PROFILE:-quick}
# Budget for 78 rows: two demos of 20 and the 22 rows of the tests below.
export DEMO_ROWS=0..20
work=$(mktemp -d)

compose() { "${program[@]}" --project-name "$project" --file docker-compose.yml "$@"; }
say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
passed() { say "ok      $*"; }
failure=
fail() {
    failure="FAILED  $*"
    say "$failure"
    exit 1
}

finish() {
    local status=$?
    if [ "$status" != 0 ]; then
        for log in "$work"/*; do
            [ -s "$log" ] || continue
            echo "--- the end of $(basename "$log")"
            tail -n 25 "$log"
        done
        compose logs --tail=15 server-0 server-1 server-2 || true
        # Once more below the logs, where whoever sees only the end of the output finds it.
        say "${failure:-ended with exit code $status}"
    fi
    if [ "$keep" = no ]; then
        compose --profile operator --profile monitoring down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 || true
    else
        say "kept: ${program[*]} --project-name $project down --volumes"
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# A command in a fresh container of a service, without what it depends on.
run() { compose run --rm --no-deps -T "$@" </dev/null; }
# Runs a line of bash in a running container.
inside() { docker exec "$(container "$1")" bash -c "$2"; }
container() { compose ps -q "$1"; }
operator() { run operator "$@"; }
# What each server's ledger says was spent, one number for each. The exit code is not asked: a server that
# dies between the commits of a batch leaves the others with a charge more, which `budget` reports.
spent() { (operator budget 2>"$work/budget-errors" || true) | awk '$1 == "digits" { print $3 }'; }
not_less() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a >= b) }'; }

# Fails unless the client's output holds 20 labels, half of them right. At this noise 17 are on
# average, and fewer than 10 in one run of a hundred thousand; guessing gives 2.
check_answer() {
    local labels accuracy
    labels=$(grep -cE '(^|[| ])[0-9]+ +(zero|one|two|three|four|five|six|seven|eight|nine) *$' "$1" || true)
    [ "$labels" = 20 ] || fail "$2: the client printed $labels labels, not 20"
    accuracy=$(sed -nE 's/.*accuracy +([0-9]+)\.[0-9]+ % of 20 rows.*/\1/p' "$1")
    [ "${accuracy:-0}" -ge 50 ] || fail "$2: accuracy ${accuracy:-unknown} %, at least 50 % are expected"
    grep -q '50 models of 5 owners' "$1" || fail "$2: not all 50 models of the 5 owners voted"
    passed "$2: 20 labels, $accuracy % right, 50 models of 5 owners voted"
}

servers_agree() {
    local values
    operator budget >"$work/budget" 2>&1 || fail "$1: 'concilium-operator budget' found a fault"
    values=$(awk '$1 == "digits" { print $3 }' "$work/budget")
    [ "$(wc -l <<<"$values")" = 3 ] && [ "$(sort -u <<<"$values")" = "$2" ] ||
        fail "$1: the ledgers say rho $(tr '\n' ' ' <<<"$values"), and $2 was expected three times"
    passed "$1: all three ledgers say rho $2"
}

wait_until_healthy() {
    local server id
    for server in server-0 server-1 server-2; do
        id=$(container "$server")
        for _ in $(seq 120); do
            [ "$(docker inspect --format '{{.State.Health.Status}}' "$id")" = healthy ] && continue 2
            sleep 1
        done
        fail "$server is not healthy after two minutes"
    done
}

demo() {
    compose --profile operator --profile monitoring down --volumes --remove-orphans >/dev/null 2>&1 || true
    compose up --build --exit-code-from client >"$work/first" 2>&1 || fail "demo: exit code $?, not 0"
    check_answer "$work/first" demo
    [ -z "$(docker ps -q --filter "label=com.docker.compose.project=$project")" ] ||
        fail "demo: containers still run after it has ended"
    compose up --exit-code-from client >"$work/second" 2>&1 || fail "demo again: exit code $?, not 0"
    check_answer "$work/second" "demo again"
    [ "$(grep -c 'was ready for task digits before' "$work/second")" = 50 ] ||
        fail "demo again: the 50 models were not found on the volumes"
    # 40 rows at 0.015625001.
    compose up -d server-0 server-1 server-2 owner-0 >"$work/servers" 2>&1
    wait_until_healthy
    servers_agree "demo" 0.62500004
}

# Fails if bash in the container of a service reaches host and port, or, with yes, unless it does.
reaches() {
    local found=no
    inside "$1" "timeout 2 bash -c '</dev/tcp/$2/$3'" 2>/dev/null && found=yes
    [ "$found" = "$4" ] || fail "isolation: $1 reaches $2:$3: $found, expected: $4"
}

isolation() {
    local server peer id address keys
    for server in 0 1 2; do
        peer=$(((server + 1) % 3))
        # The first two show that the other ones would notice.
        reaches owner-0 "server-$server" 7400 yes
        reaches "server-$server" "server-$peer" 7410 yes
        reaches owner-0 "server-$server" 7410 no
        reaches owner-0 "$DEMO_PEERS_PREFIX.1$server" 7410 no
        id=$(container "server-$server")
        address=$(docker inspect --format "{{(index .NetworkSettings.Networks \"${project}_front-$server\").IPAddress}}" "$id")
        if docker run --rm --network bridge "$DEMO_IMAGE" timeout 2 bash -c "</dev/tcp/$address/7400" 2>/dev/null; then
            fail "isolation: a container of another network reaches server $server at $address:7400"
        fi
        run operator status --server "$server" >"$work/status" 2>&1 || fail "isolation: the operator does not reach server $server"
    done
    passed "isolation: owners reach the servers' front ports, not their peer ports; other networks reach nothing"

    for id in $(docker ps -aq --filter "label=com.docker.compose.project=$project"); do
        name=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.service"}}' "$id")
        if docker inspect --format '{{json .Config.Env}} {{json .Config.Cmd}}' "$id" | grep 'PRIVATE KEY' >/dev/null; then
            fail "isolation: a key in the environment of $name"
        fi
        if [ "$name" != certificates ]; then
            docker inspect --format '{{json .Mounts}}' "$id" | grep "${project}_authority" >/dev/null &&
                fail "isolation: $name mounts the authority"
            keys=$(docker inspect --format '{{range .Mounts}}{{println .Name}}{{end}}' "$id" | grep -c -- '-certificates$' || true)
            [ "$keys" = 1 ] || fail "isolation: $name mounts certificates of $keys parties"
        fi
    done
    docker history --no-trunc "$DEMO_IMAGE" | grep 'PRIVATE KEY' >/dev/null && fail "isolation: a key in the image's history"
    keys=$(docker run --rm --user 0 "$DEMO_IMAGE" grep -rlE -- '-----BEGIN [A-Z ]*PRIVATE KEY' /etc /home /opt /root /srv /var || true)
    [ -z "$keys" ] || fail "isolation: keys in the image: $keys"
    for name in server-0 owner-0; do
        keys=$(inside "$name" 'ls /etc/concilium/certificates/*.key')
        [ "$(wc -l <<<"$keys")" = 1 ] || fail "isolation: $name sees the keys $keys"
        inside "$name" 'touch /usr/local/bin/x /etc/concilium/x' 2>/dev/null && fail "isolation: $name can write to its image"
        inside "$name" 'echo >> /etc/concilium/certificates/ca.pem' 2>/dev/null && fail "isolation: $name can change its authority"
        [ "$(inside "$name" 'id -u')" = 10001 ] || fail "isolation: $name runs as another user"
        [ "$(inside "$name" "sed -n 's/^CapBnd:\t0*//p' /proc/1/status")" = "" ] || fail "isolation: $name has capabilities"
        inside "$name" 'grep -q "^NoNewPrivs:.*1" /proc/1/status' || fail "isolation: $name may gain privileges"
    done
    passed "isolation: each party sees its own key only, none is in the image; read-only, without privileges"
}

# Two requests answered, a third under way or about to be when the server dies. The client repeats each
# with its own id until it is answered, in a new process if need be.
killed() {
    local before after id models
    before=$(spent | sed -n '1p')
    id=$(container server-1)
    : >"$work/killed"
    run client sh -c '
        set -eu
        predict() { concilium-client predict --task digits --input /data/test_inputs.npy --batch 1 "$@"; }
        predict --rows 20..22 --repeat-key /tmp/key --json /tmp/before.json > /tmp/out
        echo READY
        attempts=0
        until predict --rows 20..32 --repeat-key /tmp/key --json /tmp/across.json > /tmp/out; do
            status=$?
            attempts=$((attempts + 1))
            [ "$status" = 4 ] && [ "$attempts" -lt 20 ] || exit "$status"
            sleep 1
        done
        predict --rows 20..32 --repeat-key /tmp/key --json /tmp/after.json > /tmp/out
        for file in before across after; do
            printf "%s" "$file"
            sed -n "/\"labels\"/,/]/p" "/tmp/$file.json" | tr -cd "0-9,"
            echo
        done' >"$work/killed" 2>"$work/killed-errors" &
    local client=$!
    for _ in $(seq 600); do
        grep -q READY "$work/killed" && break
        kill -0 "$client" 2>/dev/null || fail "killed: the client ended early"
        sleep 0.1
    done
    docker kill --signal KILL "$id" >/dev/null
    [ "$(docker inspect --format '{{.State.Running}}' "$id")" = false ] || fail "killed: server 1 still runs"
    docker start "$id" >/dev/null
    wait "$client" || fail "killed: the client ended with exit code $?"
    local first across again
    first=$(sed -n 's/^before//p' "$work/killed")
    across=$(sed -n 's/^across//p' "$work/killed")
    again=$(sed -n 's/^after//p' "$work/killed")
    [ -n "$first" ] && [ "$across" = "$again" ] && [ "${across#"$first"}" != "$across" ] ||
        fail "killed: the same requests were answered $first, $across and $again"
    passed "killed: twelve requests answered around the death of server 1, repeats got the same labels"

    wait_until_healthy
    after=$(spent)
    [ "$(wc -l <<<"$after")" = 3 ] || fail "killed: not all three servers show their ledgers"
    # Twelve rows. A request that was charged when the server died may be charged again, never less.
    for value in $after; do
        not_less "$value" "$(awk -v b="$before" 'BEGIN { printf "%.9f", b + 12 * 0.015625001 }')" ||
            fail "killed: a ledger says rho $value after twelve rows upon $before"
    done
    models=$(run owner-0 concilium-owner list 2>"$work/list" | grep -c 'ready' || true)
    [ "$models" = 10 ] || fail "killed: $models of the ten models of owner 0 are ready"
    passed "killed: no ledger has lost a charge, the models are ready"
}

partition() {
    local id peers=${project}_peers status=0 line
    local ask=(client concilium-client predict --task digits --input /data/test_inputs.npy --rows 40..41)
    id=$(container server-1)
    docker network disconnect "$peers" "$id"
    run "${ask[@]}" >"$work/partition" 2>&1 || status=$?
    [ "$status" = 4 ] || fail "partition: the client ended with exit code $status, not 4 (unavailable)"
    line=$(grep '^error: ' "$work/partition" || true)
    # At first a request's parts are missing on server 1; once its silence is noticed, its link is.
    grep -qE 'server [0-2] ((at [^ ]* )?(does not answer|is not connected)|did not (answer|dial))' <<<"$line" &&
        grep -qE 'repeat|again|later' <<<"$line" ||
        fail "partition: the client does not say which server, and that the call may be repeated"
    passed "partition: exit code 4: $line"
    docker network connect --ip "$DEMO_PEERS_PREFIX.11" --alias server-1 "$peers" "$id"
    # The servers' connections come back by themselves, the later the longer they were cut.
    for _ in $(seq 12); do
        status=0
        run "${ask[@]}" >"$work/healed" 2>&1 || status=$?
        [ "$status" = 4 ] || break
    done
    [ "$status" = 0 ] || fail "partition: exit code $status after it has healed"
    passed "partition: healed by itself"
}

# The answer of Prometheus to a query that is encoded as in a URL.
query() {
    # A connection that closes before the request is written is an answer that is not there yet, not an
    # end by signal: bash writes a request's lines one by one.
    trap '' PIPE
    exec 3<>"/dev/tcp/127.0.0.1/$DEMO_PROMETHEUS_PORT" || return
    printf 'GET /api/v1/query?query=%s HTTP/1.0\r\n\r\n' "$1" >&3
    cat <&3
    exec 3>&-
}

monitoring() {
    local image=${PROMETHEUS_IMAGE:-prom/prometheus:latest} answer
    if ! docker image inspect "$image" >/dev/null 2>&1; then
        say "SKIPPED monitoring: $image is not here; docker/base-images.sh --monitoring provides it"
        return
    fi
    compose --profile monitoring up -d prometheus >"$work/prometheus" 2>&1 ||
        fail "monitoring: Prometheus does not start"
    for _ in $(seq 60); do
        # concilium_models{task="digits",state="ready"}
        answer=$(query 'concilium_models%7Btask%3D%22digits%22%2Cstate%3D%22ready%22%7D' 2>/dev/null || true)
        if [ "$(grep -o '"50"' <<<"$answer" | wc -l)" = 3 ]; then
            passed "monitoring: all three servers tell Prometheus of 50 ready models"
            return
        fi
        sleep 1
    done
    compose logs --tail=10 prometheus
    fail "monitoring: Prometheus does not know of 50 models on three servers: ${answer##*$'\n'}"
}

say "image $DEMO_IMAGE, ${program[*]}, project $project"
demo
isolation
killed
partition
monitoring
say "docker/test.sh passed"
