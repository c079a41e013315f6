//! The functions a model may call, which of them it must, and the calls it made before.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{Faults, body::shown, reading::Reading, schema};

/// The most functions in one request.
const MOST_TOOLS: usize = 128;

/// A function the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// What it does, for the model.
    pub description: Option<String>,
    /// The JSON schema of its arguments; always an object, and the schema of an object.
    pub parameters: Value,
    /// Whether the arguments must match the schema exactly.
    pub strict: bool,
}

/// Whether the model calls a function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// It must not.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// It must call at least one.
    Required,
    /// It must call this one.
    Function(String),
}

/// A call the assistant made in an earlier message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The call's id; empty for a `function_call` of the older form.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// The arguments as JSON text, as the model wrote them.
    pub arguments: String,
}

/// Reads `tools`; an empty list is none.
pub(super) fn read(reading: &mut Reading<'_>) -> Vec<Tool> {
    if reading.body.is_longer("tools", MOST_TOOLS) {
        let rule = format!("has more than {MOST_TOOLS} entries; send fewer");
        reading.faults.invalid("tools", rule);
        return Vec::new();
    }
    let list = match reading.body.value("tools") {
        None => return Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => {
            reading.faults.invalid("tools", "must be a list of tools");
            return Vec::new();
        }
    };
    let mut tools: Vec<Tool> = Vec::with_capacity(list.len());
    for (i, tool) in list.into_iter().enumerate() {
        let Some(tool) = read_tool(&format!("tools[{i}]"), tool, &mut reading.faults) else {
            continue;
        };
        if tools.iter().any(|other| other.name == tool.name) {
            let rule = format!("is `{}` a second time; names must differ", tool.name);
            reading.faults.invalid(format!("tools[{i}].function.name"), rule);
        }
        tools.push(tool);
    }
    tools
}

fn read_tool(at: &str, mut tool: Value, faults: &mut Faults) -> Option<Tool> {
    match tool.get("type") {
        None | Some(Value::Null) if tool.get("function").is_some() => {}
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(kind)) => {
            let rule = format!(
                "is `{}`; the models here call tools of the type `function`",
                shown(kind)
            );
            faults.unsupported(format!("{at}.type"), rule);
            return None;
        }
        _ => {
            faults.invalid(format!("{at}.type"), "must be `function`");
            return None;
        }
    }
    let at = format!("{at}.function");
    let Some(Value::Object(mut function)) = tool.get_mut("function").map(Value::take) else {
        faults.invalid(at, "must be an object with `name`, `description` and `parameters`");
        return None;
    };
    let name = match function.remove("name") {
        Some(Value::String(name)) if is_name(&name) => name,
        _ => {
            faults.invalid(format!("{at}.name"), "must be 1 to 64 letters, digits, `_` or `-`");
            return None;
        }
    };
    let description = match function.remove("description") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => {
            faults.invalid(format!("{at}.description"), "must be a string");
            None
        }
    };
    let strict = match function.remove("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => strict,
        Some(_) => {
            faults.invalid(format!("{at}.strict"), "must be true or false");
            false
        }
    };
    let parameters = match function.remove("parameters") {
        None | Some(Value::Null) => serde_json::json!({"type": "object", "properties": {}}),
        Some(schema) => {
            schema::check_object(&format!("{at}.parameters"), &schema, faults);
            schema
        }
    };
    Some(Tool {
        name,
        description,
        parameters,
        strict,
    })
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Reads `tool_choice`, and the names it narrows the tools to.
pub(super) fn read_choice(reading: &mut Reading<'_>, tools: &[Tool]) -> (ToolChoice, Option<Vec<String>>) {
    let Some(choice) = reading.body.value("tool_choice") else {
        return (ToolChoice::Auto, None);
    };
    let (choice, allowed) = match &choice {
        Value::String(word) => match word.as_str() {
            "none" => return (ToolChoice::None, None),
            "auto" => return (ToolChoice::Auto, None),
            // What Mistral's clients say for it.
            "required" | "any" => (ToolChoice::Required, None),
            _ => (ToolChoice::Auto, Some(Err("tool_choice"))),
        },
        Value::Object(object) => match object.get("type").and_then(Value::as_str) {
            Some("function") => match named(&choice) {
                Some(name) => (ToolChoice::Function(name), None),
                None => (ToolChoice::Auto, Some(Err("tool_choice.function.name"))),
            },
            Some("allowed_tools") => read_allowed(object),
            Some("custom") => {
                reading
                    .faults
                    .unsupported("tool_choice.type", "is `custom`; the models here call functions");
                return (ToolChoice::Auto, None);
            }
            _ => (ToolChoice::Auto, Some(Err("tool_choice.type"))),
        },
        _ => (ToolChoice::Auto, Some(Err("tool_choice"))),
    };
    let allowed = match allowed {
        None => None,
        Some(Ok(names)) => Some(names),
        Some(Err(at)) => {
            let rule = "must be none, auto, required, {\"type\": \"function\", \"function\": {\"name\": …}} or {\"type\": \
                        \"allowed_tools\", \"allowed_tools\": {\"mode\": …, \"tools\": […]}}";
            reading.faults.invalid(at, rule);
            return (ToolChoice::Auto, None);
        }
    };
    let names = match &choice {
        ToolChoice::Function(name) => std::slice::from_ref(name),
        _ => allowed.as_deref().unwrap_or_default(),
    };
    let none = Value::Array(Vec::new());
    let asked_for_tools = reading.body.value("tools").is_some_and(|tools| tools != none);
    if tools.is_empty() && !asked_for_tools {
        reading.faults.invalid("tool_choice", "needs `tools` to choose from");
    } else if let Some(absent) = names.iter().find(|name| !tools.iter().any(|tool| tool.name == **name)) {
        let rule = format!("names `{}`, which is not among `tools`", shown(absent));
        reading.faults.invalid("tool_choice", rule);
    }
    (choice, allowed)
}

