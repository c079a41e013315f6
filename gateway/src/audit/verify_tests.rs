//! Every way to tamper with a journal, and what the verifier says of it; and crashes, of which it says nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;

use super::{
    log::{Limits, Log, LogError},
    record::{Event, Kind, Object},
    segment,
    verify::{Inquiry, Report, Verdict, verify},
};

/// A journal of three segments, written in two runs, with a checkpoint every ten records and one at the end.
struct Journal {
    home: TempDir,
    /// Checkpoints that were kept elsewhere.
    anchors: Vec<String>,
}

const RECORDS: u64 = 100;

impl Journal {
    fn new() -> Self {
        // In memory where there is such a place: every checkpoint waits for the disk.
        let home = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let mut anchors = Vec::new();
        for half in 0..2 {
            let (mut log, _) = open(home.path());
            for n in 0..RECORDS / 2 {
                log.append(&[event(half * RECORDS / 2 + n)]).unwrap();
                if log.size().0 % 10 == 0 {
                    anchors.push(log.checkpoint().unwrap().to_owned());
                }
                if log.size().0 % 35 == 0 {
                    log.rotate().unwrap();
                }
            }
            anchors.push(log.checkpoint().unwrap().to_owned());
        }
        Self { home, anchors }
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("audit")
    }

    fn verify(&self) -> Report {
        verify(&self.folder(), &Inquiry::default())
    }

    /// Verified against these checkpoints.
    fn against(&self, anchors: &str) -> Report {
        let file = self.home.path().join("anchors");
        fs::write(&file, anchors).unwrap();
        verify(
            &self.folder(),
            &Inquiry {
                anchors: Some(&file),
                ..Inquiry::default()
            },
        )
    }

    fn size(&self) -> u64 {
        self.verify().records
    }

    /// Changes the lines of the whole journal, wherever they lie, and leaves everything else.
    fn tamper(&self, change: impl FnOnce(&mut Vec<String>)) {
        let folder = self.folder();
        let numbers = segment::numbers(&folder).unwrap();
        let firsts: Vec<usize> = numbers
            .iter()
            .map(|number| usize::try_from(segment::Head::read(&folder, *number).unwrap().first).unwrap())
            .collect();
        let mut lines = self.lines();
        let before = lines.len();
        change(&mut lines);
        // A line more or less stays in the segment where it was done.
        let grown = lines.len().cast_signed() - before.cast_signed();
        let mut ends: Vec<usize> = firsts[1..].to_vec();
        ends.push(lines.len());
        let first_change = self.lines().iter().zip(&lines).take_while(|(a, b)| a == b).count();
        for end in &mut ends[..numbers.len() - 1] {
            if *end > first_change {
                *end = end.saturating_add_signed(grown);
            }
        }
        let mut start = 0;
        for (number, end) in numbers.iter().zip(ends) {
            let text: String = lines[start..end].iter().map(|line| format!("{line}\n")).collect();
            fs::write(segment::lines(&folder, *number), text).unwrap();
            start = end;
        }
    }

