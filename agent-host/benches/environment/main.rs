//! How fast environments come and go, beside two yardsticks in the same run: the same engine calls made raw and one
//! after the other, and docker-compose.
//!
//! Run it with `make bench`. It needs Docker, docker-compose and the test images. Everything it makes carries the labels
//! of a host of its own and is removed at the end, also after a failure or Ctrl-C.
//!
//! `DEVFLEET_BENCH_ROUNDS` (9), `DEVFLEET_BENCH_WIDTH` (20) and `DEVFLEET_BENCH_WIDE_ROUNDS` (3) say how much is
//! measured; with `DEVFLEET_BENCH_RECORD` set, the table goes into `docs/benchmarks.md` as well.

#![expect(clippy::print_stdout, reason = "a benchmark talks to the terminal")]

mod compose;
mod raw;
mod record;
mod saga;
mod table;

use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use anyhow::{Context as _, bail};
use devfleet_host::engine::docker::DockerEngine;
use devfleet_host::engine::{Labels, ObjectKind, SharedEngine, label};
use devfleet_shared::id::HostId;
use futures_util::future::try_join_all;
use tokio::signal::unix::{SignalKind, signal};

use compose::Compose;
use raw::Raw;
use saga::Saga;
use table::Measured;

/// Where Docker listens.
const SOCKET: &str = "unix:///var/run/docker.sock";
/// How often the remains are looked for at the end.
const CLEANINGS: u32 = 40;
/// The pause between two looks for remains.
const PAUSE: Duration = Duration::from_millis(500);

/// The ways that are compared, in the order of [`table::COLUMNS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Saga,
    Raw,
    Compose,
}

const WAYS: [Way; 3] = [Way::Saga, Way::Raw, Way::Compose];

/// How long one environment took to come and to go.
#[derive(Debug, Clone, Copy)]
struct Spans {
    up: Duration,
    down: Duration,
}

struct Bench {
    saga: Saga,
    raw: Raw,
    compose: Compose,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let engine: SharedEngine = Arc::new(DockerEngine::new(SOCKET));
    let host = HostId::random();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let outcome = tokio::select! {
        outcome = run(&engine, &host) => outcome,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    let cleaned = clean_up(&engine, &host).await;
    outcome.and(cleaned)
}

async fn run(engine: &SharedEngine, host: &HostId) -> anyhow::Result<()> {
    let facts = engine.facts().await.context("this needs Docker; run: deploy/setup.sh bench")?;
    let (rounds, width) = (number("DEVFLEET_BENCH_ROUNDS", 9)?, number("DEVFLEET_BENCH_WIDTH", 20)?);
    let wide_rounds = number("DEVFLEET_BENCH_WIDE_ROUNDS", 3)?;
    let bench = Bench::prepare(engine, host).await?;
    let mut measured = Measured::new(width);
    for round in 0..rounds {
        let mut spans = [None; WAYS.len()];
        for way in in_turn(round) {
            spans[way as usize] = Some(bench.once(way).await?);
        }
        progress(&format!("one at a time, round {} of {rounds}: {spans:.2?}", round + 1));
        measured.single(spans.map(|spans| spans.expect("every way had its turn")));
    }
    for round in 0..wide_rounds {
        let mut spans = [Duration::ZERO; WAYS.len()];
        for way in in_turn(round) {
            let begin = Instant::now();
            try_join_all((0..width).map(|_| bench.once(way))).await?;
            spans[way as usize] = begin.elapsed();
            progress(&format!(
                "{width} at once, round {} of {wide_rounds}: {way:?} {:.2?}",
                round + 1,
                begin.elapsed()
            ));
        }
        measured.wide(spans);
    }
    record::publish("run", &measured.table(&facts))
}

/// Returns the ways, each round beginning with another.
fn in_turn(round: usize) -> impl Iterator<Item = Way> {
    (0..WAYS.len()).map(move |at| WAYS[(round + at) % WAYS.len()])
}

impl Bench {
    /// Builds the image, and makes one environment in each way, so that every cache is warm and the raw calls have their
    /// pattern.
    async fn prepare(engine: &SharedEngine, host: &HostId) -> anyhow::Result<Bench> {
        let saga = Saga::new(engine, host)?;
        let image = saga.image().await?;
        let raw = Raw::record(&saga).await?;
        let compose = Compose::new(&image, host)?;
        let bench = Bench { saga, raw, compose };
        for way in WAYS {
            bench.once(way).await.with_context(|| format!("make an environment ({way:?})"))?;
        }
        Ok(bench)
    }

    async fn once(&self, way: Way) -> anyhow::Result<Spans> {
        match way {
            Way::Saga => self.saga.once().await,
            Way::Raw => self.raw.once().await,
            Way::Compose => self.compose.once().await,
        }
    }
}

/// Says where the run stands.
fn progress(text: &str) {
    println!("{text}");
}

fn number(variable: &str, default: usize) -> anyhow::Result<usize> {
    match std::env::var(variable) {
        Ok(text) => {
            text.parse().ok().filter(|number| *number > 0).with_context(|| format!("{variable} is no number: {text}"))
        }
        Err(_) => Ok(default),
    }
}

/// Removes everything that carries this run's labels, until nothing comes up any more: the engine finishes calls that
/// were cut short.
async fn clean_up(engine: &SharedEngine, host: &HostId) -> anyhow::Result<()> {
    let labels = labels(host);
    let mut empty = 0;
    for _ in 0..CLEANINGS {
        let found = engine.list(&labels).await.context("list what is left")?;
        empty = if found.is_empty() { empty + 1 } else { 0 };
        if empty == 3 {
            return Ok(());
        }
        for kind in [ObjectKind::Container, ObjectKind::Network, ObjectKind::Volume, ObjectKind::Image] {
            for object in found.iter().map(|found| &found.object).filter(|object| object.kind == kind) {
                // What resists is there in the next look.
                let _ = engine.remove(object).await;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("objects with the label {}={host} resist their removal", label::HOST)
}

/// The labels by which everything of this run is found.
fn labels(host: &HostId) -> Labels {
    Labels::from([(label::APP.into(), label::APP_VALUE.into()), (label::HOST.into(), host.to_string())])
}
