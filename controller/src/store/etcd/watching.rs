//! Watches that come back: from the revision after the last one seen, at another member if need be.
//!
//! A watch asks etcd for one revision earlier than it wants and skips it: what etcd keeps at its compaction revision is
//! not whole. A stream is asked for a sign of life while it is silent, and is given up if none comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use devfleet_shared::backoff::Backoff;
use devfleet_shared::error::Chain;
use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tracing::debug;

use super::errors::Failure;
use super::{Cluster, MESSAGE_BYTES, get, signed};
use crate::store::{Revision, StoreError, WatchEvent};

/// A watch that was silent for this time is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(5);
const PACE: Backoff = Backoff { first: Duration::from_millis(50), ceiling: Duration::from_secs(1) };

/// One watch.
struct Watch {
    cluster: Arc<Cluster>,
    prefix: String,
    /// The first revision that was not seen yet.
    next: Revision,
    open: Option<Open>,
    ready: VecDeque<WatchEvent>,
    tries: u32,
    ended: bool,
}

/// A watch on one member.
struct Open {
    member: usize,
    stream: WatchStream,
    asked: bool,
}

/// Opens a watch. Fails at once if the revision is no longer kept.
pub(super) async fn watch(
    cluster: Arc<Cluster>,
    prefix: String,
    from: Revision,
) -> Result<BoxStream<'static, Result<WatchEvent, StoreError>>, StoreError> {
    let (first, end) = cluster.span(&prefix);
    let at = earlier(from);
    // A revision that lies ahead is refused here, and waited for there.
    if at <= cluster.head().await? {
        let options = GetOptions::new().with_range(end).with_limit(1).with_keys_only().with_revision(signed(at));
        match cluster.members.try_read(|client| get(client, first.clone(), options.clone())).await {
            Ok(_) => {}
            Err(Failure::Compacted) => return Err(oldest(cluster, prefix, from).await),
            Err(failure) => return Err(failure.into_error()),
        }
    }
    let watch = Watch::new(cluster, prefix, from);
    Ok(stream::unfold(watch, |mut watch| async move { watch.event().await.map(|event| (event, watch)) }).boxed())
}

/// Asks etcd what it still keeps: only a watch that is refused is told.
async fn oldest(cluster: Arc<Cluster>, prefix: String, from: Revision) -> StoreError {
    let mut watch = Watch::new(cluster, prefix, from);
    match watch.event().await {
        Some(Err(error)) => error,
        _ => StoreError::Compacted { asked: from, oldest: from + 1 },
    }
}

fn earlier(from: Revision) -> Revision {
    from.saturating_sub(1).max(1)
}

impl Watch {
    fn new(cluster: Arc<Cluster>, prefix: String, from: Revision) -> Self {
        Self { cluster, prefix, next: from, open: None, ready: VecDeque::new(), tries: 0, ended: false }
    }

    /// Returns the next event. Ends after an error, which is always a compaction.
    async fn event(&mut self) -> Option<Result<WatchEvent, StoreError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            match self.look().await {
                Ok(()) => {}
                Err(Failure::Refused(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                Err(failure) => self.begin_anew(failure).await,
            }
        }
    }

    async fn begin_anew(&mut self, failure: Failure) {
        debug!(error = %Chain(&failure.into_error()), from = self.next, "a watch broke off, it is opened again");
        if let Some(open) = self.open.take() {
            self.cluster.members.give_up(open.member);
        }
        self.tries += 1;
        // sleep: the pace of tries
        tokio::time::sleep(PACE.pause(self.tries, Backoff::jitter())).await;
    }

    /// Waits for one answer, and takes it in.
    async fn look(&mut self) -> Result<(), Failure> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let open = open(&self.cluster, &self.prefix, self.next).await?;
                self.open.insert(open)
            }
        };
        match tokio::time::timeout(SILENCE, open.stream.message()).await {
            Ok(Ok(Some(answer))) => {
                open.asked = false;
                self.take(&answer)
            }
            Ok(Ok(None)) => Err(Failure::Unknown("the watch ended".into())),
            Ok(Err(error)) => Err(error.into()),
            Err(_) if open.asked => Err(Failure::Unknown("the watch gave no sign of life".into())),
            Err(_) => {
                open.asked = true;
                open.stream.request_progress().await.map_err(Failure::from)
            }
        }
    }

    fn take(&mut self, answer: &WatchResponse) -> Result<(), Failure> {
        if answer.compact_revision() > 0 {
            let oldest = answer.compact_revision().unsigned_abs() + 1;
            return Err(Failure::Refused(StoreError::Compacted { asked: self.next, oldest }));
        }
        if answer.canceled() {
            return Err(Failure::Unknown(format!("etcd ended the watch: {}", answer.cancel_reason()).into()));
        }
        self.tries = 0;
        let mut last = None;
        for event in answer.events() {
            let Some(found) = event.kv() else { continue };
            let revision = found.mod_revision().unsigned_abs();
            if revision < self.next {
                continue;
            }
            last = Some(revision);
            let Some(entry) = self.cluster.entry(found) else { continue };
            self.ready.push_back(match event.event_type() {
                EventType::Put => WatchEvent::Put(entry),
                EventType::Delete => WatchEvent::Deleted { key: entry.key, revision },
            });
        }
        // An answer holds whole revisions: the next begins behind the last of them.
        if let Some(last) = last {
            self.next = last + 1;
        }
        Ok(())
    }
}

async fn open(cluster: &Cluster, prefix: &str, next: Revision) -> Result<Open, Failure> {
    let (first, end) = cluster.span(prefix);
    let (member, client) = cluster.members.client().await?;
    let options = WatchOptions::new().with_range(end).with_start_revision(signed(earlier(next)));
    let mut watching = client.watch_client().max_decoding_message_size(MESSAGE_BYTES);
    let opening = watching.watch(first, Some(options));
    match tokio::time::timeout(SILENCE, opening).await {
        Ok(Ok(stream)) => Ok(Open { member, stream, asked: false }),
        Ok(Err(error)) => {
            cluster.members.give_up(member);
            Err(error.into())
        }
        Err(_) => {
            cluster.members.give_up(member);
            Err(Failure::Unknown("the watch was not opened in time".into()))
        }
    }
}
