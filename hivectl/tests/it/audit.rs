//! `hivectl audit …`: read, verified, proved and anchored at the command line; and the verifier that shares no code.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    fake_hub::gguf,
    house::{Ended, House},
};

/// A hive that has answered two requests, stopped, with its journal at `home/audit`.
fn house(mode: &str) -> House {
    let house = House::new();
    let counts_later = "--audit counts at the next start";
    assert!(!house.up(&["--audit", mode]).stderr.contains(counts_later));
    house.up(&["--audit", mode]).says(counts_later);
    for prompt in ["geheim one", "geheim two"] {
        house
            .run(&["jobs", "submit", "--model", "echo", "--prompt", prompt])
            .expect(0);
    }
    house
}

fn verify(house: &House, dir: &Path, more: &[&str]) -> Ended {
    house.run(&[&["audit", "verify", "--dir", dir.to_str().unwrap()], more].concat())
}

fn copied(house: &House, name: &str) -> std::path::PathBuf {
    let copy = house.path(name);
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(house.home().join("audit")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    copy
}

#[test]
fn a_journal_is_read_verified_proved_and_anchored_at_the_command_line() {
    let house = house("metadata");
    let records = house.json(&["audit", "tail", "-n", "100"]);
    let kinds: Vec<_> = records
        .as_array()
        .unwrap()
        .iter()
        .map(|record| record["kind"].as_str().unwrap())
        .collect();
    for kind in ["audit.start", "key.create", "worker.register", "req.start", "req.end"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    assert!(!records.to_string().contains("geheim"));
    assert!(house.run(&["audit", "tail"]).expect(0).stdout.lines().count() <= 20);
    // The running hive signs what it has before it is verified.
    house.run(&["audit", "verify"]).expect(0);
    let anchors = house.path("anchors");
    house
        .run(&["audit", "anchor", "--out", anchors.to_str().unwrap()])
        .expect(0);

    let request = records
        .as_array()
        .unwrap()
        .iter()
        .rfind(|record| record["kind"] == "req.end")
        .unwrap();
    let (id, proof) = (request["req"].as_str().unwrap(), house.path("proof"));
    house
        .run(&["audit", "prove", "--req", id, "--out", proof.to_str().unwrap()])
        .expect(0);
    house.run(&["audit", "prove", "--req", "req_nobodys"]).expect(2);
    let check = |file: &Path| house.run(&["audit", "verify", "--proof", file.to_str().unwrap()]);
    assert!(check(&proof).expect(0).stdout.contains(id));
    let forged = fs::read_to_string(&proof)
        .unwrap()
        .replacen("completed", "cancelled", 1);
    let in_python = |file: &str| {
        let public = house.home().join("audit/journal.pub");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/audit/verify.py");
        let mut command = Command::new("python3");
        command.args([script, "--proof", file, "--pubkey"]).arg(public);
        let told = command.output().unwrap();
        (told.status.code(), String::from_utf8(told.stdout).unwrap())
    };
    let told = in_python(proof.to_str().unwrap());
    assert!(told.0 == Some(0) && told.1.contains(id), "{told:?}");
    let elsewhere = fs::read_to_string(&proof)
        .unwrap()
        .replacen("\"seq\": ", "\"seq\": 1", 1);
    let proofs = [
        ("forged", &*forged, 1),
        ("elsewhere", &*elsewhere, 1),
        ("junk", "junk", 4),
        ("list", "[]", 4),
    ];
    for (name, text, code) in proofs {
        let file = house.file(name, text);
        check(Path::new(&file)).expect(code);
        assert_eq!(in_python(&file).0, Some(code), "{name}");
    }

    house.run(&["down"]).expect(0);
    let copy = copied(&house, "copy");
    let with_anchors = ["--anchors", anchors.to_str().unwrap()];
    verify(&house, &copy, &with_anchors).expect(0);
    let lines = copy.join("000001.jsonl");
    let whole = fs::read_to_string(&lines).unwrap();
    fs::write(
        &lines,
        whole.replacen("\"worker\":\"scripted-0\"", "\"worker\":\"scripted-1\"", 1),
    )
    .unwrap();
    let altered = whole.lines().position(|line| line.contains("scripted-0")).unwrap();
    verify(&house, &copy, &[])
        .expect(1)
        .says(&format!("first bad record: {altered} "));
    let told: Value = serde_json::from_str(&verify(&house, &copy, &["--json"]).expect(1).stdout).unwrap();
    assert_eq!((&told["exit_code"], &told["first_bad"]), (&1.into(), &altered.into()));
    fs::write(&lines, &whole[..=whole.trim_end().rfind('\n').unwrap()]).unwrap();
    verify(&house, &copy, &[]).expect(2).says("missing");
    // Whoever also cuts the checkpoints off is told by the anchor alone.
    let three: String = whole.lines().take(3).map(|line| format!("{line}\n")).collect();
    fs::write(&lines, three).unwrap();
    fs::remove_file(copy.join("000001.notes")).unwrap();
    verify(&house, &copy, &[]).expect(3).says("unsigned");
    verify(&house, &copy, &with_anchors).expect(2);
    fs::remove_file(copy.join("journal.pub")).unwrap();
    verify(&house, &copy, &[]).expect(4);
    let public = house.home().join("audit/journal.pub");
    verify(&house, &copy, &["--pubkey", public.to_str().unwrap()]).expect(3);
    verify(&house, &copy, &["--everything"]).expect(64);
    house.run(&["audit", "prove"]).expect(2);
}

#[test]
fn a_person_is_found_until_erased_and_the_journal_verifies_all_the_same() {
    let house = house("eu-strict");
    let key = house.json(&["keys", "list"]);
    let inference = key
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["scopes"] != serde_json::json!(["admin"]))
        .unwrap();
    let subject = inference["id"].as_str().unwrap();
    let found = |expected: usize| {
        let export = house.json(&["audit", "export", "--subject", subject]);
        assert_eq!(export["records"].as_array().unwrap().len(), expected, "{export}");
        export["pseudonym"].as_str().map(str::to_owned)
    };
    assert!(found(4).is_some(), "two starts and two ends");
    house
        .run(&["audit", "erase", "--subject", subject, "--ticket", "alice@example.org"])
        .expect(2)
        .says("ticket");
    house
        .run(&["audit", "erase", "--subject", subject, "--ticket", "T-1"])
        .expect(0);
    assert_eq!(found(0), None);
    house.run(&["audit", "verify"]).expect(0);
    let records = house.json(&["audit", "tail", "-n", "100"]).to_string();
    assert!(
        records.contains("\"subject.erase\"") && records.contains("\"T-1\""),
        "{records}"
    );
    house
        .run(&["audit", "prune", "--older-than", "1s"])
        .expect(2)
        .says("eu-strict");
    house.run(&["audit", "prune"]).expect(0);
    let anchors = house.home().join("audit.anchors");
    house.run(&["down"]).expect(0);
    verify(
        &house,
        &house.home().join("audit"),
        &["--anchors", anchors.to_str().unwrap()],
    )
    .expect(0);
}

#[test]
fn a_download_is_on_the_record_of_the_hive_that_runs() {
    let house = House::new();
    house.up(&[]);
    fs::write(house.path("tiny.gguf"), gguf(50_000, 1)).unwrap();
    for _twice in 0..2 {
        house.run(&["models", "download", "./tiny.gguf"]).expect(0);
    }
    let models = house.json(&["models", "list"]);
    let records = house.json(&["audit", "tail", "-n", "100"]);
    let downloads = records
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["kind"] == "model.download");
    let objects: Vec<&Value> = downloads.map(|record| &record["object"]).collect();
    let expected = serde_json::json!({"model": models[0]["name"], "sha256": models[0]["sha256"]});
    assert_eq!(objects, [&expected], "what was there already is no download");
}

