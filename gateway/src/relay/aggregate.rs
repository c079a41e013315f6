//! One JSON answer put together from a worker's chunks, for callers that did not ask for a stream.
//!
//! Unknown fields of a message survive; it never invents a token.

use serde_json::{Map, Value, json};
use tokio::time::Instant;
use wire::{RequestState, openai::parameters::Kind};

use super::{
    Opened,
    answer::{Answer, Data, Event, Loss},
    settle,
    watch::{Wake, Watch},
};
use crate::{books::Entry, error::ApiError, registry::members::Outcome, state::AppState};

/// The most text and log-probabilities of one answer, in bytes; more would fill the memory for one client's sake.
const LARGEST: usize = 64 * 1024 * 1024;

/// Why there is no whole answer.
pub enum Uncollected {
    /// The worker was lost; the caller has seen nothing, and the entry in the books is open.
    Lost(Box<Entry>, Loss),
    /// It has failed for good, and the books know.
    Failed(ApiError),
}

/// Reads the answer to its end.
pub async fn collect(
    state: &AppState,
    mut opened: Opened<Answer>,
    kind: Kind,
    deadline: Option<Instant>,
) -> Result<Value, Uncollected> {
    let mut watch = Watch::new(state, deadline);
    let mut whole = Whole::default();
    let error = loop {
        match watch.next(&mut opened, None).await {
            Wake::Events => {
                let end = take_all(&mut opened, &mut whole);
                // Also when the client leaves now, what was generated is in the books.
                opened.count();
                match end {
                    None => {}
                    Some(Ok(())) => {
                        opened.entry.end(RequestState::Completed, None);
                        return Ok(whole.into_answer(kind));
                    }
                    Some(Err(error)) => break error,
                }
            }
            Wake::Quiet => {}
            Wake::Lost(loss) => return Err(Uncollected::Lost(Box::new(opened.entry), loss)),
            Wake::Stalled(stall) => break ApiError::WorkerFailed(format!("silent for {} s", stall.as_secs())),
            Wake::Stop(error) => break error,
        }
    };
    settle(&mut opened.entry, &error);
    Err(Uncollected::Failed(error))
}

fn take_all(opened: &mut Opened<Answer>, whole: &mut Whole) -> Option<Result<(), ApiError>> {
    while let Some(event) = opened.reply.take() {
        match event {
            Event::Chunk { data, token, .. } => {
                if token {
                    opened.entry.first_token();
                }
                if let Data::Value(Value::Object(chunk)) = data {
                    whole.add(chunk);
                }
                if whole.size > LARGEST {
                    opened.lease.report(Outcome::Fine, None);
                    return Some(Err(ApiError::AnswerTooLarge(LARGEST)));
                }
            }
            Event::Done => {
                opened.lease.report(Outcome::Fine, None);
                return Some(Ok(()));
            }
            Event::Error(error) => {
                let message = error.message.clone();
                opened.failed(error);
                return Some(Err(ApiError::WorkerFailed(message)));
            }
            Event::TooFew(choices) => {
                opened.lease.report(Outcome::Fine, None);
                return Some(Err(ApiError::TooFewChoices(choices)));
            }
        }
    }
    None
}

/// What has come so far.
#[derive(Debug, Default)]
struct Whole {
    /// Top-level fields of the first chunk, then the usage.
    head: Map<String, Value>,
    choices: Vec<Choice>,
    /// Bytes of text and of log-probabilities.
    size: usize,
}

#[derive(Debug)]
struct Choice {
    index: u64,
    message: Map<String, Value>,
    tool_calls: Vec<Value>,
    logprobs: Option<Map<String, Value>>,
    finish_reason: Value,
}

impl Whole {
    fn add(&mut self, mut chunk: Map<String, Value>) {
        let choices = chunk.remove("choices");
        for (key, value) in chunk {
            if key == "usage" && !value.is_null() {
                self.head.insert(key, value);
            } else if key != "usage" && !value.is_null() {
                self.head.entry(key).or_insert(value);
            }
        }
        let Some(Value::Array(choices)) = choices else { return };
        for choice in choices {
            self.size += size_of(&choice);
            let Value::Object(choice) = choice else { continue };
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
            let place = self.choices.iter().position(|c| c.index == index).unwrap_or_else(|| {
                self.choices.push(Choice::new(index));
                self.choices.len() - 1
            });
            self.choices[place].add(choice);
        }
    }

