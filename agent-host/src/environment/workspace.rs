//! The workspace: one named volume that every step of an environment sees at the same place.

use super::{Devbox, EnvironmentError};
use crate::engine::{Mount, ObjectKind};

/// Where every step finds the workspace.
pub const WORKSPACE: &str = "/workspace";

/// The role of the volume in names and labels.
const ROLE: &str = "workspace";

impl Devbox<'_> {
    pub(super) async fn make_workspace(&self) -> Result<(), EnvironmentError> {
        let name = self.name(ROLE);
        self.announce(ObjectKind::Volume, &name)?;
        self.engine
            .ensure_volume(&name, &self.labels(ROLE))
            .await
            .map_err(|source| EnvironmentError::Engine { action: format!("make volume {name}"), source })
    }

    pub(super) fn workspace_mount(&self) -> Mount {
        Mount::Volume { name: self.name(ROLE), target: WORKSPACE.into() }
    }
}
