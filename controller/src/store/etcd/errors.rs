//! What a failed call to etcd means: did it happen, did it not, or is it unknown?

use etcd_client::Error;
use tonic::Code;

use crate::store::{Revision, StoreError};

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It certainly did not happen.
    Refused(StoreError),
    /// It certainly did not happen: the lease has ended.
    LeaseEnded,
    /// The revision is no longer kept.
    Compacted,
    /// No answer, or one that says nothing of what was done.
    Unknown(Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    pub(super) fn into_error(self) -> StoreError {
        match self {
            Failure::Refused(error) => error,
            Failure::LeaseEnded => StoreError::Unavailable("the lease has ended".into()),
            Failure::Compacted => StoreError::Compacted { asked: 0, oldest: Revision::MAX },
            Failure::Unknown(source) => StoreError::Unavailable(source),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::GRpcStatus(status) => status,
            Error::LeaseKeepAliveError(text) if text.contains("lease not found") => return Failure::LeaseEnded,
            _ => return Failure::Unknown(Box::new(error)),
        };
        let text = status.message();
        // etcd tells its reasons apart by text alone.
        match status.code() {
            _ if text.contains("lease not found") => Failure::LeaseEnded,
            _ if text.contains("has been compacted") => Failure::Compacted,
            Code::ResourceExhausted if text.contains("space exceeded") => Failure::Refused(StoreError::QuotaReached),
            Code::InvalidArgument if text.contains("too large") => Failure::Refused(StoreError::OutOfBounds {
                what: "a transaction",
                rule: "etcd finds it too large; its --max-request-bytes is at least 1.5 MiB",
            }),
            Code::InvalidArgument if text.contains("too many operations") => {
                Failure::Refused(StoreError::OutOfBounds {
                    what: "a transaction",
                    rule: "etcd finds that it has too many operations; its --max-txn-ops is at least 128",
                })
            }
            Code::PermissionDenied | Code::Unauthenticated => Failure::Refused(StoreError::NotAllowed(text.to_owned())),
            Code::InvalidArgument if text.contains("authentication failed") || text.contains("user name is empty") => {
                Failure::Refused(StoreError::NotAllowed(text.to_owned()))
            }
            _ => Failure::Unknown(Box::new(error)),
        }
    }
}
