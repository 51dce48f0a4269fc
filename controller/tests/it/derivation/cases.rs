//! One file per case in `tests/fixtures/ci-cases`: a CI configuration in the style that projects write, and in its comments what
//! a person would derive from it. `verify`, `setup`, `packages` and `services` are compared whole wherever there is an `image`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use devfleet_controller::environment::{Context, Derivation, cache_kind, derive};

use super::{context, large, mutate, raw};

struct Case {
    name: String,
    text: String,
    expected: BTreeMap<String, Vec<String>>,
}

impl Case {
    fn one(&self, key: &str) -> Option<&str> {
        self.expected.get(key).and_then(|values| values.last()).map(String::as_str)
    }

    fn all(&self, key: &str) -> Vec<String> {
        self.expected.get(key).cloned().unwrap_or_default()
    }

    /// The verdict, and between what the confidence has to lie.
    fn certainty(&self) -> (&str, f64, f64) {
        let range = self.one("confidence").unwrap_or("0.75 1");
        let (low, high) = range.split_once(' ').expect("two numbers");
        (self.one("verdict").unwrap_or("derived"), low.parse().expect("a number"), high.parse().expect("a number"))
    }
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ci-cases");
    let mut paths: Vec<_> = std::fs::read_dir(root).expect("cases").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    let case = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).expect("text");
        let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
            if let Some((key, value)) = line.split_once(": ") {
                expected.entry(key.to_owned()).or_default().push(value.to_owned());
            }
        }
        Case { name: path.file_stem().expect("a name").to_string_lossy().into_owned(), text, expected }
    };
    paths.iter().map(case).collect()
}

fn tagged(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') { image.to_owned() } else { format!("{image}:latest") }
}

fn differences(case: &Case, derived: &Derivation) -> Vec<String> {
    let mut found = Vec::new();
    let environment = &derived.environment;
    let mut compare = |what: &str, expected: String, actual: String| {
        if expected != actual {
            found.push(format!("{what}: expected {expected}, got {actual}"));
        }
    };
    if let Some(job) = case.one("job") {
        compare("job", job.to_owned(), derived.ci_job.clone());
    }
    if let Some(image) = case.one("image") {
        compare("image", tagged(image), derived.written_image.clone());
        compare("resolved", tagged(case.one("resolved").unwrap_or(image)), environment.image.clone());
        compare("packages", case.one("packages").unwrap_or_default().to_owned(), derived.packages.join(" "));
        let service = |service: &devfleet_shared::environment::ServiceSpec| {
            format!("{}@{}", service.image, service.aliases.join(","))
        };
        let services: Vec<String> = environment.services.iter().map(service).collect();
        compare("services", case.one("services").unwrap_or_default().to_owned(), services.join(" "));
        if case.one("verify-has").is_none() {
            compare("setup", format!("{:?}", case.all("setup")), format!("{:?}", environment.setup));
            compare("verify", format!("{:?}", case.all("verify")), format!("{:?}", environment.verify));
        }
    }
    for line in case.all("verify-has") {
        compare(
            "verify has it",
            format!("{line:?}"),
            format!("{:?}", environment.verify.iter().find(|one| **one == line).unwrap_or(&String::new())),
        );
    }
    if let Some(language) = case.one("language") {
        let actual: Vec<&str> =
            [&derived.language, &derived.version].into_iter().flatten().map(String::as_str).collect();
        compare("language", language.to_owned(), actual.join(" "));
    }
    if let Some(optional) = case.one("optional") {
        let actual: Vec<&str> = derived.optional_services.iter().map(|service| service.image.as_str()).collect();
        compare("optional", optional.to_owned(), actual.join(" "));
    }
    let caches: Vec<String> = environment
        .caches
        .iter()
        .map(|cache| {
            [&[cache.path.clone(), cache_kind(&cache.path).to_owned()][..], &cache.lock_files].concat().join(" ")
        })
        .collect();
    for cache in case.all("cache").iter().filter(|cache| !caches.contains(cache)) {
        found.push(format!("cache: no {cache} in {caches:?}"));
    }
    found
}

/// Nothing is known but the file.
fn alone() -> Context {
    Context { registry_prefix: None, ..context(BTreeMap::new()) }
}

#[test]
fn every_case_gives_what_a_person_would_derive() {
    let cases = cases();
    assert!(cases.len() >= 103, "only {} cases were found", cases.len());
    let mut wrong = String::new();
    for case in &cases {
        let (verdict, low, high) = case.certainty();
        let found = match derive(&raw(&case.text), &alone()) {
            Ok(derived) => {
                let mut found = differences(case, &derived);
                if derived.verdict.name() != verdict || !(low..=high).contains(&derived.confidence) {
                    let (actual, confidence) = (derived.verdict.name(), derived.confidence);
                    found.push(format!("expected {verdict} with {low} to {high}, got {actual} with {confidence}"));
                }
                found
            }
            Err(_) if case.one("image").is_none() && low == 0.0 && verdict != "derived" => Vec::new(),
            Err(error) => vec![format!("refused: {error}")],
        };
        for difference in found {
            let _ = writeln!(wrong, "{}: {difference}", case.name);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn broken_configurations_neither_panic_nor_hang() {
    let seeds: Vec<String> = cases().into_iter().map(|case| case.text).collect();
    let began = Instant::now();
    let derived = (0..1_500).filter(|number| mutate::execution(&seeds, *number)).count();
    assert!(derived > 200, "only {derived} got as far as an environment");
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}

#[test]
fn the_largest_configuration_is_derived_in_no_time() {
    let text = large::configuration(60);
    assert!(text.len() > 15_796, "{} bytes", text.len());
    let config = raw(&text);
    let best = (0..5)
        .map(|_| {
            let began = Instant::now();
            derive(&config, &context(BTreeMap::new())).expect("it derives");
            began.elapsed()
        })
        .min()
        .expect("five");
    // A debug build on a loaded machine takes many times what docs/derivation.md records for a release build.
    assert!(best < Duration::from_secs(1), "{best:?}");
}
