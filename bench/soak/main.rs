//! A hive of real programs under load and faults, and whether the promises held: the soak and its counted kin.
//!
//! `cargo build -p worker --no-default-features --bins`, then
//! `cargo bench -p gateway --bench soak --profile dev -- ACT [OPTIONS]`; `--help` lists the acts. It starts
//! `hive-gateway` and scripted `hive-worker`s on loopback addresses of its own, prints what it measured, one figure a
//! line, and exits with 1 if a promise was broken. What is random comes from `--seed`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench prints, and may stop at the first surprise"
)]

mod caller;
mod cancel;
mod cost;
mod crowd;
mod faults;
mod gauges;
mod house;
mod kills;
mod overload;
mod proxy;
mod upstream;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    act: Act,
    /// Where the randomness begins
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// What `cargo bench` passes
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// The soak: mixed load, a random fault every few seconds, then the invariants
    Faults(faults::Plan),
    /// Counted requests while one of three workers is killed again and again
    Kills(kills::Plan),
    /// Many streams at once, whose clients read, or do not
    Crowd(crowd::Plan),
    /// Far more load than there is capacity, and one key far greedier than the others
    Overload(overload::Plan),
    /// Clients that leave, in every state of a request
    Cancel(cancel::Plan),
    /// What a request and a chunk cost, beside nginx
    Cost(cost::Plan),
}

/// What was found, line by line.
#[derive(Debug, Default)]
pub struct Report {
    broken: usize,
}

impl Report {
    /// A figure that is good or not.
    pub fn check(&mut self, good: bool, what: &str, figure: impl std::fmt::Display) {
        self.broken += usize::from(!good);
        println!("{} {what}: {figure}", if good { "  ok  " } else { "BROKEN" });
    }

    /// A figure nobody promised.
    pub fn note(&self, what: &str, figure: impl std::fmt::Display) {
        println!("       {what}: {figure}");
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime.block_on(async {
        match args.act {
            Act::Faults(plan) => faults::run(plan, args.seed).await,
            Act::Kills(plan) => kills::run(plan, args.seed).await,
            Act::Crowd(plan) => crowd::run(plan).await,
            Act::Overload(plan) => overload::run(plan).await,
            Act::Cancel(plan) => cancel::run(plan).await,
            Act::Cost(plan) => cost::run(plan).await,
        }
    });
    println!("{} broken", report.broken);
    ExitCode::from(u8::from(report.broken > 0))
}
