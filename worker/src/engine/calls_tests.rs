//! What the reader makes of each dialect, whole and split at every byte.

use proptest::prelude::*;

use super::*;

fn read<'a>(dialect: Dialect, texts: impl IntoIterator<Item = &'a str>) -> Vec<Piece> {
    let mut reader = Reader::new(dialect);
    let mut pieces: Vec<Piece> = texts.into_iter().flat_map(|text| reader.push(text)).collect();
    pieces.extend(reader.finish());
    pieces
}

/// Pieces with neighbours of the same kind joined.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), &piece) {
            (Some(Piece::Text(text)), Piece::Text(more)) | (Some(Piece::Arguments(text)), Piece::Arguments(more)) => {
                text.push_str(more);
            }
            _ => all.push(piece),
        }
    }
    all
}

/// What is read of a text, which must not depend on how the text is split.
fn said(dialect: Dialect, text: &str) -> Vec<Piece> {
    let whole = joined(read(dialect, [text]));
    for (at, _) in text.char_indices() {
        let (one, other) = text.split_at(at);
        assert_eq!(joined(read(dialect, [one, other])), whole, "split at {at}: {text}");
    }
    let single = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
    assert_eq!(joined(read(dialect, single)), whole, "char by char: {text}");
    whole
}

fn text(text: &str) -> Piece {
    Piece::Text(text.to_owned())
}

fn call(name: &str, arguments: &str) -> [Piece; 2] {
    [
        Piece::Call { name: name.to_owned() },
        Piece::Arguments(arguments.to_owned()),
    ]
}

#[test]
fn text_without_a_call_is_text_to_its_last_byte() {
    for plain in ["Hello, <b>é🐝</b>! ", "a < b", "<tool_cal", "{\"name\": 1}", "  x\n\n"] {
        assert_eq!(said(Dialect::Hermes, plain), [text(plain)]);
        assert_eq!(said(Dialect::Mistral, plain), [text(plain)]);
    }
    for plain in [
        "Hello",
        "{\"answer\": {\"a\": 1}} and more",
        "{",
        "12 {\"name\": \"f\", \"parameters\": {}}",
    ] {
        assert_eq!(said(Dialect::Llama, plain), [text(plain)]);
    }
}

#[test]
fn hermes_calls_come_after_text_one_after_the_other() {
    let answer = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"a \\\"}{\", \"n\": [1, {}]}}\n</tool_call>\n\
                  <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    let mut expected = vec![text("Let me see.")];
    expected.extend(call("get_weather", r#"{"city": "a \"}{", "n": [1, {}]}"#));
    expected.extend(call("f", "{}"));
    assert_eq!(said(Dialect::Hermes, answer), expected);
}

#[test]
fn arguments_flow_before_the_call_has_ended() {
    let mut reader = Reader::new(Dialect::Hermes);
    assert_eq!(reader.push("<tool_call>\n{\"name\": \"f\", \"arguments\": "), []);
    assert_eq!(reader.push("{\"a"), call("f", "{\"a"));
    assert_eq!(reader.push("\": 1"), [Piece::Arguments("\": 1".to_owned())]);
    assert_eq!(reader.finish(), [], "cut short by the budget");
}

#[test]
fn a_call_with_its_keys_in_another_order_is_one_too() {
    let odd = "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>";
    assert_eq!(said(Dialect::Hermes, odd), call("f", "{\"a\":1}"));
    let quoted = "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>";
    assert_eq!(said(Dialect::Hermes, quoted), call("f", "{\"a\": 1}"));
    assert_eq!(
        said(Dialect::Hermes, "<tool_call>{\"name\": \"f\"}</tool_call>"),
        call("f", "{}")
    );
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    assert_eq!(
        said(Dialect::Hermes, "<tool_call>{\"x\": 1}</tool_call>"),
        [text("{\"x\": 1}")]
    );
    assert_eq!(said(Dialect::Hermes, "<tool_call>nonsense"), [text("nonsense")]);
    assert_eq!(said(Dialect::Hermes, "a <tool"), [text("a <tool")]);
}

#[test]
fn the_beginning_of_a_call_that_was_cut_short_is_no_text() {
    for (dialect, cut) in [
        (Dialect::Hermes, "<tool_call>\n"),
        (Dialect::Hermes, "<tool_call>{\"na"),
        (Dialect::Hermes, "<tool_call>{\"name\": \"f\", \"arg"),
        (Dialect::Llama, "{\"name\": \"f"),
        (Dialect::Mistral, "[TOOL_CALLS][{\"name\":"),
    ] {
        assert_eq!(said(dialect, cut), [], "{cut}");
    }
    let whole = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    for cut in ["\n\n<tool_call", "\n<tool_call>{\"name", "\n"] {
        assert_eq!(
            said(Dialect::Hermes, &format!("{whole}{cut}")),
            call("f", "{}"),
            "{cut}"
        );
    }
    // However it is cut, a gap after a call is none of the text behind it.
    assert_eq!(
        said(Dialect::Hermes, "<tool_call></tool_call> , <tool_"),
        [text(", <tool_")]
    );
    let open = whole.trim_end_matches("call>");
    assert_eq!(said(Dialect::Hermes, open), call("f", "{}"));
}

#[test]
fn llama_and_mistral_calls_are_read() {
    let llama = "{\"name\": \"f\", \"parameters\": {\"a\": 1}}";
    assert_eq!(said(Dialect::Llama, llama), call("f", "{\"a\": 1}"));
    assert_eq!(
        said(Dialect::Llama, &format!("<|python_tag|>{llama}")),
        call("f", "{\"a\": 1}")
    );
    let mistral = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]";
    let mut expected = call("f", "{\"a\": 1}").to_vec();
    expected.extend(call("g", "{}"));
    assert_eq!(said(Dialect::Mistral, mistral), expected);
}

proptest! {
    /// Words that calls are made of, in any order, cut anywhere.
    #[test]
    fn any_text_is_read_the_same_however_it_is_cut(words in proptest::collection::vec(0..WORDS.len(), 0..14)) {
        let text: String = words.into_iter().map(|word| WORDS[word]).collect();
        for dialect in [Dialect::Hermes, Dialect::Llama, Dialect::Mistral] {
            let pieces = said(dialect, &text);
            let begun = pieces.iter().position(|piece| matches!(piece, Piece::Call { .. })).unwrap_or(pieces.len());
            let early = pieces[..begun].iter().any(|piece| matches!(piece, Piece::Arguments(_)));
            prop_assert!(!early, "arguments without a call: {pieces:?}");
        }
    }
}

const WORDS: [&str; 22] = [
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "<tool_",
    "{\"name\": ",
    "\"f\"",
    ", ",
    "\"arguments\": ",
    "\"parameters\": ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\n",
    " ",
    "é",
    "🐝",
    "a: 1",
    "{\"name\": \"f\", \"arguments\": {\"a\": [1]}}",
];
