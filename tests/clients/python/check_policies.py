"""Creates the policies that `rolegate iam-policy` printed, in moto inside this process.

    check_policies.py <POLICIES.json

The standard input is the document with all policies. Prints what was created, as one line of JSON. An invalid policy raises an exception.
"""

import json
import sys

import boto3
from moto import mock_aws

ANYONE = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "arn:aws:iam::123456789012:root"}}],
    }
)


@mock_aws
def main():
    policies = json.load(sys.stdin)
    iam = boto3.client("iam", region_name="us-east-1", aws_access_key_id="setup", aws_secret_access_key="setup")
    iam.create_role(RoleName="nodes", AssumeRolePolicyDocument=ANYONE)
    created = {"managed": 0, "inline": 0, "trust": 0}

    def managed(document):
        created["managed"] += 1
        text = json.dumps(document, separators=(",", ":"))
        return iam.create_policy(PolicyName=f"policy-{created['managed']}", PolicyDocument=text)["Policy"]["Arn"]

    for document in policies["node"]:
        iam.attach_role_policy(RoleName="nodes", PolicyArn=managed(document))
        iam.put_role_policy(RoleName="nodes", PolicyName="rolegate", PolicyDocument=json.dumps(document))
        created["inline"] += 1
    for documents in [policies.get("intermediate", []), *policies.get("chain", {}).values()]:
        for document in documents:
            managed(document)
    iam.put_role_permissions_boundary(RoleName="nodes", PermissionsBoundary=managed(policies["boundary"]))
    for arn, document in policies["trust"].items():
        name = arn.rsplit("/", 1)[-1]
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=ANYONE)
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(document))
        assert iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"] == document
        created["trust"] += 1
    print(json.dumps(created))


main()
