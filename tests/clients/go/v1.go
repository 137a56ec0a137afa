package main

import (
	"errors"
	"os"
	"time"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/awserr"
	"github.com/aws/aws-sdk-go/aws/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go/aws/ec2metadata"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/sts"
)

// runV1 is the AWS SDK for Go v1: the default session, then GetCallerIdentity with its credentials.
func runV1() {
	// Without this, the error of a chain does not say why each source has no credentials.
	config := aws.NewConfig().WithCredentialsChainVerboseErrors(true).WithEndpoint(os.Getenv("STS_ENDPOINT"))
	shared, err := session.NewSession(config)
	if err != nil {
		fail(4, "other", err)
	}
	value, err := shared.Config.Credentials.Get()
	if err != nil {
		fail(3, "no-credentials", withReasons(err))
	}
	identity, err := sts.New(shared).GetCallerIdentity(&sts.GetCallerIdentityInput{})
	if err != nil {
		fail(4, "other", err)
	}
	var expiration *string
	if at, err := shared.Config.Credentials.ExpiresAt(); err == nil {
		expiration = aws.String(at.UTC().Format(time.RFC3339))
	}
	finish(0, identified{
		Client:             "go-v1",
		AccessKeyID:        value.AccessKeyID,
		SessionTokenSHA256: sha256Hex(value.SessionToken),
		Expiration:         expiration,
		Account:            aws.StringValue(identity.Account),
		ARN:                aws.StringValue(identity.Arn),
	})
}

// askV1 returns a function that requests credentials with one client. With the metadata service, this is one session token.
func askV1() func() (string, error) {
	shared, err := session.NewSession()
	if err != nil {
		fail(4, "other", err)
	}
	if inContainer() {
		return func() (string, error) {
			shared.Config.Credentials.Expire()
			value, err := shared.Config.Credentials.Get()
			return value.AccessKeyID, err
		}
	}
	provider := ec2rolecreds.EC2RoleProvider{Client: ec2metadata.New(shared)}
	return func() (string, error) {
		value, err := provider.Retrieve()
		return value.AccessKeyID, err
	}
}

func withReasons(err error) error {
	var batch awserr.BatchedErrors
	if errors.As(err, &batch) {
		return errors.Join(append([]error{err}, batch.OrigErrs()...)...)
	}
	return err
}
