//! `--host`: commands done on another machine, over a real sshd.

mod machine;

use std::fs;

use gateway::audit::note;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    fake_hub::gguf,
    house::{House, Started, eventually, recorded_pid},
};
use machine::Machine;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn models_are_looked_after_where_they_lie() {
    let house = House::new();
    let there = Machine::beside(&house);
    fs::write(there.path("tiny.gguf"), gguf(50_000, 1)).unwrap();
    let file = there.path("tiny.gguf").to_str().unwrap().to_owned();

    let ended = there
        .run(&house, &["models", "download", &file, "--name", "tiny"])
        .expect(0);
    assert!(ended.stdout.starts_with("tiny ("), "{}", ended.stdout);
    let listed = json(&there.run(&house, &["models", "list", "--json"]).expect(0).stdout);
    assert_eq!(
        (&listed[0]["name"], listed.as_array().unwrap().len()),
        (&"tiny".into(), 1)
    );
    assert!(
        listed[0]["path"]
            .as_str()
            .unwrap()
            .starts_with(there.path("models").to_str().unwrap()),
        "{listed}"
    );
    assert_eq!(house.json(&["models", "list"]), json("[]"));

    assert_eq!(there.run(&house, &["models", "verify"]).expect(0).stdout, "ok tiny\n");
    there.run(&house, &["models", "rm", "tiny"]).expect(0);
    assert_eq!(
        json(&there.run(&house, &["models", "list", "--json"]).expect(0).stdout),
        json("[]")
    );
}

#[test]
fn a_failure_there_is_told_here_with_its_exit_code() {
    let house = House::new();
    let there = Machine::beside(&house);
    there
        .run(&house, &["models", "show", "nothing"])
        .expect(2)
        .says("on box: there is no model called nothing")
        .says("on box: see what there is");
    there
        .run(&house, &["models", "download", "/no/such/file.gguf"])
        .expect(1)
        .says("/no/such/file.gguf");
    fs::create_dir_all(there.path("home")).unwrap();
    fs::write(there.path("home/config.toml"), "[hivectl]\nmodles = 1\n").unwrap();
    there.run(&house, &["models", "list"]).expect(2).says("modles");
}

#[test]
fn a_worker_spawned_there_serves_this_gateway() {
    let house = House::new();
    let there = Machine::beside(&house);
    house.up(&[]);
    let spawned = there
        .run(&house, &["worker", "spawn", "scripted", "--model", "far"])
        .expect(0);
    let id = spawned.stdout.trim();
    assert_eq!(spawned.stdout, format!("{id}\n"));
    let record = |home| house.path(home).join(format!("run/workers/{id}.json"));
    let pid = recorded_pid(&record("box/home"));
    assert!(!record("home").exists());

    assert_eq!(house.ready(id, None), pid);
    let answer = house
        .run(&["jobs", "submit", "--model", "far", "--prompt", "one two three"])
        .expect(0);
    assert_eq!(answer.stdout, "one two three\n");

    let listed = json(&there.run(&house, &["worker", "list", "--json"]).expect(0).stdout);
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["id"], &listed[0]["state"]),
        (1, &id.into(), &"ready".into())
    );
    let log = there.run(&house, &["worker", "logs", id]).expect(0).stdout;
    assert!(log.contains("joined"), "{log}");
    house.run(&["worker", "logs", id]).expect(2).says("there is no log");

    assert_eq!(
        there.run(&house, &["worker", "restart", id]).expect(0).stdout.trim(),
        id
    );
    assert_ne!(house.ready(id, Some(pid)), pid);
    there.run(&house, &["worker", "stop", id]).expect(0).says("has stopped");
    assert_eq!(house.worker(id), None);
    assert_eq!(
        json(&there.run(&house, &["worker", "list", "--json"]).expect(0).stdout),
        json("[]")
    );
    there
        .run(&house, &["worker", "stop", id])
        .expect(2)
        .says(&format!("no worker {id} was started on this machine"));
}