    fn lines(&self) -> Vec<String> {
        let folder = self.folder();
        let numbers = segment::numbers(&folder).unwrap();
        let texts = numbers
            .iter()
            .map(|number| fs::read_to_string(segment::lines(&folder, *number)).unwrap());
        texts
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

fn open(home: &Path) -> (Log, super::log::Left) {
    try_open(home).unwrap()
}

fn try_open(home: &Path) -> Result<(Log, super::log::Left), LogError> {
    let limits = Limits {
        bytes: u64::MAX,
        age: Duration::MAX,
    };
    Log::open(&home.join("audit"), &home.join("keys/audit"), "boot".into(), limits)
}

fn event(n: u64) -> Event {
    let mut event = Event::now(Kind::RequestEnd).by("abcdefgh").on(Object {
        model: Some("m".into()),
        ..Object::default()
    });
    event.req = Some(format!("req_{n}"));
    event
}

#[track_caller]
fn expect(report: &Report, verdict: Verdict, first_bad: Option<u64>) {
    assert_eq!((report.result, report.first_bad), (verdict, first_bad), "{report:?}");
    assert_eq!(report.reason.is_some(), verdict != Verdict::Intact, "{report:?}");
}

#[test]
fn a_journal_as_it_was_written_is_intact_also_over_restarts_and_rotation() {
    let journal = Journal::new();
    let report = journal.against(&journal.anchors.concat());
    expect(&report, Verdict::Intact, None);
    // One record more for each rotation.
    assert_eq!(
        (report.records, report.signed, report.first),
        (RECORDS + 2, RECORDS + 2, 0)
    );
    assert_eq!(report.anchors, journal.anchors.len() as u64);
    assert_eq!(segment::numbers(&journal.folder()).unwrap(), [1, 2, 3]);
}

#[test]
fn a_changed_record_is_found_wherever_it_is_and_whatever_was_changed() {
    let size = Journal::new().size();
    for at in (0..usize::try_from(size).unwrap()).filter(|at| at % 5 == 4 || *at == 0 || at % 35 == 0) {
        for (what, with) in [
            ("\"key_id\":\"abcdefgh\"", "\"key_id\":\"abcdefgi\""),
            ("\"prev\":\"", "\"prev\":\"0"),
            ("\"boot\":", " \"boot\":"),
            ("\"seq\":", "\"seq\":1"),
            ("{", ""),
        ] {
            let journal = Journal::new();
            let mut changed = false;
            journal.tamper(|lines| {
                changed = lines[at].contains(what);
                lines[at] = lines[at].replacen(what, with, 1);
            });
            if changed {
                expect(&journal.verify(), Verdict::Altered, Some(at as u64));
            }
        }
    }
}

#[test]
fn a_deleted_inserted_repeated_or_swapped_record_is_found_at_its_place() {
    let size = Journal::new().size();
    for at in (0..usize::try_from(size).unwrap() - 2).filter(|at| at % 7 == 6 || *at == 0 || at % 35 == 0) {
        let place = Some(at as u64);
        let journal = Journal::new();
        journal.tamper(|lines| drop(lines.remove(at)));
        expect(&journal.verify(), Verdict::Altered, place);

        let journal = Journal::new();
        journal.tamper(|lines| {
            let forged = lines[at]
                .replacen("abcdefgh", "zzzzzzzz", 1)
                .replacen("\"boot\":\"boot", "\"boot\":\"b", 1);
            lines.insert(at, forged);
        });
        expect(&journal.verify(), Verdict::Altered, place);

        let journal = Journal::new();
        journal.tamper(|lines| lines.insert(at, lines[at].clone()));
        expect(&journal.verify(), Verdict::Altered, Some(at as u64 + 1));

        for other in [at + 1, (at + 40).min(lines_but_one(size))] {
            let journal = Journal::new();
            journal.tamper(|lines| lines.swap(at, other));
            expect(
                &journal.verify(),
                Verdict::Altered,
                place.map(|place| place.min(other as u64)),
            );
        }
    }
}

fn lines_but_one(size: u64) -> usize {
    usize::try_from(size).unwrap() - 1
}

#[test]
fn a_chain_that_was_made_to_fit_again_does_not_help() {
    for at in [0, 5, 34, 36, 70, 98] {
        let journal = Journal::new();
        journal.tamper(|lines| {
            lines[at] = lines[at].replacen("\"boot\":\"boot", "\"boot\":\"b", 1);
            for next in at + 1..lines.len() {
                let prev = crate::auth::pepper::hex(&segment::chained(lines[next - 1].as_bytes()));
                let start = lines[next].find("\"prev\":\"").unwrap() + 8;
                lines[next].replace_range(start..start + 64, &prev);
            }
        });
        let report = journal.verify();
        assert_eq!(report.result, Verdict::Altered, "{report:?}");
        let range = report.first_bad.unwrap()..=report.through.unwrap();
        // Between two checkpoints, which are at most ten records apart; a rotated segment's head tells, too.
        assert!(range.contains(&(at as u64)) || at == 34 || at == 98, "{at}: {report:?}");
        assert!(range.end() - range.start() < 10, "{report:?}");
    }
}

#[test]
fn records_that_were_cut_off_are_missing_against_a_checkpoint() {
    let size = Journal::new().size();
    for left in [size - 1, size - 5, 80] {
        let journal = Journal::new();
        journal.tamper(|lines| lines.truncate(usize::try_from(left).unwrap()));
        expect(&journal.verify(), Verdict::Missing, Some(left));
    }
    // Half a line counts as none.
    let journal = Journal::new();
    let file = segment::lines(&journal.folder(), 3);
    let text = fs::read(&file).unwrap();
    fs::write(&file, &text[..text.len() - 7]).unwrap();
    expect(&journal.verify(), Verdict::Missing, Some(size - 1));
}

#[test]
fn only_an_anchor_tells_that_everything_was_rolled_back() {
    let journal = Journal::new();
    let folder = journal.folder();
    for file in [segment::lines, segment::notes, segment::head] {
        fs::remove_file(file(&folder, 3)).unwrap();
    }
    let left = journal.verify();
    expect(&left, Verdict::Intact, None);
    expect(
        &journal.against(&journal.anchors.concat()),
        Verdict::Missing,
        Some(left.records),
    );
    expect(&journal.against(&journal.anchors[0]), Verdict::Intact, None);
}

#[test]
fn a_missing_segment_head_or_beginning_is_missed() {
    for (file, at) in [(segment::lines as fn(&Path, u64) -> PathBuf, 35), (segment::head, 35)] {
        let journal = Journal::new();
        fs::remove_file(file(&journal.folder(), 2)).unwrap();
        expect(&journal.verify(), Verdict::Missing, Some(at));
    }
    let journal = Journal::new();
    fs::remove_file(segment::lines(&journal.folder(), 1)).unwrap();
    expect(&journal.verify(), Verdict::Missing, Some(0));
}

#[test]
fn what_follows_the_last_checkpoint_is_unsigned() {
    let journal = Journal::new();
    let (mut log, _) = open(journal.home.path());
    let size = log.size().0;
    log.append(&[event(0), event(1)]).unwrap();
    drop(log);
    expect(&journal.verify(), Verdict::Unsigned, Some(size));
    // Without its checkpoints, a journal is signed up to its last head.
    let journal = Journal::new();
    fs::remove_file(segment::notes(&journal.folder(), 3)).unwrap();
    expect(&journal.verify(), Verdict::Unsigned, Some(70));
}

#[test]
fn an_altered_checkpoint_head_or_key_is_no_proof() {
    let edit = |file: PathBuf, what: &str, with: &str| {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(what), "{text}");
        fs::write(file, text.replacen(what, with, 1)).unwrap();
    };
    let journal = Journal::new();
    edit(segment::notes(&journal.folder(), 2), "\n40\n", "\n41\n");
    expect(&journal.verify(), Verdict::Altered, Some(35));
    let journal = Journal::new();
    edit(segment::head(&journal.folder(), 2), "\"first\":35", "\"first\":34");
    assert_eq!(journal.verify().result, Verdict::Altered);
    let journal = Journal::new();
    edit(segment::head(&journal.folder(), 2), "\"prev\":\"", "\"prev\":\"f");
    assert_eq!(journal.verify().result, Verdict::Altered);
    // Somebody else's journal, as good as it may be.
    let (ours, theirs) = (Journal::new(), Journal::new());
    let public = theirs.folder().join("journal.pub");
    let report = verify(
        &ours.folder(),
        &Inquiry {
            public_key: Some(&public),
            ..Inquiry::default()
        },
    );
    assert_eq!(report.result, Verdict::Altered, "{report:?}");
    assert_eq!(ours.against(&theirs.anchors[3]).result, Verdict::Altered);
    assert_eq!(ours.against("junk").result, Verdict::Unreadable);
    fs::remove_file(ours.folder().join("journal.pub")).unwrap();
    assert_eq!(ours.verify().result, Verdict::Unreadable);
    assert_eq!(verify(Path::new("/nowhere"), &Inquiry::default()).exit_code, 4);
}

#[test]
fn a_part_can_be_verified_alone() {
    let journal = Journal::new();
    journal.tamper(|lines| lines[3] = lines[3].replacen("abcdefgh", "abcdefgi", 1));
    let folder = journal.folder();
    let part = |from, to| {
        verify(
            &folder,
            &Inquiry {
                from,
                to,
                ..Inquiry::default()
            },
        )
    };
    expect(&part(Some(40), None), Verdict::Intact, None);
    assert_eq!(
        (part(Some(40), Some(45)).first, part(Some(40), Some(45)).signed),
        (35, 50)
    );
    expect(&part(None, Some(45)), Verdict::Altered, Some(3));
}

#[test]
fn after_pruning_what_is_left_verifies_and_what_went_is_on_record() {
    let journal = Journal::new();
    let (mut log, _) = open(journal.home.path());
    assert_eq!(log.prune(0, None).unwrap(), None);
    assert_eq!(log.prune(i64::MAX, None).unwrap(), Some(70));
    drop(log);
    let report = journal.against(&journal.anchors.concat());
    expect(&report, Verdict::Intact, None);
    assert_eq!((report.first, report.anchors_before), (70, 7));
    // Without the record it would be a loss.
    let file = segment::notes(&journal.folder(), 3);
    let notes = fs::read_to_string(&file).unwrap();
    let (notes, _) = super::note::split(&notes);
    fs::write(&file, notes[..notes.len() - 1].concat()).unwrap();
    let file = segment::lines(&journal.folder(), 3);
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..=text.trim_end().rfind('\n').unwrap()]).unwrap();
    expect(&journal.verify(), Verdict::Missing, Some(0));
}

