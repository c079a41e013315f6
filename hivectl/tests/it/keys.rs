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
    house.run(&["keys", "revoke", &id]).expect(0);
    list().expect(1).says("revoked");
    house.run(&["keys", "revoke", "nothere1"]).expect(2);
    house.run(&["keys", "create", "x", "--scope", "everything"]).expect(2);
}
