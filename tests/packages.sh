#!/usr/bin/env bash
# Builds each package from a finished binary, installs it into an empty environment, and runs the
# program from there. Needs no network. A package whose tool is not installed is skipped; with
# CI=true only the .deb and the image may be.
#
# usage: tests/packages.sh BINARY [STATIC_BINARY]
set -euo pipefail

binary=$(realpath "$1")
static=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
package=(python3 src/packaging/package.py)
version=$(sed -n '0,/^version = "\(.*\)"$/s//\1/p' Cargo.toml)

fail() {
    printf 'tests/packages.sh: %s\n' "$*" >&2
    exit 1
}

skip() { # the package, why
    printf '%s: skipped, %s\n' "$1" "$2"
}

# The command for `run`. The images have no other program than this one.
command=(true)

# The program, after a command that starts it.
check() { # the package, command...
    local name=$1 shown
    shift
    shown=$("$@" --version)
    [ "$shown" = "upstreamproxy $version" ] || fail "$name: --version printed '$shown'"
    "$@" run --when never -- "${command[@]}" >/dev/null || fail "$name: run failed"
    printf '%s: ok\n' "$name"
}

if python3 -c 'import ensurepip, tomllib, venv' 2>"$work/error"; then
    wheel=$("${package[@]}" wheel "$binary" "$work")
    [ "$(SOURCE_DATE_EPOCH=315532800 "${package[@]}" wheel "$binary" "$work/again" |
        xargs sha256sum | cut -c-64)" = "$(sha256sum "$wheel" | cut -c-64)" ] ||
        fail 'wheel: the same input gave other bytes'
    python3 -m venv "$work/venv"
    "$work/venv/bin/python" -m pip install --quiet --no-index --disable-pip-version-check "$wheel"
    check "wheel ($(basename "$wheel"))" "$work/venv/bin/upstreamproxy"
    "$work/venv/bin/python" -m pip show --files upstreamproxy >"$work/shown"
    grep -q '^License-Expression: MIT OR Apache-2.0\|^License:' "$work/shown" || fail 'wheel: no licence'
    "$work/venv/bin/python" -m pip uninstall --quiet --yes upstreamproxy
    [ ! -e "$work/venv/bin/upstreamproxy" ] || fail 'wheel: the command is left after uninstalling'
elif [ "${CI:-}" = true ]; then
    fail "wheel: Python 3.11 with venv is needed: $(cat "$work/error")"
else
    skip wheel "Python 3.11 with venv is not installed"
fi

if command -v npm >/dev/null; then
    tarball=$("${package[@]}" npm "$binary" "$work")
    mkdir "$work/project"
    (
        cd "$work/project"
        npm install --offline --no-audit --no-fund --cache "$work/npm-cache" "$tarball" >"$work/npm.log" 2>&1 ||
            fail "npm: $(cat "$work/npm.log")"
        check npm npx --no-install upstreamproxy
    )
elif [ "${CI:-}" = true ]; then
    fail 'npm is not installed'
else
    skip npm 'npm is not installed'
fi

archive=$("${package[@]}" archive "$binary" "$work")
# The names that the metadata promises to cargo-binstall.
for field in pkg-url bin-dir; do
    target=$(basename "$archive" "-v$version.tgz")
    target=${target#upstreamproxy-}
    promised=$(sed -n "s/^$field = \"\(.*\)\"$/\1/p" Cargo.toml |
        sed "s/{ name }/upstreamproxy/g; s/{ bin }/upstreamproxy/g; s/{ version }/$version/g; s/{ target }/$target/g")
    case $field in
    pkg-url) [ "${promised##*/}" = "$(basename "$archive")" ] || fail "archive: $promised" ;;
    bin-dir) member=$promised ;;
    esac
done
mkdir "$work/archive"
tar --extract --gzip --file "$archive" --directory "$work/archive"
check 'archive of cargo-binstall' "$work/archive/$member"

if cargo deb --version >/dev/null 2>&1; then
    # A copy of the package with the binary at its place: nothing is compiled.
    mkdir -p "$work/deb/target/release" "$work/root"
    cp -r Cargo.toml Cargo.lock README.md LICENSE-* src tests benches "$work/deb/"
    cp "$binary" "$work/deb/target/release/upstreamproxy"
    "${package[@]}" pages "$binary" "$work/deb/target/pages" >/dev/null
    deb=$(cd "$work/deb" && env -u CARGO_TARGET_DIR cargo deb --no-build --no-strip --quiet --output "$work")
    [ -f "$deb" ] || deb=$(ls "$work"/*.deb)
    dpkg-deb --extract "$deb" "$work/root"
    for file in share/man/man1/upstreamproxy.1.gz share/bash-completion/completions/upstreamproxy \
        share/zsh/vendor-completions/_upstreamproxy share/fish/vendor_completions.d/upstreamproxy.fish \
        share/doc/upstreamproxy/copyright; do
        [ -f "$work/root/usr/$file" ] || fail "deb: no $file"
    done
    check "deb ($(dpkg-deb --field "$deb" Depends))" "$work/root/usr/bin/upstreamproxy"
else
    skip deb 'cargo-deb is not installed'
fi

if [ -n "$static" ]; then
    "${package[@]}" image "$static" "$work/context" >/dev/null
    command=(/usr/bin/upstreamproxy version)
    if command -v unshare >/dev/null && unshare --user --map-root-user true 2>"$work/error"; then
        # The root file system of the image, without a builder of images.
        check 'image, its root file system' \
            unshare --user --map-root-user chroot "$work/context/root" /usr/bin/upstreamproxy
    else
        skip 'image, its root file system' "no user namespaces: $(cat "$work/error")"
    fi
    if command -v buildah >/dev/null; then
        build=(buildah --root "$work/images" --runroot "$work/images-run" --storage-driver vfs)
        if "${build[@]}" build --isolation chroot --quiet --tag upstreamproxy \
            "$work/context" >"$work/build.log" 2>&1; then
            container=$("${build[@]}" from upstreamproxy)
            # Not with `buildah run`: with this isolation, version 1.28 sometimes loses the output.
            entry=$("${build[@]}" inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
            check 'image, built by buildah' \
                unshare --user --map-root-user chroot "$("${build[@]}" mount "$container")" "$entry"
            "${build[@]}" rm --all >/dev/null
            "${build[@]}" rmi --all >/dev/null
        else
            skip 'image, built by buildah' "$(tail -n 1 "$work/build.log")"
        fi
    else
        skip 'image, built by buildah' 'buildah is not installed'
    fi
else
    skip image 'no static binary was named'
fi
