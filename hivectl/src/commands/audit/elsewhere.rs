//! Checkpoints kept where the gateway's machine cannot rewrite them: in a file, or by other machines that are shown, each
//! time, that the journal only grew.

use std::{fs::OpenOptions, io::Write as _, path::Path};

use gateway::{
    audit::{note, reading, segment::PUBLIC_KEY},
    auth::pepper::hex,
};
use tokio::io::AsyncReadExt as _;

use super::{cannot_write, journal};
use crate::commands::there::call;
use crate::{
    cli::audit::{Anchor, Anchors, Way},
    config::Config,
    error::Failure,
    gateway_client::Gateway,
    hosts::{Act, Call, Checkpoint, Frame},
    output::Output,
    signals::Signals,
    ssh::{Address, Route},
};

/// Signs what is recorded, or takes a checkpoint that was signed, and has it kept.
pub async fn anchor(args: Anchor, config: &Config, output: &Output, signals: &mut Signals) -> Result<(), Failure> {
    let note = signals.or(checkpoint(&args, config)).await?;
    if let Some(file) = &args.out {
        append(file, &note)?;
        output.note(format_args!(
            "the checkpoint was added to {}; keep that file where this machine cannot rewrite it",
            file.display()
        ));
    } else if args.host.is_empty() {
        output.piece(&note);
    }
    let folder = args.dir.clone().unwrap_or_else(|| journal(config));
    let mut failed = None;
    for host in &args.host {
        // One that cannot be reached does not keep the others from it.
        if let Err(failure) = show(route(host, &args.way, config), &note, &folder, output, signals).await
            && let Some(before) = failed.replace(failure)
        {
            output.failure(&before);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Fetches what a machine has kept of a journal.
pub async fn anchors(args: Anchors, config: &Config, output: &Output, signals: &mut Signals) -> Result<(), Failure> {
    let key = public_key(&args.pubkey.unwrap_or_else(|| journal(config).join(PUBLIC_KEY)))?;
    let route = route(&args.host, &args.way, config);
    let kept = call(
        &route,
        Act::Anchors { key },
        output,
        signals,
        async |call: &mut Call| {
            let mut kept = String::new();
            while let Some(frame) = call.next(output).await? {
                match frame {
                    Frame::Kept(note) => kept.push_str(&note),
                    frame => return Err(call.unexpected(&frame)),
                }
            }
            Ok(kept)
        },
    )
    .await?;
    match &args.out {
        None => output.piece(&kept),
        Some(file) => {
            std::fs::write(file, &kept).map_err(|error| cannot_write(file, error))?;
            let count = note::split(&kept).0.len();
            output.note(format_args!(
                "{count} checkpoints that {} has kept are in {}",
                args.host,
                file.display()
            ));
        }
    }
    Ok(())
}

async fn checkpoint(args: &Anchor, config: &Config) -> Result<String, Failure> {
    let unreadable =
        |error| Failure::task("the checkpoint cannot be read", "name its file, or - for stdin").because(error);
    match &args.checkpoint {
        None => Ok(Gateway::find(config)?.audit_checkpoint().await?.checkpoint),
        Some(file) if file.as_os_str() == "-" => {
            let mut note = String::new();
            tokio::io::stdin().read_to_string(&mut note).await.map_err(unreadable)?;
            Ok(note)
        }
        Some(file) => std::fs::read_to_string(file).map_err(unreadable),
    }
}

/// Has another machine keep a checkpoint, with the proof it wants.
async fn show(route: Route, note: &str, folder: &Path, output: &Output, signals: &mut Signals) -> Result<(), Failure> {
    let key = public_key(&folder.join(PUBLIC_KEY))?;
    call(
        &route,
        Act::Witness { key: key.clone() },
        output,
        signals,
        async |call: &mut Call| {
            let seen = match call.next(output).await? {
                Some(Frame::Seen(seen)) => seen,
                Some(frame) => return Err(call.unexpected(&frame)),
                None => return Err(call.unexpected(&Frame::Done)),
            };
            let size = note::PublicKey::parse(&key)
                .and_then(|key| key.open(note))
                .map_or(0, |now| now.size);
            // A file may end in more empty lines than the note in it.
            let (note, proof) = (format!("{}\n", note.trim_end()), proof(folder, seen, size)?);
            call.show(Checkpoint { note, proof }).await?;
            match call.next(output).await? {
                None => Ok(()),
                Some(frame) => Err(call.unexpected(&frame)),
            }
        },
    )
    .await
}

/// The proof between two checkpoints; none where there cannot be one, which the other machine has to judge.
fn proof(folder: &Path, seen: u64, size: u64) -> Result<Vec<String>, Failure> {
    if seen == 0 || seen >= size {
        return Ok(Vec::new());
    }
    let path = reading::consistency(folder, seen, size).map_err(|error| {
        let what = format!("the journal in {} cannot be read", folder.display());
        Failure::task(what, "name its folder with --dir").because(error)
    })?;
    Ok(path.iter().flatten().map(|hash| hex(hash)).collect())
}

fn route(host: &Address, way: &Way, config: &Config) -> Route {
    Route {
        address: host.clone(),
        hivectl: way.remote_hivectl.clone().unwrap_or_default(),
        config: way.ssh_config.clone().or_else(|| config.ssh_config.clone()),
    }
}

fn public_key(file: &Path) -> Result<String, Failure> {
    let key = std::fs::read_to_string(file).map_err(|error| {
        let what = format!("the journal's public key {} cannot be read", file.display());
        Failure::task(what, "name the journal's folder, or the key itself").because(error)
    })?;
    Ok(key.trim().to_owned())
}

fn append(file: &Path, note: &str) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).open(file)?;
        file.write_all(note.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| cannot_write(file, error))
}
