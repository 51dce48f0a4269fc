//! Environments from whole CI configurations: every directory in `tests/fixtures/ci` is a repository with its answer.

mod archived;
mod cases;
mod hostile;
mod large;
mod mutate;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use devfleet_controller::environment::{AgentNeeds, Context, Derivation, DerivationError, compose, derive, recipe};
use devfleet_controller::forge::CiConfig;
use devfleet_shared::environment::{EnvironmentSpec, ServiceSpec};
use proptest::prelude::*;
use serde::Deserialize;

/// What a fixture has to give. What is absent has to be empty, apart from notes and confidence.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Expected {
    config: Option<String>,
    error: Option<String>,
    verdict: Option<String>,
    job: String,
    image: String,
    entrypoint: Option<Vec<String>>,
    user: Option<String>,
    platform: Option<String>,
    services: Vec<String>,
    packages: Vec<String>,
    setup: Vec<String>,
    verify: Vec<String>,
    dropped: Vec<String>,
    caches: Vec<String>,
    alternatives: Vec<String>,
    notes: Vec<String>,
    confidence: Option<(f64, f64)>,
    variables: BTreeMap<String, String>,
    service_variables: BTreeMap<String, String>,
}

fn context(repository_files: BTreeMap<String, String>) -> Context {
    Context {
        project_path: "team/shop".into(),
        default_branch: "main".into(),
        base_branch: "main".into(),
        base_commit: "0123456789abcdef0123456789abcdef01234567".into(),
        registry_prefix: Some("registry.example.com/team/shop".into()),
        repository_files,
    }
}

fn raw(text: &str) -> CiConfig {
    CiConfig::Raw {
        path: ".gitlab-ci.yml".into(),
        files: vec![(".gitlab-ci.yml".into(), text.into())],
        notes: Vec::new(),
    }
}

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ci");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(root).expect("fixtures").map(|entry| entry.expect("entry").path()).collect();
    found.sort();
    found
}

fn files_of(directory: &Path, below: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).expect("directory") {
        let entry = entry.expect("entry");
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            files_of(&entry.path(), &format!("{name}/"), found);
        } else {
            found.insert(name, std::fs::read_to_string(entry.path()).expect("text"));
        }
    }
}

