//! The controllers of the fleet: what each one is called.

use std::io::Write as _;
use std::path::Path;

use devfleet_shared::id::ControllerId;

/// The file in the data directory that holds the controller's id.
const ID_FILE: &str = "controller-id";

/// Why a controller does not know its id.
#[derive(Debug, thiserror::Error)]
pub enum ControllerIdError {
    /// The file cannot be read or written.
    #[error("use the controller's id in {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("read the controller's id in {path}: it is not an id; remove the file, a new id is made then")]
    Malformed {
        /// The file.
        path: String,
    },
}

/// Returns the id that stands in the data directory; makes one at the first start.
pub fn own_id(data_dir: &Path) -> Result<ControllerId, ControllerIdError> {
    let path = data_dir.join(ID_FILE);
    let shown = || path.display().to_string();
    let failed = |source| ControllerIdError::File { path: shown(), source };
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| ControllerIdError::Malformed { path: shown() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = ControllerId::random();
            let mut file = tempfile_beside(&path).map_err(failed)?;
            writeln!(file.0, "{id}").and_then(|()| file.0.sync_all()).map_err(failed)?;
            std::fs::rename(&file.1, &path).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

fn tempfile_beside(path: &Path) -> std::io::Result<(std::fs::File, std::path::PathBuf)> {
    let beside = path.with_extension("new");
    Ok((std::fs::File::create(&beside)?, beside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_and_something_else_is_refused() {
        let directory = tempfile::tempdir().expect("dir");
        let id = own_id(directory.path()).expect("made");
        assert_eq!(own_id(directory.path()).expect("read"), id);
        std::fs::write(directory.path().join(ID_FILE), "").expect("written");
        assert!(matches!(own_id(directory.path()), Err(ControllerIdError::Malformed { .. })));
    }
}
