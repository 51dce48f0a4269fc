//! How fast the recorder takes output in: masked against many secrets, gathered, and written to the spool.
//!
//! It must keep up with what programs print; the slowest acceptable pace stands here and a slower run fails.

#![expect(clippy::print_stdout, reason = "a benchmark talks to the terminal")]

use bytes::Bytes;
use devfleet_host::engine::OutputFrame;
use devfleet_host::output::Recorder;
use devfleet_host::spool::Spools;
use devfleet_shared::clock::Clock;
use devfleet_shared::id::{AttemptId, JobId};
use devfleet_shared::secret::Secret;

/// The slowest acceptable pace, in megabytes a second.
const PACE: f64 = 50.0;
/// How much is recorded, in bytes.
const AMOUNT: u64 = 100_000_000;

fn main() {
    for size in [16 * 1024, 100] {
        let pace = pace(size);
        println!("recorder, frames of {size} bytes: {pace:.0} MB/s");
        assert!(pace > PACE, "the recorder is slower than {PACE} MB/s");
    }
}

/// Records frames of this many bytes and returns the pace in megabytes a second.
fn pace(size: usize) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let spools = Spools::open_dir(folder.path().to_owned()).expect("a folder");
    let spool = spools.open(&JobId::random(), &AttemptId::random(), 1).expect("a spool");
    let clock = Clock::system();
    let mut recorder = Recorder::open(spool, 1 << 30, clock.clone()).expect("a recorder");
    let secrets: Vec<Secret> = (0..50).map(|n| Secret::new(format!("token-{n}-{}", "qwertzuiop".repeat(3)))).collect();
    recorder.add_secrets(&secrets).expect("strong secrets");
    let text = b"cargo test: running 12 of 300 tests, token-bucket ok 0123456789\n".repeat(300);
    let data = Bytes::from(text[..size].to_vec());
    let begun = clock.boot();
    for nanos in 0..AMOUNT / size as u64 {
        let stamp = Some(format!("2026-01-01T00:00:00.{nanos:09}Z"));
        recorder.frame("agent", &OutputFrame { is_error: false, stamp, data: data.clone() }).expect("a frame taken");
    }
    recorder.finish().expect("an end");
    AMOUNT as f64 / 1e6 / (clock.boot().0 - begun.0).as_secs_f64()
}
