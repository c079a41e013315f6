//! `hivectl worker attach`: another hive's data plane stands in for any OpenAI-compatible server.

use std::fs;

use crate::house::{House, eventually};

#[test]
fn an_attached_server_is_listed_answers_and_can_be_taken_out() {
    let (ours, theirs) = (House::new(), House::new());
    ours.up(&[]);
    theirs.up(&["--model", "theirs"]);
    let url = theirs.exported("OPENAI_BASE_URL");
    let key = theirs.home().join("keys/inference");
    let key = key.to_str().unwrap();

    let attached = ours
        .run(&["worker", "attach", "--url", &url, "--api-key-file", key])
        .expect(0);
    let id = attached.stdout.trim().to_owned();
    eventually("it is ready", || {
        ours.worker(&id).filter(|worker| worker["state"] == "ready")
    });
    let worker = ours.worker(&id).unwrap();
    assert_eq!(
        (&worker["model"], &worker["pid"]),
        (&"theirs".into(), &serde_json::Value::Null)
    );
    let answer = ours
        .run(&["jobs", "submit", "--model", "theirs", "--prompt", "from next door"])
        .expect(0)
        .stdout;
    assert_eq!(answer, "from next door\n");

    ours.run(&["worker", "stop", &id]).expect(2).says("worker detach");
    assert_eq!(
        ours.json(&["worker", "detach", &id]),
        serde_json::json!({"id": id, "detached": true})
    );
    assert_eq!(ours.worker(&id), None);
    // One of ours that lives is no server: it is stopped, or shut out on purpose.
    let ours_own = ["worker", "detach", "scripted-0"];
    ours.run(&ours_own).expect(2).says("--force");
    ours.run(&[&ours_own[..], &["--force"]].concat()).expect(0);
    assert_eq!(theirs.json(&["status"])["gateway"]["ready"], true);
}

#[test]
fn an_attached_server_goes_by_the_name_and_the_models_it_is_given() {
    let (ours, theirs) = (House::new(), House::new());
    ours.up(&[]);
    theirs.up(&["--model", "theirs"]);
    let url = theirs.exported("OPENAI_BASE_URL");
    let key = theirs.home().join("keys/inference");
    let arguments = [
        "worker",
        "attach",
        "--url",
        &url,
        "--api-key-file",
        key.to_str().unwrap(),
        "--model",
        "theirs",
        "--name",
        "next-door",
    ];
    assert_eq!(ours.run(&arguments).expect(0).stdout, "next-door\n");
}

#[test]
fn a_server_that_is_not_there_is_the_other_sides_fault() {
    let house = House::new();
    house.up(&[]);
    let ended = house
        .run(&["worker", "attach", "--url", "http://127.0.0.1:1"])
        .expect(3);
    ended.says("was not attached").says("check its address");
}

#[test]
fn a_key_file_that_others_can_read_or_that_is_not_there_is_refused() {
    let house = House::new();
    house.up(&[]);
    let open = house.file("open", "hvk_x\n");
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    house
        .run(&[
            "worker",
            "attach",
            "--url",
            "http://127.0.0.1:1",
            "--api-key-file",
            &open,
        ])
        .expect(1)
        .says("chmod 600");
    house
        .run(&[
            "worker",
            "attach",
            "--url",
            "http://127.0.0.1:1",
            "--api-key-file",
            "none",
        ])
        .expect(2);
}
