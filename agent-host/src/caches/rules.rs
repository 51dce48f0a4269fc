//! Which layer serves a job, who may share one, and which ones go first. Pure.

use std::collections::{BTreeMap, BTreeSet};

use devfleet_shared::assignment::Assignment;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::environment::CacheSpec;
use devfleet_shared::id::Digest;
use serde::{Deserialize, Serialize};

/// How long a layer serves that no lock file keys: nothing else would ever renew it.
const UNLOCKED_AGE_MS: u64 = 7 * 24 * 3_600_000;
/// How often every file of a layer is compared with its manifest.
const CHECK_EVERY_MS: u64 = 24 * 3_600_000;
/// The way in which layers are made. Raising it lets every layer be made anew.
const VERSION: &str = "1";

/// A sealed layer, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its volume.
    pub volume: String,
    /// Who may share it; see [`key_of`].
    pub key: Digest,
    /// The project, for people.
    pub project: String,
    /// The cached path, for people.
    pub path: String,
    /// Whether lock files key it.
    pub locked: bool,
    /// When it was sealed.
    pub sealed: Timestamp,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its files and directories.
    pub entries: u64,
    /// Over the list of its files with their digests, which lies beside the manifest.
    pub listing: Digest,
    /// When every file was last compared with the list.
    pub checked: Timestamp,
    /// When a job last used it. Not in the manifest: it is the file's time stamp.
    #[serde(skip, default = "never")]
    pub used: Timestamp,
}

fn never() -> Timestamp {
    Timestamp(0)
}

/// Returns the key of a layer: over everything that decides what `setup` puts there, and who may read it.
///
/// The base branch is the trust class: what a job on one branch installs is never read by a job on another, so that a
/// proposed change cannot put anything before a job on a protected branch. `objects` are git's names of the lock files.
pub fn key_of(assignment: &Assignment, cache: &CacheSpec, image: &str, objects: &BTreeMap<String, String>) -> Digest {
    let repository = &assignment.repository;
    let mut parts = vec![
        VERSION,
        assignment.project.as_str(),
        &repository.url,
        &repository.base_branch,
        &cache.path,
        &cache.key,
        image,
        "lock files",
    ];
    for file in &cache.lock_files {
        parts.extend([file.as_str(), objects.get(file).map_or("absent", String::as_str)]);
    }
    parts.push("setup");
    parts.extend(assignment.environment.setup.iter().map(String::as_str));
    Digest::over(parts.into_iter().map(str::as_bytes))
}

/// Says why a cached path is not mounted, if it is not: a volume would hide files of the repository, or stand where a
/// tool keeps a single file.
pub fn unmountable(path: &str, tracked: bool) -> Option<&'static str> {
    let last = path.rsplit('/').next().unwrap_or_default();
    if tracked {
        return Some("the repository has files there, which a cache would hide");
    }
    let named_like_a_file = last.trim_start_matches('.').contains('.') || matches!(last, ".eslintcache");
    (named_like_a_file || last.ends_with("lintcache")).then_some("it looks like a file, and only directories are kept")
}

/// Returns the layer that serves a key: the newest, if it is not too old.
pub fn choose<'a>(layers: &'a [Layer], key: &Digest, now: Timestamp) -> Option<&'a Layer> {
    let fresh = |layer: &&Layer| layer.locked || now.0.saturating_sub(layer.sealed.0) < UNLOCKED_AGE_MS;
    layers.iter().filter(|layer| layer.key == *key).filter(fresh).max_by_key(|layer| layer.sealed)
}

/// Returns the layers that go so that the rest fits the budget: the least recently used first, never one in use.
pub fn evict(layers: &[Layer], in_use: &BTreeSet<String>, budget_bytes: u64) -> Vec<String> {
    let mut total: u64 = layers.iter().map(|layer| layer.bytes).sum();
    let mut idle: Vec<&Layer> = layers.iter().filter(|layer| !in_use.contains(&layer.volume)).collect();
    idle.sort_by_key(|layer| (layer.used, &layer.volume));
    let mut gone = Vec::new();
    for layer in idle {
        if total <= budget_bytes {
            break;
        }
        total -= layer.bytes;
        gone.push(layer.volume.clone());
    }
    gone
}

