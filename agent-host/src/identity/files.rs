//! The files of the host's identity: each is replaced whole, and the key is for this user's eyes only.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use devfleet_shared::secret::Secret;

use super::IdentityError;

const KEY: &str = "host.key";
const CERTIFICATE: &str = "host.pem";
const AUTHORITY: &str = "authority.pem";
const HOST_ID: &str = "host-id";

/// The directory that holds them.
#[derive(Debug, Clone)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the certificate; `None` if the host has not joined.
    pub(super) fn certificate(&self) -> Result<Option<String>, IdentityError> {
        match self.read(CERTIFICATE) {
            Ok(text) => Ok(Some(text)),
            Err(IdentityError::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn authority(&self) -> Result<String, IdentityError> {
        self.read(AUTHORITY)
    }

    pub(super) fn host_id(&self) -> Result<String, IdentityError> {
        Ok(self.read(HOST_ID)?.trim().to_owned())
    }

    /// Reads the key, unless others may read it too.
    pub(super) fn key(&self) -> Result<Secret, IdentityError> {
        let path = self.directory.join(KEY);
        let found = path.metadata().map_err(failed("read", &path))?;
        if found.permissions().mode() & 0o077 != 0 {
            return Err(IdentityError::ExposedKey { path });
        }
        self.read(KEY).map(Secret::new)
    }

    /// Returns the key of an earlier try to join, if there was one.
    pub(super) fn earlier_key(&self) -> Result<Option<Secret>, IdentityError> {
        if self.directory.join(KEY).exists() { self.key().map(Some) } else { Ok(None) }
    }

    pub(super) fn write_key(&self, key: &Secret) -> Result<(), IdentityError> {
        self.write(KEY, key.expose(), 0o600)
    }

    pub(super) fn write_certificate(&self, pem: &str) -> Result<(), IdentityError> {
        self.write(CERTIFICATE, pem, 0o644)
    }

    pub(super) fn write_authority(&self, pem: &str) -> Result<(), IdentityError> {
        self.write(AUTHORITY, pem, 0o644)
    }

    pub(super) fn write_host_id(&self, id: &str) -> Result<(), IdentityError> {
        self.write(HOST_ID, &format!("{id}\n"), 0o644)
    }

    fn read(&self, name: &str) -> Result<String, IdentityError> {
        let path = self.directory.join(name);
        std::fs::read_to_string(&path).map_err(failed("read", &path))
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), IdentityError> {
        let path = self.directory.join(name);
        self.replace(&path, text.as_bytes(), mode).map_err(failed("write", &path))
    }

    fn replace(&self, path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let part = path.with_extension("part");
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&part, path)?;
        File::open(&self.directory)?.sync_all()
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { operation, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn the_key_is_for_its_owner_alone_and_refused_when_it_is_not() {
        let directory = tempfile::tempdir().expect("dir");
        let files = Files::new(&directory.path().join("identity"));
        files.write_key(&Secret::new("key")).expect("written");
        let path = files.directory().join(KEY);
        assert_eq!(path.metadata().expect("key").permissions().mode() & 0o777, 0o600);
        assert_eq!(files.key().expect("readable").expose(), "key");
        std::fs::set_permissions(&path, Permissions::from_mode(0o604)).expect("chmod");
        assert!(matches!(files.key(), Err(IdentityError::ExposedKey { .. })));
    }
}
