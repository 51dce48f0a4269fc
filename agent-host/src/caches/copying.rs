//! Copying a tree that a job wrote into a layer, with a digest of every file; and comparing a layer with that list.
//!
//! Follows no link. Takes directories, plain files and links; leaves out devices, sockets, extended attributes and the
//! bits that let a file act as another user. Runs while nothing writes to the tree: its container has ended.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devfleet_shared::id::{Digest, hex};
use devfleet_shared::mask::{Masker, Needles};
use devfleet_shared::units::ByteSize;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::CacheError;
use super::manifest::disk;

/// How many files of a layer are looked at before a job uses it.
pub(super) const SAMPLE: usize = 16;
/// How much is copied at once.
const CHUNK: usize = 1 << 20;

/// One copy.
pub(super) struct Copy {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    pub(super) limit_bytes: u64,
    pub(super) limit_entries: u64,
    pub(super) needles: Option<Arc<Needles>>,
    pub(super) stop: Arc<AtomicBool>,
}

/// What a copy brought.
#[derive(Default)]
pub(super) struct Copied {
    pub(super) bytes: u64,
    pub(super) entries: u64,
    /// A line per file: its SHA-256 and its path, both in hex.
    pub(super) listing: Vec<u8>,
}

/// Copies a tree without limits or list, into an empty directory.
pub fn copy_plainly(from: &Path, to: &Path) -> Result<(), CacheError> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let copy = Copy { from, to, limit_bytes: u64::MAX, limit_entries: u64::MAX, needles: None, stop: Arc::default() };
    copy.run().map(drop)
}

impl Copy {
    pub(super) fn run(self) -> Result<Copied, CacheError> {
        let mut copied = Copied::default();
        let mut directories = vec![PathBuf::new()];
        let mut made = Vec::new();
        while let Some(directory) = directories.pop() {
            let from = self.from.join(&directory);
            let entries = std::fs::read_dir(&from).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
            let mut entries = entries.map_err(|source| disk("list", &from, source))?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                if self.stop.load(Ordering::SeqCst) {
                    return Err(CacheError::Stopped);
                }
                let path = directory.join(entry.file_name());
                let metadata = entry.metadata().map_err(|source| disk("read", &entry.path(), source))?;
                copied.entries += 1;
                if metadata.is_dir() {
                    let to = self.to.join(&path);
                    std::fs::create_dir(&to).map_err(|source| disk("create", &to, source))?;
                    directories.push(path.clone());
                    made.push((to, metadata));
                } else {
                    self.entry(&path, &metadata, &mut copied)?;
                }
                self.check(&copied)?;
            }
        }
        // Last, since what is put into a directory changes its time stamp. The deepest first.
        for (to, metadata) in made.iter().rev() {
            dress(to, metadata).map_err(|source| disk("dress", to, source))?;
        }
        let root = self.from.symlink_metadata().and_then(|metadata| dress(&self.to, &metadata));
        root.map_err(|source| disk("dress", &self.to, source))?;
        Ok(copied)
    }

    fn check(&self, copied: &Copied) -> Result<(), CacheError> {
        if copied.bytes > self.limit_bytes {
            return Err(CacheError::TooLarge { limit: ByteSize(self.limit_bytes).to_string() });
        }
        if copied.entries > self.limit_entries {
            return Err(CacheError::TooLarge { limit: format!("{} files", self.limit_entries) });
        }
        Ok(())
    }

    fn entry(&self, path: &Path, metadata: &Metadata, copied: &mut Copied) -> Result<(), CacheError> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        if metadata.is_symlink() {
            let target = std::fs::read_link(&from).map_err(|source| disk("read", &from, source))?;
            let made = symlink(target, &to).and_then(|()| lchown(&to, Some(metadata.uid()), Some(metadata.gid())));
            return made.map_err(|source| disk("create", &to, source));
        }
        if !metadata.is_file() {
            return Ok(());
        }
        let sum = self.file(&from, &to, copied)?;
        dress(&to, metadata).map_err(|source| disk("dress", &to, source))?;
        writeln!(copied.listing, "{sum} {}", hex(path.as_os_str().as_bytes()))
            .map_err(|source| disk("list", &to, source))
    }

    fn file(&self, from: &Path, to: &Path, copied: &mut Copied) -> Result<String, CacheError> {
        let mut source = plain(from)?;
        let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        let mut target = target.map_err(|source| disk("create", to, source))?;
        let mut masker = self.needles.as_ref().map(|needles| Masker::new(Arc::clone(needles)));
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = source.read(&mut buffer).map_err(|source| disk("read", from, source))?;
            if read == 0 {
                break;
            }
            copied.bytes += read as u64;
            self.check(copied)?;
            hasher.update(&buffer[..read]);
            target.write_all(&buffer[..read]).map_err(|source| disk("write", to, source))?;
            if masker.as_mut().is_some_and(|masker| masker.push(&buffer[..read]).is_masked()) {
                return Err(CacheError::Secret);
            }
        }
        if masker.as_mut().is_some_and(|masker| masker.flush().is_masked()) {
            return Err(CacheError::Secret);
        }
        Ok(hex(&hasher.finalize()))
    }
}

