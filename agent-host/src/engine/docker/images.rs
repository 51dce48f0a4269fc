//! Images: looked for, pulled, built by the classic builder.
//!
//! The classic builder needs no plugin, takes a plain tar context, and sees images that exist only on this engine.

use std::collections::VecDeque;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::body_try_stream;
use bollard::models::BuildInfo as BuildLine;
use bollard::query_parameters::{BuildImageOptions, CreateImageOptions};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::context::context;
use super::{DEADLINE, DockerEngine, errors};
use crate::engine::{EngineError, ImageBuild, ImageFacts, Progress, RegistryCredential};

/// How long a pull may take.
const PULL_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// How long a build may take.
const BUILD_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// How many of the builder's last lines an error shows.
const LAST_LINES: usize = 20;

impl DockerEngine {
    pub(super) async fn inspect_image(&self, reference: &str) -> Result<Option<ImageFacts>, EngineError> {
        let client = self.client().await?;
        let inspect = client.inspect_image(reference);
        let image = match self.within(DEADLINE, || format!("look for image {reference}"), inspect).await {
            Ok(image) => image,
            Err(EngineError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let config = image.config.unwrap_or_default();
        let mut ports: Vec<u16> =
            config.exposed_ports.unwrap_or_default().iter().filter_map(|port| tcp(port)).collect();
        ports.sort_unstable();
        Ok(Some(ImageFacts {
            id: image.id.unwrap_or_default(),
            platform: [image.os, image.architecture, image.variant]
                .into_iter()
                .flatten()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/"),
            user: config.user.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            command: config.cmd.unwrap_or_default(),
            ports,
            labels: config.labels.unwrap_or_default().into_iter().collect(),
        }))
    }

    pub(super) async fn pull_image(
        &self,
        reference: &str,
        platform: &str,
        login: Option<&RegistryCredential>,
    ) -> Result<ImageFacts, EngineError> {
        let client = self.client().await?;
        let (name, tag) = name_and_tag(reference);
        let options = CreateImageOptions {
            from_image: Some(name.to_owned()),
            tag: Some(tag.to_owned()),
            platform: platform.to_owned(),
            ..CreateImageOptions::default()
        };
        let credentials = login.map(|login| DockerCredentials {
            username: Some(login.username.clone()),
            password: Some(login.password.expose().to_owned()),
            ..DockerCredentials::default()
        });
        if reference.contains('@') {
            // Of what it has by this digest, Docker gives without asking the registry whether it may.
            let ask = client.inspect_registry_image(reference, credentials.clone());
            let asked = self.within(DEADLINE, || format!("ask for image {reference}"), ask).await;
            asked.map_err(|error| pull_error(reference, error))?;
        }
        let pull = client.create_image(Some(options), None, credentials).try_for_each(async |_| Ok(()));
        let pulled = self.within(PULL_DEADLINE, || format!("pull image {reference}"), pull).await;
        pulled.map_err(|error| pull_error(reference, error))?;
        self.inspect_image(reference).await?.ok_or_else(|| EngineError::Pull {
            image: reference.to_owned(),
            detail: "the engine pulled it and does not have it".into(),
            unreachable: false,
        })
    }

    pub(super) async fn build_image(
        &self,
        build: &ImageBuild,
        progress: &Progress<'_>,
    ) -> Result<ImageFacts, EngineError> {
        let client = self.client().await?;
        let options = BuildImageOptions {
            dockerfile: "Dockerfile".into(),
            t: Some(build.tag.clone()),
            rm: true,
            forcerm: true,
            labels: Some(build.labels.clone().into_iter().collect()),
            buildargs: Some(build.arguments.clone().into_iter().collect()),
            platform: build.platform.clone(),
            ..BuildImageOptions::default()
        };
        let body = body_try_stream(context(&build.dockerfile, build.files.clone()));
        let mut printed = Printed { progress, last: VecDeque::new() };
        let lines = client.build_image(options, None, Some(body));
        let built = {
            let printed = &mut printed;
            let read = async move {
                let mut lines = Box::pin(lines);
                while let Some(line) = lines.next().await {
                    printed.take(line?);
                }
                Ok(())
            };
            self.within(BUILD_DEADLINE, || format!("build image {}", build.tag), read).await
        };
        match built {
            Ok(()) => {}
            Err(EngineError::Other { detail, status, .. }) if status >= 400 => {
                return Err(EngineError::Build { tag: build.tag.clone(), detail: printed.end_with(&detail) });
            }
            Err(EngineError::NotFound { detail, .. }) => {
                return Err(EngineError::Build { tag: build.tag.clone(), detail: printed.end_with(&detail) });
            }
            Err(error) => return Err(error),
        }
        self.inspect_image(&build.tag).await?.ok_or_else(|| EngineError::Build {
            tag: build.tag.clone(),
            detail: printed.end_with("the builder ended without an image"),
        })
    }
}

/// What the builder prints: passed on, and its end kept for an error.
struct Printed<'a> {
    progress: &'a Progress<'a>,
    last: VecDeque<String>,
}

impl Printed<'_> {
    fn take(&mut self, line: BuildLine) {
        for text in line.stream.iter().flat_map(|text| text.lines()).map(str::trim_end).filter(|text| !text.is_empty())
        {
            (self.progress)(text);
            self.last.push_back(text.to_owned());
        }
        self.last.drain(..self.last.len().saturating_sub(LAST_LINES));
    }

    fn end_with(&self, detail: &str) -> String {
        let lines = self.last.iter().map(String::as_str).chain([detail]);
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn pull_error(image: &str, error: EngineError) -> EngineError {
    match error {
        EngineError::Other { detail, .. } | EngineError::NotFound { detail, .. } => {
            let unreachable = errors::is_registry_unreachable(&detail);
            EngineError::Pull { image: image.to_owned(), detail, unreachable }
        }
        other => other,
    }
}

/// Splits `registry:5000/team/app:1.2` or `app@sha256:…`. Docker would pull every tag of a name without one.
fn name_and_tag(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, digest);
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

/// Reads `5432/tcp`; other protocols cannot be connected to.
fn tcp(port: &str) -> Option<u16> {
    match port.split_once('/') {
        Some((number, "tcp")) => number.parse().ok(),
        Some(_) => None,
        None => port.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_split_as_docker_wants_them() {
        for (reference, name, tag) in [
            ("python:3.11", "python", "3.11"),
            ("python", "python", "latest"),
            ("host:5000/team/app", "host:5000/team/app", "latest"),
            ("host:5000/team/app:1", "host:5000/team/app", "1"),
            ("app@sha256:00", "app", "sha256:00"),
            ("app:1@sha256:00", "app:1", "sha256:00"),
        ] {
            assert_eq!(name_and_tag(reference), (name, tag), "{reference}");
        }
    }

    #[test]
    fn only_tcp_ports_count() {
        assert_eq!((tcp("5432/tcp"), tcp("53/udp"), tcp("80"), tcp("x/tcp")), (Some(5432), None, Some(80), None));
    }
}
