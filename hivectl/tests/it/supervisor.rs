//! What the supervisor does about deaths, and what happens after its own.

use nix::sys::signal::Signal;

use crate::house::{House, eventually, kill, recorded_pid};

#[test]
fn a_killed_worker_is_started_again() {
    let house = House::new();
    house.up(&[]);
    let before = house.worker("scripted-0").unwrap();
    let pid = before["pid"].as_u64().unwrap();
    kill(pid, Signal::SIGKILL);
    house.ready("scripted-0", Some(pid));
    let after = house.worker("scripted-0").unwrap();
    assert!(after["epoch"].as_i64() > before["epoch"].as_i64(), "{before} {after}");
    let answer = house
        .run(&["jobs", "submit", "--model", "echo", "--prompt", "again"])
        .expect(0)
        .stdout;
    assert_eq!(answer, "again\n");
}

#[test]
fn a_killed_gateway_comes_back_where_it_was() {
    let house = House::new();
    house.up(&[]);
    let before = house.json(&["status"])["gateway"].clone();
    kill(before["pid"].as_u64().unwrap(), Signal::SIGKILL);
    let after = eventually("the gateway is back", || {
        let status = house.run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status.stdout).ok()?;
        (status["gateway"]["ready"] == true).then(|| status["gateway"].clone())
    });
    assert_ne!(after["pid"], before["pid"]);
    assert_eq!(
        (&after["data_url"], &after["control_url"]),
        (&before["data_url"], &before["control_url"])
    );
    house.ready("scripted-0", None);
}

#[test]
fn an_upgraded_gateway_is_followed_tended_and_taken_down() {
    let house = House::new();
    assert!(house.run(&["upgrade"]).expect(1).stderr.contains("no gateway runs"));
    let first = house.up(&[]).stdout;
    let worker = house.ready("scripted-0", None);
    let pid = || house.json(&["status"])["gateway"]["pid"].as_u64().unwrap();
    let before = pid();
    let told = house.json(&["upgrade"]);
    let after = pid();
    assert_eq!((&told["old_pid"], &told["new_pid"]), (&before.into(), &after.into()));
    assert_ne!(before, after);
    assert_eq!(house.up(&[]).stdout, first);
    assert_eq!(house.ready("scripted-0", None), worker);

    let settings = house.file("home/config.toml", "[server]\nlisen = 1\n");
    let refused = house.run(&["upgrade"]).expect(1).stderr;
    assert!(
        refused.contains("was not upgraded") && refused.contains("exit status: 2"),
        "{refused}"
    );
    std::fs::remove_file(settings).unwrap();
    assert_eq!(pid(), after);

    eventually("the supervisor follows it", || {
        let log = std::fs::read_to_string(house.home().join("logs/supervisor.log")).unwrap();
        log.contains("the gateway was upgraded").then_some(())
    });
    kill(after, Signal::SIGKILL);
    eventually("the gateway is back", || {
        let status: serde_json::Value = serde_json::from_str(&house.run(&["status", "--json"]).stdout).ok()?;
        (status["gateway"]["ready"] == true).then_some(())
    });
    house.ready("scripted-0", None);
    // While the old one still finishes, both are taken down.
    house.json(&["upgrade"]);
    house.run(&["down"]).expect(0);
    house.is_empty();
}

#[test]
fn an_up_after_the_supervisor_was_killed_keeps_what_runs_and_tends_it() {
    let house = House::new();
    let first = house.up(&[]).stdout;
    let (gateway, worker) = (
        house.json(&["status"])["gateway"]["pid"].clone(),
        house.ready("scripted-0", None),
    );
    kill(recorded_pid(&house.home().join("run/supervisor.json")), Signal::SIGKILL);
    assert!(
        house
            .run(&["status"])
            .expect(0)
            .stdout
            .contains("no supervisor keeps it up")
    );

    assert_eq!(house.up(&[]).stdout, first);
    assert_eq!(house.json(&["status"])["gateway"]["pid"], gateway);
    assert_eq!(house.ready("scripted-0", None), worker);
    kill(worker, Signal::SIGKILL);
    house.ready("scripted-0", Some(worker));
    house.run(&["down"]).expect(0);
    house.is_empty();
}

#[test]
fn a_stopped_worker_stays_stopped() {
    let house = House::new();
    house.up(&[]);
    house.run(&["worker", "stop", "scripted-0"]).expect(0);
    // The supervisor says so once it has understood.
    eventually("the supervisor has noticed", || {
        let log = std::fs::read_to_string(house.home().join("logs/supervisor.log")).unwrap();
        log.contains("worker scripted-0 was stopped").then_some(())
    });
    assert_eq!(house.worker("scripted-0"), None);
    assert_eq!(house.json(&["status"])["gateway"]["ready"], true);
    house.run(&["down"]).expect(0);
    house.is_empty();
}

#[test]
fn a_worker_that_keeps_dying_while_loading_is_quarantined_until_somebody_helps() {
    let house = House::new();
    let script = house.file("script.json", "{}");
    house.up(&["--script", &script]);
    let pid = house.ready("scripted-0", None);
    house.file("script.json", r#"{"fail_load": "the tensor is bent"}"#);
    kill(pid, Signal::SIGKILL);
    let quarantined = || {
        house
            .worker("scripted-0")
            .filter(|worker| worker["state"] == "quarantined")
    };
    eventually("the worker is quarantined", quarantined);
    assert_eq!(house.processes().len(), 2, "{:?}", house.processes());
    for list in [&["status"][..], &["worker", "list"]] {
        let told = house.run(list).expect(0).stdout;
        assert!(
            told.contains("quarantined") && told.contains("died 5 times while loading"),
            "{told}"
        );
    }
    let worker = quarantined().unwrap();
    assert!(
        worker["message"]
            .as_str()
            .unwrap()
            .contains("worker restart scripted-0"),
        "{worker}"
    );
    assert_eq!(
        (&worker["model"], &worker["pid"]),
        (&"echo".into(), &serde_json::Value::Null)
    );
    assert_eq!(house.json(&["status"])["workers"][0], worker);
    house.up(&[]).says("is quarantined");

    house.file("script.json", "{}");
    house.run(&["worker", "restart", "scripted-0"]).expect(0);
    let pid = house.ready("scripted-0", Some(pid));
    assert!(!house.run(&["status"]).expect(0).stdout.contains("quarantined"));
    let log = house.home().join("logs/supervisor.log");
    eventually("it is tended again", || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains("was started by hand").then_some(())
    });
    kill(pid, Signal::SIGKILL);
    house.ready("scripted-0", Some(pid));
    house.run(&["down"]).expect(0);
    house.is_empty();
}

#[test]
fn the_supervisors_log_is_one_json_object_a_line() {
    let house = House::new();
    house.up(&[]);
    let log = std::fs::read_to_string(house.home().join("logs/supervisor.log")).unwrap();
    assert!(!log.is_empty());
    for line in log.lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(record["message"].is_string() && record["time_ms"].is_u64(), "{line}");
    }
}
