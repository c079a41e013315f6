//! What chat, completions and embeddings have in common: the request as it came, the judgement on it before any worker
//! is called, and the headers of its answer.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, RequestExt as _,
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use tokio::time::Instant;
use wire::{
    ModelFacts, ModelName, WorkerKind,
    openai::{Body, Faults, ability, parameters},
};

use super::{
    admission::{self, Admitted},
    body::{self, DATA_LIMIT},
};
use crate::{
    auth::keyring::Identity,
    books::Entry,
    error::ApiError,
    limits::Standing,
    relay,
    scheduler::{self, affinity::Context, trace::Subject},
    spans::Parent,
    state::AppState,
    telemetry::{self, AccessLog, RequestId},
};

/// Headers in which clients name the conversation: everybody's, Open WebUI's, Codex's, Claude Code's, `LiteLLM`'s, Olla's
/// and `SGLang`'s.
const SESSION_HEADERS: [&str; 7] = [
    "x-session-id",
    "x-openwebui-chat-id",
    "session-id",
    "x-claude-code-session-id",
    "x-litellm-session-id",
    "x-olla-session-id",
    "x-smg-routing-key",
];
/// The most names that the header of ignored parameters holds.
const MOST_NAMED: usize = 64;

/// A request as it came, before anything of its body is read.
#[derive(Debug)]
pub struct Asked {
    /// The body.
    pub bytes: Bytes,
    correlation_id: Arc<str>,
    deadline: Option<Instant>,
    log: AccessLog,
    id: Arc<str>,
    /// The span that the client names as its own.
    parent: Parent,
    /// The end user whom a client's header names.
    person: Option<String>,
    /// The conversation that a client's header names.
    session: Option<String>,
}

/// A request with which nothing is wrong.
#[derive(Debug)]
pub struct Sound {
    kind: parameters::Kind,
    model: ModelName,
    /// What is known of workers that cannot do what it asks, and of those that can.
    unfit: Vec<ModelFacts>,
    fit: Vec<ModelFacts>,
    /// The parameters that have no effect on our engines.
    ignored: Vec<String>,
    /// The end user whom the body names.
    user: Option<String>,
    /// The conversation that the body names.
    session: Option<String>,
}

/// What a client wants beside the answer itself.
#[derive(Debug)]
pub struct Wish {
    /// The body for the worker.
    pub body: Vec<u8>,
    /// Whether the answer comes as a stream.
    pub stream: bool,
    /// Whether the stream ends with the usage.
    pub include_usage: bool,
    /// How many choices it has.
    pub choices: usize,
    /// The texts that end one.
    pub stop: Vec<String>,
    /// The most tokens of each, if it says so.
    pub answer: Option<u32>,
    /// Bytes of the request that are of images, and of which no tokens come.
    pub images: usize,
    /// What a worker may remember of it.
    pub context: Context,
}

/// A request on its way: admitted, and nothing held of it that the worker does not need.
#[derive(Debug)]
pub struct Order {
    call: relay::Call,
    entry: Entry,
    standing: Option<Standing>,
    ignored: Vec<String>,
    /// The person behind it, for a pseudonym in the record.
    subject: String,
}

impl FromRequest<AppState> for Asked {
    type Rejection = ApiError;
    async fn from_request(mut request: Request, state: &AppState) -> Result<Self, ApiError> {
        if state.lifecycle.is_draining() {
            return Err(ApiError::ShuttingDown);
        }
        let missing = |_| ApiError::Internal("a request without its id".into());
        let Extension(RequestId {
            id: correlation_id,
            is_ours,
        }) = request.extract_parts().await.map_err(missing)?;
        let Extension(log) = request.extract_parts().await.map_err(missing)?;
        let deadline = deadline(request.headers())?;
        plain(request.headers())?;
        // The client's own id may come twice; the books need one that does not.
        let id = if is_ours {
            correlation_id.clone()
        } else {
            telemetry::new_id()
        };
        let parent = state.spans.parent(request.headers());
        let person = text(request.headers(), "x-openwebui-user-id");
        let session = SESSION_HEADERS
            .into_iter()
            .find_map(|name| text(request.headers(), name));
        Ok(Self {
            bytes: body::read(request.into_body(), DATA_LIMIT, state).await?,
            correlation_id,
            deadline,
            log,
            id,
            parent,
            person,
            session,
        })
    }
}

