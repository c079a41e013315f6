//! `hivectl explain`: why a request went where it did, and where its time went.

use std::fmt::Write as _;

use wire::{Attempt, Candidate, Decision, Explanation, Reason};

use crate::{config::Config, error::Failure, gateway_client::Gateway, output::Output};

/// Runs the command.
pub async fn run(id: &str, config: &Config, output: &Output) -> Result<(), Failure> {
    let told = Gateway::find(config)?.explain(id).await?;
    if output.is_json() {
        output.json(&told);
        return Ok(());
    }
    for (what, value) in facts(&told) {
        output.line(format_args!("{what:<9} {value}"));
    }
    let Some(decision) = &told.decision else {
        output.note("what was decided is forgotten: the gateway remembers the latest 4,096 requests since its start");
        return Ok(());
    };
    for (number, attempt) in decision.attempts.iter().enumerate() {
        output.line("");
        output.line(opening(number + 1, attempt));
        // Speeds that are not known make a score without a unit.
        let known = attempt
            .candidates
            .iter()
            .any(|candidate| candidate.tokens_per_second.is_some());
        let rows: Vec<_> = attempt
            .candidates
            .iter()
            .map(|candidate| row(candidate, known))
            .collect();
        let headers = [
            "worker",
            "verdict",
            "score",
            "busy",
            "tokens ahead",
            "tokens/s",
            "context",
        ];
        output.table(&headers, &rows);
        if let Some(failure) = &attempt.failure {
            output.line(format_args!("It failed: {failure}"));
        }
    }
    Ok(())
}

fn facts(told: &Explanation) -> Vec<(&'static str, String)> {
    let request = &told.request;
    let decision = told.decision.as_ref();
    let mut facts = vec![("request", request.id.clone())];
    facts.extend(decision.and_then(|decision| Some(("sent as", decision.correlation.clone()?))));
    facts.push(("model", request.model.clone()));
    facts.push(("key", request.key_id.clone()));
    facts.extend(decision.map(|decision| ("turn", turn(decision))));
    facts.push(("outcome", outcome(told)));
    facts.push(("time", times(told)));
    facts
}

fn turn(decision: &Decision) -> String {
    let labels = decision
        .labels
        .iter()
        .map(|(name, value)| format!(", only workers with {name}={value}"));
    let mut turn = format!(
        "{} priority, about {} tokens expected{}",
        decision.priority.as_str(),
        decision.expected_tokens,
        labels.collect::<String>(),
    );
    if let Some(place) = decision.place {
        let wait = place
            .wait_ms
            .map_or(String::new(), |ms| format!(", about {}", time(ms)));
        let _ = write!(turn, "; waits in position {}{wait}", place.position);
    }
    turn
}

fn outcome(told: &Explanation) -> String {
    let request = &told.request;
    let mut outcome = request.state.as_str().to_owned();
    if let Some(error) = &request.error {
        let _ = write!(outcome, " with {error}");
    }
    if let Some(tokens) = request.completion_tokens {
        let prompt = request
            .prompt_tokens
            .map_or(String::new(), |prompt| format!("{prompt} tokens in, "));
        let about = if request.estimated { "about " } else { "" };
        let _ = write!(outcome, ": {about}{prompt}{tokens} out");
    }
    outcome
}

fn times(told: &Explanation) -> String {
    let request = &told.request;
    let queued = told
        .decision
        .iter()
        .flat_map(|decision| &decision.attempts)
        .map(|attempt| attempt.queued_ms)
        .sum();
    let part = |ms: Option<i64>, what: &str| ms.map(|ms| format!("{} {what}", time(ms.unsigned_abs())));
    let parts = [
        told.decision
            .is_some()
            .then(|| format!("{} waiting for a slot", time(queued))),
        part(request.ttft_ms, "to the first token"),
        part(request.total_ms, "in all"),
        told.tokens_per_second
            .map(|speed| format!("{speed:.1} tokens/s after the first")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn opening(number: usize, attempt: &Attempt) -> String {
    let why = match attempt.reason {
        Reason::LeastWork => "the least work was before it there",
        Reason::Session => "its session was there before",
        Reason::Prefix => "the beginning of the conversation was there before",
        Reason::OnlyOne => "no other could take it",
    };
    format!(
        "Attempt {number}: {} (epoch {}), because {why}.",
        attempt.worker, attempt.epoch
    )
}

fn row(candidate: &Candidate, known: bool) -> Vec<String> {
    let unit = if known { " s" } else { "" };
    vec![
        candidate.worker.to_string(),
        candidate.verdict.as_str().to_owned(),
        format!("{:.1}{unit}", candidate.score),
        format!("{}/{}", candidate.in_flight, candidate.slots),
        candidate.outstanding_tokens.to_string(),
        candidate
            .tokens_per_second
            .map_or_else(|| "-".to_owned(), |speed| format!("{speed:.1}")),
        if candidate.has_context { "there" } else { "-" }.to_owned(),
    ]
}

/// Milliseconds as a person reads them.
fn time(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        _ => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_at_a_glance() {
        assert_eq!([0, 999, 1000, 61_950].map(time), ["0 ms", "999 ms", "1.0 s", "61.9 s"]);
    }
}
