//! `hivectl up`: from nothing, or from whatever is there, to a hive that answers.

use std::{
    cell::RefCell,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};

use gateway::config::Mode;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
    time::{Instant, sleep},
};

use super::jobs::{self, Answer};
use crate::{
    checkout::Programs,
    cli::{Backend, Up},
    config::{CONTROL_PORT, Config, DATA_PORT},
    download::{self, Model},
    error::Failure,
    gateway_client::Gateway,
    launch, logs,
    output::Output,
    process,
    signals::{Signals, Wish},
    state::{self, Lock, WorkerSpec},
    supervisor::{self, Event, Plan, Then, stop},
};

mod facts;

use facts::Facts;

/// How long a hive that is there may take to be ready.
const THERE: Duration = Duration::from_secs(60);

/// The longest answer to `--ask`, in tokens.
const LONGEST_ANSWER: u32 = 512;

/// What `up` finds or makes before anything runs.
enum Found {
    /// A hive that is up.
    Running,
    /// Nothing; this is how to start it, the right to do so, and the model if it was fetched for that.
    Nothing(Box<Plan>, Lock, Option<Model>),
}

/// Brings a hive up, and keeps it up unless it was started before or is detached.
pub async fn run(args: &Up, config: &Config, output: &Output, signals: &mut Signals) -> Result<(), Failure> {
    let found = tokio::select! {
        found = prepare(args, config, output) => found?,
        wish = signals.next() => return Err(interrupted(wish)),
    };
    match found {
        Found::Running => {
            output.note("this hive is up already");
            if args.audit.is_some() {
                output.note("--audit counts at the next start");
            }
            tokio::select! {
                outcome = welcome(args, false, None, config, output) => outcome,
                wish = signals.next() => Err(interrupted(wish)),
            }
        }
        Found::Nothing(plan, lock, fetched) if args.detach => {
            detached(args, &plan, lock, fetched.as_ref(), config, output, signals).await
        }
        Found::Nothing(plan, lock, fetched) => {
            foreground(args, *plan, lock, fetched.as_ref(), config, output, signals).await
        }
    }
}

async fn prepare(args: &Up, config: &Config, output: &Output) -> Result<Found, Failure> {
    state::create_home(config)?;
    let programs = Programs::beside()?;
    let lock = Lock::take(config, output).await?;
    if is_up(config).await? {
        return Ok(Found::Running);
    }
    let (data, control) = addresses(args, config, output)?;
    match programs.checkout().filter(|_| !args.no_build) {
        Some(checkout) => checkout.build(config, output, args.device).await?,
        None => programs.present()?,
    }
    let (worker, fetched) = worker(args, config, output).await?;
    if args.audit == Some(Mode::EuStrict) {
        output.note(format_args!(
            "checkpoints of the audit journal go to {} unless [audit] in config.toml names a place; name one that this machine cannot rewrite",
            launch::anchors(config).display()
        ));
    }
    Ok(Found::Nothing(
        Box::new(Plan {
            programs,
            data,
            control,
            worker,
            load_limit_s: args.timeout,
            audit: args.audit.map(|mode| mode.as_str().to_owned()),
        }),
        lock,
        fetched,
    ))
}

