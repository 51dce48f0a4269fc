//! What is set aside on this host, attempt by attempt. Judged and noted in one piece, so that two that begin at once do
//! not both take the last room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devfleet_shared::admission::{self, Refused};
use devfleet_shared::id::AttemptId;
use devfleet_shared::resources::Resources;

/// The attempts that were admitted here and whose environments may stand. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Admitted {
    attempts: Arc<Mutex<BTreeMap<AttemptId, Resources>>>,
}

impl Admitted {
    /// Sets aside what an attempt wants, if that fits beside what the others have. `total` is all that the host has to
    /// give, `measured` what its disk has free. Safe to repeat.
    pub fn admit(
        &self,
        attempt: &AttemptId,
        wanted: Resources,
        total: Resources,
        measured: Resources,
    ) -> Result<(), Refused> {
        let mut attempts = self.lock();
        let others = attempts.iter().filter(|(other, _)| *other != attempt);
        let taken = others.fold(Resources::default(), |sum, (_, amount)| sum.plus(*amount));
        admission::admit(&admission::room(total, taken, measured), &wanted)?;
        attempts.insert(attempt.clone(), wanted);
        Ok(())
    }

    /// Notes what an attempt has that an earlier start of the daemon admitted.
    pub fn keep(&self, attempt: &AttemptId, has: Resources) {
        self.lock().insert(attempt.clone(), has);
    }

    /// Notes that nothing of an attempt stands here any more. Safe to repeat.
    pub fn release(&self, attempt: &AttemptId) {
        self.lock().remove(attempt);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Resources>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(memory_bytes: u64, slots: u64) -> Resources {
        Resources { cpu_millis: 1_000, memory_bytes, disk_bytes: 1, disk_inodes: 1, slots }
    }

    #[test]
    fn what_one_has_is_not_there_for_the_next_until_it_is_released() {
        let (admitted, total) = (Admitted::default(), amount(100, 2));
        let total = Resources { disk_bytes: 9, disk_inodes: 9, ..total };
        let [one, two, three] = [(); 3].map(|()| AttemptId::random());
        let admit = |attempt: &AttemptId, memory| {
            admitted.admit(attempt, amount(memory, 1), total, total).map_err(|refused| refused.lacking)
        };
        assert_eq!(admit(&one, 60), Ok(()));
        assert_eq!(admit(&one, 60), Ok(()), "once more, for the same attempt");
        assert_eq!(admit(&two, 60), Err(vec!["memory"]));
        assert_eq!(admit(&two, 40), Ok(()));
        assert_eq!(admit(&three, 0), Err(vec!["slots"]));
        admitted.release(&one);
        assert_eq!(admit(&three, 60), Ok(()));
        admitted.keep(&one, amount(0, 1));
        assert_eq!(admit(&AttemptId::random(), 0), Err(vec!["slots"]));
    }
}
