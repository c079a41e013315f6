//! `hivectl models …`: what is in the store, what could be, and whether it still is what it was.

use std::path::Path;

use indicatif::HumanBytes;
use serde::Serialize;
use wire::{ModelDownload, ModelName};

use crate::{
    cli::ModelsCommand,
    config::Config,
    download::{self, Catalogue, Entry, Manifest, Model, Store},
    error::Failure,
    gateway_client::Gateway,
    hosts::Frame,
    output::{Mark, Output},
    process, state,
};

/// Runs one `models` command.
pub async fn run(command: ModelsCommand, config: &Config, output: &Output) -> Result<(), Failure> {
    match command {
        ModelsCommand::Download { source, name, force } => fetch(config, output, &source, name.as_ref(), force).await,
        ModelsCommand::List { catalogue } => list(config, output, catalogue),
        ModelsCommand::Show { name } => show(config, output, &name),
        ModelsCommand::Verify { names } => verify(config, output, &names).await,
        ModelsCommand::Rm { names } => remove(config, output, &names).await,
    }
}

async fn fetch(
    config: &Config,
    output: &Output,
    source: &str,
    name: Option<&ModelName>,
    force: bool,
) -> Result<(), Failure> {
    let (model, is_new) = download::fetch(config, output, source, name, force).await?;
    if is_new {
        downloaded(&model, config, output).await;
    }
    if output.is_json() {
        output.json(&model);
        return Ok(());
    }
    let before = if is_new { "" } else { "already there: " };
    let quantization = model
        .quantization
        .map(|quantization| format!(", {quantization}"))
        .unwrap_or_default();
    output.line(format_args!(
        "{before}{} ({}{quantization})",
        model.name,
        HumanBytes(model.size_bytes)
    ));
    output.line(format_args!("{}", model.path.display()));
    Ok(())
}

/// Has the gateway record a download, or the machine that asked for it.
pub async fn downloaded(model: &Model, config: &Config, output: &Output) {
    let download = ModelDownload {
        model: model.name.clone(),
        sha256: model.sha256.clone(),
    };
    if output.is_elsewhere() {
        output.frame(&Frame::Downloaded(download));
    } else {
        record(&download, config, output).await;
    }
}

/// Has the gateway record a download; where none runs there is no record either.
pub async fn record(download: &ModelDownload, config: &Config, output: &Output) {
    let Ok(gateway) = Gateway::find(config) else { return };
    if let Err(failure) = gateway.record_download(download).await {
        let why = failure.in_one_line();
        output.note(format_args!(
            "the download of {} is not on the record: {why}",
            download.model
        ));
    }
}

fn list(config: &Config, output: &Output, with_catalogue: bool) -> Result<(), Failure> {
    let store = Store::new(&config.models);
    let (whole, damaged): (Vec<Manifest>, Vec<Manifest>) =
        store.all()?.into_iter().partition(|manifest| store.is_whole(manifest));
    for manifest in damaged {
        let name = manifest.name;
        output.note(format_args!(
            "{name} is damaged; `hivectl models download {name}` mends it"
        ));
    }
    let models: Vec<_> = whole.iter().map(|manifest| store.model(manifest)).collect();
    if output.is_json() && !with_catalogue {
        output.json(&models);
        return Ok(());
    }
    let catalogue = Catalogue::load(&config.home)?;
    let missing: Vec<&Entry> = catalogue
        .entries()
        .filter(|entry| models.iter().all(|model| model.name != entry.name))
        .collect();
    if output.is_json() {
        let here = whole.iter().map(|manifest| {
            let name = &manifest.name;
            Facts::of(name, &store, catalogue.get(name.as_str()), Some(manifest))
        });
        let missing = missing
            .iter()
            .map(|entry| Facts::of(&entry.name, &store, Some(entry), None));
        output.json(&here.chain(missing).collect::<Vec<_>>());
        return Ok(());
    }
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|model| {
            vec![
                model.name.to_string(),
                HumanBytes(model.size_bytes).to_string(),
                model.quantization.clone().unwrap_or_else(|| "-".into()),
                model.source.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        output.note("no models yet");
    } else {
        output.table(&["model", "size", "quantization", "source"], &rows);
    }
    if with_catalogue {
        let rows: Vec<Vec<String>> = missing
            .iter()
            .map(|entry| vec![entry.name.to_string(), entry.good_for.clone().unwrap_or_default()])
            .collect();
        output.table(&["to download", "good for"], &rows);
    } else if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|entry| entry.name.as_str()).collect();
        output.note(format_args!("to download by name: {}", names.join(", ")));
    }
    Ok(())
}

/// Everything known about a model.
#[derive(Debug, Serialize)]
struct Facts {
    name: ModelName,
    downloaded: bool,
    path: Option<String>,
    size_bytes: Option<u64>,
    sha256: Option<String>,
    quantization: Option<String>,
    source: Option<String>,
    revision: Option<String>,
    context: Option<u64>,
    licence: Option<String>,
    good_for: Option<String>,
    /// Where it can be had from, in the order they are tried.
    sources: Vec<String>,
}

