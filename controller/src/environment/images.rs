//! The names of images: Docker's grammar, GitLab's aliases, and what a name says about what is inside.

use std::fmt;

/// An image's name in its parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ImageName {
    /// Registry and path: `registry.example.com:5000/team/app`.
    pub(super) repository: String,
    /// Absent where there is a digest: that alone decides.
    pub(super) tag: Option<String>,
    pub(super) digest: Option<String>,
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.tag, &self.digest) {
            (_, Some(digest)) => write!(f, "{}@{digest}", self.repository),
            (Some(tag), None) => write!(f, "{}:{tag}", self.repository),
            (None, None) => f.write_str(&self.repository),
        }
    }
}

impl ImageName {
    /// Reads a name by Docker's grammar (`distribution/reference`), or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<ImageName, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > 400 {
            return Err("it is too long");
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) if is_digest(digest) => (name, Some(digest.to_owned())),
            Some(_) => return Err("its digest is not one"),
            None => (text, None),
        };
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match name[last..].split_once(':') {
            Some((_, "")) => return Err("its tag is empty"),
            Some((_, tag)) if !is_tag(tag) => return Err("its tag is not one"),
            Some((component, tag)) => (&name[..last + component.len()], Some(tag.to_owned())),
            None => (name, None),
        };
        let parts: Vec<&str> = repository.split('/').collect();
        let has_registry = parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost");
        if has_registry && !is_registry(parts[0]) {
            return Err("its registry is not a host name");
        }
        let path = if has_registry { &parts[1..] } else { &parts[..] };
        if path.iter().any(|part| part.is_empty()) {
            return Err("a part of its path is empty");
        }
        if !path.iter().all(|part| is_component(part)) {
            return Err("its path has letters that are not allowed");
        }
        // No tag means `latest`; to an engine's API it would mean all tags.
        let tag = if digest.is_none() { Some(tag.unwrap_or_else(|| "latest".to_owned())) } else { None };
        Ok(ImageName { repository: repository.to_owned(), tag, digest })
    }

    /// The last part of the path: `app`.
    pub(super) fn base(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(&self.repository)
    }

    /// The names that the runner derives for a service (`SplitNameAndVersion`).
    pub(super) fn aliases(&self) -> Vec<String> {
        let without_port = match self.repository.split_once('/') {
            Some((registry, path)) => format!("{}/{path}", registry.split(':').next().unwrap_or(registry)),
            None => self.repository.clone(),
        };
        let mut aliases = vec![without_port.replace('/', "__"), without_port.replace('/', "-")];
        aliases.dedup();
        aliases
    }

    /// The numbers at the front of the tag's version: `[3, 11]` for `3.11-slim` and for `php-3.11`. Unstable ones have none.
    pub(super) fn version(&self) -> Vec<u64> {
        let tag = self.tag.as_deref().unwrap_or_default();
        let named = CODENAMES
            .iter()
            .find(|(name, _)| tag == *name || tag.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')));
        match named {
            Some((_, numbers)) if self.is_bare() => numbers.to_vec(),
            _ => version(tag),
        }
    }

    /// Whether it is made for another machine than hosts are: `i386/ubuntu`, `arm64v8/alpine`.
    pub(super) fn is_foreign(&self) -> bool {
        let path = self.repository.split('/').rev().nth(1).unwrap_or_default();
        matches!(
            path,
            "i386" | "arm32v5" | "arm32v6" | "arm32v7" | "arm64v8" | "mips64le" | "ppc64le" | "riscv64" | "s390x"
        )
    }

    /// The language that the image is for, if its name says so.
    pub(super) fn language(&self) -> Option<&'static str> {
        let pieces = pieces(self.base());
        let of = |names: &[&str]| names.iter().any(|name| pieces.contains(name));
        LANGUAGES.iter().find(|(_, names)| of(names)).map(|(language, _)| *language)
    }

    /// Why this is no development environment, if it is none. Only the last part of the path says that.
    pub(super) fn infrastructure(&self) -> Option<&'static str> {
        let base = self.base();
        let pieces = pieces(base);
        INFRASTRUCTURE.iter().find_map(|(what, names)| {
            let found = names.iter().any(|name| match name.strip_prefix('~') {
                Some(piece) => pieces.contains(&piece),
                None => base == *name,
            });
            found.then_some(*what)
        })
    }

    /// Whether it builds documents.
    pub(super) fn is_for_documents(&self) -> bool {
        pieces(self.base()).iter().any(|piece| DOCUMENTS.contains(piece))
    }

    /// Whether it is an operating system without a language.
    pub(super) fn is_bare(&self) -> bool {
        matches!(
            self.base(),
            "alpine"
                | "debian"
                | "ubuntu"
                | "centos"
                | "fedora"
                | "rockylinux"
                | "almalinux"
                | "ubi8"
                | "ubi9"
                | "archlinux"
                | "amazonlinux"
                | "opensuse"
                | "leap"
                | "buildpack-deps"
                | "busybox"
                | "ubi"
                | "ubi-minimal"
        )
    }
}

