//! Watches: a cursor that moves through history, first in the file, then in memory, and waits at the end.
//!
//! Nothing is pushed to a watch, so a slow one loses nothing: it finds what it missed where history is kept, unless
//! that was compacted, which it is told.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;

use super::state::Events;
use super::writer::Shared;
use crate::store::{Revision, StoreError, WatchEvent};

const PAGE_EVENTS: usize = 256;

struct Cursor {
    shared: Arc<Shared>,
    heads: watch::Receiver<Revision>,
    prefix: String,
    next: Revision,
    ready: VecDeque<WatchEvent>,
    ended: bool,
}

/// Streams changes under a prefix from a revision on; ends when the store is dropped, and after an error.
pub(super) fn watch(
    shared: Arc<Shared>,
    heads: watch::Receiver<Revision>,
    prefix: &str,
    from: Revision,
) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
    let (prefix, ready) = (prefix.to_owned(), VecDeque::new());
    let cursor = Cursor { shared, heads, prefix, next: from, ready, ended: false };
    stream::unfold(cursor, Cursor::step).boxed()
}

impl Cursor {
    async fn step(mut self) -> Option<(Result<WatchEvent, StoreError>, Cursor)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            if self.ended {
                return None;
            }
            let next = self.next;
            if self.heads.wait_for(|head| *head >= next).await.is_err() {
                return None;
            }
            if let Err(error) = self.advance().await {
                self.ended = true;
                return Some((Err(error), self));
            }
        }
    }

    /// Takes the next page of history.
    async fn advance(&mut self) -> Result<(), StoreError> {
        let recent = {
            let state = self.shared.state();
            check_kept(self.next, state.oldest)?;
            state.recent(self.next)
        };
        let page = match recent {
            Some(page) => page,
            None => self.read().await?,
        };
        if page.first().is_none_or(|(revision, _)| *revision != self.next) {
            return Err(StoreError::Unavailable("history has a gap".into()));
        }
        for (revision, events) in page {
            self.next = revision + 1;
            self.ready.extend(events.iter().filter(|event| key(event).starts_with(&self.prefix)).cloned());
        }
        Ok(())
    }

    async fn read(&self) -> Result<Vec<(Revision, Events)>, StoreError> {
        let (shared, next) = (Arc::clone(&self.shared), self.next);
        let reading = tokio::task::spawn_blocking(move || {
            let mut page = shared.history(next, PAGE_EVENTS)?;
            let state = shared.state();
            // Compacted while it was read: there may be a gap.
            check_kept(next, state.oldest)?;
            // Durable but not yet shown to readers.
            page.retain(|(revision, _)| *revision <= state.head);
            Ok(page)
        });
        reading.await.unwrap_or_else(|error| Err(StoreError::Unavailable(Box::new(error))))
    }
}

/// Refuses a revision that history does not reach back to.
pub(super) fn check_kept(asked: Revision, oldest: Revision) -> Result<(), StoreError> {
    if asked < oldest { Err(StoreError::Compacted { asked, oldest }) } else { Ok(()) }
}

fn key(event: &WatchEvent) -> &str {
    match event {
        WatchEvent::Put(entry) => &entry.key,
        WatchEvent::Deleted { key, .. } => key,
    }
}
