//! `hivectl jobs …`: requests, from the asking to the books.

use std::{pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use wire::{RequestState, RequestView, WorkerId};

use crate::{
    cli::Submit,
    config::Config,
    error::Failure,
    gateway_client::{Gateway, Piece},
    output::Output,
    signals::Signals,
};

/// How long a cancel may take before we leave without its answer.
const CANCEL: Duration = Duration::from_secs(5);

/// What became of a streamed answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// All of its text.
    pub text: String,
    /// Why it ended, in OpenAI's words.
    pub finish_reason: Option<String>,
}

/// One request, exactly as `--json` shows it.
#[derive(Serialize)]
struct JobLine<'a> {
    id: &'a str,
    key_id: &'a str,
    model: &'a str,
    worker: Option<&'a WorkerId>,
    state: RequestState,
    prompt_tokens: Option<i64>,
    completion_tokens: Option<i64>,
    started_at_ms: i64,
    ttft_ms: Option<i64>,
    total_ms: Option<i64>,
}

/// Sends one prompt and streams the answer; Ctrl-C cancels it.
pub async fn submit(args: &Submit, config: &Config, output: &Output, signals: &mut Signals) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    let mut id = None;
    let work = async {
        let chat = gateway.chat(&body(args), Duration::from_secs(args.timeout)).await?;
        output.note(&chat.id);
        id = Some(chat.id.clone());
        let answer = stream(chat.pieces, output).await?;
        if output.is_json() {
            output.json(&json!({
                "id": chat.id,
                "model": args.model,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
            }));
        }
        Ok(())
    };
    let wish = tokio::select! {
        outcome = work => return outcome,
        wish = signals.next() => wish,
    };
    if let Some(id) = id {
        // The connection is closed already, which cancels too; the answer only makes sure.
        let _ = tokio::time::timeout(CANCEL, gateway.cancel(&id)).await;
    }
    Err(wish.failure("the job is cancelled; submit it again if that was a mistake"))
}

/// Lists the latest requests, the newest first.
pub async fn list(limit: u32, config: &Config, output: &Output) -> Result<(), Failure> {
    let requests = Gateway::find(config)?.requests(limit).await?;
    if output.is_json() {
        output.json(&requests.iter().map(line).collect::<Vec<_>>());
        return Ok(());
    }
    let headers = [
        "id", "model", "worker", "state", "prompt", "tokens", "first ms", "total ms", "error",
    ];
    output.table(&headers, &requests.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

/// Stops a request that waits or runs.
pub async fn cancel(id: &str, config: &Config, output: &Output) -> Result<(), Failure> {
    Gateway::find(config)?.cancel(id).await?;
    output.done(
        &json!({ "id": id, "cancelled": true }),
        format_args!("job {id} is cancelled"),
    );
    Ok(())
}

fn body(args: &Submit) -> Value {
    let mut body = json!({
        "model": args.model,
        "stream": true,
        "messages": [{ "role": "user", "content": args.prompt }],
    });
    if let Some(max_tokens) = args.max_tokens {
        body["max_tokens"] = max_tokens.into();
    }
    if let Some(temperature) = args.temperature {
        // By way of its decimal form: 0.1 as f32 is not 0.1 as f64.
        body["temperature"] = temperature.to_string().parse::<f64>().map_or(Value::Null, Value::from);
    }
    body
}

/// Ends the line that an answer has begun, also when the answer is dropped in its middle.
struct OpenLine<'a>(&'a Output);

impl Drop for OpenLine<'_> {
    fn drop(&mut self) {
        self.0.line("");
    }
}

/// Prints an answer as it comes, and a line end after it; with `--json` it is only collected.
pub async fn stream(pieces: impl Stream<Item = Result<Piece, Failure>>, output: &Output) -> Result<Answer, Failure> {
    let mut pieces = pin!(pieces);
    let mut answer = Answer::default();
    let mut line = None;
    let outcome = loop {
        match pieces.next().await {
            None => break Ok(()),
            // Nobody reads on; leaving cancels the rest.
            Some(_) if output.reader_has_gone() => break Ok(()),
            Some(Err(failure)) => break Err(failure),
            Some(Ok(Piece::Finish(reason))) => answer.finish_reason = Some(reason),
            Some(Ok(Piece::Text(text))) => {
                if !output.is_json() {
                    line.get_or_insert_with(|| OpenLine(output));
                    output.piece(&text);
                }
                answer.text.push_str(&text);
            }
        }
    };
    // An empty answer is a line too.
    if !output.is_json() && line.is_none() && outcome.is_ok() {
        output.line("");
    }
    outcome.map(|()| answer)
}

fn row(request: &RequestView) -> Vec<String> {
    let number = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    vec![
        request.id.clone(),
        request.model.clone(),
        request
            .worker
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string),
        request.state.as_str().to_owned(),
        number(request.prompt_tokens),
        number(request.completion_tokens),
        number(request.ttft_ms),
        number(request.total_ms),
        request.error.clone().unwrap_or_default(),
    ]
}

fn line(request: &RequestView) -> JobLine<'_> {
    JobLine {
        id: &request.id,
        key_id: &request.key_id,
        model: &request.model,
        worker: request.worker.as_ref(),
        state: request.state,
        prompt_tokens: request.prompt_tokens,
        completion_tokens: request.completion_tokens,
        started_at_ms: request.started_at_ms,
        ttft_ms: request.ttft_ms,
        total_ms: request.total_ms,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_what_was_asked_for_is_sent() {
        let mut args = Submit {
            model: "echo".parse().unwrap(),
            prompt: "hi".into(),
            max_tokens: None,
            temperature: None,
            timeout: 1,
        };
        let mut keys: Vec<_> = body(&args).as_object().unwrap().keys().cloned().collect();
        // Their order is serde_json's, which other crates' features decide.
        keys.sort();
        assert_eq!(keys, ["messages", "model", "stream"]);
        (args.max_tokens, args.temperature) = (Some(5), Some(0.1));
        let body = body(&args);
        assert_eq!((&body["max_tokens"], &body["temperature"]), (&json!(5), &json!(0.1)));
    }

    #[tokio::test]
    async fn an_answer_is_put_together_until_its_end_or_its_failure() {
        let output = Output::new(true, false);
        let text = |text: &str| Ok(Piece::Text(text.to_owned()));
        let whole = futures_util::stream::iter([text("a"), text("b"), Ok(Piece::Finish("stop".into()))]);
        let expected = Answer {
            text: "ab".into(),
            finish_reason: Some("stop".into()),
        };
        assert_eq!(stream(whole, &output).await.unwrap(), expected);
        let lost = futures_util::stream::iter([text("a"), Err(Failure::task("the worker died", "again"))]);
        assert_eq!(stream(lost, &output).await.unwrap_err().exit_code(), 1);
    }
}
