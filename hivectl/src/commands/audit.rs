//! `hivectl audit …`: read the journal, verify it, prove a record, anchor it, answer a person.
//!
//! `verify` and `prove` need no gateway: they read a folder, and say what they find in their exit codes.

mod elsewhere;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use gateway::audit::{
    reading::{self, Proof, ProofError, Wanted},
    verify::{Inquiry, Verdict, verify},
};
use serde_json::Value;

use crate::{
    cli::audit::{AuditCommand, Verify},
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::Output,
    signals::Signals,
};

/// How often a followed journal is looked at.
const GLANCE: Duration = Duration::from_millis(500);
/// The exit code of `verify` for a journal or proof that cannot be read.
const UNREADABLE: u8 = 4;
/// The exit code of `verify` for wrong flags.
const USAGE: u8 = 64;

/// Runs one `audit` command.
pub async fn run(
    command: AuditCommand,
    config: &Config,
    output: &Output,
    signals: &mut Signals,
) -> Result<(), Failure> {
    match command {
        AuditCommand::Anchor(args) => elsewhere::anchor(args, config, output, signals).await,
        AuditCommand::Anchors(args) => elsewhere::anchors(args, config, output, signals).await,
        command => signals.or(here(command, config, output)).await,
    }
}

/// What needs no other machine.
async fn here(command: AuditCommand, config: &Config, output: &Output) -> Result<(), Failure> {
    match command {
        AuditCommand::Anchor(_) | AuditCommand::Anchors(_) => Ok(()),
        AuditCommand::Tail { lines, follow } => tail(lines, follow, config, output).await,
        AuditCommand::Verify(args) => match &args.proof {
            Some(proof) => check(proof, &args, config, output),
            None => verified(&args, config, output).await,
        },
        AuditCommand::Prove { req, seq, dir, out } => {
            let wanted = match (&req, seq) {
                (Some(req), _) => Wanted::Request(req),
                (None, seq) => Wanted::Seq(seq.unwrap_or(0)),
            };
            prove(wanted, &dir.unwrap_or_else(|| journal(config)), out.as_deref(), output)
        }
        AuditCommand::Export { subject } => {
            output.json(&Gateway::find(config)?.export_subject(&subject).await?);
            Ok(())
        }
        AuditCommand::Erase { subject, ticket } => erase(subject, ticket, config, output).await,
        AuditCommand::Prune { older_than } => {
            let pruned = Gateway::find(config)?
                .prune_audit(older_than.map(|age| age.as_secs()))
                .await?;
            match pruned.first {
                _ if output.is_json() => output.json(&pruned),
                Some(first) => output.note(format_args!("the records before {first} are removed")),
                None => output.note("no segment is old enough"),
            }
            Ok(())
        }
    }
}

/// Where this hive's journal lies.
fn journal(config: &Config) -> PathBuf {
    config.home.join("audit")
}

async fn tail(lines: u32, follow: bool, config: &Config, output: &Output) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    let mut after = None;
    loop {
        let records = gateway
            .audit_records(after, if after.is_none() { lines } else { 1000 })
            .await?;
        if !follow && output.is_json() {
            output.json(&records);
            return Ok(());
        }
        for record in &records {
            output.line(record);
        }
        after = records
            .last()
            .and_then(|record| record["seq"].as_u64())
            .or(after)
            .or(Some(0));
        if !follow || output.reader_has_gone() {
            return Ok(());
        }
        tokio::time::sleep(GLANCE).await;
    }
}

