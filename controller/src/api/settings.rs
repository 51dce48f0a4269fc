//! Settings that operators change while the fleet runs. A change counts from the next plan on; jobs that run go on.

use devfleet_proto::v1;
use tonic::Status;
use tracing::info;

use super::fleet::FleetService;
use super::{invalid, record_status, store_status};
use crate::store::records::settings::{self, Settings};
use crate::store::records::{decode, put};
use crate::store::{Commit, Compare, Transaction};

/// The most jobs that may be allowed to run at once.
const MAX_RUNNING_MOST: u64 = 100_000;

/// The most failures that may be waited for: so many attempts of each host are remembered, and a few more.
const QUARANTINE_AFTER_MOST: u32 = 50;

impl FleetService {
    pub(super) fn show_settings(&self) -> v1::Settings {
        let standing = self.view.read().settings.clone().map(|(settings, _)| settings);
        let now = self.defaults.under(&self.view.read());
        v1::Settings {
            max_running: now.max_running as u64,
            max_running_default: self.defaults.max_running as u64,
            quarantine_after: now.quarantine.after,
            quarantine_after_default: self.defaults.quarantine.after,
            changed_by: standing.as_ref().map(|settings| settings.changed_by.clone()).unwrap_or_default(),
            changed_unix_ms: standing.map(|settings| settings.changed.0).unwrap_or_default(),
        }
    }

    pub(super) async fn change_settings(
        &self,
        wanted: &v1::SetSettingsRequest,
        by: &str,
    ) -> Result<v1::Settings, Status> {
        if wanted.max_running.is_some_and(|most| !(1..=MAX_RUNNING_MOST).contains(&most)) {
            let problem = format!("max-running: write a number from 1 to {MAX_RUNNING_MOST}");
            return Err(invalid("MAX_RUNNING", problem));
        }
        if wanted.quarantine_after.is_some_and(|after| after > QUARANTINE_AFTER_MOST) {
            let problem = format!("quarantine-after: write a number up to {QUARANTINE_AFTER_MOST}; 0 switches it off");
            return Err(invalid("QUARANTINE_AFTER", problem));
        }
        if wanted.max_running.is_none() && wanted.quarantine_after.is_none() && !wanted.reset {
            return Err(invalid("NO_SETTING", "say which setting to change, for example max-running"));
        }
        let key = settings::key();
        loop {
            // Compared with what stands in the store: of two changes at once neither is lost.
            let entry = self.store.get(&key).await.map_err(|error| store_status(&error))?;
            let revision = entry.as_ref().map_or(0, |entry| entry.modified);
            let standing = entry.filter(|_| !wanted.reset).map(|entry| decode::<Settings>(&key, &entry.value));
            let standing = standing.transpose().map_err(|error| record_status(&error))?.unwrap_or_default();
            let settings = Settings {
                max_running: wanted.max_running.map(|most| most as usize).or(standing.max_running),
                quarantine_after: wanted.quarantine_after.or(standing.quarantine_after),
                changed_by: by.to_owned(),
                changed: self.clock.now(),
            };
            let then = vec![put(key.clone(), &settings).map_err(|error| record_status(&error))?];
            let transaction = Transaction { when: vec![Compare::Modified(key.clone(), revision)], then };
            if let Commit::Done(done) = self.store.commit(transaction).await.map_err(|error| store_status(&error))? {
                let seen = |revision: crate::store::Revision| (revision >= done).then_some(());
                self.view.until(|records| records.settings.as_ref().and_then(|(_, at)| seen(*at))).await;
                info!(by, max_running = ?settings.max_running, quarantine_after = ?settings.quarantine_after, "settings changed");
                return Ok(self.show_settings());
            }
        }
    }
}
