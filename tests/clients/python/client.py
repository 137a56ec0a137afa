"""boto3 as a pod runs it: default session, credentials from its default chain, then GetCallerIdentity.

With the argument `ask`, it only gets credentials: see asking.py.
"""

import datetime
import hashlib
import json
import os
import signal
import sys

import asking
import boto3
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError

TIME_LIMIT_SECONDS = 25


def finish(status, **answer):
    # With os.write and _exit, this also ends a process whose main thread is inside the SDK.
    os.write(1, (json.dumps({"client": "boto3", **answer}) + "\n").encode())
    os._exit(status)


def one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())


def out_of_time(_signal, _frame):
    finish(4, error="other", detail=f"no answer within {TIME_LIMIT_SECONDS} s")


def main():
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(TIME_LIMIT_SECONDS)

    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError()
    frozen = credentials.get_frozen_credentials()
    # boto3 has no public accessor for the expiration. If this one disappears, the harness gets null.
    expires_at = getattr(credentials, "_expiry_time", None)

    sts = session.client(
        "sts",
        region_name=os.environ["AWS_REGION"],
        endpoint_url=os.environ["STS_ENDPOINT"],
    )
    identity = sts.get_caller_identity()
    finish(
        0,
        access_key_id=frozen.access_key,
        session_token_sha256=hashlib.sha256((frozen.token or "").encode()).hexdigest(),
        expiration=expires_at and expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        account=identity["Account"],
        arn=identity["Arn"],
    )


def access_key_id(session=boto3.Session()):
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError()
    key = credentials.get_frozen_credentials().access_key
    if "AWS_CONTAINER_CREDENTIALS_FULL_URI" in os.environ:
        # The next line finds them expired. boto3 has no public way to do this.
        credentials._expiry_time = datetime.datetime.now(datetime.timezone.utc)
    return key


try:
    if sys.argv[1:] == ["ask"]:
        asking.answer_each_line(access_key_id)
    main()
except (NoCredentialsError, CredentialRetrievalError) as error:
    finish(3, error="no-credentials", detail=one_line(error))
except Exception as error:
    finish(4, error="other", detail=one_line(error))
