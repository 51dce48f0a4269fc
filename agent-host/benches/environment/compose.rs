//! The yardstick that people know: `docker-compose up -d` and `docker-compose down -v`.
//!
//! The file has the shape of the `compose.yaml` that the controller renders for the same environment, with the image
//! built beforehand, and with labels by which it can be found after an interruption.

use std::path::Path;
use std::process::Stdio;
use tokio::time::Instant;

use anyhow::{Context as _, bail};
use devfleet_host::engine::ImageFacts;
use devfleet_shared::id::{AttemptId, HostId};
use tokio::process::Command;

use crate::saga::{SERVICE, SERVICE_NAME};
use crate::{Spans, labels};

pub(crate) struct Compose {
    folder: tempfile::TempDir,
    text: String,
}

impl Compose {
    pub(crate) fn new(image: &ImageFacts, host: &HostId) -> anyhow::Result<Compose> {
        let labels: Vec<String> =
            labels(host).into_iter().map(|(name, value)| format!("\"{name}\": \"{value}\"")).collect();
        let labels = labels.join(", ");
        let text = format!(
            r#"services:
  devbox:
    image: "{image}"
    working_dir: "/workspace"
    init: true
    volumes:
      - ".:/workspace"
    command:
      - "sleep"
      - "infinity"
    depends_on:
      - "{SERVICE_NAME}"
    networks:
      box:
        aliases:
          - "build"
    labels: {{ {labels} }}
  "{SERVICE_NAME}":
    image: "{SERVICE}"
    networks:
      box:
        aliases:
          - "{SERVICE_NAME}"
    labels: {{ {labels} }}
networks:
  box:
    labels: {{ {labels} }}
"#,
            image = image.id,
        );
        Ok(Compose { folder: tempfile::tempdir()?, text })
    }

    pub(crate) async fn once(&self) -> anyhow::Result<Spans> {
        let project = format!("devbox-{}", AttemptId::random());
        let folder = self.folder.path().join(&project);
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("compose.yaml"), &self.text)?;
        let begin = Instant::now();
        compose(&folder, &["up", "-d"]).await?;
        let up = begin.elapsed();
        let begin = Instant::now();
        compose(&folder, &["down", "-v"]).await?;
        Ok(Spans { up, down: begin.elapsed() })
    }
}

/// The project is named after the folder.
async fn compose(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("docker-compose");
    command.args(["-f", "compose.yaml"]).args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.context("run docker-compose; install it with: deploy/setup.sh bench")?;
    if !output.status.success() {
        bail!("docker-compose {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
