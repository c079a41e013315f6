//! The messages of a conversation, in every form clients send them.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{Faults, ToolCall, body::shown, tools::read_calls};

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
    /// Who of several in the same role.
    pub name: Option<String>,
    /// What the assistant thought before it spoke, as some clients send it back.
    pub reasoning: Option<String>,
    /// The calls the assistant made.
    pub tool_calls: Vec<ToolCall>,
    /// The call this message answers; none for a `function` of the older form.
    pub tool_call_id: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions from whoever built the application, under their older name.
    System,
    /// The same under their newer one.
    Developer,
    /// The person.
    #[default]
    User,
    /// The model.
    Assistant,
    /// What a tool answered; a `function` of the older form too.
    Tool,
}

/// What a message says, part by part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content(Vec<Part>);

/// A part of what a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image.
    Image {
        /// A `data:` URL with the image in it, or where it lies.
        url: String,
    },
    /// Audio, video or a file, by the part's type: for attached servers only.
    Other(String),
}

impl Role {
    /// The role's one word, as JSON and chat templates spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "system" => Self::System,
            "developer" => Self::Developer,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" | "function" => Self::Tool,
            _ => return None,
        })
    }
}

impl Content {
    /// The parts in their order.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The text of all parts, one part a line.
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.0.iter().filter_map(Part::text).collect();
        texts.join("\n")
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self(vec![Part::Text(text)])
    }
}

impl Part {
    /// The text, if it is text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Bytes of the request that it takes as an image.
    pub fn image_bytes(&self) -> usize {
        match self {
            Self::Image { url } => url.len(),
            _ => 0,
        }
    }

    /// Whether it is an image that somebody would have to fetch.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::Image { url } if !starts_with(url, "data:"))
    }

    /// The base64 of an image that came with the request.
    pub fn image_data(&self) -> Option<&str> {
        match self {
            Self::Image { url } if starts_with(url, "data:") => Some(url.split_once(',')?.1),
            _ => None,
        }
    }
}

/// The parts of a conversation that are no text, each with its path.
pub fn media(messages: &[Message]) -> impl Iterator<Item = (String, &Part)> {
    messages.iter().enumerate().flat_map(|(i, message)| {
        let parts = message.content.parts().iter().enumerate();
        let media = parts.filter(|(_, part)| !matches!(part, Part::Text(_)));
        media.map(move |(j, part)| (format!("messages[{i}].content[{j}]"), part))
    })
}

/// Reads a list of messages; the faulty ones are left out.
pub(super) fn read(list: Vec<Value>, faults: &mut Faults) -> Vec<Message> {
    let mut calls_made = HashSet::new();
    let mut messages = Vec::with_capacity(list.len());
    for (i, message) in list.into_iter().enumerate() {
        let at = format!("messages[{i}]");
        let Value::Object(message) = message else {
            faults.invalid(at, "must be an object");
            continue;
        };
        if let Some(message) = read_one(&at, message, faults) {
            if let Some(id) = message.tool_call_id.as_ref().filter(|id| !calls_made.contains(*id)) {
                let rule = format!("names the call `{}`, which no message before it makes", shown(id));
                faults.invalid(format!("{at}.tool_call_id"), rule);
            }
            calls_made.extend(message.tool_calls.iter().map(|call| call.id.clone()));
            messages.push(message);
        }
    }
    messages
}

