//! Plays the corpus of raw requests against the real server byte by byte: no entry gets more than its pod's own data, and none
//! makes the daemon send a request to the real service.

use std::path::Path;

use rolegate_lab::imds::{Imds, NODE_ROLE_NAME};
use rolegate_lab::player::{self, Entry, Own, PlayLimits, Substitutions};

use crate::world::{TOKEN_TTL, World, ip};

fn play(world: &World, tokens_required: bool) {
    let corpus = player::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/imds-requests.jsonl")).unwrap();
    assert!(corpus.len() >= 500);
    let document = world.document(ip(2), "web-role");
    world.eventually(|world| world.get(ip(2), "/latest/meta-data/placement/region").status, |status| *status == 200);
    let short = world.request(ip(2), "PUT", "/latest/api/token", &[(TOKEN_TTL, "1")]).text();
    let substitutions = Substitutions {
        token: world.new_token(ip(2)).text(),
        token_other: world.new_token(ip(3)).text(),
        token_expired: short.clone(),
        own_role: "web-role".to_owned(),
        other_role: "db-role".to_owned(),
        node_role: NODE_ROLE_NAME.to_owned(),
        other_pod_ip: ip(3).to_string(),
        node_ip: "127.0.0.1".to_owned(),
    };
    let ask = |world: &World| world.request(ip(2), "GET", "/", &[(crate::world::TOKEN, &short)]).status;
    world.eventually(ask, |status| *status == 401);
    let own = Own {
        role: "web-role".to_owned(),
        access_key_ids: vec![document["AccessKeyId"].as_str().unwrap().to_owned()],
        forbidden: vec![NODE_ROLE_NAME.to_owned()],
    };
    let mut wrong = Vec::new();
    let limits = PlayLimits { answer: std::time::Duration::from_secs(3), ..PlayLimits::default() };
    std::thread::scope(|scope| {
        let corpus: Vec<Entry> = corpus.into_iter().filter(|entry| entry.applies(tokens_required)).collect();
        let (substitutions, own, limits) = (&substitutions, &own, &limits);
        let chunks: Vec<_> = corpus.chunks(20).map(<[Entry]>::to_vec).collect();
        let players: Vec<_> = chunks
            .into_iter()
            .map(|chunk| {
                scope.spawn(move || {
                    let mut wrong = Vec::new();
                    for entry in chunk {
                        let limits = PlayLimits { max_responses: entry.max_responses, ..*limits };
                        let transcript = player::play(world.connect(ip(2)), &player::render(&entry, substitutions), limits).unwrap();
                        if let Err(why) = player::judge(&entry, &transcript, own) {
                            wrong.push(format!("{}: {why}", entry.id));
                        }
                        if let Some(secret) = Imds::node_credentials_leaked_in(&transcript.raw) {
                            wrong.push(format!("{}: {secret} leaked", entry.id));
                        }
                    }
                    wrong
                })
            })
            .collect();
        for player in players {
            wrong.extend(player.join().unwrap());
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    world.assert_that_the_table_alone_was_asked_for();
}

#[test]
fn with_tokens_required() {
    play(&World::start(), true);
}

#[test]
fn with_tokens_optional() {
    play(&World::start_with(|setup| setup.argument("--imds-tokens=optional")), false);
}
