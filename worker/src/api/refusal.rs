//! Every answer that is not an answer: its status, its code and a sentence, in OpenAI's envelope.
//!
//! The only place of the worker that knows status codes.

use axum::{
    Json,
    extract::rejection::BytesRejection,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use wire::{ErrorBody, ErrorEnvelope, ModelName, openai::Faults};

use crate::engine::EngineError;

/// Why a request gets no answer.
#[derive(Debug)]
pub enum Refusal {
    /// The body cannot be read, or asks for the impossible; all that is wrong with it.
    Faults(Faults),
    /// A field is wrong.
    Invalid { param: String, message: String },
    /// A field asks for something this worker cannot do.
    Unsupported { param: &'static str, message: String },
    /// Prompt and answer do not fit.
    ContextLength {
        /// The field that holds the prompt.
        param: &'static str,
        context: u32,
        prompt: u32,
        asked: Option<u32>,
    },
    /// Another model than this worker's.
    WrongModel,
    /// Not what the model does.
    Unsuited { model: ModelName, does: &'static str },
    /// The body is too large or broke off.
    Body(StatusCode),
    /// Not the dispatch bearer.
    WrongBearer,
    /// A dispatch for another registration.
    StaleEpoch,
    /// The model is being loaded.
    Loading,
    /// All slots are taken.
    Busy,
    /// The worker is leaving.
    ShuttingDown,
    /// No such route.
    UnknownUrl,
    /// Not with this method.
    MethodNotAllowed,
    /// The engine or the worker failed.
    Failed(String),
    /// A script's redirect.
    Redirect,
}

impl Refusal {
    /// A field is wrong; `message` goes on from its name.
    pub fn invalid(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("`{param}` {message}");
        Self::Invalid { param, message }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Faults(_)
            | Self::Invalid { .. }
            | Self::Unsupported { .. }
            | Self::Unsuited { .. }
            | Self::ContextLength { .. } => StatusCode::BAD_REQUEST,
            Self::WrongModel | Self::UnknownUrl => StatusCode::NOT_FOUND,
            Self::Body(status) => *status,
            Self::WrongBearer => StatusCode::UNAUTHORIZED,
            Self::StaleEpoch => StatusCode::CONFLICT,
            Self::Loading | Self::Busy | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Redirect => StatusCode::TEMPORARY_REDIRECT,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Faults(faults) => faults.code(),
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::ContextLength { .. } => "context_length_exceeded",
            Self::WrongModel => "model_not_found",
            Self::Body(StatusCode::PAYLOAD_TOO_LARGE) => "request_too_large",
            Self::Invalid { .. } | Self::Unsuited { .. } | Self::Body(_) => "invalid_request",
            Self::WrongBearer => "invalid_api_key",
            Self::StaleEpoch => "stale_epoch",
            Self::Loading => "loading",
            Self::Busy => "busy",
            Self::ShuttingDown => "shutting_down",
            Self::UnknownUrl => "unknown_url",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Failed(_) => "engine_failed",
            Self::Redirect => "redirect",
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Faults(faults) => faults.param().map(str::to_owned),
            Self::Invalid { param, .. } => Some(param.clone()),
            Self::Unsupported { param, .. } => Some((*param).to_owned()),
            Self::ContextLength { param, .. } => Some((*param).to_owned()),
            Self::WrongModel | Self::Unsuited { .. } => Some("model".to_owned()),
            _ => None,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Faults(faults) => faults.to_string(),
            Self::Invalid { message, .. } | Self::Unsupported { message, .. } => message.clone(),
            Self::ContextLength {
                param,
                context,
                prompt,
                asked: Some(asked),
            } if prompt < context => format!(
                "This model's maximum context length is {context} tokens, but you asked for {}: {prompt} in `{param}` and \
                 {asked} for the answer. Lower max_tokens to at most {}, or shorten `{param}`.",
                u64::from(*prompt) + u64::from(*asked),
                context - prompt
            ),
            Self::ContextLength {
                param, context, prompt, ..
            } => format!(
                "This model's maximum context length is {context} tokens, but `{param}` has {prompt}. Shorten it."
            ),
            Self::WrongModel => "This worker does not serve that model.".to_owned(),
            Self::Unsuited { model, does } => {
                format!("The model `{model}` {does} and can do nothing else; choose another model for this.")
            }
            Self::Body(StatusCode::PAYLOAD_TOO_LARGE) => "The body is larger than 8 MiB.".to_owned(),
            Self::Body(_) => "The body broke off.".to_owned(),
            Self::WrongBearer => "This worker answers its gateway only.".to_owned(),
            Self::StaleEpoch => "This dispatch is for another registration of this worker.".to_owned(),
            Self::Loading => "The model is still being loaded.".to_owned(),
            Self::Busy => "All slots of this worker are taken.".to_owned(),
            Self::ShuttingDown => "This worker is shutting down.".to_owned(),
            Self::UnknownUrl => "There is no such route.".to_owned(),
            Self::MethodNotAllowed => "This route does not take this method.".to_owned(),
            Self::Failed(reason) => format!("The engine failed: {reason}"),
            Self::Redirect => "The script sends you elsewhere.".to_owned(),
        }
    }
}

impl Refusal {
    /// What the engine of `model` says no to; `param` is the field that holds the prompt.
    pub fn of(error: EngineError, model: &ModelName, param: &'static str) -> Self {
        match error {
            EngineError::ContextLength { context, prompt, asked } => Self::ContextLength {
                param,
                context,
                prompt,
                asked,
            },
            EngineError::Invalid { param, message } => Self::Invalid { param, message },
            EngineError::Unsupported { param, message } => Self::Unsupported { param, message },
            EngineError::Unsuited { does } => Self::Unsuited {
                model: model.clone(),
                does,
            },
            EngineError::Failed(reason) | EngineError::Stuck(reason) => Self::Failed(reason),
            EngineError::Redirect => Self::Redirect,
        }
    }
}

impl From<Faults> for Refusal {
    fn from(faults: Faults) -> Self {
        Self::Faults(faults)
    }
}

impl From<BytesRejection> for Refusal {
    fn from(rejection: BytesRejection) -> Self {
        Self::Body(rejection.status())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let r#type = if status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        let body = ErrorBody {
            message: self.message(),
            r#type: r#type.to_owned(),
            param: self.param(),
            code: Some(self.code().to_owned()),
        };
        if let Self::Failed(reason) = &self {
            tracing::error!(reason, "a request failed");
        }
        let mut response = (status, Json(ErrorEnvelope { error: body })).into_response();
        let extra = match self {
            Self::Loading | Self::Busy | Self::ShuttingDown => Some((header::RETRY_AFTER, "1")),
            Self::WrongBearer => Some((header::WWW_AUTHENTICATE, "Bearer")),
            Self::Redirect => Some((header::LOCATION, "http://127.0.0.1:9/")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response
                .headers_mut()
                .insert(name, axum::http::HeaderValue::from_static(value));
        }
        response
    }
}
