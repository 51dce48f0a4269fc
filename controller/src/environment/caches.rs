//! Caches as the CI file names them: `cache:` as one mapping or a list, with keys as text or as lock files.

use std::collections::BTreeSet;

use devfleet_shared::environment::CacheSpec;

use super::DerivationError;
use super::job::Job;
use super::variables::{Variables, WORKSPACE};
use super::yaml::{Node, Place};

/// How many cached paths one environment may have.
const MAX_CACHES: usize = 32;

/// The caches of a job.
#[derive(Debug, Default)]
pub(super) struct Caches {
    pub(super) specs: Vec<CacheSpec>,
    pub(super) place: Place,
    pub(super) origin: String,
    pub(super) notes: Vec<String>,
}

/// Finds the caches of a job.
pub(super) fn of_job(job: &Job<'_>, variables: &mut Variables<'_>) -> Result<Caches, DerivationError> {
    let mut caches = Caches::default();
    let Some(fact) = job.inherited("cache") else { return Ok(caches) };
    caches.origin = fact.origin.to_owned();
    caches.place = fact.node.place;
    let one = std::slice::from_ref(fact.node);
    let mut seen = BTreeSet::new();
    for cache in fact.node.list().unwrap_or(one) {
        let (key, lock_files) = key_of(cache.get("key"), variables)?;
        for path in cache.get("paths").map(Node::texts).unwrap_or_default() {
            let expanded = variables.expand(&path)?;
            match usable(&expanded) {
                Ok(path) if !seen.insert(path.clone()) => {}
                Ok(_) if caches.specs.len() >= MAX_CACHES => {
                    caches
                        .notes
                        .push(format!("the cached path {expanded:?} is left out: there are more than {MAX_CACHES}"));
                    return Ok(caches);
                }
                Ok(path) => caches.specs.push(CacheSpec { path, key: key.clone(), lock_files: lock_files.clone() }),
                Err(why) => caches.notes.push(format!("the cached path {expanded:?} is left out: {why}")),
            }
            if caches.notes.len() > MAX_CACHES {
                return Ok(caches);
            }
        }
    }
    Ok(caches)
}

/// What a cached path holds: `download` for what package managers fetch, `tree` for what they install or build.
pub fn kind(path: &str) -> &'static str {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let has = |names: &[&str]| parts.iter().any(|part| names.contains(&part.to_ascii_lowercase().as_str()));
    let downloads = [
        "cache",
        ".cache",
        "caches",
        ".npm",
        "npm",
        ".yarn",
        ".pnpm-store",
        "pip",
        ".pip",
        "repository",
        ".m2",
        ".gradle",
        "registry",
        ".cargo",
        "cargo",
        "mod",
        ".composer",
        ".composer-cache",
        ".hex",
        ".nuget",
        "packages",
        ".ivy2",
        ".coursier",
        ".pub-cache",
        ".stack",
        ".cabal",
        "apt",
        "archives",
        ".go",
        ".conan",
        ".yarn-cache",
        "ccache",
        ".ccache",
        "sccache",
    ];
    let named = |part: &&str| {
        let lower = part.to_ascii_lowercase();
        lower.contains("cache") || lower.contains("repository")
    };
    if has(&["node_modules", "vendor", "deps", "_build", "target", "venv", ".venv", ".tox", "build", "dist"])
        && !has(&["cache"])
    {
        return "tree";
    }
    if parts.iter().any(named) || has(&downloads) { "download" } else { "tree" }
}

/// A key is a text, or lock files with a prefix.
fn key_of(key: Option<&Node>, variables: &mut Variables<'_>) -> Result<(String, Vec<String>), DerivationError> {
    let Some(node) = key.filter(|node| !node.is_null()) else { return Ok(("default".to_owned(), Vec::new())) };
    if node.map().is_none() {
        let text = variables.expand(&node.text().unwrap_or_default())?;
        return Ok((if text.is_empty() { "default".to_owned() } else { text }, Vec::new()));
    }
    let files = node.get("files").or_else(|| node.get("files_commits")).map(Node::texts).unwrap_or_default();
    let prefix = match node.get("prefix").and_then(Node::text) {
        Some(prefix) => variables.expand(&prefix)?,
        None => "default".to_owned(),
    };
    let files = files.iter().filter_map(|file| usable(file).ok()).take(8).collect();
    Ok((prefix, files))
}

