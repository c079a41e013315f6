//! How far a model's files have been read, where the system counts it; the engine itself does not tell.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::Report;

/// Reports until it is dropped.
pub async fn watch(path: PathBuf, report: Report) {
    let size = size_of(&path).max(1);
    let Some(before) = bytes_read() else { return };
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        let read = bytes_read().unwrap_or(before) - before;
        #[expect(clippy::cast_precision_loss, reason = "a fraction needs no more precision")]
        let done = read as f32 / size as f32;
        if done > 0.05 && done < 0.95 {
            report("loading the weights", done);
        }
    }
}

/// Bytes of a file, or of all files in a folder.
fn size_of(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| size(&entry.path())).sum(),
        Err(_) => size(path),
    }
}

/// Bytes this process has read since its start; none where the system does not count them.
fn bytes_read() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
}
