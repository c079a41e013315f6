//! The rules of the house, read from the tree. Whoever breaks one is told which, where, and what to do.

use std::{
    fs,
    path::{Path, PathBuf},
};

const CRATES: [&str; 4] = ["wire", "gateway", "worker", "hivectl"];

/// One source file, by its path from the root of the repository.
struct Source {
    path: String,
    text: String,
}

/// Every Rust file below these folders.
fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folders:?}: has the tree moved?");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

impl Source {
    fn stem(&self) -> &str {
        Path::new(&self.path).file_stem().unwrap().to_str().unwrap()
    }

    fn is(&self, ends: &[&str]) -> bool {
        ends.iter().any(|end| self.path.ends_with(end))
    }

    /// The lines of the program itself: no comments, nothing from the tests at the end on.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.stem() == "tests" || self.stem().ends_with("_tests");
        let lines = self
            .text
            .lines()
            .take_while(move |line| !tests && !line.starts_with("#[cfg(test)]"));
        lines
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Where its code contains any of these.
    fn names(&self, any: &[&str]) -> Vec<String> {
        self.code()
            .filter(|(_, line)| any.iter().any(|text| line.contains(text)))
            .map(|(number, line)| format!("  {}:{}: {}", self.path, number + 1, line.trim()))
            .collect()
    }
}

/// Fails with a friendly sentence if there is anything to complain of.
fn complain(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}\n{}\n", found.join("\n"));
}

/// The same words outside the files that may use them.
fn only(folders: &[&str], may: &[&str], words: &[&str], rule: &str) {
    let sources = sources(folders);
    for place in may {
        assert!(
            sources.iter().any(|source| source.path.contains(place)),
            "{place} is gone: mend this rule. {rule}"
        );
    }
    let strays: Vec<String> = sources
        .iter()
        .filter(|source| !may.iter().any(|place| source.path.contains(place)))
        .flat_map(|source| source.names(words))
        .collect();
    complain(&strays, rule);
}

fn all(folder: &str) -> Vec<String> {
    CRATES.iter().map(|name| format!("{name}/{folder}")).collect()
}

#[test]
fn only_config_reads_the_environment() {
    let folders = all("src");
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    only(
        &folders,
        &["src/config.rs"],
        &["env::var(", "env::var_os(", "env::vars(", "env::vars_os("],
        "Only a program's config.rs reads environment variables, so that every knob is in one place. Make it a setting there:",
    );
}

#[test]
fn only_error_and_api_choose_a_status_code() {
    only(
        &["gateway/src"],
        &["src/error.rs", "src/api/"],
        &[
            "StatusCode::O",
            "StatusCode::A",
            "StatusCode::B",
            "StatusCode::C",
            "StatusCode::F",
            "StatusCode::G",
            "StatusCode::I",
            "StatusCode::M",
            "StatusCode::N",
            "StatusCode::P",
            "StatusCode::R",
            "StatusCode::S",
            "StatusCode::T",
            "StatusCode::U",
            "from_u16(",
            "status_mut(",
        ],
        "Only the gateway's error.rs and api/ choose a status code. Say what happened in a type of your room, and let ApiError find its status:",
    );
}

#[test]
fn only_db_contains_sql() {
    only(
        &["gateway/src"],
        &["src/db/"],
        &["sqlx::query", "SELECT ", "INSERT INTO", "DELETE FROM", "UPDATE "],
        "Only gateway/src/db/ contains SQL. Give the table's file there a function with your room's words:",
    );
}

#[test]
fn sql_is_portable() {
    let strays: Vec<String> = sources(&["gateway/src/db"])
        .iter()
        .flat_map(|s| s.names(&["?1", "AUTOINCREMENT", "datetime('now')", "INSERT OR "]))
        .collect();
    complain(
        &strays,
        "PostgreSQL must be able to stand in for SQLite: parameters are $1, times are BIGINT milliseconds, ids are TEXT:",
    );
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("migrations");
    for file in fs::read_dir(migrations).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for word in ["AUTOINCREMENT", "DATETIME", "BLOB", "STRICT", "WITHOUT ROWID"] {
            assert!(
                !text.to_uppercase().contains(word),
                "{} uses {word}, which PostgreSQL does not know.",
                path.display()
            );
        }
    }
}

#[test]
fn who_is_alive_and_who_is_chosen_are_pure() {
    let pure = [
        "registry/members.rs",
        "registry/health.rs",
        "scheduler/affinity.rs",
        "scheduler/choose.rs",
        "scheduler/fleet.rs",
        "scheduler/queue.rs",
        "scheduler/retry.rs",
    ];
    let sources: Vec<Source> = sources(&["gateway/src"])
        .into_iter()
        .filter(|source| source.is(&pure))
        .collect();
    assert_eq!(sources.len(), pure.len(), "one of {pure:?} is gone: mend this rule.");
    let strays: Vec<String> = sources
        .iter()
        .flat_map(|s| {
            s.names(&[
                "tokio",
                "axum",
                "sqlx",
                "hyper",
                "reqwest",
                "Instant::now",
                "SystemTime",
                "async ",
            ])
        })
        .collect();
    complain(
        &strays,
        "What decides who is alive and who is chosen is pure: it takes `now` as an argument and knows no runtime. Do that in the dispatcher:",
    );
}

