//! `hivectl up`: what it prints, what it finds, and what is left when it ends.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::house::{House, Started, eventually};

fn start_with_script(house: &House, script: &str, detach: bool) -> Started {
    let arguments = ["--script", script, "--detach"];
    house.start_up(&arguments[..if detach { 3 } else { 2 }])
}

#[test]
fn up_exports_what_a_shell_needs_and_nothing_else() {
    let house = House::new();
    let env = house.up(&[]).stdout;
    let names: Vec<&str> = env
        .lines()
        .map(|line| line.strip_prefix("export ").unwrap().split_once('=').unwrap().0)
        .collect();
    let expected = [
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
        "HIVE_MODEL",
        "HIVE_CONTROL_URL",
        "HIVE_ADMIN_KEY",
        "HIVE_HOME",
    ];
    assert_eq!(names, expected);

    // A shell that evaluates the lines needs no flag to find the hive.
    let script = r#"eval "$ENV"; "$HIVECTL" jobs submit --model "$HIVE_MODEL" --prompt 'one two'
        case $OPENAI_BASE_URL in */v1) ;; *) exit 9;; esac"#;
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", script])
        .env("ENV", &env)
        .env("HIVECTL", env!("CARGO_BIN_EXE_hivectl"));
    assert_eq!(Started::new(shell).end().expect(0).stdout, "one two\n");

    for key in ["admin", "inference"] {
        let mode = fs::metadata(house.home().join("keys").join(key))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let status = house.json(&["status"]);
    assert_eq!(status["gateway"]["ready"], true);
    assert_eq!(status["workers"][0]["id"], "scripted-0");
    assert_eq!(status["workers"][0]["state"], "ready");

    let address = status["gateway"]["data_url"]
        .as_str()
        .unwrap()
        .strip_prefix("http://")
        .unwrap()
        .to_owned();
    house.run(&["down"]).expect(0);
    house.is_empty();
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_second_up_finds_the_first_and_prints_the_same() {
    let house = House::new();
    let first = house.up(&[]);
    let before = house.processes();
    let second = house.up(&[]).says("up already");
    assert_eq!(second.stdout, first.stdout);
    assert_eq!(house.processes(), before);
    let third = house.up(&["--port", "1"]).says("--port counts at the next start");
    assert_eq!(third.stdout, first.stdout);
    // It returns at once, so Ctrl-C stops nothing.
    let fourth = house.start_up(&[]).end().expect(0).stdout;
    assert!(
        fourth.starts_with("The hive is up; `hivectl down` stops it"),
        "{fourth}"
    );
    house.run(&["worker", "stop", "scripted-0"]).expect(0);
    house.up(&[]).says("its worker scripted-0 was stopped");
}

#[test]
fn ups_at_the_same_time_make_one_hive() {
    let house = House::new();
    let starts: Vec<Started> = (0..3).map(|_| house.start_up(&["--detach", "--print-env"])).collect();
    let printed: Vec<String> = starts.into_iter().map(|start| start.end().expect(0).stdout).collect();
    assert!(printed[0].starts_with("export OPENAI_BASE_URL="));
    assert!(printed.iter().all(|env| *env == printed[0]));
    assert_eq!(house.processes().len(), 3, "{:?}", house.processes());
}

#[test]
fn two_hives_live_side_by_side() {
    let (one, other) = (House::new(), House::new());
    one.up(&[]);
    other.up(&[]);
    let urls = [&one, &other].map(|house| {
        house.json(&["status"])["gateway"]["data_url"]
            .as_str()
            .unwrap()
            .to_owned()
    });
    assert_ne!(urls[0], urls[1]);
    one.run(&["down"]).expect(0);
    one.is_empty();
    assert_eq!(other.json(&["status"])["gateway"]["ready"], true);
}

#[test]
fn a_hive_that_was_down_comes_up_with_the_same_keys() {
    let house = House::new();
    let key = |env: &str| {
        env.lines()
            .find(|line| line.contains("OPENAI_API_KEY"))
            .unwrap()
            .to_owned()
    };
    let before = key(&house.up(&[]).stdout);
    house.run(&["down"]).expect(0);
    assert_eq!(key(&house.up(&[]).stdout), before);
}

#[test]
fn a_named_port_that_is_taken_is_an_error_with_a_remedy() {
    let house = House::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for flag in ["--port", "--control-port"] {
        let ended = house.start_up(&["--detach", flag, &port]).end().expect(1);
        ended
            .says(&format!("port {port} on 127.0.0.1 cannot be used"))
            .says(flag);
        house.is_empty();
    }
}

#[test]
fn a_default_port_that_is_taken_gives_a_free_one_and_says_so() {
    let house = House::new();
    // Somebody else on this machine may hold it already, which serves as well.
    let _taken = TcpListener::bind("127.0.0.1:7411");
    let arguments = [
        "up",
        "--no-build",
        "--device",
        "scripted",
        "--model",
        "echo",
        "--control-port",
        "0",
        "--detach",
    ];
    house.run(&arguments).expect(0).says("port 7411 is taken");
    let url = house.json(&["status"])["gateway"]["data_url"].clone();
    assert_ne!(url, json!("http://127.0.0.1:7411"));
}

#[test]
fn ask_once_prints_only_the_answer_and_shuts_down() {
    let house = House::new();
    let ended = house.start_up(&["--ask", "one two three", "--once"]).end().expect(0);
    assert_eq!(ended.stdout, "one two three\n");
    house.is_empty();
    // On a hive that runs already, it is not ours to shut down.
    house.up(&[]);
    assert_eq!(
        house.start_up(&["--ask", "four", "--once"]).end().expect(0).stdout,
        "four\n"
    );
    assert_eq!(house.json(&["status"])["gateway"]["ready"], true);
}

#[test]
fn as_json_the_facts_and_the_answer_are_one_object() {
    let house = House::new();
    let facts = |asked: &[&str]| {
        let ended = house
            .start_up(&[asked, &["--detach", "--json"]].concat())
            .end()
            .expect(0);
        serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap()
    };
    let with_answer = facts(&["--ask", "one two"]);
    assert_eq!(
        (&with_answer["model"], &with_answer["answer"]),
        (&json!("echo"), &json!("one two"))
    );
    let mut without = facts(&[]);
    assert_eq!(without.get("answer"), None);
    without["answer"] = json!("one two");
    assert_eq!(without, with_answer);
}

#[test]
fn the_printed_lines_work_when_pasted() {
    let house = House::new();
    let mut up = house.start_up(&["--ask", "are you there"]);
    up.until("are you there");
    let printed = up.stdout();
    for (program, sign) in [("curl ", "\"Say \""), ("python3 ", "Say hello.\n")] {
        let line = printed.lines().find(|line| line.starts_with(program)).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", line]);
        let ended = Started::new(shell).end().expect(0);
        assert!(ended.stdout.contains(sign), "{line}: {}", ended.stdout);
    }
    up.signal(Signal::SIGINT);
    up.end().expect(130);
    house.is_empty();
}

#[test]
fn ctrl_c_stops_a_serving_hive_and_sigterm_does_it_quietly() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 0)] {
        let house = House::new();
        let mut up = house.start_up(&[]);
        up.until("The hive is up");
        up.signal(signal);
        up.end().expect(code);
        house.is_empty();
    }
}

