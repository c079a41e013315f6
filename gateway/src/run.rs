//! From a configuration to a running gateway and back: opens the state, starts the threads, waits, closes.
//!
//! One thread with a runtime of its own per core serves the data plane, so that a request's two sockets live
//! on one reactor; the control plane, the books and the registry's background work share another runtime.

mod mark;
mod open;

use std::{
    ffi::OsStr,
    io,
    net::TcpListener,
    os::unix::{
        ffi::OsStrExt as _,
        net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use listenfd::ListenFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{mark::RunMark, open::open};
use crate::{
    audit::{evictions::Evictions, recorder::RecorderError},
    auth::jwks::KeysError,
    books::retention,
    config::{self, Config},
    db::DbError,
    registry::{members::Event, probe},
    relay::upstream::Upstream,
    router,
    server::{self, Plane, bind, serve},
    shutdown::Signals,
    spans::SpansError,
    state::{AppState, Hive},
    tls::{Tls, TlsError},
    upgrade::{
        self, UpgradeError,
        new::{Inheritance, Predecessor},
        old::Successor,
    },
};

/// Why the gateway could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address cannot be listened on.
    #[error("cannot listen on {0}: {1}; choose another with {2}, or stop what holds it")]
    Bind(std::net::SocketAddr, io::Error, &'static str),
    /// The state folder cannot be used.
    #[error("cannot use the state folder {0}: {1}")]
    Home(String, io::Error),
    /// The state folder is in use.
    #[error("another gateway runs on the state folder {0}; stop it, or choose another folder with --home")]
    InUse(String),
    /// The registry cannot be used.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The audit journal cannot be kept.
    #[error(transparent)]
    Record(#[from] RecorderError),
    /// The keys of the issuer of tokens cannot be used.
    #[error("tokens cannot be taken")]
    Tokens(#[from] KeysError),
    /// Requests cannot be traced.
    #[error("requests cannot be traced")]
    Spans(#[from] SpansError),
    /// A plane cannot be served over TLS.
    #[error("the {0} plane cannot be served over TLS")]
    Tls(&'static str, #[source] TlsError),
    /// Connections to workers cannot be set up.
    #[error("cannot set up connections to workers")]
    Upstream(#[from] reqwest::Error),
    /// What a running gateway hands over cannot be taken.
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    /// Metrics cannot be collected.
    #[error("cannot collect metrics")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The operating system refused something.
    #[error("the operating system refused: {0}")]
    System(#[from] io::Error),
}

/// Runs until a signal, then drains; or until a successor has taken over, then finishes. With `take_over` it takes over
/// from the gateway that started it.
pub fn run(home: PathBuf, config: Config, take_over: Option<ListenFd>) -> Result<(), RunError> {
    // What crashes leaves no core file with secrets, and no other process of the user reads our memory.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_dumpable(false).map_err(io::Error::from)?;
    // A page of 2 MiB is resident as a whole once a byte of it is used: half as much again for each stream.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_thp_disable(true).map_err(io::Error::from)?;
    warn_of_plain_text(&config);
    let mut inheritance = take_over
        .map(|sockets| Inheritance::receive(sockets, &config))
        .transpose()?;
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = background.block_on(async {
        let outcome = live(home, config, &mut inheritance).await;
        if let (Err(error), Some(inheritance)) = (&outcome, &mut inheritance) {
            inheritance.refuse(&crate::error::chain(error)).await;
        }
        outcome
    });
    // A thread that hangs on a disk is not waited for.
    background.shutdown_background();
    outcome
}

/// Whoever is on the way may read what is not encrypted.
fn warn_of_plain_text(config: &Config) {
    for (section, address, certificate) in [
        ("server", config.server.listen, &config.server.tls_cert),
        ("control", config.control.listen, &config.control.tls_cert),
    ] {
        if certificate.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(
                section,
                %address,
                "what crosses the network is not encrypted: set tls_cert and tls_key, or let only a proxy with TLS come here"
            );
        }
    }
}

async fn live(home: PathBuf, config: Config, inheritance: &mut Option<Inheritance>) -> Result<(), RunError> {
    // Before anybody can know that we run.
    let mut signals = Signals::listen()?;
    let hangup = signal(SignalKind::hangup())?;
    let mut upgrade = signal(SignalKind::user_defined2())?;
    let (data, control) = match inheritance {
        Some(inheritance) => inheritance.take_sockets(),
        None => (
            bind(config.server.listen, threads(&config))
                .map_err(|e| RunError::Bind(config.server.listen, e, "--listen"))?,
            bind(config.control.listen, 1).map_err(|e| RunError::Bind(config.control.listen, e, "--control-listen"))?,
        ),
    };
    let (server, plane) = (&config.server, &config.control);
    let data_tls = open_tls("data", server.tls_cert.as_deref(), server.tls_key.as_deref())?;
    let control_tls = open_tls("control", plane.tls_cert.as_deref(), plane.tls_key.as_deref())?;
    let hive = Arc::new(open(home, config, inheritance.as_mut()).await?);
    let state = state(&hive)?;
    let app = router::control_plane(state.clone());
    // It outlives the data plane's drain: workers that are not heard of any more would count as lost.
    let mut control = Plane::new(control, control_tls.clone(), app, limits(&hive));
    // All that can fail comes first: whoever takes over is the only gateway as soon as it is told to go.
    let at_home = |error| RunError::Home(hive.home.display().to_string(), error);
    let mut mark = RunMark::prepare(
        &hive.home,
        (&data[0], data_tls.is_some()),
        (&control.sockets()[0], control_tls.is_some()),
    )
    .map_err(at_home)?;
    control.prepare()?;
    data_threads(&hive, &data, data_tls.as_ref())?;
    let predecessor = match inheritance.take() {
        Some(inheritance) => Some(inheritance.settle(hive.clone()).await?),
        None => None,
    };
    publish(&mut mark, predecessor.is_some()).map_err(at_home)?;
    hive.lifecycle.opened.cancel();
    control.open();
    let background = [
        tokio::spawn(probe::watch(hive.clone(), state.upstream.client().clone())),
        tokio::spawn(note_uses(hive.clone())),
        tokio::spawn(retention::keep(hive.db.clone(), hive.config.books.retention)),
        tokio::spawn(keep_fresh(hive.clone(), hangup, data_tls, control_tls)),
    ];
    let sweeps = tokio::spawn(sweep(hive.clone()));
    let (data_url, control_url) = (&mark.run().data_url, &mark.run().control_url);
    tracing::info!(data = data_url, control = control_url, threads = data.len(), home = %hive.home.display(), "ready");
    tell_systemd(&format!("MAINPID={}\nREADY=1", std::process::id()));
    let successor = until_told(
        &hive,
        &data,
        &mut control,
        &mut mark,
        &mut signals,
        &mut upgrade,
        predecessor.as_ref(),
    )
    .await;
    // What we hold open would keep the ports open when our successor ends.
    drop(data);
    let rest = async {
        if let Some(predecessor) = &predecessor {
            predecessor.gone.cancelled().await;
        }
    };
    match &successor {
        None => {
            hive.lifecycle.drain(&hive.config, &mut signals, rest).await;
            control.close(Duration::ZERO).await;
        }
        Some(successor) => {
            mark.leave();
            control.shut();
            sweeps.abort();
            hive.dispatcher.hear_no_more();
            let abandoned = successor.gone.cancelled();
            hive.lifecycle.finish(&hive.config, &mut signals, rest, abandoned).await;
        }
    }
    sweeps.abort();
    background.iter().for_each(tokio::task::JoinHandle::abort);
    if !signals.allow(part(&hive, predecessor, successor)).await {
        tracing::warn!("a second signal; what is still to be written is left");
    }
    let rows = hive.books.unwritten();
    if rows > 0 {
        tracing::error!(
            rows,
            "requests are missing from the books: the database could not be written before the end"
        );
    }
    tracing::info!("stopped");
    Ok(())
}

/// Writes what is left to be written, and closes all that is open.
async fn part(hive: &Hive, predecessor: Option<Predecessor>, successor: Option<Successor>) {
    if let Some(predecessor) = predecessor {
        predecessor.cut().await;
    }
    // Beside each other: where one waits for a database or a disk, the others need not.
    let _only_for_the_record = tokio::join!(
        hive.keyring.note_uses(&hive.db),
        hive.books.flush(),
        hive.spans.close(),
        hive.audit.close(),
    );
    if let Some(successor) = successor {
        successor.farewell().await;
    }
    hive.db.close().await;
}

/// Waits until we are to end; the successor, if one has taken over.
async fn until_told(
    hive: &Hive,
    data: &[TcpListener],
    control: &mut Plane,
    mark: &mut RunMark,
    signals: &mut Signals,
    upgrade: &mut Signal,
    predecessor: Option<&Predecessor>,
) -> Option<Successor> {
    let asked = async {
        match predecessor {
            Some(predecessor) => predecessor.asks.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let told = async {
        tokio::select! {
            () = signals.next() => {}
            () = asked => {}
        }
    };
    let mut told = std::pin::pin!(told);
    loop {
        tokio::select! {
            () = told.as_mut() => return None,
            _ = upgrade.recv() => {}
        }
        tracing::info!("SIGUSR2: a new gateway is started to take over");
        match upgrade::old::hand_over(hive, data, control, told.as_mut()).await {
            Ok(successor) => {
                tracing::info!(
                    pid = successor.pid,
                    "a new gateway has taken over; what runs here may finish"
                );
                // It says so itself; but were we gone before that is heard, systemd would take the service for dead.
                tell_systemd(&format!("MAINPID={}", successor.pid));
                // One that came meanwhile was meant for the gateway.
                if futures_util::FutureExt::now_or_never(told.as_mut()).is_some() {
                    successor.stop();
                }
                return Some(successor);
            }
            Err(UpgradeError::Stopped) => {
                tracing::info!("a signal came before the new gateway was ready; it does not take over");
                return None;
            }
            Err(error) => {
                let why = crate::error::chain(&error);
                tracing::error!(cause = why, "the upgrade failed; this gateway serves on");
                mark.not_upgraded(why);
            }
        }
    }
}

/// Says something of the service to systemd, if it started us (`sd_notify(3)`).
fn tell_systemd(word: &str) {
    if let Some(socket) = config::notify_socket()
        && let Err(error) = notify(&socket, word)
    {
        tracing::warn!(cause = %error, "systemd could not be told which process serves");
    }
}

fn notify(socket: &OsStr, word: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(word.as_bytes(), &address)
        .map(drop)
}

/// Says where we are found. Who has taken over serves in any case.
fn publish(mark: &mut RunMark, has_taken_over: bool) -> io::Result<()> {
    match mark.publish() {
        Err(error) if has_taken_over => {
            tracing::warn!(cause = %error, "run/gateway.json cannot be replaced, so hivectl does not find this gateway");
            Ok(())
        }
        published => published,
    }
}

fn state(hive: &Arc<Hive>) -> Result<AppState, RunError> {
    let upstream = Upstream::new(&hive.config.relay, hive.resolver.clone())?;
    Ok(AppState::new(hive.clone(), upstream))
}

/// Each plane counts by itself: strangers who take every connection of one do not shut the other.
fn limits(hive: &Hive) -> server::Limits {
    server::Limits::new(&hive.config.server, &hive.config.relay)
}

fn threads(config: &Config) -> usize {
    match config.server.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    }
}

/// Starts the threads of the data plane; they accept once it is opened.
fn data_threads(hive: &Arc<Hive>, sockets: &[TcpListener], tls: Option<&Arc<Tls>>) -> Result<(), RunError> {
    let limits = limits(hive);
    for (number, socket) in sockets.iter().enumerate() {
        data_thread(number, socket.try_clone()?, tls.cloned(), state(hive)?, limits.clone())?;
    }
    Ok(())
}

fn data_thread(
    number: usize,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    state: AppState,
    limits: server::Limits,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name(format!("data-{number}"))
        .spawn(move || {
            let lifecycle = state.lifecycle.clone();
            let ended = runtime.block_on(async {
                let served = serve(listener, tls, router::data_plane(state), limits, lifecycle.clone()).await;
                // The accept loop is over; the connections are not.
                lifecycle.connections.wait().await;
                served
            });
            if let Err(error) = ended {
                tracing::error!(cause = %error, "a thread of the data plane ended");
            }
        })?;
    Ok(())
}

async fn sweep(hive: Arc<Hive>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut upkeep = tokio::time::interval(Duration::from_secs(5));
    let mut evictions = Evictions::default();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = upkeep.tick() => {
                // Samples of histograms are kept one by one until somebody reads them, or this.
                hive.metrics.run_upkeep();
                continue;
            }
        }
        // mimalloc gives back what was freed only when it takes or frees a page, which it seldom does in a gateway at
        // rest: that would stay as large as its busiest moment.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(4 * 1024 * 1024)));
        let _ = hive.dispatcher.apply(Event::Swept);
        for eviction in evictions.see(&hive.dispatcher.workers()) {
            hive.audit.journal.record(eviction);
        }
    }
}

fn open_tls(plane: &'static str, certificate: Option<&Path>, key: Option<&Path>) -> Result<Option<Arc<Tls>>, RunError> {
    let (Some(certificate), Some(key)) = (certificate, key) else {
        return Ok(None);
    };
    let tls = Tls::open(certificate, key).map_err(|error| RunError::Tls(plane, error))?;
    Ok(Some(Arc::new(tls)))
}

/// Certificates and the keys of tokens are read again as they change, and all of them on SIGHUP.
async fn keep_fresh(hive: Arc<Hive>, mut hangup: Signal, data: Option<Arc<Tls>>, control: Option<Arc<Tls>>) {
    let planes = || [&data, &control].into_iter().flatten();
    let tokens = async {
        match &hive.tokens {
            Some(tokens) => tokens.keep_fresh().await,
            None => std::future::pending().await,
        }
    };
    let hangups = async {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: certificates and keys are read again");
            planes().for_each(|tls| tls.reload());
            if let Some(tokens) = &hive.tokens {
                tokens.refresh().await;
            }
        }
    };
    let files = futures_util::future::join_all(planes().map(|tls| tls.watch()));
    tokio::join!(tokens, hangups, files);
}

async fn note_uses(hive: Arc<Hive>) {
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    loop {
        tick.tick().await;
        if let Err(error) = hive.keyring.note_uses(&hive.db).await {
            tracing::warn!(
                cause = crate::error::chain(&error),
                "when keys were last used could not be noted"
            );
        }
    }
}
