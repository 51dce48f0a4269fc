//! Removes what nobody owns any more: objects on the engine and folders of attempts that are over.
//!
//! What may go is decided by `plan`, from a listing and a snapshot of who owns what. The protection window covers what
//! is being made right now: its owner may be younger than the snapshot. Images are kept on purpose, they are the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;
use devfleet_shared::id::{AttemptId, HostId};

use crate::caches::sealed_layers;
use crate::engine::{EngineError, FoundObject, Labels, ObjectKind, ObjectRef, SharedEngine, label};
use crate::environment::remove_all;

/// How long what a build left behind stays if it names no host: another host on the engine may build on it.
const SHARED_LEFTOVERS: Duration = Duration::from_secs(86_400);

/// What is to become of one object, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The object.
    pub object: ObjectRef,
    /// The attempt that made it, where its labels say so.
    pub attempt: Option<AttemptId>,
    /// Whether it goes.
    pub remove: bool,
    /// Why, in a sentence.
    pub reason: String,
}

/// Decides what becomes of each object of this host.
///
/// `found` carries this host's labels, or a build's; what is younger than `protection` stays.
pub fn plan(found: &[FoundObject], ownership: &Ownership, now: Timestamp, protection: Duration) -> Vec<Verdict> {
    let judge = Judge { ownership, now, protection };
    found.iter().map(|found| judge.verdict(found)).collect()
}

struct Judge<'a> {
    ownership: &'a Ownership,
    now: Timestamp,
    protection: Duration,
}

impl Judge<'_> {
    fn verdict(&self, found: &FoundObject) -> Verdict {
        let attempt = found.labels.get(label::ATTEMPT).and_then(|text| text.parse::<AttemptId>().ok());
        let (remove, reason) = match &attempt {
            Some(attempt) => self.judge_attempt(found, attempt),
            None => self.judge_layer(found).unwrap_or_else(|| judge_leftover(found, self.now, self.protection)),
        };
        Verdict { object: found.object.clone(), attempt, remove, reason }
    }

    /// Judges a layer of a dependency cache, which only its manifest makes one.
    fn judge_layer(&self, found: &FoundObject) -> Option<(bool, String)> {
        if found.labels.get(label::ROLE).map(String::as_str) != Some(label::CACHE_ROLE) {
            return None;
        }
        if self.ownership.layers.contains(&found.object.name) {
            return Some((false, "It is a sealed cache, kept on purpose for the next job.".into()));
        }
        let filler = found.labels.get(label::CACHE_FILLER).and_then(|text| text.parse::<AttemptId>().ok());
        if let Some(attempt) = filler.filter(|attempt| self.ownership.owned.contains(attempt)) {
            return Some((false, format!("Attempt {attempt} is filling this cache.")));
        }
        let (young, age) = age(found, self.now, self.protection);
        Some(match young {
            true => (false, format!("It is a cache that was never sealed, but it is {age}: it may be in the making.")),
            false => (true, format!("It is a cache that was never sealed, and it is {age}.")),
        })
    }

    fn judge_attempt(&self, found: &FoundObject, attempt: &AttemptId) -> (bool, String) {
        if self.ownership.owned.contains(attempt) {
            return (false, format!("Attempt {attempt} is under way."));
        }
        if let Some(until) = self.ownership.holds.get(attempt)
            && self.now < *until
        {
            return (false, format!("A person holds attempt {attempt} until {until}."));
        }
        // The label was written by the owner, with the whole attempt's time in it. Past that no owner can still be on
        // its way here, which is all that the protection window is for.
        if let Some(expires) = moment(&found.labels, label::EXPIRES)
            && expires <= self.now
        {
            return (true, format!("Nobody owns attempt {attempt}, and its time was over at {expires}."));
        }
        let (young, age) = age(found, self.now, self.protection);
        if young {
            return (false, format!("Nobody owns attempt {attempt}, but it is {age}: it may be in the making."));
        }
        (true, format!("Nobody owns attempt {attempt}, and it is {age}."))
    }
}

