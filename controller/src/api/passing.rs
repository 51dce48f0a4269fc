//! Calls that only the leader can answer, passed on to it.
//!
//!   call ─▶ access ─▶ answered from the store? ─ yes ─▶ here
//!                        └ no ─▶ do we lead? ─ yes ─▶ here     ─ no ─▶ the leader, in the caller's name
//!
//! Sessions, inventories, reasons for waiting, running logs live in one controller's memory: the leader's. So hosts and
//! people may come to any controller. People are known by the token that travels with the call; a host by a header that
//! counts only beside a controller's certificate.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use devfleet_shared::error::Chain;
use devfleet_shared::id::ControllerId;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tower::{Layer, Service, ServiceExt as _};
use tracing::debug;

use super::access::HOST_HEADER;
use super::refusal;
use crate::identity::{Authority, Caller, peer_controller};
use crate::leader::Term;
use crate::store::Revision;
use crate::store::records::leadership::LeaderRecord;
use crate::view::View;

/// What is answered from the store alone, by any controller. All else is the leader's.
const ANYWHERE: [&str; 22] = [
    "/devfleet.v1.Jobs/ApplyProject",
    "/devfleet.v1.Jobs/RemoveProject",
    "/devfleet.v1.Jobs/ListProjects",
    "/devfleet.v1.Jobs/Submit",
    "/devfleet.v1.Jobs/Cancel",
    "/devfleet.v1.Jobs/Approve",
    "/devfleet.v1.Jobs/Reject",
    "/devfleet.v1.Jobs/GetProposal",
    "/devfleet.v1.Fleet/WhoAmI",
    "/devfleet.v1.Fleet/ListControllers",
    "/devfleet.v1.Fleet/CreateJoinToken",
    "/devfleet.v1.Fleet/CreateToken",
    "/devfleet.v1.Fleet/ListTokens",
    "/devfleet.v1.Fleet/RevokeToken",
    "/devfleet.v1.Fleet/Join",
    "/devfleet.v1.Fleet/RenewCertificate",
    "/devfleet.v1.Session/GetGrant",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.health.v1.Health/List",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// The revision up to which the leader must have seen the store before it answers.
const SEEN_HEADER: &str = "devfleet-seen";
/// How long a connection to the leader may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a call waits for a leader.
const SETTLE: Duration = Duration::from_secs(5);
/// A connection is made anew after this time, with a fresh certificate.
const AGE: Duration = Duration::from_secs(24 * 3600);

/// How a controller connects to another. A seam: the simulation has a network of its own.
pub type Reach = fn(Endpoint) -> Channel;

/// Knows the leader, and how to reach it.
pub struct Passing {
    /// The term under way, if this controller leads.
    term: watch::Receiver<Option<Term>>,
    /// The records, and the leader's among them.
    view: Arc<View>,
    /// Signs what this controller shows.
    authority: Arc<Authority>,
    /// This controller.
    controller: ControllerId,
    /// Connects.
    reach: Reach,
    /// The connection to the leader.
    connection: Mutex<Option<Connection>>,
}

/// A connection to a leader.
struct Connection {
    address: String,
    made: Instant,
    channel: Channel,
}

impl Passing {
    /// Makes one that knows no leader yet.
    pub fn new(
        term: watch::Receiver<Option<Term>>,
        view: Arc<View>,
        authority: Arc<Authority>,
        controller: ControllerId,
        reach: Reach,
    ) -> Self {
        Self { term, view, authority, controller, reach, connection: Mutex::new(None) }
    }

    /// Says whether a call is answered here.
    fn is_here(&self, path: &str) -> bool {
        ANYWHERE.contains(&path) || self.term.borrow().is_some()
    }

    /// Waits until this controller or another is known to lead.
    async fn settled(&self) {
        let (mut term, mut records) = (self.term.clone(), self.view.changed());
        loop {
            let other = |leader: &LeaderRecord| leader.controller != self.controller && !leader.address.is_empty();
            if term.borrow_and_update().is_some() || self.view.read().leader.as_ref().is_some_and(other) {
                return;
            }
            records.borrow_and_update();
            tokio::select! {
                changed = term.changed() => if changed.is_err() { return },
                changed = records.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Returns a channel to the leader.
    fn leader(&self) -> Result<Channel, tonic::Status> {
        let leader = self.view.read().leader.clone().filter(|leader| leader.controller != self.controller);
        let Some(address) = leader.map(|leader| leader.address).filter(|address| !address.is_empty()) else {
            return Err(refusal(
                Code::Unavailable,
                "NO_LEADER",
                "no controller leads right now; try again in a moment",
            ));
        };
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = connection.as_ref().filter(|known| known.address == address && known.made.elapsed() < AGE)
        {
            return Ok(known.channel.clone());
        }
        debug!(address, "calls are passed on to another leader");
        let identity =
            self.authority.issue_controller(&self.controller).map_err(|error| unreachable(&address, &error))?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.certificate_pem()))
            .identity(Identity::from_pem(&identity.certificate_pem, identity.key_pem.expose()));
        let endpoint = Endpoint::from_shared(address.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| unreachable(&address, &error))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = (self.reach)(endpoint);
        *connection = Some(Connection { address, made: Instant::now(), channel: channel.clone() });
        Ok(channel)
    }

    async fn pass(&self, mut request: http::Request<Body>) -> http::Response<Body> {
        let channel = match self.leader() {
            Ok(channel) => channel,
            Err(status) => return status.into_http(),
        };
        let host = match request.extensions().get::<Caller>() {
            Some(Caller::Host(host)) => host.as_str().parse().ok(),
            _ => None,
        };
        request.headers_mut().remove(HOST_HEADER);
        if let Some(host) = host {
            request.headers_mut().insert(HOST_HEADER, host);
        }
        // Who wrote here a moment ago finds it there.
        let revision = *self.view.changed().borrow();
        request.headers_mut().insert(SEEN_HEADER, http::HeaderValue::from(revision));
        match channel.oneshot(request).await {
            Ok(response) => response,
            Err(error) => unreachable("the leader", &error).into_http(),
        }
    }
}

fn unreachable(address: &str, error: &(dyn std::error::Error + 'static)) -> tonic::Status {
    let message = format!("{address} leads and cannot be reached: {}; try again in a moment", Chain(error));
    refusal(Code::Unavailable, "LEADER_UNREACHABLE", message)
}

/// Puts the decision in front of all services, behind the check of access.
#[derive(Clone)]
pub struct PassingLayer {
    /// Where to.
    pub passing: Arc<Passing>,
}

impl<S> Layer<S> for PassingLayer {
    type Service = PassingService<S>;
    fn layer(&self, inner: S) -> PassingService<S> {
        PassingService { passing: self.passing.clone(), inner }
    }
}

/// A service behind the decision.
#[derive(Clone)]
pub struct PassingService<S> {
    passing: Arc<Passing>,
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for PassingService<S>
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

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let seen = seen(&request);
        if seen.is_none() && self.passing.is_here(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        // The service that was polled ready is the one to call; its clone waits for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let passing = self.passing.clone();
        Box::pin(async move {
            // At a start and at a change of leaders a call waits a little, rather than fail.
            drop(tokio::time::timeout(SETTLE, passing.settled()).await);
            if seen.is_none() && !passing.is_here(request.uri().path()) {
                return Ok(passing.pass(request).await);
            }
            if let Some(revision) = seen {
                drop(tokio::time::timeout(SETTLE, passing.view.reach(revision)).await);
                if !passing.is_here(request.uri().path()) {
                    return Ok(no_leader().into_http());
                }
            }
            inner.call(request).await
        })
    }
}

/// Returns what the controller that passed a call on had seen of the store; `None`: nobody passed it on.
fn seen(request: &http::Request<Body>) -> Option<Revision> {
    peer_controller(request.extensions())?;
    Some(request.headers().get(SEEN_HEADER).and_then(|seen| seen.to_str().ok()?.parse().ok()).unwrap_or(0))
}

fn no_leader() -> tonic::Status {
    refusal(Code::Unavailable, "NO_LEADER", "no controller leads right now; try again in a moment")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::access::access;

    #[test]
    fn what_is_answered_anywhere_is_a_call_that_there_is() {
        for path in ANYWHERE {
            assert!(access(path).is_some(), "{path}");
        }
    }
}
