//! [`ApiError`]: the only place that knows status codes and OpenAI's error types.
//!
//! Outside and inside differ: the caller gets a sentence with the remedy, the access log gets the cause, once.

use std::{fmt::Write as _, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use wire::{ErrorBody, ErrorEnvelope, openai::Faults};

use crate::{
    api::admission,
    audit::journal::Unavailable,
    auth::api_key::masked,
    db::DbError,
    limits::{Limit, Refusal},
    scheduler::NoSlot,
};

/// Everything a caller can be told instead of an answer.
#[derive(Debug)]
pub enum ApiError {
    /// The request is at fault, in one or more of its fields.
    Faulty(Faults),
    /// The request itself is at fault.
    Invalid {
        /// What is wrong and what would be right.
        message: String,
        /// The field at fault.
        param: Option<String>,
    },
    /// The credential is missing, malformed, unknown, revoked or expired; the text says which remedy helps.
    Unauthenticated(&'static str),
    /// The token of an identity provider is not taken.
    TokenRefused(crate::auth::jwt::Refused),
    /// The credential is good but not for this.
    Forbidden(wire::Scope),
    /// The key is not for this model.
    ModelNotAllowed(String),
    /// The key has used what it may.
    Limited(Refusal),
    /// The model is not known.
    ModelNotFound(String),
    /// There is no such object.
    NotFound(String),
    /// There is no such route.
    UnknownUrl(String),
    /// The route has other methods.
    MethodNotAllowed,
    /// The body is larger than allowed, in bytes.
    TooLarge(usize),
    /// The head has too many headers or bytes.
    HeadTooLarge,
    /// An answer in one piece would be larger than allowed, in bytes.
    AnswerTooLarge(usize),
    /// An attached server made only so many of the choices that were asked for.
    TooFewChoices(usize),
    /// An OpenAI-compatible server could not be attached; the text says why.
    NotAttachable(String),
    /// The body did not come in time.
    BodyTimeout(Duration),
    /// The `Host` or `Origin` header names nobody we answer for.
    WrongHost {
        /// Which of them.
        header: &'static str,
        /// The setting that allows more names.
        setting: &'static str,
    },
    /// An epoch that is no longer the worker's.
    StaleEpoch,
    /// A worker id that the gateway does not know.
    UnknownWorker(String),
    /// The id is held by another, living worker.
    WorkerExists(String),
    /// The dispatcher has no slot.
    NoSlot(NoSlot, String),
    /// The worker answered that the request is at fault.
    Upstream(StatusCode, ErrorBody),
    /// All attempts to have a worker answer failed.
    WorkerFailed(String),
    /// Workers died with this request, one after the other; it is not given to another.
    Poison(String),
    /// The worker took longer than this over the prompt.
    WorkerSilent(Duration),
    /// The client's own deadline passed.
    DeadlineExceeded,
    /// An operator cancelled the request.
    Cancelled,
    /// The gateway is going down.
    ShuttingDown,
    /// The worker stopped in the middle of the answer.
    WorkerLost,
    /// The worker went silent in the middle of the answer.
    WorkerStalled(Duration),
    /// The registry database cannot be written now.
    Storage(DbError),
    /// There is no audit journal.
    AuditOff,
    /// The audit journal cannot be written, and nothing may happen unrecorded.
    AuditUnavailable(Unavailable),
    /// A fault of ours.
    Internal(String),
}

impl ApiError {
    /// A fault of the request's, at one field.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::Invalid {
            message: message.into(),
            param: Some(param.to_owned()),
        }
    }

    /// The HTTP status (RFC 9110, and OpenAI's usage where they differ).
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated(_) | Self::TokenRefused(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) | Self::ModelNotAllowed(_) => StatusCode::FORBIDDEN,
            Self::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::ModelNotFound(_) | Self::NotFound(_) | Self::UnknownUrl(_) | Self::UnknownWorker(_) => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) | Self::Upstream(StatusCode::PAYLOAD_TOO_LARGE, _) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::StaleEpoch | Self::WorkerExists(_) | Self::Cancelled | Self::AuditOff => StatusCode::CONFLICT,
            Self::NoSlot(NoSlot::UnknownModel, _) => StatusCode::NOT_FOUND,
            Self::NoSlot(..) | Self::ShuttingDown | Self::Storage(_) | Self::AuditUnavailable(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // Of a worker's refusals, 415 and 422 are what some say where OpenAI says 400.
            Self::Faulty(_)
            | Self::Invalid { .. }
            | Self::WrongHost { .. }
            | Self::AnswerTooLarge(_)
            | Self::TooFewChoices(_)
            | Self::Upstream(..) => StatusCode::BAD_REQUEST,
            Self::WorkerFailed(_)
            | Self::WorkerSilent(_)
            | Self::Poison(_)
            | Self::WorkerLost
            | Self::NotAttachable(_) => StatusCode::BAD_GATEWAY,
            Self::WorkerStalled(_) | Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// OpenAI's class of error.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::WorkerLost
            | Self::WorkerStalled(_)
            | Self::WorkerFailed(_)
            | Self::Poison(_)
            | Self::WorkerSilent(_)
            | Self::NotAttachable(_) => "upstream_error",
            // OpenAI names the unit in which too much was asked.
            Self::Limited(refusal) => match refusal.limit {
                Limit::TokenBudget => "insufficient_quota",
                Limit::TokensPerMinute | Limit::TokensPerDay => "tokens",
                Limit::RequestsPerMinute | Limit::ConcurrentRequests => "requests",
            },
            _ if self.status().is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The stable code of `design.md`.
    pub fn code(&self) -> &str {
        match self {
            Self::Faulty(faults) => faults.code(),
            Self::Invalid { .. } | Self::WrongHost { .. } | Self::BodyTimeout(_) | Self::AnswerTooLarge(_) => {
                "invalid_request"
            }
            Self::TooFewChoices(_) => "unsupported_parameter",
            Self::Unauthenticated(_) | Self::TokenRefused(_) => "invalid_api_key",
            Self::Forbidden(_) => "insufficient_scope",
            Self::ModelNotAllowed(_) => "model_not_allowed",
            Self::Limited(refusal) if refusal.limit == Limit::TokenBudget => "insufficient_quota",
            Self::Limited(_) => "rate_limit_exceeded",
            Self::ModelNotFound(_) | Self::NoSlot(NoSlot::UnknownModel, _) => "model_not_found",
            Self::NotFound(_) => "not_found",
            Self::UnknownUrl(_) => "unknown_url",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge(_) | Self::HeadTooLarge => "request_too_large",
            Self::StaleEpoch => "stale_epoch",
            Self::UnknownWorker(_) => "unknown_worker",
            Self::WorkerExists(_) => "worker_exists",
            Self::NoSlot(NoSlot::NoWorker, _) => "no_worker",
            Self::NoSlot(NoSlot::Loading, _) => "loading",
            Self::NoSlot(NoSlot::QueueFull { .. }, _) => "queue_full",
            Self::NoSlot(NoSlot::QueueTimeout { .. }, _) => "queue_timeout",
            Self::Upstream(_, body) => body.code.as_deref().unwrap_or("invalid_request"),
            Self::WorkerFailed(_) | Self::WorkerSilent(_) | Self::Poison(_) | Self::NotAttachable(_) => "worker_failed",
            Self::WorkerLost => "worker_lost",
            Self::WorkerStalled(_) => "worker_stalled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::ShuttingDown => "shutting_down",
            Self::Storage(_) => "storage_unavailable",
            Self::AuditOff => "audit_off",
            Self::AuditUnavailable(_) => "audit_unavailable",
            Self::Internal(_) => "internal_error",
        }
    }

    /// What the caller reads: what is wrong, and what to do.
    pub fn message(&self) -> String {
        match self {
            Self::Faulty(faults) => faults.to_string(),
            Self::Invalid { message, .. } => message.clone(),
            Self::Unauthenticated(why) => (*why).to_owned(),
            Self::TokenRefused(why) => why.told().to_owned(),
            Self::Forbidden(scope) => format!("This key lacks the scope `{}`. Use a key that has it.", scope.as_str()),
            Self::ModelNotAllowed(model) => {
                format!("This key is not for the model `{model}`. GET /v1/models lists those it is for.")
            }
            Self::Limited(refusal) => limited(refusal),
            Self::ModelNotFound(model) | Self::NoSlot(NoSlot::UnknownModel, model) => {
                format!("The model `{model}` does not exist here. GET /v1/models lists those that do.")
            }
            Self::NotFound(what) => format!("There is no {what}."),
            Self::UnknownUrl(url) => format!("Unknown request URL: {url}. The routes are listed at /docs."),
            Self::MethodNotAllowed => {
                "This URL does not take that method; the Allow header lists those it takes.".into()
            }
            Self::TooLarge(limit) => format!("The body is larger than {limit} bytes. Send a smaller one."),
            Self::HeadTooLarge => "The request has more than 64 headers or 32 KiB of them. Send fewer.".into(),
            Self::AnswerTooLarge(limit) => format!(
                "The answer has grown beyond {limit} bytes. Ask for a stream, or for less: `n`, `max_completion_tokens` and \
                 `top_logprobs` make it large."
            ),
            Self::TooFewChoices(made) => format!(
                "The server behind this model made {made} of the choices that `n` asks for: it does not know `n`. Ask once \
                 for each."
            ),
            Self::NotAttachable(why) => why.clone(),
            Self::BodyTimeout(limit) => format!("The body did not arrive within {} s. Send it again.", limit.as_secs()),
            Self::WrongHost { header, setting } => {
                format!("The {header} header names a host this gateway does not answer for. Add it to `{setting}`.")
            }
            Self::StaleEpoch => "Another worker has registered under this id since. This one should exit.".into(),
            Self::UnknownWorker(id) => format!("No worker `{id}` is registered. Register again."),
            Self::WorkerExists(id) => {
                format!(
                    "The id `{id}` is held by a live worker. Stop it, or join with a token that is bound to this id."
                )
            }
            Self::NoSlot(NoSlot::NoWorker, model) => {
                format!(
                    "No live worker serves `{model}` now. Try again soon, or start one with `hivectl worker spawn`."
                )
            }
            Self::NoSlot(NoSlot::Loading, model) => {
                format!("`{model}` is still being loaded. Try again in a few seconds.")
            }
            Self::NoSlot(NoSlot::QueueFull { wait }, model) => {
                let when = within(*wait);
                format!("All slots and queue places for `{model}` are taken. Try again in {when}.")
            }
            Self::NoSlot(NoSlot::QueueTimeout { wait }, model) => {
                let when = within(*wait);
                format!("No slot for `{model}` came free in time. Try again in {when}.")
            }
            Self::Upstream(_, body) => body.message.clone(),
            Self::Poison(_) => {
                "Two workers died while they had this request, so no third one gets it. Change the request, or ask the operator to look at the workers' logs."
                    .into()
            }
            Self::WorkerFailed(_) => "The worker could not answer this request. Try again.".into(),
            Self::WorkerSilent(limit) => format!(
                "The worker has not come to its first token within {} s. Send a shorter prompt or use a faster worker; the \
                 operator can allow more time in `relay.first_token_timeout`.",
                limit.as_secs()
            ),
            Self::WorkerLost => "The worker was lost in the middle of the answer. Send the request again.".into(),
            Self::WorkerStalled(limit) => {
                format!(
                    "The worker has sent nothing for {} s. Send the request again.",
                    limit.as_secs()
                )
            }
            Self::DeadlineExceeded => "The deadline in x-hive-deadline-ms has passed.".into(),
            Self::Cancelled => "An operator cancelled this request.".into(),
            Self::ShuttingDown => "The gateway is shutting down. Send the request again.".into(),
            Self::AuditOff => {
                "The audit journal is off: nothing is recorded, signed or found. Set audit.mode to `metadata` or `eu-strict`, and start the gateway again.".into()
            }
            Self::AuditUnavailable(_) => {
                "The audit journal cannot be written, and nothing is served unrecorded. Try again; the gateway's log says why.".into()
            }
            Self::Storage(_) => {
                "The registry database cannot be written now. Try again; the gateway's log says why.".into()
            }
            Self::Internal(_) => "The gateway failed; its log has the cause under this request id.".into(),
        }
    }

    /// The envelope of OpenAI's document.
    pub fn envelope(&self) -> ErrorEnvelope {
        let param = match self {
            Self::Faulty(faults) => faults.param().map(ToOwned::to_owned),
            Self::Invalid { param, .. } => param.clone(),
            Self::ModelNotFound(_) | Self::ModelNotAllowed(_) | Self::NoSlot(NoSlot::UnknownModel, _) => {
                Some("model".to_owned())
            }
            Self::Upstream(_, body) => body.param.clone(),
            Self::TooFewChoices(_) => Some("n".to_owned()),
            _ => None,
        };
        ErrorEnvelope {
            error: ErrorBody {
                message: masked(&self.message()).into_owned(),
                r#type: self.kind().to_owned(),
                param,
                code: Some(self.code().to_owned()),
            },
        }
    }

    /// The in-band form: one SSE event.
    pub fn event(&self) -> String {
        let json = serde_json::to_string(&self.envelope()).unwrap_or_default();
        format!("data: {json}\n\n")
    }

    /// Seconds after which the caller should try again; never above 60 (SDKs ignore longer ones).
    fn retry_after(&self) -> Option<u8> {
        match self {
            Self::NoSlot(NoSlot::UnknownModel, _) => None,
            Self::NoSlot(NoSlot::Loading | NoSlot::NoWorker, _) => Some(3),
            Self::NoSlot(NoSlot::QueueFull { wait: Some(wait) } | NoSlot::QueueTimeout { wait: Some(wait) }, _) => {
                u8::try_from(rounded_up(*wait).clamp(1, 60)).ok()
            }
            Self::NoSlot(..) | Self::ShuttingDown => Some(2),
            Self::Storage(_) | Self::AuditUnavailable(_) => Some(5),
            Self::Limited(Refusal { retry_after, .. }) => u8::try_from(rounded_up(*retry_after)).ok(),
            _ => None,
        }
    }

    /// Whether the same request would fare no better in a minute.
    fn is_final(&self) -> bool {
        match self {
            Self::Cancelled | Self::DeadlineExceeded | Self::Poison(_) => true,
            Self::Limited(refusal) => matches!(refusal.limit, Limit::TokenBudget | Limit::TokensPerDay),
            _ => false,
        }
    }

    /// The cause chain for the log; nothing of it reaches the caller.
    fn cause(&self) -> Option<String> {
        match self {
            Self::WorkerFailed(cause) | Self::Poison(cause) | Self::Internal(cause) => Some(cause.clone()),
            Self::TokenRefused(why) => Some(format!("the token: {why}")),
            Self::WorkerSilent(limit) => Some(format!("no event within {} s", limit.as_secs())),
            Self::Storage(error) => Some(chain(error)),
            Self::AuditUnavailable(error) => Some(error.to_string()),
            _ => None,
        }
    }
}

