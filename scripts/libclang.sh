# Finding libclang, which generates the bindings to PostgreSQL. Sourced, after env.sh.

# Prints the directory of libclang; fails if there is none.
find_libclang() {
    local dir file
    for dir in "${LIBCLANG_PATH:-}" "$RUN_DIR/libclang/clang/native" \
        "$(llvm-config --libdir 2>/dev/null || true)" \
        $(ls -d /usr/lib/llvm-*/lib 2>/dev/null | sort -Vr) /usr/lib/*-linux-gnu /usr/lib64 /usr/lib; do
        [ -n "$dir" ] || continue
        [ -f "$dir" ] && dir=$(dirname "$dir")
        for file in "$dir"/libclang.so* "$dir"/libclang-[0-9]*.so*; do
            if [ -e "$file" ]; then
                echo "$dir"
                return 0
            fi
        done
    done
    return 1
}

# For an ordinary user without sudo: the library alone, from PyPI.
fetch_libclang_wheel() {
    say "fetching libclang from PyPI"
    local fetched=$RUN_DIR/libclang
    rm -rf "$fetched"
    mkdir "$fetched"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --dest "$fetched" libclang==18.1.1 || return 1
    python3 -m zipfile -e "$fetched"/*.whl "$fetched"
    mv "$fetched"/*.data/platlib/clang "$fetched/clang"
    rm -r "$fetched"/*.whl "$fetched"/*.data
}

# Exports what bindgen needs to find the library and the headers that belong to a compiler
# (stddef.h and friends); a libclang without a clang beside it borrows those of gcc.
export_libclang() {
    local dir
    dir=$(find_libclang) || die "libclang is missing: run scripts/setup.sh"
    # In a system's directory it is found without help, and so are its headers if a clang is
    # installed; the variables are then left alone, for changing them rebuilds.
    case $dir in
        /usr/*) compgen -G "/usr/lib/clang/*/include/stddef.h" >/dev/null && return ;;
        *) export LIBCLANG_PATH=$dir ;;
    esac
    compgen -G "$dir/clang/*/include/stddef.h" >/dev/null && return
    export BINDGEN_EXTRA_CLANG_ARGS="${BINDGEN_EXTRA_CLANG_ARGS:-} -I$(cc -print-file-name=include)"
}
