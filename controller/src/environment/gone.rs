//! Images that are gone, and operating systems whose packages are: what is taken in their place, and why.
//!
//! The table holds what certainly fails: names that registries no longer have, and releases whose package sources were
//! moved away, on which not even git can be installed.

use super::images::ImageName;

/// Releases of Ubuntu whose packages were moved away, by number and by name, and the next release that is kept.
const UBUNTU: [(&str, &str, &str); 19] = [
    ("12.04", "precise", "16.04"),
    ("12.10", "quantal", "16.04"),
    ("13.04", "raring", "16.04"),
    ("13.10", "saucy", "16.04"),
    ("14.10", "utopic", "16.04"),
    ("15.04", "vivid", "16.04"),
    ("15.10", "wily", "16.04"),
    ("16.10", "yakkety", "18.04"),
    ("17.04", "zesty", "18.04"),
    ("17.10", "artful", "18.04"),
    ("18.10", "cosmic", "20.04"),
    ("19.04", "disco", "20.04"),
    ("19.10", "eoan", "20.04"),
    ("20.10", "groovy", "22.04"),
    ("21.04", "hirsute", "22.04"),
    ("21.10", "impish", "22.04"),
    ("22.10", "kinetic", "24.04"),
    ("23.04", "lunar", "24.04"),
    ("23.10", "mantic", "24.04"),
];
/// Releases of Debian whose packages lie in the archive only.
const DEBIAN: [(&str, &str); 5] =
    [("6", "squeeze"), ("7", "wheezy"), ("8", "jessie"), ("9", "stretch"), ("10", "buster")];

/// What is taken for an image, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Successor {
    pub(super) image: ImageName,
    pub(super) reason: &'static str,
}

/// Looks an image up. `None`: it is used as it is.
pub(super) fn successor(image: &ImageName) -> Option<Successor> {
    let tag = image.tag.as_deref()?;
    let repository = image.repository.strip_prefix("docker.io/").unwrap_or(&image.repository);
    let repository = repository.strip_prefix("library/").unwrap_or(repository);
    let (name, reason) = match repository {
        "java" => {
            let version = tag.split(['-', 'u']).next().filter(|part| part.parse::<u32>().is_ok()).unwrap_or("8");
            (format!("eclipse-temurin:{version}-jdk"), "the official image `java` is no longer kept")
        }
        "ubuntu" => {
            let (.., next) = UBUNTU.iter().find(|(number, name, _)| tag == *number || tag.starts_with(name))?;
            (format!("ubuntu:{next}"), "the packages of this release are no longer kept")
        }
        "debian" => {
            let old = |(number, name): &&(&str, &str)| {
                tag.split(['-', '.']).next().is_some_and(|part| part == *number || part == *name)
            };
            DEBIAN.iter().find(old)?;
            let slim = if tag.ends_with("-slim") { "-slim" } else { "" };
            (format!("debian:bookworm{slim}"), "the packages of this release lie in Debian's archive only")
        }
        "centos" => (
            "almalinux:8".to_owned(),
            "CentOS has ended, and its package sources are gone; AlmaLinux is built from the same",
        ),
        "microsoft/dotnet" | "microsoft/aspnetcore-build" => {
            let version: String = tag.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
            let version = if version.is_empty() { "8.0" } else { version.trim_end_matches('.') };
            (format!("mcr.microsoft.com/dotnet/sdk:{version}"), "Microsoft's images have moved to its own registry")
        }
        other => {
            let name = other.strip_prefix("bitnami/").filter(|_| tag != "latest")?;
            (format!("bitnamilegacy/{name}:{tag}"), "Bitnami has moved its versioned images")
        }
    };
    Some(Successor { image: ImageName::parse(&name).ok()?, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_has_a_successor_and_nothing_else_has() {
        let table = [
            ("java:8", Some("eclipse-temurin:8-jdk")),
            ("java:openjdk-8-jdk", Some("eclipse-temurin:8-jdk")),
            ("library/java:7", Some("eclipse-temurin:7-jdk")),
            ("openjdk:8", None),
            ("ubuntu:19.10", Some("ubuntu:20.04")),
            ("ubuntu:eoan-20200114", Some("ubuntu:20.04")),
            ("ubuntu:20.04", None),
            ("ubuntu", None),
            ("debian:stretch-slim", Some("debian:bookworm-slim")),
            ("debian:9.13", Some("debian:bookworm")),
            ("debian:bookworm", None),
            ("python:3.6-stretch", None),
            ("centos:7", Some("almalinux:8")),
            ("centos", Some("almalinux:8")),
            ("quay.io/centos/centos:stream9", None),
            ("microsoft/dotnet:2.1-sdk", Some("mcr.microsoft.com/dotnet/sdk:2.1")),
            ("bitnami/node:18", Some("bitnamilegacy/node:18")),
            ("bitnami/node", None),
            ("registry.example.com/java:8", None),
        ];
        for (text, expected) in table {
            let found = successor(&ImageName::parse(text).expect("a name")).map(|found| found.image.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
