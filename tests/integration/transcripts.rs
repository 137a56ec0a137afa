//! What each client of the metadata service sends, request by request and byte by byte, and what it needs from each answer.
//!
//! The requests are from the clients' own code or from captures of them. The needs are the checks that the clients make (a
//! header that must be present, a body that is used unchanged, a time in one format only).

mod clients;

use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use rolegate::clock::Clock;
use rolegate_lab::imds::Imds;
use rolegate_lab::player::{self, PlayLimits, Response};
use serde_json::Value;

use crate::world::{PATIENCE, ROLES, World, ip};
use clients::CLIENTS;

/// How one client gets its credentials and its region.
struct Client {
    name: &'static str,
    /// Whether it reuses connections. The others open a new one for each request.
    keeps: bool,
    sequence: &'static [Step],
}

/// A request, and what the client needs from the answer.
struct Step {
    /// The lines of the request. `{TOKEN}` and `{ROLE}` are taken from the latest answers that contained one.
    request: &'static str,
    needs: Needs,
}

enum Needs {
    /// A token that lives for this many seconds, and a header that says so.
    Token(u32),
    /// The name of the role, and nothing else.
    Role,
    /// The credentials.
    Credentials,
    /// The credentials, with the account.
    ExtendedCredentials,
    /// The node's region in this form.
    Region(Region),
    /// This value.
    Text(&'static str),
    /// An account in an ARN.
    ProfileInfo,
    /// The status that says "use version 2".
    Unauthorized,
    /// A refusal without a body.
    NotFound,
}

/// How a client finds its region.
enum Region {
    /// `placement/region`
    Name,
    /// `placement/availability-zone`, without its last letter.
    Zone,
    /// The field `region` of the identity document.
    Document,
}

/// The pod in which the client runs, and which of its requests it sends.
struct Run<'a> {
    world: &'a World,
    from: IpAddr,
    has_role: bool,
    /// Whether it requests tokens and sends them.
    with_tokens: bool,
}

impl Client {
    /// Runs the client, and returns everything that did not meet its needs.
    fn run(&self, run: &Run<'_>) -> Vec<String> {
        let (mut token, mut role) = (String::new(), String::from("web-role"));
        let mut connection: Option<TcpStream> = None;
        let mut wrong = Vec::new();
        for (at, step) in self.sequence.iter().enumerate() {
            let is_about_tokens = matches!(step.needs, Needs::Token(_) | Needs::Unauthorized);
            if is_about_tokens && !run.with_tokens {
                continue;
            }
            let lines = step.request.lines().map(str::trim).filter(|line| run.with_tokens || !line.contains("{TOKEN}"));
            let request: String = lines.map(|line| format!("{line}\r\n")).collect();
            let request = request.replace("{TOKEN}", &token).replace("{ROLE}", &role) + "\r\n";
            let stream = connection.take().unwrap_or_else(|| run.world.connect(run.from));
            let answer = match exchange(&stream, &request) {
                Ok(answer) => answer,
                Err(why) => {
                    wrong.push(format!("{}, request {at}: {why}: {request}", self.name));
                    break;
                }
            };
            match &step.needs {
                Needs::Token(_) => token = answer.text(),
                Needs::Role if run.has_role => role = answer.text(),
                _ => {}
            }
            if let Err(why) = step.needs.are_met(&answer, run.has_role, &role) {
                wrong.push(format!("{}, request {at}: {why}: {request}{answer:?}", self.name));
            }
            if self.keeps {
                connection = Some(stream);
            }
        }
        wrong
    }
}