/// Judges what belongs to no attempt: images, and what a build left behind.
fn judge_leftover(found: &FoundObject, now: Timestamp, protection: Duration) -> (bool, String) {
    let nameless = found.object.kind == ObjectKind::Image && found.object.name.starts_with("sha256:");
    if found.object.kind == ObjectKind::Image && !nameless {
        return (false, "Images are kept on purpose: the next job with the same recipe starts at once.".into());
    }
    if found.in_use {
        return (false, "It belongs to no attempt, but it is in use: a build is under way.".into());
    }
    let shared = !found.labels.contains_key(label::HOST);
    let (young, age) = age(found, now, if shared { protection.max(SHARED_LEFTOVERS) } else { protection });
    if young {
        return (false, format!("It belongs to no attempt, but it is {age}: a build may be under way."));
    }
    let what = if nameless { "It is an image without a name, left by a build" } else { "It was left by a build" };
    (true, format!("{what}, and it is {age}."))
}

/// Says whether something is inside the protection window, and its age in words. What has no known age is young.
fn age(found: &FoundObject, now: Timestamp, protection: Duration) -> (bool, String) {
    // The later of the two: what the owner wrote down is when the attempt began, not when this object was made.
    let made = found.created.max(moment(&found.labels, label::CREATED));
    match made {
        None => (true, "of unknown age".into()),
        Some(made) => {
            let age = now.since(made);
            (age < protection, format!("{} s old", age.as_secs()))
        }
    }
}

fn moment(labels: &Labels, name: &str) -> Option<Timestamp> {
    labels.get(name)?.parse().ok().map(Timestamp)
}

/// Returns the folder for an attempt's temporary files. The sweeper removes it when nobody owns the attempt.
pub fn temp_dir(data_dir: &Path, attempt: &AttemptId) -> PathBuf {
    temp_root(data_dir).join(format!("devbox-{attempt}"))
}

fn temp_root(data_dir: &Path) -> PathBuf {
    data_dir.join("tmp")
}

/// Why a sweep could not be carried out. Objects that resist do not stop it; they are in the report.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The engine cannot say what is there.
    #[error("list what is on the engine")]
    List(#[source] EngineError),
    /// The folder of temporary files cannot be read.
    #[error("list {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: std::io::Error,
    },
}

/// What a sweep saw and did.
#[derive(Debug, Default)]
pub struct Report {
    /// Every object of ours, and what became of it.
    pub verdicts: Vec<Verdict>,
    /// Folders of attempts that nobody owns.
    pub folders: Vec<PathBuf>,
    /// How many of both are gone now.
    pub removed: usize,
    /// What should have gone and is still there; the next sweep tries again.
    pub resists: Vec<String>,
}

/// Who owns what, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Ownership {
    /// The attempts that run here or are being torn down.
    pub owned: BTreeSet<AttemptId>,
    /// Environments left standing on purpose, and until when.
    pub holds: BTreeMap<AttemptId, Timestamp>,
    /// Volumes that are sealed layers of dependency caches. The sweeper reads them itself.
    pub layers: BTreeSet<String>,
}

/// One host's sweeper.
pub struct Sweeper<'a> {
    /// The engine.
    pub engine: &'a SharedEngine,
    /// The host whose objects it looks at.
    pub host: &'a HostId,
    /// The host daemon's data directory.
    pub data_dir: &'a Path,
    /// How long what nobody owns is left alone.
    pub protection: Duration,
}