async fn verified(args: &Verify, config: &Config, output: &Output) -> Result<(), Failure> {
    if args.from.zip(args.to).is_some_and(|(from, to)| from > to) {
        let next = "name the first record and the last in their order";
        return Err(Failure::relayed(USAGE, "--from is beyond --to", next));
    }
    let folder = args.dir.clone().unwrap_or_else(|| journal(config));
    // A running gateway signs once a second; what it has just written need not wait for that.
    let mut refused = None;
    if folder == journal(config) || same(&folder, &journal(config)) {
        refused = match Gateway::find(config) {
            Ok(gateway) => gateway.audit_checkpoint().await.err(),
            Err(_) => None,
        };
    }
    let report = verify(
        &folder,
        &Inquiry {
            public_key: args.pubkey.as_deref(),
            anchors: args.anchors.as_deref(),
            witness: args.witness.as_deref(),
            from: args.from,
            to: args.to,
        },
    );
    if output.is_json() {
        output.json(&report);
    }
    let place = report.first_bad.map(|first| match report.through {
        Some(through) if through > first => format!(": first bad record: one of {first} to {through}"),
        _ => format!(": first bad record: {first}"),
    });
    let place = format!(
        "{}{}",
        place.unwrap_or_default(),
        report.place.map(|place| format!(" ({place})")).unwrap_or_default()
    );
    let next = match report.result {
        Verdict::Intact => {
            if !output.is_json() {
                output.line(format_args!(
                    "intact: {} records from {} on, {} anchors agree\n{}\nroot {}",
                    report.records, report.first, report.anchors, report.origin, report.root
                ));
            }
            return Ok(());
        }
        Verdict::Altered => "keep a copy as evidence, compare it with a backup, and find who could write there",
        Verdict::Missing => "compare it with a backup: records were removed that had been signed",
        Verdict::Unsigned => {
            "all that is signed is intact; start the gateway to have the rest signed, or ask whoever made the copy"
        }
        Verdict::Unreadable => {
            "name the journal's folder with --dir, its public key with --pubkey, and what was kept elsewhere with --anchors"
        }
    };
    let word = match report.result {
        Verdict::Altered => "altered",
        Verdict::Missing => "missing",
        Verdict::Unsigned => "unsigned tail",
        _ => "unreadable",
    };
    let what = format!("the journal in {}: {word}{place}", folder.display());
    let why = match refused.filter(|_| report.result == Verdict::Unreadable) {
        Some(refused) => refused.in_one_line(),
        None => report.reason.unwrap_or_default(),
    };
    Err(Failure::relayed(report.exit_code, what, next).because(why))
}

fn same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn prove(wanted: Wanted<'_>, folder: &Path, out: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let proof = reading::prove(folder, wanted).map_err(|error| {
        let what = format!("the record in {} cannot be proved", folder.display());
        let next = "list records with `hivectl audit tail`; one is signed a second after it is written";
        match error {
            ProofError::NotFound => Failure::usage(what, next).because(error),
            _ => Failure::task(what, next).because(error),
        }
    })?;
    match out {
        None => output.json(&proof),
        Some(file) => {
            let json = serde_json::to_vec_pretty(&proof).unwrap_or_default();
            std::fs::write(file, json).map_err(|error| cannot_write(file, error))?;
            output.note(format_args!(
                "the proof of record {} is in {}; it holds the record itself and no other",
                proof.seq,
                file.display()
            ));
        }
    }
    Ok(())
}

/// Checks one record's proof against the public key.
fn check(file: &Path, args: &Verify, config: &Config, output: &Output) -> Result<(), Failure> {
    let folder = args.dir.clone().unwrap_or_else(|| journal(config));
    let key = reading::public_key(&folder, args.pubkey.as_deref()).map_err(|error| {
        let next = "name the journal's public key with --pubkey";
        Failure::relayed(UNREADABLE, "the public key cannot be read", next).because(error)
    })?;
    let read = || -> std::io::Result<Proof> { Ok(serde_json::from_slice(&std::fs::read(file)?)?) };
    let proof = read().map_err(|error| {
        let what = format!("{} is no proof", file.display());
        Failure::relayed(UNREADABLE, what, "make one with `hivectl audit prove`").because(error)
    })?;
    proof.check(&key).map_err(|error| {
        let what = format!("the proof in {} does not hold", file.display());
        Failure::relayed(
            Verdict::Altered.exit_code(),
            what,
            "ask for a new proof, and for the whole journal",
        )
        .because(error)
    })?;
    if output.is_json() {
        output.json(&serde_json::from_str::<Value>(&proof.record).unwrap_or_default());
    } else {
        output.line(format_args!(
            "record {} is in the journal {}\n{}",
            proof.seq,
            key.name(),
            proof.record
        ));
    }
    Ok(())
}

async fn erase(subject: String, ticket: Option<String>, config: &Config, output: &Output) -> Result<(), Failure> {
    let erased = Gateway::find(config)?.erase_subject(subject, ticket).await?;
    if output.is_json() {
        output.json(&erased);
    } else if erased.erased {
        output
            .note("the key of this person's pseudonym is destroyed; backups of subjects.db hold it until they expire");
    } else {
        output.note("nothing was recorded of this person, or it was erased before");
    }
    Ok(())
}

fn cannot_write(file: &Path, error: std::io::Error) -> Failure {
    Failure::task(
        format!("{} cannot be written", file.display()),
        "name another file with --out",
    )
    .because(error)
}
