//! Starts that must not succeed, each with its exit code and a sentence; and settings from every source.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use tempfile::TempDir;

use crate::harness::{Hive, Program, new_home};

/// Starts on this home and expects an end with this code; what was said on standard error.
pub async fn fails(home: &TempDir, flags: &[&str], settings: &[(&str, &str)], code: i32) -> String {
    let mut program = Program::start(home.path(), flags, settings);
    let status = program.exit().await;
    let said = program.log();
    assert_eq!(status.code(), Some(code), "{said}");
    said
}

pub const FREE: [&str; 4] = ["--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"];

#[tokio::test]
async fn a_taken_port_names_the_flag_that_chooses_another() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let said = fails(
        &new_home(),
        &["--listen", &taken, "--control-listen", "127.0.0.1:0"],
        &[],
        1,
    )
    .await;
    assert!(said.contains(&taken) && said.contains("--listen"), "{said}");
    let said = fails(
        &new_home(),
        &["--listen", "127.0.0.1:0", "--control-listen", &taken],
        &[],
        1,
    )
    .await;
    assert!(said.contains(&taken) && said.contains("--control-listen"), "{said}");
    drop(holder);
    // Two hives do not share a port either, although each shares it between its threads.
    let hive = Hive::start().await;
    let theirs = hive.data_address().to_string();
    let said = fails(
        &new_home(),
        &["--listen", &theirs, "--control-listen", "127.0.0.1:0"],
        &[],
        1,
    )
    .await;
    assert!(said.contains(&theirs), "{said}");
}

#[tokio::test]
async fn a_state_folder_has_one_gateway_at_a_time() {
    let hive = Hive::start().await;
    let run = hive.home().join("run/gateway.json");
    let before = fs::read(&run).unwrap();
    let mut second = Program::start(hive.home(), &FREE, &[]);
    assert_eq!(second.exit().await.code(), Some(1));
    assert!(second.log().contains("another gateway runs"), "{}", second.log());
    assert_eq!(fs::read(&run).unwrap(), before);
    // A kill leaves no lock behind.
    hive.again(&[]).await.key(&["infer"]).await;
}

#[tokio::test]
async fn a_corrupt_database_is_refused_with_the_remedy_and_left_alone() {
    for content in [vec![b'x'; 8192], b"SQLite format 3\0garbage".to_vec()] {
        let home = new_home();
        let file = home.path().join("hive.db");
        fs::write(&file, &content).unwrap();
        let said = fails(&home, &FREE, &[], 1).await;
        assert!(
            said.contains("corrupt") && said.contains(".recover") && said.contains("hive.db"),
            "{said}"
        );
        assert_eq!(fs::read(&file).unwrap(), content);
    }
}

#[tokio::test]
async fn damage_in_the_middle_of_a_good_database_is_found_at_the_start() {
    let mut hive = Hive::start().await;
    for _key in 0..3 {
        hive.key(&["infer"]).await;
    }
    hive.signal(crate::harness::Signal::SIGTERM);
    hive.exit().await;
    let file = hive.home().join("hive.db");
    let mut bytes = fs::read(&file).unwrap();
    // Every page but the first: the header stays good.
    bytes[4096..].fill(0xAB);
    fs::write(&file, &bytes).unwrap();
    let mut program = Program::start(hive.home(), &FREE, &[]);
    assert_eq!(program.exit().await.code(), Some(1), "{}", program.log());
    assert!(program.log().contains("corrupt"), "{}", program.log());
    assert_eq!(fs::read(&file).unwrap(), bytes);
}

#[tokio::test]
async fn every_fault_of_the_settings_is_told_at_once() {
    let faults = [
        ("server.max_connections", "0"),
        ("registry.silence_limit", "1ms"),
        ("relay.keepalive", "0s"),
        ("control.advertise_url", "here"),
    ];
    let said = fails(&new_home(), &FREE, &faults, 2).await;
    for (name, _) in faults {
        assert!(said.contains(name), "{name}: {said}");
    }
}

#[tokio::test]
async fn a_setting_that_cannot_be_read_is_named_with_its_place() {
    for (setting, named) in [
        (("relay.keepalive", "soon"), "HIVE_GATEWAY__RELAY__KEEPALIVE"),
        (("server.threads", "many"), "HIVE_GATEWAY__SERVER__THREADS"),
        (("server.prot", "1"), "HIVE_GATEWAY__SERVER__PROT"),
        (("nowhere.at_all", "1"), "HIVE_GATEWAY__NOWHERE__AT_ALL"),
        (("log.filter", "=,="), "filter"),
    ] {
        let said = fails(&new_home(), &FREE, &[setting], 2).await;
        assert!(said.contains(named), "{named}: {said}");
    }
    let home = new_home();
    fs::write(
        home.path().join("config.toml"),
        "[server]\nidle_timeout = 7\nprot = 1\n",
    )
    .unwrap();
    let said = fails(&home, &FREE, &[], 2).await;
    assert!(
        said.contains("config.toml") && (said.contains("idle_timeout") || said.contains("prot")),
        "{said}"
    );
    let said = fails(&home, &["--config", "/nowhere/gateway.toml"], &[], 2).await;
    assert!(said.contains("/nowhere/gateway.toml"), "{said}");
    fails(&home, &["--listen", "7411"], &[], 2).await;
    fails(&home, &["--surprise"], &[], 2).await;
}

#[tokio::test]
async fn check_reads_the_settings_and_starts_nothing() {
    let home = new_home();
    fs::write(home.path().join("config.toml"), "[relay]\nkeepalive = \"5s\"\n").unwrap();
    assert_eq!(fails(&home, &["--check"], &[], 0).await, "");
    assert!(
        fails(&home, &["--check"], &[("relay.keepalive", "0s")], 2)
            .await
            .contains("relay.keepalive")
    );
    assert!(!home.path().join("hive.db").exists());
}

#[tokio::test]
async fn secrets_that_others_can_read_stop_the_start() {
    let mut hive = Hive::start().await;
    hive.kill();
    let pepper = hive.home().join("keys/pepper");
    fs::set_permissions(&pepper, fs::Permissions::from_mode(0o644)).unwrap();
    let mut program = Program::start(hive.home(), &FREE, &[]);
    assert_eq!(program.exit().await.code(), Some(1));
    assert!(program.log().contains("chmod 600"), "{}", program.log());
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_is_named() {
    let home = new_home();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let inside = file.join("hive");
    let output = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
        .env_clear()
        .args(FREE)
        .arg("--home")
        .arg(&inside)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(inside.to_str().unwrap()), "{said}");
}

#[tokio::test]
async fn version_and_help_need_no_home() {
    for flag in ["--version", "--help"] {
        let output = Command::new(env!("CARGO_BIN_EXE_hive-gateway"))
            .env_clear()
            .arg(flag)
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("hive-gateway"));
    }
}

#[tokio::test]
async fn a_plane_that_others_reach_without_tls_is_warned_of() {
    let hive = Hive::start().await;
    assert!(!hive.log().contains("not encrypted"), "loopback needs none");
    // Nobody's address (RFC 5737), so nobody can be reached there.
    let public = ["--listen", "192.0.2.1:0", "--control-listen", "127.0.0.1:0"];
    let said = fails(&new_home(), &public, &[], 1).await;
    let warning = said.lines().find(|line| line.contains("not encrypted")).unwrap();
    assert!(
        warning.contains(r#""section":"server""#) && warning.contains("tls_cert"),
        "{warning}"
    );
    assert!(said.contains("cannot listen on 192.0.2.1"), "{said}");
}
