"""requests, with one Session: the modes `poll` and `chunked`, which run.sh describes."""

import json
import sys
import time

import requests
import urllib3.util.connection

ENDPOINT = "http://169.254.169.254"
TOKEN_URL = f"{ENDPOINT}/latest/api/token"
TTL = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
TIME_LIMIT_SECONDS = 5

connections = 0
connect = urllib3.util.connection.create_connection


# The pool counts its objects, and connects one again after its connection has ended.
def counting_connect(*arguments, **options):
    global connections
    connections += 1
    return connect(*arguments, **options)


urllib3.util.connection.create_connection = counting_connect


def poll(session, path, tokens, *pauses_ms):
    answer = {"statuses": [], "errors": []}
    if tokens == "tokens":
        token = session.put(TOKEN_URL, headers=TTL, timeout=TIME_LIMIT_SECONDS)
        session.headers["X-aws-ec2-metadata-token"] = token.text
    for pause_ms in ["0", *pauses_ms]:
        time.sleep(int(pause_ms) / 1000)
        try:
            answer["statuses"].append(session.get(ENDPOINT + path, timeout=TIME_LIMIT_SECONDS).status_code)
        except requests.RequestException as error:
            answer["errors"].append(str(error))
    return {**answer, "connections": connections}


def chunked(session, path):
    # The length of an iterator is not known.
    token = session.put(TOKEN_URL, headers=TTL, data=iter(()), timeout=TIME_LIMIT_SECONDS)
    sent = token.request.headers.get("Transfer-Encoding")
    role = session.get(ENDPOINT + path, headers={"X-aws-ec2-metadata-token": token.text}, timeout=TIME_LIMIT_SECONDS)
    return {"statuses": [token.status_code, role.status_code], "chunked": sent == "chunked"}


session = requests.Session()
session.trust_env = False
mode, *arguments = sys.argv[1:]
print(json.dumps({"poll": poll, "chunked": chunked}[mode](session, *arguments)))
