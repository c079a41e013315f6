//! Opens the state folder: all that a hive is, before anybody is served.
//!
//! It binds nothing and starts no plane.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use secrecy::ExposeSecret as _;
use sqlx::SqlitePool;
use wire::{NewKey, Scope};

use super::RunError;
use crate::{
    api::workers::restore_attached,
    audit::recorder::Recorder,
    auth::{api_key, jwt::Tokens, keyring::Keyring, pepper::Pepper, revoked::Revoked},
    books::Books,
    config::Config,
    db::{self, DbError},
    limits::{self, Meters},
    metrics,
    registry::{
        members::{Event, Limits},
        resolver::Resolver,
    },
    scheduler::{Dispatcher, QueueLimits},
    secret_file,
    shutdown::Lifecycle,
    spans::Spans,
    state::{Credentials, Hive},
    upgrade::new::Inheritance,
};

/// Opens the state folder: database, keys, books, what earlier runs left, or what a running gateway hands over.
pub async fn open(home: PathBuf, config: Config, inheritance: Option<&mut Inheritance>) -> Result<Hive, RunError> {
    let at_home = |error| RunError::Home(home.display().to_string(), error);
    // Others have no business in it: the database names keys and models.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&home)
        .map_err(at_home)?;
    let lock = match &inheritance {
        Some(inheritance) => inheritance.lock().map_err(at_home)?,
        None => lock(&home)?,
    };
    let spans = Spans::open(&config.otlp)?;
    let keys = home.join("keys");
    let pepper = Pepper::load_or_create(&keys).map_err(at_home)?;
    let db = db::open(&home.join("hive.db")).await?;
    let (audit, workers) = if let Some(inheritance) = inheritance {
        // All that may take long is done: from here on the old gateway waits for us.
        let workers = inheritance.estate().await?;
        let (audit, running) = Recorder::open(&config, &home, &pepper, &db, true).await?;
        inheritance.runs(running);
        (audit, Some(workers))
    } else {
        abort_open(&db).await?;
        (Recorder::open(&config, &home, &pepper, &db, false).await?.0, None)
    };
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
        spans,
        audit,
        meters: Arc::new(meters),
        dispatcher,
        credentials,
        resolver,
        lifecycle,
        lock,
    };
    match workers {
        Some(workers) => {
            let now = Instant::now();
            for worker in workers {
                let _ = hive.dispatcher.apply(Event::Joined(Box::new(worker.member(now))));
            }
        }
        None => restore_attached(&hive).await?,
    }
    Ok(hive)
}

/// What no gateway runs any more can only be closed.
async fn abort_open(db: &SqlitePool) -> Result<(), DbError> {
    let aborted = db::requests::abort_open(db).await?;
    if aborted > 0 {
        tracing::warn!(
            aborted,
            "requests that ran when the gateway died were closed as aborted"
        );
    }
    Ok(())
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
