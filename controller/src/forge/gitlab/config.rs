//! The CI configuration from GitLab: merged by its CI Lint, or file by file when that has nothing to give.

use async_trait::async_trait;
use tokio::time::sleep;

use super::super::includes::{Files, gather};
use super::super::{CiConfig, Forge as _, ForgeError};
use super::answers::Lint;
use super::{DEFAULT_CI_CONFIG, GitLab};

/// What GitLab says when fetching includes took too long: it may go well the next time.
const TIMED_OUT: &str = "Request timed out when fetching configuration files";
/// What it says when the file does not exist, or is empty.
const MISSING: &str = "Please provide content of";
/// How the messages of its YAML reader look; what they complain of is wrong in the raw file too.
const SYNTAX: [&str; 7] = [
    "(<unknown>)",
    "Invalid configuration format",
    "did not find expected",
    "could not find expected",
    "mapping values are not allowed",
    "found character that cannot start",
    "Unknown alias",
];

/// What is to be done with an answer of CI Lint.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It merged the configuration.
    Merged(String),
    /// Asking again may help.
    Later,
    /// There is no file.
    Missing,
    /// It is no YAML.
    Broken,
    /// It could not merge it: the files may still be of use.
    ReadFiles,
}

/// Decides what an answer of CI Lint is good for. `valid` is no help: what is merged is usable without it.
fn judge(errors: &[String], merged: Option<&str>) -> Verdict {
    let says = |text: &str| errors.iter().any(|error| error.contains(text));
    match merged.filter(|yaml| !yaml.trim().is_empty()) {
        Some(yaml) => Verdict::Merged(yaml.to_owned()),
        None if says(TIMED_OUT) => Verdict::Later,
        None if says(MISSING) => Verdict::Missing,
        None if SYNTAX.iter().any(|text| says(text)) => Verdict::Broken,
        None => Verdict::ReadFiles,
    }
}

/// Reads the configuration at a commit.
pub(super) async fn read(forge: &GitLab, commit: &str) -> Result<CiConfig, ForgeError> {
    let set = forge.project().await?.ci_config_path.filter(|path| !path.is_empty());
    let linted = set.unwrap_or_else(|| DEFAULT_CI_CONFIG.to_owned());
    let path = if forge.ci_config_path == DEFAULT_CI_CONFIG { &linted } else { &forge.ci_config_path };
    if *path != linted {
        let note = format!("GitLab merges {linted} only, the project names {path}: its files are read instead");
        return raw(forge, commit, path, vec![note]).await;
    }
    let mut tries = 0;
    loop {
        let call = forge.call(format!("lint {path} at {commit}"), &["ci", "lint"], &[("content_ref", commit)]);
        let lint: Lint = forge.read(&call).await?;
        match judge(&lint.errors, lint.merged_yaml.as_deref()) {
            Verdict::Merged(yaml) => return Ok(merged(path, yaml, lint)),
            Verdict::Missing => return Err(missing(path, commit)),
            Verdict::Broken => return Err(ForgeError::InvalidCiConfig { errors: lint.errors }),
            Verdict::ReadFiles => {
                let note = format!("GitLab could not merge {path}: {}", lint.errors.join("; "));
                return raw(forge, commit, path, vec![note]).await;
            }
            Verdict::Later => {
                tries += 1;
                let error =
                    ForgeError::Unavailable { action: call.action, detail: TIMED_OUT.to_owned(), retry_after: None };
                if tries >= forge.client.pace.tries {
                    return Err(error);
                }
                sleep(forge.client.pause(tries, &error)).await;
            }
        }
    }
}

fn merged(path: &str, yaml: String, lint: Lint) -> CiConfig {
    let included = lint.includes.into_iter().filter_map(|include| include.location);
    let files = std::iter::once(path.to_owned()).chain(included).collect();
    CiConfig::Merged { yaml, errors: lint.errors, warnings: lint.warnings, files }
}

fn missing(path: &str, commit: &str) -> ForgeError {
    ForgeError::NoCiConfig { path: path.to_owned(), commit: commit.to_owned() }
}

async fn raw(forge: &GitLab, commit: &str, path: &str, notes: Vec<String>) -> Result<CiConfig, ForgeError> {
    let files = AtCommit { forge, commit };
    gather(path, &files, notes).await?.ok_or_else(|| missing(path, commit))
}

struct AtCommit<'a> {
    forge: &'a GitLab,
    commit: &'a str,
}

#[async_trait]
impl Files for AtCommit<'_> {
    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, ForgeError> {
        self.forge.read_file(self.commit, path).await
    }

    async fn list(&self) -> Result<Option<Vec<String>>, ForgeError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(errors: &[&str], merged: Option<&str>, expected: Verdict) {
        let errors: Vec<String> = errors.iter().map(|error| (*error).to_owned()).collect();
        assert_eq!(judge(&errors, merged), expected, "{errors:?}");
    }

    #[test]
    fn an_answer_is_judged_by_what_it_merged_and_then_by_what_it_says() {
        check(&[], Some("a: b"), Verdict::Merged("a: b".to_owned()));
        check(
            &["jobs config should contain at least one visible job"],
            Some("a: b"),
            Verdict::Merged("a: b".to_owned()),
        );
        check(&["Request timed out when fetching configuration files."], None, Verdict::Later);
        check(&["Please provide content of .gitlab-ci.yml"], None, Verdict::Missing);
        check(&["(<unknown>): did not find expected ',' or ']' while parsing at line 2"], None, Verdict::Broken);
        check(&["Invalid configuration format"], None, Verdict::Broken);
        check(&["Local file `x.yml` does not exist!"], None, Verdict::ReadFiles);
        check(&["Project `a/b` not found or access denied!"], None, Verdict::ReadFiles);
        check(&[], Some(" "), Verdict::ReadFiles);
    }
}