/// Reads a fixture and derives it.
fn run(directory: &Path) -> (Expected, Result<Derivation, DerivationError>) {
    let mut files = BTreeMap::new();
    files_of(directory, "", &mut files);
    let expected: Expected =
        toml::from_str(&files.remove("expected.toml").expect("an answer")).expect("a readable answer");
    let (yaml, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        files.into_iter().partition(|(name, _)| name.ends_with(".yml"));
    let config = match expected.config.as_deref() {
        Some("merged") => CiConfig::Merged {
            yaml: yaml.get(".gitlab-ci.yml").expect("a CI file").clone(),
            errors: Vec::new(),
            warnings: Vec::new(),
            files: vec![".gitlab-ci.yml".into()],
        },
        _ => CiConfig::Raw { path: ".gitlab-ci.yml".into(), files: yaml.into_iter().collect(), notes: Vec::new() },
    };
    let derived = derive(&config, &context(others));
    (expected, derived)
}

/// Says every difference between an answer and a derivation.
fn differences(expected: &Expected, derived: &Derivation) -> Vec<String> {
    let mut found = Vec::new();
    let environment = &derived.environment;
    let mut compare = |what: &str, expected: String, actual: String| {
        if expected != actual {
            found.push(format!("{what}: expected {expected}, got {actual}"));
        }
    };
    let services: Vec<String> = environment
        .services
        .iter()
        .map(|service| format!("{} {} {}", service.name, service.image, service.aliases.join(",")))
        .collect();
    let caches: Vec<String> = environment
        .caches
        .iter()
        // Those of package managers have a test of their own.
        .filter(|cache| !cache.key.starts_with("packages:"))
        .map(|cache| format!("{} {} {}", cache.path, cache.key, cache.lock_files.join(",")).trim_end().to_owned())
        .collect();
    let dropped: Vec<&String> = derived.dropped.iter().map(|dropped| &dropped.line).collect();
    let alternatives: Vec<&String> = derived.alternatives.iter().map(|alternative| &alternative.job).collect();
    compare("job", expected.job.clone(), derived.ci_job.clone());
    compare("image", expected.image.clone(), environment.image.clone());
    compare("entrypoint", format!("{:?}", expected.entrypoint), format!("{:?}", environment.entrypoint));
    compare("user", format!("{:?}", expected.user), format!("{:?}", environment.user));
    compare("platform", format!("{:?}", expected.platform), format!("{:?}", environment.platform));
    compare("services", format!("{:?}", expected.services), format!("{services:?}"));
    compare("packages", format!("{:?}", expected.packages), format!("{:?}", derived.packages));
    compare("setup", format!("{:?}", expected.setup), format!("{:?}", environment.setup));
    compare("verify", format!("{:?}", expected.verify), format!("{:?}", environment.verify));
    compare("dropped", format!("{:?}", expected.dropped), format!("{dropped:?}"));
    compare("caches", format!("{:?}", expected.caches), format!("{caches:?}"));
    compare("alternatives", format!("{:?}", expected.alternatives), format!("{alternatives:?}"));
    compare("verdict", expected.verdict.clone().unwrap_or("derived".into()), derived.verdict.name().into());
    for (name, value) in &expected.variables {
        let actual = environment.variables.get(name).cloned().unwrap_or_default();
        compare(&format!("variable {name}"), value.clone(), actual);
    }
    for (name, value) in &expected.service_variables {
        let service = environment.services.first().cloned().unwrap_or_default();
        compare(
            &format!("service variable {name}"),
            value.clone(),
            service.variables.get(name).cloned().unwrap_or_default(),
        );
    }
    for note in &expected.notes {
        if !derived.notes.iter().any(|text| text.contains(note)) {
            found.push(format!("no note says {note:?}: {:?}", derived.notes));
        }
    }
    if let Some((low, high)) = expected.confidence.filter(|(low, high)| !(*low..=*high).contains(&derived.confidence)) {
        found.push(format!("confidence {} is not within {low} and {high}", derived.confidence));
    }
    found
}

#[test]
fn every_fixture_gives_the_environment_that_a_person_would_derive() {
    let mut wrong = String::new();
    let fixtures = fixtures();
    assert!(fixtures.len() >= 40, "only {} fixtures were found", fixtures.len());
    for directory in fixtures {
        let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
        let (expected, derived) = run(&directory);
        let found = match (&expected.error, &derived) {
            (None, Ok(derived)) => differences(&expected, derived),
            (Some(text), Err(error)) if error.to_string().contains(text) => Vec::new(),
            (Some(text), Err(error)) => vec![format!("expected an error with {text:?}, got {error}")],
            (None, Err(error)) => vec![format!("refused: {error}")],
            (Some(text), Ok(derived)) => {
                vec![format!("expected an error with {text:?}, got {:?}", derived.environment)]
            }
        };
        for difference in found {
            let _ = writeln!(wrong, "{name}: {difference}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn deriving_twice_gives_the_same_and_survives_storing() {
    for directory in fixtures() {
        let (first, second) = (run(&directory).1, run(&directory).1);
        assert_eq!(first, second, "{}", directory.display());
        let Ok(derived) = first else { continue };
        let stored = serde_json::to_string(&derived).expect("it can be stored");
        let loaded: Derivation = serde_json::from_str(&stored).expect("it can be loaded");
        assert_eq!(derived, loaded, "{}", directory.display());
    }
}

#[test]
fn every_fact_names_its_line_job_and_keyword() {
    let directory = fixtures().into_iter().find(|path| path.ends_with("python-postgres")).expect("the fixture");
    let derived = run(&directory).1.expect("it derives");
    let line = |fact: &str| {
        let line = derived.report.iter().find(|line| line.fact == fact).unwrap_or_else(|| panic!("no line for {fact}"));
        (line.file.as_str(), line.job.as_str(), line.keyword.as_str())
    };
    assert_eq!(line("image"), (".gitlab-ci.yml:1", "(global)", "image"));
    assert_eq!(line("service postgres"), (".gitlab-ci.yml:30", "test", "services"));
    assert_eq!(line("packages"), (".gitlab-ci.yml:19", "(global)", "before_script"));
    assert_eq!(line("verify"), (".gitlab-ci.yml:32", "test", "script"));
    assert_eq!(line("variable POSTGRES_DB"), (".gitlab-ci.yml:4", "(global)", "variables"));
    assert!(
        derived.report.iter().any(|line| line.fact == "job" && line.value.contains("runs `pytest -q --cov=shop` +100"))
    );
}

#[test]
fn what_gitlab_says_about_the_configuration_reaches_the_notes() {
    let config = CiConfig::Merged {
        yaml: "test: {image: 'python:3', script: pytest}\n".into(),
        errors: vec!["jobs:test config is odd".into()],
        warnings: vec!["be careful".into()],
        files: Vec::new(),
    };
    let derived = derive(&config, &context(BTreeMap::new())).expect("it derives");
    assert!(derived.notes.iter().any(|note| note.contains("jobs:test config is odd")), "{:?}", derived.notes);
    assert!(derived.notes.iter().any(|note| note.contains("be careful")), "{:?}", derived.notes);
    assert!(derived.confidence < 0.9, "{}", derived.confidence);
}

/// The hostile environment that a compose file has to survive.
fn awkward() -> EnvironmentSpec {
    let values = [
        ("DOLLARS", "$HOME ${PATH:-x} $$ $"),
        ("QUOTES", "\"double\" 'single' \\ back"),
        ("LINES", "one\ntwo\n  three: [\n"),
        ("YAML", "yes"),
        ("COLON", "a: b # c"),
        ("UNICODE", "grün \u{1F680}"),
        ("EMPTY", ""),
        ("NUMBER", "007"),
    ];
    let variables: BTreeMap<String, String> =
        values.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let service = |name: &str, entrypoint: Option<Vec<String>>, command: Option<Vec<String>>| ServiceSpec {
        name: name.into(),
        image: "postgres:16".into(),
        aliases: vec![name.into(), format!("{name}__alias")],
        entrypoint,
        command,
        variables: variables.clone(),
        ..ServiceSpec::default()
    };
    EnvironmentSpec {
        image: "python:3.12".into(),
        entrypoint: Some(vec![String::new()]),
        user: Some("1000:1000".into()),
        platform: Some("linux/amd64".into()),
        services: vec![
            service("db", None, Some(vec!["postgres".into(), "-c".into(), "x=$1".into()])),
            service("cache", Some(vec!["/run $it".into()]), None),
            service("none", Some(vec![String::new()]), Some(vec!["serve".into()])),
            ServiceSpec { name: "yes".into(), image: "redis:7".into(), ..ServiceSpec::default() },
        ],
        variables,
        ..EnvironmentSpec::default()
    }
}

#[expect(clippy::print_stdout, reason = "a skipped check says why")]
/// What docker-compose makes of a file; `None` without docker-compose on this machine.
fn compose_config(text: &str) -> Option<serde_json::Value> {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("compose.yaml"), text).expect("a file");
    let output = Command::new("docker-compose")
        .args(["-f", "compose.yaml", "config"])
        .current_dir(directory.path())
        .env("COMPOSE_PROJECT_NAME", "derivation")
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: docker-compose is not installed on this machine");
            return None;
        }
        Err(error) => panic!("docker-compose cannot be started: {error}"),
    };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.trim().is_empty(), "docker-compose refuses it: {errors}\n{text}");
    Some(serde_saphyr::from_str(&String::from_utf8_lossy(&output.stdout)).expect("YAML"))
}

