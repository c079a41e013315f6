//! Tools: how a model is told of them, and the grammar that holds it to them.
//!
//! A model whose chat template knows tools gets them through it; any other is told in a system message, in the form
//! that most models were trained on ([`Dialect::Hermes`]), and sees calls and results of the past in the same form.
//! It never reads an answer (`calls` does) and knows neither tokens nor engines.

use std::fmt::Write;

use serde_json::{Value, json};
use wire::openai::{Message, Role, Tool, ToolCall};

use super::request::{Schema, Tools};

/// Most calls in one answer: a small model would repeat itself for ever.
const MOST_CALLS: usize = 16;

/// How a family of models writes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, once for each call: Hermes, Qwen, and our own.
    Hermes,
    /// The whole answer is `{"name": …, "parameters": {…}}`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral.
    Mistral,
}

impl Dialect {
    /// What the chat template teaches; none if it knows no tools, or a form of calls that is not read here.
    pub fn of_template(template: &str) -> Option<Self> {
        let has = |part| template.contains(part);
        if !has("tools") || has("<function=") || has("<arg_key>") || has("[ARGS]") {
            None
        } else if has("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if has("<tool_call>") && has("arguments") {
            Some(Self::Hermes)
        } else {
            (has("ipython") && has("parameters")).then_some(Self::Llama)
        }
    }

    /// What begins a call, where a mark does.
    pub fn open(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>",
            Self::Llama => "<|python_tag|>",
            Self::Mistral => "[TOOL_CALLS]",
        }
    }

    /// What ends a call, where a mark does.
    pub fn close(self) -> Option<&'static str> {
        (self == Self::Hermes).then_some("</tool_call>")
    }

    /// The key of a call's arguments.
    fn arguments(self) -> &'static str {
        match self {
            Self::Llama => "parameters",
            Self::Hermes | Self::Mistral => "arguments",
        }
    }
}

/// Every mark that a tokenizer may hold as a single token.
pub const MARKS: [&str; 4] = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"];

/// A grammar in llguidance's dialect of Lark for answers that call `tools`, whose arguments fit `arguments` in their order,
/// or else say what `schema` (none: anything) allows. `special` finds a mark that is a single token of its own.
pub fn grammar(
    tools: &Tools,
    arguments: &[Value],
    dialect: Dialect,
    schema: Option<&Value>,
    special: impl Fn(&str) -> Option<u32>,
) -> String {
    let mark = |mark: &str| special(mark).map_or_else(|| literal(mark), |id| format!("<[{id}]>"));
    let again = |item: &str| {
        let more = MOST_CALLS - 1;
        if tools.parallel {
            format!(" ({item}){{0,{more}}}")
        } else {
            String::new()
        }
    };
    let (open, close) = (mark(dialect.open()), dialect.close().map(mark).unwrap_or_default());

    // What follows the first opening mark.
    let rest = match dialect {
        Dialect::Hermes => format!(
            "gap call gap {close}{}",
            again(&format!("gap {open} gap call gap {close}"))
        ),
        Dialect::Llama => "call".to_owned(),
        Dialect::Mistral => format!("gap \"[\" call{} \"]\"", again("\", \" call")),
    };
    let is_token = special(dialect.open()).is_some();
    let mut grammar = match (tools.must, schema, dialect) {
        (true, _, Dialect::Llama) => "start: call\n".to_owned(),
        (true, ..) => format!("start: {open} {rest}\n"),
        (false, Some(_), Dialect::Llama) => "start: said | call\n".to_owned(),
        (false, Some(_), _) => format!("start: said | {open} {rest}\n"),
        // A text that begins with a brace is a call.
        (false, None, Dialect::Llama) => {
            let call = if is_token {
                format!("{open}? call")
            } else {
                "call".to_owned()
            };
            format!("start: SAID? | gap {call}\nSAID: /\\s*[^{{\\s](?s:.*)/\n")
        }
        (false, None, _) if is_token => format!("start: SAID? ({open} {rest})?\nSAID: /(?s:.+)/\n"),
        // The mark is text like any other: what holds it is a call, and what does not is free.
        (false, None, _) => {
            let mark = regex(dialect.open());
            format!(
                "start: SAID? | until {rest}\nuntil[lazy]: /(?s:.*){mark}/\n\
                 SAID: /(?s:.+)/ & ~/(?s:.*){mark}(?s:.*)/\n"
            )
        }
    };
    grammar.push_str("gap: /[ \\n]{0,2}/\n");
    if let (false, Some(schema)) = (tools.must, schema) {
        let _ = writeln!(grammar, "said: %json {schema}");
    }
    let calls: Vec<String> = (0..tools.list.len()).map(|i| format!("call_{i}")).collect();
    let _ = writeln!(grammar, "call: {}", calls.join(" | "));
    for (i, ((_, tool), arguments)) in tools.list.iter().zip(arguments).enumerate() {
        let head = format!(
            "{{\"name\": {}, \"{}\": ",
            Value::from(tool.name.as_str()),
            dialect.arguments()
        );
        let _ = writeln!(
            grammar,
            "call_{i}: {} args_{i} \"}}\"\nargs_{i}: %json {arguments}",
            literal(&head)
        );
    }
    grammar
}

