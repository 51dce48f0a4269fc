//! Whether this machine would mount a view, found out without leaving a mount behind.

use std::path::Path;

use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};

use crate::engine::ViewSpec;

/// Asks the kernel for the overlay of a view, and drops it again before it stands anywhere: so a crash leaves nothing.
pub fn mountable(view: &ViewSpec) -> std::io::Result<()> {
    for path in [&view.lower, &view.upper, &view.work] {
        plain(path)?;
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, path) in [("lowerdir", &view.lower), ("upperdir", &view.upper), ("workdir", &view.work)] {
        fsconfig_set_string(&context, name, path.as_path())?;
    }
    Ok(fsconfig_create(&context)?)
}

/// In the options of a mount some characters have a meaning of their own.
fn plain(path: &Path) -> std::io::Result<()> {
    let plain = path.to_str().is_some_and(|path| !path.contains([',', ':', '\\', '=']));
    plain
        .then_some(())
        .ok_or_else(|| std::io::Error::other(format!("{} cannot stand in mount options", path.display())))
}
