//! The recorder against an engine that keeps output and a daemon that is killed at any moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use devfleet_host::engine::OutputFrame;
use devfleet_host::output::Recorder;
use devfleet_host::spool::{Spool, Spools};
use devfleet_proto::v1::LogRecord;
use devfleet_proto::v1::log_record::Channel;
use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{AttemptId, JobId};
use devfleet_shared::mask::{Masker, Needles};
use devfleet_shared::secret::Secret;
use proptest::prelude::*;

const SECRET: &str = "canary-secret-aabaab";

struct Bench {
    dir: tempfile::TempDir,
    job: JobId,
    attempt: AttemptId,
    clock: Clock,
    limit_bytes: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().expect("folder"),
            job: JobId::random(),
            attempt: AttemptId::random(),
            clock: Clock::fixed(Timestamp(1_700_000_000_000)),
            limit_bytes: 1 << 20,
        }
    }

    fn spool(&self) -> Spool {
        let spools = Spools::open_dir(self.dir.path().to_owned()).expect("folder");
        spools.open(&self.job, &self.attempt, 1).expect("spool")
    }

    /// Opens everything as a fresh process does.
    fn recorder(&self) -> Recorder {
        let mut recorder = Recorder::open(self.spool(), self.limit_bytes, self.clock.clone()).expect("recorder");
        recorder.add_secrets(&[Secret::new(SECRET)]).expect("strong");
        recorder
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.attempt))
    }

    fn records(&self) -> Vec<LogRecord> {
        let mut all = Vec::new();
        self.spool().records(|record| all.push(record)).expect("readable");
        all
    }

    fn bytes(&self, source: &str, channel: Channel) -> Vec<u8> {
        let of = |record: &&LogRecord| record.source == source && record.channel() == channel;
        self.records().iter().filter(of).flat_map(|record| record.data.clone()).collect()
    }

    fn texts(&self, channel: Channel) -> Vec<String> {
        let of = |record: &&LogRecord| record.channel() == channel;
        self.records().iter().filter(of).map(|record| String::from_utf8_lossy(&record.data).into_owned()).collect()
    }
}

fn stamp(nanos: u64) -> String {
    format!("2026-01-01T00:00:00.{nanos:09}Z")
}

fn frame(nanos: u64, is_error: bool, data: impl Into<Bytes>) -> OutputFrame {
    OutputFrame { is_error, stamp: Some(stamp(nanos)), data: data.into() }
}

fn masked(text: &[u8]) -> Vec<u8> {
    let mut masker = Masker::new(Arc::new(Needles::new(&[Secret::new(SECRET)]).expect("strong")));
    [masker.push(text).bytes, masker.flush().bytes].concat()
}

