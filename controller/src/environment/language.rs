//! What a project is written in: by its image, else by the programs that its commands run, else by its OS packages.

use super::images::{self, ImageName};

/// Programs that belong to one language.
const TOOLS: [(&str, &[&str]); 22] = [
    (
        "python",
        &[
            "pytest",
            "py.test",
            "tox",
            "nox",
            "unittest",
            "nosetests",
            "nose2",
            "trial",
            "stestr",
            "python",
            "pip",
            "poetry",
            "pipenv",
            "uv",
            "manage.py",
            "django-admin",
            "flake8",
            "pylint",
            "ruff",
            "mypy",
            "black",
            "isort",
            "behave",
            "hatch",
            "pdm",
            "coverage",
            "setup.py",
            "sphinx-build",
            "mkdocs",
            "pyinstaller",
            "robot",
        ],
    ),
    (
        "ruby",
        &[
            "rspec",
            "rake",
            "rails",
            "bundle",
            "bundler",
            "gem",
            "rubocop",
            "cucumber",
            "minitest",
            "ruby",
            "jekyll",
            "cap",
            "parallel_rspec",
            "brakeman",
            "kitchen",
        ],
    ),
    (
        "node",
        &[
            "npm",
            "yarn",
            "pnpm",
            "node",
            "jest",
            "vitest",
            "mocha",
            "karma",
            "ava",
            "ng",
            "nx",
            "lerna",
            "gulp",
            "grunt",
            "tsc",
            "eslint",
            "webpack",
            "vite",
            "next",
            "cypress",
            "playwright",
            "bun",
            "deno",
            "npx",
            "tap",
            "newman",
            "hardhat",
        ],
    ),
    ("go", &["go", "gotestsum", "ginkgo", "golangci-lint", "golint", "gofmt", "goreleaser", "staticcheck"]),
    ("rust", &["cargo", "rustc", "rustup", "wasm-pack", "cross"]),
    ("java", &["mvn", "gradle", "ant", "javac", "java", "kotlinc", "detekt", "ktlint"]),
    ("scala", &["sbt", "mill", "scala"]),
    ("clojure", &["lein", "clojure", "clj", "boot"]),
    (
        "php",
        &[
            "phpunit",
            "simple-phpunit",
            "pest",
            "paratest",
            "codecept",
            "phpspec",
            "behat",
            "composer",
            "php",
            "artisan",
            "phpstan",
            "psalm",
            "phpcs",
            "php-cs-fixer",
            "console",
        ],
    ),
    ("elixir", &["mix", "iex"]),
    ("erlang", &["rebar3", "erlc"]),
    ("dotnet", &["dotnet", "nuget", "msbuild"]),
    ("haskell", &["stack", "cabal", "ghc"]),
    (
        "c",
        &[
            "cmake",
            "ctest",
            "gcc",
            "g++",
            "clang",
            "meson",
            "ninja",
            "autoreconf",
            "autogen.sh",
            "configure",
            "qmake",
            "scons",
        ],
    ),
    ("ocaml", &["opam", "dune", "ocaml", "ocamlfind", "ocamlbuild", "esy"]),
    ("purescript", &["pulp", "spago", "purs"]),
    ("swift", &["swift"]),
    ("dart", &["dart", "flutter", "pub"]),
    ("julia", &["julia"]),
    ("r", &["R", "Rscript"]),
    ("perl", &["prove", "perl", "cpanm", "dzil"]),
    ("crystal", &["crystal", "shards"]),
];

/// The beginnings of OS packages that bring a language, the more telling first.
const PACKAGES: [(&str, &str); 20] = [
    ("openjdk-", "java"),
    ("openjdk", "java"),
    ("default-jdk", "java"),
    ("maven", "java"),
    ("gradle", "java"),
    ("golang", "go"),
    ("php", "php"),
    ("nodejs", "node"),
    ("npm", "node"),
    ("ruby", "ruby"),
    ("cargo", "rust"),
    ("rustc", "rust"),
    ("elixir", "elixir"),
    ("ghc", "haskell"),
    ("dotnet-sdk", "dotnet"),
    ("python3", "python"),
    ("python", "python"),
    ("cmake", "c"),
    ("gcc", "c"),
    ("build-essential", "c"),
];

/// The language that a program belongs to.
pub(super) fn of_tool(tool: &str) -> Option<&'static str> {
    TOOLS.iter().find(|(_, tools)| tools.contains(&tool)).map(|(language, _)| *language)
}

/// The language that OS packages bring, and its version where the name says it: `openjdk-17-jdk` gives `java`, `17`.
pub(super) fn of_packages(packages: &[String]) -> Option<(&'static str, Option<String>)> {
    let found = |(beginning, language): &(&str, &'static str)| {
        let package = packages.iter().find(|package| package.starts_with(beginning))?;
        let number =
            package.find(|letter: char| letter.is_ascii_digit()).and_then(|at| leading_version(&package[at..]));
        // `python3` names no version, but the language as it is today.
        Some((*language, number.filter(|number| !(*language == "python" && number == "3"))))
    };
    PACKAGES.iter().find_map(found)
}