/// An error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(line, ": {cause}");
        source = cause.source();
    }
    line
}

fn rounded_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A wait as a person reads it.
fn within(wait: Option<Duration>) -> String {
    wait.map_or_else(
        || "a few seconds".to_owned(),
        |wait| format!("about {} s", rounded_up(wait)),
    )
}

/// Which limit was met, and what is left of it.
fn limited(refusal: &Refusal) -> String {
    let Refusal { most, left, asked, .. } = refusal;
    match refusal.limit {
        Limit::RequestsPerMinute => {
            format!("Rate limit reached: this key may send {most} requests per minute. Slow down.")
        }
        Limit::ConcurrentRequests => {
            format!("Rate limit reached: this key may have {most} requests running at a time. Wait for one to end.")
        }
        Limit::TokensPerMinute => format!(
            "Rate limit reached: this key may use {most} tokens per minute, {left} are left, and this request may need {asked}. \
             Slow down, or ask for less with max_tokens."
        ),
        Limit::TokensPerDay => format!(
            "Rate limit reached: this key may use {most} tokens per day (UTC), {left} are left, and this request may need {asked}. \
             Try again tomorrow, or ask for less with max_tokens."
        ),
        Limit::TokenBudget => format!(
            "You exceeded your current quota: this key has a budget of {most} tokens, {left} are left, and this request may \
             need {asked}. Ask the operator for more, or for less with max_tokens."
        ),
    }
}

