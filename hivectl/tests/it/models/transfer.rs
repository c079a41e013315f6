//! Lines that break, servers that fall silent, commands that are interrupted, disks that are full.

use std::{fs, sync::mpsc};

use nix::sys::signal::Signal;
#[cfg(feature = "system-tests")]
use tokio::process::Command;

use super::{HUB_FILE, User, files};
use crate::{
    fake_hub::{Asked, FakeHub, Reply, gguf, sha256},
    house::eventually,
};

#[test]
fn a_cut_connection_is_resumed_where_it_broke_off() {
    let bytes = gguf(2_000_000, 0);
    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |count, asked| match count {
            0 => Reply::file(asked, &bytes).cut_after(700_000),
            1 => Reply::file(asked, &bytes).cut_after(500_000),
            _ => Reply::file(asked, &bytes),
        }
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE])
        .expect(0)
        .says("trying again (1 of 6)");
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
    let asked = hub.asked();
    assert_eq!(
        asked.iter().map(Asked::from).collect::<Vec<_>>(),
        [None, Some(700_000), Some(1_200_000)]
    );
    assert_eq!(
        asked[1].header("if-range"),
        Some(format!("\"{}\"", "c".repeat(64)).as_str())
    );
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let bytes = gguf(100_000, 0);
    let (_never, until) = mpsc::channel();
    let until = std::sync::Mutex::new(Some(until));
    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |_, asked| match until.lock().unwrap().take() {
            Some(until) => Reply::file(asked, &bytes).hold_after(40_000, until),
            None => Reply::file(asked, &bytes),
        }
    });
    let user = User::of(hub.url());
    fs::write(
        user.path("home/config.toml"),
        "[hivectl.download]\nstall_timeout = \"2s\"\nbackoff = \"1ms\"\n",
    )
    .unwrap();
    user.run(&["download", HUB_FILE]).expect(0).says("nothing came for 2s");
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
    assert!(hub.asked()[1].from().is_some());
}

#[test]
fn a_download_that_was_interrupted_leaves_only_parts_and_goes_on_later() {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let bytes = gguf(1_000_000, 0);
        let (release, until) = mpsc::channel();
        let until = std::sync::Mutex::new(Some(until));
        let hub = FakeHub::start({
            let bytes = bytes.clone();
            move |_, asked| match until.lock().unwrap().take() {
                Some(until) => Reply::file(asked, &bytes).hold_after(600_000, until),
                None => Reply::file(asked, &bytes),
            }
        });
        let user = User::of(hub.url());
        let child = user.start_until(user.command(&["download", HUB_FILE]), "m.gguf");
        let part = user.path("models/m/m.gguf.part");
        eventually("600 kB to be there", || {
            fs::metadata(&part)
                .is_ok_and(|part| part.len() == 600_000)
                .then_some(())
        });
        assert_eq!(user.signal(child, signal), (signal == Signal::SIGINT).then_some(130));
        drop(release);

        user.has_only_parts();
        user.run(&["download", HUB_FILE]).expect(0);
        assert_eq!(hub.asked()[1].from(), Some(600_000));
        assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
        assert_eq!(files(&user.path("models")), ["m/hive-model.json", "m/m.gguf"]);
    }
}

#[test]
fn a_file_that_changed_since_the_interruption_is_fetched_from_its_beginning() {
    let hub = FakeHub::start(|count, asked| {
        let bytes = gguf(50_000, u8::try_from(count.min(1)).unwrap());
        match count {
            0 => Reply::bytes(asked, &bytes).with("etag", "\"old\"").cut_after(20_000),
            // A server that knows `If-Range` sends everything when its file is another one.
            _ if asked.header("if-range") == Some("\"old\"") => Reply::status(200)
                .with("content-type", "application/octet-stream")
                .with_body(bytes),
            _ => Reply::bytes(asked, &bytes),
        }
    });
    let user = User::of("http://127.0.0.1:1");
    user.run(&["download", &format!("{}/m.gguf", hub.url())]).expect(0);
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), gguf(50_000, 1));
}

#[test]
fn a_body_of_unknown_length_is_judged_by_its_digest() {
    let bytes = gguf(3_000, 0);
    let hub = FakeHub::start({
        let bytes = bytes.clone();
        move |count, asked| {
            let body = if count == 0 {
                bytes[..2_000].to_vec()
            } else {
                bytes.clone()
            };
            Reply::bytes(asked, &body)
                .with("x-linked-etag", &sha256(&bytes))
                .without_length()
        }
    });
    let user = User::of(hub.url());
    user.run(&["download", HUB_FILE]).expect(0).says("fetched once more");
    assert_eq!(fs::read(user.path("models/m/m.gguf")).unwrap(), bytes);
}

#[test]
fn a_disk_that_is_too_small_is_told_with_both_figures_before_a_byte_is_written() {
    let hub = FakeHub::start(|_, asked| {
        Reply::file(asked, &gguf(100, 0))
            .with("x-linked-size", "4000000000000000000")
            .with("content-length", "4000000000000000000")
    });
    let user = User::of(hub.url());
    let ended = user.run(&["download", HUB_FILE]).expect(1);
    ended
        .says("is too small")
        .says("needed")
        .says("free")
        .says("HIVE_MODELS");
    user.has_nothing();
}

/// A small disk of one's own: a mount that only this command sees.
#[cfg(feature = "system-tests")]
#[test]
fn a_disk_that_fills_up_midway_keeps_nothing() {
    let hub = FakeHub::start(|_, asked| Reply::bytes(asked, &gguf(3_000_000, 0)).without_length());
    let user = User::of(hub.url());
    fs::create_dir(user.path("models")).unwrap();
    let download = user.command(&["download", HUB_FILE]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]).arg(
        "mount -t tmpfs -o size=1m none \"$HIVE_MODELS\" && { \"$@\"; code=$?; find \"$HIVE_MODELS\" -type f; exit $code; }",
    );
    command
        .arg("sh")
        .arg(download.as_std().get_program())
        .args(download.as_std().get_args())
        .env_clear();
    for (name, value) in download.as_std().get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let ended = user.end(command).expect(1);
    ended.says("is too small").says("free");
    assert_eq!(ended.stdout, "");
}

#[test]
fn two_that_want_the_same_model_share_one_transfer() {
    let (release, until) = mpsc::channel();
    let until = std::sync::Mutex::new(Some(until));
    let hub = FakeHub::start(move |_, asked| {
        let reply = Reply::file(asked, &gguf(100_000, 0));
        match until.lock().unwrap().take() {
            Some(until) => reply.hold_after(50_000, until),
            None => reply,
        }
    });
    let user = User::of(hub.url());
    let mut first = user.start_until(user.command(&["download", HUB_FILE]), "m.gguf");
    let mut second = user.start_until(user.command(&["download", HUB_FILE]), "waiting for it");
    drop(release);
    for child in [&mut first, &mut second] {
        assert_eq!(user.runtime.block_on(child.wait()).unwrap().code(), Some(0));
    }
    assert_eq!(hub.asked().len(), 1);
    assert_eq!(user.run(&["verify"]).expect(0).stdout, "ok m\n");
}
