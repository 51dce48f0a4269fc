//! A text that cannot be printed, and the names by which configuration refers to one.
//!
//! A `Secret` has no `Display`, its `Debug` shows nothing of it, it is wiped when dropped, and it cannot be serialised:
//! whoever needs the value must write `expose()`, which is easy to search for.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

/// A secret text in memory.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes a text into keeping.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Returns the text.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where a secret comes from. Configuration holds references, never values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretRef {
    /// `env://NAME`: an environment variable of the controller.
    Env(String),
    /// `file:///path`: the first line of a file on the controller's machine.
    File(String),
    /// `command://program args…`: the first line of a program's output, run without a shell.
    Command(String),
}

/// A text that is no reference to a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a reference to a secret: write env://NAME, file:///path or command://program args (a value itself must not stand here)"
)]
pub struct InvalidSecretRef;

impl std::str::FromStr for SecretRef {
    type Err = InvalidSecretRef;
    fn from_str(text: &str) -> Result<Self, InvalidSecretRef> {
        let found = [
            ("env://", SecretRef::Env as fn(String) -> SecretRef),
            ("file://", SecretRef::File),
            ("command://", SecretRef::Command),
        ]
        .into_iter()
        .find_map(|(scheme, make)| {
            text.strip_prefix(scheme).filter(|rest| !rest.is_empty()).map(|rest| make(rest.to_owned()))
        });
        found.ok_or(InvalidSecretRef)
    }
}

impl TryFrom<String> for SecretRef {
    type Error = InvalidSecretRef;
    fn try_from(text: String) -> Result<Self, InvalidSecretRef> {
        text.parse()
    }
}

impl From<SecretRef> for String {
    fn from(reference: SecretRef) -> String {
        reference.to_string()
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretRef::Env(name) => write!(f, "env://{name}"),
            SecretRef::File(path) => write!(f, "file://{path}"),
            SecretRef::Command(line) => write!(f, "command://{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret = Secret::new("hunter2-canary");
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert_eq!(secret.expose(), "hunter2-canary");
    }

    #[test]
    fn references_read_back_as_written_and_refuse_values() {
        for text in ["env://TOKEN", "file:///etc/token", "command://pass show gitlab"] {
            assert_eq!(text.parse::<SecretRef>().map(|reference| reference.to_string()), Ok(text.to_owned()));
        }
        let refused = "glpat-secret-value".parse::<SecretRef>().expect_err("a value is no reference");
        assert!(!refused.to_string().contains("glpat"));
        assert!("env://".parse::<SecretRef>().is_err());
    }
}