#[test]
fn only_one_file_names_the_engine() {
    let folders = all("src");
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    only(
        &folders,
        &["worker/src/engine/mistral.rs"],
        &["mistralrs::", "mistralrs_core::", "use mistralrs"],
        "Only worker/src/engine/mistral.rs names mistralrs. Speak to `trait Engine`:",
    );
}

#[test]
fn only_output_prints_and_only_ssh_starts_ssh() {
    only(
        &["hivectl/src"],
        &["src/output.rs"],
        &["println!", "print!(", "io::stdout()", "io::stderr()"],
        "Only hivectl/src/output.rs prints, so that --json, NO_COLOR and pipes hold everywhere. Call it:",
    );
    only(
        &["hivectl/src"],
        &["src/ssh.rs"],
        &[
            "Command::new(\"ssh",
            "Command::new(\"scp",
            "Command::new(\"sftp",
            "openssh::",
        ],
        "Only hivectl/src/ssh.rs starts ssh: fixed arguments, checked host keys, timeouts. Call it:",
    );
}

#[test]
fn wire_is_types_and_nothing_else() {
    let manifest = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap()
            .join("wire/Cargo.toml"),
    )
    .unwrap();
    for name in ["tokio", "futures", "axum", "hyper", "reqwest", "sqlx", "async"] {
        assert!(
            !manifest.contains(name),
            "wire depends on {name}. If it is not serialised, it does not belong in wire."
        );
    }
    let strays: Vec<String> = sources(&["wire/src"])
        .iter()
        .flat_map(|s| {
            s.names(&[
                "async ",
                "std::fs",
                "std::net::Tcp",
                "std::process",
                "Instant",
                "SystemTime",
            ])
        })
        .collect();
    complain(
        &strays,
        "wire does no I/O and knows no clock. If it is not serialised, it does not belong there:",
    );
}

#[test]
fn files_stay_readable() {
    let long: Vec<String> = sources(&CRATES)
        .iter()
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines > 600)
        .map(|(source, lines)| format!("  {}: {lines} lines", source.path))
        .collect();
    complain(
        &long,
        "A file of more than 600 lines is read by nobody. Split it by what it decides:",
    );
}

#[test]
fn files_are_named_after_what_they_decide() {
    let vague = [
        "util", "utils", "common", "helper", "helpers", "manager", "service", "misc",
    ];
    let named: Vec<String> = sources(&CRATES)
        .iter()
        .filter(|source| {
            source
                .path
                .trim_end_matches(".rs")
                .split(['/', '_'])
                .any(|part| vague.contains(&part))
        })
        .map(|source| format!("  {}", source.path))
        .collect();
    complain(
        &named,
        "A room is named after what it decides, not after a layer. Find that word for:",
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = sources(&CRATES)
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| format!("  {}", source.path))
        .collect();
    complain(
        &silent,
        "Every file opens with `//!` and says what it is for and what it never does. These do not:",
    );
}

#[test]
fn the_map_names_every_room_and_nothing_else() {
    let map = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap()
            .join("ARCHITECTURE.md"),
    )
    .unwrap();
    let sources = sources(&CRATES);
    // What the map says in backticks and looks like a place must be one.
    let gone: Vec<String> = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| {
            Path::new(word).extension().is_some_and(|end| end == "rs")
                || (word.ends_with('/') && !word.starts_with('/'))
        })
        .filter(|word| !word.contains(['<', ' ']))
        .filter(|place| {
            let file = sources.iter().any(|s| {
                s.path.ends_with(&format!("/{place}"))
                    || s.path.contains(&format!("/{place}"))
                    || s.path.starts_with(*place)
            });
            !file
                && !Path::new(env!("CARGO_MANIFEST_DIR"))
                    .parent()
                    .unwrap()
                    .join(place)
                    .exists()
        })
        .map(|place| format!("  {place}"))
        .collect();
    complain(
        &gone,
        "ARCHITECTURE.md names places that are not there. Make the map true:",
    );
    // Every room of a program: a file or folder right under its src.
    let missing: Vec<String> = sources
        .iter()
        .filter_map(|source| {
            let (program, inside) = source.path.split_once("/src/")?;
            let room = inside.split('/').next()?.trim_end_matches(".rs");
            let unmapped = ["main", "lib"].contains(&room) || room.ends_with("_tests") || program == "wire";
            let named = map.contains(&format!("{room}.rs")) || map.contains(&format!("{room}/"));
            (!unmapped && !named).then(|| format!("  {program}/src/{room}"))
        })
        .collect();
    complain(&missing, "ARCHITECTURE.md is the map of every room. It lacks:");
}

#[test]
fn every_test_runs() {
    let mark = concat!("#[", "ignore");
    let skipped: Vec<String> = sources(&CRATES)
        .iter()
        .flat_map(|s| {
            s.text
                .lines()
                .filter(|line| line.contains(mark))
                .map(|line| format!("  {}: {}", s.path, line.trim()))
                .collect::<Vec<_>>()
        })
        .collect();
    complain(
        &skipped,
        "A test that does not run proves nothing. Make it run, or remove it:",
    );
}