/// What the access log says of a request that failed; rides in the response's extensions.
#[derive(Debug, Clone)]
pub struct Failed {
    /// The stable code.
    pub code: String,
    /// The cause chain, if there is more to say.
    pub cause: Option<String>,
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::Limited(refusal)
    }
}

impl From<Unavailable> for ApiError {
    fn from(error: Unavailable) -> Self {
        Self::AuditUnavailable(error)
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        Self::Storage(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.envelope())).into_response();
        if let Some(seconds) = self.retry_after() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(u16::from(seconds)));
        }
        if matches!(self, Self::Unauthenticated(_) | Self::TokenRefused(_)) {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Self::Limited(refusal) = &self {
            admission::tell(&refusal.standing, response.headers_mut());
        }
        if self.is_final() {
            // SDKs send 409, 429 and 504 again by themselves: here that would undo what was asked for, or be in vain.
            response
                .headers_mut()
                .insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response.extensions_mut().insert(Failed {
            code: self.code().to_owned(),
            cause: self.cause(),
        });
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_waiting_time_is_one_that_sdks_keep() {
        for slot in [
            NoSlot::NoWorker,
            NoSlot::Loading,
            NoSlot::QueueFull { wait: None },
            NoSlot::QueueTimeout {
                wait: Some(Duration::from_millis(1)),
            },
            NoSlot::QueueTimeout {
                wait: Some(Duration::from_secs(3600)),
            },
        ] {
            let response = ApiError::NoSlot(slot, "m".into()).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let seconds: u32 = response.headers()[header::RETRY_AFTER]
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            assert!((1..=60).contains(&seconds));
        }
    }

    #[test]
    fn the_cause_is_for_the_log_only() {
        let error = ApiError::WorkerFailed("connect to 10.0.0.7: refused".into());
        assert!(!error.event().contains("10.0.0.7"));
        assert_eq!(
            error
                .into_response()
                .extensions()
                .get::<Failed>()
                .unwrap()
                .cause
                .as_deref(),
            Some("connect to 10.0.0.7: refused")
        );
    }

    #[test]
    fn a_workers_refusal_is_a_400_unless_the_body_is_too_large() {
        let told = |status: u16| {
            let body = ErrorBody {
                message: "no".into(),
                r#type: "x".into(),
                param: None,
                code: None,
            };
            ApiError::Upstream(StatusCode::from_u16(status).unwrap(), body)
                .status()
                .as_u16()
        };
        assert_eq!([400, 413, 415, 422].map(told), [400, 413, 400, 400]);
    }

    #[test]
    fn an_event_is_one_data_line_with_all_four_keys() {
        let event = ApiError::WorkerLost.event();
        let json: serde_json::Value = serde_json::from_str(event.strip_prefix("data: ").unwrap().trim_end()).unwrap();
        assert_eq!(json["error"]["code"], "worker_lost");
        assert_eq!(json["error"]["type"], "upstream_error");
        assert!(json["error"].get("param").unwrap().is_null());
        assert_eq!(event.matches('\n').count(), 2);
    }
}