/// Gives a copy the owner, mode and time of what it was made from.
fn dress(to: &Path, metadata: &Metadata) -> std::io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(metadata.mode() & 0o777))?;
    File::open(to)?.set_modified(metadata.modified()?)
}

/// Opens a plain file, and nothing that a link leads to.
fn plain(path: &Path) -> Result<File, CacheError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    opened.map_err(|source| disk("read", path, source))
}

/// Compares files below a directory with a list: `sample` of them spread over it, or all.
pub(super) fn verify(listing: &Path, wanted: &Digest, root: &Path, sample: usize) -> Result<(), CacheError> {
    let text = std::fs::read(listing).map_err(|source| disk("read", listing, source))?;
    if Digest::of(&text) != *wanted {
        return Err(CacheError::Changed { path: listing.to_owned() });
    }
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let stride = (lines.len() / sample.max(1)).max(1);
    let offset = rand::random_range(0..stride);
    for line in lines.iter().skip(offset).step_by(stride) {
        let (sum, path) = parse(line).ok_or_else(|| CacheError::Changed { path: listing.to_owned() })?;
        let path = root.join(path);
        let changed = || CacheError::Changed { path: path.clone() };
        if path.symlink_metadata().map_err(|_| changed())?.is_file() && sum_of(&path)? == sum {
            continue;
        }
        return Err(changed());
    }
    Ok(())
}

fn parse(line: &[u8]) -> Option<(String, PathBuf)> {
    let line = std::str::from_utf8(line).ok()?;
    let (sum, path) = line.split_once(' ')?;
    let bytes: Option<Vec<u8>> =
        (0..path.len()).step_by(2).map(|at| u8::from_str_radix(path.get(at..at + 2)?, 16).ok()).collect();
    Some((sum.to_owned(), PathBuf::from(std::ffi::OsString::from_vec(bytes?))))
}

