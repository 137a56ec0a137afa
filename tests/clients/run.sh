#!/usr/bin/env bash
# Runs one client program that install.sh installed:
#
#   run.sh boto3|awscli|node|go|go-v1|java             an SDK, in a pod's network namespace
#   run.sh SDK ask                                     the same, more than once; also pyarrow, crt and crt-old
#   run.sh requests|go-http|node-http|undici MODE…     an HTTP client, in a pod's network namespace
#   run.sh moto -H ADDRESS -p PORT                     the STS (and IAM) that they talk to
#
# An SDK gets credentials from the instance metadata service with an unmodified SDK and its default
# settings, calls GetCallerIdentity with them, prints one line of JSON and ends within 30 s:
#
#   exit 0  {"client":…,"access_key_id":…,"session_token_sha256":…,"expiration":…|null,"account":…,"arn":…}
#   exit 3  {"client":…,"error":"no-credentials","detail":…}   the SDK got no credentials, whatever the reason
#   exit 4  {"client":…,"error":"other","detail":…}            anything else: STS refused, a timeout, …
#
# With `ask`, it prints a line for each line of its input, and ends at the end of its input:
#
#         {"access_key_id":…}   it got credentials
#         {"error":…}           it got none
#
# An HTTP client has one pool of connections and prints one line. Its modes:
#
#   poll PATH tokens|none MILLISECONDS…   gets PATH, and again after each pause, with a session token or without:
#                                         {"statuses":[…],"errors":[…],"connections":N}
#   chunked PATH                          requests a session token with an empty chunked body, and gets PATH with it:
#                                         {"statuses":[…]}
#
# Environment of a client:
#   PATH                  with bash, coreutils, and node and java if their clients are run
#   STS_ENDPOINT          http://ADDRESS:PORT of the STS
#   AWS_REGION            the region of its signature
#   ROLEGATE_CLIENTS_DIR  as for install.sh
# HOME may be an empty directory. Other AWS settings and proxies in the environment are dropped, so that the
# metadata service is the only source of credentials. These stay:
#   AWS_EC2_METADATA_*
#   AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE
#                         as EKS Pod Identity sets them: an SDK gets its credentials from this URI with this
#                         token instead. `ask` makes boto3, node, go and go-v1 request new ones for each line.
#   AWS_CONTAINER_CREDENTIALS_RELATIVE_URI
#                         as Amazon ECS sets it: an SDK gets its credentials from this path at 169.254.170.2.
#
# moto keeps all its state in memory. By default it checks neither signatures nor policies; with
# INITIAL_NO_AUTH_ACTION_COUNT=N in its environment it checks both after the first N calls, and
# `POST /moto-api/reset-auth` with Content-Type: text/plain and N (0, or inf for off) as its body changes N.
set -euo pipefail
[ "${2:-}" = ask ] || exec </dev/null

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
    AWS_CONTAINER_CREDENTIALS_FULL_URI | AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE) ;;
    AWS_CONTAINER_CREDENTIALS_RELATIVE_URI) ;;
    AWS_* | *_proxy | *_PROXY) unset "$name" ;;
    esac
done

if [ "$client" = moto ]; then
    installed python
    export AWS_EC2_METADATA_DISABLED=true
    exec "$dir/python/bin/python" -m moto.server "$@"
fi

needs=AWS_REGION
case $client:${1:-} in
boto3: | awscli: | node: | go: | go-v1: | java:) needs='STS_ENDPOINT AWS_REGION' ;;
boto3:ask | node:ask | go:ask | go-v1:ask | java:ask | pyarrow:ask | crt:ask | crt-old:ask) ;;
requests:poll | go-http:poll | node-http:poll | undici:poll) ;;
requests:chunked | go-http:chunked | node-http:chunked | undici:chunked) ;;
*)
    echo "usage: the first lines of $here/run.sh" >&2
    exit 2
    ;;
esac
for name in $needs; do
    [ -n "${!name:-}" ] || fail "$name is not set"
done
# On a machine in a cloud, the default endpoint answers with the machine's own role. The machine's network
# namespace is that of process 1, identified by the inode behind /proc/net.
if [ -z "${AWS_EC2_METADATA_SERVICE_ENDPOINT:-}" ]; then
    machine=$(stat -Lc %i /proc/1/net/dev) || fail "cannot tell whether this is the machine's own network namespace"
    [ "$(stat -Lc %i /proc/self/net/dev)" != "$machine" ] || fail "this is the machine's own network namespace"
fi

export PYTHONDONTWRITEBYTECODE=1
case $client in
boto3)
    installed python
    exec "$dir/python/bin/python" "$here/python/client.py" "$@"
    ;;
awscli)
    installed python
    export AWS_CLI_PYTHON=$dir/python/bin/python
    exec "$here/awscli/client.sh"
    ;;
requests)
    installed python
    exec "$dir/python/bin/python" "$here/python/poll.py" "$@"
    ;;
pyarrow)
    installed native
    PYTHONPATH=$dir/native/old exec "$dir/native/venv/bin/python" "$here/python/arrow.py"
    ;;
crt)
    installed native
    PYTHONPATH=$dir/native/new exec "$dir/native/venv/bin/python" "$here/python/crt.py"
    ;;
crt-old)
    installed native
    PYTHONPATH=$dir/native/old exec "$dir/native/venv/bin/python" "$here/python/crt.py"
    ;;
node)
    installed node
    exec node "$dir/node/client.mjs" "$@"
    ;;
node-http | undici)
    installed node
    exec node "$dir/node/poll.mjs" "$client" "$@"
    ;;
go | go-v1 | go-http)
    installed go
    exec "$dir/go/client" "$client" "$@"
    ;;
java)
    installed java
    exec java -XX:TieredStopAtLevel=1 -XX:-UsePerfData -cp "$dir/java/classes:$dir/java/lib/*" Client "$@"
    ;;
esac
