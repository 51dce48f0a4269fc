//! The score of one job, with its reasons.

use std::collections::BTreeMap;

use super::super::follow::Follower;
use super::super::images::ImageName;
use super::super::job::Job;
use super::super::language;
use super::super::purpose::{self, Purpose};
use super::super::shell;
use super::super::yaml::{Node, Value};
use super::pins;

/// What a job is worth as a development environment.
#[derive(Debug, Clone)]
pub(super) struct Judgement {
    pub(super) score: i64,
    /// The most telling thing that the script does.
    pub(super) purpose: Purpose,
    /// The program that does it.
    pub(super) tool: Option<String>,
    pub(super) reasons: Vec<String>,
}

impl Judgement {
    /// Whether the job does anything that a developer would do.
    pub(super) fn worth(&self) -> bool {
        !matches!(self.purpose, Purpose::Trivial | Purpose::State | Purpose::Forbidden(_))
    }

    fn add(&mut self, points: i64, why: &str) {
        self.score += points;
        self.reasons.push(format!("{why} {points:+}"));
    }
}

/// Judges a job.
pub(super) fn judge(
    job: &Job<'_>,
    image: Option<&ImageName>,
    pins: &BTreeMap<&'static str, String>,
    files: &BTreeMap<String, String>,
) -> Judgement {
    let mut judgement = Judgement { score: 0, purpose: Purpose::Trivial, tool: None, reasons: Vec::new() };
    by_script(job, files, &mut judgement);
    by_name(job, &mut judgement);
    by_keywords(job, &mut judgement);
    if let Some(image) = image {
        if image.is_bare() {
            judgement.add(-5, "bare operating system");
        }
        if image.is_for_documents() {
            judgement.add(-45, "an image for documents");
        }
        match pins::matches(pins, image, &[]) {
            Some(true) => judgement.add(6, "the version that the repository pins"),
            Some(false) => judgement.add(-6, "another version than the repository pins"),
            None => {}
        }
        if image.tag.as_deref().is_some_and(|tag| ["nightly", "beta", "edge"].iter().any(|word| tag.contains(word))) {
            judgement.add(-10, "unstable version");
        }
    }
    judgement
}

fn by_script(job: &Job<'_>, files: &BTreeMap<String, String>, judgement: &mut Judgement) {
    let mut follower = Follower::new(files);
    for (text, _) in job.lines("before_script") {
        follower.split(&text);
    }
    let mut ships = false;
    let mut telling: Option<(Purpose, String, String)> = None;
    for (text, _) in job.lines("script") {
        for unit in follower.split(&text).units {
            let purpose = purpose::of_unit(&unit);
            if matches!(purpose, Purpose::Forbidden(_)) {
                ships = true;
                continue;
            }
            if telling.as_ref().is_none_or(|(best, ..)| purpose > *best) {
                let inner = unit.inner.iter().flat_map(|unit| &unit.commands);
                let words = unit.commands.iter().chain(inner).find(|words| purpose::of_command(words) == purpose);
                let tool = words.and_then(|words| shell::program(words).into_iter().next()).unwrap_or_default();
                telling = Some((purpose, tool, unit.text.clone()));
            }
        }
    }
    match telling {
        // `cd deploy` before `kubectl apply` makes nobody's environment.
        Some((purpose, ..)) if ships && matches!(purpose, Purpose::Trivial | Purpose::State) => {
            judgement.purpose = Purpose::Forbidden(purpose::Ban::Deploy);
        }
        Some((purpose, tool, text)) => {
            judgement.purpose = purpose;
            judgement.tool = Some(tool);
            let shown: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
            judgement.add(points(purpose), &format!("runs `{shown}`"));
        }
        None if ships => judgement.purpose = Purpose::Forbidden(purpose::Ban::Deploy),
        None => {}
    }
    if ships {
        judgement.add(-5, "ships something");
    }
}

/// The last program of a job's lines that belongs to a language, where the most telling one (`make`) belongs to none.
pub(super) fn speaking(job: &Job<'_>) -> Option<String> {
    let lines = job.lines("before_script").into_iter().chain(job.lines("script"));
    let units = lines.flat_map(|(text, _)| shell::split(&text).units);
    let mut programs =
        units.flat_map(|unit| unit.commands).filter_map(|words| shell::program(&words).into_iter().next());
    programs.rfind(|program| language::of_tool(program).is_some())
}

fn points(purpose: Purpose) -> i64 {
    match purpose {
        Purpose::Test => 100,
        Purpose::TestScript => 80,
        Purpose::EndToEnd => 60,
        Purpose::Build => 50,
        Purpose::Lint => 40,
        Purpose::Dependencies | Purpose::Database => 15,
        Purpose::Other | Purpose::Packages => 10,
        _ => 0,
    }
}