/// The grammar of an answer that is JSON and matches `schema`.
pub fn json_grammar(schema: &Value) -> String {
    format!("start: %json {schema}\n")
}

/// The schema of a function's arguments, which have names.
pub fn arguments(tool: &Tool) -> Schema {
    let mut value = tool.parameters.clone();
    if value.get("type").is_none() {
        value["type"] = "object".into();
    }
    Schema {
        value,
        strict: tool.strict,
    }
}

/// Text as a Lark string.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// Text as a pattern that matches it.
fn regex(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_alphanumeric() || matches!(c, '_' | '<' | '>') {
                vec![c]
            } else {
                vec!['\\', c]
            }
        })
        .collect()
}

/// The messages for a model whose template knows no tools: they, their calls and their results become text.
pub fn spell_out(messages: Vec<Message>, tools: Option<&Tools>) -> Vec<Message> {
    let mut spelled: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    let mut after_result = false;
    for message in messages {
        let is_result = message.role == Role::Tool;
        let mut text = message.content.text();
        if is_result {
            text = format!("<tool_response>\n{text}\n</tool_response>");
            // Results of several calls are one turn.
            if let Some(last) = spelled.last_mut().filter(|_| after_result) {
                last.content = format!("{}\n{text}", last.content.text()).into();
                continue;
            }
        }
        for call in &message.tool_calls {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = write!(text, "{gap}<tool_call>\n{}\n</tool_call>", spaced(&spelled_call(call)));
        }
        spelled.push(Message {
            role: if is_result { Role::User } else { message.role },
            content: if is_result || !message.tool_calls.is_empty() {
                text.into()
            } else {
                message.content
            },
            name: message.name.filter(|_| !is_result),
            ..Message::default()
        });
        after_result = is_result;
    }
    if let Some(tools) = tools {
        let briefing = brief(tools);
        match spelled
            .first_mut()
            .filter(|first| matches!(first.role, Role::System | Role::Developer))
        {
            Some(first) => first.content = format!("{}\n\n{briefing}", first.content.text()).into(),
            None => spelled.insert(
                0,
                Message {
                    role: Role::System,
                    content: briefing.into(),
                    ..Message::default()
                },
            ),
        }
    }
    spelled
}

/// What a model is told of its tools, if its template says nothing.
fn brief(tools: &Tools) -> String {
    let list: Vec<String> = tools.list.iter().map(|(_, tool)| spaced(&shown(tool))).collect();
    let duty = match (tools.must, tools.parallel) {
        (true, true) => "Answer with calls of these functions and nothing else.",
        (true, false) => "Answer with one call of one of these functions and nothing else.",
        (false, true) => "Call them when they help to answer; otherwise answer in plain words.",
        (false, false) => "Call one of them when it helps to answer; otherwise answer in plain words.",
    };
    format!(
        "These functions are at your service, each with the JSON schema of its arguments:\n<tools>\n{}\n</tools>\n{duty} \
         A call looks like this:\n<tool_call>\n{{\"name\": <its name>, \"arguments\": <an object of its \
         arguments>}}\n</tool_call>",
        list.join("\n")
    )
}

/// OpenAI's form of a tool, as models expect it.
fn shown(tool: &Tool) -> Value {
    let mut function = json!({"name": tool.name});
    if let Some(description) = &tool.description {
        function["description"] = description.as_str().into();
    }
    function["parameters"] = tool.parameters.clone();
    json!({"type": "function", "function": function})
}

/// Name and arguments of a call.
fn spelled_call(call: &ToolCall) -> Value {
    json!({"name": call.name, "arguments": parsed_arguments(call)})
}

/// The arguments of a call; what is no JSON stays text.
pub fn parsed_arguments(call: &ToolCall) -> Value {
    serde_json::from_str(&call.arguments).unwrap_or_else(|_| call.arguments.as_str().into())
}

/// JSON in one line with a space after commas and colons, as models were trained on.
fn spaced(value: &Value) -> String {
    match value {
        Value::Object(keys) => {
            let keys: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), spaced(value)))
                .collect();
            format!("{{{}}}", keys.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "tools_tests.rs"]
pub(super) mod tests;
