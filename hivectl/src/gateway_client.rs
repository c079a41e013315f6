//! hivectl's side of the conversation with a gateway: the control plane's routes, and one streamed chat.
//!
//! Every way it can go wrong becomes a [`Failure`] with its next step. No proxy is ever used, and no key leaves for a
//! gateway other than the one it belongs to.

mod answer;
mod refusal;

use std::time::Duration;

use futures_util::Stream;
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use wire::{
    Attach, AuditCheckpoint, AuditPrune, AuditPruned, CreatedKey, Explanation, GatewayRun, JoinToken, KeyView,
    ModelDownload, ModelName, NewJoinToken, NewKey, RequestView, RevokeTokens, RevokedTokens, RotateKey, SubjectErase,
    SubjectErased, SubjectExport, SubjectRecords, TokenVerdict, UsageRow, VerifyToken, WorkerId, WorkerView,
};

pub use self::answer::{Chat, Piece};
use self::{
    answer::pieces,
    refusal::{names_a_thing, no_control_plane, refused, silent, unreachable_at},
};
use crate::{
    config::{self, Config},
    error::Failure,
    state,
};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the control plane may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A gateway, and the keys this operator has for it.
#[derive(Debug, Clone)]
pub struct Gateway {
    http: reqwest::Client,
    control_url: String,
    data_url: Option<String>,
    admin_key: Option<SecretString>,
    inference_key: Option<SecretString>,
}

impl Gateway {
    /// The gateway that the configuration names, else the one that runs in the state folder.
    pub fn find(config: &Config) -> Result<Self, Failure> {
        let named = config.control_url.as_deref();
        // A key file and an address in `run/` belong to this state folder's gateway; another one must not see them.
        let ours = state::gateway(config).filter(|run| named.is_none_or(|url| run.control_url == url));
        let gateway = match (ours, named) {
            (Some(run), _) => Self::local(config, &run)?,
            (None, Some(url)) => Self::new(
                config,
                url.to_owned(),
                config.data_url.clone(),
                None,
                config.inference_key.clone(),
            )?,
            (None, None) => {
                return Err(Failure::other_side(
                    format!("no gateway runs in {}", config.home.display()),
                    "start it with `hivectl up`, or name another state folder with --state-dir",
                ));
            }
        };
        Ok(match &config.admin_key {
            Some(key) => Self {
                admin_key: Some(key.clone()),
                ..gateway
            },
            None => gateway,
        })
    }

    /// What to say where the environment names another gateway of this machine than the one in the state folder.
    pub fn environment_leads_elsewhere(config: &Config) -> Option<String> {
        let there = config.control_url.as_deref().filter(|url| config::is_loopback(url))?;
        let here = state::gateway(config)?.control_url;
        (config.control_is_environments && here != there).then(|| {
            format!(
                "HIVE_CONTROL_URL names {there}; the hive of {} runs at {here} (unset the variable to speak to it)",
                config.home.display()
            )
        })
    }

    /// The gateway that runs in the state folder, with the keys that lie there.
    pub fn local(config: &Config, run: &GatewayRun) -> Result<Self, Failure> {
        let admin_key = state::read_secret(&config.key_file("admin"))?;
        let inference_key = state::read_secret(&config.key_file("inference"))?;
        Self::new(
            config,
            run.control_url.clone(),
            Some(run.data_url.clone()),
            admin_key,
            inference_key,
        )
    }

