// The AWS SDKs for Go, and net/http. The arguments are those of run.sh.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

const timeLimit = 25 * time.Second

// client is the name of the client that run.sh was asked for.
var client = os.Args[1]

type identified struct {
	Client             string  `json:"client"`
	AccessKeyID        string  `json:"access_key_id"`
	SessionTokenSHA256 string  `json:"session_token_sha256"`
	Expiration         *string `json:"expiration"`
	Account            string  `json:"account"`
	ARN                string  `json:"arn"`
}

type failure struct {
	Client string `json:"client"`
	Error  string `json:"error"`
	Detail string `json:"detail"`
}

func finish(status int, answer any) {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(answer); err != nil {
		status = 4
	}
	os.Exit(status)
}

func fail(status int, kind string, err error) {
	finish(status, failure{client, kind, strings.Join(strings.Fields(err.Error()), " ")})
}

func main() {
	arguments := os.Args[2:]
	switch {
	case client == "go-http" && arguments[0] == "poll":
		finish(0, newPoller().poll(arguments[1], arguments[2], arguments[3:]))
	case client == "go-http":
		finish(0, newPoller().chunked(arguments[1]))
	case client == "go-v1" && len(arguments) > 0:
		answerEachLine(askV1())
	case client == "go-v1":
		runV1()
	case len(arguments) > 0:
		answerEachLine(askV2())
	default:
		runV2()
	}
}

// runV2 is the AWS SDK for Go v2: the default credential chain, then GetCallerIdentity with its credentials.
func runV2() {
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()

	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		fail(4, "other", err)
	}
	credentials, err := cfg.Credentials.Retrieve(ctx)
	if err != nil && ctx.Err() != nil {
		fail(4, "other", errors.New("no answer within "+timeLimit.String()))
	}
	if err != nil {
		fail(3, "no-credentials", err)
	}

	// cfg.Credentials caches: the request is signed with the credentials just read.
	service := sts.NewFromConfig(cfg, func(options *sts.Options) {
		options.BaseEndpoint = aws.String(os.Getenv("STS_ENDPOINT"))
	})
	identity, err := service.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		fail(4, "other", err)
	}

	var expiration *string
	if credentials.CanExpire {
		expiration = aws.String(credentials.Expires.UTC().Format(time.RFC3339))
	}
	finish(0, identified{
		Client:             client,
		AccessKeyID:        credentials.AccessKeyID,
		SessionTokenSHA256: sha256Hex(credentials.SessionToken),
		Expiration:         expiration,
		Account:            aws.ToString(identity.Account),
		ARN:                aws.ToString(identity.Arn),
	})
}

// askV2 returns a function that requests credentials with one client. With the metadata service, this is one session token.
func askV2() func() (string, error) {
	var provider aws.CredentialsProvider = ec2rolecreds.New()
	forget := func() {}
	if inContainer() {
		cfg, err := config.LoadDefaultConfig(context.Background())
		if err != nil {
			fail(4, "other", err)
		}
		cache := cfg.Credentials.(*aws.CredentialsCache)
		provider, forget = cache, cache.Invalidate
	}
	return func() (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
		defer cancel()
		forget()
		value, err := provider.Retrieve(ctx)
		return value.AccessKeyID, err
	}
}

// inContainer returns whether the environment names a URI for credentials, as EKS Pod Identity and Amazon ECS do.
func inContainer() bool {
	return os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") != "" || os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") != ""
}

// answerEachLine is the mode `ask`: for each line of standard input, it prints the access key ID or the error.
func answerEachLine(ask func() (string, error)) {
	lines := bufio.NewScanner(os.Stdin)
	encoder := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		answer := map[string]string{}
		if accessKeyID, err := ask(); err != nil {
			answer["error"] = err.Error()
		} else {
			answer["access_key_id"] = accessKeyID
		}
		if err := encoder.Encode(answer); err != nil {
			os.Exit(4)
		}
	}
	os.Exit(0)
}

func sha256Hex(text string) string {
	digest := sha256.Sum256([]byte(text))
	return hex.EncodeToString(digest[:])
}
