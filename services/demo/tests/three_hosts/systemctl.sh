#!/bin/sh
# systemctl for services that are one process: runs what the unit file says, as the user that it says.
set -eu
state=$HOST/run
mkdir -p "$state" "$HOST/journal"

value() { sed -n "s/^$2=//p" "/etc/systemd/system/$1.service" | tail -n 1; }

start() {
  user=$(value "$1" User)
  install -d -m "$(value "$1" StateDirectoryMode)" -o "$user" -g "$user" "/var/lib/$(value "$1" StateDirectory)"
  pipe=$state/$1.started
  rm -f "$pipe"
  # A keeper waits for the process, so that a process id that is noted is one that lives.
  (
    cd /
    setpriv --reuid "$user" --regid "$user" --init-groups --no-new-privs --bounding-set=-all \
      env -i PATH=/usr/local/bin:/usr/bin:/bin $(value "$1" ExecStart) &
    echo $! > "$state/$1.pid"
    touch "$pipe"
    code=0
    wait $! || code=$?
    echo "$code" > "$state/$1.code"
    rm "$state/$1.pid"
  ) >> "$HOST/journal/$1" 2>&1 < /dev/null &
  until [ -e "$pipe" ]; do sleep 0.05; done
}

stop() {
  if [ -e "$state/$1.pid" ]; then kill "$(cat "$state/$1.pid")"; fi
  while [ -e "$state/$1.pid" ]; do sleep 0.05; done
}

case "$*" in
  daemon-reload) ;;
  "enable --now "*) start "$3" ;;
  "start "*) start "$2" ;;
  "stop "*) stop "$2" ;;
  "restart "*) stop "$2"; start "$2" ;;
  "reload "*) kill -HUP "$(cat "$state/$2.pid")" ;;
  "is-active "*) [ -e "$state/$2.pid" ] ;;
  *) echo "systemctl: the test does not know: $*" >&2; exit 1 ;;
esac
