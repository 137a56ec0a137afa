#!/usr/bin/env bash
# Runs one client program that install.sh installed:
#
#   run.sh boto3|awscli|node|go|java       in a pod's network namespace
#   run.sh moto -H ADDRESS -p PORT         the STS (and IAM) that they talk to
#
# A client gets credentials from the instance metadata service with an unmodified SDK and its default
# settings, calls GetCallerIdentity with them, prints one line of JSON and ends within 30 s:
#
#   exit 0  {"client":…,"access_key_id":…,"session_token_sha256":…,"expiration":…|null,"account":…,"arn":…}
#   exit 3  {"client":…,"error":"no-credentials","detail":…}   the SDK got no credentials, whatever the reason
#   exit 4  {"client":…,"error":"other","detail":…}            anything else: STS refused, a timeout, …
#
# Environment of a client:
#   PATH                  with bash, coreutils, and node and java if their clients are run
#   STS_ENDPOINT          http://ADDRESS:PORT of the STS
#   AWS_REGION            the region of its signature
#   ROLEGATE_CLIENTS_DIR  as for install.sh
# HOME may be an empty directory. Other AWS settings and proxies in the environment are dropped, so that the
# metadata service is the only source of credentials; AWS_EC2_METADATA_* stays.
#
# moto keeps all its state in memory. By default it checks neither signatures nor policies; with
# INITIAL_NO_AUTH_ACTION_COUNT=N in its environment it checks both after the first N calls, and
# `POST /moto-api/reset-auth` with Content-Type: text/plain and N (0, or inf for off) as its body changes N.
set -euo pipefail
exec </dev/null

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${ROLEGATE_CLIENTS_DIR:-$here/../../target/clients}
client=${1:-}
shift || true

fail() {
    printf '{"client":"%s","error":"other","detail":"%s"}\n' "$client" "$1"
    exit 4
}

installed() {
    [ -e "$dir/$1/stamp" ] || fail "not installed: run tests/clients/install.sh"
}

for name in $(compgen -e); do
    case $name in
    AWS_REGION | AWS_EC2_METADATA_*) ;;
    AWS_* | *_proxy | *_PROXY) unset "$name" ;;
    esac
done

if [ "$client" = moto ]; then
    installed python
    export AWS_EC2_METADATA_DISABLED=true
    exec "$dir/python/bin/python" -m moto.server "$@"
fi

case $client in
boto3 | awscli | node | go | java) ;;
*)
    echo "usage: run.sh boto3|awscli|node|go|java, or run.sh moto -H ADDRESS -p PORT" >&2
    exit 2
    ;;
esac
for name in STS_ENDPOINT AWS_REGION; do
    [ -n "${!name:-}" ] || fail "$name is not set"
done
# On a machine in a cloud, the default endpoint answers with the machine's own role. The machine's network
# namespace is that of process 1, identified by the inode behind /proc/net.
if [ -z "${AWS_EC2_METADATA_SERVICE_ENDPOINT:-}" ]; then
    machine=$(stat -Lc %i /proc/1/net/dev) || fail "cannot tell whether this is the machine's own network namespace"
    [ "$(stat -Lc %i /proc/self/net/dev)" != "$machine" ] || fail "this is the machine's own network namespace"
fi

case $client in
boto3)
    installed python
    exec "$dir/python/bin/python" "$here/python/client.py"
    ;;
awscli)
    installed python
    export AWS_CLI_PYTHON=$dir/python/bin/python
    exec "$here/awscli/client.sh"
    ;;
node)
    installed node
    exec node "$dir/node/client.mjs"
    ;;
go)
    installed go
    exec "$dir/go/client"
    ;;
java)
    installed java
    exec java -XX:TieredStopAtLevel=1 -XX:-UsePerfData -cp "$dir/java/classes:$dir/java/lib/*" Client
    ;;
esac