#[test]
fn with_the_record_off_there_is_none() {
    let house = House::new();
    house.up(&["--audit", "off"]);
    for command in [
        &["tail"][..],
        &["anchor"],
        &["export", "--subject", "ann"],
        &["erase", "--subject", "ann"],
        &["prune"],
    ] {
        let told = house.run(&[&["audit"], command].concat()).expect(1);
        told.says("The audit journal is off").says("--audit metadata");
    }
    house
        .run(&["audit", "verify"])
        .expect(4)
        .says("The audit journal is off");
    assert!(!house.home().join("audit").exists());
    assert_eq!(house.run(&["up", "--audit", "some"]).code, 2);
}

/// Needs Python's `cryptography`.
#[cfg(feature = "system-tests")]
mod both_verifiers {
    use std::{path::PathBuf, time::Duration};

    use gateway::audit::{
        log::{Left, Limits, Log},
        note::{self, Signer},
        record::{Event, Kind},
    };

    use super::*;

    /// A journal of three segments with a checkpoint every ten records, and some of those kept aside.
    fn journal(house: &House) -> PathBuf {
        let folder = house.path("audit");
        let (mut log, _) = open(&folder);
        let mut anchors = String::new();
        for n in 1..=100 {
            log.append(&[Event::now(Kind::AuthFail).by(&format!("key{n:05}"))])
                .unwrap();
            if n % 10 == 0 {
                anchors.push_str(log.checkpoint().unwrap());
            }
            if n % 35 == 0 {
                log.rotate().unwrap();
            }
        }
        house.file("anchors", &anchors);
        folder
    }

