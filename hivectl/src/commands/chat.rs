//! `hivectl chat`: a conversation with one model, streamed.

use std::{io::IsTerminal, time::Duration};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use wire::ModelName;

use super::jobs;
use crate::{
    cli::Chat,
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::Output,
    signals::{Signals, Wish},
};

/// The longest wait for a sign of life.
const SILENCE: Duration = Duration::from_secs(300);

/// Reads what is said line by line and streams each answer, or prints it as one JSON object. Ctrl-C stops an answer,
/// Ctrl-D or `/exit` the chat.
pub async fn run(args: Chat, config: &Config, output: &Output, signals: &mut Signals) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    let model = match args.model {
        Some(model) => model,
        None => only_model(&gateway, config).await?,
    };
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        output.note(format_args!(
            "talking with {model}; Ctrl-C stops an answer, Ctrl-D or /exit the chat"
        ));
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut messages: Vec<Value> = Vec::new();
    loop {
        if interactive {
            output.prompt("> ");
        }
        let said = next_line(&mut lines, signals).await;
        if interactive && !matches!(said, Ok(Some(_))) {
            output.prompt("\n");
        }
        let Some(said) = said? else { return Ok(()) };
        match said.trim() {
            "" => continue,
            "/exit" => return Ok(()),
            said => messages.push(json!({ "role": "user", "content": said })),
        }
        let body = json!({ "model": model, "stream": true, "messages": messages });
        let answer = async {
            let chat = gateway.chat(&body, SILENCE).await?;
            jobs::stream(chat.pieces, output).await
        };
        let outcome = tokio::select! {
            answer = answer => answer,
            wish = signals.next() => match wish {
                // Dropping the answer closes its connection, which cancels it.
                Wish::Interrupt => Err(Failure::interrupted("the answer was stopped", "say something else, or leave with Ctrl-D")),
                Wish::Terminate => return Ok(()),
            },
        };
        match outcome {
            Ok(answer) => {
                if output.is_json() {
                    output.json(&json!({
                        "model": model,
                        "text": answer.text,
                        "finish_reason": answer.finish_reason,
                    }));
                }
                messages.push(json!({ "role": "assistant", "content": answer.text }));
            }
            Err(failure) if interactive => {
                // What was not answered is not part of the conversation.
                messages.pop();
                output.failure(&failure);
            }
            Err(failure) => return Err(failure),
        }
    }
}

async fn next_line(lines: &mut Lines<BufReader<Stdin>>, signals: &mut Signals) -> Result<Option<String>, Failure> {
    tokio::select! {
        line = lines.next_line() => {
            line.map_err(|error| Failure::task("stdin cannot be read", "type or pipe plain UTF-8 text").because(error))
        }
        wish = signals.next() => match wish {
            Wish::Interrupt => Err(Failure::interrupted("interrupted", "start it again with `hivectl chat`")),
            Wish::Terminate => Ok(None),
        },
    }
}

async fn only_model(gateway: &Gateway, config: &Config) -> Result<ModelName, Failure> {
    let ready = gateway.ready_models().await?;
    let preferred = config.model.as_ref().filter(|model| ready.contains(model));
    let chosen = match (preferred, ready.as_slice()) {
        (Some(model), _) => model,
        (None, [only]) => only,
        (None, []) => {
            return Err(Failure::task(
                "no model is ready",
                "start one with `hivectl worker spawn cpu --model smollm2-135m`",
            ));
        }
        (None, several) => {
            return Err(Failure::usage(
                "there are several models",
                format!("name one with --model: {}", several.join(", ")),
            ));
        }
    };
    super::worker::model_name(chosen)
}
