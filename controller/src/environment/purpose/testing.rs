//! Which commands run tests, language by language.

use super::super::shell;
use super::{Ban, Purpose};

/// Programs that do nothing but run tests.
const RUNNERS: [&str; 51] = [
    "pytest",
    "py.test",
    "tox",
    "nox",
    "unittest",
    "nosetests",
    "nose2",
    "trial",
    "stestr",
    "rspec",
    "parallel_rspec",
    "minitest",
    "jest",
    "vitest",
    "mocha",
    "ava",
    "karma",
    "jasmine",
    "tap",
    "nyc",
    "c8",
    "gotestsum",
    "ginkgo",
    "phpunit",
    "simple-phpunit",
    "pest",
    "paratest",
    "codecept",
    "phpspec",
    "kahlan",
    "ctest",
    "bats",
    "prove",
    "yath",
    "busted",
    "elm-test",
    "luatest",
    "cram",
    "ward",
    "vstest.console",
    "atoum",
    "shellspec",
    "testthat",
    "zunit",
    "shunit2",
    "testem",
    "xctool",
    "runtests",
    "unit-test",
    "lit",
    "jstestdriver",
];
/// Programs that run tests through a browser or against something that is deployed.
const END_TO_END: [&str; 15] = [
    "cypress",
    "playwright",
    "testcafe",
    "nightwatch",
    "wdio",
    "protractor",
    "cucumber",
    "behat",
    "behave",
    "newman",
    "k6",
    "robot",
    "casperjs",
    "backstop",
    "artillery",
];
/// Programs that run tests when an argument says so.
const WITH_ARGUMENT: [&str; 45] = [
    "manage.py",
    "django-admin",
    "setup.py",
    "artisan",
    "hatch",
    "pdm",
    "rye",
    "poetry",
    "pipenv",
    "uv",
    "bun",
    "deno",
    "flutter",
    "dart",
    "pub",
    "swift",
    "crystal",
    "zig",
    "gleam",
    "lein",
    "boot",
    "clojure",
    "clj",
    "stack",
    "cabal",
    "ng",
    "nx",
    "meteor",
    "forge",
    "hardhat",
    "truffle",
    "sbt",
    "mill",
    "bazel",
    "bazelisk",
    "dune",
    "opam",
    "meson",
    "rebar3",
    "console",
    "composer",
    "molecule",
    "pio",
    "platformio",
    "kitchen",
];
/// Programs that run named goals, as make does.
const GOALS: [&str; 20] = [
    "make",
    "gmake",
    "bmake",
    "just",
    "task",
    "ninja",
    "invoke",
    "inv",
    "scons",
    "earthly",
    "mage",
    "poe",
    "doit",
    "phing",
    "robo",
    "rush",
    "pants",
    "plz",
    "nmake",
    "mingw32-make",
];

/// Whether a program does nothing but run tests, so that `-v` is no question for its version.
pub(super) fn is_runner(name: &str) -> bool {
    RUNNERS.contains(&name) || END_TO_END.contains(&name)
}

/// Judges a command.
pub(super) fn judge(name: &str, first: &str, args: &[&str]) -> Option<Purpose> {
    let name = name.strip_suffix(".phar").unwrap_or(name);
    let any = |wanted: &[&str]| args.iter().any(|word| wanted.contains(word));
    let found = match name {
        _ if RUNNERS.contains(&name) => true,
        _ if END_TO_END.contains(&name) => first != "install",
        _ if WITH_ARGUMENT.contains(&name) => args.iter().any(|word| tests_by_name(word)),
        _ if GOALS.contains(&name) => return goals(args),
        "rake" | "rails" => {
            args.is_empty() && name == "rake"
                || args.iter().any(|word| {
                    matches!(*word, "test" | "spec" | "ci")
                        || ["test:", "spec:", "ci:"].iter().any(|part| word.starts_with(part))
                })
        }
        "npm" | "yarn" | "pnpm" | "lerna" | "turbo" | "grunt" | "gulp" => return javascript(name, args),
        "node" => any(&["--test"]),
        "ruby" => args.iter().any(|word| word.starts_with("-Itest") || word.contains("test/")),
        "cargo" => {
            matches!(first, "test" | "nextest" | "tarpaulin" | "llvm-cov" | "t" | "miri") || any(&["test", "nextest"])
        }
        "go" => matches!(first, "test"),
        "mvn" | "gradle" => return jvm(name, args),
        "ant" => args.iter().any(|word| word.contains("test") || matches!(*word, "check" | "junit")),
        "mix" => matches!(first, "test" | "coveralls" | "espec" | "ci") || first.starts_with("coveralls."),
        "dotnet" => matches!(first, "test" | "vstest"),
        "xcodebuild" | "fastlane" => any(&["test", "tests", "scan", "unit_tests"]),
        "R" => any(&["check"]),
        "Rscript" | "Rcmd" => args.iter().any(|word| word.contains("test") || word.contains("check")),
        "julia" => args.iter().any(|word| word.contains("Pkg.test") || word.contains("runtests")),
        "cmake" => args.windows(2).any(|pair| pair[0] == "--target" && matches!(pair[1], "test" | "check" | "tests")),
        "Build" | "dzil" | "minil" => any(&["test", "smoke"]),
        "catkin" | "catkin_make" | "colcon" => args.iter().any(|word| word.contains("test")),
        "nix" => any(&["check"]),
        "pwsh" | "powershell" => args.iter().any(|word| word.contains("Pester")),
        _ => false,
    };
    match found {
        true if END_TO_END.contains(&name) => Some(Purpose::EndToEnd),
        true => Some(Purpose::Test),
        false => None,
    }
}