fn read_one(at: &str, mut message: Map<String, Value>, faults: &mut Faults) -> Option<Message> {
    let Some(role) = message.get("role").and_then(Value::as_str).and_then(Role::parse) else {
        let rule = "must be system, developer, user, assistant or tool";
        faults.invalid(format!("{at}.role"), rule);
        return None;
    };
    let mut text = |key: &str, faults: &mut Faults| match message.remove(key) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => {
            faults.invalid(format!("{at}.{key}"), "must be a string");
            None
        }
    };
    let name = text("name", faults);
    let tool_call_id = text("tool_call_id", faults).filter(|_| role == Role::Tool);
    let refusal = text("refusal", faults);
    if role == Role::Tool && tool_call_id.is_none() && message["role"] == "tool" {
        faults.invalid(
            format!("{at}.tool_call_id"),
            "must name the call that this message answers",
        );
    }
    let tool_calls = match role {
        Role::Assistant => read_calls(at, &mut message, faults),
        _ => Vec::new(),
    };
    if message.get("audio").is_some_and(|audio| !audio.is_null()) {
        faults.unsupported(
            format!("{at}.audio"),
            "refers to spoken answers, which the models here do not give",
        );
    }
    let mut reasoning = ["reasoning_content", "reasoning", "thinking"]
        .iter()
        .find_map(|key| message.get(*key)?.as_str().map(str::to_owned));
    let content = match message.remove("content") {
        Some(Value::String(text)) => text.into(),
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            let read =
                parts.filter_map(|(j, part)| read_part(&format!("{at}.content[{j}]"), part, &mut reasoning, faults));
            Content(read.collect())
        }
        // An assistant that called tools may have said nothing, and so may a tool that only did something.
        None | Some(Value::Null) if role == Role::Assistant => refusal.map(Content::from).unwrap_or_default(),
        Some(Value::Null) if role == Role::Tool => Content::default(),
        other => {
            let rule = match other {
                None | Some(Value::Null) => "is missing; send a string or a list of parts",
                Some(_) => "must be a string or a list of parts",
            };
            faults.invalid(format!("{at}.content"), rule);
            Content::default()
        }
    };
    Some(Message {
        role,
        content,
        name,
        reasoning,
        tool_calls,
        tool_call_id,
    })
}

fn read_part(at: &str, mut part: Value, reasoning: &mut Option<String>, faults: &mut Faults) -> Option<Part> {
    if !part.is_object() {
        faults.invalid(at, "must be an object such as {\"type\": \"text\", \"text\": \"…\"}");
        return None;
    }
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut text = |key: &str| {
        if let Some(Value::String(text)) = part.get_mut(key).map(Value::take) {
            Some(text)
        } else {
            faults.invalid(format!("{at}.{key}"), "must be a string");
            None
        }
    };
    match kind.as_str() {
        // Clients of other APIs name theirs `input_text` and `output_text`.
        "text" | "input_text" | "output_text" => text("text").map(Part::Text),
        "refusal" => text("refusal").map(Part::Text),
        "thinking" => {
            *reasoning = text("thinking");
            None
        }
        "image_url" => {
            let url = part.get_mut("image_url").map(Value::take).unwrap_or_default();
            let url = match url {
                Value::Object(mut image) => image.remove("url").unwrap_or_default(),
                other => other,
            };
            match url {
                Value::String(url) if is_image_url(&url) => Some(Part::Image { url }),
                _ => {
                    let rule =
                        "must be a data:image/…;base64,… URL, or an http(s) URL where the model's server fetches one";
                    faults.invalid(format!("{at}.image_url.url"), rule);
                    None
                }
            }
        }
        "input_audio" | "audio_url" | "video_url" | "file" | "input_image" | "input_file" => {
            faults.unsupported(
                format!("{at}.type"),
                format!("is `{kind}`, which the models here do not read; send text or image_url"),
            );
            Some(Part::Other(kind))
        }
        _ => {
            faults.invalid(format!("{at}.type"), "must be text or image_url");
            None
        }
    }
}

fn is_image_url(url: &str) -> bool {
    if starts_with(url, "data:") {
        return starts_with(url, "data:image/")
            && url
                .split_once(',')
                .is_some_and(|(head, data)| head.ends_with(";base64") && !data.is_empty());
    }
    (starts_with(url, "http://") || starts_with(url, "https://")) && url.len() <= 8192
}

fn starts_with(url: &str, scheme: &str) -> bool {
    url.get(..scheme.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}