/// Makes a path relative to the workspace, or says why it cannot be kept.
pub(super) fn usable(path: &str) -> Result<String, &'static str> {
    let inside = path.strip_prefix(WORKSPACE).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let (absolute, rest) = match inside {
        Some(rest) => (false, rest),
        None => (path.starts_with('/'), path),
    };
    let mut parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.last().is_some_and(|part| matches!(*part, "*" | "**")) {
        parts.pop();
    }
    if parts.is_empty() {
        return Err("it is the whole workspace, or nothing");
    }
    if parts.iter().any(|part| part.contains(['*', '?', '[', '\\', '\0', '\n', ':', ',', '='])) {
        return Err("it is a pattern, not a directory");
    }
    if parts.contains(&"..") || parts[0] == ".git" || parts[0].starts_with('~') || parts[0].starts_with('$') {
        return Err("it leaves the workspace, or is git's own");
    }
    let system = ["proc", "sys", "dev", "etc", "bin", "sbin", "lib", "lib64", "boot", "run", "workspace"];
    if absolute && (parts.len() < 2 || system.contains(&parts[0])) {
        return Err("it belongs to the operating system");
    }
    let downloads = ["registry", "repository", ".npm", ".m2", ".gradle"];
    let kept =
        parts.iter().any(|part| part.contains("cache")) || parts.last().is_some_and(|part| downloads.contains(part));
    if absolute && !kept {
        return Err("CI keeps nothing outside of the project either, and a volume would hide what the image has there");
    }
    Ok(format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::super::{Context, merged};
    use super::*;
    use crate::forge::CiConfig;

    fn check(cache: &str, expected: &[(&str, &str, &[&str])]) {
        let yaml = format!("variables: {{V: v}}\nj:\n  script: x\n  cache: {cache}\n");
        let config = CiConfig::Raw { path: "ci.yml".into(), files: vec![("ci.yml".into(), yaml)], notes: Vec::new() };
        let document = merged::read(&config).expect("it can be read");
        let job = Job::find(&document, "j").expect("there is a job j");
        let context = Context { base_branch: "main".into(), ..Context::default() };
        let caches = of_job(&job, &mut Variables::new(&job, &[], &context)).expect("they can be read");
        let found: Vec<(&str, &str, Vec<&str>)> = caches
            .specs
            .iter()
            .map(|spec| (spec.path.as_str(), spec.key.as_str(), spec.lock_files.iter().map(String::as_str).collect()))
            .collect();
        let expected: Vec<(&str, &str, Vec<&str>)> =
            expected.iter().map(|(path, key, files)| (*path, *key, files.to_vec())).collect();
        assert_eq!(found, expected, "{cache}");
    }

    #[test]
    fn caches_are_read_in_all_their_spellings() {
        check("{paths: [node_modules/, .npm]}", &[("node_modules", "default", &[]), (".npm", "default", &[])]);
        check(
            "{key: '$CI_COMMIT_REF_SLUG-$V', paths: ['$CI_PROJECT_DIR/.cache/pip']}",
            &[(".cache/pip", "main-v", &[])],
        );
        check(
            "[{key: {files: [Gemfile.lock], prefix: '$V'}, paths: [vendor/ruby]}, {key: js, paths: [node_modules/**]}]",
            &[("vendor/ruby", "v", &["Gemfile.lock"]), ("node_modules", "js", &[])],
        );
        check("{paths: [/usr/local/cargo/registry/]}", &[("/usr/local/cargo/registry", "default", &[])]);
        check("{}", &[]);
        check("[]", &[]);
        check("{key: x, untracked: true}", &[]);
    }

    #[test]
    fn paths_that_would_do_harm_are_left_out() {
        for path in [
            "../x",
            "a/../../x",
            ".git/hooks",
            "/",
            "/etc",
            "/usr",
            "/proc/1",
            ".",
            "",
            "~/.cache",
            "target/*.jar",
            "a:b",
            "/workspace/",
        ] {
            check(&format!("{{paths: ['{path}']}}"), &[]);
        }
    }
}
