//! `hivectl keys …`: made, shown once, listed without secrets, revoked.

use crate::house::{House, Started};

#[test]
fn a_key_works_until_it_is_revoked_and_its_secret_is_shown_once() {
    let house = House::new();
    house.up(&[]);
    let key = house
        .run(&["keys", "create", "for a test", "--scope", "admin"])
        .expect(0)
        .stdout
        .trim()
        .to_owned();
    let id = key.split('_').nth(1).unwrap().to_owned();
    let listed = house.run(&["keys", "list", "--json"]).expect(0).stdout;
    assert!(listed.contains(&id) && !listed.contains(&key), "{listed}");

    let control_url = house.exported("HIVE_CONTROL_URL");
    let elsewhere = House::new();
    let list = || {
        let mut command = elsewhere.command(&["worker", "list"]);
        command
            .env("HIVE_CONTROL_URL", &control_url)
            .env("HIVE_ADMIN_KEY", &key);
        Started::new(command).end()
    };
    list().expect(0);
    assert_eq!(
        house.json(&["keys", "revoke", &id]),
        serde_json::json!({"id": id, "revoked": true})
    );
    list().expect(1).says("revoked");
    house.run(&["keys", "revoke", "nothere1"]).expect(2);
    house.run(&["keys", "create", "x", "--scope", "everything"]).expect(2);
    house
        .run(&["keys", "create", "x", "--expires", "9999999999y"])
        .expect(2)
        .says("expires_in_s");
    house.run(&["keys", "list"]).expect(0);
    let whole = house.run(&["keys", "revoke", &key]).expect(2).says("public id");
    assert!(!whole.stderr.contains(&key));
}

#[test]
fn a_key_on_terms_is_rotated_and_shown_with_them() {
    let house = House::new();
    house.up(&[]);
    let terms = "--owner ann --model m1 --model m2 --expires 30d --requests-per-minute 60 --token-budget 1000 --trusted \
         --priority high --worker-label zone=a";
    let create: Vec<&str> = ["keys", "create", "laptop"]
        .into_iter()
        .chain(terms.split(' '))
        .collect();
    let key = house.run(&create).expect(0).stdout;
    let id = key.split('_').nth(1).unwrap().to_owned();
    let shown = house.run(&["keys", "show", &id]).expect(0).stdout;
    for fact in [
        "laptop",
        "ann",
        "m1 m2",
        "live until",
        "requests per minute  60",
        "token budget         1000",
        "trusted",
        "priority             high",
        "workers              zone=a",
    ] {
        assert!(shown.contains(fact), "{shown}");
    }
    let rotated = house.run(&["keys", "rotate", &id, "--grace", "0s"]).expect(0).stdout;
    let successor = rotated.split('_').nth(1).unwrap().to_owned();
    assert_ne!(successor, id);
    assert!(house.run(&["keys", "show", &id]).expect(0).stdout.contains("expired"));
    let shown = house.run(&["keys", "show", &successor]).expect(0).stdout;
    assert!(
        shown.contains(&format!("rotated from         {id}")) && shown.contains("m1 m2"),
        "{shown}"
    );
    house.run(&["keys", "rotate", &id]).expect(2);
    house.run(&["keys", "show", "nothere1"]).expect(2);
    house
        .run(&["keys", "create", "x", "--token-budget", "0"])
        .expect(2)
        .says("token_budget");
}
