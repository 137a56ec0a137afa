// The AWS SDK for JavaScript v3: fromInstanceMetadata, or the default chain if the environment names a URI for credentials, then
// GetCallerIdentity with its credentials. With the argument `ask`, it only gets credentials, once for each line of standard input.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";
import { fromInstanceMetadata, fromNodeProviderChain } from "@aws-sdk/credential-providers";

const TIME_LIMIT_MS = 25_000;

const { AWS_CONTAINER_CREDENTIALS_FULL_URI, AWS_CONTAINER_CREDENTIALS_RELATIVE_URI } = process.env;
const inContainer = AWS_CONTAINER_CREDENTIALS_FULL_URI || AWS_CONTAINER_CREDENTIALS_RELATIVE_URI;
const newProvider = inContainer ? fromNodeProviderChain : fromInstanceMetadata;

function finish(status, answer) {
  const line = JSON.stringify({ client: "node", ...answer }) + "\n";
  process.stdout.write(line, () => process.exit(status));
}

function oneLine(error) {
  return `${error.name}: ${error.message}`.replace(/\s+/g, " ").trim();
}

if (process.argv[2] === "ask") {
  const provider = newProvider();
  for await (const _line of createInterface({ input: process.stdin })) {
    // Only the default chain has a cache.
    const answer = await provider({ forceRefresh: true }).then(
      (credentials) => ({ access_key_id: credentials.accessKeyId }),
      (error) => ({ error: oneLine(error) }),
    );
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
  process.exit(0);
}

setTimeout(
  () => finish(4, { error: "other", detail: `no answer within ${TIME_LIMIT_MS / 1000} s` }),
  TIME_LIMIT_MS,
).unref();

let stage = "other";
try {
  const sts = new STSClient({
    region: process.env.AWS_REGION,
    endpoint: process.env.STS_ENDPOINT,
    credentials: newProvider(),
  });
  // The client's own memoized provider: the request below is signed with the same credentials.
  stage = "no-credentials";
  const credentials = await sts.config.credentials();
  stage = "other";
  const identity = await sts.send(new GetCallerIdentityCommand({}));
  finish(0, {
    access_key_id: credentials.accessKeyId,
    session_token_sha256: createHash("sha256").update(credentials.sessionToken ?? "").digest("hex"),
    expiration: credentials.expiration?.toISOString().replace(/\.\d+Z$/, "Z") ?? null,
    account: identity.Account,
    arn: identity.Arn,
  });
} catch (error) {
  finish(stage === "no-credentials" ? 3 : 4, { error: stage, detail: oneLine(error) });
}