    fn into_answer(mut self, kind: Kind) -> Value {
        let (object, form): (_, fn(Choice) -> Value) = match kind {
            Kind::Completions => ("text_completion", Choice::into_text),
            _ => ("chat.completion", Choice::into_message),
        };
        self.choices.sort_by_key(|choice| choice.index);
        self.head.insert("object".into(), object.into());
        let choices = self.choices.into_iter().map(form).collect();
        self.head.insert("choices".into(), choices);
        Value::Object(self.head)
    }
}

/// Roughly the memory that a value takes.
fn size_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(|value| size_of(value) + 8).sum(),
        Value::Object(fields) => fields.values().map(|value| size_of(value) + 8).sum(),
        _ => 8,
    }
}

impl Choice {
    fn new(index: u64) -> Self {
        Self {
            index,
            message: Map::new(),
            tool_calls: Vec::new(),
            logprobs: None,
            finish_reason: Value::Null,
        }
    }

    fn add(&mut self, mut choice: Map<String, Value>) {
        if let Some(reason) = choice.remove("finish_reason").filter(|r| !r.is_null()) {
            self.finish_reason = reason;
        }
        if let Some(Value::Object(logprobs)) = choice.remove("logprobs") {
            let held = self.logprobs.get_or_insert_default();
            for (key, value) in logprobs {
                append(held.entry(key).or_insert(Value::Null), value);
            }
        }
        if let Some(text) = choice.remove("text") {
            append(self.message.entry("content").or_insert(Value::Null), text);
        }
        let Some(Value::Object(mut delta)) = choice.remove("delta") else {
            return;
        };
        if let Some(Value::Array(calls)) = delta.remove("tool_calls") {
            for call in calls {
                self.add_tool_call(call);
            }
        }
        for (key, value) in delta {
            if key == "role" {
                self.message.insert(key, value);
            } else {
                append(self.message.entry(key).or_insert(Value::Null), value);
            }
        }
    }

    /// Fragments of a call are told apart by their index; the answer itself carries none.
    fn add_tool_call(&mut self, call: Value) {
        let Value::Object(mut call) = call else { return };
        let index = call
            .remove("index")
            .and_then(|i| i.as_u64())
            .and_then(|i| usize::try_from(i).ok());
        let place = index.unwrap_or(self.tool_calls.len()).min(self.tool_calls.len());
        if place == self.tool_calls.len() {
            self.tool_calls.push(Value::Object(call));
            return;
        }
        let fragment = call.get("function").and_then(|f| f.get("arguments")).cloned();
        if let (Some(held), Some(fragment)) = (self.tool_calls[place].pointer_mut("/function/arguments"), fragment) {
            append(held, fragment);
        }
    }

    fn into_message(mut self) -> Value {
        let called = !self.tool_calls.is_empty() || self.message.contains_key("function_call");
        self.message.retain(|_, value| !value.is_null());
        self.message.entry("role").or_insert_with(|| "assistant".into());
        self.message.entry("refusal").or_insert(Value::Null);
        self.message.entry("annotations").or_insert_with(|| json!([]));
        let content = self.message.entry("content").or_insert(Value::Null);
        if called && content.as_str() == Some("") {
            *content = Value::Null;
        }
        if !self.tool_calls.is_empty() {
            self.message.insert("tool_calls".into(), Value::Array(self.tool_calls));
        }
        json!({
            "index": self.index,
            "message": self.message,
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        })
    }

    fn into_text(mut self) -> Value {
        json!({
            "index": self.index,
            "text": self.message.remove("content").unwrap_or_else(|| "".into()),
            "logprobs": self.logprobs,
            "finish_reason": self.finish_reason,
        })
    }
}

