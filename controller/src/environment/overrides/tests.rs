//! What `.devfleet.toml` may say, what it does to a derivation, and what is refused.

use super::*;

const WHOLE: &str = r#"
image = "registry.example.com/team/app:1"
setup = ["pip install -r requirements.txt"]
verify = ["pytest -q"]
egress = ["pypi.org", "*.example.com"]

[budget]
tokens = 200_000

[[services]]
image = "postgres:16"
aliases = ["db"]
variables = { POSTGRES_PASSWORD = "x" }

[[caches]]
path = ".venv"
lock_files = ["requirements.txt"]

[components.api]
paths = ["api/**"]
description = "the server"
"#;

fn derived() -> Derivation {
    let line = |fact: &str| ReportLine {
        fact: fact.into(),
        value: "from CI".into(),
        file: ".gitlab-ci.yml:1".into(),
        job: "test".into(),
        keyword: fact.into(),
    };
    Derivation {
        environment: EnvironmentSpec {
            image: "python:3.11".into(),
            user: Some("1000".into()),
            entrypoint: Some(vec![]),
            services: vec![ServiceSpec { name: "redis".into(), image: "redis:7".into(), ..ServiceSpec::default() }],
            variables: BTreeMap::from([("CI".into(), "true".into())]),
            setup: vec!["make deps".into()],
            verify: vec!["make test".into()],
            ..EnvironmentSpec::default()
        },
        ci_job: "test".into(),
        packages: vec!["libpq-dev".into()],
        report: ["image", "service redis", "setup", "verify", "variable CI"].map(line).into(),
        confidence: 0.5,
        ..Derivation::default()
    }
}

fn from_file(derivation: &Derivation) -> Vec<(&str, &str)> {
    let ours = derivation.report.iter().filter(|line| line.file.starts_with(OVERRIDES_FILE));
    ours.map(|line| (line.fact.as_str(), line.file.as_str())).collect()
}

#[test]
fn every_fact_of_the_file_replaces_that_of_ci_and_says_where_it_stands() {
    let overrides = Overrides::parse(WHOLE).expect("it is right");
    let derivation = overrides.apply(Ok(derived())).expect("applied");
    let environment = &derivation.environment;
    assert_eq!(environment.image, "registry.example.com/team/app:1");
    assert_eq!((&environment.user, &environment.entrypoint), (&None, &None), "they belong to the other image");
    assert_eq!(environment.setup, ["pip install -r requirements.txt"]);
    assert_eq!(environment.verify, ["pytest -q"]);
    let services: Vec<_> = environment.services.iter().map(|one| (one.name.as_str(), one.image.as_str())).collect();
    assert_eq!(services, [("db", "postgres:16")]);
    assert_eq!(environment.services[0].aliases, ["db", "postgres"]);
    let variables: Vec<_> = environment.services[0].variables.keys().map(String::as_str).collect();
    assert_eq!(variables, ["CI", "POSTGRES_PASSWORD"]);
    assert_eq!((environment.caches[0].path.as_str(), environment.caches[0].key.as_str()), (".venv", "default"));
    assert_eq!(
        from_file(&derivation),
        [
            ("image", ".devfleet.toml:2"),
            ("service db", ".devfleet.toml:10"),
            ("setup", ".devfleet.toml:3"),
            ("verify", ".devfleet.toml:4"),
            ("cache .venv", ".devfleet.toml:15"),
        ]
    );
    let left: Vec<_> = derivation.report.iter().filter(|line| line.value == "from CI").map(|line| &line.fact).collect();
    assert_eq!(left, ["variable CI"], "CI's word stands nowhere beside that of the file");
    assert_eq!(derivation.packages, ["libpq-dev"]);
    assert!(derivation.notes.iter().any(|note| note.contains("no host enforces them yet")), "{:?}", derivation.notes);
    assert_eq!(overrides.declared.budget_tokens, Some(200_000));
    assert_eq!(overrides.declared.components["api"].paths, ["api/**"]);
}

