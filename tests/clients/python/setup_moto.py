"""Creates the node's user and the pods' roles in moto, then makes moto check signatures and identity policies.

    setup_moto.py http://ADDRESS:PORT ROLE...

Prints the user's access key as one line of JSON. The user may assume every role, and each role trusts it alone.
"""

import json
import sys
import urllib.request

import boto3

ACCOUNT = "123456789012"
NODE = "node"


def statement(**what):
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", **what}]})


def main():
    endpoint, *roles = sys.argv[1:]
    iam = boto3.client(
        "iam",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id="setup",
        aws_secret_access_key="setup",
    )
    iam.create_user(UserName=NODE)
    key = iam.create_access_key(UserName=NODE)["AccessKey"]
    iam.put_user_policy(UserName=NODE, PolicyName="assume", PolicyDocument=statement(Resource="*"))
    trust = statement(Principal={"AWS": f"arn:aws:iam::{ACCOUNT}:user/{NODE}"})
    for role in roles:
        iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)
    # From now on every call is checked.
    request = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()
    print(json.dumps({"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}))


main()