#[test]
fn a_worker_that_cannot_load_there_says_why_and_leaves_nothing() {
    let house = House::new();
    let there = Machine::beside(&house);
    house.up(&[]);
    let before = house.processes().len();
    let script = house.file("bad.json", r#"{"fail_load": "the tensor is bent"}"#);
    let arguments = [
        "worker", "spawn", "scripted", "--model", "m", "--name", "bad", "--script", &script,
    ];
    there
        .run(&house, &arguments)
        .expect(1)
        .says("on box: worker bad died while starting")
        .says("the tensor is bent");
    eventually("nothing of it is left", || {
        (house.processes().len() == before).then_some(())
    });
    assert!(!there.path("home/run/workers/bad.json").exists());
}

#[test]
fn a_worker_is_never_told_to_look_for_the_gateway_on_its_own_machine() {
    let house = House::new();
    let there = Machine::beside(&house);
    house.up(&[]);
    let spawn = ["worker", "spawn", "scripted", "--model", "m"];
    there
        .run_as(&house, "far", &spawn)
        .expect(2)
        .says("a worker on far cannot reach this gateway")
        .says("control.advertise_url");
    // `box` is this machine, so that is where the gateway is; other machines are still thought of.
    there.run(&house, &spawn).expect(0).says("control.advertise_url");
    let url = house.exported("HIVE_CONTROL_URL");
    let named = there
        .run(&house, &[&spawn[..], &["--gateway", &url]].concat())
        .expect(0);
    assert!(!named.stderr.contains("advertise_url"), "{}", named.stderr);
}

#[test]
fn a_worker_there_is_told_the_address_that_the_gateway_advertises() {
    let house = House::new();
    let there = Machine::beside(&house);
    fs::create_dir(house.home()).unwrap();
    house.file(
        "home/config.toml",
        "[control]\nadvertise_url = \"http://localhost:1\"\n",
    );
    house.up(&[]);
    let arguments = [
        "worker",
        "spawn",
        "scripted",
        "--model",
        "m",
        "--name",
        "lonely",
        "--no-wait",
    ];
    let spawned = there.run(&house, &arguments).expect(0).says("at http://localhost:1");
    assert_eq!(spawned.stdout, "lonely\n");
    let record = json(&fs::read_to_string(there.path("home/run/workers/lonely.json")).unwrap());
    assert_eq!(record["gateway"], "http://localhost:1");
}

#[test]
fn what_is_the_gateways_own_act_is_done_on_no_other_machine() {
    let house = House::new();
    let there = Machine::beside(&house);
    for arguments in [
        &["worker", "attach", "--url", "http://127.0.0.1:1"][..],
        &["worker", "detach", "w"],
    ] {
        there.run(&house, arguments).expect(2).says("leave --host out");
    }
    house
        .run(&["models", "list", "--ssh-config", "x"])
        .expect(2)
        .says("go with --host");
}

#[test]
fn each_way_of_not_getting_there_is_a_sentence_of_its_own() {
    let house = House::new();
    let there = Machine::beside(&house);
    for (host, sentence, next) in [
        ("closed", "closed refused the connection", "start sshd there"),
        ("nowhere", "nowhere is a name that nobody knows", "HostName"),
        ("locked", "locked refused your key", "ssh-copy-id"),
        (
            "stranger",
            "stranger has an unknown host key",
            "compare the fingerprint",
        ),
        ("changed", "changed has changed its host key", "ssh-keygen -f "),
    ] {
        there
            .run_as(&house, host, &["models", "list"])
            .expect(3)
            .says(sentence)
            .says(next);
    }
    fs::write(there.path("config"), "Nonsense yes\n").unwrap();
    there
        .run(&house, &["models", "list"])
        .expect(2)
        .says("ssh does not accept its configuration");
}

#[test]
fn a_machine_that_never_answers_is_given_up() {
    let house = House::new();
    let there = Machine::beside(&house);
    there
        .run_as(&house, "mute", &["models", "list"])
        .expect(3)
        .says("mute did not answer within 10 s");
}

#[test]
fn each_way_of_having_no_usable_hivectl_there_is_a_sentence_of_its_own() {
    let house = House::new();
    let there = Machine::beside(&house);
    let version = env!("CARGO_PKG_VERSION");
    let newer = there.program("newer", r#"echo '{"hivectl":"9.9.9"}'; read never"#);
    let older = there.program("older", "echo \"error: unrecognized subcommand '$1'\" >&2; exit 2");
    let broken = there.program("broken", "echo 'no such library' >&2; exit 41");
    let dying = there.program(
        "dying",
        &format!("echo '{{\"hivectl\":\"{version}\"}}'; read ask; exit 42"),
    );
    let unfit = there.path("user.pub").to_str().unwrap().to_owned();
    for (program, sentence) in [
        (
            "hivectl-of-nobody",
            "box has no hivectl-of-nobody that it could run".to_owned(),
        ),
        (
            "/nowhere/hivectl",
            "box has no /nowhere/hivectl that it could run".to_owned(),
        ),
        (&unfit, "that it could run".to_owned()),
        (&newer, format!("box runs hivectl 9.9.9, and this machine {version}")),
        (&older, "box runs an older hivectl".to_owned()),
        (
            &broken,
            "ended before it said anything (exit code 41): no such library".to_owned(),
        ),
        (&dying, "ended in the middle of the command (exit code 42)".to_owned()),
    ] {
        there
            .run(&house, &["models", "list", "--remote-hivectl", program])
            .expect(3)
            .says(&sentence);
    }
}

#[test]
fn what_a_profile_prints_is_no_part_of_the_answer() {
    let house = House::new();
    let there = Machine::beside(&house);
    let noisy = there.program(
        "noisy",
        "echo 'Welcome to box!'; echo '{\"a\": 1}'; exec hivectl \"$@\"",
    );
    let listed = there
        .run(&house, &["models", "list", "--json", "--remote-hivectl", &noisy])
        .expect(0);
    assert_eq!(json(&listed.stdout), json("[]"));
}

#[test]
fn another_machine_keeps_watch_over_the_record() {
    let house = House::new();
    let there = Machine::beside(&house);
    fs::create_dir(house.home()).unwrap();
    let hivectl = env!("CARGO_BIN_EXE_hivectl");
    let (home, ssh_config) = (house.home(), there.path("config"));
    // As an operator would have it: at every start and stop, and every ten minutes.
    let command = [
        hivectl,
        "--state-dir",
        home.to_str().unwrap(),
        "audit",
        "anchor",
        "--checkpoint",
        "-",
        "--host",
        "box",
    ];
    let command = [&command[..], &["--ssh-config", ssh_config.to_str().unwrap()]].concat();
    house.file("home/config.toml", &format!("[audit]\nanchor_command = {command:?}\n"));
    house.up(&["--audit", "eu-strict"]);
    let kept = |house: &House| {
        let file = house.path("kept").to_str().unwrap().to_owned();
        there.run(house, &["audit", "anchors", "--out", &file]).expect(0);
        fs::read_to_string(file).unwrap()
    };
    assert_eq!(
        kept(&house).matches("hive/audit/").count(),
        2,
        "one note, which names the journal twice"
    );
    house
        .run(&["jobs", "submit", "--model", "echo", "--prompt", "one"])
        .expect(0);
    // One that cannot be reached keeps no other from it.
    there
        .run(&house, &["audit", "anchor", "--host", "closed"])
        .expect(3)
        .says("closed refused the connection")
        .says("box: keeps ");
    let three = fs::read_dir(home.join("audit")).unwrap();
    let older: Vec<_> = three
        .map(|file| file.unwrap().path())
        .map(|file| (file.clone(), fs::read(file).unwrap()))
        .collect();
    house.run(&["down"]).expect(0);
    let anchors = kept(&house);
    assert_eq!(
        note::split(&anchors).0.len(),
        3,
        "at the start, when asked, at the stop"
    );
    let verify = ["audit", "verify", "--anchors", house.path("kept").to_str().unwrap()].map(str::to_owned);
    let verify: Vec<&str> = verify.iter().map(String::as_str).collect();
    house.run(&verify).expect(0);

    // The whole folder is replaced by an older copy: it verifies, but not against what the other machine has seen.
    for (file, bytes) in &older {
        fs::write(file, bytes).unwrap();
    }
    assert_ne!(house.run(&["audit", "verify"]).code, 1);
    house.run(&verify).expect(2).says("missing");
    let notes = fs::read_to_string(home.join("audit/000001.notes")).unwrap();
    let last = house.file("last", note::split(&notes).0.last().unwrap());
    there
        .run(&house, &["audit", "anchor", "--checkpoint", &last])
        .expect(1)
        .says("is not the one that was seen here before")
        .says("records were signed, and now there are");
    // A gateway that wants its anchor does not even start on it.
    let refused = house.run(&up_again());
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert_eq!(kept(&house), anchors, "nothing of it was kept");
}

#[test]
fn a_download_there_is_on_the_record_of_the_hive_here() {
    let house = House::new();
    let there = Machine::beside(&house);
    house.up(&[]);
    fs::write(there.path("tiny.gguf"), gguf(50_000, 1)).unwrap();
    let file = there.path("tiny.gguf").to_str().unwrap().to_owned();
    there.run(&house, &["models", "download", &file]).expect(0);
    let records = house.run(&["audit", "tail", "-n", "100"]).expect(0).stdout;
    let download = records.lines().find(|line| line.contains("model.download")).unwrap();
    assert_eq!(json(download)["object"]["model"], "tiny");
    let here = house.run(&["models", "list", "--json"]).expect(0).stdout;
    assert_eq!(json(&here), json("[]"));
}

/// A start that is expected to fail.
fn up_again() -> [&'static str; 13] {
    [
        "up",
        "--no-build",
        "--device",
        "scripted",
        "--model",
        "echo",
        "--port",
        "0",
        "--control-port",
        "0",
        "--detach",
        "--audit",
        "eu-strict",
    ]
}

#[test]
fn a_name_that_is_no_name_never_reaches_ssh() {
    let house = House::new();
    let there = Machine::beside(&house);
    let trap = house.path("trap");
    let proxy = format!("-oProxyCommand=touch {}", trap.display());
    let hivectl = format!("hivectl;touch {}", trap.display());
    for (flag, value) in [
        ("--host", proxy.as_str()),
        ("--host", "box;id"),
        ("--host", "$(id)@box"),
        ("--host", "-lroot@box"),
        ("--remote-hivectl", &hivectl),
        ("--remote-hivectl", "-c"),
    ] {
        let mut command = house.command(&["models", "list"]);
        // No ssh can be found, so that starting one would be another failure.
        command.arg(format!("{flag}={value}")).env("PATH", there.path("bin"));
        let ended = Started::new(command).end();
        assert_eq!(ended.code, 2, "{flag}={value}: {}", ended.stderr);
        assert!(ended.stderr.contains("invalid value"), "{}", ended.stderr);
    }
    assert!(!trap.exists());
}

#[test]
fn an_interrupted_command_has_stopped_there_too() {
    let house = House::new();
    let there = Machine::beside(&house);
    house.up(&[]);
    let before = house.processes().len();
    let hivectl = there.path("bin/hivectl").to_str().unwrap().to_owned();
    let script = house.file("slow.json", r#"{"load_ms": 600000}"#);
    let arguments = [
        "worker",
        "spawn",
        "scripted",
        "--model",
        "m",
        "--name",
        "slow",
        "--script",
        &script,
        "--remote-hivectl",
        &hivectl,
    ];
    let mut spawning = there.start(&house, &arguments);
    spawning.until("loading worker slow");
    eventually("the gateway sees it", || house.worker("slow"));
    for line in house.processes() {
        assert!(
            !line.contains("hvj_") && !line.contains("hvk_"),
            "a secret on a command line: {line}"
        );
    }
    spawning.signal(Signal::SIGINT);
    spawning.end().expect(130).says("interrupted");
    assert!(!there.path("home/run/workers/slow.json").exists());
    eventually("nothing of it is left", || {
        (house.processes().len() == before).then_some(())
    });

    let arguments = [
        "worker",
        "spawn",
        "scripted",
        "--model",
        "m",
        "--script",
        &script,
        "--timeout",
        "1",
    ];
    there
        .run(&house, &arguments)
        .expect(124)
        .says("was not ready within 1 s");
    eventually("nothing of it is left", || {
        (house.processes().len() == before).then_some(())
    });
}

#[test]
fn a_machine_that_goes_away_in_the_middle_is_a_failure() {
    let house = House::new();
    let there = Machine::beside(&house);
    house.up(&[]);
    there
        .run(&house, &["worker", "spawn", "scripted", "--model", "m", "--name", "w"])
        .expect(0);
    let mut following = there.start(&house, &["worker", "logs", "w", "--follow"]);
    following.until("joined");
    there.cut();
    following
        .end()
        .expect(3)
        .says("box was lost in the middle of the command");
    // What was started there is still there.
    assert_eq!(house.worker("w").unwrap()["state"], "ready");

    let mut following = there.start(&house, &["worker", "logs", "w", "--follow"]);
    following.until("joined");
    following.signal(Signal::SIGINT);
    following.end().expect(130);
}
