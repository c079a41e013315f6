//! `hivectl token …`: what the gateway would say to a token, and why; an end to all that a holder has. No token is ever
//! printed.

use std::path::Path;

use secrecy::SecretString;
use tokio::io::AsyncReadExt as _;
use wire::{ModelName, RevokeTokens, TokenVerdict};

use super::keys::date;
use crate::{cli::TokenCommand, config::Config, error::Failure, gateway_client::Gateway, output::Output};

/// The most that is read, in bytes: more than any token that is taken.
const MOST: u64 = 32 * 1024;

/// Runs one `token` command.
pub async fn run(command: TokenCommand, config: &Config, output: &Output) -> Result<(), Failure> {
    match command {
        TokenCommand::Verify { file } => verify(file.as_deref(), config, output).await,
        TokenCommand::Revoke { id, subject } => revoke(RevokeTokens { id, subject }, config, output).await,
    }
}

async fn revoke(holder: RevokeTokens, config: &Config, output: &Output) -> Result<(), Failure> {
    let revoked = Gateway::find(config)?.revoke_tokens(&holder).await?;
    let text = format!(
        "no token of {} issued until {} is taken any more; {} of their requests were cancelled",
        revoked.id,
        date(revoked.since_ms),
        revoked.cancelled
    );
    output.done(&revoked, text);
    Ok(())
}

async fn verify(file: Option<&Path>, config: &Config, output: &Output) -> Result<(), Failure> {
    let token = read(file).await?;
    let verdict = Gateway::find(config)?.verify_token(&token).await?;
    if output.is_json() {
        output.json(&verdict);
    } else {
        for (what, value) in facts(&verdict) {
            output.line(format_args!("{what:<10} {value}"));
        }
    }
    if verdict.accepted {
        return Ok(());
    }
    let next = match verdict.signed {
        Some(_) => "compare what it says with [jwt] in config.toml",
        None => "see the keys there are with `hivectl keys list`, and whether [jwt] in config.toml names an issuer",
    };
    let failure = Failure::task("the gateway does not take this token", next);
    Err(match verdict.reason {
        Some(reason) => failure.because(reason),
        None => failure,
    })
}

async fn read(file: Option<&Path>) -> Result<SecretString, Failure> {
    let unreadable =
        |error| Failure::usage("the token cannot be read", "pipe it in, or name its file with --file").because(error);
    let mut text = String::new();
    match file {
        Some(path) => {
            let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
            file.take(MOST).read_to_string(&mut text).await.map_err(unreadable)?;
        }
        None => {
            tokio::io::stdin()
                .take(MOST)
                .read_to_string(&mut text)
                .await
                .map_err(unreadable)?;
        }
    }
    match text.trim() {
        "" => Err(Failure::usage(
            "there is no token",
            "pipe it in, or name its file with --file",
        )),
        token => Ok(SecretString::from(token)),
    }
}

fn facts(verdict: &TokenVerdict) -> Vec<(&'static str, String)> {
    let json = |value: &Option<serde_json::Value>| value.as_ref().map(ToString::to_string);
    let list = |words: Vec<&str>, none: &str| {
        if words.is_empty() {
            none.to_owned()
        } else {
            words.join(" ")
        }
    };
    let signature = verdict
        .signed
        .map(|good| if good { "good" } else { "not proven" }.to_owned());
    let granted = verdict.accepted.then(|| {
        let scopes = verdict.scopes.iter().map(|scope| scope.as_str()).collect();
        let models = verdict.models.iter().map(ModelName::as_str).collect();
        [
            ("scopes", list(scopes, "none: it opens nothing")),
            ("models", list(models, "all")),
        ]
    });
    let taken = if verdict.accepted { "yes" } else { "no" }.to_owned();
    let facts = [
        Some(("accepted", taken)),
        signature.map(|signature| ("signature", signature)),
        verdict.id.clone().map(|id| ("id", id)),
        verdict.expires_at_ms.map(|at_ms| ("expires", date(at_ms))),
        json(&verdict.header).map(|header| ("header", header)),
        json(&verdict.claims).map(|claims| ("claims", claims)),
    ];
    facts
        .into_iter()
        .flatten()
        .chain(granted.into_iter().flatten())
        .collect()
}
