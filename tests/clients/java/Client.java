import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.Optional;
import software.amazon.awssdk.auth.credentials.AwsCredentials;
import software.amazon.awssdk.auth.credentials.AwsCredentialsProvider;
import software.amazon.awssdk.auth.credentials.AwsSessionCredentials;
import software.amazon.awssdk.auth.credentials.ContainerCredentialsProvider;
import software.amazon.awssdk.auth.credentials.InstanceProfileCredentialsProvider;
import software.amazon.awssdk.core.exception.SdkException;
import software.amazon.awssdk.http.urlconnection.UrlConnectionHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.sts.StsClient;
import software.amazon.awssdk.services.sts.model.GetCallerIdentityResponse;

/**
 * The AWS SDK for Java v2: InstanceProfileCredentialsProvider, or ContainerCredentialsProvider if the environment names a URI for
 * credentials, then GetCallerIdentity with its credentials. With the argument `ask`, it only gets credentials, once for each line
 * of standard input.
 */
public final class Client {
    private static final int TIME_LIMIT_SECONDS = 25;

    public static void main(String[] arguments) throws Exception {
        if (arguments.length > 0) {
            answerEachLine();
            Runtime.getRuntime().halt(0);
        }
        Thread watchdog = new Thread(() -> {
            try {
                Thread.sleep(TIME_LIMIT_SECONDS * 1000L);
            } catch (InterruptedException interrupted) {
                return;
            }
            fail(4, "other", "no answer within " + TIME_LIMIT_SECONDS + " s");
        });
        watchdog.setDaemon(true);
        watchdog.start();
        try {
            run();
        } catch (Throwable error) {
            fail(4, "other", withCauses(error));
        }
    }

    private static void run() throws Exception {
        // The provider caches: the request is signed with the credentials read here.
        AwsCredentialsProvider provider = newProvider();
        AwsCredentials credentials = null;
        try {
            credentials = provider.resolveCredentials();
        } catch (SdkException error) {
            fail(3, "no-credentials", withCauses(error));
        }

        GetCallerIdentityResponse identity;
        try (StsClient sts = StsClient.builder()
                .region(Region.of(System.getenv("AWS_REGION")))
                .endpointOverride(URI.create(System.getenv("STS_ENDPOINT")))
                .credentialsProvider(provider)
                .httpClient(UrlConnectionHttpClient.create())
                .build()) {
            identity = sts.getCallerIdentity();
        }

        String sessionToken = "";
        if (credentials instanceof AwsSessionCredentials) {
            sessionToken = ((AwsSessionCredentials) credentials).sessionToken();
        }
        Optional<Instant> expiration = credentials.expirationTime();
        finish(0, "\"access_key_id\":" + json(credentials.accessKeyId())
                + ",\"session_token_sha256\":" + json(sha256(sessionToken))
                + ",\"expiration\":"
                + expiration.map(at -> json(at.truncatedTo(ChronoUnit.SECONDS).toString())).orElse("null")
                + ",\"account\":" + json(identity.account())
                + ",\"arn\":" + json(identity.arn()));
    }

    private static AwsCredentialsProvider newProvider() {
        boolean inContainer = System.getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") != null
                || System.getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") != null;
        if (inContainer) {
            return ContainerCredentialsProvider.builder().build();
        }
        return InstanceProfileCredentialsProvider.create();
    }

    private static void answerEachLine() throws Exception {
        AwsCredentialsProvider provider = newProvider();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        while (lines.readLine() != null) {
            try {
                System.out.println("{\"access_key_id\":" + json(provider.resolveCredentials().accessKeyId()) + "}");
            } catch (SdkException error) {
                System.out.println("{\"error\":" + json(withCauses(error)) + "}");
            }
        }
    }

    private static String withCauses(Throwable error) {
        StringBuilder text = new StringBuilder(error.toString());
        for (Throwable cause = error.getCause(); cause != null; cause = cause.getCause()) {
            text.append(": ").append(cause);
        }
        return text.toString();
    }

    private static void fail(int status, String error, String detail) {
        finish(status, "\"error\":" + json(error) + ",\"detail\":" + json(detail.replaceAll("\\s+", " ").trim()));
    }

    private static synchronized void finish(int status, String members) {
        System.out.println("{\"client\":\"java\"," + members + "}");
        System.out.flush();
        // halt: neither the SDK's threads nor its shutdown hooks may delay the end of the process.
        Runtime.getRuntime().halt(status);
    }

    private static String json(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                quoted.append('\\').append(c);
            } else if (c < ' ') {
                quoted.append(String.format("\\u%04x", (int) c));
            } else {
                quoted.append(c);
            }
        }
        return quoted.append('"').toString();
    }

    private static String sha256(String text) throws Exception {
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(text.getBytes(StandardCharsets.UTF_8));
        StringBuilder hex = new StringBuilder();
        for (byte b : digest) {
            hex.append(String.format("%02x", b));
        }
        return hex.toString();
    }
}