impl Facts {
    fn of(name: &ModelName, store: &Store, entry: Option<&Entry>, manifest: Option<&Manifest>) -> Self {
        let model = manifest.map(|manifest| store.model(manifest));
        Self {
            name: name.clone(),
            downloaded: model.is_some(),
            path: model.as_ref().map(|model| model.path.display().to_string()),
            size_bytes: model.as_ref().map(|model| model.size_bytes),
            sha256: model.as_ref().map(|model| model.sha256.clone()),
            quantization: model.as_ref().and_then(|model| model.quantization.clone()),
            source: model.map(|model| model.source),
            revision: manifest.and_then(|manifest| manifest.revision.clone()),
            context: manifest
                .and_then(|manifest| manifest.context)
                .or(entry.and_then(|entry| entry.context)),
            licence: entry.and_then(|entry| entry.licence.clone()),
            good_for: entry.and_then(|entry| entry.good_for.clone()),
            sources: entry.map(Entry::places).unwrap_or_default(),
        }
    }
}

fn show(config: &Config, output: &Output, name: &ModelName) -> Result<(), Failure> {
    let store = Store::new(&config.models);
    let catalogue = Catalogue::load(&config.home)?;
    let (entry, manifest) = (catalogue.get(name.as_str()), store.get(name));
    if entry.is_none() && manifest.is_none() {
        return Err(not_here(name, &catalogue));
    }
    let facts = Facts::of(name, &store, entry, manifest.as_ref());
    if output.is_json() {
        output.json(&facts);
        return Ok(());
    }
    let lines = [
        ("name", Some(facts.name.to_string())),
        ("good for", facts.good_for),
        ("licence", facts.licence),
        ("context", facts.context.map(|tokens| format!("{tokens} tokens"))),
        (
            "size",
            facts
                .size_bytes
                .map(|bytes| format!("{} ({bytes} bytes)", HumanBytes(bytes))),
        ),
        ("quantization", facts.quantization),
        ("SHA-256", facts.sha256),
        (
            "path",
            facts
                .path
                .or_else(|| Some(format!("not downloaded: `hivectl models download {name}`"))),
        ),
        ("source", facts.source),
        ("revision", facts.revision),
    ];
    for (label, value) in lines {
        if let Some(value) = value {
            output.line(format_args!("{label:13} {value}"));
        }
    }
    for place in facts.sources {
        output.line(format_args!("{:13} {place}", "can be had"));
    }
    Ok(())
}

/// What `verify` found of one model.
#[derive(Debug, Serialize)]
struct Verdict {
    name: ModelName,
    ok: bool,
    /// What is wrong with it.
    problem: Option<String>,
}

async fn verify(config: &Config, output: &Output, names: &[ModelName]) -> Result<(), Failure> {
    let store = Store::new(&config.models);
    let mut manifests = store.all()?;
    if !names.is_empty() {
        let catalogue = Catalogue::load(&config.home)?;
        for name in names {
            if manifests.iter().all(|manifest| manifest.name != *name) {
                return Err(not_here(name, &catalogue));
            }
        }
        manifests.retain(|manifest| names.contains(&manifest.name));
    }
    if manifests.is_empty() {
        output.note("no models yet");
    }
    let mut verdicts = Vec::new();
    for manifest in manifests {
        let problem = download::damage(&store, &manifest, output).await;
        if !output.is_json() {
            match &problem {
                None => output.marked(Mark::Good, "ok", &manifest.name),
                Some(problem) => output.marked(Mark::Bad, "damaged", format_args!("{}: {problem}", manifest.name)),
            }
        }
        verdicts.push(Verdict {
            name: manifest.name,
            ok: problem.is_none(),
            problem,
        });
    }
    if output.is_json() {
        output.json(&verdicts);
    }
    let damaged: Vec<&str> = verdicts
        .iter()
        .filter(|verdict| !verdict.ok)
        .map(|verdict| verdict.name.as_str())
        .collect();
    match damaged.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(Failure::task(
            format!("damaged: {}", damaged.join(", ")),
            format!("fetch it anew with `hivectl models download --force {first}`"),
        )),
    }
}

async fn remove(config: &Config, output: &Output, names: &[ModelName]) -> Result<(), Failure> {
    let store = Store::new(&config.models);
    for name in names {
        if store.recorded(name).is_none() {
            return Err(not_here(name, &Catalogue::load(&config.home)?));
        }
        let users = users(config, &store.folder(name));
        if let [first, ..] = users.as_slice() {
            return Err(Failure::task(
                format!("{name} is in use by {}", users.join(", ")),
                format!("stop the worker first: `hivectl worker stop {first}`, or `hivectl down` for the whole hive"),
            ));
        }
    }
    let mut removed = Vec::new();
    for name in names {
        let waiting = || output.note(format_args!("{name} is being downloaded; waiting for that to end"));
        let freed = store.draft(name, waiting).await?.remove()?;
        if !output.is_json() {
            output.line(format_args!("removed {name} ({})", HumanBytes(freed)));
        }
        removed.push(name);
    }
    if output.is_json() {
        output.json(&removed);
    }
    Ok(())
}

/// The workers of this hive that live and run on a model in that folder.
fn users(config: &Config, folder: &Path) -> Vec<String> {
    let runs = state::workers(config)
        .into_iter()
        .filter(|run| process::is_alive(&run.process));
    runs.filter(|run| {
        run.spec
            .model_path
            .as_ref()
            .is_some_and(|path| path.starts_with(folder))
    })
    .map(|run| run.spec.id.to_string())
    .collect()
}

fn not_here(name: &ModelName, catalogue: &Catalogue) -> Failure {
    let next = match catalogue.get(name.as_str()) {
        Some(_) => format!("download it first: `hivectl models download {name}`"),
        None => "see what there is with `hivectl models list`".into(),
    };
    Failure::usage(format!("there is no model called {name} in the store"), next)
}
