//! Versions that the repository itself pins: they beat the highest version of a matrix.

use std::collections::BTreeMap;

use super::super::images::{self, ImageName};

/// Files that hold nothing but a version.
const PLAIN: [(&str, &str); 8] = [
    (".ruby-version", "ruby"),
    (".python-version", "python"),
    (".node-version", "node"),
    (".nvmrc", "node"),
    (".java-version", "java"),
    (".php-version", "php"),
    ("rust-toolchain", "rust"),
    (".go-version", "go"),
];

/// Reads the pins, by language.
pub(super) fn read(files: &BTreeMap<String, String>) -> BTreeMap<&'static str, String> {
    let mut pins = BTreeMap::new();
    let mut pin = |language: &'static str, text: &str| {
        let version = text.trim().trim_matches(['"', '\'']).trim_start_matches(['v', '=', '~', '^']).trim();
        if !images::version(version).is_empty() {
            pins.entry(language).or_insert_with(|| version.to_owned());
        }
    };
    for (path, language) in PLAIN {
        if let Some(text) = files.get(path) {
            let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            pin(language, line.trim().trim_start_matches("ruby-"));
        }
    }
    for line in files.get(".tool-versions").map(String::as_str).unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let language = match words.next() {
            Some("ruby") => "ruby",
            Some("python") => "python",
            Some("nodejs" | "node") => "node",
            Some("golang" | "go") => "go",
            Some("rust") => "rust",
            Some("java") => "java",
            Some("php") => "php",
            Some("elixir") => "elixir",
            Some("erlang") => "erlang",
            _ => continue,
        };
        pin(
            language,
            words
                .next()
                .unwrap_or_default()
                .trim_start_matches(|letter: char| letter.is_ascii_alphabetic() || letter == '-'),
        );
    }
    if let Some(text) = files.get("go.mod") {
        let line = |word: &str| text.lines().find_map(|line| line.trim().strip_prefix(word)).map(str::to_owned);
        if let Some(version) = line("toolchain go").or_else(|| line("go ")) {
            pin("go", &version);
        }
    }
    if let Some(text) = files.get("rust-toolchain.toml") {
        let channel = text.lines().find_map(|line| line.trim().strip_prefix("channel")?.trim_start().strip_prefix('='));
        pin("rust", channel.unwrap_or_default());
    }
    if let Some(text) = files.get("pyproject.toml") {
        let exact =
            text.lines().find_map(|line| line.trim().strip_prefix("requires-python")?.trim_start().strip_prefix('='));
        let exact = exact.map(|text| text.trim().trim_matches(['"', '\''])).and_then(|text| text.strip_prefix("=="));
        pin("python", exact.unwrap_or_default());
    }
    let engines = files.get("package.json").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let node = engines.as_ref().and_then(|value| value.get("engines")?.get("node")?.as_str());
    pin("node", node.filter(|range| !range.contains(['>', '<', '|', ' '])).unwrap_or_default());
    pins
}

/// Whether an image is the pinned version: of its language, or of the only language there is a pin for. `None`: no pin says.
pub(super) fn matches(pins: &BTreeMap<&'static str, String>, image: &ImageName, variant: &[Vec<u64>]) -> Option<bool> {
    let pinned = match image.language() {
        Some(language) => pins.get(language)?,
        None if pins.len() == 1 => pins.values().next()?,
        None => return None,
    };
    let pinned = images::version(pinned);
    let agrees = |version: &[u64]| !version.is_empty() && version.iter().zip(&pinned).all(|(one, two)| one == two);
    let own = image.version();
    if own.is_empty() && variant.iter().all(Vec::is_empty) {
        return None;
    }
    Some(agrees(&own) || variant.iter().any(|version| agrees(version)))
}

/// Says what the pins suggest, to end a message with.
pub(super) fn hint(pins: &BTreeMap<&'static str, String>) -> String {
    let images: Vec<String> = pins
        .iter()
        .filter_map(|(language, version)| {
            let repository = match *language {
                "go" => "golang",
                "java" => "eclipse-temurin",
                "ruby" | "python" | "node" | "php" | "rust" | "elixir" | "erlang" => language,
                _ => return None,
            };
            Some(format!("{repository}:{version}"))
        })
        .collect();
    match images.is_empty() {
        true => String::new(),
        false => format!(" (the repository's version files suggest {})", images.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_from_the_files_of_each_language() {
        let table = [
            (".ruby-version", "ruby-3.2.1\n", "ruby", Some("3.2.1")),
            (".nvmrc", "v20\n", "node", Some("20")),
            (".nvmrc", "lts/iron\n", "node", None),
            (".tool-versions", "nodejs 20.1.0\njava temurin-17.0.2\n", "java", Some("17.0.2")),
            ("go.mod", "module x\n\ngo 1.22\n", "go", Some("1.22")),
            ("go.mod", "module x\n\ngo 1.21\ntoolchain go1.22.3\n", "go", Some("1.22.3")),
            ("rust-toolchain.toml", "[toolchain]\nchannel = \"1.80.0\"\n", "rust", Some("1.80.0")),
            ("rust-toolchain", "stable\n", "rust", None),
            ("package.json", "{\"engines\": {\"node\": \"^18.1\"}}", "node", Some("18.1")),
            ("package.json", "{\"engines\": {\"node\": \">=18\"}}", "node", None),
            ("package.json", "no json", "node", None),
            ("pyproject.toml", "requires-python = \"==3.11.*\"\n", "python", Some("3.11.*")),
            ("pyproject.toml", "requires-python = \">=3.9\"\n", "python", None),
        ];
        for (path, text, language, expected) in table {
            let files = BTreeMap::from([(path.to_owned(), text.to_owned())]);
            assert_eq!(read(&files).get(language).map(String::as_str), expected, "{path} {text}");
        }
    }

    #[test]
    fn a_pin_agrees_as_far_as_both_versions_go() {
        let pins = BTreeMap::from([("python", "3.11.4".to_owned())]);
        let table = [
            ("python:3.11", Some(true)),
            ("python:3.11.4-slim", Some(true)),
            ("python:3.12", Some(false)),
            ("python:slim", None),
            ("node:20", None),
        ];
        for (image, expected) in table {
            assert_eq!(matches(&pins, &ImageName::parse(image).expect("a name"), &[]), expected, "{image}");
        }
    }
}
