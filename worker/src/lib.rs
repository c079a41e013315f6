//! `hive-worker`: one process, one model, one engine.
//!
//! The story, in reading order: [`config`] reads the knobs; [`membership`] lives the life (`joining` → `member` →
//! `leaving`); [`api`] answers the gateway, and nobody else, in OpenAI's words; [`engine`] does the work in one of
//! the [`slots`]; [`state`] is what they share. A worker never chooses its requests, never calls anyone but its gateway, keeps no record of
//! prompts or answers, and holds its credential in memory only.

mod api;
mod config;
mod door;
mod engine;
mod error;
mod membership;
mod slots;
mod state;
mod telemetry;

use std::sync::Arc;

pub use config::Config;
pub use error::Error;

/// Lives a worker's life, from the first log line to the end.
pub fn run(config: Config) -> Result<(), Error> {
    engine::check_support(config.engine.device)?;
    let variables = engine::environment(&config.engine);
    if !config::environment_has(&variables) {
        return Err(start_anew(variables));
    }
    telemetry::start(&config.log)?;
    // Before any thread is started: threads inherit the CPUs of the one that starts them.
    if let Some(cpus) = &config.engine.pin {
        pin(cpus)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            what: "cannot start the runtime's threads",
            source,
        })?;
    let end = runtime.block_on(live(config));
    // A load or a prefill cannot be interrupted; the process does not wait for it.
    runtime.shutdown_background();
    end
}

/// Becomes the same program, as the same process, with these variables: the engine's libraries take settings from
/// nowhere else, and a running process cannot change its environment safely. Returns only if that fails.
fn start_anew(variables: Vec<(&'static str, String)>) -> Error {
    use std::os::unix::process::CommandExt;
    let what = "cannot start itself anew for --threads or --weights (start it with its full path)";
    match std::env::current_exe() {
        Ok(program) => {
            let mut args = std::env::args_os();
            let name = args.next().unwrap_or_default();
            let source = std::process::Command::new(program)
                .arg0(name)
                .args(args)
                .envs(variables)
                .exec();
            Error::System { what, source }
        }
        Err(source) => Error::System { what, source },
    }
}

async fn live(config: Config) -> Result<(), Error> {
    let address = config.api.listen;
    let bind = |source| Error::Bind { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(bind)?;
    let url = match &config.api.advertise_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("http://{}", listener.local_addr().map_err(bind)?),
    };
    let worker = Arc::new(state::Worker::new(&config, url)?);
    tracing::info!(id = %worker.id, model = %worker.model, url = worker.url, slots = worker.slots.most(), "listening");
    let server = tokio::spawn(api::serve(listener, worker.clone()));
    let end = membership::live(&config, &worker).await;
    worker.close.cancel();
    if !matches!(end, Err(Error::Forced)) {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), server).await;
    }
    end
}

#[cfg(target_os = "linux")]
fn pin(cpus: &config::CpuList) -> Result<(), Error> {
    let mut set = nix::sched::CpuSet::new();
    let set = cpus.0.iter().try_for_each(|&cpu| set.set(cpu)).map(|()| set);
    set.and_then(|set| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set))
        .map_err(|errno| Error::System {
            what: "cannot stay on the CPUs of --pin (does this machine have them?)",
            source: errno.into(),
        })
}

#[cfg(not(target_os = "linux"))]
fn pin(_: &config::CpuList) -> Result<(), Error> {
    Err(Error::Usage("--pin works on Linux only; drop it".to_owned()))
}
