//! `--state-file`: who this worker is and where it stands, for whoever started it. Never a token.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use crate::state::Worker;

#[derive(Serialize)]
struct StateFile<'a> {
    pid: u32,
    id: &'a str,
    model: &'a str,
    url: &'a str,
    state: &'static str,
    message: Option<String>,
}

/// Keeps the file until the returned guard is dropped; then the file goes.
pub fn keep(path: PathBuf, worker: Arc<Worker>) -> Keeper {
    let file = path.clone();
    let task = tokio::spawn(async move {
        let mut life = worker.life.subscribe();
        loop {
            let now = life.borrow_and_update().clone();
            let content = StateFile {
                pid: std::process::id(),
                id: worker.id.as_str(),
                model: worker.model.as_str(),
                url: &worker.url,
                state: now.state.as_str(),
                message: now.message,
            };
            if let Err(error) = write(&file, &content) {
                tracing::warn!(%error, path = %file.display(), "the state file could not be written");
            }
            if life.changed().await.is_err() {
                return;
            }
        }
    });
    Keeper { path, task }
}

/// Keeps the file while it lives.
pub struct Keeper {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Replaces the file in one step, so that nobody reads half of it.
fn write(path: &Path, content: &StateFile) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, serde_json::to_vec(content)?)?;
    std::fs::rename(&new, path)
}
