//! Who may call what. One table; a call that does not stand in it is refused to everybody.
//!
//! People show a bearer token, hosts the certificate that this controller issued. Identity is checked for every call,
//! not for every connection, so a revoked token or a removed host is refused at once.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::warn;

use super::{record_status, refusal};
use crate::hosts::Hosts;
use crate::identity::{Caller, Role, Tokens, Unauthenticated, peer_controller, peer_host};

/// Names the host in whose name a controller passes a call on. From anyone else it counts for nothing.
pub const HOST_HEADER: &str = "devfleet-host";

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// People with at least this role.
    Role(Role),
    /// Hosts with their certificate.
    Host,
    /// Anyone: the call itself says nothing, or checks a token of its own.
    Anyone,
}

/// The table.
const TABLE: &[(&str, Access)] = &[
    ("/devfleet.v1.Jobs/ApplyProject", Access::Role(Role::Operator)),
    ("/devfleet.v1.Jobs/RemoveProject", Access::Role(Role::Operator)),
    ("/devfleet.v1.Jobs/ListProjects", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Jobs/Submit", Access::Role(Role::Submitter)),
    ("/devfleet.v1.Jobs/Cancel", Access::Role(Role::Submitter)),
    ("/devfleet.v1.Jobs/Approve", Access::Role(Role::Approver)),
    ("/devfleet.v1.Jobs/Reject", Access::Role(Role::Approver)),
    ("/devfleet.v1.Jobs/GetJob", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Jobs/ListJobs", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Jobs/WatchJob", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Jobs/GetProposal", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Jobs/GetProposalDiff", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Jobs/GetDiff", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Jobs/ReadLogs", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Fleet/WhoAmI", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Fleet/ListHosts", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Fleet/GetHost", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Fleet/CordonHost", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/DrainHost", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/ResumeHost", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/LabelHost", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/RemoveHost", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/ListControllers", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Fleet/CreateJoinToken", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/CreateToken", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/ListTokens", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/RevokeToken", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/Sweep", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/Doctor", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Fleet/GetSettings", Access::Role(Role::Viewer)),
    ("/devfleet.v1.Fleet/SetSettings", Access::Role(Role::Operator)),
    ("/devfleet.v1.Fleet/Join", Access::Anyone),
    ("/devfleet.v1.Fleet/RenewCertificate", Access::Host),
    ("/devfleet.v1.Session/Open", Access::Host),
    ("/devfleet.v1.Session/PushLogs", Access::Host),
    ("/devfleet.v1.Session/GetGrant", Access::Host),
    ("/devfleet.v1.Session/AuthorizePublish", Access::Host),
    ("/grpc.health.v1.Health/Check", Access::Anyone),
    ("/grpc.health.v1.Health/Watch", Access::Anyone),
    ("/grpc.health.v1.Health/List", Access::Anyone),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Role(Role::Viewer)),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Role(Role::Viewer)),
];

/// Returns who may make the call with this path; `None`: nobody.
pub fn access(path: &str) -> Option<Access> {
    TABLE.iter().find(|(known, _)| *known == path).map(|(_, access)| *access)
}

/// Decides whether a caller may make a call.
pub fn decide(path: &str, caller: &Caller) -> Result<(), Status> {
    match (access(path), caller) {
        (Some(Access::Anyone), _) | (Some(Access::Host), Caller::Host(_)) => Ok(()),
        (Some(Access::Role(needed)), Caller::Person { role, .. }) if *role >= needed => Ok(()),
        (Some(Access::Role(needed)), Caller::Person { name, role }) => Err(refusal(
            Code::PermissionDenied,
            "ROLE_TOO_LOW",
            format!("{name} has the role {role}, this needs {needed}; ask an operator for a token with it"),
        )),
        (Some(Access::Role(_)), _) => Err(refusal(
            Code::Unauthenticated,
            "NO_TOKEN",
            "this needs a token; `devfleet up` makes a context with one, or ask an operator for `devfleet tokens create`",
        )),
        (Some(Access::Host), _) => {
            Err(refusal(Code::PermissionDenied, "NOT_A_HOST", "only a host with its certificate may call this"))
        }
        (None, _) => Err(refusal(Code::PermissionDenied, "NOT_ALLOWED", "nobody may call this")),
    }
}

/// Puts the check in front of all services.
#[derive(Clone)]
pub struct AccessLayer {
    /// Knows the tokens.
    pub tokens: Tokens,
    /// Knows the hosts.
    pub hosts: Hosts,
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;
    fn layer(&self, inner: S) -> AccessService<S> {
        AccessService { access: self.clone(), inner }
    }
}

