# Shared by .ci/run and .ci/slow, which source it: a copy of the checkout in $source_dir, virtual environments beside it, checks that
# are remembered when they fail. CI_PYTHON names the interpreter to use; VINE_TEST_DATA the folder with sample files.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/daskvine-ci.XXXXXX")
trap 'rm -rf "$work"' EXIT
source_dir=$work/source
# The copy is thrown away, bytecode and all; without any, each of the many interpreters that the tests start would compile every module.
unset PYTHONDONTWRITEBYTECODE
failures=()

say() { printf '\n== %s\n' "$*"; }

check() { # check NAME COMMAND...: runs it, remembers a failure and goes on
    local name=$1
    shift
    say "$name"
    "$@" || failures+=("$name (exit code $?)")
}

can_make_venv() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${CI_PYTHON:-} python3 python3.13 python3.12 python3.11; do
        if can_make_venv "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

install_python() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq python3 python3-venv
}

make_environment() { # make_environment NAME REQUIREMENT...
    local name=$1
    shift
    say "environment $name: $*"
    "$python" -m venv "$work/$name"
    "$work/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    "$work/$name/bin/python" -m pip list --disable-pip-version-check | grep -E -i '^(dask|dask-awkward|numpy|pytest|daskvine) '
}

# CPython's own tests of executors are not part of every build; Debian packages them by themselves.
fetch_cpython_tests() {
    local name version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    name=libpython$version-testsuite
    "$python" -c 'import test.test_concurrent_futures' 2>/dev/null && return
    command -v apt-get dpkg-deb >/dev/null || return 0
    say "package $name"
    mkdir -p "$work/cpython/lib"
    (
        cd "$work/cpython"
        apt-get download -qq "$name" 2>/dev/null || { apt-get update -qq && apt-get download -qq "$name"; }
        # The package holds the tests only: the interpreter's own part of them (support) comes from the interpreter.
        dpkg-deb -x ./*.deb . && cp -r "$("$python" -c 'import os, test; print(os.path.dirname(test.__file__))')" lib/test &&
            cp -rn "usr/lib/python$version/test/." lib/test/
    ) || { echo "not to be had: the conformance tests will say that they skip"; return 0; }
    export PYTHONPATH="$work/cpython/lib"
}

# Hosts of some tests are network namespaces.
fetch_ip() {
    command -v ip >/dev/null || {
        say "package iproute2"
        local as_root=()
        [ "$(id -u)" = 0 ] || as_root=(sudo)
        { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq iproute2; } ||
            echo "not to be had: the tests with hosts of their own will say that they skip"
    }
}

report_failures() {
    if [ "${#failures[@]}" -gt 0 ]; then
        say "failed so far (the exit code will say so)"
        printf '%s\n' "${failures[@]}"
    fi
}

python=$(find_python) || { install_python && python=$(find_python); } || {
    echo "no Python >= 3.11 with venv found; set CI_PYTHON to one" >&2
    exit 1
}

# Samples beside the checkout are used where they are, since the copy has other neighbours.
if [ -z "${VINE_TEST_DATA:-}" ] && [ -d "$root/../shared/data" ]; then
    VINE_TEST_DATA=$(cd "$root/../shared/data" && pwd)
    export VINE_TEST_DATA
fi
mkdir "$source_dir"
cd "$root"
# Tracked and new files that exist, so a change can be checked before it is committed.
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file"
done | xargs -0 cp --parents --no-dereference --preserve=mode --target-directory="$source_dir"
cd "$source_dir"
