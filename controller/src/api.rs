//! The door: gRPC services that say who calls, whether they may, translate, call, and translate back.
//!
//! request ─▶ [`access::AccessLayer`] (identity, table of roles, deny by default) ─▶ jobs | fleet | session
//!
//! gRPC codes appear in this folder only. Every error carries a reason for programs (`google.rpc.ErrorInfo`, domain
//! `devfleet`) and a sentence for people.

pub mod access;
pub mod fleet;
mod hosts;
pub mod jobs;
pub mod passing;
pub mod session;
mod settings;
pub mod show;

use std::collections::HashMap;

use devfleet_shared::error::Chain;
use devfleet_shared::id::{HostId, InvalidId};
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::forge::ForgeError;
use crate::identity::{Caller, IdentityError};
use crate::jobs::JobError;
use crate::project::ProjectError;
use crate::sessions::SweepError;
use crate::store::StoreError;
use crate::store::records::RecordError;

/// Makes a status with a reason for programs and a sentence for people.
pub fn refusal(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, "devfleet", HashMap::new()))
}

/// Returns who calls; the access layer has put it there.
fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Nobody)
}

/// Returns the name under which a person acts.
fn person<T>(request: &Request<T>) -> String {
    match caller(request) {
        Caller::Person { name, .. } => name,
        Caller::Host(host) => format!("host {host}"),
        Caller::Nobody => "nobody".to_owned(),
    }
}

/// Returns the host that calls.
fn host<T>(request: &Request<T>) -> Result<HostId, Status> {
    match caller(request) {
        Caller::Host(host) => Ok(host),
        Caller::Person { .. } | Caller::Nobody => {
            Err(refusal(Code::PermissionDenied, "NOT_A_HOST", "only a host with its certificate may call this"))
        }
    }
}

fn invalid(reason: &'static str, message: impl Into<String>) -> Status {
    refusal(Code::InvalidArgument, reason, message)
}

fn invalid_id(error: &InvalidId) -> Status {
    invalid("INVALID_NAME", error.to_string())
}

fn store_status(error: &StoreError) -> Status {
    let (code, reason) = match error {
        StoreError::DiskFull => (Code::ResourceExhausted, "STORE_DISK_FULL"),
        StoreError::QuotaReached => (Code::ResourceExhausted, "STORE_QUOTA_REACHED"),
        StoreError::OutOfBounds { .. } => (Code::InvalidArgument, "OUT_OF_BOUNDS"),
        error if error.is_retryable() => (Code::Unavailable, "STORE_UNAVAILABLE"),
        _ => (Code::Internal, "STORE_FAILED"),
    };
    refusal(code, reason, Chain(error).to_string())
}

fn record_status(error: &RecordError) -> Status {
    match error {
        RecordError::Store(error) => store_status(error),
        RecordError::Malformed { .. } => refusal(Code::Internal, "MALFORMED_RECORD", Chain(error).to_string()),
    }
}

fn job_status(error: &JobError) -> Status {
    let (code, reason) = match error {
        JobError::NoSuchJob(_) => (Code::NotFound, "NO_SUCH_JOB"),
        JobError::WrongPhase { .. } => (Code::FailedPrecondition, "WRONG_PHASE"),
        JobError::StaleDigest { .. } => (Code::FailedPrecondition, "STALE_DIGEST"),
        JobError::KeyReused(_) => (Code::AlreadyExists, "IDEMPOTENCY_KEY_REUSED"),
        JobError::Refused(_) => (Code::Aborted, "JOB_MOVED"),
        JobError::Record(error) => return record_status(error),
        JobError::TermOver(_) => (Code::Unavailable, "TERM_OVER"),
    };
    refusal(code, reason, Chain(error).to_string())
}

fn project_status(error: &ProjectError) -> Status {
    let reason = match error {
        ProjectError::Toml(_) => "INVALID_PROJECT",
        ProjectError::Value { key, .. } if key == "agent" => "NO_SUCH_AGENT",
        ProjectError::Value { .. } => "INVALID_PROJECT",
    };
    invalid(reason, error.to_string())
}

fn forge_status(error: &ForgeError) -> Status {
    let (code, reason) = match error {
        ForgeError::NoSuchBranch { .. } => (Code::NotFound, "NO_SUCH_BRANCH"),
        ForgeError::NoCiConfig { .. } => (Code::FailedPrecondition, "NO_CI_CONFIG"),
        ForgeError::InvalidCiConfig { .. } => (Code::FailedPrecondition, "INVALID_CI_CONFIG"),
        ForgeError::Unauthorized { .. } => (Code::FailedPrecondition, "FORGE_UNAUTHORIZED"),
        ForgeError::Forbidden { .. } => (Code::FailedPrecondition, "FORGE_FORBIDDEN"),
        ForgeError::NotFound { .. } => (Code::FailedPrecondition, "FORGE_NOT_FOUND"),
        ForgeError::Refused { .. } => (Code::FailedPrecondition, "FORGE_REFUSED"),
        ForgeError::Unavailable { .. } => (Code::Unavailable, "FORGE_UNAVAILABLE"),
    };
    refusal(code, reason, Chain(error).to_string())
}

fn identity_status(error: &IdentityError) -> Status {
    let (code, reason) = match error {
        IdentityError::NoSuchToken(_) => (Code::NotFound, "NO_SUCH_TOKEN"),
        IdentityError::BadTokenName | IdentityError::BadTtl(_) | IdentityError::BadJoinTerms(_) => {
            (Code::InvalidArgument, "INVALID_TOKEN_SETTINGS")
        }
        IdentityError::BadRequest(_) => (Code::InvalidArgument, "INVALID_SIGNING_REQUEST"),
        IdentityError::Store(error) => return store_status(error),
        _ => (Code::Internal, "IDENTITY_FAILED"),
    };
    refusal(code, reason, Chain(error).to_string())
}

fn sweep_message(error: &SweepError) -> String {
    format!("cannot {}", Chain(error))
}
