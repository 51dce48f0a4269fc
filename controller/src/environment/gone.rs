//! Images that are gone, and operating systems whose packages are: what is taken in their place, and why.
//!
//! The table holds what certainly fails: names that registries no longer have, and releases whose package sources were
//! moved away. Images that stand on such a release and bring more than it (`python:3.6-stretch`) have no successor: their
//! packages come from the archive.

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

/// Those of them whose keys have all expired.
const UNSIGNED: [(&str, &str); 3] = [("6", "squeeze"), ("7", "wheezy"), ("8", "jessie")];

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

/// Says where the packages come from, for an image whose tag names a release that only an archive has.
pub(super) fn archived(image: &ImageName) -> Option<String> {
    let names = |part: &str| {
        let debian = DEBIAN.iter().find(|(_, name)| *name == part).map(|(_, name)| ("Debian", *name));
        debian.or_else(|| UBUNTU.iter().find(|(_, name, _)| *name == part).map(|(_, name, _)| ("Ubuntu", *name)))
    };
    let (system, name) = image.tag.as_deref()?.split('-').find_map(names)?;
    let unchecked = match UNSIGNED.iter().any(|(_, unsigned)| *unsigned == name) {
        true => ", without a check of their signatures, whose keys have expired",
        false => "",
    };
    Some(format!(
        "{} stands on {system} {name}, whose packages only the archive has: they come from there{unchecked}",
        image
    ))
}

/// Releases of Debian that an image can stand on and whose packages come from the archive, by number: those whose
/// signatures can be checked, and those whose keys have all expired.
pub(super) fn debian_numbers() -> (Vec<&'static str>, Vec<&'static str>) {
    let unsigned = |number: &&str| UNSIGNED.iter().any(|(other, _)| other == number);
    DEBIAN.iter().map(|(number, _)| *number).partition(|number| !unsigned(number))
}

/// Releases of Ubuntu whose packages come from the archive, by number.
pub(super) fn ubuntu_numbers() -> impl Iterator<Item = &'static str> {
    UBUNTU.iter().map(|(number, ..)| *number)
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

    #[test]
    fn an_image_on_an_archived_release_says_so() {
        let table = [
            ("python:3.6-stretch", Some("Debian stretch, whose packages only the archive has: they come from there")),
            ("ruby:2.4-slim-buster", Some("Debian buster")),
            ("php:5.6-apache-jessie", Some("without a check of their signatures")),
            ("buildpack-deps:eoan", Some("Ubuntu eoan")),
            ("python:3.12-bookworm", None),
            ("python:3.6", None),
            ("stretch/app:1", None),
        ];
        for (text, expected) in table {
            let found = archived(&ImageName::parse(text).expect("a name"));
            match expected {
                Some(part) => assert!(found.as_deref().is_some_and(|note| note.contains(part)), "{text}: {found:?}"),
                None => assert_eq!(found, None, "{text}"),
            }
        }
    }
}