    fn open(folder: &Path) -> (Log, Left) {
        let limits = Limits {
            bytes: u64::MAX,
            age: Duration::MAX,
        };
        Log::open(folder, &folder.with_file_name("key"), "boot".into(), limits).unwrap()
    }

    fn in_python(folder: &Path, more: &[&str]) -> (i32, Value) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/audit/verify.py");
        let told = Command::new("python3")
            .args([script, "--json", "--dir"])
            .arg(folder)
            .args(more)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&told.stderr);
        assert!(!error.contains("Traceback"), "{error}");
        (
            told.status.code().unwrap(),
            serde_json::from_slice(&told.stdout).unwrap_or_default(),
        )
    }

    #[track_caller]
    fn agree(what: &str, house: &House, folder: &Path, more: &[&str]) -> i32 {
        let ours = verify(house, folder, &[&["--json"], more].concat());
        let (code, theirs) = in_python(folder, more);
        let mut ours_told: Value = serde_json::from_str(&ours.stdout).unwrap_or_default();
        let mut theirs_told = theirs.clone();
        for told in [&mut ours_told, &mut theirs_told] {
            // Each says why in its own words.
            told.as_object_mut().map(|told| told.remove("reason"));
        }
        assert_eq!((ours.code, &ours_told), (code, &theirs_told), "{what}: {theirs}");
        code
    }

    /// A name, a change to a journal, and the exit code for it.
    type Tampering<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>, i32);

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of edits")]
    fn they_agree_on_every_kind_of_edit() {
        fn edit(name: &'static str, change: impl Fn(&mut Vec<String>) + 'static) -> Box<dyn Fn(&Path)> {
            Box::new(move |folder| {
                let file = folder.join(name);
                let mut lines: Vec<_> = fs::read_to_string(&file).unwrap().lines().map(str::to_owned).collect();
                change(&mut lines);
                fs::write(file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
            })
        }
        let swap = |text: &str, with: &str, at: usize| {
            let (text, with) = (text.to_owned(), with.to_owned());
            move |lines: &mut Vec<String>| lines[at] = lines[at].replacen(&text, &with, 1)
        };
        let second = "000002.jsonl";
        let tamperings: Vec<Tampering<'_>> = vec![
            ("nothing", Box::new(|_| ()), 0),
            ("content", edit(second, swap("key000", "key900", 5)), 1),
            ("the last of a segment", edit(second, swap("key000", "key900", 34)), 1),
            ("the very last", edit("000003.jsonl", swap("key001", "key901", 30)), 1),
            ("a hash", edit(second, swap("\"prev\":\"", "\"prev\":\"0", 7)), 1),
            ("a number", edit(second, swap("\"seq\":", "\"seq\":1", 7)), 1),
            ("no JSON", edit(second, swap("{", "", 7)), 1),
            ("deleted", edit(second, |lines| drop(lines.remove(4))), 1),
            ("deleted first", edit("000001.jsonl", |lines| drop(lines.remove(0))), 1),
            (
                "deleted at the end of a segment",
                edit(second, |lines| drop(lines.pop())),
                1,
            ),
            ("repeated", edit(second, |lines| lines.insert(4, lines[4].clone())), 1),
            (
                "inserted",
                edit(second, |lines| {
                    lines.insert(4, lines[4].replacen("key000", "key900", 1));
                }),
                1,
            ),
            ("swapped", edit(second, |lines| lines.swap(4, 20)), 1),
            ("cut off", edit("000003.jsonl", |lines| lines.truncate(9)), 2),
            (
                "nothing left",
                Box::new(|folder| fs::write(folder.join("000003.jsonl"), "").unwrap()),
                2,
            ),
            ("a checkpoint", edit("000002.notes", swap("4", "5", 1)), 1),
            ("a head", edit("000002.head", swap("\"prev\":\"", "\"prev\":\"0", 0)), 1),
            (
                "no head",
                Box::new(|folder| fs::remove_file(folder.join("000002.head")).unwrap()),
                2,
            ),
            (
                "no segment",
                Box::new(|folder| fs::remove_file(folder.join("000002.jsonl")).unwrap()),
                2,
            ),
            (
                "no beginning",
                Box::new(|folder| fs::remove_file(folder.join("000001.jsonl")).unwrap()),
                2,
            ),
            (
                "no checkpoints",
                Box::new(|folder| fs::remove_file(folder.join("000003.notes")).unwrap()),
                3,
            ),
            (
                "no key",
                Box::new(|folder| fs::remove_file(folder.join("journal.pub")).unwrap()),
                4,
            ),
            (
                "pruned",
                Box::new(|folder| {
                    let (mut log, _) = open(folder);
                    assert_eq!(log.prune(i64::MAX, None).unwrap(), Some(71));
                }),
                0,
            ),
            (
                "torn",
                Box::new(|folder| {
                    let file = folder.join("000003.jsonl");
                    let text = fs::read_to_string(&file).unwrap();
                    fs::write(file, text + "{\"boot").unwrap();
                }),
                3,
            ),
        ];
        for (what, tamper, code) in tamperings {
            let house = House::new();
            let folder = journal(&house);
            tamper(&folder);
            assert_eq!(agree(what, &house, &folder, &[]), code, "{what}");
            let anchors = house.path("anchors");
            agree(what, &house, &folder, &["--anchors", anchors.to_str().unwrap()]);
            agree(what, &house, &folder, &["--from", "40"]);
            agree(what, &house, &folder, &["--to", "20"]);
        }
        let house = House::new();
        let folder = journal(&house);
        // Rolled back as a whole, which an anchor alone can tell.
        for end in ["jsonl", "head", "notes"] {
            fs::remove_file(folder.join(format!("000003.{end}"))).unwrap();
        }
        let anchors = house.path("anchors");
        assert_eq!(agree("rolled back", &house, &folder, &[]), 0);
        assert_eq!(
            agree(
                "rolled back",
                &house,
                &folder,
                &["--anchors", anchors.to_str().unwrap()]
            ),
            2
        );
        let other = House::new();
        journal(&other);
        let theirs = other.path("anchors");
        assert_eq!(
            agree(
                "others' anchors",
                &house,
                &folder,
                &["--anchors", theirs.to_str().unwrap()]
            ),
            1
        );
        assert_eq!(in_python(&folder, &["--everything"]).0, 64);
    }

    #[test]
    fn they_agree_on_what_one_reader_takes_and_another_does_not() {
        let rename =
            |to: &'static str| move |folder: &Path| fs::rename(folder.join("000003.jsonl"), folder.join(to)).unwrap();
        let spelled = |name: &'static str, spell: fn(&str) -> String| {
            move |folder: &Path| {
                let file = folder.join(name);
                fs::write(&file, spell(&fs::read_to_string(&file).unwrap())).unwrap();
            }
        };
        // A record that follows the last checkpoint in its right place, and then is spelled otherwise.
        let tail = |end: &'static str| {
            move |folder: &Path| {
                open(folder).0.append(&[Event::now(Kind::Gap)]).unwrap();
                let file = folder.join("000003.jsonl");
                let text = fs::read_to_string(&file).unwrap();
                fs::write(&file, format!("{}{end}\n", text.strip_suffix("}\n").unwrap())).unwrap();
            }
        };
        let deep: &'static str = format!(",\"w\":{}{}}}", "[".repeat(500), "]".repeat(500)).leak();
        let tamperings: Vec<Tampering<'_>> = vec![
            (
                "no lines",
                Box::new(|folder| fs::remove_file(folder.join("000003.jsonl")).unwrap()),
                2,
            ),
            ("a sign before its number", Box::new(rename("+3.jsonl")), 2),
            ("a short number", Box::new(rename("3.jsonl")), 2),
            ("a long number", Box::new(rename("0000003.jsonl")), 2),
            ("digits of another script", Box::new(rename("00000\u{663}.jsonl")), 2),
            (
                "a signature that is no ASCII",
                Box::new(spelled("000002.notes", |text| text.replacen('A', "\u{c4}", 1))),
                1,
            ),
            (
                "a signature with other spare bits",
                Box::new(spelled("000002.notes", |text| {
                    // Two of the last digit's bits are none of the signature's.
                    let digit = text.rfind("=\n").unwrap() - 1;
                    let other = char::from(text.as_bytes()[digit] + 1);
                    format!("{}{other}{}", &text[..digit], &text[digit + 1..])
                })),
                1,
            ),
            (
                "a line that ends otherwise in a checkpoint",
                Box::new(spelled("000002.notes", |text| {
                    text.replacen("\n\u{2014}", "\u{2028}\u{2014}", 1)
                })),
                1,
            ),
            (
                "a head with more",
                Box::new(spelled("000002.head", |text| text.replacen('{', "{\"x\":NaN,", 1))),
                1,
            ),
            (
                "a head with a space",
                Box::new(spelled("000002.head", |text| text.replacen(':', ": ", 1))),
                1,
            ),
            (
                "a line as long as a file",
                Box::new(spelled("000003.jsonl", |text| {
                    format!("{{\"x\":\"{}\"}}\n{text}", "x".repeat(1 << 20))
                })),
                1,
            ),
            ("one more record", Box::new(tail("}")), 3),
            ("a number that is none", Box::new(tail(",\"w\":NaN}")), 1),
            ("a fraction", Box::new(tail(",\"w\":1.5}")), 1),
            ("a number too large", Box::new(tail(",\"w\":9007199254740992}")), 1),
            ("a name twice", Box::new(tail(",\"seq\":0}")), 1),
            ("names in another order", Box::new(tail(",\"a\":0}")), 1),
            ("half a surrogate pair", Box::new(tail(",\"w\":\"\\ud800\"}")), 1),
            ("a needless escape", Box::new(tail(",\"w\":\"\\u0041\"}")), 1),
            ("a space", Box::new(tail(" }")), 1),
            ("deep", Box::new(tail(deep)), 1),
        ];
        for (what, tamper, code) in tamperings {
            let house = House::new();
            let folder = journal(&house);
            tamper(&folder);
            assert_eq!(agree(what, &house, &folder, &[]), code, "{what}");
            let anchors = house.path("anchors");
            agree(what, &house, &folder, &["--anchors", anchors.to_str().unwrap()]);
        }
        let house = House::new();
        let folder = journal(&house);
        let text = fs::read_to_string(house.path("anchors")).unwrap();
        let file = house.file("other ends", &text.replace('\n', "\r\n"));
        assert_eq!(
            agree("anchors with other ends", &house, &folder, &["--anchors", &file]),
            4
        );
        // Who goes on from where they stopped is not told that all is well when less is left.
        assert_eq!(agree("as far as it goes", &house, &folder, &["--from", "102"]), 0);
        assert_eq!(agree("beyond its end", &house, &folder, &["--from", "103"]), 2);
        verify(&house, &folder, &["--from", "5", "--to", "3"]).expect(64);
        assert_eq!(in_python(&folder, &["--from", "5", "--to", "3"]).0, 64);
    }

    #[test]
    fn they_agree_on_which_anchors_a_witness_has_signed() {
        let house = House::new();
        let folder = journal(&house);
        let anchors = fs::read_to_string(house.path("anchors")).unwrap();
        let [witness, other] =
            ["witness", "other"].map(|name| Signer::load_or_create_witness(&house.path(name)).unwrap());
        let notes = note::split(&anchors).0;
        let by = |signer: &Signer| -> String { notes.iter().map(|note| signer.cosign(note, 9)).collect() };
        // Its signature of something else below each of them.
        let something = witness.cosign("something\n\n", 9);
        let line = &something["something\n\n".len()..];
        let forged = notes.iter().map(|note| format!("{note}{line}")).collect();
        let public = house.file("witness.pub", &witness.public().to_string());
        for (what, text, code) in [
            ("its own", by(&witness), 0),
            ("another's and its own", by(&other) + &by(&witness), 1),
            ("nobody's", anchors.clone(), 1),
            ("forged", forged, 1),
        ] {
            let file = house.file("seen", &text);
            let agreed = agree(what, &house, &folder, &["--anchors", &file, "--witness", &public]);
            assert_eq!(agreed, code, "{what}");
        }
        let journals = folder.join("journal.pub");
        let no_witness = [
            "--anchors",
            &house.file("seen", &anchors),
            "--witness",
            journals.to_str().unwrap(),
        ];
        assert_eq!(agree("no witness' key", &house, &folder, &no_witness), 4);
        verify(&house, &folder, &["--witness", &public]).expect(64);
        assert_eq!(in_python(&folder, &["--witness", &public]).0, 64);
    }
}
