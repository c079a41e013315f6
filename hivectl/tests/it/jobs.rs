//! `hivectl jobs …`: requests, how they end, and what the books say.

use std::{fs::File, net::TcpListener, process::Stdio};

use nix::sys::signal::Signal;

use crate::house::{House, Started, eventually};

#[test]
fn a_job_tells_its_id_and_streams_its_tokens() {
    let house = House::new();
    house.up(&[]);
    let ended = house
        .run(&[
            "jobs",
            "submit",
            "--model",
            "echo",
            "--prompt",
            "one two",
            "--max-tokens",
            "9",
            "--temperature",
            "0",
        ])
        .expect(0);
    assert_eq!(ended.stdout, "one two\n");
    let id = ended.stderr.trim().to_owned();
    let job = eventually("the books have it", || {
        house
            .json(&["jobs", "list"])
            .as_array()
            .unwrap()
            .iter()
            .find(|job| job["id"] == *id && job["state"] == "completed")
            .cloned()
    });
    let mut keys: Vec<&String> = job.as_object().unwrap().keys().collect();
    keys.sort();
    let expected = [
        "completion_tokens",
        "id",
        "key_id",
        "model",
        "prompt_tokens",
        "started_at_ms",
        "state",
        "total_ms",
        "ttft_ms",
        "worker",
    ];
    assert_eq!(keys, expected);
    assert_eq!(
        (&job["model"], &job["worker"], &job["completion_tokens"]),
        (&"echo".into(), &"scripted-0".into(), &2.into())
    );
}

#[test]
fn a_prompt_and_a_key_never_go_to_whoever_else_listens_on_the_gateways_host() {
    let (house, elsewhere) = (House::new(), House::new());
    house.up(&[]);
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let (ours, theirs) = (
        house.exported("OPENAI_BASE_URL"),
        format!("http://{}/v1", stranger.local_addr().unwrap()),
    );
    let submit = |from: &House, base_url: &str, with_key: bool| {
        let mut submit = from.command(&["jobs", "submit", "--model", "echo", "--prompt", "one two"]);
        for name in ["HIVE_CONTROL_URL", "HIVE_ADMIN_KEY"] {
            submit.env(name, house.exported(name));
        }
        if with_key {
            submit.env("OPENAI_API_KEY", house.exported("OPENAI_API_KEY"));
        }
        submit.env("OPENAI_BASE_URL", base_url);
        Started::new(submit).end()
    };
    // What our own gateway wrote down counts more than what a shell says for other tools.
    assert_eq!(submit(&house, &theirs, true).expect(0).stdout, "one two\n");
    // Where nothing is written down, the address needs its own key beside it.
    submit(&elsewhere, &theirs, false).expect(2).says("OPENAI_API_KEY");
    assert_eq!(submit(&elsewhere, &ours, true).expect(0).stdout, "one two\n");
    assert!(stranger.accept().is_err());
}

#[test]
fn an_unknown_model_is_a_usage_error() {
    let house = House::new();
    house.up(&[]);
    house
        .run(&["jobs", "submit", "--model", "nobody", "--prompt", "x"])
        .expect(2)
        .says("`nobody` does not exist");
}

#[test]
fn a_worker_lost_in_the_middle_fails_the_job_with_a_sentence() {
    let house = House::new();
    let script = house.file(
        "die.json",
        r#"{"tokens": 5, "interval_ms": 20, "fault": {"at": 3, "kind": "die"}}"#,
    );
    house.up(&["--script", &script]);
    let ended = house
        .run(&["jobs", "submit", "--model", "echo", "--prompt", "x"])
        .expect(1)
        .says("lost");
    assert!(!ended.stdout.is_empty());
}

#[test]
fn ctrl_c_cancels_the_job() {
    let house = House::new();
    let script = house.file("endless.json", r#"{"tokens": 100000, "interval_ms": 20}"#);
    house.up(&["--script", &script]);
    let job = house.start(&["jobs", "submit", "--model", "echo", "--prompt", "x"]);
    let id = eventually("the job runs", || job.stderr().lines().next().map(str::to_owned));
    eventually("a token came", || (!job.stdout().is_empty()).then_some(()));
    job.signal(Signal::SIGINT);
    let ended = job.end().expect(130).says("cancelled");
    assert!(ended.stdout.ends_with('\n'), "{:?}", ended.stdout);
    eventually("the books say so", || {
        house
            .json(&["jobs", "list"])
            .as_array()
            .unwrap()
            .iter()
            .any(|job| job["id"] == *id && job["state"] == "cancelled")
            .then_some(())
    });
}

#[test]
fn a_job_can_be_cancelled_by_its_id() {
    let house = House::new();
    let script = house.file("endless.json", r#"{"tokens": 100000, "interval_ms": 20}"#);
    house.up(&["--script", &script]);
    let job = house.start(&["jobs", "submit", "--model", "echo", "--prompt", "x"]);
    let id = eventually("the job runs", || job.stderr().lines().next().map(str::to_owned));
    assert_eq!(
        house.json(&["jobs", "cancel", &id]),
        serde_json::json!({"id": id, "cancelled": true})
    );
    job.end().expect(1).says("cancelled");
    house.run(&["jobs", "cancel", "nothing"]).expect(2);
    house.run(&["jobs", "cancel", "../keys"]).expect(2);
}

#[test]
fn a_reader_that_leaves_ends_the_job_without_a_fault() {
    let house = House::new();
    let script = house.file("endless.json", r#"{"tokens": 100000, "interval_ms": 1}"#);
    house.up(&["--script", &script]);
    let mut job = house.command(&["jobs", "submit", "--model", "echo", "--prompt", "x"]);
    let mut job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(job.stdout.take());
    let status = eventually("the job ends", || job.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_full_disk_behind_stdout_is_told() {
    let house = House::new();
    house.up(&[]);
    let mut list = house.command(&["worker", "list"]);
    let ended = list
        .stdout(File::options().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("could not be written to stdout"));
}

#[test]
fn explain_tells_why_a_job_went_where_it_did() {
    let house = House::new();
    house.up(&[]);
    let ended = house
        .run(&["jobs", "submit", "--model", "echo", "--prompt", "one two"])
        .expect(0);
    let id = ended.stderr.trim().to_owned();
    let told = house.run(&["explain", &id]).expect(0).stdout;
    for part in [
        &*id,
        "normal priority, about ",
        "waiting for a slot",
        "to the first token",
        "Attempt 1: scripted-0 (epoch 1), because no other could take it.",
        "chosen",
        "tokens ahead",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let told = house.json(&["explain", &id]);
    assert_eq!(told["request"]["id"], *id);
    assert_eq!(told["decision"]["attempts"][0]["candidates"][0]["verdict"], "chosen");
    house.run(&["explain", "nothing"]).expect(2);
    house.run(&["explain", "../keys"]).expect(2);
}