/// The version in a tag or in a matrix value.
pub(super) fn version(text: &str) -> Vec<u64> {
    if ["nightly", "beta", "alpha", "edge", "dev", "rc", "canary", "snapshot"].iter().any(|word| text.contains(word)) {
        return Vec::new();
    }
    let Some(start) = text.find(|letter: char| letter.is_ascii_digit()) else { return Vec::new() };
    let run: String = text[start..].chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
    run.split('.').map_while(|part| part.parse().ok()).collect()
}

fn pieces(base: &str) -> Vec<&str> {
    base.split(['-', '_', '.']).collect()
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    !algorithm.is_empty()
        && algorithm.chars().all(|letter| letter.is_ascii_alphanumeric() || "+._-".contains(letter))
        && hex.len() >= 32
        && hex.chars().all(|digit| digit.is_ascii_hexdigit())
}

fn is_tag(tag: &str) -> bool {
    let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    tag.len() <= 128
        && tag.starts_with(word)
        && tag.chars().all(|letter| word(letter) || letter == '.' || letter == '-')
}

fn is_registry(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
    };
    name.split('.').all(label) && !port.is_empty() && port.chars().all(|digit| digit.is_ascii_digit())
}

/// `[a-z0-9]+` parts, joined by `.`, `_`, `__` or hyphens.
fn is_component(part: &str) -> bool {
    let alphanumeric = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let allowed = part.chars().all(|letter| alphanumeric(letter) || ".-_".contains(letter));
    let joints: Vec<&str> = part.split(alphanumeric).filter(|joint| !joint.is_empty()).collect();
    let joints_fit =
        joints.iter().all(|joint| matches!(*joint, "." | "_" | "__") || joint.chars().all(|letter| letter == '-'));
    allowed && joints_fit && part.starts_with(alphanumeric) && part.ends_with(alphanumeric)
}

/// Images that build documents: the environment of a project that is made of documents, and of no other.
const DOCUMENTS: [&str; 12] = [
    "sphinx",
    "pandoc",
    "latex",
    "texlive",
    "mkdocs",
    "hugo",
    "antora",
    "asciidoctor",
    "gitbook",
    "zola",
    "mdbook",
    "docusaurus",
];

/// Releases of Debian and Ubuntu by name: the tags of their images are names, and names have no order.
const CODENAMES: [(&str, &[u64]); 22] = [
    ("squeeze", &[6]),
    ("wheezy", &[7]),
    ("jessie", &[8]),
    ("stretch", &[9]),
    ("buster", &[10]),
    ("bullseye", &[11]),
    ("bookworm", &[12]),
    ("trixie", &[13]),
    ("precise", &[12, 4]),
    ("trusty", &[14, 4]),
    ("xenial", &[16, 4]),
    ("artful", &[17, 10]),
    ("bionic", &[18, 4]),
    ("cosmic", &[18, 10]),
    ("disco", &[19, 4]),
    ("eoan", &[19, 10]),
    ("focal", &[20, 4]),
    ("groovy", &[20, 10]),
    ("hirsute", &[21, 4]),
    ("impish", &[21, 10]),
    ("jammy", &[22, 4]),
    ("noble", &[24, 4]),
];

