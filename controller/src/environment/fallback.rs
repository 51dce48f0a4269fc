//! An image for a project whose CI configuration names none that can be used: guessed from the repository's own files
//! and from what the commands run. A guess is never taken for more: its verdict is `fallback`, its confidence low.

use std::collections::BTreeMap;

use super::images::ImageName;
use super::language;

/// Files by which a language is known, the more telling first.
const FILES: [(&str, &str); 17] = [
    ("Gemfile.lock", "ruby"),
    ("Cargo.lock", "rust"),
    ("go.mod", "go"),
    ("mix.lock", "elixir"),
    ("pom.xml", "java"),
    ("build.gradle", "java"),
    ("build.gradle.kts", "java"),
    ("composer.lock", "php"),
    ("composer.json", "php"),
    ("poetry.lock", "python"),
    ("uv.lock", "python"),
    ("Pipfile.lock", "python"),
    ("pyproject.toml", "python"),
    ("requirements.txt", "python"),
    ("pnpm-lock.yaml", "node"),
    ("yarn.lock", "node"),
    ("package.json", "node"),
];

/// A guessed image and where the guess comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guess {
    pub(super) image: ImageName,
    pub(super) source: String,
}

/// Guesses an image; `tool` is what the most telling job runs.
pub(super) fn guess(
    tool: Option<&str>,
    files: &BTreeMap<String, String>,
    pins: &BTreeMap<&'static str, String>,
) -> Option<Guess> {
    let spoken = tool.and_then(language::of_tool);
    from_devcontainer(files)
        .or_else(|| from_dockerfile(files, spoken))
        .or_else(|| {
            let language = spoken?;
            official(language, tool.unwrap_or_default(), pins, format!("the commands, which run {}", tool?))
        })
        .or_else(|| {
            let (file, language) = FILES.iter().find(|(file, _)| files.contains_key(*file))?;
            let tool = match *file {
                "pom.xml" => "mvn",
                "build.gradle" | "build.gradle.kts" => "gradle",
                _ => "",
            };
            official(language, tool, pins, format!("the file {file}"))
        })
        .or_else(|| {
            let (language, _) = pins.iter().next().filter(|_| pins.len() == 1)?;
            official(language, "", pins, "the version that the repository pins".to_owned())
        })
}

fn official(language: &str, tool: &str, pins: &BTreeMap<&'static str, String>, source: String) -> Option<Guess> {
    let text = language::official(language, pins.get(language).map(String::as_str), tool)?;
    Some(Guess { image: ImageName::parse(&text).ok()?, source })
}

/// `image` of a development container. The file is JSON with comments, so it is searched and not parsed.
fn from_devcontainer(files: &BTreeMap<String, String>) -> Option<Guess> {
    [".devcontainer/devcontainer.json", ".devcontainer.json"].iter().find_map(|path| {
        let text = files.get(*path)?;
        let rest = text.lines().find_map(|line| line.trim_start().strip_prefix("\"image\""))?;
        let value = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        let image = ImageName::parse(value.split('"').next()?).ok()?;
        Some(Guess { image, source: format!("the file {path}") })
    })
}

/// The base of a stage of the Dockerfile: one for the language that the commands speak, else the first with a language.
fn from_dockerfile(files: &BTreeMap<String, String>, spoken: Option<&str>) -> Option<Guess> {
    let bases: Vec<ImageName> = files
        .get("Dockerfile")?
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let from = words.next().filter(|word| word.eq_ignore_ascii_case("from"));
            from.and_then(|_| words.find(|word| !word.starts_with("--")))
        })
        .filter_map(|name| ImageName::parse(name).ok())
        .filter(|name| name.infrastructure().is_none())
        .collect();
    let fits = |base: &&ImageName| base.language().is_some() && (spoken.is_none() || base.language() == spoken);
    let image = bases.iter().find(fits)?.clone();
    Some(Guess { image, source: "the file Dockerfile".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tool, files, pins, and the image with a word of its source.
    type Row = (
        Option<&'static str>,
        &'static [(&'static str, &'static str)],
        &'static [(&'static str, &'static str)],
        Option<(&'static str, &'static str)>,
    );

    #[test]
    fn a_guess_says_where_it_comes_from() {
        let table: [Row; 12] = [
            (Some("rake"), &[], &[("ruby", "3.2.1")], Some(("ruby:3.2.1", "commands"))),
            (Some("rake"), &[], &[], Some(("ruby:latest", "commands"))),
            (Some("mvn"), &[], &[], Some(("maven:3-eclipse-temurin-17", "commands"))),
            (Some("run.sh"), &[("build.gradle", "")], &[], Some(("gradle:jdk17", "build.gradle"))),
            (
                Some("run.sh"),
                &[("Dockerfile", "FROM --platform=x golang:1.22 AS b\nFROM scratch\n")],
                &[],
                Some(("golang:1.22", "Dockerfile")),
            ),
            (Some("npm"), &[("Dockerfile", "from golang:1.22\nFROM node:20\n")], &[], Some(("node:20", "Dockerfile"))),
            (Some("npm"), &[("Dockerfile", "FROM nginx\n")], &[], Some(("node:latest", "commands"))),
            (
                None,
                &[(".devcontainer/devcontainer.json", "{ // x\n  \"image\": \"rust:1.80\",\n")],
                &[],
                Some(("rust:1.80", "devcontainer")),
            ),
            (None, &[], &[("go", "1.22")], Some(("golang:1.22", "pins"))),
            (None, &[], &[("go", "1.22"), ("node", "20")], None),
            (Some("run.sh"), &[], &[], None),
            (None, &[("Dockerfile", "FROM $BASE\n")], &[], None),
        ];
        for (tool, files, pins, expected) in table {
            let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
            let pins = pins.iter().map(|(language, version)| (*language, (*version).to_owned())).collect();
            let guess = guess(tool, &files, &pins);
            let shown = guess.as_ref().map(|guess| guess.image.to_string());
            assert_eq!(shown.as_deref(), expected.map(|(image, _)| image), "{tool:?} {files:?}");
            if let (Some(guess), Some((_, source))) = (guess, expected) {
                assert!(guess.source.contains(source), "{} {source}", guess.source);
            }
        }
    }
}
