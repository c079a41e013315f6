//! The worker's three calls to the gateway's control plane: register, heartbeat, leave. It decides nothing.

use std::{path::Path, time::Duration};

use reqwest::{Certificate, Client, Response, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use wire::{ErrorEnvelope, Heartbeat, HeartbeatReply, Leave, Registered, Registration};

use super::Credential;
use crate::{Error, state::Worker};

/// A gateway's control plane.
#[derive(Debug)]
pub struct Control {
    url: String,
    client: Client,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No answer.
    #[error("no answer")]
    NoAnswer(#[source] reqwest::Error),
    /// An answer that is none of the control plane's.
    #[error("an answer that is not the control plane's; does --gateway name the control plane?")]
    Strange(#[source] reqwest::Error),
    /// The gateway says no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The gateway's own words.
        message: String,
    },
}

impl ControlError {
    /// Nobody listens: a gateway that restarts, so it pays to knock again soon.
    pub fn is_no_connection(&self) -> bool {
        matches!(self, Self::NoAnswer(error) if error.is_connect())
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl Control {
    /// The control plane at `url`, by a certificate of that authority or of one the system knows. Neither redirects nor a
    /// proxy of the environment are followed.
    pub fn new(url: &str, authority: Option<&Path>) -> Result<Self, Error> {
        let authorities = authority.map(certificates).transpose()?.unwrap_or_default();
        let client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .tls_certs_merge(authorities)
            .connect_timeout(Duration::from_secs(3))
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| Error::Usage(format!("--gateway: {error}")))?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            client,
        })
    }

    /// Scheme, host and port.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Registers in the state the worker is in, with a join token or the worker's own credential.
    pub async fn register(&self, worker: &Worker, bearer: &SecretString) -> Result<Registered, ControlError> {
        let registration = Registration {
            id: worker.id.clone(),
            model: worker.model.clone(),
            url: worker.url.clone(),
            dispatch_token: worker.dispatch_token.expose_secret().to_owned(),
            device: worker.device.clone(),
            slots: worker.slots.most(),
            pid: std::process::id(),
            host: host_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: worker.state(),
            labels: worker.labels.clone(),
            weight: worker.weight,
            facts: worker.facts(),
        };
        worker.epoch.send_modify(|epoch| epoch.changing = true);
        let answer = self.post("register", bearer, &registration).await;
        let registered = match answer {
            Ok(answer) => answer.json::<Registered>().await.map_err(ControlError::Strange),
            Err(error) => Err(error),
        };
        worker.epoch.send_modify(|epoch| {
            epoch.changing = false;
            if let Ok(registered) = &registered {
                epoch.number = Some(registered.epoch);
            }
        });
        registered
    }

    /// Says how the worker is.
    pub async fn heartbeat(
        &self,
        worker: &Worker,
        bearer: &SecretString,
        beat: &Heartbeat,
    ) -> Result<HeartbeatReply, ControlError> {
        let answer = self.post(&format!("{}/heartbeat", worker.id), bearer, beat).await?;
        answer.json().await.map_err(ControlError::Strange)
    }

    /// Says goodbye; a gateway that does not hear it will notice by itself.
    pub async fn leave(&self, worker: &Worker, credential: &Credential, reason: &str) {
        let epoch = worker.epoch.borrow().number.unwrap_or_default();
        let bearer = credential.lock().map(|bearer| bearer.clone()).unwrap_or_default();
        let leave = Leave {
            epoch,
            reason: reason.to_owned(),
        };
        let path = format!("{}/leave", worker.id);
        let said = self.post(&path, &bearer, &leave);
        match tokio::time::timeout(Duration::from_secs(2), said).await {
            Ok(Ok(_)) => tracing::info!("left"),
            Ok(Err(error)) => tracing::warn!(reason = %error, "left without the gateway's answer"),
            Err(_) => tracing::warn!("left without the gateway's answer"),
        }
    }

    async fn post(&self, path: &str, bearer: &SecretString, body: &impl Serialize) -> Result<Response, ControlError> {
        let url = format!("{}/control/v1/workers/{path}", self.url);
        let request = self.client.post(url).bearer_auth(bearer.expose_secret()).json(body);
        let answer = request.send().await.map_err(ControlError::NoAnswer)?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let envelope = answer.json::<ErrorEnvelope>().await;
        let message = envelope.map_or_else(|_| format!("status {status}"), |envelope| envelope.error.message);
        Err(ControlError::Refused { status, message })
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, Error> {
    let fault = |what: String| Error::Usage(format!("--gateway-ca {}: {what}", path.display()));
    let text = std::fs::read(path).map_err(|error| fault(format!("cannot be read: {error}")))?;
    let found = Certificate::from_pem_bundle(&text).map_err(|error| fault(error.to_string()))?;
    if found.is_empty() {
        return Err(fault("holds no certificate in PEM".to_owned()));
    }
    Ok(found)
}

/// The machine's name, for people.
fn host_name() -> String {
    let name = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok());
    name.map(|name| name.trim().to_owned())
        .filter(|name| (1..=253).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic()))
        .unwrap_or_else(|| "localhost".to_owned())
}