const LANGUAGES: [(&str, &[&str]); 22] = [
    ("ocaml", &["ocaml", "opam"]),
    ("scala", &["sbt", "scala"]),
    ("clojure", &["clojure", "lein", "leiningen"]),
    (
        "python",
        &[
            "python",
            "python3",
            "pypy",
            "django",
            "miniconda",
            "miniconda3",
            "anaconda3",
            "poetry",
            "uv",
            "tox",
            "micromamba",
            "mambaforge",
            "miniforge3",
        ],
    ),
    ("ruby", &["ruby", "rails", "jruby"]),
    ("node", &["node", "nodejs", "bun", "deno", "cypress", "playwright", "puppeteer"]),
    ("go", &["golang", "go"]),
    ("rust", &["rust", "rustlang", "cargo"]),
    (
        "java",
        &[
            "maven",
            "gradle",
            "openjdk",
            "temurin",
            "jdk",
            "java",
            "amazoncorretto",
            "corretto",
            "kotlin",
            "zulu",
            "ant",
            "groovy",
        ],
    ),
    ("php", &["php", "composer", "laravel", "symfony"]),
    ("elixir", &["elixir", "phoenix"]),
    ("erlang", &["erlang"]),
    ("dotnet", &["dotnet", "sdk", "aspnet", "mono"]),
    ("haskell", &["haskell", "stack", "ghc"]),
    ("c", &["gcc", "clang", "cmake", "cpp", "llvm"]),
    ("swift", &["swift"]),
    ("dart", &["dart", "flutter"]),
    ("julia", &["julia"]),
    ("r", &["r", "rstudio", "tidyverse", "rocker"]),
    ("perl", &["perl"]),
    ("crystal", &["crystal"]),
    ("android", &["android"]),
];

/// What infrastructure does that can be all that a project is made of.
pub(super) const CHECKS: [&str; 2] = ["deploys", "checks style, security or prose"];

