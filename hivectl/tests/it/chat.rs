//! `hivectl chat`: a conversation over a pipe.

use std::{io::Write, process::Stdio};

use serde_json::{Value, json};

use crate::house::House;

/// What a chat prints that hears this.
fn chat(house: &House, arguments: &[&str], heard: &[u8]) -> String {
    let mut chat = house.command(arguments);
    let mut chat = chat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    chat.stdin.take().unwrap().write_all(heard).unwrap();
    let output = chat.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_line_gets_its_answer_until_exit() {
    let house = House::new();
    house.up(&[]);
    let said = chat(&house, &["chat"], b"one two\n\nthree\n/exit\nnever\n");
    assert_eq!(said, "one two\nthree\n");
}

#[test]
fn as_json_each_answer_is_one_object() {
    let house = House::new();
    house.up(&[]);
    let said = chat(&house, &["chat", "--json"], b"one two\nthree\n");
    let answers = serde_json::Deserializer::from_str(&said).into_iter::<Value>();
    let answer = |text| json!({"model": "echo", "text": text, "finish_reason": "stop"});
    assert_eq!(
        answers.collect::<Result<Vec<_>, _>>().unwrap(),
        [answer("one two"), answer("three")]
    );
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
