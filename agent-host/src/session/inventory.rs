//! What this host reports of itself: what it has, what is free, what is wrong with it, what is held.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devfleet_proto::v1::{Hold, HostInventory};
use devfleet_shared::attempt::Phase;
use devfleet_shared::clock::Timestamp;
use devfleet_shared::error::Chain;
use devfleet_shared::resources::Resources;

use crate::attempt::Surroundings;
use crate::disk::{self, Space};
use crate::engine::{EngineFacts, FoundObject, Labels, ObjectKind, label};
use crate::supervisor::SupervisorHandle;

/// How many recipes and mirrors are listed by name at most.
const LISTED: usize = 1_000;

/// Looks at the host.
#[derive(Clone)]
pub struct Inventory {
    /// What attempts share.
    pub around: Arc<Surroundings>,
    /// What is here.
    pub supervisor: SupervisorHandle,
    /// Where the mirrors lie.
    pub mirrors: PathBuf,
}

impl Inventory {
    /// Returns what the host is like right now. An engine that does not answer is a problem, not an error.
    pub async fn look(&self) -> HostInventory {
        let mut inventory = HostInventory {
            host_version: env!("CARGO_PKG_VERSION").to_owned(),
            caches: directories(&self.mirrors).len() as u64 + self.around.caches.count(),
            mirrors: directories(&self.mirrors).into_iter().take(LISTED).collect(),
            holds: self.holds(),
            ..HostInventory::default()
        };
        match self.around.engine.facts().await {
            Ok(facts) => self.add_engine(&mut inventory, facts).await,
            Err(error) => inventory.problems.push(sentence(&error)),
        }
        inventory
    }

    async fn add_engine(&self, inventory: &mut HostInventory, facts: EngineFacts) {
        let known = self.around.engine_disk.clone().or_else(|| disk::of_engine(&facts));
        let engine_disk = known.unwrap_or_else(|| self.around.data_dir.clone());
        let disks: Vec<(&str, Space)> = [("the engine's disk", &engine_disk), ("the data disk", &self.around.data_dir)]
            .into_iter()
            .filter_map(|(name, path)| match (self.around.gauge)(path) {
                Ok(space) => Some((name, space)),
                Err(error) => {
                    inventory.problems.push(sentence(&error));
                    None
                }
            })
            .collect();
        inventory.problems.extend(disk::problems(&disks));
        if let Some((_, space)) = disks.first() {
            let total = disk::total(&facts, space, self.around.slots);
            let free = match inventory.problems.is_empty() {
                true => disk::free(total, self.supervisor.reserved().await, space),
                false => Resources::default(),
            };
            (inventory.total, inventory.free) = (Some((&total).into()), Some((&free).into()));
        }
        self.add_images(inventory).await;
        inventory.engine_version = facts.version;
        inventory.engine_api = facts.api;
        inventory.storage_driver = facts.storage_driver;
        inventory.runtimes = facts.runtimes.into_iter().collect();
    }

    async fn add_images(&self, inventory: &mut HostInventory) {
        let ours = Labels::from([(label::APP.into(), label::APP_VALUE.into())]);
        let found = self.around.engine.list(&ours).await.unwrap_or_default();
        let kept = |found: &&FoundObject| {
            found.object.kind == ObjectKind::Image && found.labels.contains_key(label::IMAGE_KEY)
        };
        let kept: Vec<_> = found.iter().filter(kept).collect();
        inventory.images = kept.len() as u64;
        let recipes: BTreeSet<_> = kept.iter().filter_map(|found| found.labels.get(label::RECIPE)).collect();
        inventory.recipes = recipes.into_iter().take(LISTED).cloned().collect();
    }

    fn holds(&self) -> Vec<Hold> {
        let held =
            self.supervisor.board().all().into_iter().filter_map(|report| match (report.phase, report.held_until) {
                (Phase::Ended(_), Some(Timestamp(until_unix_ms))) => Some(Hold {
                    attempt: report.claim.attempt.to_string(),
                    job: report.claim.job.to_string(),
                    until_unix_ms,
                }),
                _ => None,
            });
        held.collect()
    }
}

fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    format!("this host failed to {}", Chain(error))
}

fn directories(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}
