//! From a configuration to a running gateway and back: opens the state, starts the threads, waits, closes.
//!
//! One thread with a runtime of its own per core serves the data plane, so that a request's two sockets live
//! on one reactor; the control plane, the books and the registry's background work share another runtime.

use std::{
    fs::{File, TryLockError},
    io,
    net::TcpListener,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::ExposeSecret as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wire::{GatewayRun, NewKey, ProcessMark, Scope};

use crate::{
    api::workers::restore_attached,
    audit::{
        evictions::Evictions,
        recorder::{Recorder, RecorderError},
    },
    auth::{api_key, jwks::KeysError, jwt::Tokens, keyring::Keyring, pepper::Pepper, revoked::Revoked},
    books::Books,
    config::Config,
    db::{self, DbError},
    limits::{self, Meters},
    metrics,
    registry::{
        members::{Event, Limits},
        probe,
        resolver::Resolver,
    },
    relay::upstream::Upstream,
    router,
    scheduler::{Dispatcher, QueueLimits},
    secret_file,
    server::{self, bind, serve},
    shutdown::{Lifecycle, Signals},
    state::{AppState, Credentials, Hive},
    tls::{Tls, TlsError},
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
    /// A plane cannot be served over TLS.
    #[error("the {0} plane cannot be served over TLS")]
    Tls(&'static str, #[source] TlsError),
    /// Connections to workers cannot be set up.
    #[error("cannot set up connections to workers")]
    Upstream(#[from] reqwest::Error),
    /// Metrics cannot be collected.
    #[error("cannot collect metrics")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// The operating system refused something.
    #[error("the operating system refused: {0}")]
    System(#[from] io::Error),
}

/// Runs until a signal, then drains.
pub fn run(home: PathBuf, config: Config) -> Result<(), RunError> {
    // What crashes leaves no core file with secrets, and no other process of the user reads our memory.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_dumpable(false).map_err(io::Error::from)?;
    let threads = match config.server.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    };
    let data = bind(config.server.listen, threads).map_err(|e| RunError::Bind(config.server.listen, e, "--listen"))?;
    let control =
        bind(config.control.listen, 1).map_err(|e| RunError::Bind(config.control.listen, e, "--control-listen"))?;
    let data_tls = open_tls(
        "data",
        config.server.tls_cert.as_deref(),
        config.server.tls_key.as_deref(),
    )?;
    let control_tls = open_tls(
        "control",
        config.control.tls_cert.as_deref(),
        config.control.tls_key.as_deref(),
    )?;
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    background.block_on(async {
        // Before anybody can know that we run.
        let signals = Signals::listen()?;
        let hangup = signal(SignalKind::hangup())?;
        let hive = Arc::new(open(home, config).await?);
        let mark = RunMark::write(&hive.home, (&data[0], data_tls.is_some()), (&control[0], control_tls.is_some())).map_err(|e| RunError::Home(hive.home.display().to_string(), e))?;
        let limits = server::Limits::new(&hive.config.server, &hive.config.relay);
        for (number, listener) in data.into_iter().enumerate() {
            let state = AppState::new(hive.clone(), Upstream::new(&hive.config.relay, hive.resolver.clone())?);
            data_thread(number, listener, data_tls.clone(), state, limits.clone())?;
        }
        let state = AppState::new(hive.clone(), Upstream::new(&hive.config.relay, hive.resolver.clone())?);
        let probes = tokio::spawn(probe::watch(hive.clone(), state.upstream.client().clone()));
        let sweeps = tokio::spawn(sweep(hive.clone()));
        let uses = tokio::spawn(note_uses(hive.clone()));
        let fresh = tokio::spawn(keep_fresh(hive.clone(), hangup, data_tls, control_tls.clone()));
        // It outlives the data plane's drain: workers that are not heard of any more would count as lost.
        let control_lifecycle = Lifecycle::default();
        for listener in control {
            tokio::spawn(serve(listener, control_tls.clone(), router::control_plane(state.clone()), limits.clone(), control_lifecycle.clone()));
        }
        tracing::info!(data = mark.run.data_url, control = mark.run.control_url, threads, home = %hive.home.display(), "ready");
        hive.lifecycle.run(&hive.config, signals).await;
        control_lifecycle.end().await;
        sweeps.abort();
        probes.abort();
        uses.abort();
        fresh.abort();
        // Only for the record: whoever looks at the key later.
        let _ = hive.keyring.note_uses(&hive.db).await;
        hive.books.flush().await;
        hive.audit.close().await;
        hive.db.close().await;
        tracing::info!("stopped");
        Ok(())
    })
}

/// Opens the state folder: database, keys, books, what earlier runs left.
async fn open(home: PathBuf, config: Config) -> Result<Hive, RunError> {
    let at_home = |error| RunError::Home(home.display().to_string(), error);
    // Others have no business in it: the database names keys and models.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&home)
        .map_err(at_home)?;
    let lock = lock(&home)?;
    let keys = home.join("keys");
    let pepper = Pepper::load_or_create(&keys).map_err(at_home)?;
    let db = db::open(&home.join("hive.db")).await?;
    let aborted = db::requests::abort_open(&db).await?;
    if aborted > 0 {
        tracing::warn!(
            aborted,
            "requests that ran when the gateway died were closed as aborted"
        );
    }
    let audit = Recorder::open(&config, &home, &pepper, &db).await?;
    let keyring = Keyring::load(pepper, &db).await?;
    let tokens = Tokens::open(&config.jwt, Revoked::load(&db).await?)?;
    // Where nobody could run the hive any more, whoever starts it may: the folder is theirs.
    if keyring.is_empty() || tokens.is_none() && !keyring.has_operator(crate::now_ms()) {
        let file = keys.join("admin");
        let key = first_admin_key(&file, &keyring).map_err(at_home)?;
        let first = NewKey {
            name: "first admin key".into(),
            scopes: vec![Scope::Admin],
            ..NewKey::default()
        };
        let view = keyring.add(&db, &key, first, audit.acts.by(None)).await?;
        tracing::info!(key = view.id, file = %file.display(), "the first admin key was written");
    }
    let queue = QueueLimits {
        places_per_slot: config.scheduler.places_per_slot,
        wait: config.scheduler.queue_timeout,
    };
    let dispatcher = Arc::new(Dispatcher::new(
        Limits {
            silence: config.registry.silence_limit,
            stall: config.relay.first_token_timeout,
        },
        queue,
    ));
    for (model, since_ms, facts) in db::models::all(&db).await? {
        dispatcher.remember_model(model, since_ms, facts);
    }
    let credentials = Credentials::new(db::workers::credentials(&db).await?);
    let lifecycle = Lifecycle::default();
    let meters = Meters::new(db::requests::used(&db, limits::today()).await?);
    let resolver = Arc::new(Resolver::new(config.registry.allowed_cidrs.clone()));
    let hive = Hive {
        config,
        home,
        books: Books::open(db.clone()),
        db,
        keyring,
        tokens,
        metrics: metrics::start()?,
        audit,
        meters: Arc::new(meters),
        dispatcher,
        credentials,
        resolver,
        lifecycle,
        lock,
    };
    restore_attached(&hive).await?;
    Ok(hive)
}

/// Two gateways on one folder would close each other's books.
fn lock(home: &Path) -> Result<File, RunError> {
    let at_home = |error| RunError::Home(home.display().to_string(), error);
    let folder = home.join("run");
    std::fs::create_dir_all(&folder).map_err(at_home)?;
    let file = File::create(folder.join("gateway.lock")).map_err(at_home)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunError::InUse(home.display().to_string())),
        Err(TryLockError::Error(error)) => Err(at_home(error)),
    }
}

/// The key in the file, if it is not one that was revoked, or a new one written there. The file comes first: a crash in
/// between must not leave a key in the database that nobody holds.
fn first_admin_key(file: &Path, keyring: &Keyring) -> io::Result<String> {
    if let Ok(key) = secret_file::read(file)
        && api_key::public_id(key.expose_secret()).is_some_and(|id| keyring.show(id).is_none())
    {
        return Ok(key.expose_secret().to_owned());
    }
    let key = api_key::generate();
    secret_file::create(file, &key)?;
    Ok(key)
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
    let mut evictions = Evictions::default();
    loop {
        tick.tick().await;
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

/// `run/gateway.json`, as long as the gateway runs.
struct RunMark {
    file: PathBuf,
    run: GatewayRun,
}

impl RunMark {
    /// Where each plane listens, and whether it speaks TLS.
    fn write(home: &Path, data: (&TcpListener, bool), control: (&TcpListener, bool)) -> io::Result<Self> {
        let url = |(listener, tls): (&TcpListener, bool)| {
            let scheme = if tls { "https" } else { "http" };
            Ok::<_, io::Error>(format!("{scheme}://{}", reachable(listener.local_addr()?)))
        };
        let process = ProcessMark {
            pid: std::process::id(),
            start: start_time().unwrap_or(0),
        };
        let run = GatewayRun {
            process,
            data_url: url(data)?,
            control_url: url(control)?,
        };
        let folder = home.join("run");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("gateway.json");
        let fresh = folder.join("gateway.json.new");
        std::fs::write(&fresh, serde_json::to_vec(&run)?)?;
        std::fs::rename(&fresh, &file)?;
        Ok(Self { file, run })
    }
}

impl Drop for RunMark {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// An address a program on this machine can connect to.
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// Field 22 of `/proc/self/stat` (proc(5)): when this process started, in clock ticks since boot.
fn start_time() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