#[test]
fn a_torn_last_line_is_cut_off_and_nothing_else_is() {
    let journal = Journal::new();
    let size = journal.size();
    let file = segment::lines(&journal.folder(), 3);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, [&whole[..], b"{\"act\":\"x"].concat()).unwrap();
    expect(&journal.verify(), Verdict::Unsigned, Some(size));
    let (mut log, left) = open(journal.home.path());
    assert_eq!((left.torn, log.size().0), (9, size));
    assert_eq!(fs::read(&file).unwrap(), whole);
    log.append(&[event(0)]).unwrap();
    log.checkpoint().unwrap();
    drop(log);
    expect(&journal.verify(), Verdict::Intact, None);
}

#[test]
fn a_journal_that_is_not_as_it_was_written_is_not_gone_on_with() {
    let journal = Journal::new();
    journal.tamper(|lines| lines[80] = lines[80].replacen("abcdefgh", "abcdefgi", 1));
    let error = try_open(journal.home.path()).unwrap_err();
    assert!(matches!(error, LogError::Broken { .. }), "{error}");
    assert!(error.to_string().contains("hivectl audit verify"), "{error}");
    let journal = Journal::new();
    fs::remove_file(journal.home.path().join("keys/audit")).unwrap();
    assert!(matches!(try_open(journal.home.path()), Err(LogError::Key { .. })));
    let journal = Journal::new();
    let (_log, _) = open(journal.home.path());
    assert!(matches!(try_open(journal.home.path()), Err(LogError::InUse(_))));
}