impl Sweeper<'_> {
    /// Lists, decides, and removes unless `dry_run`.
    ///
    /// `owners` answers who owns what; it is asked after the listing, so that whatever was listed had its owner by then.
    /// Fails if the engine cannot be asked: in doubt nothing is removed.
    pub async fn sweep(
        &self,
        owners: &(dyn Fn() -> Ownership + Send + Sync),
        now: Timestamp,
        dry_run: bool,
    ) -> Result<Report, SweepError> {
        let found = self.found().await?;
        let folders = self.folders()?;
        let mut ownership = owners();
        ownership.layers.extend(sealed_layers(self.data_dir));
        let mut report = Report {
            verdicts: plan(&found, &ownership, now, self.protection),
            folders: stale_folders(folders, &ownership, now, self.protection),
            ..Report::default()
        };
        if !dry_run {
            self.remove_objects(&mut report).await?;
            remove_folders(&mut report).await;
        }
        Ok(report)
    }

    /// Lists what is this host's, and what a build left behind, which names no host: hosts on one engine share it.
    async fn found(&self) -> Result<Vec<FoundObject>, SweepError> {
        let ours = Labels::from([(label::APP.into(), label::APP_VALUE.into())]);
        let mut found = self.engine.list(&ours).await.map_err(SweepError::List)?;
        found.retain(|found| found.labels.get(label::HOST).is_none_or(|host| *host == self.host.as_str()));
        Ok(found)
    }

    async fn remove_objects(&self, report: &mut Report) -> Result<(), SweepError> {
        let doomed: BTreeSet<ObjectRef> =
            report.verdicts.iter().filter(|verdict| verdict.remove).map(|verdict| verdict.object.clone()).collect();
        if doomed.is_empty() {
            return Ok(());
        }
        remove_all(self.engine, doomed.iter().cloned().collect()).await;
        // What is gone is what a second look no longer finds, not what the engine said at the removal.
        let left = self.found().await?;
        let resists: Vec<_> =
            left.into_iter().map(|found| found.object).filter(|object| doomed.contains(object)).collect();
        report.removed += doomed.len() - resists.len();
        report.resists.extend(resists.into_iter().map(|object| object.name));
        Ok(())
    }

    /// Returns the attempts that have a folder here, and when it was last changed.
    fn folders(&self) -> Result<Vec<(AttemptId, PathBuf, Timestamp)>, SweepError> {
        let root = temp_root(self.data_dir);
        let failed = |source| SweepError::Folder { path: root.clone(), source };
        let entries = match std::fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut folders = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let attempt = name.to_str().and_then(|name| name.strip_prefix("devbox-")).and_then(|id| id.parse().ok());
            if let (Some(attempt), Ok(metadata)) = (attempt, entry.metadata()) {
                folders.push((attempt, entry.path(), changed(&metadata)));
            }
        }
        Ok(folders)
    }
}

fn changed(metadata: &std::fs::Metadata) -> Timestamp {
    use std::os::unix::fs::MetadataExt as _;
    Timestamp(u64::try_from(metadata.mtime()).unwrap_or(0).saturating_mul(1_000))
}

fn stale_folders(
    folders: Vec<(AttemptId, PathBuf, Timestamp)>,
    ownership: &Ownership,
    now: Timestamp,
    protection: Duration,
) -> Vec<PathBuf> {
    let held = |attempt: &AttemptId| ownership.holds.get(attempt).is_some_and(|until| now < *until);
    let stale = folders.into_iter().filter(|(attempt, _, changed)| {
        !ownership.owned.contains(attempt) && !held(attempt) && now.since(*changed) >= protection
    });
    stale.map(|(_, path, _)| path).collect()
}