/// A service behind the check.
#[derive(Clone)]
pub struct AccessService<S> {
    access: AccessLayer,
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for AccessService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Answer {
        // The service that was polled ready is the one to call; its clone waits for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let AccessLayer { tokens, hosts } = self.access.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let shown = request.headers().get(http::header::AUTHORIZATION).cloned();
            let passed_on = request.headers().get(HOST_HEADER).and_then(|host| host.to_str().ok()?.parse().ok());
            let host = match peer_controller(request.extensions()) {
                Some(_) => passed_on,
                None => peer_host(request.extensions()),
            };
            let caller = match identify(&tokens, shown, host).await {
                Ok(caller) => caller,
                Err(status) => return Ok(status.into_http()),
            };
            if let Err(status) = decide(&path, &caller) {
                warn!(path, code = ?status.code(), "call refused");
                return Ok(status.into_http());
            }
            if let (Some(Access::Host), Caller::Host(host)) = (access(&path), &caller)
                && let Err(status) = admit(&hosts, host).await
            {
                warn!(path, %host, code = ?status.code(), "call of a host refused");
                return Ok(status.into_http());
            }
            request.extensions_mut().insert(caller);
            inner.call(request).await
        })
    }
}

async fn identify(tokens: &Tokens, shown: Option<http::HeaderValue>, host: Option<HostId>) -> Result<Caller, Status> {
    if let Some(header) = shown {
        let malformed =
            || refusal(Code::Unauthenticated, "MALFORMED_TOKEN", "the authorization must be `Bearer` and a token");
        let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).ok_or_else(malformed)?;
        return tokens.authenticate(token).await.map_err(|error| unauthenticated(&error));
    }
    Ok(host.map_or(Caller::Nobody, Caller::Host))
}

/// Checks, at every call, that a host with a good certificate is still part of the fleet.
async fn admit(hosts: &Hosts, host: &HostId) -> Result<(), Status> {
    match hosts.member(host).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(refusal(Code::PermissionDenied, "HOST_REMOVED", why)),
        Err(error) => Err(record_status(&error)),
    }
}

fn unauthenticated(error: &Unauthenticated) -> Status {
    let reason = match error {
        Unauthenticated::Malformed => "MALFORMED_TOKEN",
        Unauthenticated::Unknown => "UNKNOWN_TOKEN",
        Unauthenticated::Expired(_) => "EXPIRED_TOKEN",
        Unauthenticated::Revoked(_) => "REVOKED_TOKEN",
        Unauthenticated::Unavailable(_) => "STORE_UNAVAILABLE",
    };
    let code = if error.is_retryable() { Code::Unavailable } else { Code::Unauthenticated };
    refusal(code, reason, Chain(error).to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    fn every_call() -> Vec<String> {
        let set = prost_types::FileDescriptorSet::decode(devfleet_proto::DESCRIPTORS).expect("descriptors");
        let calls = set.file.iter().flat_map(|file| {
            file.service.iter().flat_map(|service| {
                let name = format!("{}.{}", file.package(), service.name());
                service.method.iter().map(move |method| format!("/{name}/{}", method.name()))
            })
        });
        calls.collect()
    }

    #[test]
    fn every_call_of_ours_stands_in_the_table_and_the_table_names_nothing_else() {
        let calls: BTreeSet<_> = every_call().into_iter().collect();
        assert!(calls.len() > 20);
        let known: BTreeSet<_> =
            TABLE.iter().map(|(path, _)| (*path).to_owned()).filter(|path| path.starts_with("/devfleet.")).collect();
        assert_eq!(known, calls);
    }

    #[test]
    fn what_does_not_stand_in_the_table_is_refused_to_everybody() {
        let operator = Caller::Person { name: "ada".into(), role: Role::Operator };
        let host = Caller::Host(devfleet_shared::id::HostId::random());
        for caller in [operator, host, Caller::Nobody] {
            assert!(decide("/devfleet.v1.Jobs/Invented", &caller).is_err());
        }
    }

    #[test]
    fn nobody_gets_in_without_identity_except_where_the_call_checks_itself() {
        let open: Vec<_> = every_call().into_iter().filter(|path| decide(path, &Caller::Nobody).is_ok()).collect();
        assert_eq!(open, ["/devfleet.v1.Fleet/Join"]);
    }

    #[test]
    fn each_role_may_make_exactly_the_calls_of_its_rank() {
        for path in every_call() {
            for role in Role::ALL {
                let person = Caller::Person { name: "ada".into(), role };
                let expected = match access(&path) {
                    Some(Access::Role(needed)) => role >= needed,
                    Some(Access::Anyone) => true,
                    Some(Access::Host) | None => false,
                };
                assert_eq!(decide(&path, &person).is_ok(), expected, "{path} as {role}");
            }
        }
        let viewer = Caller::Person { name: "eve".into(), role: Role::Viewer };
        for path in ["/devfleet.v1.Jobs/Submit", "/devfleet.v1.Jobs/Approve", "/devfleet.v1.Fleet/CreateToken"] {
            assert_eq!(decide(path, &viewer).expect_err("too low").code(), Code::PermissionDenied);
        }
        let submitter = Caller::Person { name: "sam".into(), role: Role::Submitter };
        assert!(decide("/devfleet.v1.Jobs/Approve", &submitter).is_err());
    }
}