/// Names of platforms beside the one that hosts have.
const OTHER_PLATFORMS: [&str; 20] = [
    "windows", "win", "win32", "win64", "mingw", "macos", "osx", "mac", "darwin", "ios", "freebsd", "arm", "arm64",
    "armhf", "armv7", "aarch64", "i386", "s390x", "ppc64le", "riscv64",
];

fn by_name(job: &Job<'_>, judgement: &mut Judgement) {
    let lower = job.name.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    let has = |words: &[&str]| parts.iter().any(|part| words.contains(part));
    if has(&[
        "test",
        "tests",
        "testing",
        "spec",
        "specs",
        "rspec",
        "unit",
        "unittest",
        "unittests",
        "pytest",
        "phpunit",
        "jest",
        "check",
    ]) {
        judgement.add(15, "named like a test");
    }
    if has(&["unit", "unittest", "unittests", "rspec"]) {
        judgement.add(4, "unit tests");
    }
    if has(&[
        "e2e",
        "acceptance",
        "browser",
        "cypress",
        "playwright",
        "functional",
        "integration",
        "system",
        "smoke",
        "performance",
        "perf",
        "benchmark",
        "bench",
        "load",
        "fuzz",
        "mutation",
        "nightly",
        "compatibility",
        "upgrade",
        "federated",
        "docs",
        "doc",
    ]) {
        judgement.add(-15, "named like a special test");
    }
    if has(&["lint", "style", "format", "fmt"]) && judgement.purpose != Purpose::Test {
        judgement.add(-5, "named like a style check");
    }
    if has(&OTHER_PLATFORMS) {
        judgement.add(-12, "named like another platform");
    }
    if has(&["lowest", "minimal", "legacy", "next", "canary", "beta", "edge", "experimental", "unstable", "mutants"]) {
        judgement.add(-6, "named like a variant");
    }
    let ships = ["deploy", "deployment", "release", "publish", "pages", "staging", "production", "review"];
    if has(&ships) && judgement.purpose < Purpose::TestScript {
        judgement.add(-20, "named like a deployment");
    }
    let stage = job.stage().to_ascii_lowercase();
    if stage.contains("test") && job.keyword("stage").is_some() {
        judgement.add(8, "in a stage for tests");
    }
}

fn by_keywords(job: &Job<'_>, judgement: &mut Judgement) {
    let is = |keyword: &str, value: &str| job.keyword(keyword).and_then(Node::text).as_deref() == Some(value);
    if is("when", "manual") || is("when", "delayed") || only_rules(job, "when", "manual") {
        judgement.add(-25, "manual");
    }
    if is("allow_failure", "true") {
        judgement.add(-10, "may fail");
    }
    let only: Vec<String> = job.keyword("only").map(refs).unwrap_or_default();
    if !only.is_empty() && only.iter().all(|text| text == "schedules") {
        judgement.add(-20, "only on schedules");
    } else if !only.is_empty() && only.iter().all(|text| text == "tags") {
        judgement.add(-12, "only on tags");
    }
    let tags = job.inherited("tags").map(|fact| fact.node.texts()).unwrap_or_default();
    let other_system = |tag: &String| {
        ["windows", "mac", "macos", "osx", "darwin", "ios"].iter().any(|word| tag.to_ascii_lowercase().contains(word))
    };
    if tags.iter().any(other_system) {
        judgement.add(-40, "runs on another operating system");
    }
    if job.keyword("environment").is_some() {
        judgement.add(-15, "belongs to a deployment");
    }
    let reports = job.keyword("artifacts").and_then(|node| node.get("reports"));
    if job.keyword("coverage").is_some() || reports.is_some_and(|node| node.get("junit").is_some()) {
        judgement.add(4, "reports test results");
    }
    if job.inherited("services").is_some_and(|fact| fact.node.list().is_some_and(|items| !items.is_empty())) {
        judgement.add(2, "has services");
    }
    let uses_docker = job.inherited("services").is_some_and(|fact| {
        let names = fact.node.list().unwrap_or_default().iter();
        names.filter_map(super::super::job::image).any(|written| written.name.contains("dind"))
    });
    if uses_docker && job.keyword("services").is_some() {
        judgement.add(-10, "needs Docker in Docker");
    }
}

/// The references of `only:`, in both spellings.
fn refs(node: &Node) -> Vec<String> {
    match &node.value {
        Value::Map(map) => map.get("refs").map(Node::texts).unwrap_or_default(),
        _ => node.texts(),
    }
}

/// Whether all rules that let the job run say the same of a keyword.
fn only_rules(job: &Job<'_>, keyword: &str, value: &str) -> bool {
    let rules = job.keyword("rules").and_then(Node::list).unwrap_or_default();
    let of = |rule: &Node| rule.get(keyword).and_then(Node::text);
    let mut running = rules.iter().filter(|rule| of(rule).as_deref() != Some("never")).peekable();
    running.peek().is_some() && running.all(|rule| of(rule).as_deref() == Some(value))
}
