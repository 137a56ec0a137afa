#!/usr/bin/env bash
# Installs the real AWS SDKs that the client tests run, and moto, their STS. Prints one line per client:
#
#   client boto3: ready /…/target/clients/python
#   client go: skipped: no go on this machine
#
# Environment:
#   ROLEGATE_CLIENTS_DIR  where everything is installed, including package managers' caches (default:
#                         target/clients of this repository)
#   ROLEGATE_NO_SKIPS=1   exit 1 if anything was skipped; otherwise the exit status is 0.
#
# Versions are pinned in python/*.txt, node/package-lock.json, go/go.sum and java/pom.xml. A kit
# (one language) whose inputs have not changed since it was installed is left as it is. Concurrent runs wait
# for each other. The log of a kit is <kit>.log in the directory.
set -euo pipefail
exec </dev/null

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${ROLEGATE_CLIENTS_DIR:-$here/../../target/clients}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
time_limit_seconds=300 # for each command of a kit

kits=(python native node go java)
declare -A clients=([python]='boto3 awscli requests moto' [native]='pyarrow crt crt-old' [node]='node node-http undici'
    [go]='go go-v1 go-http' [java]=java)
declare -A programs=([python]=python3 [native]=python3 [node]='node npm' [go]=go [java]='java javac mvn')
declare -A inputs=(
    [python]='python/requirements.txt'
    [native]='python/native-old.txt python/native-new.txt'
    [node]='node/package.json node/package-lock.json node/client.mjs node/poll.mjs'
    [go]='go/go.mod go/go.sum go/main.go go/poll.go go/v1.go'
    [java]='java/pom.xml java/Client.java'
)

bounded() {
    timeout --foreground -k 5 "$time_limit_seconds" "$@"
}

# Each install_* installs its kit into the empty directory "$1".

install_python() {
    bounded python3 -m venv "$1"
    bounded "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --retries 2 \
        --cache-dir "$dir/cache/python" --only-binary :all: --no-deps -r "$here/python/requirements.txt"
}

# Two versions of a package need two directories.
install_native() {
    local age
    bounded python3 -m venv "$1/venv"
    for age in old new; do
        bounded "$1/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --retries 2 \
            --cache-dir "$dir/cache/python" --only-binary :all: --no-deps --target "$1/$age" -r "$here/python/native-$age.txt"
    done
}

install_node() {
    cp "$here"/node/{package.json,package-lock.json,client.mjs,poll.mjs} "$1"
    cd "$1"
    bounded npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --cache "$dir/cache/node" \
        --fetch-retries 2 --fetch-retry-mintimeout 1000 --fetch-retry-maxtimeout 5000
}

install_go() {
    cd "$here/go"
    # A static program. With GOTOOLCHAIN, an old Go causes a skip instead of downloading a newer one.
    CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off GOFLAGS='-mod=readonly -modcacherw -buildvcs=false' \
        GOMODCACHE=$dir/cache/go/modules GOCACHE=$dir/cache/go/build \
        bounded go build -trimpath -ldflags='-s -w' -o "$1/client" .
}

install_java() {
    bounded mvn -q -B -Dstyle.color=never -Dmaven.repo.local="$dir/cache/java" -f "$here/java/pom.xml" \
        org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$1/lib"
    bounded javac --release 11 -encoding UTF-8 -cp "$1/lib/*" -d "$1/classes" "$here/java/Client.java"
}

missing_program() {
    local program
    for program in ${programs[$1]}; do
        command -v "$program" >/dev/null || { echo "$program" && return; }
    done
}

# What an installed kit depends on: its inputs, this script, its directory, and the programs that it uses.
fingerprint() {
    local program
    {
        echo "$dir"
        for program in ${programs[$1]}; do readlink -f "$(command -v "$program")"; done
        cd "$here"
        # shellcheck disable=SC2086 # a list of paths without spaces
        cat install.sh ${inputs[$1]}
    } | sha256sum
}

install_kit() {
    rm -rf "${dir:?}/$1"
    mkdir -p "$dir/$1"
    "install_$1" "$dir/$1"
    fingerprint "$1" >"$dir/$1/stamp"
}

# The first line of a kit's log that looks like an error, else its last one.
failure_reason() {
    local lines
    lines=$(sed -e 's/\x1b\[[0-9;]*m//g' -e '/^[[:space:]]*$/d' -e '/^WARNING:/d' "$dir/$1.log")
    { grep -i -m1 error <<<"$lines" || tail -n 1 <<<"$lines"; } | tr -s '[:space:]' ' ' | cut -c1-200
}

exec 9>"$dir/lock"
flock 9

declare -A jobs_by_kit=()
stop_jobs() {
    local job
    for job in "${jobs_by_kit[@]}"; do kill -- "-$job" 2>/dev/null || true; done
}
trap 'stop_jobs; exit 130' INT TERM

set -m # a process group for each job, so that one signal ends it with its children
for kit in "${kits[@]}"; do
    if [ -n "$(missing_program "$kit")" ]; then continue; fi
    if [ "$(fingerprint "$kit")" = "$(cat "$dir/$kit/stamp" 2>/dev/null)" ]; then continue; fi
    (install_kit "$kit") >"$dir/$kit.log" 2>&1 &
    jobs_by_kit[$kit]=$!
done
set +m

skipped=0
for kit in "${kits[@]}"; do
    state="ready $dir/$kit"
    program=$(missing_program "$kit")
    if [ -n "$program" ]; then
        state="skipped: no $program on this machine"
    elif [ -n "${jobs_by_kit[$kit]:-}" ]; then
        status=0
        wait "${jobs_by_kit[$kit]}" || status=$?
        unset "jobs_by_kit[$kit]"
        if [ "$status" -eq 124 ]; then
            state="skipped: not installed within $time_limit_seconds s"
        elif [ "$status" -ne 0 ]; then
            state="skipped: $(failure_reason "$kit")"
        fi
    fi
    case $state in skipped*) skipped=1 ;; esac
    for client in ${clients[$kit]}; do echo "client $client: $state"; done
done

if [ "$skipped" = 1 ] && [ "${ROLEGATE_NO_SKIPS:-}" = 1 ]; then exit 1; fi