#[test]
fn ctrl_c_while_the_model_loads_leaves_nothing() {
    for detach in [false, true] {
        let house = House::new();
        let script = house.file("slow.json", r#"{"load_ms": 600000}"#);
        let mut up = start_with_script(&house, &script, detach);
        up.until("loading echo");
        up.signal(Signal::SIGINT);
        up.end().expect(130).says("interrupted");
        house.is_empty();
    }
}

#[test]
fn ctrl_c_while_a_model_is_fetched_leaves_nothing() {
    let house = House::new();
    let silent_hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent_hub.local_addr().unwrap());
    let mut command = house.command(&[
        "up",
        "--no-build",
        "--port",
        "0",
        "--control-port",
        "0",
        "--model",
        "hf:org/repo/file.gguf",
    ]);
    command.env("HF_ENDPOINT", endpoint);
    let up = Started::new(command);
    let _connection = silent_hub.accept().unwrap();
    up.signal(Signal::SIGINT);
    up.end().expect(130);
    house.is_empty();
}

#[test]
fn a_model_that_cannot_be_loaded_says_why_and_leaves_nothing() {
    for detach in [false, true] {
        let house = House::new();
        let script = house.file("bad.json", r#"{"fail_load": "the tensor is bent"}"#);
        let up = start_with_script(&house, &script, detach);
        up.end()
            .expect(1)
            .says("worker scripted-0 died while starting")
            .says("the tensor is bent");
        house.is_empty();
    }
}

#[test]
fn a_gateway_that_cannot_start_says_why_and_leaves_nothing() {
    let house = House::new();
    std::fs::create_dir(house.home()).unwrap();
    house.file(
        "home/hive.db",
        "this is not a database, and long enough to be taken for one that is broken",
    );
    house
        .start_up(&["--detach"])
        .end()
        .expect(1)
        .says("the gateway died while starting")
        .says("hive.db");
    house.is_empty();
}

#[test]
fn a_second_ctrl_c_cuts_off_answers_in_the_making() {
    let house = House::new();
    let script = house.file("endless.json", r#"{"tokens": 100000, "interval_ms": 20}"#);
    let mut up = house.start_up(&["--script", &script]);
    up.until("The hive is up");
    let job = house.start(&["jobs", "submit", "--model", "echo", "--prompt", "go"]);
    eventually("the job runs", || (!job.stderr().is_empty()).then_some(()));
    up.signal(Signal::SIGINT);
    up.until("a second Ctrl-C");
    up.signal(Signal::SIGINT);
    up.end().expect(130);
    house.is_empty();
    assert_ne!(job.end().code, 0);
}

#[test]
fn a_model_that_loads_for_too_long_is_a_timeout() {
    let house = House::new();
    let script = house.file("slow.json", r#"{"load_ms": 600000}"#);
    // With 0, the worker has not even read its join token.
    for limit in ["1", "0"] {
        house
            .start_up(&["--detach", "--script", &script, "--timeout", limit])
            .end()
            .expect(124)
            .says(&format!("was not ready within {limit} s"));
        house.is_empty();
    }
}

#[test]
fn an_unknown_model_is_a_usage_error() {
    let house = House::new();
    house
        .run(&[
            "up",
            "--no-build",
            "--port",
            "0",
            "--control-port",
            "0",
            "--model",
            "no-such-model",
        ])
        .expect(2);
    house.is_empty();
}

#[test]
fn a_state_folder_that_cannot_be_made_is_named() {
    let house = House::new();
    house.file("home", "a file is in the way");
    house
        .start_up(&["--detach"])
        .end()
        .expect(1)
        .says("the state folder")
        .says("--state-dir");
}

/// A full disk of one's own: a mount that only this command sees, with room for so many files and folders.
#[cfg(feature = "system-tests")]
#[test]
fn a_full_disk_is_told_with_the_folder_to_free_space_in() {
    for files in [3, 5, 7] {
        let house = House::new();
        fs::create_dir(house.home()).unwrap();
        let mount = format!("mount -t tmpfs -o nr_inodes={files} none \"$0\" && exec \"$@\"");
        let up = house.command(&[
            "up",
            "--no-build",
            "--device",
            "scripted",
            "--model",
            "echo",
            "--detach",
        ]);
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
            .arg(house.home())
            .arg(up.get_program())
            .args(up.get_args());
        let home = house.home();
        Started::new(command)
            .end()
            .expect(1)
            .says("No space left on device")
            .says(&format!("next: free space in {}", home.display()));
    }
}

#[test]
fn a_hive_started_while_another_is_stopped_waits_its_turn() {
    let house = House::new();
    let mut up = house.start_up(&[]);
    up.until("The hive is up");
    up.signal(Signal::SIGTERM);
    let second = house.up(&[]);
    up.end().expect(0);
    assert!(second.stdout.starts_with("export "));
    eventually("the second hive is ready", || {
        (house.json(&["status"])["gateway"]["ready"] == true).then_some(())
    });
}

#[test]
fn addresses_in_the_configuration_are_listened_on() {
    let house = House::new();
    fs::create_dir_all(house.home()).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.2:0")
        .unwrap()
        .local_addr()
        .unwrap();
    fs::write(
        house.home().join("config.toml"),
        format!("[control]\nlisten = \"{free}\"\n"),
    )
    .unwrap();
    let arguments = [
        "up",
        "--no-build",
        "--device",
        "scripted",
        "--model",
        "echo",
        "--port",
        "0",
        "--detach",
        "--print-env",
    ];
    let printed = house.run(&arguments).expect(0).stdout;
    assert!(
        printed.contains(&format!("export HIVE_CONTROL_URL='http://{free}'")),
        "{printed}"
    );
    house.run(&["down"]).expect(0);
}
