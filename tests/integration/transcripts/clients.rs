//! The clients. Header lines have the order and letter case of each client, as far as known. Versions in `User-Agent` stand for
//! any version.

use super::Needs::{Credentials, ExtendedCredentials, NotFound, ProfileInfo, Region, Role, Text, Token, Unauthorized};
use super::Region::{Document, Name, Zone};
use super::{Client, Step};

const fn step(request: &'static str, needs: super::Needs) -> Step {
    Step { request, needs }
}

pub(super) const CLIENTS: &[Client] = &[
    // urllib3: sends a length of 0, keeps connections, and requests a new token each time.
    Client {
        name: "botocore",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                Accept-Encoding: identity
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                User-Agent: Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux#6.1 md/arch#x86_64 lang/python#3.11 md/pyimpl#CPython
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                Accept-Encoding: identity
                x-aws-ec2-metadata-token: {TOKEN}
                User-Agent: Boto3/1.44.5 md/Botocore#1.44.5",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                Accept-Encoding: identity
                x-aws-ec2-metadata-token: {TOKEN}
                User-Agent: Boto3/1.44.5 md/Botocore#1.44.5",
                Credentials,
            ),
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                Accept-Encoding: identity
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                Content-Length: 0",
                Token(21600),
            ),
            // The leaf with a slash. The region is the zone without its last letter.
            step(
                "GET /latest/meta-data/placement/availability-zone/ HTTP/1.1
                Host: 169.254.169.254
                Accept-Encoding: identity
                x-aws-ec2-metadata-token: {TOKEN}",
                Region(Zone),
            ),
        ],
    },
    Client {
        name: "JavaScript v2",
        keeps: false,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                User-Agent: aws-sdk-nodejs/2.1693.0 linux/v18.20.0
                Host: 169.254.169.254
                Connection: close
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: close",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: close",
                Credentials,
            ),
        ],
    },
    Client {
        name: "JavaScript v3",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                Host: 169.254.169.254
                Connection: keep-alive
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: keep-alive",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: keep-alive",
                Credentials,
            ),
            step(
                "GET /latest/meta-data/placement/region HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: keep-alive",
                Region(Name),
            ),
        ],
    },
    // HttpURLConnection: a PUT without a body has no length.
    Client {
        name: "Java v1",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                Accept: */*
                User-Agent: aws-sdk-java/1.12.780 Linux/6.1 OpenJDK_64-Bit_Server_VM/17.0.12
                Host: 169.254.169.254
                Connection: Keep-Alive",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: Keep-Alive",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: Keep-Alive",
                Credentials,
            ),
            step(
                "GET /latest/dynamic/instance-identity/document HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: Keep-Alive",
                Region(Document),
            ),
        ],
    },
    Client {
        name: "Java v2",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                User-Agent: aws-sdk-java/2.31.0 md/io#sync md/http#UrlConnection ua/2.1
                Accept: text/html, image/gif, image/jpeg, */*; q=0.2
                Host: 169.254.169.254
                Connection: keep-alive",
                Token(21600),
            ),
            // Builds of 2025 that know the extended paths try these first.
            step(
                "GET /latest/meta-data/iam/security-credentials-extended/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: keep-alive",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: keep-alive",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: keep-alive",
                Credentials,
            ),
            step(
                "GET /latest/dynamic/instance-identity/document HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: keep-alive",
                Region(Document),
            ),
            step(
                "GET /latest/meta-data/placement/region HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254
                Connection: keep-alive",
                Region(Name),
            ),
        ],
    },
    // net/http writes header names in its own case, and requests gzip.
    Client {
        name: "Go v1",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                User-Agent: aws-sdk-go/1.55.5 (go1.22.0; linux; amd64)
                Content-Length: 0
                X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600
                Accept-Encoding: gzip",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: aws-sdk-go/1.55.5 (go1.22.0; linux; amd64)
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                User-Agent: aws-sdk-go/1.55.5 (go1.22.0; linux; amd64)
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Credentials,
            ),
            step(
                "GET /latest/dynamic/instance-identity/document HTTP/1.1
                Host: 169.254.169.254
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Region(Document),
            ),
            // Older releases, and callers' paths that begin with a slash.
            step(
                "GET /latest/meta-data//placement/availability-zone HTTP/1.1
                Host: 169.254.169.254
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Region(Zone),
            ),
            step(
                "GET /latest/meta-data/iam/info HTTP/1.1
                Host: 169.254.169.254
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                ProfileInfo,
            ),
        ],
    },
    Client {
        name: "Go v2",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                User-Agent: aws-sdk-go-v2/1.36.0 ua/2.1 os/linux lang/go#1.23.0 md/GOOS#linux md/GOARCH#amd64 ft/ec2-imds
                Content-Length: 0
                Amz-Sdk-Request: attempt=1; max=3
                X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 300
                Accept-Encoding: gzip",
                Token(300),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                Amz-Sdk-Request: attempt=1; max=3
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                Amz-Sdk-Request: attempt=1; max=3
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Credentials,
            ),
            step(
                "GET /latest/dynamic/instance-identity/document HTTP/1.1
                Host: 169.254.169.254
                Amz-Sdk-Request: attempt=1; max=3
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Region(Document),
            ),
        ],
    },
    // The PUT has no length, and header names are in lower case.
    Client {
        name: "Rust aws-config",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                user-agent: aws-sdk-rust/1.3.7 os/linux lang/rust/1.85.0
                x-amz-user-agent: aws-sdk-rust/1.3.7 ua/2.1 api/imds/1.13.0 os/linux lang/rust/1.85.0
                host: 169.254.169.254",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                user-agent: aws-sdk-rust/1.3.7 os/linux lang/rust/1.85.0
                x-amz-user-agent: aws-sdk-rust/1.3.7 ua/2.1 api/imds/1.13.0
                host: 169.254.169.254",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                user-agent: aws-sdk-rust/1.3.7 os/linux lang/rust/1.85.0
                host: 169.254.169.254",
                Credentials,
            ),
            step(
                "GET /latest/meta-data/placement/region HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                user-agent: aws-sdk-rust/1.3.7 os/linux lang/rust/1.85.0
                host: 169.254.169.254",
                Region(Name),
            ),
        ],
    },
    Client {
        name: "Rust object_store",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 600
                accept: */*
                user-agent: object_store/0.14.2
                host: 169.254.169.254",
                Token(600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                accept: */*
                host: 169.254.169.254",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                accept: */*
                host: 169.254.169.254",
                Credentials,
            ),
        ],
    },
    // The list without a slash.
    Client {
        name: "C++",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                Accept: */*
                content-length: 0
                user-agent: aws-sdk-cpp/1.11.400 ua/2.1 os/Linux md/arch#x86_64
                x-aws-ec2-metadata-token-ttl-seconds: 21600",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials HTTP/1.1
                Host: 169.254.169.254
                Accept: */*
                user-agent: aws-sdk-cpp/1.11.400
                x-aws-ec2-metadata-token: {TOKEN}",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                Accept: */*
                user-agent: aws-sdk-cpp/1.11.400
                x-aws-ec2-metadata-token: {TOKEN}",
                Credentials,
            ),
            step(
                "GET /latest/meta-data/placement/availability-zone HTTP/1.1
                Host: 169.254.169.254
                Accept: */*
                x-aws-ec2-metadata-token: {TOKEN}",
                Region(Zone),
            ),
        ],
    },
    Client {
        name: "aws-c-auth",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                Host: 169.254.169.254
                Accept: */*
                User-Agent: aws-sdk-crt/imds-client
                Connection: keep-alive
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Accept: */*
                User-Agent: aws-sdk-crt/imds-client
                Connection: keep-alive",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Accept: */*
                User-Agent: aws-sdk-crt/imds-client
                Connection: keep-alive",
                Credentials,
            ),
            // A body here would be taken for the user data, whatever the status.
            step(
                "GET /latest/user-data/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Accept: */*
                Connection: keep-alive",
                NotFound,
            ),
        ],
    },
    // The IPv6 address without brackets.
    Client {
        name: "aws-c-auth over IPv6",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                Host: fd00:ec2::254
                Accept: */*
                User-Agent: aws-sdk-crt/imds-client
                Connection: keep-alive
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: fd00:ec2::254
                Accept: */*
                Connection: keep-alive",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: [fd00:ec2::254]
                Accept: */*
                Connection: keep-alive",
                Credentials,
            ),
        ],
    },
    // Version 2.1 of the protocol: the extended paths first.
    Client {
        name: "PHP",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                User-Agent: aws-sdk-php/3.342.0 OS/Linux#6.1 lang/php#8.3 GuzzleHttp/7
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials-extended/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: aws-sdk-php/3.342.0
                x-aws-ec2-metadata-token: {TOKEN}",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials-extended/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                User-Agent: aws-sdk-php/3.342.0
                x-aws-ec2-metadata-token: {TOKEN}",
                ExtendedCredentials,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token: {TOKEN}",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token: {TOKEN}",
                Credentials,
            ),
        ],
    },
    Client {
        name: "Ruby",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                User-Agent: aws-sdk-ruby3/3.220.0
                X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600
                Accept-Encoding: gzip;q=1.0,deflate;q=0.6,identity;q=0.3
                Accept: */*
                Host: 169.254.169.254",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials-extended/ HTTP/1.1
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip;q=1.0,deflate;q=0.6,identity;q=0.3
                Accept: */*
                Host: 169.254.169.254",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials-extended/{ROLE} HTTP/1.1
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254",
                ExtendedCredentials,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept: */*
                Host: 169.254.169.254",
                Credentials,
            ),
        ],
    },
    // A token for each item, every two minutes; the region is in the identity document.
    Client {
        name: ".NET",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                User-Agent: aws-sdk-dotnet-coreclr/3.7.400
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token: {TOKEN}
                User-Agent: aws-sdk-dotnet-coreclr/3.7.400",
                Role,
            ),
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token: {TOKEN}",
                Credentials,
            ),
            step(
                "GET /latest/meta-data/iam/info HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token: {TOKEN}",
                ProfileInfo,
            ),
            step(
                "GET /latest/dynamic/instance-identity/document HTTP/1.1
                Host: 169.254.169.254
                x-aws-ec2-metadata-token: {TOKEN}",
                Region(Document),
            ),
        ],
    },
    Client {
        name: "Kotlin and Swift, version 2.1",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                x-aws-ec2-metadata-token-ttl-seconds: 21600
                User-Agent: aws-sdk-kotlin/1.4.60 ua/2.1 api/imds#1.4.60 os/linux lang/kotlin#2.1.0
                x-amz-user-agent: aws-sdk-kotlin/1.4.60
                Content-Length: 0
                Host: 169.254.169.254
                Connection: Keep-Alive
                Accept-Encoding: gzip",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials-extended HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: Keep-Alive
                Accept-Encoding: gzip",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials-extended/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: Keep-Alive",
                ExtendedCredentials,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: Keep-Alive",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: Keep-Alive",
                Credentials,
            ),
            step(
                "GET /latest/meta-data/placement/region HTTP/1.1
                x-aws-ec2-metadata-token: {TOKEN}
                Host: 169.254.169.254
                Connection: Keep-Alive",
                Region(Name),
            ),
        ],
    },
    // The first line of the list is the role.
    Client {
        name: "s3fs",
        keeps: false,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                User-Agent: s3fs/1.94 (commit hash unknown; OpenSSL)
                Accept: */*
                X-aws-ec2-metadata-token-ttl-seconds: 21600
                Content-Length: 0",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: s3fs/1.94 (commit hash unknown; OpenSSL)
                Accept: */*
                X-aws-ec2-metadata-token: {TOKEN}",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                User-Agent: s3fs/1.94 (commit hash unknown; OpenSSL)
                Accept: */*
                X-aws-ec2-metadata-token: {TOKEN}",
                Credentials,
            ),
        ],
    },
    // It detects the version with an invalid token, and requests values with a trailing slash.
    Client {
        name: "fluent-bit",
        keeps: false,
        sequence: &[
            step(
                "GET / HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Fluent-Bit
                X-aws-ec2-metadata-token: INVALID",
                Unauthorized,
            ),
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                Content-Length: 0
                User-Agent: Fluent-Bit
                X-aws-ec2-metadata-token-ttl-seconds: 21600",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/placement/availability-zone/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Fluent-Bit
                X-aws-ec2-metadata-token: {TOKEN}",
                Text("eu-central-1b"),
            ),
            step(
                "GET /latest/meta-data/instance-id/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Fluent-Bit
                X-aws-ec2-metadata-token: {TOKEN}",
                Text("i-0f1e2d3c4b5a69788"),
            ),
            // Part of node-info: it continues without it.
            step(
                "GET /latest/meta-data/mac/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Fluent-Bit
                X-aws-ec2-metadata-token: {TOKEN}",
                NotFound,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Fluent-Bit
                X-aws-ec2-metadata-token: {TOKEN}",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Fluent-Bit
                X-aws-ec2-metadata-token: {TOKEN}",
                Credentials,
            ),
        ],
    },
    // The port in Host, and no slash after the list.
    Client {
        name: "Envoy",
        keeps: false,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254:80
                Accept: */*
                X-aws-ec2-metadata-token-ttl-seconds: 21600",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials HTTP/1.1
                Host: 169.254.169.254:80
                Accept: */*
                X-aws-ec2-metadata-token: {TOKEN}",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254:80
                Accept: */*
                X-aws-ec2-metadata-token: {TOKEN}",
                Credentials,
            ),
        ],
    },
    Client {
        name: "minio-go",
        keeps: true,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Go-http-client/1.1
                Content-Length: 0
                X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600
                Accept-Encoding: gzip",
                Token(21600),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Go-http-client/1.1
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Role,
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/{ROLE} HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Go-http-client/1.1
                X-Aws-Ec2-Metadata-Token: {TOKEN}
                Accept-Encoding: gzip",
                Credentials,
            ),
        ],
    },
    // Scripts: a PUT without a length, and a listing of what is available.
    Client {
        name: "curl and wget",
        keeps: false,
        sequence: &[
            step(
                "PUT /latest/api/token HTTP/1.1
                Host: 169.254.169.254
                User-Agent: curl/7.88.1
                Accept: */*
                X-aws-ec2-metadata-token-ttl-seconds: 60",
                Token(60),
            ),
            step(
                "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: Wget/1.21.3
                Accept: */*
                Accept-Encoding: identity
                Connection: close
                X-aws-ec2-metadata-token: {TOKEN}",
                Role,
            ),
            step(
                "GET /2021-03-23/meta-data/placement/ HTTP/1.1
                Host: 169.254.169.254
                User-Agent: curl/7.88.1
                Accept: */*
                X-aws-ec2-metadata-token: {TOKEN}",
                Text("availability-zone\navailability-zone-id\nregion"),
            ),
            step(
                "GET /latest/meta-data/services/partition HTTP/1.1
                Host: 169.254.169.254
                User-Agent: curl/7.88.1
                Accept: */*
                X-aws-ec2-metadata-token: {TOKEN}",
                Text("aws"),
            ),
        ],
    },
];
