#!/bin/sh
# Makes the consortium's authority and issues every party of docker-compose.yml its certificate, each
# into that party's own volume, and then waits. Repeating it changes nothing that is in order.
#
# Runs as root of its container, with CAP_CHOWN as the only capability and without a network: folders
# stay root's, so that no party can change its certificates, and each party can read its own key.
set -eu

authority=/authority
parties=/parties
user=10001:10001
# Seen by the health check of docker-compose.yml. Lies in memory, so it ends with the container.
done_file=/tmp/issued

# issue VOLUME ROLE NAME
issue() {
    folder=$parties/$1
    case $2 in
    # Prometheus verifies the name that it dials; Concilium's own programs know the servers without.
    server) file=$3 host="--dns $3" ;;
    *) file=$2-$3 host= ;;
    esac
    # A volume that was filled by another authority, because that one's volume was removed, is of no use.
    if ! cmp -s "$authority/ca.pem" "$folder/ca.pem" || [ ! -s "$folder/$file.pem" ]; then
        rm -f "$folder/ca.pem" "$folder/$file.pem" "$folder/$file.key"
        # shellcheck disable=SC2086 # two words or none
        concilium-operator certs issue --ca "$authority" --role "$2" --name "$3" $host --out "$folder"
    fi
    chown "$user" "$folder/$file.key"
}

if [ ! -s "$authority/ca.pem" ]; then
    rm -f "$authority/ca.key"
    concilium-operator certs init "$authority"
fi
for index in 0 1 2; do
    issue "server-$index" server "server-$index"
done
for index in 0 1 2 3 4; do
    issue "owner-$index" owner "hospital-$index"
done
issue client client alice
issue operator operator north
: > "$done_file"
echo "all certificates are issued"

# `docker compose up --exit-code-from client` stops everything as soon as any container ends, also one
# that ended well. So this one stays, idle, until the others are stopped.
trap 'exit 0' TERM INT
sleep infinity &
wait