/// Texts and lists grow, also within objects; anything else is replaced, null changes nothing.
pub fn append(held: &mut Value, more: Value) {
    match (held, more) {
        (_, Value::Null) => {}
        (Value::String(text), Value::String(more)) => text.push_str(&more),
        (Value::Array(list), Value::Array(more)) => list.extend(more),
        (Value::Object(held), Value::Object(more)) => {
            for (key, value) in more {
                append(held.entry(key).or_insert(Value::Null), value);
            }
        }
        (held, more) => *held = more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(chunks: &[Value]) -> Value {
        let mut whole = Whole::default();
        for chunk in chunks {
            whole.add(chunk.as_object().unwrap().clone());
        }
        whole.into_answer(Kind::Chat)
    }

    #[test]
    fn deltas_become_one_message_and_the_usage_is_kept() {
        let answer = whole(&[
            json!({"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}),
            json!({"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":{"content":[{"token":"Hel"}],"refusal":null},"finish_reason":null}],"usage":null}),
            json!({"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"lo"},"logprobs":{"content":[{"token":"lo"}],"refusal":null},"finish_reason":null}]}),
            json!({"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}),
            json!({"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}),
        ]);
        assert_eq!(
            answer,
            json!({"id":"chatcmpl-1","object":"chat.completion","created":5,"model":"m",
                "choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null,"annotations":[]},
                    "logprobs":{"content":[{"token":"Hel"},{"token":"lo"}],"refusal":null},"finish_reason":"stop"}],
                "usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}})
        );
    }

    #[test]
    fn tool_call_fragments_are_joined_and_lose_their_index() {
        let answer = whole(&[
            json!({"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":""}}]}}]}),
            json!({"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}}]}}]}),
            json!({"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}}]}),
            json!({"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}]}}]}),
            json!({"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}),
        ]);
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null);
        assert_eq!(
            message["tool_calls"],
            json!([{"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},
                   {"id":"c2","type":"function","function":{"name":"g","arguments":"{}"}}])
        );
    }

    #[test]
    fn a_call_in_the_older_form_is_joined_too() {
        let answer = whole(&[
            json!({"choices":[{"index":0,"delta":{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{\"a\""}}}]}),
            json!({"choices":[{"index":0,"delta":{"function_call":{"arguments":":1}"}},"finish_reason":"function_call"}]}),
        ]);
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["function_call"], json!({"name": "f", "arguments": "{\"a\":1}"}));
        assert_eq!((&message["content"], message.get("tool_calls")), (&Value::Null, None));
    }

    #[test]
    fn completions_are_texts_with_the_older_log_probabilities() {
        let mut whole = Whole::default();
        let part = |text: &str, at: u64| {
            json!({"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":text,"finish_reason":null,
                "logprobs":{"tokens":[text],"token_logprobs":[-0.5],"top_logprobs":[{text:-0.5}],"text_offset":[at]}}]})
        };
        let end = json!({"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length"}]});
        for chunk in [part("a", 0), part("b", 1), end] {
            whole.add(chunk.as_object().unwrap().clone());
        }
        assert_eq!(
            whole.into_answer(Kind::Completions),
            json!({"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":"ab","finish_reason":"length",
                "logprobs":{"tokens":["a","b"],"token_logprobs":[-0.5,-0.5],"top_logprobs":[{"a":-0.5},{"b":-0.5}],"text_offset":[0,1]}}]})
        );
    }

    #[test]
    fn what_must_not_be_null_is_left_out() {
        let answer = whole(&[
            json!({"id":"1","system_fingerprint":null,"service_tier":null,"choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":null,"audio":null}}],"usage":null}),
            json!({"choices":[{"index":0,"delta":{"content":"a","refusal":null},"finish_reason":"stop"}]}),
        ]);
        assert_eq!(
            answer,
            json!({"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}]})
        );
    }

    #[test]
    fn choices_come_in_the_order_of_their_index() {
        let answer = whole(&[
            json!({"choices":[{"index":1,"delta":{"content":"b"}}]}),
            json!({"choices":[{"index":0,"delta":{"content":"a"}}]}),
        ]);
        assert_eq!(answer["choices"][0]["message"]["content"], "a");
        assert_eq!(answer["choices"][1]["index"], 1);
    }
}