fn on_disk(dir: &Path) -> Vec<u8> {
    let files = std::fs::read_dir(dir).expect("folder").map(|entry| entry.expect("entry").path());
    files.flat_map(|path| std::fs::read(path).expect("file")).collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn output_is_masked_per_channel_before_it_touches_the_disk() {
    let bench = Bench::new();
    let mut recorder = bench.recorder();
    let (left, right) = SECRET.split_at(9);
    recorder.frame("agent", &frame(1, false, format!("out {left}"))).expect("frame");
    recorder.frame("agent", &frame(2, true, format!("err {left}"))).expect("frame");
    recorder.frame("agent", &frame(3, false, format!("{right}\n"))).expect("frame");
    recorder.frame("agent", &frame(4, true, "no\n")).expect("frame");
    recorder.note(&format!("cloning with {SECRET}")).expect("note");
    recorder.end_source("agent").expect("end");
    assert_eq!(bench.bytes("agent", Channel::Out), b"out [masked]\n");
    assert_eq!(bench.bytes("agent", Channel::Err), format!("err {left}no\n").into_bytes());
    assert_eq!(bench.texts(Channel::Note), ["cloning with [masked]"]);
    assert!(!contains(&on_disk(bench.dir.path()), SECRET.as_bytes()));
    assert_eq!(recorder.tail("agent"), format!("out err [masked]\n{left}no\n"));
}

#[test]
fn a_weak_secret_is_refused_and_the_others_stay_masked() {
    let bench = Bench::new();
    let mut recorder = bench.recorder();
    let weak = recorder.add_secrets(&[Secret::new("strong-enough"), Secret::new("weak")]).expect_err("weak");
    assert_eq!(weak.number, 2, "as the caller counts");
    recorder.frame("agent", &frame(1, false, SECRET)).expect("frame");
    recorder.end_source("agent").expect("end");
    assert_eq!(bench.bytes("agent", Channel::Out), b"[masked]");
}

#[test]
fn binary_and_endless_lines_survive_in_records_of_bounded_size() {
    let bench = Bench::new();
    let mut recorder = bench.recorder();
    let text: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    recorder.frame("agent", &frame(1, false, text.clone())).expect("frame");
    recorder.frame("agent", &frame(2, false, vec![0u8; 70_000])).expect("frame");
    recorder.finish().expect("finish");
    assert_eq!(bench.bytes("agent", Channel::Out), [text, vec![0; 70_000]].concat());
    assert!(bench.records().iter().all(|record| record.data.len() <= 32 * 1024));
    assert_eq!(bench.records().last().map(|record| record.channel()), Some(Channel::End));
}

#[test]
fn small_frames_are_gathered_and_time_writes_them_out_but_never_the_beginning_of_a_secret() {
    let bench = Bench::new();
    let mut recorder = bench.recorder();
    for n in 0..1000 {
        recorder.frame("agent", &frame(n, false, "tick\n")).expect("frame");
    }
    recorder.frame("agent", &frame(1000, false, &SECRET.as_bytes()[..10])).expect("frame");
    recorder.settle(bench.clock.now()).expect("settle");
    assert!(bench.records().is_empty(), "not old enough");
    bench.clock.advance(Duration::from_millis(150));
    recorder.settle(bench.clock.now()).expect("settle");
    assert_eq!(bench.records().len(), 1);
    bench.clock.advance(Duration::from_secs(3600));
    recorder.settle(bench.clock.now()).expect("settle");
    assert_eq!(bench.bytes("agent", Channel::Out), b"tick\n".repeat(1000));
}

#[test]
fn beyond_the_limit_output_is_cut_counted_and_its_end_stays_visible() {
    let bench = Bench { limit_bytes: 100_000, ..Bench::new() };
    let mut recorder = bench.recorder();
    let line = format!("{}\n", "x".repeat(99));
    for n in 0..10_000 {
        recorder.frame("agent", &frame(n, n % 10 == 9, line.clone())).expect("frame");
    }
    recorder.frame("agent", &frame(10_000, false, format!("outcome {SECRET}\n"))).expect("frame");
    assert_eq!(bench.texts(Channel::Cut).len(), 1, "people who follow are told at once");
    recorder.end_source("agent").expect("end");
    recorder.frame("verify", &frame(20_000, false, "7 passed\n")).expect("frame");
    recorder.finish().expect("finish");
    let (out, err) = (bench.bytes("agent", Channel::Out), bench.bytes("agent", Channel::Err));
    assert!(out.ends_with(b"x\noutcome [masked]\n"));
    let cuts = bench.texts(Channel::Cut);
    let cut: usize = cuts[1].split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    assert_eq!(out.len() + err.len() + cut, 1_000_000 + "outcome [masked]\n".len(), "{cuts:?}");
    assert_eq!(bench.bytes("verify", Channel::Out), b"7 passed\n");
    assert!(std::fs::metadata(bench.log()).expect("log").len() < 100_000 + 40_000 + 2 * 65_536);
}

#[test]
fn many_tiny_records_do_not_make_the_spool_larger_than_the_limit() {
    let bench = Bench { limit_bytes: 50_000, ..Bench::new() };
    let mut recorder = bench.recorder();
    for n in 0..100_000 {
        recorder.frame("agent", &frame(n, n % 2 == 0, "x")).expect("frame");
    }
    recorder.finish().expect("finish");
    assert!(std::fs::metadata(bench.log()).expect("log").len() < 300_000);
}

#[test]
fn a_reading_that_broke_off_goes_on_in_the_same_process() {
    let bench = Bench::new();
    let mut recorder = bench.recorder();
    assert_eq!(recorder.resume("agent"), None);
    let (left, right) = SECRET.split_at(7);
    let frames = [
        frame(1, false, "one "),
        frame(2, false, "two "),
        frame(2, false, left.to_owned()),
        frame(2, false, format!("{right} four ")),
        frame(3, true, "err"),
        frame(4, false, "five"),
    ];
    frames[..3].iter().for_each(|frame| recorder.frame("agent", frame).expect("frame"));
    assert_eq!(recorder.resume("agent"), None, "the other channel may have anything before");
    frames[..5].iter().for_each(|frame| recorder.frame("agent", frame).expect("frame"));
    assert_eq!(recorder.resume("agent"), Some(stamp(2)));
    frames[1..].iter().for_each(|frame| recorder.frame("agent", frame).expect("frame"));
    recorder.end_source("agent").expect("end");
    assert_eq!(bench.bytes("agent", Channel::Out), b"one two [masked] four five");
    assert_eq!(bench.bytes("agent", Channel::Err), b"err");
}

#[test]
fn what_the_engine_lost_around_a_restart_is_said() {
    let bench = Bench::new();
    let mut recorder = bench.recorder();
    recorder.frame("agent", &frame(1, false, "one")).expect("frame");
    bench.clock.advance(Duration::from_secs(1));
    recorder.frame("agent", &frame(2, false, "two")).expect("frame");
    drop(recorder);
    let mut recorder = bench.recorder();
    recorder.frame("agent", &frame(3, false, "three")).expect("frame");
    recorder.end_source("agent").expect("end");
    assert!(bench.texts(Channel::Cut)[0].contains("missing"));
}

#[test]
fn a_finished_log_takes_nothing_more_and_ending_twice_changes_nothing() {
    let bench = Bench { limit_bytes: 10, ..Bench::new() };
    let mut recorder = bench.recorder();
    let frames: Vec<_> = (0..5000).map(|n| frame(n, n % 7 == 0, "a longer line of output\n")).collect();
    frames.iter().for_each(|frame| recorder.frame("agent", frame).expect("frame"));
    recorder.end_source("agent").expect("end");
    let ended = bench.records();
    let mut again = bench.recorder();
    frames.iter().for_each(|frame| again.frame("agent", frame).expect("frame"));
    again.end_source("agent").expect("end");
    assert_eq!(bench.records().len(), ended.len(), "killed after the end of a step, before it was noted elsewhere");
    again.finish().and_then(|()| again.finish()).expect("finish");
    let finished = bench.records();
    let mut late = bench.recorder();
    late.note("late").and_then(|()| late.frame("agent", &frames[0])).and_then(|()| late.finish()).expect("ignored");
    assert_eq!(bench.records(), finished);
}

/// What an engine kept: frames of both channels, ascending, some with the same stamp.
fn kept() -> impl Strategy<Value = Vec<OutputFrame>> {
    let data = prop_oneof![
        (0..SECRET.len(), 1..=SECRET.len()).prop_map(|(from, to)| SECRET.as_bytes()[from.min(to - 1)..to].to_vec()),
        Just(SECRET.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..40),
    ];
    prop::collection::vec((0..2u64, any::<bool>(), data), 0..30).prop_map(|parts| {
        let mut at = 0;
        let next = |(step, is_error, data): (u64, bool, Vec<u8>)| {
            at += step;
            frame(at, is_error, data)
        };
        parts.into_iter().map(next).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_lost_or_doubled_however_often_the_daemon_is_killed(
        frames in kept(),
        kills in prop::collection::vec((1..12usize, any::<bool>(), 0..100u64), 0..6),
    ) {
        let bench = Bench::new();
        for (reads, written, torn) in kills {
            let mut recorder = bench.recorder();
            let from = recorder.resume("agent").unwrap_or_default();
            for frame in frames.iter().filter(|frame| frame.stamp.as_ref() >= Some(&from)).take(reads) {
                recorder.frame("agent", frame).expect("frame");
            }
            if written {
                bench.clock.advance(Duration::from_secs(1));
                recorder.settle(bench.clock.now()).expect("settle");
            }
            drop(recorder);
            let file = std::fs::File::options().write(true).open(bench.log()).expect("log");
            let length = file.metadata().expect("length").len();
            file.set_len(length.saturating_sub(torn)).expect("tear");
        }
        let mut recorder = bench.recorder();
        let from = recorder.resume("agent").unwrap_or_default();
        for frame in frames.iter().filter(|frame| frame.stamp.as_ref() >= Some(&from)) {
            recorder.frame("agent", frame).expect("frame");
        }
        recorder.finish().expect("finish");
        let mut whole: BTreeMap<bool, Vec<u8>> = BTreeMap::new();
        frames.iter().for_each(|frame| whole.entry(frame.is_error).or_default().extend(&frame.data));
        for (is_error, channel) in [(false, Channel::Out), (true, Channel::Err)] {
            let text = whole.get(&is_error).cloned().unwrap_or_default();
            prop_assert_eq!(bench.bytes("agent", channel), masked(&text));
        }
        prop_assert!(bench.texts(Channel::Cut).is_empty());
    }
}