/// `docker-compose config` prints `$` doubled, so that its output can be read again.
fn printed(value: &str) -> serde_json::Value {
    value.replace('$', "$$").into()
}

#[test]
fn docker_compose_reads_back_exactly_what_was_written() {
    let environment = awkward();
    let text = compose(&environment, &recipe(&environment, &[], &AgentNeeds::default()));
    let Some(config) = compose_config(&text) else { return };
    let devbox = &config["services"]["devbox"];
    for (name, value) in &environment.variables {
        assert_eq!(devbox["environment"][name], printed(value), "{name} of devbox");
        assert_eq!(config["services"]["db"]["environment"][name], printed(value), "{name} of db");
    }
    assert_eq!(devbox["entrypoint"], serde_json::json!(["sleep", "infinity"]));
    assert_eq!(devbox["user"], "1000:1000");
    assert_eq!(devbox["platform"], "linux/amd64");
    assert_eq!(devbox["build"]["args"]["DEVFLEET_USER"], "0");
    assert_eq!(config["services"]["db"]["command"], serde_json::json!(["postgres", "-c", "x=$$1"]));
    assert_eq!(config["services"]["db"]["networks"]["box"]["aliases"], serde_json::json!(["db", "db__alias"]));
    assert_eq!(config["services"]["cache"]["entrypoint"], serde_json::json!(["/run $$it"]));
    assert_eq!(config["services"]["none"]["entrypoint"], serde_json::json!(["serve"]));
    assert_eq!(config["services"]["yes"]["image"], "redis:7");
}

