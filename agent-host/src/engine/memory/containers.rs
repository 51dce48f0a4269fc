//! The scripted containers of the engine in memory: what they do is a function of time and of when they were killed.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{ADDRESS, End, Script};
use crate::engine::{ContainerSpec, ContainerState, Exit, Link, Mount, OutputFrame, OutputStream};

pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) input: Option<Vec<u8>>,
    pub(super) paused: bool,
    pub(super) links: Vec<Link>,
    script: Script,
    life: watch::Sender<Life>,
}

/// What happened to a container from outside.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    started: Option<Instant>,
    killed: Option<(Instant, Exit)>,
}

impl Life {
    /// Returns when and how it ends, as far as that is known.
    fn end(&self, script: &Script) -> Option<(Instant, Exit)> {
        let own = self.started.zip(script.end).map(|(started, End { after, exit })| (started + after, exit));
        match (own, self.killed) {
            (Some(own), Some(killed)) => Some(if own.0 <= killed.0 { own } else { killed }),
            (own, killed) => own.or(killed),
        }
    }
}

impl Container {
    pub(super) fn new(spec: ContainerSpec, script: Script) -> Self {
        Self { spec, input: None, paused: false, links: Vec::new(), script, life: watch::Sender::new(Life::default()) }
    }

    pub(super) fn start(&mut self, now: Instant, input: Option<&[u8]>) {
        if self.life.borrow().started.is_some() {
            return;
        }
        self.input = input.map(<[u8]>::to_vec);
        let link = |network: &String| Link {
            network: network.clone(),
            address: self.script.address.unwrap_or(ADDRESS),
            aliases: self.spec.aliases.clone(),
        };
        self.links = self.spec.network.iter().map(link).collect();
        self.life.send_modify(|life| life.started = Some(now));
    }

    pub(super) fn kill(&mut self, status: i64) {
        let exit = Exit { status, out_of_memory: false };
        self.life.send_modify(|life| {
            if life.started.is_some() && life.killed.is_none() {
                life.killed = Some((Instant::now(), exit));
            }
        });
    }

    pub(super) fn state(&self) -> ContainerState {
        let life = *self.life.borrow();
        match (life.started, life.end(&self.script)) {
            (None, _) => ContainerState::Created,
            (Some(_), Some((end, exit))) if end <= Instant::now() => ContainerState::Exited(exit),
            (Some(_), _) => {
                let address = self.links.first().map(|link| link.address);
                ContainerState::Running { address }
            }
        }
    }

    /// Resolves when the container ends.
    pub(super) fn end(&self) -> impl Future<Output = Exit> + Send + use<> {
        let (script, mut life) = (self.script.clone(), self.life.subscribe());
        async move {
            loop {
                let end = life.borrow_and_update().end(&script);
                let over = tokio::time::sleep_until(end.map_or_else(far_away, |(at, _)| at));
                tokio::select! {
                    () = over => if let Some((_, exit)) = end { return exit },
                    changed = life.changed() => if changed.is_err() {
                        return end.map_or(Exit { status: 137, out_of_memory: false }, |(_, exit)| exit);
                    },
                }
            }
        }
    }

    /// Streams the output as the script prints it, until the container ends.
    pub(super) fn output(&self, since: Option<&str>, stamped: bool) -> OutputStream {
        let frames: Vec<(Duration, OutputFrame)> = self
            .script
            .output
            .iter()
            .enumerate()
            .map(|(index, piece)| {
                let stamp = stamp(piece.after, index);
                let frame = OutputFrame { is_error: piece.is_error, stamp: Some(stamp), data: piece.data.clone() };
                (piece.after, frame)
            })
            .filter(|(_, frame)| since.is_none_or(|since| frame.stamp.as_deref().is_some_and(|stamp| stamp >= since)))
            .collect();
        let steps = stream::iter(frames).map(Some).chain(stream::iter([None]));
        let (script, life) = (self.script.clone(), self.life.subscribe());
        let printed = stream::unfold((Box::pin(steps), life), move |(mut steps, mut life)| {
            let script = script.clone();
            async move {
                let step = steps.next().await?;
                let shown = until_printed(step.as_ref().map(|(after, _)| *after), &script, &mut life).await;
                let (_, mut frame) = step.filter(|_| shown)?;
                if !stamped {
                    frame.stamp = None;
                }
                Some((Ok(frame), (steps, life)))
            }
        });
        printed.boxed()
    }

    pub(super) fn uses_volume(&self, volume: &str) -> bool {
        self.spec.mounts.iter().any(|mount| matches!(mount, Mount::Volume { name, .. } if name == volume))
    }
}

/// Waits until a piece is printed (`None`: until the container ends); false if the container ended before.
async fn until_printed(after: Option<Duration>, script: &Script, life: &mut watch::Receiver<Life>) -> bool {
    loop {
        let now = *life.borrow_and_update();
        let end = now.end(script).map(|(at, _)| at);
        let due = now.started.zip(after).map(|(started, after)| started + after);
        let next = due.into_iter().chain(end).min().unwrap_or_else(far_away);
        tokio::select! {
            () = tokio::time::sleep_until(next) => match (due, end) {
                (Some(due), end) if due <= next && end.is_none_or(|end| due <= end) => return true,
                _ => return false,
            },
            changed = life.changed() => if changed.is_err() { return false },
        }
    }
}

fn far_away() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

/// Stamps grow with time, and differ within one moment.
fn stamp(after: Duration, index: usize) -> String {
    let nanos = after.as_nanos() + index as u128;
    format!(
        "2020-01-01T{:02}:{:02}:{:02}.{:09}Z",
        nanos / 3_600_000_000_000 % 24,
        nanos / 60_000_000_000 % 60,
        nanos / 1_000_000_000 % 60,
        nanos % 1_000_000_000
    )
}