/// Returns the one answer to these bytes. If the client wants the connection closed, it must be closed afterwards. Otherwise it
/// must accept one more request, so that the client can keep it.
fn exchange(stream: &TcpStream, request: &str) -> Result<Response, String> {
    let wants_close = request.to_ascii_lowercase().contains("connection: close");
    let play = |bytes: &str, max_responses| {
        let limits = PlayLimits { quiet: if wants_close { PATIENCE } else { Duration::ZERO }, ..PlayLimits::answers(max_responses) };
        player::play(stream, bytes.as_bytes(), limits).map_err(|error| error.to_string())
    };
    let transcript = play(request, 1)?;
    if let Some(secret) = Imds::node_credentials_leaked_in(&transcript.raw) {
        return Err(format!("{secret} leaked"));
    }
    if wants_close && !transcript.closed {
        return Err("the connection stays open".to_owned());
    }
    let answer = match <[Response; 1]>::try_from(transcript.responses) {
        Ok([answer]) if transcript.rest.is_empty() => answer,
        Ok(_) | Err(_) => return Err(format!("not one answer: {:?}", String::from_utf8_lossy(&transcript.raw))),
    };
    if !wants_close {
        // Anything that arrived too late to be seen above precedes this answer.
        let again = play("GET /latest/no-such-path HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 1)?;
        let statuses: Vec<_> = again.responses.iter().map(|answer| answer.status).collect();
        if !matches!(statuses.as_slice(), [401 | 404]) || !again.rest.is_empty() {
            return Err(format!("not kept: {:?}", String::from_utf8_lossy(&again.raw)));
        }
    }
    Ok(answer)
}

impl Needs {
    fn are_met(&self, answer: &Response, has_role: bool, role: &str) -> Result<(), String> {
        let text = answer.text();
        let check = |good: bool, why: &str| if good { Ok(()) } else { Err(why.to_owned()) };
        // Clients that keep connections need it. Some check the server or the type.
        check(answer.header("content-length") == Some(answer.body.len().to_string().as_str()), "Content-Length")?;
        check(answer.header("server") == Some("EC2ws"), "Server")?;
        check(answer.header("content-type") == Some("text/plain"), "Content-Type")?;
        let is_of_role = matches!(self, Self::Role | Self::Credentials | Self::ExtendedCredentials | Self::ProfileInfo);
        if matches!(self, Self::NotFound) || (is_of_role && !has_role) {
            // Chains continue with the next provider on this status only, and aws-c-auth takes any body for a role.
            check(answer.status == 404, "status")?;
            return check(answer.body.is_empty(), "a body");
        }
        if matches!(self, Self::Unauthorized) {
            return check(answer.status == 401, "status");
        }
        check(answer.status == 200, "status")?;
        match self {
            Self::Token(ttl) => {
                let said = answer.header("X-Aws-Ec2-Metadata-Token-Ttl-Seconds");
                check(said == Some(ttl.to_string().as_str()), "the header with the token's life")?;
                // Clients copy it into a header unchanged.
                check(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()), "no header can hold the token")
            }
            // Rust panics on a newline. Others request a role of that name.
            Self::Role => check(text == "web-role", "the name of the role, and nothing else"),
            Self::Credentials => credentials(&text, None),
            Self::ExtendedCredentials => credentials(&text, Some("111122223333")),
            Self::Region(region) => check(region.of(&text).as_deref() == Some("eu-central-1"), "the region"),
            Self::Text(wanted) => check(text == *wanted, "the value"),
            Self::ProfileInfo => {
                let info: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                check(info["Code"] == "Success", "Code")?;
                is_time(&info["LastUpdated"])?;
                let arn = format!("arn:aws:iam::111122223333:instance-profile/{role}");
                check(info["InstanceProfileArn"] == arn.as_str(), "InstanceProfileArn")
            }
            Self::Unauthorized | Self::NotFound => Ok(()),
        }
    }
}

impl Region {
    fn of(&self, text: &str) -> Option<String> {
        match self {
            Self::Name => Some(text.to_owned()),
            Self::Zone => text.strip_suffix(|zone: char| zone.is_ascii_lowercase()).map(str::to_owned),
            Self::Document => serde_json::from_str::<Value>(text).ok()?["region"].as_str().map(str::to_owned),
        }
    }
}

