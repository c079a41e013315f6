//! `hivectl down` and `status`: also when there is nothing, or nobody who keeps it up.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::house::{House, eventually, kill, recorded_pid};

#[test]
fn down_is_idempotent_and_status_fails_when_nothing_runs() {
    let house = House::new();
    assert_eq!(house.run(&["down"]).expect(0).stdout, "nothing is running\n");
    house.up(&[]);
    assert_eq!(house.run(&["down"]).expect(0).stdout, "the hive is down\n");
    assert_eq!(house.run(&["down"]).expect(0).stdout, "nothing is running\n");
    house.is_empty();
    let status = house.run(&["status", "--json"]).expect(1).says("nothing runs in");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&status.stdout).unwrap(),
        json!({"gateway": null, "workers": []})
    );
}

#[test]
fn a_status_that_cannot_tell_the_workers_fails() {
    let house = House::new();
    house.up(&[]);
    let key = house.home().join("keys/admin");
    let away = house.path("admin");
    fs::rename(&key, &away).unwrap();
    house.run(&["status"]).expect(2).says("no admin key");
    let status = house.run(&["status", "--json"]).expect(2).says("no admin key").stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&status["gateway"]["ready"], &status["workers"]),
        (&json!(true), &json!(null))
    );
    fs::rename(&away, &key).unwrap();
}

#[test]
fn down_stops_workers_that_were_spawned_too() {
    let house = House::new();
    house.up(&[]);
    house
        .run(&["worker", "spawn", "scripted", "--model", "other"])
        .expect(0);
    house.run(&["down"]).expect(0);
    house.is_empty();
}

#[test]
fn down_stops_an_up_that_is_still_starting() {
    let house = House::new();
    let script = house.file("slow.json", r#"{"load_ms": 600000}"#);
    let mut up = house.start_up(&["--script", &script]);
    up.until("loading echo");
    house.run(&["down"]).expect(0).says("a start is under way");
    up.end().expect(1).says("stopped before the hive was ready");
    house.is_empty();
}

#[test]
fn down_lets_an_answer_end_unless_told_not_to() {
    let house = House::new();
    let script = house.file("long.json", r#"{"tokens": 40, "interval_ms": 50}"#);
    house.up(&["--script", &script]);
    let mut job = house.start(&["jobs", "submit", "--model", "echo", "--prompt", "go"]);
    // Its id is told with the first token.
    eventually("the job runs", || (!job.stderr().is_empty()).then_some(()));
    house.run(&["down"]).expect(0);
    let whole = job.end().expect(0);
    assert!(!whole.stdout.trim().is_empty());

    let endless = house.file("endless.json", r#"{"tokens": 100000, "interval_ms": 50}"#);
    house.up(&["--script", &endless]);
    job = house.start(&["jobs", "submit", "--model", "echo", "--prompt", "go"]);
    eventually("the job runs", || (!job.stderr().is_empty()).then_some(()));
    house.run(&["down", "--drain", "0"]).expect(0);
    house.is_empty();
    assert_ne!(job.end().code, 0);
}

#[test]
fn down_stops_everything_after_the_supervisor_was_killed() {
    let house = House::new();
    house.up(&[]);
    kill(recorded_pid(&house.home().join("run/supervisor.json")), Signal::SIGKILL);
    house.run(&["down"]).expect(0);
    house.is_empty();
}

#[test]
fn a_process_that_has_our_pid_by_now_is_left_alone() {
    let house = House::new();
    house.up(&[]);
    house.run(&["down"]).expect(0);
    // This test's own process stands in for the stranger.
    let stranger = json!({
        "pid": std::process::id(), "start": 1, "id": "w", "model": "m", "model_path": null, "device": "cpu", "slots": null,
        "threads": null, "port": null, "script": null, "gateway": "http://127.0.0.1:1", "supervised": false, "stopping": false,
    });
    fs::write(house.home().join("run/workers/w.json"), stranger.to_string()).unwrap();
    house.run(&["down"]).expect(0);
    house.is_empty();
}