/// Returns the layer whose files are to be compared with its manifest next, if one is due.
pub fn due(layers: &[Layer], now: Timestamp) -> Option<&Layer> {
    let due = layers.iter().filter(|layer| now.0.saturating_sub(layer.checked.0) >= CHECK_EVERY_MS);
    due.min_by_key(|layer| layer.checked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::assignments::tests::assignment;

    type Change<'a> = &'a dyn Fn(&mut Assignment, &mut CacheSpec, &mut BTreeMap<String, String>);

    fn layer(name: &str, bytes: u64, used: u64) -> Layer {
        Layer {
            volume: name.into(),
            key: Digest::of(b"k"),
            project: "p".into(),
            path: "vendor".into(),
            locked: true,
            sealed: Timestamp(used),
            bytes,
            entries: 1,
            listing: Digest::of(b""),
            checked: Timestamp(used),
            used: Timestamp(used),
        }
    }

    #[test]
    fn anything_that_could_change_what_setup_leaves_changes_the_key() {
        let base = assignment("a3f91c20", 1);
        let cache = CacheSpec { path: "vendor".into(), key: "default".into(), lock_files: vec!["lock".into()] };
        let objects = BTreeMap::from([("lock".to_owned(), "1".to_owned())]);
        let key = key_of(&base, &cache, "image", &objects);
        assert_eq!(key, key_of(&base, &cache, "image", &objects));
        let mut retry = base.clone();
        retry.task = "another".into();
        retry.repository.base_commit = "f".repeat(40);
        assert_eq!(key, key_of(&retry, &cache, "image", &objects), "what setup does not see does not count");
        let check = |change: Change<'_>| {
            let (mut base, mut cache, mut objects) = (base.clone(), cache.clone(), objects.clone());
            change(&mut base, &mut cache, &mut objects);
            assert_ne!(key, key_of(&base, &cache, "image", &objects));
        };
        check(&|base, _, _| base.project = "other".parse().expect("a name"));
        check(&|base, _, _| base.repository.url.push('x'));
        check(&|base, _, _| base.repository.base_branch = "attack".into());
        check(&|base, _, _| base.environment.setup.push("touch vendor/x".into()));
        check(&|_, cache, _| cache.path = "other".into());
        check(&|_, cache, _| cache.key = "other".into());
        check(&|_, _, objects| drop(objects.insert("lock".into(), "2".into())));
        check(&|_, _, objects| objects.clear());
        assert_ne!(key, key_of(&base, &cache, "other", &objects));
    }

    #[test]
    fn what_would_hide_files_or_replace_one_is_not_mounted() {
        for (path, tracked, mounted) in [
            ("vendor/bundle", false, true),
            ("node_modules", false, true),
            (".npm", false, true),
            ("/root/.cache/pip", false, true),
            ("vendor", true, false),
            (".eslintcache", false, false),
            ("tmp/.stylelintcache", false, false),
            ("build.tsbuildinfo", false, false),
        ] {
            assert_eq!(unmountable(path, tracked).is_none(), mounted, "{path}");
        }
    }

    #[test]
    fn without_lock_files_a_layer_serves_for_a_week() {
        let week = UNLOCKED_AGE_MS;
        let unlocked = Layer { locked: false, ..layer("a", 1, 1_000) };
        let key = &unlocked.key;
        let find = |layers: &[Layer], now| choose(layers, key, Timestamp(now)).map(|layer| layer.volume.clone());
        assert_eq!(find(std::slice::from_ref(&unlocked), 999 + week), Some("a".into()));
        assert_eq!(find(std::slice::from_ref(&unlocked), 1_000 + week), None);
        assert_eq!(find(&[layer("b", 1, 1)], 1 << 60), Some("b".into()));
        assert_eq!(find(&[layer("b", 1, 1), layer("c", 1, 2)], 5), Some("c".into()), "the newest");
        assert_eq!(choose(&[layer("b", 1, 1)], &Digest::of(b"other"), Timestamp(5)), None);
    }

    #[test]
    fn every_layer_is_looked_at_once_a_day() {
        let layers = [layer("a", 1, 10), layer("b", 1, 5)];
        assert_eq!(due(&layers, Timestamp(CHECK_EVERY_MS)), None);
        assert_eq!(due(&layers, Timestamp(CHECK_EVERY_MS + 20)).map(|layer| layer.volume.as_str()), Some("b"));
    }

    proptest! {
        #[test]
        fn eviction_ends_within_the_budget_and_spares_what_is_in_use_and_newer(
            sizes in prop::collection::vec((0u64..100, 0u64..50, any::<bool>()), 0..12), budget in 0u64..400,
        ) {
            let layers: Vec<_> =
                sizes.iter().enumerate().map(|(at, (bytes, used, _))| layer(&format!("v{at}"), *bytes, *used)).collect();
            let in_use: BTreeSet<_> =
                layers.iter().zip(&sizes).filter(|(_, (_, _, busy))| *busy).map(|(layer, _)| layer.volume.clone()).collect();
            let gone = evict(&layers, &in_use, budget);
            prop_assert!(gone.iter().all(|volume| !in_use.contains(volume)));
            let left: Vec<_> = layers.iter().filter(|layer| !gone.contains(&layer.volume)).collect();
            let total: u64 = left.iter().map(|layer| layer.bytes).sum();
            prop_assert!(total <= budget || left.iter().all(|layer| in_use.contains(&layer.volume)));
            let newest_gone = layers.iter().filter(|layer| gone.contains(&layer.volume)).map(|layer| layer.used).max();
            for layer in left.iter().filter(|layer| !in_use.contains(&layer.volume)) {
                prop_assert!(newest_gone.is_none_or(|gone| gone <= layer.used));
            }
        }
    }
}
