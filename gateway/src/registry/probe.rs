//! Whether attached servers still answer, and which models they list; and workers of ours of which a connection broke.
//!
//! Who sends no heartbeat, or has not sent one since, is asked; a probe never touches a load counter.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use wire::{ModelName, WorkerKind};

use super::{
    address::{self, AddressError},
    challenge::challenge,
    members::{Bearer, Event, Target},
};
use crate::{error::chain, state::Hive};

/// How long an attached server's model list may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The largest model list that is read, in bytes.
const LARGEST: usize = 4 * 1024 * 1024;

#[derive(Debug, Deserialize)]
struct List {
    data: Vec<Listed>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
}

/// The models a server lists, `None` if it has no such list; names we could not carry are left out. The error is a
/// sentence.
pub async fn models(
    client: &reqwest::Client,
    url: &str,
    bearer: Option<&Bearer>,
) -> Result<Option<Vec<ModelName>>, String> {
    let mut request = client.get(format!("{url}/v1/models")).timeout(LIMIT);
    if let Some(bearer) = bearer {
        request = request.bearer_auth(&bearer.0);
    }
    let mut response = request
        .send()
        .await
        .map_err(|error| format!("it cannot be reached: {}", chain(&error)))?;
    let status = response.status();
    if matches!(status.as_u16(), 401 | 403) {
        return Err(format!(
            "it refused our key with status {status}; give it one with --api-key-file"
        ));
    }
    if matches!(status.as_u16(), 404 | 405 | 501) {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(format!("its /v1/models answered {status}"));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| format!("it broke off: {}", chain(&error)))?
    {
        body.extend_from_slice(&chunk);
        if body.len() > LARGEST {
            return Err("its model list is larger than 4 MiB".into());
        }
    }
    let list: List =
        serde_json::from_slice(&body).map_err(|_| "its /v1/models is not OpenAI's list of models".to_owned())?;
    let names = list.data.into_iter().filter_map(|model| model.id.parse().ok());
    Ok(Some(names.collect()))
}

/// Asks attached servers, and workers that are in doubt, until the program drains.
pub async fn watch(hive: Arc<Hive>, client: reqwest::Client) {
    tokio::join!(ask_attached(&hive, &client), recheck(&hive, &client));
}

/// Asks workers of ours of which a connection broke whether they live, as soon as that happens: one that does is
/// routable again at once, and not with its next heartbeat. Until the program drains.
async fn recheck(hive: &Hive, client: &reqwest::Client) {
    loop {
        tokio::select! {
            () = hive.dispatcher.doubts.notified() => {}
            () = hive.lifecycle.drain.cancelled() => return,
        }
        let doubted = hive.dispatcher.doubted();
        let proofs = doubted.iter().filter_map(|target| {
            let token = &target.bearer.as_ref()?.0;
            Some(async move {
                if challenge(client, &target.url, &target.id, token).await.is_ok() {
                    // One that left or came back meanwhile needs no proof.
                    let _ = hive.dispatcher.apply(Event::Proved(target.id.clone(), target.epoch));
                }
            })
        });
        futures_util::future::join_all(proofs).await;
    }
}

/// Asks every attached server, again and again, until the program drains.
async fn ask_attached(hive: &Hive, client: &reqwest::Client) {
    let mut tick = tokio::time::interval(hive.config.registry.probe_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = hive.lifecycle.drain.cancelled() => return,
        }
        let probes = hive
            .dispatcher
            .targets(WorkerKind::Attached)
            .into_iter()
            .map(|target| probe(hive, client, target));
        futures_util::future::join_all(probes).await;
    }
}

async fn probe(hive: &Hive, client: &reqwest::Client, target: Arc<Target>) {
    let result = match may_call(hive, &target.url) {
        Ok(()) => models(client, &target.url, target.bearer.as_ref()).await.map(drop),
        Err(error) => Err(error.to_string()),
    };
    // It may have been detached meanwhile.
    let _ = hive.dispatcher.apply(Event::Probed(target.id.clone(), result));
}

/// Whether an address in a URL is inside the operator's ranges, which may have shrunk since it was attached; a name is
/// the resolver's business.
fn may_call(hive: &Hive, url: &str) -> Result<(), AddressError> {
    let url = reqwest::Url::parse(url).map_err(|_| AddressError::Shape)?;
    let host = url.host_str().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(ip) => address::check(ip, &hive.config.registry.allowed_cidrs),
        Err(_) => Ok(()),
    }
}
