//! The command line itself: usage errors, completions, doctor.

use std::process::Command;

use crate::house::{House, Started};

#[test]
fn wrong_flags_are_usage_errors() {
    let house = House::new();
    for wrong in [
        &["fly"][..],
        &["up", "--print-env"],
        &["up", "--once"],
        &["up", "--detach", "--ask", "x", "--once"],
        &["worker", "spawn", "abacus", "--model", "m"],
        &["worker", "stop", "../x"],
        &["jobs", "submit", "--model", "a b", "--prompt", "x"],
    ] {
        assert_eq!(house.run(wrong).code, 2, "{wrong:?}");
    }
    assert!(!house.home().exists());
}

#[test]
fn completions_are_scripts_their_shells_can_read() {
    let house = House::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = house.run(&["completions", shell]).expect(0).stdout;
        assert!(script.contains("hivectl") && script.contains("worker"), "{shell}");
    }
    let script = house.file("completions", &house.run(&["completions", "bash"]).expect(0).stdout);
    let mut bash = Command::new("bash");
    bash.args(["-n", &script]);
    Started::new(bash).end().expect(0);
}

#[test]
fn doctor_looks_at_everything_and_says_what_to_do() {
    let house = House::new();
    let mut command = house.command(&["doctor", "--json"]);
    command.env("HF_ENDPOINT", "http://127.0.0.1:1");
    let ended = Started::new(command).end();
    let checks: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let checks = checks.as_array().unwrap();
    let status = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap()["status"].clone();
    assert_eq!(status("state folder"), "ok");
    assert_eq!(status("model hub"), "warn");
    assert_eq!(status("C++ compiler"), "ok");
    assert_eq!(status("Python venv"), "ok");
    for check in checks {
        assert!(check["status"] == "ok" || check["remedy"].is_string(), "{check}");
    }
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(ended.code, i32::from(failed));
}

#[test]
fn doctor_misses_what_a_checkout_builds_and_tests_with() {
    let house = House::new();
    let mut command = house.command(&["doctor", "--json"]);
    command
        .env("PATH", house.path("empty"))
        .env("HF_ENDPOINT", "http://127.0.0.1:1");
    let checks: serde_json::Value = serde_json::from_str(&Started::new(command).end().expect(1).stdout).unwrap();
    let missing: Vec<&str> = checks
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["status"] != "ok")
        .filter_map(|check| check["name"].as_str())
        .collect();
    for name in ["cargo", "C compiler", "C++ compiler", "Python venv", "pip"] {
        assert!(missing.contains(&name), "{name}: {missing:?}");
    }
}

#[test]
fn doctor_notices_a_key_that_others_can_read() {
    let house = House::new();
    house.up(&[]);
    let key = house.home().join("keys/admin");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    house.run(&["doctor"]).expect(1);
    assert!(house.run(&["doctor"]).stdout.contains("chmod 600"));
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

#[test]
fn an_environment_that_leads_to_another_hive_counts_and_is_told_of() {
    let (one, two) = (House::new(), House::new());
    one.up(&[]);
    two.up(&[]);
    let mut command = two.command(&["keys", "create", "mine"]);
    command
        .env("HIVE_CONTROL_URL", one.exported("HIVE_CONTROL_URL"))
        .env("HIVE_ADMIN_KEY", one.exported("HIVE_ADMIN_KEY"));
    let warning = format!("the hive of {} runs at", two.home().display());
    Started::new(command).end().expect(0).says(&warning);
    let made = |house: &House| house.run(&["keys", "list"]).expect(0).stdout.matches("mine").count();
    assert_eq!((made(&one), made(&two)), (1, 0));
}
