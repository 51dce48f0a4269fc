//! What is known of remotes already, for all jobs of this process: many jobs of one project ask the same at once.
//!
//! Branches move, so an answer about them serves those alone who asked before git began to look. What stands in a commit does
//! not change: it is kept, within bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex as PlainMutex, MutexGuard, PoisonError};

use tokio::sync::Mutex;

use super::Refs;

/// How much of files is kept, over all remotes.
const FILES_BYTES: usize = 32 << 20;
/// What an entry takes beside its texts, about.
const ENTRY_BYTES: usize = 128;
/// How many answers about branches, and how many commits, are remembered of one remote.
const REMEMBERED: usize = 256;

static REMOTES: LazyLock<PlainMutex<BTreeMap<PathBuf, Arc<Known>>>> = LazyLock::new(Default::default);
static FILES: LazyLock<PlainMutex<Kept>> = LazyLock::new(Default::default);

/// What is known of one remote.
#[derive(Default)]
pub(super) struct Known {
    /// Held while the cache is changed: two fetches at once would trip over each other's lock files.
    pub(super) fetching: Mutex<()>,
    /// Answers about branches.
    pub(super) refs: Asked<Arc<Refs>>,
    commits: PlainMutex<BTreeSet<String>>,
}

impl Known {
    /// Returns what is known of the remote whose cache lies here.
    pub(super) fn of(cache: &Path) -> Arc<Known> {
        Arc::clone(lock(&REMOTES).entry(cache.to_owned()).or_default())
    }

    /// Says whether the cache was seen to have this commit.
    pub(super) fn has(&self, commit: &str) -> bool {
        lock(&self.commits).contains(commit)
    }

    /// Notes that the cache has this commit.
    pub(super) fn note(&self, commit: &str) {
        let mut commits = lock(&self.commits);
        if commits.len() >= REMEMBERED {
            commits.clear();
        }
        commits.insert(commit.to_owned());
    }

    /// Notes that the cache is new, and has nothing.
    pub(super) fn forget(&self) {
        lock(&self.commits).clear();
    }
}

/// Answers that are shared by those who asked before they were looked for.
#[derive(Default)]
pub(super) struct Asked<T> {
    turn: AtomicU64,
    answers: Mutex<BTreeMap<String, (u64, T)>>,
}

impl<T: Clone> Asked<T> {
    /// Answers a question: with what another found out meanwhile, if that one began after this was asked, or by looking.
    pub(super) async fn ask<E>(&self, question: String, look: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let asked = self.turn.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().await;
        if let Some((began, answer)) = answers.get(&question)
            && *began > asked
        {
            return Ok(answer.clone());
        }
        let began = self.turn.fetch_add(1, Ordering::SeqCst);
        let answer = look.await?;
        if answers.len() >= REMEMBERED {
            answers.clear();
        }
        answers.insert(question, (began, answer.clone()));
        Ok(answer)
    }
}

/// The cache, the commit, and the file's name in it.
type Place = (PathBuf, String, String);

/// Files of commits. `None`: the commit has no such file.
#[derive(Default)]
struct Kept {
    files: BTreeMap<Place, Option<Arc<[u8]>>>,
    bytes: usize,
}

/// Returns what was read of a commit, if it is kept.
pub(super) fn file(cache: &Path, commit: &str, name: &str) -> Option<Option<Vec<u8>>> {
    let key = (cache.to_owned(), commit.to_owned(), name.to_owned());
    lock(&FILES).files.get(&key).map(|content| content.as_ref().map(|bytes| bytes.to_vec()))
}

/// Keeps what was read of a commit, unless it is large.
pub(super) fn keep_file(cache: &Path, commit: &str, name: &str, content: Option<&[u8]>) {
    let names = cache.as_os_str().len() + commit.len() + name.len();
    let bytes = names + ENTRY_BYTES + content.map_or(0, <[u8]>::len);
    if bytes > FILES_BYTES / 32 {
        return;
    }
    let mut kept = lock(&FILES);
    if kept.bytes + bytes > FILES_BYTES {
        *kept = Kept::default();
    }
    let key = (cache.to_owned(), commit.to_owned(), name.to_owned());
    if kept.files.insert(key, content.map(Arc::from)).is_none() {
        kept.bytes += bytes;
    }
}

fn lock<T>(mutex: &PlainMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::future::join_all;

    use super::*;

    /// Looks, and counts how often.
    async fn look(looks: &AtomicU64) -> Result<u64, Infallible> {
        let number = looks.fetch_add(1, Ordering::SeqCst) + 1;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        Ok(number)
    }

    #[tokio::test]
    async fn an_answer_serves_those_who_asked_before_it_was_looked_for_and_nobody_else() {
        let (asked, looks) = (Asked::default(), AtomicU64::new(0));
        let many = join_all((0..20).map(|_| asked.ask("main".into(), look(&looks)))).await;
        // The first looks at once; the others asked meanwhile, and its answer may be older than their question.
        let mut expected = vec![Ok(2); 20];
        expected[0] = Ok(1);
        assert_eq!(many, expected);
        assert_eq!(asked.ask("main".into(), look(&looks)).await, Ok(3), "asked afterwards");
        let (main, other) = tokio::join!(asked.ask("main".into(), look(&looks)), asked.ask("b".into(), look(&looks)));
        assert_ne!(main, other, "another question has another answer");
    }

    #[test]
    fn of_files_only_so_many_bytes_are_kept_and_large_ones_not_at_all() {
        let cache = Path::new("/none/of-files");
        keep_file(cache, "c", "large", Some(&vec![0; FILES_BYTES / 32]));
        assert_eq!(file(cache, "c", "large"), None);
        keep_file(cache, "c", "missing", None);
        assert_eq!(file(cache, "c", "missing"), Some(None));
        for number in 0..100 {
            keep_file(cache, "c", &number.to_string(), Some(&vec![0; FILES_BYTES / 40]));
            let kept = lock(&FILES);
            let held: usize = kept.files.values().flatten().map(|content| content.len()).sum();
            assert!(held <= kept.bytes && kept.bytes <= FILES_BYTES, "{held} of {}", kept.bytes);
        }
        assert_eq!(file(cache, "c", "99").flatten().map(|content| content.len()), Some(FILES_BYTES / 40));
    }
}
