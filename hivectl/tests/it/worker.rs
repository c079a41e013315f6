//! `hivectl worker …`: processes of this machine, from spawn to stop.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::house::{House, Started, eventually, kill};

fn spawn(house: &House, more: &[&str]) -> String {
    let ended = house.run(&[&["worker", "spawn", "scripted"], more].concat()).expect(0);
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
    ended.stdout.trim().to_owned()
}

#[test]
fn a_spawned_worker_is_listed_serves_and_stops() {
    let house = House::new();
    house.up(&[]);
    let id = spawn(&house, &["--model", "other", "--slots", "3"]);
    let worker = house.worker(&id).unwrap();
    let mut keys: Vec<&String> = worker.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(
        keys,
        [
            "epoch",
            "host",
            "id",
            "in_flight",
            "model",
            "pid",
            "slots",
            "state",
            "url"
        ]
    );
    assert_eq!(
        (&worker["model"], &worker["state"], &worker["slots"]),
        (&"other".into(), &"ready".into(), &3.into())
    );

    assert_eq!(
        house
            .run(&["jobs", "submit", "--model", "other", "--prompt", "hello"])
            .expect(0)
            .stdout,
        "hello\n"
    );
    house.run(&["worker", "stop", &id]).expect(0).says("has stopped");
    assert_eq!(house.worker(&id), None);
    assert_eq!(house.processes().len(), 3, "{:?}", house.processes());
    house
        .run(&["jobs", "submit", "--model", "other", "--prompt", "hello"])
        .expect(1)
        .says("No live worker");
}

#[test]
fn a_name_is_used_once() {
    let house = House::new();
    house.up(&[]);
    assert_eq!(spawn(&house, &["--model", "m", "--name", "mine"]), "mine");
    house
        .run(&["worker", "spawn", "scripted", "--model", "m", "--name", "mine"])
        .expect(1)
        .says("there is a worker mine already");
}

#[test]
fn a_killed_worker_leaves_the_list_of_the_ready() {
    let house = House::new();
    house.up(&[]);
    spawn(&house, &["--model", "m", "--name", "mine"]);
    kill(house.ready("mine", None), Signal::SIGKILL);
    eventually("the dead worker is not ready any more", || {
        let mine = house.worker("mine");
        mine.is_none_or(|worker| worker["state"] != "ready").then_some(())
    });
    house
        .run(&["worker", "stop", "mine"])
        .expect(0)
        .says("was not running any more");
    assert_eq!(house.worker("mine"), None);
}

#[test]
fn the_name_of_a_killed_worker_is_free_at_once() {
    let house = House::new();
    house.up(&[]);
    spawn(&house, &["--model", "m", "--name", "mine"]);
    let first = house.ready("mine", None);
    kill(first, Signal::SIGKILL);
    eventually("its process is gone", || (house.processes().len() == 3).then_some(()));
    spawn(&house, &["--model", "m", "--name", "mine"]);
    assert_ne!(house.ready("mine", None), first);
}

#[test]
fn a_restarted_worker_keeps_its_id_and_gets_a_new_epoch() {
    let house = House::new();
    house.up(&[]);
    let spawned = spawn(&house, &["--model", "other"]);
    for id in [spawned.as_str(), "scripted-0"] {
        let before = house.worker(id).unwrap();
        assert_eq!(house.run(&["worker", "restart", id]).expect(0).stdout.trim(), id);
        let after = house.worker(id).unwrap();
        assert_eq!(
            (&after["state"], &after["model"]),
            (&Value::from("ready"), &before["model"])
        );
        assert_ne!(after["pid"], before["pid"]);
        assert!(after["epoch"].as_i64() > before["epoch"].as_i64());
    }
    assert_eq!(house.processes().len(), 4, "{:?}", house.processes());
}

#[test]
fn a_quarantined_worker_is_listed_until_it_is_stopped_or_taken_out() {
    let house = House::new();
    house.up(&[]);
    let record = |gateway: &str| {
        let record = serde_json::json!({
            "pid": 1, "start": 1, "id": "w", "model": "m", "model_path": null, "device": "cpu", "slots": 2,
            "threads": null, "port": null, "script": null, "gateway": gateway, "supervised": false,
            "stopping": false, "trouble": "it died",
        });
        std::fs::write(house.home().join("run/workers/w.json"), record.to_string()).unwrap();
    };
    let control_url = house.exported("HIVE_CONTROL_URL");
    for act in ["stop", "detach"] {
        record(&control_url);
        let worker = house.worker("w").unwrap();
        assert_eq!(
            (&worker["state"], &worker["message"]),
            (&"quarantined".into(), &"it died".into())
        );
        house.run(&["worker", act, "w"]).expect(0);
        assert_eq!(house.worker("w"), None);
    }
    record("http://10.0.0.7:7412");
    assert_eq!(house.worker("w"), None, "it is another gateway's");
}