fn sum_of(path: &Path) -> Result<String, CacheError> {
    let mut file = plain(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).map_err(|source| disk("read", path, source))? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use devfleet_shared::secret::Secret;

    use super::*;

    fn copy(from: &Path, to: &Path) -> Copy {
        Copy {
            from: from.to_owned(),
            to: to.to_owned(),
            limit_bytes: 1 << 20,
            limit_entries: 100,
            needles: None,
            stop: Arc::default(),
        }
    }

    /// A tree with everything that a job may leave, and an empty place for its copy.
    fn places() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for path in [from.join("deep/er"), to.clone()] {
            std::fs::create_dir_all(path).expect("a directory");
        }
        std::fs::write(from.join("plain"), "plain content").expect("a file");
        std::fs::write(from.join("deep/er/tool"), "a tool").expect("a file");
        let mode = std::fs::Permissions::from_mode(0o4755);
        std::fs::set_permissions(from.join("deep/er/tool"), mode).expect("a mode");
        symlink("/etc/passwd", from.join("link")).expect("a link");
        let made = std::process::Command::new("mkfifo").arg(from.join("pipe")).status();
        assert!(made.expect("mkfifo").success());
        (dir, from, to)
    }

    #[test]
    fn a_copy_has_the_same_files_links_modes_and_times_and_nothing_special() {
        let (_dir, from, to) = places();
        let copied = copy(&from, &to).run().expect("a copy");
        assert_eq!(std::fs::read_to_string(to.join("plain")).expect("a file"), "plain content");
        assert_eq!(std::fs::read_link(to.join("link")).expect("a link"), Path::new("/etc/passwd"));
        assert!(!to.join("pipe").exists(), "nothing that waits for somebody");
        let (old, new) = (from.join("deep/er/tool"), to.join("deep/er/tool"));
        let (old, new) = (old.metadata().expect("old"), new.metadata().expect("new"));
        assert_eq!(new.mode() & 0o7777, 0o755, "no file acts as another user");
        assert_eq!(old.modified().expect("a time"), new.modified().expect("a time"));
        assert_eq!((copied.bytes, copied.entries), (19, 6));
        assert_eq!(String::from_utf8(copied.listing).expect("text").lines().count(), 2);
    }

    #[test]
    fn what_was_changed_after_sealing_is_found() {
        let (dir, from, to) = places();
        let copied = copy(&from, &to).run().expect("a copy");
        let listing = dir.path().join("list");
        std::fs::write(&listing, &copied.listing).expect("written");
        let wanted = Digest::of(&copied.listing);
        verify(&listing, &wanted, &to, SAMPLE).expect("as it was sealed");
        std::fs::write(to.join("deep/er/tool"), "b tool").expect("written");
        assert!(matches!(verify(&listing, &wanted, &to, SAMPLE), Err(CacheError::Changed { .. })));
        std::fs::remove_file(to.join("deep/er/tool")).expect("removed");
        assert!(matches!(verify(&listing, &wanted, &to, usize::MAX), Err(CacheError::Changed { .. })));
        symlink(from.join("deep/er/tool"), to.join("deep/er/tool")).expect("a link");
        assert!(matches!(verify(&listing, &wanted, &to, SAMPLE), Err(CacheError::Changed { .. })), "a link is no file");
        std::fs::write(&listing, "").expect("written");
        assert!(matches!(verify(&listing, &wanted, &to, SAMPLE), Err(CacheError::Changed { .. })), "a list cut short");
    }

    #[test]
    fn what_is_too_large_holds_a_secret_or_is_stopped_is_not_kept() {
        let (_dir, from, to) = places();
        let refused = |copy: Copy| {
            let _ = std::fs::remove_dir_all(&to);
            std::fs::create_dir(&to).expect("a directory");
            copy.run().err().expect("it is refused")
        };
        assert!(matches!(refused(Copy { limit_bytes: 18, ..copy(&from, &to) }), CacheError::TooLarge { .. }));
        assert!(matches!(refused(Copy { limit_entries: 5, ..copy(&from, &to) }), CacheError::TooLarge { .. }));
        let stop = Arc::new(AtomicBool::new(true));
        assert!(matches!(refused(Copy { stop, ..copy(&from, &to) }), CacheError::Stopped));
        std::fs::write(from.join("deep/token"), "key: hunter2-canary\n").expect("a file");
        let needles = Needles::new(&[Secret::new("hunter2-canary")]).expect("a strong secret");
        assert!(matches!(refused(Copy { needles: Some(needles.into()), ..copy(&from, &to) }), CacheError::Secret));
    }
}