impl Asked {
    /// The judgement on what a reader found: every fault at once, those of parameters and abilities among them. Where
    /// workers of the model differ, it is enough that one of them can do what is asked.
    pub fn judge(
        &self,
        state: &AppState,
        kind: parameters::Kind,
        body: &Body<'_>,
        (model, found): (Option<ModelName>, Faults),
        beyond: impl Fn(&ModelName, &ModelFacts, &mut Faults),
    ) -> Result<Sound, ApiError> {
        let mut known = model
            .as_ref()
            .map(|model| state.dispatcher.facts(model))
            .unwrap_or_default();
        if known.is_empty() {
            known.push(ModelFacts::default());
        }
        if let Some(model) = &model {
            self.log.model(model.as_str());
        }
        let (mut fit, mut unfit, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        let mut least: Option<Faults> = None;
        for facts in known {
            let mut faults = found.clone();
            let without_effect = parameters::judge(kind, &facts, body, &mut faults);
            if let Some(model) = &model {
                ability::check_kind(kind, model, &facts, &mut faults);
                beyond(model, &facts, &mut faults);
            }
            if facts.engine.is_none() {
                faults.forget_unsupported();
            }
            if faults.is_empty() {
                fit.push(facts);
                ignored = if ignored.is_empty() { without_effect } else { ignored };
            } else {
                unfit.push(facts);
                least = least
                    .filter(|least| least.iter().count() <= faults.iter().count())
                    .or(Some(faults));
            }
        }
        if let Some(faults) = least.filter(|_| fit.is_empty()) {
            return Err(ApiError::Faulty(faults));
        }
        let name = || body.get::<String>("model").unwrap_or_default();
        let model = model.ok_or_else(|| ApiError::ModelNotFound(wire::printable(&name(), 100)))?;
        Ok(Sound {
            kind,
            model,
            unfit,
            fit,
            ignored,
            user: body.get::<String>("user"),
            session: body.get::<String>("prompt_cache_key"),
        })
    }

    /// Admits the request: within its key's limits, and with an entry in the books.
    pub fn order(self, state: &AppState, caller: &Identity, sound: Sound, wish: Wish) -> Result<Order, ApiError> {
        let Sound {
            kind,
            model,
            mut unfit,
            fit,
            ignored,
            user,
            session,
        } = sound;
        let bytes = self.bytes.len().saturating_sub(wish.images);
        unfit.extend(too_small(fit, bytes, wish.answer));
        let choices = u32::try_from(wish.choices).unwrap_or(u32::MAX);
        let answer = wish.answer.map(|tokens| tokens.saturating_mul(choices));
        let Admitted {
            mut entry,
            standing,
            tokens,
        } = admission::admit(state, caller, &self.id, &model, bytes, answer)?;
        entry.traced(&state.spans, kind, &self.parent);
        let session = self.session.or(session).or_else(|| user.clone());
        let trace = state.dispatcher.traces.follow(Subject {
            id: entry.id().to_owned(),
            correlation: self.correlation_id.to_string(),
            model: model.clone(),
            priority: caller.priority,
            tokens,
            labels: caller.labels.clone(),
        });
        let request = scheduler::Request {
            key: caller.id.clone(),
            priority: caller.priority,
            tokens,
            labels: caller.labels.clone(),
            unfit,
            context: wish.context.in_session(&caller.family, session.as_deref()),
            trace,
        };
        let call = relay::Call {
            kind,
            model,
            request,
            shows_route: caller.allows(wire::Scope::MetricsRead),
            correlation_id: self.correlation_id.to_string(),
            body: wish.body.into(),
            stream: wish.stream,
            include_usage: wish.include_usage,
            choices: wish.choices,
            stop: wish.stop,
            deadline: self.deadline,
            log: self.log,
        };
        Ok(Order {
            call,
            entry,
            standing,
            ignored,
            subject: subject(caller, self.person.or(user)),
        })
    }
}

/// Those whose context may not hold a request of so many bytes and tokens of answer, where another's is larger: text never
/// has more tokens than bytes, and a worker refuses what does not fit only once it has it.
fn too_small(fit: Vec<ModelFacts>, bytes: usize, answer: Option<u32>) -> Vec<ModelFacts> {
    let context = |facts: &ModelFacts| facts.context_length.unwrap_or(u32::MAX);
    let most = fit.iter().map(context).max().unwrap_or(u32::MAX);
    let wanted = u32::try_from(bytes)
        .unwrap_or(u32::MAX)
        .saturating_add(answer.unwrap_or(0));
    let mut fit = fit;
    fit.retain(|facts| context(facts) < wanted.min(most));
    fit
}

/// Whose request it is. Only a key that is marked trusted speaks for other people; everybody else's is its owner's.
fn subject(caller: &Identity, named: Option<String>) -> String {
    let named = named.filter(|name| caller.trusted && !name.is_empty());
    named.unwrap_or_else(|| caller.owner.clone().unwrap_or_else(|| caller.id.clone()))
}

impl Order {
    /// The answer, with the names of the parameters that had no effect on it, and how its key stands; no worker is
    /// called before the start is on the record.
    pub async fn answer(mut self, state: AppState) -> Result<Response, ApiError> {
        let correlation = self.call.correlation_id.as_str();
        // Boxed: it is large, and over before anything is waited for that takes long.
        Box::pin(self.entry.on_record(&state.audit, &self.subject, correlation)).await?;
        let mut response = relay::answer(state, self.call, self.entry).await?;
        // An attached server got all of them.
        if response.extensions().get() == Some(&WorkerKind::Attached) {
            self.ignored.clear();
        }
        let names: Vec<String> = self.ignored.iter().take(MOST_NAMED).map(|name| token(name)).collect();
        if let Some(value) = HeaderValue::from_str(&names.join(", "))
            .ok()
            .filter(|value| !value.is_empty())
        {
            response.headers_mut().insert("x-hive-ignored-params", value);
        }
        if let Some(standing) = &self.standing {
            admission::tell(standing, response.headers_mut());
        }
        Ok(response)
    }
}

/// The texts that end an answer wherever they stand in it: none, where the request has the prompt told or them, or wants
/// so many tokens whatever they say.
pub fn stop(body: &Body<'_>, stop: Vec<String>) -> Vec<String> {
    let asked = |name| body.value(name).is_some_and(|value| value != false && value != 0);
    let elsewhere = ["echo", "include_stop_str_in_output", "min_tokens"]
        .into_iter()
        .any(asked);
    if elsewhere { Vec::new() } else { stop }
}

/// A client's word as a header may hold it.
fn token(name: &str) -> String {
    let ok = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    name.chars().filter(ok).take(64).collect()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
}

/// Refuses a compressed body by name: what it holds could not be read, and would be called no JSON.
fn plain(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoded = headers
        .get(header::CONTENT_ENCODING)
        .filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    match encoded {
        Some(value) => Err(ApiError::invalid(
            "content-encoding",
            format!(
                "The body is encoded as `{}`, which is not taken here. Send it as plain JSON, without that header.",
                token(&String::from_utf8_lossy(value.as_bytes()))
            ),
        )),
        None => Ok(()),
    }
}

fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get("x-hive-deadline-ms") else {
        return Ok(None);
    };
    let ms = value
        .to_str()
        .ok()
        .and_then(|text| text.parse::<u32>().ok())
        .filter(|ms| *ms > 0)
        .ok_or_else(|| {
            ApiError::invalid(
                "x-hive-deadline-ms",
                "The header x-hive-deadline-ms must be a number of milliseconds above 0.",
            )
        })?;
    Ok(Some(Instant::now() + Duration::from_millis(u64::from(ms))))
}
