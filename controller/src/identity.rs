//! Who calls: people with tokens, hosts with certificates that this controller issued.
//!
//! `authority` is the fleet's own CA, `tokens` are what people and joining hosts show, `server` is the TLS side of the
//! listener. Nothing here decides what a caller may do.

mod authority;
mod server;
mod tokens;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use devfleet_shared::id::HostId;
use devfleet_shared::tls::TlsError;
use serde::{Deserialize, Serialize};

use crate::store::StoreError;

pub use authority::{Authority, Certified, Issued, controller_of, host_of, key_of_request};
pub use server::{ServerTls, peer_controller, peer_host, server_tls};
pub use tokens::{JoinRefused, JoinTerms, Joined, TokenRecord, Tokens, Unauthenticated};

/// What a person may do; each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Also submits and cancels jobs.
    Submitter,
    /// Also approves and rejects.
    Approver,
    /// Also looks after projects, hosts and tokens.
    Operator,
}

impl Role {
    /// All roles, from the least to the most.
    pub const ALL: [Role; 4] = [Role::Viewer, Role::Submitter, Role::Approver, Role::Operator];

    /// Returns the role's name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Submitter => "submitter",
            Role::Approver => "approver",
            Role::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no role {0:?}: write viewer, submitter, approver or operator")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Role::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A person (or a program on a person's behalf) with a token.
    Person {
        /// The token's name.
        name: String,
        /// What the token allows.
        role: Role,
    },
    /// A host with a certificate of ours.
    Host(HostId),
    /// Nobody we know.
    Nobody,
}

/// Why something about identities failed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of the authority cannot be read or written.
    #[error("{operation} {}", .path.display())]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The authority's key can be read by others.
    #[error("use {}: other users of this machine may read it; run `chmod 600` on it, and make a new authority if they did", .path.display())]
    ExposedKey {
        /// The file.
        path: PathBuf,
    },
    /// The authority's certificate is there, its key is not, or they do not belong together.
    #[error("use the authority in {}: authority.pem and authority.key do not belong together; restore both from one copy, or move both away to make a new authority (every host and context must then join again)", .directory.display())]
    Unpaired {
        /// The directory.
        directory: PathBuf,
    },
    /// A certificate cannot be made.
    #[error("issue a certificate")]
    Issue(#[source] rcgen::Error),
    /// A name cannot stand in a certificate.
    #[error("issue a certificate for {name:?}: it is neither a host name nor an address")]
    BadName {
        /// The name.
        name: String,
    },
    /// What a host sent is not a signing request.
    #[error("read the signing request: it is not a valid PKCS#10 request in PEM form")]
    BadRequest(#[source] Option<rcgen::Error>),
    /// Certificates cannot be read or put to use.
    #[error("use the certificates")]
    Tls(#[source] TlsError),
    /// rustls refuses the settings.
    #[error("set up TLS for the listener: {0}")]
    Settings(String),
    /// A token's name is out of bounds.
    #[error("name the token: use 1 to 100 printable characters")]
    BadTokenName,
    /// A time to live is out of bounds.
    #[error("make a token that lives so long: {0}")]
    BadTtl(&'static str),
    /// What a join token is to be good for is out of bounds.
    #[error("make a join token: {0}")]
    BadJoinTerms(&'static str),
    /// No token has this id.
    #[error("find token {0:?}: there is none with this id; `devfleet tokens list` shows them")]
    NoSuchToken(String),
    /// The store does not answer.
    #[error("use the store")]
    Store(#[from] StoreError),
    /// A record in the store cannot be read.
    #[error("read the record {key} in the store")]
    Record {
        /// The key.
        key: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl IdentityError {
    /// Says whether the same call may go well later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, IdentityError::Store(error) if error.is_retryable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_and_read_back_as_written() {
        assert!(Role::ALL.is_sorted());
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("admin".parse::<Role>().expect_err("unknown").to_string().contains("operator"));
    }
}
