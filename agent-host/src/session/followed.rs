//! Which store this host follows: the newest generation of it that a controller has named, on disk.
//!
//! After a restore from a copy the number is raised by hand. A controller that still works on what was before the
//! restore names a smaller one: what it wants is out of date, and nothing of it is acted on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// A store, as controllers name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreGeneration {
    /// Random, made with the store.
    pub id: String,
    /// Raised by hand after a restore from a copy.
    pub number: u64,
}

/// A store that this host does not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFollowed {
    /// It is from before a restore.
    #[error(
        "follow the controller: its store has generation {said}, this host has followed {seen}; it works on what was before a restore: stop that controller, or raise the generation of its store if it is the restored one (`devfleet store restored`)"
    )]
    Older {
        /// What the controller says.
        said: u64,
        /// What this host has seen.
        seen: u64,
    },
    /// It is not the fleet's.
    #[error(
        "follow the controller: its store ({said}) is not the one that this host has followed ({seen}); if the fleet has a new store on purpose, delete {} and start the daemon again", .file.display()
    )]
    Another {
        /// What the controller says.
        said: String,
        /// What this host has seen.
        seen: String,
        /// Where that stands.
        file: PathBuf,
    },
}

/// What this host follows.
#[derive(Debug)]
pub struct Followed {
    file: PathBuf,
    seen: Mutex<Option<StoreGeneration>>,
}

impl Followed {
    /// Reads what was followed last.
    pub fn open(file: PathBuf) -> Followed {
        let read = std::fs::read(&file).ok();
        let seen = read.and_then(|bytes| match serde_json::from_slice(&bytes) {
            Ok(seen) => Some(seen),
            Err(error) => {
                tracing::warn!(path = %file.display(), %error, "which store was followed cannot be read, the next one is");
                None
            }
        });
        Followed { file, seen: Mutex::new(seen) }
    }

    /// Decides whether a controller that decides in this store is followed; from then on no older one is. On disk when
    /// this returns.
    pub fn follow(&self, said: &StoreGeneration) -> Result<(), NotFollowed> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        judge(seen.as_ref(), said, &self.file)?;
        if seen.as_ref() != Some(said) {
            if let Err(error) = write(&self.file, said) {
                tracing::error!(path = %self.file.display(), %error, "which store is followed cannot be written down");
            }
            *seen = Some(said.clone());
        }
        Ok(())
    }
}

fn judge(seen: Option<&StoreGeneration>, said: &StoreGeneration, file: &Path) -> Result<(), NotFollowed> {
    match seen {
        Some(seen) if seen.id != said.id => {
            let (said, seen) = (said.id.clone(), seen.id.clone());
            Err(NotFollowed::Another { said, seen, file: file.to_owned() })
        }
        Some(seen) if said.number < seen.number => Err(NotFollowed::Older { said: said.number, seen: seen.number }),
        _ => Ok(()),
    }
}

fn write(file: &Path, said: &StoreGeneration) -> std::io::Result<()> {
    use std::io::Write as _;
    let beside = file.with_extension("new");
    std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    let mut written = std::fs::File::create(&beside)?;
    written.write_all(&serde_json::to_vec(said).map_err(std::io::Error::other)?)?;
    written.sync_all()?;
    std::fs::rename(&beside, file)?;
    std::fs::File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(id: &str, number: u64) -> StoreGeneration {
        StoreGeneration { id: id.into(), number }
    }

    #[test]
    fn an_older_store_is_not_followed_even_after_a_restart_and_another_never_is() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("store.json");
        let followed = Followed::open(file.clone());
        assert_eq!(followed.follow(&store("a", 1)), Ok(()), "the first that is seen");
        assert_eq!(followed.follow(&store("a", 3)), Ok(()));
        let older = Err(NotFollowed::Older { said: 2, seen: 3 });
        assert_eq!(followed.follow(&store("a", 2)), older);
        let again = Followed::open(file.clone());
        assert_eq!(again.follow(&store("a", 2)), older, "after a restart");
        assert!(matches!(again.follow(&store("b", 9)), Err(NotFollowed::Another { .. })));
        assert_eq!(again.follow(&store("a", 3)), Ok(()));
        std::fs::write(&file, "{").expect("written");
        assert_eq!(
            Followed::open(file).follow(&store("a", 1)),
            Ok(()),
            "what cannot be read is not held against anyone"
        );
    }
}
