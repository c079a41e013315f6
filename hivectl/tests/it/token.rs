//! `hivectl token`, and a hive whose planes have a certificate.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Stdio, time::SystemTime};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{
    certificate::Certificate,
    house::{House, Started},
};

const SECRET: &str = "a secret that the issuer shares with us";

/// A file in the house that its owner alone reads.
fn private(house: &House, name: &str, text: &str) -> String {
    let path = house.file(name, text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn configure(house: &House, text: &str) {
    fs::create_dir_all(house.home()).unwrap();
    fs::write(house.home().join("config.toml"), text).unwrap();
}

/// A token signed with the secret, good for so many seconds more.
fn token(seconds: i64) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let exp = i64::try_from(now).unwrap() + seconds;
    let claims = json!({"iss": "i", "aud": "hive", "sub": "ann", "iat": now - 60, "exp": exp, "scope": "infer"});
    let text = [json!({"alg": "HS256"}), claims]
        .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()))
        .join(".");
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes())))
}

#[test]
fn a_token_is_explained_from_a_file_or_stdin_and_its_holder_cut_off() {
    let house = House::new();
    let keys = private(&house, "secret", SECRET);
    configure(
        &house,
        &format!("[jwt]\nissuer = \"i\"\naudience = \"hive\"\nalgorithm = \"HS256\"\nkeys = \"{keys}\"\n"),
    );
    house.up(&[]);
    let good = house.file("good", &token(600));
    let told = house.run(&["token", "verify", "--file", &good]).expect(0).stdout;
    for fact in [
        "accepted   yes",
        "signature  good",
        "scopes     infer",
        "id         jwt_",
        "\"sub\":\"ann\"",
        "expires    20",
    ] {
        assert!(told.contains(fact), "{fact}: {told}");
    }
    let old = house.file("old", &token(-600));
    let told = house.run(&["token", "verify", "--file", &old]).expect(1);
    assert!(
        told.stdout.contains("accepted   no") && told.stderr.contains("it has expired"),
        "{told:?}"
    );
    let mut piped = house.command(&["token", "verify", "--json"]);
    piped.stdin(Stdio::from(fs::File::open(&good).unwrap()));
    let verdict: Value = serde_json::from_str(&Started::new(piped).end().expect(0).stdout).unwrap();
    assert_eq!(
        (&verdict["accepted"], &verdict["claims"]["aud"]),
        (&json!(true), &json!("hive"))
    );
    let id = verdict["id"].as_str().unwrap();
    house
        .run(&["token", "revoke", id])
        .expect(0)
        .says(&format!("no token of {id} issued until 20"));
    house
        .run(&["token", "verify", "--file", &good])
        .expect(1)
        .says("were revoked after it was issued");
    let again = house.json(&["token", "revoke", "--subject", "ann"]);
    assert_eq!((&again["id"], &again["cancelled"]), (&json!(id), &json!(0)));
    house.run(&["token", "revoke", "ann"]).expect(2).says("jwt_");
    house.run(&["token", "revoke"]).expect(2);
    house.run(&["token", "verify"]).expect(2).says("no token");
    house.run(&["token", "verify", "--file", "/nowhere/token"]).expect(2);
}

#[test]
fn a_hive_with_a_certificate_is_spoken_to_over_tls_by_hivectl_and_its_workers() {
    let house = House::new();
    let certificate = Certificate::new([127, 0, 0, 1].into(), 1);
    let cert = house.file("cert.pem", &certificate.certificate);
    let key = private(&house, "key.pem", &certificate.key);
    configure(
        &house,
        &format!(
            "[server]\ntls_cert = \"{cert}\"\ntls_key = \"{key}\"\n[control]\ntls_cert = \"{cert}\"\ntls_key = \"{key}\"\n"
        ),
    );
    let env = house.up(&[]).stdout;
    assert!(env.contains("OPENAI_BASE_URL='https://127.0.0.1:"), "{env}");
    assert_eq!(house.worker("scripted-0").unwrap()["state"], "ready");
    let answer = house
        .run(&["jobs", "submit", "--model", "echo", "--prompt", "over TLS"])
        .expect(0)
        .stdout;
    assert!(answer.contains("over TLS"), "{answer}");
    // Elsewhere the authority must be named: without it nobody is believed.
    let (control, admin) = (house.exported("HIVE_CONTROL_URL"), house.exported("HIVE_ADMIN_KEY"));
    let elsewhere = House::new();
    let list = || {
        let mut command = elsewhere.command(&["worker", "list"]);
        command.env("HIVE_CONTROL_URL", &control).env("HIVE_ADMIN_KEY", &admin);
        Started::new(command).end()
    };
    list().expect(3);
    configure(&elsewhere, &format!("[hivectl]\nca = \"{cert}\"\n"));
    assert!(list().expect(0).stdout.contains("scripted-0"));
    configure(&elsewhere, "[hivectl]\nca = \"nowhere.pem\"\n");
    list().expect(2).says("nowhere.pem");
}
