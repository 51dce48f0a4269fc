//! Real bare repositories on disk, written and read with git's plumbing.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Obeys the files beside it: waits while there is `hold-pushes`, then refuses what `protected-refs` (one a line) and
/// `reject-pushes` (the message) name.
const PRE_RECEIVE: &str = r#"#!/bin/sh
while [ -f hold-pushes ]; do
    : > push-waits
    sleep 0.05
done
if [ -f reject-pushes ]; then
    cat reject-pushes >&2
    exit 1
fi
while read -r _old _new ref; do
    if [ -f protected-refs ] && grep -qxF -e "$ref" protected-refs; then
        echo "GitLab: You are not allowed to push code to protected branches on this project." >&2
        exit 1
    fi
done
"#;

fn git(git_dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .arg("--git-dir")
        .arg(git_dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .stdin(Stdio::null());
    command
}

/// Makes an empty bare repository whose default branch is `main`.
pub(super) fn create(git_dir: &Path) {
    let made = git(git_dir).args(["init", "--quiet", "--bare", "--initial-branch=main"]).status();
    assert!(made.expect("run git init").success(), "git init failed");
    for setting in ["http.receivepack", "uploadpack.allowAnySHA1InWant"] {
        let set = git(git_dir).args(["config", setting, "true"]).status();
        assert!(set.expect("run git config").success(), "git config failed");
    }
    let hooks = git_dir.join("hooks");
    std::fs::create_dir_all(&hooks).expect("make the hooks' directory");
    write_program(&hooks.join("pre-receive"), PRE_RECEIVE);
}

fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("write a program");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
}

/// Adds a commit; a new branch starts at `main`, if that is there.
pub(super) fn commit(git_dir: &Path, branch: &str, subject: &str, files: &[(&str, &str)]) -> String {
    let parent = resolve(git_dir, &format!("refs/heads/{branch}")).or_else(|| resolve(git_dir, "refs/heads/main"));
    let mut stream = format!(
        "commit refs/heads/{branch}\ncommitter Sam <sam@example.org> 1700000000 +0000\ndata {}\n{subject}\n",
        subject.len()
    );
    if let Some(parent) = parent {
        stream.push_str(&format!("from {parent}\n"));
    }
    for (path, text) in files {
        stream.push_str(&format!("M 100644 inline {path}\ndata {}\n{text}\n", text.len()));
    }
    let mut child =
        git(git_dir).args(["fast-import", "--quiet"]).stdin(Stdio::piped()).spawn().expect("run git fast-import");
    child.stdin.take().expect("its input is a pipe").write_all(stream.as_bytes()).expect("write the commit");
    assert!(child.wait().expect("wait for git fast-import").success(), "git fast-import failed");
    resolve(git_dir, &format!("refs/heads/{branch}")).expect("the branch is there now")
}

/// Returns the commit that a name stands for.
pub(super) fn resolve(git_dir: &Path, name: &str) -> Option<String> {
    let output = git(git_dir)
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{name}^{{commit}}")])
        .output()
        .expect("run git rev-parse");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Reads a file at a commit.
pub(super) fn read(git_dir: &Path, commit: &str, path: &str) -> Option<Vec<u8>> {
    let output =
        git(git_dir).args(["cat-file", "blob", &format!("{commit}:{path}")]).output().expect("run git cat-file");
    output.status.success().then_some(output.stdout)
}

/// Refuses pushes to a branch from now on.
pub(super) fn protect(git_dir: &Path, branch: &str) {
    let path = git_dir.join("protected-refs");
    let mut text = std::fs::read_to_string(&path).unwrap_or_default();
    text.push_str(&format!("refs/heads/{branch}\n"));
    std::fs::write(path, text).expect("write the protected branches");
}

/// Says whether pushes to a branch are refused.
pub(super) fn is_protected(git_dir: &Path, branch: &str) -> bool {
    let text = std::fs::read_to_string(git_dir.join("protected-refs")).unwrap_or_default();
    text.lines().any(|line| line == format!("refs/heads/{branch}"))
}

/// Refuses every push with a message, or lets them pass again.
pub(super) fn reject_pushes(git_dir: &Path, message: Option<&str>) {
    let path = git_dir.join("reject-pushes");
    match message {
        Some(message) => std::fs::write(path, format!("{message}\n")).expect("write the message"),
        None => drop(std::fs::remove_file(path)),
    }
}

/// Lets every push wait from now on, or lets them go on.
pub(super) fn hold_pushes(git_dir: &Path, hold: bool) {
    let path = git_dir.join("hold-pushes");
    match hold {
        true => std::fs::write(path, "").expect("write the hold"),
        false => std::fs::remove_file(path).expect("end the hold"),
    }
}

/// Says whether a push has come that waits or waited.
pub(super) fn push_waits(git_dir: &Path) -> bool {
    git_dir.join("push-waits").exists()
}

/// Deletes a branch.
pub(super) fn delete_branch(git_dir: &Path, branch: &str) {
    let deleted = git(git_dir).args(["update-ref", "-d", &format!("refs/heads/{branch}")]).status();
    assert!(deleted.expect("run git update-ref").success(), "git update-ref failed");
}
