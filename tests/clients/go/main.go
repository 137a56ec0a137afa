// The AWS SDK for Go v2: the default credential chain, then GetCallerIdentity with its credentials.
package main

import (
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
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

const timeLimit = 25 * time.Second

type session struct {
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
	finish(status, failure{"go", kind, strings.Join(strings.Fields(err.Error()), " ")})
}

func main() {
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
	client := sts.NewFromConfig(cfg, func(options *sts.Options) {
		options.BaseEndpoint = aws.String(os.Getenv("STS_ENDPOINT"))
	})
	identity, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		fail(4, "other", err)
	}

	var expiration *string
	if credentials.CanExpire {
		expiration = aws.String(credentials.Expires.UTC().Format(time.RFC3339))
	}
	token := sha256.Sum256([]byte(credentials.SessionToken))
	finish(0, session{
		Client:             "go",
		AccessKeyID:        credentials.AccessKeyID,
		SessionTokenSHA256: hex.EncodeToString(token[:]),
		Expiration:         expiration,
		Account:            aws.ToString(identity.Account),
		ARN:                aws.ToString(identity.Arn),
	})
}
