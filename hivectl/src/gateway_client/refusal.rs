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
        "context_length_exceeded" => Failure::task(
            what,
            "shorten the prompt or begin a new chat, or ask for a shorter answer with --max-tokens",
        ),
        "request_too_large" => Failure::task(what, "shorten the prompt, or begin a new chat"),
        "invalid_api_key" => Failure::task(what, "set HIVE_ADMIN_KEY, or --state-dir to the hive's own folder"),
        "insufficient_scope" => Failure::task(
            what,
            "use a key that has it; with an admin key, `hivectl keys create NAME --scope SCOPE` makes one",
        ),
        "model_not_allowed" => Failure::task(what, "use a key that may use this model, or another model"),
        "rate_limit_exceeded" => Failure::task(what, "run it again in a minute, or use a key with a higher limit"),
        "insufficient_quota" => Failure::task(what, "use another key, or have the quota of this one raised"),
        "worker_exists" => Failure::task(
            what,
            "choose another --name, or see who has it with `hivectl worker list`",
        ),
        "cancelled" => Failure::task(what, "run it again if that was a mistake"),
        "deadline_exceeded" | "queue_timeout" => Failure::timeout(what, "run it again when the hive is less busy"),
        "no_worker" => Failure::task(
            what,
            "see `hivectl worker list`, and start one with `hivectl worker spawn`",
        ),
        "loading" | "queue_full" => Failure::task(what, "run it again in a few seconds"),
        "audit_off" => Failure::task(
            what,
            "set `mode` under [audit] in config.toml, or start the hive with `hivectl up --audit metadata`",
        ),
        "audit_unavailable" => Failure::task(
            what,
            "see that the folder `audit` in the gateway's state folder can be written and its disk is not full",
        ),
        "shutting_down" => Failure::other_side(what, "start it with `hivectl up`"),
        "unknown_url" => Failure::other_side(
            what,
            "check the URL: OPENAI_BASE_URL and `data_url` name the data plane, --control-url and HIVE_CONTROL_URL the control plane",
        ),
        _ if status == StatusCode::NOT_FOUND => {
            Failure::usage(what, "copy an id or a name from a list of what there is")
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

/// Whether the body of a 404 says that a thing is missing: one that knows no such route is not what it was taken for.
pub fn names_a_thing(body: &[u8]) -> bool {
    let code = serde_json::from_slice(body)
        .ok()
        .and_then(|ErrorEnvelope { error }| error.code);
    code.is_some_and(|code| code != "unknown_url")
}

/// A server that answers, but not as a control plane does.
pub fn no_control_plane(url: &str) -> Failure {
    Failure::other_side(
        format!("{url} is not a control plane"),
        "give the control plane's URL, which `hivectl status` shows on the gateway's machine (its port is 7412 unless another was named)",
    )
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
        "start it with `hivectl up`, or correct its URL (--control-url, HIVE_CONTROL_URL)",
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

    use std::collections::HashSet;

    use super::*;

    fn refusal(status: u16, code: &str) -> Failure {
        let body = format!(r#"{{"error":{{"message":"m","type":"t","param":null,"code":"{code}"}}}}"#);
        refused(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn every_refusal_has_a_next_step_of_its_own() {
        let codes = [
            (403, "insufficient_scope"),
            (403, "model_not_allowed"),
            (400, "context_length_exceeded"),
            (413, "request_too_large"),
            (409, "worker_exists"),
            (409, "cancelled"),
            (429, "rate_limit_exceeded"),
            (429, "insufficient_quota"),
            (409, "audit_off"),
            (503, "audit_unavailable"),
            (500, "internal_error"),
        ];
        let steps: HashSet<String> = codes
            .iter()
            .map(|(status, code)| refusal(*status, code).next().to_owned())
            .collect();
        assert_eq!(steps.len(), codes.len(), "{steps:#?}");
        assert!(
            codes
                .iter()
                .all(|(status, code)| refusal(*status, code).exit_code() == 1)
        );
    }

    #[test]
    fn refusals_carry_the_exit_code_of_their_kind() {
        let code = |status: u16, code: &str| refusal(status, code).exit_code();
        assert_eq!(code(404, "model_not_found"), 2);
        assert_eq!(code(404, "unknown_worker"), 2);
        assert_eq!(code(400, "invalid_request"), 2);
        assert_eq!(code(401, "invalid_api_key"), 1);
        assert_eq!(code(503, "no_worker"), 1);
        assert_eq!(code(504, "deadline_exceeded"), 124);
        assert_eq!(refused(StatusCode::BAD_GATEWAY, b"<html>").exit_code(), 3);
    }
}
