//! What the audit journal costs, whether both verifiers find every edit of a large one, and whether they find fault with
//! any that only crashed.
//!
//! `cargo bench -p gateway --bench audit -- [RECORDS] [EDITS] [EDITS FOR PYTHON] [JOURNALS] [JOURNALS FOR PYTHON]`, 100000,
//! 1000, 10, 1000 and 50 if not given. It exits with 1 if an edit is missed or misplaced, or a clean journal alarms.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and may stop at the first surprise"
)]

mod crashes;

use std::{
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use gateway::{
    audit::{
        journal::Journal,
        log::{Limits, Log},
        record::{Event, Kind, Object, Outcome, Times, Usage},
        verify::{Inquiry, Verdict, verify},
    },
    config::Mode,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

fn main() -> ExitCode {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let [records, edits, for_python, journals, of_them_for_python] =
        [(0, 100_000), (1, 1000), (2, 10), (3, 1000), (4, 50)].map(|(n, usual)| *numbers.get(n).unwrap_or(&usual));
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("audit");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(write(home.path(), records));
    let began = Instant::now();
    let report = verify(&folder, &Inquiry::default());
    assert_eq!(report.result, Verdict::Intact, "{report:?}");
    println!("verified: {} records/s", rate(report.records, began.elapsed()));
    let missed = edit(&folder, edits, for_python);
    println!("{edits} random edits ({for_python} of them also for verify.py): {missed} missed or misplaced");
    let (alarms, states) = crash(journals, of_them_for_python);
    println!(
        "{journals} journals crashed {states} times ({of_them_for_python} of them also for verify.py): {alarms} false alarms"
    );
    ExitCode::from(u8::from(missed > 0 || alarms > 0))
}

/// Lets journals crash; how many false alarms there were, of how many states.
fn crash(journals: u64, for_python: u64) -> (usize, u64) {
    let mut states = 0;
    let alarms = crashes::clean_journals(journals, |number, folder, anchors, report| {
        states += 1;
        if number >= for_python {
            return None;
        }
        let told = in_python(folder, &["--anchors", anchors.to_str().unwrap()]);
        (told["exit_code"] != report.exit_code || told["root"] != report.root.as_str()).then(|| told.to_string())
    });
    for alarm in &alarms {
        println!("false alarm: {alarm:?}");
    }
    // The last state of each is that of a gateway that has started again.
    (alarms.len(), states - journals)
}

/// What the verifier that shares no code says.
fn in_python(folder: &Path, more: &[&str]) -> serde_json::Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/audit/verify.py");
    let mut command = Command::new("python3");
    command.arg(script).arg("--dir").arg(folder).arg("--json").args(more);
    serde_json::from_slice(&command.output().unwrap().stdout).unwrap_or_default()
}

/// Writes records as requests would, then one after the other as `eu-strict` would.
async fn write(home: &Path, records: u64) {
    let limits = Limits {
        bytes: 16 << 20,
        age: Duration::from_secs(86_400),
    };
    let (log, _) = Log::open(&home.join("audit"), &home.join("keys/audit"), "bench".into(), limits).unwrap();
    let keep = Duration::from_secs(86_400);
    let journal = Journal::start(log, Mode::EuStrict, keep, Vec::new()).unwrap();
    let began = Instant::now();
    let mut posting = Duration::ZERO;
    for n in 0..records {
        let event = event(n);
        let posted = Instant::now();
        journal.record(event);
        posting += posted.elapsed();
        if n % 20_000 == 19_999 {
            // No more than the inbox holds.
            journal.checkpoint().await.unwrap();
        }
    }
    journal.checkpoint().await.unwrap();
    println!("written: {} records/s", rate(records, began.elapsed()));
    println!(
        "metadata: {:?} of a request's time for each record",
        posting / u32::try_from(records).unwrap()
    );
    let mut waits: Vec<_> = Vec::new();
    for n in 0..200 {
        let began = Instant::now();
        journal.durable(event(n)).await.unwrap();
        waits.push(began.elapsed());
    }
    waits.sort_unstable();
    println!(
        "eu-strict: p50 {:?}, p99 {:?} until a record is on the disk",
        waits[100], waits[198]
    );
    assert_eq!(journal.lost(), 0);
    tokio::task::spawn_blocking(move || journal.stop()).await.unwrap();
}

/// Changes one byte of one record at a time; how often a verifier did not say so.
fn edit(folder: &Path, edits: u64, for_python: u64) -> u64 {
    let files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    let mut rng = StdRng::seed_from_u64(4);
    let mut missed = 0;
    for round in 0..edits {
        let file = &files[rng.random_range(0..files.len())];
        let whole = std::fs::read(file).unwrap();
        let place = rng.random_range(0..whole.len());
        let start = whole[..place]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let line: serde_json::Value = serde_json::Deserializer::from_slice(&whole[start..])
            .into_iter()
            .next()
            .unwrap()
            .unwrap();
        let mut changed = whole.clone();
        changed[place] ^= 1 << rng.random_range(0..7);
        std::fs::write(file, &changed).unwrap();
        let report = verify(folder, &Inquiry::default());
        let right = report.result == Verdict::Altered && report.first_bad == line["seq"].as_u64();
        let agrees = round >= for_python || {
            let told = in_python(folder, &[]);
            told["exit_code"] == 1 && told["first_bad"] == line["seq"]
        };
        if !(right && agrees) {
            println!("missed: record {} byte {}: {report:?}", line["seq"], place - start);
            missed += 1;
        }
        std::fs::write(file, &whole).unwrap();
    }
    missed
}

fn event(n: u64) -> Event {
    let mut event = Event::now(Kind::RequestEnd).by("abcdefgh").on(Object {
        model: Some("smollm2-135m".into()),
        worker: Some("cpu-0".into()),
        epoch: Some(7),
        ..Object::default()
    });
    event.req = Some(format!("req_{n:024}"));
    event.outcome = Some(Outcome {
        state: "completed".into(),
        code: None,
    });
    event.usage = Some(Usage {
        prompt: Some(31),
        completion: Some(64),
        estimated: false,
    });
    event.t = Some(Times {
        queue: Some(0),
        ttft: Some(80),
        total: Some(900),
    });
    event
}

fn rate(count: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1_000_000) / micros
}