/// Whether a supervisor keeps this hive up; waits for one that is still starting or stopping.
async fn is_up(config: &Config) -> Result<bool, Failure> {
    let deadline = Instant::now() + THERE;
    while let Some(run) = state::live_supervisor(config) {
        if run.ready
            && let Some(gateway) = state::gateway(config)
            && Gateway::local(config, &gateway)?.is_ready().await
        {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Err(Failure::timeout(
                format!(
                    "this hive has a supervisor (process {}), but is not ready",
                    run.process.pid
                ),
                "see `hivectl status` and the logs in the state folder, or stop it with `hivectl down`",
            ));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(false)
}

async fn worker(args: &Up, config: &Config, output: &Output) -> Result<(WorkerSpec, Option<Model>), Failure> {
    let (model, model_path, fetched) = if args.device == Backend::Scripted {
        (super::worker::model_name(&args.model)?, None, None)
    } else {
        let (model, is_new) = download::fetch(config, output, &args.model, None, false).await?;
        (model.name.clone(), Some(model.path.clone()), is_new.then_some(model))
    };
    let device = super::worker::device(args.device, None)?;
    let id = format!("{}-0", device.split(':').next().unwrap_or(&device));
    let spec = WorkerSpec {
        id: super::worker::worker_id(&id)?,
        model,
        model_path,
        device,
        slots: args.slots,
        threads: args.threads,
        port: None,
        script: args.script.as_deref().map(super::worker::absolute).transpose()?,
        labels: wire::Labels::new(),
        weight: None,
        gateway: String::new(),
    };
    Ok((spec, fetched))
}

/// Where the planes shall listen: on the port or address that was named or not at all, else on the default one or a free one.
fn addresses(args: &Up, config: &Config, output: &Output) -> Result<(SocketAddr, SocketAddr), Failure> {
    // A gateway that outlived its supervisor holds its ports already, and is kept.
    if state::gateway(config).is_some() {
        let anywhere = local(0);
        return Ok((
            config.data_listen.unwrap_or(anywhere),
            config.control_listen.unwrap_or(anywhere),
        ));
    }
    let data = address("--port", args.port, config.data_listen, DATA_PORT, output)?;
    let control = address(
        "--control-port",
        args.control_port,
        config.control_listen,
        CONTROL_PORT,
        output,
    )?;
    if data == control && data.port() != 0 {
        return Err(Failure::usage(
            "--port and --control-port are the same",
            "name two different ports",
        ));
    }
    Ok((data, control))
}

fn address(
    flag: &str,
    port: Option<u16>,
    configured: Option<SocketAddr>,
    default: u16,
    output: &Output,
) -> Result<SocketAddr, Failure> {
    let mut wanted = configured.unwrap_or_else(|| local(default));
    wanted.set_port(port.unwrap_or(wanted.port()));
    let Err(error) = TcpListener::bind(wanted) else {
        return Ok(wanted);
    };
    if error.kind() == std::io::ErrorKind::AddrNotAvailable {
        let what = format!("this machine has no address {}", wanted.ip());
        let next = "correct `listen` in config.toml, or the variable that names it; `ip addr` lists the addresses";
        return Err(Failure::task(what, next).because(error));
    }
    if port.is_some() || configured.is_some() {
        let what = format!("port {} on {} cannot be used", wanted.port(), wanted.ip());
        let next = format!("stop what listens there, or name another port with {flag} (0: one the system picks)");
        return Err(Failure::task(what, next).because(error));
    }
    output.note(format_args!(
        "port {default} is taken; using a free one instead ({flag} names one)"
    ));
    Ok(local(0))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

async fn foreground(
    args: &Up,
    plan: Plan,
    lock: Lock,
    fetched: Option<&Model>,
    config: &Config,
    output: &Output,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let progress = Progress::new(output, plan.worker.model.as_str());
    let mut lock = Some(lock);
    let when_ready = async || {
        lock.take();
        match welcome(args, true, fetched, config, output).await {
            outcome if args.once => outcome.map(|()| Then::Stop),
            outcome => {
                // The hive is up, whatever became of the question.
                outcome.unwrap_or_else(|failure| output.failure(&failure));
                Ok(Then::Stay)
            }
        }
    };
    supervisor::run(config, plan, &|event| progress.show(event), signals, when_ready).await
}

async fn detached(
    args: &Up,
    plan: &Plan,
    lock: Lock,
    fetched: Option<&Model>,
    config: &Config,
    output: &Output,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let log = config.logs().join("supervisor.log");
    let broken = |error: std::io::Error| {
        let next = format!("read {}", log.display());
        Failure::disk("the supervisor cannot be started", &config.logs(), next, error)
    };
    let mut child = Command::new(&plan.programs.hivectl)
        .arg("--state-dir")
        .arg(&config.home)
        .arg("supervise")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(logs::open(&log).map_err(broken)?)
        .spawn()
        .map_err(broken)?;
    let supervisor = child.id().and_then(process::mark);
    let watch = async {
        if let Some(mut stdin) = child.stdin.take() {
            let plan = serde_json::to_vec(plan).map_err(|error| broken(error.into()))?;
            stdin.write_all(&plan).await.map_err(broken)?;
        }
        let progress = Progress::new(output, plan.worker.model.as_str());
        let Some(stdout) = child.stdout.take() else {
            return Err(broken(std::io::Error::other("it has no stdout")));
        };
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await.map_err(broken)? {
            match serde_json::from_str(&line) {
                Ok(Event::Ready) => return Ok(()),
                Ok(Event::Failed {
                    what,
                    why,
                    next,
                    exit_code,
                }) => {
                    let failure = Failure::relayed(exit_code, what, next);
                    return Err(match why {
                        Some(why) => failure.because(why),
                        None => failure,
                    });
                }
                Ok(event) => progress.show(event),
                Err(error) => return Err(broken(error.into())),
            }
        }
        let words = logs::last_words(&log, 0, 5).join("\n  | ");
        Err(Failure::task(
            "the supervisor ended before the hive was ready",
            format!("read {}", log.display()),
        )
        .because(words))
    };
    let outcome = tokio::select! {
        outcome = watch => outcome,
        wish = signals.next() => Err(interrupted(wish)),
    };
    if outcome.is_err() {
        if let Some(supervisor) = supervisor {
            stop::one(&supervisor, "the supervisor", sleep(Duration::from_secs(20)), &|note| {
                output.note(note);
            })
            .await?;
        }
        stop::everything(config, sleep(Duration::ZERO), &|note| output.note(note)).await?;
        return outcome;
    }
    drop(lock);
    tokio::select! {
        outcome = welcome(args, false, fetched, config, output) => outcome,
        wish = signals.next() => Err(interrupted(wish)),
    }
}

/// Tells how to use the hive that is up, and answers the question if there is one. As JSON both are one object, which
/// comes when the answer has ended. `is_ours`: it lives as long as this command; `fetched`: the model, if it was not there.
async fn welcome(
    args: &Up,
    is_ours: bool,
    fetched: Option<&Model>,
    config: &Config,
    output: &Output,
) -> Result<(), Failure> {
    if let Some(model) = fetched {
        super::models::downloaded(model, config, output).await;
    }
    note_differences(args, config, output);
    let facts = Facts::of(config)?;
    if !output.is_json() {
        facts.tell(args, is_ours, output);
    }
    let asked = match &args.ask {
        Some(question) => Some(ask(question, &facts.model, args, config, output).await),
        None => None,
    };
    if output.is_json() {
        output.json(&facts.json(asked.as_ref()));
    }
    asked.map_or(Ok(()), |outcome| outcome.map(drop))
}

async fn ask(question: &str, model: &str, args: &Up, config: &Config, output: &Output) -> Result<Answer, Failure> {
    let gateway = state::gateway(config).ok_or_else(|| {
        Failure::other_side(
            "the gateway has gone",
            "see `hivectl status` and the logs in the state folder",
        )
    })?;
    let body = json!({
        "model": model,
        "stream": true,
        "messages": [{ "role": "user", "content": question }],
        // Small models never come to an end by themselves when chance leads them astray.
        "temperature": 0,
        "max_completion_tokens": LONGEST_ANSWER,
    });
    let chat = Gateway::local(config, &gateway)?
        .chat(&body, Duration::from_secs(args.timeout))
        .await?;
    let answer = jobs::stream(chat.pieces, output).await?;
    if answer.finish_reason.as_deref() == Some("length") {
        output.note(format_args!(
            "the answer was cut at {LONGEST_ANSWER} tokens; `hivectl jobs submit` has no such limit"
        ));
    }
    Ok(answer)
}

/// Says what this command line asked for and the running hive does not have; also a gateway that outlived its
/// supervisor keeps its ports.
fn note_differences(args: &Up, config: &Config, output: &Output) {
    let (Some(supervisor), Some(gateway)) = (state::supervisor(config), state::gateway(config)) else {
        return;
    };
    for run in state::workers(config) {
        if let Some(trouble) = run.trouble {
            output.note(format_args!("worker {} is quarantined: {trouble}", run.spec.id));
        }
    }
    if state::worker(config, &supervisor.worker).is_none() {
        output.note(format_args!(
            "its worker {} was stopped; `hivectl down` and `hivectl up` bring it back",
            supervisor.worker
        ));
    }
    let model = supervisor.model.as_str();
    // The default model is a wish only where it was typed; a running hive has a model already.
    if args.model != model && args.model != crate::cli::DEFAULT_MODEL {
        output.note(format_args!(
            "it serves {model}; add a worker with `hivectl worker spawn {} --model {}`",
            args.device.name(),
            args.model
        ));
    }
    for (flag, named, url) in [
        ("--port", args.port, &gateway.data_url),
        ("--control-port", args.control_port, &gateway.control_url),
    ] {
        if named.is_some_and(|port| port != 0 && !url.ends_with(&format!(":{port}"))) {
            output.note(format_args!("it listens at {url}; {flag} counts at the next start"));
        }
    }
}

fn interrupted(wish: Wish) -> Failure {
    match wish {
        Wish::Interrupt => Failure::interrupted("interrupted", "run `hivectl up` again; it goes on where it stopped"),
        Wish::Terminate => Failure::task("stopped before the hive was ready", "run `hivectl up` again"),
    }
}

/// Shows events to a person.
struct Progress<'a> {
    output: &'a Output,
    label: String,
    bar: RefCell<Option<ProgressBar>>,
}

impl<'a> Progress<'a> {
    fn new(output: &'a Output, model: &str) -> Self {
        Self {
            output,
            label: format!("loading {model}"),
            bar: RefCell::default(),
        }
    }

    fn show(&self, event: Event) {
        let mut bar = self.bar.borrow_mut();
        match event {
            Event::Loading { percent, message } => {
                let bar = bar.get_or_insert_with(|| self.output.percent(&self.label));
                bar.set_message(message.unwrap_or_default());
                bar.set_position(percent.unwrap_or(0));
            }
            Event::Note(note) => self.output.note(note),
            Event::Ready | Event::Failed { .. } => {
                if let Some(bar) = bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }
}
