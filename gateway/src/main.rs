//! `hive-gateway`: arguments → configuration → log → run.

use std::process::ExitCode;

use clap::Parser as _;
use gateway::{config::Args, error::chain, router, run, telemetry};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(plane) = &args.print_openapi {
        return print_openapi(plane);
    }
    let (home, config) = match args.resolve() {
        Ok(resolved) => resolved,
        Err(error) => return fail(2, &error),
    };
    if args.check {
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::init(&config.log) {
        return fail(2, &error);
    }
    match run::run(home, config, args.inherited()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &error),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program that could not run")]
fn fail(code: u8, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("hive-gateway: {}", chain(error));
    ExitCode::from(code)
}

#[expect(clippy::print_stdout, reason = "the document is the output that was asked for")]
fn print_openapi(plane: &str) -> ExitCode {
    let (data, control) = router::documents();
    match (if plane == "control" { control } else { data }).to_pretty_json() {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, &error),
    }
}
