//! The `hive-worker` program: reads its arguments, lives, and turns the end into an exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match worker::Config::read().and_then(worker::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_last(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Whoever started the worker shows the last line of its stderr: one sentence that says why, and what to do.
#[expect(
    clippy::print_stderr,
    reason = "the last line is for people, whatever form the log has"
)]
fn say_last(error: &worker::Error) {
    eprintln!("hive-worker: {}", error.sentence());
}
