//! What a run looks at from outside: the gateway's process, its metrics, its journal.

use std::{collections::BTreeMap, time::Duration};

use gateway::audit::verify::{Inquiry, Verdict, verify};

use crate::{
    Report,
    caller::End,
    house::{House, eventually},
};

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Open file descriptors.
    pub fds: usize,
    /// Memory of its own that is resident, in KiB.
    pub memory_kib: u64,
}

/// What the gateway holds now.
pub fn held(house: &House) -> Held {
    let process = format!("/proc/{}", house.pid());
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap_or_default();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    Held {
        fds: std::fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count),
        memory_kib: anonymous
            .and_then(|kib| kib.split_whitespace().next()?.parse().ok())
            .unwrap_or(0),
    }
}

/// The sum of a metric over its labels, of those series that contain `with`.
pub fn sum(metrics: &str, name: &str, with: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let is_it = series
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        (is_it && series.contains(with)).then(|| value.parse::<f64>().ok())?
    });
    values.fold(0.0, |sum, value| sum + value)
}

/// How often each outcome came.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<String, usize>);

impl Tally {
    /// Counts one.
    pub fn add(&mut self, end: &End) {
        let name = match end {
            End::Done => "done".to_owned(),
            End::Told(code) => format!("told {code}"),
            End::Refused(status, code) => format!("{status} {code}"),
            End::Left => "left".to_owned(),
            End::Wrong(why) => format!("WRONG: {why}"),
        };
        *self.0.entry(name).or_default() += 1;
    }

    /// How many outcomes have a name that begins like this.
    pub fn count(&self, begins: &str) -> usize {
        self.0
            .iter()
            .filter(|(name, _)| name.starts_with(begins))
            .map(|(_, count)| count)
            .sum()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(name, count)| format!("{count} {name}")).collect();
        f.write_str(&parts.join(" · "))
    }
}

/// After the load has ended: nothing runs, nothing is held, the books balance, the journal verifies.
pub async fn settle(house: &House, report: &mut Report, sent: &Tally, was_killed: bool) {
    at_rest(house).await;
    let metrics = house.get("/metrics").await.unwrap();
    report.check(
        sum(&metrics, "hive_slots_taken", "") == 0.0,
        "slots taken",
        sum(&metrics, "hive_slots_taken", ""),
    );
    report.check(
        sum(&metrics, "hive_queue_length", "") == 0.0,
        "queued",
        sum(&metrics, "hive_queue_length", ""),
    );
    let usage = house.get("/control/v1/usage").await.unwrap();
    let usage: Vec<wire::UsageRow> = serde_json::from_str(&usage).unwrap();
    let booked: i64 = usage.iter().map(|row| row.requests).sum();
    let by_state = |state: &str| sum(&metrics, "hive_requests_total", &format!("state=\"{state}\""));
    let states = ["completed", "failed", "cancelled", "aborted"];
    let ended: f64 = states.iter().map(|state| by_state(state)).sum();
    let told: Vec<String> = states
        .iter()
        .map(|state| format!("{} {state}", by_state(state)))
        .collect();
    if was_killed {
        report.note("since the last kill", told.join(" + "));
    } else {
        let books = format!("{booked} admitted = {}", told.join(" + "));
        report.check((ended - to_float(booked)).abs() < 0.5, "the books", books);
        let completed = by_state("completed");
        // One who leaves at the very end may have had it all.
        let (least, most) = (sent.count("done"), sent.count("done") + sent.count("left"));
        let good = (to_float(least)..=to_float(most)).contains(&completed);
        report.check(
            good,
            "completed in the books and to their callers",
            format!("{completed} and {least} to {most}"),
        );
    }
    let latest = house.get("/control/v1/requests?limit=1000").await.unwrap();
    let latest: Vec<wire::RequestView> = serde_json::from_str(&latest).unwrap();
    let open = latest
        .iter()
        .filter(|request| matches!(request.state.as_str(), "queued" | "running"))
        .count();
    report.check(open == 0, "entries of the last 1000 still open", open);
    let in_flight: u64 = house
        .workers()
        .await
        .iter()
        .filter_map(|worker| worker["in_flight"].as_u64())
        .sum();
    report.check(in_flight == 0, "in flight on workers", in_flight);
    // The newest records wait for their checkpoint, a second at most.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let folder = house.home().join("audit");
    let found = tokio::task::spawn_blocking(move || verify(&folder, &Inquiry::default()))
        .await
        .unwrap();
    report.check(
        found.result == Verdict::Intact,
        "the journal",
        format!("{:?}, {} records", found.result, found.records),
    );
}

/// A count as a number to reckon with.
pub fn to_float(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

/// The time that this share of a hundred did not exceed.
pub fn percentile(times: &mut [Duration], share: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times
        .get((times.len() * share / 100).min(last))
        .copied()
        .unwrap_or_default()
}

/// Waits until no request runs.
pub async fn at_rest(house: &House) {
    eventually("nothing runs any more", async || {
        let metrics = house.get("/metrics").await?;
        (sum(&metrics, "hive_requests_open", "") == 0.0).then_some(())
    })
    .await;
}
