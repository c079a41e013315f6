//! What the gateway, or its absence, says instead of an answer: as a failure with the exit code of its kind.

use std::time::Duration;

use reqwest::StatusCode;
use wire::ErrorEnvelope;

use crate::error::Failure;

/// A refusal in the gateway's own words, with the exit code its error code stands for.
pub fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let Ok(ErrorEnvelope { error }) = serde_json::from_slice(body) else {
        return Failure::other_side(
            format!("the gateway answered {status} without saying why"),
            "check that the URL is a hive gateway's; its log may say more",
        );
    };
    let what = error.message;
    match error.code.as_deref().unwrap_or_default() {
        "model_not_found" => Failure::usage(what, "see the models with `hivectl worker list`"),
        "invalid_request" | "unsupported_parameter" => Failure::usage(what, "correct the command and run it again"),
        "invalid_api_key" => Failure::task(what, "set HIVE_ADMIN_KEY, or --state-dir to the hive's own folder"),
        "deadline_exceeded" | "queue_timeout" => Failure::timeout(what, "run it again when the hive is less busy"),
        "no_worker" => Failure::task(
            what,
            "see `hivectl worker list`, and start one with `hivectl worker spawn`",
        ),
        "loading" | "queue_full" | "rate_limit_exceeded" => Failure::task(what, "run it again in a few seconds"),
        "shutting_down" => Failure::other_side(what, "start it with `hivectl up`"),
        code if status == StatusCode::NOT_FOUND => {
            Failure::usage(what, format!("list what there is, and use a name from it ({code})"))
        }
        "worker_lost" | "worker_stalled" | "worker_failed" => {
            Failure::task(what, "run it again; `hivectl worker list` shows how the workers are")
        }
        _ => Failure::task(
            what,
            "see the gateway's log under `logs/gateway.log` in the state folder",
        ),
    }
}

/// No answer at all, or none in time.
pub fn unreachable_at(url: Result<&str, Failure>, error: reqwest::Error) -> Failure {
    let url = url.unwrap_or("its URL");
    if error.is_timeout() {
        return Failure::timeout(
            format!("the gateway at {url} did not answer in time"),
            "see how it is with `hivectl status`",
        )
        .because(error.without_url());
    }
    Failure::other_side(
        format!("the gateway at {url} cannot be reached"),
        "start it with `hivectl up`",
    )
    .because(error.without_url())
}

/// An answer that has stopped coming.
pub fn silent(silence: Duration) -> Failure {
    Failure::timeout(
        format!("nothing came for {} s", silence.as_secs()),
        "allow more with --timeout, or see how the worker is with `hivectl worker list`",
    )
}

/// An answer that ended before its end.
pub fn cut() -> Failure {
    Failure::task(
        "the answer was cut off before its end",
        "run it again; `hivectl status` shows what still runs",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn refusals_carry_the_exit_code_of_their_kind() {
        let code = |status: u16, code: &str| {
            let body = format!(r#"{{"error":{{"message":"m","type":"t","param":null,"code":"{code}"}}}}"#);
            refused(StatusCode::from_u16(status).unwrap(), body.as_bytes()).exit_code()
        };
        assert_eq!(code(404, "model_not_found"), 2);
        assert_eq!(code(404, "unknown_worker"), 2);
        assert_eq!(code(400, "invalid_request"), 2);
        assert_eq!(code(401, "invalid_api_key"), 1);
        assert_eq!(code(503, "no_worker"), 1);
        assert_eq!(code(504, "deadline_exceeded"), 124);
        assert_eq!(refused(StatusCode::BAD_GATEWAY, b"<html>").exit_code(), 3);
    }
}
