//! Tests of the STS endpoint that is called: the SDKs' variables apply. Runs in a namespace without a route out, so that no
//! endpoint is reached.

use crate::bed::Bed;

#[test]
fn the_endpoint_is_regional_and_follows_the_sdks_variables() {
    let Some(bed) = Bed::new() else { return };
    for (variables, endpoint) in [
        (&[][..], "https://sts.eu-central-1.amazonaws.com/"),
        (&[("AWS_USE_FIPS_ENDPOINT", "true"), ("AWS_REGION", "us-east-1")], "https://sts-fips.us-east-1.amazonaws.com/"),
        (&[("AWS_USE_DUALSTACK_ENDPOINT", "true")], "https://sts.eu-central-1.api.aws/"),
        (&[("AWS_REGION", "cn-north-1")], "https://sts.cn-north-1.amazonaws.com.cn/"),
        (&[("AWS_REGION", "us-gov-west-1")], "https://sts.us-gov-west-1.amazonaws.com/"),
        (&[("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9/")], "http://127.0.0.1:9/"),
    ] {
        let setup = bed.setup_with_ip().without_env("AWS_ENDPOINT_URL_STS");
        let setup = variables.iter().fold(setup, |setup, (name, value)| setup.without_env(name).env(*name, *value));
        let daemon = setup.start().unwrap();
        let told = daemon.wait_for_event("sts-endpoint").unwrap();
        assert_eq!(told["endpoint"], endpoint, "{variables:?}");
    }
}
