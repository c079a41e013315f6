//! What the grammars take and refuse, byte by byte, and how a model is told.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use llguidance::{ParserFactory, toktrie::ApproximateTokEnv};

use super::*;
use crate::engine::{Request, grammar::Grounds};

/// A vocabulary of single bytes.
pub(in crate::engine) fn grounds(dialect: Dialect) -> Grounds {
    let bytes = ApproximateTokEnv::single_byte_env();
    Grounds {
        factory: Arc::new(ParserFactory::new_simple(&bytes).unwrap()),
        ends: Arc::new([bytes.tok_trie().eos_token()]),
        dialect,
    }
}

pub(in crate::engine) fn tool(name: &str, parameters: Value) -> Tool {
    Tool {
        name: name.to_owned(),
        description: Some("Does it".to_owned()),
        parameters,
        strict: false,
    }
}

pub(in crate::engine) fn weather() -> Tool {
    let unit = json!({"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]});
    let parameters = json!({"$defs": {"Unit": {"type": "string", "enum": ["C", "F"]}}, "type": "object",
        "properties": {"city": {"type": "string"}, "unit": unit}, "required": ["city", "unit"]});
    tool("weather", parameters)
}

fn tools(must: bool, parallel: bool) -> Tools {
    let list = vec![
        (0, weather()),
        (1, tool("now", json!({"type": "object", "properties": {}}))),
    ];
    Tools { list, must, parallel }
}

pub(in crate::engine) fn ask(tools: Option<Tools>, schema: Option<Value>) -> Request {
    Request {
        tools,
        schema: schema.map(|value| Schema { value, strict: true }),
        ..Request::default()
    }
}

/// Whether a text is a whole answer by the grammar of the request.
pub(in crate::engine) fn fits(dialect: Dialect, request: &Request, text: &str) -> bool {
    let mut guide = grounds(dialect).guide(request).unwrap().unwrap();
    let taken = text
        .bytes()
        .all(|byte| guide.allows(byte.into()).unwrap() && guide.take(byte.into()).is_ok());
    taken && guide.may_end()
}

const PARIS: &str = r#"{"name": "weather", "arguments": {"city": "Paris", "unit": null}}"#;
const NOW: &str = r#"{"name": "now", "arguments": {}}"#;

fn hermes(call: &str) -> String {
    format!("<tool_call>\n{call}\n</tool_call>")
}

#[test]
fn a_call_that_must_come_is_the_whole_answer() {
    let must = ask(Some(tools(true, true)), None);
    let takes = |text: &str| fits(Dialect::Hermes, &must, text);
    assert!(takes(&hermes(PARIS)) && takes(&hermes(NOW)));
    assert!(takes(&format!("{}\n{}", hermes(PARIS), hermes(NOW))));
    assert!(!takes("It is warm.") && !takes(""));
    assert!(
        !takes(&hermes(r#"{"name": "rain", "arguments": {}}"#)),
        "no such function"
    );
    assert!(
        !takes(&hermes(r#"{"name": "weather", "arguments": {"city": "Paris"}}"#)),
        "unit is required"
    );
    assert!(!takes(&hermes(
        r#"{"name": "weather", "arguments": {"city": "Paris", "unit": "K"}}"#
    )));
    assert!(
        !takes(&hermes(r#"{"name": "now", "arguments": {"x": 1}}"#)),
        "it takes no arguments"
    );
}

#[test]
fn without_parallel_calls_there_is_one() {
    let one = ask(Some(tools(true, false)), None);
    assert!(fits(Dialect::Hermes, &one, &hermes(NOW)));
    assert!(!fits(
        Dialect::Hermes,
        &one,
        &format!("{}\n{}", hermes(NOW), hermes(NOW))
    ));
    let list = |calls: &str| format!("[TOOL_CALLS][{calls}]");
    assert!(fits(Dialect::Mistral, &one, &list(NOW)));
    assert!(!fits(Dialect::Mistral, &one, &list(&format!("{NOW}, {NOW}"))));
}

#[test]
fn a_model_that_may_call_says_what_it_likes_but_a_call_it_began_is_held() {
    let may = ask(Some(tools(false, true)), None);
    for dialect in [Dialect::Hermes, Dialect::Mistral] {
        for free in ["", "It is <b>warm</b>.\n\n<tool", "{\"a\": [1"] {
            assert!(fits(dialect, &may, free), "{dialect:?}: {free}");
        }
    }
    assert!(fits(Dialect::Hermes, &may, &format!("Let me see.\n{}", hermes(PARIS))));
    assert!(!fits(Dialect::Hermes, &may, "Let me see <tool_call>nothing"));
    assert!(fits(
        Dialect::Mistral,
        &may,
        &format!("Look: [TOOL_CALLS] [{PARIS}, {NOW}]")
    ));
    assert!(!fits(Dialect::Mistral, &may, "[TOOL_CALLS] none"));
    let llama = PARIS.replace("arguments", "parameters");
    assert!(fits(Dialect::Llama, &may, &llama) && fits(Dialect::Llama, &may, "Warm {sunny}."));
    assert!(!fits(Dialect::Llama, &may, "{\"answer\": 1}"));
}

#[test]
fn a_mark_that_is_a_token_of_its_own_must_come_as_that_token() {
    let (open, close) = (256, 257);
    let special = |mark: &str| Some(if mark.starts_with("</") { close } else { open });
    let follows = |must: bool, before: &str| {
        let arguments = [
            weather().parameters,
            json!({"type": "object", "additionalProperties": false}),
        ];
        let grammar = grammar(&tools(must, true), &arguments, Dialect::Hermes, None, special);
        let mut guide = grounds(Dialect::Hermes).follow(grammar).unwrap();
        let call = NOW.bytes().map(u32::from);
        let tokens = before.bytes().map(u32::from).chain([open]).chain(call).chain([close]);
        tokens
            .into_iter()
            .all(|token| guide.allows(token).unwrap() && guide.take(token).is_ok())
            && guide.may_end()
    };
    assert!(follows(true, "") && follows(false, "") && follows(false, "Let me see.\n"));
    assert!(!follows(true, "Let me see."), "nothing but calls");
    assert!(follows(false, "<tool_call>"), "spelled out, it is text");
}

#[test]
fn an_answer_in_json_or_a_call_is_one_or_the_other() {
    let either = ask(
        Some(tools(false, true)),
        Some(json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})),
    );
    assert!(fits(Dialect::Hermes, &either, r#"{"n": 1}"#) && fits(Dialect::Hermes, &either, &hermes(NOW)));
    assert!(!fits(Dialect::Hermes, &either, "one"));
}

#[test]
fn a_text_that_goes_round_in_circles_is_closed() {
    let object = json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]});
    let left_after = |text: &str| {
        let mut guide = grounds(Dialect::Hermes)
            .guide(&ask(None, Some(object.clone())))
            .unwrap()
            .unwrap();
        for byte in text.bytes() {
            guide.take(byte.into()).unwrap();
        }
        let mut logits = vec![0.0; 256];
        guide.rule_out(&mut logits).unwrap();
        (0..=u8::MAX).filter(|byte| logits[usize::from(*byte)] == 0.0).count()
    };
    let begun = r#"{"a": ""#;
    assert!(
        left_after(&format!("{begun}{}", "to be or not ".repeat(3))) > 90,
        "three times may be meant"
    );
    assert_eq!(
        left_after(&format!("{begun}{}", "to be or not ".repeat(4))),
        1,
        "only the quote is left"
    );
    assert_eq!(
        left_after(&format!("{begun}{}", "\\n".repeat(24))),
        1,
        "of white space too"
    );
}

#[test]
fn templates_that_teach_a_known_form_are_told_apart() {
    let of = Dialect::of_template;
    assert_eq!(of("{% for message in messages %}"), None);
    assert_eq!(
        of("{% if tools %}<tool_call>{\"name\": <n>, \"arguments\": <a>}</tool_call>"),
        Some(Dialect::Hermes)
    );
    assert_eq!(of("{% if tools %}<tool_call><function=x>arguments"), None);
    assert_eq!(
        of("{% if tools %}[AVAILABLE_TOOLS]…[TOOL_CALLS]"),
        Some(Dialect::Mistral)
    );
    assert_eq!(of("{% if tools %}[TOOL_CALLS]name[ARGS]"), None);
    assert_eq!(
        of("{% if tools %}<|start_header_id|>ipython … {\"name\": , \"parameters\": }"),
        Some(Dialect::Llama)
    );
}

fn message(role: Role, text: &str) -> Message {
    Message {
        role,
        content: text.to_owned().into(),
        ..Message::default()
    }
}

#[test]
fn a_model_whose_template_knows_no_tools_reads_of_them_in_words() {
    let call = ToolCall {
        id: "call_1".to_owned(),
        name: "now".to_owned(),
        arguments: "{\"zone\":\"UTC\"}".to_owned(),
    };
    let called = Message {
        tool_calls: vec![call],
        ..message(Role::Assistant, "")
    };
    let past = vec![
        message(Role::User, "What time is it?"),
        called,
        message(Role::Tool, "12:00"),
        message(Role::Tool, "noon"),
    ];
    let spelled = spell_out(past, Some(&tools(false, true)));
    let told: Vec<(Role, String)> = spelled
        .iter()
        .map(|message| (message.role, message.content.text()))
        .collect();
    assert_eq!(told[0].0, Role::System);
    assert!(
        told[0]
            .1
            .contains("\"name\": \"weather\", \"description\": \"Does it\"")
            && told[0].1.contains("<tool_call>")
    );
    assert_eq!(
        told[1..],
        [
            (Role::User, "What time is it?".to_owned()),
            (
                Role::Assistant,
                "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\": \"UTC\"}}\n</tool_call>".to_owned()
            ),
            (
                Role::User,
                "<tool_response>\n12:00\n</tool_response>\n<tool_response>\nnoon\n</tool_response>".to_owned()
            ),
        ]
    );
}

#[test]
fn the_briefing_joins_the_system_message_there_is() {
    let spelled = spell_out(
        vec![message(Role::Developer, "Be kind."), message(Role::User, "Hi")],
        Some(&tools(true, true)),
    );
    assert_eq!(spelled.len(), 2);
    let text = spelled[0].content.text();
    assert!(
        text.starts_with("Be kind.\n\nThese functions") && text.contains("nothing else"),
        "{text}"
    );
    let plain = vec![message(Role::User, "Hi")];
    assert_eq!(spell_out(plain.clone(), None), plain);
}
