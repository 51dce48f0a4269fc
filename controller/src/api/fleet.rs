//! The `Fleet` service: hosts, tokens, health, and how hosts join.

use std::sync::Arc;
use std::time::Duration;

use devfleet_proto::v1::{self, fleet_server};
use devfleet_shared::clock::Clock;
use devfleet_shared::error::Chain;
use devfleet_shared::id::HostId;
use tonic::{Code, Request, Response, Status};
use tracing::info;

use super::hosts::host_status;
use super::{caller, host, identity_status, invalid, person, refusal, sweep_message};
use crate::forges::Forges;
use crate::hosts::{HostError, refused};
use crate::identity::{Authority, Caller, JoinRefused, JoinTerms, Joined, Role, Tokens, key_of_request};
use crate::reconcile::snapshot::Defaults;
use crate::sessions::Sessions;
use crate::store::SharedStore;
use crate::store::records::{HostRecord, key};
use crate::view::View;

/// How long a join token is good for unless asked otherwise, and at most.
const JOIN_TIME: Duration = Duration::from_secs(15 * 60);
const JOIN_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct FleetService {
    /// Where hosts are written.
    pub store: SharedStore,
    /// The records.
    pub view: Arc<View>,
    /// The connected hosts.
    pub sessions: Arc<Sessions>,
    /// The tokens.
    pub tokens: Tokens,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// Opens forges, for the doctor.
    pub forges: Forges,
    /// What counts unless the settings say otherwise.
    pub defaults: Defaults,
    /// Tells the time.
    pub clock: Clock,
}

#[tonic::async_trait]
impl fleet_server::Fleet for FleetService {
    async fn who_am_i(&self, request: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        match caller(&request) {
            Caller::Person { name, role } => Ok(Response::new(v1::WhoAmIResponse { name, role: role.to_string() })),
            Caller::Host(_) | Caller::Nobody => Err(refusal(Code::Unauthenticated, "NO_TOKEN", "this needs a token")),
        }
    }

    async fn list_hosts(
        &self,
        _request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        Ok(Response::new(v1::ListHostsResponse { hosts: self.list() }))
    }

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Result<Response<v1::Host>, Status> {
        let id = self.find(&request.into_inner().host)?;
        self.show(&id).map(Response::new)
    }

    async fn cordon_host(&self, request: Request<v1::CordonHostRequest>) -> Result<Response<v1::Host>, Status> {
        let by = person(&request);
        self.cordon(request.into_inner(), &by).await.map(Response::new)
    }

    async fn drain_host(&self, request: Request<v1::DrainHostRequest>) -> Result<Response<v1::Host>, Status> {
        let by = person(&request);
        self.drain(request.into_inner(), &by).await.map(Response::new)
    }

    async fn resume_host(&self, request: Request<v1::ResumeHostRequest>) -> Result<Response<v1::Host>, Status> {
        let by = person(&request);
        self.resume(request.into_inner(), &by).await.map(Response::new)
    }

    async fn label_host(&self, request: Request<v1::LabelHostRequest>) -> Result<Response<v1::Host>, Status> {
        let by = person(&request);
        self.label(request.into_inner(), &by).await.map(Response::new)
    }

    async fn remove_host(
        &self,
        request: Request<v1::RemoveHostRequest>,
    ) -> Result<Response<v1::RemoveHostResponse>, Status> {
        let by = person(&request);
        self.remove(request.into_inner(), &by).await.map(Response::new)
    }