/// Whether an argument names tests: `test`, `test:unit`, `core/test`, `+test`, `v2-test`, `--target=test`.
fn tests_by_name(word: &str) -> bool {
    let word = word.trim_start_matches(['\'', '"', '+', ':']);
    let last = word.rsplit(['/', '=', ':']).next().unwrap_or(word);
    word.starts_with("test")
        || matches!(
            last,
            "test" | "tests" | "eunit" | "ct" | "spec" | "clean test" | "runtest" | "phpunit" | "unit" | "check"
        )
        || word.ends_with("-test")
        || word.contains(":test")
}

/// Options that take the next word as their value.
const VALUED: [&str; 10] =
    ["--filter", "-F", "--prefix", "--cwd", "-C", "--dir", "--scope", "-w", "--workspace", "--project"];

fn javascript(name: &str, args: &[&str]) -> Option<Purpose> {
    let mut words = Vec::new();
    let mut args = args.iter().copied();
    while let Some(word) = args.next() {
        match word {
            "workspace" => {
                args.next();
            }
            _ if VALUED.contains(&word) => {
                args.next();
            }
            "--" => break,
            _ if word.starts_with('-') => {}
            _ => words.push(word),
        }
    }
    let mut words = words.into_iter();
    let script = match words.next() {
        Some("run" | "run-script" | "workspaces" | "recursive" | "affected") => words.find(|word| *word != "run"),
        other => other,
    };
    let script = script.unwrap_or_default();
    if name == "npm" && matches!(script, "it" | "cit" | "install-test" | "install-ci-test") {
        return Some(Purpose::Test);
    }
    by_script(script)
}

fn by_script(script: &str) -> Option<Purpose> {
    let parts: Vec<&str> = script.split([':', '-', '_']).collect();
    let has = |wanted: &[&str]| parts.iter().any(|part| wanted.contains(part));
    if has(&["e2e", "cypress", "playwright", "integration", "storybook", "acceptance"]) && !has(&["build"]) {
        return Some(Purpose::EndToEnd);
    }
    if has(&["test", "tests", "unit", "jest", "vitest", "coverage", "cover", "spec", "ci", "verify", "mocha", "karma"])
        || script == "t"
    {
        return Some(Purpose::Test);
    }
    let style = ["lint", "eslint", "prettier", "typecheck", "tsc", "check", "format", "stylelint", "types", "validate"];
    if has(&style) {
        return Some(Purpose::Lint);
    }
    if has(&["deploy", "publish", "release"]) {
        return Some(Purpose::Forbidden(Ban::Deploy));
    }
    has(&["build", "compile", "dist", "bundle", "generate", "export", "prod"]).then_some(Purpose::Build)
}

/// Maven and Gradle: what runs the tests on its way counts, unless they are skipped.
fn jvm(name: &str, args: &[&str]) -> Option<Purpose> {
    let skipped = args.iter().any(|word| {
        word.starts_with("-DskipTests") && !word.ends_with("=false")
            || word.starts_with("-Dmaven.test.skip") && !word.ends_with("=false")
    }) || args.windows(2).any(|pair| matches!(pair[0], "-x" | "--exclude-task") && pair[1] == "test");
    if skipped {
        return None;
    }
    let goals = || args.iter().filter(|word| !word.starts_with(['-', '$']) || word.starts_with("-P")).copied();
    let last = |goal: &'static str| move |word: &str| word.rsplit(':').next() == Some(goal);
    if name == "mvn" {
        let phases = ["test", "verify", "install", "integration-test", "deploy", "package"];
        return phases
            .iter()
            .any(|phase| goals().any(|word| word == *phase || word == "surefire:test"))
            .then_some(Purpose::Test);
    }
    let tasks: Vec<&str> = goals().map(|word| word.rsplit(':').next().unwrap_or(word)).collect();
    if tasks
        .iter()
        .any(|task| task.starts_with("connected") || task.ends_with("AndroidTest") && !task.starts_with("assemble"))
    {
        return Some(Purpose::EndToEnd);
    }
    let tests = |task: &&str| {
        (task.starts_with("test") || task.ends_with("Test") || task.ends_with("Tests") || task.contains("TestReport"))
            && !task.starts_with("assemble")
            && !task.starts_with("compile")
    };
    let found = tasks.iter().any(tests) || goals().any(|word| last("check")(word) || last("build")(word));
    found.then_some(Purpose::Test)
}

fn goals(args: &[&str]) -> Option<Purpose> {
    let mut goals = Vec::new();
    let mut words = args.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "-C" | "-f" | "--directory" | "--file" | "-I" | "-o" | "-W" => {
                words.next();
            }
            _ if word.starts_with(['-', '$']) || shell::is_assignment(word) => {}
            _ => goals.push(word.trim_start_matches('+')),
        }
    }
    let has = |wanted: &[&str]| {
        goals.iter().any(|goal| goal.split(['-', '_', ':', '/', '.']).any(|part| wanted.contains(&part)))
    };
    if has(&["e2e", "acceptance", "integration"]) && !has(&["unit", "deploy"]) {
        return Some(Purpose::EndToEnd);
    }
    let tests = [
        "test", "tests", "check", "unit", "spec", "specs", "ci", "coverage", "pytest", "runtests", "verify", "testall",
    ];
    if has(&tests) && !has(&["deploy", "publish", "upload"]) {
        return Some(Purpose::Test);
    }
    if has(&["deploy", "publish", "push", "upload"]) {
        return Some(Purpose::Forbidden(Ban::Deploy));
    }
    if has(&["lint", "fmt", "format", "vet", "style", "typecheck", "stan"]) {
        return Some(Purpose::Lint);
    }
    if has(&["deps", "dependencies", "setup", "install", "bootstrap", "vendor", "requirements"]) {
        return Some(Purpose::Dependencies);
    }
    Some(Purpose::Build)
}
