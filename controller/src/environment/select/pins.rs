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
    if let Some(text) = files.get("Gemfile") {
        let line = text.lines().find_map(|line| line.trim().strip_prefix("ruby ")).unwrap_or_default().trim();
        pin("ruby", line.split(',').next().filter(|text| !text.contains(['>', '<', '~', 'f'])).unwrap_or_default());
    }
    for (language, version) in in_json(files) {
        pin(language, &version);
    }
    if let Some(version) = java(files) {
        pin("java", &version);
    }
    if let Some(text) = files.get("pyproject.toml") {
        let exact =
            text.lines().find_map(|line| line.trim().strip_prefix("requires-python")?.trim_start().strip_prefix('='));
        let exact = exact.map(|text| text.trim().trim_matches(['"', '\''])).and_then(|text| text.strip_prefix("=="));
        pin("python", exact.unwrap_or_default());
    }
    pins
}

/// The pins of JSON files: Node's, PHP's and .NET's.
fn in_json(files: &BTreeMap<String, String>) -> Vec<(&'static str, String)> {
    let at = |path: &str, keys: &[&str]| {
        let mut value = serde_json::from_str::<serde_json::Value>(files.get(path)?).ok()?;
        for key in keys {
            value = value.get_mut(*key)?.take();
        }
        exact(value.as_str()?)
    };
    let found = [
        ("node", at("package.json", &["volta", "node"])),
        ("node", at("package.json", &["engines", "node"])),
        ("php", at("composer.json", &["config", "platform", "php"])),
        ("php", at("composer.json", &["require", "php"])),
        ("dotnet", at("global.json", &["sdk", "version"]).map(|version| channel(&version))),
    ];
    found.into_iter().filter_map(|(language, version)| Some((language, version?))).collect()
}

/// The part of a range that all of its versions have: `^8.1` gives `8`, `~8.1.0` gives `8.1`, `20.x` gives `20`. `>=18` pins nothing.
fn exact(range: &str) -> Option<String> {
    let range = range.trim().trim_start_matches(['v', '=']).trim();
    if range.is_empty() || range.contains(['>', '<', '|', ' ', ',']) {
        return None;
    }
    let parts = |text: &str| -> Vec<String> {
        text.split('.').take_while(|part| part.parse::<u64>().is_ok()).map(str::to_owned).collect()
    };
    let kept = match range.split_at(1) {
        ("^", rest) => parts(rest).into_iter().take(1).collect(),
        ("~", rest) => parts(rest).into_iter().take(2).collect(),
        _ => parts(range),
    };
    (!kept.is_empty()).then(|| kept.join("."))
}

/// SDKs of .NET are tagged by their channel: `8.0` for `8.0.404`.
fn channel(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// The Java version that Maven or Gradle compile for.
fn java(files: &BTreeMap<String, String>) -> Option<String> {
    let number = |text: &str| {
        let text = text.trim().trim_start_matches("VERSION_").trim_start_matches("1_").trim_start_matches("1.");
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        (!digits.is_empty()).then_some(digits)
    };
    let after = |text: &str, marks: &[&str]| {
        marks.iter().find_map(|mark| {
            let rest = text.split_once(mark)?.1.trim_start_matches([' ', '=', '(', '\'', '"']);
            number(rest.strip_prefix("JavaVersion.").unwrap_or(rest))
        })
    };
    let maven = ["<maven.compiler.release>", "<java.version>", "<maven.compiler.source>", "<maven.compiler.target>"];
    let gradle = ["JavaLanguageVersion.of(", "jvmToolchain(", "sourceCompatibility", "targetCompatibility"];
    let pom = files.get("pom.xml").and_then(|text| after(text, &maven));
    pom.or_else(|| ["build.gradle", "build.gradle.kts"].iter().find_map(|path| after(files.get(*path)?, &gradle)))
}

/// What a pin adds to the version that an image names: all of it if the image names none, more of it if both agree.
/// `Err`: they contradict each other.
pub(in super::super) fn refine(
    pinned: Option<&str>,
    version: Option<String>,
) -> Result<Option<String>, (String, String)> {
    let Some(pinned) = pinned else { return Ok(version) };
    let Some(version) = version else { return Ok(Some(pinned.to_owned())) };
    let (one, two) = (images::version(pinned), images::version(&version));
    match one.iter().zip(&two).all(|(one, two)| one == two) {
        true if one.len() > two.len() => Ok(Some(pinned.to_owned())),
        true => Ok(Some(version)),
        false => Err((pinned.to_owned(), version)),
    }
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
            ("package.json", "{\"engines\": {\"node\": \"^18.1\"}}", "node", Some("18")),
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
    fn ranges_pin_what_all_of_their_versions_share() {
        let table = [
            ("20", Some("20")),
            ("^20.1.0", Some("20")),
            ("~8.1.0", Some("8.1")),
            ("8.2.*", Some("8.2")),
            ("20.x", Some("20")),
            (">=18", None),
            ("18 || 20", None),
            ("*", None),
            ("", None),
            ("lts/iron", None),
        ];
        for (range, expected) in table {
            assert_eq!(exact(range).as_deref(), expected, "{range}");
        }
    }

    #[test]
    fn a_pin_refines_a_version_and_contradicts_another() {
        let owned = |text: &str| Some(text.to_owned());
        assert_eq!(refine(Some("3.2.1"), None), Ok(owned("3.2.1")));
        assert_eq!(refine(Some("3.2.1"), owned("3.2")), Ok(owned("3.2.1")));
        assert_eq!(refine(Some("8"), owned("8.1")), Ok(owned("8.1")));
        assert_eq!(refine(None, owned("8.1")), Ok(owned("8.1")));
        assert_eq!(refine(Some("3.2"), owned("3.1")), Err(("3.2".to_owned(), "3.1".to_owned())));
    }

    #[test]
    fn build_files_pin_their_language() {
        let table = [
            ("pom.xml", "<properties><java.version>17</java.version></properties>", "java", "17"),
            ("pom.xml", "<maven.compiler.source>1.8</maven.compiler.source>", "java", "8"),
            (
                "build.gradle.kts",
                "java { toolchain { languageVersion.set(JavaLanguageVersion.of(21)) } }",
                "java",
                "21",
            ),
            ("build.gradle", "sourceCompatibility = JavaVersion.VERSION_11", "java", "11"),
            ("build.gradle", "sourceCompatibility = '1.8'", "java", "8"),
            ("global.json", "{\"sdk\": {\"version\": \"8.0.404\"}}", "dotnet", "8.0"),
            ("composer.json", "{\"require\": {\"php\": \"^8.1\"}}", "php", "8"),
            (
                "composer.json",
                "{\"require\": {\"php\": \"^8.1\"}, \"config\": {\"platform\": {\"php\": \"8.2.7\"}}}",
                "php",
                "8.2.7",
            ),
            ("package.json", "{\"volta\": {\"node\": \"20.11.0\"}}", "node", "20.11.0"),
            ("Gemfile", "source 'x'\nruby '3.2.2'\n", "ruby", "3.2.2"),
        ];
        for (path, text, language, expected) in table {
            let pins = read(&BTreeMap::from([(path.to_owned(), text.to_owned())]));
            assert_eq!(pins.get(language).map(String::as_str), Some(expected), "{path} {text}");
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
