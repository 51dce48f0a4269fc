//! Taking in what a job left: a git bundle, which may be anything at all.
//!
//! The header is read here, before git sees the file; the pack goes through `index-pack` with every check; then the
//! history must lead from the base commit to the one new commit, with nothing missing.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use super::git::Git;
use super::{Imported, MirrorError, on};

/// The longest header that is read, in bytes.
const HEADER_BYTES: u64 = 64 * 1024;

/// The branches under which `collect` may bundle its commit.
const ACCEPTED: [&str; 2] = ["refs/heads/devfleet", "HEAD"];

/// What stands before the pack.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    commit: String,
    length: u64,
}

fn rejected(detail: impl Into<String>) -> MirrorError {
    MirrorError::BundleRejected { detail: detail.into() }
}

/// Reads the header and checks that it promises one commit.
fn header(bundle: &Path) -> Result<Header, MirrorError> {
    let file = File::open(bundle).map_err(on("open", bundle))?;
    let mut reader = BufReader::new(file.take(HEADER_BYTES));
    let mut line = Vec::new();
    let mut length = reader.read_until(b'\n', &mut line).map_err(on("read", bundle))? as u64;
    if !matches!(line.as_slice(), b"# v2 git bundle\n" | b"# v3 git bundle\n") {
        return Err(rejected("it is not a git bundle"));
    }
    let mut refs = Vec::new();
    loop {
        line.clear();
        length += reader.read_until(b'\n', &mut line).map_err(on("read", bundle))? as u64;
        let Some(text) = line.strip_suffix(b"\n").map(String::from_utf8_lossy) else {
            return Err(rejected("its header does not end"));
        };
        match text.split_at_checked(1) {
            None => break,
            Some(("@", capability)) if capability.starts_with("object-format=") => {}
            Some(("@", capability)) => return Err(rejected(format!("it needs {capability:?}"))),
            Some(("-", _)) => {}
            Some(_) => refs.push(text.split_once(' ').map(|(id, name)| (id.to_owned(), name.to_owned()))),
        }
    }
    match refs.as_slice() {
        [Some((commit, name))] if ACCEPTED.contains(&name.as_str()) => {
            super::check_commit(commit).map_err(|_| rejected("its header names no commit"))?;
            Ok(Header { commit: commit.clone(), length })
        }
        [Some((_, name))] => Err(rejected(format!("it brings {name:?} instead of {:?}", ACCEPTED[0]))),
        other => Err(rejected(format!("it brings {} refs instead of one", other.len()))),
    }
}

/// Checks a bundle and takes its objects in; returns the commit that it promises.
pub(super) async fn take_in(git: &Git, bundle: &Path, limit_bytes: u64) -> Result<String, MirrorError> {
    let found = std::fs::symlink_metadata(bundle).map_err(on("look at", bundle))?;
    if !found.is_file() {
        return Err(rejected("it is not a plain file"));
    }
    if found.len() > limit_bytes {
        return Err(rejected(format!("it is {} bytes long; the limit is {limit_bytes}", found.len())));
    }
    let header = header(bundle)?;
    let path = bundle.to_str().ok_or_else(|| rejected("its path is not text"))?;
    let verified = git.run(&["bundle", "verify", "--quiet", path]).await?;
    if !verified.is_success() {
        return Err(rejected(format!("git does not accept it: {}", verified.detail())));
    }
    // Not `git fetch`: older versions do not check the objects of a bundle, whatever their configuration says.
    let limit = format!("--max-input-size={limit_bytes}");
    let indexed =
        git.reading(bundle, header.length).run(&["index-pack", "--stdin", "--fix-thin", "--strict", &limit]).await?;
    if !indexed.is_success() {
        return Err(rejected(format!("its objects are not sound: {}", indexed.detail())));
    }
    Ok(header.commit)
}

/// Checks that the commit grew from the base, whole, and says what it changes.
pub(super) async fn accept(git: &Git, base: &str, commit: &str) -> Result<Imported, MirrorError> {
    if commit == base {
        return Err(MirrorError::NoChange);
    }
    if !git.run(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).await?.is_success() {
        return Err(rejected("it does not hold the commit that it promises"));
    }
    let whole = git.quiet().run(&["rev-list", "--objects", commit, &format!("^{base}")]).await?;
    if !whole.is_success() {
        return Err(rejected(format!("its history is not whole: {}", whole.detail())));
    }
    if !git.run(&["merge-base", "--is-ancestor", base, commit]).await?.is_success() {
        return Err(rejected("its commit does not descend from the base commit; was the history rewritten?"));
    }
    let range = format!("{base}..{commit}");
    let args = ["diff", "--no-ext-diff", "--no-textconv", "--no-color", "-M", &range, "--"];
    let diff = git.run(&args).await?;
    diff.ok("compare the work branch with its base")?;
    let mut text = String::from_utf8_lossy(&diff.stdout).into_owned();
    let mut longest = text.len().min(super::git::OUTPUT_BYTES);
    while !text.is_char_boundary(longest) {
        longest -= 1;
    }
    let diff_truncated = diff.truncated || longest < text.len();
    text.truncate(longest);
    Ok(Imported { commit: commit.to_owned(), diff: text, diff_truncated })
}
