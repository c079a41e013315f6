//! `--host`: `models` and `worker` commands done on another machine, as far as this machine has a part in them.
//!
//! A worker started there registers with this machine's gateway: the join token is made here, and here it is seen when
//! the gateway routes to it.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use wire::{JoinToken, WorkerId, WorkerState};

use super::{models, worker};
use crate::{
    cli::{ModelsCommand, Place, Spawn, WorkerCommand},
    config::{self, Config},
    error::Failure,
    gateway_client::Gateway,
    hosts::{self, Act, Ask, Call, Frame, Placed},
    launch,
    output::Output,
    signals::Signals,
    ssh::{self, Route},
};

/// How old a join token may be when it is used: a third less than the gateway allows.
const FRESH: Duration = Duration::from_secs(600);

/// The way to the machine that was named, if one was.
pub fn route(place: Place, config: &Config) -> Result<Option<Route>, Failure> {
    let Some(address) = place.host else {
        if place.remote_hivectl.is_some() || place.ssh_config.is_some() {
            return Err(Failure::usage(
                "--remote-hivectl and --ssh-config go with --host",
                "name the machine with --host [USER@]NAME",
            ));
        }
        return Ok(None);
    };
    Ok(Some(Route {
        address,
        hivectl: place.remote_hivectl.unwrap_or_default(),
        config: place.ssh_config.or_else(|| config.ssh_config.clone()),
    }))
}

/// Runs one `models` command there.
pub async fn models(
    route: &Route,
    command: ModelsCommand,
    config: &Config,
    output: &Output,
    signals: &mut Signals,
) -> Result<(), Failure> {
    all_there(route, Act::Models(command), config, output, signals).await
}

/// Runs one `worker` command there.
pub async fn worker(
    route: &Route,
    command: WorkerCommand,
    config: &Config,
    output: &Output,
    signals: &mut Signals,
) -> Result<(), Failure> {
    match command {
        WorkerCommand::Spawn(args) => spawn(route, *args, config, output, signals).await,
        WorkerCommand::Restart { id, timeout } => {
            let gateway = Gateway::find(config)?;
            let birth = Birth::new(route, &id, timeout, false);
            let act = Act::Restart {
                id: id.clone(),
                timeout,
            };
            call(route, act, output, signals, async |call: &mut Call| {
                birth.follow(call, &gateway, None, config, output).await
            })
            .await
        }
        WorkerCommand::List => list(route, config, output, signals).await,
        WorkerCommand::Stop { id, drain } => {
            all_there(route, Act::Stop { id: id.clone(), drain }, config, output, signals).await?;
            forget_if_lost(&id, config).await;
            Ok(())
        }
        WorkerCommand::Logs { id, follow, lines } => {
            all_there(route, Act::Logs { id, follow, lines }, config, output, signals).await
        }
        WorkerCommand::Attach(_) | WorkerCommand::Detach { .. } => Err(Failure::usage(
            "to attach or detach is the gateway's own act, done on no other machine",
            "leave --host out; a server is attached by the URL at which the gateway reaches it",
        )),
    }
}

/// Has something done there that needs nothing from here.
async fn all_there(
    route: &Route,
    act: Act,
    config: &Config,
    output: &Output,
    signals: &mut Signals,
) -> Result<(), Failure> {
    call(route, act, output, signals, async |call: &mut Call| {
        loop {
            match call.next(output).await? {
                None => return Ok(()),
                Some(Frame::Downloaded(download)) => models::record(&download, config, output).await,
                Some(frame) => return Err(call.unexpected(&frame)),
            }
        }
    })
    .await
}

/// Has one thing done there, with what is said about it on the way.
pub async fn call<T>(
    route: &Route,
    act: Act,
    output: &Output,
    signals: &mut Signals,
    conversation: impl AsyncFnOnce(&mut Call) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let json = output.is_json();
    hosts::call(route, &Ask { json, act }, output, signals, conversation).await
}

/// The gateway's workers whose processes were started there.
async fn list(route: &Route, config: &Config, output: &Output, signals: &mut Signals) -> Result<(), Failure> {
    let gateway = Gateway::find(config)?;
    let placed: Vec<Placed> = call(route, Act::Workers, output, signals, async |call: &mut Call| match call
        .next(output)
        .await?
    {
        Some(Frame::Workers(placed)) => Ok(placed),
        Some(frame) => Err(call.unexpected(&frame)),
        None => Ok(Vec::new()),
    })
    .await?;
    let mut views = gateway.workers().await?;
    views.retain(|view| {
        placed
            .iter()
            .any(|placed| placed.id == view.id && view.pid == Some(placed.pid))
    });
    worker::show(&views, output);
    for stranger in placed
        .iter()
        .filter(|placed| placed.alive && views.iter().all(|view| view.id != placed.id))
    {
        output.note(format_args!(
            "worker {} runs there too, for a gateway at {} and unknown to this one",
            stranger.id, stranger.gateway
        ));
    }
    Ok(())
}

