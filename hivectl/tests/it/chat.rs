//! `hivectl chat`: a conversation over a pipe.

use std::{io::Write, process::Stdio};

use crate::house::House;

#[test]
fn each_line_gets_its_answer_until_exit() {
    let house = House::new();
    house.up(&[]);
    let mut chat = house.command(&["chat"]);
    let mut chat = chat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    chat.stdin
        .take()
        .unwrap()
        .write_all(b"one two\n\nthree\n/exit\nnever\n")
        .unwrap();
    let output = chat.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "one two\nthree\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_chat_with_several_models_asks_which() {
    let house = House::new();
    house.up(&[]);
    house
        .run(&["worker", "spawn", "scripted", "--model", "other"])
        .expect(0);
    let ended = house.run(&["chat"]).expect(2).says("--model");
    assert!(
        ended.stderr.contains("echo") && ended.stderr.contains("other"),
        "{}",
        ended.stderr
    );
}
