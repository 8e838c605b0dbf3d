//! Waiting for something to become true, with an end to it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How long a lab waits for something that takes milliseconds on a machine that is not busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `attempt` until it succeeds; its last error is the answer when `patience` is over.
///
/// # Errors
/// The last error of `attempt`.
pub fn until<T>(what: &str, patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("waited {patience:?} for {what}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
