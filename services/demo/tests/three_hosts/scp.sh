#!/bin/sh
# scp between the hosts of the test, whose folders are in $HOSTS: scp [-r] SOURCE... TARGET
set -eu
recursive=
if [ "$1" = -r ]; then recursive=-r; shift; fi

# The file on this machine for PATH or [USER@]HOST[.example.org]:PATH.
file() {
  case $1 in
    *:/etc/* | *:/var/lib/*) ;;
    *:/*) echo "scp: the test keeps no $1" >&2; exit 1 ;;
    *:*) ;;
    *) echo "$1"; return ;;
  esac
  host=${1%%:*} path=${1#*:}
  host=${host#*@}
  host=${host%.example.org}
  if [ ! -d "$HOSTS/$host" ]; then echo "scp: could not resolve hostname $host" >&2; exit 1; fi
  case $path in
    /*) echo "$HOSTS/$host$path" ;;
    *) echo "$HOSTS/$host/home/$path" ;;
  esac
}

while [ $# -gt 1 ]; do
  sources="${sources-}$(file "$1")
"
  shift
done
target=$(file "$1")
printf %s "$sources" | while IFS= read -r source; do cp $recursive "$source" "$target"; done