async fn remove_folders(report: &mut Report) {
    for path in &report.folders {
        match tokio::fs::remove_dir_all(path).await {
            Ok(()) => report.removed += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => report.removed += 1,
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "a folder resists its removal");
                report.resists.push(path.display().to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000);
    const PROTECTION: Duration = Duration::from_secs(600);

    fn attempt(number: u8) -> AttemptId {
        format!("{number:08x}").parse().expect("an id")
    }

    fn object(kind: ObjectKind, of: Option<u8>, age_s: u64) -> FoundObject {
        let mut labels = Labels::from([(label::HOST.into(), "h".into())]);
        if let Some(of) = of {
            labels.insert(label::ATTEMPT.into(), attempt(of).to_string());
        }
        let created = Some(Timestamp(NOW.0 - age_s * 1_000));
        FoundObject {
            object: ObjectRef { kind, name: format!("x{age_s}") },
            labels,
            created,
            in_use: false,
            paused: false,
            subnet: None,
        }
    }

    fn check(found: FoundObject, remove: bool, reason: &str) {
        let owned = BTreeSet::from([attempt(1)]);
        let holds = BTreeMap::from([(attempt(2), NOW.after(PROTECTION)), (attempt(3), NOW)]);
        let ownership = Ownership { owned, holds, layers: BTreeSet::from(["sealed".to_owned()]) };
        let verdicts = plan(std::slice::from_ref(&found), &ownership, NOW, PROTECTION);
        assert_eq!(verdicts.len(), 1);
        assert_eq!(verdicts[0].remove, remove, "{found:?}: {}", verdicts[0].reason);
        assert!(verdicts[0].reason.contains(reason), "{:?} lacks {reason:?}", verdicts[0].reason);
        assert!(verdicts[0].reason.ends_with('.'), "{:?} is no sentence", verdicts[0].reason);
    }

    #[test]
    fn every_object_gets_its_verdict_and_a_reason() {
        use ObjectKind::*;
        check(object(Container, Some(1), 100_000), false, "under way");
        check(object(Network, Some(2), 100_000), false, "holds attempt");
        check(object(Volume, Some(3), 100_000), true, "Nobody owns");
        check(object(Container, Some(4), 599), false, "in the making");
        check(object(Container, Some(4), 600), true, "600 s old");
        check(FoundObject { created: None, ..object(Volume, Some(4), 9_999) }, false, "unknown age");
        let named = ObjectRef { kind: Image, name: "devfleet/box:0".into() };
        check(FoundObject { object: named, ..object(Image, None, 100_000) }, false, "kept on purpose");
        let nameless = ObjectRef { kind: Image, name: "sha256:0".into() };
        check(FoundObject { object: nameless.clone(), ..object(Image, None, 600) }, true, "without a name");
        check(FoundObject { object: nameless.clone(), ..object(Image, None, 1) }, false, "build may be");
        check(FoundObject { object: nameless, in_use: true, ..object(Image, None, 9_999) }, false, "in use");
        check(FoundObject { in_use: true, ..object(Container, None, 9_999) }, false, "build is under way");
        check(object(Container, None, 9_999), true, "left by a build");
        let layer = |name: &str, filler: u8, age| {
            let mut found = object(Volume, None, age);
            found.object.name = name.into();
            found.labels.insert(label::ROLE.into(), label::CACHE_ROLE.into());
            found.labels.insert(label::CACHE_FILLER.into(), attempt(filler).to_string());
            found
        };
        check(layer("sealed", 4, 9_999), false, "kept on purpose");
        check(layer("other", 1, 9_999), false, "is filling");
        check(layer("other", 4, 599), false, "in the making");
        check(layer("other", 4, 600), true, "never sealed");
        let shared = |age| FoundObject { labels: Labels::new(), ..object(Container, None, age) };
        check(shared(86_399), false, "build may be");
        check(shared(86_400), true, "left by a build");
    }

    #[test]
    fn past_its_time_an_unowned_object_goes_at_once_and_an_owned_one_never() {
        let expired = |of| {
            let mut found = object(ObjectKind::Container, Some(of), 1);
            found.labels.insert(label::EXPIRES.into(), NOW.0.to_string());
            found
        };
        check(expired(4), true, "its time was over");
        check(expired(1), false, "under way");
        check(expired(2), false, "holds");
    }

    fn any_found() -> impl Strategy<Value = FoundObject> {
        let kind = prop_oneof![
            Just(ObjectKind::Container),
            Just(ObjectKind::Network),
            Just(ObjectKind::Volume),
            Just(ObjectKind::Image)
        ];
        (kind, prop::option::of(0u8..6), 0u64..2_000, any::<bool>(), prop::option::of(0u64..2_000_000_000)).prop_map(
            |(kind, of, age, in_use, expires)| {
                let mut found = FoundObject { in_use, ..object(kind, of, age) };
                if let Some(expires) = expires {
                    found.labels.insert(label::EXPIRES.into(), expires.to_string());
                }
                found
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_owned_held_or_young_ever_goes(
            found in prop::collection::vec(any_found(), 0..20),
            owned in prop::collection::btree_set((0u8..6).prop_map(attempt), 0..4),
            holds in prop::collection::btree_map((0u8..6).prop_map(attempt), (0u64..2_000_000_000).prop_map(Timestamp), 0..4),
        ) {
            let ownership = Ownership { owned, holds, layers: BTreeSet::new() };
            let verdicts = plan(&found, &ownership, NOW, PROTECTION);
            let (owned, holds) = (&ownership.owned, &ownership.holds);
            prop_assert_eq!(verdicts.len(), found.len());
            for (verdict, found) in verdicts.iter().zip(&found).filter(|(verdict, _)| verdict.remove) {
                if let Some(attempt) = &verdict.attempt {
                    prop_assert!(!owned.contains(attempt));
                    prop_assert!(holds.get(attempt).is_none_or(|until| *until <= NOW));
                }
                let young = found.created.is_none_or(|created| NOW.since(created) < PROTECTION);
                let expired = moment(&found.labels, label::EXPIRES).is_some_and(|expires| expires <= NOW);
                prop_assert!(!young || (expired && verdict.attempt.is_some()));
            }
            prop_assert_eq!(plan(&found, &ownership, NOW, PROTECTION), verdicts);
        }
    }
}