    async fn list_controllers(
        &self,
        _request: Request<v1::ListControllersRequest>,
    ) -> Result<Response<v1::ListControllersResponse>, Status> {
        Ok(Response::new(v1::ListControllersResponse { controllers: self.controllers() }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let wanted = request.into_inner();
        let ttl = match wanted.ttl_seconds {
            0 => JOIN_TIME,
            seconds => Duration::from_secs(seconds),
        };
        if ttl > JOIN_TIME_MAX {
            return Err(invalid("TTL_TOO_LONG", "a join token can be good for 24 hours at most"));
        }
        let labels = wanted.labels.into_iter().collect();
        let terms = JoinTerms { ttl, uses: wanted.uses.max(1), labels };
        let made = self.tokens.create_join(&terms, &self.authority.fingerprint()).await;
        let (token, expires) = made.map_err(|error| identity_status(&error))?;
        Ok(Response::new(v1::CreateJoinTokenResponse { token: token.expose().to_owned(), expires_unix_ms: expires.0 }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let wanted = request.into_inner();
        let role: Role = wanted
            .role
            .parse()
            .map_err(|error: crate::identity::UnknownRole| invalid("NO_SUCH_ROLE", error.to_string()))?;
        let ttl = (wanted.ttl_seconds > 0).then(|| Duration::from_secs(wanted.ttl_seconds));
        let made = self.tokens.create(&wanted.name, role, ttl).await;
        let (record, token) = made.map_err(|error| identity_status(&error))?;
        info!(id = record.id, name = record.name, role = %role, "token made");
        Ok(Response::new(v1::CreateTokenResponse { id: record.id, token: token.expose().to_owned() }))
    }

    async fn list_tokens(
        &self,
        _request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let records = self.tokens.list().await.map_err(|error| identity_status(&error))?;
        let tokens = records.into_iter().map(|record| v1::Token {
            id: record.id,
            name: record.name,
            role: record.role.to_string(),
            created_unix_ms: record.created.0,
            expires_unix_ms: record.expires.unwrap_or_default().0,
            revoked: record.revoked.is_some(),
        });
        Ok(Response::new(v1::ListTokensResponse { tokens: tokens.collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let id = request.into_inner().id;
        self.tokens.revoke(&id).await.map_err(|error| identity_status(&error))?;
        info!(id, "token revoked");
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn sweep(&self, request: Request<v1::SweepRequest>) -> Result<Response<v1::SweepResponse>, Status> {
        let wanted = request.into_inner();
        let hosts: Vec<HostId> = match wanted.host.as_str() {
            "" => self.sessions.connected().into_keys().collect(),
            name => vec![self.find(name)?],
        };
        let sweeps = hosts.iter().map(|host| async {
            let name = self.name(host);
            match self.sessions.sweep(host, wanted.dry_run).await {
                Ok(result) => v1::HostSweep { host: name, objects: result.objects, error: result.error },
                Err(error) => v1::HostSweep { host: name, objects: vec![], error: sweep_message(&error) },
            }
        });
        Ok(Response::new(v1::SweepResponse { hosts: futures_util::future::join_all(sweeps).await }))
    }

    async fn get_settings(&self, _request: Request<v1::GetSettingsRequest>) -> Result<Response<v1::Settings>, Status> {
        Ok(Response::new(self.show_settings()))
    }

    async fn set_settings(&self, request: Request<v1::SetSettingsRequest>) -> Result<Response<v1::Settings>, Status> {
        let by = person(&request);
        Ok(Response::new(self.change_settings(&request.into_inner(), &by).await?))
    }

    async fn doctor(&self, _request: Request<v1::DoctorRequest>) -> Result<Response<v1::DoctorResponse>, Status> {
        let mut findings = vec![self.check_store().await];
        findings.extend(self.check_hosts());
        findings.extend(self.check_forges().await);
        Ok(Response::new(v1::DoctorResponse { findings }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let wanted = request.into_inner();
        if !(1..=100).contains(&wanted.name.chars().count()) || wanted.name.chars().any(char::is_control) {
            return Err(invalid("INVALID_HOST_NAME", "a host's name must be 1 to 100 printable characters"));
        }
        // The request is read before the token is spent: a bad request must not cost the token.
        let key = key_of_request(&wanted.signing_request).map_err(|error| identity_status(&error))?;
        let joined = self.tokens.redeem_join(&wanted.token, &HostId::random(), &key).await;
        let Joined { host: id, labels } = joined.map_err(|error| join_status(&error))?;
        let issued = self.authority.sign_host(&wanted.signing_request, &id).map_err(|error| identity_status(&error))?;
        let (joined, certificate_ends) = (self.clock.now(), issued.ends);
        let record = HostRecord {
            id: id.clone(),
            name: wanted.name,
            joined,
            certificate_ends,
            labels,
            desired: Default::default(),
        };
        self.hosts().add(&record).await.map_err(|error| host_status(&error))?;
        // A removed host that shows its old token again gets no record, and none is waited for.
        let known = self
            .view
            .until(|records| (records.hosts.contains_key(&id) || records.removed.contains_key(&id)).then_some(()));
        known.await;
        info!(host = %id, name = record.name, "host joined");
        Ok(Response::new(v1::JoinResponse {
            host_id: id.to_string(),
            certificate: issued.certificate_pem,
            authority: self.authority.certificate_pem().to_owned(),
            controller_name: "devfleet".to_owned(),
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateResponse>, Status> {
        let id = host(&request)?;
        let wanted = request.into_inner();
        let issued = self.authority.sign_host(&wanted.signing_request, &id).map_err(|error| identity_status(&error))?;
        let renewed = self.hosts().change(&id, |record, _| record.certificate_ends = issued.ends).await;
        renewed.map_err(|error| match error {
            HostError::NoSuchHost(_) => refusal(Code::PermissionDenied, "HOST_REMOVED", refused(None)),
            error => host_status(&error),
        })?;
        Ok(Response::new(v1::RenewCertificateResponse {
            certificate: issued.certificate_pem,
            authority: self.authority.certificate_pem().to_owned(),
        }))
    }
}

impl FleetService {
    async fn check_store(&self) -> v1::Finding {
        let read = self.store.get(&key::idempotency("doctor")).await;
        finding("controller", "store", read.map(|_| "it answers".to_owned()).map_err(|error| Chain(&error).to_string()))
    }

    fn check_hosts(&self) -> Vec<v1::Finding> {
        let connected = self.sessions.connected();
        let hosts: Vec<_> = self.view.read().hosts.values().cloned().collect();
        if hosts.is_empty() {
            let advice =
                "none has joined; make a token with `devfleet join-token create` and start devfleet-host with it";
            return vec![finding("controller", "hosts", Err(advice.to_owned()))];
        }
        let check = |host: Arc<HostRecord>| match connected.get(&host.id) {
            None => finding(
                &host.name,
                "session",
                Err("it is not connected; see whether devfleet-host runs there, and its log".into()),
            ),
            Some(connected) if connected.inventory.problems.is_empty() => {
                let inventory = &connected.inventory;
                let message = format!(
                    "Docker {} (API {}), {}",
                    inventory.engine_version, inventory.engine_api, inventory.storage_driver
                );
                finding(&host.name, "engine", Ok(message))
            }
            Some(connected) => finding(&host.name, "engine", Err(connected.inventory.problems.join("; "))),
        };
        hosts.into_iter().map(check).collect()
    }

    async fn check_forges(&self) -> Vec<v1::Finding> {
        let projects: Vec<_> = self.view.read().projects.values().cloned().collect();
        let checks = projects.iter().map(|project| async {
            let checked = match self.forges.of(&project.config).await {
                Ok(forge) => match tokio::time::timeout(Duration::from_secs(8), forge.check()).await {
                    Ok(Ok(found)) => Ok(found),
                    Ok(Err(error)) => Err(format!("cannot {}", Chain(&error))),
                    Err(_) => Err("the forge did not answer within 8 s".to_owned()),
                },
                Err(error) => Err(format!("cannot {}", Chain(&error))),
            };
            finding("controller", &format!("forge of {}", project.config.name), checked)
        });
        futures_util::future::join_all(checks).await
    }
}

fn finding(subject: &str, check: &str, found: Result<String, String>) -> v1::Finding {
    let ok = found.is_ok();
    let message = found.unwrap_or_else(|problem| problem);
    v1::Finding { subject: subject.to_owned(), check: check.to_owned(), ok, message }
}

fn join_status(error: &JoinRefused) -> Status {
    let (code, reason) = match error {
        JoinRefused::Wrong => (Code::Unauthenticated, "JOIN_TOKEN_WRONG"),
        JoinRefused::Expired(_) => (Code::Unauthenticated, "JOIN_TOKEN_EXPIRED"),
        JoinRefused::Used(_) => (Code::Unauthenticated, "JOIN_TOKEN_USED"),
        JoinRefused::Unavailable(_) => (Code::Unavailable, "STORE_UNAVAILABLE"),
    };
    refusal(code, reason, Chain(error).to_string())
}