#[test]
fn a_worker_that_cannot_load_says_why_and_leaves_nothing() {
    let house = House::new();
    house.up(&[]);
    let script = house.file("bad.json", r#"{"fail_load": "the tensor is bent"}"#);
    let arguments = [
        "worker", "spawn", "scripted", "--model", "m", "--name", "bad", "--script", &script,
    ];
    house
        .run(&arguments)
        .expect(1)
        .says("worker bad died while starting")
        .says("the tensor is bent");
    assert_eq!(house.processes().len(), 3, "{:?}", house.processes());
    assert!(
        house
            .run(&["worker", "logs", "bad"])
            .expect(0)
            .stdout
            .contains("the tensor is bent")
    );
}

#[test]
fn a_spawn_that_is_interrupted_or_too_slow_leaves_nothing() {
    let house = House::new();
    house.up(&[]);
    let script = house.file("slow.json", r#"{"load_ms": 600000}"#);
    let arguments = ["worker", "spawn", "scripted", "--model", "m", "--script", &script];
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 1), (Signal::SIGHUP, 1)] {
        let mut spawning = house.start(&arguments);
        spawning.until("loading m");
        spawning.signal(signal);
        spawning.end().expect(code);
        assert_eq!(house.processes().len(), 3, "{signal}: {:?}", house.processes());
    }
    house
        .run(&[&arguments[..], &["--timeout", "1"]].concat())
        .expect(124)
        .says("was not ready within 1 s");
    assert_eq!(house.processes().len(), 3, "{:?}", house.processes());
}

#[test]
fn without_waiting_the_id_comes_before_the_model_is_loaded() {
    let house = House::new();
    house.up(&[]);
    let script = house.file("slow.json", r#"{"load_ms": 600000}"#);
    let id = spawn(&house, &["--model", "m", "--no-wait", "--script", &script]);
    eventually("it is loading", || {
        house.worker(&id).filter(|worker| worker["state"] == "loading")
    });
    house
        .run(&["jobs", "submit", "--model", "m", "--prompt", "x"])
        .expect(1)
        .says("loaded");
    assert_eq!(
        house.json(&["worker", "stop", &id]),
        serde_json::json!({"id": id, "stopped": true})
    );
    assert_eq!(house.worker(&id), None);
}

#[test]
fn a_log_can_be_read_and_followed() {
    let house = House::new();
    house.up(&[]);
    let id = spawn(&house, &["--model", "m"]);
    assert_eq!(
        house
            .run(&["worker", "logs", &id, "-n", "1"])
            .expect(0)
            .stdout
            .lines()
            .count(),
        1
    );
    let mut following = house.start(&["worker", "logs", &id, "-f"]);
    following.until("joined");
    house.run(&["worker", "stop", &id]).expect(0);
    following.until("leaving");
    following.signal(Signal::SIGINT);
    following.end().expect(130);
}

#[test]
fn unknown_workers_and_missing_gateways_have_exit_codes_of_their_own() {
    let house = House::new();
    house
        .run(&["worker", "list"])
        .expect(3)
        .says("no gateway runs in")
        .says("hivectl up");
    house.run(&["worker", "spawn", "scripted", "--model", "m"]).expect(3);
    house
        .run(&["--control-url", "http://127.0.0.1:1", "worker", "list"])
        .expect(2)
        .says("no admin key");
    house.up(&[]);
    // The port next door is no control plane, and so says nothing about any worker.
    let (data_url, key) = (house.exported("OPENAI_BASE_URL"), house.exported("HIVE_ADMIN_KEY"));
    for command in [
        &["worker", "list"][..],
        &["worker", "stop", "nobody"],
        &["keys", "list"],
    ] {
        let mut command = house.command(command);
        command.env("HIVE_CONTROL_URL", &data_url).env("HIVE_ADMIN_KEY", &key);
        Started::new(command).end().expect(3).says("is not a control plane");
    }
    house
        .run(&["worker", "detach", "scripted-0"])
        .expect(2)
        .says("hivectl worker stop scripted-0");
    for command in [
        &["worker", "stop", "nobody"][..],
        &["worker", "restart", "nobody"],
        &["worker", "logs", "nobody"],
        &["worker", "detach", "nobody"],
    ] {
        house.run(command).expect(2);
    }
    house
        .run(&["worker", "spawn", "cpu", "--model", "m", "--gpu", "0"])
        .expect(2)
        .says("--gpu");
}
