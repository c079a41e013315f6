//! `hivectl keys …`: API keys of the gateway.

use std::time::{Duration, SystemTime};

use serde_json::json;
use wire::{CreatedKey, KeyLimits, KeyView, ModelName, NewKey, Priority, RotateKey};

use crate::{
    cli::{CreateKey, KeysCommand},
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    output::Output,
};

/// Runs one `keys` command.
pub async fn run(command: KeysCommand, config: &Config, output: &Output) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    match command {
        KeysCommand::Create(args) => show_once(&gateway.create_key(&new(args)).await?, output),
        KeysCommand::List => {
            let keys = gateway.keys().await?;
            if output.is_json() {
                output.json(&keys);
            } else {
                let rows: Vec<_> = keys.iter().map(row).collect();
                output.table(
                    &["id", "name", "owner", "scopes", "models", "last used", "state"],
                    &rows,
                );
            }
        }
        KeysCommand::Show { id } => {
            let key = gateway.key(&id).await?;
            if output.is_json() {
                output.json(&key);
            } else {
                for (what, value) in facts(&key) {
                    output.line(format_args!("{what:<20} {value}"));
                }
            }
        }
        KeysCommand::Rotate { id, grace } => {
            let grace_s = Some(grace.as_secs());
            let created = gateway.rotate_key(&id, RotateKey { grace_s }).await?;
            output.note(format_args!(
                "key {id} stays good for {}",
                humantime::format_duration(grace)
            ));
            show_once(&created, output);
        }
        KeysCommand::Revoke { id } => {
            gateway.revoke_key(&id).await?;
            output.done(
                &json!({ "id": id, "revoked": true }),
                format_args!("key {id} is revoked"),
            );
        }
    }
    Ok(())
}

fn new(args: CreateKey) -> NewKey {
    NewKey {
        name: args.name,
        scopes: args.scopes,
        owner: args.owner,
        models: args.models,
        limits: KeyLimits {
            requests_per_minute: args.requests_per_minute,
            tokens_per_minute: args.tokens_per_minute,
            tokens_per_day: args.tokens_per_day,
            concurrent_requests: args.concurrent_requests,
            token_budget: args.token_budget,
        },
        expires_in_s: args.expires.map(|time| time.as_secs()),
        trusted: args.trusted,
        priority: args.priority,
        labels: args.labels.into_iter().collect(),
    }
}

fn show_once(created: &CreatedKey, output: &Output) {
    if output.is_json() {
        output.json(created);
    } else {
        output.note("this key is shown only now; keep it in a place of its own");
        output.line(&created.key);
    }
}

fn row(key: &KeyView) -> Vec<String> {
    vec![
        key.id.clone(),
        key.name.clone(),
        key.owner.clone().unwrap_or_default(),
        scopes(key),
        models(key),
        key.last_used_at_ms.map(date).unwrap_or_default(),
        state(key),
    ]
}

fn facts(key: &KeyView) -> Vec<(&'static str, String)> {
    let limits = &key.limits;
    let limit = |name, value: Option<u64>| value.map(|value| (name, value.to_string()));
    let always = [
        ("id", key.id.clone()),
        ("name", key.name.clone()),
        ("state", state(key)),
        ("scopes", scopes(key)),
        ("models", models(key)),
        ("made", date(key.created_at_ms)),
    ];
    let maybe = [
        key.owner.clone().map(|owner| ("owner", owner)),
        key.trusted
            .then(|| ("trusted", "to name the person it asks for".to_owned())),
        (key.priority != Priority::Normal).then(|| ("priority", key.priority.as_str().to_owned())),
        (!key.labels.is_empty()).then(|| ("workers", labels(key))),
        (key.family != key.id).then(|| ("rotated from", key.family.clone())),
        key.last_used_at_ms.map(|at_ms| ("last used", date(at_ms))),
        limit("requests per minute", limits.requests_per_minute.map(u64::from)),
        limit("tokens per minute", limits.tokens_per_minute),
        limit("tokens per day", limits.tokens_per_day),
        limit("concurrent requests", limits.concurrent_requests.map(u64::from)),
        limit("token budget", limits.token_budget),
    ];
    always.into_iter().chain(maybe.into_iter().flatten()).collect()
}

fn scopes(key: &KeyView) -> String {
    key.scopes
        .iter()
        .map(|scope| scope.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

fn labels(key: &KeyView) -> String {
    let labels = key.labels.iter().map(|(name, value)| format!("{name}={value}"));
    labels.collect::<Vec<_>>().join(" ")
}

fn models(key: &KeyView) -> String {
    match key.models.as_slice() {
        [] => "all".to_owned(),
        models => models.iter().map(ModelName::as_str).collect::<Vec<_>>().join(" "),
    }
}

fn state(key: &KeyView) -> String {
    let now_ms = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
    match (key.revoked_at_ms, key.expires_at_ms) {
        (Some(at_ms), _) => format!("revoked {}", date(at_ms)),
        (None, Some(at_ms)) if key.is_live(now_ms) => format!("live until {}", date(at_ms)),
        (None, Some(at_ms)) => format!("expired {}", date(at_ms)),
        (None, None) => "live".to_owned(),
    }
}

/// A Unix time in milliseconds as a person reads it (RFC 3339, UTC, to the second).
pub fn date(ms: i64) -> String {
    // 9999-12-31T23:59:59Z: beyond it no date has this form.
    const LAST_S: u64 = 253_402_300_799;
    let seconds = (u64::try_from(ms).unwrap_or_default() / 1000).min(LAST_S);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}
