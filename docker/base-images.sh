#!/usr/bin/env bash
# Makes stand-ins for the images that docker/Dockerfile and docker-compose.yml start from, on machines
# that cannot pull them. See usage() below.
set -euo pipefail

# The public names, and the same defaults as in the Dockerfile and in docker-compose.yml.
build_image=rust:1-bookworm
runtime_image=debian:bookworm-slim
prometheus_image=prom/prometheus:latest

# Tells a stand-in from the image whose name it bears.
label=org.concilium.stand-in
suite=bookworm
# Without one mmdebstrap takes Debian's own.
mirror=${DEBIAN_MIRROR:-}
pull_seconds=${PULL_SECONDS:-60}
minimum_rust=88

usage() {
    cat <<USAGE
Usage: docker/base-images.sh [--offline] [--monitoring] [--list | --remove]

Provides the base images of docker/Dockerfile where no registry can be reached:

  $build_image       builds the programs
  $runtime_image   what the programs run in
  $prometheus_image  the profile "monitoring", only with --monitoring

An image that is here already is left alone, one that can be pulled is pulled. Only for the others a
stand-in of the same name is made, of Debian packages and the Rust toolchain that is installed here, so
that the very same Dockerfile and docker-compose.yml are built and run. A stand-in bears the label
$label and trusts the certificate authorities that this machine trusts.

  --offline     do not try to pull
  --monitoring  also the image of the profile "monitoring"
  --list        show the stand-ins on this machine and change nothing
  --remove      remove the stand-ins, so that the real images are pulled again
  --help        this text

Needs root for making a stand-in (it installs Debian packages into a folder), a Docker engine, and for
the build image Rust 1.$minimum_rust or newer. mmdebstrap is installed with apt-get if it is missing.

Variables: DEBIAN_MIRROR (its packages; default: Debian's own), PULL_SECONDS (how long a pull may take
before it is given up, default 60).

Exit codes: 0 all images are there, 1 an image can't be made, 2 wrong usage.
USAGE
}

say() { printf 'base-images: %s\n' "$*"; }
fail() {
    printf 'base-images: %s\n' "$*" >&2
    exit 1
}

offline=no
monitoring=no
action="make"
for argument in "$@"; do
    case $argument in
    --offline) offline=yes ;;
    --monitoring) monitoring=yes ;;
    --list) action=list ;;
    --remove) action=remove ;;
    --help | -h)
        usage
        exit 0
        ;;
    *)
        printf 'base-images: unknown argument %s; see --help\n' "$argument" >&2
        exit 2
        ;;
    esac
done

docker info >/dev/null 2>&1 ||
    fail "no Docker engine answers; start it, and check with 'docker info' that this user may use it"

stand_ins() { docker image ls --filter "label=$label" --format '{{.Repository}}:{{.Tag}}'; }

if [ "$action" = list ]; then
    docker image ls --filter "label=$label"
    exit 0
fi
if [ "$action" = remove ]; then
    stand_ins | while read -r image; do
        docker image rm "$image" >/dev/null
        say "removed the stand-in $image"
    done
    exit 0
fi

work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

present() { docker image inspect "$1" >/dev/null 2>&1; }

# Whether the image is there, after an attempt to pull it if need be.
available() {
    if present "$1"; then
        say "$1 is here"
        return 0
    fi
    [ "$offline" = no ] || return 1
    say "pulling $1"
    if timeout "$pull_seconds" docker pull --quiet "$1" >/dev/null 2>&1; then
        return 0
    fi
    say "$1 can't be pulled; making a stand-in"
    return 1
}

need_tools() {
    [ "$(id -u)" = 0 ] || fail "making a stand-in for $1 needs root, since Debian packages are installed into a folder"
    if ! command -v mmdebstrap >/dev/null; then
        command -v apt-get >/dev/null || fail "mmdebstrap is missing; install it with this system's packages"
        say "installing mmdebstrap"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends mmdebstrap >/dev/null
    fi
    work=$(mktemp -d)
}

# A minimal Debian with the given packages (separated by commas) in $work/tree.
debian_root() {
    say "installing Debian $suite ($1)"
    mmdebstrap --quiet --mode=root --variant=minbase --include="$1" \
        --aptopt='APT::Install-Recommends "false"' "$suite" "$work/tree" ${mirror:+"$mirror"}
    rm -rf "$work"/tree/var/cache/apt/archives/*.deb "$work"/tree/var/lib/apt/lists/* \
        "$work"/tree/usr/share/{doc,man,locale}/*
    # A machine behind a proxy that inspects TLS trusts that proxy's authority; what runs in the
    # container must as well, or it reaches no registry.
    if [ -s /etc/ssl/certs/ca-certificates.crt ]; then
        cp --dereference /etc/ssl/certs/ca-certificates.crt "$work/tree/etc/ssl/certs/ca-certificates.crt"
    fi
}

# Imports $work/tree under a name, with further instructions.
import_root() {
    local name=$1
    shift
    local changes=(--change "LABEL $label=$suite")
    for change in "$@"; do
        changes+=(--change "$change")
    done
    tar --create --numeric-owner --directory "$work/tree" . |
        docker import "${changes[@]}" --message "stand-in for $name" - "$name" >/dev/null
    rm -rf "$work"
    work=
    say "made a stand-in for $name, $(docker image inspect --format '{{.Size}}' "$name" | numfmt --to=si)B;" \
        "'docker/base-images.sh --remove' removes it"
}

make_runtime() {
    need_tools "$runtime_image"
    debian_root ca-certificates
    import_root "$runtime_image" 'CMD ["bash"]'
}

make_build() {
    command -v rustc >/dev/null && command -v cargo >/dev/null ||
        fail "a stand-in for $build_image is made of the Rust that is installed here, and there is none; see https://rustup.rs"
    local minor
    minor=$(rustc --version | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge "$minimum_rust" ] ||
        fail "$(rustc --version) is too old; Rust 1.$minimum_rust or newer is needed"
    need_tools "$build_image"
    # gcc and libc6-dev link and build the TLS library; make and perl build OpenSSL, if its
    # generator of random numbers is asked for. The real image has them all.
    debian_root ca-certificates,gcc,g++,libc6-dev,make,perl
    local toolchain
    toolchain=$(rustc --print sysroot)
    say "copying $(rustc --version) from the toolchain of this machine"
    cp -a "$toolchain/bin/cargo" "$toolchain/bin/rustc" "$work/tree/usr/local/bin/"
    cp -a "$toolchain/lib/." "$work/tree/usr/local/lib/"
    # The standard library's sources and further targets are not needed for a build.
    rm -rf "$work/tree/usr/local/lib/rustlib/src"
    mkdir -p "$work/tree/usr/local/cargo"
    import_root "$build_image" 'ENV CARGO_HOME=/usr/local/cargo' 'CMD ["bash"]'
}

make_prometheus() {
    need_tools "$prometheus_image"
    debian_root ca-certificates,prometheus
    # As the real image: Prometheus as entry point, not as root, its configuration in /etc.
    mkdir -p "$work/tree/prometheus" && chown 65534:65534 "$work/tree/prometheus"
    import_root "$prometheus_image" 'USER 65534:65534' 'WORKDIR /prometheus' \
        'ENTRYPOINT ["/bin/prometheus"]' \
        'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]'
}

available "$runtime_image" || make_runtime
available "$build_image" || make_build
if [ "$monitoring" = yes ]; then
    available "$prometheus_image" || make_prometheus
fi
