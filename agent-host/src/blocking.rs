//! Work that blocks, on threads of its own; in line where a simulation wants every run to go the same way.

use std::sync::atomic::{AtomicBool, Ordering};

static IN_LINE: AtomicBool = AtomicBool::new(false);

/// Does such work in line from now on, in this whole process. For simulations, which have one thread.
pub fn in_line() {
    IN_LINE.store(true, Ordering::Relaxed);
}

/// Does work that blocks. Fails when the program ends, or when the work panics.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    if IN_LINE.load(Ordering::Relaxed) { Ok(work()) } else { tokio::task::spawn_blocking(work).await }
}