/// The version of a language in an image's tag: `3.11` of `3.11-slim`; for Java the JDK's, `11` of `3.6-jdk-11`.
pub(super) fn version_in(image: &ImageName, language: &str) -> Option<String> {
    let tag = image.tag.as_deref()?;
    // Their images count the JDK, the build tool and the language in one tag.
    if matches!(language, "scala" | "clojure" | "android") {
        return None;
    }
    // In the tag of any other image a number is the language's only behind its name: `php-8.4`.
    if image.language() != Some(language) || image.base().contains("stack") {
        return tag
            .split_once(language)
            .and_then(|(_, rest)| leading_version(rest.trim_start_matches(['-', '_', ':'])));
    }
    if language == "java" && image.base() != "java" {
        let parts = ["jdk-", "jdk", "temurin-", "openjdk-", "java-", "java", "jre-", "corretto-", "zulu-"];
        let after = parts.iter().filter_map(|part| tag.split_once(part).and_then(|(_, rest)| leading_version(rest)));
        if let Some(version) = after.max_by_key(String::len) {
            return Some(version);
        }
        if matches!(image.base(), "maven" | "gradle") {
            return None;
        }
    }
    let numbers = images::version(tag);
    (!numbers.is_empty()).then(|| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join("."))
}

fn leading_version(text: &str) -> Option<String> {
    let version: String = text.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

/// The official image of a language. `tool` decides where a language has several.
pub(super) fn official(language: &str, version: Option<&str>, tool: &str) -> Option<String> {
    let tagged = |name: &str| format!("{name}:{}", version.unwrap_or("latest"));
    let image = match language {
        "python" | "ruby" | "node" | "rust" | "php" | "elixir" | "erlang" | "haskell" | "swift" | "perl" | "julia" => {
            tagged(language)
        }
        "go" => tagged("golang"),
        "java" if tool == "mvn" => format!("maven:3-eclipse-temurin-{}", version.unwrap_or("17")),
        "java" if tool == "gradle" => format!("gradle:jdk{}", version.unwrap_or("17")),
        "java" => format!("eclipse-temurin:{}", version.unwrap_or("17")),
        "c" => "gcc:latest".to_owned(),
        "dart" => "dart:stable".to_owned(),
        "r" => tagged("r-base"),
        "crystal" => tagged("crystallang/crystal"),
        "dotnet" => format!("mcr.microsoft.com/dotnet/sdk:{}", version.unwrap_or("8.0")),
        "ocaml" => "ocaml/opam:latest".to_owned(),
        "scala" => "sbtscala/scala-sbt:eclipse-temurin-17.0.15_6_1.11.4_3.7.2".to_owned(),
        _ => return None,
    };
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_language() {
        let table = [
            ("maven:3.6-jdk-11", "java", Some("11")),
            ("maven:3-eclipse-temurin-21", "java", Some("21")),
            ("gradle:jdk17", "java", Some("17")),
            ("gradle:7.4.2-jdk17-alpine", "java", Some("17")),
            ("eclipse-temurin:25.0.1_8-jdk", "java", Some("25.0.1")),
            ("openjdk:8-jdk", "java", Some("8")),
            ("maven:latest", "java", None),
            ("python:3.11-slim", "python", Some("3.11")),
            ("rust:slim", "rust", None),
            ("fpco/stack-build:lts-14.7", "haskell", None),
            ("registry.example.com/a/fedora/42:x86_64-2025", "c", None),
            ("tikiwiki/tikimanager-ci:php-8.4-qa", "php", Some("8.4")),
        ];
        for (text, language, expected) in table {
            let image = ImageName::parse(text).expect("a name");
            assert_eq!(version_in(&image, language).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn packages_and_programs_name_a_language() {
        let packages = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        type Row = (&'static [&'static str], Option<(&'static str, Option<String>)>);
        let table: [Row; 6] = [
            (&["git", "openjdk-17-jdk-headless", "maven"], Some(("java", Some("17".into())))),
            (&["php8.1-cli", "composer"], Some(("php", Some("8.1".into())))),
            (&["python3-pip"], Some(("python", None))),
            (&["python3.11"], Some(("python", Some("3.11".into())))),
            (&["build-essential", "cmake"], Some(("c", None))),
            (&["git"], None),
        ];
        for (names, expected) in table {
            assert_eq!(of_packages(&packages(names)), expected, "{names:?}");
        }
        assert_eq!(of_tool("mvn"), Some("java"));
        assert_eq!(of_tool("make"), None);
    }
}
