#!/usr/bin/env bash
# The AWS CLI (version 1) as a pod runs it: GetCallerIdentity with the credentials of its default chain. It has
# no command that shows the credentials, but its debug log shows the request that they signed: the access key ID
# and the session token are read from there, and the expiration stays unknown.
# AWS_CLI_PYTHON: the interpreter whose packages hold the CLI.
set -u
time_limit_seconds=25

json_string() {
    printf '"%s"' "$(tr -d '\000-\037' <<<"$1" | sed 's/[\\"]/\\&/g')"
}

fail() { # fail EXIT_STATUS ERROR DETAIL
    printf '{"client":"awscli","error":"%s","detail":%s}\n' "$2" "$(json_string "$3")"
    exit "$1"
}

log=$(mktemp) || fail 4 other "no temporary file"
trap 'rm -f "$log"' EXIT

status=0
identity=$(timeout -k 2 "$time_limit_seconds" "$AWS_CLI_PYTHON" -m awscli --debug --region "$AWS_REGION" \
    sts get-caller-identity --endpoint-url "$STS_ENDPOINT" --query '[Account,Arn]' --output text 2>"$log") || status=$?
if [ "$status" -ne 0 ]; then
    message=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)
    case "$status:$message" in
    124:* | 137:*) fail 4 other "no answer within $time_limit_seconds s" ;;
    *'Unable to locate credentials'* | *'when retrieving credentials'*) fail 3 no-credentials "$message" ;;
    *) fail 4 other "exit status $status: $message" ;;
    esac
fi

read -r account arn <<<"$identity"
read -r access_key_id session_token < <(sed -n \
    "s|.*Sending http request.*'X-Amz-Security-Token': b'\([^']*\)'.* Credential=\([^/]*\)/.*|\2 \1|p" "$log" | tail -n 1) ||
    fail 4 other "the debug log shows no request signed with a session token"
token_sha256=$(printf %s "$session_token" | sha256sum)

printf '{"client":"awscli","access_key_id":%s,"session_token_sha256":"%s","expiration":null,"account":%s,"arn":%s}\n' \
    "$(json_string "$access_key_id")" "${token_sha256%% *}" "$(json_string "$account")" "$(json_string "$arn")"
