//! Bare git repositories for tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A bare repository on disk.
pub(crate) struct Repository {
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl Repository {
    pub(super) fn make(dir: &Path, name: &str, files: &[(&str, &str)]) -> Self {
        let path = dir.join(format!("{name}.git"));
        let work = dir.join(format!("{name}.work"));
        std::fs::create_dir_all(&work).expect("a directory");
        for (file, content) in files {
            let file = work.join(file);
            std::fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            std::fs::write(file, content).expect("written");
        }
        git(&work, &["init", "--quiet", "--initial-branch=main"]);
        git(&work, &["add", "--all"]);
        git(
            &work,
            &["-c", "user.name=Test", "-c", "user.email=test@example.com", "commit", "--quiet", "--message=Begin"],
        );
        git(&work, &["clone", "--quiet", "--bare", ".", &path.display().to_string()]);
        Self { path }
    }

    /// Puts files onto the branch `main`.
    pub(crate) fn commit(&self, files: &[(&str, &str)]) {
        let work = self.path.with_extension("work");
        for (file, content) in files {
            std::fs::write(work.join(file), content).expect("written");
        }
        git(&work, &["add", "--all"]);
        let names = ["-c", "user.name=Test", "-c", "user.email=test@example.com"];
        git(&work, &[&names[..], &["commit", "--quiet", "--message=Go on"]].concat());
        git(&work, &["push", "--quiet", &self.path.display().to_string(), "HEAD:main"]);
    }

    /// Runs git in the repository and returns what it printed.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        git(&self.path, arguments)
    }

    /// Lists the branches that devfleet pushed.
    pub(crate) fn work_branches(&self) -> Vec<String> {
        let names = self.git(&["for-each-ref", "--format=%(refname:short)", "refs/heads/devfleet/"]);
        names.lines().map(str::to_owned).collect()
    }

    /// Reads a file on a branch.
    pub(crate) fn file(&self, branch: &str, path: &str) -> String {
        self.git(&["show", &format!("{branch}:{path}")])
    }
}

fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").current_dir(dir).args(arguments).output().expect("git can be run");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
