//! Names for things: every id is a type of its own, so that a job is never mistaken for an attempt.
//!
//! Job ids are random UUIDs, attempt ids eight random hex digits (they end up in container names). Rules for
//! names that people choose (projects, hosts) are checked where the value is made, so a value that exists is valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A text that is not a valid id or name, and the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is not valid: {rule}")]
pub struct InvalidId {
    /// What was to be named, as a person would say it.
    pub kind: &'static str,
    /// The refused text.
    pub value: String,
    /// The rule, as a full phrase.
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if $check(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind, value: text.to_owned(), rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// One job: a UUID in its hyphenated form.
    JobId, "job id", "it must be a UUID, as `devfleet jobs list` shows it", is_uuid
);
text_id!(
    /// One host: a UUID given at its first join.
    HostId, "host id", "it must be a UUID, as `devfleet hosts list` shows it", is_uuid
);
text_id!(
    /// One controller: a UUID made at its first start.
    ControllerId, "controller id", "it must be a UUID, as `devfleet controllers list` shows it", is_uuid
);
text_id!(
    /// One attempt at a job: eight lower-case hex digits, the suffix of everything made for it.
    AttemptId, "attempt id", "it must be eight lower-case hex digits", is_hex8
);
text_id!(
    /// A project's name, chosen by an operator.
    ProjectName, "project name",
    "use 1 to 63 lower-case letters, digits, dots, dashes or underscores, starting with a letter or digit", is_name
);
text_id!(
    /// An agent profile's name, chosen by an operator.
    AgentName, "agent name",
    "use 1 to 63 lower-case letters, digits, dots, dashes or underscores, starting with a letter or digit", is_name
);
text_id!(
    /// A SHA-256 digest, written `sha256:` and 64 lower-case hex digits.
    Digest, "digest", "it must be `sha256:` and 64 lower-case hex digits", is_digest
);

impl JobId {
    /// Makes a new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4().hyphenated().to_string())
    }

    /// Returns the first eight characters: what people type, and what branch names carry.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl HostId {
    /// Makes a new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4().hyphenated().to_string())
    }
}

impl ControllerId {
    /// Makes a new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4().hyphenated().to_string())
    }
}

impl AttemptId {
    /// Makes a new random id.
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string()[..8].to_owned())
    }

    /// Returns the name of an object of this attempt's environment: `devbox-a3f91c20-redis`.
    pub fn object_name(&self, role: &str) -> String {
        format!("devbox-{}-{role}", self.0)
    }
}

impl Digest {
    /// Hashes parts that are told apart by their lengths, so that `["ab","c"]` and `["a","bc"]` differ.
    pub fn over<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self(format!("sha256:{}", hex(&hasher.finalize())))
    }

    /// Hashes plain bytes, as `sha256sum` does.
    pub fn of(bytes: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(&Sha256::digest(bytes))))
    }

    /// Hashes all that a reader gives, as `sha256sum` does, without holding it in memory.
    pub fn of_reader(reader: &mut impl std::io::Read) -> std::io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = [0; 64 << 10];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Self(format!("sha256:{}", hex(&hasher.finalize())))),
                read => hasher.update(&buffer[..read]),
            }
        }
    }

    /// Returns the 64 hex digits alone.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

/// The ownership epoch of a job. Every effect of an attempt carries it; of two fences the greater is the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Writes bytes as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && Uuid::try_parse(text).is_ok_and(|id| id.hyphenated().to_string() == text)
}

fn is_hex8(text: &str) -> bool {
    text.len() == 8 && is_lower_hex(text)
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && is_lower_hex(hex))
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_what_they_print_and_nothing_else() {
        let job = JobId::random();
        assert_eq!(job.to_string().parse::<JobId>(), Ok(job));
        assert!("A3F91C20".parse::<AttemptId>().is_err());
        assert_eq!(AttemptId::random().as_str().len(), 8);
        for bad in ["", "-a", "A", "a b", "a/b", &"x".repeat(64)] {
            assert!(bad.parse::<ProjectName>().is_err(), "{bad:?}");
        }
        assert!("web-1.api_x".parse::<ProjectName>().is_ok());
    }

    #[test]
    fn digests_tell_their_parts_apart() {
        assert_ne!(Digest::over([b"ab".as_slice(), b"c"]), Digest::over([b"a".as_slice(), b"bc"]));
        assert_eq!(Digest::of(b"").hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