#[test]
fn what_the_file_does_not_name_stays_as_ci_has_it() {
    let overrides = Overrides::parse("verify = []\nservices = []\n").expect("it is right");
    let derivation = overrides.apply(Ok(derived())).expect("applied");
    assert_eq!(derivation.environment.image, "python:3.11");
    assert_eq!(derivation.environment.user.as_deref(), Some("1000"));
    assert_eq!(derivation.environment.setup, ["make deps"]);
    assert!(derivation.environment.verify.is_empty() && derivation.environment.services.is_empty());
    assert_eq!(from_file(&derivation), [("services", ".devfleet.toml:2"), ("verify", ".devfleet.toml:1")]);
    let nothing = Overrides::parse("# nothing yet\n").expect("an empty file is right");
    assert_eq!(nothing.apply(Ok(derived())), Ok(derived()));
}

#[test]
fn an_image_of_the_file_helps_where_ci_names_none_and_nowhere_else() {
    let no_jobs = || DerivationError::NoJobs { file: ".gitlab-ci.yml".into() };
    let overrides = Overrides::parse("image = \"ruby:3.2\"\nverify = [\"rake\"]\n").expect("it is right");
    let derivation = overrides.apply(Err(no_jobs())).expect("the file names the image");
    assert_eq!(
        (derivation.environment.image.as_str(), derivation.environment.verify.as_slice()),
        ("ruby:3.2", ["rake".to_owned()].as_slice())
    );
    assert!(derivation.notes.iter().any(|note| note.contains("it has none")), "{:?}", derivation.notes);
    let verify_only = Overrides::parse("verify = [\"rake\"]\n").expect("it is right");
    assert_eq!(verify_only.apply(Err(no_jobs())), Err(no_jobs()));
    let broken = || DerivationError::InvalidYaml { file: "x".into(), line: 1, problem: "y".into() };
    assert_eq!(overrides.apply(Err(broken())), Err(broken()));
}

#[track_caller]
fn check_refused(text: &str, line: usize, key: &str, needle: &str) {
    let error = Overrides::parse(text).expect_err(text);
    assert_eq!((error.line, error.key.as_str()), (line, key), "{error}");
    assert!(error.problem.contains(needle), "{error}");
    assert!(error.to_string().contains(&format!(".devfleet.toml of the default branch: line {line}")), "{error}");
}

#[test]
fn what_is_wrong_is_said_with_its_line_and_key() {
    check_refused("\nimgae = \"ruby\"\n", 2, "imgae", "unknown field");
    check_refused("image = 3\n", 1, "image", "expected a string");
    check_refused("image = \"Ruby:3\"\n", 1, "image", "no image name");
    check_refused("image = \"ruby:3\nverify = []\n", 1, "image", "");
    check_refused("verify = [\"a\"]\n\nsetup = \"make\"\n", 3, "setup", "expected a sequence");
    check_refused("setup = [\" \"]\n", 1, "setup", "empty");
    check_refused("[[services]]\nimage = \"redis\"\n[[services]]\nimage = \"\"\n", 3, "services.image", "empty");
    check_refused("[[services]]\nimage = \"redis\"\nport = 1\n", 3, "services.port", "unknown field");
    check_refused("[[services]]\nimage = \"docker:dind\"\n", 1, "services.image", "privileged");
    check_refused("[[services]]\nimage = \"redis\"\naliases = [\"a b\"]\n", 1, "services.aliases", "host name");
    check_refused("[[services]]\nimage = \"redis\"\nvariables = { \"A-B\" = \"1\" }\n", 1, "services.variables", "A-B");
    check_refused("[[caches]]\npath = \"../x\"\n", 1, "caches.path", "leaves the workspace");
    check_refused("[[caches]]\npath = \"x\"\nlock_files = [\"/etc/passwd\"]\n", 1, "caches.lock_files", "leaves");
    check_refused("[budget]\ntokens = 1\n", 1, "budget.tokens", "1000");
    check_refused("egress = [\"https://pypi.org\"]\n", 1, "egress", "without scheme");
    check_refused("egress = [\"*\"]\n", 1, "egress", "no host");
    check_refused("x = 1\n", 1, "x", "unknown field");
    check_refused("\n[components.api]\npaths = []\n", 2, "components.api.paths", "at least one");
    check_refused(&"#".repeat(OVERRIDES_BYTES + 1), 1, "", "longer than");
    check_refused(&format!("verify = [{}]", "\"a\",".repeat(65)), 1, "verify", "more than 64");
}