/// Checks everything that any client needs from the document: every field as text, one value of `Code`, and times in one
/// format.
fn credentials(text: &str, account: Option<&str>) -> Result<(), String> {
    let document: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for field in ["Code", "LastUpdated", "Type", "AccessKeyId", "SecretAccessKey", "Token", "Expiration"] {
        if document[field].as_str().is_none_or(str::is_empty) {
            return Err(format!("{field} is not there"));
        }
    }
    if document["Code"] != "Success" || document["Type"] != "AWS-HMAC" || document["AccountId"].as_str() != account {
        return Err("Code, Type or AccountId".to_owned());
    }
    is_time(&document["LastUpdated"])?;
    let left = is_time(&document["Expiration"])?.duration_since(Clock::system().now());
    // botocore discards credentials with less time left than this.
    if left < jiff::SignedDuration::from_mins(25) { Err(format!("{left:#} left")) } else { Ok(()) }
}

/// Checks for `YYYY-MM-DDTHH:MM:SSZ`: Rust rejects an offset, and Swift crashes on a fraction.
fn is_time(value: &Value) -> Result<jiff::Timestamp, String> {
    let text = value.as_str().unwrap_or_default();
    let time: jiff::Timestamp = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    let written = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    if written == text { Ok(time) } else { Err(format!("{text:?} is not {written:?}")) }
}

/// Starts a daemon that has read what pods may read.
fn world(arguments: &[&str]) -> World {
    let world = World::start_with(|setup| arguments.iter().fold(setup, |setup, argument| setup.argument(*argument)));
    world.eventually(|world| world.get(ip(2), "/latest/meta-data/placement/region").status, |status| *status == 200);
    world
}

#[track_caller]
fn run_all(run: &Run<'_>) {
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = CLIENTS.iter().map(|client| scope.spawn(|| client.run(run))).collect();
        runs.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    run.world.assert_that_the_table_alone_was_asked_for();
}

#[test]
fn every_client_finds_what_it_needs() {
    let world = world(&[]);
    run_all(&Run { world: &world, from: ip(2), has_role: true, with_tokens: true });
    assert_eq!(world.fakes.sts.assume_role_calls(), 1, "all clients share the pod's session");
}

#[test]
fn every_client_without_a_role_still_finds_its_region() {
    let world = world(&[]);
    run_all(&Run { world: &world, from: ip(4), has_role: false, with_tokens: true });
    assert_eq!(world.fakes.sts.assume_role_calls(), 0);
}

#[test]
fn every_imdsv1_client_finds_what_it_needs_if_allowed() {
    let world = world(&["--imds-tokens=optional"]);
    run_all(&Run { world: &world, from: ip(2), has_role: true, with_tokens: false });
    run_all(&Run { world: &world, from: ip(2), has_role: true, with_tokens: true });
}

/// Clients of version 2.1 that find no extended list go on to the plain one, and stay with it. A status other than 404 would
/// end their search. PHP gives up on a 401 or 403.
#[test]
fn without_a_role_both_lists_are_refused_alike() {
    let world = world(&[]);
    let extended = "/latest/meta-data/iam/security-credentials-extended/";
    for target in [extended, &format!("{extended}web-role"), ROLES] {
        let answer = world.get(ip(4), target);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{target}");
    }
}

/// fluent-bit decides by this one request: 401 means version 2, 200 means version 1, and anything else ends it.
#[test]
fn the_versions_are_listed_only_with_a_valid_token() {
    let list = |world: &World, header: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Fluent-Bit\r\n{header}\r\n");
        exchange(&world.connect(ip(2)), &request).unwrap().status
    };
    for (tokens, without) in [("--imds-tokens=required", 401), ("--imds-tokens=optional", 200)] {
        let world = world(&[tokens]);
        assert_eq!(list(&world, "X-aws-ec2-metadata-token: INVALID\r\n"), 401, "{tokens}");
        assert_eq!(list(&world, ""), without, "{tokens}");
        let token = world.new_token(ip(2)).text();
        assert_eq!(list(&world, &format!("X-aws-ec2-metadata-token: {token}\r\n")), 200, "{tokens}");
    }
}
