//! Spools after crashes and damage.

use super::*;

fn record(text: &str) -> LogRecord {
    let (source, data) = ("agent".to_owned(), text.as_bytes().to_vec());
    LogRecord { source, data, channel: Channel::Out.into(), ..LogRecord::default() }
}

fn texts(spool: &Spool) -> Vec<String> {
    let mut all = Vec::new();
    spool.records(|record| all.push(String::from_utf8_lossy(&record.data).into_owned())).expect("readable");
    all
}

struct Bench {
    dir: tempfile::TempDir,
    job: JobId,
    attempt: AttemptId,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::tempdir().expect("folder"), job: JobId::random(), attempt: AttemptId::random() }
    }

    /// Opens the folder as a fresh process does.
    fn open(&self) -> Spool {
        let spools = Spools::open_dir(self.dir.path().to_owned()).expect("folder");
        spools.open(&self.job, &self.attempt, 7).expect("spool")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.attempt))
    }
}

#[test]
fn a_record_that_a_kill_tore_is_cut_off_wherever_it_was_torn() {
    let bench = Bench::new();
    let spool = bench.open();
    ["one", "two", "three"].iter().for_each(|text| spool.append(&record(text)).expect("append"));
    let whole = fs::read(bench.log()).expect("log");
    let two = encode(&[record("one"), record("two")]).len();
    for length in two..whole.len() {
        fs::write(bench.log(), &whole[..length]).expect("tear");
        let spool = bench.open();
        assert_eq!(texts(&spool), ["one", "two"], "torn at {length}");
        assert_eq!(spool.len(), two as u64);
        spool.append(&record("again")).expect("append");
        assert_eq!(texts(&bench.open()), ["one", "two", "again"]);
    }
}

#[test]
fn a_damaged_record_cuts_off_the_rest_and_leaves_a_mark() {
    for damage in [&[0u8; 40][..], &[0xff; 40], &[0x05, 0x0a, 0x99, 0x99, 0x99, 0x99, 0x99]] {
        let bench = Bench::new();
        bench.open().append(&record("good")).expect("append");
        let mut bytes = fs::read(bench.log()).expect("log");
        bytes.extend(damage);
        bytes.extend(encode(&[record("lost")]));
        fs::write(bench.log(), bytes).expect("damage");
        let left = texts(&bench.open());
        assert_eq!(left[0], "good");
        assert!(left.len() == 2 && left[1].contains("damaged"), "{left:?}");
        assert_eq!(texts(&bench.open()), left, "the mark is left once");
    }
}

#[test]
fn after_damage_to_what_the_controller_has_new_bytes_go_behind_it() {
    let bench = Bench::new();
    let spool = bench.open();
    ["one", "two"].iter().for_each(|text| spool.append(&record(text)).expect("append"));
    spool.sync().expect("sync");
    let end = spool.len();
    spool.acknowledge(end).expect("acknowledge");
    fs::write(bench.log(), encode(&[record("one")])).expect("lose");
    let spool = bench.open();
    assert_eq!((spool.len(), spool.acknowledged()), (end, end));
    spool.append(&record("three")).expect("append");
    spool.sync().expect("sync");
    assert_eq!(spool.read(end, 1000).expect("read"), encode(&[record("three")]));
    assert_eq!(bench.open().len(), spool.len(), "and it stays so");
}

#[test]
fn only_what_is_synced_can_be_shipped() {
    let bench = Bench::new();
    let spool = bench.open();
    spool.append(&record("one")).expect("append");
    assert_eq!((spool.synced(), spool.read(0, 1000).expect("read").len()), (0, 0));
    spool.sync().expect("sync");
    assert_eq!(spool.synced(), spool.len());
    assert_eq!(spool.read(3, 4).expect("read"), encode(&[record("one")])[3..7]);
}

#[test]
fn a_spool_is_done_when_complete_and_acknowledged_and_then_leaves_nothing() {
    let bench = Bench::new();
    let spools = Spools::open_dir(bench.dir.path().to_owned()).expect("folder");
    let spool = spools.open(&bench.job, &bench.attempt, 1).expect("spool");
    spool.append(&record("one")).expect("append");
    spool.acknowledge(spool.len()).expect("acknowledge");
    assert!(!spool.is_done(), "more may come");
    spool.append(&LogRecord { channel: Channel::End.into(), ..LogRecord::default() }).expect("append");
    assert!(spool.is_complete() && !spool.is_done());
    assert!(bench.open().is_complete(), "also after a restart");
    spool.acknowledge(spool.len()).expect("acknowledge");
    assert!(spool.is_done());
    spool.remove().and_then(|()| spool.remove()).expect("remove, twice");
    spool.append(&record("late")).expect("dropped");
    spool.acknowledge(1).expect("dropped");
    assert!(spools.list().is_empty());
    assert_eq!(fs::read_dir(bench.dir.path()).expect("folder").count(), 0);
}

#[test]
fn a_new_fence_and_what_is_acknowledged_outlive_a_restart() {
    let bench = Bench::new();
    let spool = bench.open();
    spool.append(&record("one")).expect("append");
    spool.acknowledge(2).expect("acknowledge");
    let spools = Spools::open_dir(bench.dir.path().to_owned()).expect("folder");
    assert_eq!(spools.list().iter().map(|spool| (spool.fence(), spool.acknowledged())).collect::<Vec<_>>(), [(7, 2)]);
    spools.open(&bench.job, &bench.attempt, 8).expect("spool");
    let again = Spools::open_dir(bench.dir.path().to_owned()).expect("folder");
    assert_eq!(again.list()[0].fence(), 8);
}