#[test]
fn what_was_open_and_what_was_done_is_known_after_a_crash() {
    let home = tempfile::tempdir().unwrap();
    let (mut log, _) = open(home.path());
    let request = |kind, id: &str| {
        let mut event = Event::now(kind);
        event.req = Some(id.into());
        event
    };
    let mut act = Event::now(Kind::KeyCreate);
    act.act = Some("act1".into());
    log.append(&[request(Kind::RequestStart, "a"), request(Kind::RequestStart, "b"), act])
        .unwrap();
    log.rotate().unwrap();
    log.append(&[request(Kind::RequestEnd, "a")]).unwrap();
    drop(log);
    let (_, left) = open(home.path());
    let open: Vec<_> = left.open.iter().map(|event| event.req.as_deref()).collect();
    assert_eq!(open, [Some("b")]);
    assert!(left.acts.contains("act1"));
}

#[test]
fn a_thousand_random_edits_are_all_found() {
    let mut rng = StdRng::seed_from_u64(7);
    let journal = Journal::new();
    let lines = journal.lines();
    for round in 0..1000 {
        let at = rng.random_range(0..lines.len());
        let mut bytes = lines[at].clone().into_bytes();
        let place = rng.random_range(0..bytes.len());
        let old = bytes[place];
        bytes[place] = loop {
            let new = rng.random_range(b' '..b'~');
            if new != old {
                break new;
            }
        };
        journal.tamper(|lines| lines[at] = String::from_utf8(bytes).unwrap());
        let report = journal.verify();
        assert_eq!(
            (report.result, report.first_bad),
            (Verdict::Altered, Some(at as u64)),
            "{round} at byte {place}: {report:?}"
        );
        journal.tamper(|now| now[at].clone_from(&lines[at]));
    }
    expect(&journal.verify(), Verdict::Intact, None);
}
