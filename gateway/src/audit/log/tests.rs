//! A disk that takes records and does not keep them.

use std::{fs, os::fd::OwnedFd, os::unix::fs::FileExt as _};

use super::*;

/// A journal in memory with three records on the disk, signed.
fn log() -> (tempfile::TempDir, Log) {
    let home = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let limits = Limits {
        bytes: u64::MAX,
        age: Duration::MAX,
    };
    let key = home.path().join("keys/audit");
    let (mut log, _) = Log::open(&home.path().join("audit"), &key, "boot".into(), limits).unwrap();
    log.append(&[event(0), event(1), event(2)]).unwrap();
    log.checkpoint().unwrap();
    (home, log)
}

fn event(n: u64) -> Event {
    let mut event = Event::now(Kind::RequestEnd);
    event.count = Some(n);
    event
}

fn counts(log: &Log) -> Vec<u64> {
    let text = fs::read_to_string(segment::lines(&log.folder, log.segment)).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Record>(line).unwrap());
    lines.filter_map(|record| record.event.count).collect()
}

/// Does something while every fsync of the records fails, and the kernel drops what it could not write.
fn while_fsync_fails(log: &mut Log, something: impl FnOnce(&mut Log)) {
    let file = segment::lines(&log.folder, log.segment);
    let whole = fs::read(&file).unwrap().len();
    // A pipe takes no fsync, and its length cannot be set.
    let (_reader, pipe) = io::pipe().unwrap();
    let good = mem::replace(&mut log.file, File::from(OwnedFd::from(pipe)));
    something(log);
    log.file = good;
    let lost = whole - usize::try_from(log.kept.bytes).unwrap();
    let written = OpenOptions::new().write(true).open(&file).unwrap();
    written.write_all_at(&vec![0; lost], log.kept.bytes).unwrap();
}

fn intact(log: &Log) {
    let report = verify::verify(&log.folder, &Inquiry::default());
    assert_eq!(report.result, Verdict::Intact, "{report:?}");
}

#[test]
fn what_the_disk_did_not_keep_is_taken_back_and_can_be_written_again() {
    let (_home, mut log) = log();
    log.append(&[event(3), event(4)]).unwrap();
    while_fsync_fails(&mut log, |log| {
        assert!(log.sync().is_err());
        assert_eq!(log.size(), (3, 0), "only what was kept counts");
        assert!(log.sync().is_err() && log.append(&[event(9)]).is_err(), "it fails on");
    });
    let again = log.taken_back();
    assert_eq!(
        again.iter().map(|event| event.count).collect::<Vec<_>>(),
        [Some(3), Some(4)]
    );
    assert!(log.taken_back().is_empty(), "each is told once");
    log.append(&again).unwrap();
    log.append(&[event(5)]).unwrap();
    log.checkpoint().unwrap();
    assert_eq!(counts(&log), [0, 1, 2, 3, 4, 5]);
    intact(&log);
}

#[test]
fn a_second_fsync_that_succeeds_is_not_believed() {
    let (_home, mut log) = log();
    log.append(&[event(3)]).unwrap();
    while_fsync_fails(&mut log, |log| assert!(log.checkpoint().is_err()));
    log.sync().unwrap();
    assert_eq!(counts(&log), [0, 1, 2]);
    log.checkpoint().unwrap();
    assert_eq!(log.size(), (3, 0));
    intact(&log);
}

#[test]
fn no_segment_follows_on_records_that_the_disk_did_not_keep() {
    let (_home, mut log) = log();
    log.append(&[event(3)]).unwrap();
    while_fsync_fails(&mut log, |log| assert!(log.rotate().is_err()));
    assert_eq!(segment::numbers(&log.folder).unwrap(), [1]);
    log.rotate().unwrap();
    log.append(&log.taken_back.clone()).unwrap();
    log.checkpoint().unwrap();
    intact(&log);
}

#[test]
fn a_restart_after_a_failed_fsync_goes_on_from_what_was_kept() {
    let (home, mut log) = log();
    log.append(&[event(3), event(4)]).unwrap();
    while_fsync_fails(&mut log, |log| assert!(log.sync().is_err()));
    let (folder, limits) = (log.folder.clone(), log.limits);
    // As a kill would leave it.
    drop(log);
    let (mut log, left) = Log::open(&folder, &home.path().join("keys/audit"), "next".into(), limits).unwrap();
    assert!(left.torn > 0);
    log.append(&[event(3)]).unwrap();
    log.checkpoint().unwrap();
    assert_eq!(counts(&log), [0, 1, 2, 3]);
    intact(&log);
}