    fn new(
        config: &Config,
        control_url: String,
        data_url: Option<String>,
        admin_key: Option<SecretString>,
        inference_key: Option<SecretString>,
    ) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge(authorities(config)?)
            .build()
            .map_err(|error| {
                Failure::task("the HTTP client cannot be made", "check the system's TLS roots").because(error)
            })?;
        Ok(Self {
            http,
            control_url,
            data_url,
            admin_key,
            inference_key,
        })
    }

    /// Scheme, host and port of the control plane.
    pub fn control_url(&self) -> &str {
        &self.control_url
    }

    /// All workers the registry shows.
    pub async fn workers(&self) -> Result<Vec<WorkerView>, Failure> {
        self.control(Method::GET, "/workers", None::<&()>).await
    }

    /// One worker, or `None` if the registry knows none of that id.
    pub async fn worker(&self, id: &WorkerId) -> Result<Option<WorkerView>, Failure> {
        let path = format!("/workers/{id}");
        match self.control_answer(Method::GET, &path, None::<&()>).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => self.read(status, &body).map(Some),
        }
    }

    /// Attaches an OpenAI-compatible server.
    pub async fn attach(&self, attach: &Attach) -> Result<WorkerView, Failure> {
        let (status, body) = self.control_answer(Method::POST, "/workers", Some(attach)).await?;
        self.read(status, &body).map_err(|failure| match status {
            StatusCode::BAD_GATEWAY => {
                Failure::other_side(failure.what(), "check its address and key, and that it runs")
            }
            _ => failure,
        })
    }

    /// Takes an attached server out, or shuts a lost worker out; with `force`, also one that lives.
    pub async fn detach(&self, id: &WorkerId, force: bool) -> Result<(), Failure> {
        let path = format!("/workers/{id}?force={force}");
        match self.control_answer(Method::DELETE, &path, None::<&()>).await? {
            (StatusCode::CONFLICT, _) => Err(Failure::usage(
                format!("{id} is a live worker of ours, not an attached server"),
                format!("let it finish and end it with `hivectl worker stop {id}`; --force shuts it out as it is"),
            )),
            (status, _) if status.is_success() => Ok(()),
            (status, body) => Err(refused(status, &body)),
        }
    }

    /// Asks a worker to finish what it holds and exit.
    pub async fn drain(&self, id: &WorkerId) -> Result<WorkerView, Failure> {
        self.control(Method::POST, &format!("/workers/{id}/drain"), None::<&()>)
            .await
    }

    /// A join token that only a worker of this id can use.
    pub async fn join_token(&self, id: &WorkerId) -> Result<JoinToken, Failure> {
        let new = NewJoinToken {
            worker_id: Some(id.clone()),
            ttl_s: None,
        };
        self.control(Method::POST, "/join-tokens", Some(&new)).await
    }

    /// Makes an API key.
    pub async fn create_key(&self, new: &NewKey) -> Result<CreatedKey, Failure> {
        self.control(Method::POST, "/keys", Some(new)).await
    }

    /// All API keys, without their secrets.
    pub async fn keys(&self) -> Result<Vec<KeyView>, Failure> {
        self.control(Method::GET, "/keys", None::<&()>).await
    }

    /// One API key, without its secret.
    pub async fn key(&self, id: &str) -> Result<KeyView, Failure> {
        self.control(Method::GET, &format!("/keys/{}", segment(id)?), None::<&()>)
            .await
    }

    /// Makes a second API key on the terms of this one.
    pub async fn rotate_key(&self, id: &str, rotate: RotateKey) -> Result<CreatedKey, Failure> {
        self.control(Method::POST, &format!("/keys/{}/rotate", segment(id)?), Some(&rotate))
            .await
    }

    /// Revokes an API key by its public id.
    pub async fn revoke_key(&self, id: &str) -> Result<(), Failure> {
        self.done(Method::DELETE, &format!("/keys/{}", segment(id)?)).await
    }

    /// What the gateway makes of a credential.
    pub async fn verify_token(&self, token: &SecretString) -> Result<TokenVerdict, Failure> {
        let token = token.expose_secret().to_owned();
        self.control(Method::POST, "/tokens/verify", Some(&VerifyToken { token }))
            .await
    }

    /// Revokes all tokens that a holder has by now.
    pub async fn revoke_tokens(&self, holder: &RevokeTokens) -> Result<RevokedTokens, Failure> {
        self.control(Method::POST, "/tokens/revoke", Some(holder)).await
    }

    /// The latest requests, the newest first.
    pub async fn requests(&self, limit: u32) -> Result<Vec<RequestView>, Failure> {
        self.control(Method::GET, &format!("/requests?limit={limit}"), None::<&()>)
            .await
    }

    /// Requests and tokens by key, model and day.
    pub async fn usage(
        &self,
        key: Option<&str>,
        model: Option<&ModelName>,
        days: u32,
    ) -> Result<Vec<UsageRow>, Failure> {
        let days = days.to_string();
        let wanted = [
            ("days", Some(days.as_str())),
            ("key", key),
            ("model", model.map(ModelName::as_str)),
        ];
        let wanted = wanted.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let url = reqwest::Url::parse_with_params("http://hive", wanted)
            .map_err(|error| Failure::usage("usage cannot be asked for", "check --key and --model").because(error))?;
        let path = format!("/usage?{}", url.query().unwrap_or_default());
        self.control(Method::GET, &path, None::<&()>).await
    }

    /// Explains a request.
    pub async fn explain(&self, id: &str) -> Result<Explanation, Failure> {
        let path = format!("/requests/{}/explain", segment(id)?);
        self.control(Method::GET, &path, None::<&()>).await
    }

    /// Cancels a request that waits or runs.
    pub async fn cancel(&self, id: &str) -> Result<(), Failure> {
        self.done(Method::POST, &format!("/requests/{}/cancel", segment(id)?))
            .await
    }

    /// Records of the audit journal: those after a number, or the latest.
    pub async fn audit_records(&self, after: Option<u64>, limit: u32) -> Result<Vec<Value>, Failure> {
        let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
        self.control(Method::GET, &format!("/audit?limit={limit}{after}"), None::<&()>)
            .await
    }

    /// A signed checkpoint over all that is recorded.
    pub async fn audit_checkpoint(&self) -> Result<AuditCheckpoint, Failure> {
        self.control(Method::GET, "/audit/checkpoint", None::<&()>).await
    }

    /// All records of a person.
    pub async fn export_subject(&self, subject: &str) -> Result<SubjectRecords, Failure> {
        let subject = subject.to_owned();
        self.control(Method::POST, "/audit/export", Some(&SubjectExport { subject }))
            .await
    }

    /// Destroys the key of a person's pseudonym.
    pub async fn erase_subject(&self, subject: String, ticket: Option<String>) -> Result<SubjectErased, Failure> {
        self.control(Method::POST, "/audit/erase", Some(&SubjectErase { subject, ticket }))
            .await
    }

    /// Has it recorded that a model was downloaded.
    pub async fn record_download(&self, download: &ModelDownload) -> Result<(), Failure> {
        let path = "/audit/downloads";
        match self.control_answer(Method::POST, path, Some(download)).await? {
            (status, _) if status.is_success() => Ok(()),
            (status, body) => Err(refused(status, &body)),
        }
    }

    /// Removes expired records.
    pub async fn prune_audit(&self, older_than_s: Option<u64>) -> Result<AuditPruned, Failure> {
        self.control(Method::POST, "/audit/prune", Some(&AuditPrune { older_than_s }))
            .await
    }

    /// Whether the data plane says it is ready.
    pub async fn is_ready(&self) -> bool {
        let Ok(data_url) = self.data_url() else { return false };
        let answer = self
            .http
            .get(format!("{data_url}/readyz"))
            .timeout(CONNECT)
            .send()
            .await;
        answer.is_ok_and(|response| response.status().is_success())
    }

    /// Whether the data plane takes this key.
    pub async fn accepts(&self, key: &SecretString) -> Result<bool, Failure> {
        let request = self
            .http
            .get(format!("{}/v1/models", self.data_url()?))
            .bearer_auth(key.expose_secret());
        let response = request
            .timeout(ANSWER)
            .send()
            .await
            .map_err(|error| unreachable_at(self.data_url(), error))?;
        Ok(response.status() != StatusCode::UNAUTHORIZED)
    }

    /// The ids of the models that are ready.
    pub async fn ready_models(&self) -> Result<Vec<String>, Failure> {
        let request = self
            .http
            .get(format!("{}/v1/models", self.data_url()?))
            .bearer_auth(self.caller()?);
        let response = request
            .timeout(ANSWER)
            .send()
            .await
            .map_err(|error| unreachable_at(self.data_url(), error))?;
        let status = response.status();
        let body = response
            .bytes()
            .await
            .map_err(|error| unreachable_at(self.data_url(), error))?;
        let list: Value = self.read(status, &body)?;
        let ids = list["data"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|model| model["id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    /// Sends a chat and streams its answer; `silence` is the longest wait for the next sign of life.
    pub async fn chat(
        &self,
        body: &Value,
        silence: Duration,
    ) -> Result<Chat<impl Stream<Item = Result<Piece, Failure>> + use<>>, Failure> {
        let data_url = self.data_url()?;
        let request = self
            .http
            .post(format!("{data_url}/v1/chat/completions"))
            .bearer_auth(self.caller()?)
            .json(body);
        let response = tokio::time::timeout(silence, request.send())
            .await
            .map_err(|_| silent(silence))?
            .map_err(|error| unreachable_at(Ok(data_url), error))?;
        let id = response
            .headers()
            .get("x-request-id")
            .and_then(|id| id.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        if !response.status().is_success() {
            return Err(refused(response.status(), &response.bytes().await.unwrap_or_default()));
        }
        Ok(Chat {
            id,
            pieces: pieces(response, silence),
        })
    }

    fn data_url(&self) -> Result<&str, Failure> {
        self.data_url.as_deref().ok_or_else(|| {
            Failure::usage(
                format!("the data plane of the gateway at {} is not known", self.control_url),
                "set `data_url` under [hivectl] in config.toml, or OPENAI_BASE_URL and OPENAI_API_KEY as `hivectl up --print-env` gives them",
            )
        })
    }

    fn caller(&self) -> Result<&str, Failure> {
        self.inference_key
            .as_ref()
            .map_or_else(|| self.operator(), |key| Ok(key.expose_secret()))
    }

    fn operator(&self) -> Result<&str, Failure> {
        self.admin_key.as_ref().map(ExposeSecret::expose_secret).ok_or_else(|| {
            Failure::usage(
                format!("there is no admin key for the gateway at {}", self.control_url),
                "set HIVE_ADMIN_KEY, or name the state folder that holds keys/admin with --state-dir",
            )
        })
    }

    async fn control<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let (status, body) = self.control_answer(method, path, body).await?;
        self.read(status, &body)
    }

    async fn done(&self, method: Method, path: &str) -> Result<(), Failure> {
        let (status, body) = self.control_answer(method, path, None::<&()>).await?;
        if status.is_success() {
            return Ok(());
        }
        Err(refused(status, &body))
    }

    /// Status and body of whatever the control plane says, once it is clear that it is one.
    async fn control_answer(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(StatusCode, Vec<u8>), Failure> {
        let url = format!("{}/control/v1{path}", self.control_url);
        let mut request = self
            .http
            .request(method, url)
            .bearer_auth(self.operator()?)
            .timeout(ANSWER);
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error| unreachable_at(Ok(&self.control_url), error);
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        // A gateway's data plane, or a server of another kind: what is not there says nothing about our question.
        if status == StatusCode::NOT_FOUND && !names_a_thing(&body) {
            return Err(no_control_plane(&self.control_url));
        }
        Ok((status, body.into()))
    }

    fn read<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T, Failure> {
        if !status.is_success() {
            return Err(refused(status, body));
        }
        serde_json::from_slice(body).map_err(|error| {
            Failure::other_side(
                format!("{} answered something that is not ours to read", self.control_url),
                "check that the URL is a hive gateway's control plane, and that hivectl is of its version",
            )
            .because(error)
        })
    }
}

/// Whose certificates are believed beside those of the system's authorities.
fn authorities(config: &Config) -> Result<Vec<reqwest::Certificate>, Failure> {
    let files = config.authority.iter().chain(&config.own_certificates);
    let mut found = Vec::new();
    for file in files {
        let unusable = |why: String| {
            let remedy = "correct `ca` under [hivectl], or `tls_cert`, in config.toml";
            Failure::usage(format!("the certificate {} cannot be used", file.display()), remedy).because(why)
        };
        let text = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| unusable(error.to_string()))?;
        if certificates.is_empty() {
            return Err(unusable("it holds no certificate in PEM".to_owned()));
        }
        found.extend(certificates);
    }
    Ok(found)
}

/// An id from the command line as one segment of a path.
fn segment(id: &str) -> Result<&str, Failure> {
    if wire::secret_in(id).is_some() {
        return Err(Failure::usage(
            "this is a whole key, and it stands on a command line that others can see",
            "name its public id, the eight characters after `hvk_`, and rotate the key: `hivectl keys rotate ID --grace 0s`",
        ));
    }
    let fine = id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    if fine && !["", ".", ".."].contains(&id) {
        return Ok(id);
    }
    Err(Failure::usage(
        format!("{id:?} is not an id"),
        "ids consist of letters, digits and - _ . :; copy one from a list",
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_id_from_the_command_line_cannot_change_the_path() {
        assert_eq!(segment("01ab-CD_9.a:b").unwrap(), "01ab-CD_9.a:b");
        let key = format!("hvk_12345678_{}_123456", "x".repeat(32));
        for bad in ["", ".", "..", "../keys", "a/b", "a?b", "a b", "%2e", &key] {
            let failure = segment(bad).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{bad}");
            assert!(!format!("{failure:?}").contains("xxxx"));
        }
    }
}