#[test]
fn docker_compose_accepts_the_file_of_a_derived_environment() {
    for directory in
        fixtures().into_iter().filter(|path| path.ends_with("python-postgres") || path.ends_with("ruby-redis"))
    {
        let derived = run(&directory).1.expect("it derives");
        let recipe = recipe(&derived.environment, &derived.packages, &AgentNeeds::default());
        let Some(config) = compose_config(&compose(&derived.environment, &recipe)) else { return };
        let services = config["services"].as_object().expect("services");
        assert_eq!(services.len(), derived.environment.services.len() + 1, "{}", directory.display());
    }
}

/// Text that is often enough a CI configuration to get far into the derivation.
fn ci_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("image: python:3"),
        Just("image: $X/y"),
        Just("script: pytest"),
        Just("script:"),
        Just("- a && b || c"),
        Just("- |"),
        Just("services: [a, a]"),
        Just("services:"),
        Just("- name: postgres"),
        Just("alias: a b,c"),
        Just("variables:"),
        Just("A: $B"),
        Just("B: ${A}$$"),
        Just("test:"),
        Just(".t: &t"),
        Just("<<: *t"),
        Just("extends: .t"),
        Just("extends: [test, .t]"),
        Just("- !reference [.t, script]"),
        Just("parallel: {matrix: [{A: [1, 2]}]}"),
        Just("cache: {paths: [a, ../b]}"),
        Just("default:"),
        Just("before_script: [cd x, apt-get install -y git]"),
        Just("include: a.yml"),
        Just("---"),
        Just("spec: {inputs: {a: {default: 1}}}"),
        Just("inherit: {default: false}"),
        Just("? [a]"),
        Just("'"),
        Just("\"\\x\""),
        Just("{["),
        Just("script: [\"a 'b\", 'if x; then']"),
        Just("- 'echo \"$(x' && (y"),
        Just("- \\"),
        Just("\u{feff}x: \u{1F600}"),
        Just("$[[ inputs.a ]]: 1"),
    ];
    let line = (0usize..4, prop_oneof![9 => word.prop_map(str::to_owned), 1 => "\\PC{0,20}"]);
    prop::collection::vec(line, 0..30).prop_map(|lines| {
        lines.into_iter().fold(String::new(), |mut text, (depth, line)| {
            let _ = writeln!(text, "{:indent$}{line}", "", indent = depth * 2);
            text
        })
    })
}