async fn spawn(
    route: &Route,
    mut args: Spawn,
    config: &Config,
    output: &Output,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let device = worker::device(args.backend, args.gpu)?;
    let id = match args.name.take() {
        Some(id) => id,
        None => worker::fresh_id(&device)?,
    };
    let gateway = Gateway::find(config)?;
    let prepared = async {
        worker::spawn::refuse_known(&id, &gateway).await?;
        // Made before the first word, so that what this hive lacks is said at once.
        let token = Token::new(gateway.join_token(&id).await?);
        let url = meeting_point(route, args.gateway.as_deref(), &gateway, &token, output).await?;
        Ok((token, url))
    };
    let (token, url) = signals.or(prepared).await?;
    let birth = Birth::new(route, &id, args.timeout, args.no_wait);
    args.name = Some(id.clone());
    let act = Act::Spawn {
        args: Box::new(args),
        gateway: url,
    };
    call(route, act, output, signals, async |call: &mut Call| {
        birth.follow(call, &gateway, Some(token), config, output).await
    })
    .await
}

/// Where a worker there meets this gateway.
async fn meeting_point(
    route: &Route,
    named: Option<&str>,
    gateway: &Gateway,
    token: &Token,
    output: &Output,
) -> Result<String, Failure> {
    if let Some(url) = named {
        return config::base_url("--gateway", url);
    }
    let advertised = token.made.gateway_url.as_deref();
    let url = config::base_url(
        "control.advertise_url",
        advertised.unwrap_or_else(|| gateway.control_url()),
    )?;
    if !config::is_loopback(&url) {
        return Ok(url);
    }
    let host = &route.address;
    let key = "`control.advertise_url` in the gateway's configuration, or name a URL with --gateway";
    if ssh::real_host(route)
        .await
        .is_some_and(|name| config::is_own_name(&name))
    {
        output.note(format_args!(
            "the worker will look for this gateway at {url}, as {host} is this machine; for another one, set {key}"
        ));
        return Ok(url);
    }
    Err(Failure::usage(
        format!("a worker on {host} cannot reach this gateway: its address {url} means the machine that asks"),
        format!("have the control plane listen where {host} reaches it, and set {key}"),
    ))
}

/// A worker stopped there that could not say good-bye is not kept as lost.
async fn forget_if_lost(id: &WorkerId, config: &Config) {
    let Ok(gateway) = Gateway::find(config) else { return };
    if let Ok(Some(view)) = gateway.worker(id).await
        && view.state == WorkerState::Lost
    {
        // It only tidies up what is shown.
        let _ = gateway.detach(id, false).await;
    }
}

/// A join token, and when it was made.
struct Token {
    made: JoinToken,
    at: Instant,
}

impl Token {
    fn new(made: JoinToken) -> Self {
        Self {
            made,
            at: Instant::now(),
        }
    }
}

/// A worker that comes to life there.
struct Birth<'a> {
    id: &'a WorkerId,
    limit: Duration,
    no_wait: bool,
    remedy: String,
}

impl<'a> Birth<'a> {
    fn new(route: &Route, id: &'a WorkerId, timeout: u64, no_wait: bool) -> Self {
        let host = &route.address;
        Self {
            id,
            limit: Duration::from_secs(timeout),
            no_wait,
            remedy: format!(
                "see that {host} reaches this gateway, and this gateway {host}; or allow more with --timeout"
            ),
        }
    }

    /// Brings the token when it is wanted, and lets the worker go once the gateway routes to it.
    async fn follow(
        &self,
        call: &mut Call,
        gateway: &Gateway,
        mut token: Option<Token>,
        config: &Config,
        output: &Output,
    ) -> Result<(), Failure> {
        let mut is_ours = false;
        while let Some(frame) = call.next(output).await? {
            match frame {
                Frame::TokenWanted(id) if id == *self.id => {
                    let token = match token.take().filter(|token| token.at.elapsed() < FRESH) {
                        Some(token) => token.made,
                        // A download came in between.
                        None => gateway.join_token(self.id).await?,
                    };
                    call.hand_over(&SecretString::from(token.token)).await?;
                }
                Frame::Started(pid) => {
                    if !self.no_wait {
                        self.wait(call, gateway, pid, output).await?;
                    }
                    call.release().await?;
                    is_ours = true;
                }
                Frame::Downloaded(download) => models::record(&download, config, output).await,
                frame => return Err(call.unexpected(&frame)),
            }
        }
        if is_ours {
            worker::spawn::tell(self.id, output);
        }
        Ok(())
    }

    async fn wait(&self, call: &mut Call, gateway: &Gateway, pid: u32, output: &Output) -> Result<(), Failure> {
        let bar = output.percent(&format!("loading worker {}", self.id));
        let look = |view: &_| worker::spawn::show_loading(&bar, view);
        let outcome = tokio::select! {
            ready = launch::routed(gateway, self.id, pid, self.limit, &self.remedy, look) => ready,
            frame = call.next(output) => match frame {
                Ok(Some(frame)) => Err(call.unexpected(&frame)),
                Ok(None) => Err(call.unexpected(&Frame::Done)),
                Err(failure) => Err(failure),
            },
        };
        bar.finish_and_clear();
        outcome
    }
}
