//! Turns references to secrets into values, at the moment when an attempt needs them. Nothing is kept.

use std::process::Stdio;
use std::time::Duration;

use devfleet_shared::secret::{Secret, SecretRef};

/// A secret that cannot be had. Never shows a value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not set.
    #[error("resolve {0}: the controller has no such environment variable; set it and restart the controller")]
    NoVariable(SecretRef),
    /// The file cannot be read.
    #[error("resolve {reference}: the file cannot be read by the controller")]
    File {
        /// The reference.
        reference: SecretRef,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program failed.
    #[error("resolve {reference}: the program {problem}")]
    Command {
        /// The reference.
        reference: SecretRef,
        /// What happened.
        problem: String,
    },
    /// There is nothing in it.
    #[error("resolve {0}: it is empty")]
    Empty(SecretRef),
}

const COMMAND_TIME: Duration = Duration::from_secs(10);

/// Resolves a reference.
pub async fn resolve(reference: &SecretRef) -> Result<Secret, SecretError> {
    let text = match reference {
        SecretRef::Env(name) => std::env::var(name).map_err(|_| SecretError::NoVariable(reference.clone()))?,
        SecretRef::File(path) => tokio::fs::read_to_string(path)
            .await
            .map_err(|source| SecretError::File { reference: reference.clone(), source })?,
        SecretRef::Command(line) => run(reference, line).await?,
    };
    let first_line = text.lines().next().unwrap_or_default().trim_end();
    if first_line.is_empty() {
        return Err(SecretError::Empty(reference.clone()));
    }
    Ok(Secret::new(first_line))
}

async fn run(reference: &SecretRef, line: &str) -> Result<String, SecretError> {
    let failed = |problem: String| SecretError::Command { reference: reference.clone(), problem };
    let mut words = line.split_whitespace();
    let program = words.next().ok_or_else(|| failed("is not named".into()))?;
    let child = tokio::process::Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(COMMAND_TIME, child)
        .await
        .map_err(|_| failed(format!("did not end within {} s", COMMAND_TIME.as_secs())))?
        .map_err(|error| failed(format!("cannot be run ({error})")))?;
    if !output.status.success() {
        return Err(failed(format!("failed ({})", output.status)));
    }
    String::from_utf8(output.stdout).map_err(|_| failed("wrote something that is no text".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn value(reference: &str) -> Result<String, String> {
        let reference = reference.parse().expect("a reference");
        resolve(&reference).await.map(|secret| secret.expose().to_owned()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_first_line_of_each_source_is_the_secret() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "value-1\nrest\n").expect("written");
        assert_eq!(value(&format!("file://{}", file.path().display())).await.as_deref(), Ok("value-1"));
        assert_eq!(value("command://echo value-2").await.as_deref(), Ok("value-2"));
        assert!(value("env://PATH").await.is_ok());
    }

    #[tokio::test]
    async fn what_cannot_be_had_says_why() {
        assert!(value("env://DEVFLEET_SURELY_UNSET").await.expect_err("unset").contains("environment variable"));
        assert!(value("file:///nonexistent/secret").await.is_err());
        assert!(value("command://false").await.expect_err("it fails").contains("failed"));
        assert!(value("command://surely-no-such-program").await.expect_err("missing").contains("cannot be run"));
        assert!(value("command://true").await.expect_err("empty").contains("empty"));
    }
}
