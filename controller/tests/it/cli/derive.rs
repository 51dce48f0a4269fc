//! `devfleet env derive` as a program: no context, no controller, one answer on standard output.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn derive(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_devfleet"))
        .args(["env", "derive"])
        .args(arguments)
        .current_dir(directory)
        .env("DEVFLEET_CONTEXT", "/nonexistent/context.toml")
        .output()
        .expect("the program starts")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A repository with a matrix, a pin, an include and a service of another job.
fn repository() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |path: &str, text: &str| {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    write(".python-version", "3.10\n");
    write(
        "ci/base.yml",
        ".base:\n  before_script:\n    - apt-get update && apt-get install -y libpq-dev\n    - pip install -e .\n",
    );
    let main = "include: /ci/base.yml\n\
        unit:\n  extends: .base\n  image: python:$PY\n  parallel: {matrix: [{PY: ['3.10', '3.12']}]}\n  services: [postgres:16]\n\
        \x20 cache: {paths: [.cache/pip]}\n  script:\n    - pytest -q\n    - git push origin HEAD\n\
        integration:\n  extends: .base\n  image: python:3.12\n  services: [redis:7]\n  script: pytest integration\n";
    write(".gitlab-ci.yml", main);
    directory
}

#[test]
fn a_folder_gives_the_whole_shape_without_a_controller() {
    let directory = repository();
    let output = derive(directory.path(), &["--raw", ".", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let found = json(&output);
    assert_eq!(found["image"], "python:3.10");
    assert_eq!(found["image_resolved"], "python:3.10");
    assert_eq!((&found["language"], &found["version"]), (&"python".into(), &"3.10".into()));
    assert_eq!(found["services"][0]["image"], "postgres:16");
    assert_eq!(found["services"][0]["aliases"], serde_json::json!(["postgres"]));
    assert_eq!(found["optional_services"][0]["image"], "redis:7");
    assert_eq!(found["packages"], serde_json::json!(["libpq-dev"]));
    assert_eq!(found["setup"], serde_json::json!(["pip install -e ."]));
    assert_eq!(found["verify"], serde_json::json!(["pytest -q"]));
    assert_eq!(found["dropped"][0]["line"], "git push origin HEAD");
    assert_eq!(found["caches"][0]["path"], ".cache/pip");
    assert_eq!(found["caches"][0]["kind"], "download");
    assert_eq!((&found["verdict"], &found["job"]), (&"derived".into(), &"unit".into()));
    assert!(found["confidence"].as_f64().is_some_and(|confidence| confidence > 0.8), "{found}");
    assert!(found["recipe_digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{found}");
    let image = found["report"].as_array().expect("lines").iter().find(|line| line["fact"] == "image").expect("a line");
    assert_eq!((&image["job"], &image["keyword"]), (&"unit".into(), &"image".into()));
}

#[test]
fn a_file_alone_is_read_without_the_repository_and_with_it() {
    let directory = repository();
    let alone = json(&derive(directory.path(), &["--raw", ".gitlab-ci.yml", "--output", "json"]));
    assert_eq!((&alone["image"], &alone["verdict"]), (&"python:3.12".into(), &"ambiguous".into()));
    let with = json(&derive(directory.path(), &["--raw", ".gitlab-ci.yml", "--repo", ".", "--output", "json"]));
    assert_eq!((&with["image"], &with["verdict"]), (&"python:3.10".into(), &"derived".into()));
}

#[test]
fn people_get_a_page_and_files_on_request() {
    let directory = repository();
    let page = derive(directory.path(), &["--raw", "."]);
    let text = String::from_utf8_lossy(&page.stdout).into_owned();
    for part in ["derived,", "python:3.10", "postgres:16 as postgres", "pytest -q", "git push origin HEAD"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.lines().count() <= 60, "a page of one minute\n{text}");
    let dockerfile = derive(directory.path(), &["--raw", ".", "--dockerfile"]);
    assert!(String::from_utf8_lossy(&dockerfile.stdout).starts_with("FROM python:3.10\n"));
    let compose = derive(directory.path(), &["--raw", ".", "--compose"]);
    assert!(String::from_utf8_lossy(&compose.stdout).contains("image: \"postgres:16\""));
}

#[test]
fn a_merged_document_is_read_as_gitlab_returns_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let merged = "---\ntest:\n  extends: \".gone\"\n  image: ruby:3.2-slim\n  script:\n  - bundle exec rspec\n";
    std::fs::write(directory.path().join("merged.yml"), merged).expect("a file");
    let found = json(&derive(directory.path(), &["--merged", "merged.yml", "--output", "json"]));
    assert_eq!((&found["image"], &found["verdict"]), (&"ruby:3.2-slim".into(), &"derived".into()));
}

#[test]
fn what_cannot_be_derived_says_so_in_its_exit_code_and_its_shape() {
    let table = [
        ("test: [", "invalid", "read ci.yml"),
        ("deploy: {script: ./ship}\n", "fallback", "find an image"),
        ("test: {image: $REGISTRY/app, script: ./x}\n", "fallback", "REGISTRY"),
    ];
    for (text, verdict, note) in table {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ci.yml"), text).expect("a file");
        let output = derive(directory.path(), &["--raw", "ci.yml", "--output", "json"]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let found = json(&output);
        assert_eq!((&found["verdict"], &found["confidence"]), (&verdict.into(), &0.0.into()), "{text}");
        assert!(found["notes"][0].as_str().is_some_and(|text| text.contains(note)), "{found}");
        let page = derive(directory.path(), &["--raw", "ci.yml"]);
        assert_eq!((page.status.code(), page.stdout.len()), (Some(2), 0), "{text}");
        assert!(String::from_utf8_lossy(&page.stderr).contains(note), "{text}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    assert_eq!(derive(directory.path(), &["--raw", "absent.yml"]).status.code(), Some(1));
    assert_eq!(derive(directory.path(), &[]).status.code(), Some(2));
}

/// The command reads of a repository what the derivation asks for, and nothing is lost on the way to its JSON: every fixture
/// gives what it gives in the library.
#[test]
fn every_fixture_that_is_a_repository_gives_its_answer_from_the_folder_too() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ci");
    let mut seen = 0;
    for entry in std::fs::read_dir(root).expect("fixtures") {
        let folder = entry.expect("an entry").path();
        let answer = std::fs::read_to_string(folder.join("expected.toml")).expect("an answer");
        let answer: toml::Table = answer.parse().expect("a readable answer");
        if answer.contains_key("config") || answer.contains_key("error") {
            continue;
        }
        seen += 1;
        let place = ["--raw", ".", "--project", "team/shop", "--registry-image", "registry.example.com/team/shop"];
        let found = json(&derive(&folder, &[&place[..], &["--output", "json"]].concat()));
        let list = |key: &str| answer.get(key).cloned().unwrap_or(toml::Value::Array(Vec::new()));
        let same = |key: &str, expected: toml::Value| {
            let expected = serde_json::to_value(&expected).expect("JSON");
            assert_eq!(found[key], expected, "{key} of {}", folder.display());
        };
        for key in ["job", "image"] {
            same(key, answer.get(key).cloned().expect("every answer has it"));
        }
        for key in ["packages", "setup", "verify"] {
            same(key, list(key));
        }
        same("verdict", answer.get("verdict").cloned().unwrap_or("derived".into()));
        assert_eq!(
            found["services"].as_array().map(Vec::len),
            list("services").as_array().map(Vec::len),
            "{}",
            folder.display()
        );
    }
    assert!(seen >= 39, "only {seen} were found");
}

#[test]
fn lock_files_of_the_repository_key_the_caches_that_a_folder_gives() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ci");
    for (fixture, path, lock_file) in [
        ("repo-make-goals", "/go/pkg/mod/cache", "go.sum"),
        ("repo-scripts-two-levels", "/usr/local/bundle/cache", "Gemfile.lock"),
        ("repo-npm-scripts", "/root/.npm", "package-lock.json"),
        ("repo-tool-versions-beat-the-matrix", ".pnpm-store", "pnpm-lock.yaml"),
    ] {
        let found = json(&derive(&root.join(fixture), &["--raw", ".", "--output", "json"]));
        let caches = found["caches"].as_array().expect("caches");
        let keyed = |cache: &&Value| cache["path"] == path && cache["lock_files"] == serde_json::json!([lock_file]);
        assert!(caches.iter().any(|cache| keyed(&cache)), "{path} by {lock_file}: {caches:?}");
    }
}

/// Bounds on the whole program: a gibibyte of address space, and an answer that names the limit.
#[test]
fn a_hostile_file_is_refused_by_a_program_that_may_use_little_memory() {
    let job = "test:\n  image: a\n  script: x\n  services:";
    let thousand = vec!["s"; 1_000].join(", ");
    let table = [
        ("10 MB", "a: b # comment\n".repeat(700_000)),
        ("a million services", format!("{job}\n{}", "  - a\n".repeat(1_000_000))),
        ("a million services by alias", format!(".s: &s [{thousand}]\n{job} [{}]\n", vec!["*s"; 1_000].join(", "))),
        ("deep nesting", format!("a: {}", "[".repeat(500_000))),
    ];
    for (what, text) in table {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ci.yml"), text).expect("a file");
        let began = tokio::time::Instant::now();
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 1048576; exec \"$0\" env derive --raw ci.yml", env!("CARGO_BIN_EXE_devfleet")])
            .current_dir(directory.path())
            .env("DEVFLEET_CONTEXT", "/nonexistent/context.toml")
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{what}: {said}");
        assert!(said.contains("limit"), "{what}: {said}");
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{what}: {:?}", began.elapsed());
    }
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys
}

/// Scripts rely on it: what is derived and what is refused have the same keys, and none of them goes away.
#[test]
fn the_shape_is_the_same_whether_there_is_an_environment_or_none() {
    let directory = repository();
    let found = json(&derive(directory.path(), &["--raw", ".", "--output", "json"]));
    std::fs::write(directory.path().join("broken.yml"), "test: [").expect("a file");
    let refused = json(&derive(directory.path(), &["--raw", "broken.yml", "--output", "json"]));
    assert_eq!(keys(&found), keys(&refused));
    for key in "image image_resolved language version services variables caches packages setup verify dropped job \
                alternatives optional_services confidence verdict notes report recipe_digest"
        .split_whitespace()
    {
        assert!(keys(&found).contains(&key), "{key}");
    }
    for (list, expected) in [
        ("services", "aliases command entrypoint image variables"),
        ("optional_services", "aliases command entrypoint image variables"),
        ("caches", "key kind path"),
        ("dropped", "line reason"),
        ("alternatives", "image job score"),
        ("report", "fact file job keyword value"),
    ] {
        let known = keys(&found[list][0]);
        assert!(expected.split(' ').all(|key| known.contains(&key)), "{list}: {known:?}");
    }
}

#[test]
fn the_same_repository_gives_the_same_digest_wherever_and_for_whomever_it_is_derived() {
    let digest = |variables: &[(&str, &str)]| {
        let directory = repository();
        let output = Command::new(env!("CARGO_BIN_EXE_devfleet"))
            .args(["env", "derive", "--raw", ".", "--output", "json"])
            .current_dir(directory.path())
            .env_clear()
            .env("DEVFLEET_CONTEXT", "/nonexistent/context.toml")
            .envs(variables.iter().copied())
            .output()
            .expect("the program starts");
        let found = json(&output);
        (found["recipe_digest"].clone(), found)
    };
    let here = digest(&[("HOME", "/root"), ("TZ", "UTC"), ("LANG", "C")]);
    let there =
        digest(&[("HOME", "/nowhere"), ("TZ", "Asia/Tokyo"), ("LANG", "tr_TR.UTF-8"), ("USER", "ada"), ("PY", "2.7")]);
    assert!(here.0.as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{here:?}");
    assert_eq!(here, there);
}