/// Values of any shape under the keywords of a CI configuration, beside a job that has all it needs.
fn ci_values() -> impl Strategy<Value = String> {
    let keys: Vec<&str> = "image name script before_script services alias command entrypoint variables A B value expand cache key files paths parallel \
        matrix extends inherit default docker user tags only rules when stage include local test .t build allow_failure artifacts reports environment trigger"
        .split_whitespace()
        .collect();
    let texts = [
        "python:3",
        "$A",
        "${B}/x:$A",
        "$$",
        "postgres",
        "docker:dind",
        "pytest",
        "cd x && npm ci",
        "apt-get install -y git",
        "git push",
        "if x; then",
        "a\nb && c",
        "$CI_PROJECT_DIR/.cache",
        "../x",
        "test",
        ".t",
        "a b,c",
        "a.yml",
        "manual",
        "",
        "\u{e000}/x",
        "mvn deploy",
    ];
    let leaf = prop_oneof![
        6 => prop::sample::select(texts.to_vec()).prop_map(serde_json::Value::from),
        1 => any::<bool>().prop_map(serde_json::Value::from),
        1 => any::<i32>().prop_map(serde_json::Value::from),
        1 => Just(serde_json::Value::Null),
    ];
    let below = keys.clone();
    let value = leaf.prop_recursive(4, 48, 5, move |inner| {
        let map = prop::collection::btree_map(prop::sample::select(below.clone()), inner.clone(), 0..5);
        let object = |map: BTreeMap<&str, serde_json::Value>| {
            map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
        };
        prop_oneof![
            prop::collection::vec(inner, 0..5).prop_map(serde_json::Value::from),
            map.prop_map(move |map| serde_json::Value::Object(object(map)))
        ]
    });
    let entries = move || prop::collection::btree_map(prop::sample::select(keys.clone()), value.clone(), 0..8);
    (entries(), entries()).prop_map(|(top, job)| {
        let mut root = serde_json::json!({"unit": {"image": "python:3", "script": ["pytest"]}});
        job.into_iter().for_each(|(key, value)| root["unit"][key] = value);
        top.into_iter().for_each(|(key, value)| root[key] = value);
        root.to_string()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_derivation_panic_or_waver(text in prop_oneof![ci_text(), ci_values()], included in ci_text()) {
        let files = vec![(".gitlab-ci.yml".to_owned(), text.clone()), ("a.yml".to_owned(), included)];
        let config = CiConfig::Raw { path: ".gitlab-ci.yml".into(), files, notes: Vec::new() };
        let first = derive(&config, &context(BTreeMap::new()));
        prop_assert_eq!(&first, &derive(&config, &context(BTreeMap::new())));
        if let Ok(derived) = first {
            prop_assert!((0.0..=1.0).contains(&derived.confidence));
            let recipe = recipe(&derived.environment, &derived.packages, &AgentNeeds::default());
            let from = format!("FROM {}\n", derived.environment.image);
            prop_assert!(recipe.dockerfile.starts_with(&from), "{}", recipe.dockerfile);
            prop_assert!(!compose(&derived.environment, &recipe).is_empty());
        }
    }

    #[test]
    fn no_script_makes_the_sorting_panic(script in "[a-z $(){}'\"\\\\|&;<>#\\n-]{0,60}") {
        let quoted = serde_json::Value::from(script).to_string();
        let config = raw(&format!("test:\n  image: python:3\n  before_script: [{quoted}]\n  script: [{quoted}, pytest]\n"));
        let derived = derive(&config, &context(BTreeMap::new()));
        prop_assert!(derived.is_ok(), "{:?}", derived);
    }
}

#[test]
fn hostile_configurations_are_refused_with_the_limit_and_at_once() {
    for (what, text) in hostile::texts() {
        let files = vec![(".gitlab-ci.yml".to_owned(), text), ("a.yml".to_owned(), "x: {script: y}\n".to_owned())];
        let config = CiConfig::Raw { path: ".gitlab-ci.yml".into(), files, notes: Vec::new() };
        let began = tokio::time::Instant::now();
        let error = derive(&config, &context(BTreeMap::new())).expect_err(what);
        assert!(error.to_string().contains("limit"), "{what}: {error}");
        // A debug build on a loaded machine; the release build has its own, far stricter bound in benches/fuzz.rs.
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "{what}: {:?}", began.elapsed());
    }
}

#[test]
fn a_job_of_many_lines_is_only_long() {
    let lines: String = (0..50_000).map(|at| format!("    - apt-get install -y p{at}\n")).collect();
    let long = format!("test:\n  image: python\n  script:\n{}    - pytest\n", &lines[..1_000_000 - lines.len() % 40]);
    let text = long.rsplit_once("    - apt").map(|(head, _)| format!("{head}    - pytest\n")).expect("lines");
    let derived = derive(&raw(&text), &context(BTreeMap::new())).expect("it is only long");
    assert_eq!(derived.environment.verify, ["pytest"]);
}