type Allowed = Option<Result<Vec<String>, &'static str>>;

/// `allowed_tools` in chat's form, or flat as the Responses API has it.
fn read_allowed(choice: &Map<String, Value>) -> (ToolChoice, Allowed) {
    let inner = choice.get("allowed_tools").and_then(Value::as_object).unwrap_or(choice);
    let mode = match inner.get("mode").and_then(Value::as_str) {
        Some("auto") => ToolChoice::Auto,
        Some("required") => ToolChoice::Required,
        _ => return (ToolChoice::Auto, Some(Err("tool_choice.allowed_tools.mode"))),
    };
    let names = inner
        .get("tools")
        .and_then(Value::as_array)
        .filter(|tools| !tools.is_empty());
    let names: Option<Vec<String>> = names.and_then(|tools| tools.iter().map(named).collect());
    (mode, Some(names.ok_or("tool_choice.allowed_tools.tools")))
}

/// The name in `{"type": "function", "function": {"name": …}}`, or flat.
fn named(tool: &Value) -> Option<String> {
    let name = tool.pointer("/function/name").or_else(|| tool.get("name"))?;
    name.as_str().map(str::to_owned)
}

/// Reads the calls of an assistant's message.
pub(super) fn read_calls(at: &str, message: &mut Map<String, Value>, faults: &mut Faults) -> Vec<ToolCall> {
    if let Some(Value::Object(call)) = message.get("function_call") {
        let function = Value::Object(call.clone());
        return read_function(&format!("{at}.function_call"), &function, String::new(), faults)
            .into_iter()
            .collect();
    }
    let calls = match message.remove("tool_calls") {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(calls)) => calls,
        Some(_) => {
            faults.invalid(format!("{at}.tool_calls"), "must be a list of calls");
            return Vec::new();
        }
    };
    let mut ids = HashSet::new();
    let mut read = Vec::with_capacity(calls.len());
    for (j, call) in calls.iter().enumerate() {
        let at = format!("{at}.tool_calls[{j}]");
        let id = call.get("id").and_then(Value::as_str).unwrap_or_default();
        if id.is_empty() || !ids.insert(id) {
            let rule = "must be a string of its own, as the answer with the call gave it";
            faults.invalid(format!("{at}.id"), rule);
        }
        if call.get("type").and_then(Value::as_str) == Some("custom") {
            faults.unsupported(format!("{at}.type"), "is `custom`; the models here call functions");
            // Its result comes in a later message, and names it.
            read.push(ToolCall {
                id: id.to_owned(),
                name: String::new(),
                arguments: String::new(),
            });
            continue;
        }
        let function = call.get("function").unwrap_or(&Value::Null);
        read.extend(read_function(
            &format!("{at}.function"),
            function,
            id.to_owned(),
            faults,
        ));
    }
    read
}

fn read_function(at: &str, function: &Value, id: String, faults: &mut Faults) -> Option<ToolCall> {
    let Some(name) = function
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
    else {
        faults.invalid(format!("{at}.name"), "must be the name of the function called");
        return None;
    };
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        // Some frameworks keep them parsed.
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => {
            faults.invalid(format!("{at}.arguments"), "must be a string of JSON");
            return None;
        }
    };
    Some(ToolCall {
        id,
        name: name.to_owned(),
        arguments,
    })
}