/// Names of images that CI uses beside the project's own environment. With `~`: any hyphenated part of the name.
const INFRASTRUCTURE: [(&str, &[&str]); 6] = [
    (
        "builds and ships container images",
        &[
            "docker",
            "~dind",
            "~kaniko",
            "executor",
            "buildah",
            "podman",
            "skopeo",
            "crane",
            "buildkit",
            "docker-compose",
            "compose",
            "cosign",
            "img",
            "docker-git",
            "docker-ci",
            "docker-alpine",
        ],
    ),
    (
        "deploys",
        &[
            "~helm",
            "~kubectl",
            "~kubernetes",
            "~terraform",
            "~opentofu",
            "~ansible",
            "~awscli",
            "aws-cli",
            "cloud-sdk",
            "~gcloud",
            "azure-cli",
            "~heroku",
            "dpl",
            "~k8s",
            "~rsync",
            "~lftp",
            "~ssh",
            "~serverless",
            "auto-deploy-image",
            "~flyctl",
            "~argocd",
            "~pulumi",
            "~vault",
            "lftp",
            "netlify",
            "~rancher",
            "~terragrunt",
            "~s3cmd",
            "~gitops",
        ],
    ),
    (
        "fetches or talks to a service",
        &["~curl", "git", "alpine-git", "~wget", "~glab", "gitlab-cli", "busybox", "~newman", "jq", "yq", "httpie"],
    ),
    (
        "makes releases or reports",
        &[
            "release-cli",
            "~semantic",
            "~release",
            "~renovate",
            "~danger",
            "~changelog",
            "cover2cover",
            "jacoco2cobertura",
            "gitversion",
            "~codecov",
            "~allure",
            "~sentry",
        ],
    ),
    (
        "checks style, security or prose",
        &[
            "~hadolint",
            "~shellcheck",
            "~trivy",
            "~gitleaks",
            "~semgrep",
            "~sonar",
            "~sonarqube",
            "~markdownlint",
            "~markdownlint2",
            "~commitlint",
            "~yamllint",
            "~linter",
            "~lint",
            "~megalinter",
            "~codequality",
            "codequality",
            "~sast",
            "~snyk",
            "~clair",
            "~grype",
            "~bandit",
            "pre-commit",
            "~zaproxy",
            "zap2docker-stable",
            "~vale",
            "~checkov",
            "~tfsec",
            "~phpqa",
            "~golangci",
            "reuse",
            "~secrets",
            "~lychee",
        ],
    ),
    (
        "is a service",
        &[
            "postgres",
            "mysql",
            "mariadb",
            "redis",
            "mongo",
            "memcached",
            "rabbitmq",
            "elasticsearch",
            "nginx",
            "httpd",
            "~selenium",
            "minio",
            "postgis",
            "caddy",
            "traefik",
            "haproxy",
            "opensearch",
            "kafka",
            "zookeeper",
            "clickhouse-server",
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_by_dockers_grammar() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let table = [
            ("ruby:2.7.1", Ok("ruby:2.7.1".to_owned())),
            ("registry.example.com:5000/a/b:1", Ok("registry.example.com:5000/a/b:1".to_owned())),
            ("localhost/a", Ok("localhost/a:latest".to_owned())),
            (&format!("ubuntu:latest@{digest}"), Ok(format!("ubuntu@{digest}"))),
            ("a/b__c/d--e.f", Ok("a/b__c/d--e.f:latest".to_owned())),
            ("", Err("it is empty")),
            ("python:", Err("its tag is empty")),
            ("/python:3", Err("a part of its path is empty")),
            ("a//b", Err("a part of its path is empty")),
            ("python:-alpine", Err("its tag is not one")),
            ("Python:3", Err("its path has letters that are not allowed")),
            ("<X>/y", Err("its path has letters that are not allowed")),
            ("a b", Err("its path has letters that are not allowed")),
            ("a\nRUN evil", Err("its path has letters that are not allowed")),
            ("a@sha256:12", Err("its digest is not one")),
            ("x_.example.com/a", Err("its registry is not a host name")),
        ];
        for (text, expected) in table {
            assert_eq!(ImageName::parse(text).map(|name| name.to_string()), expected, "{text}");
        }
    }

    #[test]
    fn aliases_are_those_of_the_runner() {
        let table: [(&str, &[&str]); 4] = [
            ("postgres:16", &["postgres"]),
            ("tutum/wordpress:latest", &["tutum__wordpress", "tutum-wordpress"]),
            ("registry.example.com:5000/a/b:1", &["registry.example.com__a__b", "registry.example.com-a-b"]),
            ("mdillon/postgis:9.6", &["mdillon__postgis", "mdillon-postgis"]),
        ];
        for (text, expected) in table {
            assert_eq!(ImageName::parse(text).expect("a name").aliases(), expected, "{text}");
        }
    }

    #[test]
    fn only_the_last_part_of_a_name_makes_it_infrastructure() {
        let table = [
            ("docker:27", true),
            ("docker:27-dind", true),
            ("gcr.io/kaniko-project/executor:debug", true),
            ("alpine/helm", true),
            ("alpine/git", true),
            ("curlimages/curl", true),
            ("registry.gitlab.com/gitlab-org/release-cli", true),
            ("postgres:16", true),
            ("registry.example.com/docker/acme-ci", false),
            ("registry.example.com/helm/app:1", false),
            ("python:3.12", false),
            ("alpine:3.20", false),
            ("rikorose/gcc-cmake", false),
        ];
        for (text, expected) in table {
            assert_eq!(ImageName::parse(text).expect("a name").infrastructure().is_some(), expected, "{text}");
        }
    }

    #[test]
    fn versions_and_languages_are_read_from_names() {
        let table: [(&str, &[u64], Option<&str>); 10] = [
            ("debian:bullseye-slim", &[11], None),
            ("ruby:3.2-bullseye", &[3, 2], Some("ruby")),
            ("python:3.11-slim", &[3, 11], Some("python")),
            ("tikiwiki/tikimanager-ci:php-8.4-qa", &[8, 4], None),
            ("eclipse-temurin:25.0.1_8-jdk", &[25, 0, 1], Some("java")),
            ("rust:slim", &[], Some("rust")),
            ("rust:1.80-nightly", &[], Some("rust")),
            ("golang:1.22", &[1, 22], Some("go")),
            ("mcr.microsoft.com/dotnet/sdk:8.0", &[8, 0], Some("dotnet")),
            ("cimg/ruby:3.2-node", &[3, 2], Some("ruby")),
        ];
        for (text, version, language) in table {
            let name = ImageName::parse(text).expect("a name");
            assert_eq!((name.version().as_slice(), name.language()), (version, language), "{text}");
        }
    }
}
